"""What can be read off the built pages without a browser."""

import pytest

from built import CONTENTS, HOME, Parsed, leads_somewhere, pages, parsed, target


@pytest.mark.parametrize("name", pages())
def test_every_link_and_anchor_leads_somewhere(name):
    assert [link for link in parsed(name).links if not leads_somewhere(name, link)] == []


@pytest.mark.parametrize("name", pages())
def test_every_picture_has_words_in_its_place(name):
    assert parsed(name).wordless == []


def test_next_leads_through_the_whole_book():
    path, place = CONTENTS[0], None
    met = [path]
    while parsed(path).following:
        path, place = target(path, parsed(path).following)
        met.append(path)
    assert place == ""
    assert met == CONTENTS


def test_next_of_the_front_page_is_the_second():
    assert target(HOME, parsed(HOME).following) == (CONTENTS[1], "")


# The checkers find what they look for


@pytest.mark.parametrize(
    "link", ["nowhere.html", "#nowhere", "index.html#nowhere", "../outside.html", "/elsewhere.html"]
)
def test_a_dead_link_is_found(link):
    assert not leads_somewhere(HOME, link)


@pytest.mark.parametrize("link", ["", "#", "#top", "search.html?q=cbam", "https://arxiv.org/x"])
def test_a_good_link_is_not(link):
    assert leads_somewhere(HOME, link)


@pytest.mark.parametrize(
    "html",
    [
        '<img src="a.png">',
        '<img src="a.png" alt="">',
        '<img src="a.png" alt="_images/a.png">',
        '<svg viewBox="0 0 1 1"></svg>',
        '<div role="img"></div>',
    ],
)
def test_a_picture_without_words_is_found(html):
    assert Parsed(html).wordless


def test_a_picture_with_words_is_not():
    html = '<img src="a.png" alt="A map"><svg role="img" aria-label="A map"></svg>'
    assert Parsed(html + '<svg aria-hidden="true"></svg>').wordless == []
