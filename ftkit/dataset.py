"""From a recipe's data and task to records by split."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, pairwise
from typing import Any

from ftkit.data.base import Row
from ftkit.data.source import DataSource
from ftkit.data.splits import Part, stratified_split
from ftkit.errors import FtkitError, InputError, UsageError
from ftkit.records import SPLITS, Dataset, Record, labelled
from ftkit.stored import Stored
from ftkit.tasks.base import Task

Keep = Callable[[Iterable[Record]], Sequence[Record]]
"""Where the records of a split are held: a list, or a file."""


@dataclass(slots=True)
class _Blank:
    """How many rows hold nothing, and the place of the first."""

    rows: int = 0
    first: str = ""


def load_records(
    data: DataSource,
    task: Task,
    *,
    labels: Sequence[str] | None = None,
    limit: int | None = None,
    trains: bool = True,
    wanted: Sequence[str] = SPLITS,
) -> Dataset:
    """Read the splits, find the labels, cut fractions off, and look for what is wrong.

    Args:
        data: Where the rows come from.
        task: How a row is read.
        labels: The labels of a finished run; by default those of the training rows.
        limit: Take at most this many rows of each split; what a share is held out of is read whole.
        trains: Whether a training split is needed, and is to be limited.
        wanted: The splits that are needed; the others are read only as far as these depend on them.

    Raises:
        InputError: A split is empty, a column is missing, a row is broken, a label is unseen.
    """
    names = data.split_names(_needed(data, wanted))
    if labels is None and "train" not in names and trains:
        raise UsageError("data: there is nothing to train on", hint="give data.train_file or a Hub set")
    notes: list[str] = []
    for split in ("validation", "test"):
        if getattr(data, f"{split}_fraction") and split in names:
            notes.append(f"the file of the {split} split is not read: data.{split}_fraction holds rows out")
            names = tuple(name for name in names if name != split)
    keep: Keep = Stored if data.streaming else list
    # Shots come from all training rows, however few are scored; and a limit does not make a share that is
    # held out another one, in which the rows of a limited training would be.
    shares = data.validation_fraction or data.test_fraction
    shots = not trains or "train" not in wanted
    most = {split: None if split == "train" and (shots or shares) else limit for split in names}
    answered = {split: labels is None and split == "train" for split in names}
    splits = {
        split: _read(data, task, split, most[split], keep, notes, must_answer=answered[split])
        for split in names
    }
    _refuse_uneven(splits, task)
    learned = labels is None and "train" in splits
    if learned:
        _refuse_unlabelled(splits["train"])
        seen = splits["train"]
        if len(seen) == most["train"]:
            # The first rows need not show all labels that the others have.
            others = (rows for split, rows in splits.items() if split != "train" and labelled(rows))
            seen = [*seen, *chain(*(rows for rows in others if not task.withholds(rows)))]
        labels = task.find_labels(seen, _declared(data, task))
    elif labels is None:
        labels = _known_labels(data, task)
    for split, records in splits.items():
        settled, found = task.settle(records, labels)
        splits[split] = records if settled is records else keep(settled)
        notes += [f"{split}: {note}" for note in found]
    if learned:
        _refuse_unlabelled(splits["train"])  # What stands for withheld answers is known by the labels alone.
    splits = _cut_fractions(splits, data, task)
    if limit is not None:
        for split, rows in splits.items():
            # Read whole, or held out of what was.
            if most.get(split) is None and not (shots and split == "train"):
                splits[split] = Part(rows, range(len(rows))[:limit])
    if not learned:
        splits = _with_train(splits, data, task, labels, notes)
    return Dataset(splits, tuple(labels), (*notes, *_notes(splits, task, labels)))


def _needed(data: DataSource, wanted: Sequence[str]) -> list[str]:
    """The splits to read for some of them: the training rows as well where a share of them is held out."""
    held_out = any(getattr(data, f"{split}_fraction", None) for split in wanted)
    return [split for split in SPLITS if split in wanted or (split == "train" and held_out)]


def _with_train(
    splits: dict[str, Sequence[Record]], data: DataSource, task: Task, labels: Sequence[str], notes: list[str]
) -> dict[str, Sequence[Record]]:
    """The splits, and the training rows where they are quickly looked through for the same texts.

    Those that cannot be read any more, or not by this recipe, keep nobody from scoring others.
    """
    if "train" in splits or not data.is_small("train"):
        return splits
    try:
        records = _read(data, task, "train", None, list, [], must_answer=False)
        train = list(task.settle(records, labels)[0])
    except FtkitError as error:
        reason = str(error).partition("\n")[0]
        notes.append(f"whether rows are also in the training data is not known: {reason}")
        return splits
    return {"train": train, **splits}


def _known_labels(data: DataSource, task: Task) -> tuple[str, ...]:
    """The label names where no training row shows them.

    Raises:
        UsageError: Nothing else does.
    """
    try:
        return task.find_labels((), _declared(data, task))
    except InputError:
        raise UsageError(
            "data: without a training split the labels are not known", hint="name them in task.labels"
        ) from None


def read_unlabelled(rows: Iterator[Row], data: DataSource, task: Task) -> Iterator[Record]:
    """Records to predict for, one at a time: answers are not needed, and not read."""
    return (replace(record, target=None) for record in _records(rows, data, task, answers=False))


def _read(
    data: DataSource,
    task: Task,
    split: str,
    limit: int | None,
    keep: Keep,
    notes: list[str],
    *,
    must_answer: bool,
) -> Sequence[Record]:
    blank = _Blank()
    rows = islice(data.rows(split), limit)
    records = keep(_records(rows, data, task, blank, must_answer=must_answer))
    if blank.rows:
        notes.append(f"{split}: {blank.rows} rows hold nothing and are left out (first: {blank.first})")
    if not records:
        files = ", ".join(map(str, data.files(split))) if not data.dataset_name else data.dataset_name
        raise InputError(f"the {split} split has no rows", where=files)
    return records


def _records(
    rows: Iterator[Row],
    data: DataSource,
    task: Task,
    blank: _Blank | None = None,
    *,
    answers: bool = True,
    must_answer: bool = False,
) -> Iterator[Record]:
    """Records in order; blank rows are counted in `blank`, or such a row is an error."""
    columns: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    known: dict[str, Any] = {}
    for where, values in rows:
        found = tuple(values)
        if found not in columns:
            # Rows of JSON may leave out what they have nothing in, and files may differ in their columns.
            its = _columns(found, known, data, task, where, answers=answers)
            _refuse_columns(its, task, found, where, must_answer=must_answer and not columns)
            known |= its
            columns[found] = its
        fields = {field: values[column] for field, column in columns[found].items()}
        if blank is not None and task.blank(fields):
            blank.rows += 1
            blank.first = blank.first or where
        else:
            name = values.get(data.id_column)
            records = task.read_all(fields, where)
            yield from (replace(one, id=name) for one in records) if isinstance(name, (str, int)) else records


def _columns(
    found: Sequence[Any],
    known: Mapping[str, Any],
    data: DataSource,
    task: Task,
    where: str,
    *,
    answers: bool,
) -> dict[str, Any]:
    """The column of every field that a row has.

    What the recipe names must be there in the first row; in later ones, what need not be may be missing. A
    field is read from one column, by whatever other names it could go.

    Args:
        found: The row's columns.
        known: The columns of the fields in the rows before it; empty for the first one.
        data: Which columns the recipe names.
        task: Which fields there are.
        where: The row's place.
        answers: Whether the fields of the answer are read.

    Raises:
        InputError: The row lacks the column of a field that it needs.
    """
    ignored = () if answers else task.answer_fields
    given = {field: column for field, column in data.columns.items() if field not in ignored}
    spare = {field for field, its in task.fields.items() if not its.required or field in task.answer_fields}
    missing = [
        column
        for field, column in given.items()
        if known and field in spare and isinstance(column, str) and column not in found
    ]
    columns = {}
    for field, column in task.columns([*found, *missing], given, where).items():
        its = known.get(field, column)
        if its in found and field not in ignored:
            columns[field] = its
        elif field not in spare:
            raise InputError(
                f"the row has no {its!r}", where=where, hint=f"it has: {', '.join(map(str, found))}"
            )
    return columns


def _declared(data: DataSource, task: Task) -> tuple[str, ...]:
    """Class names that a Hub set declares for the column of the answer."""
    for field in task.answer_fields:
        given = data.columns.get(field)
        for column in [given] if given is not None else task.fields[field].aliases:
            if names := data.class_names(str(column)):
                return names
    return ()


def _refuse_columns(
    columns: Mapping[str, Any], task: Task, found: Sequence[Any], where: str, *, must_answer: bool
) -> None:
    """Training needs the answer; and an answer read as the text would be a perfect score."""
    if must_answer and not task.answered_by(columns):
        answer = task.answer_fields[0]
        looked = " or ".join(
            repr(name) for field in task.answer_fields for name in task.fields[field].aliases
        )
        raise InputError(
            f"no column {looked} for the field {answer!r}",
            where=where,
            hint=f"found: {', '.join(map(str, found))}; map one with data.columns: {{{answer}: COLUMN}}, or "
            f"--set data.columns.{answer}=COLUMN",
        )
    for field, column in columns.items():
        if same := [other for other, taken in columns.items() if taken == column and other != field]:
            raise UsageError(
                f"data.columns: {field} and {same[0]} are both read from the column {column!r}", where=where
            )


def _refuse_unlabelled(train: Sequence[Record]) -> None:
    if not labelled(train):
        raise InputError("no training row has an answer", where=train[0].where)


def _refuse_uneven(splits: Mapping[str, Sequence[Record]], task: Task) -> None:
    """A split has answers in all rows or in none; all rows of a data set are pairs of texts, or none is."""
    pair = next((records[0] for records in splits.values() if task.takes_pairs), None)
    for records in splits.values():
        with_answers = labelled(records)
        for record in records:
            if (record.target is not None) != with_answers:
                bare, what = record if with_answers else records[0], "answer, as other rows do"
            elif pair is not None and (record.text_pair is None) != (pair.text_pair is None):
                bare, other = (record, pair) if record.text_pair is None else (pair, record)
                what = f"second text, and {other.where} has one"
            else:
                continue
            hint = "fill it in or remove the row"
            raise InputError(f"the row has no {what}", where=bare.where, hint=hint)


def _cut_fractions(
    splits: dict[str, Sequence[Record]], data: DataSource, task: Task
) -> dict[str, Sequence[Record]]:
    """Hold out validation and test shares of the training rows; both count from the whole."""
    whole = 0
    for split in ("test", "validation"):
        fraction = getattr(data, f"{split}_fraction")
        if not fraction or "train" not in splits:
            continue
        train = splits["train"]
        copies = _copies(train)
        texts = len(train) - len(copies)
        whole = whole or texts
        share = fraction * whole / texts
        if share >= 1:
            raise InputError(f"{whole} rows are too few to cut both fractions off", where=train[0].where)
        groups = (task.stratum(record) for record in train)
        splits["train"], splits[split] = stratified_split(
            train, groups, share, data.split_seed, pooled=task.strata_overlap, copies=copies
        )
        if not splits[split] or not splits["train"]:
            lines = "; a .txt file is one row, data.format: lines makes each of its lines one"
            raise InputError(
                f"{split}_fraction: {fraction} of {whole} rows leaves the train or {split} split empty",
                where=train[0].where,
                hint=f"name a data.{split}_file or hold out a larger share{lines if whole == 1 else ''}",
            )
    return {split: splits[split] for split in SPLITS if split in splits}


def _copies(records: Sequence[Record]) -> dict[int, int]:
    """The rows that ask what an earlier one asked, with the first that did."""
    asked = array("q", _questions(records))
    repeated = {before for before, after in pairwise(sorted(asked)) if before == after}
    firsts: dict[int, int] = {}
    copies = {}
    for row, number in enumerate(asked):
        if number in repeated and (first := firsts.setdefault(number, row)) != row:
            copies[row] = first
    return copies


def _notes(splits: dict[str, Sequence[Record]], task: Task, labels: Sequence[str]) -> Iterator[str]:
    """What is not wrong but should be known before training."""
    train = splits.get("train", ())
    if not train:
        return
    yield from task.notes(train, labels)
    questions = array("q", sorted(_questions(train)))
    if repeated := sum(before == after for before, after in pairwise(questions)):
        yield f"{repeated} of {len(train)} training rows repeat an earlier text"
    for split in ("validation", "test"):
        if splits.get(split) and not labelled(splits[split]):
            yield f"the {split} rows have no labels: nothing is scored on them"
        records = splits.get(split, ())
        if shared := [row for row, asked in enumerate(_questions(records)) if _holds(questions, asked)]:
            where = records[shared[0]].where
            many = "1 {split} row is" if len(shared) == 1 else "{n} {split} rows are"
            also = many.format(n=len(shared), split=split)
            yield f"{also} also in the training data (first: {where}): scores are too high"


def _questions(records: Sequence[Record]) -> Iterator[int]:
    """A number for each record's question: all questions themselves would be the whole text in memory.

    It has 64 bits: that any two of ten million questions share one happens in one run of 300,000.
    """
    return (hash(record.question()) for record in records)


def _holds(ordered: Sequence[int], number: int) -> bool:
    place = bisect_left(ordered, number)
    return place < len(ordered) and ordered[place] == number
