"""`ftkit predict`."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftkit.cli import app, console, options

if TYPE_CHECKING:
    from ftkit.records import Prediction, Record
    from ftkit.run import Run
    from ftkit.tasks.base import Task


class Format(StrEnum):
    """How predictions are printed."""

    jsonl = "jsonl"
    conll = "conll"


@app.command()
def predict(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or the recipe that made one.")],
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE|-", help="Rows to predict for; - reads lines or JSON objects."),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text to predict for; repeatable.")] = None,
    text_pair: Annotated[
        list[str] | None, typer.Option(help="The second text of each --text, for a run on pairs.")
    ] = None,
    format_: Annotated[
        Format,
        typer.Option("--format", help="conll prints a word and its tag a line, for tasks that tag words."),
    ] = Format.jsonl,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Show the prompt, its shots and why, and what each candidate got."),
    ] = False,
    set_: options.Set = None,
    limit: options.Limit = None,
    json_: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Predict with a finished run; one line of JSON a row, in order."""
    console.start(quiet=quiet, verbose=verbose)
    from ftkit.errors import UsageError
    from ftkit.evaluation import find_run
    from ftkit.prediction import explained_records, predict_stream

    if bool(file) == bool(text):
        raise UsageError("give one of FILE, - or --text", hint='for example --text "Where is my parcel?"')
    if json_ and format_ is Format.conll:
        raise UsageError("--json and --format conll are two forms of output", hint="give one of them")
    found = find_run(run, set_ or ())
    task = found.recipe.task.apart()
    if format_ is Format.conll and not task.tags_words:
        raise UsageError(f"--format conll: the task {task.type} does not tag words")
    records = _records(found, file or "", text or (), text_pair, limit)
    if explain:
        _explain(explained_records(found, list(records)), as_object=json_)
        return
    answered = predict_stream(found, records)
    if json_ and format_ is Format.jsonl:
        console.emit_json({"predictions": [_answer(task, *pair) for pair in answered]})
    elif format_ is Format.conll:
        for number, pair in enumerate(answered):
            console.emit(("\n" if number else "") + _conll(task, *pair))
    else:
        for record, prediction in answered:
            console.emit(
                task.prediction_text(prediction, record)
                if text
                else json.dumps(_answer(task, record, prediction), ensure_ascii=False)
            )


def _records(
    run: Run, file: str, texts: Sequence[str], pairs: Sequence[str] | None, limit: int | None
) -> Iterator[Record]:
    """The rows to predict for, typed or read as they are needed.

    Raises:
        InputError: There are none.
        UsageError: An option goes with another source of rows.
    """
    from ftkit.errors import InputError, UsageError
    from ftkit.prediction import records_of_file, records_of_lines, records_of_texts

    if texts:
        return islice(records_of_texts(run, texts, pairs), limit)
    if pairs:
        raise UsageError("--text-pair goes with --text", hint="a file has the second texts in a column")
    if file == "-":
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError("several processes cannot read standard input together", hint="give a FILE")
        if sys.stdin is None:
            raise UsageError("standard input is closed", hint="give a FILE")
        records: Iterator[Record] = islice(records_of_lines(run, sys.stdin.buffer), limit)
    elif Path(file).exists():
        records = records_of_file(run, Path(file), limit)
    else:
        raise InputError("no such file or folder", where=file)
    first = next(records, None)
    if first is None:
        where = "standard input" if file == "-" else file
        raise InputError("there are no rows to predict for", where=where)
    return chain([first], records)


def _explain(explained: list[dict[str, Any]], *, as_object: bool) -> None:
    """Prompts and scores for a person, or as JSON."""
    if as_object:
        console.emit_json({"explained": explained})
        return
    for one in explained:
        lines = [one["prompt"], ""]
        for number, shot in enumerate(one["shots"], 1):
            lines.append(f"shot {number}: {shot['answer']}  ({shot['why']})")
        rows = sorted(one.get("candidates", ()), key=lambda row: -row["probability"])
        if rows:
            figures = ("probability", "score", "log_likelihood")
            table = [(repr(r["text"]), *(f"{r[f]:.4f}" for f in figures), str(r["tokens"])) for r in rows]
            lines.append(console.table(("candidate", *figures, "tokens"), table))
        else:
            lines.append(f"written: {one['written']!r}")
        console.emit("\n".join(lines) + "\n")


def _answer(task: Task, record: Record, prediction: Prediction) -> dict[str, Any]:
    pair = {} if record.text_pair is None else {"text_pair": record.text_pair}
    name = {} if record.id is None else {"id": record.id}
    return {**name, "text": record.text, **pair, **task.prediction_json(prediction, record)}


def _conll(task: Task, record: Record, prediction: Prediction) -> str:
    """A word and its tag a line."""
    tags = task.word_tags(prediction)
    # A line end or a tab inside a word would make two words of it.
    words = (re.sub(r"[\t\r\n]", " ", record.text[start:end]) for start, end in record.words)
    return "\n".join(f"{word}\t{tag}" for word, tag in zip(words, tags, strict=True))
