"""Batches: which rows a step sees, and rows padded into one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch.utils.data import DataLoader, Sampler

from ftkit.training.heads import Batch, Features, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = "ftkit_rows"
"""Key of a batch's row numbers, for messages."""
WEIGHTS = "ftkit_weights"
"""Key of a batch's row weights: 1, or 0 for a row that only keeps a process busy."""


@dataclass(frozen=True)
class Collator:
    """Pads rows to the longest of the batch.

    Called with (row number, weight, features) triples from `Rows`.
    """

    tokenizer: PreTrainedTokenizerBase
    objective: Objective

    def __call__(self, items: Sequence[tuple[int, float, Features]]) -> Batch:
        features = [row for _, _, row in items]
        batch = self.pad(features)
        if "labels" in features[0]:
            batch["labels"] = self.objective.collate_labels(features)
        batch[ROWS] = torch.tensor([number for number, _, _ in items])
        batch[WEIGHTS] = torch.tensor([weight for _, weight, _ in items])
        return batch

    def pad(self, features: Sequence[Features]) -> Batch:
        """The model's inputs alone, padded."""
        inputs = [{name: row[name] for name in row if name != "labels"} for row in features]
        return dict(self.tokenizer.pad(inputs, padding=True, return_tensors="pt"))


class Rows(torch.utils.data.Dataset[tuple[int, float, Features]]):
    """Features by (row number, weight)."""

    def __init__(self, features: Sequence[Features]) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, item: tuple[int, float]) -> tuple[int, float, Features]:
        number, weight = item
        return number, weight, self.features[number]


class EpochBatches(Sampler[list[tuple[int, float]]]):
    """The rows of every step, in an order that only the seed and the epoch decide.

    All processes walk through the same permutation; each takes its slice of every batch of
    `size * processes` rows. So two processes with batches of 4 see what one with 8 sees, in
    the same steps. Where the last batch is too short to give a process a row, it gets one
    with weight 0: every process takes part in every step, and no row counts twice.

    Args:
        total: Number of rows.
        size: Rows a process and a batch.
        seed: Together with the epoch, decides the permutation.
        rank: This process.
        processes: How many there are.
        drop_last: Leave out the last, short batch.

    """

    def __init__(
        self, *, total: int, size: int, seed: int, rank: int, processes: int, drop_last: bool = False
    ) -> None:
        self.total = total
        self.size = size
        self.seed = seed
        self.rank = rank
        self.processes = processes
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        whole = self.size * self.processes
        return self.total // whole if self.drop_last else -(-self.total // whole)

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        generator = numpy.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(self.total).tolist()
        whole = self.size * self.processes
        for start in range(0, len(self) * whole, whole):
            rows = order[start : start + whole]
            mine = rows[self.rank * self.size : (self.rank + 1) * self.size]
            yield [(row, 1.0) for row in mine] or [(rows[0], 0.0)]


class EpochLoader(DataLoader[Any]):
    """A data loader that passes the epoch on to its batches."""

    def set_epoch(self, epoch: int) -> None:
        sampler = self.batch_sampler
        assert isinstance(sampler, EpochBatches)
        sampler.set_epoch(epoch)


def by_length(features: Sequence[Features], size: int) -> list[list[int]]:
    """Row numbers in batches of similar length, the longest first.

    The longest first, so that running out of memory happens at once, not at the end.
    """
    order = sorted(range(len(features)), key=lambda row: -len(features[row]["input_ids"]))
    return [order[start : start + size] for start in range(0, len(order), size)]
