"""What a model card says, by task and method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
