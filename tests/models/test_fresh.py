"""Tokenizers that are trained on the data."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import ByT5Tokenizer, Qwen2Config

from ftkit.models.fresh import train_tokenizer
from ftkit.models.loading import load_saved_tokenizer, load_tokenizer
from ftkit.models.source import FreshTokenizer, ModelSource
from ftkit.records import Record
from ftkit.training.heads import tokenize

TEXTS = [
    "The quick brown fox jumps over the lazy dog, isn't it?",
    "Pack my box with five dozen liquor jugs; the dog jumps.",
    "How vexingly quick daft zebras jump! The foxes' boxes.",
] * 3


@pytest.mark.parametrize("kind", ["character", "bpe", "wordpiece"])
def test_the_same_texts_make_the_same_tokenizer(kind: str) -> None:
    words = [f"{a}{b}{c}" for a in "kptbs" for b in ("ara", "eno", "iru") for c in "lmnrs"]
    made = [
        train_tokenizer(
            FreshTokenizer(type=kind, vocab_size=200), "encoder", lambda _: iter([*TEXTS, *words])
        )
        for _ in range(4)
    ]
    assert all(one.get_vocab() == made[0].get_vocab() for one in made)


def test_a_wordpiece_tokenizer_cuts_as_berts_does() -> None:
    tokenizer = train_tokenizer(
        FreshTokenizer(type="wordpiece", vocab_size=300), "encoder", lambda _: iter(TEXTS)
    )
    assert len(tokenizer) <= 300
    text = "the quick dog jumps, dog"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[1:6] == ["the", "quick", "dog", "jumps", ","]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the quick dog jumps, dog"
    # Words that were never seen are cut into characters, those after the first with the mark of BERT.
    cut = tokenizer.tokenize("zzzq")
    assert cut[0][0] == "z"
    assert all(piece.startswith("##") for piece in cut[1:])
    assert "".join(piece.removeprefix("##") for piece in cut) == "zzzq"


def test_a_character_tokenizer_keeps_the_commonest(caplog: pytest.LogCaptureFixture) -> None:
    rare = "ABCDEFGHIJ"
    common = "abcdefghijklmnopqrstuvwxyzäöü ж"
    texts = [common * 9, rare]
    settings = FreshTokenizer(type="character", vocab_size=2 + len(common))
    tokenizer = train_tokenizer(settings, "decoder", lambda _: iter(texts))
    assert tokenizer.decode(tokenizer(common)["input_ids"]) == common
    assert set(tokenizer(rare)["input_ids"]) == {tokenizer.unk_token_id}
    assert "10 characters do not fit" in caplog.text
    assert "3.5 % of the text (the commonest: 'A')" in caplog.text
    caplog.clear()
    settings = FreshTokenizer(type="character", vocab_size=2 + len(common + rare))
    tokenizer = train_tokenizer(settings, "decoder", lambda _: iter(texts))
    assert tokenizer.decode(tokenizer(rare)["input_ids"]) == rare
    assert not caplog.text, "nothing is left out"


def test_a_saved_tokenizer_cuts_as_before(tmp_path: Path) -> None:
    """Whatever its model: of a Qwen2's, transformers would keep the vocabulary and cut as Qwen's does."""
    tokenizer = train_tokenizer(
        FreshTokenizer(type="wordpiece", vocab_size=300), "decoder", lambda _: iter(TEXTS)
    )
    tokenizer.save_pretrained(tmp_path)
    Qwen2Config(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    source = ModelSource(name_or_path=str(tmp_path))
    base = load_tokenizer(source.locate_tokenizer(), source)
    for text in TEXTS:
        assert load_saved_tokenizer(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert base(text)["input_ids"] == tokenizer(text)["input_ids"], "as the base of another run"


def test_what_a_tokenizer_in_python_cuts_is_counted() -> None:
    records = [Record("a long text"), Record("short")]
    rows, cut = tokenize(records, ByT5Tokenizer(), 8)
    assert ([len(row["input_ids"]) for row in rows], cut) == ([8, 6], 1)
