"""What a run says of its speed: real tokens, not padding."""

from __future__ import annotations

import csv
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

import ftkit
from ftkit.run import Run
from ftkit.training import throughput
from ftkit.training.throughput import Meter, matmul_rate


def test_figures_count_real_tokens(recipe: dict, colours: Path) -> None:
    run = ftkit.finetune(recipe)
    training = run.manifest["training"]
    speed = training["speed"]
    tokenizer = AutoTokenizer.from_pretrained(recipe["model"]["name_or_path"])
    with (colours / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    tokens = sum(len(tokenizer(row["text"])["input_ids"]) for row in rows)
    epochs = recipe["training"]["num_train_epochs"]
    assert speed["examples_per_second"] * speed["training_seconds"] == pytest.approx(
        epochs * len(rows), rel=0.02
    )
    assert speed["tokens_per_second"] * speed["training_seconds"] == pytest.approx(epochs * tokens, rel=0.02)
    assert 0 <= speed["padding"] < 1
    assert 0 < speed["training_seconds"] <= training["train_seconds"]
    assert speed["peak_memory_gib"] > 0
    assert 0 < speed["matmul_share"] < 1


def test_what_comes_before_the_first_batch_is_no_training(
    recipe: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as hashing the weights of a large base."""
    start = Run.start

    def slow(*given: Any, **options: Any) -> None:
        time.sleep(8)
        start(*given, **options)

    monkeypatch.setattr(Run, "start", slow)
    run = ftkit.finetune(recipe)
    assert run.manifest["training"]["speed"]["training_seconds"] < 8


def test_rate_is_that_of_a_product() -> None:
    """Within a factor of ten of one product timed by torch's own benchmark."""
    from torch.utils.benchmark import Timer

    a = torch.ones(1024, 1024)
    seconds = Timer("a @ a", globals={"a": a}).timeit(3).median
    rate = 2 * 1024**3 / seconds
    assert rate / 10 < matmul_rate("cpu", "fp32") < 10 * rate


def test_profile(ftkit: Callable, recipe_file: Path, recipe: dict) -> None:
    done = ftkit("finetune", recipe_file, "--profile", "--set", "training.max_steps=8")
    assert done.returncode == 0, done.stderr
    assert "examples/s" in done.stderr
    with gzip.open(Path(recipe["output_dir"]) / "profile.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert any("aten::addmm" in event.get("name", "") for event in events)


def test_the_share_is_of_real_tokens_and_of_what_each_weight_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """12 frozen weights and 15 trained ones over 4 tokens in 2 seconds; 3 more go to an evaluation."""
    now = [100.0]
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(throughput, "matmul_rate", lambda device, precision: 1000.0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3, bias=False), nn.Linear(3, 5, bias=False))
    model[1].requires_grad_(requires_grad=False)
    batch = {"attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}
    meter = Meter()
    meter.start()
    meter.count(batch)
    meter.count_pass(batch, padded=True)
    now[0] += 2
    with meter.pause():
        now[0] += 3
    found = meter.figures(model, "fp32")
    assert (found["training_seconds"], found["examples_per_second"], found["tokens_per_second"]) == (2, 1, 2)
    assert found["padding"] == pytest.approx(2 / 6, abs=1e-4)
    assert found["matmul_share"] == pytest.approx((4 * 12 + 6 * 15) * 4 / 2 / 1000)
    meter.left_out = 1
    after = meter.figures(model, "fp32", [model[2].weight])["matmul_share"]
    assert after == pytest.approx(((4 * 12 + 6 * 15) * 4 - 6 * 15) / 2 / 1000)
