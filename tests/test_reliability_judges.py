"""Each judge of the book has met answers enough: wrong ones, right ones and blank ones."""

import pytest

from judged import answers, different, judges
from notebook_cells import CHAPTERS


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_each_judge_meets_ten_wrong_answers_and_two_right_ones(chapter: str) -> None:
    put, names = answers(chapter), judges(chapter)
    assert {one.name for one in put} == set(names)
    for name in names:
        assert different(put, name, "wrong") >= 10, name
        assert different(put, name, "right") >= 2, name
        assert different(put, name, "blank") >= 1, name
