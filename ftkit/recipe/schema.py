"""The recipe: what it may say, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field, PositiveInt, model_validator

from ftkit.component import Block, discover, one_of
from ftkit.data.source import DataSource
from ftkit.families.base import Family
from ftkit.methods.base import Method
from ftkit.metrics.base import Headline, Metric
from ftkit.models.source import ModelSource
from ftkit.tasks.base import Task
from ftkit.training.arguments import training_block

LOSS = "loss"
_BESIDE_METRICS = ("unreadable", "variants")
"""Further details of metrics.json that a gate can look at."""


class Gate(Block):
    """Bounds that a score must keep; a score that was not computed fails its gate."""

    min: float | None = None
    """The lowest score that passes."""
    max: float | None = None
    """The highest score that passes."""
    baseline: str | None = None
    """A metrics.json to compare with, such as another run's."""
    max_drop: Annotated[float, Field(ge=0)] | None = None
    """How far the score may fall below the baseline's (above it, where lower is better)."""

    @model_validator(mode="after")
    def _says_something(self) -> Gate:
        if self.min is None and self.max is None and self.max_drop is None:
            raise ValueError("a gate needs min, max, or baseline with max_drop")
        if (self.baseline is None) != (self.max_drop is None):
            raise ValueError("baseline and max_drop go together")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}: no score passes")
        return self


def uncomputed(path: str, computed: Sequence[str]) -> str:
    """Why no score stands at a gate's path; empty where one does, as far as the metrics tell.

    Args:
        path: A metric, or a dotted path into its details.
        computed: The names of the metrics.

    >>> uncomputed("acuracy", ["accuracy", "macro_f1"])
    "is not computed; did you mean 'accuracy'? metrics has: accuracy, macro_f1"
    """
    if any(path == name or path.startswith(f"{name}.") for name in (*computed, *_BESIDE_METRICS)):
        return ""
    close = get_close_matches(path.partition(".")[0], computed, n=1)
    nearest = f" did you mean {close[0]!r}?" if close else ""
    return f"is not computed;{nearest} metrics has: {', '.join(computed)}"


class EarlyStopping(Block):
    """When to stop before the last epoch."""

    patience: PositiveInt = 3
    """Evaluations without improvement to wait for."""
    threshold: Annotated[float, Field(ge=0)] = 0.0
    """The smallest change that counts as an improvement."""


class EngineSettings(Block):
    """How the arithmetic is done; the results stay the same up to rounding."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto` is bf16 where the hardware multiplies it natively, fp32 elsewhere."""
    micro_batch: Literal["auto", "off"] = "auto"
    """`auto` leaves padding out: on a CPU between a model's first and last block, where its architecture lets
    rows follow each other there, else by computing a batch in parts of similar length; and the last block
    computes only the tokens that are read, where that is known. On a CPU it also cuts parts beyond a size
    from which larger ones only take more memory. The optimizer batch, the rows and the gradient stay the
    same; `off` computes batches whole, with their padding."""


