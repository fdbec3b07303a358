"""Predict: answers for new texts from a finished run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ftkit.data.base import Row
from ftkit.dataset import read_unlabelled
from ftkit.records import Prediction, Record
from ftkit.run import Run


def predict(run: str | Path | Run, texts: Sequence[str | tuple[str, str]]) -> list[Prediction]:
    """One prediction a text, in order.

    Args:
        run: A finished run, or its folder.
        texts: Texts, or pairs of texts.

    Raises:
        UsageError: This is no finished run.

    """
    records = [
        Record(text) if isinstance(text, str) else Record(text[0], text_pair=text[1]) for text in texts
    ]
    return predict_records(run if isinstance(run, Run) else Run.load(run), records)


def predict_records(run: Run, records: Sequence[Record]) -> list[Prediction]:
    """One prediction a record, in order."""
    from ftkit.estimator import finished_estimator

    return finished_estimator(run).predict(records) if records else []


def records_of(run: Run, rows: Iterator[Row]) -> list[Record]:
    """Records of rows with the columns that the run's recipe names; labels are not needed."""
    return read_unlabelled(rows, run.recipe.data, run.recipe.task)
