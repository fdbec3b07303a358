"""GGUF files: looked at without loading them, and turned into a plain model folder once.

transformers reads such a file in a minute or so and refuses to save the model, which it takes for
quantized. So the weights are unpacked to fp32 and written to a cache as an ordinary folder, named for
the file's SHA-256; every later run begins from there.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from ftkit.errors import InputError
from ftkit.files import cache_folder, file_sha256

log = logging.getLogger("ftkit")

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# Bytes of the scalar value types, by their number (GGUF specification, `gguf_metadata_value_type`).
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
# Model types that transformers spells in another way than GGUF files do.
MODEL_TYPES = {
    "gpt-oss": "gpt_oss",
    "minimax-m2": "minimax_m2",
    "qwen2moe": "qwen2_moe",
    "qwen35": "qwen3_5_text",
    "qwen35moe": "qwen3_5_moe_text",
    "qwen3moe": "qwen3_moe",
}
_ARCHITECTURE = "general.architecture"
_ALIGNMENT = "general.alignment"
_LONGEST_KEY = 65_535
_INSTALL = "pip install gguf"


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
        except (struct.error, ValueError) as error:
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
        _forward(file, 8 * dimensions + 4)
        offsets += _unpack(file, "<Q")
    alignment = int(values.get(_ALIGNMENT) or 32)
    data = -(-file.tell() // alignment) * alignment
    if _ARCHITECTURE not in values:
        raise ValueError(f"it says no {_ARCHITECTURE}")
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
    return int.from_bytes(file.read(_width(kind)), "little")


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == _ARRAY:
        of, length = _unpack(file, "<IQ")
        if of == _STRING:
            for _ in range(length):
                _forward(file, *_unpack(file, "<Q"))
        else:
            _forward(file, _width(of) * length)
    elif kind == _STRING:
        _forward(file, *_unpack(file, "<Q"))
    else:
        _forward(file, _width(kind))


def _width(kind: int) -> int:
    if kind not in _SCALARS:
        raise ValueError(f"its header holds a value of type {kind}")
    return _SCALARS[kind]


def _forward(file: BinaryIO, size: int) -> None:
    if file.tell() + size > os.fstat(file.fileno()).st_size:
        raise ValueError("its header ends too early")
    file.seek(size, os.SEEK_CUR)


def cached_folder(digest: str) -> Path:
    """Where the file with this SHA-256 is unpacked to."""
    return cache_folder("gguf") / digest


def unpacked(path: Path) -> Path:
    """The model folder of a GGUF file, made when it is first asked for.

    Raises:
        InputError: The package `gguf` is missing, transformers cannot read the file, or the disk is full.
    """
    folder = cached_folder(file_sha256(path))
    if folder.is_dir():
        return folder
    import torch
    from huggingface_hub.errors import StrictDataclassError

    log.info("Unpacking %s to %s (once)", path.name, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix="tmp-", dir=folder.parent))
    try:
        # The weights that are made on the way draw random numbers, of which a head shall have the first.
        with torch.random.fork_rng(devices=[]):
            _unpack_to(path, draft)
        try:
            draft.rename(folder)
        except OSError:
            # Another process may have been faster; its folder has the same content.
            if not folder.is_dir():
                raise
    except ImportError as error:
        raise InputError(f"GGUF files need a further package: {error}", hint=_INSTALL) from None
    except (
        ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError,
        StrictDataclassError, TypeError, ValueError, struct.error,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"the GGUF file cannot be read: {reason}", where=str(path)) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _unpack_to(path: Path, folder: Path) -> None:
    import gguf  # noqa: F401 - transformers needs it; missing, it is said before anything is read
    from tqdm import tqdm
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        GenerationConfig,
        GgufConfig,
    )
    from transformers import modeling_gguf_pytorch_utils as reader

    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.save_pretrained(folder)
    config = AutoConfig.from_pretrained(**where)
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    # Where there are kernels for it, some architectures would stay quantized.
    plain = GgufConfig(dequantize=True)
    reader.tqdm = partial(tqdm, disable=True)
    read, info = kind.from_pretrained(
        **where, dtype="float32", quantization_config=plain, output_loading_info=True
    )
    if lacking := sorted(map(str, {*info["missing_keys"], *info["mismatched_keys"]})):
        # transformers would fill them with random numbers.
        raise InputError(
            f"the GGUF file lacks {len(lacking)} of the model's tensors, such as {lacking[0]}",
            where=str(path), hint="a file that is one part of several is not enough",
        )  # fmt: skip
    model = kind.from_config(config)
    model.load_state_dict(read.state_dict())
    model.generation_config = GenerationConfig.from_model_config(config)
    model.save_pretrained(folder)
    source = {"file": path.name, "sha256": file_sha256(path)}
    (folder / "ftkit_gguf.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
