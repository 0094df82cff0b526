"""Two experts with the RAM of one: each is loaded when its steps begin, and the other is dropped before.

    experts = in_turn({"transformer": load_high_noise, "transformer_2": load_low_noise}, config, torch.bfloat16)
    pipe = WanImageToVideoPipeline.from_pretrained(repo, **experts, ...)

The steps are the same, in the same loop: only the reading from disk happens in its middle.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.modeling_utils import ModelMixin


class InTurn(ModelMixin):
    """Stands in for an expert in a pipeline, and loads it when it is called."""

    def __init__(
        self,
        name: str,
        load: Callable[[], torch.nn.Module],
        config: Mapping[str, Any],
        dtype: torch.dtype,
        device: torch.device,
        loaded: dict[str, torch.nn.Module],
    ) -> None:
        super().__init__()
        self._config, self._dtype, self._device = FrozenDict(config), dtype, device
        self._name, self._load, self._loaded = name, load, loaded
        self._actions: list[Callable[[torch.nn.Module], object]] = []

    @property
    def config(self) -> FrozenDict:
        return self._config

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._device

    def cache_context(self, name: str) -> nullcontext:
        """The pipeline opens it around each forward; there is no cache here."""
        return nullcontext()

    def when_loaded(self, action: Callable[[torch.nn.Module], object]) -> None:
        """Call `action(expert)` whenever the expert has been loaded: to slice it, or to offload it in groups."""
        self._actions.append(action)

    def expert(self) -> torch.nn.Module:
        """The expert itself; if it is not in memory, it is loaded, and the other one is dropped before."""
        if self._name not in self._loaded:
            self._loaded.clear()
            gc.collect()  # offload hooks give a model reference cycles
            expert = self._load()
            for action in self._actions:
                action(expert)
            self._loaded[self._name] = expert
        return self._loaded[self._name]

    def forward(self, *args, **kwargs):
        return self.expert()(*args, **kwargs)


def in_turn(
    loads: Mapping[str, Callable[[], torch.nn.Module]],
    config: Mapping[str, Any],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> dict[str, InTurn]:
    """Stand-ins for experts of which one is in memory at a time.

    Args:
        loads: What returns each expert, ready to be called: loaded, and in its offload mode. By component.
        config: The experts' configuration, which the pipeline reads before the first step.
        dtype, device: Of their inputs.
    """
    loaded: dict[str, torch.nn.Module] = {}
    return {
        name: InTurn(name, load, config, dtype, torch.device(device), loaded) for name, load in loads.items()
    }
