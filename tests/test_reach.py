"""How far the site reaches: its weight, its addresses, and the pages that no source page is."""

import re
import time
import xml.etree.ElementTree
from types import SimpleNamespace
from urllib.parse import urljoin

import pikepdf
import pytest
import yaml

import address
import binding
import browser
import excerpts
import light
import pdf
import published
import reproducible
from notebook_cells import ROOT

# What a page carries


def test_a_page_loses_the_scripts_that_it_does_not_use_and_no_other():
    head = """
    <script defer src="../_static/scripts/fontawesome.js?digest=1"></script>
    <script src="../searchindex.js"></script>
    <script src="../_static/searchtools.js"></script>
    <script src="_static/doctools.js?v=1"></script>
    <script>let searchindex = "searchindex.js";</script>"""
    kept = light.lighter(head)
    assert re.findall(r"<script.*", kept) == [line.strip() for line in head.splitlines()[-2:]]


def trimmed(page, has_equations):
    """Return the scripts that are left on a page of a book whose pages may have equations."""
    files = ["a.js", "sphinx-thebe.js", "../mathjax/tex-mml-chtml.js"]
    scripts = [SimpleNamespace(filename=file, attributes={}) for file in files]
    scripts.append(SimpleNamespace(filename="", attributes={"body": "window.MathJax = {}"}))
    context = {"title": page, "script_files": scripts, "css_files": []}
    domain = SimpleNamespace(data={"has_equations": {page: has_equations}})
    app = SimpleNamespace(
        config=SimpleNamespace(html_title="Book", root_doc="intro"),
        env=SimpleNamespace(get_domain=lambda name: domain),
    )
    light.trim_head(app, page, "page.html", context, None)
    return [script.filename for script in context["script_files"]], context["page_title"]


def test_mathematics_is_loaded_where_there_is_some():
    assert trimmed("intro", False) == (["a.js"], "Book")
    assert trimmed("gate", True) == (["a.js", "../mathjax/tex-mml-chtml.js", ""], "gate — Book")


def test_the_icons_that_are_shown_stay():
    style = (light.THEME / light.STYLE).read_text("utf-8")
    kept = light.only({"fa-moon", "fa-search"}, style)
    assert ".fa-moon:before" in kept
    assert ".fa-magnifying-glass:before,.fa-search:before" in kept  # two names of one icon
    assert "fa-yin-yang" in style
    assert "fa-yin-yang" not in kept
    assert ".woff2" not in kept
    assert len(kept) < len(style) - 50_000


def test_another_theme_is_noticed():
    with pytest.raises(ValueError, match="names 0 icon fonts, not 3"):
        light.only(set(), ".fa-moon:before{}")


def test_the_icon_font_has_the_icons_and_is_small(tmp_path):
    source = light.THEME / light.FONTS / "fa-solid-900.ttf"
    light.write_font(source, {0xF186}, tmp_path / "first.woff")
    light.write_font(source, {0xF186}, tmp_path / "second.woff")
    first = (tmp_path / "first.woff").read_bytes()
    assert first[:4] == b"wOFF"
    assert 200 < len(first) < 5_000
    assert first == (tmp_path / "second.woff").read_bytes()


def test_icons_are_found_in_pages_and_scripts(tmp_path):
    (tmp_path / "page.html").write_text('<i class="fas fa-moon fa-lg"></i>')
    (tmp_path / "some.js").write_text("icon.className = 'fa-xmark'")
    (tmp_path / "fontawesome.js").write_text("'fa-bus'")
    assert light.icons_shown(tmp_path) == {"fa-moon", "fa-lg", "fa-xmark"}


# Where the site is


def test_the_site_is_where_github_serves_it(monkeypatch):
    owner, name = address.owner_and_name(address.config()["repository"]["url"])
    assert address.site() == f"https://{owner}.github.io/{name}/"
    own = {"repository": {"url": "https://github.com/Someone/someone.github.io"}}
    monkeypatch.setattr(address, "config", lambda: own)
    assert address.site() == "https://Someone.github.io/"


