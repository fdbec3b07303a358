"""Shots: the solved examples that stand in a prompt."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from ftkit.errors import UsageError
from ftkit.records import Record

if TYPE_CHECKING:
    from ftkit.prompts.retrieval import Retriever


@dataclass(frozen=True, slots=True)
class Shot:
    """A solved example.

    Attributes:
        fields: What a template can name of it.
        answer: The right answer as text.
        why: Why it was chosen.
    """

    fields: Mapping[str, str]
    answer: str
    why: str = ""


class Shots(ABC):
    """Solved examples for queries; a query is never its own example."""

    @abstractmethod
    def of(self, queries: Sequence[Mapping[str, str]]) -> list[list[Shot]]:
        """The shots of each query (by its fields), in the order in which they stand in the prompt."""

    @abstractmethod
    def key(self, shots: Sequence[Shot]) -> Hashable:
        """Equal for prompts that begin with the same shots."""


@dataclass(frozen=True)
class SameShots(Shots):
    """The same for every query."""

    shots: tuple[Shot, ...]

    def of(self, queries: Sequence[Mapping[str, str]]) -> list[list[Shot]]:
        return [[shot for shot in self.shots if shot.fields != query] for query in queries]

    def key(self, shots: Sequence[Shot]) -> Hashable:
        return tuple(shot.answer + "\0" + "\0".join(shot.fields.values()) for shot in shots)


@dataclass(frozen=True)
class NearestShots(Shots):
    """Those most like each query, the most similar last (Liu et al., 2022).

    Args:
        pool: The solved examples to choose from.
        number: How many are chosen.
        retriever: Tells how alike texts are.
    """

    pool: tuple[Shot, ...]
    number: int
    retriever: Retriever

    def of(self, queries: Sequence[Mapping[str, str]]) -> list[list[Shot]]:
        # Some of the nearest may be the query itself, as often as it stands in the pool.
        wanted = min(self.number + 8, len(self.pool))
        found = self.retriever.nearest([as_text(query) for query in queries], wanted)
        return [self._of(query, near) for query, near in zip(queries, found, strict=True)]

    def _of(self, query: Mapping[str, str], near: Sequence[tuple[int, float]]) -> list[Shot]:
        others = [(place, score) for place, score in near if self.pool[place].fields != query][: self.number]
        chosen = []
        for rank, (place, score) in enumerate(others, 1):
            shot = self.pool[place]
            why = f"{rank}. of {len(self.pool)} by {self.retriever.name} ({score:.3f})"
            chosen.append(Shot(shot.fields, shot.answer, why))
        return chosen[::-1]

    def key(self, shots: Sequence[Shot]) -> Hashable:
        return len(shots)


def choose_shots(train: Sequence[Record], number: int, *, how: str, seed: int) -> list[tuple[Record, str]]:
    """Choose solved examples from the training split, and say why each.

    Args:
        train: Training records with answers.
        number: How many.
        how: `fixed` takes the first rows; `random` any, by the seed; `balanced` as many of each answer
            as possible, by the seed, answers alternating.
        seed: Seed of the choice.

    Raises:
        UsageError: There are fewer rows than that.
    """
    refuse_too_few(train, number)
    if how == "fixed":
        return [
            (record, f"row {place} of the training split") for place, record in enumerate(train[:number], 1)
        ]
    generator = random.Random(seed)
    if how == "random":
        return [(record, f"drawn with seed {seed}") for record in generator.sample(train, number)]
    groups: dict[str, list[int]] = defaultdict(list)
    for place, record in enumerate(train):
        groups[repr(record.target)].append(place)
    columns = [generator.sample(group, len(group)) for _, group in sorted(groups.items())]
    generator.shuffle(columns)
    alternating = chain.from_iterable(zip_longest(*columns))
    chosen = [place for place in alternating if place is not None][:number]
    return [(train[place], f"drawn for its answer with seed {seed}") for place in chosen]


def refuse_too_few(train: Sequence[Record], number: int) -> None:
    """More shots than there are rows, or shots and no row at all.

    Raises:
        UsageError: With what to do.
    """
    if number > len(train):
        rows = f"has {len(train)} rows" if train else "is empty"
        raise UsageError(
            f"method.num_fewshot: {number} shots are asked for, the training split {rows}",
            hint="lower num_fewshot, or give data.train_file",
        )


def as_text(fields: Mapping[str, str]) -> str:
    """All that is known of a query or a shot, to compare it by."""
    return "\n".join(fields.values())
