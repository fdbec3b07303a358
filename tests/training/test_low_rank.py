"""Adapters computed in one piece: beside PEFT's own layer and double precision."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn

import ftkit
from ftkit.training.low_rank import LowRankLinear

WIDTH, RANK, SCALING = 64, 4, 2.0
PRODUCT = "_ProductBackward"


def adapted(layer: type[Linear], *, bias: bool = True, **options: object) -> LowRankLinear:
    """One adapted layer with the same random weights whatever its class, the frozen ones in bf16."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 48, bias=bias))
    config = LoraConfig(r=RANK, lora_alpha=int(SCALING * RANK), target_modules=["0"], **options)
    config._register_custom_module({nn.Linear: layer})
    found = get_peft_model(model, config).base_model.model[0]
    assert type(found) is layer
    nn.init.normal_(found.lora_B["default"].weight)
    found.base_layer.to(torch.bfloat16)
    return found


def results(
    layer: nn.Module, x: torch.Tensor, weights: torch.Tensor, *, rounded: bool = True
) -> dict[str, torch.Tensor]:
    """What the layer gives, and the gradients of a loss."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
        output = layer(x)
    assert (type(layer) is LowRankLinear) == (type(output.grad_fn).__name__ == PRODUCT)
    (output.to(weights.dtype) * weights).sum().backward()
    low = {name[:6]: p.grad for name, p in layer.named_parameters() if p.requires_grad}
    assert all(gradient.dtype is torch.float32 for gradient in low.values())
    return {"output": output.detach(), "x": x.grad, **low}


def exact(layer: LowRankLinear, x: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same in double precision, from the definition."""
    x = x.double().requires_grad_()
    a, b = (getattr(layer, name)["default"].weight.detach().double() for name in ("lora_A", "lora_B"))
    a.requires_grad_()
    b.requires_grad_()
    bias = layer.base_layer.bias
    output = x @ layer.base_layer.weight.double().t() + SCALING * x @ a.t() @ b.t()
    output = output + (0 if bias is None else bias.double())
    (output * weights.double()).sum().backward()
    return {"output": output.detach(), "x": x.grad, "lora_A": a.grad, "lora_B": b.grad}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_exact_as_peft(bias: bool, dtype: torch.dtype) -> None:
    ours, theirs = (adapted(layer, bias=bias) for layer in (LowRankLinear, Linear))
    torch.manual_seed(1)
    x, weights = torch.randn(3, 40, WIDTH, dtype=dtype), torch.randn(3, 40, 48)
    right = exact(ours, x, weights)
    found, other = (results(layer, x, weights) for layer in (ours, theirs))
    for name, value in right.items():
        assert found[name].dtype is other[name].dtype, name
        of_ours, of_theirs = (
            float((one[name].double() - value).norm() / value.norm()) for one in (found, other)
        )
        assert of_ours <= max(1.2 * of_theirs, 4e-3), name


@pytest.mark.parametrize("bias", [True, False])
def test_as_peft_without_rounding(bias: bool) -> None:
    ours, theirs = (adapted(layer, bias=bias).float() for layer in (LowRankLinear, Linear))
    torch.manual_seed(1)
    x, weights = torch.randn(3, 40, WIDTH), torch.randn(3, 40, 48)
    found, other = (results(layer, x, weights, rounded=False) for layer in (ours, theirs))
    assert found.keys() == other.keys()
    for name, value in other.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "why", ["mixed types", "no gradient", "dropout", "dora", "disabled", "merged", "trained bias"]
)
def test_what_peft_computes_itself(why: str) -> None:
    options: dict[str, object] = {"dropout": {"lora_dropout": 0.5}, "dora": {"use_dora": True}}.get(why, {})
    ours = adapted(LowRankLinear, **options)
    theirs = adapted(Linear, **options)
    for layer in (ours, theirs):
        if why == "disabled":
            layer.enable_adapters(False)
        if why == "merged":
            layer.merge()
        if why == "mixed types":
            layer.base_layer.double()
        if why == "trained bias":
            layer.base_layer.bias.requires_grad_()
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64 if why == "mixed types" else torch.float32)
    found = []
    for layer in (ours, theirs):
        torch.manual_seed(2)
        rounding = torch.autocast("cpu", torch.bfloat16, enabled=why != "mixed types")
        with rounding, torch.set_grad_enabled(why != "no gradient"):
            found.append(layer(x))
    assert torch.equal(*found)
    assert PRODUCT not in type(found[0].grad_fn).__name__


def test_a_run_computes_so(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked, alone = [], LowRankLinear._alone

    def watched(layer: LowRankLinear, x: torch.Tensor) -> str | None:
        asked.append(alone(layer, x))
        return asked[-1]

    monkeypatch.setattr(LowRankLinear, "_alone", watched)
    training = {**recipe["training"], "max_steps": 2}
    run = ftkit.finetune({**recipe, "method": "lora", "training": training, "engine": {"precision": "bf16"}})
    assert "default" in asked
    assert (run.folder / "model/adapter_config.json").is_file()
