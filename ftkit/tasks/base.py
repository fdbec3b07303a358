"""What a task knows: the fields it reads, its labels, its head and its metrics."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ftkit.component import Component
from ftkit.errors import InputError
from ftkit.records import Record

if TYPE_CHECKING:
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
    answer_field: ClassVar[str]
    """The field that holds the right answer; not needed to predict."""

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

    @abstractmethod
    def find_labels(self, train: Sequence[Record], declared: Sequence[str]) -> tuple[str, ...]:
        """The label names in the model's order.

        Args:
            train: The training records as read.
            declared: Names that the data set itself declares, in its order.

        Raises:
            InputError: There is nothing to tell apart.
        """

    @abstractmethod
    def settle(self, record: Record, labels: Sequence[str]) -> Record:
        """The record with its answer in label names.

        Raises:
            InputError: A label that is not among `labels`, with the row.
        """

    @abstractmethod
    def stratum(self, record: Record) -> str:
        """What the record is grouped by when a share is cut off."""

    @abstractmethod
    def head(self, labels: Sequence[str]) -> Head:
        """The head that a model needs for this task."""

    @abstractmethod
    def objective(
        self, labels: Sequence[str], train: Sequence[Record], *, label_smoothing: float
    ) -> Objective:
        """Features in, losses and predictions out, for models with this task's head."""

    @abstractmethod
    def answer_json(self, value: Any) -> dict[str, Any]:
        """A target or a predicted value under the key that a result row shows it with."""

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
                column = given[field]
                if isinstance(column, int) and column < 0:
                    column += len(found)
                names = [column]
            else:
                names = list(spec.aliases)
            present = [name for name in names if name in found]
            if present:
                chosen[field] = present[0]
            elif field in given or (spec.required and field != self.answer_field):
                raise _missing_column(field, names, found, where)
        return chosen


def _missing_column(field: str, names: Sequence[Any], found: Sequence[Any], where: str) -> InputError:
    looked = " or ".join(repr(name) for name in names)
    return InputError(
        f"no column {looked} for the field {field!r}",
        where=where,
        hint=f"found: {', '.join(map(str, found))}; map one with data.columns: {{{field}: COLUMN}}",
    )
