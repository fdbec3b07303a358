"""Packing: several rows share one sequence, and none of them sees another."""

from __future__ import annotations

import inspect
from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from ftkit.errors import UsageError
from ftkit.training.features import lengths
from ftkit.training.heads import IGNORED, Features

_MOST_PLACES = 5
_SAME = 1e-6
"""Two logits this near are the same."""


class Packed(Sequence[Features]):
    """Rows as packed sequences, each joined when it is asked for.

    Args:
        features: The rows, of a decoder.
        size: The most tokens of a sequence; no row is longer.

    Attributes:
        groups: Numbers of the rows in each sequence; every row is in one.
        tokens: All tokens of the rows.
    """

    def __init__(self, features: Sequence[Features], size: int) -> None:
        self.features = features
        found = lengths(features).tolist()
        self.groups = best_fit(found, size)
        self.tokens = sum(found)

    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, number: int) -> Features: ...
    @overload
    def __getitem__(self, number: slice) -> list[Features]: ...
    def __getitem__(self, number: int | slice) -> Features | list[Features]:
        if isinstance(number, slice):
            return [self[place] for place in range(len(self))[number]]
        return joined([self.features[row] for row in self.groups[number]])

    def place(self, number: int, where: Callable[[int], str]) -> str:
        """The places of the rows in a sequence, from the place of each row; not more than a few."""
        rows = self.groups[number]
        more = f" and {len(rows) - _MOST_PLACES} more" if len(rows) > _MOST_PLACES else ""
        return ", ".join(where(row) for row in rows[:_MOST_PLACES]) + more


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Rows by sequence: the longest first, each where the least room is left over.

    This is best-fit decreasing, as in Ding et al. (2024), "Fewer truncations improve language modeling".
    Of equally long rows the first comes first; of equally full sequences the oldest is filled.

    >>> best_fit([3, 9, 4, 1, 6], size=10)
    [[1, 3], [4, 2], [0]]
    """
    groups: list[list[int]] = []
    with_room: dict[int, deque[int]] = defaultdict(deque)
    rooms: list[int] = []  # those that some sequence has, ascending
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        place = bisect_left(rooms, lengths[row])
        if place < len(rooms):
            room = rooms[place]
            group = with_room[room].popleft()
            if not with_room[room]:
                del rooms[place]
        else:
            room, group = size, len(groups)
            groups.append([])
        groups[group].append(row)
        left = room - lengths[row]
        if not with_room[left]:
            insort(rooms, left)
        with_room[left].append(group)
    return groups


def joined(rows: Sequence[Features]) -> Features:
    """Rows one after another; positions begin anew in each, by which a model tells them apart.

    Nothing foretells a row's first token, least of all the last one of the row before it.
    """
    packed: dict[str, list[int]] = {"input_ids": [], "attention_mask": [], "position_ids": [], "labels": []}
    for row in rows:
        packed["input_ids"] += row["input_ids"]
        packed["attention_mask"] += row["attention_mask"]
        packed["position_ids"] += range(len(row["input_ids"]))
        packed["labels"] += [IGNORED, *row["labels"][1:]]
    return packed


def refuse_mixed_rows(model: nn.Module) -> None:
    """Refuse to pack for a model in which rows that share a sequence see each other.

    GPT-2, LLaMA, Qwen, Mistral, Gemma, GPT-NeoX and many others keep them apart; ALiBi, recurrent layers and
    some masks do not.

    Raises:
        UsageError: It is such a model.
    """
    config: Any = model.config
    if not _keeps_rows_apart(model):
        raise UsageError(
            "task.packing: in this architecture rows that share a sequence see each other",
            where=f"model_type: {config.model_type}",
            hint="leave packing out; micro-batches of similar length have little padding as well",
        )


def _keeps_rows_apart(model: Any) -> bool:
    """Whether a row's logits are the same whatever stands before it, and those of the row alone.

    There are two sequences, since some attention kernels look for packed rows in single ones only.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return False
    first, other, row = _made_up_rows(model.config.get_text_config().vocab_size)
    packed = torch.stack([torch.cat([before, row]) for before in (first, other)])
    positions = torch.cat([torch.arange(len(first)), torch.arange(len(row))]).expand_as(packed)
    found, changed = _logits(model, input_ids=packed, position_ids=positions)[:, len(first) :]
    (alone,) = _logits(model, input_ids=row[None])
    # Whatever the precision, numbers of the same shapes agree in all digits; those of others in half of them.
    half = torch.finfo(found.dtype).eps ** 0.5
    return _difference(found, changed) < _SAME and _difference(found, alone) < half


def _made_up_rows(vocabulary: int) -> list[Tensor]:
    """Two rows of the same length, and one to stand after either."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocabulary, (length,), generator=generator) for length in (9, 9, 12)]


def _logits(model: Any, **inputs: Tensor) -> Tensor:
    """What the model says as it is, without dropout."""
    training = model.training
    model.eval()
    with torch.no_grad():
        given = {name: value.to(model.device) for name, value in inputs.items()}
        logits = model(**given, use_cache=False)["logits"]
    model.train(training)
    return logits


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest one, in relation to the largest number."""
    return ((found - expected).abs().max() / expected.abs().max()).item()
