"""The landing page's own parts, and the book's mark on every page.

The directive ``gates`` is the picture that ``hero.js`` moves. ``{minutes}`04``` reads how long a
chapter takes, from its first cell; ``{colab}`00``` is where Colab opens it.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

from address import ROOT, colab
from chapters import minutes, pages
from diagram import page_picture

WORDS = (
    "Five columns of small grids. A feature map F of four channels is multiplied by a column of "
    "four numbers, one a channel, and three of the channels fade. The result is multiplied by one "
    "grid of numbers, one a place, and what is left is one bright spot."
)
ICONS = (
    ("icon", "_static/favicon.png", ' sizes="96x96" type="image/png"'),
    ("apple-touch-icon", "_static/touch-icon.png", ""),
)


class Gates(SphinxDirective):
    """The picture of a small CBAM at work: HTML that a script moves, a file elsewhere."""

    def run(self) -> list[nodes.Node]:
        """Return the picture, with words for those who do not see it."""
        still = nodes.raw("", page_picture(), format="html")
        words = nodes.paragraph("", WORDS, classes=["visually-hidden"])
        return [still, words]


class Colab(SphinxRole):
    """A link that opens a chapter in Colab."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the link."""
        page = pages()[self.text]
        words = f"Open chapter {self.text} in Colab"
        return [nodes.reference("", words, refuri=colab(f"{page}.ipynb"))], []


class Minutes(SphinxRole):
    """How long a chapter takes, its exercises apart."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the minutes that the chapter's first cell states."""
        path = ROOT / f"{pages()[self.text]}.ipynb"
        self.env.note_dependency(str(path))
        return [nodes.inline("", f"{minutes(path)[0]} min", classes=["minutes"])], []


def _dress(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Name the mark in pixels, too, for what cannot show the SVG; give the front its style."""
    if page == app.config.root_doc:
        app.add_css_file("landing.css")
    for kind, path, more in ICONS:
        address = context["pathto"](path, resource=True)
        context["metatags"] = context.get("metatags", "") + (
            f'<link rel="{kind}" href="{address}"{more} />\n'
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("gates", Gates)
    app.add_role("colab", Colab())
    app.add_role("minutes", Minutes())
    app.connect("html-page-context", _dress)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
