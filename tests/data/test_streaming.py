"""Rows in a file instead of in memory: the same results, few of them held at once, few of them pulled."""

from __future__ import annotations

import json
import pickle
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny import WORDS, _gpt2, write_colours

import ftkit
from ftkit import stored
from ftkit.data.source import DataSource
from ftkit.dataset import load_records
from ftkit.errors import InputError
from ftkit.records import Record, Writing
from ftkit.stored import Numbers, Stored
from ftkit.tasks.classification import Classification
from ftkit.tasks.language_modeling import LanguageModeling

# The same results -------------------------------------------------------------------------

COLOURS = {"validation_fraction": 0.2, "test_fraction": 0.2}
DOCUMENTS = {"validation_fraction": 0.1}


@pytest.mark.parametrize(
    ("task", "architecture", "data"),
    [
        ({"type": "classification", "class_weights": "balanced"}, "bert", COLOURS),
        ({"type": "language_modeling"}, "gpt2", DOCUMENTS),
        ({"type": "language_modeling", "documents": "separate", "packing": True}, "gpt2", DOCUMENTS),
        ({"type": "text2text"}, "t5", COLOURS | {"columns": {"text": "text", "target": "label"}}),
    ],
    ids=["labels", "joined documents", "packed documents", "texts"],
)
def test_a_run_is_the_same(
    task: dict[str, Any],
    architecture: str,
    data: dict[str, Any],
    recipe: dict[str, Any],
    tiny: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the bit, also where the numbers of the encoded rows do not fit into memory."""
    write_colours(tmp_path / "train.csv", 60, 0)
    recipe |= {
        "task": task,
        "model": {"name_or_path": str(tiny(architecture)), "max_length": 32},
        "data": {"train_file": str(tmp_path / "train.csv"), **data},
        "generation": {"max_new_tokens": 4},
    }
    runs = []
    for streaming in (False, True):
        # Each encodes for itself.
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{streaming}"))
        monkeypatch.setattr(stored, "_NUMBERS_HELD", 50 if streaming else 2**20)
        recipe["data"]["streaming"] = streaming
        run = ftkit.finetune(recipe, [f"output_dir={tmp_path / str(streaming)}"])
        known = {key: run.manifest[key] for key in ("data", "labels", "notes", "pairs")}
        known |= {key: run.manifest["training"][key] for key in ("truncated_rows", "steps", "best_step")}
        files = ("model/model.safetensors", "log.jsonl", "metrics.json", "predictions.jsonl")
        runs.append((known, [(run.folder / name).read_bytes() for name in files]))
        other = ftkit.evaluate(run.folder, [f"data.streaming={json.dumps(not streaming)}"])
        changes = [f"data.streaming: {streaming} -> {not streaming}"]
        assert other.metrics == {**run.metrics, "changes": changes}
    assert runs[0] == runs[1]


def test_notes_and_splits_are_the_same(tmp_path: Path) -> None:
    rows = [{"text": f"row {n % 90} {'x' * (n % 5)}", "label": "abc"[n % 3]} for n in range(100)]
    write_rows(tmp_path / "train.jsonl", [*rows, *rows[:7]])
    write_rows(tmp_path / "test.jsonl", rows[3:9])
    plain, streamed = (
        load_records(
            DataSource(data_dir=str(tmp_path), validation_fraction=0.3, streaming=streaming),
            Classification(labels=["a", "b", "c", "d"]),
        )
        for streaming in (False, True)
    )
    assert {split: list(rows) for split, rows in streamed.splits.items()} == {
        split: list(rows) for split, rows in plain.splits.items()
    }
    assert len(plain.notes) == 3, "a label without rows, repeated texts, a split that shares rows"
    assert (streamed.notes, streamed.labels) == (plain.notes, plain.labels)
    assert streamed.fingerprints() == plain.fingerprints()


# Memory -----------------------------------------------------------------------------------

ROWS, TEXT = 4000, " ".join(WORDS)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@contextmanager
def most_bytes_a_row(rows: int, most: float) -> Iterator[None]:
    """Python's objects take at most so many bytes a row at any time, besides what is always needed."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000 + most * rows, f"{peak / rows:.0f} bytes a row"


def test_rows_are_not_in_memory(tmp_path: Path) -> None:
    """Reading, settling, cutting and noting, and going through them."""
    rows = [{"text": f"{TEXT} {n}", "label": "abc"[n % 3]} for n in range(ROWS)]
    write_rows(tmp_path / "train.jsonl", rows)
    data = {"data_dir": str(tmp_path), "validation_fraction": 0.1}
    source, in_memory = DataSource(**data, streaming=True), DataSource(**data)
    load_records(source, Classification(), limit=10)
    with most_bytes_a_row(ROWS, 60):
        dataset = load_records(source, Classification())
        dataset.fingerprints()
    with pytest.raises(AssertionError, match="bytes a row"), most_bytes_a_row(ROWS, 60):
        load_records(in_memory, Classification())


@pytest.mark.parametrize("documents", ["packed", "separate"])
def test_encoded_rows_are_not_in_memory(documents: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_NUMBERS_HELD", 1000)
    head = LanguageModeling(documents=documents).objective((), (), family="decoder", label_smoothing=0.0)
    tokenizer: Any = _gpt2(Path())
    head.prepare(tokenizer, 32)
    records = Stored(Record(TEXT[:60], target=Writing(TEXT[:60]), where=str(n)) for n in range(ROWS))
    monkeypatch.setattr("ftkit.training.documents._CHUNK", 10)
    with most_bytes_a_row(ROWS, 30):
        found = head.training_rows(records, tokenizer, 32)
    assert sum(len(row["input_ids"]) for row in found.features) >= 60 * ROWS


# What is pulled ---------------------------------------------------------------------------


def test_only_the_rows_of_the_limit_are_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"text": f"row {n}", "label": "ab"[n % 2]} for n in range(3)])
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("this line is broken\n")
    source = DataSource(data_dir=str(tmp_path), streaming=True)
    assert len(load_records(source, Classification(), limit=3)["train"]) == 3
    with pytest.raises(InputError, match=r"train\.jsonl:4: broken JSON"):
        load_records(source, Classification())


