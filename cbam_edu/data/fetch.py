"""Bring one file from one address: resumed where it stopped, left where it is slow or wrong."""

import contextlib
import io
import socket
import sys
from collections.abc import Iterator
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPMessage,
    HTTPResponse,
    HTTPSConnection,
)
from pathlib import Path
from time import monotonic
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    Request,
    build_opener,
)

from tqdm import tqdm

from cbam_edu.storage import explained

_CHUNK = 1 << 18  # bytes
_LITTLE = "too little"


class SourceError(Exception):
    """Why a source was left, in a few words."""


class TooSlow(SourceError):
    """The source works, but is slower than wanted."""


class Cut(SourceError):
    """The connection ended early; the source may well go on if it is asked again."""


class Meter:
    """Progress on the error stream, and whether it is fast enough.

    A terminal gets a bar; anything else, such as a notebook or a log, a line every tenth.

    Parameters
    ----------
    label : str
        What is being fetched.
    total, have : int
        Bytes of the whole and those that are here already.
    slowest : float
        Bytes a second below which, on average over `window` seconds, `TooSlow` is raised.
    window : float
        Seconds.
    show : bool
        Whether to print anything.
    """

    def __init__(
        self, label: str, total: int, have: int, *, slowest: float, window: float, show: bool
    ):
        self.label, self.total, self.have, self.show = label, total, have, show
        self.slowest, self.window = slowest, window
        self.since, self.mark = monotonic(), have
        self.bar = tqdm(
            total=total,
            initial=have,
            desc=label,
            unit="B",
            unit_scale=True,
            leave=False,
            disable=not (show and sys.stderr.isatty()),
        )

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, count: int) -> None:
        """Count bytes that have arrived."""
        tenth = self.have * 10 // self.total
        self.have += count
        self.bar.update(count)
        if self.show and self.bar.disable and self.have * 10 // self.total > tenth:
            percent, megabytes = 100 * self.have // self.total, self.total / 1e6
            print(f"{self.label}: {percent} % of {megabytes:.3g} MB", file=sys.stderr)
        elapsed = monotonic() - self.since
        if elapsed >= self.window and self.have < self.total:
            speed = (self.have - self.mark) / elapsed
            if speed < self.slowest:
                raise TooSlow(f"slow: {speed / 1e3:.3g} kB/s")
            self.since, self.mark = monotonic(), self.have


def fetch(
    url: str,
    part: Path,
    size: int,
    *,
    slowest: float = 0.0,
    window: float = 5.0,
    timeout: float = 30.0,
    show: bool = False,
) -> bool:
    """Append to `part` what it lacks of the file at `url`, until it has `size` bytes.

    Parameters
    ----------
    url : str
        An http or https address.
    part : path
        The file to write; what is in it is taken for the beginning of the file at `url`.
    size : int
        Bytes of the whole file; a source that promises another number is wrong.
    slowest, window : float
        The source is left when it gives fewer than `slowest` bytes a second over `window` seconds.
    timeout : float
        Seconds after which the source is left, if its answer has not begun or no more comes.
    show : bool
        Whether to show progress on the error stream.

    Returns
    -------
    bool
        Whether bytes that were in `part` before were kept.

    Raises
    ------
    TooSlow, Cut
        The source was left on the way; `part` keeps what came.
    SourceError
        The source does not have the file, or sends nothing.
    StorageError
        `part` cannot be written.
    """
    with contextlib.ExitStack() as stack:
        response, have = _open(url, part, size, timeout)
        stack.enter_context(response)
        stack.enter_context(explained("write", part))  # closing a file writes once more
        file = stack.enter_context(open(part, "ab" if have else "wb"))
        meter = stack.enter_context(
            Meter(part.stem, size, have, slowest=slowest, window=window, show=show)
        )
        for chunk in _chunks(response, timeout):
            if meter.have + len(chunk) > size:
                raise SourceError(f"sends more than the {size:,} bytes that are right")
            file.write(chunk)
            file.flush()  # so that nothing is lost to a kill, and a full disk is met here
            meter.advance(len(chunk))
        if meter.have < size:
            raise Cut(f"stopped after {meter.have:,} of {size:,} bytes")
    return have > 0


