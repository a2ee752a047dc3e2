"""Note whatever a page should not do: log an error, throw one, or ask another place for anything.

    with watched(context.new_page(), site) as page:
        page.goto(site + "book/paint.html")

fails when the block ends if the page did any of it.
"""

from contextlib import contextmanager

ITS_OWN = ("data:", "blob:", "about:")  # what comes out of the page itself


def note_faults(page, base):
    """Return a list that grows by a sentence whenever the page does what it should not.

    ``base`` is the address below which everything that the page asks for has to lie.
    """
    faults = []

    def on_console(message):
        if message.type == "error":
            faults.append(f"console error on {page.url}: {message.text}")

    def on_request(request):
        if not request.url.startswith((base, *ITS_OWN)):
            faults.append(f"foreign request on {page.url}: {request.url}")

    page.on("console", on_console)
    page.on("pageerror", lambda error: faults.append(f"page error on {page.url}: {error}"))
    page.on("request", on_request)
    return faults


@contextmanager
def watched(page, base):
    """Yield the page, and fail afterwards if it did what it should not."""
    faults = note_faults(page, base)
    yield page
    assert not faults, "\n".join(faults)
