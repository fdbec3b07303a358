"""What is learned of a row, against TRL's own trainer; skipped where TRL is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training.test_writing import CHATML, chats, merging, one_row, texts

from ftkit.tasks.instruction import Instruction
from ftkit.tasks.text2text import Text2Text

trl = pytest.importorskip("trl")

# The line end after an answer stands outside, as in the templates that TRL trains with.
TEMPLATE = CHATML.replace(
    "{{ message['content'] + '<|im_end|>' + '\n' }}{% endgeneration %}",
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}",
)


def tokenizer_with(template: str) -> Any:
    tokenizer = merging()
    tokenizer.chat_template = template
    return tokenizer


def theirs(rows: list[dict[str, Any]], tokenizer: Any, folder: Path, **options: Any) -> list[dict[str, Any]]:
    """Inputs and labels as TRL's SFTTrainer prepares them."""
    from datasets import Dataset
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": len(tokenizer)}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **sizes))
    arguments = trl.SFTConfig(
        output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, max_length=None, **options
    )
    trainer = trl.SFTTrainer(
        model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    return [{name: row[name] for name in ("input_ids", "labels")} for row in trainer.train_dataset]


def ours(task: Any, rows: list[dict[str, Any]], tokenizer: Any) -> list[dict[str, Any]]:
    found = [one_row(task, task.read(row, "row"), tokenizer) for row in rows]
    return [{name: row[name] for name in ("input_ids", "labels")} for row in found]


def test_assistant_only_loss(tmp_path: Path) -> None:
    """Conversations of several turns, some with a system message: token by token the same."""
    tokenizer = tokenizer_with(TEMPLATE)
    expected = theirs(chats(), tokenizer, tmp_path, assistant_only_loss=True)
    assert ours(Instruction(), chats(), tokenizer) == expected


def test_completion_only_loss_of_chats(tmp_path: Path) -> None:
    """The same but for the line end after the answer, which TRL teaches; a model is stopped before it."""
    tokenizer = tokenizer_with(TEMPLATE)
    rows = [row for row in chats() if sum(turn["role"] == "assistant" for turn in row["messages"]) == 1]
    assert len(rows) > 5
    split = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
    expected = theirs(split, tokenizer, tmp_path, completion_only_loss=True)
    (line_end,) = tokenizer("\n")["input_ids"]
    for row in expected:
        assert row["labels"][-1] == line_end
        row["labels"][-1] = -100
    assert ours(Instruction(), rows, tokenizer) == expected


def test_completion_only_loss_of_texts(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(TEMPLATE)
    split = [
        {"prompt": f"Input: {row['text']}\nOutput:", "completion": f" {row['target']}"} for row in texts()
    ]
    expected = theirs(split, tokenizer, tmp_path, completion_only_loss=True)
    assert ours(Text2Text(), texts(), tokenizer) == expected
