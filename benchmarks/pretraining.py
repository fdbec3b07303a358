"""Masked-language pretraining of a small BERT on banking77's texts, then classification from it.

    python benchmarks/pretraining.py --data ../shared/data --seeds 1 2 3

A seed trains three models: one by masked words on the training texts, a classifier that goes on from it, and
a classifier of the same architecture and tokenizer that begins with random weights. Both classifiers have the
same settings and are scored on the test split.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import quality

SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 128,
}
PRETRAINING = {"num_train_epochs": 50, "per_device_train_batch_size": 64, "learning_rate": 2e-3}
TRAINING = {"num_train_epochs": 10, "per_device_train_batch_size": 64, "learning_rate": 5e-4}
SCHEDULE = {"warmup_steps": 0.1, "save_strategy": "no", "eval_strategy": "no"}


def main() -> None:
    """Train each seed's models, and print the accuracies."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--validation", action="store_true", help="score a tenth of the training rows instead"
    )
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    runs: list[dict[str, Any]] = []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as name:
            started = time.perf_counter()
            scores = accuracies(args, seed, Path(name))
            runs.append({"seed": seed, **scores, "seconds": round(time.perf_counter() - started)})
        print(json.dumps(runs[-1]), flush=True)
    found: dict[str, Any] = {"runs": runs}
    for start in ("pretrained", "random"):
        values = [run[start] for run in runs]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        found[start] = {"mean": statistics.mean(values), "std": spread}
        print(f"{start}: {100 * found[start]['mean']:.2f} ± {100 * spread:.2f}")
    if not args.validation:
        target = Path(__file__).parent / "results/pretraining.json"
        target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def accuracies(args: argparse.Namespace, seed: int, folder: Path) -> dict[str, float]:
    """Accuracy of the classifier from pretrained weights, and of that from random ones."""
    import ftkit

    files = quality.write_splits(args.data, "banking77", folder)
    texts = [json.loads(line)["text"] for line in Path(files["train"]).read_text("utf-8").splitlines()]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), "utf-8")
    fresh = {"from_config": {"model_type": "bert", **SIZES}, "max_length": 128}
    pretrained = ftkit.finetune(
        {
            "task": {"type": "language_modeling", "documents": "separate"},
            "model": {**fresh, "tokenizer": {"type": "wordpiece", "vocab_size": 4000}},
            "data": {"train_file": str(folder / "texts.jsonl")},
            "method": "full",
            "training": PRETRAINING | SCHEDULE,
            "metrics": ["answer_loss"],
            "output_dir": str(folder / "pretrained"),
            "seed": seed,
        }
    )
    model = str(pretrained.folder / "model")
    starts: dict[str, dict[str, Any]] = {
        "pretrained": {"name_or_path": model, "max_length": 128},
        "random": {**fresh, "tokenizer": model},
    }
    held_out = {"validation_fraction": 0.1} if args.validation else {"test_file": files["test"]}
    found = {}
    for name, start in starts.items():
        run = ftkit.finetune(
            {
                "task": "classification",
                "model": start,
                "data": {"train_file": files["train"], **held_out},
                "method": "full",
                "training": TRAINING | SCHEDULE,
                "metrics": ["accuracy"],
                "output_dir": str(folder / name / "run"),
                "seed": seed,
            }
        )
        found[name] = run.metrics["metrics"]["accuracy"]["value"]
    return found


if __name__ == "__main__":
    main()
