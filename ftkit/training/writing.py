"""Writing: a model reads a prompt and learns to write the answer."""

from __future__ import annotations

import logging
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Literal

from ftkit.errors import InputError, UsageError
from ftkit.records import Prediction, Record, Turn, Writing
from ftkit.training.features import FeatureTable
from ftkit.training.heads import IGNORED, Encoded
from ftkit.training.language_head import LanguageHead

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("ftkit")

Truncation = Literal["left", "right", "drop", "error"]
_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text for a model: what it reads, and the parts that it learns to write.

    Attributes:
        text: Everything, the answers included where they are known.
        answers: First and last character (exclusive) of each part to learn, the answer last; empty where
            the answer is not known, and `text` is the prompt.
        cut: First and last character (exclusive) of what may be shortened where the whole is too long.
        special: Whether the tokenizer adds its special tokens; a chat template writes them itself.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    cut: tuple[int, int]
    special: bool = True

    def prompt(self) -> Rendered:
        """The part up to the answer."""
        if not self.answers:
            return self
        end = self.answers[-1][0]
        return Rendered(self.text[:end], (), (min(self.cut[0], end), min(self.cut[1], end)), self.special)


Tokens = tuple[list[int], list[tuple[int, int]]]
"""Token ids, and the first and last character (exclusive) that each stands for."""

Render = Callable[[Record, "PreTrainedTokenizerBase"], Rendered]


