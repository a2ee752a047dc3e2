"""Tables of counted and recorded figures, and links to the files that they are read from."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Collection[str],
    worded: bool = False,
) -> nodes.table:
    """Return a table; the columns whose headings are among `numbers` are set to the right.

    Cells take one line each; those of a `worded` table that are no numbers take as many as needed.
    """

    def row(cells: Sequence[str]) -> nodes.row:
        line = nodes.row()
        for heading, cell in zip(headings, cells, strict=True):
            side = "text-right" if heading in numbers else "text-left"
            line += nodes.entry("", nodes.paragraph("", cell), classes=[side])
        return line

    group = nodes.tgroup(cols=len(headings))
    group += [nodes.colspec(colwidth=1) for _ in headings]
    group += nodes.thead("", row(headings))
    group += nodes.tbody("", *map(row, rows))
    return nodes.table("", group, classes=["figures", *["worded"] * worded])


def download(env: BuildEnvironment, path: Path, name: str = "") -> addnodes.download_reference:
    """Return a link, on the page that is read, to a copy of a file beside the site."""
    text = nodes.literal("", name or path.name)
    target = f"/{path.relative_to(env.srcdir)}"
    return addnodes.download_reference("", "", text, reftarget=target, refdoc=env.docname)


def _focusable(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Let the keyboard scroll tables that are wider than the screen (WCAG 2.1.1)."""
    if "body" in context:
        context["body"] = context["body"].replace("<table ", '<table tabindex="0" ')


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("html-page-context", _focusable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
