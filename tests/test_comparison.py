"""Runs side by side: the same rows, the paired bootstrap, and what cannot be compared."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
from scipy.stats import bootstrap

import ftkit as library
from ftkit.component import discover
from ftkit.errors import InputError, UsageError
from ftkit.metrics.accuracy import Accuracy
from ftkit.metrics.base import Headline, Metric, compact
from ftkit.metrics.bootstrap import interval, paired_interval
from ftkit.metrics.likelihood import AnswerLoss, BitsPerByte, Perplexity
from ftkit.metrics.numbers import Pearson, Rmse
from tests.metrics.test_directions import ANSWERS


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: Any, colours: Path) -> Path:
    """A folder with runs of one task: all weights, adapters, prompts; and one scored on other rows."""
    folder = tmp_path_factory.mktemp("compared")
    tree = {
        "task": "classification", "data": {"data_dir": str(colours)}, "engine": {"precision": "fp32"},
        "model": {"name_or_path": str(tiny("bert"))}, "metrics": ["accuracy", "macro_f1", "matthews"],
        "training": {"num_train_epochs": 8, "learning_rate": 5e-3, "per_device_train_batch_size": 8},
    }  # fmt: skip
    library.finetune({**tree, "method": "full", "output_dir": str(folder / "full")})
    short = {**tree["training"], "num_train_epochs": 1}
    library.finetune({**tree, "method": "lora", "training": short, "output_dir": str(folder / "lora")})
    prompt = {**tree, "model": {"name_or_path": str(tiny("gpt2"))}, "metrics": ["accuracy"]}
    del prompt["training"]
    library.evaluate({**prompt, "method": "prompt", "output_dir": str(folder / "prompt")})
    return folder


def broken_stream(path: Path) -> None:
    """The content of a zip file, not its frame."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        first = file.infolist()[0]
    start = first.header_offset + 30 + len(first.filename) + 20
    content[start : start + first.compress_size] = b"\xff" * first.compress_size
    path.write_bytes(content)


def test_methods_stand_in_one_table(ftkit: Any, runs: Path) -> None:
    done = ftkit("compare", "full", "lora/", "prompt", cwd=runs)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    scores = {
        name: json.loads((runs / name / "metrics.json").read_text()) for name in ("full", "lora", "prompt")
    }
    start = lines.index("Scores on test (15 rows)")
    assert lines[start + 1].split() == ["run", "accuracy", "macro_f1", "matthews"]
    for line, name in zip(lines[start + 2 :], scores, strict=False):
        values = [scores[name]["metrics"].get(metric) for metric in ("accuracy", "macro_f1", "matthews")]
        assert line.split() == [name, *(f"{value['value']:.4f}" if value else "-" for value in values)]
    assert [line.split()[:2] for line in lines[2:5]] == [
        ["full", "full"], ["lora", "lora"], ["prompt", "prompt"]
    ]  # fmt: skip
    start = lines.index("Difference to full, with its 95 % interval over the rows")
    assert [line.split()[:2] for line in lines[start + 2 :]] == [
        ["lora", "accuracy"], ["lora", "macro_f1"], ["lora", "matthews"], ["prompt", "accuracy"]
    ]  # fmt: skip


def test_command_and_python_say_the_same(ftkit: Any, runs: Path) -> None:
    printed = json.loads(ftkit("compare", runs / "full", runs / "lora", "--json").stdout)
    found = library.compare([runs / "full", library.Run.load(runs / "lora")])
    assert printed == found.to_json()
    assert (printed["split"], printed["rows"], printed["against"]) == ("test", 15, str(runs / "full"))
    assert [run["method"] for run in printed["runs"]] == ["full", "lora"]
    assert printed["runs"][1]["trained_parameters"] < printed["runs"][0]["trained_parameters"]
    difference = printed["differences"][str(runs / "lora")]
    assert set(difference) == {"accuracy", "macro_f1", "matthews"}
    for name, one in difference.items():
        values = [run["metrics"][name]["value"] for run in printed["runs"]]
        assert one["value"] == pytest.approx(values[1] - values[0])
        assert one["low"] <= one["value"] <= one["high"]