@dataclass
class WritingHead(LanguageHead):
    """Answers to prompts: the loss is on the answers, predictions are written token by token.

    Args:
        kind: The family of the model.
        label_smoothing: As for any language model head.
        render: Makes the text of a record.
        read: Makes a prediction of what the model wrote for a record, and of the loss of the right text.
        truncation: What happens to a row that is too long: the left or the right end of its shortest
            dispensable part is cut, it is left out, or it is an error. An answer is never cut.
        chat_template: Used, and saved with the model, where the tokenizer has none; `None` needs none.
        replace_template: Whether it also replaces the tokenizer's own.
    """

    render: Render = field(kw_only=True)
    read: Callable[[str, Record, Prediction], Prediction] = field(kw_only=True)
    truncation: Truncation = field(default="left", kw_only=True)
    chat_template: str | None = field(default=None, kw_only=True)
    replace_template: bool = field(default=False, kw_only=True)
    _told = False  # No field: what is kept of a data set does not depend on it.

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        if not tokenizer.is_fast:
            raise UsageError(
                "this task needs a fast tokenizer, which tells where in the text each token stands",
                hint="take a checkpoint with a tokenizer.json",
            )
        if self.chat_template and (self.replace_template or not tokenizer.chat_template):
            tokenizer.chat_template = self.chat_template

    def encode(
        self, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Encoded:
        """A row for each record with an answer; one that does not fit has none, and is counted."""
        features = FeatureTable()
        owners = array("q")
        shortened = left_out = unknown = only_read = 0
        first = first_unknown = ""
        for number, record, row in self._rows(records, tokenizer, max_length):
            if row is None:
                left_out += 1
                first = first or record.where
                continue
            shortened += row.pop("shortened")
            only_read += row.pop("only_read")
            if row.pop("unknown"):
                unknown += 1
                first_unknown = first_unknown or record.where
            features.append(row)
            owners.append(number)
        notes = []
        if left_out:
            notes.append(
                f"{left_out} rows do not fit within {max_length} tokens with their whole answer, "
                f"and are left out (first: {first})"
            )
        if unknown:
            notes.append(
                f"{unknown} rows have answers with characters that the tokenizer cannot write: the model "
                f"learns its unknown token in their place (first: {first_unknown})"
            )
        if only_read:
            notes.append(
                f"{only_read} rows have earlier answers of the assistant that are read, but not learned: the "
                "chat template writes them otherwise once more is said"
            )
        return Encoded(features, owners, shortened, tuple(notes))

    def prompts(
        self, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> list[list[int] | None]:
        """Token ids of what the model reads before it writes; `None` where that is too long, whatever may be
        left out of it.

        Raises:
            InputError: A prompt is too long, and that is to be an error.
        """
        found: list[list[int] | None] = []
        for start in range(0, len(records), _CHUNK):
            chunk = records[start : start + _CHUNK]
            rendered = [self.render(record, tokenizer).prompt() for record in chunk]
            read = self._read(rendered, tokenizer)
            for record, prompt, (ids, offsets) in zip(chunk, rendered, read, strict=True):
                if len(ids) > max_length and (shorter := self._without_oldest(record)):
                    self._tell(record, max_length)
                    prompt, (ids, offsets) = self._fitting(shorter, tokenizer, max_length, answered=False)[1:]
                excess = len(ids) - max_length
                kept = self._kept(offsets, prompt.cut, excess)
                if excess > 0 and self.truncation == "error":
                    raise _too_long(record, len(ids), max_length)
                if excess > 0 and kept is not None:
                    self._tell(record, max_length)
                found.append(None if kept is None else [ids[place] for place in kept])
        return found

    def _tell(self, record: Record, max_length: int) -> None:
        """Say once that a part of something is not read."""
        if not self._told:
            first = f" (first: {record.where})" if record.where else ""
            log.warning("  note: of what is longer than %d tokens a part is not read%s", max_length, first)
        self._told = True

    def closing(self, tokenizer: PreTrainedTokenizerBase) -> set[int]:
        """Tokens after which nothing more is written: the tokenizer's end, and what closes an answer."""
        return closing_tokens(self._probe(tokenizer), tokenizer)

    def _probe(self, tokenizer: PreTrainedTokenizerBase) -> Rendered:
        """The shortest conversation; some templates want a system prompt."""
        probe = Record("?", text_pair="?", target=Writing("!"), turns=(Turn("user", "?"),))
        try:
            return self.render(probe, tokenizer)
        except InputError:
            return self.render(replace(probe, turns=(Turn("system", "?"), *probe.turns)), tokenizer)

    def predictions(
        self, records: Sequence[Record], encoded: Encoded, decoded: Sequence[Any]
    ) -> list[Prediction]:
        found: list[Prediction] = [Prediction(Writing("")) for _ in records]
        for owner, row, (loss, tokens) in zip(encoded.owners, encoded.features, decoded, strict=True):
            size = row["octets"]
            found[owner] = Prediction(Writing("", loss=loss, tokens=tokens, octets=size))
        return found

    def _rows(
        self, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Iterator[tuple[int, Record, Any]]:
        """Each record with an answer, its number, and its features; `None` where it is left out."""
        separate = self.kind == "encoder_decoder"
        answered = (one for one in enumerate(records) if one[1].target is not None)
        while chunk := list(islice(answered, _CHUNK)):
            rendered = [self.render(record, tokenizer) for _, record in chunk]
            read = self._read([one.prompt() for one in rendered] if separate else rendered, tokenizer)
            written = _written(rendered, tokenizer) if separate else [None] * len(chunk)
            for (number, record), one, tokens, answer in zip(chunk, rendered, read, written, strict=True):
                used, whole = record, None if separate else one
                # Few rows are that long, and only theirs are looked at once more.
                long = len(tokens[0]) >= max_length and self._length(tokens, whole, tokenizer) > max_length
                if long and (shorter := self._without_oldest(record)):
                    used, left, tokens = self._fitting(shorter, tokenizer, max_length, answered=not separate)
                    one = self.render(used, tokenizer) if separate else left
                row = self._row(one, tokens, answer, used, tokenizer, max_length)
                yield number, record, row and {**row, "shortened": row["shortened"] or used is not record}

    def _without_oldest(self, record: Record) -> list[Record]:
        """A conversation without its oldest exchanges, one more each time, where what is too long loses its
        beginning: cut within them, the one would say what the other has said.
        """
        if self.truncation != "left":
            return []
        opening = [turn for turn in record.turns if turn.role == "system"]
        said = [turn for turn in record.turns if turn.role != "system"]
        ends = [n for n, turn in enumerate(said[:-1], 1) if turn.role == "assistant"]
        return [replace(record, turns=(*opening, *said[end:])) for end in ends]

    def _fitting(
        self,
        shorter: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        answered: bool,
    ) -> tuple[Record, Rendered, Tokens]:
        """The longest of ever shorter conversations that fits, or the shortest; with its text and tokens.

        Args:
            shorter: The conversations.
            tokenizer: The model's.
            max_length: The most tokens.
            answered: Whether they are read with their answers.
        """

        def read(number: int) -> tuple[Rendered, Tokens]:
            rendered = self.render(shorter[number], tokenizer)
            rendered = rendered if answered else rendered.prompt()
            return rendered, self._read([rendered], tokenizer)[0]

        def fits(number: int) -> bool:
            rendered, tokens = read(number)
            return self._length(tokens, rendered if answered else None, tokenizer) <= max_length

        number = min(bisect_left(range(len(shorter)), True, key=fits), len(shorter) - 1)
        return shorter[number], *read(number)

    def _length(self, tokens: Tokens, rendered: Rendered | None, tokenizer: PreTrainedTokenizerBase) -> int:
        """How many tokens there are, with the end that is put after the answers in a text."""
        ids, offsets = tokens
        if rendered is None:
            return len(ids)
        return len(_closed(ids, offsets, _learned(ids, offsets, rendered.answers), tokenizer)[0])

    def _row(
        self,
        rendered: Rendered,
        tokens: Tokens,
        answer: list[int] | None,
        record: Record,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> Any:
        """The features of a row; `None` where it is left out.

        Raises:
            InputError: It is too long and that is an error, or its answer has no token.
        """
        ids, offsets = tokens
        separate = answer is not None
        if answer is not None:
            labels = answer
            excess = len(ids) - max_length
            fits = len(labels) <= max_length
        else:
            ids, offsets, labels = _closed(ids, offsets, _learned(ids, offsets, rendered.answers), tokenizer)
            excess = len(ids) - max_length
            fits = True
        if sum(label != IGNORED for label in labels) < 2:
            raise InputError("the answer has no token of its own", where=record.where)
        kept = self._kept(offsets, rendered.cut, excess) if fits else None
        if kept is None or (excess > 0 and self.truncation in ("drop", "error")):
            if self.truncation == "error":
                raise _too_long(record, len(ids) if fits else len(labels), max_length)
            return None
        answers = rendered.answers[-1:] if separate else rendered.answers
        if not separate and excess > 0:
            labels, answers = _whole(labels, offsets, answers, kept)
        return {
            "input_ids": [ids[place] for place in kept],
            "attention_mask": [1] * len(kept),
            "labels": labels if separate else [labels[place] for place in kept],
            "octets": _octets(record, rendered.answers, answers),
            "shortened": excess > 0,
            "unknown": _unknown(tokenizer) in labels,
            "only_read": not separate and len(rendered.answers) <= _said_before(record),
        }

    def _read(self, rendered: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
        """The tokens of texts; an encoder-decoder reads an end token after each, whoever wrote it."""
        found = _tokens(rendered, tokenizer)
        end = tokenizer.eos_token_id
        if self.kind == "encoder_decoder" and end is not None:
            return [
                (ids, offsets) if ids[-1:] == [end] else ([*ids, end], [*offsets, (0, 0)])
                for ids, offsets in found
            ]
        return found

    def _kept(
        self, offsets: Sequence[tuple[int, int]], cut: tuple[int, int], excess: int
    ) -> Sequence[int] | None:
        """Places of the tokens that stay; `None` where leaving out all that may be is not enough."""
        places = range(len(offsets))
        if excess <= 0:
            return places
        spare = [n for n in places if cut[0] <= offsets[n][0] < offsets[n][1] <= cut[1]]
        if len(spare) < excess:
            return None
        gone = set(spare[-excess:] if self.truncation == "right" else spare[:excess])
        return [place for place in places if place not in gone]


def closing_tokens(rendered: Rendered, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokenizer's end, and the token that closes the answer in a text."""
    ends = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
    ((ids, offsets),) = _tokens([rendered], tokenizer)
    _, _, labels = _closed(ids, offsets, _learned(ids, offsets, rendered.answers), tokenizer)
    last = [label for label in labels if label != IGNORED][-1:]
    return ends | set(last) & _ends(tokenizer)


def _tokens(rendered: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    """Tokens of each text; many in one call, which a fast tokenizer spreads over all cores."""
    found: list[Tokens] = []
    for special, group in groupby(rendered, key=lambda one: one.special):
        encoding: Any = tokenizer(
            [one.text for one in group],
            add_special_tokens=special,
            truncation=False,
            padding=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        special_ids = set(tokenizer.all_special_ids)
        found += [
            (ids, _with_spaces(ids, offsets, special_ids))
            for ids, offsets in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
        ]
    return found


def _with_spaces(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], special: set[int]
) -> list[tuple[int, int]]:
    """The same offsets, those of white space alone included: some tokenizers trim them to nothing."""
    found: list[tuple[int, int]] = []
    before = 0
    for token, (start, end) in zip(ids, offsets, strict=True):
        found.append((before, end) if start == end > before and token not in special else (start, end))
        before = max(before, end)
    return found


def _written(rendered: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each last answer by itself, an end token after it."""
    mark, end = str(tokenizer.eos_token or ""), tokenizer.eos_token_id
    spans = [one.text[slice(*one.answers[-1])] for one in rendered]
    answers = [text.strip().removesuffix(mark).strip() for text in spans]
    found = tokenizer(text_target=answers)["input_ids"] if answers else []
    return [ids if end is None or ids[-1:] == [end] else [*ids, end] for ids in found]


def _learned(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], answers: Sequence[tuple[int, int]]
) -> list[int]:
    """The label of each token: itself inside an answer; a model says nothing of a text's first token."""
    labels = [IGNORED] * len(ids)
    for place in range(1, len(ids)):
        start, end = offsets[place]
        if any(first <= start < end <= last for first, last in answers):
            labels[place] = ids[place]
    return labels


def _closed(
    ids: list[int],
    offsets: list[tuple[int, int]],
    labels: list[int],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[int], list[tuple[int, int]], list[int]]:
    """The same with an end token after the answer, where the text does not have one of its own."""
    last = max((place for place, label in enumerate(labels) if label != IGNORED), default=-1)
    end = tokenizer.eos_token_id
    if last < 0 or end is None or ids[last] in _ends(tokenizer):
        return ids, offsets, labels
    return [*ids[: last + 1], end], [*offsets[: last + 1], (0, 0)], [*labels[: last + 1], end]


def _whole(
    labels: list[int],
    offsets: Sequence[tuple[int, int]],
    answers: Sequence[tuple[int, int]],
    kept: Sequence[int],
) -> tuple[list[int], tuple[tuple[int, int], ...]]:
    """The labels without those of earlier answers that lost a token, and the answers that lost none.

    What is left of such an answer no longer follows what it answers.
    """
    gone = [offsets[place][0] for place in {*range(len(offsets))} - {*kept}]
    whole = tuple(
        (first, last) for first, last in answers if not any(first <= start < last for start in gone)
    )
    lost = set(answers) - set(whole)
    learned = [
        IGNORED if any(first <= start < end <= last for first, last in lost) else label
        for label, (start, end) in zip(labels, offsets, strict=True)
    ]
    return learned, whole


def _unknown(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token for what is unknown, where it stands for nothing else; else a number that is no token."""
    ends = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    unknown = tokenizer.unk_token_id
    return -1 if unknown is None or unknown in ends else int(unknown)


def _said_before(record: Record) -> int:
    """How often the assistant has spoken before the answer."""
    return sum(turn.role == "assistant" for turn in record.turns)


def _octets(record: Record, answers: Sequence[tuple[int, int]], learned: Sequence[tuple[int, int]]) -> int:
    """Bytes of the answers that are learned; 0 where the answer is no text."""
    if not isinstance(record.target, Writing):
        return 0
    said = [turn.content for turn in record.turns if turn.role == "assistant"]
    texts = [*said, record.target.text][-len(answers) :]
    return sum(len(text.encode()) for text, place in zip(texts, answers, strict=True) if place in learned)


def _ends(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that can end an answer: special ones, but not that for what is unknown alone (GPT-2's is its
    end token as well).
    """
    return set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - {tokenizer.eos_token_id})


def _too_long(record: Record, tokens: int, max_length: int) -> InputError:
    return InputError(
        f"the row has {tokens} tokens, more than the {max_length} there is room for",
        where=record.where,
        hint="shorten it, raise model.max_length, or set task.truncation",
    )
