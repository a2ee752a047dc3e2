"""What Sphinx writes, mended for screen readers."""

import accessible


def test_a_list_of_modules_holds_items_and_nothing_else():
    body = "<h1>All</h1>\n<ul><li>data</li>\n<ul><li>data.mini</li>\n</ul><li>train</li>\n</ul>"
    flat = "<h1>All</h1>\n<ul><li>data</li>\n<li>data.mini</li>\n<li>train</li>\n</ul>"
    assert accessible.mended(accessible.MODULES, body) == flat
    assert accessible.mended("book/faq", body) == body


def test_a_reference_is_an_item_of_its_list():
    body = '<div role="list"><div class="citation" id="a" role="doc-biblioentry">A</div></div>'
    assert 'id="a" role="listitem"' in accessible.mended("book/references", body)
