"""Tokenizers that are trained on the data."""

from __future__ import annotations

import pytest

from ftkit.models.fresh import train_tokenizer
from ftkit.models.source import FreshTokenizer


def test_a_character_tokenizer_keeps_the_commonest(caplog: pytest.LogCaptureFixture) -> None:
    rare = "ABCDEFGHIJ"
    common = "abcdefghijklmnopqrstuvwxyzäöü ж"
    texts = [common * 9, rare]
    settings = FreshTokenizer(type="character", vocab_size=2 + len(common))
    tokenizer = train_tokenizer(settings, "decoder", lambda: iter(texts))
    assert tokenizer.decode(tokenizer(common)["input_ids"]) == common
    assert set(tokenizer(rare)["input_ids"]) == {tokenizer.unk_token_id}
    assert "10 characters do not fit" in caplog.text
    assert "3.5 % of the text (the commonest: 'A')" in caplog.text
    caplog.clear()
    settings = FreshTokenizer(type="character", vocab_size=2 + len(common + rare))
    tokenizer = train_tokenizer(settings, "decoder", lambda: iter(texts))
    assert tokenizer.decode(tokenizer(rare)["input_ids"]) == rare
    assert not caplog.text, "nothing is left out"
