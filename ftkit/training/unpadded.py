"""No padding: between its first and its last block, a model computes the real tokens of a batch alone.

The tokens of all rows stand one after another there, so that products, norms and activations see no
padding. Attention, which needs rows, gets them back in groups of similar length. The idea is that of Zeng et
al. (2022), "Boosting Distributed Training Performance of the Unpadded BERT Model"; here it works for any
architecture whose blocks attend by transformers' attention functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ftkit.training.heads import Batch

_ATTENTION = "sdpa"
_SHORT = 16
"""Rows of at most so many tokens attend together; of longer ones those between two powers of two."""
_ROUND, _ROUND_ALL = 4, 16
"""Columns of a group, and tokens in all, are rounded up to multiples: fewer shapes need fewer kernels."""


class Unpadded:
    """Takes the padding out of batches between the first and the last block of a model.

    Args:
        blocks: The model's repeated blocks, in the order in which they are computed.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = blocks
        self.attended = 0

    @classmethod
    def of(cls, model: nn.Module) -> Unpadded | None:
        """For the one stack of blocks that a model has; `None` where it has none, or several."""
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
        stacks = [one for one in lists if all(isinstance(block, GradientCheckpointingLayer) for block in one)]
        return cls(list(stacks[0])) if len(stacks) == 1 else None

    @contextmanager
    def rows(self, mask: Tensor) -> Iterator[None]:
        """Passes over a batch in here compute its real tokens alone.

        Args:
            mask: 1 where there is a token, 0 where there is padding, shape (rows, columns).
        """
        if bool(mask.all()) or len(mask) < 2:
            yield
            return
        layout = _Layout(mask)
        attend, own = ALL_ATTENTION_FUNCTIONS[_ATTENTION], dict(ALL_ATTENTION_FUNCTIONS._local_mapping)

        def in_rows(module: nn.Module, *given: Any, **options: Any) -> tuple[Tensor, None]:
            self.attended += 1
            return layout.attend(attend, module, *given, **options)

        with ExitStack() as stack:
            for block in self.blocks:
                stack.enter_context(block.register_forward_pre_hook(layout.before, with_kwargs=True))
            stack.enter_context(self.blocks[-1].register_forward_hook(layout.after_last))
            ALL_ATTENTION_FUNCTIONS[_ATTENTION] = in_rows
            stack.callback(setattr, ALL_ATTENTION_FUNCTIONS, "_local_mapping", own)
            yield


def unpadded_as_padded(
    model: nn.Module, batch: Batch, losses: Callable[[Batch], Tensor], tolerance: float
) -> Unpadded | None:
    """What takes the padding out of a model's batches, if the model says the same without it.

    That a block attends by other means, or lets tokens see each other otherwise (by convolutions, or by a
    state that goes from one to the next), shows on one small batch: what a row comes out as must not hang on
    the others.

    Args:
        model: The model.
        batch: Two rows of different lengths, padded.
        losses: The loss of each row of a batch.
        tolerance: By how much numbers may differ, relative to the largest.

    Returns:
        `None` where the rows come out otherwise, where an architecture cannot be computed that way, or where
        nothing is padded.
    """
    found, mask = Unpadded.of(model), batch.get("attention_mask")
    if found is None or mask is None or mask.dim() != 2 or bool(mask.all()) or _varies(model):
        return None
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            expected, padded = _seen(found, batch, losses)
            with found.rows(mask):
                flat, hidden = _seen(found, batch, losses)
                attended = found.attended
                apart = [
                    torch.equal(_seen(found, one, losses)[1][rows], hidden[rows])
                    for rows, one in _changed(batch, mask.bool())
                ]
    except Exception:  # noqa: BLE001
        # Any way in which an architecture, or the data, does not bear it; what is wrong with the model itself
        # comes up again in training, which then computes it with its padding.
        return None
    finally:
        model.train(training)
    same = _close(flat, expected, tolerance) and _close(hidden[mask.bool()], padded[mask.bool()], tolerance)
    return found if same and all(apart) and attended == len(found.blocks) else None


