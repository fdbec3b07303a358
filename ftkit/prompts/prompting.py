"""Prompts: what a model reads before it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftkit.errors import InputError
from ftkit.prompts.chat import conversation
from ftkit.prompts.shots import Shot
from ftkit.prompts.template import Template
from ftkit.questions import Questions
from ftkit.records import Record, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTENT_FREE = ("N/A", "", "[MASK]")
"""Texts that say nothing, by which a model's own leaning is measured (Zhao et al., 2021)."""
MASK = "mask"
"""The field of a template that stands for the answer in a cloze."""
_PLACE = "\0"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt for one record.

    Attributes:
        text: What the model reads, up to the answer.
        lead: What stands between it and the answer.
        after: What stands after the answer; empty but in a cloze.
        special: Whether the tokenizer adds its special tokens; a chat template writes them itself.
        shots: The solved examples in it.
    """

    text: str
    lead: str
    after: str
    special: bool
    shots: tuple[Shot, ...]

    def read_and_written(self) -> tuple[str, str]:
        """What a model reads before it writes, and the white space that it writes before its answer: a token
        of that at the end of a prompt would keep most tokenizers from writing a word with its space.
        """
        text = self.text + self.lead
        read = text.rstrip(" ") if self.special else text
        return read, text[len(read) :]


@dataclass(frozen=True)
class Prompting:
    """How prompts are written.

    Attributes:
        questions: What the task asks.
        template: Makes the question of a row.
        description: Stands before everything else.
        delimiter: Stands between shots.
        target_delimiter: Stands between a question and its answer.
        chat: Whether the shots are earlier turns of the model's chat template.
        cloze: Whether the answer is looked for in the template's `mask`.
    """

    questions: Questions
    template: Template
    description: Template
    delimiter: str
    target_delimiter: str
    chat: bool = False
    cloze: bool = False

    def prompt(
        self,
        shots: Sequence[Shot],
        record: Record,
        tokenizer: PreTrainedTokenizerBase,
        fields: Mapping[str, str] | None = None,
    ) -> Prompt:
        """The prompt of a record after some shots.

        Args:
            shots: Solved examples.
            record: The row.
            tokenizer: Holds the chat template.
            fields: What is known of the row instead of its own fields.

        Raises:
            InputError: A template fails for the row.
        """
        known = self.questions.fields(record) if fields is None else fields
        try:
            if self.chat:
                return self._conversation(shots, record, known, tokenizer)
            return self._text(shots, record, known)
        except ValueError as error:
            raise InputError(str(error), where=record.where, hint="method.template") from None

    def shown(self, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
        """A whole prompt as people see it: in a cloze, with the mask in the place of the answer."""
        place = str(tokenizer.mask_token) if self.cloze else ""
        return prompt.text + prompt.lead + place + prompt.after

    def content_free(self, record: Record, text: str) -> dict[str, str]:
        """The fields of a record that says nothing."""
        return dict.fromkeys(self.questions.fields(record), text)

    def _text(self, shots: Sequence[Shot], record: Record, fields: Mapping[str, str]) -> Prompt:
        described, said = self._described(record), spoken(record)[1][:-1]
        # Without a chat template, what was said before can only look as solved examples do.
        exchanges = zip(said[::2], said[1::2], strict=True)
        earlier = [Shot(self.questions.fields(Record(asked.content)), a.content) for asked, a in exchanges]
        solved = [self._solved(shot) for shot in (*shots, *earlier)]
        question, after = self._question(fields)
        text = self.delimiter.join([*([described] if described else []), *solved, question])
        lead = "" if self._has_place else self.target_delimiter
        return Prompt(text, lead, after, special=True, shots=tuple(shots))

    def _described(self, record: Record) -> str:
        """The description, and the system prompt of a conversation."""
        described = self.description.render(self.questions.shared)
        return "\n\n".join(filter(None, [described, spoken(record)[0]]))

    def _solved(self, shot: Shot) -> str:
        before, after = self._question(shot.fields)
        return before + ("" if self._has_place else self.target_delimiter) + shot.answer + after

    @property
    def _has_place(self) -> bool:
        return self.cloze and MASK in self.template.fields

    def _question(self, fields: Mapping[str, str]) -> tuple[str, str]:
        """The question up to the answer, and what comes after it."""
        place = {MASK: _PLACE} if self.cloze else {}
        rendered = self.template.render({**self.questions.shared, **fields, **place})
        before, _, after = rendered.partition(_PLACE)
        return before, after

    def _conversation(
        self,
        shots: Sequence[Shot],
        record: Record,
        fields: Mapping[str, str],
        tokenizer: PreTrainedTokenizerBase,
    ) -> Prompt:
        described = self._described(record)
        turns = [Turn("system", described)] if described else []
        for shot in shots:
            turns += [Turn("user", self._question(shot.fields)[0]), Turn("assistant", shot.answer)]
        turns += spoken(record)[1][:-1]
        turns.append(Turn("user", self._question(fields)[0]))
        rendered = conversation(turns, None, tokenizer, record.where)
        return Prompt(rendered.text, "", "", special=rendered.special, shots=tuple(shots))


def spoken(record: Record) -> tuple[str, tuple[Turn, ...]]:
    """The system prompt of a conversation, empty where it has none, and what is said after it."""
    system = "\n\n".join(turn.content for turn in record.turns if turn.role == "system")
    return system, tuple(turn for turn in record.turns if turn.role != "system")
