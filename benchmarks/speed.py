"""Speed of ftkit beside plain transformers and trl, on real data and real weights.

    python benchmarks/speed.py --data ../shared/data                 # every row
    python benchmarks/speed.py --only P1 P4 --pairs 5 --steps 20
    python benchmarks/speed.py --only P7 --trl /path/to/trl
    python benchmarks/speed.py --scaling                             # cost against size

A row compares two sides, A and B, in pairs that take turns in who is first (save P8, where B is
the second start after A). Every measurement is a process of its own on the same cores, with the
same number of threads. The ratio of a pair is B's seconds over A's. Only tokens that are no padding
are counted. A row is measured as a whole and replaces what the results held of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import quality
from quality import MODEL

Figures = dict[str, Any]
Side = Callable[[int], Figures]
"""Measures one side of a pair, given the number of the pair."""

SEED = 1
WARM_UP = 3
"""Steps before the clock starts: the first ones compile kernels."""
LAST = 5
"""Steps whose mean loss is compared."""
TOLERANCE = 0.1
"""Share by which the losses of the two sides may differ: masks of dropout and rounding do."""
FEWEST_PAIRS = 5
START_TOKENS = 200
"""Mean tokens a row of the start-up row."""
SIZES = {"rows": (1_000, 10_000, 100_000), "length": (32, 128, 512), "batch": (2, 8, 32, 128)}
MIDDLE = {"rows": 10_000, "length": 128, "batch": 32}
"""What the other two are while one changes."""

BANKING = {"data": "banking77", "task": "classification", "batch": 32, "rate": 5e-4, "max_length": 128}
WNUT = {"data": "wnut17", "task": "ner", "batch": 32, "rate": 3e-4, "max_length": 512}
# What is trained, and how B differs: the length it pads to (None: the longest row of the batch).
TRAININGS: dict[str, tuple[Figures, Figures]] = {
    "P1": (BANKING, {"pad_to": 128, "bf16": False}),
    "P1b-fp32": (BANKING, {"pad_to": None, "bf16": False}),
    "P1b-bf16": (BANKING, {"pad_to": None, "bf16": True}),
    "P2": (WNUT, {"pad_to": None, "bf16": False}),
}
ROWS: dict[str, tuple[str, str, str]] = {
    "P1": ("banking77, full, batch 32", "ftkit", "Trainer as in the example script: padded to 128, fp32"),
    "P1b-fp32": ("banking77, full, batch 32", "ftkit", "Trainer, dynamic padding, fp32"),
    "P1b-bf16": ("banking77, full, batch 32", "ftkit", "Trainer, dynamic padding, bf16"),
    "P2": ("wnut17, full, batch 32", "ftkit", "Trainer as in the example script: dynamic padding, fp32"),
    "P4": ("predict short texts", "ftkit", "pipeline, batch 32, file order"),
    "P4-sorted": ("predict short texts", "ftkit", "pipeline, batch 32, sorted by length"),
    "P7": ("--help", "ftkit", "trl"),
    "P8": ("start on rows of about 200 tokens (wanted: at most 0.5)", "first start", "second start"),
}


def main() -> None:
    """Measure the rows asked for, or the cost against size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    groups = list(dict.fromkeys(row.partition("-")[0] for row in ROWS))
    parser.add_argument("--only", nargs="+", choices=groups, default=groups, metavar="ROW")
    parser.add_argument("--pairs", type=int, default=FEWEST_PAIRS)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps that are timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of P8")
    parser.add_argument("--texts", type=int, default=10_000, help="texts of P4")
    parser.add_argument("--trl", default=shutil.which("trl"), help="the trl command of P7")
    parser.add_argument("--scaling", action="store_true", help="cost against rows, length and batch")
    parser.add_argument("--out", type=Path, default=quality.RESULTS, help="folder of the results")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        pin(args.job["threads"])
        print(json.dumps(JOBS[args.job["tool"]](args.job)))
        return
    with tempfile.TemporaryDirectory() as name:
        if args.scaling:
            scale(args, Path(name))
            return
        for row in ROWS:
            group = row.partition("-")[0]
            if group in args.only and (sides := SIDES[group](args, row, Path(name))):
                measure(args, row, *sides)


# Measuring ------------------------------------------------------------------------------


