"""Shares of the rows that are held out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ftkit.data.source import DataSource
from ftkit.data.splits import stratified_split
from ftkit.dataset import load_records
from ftkit.records import Record
from ftkit.tasks.classification import Classification


@pytest.mark.parametrize("alone", [600, 900])
def test_groups_of_one_row_give_their_share_together(alone: int) -> None:
    rows = range(1000)
    groups = [f"alone {row}" if row < alone else f"group {row // 4}" for row in rows]
    rest, held = stratified_split(rows, groups, 0.1, seed=0, pooled=True)
    assert (len(held), len(rest)) == (100, 900)
    assert sum(row < alone for row in held) == pytest.approx(0.1 * alone, abs=1)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_rows_that_ask_the_same_stay_together(split: str, tmp_path: Path) -> None:
    """Held out beside its copy, a row would be scored on what was learned of it."""
    rows = [{"text": f"text {number % 50}", "label": "ab"[number % 2]} for number in range(100)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train_file": str(tmp_path / "train.jsonl"), f"{split}_fraction": 0.2}
    found = load_records(DataSource(**data), Classification())
    texts = [{record.text for record in found[name]} for name in ("train", split)]
    assert not texts[0] & texts[1]
    assert len(found["train"]) == 2 * len(texts[0])
    assert len(found[split]) == 20
    assert not any("also in the training data" in note for note in found.notes)


def test_a_label_that_only_copies_have_stays() -> None:
    """Whichever text is held out, its copies with another answer are the only ones of their label."""
    for seed in range(20):
        rest, held = stratified_split(range(12), "aaaabbbbcdee", 0.5, seed=seed, copies={8: 0, 9: 4})
        assert {"aaaabbbbcdee"[row] for row in rest} == set("abcde")
        assert (8 in held) == (0 in held)
        assert (9 in held) == (4 in held)


def test_both_shares_count_texts(tmp_path: Path) -> None:
    """One text that is most of the rows makes neither share another one."""
    rows = [{"text": f"text {max(number, 900)}", "label": "ab"[number % 2]} for number in range(1000)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed in range(6):
        data = {"train_file": str(tmp_path / "train.jsonl"), "split_seed": seed}
        found = load_records(DataSource(**data, validation_fraction=0.1, test_fraction=0.1), Classification())
        texts = [len({record.text for record in found[split]}) for split in ("validation", "test")]
        assert texts == [10, 10]


def test_a_label_of_one_row_stays() -> None:
    rest, held = stratified_split(range(12), "aaaaabbbbbcd", 0.25, seed=0)
    assert {10, 11} <= set(rest)
    assert Counter("aaaaabbbbbcd"[row] for row in held).keys() <= {"a", "b"}


def test_sets_of_labels_that_all_differ(tmp_path: Path) -> None:
    """Of them a share can be held out as of any others."""
    rows: list[dict[str, Any]] = [
        {"text": f"row {number}", "label": [name for bit, name in enumerate("abcde") if number >> bit & 1]}
        for number in range(32)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSource(train_file=str(tmp_path / "train.jsonl"), validation_fraction=0.25)
    dataset = load_records(data, Classification(multi_label=True))
    assert (len(dataset["train"]), len(dataset["validation"])) == (24, 8)


def test_withheld_labels_are_no_label_of_the_first_rows(tmp_path: Path) -> None:
    for split, labels in (("train", [0, 1] * 4), ("validation", [1, 0]), ("test", [-1, -1])):
        rows = [{"text": f"{split} {number}", "label": label} for number, label in enumerate(labels)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for limit in (None, 2):
        dataset = load_records(DataSource(data_dir=str(tmp_path)), Classification(), limit=limit)
        assert dataset.labels == ("0", "1")
        assert {record.target for record in dataset["test"]} == {None}


def test_a_share_goes_before_a_file_of_the_folder(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        lines = [f"{split} {number},{'ab'[number % 2]}" for number in range(20)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *lines]))
    data = DataSource(data_dir=str(tmp_path), validation_fraction=0.2)
    dataset = load_records(data, Classification())
    assert [len(dataset[split]) for split in ("train", "validation")] == [16, 4]
    assert "the file of the validation split is not read: data.validation_fraction" in dataset.notes[0]


def test_codes_of_one_number_have_one_order() -> None:
    train = [Record("a", target=name) for name in ("007", "7", "07", "10", "x")]
    assert Classification().find_labels(train, ()) == ("7", "07", "007", "10", "x")


def test_both_shares_count_from_all_rows(tmp_path: Path) -> None:
    lines = [f"row {number},{'ab'[number % 2]}" for number in range(40)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *lines]))
    data = DataSource(
        train_file=str(tmp_path / "train.csv"), validation_fraction=0.25, test_fraction=0.5, split_seed=1
    )
    dataset = load_records(data, Classification())
    found = {split: [record.text for record in dataset[split]] for split in ("train", "validation", "test")}
    assert [len(texts) for texts in found.values()] == [10, 10, 20]
    assert len({text for texts in found.values() for text in texts}) == 40
    other = load_records(data.model_copy(update={"split_seed": 2}), Classification())
    assert [record.text for record in other["test"]] != found["test"]


def test_no_label_is_held_out_whole() -> None:
    """Three quarters of two rows are one and a half, and both would be rounded up."""
    rest, held = stratified_split("aabb", "aabb", 0.75, seed=0)
    assert (sorted(rest), sorted(held)) == (["a", "b"], ["a", "b"])
