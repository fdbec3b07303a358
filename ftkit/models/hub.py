"""Models on the Hub: the commit that a branch is at, and weights that are looked at before they are loaded.

transformers downloads the tokenizer and whatever else it needs by itself; since it is told a commit, that
comes from the same state of the repository, and from the cache where it is there.
"""

from __future__ import annotations

from pathlib import Path

from transformers.utils.hub import cached_file, cached_files

from ftkit.errors import InputError
from ftkit.models.loading import explained
from ftkit.models.trust import INDEX, WEIGHTS, weight_files


def snapshot(name: str, revision: str) -> Path:
    """The folder of the Hub's cache for the commit that a revision stands for, with config.json in it.

    The folder has the commit's name. Without a network it is the commit that was downloaded last.

    Raises:
        InputError: The Hub cannot be reached, or the model does not exist or has no config.json.
    """
    with explained(name):
        config = cached_file(name, "config.json", revision=revision)
    if config is None:
        raise InputError("no config.json: this is not a model that transformers knows", where=name)
    return Path(config).parent


def fetch_weights(name: str, commit: str) -> Path:
    """The same folder with the safetensors weights in it; nothing else is downloaded.

    Raises:
        InputError: There are none, or the Hub cannot be reached.
    """
    with explained(name):
        whole, index = (
            cached_file(name, file, revision=commit, _raise_exceptions_for_missing_entries=False)
            for file in (WEIGHTS, INDEX)
        )
        if whole is None and index is not None:
            folder = Path(index).parent
            parts = [part.relative_to(folder).as_posix() for part in weight_files(folder)]
            cached_files(name, parts, revision=commit)
    if (found := whole or index) is None:
        raise InputError(
            f"no {WEIGHTS} can be had, and pickles (pytorch_model.bin) can run code when they are loaded",
            where=f"{name} at {commit}",
            hint="take a model.revision that has it: the Hub's own conversions are at refs/pr/NUMBER",
        )
    return Path(found).parent
