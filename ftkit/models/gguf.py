"""GGUF files: looked at without loading them, and turned into a plain model folder once.

transformers reads such a file in a minute or so and refuses to save the model, which it takes for
quantized. So the weights are unpacked to fp32 and written to a cache as an ordinary folder, named for
the file's SHA-256; every later run begins from there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ftkit.errors import InputError

log = logging.getLogger("ftkit")

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# Bytes of the scalar value types, by their number (GGUF specification, `gguf_metadata_value_type`).
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_ARCHITECTURE = "general.architecture"
_ALIGNMENT = "general.alignment"
_LONGEST_KEY = 65_535
_INSTALL = "pip install 'ftkit[gguf]'"


@dataclass(frozen=True, slots=True)
class Header:
    """What the beginning of a GGUF file says.

    Attributes:
        architecture: The model type, such as `llama`.
        last_tensor: Where the last tensor begins, in bytes from the start of the file.
    """

    architecture: str
    last_tensor: int


def read_header(path: Path) -> Header:
    """Look at a GGUF file without loading it.

    Raises:
        InputError: It is no GGUF file, or it is cut short.
    """
    hint = "copy or download the file again"
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            raise InputError("this is no GGUF file", where=str(path), hint="its first bytes are not 'GGUF'")
        try:
            header = _read_header(file)
        except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
            reason = f"{error}" if isinstance(error, ValueError) else "its header ends too early"
            raise InputError(f"the GGUF file is broken: {reason}", where=str(path), hint=hint) from None
        if (size := path.stat().st_size) <= header.last_tensor:
            raise InputError(
                f"the GGUF file is cut short: {size:,} bytes, and its last tensor begins at "
                f"{header.last_tensor:,}",
                where=str(path),
                hint=hint,
            )
    return header


def _read_header(file: BinaryIO) -> Header:
    (version,) = _unpack(file, "<I")
    if version not in _VERSIONS:
        raise ValueError(f"version {version} is not among {', '.join(map(str, _VERSIONS))}")
    tensors, pairs = _unpack(file, "<QQ")
    values: dict[str, Any] = {}
    for _ in range(pairs):
        key = _string(file)
        (kind,) = _unpack(file, "<I")
        if key in (_ARCHITECTURE, _ALIGNMENT):
            values[key] = _value(file, kind)
        else:
            _skip(file, kind)
    offsets = [0]
    for _ in range(tensors):
        _string(file)
        (dimensions,) = _unpack(file, "<I")
        file.seek(8 * dimensions + 4, os.SEEK_CUR)
        offsets += _unpack(file, "<Q")
    alignment = int(values.get(_ALIGNMENT) or 32)
    data = -(-file.tell() // alignment) * alignment
    return Header(str(values[_ARCHITECTURE]), data + max(offsets))


def _unpack(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "<Q")
    if length > _LONGEST_KEY:
        raise ValueError("a name in it is too long")
    return file.read(length).decode()


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    return int.from_bytes(file.read(_SCALARS[kind]), "little")


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == _ARRAY:
        of, length = _unpack(file, "<IQ")
        if of in _SCALARS:
            file.seek(_SCALARS[of] * length, os.SEEK_CUR)
        else:
            for _ in range(length):
                _skip(file, of)
                if file.tell() > os.fstat(file.fileno()).st_size:
                    raise ValueError("its header ends too early")
    elif kind == _STRING:
        (size,) = _unpack(file, "<Q")
        file.seek(size, os.SEEK_CUR)
    else:
        file.seek(_SCALARS[kind], os.SEEK_CUR)


def sha256(path: Path) -> str:
    """SHA-256 of the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_folder(digest: str) -> Path:
    """Where the file with this SHA-256 is unpacked to: `~/.cache/ftkit/gguf`, by the XDG rules."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "ftkit" / "gguf" / digest


def unpacked(path: Path) -> Path:
    """The model folder of a GGUF file, made when it is first asked for.

    Raises:
        InputError: The package `gguf` is missing, transformers cannot read the file, or the disk is full.
    """
    folder = cached_folder(sha256(path))
    if folder.is_dir():
        return folder
    log.info("Unpacking %s to %s (once)", path.name, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix="tmp-", dir=folder.parent))
    try:
        _unpack_to(path, draft)
        # Another process may have been faster; its folder has the same content.
        if not folder.is_dir():
            draft.rename(folder)
    except ImportError as error:
        raise InputError(f"GGUF files need a further package: {error}", hint=_INSTALL) from None
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"the GGUF file cannot be read: {reason}", where=str(path)) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _unpack_to(path: Path, folder: Path) -> None:
    import gguf  # noqa: F401 - transformers needs it; missing, it is said before anything is read
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.save_pretrained(folder)
    read = AutoModelForCausalLM.from_pretrained(**where, dtype="float32")
    config = AutoConfig.from_pretrained(**where)
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    model.generation_config = GenerationConfig.from_model_config(config)
    model.save_pretrained(folder)
    source = {"file": path.name, "sha256": sha256(path)}
    (folder / "ftkit_gguf.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
