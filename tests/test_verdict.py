"""How every judge speaks, whichever the exercise, and that it leaves the notebook as it was."""

import ast
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cbam_edu.check import ch09, ch13
from cbam_edu.check.verdict import begun, judge
from notebook_cells import CHAPTERS, NOTEBOOKS, Exercise, accepts, exercises

EXERCISES = {
    exercise.title.split(":")[0]: exercise
    for chapter in CHAPTERS
    for exercise in exercises(NOTEBOOKS / f"{chapter}.ipynb")
}


@contextmanager
def settings(gradients: bool, numbers: torch.dtype) -> Iterator[None]:
    """Change what a learner may have changed in an earlier cell."""
    torch.set_default_dtype(numbers)
    try:
        with torch.set_grad_enabled(gradients):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def state() -> tuple[Any, ...]:
    return (
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        repr(np.random.get_state()),  # a learner's may be the old one
        random.getstate(),
    )


@judge
def reckless(answer: Any) -> None:
    """Judge with chances of its own, and let the answer change what it likes."""
    torch.manual_seed(0)
    answer()
    torch.randn(3)


def test_a_judge_leaves_chances_gradients_and_numbers_alone() -> None:
    def careless() -> None:
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)

    with settings(gradients=True, numbers=torch.float32):
        before = state()
        assert reckless(careless)
        assert not reckless(lambda: careless() or 1 / 0)
        assert state() == before


@pytest.mark.parametrize("title", ["Exercise 8.1", "Exercise 10.2", "Exercise 13.1"])
def test_what_was_set_in_an_earlier_cell_has_no_part_in_the_verdict(title: str) -> None:
    exercise = EXERCISES[title]
    with settings(gradients=False, numbers=torch.float64):
        before = state()
        assert exercise.run(exercise.solution)
        assert state() == before


def printing(exercise: Exercise) -> str:
    """Return the stub, but that each function prints instead of returning what it found."""
    tree = ast.parse(exercise.stub)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name != "__init__":
            node.body = ast.parse("print('done')").body
    return ast.unparse(tree)


FUNCTIONS = {title: e for title, e in EXERCISES.items() if "\ndef " in "\n" + e.stub}


@pytest.mark.parametrize("exercise", FUNCTIONS.values(), ids=FUNCTIONS)
def test_who_prints_a_result_is_told_of_return(exercise: Exercise, capsys: Any) -> None:
    assert not exercise.run(printing(exercise))
    said = capsys.readouterr().out.removeprefix("done\n").splitlines()[-1]
    assert "dots" not in said or "return" in said
    assert "stopped with" not in said


def test_who_calls_the_function_is_told_to_hand_it_over(capsys: Any) -> None:
    assert not ch09.permutation_p(0.5)
    said = capsys.readouterr().out
    assert said == "✗ Not yet. Hand over the function itself, not a float.\n"


def test_a_stub_is_not_begun(capsys: Any) -> None:
    class Stub(nn.Module):
        def forward(self, x: Any) -> Any:
            """Return nothing."""
            # Your code here.

    class Begun(nn.Module):
        def forward(self, x: Any) -> Any:
            self.kept = x

    assert not begun(Stub)
    assert begun(Begun)
    assert not begun(0.5)
    assert not begun({"a": ...})
    accepts(ch13.moves, {name: right for name, (right, _) in ch13.MOVES.items()}, capsys)
