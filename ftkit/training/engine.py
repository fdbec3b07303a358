"""The engine: transformers' Trainer with its own loss, data order and evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainingArguments, get_scheduler

from ftkit.errors import DivergedError
from ftkit.training import checkpoints, sharding
from ftkit.training.batches import (
    ROWS,
    WEIGHTS,
    Collator,
    EpochBatches,
    EpochLoader,
    Rows,
    idle_part,
    micro_batches,
)
from ftkit.training.cpu import fast_kernels
from ftkit.training.heads import Batch, Features
from ftkit.training.resumable import ResumableTrainer
from ftkit.training.room import Room, never_out_of_memory
from ftkit.training.throughput import Meter
from ftkit.training.trimmed import TrimmedEmbedding
from ftkit.training.unpadded import Unpadded

log = logging.getLogger("ftkit")

_MOST_SKIPPED_STEPS = 20
_MOST_ROWS_NAMED = 5
_ROOM = "room.json"
_NEVER_CUT = 2**31
"""A pass that costs more tokens than any batch has: it is cut only where it must be."""


class Engine(ResumableTrainer):
    """Fine-tunes a model on features.

    What differs from its base:

    - The loss is the sum over the optimizer batch divided by the count of that whole batch,
      across accumulation steps and processes. The loss that a model returns is a mean over one
      micro-batch, which is wrong as soon as these differ in size.
    - The order of the rows is a function of the seed and the epoch alone.
    - Evaluation is a callback that returns scores; no logits are kept.
    - A loss or a gradient that is not finite stops the run and names the rows.
    - Checkpoints are whole, and resuming continues to the bit (`ResumableTrainer`).

    Args:
        model: The model, adapters in place.
        args: Arguments, as transformers knows them.
        features: Encoded training rows.
        collator: Pads rows and knows the objective.
        where: Gives the place of a training row, for messages.
        evaluate: Returns validation scores by name; `None` where there is no validation.
        callbacks: Further callbacks.
        micro_batch_overhead: What a further forward and backward pass costs, in tokens; `None`
            keeps every batch whole, as long as it fits into memory.
        most_tokens: The most tokens to compute at once; `None` where no limit is known.
        unpadded: Takes the padding out of batches; `None` where the model cannot be computed so.
        trimmed: The token embedding, if it is to have only the rows in use while it is trained.
    """

    control: TrainerControl

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        features: Sequence[Features],
        collator: Collator,
        where: Callable[[int], str],
        evaluate: Callable[[], dict[str, float]] | None,
        callbacks: list[TrainerCallback],
        micro_batch_overhead: int | None = None,
        most_tokens: int | None = None,
        unpadded: Unpadded | None = None,
        trimmed: TrimmedEmbedding | None = None,
    ) -> None:
        self.rows = Rows(features, collator.objective, args.seed)
        self.collator = collator
        self.where = where
        self.evaluate_now = evaluate
        self.micro_batch_overhead = _NEVER_CUT if micro_batch_overhead is None else micro_batch_overhead
        self.room = Room(most_tokens, where)
        self.step_batches: list[Batch] = []
        self.skipped_steps = 0
        self.meter = Meter()
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=self.rows,
            # Trainer refuses to evaluate without a data set; `evaluate` below does not use it.
            eval_dataset=self.rows if evaluate else None,
            callbacks=callbacks,
        )
        # The loss is divided by the whole optimizer batch; Trainer must not divide it again.
        self.loss_is_scaled_for_ga = True
        # What shards a model has hooks of its own around the blocks.
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        self.unpadded = None if sharded else unpadded
        self.trimmed = None if sharded else trimmed
        if self.unpadded:
            self.micro_batch_overhead = _NEVER_CUT

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        sharding.complete(self.accelerator, self.args, self.model)
        self.is_fsdp_enabled = self.accelerator.is_fsdp2

    # The token embedding ----------------------------------------------------------------

    def train(self, *given: Any, **options: Any) -> Any:
        with self.trimmed.trimmed() if self.trimmed else nullcontext():
            return super().train(*given, **options)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        if self.trimmed:
            self.trimmed.follow(optimizer)
        return optimizer

    def refuse_optimizer(self) -> None:
        """Look the optimizer up and make a schedule, as training will: what is wrong with them shows here.

        Raises:
            ImportError: A package is missing.
            ValueError: An argument is missing, or unknown.
            TypeError: Likewise.
        """
        args = self.args
        if odd := [pair for pair in (args.optim_args or "").split(",") if pair and pair.count("=") != 1]:
            raise ValueError(f"optim_args: {odd[0]!r} is not name=value")
        if not any(word in args.optim for word in ("layerwise", "lomo")):
            # Those are bound to the weights as soon as they are looked up.
            found = self.get_optimizer_cls_and_kwargs(args, self.model)
            self._refuse_idle_arguments(found)
        get_scheduler(
            args.lr_scheduler_type,
            optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0),
            num_warmup_steps=args.get_warmup_steps(10),
            num_training_steps=10,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )

    def _refuse_idle_arguments(self, found: tuple[Any, dict[str, Any]]) -> None:
        """Refuse what transformers would leave out: an optimizer gets those arguments only that it knows.

        Raises:
            ValueError: One of `optim_args` changes nothing.
        """
        args = self.args
        if not args.optim_args or "params" in found[1]:
            return
        pairs = args.optim_args.split(",")
        for pair in pairs:
            fewer = copy(args)
            fewer.optim_args = ",".join(other for other in pairs if other is not pair)
            if self.get_optimizer_cls_and_kwargs(fewer, self.model) == found:
                raise ValueError(
                    f"optim_args: {pair.strip()} changes nothing: {args.optim.value} has that value already, "
                    "or does not take it"
                )

    def _whole_embedding(self) -> AbstractContextManager[None]:
        """All rows of the token embedding, where training has not all."""
        return self.trimmed.whole() if self.trimmed else nullcontext()

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
        self.step_batches = []
        if self.state.global_step < 2:
            # The optimizer takes memory for its states in its first step: what fitted before proves nothing.
            self.room.proven.clear()
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

        Where a process runs out of memory, all repeat what the optimizer step has computed so far, in
        smaller parts: the gradient of a pass that failed halfway cannot be told from the rest.
        """
        self.meter.start()
        *earlier, _ = self.step_batches = [*self.step_batches, inputs]
        losses = [self._pass(model, inputs, num_items_in_batch)]
        while any(loss is None for loss in losses):
            model.zero_grad()
            with self.accelerator.no_sync(model):
                losses = [self._pass(model, batch, num_items_in_batch) for batch in earlier]
            losses.append(self._pass(model, inputs, num_items_in_batch))
        self.meter.count(inputs)
        assert losses[-1] is not None
        return losses[-1]

    def _pass(self, model: nn.Module, batch: Batch, count: Tensor | int | None) -> Tensor | None:
        """The loss of a batch, its gradient added; `None` where some process ran out of memory.

        Processes exchange gradients in the backward pass of the last part, and none may fail in it. So
        before it they agree that all came that far, and it is no larger than what has fitted before.
        """
        loss = torch.zeros((), device=self.args.device)
        parts = self._parts(batch)
        exchanged = self.args.world_size > 1

        def compute(part: Batch) -> None:
            nonlocal loss
            self.meter.count_pass(part, padded=self.unpadded is None)
            bare = self.unpadded
            with bare.rows(part) if bare else nullcontext(0) as left_out:
                self.meter.left_out += left_out if bool(part[WEIGHTS].any()) else 0
                loss += super(Engine, self).training_step(model, part, count)

        compiled = self.args.torch_compile
        with fast_kernels(compiled=compiled) if self.args.device.type == "cpu" else nullcontext():
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                with never_out_of_memory():
                    for part in parts:
                        compute(part)
                return loss
            with self.accelerator.no_sync(model):
                fitted = all(self.room.fits(partial(compute, part), part) for part in parts[:-1])
                last = parts[-1]
                alone = not exchanged or not self.room.surely_fits(last)
                if fitted and alone:
                    self.room.fits(partial(compute, last), last)
            if not self.room.agree():
                return None
            if exchanged:
                with self._same_random_state() if alone else nullcontext():
                    compute(idle_part(last) if alone else last)
        return loss

    def _same_random_state(self) -> AbstractContextManager[None]:
        """What is computed here draws no random numbers that later steps would draw."""
        device = self.args.device
        if device.type == "cpu":
            return torch.random.fork_rng(devices=[])
        return torch.random.fork_rng(devices=[device], device_type=device.type)

    def _parts(self, batch: Batch) -> list[Batch]:
        """A batch in parts: the same number in all processes where a sharded model needs that.

        DeepSpeed steps its engine at each backward pass, so there the batch stays whole.
        """
        if self.is_deepspeed_enabled:
            return [batch]
        parts = micro_batches(batch, self.micro_batch_overhead, self.collator.per_token, most=self.room.most)
        if self.is_fsdp_enabled:
            most = torch.tensor(len(parts), device=self.args.device)
            torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
            parts += [idle_part(parts[-1])] * (int(most) - len(parts))
        return parts

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
            counted = [batch[ROWS][batch[WEIGHTS] > 0] for batch in self.step_batches]
            self._stop("the gradient is not finite", torch.cat(counted))
        return norm

    def _stop(self, what: str, rows: Tensor) -> None:
        named = [self.where(row) for row in rows.tolist()[:_MOST_ROWS_NAMED]]
        more = f" and {len(rows) - len(named)} more" if len(rows) > len(named) else ""
        raise DivergedError(
            f"{what} at step {self.state.global_step + 1}; training stopped",
            where=", ".join(named) + more,
            hint="lower training.learning_rate, add warmup_steps, or use engine.precision: fp32",
        )

    # Evaluation and checkpoints ---------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the validation records; every process gets the same scores."""
        assert self.evaluate_now is not None
        with self.meter.pause(), self._whole_embedding():
            found = self.evaluate_now()
        scores = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(scores))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self.meter.pause(), self._whole_embedding():
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with self._whole_embedding():
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        with self._whole_embedding():
            super()._load_best_model()

    def _whole_optimizer(self) -> dict[str, Any]:
        return self.trimmed.whole_states(self.optimizer) if self.trimmed else super()._whole_optimizer()

    def _take_optimizer(self, state: dict[str, Any]) -> None:
        super()._take_optimizer(self.trimmed.own_states(self.optimizer, state) if self.trimmed else state)

    def _write_checkpoint(self, draft: Path, weights: dict[str, Tensor] | None, optimizer: Any) -> None:
        super()._write_checkpoint(draft, weights, optimizer)
        checkpoints.write_json(draft / _ROOM, {"most": self.room.most})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.is_deepspeed_enabled:
            return
        # In other parts, dropout would draw in another order.
        before, now = checkpoints.read_json(Path(checkpoint) / _ROOM)["most"], self.room.most
        if now is None or (before is not None and before <= now):
            self.room.most = before
        else:
            log.warning("  note: less memory is free than before: dropout draws other numbers from here on")
