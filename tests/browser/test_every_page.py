"""Every page, as it is read: light and dark, on a laptop and on a phone."""

import pytest

from built import pages
from views import NARROW, NARROWEST, VIEWS, WIDE, settled, show, too_wide, unfold, violations

TEXT = ".bd-article"
# The text is the same at either width, and takes axe its time: it is looked at in two views.
TEXT_TOO = (("light", WIDE), ("dark", NARROW))


@pytest.mark.parametrize("name", pages())
def test_it_fits_works_and_everybody_can_read_it(page, site, name):
    settled(page, site + name)
    unfold(page)
    for view in VIEWS:
        show(page, *view)
        found = too_wide(page) + violations(page, without=None if view in TEXT_TOO else TEXT)
        assert not found, "\n".join([str(view), *found])
    page.set_viewport_size({"width": NARROWEST, "height": 900})
    assert not too_wide(page), "\n".join(too_wide(page))


# The checkers find what they look for


def test_a_part_that_is_too_wide_is_found(page, site):
    settled(page, site + "book/notation.html")
    show(page, "light", NARROW)
    page.locator(TEXT).evaluate("one => one.innerHTML += '<div style=width:600px>wide</div>'")
    assert "width:600px" in too_wide(page)[-1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_text_too_faint_to_read_is_found(page, site, scheme):
    settled(page, site + "book/notation.html")
    show(page, scheme, WIDE)
    assert violations(page) == []
    page.locator(TEXT).evaluate("one => one.innerHTML += '<p style=color:#777>faint</p>'")
    page.locator(TEXT).evaluate("one => one.style.background = '#888'")
    assert any(found.startswith("color-contrast") for found in violations(page))


def test_a_button_without_a_name_is_found_on_a_phone(page, site):
    settled(page, site + "book/notation.html")
    show(page, "light", NARROW)
    page.evaluate("document.body.append(document.createElement('button'))")
    assert any(found.startswith("button-name") for found in violations(page, without=TEXT))
