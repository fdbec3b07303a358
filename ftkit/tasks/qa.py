"""Extractive question answering: the part of a text that answers a question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field as Limits
from pydantic import PositiveInt, field_validator, model_validator

from ftkit.errors import InputError
from ftkit.records import Prediction, Record, Writing
from ftkit.tasks.as_text import (
    checked_template,
    text_refusal,
    text_usage,
    writing_family,
    writing_head,
    written_template,
)
from ftkit.tasks.base import Field, Task
from ftkit.tasks.reading import text_of

if TYPE_CHECKING:
    from ftkit.training.heads import Objective
    from ftkit.training.setup import Head

_TEMPLATE = "question: {{ text }} context: {{ text_pair }}"


class QuestionAnswering(Task):
    """Find the answer to a question in a text, as in SQuAD (Rajpurkar et al., 2016).

    With `formulation: text` an encoder-decoder (or a decoder) writes the answer.
    """

    type: Literal["qa"] = "qa"
    formulation: Literal["head", "text"] = "head"
    """`head` points at the first and last token of the answer; with `text` a model writes it."""
    template: str | None = None
    """With `formulation: text`, Jinja that makes what the model reads from `text` (the question) and
    `text_pair` (the context); by default `question: ... context: ...`."""
    stride: Annotated[int, Limits(ge=0)] | None = None
    """Tokens that neighbouring windows of a long context share; by default a quarter of a window."""
    max_answer_length: PositiveInt = 30
    """The longest answer in tokens."""

    fields: ClassVar[Mapping[str, Field]] = {
        "question": Field(("question", "text")),
        "context": Field(("context", "text_pair", "passage")),
        "answers": Field(("answers", "answer")),
        "answer_start": Field(("answer_start",), required=False),
    }
    answer_fields: ClassVar[tuple[str, ...]] = ("answers", "answer_start")
    pipeline: ClassVar[str | None] = None

    _template = field_validator("template")(checked_template)
    _written_template = model_validator(mode="after")(written_template)

    @property
    def writes(self) -> bool:
        return self.formulation == "text"

    @property
    def takes_pairs(self) -> bool:
        return True

    @property
    def answer(self) -> str:
        return "text"

    @property
    def default_metrics(self) -> list[str]:
        return ["normalized_exact_match", "token_f1"]

    def refusal(self, family: str, metrics: Sequence[str]) -> str:
        if self.writes:
            return text_refusal(family)
        if family == "encoder_decoder":
            return "an encoder-decoder writes the answer: set task.formulation: text"
        return ""

    def read(self, values: Mapping[str, Any], where: str) -> Record:
        context = text_of(values.get("context"), "context", where)
        return Record(
            text=text_of(values.get("question"), "question", where),
            text_pair=context,
            target=_answer(values.get("answers"), values.get("answer_start"), context, where),
            where=where,
        )

    def inputs_of(self, texts: Sequence[str], pairs: Sequence[str] | None) -> list[dict[str, str]]:
        if pairs is None:
            return [{"question": text} for text in texts]
        return [{"question": text, "context": pair} for text, pair in zip(texts, pairs, strict=True)]

    def settle(self, records: Sequence[Record], labels: Sequence[str]) -> tuple[Iterable[Record], list[str]]:
        unanswerable = lost = 0
        for record in records:
            if isinstance(answer := record.target, Writing):
                unanswerable += not answer.text
                lost += bool(answer.text) and answer.start < 0
        notes = []
        if unanswerable:
            notes.append(f"{unanswerable} questions have no answer")
        if lost:
            notes.append(f"{lost} answers do not stand in their context, so a head cannot point at them")
        return records, notes

    @property
    def auto_class(self) -> str | None:
        return None if self.writes else "AutoModelForQuestionAnswering"

    def head(self, labels: Sequence[str], learned: Mapping[str, Any]) -> Head:
        from ftkit.training.setup import Head

        return Head(self.auto_class, {})

    def learned(self, train: Sequence[Record], labels: Sequence[str]) -> dict[str, Any]:
        """Whether every question has an answer."""
        return {"answerable": all(not isinstance(r.target, Writing) or bool(r.target.text) for r in train)}

    def objective(
        self, labels: Sequence[str], learned: Mapping[str, Any], *, family: str, label_smoothing: float
    ) -> Objective:
        if self.writes:
            return writing_head(
                family,
                template=self._read_by(family),
                asked="",
                write=lambda record: cast("Writing", record.target).text or _NO_ANSWER,
                read=_read,
                label_smoothing=label_smoothing,
            )
        from ftkit.training.question_head import QuestionHead

        return QuestionHead(
            stride=self.stride,
            longest=self.max_answer_length,
            answerable=learned.get("answerable", False),
        )

    def _read_by(self, family: str) -> str:
        """The template of what a model of the family reads, where it writes the answer."""
        return self.template or _TEMPLATE + ("\nanswer:" if family == "decoder" else "")

    def usage(self, auto_class: str, generation: Mapping[str, Any], *, pairs: bool) -> list[str]:
        if self.writes:
            template = self._read_by(writing_family(auto_class))
            return text_usage(auto_class, generation, template=template, asked="", pairs=pairs)
        return [
            'inputs = tokenizer("...", "...", return_tensors="pt")  # the question, the context',
            "found = model(**inputs)",
            "start, end = found.start_logits.argmax(), found.end_logits.argmax()",
            'print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]).strip())',
        ]

    def answer_json(self, value: Any, record: Record) -> Any:
        if value is None:
            return None
        return [value.text, *value.others] if value.others else value.text

    def prediction_json(self, prediction: Prediction, record: Record) -> dict[str, Any]:
        answer = cast("Writing", prediction.value)
        place = {"start": answer.start, "end": answer.start + len(answer.text)} if answer.start >= 0 else {}
        return {"answer": answer.text, **place}

    def prediction_text(self, prediction: Prediction, record: Record) -> str:
        return f"{cast('Writing', prediction.value).text or '(no answer)'}  {record.text}"


_NO_ANSWER = "unanswerable"


def _read(text: str, record: Record) -> Prediction:
    """A written answer; where it stands in the context, with its place there."""
    if text.strip().casefold() == _NO_ANSWER:
        return Prediction(Writing(""))
    return Prediction(Writing(text, start=(record.text_pair or "").find(text) if text else -1))


def _answer(answers: Any, start: Any, context: str, where: str) -> Writing | None:
    """The answers in SQuAD's form, a text or a list of texts; `None` where the data holds none.

    Raises:
        InputError: They have another form, or an answer does not stand where the data says.
    """
    if answers is None:
        return None
    if isinstance(answers, Mapping):
        answers, start = answers.get("text"), answers.get("answer_start")
    texts = [answers] if isinstance(answers, str) else answers
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"the answers are {answers!r:.80}", where=where,
            hint="a text, a list of texts, or {text: [...], answer_start: [...]}",
        )  # fmt: skip
    if not texts or not texts[0].strip():
        return Writing("")
    known = Writing(texts[0], tuple(dict.fromkeys(texts[1:])))
    starts = _starts(start, len(texts), where)
    if not starts:
        return replace(known, start=context.find(known.text))
    for text, first in zip(texts, starts, strict=True):
        found = context[first : first + len(text)]
        if found != text:
            raise InputError(
                f"the answer {text!r:.60} does not stand at character {first} of the context "
                f"(there is {found!r:.60})",
                where=where,
                hint="correct answer_start, or leave it out to look the answer up",
            )
    return replace(known, start=starts[0])


def _starts(start: Any, answers: int, where: str) -> list[int]:
    """The first character of each answer; empty where the data does not say.

    Raises:
        InputError: They are no characters, or not one for each answer.
    """
    given = start if isinstance(start, list) else [] if start is None or start == "" else [start]
    found = [_whole(one) for one in given]
    numbers = [one for one in found if one is not None and one >= 0]
    if given and (len(numbers) < len(given) or len(given) != answers):
        raise InputError(
            f"answer_start is {start!r:.80}", where=where,
            hint=f"the number of the first character of the answer, from 0; here {answers} in all",
        )  # fmt: skip
    return numbers


def _whole(value: Any) -> int | None:
    """A whole number, also as csv files and floats hold it."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        return int(value) if value.strip().isdecimal() else None
    return value if isinstance(value, int) else None
