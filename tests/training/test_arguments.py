"""Training arguments that cannot be, and what `accelerate launch` says beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ftkit
from ftkit.errors import InputError, UsageError
from ftkit.training.engine import Engine


def test_batches_that_are_all_left_out(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["training"] |= {"dataloader_drop_last": True}
    with pytest.raises(UsageError, match=r"dataloader_drop_last leaves no batch: there are 4 rows"):
        ftkit.finetune(recipe, limit=4)
    assert not (tmp_path / "run").exists()


def test_checkpointing_of_a_model_that_has_none(
    recipe: dict[str, Any], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe["model"] = {"name_or_path": str(tiny("albert"))}
    recipe["training"] |= {"activation_checkpointing": True}
    with pytest.raises(UsageError, match="transformers has none for this architecture") as caught:
        ftkit.finetune(recipe)
    assert caught.value.where == "model_type: albert"
    assert not (tmp_path / "run").exists()
    del recipe["training"]["activation_checkpointing"]
    assert ftkit.finetune(recipe).finished


@pytest.mark.parametrize(
    ("training", "kind", "says"),
    [
        ({"optim": "adamw_8bit"}, InputError, "bitsandbytes"),
        ({"optim": "schedule_free_adamw"}, InputError, "schedulefree"),
        ({"lr_scheduler_kwargs": {"foo": 1}}, UsageError, "foo"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, UsageError, "min_lr"),
        ({"report_to": "wandb"}, InputError, "wandb"),
        ({"optim_args": "betas"}, UsageError, "optim_args: 'betas' is not name=value"),
        ({"optim_args": "betas=1"}, UsageError, "betas=1 changes nothing: adamw_torch"),
        ({"optim": "sgd", "optim_args": "momentum=0.9, alpha=2"}, UsageError, "alpha=2 changes nothing"),
    ],
)
def test_what_training_would_miss_is_missed_before_a_run_is_replaced(
    training: dict[str, Any], kind: type[Exception], says: str, recipe: dict[str, Any]
) -> None:
    before = ftkit.finetune(recipe)
    files = {path: path.stat().st_mtime_ns for path in before.folder.rglob("*")}
    recipe["training"] |= training
    with pytest.raises(kind, match=says):
        ftkit.finetune(recipe, overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in before.folder.rglob("*")} == files


def test_steps_of_validation_without_rows_are_idle(recipe: dict[str, Any], colours: Path) -> None:
    recipe["data"] = {"train_file": str(colours / "train.csv")}
    recipe["training"] |= {"eval_steps": 2, "max_steps": 2}
    assert ftkit.finetune(recipe).finished


def test_an_optimizer_gets_its_arguments(recipe: dict[str, Any]) -> None:
    recipe["training"] |= {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"}
    assert ftkit.finetune(recipe).finished


@pytest.mark.parametrize(
    ("said", "saved", "validated"),
    [
        ({}, ("epoch", 500), ("epoch", None)),
        ({"save_steps": 5}, ("steps", 5), ("steps", 5)),
        ({"save_strategy": "steps", "save_steps": 5}, ("steps", 5), ("steps", 5)),
        ({"eval_steps": 4}, ("steps", 4), ("steps", 4)),
        ({"eval_strategy": "steps", "eval_steps": 4, "save_steps": 8}, ("steps", 8), ("steps", 4)),
        ({"eval_steps": 0.25, "save_strategy": "best"}, ("best", 500), ("steps", 0.25)),
        ({"save_strategy": "no"}, ("no", 500), ("epoch", None)),
        ({"eval_strategy": "epoch", "save_steps": 8}, ("epoch", 8), ("epoch", None)),
        ({"save_strategy": "epoch", "eval_steps": 8}, ("epoch", 500), ("epoch", 8)),
    ],
)
def test_the_model_is_validated_as_often_as_it_is_saved(
    said: dict[str, Any],
    saved: tuple[str, int],
    validated: tuple[str, int | None],
    recipe: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe["training"] |= said
    found = arguments(recipe, monkeypatch)
    assert (found.save_strategy, found.save_steps) == saved
    assert (found.eval_strategy, found.eval_steps) == validated
    assert found.load_best_model_at_end == (found.save_strategy != "no")


@pytest.mark.parametrize(("asked", "computed"), [("fp32", "no"), ("bf16", "bf16")])
def test_the_recipe_says_the_precision(
    asked: str, computed: str, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a configuration of accelerate says would scale losses and compute in another one."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    found = arguments(recipe | {"engine": {"precision": asked}}, monkeypatch)
    assert found.mixed_precision == computed
    assert not found.torch_compile


def test_a_backend_that_compiles_is_known(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    found = arguments(recipe, monkeypatch)
    assert (found.torch_compile, found.torch_compile_backend) == (True, "eager")


def arguments(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Those that the engine gets."""
    seen: list[Any] = []

    class SeenError(Exception):
        pass

    def note(_: Engine, model: Any, args: Any, **options: Any) -> None:
        seen.append(args)
        raise SeenError

    monkeypatch.setattr(Engine, "__init__", note)
    with pytest.raises(SeenError):
        ftkit.finetune(recipe)
    return seen[0]
