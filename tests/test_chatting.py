"""Conversations with runs, whatever their method."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ftkit as library
from ftkit.chatting import Chat
from ftkit.errors import FtkitError
from ftkit.prediction import explained_records
from ftkit.prompts.chat import PLAIN
from ftkit.records import Record, Turn


@pytest.fixture
def prompted(whole: Callable[[str], Path], tmp_path: Path) -> Callable[[str], library.Run]:
    """`prompted("chat")` is a run that follows instructions by prompts of that style."""

    def make(style: str) -> library.Run:
        from transformers import AutoTokenizer

        shutil.copytree(whole("gpt2"), tmp_path / "model")
        if style == "chat":
            tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
            tokenizer.chat_template = PLAIN
            tokenizer.save_pretrained(tmp_path / "model")
        (tmp_path / "rows.jsonl").write_text('{"instruction": "hi", "output": "hello"}\n')
        template = "Q: {{ text }}\nA:" if style == "plain" else "{{ text }}"
        return library.evaluate(
            {
                "task": {"type": "instruction", "system": "Be kind."},
                "model": {"name_or_path": str(tmp_path / "model")},
                "data": {"test_file": str(tmp_path / "rows.jsonl")},
                "method": {"type": "prompt", "style": style, "template": template},
                "generation": {"max_new_tokens": 24},
                "metrics": ["rouge_l"],
                "engine": {"precision": "fp32"},
                "output_dir": str(tmp_path / "run"),
            }
        ).run

    return make


@pytest.mark.parametrize(
    ("style", "begins"),
    [("plain", "Be kind.\n\nQ: hi\nA: "), ("chat", "<|endoftext|>Be kind.\n\nUser: hi\n")],
)
def test_a_run_that_only_prompts_can_be_talked_with(
    style: str, begins: str, prompted: Callable[[str], library.Run], ftkit: Callable[..., Any]
) -> None:
    run = prompted(style)
    done = ftkit("chat", run.folder, "--once", "hi", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    chat, pieces = Chat(run), list[str]()
    first = chat.say("hi", pieces.append)
    assert "".join(pieces).strip() == first == done.stdout.strip()
    second = chat.say("and now?")
    # The second answer is what the run writes after the whole conversation.
    said = (
        Turn("system", "Be kind."),
        Turn("user", "hi"),
        Turn("assistant", first),
        Turn("user", "and now?"),
    )
    (one,) = explained_records(run, [Record("and now?", turns=said)])
    assert one["written"] == second
    assert one["prompt"].startswith(begins)
    assert one["prompt"].index(first) < one["prompt"].index("and now?")
    for _ in range(6):
        chat.say("x" * 60)  # what no longer fits is left out
    with pytest.raises(FtkitError, match="more than 256 tokens"):
        chat.say("x" * 300)


def test_an_answer_in_pieces_is_the_answer(whole: Callable[[str], Path]) -> None:
    """Also where a text that ends it comes in two pieces, of which the first alone would end nothing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ftkit.training.generation import Writer

    tokenizer = AutoTokenizer.from_pretrained(whole("gpt2"))
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(whole("gpt2"))
    prompt = tokenizer("the red card")["input_ids"]

    def written(*until: str) -> tuple[str, str]:
        settings = {"max_new_tokens": 40, "do_sample": False}
        writer = Writer(model, tokenizer, settings=settings, stop=None, precision="fp32", until=until)
        pieces = list[str]()
        return writer.stream(prompt, pieces.append), "".join(pieces)

    whole_answer, shown = written()
    assert shown.strip() == whole_answer
    letters = whole_answer.split(max(whole_answer, key=whole_answer.count))[0]
    end = whole_answer[len(letters) + 3 : len(letters) + 6]
    assert end
    answer, shown = written(end)
    assert shown.strip() == answer == whole_answer[: whole_answer.index(end)].strip()


def test_an_empty_message_is_refused(tmp_path: Path, ftkit: Callable[..., Any]) -> None:
    done = ftkit("chat", tmp_path, "--once", " ")
    assert done.returncode == 2
    assert "--once: the message is empty" in done.stderr


def test_a_run_of_another_task_is_refused(recipe: dict[str, Any], ftkit: Callable[..., Any]) -> None:
    recipe["training"] |= {"max_steps": 1}
    run = library.finetune(recipe)
    done = ftkit("chat", run.folder, "--once", "hi")
    assert done.returncode == 2
    assert "the run is for classification, not to follow instructions" in done.stderr
