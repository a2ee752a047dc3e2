"""Keep pages light: each loads what it uses, and the icons' font holds the icons that are there.

The theme brings every icon of Font Awesome three times: as a script of 1.5 MB, as fonts of
0.3 MB, and as names in its style sheet. The names and fonts are enough, and of those the ones
that some page shows. The search's index is for the search page alone.
"""

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydata_sphinx_theme
from fontTools import subset
from sphinx.application import Sphinx

THEME = Path(pydata_sphinx_theme.__file__).parent / "theme/pydata_sphinx_theme/static"
STYLE = Path("styles/pydata-sphinx-theme.css")
FONTS = Path("vendor/fontawesome/webfonts")
# What the theme declares on every page, and only some page, or none, needs.
SCRIPTS = ("fontawesome.js", "searchtools.js", "language_data.js", "searchindex.js")
# Made for those who build the theme, not for those who read.
SPARE = (
    "**/*.map",
    "*webpack-macros.html",
    "locales",
    "scripts/fontawesome.js*",
    "sphinx-thebe.*",
    "vendor/fontawesome/webfonts/*",
)
RULE = re.compile(r'(\.fa-[\w-]+:before(?:,\.fa-[\w-]+:before)*)\{content:"\\(\w+)"\}')
SOURCE = re.compile(
    r'url\(([\w./-]+?)\.woff2\) format\("woff2"\),url\(\1\.ttf\) format\("truetype"\)'
)


def lighter(head: str) -> str:
    """Return a part of a page's head without the scripts that the page does not use."""
    names = "|".join(map(re.escape, SCRIPTS))
    return re.sub(rf"\s*<script[^>]* src=\"[^\"]*/?(?:{names})[?\"][^>]*></script>", "", head)


def names(file: Any, word: str) -> bool:
    """Return whether a script or style sheet, by its name or by what it holds, is of `word`."""
    return word in f"{file.filename} {file.attributes.get('body', '')}".lower()


def trim_head(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Give the template what it calls, and take off the page what it has no use for.

    That is live code, which is not here, and the script for mathematics where there is none:
    Sphinx loads that on the landing page for the sake of the pages below it.
    """
    context["lighter"] = lighter
    book, own = app.config.html_title, context.get("title", "")
    context["page_title"] = book if page == app.config.root_doc else f"{own} — {book}"
    has_equations = app.env.get_domain("math").data["has_equations"].get(page, False)
    needless = ("thebe",) if has_equations else ("thebe", "mathjax")
    for kind in ("script_files", "css_files"):
        context[kind] = [
            file for file in context[kind] if not any(names(file, word) for word in needless)
        ]


def icons_shown(site: Path) -> set[str]:
    """Return every name like ``fa-moon`` in the pages and scripts of `site`."""
    files = (path for ending in ("html", "js") for path in site.rglob(f"*.{ending}"))
    texts = (path.read_text("utf-8") for path in files if path.name != "fontawesome.js")
    return {name for text in texts for name in re.findall(r"\bfa-[\w-]+", text)}


def only(icons: set[str], style: str) -> str:
    """Return the theme's `style` without the icons that are not among `icons`."""

    def rule(match: re.Match[str]) -> str:
        names = re.findall(r"\.([\w-]+):before", match[1])
        return match[0] if icons.intersection(names) else ""

    kept, count = SOURCE.subn(r'url(\1.woff) format("woff")', RULE.sub(rule, style))
    if count != 3:
        raise ValueError(f"the theme's style sheet names {count} icon fonts, not 3: see light.py")
    return kept


def characters(styles: Iterator[str]) -> set[int]:
    """Return the code points that the style sheets write by number, as icons are."""
    return {int(code, 16) for style in styles for code in re.findall(r'"\\(\w{4})"', style)}


def write_font(source: Path, code_points: set[int], target: Path) -> None:
    """Write the glyphs of the font `source` for the `code_points` to `target`."""
    options = subset.Options(flavor="woff", recalc_timestamp=False, notdef_outline=True)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=code_points)
    target.parent.mkdir(parents=True, exist_ok=True)
    with subset.load_font(source, options) as font:
        cutter.subset(font)
        subset.save_font(font, target, options)


def lighten(app: Sphinx, error: Exception | None) -> None:
    """Take from the finished site what no page loads, and cut the icons to those it shows."""
    if error is not None or app.builder.format != "html":
        return
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of every glyph
    static = Path(app.outdir) / "_static"
    icons = icons_shown(Path(app.outdir))
    for path in {path for pattern in SPARE for path in static.glob(pattern)}:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (static / STYLE).write_text(only(icons, (THEME / STYLE).read_text("utf-8")), "utf-8")
    code_points = characters(path.read_text("utf-8") for path in static.rglob("*.css"))
    for font in sorted((THEME / FONTS).glob("*.ttf")):
        write_font(font, code_points, static / FONTS / font.with_suffix(".woff").name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("html-page-context", trim_head, priority=900)
    app.connect("build-finished", lighten, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
