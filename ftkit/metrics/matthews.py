"""Matthews correlation coefficient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy

from ftkit.metrics.base import Counts, Headline, one_hot


class Matthews(Headline):
    """Correlation of predicted and true labels (Matthews, 1975; Gorodkin, 2004): 1 is perfect,
    0 is chance.
    """

    type: Literal["matthews"] = "matthews"
    answers: ClassVar[tuple[str, ...]] = ("label",)

    def compute(self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]) -> float:
        from sklearn.metrics import matthews_corrcoef

        return float(matthews_corrcoef(list(references), list(predictions)))

    def counts(self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]) -> Counts:
        """Hits, then true and predicted occurrences of every label."""
        # An answer that is no label is one more class, which is never right.
        classes = [*labels, ""]
        true, said = one_hot(references, classes), one_hot(predictions, classes)
        return numpy.concatenate([(true & said).sum(1, keepdims=True), true, said], axis=1).astype(float)

    def from_counts(self, sums: Counts) -> Counts:
        hits = sums[..., 0]
        true, said = numpy.split(sums[..., 1:], 2, axis=-1)
        rows = true.sum(-1)
        covariance = hits * rows - (true * said).sum(-1)
        spread = (rows**2 - (true**2).sum(-1)) * (rows**2 - (said**2).sum(-1))
        root = numpy.sqrt(spread)
        return numpy.divide(covariance, root, out=numpy.zeros_like(root), where=root > 0)
