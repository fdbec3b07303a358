"""Conversations as text, by a model's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from ftkit.errors import InputError
from ftkit.records import Turn
from ftkit.training.writing import Rendered, closing_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = (
    "{{ bos_token if bos_token is defined and bos_token else '' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] }}"
    "{{ eos_token if eos_token is defined and eos_token else '' }}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""The template of a model that has none: a line for each message, with who says it."""

_MARK = "\0"
_TODAY = date(2024, 7, 26)
"""What LLaMA's templates say where no clock is at hand."""
_CLOCK = "strftime_now"
_STOPPED_CLOCK = (
    f"{{% macro {_CLOCK}(form) %}}{{{{ form"
    + "".join(f" | replace('%{code}', '{_TODAY.strftime(f'%{code}')}')" for code in "aAbBdejmyYHIMSp")
    + " }}{% endmacro %}{{ '' }}"
)
"""The same day in any form. transformers takes no function of ours, but a template can hold one."""


def conversation(
    turns: Sequence[Turn], answer: str | None, tokenizer: PreTrainedTokenizerBase, where: str
) -> Rendered:
    """A conversation, and where in it the assistant speaks.

    A part of the assistant is what the template adds for it after a prompt for generation, without
    the white space after it. transformers renders templates in Jinja's sandbox.

    Args:
        turns: The messages up to the answer.
        answer: What the assistant says last; `None` where that is to be written.
        tokenizer: Holds the template.
        where: The row, for messages.

    Raises:
        InputError: The template fails, does not write an answer after its prompt for one, or leaves out what
            is said last.
    """
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    prompt = _rendered(messages, tokenizer, where, prompt=True)
    if answer is None:
        return Rendered(prompt, (), _spare(messages, tokenizer, where), special=False)
    whole = _rendered([*messages, {"role": "assistant", "content": answer}], tokenizer, where, prompt=False)
    if not whole.startswith(prompt) or answer.strip() not in whole[len(prompt) :]:
        raise InputError(
            "the chat template does not write the answer after its prompt for one",
            where=where,
            hint="give another in task.chat_template",
        )
    answers = []
    for number, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        before = _rendered(messages[:number], tokenizer, where, prompt=True)
        after = _rendered(messages[: number + 1], tokenizer, where, prompt=False)
        # Some templates write earlier answers otherwise (without their reasoning, say): those are read. Some
        # end a conversation with a token of their own (Phi-3), after a line.
        alike = _common(after, whole)
        alike = alike if alike == after else alike[: alike.rfind("\n") + 1]
        if alike.startswith(before) and turn.content.strip() in alike[len(before) :]:
            answers.append((len(before), len(alike.rstrip())))
    answers.append((len(prompt), len(whole.rstrip())))
    return Rendered(whole, tuple(answers), _spare(messages, tokenizer, where), special=False)


def closing(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens after which an assistant has spoken, by the chat template, as far as that tells: its prompt
    for an answer may go on otherwise than its answers do, and tokenizers in Python say no places of tokens.
    """
    # Some templates want a system prompt.
    for turns in ([Turn("user", "?")], [Turn("system", "?"), Turn("user", "?")]):
        with suppress(InputError):
            rendered = conversation(turns, "!", tokenizer, "")
            return closing_tokens(rendered, tokenizer) if tokenizer.is_fast else set()
    return set()


def _common(one: str, other: str) -> str:
    """What both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))]


def _rendered(
    messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, where: str, *, prompt: bool
) -> str:
    conversation: Any = list(messages)
    try:
        template = tokenizer.get_chat_template()
        if _CLOCK in template:
            # Some write the day into the system prompt, and a run would have other scores tomorrow.
            template = _STOPPED_CLOCK + template
        # Qwen3 and its like would begin with thoughts, which neither answers to learn nor labels have.
        return str(
            tokenizer.apply_chat_template(
                conversation,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=prompt,
                enable_thinking=False,
            )
        )
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the chat template fails: {reason}", where=where or "task.chat_template",
            hint="give another in task.chat_template",
        ) from None  # fmt: skip


def _spare(
    messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[int, int]:
    """What may be shortened: from the first message that is no system prompt to the end of the last.

    A mark in a message's place tells where it stands, whatever else the template writes.
    """
    said = [number for number, message in enumerate(messages) if message["role"] != "system"]
    if not said:
        return (0, 0)
    places = []
    for number in (said[0], said[-1]):
        marked = [*messages[:number], {**messages[number], "content": _MARK}, *messages[number + 1 :]]
        places.append(_rendered(marked, tokenizer, where, prompt=True).find(_MARK))
    if places[-1] < 0:
        raise InputError(
            "the chat template does not write what is said to the assistant",
            where=where,
            hint="give another in task.chat_template",
        )
    if places[0] < 0:
        return (0, 0)
    return (places[0], places[1] + len(messages[said[-1]]["content"].strip()))
