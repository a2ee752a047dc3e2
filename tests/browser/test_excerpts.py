"""The search shows the words around what it found, from a copied folder as well."""


def test_the_search_shows_words_without_a_server(offline, copied):
    offline.goto(copied + "search.html?q=reweighted")
    excerpt = offline.locator("ul.search li p.context").first
    excerpt.wait_for()
    assert "reweight" in excerpt.inner_text()


def test_a_server_gives_the_pages_themselves(page, site):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(site + "search.html?q=reweighted")
    page.locator("ul.search li p.context").first.wait_for()
    assert not [url for url in asked if url.endswith("words.js")]
