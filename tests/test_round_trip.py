"""A saved run needs no ftkit: transformers (and peft) load it in a fresh process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

import ftkit

ARCHITECTURES = ["bert", "distilbert", "modernbert", "deberta-v2", "gpt2", "llama", "t5"]


def saved(run: ftkit.Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]


def fresh(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def card_snippet(run: ftkit.Run, example: str) -> str:
    """The Python of the model card, with a real text for the dots."""
    (code,) = re.findall(r"```python\n(.*?)```", (run.folder / "README.md").read_text(), re.S)
    assert "ftkit" not in code
    return code.replace('"..."', repr(example)).replace("max_length=", "top_k=None, max_length=")


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_model_card_snippet_in_a_fresh_process(
    architecture: str, method: str, recipe: dict[str, Any], tiny: Callable[[str], Path]
) -> None:
    run = ftkit.finetune(recipe | {"method": method, "model": {"name_or_path": str(tiny(architecture))}})
    row = saved(run)[0]
    printed = fresh(card_snippet(run, row["text"]), run.folder)
    scores = {one["label"]: one["score"] for one in eval(printed)}
    assert scores == pytest.approx(row["scores"], abs=1e-5)


def test_model_card_snippet_of_a_run_on_a_run(recipe: dict[str, Any], tmp_path: Path) -> None:
    """The base is the model in the other run's folder."""
    base = ftkit.finetune(recipe, [f"output_dir={tmp_path / 'base'}"])
    run = ftkit.finetune(recipe | {"method": "lora", "model": {"name_or_path": str(base.folder)}})
    row = saved(run)[0]
    scores = {one["label"]: one["score"] for one in eval(fresh(card_snippet(run, row["text"]), run.folder))}
    assert scores == pytest.approx(row["scores"], abs=1e-5)
    adapters = json.loads((run.folder / "model" / "adapter_config.json").read_text())
    assert adapters["base_model_name_or_path"] == str(base.folder / "model")


