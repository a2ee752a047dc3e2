"""The built site: where it lies, which pages it has, and what they link to."""

import os
import posixpath
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import address

SITE = Path(os.environ.get("CBAM_EDU_SITE", address.ROOT / "_build/html")).resolve()
NOT_BUILT = f"There is no built site in {SITE}: run make book, or set CBAM_EDU_SITE to its folder."
PREFIX = urlsplit(address.site()).path  # where the site is on its host; 404.html needs to know
HOME = "index.html"
LOGO = "logo__image"
CONTENTS = [f"{page}.html" for page in address.contents()]
CHAPTERS = [page for page in CONTENTS if page.startswith("notebooks/")]


def pages(folder=SITE):
    """Return the path of every page below a site's folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))


class Parsed(HTMLParser):
    """What other pages, or a blind reader, need of a page: its places, links and pictures.

    ``places`` holds what a link can lead to, ``links`` every address that the page names, and
    ``wordless`` the pictures without a text that could stand for them.
    """

    def __init__(self, html):
        super().__init__()
        self.places, self.links, self.wordless, self.following = {"", "top"}, [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        """Note what one element has."""
        found = dict(attributes)
        self.places |= {found[name] for name in ("id", "name") if found.get(name)}
        self.links += [found[name] for name in ("href", "src", "data") if found.get(name)]
        if "right-next" in (found.get("class") or "").split():
            self.following = found["href"]
        if not says_what_it_shows(tag, found):
            self.wordless.append(self.get_starttag_text()[:200])


def says_what_it_shows(tag, attributes):
    """Return whether an element is no picture, or one with words that are not its file's name."""
    if LOGO in (attributes.get("class") or "").split():
        return attributes.get("alt") == ""  # the name beside it would be said twice
    if tag == "img":
        words = attributes.get("alt") or ""
    elif tag == "svg" or attributes.get("role") == "img":
        if attributes.get("aria-hidden") == "true":
            return True
        words = attributes.get("aria-label") or attributes.get("aria-labelledby") or ""
    else:
        return True
    return bool(words.strip()) and not words.endswith((".png", ".svg", ".jpg"))


@cache
def parsed(name):
    """Return a page of the site, parsed."""
    return Parsed((SITE / name).read_text("utf-8"))


def target(page, link, prefix=PREFIX):
    """Return the file, relative to the site, and the place in it that a page's link leads to.

    None is returned for a link that leaves the site.
    """
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    path = unquote(parts.path)
    if path.startswith("/"):
        path = path.removeprefix(prefix) if path.startswith(prefix) else f"..{path}"
    else:
        path = posixpath.join(posixpath.dirname(page), path) if path else page
    path = posixpath.normpath(path or HOME)
    return (f"{path}/{HOME}" if (SITE / path).is_dir() else path), unquote(parts.fragment)


def leads_somewhere(page, link):
    """Return whether a link leaves the site, or what it leads to is there."""
    if target(page, link) is None:
        return True
    path, place = target(page, link)
    if not (SITE / path).is_file():
        return False
    return not path.endswith(".html") or place in parsed(path).places
