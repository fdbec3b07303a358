"""A small GPT-2 from scratch on the characters of tinyshakespeare, with nanoGPT's settings for CPUs.

    python benchmarks/characters.py --data ../shared/data

nanoGPT (Karpathy, 2022) names them in its README: 4 layers, 4 heads, width 128, blocks of 64 characters,
batches of 12, 2,000 steps, no dropout; with config/train_shakespeare_char.py, learning rate 1e-3 falling
to 1e-4 by a cosine after 100 steps, beta2 0.99, weight decay 0.1. It reports a validation loss of 1.88, over
random windows; here it is over all windows of the last tenth of the text, which do not overlap.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

SIZES = {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 65}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
TRAINING = {
    "max_steps": 2000,
    "per_device_train_batch_size": 12,
    "learning_rate": 1e-3,
    "warmup_steps": 100,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr": 1e-4},
    "weight_decay": 0.1,
    "adam_beta2": 0.99,
    "save_strategy": "no",
    "eval_strategy": "no",
}


def main() -> None:
    """Train, and print the validation loss."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import ftkit

    text = (args.data / "tinyshakespeare/input.txt").read_text(encoding="utf-8")
    cut = int(0.9 * len(text))
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train.txt").write_text(text[:cut], encoding="utf-8")
        (folder / "validation.txt").write_text(text[cut:], encoding="utf-8")
        for seed in args.seeds:
            run = ftkit.finetune(recipe(folder, seed), overwrite=True)
            loss = run.metrics["metrics"]["answer_loss"]["value"]
            results.append({"seed": seed, "validation_loss": loss, **run.manifest["training"]["speed"]})
            print(json.dumps(results[-1]), flush=True)
    target = Path(__file__).parent / "results/characters.json"
    target.write_text(json.dumps({"runs": results}, indent=2) + "\n", encoding="utf-8")


def recipe(folder: Path, seed: int) -> dict[str, Any]:
    """The recipe of one run; a window of 65 characters foretells 64."""
    return {
        "task": "language_modeling",
        "model": {
            "from_config": {"model_type": "gpt2", **SIZES, **NO_DROPOUT},
            "tokenizer": {"type": "character", "vocab_size": 200},
            "max_length": 65,
        },
        "data": {
            "train_file": str(folder / "train.txt"),
            "validation_file": str(folder / "validation.txt"),
        },
        "method": "full",
        "training": TRAINING,
        "engine": {"precision": "fp32"},
        "metrics": ["answer_loss", "perplexity", "bits_per_byte"],
        "output_dir": str(folder / "run"),
        "seed": seed,
    }


if __name__ == "__main__":
    main()
