"""Which weights are on the card while a stage runs, for each offload mode.

    curve = Placement(parts, "group_leaf").weights(tape)  # bytes of weights on the card at each event of the tape

The rules are those of accelerate's and diffusers' own hooks, applied to the module calls on a `helpers.tape.Tape`:
a hook before a module brings weights, a hook after it takes them away, and a prefetch brings the next group's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from helpers.architecture import DENOISERS, Architecture
from helpers.cards import GROUP_CALL_SECONDS, SEQUENTIAL_CALL_SECONDS, Card
from helpers.stages import Request
from helpers.tape import Tape, rounded


def tensor_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def module_bytes(module: torch.nn.Module) -> int:
    """Bytes that the module's weights and buffers take on a card, each rounded up as the allocator does."""
    return sum(rounded(tensor_bytes(tensor)) for tensor in _tensors(module))


def _tensors(module: torch.nn.Module, recurse: bool = True) -> Iterable[torch.Tensor]:
    yield from module.parameters(recurse)
    yield from module.buffers(recurse)


@dataclass(frozen=True)
class Group:
    """Weights that travel together: they come with the first call of `leader` and go at its end."""

    leader: torch.nn.Module
    bytes: int
    tensors: tuple[torch.Tensor, ...]


class Placement:
    """One offload mode over the parts of a pipeline that go to the card.

    Args:
        parts: Modules by name, in the order of the pipeline's `model_cpu_offload_seq`; the text encoder is not among
            them, because the lessons drop it first.
        offload: One of `helpers.checks.OFFLOAD_MODES`.
        use_stream: Whether group offload prefetches the next group on a stream of its own.
    """

    def __init__(self, parts: Mapping[str, torch.nn.Module], offload: str, use_stream: bool = True) -> None:
        self.parts, self.offload = dict(parts), offload
        self.use_stream = use_stream and offload.startswith("group")
        self.on_card: set[str] = set()  # model offload: what is there when the next stage begins
        self.groups = {
            name: self._groups(part) if name in DENOISERS or offload == "sequential" else []
            for name, part in self.parts.items()
        }

    def _groups(self, part: torch.nn.Module) -> list[Group]:
        if self.offload == "sequential":
            owners = [(module, tuple(module.parameters(recurse=False))) for module in part.modules()]
        elif self.offload == "group_leaf":
            owners = [(module, tuple(_tensors(module, recurse=False))) for module in part.modules()]
        elif self.offload == "group_block":
            blocks = [
                block
                for child in part.children()
                if isinstance(child, torch.nn.ModuleList | torch.nn.Sequential)
                for block in child
            ]
            owners = [(block, tuple(_tensors(block))) for block in blocks]
            inside = {id(tensor) for _, tensors in owners for tensor in tensors}
            # All that is in no block comes before the part's forward and stays until its end.
            owners.insert(0, (part, tuple(tensor for tensor in _tensors(part) if id(tensor) not in inside)))
        else:
            return []
        return [Group(module, sum(rounded(tensor_bytes(t)) for t in own), own) for module, own in owners if own]

    def weights(self, tape: Tape) -> np.ndarray:
        """Bytes of weights on the card at each event of the tape. For model offload, call it stage by stage."""
        events = tape.count
        changes = np.zeros(events + 1, dtype=np.int64)

        def hold(size: int, start: int, end: int) -> None:
            changes[start] += size
            changes[end] -= size

        if self.offload == "none":
            hold(sum(map(module_bytes, self.parts.values())), 0, events)
        elif self.offload == "model":
            self._model_offload(tape, hold)
        else:
            for name, part in self.parts.items():
                if self.groups[name]:
                    self._groups_in_flight(part, self.groups[name], tape, hold)
                else:
                    hold(module_bytes(part), 0, events)
                if self.offload == "sequential":  # buffers stay on the card: `offload_buffers` is off
                    hold(sum(rounded(tensor_bytes(buffer)) for buffer in part.buffers()), 0, events)
        return np.cumsum(changes[:-1])

    def _model_offload(self, tape: Tape, hold) -> None:
        """A part arrives when it is first called and sends home only its forerunner in the pipeline's sequence."""
        names = list(self.parts)
        owner = {module: name for name, part in self.parts.items() for module in part.modules()}
        since = dict.fromkeys(self.on_card, 0)
        for module, event in tape.entries:
            name = owner.get(module)
            if name is None:
                continue
            position = names.index(name)
            before = names[position - 1] if position else None
            if before in since:
                hold(module_bytes(self.parts[before]), since.pop(before), event)
            since.setdefault(name, event)
        for name, start in since.items():
            hold(module_bytes(self.parts[name]), start, tape.count)
        self.on_card = set(since)

    def _groups_in_flight(self, part: torch.nn.Module, groups: list[Group], tape: Tape, hold) -> None:
        leaders = {group.leader: group for group in groups}
        whole = leaders.pop(part, None) if self.offload == "group_block" else None
        calls = [(*call, module) for module in {part, *leaders} for call in tape.calls.get(module, ())]
        calls.sort(key=lambda call: call[0])
        before = None  # where the next group's copy begins: at the call of the group before, or of the part itself
        for start, end, module in calls:
            if module is part:
                before = start
                if whole is not None:
                    hold(whole.bytes, start, end)
            if module in leaders:
                hold(leaders[module].bytes, start if before is None or not self.use_stream else before, end)
                before = start

    def travel(self, tape: Tape) -> Travel:
        """What the hooks of group and sequential offload copy while the tape runs."""
        streamed = blocking = back = calls = 0
        for name, part in self.parts.items():
            for group in self.groups[name]:
                times = len(tape.calls.get(group.leader, ()))
                calls += times
                # Without a stream the weights are copied back too: `module.to("cpu")`. Sequential offload keeps the
                # CPU's copy and drops the card's. Block level never streams what is in no block.
                if self.use_stream and not (self.offload == "group_block" and group.leader is part):
                    streamed += times * group.bytes
                else:
                    blocking += times * group.bytes
                    back += times * group.bytes if self.offload != "sequential" else 0
        return Travel(streamed, blocking, back, calls, self.offload == "sequential")