def test_markdown_for_pull_requests(ftkit: Any, runs: Path) -> None:
    lines = ftkit("compare", "full", "lora", "--markdown", cwd=runs).stdout.splitlines()
    at = lines.index("Scores on test (15 rows)")
    assert lines[at + 1 : at + 4] == [
        "",
        "| run | accuracy | macro_f1 | matthews |",
        "|---|---:|---:|---:|",
    ]
    assert lines[at + 4].startswith("| full | ")


def test_folders_that_eval_wrote(ftkit: Any, runs: Path, colours: Path) -> None:
    """The rows are what counts, not where a file lies or what it is called."""
    other = runs / "other.csv"
    other.write_text((colours / "validation.csv").read_text())
    found = [
        library.evaluate(runs / name, [f"data.test_file={path}", "metrics=[micro_f1]"])
        for name, path in (("full", other), ("lora", colours / "validation.csv"))
    ]
    comparison = library.compare(found)
    assert comparison.to_json() == library.compare([one.folder for one in found]).to_json()
    assert comparison.headlines == ("micro_f1",)
    assert comparison.results[0].metrics["rows"] == 15
    assert any(one.startswith("data.test_file: ") for one in comparison.results[0].metrics["changes"])
    (difference,) = comparison.differences[str(found[1].folder)].values()
    assert difference.low is not None


def test_other_rows_are_refused(runs: Path) -> None:
    validation = library.evaluate(runs / "lora", split="validation")
    with pytest.raises(UsageError, match="not of the same rows") as raised:
        library.compare([runs / "full", validation])
    assert "15 test rows, SHA-256" in str(raised.value)
    assert "15 validation rows, SHA-256" in str(raised.value)