def test_a_page_moved_to_the_root_leads_to_the_same_places():
    page = """<html data-content_root="../"><a href="how_to_read.html#here">
      <img src="../_images/a.svg" alt="href"><a href="#below"><form action="../search.html?q=1">
      <a href="https://example.org/x"><a href="../"><a href="//host/x"><a href="/x">"""
    moved = published.moved_to_root(page, "book")
    base = "https://example.com/site/"
    before = [urljoin(f"{base}book/intro.html", link) for _, link in published.LINK.findall(page)]
    after = [urljoin(f"{base}index.html", link) for _, link in published.LINK.findall(moved)]
    assert before[2] == f"{base}_images/a.svg"
    within = before.index(f"{base}book/intro.html#below")
    assert after[within] == f"{base}index.html#below"
    del before[within], after[within]
    assert before == after


def test_the_site_map_is_read_as_it_was_meant():
    addresses = ["https://example.org/", "https://example.org/a.html?b=1&c=2"]
    tree = xml.etree.ElementTree.fromstring(published.sitemap(addresses).encode())
    assert [entry.text for entry in tree.iter() if entry.tag.endswith("loc")] == addresses


def test_the_card_of_a_shared_link_is_there():
    assert (ROOT / "book" / published.CARD).exists()


# The browser


class NoBrowser:
    """Playwright where nothing was installed."""

    class chromium:
        executable_path = "/nowhere/chromium"


def test_the_browser_that_is_named_is_the_one(monkeypatch, tmp_path):
    program = tmp_path / "my-chromium"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("CHROMIUM", str(program))
    assert browser.executable(NoBrowser()) == str(program)
    monkeypatch.delenv("CHROMIUM")
    monkeypatch.setenv("PATH", str(tmp_path))
    program.rename(tmp_path / "chromium")
    assert browser.executable(NoBrowser()) == str(tmp_path / "chromium")


@pytest.mark.parametrize("named", [None, "/nowhere/at/all"])
def test_without_a_browser_one_is_told_how_to_get_one(monkeypatch, tmp_path, named):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    if named:
        monkeypatch.setenv("CHROMIUM", named)
    with pytest.raises(browser.BrowserNotFoundError, match="playwright install chromium") as told:
        browser.executable(NoBrowser())
    assert (named or "") in str(told.value)


def test_the_words_of_a_page_are_kept_with_their_places():
    page = """<nav id="side">menu</nav><article class="bd-article"><h1 id="top">A &lt; B
      <a class="headerlink" href="#top">#</a></h1><p>one<br>two <em>three</em></p>
      <script>let hidden = "</p>";</script><ul><li id="x&quot;">four<li>five</ul></article>six"""
    found = excerpts.words(page)
    tree = xml.etree.ElementTree.fromstring(found)
    assert " ".join("".join(tree.itertext()).split()) == "A < B onetwo three fourfive"
    assert [element.get("id") for element in tree.iter("div")] == ["top", 'x"']
    assert "".join(tree.find("div").itertext()).strip() == "A < B"


# The book in print


def two_pages():
    """Return a PDF of two pages, each with a name, as Chromium writes them."""
    book = pikepdf.new()
    for _ in range(2):
        book.add_blank_page()
    first, second = (page.obj for page in book.pages)
    place = [pikepdf.Name.XYZ, 0, 800, 0]
    book.Root.Dests = pikepdf.Dictionary(late=[second, *place], early=[first, *place])
    return book


def test_chapters_are_found_on_their_pages():
    assert pdf.page_numbers(two_pages()) == {"early": 1, "late": 2}
    assert pdf.page_numbers(pikepdf.new()) == {}


def test_a_finished_book_is_the_same_whenever_it_is_written_and_its_objects_are_packed(tmp_path):
    written = [tmp_path / "a.pdf", tmp_path / "b.pdf"]
    for path, year in zip(written, ("2029", "2030"), strict=True):
        book = two_pages()
        book.docinfo["/CreationDate"] = f"D:{year}0101000000+00'00'"
        pdf.finish(book, time.gmtime(86_400), path)
    assert written[0].read_bytes() == written[1].read_bytes()
    assert b"/ObjStm" in written[0].read_bytes()
    with pikepdf.open(written[0]) as book:
        assert pdf.page_numbers(book) == {"early": 1, "late": 2}
        assert book.docinfo["/CreationDate"] == "D:19700102000000+00'00'"


