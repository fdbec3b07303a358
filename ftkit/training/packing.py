"""Packing: several rows share one sequence, and none of them sees another."""

from __future__ import annotations

import inspect
from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from ftkit.errors import UsageError
from ftkit.training.heads import Features
from ftkit.training.language_head import IGNORED

_MOST_PLACES = 5
_PROBED = 9, 12


class Packed(Sequence[Features]):
    """Rows as packed sequences, each joined when it is asked for.

    Args:
        features: The rows, of a decoder.
        size: The most tokens of a sequence; no row is longer.

    Attributes:
        groups: Numbers of the rows in each sequence; every row is in one.
    """

    def __init__(self, features: Sequence[Features], size: int) -> None:
        self.features = features
        self.groups = best_fit([len(row["input_ids"]) for row in features], size)

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
    """Pack two made-up rows and look whether the model keeps them apart.

    Many do (GPT-2, LLaMA, Qwen, Mistral, Gemma, GPT-NeoX); ALiBi, recurrent layers and some masks do not.

    Raises:
        UsageError: What stands before a row changes its logits, or they are not those of the row alone.
    """
    config: Any = model.config
    where = f"model_type: {config.model_type}"
    refusal = UsageError(
        "task.packing: in this architecture rows that share a sequence see each other",
        where=where,
        hint="leave packing out; batches of similar length have little padding as well",
    )
    whole: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "position_ids" not in inspect.signature(whole.forward).parameters:
        raise refusal
    first, other, row = _made_up_rows(config.get_text_config().vocab_size, whole.device)
    positions = torch.cat([torch.arange(len(part), device=whole.device) for part in (first, row)])
    training = model.training
    model.eval()
    with torch.inference_mode():
        before, after = (
            model(input_ids=torch.cat([rows, row])[None], position_ids=positions[None], use_cache=False)
            for rows in (first, other)
        )
        alone = model(input_ids=row[None], use_cache=False)
    model.train(training)
    found, changed = (outputs["logits"][0, len(first) :] for outputs in (before, after))
    expected = alone["logits"][0]
    # The same shapes give the same numbers, up to the order in which experts are summed; other shapes
    # give numbers that agree in half of their digits or better.
    precision = torch.finfo(found.dtype).eps
    if _apart(found, changed) > 16 * precision or _apart(found, expected) > precision**0.5:
        raise refusal


def _made_up_rows(vocabulary: int, device: torch.device) -> list[Tensor]:
    """Two rows of the same length, and one to stand after either."""
    generator = torch.Generator().manual_seed(0)
    before, after = _PROBED
    rows = [torch.randint(vocabulary, (length,), generator=generator) for length in (before, before, after)]
    return [row.to(device) for row in rows]


def _apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in relation to the largest number; infinite where one is no number."""
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    return difference if difference == difference else float("inf")