@dataclass(frozen=True)
class Travel:
    """Bytes of weights that one stage copies: beside the computation, or while it waits; and the hooks' calls."""

    streamed: int
    blocking: int
    back: int
    calls: int
    sequential: bool

    @property
    def to_card(self) -> int:
        return self.streamed + self.blocking

    def seconds(self, compute: float, card: Card) -> float:
        """The stage's seconds with these copies, where the computation alone takes `compute`."""
        call = SEQUENTIAL_CALL_SECONDS if self.sequential else GROUP_CALL_SECONDS
        waiting = (self.blocking + self.back) / (1e9 * card.pageable) + self.calls * call
        # The hooks' own work is done by the CPU while the card computes, unless each waits for its copy.
        if self.streamed:
            hooks = self.calls * call
            return max(compute, self.streamed / (1e9 * card.pinned), hooks) + waiting - hooks
        return compute + waiting


def ram_bytes(arch: Architecture, placement: Placement, request: Request, low_cpu_mem_usage: bool) -> dict[str, int]:
    """Bytes of RAM that weights and frames take at each moment of a lesson, beside the process itself."""
    encoder = sum(map(tensor_bytes, arch.part("text_encoder").parameters())) if arch.text_encoder else 0
    parts = {name: sum(map(tensor_bytes, _tensors(part))) for name, part in placement.parts.items()}
    loaded = sum(parts.values())
    run = loaded
    if placement.offload == "none":
        run = 0
    elif placement.offload.startswith("group"):
        run = sum(size for name, size in parts.items() if placement.groups[name])
        if placement.use_stream:
            sizes = [
                power_of_two(tensor_bytes(tensor))
                for groups in placement.groups.values()
                for group in groups
                for tensor in group.tensors
            ]
            pinned = sum(sizes)
            run = run + 2 * max(sizes) if low_cpu_mem_usage else pinned
            if placement.offload == "group_block" and not low_cpu_mem_usage:
                # All blocks are pinned before the first lets go of its own copy, part by part.
                loaded += max(parts[name] for name, groups in placement.groups.items() if groups)
    # Floats for `postprocess_video`, and bytes for the clip.
    frames = request.num_frames * request.height * request.width * 3 * (4 + 4 + 1)
    return {
        "encode the prompt": encoder,
        "load": max(loaded, run),
        "generate": run,
        "decode": run + frames,
    }


def power_of_two(size: int) -> int:
    """What the pinned memory allocator takes for `size` bytes (CachingHostAllocator.cpp rounds up)."""
    return 1 << max(0, size - 1).bit_length() if size else 0
