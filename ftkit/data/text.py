"""Text lines from a file, with errors that name the line a wrong encoding fails on."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ftkit.errors import InputError, UsageError

_SNIFFED_BYTES = 8192
_WIDE = ("utf-16", "utf-32")


@contextmanager
def open_text(path: Path, encoding: str) -> Iterator[IO[str]]:
    """Open a text file so that only `\\n`, `\\r` and `\\r\\n` end a line.

    Python's `str.splitlines` also splits at U+0085 and U+2028, which stand inside values.

    Raises:
        InputError: The file is empty, binary, or not in this encoding.
        UsageError: Python knows no such encoding.
    """
    codec = _codec(encoding)
    try:
        _refuse_empty_or_binary(path, codec)
        _refuse_utf8_as_single_byte(path, codec, encoding)
        with path.open(encoding="utf-8-sig" if codec == "utf-8" else codec, newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        line = _first_undecodable_line(path, codec)
        raise InputError(
            f"is not {encoding} text (byte 0x{error.object[error.start]:02x})",
            where=f"{path}:{line}" if line else str(path),
            hint="set data.encoding to the file's encoding, for example latin-1 or cp1252",
        ) from None
    except UnicodeError as error:
        raise InputError(f"is not {encoding} text: {error}", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from None


def _codec(encoding: str) -> str:
    try:
        # Python's codecs that are no text encodings, such as base64, fail here.
        "".encode(encoding)
        return codecs.lookup(encoding).name
    except (LookupError, ValueError):
        raise UsageError(
            f"data.encoding: {encoding!r} is not an encoding Python knows",
            hint="common ones: utf-8, latin-1, cp1252, utf-16",
        ) from None


def _refuse_empty_or_binary(path: Path, codec: str) -> None:
    with path.open("rb") as file:
        start = file.read(_SNIFFED_BYTES)
    if not start.removeprefix(codecs.BOM_UTF8).strip():
        raise InputError("the file is empty", where=str(path))
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not codec.startswith(_WIDE):
        raise InputError("the file is UTF-16 text", where=str(path), hint="set data.encoding: utf-16")
    if b"\0" in start and not codec.startswith(_WIDE):
        raise InputError(
            "the file is binary, not text",
            where=str(path),
            hint="a parquet file needs the suffix .parquet; unpack an archive first",
        )


def _refuse_utf8_as_single_byte(path: Path, codec: str, encoding: str) -> None:
    """A single-byte codec never fails, it only garbles: UTF-8 read with one is surely wrong."""
    if codec not in {"iso8859-1", "cp1252", "iso8859-15"}:
        return
    first = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.isascii():
                continue
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return
            first = first or number
    if first:
        raise InputError(
            f"data.encoding says {encoding}, but every line of the file is valid UTF-8",
            where=f"{path}:{first}",
            hint="leave data.encoding out, or set it to utf-8",
        )


def _first_undecodable_line(path: Path, codec: str) -> int | None:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode(codec)
            except UnicodeDecodeError:
                return number
    return None
