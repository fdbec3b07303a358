"""A run that cannot go on, or cannot learn, says so and stops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ftkit
from ftkit.errors import DivergedError, InputError
from ftkit.training.engine import Engine


def test_a_loss_that_is_not_finite_stops_and_names_the_rows(recipe: dict[str, Any]) -> None:
    with pytest.raises(DivergedError, match=r"not finite at step \d+") as caught:
        ftkit.finetune(recipe, ["training.learning_rate=1e30", "training.max_grad_norm=0"])
    assert "train.csv:" in caught.value.where
    assert caught.value.exit_code == 3


def test_a_gradient_that_is_not_finite_stops(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    original = Engine.training_step

    def poison(self: Engine, model: Any, *arguments: Any, **options: Any) -> Any:
        loss = original(self, model, *arguments, **options)
        if self.state.global_step == 3:
            next(p for p in model.parameters() if p.grad is not None).grad[0] = float("nan")
        return loss

    monkeypatch.setattr(Engine, "training_step", poison)
    with pytest.raises(DivergedError, match="the gradient is not finite at step 4") as caught:
        ftkit.finetune(recipe)
    # Any of the step's rows may be to blame: a batch of eight.
    assert caught.value.where.count("train.csv:") == 5
    assert caught.value.where.endswith(" and 3 more")


def test_a_saved_model_that_predicts_otherwise_is_an_error(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Engine.save_weights

    def spoil(self: Engine, folder: Any, *given: Any, **options: Any) -> None:
        if folder.name == "model":
            self.model.classifier.bias.data += 1e-3
        original(self, folder, *given, **options)
        if folder.name == "model":
            self.model.classifier.bias.data -= 1e-3

    monkeypatch.setattr(Engine, "save_weights", spoil)
    with pytest.raises(InputError, match="predicts otherwise than the trained one"):
        ftkit.finetune(recipe)


def test_a_run_whose_first_rows_do_not_fit_finishes(
    recipe: dict[str, Any], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = [{"text": "a", "target": "b" * 100}] * 70 + [{"text": "a", "target": "b"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe |= {
        "task": {"type": "text2text", "truncation": "drop"},
        "model": {"name_or_path": str(tiny("gpt2")), "max_length": 40},
        "data": {"train_file": str(tmp_path / "train.jsonl")},
        "training": {"max_steps": 1},
    }
    assert ftkit.finetune(recipe).manifest["finished"]


def test_truncated_rows_are_counted(recipe: dict[str, Any]) -> None:
    run = ftkit.finetune(recipe, ["model.max_length=6", "training.max_steps=1"])
    assert run.manifest["training"]["truncated_rows"] > 20
    assert run.manifest["training"]["max_length"] == 6
