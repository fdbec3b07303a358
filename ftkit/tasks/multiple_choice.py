"""Multiple choice: the right one of the answers that a question comes with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import field_validator

from ftkit.errors import InputError
from ftkit.records import Prediction, Record, Writing
from ftkit.tasks.as_text import (
    checked_template,
    first_line,
    generation_lines,
    read_label,
    rendered,
    text_refusal,
    writing_family,
    writing_objective,
)
from ftkit.tasks.base import Field, Task
from ftkit.tasks.reading import text_of

if TYPE_CHECKING:
    from ftkit.questions import Questions
    from ftkit.training.heads import Objective
    from ftkit.training.setup import Head
    from ftkit.training.writing import Rendered

_FIELDS = ("question", "context", "choices")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CONTEXT = "{% if context is defined %}{{ context }}\n{% endif %}"
_TEMPLATES = {
    "text": _CONTEXT + "Question: {{ question }}\nAnswer:",
    "letter": _CONTEXT + "Question: {{ question }}\n{{ choices }}\nAnswer:",
}
_READINGS = ("label", "text", "letter", "number")
"""How an answer can name a choice; where several go with all rows of a split, the first is taken."""
_TRAINED = _CONTEXT + "Question: {{ question }}\n{{ choices }}\nAnswer:"


class MultipleChoice(Task):
    """Choose the right one of the answers that a question comes with.

    The choices of a row are a list of texts, or an object with `text` and `label` lists (as ARC has
    them); the answer is a choice's text, its label, its letter, or its number counted from 0, and the same
    one of these in all rows of a split.
    """

    type: Literal["multiple_choice"] = "multiple_choice"
    written_as: Literal["text", "letter"] = "text"
    """Whether a choice is written out or named by its letter; a letter needs the template to show
    `choices`."""
    template: str | None = None
    """Jinja that makes what a trained model reads from `question`, `context` and `choices` (a line each,
    with letters); a prompt's stands under `method`."""

    families: ClassVar[tuple[str, ...] | None] = ("decoder", "encoder_decoder")
    fields: ClassVar[Mapping[str, Field]] = {
        "question": Field(("question", "question_stem", "query", "text")),
        "context": Field(("context", "passage", "article"), required=False),
        "choices": Field(("choices", "options", "endings")),
        "answer": Field(("answer", "answerKey", "label", "answer_index", "correct_answer")),
    }
    answer_fields: ClassVar[tuple[str, ...]] = ("answer",)
    same_candidates: ClassVar[bool] = False
    prompt_fields: ClassVar[tuple[str, ...]] = _FIELDS
    pipeline: ClassVar[str | None] = None

    @field_validator("template")
    @classmethod
    def _is_template(cls, value: str | None) -> str | None:
        return checked_template(value, _FIELDS, "question")

    @property
    def writes(self) -> bool:
        return True

    @property
    def asked_by(self) -> tuple[str, ...]:
        return ("rank", "generate")

    @property
    def answer(self) -> str:
        return "choice"

    @property
    def default_metrics(self) -> list[str]:
        return ["accuracy"]

    def refusal(self, family: str, metrics: Sequence[str]) -> str:
        return text_refusal(family)

    # Rows -------------------------------------------------------------------------------

    def read(self, values: Mapping[str, Any], where: str) -> Record:
        choices, labels = _choices(values.get("choices"), where)
        context = values.get("context")
        return Record(
            text=text_of(values.get("question"), "question", where),
            text_pair=text_of(context, "context", where) if context not in (None, "") else None,
            target=_possible(values.get("answer"), choices, labels, where),
            where=where,
            choices=choices,
        )

    def settle(self, records: Sequence[Record], labels: Sequence[str]) -> tuple[Iterable[Record], list[str]]:
        """Every answer as the text of a choice, all of a split read in one way: of the choices `2`, `1`, `0`
        the answer `2` is the first or the last, which only the other rows tell.
        """
        chosen, *others = _readings(record for record in records if record.target is not None)
        settled = (
            record if record.target is None else replace(record, target=_meant(record)[chosen])
            for record in records
        )
        doubtful = any(
            _meant(record)[reading] != _meant(record)[chosen]
            for record in records
            if record.target is not None
            for reading in others
        )
        note = (
            f"answers are read as the {_READINGS[chosen]} of a choice; all could be the "
            f"{' or '.join(_READINGS[reading] for reading in others)} as well"
        )
        return settled, [note] if doubtful else []

    def inputs_of(self, texts: Sequence[str], pairs: Sequence[str] | None) -> list[dict[str, str]]:
        raise InputError(
            "a question of multiple choice needs its choices", where="--text",
            hint='give rows, such as {"question": "...", "choices": ["...", "..."]}, in a file or by -',
        )  # fmt: skip

    @property
    def takes_pairs(self) -> bool:
        return False

    # Asking -----------------------------------------------------------------------------

    def questions(
        self, labels: Sequence[str], words: Mapping[str, Sequence[str]], entity_format: str
    ) -> Questions:
        from ftkit.questions import Candidate, Questions

        return Questions(
            template=_TEMPLATES[self.written_as],
            fields=_fields,
            shared={},
            write=self._written,
            read=self._read,
            candidates=lambda record: [
                Candidate(choice, self._as_written(choice, record)) for choice in record.choices
            ],
            same=False,
        )

    def _as_written(self, choice: str, record: Record) -> str:
        return choice if self.written_as == "text" else _LETTERS[record.choices.index(choice)]

    def _written(self, record: Record) -> str:
        return self._as_written(str(record.target), record)

    def _read(self, text: str, record: Record) -> Prediction:
        """The choice that a text names, by its letter or as it is written, in several lines perhaps."""
        if not (whole := read_label(text, record, record.choices)).failed and self.written_as == "text":
            return whole
        line = first_line(text)
        bare = line.strip(" ().:")
        letter = bare[:1].upper()
        alone = len(bare) == 1 or bare[1:2] in (".", ")", ":")
        lettered = alone and letter in _LETTERS[: len(record.choices)]
        # A choice may be a letter itself, and be another one's letter.
        found = read_label(line, record, record.choices)
        if lettered and (found.failed or self.written_as == "letter"):
            return Prediction(record.choices[_LETTERS.index(letter)])
        return found

    # Training ---------------------------------------------------------------------------

    def head(self, labels: Sequence[str], learned: Mapping[str, Any]) -> Head:
        from ftkit.training.setup import Head

        return Head(None, {})

    def objective(
        self, labels: Sequence[str], learned: Mapping[str, Any], *, family: str, label_smoothing: float
    ) -> Objective:
        def render(record: Record) -> Rendered:
            if isinstance(record.target, Writing):  # as the head asks where an answer ends
                return rendered(record, _TRAINED, record.target.text, {"question": "?", "choices": "?"})
            answer = None if record.target is None else self._written(record)
            return rendered(record, self.template or _TRAINED, answer, _fields(record))

        return writing_objective(family, render=render, read=self._read, label_smoothing=label_smoothing)

    def usage(self, auto_class: str, generation: Mapping[str, Any], *, pairs: bool) -> list[str]:
        from ftkit.prompts.template import Template

        family = writing_family(auto_class)
        fields = {
            "question": "...",
            "choices": "A. ...\nB. ...",
            **({"context": "..."} if self.template else {}),
        }
        asked = json.dumps(Template(self.template or _TRAINED).render(fields), ensure_ascii=False)
        return generation_lines(family, f'tokenizer({asked}, return_tensors="pt")', generation)

    def example_arguments(self, *, pairs: bool) -> str:
        return "questions.jsonl"

    # Results ----------------------------------------------------------------------------

    def answer_json(self, value: Any, record: Record) -> Any:
        return value

    def prediction_json(self, prediction: Prediction, record: Record) -> dict[str, Any]:
        scores = {name: round(score, 6) for name, score in prediction.scores.items()}
        failed = {"unreadable": prediction.failed} if prediction.failed else {}
        return {"answer": prediction.value or None, **({"scores": scores} if scores else {}), **failed}

    def prediction_text(self, prediction: Prediction, record: Record) -> str:
        return f"{record.text}\n  {prediction.value or '(none)'}"


