"""A record of the memory that a computation takes, made on torch's `meta` device: tensors have shapes but no data.

    tape = Tape()
    tape.exclude(model)  # activations only
    with tape:
        hidden = model(torch.empty(1, 6144, 128, device="meta"))
    tape.peak_bytes

The tape follows every storage from allocation to release, as a GPU's caching allocator would, and needs neither a GPU
nor weights. It also counts the floating-point operations and the bytes read and written by each operation. Weights are
not part of it: which of them are on the GPU depends on the offload mode (`helpers.forecast.placement`).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves

from helpers.forecast.recording.allocators import rounded, tensors
from helpers.forecast.recording.operations import attention_cost, cost
from helpers.slices.held import Held

Event = tuple[int, int, int, int, int, str, torch.nn.Module | None]  # live, work, flops, moved, kind, operation, module


class Tape:
    """Memory events in program order. Open it with `with`, and run the computation inside.

    Attributes, complete when the `with` block has ended:
        live: Bytes of all activations after each event. Like the next four, a numpy array with one number per event.
        work: Bytes that the event itself takes and releases again (a convolution's workspace).
        flops, moved: Floating-point operations of each event, and bytes that it reads and writes.
        kinds: Kind of arithmetic, an index into `kind_names`. A kind is a data type; for attention it begins with
            "attention" and the channels of a head, for convolutions with "convolution".
        calls: (first event, end event) of each call of a module, by module, in order.
        entries: (module, first event) of the calls that came from outside any module, in order.
    """

    def __init__(self) -> None:
        self.live = self.work = self.flops = self.moved = self.kinds = np.zeros(0, dtype=np.int64)
        self.kind_names: list[str] = [""]
        self.calls: dict[torch.nn.Module, list[tuple[int, int]]] = {}
        self.entries: list[tuple[torch.nn.Module, int]] = []
        self.now = 0  # live bytes
        self.ram_now = self.ram_peak = 0  # bytes of the tensors that were sent to RAM, and of what is made of them
        self.count = 0  # events
        self.open: list[Event] = []
        self.closed: list[Segment] = []
        self.done_calls: list[tuple[torch.nn.Module, int, int]] = []
        self.replays: list[tuple[Any, torch.nn.Module, int]] = []  # (replay.Recording, module, first event)
        self._storages: dict[int, weakref.ref] = {}
        self._excluded: set[int] = set()  # storages of weights and buffers
        self.in_ram: dict[int, weakref.ref] = {}  # storages of tensors that were sent to RAM, and what is made of them
        self._inside: list[tuple[torch.nn.Module, int]] = []
        self._stack = ExitStack()

    @property
    def peak_bytes(self) -> int:
        """The highest sum of activations and workspace, in bytes."""
        return int((self.live + self.work).max()) if self.count else 0

    @property
    def launched(self) -> np.ndarray:
        """Whether each event is work for the GPU, as a boolean array."""
        return (self.flops > 0) | (self.moved > 0)

    def where(self, event: int) -> tuple[str, torch.nn.Module | None]:
        """The event's operation, and the innermost module that ran it.

        Raises:
            IndexError: If the tape has fewer events.
        """
        for segment in self.closed:
            if event < len(segment.live):
                return segment.operations[event], segment.module_of(event)
            event -= len(segment.live)
        raise IndexError("the tape has fewer events")

    def exclude(self, module: torch.nn.Module) -> None:
        """Leave the module's weights and buffers out of the count."""
        for tensor in tensors(module):
            self._excluded.add(tensor.untyped_storage()._cdata)

    def __enter__(self) -> Tape:
        self._stack.enter_context(torch.no_grad())
        self._stack.callback(register_module_forward_pre_hook(self._enter_module).remove)
        self._stack.callback(register_module_forward_hook(self._leave_module, always_call=True).remove)
        self._stack.enter_context(_AsOnGPU(self))
        self._stack.enter_context(_Recorder(self))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self.seal()
        self.live, self.work, self.flops, self.moved, self.kinds = columns(self.closed)
        for module, first, end in self.done_calls:
            self.calls.setdefault(module, []).append((first, end))
        for recording, module, start in self.replays:
            recording.add_calls(self.calls, module, start)
        for calls in self.calls.values():
            calls.sort()

    def add(self, operation: str, *, work: int = 0, flops: int = 0, moved: int = 0, kind: str = "") -> None:
        """Append one event; its live bytes are those of now."""
        if kind not in self.kind_names:
            self.kind_names.append(kind)
        module = self._inside[-1][0] if self._inside else None
        self.open.append((self.now, work, flops, moved, self.kind_names.index(kind), operation, module))
        self.count += 1

    def seal(self) -> None:
        """Close the events so far as a segment."""
        if self.open:
            self.closed.append(Segment.of(self.open))
            self.open = []

    def follow(self, tensor: torch.Tensor) -> bool:
        """Count the tensor's storage until it is released. Returns whether the storage is new."""
        if tensor.device.type != "meta":  # a Python number that an operation wrapped
            return False
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages or key in self._excluded or key in self.in_ram:
            return False
        size = rounded(storage.nbytes())

        def released(_: object) -> None:
            self.now -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, released)
        self.now += size
        return True

    def is_in_ram(self, value: object) -> bool:
        """Whether the value is a tensor that was sent to RAM, or made of one that was."""
        return isinstance(value, torch.Tensor) and value.untyped_storage()._cdata in self.in_ram

    def keep_in_ram(self, tensor: torch.Tensor) -> torch.Tensor:
        """Leave a new tensor out of the count, because it is in RAM."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.in_ram and key not in self._storages:
            size = storage.nbytes()

            def released(_: object) -> None:
                self.ram_now -= size
                del self.in_ram[key]

            self.in_ram[key] = weakref.ref(storage, released)
            self.ram_now += size
            self.ram_peak = max(self.ram_peak, self.ram_now)
        return tensor

    def allocate(self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A new tensor on the meta device, followed like the result of an operation."""
        tensor = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        self.follow(tensor)
        return tensor

    def _enter_module(self, module: torch.nn.Module, _: object) -> None:
        if not self._inside:
            self.entries.append((module, self.count))
        self._inside.append((module, self.count))
        self.add("enter")

    def _leave_module(self, module: torch.nn.Module, _: object, output: object) -> None:
        self.add("leave")
        start = self._inside.pop()[1]
        if isinstance(output, Held):  # its weights stay until the slices are done
            weakref.finalize(output, lambda: self.done_calls.append((module, start, self.count)))
        else:
            self.done_calls.append((module, start, self.count))


