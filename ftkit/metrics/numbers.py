"""Scores of predicted numbers: correlations and the size of the error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ftkit.late import numpy
from ftkit.metrics.base import Counts, Headline


class Correlation(Headline):
    """A correlation of predicted and true numbers; 0 where one of them does not vary."""

    answers: ClassVar[tuple[str, ...]] = ("number",)

    def counts(self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]) -> Counts:
        """Ones, both numbers less their means, their squares and their product."""
        true, said = (self._placed(values) for values in (references, predictions))
        # About their means, sums of squares lose no digits.
        true, said = true - true.mean(), said - said.mean()
        return numpy.stack([numpy.ones_like(true), true, said, true**2, said**2, true * said], axis=1)

    def from_counts(self, sums: Counts) -> Counts:
        rows, true, said, true_squares, said_squares, products = numpy.moveaxis(sums, -1, 0)
        covariance = rows * products - true * said
        spread = numpy.sqrt((rows * true_squares - true**2) * (rows * said_squares - said**2))
        return numpy.divide(covariance, spread, out=numpy.zeros_like(spread), where=spread > 0)

    def _placed(self, values: Sequence[Any]) -> Counts:
        """What is correlated."""
        return numpy.asarray(values, dtype=float)


class Pearson(Correlation):
    """Linear correlation of predicted and true numbers (Pearson, 1895); 0 where one does not vary."""

    type: Literal["pearson"] = "pearson"


class Spearman(Correlation):
    """Correlation of the ranks of predicted and true numbers (Spearman, 1904).

    Its interval resamples rows with the ranks they have in the whole split.
    """

    type: Literal["spearman"] = "spearman"

    def _placed(self, values: Sequence[Any]) -> Counts:
        from scipy.stats import rankdata

        return numpy.asarray(rankdata(values), dtype=float)


class Rmse(Headline):
    """Root of the mean squared error; lower is better."""

    type: Literal["rmse"] = "rmse"
    answers: ClassVar[tuple[str, ...]] = ("number",)
    greater_is_better: ClassVar[bool] = False

    def counts(self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]) -> Counts:
        difference = numpy.asarray(references, dtype=float) - numpy.asarray(predictions, dtype=float)
        return numpy.stack([difference**2, numpy.ones_like(difference)], axis=1)

    def from_counts(self, sums: Counts) -> Counts:
        return numpy.sqrt(sums[..., 0] / sums[..., 1])
