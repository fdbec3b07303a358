"""Packing: rows that share a sequence are learned as if each had one of its own."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training.test_gradients import SEED, assert_same_gradients, engine_gradients
from training.test_resume import files, stop_after
from training.test_writing import plain_text2text, texts
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

import ftkit
from ftkit.errors import UsageError
from ftkit.showing import training_examples
from ftkit.training.batches import Collator, EpochBatches, micro_batches
from ftkit.training.documents import DocumentHead
from ftkit.training.heads import IGNORED
from ftkit.training.packing import best_fit, joined

SIZE = 160
Folder = Callable[[str], Path]


@given(st.lists(st.integers(1, 20), max_size=60))
def test_every_row_is_in_one_sequence_that_it_fits_best(lengths: list[int]) -> None:
    """Against the rule by hand: the longest first, each in the fullest sequence that takes it."""
    groups = best_fit(lengths, 20)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    plain: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        fits = [group for group in plain if sum(lengths[one] for one in group) + lengths[row] <= 20]
        if fits:
            max(fits, key=lambda group: sum(lengths[one] for one in group)).append(row)
        else:
            plain.append([row])
    assert sorted(sum(lengths[row] for row in group) for group in groups) == sorted(
        sum(lengths[row] for row in group) for group in plain
    )


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
def test_another_neighbour_changes_no_logit(architecture: str, still: Folder) -> None:
    """To the bit; and the logits are those of the row alone."""
    folder = still(architecture)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    head = DocumentHead("decoder", packing=True)
    generator = random.Random(0)

    def row(length: int) -> dict[str, list[int]]:
        ids = generator.choices(range(3, len(tokenizer)), k=length)
        return {"input_ids": ids, "attention_mask": [1] * length, "labels": ids}

    def logits(*rows: dict[str, list[int]]) -> torch.Tensor:
        """Those from which the last row's tokens are foretold; the sequence is padded."""
        seen: list[torch.Tensor] = []
        hook = model.get_output_embeddings().register_forward_hook(lambda *found: seen.append(found[2]))
        batch = Collator(tokenizer, head, SIZE).pad([joined(rows), joined([row(60)])])
        end = sum(len(one["input_ids"]) for one in rows)
        labels = torch.full(batch["input_ids"].shape, IGNORED)
        labels[0, :end] = 5
        with torch.inference_mode():
            head.outputs(model, batch, labels)
        hook.remove()
        return seen[0][end - len(rows[-1]["input_ids"]) : end]

    first, other, last = row(20), row(20), row(20)
    found = logits(first, last)
    assert torch.equal(logits(other, last), found)
    assert not torch.equal(logits(last, first), found)
    torch.testing.assert_close(logits(last), found, rtol=1e-5, atol=1e-6)


@pytest.fixture
def packing(recipe: dict[str, Any], still: Folder, tmp_path: Path) -> dict[str, Any]:
    """One epoch over packed rows whose steps leave the weights where they are."""
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, texts())))
    return recipe | {
        "task": {"type": "text2text", "packing": True},
        "model": {"name_or_path": str(still("gpt2")), "max_length": SIZE},
        "data": {"train_file": str(tmp_path / "rows.jsonl")},
        "training": {
            "num_train_epochs": 1, "max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 1e-30,
            "logging_steps": 1, "per_device_train_batch_size": 8, "save_strategy": "no",
        },
    }  # fmt: skip


