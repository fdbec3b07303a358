"""Which columns are read, where rows or files differ in theirs, or hold more than is needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ftkit.data.source import DataSource
from ftkit.dataset import load_records
from ftkit.errors import FtkitError, InputError, UsageError
from ftkit.records import Dataset
from ftkit.tasks.base import Task
from ftkit.tasks.classification import Classification
from ftkit.tasks.instruction import Instruction
from ftkit.tasks.text2text import Text2Text

Row = dict[str, Any]
Read = Callable[..., Dataset]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """`read(task, columns, train=rows, test=rows)`."""

    def load(task: Task, columns: dict[str, str] | None = None, **splits: list[Row]) -> Dataset:
        for split, rows in splits.items():
            (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {f"{split}_file": str(tmp_path / f"{split}.jsonl") for split in splits}
        return load_records(DataSource(**files, columns=columns or {}), task)

    return load


@pytest.mark.parametrize(
    ("name", "content", "settings", "texts"),
    [
        ("a.csv", 'text;label\n"1; 2";a\n3, 4;b\n', {"delimiter": ";"}, ["1; 2", "3, 4"]),
        ("a.csv", "text|label\none|a\ntwo|b\n", {"delimiter": "|"}, ["one", "two"]),
        (
            "a.tsv", 'text\tlabel\n"say ""one""\ttwo"\ta\nthree\tb\n', {"format": "csv", "delimiter": "\t"},
            ['say "one"\ttwo', "three"],
        ),
    ],
)  # fmt: skip
def test_other_delimiters(
    name: str, content: str, settings: dict[str, Any], texts: list[str], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    file = {"train_file": str(tmp_path / name)}
    says = "set data.format: csv and data.delimiter: "
    with pytest.raises(InputError) as caught:
        load_records(DataSource(**file), Classification())
    assert says + json.dumps(settings["delimiter"]) in str(caught.value)
    found = load_records(DataSource(**file, **settings), Classification())
    assert [record.text for record in found["train"]] == texts
    assert found.labels == ("a", "b")


@pytest.mark.parametrize("delimiter", ['"', ";;", "\n", ""])
def test_what_cannot_stand_between_values(delimiter: str) -> None:
    with pytest.raises(ValueError, match="one character is needed, which is no quotation mark"):
        DataSource(train_file="a.csv", delimiter=delimiter)


def asked(records: Any) -> list[list[str]]:
    """What each conversation holds before its answer."""
    return [[turn.content for turn in record.turns] for record in records]


PLAIN = {"instruction": "say hi", "output": "hi"}
WITH_INPUT = {"instruction": "translate", "input": "dog", "output": "Hund"}


@pytest.mark.parametrize("columns", [{}, {"input": "input"}])
def test_a_row_may_leave_out_what_it_has_nothing_in(columns: dict[str, str], read: Read) -> None:
    train = read(Instruction(), columns, train=[WITH_INPUT, PLAIN, WITH_INPUT])["train"]
    assert asked(train) == [["translate\n\ndog"], ["say hi"], ["translate\n\ndog"]]


def test_a_first_row_does_not_say_what_later_ones_have(read: Read) -> None:
    rows = [PLAIN, WITH_INPUT, {**PLAIN, "system": "Be brief."}]
    assert asked(read(Instruction(), train=rows)["train"]) == [
        ["say hi"], ["translate\n\ndog"], ["Be brief.", "say hi"],
    ]  # fmt: skip


def test_files_may_differ_in_their_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("instruction,output\nsay hi,hi\n")
    (tmp_path / "b.csv").write_text("output,instruction,input\nHund,translate,dog\n")
    files = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    train = load_records(DataSource(train_file=files), Instruction())["train"]
    assert asked(train) == [["say hi"], ["translate\n\ndog"]]


RED = {"text": "red", "label": "a"}
BLUE = {"text": "blue", "label": "b"}


@pytest.mark.parametrize(
    ("task", "splits", "says"),
    [
        (Classification(), {"train": [RED, BLUE, {"text": "x"}]}, "train.jsonl:3: the row has no answer"),
        (
            Classification(),
            {"train": [RED, BLUE], "test": [{"text": "x"}, RED]},
            "test.jsonl:1: the row has no answer, as other rows do",
        ),
        (
            Classification(),
            {"train": [RED, BLUE | {"text_pair": "sky"}]},
            "train.jsonl:1: the row has no second text, and {folder}/train.jsonl:2 has one",
        ),
        (
            Text2Text(),
            {
                "train": [{"text": "a", "target": "b", "context": "c"}],
                "test": [{"text": "a", "target": "b"}],
            },
            "test.jsonl:1: the row has no second text, and {folder}/train.jsonl:1 has one",
        ),
        (Classification(), {"train": [RED, {"txt": "x", "label": "b"}]}, "train.jsonl:2: no column 'text'"),
    ],
)
def test_what_all_rows_must_have_is_missed_in_any(
    task: Task, splits: dict[str, list[Row]], says: str, read: Read, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        read(task, **splits)
    assert str(caught.value).startswith(f"{tmp_path}/{says.replace('{folder}', str(tmp_path))}")


TALK = {"messages": [{"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}]}
LISTED = {"instances": [{"input": "i2", "output": "a2"}]}


@pytest.mark.parametrize(
    ("row", "columns", "question"),
    [
        (PLAIN | TALK, {}, "q2"),
        (PLAIN | TALK, {"instruction": "instruction", "output": "output"}, "say hi"),
        (PLAIN | TALK, {"output": "output"}, "say hi"),
        (WITH_INPUT | LISTED, {}, "translate\n\ni2"),
        (WITH_INPUT | LISTED, {"input": "input", "output": "output"}, "translate\n\ndog"),
        (PLAIN | LISTED | TALK, {"instances": "instances"}, "say hi\n\ni2"),
    ],
)
def test_what_the_recipe_names_comes_before_what_is_there(
    row: Row, columns: dict[str, str], question: str, read: Read
) -> None:
    assert asked(read(Instruction(), columns, train=[row])["train"]) == [[question]]


@pytest.mark.parametrize(
    "columns",
    [{"messages": "messages", "output": "output"}, {"instances": "instances", "input": "input"}],
)
def test_columns_of_two_forms_are_refused(columns: dict[str, str], read: Read) -> None:
    with pytest.raises(UsageError, match=r"data.columns names .*, which .* stand instead of"):
        read(Instruction(), columns, train=[WITH_INPUT | LISTED | TALK])


def test_a_parquet_column_that_is_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    columns = [["a", "b"], ["x", "y"], ["1", "2"]]
    pyarrow.parquet.write_table(pyarrow.table(columns, names=["text", "label", "text"]), path)
    with pytest.raises(FtkitError, match=r"train.parquet: two columns are called 'text'"):
        load_records(DataSource(train_file=str(path)), Classification())


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        ([{"article": "a", "summary": "b"}, {"article": "c", "summary": "d", "source": "CNN"}], ["a", "c"]),
        ([{"article": "a", "summary": "b", "source": "CNN"}, {"source": "c", "summary": "d"}], ["CNN", "c"]),
    ],
)
def test_a_field_is_read_from_one_column(rows: list[Row], texts: list[str], read: Read) -> None:
    assert [record.text for record in read(Text2Text(), train=rows)["train"]] == texts


def test_another_column_does_not_stand_in(read: Read) -> None:
    rows = [{"article": "a", "summary": "b"}, {"source": "CNN", "summary": "d"}]
    with pytest.raises(
        InputError, match=r"train.jsonl:2: the row has no 'article'\n  it has: source, summary"
    ):
        read(Text2Text(), train=rows)
    with pytest.raises(InputError, match=r"train.jsonl:2: the row has no answer, as other rows do"):
        read(Text2Text(), train=[rows[0], {"article": "c", "output": "d"}])
