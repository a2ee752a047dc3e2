"""What the tests read out of the notebooks: cells by tag, exercises, stubs and solutions."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exercises import Exercise, exercises, read

__all__ = [
    "CHAPTERS",
    "NOTEBOOKS",
    "ROOT",
    "Exercise",
    "accepts",
    "constant",
    "exercises",
    "read",
    "refuses",
    "tagged",
    "waits",
]

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
CHAPTERS = (
    "00_start_here",
    "01_why_reweight",
    "02_pooling",
    "03_channel_attention",
    "04_spatial_attention",
    "05_cbam",
    "06_line_by_line",
    "07_in_a_network",
    "08_training",
    "09_does_it_help",
    "10_what_does_it_look_at",
    "11_cost",
    "12_variants",
    "13_using_it",
)


def tagged(path: Path, tag: str) -> list[Any]:
    """Return the code cells of the notebook at `path` that carry `tag`."""
    return [
        cell
        for cell in read(path).cells
        if cell.cell_type == "code" and tag in cell.metadata.get("tags", [])
    ]


def constant(path: Path, tag: str, name: str) -> Any:
    """Return the value that the one cell with `tag` gives to `name`."""
    (cell,) = tagged(path, tag)
    (value,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )
    return value


def refuses(judge: Callable[[Any], object], answer: Any, reason: str, capsys: Any) -> None:
    """Assert that `judge` refuses `answer` and says `reason`."""
    assert not judge(answer)
    said = capsys.readouterr().out
    assert said.startswith("✗ Not yet. ")
    assert reason in said


def accepts(judge: Callable[..., Any], answer: Any, capsys: Any) -> None:
    """Assert that `judge` accepts `answer`."""
    assert judge(answer)
    assert capsys.readouterr().out == "✓ Right.\n"


def waits(judge: Callable[..., Any], answer: Any, capsys: Any) -> None:
    """Assert that `judge` takes `answer` for one that is still to be written."""
    assert not judge(answer)
    assert capsys.readouterr().out.startswith("○ Not answered yet")
