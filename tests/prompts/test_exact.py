"""Ranking is exact: each architecture scores as plain transformers does, whatever else is asked beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from ftkit.prompts import causal, cloze, seq2seq
from ftkit.prompts.causal import CausalRanker
from ftkit.prompts.cloze import ClozeRanker
from ftkit.prompts.prompting import Prompt
from ftkit.prompts.ranking import Ranker
from ftkit.prompts.seq2seq import Seq2SeqRanker

DECODERS = ["gpt2", "llama", "qwen2", "qwen3", "opt", "gpt_neox", "gemma"]
WINDOWED = ["mistral", "gpt_neo"]
"""Their windows of 16 tokens hold the first two prompts with short answers, and not the others."""
BY_INDEX = ["bloom"]
"""Its attention looks at the index of a token, not at its position."""
ENCODER_DECODERS = ["t5", "mt5", "bart"]
EVERY = [*DECODERS, *WINDOWED, *BY_INDEX, *ENCODER_DECODERS, "bert"]

SHOT = "Text: the blue phone\nColour: blue\n\n"
PROMPTS = [
    "a",
    "of:",
    f"{SHOT}Text: my order is not here\nColour:",
    f"{SHOT}Text: the red card\nColour:",
    f"{SHOT}Text: a good film for the world of business\nColour:",
]
# Some begin alike, and one is another's beginning.
ANSWERS = [" red", " red card", " green", " r", " blue phone"]

Scores = list[list[float]]


@dataclass(frozen=True)
class Model:
    """A model with its ranker, and what plain transformers code makes of an answer."""

    ranker: Ranker[Any]
    plain: Callable[[Any, Any, str, str], float]

    def scores(self, prompts: Sequence[str], answers: Sequence[str] = ANSWERS) -> Scores:
        rows = [self.ranker.row(asked(prompt), answers) for prompt in prompts]
        keys = ["shot" if prompt.startswith(SHOT) else "" for prompt in prompts]
        return [[one.likelihood for one in row] for row in self.ranker.scores(rows, keys)]

    def expected(self, prompts: Sequence[str], answers: Sequence[str] = ANSWERS) -> Scores:
        model, tokenizer = self.ranker.model, self.ranker.tokenizer
        with torch.inference_mode():
            return [[self.plain(model, tokenizer, one, answer) for answer in answers] for one in prompts]


def asked(text: str) -> Prompt:
    return Prompt(text, lead="", after=" it is .", special=True, shots=())


# One text at a time: no padding, no cache, no mask ----------------------------------------------


def causal_score(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """The log-probability of what the answer adds to the prompt."""
    start = len(tokenizer(prompt)["input_ids"])
    ids = tokenizer(prompt + answer, return_tensors="pt")["input_ids"]
    logs = model(ids).logits[0].log_softmax(dim=-1)
    return sum(logs[n - 1, ids[0, n]].item() for n in range(start, ids.shape[1]))


def seq2seq_score(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """The log-probability of the answer and its end, by the model's own loss."""
    labels = tokenizer(text_target=answer, return_tensors="pt")["input_ids"]
    loss = model(tokenizer(prompt, return_tensors="pt")["input_ids"], labels=labels).loss
    return -loss.item() * labels.shape[1]


