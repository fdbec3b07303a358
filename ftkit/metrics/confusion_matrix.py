"""The confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ftkit.metrics.base import Table


class ConfusionMatrix(Table):
    """Counts of true (rows) against predicted labels (columns), in the model's order."""

    type: Literal["confusion_matrix"] = "confusion_matrix"
    answers: ClassVar[tuple[str, ...]] = ("label",)

    def compute(
        self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]
    ) -> dict[str, list[int]]:
        from sklearn.metrics import confusion_matrix

        matrix = confusion_matrix(list(references), list(predictions), labels=list(labels))
        return dict(zip(labels, matrix.tolist(), strict=True))

    def lines(self, result: Any) -> Sequence[str]:
        return ()  # It is as wide as there are labels.