def measure(args: argparse.Namespace, row: str, a: Side, b: Side) -> None:
    """Measure the pairs of a row and write them."""
    what, *names = ROWS[row]
    pairs: list[Figures] = []
    for number in range(args.pairs * (4 if row == "P7" else 1)):
        turns = [("a", a), ("b", b)]
        if number % 2 and row != "P8":
            turns.reverse()
        pair: Figures = {"first": turns[0][0]}
        for key, side in turns:
            # Whatever else runs takes its share of the cores: the figures say so.
            load = round(os.getloadavg()[0], 2)
            pair[key] = {**side(number), "load_before": load}
            name = names[key == "b"]
            said = f"{quantity([pair[key]])}{last_loss(pair[key])}, load {load}"
            print(f"{row} pair {number + 1}, {name}: {said}", flush=True)
        pair |= compare(pair["a"], pair["b"])
        pairs.append(pair)
    measured = {"steps": args.steps, "threads": args.threads, "date": time.strftime("%Y-%m-%d")}
    if row == "P8":
        measured["rows"] = args.rows
    if row in {"P4", "P4-sorted"}:
        measured["texts"] = args.texts
    if row == "P7":
        measured["trl"] = version_beside(args.trl, "trl")
    figures = {"what": what, "a": names[0], "b": names[1], **measured, **summary(pairs)}
    figures |= {"machine": machine(), "pairs": pairs}
    results = read(args.out)
    results.setdefault("rows", {})[row] = figures
    results["rows"] = {name: results["rows"][name] for name in ROWS if name in results["rows"]}
    write(args.out, results)
    print(f"{row}: B / A {ratio_text(figures['ratio'])}; checks: {findings(figures)}", flush=True)
    for note in shares(figures):
        print(f"{row}: {note}", flush=True)


