"""Scores of numbers against scipy and scikit-learn; a regression run end to end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import root_mean_squared_error
from transformers import pipeline

import ftkit
from ftkit.errors import FtkitError
from ftkit.metrics import bootstrap
from ftkit.metrics.bootstrap import interval
from ftkit.metrics.likelihood import AnswerLoss
from ftkit.metrics.numbers import Pearson, Rmse, Spearman
from ftkit.records import Record
from ftkit.tasks.regression import Regression

numbers = st.integers(-50, 50).map(lambda number: number / 4)
pairs = st.lists(st.tuples(numbers, numbers), min_size=3, max_size=40).filter(
    lambda rows: all(len(set(column)) > 1 for column in zip(*rows, strict=True))
)


@settings(max_examples=80, deadline=None)
@given(pairs)
def test_against_scipy(rows: list[tuple[float, float]]) -> None:
    true, said = (list(column) for column in zip(*rows, strict=True))
    assert Pearson().compute(true, said, []) == pytest.approx(stats.pearsonr(true, said)[0], abs=1e-9)
    assert Spearman().compute(true, said, []) == pytest.approx(stats.spearmanr(true, said)[0], abs=1e-9)
    rmse = Rmse().compute(true, said, [])
    assert rmse == pytest.approx(root_mean_squared_error(true, said), abs=1e-9)


def test_no_variation_is_no_correlation() -> None:
    assert Pearson().compute([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], []) == 0.0


def test_the_interval_holds_the_score() -> None:
    generator = numpy.random.default_rng(0)
    true = generator.normal(size=200)
    said = true + generator.normal(size=200)
    low, high = interval(Pearson().from_counts, Pearson().counts(true.tolist(), said.tolist(), []))
    assert low < Pearson().compute(true.tolist(), said.tolist(), []) < high
    assert high - low < 0.3


def test_repeated_pairs_keep_their_ranks() -> None:
    """Grades of few values: most rows share their pair with others, and count each for itself."""
    rows = [(0, 0)] * 60 + [(0, 1), (1, 0), (1, 1)] * 30 + [(n, n) for n in range(2, 30)]
    true, said = numpy.array(rows).T
    low, high = interval(Spearman().from_counts, Spearman().counts(true.tolist(), said.tolist(), []))
    assert low < stats.spearmanr(true, said)[0] < high
    generator = numpy.random.default_rng(0)
    drawn = (generator.integers(0, len(rows), len(rows)) for _ in range(400))
    scores = [stats.spearmanr(true[some], said[some])[0] for some in drawn]
    # Whole resamples are ranked anew, which widens the interval a little.
    assert (low, high) == pytest.approx(tuple(numpy.quantile(scores, [0.025, 0.975])), abs=0.04)


@pytest.fixture
def lengths(recipe: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A recipe that learns how many words a text has, in tens."""
    rows = ["text,label", *(f"{' '.join(['the'] * n)},{n / 10}" for n in range(1, 21) for _ in range(3))]
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    data = {"train_file": str(tmp_path / "rows.csv"), "validation_fraction": 0.2, "test_fraction": 0.2}
    return recipe | {"task": "regression", "data": data}


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_a_run(architecture: str, lengths: dict[str, Any], tiny: Callable[[str], Path]) -> None:
    run = ftkit.finetune(lengths | {"model": {"name_or_path": str(tiny(architecture))}})
    assert set(run.metrics["metrics"]) == {"pearson", "spearman", "rmse"}
    texts = ["the the the", "the the the the the the the the the"]
    values = [one.value for one in ftkit.predict(run, texts)]
    plain = pipeline("text-classification", model=str(run.folder / "model"))
    assert [one["score"] for one in plain(texts)] == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize("label", ["warm", "nan", "inf", "1;2", "2_5"])
def test_what_is_no_number(label: str, lengths: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(path.read_text() + f"the end,{label}\n")
    with pytest.raises(FtkitError, match=r"rows.csv:62: the label is .*, not a number"):
        ftkit.finetune(lengths)


def test_numbers_far_from_0_are_told() -> None:
    def told(*numbers: float) -> list[str]:
        return list(Regression().notes([Record("a", target=number) for number in numbers], ("score",)))

    assert not told(0.0, 2.5, 5.0)
    assert told(900.0, 1100.0)[0].startswith("the numbers (mean 1,000, deviation 100) are far from 0")
    assert told(-40.0, 40.0)


def test_resamples_without_a_score_are_left_out_of_an_interval() -> None:
    """Of joined documents many rows have no token of their own, and some resamples none at all."""
    counts = numpy.array([[2.0, 1.0, 4.0], *[[0.0, 0.0, 4.0]] * 9])
    metric = AnswerLoss()
    assert interval(metric.from_counts, counts) == (metric.score(counts), metric.score(counts))
    assert interval(metric.from_counts, counts[1:]) == (math.inf, math.inf)


def test_resamples_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, those of many distinct rows would take more memory than the rows."""
    metric = Rmse()
    rng = numpy.random.default_rng(0)
    counts = metric.counts(rng.normal(size=50).tolist(), rng.normal(size=50).tolist(), ())
    whole = interval(metric.from_counts, counts)
    monkeypatch.setattr(bootstrap, "_MOST_DRAWN", 50 * 7)
    assert interval(metric.from_counts, counts) == whole


def test_the_checkpoint_with_the_least_error_is_kept(lengths: dict[str, Any], tmp_path: Path) -> None:
    """Of a metric where less is better, which the recipe need not say again."""
    lengths |= {"metrics": ["rmse"], "output_dir": str(tmp_path / "least")}
    run = ftkit.finetune(lengths, ["training.num_train_epochs=3"])
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    errors = {entry["step"]: entry["eval_rmse"] for entry in log if "eval_rmse" in entry}
    assert len(errors) == 3
    assert run.manifest["training"]["best_step"] == min(errors, key=errors.__getitem__)
