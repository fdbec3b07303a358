"""Regression: a number for a text or a pair of texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ftkit.errors import InputError, UsageError
from ftkit.records import Prediction, Record
from ftkit.tasks.base import Field, Task
from ftkit.tasks.reading import text_of

if TYPE_CHECKING:
    from ftkit.training.heads import Objective
    from ftkit.training.setup import Head

_NAME = "score"
_WITHHELD = -1.0
_FAR = 20.0
"""Beyond it a head needs many more steps than usual to come near the mean alone."""


class Regression(Task):
    """Give a number to a text or a pair of texts, such as how similar they are."""

    type: Literal["regression"] = "regression"

    fields: ClassVar[Mapping[str, Field]] = {
        "text": Field(("text", "sentence", "sentence1")),
        "text_pair": Field(("text_pair", "sentence2"), required=False),
        "label": Field(("label", "score", "labels")),
    }
    answer_fields: ClassVar[tuple[str, ...]] = ("label",)
    pipeline: ClassVar[str] = "text-classification"

    @property
    def answer(self) -> str:
        return "number"

    @property
    def default_metrics(self) -> list[str]:
        return ["pearson", "spearman", "rmse"]

    def read(self, values: Mapping[str, Any], where: str) -> Record:
        pair = values.get("text_pair")
        return Record(
            text=text_of(values.get("text"), "text", where),
            text_pair=None if "text_pair" not in values else text_of(pair, "text_pair", where),
            target=_number(values.get("label"), where),
            where=where,
        )

    def find_labels(self, train: Sequence[Record], declared: Sequence[str]) -> tuple[str, ...]:
        first = train[0].target if train else None
        if all(record.target == first for record in train):
            raise InputError("all training rows have the same number: there is nothing to learn")
        return (_NAME,)

    def withholds(self, records: Sequence[Record]) -> bool:
        # GLUE writes -1 for the answers of a test split.
        return bool(records) and all(record.target == _WITHHELD for record in records)

    def settle(self, records: Sequence[Record], labels: Sequence[str]) -> tuple[Iterable[Record], list[str]]:
        if self.withholds(records):
            return (replace(record, target=None) for record in records), ["all numbers are -1: withheld"]
        return records, []

    def notes(self, train: Sequence[Record], labels: Sequence[str]) -> Iterator[str]:
        numbers = [record.target for record in train if isinstance(record.target, float)]
        if not numbers:
            return
        mean, deviation = fmean(numbers), pstdev(numbers)
        if max(abs(mean), deviation) > _FAR:
            yield (
                f"the numbers (mean {mean:,.4g}, deviation {deviation:,.4g}) are far from 0, where a new "
                "head begins: scale the column to about 0 to 1, or raise training.learning_rate"
            )

    @property
    def auto_class(self) -> str | None:
        return "AutoModelForSequenceClassification"

    def head(self, labels: Sequence[str], learned: Mapping[str, Any]) -> Head:
        from ftkit.training.setup import Head

        return Head(
            auto_class=self.auto_class,
            config={
                "num_labels": 1,
                "id2label": {0: _NAME},
                "label2id": {_NAME: 0},
                "problem_type": "regression",
            },
        )

    def objective(
        self, labels: Sequence[str], learned: Mapping[str, Any], *, family: str, label_smoothing: float
    ) -> Objective:
        from ftkit.training.regression_head import RegressionHead

        if label_smoothing:
            raise UsageError("training.label_smoothing_factor is for labels, not for numbers")
        return RegressionHead()

    def answer_json(self, value: Any, record: Record) -> Any:
        return value

    def prediction_json(self, prediction: Prediction, record: Record) -> dict[str, Any]:
        return {_NAME: prediction.value}

    def prediction_text(self, prediction: Prediction, record: Record) -> str:
        return f"{prediction.value:.3f}  {record.text}"

    def call_options(self, max_length: int) -> dict[str, Any]:
        return {"truncation": True, "max_length": max_length}


def _number(value: Any, where: str) -> float | None:
    """A finite number, or one written as text; `None` where the data holds none."""
    if value is None or value == "":
        return None
    # Python reads "2_5" as 25.
    no_number = isinstance(value, bool) or (isinstance(value, str) and "_" in value)
    try:
        number = math.nan if no_number else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(
            f"the label is {value!r:.80}, not a number", where=where, hint="write it with digits and a point"
        )
    return number
