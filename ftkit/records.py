"""What flows between the stages: records in, predictions out, scores at the end."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Span:
    """An entity: characters `start` to `end` (exclusive) of the text, and its type.

    Attributes:
        score: The model's probability, for a predicted one; two spans are equal whatever it is.
    """

    start: int
    end: int
    label: str
    score: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Entities:
    """The entities of a text, as spans and as one BIO tag a word.

    Attributes:
        spans: In the order of the text; they do not overlap.
        tags: `O`, `B-TYPE` or `I-TYPE` for each word. Predicted tags are as the model gave them,
            so an `I-` may stand where none is allowed.
        text: The text.
        words: First and last character (exclusive) of each word.
        apart: Whether the data could tell neighbouring entities of one type apart.
    """

    spans: tuple[Span, ...]
    tags: tuple[str, ...]
    text: str
    words: tuple[tuple[int, int], ...]
    apart: bool = True


@dataclass(frozen=True, slots=True)
class RawTags:
    """Entities as read, before the scheme and the types of the data are known: a tag a word.

    Attributes:
        tags: In the scheme of the data; at least one.
    """

    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RawSpans:
    """Entities as read, before the types of the data are known: characters, which may cut words.

    Attributes:
        spans: In the order of the text; they do not overlap.
    """

    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: `system`, `user` or `assistant`.
        content: What is said.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Writing:
    """A text that a model writes, or is asked to write.

    Attributes:
        text: The text; of a target, the one to learn from.
        others: Further texts that would be as right.
        loss: Of a prediction: negative log-likelihood of the target, summed over its tokens, in nats.
        tokens: Of a prediction: the tokens of the target that the loss is over.
        octets: Of a prediction: the bytes of UTF-8 that these stand for; 0 where they are only a sample.
        start: Its first character in the text that it is a part of; -1 where it is of none.
    """

    text: str
    others: tuple[str, ...] = ()
    loss: float = 0.0
    tokens: int = 0
    octets: int = 0
    start: int = -1

    def __str__(self) -> str:
        return self.text


Target: TypeAlias = str | tuple[str, ...] | Entities | RawTags | RawSpans | float | Writing
"""What is asked of a row: one label, the set of its labels (sorted), its entities (raw until the task
settles them), a number, or a text."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row, ready for any method.

    Attributes:
        text: The text, or the first of a pair.
        text_pair: The second text of a pair.
        target: The right answer; `None` where the data holds none.
        where: File and line (or row), for messages.
        words: First and last character (exclusive) of each word, where a task looks at words.
        turns: The conversation up to the answer, where the task is one; `text` is its last message.
        choices: The answers that the row offers, where a task is to choose among them.
        id: What the data call the row; it comes out again with its prediction.
    """

    text: str
    text_pair: str | None = None
    target: Target | None = None
    where: str = ""
    words: tuple[tuple[int, int], ...] = ()
    turns: tuple[Turn, ...] = ()
    choices: tuple[str, ...] = ()
    id: str | int | None = None

    def question(self) -> tuple[Any, ...]:
        """All of the row but its answer and its name: two rows with the same question are the same row."""
        return (self.text, self.text_pair, *self.turns, *self.choices)


class LabelScores(Mapping[str, float]):
    """Scores of labels, whose names all rows share: a dictionary a row takes twenty times the memory.

    Args:
        places: The place of each label among the scores.
        scores: Numbers of single precision.
    """

    __slots__ = ("_places", "_scores")

    def __init__(self, places: Mapping[str, int], scores: Sequence[float]) -> None:
        self._places = places
        self._scores = array("f", scores)

    def __getitem__(self, label: str) -> float:
        return self._scores[self._places[label]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer to one record: `value` has the type of the record's target.

    Attributes:
        value: The predicted label, the tuple of predicted labels, the entities, the number, or the text (a
            `Writing`, which prints as its text).
        scores: Probability of every label, each in [0, 1]; entities carry their own.
        failed: What the model wrote that could not be read as an answer; empty where all of it could.
    """

    value: Target
    scores: Mapping[str, float] = field(default_factory=dict)
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Dataset:
    """The records of a recipe by split, and the label names in the model's order."""

    splits: Mapping[str, Sequence[Record]]
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, split: str) -> Sequence[Record]:
        return self.splits.get(split, ())

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Rows and content hash of every split, the same whatever file held them."""
        return {
            split: {"rows": len(records), "sha256": fingerprint(records)}
            for split, records in self.splits.items()
        }


@dataclass(frozen=True, slots=True)
class Score:
    """A headline score.

    Attributes:
        value: The score, or the mean over several ways to predict.
        low: Lower end of its 95 % bootstrap interval; `None` where there are several ways.
        high: Upper end.
        deviation: Sample standard deviation over several ways; `None` where there is one.
    """

    value: float
    low: float | None = None
    high: float | None = None
    deviation: float | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """What an evaluation found.

    Attributes:
        split: The split that was scored.
        rows: How many records were scored.
        metrics: Headline scores by metric name.
        details: Tables by name: per-label scores, the confusion matrix.
        signatures: How exactly a score is computed, by metric name, where programs differ.
        counts: What each row adds to a headline, shape (rows, k), by metric name; none where there are
            several ways to predict.
    """

    split: str
    rows: int
    metrics: Mapping[str, Score]
    details: Mapping[str, Any] = field(default_factory=dict)
    signatures: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


def fingerprint(records: Iterable[Record]) -> str:
    """SHA-256 over texts and targets in order (not over file names)."""
    digest = hashlib.sha256()
    for record in records:
        target = record.target
        # What else a text carries is not of the data.
        right = (target.text, target.others) if isinstance(target, Writing) else target
        digest.update(repr((*record.question(), right)).encode())
    return digest.hexdigest()


def labelled(records: Sequence[Record]) -> bool:
    """Whether the split holds answers (a hidden test set does not)."""
    return bool(records) and records[0].target is not None
