"""Full fine-tuning."""

from __future__ import annotations

from typing import Literal

from ftkit.methods.base import Method


class Full(Method):
    """Train all weights."""

    type: Literal["full"] = "full"
