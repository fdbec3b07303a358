"""What result files hold."""

from __future__ import annotations

import json
import math

import pytest

from ftkit.cli.console import scores as as_table
from ftkit.errors import GateError
from ftkit.gates import check_gates
from ftkit.recipe.schema import Gate
from ftkit.records import Score, Scores
from ftkit.report.results import scores_json
from ftkit.scoring import spread


@pytest.mark.parametrize("ways", [1, 2])
def test_a_score_that_is_infinite(ways: int) -> None:
    """Where no right text fits, there is no loss: the file stays JSON, and no gate takes it for a score."""
    one = Scores(
        "test", 3, {"answer_loss": Score(math.inf, math.inf, math.inf), "chrf": Score(9.0, 8.0, 9.5)}
    )
    other = Scores("test", 3, {"answer_loss": Score(0.5, 0.4, 0.6), "chrf": Score(7.0, 6.0, 8.0)})
    scores = spread({"seed 1": one, "seed 2": other}) if ways == 2 else one
    found = json.loads(json.dumps(scores_json(scores, [], "fp32", {}), allow_nan=False))
    assert found["metrics"]["answer_loss"]["value"] is None
    assert found["metrics"]["chrf"]["value"] == (8 if ways == 2 else 9)
    table = as_table(found).splitlines()
    assert next(line for line in table if "answer_loss" in line and "chrf" not in line).count("infinite") >= 2
    if ways == 2:
        assert next(line for line in table if "lowest" in line).split() == ["lowest", "0.5000", "7.0000"]
        assert next(line for line in table if "highest" in line).split() == ["highest", "infinite", "9.0000"]
    with pytest.raises(GateError, match="answer_loss is infinite"):
        check_gates([("answer_loss", Gate(max=2.0))], found, ["answer_loss"])
