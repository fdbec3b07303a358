"""ftkit: fine-tune, prompt and measure language models; one recipe per task."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftkit.comparison import compare
    from ftkit.evaluation import evaluate
    from ftkit.finetuning import finetune
    from ftkit.prediction import predict
    from ftkit.recipe import load_recipe
    from ftkit.run import Run

__version__ = "0.1.0"
__all__ = ["Run", "compare", "evaluate", "finetune", "load_recipe", "predict"]

_HOMES = {
    "Run": "ftkit.run",
    "compare": "ftkit.comparison",
    "evaluate": "ftkit.evaluation",
    "finetune": "ftkit.finetuning",
    "load_recipe": "ftkit.recipe",
    "predict": "ftkit.prediction",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `import ftkit` stays as light as the command line's help."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ftkit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
