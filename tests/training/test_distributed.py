"""Two processes with batches of 4 train like one with 8: replicated (DDP) and sharded (FSDP2).

The losses agree to 1e-4 relative, the weights to 1e-4 relative and 1e-6 absolute.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import write_colours
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import ftkit
from ftkit.errors import UsageError
from ftkit.training import sharding

TRAINING = {
    "num_train_epochs": 2,
    "max_grad_norm": 1.0,
    "optim": "sgd",
    "learning_rate": 0.5,
    "logging_steps": 1,
    "lr_scheduler_type": "constant",
}
LAUNCH = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--num_processes",
    "2",
    "--main_process_port",
    "0",  # any that is free
]


def write_uneven(path: Path, rows: int, seed: int) -> None:
    """Colours, every tenth row long: the processes of a step cut their batches into unequal numbers."""
    generator = random.Random(seed)
    lines = ["text,label"]
    for number in range(rows):
        colour = generator.choice(("red", "green", "blue"))
        words = generator.choices("the a of and to in".split(), k=40 if number % 10 == 0 else 2)
        lines.append(f"{' '.join(words)} {colour},{colour}")
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def make(still: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a recipe by data and settings; the global batch is 8 for `rows`, 20 for uneven rows."""
    root = tmp_path_factory.mktemp("distributed")
    model = str(still("bert"))
    for rows in (21, 19, 17):
        (root / str(rows)).mkdir()
        write_colours(root / str(rows) / "train.csv", rows, seed=4)
        write_colours(root / str(rows) / "validation.csv", 9, seed=5)
    (root / "uneven").mkdir()
    write_uneven(root / "uneven" / "train.csv", 40, seed=0)
    write_uneven(root / "uneven" / "validation.csv", 9, seed=1)

    def recipe(name: str, data: str, method: str = "full", **training: Any) -> dict[str, Any]:
        return {
            "task": {"type": "classification"},
            "model": {"name_or_path": model},
            "data": {"data_dir": str(root / data)},
            "method": method,
            "training": TRAINING | training,
            "engine": {"precision": "fp32"},
            "output_dir": str(root / name),
            "seed": 7,
        }

    return recipe


def alone(make: Any, name: str, data: str, **options: Any) -> Path:
    """The folder of a run by one process."""
    size = 20 if data == "uneven" else 8
    return ftkit.finetune(make(name, data, per_device_train_batch_size=size, **options)).folder


def asking(make: Any, whole: Any, name: str) -> dict[str, Any]:
    """A recipe that lets a model write."""
    method = {"type": "prompt", "prompt": "label", "num_fewshot": 1, "answer": "generate"}
    changed = {"model": {"name_or_path": str(whole("gpt2"))}, "method": method}
    return make(name, "21") | changed


