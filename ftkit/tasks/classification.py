"""Classification: one label or several for a text or a pair of texts."""

from __future__ import annotations

import json
from ast import literal_eval
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field as Limits
from pydantic import field_validator, model_validator

from ftkit.errors import InputError, UsageError
from ftkit.records import Prediction, Record, Target
from ftkit.tasks.as_text import (
    NONE,
    checked_template,
    first_line,
    label_refusal,
    read_label,
    read_labels,
    refuse_unreadable,
    text_refusal,
    text_usage,
    writing_head,
    written_template,
)
from ftkit.tasks.base import Field, Task
from ftkit.tasks.reading import text_of, whole

if TYPE_CHECKING:
    from ftkit.questions import Questions
    from ftkit.training.heads import Objective
    from ftkit.training.setup import Head

_MOST_LABELS_SHOWN = 12
_WITHHELD = "-1"
_VECTORS = {("0", "1"), ("1", "0")}
_SEPARATORS = ",;|/"
_PROMPT = "{{ text }}\n{% if text_pair is defined %}{{ text_pair }}\n{% endif %}"


class Classification(Task):
    """Assign one label, or several, to a text or a pair of texts."""

    type: Literal["classification"] = "classification"
    labels: list[str] | None = None
    """Label names in the model's order; by default those of the training data, sorted."""
    multi_label: bool = False
    """Whether a row may carry any number of labels."""
    label_separator: Annotated[str, Limits(min_length=1)] = ","
    """What stands between the labels of a row where they are written as one string."""
    threshold: Annotated[float, Limits(gt=0, lt=1)] = 0.5
    """With `multi_label`, the probability from which a label is predicted."""
    formulation: Literal["head", "text"] = "head"
    """`head` reads the answer off an output layer of its own; with `text` a decoder or encoder-decoder
    writes it (the label's name)."""
    template: str | None = None
    """With `formulation: text`, Jinja that makes what the model reads from `text` and `text_pair`."""
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Limits(ge=0)]] | None = None
    """Weight of each label in the loss; `balanced` weighs rare labels up."""

    fields: ClassVar[Mapping[str, Field]] = {
        "text": Field(("text", "sentence", "sentence1")),
        "text_pair": Field(("text_pair", "sentence2"), required=False),
        "label": Field(("label", "labels")),
    }
    answer_fields: ClassVar[tuple[str, ...]] = ("label",)
    read_late: ClassVar[tuple[str, ...]] = ("threshold",)
    pipeline: ClassVar[str] = "text-classification"

    @model_validator(mode="after")
    def _possible_labels(self) -> Classification:
        if self.labels is None:
            return self
        if twice := [name for name in self.labels if self.labels.count(name) > 1]:
            raise ValueError(f"labels: {twice[0]!r} stands twice")
        if bad := [name for name in self.labels if not name or name != name.strip()]:
            raise ValueError(f"labels: {bad[0]!r} is empty or has spaces around it")
        if len(self.labels) < (fewest := 1 if self.multi_label else 2):
            raise ValueError(
                f"labels: at least {fewest} are needed; leave the key out to take those of the data"
            )
        if wrong := self._wrong_weights(self.labels):
            raise ValueError(f"class_weights: {wrong}")
        if unreadable := self._unreadable(self.labels):
            raise ValueError(f"formulation: text: {unreadable}")
        return self

    _template = field_validator("template")(checked_template)
    _written_template = model_validator(mode="after")(written_template)

    @property
    def writes(self) -> bool:
        return self.formulation == "text"

    def refusal(self, family: str, metrics: Sequence[str]) -> str:
        return text_refusal(family) if self.writes else ""

    @property
    def answer(self) -> str:
        return "label set" if self.multi_label else "label"

    @property
    def default_metrics(self) -> list[str]:
        if self.multi_label:
            return ["micro_f1", "macro_f1", "per_label"]
        return ["accuracy", "macro_f1", "per_label", "confusion_matrix"]

    def read(self, values: Mapping[str, Any], where: str) -> Record:
        pair = values.get("text_pair")
        return Record(
            text=text_of(values.get("text"), "text", where),
            text_pair=None if "text_pair" not in values else text_of(pair, "text_pair", where),
            target=self._answer(values.get("label"), where),
            where=where,
        )

    def find_labels(self, train: Sequence[Record], declared: Sequence[str]) -> tuple[str, ...]:
        if self.labels or declared:
            names = tuple(self.labels or declared)
        else:
            names = tuple(sorted({name for r in train for name in _names(r.target)}, key=_natural))
        if self.multi_label and len(train) > 1 and all(r.target in _VECTORS for r in train):
            raise _vector(train[0].target, train[0].where)
        if len(names) < (1 if self.multi_label else 2):
            only = f"only the label {names[0]!r}" if names else "no label"
            raise InputError(
                f"the training data holds {only}: there is nothing to tell apart",
                where=train[0].where.rpartition(":")[0] if train else "",
                hint="classification needs rows of at least two labels",
            )
        if wrong := self._wrong_weights(names):
            raise UsageError(f"task.class_weights: {wrong}")
        refuse_unreadable(self._unreadable(names))
        return names

    def withholds(self, records: Sequence[Record]) -> bool:
        # GLUE writes -1 for the answers of a test split.
        return bool(records) and all(record.target == _WITHHELD for record in records)

    def settle(self, records: Sequence[Record], labels: Sequence[str]) -> tuple[Iterable[Record], list[str]]:
        if _WITHHELD not in labels and self.withholds(records):
            return (replace(record, target=None) for record in records), ["all labels are -1: withheld"]
        return (self._settled(record, labels) for record in records), []

    def labels_of(self, record: Record) -> tuple[str, ...]:
        return _names(record.target)

    def _settled(self, record: Record, labels: Sequence[str]) -> Record:
        if record.target is None:
            return record
        if isinstance(record.target, str):
            label = self._label(record.target, labels, record.where)
            return record if label == record.target else replace(record, target=label)
        chosen = {self._label(name, labels, record.where) for name in _names(record.target)}
        return replace(record, target=tuple(name for name in labels if name in chosen))

    def stratum(self, record: Record) -> str:
        return "|".join(map(str, _names(record.target)))

    @property
    def strata_overlap(self) -> bool:
        return self.multi_label

    def notes(self, train: Sequence[Record], labels: Sequence[str]) -> Iterator[str]:
        yield from super().notes(train, labels)
        if _WITHHELD in labels and not self.labels:
            yield "-1 is one of the labels; where it says that a row has none, remove the row"
        if self.multi_label:
            for separator in _SEPARATORS.replace(self.label_separator, ""):
                joined = [n for n in labels if separator in n and {*n.split(separator)} <= {*labels}]
                if joined:
                    yield (
                        f"{joined[0]!r} is a label, and so is each part: is {separator!r} the "
                        f"task.label_separator, and not {self.label_separator!r}?"
                    )

    @property
    def auto_class(self) -> str | None:
        return None if self.writes else "AutoModelForSequenceClassification"

    def head(self, labels: Sequence[str], learned: Mapping[str, Any]) -> Head:
        from ftkit.training.setup import Head

        if self.auto_class is None:
            return Head(None, {})
        problem = "multi_label_classification" if self.multi_label else "single_label_classification"
        return Head(
            auto_class=self.auto_class,
            config={
                "num_labels": len(labels),
                "id2label": dict(enumerate(labels)),
                "label2id": {name: number for number, name in enumerate(labels)},
                "problem_type": problem,
            },
        )

    def learned(self, train: Sequence[Record], labels: Sequence[str]) -> dict[str, Any]:
        """The weights of the labels, where they have some."""
        weights = self._weights(labels, train)
        return {} if weights is None else {"weights": weights}

    def objective(
        self, labels: Sequence[str], learned: Mapping[str, Any], *, family: str, label_smoothing: float
    ) -> Objective:
        if self.writes:
            return self._written(labels, family, label_smoothing)
        from ftkit.training.heads import SequenceHead

        if self.multi_label and label_smoothing:
            raise UsageError("training.label_smoothing_factor is for one label a row, not for several")
        return SequenceHead(
            labels=tuple(labels),
            multi_label=self.multi_label,
            threshold=self.threshold,
            weights=learned.get("weights"),
            label_smoothing=label_smoothing,
        )

    def _written(self, labels: Sequence[str], family: str, label_smoothing: float) -> Objective:
        """Labels by name, as text."""
        if self.class_weights is not None:
            raise UsageError("task.class_weights is for formulation: head")
        read = read_labels if self.multi_label else read_label
        return writing_head(
            family,
            template=self.template,
            asked="Labels" if self.multi_label else "Label",
            write=lambda record: ", ".join(_names(record.target)) or NONE,
            read=lambda text, record: read(text, record, labels),
            label_smoothing=label_smoothing,
        )

    @property
    def asked_by(self) -> tuple[str, ...]:
        return ("generate",) if self.multi_label else ("rank", "generate", "cloze")

    prompt_fields: ClassVar[tuple[str, ...]] = ("text", "text_pair", "labels")

    def questions(
        self, labels: Sequence[str], words: Mapping[str, Sequence[str]], entity_format: str
    ) -> Questions:
        from ftkit.questions import Candidate, Questions, pair_fields

        meant = {word: label for label in labels for word in words[label]}
        candidates = [Candidate(label, word) for word, label in meant.items()]

        def read(text: str, record: Record) -> Prediction:
            found = (read_labels if self.multi_label else read_label)(text, record, list(meant))
            named = dict.fromkeys(meant[word] for word in _names(found.value) if word)
            if self.multi_label:
                return replace(found, value=tuple(label for label in labels if label in named))
            return replace(found, value=next(iter(named), ""))

        return Questions(
            template=_PROMPT + ("Labels:" if self.multi_label else "Label:"),
            fields=pair_fields,
            shared={"labels": ", ".join(words[label][0] for label in labels)},
            write=lambda record: ", ".join(words[name][0] for name in _names(record.target)) or NONE,
            read=lambda text, record: read(first_line(text), record),
            candidates=None if self.multi_label else lambda record: candidates,
            unreadable=label_refusal(list(meant), several=self.multi_label),
        )

    def usage(self, auto_class: str, generation: Mapping[str, Any], *, pairs: bool) -> list[str]:
        asked = "Labels" if self.multi_label else "Label"
        return text_usage(auto_class, generation, template=self.template, asked=asked, pairs=pairs)

    def answer_json(self, value: Any, record: Record) -> Any:
        return value

    def prediction_json(self, prediction: Prediction, record: Record) -> dict[str, Any]:
        scores = {name: round(score, 6) for name, score in prediction.scores.items()}
        chosen = _names(prediction.value)
        answer = {"labels": list(chosen)} if self.multi_label else {"label": chosen[0] or None}
        failed = {"unreadable": prediction.failed} if prediction.failed else {}
        return {**answer, **({"scores": scores} if scores else {}), **failed}

    def prediction_text(self, prediction: Prediction, record: Record) -> str:
        scores = {name: f" {score:.3f}" for name, score in prediction.scores.items()}
        chosen = ", ".join(f"{name}{scores.get(name, '')}" for name in _names(prediction.value))
        return f"{chosen or '(none)'}  {record.text}"

    def pipeline_note(self) -> str:
        if not self.multi_label or self.writes:
            return ""
        return f"ftkit predicts the labels whose probability is at least {self.threshold}."

    def call_options(self, max_length: int) -> dict[str, Any]:
        every = {"top_k": None} if self.multi_label else {}
        return {"truncation": True, "max_length": max_length, **every}

    def _weights(self, labels: Sequence[str], train: Sequence[Record]) -> list[float] | None:
        """Weight of each label; for several labels a row, of its positive cases."""
        if self.class_weights is None:
            return None
        if isinstance(self.class_weights, dict):
            return [self.class_weights.get(name, 1.0) for name in labels]
        count = Counter(name for record in train for name in _names(record.target))
        if self.multi_label:
            return [(len(train) - count[name]) / count[name] if count[name] else 1.0 for name in labels]
        return [len(train) / (len(labels) * count[name]) if count[name] else 1.0 for name in labels]

    def _unreadable(self, labels: Sequence[str]) -> str:
        """Why the labels cannot be told apart as text; empty where they can, or a head names them."""
        return label_refusal(labels, several=self.multi_label) if self.writes else ""

    def _wrong_weights(self, labels: Sequence[str]) -> str:
        """What is wrong with the weights of the labels; empty where nothing is."""
        given = self.class_weights if isinstance(self.class_weights, dict) else {}
        if unknown := [name for name in given if name not in labels]:
            return f"{unknown[0]!r} is no label; labels: {_some(labels)}{_nearest(unknown[0], labels)}"
        if not self.multi_label and not any(given.get(name, 1.0) for name in labels):
            return "all are 0, so nothing would be learned"
        return ""

    def _answer(self, value: Any, where: str) -> Target | None:
        """The row's label or labels as written; `None` where the data holds no answer."""
        if not self.multi_label:
            return None if value in (None, "") else _label_text(value, where)
        if value is None:
            return None
        if isinstance(value, str) and value.strip()[:1] + value.strip()[-1:] == "[]":
            value = _listed(value, where)
        if isinstance(value, str):
            parts = [part.strip() for part in value.split(self.label_separator)]
            value = list(dict.fromkeys(filter(None, parts)))
        if not isinstance(value, list):
            raise InputError(
                f"the label is {value!r:.80}; with multi_label a list is needed, or a string with "
                f"{self.label_separator!r} between the labels",
                where=where,
            )
        found = tuple(_label_text(part, where) for part in value)
        if len(found) > len(set(found)) and set(found) <= {"0", "1"}:
            raise _vector(value, where)
        return found

    def _label(self, written: str, labels: Sequence[str], where: str) -> str:
        """The label's name: as written, or by its number where `task.labels` numbers them. Those found in the
        data are only sorted, so a number would mean whatever the alphabet makes of it.
        """
        if written in labels:
            return written
        number = written.isdecimal() and not all(name.isdecimal() for name in labels)
        if self.labels and number and int(written) < len(labels):
            return labels[int(written)]
        source = "that task.labels names" if self.labels else "of the training data"
        raise InputError(
            f"the label {written!r:.80} is not among the {len(labels)} labels {source}"
            + _nearest(written, labels),
            where=where,
            hint=f"labels: {_some(labels)}"
            + ("; what numbers mean is said by task.labels" if number and not self.labels else ""),
        )