def test_pipeline_predicts_what_the_run_recorded(recipe: dict[str, Any]) -> None:
    run = ftkit.finetune(recipe)
    classify = pipeline("text-classification", model=str(run.folder / "model"), top_k=None)
    for row in saved(run):
        scores = {one["label"]: one["score"] for one in classify([row["text"]])[0]}
        assert scores == pytest.approx(row["scores"], abs=1e-5)
        assert max(scores, key=scores.__getitem__) == row["prediction"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_equals_unmerged(
    architecture: str, recipe: dict[str, Any], tiny: Callable[[str], Path], ftkit: Any, tmp_path: Path
) -> None:
    import ftkit as library

    recipe |= {"method": "lora", "model": {"name_or_path": str(tiny(architecture))}}
    run = library.finetune(recipe)
    done = ftkit("export", run.folder, "--merge", "--output", tmp_path / "merged", "--json")
    assert done.returncode == 0, done.stderr
    classify = pipeline("text-classification", model=json.loads(done.stdout)["model"], top_k=None)
    for row in saved(run):
        scores = {one["label"]: one["score"] for one in classify([row["text"]])[0]}
        assert scores == pytest.approx(row["scores"], abs=1e-4)


def test_lora_saves_every_new_parameter(recipe: dict[str, Any], tiny: Callable[[str], Path]) -> None:
    from safetensors import safe_open

    run = ftkit.finetune(recipe | {"method": "lora", "model": {"name_or_path": str(tiny("distilbert"))}})
    with safe_open(run.folder / "model" / "adapter_model.safetensors", "pt") as file:
        names = set(file.keys())
    for parameter in run.manifest["training"]["new_parameters"]:
        assert f"base_model.model.{parameter}" in names
    config = json.loads((run.folder / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny("distilbert"))


def test_pairs_and_several_labels(recipe: dict[str, Any], tmp_path: Path) -> None:
    rows = [
        {"premise": f"the {a}", "hypothesis": f"it is {b}", "tags": [t for t in (a, b) if t != "blue"]}
        for a in ("red", "green", "blue")
        for b in ("red", "green", "blue")
    ] * 4
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = ftkit.finetune(
        recipe
        | {
            "task": {"type": "classification", "multi_label": True},
            "data": {
                "data_dir": str(tmp_path),
                "columns": {"text": "premise", "text_pair": "hypothesis", "label": "tags"},
            },
            "metrics": ["micro_f1", "samples_f1", "hamming_loss", "per_label"],
        }
    )
    row = saved(run)[3]
    assert row["text_pair"] == "it is red"
    code = card_snippet(run, "...").replace(
        "{\"text\": '...', \"text_pair\": '...'}", repr({"text": row["text"], "text_pair": row["text_pair"]})
    )
    printed = fresh(code.replace("top_k=None, max_length=", "max_length="), run.folder)
    scores = {one["label"]: one["score"] for one in eval(printed)}
    assert scores == pytest.approx(row["scores"], abs=1e-5)
    (prediction,) = ftkit.predict(run, [(row["text"], row["text_pair"])])
    assert prediction.scores == pytest.approx(row["scores"], abs=1e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    ("labels", "kept"),
    [(["red", "green", "blue"], True), (["cold", "warm", "hot"], False), (None, True)],
)
def test_the_head_of_a_checkpoint_says_the_labels_of_the_recipe(
    method: str, labels: list[str] | None, kept: bool, recipe: dict[str, Any], tiny: Any, tmp_path: Path
) -> None:
    """In another order, it is put in order; one for other labels is a new one, which adapters must bring."""
    names = {} if labels is None else {"id2label": dict(enumerate(labels))}
    base = AutoModelForSequenceClassification.from_pretrained(tiny("bert"), num_labels=3, **names)
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny("bert")).save_pretrained(tmp_path / "base")
    recipe |= {"method": method, "model": {"name_or_path": str(tmp_path / "base")}}
    recipe["training"] = {"max_steps": 1, "learning_rate": 1e-9}
    run = ftkit.finetune(recipe)
    assert run.labels == ("blue", "green", "red")
    assert bool(run.manifest["training"]["new_parameters"]) == (labels is not None)
    classify = pipeline("text-classification", model=base, tokenizer=str(tmp_path / "base"), top_k=None)
    for row in saved(run)[:4]:
        expected = {one["label"]: one["score"] for one in classify([row["text"]])[0]}
        if labels is None:
            expected = {run.labels[int(name[-1])]: score for name, score in expected.items()}
        assert (expected == pytest.approx(row["scores"], abs=1e-4)) == kept
    row = saved(run)[0]
    scores = {one["label"]: one["score"] for one in eval(fresh(card_snippet(run, row["text"]), run.folder))}
    assert scores == pytest.approx(row["scores"], abs=1e-5)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_adapters_on_a_matrix_that_two_layers_share_are_merged_into_one(
    target: str, tiny: Callable[[str], Path], ftkit: Any, tmp_path: Path
) -> None:
    import ftkit as library

    base = AutoModelForCausalLM.from_pretrained(tiny("llama"))
    base.config.tie_word_embeddings = True
    base.tie_weights()
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny("llama")).save_pretrained(tmp_path / "base")
    (tmp_path / "train.jsonl").write_text('{"text": "red", "target": "blue"}\n' * 8)
    recipe = {
        "task": "text2text",
        "model": {"name_or_path": str(tmp_path / "base"), "max_length": 64},
        "data": {"train_file": str(tmp_path / "train.jsonl"), "test_file": str(tmp_path / "train.jsonl")},
        "method": {"type": "lora", "target_modules": ["q_proj", target]},
        "training": {"max_steps": 4, "learning_rate": 0.05},
        "metrics": ["answer_loss"],
        "generation": {"max_new_tokens": 4},
        "engine": {"precision": "fp32"},
        "output_dir": str(tmp_path / "run"),
    }
    run = library.finetune(recipe)
    done = ftkit("export", run.folder, "--merge", "--output", tmp_path / "merged", "--json")
    assert done.returncode == 0, done.stderr
    merged = AutoModelForCausalLM.from_pretrained(json.loads(done.stdout)["model"])
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), run.folder / "model"
    )
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)