class _Timely(io.RawIOBase):
    """A connection's bytes, all that are waited for at a time within its timeout.

    The timeout of a socket is for each byte: one now and then would hold a program for ever.
    """

    def __init__(self, connection: socket.socket):
        self.connection, self.timeout = connection, connection.gettimeout() or 0.0
        self.raw = connection.makefile("rb", buffering=0)
        self.start()

    def start(self) -> None:
        """Begin to wait."""
        self.end = monotonic() + self.timeout

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if (left := self.end - monotonic()) <= 0:
            raise TimeoutError(_LITTLE)
        self.connection.settimeout(left)
        return self.raw.readinto(buffer)

    def close(self) -> None:
        self.raw.close()
        super().close()


class _Answer(HTTPResponse):
    """An answer whose head comes within the timeout, and so does each of its chunks."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any):
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.timely = _Timely(sock)
        self.fp = io.BufferedReader(self.timely)


class _Plain(HTTPConnection):
    response_class = _Answer


class _Secure(HTTPSConnection):
    response_class = _Answer


class _PlainHandler(HTTPHandler):
    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_Plain, req)


class _SecureHandler(HTTPSHandler):
    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_Secure, req)


class _Redirects(HTTPRedirectHandler):
    """To http and https only; what a redirection says besides the address is not read."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            return None
        fp.close()  # urllib would read all of it, and it may have no end
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, part: Path, size: int, timeout: float) -> tuple[_Answer, int]:
    """Ask for what `part` lacks; return the answer and the byte of the file it begins with."""
    have = part.stat().st_size if part.exists() else 0
    fault = ""
    for start in (have, 0) if 0 < have < size else (0,):
        response = _ask(url, start, timeout)
        extent = response.headers.get("Content-Range")
        length = response.headers.get("Content-Length")
        if response.status == 206 and extent == f"bytes {start}-{size - 1}/{size}":
            return response, start
        if response.status == 200 and length in (None, str(size)):  # 200: the whole file
            return response, 0
        fault = f"HTTP {response.status}, {_told(length)} bytes where {size:,} are right"
        response.close()
    raise SourceError(f"has another file ({fault})")


def _ask(url: str, start: int, timeout: float) -> _Answer:
    """Request a file from a byte on."""
    request = Request(url, headers={"User-Agent": "cbam_edu"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        opener = build_opener(_PlainHandler, _SecureHandler, _Redirects)
        response: _Answer = opener.open(request, timeout=timeout)
    except HTTPError as error:
        error.close()
        if start and error.code == 416:  # it has no such byte: ask for all of the file
            return _ask(url, 0, timeout)
        if 300 <= error.code < 400:
            raise SourceError(f"redirects to nowhere (HTTP {error.code})") from None
        raise SourceError(f"answers HTTP {error.code} ({_told(error.reason)})") from None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a new address that is none
        raise SourceError(_network_fault(error, timeout)) from None
    return response


def _chunks(response: _Answer, timeout: float) -> Iterator[bytes]:
    """Yield what arrives, as it arrives."""
    try:
        response.timely.start()
        while chunk := response.read1(_CHUNK):
            yield chunk
            response.timely.start()
    except (OSError, HTTPException) as error:
        kind = SourceError if isinstance(error, TimeoutError) else Cut
        raise kind(_network_fault(error, timeout)) from None


def _network_fault(error: Exception, timeout: float) -> str:
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, TimeoutError):
        return f"sent {_LITTLE if str(reason) == _LITTLE else 'nothing'} for {timeout:g} s"
    return f"cannot be read ({_told(reason) or type(reason).__name__})"


def _told(words: object) -> str:
    """Return what a server says as it may be shown: on one line, and not for long."""
    return "".join(c if c.isprintable() else "?" for c in str(words)[:200])
