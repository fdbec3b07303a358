"""A model whose code comes with it, once the recipe trusts that code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ftkit
from ftkit.errors import InputError

CODE = """
from transformers import BertForSequenceClassification

class Louder(BertForSequenceClassification):
    def forward(self, *given, **options):
        said = super().forward(*given, **options)
        said["logits"] = 3 * said["logits"] + 1
        return said
"""


@pytest.fixture
def louder(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A BERT whose own class changes what it says."""
    folder = tmp_path / "louder"
    shutil.copytree(tiny("bert"), folder)
    (folder / "modeling_louder.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "modeling_louder.Louder"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_on_trusted_code(method: str, louder: Path, recipe: dict[str, Any]) -> None:
    """It is what trains, what is saved and what answers."""
    recipe |= {"method": method, "model": {"name_or_path": str(louder)}}
    with pytest.raises(InputError, match="brings its own Python code"):
        ftkit.finetune(recipe)
    recipe["model"] |= {"trust_remote_code": True}
    run = ftkit.finetune(recipe)
    before = (run.folder / "predictions.jsonl").read_text()
    evaluation = ftkit.evaluate(run.folder)
    assert (evaluation.folder / "predictions.jsonl").read_text() == before
    assert ftkit.predict(run.folder, ["red"])[0].value in run.labels
