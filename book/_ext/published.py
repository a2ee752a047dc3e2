"""Tell other machines where the site is and what it is: all of it from one address.

Every page gets its canonical address and the tags that make a good card of a shared link; the
site gets ``sitemap.xml``, ``robots.txt``, ``404.html`` and an ``index.html`` that is the landing
page itself, not a page that sends on to it.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit
from xml.sax.saxutils import escape

import yaml
from sphinx.application import Sphinx
from sphinx.config import Config

from address import ROOT, contents, site

CARD = "_static/social-card.png"
CARD_WORDS = "The CBAM Book: a feature map is reweighted, first by channel, then by place"
PDF = "The-CBAM-Book.pdf"  # `make pdf` writes it; the published site has it
MISSING = "404"  # what GitHub Pages serves for an address where nothing is
LINK = re.compile(r'(?<=\s)(href|src|action|poster|data-content_root|data-src)="([^"]*)"')


def configure(app: Sphinx, config: Config) -> None:
    """Give every extension that wants to know it the address of the site."""
    config.html_baseurl = config.ogp_site_url = site()
    config.ogp_site_name = config.html_title
    config.ogp_image, config.ogp_image_alt = CARD, CARD_WORDS
    # It leads to the published site, since a site that was built at home need not have the file.
    link = f'<p>The whole book: <a href="{urljoin(site(), PDF)}">PDF</a>.</p>'
    config.html_theme_options["extra_footer"] += link
    config.ogp_custom_meta_tags = ['<meta name="twitter:card" content="summary_large_image" />']


def address_of(app: Sphinx, page: str) -> str:
    """Return the one address of `page` that others should know."""
    front = page == app.config.root_doc
    return urljoin(site(), "" if front else app.builder.get_target_uri(page))


def name_the_front(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Let the landing page say that the site's own address is its own; nothing has none."""
    if page == MISSING:
        context["pageurl"] = None
    if page == app.config.root_doc:
        long = urljoin(site(), app.builder.get_target_uri(page))
        context["pageurl"] = address_of(app, page)
        context["metatags"] = context["metatags"].replace(f'"{long}"', f'"{site()}"')


def missing_page(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the page that is shown where there is none."""
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))["parts"]
    listed = [
        (part["caption"], [chapter["file"] for chapter in part["chapters"]]) for part in parts
    ]
    titles = {page: app.env.titles[page].astext() for page in contents()}
    context = {"title": "There is no such page", "parts": listed, "titles": titles}
    yield MISSING, context | {"site": site(), "root": urlsplit(site()).path}, f"{MISSING}.html"


def moved_to_root(page: str, folder: str) -> str:
    """Return the HTML of a `page` in `folder` as it must be to stand in the site's root."""

    def link(match: re.Match[str]) -> str:
        url = urlsplit(match[2])
        if url.scheme or url.netloc or not url.path or url.path.startswith("/"):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, url.path))
        path += "/" if url.path.endswith("/") else ""
        return f'{match[1]}="{url._replace(path=path).geturl()}"'

    return LINK.sub(link, page)


def sitemap(addresses: list[str]) -> str:
    """Return the addresses in the form that search engines read."""
    lines = "".join(f"  <url><loc>{escape(address)}</loc></url>\n" for address in addresses)
    space = "http://www.sitemaps.org/schemas/sitemap/0.9"
    return f'<?xml version="1.0" encoding="utf-8"?>\n<urlset xmlns="{space}">\n{lines}</urlset>\n'


def write(app: Sphinx, error: Exception | None) -> None:
    """Write the landing page, the site map and the word to robots into the site's root."""
    if error is not None or app.builder.name != "html":
        return
    out, front = Path(app.outdir), Path(app.builder.get_target_uri(app.config.root_doc))
    landing = moved_to_root((out / front).read_text("utf-8"), front.parent.as_posix())
    (out / "index.html").write_text(landing, "utf-8")
    addresses = [address_of(app, page) for page in contents()]
    (out / "sitemap.xml").write_text(sitemap(addresses), "utf-8")
    # Robots look for it at the root of a host only, so it counts once the site has one of its own.
    robots = f"User-agent: *\nAllow: /\nSitemap: {urljoin(site(), 'sitemap.xml')}\n"
    (out / "robots.txt").write_text(robots, "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("config-inited", configure)
    app.connect("html-page-context", name_the_front, priority=900)
    app.connect("html-collect-pages", missing_page)
    app.connect("build-finished", write, priority=950)  # after all that changes a page
    return {"parallel_read_safe": True, "parallel_write_safe": True}