def _fields(record: Record) -> dict[str, str]:
    shown = "\n".join(f"{letter}. {choice}" for letter, choice in zip(_LETTERS, record.choices, strict=False))
    context = {} if record.text_pair is None else {"context": record.text_pair}
    return {"question": record.text, **context, "choices": shown}


def _choices(value: Any, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The choices of a row, and what the data calls them.

    Raises:
        InputError: There are fewer than two, two are the same, or one is no text.
    """
    labels: tuple[str, ...] = ()
    if isinstance(value, Mapping):
        labels = tuple(map(str, value.get("label") or ()))
        value = value.get("text")
    if not isinstance(value, (list, tuple)) or not 2 <= len(value) <= len(_LETTERS):
        raise InputError(
            f"the choices are {value!r:.80}, not a list of 2 to {len(_LETTERS)} texts", where=where
        )
    choices = tuple(text_of(one, "choice", where).strip() for one in value)
    if twice := [choice for choice in choices if choices.count(choice) > 1]:
        raise InputError(f"two choices are {twice[0]!r:.80}", where=where, hint="remove one of them")
    return choices, labels if len(labels) == len(choices) else ()


def _possible(
    value: Any, choices: Sequence[str], labels: Sequence[str], where: str
) -> tuple[str, ...] | None:
    """The text of the right choice in each of `_READINGS`, empty where it is none; `None` where the data
    holds no answer. What is a number in the data is no name.

    Raises:
        InputError: It is none of the choices in any reading.
    """
    if value is None or value == "":
        return None
    number = not isinstance(value, bool) and (
        isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    )
    written = str(int(value) if number else value).strip()
    numbers = [str(place) for place in range(len(choices))]
    names = [(), (), (), numbers] if number else [labels, choices, _LETTERS[: len(choices)], numbers]
    found = tuple(dict(zip(known, choices, strict=False)).get(written, "") for known in names)
    if any(found):
        return found
    raise InputError(
        f"the answer {written!r:.80} is none of the {len(choices)} choices",
        where=where,
        hint="write the choice itself, its label, its letter, or its number counted from 0",
    )


def _meant(record: Record) -> tuple[str, ...]:
    """The choice that a record's answer means in each reading, before one is settled on."""
    return cast("tuple[str, ...]", record.target)


def _readings(records: Iterable[Record]) -> list[int]:
    """The readings in which every record's answer is a choice.

    Raises:
        InputError: There is none; the row that goes with none of those before it is named.
    """
    fitting = list(range(len(_READINGS)))
    for record in records:
        found = [reading for reading, choice in enumerate(_meant(record)) if choice]
        if not set(found) & set(fitting):
            here, before = (" or ".join(_READINGS[n] for n in readings) for readings in (found, fitting))
            raise InputError(
                f"the answer is the {here} of a choice, in the rows before it the {before}",
                where=record.where,
                hint="name choices in the same way in all rows of a split",
            )
        fitting = [reading for reading in fitting if reading in found]
    return fitting
