"""Retrieval: the training texts that are most like a query."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy

if TYPE_CHECKING:
    from ftkit.training.setup import Loaded

log = logging.getLogger("ftkit")

_BATCH_TOKENS = 4096
_QUERIES = 256
_WORD = r"(?u)\b\w+\b"


class Retriever(Protocol):
    """Knows a pool of texts."""

    name: str
    """What alikeness is measured by."""

    def nearest(self, queries: Sequence[str], number: int) -> list[list[tuple[int, float]]]:
        """Places in the pool of the texts most like each query with their scores, the best first."""


class Bm25:
    """Words in common, rare ones counting more (Robertson et al., 1994), as bm25s computes it.

    A text without a word is like no other: all scores are 0, and the first texts of the pool are nearest.

    Args:
        pool: The texts to choose from.
    """

    name = "BM25"

    def __init__(self, pool: Sequence[str]) -> None:
        import bm25s

        words = _words(pool)
        self._size = len(words)
        self._said = False
        self._index = bm25s.BM25() if any(words) else None
        if self._index is not None:
            self._index.index(words, show_progress=False)

    def nearest(self, queries: Sequence[str], number: int) -> list[list[tuple[int, float]]]:
        asked = _words(queries)
        for query, words in zip(queries, asked, strict=True):
            if not words and not self._said:
                self._said = True
                log.warning("  note: %.40r holds no word, so its shots are the first rows", query)
        return [_best(self._scores(words), number) for words in asked]

    def _scores(self, words: list[str]) -> Any:
        """How alike each text of the pool is, shape (pool,)."""
        if self._index is None or not words:
            return numpy.zeros(self._size)
        return self._index.get_scores(words)


class Embeddings:
    """Cosine of mean-pooled embeddings (Reimers and Gurevych, 2019), compared exactly.

    Args:
        pool: The texts to choose from.
        loaded: An encoder.
    """

    def __init__(self, pool: Sequence[str], loaded: Loaded) -> None:
        from ftkit.training.processes import processes

        self.name = f"embeddings of {loaded.source}"
        self.loaded = loaded
        self.device = processes().device
        self.loaded.model.to(self.device).eval()
        self._pool = self._embed(pool)

    def nearest(self, queries: Sequence[str], number: int) -> list[list[tuple[int, float]]]:
        found: list[list[tuple[int, float]]] = []
        for start in range(0, len(queries), _QUERIES):
            scores = self._embed(queries[start : start + _QUERIES]) @ self._pool.T
            found += [_best(row, number) for row in scores]
        return found

    def _embed(self, texts: Sequence[str]) -> Any:
        """Vectors of length 1, shape (texts, hidden size)."""
        import torch

        rows: Any = self.loaded.tokenizer(
            list(texts), truncation=True, max_length=self.loaded.max_length, padding=False
        )
        order = sorted(range(len(texts)), key=lambda place: len(rows["input_ids"][place]))
        vectors: Any = [None] * len(texts)
        while order:
            size = max(1, _BATCH_TOKENS // len(rows["input_ids"][order[-1]]))
            batch, order = order[-size:], order[:-size]
            inputs = self.loaded.tokenizer.pad(
                {name: [values[place] for place in batch] for name, values in rows.items()},
                return_tensors="pt",
            ).to(self.device)
            with torch.inference_mode():
                hidden = self.loaded.model(**inputs)["last_hidden_state"].float()
            mask = inputs["attention_mask"][..., None].float()
            pooled = torch.nn.functional.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1)
            for place, vector in zip(batch, pooled.cpu().numpy(), strict=True):
                vectors[place] = vector
        return numpy.stack(vectors)


def _words(texts: Sequence[str]) -> list[list[str]]:
    import bm25s

    options: dict[str, Any] = {"token_pattern": _WORD, "stopwords": [], "return_ids": False}
    words: Any = bm25s.tokenize(list(texts), show_progress=False, **options)
    return list(words)


def _best(scores: Any, number: int) -> list[tuple[int, float]]:
    """The highest scores with their places; of equals the first."""
    order = numpy.argsort(-numpy.asarray(scores), kind="stable")[:number]
    return [(int(place), float(scores[place])) for place in order]
