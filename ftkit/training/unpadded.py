"""No padding: between its first and its last block, a model computes the real tokens of a batch alone.

The tokens of all rows stand one after another there, so that products, norms and activations see no
padding. Attention, which needs rows, gets them back in groups of similar length. The idea is that of Zeng et
al. (2022), "Boosting Distributed Training Performance of the Unpadded BERT Model"; here it works for any
architecture whose blocks attend by transformers' attention functions.

Of the last block, moreover, a classifier reads one token a row, and a language model those before an answer.
The others are computed there no further than to keys and values: the loss and its gradient do not hang on
them. Predictions, whose rows are of similar length, have that alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ftkit.training.heads import IGNORED, Batch

_ATTENTION = "sdpa"
_SHORT = 16
"""Rows of at most so many tokens attend together; of longer ones those between two powers of two."""
_ROUND, _ROUND_ALL = 4, 16
"""Columns of a group, and tokens in all, are rounded up to multiples: fewer shapes need fewer kernels."""
_FEW = 0.75
"""Share of the tokens up to which those that are read are computed apart."""

Read = Callable[[Mapping[str, Tensor], int | None], Tensor | None]
"""The tokens whose last states a model looks at, by a batch and the number of the padding token."""


@dataclass(frozen=True, slots=True)
class Noise:
    """What is put in the place of last states, to see what hangs on them.

    Attributes:
        seed: Of the random numbers.
        chosen: Whether those that are read are replaced, instead of all others.
    """

    seed: int
    chosen: bool = False

    def put(self, states: Tensor, count: int) -> Tensor:
        """States, shape (1, tokens, width), of which `count` are read."""
        generator = torch.Generator().manual_seed(self.seed)
        vector = torch.randn(states.shape[-1], generator=generator).to(states) * states.std()
        states = states.clone()
        states[:, :count] = vector if self.chosen else states[:, :count]
        states[:, count:] = states[:, count:] if self.chosen else vector
        return states


class Unpadded:
    """Takes the padding out of batches between the first and the last block of a model.

    Args:
        blocks: The model's repeated blocks, in the order in which they are computed.
        padding: The number of the padding token, as the model knows it.

    Attributes:
        read: The tokens of which the last block's states are needed; `None` for all.
        after: The weights of the last block that only those go through.
    """

    def __init__(self, blocks: Sequence[nn.Module], padding: int | None = None) -> None:
        self.blocks = blocks
        self.padding = padding
        self.narrow: _Narrow | None = None
        self.read: Read | None = None
        self.after: list[nn.Parameter] = []
        self.attended = 0

    @classmethod
    def of(cls, model: Any) -> Unpadded | None:
        """For the one stack of blocks that a model has; `None` where it has none, or several."""
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
        stacks = [one for one in lists if all(isinstance(block, GradientCheckpointingLayer) for block in one)]
        padding = getattr(model.config.get_text_config(), "pad_token_id", None)
        return cls(list(stacks[0]), padding) if len(stacks) == 1 else None

    @contextmanager
    def rows(
        self, batch: Mapping[str, Tensor], noise: Noise | None = None, *, last_alone: bool = False
    ) -> Iterator[int]:
        """Passes over a batch in here compute its real tokens alone; gives how many of them the last block
        leaves out.

        Args:
            batch: Of it, `attention_mask` (1 where there is a token, 0 where there is padding) and
                `input_ids`, shape (rows, columns), and `labels` as its objective has them.
            noise: What stands in the place of states.
            last_alone: Whether the blocks before the last one compute the batch as it is: where its rows are
                of similar length, there is little to take out.
        """
        mask, read = batch["attention_mask"], self._read(batch)
        if read is None and (last_alone or bool(mask.all()) or len(mask) < 2):
            yield 0
            return
        layout = _Layout(mask)
        narrow = self.narrow = None if read is None else _Narrow(layout, read)
        attend, own = ALL_ATTENTION_FUNCTIONS[_ATTENTION], dict(ALL_ATTENTION_FUNCTIONS._local_mapping)

        def in_rows(module: nn.Module, *given: Any, **options: Any) -> tuple[Tensor, None]:
            self.attended += 1
            if narrow is not None and narrow.is_on:
                return narrow.attend(attend, module, *given, **options)
            if last_alone:
                return cast("tuple[Tensor, None]", attend(module, *given, **options))
            return layout.attend(attend, module, *given, **options)

        with ExitStack() as stack:
            for block in self.blocks[-1:] if last_alone else self.blocks:
                stack.enter_context(block.register_forward_pre_hook(layout.before, with_kwargs=True))
            last = self.blocks[-1]
            if narrow is None:
                stack.enter_context(last.register_forward_hook(layout.after_last))
            else:
                stack.callback(narrow.off)
                stack.enter_context(narrow.in_second_passes(last))
                stack.enter_context(last.register_forward_pre_hook(lambda *_: narrow.on()))
                stack.enter_context(last.register_forward_hook(lambda *_: narrow.off(), always_call=True))
                after = partial(narrow.after_last, noise=noise)
                stack.enter_context(last.register_forward_hook(after))
            ALL_ATTENTION_FUNCTIONS[_ATTENTION] = in_rows
            stack.callback(setattr, ALL_ATTENTION_FUNCTIONS, "_local_mapping", own)
            yield layout.real - narrow.count if narrow else 0

    def _read(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The tokens to compute to the end, where these are few."""
        read = None if self.read is None else self.read(batch, self.padding)
        return None if read is None or read.sum() > _FEW * batch["attention_mask"].sum() else read


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
            with found.rows(batch):
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
    if not same or not all(apart) or attended != len(found.blocks):
        return None
    found.read = _what_is_read(found, model, batch, losses, tolerance)
    return found