def test_an_evaluation_of_another_threshold_has_a_folder_of_its_own(
    ftkit: Any, tmp_path: Path, tiny: Any, colours: Path
) -> None:
    run = library.finetune(
        {
            "task": {"type": "classification", "multi_label": True}, "method": "full",
            "model": {"name_or_path": str(tiny("bert"))}, "data": {"data_dir": str(colours)},
            "engine": {"precision": "fp32"}, "training": {"max_steps": 2}, "metrics": ["hamming_loss"],
            "output_dir": str(tmp_path / "run"),
        },
    )  # fmt: skip
    usual, bold = library.evaluate(run), library.evaluate(run, ["task.threshold=0.1"])
    assert usual.folder != bold.folder == library.evaluate(run, ["task.threshold=0.1"]).folder
    assert bold.metrics["changes"] == ["task.threshold: 0.5 -> 0.1"]
    scored = library.evaluate(run, ["metrics=[micro_f1]"])
    assert scored.folder != usual.folder
    with pytest.raises(UsageError, match="no metric in common"):
        library.compare([usual, scored])
    found = library.compare([run, bold]).to_json()
    assert found["runs"][1]["changes"] == ["task.threshold: 0.5 -> 0.1"]
    # All labels for every row: more of what less is better of.
    (difference,) = found["differences"].values()
    assert difference["hamming_loss"]["value"] > 0
    assert difference["hamming_loss"]["better"] is False
    assert ftkit("compare", run.folder, bold.folder).stdout.rstrip().endswith("worse")
    assert ftkit("compare", bold.folder, run.folder).stdout.rstrip().endswith("better")


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (lambda run: (run / "metrics.json").unlink(), 2, "the run has no scores\n  score it: ftkit eval"),
        (lambda run: (run / "metrics.json").write_text("{"), 3, "the scores cannot be read"),
        (lambda run: (run / "metrics.json").write_text('{"metrics": {}}'), 3, "of which rows they are"),
        (
            lambda run: (run / "metrics.json").write_text(
                (run / "metrics.json").read_text().replace('"value": ', '"value": "a", "was": ')
            ),
            3,
            "the scores are damaged",
        ),
        (
            lambda run: numpy.savez(run / "counts.npz", accuracy=numpy.ones((15, 2))),
            3,
            "counts.npz does not give the accuracy of metrics.json",
        ),
        (
            lambda run: numpy.savez(run / "counts.npz", accuracy=numpy.ones(())),
            3,
            "does not give the accuracy",
        ),
        (
            lambda run: numpy.savez(run / "counts.npz", macro_f1=numpy.ones((15, 7))),
            3,
            "not give the macro_f1",
        ),
        (lambda run: broken_stream(run / "counts.npz"), 3, "counts.npz: the file is damaged"),
        (lambda run: (run / "counts.npz").write_bytes(b"PK not a zip"), 3, "counts.npz: the file is damaged"),
        (
            lambda run: numpy.savez(run / "counts.npz", accuracy=numpy.ones((3, 2))),
            3,
            "counts.npz does not give the accuracy of metrics.json",
        ),
    ],
)
def test_damaged_scores_are_refused(
    change: Any, code: int, says: str, ftkit: Any, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "lora", tmp_path / "copy")
    change(tmp_path / "copy")
    done = ftkit("compare", runs / "full", tmp_path / "copy")
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["full"], "at least two"),
        (["full", "full/"], "full is named twice"),
        (["full", "./lora", "lora"], "lora is named twice, also as ./lora"),
        (["full", "nothing"], "nothing"),
        (["full", "notes"], "notes"),
    ],
)
def test_what_is_no_run_is_refused(names: list[str], says: str, ftkit: Any, runs: Path) -> None:
    (runs / "notes").mkdir(exist_ok=True)
    done = ftkit("compare", *names, cwd=runs)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_scores_of_an_older_version_have_no_interval(ftkit: Any, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "lora", tmp_path / "old")
    (tmp_path / "old/counts.npz").unlink()
    done = ftkit("compare", runs / "full", tmp_path / "old")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not known") == 3
    (difference, *_) = (
        library.compare([runs / "full", tmp_path / "old"]).differences[str(tmp_path / "old")].values()
    )
    assert difference.low is difference.better is None


def test_the_interval_is_the_paired_bootstrap_of_scipy() -> None:
    """Of 400 rows, one model has 300 right, another 280 of the same: far narrower than two intervals are."""
    generator = numpy.random.default_rng(3)
    hard = generator.random(400)
    ours, theirs = hard < 0.75, hard < 0.70
    ours[:10] ^= True

    def counts(right: Any) -> Any:
        return Accuracy().counts(["x"] * 400, ["x" if one else "y" for one in right], ["x", "y"])

    low, high = paired_interval(Accuracy(), counts(ours), counts(theirs))
    known = bootstrap(
        (ours.astype(float), theirs.astype(float)),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        paired=True, method="percentile", n_resamples=4000, rng=generator,
    ).confidence_interval  # fmt: skip
    assert (low, high) == pytest.approx((known.low, known.high), abs=5e-3)
    alone = interval(Accuracy().from_counts, counts(ours))
    assert high - low < 0.7 * (alone[1] - alone[0])


def test_the_interval_of_scores_that_are_no_means() -> None:
    generator = numpy.random.default_rng(4)
    true = generator.normal(size=300)
    ours, theirs = (true + generator.normal(size=300) * noise for noise in (0.5, 0.6))
    for metric, statistic in (
        (Pearson(), lambda t, a, b: numpy.corrcoef(t, a)[0, 1] - numpy.corrcoef(t, b)[0, 1]),
        (Rmse(), lambda t, a, b: ((t - a) ** 2).mean() ** 0.5 - ((t - b) ** 2).mean() ** 0.5),
    ):
        counts = [metric.counts(true.tolist(), said.tolist(), []) for said in (ours, theirs)]
        low, high = paired_interval(metric, *counts)
        known = bootstrap(
            (true, ours, theirs), statistic, paired=True, vectorized=False, method="percentile",
            n_resamples=2000, rng=generator,
        ).confidence_interval  # fmt: skip
        assert (low, high) == pytest.approx((known.low, known.high), abs=0.1 * (known.high - known.low))


