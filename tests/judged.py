"""What the tests put before each judge of an exercise: wrong answers, right ones and blank ones.

A test puts an answer before a judge by `refuses`, `accepts` or `waits` of `notebook_cells`. Here
the same tests are gone through with these three replaced, so that the answers can be counted
without being judged, or be judged once more under watch.
"""

import importlib
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any
from unittest import mock

import pytest

from notebook_cells import NOTEBOOKS, exercises

KINDS = {"refuses": "wrong", "accepts": "right", "waits": "blank"}
CALL = re.compile(r"check\.(ch\d\d\.\w+)\(")
PARAM = type(pytest.param())


@dataclass(frozen=True)
class Put:
    """An answer that a test puts before a judge.

    Attributes
    ----------
    judge : Callable
        The judge.
    name : str
        Its name, such as "ch03.open_gate".
    kind : str
        What the answer is: "wrong", "right" or "blank".
    answer : Any
        The answer.
    reason : str
        The words that the judge must say of a wrong one.
    key : str
        Equal for two answers that are one and the same: data that look the same, or functions put
        by the same line of the same case of a test.
    """

    judge: Callable[[Any], Any]
    name: str
    kind: str
    answer: Any
    reason: str
    key: str


def judges(chapter: str) -> list[str]:
    """Return the judges that the exercises of `chapter` call, such as "ch03.open_gate"."""
    calls = [exercise.judge_call for exercise in exercises(NOTEBOOKS / f"{chapter}.ipynb")]
    return [CALL.findall(call)[0] for call in calls]


def answers(chapter: str) -> list[Put]:
    """Return all answers that the tests put before the judges of `chapter`, "00_start_here"."""
    number = chapter[:2]
    module = importlib.import_module(f"test_check_ch{number}")
    found: list[Put] = []
    for name, test in inspect.getmembers(module, inspect.isfunction):
        if name.startswith("test_") and KINDS.keys() & _names(test.__code__):
            for place, case in enumerate(_cases(test)):
                with mock.patch.multiple(
                    module, **_ears(module, number, f"{name}[{place}]", found)
                ):
                    test(**case)
    return found


def different(put: list[Put], name: str, kind: str) -> int:
    """Return how many different answers of `kind` there are for the judge called `name`."""
    return len({one.key for one in put if one.name == name and one.kind == kind})


def _names(code: CodeType) -> set[str]:
    inner = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*inner)


def _cases(test: FunctionType) -> Iterator[dict[str, Any]]:
    """Yield the arguments of each case of a parametrised test; its fixtures are None."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    for rows in itertools.product(*(mark.args[1] for mark in marks)):
        case = dict.fromkeys(inspect.signature(test).parameters)
        for mark, row in zip(marks, rows, strict=True):
            names, values = mark.args[0], row.values if isinstance(row, PARAM) else row
            if isinstance(names, str) and "," not in names and not isinstance(row, PARAM):
                values = (values,)
            names = re.findall(r"\w+", names) if isinstance(names, str) else names
            case.update(zip(names, values, strict=True))
        yield case


def _ears(module: ModuleType, chapter: str, case: str, found: list[Put]) -> dict[str, Any]:
    """Return what takes the place of `refuses`, `accepts` and `waits` in `module`."""

    def ear(kind: str) -> Callable[..., None]:
        def hear(judge: Any, answer: Any, reason: Any = "", capsys: Any = None) -> None:
            code = callable(answer) or " at 0x" in repr(answer)
            key = f"{case}, line {sys._getframe(1).f_lineno}" if code else repr(answer)
            name = f"ch{chapter}.{judge.__name__}"
            found.append(Put(judge, name, kind, answer, reason or "", key))

        return hear

    return {name: ear(kind) for name, kind in KINDS.items() if hasattr(module, name)}
