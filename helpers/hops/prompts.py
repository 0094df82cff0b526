"""One prompt for each hop."""

from __future__ import annotations

from collections.abc import Sequence

from helpers.hops.store import HopError

BETWEEN = "|"


def prompt_of_each_hop(prompt: str, hops: int) -> list[str]:
    """The prompts of all hops, from one text with `|` between them; the last one goes on.

    Raises:
        HopError: If there are more prompts than hops, or if one of several is empty.
    """
    prompts = [one.strip() for one in prompt.split(BETWEEN)]
    if len(prompts) > hops:
        raise HopError(f"{len(prompts)} prompts for {hops} hops: give at most {hops}, or more seconds.")
    if len(prompts) > 1 and not all(prompts):
        raise HopError(f"prompt={prompt!r}: one part is empty; say what happens in each hop.")
    return prompts + prompts[-1:] * (hops - len(prompts))


def prompts_at(what_happens: Sequence[tuple[float, str]], hops: int, seconds: float) -> list[str]:
    """The prompts of all hops of `seconds` each, from what happens: from which second on, and what."""
    starts = [hop * seconds for hop in range(hops)]
    return [[what for begin, what in what_happens if begin < start + seconds / 2][-1] for start in starts]