def process(
    job: Figures,
    args: argparse.Namespace,
    *,
    python: str = sys.executable,
    script: str = __file__,
    **environment: str,
) -> Figures:
    """Do a job of a script in a process of its own; returns what it measured."""
    threads = str(args.threads)
    fixed = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    fixed |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), threads)
    job = {**job, "threads": args.threads, "started": time.time()}
    command = [python, script, "--job", json.dumps(job)]
    environment = {**os.environ, **fixed, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{job['tool']} failed with code {done.returncode}:\n{done.stderr[-5000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def pin(threads: int) -> None:
    """Keep the process on as many cores as it has threads, always the same ones."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def training_sides(args: argparse.Namespace, row: str, folder: Path) -> tuple[Side, Side]:
    """ftkit and plain Trainer on the same rows in the same order."""
    same, other = TRAININGS[row]
    settings = {key: value for key, value in same.items() if key != "data"}
    files = quality.write_splits(args.data, same["data"], folder)
    job = {**settings, "train": files["train"], "warm_up": WARM_UP, "steps": args.steps}
    return (
        lambda _: process({"tool": "ftkit", **job}, args),
        lambda _: process({"tool": "plain", **job, **other}, args),
    )


def prediction_sides(args: argparse.Namespace, row: str, folder: Path) -> tuple[Side, Side]:
    """`ftkit.predict` and a pipeline on the same classifier."""
    run, file = folder / "classifier", folder / "texts.json"
    if not run.exists():
        files = quality.write_splits(args.data, "banking77", folder)
        rows = list(chain(*(quality.read_banking77(args.data, split) for split in ("train", "test"))))
        texts = [rows[number % len(rows)]["text"] for number in range(args.texts)]
        file.write_text(json.dumps(texts), encoding="utf-8")
        # Trained a little, because a head of random numbers has hardly a favourite among 77 labels.
        steps = {"warm_up": 0, "steps": 10 * args.steps}
        process({"tool": "classifier", **BANKING, **steps, "train": files["train"], "run": str(run)}, args)
    job = {"run": str(run), "texts": str(file)}
    return (
        lambda _: process({"tool": "predict", **job}, args),
        lambda _: process({"tool": "pipeline", **job, "sorted": row == "P4-sorted"}, args),
    )


def help_sides(args: argparse.Namespace, row: str, folder: Path) -> tuple[Side, Side] | None:
    """The help of the two command lines."""
    if not args.trl or not Path(args.trl).is_file():
        print("P7 is skipped: there is no trl; name its command with --trl PATH")
        return None
    commands = [str(Path(sys.executable).with_name("ftkit")), str(Path(args.trl).absolute())]

    def side(command: str) -> Side:
        def measured(_: int) -> Figures:
            started, used = time.perf_counter(), quality.cpu_seconds()
            subprocess.run([command, "--help"], capture_output=True, check=True)
            wall = time.perf_counter() - started
            return {"seconds": round(wall, 4), "cpu_seconds": round(quality.cpu_seconds() - used, 4)}

        measured(0)  # Files that nobody has read yet are slow.
        return measured

    return side(commands[0]), side(commands[1])


def start_sides(args: argparse.Namespace, row: str, folder: Path) -> tuple[Side, Side]:
    """Two starts of one recipe; every pair has data and a cache of its own, so the first finds nothing.

    What ftkit keeps between two starts, if anything, must be in the run folder or in a cache that
    XDG_CACHE_HOME, HF_HOME or HF_DATASETS_CACHE moves.
    """
    words = words_of(args.data)
    a_word = tokens_a_word(words)
    low, high = (round(share * START_TOKENS / a_word) for share in (0.5, 1.5))

    def start(number: int) -> Figures:
        place = folder / f"start-{number}"
        cache = {name: str(place / "cache") for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_DATASETS_CACHE")}
        job = {
            "task": "classification",
            "batch": 8,
            "rate": 1e-4,
            "max_length": 512,
            "warm_up": 0,
            "steps": 1,
        }
        paths = {"train": str(place / "train.jsonl"), "folder": str(place / "run")}
        figures = process({"tool": "start", **job, **paths}, args, **cache)
        # The tokens of one step say nothing here.
        return {key: figures[key] for key in ("seconds", "cpu_seconds", "ready", "mean_length", "peak_mb")}

    def first(number: int) -> Figures:
        write_rows(folder / f"start-{number}", words, (low, high), args.rows, seed=number)
        return start(number)

    def second(number: int) -> Figures:
        figures = start(number)
        shutil.rmtree(folder / f"start-{number}")
        return figures

    # The first process reads torch from the disk.
    write_rows(folder / "start--1", words, (low, high), 100, seed=args.pairs)
    second(-1)
    return first, second


SIDES: dict[str, Callable[[argparse.Namespace, str, Path], tuple[Side, Side] | None]] = {
    "P1": training_sides,
    "P1b": training_sides,
    "P2": training_sides,
    "P4": prediction_sides,
    "P7": help_sides,
    "P8": start_sides,
}


def scale(args: argparse.Namespace, folder: Path) -> None:
    """Measure training steps over rows that all have the same length, so that none is padded.

    The rows are texts of words that are one token each, so they go through all of ftkit.
    """
    words = words_of(args.data)
    vocabulary = tokenizer_of_model().get_vocab()
    whole = sorted({word.lower() for word in words if word.lower() in vocabulary})
    for cell in sizes():
        rows, length, batch = (cell[key] for key in SIZES)
        place = folder / f"{rows}-{length}"
        if not place.exists():
            write_rows(place, whole, (length - 2, length - 2), rows, seed=SEED)
        if (needed := memory_needed(batch, length)) > (free := memory_free()):
            cell["skipped"] = f"needs about {needed:.0f} GB of memory, {free:.0f} GB are free"
        else:
            # Large steps are steady, and slow: fewer of them do.
            steps = max(2, min(args.steps, 65_536 // (batch * length)))
            job = {"task": "classification", "batch": batch, "rate": 1e-4, "max_length": 512}
            job |= {"train": str(place / "train.jsonl"), "warm_up": WARM_UP, "steps": steps}
            figures = process({"tool": "ftkit", **job}, args)
            kept = ("ready", "seconds", "cpu_seconds", "tokens_per_s", "mean_length", "precision", "peak_mb")
            cell |= {"steps": steps, **{key: figures[key] for key in kept}}
        print(f"{cell}", flush=True)
        results = read(args.out)
        cells = [one for one in results.get("scaling", {}).get("cells", []) if not same_size(one, cell)]
        cells = sorted([*cells, cell], key=lambda one: [one[key] for key in SIZES])
        results["scaling"] = {"machine": machine(), "threads": args.threads, "cells": cells}
        write(args.out, results)


def sizes() -> list[Figures]:
    """Rows, length and batch of every cell: one of them changes, the others are in the middle."""
    found: list[Figures] = []
    for name, values in SIZES.items():
        found += [{**MIDDLE, name: value} for value in values]
    return [cell for place, cell in enumerate(found) if cell not in found[:place]]


def same_size(one: Figures, other: Figures) -> bool:
    """Whether two measurements are of the same size."""
    return all(one[key] == other[key] for key in SIZES)


def memory_needed(batch: int, length: int) -> float:
    """About how many GB a training step of the model takes: 6 layers, 12 heads, 384 numbers a token.

    Attention with dropout keeps three matrices of length x length for each head.
    """
    layers, heads, floats_a_token = 6, 12, 8_000
    return 1.5 + 4 * layers * batch * length * (floats_a_token + 3 * heads * length) / 1e9


def memory_free() -> float:
    """GB that can be used without taking them from others; infinite where nobody tells."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    return 0.8 * kilobytes[0] / 1e6 if kilobytes else float("inf")


# Synthetic texts ------------------------------------------------------------------------


def words_of(data: Path) -> list[str]:
    """The words of wikitext's validation text, as often as they stand there."""
    text = (data / "wikitext2_valid/valid.txt").read_text(encoding="utf-8")
    return [word for word in text.split() if word.isalpha()]


def tokenizer_of_model() -> Any:
    """The model's tokenizer without transformers."""
    from tokenizers import Tokenizer

    from ftkit.models.source import ModelSource

    folder = ModelSource(name_or_path=MODEL).locate().folder
    assert folder is not None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # The file itself says to cut at 128 tokens and to pad to them.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokens_a_word(words: Sequence[str]) -> float:
    """Mean number of tokens of a word."""
    some = words[:20_000]
    return len(tokenizer_of_model().encode(" ".join(some), add_special_tokens=False).ids) / len(some)


def write_rows(folder: Path, words: Sequence[str], counts: tuple[int, int], rows: int, *, seed: int) -> None:
    """Write a jsonl file of texts with one of four labels."""
    folder.mkdir()
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for number, text in enumerate(random_texts(words, counts, rows, seed)):
            file.write(json.dumps({"text": text, "label": "abcd"[number % 4]}) + "\n")


def random_texts(words: Sequence[str], counts: tuple[int, int], rows: int, seed: int) -> Iterator[str]:
    """Texts of random words; how many words each has lies between the two counts."""
    generator = random.Random(seed)
    for _ in range(rows):
        yield " ".join(generator.choices(words, k=generator.randint(*counts)))


# Jobs: each runs in a process of its own --------------------------------------------------


class Done(Exception):
    """Training is over: what follows it (saving, reloading, scoring) is not of interest here."""


def stopwatch(job: Figures) -> Any:
    """A callback that times optimizer steps and counts what the model is given.

    The same one measures both sides. ftkit's engine is a Trainer, so all it takes is one more
    callback; the counting is a hook on the model, which sees every micro-batch (on ftkit's side one on
    its meter: it gives decoders no mask, and without it padding cannot be told). The clock runs from
    the end of the last warm-up step to the end of the last step: data loading, padding, forward,
    backward and optimizer are in it, tokenization and saving are not.
    """
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        def __init__(self) -> None:
            self.began = self.ready = self.first = self.seconds = self.cpu_seconds = 0.0
            self.rows = self.tokens = self.padded = self.squares = 0
            self.watched = False
            self.losses: list[float] = []
            self.digests = [0]
            self.stamps: list[float] = []

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            self.model = model
            if not self.watched:
                model.register_forward_pre_hook(lambda _, __, inputs: self.count(inputs), with_kwargs=True)

        def watch(self, meter: Any) -> None:
            self.watched, count_pass = True, meter.count_pass

            def counted(part: Figures, *, padded: bool) -> None:
                self.count(part, padded=padded)
                count_pass(part, padded=padded)

            meter.count_pass = counted

        def count(self, inputs: Figures, *, padded: bool = True) -> None:
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            # The sum of a step's token ids tells whether both sides saw the same rows in it.
            self.digests[-1] += int((ids * mask).sum())
            if self.began or not job["warm_up"]:
                lengths = mask.sum(dim=1)
                self.rows += len(ids)
                self.tokens += int(lengths.sum())
                self.squares += int((lengths * lengths).sum())
                self.padded += ids.numel() if padded else int(lengths.sum())

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.ready = self.ready or time.time()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.first = self.first or time.time()
            self.digests.append(0)
            self.stamps.append(time.perf_counter())
            if state.global_step == job["warm_up"]:
                self.began, self.used = time.perf_counter(), time.process_time()
            elif state.global_step == job["warm_up"] + job["steps"] and self.began:
                self.seconds = time.perf_counter() - self.began
                self.cpu_seconds = time.process_time() - self.used

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                self.losses.append(round(logs["loss"], 4))

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            raise Done

    return Stopwatch()


def steps_of(job: Figures) -> Figures:
    """The arguments that both sides train with. Every step is logged, to compare the losses."""
    return {
        "max_steps": job["warm_up"] + job["steps"],
        "per_device_train_batch_size": job["batch"],
        "learning_rate": job["rate"],
        "logging_steps": 1,
        "save_strategy": "no",
    }


def recipe_of(job: Figures, folder: str) -> Figures:
    """What ftkit trains, with its defaults for all that is not said."""
    return {
        "task": job["task"],
        "model": {"name_or_path": MODEL, "max_length": job["max_length"]},
        "data": {"train_file": job["train"]},
        "method": "full",
        "training": steps_of(job),
        "output_dir": folder,
        "seed": SEED,
    }


def train_ftkit(job: Figures, recipe: Figures) -> tuple[Any, Any]:
    """Fine-tune until the last step; returns the stopwatch and the engine."""
    import ftkit
    from ftkit.training.engine import Engine

    clock, engines, make = stopwatch(job), [], Engine.__init__

    # All that is changed in ftkit: the engine gets a further callback, and its meter is listened to.
    def with_clock(engine: Any, *args: Any, callbacks: list[Any], **options: Any) -> None:
        make(engine, *args, callbacks=[*callbacks, clock], **options)
        clock.watch(engine.meter)
        engines.append(engine)

    Engine.__init__ = with_clock  # type: ignore[method-assign]
    with suppress(Done):
        ftkit.finetune(recipe, overwrite=True)
    return clock, engines[0]


def run_ftkit(job: Figures) -> Figures:
    """Train with ftkit."""
    with tempfile.TemporaryDirectory() as folder:
        clock, engine = train_ftkit(job, recipe_of(job, folder))
    return training_figures(job, clock, "bf16" if engine.args.bf16 else "fp32")


def run_plain(job: Figures) -> Figures:
    """Train with the stock Trainer on the rows that ftkit takes for the same steps."""
    import transformers as hf
    from datasets import load_dataset

    from ftkit.models.source import ModelSource
    from ftkit.tagging import tag_names
    from ftkit.training.batches import EpochBatches

    # What ftkit does to make a CPU fast must not help here.
    assert "ftkit.training.engine" not in sys.modules
    source = ModelSource(name_or_path=MODEL).locate().folder
    tokenizer = hf.AutoTokenizer.from_pretrained(source)
    with tempfile.TemporaryDirectory() as folder:
        rows = load_dataset("json", data_files={"train": job["train"]}, cache_dir=folder)
        encode = {"classification": quality.encode_texts, "ner": quality.encode_words}[job["task"]]
        rows, labels = encode(rows, tokenizer, job["max_length"])
        batches = EpochBatches(total=len(rows["train"]), size=job["batch"], seed=SEED, rank=0, processes=1)
        steps = job["warm_up"] + job["steps"]
        if steps > len(rows["train"]) // job["batch"]:
            sys.exit(f"--steps: an epoch has {len(batches)} steps, {WARM_UP} of them to warm up")
        train = rows["train"].select([row for batch in islice(batches, steps) for row, *_ in batch])
        if job["task"] == "ner":
            # With the tags in ftkit's order the new heads are the same, and so are the losses.
            names = tag_names(sorted({label.partition("-")[2] for label in labels if label != "O"}))
            place = {-100: -100, **{number: names.index(label) for number, label in enumerate(labels)}}
            train = train.map(lambda row: {"labels": [place[number] for number in row["labels"]]})
            labels = names
        if job["pad_to"]:
            # The example script pads when it tokenizes.
            train = train.map(
                lambda row: dict(tokenizer.pad(row, padding="max_length", max_length=job["pad_to"]))
            )
            collator = hf.default_data_collator
        else:
            names = {"classification": "DataCollatorWithPadding", "ner": "DataCollatorForTokenClassification"}
            collator = getattr(hf, names[job["task"]])(tokenizer)
        head = {"classification": "Sequence", "ner": "Token"}[job["task"]]
        hf.set_seed(SEED)
        model = getattr(hf, f"AutoModelFor{head}Classification").from_pretrained(
            source, num_labels=len(labels)
        )
        arguments = hf.TrainingArguments(
            output_dir=folder,
            seed=SEED,
            use_cpu=not accelerated(),
            bf16=job["bf16"],
            report_to="none",
            disable_tqdm=True,
            # The rows are in ftkit's order already.
            train_sampling_strategy="sequential",
            **steps_of(job),
        )
        clock = stopwatch(job)
        trainer = hf.Trainer(model, arguments, train_dataset=train, data_collator=collator, callbacks=[clock])
        trainer.remove_callback(hf.PrinterCallback)
        with suppress(Done):
            trainer.train()
    return training_figures(job, clock, "bf16" if job["bf16"] else "fp32")


def accelerated() -> bool:
    """Whether there is more than a CPU."""
    import torch

    return bool(torch.accelerator.is_available())


def training_figures(job: Figures, clock: Any, precision: str) -> Figures:
    """What the stopwatch counted, and how far it is from the machine's rate."""
    import torch

    rates = matmul_rates()
    config = clock.model.config
    # The encoder's layers; embeddings are looked up, and the head's share is far below a percent.
    weights = sum(p.numel() for name, p in clock.model.named_parameters() if ".encoder." in name)
    flops = training_flops(weights, clock.tokens, clock.squares, config.hidden_size, config.num_hidden_layers)
    if job["tool"] == "ftkit" and job["task"] == "classification":
        # In the last layer it computes all tokens to keys, values and queries, and one a row to the end.
        last = f".encoder.layer.{config.num_hidden_layers - 1}."
        parts = {name: p.numel() for name, p in clock.model.named_parameters() if last in name}
        after = sum(size for name, size in parts.items() if ".attention.self." not in name)
        flops -= training_flops(
            after, clock.tokens - clock.rows, clock.squares - clock.tokens, config.hidden_size, 1
        )
    rate = flops / clock.seconds / 1e9
    return {
        "ready": round(clock.ready - job["started"], 1),
        "seconds": round(clock.seconds, 3),
        "cpu_seconds": round(clock.cpu_seconds, 3),
        "examples_per_s": round(clock.rows / clock.seconds, 2),
        "tokens_per_s": round(clock.tokens / clock.seconds, 1),
        "rows": clock.rows,
        "tokens": clock.tokens,
        "mean_length": round(clock.tokens / clock.rows, 1),
        "padded_tokens": clock.padded,
        "step_seconds": [round(end - start, 3) for start, end in pairwise(clock.stamps[-job["steps"] - 1 :])],
        "losses": clock.losses,
        "digests": clock.digests[:-1],
        "precision": precision,
        "threads": torch.get_num_threads(),
        "gflops": round(rate, 1),
        "matmul_gflops": {name: round(value, 1) for name, value in rates.items()},
        "share": round(rate / rates[precision], 4),
        "peak_mb": peak_mb(),
    }


def training_flops(weights: int, tokens: int, squares: int, hidden: int, layers: int) -> int:
    """Operations of forward and backward passes over real tokens.

    Args:
        weights: Parameters that every token is multiplied with.
        tokens: Tokens.
        squares: Sum of the squared lengths of the rows.
        hidden: Numbers a token.
        layers: Layers with attention: two products of 2 * length^2 * hidden each, and twice that
            for their gradients.
    """
    return 6 * weights * tokens + 12 * layers * hidden * squares


def matmul_rates(size: int = 1024, times: int = 5) -> dict[str, float]:
    """GFLOP/s of the fastest of a few products of square matrices, by precision."""
    import torch

    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(2, size, size, dtype=dtype)
        seconds = []
        for _ in range(5 * times):
            started = time.perf_counter()
            torch.mm(a, b)
            seconds.append(time.perf_counter() - started)
        rates[name] = 2 * size**3 / min(seconds) / 1e9
    return rates


def peak_mb() -> int:
    """The most memory that the process held."""
    unit = 1_000_000 if platform.system() == "Darwin" else 1_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


def run_classifier(job: Figures) -> Figures:
    """Make the finished run that predicts."""
    import ftkit

    return {"steps": ftkit.finetune(recipe_of(job, job["run"])).manifest["training"]["steps"]}


def run_start(job: Figures) -> Figures:
    """Start a fine-tuning; seconds are those from the start of the process to the end of its first step."""
    clock, engine = train_ftkit(job, recipe_of(job, job["folder"]))
    lengths = [len(row["input_ids"]) for row in engine.rows.features]
    return {
        "seconds": round(clock.first - job["started"], 3),
        "ready": round(clock.ready - job["started"], 3),
        "cpu_seconds": round(time.process_time(), 3),
        "mean_length": round(statistics.mean(lengths), 1),
        "peak_mb": peak_mb(),
    }


def run_predict(job: Figures) -> Figures:
    """Predict with ftkit; loading the run is timed, on both sides."""
    from ftkit.prediction import predict

    return prediction_figures(job, lambda texts: [one.value for one in predict(job["run"], texts)])


def run_pipeline(job: Figures) -> Figures:
    """Predict with a pipeline."""
    from transformers import pipeline

    def ask(texts: list[str]) -> list[str]:
        answer = pipeline("text-classification", model=f"{job['run']}/model")
        order = list(range(len(texts)))
        if job["sorted"]:
            order.sort(key=lambda row: len(texts[row]))
        answers = answer([texts[row] for row in order], batch_size=32)
        labels = dict(zip(order, (one["label"] for one in answers), strict=True))
        return [labels[row] for row in range(len(texts))]

    return prediction_figures(job, ask)


def prediction_figures(job: Figures, ask: Callable[[list[str]], list[Any]]) -> Figures:
    """Time all texts, after a few that import and warm up."""
    texts = json.loads(Path(job["texts"]).read_text(encoding="utf-8"))
    ask(texts[:64])
    started, used = time.perf_counter(), time.process_time()
    labels = ask(texts)
    seconds, cpu = time.perf_counter() - started, time.process_time() - used

    from transformers import AutoTokenizer

    encoded = AutoTokenizer.from_pretrained(f"{job['run']}/model")(texts, truncation=True, max_length=512)
    tokens = sum(map(len, encoded["input_ids"]))
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "examples_per_s": round(len(texts) / seconds, 2),
        "tokens_per_s": round(tokens / seconds, 1),
        "labels": labels,
        "peak_mb": peak_mb(),
    }


JOBS: dict[str, Callable[[Figures], Figures]] = {
    "ftkit": run_ftkit,
    "plain": run_plain,
    "classifier": run_classifier,
    "predict": run_predict,
    "pipeline": run_pipeline,
    "start": run_start,
}


# Results --------------------------------------------------------------------------------


def compare(a: Figures, b: Figures) -> Figures:
    """Whether both sides of a pair did the same work; takes out what is needed for this alone."""
    found: Figures = {}
    if "digests" in a:
        found["same_rows"] = alike(a.pop("digests"), b.pop("digests"))
        found["loss"] = [round(statistics.mean(side["losses"][-LAST:]), 4) for side in (a, b)]
    if "labels" in a:
        found["same_labels"] = alike(a.pop("labels"), b.pop("labels"))
    return found


def alike(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Share of the positions that hold the same."""
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def summary(pairs: Sequence[Figures]) -> Figures:
    """Ratios over the pairs, and the weakest of each check."""
    found: Figures = {"ratio": ratios(pairs, "seconds"), "cpu_ratio": ratios(pairs, "cpu_seconds")}
    for check in ("same_rows", "same_labels"):
        if check in pairs[0]:
            found[check] = min(pair[check] for pair in pairs)
    if "loss" in pairs[0]:
        found["loss"] = [statistics.median(pair["loss"][side] for pair in pairs) for side in (0, 1)]
        found["loss_agrees"] = close(*found["loss"])
    return found


def close(one: float, other: float) -> bool:
    """Whether two losses agree roughly."""
    return abs(one - other) <= TOLERANCE * max(abs(one), abs(other))


def ratios(pairs: Sequence[Figures], quantity: str) -> dict[str, float]:
    """B over A: median, smallest and largest of the pairs."""
    values = [pair["b"][quantity] / pair["a"][quantity] for pair in pairs]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio_text(ratio: dict[str, float]) -> str:
    """`1.52 (1.47 to 1.60)`."""
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def quantity(sides: Sequence[Figures]) -> str:
    """What one side measured: the medians, and the best of what takes a moment only."""

    def median(key: str) -> float:
        return statistics.median(side[key] for side in sides)

    if "tokens_per_s" in sides[0]:
        return f"{median('tokens_per_s'):,.0f} tokens/s ({median('examples_per_s'):,.0f} examples/s)"
    best = [f" (best {min(side[key] for side in sides):.2f})" for key in ("seconds", "cpu_seconds")]
    wall, cpu = best if len(sides) > 1 else ("", "")
    return f"{median('seconds'):.2f} s{wall}, CPU {median('cpu_seconds'):.2f} s{cpu}"


def last_loss(figures: Figures) -> str:
    """The loss of one measurement, where there is one."""
    return f", loss {statistics.mean(figures['losses'][-LAST:]):.3f}" if "losses" in figures else ""


def findings(figures: Figures) -> str:
    """What was checked, in words."""
    said = []
    if "same_rows" in figures:
        said.append(f"same rows in {figures['same_rows']:.0%} of the steps")
    if "loss" in figures:
        a, b = figures["loss"]
        said.append(f"loss {a:.3f} and {b:.3f}{'' if figures['loss_agrees'] else ': THEY DIFFER'}")
    if "same_labels" in figures:
        said.append(f"same label for {figures['same_labels']:.2%}")
    return ", ".join(said) or "none"


def table(results: Figures) -> str:
    """The figures in Markdown."""
    lines = [
        "| row | what | A | B | pairs | seconds, B / A | CPU seconds, B / A | A | B | checks |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = results.get("rows", {})
    for row, figures in rows.items():
        pairs = figures["pairs"]
        few = " (a trial)" if len(pairs) < FEWEST_PAIRS else ""
        sides = [quantity([pair[side] for pair in pairs]) for side in ("a", "b")]
        cells = [row, figures["what"], figures["a"], figures["b"], f"{len(pairs)}{few}"]
        cells += [ratio_text(figures["ratio"]), ratio_text(figures["cpu_ratio"]), *sides, findings(figures)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Ratios: median (smallest to largest) of the pairs. Tokens: without padding.", ""]
    lines += [f"- {row}: {note}" for row, figures in rows.items() for note in notes(row, figures)]
    measured = [*rows.values(), *([results["scaling"]] if "scaling" in results else [])]
    lines += [
        f"- machine: {about}" for about in dict.fromkeys(machine_text(one["machine"]) for one in measured)
    ]
    if "scaling" in results:
        lines += ["", *scaling_table(results["scaling"])]
    return "\n".join([*lines, ""])


def notes(row: str, figures: Figures) -> Iterator[str]:
    """What else to know of a row: how it was measured, what ran beside, the share of the machine's rate."""
    loads = [pair[side]["load_before"] for pair in figures["pairs"] for side in ("a", "b")]
    settings = [f"{figures['steps']} steps a measurement"] if row in TRAININGS else []
    settings += [f"{figures[key]:,} {key}" for key in ("rows", "texts") if key in figures]
    settings += [f"trl {figures['trl']}"] if "trl" in figures else []
    settings += [f"{figures['threads']} threads"]
    beside = f"load before a measurement {min(loads)} to {max(loads)}"
    yield f"{figures['date']}; {', '.join(settings)}; {beside}"
    yield from shares(figures)


def shares(figures: Figures) -> Iterator[str]:
    """How much of the machine's rate each side of a training used."""
    for side in ("a", "b"):
        measured = [pair[side] for pair in figures["pairs"]]
        if "share" in measured[0]:
            precision = measured[0]["precision"]
            share = statistics.median(one["share"] for one in measured)
            gflops = statistics.median(one["gflops"] for one in measured)
            whole = statistics.median(one["matmul_gflops"][precision] for one in measured)
            padded = statistics.median(one["padded_tokens"] / one["tokens"] for one in measured)
            yield (
                f"{figures[side]}: {gflops:.0f} GFLOP/s over real tokens, {share:.0%} of the {whole:.0f} "
                f"of a {precision} matrix product; {padded:.2f} tokens with padding for a real one"
            )


def scaling_table(scaling: Figures) -> list[str]:
    """What a token costs by rows, length and batch."""
    lines = [
        f"Training steps of ftkit while one size changes; {scaling['threads']} threads. `ready` is the time",
        "from the start of the process to the first step; rows are read and tokenized in it.",
        "",
        "| rows | length | batch | ready, s | tokens/s | CPU microseconds a token |",
        "|---|---|---|---|---|---|",
    ]
    for name in SIZES:
        for cell in scaling["cells"]:
            if all(cell[other] == MIDDLE[other] for other in SIZES if other != name):
                cells = [f"{cell[key]:,}" for key in SIZES]
                if "skipped" in cell:
                    cells += ["", cell["skipped"], ""]
                else:
                    tokens = cell["tokens_per_s"] * cell["seconds"]
                    spent = 1e6 * cell["cpu_seconds"] / tokens
                    cells += [f"{cell['ready']:.1f}", f"{cell['tokens_per_s']:,.0f}", f"{spent:.0f}"]
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def machine() -> Figures:
    """What the figures were measured on."""
    packages = {name: version(name) for name in ("accelerate", "tokenizers")}
    return {**quality.machine(), **packages, "system": platform.platform()}


def machine_text(about: Figures) -> str:
    """The machine in a line."""
    return ", ".join(f"{name} {value}" for name, value in about.items())


def version_beside(command: str, package: str) -> str:
    """The version of a package in the environment of one of its commands."""
    python = Path(command).absolute().with_name("python")
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def read(folder: Path) -> Figures:
    """The results so far."""
    path = folder / "speed.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write(folder: Path, results: Figures) -> None:
    """Write the results and their table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "speed.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (folder / "speed.md").write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
