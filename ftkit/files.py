"""Files: what tells one from another, and where ftkit keeps its own."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path


def file_sha256(path: Path) -> str:
    """SHA-256 of the file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder(name: str) -> Path:
    """Where things that can be made again are kept: `~/.cache/ftkit/NAME`, by the XDG rules."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        cache = cache.expanduser()
    except RuntimeError:  # Nobody's home is known.
        cache = Path(tempfile.gettempdir())
    return cache / "ftkit" / name
