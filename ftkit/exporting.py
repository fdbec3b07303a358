"""Export: a run's model as a folder that needs nothing but transformers."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ftkit.errors import InputError, UsageError
from ftkit.evaluation import find_run
from ftkit.models.trust import read_config, refuse_broken_weights, refuse_unsafe_weights

log = logging.getLogger("ftkit")

_DRAFT = ".part"
"""Where an export is written until it is whole."""


def export(target: str, folder: Path | None = None, *, merge: bool = False) -> Path:
    """Write the model of a finished run.

    Args:
        target: A run folder, or the recipe that made one.
        folder: Where to; by default `export` inside the run.
        merge: Merge adapters into their base model.

    Returns:
        The folder.

    Raises:
        UsageError: The run has adapters and `merge` is off, or the folder is not empty.
    """
    run = find_run(target)
    folder = (folder or run.folder / "export").absolute()
    if folder.exists() and any(path.name != _DRAFT for path in folder.iterdir()):
        raise UsageError(
            "the folder is not empty", where=str(folder), hint="choose another with --output DIR"
        )
    if not run.recipe.method.trains:
        raise UsageError(
            f"method {run.recipe.method.type} trains nothing: the model is {run.recipe.model.name} as it is"
        )
    if run.recipe.method.adapters and not merge:
        raise UsageError(
            "this run holds adapters; a plain model needs them merged into their base", hint="add --merge"
        )
    if not run.recipe.method.adapters:
        _refuse_damaged(run.folder / "model")
        with _whole(folder) as draft:
            shutil.copytree(run.folder / "model", draft, dirs_exist_ok=True)
        return folder
    from ftkit.estimator import finished_estimator
    from ftkit.training.setup import Merges

    log.info("Merging adapters into %s", run.recipe.model.name)
    # In the precision of training, the base would be rounded.
    estimator = finished_estimator(run, precision="fp32")
    if not isinstance(estimator, Merges):
        raise UsageError(f"the adapters of method {run.recipe.method.type} cannot be merged")
    with _whole(folder) as draft:
        estimator.merge(draft)
    return folder


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A place inside the folder to write to; what is there at the end is the folder's, unless that failed.

    Raises:
        InputError: Not all could be copied.
    """
    made = not folder.exists()
    draft = folder / _DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        for path in draft.iterdir():
            path.rename(folder / path.name)
    except shutil.Error as error:
        first = error.args[0][0]
        raise InputError(f"cannot be copied: {first[-1]}", where=str(first[0])) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if made and not any(folder.iterdir()):
            folder.rmdir()


def _refuse_damaged(folder: Path) -> None:
    """Look at what would be copied.

    Raises:
        InputError: Configuration, weights or tokenizer are missing or broken.
    """
    from ftkit.models.loading import load_saved_tokenizer

    read_config(folder)
    refuse_unsafe_weights(folder)
    refuse_broken_weights(folder)
    load_saved_tokenizer(folder)
