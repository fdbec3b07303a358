"""Solving: from records to predictions with one set of shots."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from ftkit.errors import FtkitError, InputError
from ftkit.prompts.answering import Answerer, Asked, Generating, Ranking, mean
from ftkit.prompts.prompting import spoken
from ftkit.prompts.shots import Shot, Shots
from ftkit.records import Prediction, Record
from ftkit.training.processes import processes
from ftkit.training.setup import Show

log = logging.getLogger("ftkit")

_CHUNK = 256


class Journal:
    """What the model has said so far, on disk, so that a killed run goes on where it was.

    Args:
        path: The file; `None` to keep nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._said: dict[str, Any] = {}
        if path is not None and path.is_file():
            with path.open(encoding="utf-8") as file:
                for line in file:
                    # A killed run leaves a part of one.
                    with suppress(ValueError):
                        entry = json.loads(line)
                        self._said[entry["key"]] = entry["said"]
            if self._said:
                log.info("  %d answers were found by an earlier, unfinished run", len(self._said))

    def get(self, key: str) -> Any:
        return self._said.get(key)

    def add(self, keys: Sequence[str], said: Sequence[Any]) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for key, one in zip(keys, said, strict=True):
                # The line break comes first: it ends what a killed run may have left.
                file.write("\n" + json.dumps({"key": key, "said": one}))


class Solver:
    """Asks a model about records.

    Args:
        answerer: The way to get answers.
        shots: The solved examples.
        number: How many of them a prompt should hold.
        max_length: The most tokens that a prompt with an answer may have.
    """

    def __init__(self, answerer: Answerer, shots: Shots, *, number: int, max_length: int) -> None:
        self.answerer = answerer
        self.shots = shots
        self.number = number
        self.max_length = max_length
        self.journal = Journal(None)

    def predict(self, records: Sequence[Record]) -> list[Prediction]:
        """One prediction a record, in order; every process asks about its share and gets all."""
        state = processes()
        share = records[state.process_index :: state.num_processes]
        mine: list[Prediction] = []
        dropped = 0
        for start in range(0, len(share), _CHUNK):
            asked = self.ask(share[start : start + _CHUNK])
            dropped += sum(len(one.prompt.shots) < self.number for one in asked)
            mine += self.answerer.predictions(asked, self._said(asked))
        if dropped:
            log.warning(
                "  note: %d of %d prompts do not hold all %d shots: there was no room within %d tokens, or a "
                "shot was the row itself",
                dropped, len(share), self.number, self.max_length,
            )  # fmt: skip
        if state.num_processes == 1:
            return mine
        parts = gather_object([mine])
        return [parts[n % state.num_processes][n // state.num_processes] for n in range(len(records))]

    def mean_probabilities(self, records: Sequence[Record]) -> dict[str, float]:
        """How likely each candidate is found on average, before any calibration."""
        assert isinstance(self.answerer, Ranking)
        asked = self.ask(records)
        said = self._said(asked)
        self.answerer.ask_free(asked)
        return mean([self.answerer.probabilities(one, row) for one, row in zip(asked, said, strict=True)])

    def explain(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """The prompt of each record, the shots in it and why, and what the model said."""
        asked, answerer = self.ask(records), self.answerer
        return [
            {
                "prompt": answerer.prompting.shown(one.prompt, answerer.tokenizer),
                "shots": [asdict(shot) for shot in one.prompt.shots],
                **answerer.explained(one, said),
            }
            for one, said in zip(asked, self._said(asked), strict=True)
        ]

    def answer(self, record: Record, show: Show) -> str:
        """What the model writes after a conversation, whose beginning is left out where it does not fit."""
        assert isinstance(self.answerer, Generating)
        opening = [turn for turn in record.turns if turn.role == "system"]
        said = spoken(record)[1]
        (shots,) = self.shots.of([self.answerer.prompting.questions.fields(record)])
        for first in range(0, len(said), 2):
            left = replace(record, turns=(*opening, *said[first:]))
            if asked := self._fitting(left, shots):
                return self.answerer.writer.stream(asked.row, show)
        raise self._too_long(record)

    def ask(self, records: Sequence[Record]) -> list[Asked]:
        """The prompts of records, with as many shots as there is room for."""
        fields = [self.answerer.prompting.questions.fields(record) for record in records]
        found = self.shots.of(fields)
        return [self._fitted(record, shots) for record, shots in zip(records, found, strict=True)]

    def _fitted(self, record: Record, shots: Sequence[Shot]) -> Asked:
        """A prompt that fits.

        Raises:
            InputError: Not even the row alone fits, or an answer has no token.
        """
        if asked := self._fitting(record, shots):
            return asked
        raise self._too_long(record)

    def _fitting(self, record: Record, shots: Sequence[Shot]) -> Asked | None:
        """A prompt that fits, if there is one; the shots farthest from the question go first."""
        prompting = self.answerer.prompting
        for first in range(len(shots) + 1):
            prompt = prompting.prompt(shots[first:], record, self.answerer.tokenizer)
            try:
                row, tokens = self.answerer.row(record, prompt)
            except FtkitError as error:
                raise InputError(error.what, where=record.where) from None
            if tokens <= self.max_length:
                return Asked(record, prompt, row, self.shots.key(shots[first:]))
        return None

    def _too_long(self, record: Record) -> InputError:
        return InputError(
            f"the prompt has more than {self.max_length} tokens, even without shots",
            where=record.where,
            hint="a query is never cut: shorten it, or raise model.max_length within the model's positions",
        )

    def _said(self, asked: Sequence[Asked]) -> list[Any]:
        """What the model says, as far as it is not known."""
        keys = [_key(one) for one in asked]
        known = {key: said for key in keys if (said := self.journal.get(key)) is not None}
        new = {key: one for key, one in zip(keys, asked, strict=True) if key not in known}
        said = self.answerer.say(list(new.values())) if new else []
        self.journal.add(list(new), said)
        known.update(zip(new, said, strict=True))
        return [known[key] for key in keys]


def _key(asked: Asked) -> str:
    """The same for the same question; the loss of the right text is a part of what is said to it."""
    content = (asked.prompt.text, asked.prompt.after, asked.row, asked.record.target)
    return hashlib.sha256(repr(content).encode()).hexdigest()
