"""`ftkit predict`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftkit.cli import app, console, options

if TYPE_CHECKING:
    from ftkit.data.base import Row
    from ftkit.run import Run


@app.command()
def predict(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or the recipe that made one.")],
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE|-", help="Rows to predict for; - reads lines or JSON objects."),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text to predict for; repeatable.")] = None,
    limit: options.Limit = None,
    json_: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Predict with a finished run; one line of JSON a row, in order."""
    console.start(quiet=quiet, verbose=verbose)
    from itertools import islice

    from ftkit.errors import UsageError
    from ftkit.evaluation import find_run
    from ftkit.prediction import predict_records, records_of

    if bool(file) == bool(text):
        raise UsageError("give one of FILE, - or --text", hint='for example --text "Where is my parcel?"')
    found = find_run(run)
    rows = _typed(text) if text else _lines(sys.stdin) if file == "-" else _rows(found, str(file))
    records = records_of(found, islice(rows, limit))
    answers = []
    for record, prediction in zip(records, predict_records(found, records), strict=True):
        pair = {} if record.text_pair is None else {"text_pair": record.text_pair}
        scores = {name: round(score, 6) for name, score in prediction.scores.items()}
        answer = found.recipe.task.answer_json(prediction.value)
        answers.append({"text": record.text, **pair, **answer, "scores": scores})
    _print(answers, as_object=json_, readable=bool(text))


def _print(answers: list[dict[str, Any]], *, as_object: bool, readable: bool) -> None:
    if as_object:
        console.emit_json({"predictions": answers})
    elif readable:
        for answer in answers:
            chosen = answer["labels"] if "labels" in answer else [answer["label"]]
            named = ", ".join(f"{name} {answer['scores'][name]:.3f}" for name in chosen) or "(none)"
            console.emit(f"{named}  {answer['text']}")
    else:
        for answer in answers:
            console.emit(json.dumps(answer, ensure_ascii=False))


def _typed(texts: list[str]) -> Iterator[Row]:
    for number, text in enumerate(texts, 1):
        yield f"--text {number}", {"text": text}


def _lines(stream: Any) -> Iterator[Row]:
    """Standard input: a JSON object a line, or a text a line."""
    from ftkit.data.jsonlines import parse_object

    for number, line in enumerate(stream, 1):
        where = f"standard input, line {number}"
        if line.lstrip().startswith("{"):
            yield where, parse_object(line, where)
        elif line.strip():
            yield where, {"text": line.rstrip("\r\n")}


def _rows(run: Run, file: str) -> Iterator[Row]:
    source = run.recipe.data.for_file(Path(file))
    return source.rows("test")
