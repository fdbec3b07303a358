"""Ranking with a decoder: what prompts begin with is computed once, their answers side by side.

The answers to a prompt form a tree that hangs on the prompt's end. The tree is one sequence for the
model, in which a token sees the prompt and the tokens on its own branch, at the position that it would
have alone (tree attention; Miao et al., 2024). So a prompt is computed once for all its answers, and what
several prompts begin with once for all of them.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ftkit.errors import InputError
from ftkit.prompts.prompting import Prompt
from ftkit.prompts.ranking import MOST_LOGITS, Joint, Ranked, Ranker, in_batches
from ftkit.training.generation import common
from ftkit.training.positions import WINDOWS
from ftkit.training.vocabulary import logits_at

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("ftkit")

_TOLERANCE = {"fp32": 1e-3, "bf16": 0.5, "fp16": 0.1}
_FEWEST_SHARED = 8
_BATCH_TOKENS = {"cpu": 1024}
"""Tokens of a batch: on a CPU, less padding and what fits the caches is worth more than a large one."""
_MANY_TOKENS = 8192
_LOOKED = 3
"""Tokens of the made-up answers by which the quick way is looked at: enough that branches have branches."""


@dataclass(frozen=True, slots=True)
class CausalRow:
    """A prompt with its answers.

    Attributes:
        ids: All token ids, for each answer.
        start: Position of the answers' first token.
        trunk: How many tokens stand before the tree: those of the prompt that all answers share.
    """

    ids: list[list[int]]
    start: int
    trunk: int

    def tree(self) -> Tree:
        """What the answers add to the trunk."""
        return _tree(tuple(tuple(ids[self.trunk :]) for ids in self.ids), self.start - self.trunk)

    def width(self) -> int:
        """How many tokens the model reads at once: the trunk and the tree."""
        return self.trunk + len(self.tree().ids)

    def ends(self) -> CausalRow:
        """The prompt with its first and its last answer alone."""
        return replace(self, ids=[self.ids[0], self.ids[-1]])


@dataclass(frozen=True)
class Tree:
    """What answers add to a common beginning; the last token of an answer only needs to be asked for.

    Attributes:
        ids: Token of each node.
        depths: How many nodes stand before it on its branch.
        sees: Which nodes each node sees, shape (nodes, nodes).
        asked: For each token of each answer: its answer, its id, and the node before it (0 is the end of
            the common beginning, 1 the first node), shape (tokens, 3).
    """

    ids: tuple[int, ...]
    depths: tuple[int, ...]
    sees: Tensor
    asked: Tensor


class CausalRanker(Ranker[CausalRow]):
    """Scores answers with a causal language model.

    The widest prompt is also computed plainly; where the two disagree (attention that does not go by
    positions, a window, a state instead of a cache), prompts as wide or wider are computed plainly, and
    that is said.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        self._joint = Joint(tokenizer)
        self._pad = tokenizer.pad_token_id or 0
        # Up to which width the quick way was found exact, and from which on it is not.
        self._exact, self._inexact = 0, _window(model.config.get_text_config()) + 1

    def row(self, prompt: Prompt, answers: Sequence[str]) -> CausalRow:
        start, ids = self._joint(prompt.text, [prompt.lead + one for one in answers], special=prompt.special)
        for answer, tokens in zip(answers, ids, strict=True):
            if len(tokens) <= start:
                raise InputError(f"the answer {answer!r} has no token of its own after the prompt")
        if start == 0:  # a model says nothing of the first token of a text
            begin = self.tokenizer.bos_token_id
            begin = self.tokenizer.eos_token_id if begin is None else begin
            start, ids = 1, [[int(begin or 0), *tokens] for tokens in ids]
        return CausalRow(ids, start, min(common(ids), start))

    def longest(self, row: CausalRow) -> int:
        return max(map(len, row.ids))

    def scores(self, rows: Sequence[CausalRow], keys: Sequence[Hashable]) -> list[list[Ranked]]:
        widths = [row.width() for row in rows]
        self._look(dict(zip(widths, rows, strict=True)))
        groups = defaultdict(list)
        for place, (width, key) in enumerate(zip(widths, keys, strict=True)):
            groups[key if width <= self._exact else None].append(place)
        found: dict[int, list[Ranked]] = {}
        for key, places in groups.items():
            chosen = [rows[place] for place in places]
            values = self._plainly(chosen) if key is None else self._by_trees(chosen)
            found.update(zip(places, values, strict=True))
        return [found[place] for place in range(len(rows))]

    # Whether the quick way is exact -----------------------------------------------------

    def _look(self, rows: Mapping[int, CausalRow]) -> None:
        """Find up to which width the quick way is exact, as far as the widths of these rows are new."""
        before = self._inexact
        widths = sorted(width for width in rows if self._exact < width < self._inexact)
        while widths and self._exact < widths[-1]:
            if self._agrees(rows[widths[-1]]):
                self._exact = widths[-1]
            else:
                self._inexact = widths[-1]
                # Narrower ones may be within a window.
                widths = widths[: len(widths) // 2]
        if self._inexact < before:
            log.warning(
                "  note: prompts of %d tokens or more are computed whole: this model's attention cannot be "
                "shared exactly",
                self._inexact,
            )

    def _agrees(self, row: CausalRow) -> bool:
        """Whether the quick way gives what the plain way gives, for a row and for answers made up."""
        made = _made_up(max(row.ids, key=len), self.model.config.get_text_config().vocab_size)
        share = min(one.trunk for one in (row, *made)) // 2
        try:
            first, *others = self._by_trees([row, *made], share)
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
            return False  # its forward takes no such mask
        quick = chain([first[0], first[-1]], *others)
        plain = chain(*self._plainly([row.ends(), *made]))
        tolerance = _TOLERANCE[self.precision]
        return all(abs(a.likelihood - b.likelihood) <= tolerance for a, b in zip(quick, plain, strict=True))

    # Together ---------------------------------------------------------------------------

    def _by_trees(self, rows: Sequence[CausalRow], share: int | None = None) -> list[list[Ranked]]:
        """Scores with the common beginning of all rows computed once."""
        if share is None:
            share = common([row.ids[0][: row.trunk - 1] for row in rows]) if len(rows) > 1 else 0
            share = share if share >= _FEWEST_SHARED else 0
        prefix = self._prefix(rows[0].ids[0][:share]) if share else None
        trees = [row.tree() for row in rows]
        lengths = [row.width() - share for row in rows]
        vocabulary = self.model.config.get_text_config().vocab_size

        def fits(batch: list[int]) -> bool:
            """Whether there is room for the logits."""
            return sum(len(trees[n].ids) + 1 for n in batch) * vocabulary <= MOST_LOGITS

        found: dict[int, list[Ranked]] = {}
        for batch in in_batches(lengths, _BATCH_TOKENS.get(self.device.type, _MANY_TOKENS)):
            for part in _parted(batch, fits):
                values = self._batch([rows[n] for n in part], [trees[n] for n in part], share, prefix)
                found.update(zip(part, values, strict=True))
        return [found[place] for place in range(len(rows))]

    def _prefix(self, ids: Sequence[int]) -> Cache:
        """Keys and values of tokens that many rows begin with."""
        with torch.inference_mode():
            return self.model(
                input_ids=torch.tensor([list(ids)], device=self.device),
                past_key_values=DynamicCache(),
                use_cache=True,
                logits_to_keep=1,
            )["past_key_values"]

    def _batch(
        self, rows: Sequence[CausalRow], trees: Sequence[Tree], share: int, prefix: Cache | None
    ) -> list[list[Ranked]]:
        """Scores of rows padded at their ends; logits are computed where a tree asks for them."""
        starts = [row.trunk - share for row in rows]
        ends = [start + len(tree.ids) for start, tree in zip(starts, trees, strict=True)]
        width = max(ends)
        ids = torch.full((len(rows), width), self._pad)
        positions = torch.zeros((len(rows), width), dtype=torch.long)
        asked = torch.zeros((len(rows), width), dtype=torch.bool)
        sees = torch.zeros((len(rows), width, share + width), dtype=torch.bool)
        sees[:, :, share:] = torch.eye(width, dtype=torch.bool)  # a row that sees nothing would be no number
        below = torch.ones((width, width), dtype=torch.bool).tril()
        for place, (row, tree, start, end) in enumerate(zip(rows, trees, starts, ends, strict=True)):
            ids[place, :end] = torch.tensor([*row.ids[0][share : row.trunk], *tree.ids])
            depths = [row.trunk + depth for depth in tree.depths]
            positions[place, :end] = torch.tensor([*range(share, row.trunk), *depths])
            asked[place, start - 1 : end] = True
            sees[place, :end, :share] = True
            sees[place, :start, share : share + start] = below[:start, :start]
            sees[place, start:end, share : share + start] = True
            sees[place, start:end, share + start : share + end] = tree.sees
        cache = {"past_key_values": _spread(prefix), "use_cache": True} if prefix else {"use_cache": False}
        with torch.inference_mode(), logits_at(self.model, asked.to(self.device)):
            logits = self.model(
                input_ids=ids.to(self.device),
                position_ids=positions.to(self.device),
                attention_mask=self._additive(sees),
                **cache,
            )["logits"]
        each = logits.split(asked.sum(dim=1).tolist())
        return [
            _read(found, tree.asked, len(row.ids)) for found, row, tree in zip(each, rows, trees, strict=True)
        ]

    def _additive(self, sees: Tensor) -> Tensor:
        """The mask as numbers to add to attention scores, which every implementation takes."""
        kind = next(self.model.parameters()).dtype
        mask = torch.zeros(sees.shape, dtype=kind).masked_fill_(~sees, torch.finfo(kind).min)
        return mask[:, None].to(self.device)

    # Plainly ----------------------------------------------------------------------------

    def _plainly(self, rows: Sequence[CausalRow]) -> list[list[Ranked]]:
        """Scores of each prompt with each answer as a text of its own."""
        texts = [(ids, row.start) for row in rows for ids in row.ids]
        found: dict[int, Ranked] = {}
        for batch in in_batches([len(ids) for ids, _ in texts]):
            ids = self.tensor([texts[n][0] for n in batch], self._pad)
            mask = self.tensor([[1] * len(texts[n][0]) for n in batch], 0)
            kept = ids.shape[1] - min(texts[n][1] for n in batch) + 1
            with torch.inference_mode():
                logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=kept)
            before = ids.shape[1] - kept
            for place, number in enumerate(batch):
                tokens, start = texts[number]
                asked = [(0, token, at - 1 - before) for at, token in enumerate(tokens) if at >= start]
                (found[number],) = _read(logits["logits"][place], torch.tensor(asked), 1)
        values = iter(found[number] for number in range(len(texts)))
        return [[next(values) for _ in row.ids] for row in rows]


