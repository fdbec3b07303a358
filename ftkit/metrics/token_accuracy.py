"""Token accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ftkit.late import numpy
from ftkit.metrics.base import Counts, Headline, ratio


class TokenAccuracy(Headline):
    """Share of the words with the right tag; mostly that of O, so look at entity F1 first."""

    type: Literal["token_accuracy"] = "token_accuracy"
    answers: ClassVar[tuple[str, ...]] = ("entities",)

    def counts(self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]) -> Counts:
        pairs = zip(references, predictions, strict=True)
        rows = [(sum(map(str.__eq__, r.tags, p.tags)), len(r.tags)) for r, p in pairs]
        return numpy.array(rows, dtype=float).reshape(-1, 2)

    def from_counts(self, sums: Counts) -> Counts:
        return ratio(sums[..., 0], sums[..., 1])
