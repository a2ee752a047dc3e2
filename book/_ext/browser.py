"""Find the Chromium that the checks and the PDF of the book use, and start it.

It is the one that ``$CHROMIUM`` names, else the first on the path, else the one that
``playwright install chromium`` brought.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MISSING = (
    "No Chromium was found: install one (Debian and Ubuntu: apt install chromium; anywhere: "
    ".venv/bin/playwright install chromium), or name yours: CHROMIUM=/path/to/chromium make ..."
)
# Nothing is asked of a network, and no first-run page is in the way.
ARGUMENTS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class BrowserNotFoundError(Exception):
    """There is no Chromium here; the message says how to get one."""


def executable(playwright: Playwright) -> str:
    """Return the path of the Chromium to use.

    Raises
    ------
    BrowserNotFoundError
        If there is none, or none where ``$CHROMIUM`` says.
    """
    named = os.environ.get("CHROMIUM")
    if named:
        found = shutil.which(named)
        if not found:
            raise BrowserNotFoundError(f"CHROMIUM is {named!r}, where no program is. {MISSING}")
        return found
    on_path = next(filter(None, map(shutil.which, NAMES)), None)
    if on_path:
        return on_path
    own = playwright.chromium.executable_path
    if Path(own).exists():
        return own
    raise BrowserNotFoundError(MISSING)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a headless browser with a profile of its own, and close it afterwards.

    Raises
    ------
    BrowserNotFoundError
        If there is no Chromium here.
    """
    with sync_playwright() as playwright:
        path = executable(playwright)
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


def main() -> int:
    """Print where the browser is; where there is none, say what to do, and return 1."""
    try:
        with sync_playwright() as playwright:
            print(executable(playwright))
    except BrowserNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
