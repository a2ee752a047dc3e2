"""Let the search show the words around what it found in a folder, too, without a server.

The words of every page are written into a script, with the places in a page that the search may
lead to. Only the search page of a site that was opened from a folder loads it.
"""

import html
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from address import contents

FOLDER = "search"  # below the site, not below _static, whose scripts every page would load
READER = Path(__file__).with_name("excerpts.js")
EMPTY = {"br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}
SILENT = {"script", "style", "svg"}


class Words(HTMLParser):
    """The text of a page's article, in elements that have a name and in no others."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.kept: list[str] = []
        self.open: list[tuple[str, str]] = []  # elements in the article, and what ends each
        self.silent = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element of the article, and keep it if it has a name."""
        found = dict(attrs)
        article = tag == "article" and "bd-article" in (found.get("class") or "")
        if tag in EMPTY or not (self.open or article):
            return
        quiet = tag in SILENT or "headerlink" in (found.get("class") or "")
        self.silent += quiet
        name = found.get("id")
        if name and not self.silent:
            self.kept.append(f'<div id="{html.escape(name)}">')
        self.open.append((tag, "quiet" if quiet else "</div>" if name and not self.silent else ""))

    def handle_endtag(self, tag: str) -> None:
        """Close an element, with those within it that were left open."""
        if tag in EMPTY or tag not in [opened for opened, _ in self.open]:
            return
        closed = ""
        while closed != tag:
            closed, end = self.open.pop()
            self.silent -= end == "quiet"
            self.kept.append(end if end == "</div>" else "")

    def handle_data(self, data: str) -> None:
        """Keep the text of the article."""
        if self.open and not self.silent:
            self.kept.append(html.escape(data, quote=False))


def words(page: str) -> str:
    """Return the text of a page in the form in which the search looks for it."""
    return f'<main role="main">{"".join(Words(page).kept)}</main>'


def add_reader(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Load the script that finds the words on the search page, and on no other."""
    if page == "search":
        app.add_js_file(f"../{FOLDER}/{READER.name}")


def write(app: Sphinx, error: Exception | None) -> None:
    """Write the words of all pages, and the script that finds them."""
    if error is not None or app.builder.name != "html":
        return
    out = Path(app.outdir)
    names = [app.builder.get_target_uri(page) for page in contents()]
    pages = {name: words((out / name).read_text("utf-8")) for name in names}
    (out / FOLDER).mkdir(exist_ok=True)
    (out / FOLDER / READER.name).write_bytes(READER.read_bytes())
    text = json.dumps(pages, ensure_ascii=False).replace("</", "<\\/")
    script = f'"use strict";\nwindow.cbam = window.cbam || {{}};\nwindow.cbam.words = {text};\n'
    (out / FOLDER / "words.js").write_text(script, "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("html-page-context", add_reader)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
