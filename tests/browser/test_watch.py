"""The watch over a page notes what it should, and nothing else."""

import pytest

from watch import note_faults, watched


@pytest.fixture
def bare(browser):
    """Return a page that nobody watches yet."""
    with browser.new_context() as context:
        yield context.new_page()


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("console.error('broken')", "console error"),
        ("setTimeout(() => { throw new Error('broken'); })", "page error"),
        ("new Image().src = 'http://127.0.0.1:9/pixel.png'", "foreign request"),
        ("new Image().src = 'nowhere.png'", "console error"),
        ("fetch('https://elsewhere.invalid/').catch(() => {})", "foreign request"),
    ],
)
def test_a_fault_is_noted(bare, site, script, fault):
    faults = note_faults(bare, site)
    bare.goto(site)
    bare.evaluate(script)
    bare.wait_for_timeout(300)
    assert any(found.startswith(fault) for found in faults)


def test_a_faultless_page_passes(bare, site):
    with watched(bare, site) as page:
        page.goto(site)
        page.evaluate("console.log('well'); new Image().src = 'data:image/gif;base64,R0lGODlhAQA='")
        page.wait_for_timeout(300)


def test_a_fault_fails_the_test(bare, site):
    def visit():
        with watched(bare, site) as page:
            page.goto(site)
            page.evaluate("console.error('broken')")

    with pytest.raises(AssertionError, match="broken"):
        visit()
