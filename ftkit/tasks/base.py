"""What a task knows: the fields it reads, its labels, its head and its metrics."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ftkit.component import Component
from ftkit.errors import InputError
from ftkit.records import Prediction, Record, Turn

if TYPE_CHECKING:
    from ftkit.questions import Questions
    from ftkit.training.heads import Objective
    from ftkit.training.setup import Head


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a task: the column names it is found under, and whether it must be there."""

    aliases: tuple[str, ...]
    required: bool = True


class Task(Component):
    """What is to be predicted, and how a row of data asks for it."""

    fields: ClassVar[Mapping[str, Field]]
    """What is read from a row, by field name."""
    answer_fields: ClassVar[tuple[str, ...]]
    """The fields that can hold the right answer; not needed to predict."""

    @property
    def writes(self) -> bool:
        """Whether the answer is written by a language model head, not read off a head of its own."""
        return False

    @property
    def takes_pairs(self) -> bool:
        """Whether a row may have a second text."""
        return "text_pair" in self.fields

    families: ClassVar[tuple[str, ...] | None] = None
    """The model families it can be solved with; `None` for all."""
    tags_words: ClassVar[bool] = False
    """Whether a prediction holds a tag for each word."""
    converses: ClassVar[bool] = False
    """Whether its rows are conversations, so that one can talk with what was made for it."""
    read_late: ClassVar[tuple[str, ...]] = ()
    """Options that only say what becomes of a model's scores: another value needs no other training."""
    pipeline: ClassVar[str | None]
    """The transformers pipeline that runs a model with this task's head; `None` where there is none."""

    @property
    @abstractmethod
    def answer(self) -> str:
        """The kind of a prediction's value, which a metric must be able to score."""

    @property
    @abstractmethod
    def default_metrics(self) -> list[str]:
        """The metrics of a recipe that names none; the first one chooses checkpoints."""

    @abstractmethod
    def read(self, values: Mapping[str, Any], where: str) -> Record:
        """One record from the values of the fields; the answer as the data writes it.

        Raises:
            InputError: A value is empty or of the wrong kind, with the row.
        """

    def read_all(self, values: Mapping[str, Any], where: str) -> Iterator[Record]:
        """The records of a row: one, where a task does not find several in it."""
        yield self.read(values, where)

    def refusal(self, family: str, metrics: Sequence[str]) -> str:
        """Why models of this family cannot do what is asked; empty where they can."""
        return ""

    def answered_by(self, columns: Mapping[str, Any]) -> bool:
        """Whether the columns that were found can hold the right answer."""
        return any(field in columns for field in self.answer_fields)

    def blank(self, values: Mapping[str, Any]) -> bool:
        """Whether a row of a data set holds nothing at all, and is left out."""
        return False

    def find_labels(self, train: Sequence[Record], declared: Sequence[str]) -> tuple[str, ...]:
        """The label names in the model's order; by default a task has none.

        Args:
            train: The training records as read.
            declared: Names that the data set itself declares, in its order.

        Raises:
            InputError: There is nothing to tell apart.
        """
        return ()

    @property
    def auto_class(self) -> str | None:
        """The transformers auto class of its head; `None` for the language model head of a model's family."""
        return None

    def withholds(self, records: Sequence[Record]) -> bool:
        """Whether what stands as the answers of a split says that they are not given."""
        return False

    def settle(self, records: Sequence[Record], labels: Sequence[str]) -> tuple[Iterable[Record], list[str]]:
        """The records of a split with their answers in label names, and what to know about them.

        Both may be made as they are needed: nothing is known before the last record was taken.

        Returns:
            The records (those that were given, where all answers stand as they are), and the notes.

        Raises:
            InputError: A label that is not among `labels`, with the row.
        """
        return records, []

    def labels_of(self, record: Record) -> tuple[str, ...]:
        """The labels in a settled record's answer, each as often as it stands there."""
        return ()

    def stratum(self, record: Record) -> str:
        """What the record is grouped by when a share is cut off."""
        return ""

    @property
    def strata_overlap(self) -> bool:
        """Whether what the rows of a stratum have in common is also found in others."""
        return False

    @abstractmethod
    def head(self, labels: Sequence[str], learned: Mapping[str, Any]) -> Head:
        """The head that a model needs for this task.

        Args:
            labels: The label names.
            learned: What `learned` found.
        """

    def learned(self, train: Sequence[Record], labels: Sequence[str]) -> dict[str, Any]:
        """What head and objective know of the training records besides the labels.

        A run keeps it as JSON, so that it predicts after it was loaded as it did before.
        """
        return {}

    @abstractmethod
    def objective(
        self, labels: Sequence[str], learned: Mapping[str, Any], *, family: str, label_smoothing: float
    ) -> Objective:
        """Features in, losses and predictions out, for models of a family with this task's head.

        Args:
            labels: The label names.
            learned: What `learned` found.
            family: The family of the model.
            label_smoothing: Share of the probability spread over all labels or tokens.
        """

    @property
    def asked_by(self) -> tuple[str, ...]:
        """How a prompt can ask for the answer (`rank`, `generate`, `cloze`), the usual way first."""
        return ()

    same_candidates: ClassVar[bool] = True
    """Whether all rows have the same candidates."""
    prompt_fields: ClassVar[tuple[str, ...]] = ()
    """What a prompt's template can name."""

    def questions(
        self, labels: Sequence[str], words: Mapping[str, Sequence[str]], entity_format: str
    ) -> Questions:
        """The task as questions to a language model.

        Args:
            labels: The label names.
            words: What is written for each label, the first in solved examples.
            entity_format: How entities are written: `lines` or `json`.
        """
        raise TypeError(f"{self.type} cannot be asked in a prompt")

    @abstractmethod
    def answer_json(self, value: Any, record: Record) -> Any:
        """A target or a predicted value as result files hold it."""

    @abstractmethod
    def prediction_json(self, prediction: Prediction, record: Record) -> dict[str, Any]:
        """A prediction under the keys that `ftkit predict` prints it with."""

    @abstractmethod
    def prediction_text(self, prediction: Prediction, record: Record) -> str:
        """A prediction for a person to read."""

    def word_tags(self, prediction: Prediction) -> Sequence[str]:
        """The tag of each word; only where the task tags words."""
        raise TypeError(f"{self.type} does not tag words")

    def inputs_of(self, texts: Sequence[str], pairs: Sequence[str] | None) -> list[dict[str, str]]:
        """The fields of typed texts."""
        if pairs is None:
            return [{"text": text} for text in texts]
        return [{"text": text, "text_pair": pair} for text, pair in zip(texts, pairs, strict=True)]

    def apart(self) -> Task:
        """The task with each row read by itself, as rows to predict for are; by default it does so anyway."""
        return self

    def opening(self, system: str | None) -> list[Turn]:
        """What a conversation begins with, before anything is said; only where the task converses.

        Args:
            system: A system prompt to take the place of the task's own.
        """
        raise TypeError(f"{self.type} is no conversation")

    def notes(self, train: Sequence[Record], labels: Sequence[str]) -> Iterator[str]:
        """What should be known about the training records before training."""
        seen = {name for record in train for name in self.labels_of(record)}
        if unseen := [name for name in labels if name not in seen]:
            more = f" and {len(unseen) - 5} more" if len(unseen) > 5 else ""
            yield f"no training row has the label {', '.join(unseen[:5])}{more}"

    def usage(self, auto_class: str, generation: Mapping[str, Any], *, pairs: bool) -> list[str]:
        """Python lines that use `model` and `tokenizer` on a text, where there is no pipeline for it.

        Args:
            auto_class: The transformers auto class that loads the model.
            generation: How texts are written, by the names of transformers' `GenerationConfig`.
            pairs: Whether a text has a second one.
        """
        raise TypeError(f"{self.type} has a pipeline")

    def example_arguments(self, *, pairs: bool) -> str:
        """What a row to predict for is given as, after `ftkit predict RUN`."""
        return '--text "..."' + (' --text-pair "..."' if pairs else "")

    def pipeline_options(self) -> dict[str, Any]:
        """What the pipeline is made with."""
        return {}

    def pipeline_note(self) -> str:
        """In what the pipeline differs from ftkit; empty where it does not."""
        return ""

    def call_options(self, max_length: int) -> dict[str, Any]:
        """What the pipeline is called with."""
        return {}

    def columns(self, found: Sequence[Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The column of every field, as given or by its usual names.

        Args:
            found: The columns of the first row.
            given: The recipe's `data.columns`.
            where: The first row's place, for messages.

        Raises:
            InputError: A column that is needed or named does not exist; the found ones are named.
        """
        chosen = {}
        for field, spec in self.fields.items():
            if field in given:
                names = [numbered(given[field], found)]
            else:
                names = list(spec.aliases)
            present = [name for name in names if name in found]
            if present:
                chosen[field] = present[0]
            elif field in given or (spec.required and field not in self.answer_fields):
                raise _missing_column(field, [given[field]] if field in given else names, found, where)
        return chosen


def numbered(column: Any, found: Sequence[Any]) -> Any:
    """A column number counted from the end as one from the start, where there are so many."""
    if not isinstance(column, int) or not -len(found) <= column < 0:
        return column
    return column + len(found)


def _missing_column(field: str, names: Sequence[Any], found: Sequence[Any], where: str) -> InputError:
    looked = " or ".join(repr(name) for name in names)
    return InputError(
        f"no column {looked} for the field {field!r}",
        where=where,
        hint=f"found: {', '.join(map(str, found))}; map one with data.columns: {{{field}: COLUMN}}, or "
        f"--set data.columns.{field}=COLUMN",
    )
