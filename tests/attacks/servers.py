"""Download from a real server on this machine that does all that servers do wrong.

::

    OMP_NUM_THREADS=1 python tests/attacks/servers.py [--rounds N] [--seed S] [MANNER ...]

First each manner of going wrong alone, before a good source, and after a part of an earlier run; by
the library, `load` and the command. Then `N` random mixtures of up to four sources. Each download
must end in time, with the right files or with one sentence; no file may ever stand under its final
name and be wrong; a good source after the bad ones, or in the next run, must give all. Ten minutes.
"""

import argparse
import contextlib
import functools
import gzip
import io
import random
import resource
import socket
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import ground  # the tests' own toys are found by it
import recorded

import test_data_sources as served
from cbam_edu import cli, data
from cbam_edu.data.sources import DownloadError, download
from test_data_sources import BIN, GOOD, PY
from toy_cifar10 import ARCHIVES, EDITION

TIMEOUT, WINDOW, SLOWEST = 1.0, 0.5, 100_000.0
LONGEST = 40.0  # seconds that a download may take: two rounds of four sources, each in some tries
REDIRECTIONS = {
    "redirects to a file": "file:///etc/hostname",
    "redirects to ftp": "ftp://127.0.0.1:9/x",
    "redirects to data": "data:application/gzip;base64,AAAA",
    "redirects to javascript": "javascript:alert(1)",
    "redirects to no address": "http://[/x",
    "redirects to no host": "http:///x",
    "redirects to no port": "http://127.0.0.1:port/x",
    "redirects to a port too large": "http://127.0.0.1:99999/x",
    "redirects to a name too long": f"http://{'a' * 300}.example/x",
    "redirects to a closed port": "http://127.0.0.1:9/x",
    "redirects to other letters": "http://127.0.0.1/\xe4\xff",
    "redirects with an empty address": "",
}
STATUSES = {
    "answers 404": (404, {}),
    "answers 500": (500, {}),
    "answers 403": (403, {}),
    "answers 204": (204, {}),
    "answers 304": (304, {}),
    "answers 999": (999, {}),
    "answers 300 to nowhere": (300, {}),
    "answers 301 to nowhere": (301, {}),
    "answers 401": (401, {"WWW-Authenticate": "Basic realm=x"}),
    "answers 407": (407, {"Proxy-Authenticate": "Negotiate"}),
    "answers 429": (429, {}),
    "answers 429, come back tomorrow": (429, {"Retry-After": "86400"}),
    "answers 503": (503, {}),
    "answers 503, come back then": (503, {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}),
    "answers 503, come back x": (503, {"Retry-After": "x" * 5000}),
}
BYTES = {  # whole answers, not all of them HTTP
    "hangs up at once": b"",
    "says no HTTP": b"no HTTP at all\r\n\r\n",
    "says a status that is no number": b"HTTP/1.1 abc OK\r\n\r\n",
    "says bytes": bytes(range(256)) * 40,
    "speaks TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "a status line without end": b"HTTP/1.1 200 " + b"A" * 100_000,
    "a header line without end": b"HTTP/1.1 200 OK\r\nX: " + b"A" * 100_000,
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000,
    "hangs up in the head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "signs for the terminal": b"HTTP/1.1 500 \x1b[2J\x07\x1b]0;x\r\nContent-Length: 0\r\n\r\n",
    "lines in its reason": b"HTTP/1.1 500 a\x0bb\x85c\r\nContent-Length: 0\r\n\r\n",
    "a length that is no number": b"HTTP/1.1 200 OK\r\nContent-Length: \xff\xfe\r\n\r\n" + GOOD,
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + GOOD,
    "a huge length": b"HTTP/1.1 200 OK\r\nContent-Length: 1" + b"0" * 400 + b"\r\n\r\n" + GOOD,
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 9\r\n\r\n" + GOOD,
}
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = b"%x\r\n%b\r\n" % (len(GOOD), GOOD)
CHUNKS = {
    "a chunk of no size": b"xyz\r\n" + GOOD,
    "a chunk of negative size": b"-5\r\n" + GOOD,
    "a chunk of huge size": b"F" * 1000 + b"\r\n" + GOOD,
    "a chunk that is cut": WHOLE[: len(GOOD) // 2],
    "a chunk without its end": WHOLE[:-2] + b"XX0\r\n\r\n",
    "no last chunk": WHOLE,
    "a chunk size without end": b"1" * 100_000,
    "a trailer without end": WHOLE + b"0\r\n" + b"X: y\r\n" * 50_000,
    "good, in chunks": WHOLE + b"0\r\n\r\n",
}


class Server(served.Answer):
    """Every manner that a server's address may ask for, by name."""

    def do_GET(self) -> None:
        """Answer in the manner that the address names."""
        _, number, name = self.path.split("/")
        manner = MANNERS[int(number)]
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        content = ARCHIVES[name]
        if manner in REDIRECTIONS:
            self.head(302, Location=REDIRECTIONS[manner], Content_Length=0)
        elif manner in STATUSES:
            status, headers = STATUSES[manner]
            self.head(status, **headers, Content_Length=0)
        elif manner in BYTES:
            self.wfile.write(BYTES[manner])
        elif manner in CHUNKS:
            self.wfile.write(CHUNKED + CHUNKS[manner])
        else:
            SPECIAL[manner](self, content, start)

    def reset(self) -> None:
        """Break the connection as a crashed host does, by RST."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def drip(self, data: bytes, pause: float = 0.05) -> None:
        """Send a byte now and then, until nobody listens or the attack is over."""
        for number in range(len(data) * 10**6):
            self.wfile.write(data[number % len(data) :][:1])
            if self.server.closing.wait(pause):
                return

    def flood(self, data: bytes) -> None:
        """Send without end."""
        while not self.server.closing.is_set():
            self.wfile.write(data)

    def part(self, content: bytes, start: int, extent: str, first: int) -> None:
        """Answer 206 with an extent that may be a lie."""
        self.head(206, Content_Range=extent, Content_Length=len(content) - first)
        self.wfile.write(content[first:])


def _reset_in_the_body(answer: Server, content: bytes, start: int) -> None:
    answer.head_of(content, start)
    answer.wfile.write(content[start : start + len(content) // 3])
    answer.reset()


def _reset_in_the_head(answer: Server, content: bytes, start: int) -> None:
    answer.wfile.write(b"HTTP/1.1 200")
    answer.reset()


def _changing(answer: Server, content: bytes, start: int) -> None:
    """Serve another file at each request, cut in half."""
    version = bytes([random.randrange(256)]) * len(content)
    answer.head_of(version, start)
    answer.wfile.write(version[start : start + len(content) // 2])


def _gzipped(answer: Server, content: bytes, start: int) -> None:
    packed = gzip.compress(content, 1)
    answer.head(200, Content_Encoding="gzip", Content_Length=len(packed))
    answer.wfile.write(packed)


def _said_gzipped(answer: Server, content: bytes, start: int) -> None:
    answer.head(200, Content_Encoding="gzip", Content_Length=len(content))
    answer.wfile.write(content)


def _rambling(answer: Server, content: bytes, start: int) -> None:
    answer.head(302, Location=answer.path.replace("/", "/", 1))
    answer.flood(bytes(1 << 16))


def _in_pieces(answer: Server, content: bytes, start: int) -> None:
    answer.head_of(content, start)
    for i in range(start, len(content), 4096):
        answer.wfile.write(content[i : i + 4096])
        time.sleep(0.001)


def _then_drips(head: bytes, data: bytes) -> Callable[[Server, bytes, int], None]:
    def act(answer: Server, content: bytes, start: int) -> None:
        answer.wfile.write(head)
        answer.drip(data)

    return act


def _ranges(content: bytes, start: int) -> dict[str, str]:
    last, size = len(content) - 1, len(content)
    return {
        "a range of another file": f"bytes {start}-{last}/{size + 1}",
        "a range that is none": "bytes */*",
        "a range in other units": f"lines {start}-{last}/{size}",
        "a range backwards": f"bytes {last}-{start}/{size}",
    }


def _lying(name: str) -> Callable[[Server, bytes, int], None]:
    return lambda answer, content, start: answer.part(
        content, start, _ranges(content, start)[name], start
    )


def _false_start(answer: Server, content: bytes, start: int) -> None:
    extent = f"bytes {start}-{len(content) - 1}/{len(content)}"
    answer.head(206, Content_Range=extent, Content_Length=len(content) - start)
    answer.wfile.write(content[: len(content) - start])


def _circle_of_two(answer: Server, content: bytes, start: int) -> None:
    _, number, name = answer.path.split("/")
    answer.head(302, Location=f"/{number}/{PY if name == BIN else BIN}", Content_Length=0)


SPECIAL: dict[str, Callable[[Server, bytes, int], None]] = {
    "good": served.Answer.good,
    "good, in small pieces": _in_pieces,
    "good, without a length": served.Answer.no_length,
    "good, knows no ranges": served.Answer.no_range,
    "good, refuses ranges": served.Answer.range_refused,
    "gives another range than asked": served.Answer.other_range,
    "hangs up after a third": served.Answer.cut,
    "hangs up after a byte": served.Answer.drip,
    "hangs up after the head": served.Answer.cut_at_once,
    "serves a file with a wrong bit": served.Answer.altered,
    "serves another file, in thirds": served.Answer.altered_cut,
    "serves a page": served.Answer.page,
    "sends more than it says": served.Answer.endless,
    "redirects to itself": served.Answer.circle,
    "redirects in a circle of two": _circle_of_two,
    "redirects, and talks without end": _rambling,
    "says nothing": served.Answer.mute,
    "stalls in the body": served.Answer.stall,
    "resets in the body": _reset_in_the_body,
    "resets in the head": _reset_in_the_head,
    "resets at once": lambda answer, content, start: answer.reset(),
    "serves another file each time": _changing,
    "serves it packed": _gzipped,
    "says that it is packed": _said_gzipped,
    "serves the start for the rest": _false_start,
    "sends without end": lambda answer, content, start: (
        answer.head(200),
        answer.flood(bytes(1 << 16)),
    )[0],
    "drips the body": lambda answer, content, start: (
        answer.head_of(content, start),
        answer.drip(content),
    )[0],
    "drips the head": _then_drips(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "drips nothing but '100 Continue'": _then_drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "drips a chunk's size": _then_drips(CHUNKED, b"0"),
    "drips a trailer": _then_drips(CHUNKED + WHOLE + b"0\r\n", b"X: y\r\n"),
    **{name: _lying(name) for name in _ranges(GOOD, 0)},
}
MANNERS = [*SPECIAL, *REDIRECTIONS, *STATUSES, *BYTES, *CHUNKS]
SOUND = [name for name in MANNERS if name.startswith("good")]
PARTS = {
    "none": None,
    "the beginning": GOOD[:50_000],
    "another's beginning": bytes(50_000),
    "a whole wrong one": bytes(len(GOOD)),
    "one that is too long": bytes(len(GOOD) + 5),
    "all of it": GOOD,
}


@contextlib.contextmanager
def site() -> Iterator[Callable[[str, str], str]]:
    """Serve; give a function of a manner and an archive that returns the address."""
    with served.Site() as server:
        server.RequestHandlerClass = Server
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield lambda manner, name: server.url(str(MANNERS.index(manner)), name)
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


def by_download(folder: Path, options: dict[str, Any]) -> str:
    """Download by the library; return what went wrong in its own words, or nothing."""
    try:
        download(folder, progress=False, **options)
    except DownloadError as error:
        return str(error)
    return ""


def by_load(folder: Path, options: dict[str, Any]) -> str:
    """Download by asking for the images."""
    fetch = functools.partial(download, progress=False, **options)
    read = functools.partial(data.cifar10.load_cifar10, edition=EDITION)
    with (
        mock.patch.object(data.sources, "download", fetch),
        mock.patch.object(data.cifar10, "load_cifar10", read),
    ):
        try:
            assert len(data.load("cifar10", "train", folder=folder)) == 40
        except DownloadError as error:
            return str(error)
    return ""


def by_command(folder: Path, options: dict[str, Any]) -> str:
    """Download by the command line."""
    said = io.StringIO()
    fetch = functools.partial(download, **options)
    with (
        mock.patch.object(data, "download", fetch),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        code = cli.main(["download", "--data-dir", str(folder)])
    last = said.getvalue().splitlines()[-1:]
    assert code in (0, 1), f"exit code {code}: {last}"
    if any(not c.isprintable() for c in said.getvalue().replace("\n", "")):
        raise AssertionError("what is printed holds signs for the terminal")
    return last[0].removeprefix("cbam-edu: ") if code else ""


WAYS = (by_download, by_load, by_command)


def wrong_files(folder: Path) -> list[str]:
    """Say which files stand under their final names and are not right."""
    return [
        f"{path.name} is wrong"
        for path in (folder / served.BINARY).glob("*.bin")
        if path.read_bytes() != served.FILES.get(path.stem)
    ]


def once(
    way: Callable[[Path, dict[str, Any]], str],
    folder: Path,
    urls: list[str],
    must: bool,
    good: str,
) -> list[str]:
    """Download from these sources, then from a good one; return what was not as promised."""
    options = {"sources": urls, "edition": EDITION, "timeout": TIMEOUT}
    options |= {"window": WINDOW, "slowest": SLOWEST}
    began = time.monotonic()
    try:
        told = way(folder, options)
    except Exception as error:
        told, faults = "", [f"{type(error).__name__}: {str(error)[:150]}"]
    else:
        faults = []
        if not told and not served.is_right(folder):
            faults.append("no error, and not all files are right, or there are more")
        if told and (must or not told.startswith("no source gives CIFAR-10: ")):
            faults.append(f"it says: {told[:300]}")
        if not told.isprintable() or len(told) > 4000:
            faults.append("the sentence is no sentence")
    if time.monotonic() - began > LONGEST:
        faults.append(f"it took {time.monotonic() - began:.0f} s")
    faults += wrong_files(folder)
    again = by_download(folder, options | {"sources": [good], "slowest": 0.0, "timeout": 20.0})
    if again or not served.is_right(folder):
        faults.append(f"the next run, from a good source: {again or 'files not right'}")
    return faults


def alone(url: Callable[[str, str], str], chosen: list[str]) -> tuple[int, Counter[str]]:
    """Try each manner by itself, with a good source after it, and after a part of another run."""
    tried, faults = 0, Counter()  # type: int, Counter[str]
    for number, manner in enumerate(chosen):
        for kind, (sources, part) in enumerate(
            (([manner], "none"), ([manner, "good"], "none"), ([manner], "the beginning"))
        ):
            way = WAYS[(number + kind) % 3]
            must = "good" in sources or manner in SOUND
            found = fresh(url, way, [(name, BIN) for name in sources], part, must)
            faults.update(f"{manner} ({way.__name__}, {part}): {fault}" for fault in found)
            tried += 1
    return tried, faults


def fresh(
    url: Callable[[str, str], str],
    way: Callable[[Path, dict[str, Any]], str],
    sources: list[tuple[str, str]],
    part: str,
    must: bool,
) -> list[str]:
    """Download into a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        if (content := PARTS[part]) is not None:
            (Path(folder) / f"{BIN}.part").write_bytes(content)
        urls = [url(manner, name) for manner, name in sources]
        return once(way, Path(folder), urls, must, url("good", BIN))


def mixed(
    url: Callable[[str, str], str], rounds: int, chances: random.Random
) -> tuple[int, Counter[str], int]:
    """Try random mixtures; also return how many of them gave the files at once."""
    faults: Counter[str] = Counter()
    sound = 0
    for _ in range(rounds):
        names = chances.sample(MANNERS, chances.randint(1, 4))
        sources = [(name, chances.choice((BIN, PY))) for name in names]
        must = any(name in SOUND and "chunks" not in name for name in names)
        part = chances.choice(list(PARTS))
        # Chunks are of one archive, whichever was asked for.
        sources = [(n, BIN if n in CHUNKS or n in BYTES else a) for n, a in sources]
        found = fresh(url, chances.choice(WAYS), sources, part, must)
        faults.update(f"{', '.join(names)} ({part}): {fault}" for fault in found)
        sound += must
    return rounds, faults, sound


def main() -> None:
    """Do the attacks and record them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("manners", nargs="*")
    args = parser.parse_args()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with site() as url:
        began = time.monotonic()
        tried, faults = alone(url, args.manners or MANNERS)
        for fault, number in faults.items():
            print(number, fault, flush=True)
        if args.manners:
            return
        record("each way of a server to go wrong", tried, faults, began, manners=len(MANNERS))
        began = time.monotonic()
        tried, faults, sound = mixed(url, args.rounds, random.Random(args.seed))
        for fault, number in faults.items():
            print(number, fault, flush=True)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        about = {"with_a_good_source": sound, "seed": args.seed, "memory_grown_mb": grown}
        record("mixtures of bad servers", tried, faults, began, **about)


def record(attack: str, tried: int, faults: Counter[str], began: float, **about: Any) -> None:
    """Write what came of one attack."""
    failed, seconds = sum(faults.values()), time.monotonic() - began
    recorded.write(
        "servers",
        attack,
        tried=tried,
        unit="downloads",
        failed=failed,
        seconds=seconds,
        faults=dict(faults),
        **about,
    )


if __name__ == "__main__":
    assert ground
    main()
