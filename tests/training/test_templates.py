"""Chat templates as well-known models have them, and what is learned of conversations by them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ftkit.prompts.chat import PLAIN, closing, conversation
from ftkit.records import Record, Turn, Writing
from ftkit.tasks.instruction import Instruction

# As Phi-3's: a token of its own ends a conversation.
ENDED = (
    "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% else %}{{ eos_token }}{% endif %}"
)
# As Qwen3's: the last answer begins with thoughts, and a prompt only where they are not wanted.
THOUGHTS = "<think>\n\n</think>\n\n"
THINKING = (
    "{% for m in messages %}<{{ m.role }}>\n"
    "{% if m.role == 'assistant' and loop.last %}" + THOUGHTS + "{% endif %}{{ m.content }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>\n"
    "{% if enable_thinking is defined and not enable_thinking %}" + THOUGHTS + "{% endif %}{% endif %}"
)
SHORT = "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
TURNS = (Turn("user", "one"), Turn("assistant", "first"), Turn("user", "two"))


def learned(template: str, folder: Path) -> tuple[str, tuple[str, ...]]:
    """What a GPT-2 learns of a conversation, and the notes."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.unk_token = tokenizer.eos_token  # as GPT-2's own
    task = Instruction(chat_template=template)
    head: Any = task.objective((), {}, family="decoder", label_smoothing=0.0)
    head.prepare(tokenizer, 256)
    encoded = head.encode([Record("two", turns=TURNS, target=Writing("second"))], tokenizer, 256)
    (row,) = encoded.features
    return tokenizer.decode([label for label in row["labels"] if label != -100]), encoded.notes


def test_an_answer_before_the_last_is_learned(tiny: Callable[[str], Path]) -> None:
    said, notes = learned(ENDED, tiny("gpt2"))
    assert said == "first<end>second<end>\n<|endoftext|>"
    assert not notes


def test_thoughts_are_not_learned(tiny: Callable[[str], Path]) -> None:
    said, notes = learned(THINKING, tiny("gpt2"))
    assert said == "second<end><|endoftext|>"
    assert "1 rows have earlier answers of the assistant that are read, but not learned" in notes[0]


@pytest.mark.parametrize("template", [PLAIN, SHORT])
def test_one_end_is_learned(template: str, tiny: Callable[[str], Path]) -> None:
    """Also where the token for what is unknown is the end token."""
    said, _ = learned(template, tiny("gpt2"))
    assert said.replace(" ", "") == "first<|endoftext|>second<|endoftext|>"


def test_a_prompt_is_the_same_tomorrow(tiny: Callable[[str], Path]) -> None:
    """LLaMA 3.2's template, among others, writes the day where the clock is at hand."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny("gpt2"))
    day = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024{% endif %}"
    tokenizer.chat_template = "\n" + day + SHORT
    assert conversation([Turn("user", " one")], None, tokenizer, "").text == "\n26 Jul 2024 one"
    assert tokenizer.chat_template == "\n" + day + SHORT, "as it is saved"
    tokenizer.chat_template = {"default": "\n" + day + SHORT, "tool_use": "-"}
    assert conversation([Turn("user", " one")], None, tokenizer, "").text == "\n26 Jul 2024 one", "of several"
    plain = tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    assert plain == "\n" + date.today().strftime("%d %b %Y"), "elsewhere the clock goes on"


TALK = (
    Turn("system", "Be brief."),
    *(Turn(role, f"{role} {number} " + "word " * 6) for number in (1, 2) for role in ("user", "assistant")),
    Turn("user", "the newest question"),
)


@pytest.mark.parametrize("room", [120, 200])
def test_what_is_too_long_loses_its_oldest_exchanges_whole(room: int, tiny: Callable[[str], Path]) -> None:
    """Cut within them, the user would seem to say what the assistant has said."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny("gpt2"))
    head: Any = Instruction(truncation="left").objective((), {}, family="decoder", label_smoothing=0.0)
    head.prepare(tokenizer, room)
    kept = TALK[:1] + TALK[3:] if room == 200 else TALK[:1] + TALK[5:]
    (ids,) = head.prompts([Record("?", turns=TALK)], tokenizer, room)
    assert tokenizer.decode(ids) == conversation(kept, None, tokenizer, "").text
    encoded = head.encode([Record("?", turns=TALK, target=Writing("yes"))], tokenizer, room)
    (row,) = encoded.features
    assert tokenizer.decode(row["input_ids"]).startswith(conversation(kept, None, tokenizer, "").text)
    assert encoded.truncated == 1
    learned = tokenizer.decode([label for label in row["labels"] if label != -100])
    assert learned.count("assistant") == len(kept) // 2 - 1


def test_a_conversation_of_any_length_is_cut(tiny: Callable[[str], Path]) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny("gpt2"))
    head: Any = Instruction(truncation="left").objective((), {}, family="decoder", label_smoothing=0.0)
    head.prepare(tokenizer, 100)
    turns = (*TALK[1:3] * 1500, TALK[-1])
    (ids,) = head.prompts([Record("?", turns=turns)], tokenizer, 100)
    assert tokenizer.decode(ids) == conversation([TALK[-1]], None, tokenizer, "").text


def test_a_template_that_does_not_tell_how_answers_end(tiny: Callable[[str], Path]) -> None:
    """Its prompt for an answer goes on with thoughts, which answers do not have."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny("gpt2"))
    tokenizer.chat_template = SHORT + "{% if add_generation_prompt %}<think>{% endif %}"
    assert closing(tokenizer) == set()
    tokenizer.chat_template = SHORT
    assert closing(tokenizer) == {tokenizer.eos_token_id}


@pytest.mark.parametrize("trims", [False, True])
def test_white_space_within_an_answer_is_learned(trims: bool, tiny: Callable[[str], Path]) -> None:
    """Also where the tokenizer says that such a token stands for nothing."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny("gpt2"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token
    )
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=trims)
    head: Any = Instruction().objective((), {}, family="decoder", label_smoothing=0.0)
    head.prepare(tokenizer, 256)
    answer = "if a:\n    b  c"
    record = Record("?", turns=(Turn("user", "code?"),), target=Writing(answer))
    (row,) = head.encode([record], tokenizer, 256).features
    assert tokenizer.decode([label for label in row["labels"] if label != -100]).strip(" ") == (
        answer + tokenizer.eos_token
    )
