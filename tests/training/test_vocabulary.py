"""Losses in chunks of a large vocabulary: the same numbers in less memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from ftkit.training import memory, vocabulary
from ftkit.training.documents import DocumentHead

AUTO = {
    "decoder": AutoModelForCausalLM,
    "encoder": AutoModelForMaskedLM,
    "encoder_decoder": AutoModelForSeq2SeqLM,
}


def capped(folder: Path) -> Any:
    """Gemma 2 caps its logits after the output layer."""
    config = Gemma2Config(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.05,
    )  # fmt: skip
    return Gemma2ForCausalLM(config)


def loaded(architecture: str, kind: str, whole: Callable[[str], Path], tmp_path: Path) -> Any:
    if architecture == "gemma2":
        return capped(tmp_path)
    return AUTO[kind].from_pretrained(whole(architecture))


def gradients(model: Any, kind: str, precision: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """Losses and gradients of three rows, of which some tokens are learned."""
    torch.manual_seed(0)
    ids = torch.randint(5, 40, (3, 7))
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.3, -100)
    model.train()
    model.zero_grad()
    torch.manual_seed(1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        losses = DocumentHead(kind, label_smoothing=0.1).outputs(model, inputs, labels)  # type: ignore[arg-type]
    (losses.sum() / 5).backward()
    return losses.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("gpt2", "decoder"),
        ("llama", "decoder"),
        ("gemma2", "decoder"),
        ("t5", "encoder_decoder"),
        ("bart", "encoder_decoder"),
        ("bert", "encoder"),
    ],
)
def test_chunks_change_no_loss_and_no_gradient(
    architecture: str,
    kind: str,
    precision: torch.dtype,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dropout included: chunks draw no random numbers of their own."""
    model = loaded(architecture, kind, whole, tmp_path)
    losses, expected = gradients(model, kind, precision)
    monkeypatch.setattr(vocabulary, "_MOST_LOGITS", 0)
    monkeypatch.setattr(vocabulary, "_CHUNK", 4 * model.config.vocab_size)
    chunks = []
    original = vocabulary._Loss.apply
    monkeypatch.setattr(vocabulary._Loss, "apply", lambda *given: chunks.append(1) or original(*given))
    again, found = gradients(model, kind, precision)
    assert len(chunks) == (0 if architecture == "gemma2" else math.ceil((losses != 0).sum() / 4))
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if precision == torch.float32 else {"rtol": 2e-2, "atol": 2e-3}
    torch.testing.assert_close(again, losses, **tolerance)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **tolerance)


def test_chunks_need_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 tokens over 50,000 entries: nothing is kept but 200 MB of logits in bf16."""
    config = GPT2Config(vocab_size=50_000, n_positions=1024, n_embd=16, n_layer=1, n_head=1)
    model = GPT2LMHeadModel(config)

    def train(rows: int) -> None:
        ids = torch.randint(0, 50_000, (rows, 1000))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.autocast("cpu", torch.bfloat16):
            losses = DocumentHead("decoder").outputs(model, inputs, ids)
        losses.sum().backward()

    chunked = memory._peak(model, train, 2)
    monkeypatch.setattr(vocabulary, "_MOST_LOGITS", 2**40)
    assert chunked < 0.4 * memory._peak(model, train, 2)
