"""What the speed measurement computes from its measurements."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import speed


def pair(a: float, b: float, **more: Any) -> dict[str, Any]:
    sides = ({"seconds": s, "cpu_seconds": 2 * s, "load_before": 0.1} for s in (a, b))
    return {"first": "a", **dict(zip("ab", sides, strict=True)), **more}


def test_ratios_are_those_of_the_pairs_not_of_the_medians():
    pairs = [pair(1, 2), pair(10, 5), pair(4, 16)]
    assert speed.ratios(pairs, "seconds") == {"median": 2, "min": 0.5, "max": 4}
    assert speed.ratio_text(speed.ratios(pairs, "cpu_seconds")) == "2.00 (0.50 to 4.00)"


def test_sides_that_did_other_work_are_told():
    a = {"digests": [5, 6, 7, 8], "losses": [9.0, *[1.0] * speed.LAST]}
    b = {"digests": [5, 6, 7, 9], "losses": [1.0, *[2.0] * speed.LAST]}
    pairs = [pair(1, 1, same_rows=1.0, loss=[1.0, 2.0]), pair(1, 1, **speed.compare(a, b))]
    assert "digests" not in a
    found = speed.summary(pairs)
    assert found["same_rows"] == 0.75
    assert found["loss"] == [1.0, 2.0]
    assert not found["loss_agrees"]
    assert speed.findings(found) == "same rows in 75% of the steps, loss 1.000 and 2.000: THEY DIFFER"
    assert speed.close(2.0, 2.1)


def test_labels_are_compared_in_order():
    assert speed.compare({"labels": ["x", "y"]}, {"labels": ["y", "x"]}) == {"same_labels": 0.0}
    assert speed.findings({"same_labels": 0.999}) == "same label for 99.90%"


def test_table():
    pairs = [pair(0.2, 0.4), pair(0.1, 0.3)]
    figures = {"what": "--help", "a": "ftkit", "b": "trl", "steps": 1, "threads": 2, "date": "2026-01-01"}
    figures |= {"trl": "1.0", "machine": {"cores": 2}, "pairs": pairs, **speed.summary(pairs)}
    size = {"length": 128, "batch": 32}
    cells = [{"rows": 1000, **size, "ready": 4.0, "tokens_per_s": 1000.0, "seconds": 2.0, "cpu_seconds": 3.0}]
    cells += [{"rows": 10_000, **size, "skipped": "needs memory"}]
    text = speed.table(
        {"rows": {"P7": figures}, "scaling": {"threads": 2, "machine": {"cores": 2}, "cells": cells}}
    )
    assert "| P7 | --help | ftkit | trl | 2 (a trial) | 2.50 (2.00 to 3.00) | 2.50 (2.00 to 3.00) |" in text
    assert "| 0.15 s (best 0.10), CPU 0.30 s (best 0.20) |" in text
    assert "- P7: 2026-01-01; trl 1.0, 2 threads; load before a measurement 0.1 to 0.1" in text
    assert text.count("- machine: cores 2") == 1
    assert "| 1,000 | 128 | 32 | 4.0 | 1,000 | 1500 |" in text
    assert "| 10,000 | 128 | 32 |  | needs memory |  |" in text


def test_one_size_changes_at_a_time():
    cells = speed.sizes()
    assert len(cells) == 3 + 3 + 4 - 2
    assert all(sum(cell[key] != speed.MIDDLE[key] for key in speed.SIZES) <= 1 for cell in cells)


def test_flops_of_a_step():
    # One layer with a square matrix of 4 numbers a token, a row of 3 tokens: 3 * 2 * 16 operations
    # forward, two attention products of 2 * 9 * 4, and twice all that backward.
    assert speed.training_flops(16, 3, 9, hidden=4, layers=1) == 3 * (3 * 2 * 16 + 2 * 2 * 9 * 4)


def test_texts_depend_on_the_seed_alone():
    def texts(seed: int) -> list[str]:
        return list(speed.random_texts(["a", "b", "c"], (2, 5), 50, seed))

    assert texts(1) == texts(1) != texts(2)
    assert {len(text.split()) for text in texts(1)} == {2, 3, 4, 5}


@pytest.mark.parametrize("row", speed.ROWS)
def test_every_row_can_be_measured(row: str):
    group = row.partition("-")[0]
    assert group in speed.SIDES
    assert (speed.SIDES[group] is speed.training_sides) == (row in speed.TRAININGS)
