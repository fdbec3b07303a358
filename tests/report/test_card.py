"""What a model card says, by task and method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard

from ftkit.recipe import load_recipe
from ftkit.report.card import model_card
from ftkit.run import Run

FULL: dict[str, Any] = {"type": "full"}
PAIRS: dict[str, Any] = {"trained": "on pairs"}
PROMPT: dict[str, Any] = {"type": "prompt", "template": "{{ text }}"}


@pytest.mark.parametrize(
    ("task", "method", "labels", "says", "says_not"),
    [
        ({"type": "text2text"}, FULL, [], "`ftkit finetune recipe.yaml`", "Labels:"),
        ({"type": "text2text"}, PROMPT, [], "`ftkit eval recipe.yaml`", "Labels:"),
        ({"type": "classification"}, PROMPT, ["a", "b"], "Labels: a, b.\n", "ftkit finetune"),
        (
            {"type": "classification", "multi_label": True, "threshold": 0.3}, FULL, ["a", "b"],
            "ftkit predicts the labels whose probability is at least 0.3.", "ftkit eval",
        ),
        ({"type": "classification"}, FULL, ["a", "b"], "Labels: a, b.\n", "probability"),
        ({"type": "text2text"}, FULL, [], '`ftkit predict run --text "..."`', "pair"),
        ({"type": "text2text"}, PAIRS, [], '`ftkit predict run --text "..." --text-pair "..."`', "{{"),
        ({"type": "text2text"}, PAIRS, [], r'tokenizer("Input: ...\n...\nOutput:"', "{{"),
        (
            {"type": "text2text", "template": "Q: {{text}} C: {{ text_pair }}"}, PAIRS, [],
            'tokenizer("Q: ... C: ..."', "{{",
        ),
        (
            {"type": "classification", "formulation": "text"}, PAIRS, ["a", "b"],
            r'tokenizer("...\n...\nLabel:"', "{{",
        ),
        ({"type": "multiple_choice"}, FULL, [], "`ftkit predict run questions.jsonl`", "--text"),
    ],
)  # fmt: skip
def test_a_card_says_what_holds(
    task: dict[str, Any], method: dict[str, Any], labels: list[str], says: str, says_not: str, tmp_path: Path
) -> None:
    pairs, method = method is PAIRS, FULL if method is PAIRS else method
    (tmp_path / "train.csv").write_text("text,label\n")
    recipe = load_recipe(
        {
            "task": task, "method": method, "model": {"name_or_path": "some/model"},
            "data": {"train_file": str(tmp_path / "train.csv")}, "output_dir": str(tmp_path / "run"),
        }
    )  # fmt: skip
    figures = {"max_length": 64, "auto_class": "AutoModelForCausalLM"}
    manifest = {
        "versions": {},
        "data": {},
        "notes": [],
        "labels": labels,
        "precision": "fp32",
        "pairs": pairs,
    }
    card = model_card(Run(tmp_path / "run", recipe, {**manifest, "training": figures}))
    assert says in card
    assert says_not not in card


@pytest.mark.parametrize(
    ("base", "data", "method", "known"),
    [
        (
            "org/model", {"dataset_name": "org/data", "dataset_config_name": "en", "revision": "v2"}, FULL,
            {
                "base_model": "org/model", "datasets": ["org/data"], "library_name": "transformers",
                "pipeline_tag": "text-classification", "tags": ["ftkit"],
            },
        ),
        (
            "package:some/model", {"dataset_name": "org/data", "test_fraction": 0.1}, {"type": "lora"},
            {
                "datasets": ["org/data"], "library_name": "peft",
                "pipeline_tag": "text-classification", "tags": ["ftkit", "lora"],
            },
        ),
        (
            "./model", {"train_file": "train.csv"}, FULL,
            {"library_name": "transformers", "pipeline_tag": "text-classification", "tags": ["ftkit"]},
        ),
    ],
)  # fmt: skip
def test_the_hub_reads_a_card(
    base: str,
    data: dict[str, Any],
    method: dict[str, Any],
    known: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Base, data and scores are named as the Hub looks for them, and none that only this machine has."""
    monkeypatch.chdir(tmp_path)
    Path("train.csv").write_text("text,label\n")
    recipe = load_recipe(
        {
            "task": {"type": "classification"}, "method": method, "model": {"name_or_path": base},
            "data": data, "output_dir": "run",
        }
    )  # fmt: skip
    manifest = {
        "versions": {}, "data": {}, "notes": [], "labels": ["a", "b"], "precision": "fp32", "pairs": False,
        "training": {"max_length": 64, "auto_class": "AutoModelForSequenceClassification"},
    }  # fmt: skip
    scores = {"accuracy": {"value": 0.75, "low": 0.7, "high": 0.8}}
    metrics = {"split": "test", "rows": 9, "metrics": scores, "details": {}}
    Path("run").mkdir()
    Path("run/metrics.json").write_text(json.dumps(metrics))
    card = ModelCard(model_card(Run(Path("run").absolute(), recipe, manifest)))
    expected = [
        EvalResult(
            "text-classification", "org/data", "org/data", "accuracy", 0.75,
            dataset_config="en", dataset_revision="v2", dataset_split="test",
        )
    ]  # fmt: skip
    found = card.data.to_dict()
    named = {name: value for name, value in found.items() if name not in ("model-index", "model_name")}
    assert named == known
    assert (card.data.eval_results or []) == (expected if base == "org/model" else [])
    assert str(tmp_path) not in card.data.to_yaml()
