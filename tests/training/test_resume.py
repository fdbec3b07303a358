"""A stopped run goes on to the bit: same weights, same log."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ftkit
from ftkit.errors import UsageError
from ftkit.models import fresh
from ftkit.models.source import Located
from ftkit.training import checkpoints
from ftkit.training.engine import Engine
from ftkit.training.estimator import TrainedEstimator
from ftkit.training.resumable import ResumableTrainer

# Mid-epoch saves with accumulation: 45 rows, 2 x 2 a step, 12 steps an epoch, the last window short.
TRAINING = {
    "num_train_epochs": 2,
    "learning_rate": 5.0e-3,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "logging_steps": 5,
    "save_strategy": "steps",
    "save_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 3,
}


def stop_after(micro_batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the engine behave as if Ctrl-C was pressed."""
    original = Engine.training_step
    seen = 0

    def step(self: Engine, *arguments: Any, **options: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen > micro_batches:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(Engine, "training_step", step)


def files(folder: Path) -> tuple[bytes, list[str]]:
    weights = next((folder / "model").glob("*model.safetensors"))
    return weights.read_bytes(), (folder / "log.jsonl").read_text().splitlines()


@pytest.mark.parametrize(
    ("method", "stopped_at", "streaming"),
    [
        *((method, after, False) for method in ("full", "lora") for after in (11, 27, 32, 37)),
        ("full", 27, True),
    ],
)
def test_resume_is_exact(
    method: str,
    stopped_at: int,
    streaming: bool,
    recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe |= {"method": method, "training": TRAINING, "early_stopping": {"patience": 4}}
    recipe["data"]["streaming"] = streaming
    straight = ftkit.finetune(recipe, [f"output_dir={tmp_path / 'straight'}"])
    with monkeypatch.context() as patch:
        stop_after(stopped_at, patch)
        with pytest.raises(KeyboardInterrupt):
            ftkit.finetune(recipe)
    resumed = ftkit.finetune(recipe, resume=True)
    weights, log = files(straight.folder)
    weights_after, log_after = files(resumed.folder)
    assert log_after == log
    assert weights_after == weights
    assert resumed.metrics == straight.metrics


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_fresh_model_goes_on_with_its_tokenizer(
    kind: str, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with one that is trained anew: the trainer may number the tokens differently."""
    recipe |= {
        "model": {
            "from_config": {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 32},
            "tokenizer": {"type": kind, "vocab_size": 300},
            "max_length": 32,
        },
        "training": TRAINING,
    }
    with monkeypatch.context() as patch:
        stop_after(27, patch)
        with pytest.raises(KeyboardInterrupt):
            ftkit.finetune(recipe)
    kept = json.loads((tmp_path / "run/checkpoints/tokenizer.json").read_text())
    monkeypatch.setattr(fresh, "train_tokenizer", None)
    resumed = ftkit.finetune(recipe, resume=True)
    saved = json.loads((resumed.folder / "model/tokenizer.json").read_text())
    assert saved["model"] == kept["model"]
    assert not (resumed.folder / "checkpoints").exists()


def test_a_damaged_checkpoint_is_passed_over(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe |= {"training": TRAINING | {"save_total_limit": 5}}
    straight = ftkit.finetune(recipe, [f"output_dir={tmp_path / 'straight'}"])
    with monkeypatch.context() as patch:
        stop_after(27, patch)
        with pytest.raises(KeyboardInterrupt):
            ftkit.finetune(recipe)
    saved = sorted((tmp_path / "run" / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    assert [path.name for path in saved] == ["checkpoint-4", "checkpoint-8", "checkpoint-12"]
    assert not list(tmp_path.rglob("*.bin")), "no pickles"
    assert not list(tmp_path.rglob("*.pt*")), "no pickles"
    weights = saved[-1] / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with caplog.at_level("INFO", logger="ftkit"):
        resumed = ftkit.finetune(recipe, resume=True)
    assert "checkpoint-12 is passed over: model.safetensors is damaged" in caplog.text
    assert "Resuming from checkpoint-8" in caplog.text
    assert files(resumed.folder) == files(straight.folder)


def test_a_damaged_best_checkpoint_is_told(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost: the last weights are there."""
    load = ResumableTrainer._load_best_model

    def damaged(self: ResumableTrainer) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        (best / "model.safetensors").write_bytes(b"short")
        load(self)

    monkeypatch.setattr(ResumableTrainer, "_load_best_model", damaged)
    run = ftkit.finetune(recipe | {"training": TRAINING})
    assert "cannot be read (model.safetensors is damaged): the last weights are kept" in caplog.text
    assert run.manifest["training"]["best_step"] is None


@pytest.mark.parametrize(
    ("said", "evaluations"),
    [({"eval_strategy": "no"}, 0), ({"eval_strategy": "steps", "eval_steps": 3}, 8), ({"eval_steps": 3}, 8)],
)
def test_a_strategy_of_validation_needs_none_of_saving(
    said: dict[str, Any], evaluations: int, recipe: dict[str, Any]
) -> None:
    run = ftkit.finetune(
        recipe | {"training": {"num_train_epochs": 2, "per_device_train_batch_size": 4} | said}
    )
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert sum("eval_loss" in line for line in log) == evaluations


def test_a_changed_recipe_is_refused_with_the_difference(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            ftkit.finetune(recipe)
    with pytest.raises(UsageError, match=r"training.learning_rate: 0.005 -> 0.001"):
        ftkit.finetune(recipe, ["training.learning_rate=1e-3"], resume=True)


def test_changed_data_is_refused(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            ftkit.finetune(recipe)
    with pytest.raises(UsageError, match="the data is not what this run was started with"):
        ftkit.finetune(recipe, resume=True, limit=20)


def test_resume_of_a_finished_run_changes_nothing(recipe: dict[str, Any]) -> None:
    run = ftkit.finetune(recipe)
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    again = ftkit.finetune(recipe, resume=True)
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before
    assert again.metrics == run.metrics
    assert not (run.folder / "checkpoints").exists()


def test_resume_without_a_run_starts_one(recipe: dict[str, Any]) -> None:
    assert json.loads((ftkit.finetune(recipe, resume=True).folder / "manifest.json").read_text())["finished"]


def test_same_seed_same_numbers(recipe: dict[str, Any], tmp_path: Path) -> None:
    runs = [ftkit.finetune(recipe, [f"output_dir={tmp_path / name}"]) for name in ("a", "b")]
    assert files(runs[0].folder) == files(runs[1].folder)
    other = ftkit.finetune(recipe, [f"output_dir={tmp_path / 'c'}", "seed=8"])
    assert files(other.folder)[0] != files(runs[0].folder)[0]


@pytest.mark.parametrize(
    "training",
    [
        {"num_train_epochs": 1.5, "save_strategy": "epoch", "eval_strategy": "epoch"},
        {"max_steps": 15, "lr_scheduler_type": "constant"},
        {"eval_on_start": True, "num_train_epochs": 1},
    ],
)
def test_a_run_that_was_stopped_after_its_last_step_trains_no_more(
    training: dict[str, Any], recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe |= {"training": TRAINING | training}
    straight = ftkit.finetune(recipe, [f"output_dir={tmp_path / 'straight'}"])
    resumed = resumed_at_the_end(recipe, monkeypatch)
    assert files(resumed.folder) == files(straight.folder)
    assert resumed.manifest["training"]["steps"] == straight.manifest["training"]["steps"]


def test_a_run_that_had_stopped_early_stays_stopped(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = {"patience": 1, "threshold": 10.0}
    recipe |= {"training": TRAINING | {"save_total_limit": 5}, "early_stopping": stopping}
    straight = ftkit.finetune(recipe, [f"output_dir={tmp_path / 'straight'}"])
    resumed = resumed_at_the_end(recipe, monkeypatch)
    assert files(resumed.folder) == files(straight.folder)
    assert resumed.manifest["training"]["steps"] == straight.manifest["training"]["steps"] < 24


@pytest.fixture
def older(tiny: Any, tmp_path: Path) -> Path:
    """A BERT whose file has the old names of norms, as bert-base-uncased's on the Hub."""
    folder = tmp_path / "older"
    shutil.copytree(tiny("bert"), folder)
    weights = load_file(folder / "model.safetensors")
    old = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}
    for new_name, name in old.items():
        weights = {key.replace(new_name, name): value for key, value in weights.items()}
    assert sum(".gamma" in key for key in weights) == 5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_weights_that_transformers_renames_are_resumed(
    older: Path, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe |= {"model": {"name_or_path": str(older)}, "training": TRAINING}
    straight = ftkit.finetune(recipe, [f"output_dir={tmp_path / 'straight'}"])
    with monkeypatch.context() as patch:
        stop_after(27, patch)
        with pytest.raises(KeyboardInterrupt):
            ftkit.finetune(recipe)
    resumed = ftkit.finetune(recipe, resume=True)
    assert files(resumed.folder) == files(straight.folder)


# The loss falls, so an early checkpoint has the greatest.
EARLY_IS_BEST = TRAINING | {
    "metric_for_best_model": "loss",
    "greater_is_better": True,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "constant",
}


@pytest.mark.parametrize("moved", [False, True])
def test_the_best_weights_are_taken_whole(
    moved: bool, older: Path, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that transformers renames, and those of a run that was stopped at its end and moved."""
    recipe |= {"model": {"name_or_path": str(older)}, "training": EARLY_IS_BEST}
    if moved:
        with monkeypatch.context() as patch:
            patch.setattr(ResumableTrainer, "_load_best_model", interrupted)
            with pytest.raises(KeyboardInterrupt):
                ftkit.finetune(recipe)
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        run = ftkit.finetune(recipe, [f"output_dir={tmp_path / 'elsewhere'}"], resume=True)
    else:
        run = ftkit.finetune(recipe)
    best = run.manifest["training"]["best_step"]
    assert best <= 12 < run.manifest["training"]["steps"]
    short = ftkit.finetune(recipe, [f"output_dir={tmp_path / 'short'}", f"training.max_steps={best}"])
    assert files(run.folder)[0] == files(short.folder)[0]


@pytest.mark.parametrize("resumed", [False, True])
def test_where_scores_tie_the_least_loss_is_best(
    resumed: bool,
    recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The loss falls and then rises; the first checkpoint has the same score."""
    monkeypatch.setattr("ftkit.finetuning.headline_scores", lambda *_: {"accuracy": 0.25})
    recipe |= {"training": {**TRAINING, "learning_rate": 3e-2, "lr_scheduler_type": "constant"}}
    if resumed:
        with monkeypatch.context() as patch:
            stop_after(30, patch)
            with pytest.raises(KeyboardInterrupt):
                ftkit.finetune(recipe)
    with caplog.at_level("INFO", "ftkit"):
        run = ftkit.finetune(recipe, resume=resumed)
    log = map(json.loads, (tmp_path / "run/log.jsonl").read_text().splitlines())
    losses = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
    best = min(losses, key=losses.__getitem__)
    assert list(losses).index(best) not in (0, len(losses) - 1)
    assert run.manifest["training"]["best_step"] == best
    assert f"  the weights of step {best} of 24 are kept: validation accuracy 0.2500" in caplog.text
    short = ftkit.finetune(recipe, [f"output_dir={tmp_path / 'short'}", f"training.max_steps={best}"])
    assert files(run.folder)[0] == files(short.folder)[0]


def test_the_step_that_is_told_is_one_that_was_saved(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Scores are highest at a step that was validated and not saved."""
    scores = iter([0.1, 0.3, 0.9, 0.2, 0.2, 0.2])
    monkeypatch.setattr("ftkit.finetuning.headline_scores", lambda *_: {"accuracy": next(scores)})
    steady = {**TRAINING, "lr_scheduler_type": "constant"}
    recipe |= {"training": {**steady, "save_steps": 8}}
    with caplog.at_level("INFO", "ftkit"):
        run = ftkit.finetune(recipe)
    assert run.manifest["training"]["best_step"] == 8
    assert "  the weights of step 8 of 24 are kept: validation accuracy 0.3000" in caplog.text
    short = ftkit.finetune(
        recipe | {"training": {**steady, "eval_strategy": "no"}},
        [f"output_dir={tmp_path / 'short'}", "training.max_steps=8"],
    )
    assert files(run.folder)[0] == files(short.folder)[0]


def test_another_number_of_processes_is_refused(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TrainedEstimator, "_compare_saved", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ftkit.finetune(recipe)
    (checkpoint,) = (tmp_path / "run/checkpoints").glob("checkpoint-*")
    (checkpoint / "random-1.json").write_text("{}")
    with pytest.raises(UsageError, match="processes were 2 when the run stopped, and cannot be 1 now"):
        ftkit.finetune(recipe, resume=True)
    (checkpoint / "random-1.json").unlink()
    assert ftkit.finetune(recipe, resume=True).finished


def test_one_table_of_all_parameters_is_saved(tmp_path: Path) -> None:
    """As 8-bit optimizers have it; a safetensors file holds no tensor twice."""
    table = torch.arange(4.0)
    state = {n: {"step": n, "state": torch.full((2,), float(n)), "table": table} for n in range(3)}
    checkpoints.save_optimizer({"state": state, "param_groups": [{"params": [0, 1, 2]}]}, tmp_path)
    again = checkpoints.load_optimizer(tmp_path)["state"]
    for number, its in state.items():
        assert again[number]["step"] == number
        assert torch.equal(again[number]["state"], its["state"])
        assert torch.equal(again[number]["table"], table)


def test_what_is_hashed_is_hashed_before_a_run_is_replaced(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder without a manifest could be neither gone on with nor replaced."""
    before = files(ftkit.finetune(recipe).folder)
    monkeypatch.setattr(Located, "sha256", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ftkit.finetune(recipe, overwrite=True)
    assert files(Path(recipe["output_dir"])) == before
    with pytest.raises(KeyboardInterrupt):
        ftkit.finetune(recipe | {"output_dir": f"{recipe['output_dir']}-new"})
    assert not Path(f"{recipe['output_dir']}-new").exists()


@pytest.mark.parametrize(
    ("first", "second", "told"), [(40, None, False), (None, None, False), (None, 40, True)]
)
def test_other_free_memory_changes_no_parts(
    first: int | None,
    second: int | None,
    told: bool,
    recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each part draws its dropout; only where less is free can it not go on as it began."""
    recipe |= {"training": TRAINING | {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}}
    monkeypatch.setattr(TrainedEstimator, "_most_tokens", lambda _: first)
    straight = ftkit.finetune(recipe, [f"output_dir={tmp_path / 'straight'}"])
    with monkeypatch.context() as patch:
        stop_after(7, patch)
        with pytest.raises(KeyboardInterrupt):
            ftkit.finetune(recipe)
    monkeypatch.setattr(TrainedEstimator, "_most_tokens", lambda _: second)
    resumed = ftkit.finetune(recipe, resume=True)
    assert (files(resumed.folder) == files(straight.folder)) != told
    assert ("less memory is free than before" in caplog.text) == told


def resumed_at_the_end(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> ftkit.Run:
    """A run that was stopped after its last step, and gone on with."""
    with monkeypatch.context() as patch:
        patch.setattr(TrainedEstimator, "_compare_saved", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ftkit.finetune(recipe)
    return ftkit.finetune(recipe, resume=True)


def interrupted(*_: Any) -> None:
    """In the place of what is interrupted."""
    raise KeyboardInterrupt
