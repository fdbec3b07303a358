"""The estimator of every method that trains."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PrinterCallback, set_seed

from ftkit.errors import InputError, UsageError
from ftkit.records import Prediction, Record
from ftkit.training.answers import Answers
from ftkit.training.batches import ROWS, WEIGHTS, Collator, Rows, by_length
from ftkit.training.cache import encode_once
from ftkit.training.checkpoints import let_others_read, newest_checkpoint
from ftkit.training.cpu import keep_kernels, keep_memory
from ftkit.training.defaults import (
    EVAL_BATCH,
    pass_overhead,
    refusals,
    refuse_checkpointing,
    training_arguments,
    training_callbacks,
    writing_nothing,
)
from ftkit.training.engine import Engine
from ftkit.training.features import lengths
from ftkit.training.heads import Batch, Encoded, Features
from ftkit.training.language_head import LanguageHead
from ftkit.training.memory import plan
from ftkit.training.packing import Packed, refuse_mixed_rows
from ftkit.training.precision import autocast, lower_frozen, resolve_precision
from ftkit.training.processes import from_main_process, processes, shared
from ftkit.training.setup import Scorer, Setup, Show, Workplace
from ftkit.training.sharding import asked_for_sharding, is_sharded, load_everywhere
from ftkit.training.throughput import sentence
from ftkit.training.trimmed import TrimmedEmbedding, trimmed_embedding, trims_as_whole
from ftkit.training.unpadded import Unpadded, unpadded_as_padded
from ftkit.training.writing import WritingHead

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftkit.training.setup import Loaded

log = logging.getLogger("ftkit")

_RECORDS_AT_ONCE = 65_536
_ROWS_COMPARED, _TOKENS_COMPARED = 64, 4096
"""The most rows and tokens, padding included, that a saved model is compared on."""
_ROWS_TRIED = 8
_WORTH_A_LOOK = 8
"""Batches from which on it pays to look at how a model computes them."""
_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-2}


class TrainedEstimator:
    """Fits a model with the engine; predicts in batches of similar length.

    Args:
        setup: The task on a model.
        adapt: Makes the loaded model trainable in the method's way.
        restore: Loads what `fit` saved.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        adapt: Callable[[Loaded], nn.Module],
        restore: Callable[[Path], PreTrainedModel],
    ) -> None:
        keep_kernels()
        self.setup = setup
        self.adapt = adapt
        self.restore = restore
        self.precision = resolve_precision(setup.precision)
        self.model: Any = None
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.max_length = 0
        self.new_parameters: tuple[str, ...] = ()
        self.auto_class = ""
        self.answers: Answers | None = None
        self._told_cut = False
        self._narrow: Unpadded | None = None
        self._looked = False

    # Fitting ----------------------------------------------------------------------------

    def prepare(
        self, train: Sequence[Record], validation: Sequence[Record], *, score: Scorer, workplace: Workplace
    ) -> None:
        """Load the model, encode the rows, set the engine up: what can fail does so before a file is touched.

        The seed is set before any weight is created.

        Raises:
            UsageError: transformers refuses the `training` block, or the method this model.
            InputError: The model cannot be loaded, or no row fits.
        """
        load_everywhere()
        if processes().device.type == "cpu":
            keep_memory()
        self.arguments = training_arguments(self.setup, self.precision, workplace, validated=bool(validation))
        set_seed(self.setup.seed)
        loaded = self.setup.load(workplace.tokenizer if workplace.resume else None)
        self.own_tokenizer = loaded.own_tokenizer
        if loaded.other_labels:
            log.warning("  note: the checkpoint's head is for other labels; a new one is learned")
        self._use(self.adapt(loaded), loaded.tokenizer, loaded.max_length)
        refuse_checkpointing(self.model, self.arguments)
        lower_frozen(self.model, self.precision)
        self.encoded = self._encode_once(train, training=True)
        if not self.encoded.features:
            raise InputError("nothing can be learned from any training row: " + "; ".join(self.encoded.notes))
        if self.objective.packing:
            refuse_mixed_rows(self.model)
        if self.answers is not None:
            self.answers.room()
        self.new_parameters = loaded.new_parameters
        self.auto_class = loaded.auto_class
        self.trimmed = self._trimmed()
        most_tokens = self._most_tokens() if processes().device.type == "cpu" else None
        evaluate = self._validation(validation, score) if validation else None
        self.engine = self._engine(train, evaluate, workplace, most_tokens)

    def _most_tokens(self) -> int | None:
        """The most tokens to compute at once, by what the longest row takes; `None` where batches fit."""
        features = self.encoded.features
        if self.objective.packing:
            features = Packed(features, self.max_length)
        rows = Rows(features, self.objective, self.setup.seed)
        longest = int(lengths(features).argmax())

        def forward(count: int) -> Tensor:
            return self._losses(self.collator([rows[longest, 1.0, 0]] * count))

        tokens = self.collator([rows[longest, 1.0, 0]])["input_ids"].numel()
        parts = self.setup.micro_batch
        return plan(
            self.model, self.arguments, forward=forward, tokens=tokens, parts=parts, trimmed=self.trimmed
        )

    def _trimmed(self) -> TrimmedEmbedding | None:
        """What leaves unused tokens out of the embedding, where that changes nothing."""
        assert self.tokenizer is not None
        if asked_for_sharding() or self.arguments.deepspeed_plugin is not None:
            # What shards a model wants its weights to stay what they are.
            return None
        features = self.encoded.features
        padding = self.tokenizer.pad_token_id
        found = trimmed_embedding(self.model, features, self.objective, self.arguments, padding)
        if found is None:
            return None
        rows = Rows(features, self.objective, self.setup.seed)
        shortest = lengths(features).argsort(kind="stable")[:_ROWS_TRIED].tolist()
        batch = self.collator([rows[row, 1.0, 0] for row in shortest])
        if not from_main_process(lambda: trims_as_whole(found, self.model, batch, self._losses)):
            return None
        log.debug("  %d of %d tokens are in use", len(found.used), len(found.weight))
        return found

    def _unpadded(self, features: Sequence[Features]) -> Unpadded | None:
        """What computes the real tokens of a batch alone, where that was measured to be faster."""
        plain = processes().device.type == "cpu" and not self.arguments.torch_compile
        if not self.setup.micro_batch or not plain or self.objective.packing:
            return None
        rows = Rows(features, self.objective, self.setup.seed)
        batch = self.collator([rows[row, 1.0, 0] for row in _of_two_lengths(features)])
        found = unpadded_as_padded(self.model, batch, self._losses, 10 * _TOLERANCE[self.precision])
        log.debug("  batches are computed %s their padding", "with" if found is None else "without")
        return found

    def _losses(self, batch: Batch) -> Tensor:
        """The loss of each row of a batch, on the CPU."""
        inputs = {name: value for name, value in batch.items() if name not in ("labels", ROWS, WEIGHTS)}
        with autocast(torch.device("cpu"), self.precision):
            outputs = self.objective.outputs(self.model, inputs, batch["labels"])
            return self.objective.row_losses(outputs, batch["labels"])

    def _engine(
        self,
        train: Sequence[Record],
        evaluate: Callable[[], dict[str, float]] | None,
        workplace: Workplace,
        most_tokens: int | None,
    ) -> Engine:
        """The engine, with its data.

        Raises:
            UsageError: transformers refuses the arguments together.
        """
        encoded = self.encoded
        packed = Packed(encoded.features, self.max_length) if self.objective.packing else None

        def where(row: int) -> str:
            return train[encoded.owners[row]].where

        with refusals(), writing_nothing(self.arguments):
            engine = Engine(
                self.model,
                self.arguments,
                features=packed or encoded.features,
                collator=self.collator,
                where=where if packed is None else lambda number: packed.place(number, where),
                evaluate=evaluate,
                callbacks=training_callbacks(self.setup, workplace, validated=evaluate is not None),
                micro_batch_overhead=pass_overhead(self.model) if self.setup.micro_batch else None,
                most_tokens=most_tokens,
                unpadded=self._unpadded(packed or encoded.features),
                trimmed=self.trimmed,
            )
            engine.refuse_optimizer()
        if not len(engine.get_train_dataloader()):
            raise UsageError(
                f"training.dataloader_drop_last leaves no batch: there are {len(engine.rows)} rows",
                hint="lower training.per_device_train_batch_size, or leave dataloader_drop_last out",
            )
        # Progress and log file are our own.
        engine.remove_callback(PrinterCallback)
        return engine

    def fit(self, train: Sequence[Record], workplace: Workplace) -> dict[str, Any]:
        """Train what `prepare` loaded, save `model/`, reload it and compare.

        Args:
            train: Records to learn from, as `prepare` got them.
            workplace: Where checkpoints, log and model go.

        Returns:
            Figures of the run: steps, seconds, parameters, truncated rows.

        Raises:
            DivergedError: A loss or a gradient is not finite.
            InputError: The saved model does not predict what the trained one did.
        """
        engine = self.engine
        if self.own_tokenizer and processes().is_main_process:
            self._keep_tokenizer(workplace.tokenizer)
        figures = self._describe(self.encoded, len(train))
        if isinstance(packed := engine.rows.features, Packed):
            figures["packed_sequences"] = self._describe_packing(packed)
        if engine.is_deepspeed_enabled:
            log.warning("  note: DeepSpeed steps at each backward pass: every batch is computed whole")
        started = time.perf_counter()
        checkpoint = newest_checkpoint(workplace.checkpoints) if workplace.resume else None
        if checkpoint:
            log.info("Resuming from %s", checkpoint.name)
        engine.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        after = engine.unpadded.after if engine.unpadded else ()
        speed = engine.meter.figures(self.model, self.precision, after)
        log.info("  %s", sentence(speed))
        figures["steps"] = engine.state.global_step
        figures["train_seconds"] = round(time.perf_counter() - started, 4)
        figures["speed"] = speed
        figures["best_step"] = self._tell_kept(engine)
        self.model = engine.accelerator.unwrap_model(engine.model, keep_fp32_wrapper=False)
        self.model.eval()
        weights = engine.whole_weights(trained_only=hasattr(self.model, "peft_config"))
        if processes().is_main_process:
            self.save(workplace.model, engine, weights)
        processes().wait_for_everyone()
        self._compare_saved(workplace.model)
        return figures

    def _tell_kept(self, engine: Engine) -> int | None:
        """The step whose weights were taken up as the best ones; `None` where the last ones stay."""
        if (step := engine.kept_step()) is not None:
            metric = "eval_" + str(self.arguments.metric_for_best_model).removeprefix("eval_")
            scores = [entry for entry in engine.state.log_history if entry.get("step") == step]
            score = next(entry[metric] for entry in reversed(scores) if metric in entry)
            log.info(
                "  the weights of step %d of %d are kept: validation %s %.4f",
                step, engine.state.global_step, metric.removeprefix("eval_"), score,
            )  # fmt: skip
        return step

    def _keep_tokenizer(self, path: Path) -> None:
        """Leave a trained tokenizer for a resumed run: another one would give its tokens other numbers."""
        tokenizer: Any = self.tokenizer
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".part")
        tokenizer.backend_tokenizer.save(str(whole))
        whole.replace(path)

    def save(self, folder: Path, engine: Engine, weights: dict[str, Tensor] | None) -> None:
        """Write the model and its tokenizer; the weights are given where the model is sharded."""
        folder.mkdir(parents=True, exist_ok=True)
        engine.save_weights(folder, weights)
        let_others_read(folder)
        self._save_tokenizer(folder)
        if self.answers is not None:
            # Adapters do not bring it, and it says what ends an answer.
            self.model.generation_config.save_pretrained(folder)

    def merge(self, folder: Path) -> None:
        """Write the model, adapters merged into it, and its tokenizer."""
        untied = _untie_adapted(self.model)
        merged = self.model.merge_and_unload()
        if untied:
            merged.config.get_text_config().tie_word_embeddings = False
            merged.config.tie_word_embeddings = False
        merged.save_pretrained(folder)
        let_others_read(folder)
        self._save_tokenizer(folder)

    def _save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer without what the last call has left in it: a cut, and padding."""
        tokenizer: Any = self.tokenizer
        if tokenizer.is_fast:
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Take up what an earlier `fit` saved in the run's `model/`."""
        model = self._restored(folder)
        tokenizer = self.setup.load_tokenizer(folder)
        limit = self.setup.max_length
        assert limit is not None, "a finished run knows its longest input"
        self._use(model, tokenizer, limit)

    def _restored(self, folder: Path) -> PreTrainedModel:
        """What `fit` saved, held as it was while it was trained."""
        model = self.restore(folder)
        lower_frozen(model, self.precision)
        return model

    def _use(self, model: nn.Module, tokenizer: Any, max_length: int) -> None:
        self.model = model
        self._narrow, self._looked = None, False
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.objective = self.setup.objective(self.model.config)
        self.objective.prepare(tokenizer, max_length)
        if isinstance(self.objective, WritingHead):
            self.answers = Answers(
                model,
                tokenizer,
                self.objective,
                settings=self.setup.generation,
                precision=self.precision,
                max_length=max_length,
            )
        words = getattr(self.model.get_input_embeddings(), "num_embeddings", None)
        self.collator = Collator(tokenizer, self.objective, max_length, words)

    def _encode(self, records: Sequence[Record]) -> Encoded:
        assert self.tokenizer is not None
        return self.objective.encode(records, self.tokenizer, self.max_length)

    def _encode_once(self, records: Sequence[Record], *, training: bool) -> Encoded:
        """The same, or rows to learn from, kept for the next start with the same data and settings."""
        assert self.tokenizer is not None
        return encode_once(
            self.objective, records, self.tokenizer, self.max_length, task=self.setup.task, training=training
        )

    def _known(self, encoded: Encoded, records: Sequence[Record], what: str) -> Encoded:
        """The same, saying what is left out of a score.

        Raises:
            InputError: Every row with an answer is.
        """
        if self.answers is not None and any(record.target is not None for record in records):
            for note in encoded.notes:
                log.warning("  note: %s rows: %s", what, note)
            if not encoded.features:
                raise InputError(
                    f"none of the {len(records)} {what} rows fits with its answer", where=records[0].where
                )
        return encoded

    def _describe(self, encoded: Encoded, rows: int) -> dict[str, Any]:
        """Say and record what is trained, and what was cut."""
        total = sum(p.numel() for p in self.model.parameters())
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        log.info(
            "  %s of %s parameters are trained (%.1f %%), in %s",
            f"{trained:,}", f"{total:,}", 100 * trained / total, self.precision,
        )  # fmt: skip
        if encoded.truncated:
            log.warning(
                "  %d of %d training rows are longer than %d tokens and are cut",
                encoded.truncated, rows, self.max_length,
            )  # fmt: skip
        for note in encoded.notes:
            log.warning("  note: training: %s", note)
        if isinstance(self.objective, LanguageHead) and self.new_parameters:
            log.warning(
                "  note: the checkpoint has no language model head that fits; new, from random numbers: %s",
                ", ".join(self.new_parameters),
            )
        return {
            "parameters": total,
            "trained_parameters": trained,
            "new_parameters": list(self.new_parameters),
            "auto_class": self.auto_class,
            "max_length": self.max_length,
            "truncated_rows": encoded.truncated,
        }

    def _describe_packing(self, packed: Packed) -> int:
        """Say how well the rows fill their sequences; returns how many these are."""
        log.info(
            "  %s rows share %s sequences of %d tokens (%.1f %% full); a batch counts sequences",
            f"{len(packed.features):,}", f"{len(packed):,}", self.max_length,
            100 * packed.tokens / (len(packed) * self.max_length),
        )  # fmt: skip
        return len(packed)

    def _validation(self, validation: Sequence[Record], score: Scorer) -> Callable[[], dict[str, float]]:
        encoded = self._known(self._encode_once(validation, training=False), validation, "validation")
        if self.answers is not None and self.setup.write_in_validation:
            self.answers.refuse_long(validation)

        def evaluate() -> dict[str, float]:
            write = self.setup.write_in_validation
            predictions, loss = self._predict(validation, encoded, write=write)
            if self.answers is not None:
                self.answers.learned()
            return {"loss": loss, **score(predictions)}

        return evaluate

    # Predicting -------------------------------------------------------------------------

    def predict(self, records: Sequence[Record]) -> list[Prediction]:
        """One prediction a record, in the records' order.

        Many records go through in parts, so that the features of all are never held at once.
        """
        size = max(len(records), 1) if self.objective.joins_records else _RECORDS_AT_ONCE
        predictions: list[Prediction] = []
        for start in range(0, len(records), size):
            part = records[start : start + size]
            encoded = self._known(self._encode(part), part, "scored")
            if encoded.truncated and self.answers is None and not self._told_cut:
                log.warning(
                    "  note: a part of some texts is not read: the model takes %d tokens", self.max_length
                )
                self._told_cut = True
            predictions += self._predict(part, encoded)[0]
        return predictions

    def _predict(
        self, records: Sequence[Record], encoded: Encoded, *, write: bool = True
    ) -> tuple[list[Prediction], float]:
        """Predictions in order, and the mean loss (0 where rows have no labels).

        Every process takes its share of the batches and gets all predictions.
        """
        state = processes()
        features = encoded.features
        batches = by_length(features, self._eval_batch)
        narrow = self._narrowed(features) if len(batches) >= _WORTH_A_LOOK else None
        mine: list[tuple[int, Any]] = []
        sums = [0.0, 0.0]
        for batch, counts in shared(batches):
            rows = batch.tolist()
            chosen = [features[row] for row in rows]
            outputs, loss, count = self._forward(chosen, narrow)
            if not counts:
                continue
            mine += zip(rows, self.objective.decode(outputs, chosen), strict=True)
            sums = [sums[0] + loss, sums[1] + count]
        everyone = gather_object(mine) if state.num_processes > 1 else mine
        parts = gather_object([sums]) if state.num_processes > 1 else [sums]
        decoded = [answer for _, answer in sorted(everyone, key=lambda pair: pair[0])]
        count = sum(part[1] for part in parts)
        predictions = self.objective.predictions(records, encoded, decoded)
        if write and self.answers is not None:
            predictions = self.answers.written(records, predictions, self._eval_batch)
        return predictions, sum(part[0] for part in parts) / count if count else 0.0

    def variants(self) -> dict[str, Callable[[Sequence[Record]], list[Prediction]]]:
        """None: what was trained predicts in one way."""
        return {}

    @property
    def generation(self) -> Mapping[str, Any]:
        """How texts are written; empty where none are."""
        return {} if self.answers is None else self.answers.generation()

    def talk(self) -> Callable[[Record, Show], str]:
        """What gives the answer to one conversation after another."""
        assert self.answers is not None
        return self.answers.talk()

    @property
    def _eval_batch(self) -> int:
        return int(self.setup.arguments.get("per_device_eval_batch_size", EVAL_BATCH))

    def _narrowed(self, features: Sequence[Features]) -> Unpadded | None:
        """What leaves tokens that are not read out of the last block, where that changes nothing."""
        plain = processes().device.type == "cpu" and not is_sharded(self.model)
        one, other = _of_two_lengths(features)
        # Rows of one length tell nothing; later ones may.
        telling = len(features[one]["input_ids"]) < len(features[other]["input_ids"])
        if not self._looked and plain and telling and self.setup.micro_batch:
            batch = self.collator([(row, 1.0, features[row]) for row in (one, other)])
            tolerance = 10 * _TOLERANCE[self.precision]
            self._narrow = unpadded_as_padded(self.model, batch, self._sizes, tolerance)
            self._looked = True
        return self._narrow

    def _sizes(self, batch: Batch) -> Tensor:
        """One number for each row of a batch, which hangs on all that the model says of it; on the CPU."""
        inputs = {name: value for name, value in batch.items() if name not in ("labels", ROWS, WEIGHTS)}
        with autocast(torch.device("cpu"), self.precision):
            outputs = self.objective.outputs(self.model, inputs, batch.get("labels"))
        return outputs.float().abs().flatten(1).sum(dim=1)

    def _forward(
        self, features: Sequence[Features], narrow: Unpadded | None = None
    ) -> tuple[Tensor, float, float]:
        """Outputs of one batch on the CPU, with the summed loss and its count."""
        device = processes().device
        if not is_sharded(self.model):
            self.model.to(device)
        self.model.eval()
        inputs = {name: value.to(device) for name, value in self.collator.pad(features).items()}
        labels = None
        if "labels" in features[0]:
            labels = self.objective.collate_labels(features, inputs["input_ids"].shape[1]).to(device)
        # What FSDP gathers under inference mode could not be trained on afterwards.
        quiet = torch.no_grad() if is_sharded(self.model) else torch.inference_mode()
        batch = inputs if labels is None else {**inputs, "labels": labels}
        fewer = narrow.rows(batch, last_alone=True) if narrow else nullcontext()
        with quiet, autocast(device, self.precision), fewer:
            outputs = self.objective.outputs(self.model, inputs, labels).float()
        if labels is None:
            return outputs.cpu(), 0.0, 0.0
        losses, counts = self.objective.row_losses(outputs, labels), self.objective.row_counts(labels)
        return outputs.cpu(), losses.sum().item(), counts.sum().item()

    # Trust ------------------------------------------------------------------------------

    def _compare_saved(self, folder: Path) -> None:
        """Reload the saved model and compare it on some training rows: a run that cannot be used is none.

        Raises:
            InputError: The logits differ by more than the precision explains.
        """
        rows = Rows(self.encoded.features, self.objective, self.setup.seed)
        sizes = lengths(self.encoded.features)[:_ROWS_COMPARED]
        order = sizes.argsort(kind="stable")
        few = [row for count, row in enumerate(order, 1) if count * sizes[row] <= _TOKENS_COMPARED]
        features = [rows[int(row), 1.0, 0][2] for row in few or order[:1]]
        before = self._forward(features)[0]
        if is_sharded(self.model) and not processes().is_main_process:
            # The model was too large for each process to hold it whole.
            return
        trained = self.model
        if not is_sharded(trained):
            # A device may have no room for both.
            trained.cpu()
        try:
            self.model = self._restored(folder)
            after = self._forward(features)[0]
        finally:
            self.model = trained
        difference = (before - after).abs().max().item()
        scale = max(1.0, before.abs().max().item())
        if not difference <= _TOLERANCE[self.precision] * scale:
            raise InputError(
                f"the saved model predicts otherwise than the trained one (outputs differ by "
                f"{difference:.2g}); the run cannot be trusted",
                where=str(folder),
            )


def _of_two_lengths(features: Sequence[Features]) -> tuple[int, int]:
    """Two rows, the second longer than the first where there are such."""
    sizes = lengths(features)
    order = sizes.argsort(kind="stable").tolist()
    shortest, middle, longest = order[0], order[len(order) // 2], order[-1]
    return shortest, middle if sizes[middle] > sizes[shortest] else longest


def _untie_adapted(model: nn.Module) -> bool:
    """Give layers with adapters a matrix of their own, where another layer has the same: merging adds to it
    in place, and the other one would change too. Returns whether there was one.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    shared_by = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    found = False
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            base: Any = layer.get_base_layer()
            if shared_by[id(getattr(base, "weight", None))] > 1:
                base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
                found = True
    return found