def _listed(value: str, where: str) -> list[Any]:
    """A list as JSON or Python writes it, which is what tables make of lists.

    >>> _listed("['joy', 'anger']", "row 1")
    ['joy', 'anger']
    """
    for read in (json.loads, literal_eval):
        try:
            found = read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list):
            return found
    raise InputError(
        f"the label {value!r:.80} is no list that can be read",
        where=where,
        hint='write ["joy", "anger"] or joy,anger',
    )


def _vector(value: Any, where: str) -> InputError:
    return InputError(
        f"the labels are a vector of zeros and ones: {value!r:.80}",
        where=where,
        hint="write the names, or the numbers, of the labels that apply",
    )


def _label_text(value: Any, where: str) -> str:
    """A label as its name: integers and whole floats by their digits.

    Raises:
        InputError: It is empty, or something else.
    """
    if isinstance(value, str) and not value.strip():
        raise InputError("the label is empty", where=where, hint="fill it in or remove the row")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (str, int)):
        return whole(str(value).strip(), "label", where)
    hint = "for several labels a row set task.multi_label: true" if isinstance(value, list) else ""
    raise InputError(f"the label is {value!r:.80}, not a name or a whole number", where=where, hint=hint)


def _nearest(written: str, labels: Sequence[str]) -> str:
    close = get_close_matches(written[:200], labels, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _some(labels: Sequence[str]) -> str:
    return ", ".join(labels[:_MOST_LABELS_SHOWN]) + (", ..." if len(labels) > _MOST_LABELS_SHOWN else "")


def _names(target: Target | None) -> tuple[str, ...]:
    if target is None:
        return ()
    assert isinstance(target, (str, tuple))
    return (target,) if isinstance(target, str) else target


def _natural(name: str) -> tuple[int, int, str]:
    """Numbers in their order (`7` before `007`), then words in theirs."""
    return (0, int(name), name[::-1]) if name.removeprefix("-").isdecimal() else (1, 0, name)
