"""Rows are tokenized once: what is kept is what was made, is found by content, and is checked."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import _byte_level, _llama, _t5, _wordpiece

import ftkit
from ftkit.records import Entities, Record, Span, Turn, Writing
from ftkit.tagging import tag_names
from ftkit.tasks.instruction import Instruction
from ftkit.tasks.language_modeling import LanguageModeling
from ftkit.training import cache
from ftkit.training.features import FeatureTable
from ftkit.training.heads import Encoded, Objective, SequenceHead
from ftkit.training.question_head import QuestionHead
from ftkit.training.regression_head import RegressionHead
from ftkit.training.token_head import TokenHead

HEAD = SequenceHead(("red", "blue"))
RECORDS = [
    Record(f"{'the ' * (n % 7)}{colour} one", target=colour, where=f"rows:{n}")
    for n, colour in enumerate(["red", "blue"] * 20, 1)
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_ROWS_THAT_TAKE_LONG", 0)
    return tmp_path / "cache" / "ftkit" / "tokenized"


def encoded(
    records: Sequence[Record] = RECORDS,
    head: Objective = HEAD,
    tokenizer: Any = None,
    *,
    max_length: int = 16,
    task: str = "{}",
    training: bool = True,
) -> Encoded:
    tokenizer = tokenizer or _wordpiece(Path())
    head.prepare(tokenizer, max_length)
    return cache.encode_once(head, records, tokenizer, max_length, task=task, training=training)


def content(found: Encoded) -> tuple[Any, ...]:
    return list(found.features), list(found.owners), found.truncated, found.notes


# Whole runs -------------------------------------------------------------------------------


def test_a_run_is_the_same_with_and_without_the_cache(
    recipe: dict[str, Any], colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """To the bit: rows just made and mapped, rows found again, and rows that cannot be kept."""
    runs = []
    moved = tmp_path / "moved"
    shutil.copytree(colours, moved)
    (tmp_path / "file").touch()
    for name, home in (("first", "cache"), ("second", "cache"), ("none", "file")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home))
        if name == "second":
            recipe["data"] = {"data_dir": str(moved)}
            monkeypatch.setattr(SequenceHead, "training_rows", _forbidden)
        caplog.clear()
        with caplog.at_level("INFO", logger="ftkit"):
            run = ftkit.finetune(recipe, [f"output_dir={tmp_path / name}"])
        monkeypatch.undo()
        monkeypatch.setattr(cache, "_ROWS_THAT_TAKE_LONG", 0)
        assert ("rows were tokenized before" in caplog.text) == (name == "second")
        assert ("cannot be kept" in caplog.text) == (name == "none")
        weights = (run.folder / "model" / "model.safetensors").read_bytes()
        runs.append((weights, (run.folder / "log.jsonl").read_text(), run.metrics))
    assert runs[0] == runs[1] == runs[2]


def _forbidden(*_: Any) -> Any:
    raise AssertionError("the rows were tokenized again")


# What is kept -----------------------------------------------------------------------------

TEXT = "ann lee lives in oslo and likes the red house by the sea"
HEADS: dict[str, tuple[Objective, Callable[[Path], Any], Record]] = {
    "label": (HEAD, _wordpiece, Record(TEXT, target="blue")),
    "label of a pair": (HEAD, _byte_level, Record(TEXT, "a b", target="red")),
    "labels": (SequenceHead(("red", "blue"), multi_label=True), _wordpiece, Record(TEXT, target=("red",))),
    "number": (RegressionHead(), _wordpiece, Record(TEXT, target=0.1)),
    "tags in windows": (
        TokenHead(tag_names(["PER"]), stride=2),
        _wordpiece,
        Record(
            "ann lee the red",
            words=((0, 3), (4, 7), (8, 11), (12, 15)),
            target=Entities((Span(0, 7, "PER"),), ("B-PER", "I-PER", "O", "O"), "ann lee the red",
                            ((0, 3), (4, 7), (8, 11), (12, 15))),
        ),
    ),
    "answer in windows": (
        QuestionHead(stride=2), _wordpiece, Record("who", TEXT, target=Writing("ann lee", start=0))
    ),
    "answer of a decoder": (
        Instruction().objective((), {}, family="decoder", label_smoothing=0.0),
        _llama,
        Record("who", target=Writing("ann"), turns=(Turn("user", "who"),)),
    ),
    "blocks of a decoder": (
        LanguageModeling().objective((), {}, family="decoder", label_smoothing=0.0),
        _llama,
        Record(TEXT, target=Writing(TEXT)),
    ),
    "spans of an encoder-decoder": (
        LanguageModeling().objective((), {}, family="encoder_decoder", label_smoothing=0.0),
        _t5,
        Record(TEXT, target=Writing(TEXT)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False], ids=["to learn from", "to score"])
@pytest.mark.parametrize("name", HEADS)
def test_every_head_gets_back_what_it_made(name: str, training: bool, folder: Path, caplog: Any) -> None:
    head, build, record = HEADS[name]
    tokenizer, records = build(Path()), [record, replace(record, text=f"{record.text} {record.text}")]
    if isinstance(record.target, Entities):
        records = [record, record]
    first, again = (encoded(records, head, tokenizer, max_length=40, training=training) for _ in range(2))
    direct = (head.training_rows if training else head.encode)(records, tokenizer, 40)
    assert len(direct.features)
    assert content(first) == content(again) == content(direct)
    assert [type(value) for row in again.features for value in row.values()] == [
        type(value) for row in direct.features for value in row.values()
    ]
    assert len(list(folder.iterdir())) == 1


def test_rows_take_little_memory(tmp_path: Path) -> None:
    """In columns as they are made, and hardly any where they are mapped."""
    row = {"input_ids": list(range(1000, 1200)), "attention_mask": [1] * 200}
    tracemalloc.start()
    table = FeatureTable({name: list(values) for name, values in row.items()} for _ in range(200))
    made, _ = tracemalloc.get_traced_memory()
    table.save(tmp_path)
    before, _ = tracemalloc.get_traced_memory()
    mapped = FeatureTable.mapped(tmp_path, table.names, len(table))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made < 5 * 80_000, "bytes for 400 numbers in each of 200 rows"
    assert after - before < 20_000
    assert list(mapped) == [row] * 200


# What is found again ----------------------------------------------------------------------


def other_template() -> Any:
    tokenizer = _wordpiece(Path())
    tokenizer.chat_template = "{{ messages }}"
    return tokenizer


def other_token() -> Any:
    tokenizer = _wordpiece(Path())
    tokenizer.add_tokens(["redone"])
    return tokenizer


def cut_on_the_left() -> Any:
    tokenizer = _wordpiece(Path())
    tokenizer.truncation_side = "left"
    return tokenizer


@pytest.mark.parametrize(
    "change",
    [
        {"records": RECORDS[:-1]},
        {"records": [*RECORDS[:-1], replace(RECORDS[-1], text="other")]},
        {"records": [*RECORDS[:-1], replace(RECORDS[-1], target="red")]},
        {"records": RECORDS[::-1]},
        {"head": SequenceHead(("blue", "red"))},
        {"max_length": 15},
        {"task": '{"template": "other"}'},
        {"training": False},
        {"tokenizer": other_template},
        {"tokenizer": other_token},
        {"tokenizer": cut_on_the_left},
    ],
    ids=["fewer", "text", "answer", "order", "labels", "length", "task", "use", "template", "token", "side"],
)
def test_whatever_changes_the_rows_makes_others(change: dict[str, Any], folder: Path) -> None:
    encoded()
    encoded()
    assert len(list(folder.iterdir())) == 1
    encoded(**{name: value() if callable(value) else value for name, value in change.items()})
    assert len(list(folder.iterdir())) == 2


def test_an_earlier_call_of_the_tokenizer_does_not_matter(folder: Path) -> None:
    tokenizer = _wordpiece(Path())
    encoded(tokenizer=tokenizer)
    tokenizer("a b c", truncation=True, max_length=3, padding="max_length")
    encoded(tokenizer=tokenizer)
    assert len(list(folder.iterdir())) == 1


def test_a_note_names_the_place_where_its_row_is_now() -> None:
    head = Instruction(truncation="drop").objective((), {}, family="decoder", label_smoothing=0.0)
    tokenizer = _llama(Path())
    turns = (Turn("user", "who"),)
    short = Record("who", target=Writing("ann"), where="here:1", turns=turns)
    long = replace(short, target=Writing("ann " * 50), where="here:2")
    for place in ("here", "there"):
        records = [short, replace(long, where=f"{place}:2")]
        assert f"(first: {place}:2)" in encoded(records, head, tokenizer, max_length=60).notes[0]


# What is damaged, and what is old -----------------------------------------------------------


def change_a_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\7")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("input_ids.values.npy", change_a_byte),
        ("input_ids.values.npy", lambda path: os.truncate(path, 100)),
        ("input_ids.ends.npy", Path.unlink),
        ("owners.npy", change_a_byte),
        ("index.json", Path.unlink),
        ("index.json", lambda path: os.truncate(path, 30)),
        ("index.json", lambda path: path.write_text("{}")),
    ],
)
def test_a_damaged_entry_is_made_again(
    name: str, damage: Callable[[Path], Any], folder: Path, caplog: Any
) -> None:
    whole = content(encoded())
    (entry,) = folder.iterdir()
    before = (entry / name).read_bytes()
    damage(entry / name)
    with caplog.at_level("WARNING", logger="ftkit"):
        assert content(encoded()) == whole
    assert f"the tokenized rows in {entry} are damaged" in caplog.text
    assert (entry / name).read_bytes() == before
    assert list(folder.iterdir()) == [entry]


def test_what_was_not_used_for_longest_makes_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        encoded(RECORDS[number:])
    entries = sorted(
        folder.iterdir(), key=lambda entry: json.loads((entry / "index.json").read_text())["rows"]
    )
    for age, entry in enumerate(entries):
        os.utime(entry, (10_000 + age, 10_000 + age))
    encoded(RECORDS[2:])
    size = sum(path.stat().st_size for path in entries[0].iterdir())
    monkeypatch.setattr(cache, "_MOST_BYTES", 3 * size + size // 2)
    encoded(RECORDS[3:])
    left = {json.loads((entry / "index.json").read_text())["rows"] for entry in folder.iterdir()}
    assert left == {40, 38, 37}, "the one with 39 rows is the oldest, as that with 38 was used again"
