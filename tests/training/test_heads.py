"""Losses, weights and predictions of heads against torch and scikit-learn, without a model."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import BCEWithLogitsLoss, CrossEntropyLoss

from ftkit.records import Record, Writing
from ftkit.tasks.classification import Classification
from ftkit.tasks.ner import Ner
from ftkit.tasks.qa import QuestionAnswering
from ftkit.training.heads import IGNORED, Encoded

LABELS = ["ash", "birch", "cedar"]


def mean_loss(head: Any, logits: torch.Tensor, labels: torch.Tensor) -> float:
    """What the engine makes of a batch: the summed losses over the summed counts."""
    return float(head.row_losses(logits, labels).sum() / head.row_counts(labels).sum())


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 4.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_of_labels_is_torchs(smoothing: float, weights: list[float] | None) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 3), torch.randint(3, (8,))
    learned = {} if weights is None else {"weights": weights}
    head = Classification().objective(LABELS, learned, family="encoder", label_smoothing=smoothing)
    weight = None if weights is None else torch.tensor(weights)
    expected = CrossEntropyLoss(weight, label_smoothing=smoothing)(logits, labels)
    assert mean_loss(head, logits, labels) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 4.0]])
def test_the_loss_of_sets_of_labels_is_torchs(weights: list[float] | None) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 3), torch.randint(2, (8, 3)).float()
    learned = {} if weights is None else {"weights": weights}
    task = Classification(multi_label=True)
    head = task.objective(LABELS, learned, family="encoder", label_smoothing=0.0)
    expected = BCEWithLogitsLoss(pos_weight=None if weights is None else torch.tensor(weights))(
        logits, labels
    )
    assert mean_loss(head, logits, labels) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_of_tags_is_torchs(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 6, 3), torch.randint(3, (4, 6))
    labels[:, ::2] = IGNORED
    head = Ner().objective(["PER"], {}, family="encoder", label_smoothing=smoothing)
    expected = CrossEntropyLoss(label_smoothing=smoothing)(logits.flatten(0, 1), labels.flatten())
    assert mean_loss(head, logits, labels) == pytest.approx(expected.item(), rel=1e-5)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    names = [*"aaaabbc"]
    task = Classification(class_weights="balanced")
    expected = compute_class_weight("balanced", classes=numpy.array(["a", "b", "c"]), y=names)
    found = task.learned([Record("x", target=name) for name in names], ["a", "b", "c"])
    assert found["weights"] == pytest.approx(expected)


def test_balanced_weights_of_sets_are_negative_by_positive_rows() -> None:
    rows = [Record("x", target=names) for names in [("a",), ("a", "b"), (), ("a",)]]
    task = Classification(multi_label=True, class_weights="balanced")
    assert task.learned(rows, ["a", "b", "unseen"])["weights"] == pytest.approx([1 / 3, 3 / 1, 1.0])


def test_a_label_is_predicted_from_its_threshold_on() -> None:
    logits = torch.tensor([[0.0, -0.01, 5.0]])
    for threshold, expected in ((0.5, ("ash", "cedar")), (0.4, tuple(LABELS)), (0.9, ("cedar",))):
        task = Classification(multi_label=True, threshold=threshold)
        head = task.objective(LABELS, {}, family="encoder", label_smoothing=0.0)
        assert head.decode(logits, [{}])[0].value == expected


def test_an_entity_is_as_sure_as_its_words_on_average() -> None:
    task = Ner()
    (record,), _ = task.settle([task.read({"token": ["Ann", "Lee", "won"]}, "row 1")], ["PER"])
    head: Any = task.objective(["PER"], {}, family="encoder", label_smoothing=0.0)
    words = numpy.array([[0.1, 0.8, 0.1], [0.3, 0.1, 0.6], [1.0, 0.0, 0.0]], dtype=numpy.float32)
    encoded = Encoded([{"words": [0, 1, 2]}], [0])
    (found,) = head.predictions([record], encoded, [words])
    assert [span.score for span in found.value.spans] == [pytest.approx(0.7)]


def answered(windows: list[list[tuple[float, float]]], **options: Any) -> str:
    """What a head says of one question; each window has logits of no answer, then of `a`, `b`, `c`, `d`."""
    learned = {"answerable": options.pop("answerable", False)}
    head = QuestionAnswering(**options).objective((), learned, family="encoder", label_smoothing=0.0)
    context = [value for token in range(1, 5) for value in (token, 2 * token - 2, 2 * token - 1)]
    encoded = Encoded([{"context": context}] * len(windows), [0] * len(windows))
    decoded = head.decode(torch.tensor(windows), encoded.features)
    (found,) = head.predictions([Record("?", text_pair="a b c d", target=Writing(""))], encoded, decoded)
    assert isinstance(found.value, Writing)
    return found.value.text


def test_an_answer_is_no_longer_than_said() -> None:
    logits = [(0.0, 0.0), (5.0, 0.0), (0.0, 3.0), (0.0, 4.0), (0.0, 0.0)]
    assert [answered([logits], max_answer_length=most) for most in (1, 2, 3, 4)] == [
        "a",
        "a b",
        "a b c",
        "a b c",
    ]


def test_a_question_has_no_answer_where_all_windows_say_so() -> None:
    empty = [(9.0, 9.0), (1.0, 1.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)]
    held = [(2.0, 1.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (3.0, 3.0)]
    assert answered([empty, held]) == answered([held, empty]) == "d"
    assert answered([empty, empty]) == ""
    assert answered([empty, empty], answerable=True) == "a"
