"""The estimator that only prompts: nothing is trained, shots are chosen and answers are ranked."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ftkit.errors import InputError
from ftkit.prompts.ranking import Continuation, Ranker, continuation
from ftkit.prompts.shots import choose_shots
from ftkit.prompts.template import Template
from ftkit.records import Prediction, Record
from ftkit.training.precision import resolve_precision
from ftkit.training.processes import processes
from ftkit.training.setup import Loaded, Scorer, Setup, Workplace

log = logging.getLogger("ftkit")

SHOTS = "shots.json"


@dataclass(frozen=True, slots=True)
class Prompting:
    """How prompts are written and answers scored.

    Attributes:
        template: Makes the prompt of a row.
        description: What stands before the shots.
        delimiter: What stands between shots.
        target_delimiter: What stands between a prompt and its answer.
        words: What the model would write for each label.
        num_fewshot: How many shots.
        shots: How they are chosen.
        length_normalization: What a score is divided by: `none`, `token`, `character` or `byte`.
    """

    template: Template
    description: str
    delimiter: str
    target_delimiter: str
    words: Mapping[str, str]
    num_fewshot: int
    shots: str
    length_normalization: str

    def solved(self, shot: Mapping[str, str]) -> str:
        """A shot: its prompt with the answer."""
        return self.prompt(shot) + self.target_delimiter + self.words[shot["answer"]]

    def prompt(self, fields: Mapping[str, str]) -> str:
        """The prompt of one row by itself."""
        return self.template.render({name: text for name, text in fields.items() if name != "answer"})

    def context(self, shots: Sequence[Mapping[str, str]], fields: Mapping[str, str]) -> str:
        """All that the model reads before the answer."""
        parts = [self.description] if self.description else []
        return self.delimiter.join([*parts, *map(self.solved, shots), self.prompt(fields)])

    def score(self, value: float, row: Continuation) -> float:
        """A log-probability over the answer's length."""
        lengths = {"none": 1, "token": row.tokens, "character": row.characters, "byte": row.octets}
        return value / lengths[self.length_normalization]


class PromptEstimator:
    """Chooses shots from the training records; predicts the likeliest answer.

    Args:
        setup: The task on a causal language model.
        prompting: How prompts are written.
    """

    def __init__(self, setup: Setup, prompting: Prompting) -> None:
        self.setup = setup
        self.prompting = prompting
        self.precision = resolve_precision(setup.precision)
        self.loaded: Loaded | None = None
        self.shots: list[dict[str, str]] = []

    def prepare(self, train: Sequence[Record], *, validated: bool, workplace: Workplace) -> None:
        """Load the model and choose the shots.

        Raises:
            InputError: The checkpoint has no language model head.
            UsageError: There are fewer training rows than shots.
        """
        chosen = choose_shots(
            train, self.prompting.num_fewshot, how=self.prompting.shots, seed=self.setup.seed
        )
        self.shots = [{**_fields(record), "answer": str(record.target)} for record in chosen]
        self._load()

    def fit(
        self, train: Sequence[Record], validation: Sequence[Record], score: Scorer, workplace: Workplace
    ) -> dict[str, Any]:
        """Save the shots; nothing is trained."""
        assert self.loaded is not None
        if processes().is_main_process:
            workplace.model.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.shots, indent=2, ensure_ascii=False)
            (workplace.model / SHOTS).write_text(text + "\n", encoding="utf-8")
        parameters = sum(p.numel() for p in self.loaded.model.parameters())
        shots = "1 shot" if len(self.shots) == 1 else f"{len(self.shots)} shots"
        log.info("  %s parameters, none of them trained; %s", f"{parameters:,}", shots)
        return {
            "parameters": parameters,
            "trained_parameters": 0,
            "max_length": self.loaded.max_length,
            "shots": len(self.shots),
        }

    def load(self, folder: Path, train: Sequence[Record]) -> None:
        """Take up the shots that an earlier `fit` saved.

        Raises:
            InputError: They cannot be read.
        """
        try:
            self.shots = json.loads((folder / SHOTS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"the shots cannot be read: {error}", where=str(folder / SHOTS)) from None
        self._load()

    def _load(self) -> None:
        self.loaded = self.setup.load()
        if self.loaded.new_parameters:
            raise InputError(
                "the checkpoint has no language model head (its weights would be random: "
                f"{', '.join(self.loaded.new_parameters[:3])})",
                where=self.loaded.source,
                hint="take a checkpoint that was trained as a causal language model",
            )

    # Predicting -------------------------------------------------------------------------

    def predict(self, records: Sequence[Record]) -> list[Prediction]:
        """The likeliest label of each record, with the softmax over its answers' scores."""
        assert self.loaded is not None
        contexts: dict[int, list[tuple[int, list[Continuation]]]] = defaultdict(list)
        for number, record in enumerate(records):
            shots, rows = self._candidates(record)
            contexts[shots].append((number, rows))
        if dropped := sum(len(group) for shots, group in contexts.items() if shots < len(self.shots)):
            log.warning(
                "  note: %d of %d prompts do not hold all %d shots: there was no room within %d tokens, or a "
                "shot was the row itself",
                dropped, len(records), len(self.shots), self.loaded.max_length,
            )  # fmt: skip
        pad = self.loaded.tokenizer.pad_token_id
        ranker = Ranker(self.loaded.model, device=processes().device, precision=self.precision, pad=pad)
        predictions: dict[int, Prediction] = {}
        for group in contexts.values():
            # Prompts with the same shots begin alike, and share what is computed for that beginning.
            rows = [row for _, candidates in group for row in candidates]
            values = ranker.scores(rows)
            scores = [self.prompting.score(value, row) for value, row in zip(values, rows, strict=True)]
            labels = list(self.prompting.words)
            for place, (number, _) in enumerate(group):
                predictions[number] = _prediction(labels, scores[place * len(labels) :][: len(labels)])
        return [predictions[number] for number in range(len(records))]

    def _candidates(self, record: Record) -> tuple[int, list[Continuation]]:
        """How many shots stand in the prompt, and the prompt with each answer.

        Raises:
            InputError: Not even the row alone fits.
        """
        assert self.loaded is not None
        fields = _fields(record)
        # A row is never its own example.
        shots = [shot for shot in self.shots if {**fields, "answer": shot["answer"]} != shot]
        for first in range(len(shots) + 1):
            try:
                context = self.prompting.context(shots[first:], fields)
                rows = [
                    continuation(self.loaded.tokenizer, context, self.prompting.target_delimiter + word)
                    for word in self.prompting.words.values()
                ]
            except ValueError as error:
                raise InputError(str(error), where=record.where) from None
            if max(len(row.ids) for row in rows) <= self.loaded.max_length:
                return len(shots) - first, rows
        raise InputError(
            f"the prompt has more than {self.loaded.max_length} tokens, even without shots",
            where=record.where,
            hint="a query is never cut: shorten it, or raise model.max_length within the model's positions",
        )


def _fields(record: Record) -> dict[str, str]:
    pair = {} if record.text_pair is None else {"text_pair": record.text_pair}
    return {"text": record.text, **pair}


def _prediction(labels: Sequence[str], scores: Sequence[float]) -> Prediction:
    probabilities = torch.tensor(scores, dtype=torch.float64).softmax(dim=0).tolist()
    by_label = dict(zip(labels, probabilities, strict=True))
    return Prediction(max(by_label, key=by_label.__getitem__), by_label)
