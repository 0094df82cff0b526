"""Which weights are on the GPU while a stage runs, and how long their copies take, for each offload mode.

    placement = Placement(components, "group_leaf")
    weights = placement.weights(tape)  # bytes of weights on the GPU at each event of the tape
    placement.seconds(tape, weights, rates.clock(tape), rates)

The rules are those of accelerate's and diffusers' own hooks, applied to the module calls on a tape: a hook before a
module onloads its weights, a hook after it offloads them, and a prefetch onloads the next group's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from helpers.forecast.rates import (
    GROUP_CALL_SECONDS,
    GROUP_TENSOR_SECONDS,
    LAUNCH_SECONDS,
    MAPPING,
    SEQUENTIAL_TENSOR_SECONDS,
    Rates,
)
from helpers.forecast.recording.allocators import module_bytes, rounded, tensors
from helpers.forecast.recording.tape import Tape
from helpers.models.architecture import DENOISERS

Hold = Callable[[int, int, int], None]  # bytes that are on the GPU from one event until another


@dataclass(frozen=True)
class Group:
    """Weights that are copied together: they are onloaded with each call of `leader` and offloaded at its end."""

    leader: torch.nn.Module
    bytes: int
    tensors: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Travel:
    """Bytes of weights that one stage copies.

    Attributes:
        streamed: To the GPU, beside the computation.
        blocking: To the GPU, while the computation waits.
        back: Back to RAM, while the computation waits.
        hooks: Seconds of the hooks that the computation waits for.
    """

    streamed: int
    blocking: int
    back: int
    hooks: float

    @property
    def to_gpu(self) -> int:
        return self.streamed + self.blocking


class Placement:
    """One offload mode over the components of a pipeline that run on the GPU.

    Args:
        components: Modules by name, in the order of the pipeline's `model_cpu_offload_seq`; without the text encoder,
            which the lessons drop first.
        offload: One of `helpers.models.OFFLOAD_MODES`.
        use_stream: Whether group offload prefetches the next group on a separate stream.
        offload_vae: With group offload, whether components without groups, the VAE above all, are onloaded when they
            are called and offloaded when a denoiser is called, as in the lessons; else they stay on the GPU.
    """

    def __init__(
        self,
        components: Mapping[str, torch.nn.Module],
        offload: str,
        use_stream: bool = True,
        offload_vae: bool = True,
    ) -> None:
        self.components, self.offload = dict(components), offload
        self.use_stream = use_stream and offload.startswith("group")
        self.groups = {
            name: self._groups(component) if name in DENOISERS or offload == "sequential" else []
            for name, component in self.components.items()
        }
        moving = offload == "model" or offload_vae and offload.startswith("group")
        self.come_and_go = {name for name in self.components if moving and not self.groups[name]}
        self._resident: set[str] = set()  # of `come_and_go`: those on the GPU when the next stage begins

    def _groups(self, component: torch.nn.Module) -> list[Group]:
        if self.offload == "sequential":
            owners = [(module, tuple(module.parameters(recurse=False))) for module in component.modules()]
        elif self.offload == "group_leaf":
            owners = [(module, tuple(tensors(module, recurse=False))) for module in component.modules()]
        elif self.offload == "group_block":
            blocks = [
                block
                for child in component.children()
                if isinstance(child, torch.nn.ModuleList | torch.nn.Sequential)
                for block in child
            ]
            owners = [(block, tuple(tensors(block))) for block in blocks]
            inside = {id(tensor) for _, own in owners for tensor in own}
            # Weights outside the blocks are onloaded before the component's forward and stay until its end.
            owners.insert(0, (component, tuple(tensor for tensor in tensors(component) if id(tensor) not in inside)))
        else:
            return []
        return [Group(module, sum(rounded(tensor.nbytes) for tensor in own), own) for module, own in owners if own]

    def weights(self, tape: Tape) -> np.ndarray:
        """Bytes of weights on the GPU at each event of the tape.

        Call it for one stage after another: a whole component can stay on the GPU from one to the next.
        """
        changes = np.zeros(tape.count + 1, dtype=np.int64)

        def hold(size: int, start: int, end: int) -> None:
            changes[start] += size
            changes[end] -= size

        for name, component in self.components.items():
            if self.groups[name]:
                self._hold_groups(component, self.groups[name], tape, hold)
            elif name not in self.come_and_go:
                hold(module_bytes(component), 0, tape.count)
            if self.offload == "sequential":  # buffers stay on the GPU: `offload_buffers` is off
                hold(sum(rounded(buffer.nbytes) for buffer in component.buffers()), 0, tape.count)
        self._hold_whole_components(tape, hold)
        return np.cumsum(changes[:-1])

    def end_call(self) -> None:
        """The pipeline's call ends, which offloads every component (`maybe_free_model_hooks`)."""
        self._resident.clear()

    def _hold_whole_components(self, tape: Tape, hold: Hold) -> None:
        """Onload each component of `come_and_go` when it is called, and offload those that the call evicts."""
        owner = {module: name for name, component in self.components.items() for module in component.modules()}
        calls = [(owner[module], event) for module, event in tape.entries if module in owner]
        # A stage begins with its first component's call: components evicted by that call are already gone.
        since = dict.fromkeys(self._resident - self._offloaded_by(calls[0][0]), 0) if calls else {}
        for name, event in calls:
            for leaving in since.keys() & self._offloaded_by(name):
                hold(module_bytes(self.components[leaving]), since.pop(leaving), event)
            if name in self.come_and_go:
                since.setdefault(name, event)
        for name, start in since.items():
            hold(module_bytes(self.components[name]), start, tape.count)
        self._resident = set(since)

    def _offloaded_by(self, name: str) -> set[str]:
        """The components that a call of `name` evicts.

        With model offload this is only the preceding one in the pipeline's sequence. With group offload a denoiser
        evicts all whole components.
        """
        if self.offload == "model":
            names = list(self.components)
            position = names.index(name)
            return set(names[max(0, position - 1) : position])
        return self.come_and_go if self.groups[name] else set()

    def _hold_groups(self, component: torch.nn.Module, groups: list[Group], tape: Tape, hold: Hold) -> None:
        leaders = {group.leader: group for group in groups}
        whole = leaders.pop(component, None) if self.offload == "group_block" else None
        calls = [(*call, module) for module in {component, *leaders} for call in tape.calls.get(module, ())]
        calls.sort(key=lambda call: call[0])
        before = None  # start of the next group's copy: the call of the preceding group, or of the component itself
        for start, end, module in calls:
            if module is component:
                before = start
                if whole is not None:
                    hold(whole.bytes, start, end)
            if module in leaders:
                hold(leaders[module].bytes, start if before is None or not self.use_stream else before, end)
                before = start

    def travel(self, tape: Tape) -> Travel:
        """What the hooks of group and sequential offload copy while the tape runs."""
        streamed = blocking = back = hooks = 0
        for name, component in self.components.items():
            for group in self.groups[name]:
                times = len(tape.calls.get(group.leader, ()))
                # Without a stream the weights are copied back too: `module.to("cpu")`. Sequential offload keeps the
                # copy in RAM and drops the one on the GPU. Block level never streams weights outside the blocks.
                if self.use_stream and not (self.offload == "group_block" and group.leader is component):
                    streamed += times * group.bytes
                else:
                    blocking += times * group.bytes
                    back += times * group.bytes if self.offload != "sequential" else 0
                    hooks += times * self._hook_seconds(group)
        return Travel(streamed, blocking, back, hooks)

    def _hook_seconds(self, group: Group) -> float:
        if self.offload == "sequential":
            return SEQUENTIAL_TENSOR_SECONDS * len(group.tensors)
        return GROUP_CALL_SECONDS + GROUP_TENSOR_SECONDS * len(group.tensors)

    def seconds(self, tape: Tape, weights: np.ndarray, clock: np.ndarray, rates: Rates) -> float:
        """An estimate of the stage's seconds with the mode's copies.

        Args:
            tape, weights: Of the stage; `weights` from `weights(tape)`.
            clock: `rates.clock(tape)`.
        """
        travel = self.travel(tape)
        waiting = travel.hooks + travel.blocking / (1e9 * rates.pageable) + travel.back / (1e9 * rates.to_host)
        if self.offload == "sequential":
            waiting += self._remapped(tape, weights) / (1e9 * MAPPING)
        return waiting + self._streamed_seconds(tape, clock, rates)

    def _calls(self, tape: Tape) -> list[tuple[int, Group]]:
        """The groups in the order of their calls, each with the event at which its call begins."""
        groups = (group for groups in self.groups.values() for group in groups)
        calls = [(start, group) for group in groups for start, _ in tape.calls.get(group.leader, ())]
        return sorted(calls, key=lambda call: call[0])

    def _remapped(self, tape: Tape, weights: np.ndarray) -> int:
        """Bytes of GPU memory that sequential offload maps again.

        After each weight, accelerate's `set_module_tensor_to_device` empties the allocator's cache, so that all memory
        allocated until the next call comes from the driver.
        """
        starts = [start for start, _ in self._calls(tape)]
        if not starts:
            return 0
        highest = np.maximum.reduceat(tape.live + tape.work + weights, starts)
        return int(np.maximum(highest - tape.live[starts], 0).sum())

    def _streamed_seconds(self, tape: Tape, clock: np.ndarray, rates: Rates) -> float:
        """Seconds of the computation beside streamed copies. The CPU, the copies and the GPU each keep their own time.

        Each call's hook waits for the copy of its group and starts the copy of the next one; then the CPU launches
        the layer's operations. The hooks note the order of the groups once (`LazyPrefetchGroupOffloadingHook`), so a
        layer that is called repeatedly, as in a chunked feed-forward, prefetches the group that follows its last call.
        A group that was not prefetched is copied while the CPU waits (`GroupOffloadingHook.pre_forward`).
        """
        calls = self._calls(tape) if self.use_stream else []
        if self.offload == "group_block":
            calls = [call for call in calls if call[1].leader not in self.components.values()]
        if not calls:
            return float(clock[-1])
        reached = np.concatenate([[0.0], clock])
        launches = LAUNCH_SECONDS * np.concatenate([[0], np.cumsum(tape.launched)])
        following = {group.leader: after for (_, group), (_, after) in pairwise(calls)}
        ends = [start for start, _ in calls[1:]] + [tape.count]
        first = calls[0][0]
        cpu, done, copied, prefetched = launches[first], reached[first], 0.0, set()
        for (start, group), end in zip(calls, ends, strict=True):
            cpu = max(cpu, copied)
            if group.leader not in prefetched:
                cpu += group.bytes / (1e9 * rates.pinned) + self._hook_seconds(group)
            if after := following.get(group.leader):
                copied = cpu + after.bytes / (1e9 * rates.pinned)
                cpu += self._hook_seconds(after)
                prefetched.add(after.leader)
            prefetched.discard(group.leader)
            done = max(done, cpu) + reached[end] - reached[start]
            cpu += launches[end] - launches[start]
        return float(max(cpu, done))

    @property
    def swaps_experts(self) -> bool:
        """Whether one denoiser takes another's place on the GPU once per clip."""
        return self.offload == "model" and len(self._denoisers()) > 1

    def swap_seconds(self, rates: Rates) -> float:
        """Seconds that model offload takes, once per clip, to offload one expert and onload the other; else 0."""
        if not self.swaps_experts:
            return 0.0
        first, second = map(module_bytes, self._denoisers()[:2])
        return first / (1e9 * rates.to_host) + second / (1e9 * rates.pageable)

    def _denoisers(self) -> list[torch.nn.Module]:
        return [component for name, component in self.components.items() if name in DENOISERS]
