"""F1, averaged over labels in the usual ways."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ftkit.late import numpy
from ftkit.metrics.base import Counts, Headline, one_class, one_hot, ratio


class F1(Headline):
    """Harmonic mean of precision and recall; 0 where both are undefined.

    As in scikit-learn, labels that neither the targets nor the predictions hold do not count. An answer that
    names no label is a wrong one; it is not averaged over as if it were a label.
    """

    answers: ClassVar[tuple[str, ...]] = ("label", "label set")
    average: ClassVar[str]

    def counts(self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]) -> Counts:
        """True positives, false positives and false negatives of every label and of no label."""
        true, said = one_class(references, labels), one_class(predictions, labels)
        # Indicator matrices have a column for every label; label strings only for those present.
        several = bool(references) and not isinstance(references[0], str)
        listed = numpy.full_like(true, several)
        return numpy.concatenate([true & said, ~true & said, true & ~said, listed], axis=1).astype(float)

    def from_counts(self, sums: Counts) -> Counts:
        hits, false, missed, listed = numpy.split(sums, 4, axis=-1)
        return self._mean(hits, false, missed, (listed + hits + false + missed) > 0)

    @abstractmethod
    def _mean(self, hits: Counts, false: Counts, missed: Counts, present: Any) -> Counts:
        """The average over labels, shape (..., labels + 1) to (...)."""


class MacroF1(F1):
    """Mean of the labels' F1: every label counts the same."""

    type: Literal["macro_f1"] = "macro_f1"
    average: ClassVar[str] = "macro"

    def _mean(self, hits: Counts, false: Counts, missed: Counts, present: Any) -> Counts:
        f1, present = _f1(hits, false, missed)[..., :-1], present[..., :-1]
        return ratio((f1 * present).sum(-1), present.sum(-1))


class MicroF1(F1):
    """F1 of all decisions taken together; with one label a row it equals accuracy."""

    type: Literal["micro_f1"] = "micro_f1"
    average: ClassVar[str] = "micro"

    def _mean(self, hits: Counts, false: Counts, missed: Counts, present: Any) -> Counts:
        return _f1(hits.sum(-1), false.sum(-1), missed.sum(-1))


class WeightedF1(F1):
    """Mean of the labels' F1, each weighted by how often the label is right."""

    type: Literal["weighted_f1"] = "weighted_f1"
    average: ClassVar[str] = "weighted"

    def _mean(self, hits: Counts, false: Counts, missed: Counts, present: Any) -> Counts:
        support = hits + missed
        return ratio((_f1(hits, false, missed) * support).sum(-1), support.sum(-1))


class SamplesF1(Headline):
    """Mean of the rows' F1 between the predicted and the true set of labels."""

    type: Literal["samples_f1"] = "samples_f1"
    answers: ClassVar[tuple[str, ...]] = ("label set",)

    def counts(self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]) -> Counts:
        true, said = one_hot(references, labels), one_hot(predictions, labels)
        row_f1 = _f1((true & said).sum(1), (~true & said).sum(1), (true & ~said).sum(1))
        return numpy.stack([row_f1, numpy.ones(len(row_f1))], axis=1)

    def from_counts(self, sums: Counts) -> Counts:
        return sums[..., 0] / sums[..., 1]


def _f1(hits: Any, false: Any, missed: Any) -> Counts:
    return ratio(2 * hits, 2 * hits + false + missed)
