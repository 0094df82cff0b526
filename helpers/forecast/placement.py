"""Which weights are on the card while a stage runs, for each offload mode.

    curve = Placement(parts, "group_leaf").weights(tape)  # bytes of weights on the card at each event of the tape

The rules are those of accelerate's and diffusers' own hooks, applied to the module calls on a `helpers.tape.Tape`:
a hook before a module brings weights, a hook after it takes them away, and a prefetch brings the next group's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from helpers.architecture import DENOISERS, Architecture
from helpers.cards import (
    GROUP_CALL_SECONDS,
    GROUP_TENSOR_SECONDS,
    LAUNCH_SECONDS,
    MAPPING,
    SEQUENTIAL_TENSOR_SECONDS,
    Card,
)
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
        vae_home: Whether parts without groups, the VAE above all, come when they are called and leave when a denoiser
            is, as in the lessons; else they stay on the card from the beginning.
    """

    def __init__(
        self, parts: Mapping[str, torch.nn.Module], offload: str, use_stream: bool = True, vae_home: bool = True
    ) -> None:
        self.parts, self.offload = dict(parts), offload
        self.use_stream = use_stream and offload.startswith("group")
        self.on_card: set[str] = set()  # of the parts that come and go as a whole: those there when a stage begins
        self.groups = {
            name: self._groups(part) if name in DENOISERS or offload == "sequential" else []
            for name, part in self.parts.items()
        }
        moving = offload == "model" or vae_home and offload.startswith("group")
        self.come_and_go = {name for name in self.parts if moving and not self.groups[name]}

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
        """Bytes of weights on the card at each event of the tape. Call it stage by stage: whole parts stay on."""
        events = tape.count
        changes = np.zeros(events + 1, dtype=np.int64)

        def hold(size: int, start: int, end: int) -> None:
            changes[start] += size
            changes[end] -= size

        for name, part in self.parts.items():
            if self.groups[name]:
                self._groups_in_flight(part, self.groups[name], tape, hold)
            elif name not in self.come_and_go:
                hold(module_bytes(part), 0, events)
            if self.offload == "sequential":  # buffers stay on the card: `offload_buffers` is off
                hold(sum(rounded(tensor_bytes(buffer)) for buffer in part.buffers()), 0, events)
        self._whole_parts(tape, hold)
        return np.cumsum(changes[:-1])

    def _whole_parts(self, tape: Tape, hold) -> None:
        """A part that comes and goes arrives when it is called, and leaves when one that sends it home is."""
        owner = {module: name for name, part in self.parts.items() for module in part.modules()}
        calls = [(owner[module], event) for module, event in tape.entries if module in owner]
        # A stage begins with its first part's call: what that sends home has gone before.
        since = dict.fromkeys(self.on_card - self._sent_home_by(calls[0][0]), 0) if calls else {}
        for name, event in calls:
            for leaving in since.keys() & self._sent_home_by(name):
                hold(module_bytes(self.parts[leaving]), since.pop(leaving), event)
            if name in self.come_and_go:
                since.setdefault(name, event)
        for name, start in since.items():
            hold(module_bytes(self.parts[name]), start, tape.count)
        self.on_card = set(since)

    def _sent_home_by(self, name: str) -> set[str]:
        """Model offload: only the forerunner in the pipeline's sequence. Groups: a denoiser sends all that is whole."""
        if self.offload == "model":
            names = list(self.parts)
            position = names.index(name)
            return set(names[max(0, position - 1) : position])
        return self.come_and_go if self.groups[name] else set()

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
        streamed = blocking = back = hooks = 0
        for name, part in self.parts.items():
            for group in self.groups[name]:
                times = len(tape.calls.get(group.leader, ()))
                # Without a stream the weights are copied back too: `module.to("cpu")`. Sequential offload keeps the
                # CPU's copy and drops the card's. Block level never streams what is in no block.
                if self.use_stream and not (self.offload == "group_block" and group.leader is part):
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

    def seconds(self, tape: Tape, weights: np.ndarray, clock: np.ndarray, card: Card) -> float:
        """An estimate of the stage's seconds with the mode's copies.

        Args:
            tape, weights: Of the stage; `weights` as `weights(tape)` gave them.
            clock: `card.clock(tape)`.
        """
        travel = self.travel(tape)
        waiting = travel.hooks + travel.blocking / (1e9 * card.pageable) + travel.back / (1e9 * card.home)
        if self.offload == "sequential":
            waiting += self._remapped(tape, weights) / (1e9 * MAPPING)
        return waiting + self._streamed(tape, clock, card)

    def _calls(self, tape: Tape) -> list[tuple[int, Group]]:
        """The groups as they are called, each with the event that its call begins at."""
        groups = (group for groups in self.groups.values() for group in groups)
        calls = [(start, group) for group in groups for start, _ in tape.calls.get(group.leader, ())]
        return sorted(calls, key=lambda call: call[0])

    def _remapped(self, tape: Tape, weights: np.ndarray) -> int:
        """Bytes of the card's memory that sequential offload maps anew.

        After each weight, accelerate's `set_module_tensor_to_device` empties the allocator's cache, so that whatever
        is allocated until the next call comes from the driver.
        """
        starts = [start for start, _ in self._calls(tape)]
        if not starts:
            return 0
        highest = np.maximum.reduceat(tape.live + tape.work + weights, starts)
        return int(np.maximum(highest - tape.live[starts], 0).sum())

    def _streamed(self, tape: Tape, clock: np.ndarray, card: Card) -> float:
        """Seconds of the computation beside streamed copies: the CPU, the copies and the card, each at its own time.

        Each call's hook waits for the copy of its own group and begins that of the next one; then the CPU launches the
        layer's operations. Which group is the next is noted once (`LazyPrefetchGroupOffloadingHook`), so that a layer
        that is called again and again, as in a chunked feed-forward, is followed by what follows its last call. A group
        that nobody has prefetched is copied while the CPU waits (`GroupOffloadingHook.pre_forward`).
        """
        calls = self._calls(tape) if self.use_stream else []
        if self.offload == "group_block":
            calls = [call for call in calls if call[1].leader not in self.parts.values()]
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
                cpu += group.bytes / (1e9 * card.pinned) + self._hook_seconds(group)
            if after := following.get(group.leader):
                copied = cpu + after.bytes / (1e9 * card.pinned)
                cpu += self._hook_seconds(after)
                prefetched.add(after.leader)
            prefetched.discard(group.leader)
            done = max(done, cpu) + reached[end] - reached[start]
            cpu += launches[end] - launches[start]
        return float(max(cpu, done))

    def swap_seconds(self, card: Card) -> float:
        """Seconds that model offload takes, once a clip, to send one expert home and bring the other; else 0."""
        experts = [module_bytes(part) for name, part in self.parts.items() if name in DENOISERS]
        if self.offload != "model" or len(experts) < 2:
            return 0.0
        return experts[0] / (1e9 * card.home) + experts[1] / (1e9 * card.pageable)