class Generation(Block):
    """How texts are written, by the names of transformers' `GenerationConfig`."""

    max_new_tokens: PositiveInt = 128
    """The most tokens that are written."""
    min_new_tokens: PositiveInt | None = None
    """The fewest."""
    do_sample: bool = False
    """Draw each token, instead of taking the likeliest."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """With `do_sample`: below 1, likely tokens are drawn more often."""
    top_k: PositiveInt | None = None
    """With `do_sample`: draw among this many of the likeliest tokens."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """With `do_sample`: draw among the likeliest tokens that together have this probability."""
    num_beams: PositiveInt = 1
    """Follow this many texts at once and take the likeliest."""
    length_penalty: float | None = None
    """With `num_beams`: above 0, longer texts are preferred."""
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    """Above 1, tokens that already stand are avoided (Keskar et al., 2019)."""
    no_repeat_ngram_size: PositiveInt | None = None
    """No sequence of this many tokens is written twice."""

    @model_validator(mode="after")
    def _sampled(self) -> Generation:
        given = [name for name in ("temperature", "top_k", "top_p") if getattr(self, name) is not None]
        if given and not self.do_sample:
            raise ValueError(f"{given[0]} does nothing without do_sample: true")
        if self.min_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ValueError("min_new_tokens is above max_new_tokens")
        if self.length_penalty is not None and self.num_beams == 1:
            raise ValueError("length_penalty does nothing without num_beams")
        return self

    def settings(self) -> dict[str, Any]:
        """What is said, by name."""
        return self.model_dump(exclude_none=True)


if TYPE_CHECKING:
    AnyTask: TypeAlias = Task
    AnyMethod: TypeAlias = Method
    AnyMetric: TypeAlias = Metric
    Training: TypeAlias = Block
else:
    # The components that are found when the recipe is first needed; a type checker sees their base.
    AnyTask, AnyMethod, AnyMetric = one_of(Task), one_of(Method), one_of(Metric)
    Training = training_block()


class Recipe(Block):
    """One task, one model, one way to solve it, and how it is measured."""

    model_config = ConfigDict(title="ftkit recipe")

    task: AnyTask
    """What is to be predicted."""
    model: ModelSource
    """Where the pretrained weights come from."""
    data: DataSource
    """Where the rows come from."""
    method: AnyMethod
    """The way to solve the task."""
    training: Training = Training()
    """Arguments of transformers' `TrainingArguments`, by their own names."""
    metrics: list[AnyMetric] = []
    """The scores; by default those of the task."""
    gates: dict[str, Gate] = {}
    """Bounds by metric (or by path, such as `per_label.refund.f1`); one that fails is exit 4."""
    early_stopping: EarlyStopping | None = None
    """Stop when the validation score no longer improves."""
    generation: Generation = Generation()
    """How texts are written, for tasks whose answer is a text."""
    engine: EngineSettings = EngineSettings()
    """Precision and micro-batches."""
    output_dir: str
    """The run folder, relative to where the command is typed."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of new weights, data order and dropout."""

    @model_validator(mode="before")
    @classmethod
    def _default_metrics(cls, tree: Any) -> Any:
        """A recipe that names no metrics gets those of its task."""
        if not isinstance(tree, dict) or "metrics" in tree:
            return tree
        task = tree.get("task")
        if not isinstance(task, Task):
            options = task if isinstance(task, dict) else {"type": task}
            kind = discover(Task).get(str(options.get("type")))
            if kind is None:
                return {**tree, "metrics": []}
            known = {key: value for key, value in options.items() if key in kind.model_fields}
            task = kind.model_construct(**known)
        return {**tree, "metrics": list(task.default_metrics)}

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """What the `training` block says, nothing else."""
        return self.training.model_dump(exclude_none=True)

    @property
    def best_metric(self) -> tuple[str, bool]:
        """The validation score that chooses the checkpoint, and whether more is better."""
        headlines = [metric for metric in self.metrics if isinstance(metric, Headline)]
        name = self.arguments.get("metric_for_best_model") or (headlines[0].name() if headlines else LOSS)
        name = name.removeprefix("eval_")
        if (given := self.arguments.get("greater_is_better")) is not None:
            return name, given
        better = {metric.name(): metric.greater_is_better for metric in headlines}
        return name, better.get(name, False)

    @property
    def best_needs_text(self) -> bool:
        """Whether the score that chooses the checkpoint is one of written texts."""
        name, _ = self.best_metric
        return any(metric.name() == name and self._scores_writing(metric) for metric in self.metrics)

    @property
    def validation_metrics(self) -> list[Metric]:
        """The metrics of validation during training; texts are written only where the best one needs them."""
        return [metric for metric in self.metrics if self.best_needs_text or not self._scores_writing(metric)]

    def _scores_writing(self, metric: Metric) -> bool:
        """Whether a metric scores what the model writes, rather than the loss of a known text."""
        return self.task.writes and (metric.reads_text or self.task.answer != "text")

    @property
    def needs_validation(self) -> str:
        """The key that asks for validation during training; empty where none does."""
        if self.early_stopping:
            return "early_stopping"
        asking = {
            "eval_strategy": ("steps", "epoch"),
            "load_best_model_at_end": (True,),
            "save_strategy": ("best",),
        }
        keys = (key for key, values in asking.items() if self.arguments.get(key) in values)
        return next((f"training.{key}" for key in keys), "")

    def family_of(self, config: Mapping[str, Any]) -> type[Family] | None:
        """The family that owns a model configuration."""
        owners = [family for family in discover(Family).values() if family.owns(config)]
        return owners[0] if owners else None


BLOCK_ORDER = (
    "task", "model", "data", "method", "training", "early_stopping", "generation", "engine",
    "metrics", "gates", "output_dir", "seed",
)  # fmt: skip
