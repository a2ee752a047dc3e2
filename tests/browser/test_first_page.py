"""How heavy and how quick the first page is. Run alone, for others would slow it down."""

import statistics

from built import HOME, SITE

VISITS = 5
SLOWER = 4  # times, so that the processor is that of a cheap phone
PAGE_BYTES = 1_000_000
SITE_BYTES = 40_000_000
FIRST_PAINT = 1.0  # seconds
PAINTED = """() => new Promise(resolve => {
  new PerformanceObserver(list => {
    const first = list.getEntriesByName("first-contentful-paint")[0];
    if (first) resolve((performance.timeOrigin + first.startTime) / 1000);
  }).observe({type: "paint", buffered: true});
})"""


def visit(browser, address):
    """Return the bytes that a first visit asks for, and the seconds until something is seen."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        session = context.new_cdp_session(page)
        session.send("Network.enable")
        session.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
        sizes = []
        session.on("Network.loadingFinished", lambda one: sizes.append(one["encodedDataLength"]))
        start = page.evaluate("performance.timeOrigin + performance.now()") / 1000
        page.goto(address, wait_until="networkidle")
        return sum(sizes), page.evaluate(PAINTED) - start


def test_the_first_page_is_light_and_quick(browser, site):
    visits = [visit(browser, site) for _ in range(VISITS)]
    weight, seconds = max(size for size, _ in visits), statistics.median(s for _, s in visits)
    print(f"\nfirst page: {weight:,} bytes, nothing compressed")
    print(f"first paint: {seconds:.2f} s, median of {VISITS}, processor {SLOWER} times slower")
    assert weight < PAGE_BYTES
    assert seconds < FIRST_PAINT


def test_the_whole_site_is_light():
    weight = sum(path.stat().st_size for path in SITE.rglob("*") if path.is_file())
    print(f"\nwhole site: {weight:,} bytes")
    assert (SITE / HOME).is_file()
    assert weight < SITE_BYTES
