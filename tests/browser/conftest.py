"""What the tests in a browser share: the built site, and pages to look at it with.

``site``      the address of the site, served on this machine over HTTP; ends with a slash
``copied``    the same as ``file://``, in a copy of its folder somewhere else
``browser``   the one Chromium of a worker, headless, with an empty profile
``page``      a fresh page, 1280 x 900, on which the clipboard may be used
``phone``     a fresh page of a phone: 375 x 812, with touch
``offline``   a fresh page without a network, for ``copied``
``scriptless``  a fresh page on which JavaScript is off

Each of the pages fails its test at the end if anything was logged as an error, thrown, or asked
of another place than ``site`` or ``copied``. A context of one's own is watched by
``watch.watched``. The site is _build/html, or the folder that ``$CBAM_EDU_SITE`` names.
"""

import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import sync_playwright

from browser import BrowserNotFoundError, chromium, executable
from built import HOME, NOT_BUILT, PREFIX, SITE
from watch import watched

LAPTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 375, "height": 812}, "has_touch": True, "is_mobile": True}


def pytest_configure(config):
    """Say in one sentence what is missing, instead of once a test."""
    if hasattr(config, "workerinput"):
        return
    if not (SITE / HOME).is_file():
        raise pytest.UsageError(NOT_BUILT)
    try:
        with sync_playwright() as playwright:
            executable(playwright)
    except BrowserNotFoundError as error:
        raise pytest.UsageError(str(error)) from None


class Server(SimpleHTTPRequestHandler):
    """Serves the site where GitHub Pages serves it, below the name of the repository."""

    protocol_version = "HTTP/1.1"

    def translate_path(self, path):
        """Return the file that is meant; none lies beside the site."""
        below = path.removeprefix(PREFIX) if path.startswith(PREFIX) else "nowhere"
        return super().translate_path(f"/{below}")

    def log_message(self, format, *args):
        """Print nothing."""


@pytest.fixture(scope="session")
def site():
    """Return the address of the site, as a server on this machine gives it out."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=SITE)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}{PREFIX}"
        server.shutdown()


@pytest.fixture(scope="session")
def copied(tmp_path_factory):
    """Return the address of a copy of the site's folder."""
    folder = tmp_path_factory.mktemp("a copy") / "site"
    shutil.copytree(SITE, folder)
    return folder.as_uri() + "/"


@pytest.fixture(scope="session")
def browser():
    """Return the worker's browser."""
    with chromium() as browser:
        yield browser


@contextmanager
def fresh(browser, base, **options):
    """Yield a watched page in a context of its own."""
    with browser.new_context(**options) as context, watched(context.new_page(), base) as page:
        yield page


@pytest.fixture
def page(browser, site):
    """Return a fresh page on a laptop."""
    with fresh(browser, site, **LAPTOP) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=site)
        yield page


@pytest.fixture
def phone(browser, site):
    """Return a fresh page on a phone."""
    with fresh(browser, site, **PHONE) as page:
        yield page


@pytest.fixture
def offline(browser, copied):
    """Return a fresh page that has no network."""
    with fresh(browser, copied, **LAPTOP, offline=True) as page:
        yield page


@pytest.fixture
def scriptless(browser, site):
    """Return a fresh page on a laptop whose JavaScript is off."""
    with fresh(browser, site, **LAPTOP, java_script_enabled=False) as page:
        yield page