@dataclass
class Segment:
    """Consecutive events as arrays. A replayed segment maps the recorded modules to its own with `renamed`."""

    live: np.ndarray
    work: np.ndarray
    flops: np.ndarray
    moved: np.ndarray
    kinds: np.ndarray
    operations: Sequence[str]
    modules: Sequence[torch.nn.Module | None]
    renamed: Mapping[torch.nn.Module, torch.nn.Module] | None = None

    @classmethod
    def of(cls, events: Sequence[Event]) -> Segment:
        *numbers, operations, modules = zip(*events, strict=True)
        return cls(*(np.array(column, dtype=np.int64) for column in numbers), operations, modules)

    def module_of(self, event: int) -> torch.nn.Module | None:
        module = self.modules[event]
        return module if self.renamed is None else self.renamed.get(module, module)


def columns(segments: Sequence[Segment]) -> list[np.ndarray]:
    """The segments' events joined: live, work, flops, moved, kinds."""
    nothing = [np.zeros(0, dtype=np.int64)] * 5
    parts = [nothing, *((one.live, one.work, one.flops, one.moved, one.kinds) for one in segments)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


class _Recorder(TorchDispatchMode):
    """Writes every operation that reaches the dispatcher onto the tape.

    PyTorch works out many shapes in Python, which takes most of a forecast's time. So the layout of a result is
    remembered by the operation and its arguments' shapes. Operations that view or change their arguments run each time.
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.results: dict[Any, tuple] = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.tape.in_ram and any(map(self.tape.is_in_ram, tree_leaves((args, kwargs)))):
            return self.on_cpu(operation, args, kwargs)
        key = None if operation.is_view else (operation, likeness((args, kwargs)))
        if key in self.results:
            layouts, kind, event = self.results[key]
            results = [self.tape.allocate(*layout) for layout in layouts]
            self.tape.add(**event)
            return results[0] if kind is torch.Tensor else kind(results)
        output = operation(*args, **kwargs)
        outputs = tree_leaves(output)
        new = [isinstance(leaf, torch.Tensor) and self.tape.follow(leaf) for leaf in outputs]
        mutable = operation._schema.is_mutable
        if operation.is_view or not (any(new) or mutable):
            return output
        event = cost(operation, args, kwargs, output)
        self.tape.add(**event)
        if all(new) and not mutable and type(output) in (torch.Tensor, tuple, list):
            self.results[key] = list(map(layout_of, outputs)), type(output), event
        return output

    def on_cpu(self, operation: Any, args: tuple, kwargs: dict) -> Any:
        """An operation with tensors in RAM: its results are there, too, and the GPU does nothing."""
        output = operation(*args, **kwargs)
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                self.tape.keep_in_ram(leaf)
        return output


class _AsOnGPU(TorchFunctionMode):
    """Does what differs on a GPU: fused attention, which never makes the matrix of scores, and copies to RAM."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            return self.attend(*args, **(kwargs or {}))
        if function is torch.Tensor.to and args[1:2] == ("cpu",) and args[0].is_meta:
            return self.to_ram(args[0])
        return function(*args, **(kwargs or {}))

    def to_ram(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor's copy in RAM, which is not counted."""
        with _disable_current_modes():
            copy = torch.empty_like(tensor)
        self.tape.add("to_ram", moved=tensor.nbytes)
        return self.tape.keep_in_ram(copy)

    def attend(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        *batch, length, _ = query.shape
        # Laid out [batch, length, heads, channels] like the flash kernel's output, so that the transpose and reshape
        # that follow are views.
        output = query.new_empty(*batch[:-1], length, batch[-1], value.shape[-1]).transpose(-2, -3)
        sums = query.new_empty(*batch, length, dtype=torch.float32)
        self.tape.add(**attention_cost(query, key, value, output, sums))
        return output


def layout_of(tensor: torch.Tensor) -> tuple[torch.Size, tuple[int, ...], torch.dtype]:
    """The arguments of `Tape.allocate` for a tensor like this one."""
    return tensor.shape, tensor.stride(), tensor.dtype


def likeness(tree: Any) -> tuple:
    """A dictionary key with everything that the shapes of a call's results can depend on, given its arguments."""
    leaves, structure = tree_flatten(tree)
    return structure, tuple(
        (*layout_of(leaf), leaf.device.type, leaf.untyped_storage().nbytes())
        if isinstance(leaf, torch.Tensor)
        else (type(leaf), leaf)
        for leaf in leaves
    )
