"""What a recipe says of adapters reaches PEFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel, AutoTokenizer

from ftkit.methods.lora import LoRA
from ftkit.training.setup import Loaded

SETTINGS: dict[str, Any] = {
    "r": 2,
    "lora_alpha": 3.0,
    "lora_dropout": 0.5,
    "target_modules": ["query", "key"],
    "exclude_modules": ["key"],
    "modules_to_save": ["pooler"],
    "bias": "all",
    "use_rslora": True,
    "use_dora": True,
    "init_lora_weights": "gaussian",
}


def test_every_setting_is_tried() -> None:
    assert set(SETTINGS) == set(LoRA.model_fields) - {"type"}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_reaches_peft(name: str, tiny: Callable[[str], Path]) -> None:
    folder, asked = tiny("bert"), SETTINGS[name]
    loaded = Loaded(AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), (), 64)
    model: Any = LoRA(**{name: asked}).adapt(loaded)
    found = getattr(model.peft_config["default"], name)
    assert (sorted(found) if isinstance(asked, list) else found) == (
        sorted(asked) if isinstance(asked, list) else asked
    )
