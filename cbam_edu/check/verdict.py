"""How a judge speaks: it prints one verdict and returns whether the answer was right."""

import dis
import functools
import math
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Wrong(Exception):
    """What is wrong with an answer, in words that help the learner to mend it."""


@dataclass(frozen=True)
class Verdict:
    """Whether an answer was right: true or false in a condition, silent at the end of a cell."""

    right: bool

    def __bool__(self) -> bool:
        return self.right

    def _ipython_display_(self) -> None:
        """Show nothing in a notebook: the judge has spoken already."""


def judge(task: Callable[..., None]) -> Callable[..., Verdict]:
    """Turn `task`, which raises `Wrong` for a wrong answer, into a judge.

    The judge prints its verdict and returns it. It never raises, so that a notebook with unsolved
    exercises still runs to its end. The notebook's chances, gradients and kind of numbers are after
    it what they were before, and have no part in the verdict.
    """

    @functools.wraps(task)
    def judged(answer: Any, *args: Any, **kwargs: Any) -> Verdict:
        try:
            if answer is None or answer is ...:
                raise NotImplementedError
            with _usual_settings():
                task(answer, *args, **kwargs)
        except Wrong as wrong:
            print(f"✗ Not yet. {wrong}")
        except Exception as error:
            if isinstance(error, NotImplementedError) and not error.args:  # torch's have words
                print(f"○ Not answered yet. {_what_is_missing(answer)}, then run this cell again.")
            elif not callable(answer) and str(error).endswith("object is not callable"):
                print(f"✗ Not yet. Hand over the function itself, not a {type(answer).__name__}.")
            else:
                said = textwrap.shorten(str(error), 400, placeholder=" ...")
                print(f"✗ Not yet. Your code stopped with {type(error).__name__}: {said}")
        else:
            print("✓ Right.")
            return Verdict(True)
        return Verdict(False)

    return judged


@contextmanager
def _usual_settings() -> Iterator[None]:
    """Judge with gradients and in float32, and let the notebook have its own settings again."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(usual)


def _what_is_missing(answer: Any) -> str:
    if begun(answer):
        return "It returns None or dots: let your code end with `return` and the result"
    return "Replace the dots"


_IN_A_STUB = {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST", "COPY_FREE_VARS"}


def begun(answer: Any) -> bool:
    """Return whether a function, or a module's `forward`, does anything yet."""
    code = getattr(getattr(answer, "forward", answer), "__code__", None)
    return code is not None and any(
        step.opname not in _IN_A_STUB for step in dis.get_instructions(code)
    )


def written(value: Any) -> Any:
    """Return `value`; an answer still to be written is no mistake."""
    if value is None or value is ...:
        raise NotImplementedError
    return value


def plain(value: Any) -> Any:
    """Return Python's own number where NumPy or torch has a single one."""
    one = isinstance(value, Tensor | np.ndarray | np.generic) and math.prod(value.shape) == 1
    return value.item() if one and not getattr(value, "is_meta", False) else value


def number(value: Any, what: str) -> float:
    """Return `value` if it is one number, of Python, NumPy or torch."""
    one = plain(written(value))
    if isinstance(one, bool) or not isinstance(one, Real):
        raise Wrong(f"{what} must be a number, but is a {type(value).__name__}.")
    return float(one)


def truth(value: Any) -> bool | None:
    """Return whether `value` is true, or None if it is neither true nor false."""
    one = plain(written(value))
    return bool(one) if isinstance(one, Real) and one in (0, 1) else None


def tensor(value: Any, what: str) -> Tensor:
    """Return `value` if it is a tensor; an answer still to be written is no mistake."""
    value = written(value)
    if not isinstance(value, Tensor):
        raise Wrong(f"{what} must be a tensor, but is a {type(value).__name__}.")
    if value.device.type != "cpu":
        raise Wrong(f"{what} is on {value.device}; leave it on the CPU, where the input is.")
    return value


def shape(value: Any, wanted: tuple[int, ...], what: str, why: str = "") -> None:
    """Say which shape `what` has and which it should have."""
    got = tuple(tensor(value, what).shape)
    if got != wanted:
        raise Wrong(f"{what} has shape {got}; it should have {wanted}. {why}".strip())


def between(value: Any, low: float, high: float, what: str, why: str = "") -> None:
    """Say by how much `what` leaves the range from `low` to `high`."""
    value = tensor(value, what)
    if value.numel() and not (low <= value.min() and value.max() <= high):
        raise Wrong(
            f"{what} runs from {value.min():.3g} to {value.max():.3g}; "
            f"it should stay between {low:g} and {high:g}. {why}".strip()
        )


def close(value: Any, wanted: Tensor, what: str, why: str = "", tolerance: float = 1e-5) -> None:
    """Say where `what` differs most from `wanted`, after checking its shape."""
    shape(value, tuple(wanted.shape), what)
    value, wanted = value.double(), wanted.double()
    difference = (value - wanted).abs()
    if difference.numel() and not bool((difference <= tolerance * (1 + wanted.abs())).all()):
        place = torch.unravel_index(difference.nan_to_num(torch.inf).argmax(), wanted.shape)
        index = tuple(int(i) for i in place)
        at = f"{what}[{', '.join(map(str, index))}]" if index else what
        is_, be = f"{value[index]:.4g}", f"{wanted[index]:.4g}"
        if is_ == be:
            is_, be = f"{value[index]:.8g}", f"{wanted[index]:.8g}"
        raise Wrong(f"{at} is {is_}; it should be {be}. {why}".strip())
