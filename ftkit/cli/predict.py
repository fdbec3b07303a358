"""`ftkit predict`."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from ftkit.cli import app, console, options


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
    limit: options.Limit = None,
    json_: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Predict with a finished run; one line of JSON a row, in order."""
    console.start(quiet=quiet, verbose=verbose)
    from ftkit.errors import InputError, UsageError
    from ftkit.evaluation import find_run
    from ftkit.prediction import predict_records, records_of_file, records_of_lines, records_of_texts

    if bool(file) == bool(text):
        raise UsageError("give one of FILE, - or --text", hint='for example --text "Where is my parcel?"')
    found = find_run(run)
    if text:
        records = records_of_texts(found, text, text_pair)
    elif file == "-":
        records = records_of_lines(found, islice(sys.stdin.buffer, limit))
    elif not Path(str(file)).exists():
        raise InputError("no such file or folder", where=str(file))
    else:
        records = records_of_file(found, Path(str(file)), limit)
    if not records:
        raise InputError(
            "there are no rows to predict for", where="standard input" if file == "-" else str(file)
        )
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
