"""The source of the installed transformers: what is read of it without importing it, and torch with it."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any


@cache
def statements_of(file: str) -> list[ast.stmt]:
    """The statements of a module of transformers, by its path inside the package.

    Raises:
        ModuleNotFoundError: transformers is not installed.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("transformers is not installed")
    return ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8")).body


@cache
def auto_classes(mapping: str) -> dict[str, Any]:
    """What one of transformers' auto mappings has for each model type: a class name, or several.

    Args:
        mapping: For example `MODEL_FOR_MASKED_LM_MAPPING_NAMES`.
    """
    for node in statements_of("models/auto/modeling_auto.py"):
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.Assign) and isinstance(target, ast.Name) and target.id == mapping:
            # The value is `OrderedDict([("bert", "BertForMaskedLM"), ...])`.
            call = node.value
            return dict(ast.literal_eval(call.args[0] if isinstance(call, ast.Call) else call))
    raise LookupError(f"transformers has no {mapping}")
