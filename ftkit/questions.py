"""Questions: what a task asks of a language model, in plain values and functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from ftkit.records import Prediction, Record, Writing


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer that can be ranked.

    Attributes:
        value: What it means: a label, or an option of the row.
        text: How it is written; several candidates may mean the same.
    """

    value: str
    text: str


@dataclass(frozen=True)
class Questions:
    """A task as questions and written answers.

    Attributes:
        template: Jinja that makes the question of a row, where the method gives none.
        fields: What a template can name of a record.
        shared: What it can name besides, the same in every row.
        candidates: The answers that a record can have; `None` where any text is one.
        same: Whether they are the same for every record.
        write: The right answer of a record as text.
        read: What a written answer says.
        unreadable: Why written answers could not be told apart; empty where they can.
        chat_template: What conversations are written by; `None` for the tokenizer's own.
    """

    template: str
    fields: Callable[[Record], Mapping[str, str]]
    write: Callable[[Record], str]
    read: Callable[[str, Record], Prediction]
    shared: Mapping[str, str]
    candidates: Callable[[Record], Sequence[Candidate]] | None = None
    same: bool = True
    unreadable: str = ""
    chat_template: str | None = None

    def choose(self, probabilities: Mapping[str, float]) -> Prediction:
        """The likeliest value with the probabilities of all; of equals the first."""
        return Prediction(max(probabilities, key=probabilities.__getitem__), probabilities)


def pair_fields(record: Record) -> dict[str, str]:
    """The text of a record, and its second one where there is one."""
    pair = {} if record.text_pair is None else {"text_pair": record.text_pair}
    return {"text": record.text, **pair}


def writing_questions(template: str, fields: Callable[[Record], Mapping[str, str]]) -> Questions:
    """The questions of a task whose answer is any text."""
    return Questions(
        template=template,
        fields=fields,
        shared={},
        write=lambda record: cast("Writing", record.target).text,
        read=lambda text, record: Prediction(Writing(text)),
    )
