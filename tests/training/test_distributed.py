"""Two processes with batches of 4 train like one with 8."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import write_colours

import ftkit


@pytest.mark.parametrize("rows", [21, 19, 17])
def test_two_gloo_processes_equal_one(rows: int, recipe: dict[str, Any], still: Any, tmp_path: Path) -> None:
    """21, 19 and 17 rows: the last window gives the second process one row, none, and none."""
    write_colours(tmp_path / "train.csv", rows, seed=4)
    write_colours(tmp_path / "validation.csv", 9, seed=5)
    recipe |= {
        "model": {"name_or_path": str(still("bert"))},
        "data": {"data_dir": str(tmp_path)},
        "training": {"num_train_epochs": 2, "max_grad_norm": 1.0, "optim": "sgd", "learning_rate": 0.5,
                     "logging_steps": 1, "lr_scheduler_type": "constant"},
    }  # fmt: skip
    one = ftkit.finetune(recipe, ["training.per_device_train_batch_size=8", f"output_dir={tmp_path / 'one'}"])
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    launched = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
         "--standalone", "-m", "ftkit",
         "finetune", str(tmp_path / "recipe.yaml"), "--json",
         "--set", "training.per_device_train_batch_size=4", "--set", f"output_dir={tmp_path / 'two'}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    printed = json.loads(launched.stdout)
    assert printed["metrics"].keys() == one.metrics["metrics"].keys()
    weights = load_file(one.folder / "model" / "model.safetensors")
    other = load_file(tmp_path / "two" / "model" / "model.safetensors")
    for name, tensor in weights.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    logs = [
        [json.loads(line) for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]
        for folder in ("one", "two")
    ]
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
