"""What the sliced forwards share: spans of tokens, and rows that many tokens have in common."""

from __future__ import annotations

from typing import NamedTuple

import torch


class SliceError(ValueError):
    """A number of tokens, a model or a mode that slices do not work with; the message says what does."""


FEWEST = 128  # a matrix product with fewer rows may sum in another order
ROWS = 128  # a matrix product on a GPU works on tiles of this many rows


def spans(tokens: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` tokens, about equally long, and whole tiles of `ROWS` where possible."""
    pieces = -(-tokens // size)
    each = min(size, -(-tokens // pieces // ROWS) * ROWS)
    return [slice(start, min(start + each, tokens)) for start in range(0, tokens, each)]


class Rows(NamedTuple):
    """Vectors per token, without repetitions.

    Image-to-video models that give every token its own timestep know only a few: zero for the tokens of the given
    frames, and the step's own for all others.

    Attributes:
        values: The different ones, [rows, ...], repeated until there are `FEWEST`.
        index: Which row each token has, [batch, tokens]; `None` if row b is that of all tokens of batch entry b.
    """

    values: torch.Tensor
    index: torch.Tensor | None

    @classmethod
    def of(cls, timestep: torch.Tensor) -> Rows:
        """The different timesteps of [batch] or [batch, tokens]."""
        if timestep.ndim < 2 or timestep.shape[1] == 1:
            return cls(timestep.flatten(), None)
        if timestep.is_meta:  # no values to compare in a forecast
            return cls(timestep.flatten()[:FEWEST], torch.empty_like(timestep, dtype=torch.int64))
        values, index = timestep.unique(return_inverse=True)
        return cls(values.repeat(-(-FEWEST // len(values))), index)

    def part(self, number: int, span: slice) -> torch.Tensor:
        """Entry `number` of each token's [entries, channels]: [batch, tokens of the span or 1, channels]."""
        values = self.values[:, number]
        return values[:, None] if self.index is None else values[self.index[:, span]]
