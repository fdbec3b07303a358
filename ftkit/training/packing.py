"""Packing: several rows share one sequence, and none of them sees another."""

from __future__ import annotations

import inspect
from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any, overload

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from ftkit.errors import UsageError
from ftkit.training.heads import Features
from ftkit.training.language_head import IGNORED

_MOST_PLACES = 5
_PROBED = 9, 12
"""Tokens of the made-up rows: of one that stands before, and of the one that is looked at."""
_SAME = 1e-6


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
        lengths = [len(row["input_ids"]) for row in features]
        self.groups = best_fit(lengths, size)
        self.tokens = sum(lengths)

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

    def places(self, where: Sequence[str]) -> list[str]:
        """The places of the rows in each sequence, from the place of each row; not more than a few."""
        named = []
        for rows in self.groups:
            more = f" and {len(rows) - _MOST_PLACES} more" if len(rows) > _MOST_PLACES else ""
            named.append(", ".join(where[row] for row in rows[:_MOST_PLACES]) + more)
        return named


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
    """Pack made-up rows and look whether the model keeps them apart.

    Many do (GPT-2, LLaMA, Qwen, Mistral, Gemma, GPT-NeoX); ALiBi, recurrent layers and some masks do not.
    There are two sequences, since some attention kernels look for packed rows in single ones only.

    Raises:
        UsageError: What stands before a row changes its logits, or they are not those of the row alone.
    """
    whole: Any = extract_model_from_parallel(model)
    config = whole.config
    base = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    apart = "position_ids" in inspect.signature(base.forward).parameters
    if apart:
        generator = torch.Generator().manual_seed(0)
        size = (3, sum(_PROBED))
        first, other, row = torch.randint(config.get_text_config().vocab_size, size, generator=generator)
        row = row[: _PROBED[1]]
        packed = torch.stack([torch.cat([before[: _PROBED[0]], row]) for before in (first, other)])
        positions = torch.cat([torch.arange(length) for length in _PROBED]).expand_as(packed)
        found, changed = _logits(model, packed, position_ids=positions)[:, _PROBED[0] :]
        (alone,) = _logits(model, row[None])
        # In the same shapes a model that keeps rows apart gives the same numbers, in any precision; in other
        # shapes they agree in half of their digits.
        half = torch.finfo(found.dtype).eps ** 0.5
        apart = _difference(found, changed) < _SAME and _difference(found, alone) < half
    if not apart:
        raise UsageError(
            "task.packing: in this architecture rows that share a sequence see each other",
            where=f"model_type: {config.model_type}",
            hint="leave packing out; micro-batches of similar length have little padding as well",
        )


def _logits(model: Any, ids: Tensor, **inputs: Tensor) -> Tensor:
    """What the model says as it is, dropout off."""
    training = model.training
    model.eval()
    with torch.inference_mode():
        given = {name: value.to(model.device) for name, value in {"input_ids": ids, **inputs}.items()}
        logits = model(**given, use_cache=False)["logits"]
    model.train(training)
    return logits


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest one, in relation to the largest number."""
    return ((found - expected).abs().max() / expected.abs().max()).item()