@pytest.fixture(scope="module")
def launched(make: Any, whole: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What two processes said that did all of the runs below, one after the other."""
    halves = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2}
    shards = {"per_device_train_batch_size": 10, "fsdp": True, "save_strategy": "steps", "save_steps": 1,
              "eval_strategy": "steps", "eval_steps": 1, "optim": "adamw_torch", "learning_rate": 5e-3,
              "num_train_epochs": 3, "logging_steps": 3}  # fmt: skip
    runs = [
        {"recipe": asking(make, whole, "asked-two"), "evaluate": True},
        *({"recipe": make(f"{n}-two", n, per_device_train_batch_size=4)} for n in ("21", "19", "17")),
        {"recipe": make("short", "uneven", per_device_train_batch_size=10), "rows": 3, "rank": 1},
        {"recipe": make("short-halves", "uneven", **halves), "rows": 3, "rank": 1},
        {"recipe": make("lora-shards", "uneven", "lora", per_device_train_batch_size=10, fsdp=True)},
        {"recipe": make("whole", "uneven", **shards)},
        {"recipe": make("stopped", "uneven", **shards), "stop": 4},
        {"recipe": make("stopped", "uneven", **shards), "resume": True},
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("launched") / "runs.json"
    path.write_text(json.dumps(runs))
    script = str(Path(__file__).parents[1] / "ranks.py")
    done = subprocess.run(
        [*LAUNCH, "--multi_gpu", script, str(path)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def assert_same(one: Path, two: Path, least: int = 4) -> None:
    """The same losses and weights, to the tolerance above."""
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, two)]
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert len(losses[0]) >= least
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    weights, other = (load_file(next((run / "model").glob("*.safetensors"))) for run in (one, two))
    assert weights.keys() == other.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("rows", ["21", "19", "17"])
def test_replicated_processes_equal_one(rows: str, make: Any, launched: str) -> None:
    """21, 19 and 17 rows: the last window gives the second process one row, none, and none."""
    one = alone(make, f"{rows}-one", rows)
    assert_same(one, one.with_name(f"{rows}-two"))


def test_all_repeat_the_step_when_one_runs_out_of_memory(make: Any, launched: str) -> None:
    """The second process has memory for three rows; with accumulation, its first batch is redone as well."""
    one = alone(make, "short-one", "uneven")
    assert_same(one, one.with_name("short"))
    assert_same(one, one.with_name("short-halves"))
    assert launched.count("out of memory; the step is repeated in parts of at most") >= 2


def test_sharded_adapters_equal_one_process(make: Any, launched: str) -> None:
    one = alone(make, "lora-one", "uneven", method="lora")
    assert_same(one, one.with_name("lora-shards"))


def test_prompts_are_answered_by_two_processes_as_by_one(make: Any, whole: Any, launched: str) -> None:
    one = ftkit.evaluate(asking(make, whole, "asked")).run.folder
    two = one.with_name("asked-two")
    assert (two / "predictions.jsonl").read_text() == (one / "predictions.jsonl").read_text()


def test_only_the_main_process_writes_an_evaluation(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ftkit.finetune(make("scored", "21", max_steps=1))
    monkeypatch.setenv("RANK", "1")
    scores = ftkit.evaluate(run.folder, split="validation")
    assert scores.metrics["metrics"] and not scores.folder.exists()
    monkeypatch.setenv("RANK", "0")
    assert ftkit.evaluate(run.folder, split="validation").metrics == scores.metrics
    assert (scores.folder / "predictions.jsonl").is_file()


def test_models_that_share_an_embedding_widely_are_not_sharded(tiny: Any) -> None:
    sharding.refuse_widely_shared(AutoModelForCausalLM.from_pretrained(tiny("gpt2")))
    with pytest.raises(UsageError, match=r"encoder\.embed_tokens, decoder\.embed_tokens"):
        sharding.refuse_widely_shared(AutoModelForSeq2SeqLM.from_pretrained(tiny("t5")))


def test_a_sharded_run_goes_on_where_it_was_stopped(make: Any, launched: str) -> None:
    whole = Path(make("whole", "uneven")["output_dir"])
    stopped = whole.with_name("stopped")
    assert (stopped / "log.jsonl").read_text() == (whole / "log.jsonl").read_text()
    assert_same(whole, stopped, least=2)


def test_sharded_processes_equal_one_on_the_command_line(make: Any, tmp_path: Path) -> None:
    """As the guide says it: evaluation, checkpoints, the best one taken up, the saved model compared."""
    recipe = make("shards", "uneven", per_device_train_batch_size=10)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = subprocess.run(
        [*LAUNCH, "--main_process_port", "0", "--use_fsdp", "--fsdp_version", "2",
         "-m", "ftkit", "finetune", "recipe.yaml", "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one = ftkit.finetune(make("shards-one", "uneven", per_device_train_batch_size=20))
    assert json.loads(done.stdout)["metrics"].keys() == one.metrics["metrics"].keys()
    assert_same(one.folder, Path(recipe["output_dir"]))
