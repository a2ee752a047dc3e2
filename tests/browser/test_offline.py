"""A copied folder is the whole site: no network, no server, nothing remembered."""

import pytest

from built import CONTENTS
from views import settled


@pytest.mark.parametrize("name", CONTENTS)
def test_the_page_opens(offline, copied, name):
    settled(offline, copied + name)
    assert offline.locator("article h1").first.is_visible()


def test_the_browser_reaches_nothing_else(offline, copied, site):
    offline.goto(copied)
    assert offline.evaluate("navigator.onLine") is False
    with pytest.raises(Exception, match="ERR_INTERNET_DISCONNECTED"):
        offline.context.new_page().goto(site)


def test_mathematics_is_set_in_its_own_letters(offline, copied):
    settled(offline, copied + "book/notation.html")
    formula = offline.locator("mjx-container mjx-c").first
    assert formula.bounding_box()["width"] > 0
    assert "MJX" in formula.evaluate("one => getComputedStyle(one, '::before').fontFamily")
    loaded = "[...document.fonts].filter(one => one.status === 'loaded').map(one => one.family)"
    assert any("MJX" in family for family in offline.evaluate(loaded))


def test_the_search_finds_titles(offline, copied):
    offline.goto(copied + "search.html?q=sigmoid")
    results = offline.locator("ul.search li a")
    results.first.wait_for()
    assert "Channel attention from scratch" in results.all_inner_texts()


def test_painting_computes(offline, copied):
    settled(offline, copied + "book/paint.html")
    box = offline.locator("#explorer-paint")
    assert not box.locator(".explorer-fallback").is_visible()
    before = box.inner_text()
    box.locator("#paint-example").select_option(index=2)
    changed = "before => document.querySelector('#explorer-paint').innerText !== before"
    offline.wait_for_function(changed, arg=before)


def test_one_walks_from_page_to_page(offline, copied):
    offline.goto(copied + CONTENTS[1])
    offline.locator(".right-next").click()
    offline.wait_for_url(f"**/{CONTENTS[2]}")
