"""Formulas in the docstrings of modules stay as they were typed."""

import cbam_edu.fused
from formulas import literal


def test_an_indented_block_is_kept_and_nothing_else_is_touched():
    text = ["Forward:", "", "    a = 1", "", "    b = 2", "", "Then", "and on.", "", "    c = 3"]
    wanted = [*text[:2], "::", "", *text[2:9], "::", "", text[9]]
    assert literal(text) == wanted
    assert literal(wanted) == wanted
    assert literal(["As follows::", "", "    code"]) == ["As follows::", "", "    code"]
    assert literal(["1. A list", "   that goes on"]) == ["1. A list", "   that goes on"]


def test_the_backward_pass_has_its_lines():
    lines = cbam_edu.fused.__doc__.splitlines()
    assert literal(lines).count("::") == 2
