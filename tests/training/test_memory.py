"""Too little memory: an accelerator repeats a step in smaller parts, for a CPU there is an estimate."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks import meeting
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import ftkit
from ftkit.errors import InputError
from ftkit.estimator import finished_estimator
from ftkit.exporting import export
from ftkit.training import estimator, memory
from ftkit.training.engine import Engine
from ftkit.training.estimator import TrainedEstimator
from ftkit.training.precision import lower_frozen, lowered, lowered_copy


def losses(run: Any) -> list[float]:
    lines = (run.folder / "log.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


@pytest.fixture
def still_recipe(recipe: dict[str, Any], still: Any, tmp_path: Path) -> Any:
    """Recipes of a model without dropout, each with a run folder of its own."""
    recipe["model"] = {"name_or_path": str(still("bert"))}
    recipe["training"] |= {"num_train_epochs": 1, "logging_steps": 1}
    return lambda name, **changes: recipe | {"output_dir": str(tmp_path / name)} | changes


@pytest.mark.parametrize("micro_batch", ["auto", "off"])
def test_a_step_that_does_not_fit_is_repeated_in_parts(
    micro_batch: str, still_recipe: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = {"precision": "fp32", "micro_batch": micro_batch}
    plenty = losses(ftkit.finetune(still_recipe("plenty", engine=engine)))
    monkeypatch.setattr(Engine, "compute_loss", meeting(rows=2))
    assert losses(ftkit.finetune(still_recipe("short", engine=engine))) == pytest.approx(plenty, rel=1e-5)
    assert "out of memory; the step is repeated in parts of at most" in caplog.text


def test_a_saved_model_is_compared_on_few_tokens(
    still_recipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All of 64 long rows at once would take more time and memory than some trainings."""
    (tmp_path / "train.csv").write_text("text,label\n" + f"{'red ' * 60},red\ngreen,green\n" * 100)
    seen: list[tuple[int, int]] = []
    forward = TrainedEstimator._forward

    def watched(self: TrainedEstimator, features: Any) -> Any:
        seen.append((len(features), max(len(row["input_ids"]) for row in features)))
        return forward(self, features)

    monkeypatch.setattr(TrainedEstimator, "_forward", watched)
    monkeypatch.setattr("ftkit.training.estimator._TOKENS_COMPARED", 256)
    recipe = still_recipe("few", data={"train_file": str(tmp_path / "train.csv")})
    ftkit.finetune(recipe, ["training.max_steps=1"])
    assert seen == [(32, 3), (32, 3)], "the trained model and the saved one, on the short rows"


