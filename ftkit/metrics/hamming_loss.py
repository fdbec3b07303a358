"""Hamming loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ftkit.late import numpy
from ftkit.metrics.base import Counts, Headline, one_hot


class HammingLoss(Headline):
    """Share of label decisions that are wrong; lower is better."""

    type: Literal["hamming_loss"] = "hamming_loss"
    answers: ClassVar[tuple[str, ...]] = ("label set",)
    greater_is_better: ClassVar[bool] = False

    def counts(self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]) -> Counts:
        wrong = (one_hot(references, labels) != one_hot(predictions, labels)).sum(axis=1)
        return numpy.stack([wrong, numpy.full(len(wrong), len(labels))], axis=1).astype(float)

    def from_counts(self, sums: Counts) -> Counts:
        return sums[..., 0] / sums[..., 1]
