"""The result files of a run: scores and predictions."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ftkit.errors import InputError
from ftkit.late import numpy
from ftkit.records import Prediction, Record, Scores, fingerprint
from ftkit.tasks.base import Task

METRICS, PREDICTIONS, COUNTS = "metrics.json", "predictions.jsonl", "counts.npz"


def write_evaluation(
    folder: Path,
    metrics: Mapping[str, Any],
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    *,
    task: Task,
    counts: Mapping[str, Any],
) -> None:
    """Write `metrics.json`, `predictions.jsonl` and `counts.npz`; for one process alone to do."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / METRICS, metrics)
    write_predictions(folder / PREDICTIONS, task, records, predictions)
    write_counts(folder / COUNTS, counts)


def scores_json(
    scores: Scores, records: Sequence[Record], precision: str, generation: Mapping[str, Any]
) -> dict[str, Any]:
    """Scores as metrics.json holds them, with how they came about.

    An infinite one, such as the loss where no right text fits, is `None`: JSON has no number for it.
    """
    found = {
        "split": scores.split,
        "rows": scores.rows,
        "sha256": fingerprint(records),
        "precision": precision,
        **({"generation": dict(generation)} if generation else {}),
        "metrics": {
            name: {key: value for key, value in asdict(score).items() if value is not None}
            for name, score in scores.metrics.items()
        },
        "details": dict(scores.details),
        **({"signatures": dict(scores.signatures)} if scores.signatures else {}),
    }
    return {name: _finite(value) for name, value in found.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def figure(score: float | None) -> str:
    """A number of metrics.json for people to read."""
    return "infinite" if score is None else f"{score:.4f}"


def uncertainty(score: Mapping[str, float | None]) -> str:
    """How sure a score of metrics.json is.

    >>> uncertainty({"value": 0.5, "low": 0.41, "high": 0.6}), uncertainty({"value": 0.5, "deviation": 0.02})
    ('0.4100 to 0.6000', '± 0.0200')
    """
    if "deviation" in score:
        return f"± {figure(score['deviation'])}"
    return f"{figure(score['low'])} to {figure(score['high'])}"


def write_predictions(
    path: Path, task: Task, records: Sequence[Record], predictions: Sequence[Prediction]
) -> None:
    """One line of JSON a record: the text, the right answer, the predicted one, the scores."""
    with path.open("w", encoding="utf-8") as file:
        for record, prediction in zip(records, predictions, strict=True):
            row = {
                **({} if record.id is None else {"id": record.id}),
                "text": record.text,
                **({"text_pair": record.text_pair} if record.text_pair is not None else {}),
                **({"choices": list(record.choices)} if record.choices else {}),
                **({"turns": [asdict(turn) for turn in record.turns]} if len(record.turns) > 1 else {}),
                "target": task.answer_json(record.target, record),
                "prediction": task.answer_json(prediction.value, record),
            }
            if prediction.failed:
                row["unreadable"] = prediction.failed
            if prediction.scores:
                row["scores"] = {name: round(score, 6) for name, score in prediction.scores.items()}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_counts(path: Path, counts: Mapping[str, Any]) -> None:
    """What each row adds to each headline, so that runs can be compared row by row."""
    draft = path.with_suffix(".tmp")
    with draft.open("wb") as file:
        numpy.savez_compressed(file, **counts)
    draft.replace(path)


def read_counts(path: Path) -> dict[str, Any]:
    """What each row adds to each headline, shape (rows, k), by metric name; empty where no file holds it.

    Raises:
        InputError: The file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        with numpy.load(path, allow_pickle=False) as file:
            return {name: file[name].astype(float) for name in file.files}
    # All that numpy, zipfile and zlib make of other content.
    except (
        EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise InputError(
            f"the file is damaged: {error}", where=str(path), hint="score the run again"
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON, whole or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)