@dataclass(frozen=True)
class Travel:
    """Bytes of weights that one stage copies: to the card beside the computation (`streamed`) or while it waits
    (`blocking`), and back while it waits; and seconds of the hooks that wait."""

    streamed: int
    blocking: int
    back: int
    hooks: float

    @property
    def to_card(self) -> int:
        return self.streamed + self.blocking


def ram_bytes(arch: Architecture, placement: Placement, request: Request, low_cpu_mem_usage: bool) -> dict[str, int]:
    """Bytes of RAM that weights and frames take at each moment of a lesson, beside the process itself."""
    encoder = sum(map(tensor_bytes, arch.part("text_encoder").parameters())) if arch.text_encoder else 0
    parts = {name: sum(map(tensor_bytes, _tensors(part))) for name, part in placement.parts.items()}
    load = run = sum(parts.values())
    if placement.offload == "none":
        run = 0
    elif placement.offload.startswith("group"):
        grouped = {name: groups for name, groups in placement.groups.items() if groups}
        run = sum(parts[name] for name in placement.come_and_go)
        waiting = sum(parts[name] for name in grouped)
        for name, groups in grouped.items():
            sizes = [tensor_bytes(tensor) for group in groups for tensor in group.tensors]
            waiting -= parts[name]
            if not placement.use_stream or low_cpu_mem_usage:
                run += parts[name]
                continue
            run += sum(map(power_of_two, sizes))
            # Block level pins a part's blocks before the first lets go of its own copy. Leaf level lets go at once, but
            # malloc keeps the small ones until the lesson's `release`.
            block = placement.offload == "group_block"
            copies = parts[name] if block else sum(size for size in sizes if size < KEPT_BY_MALLOC)
            load = max(load, run + copies + waiting)
        if placement.use_stream and low_cpu_mem_usage:  # only what is on its way is pinned
            tensors = [tensor for groups in grouped.values() for group in groups for tensor in group.tensors]
            run += 2 * max(power_of_two(tensor_bytes(tensor)) for tensor in tensors)
    # Floats for `postprocess_video`, and bytes for the clip.
    frames = request.num_frames * request.height * request.width * 3 * (4 + 4 + 1)
    return {
        "encode the prompt": encoder,
        "load": max(load, run),
        "generate": run,
        "decode": run + frames,
    }


KEPT_BY_MALLOC = 2**25  # glibc takes smaller pieces from its heap, and keeps what is freed there


def power_of_two(size: int) -> int:
    """What the pinned memory allocator takes for `size` bytes (CachingHostAllocator.cpp rounds up)."""
    return 1 << max(0, size - 1).bit_length() if size else 0
