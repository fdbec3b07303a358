"""Documents: models go on learning the language of texts that have no answers."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy

from ftkit.errors import UsageError
from ftkit.records import Prediction, Record, Writing
from ftkit.training.features import FeatureTable
from ftkit.training.heads import IGNORED, Encoded, Features
from ftkit.training.language_head import Kind, LanguageHead
from ftkit.training.token_head import special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 1000
# What becomes of a masked token: the mask, another token, or itself (Devlin et al., 2019, section 3.1).
_TO_MASK, _TO_RANDOM = 0.8, 0.1


@dataclass
class DocumentHead(LanguageHead):
    """Language modelling: causal for decoders, masked for encoders, span corruption for encoder-decoders.

    Documents are joined end to end, an end token after each, and cut into blocks as long as the model
    reads; or each is read by itself, in as many windows as it needs. Causal windows share a token, so
    that each token but the first is foretold exactly once.

    Args:
        kind: The family of the model.
        label_smoothing: As for any language model head.
        join: Whether documents are joined.
        stride: In evaluation, how many tokens a window goes on; the rest of it is only read (decoders).
        noise: Share of the tokens that are masked or corrupted (not for decoders).
        mean_span: Mean length of a corrupted span in tokens (encoder-decoders; Raffel et al., 2020,
            section 3.3.4).
    """

    join: bool = field(default=True, kw_only=True)
    stride: int | None = field(default=None, kw_only=True)
    noise: float = field(default=0.15, kw_only=True)
    mean_span: float = field(default=3.0, kw_only=True)

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.special = Special.of(tokenizer, self.kind)
        if self.kind == "encoder" and tokenizer.mask_token_id is None:
            raise UsageError("the tokenizer has no mask token, so nothing can be masked")
        if self.kind == "encoder_decoder" and not self.special.sentinels:
            raise UsageError(
                "the tokenizer has no sentinel tokens (<extra_id_0> and so on) for corrupted spans",
                hint="take a T5 checkpoint",
            )
        if self.stride is not None and self.stride >= max_length:
            raise UsageError(f"task.stride is {self.stride}, windows have {max_length} tokens")

    @property
    def joins_records(self) -> bool:
        return self.join

    # From documents to rows -------------------------------------------------------------

    def encode(
        self, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Encoded:
        """Windows to evaluate on: what is hidden in them is always the same."""
        windows = self._windows(records, tokenizer, max_length, self.stride)
        return _encoded((owner, self.vary(row, (number,))) for number, (owner, row) in enumerate(windows))

    def training_rows(
        self, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Encoded:
        return _encoded(self._windows(records, tokenizer, max_length, None))

    def _windows(
        self,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        stride: int | None,
    ) -> Iterator[tuple[int, Features]]:
        """Windows in which nothing is hidden yet, each with the number of the document it begins in."""
        size = self._size(max_length)
        step = (stride if self.kind == "decoder" else None) or size - (self.kind == "decoder")
        documents = self._documents(records, tokenizer)
        if not self.join:
            for number, ids in enumerate(documents):
                yield from ((number, row) for _, row in self._rows([ids], size, step))
            return
        begins = array("q")
        for place, row in self._rows(_noted(documents, begins), size, step):
            # The documents up to this place have been read, whatever else has.
            yield bisect_right(begins, place) - 1, row

    def _documents(
        self, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[list[int]]:
        """Token ids of each document, with what stands at its beginning and its end."""
        begin = self.special.begin
        # A window has an end of its own.
        end = self.special.end if self.join or not self.special.after else ()
        if not self.join and self.kind == "decoder":
            # As between documents that are joined: else nothing would foretell the first token.
            begin = begin or self.special.end
        for start in range(0, len(records), _CHUNK):
            texts = [record.text for record in records[start : start + _CHUNK]]
            encoded: Any = tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)
            for ids in encoded["input_ids"]:
                yield [*begin, *ids, *end]

    def _size(self, max_length: int) -> int:
        """Tokens of text in a window; corrupted spans shrink to a sentinel each, so more are read."""
        room = max_length - len(self.special.before) - len(self.special.after)
        if self.kind != "encoder_decoder":
            return room
        return int(room / (1 - self.noise + self.noise / self.mean_span))

    def _rows(self, documents: Iterable[list[int]], size: int, step: int) -> Iterator[tuple[int, Features]]:
        """Windows with the place where each begins; nothing is hidden in them yet."""
        fewest = 1 if self.kind == "encoder" else 2
        for start, window in _joined(documents, size, step):
            row = [*self.special.before, *window, *self.special.after]
            labels = [IGNORED] * len(row)
            if self.kind == "decoder":
                # What the window before has foretold is only read; nothing foretells the first token.
                seen = size - step if start else 1
                labels[seen:] = window[seen:]
            if len(window) >= fewest and (start == 0 or len(window) > size - step):
                yield start, {"input_ids": row, "attention_mask": [1] * len(row), "labels": labels}

    # What is hidden ---------------------------------------------------------------------

    def vary(self, row: Features, seed: Sequence[int]) -> Features:
        """The row with other tokens hidden for each seed; of a decoder's, nothing is."""
        if self.kind == "decoder":
            return row
        generator = numpy.random.default_rng(list(seed))
        before, after = len(self.special.before), len(self.special.after)
        ids = numpy.array(row["input_ids"])
        body = ids[before : len(ids) - after]
        if self.kind == "encoder":
            read, labels = self._masked(body, generator)
            labels = [IGNORED] * before + labels + [IGNORED] * after
        else:
            read, labels = self._corrupted(body.tolist(), generator)
        inputs = [*row["input_ids"][:before], *read, *row["input_ids"][len(ids) - after :]]
        return {**row, "input_ids": inputs, "attention_mask": [1] * len(inputs), "labels": labels}

    def _masked(self, body: Any, generator: numpy.random.Generator) -> tuple[list[int], list[int]]:
        """Masked tokens and their labels; at least one token, whatever the share. What stands between
        documents is no word to guess.
        """
        words = numpy.flatnonzero(~numpy.isin(body, self.special.end))
        count = max(round(self.noise * len(words)), 1)
        chosen = generator.permutation(words if len(words) else len(body))[:count]
        count = len(chosen)
        kinds = generator.random(count)
        read, labels = body.copy(), numpy.full(len(body), IGNORED)
        labels[chosen] = body[chosen]
        read[chosen[kinds < _TO_MASK]] = self.special.mask
        other = chosen[(kinds >= _TO_MASK) & (kinds < _TO_MASK + _TO_RANDOM)]
        read[other] = generator.integers(0, self.special.vocabulary, len(other))
        return read.tolist(), labels.tolist()

    def _corrupted(self, body: list[int], generator: numpy.random.Generator) -> tuple[list[int], list[int]]:
        """What is left with a sentinel for each span, and the spans after their sentinels.

        As in the T5 paper: the share of corrupted tokens and the number of spans are fixed by the length,
        where they stand is random, and text and spans alternate, text first.
        """
        noisy = min(max(round(len(body) * self.noise), 1), max(len(body) - 1, 1))
        spans = min(max(round(noisy / self.mean_span), 1), noisy, len(self.special.sentinels))
        kept = len(body) - noisy
        spans = max(min(spans, kept), 1)
        lengths = zip(_parts(kept, spans, generator), _parts(noisy, spans, generator), strict=True)
        read: list[int] = []
        written: list[int] = []
        place = 0
        for sentinel, (text, span) in zip(self.special.sentinels, lengths, strict=False):
            read += [*body[place : place + text], sentinel]
            written += [sentinel, *body[place + text : place + text + span]]
            place += text + span
        return read, [*written, *self.special.close]

    # Predictions ------------------------------------------------------------------------

    def predictions(
        self, records: Sequence[Record], encoded: Encoded, decoded: Sequence[Any]
    ) -> list[Prediction]:
        """The loss of each document: the sum over the windows that begin in it.

        Joined documents share windows, and one in which none begins has its tokens foretold all the same: its
        bytes go to the last one before it in which a window begins, as its losses do.
        """
        losses, counts = array("d", [0.0]) * len(records), array("q", [0]) * len(records)
        for owner, (loss, tokens) in zip(encoded.owners, decoded, strict=True):
            losses[owner] += loss
            counts[owner] += tokens
        octets = array("q", [0]) * len(records)
        owner = 0
        for number, record in enumerate(records):
            owner = number if counts[number] or not self.join else owner
            octets[owner] += len(record.text.encode())
        whole = self.kind == "decoder"
        return [
            Prediction(Writing("", loss=loss, tokens=tokens, octets=size if whole and tokens else 0))
            for loss, tokens, size in zip(losses, counts, octets, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Special:
    """The special tokens around and in documents.

    Attributes:
        begin: Before each document.
        end: After each document.
        before: Before each window.
        after: After each window.
        mask: Stands for a masked token.
        vocabulary: Number of tokens.
        sentinels: Stand for corrupted spans, in order.
        close: After the spans that are written.
    """

    begin: tuple[int, ...]
    end: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    mask: int
    vocabulary: int
    sentinels: tuple[int, ...]
    close: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, kind: Kind) -> Special:
        """Those of a tokenizer."""
        end = tokenizer.sep_token_id if kind == "encoder" else tokenizer.eos_token_id
        before, after = special_tokens(tokenizer)
        decoder = kind == "decoder"
        return cls(
            begin=tuple(before) if decoder else (),
            end=() if end is None else (end,),
            before=() if decoder else tuple(before),
            after=() if decoder else tuple(after),
            mask=tokenizer.mask_token_id or 0,
            vocabulary=len(tokenizer),
            sentinels=tuple(_sentinels(tokenizer)) if kind == "encoder_decoder" else (),
            close=() if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,),
        )


