"""Look at a page in each of the ways in which readers see it, and say what is wrong with it."""

from axe_playwright_python.base import AXE_SCRIPT

WIDE, NARROW = 1280, 375
NARROWEST = 320  # where WCAG 2.1 still wants a page to fit: success criterion 1.4.10
VIEWS = (("light", WIDE), ("dark", WIDE), ("dark", NARROW), ("light", NARROW))
STANDARD = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
CHECK = """([excluded, tags]) => axe.run({exclude: excluded}, {
  runOnly: {type: "tag", values: tags}, resultTypes: ["violations"], preload: false,
})"""


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
    page.wait_for_function(
        "scheme => document.documentElement.dataset.theme === scheme", arg=scheme
    )
    if page.viewport_size["width"] != width:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(400)  # the theme acts upon a new width after 300 ms
    page.evaluate("document.getAnimations().forEach(one => one.finish())")


def too_wide(page):
    """Return a sentence a part of the page that reaches beyond the screen, if the page scrolls."""
    return page.evaluate(
        """() => {
          const width = innerWidth, root = document.documentElement;
          if (root.scrollWidth <= width) return [];
          const parts = [...document.querySelectorAll("article *")]
            .filter(part => !part.closest("pre, table, mjx-container"))
            .filter(part => part.getBoundingClientRect().right > width + 0.5)
            .map(part => part.outerHTML.slice(0, 80));
          return [`${root.scrollWidth} of ${width} px`, ...parts.slice(0, 5)];
        }"""
    )


def violations(page, without=None):
    """Return a sentence a violation of WCAG 2.1 A or AA that axe-core finds on the page.

    ``without`` is the selector of a part that was looked at before.
    """
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    found = page.evaluate(CHECK, [[without] if without else [], STANDARD])
    return [
        f"{rule['id']}: {node['target']} {node['html'][:120]}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]
