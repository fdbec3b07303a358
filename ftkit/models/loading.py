"""Load a pretrained model with the head that a task asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from ftkit.errors import InputError
from ftkit.models.source import PACKAGE_PREFIX, Located, ModelSource
from ftkit.training.positions import positions_of
from ftkit.training.setup import Head, Loaded

# A tokenizer that knows no limit says so with a number like 1e30.
_NO_LIMIT = 10**9
_OF_FILE = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes that are what tokenizer.json says."""
_LAYER = re.compile(r"\.\d+\.")


def load_tokenizer(located: Located, source: ModelSource) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Raises:
        InputError: It is not there, empty, or names code that is not trusted.
    """
    # Where code is not trusted, transformers takes a class of its own, or refuses.
    if source.trust_remote_code:
        with explained(source.name):
            settings = get_tokenizer_config(located.name_or_path, **_origin(located))
        source.refuse_untrusted_code(settings)
    with explained(source.name):
        tokenizer = AutoTokenizer.from_pretrained(located.name_or_path, **_hub(located, source))
        if (folder := located.folder) and _says_all(folder):
            tokenizer = _as_saved(tokenizer, folder)
    return _filled(tokenizer, source.name)


def load_saved_tokenizer(folder: Path, *, trusted: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer that a run saved; `trusted` is whether its recipe trusts the code that it brings.

    Raises:
        InputError: It is not there, or empty.
    """
    with explained(str(folder)):
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
        tokenizer = _as_saved(found, folder)
    return _filled(tokenizer, str(folder))


def _says_all(folder: Path) -> bool:
    """Whether the folder is one whose tokenizer was trained for it: of no class but the file's."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return settings.get("tokenizer_class") in _OF_FILE


def _as_saved(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer that a folder holds, whatever transformers makes of it for the model beside it."""
    if _is_as_saved(tokenizer, folder / "tokenizer.json"):
        return tokenizer
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _is_as_saved(tokenizer: Any, file: Path) -> bool:
    """Whether a tokenizer cuts as its file says; of Qwen2, transformers keeps the vocabulary alone."""
    if not tokenizer.is_fast or not file.is_file():
        return True
    texts = file.read_text("utf-8"), tokenizer.backend_tokenizer.to_str()
    saved, loaded = map(json.loads, texts)
    return all(saved[part] == loaded[part] for part in ("normalizer", "pre_tokenizer", "model"))


