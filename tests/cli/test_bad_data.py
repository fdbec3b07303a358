"""Data that is wrong is refused with exit code 3: the file, the line, what is there and what is needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

GOOD = b"text,label\nred,red\ngreen,green\n"
RED = b'{"text": "red", "label": "red"}\n'

# A training file, and what is to be read about it.
FILES = [
    # No text at all.
    ("train.csv", b"", "train.csv: the file is empty"),
    ("train.csv", b"\xef\xbb\xbf\n \n", "train.csv: the file is empty"),
    ("train.csv", b"text,label\n", "train.csv: the train split has no rows"),
    ("train.csv", b"PK\3\4\0\0\0\0\1\2,\n", "train.csv: the file is binary, not text"),
    ("train.csv", GOOD.decode().encode("utf-16"), "the file is UTF-16 text\n  set data.encoding: utf-16"),
    ("train.csv", b"text,label\nred,red\ncaf\xe9,green\n", "train.csv:3: is not utf-8 text (byte 0xe9)"),
    ("train.parquet", GOOD, "train.parquet: cannot be read as parquet"),
    # Columns.
    ("train.csv", b"txt,label\nred,red\n", "no column 'text' or 'sentence' or 'sentence1' for the field "
     "'text'\n  found: txt, label; map one with data.columns: {text: COLUMN}"),
    ("train.csv", b"text,intent\nred,red\n", "no column 'label' or 'labels' for the field 'label'\n"
     "  found: text, intent; map one with data.columns: {label: COLUMN}"),
    ("train.csv", b"text,text,label\na,b,c\n", "train.csv:1: column 'text' stands twice in the header"),
    ("train.csv", b"text;label\nred;red\n", "train.csv:1: the header is one column, 'text;label'"),
    # Broken rows.
    ("train.csv", GOOD + b"blue\n", "train.csv:4: 1 value where the header has 2"),
    ("train.csv", GOOD + b'"blue,blue\nred,red\n', "train.csv:4: a quotation mark is opened here and never"),
    ("train.csv", b'"text,label\nred,red\n', "train.csv:1: a quotation mark is opened here and never closed"),
    ("train.jsonl", RED + b'{"text": "green"', "train.jsonl:2: broken JSON: Expecting ',' delimiter"),
    ("train.jsonl", RED + b'{"text": "green", "label": "red", "text": "blue"}',
     "train.jsonl:2: broken JSON: the key 'text' stands twice in one object"),
    ("train.json", b'[{"text": "green", "label": "red", "label": "green"}]',
     "train.json: broken JSON: the key 'label' stands twice in one object"),
    ("train.jsonl", b"[" * 100_000, "train.jsonl:1: broken JSON: maximum recursion depth"),
    ("train.jsonl", RED + b'{"text": "red"}\n', "train.jsonl:2: the row has no answer, as other rows do"),
    ("train.json", RED, "train.json: a list of objects (or an object with `data`) is needed"),
    # Values.
    ("train.csv", GOOD + b" ,green\n", "train.csv:4: the text is empty"),
    ("train.jsonl", RED + b'{"text": null, "label": "a"}', "train.jsonl:2: the text is missing (null)"),
    ("train.jsonl", RED + b'{"text": 3, "label": "a"}', "train.jsonl:2: the text is 3, not a string"),
    ("train.jsonl", RED + rb'{"text": "\ud800", "label": "a"}', "train.jsonl:2: the text holds half a"),
    # Labels.
    ("train.csv", GOOD + b"blue,\n", "train.csv:4: the row has no answer, as other rows do"),
    ("train.csv", GOOD + b'blue," "\n', "train.csv:4: the label is empty\n  fill it in or remove the row"),
    ("train.csv", b"text,label\nred,\ngreen,\n", "train.csv:2: no training row has an answer"),
    ("train.csv", b"text,label\nred,red\nblue,red\n", "only the label 'red': there is nothing to tell apart"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "says"), FILES)
def test_training_file(
    name: str,
    content: bytes,
    says: str,
    folder: Path,
    say: Callable[..., None],
    refused: Callable[..., str],
) -> None:
    (folder / name).write_bytes(content)
    say(f"data: {{train_file: {name}}}")
    refused(3, "check", "recipe.yaml", says=(f"{folder / name}", says))


LATIN = "text,label\nred,red\ncafé,green\n".encode("latin-1")
UTF = "text,label\nred,red\ncafé,green\n".encode()


@pytest.mark.parametrize(
    ("content", "encoding", "code", "says"),
    [
        (UTF, "latin-1", 3, "train.csv:3: data.encoding says latin-1, but every line of the file"),
        (UTF, "utf-16", 3, "is not utf-16 text"),
        (LATIN, "utf9", 2, "data.encoding: 'utf9' is not an encoding Python knows\n  common ones: utf-8"),
    ],
)  # fmt: skip
def test_encoding(
    content: bytes, encoding: str, code: int, says: str, folder: Path, refused: Callable[..., str]
) -> None:
    (folder / "train.csv").write_bytes(content)
    refused(code, "check", "recipe.yaml", "--set", f"data.encoding={encoding}", says=says)


@pytest.mark.parametrize(
    ("data", "says", "hint"),
    [
        (
            "{train_file: trian.csv}",
            "trian.csv: no such file or folder",
            "did you mean 'train.csv'?",
        ),
        ("{train_file: far/train.csv}", "far/train.csv: no such file", "FOLDER/far does not exist either"),
        (
            "{train_file: train.csv, test_file: other.csv}",
            "the label 'gren' is not among the 2 labels of the training data; did you mean 'green'?",
            "labels: green, red",
        ),
        (
            "{train_file: train.csv, columns: {text: a}}",
            "no column 'a' for the field 'text'",
            "found: text, label",
        ),
        (
            "{train_file: train.csv, columns: {text: 0, label: 7}}",
            "no column 7 for the field 'label'",
            "found: 0, 1",
        ),
        (
            "{train_file: train.csv, test_fraction: 0.01}",
            "leaves the train or test split empty",
            "name a data.test_file or hold out a larger share",
        ),
        ("{dataset_name: ./nowhere}", "FOLDER/nowhere", ""),
    ],
)
def test_data_block(
    data: str, says: str, hint: str, folder: Path, say: Callable[..., None], refused: Callable[..., str]
) -> None:
    (folder / "other.csv").write_text("text,label\nred,red\ngreen,gren\n")
    say(f"data: {data}")
    refused(
        3,
        "check",
        "recipe.yaml",
        says=(says.replace("FOLDER", str(folder)), hint.replace("FOLDER", str(folder))),
    )


@pytest.mark.parametrize(
    ("task", "code", "says"),
    [
        ("{type: classification, labels: [red, blue]}", 3, "train.csv:3: the label 'green' is not among the "
         "2 labels that task.labels names\n  labels: red, blue"),
        ("{type: classification, class_weights: {blue: 2}}", 2, "task.class_weights: 'blue' is no label; "
         "labels: green, red"),
    ],
)  # fmt: skip
def test_task_block(
    task: str, code: int, says: str, say: Callable[..., None], refused: Callable[..., str]
) -> None:
    say(f"task: {task}")
    refused(code, "check", "recipe.yaml", says=says)


def test_training_refuses_data_as_the_check_does(folder: Path, refused: Callable[..., str]) -> None:
    (folder / "train.csv").write_bytes(GOOD + b"blue\n")
    refused(3, "finetune", "recipe.yaml", says="train.csv:4: 1 value where the header has 2")


def test_a_hub_data_set_without_a_network(
    folder: Path, say: Callable[..., None], refused: Callable[..., str]
) -> None:
    say("data: {dataset_name: stanfordnlp/sst2}")
    refused(3, "finetune", "recipe.yaml", says=(
        "data set stanfordnlp/sst2: cannot be loaded", "without a network, give local files under data",
    ))  # fmt: skip


ODD = "next\x85line, paragraph\u2028end, form\x0cfeed"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", f'text,label\n"{ODD}",red\r\n\r\n"two\nlines, ""quoted""",green\n'),
        ("train.jsonl", "\n".join(json.dumps({"text": ODD, "label": n}, ensure_ascii=False) for n in "ab")),
        ("train.tsv", f'text\tlabel\n{ODD}\ta\n"a lone mark\tb\n'),
        ("train.csv", "\ufeff\n\ntext,label,,\nred,red,,\ngreen,green,,\n"),
    ],
    ids=["csv", "jsonl", "tsv", "spreadsheet"],
)
def test_what_does_not_end_a_row(
    name: str, content: str, folder: Path, say: Callable[..., None], ftkit: Callable[..., object]
) -> None:
    (folder / name).write_bytes(content.encode())
    say(f"data: {{train_file: {name}}}")
    checked = ftkit("check", "recipe.yaml", "--json")
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["train"] == "2 rows"
