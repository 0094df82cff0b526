"""Run repeated calls once, and replay their events: tiles of a decoder, blocks of a transformer.

    with tape, remembering(tape, [(vae.decoder, "forward")]):
        vae.decode(latents)  # 588 tiles of 12 different shapes: 12 of them run

A replay is exact: the tape has the same events as if everything had run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from helpers.forecast.recording.tape import Segment, Tape, columns, layout_of, likeness

Method = tuple[torch.nn.Module, str]


@contextmanager
def remembering(tape: Tape, *alike: Iterable[Method]) -> Iterator[None]:
    """Run methods that do the same once for each shape of their arguments, and replay all other calls.

    Each of `alike` is a sequence of (module, name of a method). These are the `forward` of modules with the same
    structure, such as a transformer's blocks, or one method that is called repeatedly with tensors of a few shapes,
    such as a decoder that works in tiles. A replayed call leaves the same events, the same outputs and the same
    changes to lists among its arguments (a feature cache) as a run would.
    """
    wrapped = []
    try:
        for methods in alike:
            recordings: dict[Any, Recording] = {}
            for module, name in methods:
                setattr(module, name, _replaying(tape, module, getattr(module, name), recordings))
                wrapped.append((module, name))
        yield
    finally:
        for module, name in wrapped:
            delattr(module, name)


def _replaying(tape: Tape, module: torch.nn.Module, method: Callable, recordings: dict[Any, Recording]) -> Callable:
    def replaying(*args, **kwargs):
        key = likeness((args, kwargs))
        if key not in recordings:
            recording = Recording(tape, module)
            output = method(*args, **kwargs)
            recording.end(output, args, kwargs)
            recordings[key] = recording
            return output
        return recordings[key].replay(module, args, kwargs)

    return replaying


class Recording:
    """The events of one call, relative to the bytes that were live when it began."""

    def __init__(self, tape: Tape, module: torch.nn.Module) -> None:
        tape.seal()
        self.tape, self.module = tape, module
        self.renamed: dict[torch.nn.Module, dict[torch.nn.Module, torch.nn.Module]] = {}
        self.start, self.base = tape.count, tape.now
        self.first = len(tape.closed), len(tape.done_calls), len(tape.replays)

    def end(self, output: Any, args: tuple, kwargs: dict) -> None:
        """Take everything since the recording began from the tape."""
        tape = self.tape
        tape.seal()
        segments, calls, replays = self.first
        recorded = tape.closed[segments:]
        live, *others = columns(recorded)
        self.events = Segment(
            live - self.base, *others,
            [operation for one in recorded for operation in one.operations],
            [one.module_of(event) for one in recorded for event in range(len(one.live))],
        )  # fmt: skip
        self.calls = [(one, first - self.start, last - self.start) for one, first, last in tape.done_calls[calls:]]
        self.replays = [(recording, one, start - self.start) for recording, one, start in tape.replays[replays:]]
        # A method may return arguments of its own, changed in place.
        given = {id(value): name for name, value in _named(args, kwargs).items()}
        self.output = tree_map(lambda leaf: _Given(given[id(leaf)]) if id(leaf) in given else _layout_of(leaf), output)
        self.lists = [[_layout_of(value) for value in one] for one in _lists(args, kwargs)]

    def names_in(self, module: torch.nn.Module) -> dict[torch.nn.Module, torch.nn.Module]:
        """The counterpart in `module` of each module of the recorded one."""
        if module not in self.renamed:
            self.renamed[module] = dict(zip(self.module.modules(), module.modules(), strict=True))
        return self.renamed[module]

    def add_calls(self, calls: dict, module: torch.nn.Module, start: int) -> None:
        """Add the calls of a replay that began at the event `start` to `calls`, those of nested replays included."""
        renamed = self.names_in(module)
        for one, first, last in self.calls:
            calls.setdefault(renamed[one], []).append((start + first, start + last))
        for recording, one, first in self.replays:
            recording.add_calls(calls, renamed[one], start + first)

    def replay(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> Any:
        """Append the recorded events for a call of `module`, and return what the call would return."""
        tape = self.tape
        tape.seal()
        tape.closed.append(replace(self.events, live=self.events.live + tape.now, renamed=self.names_in(module)))
        tape.replays.append((self, module, tape.count))
        tape.count += len(self.events.live)
        # The recorded events already contain these allocations: the new tensors are followed, without an event.
        with _disable_current_modes():
            given = _named(args, kwargs)
            output = tree_map(
                lambda leaf: given[leaf.name] if isinstance(leaf, _Given) else self._allocated(leaf), self.output
            )
            for one, recorded in zip(_lists(args, kwargs), self.lists, strict=True):
                for index, value in enumerate(recorded):
                    one[index] = self._allocated(value)
        return output

    def _allocated(self, value: Any) -> Any:
        return self.tape.allocate(*value.layout) if isinstance(value, _Layout) else value


@dataclass(frozen=True)
class _Layout:
    """Takes a tensor's place in recorded arguments and results."""

    layout: tuple


@dataclass(frozen=True)
class _Given:
    """Takes an argument's place in recorded results."""

    name: int | str


def _named(args: tuple, kwargs: dict) -> dict[int | str, torch.Tensor]:
    """The tensors among a call's arguments, by position or name."""
    return {name: value for name, value in [*enumerate(args), *kwargs.items()] if isinstance(value, torch.Tensor)}


def _layout_of(value: Any) -> Any:
    return _Layout(layout_of(value)) if isinstance(value, torch.Tensor) else value


def _lists(args: tuple, kwargs: dict) -> list[list]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, list)]
