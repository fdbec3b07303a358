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
from itertools import islice
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
class _Move:
    """Where the tokens of some rows stand: with those of all rows, one after another, and in their rows.

    With attention heads, each token is as many as there are heads, and each row is one for every head.

    Attributes:
        shape: The rows, the heads if any, and the columns that the rows need.
        sources: Of each place there, the token; the empty one after all tokens, where a row is shorter.
        places: Of each token, its place.
        tokens: Where the tokens stand among those of all rows.
    """

    shape: tuple[int, ...]
    sources: Tensor
    places: Tensor
    tokens: slice

    def pad(self, flat: Tensor) -> Tensor:
        """The tokens of these rows in rows: (tokens of all, ...) becomes (*shape, ...)."""
        return flat.index_select(0, self.sources).unflatten(0, self.shape)

    def put(self, padded: Tensor, flat: Tensor) -> None:
        """The opposite, into `flat`."""
        rows = padded.reshape(len(self.sources), *flat.shape[1:])
        torch.index_select(rows, 0, self.places, out=flat[self.tokens])

    def of_heads(self, heads: int) -> _Move:
        """The same with attention heads."""
        (rows, width), each = self.shape, torch.arange(heads, device=self.sources.device)
        sources = self.sources.view(rows, 1, width) * heads + each[:, None]
        row, column = self.places // width, self.places % width
        places = (row[:, None] * heads + each) * width + column[:, None]
        tokens = slice(self.tokens.start * heads, self.tokens.stop * heads)
        return _Move((rows, heads, width), sources.flatten(), places.flatten(), tokens)


Moves = Sequence[_Move]
"""Those of groups of rows that make up a batch, in the order of their tokens."""


class _Pad(torch.autograd.Function):
    """Tokens of all rows into groups of rows; of several tensors, one after another."""

    @staticmethod
    def forward(ctx: Any, moves: Sequence[Moves], *flat: Tensor) -> tuple[Tensor, ...]:
        ctx.moves, ctx.tokens = moves, [len(one) for one in flat]
        return tuple(move.pad(one) for its, one in zip(moves, flat, strict=True) for move in its)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        padded = iter(gradients)
        joined = [
            _joined(its, [*islice(padded, len(its))], tokens)
            for its, tokens in zip(ctx.moves, ctx.tokens, strict=True)
        ]
        return None, *joined


class _Join(torch.autograd.Function):
    """Groups of rows into the tokens of all rows."""

    @staticmethod
    def forward(ctx: Any, moves: Moves, tokens: int, *padded: Tensor) -> Tensor:
        ctx.moves = moves
        return _joined(moves, padded, tokens)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(move.pad(gradient) for move in ctx.moves)


def _joined(moves: Moves, padded: Sequence[Tensor], tokens: int) -> Tensor:
    """The tokens of all rows, and zeros after them."""
    flat = padded[0].new_empty(tokens, *padded[0].shape[len(moves[0].shape) :])
    flat[moves[-1].tokens.stop :] = 0
    for move, rows in zip(moves, padded, strict=True):
        move.put(rows, flat)
    return flat


class _Layout:
    """Where the tokens of one batch stand, with and without padding.

    The tokens of rows of similar length follow each other. After all of them there are empty ones, at least
    one, which stand for padding in groups: zero where tokens come in, and without a gradient.
    """

    def __init__(self, mask: Tensor) -> None:
        self.shape = mask.shape
        real = int(mask.sum())
        self.tokens = (real // _ROUND_ALL + 1) * _ROUND_ALL
        if self.tokens == mask.shape[1]:
            # What has columns must be told from what has tokens.
            self.tokens += _ROUND_ALL
        extents = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1)
        sizes = [max(_SHORT, 1 << (extent - 1).bit_length()) for extent in extents.tolist()]
        self.rows: list[Tensor] = []
        self.groups: list[_Move] = []
        start = 0
        for size in sorted(set(sizes)):
            rows = torch.tensor([row for row, its in enumerate(sizes) if its == size], device=mask.device)
            width = min(-(-int(extents[rows].max()) // _ROUND) * _ROUND, mask.shape[1])
            places = mask[rows, :width].flatten().nonzero()[:, 0]
            self.rows.append(rows)
            self.groups.append(self._move((len(rows), width), places, start, real))
            start += len(places)
        whole = [
            rows[its.places // its.shape[1]] * mask.shape[1] + its.places % its.shape[1]
            for rows, its in zip(self.rows, self.groups, strict=True)
        ]
        self.whole = [self._move(tuple(mask.shape), torch.cat(whole), 0, real)]
        self._of_heads: dict[int, Moves] = {}
        # What every block gets alike is made once; the originals are kept so that their ids stay theirs.
        self._made: dict[int, tuple[Tensor, Any]] = {}

    def _move(self, shape: tuple[int, ...], places: Tensor, start: int, empty: int) -> _Move:
        sources = torch.full((shape[0] * shape[1],), empty, device=places.device)
        tokens = slice(start, start + len(places))
        sources[places] = torch.arange(tokens.start, tokens.stop, device=places.device)
        return _Move(shape, sources, places, tokens)

    # Around the blocks ------------------------------------------------------------------

    def before(self, block: nn.Module, given: Any, options: Any) -> tuple[Any, Any]:
        """Everything that has rows and columns becomes the tokens of one row; what is so already stays."""
        return self._without_padding(given), self._without_padding(options)

    def after_last(self, block: nn.Module, given: Any, output: Any) -> Any:
        """Rows again, the empty token for padding."""
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        (padded,) = _Pad.apply([self.whole], hidden.flatten(0, 1))
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
            masks = self._once(attention_mask, lambda: self._masks(attention_mask))
        padded = iter(self._in_rows(query, key, value))
        rows = zip(*([*islice(padded, len(self.groups))] for _ in range(3)), strict=True)
        outputs = [
            attend(module, *its, mask, *given, **options)[0] for its, mask in zip(rows, masks, strict=True)
        ]
        return _Join.apply(self.groups, self.tokens, *outputs)[None], None

    def _in_rows(self, *heads: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values of each group: (rows, heads, width, width of a head)."""
        moves = [self._moves(one.shape[1]) for one in heads]
        return _Pad.apply(moves, *(one.transpose(1, 2).flatten(0, 2) for one in heads))

    def _moves(self, heads: int) -> Moves:
        if heads not in self._of_heads:
            self._of_heads[heads] = [group.of_heads(heads) for group in self.groups]
        return self._of_heads[heads]

    def _masks(self, mask: Tensor) -> list[Tensor]:
        """The part of an attention mask, (rows or 1, heads or 1, columns or 1, columns), for each group."""
        widths = [group.shape[1] for group in self.groups]
        return [
            (mask if len(mask) == 1 else mask[rows])[:, :, :width, :width]
            for rows, width in zip(self.rows, widths, strict=True)
        ]