def _filled(tokenizer: Any, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer; without its files, transformers makes one that knows no word."""
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise InputError("the model's tokenizer has an empty vocabulary", where=name)
    return cast("PreTrainedTokenizerBase", tokenizer)


def load_config(located: Located, source: ModelSource) -> Any:
    """Load the model's configuration.

    Raises:
        InputError: It names code that is not trusted, or values that transformers refuses.
    """
    source.refuse_untrusted_code(located.config)
    with explained(source.name):
        return AutoConfig.from_pretrained(located.name_or_path, **_hub(located, source))


def load(located: Located, source: ModelSource, head: Head) -> Loaded:
    """Load a model with a head (its auto class known), new where the checkpoint has none that fits.

    Raises:
        InputError: The Hub cannot be reached; the weights are unsafe, broken or others than the recipe says.
    """
    config = load_config(located, source)
    source.check_downloaded(located)
    auto_class = getattr(transformers, str(head.auto_class))
    with explained(source.name):
        model, info = auto_class.from_pretrained(
            located.name_or_path,
            **head.config,
            **_hub(located, source),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            dtype="float32",
        )
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    _refuse_random_body(model, info["missing_keys"], mismatched, source)
    _refuse_fewer_layers(model, info["unexpected_keys"], source.name)
    new, other_labels = set(info["missing_keys"]) | mismatched, False
    if not new:
        new, other_labels = _name_outputs(model, config, head)
    tokenizer = load_tokenizer(located, source)
    return Loaded(
        model=model.eval(),
        tokenizer=tokenizer,
        new_parameters=tuple(sorted(new)),
        max_length=longest_input(config, tokenizer, source.max_length),
        source=source.base,
        revision=located.revision,
        auto_class=str(head.auto_class),
        other_labels=other_labels,
    )


def _name_outputs(model: Any, config: Any, head: Head) -> tuple[set[str], bool]:
    """Let the head of a checkpoint say the labels that it is to say now.

    The same labels in another order are put in that order. Other labels have nothing to do with what the head
    has learned, so it begins anew. What a checkpoint calls `LABEL_0` and so on may be any label: it stays.

    Args:
        model: The model with the checkpoint's head, under the new names.
        config: The checkpoint's own configuration.
        head: The head that is asked for.

    Returns:
        The names of the parameters that are not the checkpoint's any more, which adapters have to bring, and
        whether they are new.
    """
    asked = [str(label) for label in dict(head.config.get("id2label") or {}).values()]
    had = [str(config.id2label.get(number)) for number in range(len(asked))] if asked else []
    unnamed = [f"LABEL_{number}" for number in range(len(asked))]
    if asked == had or had == unnamed or not hasattr(model, model.base_model_prefix):
        return set(), False
    prefix = f"{model.base_model_prefix}."
    outputs = {
        key: weight
        for key, weight in model.named_parameters()
        if not key.startswith(prefix) and len(weight) == len(asked)
    }
    if sorted(asked) == sorted(had) and len({key.rpartition(".")[0] for key in outputs}) == 1:
        order = [had.index(label) for label in asked]
        for weight in outputs.values():
            weight.data = weight.data[order]
        return set(outputs), False
    for key, module in model.named_children():
        if key != model.base_model_prefix:
            for weight in module.parameters():
                weight._is_hf_initialized = False  # else transformers leaves it as it was read
            module.apply(model._init_weights)
    return {key for key, _ in model.named_parameters() if not key.startswith(prefix)}, True


def load_encoder(name: str) -> Loaded:
    """Load a model without a head, for embeddings, by its Hub id, folder or package."""
    source = ModelSource(name_or_path=name)
    located = source.locate().ready()
    return load(located, source, Head("AutoModel", {}))


def _refuse_random_body(
    model: PreTrainedModel, missing: Iterable[str], mismatched: Iterable[str], source: ModelSource
) -> None:
    """Only a head may be new: transformers fills whatever does not fit with random numbers.

    So may a pooler, which the checkpoint of a masked language model does not have.
    """
    # A model that is loaded without a head is all body.
    prefix = f"{model.base_model_prefix}."
    prefix = prefix if any(key.startswith(prefix) for key in model.state_dict()) else ""
    body = [key for key in model.state_dict() if key.startswith(prefix)]
    lacking = sorted(key for key in missing if key.startswith(prefix) and "pooler" not in key)
    resized = sorted(key for key in mismatched if key.startswith(prefix))
    if wrong := resized or lacking:
        problem = "have another size" if resized else "are missing"
        raise InputError(
            f"the weights do not fit config.json: {len(wrong)} of {len(body)} tensors {problem}, "
            f"such as {wrong[0]}",
            where=source.name,
            hint="take config.json and the weights from the same model",
        )


def _refuse_fewer_layers(model: PreTrainedModel, unexpected: Iterable[str], name: str) -> None:
    """Weights of further layers would be left out without a word; those of another head may be."""
    prefix = f"{model.base_model_prefix}."
    known = {_LAYER.sub(".*.", key.removeprefix(prefix)) for key in model.state_dict() if _LAYER.search(key)}
    further = sorted(
        key
        for key in unexpected
        if _LAYER.search(key) and _LAYER.sub(".*.", key.removeprefix(prefix)) in known
    )
    if further:
        raise InputError(
            f"the weights have more layers than config.json says: {len(further)} tensors would be left out, "
            f"such as {further[0]}",
            where=name,
            hint="take config.json and the weights from the same model",
        )


def load_finished(folder: Path, head: Head, *, trusted: bool = False) -> PreTrainedModel:
    """Load a model that was saved whole; every parameter must be in the file.

    Args:
        folder: A run's `model/`.
        head: Its head, the auto class known.
        trusted: Whether the run's recipe trusts the code that the model brings.
    """
    if not folder.is_dir():
        raise InputError("the run has no such folder", where=str(folder), hint="train it again")
    auto_class = getattr(transformers, str(head.auto_class))
    with explained(str(folder)):
        model, info = auto_class.from_pretrained(
            folder,
            output_loading_info=True,
            use_safetensors=True,
            dtype="float32",
            trust_remote_code=trusted,
        )
    if info["missing_keys"] or info["mismatched_keys"]:
        missing = ", ".join(sorted(map(str, {*info["missing_keys"], *info["mismatched_keys"]})))
        raise InputError(f"the saved model lacks parameters: {missing}", where=str(folder))
    _refuse_fewer_layers(model, info["unexpected_keys"], str(folder))
    return model.eval()


def longest_input(config: Any, tokenizer: PreTrainedTokenizerBase, asked: int | None) -> int:
    """The longest input in tokens: what was asked for, within what the model can take.

    Raises:
        InputError: More was asked for than the model has positions.
    """
    positions = positions_of(config.to_dict())
    limits = [n for n in (positions, tokenizer.model_max_length) if n and 0 < n < _NO_LIMIT]
    limit = min(limits) if limits else 512
    if asked and positions and positions < asked:
        raise InputError(f"model.max_length is {asked}, the model has {positions} positions")
    return asked or limit


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what transformers raises about a model's files into an `InputError`.

    Args:
        name: What the recipe calls the model.
    """
    from huggingface_hub.errors import HTTPError, StrictDataclassError  # type: ignore[attr-defined]
    from safetensors import SafetensorError

    local = name.startswith(PACKAGE_PREFIX) or Path(name).is_absolute()
    try:
        yield
    except (OSError, HTTPError, SafetensorError) as error:
        reason = _one_line(error).partition(" Check your internet")[0]
        raise InputError(
            f"the model cannot be loaded: {reason}",
            where=name,
            hint=""
            if local
            else "no local folder has this name, so it is taken for a Hub id: check it, model.revision, "
            "the network and (for a private or gated model) `hf auth login`",
        ) from None
    except (
        ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, StrictDataclassError,
        TypeError, ValueError,
    ) as error:  # fmt: skip
        # A configuration with impossible values fails wherever they are first used.
        raise InputError(f"transformers cannot load it: {_one_line(error)}", where=name) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _hub(located: Located, source: ModelSource) -> Mapping[str, Any]:
    return {"trust_remote_code": source.trust_remote_code, **_origin(located)}


def _origin(located: Located) -> Mapping[str, Any]:
    """Never the network for a local folder, and one commit of the Hub."""
    return {"revision": located.revision} if located.folder is None else {"local_files_only": True}
