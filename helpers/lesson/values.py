"""Check single values of a lesson's parameters, with errors that name the nearest valid value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


class ParameterError(ValueError):
    """One or more of a lesson's parameters cannot be used; the message has a line for each."""


def inside(name: str, value: float | None, low: float, high: float) -> float | None:
    """Return a number strictly between two others, or `None` unchanged.

    Raises:
        ParameterError: If it is not a number, or not between them.
    """
    problems: list[str] = []
    if value is not None:
        value = number(problems, name, value)
        if value is not None and not low < value < high:
            problems.append(f"{name}={value:g}: give a number between {low:g} and {high:g}, or None for the default.")
    return _checked(problems, value)


def whole(name: str, value: float, least: float, most: float) -> int:
    """Return a whole number from `least` to `most`.

    Raises:
        ParameterError: If it is not; the message names the nearest valid value.
    """
    problems: list[str] = []
    return _checked(problems, whole_number(problems, name, value, least, most))


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """Return one of a few words.

    Raises:
        ParameterError: If it is none of them; the message lists them all.
    """
    problems: list[str] = []
    return _checked(problems, word(problems, name, value, choices))


def _checked(problems: list[str], value: Any) -> Any:
    if problems:
        raise ParameterError(problems[0])
    return value


# The functions below note a problem and return `None`, so that a lesson can report all of its problems at once.


def text(problems: list[str], name: str, value: Any) -> str | None:
    """Return a text, or `None` after noting the problem."""
    if isinstance(value, str):
        return value
    problems.append(f"{name}={value!r}: give a text in quotes, not {type(value).__name__}.")
    return None


def word(problems: list[str], name: str, value: Any, choices: Sequence[str]) -> str | None:
    """Return one of `choices`, or `None` after noting the problem."""
    if value in choices:
        return value
    problems.append(f"{name}={value!r}: choose from {', '.join(choices)}.")
    return None


def switch(problems: list[str], name: str, value: Any) -> bool | None:
    """Return True or False, or `None` after noting the problem."""
    if isinstance(value, bool):
        return value
    problems.append(f"{name}={value!r}: choose True or False.")
    return None


def number(problems: list[str], name: str, value: Any) -> float | None:
    """Return a finite number as a float, or `None` after noting the problem."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        problems.append(f"{name}={value!r}: give a number, without quotes.")
        return None
    return float(value)


def whole_number(
    problems: list[str], name: str, value: Any, least: float = -math.inf, most: float = math.inf
) -> int | None:
    """Return a whole number, or `None` after noting the problem."""
    if number(problems, name, value) is None:
        return None
    # Compare the value as given: converting a large seed to float would round it.
    if value != int(value):
        problems.append(f"{name}={value}: give a whole number; nearest: {max(round(value), least)}.")
    elif not least <= value <= most:
        problems.append(f"{name}={value}: out of range; nearest: {least if value < least else most}.")
    else:
        return int(value)
    return None
