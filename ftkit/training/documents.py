"""Documents: models go on learning the language of texts that have no answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import numpy

from ftkit.errors import UsageError
from ftkit.records import Prediction, Record, Writing
from ftkit.training.heads import Encoded, Features
from ftkit.training.language_head import IGNORED, Kind, LanguageHead
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
        encoded = self._windows(records, tokenizer, max_length, self.stride)
        rows = [self.vary(row, (number,)) for number, row in enumerate(encoded.features)]
        return replace(encoded, features=rows)

    def training_rows(
        self, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Encoded:
        return self._windows(records, tokenizer, max_length, None)

    def _windows(
        self,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        stride: int | None,
    ) -> Encoded:
        documents = self._documents(records, tokenizer)
        size = self._size(max_length)
        step = (stride if self.kind == "decoder" else None) or size - (self.kind == "decoder")
        if not self.join:
            found = [(n, row) for n, ids in enumerate(documents) for _, row in self._rows(ids, size, step)]
            return Encoded([row for _, row in found], [owner for owner, _ in found])
        # A window belongs to the document that its first token is of.
        starts = numpy.cumsum([0, *map(len, documents)])[:-1]
        rows = list(self._rows(list(chain.from_iterable(documents)), size, step))
        owners = numpy.searchsorted(starts, [start for start, _ in rows], side="right") - 1
        return Encoded([row for _, row in rows], owners.tolist())

    def _documents(self, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Token ids of each document, with what stands at its beginning and its end."""
        documents = []
        for start in range(0, len(records), _CHUNK):
            texts = [record.text for record in records[start : start + _CHUNK]]
            encoded: Any = tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)
            documents += [[*self.special.begin, *ids, *self.special.end] for ids in encoded["input_ids"]]
        return documents

    def _size(self, max_length: int) -> int:
        """Tokens of text in a window; corrupted spans shrink to a sentinel each, so more are read."""
        room = max_length - len(self.special.before) - len(self.special.after)
        if self.kind != "encoder_decoder":
            return room
        return int(room / (1 - self.noise + self.noise / self.mean_span))

    def _rows(self, ids: list[int], size: int, step: int) -> Iterator[tuple[int, Features]]:
        """Windows with the place where each begins; nothing is hidden in them yet."""
        fewest = 1 if self.kind == "encoder" else 2
        for start in range(0, len(ids), step):
            window = ids[start : start + size]
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
        """Masked tokens and their labels; at least one token, whatever the share."""
        count = max(round(self.noise * len(body)), 1)
        chosen = generator.permutation(len(body))[:count]
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

        Joined documents share windows, and one in which none begins has its tokens foretold all the same: the
        bytes of all are counted, and only their sums tell something.
        """
        sums = [[0.0, 0] for _ in records]
        for owner, (loss, tokens) in zip(encoded.owners, decoded, strict=True):
            sums[owner] = [sums[owner][0] + loss, int(sums[owner][1]) + tokens]
        whole = self.kind == "decoder"
        joined = self.join and bool(encoded.owners)
        return [
            Prediction(
                Writing(
                    "",
                    loss=loss,
                    tokens=int(tokens),
                    octets=len(record.text.encode()) if whole and (joined or tokens) else 0,
                )
            )
            for record, (loss, tokens) in zip(records, sums, strict=True)
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


def _sentinels(tokenizer: PreTrainedTokenizerBase) -> Iterator[int]:
    """T5's sentinels: `<extra_id_0>`, `<extra_id_1>`, as many as there are."""
    known = tokenizer.get_vocab()
    for number in count():
        found = known.get(f"<extra_id_{number}>")
        if found is None:
            return
        yield found


def _parts(whole: int, parts: int, generator: numpy.random.Generator) -> list[int]:
    """A number as a sum of so many positive ones, all such sums alike probable."""
    cuts = numpy.sort(generator.permutation(whole - 1)[: parts - 1] + 1)
    return numpy.diff([0, *cuts, whole]).tolist()
