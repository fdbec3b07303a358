"""`check` knows from config.json how long inputs can be, and training finds the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from ftkit.errors import FtkitError
from ftkit.models.loading import longest_input
from ftkit.preflight import check

# Names and numbers as they stand in the models' own config.json on the Hub.
CONFIGS: list[tuple[str, dict[str, Any], int | None]] = [
    ("bert", {"max_position_embeddings": 512}, 512),
    ("roberta", {"max_position_embeddings": 514, "pad_token_id": 1}, 512),
    ("mpnet", {"max_position_embeddings": 514, "pad_token_id": 1}, 512),
    ("gpt2", {"n_positions": 1024, "n_ctx": 1024}, 1024),
    ("t5", {"n_positions": 512, "relative_attention_num_buckets": 32}, None),
    ("deberta-v2", {"max_position_embeddings": -1}, None),
    ("deberta-v2", {"max_position_embeddings": 64, "position_biased_input": False}, None),
]


@pytest.mark.parametrize(("kind", "config", "positions"), CONFIGS, ids=[kind for kind, _, _ in CONFIGS])
def test_check_and_training_agree(
    kind: str,
    config: dict[str, Any],
    positions: int | None,
    tiny: Callable[[str], Path],
    recipe: dict[str, Any],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny("bert").iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **config}))
    loaded, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(tiny("bert"))

    def refused(asked: int) -> set[bool]:
        model = {"name_or_path": str(folder), "max_length": asked}
        steps = (lambda: check(recipe | {"model": model}), lambda: longest_input(loaded, tokenizer, asked))
        return {_is_refused(step) for step in steps}

    assert refused(positions or 100_000) == {False}
    if positions:
        assert refused(positions + 1) == {True}


def _is_refused(step: Callable[[], object]) -> bool:
    try:
        step()
    except FtkitError as error:
        assert "positions" in error.what
        return True
    return False
