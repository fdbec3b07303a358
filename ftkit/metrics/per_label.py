"""Precision, recall and F1 of every label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ftkit.metrics.base import Table, one_hot
from ftkit.metrics.tables import label_table


class PerLabel(Table):
    """Precision, recall, F1 and support (rows that carry it) of every label."""

    type: Literal["per_label"] = "per_label"
    answers: ClassVar[tuple[str, ...]] = ("label", "label set")

    def compute(
        self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        from sklearn.metrics import precision_recall_fscore_support

        columns = precision_recall_fscore_support(
            one_hot(references, labels).astype(int),
            one_hot(predictions, labels).astype(int),
            # Of one column scikit-learn takes the zeros for a label of their own.
            labels=[1] if len(labels) == 1 else range(len(labels)),
            average=None,
            zero_division=0,
        )
        rows = zip(*(column.tolist() for column in columns), strict=True)
        names = ("precision", "recall", "f1", "support")
        return {label: dict(zip(names, row, strict=True)) for label, row in zip(labels, rows, strict=True)}

    def lines(self, result: Any) -> Sequence[str]:
        return label_table(result, "Labels", "rows")
