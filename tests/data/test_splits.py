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
from ftkit.tasks.classification import Classification


@pytest.mark.parametrize("alone", [600, 900])
def test_groups_of_one_row_give_their_share_together(alone: int) -> None:
    rows = range(1000)
    groups = [f"alone {row}" if row < alone else f"group {row // 4}" for row in rows]
    rest, held = stratified_split(rows, groups, 0.1, seed=0, pooled=True)
    assert (len(held), len(rest)) == (100, 900)
    assert sum(row < alone for row in held) == pytest.approx(0.1 * alone, abs=1)


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
