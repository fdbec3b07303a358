"""Checkpoints of a Trainer that are whole, and from which training goes on as if it had never stopped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy, rotate_checkpoints

from ftkit.errors import UsageError
from ftkit.training import checkpoints, sharding

log = logging.getLogger("ftkit")


class ResumableTrainer(Trainer):
    """Saves all that the next step depends on, and takes it up again to the bit.

    That is the weights that are trained, the states of the optimizer, the schedule, the fp16 scaler and
    the random generators of every process, and the sums of the losses that the log divides. The files are
    those of `ftkit.training.checkpoints`, also of a sharded model; DeepSpeed writes its own.

    Args:
        options: As `Trainer` takes them.
    """

    def __init__(self, **options: Any) -> None:
        self.losses_so_far: dict[str, Any] | None = None
        self.had_ended = False
        super().__init__(**options)
        self.add_callback(_ContinueLosses(self))

    # Saving -----------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.is_deepspeed_enabled:
            super()._save_checkpoint(model, trial)
            return
        run_folder = Path(self.args.output_dir)
        folder = run_folder / f"checkpoint-{self.state.global_step}"
        self._note_best(folder)
        weights = self.whole_weights(trained_only=True)
        optimizer = self._whole_optimizer()
        if self.args.should_save:
            with checkpoints.whole_folder(folder) as draft:
                self._write_checkpoint(draft, weights, optimizer)
                self._save_other_ranks(draft)
        else:
            self._save_other_ranks(folder.with_name(f"tmp-{folder.name}"))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(run_folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Where two steps score the same, the one with less validation loss is the better one."""
        if super()._determine_best_metric(metrics, trial):
            return True
        best = self.state.best_global_step
        if self.args.save_strategy != SaveStrategy.BEST and not self.control.should_save:
            # A step that is not saved can be no better one to come back to.
            return False
        score = metrics["eval_" + str(self.args.metric_for_best_model).removeprefix("eval_")]
        better = bool(best) and score == self.state.best_metric
        better = better and metrics["eval_loss"] < self._validation_loss(best)
        if better:
            self.state.best_global_step = self.state.global_step
        return better

    def _validation_loss(self, step: int) -> float:
        """That of a step that was validated."""
        found = (entry for entry in reversed(self.state.log_history) if entry.get("step") == step)
        return next(entry["eval_loss"] for entry in found if "eval_loss" in entry)

    def _note_best(self, now: Path) -> None:
        """Trainer learns of the best checkpoint when it is saved."""
        if self.args.save_strategy != SaveStrategy.NO and (best := self._best_folder(now)):
            self.state.best_model_checkpoint = str(best)

    def _best_folder(self, now: Path | None = None) -> Path | None:
        """The checkpoint of the best step, which is there, or is written now."""
        best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
        return best if self.state.best_global_step and (best == now or best.is_dir()) else None

    def kept_step(self) -> int | None:
        """The step whose checkpoint was loaded at the end as the best one; `None` where none was."""
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        # One that could not be read has left no best step.
        return checkpoints.step_of(Path(best)) if best and self.state.best_global_step else None

    def _save_other_ranks(self, draft: Path) -> None:
        """Every process writes its random state and its losses once the draft folder is there."""
        self.accelerator.wait_for_everyone()
        checkpoints.save_random_state(draft, self.args.process_index)
        losses = {
            "sum": self._tr_loss.item(),
            "last_logged": self._globalstep_last_logged,
            "total": self._total_loss_scalar,
        }
        checkpoints.write_json(draft / self._losses_file, losses)
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(
        self, draft: Path, weights: dict[str, Tensor] | None, optimizer: dict[str, Any]
    ) -> None:
        if weights is None:
            self.save_weights(draft, as_published=False)
        else:
            checkpoints.save_weights(weights, draft)
        checkpoints.save_optimizer(optimizer, draft)
        checkpoints.write_json(draft / "scheduler.json", self.lr_scheduler.state_dict())
        if self.accelerator.scaler is not None:
            checkpoints.write_json(draft / "scaler.json", self.accelerator.scaler.state_dict())
        stateful = [
            c for c in (*self.callback_handler.callbacks, self.control) if isinstance(c, ExportableState)
        ]
        self.state.stateful_callbacks = {type(c).__name__: c.state() for c in stateful}
        self.state.save_to_json(str(draft / "trainer_state.json"))

    @property
    def _losses_file(self) -> str:
        """Each process adds up its own losses; the log has their mean."""
        return f"losses-{self.args.process_index}.json"

    def whole_weights(self, *, trained_only: bool) -> dict[str, Tensor] | None:
        """The weights of a sharded model, for which all processes are needed; `None` of any other."""
        if not self.is_fsdp_enabled:
            return None
        return sharding.gather_weights(self.model, trained_only=trained_only)

    def _whole_optimizer(self) -> dict[str, Any]:
        if not self.is_fsdp_enabled:
            return dict(self.optimizer.state_dict())
        return sharding.gather_optimizer(self.model, self.optimizer)

    def save_weights(
        self, folder: Path, weights: dict[str, Tensor] | None = None, *, as_published: bool = True
    ) -> None:
        """Write the model (of adapters: them and what they save) as safetensors.

        Args:
            folder: Where to.
            weights: Those of a sharded model.
            as_published: Whether weights get the names of the checkpoints on the Hub, which transformers
                changes for some models when it loads them. Trainer loads by the model's own names, and
                leaves what it does not find as it is.
        """
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        adapters = hasattr(model, "peft_config")
        extra = {"save_embedding_layers": False} if adapters else {"save_original_format": as_published}
        model.save_pretrained(folder, state_dict=weights, **extra)
        if adapters:
            # An empty form, which names the base by its path on this machine; the run has a card of its own.
            (folder / "README.md").unlink(missing_ok=True)

    # Restoring --------------------------------------------------------------------------

    def _load_callback_state(self) -> None:
        super()._load_callback_state()
        if best := self._best_folder():
            # Trainer has looked for it where the run was before it was moved.
            self.state.best_model_checkpoint = str(best)
        # Trainer forgets the one when it begins, and would do the other again.
        self.had_ended = self.control.should_training_stop
        self.args.eval_on_start = False

    def _run_epoch(self, **options: Any) -> None:
        if self.had_ended:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**options)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._refuse_other_processes(Path(resume_from_checkpoint))
        if self.is_fsdp_enabled:
            sharding.spread_weights(self.model, checkpoints.load_weights(Path(resume_from_checkpoint)))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _refuse_other_processes(self, checkpoint: Path) -> None:
        """With more or fewer of them rows would come again, in batches of another size.

        Raises:
            UsageError: They are not as many as wrote the checkpoint.
        """
        before, now = checkpoints.processes_of(checkpoint), self.args.world_size
        if before != now:
            raise UsageError(
                f"processes were {before} when the run stopped, and cannot be {now} now: batches would have "
                "another size",
                where=str(checkpoint),
                hint=f"accelerate launch --num_processes {before}, or begin anew with --overwrite",
            )

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()
            return
        # A resumed run may have been moved, and what an earlier start has left may be damaged.
        best = Path(self.args.output_dir or "") / Path(str(self.state.best_model_checkpoint)).name
        if fault := checkpoints.fault_of(best):
            log.warning(
                "  note: the best checkpoint, %s, cannot be read (%s): the last weights are kept",
                best.name, fault,
            )  # fmt: skip
            self.state.best_global_step = None
            return
        self.state.best_model_checkpoint = str(best)
        if self.is_fsdp_enabled:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        self._take_optimizer(checkpoints.load_optimizer(folder))
        self.lr_scheduler.load_state_dict(checkpoints.read_json(folder / "scheduler.json"))
        self.losses_so_far = checkpoints.read_json(folder / self._losses_file)

    def _take_optimizer(self, state: dict[str, Any]) -> None:
        """Set the optimizer's states to what `_whole_optimizer` gave."""
        if self.is_fsdp_enabled:
            sharding.spread_optimizer(self.model, self.optimizer, state)
        else:
            self.optimizer.load_state_dict(state)

    def _load_scaler(self, checkpoint: str | None) -> None:
        path = Path(checkpoint or "") / "scaler.json"
        if checkpoint and self.accelerator.scaler is not None and path.is_file():
            self.accelerator.scaler.load_state_dict(checkpoints.read_json(path))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_rng_state(checkpoint)
            return
        checkpoints.load_random_state(Path(checkpoint), self.args.process_index)


class _ContinueLosses(TrainerCallback):
    """Puts the sums of the losses so far back, so that a resumed log has the same lines."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if losses := self.trainer.losses_so_far:
            self.trainer._tr_loss = torch.tensor(losses["sum"], device=args.device)
            self.trainer._globalstep_last_logged = losses["last_logged"]
            self.trainer._total_loss_scalar = losses["total"]
            self.trainer._initial_global_step = 0