def test_a_row_that_does_not_fit_is_named(still_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def compute_loss(self: Engine, model: Any, inputs: dict[str, Any], **options: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Engine, "compute_loss", compute_loss)
    with pytest.raises(InputError, match=r"a single row of \d+ tokens does not fit") as caught:
        ftkit.finetune(still_recipe("row"))
    assert "train.csv:" in caught.value.where


def part_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Padded tokens of the parts that are computed from now on."""
    sizes: list[int] = []
    original = Engine.compute_loss

    def compute_loss(self: Engine, model: Any, inputs: dict[str, Any], **options: Any) -> Any:
        sizes.append(inputs["input_ids"].numel())
        return original(self, model, inputs, **options)

    monkeypatch.setattr(Engine, "compute_loss", compute_loss)
    return sizes


class Measured(Exception):
    """Ends a run once its need is known."""


@pytest.fixture
def need(still_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> memory.Need:
    """What the recipe needs."""
    found = []

    def note(*arguments: Any, **options: Any) -> Any:
        found.append(estimate(*arguments, **options))
        raise Measured

    estimate = memory.estimate
    with monkeypatch.context() as patch, pytest.raises(Measured):
        patch.setattr(memory, "estimate", note)
        ftkit.finetune(still_recipe("measured"))
    return found[0]


def test_batches_are_cut_to_what_is_free(
    need: memory.Need, still_recipe: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plenty = losses(ftkit.finetune(still_recipe("plenty")))
    sizes = part_sizes(monkeypatch)
    monkeypatch.setattr(memory, "free_memory", lambda: int(need.peak(3 * need.tokens) / 0.8) + 1)
    assert losses(ftkit.finetune(still_recipe("cut"))) == pytest.approx(plenty, rel=1e-5)
    assert "batches are computed in parts of at most" in caplog.text
    assert max(sizes) <= 3 * need.tokens


def test_a_large_batch_is_computed_in_parts_although_it_fits(
    need: memory.Need, still_recipe: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exact = {"precision": "fp32"}
    whole = losses(ftkit.finetune(still_recipe("whole", engine=exact)))
    sizes = part_sizes(monkeypatch)
    monkeypatch.setattr(memory, "_PLENTY", 2 * need.row)
    parts = losses(ftkit.finetune(still_recipe("parts", engine=exact)))
    assert parts == pytest.approx(whole, rel=1e-5)
    assert max(sizes) <= 2 * need.tokens
    sizes.clear()
    ftkit.finetune(still_recipe("off", engine=exact | {"micro_batch": "off"}))
    assert max(sizes) > 2 * need.tokens
    assert "in parts of at most" not in caplog.text


def test_the_estimate_itself_takes_no_more_than_is_free(
    still_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    original = memory._peak

    def peak(model: Any, forward: Any, count: int) -> int:
        rows.append(count)
        return original(model, forward, count)

    monkeypatch.setattr(memory, "_peak", peak)
    monkeypatch.setattr(memory, "free_memory", lambda: 1)
    with pytest.raises(InputError, match="not enough memory"):
        ftkit.finetune(still_recipe("refused"))
    assert set(rows) == {1}


def test_activations_are_checkpointed_where_a_row_does_not_fit(
    need: memory.Need, still_recipe: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plenty = losses(ftkit.finetune(still_recipe("plenty")))
    monkeypatch.setattr(memory, "free_memory", lambda: int((need.peak(need.tokens) - 1) / 0.8))
    assert losses(ftkit.finetune(still_recipe("checkpointed"))) == pytest.approx(plenty, rel=1e-5)
    assert "activation checkpointing is turned on" in caplog.text


def test_a_model_that_does_not_fit_is_refused(
    need: memory.Need, still_recipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: need.fixed)
    with pytest.raises(InputError, match="not enough memory: one row of"):
        ftkit.finetune(still_recipe("refused"))
    assert not (tmp_path / "refused").exists()


def test_files_that_were_read_take_no_memory_in_a_container(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{2**20}\n")
    (tmp_path / "memory.current").write_text(f"{1_000_000}\n")
    (tmp_path / "memory.stat").write_text("anon 100000\ninactive_anon 7\ninactive_file 900000\n")
    assert memory.free_memory(tmp_path) == 2**20 - 100_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(tmp_path) > 2**20


# A fresh process, since a peak is never forgotten: 6 layers of width 256 over 64 rows of 64 tokens.
MEASURE = """
import json, sys
import ftkit
from ftkit.training import memory
from ftkit.training.throughput import peak_memory
import torch

found = []
estimate = memory.estimate
def note(*arguments, **options):
    need = estimate(*arguments, **options)
    found[:] = [need.peak(64 * need.tokens), peak_memory(torch.device("cpu"))]
    return need
memory.estimate = note
ftkit.finetune(json.loads(sys.argv[1]))
print(json.dumps([found[0], peak_memory(torch.device("cpu")) - found[1]]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the peak of a process is read otherwise there")
@pytest.mark.parametrize(("family", "precision"), [("bert", "fp32"), ("llama", "bf16")])
def test_the_estimate_is_within_a_factor_of_two(
    family: str, precision: str, tiny: Any, recipe: dict[str, Any], tmp_path: Path
) -> None:
    sizes = {"hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 1024}
    tokenizer = tiny(family)
    config = json.loads((tokenizer / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("architectures", "head_dim")}
    lines = [f"{'the ' * 60}{colour},{colour}" for colour in ("red", "green", "blue") * 32]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    recipe |= {
        "model": {"from_config": config | sizes, "tokenizer": str(tokenizer), "max_length": 64},
        "data": {"train_file": str(tmp_path / "train.csv")},
        "training": {"max_steps": 2, "per_device_train_batch_size": 64, "save_strategy": "no"},
        "engine": {"precision": precision},
    }
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(recipe)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    estimated, measured = json.loads(done.stdout.splitlines()[-1])
    assert 0.5 <= estimated / measured <= 2


def test_frozen_matrices_are_held_in_bf16_with_the_same_numbers(
    still_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    fit = estimator.TrainedEstimator.fit

    def note(self: Any, *arguments: Any) -> Any:
        made.append({name: parameter.dtype for name, parameter in self.model.named_parameters()})
        return fit(self, *arguments)

    monkeypatch.setattr(estimator.TrainedEstimator, "fit", note)
    settings = {"method": "lora", "engine": {"precision": "bf16"}}
    low = ftkit.finetune(still_recipe("low", **settings))
    monkeypatch.setattr(estimator, "lower_frozen", lambda model, precision: None)
    high = ftkit.finetune(still_recipe("high", **settings))
    frozen = [dtype for name, dtype in made[0].items() if name.endswith("base_layer.weight")]
    assert set(frozen) == {torch.bfloat16}
    assert {dtype for name, dtype in made[0].items() if "lora_" in name} == {torch.float32}
    assert losses(low) == losses(high)
    adapters = [run.folder / "model" / "adapter_model.safetensors" for run in (low, high)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_a_loaded_run_holds_its_base_as_it_was_trained(still_recipe: Any, tmp_path: Path) -> None:
    """On a device it would not fit in fp32; only what is merged needs all digits of the base."""
    run = ftkit.finetune(still_recipe("run", method="lora", engine={"precision": "bf16"}))
    estimator = finished_estimator(run)
    types = {name: parameter.dtype for name, parameter in estimator.model.named_parameters()}
    assert {kind for name, kind in types.items() if name.endswith("base_layer.weight")} == {torch.bfloat16}
    trained = [name for name in types if "lora_" in name or "modules_to_save" in name]
    assert {types[name] for name in trained} == {torch.float32}
    assert ftkit.evaluate(run).metrics == run.metrics
    merged = load_file(export(str(run.folder), tmp_path / "merged", merge=True) / "model.safetensors")
    whole = finished_estimator(run, precision="fp32").model.merge_and_unload().state_dict()
    assert merged.keys() <= whole.keys()
    for name, weight in merged.items():
        torch.testing.assert_close(weight, whole[name], rtol=0, atol=0)
        assert weight.dtype == torch.float32
    assert any((weight.bfloat16() != weight).any() for weight in merged.values())


def test_a_copy_in_bf16_shares_what_is_frozen() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4).requires_grad_(False), torch.nn.Linear(4, 4))
    model.register_buffer("frequencies", torch.ones(2))
    lower_frozen(model, "bf16")
    low = lowered_copy(model, "bf16")
    assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}
    assert low[0].weight is model[0].weight
    assert model[1].weight.dtype == low.frequencies.dtype == torch.float32
    torch.testing.assert_close(low[1].weight.float(), model[1].weight.bfloat16().float())


def test_weights_of_a_quantized_checkpoint_stay_as_they_are() -> None:
    """Beside a scale, their numbers in another type mean something else."""

    class Scaled(torch.nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4, bias=False)
            self.weight = torch.nn.Parameter(self.weight.to(torch.float8_e4m3fn), requires_grad=False)
            self.scale = torch.nn.Parameter(torch.ones(4), requires_grad=False)

    model = torch.nn.Sequential(torch.nn.Linear(4, 4).requires_grad_(False), Scaled())
    lower_frozen(model, "bf16")
    kinds = [torch.bfloat16, torch.bfloat16, torch.float8_e4m3fn, torch.float32]
    assert [parameter.dtype for parameter in model.parameters()] == kinds
    lowered(model, "fp32")
    assert [parameter.dtype for parameter in model.parameters()] == [torch.float32] * 2 + kinds[2:]


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    need = memory.Need(fixed=100, after=0, row=10, tokens=8)
    monkeypatch.setattr(memory, "estimate", lambda *_, **__: need)
    monkeypatch.setattr(memory, "free_memory", lambda: 500)
    arguments = SimpleNamespace(activation_checkpointing=False, optim="adamw", per_device_train_batch_size=64)

    def most() -> int | None:
        return memory.plan(None, arguments, forward=len, tokens=8, parts=False)

    # Four fifths of it, less what is fixed, in rows of 10 bytes and 8 tokens.
    assert most() == (400 - 100) * 8 // 10
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert most() == (200 - 100) * 8 // 10


def test_an_embedding_that_is_the_head_as_well_stays_in_fp32(tiny: Callable[[str], Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny("gpt2")).requires_grad_(requires_grad=False)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    lower_frozen(model, "bf16")
    assert model.get_input_embeddings().weight.dtype is torch.float32
    assert model.transformer.h[0].mlp.c_fc.weight.dtype is torch.bfloat16
