"""Print the built site as one book, a PDF with links, an outline and page numbers.

::

    python book/_ext/pdf.py SITE PDF
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pikepdf
from playwright.sync_api import Page

import cbam_edu
from address import ROOT, config
from binding import bound
from browser import BrowserNotFoundError, chromium
from cbam_edu.storage import replace_file

WAIT = 300_000  # milliseconds for the mathematics of the whole book on a slow machine


def commit(folder: Path = ROOT) -> tuple[str, int] | None:
    """Return the commit that `folder` is at and its time in seconds, if git knows them."""
    command = ["git", "-C", str(folder), "log", "-1", "--format=%h %ct"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    name, seconds = done.stdout.split()
    return name, int(seconds)


def moment(known: tuple[str, int] | None) -> time.struct_time:
    """Return the time that the book bears: its commit's, so that two copies of it are equal."""
    stated = os.environ.get("SOURCE_DATE_EPOCH")
    if stated:
        return time.gmtime(int(stated))
    return time.gmtime(known[1] if known else None)


def facts(known: tuple[str, int] | None) -> list[str]:
    """Return what the cover says of this copy of the book."""
    day = time.strftime("%Y-%m-%d", moment(known))
    version = f"Version {cbam_edu.__version__}"
    return [
        f"{version}, commit {known[0]} of {day}" if known else f"{version}, {day}",
        "Text: CC BY 4.0. Code: MIT.",
    ]


def page_numbers(book: pikepdf.Pdf) -> dict[str, int]:
    """Return the page, from 1, of every named place in a PDF that Chromium wrote."""
    page = {found.obj.objgen: number for number, found in enumerate(book.pages, start=1)}
    places = book.Root.get("/Dests", {}).items()
    return {name[1:]: page[place[0].objgen] for name, place in places}


def finish(book: pikepdf.Pdf, moment: time.struct_time, target: Path) -> None:
    """Write a PDF that bears the time `moment`, its small objects packed together.

    Most of a tagged PDF describes what each piece of text is, in objects of plain text: two thirds
    of the book, which Chromium leaves as they are.
    """
    stamp = time.strftime("D:%Y%m%d%H%M%S+00'00'", moment)
    for date in ("/CreationDate", "/ModDate"):
        book.docinfo[date] = stamp
    packed = pikepdf.ObjectStreamMode.generate
    replace_file(
        target, lambda file: book.save(file, object_stream_mode=packed, deterministic_id=True)
    )


def printed(page: Page, document: Path) -> bytes:
    """Return the PDF of a document, once its mathematics and pictures are there."""
    page.goto(document.as_uri(), wait_until="load", timeout=WAIT)
    page.wait_for_function("window.MathJax.startup.promise.then(() => true)", timeout=WAIT)
    page.evaluate("document.fonts.ready.then(() => true)")
    return page.pdf(prefer_css_page_size=True, print_background=True, tagged=True, outline=True)


def write(built: Path, target: Path) -> int:
    """Write the PDF of the built site to `target`, and return how many pages it has."""
    settings, known = config(), commit()
    said = settings["title"], settings["author"], facts(known)
    with chromium() as browser, tempfile.TemporaryDirectory() as folder:
        page, document = browser.new_page(), Path(folder) / "book.html"
        page.set_default_timeout(WAIT)
        numbers: dict[str, int] = {}
        # Where a chapter begins is known once it is printed, so the contents need a second time.
        for _ in range(2):
            document.write_text(bound(built, *said, numbers), "utf-8")
            book = pikepdf.open(io.BytesIO(printed(page, document)))
            numbers = page_numbers(book)
    finish(book, moment(known), target)
    return len(book.pages)


def main(arguments: list[str] | None = None) -> int:
    """Write the book's PDF, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("site", type=Path, help="the built site, such as _build/html")
    parser.add_argument("pdf", type=Path, help="the file to write")
    given = parser.parse_args(arguments)
    if not (given.site / "index.html").exists():
        print(f"There is no built site in {given.site}: run make book first.", file=sys.stderr)
        return 1
    try:
        pages = write(given.site.resolve(), given.pdf)
    except BrowserNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"The book has {pages} pages: {given.pdf}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
