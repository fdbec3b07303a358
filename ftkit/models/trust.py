"""Whether a model can be trusted: the code it brings, the kind of its weights, and that they are whole."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ftkit.errors import InputError

log = logging.getLogger("ftkit")

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_NOW_IN_TRANSFORMERS = {"falcon": "Falcon", "phi3": "Phi3"}
"""Architectures whose authors' files still name the code that came before that of transformers, and how its
classes begin."""
_LFS_POINTER = b"version https://git-lfs"


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a model folder's config.json.

    Raises:
        InputError: It is missing or not JSON.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            "no config.json: this is not a model folder", where=str(folder), hint=f"it holds: {held(folder)}"
        )
    config = _read_object(path)
    if not isinstance(config.get("model_type"), str):
        raise InputError("names no model_type", where=str(path), hint="config.json comes with the weights")
    return config


def refuse_untrusted_code(config: Mapping[str, Any], *, name: str, trusted: bool) -> None:
    """Refuse a model whose files bring code, unless that is trusted and lies beside its weights.

    `auto_map` names classes to run: from the model's files, or, as `REPOSITORY--file.Class`, from others,
    whose commit the recipe cannot pin. A kernel id names code on the Hub.

    Args:
        config: The content of config.json or tokenizer_config.json.
        name: What the recipe calls the model.
        trusted: Whether the recipe trusts its code.

    Raises:
        InputError: The model would run code.
    """
    if not trusted and _is_transformers_own(config):
        log.debug("  %s names Python code, which is not run: transformers has it itself", name)
        config = {key: value for key, value in config.items() if key != "auto_map"}
    kernels = [value for key, value in config.items() if "attn_implementation" in key and "/" in str(value)]
    if (config.get("auto_map") or kernels) and not trusted:
        raise InputError(
            "this model brings its own Python code, which is not run",
            where=name,
            hint="read that code; then set model.trust_remote_code: true with model.revision "
            "pinned to a commit",
        )
    classes = list(_texts(config.get("auto_map")))
    if elsewhere := [one for one in classes if "--" in one and one.partition("--")[0] != name]:
        raise InputError(
            f"this model runs Python code of another repository, {elsewhere[0].partition('--')[0]}, which "
            "model.revision does not pin",
            where=name,
            hint="copy that code and the model into a folder, and take the repository out of auto_map there",
        )


def _is_transformers_own(config: Mapping[str, Any]) -> bool:
    """Whether the code that a configuration names is what transformers has by now.

    The names do not tell: others compute something else in classes that are called as transformers' are.
    """
    own = _NOW_IN_TRANSFORMERS.get(str(config.get("model_type")), "")
    classes = [one.rpartition(".")[2] for one in _texts(config.get("auto_map"))]
    return bool(own and classes) and all(name.startswith(own) for name in classes)


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def refuse_unsafe_weights(folder: Path) -> None:
    """Refuse a folder without weights in safetensors.

    Raises:
        InputError: They are a pickle, or there are none.
    """
    if any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        return
    if any((folder / name).is_file() for name in _PICKLED_WEIGHTS):
        raise InputError(
            "the weights are a pickle (pytorch_model.bin), which can run code when it is loaded",
            where=str(folder),
            hint="convert them to model.safetensors on a machine you can spare, or take a "
            "revision of the model that has safetensors",
        )
    raise InputError(
        "no model.safetensors in this model folder", where=str(folder), hint=f"it holds: {held(folder)}"
    )


def refuse_broken_weights(folder: Path) -> None:
    """Look at headers and sizes: a download that was cut short shows here, not after the data is read.

    Raises:
        InputError: A file is missing, cut short, or only a pointer to one.
    """
    from safetensors import SafetensorError, safe_open

    for path in weight_files(folder):
        if not path.is_file():
            raise InputError("this part of the weights is missing", where=str(path))
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise InputError(
                    "only a Git LFS pointer, not the weights", where=str(path), hint="git lfs pull"
                )
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise InputError(
                f"the weights are broken or cut short: {error}",
                where=str(path),
                hint="copy or download the file again",
            ) from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads from a folder: one, or the parts that its index names.

    Raises:
        InputError: The index cannot be read.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    parts = _read_object(folder / INDEX).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise InputError("names no parts in `weight_map`", where=str(folder / INDEX))
    return [folder / name for name in sorted(set(map(str, parts.values())))]


def weights_sha256(folder: Path) -> str:
    """SHA-256 of the safetensors weights (of all parts and the index, where they are several)."""
    files = weight_files(folder)
    digest = hashlib.sha256()
    for path in files if files[0].name == WEIGHTS else [*files, folder / INDEX]:
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()


def held(folder: Path) -> str:
    """The first names in a folder, for messages."""
    return ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"broken JSON: {error}", where=str(path)) from None
    if not isinstance(value, dict):
        raise InputError("a JSON object is needed", where=str(path))
    return value