def _what_is_read(
    found: Unpadded, model: nn.Module, batch: Batch, losses: Callable[[Batch], Tensor], tolerance: float
) -> Read | None:
    """The rule by which a model looks at last states; `None` where none of those known is it.

    By the right one each row's loss hangs on the states that it names, and not by a bit on any other, and
    these states are what they are in the padded batch.
    """
    per_token = _labelled(batch, None) is not None
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            expected, padded = _seen(found, batch, losses)
            for found.read in (_labelled, _before_labelled) if per_token else (_first, _last):
                read = found.read(batch, found.padding)
                found.after.clear()
                said = []
                for noise in (Noise(1), Noise(2), Noise(1, chosen=True)):
                    with found.rows(batch, noise) as left_out, _noting(found):
                        said += [_seen(found, batch, losses)] if left_out else []
                if read is None or not said:
                    continue
                (one, states), (other, _), (spoilt, _) = said
                right = _close(states[read], padded[read], tolerance) and _close(one, expected, tolerance)
                if right and torch.equal(one, other) and bool((one != spoilt).all()):
                    return found.read
    except Exception:  # noqa: BLE001
        # As above.
        return None
    finally:
        found.read = None
        model.train(training)
    return None


@contextmanager
def _noting(found: Unpadded) -> Iterator[None]:
    """Note which matrices of the last block fewer tokens go through than all."""
    known = {id(weight) for weight in found.after}

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        weight, width = module._parameters["weight"], given[0].numel() // given[0].shape[-1]
        narrow = found.narrow is not None and width == found.narrow.tokens
        if narrow and weight is not None and weight.dim() == 2 and id(weight) not in known:
            known.add(id(weight))
            found.after.append(weight)

    # PEFT's layers have the matrices of others under that name.
    layers = [one for one in found.blocks[-1].modules() if "weight" in one._parameters]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _first(batch: Mapping[str, Tensor], padding: int | None) -> Tensor:
    """The first token of each row, as classifiers on encoders do."""
    real = batch["attention_mask"].bool()
    return real & (real.cumsum(dim=1) == 1)


def _last(batch: Mapping[str, Tensor], padding: int | None) -> Tensor:
    """The last token of each row, as classifiers on decoders do: by the mask, and, where a text ends in the
    padding token, by that.
    """
    real = batch["attention_mask"].bool()
    words = real if padding is None else real & (batch["input_ids"] != padding)
    ends = [one & (one.flip(1).cumsum(dim=1).flip(1) == 1) for one in (real, words)]
    return ends[0] | ends[1]


def _labelled(batch: Mapping[str, Tensor], padding: int | None) -> Tensor | None:
    """Tokens that have a label."""
    mask, labels = batch["attention_mask"], batch.get("labels")
    if labels is None or labels.shape != mask.shape or labels.is_floating_point():
        return None
    return mask.bool() & (labels != IGNORED)


def _before_labelled(batch: Mapping[str, Tensor], padding: int | None) -> Tensor | None:
    """Tokens before one that has a label, as language models do."""
    found = _labelled(batch, padding)
    return None if found is None else batch["attention_mask"].bool() & nn.functional.pad(found[:, 1:], (0, 1))


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
    _of_heads: dict[int, _Move] = field(default_factory=dict)

    def pad(self, flat: Tensor) -> Tensor:
        """The tokens of these rows in rows: (tokens of all, ...) becomes (*shape, ...)."""
        return flat.index_select(0, self.sources).unflatten(0, self.shape)

    def put(self, padded: Tensor, flat: Tensor) -> None:
        """The opposite, into `flat`."""
        rows = padded.reshape(len(self.sources), *flat.shape[1:])
        torch.index_select(rows, 0, self.places, out=flat[self.tokens])

    def of_heads(self, heads: int) -> _Move:
        """The same with attention heads; every block asks for it."""
        if heads not in self._of_heads:
            self._of_heads[heads] = self._with_heads(heads)
        return self._of_heads[heads]

    def _with_heads(self, heads: int) -> _Move:
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


