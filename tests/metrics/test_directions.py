"""Whether more is better, which chooses checkpoints and compares with a baseline, is as scores have it."""

from __future__ import annotations

from typing import Any

import pytest

from ftkit.component import discover
from ftkit.metrics.base import Headline, Metric
from ftkit.records import Entities, Span, Writing


def tagged(kind: str) -> Entities:
    return Entities((Span(0, 1, kind),), (f"B-{kind}", "O"), "a b", ((0, 1), (2, 3)))


def written(text: str, loss: float) -> Writing:
    return Writing(text, loss=loss, tokens=4, octets=9)


# By the kind of a value: what is right, and what is wrong.
ANSWERS: dict[str, tuple[list[Any], list[Any]]] = {
    "label": (["X", "Y", "Y"], ["Y", "X", "X"]),
    "label set": ([("X",), ("Y",)], [("Y",), ("X",)]),
    "entities": ([tagged("X"), tagged("Y")], [tagged("Y"), tagged("X")]),
    "number": ([1.0, 2.0, 4.0], [4.0, 2.0, 1.0]),
    "text": ([written("the cat sat on a mat", 1.0)], [written("zzz", 9.0)]),
    "document": ([written("", 1.0)], [written("", 9.0)]),
}
HEADLINES = {name: kind() for name, kind in discover(Metric).items() if issubclass(kind, Headline)}


@pytest.mark.parametrize(
    ("name", "answer"), [(n, a) for n, metric in HEADLINES.items() for a in metric.answers if a in ANSWERS]
)
def test_what_is_right_scores_better(name: str, answer: str) -> None:
    metric = HEADLINES[name]
    right, wrong = ANSWERS[answer]
    best, worst = (metric.compute(right, said, ["X", "Y"]) for said in (right, wrong))
    assert (best > worst) if metric.greater_is_better else (best < worst)
