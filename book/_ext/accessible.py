"""Mend what Sphinx writes that a screen reader cannot make sense of."""

import re
from typing import Any

from sphinx.application import Sphinx

MODULES = "_modules/index"  # the list of all modules whose source is on the site
LISTS = re.compile(r"<ul>.*</ul>", re.DOTALL)


def mended(page: str, body: str) -> str:
    """Return the body of a page with lists that hold items and nothing else.

    Sphinx writes references in a role that browsers gave up, and modules below a package as a list
    in a list instead of in an item.
    """
    body = body.replace('role="doc-biblioentry"', 'role="listitem"')
    if page == MODULES:
        body = LISTS.sub(lambda all_: f"<ul>{re.sub('</?ul>', '', all_[0])}</ul>", body)
    return body


def mend(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Mend a page before it is written."""
    if "body" in context:
        context["body"] = mended(page, context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("html-page-context", mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
