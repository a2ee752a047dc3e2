"""The role ``chapter`` and the directive ``chapter-times``: links to chapters, and their lengths.

``{chapter}`04``` reads "chapter 04" and links to it; ``{chapter}`04, section 7``` says where, too.
A chapter that is not in the table of contents is named without a link.
"""

import json
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

import tables
from address import ROOT, contents, title

PLACE = re.compile(r"(\d\d)(, sections? \d+(?:(?:, | and | to )\d+)*)?")
LENGTH = re.compile(r"\*\*Time:?\*\*.*?about (\d+)\b.*?(\d+) (?:minutes )?more")


def pages() -> dict[str, str]:
    """Return the page of each chapter in the table of contents by its two digits."""
    return {Path(p).name[:2]: p for p in contents() if p.startswith("notebooks/")}


def minutes(path: Path) -> tuple[int, int]:
    """Return how long a chapter takes, and its exercises, as its first cell says.

    Raises
    ------
    ValueError
        If its first cell does not say so.
    """
    first = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])
    match = LENGTH.search(first)
    if not match:
        raise ValueError(
            f"{path.name} needs a line '**Time:** about N minutes, and M more for ...'"
        )
    return int(match[1]), int(match[2])


class Link(nodes.inline):
    """A chapter that is named, until all pages are read and it is known where its sections are."""


class ChapterRole(SphinxRole):
    """A link to a chapter, or to a section of it."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the words that become a link, or mere words where there is no such chapter yet."""
        match = PLACE.fullmatch(self.text)
        if not match:
            wrong = f"a chapter is two digits, such as 04 or '04, section 7', not {self.text!r}"
            message = self.inliner.reporter.error(wrong, line=self.lineno)
            return [self.inliner.problematic(self.rawtext, self.rawtext, message)], [message]
        self.env.note_dependency(str(ROOT / "_toc.yml"))
        text = f"chapter {self.text}"
        page = pages().get(match[1])
        if page is None:
            return [nodes.inline("", text)], []
        self.env.note_dependency(str(ROOT / f"{page}.ipynb"))  # its sections may be renamed
        sections = re.findall(r"\d+", match[2] or "")
        return [Link("", text, page=page, section=sections[0] if sections else "")], []


def anchors(doctree: nodes.document) -> dict[str, str]:
    """Return where a page's numbered sections are, such as "2" for "2. What the ReLU is for"."""
    found: dict[str, str] = {}
    for section in doctree.findall(nodes.section):
        number, dot, _ = section[0].astext().partition(".")
        if dot and number.isdigit():
            found.setdefault(number, section["ids"][0])
    return found


def _link(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Turn the chapters that a page names into links to the first section that is named."""
    known: dict[str, dict[str, str]] = {}
    for node in list(doctree.findall(Link)):
        target, number = node["page"], node["section"]
        if target not in known:
            known[target] = anchors(app.env.get_doctree(target))
        address = app.builder.get_relative_uri(page, target)
        if number in known[target]:
            address += f"#{known[target][number]}"
        elif number:
            logging.getLogger(__name__).warning(
                f"{target} has no section {number}", location=(page, node.line)
            )
        link = nodes.reference("", node.astext(), internal=True, refuri=address)
        node.replace_self(link)


class ChapterTimes(SphinxDirective):
    """Every chapter: its title, and how long it and its exercises take."""

    def run(self) -> list[nodes.Node]:
        """Return the table, with the sum in its last row."""
        rows, total = [], [0, 0]
        self.env.note_dependency(str(ROOT / "_toc.yml"))
        for number, page in pages().items():
            path = ROOT / f"{page}.ipynb"
            self.env.note_dependency(str(path))
            took = minutes(path)
            total = [sum(pair) for pair in zip(total, took, strict=True)]
            rows.append([number, title(path), *map(str, took)])
        hours = [f"{t / 60:.0f} hours" for t in total]
        numbers = ["to read and run, min", "exercises, min"]
        return [tables.table(["", "chapter", *numbers], [*rows, ["", "all", *hours]], numbers)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_role("chapter", ChapterRole())
    app.connect("doctree-resolved", _link)
    app.add_directive("chapter-times", ChapterTimes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
