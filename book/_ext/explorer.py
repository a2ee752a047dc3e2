"""The directive ``explorer``: a part of a page that computes attention under the reader's fingers.

``{explorer} paint`` puts an empty box, the scripts that fill it, and their data on a page. What
the directive holds is the text for those who cannot use it: without JavaScript, and in print.
The scripts are plain files, for a page opened from a folder may load nothing else.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from explorer_network import NetworkStill, network_data
from explorer_paint import PaintExample, paint_data

SOURCE = Path(__file__).resolve().parents[1] / "explorer"
FOLDER = "explorer"  # below the site, not below _static, whose scripts every page would load
# The scripts of each part, in the order in which they need one another.
PARTS: dict[str, tuple[str, ...]] = {
    "hero": ("attention.js", "paint-data.js", "hero.js"),
    "paint": (
        "attention.js",
        "paint-data.js",
        "dom.js",
        "grids.js",
        "paint-trace.js",
        "paint-flow.js",
        "paint-dock.js",
        "paint-share.js",
        "paint-tasks.js",
        "paint.js",
    ),
    "look": (
        *("attention.js", "network.js", "network-data.js", "dom.js"),
        *("look-draw.js", "look-picture.js", "look-pick.js", "look-photo.js", "look-blocks.js"),
        "look.js",
    ),
}
# The scripts that hold data, and what writes them.
DATA: dict[str, Callable[[], str]] = {
    "network-data.js": network_data,
    "paint-data.js": paint_data,
}


class Explorer(SphinxDirective):
    """A part of the explorer, around the text that stands in its place where it cannot run."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the box with its fallback, and note which scripts the page needs."""
        part = self.arguments[0]
        if part not in PARTS:
            raise self.error(f"explorer must be one of {', '.join(PARTS)}; got {part!r}")
        self.env.metadata[self.env.docname].setdefault("explorer", []).append(part)
        fallback = nodes.container("", classes=["explorer-fallback"])
        self.state.nested_parse(self.content, self.content_offset, fallback)
        return [nodes.container("", fallback, classes=["explorer"], ids=[f"explorer-{part}"])]


def add_scripts(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Load the explorer's scripts on the pages that have a part of it, and on no other."""
    parts = app.env.metadata.get(page, {}).get("explorer", [])
    scripts = dict.fromkeys(script for part in parts for script in PARTS[part])
    for script in scripts:
        app.add_js_file(f"../{FOLDER}/{script}", loading_method="defer")
    for part in parts:
        if (SOURCE / f"{part}.css").is_file():  # a part may have a style sheet of its own
            app.add_css_file(f"../{FOLDER}/{part}.css")


def copy_scripts(app: Sphinx, error: Exception | None) -> None:
    """Put the scripts into the site, and write the data that they work on."""
    if error is None and app.builder.format == "html":
        target = Path(app.outdir) / FOLDER
        target.mkdir(exist_ok=True)
        for path in sorted(SOURCE.iterdir()):
            (target / path.name).write_bytes(path.read_bytes())
        for name, text in DATA.items():
            (target / name).write_text(text(), encoding="utf-8", newline="\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("explorer", Explorer)
    app.add_directive("network-still", NetworkStill)
    app.add_directive("paint-example", PaintExample)
    app.connect("html-page-context", add_scripts)
    app.connect("build-finished", copy_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
