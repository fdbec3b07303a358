"""Checkpoints that are whole or not there, without pickles.

A checkpoint is written to a temporary folder, synced, described by a manifest with sizes and
SHA-256, and only then renamed to its name. Optimizer and random states are safetensors and
JSON, also those of a sharded model (FSDP), whose parts are put together first. DeepSpeed's format
is its own and is not described here.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file, save_file

from ftkit.files import file_sha256

log = logging.getLogger("ftkit")

MANIFEST = "checkpoint.json"
_PREFIX = "checkpoint-"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to write to; on success it becomes `folder`, complete on disk."""
    draft = folder.with_name(f"tmp-{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    yield draft
    files = {}
    for path in sorted(path for path in draft.rglob("*") if path.is_file()):
        files[str(path.relative_to(draft))] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
        _sync(path)
    manifest = draft / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    _sync(manifest)
    _sync(draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    _sync(folder.parent)


def let_others_read(folder: Path) -> None:
    """Give saved weights the mode of the files beside them: safetensors lets their owner alone read them."""
    mode = next(folder.glob("*config.json")).stat().st_mode
    for path in folder.glob("*.safetensors"):
        path.chmod(stat.S_IMODE(mode))


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps that is complete; a damaged one is passed over, and said."""
    for path in sorted(folder.glob(f"{_PREFIX}*"), key=step_of, reverse=True):
        if fault := fault_of(path):
            log.warning("checkpoint %s is passed over: %s", path.name, fault)
        else:
            return path
    return None


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written, by its name."""
    number = path.name.removeprefix(_PREFIX)
    return int(number) if number.isdecimal() else -1


def fault_of(folder: Path) -> str:
    """What is wrong with a checkpoint; empty where it is whole."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return "it has no readable manifest"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"] or file_sha256(path) != expected["sha256"]:
            return f"{name} is damaged"
    return ""


def save_weights(weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Write weights by the names they have in training."""
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "weights.safetensors")


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """What `save_weights` wrote."""
    return load_file(folder / "weights.safetensors")


def save_optimizer(state: dict[str, Any], folder: Path) -> None:
    """Write an optimizer's `state_dict()`: tensors as safetensors, the rest as JSON.

    Parameters are numbers, or the names of a sharded model's.
    """
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {"param_groups": state["param_groups"], "state": {}}
    seen: set[int] = set()
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                # 8-bit optimizers have one table for all parameters, which a file may not hold twice.
                place = value.untyped_storage().data_ptr()
                tensors[f"{index}/{name}"] = value.clone() if place in seen else value.contiguous()
                seen.add(place)
            else:
                plain["state"][f"{index}/{name}"] = value
    save_file(tensors, folder / "optimizer.safetensors")
    write_json(folder / "optimizer.json", plain)


def load_optimizer(folder: Path) -> dict[str, Any]:
    """What `save_optimizer` wrote, for `load_state_dict()`."""
    plain = read_json(folder / "optimizer.json")
    state: dict[int | str, dict[str, Any]] = {}
    for key, value in {**load_file(folder / "optimizer.safetensors"), **plain["state"]}.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index) if index.isdecimal() else index, {})[name] = value
    return {"state": state, "param_groups": plain["param_groups"]}


def save_random_state(folder: Path, rank: int) -> None:
    """Write the state of Python's, numpy's and torch's generators of one process."""
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = numpy.random.get_state(legacy=True)
    tensors = {
        "numpy": torch.from_numpy(numpy.asarray(keys).astype("int64")),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    save_file(tensors, folder / f"random-{rank}.safetensors")
    plain = {"python": [version, list(numbers), gauss], "numpy": [kind, *rest]}
    write_json(folder / f"random-{rank}.json", plain)


def processes_of(folder: Path) -> int:
    """How many processes wrote a checkpoint."""
    return len(list(folder.glob("random-*.json")))


def load_random_state(folder: Path, rank: int) -> None:
    """Set the generators to what `save_random_state` wrote."""
    plain = read_json(folder / f"random-{rank}.json")
    tensors = load_file(folder / f"random-{rank}.safetensors")
    version, numbers, gauss = plain["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, *rest = plain["numpy"]
    numpy.random.set_state((kind, tensors["numpy"].numpy().astype("uint32"), *rest))
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


def write_json(path: Path, value: Any) -> None:
    """Write JSON; floats keep every bit."""
    path.write_text(json.dumps(value), encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def _sync(path: Path) -> None:
    """Make sure the file or folder is on disk before anything points to it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