@pytest.mark.parametrize("name", [n for n, kind in discover(Metric).items() if issubclass(kind, Headline)])
def test_the_same_scores_do_not_differ(name: str) -> None:
    metric = discover(Metric)[name](type=name)
    assert isinstance(metric, Headline)
    answer = metric.answers[0]
    right, wrong = ANSWERS[answer]
    counts = metric.counts(right, wrong, ["X", "Y"])
    assert paired_interval(metric, counts, counts) == (0, 0)


@pytest.mark.parametrize(
    ("counts", "kind"),
    [([[0, 1], [255, 3]], "uint8"), ([[0, 256]], "float64"), ([[-1]], "float64"), ([[0.5]], "float64")],
)
def test_counts_are_kept_small_where_they_are(counts: Any, kind: str) -> None:
    counts = numpy.array(counts, dtype=float)
    assert compact(counts).dtype == kind
    assert (compact(counts) == counts).all()


def test_a_wrong_file_of_counts_is_no_pickle(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "lora", tmp_path / "evil")
    numpy.savez(tmp_path / "evil/counts.npz", accuracy=numpy.array([object()] * 15))
    with pytest.raises(InputError, match="damaged"):
        library.compare([runs / "full", tmp_path / "evil"])


def test_an_evaluation_is_found_by_any_path(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = library.evaluate(runs / "lora")
    (runs / "best").symlink_to(found.folder)
    monkeypatch.chdir(found.folder)
    by_path = [  # a folder, or the file that a gate's baseline names
        library.compare([runs / "full", path])
        for path in (".", f"../{found.folder.name}", found.folder / "metrics.json", runs / "best")
    ]
    (runs / "best").unlink()
    names = {next(iter(one.differences[one.results[1].name].values())) for one in by_path}
    assert len(names) == 1


def test_a_recipe_stands_for_its_run_as_it_was_made(runs: Path, tmp_path: Path) -> None:
    recipe = (runs / "lora/recipe.yaml").read_text()
    (tmp_path / "edited.yaml").write_text(recipe.replace("seed: 42", "seed: 999"))
    result = library.compare([runs / "full", tmp_path / "edited.yaml"]).results[1]
    assert result.to_json()["seed"] == 42


def test_losses_of_other_tokens_have_no_verdict() -> None:
    """A tokenizer with longer tokens has higher losses of each, whatever the model knows."""
    ours, theirs = (numpy.array([[loss, tokens, 9.0]] * 4) for loss, tokens in ((8.0, 2.0), (9.0, 4.0)))
    assert not AnswerLoss().comparable(ours, theirs)
    assert not Perplexity().comparable(ours, theirs)
    assert BitsPerByte().comparable(ours, theirs)
    assert Perplexity().comparable(ours, ours * [2, 1, 1])


def test_an_infinite_score_is_no_number(runs: Path, tmp_path: Path, ftkit: Any) -> None:
    shutil.copytree(runs / "lora", tmp_path / "lost")
    metrics = json.loads((tmp_path / "lost/metrics.json").read_text())
    metrics["metrics"]["accuracy"]["value"] = None
    (tmp_path / "lost/metrics.json").write_text(json.dumps(metrics))
    done = ftkit("compare", runs / "full", "lost", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "infinite" in done.stdout
    (line,) = [one for one in done.stdout.splitlines() if one.split()[:2] == ["lost", "accuracy"]]
    assert line.split()[2:] == ["not", "known", "not", "known"]
