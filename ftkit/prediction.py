"""Predict: answers for new texts from a finished run.

Files and streams are answered part by part, so that memory does not grow with them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ftkit.data.jsonlines import parse_object
from ftkit.dataset import read_unlabelled
from ftkit.errors import FtkitError, InputError, UsageError
from ftkit.records import Prediction, Record
from ftkit.run import Run, refuse_other_kind
from ftkit.training.setup import Estimator

log = logging.getLogger("ftkit")

_FIRST_PART, _LARGEST_PART = 64, 4096


def predict(run: str | Path | Run, texts: Iterable[str | tuple[str, str]]) -> list[Prediction]:
    """One prediction a text, in order.

    Args:
        run: A finished run, or its folder; a `Run` keeps its model from one call to the next.
        texts: Texts, or pairs of texts.

    Raises:
        UsageError: This is no finished run, there are single texts beside pairs, or something else.
    """
    found = run if isinstance(run, Run) else Run.load(run)
    if isinstance(texts, (str, Mapping)):
        raise UsageError("texts are a list, also where there is one", hint="ftkit.predict(run, [text])")
    texts = list(texts)
    pairs = [text for text in texts if not isinstance(text, str)]
    if not pairs:
        return predict_records(found, records_of_texts(found, [str(text) for text in texts], None))
    for number, text in enumerate(texts, 1):
        pair = isinstance(text, (tuple, list)) and len(text) == 2
        if not pair or not all(isinstance(part, str) for part in text):
            listed = isinstance(text, (str, tuple, list))
            said = "is no pair, as others are" if listed else "is neither a text nor a pair"
            raise UsageError(said, where=f"text {number}", hint="give texts, or (text, text_pair) for each")
    firsts, seconds = zip(*pairs, strict=True)
    return predict_records(found, records_of_texts(found, firsts, seconds))


def explained_records(run: Run, records: Sequence[Record]) -> list[dict[str, Any]]:
    """The prompt of each record, its shots and why they were chosen, and what the model made of it.

    Raises:
        UsageError: The run does not prompt.
    """
    from ftkit.training.setup import Explains

    refusal = UsageError(f"--explain is for method prompt, not for {run.recipe.method.type}")
    if run.recipe.method.trains:
        raise refusal
    refuse_other_kind(run, records)
    estimator = _estimator(run)
    if not isinstance(estimator, Explains):
        raise refusal
    return estimator.explain(records)


def predict_records(run: Run, records: Sequence[Record]) -> list[Prediction]:
    """One prediction a record, in order.

    Raises:
        UsageError: Single texts for a run on pairs, or pairs for one on single texts.
    """
    refuse_other_kind(run, records)
    return _estimator(run).predict(records) if records else []


def predict_stream(run: Run, records: Iterable[Record]) -> Iterator[tuple[Record, Prediction]]:
    """Each record with its prediction, in order, as soon as the part that it is in was predicted.

    Raises:
        UsageError: As for `predict_records`, when the record is reached.
    """
    for part in _parts(_of_kind(run, records)):
        yield from zip(part, _estimator(run).predict(part), strict=True)


def _of_kind(run: Run, records: Iterable[Record]) -> Iterator[Record]:
    for record in records:
        refuse_other_kind(run, [record])
        yield record


def _estimator(run: Run) -> Estimator:
    """The run's estimator, loaded when it is first needed and kept with the run."""
    from ftkit.estimator import finished_estimator

    if run.estimator is None:
        run.estimator = finished_estimator(run, apart=True)
    return run.estimator


def _parts(records: Iterable[Record]) -> Iterator[list[Record]]:
    """The records in growing parts: the first answers come soon, later ones in full batches.

    Where a record cannot be read, those before it are a part of their own.
    """
    size, rest = _FIRST_PART, iter(records)
    part: list[Record] = []
    try:
        for record in rest:
            part.append(record)
            if len(part) == size:
                yield part
                size, part = min(2 * size, _LARGEST_PART), []
    except FtkitError:
        if part:
            yield part
        raise
    if part:
        yield part


def records_of_texts(run: Run, texts: Sequence[str], pairs: Sequence[str] | None) -> list[Record]:
    """Records of typed texts, and of the second texts where there are pairs.

    Raises:
        UsageError: There are not as many second texts as first ones.
        InputError: A text is empty.
    """
    if pairs and len(pairs) != len(texts):
        raise UsageError(
            f"{len(texts)} texts but {len(pairs)} second texts", hint="give one --text-pair each"
        )
    if pairs and not run.recipe.task.takes_pairs:
        raise UsageError(f"the task {run.recipe.task.type} takes single texts", hint="leave --text-pair out")
    values = run.recipe.task.inputs_of(texts, pairs or None)
    return [run.recipe.task.read(value, f"text {number}") for number, value in enumerate(values, 1)]


def records_of_lines(run: Run, lines: Iterable[bytes]) -> Iterator[Record]:
    """Records of lines, read as they are asked for: JSON objects with the recipe's columns, or texts."""
    numbered = ((f"standard input, line {n}", decoded(line, n)) for n, line in enumerate(lines, 1))
    filled = ((where, line) for where, line in numbered if line.strip())
    first = next(filled, ("", ""))
    lines_of_rows = chain([first] if first[1] else [], filled)
    if first[1].lstrip().startswith("{"):
        rows = ((where, parse_object(line, where)) for where, line in lines_of_rows)
        return read_unlabelled(rows, run.recipe.data.named(), run.recipe.task)
    task = run.recipe.task
    return (task.read(task.inputs_of([line], None)[0], where) for where, line in lines_of_rows)


def records_of_file(run: Run, path: Path, limit: int | None = None) -> Iterator[Record]:
    """Records of a file with the recipe's columns, read as they are asked for; labels are not needed."""
    source = run.recipe.data.for_file(path)
    if path.suffix.lower() == ".txt" and source.format is None and run.recipe.task.answer != "document":
        log.warning("  note: %s is one text; with --set data.format=lines each of its lines is one", path)
    return read_unlabelled(islice(source.rows("test"), limit), source, run.recipe.task)


def decoded(line: bytes, number: int) -> str:
    """A line of standard input as text, without its end and a byte order mark.

    Raises:
        InputError: It is not UTF-8.
    """
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", where=f"standard input, line {number}") from None
