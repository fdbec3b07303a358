"""Every family on the tasks with a head, full and LoRA: trained, saved, loaded without ftkit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import pipeline

import ftkit

ARCHITECTURES = ["gpt2", "llama", "t5"]


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CoNLL files with two types that a word alone decides."""
    folder = tmp_path_factory.mktemp("tagged")
    generator = random.Random(0)
    choices = [("the", "O"), ("of", "O"), ("red", "B-COLOUR"), ("phone", "B-THING"), ("is", "O")]
    for split, rows in (("train", 24), ("test", 8)):
        sentences = [
            [*generator.choices(choices, k=generator.randint(3, 9)), choices[2]] for _ in range(rows)
        ]
        text = "\n\n".join("\n".join(f"{word}\t{tag}" for word, tag in words) for words in sentences)
        (folder / f"{split}.conll").write_text(text + "\n")
    return folder


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_classification(
    architecture: str, method: str, recipe: dict[str, Any], tiny: Callable[[str], Path]
) -> None:
    run = ftkit.finetune(recipe | {"model": {"name_or_path": str(tiny(architecture))}, "method": method})
    texts = ["where is the red card", "a much longer text about the blue phone of my good friend"]
    labels = [one.value for one in ftkit.predict(run, texts)]
    assert set(labels) <= {"red", "green", "blue"}
    if method == "full":
        classify = pipeline("text-classification", model=str(run.folder / "model"))
        assert [one["label"] for one in classify(texts, batch_size=2)] == labels


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ner(
    architecture: str, method: str, recipe: dict[str, Any], tiny: Callable[[str], Path], tagged: Path
) -> None:
    changed = {
        "task": "ner",
        "model": {"name_or_path": str(tiny(architecture)), "max_length": 48},
        "data": {"train_file": str(tagged / "train.conll"), "test_file": str(tagged / "test.conll")},
        "method": method,
    }
    run = ftkit.finetune(recipe | changed)
    assert run.metrics["metrics"]["entity_f1"]["value"] >= 0.0
    (prediction,) = ftkit.predict(run, ["the red phone of the red phone"])
    assert len(prediction.value.tags) == 7


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_missing_padding_token_is_supplied_in_tokenizer_and_model(
    architecture: str, recipe: dict[str, Any], tiny: Callable[[str], Path]
) -> None:
    tokenizer = json.loads((tiny(architecture) / "tokenizer_config.json").read_text())
    assert not tokenizer.get("pad_token"), "the checkpoint has none"
    run = ftkit.finetune(recipe | {"model": {"name_or_path": str(tiny(architecture))}})
    saved = json.loads((run.folder / "model/tokenizer_config.json").read_text())
    config = json.loads((run.folder / "model/config.json").read_text())
    assert saved["pad_token"] == saved["eos_token"]
    assert config["pad_token_id"] is not None
    # Padding changes nothing: alone or beside a longer text, the scores are the same.
    short, long = "red card", "the blue phone of my good friend in the big house"
    alone, together = ftkit.predict(run, [short])[0], ftkit.predict(run, [short, long])[0]
    assert together.scores == pytest.approx(alone.scores, abs=1e-5)
