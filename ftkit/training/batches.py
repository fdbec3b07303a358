"""Batches: which rows a step sees, and rows padded into one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from ftkit.errors import InputError
from ftkit.training.features import lengths
from ftkit.training.heads import Batch, Features, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = "ftkit_rows"
"""Key of a batch's row numbers, for messages."""
WEIGHTS = "ftkit_weights"
"""Key of a batch's row weights: 1, or 0 for a row that only keeps a process busy."""


_ROUND = 4
"""Lengths and row counts are rounded to multiples of this: fewer shapes need fewer kernels."""


@dataclass(frozen=True)
class Collator:
    """Pads rows to the longest of the batch, or a little more.

    Called with (row number, weight, features) triples from `Rows`.
    """

    tokenizer: PreTrainedTokenizerBase
    objective: Objective
    max_length: int
    words: int | None = None
    """The tokens that the model knows, where it says so."""

    def __call__(self, items: Sequence[tuple[int, float, Features]]) -> Batch:
        features = [row for _, _, row in items]
        batch = self.pad(features)
        if "labels" in features[0]:
            batch["labels"] = self.objective.collate_labels(features, batch["input_ids"].shape[1])
        batch[ROWS] = torch.tensor([number for number, _, _ in items])
        batch[WEIGHTS] = torch.tensor([weight for _, weight, _ in items])
        return batch

    @property
    def per_token(self) -> frozenset[str]:
        """Keys of a batch whose tensors have a column a token."""
        names = frozenset(self.tokenizer.model_input_names) | {"position_ids"}
        return names | {"labels"} if self.objective.per_token else names

    def pad(self, features: Sequence[Features]) -> Batch:
        """The model's inputs alone, padded at the end."""
        names = [name for name in self.tokenizer.model_input_names if name in features[0]]
        inputs = [{name: row[name] for name in names} for row in features]
        longest = max(len(row["input_ids"]) for row in features)
        width = max(longest, min(_rounded(longest), self.max_length))
        batch = dict(
            self.tokenizer.pad(
                inputs, padding="max_length", max_length=width, padding_side="right", return_tensors="pt"
            )
        )
        if self.words and (highest := int(batch["input_ids"].max())) >= self.words:
            raise InputError(
                f"a text has the token {self.tokenizer.convert_ids_to_tokens(highest)!r} with number "
                f"{highest}, and the model knows {self.words} tokens",
                hint="take the tokenizer and the weights from the same model",
            )
        if "position_ids" in features[0]:
            # Padding begins at 0 too: it is one more row, which nobody learns from.
            places = [row["position_ids"] for row in features]
            batch["position_ids"] = torch.tensor([[*row, *range(width - len(row))] for row in places])
        return batch


class Rows(torch.utils.data.Dataset[tuple[int, float, Features]]):
    """Features by (row number, weight, epoch), as the objective lets them be seen in that epoch."""

    def __init__(self, features: Sequence[Features], objective: Objective, seed: int) -> None:
        self.features = features
        self.objective = objective
        self.seed = seed

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, item: tuple[int, float, int]) -> tuple[int, float, Features]:
        number, weight, epoch = item
        row = self.objective.vary(self.features[number], (self.seed, epoch, number))
        return number, weight, row


class EpochBatches(Sampler[list[tuple[int, float, int]]]):
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

    def __iter__(self) -> Iterator[list[tuple[int, float, int]]]:
        generator = numpy.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(self.total)
        whole = self.size * self.processes
        for start in range(0, len(self) * whole, whole):
            rows = order[start : start + whole].tolist()
            mine = rows[self.rank * self.size : (self.rank + 1) * self.size]
            yield [(row, 1.0, self.epoch) for row in mine] or [(rows[0], 0.0, self.epoch)]


class EpochLoader(DataLoader[Any]):
    """A data loader that passes the epoch on to its batches."""

    def set_epoch(self, epoch: int) -> None:
        sampler = self.batch_sampler
        assert isinstance(sampler, EpochBatches)
        sampler.set_epoch(epoch)


def micro_batches(
    batch: Batch, overhead: int, per_token: frozenset[str], most: int | None = None
) -> list[Batch]:
    """Cut a padded batch into parts of similar length, so that little of it is padding.

    The sum of the parts' losses has the gradient of the whole batch, whatever the architecture.

    Args:
        batch: Padded tensors, a row each in the first dimension.
        overhead: What one more forward and backward pass costs, in tokens.
        per_token: Keys of tensors with a column a token, which are trimmed.
        most: The most tokens of a part, unless a single row has more.

    Returns:
        The parts, longest rows first; the batch itself where cutting does not pay.
    """
    mask = batch.get("attention_mask")
    if mask is None or mask.dim() != 2:
        mask = torch.ones_like(batch["input_ids"])
    lengths, order = mask.sum(dim=1).sort(descending=True, stable=True)
    widths = [min(_rounded(length), mask.shape[1]) for length in lengths.tolist()]
    cuts = best_cuts(widths, overhead, step=1 if most else _ROUND, most=most)
    if len(cuts) == 1:
        return [batch]
    parts = []
    for start, end in cuts:
        rows = order[start:end]
        # Padding may stand on either side: keep the columns that any row of the part uses.
        columns = mask[rows].any(dim=0).nonzero()
        first, last = int(columns.min()), int(columns.max()) + 1
        width = min(_rounded(last - first), mask.shape[1])
        first = min(first, mask.shape[1] - width)
        parts.append(
            {
                name: tensor[rows][:, first : first + width] if name in per_token else tensor[rows]
                for name, tensor in batch.items()
            }
        )
    return parts


def idle_part(part: Batch) -> Batch:
    """The last row of a part at weight 0: a pass that other processes need, and that adds nothing."""
    row = {name: tensor[-1:] for name, tensor in part.items()}
    return row | {WEIGHTS: torch.zeros_like(row[WEIGHTS])}


def best_cuts(
    lengths: Sequence[int], overhead: int, step: int = 1, most: int | None = None
) -> list[tuple[int, int]]:
    """Segments of descending lengths whose padded tokens, with `overhead` each, are fewest.

    Args:
        lengths: Length of every row.
        overhead: What a segment costs besides its tokens.
        step: Segments begin at multiples of this.
        most: The most padded tokens of a segment, unless it cannot be made shorter.

    >>> best_cuts([30, 29, 8, 8, 7], overhead=20)
    [(0, 2), (2, 5)]
    >>> best_cuts([30, 29, 8, 8, 7], overhead=200)
    [(0, 5)]
    >>> best_cuts([30, 29, 8, 8, 7], overhead=200, most=60)
    [(0, 2), (2, 5)]
    """
    best = {0: 0}
    cut_before: dict[int, int] = {}
    starts = range(0, len(lengths), step)
    for end in [*starts[1:], len(lengths)]:
        open_ = [s for s in starts if s < end]
        fitting = [s for s in open_ if most is None or (end - s) * lengths[s] <= most] or open_[-1:]
        costs = {s: best[s] + overhead + (end - s) * lengths[s] for s in fitting}
        cut_before[end] = min(costs, key=costs.__getitem__)
        best[end] = costs[cut_before[end]]
    segments = []
    end = len(lengths)
    while end:
        segments.append((cut_before[end], end))
        end = cut_before[end]
    return segments[::-1]


def _rounded(length: int) -> int:
    return -(-length // _ROUND) * _ROUND


def by_length(features: Sequence[Features], size: int) -> list[NDArray[numpy.int64]]:
    """Row numbers in batches of similar length, the longest first.

    The longest first, so that running out of memory happens at once, not at the end.
    """
    order = numpy.argsort(-lengths(features), kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]
