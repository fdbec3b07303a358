"""Texts without columns: `.txt` files as a whole, or line by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftkit.preflight import check


@pytest.mark.parametrize(("data_format", "rows"), [(None, "1 rows"), ("text", "1 rows"), ("lines", "2 rows")])
def test_texts_are_read_as_the_recipe_says(data_format: str | None, rows: str, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a first text\n\nand another one\n")
    data = {"train_file": str(tmp_path / "train.txt"), **({"format": data_format} if data_format else {})}
    report = check(
        {
            "task": {"type": "language_modeling"},
            "model": {"from_config": {"model_type": "gpt2"}, "tokenizer": {"type": "bpe"}},
            "data": data,
            "method": "full",
            "output_dir": str(tmp_path / "run"),
        }
    )
    assert report["train"] == rows
