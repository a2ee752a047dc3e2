"""A copied folder is the whole site: no network, no server, nothing remembered."""


def test_mathematics_renders(offline, copied):
    offline.goto(copied + "book/notation.html")
    offline.wait_for_selector("mjx-container")
    fonts = offline.evaluate(
        "document.fonts.ready.then(all => [...all].filter(f => f.status == 'loaded').length)"
    )
    assert fonts > 0
