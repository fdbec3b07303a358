"""Answering: what a model makes of prompts, by ranking candidates or by writing."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ftkit.prompts.prompting import CONTENT_FREE, Prompt, Prompting
from ftkit.prompts.ranking import Joint, Ranker, log_sum
from ftkit.questions import Candidate
from ftkit.records import Prediction, Record, Writing
from ftkit.training.generation import Writer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("ftkit")

_MOST_KEPT = 10_000
_SPARE = 4
"""Tokens that a written label may have beyond the longest one."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A record as the model is asked it.

    Attributes:
        record: The record.
        prompt: What the model reads.
        row: The same in tokens.
        key: Equal for prompts that begin with the same shots.
    """

    record: Record
    prompt: Prompt
    row: Any
    key: Hashable


class Answerer(ABC):
    """A way to get answers out of a model; what it says first is raw, and can be kept as JSON."""

    def __init__(self, prompting: Prompting, tokenizer: PreTrainedTokenizerBase) -> None:
        self.prompting = prompting
        self.tokenizer = tokenizer

    @abstractmethod
    def row(self, record: Record, prompt: Prompt) -> tuple[Any, int]:
        """A prompt in tokens, and how many it has with the longest answer.

        Raises:
            InputError: An answer has no token.
        """

    @abstractmethod
    def say(self, asked: Sequence[Asked]) -> list[Any]:
        """What the model says to each prompt."""

    @abstractmethod
    def predictions(self, asked: Sequence[Asked], said: Sequence[Any]) -> list[Prediction]:
        """What that means."""

    @abstractmethod
    def explained(self, asked: Asked, said: Any) -> dict[str, Any]:
        """What the model said, for people."""


class Ranking(Answerer):
    """The candidate that the model finds likeliest.

    Args:
        prompting: How prompts are written.
        ranker: Scores answers.
        normalization: `none` takes log-probabilities as they are; `token`, `character` and `byte` divide them
            by the answer's length; `pmi` subtracts the answer's log-probability after a prompt that says
            nothing (Holtzman et al., 2021).
        calibration: `contextual` divides the candidates' probabilities by those after prompts that say
            nothing (Zhao et al., 2021), `batch` by their mean over texts of the training data (Zhou et al.,
            2024).
    """

    def __init__(
        self, prompting: Prompting, ranker: Ranker[Any], *, normalization: str, calibration: str
    ) -> None:
        super().__init__(prompting, ranker.tokenizer)
        self.ranker = ranker
        self.normalization = normalization
        self.calibration = calibration
        self.prior: Mapping[str, float] | None = None
        self._free: dict[Hashable, list[Any]] = {}

    def row(self, record: Record, prompt: Prompt) -> tuple[Any, int]:
        row = self.ranker.row(prompt, [candidate.text for candidate in self._candidates(record)])
        return row, self.ranker.longest(row)

    def _candidates(self, record: Record) -> Sequence[Candidate]:
        assert self.prompting.questions.candidates is not None
        return self.prompting.questions.candidates(record)

    def say(self, asked: Sequence[Asked]) -> list[Any]:
        ranked = self.ranker.scores([one.row for one in asked], [one.key for one in asked])
        return [[[answer.likelihood, answer.tokens] for answer in row] for row in ranked]

    def predictions(self, asked: Sequence[Asked], said: Sequence[Any]) -> list[Prediction]:
        self.ask_free(asked)
        pairs = zip(asked, said, strict=True)
        found = [self._calibrated(one, self.probabilities(one, values)) for one, values in pairs]
        return [self.prompting.questions.choose(probabilities) for probabilities in found]

    def probabilities(self, asked: Asked, said: Sequence[Sequence[float]]) -> dict[str, float]:
        """The softmax over what the candidates can mean, before calibration."""
        scores: dict[str, list[float]] = {}
        for candidate, score in zip(self._candidates(asked.record), self._scores(asked, said), strict=True):
            scores.setdefault(candidate.value, []).append(score)
        sums = torch.tensor([log_sum(values) for values in scores.values()], dtype=torch.float64)
        return dict(zip(scores, sums.softmax(dim=0).tolist(), strict=True))

    def _scores(self, asked: Asked, said: Sequence[Sequence[float]]) -> list[float]:
        """The score of every candidate: its log-probability, normalized."""
        candidates = self._candidates(asked.record)
        if self.normalization == "pmi":
            baseline = self._free[self._kept_by(asked)][0]
            return [value - base for (value, _), (base, _) in zip(said, baseline, strict=True)]
        lengths: dict[str, Callable[[Candidate, float], float]] = {
            "none": lambda candidate, tokens: 1,
            "token": lambda candidate, tokens: tokens,
            "character": lambda candidate, tokens: len(candidate.text),
            "byte": lambda candidate, tokens: len(candidate.text.encode()),
        }
        length = lengths[self.normalization]
        return [value / length(one, tokens) for one, (value, tokens) in zip(candidates, said, strict=True)]

    def _calibrated(self, asked: Asked, probabilities: dict[str, float]) -> dict[str, float]:
        if self.calibration == "none":
            return probabilities
        if self.calibration == "contextual":
            free = self._free[self._kept_by(asked)]
            prior = mean([self.probabilities(asked, row) for row in free])
        else:
            assert self.prior is not None
            prior = dict(self.prior)
        weighed = {value: p / max(prior[value], 1e-12) for value, p in probabilities.items()}
        total = sum(weighed.values())
        return {value: weight / total for value, weight in weighed.items()}

    # What a prompt that says nothing gives -----------------------------------------------

    def ask_free(self, asked: Sequence[Asked]) -> None:
        """Ask what the prompts of records give where they say nothing, as far as that is needed and new."""
        if self.normalization != "pmi" and self.calibration != "contextual":
            return
        if len(self._free) > _MOST_KEPT:
            self._free.clear()
        texts = CONTENT_FREE if self.calibration == "contextual" else CONTENT_FREE[:1]
        new = {key: one for one in asked if (key := self._kept_by(one)) not in self._free}
        free = [self._content_free(one, text) for one in new.values() for text in texts]
        said = self.say(free) if free else []
        for number, key in enumerate(new):
            self._free[key] = said[number * len(texts) : (number + 1) * len(texts)]

    def _kept_by(self, asked: Asked) -> Hashable:
        """Equal for records whose content-free prompts and candidates are the same."""
        candidates = () if self.prompting.questions.same else tuple(self._candidates(asked.record))
        return (tuple((*shot.fields.values(), shot.answer) for shot in asked.prompt.shots), candidates)

    def _content_free(self, asked: Asked, text: str) -> Asked:
        fields = self.prompting.content_free(asked.record, text)
        prompt = self.prompting.prompt(asked.prompt.shots, asked.record, self.ranker.tokenizer, fields)
        return Asked(asked.record, prompt, self.row(asked.record, prompt)[0], asked.key)

    def explained(self, asked: Asked, said: Any) -> dict[str, Any]:
        (prediction,) = self.predictions([asked], [said])
        scores = self._scores(asked, said)
        rows = zip(self._candidates(asked.record), said, scores, strict=True)
        return {
            "candidates": [
                {
                    "value": candidate.value,
                    "text": candidate.text,
                    "log_likelihood": likelihood,
                    "tokens": tokens,
                    "score": score,
                    "probability": prediction.scores[candidate.value],
                }
                for candidate, (likelihood, tokens), score in rows
            ]
        }


class Generating(Answerer):
    """What the model writes.

    Args:
        prompting: How prompts are written.
        writer: Writes.
        ranker: Scores right answers, where they are texts.
        max_new_tokens: The most tokens that are written.
        max_length: The most tokens that a prompt with an answer may have.
        batch: How many answers are written side by side.
        constrained: Whether only candidates can be written.
    """

    def __init__(
        self,
        prompting: Prompting,
        writer: Writer,
        ranker: Ranker[Any],
        *,
        max_new_tokens: int,
        max_length: int,
        batch: int,
        constrained: bool,
    ) -> None:
        super().__init__(prompting, writer.tokenizer)
        self.writer = writer
        self.ranker = ranker
        self.max_new_tokens = max_new_tokens
        self.max_length = max_length
        self.batch = batch
        self.constrained = constrained
        self._joint = Joint(writer.tokenizer)

    def row(self, record: Record, prompt: Prompt) -> tuple[list[int], int]:
        ids = self._prompt_ids(prompt)
        apart = self.writer.model.config.is_encoder_decoder
        return ids, max(len(ids), self.max_new_tokens) if apart else len(ids) + self.max_new_tokens

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        text, _ = prompt.read_and_written()
        ids = self.writer.tokenizer(text, add_special_tokens=prompt.special, truncation=False, verbose=False)
        return list(ids["input_ids"])

    def say(self, asked: Sequence[Asked]) -> list[Any]:
        allowed = self._allowed(asked) if self.constrained else None
        texts = self.writer.write_alone([one.row for one in asked], self.batch, allowed)
        return [[text, *loss] for text, loss in zip(texts, self._losses(asked), strict=True)]

    def _losses(self, asked: Sequence[Asked]) -> list[list[float]]:
        """Negative log-likelihood of the right text and its tokens, where the answer is a text that fits."""
        found: list[list[float]] = [[0.0, 0] for _ in asked]
        rows = {
            place: self.ranker.row(one.prompt, [one.record.target.text])
            for place, one in enumerate(asked)
            if isinstance(one.record.target, Writing)
        }
        # Prompts hold what leaves room for an answer of the model's own; the right one can be longer.
        fitting = {place: row for place, row in rows.items() if self.ranker.longest(row) <= self.max_length}
        if len(fitting) < len(rows):
            log.warning(
                "  note: %d right texts have no loss: with their prompts they are longer than %d tokens",
                len(rows) - len(fitting), self.max_length,
            )  # fmt: skip
        ranked = self.ranker.scores(list(fitting.values()), [asked[place].key for place in fitting])
        for place, (answer,) in zip(fitting, ranked, strict=True):
            found[place] = [-answer.likelihood, answer.tokens]
        return found

    def predictions(self, asked: Sequence[Asked], said: Sequence[Any]) -> list[Prediction]:
        return [self._prediction(one.record, *parts) for one, parts in zip(asked, said, strict=True)]

    def _prediction(self, record: Record, text: str, loss: float, tokens: int) -> Prediction:
        found = self.prompting.questions.read(text, record)
        if not isinstance(found.value, Writing):
            return found
        octets = len(record.target.text.encode()) if isinstance(record.target, Writing) and tokens else 0
        return replace(found, value=replace(found.value, loss=loss, tokens=int(tokens), octets=octets))

    def _allowed(self, asked: Sequence[Asked]) -> Callable[[int, Sequence[int]], list[int]]:
        """After which tokens of an answer which may follow, for each prompt."""
        ends = self.writer.config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        tries = [self._trie(one, ends) for one in asked]

        def allowed(number: int, written: Sequence[int]) -> list[int]:
            return tries[number].get(tuple(written), ends)

        return allowed

    def _trie(self, asked: Asked, ends: list[int]) -> dict[tuple[int, ...], list[int]]:
        questions = self.prompting.questions
        assert questions.candidates is not None
        before, space = asked.prompt.read_and_written()
        texts = [space + candidate.text for candidate in questions.candidates(asked.record)]
        if self.writer.model.config.is_encoder_decoder:
            answers = [self.writer.tokenizer(text_target=text.strip())["input_ids"] for text in texts]
        else:
            start, whole = self._joint(before, texts, special=asked.prompt.special)
            # White space at the end of a prompt has been read, if it is a token of its own.
            read = asked.row
            answers = [ids[len(read) :] if ids[: len(read)] == read else ids[start:] for ids in whole]
        follow: dict[tuple[int, ...], list[int]] = {}
        for answer in answers:
            plain = [token for token in answer if token not in ends]
            for place in range(len(plain) + 1):
                after = follow.setdefault(tuple(plain[:place]), [])
                after += [token for token in [*plain[place : place + 1]] or ends if token not in after]
        return follow

    def explained(self, asked: Asked, said: Any) -> dict[str, Any]:
        return {"written": said[0]}


def longest_answer(prompting: Prompting, tokenizer: Any, asked: int) -> int:
    """How many tokens are worth writing: a label ends, so what is longer than all labels is none."""
    questions = prompting.questions
    if questions.candidates is None or not questions.same:
        return asked
    lengths = [len(tokenizer(candidate.text)["input_ids"]) for candidate in questions.candidates(Record("?"))]
    return min(asked, max(lengths) + _SPARE)


def mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each value's probabilities."""
    return {value: sum(row[value] for row in rows) / len(rows) for value in rows[0]}
