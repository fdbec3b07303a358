"""What the answers in data are read as: the names of choices, numbers of labels, withheld answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftkit.data.source import DataSource
from ftkit.dataset import load_records
from ftkit.errors import InputError
from ftkit.records import Dataset
from ftkit.tasks.base import Task
from ftkit.tasks.classification import Classification
from ftkit.tasks.multiple_choice import MultipleChoice

Read = Callable[..., Dataset]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """`read(task, train=rows, test=rows)`."""

    def load(task: Task, **splits: list[dict[str, Any]]) -> Dataset:
        for split, rows in splits.items():
            (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {f"{split}_file": str(tmp_path / f"{split}.jsonl") for split in splits}
        return load_records(DataSource(**files), task)

    return load


# Multiple choice ------------------------------------------------------------------------------

NUMBERS = ["2", "1", "0", "3"]
WORDS = ["red", "A", "blue", "green"]


def asked(*rows: tuple[Any, list[str]], labels: list[str] | None = None) -> list[dict[str, Any]]:
    return [
        {
            "question": f"which {number}",
            "choices": {"text": choices, "label": labels} if labels else choices,
            "answer": answer,
        }
        for number, (answer, choices) in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("rows", "targets"),
    [
        # An integer counts choices, whatever they are called.
        (asked((2, NUMBERS), (0, NUMBERS)), ["0", "2"]),
        (asked((1.0, NUMBERS), (0.0, NUMBERS)), ["1", "2"]),
        (asked((0, WORDS), labels=["1", "0", "2", "3"]), ["red"]),
        # Of strings, all rows tell what they are.
        (asked(("2", NUMBERS), ("3", WORDS)), ["0", "green"]),
        (asked(("2", NUMBERS), ("red", WORDS)), ["2", "red"]),
        (asked(("A", WORDS), ("C", WORDS)), ["red", "blue"]),
        (asked(("A", WORDS), ("blue", WORDS)), ["A", "blue"]),
        (asked(("A", WORDS), labels=["B", "A", "C", "D"]), ["A"]),
    ],
)
def test_all_answers_name_choices_in_one_way(
    rows: list[dict[str, Any]], targets: list[str], read: Read
) -> None:
    assert [record.target for record in read(MultipleChoice(), train=rows)["train"]] == targets


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            asked(("red", WORDS), ("C", WORDS)),
            "the answer is the letter of a choice, in the rows before it the text",
        ),
        (
            asked(("A", WORDS), (1, WORDS)),
            "the answer is the number of a choice, in the rows before it the text or letter",
        ),
    ],
)
def test_answers_that_name_choices_in_several_ways(rows: list[dict[str, Any]], says: str, read: Read) -> None:
    with pytest.raises(InputError, match=rf"train\.jsonl:2: {says}"):
        read(MultipleChoice(), train=rows)


@pytest.mark.parametrize("answer", [4, -1, 1.5, True])
def test_numbers_that_are_no_choice(answer: Any, read: Read) -> None:
    with pytest.raises(InputError, match="is none of the 4 choices"):
        read(MultipleChoice(), train=asked((answer, NUMBERS)))


def test_answers_that_stay_doubtful_are_told(read: Read) -> None:
    notes = read(MultipleChoice(), train=asked(("2", NUMBERS), ("1", NUMBERS))).notes
    assert "train: answers are read as the text of a choice; all could be the number as well" in notes
    assert not read(MultipleChoice(), train=asked(("2", NUMBERS), ("red", WORDS))).notes


# Labels ---------------------------------------------------------------------------------------


def texts(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]


def targets(dataset: Dataset, split: str) -> list[Any]:
    return [record.target for record in dataset[split]]


def test_numbers_mean_labels_that_the_recipe_numbers(read: Read) -> None:
    dataset = read(Classification(labels=["neg", "pos"]), train=texts("pos", "neg"), test=texts(1, 0))
    assert targets(dataset, "test") == ["pos", "neg"]


def test_numbers_mean_nothing_where_labels_are_only_sorted(read: Read) -> None:
    with pytest.raises(InputError, match=r"test\.jsonl:1: the label '1' is not among the 2 labels") as error:
        read(Classification(), train=texts("pos", "neg"), test=texts(1, 0))
    assert "labels: neg, pos; what numbers mean is said by task.labels" in str(error.value)


@pytest.mark.parametrize("written", [-1, "-1", -1.0])
def test_minus_one_is_a_label_among_others(written: Any, read: Read) -> None:
    dataset = read(Classification(), train=texts(0, 1, written), test=texts(written, written))
    assert dataset.labels == ("-1", "0", "1")
    assert targets(dataset, "train") == ["0", "1", "-1"]
    assert targets(dataset, "test") == ["-1", "-1"]
    assert any("-1 is one of the labels" in note for note in dataset.notes)


def test_minus_one_in_every_row_says_that_labels_are_withheld(read: Read) -> None:
    dataset = read(Classification(), train=texts(0, 1), test=texts(-1, -1))
    assert targets(dataset, "test") == [None, None]
    assert "test: all labels are -1: withheld" in dataset.notes


def test_minus_one_in_some_rows_is_no_label_of_the_training_data(read: Read) -> None:
    with pytest.raises(InputError, match=r"test\.jsonl:2: the label '-1' is not among the 2 labels"):
        read(Classification(), train=texts(0, 1), test=texts(0, -1))


def test_withheld_labels_teach_nothing(read: Read) -> None:
    with pytest.raises(InputError, match="no training row has an answer"):
        read(Classification(labels=["neg", "pos"]), train=texts(-1, -1))


@pytest.mark.parametrize("written", ["['a', 'b']", '["a", "b"]', " [ 'b','a' ] ", "a,b", ["a", "b"]])
def test_several_labels_in_a_cell(written: Any, read: Read) -> None:
    dataset = read(Classification(multi_label=True), train=texts(written, "a", "b", "[]"))
    assert dataset.labels == ("a", "b")
    assert targets(dataset, "train")[0] == ("a", "b")
    assert targets(dataset, "train")[3] == ()


@pytest.mark.parametrize("vector", [[0, 1, 0, 1], "[1, 0, 1, 0]"])
def test_a_vector_of_zeros_and_ones_is_refused(vector: Any, read: Read) -> None:
    task = Classification(multi_label=True, labels=["a", "b", "c", "d"])
    with pytest.raises(InputError, match=r"train\.jsonl:2: the labels are a vector of zeros and ones"):
        read(task, train=texts(["a"], vector))


def test_vectors_of_two_labels_are_refused(read: Read) -> None:
    """Read as numbers, each would be both labels."""
    with pytest.raises(InputError, match="the labels are a vector of zeros and ones"):
        read(Classification(multi_label=True), train=texts([0, 1], [1, 0], [0, 1]))
    numbers = read(Classification(multi_label=True), train=texts([0, 1], [1], []))
    assert numbers.labels == ("0", "1")


def test_another_separator_is_noticed(read: Read) -> None:
    task = Classification(multi_label=True)
    notes = "\n".join(read(task, train=texts("a;b", "a", "b;c", "c/d", "b")).notes)
    assert "'a;b' is a label, and so is each part: is ';' the task.label_separator, and not ','?" in notes
    assert "'/'" not in notes
    assert "separator" not in "".join(read(task, train=texts("a,b", "a", "b", "c;d")).notes)


def test_what_looks_like_a_list_is_one(read: Read) -> None:
    with pytest.raises(InputError, match=r"the label '\[a, b\]' is no list that can be read"):
        read(Classification(multi_label=True), train=texts("a", "[a, b]"))


@pytest.mark.parametrize("limit", [2, 3])
def test_a_limit_need_not_show_all_labels(limit: int, tmp_path: Path) -> None:
    """Those of other splits are labels too; of all rows, they would be the training rows' alone."""
    for split, labels in (("train", "abcd"), ("test", "dcba")):
        rows = [json.dumps({"text": f"{split} {label}", "label": label}) + "\n" for label in labels]
        (tmp_path / f"{split}.jsonl").write_text("".join(rows))
    data = DataSource(data_dir=str(tmp_path))
    dataset = load_records(data, Classification(), limit=limit)
    assert dataset.labels == tuple("abcd")
    assert any(note.startswith("no training row has the label") for note in dataset.notes)
