"""Everything a method needs to make an estimator, in plain values and functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ftkit.records import Prediction, Record

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ftkit.questions import Questions
    from ftkit.training.heads import Objective


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its tokenizer.

    Attributes:
        model: In evaluation mode, fp32, on the CPU.
        tokenizer: The model's own.
        new_parameters: Names of the parameters that the checkpoint did not hold and that were
            initialised at random: they must be trained, and saved with any adapter.
        max_length: The longest input in tokens.
        source: What the recipe calls the model, for an adapter to name its base.
        revision: Its revision, likewise.
        auto_class: The transformers auto class that loaded it.
        own_tokenizer: Whether the tokenizer was trained for it.
        other_labels: Whether the checkpoint's head is for other labels, so that it has a new one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    new_parameters: tuple[str, ...]
    max_length: int
    source: str = ""
    revision: str | None = None
    auto_class: str = ""
    own_tokenizer: bool = False
    other_labels: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """The output layer a task asks for.

    Attributes:
        auto_class: The transformers auto class that builds it; `None` for the language model head that
            the model's family has.
        config: Values of the model's configuration: label names, problem type.
    """

    auto_class: str | None
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Setup:
    """A task on a model, before a method decides how to solve it.

    Attributes:
        labels: Label names in the model's order.
        load: Loads the model with the head that the method needs; a fresh one with the tokenizer in that
            file, if it is there, else with one that it trains.
        load_finished: Loads a model that a run saved whole.
        load_tokenizer: Loads the tokenizer that a run saved.
        objective: Makes the objective for a model with that configuration.
        generation: How texts are written, by the names of transformers' `GenerationConfig`.
        write_in_validation: Whether validation during training needs written texts.
        task_type: The type of the task.
        asked_by: How a prompt can ask for its answer, the usual way first.
        questions: What the task asks in prompts; takes what is written for each label, and the format of
            entities.
        load_encoder: Loads an encoder that gives embeddings, by its Hub id, folder or package.
        arguments: The recipe's `training` block, without what it leaves out.
        precision: `auto`, `fp32`, `bf16` or `fp16`.
        micro_batch: Whether a batch may be computed in parts of similar length.
        seed: Seed of the weights, the data order and the dropout.
        best_metric: Validation score that chooses the checkpoint, and whether more is better.
        early_stopping: Evaluations without improvement to wait for, and the smallest improvement.
        max_length: Longest input asked for; `None` for the model's own.
        task: The task's settings as text, by which encoded rows are found again.
    """

    labels: tuple[str, ...]
    load: Callable[[Path | None], Loaded]
    load_finished: Callable[[Path], PreTrainedModel]
    load_tokenizer: Callable[[Path], PreTrainedTokenizerBase]
    objective: Callable[[PretrainedConfig], Objective]
    arguments: Mapping[str, Any]
    precision: str
    micro_batch: bool
    seed: int
    best_metric: tuple[str, bool]
    early_stopping: tuple[int, float] | None
    max_length: int | None
    task: str
    generation: Mapping[str, Any] = field(default_factory=dict)
    write_in_validation: bool = True
    task_type: str = ""
    asked_by: tuple[str, ...] = ()
    questions: Callable[[Mapping[str, Sequence[str]], str], Questions] | None = None
    load_encoder: Callable[[str], Loaded] | None = None


@dataclass(frozen=True)
class Workplace:
    """Where a run trains: its folder, whether it goes on from a checkpoint there, and is profiled."""

    folder: Path
    resume: bool = False
    profile: bool = False

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """That of a fresh model, for its resumed run."""
        return self.checkpoints / "tokenizer.json"

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def model(self) -> Path:
        return self.folder / "model"


Scorer = Callable[[Sequence[Prediction]], Mapping[str, float]]
"""Scores predictions for the validation records, by metric name."""


class Estimator(Protocol):
    """A model and a task under a method: what the rest of ftkit knows of all three."""

    precision: str

    @property
    def generation(self) -> Mapping[str, Any]:
        """How it writes texts, whatever the recipe or the model says of it; empty where it writes none."""

    def prepare(
        self, train: Sequence[Record], validation: Sequence[Record], *, score: Scorer, workplace: Workplace
    ) -> None:
        """Load what is needed to learn, and refuse what cannot be done; nothing is written yet.

        Args:
            train: Records to learn from.
            validation: Records to choose the checkpoint on; may be empty.
            score: Scores validation predictions.
            workplace: Where the run will be.
        """

    def fit(self, train: Sequence[Record], workplace: Workplace) -> dict[str, Any]:
        """Learn from the training records and save what was learned; returns figures of the run."""

    def load(self, folder: Path) -> None:
        """Take up what an earlier `fit` saved."""

    def predict(self, records: Sequence[Record]) -> list[Prediction]:
        """One prediction a record, in order."""

    def variants(self) -> Mapping[str, Callable[[Sequence[Record]], list[Prediction]]]:
        """All ways in which it can predict, by name, the usual one first; empty where there is only that."""


Show = Callable[[str], None]
"""Gets each piece of a text as soon as it stands."""


@runtime_checkable
class Talks(Protocol):
    """An estimator that conversations can be held with."""

    def talk(self) -> Callable[[Record, Show], str]:
        """What gives the answer to one record after another, each a conversation up to its last message.

        Where a conversation does not fit, its beginning is left out.
        """


@runtime_checkable
class Explains(Protocol):
    """An estimator whose prompts can be looked at."""

    def explain(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """The prompt of each record, the shots in it and why, and what the model said."""

    def rendered(
        self, records: Sequence[Record], train: Sequence[Record], tokenizer: PreTrainedTokenizerBase
    ) -> list[dict[str, Any]]:
        """The prompts of records with all their shots and what would be ranked; needs no model."""


@runtime_checkable
class Merges(Protocol):
    """An estimator that holds adapters, and can do without."""

    def merge(self, folder: Path) -> None:
        """Write the model, adapters merged into it, and its tokenizer."""