def _window(config: Any) -> float:
    """How far back a token sees, as far as the configuration says."""
    if not getattr(config, "use_sliding_window", True):
        return float("inf")
    return min(filter(None, (getattr(config, name, None) for name in WINDOWS)), default=float("inf"))


def _parted(batch: list[int], fits: Callable[[list[int]], bool]) -> list[list[int]]:
    """A batch in as many parts as it takes; one row alone always fits."""
    if len(batch) == 1 or fits(batch):
        return [batch]
    middle = len(batch) // 2
    return [*_parted(batch[:middle], fits), *_parted(batch[middle:], fits)]


def _made_up(ids: list[int], vocabulary: int) -> list[CausalRow]:
    """A prompt as long as a text with two answers that part at once, and a shorter one, which is padded:
    what shows whether positions and masks are heeded, whatever the real answers are.
    """
    trunk = max(len(ids) - _LOOKED, 1)
    answers = [ids[trunk:], [(token + 1) % vocabulary for token in ids[trunk:]]]
    prompts = [ids[:trunk], [*ids[: trunk // 2], *ids[trunk // 2 + 1 : trunk]]]
    prompts = [prompt for prompt in prompts if prompt]
    return [CausalRow([prompt + one for one in answers], len(prompt), len(prompt)) for prompt in prompts]


@lru_cache(maxsize=256)
def _tree(tails: tuple[tuple[int, ...], ...], start: int) -> Tree:
    """The tree of what answers add; their first `start` tokens are still the prompt's."""
    nodes: dict[tuple[int, ...], int] = {}
    ids: list[int] = []
    sees: list[list[int]] = []
    asked: list[tuple[int, int, int]] = []
    for answer, tail in enumerate(tails):
        for place, token in enumerate(tail):
            before = nodes.get(tail[:place], -1)
            if place >= start:
                asked.append((answer, token, before + 1))
            if place < len(tail) - 1 and tail[: place + 1] not in nodes:
                nodes[tail[: place + 1]] = len(ids)
                sees.append([*(sees[before] if before >= 0 else []), len(ids)])
                ids.append(token)
    matrix = torch.zeros((len(ids), len(ids)), dtype=torch.bool)
    for node, seen in enumerate(sees):
        matrix[node, seen] = True
    return Tree(tuple(ids), tuple(len(seen) - 1 for seen in sees), matrix, torch.tensor(asked))


def _read(logits: Tensor, asked: Tensor, answers: int) -> list[Ranked]:
    """Sums of log-probabilities over each answer's tokens, from logits of shape (positions, vocabulary)."""
    asked = asked.to(logits.device)
    owners, tokens, places = asked.unbind(dim=1)
    logits = logits.float()
    each = logits[places, tokens] - logits.logsumexp(dim=1)[places]
    sums = torch.zeros(answers, device=logits.device).index_add_(0, owners, each)
    counts = torch.bincount(owners, minlength=answers)
    return [Ranked(value, count) for value, count in zip(sums.tolist(), counts.tolist(), strict=True)]


class _SharedLayer(DynamicLayer):
    """Keys and values of one beginning for all rows of a batch; what is added to it is not kept."""

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self.keys, self.values = layer.keys, layer.values
        self.dtype, self.device = layer.dtype, layer.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        rows = key_states.shape[0]
        assert self.keys is not None
        assert self.values is not None
        keys = torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2)
        return keys, torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2)


def _spread(prefix: Cache) -> Cache:
    """A cache of a beginning that any number of rows can share.

    Raises:
        ValueError: A layer keeps something else than keys and values of all tokens.
    """
    if any(type(layer) is not DynamicLayer for layer in prefix.layers):
        raise ValueError("no plain cache")
    return Cache(layers=[_SharedLayer(layer) for layer in prefix.layers])