def _changed(batch: Batch, real: Tensor) -> Iterator[tuple[Tensor, Batch]]:
    """The batch with each row in turn made of other tokens, in their number; which rows stay comes first."""
    ids = batch["input_ids"]
    one = ids[real][0]
    other = ids[real & (ids != one)][0]
    for row in torch.eye(len(ids), dtype=torch.bool, device=ids.device):
        new = torch.where(ids == one, other, one)
        yield ~row, {**batch, "input_ids": torch.where(real & row[:, None], new, ids)}


def _varies(model: Any) -> bool:
    """Whether a model leaves blocks out in training, or counts tokens in its blocks (Llama 4)."""
    config = model.config.get_text_config()
    return bool(getattr(config, "layerdrop", 0) or getattr(config, "attn_temperature_tuning", False))


def _seen(found: Unpadded, batch: Batch, losses: Callable[[Batch], Tensor]) -> tuple[Tensor, Tensor]:
    """The losses of a batch's rows, and what its last block returned, a row each."""
    outputs: list[Any] = []
    with found.blocks[-1].register_forward_hook(lambda _, __, output: outputs.append(output)):
        said = losses(batch)
    hidden = outputs[-1]
    return said, (hidden[0] if isinstance(hidden, tuple) else hidden).float()


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return bool((one - other).abs().max() <= tolerance * other.abs().max().clamp(min=1e-6))


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows of similar length.

    Attributes:
        rows: Their numbers in the batch.
        width: The columns that they need.
        tokens: Where their tokens stand among those of all rows.
        places: Where the same tokens stand among `len(rows) * width` places.
    """

    rows: Tensor
    width: int
    tokens: Tensor
    places: Tensor

    def pad(self, flat: Tensor) -> Tensor:
        """The tokens of these rows in rows: (tokens of all, ...) becomes (rows, width, ...)."""
        padded = flat.new_zeros(len(self.rows) * self.width, *flat.shape[1:])
        padded.index_copy_(0, self.places, flat.index_select(0, self.tokens))
        return padded.unflatten(0, (len(self.rows), self.width))

    def put(self, padded: Tensor, flat: Tensor) -> None:
        """The opposite, into `flat`."""
        flat.index_copy_(0, self.tokens, padded.flatten(0, 1).index_select(0, self.places))


class _Pad(torch.autograd.Function):
    """Tokens of all rows into groups of rows."""

    @staticmethod
    def forward(ctx: Any, groups: Sequence[_Group], flat: Tensor) -> tuple[Tensor, ...]:
        ctx.groups, ctx.tokens = groups, len(flat)
        return tuple(group.pad(flat) for group in groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, _joined(ctx.groups, gradients, ctx.tokens)


class _Join(torch.autograd.Function):
    """Groups of rows into the tokens of all rows."""

    @staticmethod
    def forward(ctx: Any, groups: Sequence[_Group], tokens: int, *padded: Tensor) -> Tensor:
        ctx.groups = groups
        return _joined(groups, padded, tokens)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(group.pad(gradient) for group in ctx.groups)


def _joined(groups: Sequence[_Group], padded: Sequence[Tensor], tokens: int) -> Tensor:
    """The tokens of all rows, and zeros after them."""
    flat = padded[0].new_empty(tokens, *padded[0].shape[2:])
    flat[sum(len(group.tokens) for group in groups) :] = 0
    for group, rows in zip(groups, padded, strict=True):
        group.put(rows, flat)
    return flat


class _Layout:
    """Where the tokens of one batch stand, with and without padding."""

    def __init__(self, mask: Tensor) -> None:
        self.shape = mask.shape
        self.tokens = -(-int(mask.sum()) // _ROUND_ALL) * _ROUND_ALL
        if self.tokens == mask.shape[1]:
            # What has columns must be told from what has tokens.
            self.tokens += _ROUND_ALL
        columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        extents = (mask * columns).amax(dim=1)
        self.whole = [self._group(mask, torch.arange(len(mask), device=mask.device), mask.shape[1])]
        sizes = [max(_SHORT, 1 << (extent - 1).bit_length()) for extent in extents.tolist()]
        self.groups = []
        for size in sorted(set(sizes)):
            rows = torch.tensor([row for row, its in enumerate(sizes) if its == size], device=mask.device)
            width = min(-(-int(extents[rows].max()) // _ROUND) * _ROUND, mask.shape[1])
            self.groups.append(self._group(mask, rows, width))
        # What every block gets alike is made once; the originals are kept so that their ids stay theirs.
        self._made: dict[int, tuple[Tensor, Any]] = {}

    def _group(self, mask: Tensor, rows: Tensor, width: int) -> _Group:
        numbers = mask.flatten().cumsum(0).view_as(mask) - 1
        real = mask[rows, :width].bool()
        return _Group(rows, width, numbers[rows, :width][real], real.flatten().nonzero()[:, 0])

    # Around the blocks ------------------------------------------------------------------

    def before(self, block: nn.Module, given: Any, options: Any) -> tuple[Any, Any]:
        """Everything that has rows and columns becomes the tokens of one row; what is so already stays."""
        return self._without_padding(given), self._without_padding(options)

    def after_last(self, block: nn.Module, given: Any, output: Any) -> Any:
        """Rows again, padding zero."""
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        (padded,) = _Pad.apply(self.whole, hidden[0])
        return (padded, *rest) if isinstance(output, tuple) else padded

    def _without_padding(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.dim() < 2 or value.shape[1] != self.shape[1] or len(value) not in (1, self.shape[0]):
                return value
            return self._once(value, lambda: self._flat(value.expand(self.shape[0], *value.shape[1:]))[None])
        if isinstance(value, dict):
            return {name: self._without_padding(one) for name, one in value.items()}
        if type(value) in (tuple, list):
            return type(value)(self._without_padding(one) for one in value)
        return value

    def _flat(self, rows: Tensor) -> Tensor:
        return cast("Tensor", _Join.apply(self.whole, self.tokens, rows))

    def _once(self, value: Tensor, make: Callable[[], Any]) -> Any:
        if id(value) not in self._made:
            self._made[id(value)] = value, make()
        return self._made[id(value)][1]

    # Attention --------------------------------------------------------------------------

    def attend(
        self,
        attend: Callable[..., Any],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *given: Any,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """Attention of the rows by transformers' own function, in groups of similar length.

        Args:
            attend: That function.
            module: The attention module, which that function gets.
            query: Shape (1, heads, tokens, width of a head), as `key` and `value`.
            attention_mask: As the model made it for the padded batch.
            given: What else it is called with.
            options: Likewise.
        """
        if options.get("position_bias") is not None:
            # Made in the block, of all tokens as one row; the look at an architecture takes this for a no.
            raise ValueError("a bias of positions is that of one long row")
        masks = [None] * len(self.groups)
        if attention_mask is not None:
            mask = attention_mask
            masks = self._once(mask, lambda: [_masked(mask, group) for group in self.groups])
        padded = zip(*(self._in_rows(one) for one in (query, key, value)), strict=True)
        outputs = [
            attend(module, *rows, mask, *given, **options)[0]
            for rows, mask in zip(padded, masks, strict=True)
        ]
        return _Join.apply(self.groups, self.tokens, *outputs)[None], None

    def _in_rows(self, heads: Tensor) -> Sequence[Tensor]:
        """A query, key or value of each group: (rows, heads, width, width of a head)."""
        return [rows.transpose(1, 2) for rows in _Pad.apply(self.groups, heads[0].transpose(0, 1))]


def _masked(mask: Tensor, group: _Group) -> Tensor:
    """The part of an attention mask, shape (rows, heads or 1, columns or 1, columns), for a group."""
    rows = mask if len(mask) == 1 else mask[group.rows]
    return rows[:, :, : group.width, : group.width]
