"""Models on the Hub, as its cache holds them: a run is made with one commit, and keeps to it.

Nothing is downloaded: the tests fill the cache as a download does, and are offline.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Phi3Config, Phi3ForCausalLM

import ftkit
from ftkit.errors import InputError

NAME = "someone/tiny"
OLD, NEW = "a" * 40, "b" * 40


class Repository:
    """What the cache holds of one model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def point(self, branch: str, commit: str) -> None:
        """What a look at the Hub leaves behind."""
        (self.folder / "refs").mkdir(exist_ok=True)
        (self.folder / "refs" / branch).write_text(commit)


@pytest.fixture
def hub(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A model with two commits, of different weights; `main` is at the older one."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = Repository(tmp_path / "hub" / "models--someone--tiny")
    for commit in (OLD, NEW):
        shutil.copytree(tiny("bert"), repository[commit])
    change(repository[NEW] / "model.safetensors")
    repository.point("main", OLD)
    return repository


def change(path: Path) -> None:
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def of_hub(recipe: dict[str, Any], **changes: Any) -> dict[str, Any]:
    model = {"name_or_path": NAME, **changes}
    return recipe | {"model": model, "method": "lora", "training": {"max_steps": 2}}


def test_a_run_keeps_to_the_commit_that_it_was_made_with(hub: Repository, recipe: dict[str, Any]) -> None:
    run = ftkit.finetune(of_hub(recipe))
    assert run.manifest["base_model"] == {
        "source": NAME,
        "revision": None,
        "commit": OLD,
        "sha256": sha256((hub[OLD] / "model.safetensors").read_bytes()).hexdigest(),
    }
    adapter = json.loads((run.folder / "model" / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (NAME, OLD)
    assert f"revision='{OLD}'" in (run.folder / "README.md").read_text()
    texts = ["a red film", "my green card"]
    before = [prediction.scores for prediction in ftkit.predict(run.folder, texts)]
    hub.point("main", NEW)
    shutil.rmtree(hub[NEW])
    assert [prediction.scores for prediction in ftkit.predict(run.folder, texts)] == before
    assert ftkit.evaluate(of_hub(recipe)).metrics["metrics"] == run.metrics["metrics"]


def lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def bring_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling.Model"}}))


@pytest.mark.parametrize(
    ("spoil", "changes", "says"),
    [
        (None, {"sha256": "f" * 64}, r"the weights have SHA-256 [0-9a-f]{64}, the recipe says fff"),
        (None, {"revision": "v2"}, "the model cannot be loaded: We couldn't connect"),
        (lose_weights, {}, r"no model.safetensors can be had, and pickles"),
        (cut, {}, "the weights are broken or cut short"),
        (bring_code, {}, "brings its own Python code, which is not run"),
    ],
)
def test_what_is_downloaded_is_checked_as_a_folder_is(
    spoil: Callable[[Path], None] | None,
    changes: dict[str, str],
    says: str,
    hub: Repository,
    recipe: dict[str, Any],
) -> None:
    if spoil:
        spoil(hub[OLD])
    with pytest.raises(InputError, match=says):
        ftkit.finetune(of_hub(recipe, **changes))
    assert not Path(recipe["output_dir"]).exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_trusted_code_is_pinned(file: str, hub: Repository, recipe: dict[str, Any]) -> None:
    """Code of another repository could change under the recipe."""
    classes = {"AutoModel": "other/repository--m.M", "AutoTokenizer": ["other/repository--t.T", None]}
    settings = json.loads((hub[OLD] / file).read_text())
    (hub[OLD] / file).write_text(json.dumps(settings | {"auto_map": classes}))
    with pytest.raises(InputError, match="runs Python code of another repository, other/repository, which"):
        ftkit.finetune(of_hub(recipe, revision=OLD, trust_remote_code=True))


def test_weights_in_parts(hub: Repository, recipe: dict[str, Any]) -> None:
    weights = load_file(hub[OLD] / "model.safetensors")
    (hub[OLD] / "model.safetensors").unlink()
    parts = {name: f"model-0000{number % 2 + 1}-of-00002.safetensors" for number, name in enumerate(weights)}
    for part in set(parts.values()):
        held = {name: tensor for name, tensor in weights.items() if parts[name] == part}
        save_file(held, hub[OLD] / part, {"format": "pt"})
    index = {"metadata": {}, "weight_map": parts}
    (hub[OLD] / "model.safetensors.index.json").write_text(json.dumps(index))
    run = ftkit.finetune(of_hub(recipe, revision=OLD))
    assert run.manifest["base_model"]["commit"] == OLD


def test_adapters_are_not_put_on_another_base(recipe: dict[str, Any], tmp_path: Path) -> None:
    base = shutil.copytree(recipe["model"]["name_or_path"], tmp_path / "base")
    run = ftkit.finetune(of_hub(recipe, name_or_path=str(base)))
    assert ftkit.predict(run.folder, ["a red film"])
    change(base / "model.safetensors")
    with pytest.raises(InputError, match="the base model has changed since the run was made"):
        ftkit.predict(run.folder, ["a red film"])


def test_a_whole_model_needs_its_base_no_more(recipe: dict[str, Any], tmp_path: Path) -> None:
    base = shutil.copytree(recipe["model"]["name_or_path"], tmp_path / "base")
    changed = of_hub(recipe, name_or_path=str(base)) | {"method": "full"}
    run = ftkit.finetune(changed)
    shutil.rmtree(base)
    assert ftkit.predict(run.folder, ["a red film"])


def test_code_that_transformers_has_itself_is_not_asked_for(
    tiny: Callable[[str], Path], recipe: dict[str, Any], tmp_path: Path
) -> None:
    """Phi-3's files name it beside the weights, from the time before transformers had it."""
    folder = tmp_path / "phi3"
    AutoTokenizer.from_pretrained(tiny("gpt2")).save_pretrained(folder)
    config = Phi3Config(
        vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, original_max_position_embeddings=64,
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    Phi3ForCausalLM(config).save_pretrained(folder)
    classes = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "m.Phi3ForCausalLM"}
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"auto_map": classes}))
    for name in ("configuration_phi3.py", "m.py"):
        (folder / name).write_text("raise SystemExit('this is not run')")
    recipe |= {"model": {"name_or_path": str(folder)}, "training": {"max_steps": 1}}
    assert ftkit.finetune(recipe).finished
