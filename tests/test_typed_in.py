"""No result in the book was typed in; and what is typed in would be found."""

from decimal import Decimal

import nbformat
import pytest

from notebook_cells import NOTEBOOKS, read
from typed_in import (
    AGREED,
    CODE,
    FILES,
    QUANTITY,
    SOURCE,
    TARGET,
    above,
    elsewhere,
    evidence,
    is_sourced,
    main,
    numbers,
    prose,
    typed_in,
)

v4 = nbformat.v4


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_result_is_typed_in(path):
    assert typed_in(path) == []


def chapter(path, text, printed="accuracy 0.9186, 3.25 points, 45,000 bytes, n = 8"):
    code = v4.new_code_cell("lr = 0.05", outputs=[v4.new_output("stream", text=printed)])
    cells = [v4.new_markdown_cell("# Title"), code, v4.new_markdown_cell(text)]
    nbformat.write(v4.new_notebook(cells=cells), path)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "It reaches 91.86 % of them, or 91.9 %, or 92 %.",
        "It loses 3.2 points; −3.25 points; 3 points.",
        "It holds 45,000 bytes, which is 45000 bytes.",
        "About 3.5 points are lost.",  # a tenth off
        "The rate is 5 % of one, and a 95 % interval is an interval.",
        "A paper finds [77.34 %](https://example.org/paper) of them.",
        "In 2018, in 7x7, equation 3, `12.5 %` and $x^{77}$ are no results.",
        "```\n77.34 %\n```",
        "## Exercises\n\nSay a network reaches 77.34 % of them.",
        "## Quiz\n\nA network reaches 77.34 %.",
    ],
)
def test_what_has_a_source_is_let_through(tmp_path, text):
    assert typed_in(chapter(tmp_path / "x.ipynb", text)) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It reaches 91.85 % of them.", ["91.85"]),
        ("It reaches 77 % of them.", ["77"]),
        ("It is 12.5 times as fast.", ["12.5"]),
        ("It gains +0.4 points.", ["0.4"]),
        ("It takes 3.7 s, or 41 ms.", ["3.7", "41"]),
        ("From 3.25 to 4.75 points.", ["4.75"]),
        ("It has 45,001 parameters.", ["45001"]),
        ("About 4.5 points are lost.", ["4.5"]),
        ("## Summary\n\nIt reaches 77.34 %.", ["77.34"]),
        ("## Exercises\n\n77 %.\n\n## Summary\n\nIt reaches 78 %.", ["78"]),
    ],
)
def test_what_was_typed_in_is_found(tmp_path, text, found, capsys):
    path = chapter(tmp_path / "x.ipynb", text)
    assert [number.number for number in typed_in(path)] == found
    assert main([str(path)]) == 1
    assert capsys.readouterr().out.startswith(f"x.ipynb, cell 2: {found[0]} in “")


def test_only_cells_above_are_a_source(tmp_path):
    path = chapter(tmp_path / "x.ipynb", "")
    notebook = read(path)
    notebook.cells.insert(1, v4.new_markdown_cell("It will reach 91.86 %."))
    nbformat.write(notebook, path)
    assert [(n.cell, n.number) for n in typed_in(path)] == [(1, "91.86")]
    notebook.cells[0].source = "# Title\n\nAfter this chapter you can\n\n- reach 91.86 %."
    notebook.cells.pop(1)
    nbformat.write(notebook, path)
    assert typed_in(path) == []  # the objectives say what comes


def test_a_page_needs_a_link_a_citation_or_a_chapter(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "It reaches 77.34 %.\n\nIt reaches {cite:t}`woo2018cbam` 77.34 %.\n\n"
        "[It](https://example.org) reaches 77.34 %.\n\n```{table}\n77.34 %\n```\n",
        "utf-8",
    )
    assert [number.number for number in typed_in(page)] == ["77.34"]


def test_a_changed_digit_is_nearly_always_found():
    """Of the numbers of three digits and more in the book, with the last digit changed."""
    found = []
    for path in NOTEBOOKS.glob("*.ipynb"):
        cells = read(path).cells
        markdown = [cell.source if cell.cell_type == "markdown" else "" for cell in cells]
        for i, text in prose(markdown):
            if SOURCE.search(text):
                continue
            known = evidence(above(cells, i, text)) | elsewhere(text)
            for quantity in QUANTITY.finditer(TARGET.sub("]", CODE.sub(" ", text))):
                for number in numbers(quantity["all"]):
                    digits = number.as_tuple()
                    if len(digits.digits) >= 3 and number not in AGREED:
                        step = Decimal(1).scaleb(int(digits.exponent))
                        found += [
                            not is_sourced(
                                number + change * step, quantity["unit"], known, roughly=False
                            )
                            for change in (3, 4, 7)
                        ]
    assert len(found) >= 30
    assert sum(found) >= 0.9 * len(found), f"{sum(found)} of {len(found)}"
