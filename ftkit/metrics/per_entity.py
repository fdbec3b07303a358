"""Precision, recall and F1 of every entity type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ftkit.metrics.base import Table
from ftkit.metrics.tables import label_table


class PerEntity(Table):
    """Precision, recall, F1 and support (true entities) of every type, in seqeval's default mode."""

    type: Literal["per_entity"] = "per_entity"
    answers: ClassVar[tuple[str, ...]] = ("entities",)

    def compute(
        self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        import warnings

        from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as scores

        true, said = [list(r.tags) for r in references], [list(p.tags) for p in predictions]
        present = sorted({tag[2:] for tags in (*true, *said) for tag in tags if tag != "O"})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            columns = scores(true, said, average=None, zero_division=0) if present else [()] * 4
        names = ("precision", "recall", "f1", "support")
        rows = zip(*([float(value) for value in column] for column in columns), strict=True)
        found = {kind: dict(zip(names, row, strict=True)) for kind, row in zip(present, rows, strict=True)}
        return {kind: found.get(kind, dict.fromkeys(names, 0.0)) for kind in labels}

    def lines(self, result: Any) -> Sequence[str]:
        return label_table(result, "Entity types", "entities")
