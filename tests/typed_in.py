"""Numbers with a unit, in a chapter's or page's prose, that were typed in.

::

    python tests/typed_in.py FILE ...     # list them; exit 1 if there are any

A number is sourced if one of the eight code cells above prints it (or says it in its code), to as
many digits as the prose has; or any cell above, where a section is named or all is summed up; if a
chapter that the paragraph names prints it; or if the paragraph links to where it is from or cites
it. "About 4 times" may be a tenth off. Exercises and quizzes may suppose what they like. What
stands in a page's tables comes from its directives.

One digit is nearly always printed somewhere: what this finds is numbers of three digits and more,
and two in three of two.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import nbformat

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
FILES = [*sorted(NOTEBOOKS.glob("*.ipynb")), *sorted((ROOT / "book").glob("*.md"))]

NUMBER = r"(?<![\w.,^])[+\-−±]?(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?"
UNIT = (
    r"%|percent(?:age)?\b|points?\b|[mµn]?s\b|(?:milli|micro)?seconds?\b|hours?\b|[kMGT]i?B\b|"
    r"bytes?\b|parameters?\b|multiply-accumulates?\b|[MG]?FLOPs?\b|times\b|"
    r"images (?:a|per) second\b|percentage points?\b"
)
JOINT = r"\s*(?:to|and|or|against|instead of|–|-)\s*"
QUANTITY = re.compile(rf"(?P<all>{NUMBER}(?:(?:{UNIT})?{JOINT}{NUMBER})*)\s*(?P<unit>{UNIT})")
PERCENT = re.compile("%|perc|point")
PLAIN = re.compile(NUMBER)
ROUGHLY = re.compile(
    r"(about|nearly|almost|roughly|some|around|over|under|than|most|least|to)\s*$", re.IGNORECASE
)
NEAR = 8
SUMMARY = re.compile(r"^## Summary", re.MULTILINE)
SKIPPED = re.compile(r"^## (Exercises|Quiz|Test yourself)\b")
HEADER = re.compile(r"^\*\*(Time|Before)\b.*$", re.MULTILINE)
FENCE = re.compile(r"```.*?```|:::.*?:::", re.DOTALL)
EXAMPLE = re.compile(r"```(?!\{)\w*\n(.*?)```", re.DOTALL)
CODE = re.compile(r"`[^`]*`")
SOURCE = re.compile(r"\]\(http|\{cite:")
TARGET = re.compile(r"\]\([^)]*\)")
CHAPTER = re.compile(r"[Cc]hapters? (?:\d\d(?:, | and | to )?)+|notebooks/\d\d_")
# Of no measurement: nothing, half, all; the level and the interval that every test has; and what
# ten classes are worth by chance.
AGREED = {Decimal(text) for text in ("0", "50", "100", "5", "95", "10")}


class TypedIn(NamedTuple):
    """A number in prose without a source."""

    cell: int
    number: str
    words: str


def numbers(text: str) -> Iterator[Decimal]:
    """Yield the sizes of the numbers in a text, whatever their sign."""
    for match in PLAIN.finditer(text.replace("\u202f", " ")):
        yield Decimal(match[1].replace(",", "") + (match[2] or ""))


def output_text(cell: Any) -> str:
    """Return what a code cell says and prints."""
    parts = [cell.source.replace("_", "")]  # 50_000
    for output in cell.outputs:
        parts.append(output.get("text", ""))
        data = output.get("data", {})
        parts += ["".join(data[kind]) for kind in ("text/plain", "text/html") if kind in data]
    return re.sub(r"(?<=\d)(?=[A-Za-z%])|(?<=[A-Za-z_=(\[])(?=[+\-]?\d)", " ", "\n".join(parts))


def evidence(cells: Iterable[Any]) -> set[Decimal]:
    """Return every number that code cells say or print."""
    return {n for cell in cells if cell.cell_type == "code" for n in numbers(output_text(cell))}


def is_sourced(number: Decimal, unit: str, known: set[Decimal], *, roughly: bool) -> bool:
    """Say whether a known number rounds to this one, or a part of one does so in percent."""
    if number in AGREED:
        return True
    parts = {n.scaleb(2) for n in known if n <= 1} if PERCENT.match(unit) else set()
    if roughly:
        return any(abs(n - number) <= number / 10 for n in known | parts)
    step = Decimal(1).scaleb(decimals(number))
    return any(
        abs(n - number) <= step / 2 and decimals(n) <= decimals(number) for n in known | parts
    )


def decimals(number: Decimal) -> int:
    """Return the power of ten of a number's last digit."""
    return int(number.as_tuple().exponent)


def prose(markdown: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield the paragraphs of pieces of Markdown, numbered, without exercises and quizzes."""
    skipping = False
    for i, piece in enumerate(markdown):
        for text in re.split(r"\n\s*\n", HEADER.sub("", piece)):
            if text.startswith("## "):
                skipping = bool(SKIPPED.match(text))
            if not skipping and not text.startswith("#"):
                yield i, text


def above(cells: list[Any], i: int, text: str) -> list[Any]:
    """Return the code cells that a paragraph of cell `i` may speak of."""
    if not i:
        return cells  # the objectives may name what comes
    code = [cell for cell in cells[:i] if cell.cell_type == "code"]
    far = re.search(r"\bsections? \d", text) or any(
        SUMMARY.search(cell.source) for cell in cells[: i + 1] if cell.cell_type == "markdown"
    )
    return code if far else code[-NEAR:]


def elsewhere(text: str) -> set[Decimal]:
    """Return the numbers of the chapters that a paragraph names."""
    named = {n for match in CHAPTER.finditer(text) for n in re.findall(r"\d\d", match[0])}
    paths = [path for n in sorted(named) for path in NOTEBOOKS.glob(f"{n}_*.ipynb")]
    return set().union(*(evidence(nbformat.read(path, 4).cells) for path in paths))


def typed_in(path: Path) -> list[TypedIn]:
    """Return the numbers with a unit, in the prose of a notebook or page, without a source."""
    if path.suffix == ".md":
        page = path.read_text("utf-8")
        cells, markdown = [], [FENCE.sub(" ", page)]
        known = {n for code in EXAMPLE.findall(page) for n in numbers(code)}
    else:
        cells, known = nbformat.read(path, 4).cells, set()
        markdown = [
            FENCE.sub(" ", cell.source) if cell.cell_type == "markdown" else "" for cell in cells
        ]
    found = []
    for i, text in prose(markdown):
        quantities = list(QUANTITY.finditer(TARGET.sub("]", CODE.sub(" ", text))))
        if not quantities or SOURCE.search(text):
            continue
        sources = known | evidence(above(cells, i, text)) | elsewhere(text)
        for quantity in quantities:
            roughly = bool(ROUGHLY.search(quantity.string[: quantity.start()]))
            for number in numbers(quantity["all"]):
                if not is_sourced(number, quantity["unit"], sources, roughly=roughly):
                    around = quantity.string[max(0, quantity.start() - 60) : quantity.end() + 20]
                    found.append(TypedIn(i, str(number), " ".join(around.split())))
    return found


def main(paths: list[str]) -> int:
    """List the numbers that were typed in, in these files or in all."""
    count = 0
    for path in map(Path, paths or FILES):
        for number in typed_in(path):
            print(f"{path.name}, cell {number.cell}: {number.number} in “{number.words}”")
            count += 1
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
