"""The built site: where it lies, and which pages it has."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(os.environ.get("CBAM_EDU_SITE", ROOT / "_build/html")).resolve()
HOME = "book/intro.html"
NOT_BUILT = f"There is no built site in {SITE}: run make book, or set CBAM_EDU_SITE to its folder."


def pages(folder=SITE):
    """Return the path of every page below a site's folder, but for what the theme keeps there."""
    found = (path.relative_to(folder) for path in folder.rglob("*.html"))
    return sorted(path.as_posix() for path in found if path.parts[0] != "_static")
