"""Losses over a vocabulary, without all that is large at once.

A vocabulary is large: the logits of 4,096 tokens over 50,000 entries fill 800 MB in single precision, and a
loss and its gradient need them several times over. So an output layer sees only the positions that count,
and many of them in chunks, of which nothing is kept but the logits as the layer returned them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from ftkit.training.heads import Batch

_MOST_LOGITS = 2**26
"""From so many logits on, they come in chunks: 256 MiB in single precision."""
_CHUNK = 2**24
_last: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def token_losses(
    model: nn.Module,
    inputs: Batch,
    positions: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    **options: Any,
) -> Tensor:
    """The negative log-likelihood of known tokens.

    Args:
        model: A language model, wrapped for several processes or not.
        inputs: The tensors that it is called with, a row each.
        positions: Where the tokens are foretold, boolean, shape (rows, positions).
        targets: Their ids, shape (tokens,).
        label_smoothing: Share of the probability spread over all tokens (Szegedy et al., 2016).
        options: What else the model is called with.

    Returns:
        Losses in nats, shape (tokens,), fp32.
    """
    whole: Any = extract_model_from_parallel(model)
    layer = _output_layer(whole)
    vocabulary = whole.config.get_text_config().vocab_size
    if len(targets) * vocabulary <= _MOST_LOGITS or not _ends_with(whole, layer, inputs, options):
        with logits_at(whole, positions):
            logits = model(**inputs, **options)["logits"].float()
        return functional.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    most = max(_CHUNK // vocabulary, 1)
    found = []

    # In the model's own pass, for the precision that it runs in.
    def note_losses(hidden: Tensor) -> Tensor:
        hidden = hidden[:, : positions.shape[1]][positions]
        for part, known in zip(hidden.split(most), targets.split(most), strict=True):
            found.append(_Loss.apply(layer.forward(part), known, label_smoothing))
        return hidden[:0]

    with _before(layer, note_losses):
        model(**inputs, **options)
    return torch.cat(found)


@contextmanager
def logits_at(model: Any, positions: Tensor) -> Iterator[None]:
    """Let a model's output layer see only some hidden states.

    Through a hook on that layer, so that whatever a model does before and after it (T5 scales, Gemma 2
    caps) stays.

    Args:
        model: A language model.
        positions: Boolean, shape (rows, positions). Logits have the shape (chosen positions, vocabulary).
    """
    width = positions.shape[1]
    with _before(_output_layer(model), lambda hidden: hidden[:, :width][positions]):
        yield


def _output_layer(model: Any) -> nn.Module:
    """The layer that makes logits; where PEFT trains a copy of the part it belongs to, that of the copy."""
    layer: nn.Module = model.get_output_embeddings()
    for module in model.modules() if hasattr(model, "peft_config") else ():
        if hasattr(module, "modules_to_save") and hasattr(module, "original_module"):
            inner = {id(one): name for name, one in module.original_module.named_modules()}
            if name := inner.get(id(layer)):
                copy = module.modules_to_save[module.active_adapters[0]]
                return cast("nn.Module", copy.get_submodule(name))
    return layer


class _Loss(torch.autograd.Function):
    """Cross entropy that keeps its logits in their own precision, and makes the rest of them again."""

    @staticmethod
    def forward(context: Any, logits: Tensor, targets: Tensor, label_smoothing: float) -> Any:
        exact = logits.float()
        total = exact.logsumexp(dim=1)
        context.save_for_backward(logits, targets, total)
        context.label_smoothing = label_smoothing
        known = exact.gather(1, targets[:, None]).squeeze(1)
        return total - (1 - label_smoothing) * known - label_smoothing * exact.mean(dim=1)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        logits, targets, total = context.saved_tensors
        found = (logits - total[:, None]).exp_().sub_(context.label_smoothing / logits.shape[1])
        known = torch.full_like(total, context.label_smoothing - 1)
        found.scatter_add_(1, targets[:, None], known[:, None])
        return found.mul_(gradients[0][:, None]).to(logits.dtype), None, None


def _ends_with(model: nn.Module, layer: nn.Module, inputs: Batch, options: Mapping[str, Any]) -> bool:
    """Whether a model's logits are what the layer returns, and its weights are not spread over processes.

    Some models scale or cap logits after it (Gemma 2): what a model does is seen on one row, once.
    """
    weight: Any = layer.weight
    if isinstance(weight, DTensor) or not weight.numel():
        return False
    if layer not in _last:
        found = []
        training = model.training
        model.eval()  # Draws no random numbers.
        handle = layer.register_forward_hook(lambda _, given, result: found.append(result))
        row = {name: tensor[:1] for name, tensor in inputs.items()}
        with torch.no_grad(), _before(layer, lambda hidden: hidden[:, :2]):
            logits = model(**row, **options)["logits"]
        handle.remove()
        model.train(training)
        _last[layer] = torch.equal(found[0].float(), logits.float())
    return _last[layer]


@contextmanager
def _before(layer: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a layer see something else than it is given."""
    handle = layer.register_forward_pre_hook(lambda _, given: (change(given[0]),))
    try:
        yield
    finally:
        handle.remove()