def _encoded(windows: Iterable[tuple[int, Features]]) -> Encoded:
    features, owners = FeatureTable(), array("q")
    for owner, row in windows:
        features.append(row)
        owners.append(owner)
    return Encoded(features, owners)


def _noted(documents: Iterable[list[int]], begins: array[int]) -> Iterator[list[int]]:
    """The documents; the place where each begins, when they are joined, goes to `begins`."""
    place = 0
    for ids in documents:
        begins.append(place)
        place += len(ids)
        yield ids


def _joined(documents: Iterable[list[int]], size: int, step: int) -> Iterator[tuple[int, list[int]]]:
    """Windows over documents end to end, each with the place where it begins.

    No more is held than a document and a window, however many documents there are.

    >>> list(_joined([[1, 2], [3, 4, 5]], size=3, step=2))
    [(0, [1, 2, 3]), (2, [3, 4, 5]), (4, [5])]
    """
    held: list[int] = []
    begin = 0
    for ids in documents:
        held += ids
        whole = range(0, len(held) - size + 1, step)
        yield from ((begin + start, held[start : start + size]) for start in whole)
        begin += len(whole) * step
        del held[: len(whole) * step]
    yield from ((begin + start, held[start : start + size]) for start in range(0, len(held), step))


def _sentinels(tokenizer: PreTrainedTokenizerBase) -> Iterator[int]:
    """T5's sentinels: `<extra_id_0>`, `<extra_id_1>`, as many as there are (mT5: `▁<extra_id_0>`)."""
    known = tokenizer.get_vocab()
    for number in count():
        # mT5's vocabulary has them as words.
        found = known.get(f"<extra_id_{number}>", known.get(f"▁<extra_id_{number}>"))
        if found is None:
            return
        yield found


def _parts(whole: int, parts: int, generator: numpy.random.Generator) -> list[int]:
    """A number as a sum of so many positive ones, all such sums alike probable."""
    cuts = numpy.sort(generator.permutation(whole - 1)[: parts - 1] + 1)
    return numpy.diff([0, *cuts, whole]).tolist()
