"""Let a page need nothing but this site, or a copy of its folder: MathJax is from a package."""

import importlib.metadata
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.fileutil import copy_asset

# The package is used as a box of files: its own extension copies all and draws on the wrong one.
PACKAGE = "sphinx-mathjax-offline"
LOADER = "tex-mml-chtml.js"
FONTS = "output/chtml/fonts/woff-v2"
FOLDER = "mathjax"  # below the site, not below _static, whose scripts every page would load


def mathjax() -> Path:
    """Return the folder of the installed package that holds MathJax 3."""
    files = importlib.metadata.files(PACKAGE) or []
    loaders = [file for file in files if file.name == LOADER]
    if len(loaders) != 1:
        raise FileNotFoundError(f"{PACKAGE} holds {len(loaders)} files named {LOADER}, not one")
    return Path(str(loaders[0].locate())).parent


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Put MathJax's loader and fonts into the site."""
    if error is None and app.builder.format == "html":
        source, target = mathjax(), Path(app.outdir) / FOLDER
        copy_asset(source / LOADER, target)
        copy_asset(source / FONTS, target / FONTS)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("build-finished", copy_mathjax)
    # Sphinx takes the path from _static, where it keeps what belongs to every page.
    app.connect(
        "config-inited",
        lambda _, config: setattr(config, "mathjax_path", f"../{FOLDER}/{LOADER}"),
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