def plain_steps(recipe: dict[str, Any]) -> tuple[list[Any], list[float]]:
    """What transformers' own loss gives for the rows of each batch, one at a time."""
    folder = recipe["model"]["name_or_path"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    set_seed(SEED)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = [plain_text2text(row, tokenizer, encoder_decoder=False) for row in texts()]
    groups = best_fit([len(row["input_ids"]) for row in rows], SIZE)
    assert 8 < len(groups) < 0.7 * len(rows)
    steps, losses = [], []
    for batch in EpochBatches(total=len(groups), size=8, seed=SEED, rank=0, processes=1):
        chosen = [rows[row] for group, *_ in batch for row in groups[group]]
        tokens = [sum(label != IGNORED for label in row["labels"]) for row in chosen]
        model.zero_grad()
        total = 0.0
        for row, count in zip(chosen, tokens, strict=True):
            loss = model(**{name: torch.tensor([row[name]]) for name in ("input_ids", "labels")}).loss
            (loss * count / sum(tokens)).backward()
            total += loss.item() * count / sum(tokens)
        losses.append(total)
        steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    return steps, losses


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_gradients_equal_those_of_rows_of_their_own(
    architecture: str, packing: dict[str, Any], still: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the batch of 8 sequences is cut: in micro-batches, or in accumulated steps."""
    packing["model"]["name_or_path"] = str(still(architecture))
    plain, plain_losses = plain_steps(packing)
    cuts: list[Any] = []
    halves = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    for changed in ({}, halves):
        with monkeypatch.context() as patch:
            patch.setattr("ftkit.training.estimator.pass_overhead", lambda model: 1)
            patch.setattr(
                "ftkit.training.engine.micro_batches",
                lambda *given, **more: cuts.append(micro_batches(*given, **more)) or cuts[-1],
            )
            ours, losses = engine_gradients(packing | {"training": packing["training"] | changed}, patch)
        for one, other in zip(ours, plain, strict=True):
            assert_same_gradients(one, other)
        assert losses == pytest.approx(plain_losses, rel=1e-5)
    assert max(map(len, cuts)) > 1


def test_documents_share_a_sequence_without_seeing_each_other(
    packing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same gradient as without packing, where both see all rows in one batch."""
    packing["training"]["per_device_train_batch_size"] = 32
    found = []
    for packed in (False, True):
        task = {"type": "language_modeling", "documents": "separate", "packing": packed}
        with monkeypatch.context() as patch:
            ((gradients,), (loss,)) = engine_gradients(packing | {"task": task}, patch)
        found.append((gradients, loss))
    assert_same_gradients(found[1][0], found[0][0])
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-5)


def test_a_packed_run_resumes_exactly_and_counts_rows(
    packing: dict[str, Any], tiny: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing["model"]["name_or_path"] = str(tiny("gpt2"))  # with dropout
    packing["training"] = {
        "num_train_epochs": 2, "learning_rate": 5e-3, "per_device_train_batch_size": 2,
        "save_strategy": "steps", "save_steps": 2,
    }  # fmt: skip
    straight = ftkit.finetune(packing, [f"output_dir={tmp_path / 'straight'}"])
    with monkeypatch.context() as patch:
        stop_after(7, patch)
        with pytest.raises(KeyboardInterrupt):
            ftkit.finetune(packing)
    assert files(ftkit.finetune(packing, resume=True).folder) == files(straight.folder)

    training = straight.manifest["training"]
    sequences = training["packed_sequences"]
    assert training["steps"] == 2 * -(-sequences // 2), "a batch counts sequences"
    tokenizer = AutoTokenizer.from_pretrained(tiny("gpt2"))
    lengths = [len(plain_text2text(row, tokenizer, encoder_decoder=False)["input_ids"]) for row in texts()]
    assert sequences == len(best_fit(lengths, SIZE))
    speed = training["speed"]
    seconds = speed["training_seconds"]
    assert speed["examples_per_second"] * seconds == pytest.approx(2 * len(texts()), rel=0.02)
    assert speed["tokens_per_second"] * seconds == pytest.approx(2 * sum(lengths), rel=0.02)


def test_examples_show_the_rows_of_a_sequence(packing: dict[str, Any]) -> None:
    (example,) = training_examples(ftkit.load_recipe(packing), 1)
    starts = [start for start, _ in example.rows]
    assert len(starts) > 1
    assert starts[0] == 0
    for start, where in example.rows:
        assert where in example.where
        row = texts()[int(where.rpartition(":")[2]) - 1]
        read = "".join(example.reads[start:]).replace("Ġ", " ").replace("Ċ", "\n")
        assert read.startswith(f"Input: {row['text']}\nOutput: {row['target']}<|endoftext|>")
        assert not example.learned[start]
    lines = list(example.lines())
    assert lines[1] == f"    -- {example.rows[0][1]}"
    assert [line for line in lines if line.startswith("    0 ")] == ["    0   I"] * len(starts)


def test_models_that_mix_rows_are_refused(packing: dict[str, Any], tiny: Folder, tmp_path: Path) -> None:
    """OPT takes positions, but its mask does not look at them; T5 has an encoder."""
    for architecture, reason in (("opt", "rows that share a sequence see each other"), ("t5", "is for deco")):
        with pytest.raises(UsageError, match=reason):
            ftkit.finetune(packing | {"model": {"name_or_path": str(tiny(architecture))}})
    assert not (tmp_path / "run").exists()


def test_nothing_foretells_the_first_token_of_a_row() -> None:
    """Not even where a row is learned from its first token on, as one that begins with an answer."""
    rows = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids} for ids in ([5, 6, 7], [8, 9])
    ]
    found = joined(rows)
    assert found["labels"] == [IGNORED, 6, 7, IGNORED, 9]
    assert found["position_ids"] == [0, 1, 2, 0, 1]
