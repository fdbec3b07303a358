"""Low-rank adapters."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from ftkit.errors import InputError, UsageError
from ftkit.methods.base import Method

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from ftkit.training.setup import Loaded, Setup


class LoRA(Method):
    """Freeze the model and train low-rank adapters (Hu et al., 2021)."""

    type: Literal["lora"] = "lora"
    adapters: ClassVar[bool] = True

    r: PositiveInt = 8
    """Rank of each adapter."""
    lora_alpha: Annotated[float, Field(gt=0)] = 16
    """Adapters are scaled by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before each adapter."""
    target_modules: str | list[str] | None = None
    """Layers to adapt, by PEFT's rules; by default all linear layers of the repeated blocks."""
    exclude_modules: str | list[str] | None = None
    """Layers to leave out."""
    modules_to_save: list[str] | None = None
    """Further modules to train and save whole; newly initialised ones always are."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) (Kalajdzievski, 2023)."""
    use_dora: bool = False
    """Train magnitude and direction apart (Liu et al., 2024)."""
    init_lora_weights: bool | Literal["gaussian", "olora", "pissa"] = True
    """How adapters start; `true` leaves the model's output unchanged."""

    def adapt(self, loaded: Loaded) -> nn.Module:
        """Put adapters in place; whatever loading had to initialise is trained whole.

        Raises:
            UsageError: This model has no layer that is named.
        """
        from peft import LoraConfig, get_peft_model
        from torch import nn

        from ftkit.training.low_rank import LowRankLinear

        for key in ("target_modules", "exclude_modules", "modules_to_save"):
            if isinstance(names := getattr(self, key), list):
                refuse_unknown(loaded.model, key, names)
        new = modules_of(loaded.new_parameters)
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=self.target_modules or linear_layers(loaded.model, new),
            exclude_modules=self.exclude_modules,
            modules_to_save=[*new, *(self.modules_to_save or [])] or None,
            bias=self.bias,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            init_lora_weights=self.init_lora_weights,
        )
        linear = [type(module) for module in loaded.model.modules() if isinstance(module, nn.Linear)]
        if {*linear} == {nn.Linear}:
            # Others, such as quantized layers, have adapters of their own in PEFT.
            config._register_custom_module({nn.Linear: LowRankLinear})
        try:
            adapted = get_peft_model(loaded.model, config)
        except ValueError as error:
            raise UsageError(f"method: {error}") from None
        # PEFT would note the path on this machine; others find the base by the recipe's name.
        config.base_model_name_or_path = loaded.source
        config.revision = loaded.revision
        return adapted

    def restore(self, setup: Setup, folder: Path) -> PreTrainedModel:
        """The base model with the run's adapters; what was trained requires a gradient.

        Raises:
            InputError: The adapter folder is incomplete.
        """
        from peft import PeftModel

        _refuse_unreadable(folder)
        model: Any = PeftModel.from_pretrained(setup.load(None).model, str(folder), is_trainable=True)
        return model.eval()


def modules_of(parameters: Sequence[str]) -> list[str]:
    """The modules that hold the given parameters, none inside another one.

    >>> modules_of(["classifier.bias", "classifier.weight", "bert.pooler.dense.weight"])
    ['bert.pooler.dense', 'classifier']
    >>> modules_of(["cls.predictions.bias", "cls.predictions.decoder.bias"])
    ['cls.predictions']
    """
    modules = sorted({name.rpartition(".")[0] for name in parameters})
    if "" in modules:
        bare = [name for name in parameters if "." not in name]
        raise UsageError(
            f"method: lora cannot train the new parameter {bare[0]!r}: it stands outside any module",
            hint="use method: full",
        )
    return [one for one in modules if not any(one.startswith(f"{other}.") for other in modules)]


def refuse_unknown(model: nn.Module, key: str, names: Sequence[str]) -> None:
    """Each name is that of a module, or the end of one's: PEFT leaves out what matches nothing.

    Raises:
        UsageError: One is not.
    """
    known = [name for name, _ in model.named_modules() if name]
    for asked in names:
        if not any(name == asked or name.endswith(f".{asked}") for name in known):
            last = sorted(
                {name.rpartition(".")[2] for name in known if not name.rpartition(".")[2].isdigit()}
            )
            close = get_close_matches(asked, last, n=1)
            nearest = f"; did you mean {close[0]!r}?" if close else ""
            raise UsageError(
                f"method.{key}: no module of the model is called {asked!r}{nearest}",
                hint=f"there are: {', '.join(last)}",
            )


def linear_layers(model: nn.Module, without: Sequence[str]) -> list[str]:
    """Names of the linear layers inside the model's repeated blocks.

    Blocks are the members of a `ModuleList`, whatever the architecture calls them; a head, an
    embedding or a pooler stands outside. All linear layers, not only attention, because that is
    what reaches full fine-tuning (Dettmers et al., 2023, section 4).

    Raises:
        UsageError: The model has no such layer.
    """
    from torch.nn import Linear, ModuleList
    from transformers.pytorch_utils import Conv1D

    def found() -> Iterator[str]:
        for name, module in model.named_modules():
            if isinstance(module, ModuleList):
                for child, layer in module.named_modules():
                    if isinstance(layer, (Linear, Conv1D)):
                        yield f"{name}.{child}"

    names = sorted(name for name in set(found()) if name not in without)
    if not names:
        raise UsageError(
            f"method: no linear layers were found in {type(model).__name__}",
            hint="name them in method.target_modules",
        )
    return names


def _refuse_unreadable(folder: Path) -> None:
    """PEFT says of a broken file only that it is on no Hub."""
    path = folder / "adapter_config.json"
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"the adapter cannot be read: {error}", where=str(path)) from None
