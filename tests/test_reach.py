"""How far the site reaches: its weight, its addresses, and the pages that no source page is."""

import re
import xml.etree.ElementTree
from urllib.parse import urljoin

import pytest

import address
import browser
import light
import published
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
