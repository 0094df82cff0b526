"""Layers that are called once for many slices, so that an offload mode copies their weights once.

An offload hook copies a layer's weights when the layer is called. A sliced forward would call each layer once a slice.
It calls the layer without an input instead, which goes through all hooks, and gets back the layer's computation with
the weights that it has at that moment, for as long as it keeps them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from diffusers.quantizers.gguf import utils as gguf_utils

Computation = Callable[[torch.Tensor], torch.Tensor]


class Held:
    """What a layer computes, with the weights that it had when it was called."""

    def __init__(self, compute: Computation) -> None:
        self.compute = compute

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.compute(inputs)


class Holding:
    """A layer that, called without an input, returns its computation. `holding` puts it before a layer's own class."""

    def forward(self, *inputs):
        if inputs:
            return super().forward(*inputs)
        weights = {name: None if weight is None else weight.data for name, weight in self._parameters.items()}
        for weight in weights.values():
            if weight is not None and weight.is_cuda:  # the hook's stream may have made it, and this one works with it
                weight.record_stream(torch.cuda.current_stream(weight.device))
        if isinstance(self, gguf_utils.GGUFLinear):  # unpacked here, once for all slices
            return partial(F.linear, **self._unpacked())
        layer = copy.copy(self)
        layer.__dict__["_parameters"] = weights
        return Held(partial(type(self).__bases__[-1].forward, layer))

    def _unpacked(self) -> dict[str, torch.Tensor | None]:
        weight = gguf_utils.dequantize_gguf_tensor(self.weight).to(self.compute_dtype)
        return {"weight": weight, "bias": None if self.bias is None else self.bias.data.to(self.compute_dtype)}


@lru_cache(maxsize=64)
def holding(layer_class: type) -> type:
    """The layer's class with `Holding` before it; a class that has it already is returned as it is."""
    if issubclass(layer_class, Holding):
        return layer_class
    return type(f"Holding{layer_class.__name__}", (Holding, layer_class), {})


def hold(layer: torch.nn.Module, pieces: Sequence[object]) -> Computation:
    """The layer as a function for all `pieces` of a phase: its weights are copied, and unpacked, once.

    Delete the function when the phase ends: it keeps the weights where they are. A layer that is no `Holding`, such as
    one that an adapter has wrapped, and a GGUF layer with a kernel for packed weights are returned as they are.
    """
    packed = isinstance(layer, gguf_utils.GGUFLinear) and gguf_utils.ops is not None
    return layer if len(pieces) == 1 or packed or not isinstance(layer, Holding) else layer()


def is_hooked(module: torch.nn.Module) -> bool:
    """Whether accelerate or diffusers has put a hook on the module, as every offload mode but "none" does."""
    return hasattr(module, "_hf_hook") or bool(getattr(getattr(module, "_diffusers_hook", None), "hooks", None))