def test_the_book_bears_its_commit_and_the_time_of_it(monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    known = ("abc1234", 86_400)
    assert pdf.facts(known)[0].endswith("commit abc1234 of 1970-01-02")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "172800")
    assert "commit abc1234 of 1970-01-03" in pdf.facts(known)[0]


CHAPTER = """<article class="bd-article"><section id="a"><h1>A<a class="headerlink">#</a></h1>
<p id="here">See <a href="#here">here</a>, <a href="../book/solutions.html#chapter-03">there</a>,
<a href="../_downloads/x.ipynb">a file</a> and <a href="https://example.org/">elsewhere</a>.</p>
<section id="exercise-3-2"><h3>Exercise 3.2: build</h3>
<details><summary>Hint</summary><p>Think.</p></details>
<details><summary>Solution</summary><p>Done.</p></details></section>
<section id="question-3-1"><h3>Question 3.1</h3>
<details><summary>A. Yes</summary><p>✗ No. Never.</p></details>
<details><summary>B. No</summary><p>✓ Yes. Indeed.</p></details></section>
<details><summary>More</summary><p>Much more.</p></details></section></article>"""


def test_links_lead_within_the_book_where_they_can():
    article = binding.fragment(CHAPTER)
    binding.rename(article, "notebooks/03", {"notebooks/03", "book/solutions"}, ROOT)
    links = [link["href"] for link in article.find_all("a", href=True)]
    assert links == [
        "#notebooks-03--here",
        "#book-solutions--chapter-03",
        f"{address.site()}_downloads/x.ipynb",
        "https://example.org/",
    ]
    assert article.find("p")["id"] == "notebooks-03--here"


def test_what_is_folded_stands_elsewhere_in_the_book_and_is_linked():
    article, answers = binding.fragment(CHAPTER), binding.Answers()
    binding.unfold(article, {"book-solutions--solution-3-2"}, answers)
    assert not article.find("details")
    ways = [(way.get_text(), way.a["href"]) for way in article.select(".folded")]
    assert ways == [
        ("Hint", "#hints-and-answers--1"),
        ("Solution", "#book-solutions--solution-3-2"),
        ("Answers", "#hints-and-answers--2"),
    ]
    assert [option.get_text() for option in article.select(".option")] == ["A. Yes", "B. No"]
    kept = "".join(answers.chapters)
    assert "Think." in kept
    assert "Indeed." in kept
    assert "Done." not in kept
    assert article.select_one(".opened").get_text() == "More"
    assert "Much more." in article.get_text()
    assert "Indeed." not in article.get_text()
    with pytest.raises(ValueError, match=r"has none of 'Exercise 3\.2"):
        binding.unfold(binding.fragment(CHAPTER), set(), binding.Answers())


# Publishing


def test_the_site_is_published_from_tags_with_its_pdf_and_no_more_rights_than_it_needs():
    text = (ROOT / ".github/workflows/pages.yml").read_text("utf-8")
    workflow = yaml.load(text, yaml.BaseLoader)
    assert workflow["on"] == {"push": {"tags": ["v*"]}, "workflow_dispatch": ""}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert f"cp _build/{published.PDF} _build/html/" in [step.get("run") for step in steps]


def test_a_difference_between_two_builds_is_seen(tmp_path):
    for name, words in (("a", "same"), ("b", "same")):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep/page.html").write_text(words)
    one, other = tmp_path / "a", tmp_path / "b"
    assert reproducible.differences(one, other) == []
    (one / "deep/page.html").write_text("built at 10:00")
    (other / "stale.html").write_text("")
    assert reproducible.differences(one, other) == ["deep/page.html", "stale.html"]
