"""Score predictions against records: the same code for every method, split and run."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ftkit.errors import InputError
from ftkit.metrics.base import Headline, Metric, compact
from ftkit.metrics.bootstrap import interval
from ftkit.records import Dataset, Prediction, Record, Score, Scores, labelled
from ftkit.training.setup import Estimator

log = logging.getLogger("ftkit")

_MOST_SHOWN = 5


def evaluate_split(
    estimator: Estimator, dataset: Dataset, metrics: Sequence[Metric], split: str
) -> tuple[Scores, list[Prediction]]:
    """Predict a split and score it; where an estimator has several ways to predict, all of them.

    The predictions and the tables are those of the first; a headline is the mean over all, with its
    deviation.
    """
    records = dataset[split]
    ways = estimator.variants() or {"": estimator.predict}
    found = {name: predict(records) for name, predict in ways.items()}
    scored = {
        name: score(predictions, records, metrics, dataset.labels, split)
        for name, predictions in found.items()
    }
    first = next(iter(found))
    return (spread(scored) if len(scored) > 1 else scored[first]), found[first]


def spread(scored: Mapping[str, Scores]) -> Scores:
    """The scores of several ways to predict as one: means and deviations."""
    first = next(iter(scored.values()))
    headlines = {}
    for name in first.metrics:
        values = [scores.metrics[name].value for scores in scored.values()]
        known = all(map(math.isfinite, values))
        deviation = statistics.stdev(values) if known else math.inf
        headlines[name] = Score(statistics.mean(values), deviation=deviation)
    ways = {
        way: {name: score.value for name, score in scores.metrics.items()} for way, scores in scored.items()
    }
    return replace(first, metrics=headlines, details={**first.details, "variants": ways}, counts={})


def score(
    predictions: Sequence[Prediction],
    records: Sequence[Record],
    metrics: Sequence[Metric],
    labels: Sequence[str],
    split: str,
) -> Scores:
    """Score predictions, each headline with its bootstrap interval."""
    references, values = _values(predictions, records)
    headlines = {}
    counts = {}
    details = {}
    for metric in metrics:
        if isinstance(metric, Headline):
            added = metric.counts(references, values, labels)
            headlines[metric.name()] = Score(metric.score(added), *interval(metric.from_counts, added))
            counts[metric.name()] = compact(added)
        else:
            details[metric.name()] = metric.compute(references, values, labels)
    if failed := [prediction.failed for prediction in predictions if prediction.failed]:
        log.warning(
            "  note: %d of %d answers could not be read (first: %.80r)", len(failed), len(records), failed[0]
        )
        details["unreadable"] = {"rows": len(failed), "examples": failed[:_MOST_SHOWN]}
    signatures = {metric.name(): text for metric in metrics if (text := metric.signature(references))}
    return Scores(split, len(records), headlines, details, signatures, counts)


def headline_scores(
    predictions: Sequence[Prediction],
    records: Sequence[Record],
    metrics: Sequence[Metric],
    labels: Sequence[str],
) -> dict[str, float]:
    """The headline scores alone, for validation during training."""
    references, values = _values(predictions, records)
    return {m.name(): m.compute(references, values, labels) for m in metrics if isinstance(m, Headline)}


def choose_split(dataset: Dataset, asked: str | None) -> str:
    """The split to score: the one asked for, else test, else validation.

    Raises:
        InputError: It does not exist, or holds no labels.
    """
    if asked is None:
        usable = [split for split in ("test", "validation") if labelled(dataset[split])]
        if not usable:
            raise InputError(
                "there is no labelled test or validation split to score",
                hint="give data.test_file, data.validation_fraction, or another file with --set",
            )
        return usable[0]
    if not dataset[asked]:
        raise InputError(f"there is no {asked} split", hint=f"splits: {', '.join(dataset.splits)}")
    if not labelled(dataset[asked]):
        raise InputError(
            f"the {asked} split holds no labels, so it cannot be scored",
            where=dataset[asked][0].where,
            hint="name the column of the answers in data.columns, or another split with --split",
        )
    return asked


def _values(predictions: Sequence[Prediction], records: Sequence[Record]) -> tuple[list[Any], list[Any]]:
    return [record.target for record in records], [prediction.value for prediction in predictions]
