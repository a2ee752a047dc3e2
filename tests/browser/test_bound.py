"""The book that `make pdf` prints: bound from the built site, its links lead somewhere."""

import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

import address
import binding
from built import SITE
from published import PDF


@pytest.fixture(scope="module")
def book():
    """Return the whole book as one page, parsed."""
    text = binding.bound(SITE, "A title", "its authors", ["a fact"], {"book-intro": 3})
    return BeautifulSoup(text, "html.parser")


def test_every_link_within_the_book_leads_to_one_place(book):
    places = Counter(element["id"] for element in book.find_all(id=True))
    assert [name for name, count in places.items() if count > 1] == []
    links = {link["href"][1:] for link in book.select('a[href^="#"]')}
    assert len(links) > 500
    assert sorted(links - set(places)) == []


def test_what_is_no_page_of_the_book_is_linked_on_the_site(book):
    links = [urlsplit(link["href"]) for link in book.select("a[href]")]
    assert {link.scheme for link in links} <= {"", "https", "http", "mailto"}
    own = urlsplit(address.site())
    paths = {link.path for link in links if link.netloc == own.netloc}
    files = {unquote(path.removeprefix(own.path)) or "index.html" for path in paths}
    assert len(files) > 10
    assert [name for name in files if not (SITE / name).exists() and name != PDF] == []


def test_pictures_and_styles_are_there(book):
    named = [element["src"] for element in book.select("img, script[src]")]
    named += [element["href"] for element in book.select("link[href]")]
    assert len(named) > 100
    paths = [Path(unquote(urlsplit(name).path)) for name in named if name.startswith("file:")]
    assert {name.partition(":")[0] for name in named} <= {"file", "data"}
    assert [path for path in paths if not path.is_file()] == []


def test_nothing_is_folded_and_the_contents_have_every_page(book):
    assert book.find("details") is None
    entries = [entry["href"][1:] for entry in book.select(".contents .entry a")]
    assert entries == [*map(binding.slug, address.contents()), binding.ANSWERS]
    assert book.select_one(".contents .entry").get_text().endswith("3")
    assert re.search("a fact", book.select_one(".cover").get_text())
