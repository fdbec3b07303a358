"""Scores against scikit-learn and the `evaluate` library; intervals against row-by-row resampling."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from ftkit.component import discover
from ftkit.metrics.base import Headline, Metric
from ftkit.metrics.bootstrap import interval
from ftkit.records import Prediction, Record
from ftkit.scoring import score as score_of

LABELS = ["ash", "birch", "cedar", "doum"]
# Those of entities are compared with seqeval, in test_entities.py, those of numbers in test_numbers.py.
HEADLINES = {
    name: kind()
    for name, kind in discover(Metric).items()
    if issubclass(kind, Headline) and not {"entities", "number", "text"} & set(kind.answers)
}

one_label = st.lists(st.tuples(*[st.sampled_from(LABELS)] * 2), min_size=2, max_size=40)
label_set = st.sets(st.sampled_from(LABELS)).map(lambda names: tuple(sorted(names)))
several_labels = st.lists(st.tuples(label_set, label_set), min_size=2, max_size=40)


def indicator(values: list[tuple[str, ...]]) -> Any:
    return numpy.array([[int(label in value) for label in LABELS] for value in values])


SKLEARN_ONE = {
    "accuracy": sklearn.accuracy_score,
    "macro_f1": lambda t, p: sklearn.f1_score(t, p, average="macro", zero_division=0),
    "micro_f1": lambda t, p: sklearn.f1_score(t, p, average="micro", zero_division=0),
    "weighted_f1": lambda t, p: sklearn.f1_score(t, p, average="weighted", zero_division=0),
    "matthews": sklearn.matthews_corrcoef,
}
SKLEARN_SEVERAL = {name: SKLEARN_ONE[name] for name in SKLEARN_ONE if name != "matthews"} | {
    "samples_f1": lambda t, p: sklearn.f1_score(t, p, average="samples", zero_division=0),
    "hamming_loss": sklearn.hamming_loss,
}


def test_every_headline_is_compared() -> None:
    assert set(HEADLINES) == set(SKLEARN_ONE) | set(SKLEARN_SEVERAL)


# What was written may name no label, which is "": scikit-learn takes that for one more class, so what is
# averaged over labels is asked of the labels that are there.
UNREADABLE = SKLEARN_ONE | {
    name: lambda t, p, average=average: sklearn.f1_score(
        t, p, average=average, labels=sorted({*t, *p} - {""}), zero_division=0
    )
    for name, average in {"macro_f1": "macro", "weighted_f1": "weighted"}.items()
}
partly_readable = st.lists(
    st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, ""])), min_size=2, max_size=40
)


@settings(max_examples=60, deadline=None)
@given(partly_readable)
@pytest.mark.parametrize("name", UNREADABLE)
def test_answers_that_name_no_label(name: str, pairs: list[tuple[str, str]]) -> None:
    true, said = (list(values) for values in zip(*pairs, strict=True))
    expected = UNREADABLE[name](true, said)
    assert HEADLINES[name].compute(true, said, LABELS) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "score"), [("accuracy", 0.99), ("macro_f1", (1 + 98 / 99) / 2), ("micro_f1", 0.99)]
)
def test_one_answer_of_a_hundred_names_no_label(name: str, score: float) -> None:
    """It costs what one wrong answer costs, not a third of the score."""
    true = ["ash", "birch"] * 50
    said = ["ash", "birch"] * 49 + ["ash", ""]
    predictions = [Prediction(value, failed="" if value else "oak") for value in said]
    records = [Record("x", target=value) for value in true]
    found = score_of(predictions, records, [HEADLINES[name]], LABELS[:2], "test").metrics[name]
    assert found.value == pytest.approx(score)
    assert found.low is not None and found.high is not None
    assert found.low < found.value < found.high


@settings(max_examples=60, deadline=None)
@given(one_label)
@pytest.mark.parametrize("name", SKLEARN_ONE)
def test_one_label(name: str, pairs: list[tuple[str, str]]) -> None:
    true, said = (list(values) for values in zip(*pairs, strict=True))
    expected = SKLEARN_ONE[name](true, said)
    assert HEADLINES[name].compute(true, said, LABELS) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(several_labels)
@pytest.mark.parametrize("name", SKLEARN_SEVERAL)
def test_several_labels(name: str, pairs: list[tuple[Any, Any]]) -> None:
    true, said = (list(values) for values in zip(*pairs, strict=True))
    expected = SKLEARN_SEVERAL[name](indicator(true), indicator(said))
    assert HEADLINES[name].compute(true, said, LABELS) == pytest.approx(expected, abs=1e-9)


def test_tables() -> None:
    true, said = ["ash", "ash", "birch", "cedar"], ["ash", "birch", "birch", "ash"]
    table = discover(Metric)["per_label"]().compute(true, said, LABELS)
    report = sklearn.classification_report(true, said, labels=LABELS, output_dict=True, zero_division=0)
    for label in LABELS:
        assert table[label] == pytest.approx(
            {"precision": report[label]["precision"], "recall": report[label]["recall"],
             "f1": report[label]["f1-score"], "support": report[label]["support"]}
        )  # fmt: skip
    matrix = discover(Metric)["confusion_matrix"]().compute(true, said, LABELS)
    assert list(matrix.values()) == sklearn.confusion_matrix(true, said, labels=LABELS).tolist()


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "matthews"])
def test_interval_equals_resampling_rows_one_by_one(name: str) -> None:
    generator = numpy.random.default_rng(0)
    true = generator.choice(LABELS, 200)
    said = numpy.where(generator.random(200) < 0.7, true, generator.choice(LABELS, 200))
    metric = HEADLINES[name]
    low, high = interval(metric.from_counts, metric.counts(true.tolist(), said.tolist(), LABELS))
    scores = []
    for _ in range(1000):
        rows = generator.integers(0, 200, 200)
        scores.append(SKLEARN_ONE[name](true[rows], said[rows]))
    # Two independent sets of 1,000 resamples agree to about a tenth of the interval's width.
    assert (low, high) == pytest.approx(tuple(numpy.quantile(scores, [0.025, 0.975])), abs=0.015)


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "matthews"])
def test_evaluate_module_gives_the_same_score(name: str) -> None:
    true, said = ["ash", "ash", "birch", "cedar"], ["ash", "birch", "birch", "ash"]
    module = HEADLINES[name].module(LABELS)
    assert module.compute(references=true, predictions=said) == {
        name: pytest.approx(SKLEARN_ONE[name](true, said))
    }


def test_evaluate_module_of_label_sets() -> None:
    true, said = [["ash"], ["ash", "birch"]], [["ash"], ["birch"]]
    module = HEADLINES["hamming_loss"].module(LABELS)
    assert module.compute(references=true, predictions=said) == {"hamming_loss": pytest.approx(1 / 8)}
