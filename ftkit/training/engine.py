"""The engine: transformers' Trainer with its own loss, data order, evaluation and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy, rotate_checkpoints

from ftkit.errors import DivergedError
from ftkit.training import checkpoints
from ftkit.training.batches import (
    ROWS,
    WEIGHTS,
    Collator,
    EpochBatches,
    EpochLoader,
    Rows,
    micro_batches,
)
from ftkit.training.cpu import fast_dropout, keep_kernels, keep_memory
from ftkit.training.heads import Features
from ftkit.training.throughput import Meter

keep_kernels()
keep_memory()

_MOST_SKIPPED_STEPS = 20
_MOST_ROWS_NAMED = 5


class Engine(Trainer):
    """Fine-tunes a model on features.

    What differs from its base:

    - The loss is the sum over the optimizer batch divided by the count of that whole batch,
      across accumulation steps and processes. The loss that a model returns is a mean over one
      micro-batch, which is wrong as soon as these differ in size.
    - The order of the rows is a function of the seed and the epoch alone.
    - Evaluation is a callback that returns scores; no logits are kept.
    - A loss or a gradient that is not finite stops the run and names the rows.
    - Checkpoints are whole or not there, and hold no pickles; resuming continues to the bit.

    Args:
        model: The model, adapters in place.
        args: Arguments, as transformers knows them.
        features: Encoded training rows.
        collator: Pads rows and knows the objective.
        where: Place of every training row, for messages.
        evaluate: Returns validation scores by name; `None` where there is no validation.
        callbacks: Further callbacks.
        micro_batch_overhead: What a further forward and backward pass costs, in tokens; `None`
            keeps every batch whole.
    """

    control: TrainerControl

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        features: Sequence[Features],
        collator: Collator,
        where: list[str],
        evaluate: Callable[[], dict[str, float]] | None,
        callbacks: list[TrainerCallback],
        micro_batch_overhead: int | None = None,
    ) -> None:
        self.rows = Rows(features, collator.objective, args.seed)
        self.collator = collator
        self.where = where
        self.evaluate_now = evaluate
        self.micro_batch_overhead = micro_batch_overhead
        self.skipped_steps = 0
        self.meter = Meter()
        self.resumed: dict[str, Any] | None = None
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=self.rows,
            # Trainer refuses to evaluate without a data set; `evaluate` below does not use it.
            eval_dataset=self.rows if evaluate else None,
            callbacks=[*callbacks, _ContinueLosses(self)],
        )
        # The loss is divided by the whole optimizer batch; Trainer must not divide it again.
        self.loss_is_scaled_for_ga = True

    # Data -------------------------------------------------------------------------------

    def get_train_dataloader(self) -> EpochLoader:
        args = self.args
        batches = EpochBatches(
            total=len(self.rows),
            size=args.per_device_train_batch_size,
            seed=args.seed,
            rank=args.process_index,
            processes=args.world_size,
            drop_last=args.dataloader_drop_last,
        )
        workers: dict[str, Any] = {}
        if args.dataloader_num_workers:
            workers["persistent_workers"] = args.dataloader_persistent_workers
            workers["prefetch_factor"] = args.dataloader_prefetch_factor
        return EpochLoader(
            self.rows,
            batch_sampler=batches,
            collate_fn=self.collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type != "cpu",
            **workers,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The micro-batches of one optimizer step, and the denominator of its loss."""
        samples = list(islice(epoch_iterator, num_batches))
        counts = [self.collator.objective.row_counts(b["labels"]) * b[WEIGHTS] for b in samples]
        total = torch.stack([count.sum() for count in counts]).sum().to(device)
        total = self.accelerator.reduce(total, reduction="sum")
        # A batch of which nothing is learned adds nothing; 0 / 0 would be no number.
        return samples, torch.where(total > 0, total, torch.ones_like(total))

    # Loss -------------------------------------------------------------------------------

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward over a batch, in parts of similar length where that saves padding.

        DeepSpeed steps its engine at each backward pass and FSDP needs the same number of them on
        every process, so there the batch stays whole.
        """
        overhead = self.micro_batch_overhead
        if overhead is None or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            parts = [inputs]
        else:
            parts = micro_batches(inputs, overhead, self.collator.per_token)
        loss = torch.zeros((), device=self.args.device)
        with fast_dropout() if self.args.device.type == "cpu" else nullcontext():
            for number, part in enumerate(parts, 1):
                self.meter.count(part)
                context = nullcontext() if number == len(parts) else self.accelerator.no_sync(model)
                with context:
                    loss += super().training_step(model, part, num_items_in_batch)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The part of the mean loss that this micro-batch adds.

        Distributed training averages gradients over processes, so each scales its part up.
        """
        inputs = dict(inputs)
        labels, weights, rows = (inputs.pop(name) for name in ("labels", WEIGHTS, ROWS))
        objective = self.collator.objective
        outputs = objective.outputs(model, inputs, labels)
        losses = objective.row_losses(outputs, labels)
        if not bool(torch.isfinite(losses).all()):
            self._stop("the loss is not finite", rows[~torch.isfinite(losses)])
        loss = (losses * weights).sum() / num_items_in_batch * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is None or math.isfinite(float(norm)):
            self.skipped_steps = 0
            return norm
        # An fp16 scaler skips such a step and lowers its scale; many in a row mean no way back.
        self.skipped_steps += 1
        if self.accelerator.scaler is None or self.skipped_steps >= _MOST_SKIPPED_STEPS:
            self._stop("the gradient is not finite", torch.tensor([], dtype=torch.long))
        return norm

    def _stop(self, what: str, rows: Tensor) -> None:
        named = [self.where[row] for row in rows.tolist()[:_MOST_ROWS_NAMED]]
        raise DivergedError(
            f"{what} at step {self.state.global_step + 1}; training stopped",
            where=", ".join(named),
            hint="lower training.learning_rate, add warmup_steps, or use engine.precision: fp32",
        )

    # Evaluation -------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the validation records; every process gets the same scores."""
        assert self.evaluate_now is not None
        with self.meter.pause():
            found = self.evaluate_now()
        scores = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(scores))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    # Checkpoints ------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self.meter.pause():
            self._save_whole_checkpoint(model, trial)

    def _save_whole_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._save_checkpoint(model, trial)
            return
        run_folder = Path(self.args.output_dir)
        folder = run_folder / f"checkpoint-{self.state.global_step}"
        self._note_best(run_folder, folder)
        if self.args.should_save:
            with checkpoints.whole_folder(folder) as draft:
                self._write_checkpoint(draft)
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

    def _note_best(self, run_folder: Path, folder: Path) -> None:
        """Trainer learns of the best checkpoint when it is saved."""
        best = self.state.best_global_step
        if self.args.save_strategy != SaveStrategy.NO and best:
            best_folder = run_folder / f"checkpoint-{best}"
            if best_folder == folder or best_folder.is_dir():
                self.state.best_model_checkpoint = str(best_folder)

    def _save_other_ranks(self, draft: Path) -> None:
        """Every process writes its random state once the draft folder is there."""
        self.accelerator.wait_for_everyone()
        checkpoints.save_random_state(draft, self.args.process_index)
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, draft: Path) -> None:
        self.save_weights(draft)
        checkpoints.save_optimizer(self.optimizer.state_dict(), draft)
        checkpoints.write_json(draft / "scheduler.json", self.lr_scheduler.state_dict())
        if self.accelerator.scaler is not None:
            checkpoints.write_json(draft / "scaler.json", self.accelerator.scaler.state_dict())
        checkpoints.write_json(
            draft / "losses.json",
            {
                "sum": self._tr_loss.item(),
                "last_logged": self._globalstep_last_logged,
                "total": self._total_loss_scalar,
            },
        )
        stateful = [
            c for c in (*self.callback_handler.callbacks, self.control) if isinstance(c, ExportableState)
        ]
        self.state.stateful_callbacks = {type(c).__name__: c.state() for c in stateful}
        self.state.save_to_json(str(draft / "trainer_state.json"))

    def save_weights(self, folder: Path) -> None:
        """Write the model (of adapters: them and what they save) as safetensors."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        extra = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
        model.save_pretrained(folder, **extra)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        self.optimizer.load_state_dict(checkpoints.load_optimizer(folder))
        self.lr_scheduler.load_state_dict(checkpoints.read_json(folder / "scheduler.json"))
        self.resumed = checkpoints.read_json(folder / "losses.json")

    def _load_scaler(self, checkpoint: str | None) -> None:
        path = Path(checkpoint or "") / "scaler.json"
        if checkpoint and self.accelerator.scaler is not None and path.is_file():
            self.accelerator.scaler.load_state_dict(checkpoints.read_json(path))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_rng_state(checkpoint)
            return
        checkpoints.load_random_state(Path(checkpoint), self.args.process_index)


class _ContinueLosses(TrainerCallback):
    """Puts the sums of the losses so far back, so that a resumed log has the same lines."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if resumed := self.engine.resumed:
            self.engine._tr_loss = torch.tensor(resumed["sum"], device=args.device)
            self.engine._globalstep_last_logged = resumed["last_logged"]
            self.engine._total_loss_scalar = resumed["total"]
            self.engine._initial_global_step = 0
