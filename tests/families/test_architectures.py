"""Architectures beyond the first four: trained, saved, and used by transformers' auto class alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training.test_writing import build_loud
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import ftkit

DECODERS = ["qwen2", "qwen3", "mistral", "gemma", "gpt_neox", "opt"]
ENCODER_DECODERS = ["mt5", "bart"]
TEXTS = ["the red card", "where is my order, please? it was good", "a phone"]
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def loud(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model whose words hang on all that it reads."""
    folders: dict[str, Path] = {}

    def get(architecture: str) -> Path:
        if architecture not in folders:
            folder = tmp_path_factory.mktemp("loud") / architecture
            folders[architecture] = build_loud(tiny(architecture), folder)
        return folders[architecture]

    return get


def plain_text(folder: Path, architecture: str, text: str) -> str:
    """What transformers writes with the saved folder; it puts adapters on their base by itself."""
    auto = AutoModelForSeq2SeqLM if architecture in ENCODER_DECODERS else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = text if architecture in ENCODER_DECODERS else f"Input: {text}\nOutput:"
    inputs = tokenizer(prompt, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    written = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
    start = 0 if architecture in ENCODER_DECODERS else inputs["input_ids"].shape[1]
    return tokenizer.decode(written[start:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("architecture", DECODERS + ENCODER_DECODERS)
def test_a_saved_model_writes_the_same_without_ftkit(
    architecture: str,
    method: str,
    loud: Callable[[str], Path],
    recipe: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = [{"text": text, "target": text[::-1]} for text in TEXTS]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = ftkit.finetune(
        recipe
        | {
            "task": "text2text",
            "model": {"name_or_path": str(loud(architecture)), "max_length": 128},
            "data": {"train_file": str(tmp_path / "rows.jsonl")},
            "method": method,
            "training": {
                "max_steps": 2,
                "learning_rate": 1e-2,
                "per_device_train_batch_size": 2,
                "save_strategy": "no",
            },
            "generation": {"max_new_tokens": NEW_TOKENS},
            "metrics": ["answer_loss"],
        }
    )
    written = [prediction.value.text for prediction in ftkit.predict(run, TEXTS)]
    assert any(written)
    assert [plain_text(run.folder / "model", architecture, text) for text in TEXTS] == written
    assert run.manifest["training"]["new_parameters"] == []
    assert "language model head" not in caplog.text


def test_a_missing_language_model_head_is_said(
    tiny: Callable[[str], Path], recipe: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Many checkpoints hold a body alone; what a new head writes is learned in this run and nowhere else."""
    (tmp_path / "rows.jsonl").write_text('{"text": "the red card", "target": "red"}')
    tree = recipe | {
        "task": "text2text",
        "model": {"name_or_path": str(tiny("llama")), "max_length": 64},
        "data": {"train_file": str(tmp_path / "rows.jsonl")},
        "training": {"max_steps": 1},
        "generation": {"max_new_tokens": 8},
    }
    with caplog.at_level("INFO", logger="ftkit"):
        ftkit.finetune(tree)
    assert "no language model head that fits; new, from random numbers: lm_head.weight" in caplog.text
