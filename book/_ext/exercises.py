"""What the book's tools read out of the notebooks: exercises, their stubs, hints and solutions."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

PRELUDE = """\
import torch
import torch.nn.functional as F
from torch import nn
from cbam_edu import check
"""

HEADING = re.compile(r"^### (Exercise \d+\.\d+: .+?)\s*$", re.MULTILINE)
FOLD = re.compile(
    r"<details>\s*<summary>(Hint|Solution)</summary>\s*\n(.*?)\n\s*</details>", re.DOTALL
)
BLOCK = re.compile(r"^```python\n(.*?)^```\s*$", re.DOTALL | re.MULTILINE)
JUDGE = re.compile(r"check\.ch(\d\d)\.\w+\(.*\)")


@dataclass(frozen=True)
class Exercise:
    """One exercise of a notebook.

    Attributes
    ----------
    title : str
        Its heading, from "Exercise N.M" on.
    stub : str
        The code cell as the reader finds it, without the judge's line.
    solution : str
        The code in the folded solution.
    judge_call : str
        The last line of the code cell, such as ``check.ch02.max_descriptor(max_descriptor)``.
    task : str
        What is asked: the Markdown between the heading and the code cell.
    told : str
        All of the folded solution, in Markdown: the code, and what is said of it.
    """

    title: str
    stub: str
    solution: str
    judge_call: str
    task: str = field(default="", compare=False)
    told: str = field(default="", compare=False)

    def run(self, answer: str) -> bool:
        """Run `answer` in a namespace of its own and return what the judge says of it."""
        names: dict[str, Any] = {"__name__": "exercise"}
        source = f"{PRELUDE}{answer}\nverdict = {self.judge_call}"
        exec(compile(source, self.title, "exec"), names)  # the book's own code
        return bool(names["verdict"])


def read(path: Path) -> Any:
    """Return the notebook at `path`."""
    return nbformat.read(path, as_version=4)


def exercises(path: Path | str) -> list[Exercise]:
    """Return the exercises of the notebook at `path`.

    Raises
    ------
    ValueError
        If an exercise lacks its heading, judge, hint or solution, or has one twice.
    """
    found = []
    cells = read(Path(path)).cells
    heading, task = None, ""
    for i, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            before, *headed = HEADING.split(cell.source)
            if headed:
                heading, task = headed[-2], headed[-1].strip()
            else:
                task = f"{task}\n\n{before}".strip()
        elif "exercise" in cell.metadata.get("tags", []):
            if heading is None:
                raise ValueError(f"{path}: no heading '### Exercise N.M: ...' before cell {i}")
            found.append(_exercise(heading, task, cell.source, _text_after(cells, i)))
            heading = None
    return found


def _text_after(cells: list[Any], i: int) -> str:
    """Return the Markdown between code cell `i` and the next exercise or code cell."""
    text = []
    for cell in cells[i + 1 :]:
        if cell.cell_type != "markdown":
            break
        text.append(HEADING.split(cell.source)[0])
        if HEADING.search(cell.source):
            break
    return "\n".join(text)


def _exercise(title: str, task: str, source: str, text: str) -> Exercise:
    *stub, judge_call = source.rstrip().splitlines()
    if not JUDGE.fullmatch(judge_call):
        raise ValueError(f"{title}: the last line must call its judge, but is {judge_call!r}")
    folds = FOLD.findall(text)
    if [name for name, _ in folds] != ["Hint", "Solution"]:
        raise ValueError(f"{title}: a folded hint, then a folded solution must follow; {folds}")
    told = folds[1][1].strip()
    blocks = BLOCK.findall(told)
    if len(blocks) != 1:
        raise ValueError(f"{title}: the solution must hold one python block, not {len(blocks)}")
    return Exercise(title, "\n".join(stub), blocks[0], judge_call, task, told)