@pytest.mark.parametrize("streaming", [False, True])
def test_a_limit_holds_out_no_other_rows(streaming: bool, tmp_path: Path) -> None:
    """Else a run that was tried on few rows would be scored on rows that it has learned."""
    write_rows(tmp_path / "train.jsonl", [{"text": f"row {n}", "label": "ab"[n % 2]} for n in range(40)])
    source = DataSource(data_dir=str(tmp_path), test_fraction=0.25, streaming=streaming)
    whole, few = (load_records(source, Classification(), limit=limit) for limit in (None, 6))
    assert {split: len(few[split]) for split in few.splits} == {"train": 6, "test": 6}
    assert all(list(few[split]) == whole[split][:6] for split in few.splits)


# The file ---------------------------------------------------------------------------------


def test_a_full_disk_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(InputError) as error:
            Stored(Record("x" * 1000) for _ in range(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(error.value).startswith(f"{tmp_path}: a temporary file cannot be written: File too large")
    assert "make room, or let TMPDIR name a folder on another disk" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_for_the_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nowhere: a temporary file cannot be written: No such file"):
        Stored([Record("a")])


def test_rows_are_found_like_those_of_a_list() -> None:
    records = [Record(f"row {number}") for number in range(250)]
    kept = Stored(records)
    assert list(kept) == records
    assert (kept[0], kept[249], kept[-1], kept[-250]) == (records[0], records[-1], records[-1], records[0])
    for part in (slice(3, 9), slice(None, 5), slice(-5, None), slice(240, 999), slice(9, 3), slice(0, 50, 7)):
        assert kept[part] == records[part]
    assert kept[::-1] == records[::-1]
    assert records[100] in kept
    assert list(Stored(())) == []
    with pytest.raises(IndexError):
        kept[250]


@pytest.mark.parametrize("held", [1, 7, 100])
def test_numbers_are_found_like_those_of_an_array(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_NUMBERS_HELD", held)
    numbers, expected = Numbers("i"), []
    for number in range(0, 60, 3):
        numbers.append(number)
        numbers.extend([-number, number + 1])
        expected += [number, -number, number + 1]
        if number % 2:
            assert numbers[:].tolist() == expected, "reading does not end writing"
    assert len(numbers) == len(expected)
    assert [number for part in numbers.parts() for number in part.tolist()] == expected
    assert numbers[5] == expected[5]
    assert pickle.loads(pickle.dumps(numbers)).tolist() == expected
