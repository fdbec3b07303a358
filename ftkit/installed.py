"""The source of the installed transformers: what is read of it without importing it, and torch with it."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path


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
