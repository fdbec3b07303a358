"""Questions and language modelling: losses and gradients against plain transformers code."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import WORDS
from training.test_gradients import BATCH, ROWS, SEED, assert_same_gradients, engine_gradients
from transformers import AutoTokenizer, set_seed

from ftkit.records import Record
from ftkit.training.batches import EpochBatches
from ftkit.training.documents import DocumentHead

LONGEST = 64


def texts() -> list[str]:
    generator = random.Random(0)
    return [" ".join(generator.choices(WORDS, k=generator.randint(2, 6))) for _ in range(ROWS)]


def question_rows() -> list[dict[str, Any]]:
    """The answer is a word of the context."""
    generator = random.Random(1)
    rows = []
    for context in texts():
        words = context.split()
        place = generator.randrange(len(words))
        start = len(" ".join([*words[:place], ""]))
        answers = {"text": [words[place]], "answer_start": [start]}
        rows.append({"question": "who?", "context": context, "answers": answers})
    return rows


def question_loss(model: Any, tokenizer: Any, numbers: list[int]) -> Any:
    """Of rows one by one: in a padded batch, transformers' head takes padding for possible answers."""
    losses = []
    for row in (question_rows()[number] for number in numbers):
        inputs = tokenizer(row["question"], row["context"], return_tensors="pt")
        first = row["answers"]["answer_start"][0]
        ends = (first, first + len(row["answers"]["text"][0]) - 1)
        start, end = (torch.tensor([inputs.char_to_token(0, at, sequence_index=1)]) for at in ends)
        losses.append(model(**inputs, start_positions=start, end_positions=end).loss)
    return sum(losses) / len(losses)


def document_loss(kind: str) -> Callable[[Any, Any, list[int]], Any]:
    """Of rows one by one, weighed by the tokens that are learned; what is hidden is drawn by the head."""

    def loss(model: Any, tokenizer: Any, numbers: list[int]) -> Any:
        head = DocumentHead(kind, join=False)  # type: ignore[arg-type]
        head.prepare(tokenizer, LONGEST)
        rows = head.training_rows([Record(text) for text in texts()], tokenizer, LONGEST).features
        seen = [head.vary(rows[number], (SEED, 0, number)) for number in numbers]
        first = 1 if kind == "decoder" else 0
        counts = [sum(label != -100 for label in row["labels"][first:]) for row in seen]
        losses = [
            model(**{name: torch.tensor([values]) for name, values in row.items()}).loss * count
            for row, count in zip(seen, counts, strict=True)
        ]
        return sum(losses) / sum(counts)

    return loss


CELLS = {
    "qa bert": ("bert", "AutoModelForQuestionAnswering", question_loss),
    "qa gpt2": ("gpt2", "AutoModelForQuestionAnswering", question_loss),
    "causal": ("gpt2", "AutoModelForCausalLM", document_loss("decoder")),
    "masked": ("bert", "AutoModelForMaskedLM", document_loss("encoder")),
    "spans": ("t5", "AutoModelForSeq2SeqLM", document_loss("encoder_decoder")),
}


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_equal_plain_transformers(
    cell: str,
    recipe: dict[str, Any],
    still: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The batch of 8 whole and in four accumulated steps of 2; the last one has 5 rows."""
    architecture, auto_class, loss_of = CELLS[cell]
    asked = cell.startswith("qa")
    rows = question_rows() if asked else [{"text": text} for text in texts()]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    folder = still(architecture)
    training = {
        "num_train_epochs": 1, "max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 1e-30,
        "logging_steps": 1, "save_strategy": "no",
    }  # fmt: skip
    recipe |= {
        "task": "qa" if asked else {"type": "language_modeling", "documents": "separate"},
        "model": {"name_or_path": str(folder), "max_length": LONGEST},
        "data": {"train_file": str(tmp_path / "rows.jsonl")},
    }

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    set_seed(SEED)
    model = getattr(transformers, auto_class).from_pretrained(folder, dtype=torch.float32).eval()
    plain, plain_losses = [], []
    for batch in EpochBatches(total=ROWS, size=BATCH, seed=SEED, rank=0, processes=1):
        model.zero_grad()
        loss = loss_of(model, tokenizer, [row for row, *_ in batch])
        loss.backward()
        plain_losses.append(loss.item())
        plain.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    for size, accumulation in ((8, 1), (2, 4)):
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        with monkeypatch.context() as patch:
            ours, losses = engine_gradients(recipe | {"training": training | sizes}, patch)
        for one, other in zip(ours, plain, strict=True):
            assert_same_gradients(one, other)
        assert losses == pytest.approx(plain_losses, rel=1e-5)
