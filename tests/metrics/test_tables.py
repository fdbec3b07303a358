"""Tables as the command line prints them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
from sklearn.metrics import precision_recall_fscore_support

from ftkit import component
from ftkit.cli import console
from ftkit.metrics.base import Metric, Table
from ftkit.metrics.per_label import PerLabel
from ftkit.records import Score, Scores
from ftkit.scoring import spread

METRICS: dict[str, Any] = {
    "split": "test", "rows": 4, "precision": "fp32",
    "metrics": {"accuracy": {"value": 0.5, "low": 0.25, "high": 0.75}},
}  # fmt: skip
PRINTED = """\
Scores on test (4 rows, fp32)
  metric     score     95 % interval
  accuracy  0.5000  0.2500 to 0.7500

Labels
  label  precision  recall     f1  rows
  a          1.000   0.500  0.667     2
  b          0.500   1.000  0.667     2"""


def test_tables_are_printed_in_their_own_way() -> None:
    one: dict[str, Any] = {"recall": 0.5, "precision": 1.0, "f1": 2 / 3, "support": 2.0}
    labels = {"a": one, "b": {**one, "precision": 0.5, "recall": 1.0}}
    unread = {"confusion_matrix": {"a": [1, 1], "b": [0, 2]}, "unreadable": {"rows": 1, "examples": ["?"]}}
    assert console.scores(METRICS | {"details": {"per_label": labels, **unread}}) == PRINTED
    counts = dict.fromkeys(("boundary", "type", "both", "missed"), 0) | {"spurious": 2}
    errors = {**counts, "examples": {"spurious": ["row 1: here", "row 2: there"]}}
    assert console.scores(METRICS | {"details": {"entity_errors": errors}}).splitlines()[4:] == [
        "Errors", "  kind      entities", "  boundary         0", "  type             0",
        "  both             0", "  missed           0", "  spurious         2", "  spurious: row 1: here",
    ]  # fmt: skip


@pytest.mark.parametrize("said", [[("toxic",), (), ("toxic",)], [(), (), ()]])
def test_one_label_has_one_row(said: list[tuple[str, ...]]) -> None:
    """As scikit-learn has it for the positive class of a binary problem."""
    right = [("toxic",), ("toxic",), ()]
    columns = precision_recall_fscore_support(
        [bool(one) for one in right], [bool(one) for one in said], average="binary", zero_division=0
    )
    found = PerLabel().compute(right, said, ["toxic"])
    expected = dict(zip(("precision", "recall", "f1"), columns, strict=False))
    assert found == {"toxic": expected | {"support": 2}}


def test_of_many_labels_the_worst_are_printed() -> None:
    labels = {f"l{n:02}": dict.fromkeys(("precision", "recall", "f1", "support"), n / 30) for n in range(30)}
    printed = console.scores(METRICS | {"details": {"per_label": labels}}).splitlines()
    assert printed[4] == "The 10 with the lowest F1 of 30 (all are in metrics.json)"
    assert [line.split()[0] for line in printed[6:]] == [f"l{n:02}" for n in range(10)]


def test_a_new_table_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    component.discover(Metric)  # The class below is of this test alone.

    class Longest(Table):
        """The longest texts."""

        type: str = "longest"
        answers: ClassVar[tuple[str, ...]] = ("text",)

        def compute(self, references: Any, predictions: Any, labels: Any) -> Any:
            return {"rows": [3]}

        def lines(self, result: Any) -> list[str]:
            return [f"Longest: row {row}" for row in result["rows"]]

    monkeypatch.setattr(component, "discover", lambda base: {"longest": Longest})
    printed = console.scores(METRICS | {"details": {"longest": {"rows": [3]}}})
    assert printed.endswith("\n\nLongest: row 3")


def test_the_deviation_is_that_of_a_sample() -> None:
    scored = {
        way: Scores("test", 4, {"accuracy": Score(value, 0.0, 1.0)})
        for way, value in {"seed 1": 0.25, "seed 2": 0.5, "seed 3": 1.0}.items()
    }
    found = spread(scored)
    mean = 1.75 / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in (0.25, 0.5, 1.0)) / 2)
    score = found.metrics["accuracy"]
    assert (score.value, score.deviation) == (pytest.approx(mean), pytest.approx(deviation))
    assert (score.low, score.high) == (None, None)
    assert found.details["variants"]["seed 3"] == {"accuracy": 1.0}
