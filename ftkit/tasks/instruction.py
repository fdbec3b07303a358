"""Instruction tuning: answer what is asked, in one turn or several."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from ftkit.errors import InputError, UsageError
from ftkit.records import Record, Turn, Writing
from ftkit.tasks.base import Field
from ftkit.tasks.reading import text_of
from ftkit.tasks.writing import WritingTask, right_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftkit.questions import Questions
    from ftkit.training.writing import Rendered

# The names of roles in `messages` and in ShareGPT's `conversations`.
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}


_INSTEAD = {"messages": ("instruction", "input", "instances", "output"), "instances": ("input", "output")}
"""Fields that hold what others hold in parts."""


class Instruction(WritingTask):
    """Answer an instruction or a conversation; the loss is on what the assistant says.

    Rows may be in the form of Alpaca (`instruction`, `input`, `output`), `prompt` and `completion`,
    `messages`, ShareGPT (`conversations`) or Self-Instruct (`instruction`, `instances`).
    """

    type: Literal["instruction"] = "instruction"
    system: str | None = None
    """What the system prompt is where a row has none."""
    chat_template: str | None = None
    """A Jinja template for conversations, saved with the model; by default the model's own, or a plain
    one where it has none."""

    fields: ClassVar[Mapping[str, Field]] = {
        "instruction": Field(("instruction", "prompt", "question"), required=False),
        "input": Field(("input", "context"), required=False),
        "messages": Field(("messages", "conversations", "conversation"), required=False),
        "system": Field(("system", "system_prompt"), required=False),
        "instances": Field(("instances",), required=False),
        "output": Field(("output", "completion", "response", "answer"), required=False),
    }
    answer_fields: ClassVar[tuple[str, ...]] = ("output",)
    converses: ClassVar[bool] = True

    @model_validator(mode="after")
    def _not_empty(self) -> Instruction:
        for name in ("system", "chat_template"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise ValueError(f"{name} is empty; leave the key out")
        if self.chat_template:
            from ftkit.prompts.template import chat_template_problem

            if problem := chat_template_problem(self.chat_template):
                raise ValueError(f"chat_template: {problem}")
        return self

    @property
    def default_metrics(self) -> list[str]:
        return ["answer_loss", "perplexity", "rouge_l", "chrf", "exact_match"]

    def columns(self, found: Sequence[Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
        chosen = super().columns(found, given, where)
        for whole, parts in _INSTEAD.items():
            named = [field for field in parts if field in given]
            if whole in given and named:
                raise UsageError(
                    f"data.columns names {whole}, and {named[0]}, which {whole} stand instead of",
                    where=where,
                    hint=f"name {whole} alone, or only {', '.join(parts)}",
                )
            if whole in chosen:
                # What the recipe names comes before what happens to be there.
                left_out = [whole] if named else parts
                chosen = {field: column for field, column in chosen.items() if field not in left_out}
        if "messages" not in chosen and "instruction" not in chosen:
            raise InputError(
                "no column 'instruction', 'prompt' or 'messages'",
                where=where,
                hint=f"found: {', '.join(map(str, found))}; "
                "map one with data.columns: {instruction: COLUMN}, or --set data.columns.instruction=COLUMN",
            )
        return chosen

    def answered_by(self, columns: Mapping[str, Any]) -> bool:
        return any(field in columns for field in ("output", "messages", "instances"))

    def read(self, values: Mapping[str, Any], where: str) -> Record:
        if "messages" in values:
            turns, answer = _conversation(values["messages"], where)
        else:
            turns, answer = _single(values, where)
        system = values.get("system") or self.system
        if system and turns[0].role != "system":
            turns = (Turn("system", text_of(system, "system", where)), *turns)
        return Record(text=turns[-1].content, target=answer, where=where, turns=turns)

    def read_all(self, values: Mapping[str, Any], where: str) -> Iterator[Record]:
        """A record for each instance of a Self-Instruct row."""
        instances = values.get("instances")
        if not instances:
            yield self.read(values, where)
            return
        if not isinstance(instances, list) or not all(isinstance(one, Mapping) for one in instances):
            raise InputError("instances is no list of objects with input and output", where=where)
        for number, instance in enumerate(instances, 1):
            place = where if len(instances) == 1 else f"{where}, instance {number}"
            own = {"input": instance.get("input"), "output": instance.get("output")}
            yield self.read({**values, **own}, place)

    def example_inputs(self, family: str, *, pairs: bool) -> str:
        system = f'{{"role": "system", "content": {json.dumps(self.system)}}}, ' if self.system else ""
        messages = f'[{system}{{"role": "user", "content": "..."}}]'
        messages += ", add_generation_prompt=True, enable_thinking=False"
        if family == "decoder":
            return f'tokenizer.apply_chat_template({messages}, return_tensors="pt", return_dict=True)'
        return (
            f"tokenizer(tokenizer.apply_chat_template({messages}, tokenize=False) + tokenizer.eos_token, "
            'add_special_tokens=False, return_tensors="pt")'
        )

    def inputs_of(self, texts: Sequence[str], pairs: Sequence[str] | None) -> list[dict[str, str]]:
        return [{"instruction": text} for text in texts]

    def opening(self, system: str | None) -> list[Turn]:
        prompt = system or self.system
        return [Turn("system", prompt)] if prompt else []

    @property
    def asked_by(self) -> tuple[str, ...]:
        return ("generate",)

    prompt_fields: ClassVar[tuple[str, ...]] = ("text",)

    def questions(
        self, labels: Sequence[str], words: Mapping[str, Sequence[str]], entity_format: str
    ) -> Questions:
        from ftkit.questions import writing_questions

        questions = writing_questions("{{ text }}", lambda record: {"text": record.text})
        return replace(questions, chat_template=self.chat_template)

    def render(self, record: Record, tokenizer: PreTrainedTokenizerBase, family: str) -> Rendered:
        from ftkit.prompts.chat import conversation

        answer = record.target.text if isinstance(record.target, Writing) else None
        return conversation(record.turns, answer, tokenizer, record.where)

    def template_options(self) -> dict[str, Any]:
        from ftkit.prompts.chat import PLAIN

        return {
            "chat_template": self.chat_template or PLAIN,
            "replace_template": self.chat_template is not None,
        }


def _single(values: Mapping[str, Any], where: str) -> tuple[tuple[Turn, ...], Writing | None]:
    """An instruction with its input, and the answer."""
    instruction = text_of(values.get("instruction"), "instruction", where)
    given, output = values.get("input"), values.get("output")
    asked = f"{instruction}\n\n{text_of(given, 'input', where)}" if str(given or "").strip() else instruction
    return (Turn("user", asked),), right_texts(output, "output", where)


def _conversation(messages: Any, where: str) -> tuple[tuple[Turn, ...], Writing | None]:
    """The turns up to the answer, and the answer: what the assistant says last.

    Raises:
        InputError: A message is malformed, or the order of the roles is not one that can be learned.
    """
    if not isinstance(messages, list) or not messages:
        raise InputError("the messages are no list, or an empty one", where=where)
    turns = [_turn(message, number, where) for number, message in enumerate(messages, 1)]
    spoken = turns[1:] if turns[0].role == "system" else turns
    for number, turn in enumerate(spoken):
        if turn.role != (expected := ("user", "assistant")[number % 2]):
            place = number + 1 + len(turns) - len(spoken)
            raise InputError(
                f"message {place} is the {turn.role}'s where the {expected}'s should stand",
                where=where,
                hint="an optional system message, then user and assistant in turn, beginning with the user",
            )
    if not spoken:
        raise InputError("the conversation holds nothing but a system message", where=where)
    if turns[-1].role == "user":
        return tuple(turns), None
    return tuple(turns[:-1]), Writing(turns[-1].content)


def _turn(message: Any, number: int, where: str) -> Turn:
    """One message, by `role` and `content` or by `from` and `value`."""
    if not isinstance(message, Mapping):
        raise InputError(f"message {number} is no object with role and content", where=where)
    written = message.get("role", message.get("from"))
    role = _ROLES.get(str(written))
    if role is None:
        raise InputError(
            f"message {number} has the role {written!r:.40}",
            where=where,
            hint=f"allowed: {', '.join(_ROLES)}",
        )
    content = message.get("content", message.get("value"))
    return Turn(role, text_of(content, f"content of message {number}", where).strip())
