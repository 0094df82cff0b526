"""A tape of the memory that a computation takes, recorded on torch's `meta` device: shapes without numbers.

    tape = Tape()
    with tape:
        hidden = model(torch.empty(1, 6144, 128, device="meta"))
    tape.peak_bytes

The tape follows the life of every storage, as the caching allocator of a GPU would, and needs neither a GPU nor
weights. It also counts floating-point operations and the bytes that each operation reads and writes. Weights are not
counted here: where they are is the offload mode's business, in `helpers.placement`.
"""

from __future__ import annotations

import math
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves
from torch.utils.flop_counter import flop_registry

GRANULE = 512  # CUDACachingAllocator.cpp, kMinBlockSize: every block is a multiple of it
# PyTorch's layer norm gives each row a block of threads, so that a short row takes as long as this much traffic would:
# 1.1 ns a row of 64 channels on an H200. CogVideoX normalises each head of each token.
NORM_ROW_BYTES = 4096


def rounded(size: int) -> int:
    """Bytes that the allocator takes for a tensor of `size` bytes."""
    return -(-size // GRANULE) * GRANULE


class Tape:
    """Memory events in program order; open it with `with`, and let the computation run inside.

    Attributes, all complete when the `with` block has ended:
        live: Bytes of all activations after each event; like the next four a numpy array, one number an event.
        work: Bytes that the event itself takes and gives back (a convolution's workspace).
        flops, moved: Floating-point operations of each event, and bytes it reads and writes.
        kinds: Which rate its arithmetic runs at, as a position in `kind_names`: a data type, behind "attention" and
            the channels of a head, or "convolution", for those.
        calls: (first event, end event) of each call of a module, by module, in order.
        entries: (module, first event) of the calls that were made from outside any module, in order.
    """

    def __init__(self) -> None:
        self.kind_names: list[str] = [""]
        self.calls: dict[torch.nn.Module, list[tuple[int, int]]] = {}
        self.entries: list[tuple[torch.nn.Module, int]] = []
        self.now = 0  # live bytes
        self.count = 0  # events
        self.open = _Events()
        self.closed: list[Segment] = []
        self.done_calls: list[list[Any]] = []  # [module, first event, end event]
        self.replays: list[tuple[Any, torch.nn.Module, int]] = []  # (recording, module, first event) of helpers.replay
        self._storages: dict[int, weakref.ref] = {}
        self._known: set[int] = set()  # storages that are not activations: weights and buffers
        self._inside: list[list[Any]] = []
        self._stack = ExitStack()

    @property
    def peak_bytes(self) -> int:
        """The highest sum of activations and workspace, in bytes."""
        return int((self.live + self.work).max()) if self.count else 0

    @property
    def launched(self) -> np.ndarray:
        """Whether each event is work for the card."""
        return (self.flops > 0) | (self.moved > 0)

    def where(self, event: int) -> tuple[str, torch.nn.Module | None]:
        """The event's operation, and the innermost module that it happened in."""
        for segment in self.closed:
            if event < len(segment.live):
                return segment.operations[event], segment.module_of(event)
            event -= len(segment.live)
        raise IndexError("the tape has fewer events")

    def keep(self, module: torch.nn.Module) -> None:
        """Leave out the module's weights and buffers."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._known.add(tensor.untyped_storage()._cdata)

    def __enter__(self) -> Tape:
        self._stack.enter_context(torch.no_grad())
        self._stack.callback(register_module_forward_pre_hook(self._enter_module).remove)
        self._stack.callback(register_module_forward_hook(self._leave_module, always_call=True).remove)
        self._stack.enter_context(_FusedAttention(self))
        self._stack.enter_context(_Recorder(self))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self.seal()
        for name in COLUMNS:
            setattr(self, name, joined(self.closed, name))
        for call in self.done_calls:
            self.calls.setdefault(call[0], []).append((call[1], call[2]))
        for recording, module, start in self.replays:
            recording.add_calls(self.calls, module, start)
        for calls in self.calls.values():
            calls.sort()

    def add(self, operation: str, *, work: int = 0, flops: int = 0, moved: int = 0, kind: str = "") -> None:
        """One event, after which the live bytes are what they are now."""
        if kind not in self.kind_names:
            self.kind_names.append(kind)
        module = self._inside[-1][0] if self._inside else None
        self.open.append((self.now, work, flops, moved, self.kind_names.index(kind), operation, module))
        self.count += 1

    def seal(self) -> None:
        """Close the events so far as a segment."""
        if self.open:
            self.closed.append(Segment.of(self.open))
            self.open = _Events()

    def follow(self, tensor: torch.Tensor) -> bool:
        """Count the tensor's storage until it dies. Returns whether it is new."""
        if tensor.device.type != "meta":  # a Python number in disguise
            return False
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages or key in self._known:
            return False
        size = rounded(storage.nbytes())

        def gone(_: object) -> None:
            self.now -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, gone)
        self.now += size
        return True

    def made(self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A new tensor, followed like one that an operation made."""
        tensor = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        self.follow(tensor)
        return tensor

    def _enter_module(self, module: torch.nn.Module, _: object) -> None:
        if not self._inside:
            self.entries.append((module, self.count))
        self._inside.append([module, self.count, None])
        self.add("enter")

    def _leave_module(self, module: torch.nn.Module, *_: object) -> None:
        self.add("leave")
        call = self._inside.pop()
        call[2] = self.count
        self.done_calls.append(call)


COLUMNS = ("live", "work", "flops", "moved", "kinds")
_Events = list  # of (live, work, flops, moved, kind, operation, module)


@dataclass
class Segment:
    """Successive events, as arrays; `renamed` says which modules stand for those of a recording."""

    live: np.ndarray
    work: np.ndarray
    flops: np.ndarray
    moved: np.ndarray
    kinds: np.ndarray
    operations: Sequence[str]
    modules: Sequence[torch.nn.Module | None]
    renamed: Mapping[torch.nn.Module, torch.nn.Module] | None = None

    @classmethod
    def of(cls, events: _Events) -> Segment:
        *columns, operations, modules = zip(*events, strict=True)
        return cls(*(np.array(column, dtype=np.int64) for column in columns), operations, modules)

    def module_of(self, event: int) -> torch.nn.Module | None:
        module = self.modules[event]
        return module if self.renamed is None else self.renamed.get(module, module)


def joined(segments: Sequence[Segment], column: str) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *(getattr(segment, column) for segment in segments)])


class _Recorder(TorchDispatchMode):
    """Writes every operation that reaches the dispatcher onto the tape.

    PyTorch works out many shapes in Python, which takes most of a forecast's time. So the results of an operation on
    tensors of the same shapes are remembered; what looks at or changes its arguments' storages is run each time.
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.results: dict[Any, tuple] = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        key = None if operation.is_view else (operation, likeness((args, kwargs)))
        if key in self.results:
            layouts, kind, event = self.results[key]
            made = [self.tape.made(*layout) for layout in layouts]
            self.tape.add(**event)
            return made[0] if kind is torch.Tensor else kind(made)
        output = operation(*args, **kwargs)
        outputs = tree_leaves(output)
        new = [isinstance(leaf, torch.Tensor) and self.tape.follow(leaf) for leaf in outputs]
        mutable = operation._schema.is_mutable
        if operation.is_view or not (any(new) or mutable):
            return output
        event = _event(operation, args, kwargs, output)
        self.tape.add(**event)
        if all(new) and not mutable and type(output) in (torch.Tensor, tuple, list):
            self.results[key] = list(map(layout_of, outputs)), type(output), event
        return output


def layout_of(tensor: torch.Tensor) -> tuple:
    """What `Tape.made` needs to make a tensor like another."""
    return tensor.shape, tensor.stride(), tensor.dtype


def likeness(tree: Any) -> tuple:
    """What the outcome of a call with these arguments can depend on, as far as shapes go: a key for a dictionary."""
    leaves, structure = tree_flatten(tree)
    return structure, tuple(
        (*layout_of(leaf), leaf.device.type, leaf.untyped_storage().nbytes())
        if isinstance(leaf, torch.Tensor)
        else (type(leaf), leaf)
        for leaf in leaves
    )


def _event(operation: Any, args: tuple, kwargs: dict, output: Any) -> dict[str, Any]:
    """The arguments of `Tape.add` for an operation."""
    packet = operation.overloadpacket
    inputs, outputs = (
        [leaf for leaf in tree_leaves(one) if isinstance(leaf, torch.Tensor)] for one in ((args, kwargs), output)
    )
    flops = flop_registry[packet](*args, **kwargs, out_val=output) if packet in flop_registry else 0
    moved = sum(_traffic(tensor) for tensor in (*inputs, *outputs))
    if packet is torch.ops.aten.native_layer_norm:
        moved = max(moved, outputs[1].numel() * NORM_ROW_BYTES)
    work, kind = 0, ""
    if flops:
        kind = str(outputs[0].dtype)
        if packet is torch.ops.aten.convolution:
            work = convolution_workspace(inputs[0], inputs[1], outputs[0])
            # torch.backends.cudnn.allow_tf32 is on by default
            kind = "convolution " + kind.replace("float32", "tf32")
    name = str(packet).removeprefix("aten.")
    if not inputs or "empty" in name:
        moved = 0  # an empty tensor costs no time; what fills it does
    return {"operation": name, "work": work, "flops": flops, "moved": moved, "kind": kind}


class _FusedAttention(TorchFunctionMode):
    """Takes attention as a GPU's fused kernel does: an output and a log-sum-exp, never the matrix of scores."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            return self.attend(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def attend(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        *batch, length, _ = query.shape
        # Laid out [batch, length, heads, channels] like the flash kernel's output, so that the transpose and reshape
        # that follow are views.
        output = query.new_empty(*batch[:-1], length, batch[-1], value.shape[-1]).transpose(-2, -3)
        sums = query.new_empty(*batch, length, dtype=torch.float32)
        pairs = math.prod(batch) * length * key.shape[-2]
        moved = sum(_traffic(tensor) for tensor in (query, key, value, output, sums))
        flops = 2 * pairs * (query.shape[-1] + value.shape[-1])
        kind = f"attention {query.shape[-1]} {query.dtype}"
        self.tape.add("scaled_dot_product_attention", flops=flops, moved=moved, kind=kind)
        return output


def _traffic(tensor: torch.Tensor) -> int:
    """Bytes that reading or writing the tensor moves; an expanded one is no larger than its storage."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def convolution_workspace(image: torch.Tensor, weight: torch.Tensor, output: torch.Tensor) -> int:
    """Bytes of cuDNN's workspace for a convolution: channels-last copies of all three tensors.

    Found by measuring (torch 2.11). 3-D: with it, the decode peaks of five video VAEs on an H100 (bf16 and fp32) agree
    with the forecast to 0.01 GiB; without it, the fp32 ones miss by up to 2.6 GiB. 2-D, on an H200: none for a 1x1
    convolution, which is a matrix product, nor for an image of three channels; else in fp32 (TF32) the same, which is
    0.29 GiB of Stable Video Diffusion's encoding. In half precision some take it alone, but the one at the peak of
    that model's decoding, 256 to 256 channels of 8 frames, does not, so it is left out.
    """
    if image.ndim < 5 and (image.element_size() < 4 or weight[0, 0].numel() == 1 or weight.shape[1] < 4):
        return 0
    return sum(rounded(tensor.numel() * tensor.element_size()) for tensor in (image, weight, output))