def cloze_score(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """The log-probability of the answer's tokens in as many masks."""
    words = tokenizer(answer, add_special_tokens=False)["input_ids"]
    text = f"{prompt} {' '.join([tokenizer.mask_token] * len(words))} it is ."
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    places = (ids[0] == tokenizer.mask_token_id).nonzero()[:, 0]
    logs = model(ids).logits[0].log_softmax(dim=-1)
    return sum(logs[place, word].item() for place, word in zip(places, words, strict=True))


KINDS: dict[str, tuple[Any, type[Ranker[Any]], Any]] = {
    **dict.fromkeys(ENCODER_DECODERS, (AutoModelForSeq2SeqLM, Seq2SeqRanker, seq2seq_score)),
    "bert": (AutoModelForMaskedLM, ClozeRanker, cloze_score),
}
CAUSAL = (AutoModelForCausalLM, CausalRanker, causal_score)


def build(folder: Path, kind: tuple[Any, type[Ranker[Any]], Any]) -> Model:
    """A model from a tiny checkpoint, with numbers so large that answers hang on all that is read."""
    auto, ranker, plain = kind
    torch.manual_seed(0)
    model = auto.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for weight in (weight for weight in model.parameters() if weight.dim() == 2):
            weight.normal_(0, 0.3)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Model(ranker(model, tokenizer, device=torch.device("cpu"), precision="fp32"), plain)


@pytest.fixture
def model(architecture: str, tiny: Callable[[str], Path]) -> Model:
    return build(tiny(architecture), KINDS.get(architecture, CAUSAL))


def same(found: Scores, expected: Scores) -> None:
    """What float32 leaves of equality."""
    numpy.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


# What holds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", EVERY)
def test_scores_are_those_of_plain_transformers(
    architecture: str, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    expected = model.expected(PROMPTS)
    assert numpy.ptp(expected, axis=0).min() > 0.01, "each answer hangs on the prompt"
    same(model.scores(PROMPTS), expected)
    assert ("attention cannot be shared exactly" in caplog.text) == (architecture in BY_INDEX)


@pytest.mark.parametrize("architecture", EVERY)
def test_scores_hang_on_nothing_but_the_prompt_and_the_answer(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = model.scores(PROMPTS)
    same([model.scores([prompt])[0] for prompt in PROMPTS], together)
    same(model.scores(PROMPTS[::-1])[::-1], together)
    edited = [" good money" if answer == " green" else answer for answer in ANSWERS]
    others = [place for place, answer in enumerate(ANSWERS) if answer in edited]
    changed = numpy.array(model.scores(PROMPTS, edited))
    same(changed[:, others].tolist(), numpy.array(together)[:, others].tolist())
    assert len(others) == len(ANSWERS) - 1
    # One sequence a batch, and no beginning computed apart.
    monkeypatch.setattr(causal, "_BATCH_TOKENS", {"cpu": 1})
    monkeypatch.setattr(causal, "_FEWEST_SHARED", 10_000)
    monkeypatch.setattr(seq2seq, "_BATCH_TOKENS", 1)
    monkeypatch.setattr(cloze, "_BATCH_TOKENS", 1)
    same(model.scores(PROMPTS), together)


# Which way is taken -------------------------------------------------------------------------------


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[int]]:
    """The widths of the prompts that were computed plainly, and by trees, but for those made up."""
    plainly, by_trees = CausalRanker._plainly, CausalRanker._by_trees
    found: dict[str, set[int]] = {"plainly": set(), "by trees": set()}

    def watched_plainly(self: CausalRanker, rows: Any) -> Any:
        found["plainly"] |= {row.width() for row in rows if len(row.ids) > 2}
        return plainly(self, rows)

    def watched_by_trees(self: CausalRanker, rows: Any, share: int | None = None) -> Any:
        found["by trees"] |= {row.width() for row in rows if share is None}
        return by_trees(self, rows, share)

    monkeypatch.setattr(CausalRanker, "_plainly", watched_plainly)
    monkeypatch.setattr(CausalRanker, "_by_trees", watched_by_trees)
    return found


@pytest.mark.parametrize("architecture", DECODERS)
def test_what_is_shared_is_computed_once(model: Model, ways: dict[str, set[int]]) -> None:
    model.scores(PROMPTS)
    assert len(ways["by trees"]) == len(PROMPTS)
    assert not ways["plainly"]


@pytest.mark.parametrize("known", [True, False], ids=["known", "found"])
@pytest.mark.parametrize("architecture", WINDOWED)
def test_prompts_longer_than_a_window_are_computed_whole(
    architecture: str,
    known: bool,
    model: Model,
    tiny: Callable[[str], Path],
    ways: dict[str, set[int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where the configuration says nothing of a window under the names that are known."""
    if not known:
        monkeypatch.setattr(causal, "WINDOWS", ())
        model = build(tiny(architecture), CAUSAL)
    answers = [" re", " red", " b"]
    expected = model.expected(PROMPTS, answers)
    same(model.scores(PROMPTS, answers), expected)
    same(model.scores(PROMPTS[:2], answers), expected[:2])
    assert max(ways["by trees"]) <= 16 < min(ways["plainly"])
    assert ("prompts of " in caplog.text) == (not known)


@pytest.mark.parametrize("architecture", BY_INDEX)
def test_attention_by_index_is_computed_whole(model: Model, ways: dict[str, set[int]]) -> None:
    model.scores(PROMPTS)
    assert len(ways["plainly"]) == len(PROMPTS)
    assert not ways["by trees"]


def test_answers_of_one_token_hide_no_other_positions(tiny: Callable[[str], Path]) -> None:
    """A BART decoder heeds no positions, which shows only where answers part or prompts are padded."""
    model = build(tiny("bart"), CAUSAL)
    letters = ["r", "g", "b"]
    same(model.scores(PROMPTS, letters), model.expected(PROMPTS, letters))
