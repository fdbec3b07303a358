"""Accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ftkit.late import numpy
from ftkit.metrics.base import Counts, Headline


class Accuracy(Headline):
    """Share of rows whose predicted label (or whole set of labels) is right."""

    type: Literal["accuracy"] = "accuracy"
    answers: ClassVar[tuple[str, ...]] = ("label", "label set", "choice")

    def counts(self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]) -> Counts:
        right = [r == p for r, p in zip(references, predictions, strict=True)]
        return numpy.stack([numpy.array(right, dtype=float), numpy.ones(len(right))], axis=1)

    def from_counts(self, sums: Counts) -> Counts:
        return sums[..., 0] / sums[..., 1]
