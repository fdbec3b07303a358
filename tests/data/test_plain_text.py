"""Texts without columns, and formats by their name."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftkit.component import discover
from ftkit.data.base import Format
from ftkit.data.source import DataSource
from ftkit.dataset import load_records
from ftkit.errors import InputError
from ftkit.recipe import load_recipe
from ftkit.tasks.language_modeling import LanguageModeling


@pytest.mark.parametrize(
    ("format_", "texts", "places"),
    [("lines", ["one", "two  two"], [":1", ":3"]), ("text", ["one\n\ntwo  two\n"], [""])],
)
def test_a_file_of_any_suffix_as_lines_or_one_text(
    format_: str, texts: list[str], places: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "some.log"
    path.write_text("one\n\ntwo  two\n")
    with pytest.raises(InputError, match=r"unknown kind of file '.log'[\s\S]*one of: .*lines.*text"):
        load_records(DataSource(train_file=str(path)), LanguageModeling())
    tree = {
        "task": "language_modeling", "method": "full", "output_dir": str(tmp_path / "run"),
        "model": {"name_or_path": "some/model"}, "data": {"train_file": str(path), "format": format_},
    }  # fmt: skip
    recipe = load_recipe(tree)
    train = load_records(recipe.data, recipe.task)["train"]
    assert [record.text for record in train] == texts
    assert [record.where.removeprefix(str(path)) for record in train] == places


def test_every_format_can_be_named() -> None:
    for name in discover(Format):
        assert DataSource(train_file="x", format=name).format == name


def test_a_further_file_is_read_as_those_of_a_folder_are(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/train.txt").write_text("Ann B-PER\nwon O\n")
    for given in ({"data_dir": str(tmp_path / "corpus")}, {"train_file": str(tmp_path / "corpus")}):
        data = DataSource(**given, format="conll", columns={"token": 0, "tag": -1})
        assert data.for_file(tmp_path / "corpus/train.txt").format == "conll"
        assert data.for_file(tmp_path / "rows.csv").format is None


def test_lines_of_a_further_file(tmp_path: Path) -> None:
    data = DataSource(train_file="train.jsonl", format="lines")
    assert data.for_file(tmp_path / "three.txt").format == "lines"
