"""The engine's loss and gradients against plain transformers code, however the batch is cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_colours
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback, set_seed

import ftkit
from ftkit.dataset import load_records
from ftkit.training import estimator
from ftkit.training.batches import EpochBatches, micro_batches

ROWS = 21  # with batches of 8 the last window is short
BATCH = 8
SEED = 7


class Capture(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        self.steps.append({name: gradient.clone() for name, gradient in gradients.items()})


def engine_gradients(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Any], list[float]]:
    capture = Capture()
    original = estimator.training_callbacks
    monkeypatch.setattr(
        estimator, "training_callbacks", lambda *args, **options: [capture, *original(*args, **options)]
    )
    run = ftkit.finetune(recipe, overwrite=True)
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    return capture.steps, [entry["loss"] for entry in log if "loss" in entry]


def plain_gradients(recipe: dict[str, Any], weight: list[float] | None) -> tuple[list[Any], list[float]]:
    """What transformers' own loss gives for the same rows, a whole optimizer batch at a time."""
    checked = ftkit.load_recipe(recipe)
    dataset = load_records(checked.data, checked.task)
    tokenizer = AutoTokenizer.from_pretrained(checked.model.name_or_path)
    set_seed(SEED)
    model = AutoModelForSequenceClassification.from_pretrained(
        checked.model.name_or_path, num_labels=len(dataset.labels)
    ).eval()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    steps, losses = [], []
    for rows in EpochBatches(total=ROWS, size=BATCH, seed=SEED, rank=0, processes=1):
        records = [dataset["train"][row] for row, *_ in rows]
        batch = tokenizer([r.text for r in records], padding=True, return_tensors="pt")
        labels = torch.tensor([dataset.labels.index(r.target) for r in records])
        model.zero_grad()
        if weight is None:
            loss = model(**batch, labels=labels).loss
        else:
            loss = torch.nn.CrossEntropyLoss(weight=torch.tensor(weight))(model(**batch).logits, labels)
        loss.backward()
        losses.append(loss.item())
        steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    return steps, losses


def assert_same_gradients(ours: dict[str, torch.Tensor], plain: dict[str, torch.Tensor]) -> None:
    """Per tensor: |d| <= 1e-5 |g| + 1e-7 |g of all|; BERT's key biases are zero up to noise."""
    assert ours.keys() == plain.keys()
    whole = torch.stack([g.norm() for g in plain.values()]).norm()
    for name, gradient in plain.items():
        difference = (ours[name] - gradient).norm()
        assert difference <= 1e-5 * gradient.norm() + 1e-7 * whole, name


@pytest.fixture
def frozen_recipe(recipe: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """One epoch over 21 rows whose steps leave the weights where they are."""
    write_colours(tmp_path / "rows.csv", ROWS, seed=3)
    return recipe | {
        "data": {"train_file": str(tmp_path / "rows.csv")},
        "training": {
            "num_train_epochs": 1, "max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 1e-30,
            "logging_steps": 1, "per_device_train_batch_size": BATCH,
        },
    }  # fmt: skip


@pytest.mark.parametrize(("size", "accumulation"), [(8, 1), (2, 4), (4, 2)])
@pytest.mark.parametrize(
    "architecture", ["bert", "distilbert", "modernbert", "deberta-v2", "gpt2", "llama", "t5"]
)
def test_gradients_equal_plain_transformers(
    architecture: str,
    size: int,
    accumulation: int,
    frozen_recipe: dict[str, Any],
    still: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = frozen_recipe | {"model": {"name_or_path": str(still(architecture))}}
    recipe["training"] |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
    ours, our_losses = engine_gradients(recipe, monkeypatch)
    plain, plain_losses = plain_gradients(recipe, None)
    assert len(ours) == len(plain) == 3
    for one, other in zip(ours, plain, strict=True):
        assert_same_gradients(one, other)
    assert our_losses == pytest.approx(plain_losses, rel=1e-5)


def test_class_weights_equal_a_weighted_mean_over_the_whole_batch(
    frozen_recipe: dict[str, Any], still: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = frozen_recipe | {
        "model": {"name_or_path": str(still("bert"))},
        "task": {"type": "classification", "class_weights": {"red": 5.0, "blue": 0.5}},
    }
    recipe["training"] |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    ours, losses = engine_gradients(recipe, monkeypatch)
    plain, plain_losses = plain_gradients(recipe, [0.5, 1.0, 5.0])  # blue, green, red
    for one, other in zip(ours, plain, strict=True):
        assert_same_gradients(one, other)
    assert losses == pytest.approx(plain_losses, rel=1e-5)


def test_lora_trains_adapters_and_every_new_parameter_and_nothing_else(
    frozen_recipe: dict[str, Any], still: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = frozen_recipe | {"model": {"name_or_path": str(still("distilbert"))}, "method": "lora"}
    (first, *_), _ = engine_gradients(recipe, monkeypatch)
    heads = {name for name in first if "lora_" not in name}
    assert {name.rpartition("base_model.model.")[2] for name in heads} == {
        f"{module}.modules_to_save.default.{kind}"
        for module in ("classifier", "pre_classifier")
        for kind in ("weight", "bias")
    }
    assert any("attention.q_lin.lora_A" in name for name in first)


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_micro_batches_of_similar_length_leave_the_gradient_as_it_is(
    architecture: str,
    frozen_recipe: dict[str, Any],
    still: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A further pass is said to cost next to nothing, so every batch is cut into many parts."""
    recipe = frozen_recipe | {"model": {"name_or_path": str(still(architecture))}}
    cuts = []
    with monkeypatch.context() as patch:
        patch.setattr("ftkit.training.estimator.pass_overhead", lambda model: 1)
        patch.setattr("ftkit.training.estimator.unpadded_as_padded", lambda *_: None)
        patch.setattr(
            "ftkit.training.engine.micro_batches",
            lambda *given, **more: cuts.append(micro_batches(*given, **more)) or cuts[-1],
        )
        ours, losses = engine_gradients(recipe, patch)
    assert all(len(parts) == 2 for parts in cuts), "a batch of 8 is cut at multiples of 4 rows"
    for part in (part for parts in cuts for part in parts):
        padding = (part["attention_mask"][0] == 0).sum()
        assert padding < 4, "the longest row is rounded up to a multiple of 4 tokens"
    plain, plain_losses = plain_gradients(recipe, None)
    for one, other in zip(ours, plain, strict=True):
        assert_same_gradients(one, other)
    assert losses == pytest.approx(plain_losses, rel=1e-5)


def test_the_validation_loss_is_a_mean_over_rows_whatever_the_batches(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    """15 rows: in batches of 4 the last one has 3."""
    found = []
    for size in (4, 64):
        given = [f"training.per_device_eval_batch_size={size}", f"output_dir={tmp_path / str(size)}"]
        run = ftkit.finetune(recipe, given)
        log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
        found.append([entry["eval_loss"] for entry in log if "eval_loss" in entry])
    assert len(found[0]) == recipe["training"]["num_train_epochs"]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_every_seed_and_every_epoch_has_an_order_of_its_own() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        batches = EpochBatches(total=50, size=8, seed=seed, rank=0, processes=1)
        batches.set_epoch(epoch)
        return tuple(row for batch in batches for row, *_ in batch)

    orders = [order(seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert all(sorted(one) == list(range(50)) for one in orders)
    assert len(set(orders)) == 4
    assert order(2, 1) == orders[-1]