def _move(shape: tuple[int, ...], places: Tensor, start: int, empty: int) -> _Move:
    """The move of tokens from `start` on into those places of rows; the others get the empty token."""
    sources = torch.full((shape[0] * shape[1],), empty, device=places.device)
    tokens = slice(start, start + len(places))
    sources[places] = torch.arange(tokens.start, tokens.stop, device=places.device)
    return _Move(shape, sources, places, tokens)


def _in_rows(moves: Sequence[Moves], *heads: Tensor) -> Sequence[Sequence[Tensor]]:
    """Of each group the queries, keys and values: (rows, heads, width, width of a head).

    Args:
        moves: The groups of each.
        heads: Each of shape (1, heads, tokens, width of a head).
    """
    each = [[move.of_heads(one.shape[1]) for move in its] for its, one in zip(moves, heads, strict=True)]
    padded = iter(_Pad.apply(each, *(one.transpose(1, 2).flatten(0, 2) for one in heads)))
    return [*zip(*([*islice(padded, len(its))] for its in moves), strict=True)]


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
        self.real = real
        self.rows: list[Tensor] = []
        self.groups: list[_Move] = []
        start = 0
        for size in sorted(set(sizes)):
            rows = torch.tensor([row for row, its in enumerate(sizes) if its == size], device=mask.device)
            width = min(-(-int(extents[rows].max()) // _ROUND) * _ROUND, mask.shape[1])
            places = mask[rows, :width].flatten().nonzero()[:, 0]
            self.rows.append(rows)
            self.groups.append(_move((len(rows), width), places, start, real))
            start += len(places)
        whole = [
            rows[its.places // its.shape[1]] * mask.shape[1] + its.places % its.shape[1]
            for rows, its in zip(self.rows, self.groups, strict=True)
        ]
        self.whole = [_move(tuple(mask.shape), torch.cat(whole), 0, real)]
        # What every block gets alike is made once; the originals are kept so that their ids stay theirs.
        self._made: dict[int, tuple[Tensor, Any]] = {}

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
        masks = self.masks(attention_mask)
        rows = _in_rows([self.groups] * 3, query, key, value)
        outputs = [
            attend(module, *its, mask, *given, **options)[0] for its, mask in zip(rows, masks, strict=True)
        ]
        return _Join.apply(self.groups, self.tokens, *outputs)[None], None

    def masks(self, mask: Tensor | None) -> Sequence[Tensor | None]:
        """The part of an attention mask, (rows or 1, heads or 1, columns or 1, columns), for each group."""
        if mask is None:
            return [None] * len(self.groups)
        return list(self._once(mask, lambda: self._masks(mask)))

    def _masks(self, mask: Tensor) -> list[Tensor]:
        widths = [group.shape[1] for group in self.groups]
        return [
            (mask if len(mask) == 1 else mask[rows])[:, :, :width, :width]
            for rows, width in zip(self.rows, widths, strict=True)
        ]


class _Narrow(TorchFunctionMode):
    """While it is on, in the last block, only chosen tokens go on after attention.

    Where a token that was computed for all (a residual, say) meets one of them, it is left out as well.

    Args:
        layout: Where the tokens stand.
        read: `True` for the chosen ones, shape (rows, columns).
    """

    def __init__(self, layout: _Layout, read: Tensor) -> None:
        super().__init__()
        self.layout = layout
        self.is_on = self.attends = False
        numbers = layout.whole[0].sources.view(read.shape)
        self.groups: list[_Move] = []
        self.columns: list[Tensor] = []
        chosen, places = [], []
        count = int(read.sum())
        start = 0
        for rows, group in zip(layout.rows, layout.groups, strict=True):
            its = read[rows, : group.shape[1]]
            width = max(1, int(its.sum(dim=1).max()))
            columns = its.int().argsort(dim=1, descending=True, stable=True)[:, :width]
            taken = its.gather(1, columns)
            self.columns.append(columns)
            self.groups.append(_move((len(rows), width), taken.flatten().nonzero()[:, 0], start, count))
            chosen.append(numbers[rows[:, None], columns][taken])
            places.append((rows[:, None] * read.shape[1] + columns)[taken])
            start += len(chosen[-1])
        self.tokens = (count // _ROUND_ALL + 1) * _ROUND_ALL
        if self.tokens == layout.tokens:
            # Tokens must be told from chosen ones.
            self.tokens += _ROUND_ALL
        empty = chosen[0].new_full((self.tokens - count,), layout.real)
        self.chosen = torch.cat([*chosen, empty])
        self.whole = [_move(tuple(read.shape), torch.cat(places), 0, count)]
        self.count = count

    def on(self) -> None:
        """The last block begins."""
        self.is_on = True
        self.__enter__()

    def off(self) -> None:
        """The last block has ended, or failed."""
        if self.is_on:
            self.is_on = False
            self.__exit__(None, None, None)

    @contextmanager
    def in_second_passes(self, block: Any) -> Iterator[None]:
        """With activation checkpointing, be on as well where the backward pass computes the block again: no
        hook tells of that.
        """
        if (checkpoint := getattr(block, "_gradient_checkpointing_func", None)) is None:
            yield
            return

        def checkpointed(forward: Callable[..., Any], *given: Any, **options: Any) -> Any:
            return checkpoint(partial(self._while_on, forward), *given, **options)

        block._gradient_checkpointing_func = checkpointed
        try:
            yield
        finally:
            block._gradient_checkpointing_func = checkpoint

    def _while_on(self, forward: Callable[..., Any], *given: Any, **options: Any) -> Any:
        if self.is_on:
            return forward(*given, **options)
        self.on()
        try:
            return forward(*given, **options)
        finally:
            self.off()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, given: Sequence[Any] = (), options: Any = None
    ) -> Any:
        widths = set() if self.attends else {_tokens_of(one) for one in given}
        if self.tokens in widths:
            wide = self.layout.tokens
            if wide in widths:
                given = [
                    one.index_select(1, self.chosen) if _tokens_of(one) == wide else one for one in given
                ]
            elif function in (Tensor.view, Tensor.reshape, torch.reshape):
                first, *sizes = given
                sizes = list(sizes[0]) if isinstance(sizes[0], (tuple, list)) else sizes
                if len(sizes) > 2 and tuple(sizes[:2]) == (1, wide):
                    # The shape that the block's input had.
                    sizes[1] = self.tokens
                given = (first, sizes)
        return function(*given, **(options or {}))

    def attend(self, *given: Any, **options: Any) -> tuple[Tensor, None]:
        """Attention of the chosen tokens to all of their rows; arguments as for a layout."""
        self.attends = True
        try:
            return self._attend(*given, **options), None
        finally:
            self.attends = False

    def _attend(
        self,
        attend: Callable[..., Any],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *given: Any,
        **options: Any,
    ) -> Tensor:
        if attention_mask is None and getattr(module, "is_causal", True):
            # Who stands before whom would be counted from the chosen ones.
            found, _ = self.layout.attend(attend, module, query, key, value, None, *given, **options)
            return found.index_select(1, self.chosen)
        groups = self.layout.groups
        rows = _in_rows([self.groups, groups, groups], query.index_select(2, self.chosen), key, value)
        masks = zip(self.layout.masks(attention_mask), self.columns, strict=True)
        outputs = [
            attend(module, *its, self._of_columns(mask, columns), *given, **options)[0]
            for its, (mask, columns) in zip(rows, masks, strict=True)
        ]
        return cast("Tensor", _Join.apply(self.groups, self.tokens, *outputs)[None])

    def _of_columns(self, mask: Tensor | None, columns: Tensor) -> Tensor | None:
        """The part of a group's mask for queries in these columns, shape (rows, queries)."""
        if mask is None or mask.shape[2] == 1:
            return mask
        mask = mask.expand(len(columns), -1, -1, -1)
        return mask.gather(2, columns[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))

    def after_last(self, block: nn.Module, given: Any, output: Any, *, noise: Noise | None) -> Any:
        """Rows again; the empty token for what was not chosen, and for padding."""
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        if hidden.shape[1] == self.layout.tokens:
            return self.layout.after_last(block, given, output)
        if noise:
            hidden = noise.put(hidden, self.count)
        (padded,) = _Pad.apply([self.whole], hidden.flatten(0, 1))
        return (padded, *rest) if isinstance(output, tuple) else padded


def _tokens_of(value: Any) -> int | None:
    """How many tokens a block's states are of, shape (1, tokens, ...)."""
    states = isinstance(value, Tensor) and value.dim() > 2 and value.shape[0] == 1
    return value.shape[1] if states else None
