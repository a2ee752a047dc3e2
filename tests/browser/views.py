"""Look at a page in each of the ways in which readers see it, and say what is wrong with it."""

from axe_playwright_python.sync_playwright import Axe

WIDTHS = (1280, 375)
SCHEMES = ("light", "dark")
NARROWEST = 320  # where WCAG 2.1 still wants a page to fit: success criterion 1.4.10
STANDARD = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
AXE = Axe()


def settled(page, address):
    """Open an address, and wait for its mathematics and fonts."""
    page.goto(address)
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.evaluate("() => document.fonts.ready.then(() => {})")


def unfold(page):
    """Open all that is folded, for what is not shown is not checked."""
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")


def show(page, scheme, width):
    """Show the page in a colour scheme, as the reader's system asks for it, and in a width."""
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    page.wait_for_timeout(400)  # the theme acts upon a new width after 300 ms
    page.evaluate("document.getAnimations().forEach(one => one.finish())")


def too_wide(page):
    """Return a sentence a part of the page that reaches beyond the screen, if the page scrolls."""
    return page.evaluate(
        """() => {
          const width = innerWidth, root = document.documentElement;
          if (root.scrollWidth <= width) return [];
          const parts = [...document.body.querySelectorAll("*")]
            .filter(part => part.getBoundingClientRect().right > width + 0.5)
            .map(part => part.outerHTML.slice(0, 80));
          return [`${root.scrollWidth} of ${width} px`, ...parts.slice(0, 5)];
        }"""
    )


def violations(page, without=None):
    """Return a sentence a violation of WCAG 2.1 A or AA that axe-core finds on the page.

    ``without`` is the selector of a part not to look at again.
    """
    context = {"exclude": [[without]]} if without else None
    found = AXE.run(page, context, {"runOnly": STANDARD, "resultTypes": ["violations"], "preload": False})
    return [
        f"{rule['id']}: {node['target']} {node['html'][:120]}"
        for rule in found.response["violations"]
        for node in rule["nodes"]
    ]
