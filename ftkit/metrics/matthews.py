"""Matthews correlation coefficient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ftkit.late import numpy
from ftkit.metrics.base import Counts, Headline, one_class


class Matthews(Headline):
    """Correlation of predicted and true labels (Matthews, 1975; Gorodkin, 2004): 1 is perfect,
    0 is chance.
    """

    type: Literal["matthews"] = "matthews"
    answers: ClassVar[tuple[str, ...]] = ("label",)

    def counts(self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]) -> Counts:
        """Hits, then true and predicted occurrences of every label and of no label."""
        true, said = one_class(references, labels), one_class(predictions, labels)
        return numpy.concatenate([(true & said).sum(1, keepdims=True), true, said], axis=1).astype(float)

    def from_counts(self, sums: Counts) -> Counts:
        hits = sums[..., 0]
        true, said = numpy.split(sums[..., 1:], 2, axis=-1)
        rows = true.sum(-1)
        covariance = hits * rows - (true * said).sum(-1)
        spread = (rows**2 - (true**2).sum(-1)) * (rows**2 - (said**2).sum(-1))
        root = numpy.sqrt(spread)
        return numpy.divide(covariance, root, out=numpy.zeros_like(root), where=root > 0)
