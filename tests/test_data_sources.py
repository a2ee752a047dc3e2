"""Downloading, from a real server on this machine that does all that servers do wrong."""

import contextlib
import errno
import io
import socket
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import toy_cifar10
from cbam_edu.data import fetch, sources
from cbam_edu.data.cifar10 import BINARY, PYTHON, is_complete, load_cifar10
from cbam_edu.data.sources import DownloadError, download
from cbam_edu.storage import StorageError
from toy_cifar10 import ARCHIVES, EDITION, FILES, pack, python_version

BIN, PY = ARCHIVES  # the archives' names
GOOD = ARCHIVES[BIN]


class Site(ThreadingHTTPServer):
    """A server whose addresses are /MANNER/ARCHIVE, and which notes each request."""

    daemon_threads = True
    block_on_close = False

    def __init__(self):
        self.requests: list[tuple[str, str | None]] = []  # (manner, Range)
        self.archives = dict(ARCHIVES)
        self.closing = threading.Event()
        self.now = 0.0
        super().__init__(("127.0.0.1", 0), Answer)

    def url(self, manner, name=BIN):
        return f"http://127.0.0.1:{self.server_port}/{manner}/{name}"

    def handle_error(self, *_):
        """A client that leaves is no error."""


class Answer(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *_):
        pass

    def do_GET(self):
        _, manner, name = self.path.split("/")
        asked = self.headers.get("Range")
        self.server.requests.append((manner, asked))
        content = self.server.archives[name]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        getattr(self, manner)(content, start)

    def head(self, status, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def head_of(self, content, start):
        if start:
            last = len(content) - 1
            extent = f"bytes {start}-{last}/{len(content)}"
            self.head(206, Content_Range=extent, Content_Length=len(content) - start)
        else:
            self.head(200, Content_Length=len(content))

    def good(self, content, start):
        self.head_of(content, start)
        self.wfile.write(content[start:])

    def no_range(self, content, start):
        self.good(content, 0)

    def no_length(self, content, start):
        self.head(200)
        self.wfile.write(content)

    def endless(self, content, start):
        self.head(200)
        self.wfile.write(content + b"and more")

    def other_range(self, content, start):
        if not start:
            return self.good(content, 0)
        extent = f"bytes {start - 1}-{len(content) - 1}/{len(content)}"
        self.head(206, Content_Range=extent, Content_Length=len(content) - start + 1)
        self.wfile.write(content[start - 1 :])

    def range_refused(self, content, start):
        if start:
            self.send_error(416)
        else:
            self.good(content, 0)

    def cut(self, content, start):
        """Serve a third at most, then hang up."""
        self.head_of(content, start)
        self.wfile.write(content[start : start + len(content) // 3])

    def cut_at_once(self, content, start):
        self.head_of(content, start)

    def drip(self, content, start):
        """Serve one byte, then hang up."""
        self.head_of(content, start)
        self.wfile.write(content[start : start + 1])

    def altered(self, content, start):
        self.good(content[:-1] + bytes([content[-1] ^ 1]), start)

    def altered_cut(self, content, start):
        self.cut(b"x" * len(content), start)

    def page(self, content, start):
        self.head(200, Content_Length=6)
        self.wfile.write(b"<html>")

    def missing(self, content, start):
        self.send_error(404)

    def busy(self, content, start):
        self.send_error(503)

    def circle(self, content, start):
        self.head(302, Location=self.path, Content_Length=0)

    def inward(self, content, start):
        self.head(302, Location="file:///etc/hostname", Content_Length=0)

    def abroad(self, content, start):
        self.head(302, Location=f"ftp://127.0.0.1:{self.server.server_port}/{BIN}")

    def nowhere(self, content, start):
        self.head(302, Location="http://[/x")

    def nobody(self, content, start):
        self.head(302, Location=f"http://{'a' * 70}/x")

    def rambling(self, content, start):
        """Send on to the good source, and say so for ever."""
        self.head(302, Location=self.path.replace("rambling", "good"))
        while not self.server.closing.is_set():
            self.wfile.write(bytes(100_000))

    def shouting(self, content, start):
        self.send_response(404, "\x1b[2J" + "gone" * 1000)
        self.end_headers()

    def shouting_length(self, content, start):
        self.head(200, Content_Length="\x07" * 1000)

    def dripped_head(self, content, start):
        """Answer a byte at a time, each well within the timeout, for ever."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        self.drips(b"x")

    def go_on(self, content, start):
        self.drips(b"HTTP/1.1 100 Continue\r\n\r\n")

    def dripped(self, content, start):
        self.head_of(content, start)
        self.drips(b"x")

    def dripped_chunk(self, content, start):
        self.head(200, Transfer_Encoding="chunked")
        self.drips(b"0")

    def drips(self, data):
        for _ in range(2000):
            self.server.now += 0.3
            self.wfile.write(data)
            time.sleep(0.001)

    def moved(self, content, start):
        self.head(302, Location=self.path.replace("moved", "good"), Content_Length=0)

    def stall(self, content, start):
        self.head_of(content, start)
        self.wfile.write(content[start : start + 1000])
        self.server.closing.wait(20)

    def mute(self, content, start):
        self.server.closing.wait(20)

    def gibberish(self, content, start):
        self.wfile.write(b"no HTTP at all\r\n\r\n")

    def slow(self, content, start):
        """Serve 20 kB a second, by the site's clock, which runs ahead of ours."""
        self.head_of(content, start)
        for i in range(start, len(content), len(content) // 8):
            self.server.now += len(content) / 8 / 20_000
            self.wfile.write(content[i : i + len(content) // 8])
            self.wfile.flush()
            time.sleep(0.05)

    def slow_then_missing(self, content, start):
        times = [manner for manner, _ in self.server.requests].count("slow_then_missing")
        self.slow(content, start) if times == 1 else self.missing(content, start)


@pytest.fixture
def site(monkeypatch):
    with Site() as site:
        monkeypatch.setattr(fetch, "monotonic", lambda: site.now)
        thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield site
        site.closing.set()
        site.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def get(site, folder, *manners, edition=EDITION, **options):
    """Download from the site's manners, each "MANNER" or "MANNER/ARCHIVE"."""
    pairs = [(*manner.split("/"), BIN)[:2] for manner in manners]
    urls = [site.url(manner, name) for manner, name in pairs]
    options = {"progress": False, "timeout": 20.0, "slowest": 0.0} | options
    return download(folder, sources=urls, edition=edition, **options)


def is_right(folder):
    """Whether the folder holds the three files and nothing else but the lock."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    found.pop(".cifar10.lock", None)
    return found == {f"{BINARY}/{name}.bin": content for name, content in FILES.items()}


def manners(site):
    return [manner for manner, _ in site.requests]


# --- one good source ---


@pytest.mark.parametrize("manner", ["good", "no_length", "moved", "rambling"])
def test_a_good_source_gives_the_files_and_leaves_nothing_else(site, tmp_path, manner):
    folder = tmp_path / "new" / "folder"
    assert get(site, folder, manner) == folder
    assert is_right(folder)
    assert len(load_cifar10("train", folder, edition=EDITION)) == 40


def test_the_python_archive_gives_the_same_files(site, tmp_path):
    get(site, tmp_path, f"good/{PY}")
    assert is_right(tmp_path)


def test_what_is_right_is_not_downloaded_again(site, tmp_path):
    get(site, tmp_path, "good")
    get(site, tmp_path, "good")
    assert manners(site) == ["good"]


def test_a_torchvision_copy_is_not_downloaded_again(site, tmp_path):
    (tmp_path / PYTHON).mkdir()
    for name, content in FILES.items():
        (tmp_path / PYTHON / name).write_bytes(python_version(content))
    before = sorted(tmp_path.rglob("*"))
    get(site, tmp_path, "good")
    assert manners(site) == []
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", [BIN, PY])
def test_an_archive_put_there_by_hand_is_used(site, tmp_path, name):
    (tmp_path / name).write_bytes(ARCHIVES[name])
    get(site, tmp_path, "missing")
    assert manners(site) == []
    assert (tmp_path / name).read_bytes() == ARCHIVES[name]
    (tmp_path / name).unlink()
    assert is_right(tmp_path)


def test_a_corrupted_file_is_replaced(site, tmp_path):
    get(site, tmp_path, "good")
    (tmp_path / BINARY / "test_batch.bin").write_bytes(b"altered")
    get(site, tmp_path, "good")
    assert is_right(tmp_path)


def test_the_default_folder_is_the_cache(site, tmp_path, monkeypatch):
    monkeypatch.setenv("CBAM_EDU_DATA", str(tmp_path / "cache"))
    assert get(site, None, "good") == tmp_path / "cache"
    assert is_right(tmp_path / "cache")


def test_what_a_kill_after_the_last_file_has_left_is_removed(site, tmp_path):
    get(site, tmp_path, "good")
    (tmp_path / f"{BIN}.part").write_bytes(GOOD)
    get(site, tmp_path, "good")
    assert is_right(tmp_path)


# --- resuming ---


def test_a_cut_connection_is_resumed_where_it_was_cut(site, tmp_path):
    get(site, tmp_path, "cut")
    third = len(GOOD) // 3
    starts = [None, f"bytes={third}-", f"bytes={2 * third}-", f"bytes={3 * third}-"]
    assert [asked for _, asked in site.requests] == starts[: len(site.requests)]
    assert len(site.requests) >= 3
    assert is_right(tmp_path)


def test_a_part_of_an_earlier_run_is_resumed(site, tmp_path):
    (tmp_path / f"{BIN}.part").write_bytes(GOOD[:1234])
    get(site, tmp_path, "good")
    assert site.requests == [("good", "bytes=1234-")]
    assert is_right(tmp_path)


def test_a_whole_part_needs_no_source(site, tmp_path):
    (tmp_path / f"{BIN}.part").write_bytes(GOOD)
    get(site, tmp_path, "good")
    assert site.requests == []
    assert is_right(tmp_path)


@pytest.mark.parametrize(
    ("manner", "requests"), [("no_range", 1), ("other_range", 2), ("range_refused", 2)]
)
def test_a_source_that_cannot_resume_starts_over(site, tmp_path, manner, requests):
    (tmp_path / f"{BIN}.part").write_bytes(GOOD[:1234])
    get(site, tmp_path, manner)
    starts = ["bytes=1234-", None][:requests]
    assert site.requests == [(manner, start) for start in starts]
    assert is_right(tmp_path)


@pytest.mark.parametrize("part", [b"x" * 1234, b"x" * len(GOOD), b"x" * (len(GOOD) + 1)])
def test_a_wrong_part_is_started_over(site, tmp_path, part):
    (tmp_path / f"{BIN}.part").write_bytes(part)
    get(site, tmp_path, "good")
    assert site.requests[-1] == ("good", None)
    assert is_right(tmp_path)


def test_the_next_source_goes_on_where_the_last_stopped(site, tmp_path):
    get(site, tmp_path, "stall", "good", timeout=1.0)
    assert site.requests[0] == ("stall", None)
    assert site.requests[-1] == ("good", "bytes=1000-")
    assert is_right(tmp_path)


def test_a_wrong_beginning_from_one_source_does_not_spoil_the_next(site, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_ATTEMPTS", 2)
    get(site, tmp_path, "altered_cut", "good")
    assert manners(site)[-2:] == ["good", "good"]
    assert site.requests[-1] == ("good", None)
    assert is_right(tmp_path)


# --- sources that are wrong ---

REASONS = {
    "altered": "serves a file with another SHA-256",
    "page": f"has another file (HTTP 200, 6 bytes where {len(GOOD):,} are right)",
    "missing": "answers HTTP 404 (Not Found)",
    "busy": "answers HTTP 503 (Service Unavailable)",
    "circle": "redirects to nowhere (HTTP 302)",
    "inward": "redirects to nowhere (HTTP 302)",
    "abroad": "redirects to nowhere (HTTP 302)",
    "nowhere": "cannot be read (Invalid IPv6 URL)",
    "nobody": "cannot be read (",
    "shouting": f"answers HTTP 404 (?[2J{'gone' * 49})",
    "shouting_length": f"has another file (HTTP 200, {'?' * 200} bytes where",
    "dripped_head": "sent too little for 20 s",
    "go_on": "sent too little for 20 s",
    "dripped_chunk": "sent too little for 20 s",
    "endless": f"sends more than the {len(GOOD):,} bytes that are right",
    "stall": "sent nothing for 1 s",
    "mute": "sent nothing for 1 s",
    "gibberish": "cannot be read (",
    "cut_at_once": f"stopped after 0 of {len(GOOD):,} bytes",
    "drip": "was cut off 10 times",
}


@pytest.mark.parametrize(("manner", "reason"), REASONS.items())
def test_a_wrong_source_is_left_with_a_line_that_says_why(site, tmp_path, capsys, manner, reason):
    timeout = 1.0 if "sent nothing" in reason else 20.0
    get(site, tmp_path, manner, "good", timeout=timeout, progress=True)
    assert is_right(tmp_path)
    left = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left")]
    assert len(left) == 1
    assert left[0].startswith(f"left 127.0.0.1:{site.server_port}: {reason}")


def test_a_source_that_is_not_there_is_left(site, tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        gone = f"http://127.0.0.1:{taken.getsockname()[1]}/{BIN}"
        download(tmp_path, sources=[gone, site.url("good")], edition=EDITION, slowest=0.0)
    assert "cannot be read (" in capsys.readouterr().err
    assert is_right(tmp_path)


def test_if_all_fail_one_error_names_each_and_the_way_out(site, tmp_path):
    (tmp_path / PY).write_bytes(b"by hand, but wrong")
    with pytest.raises(DownloadError) as caught:
        get(site, tmp_path, "missing", f"altered/{PY}", "busy")
    text = str(caught.value)
    assert "\n" not in text
    for wanted in (
        f"{site.url('missing')} answers HTTP 404 (Not Found); ",
        f"{site.url('altered', PY)} serves a file with another SHA-256; ",
        f"{site.url('busy')} answers HTTP 503 (Service Unavailable); ",
        f"{tmp_path / PY} has 18 bytes and another SHA-256 than is right; ",
        f"put one of {BIN}, {PY} into {tmp_path} and try again",
        "cifar10-mini needs no download",
    ):
        assert wanted in text
    assert not (tmp_path / BINARY).exists()
    assert manners(site) == ["missing", "altered", "busy"]  # once each: none was merely slow


@pytest.mark.parametrize(
    "url", ["file:///tmp/cifar-10-binary.tar.gz", "https://x.org/other.zip", ""]
)
def test_an_address_of_nothing_known_is_refused(tmp_path, url):
    with pytest.raises(ValueError, match="a source must be an http or https address that ends in"):
        download(tmp_path, sources=[url], edition=EDITION)


# --- slow sources ---

FAST = {"slowest": 30_000.0, "window": 2.0}


def test_a_slow_source_is_left_for_the_next(site, tmp_path, capsys):
    get(site, tmp_path, "slow", f"good/{PY}", progress=True, **FAST)
    assert manners(site) == ["slow", "good"]
    assert f"left 127.0.0.1:{site.server_port}: slow: " in capsys.readouterr().err
    assert is_right(tmp_path)  # nothing is kept of what is no longer needed


def test_a_slow_source_is_better_than_none_and_goes_on_where_it_was_left(site, tmp_path):
    get(site, tmp_path, "slow", "missing", **FAST)
    assert manners(site) == ["slow", "missing", "slow"]
    assert site.requests[0][1] is None
    assert site.requests[2][1].startswith("bytes=")
    assert is_right(tmp_path)


def test_a_slow_source_that_fails_later_is_reported(site, tmp_path):
    with pytest.raises(DownloadError, match=r"slow_then_missing.* answers HTTP 404"):
        get(site, tmp_path, "slow_then_missing", **FAST)


def test_a_source_that_is_fast_enough_is_kept(site, tmp_path):
    get(site, tmp_path, "slow", "good", slowest=10_000.0, window=2.0)
    assert manners(site) == ["slow"]


@pytest.mark.parametrize(("arrived", "slow"), [(9, True), (10, False)])
def test_what_is_whole_is_not_left_for_slowness(monkeypatch, arrived, slow):
    now = iter([0.0, 100.0])
    monkeypatch.setattr(fetch, "monotonic", lambda: next(now))
    expected = pytest.raises(fetch.TooSlow) if slow else contextlib.nullcontext()
    with fetch.Meter("toy", 10, 0, slowest=1.0, window=2.0, show=False) as meter, expected:
        meter.advance(arrived)


def test_a_source_that_all_but_stands_still_is_as_good_as_none(site, tmp_path):
    """Nobody waits for years."""
    with pytest.raises(DownloadError, match=r"/dripped/.* slow: 0\.00\d+ kB/s"):
        get(site, tmp_path, "dripped", **FAST)
    assert manners(site) == ["dripped", "dripped"]
    get(site, tmp_path, "good")
    assert is_right(tmp_path)


# --- archives that are not what they should be, under a digest that is ---


@pytest.mark.parametrize(
    "members",
    [
        {f"../{BINARY}/test_batch.bin": FILES["test_batch"]},
        {f"/{BINARY}/test_batch.bin": FILES["test_batch"]},
        {f"./{BINARY}/../../escaped.bin": FILES["test_batch"]},
        {f"{BINARY}/test_batch.bin": b"-> /etc/hostname"},
        {f"{BINARY}/test_batch.bin": b"-> ../outside.bin", "outside.bin": FILES["test_batch"]},
        {f"{BINARY}/test_batch.bin": FILES["test_batch"][:-1]},
        {f"{BINARY}/test_batch.bin": bytes(len(FILES["test_batch"]))},
        {f"{BINARY}/test_batch.bin": bytes(1_000_000)},
        {},
    ],
)
def test_members_are_read_by_exact_name_and_only_if_right(site, tmp_path, members):
    train = {f"{BINARY}/{n}.bin": FILES[n] for n in ("data_batch_1", "data_batch_2")}
    site.archives[BIN] = pack(members | train)
    folder = tmp_path / "deep" / "folder"
    with pytest.raises(DownloadError, match=r"its archive has no right cifar.*/test_batch\.bin;"):
        get(site, folder, "good", edition=toy_cifar10.edition(site.archives))
    written = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert written <= {"data_batch_1.bin", "data_batch_2.bin", ".cifar10.lock", f"{BIN}.part"}


def test_a_member_that_is_far_too_large_is_not_even_read(site, tmp_path, monkeypatch):
    read = []
    extract = tarfile.TarFile.extractfile

    def noted(self, member):
        read.append(member.size)
        return extract(self, member)

    monkeypatch.setattr(tarfile.TarFile, "extractfile", noted)
    whole = {f"{BINARY}/{name}.bin": content for name, content in FILES.items()}
    site.archives[BIN] = pack(whole | {f"{BINARY}/test_batch.bin": bytes(1_000_000)})
    with pytest.raises(DownloadError, match=r"has no right .*/test_batch\.bin"):
        get(site, tmp_path, "good", edition=toy_cifar10.edition(site.archives))
    assert read == [len(FILES["data_batch_1"])] * 2


@pytest.mark.parametrize(
    "content", [b"no archive", GOOD[:-2000], b""], ids=["no archive", "cut", "empty"]
)
def test_an_archive_that_cannot_be_read_is_left(site, tmp_path, content):
    site.archives[BIN] = content or pack({})[:5]
    with pytest.raises(DownloadError, match=r"its archive (cannot be read|has no right)"):
        get(site, tmp_path, "good", edition=toy_cifar10.edition(site.archives))


# --- folders and disks ---


def test_a_folder_that_cannot_be_is_named(site, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot make the folder .*file/data: a part of"):
        get(site, tmp_path / "file" / "data", "good")
    assert site.requests == []


def test_a_part_that_cannot_be_written_is_no_fault_of_the_source(site, tmp_path):
    (tmp_path / f"{BIN}.part").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*\.part: it is a folder"):
        get(site, tmp_path, "good", "good")
    assert len(site.requests) == 1


def test_a_full_disk_stops_the_download_and_keeps_the_part(site, tmp_path):
    resource = pytest.importorskip("resource", reason="a limit on the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match=r"cannot write .*\.part: the file is larger than"):
            get(site, tmp_path, "good", "good")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(site.requests) == 1
    assert (tmp_path / f"{BIN}.part").stat().st_size == 100_000
    get(site, tmp_path, "good")
    assert site.requests[1] == ("good", "bytes=100000-")
    assert is_right(tmp_path)


def test_a_disk_that_is_full_from_the_first_byte_is_told_in_words(site, tmp_path, monkeypatch):
    class Full(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(path, mode):
        return io.BufferedWriter(Full(), 1 << 20)  # which tries again when it is closed

    monkeypatch.setattr(fetch, "open", full, raising=False)
    with pytest.raises(StorageError, match=r"cannot write .*\.part: the disk is full; free some"):
        get(site, tmp_path, "good")


def test_two_at_once_download_once(site, tmp_path):
    runs = [threading.Thread(target=get, args=(site, tmp_path, "slow")) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert manners(site) == ["slow"]
    assert is_right(tmp_path)


def test_a_disk_without_locks_is_used_without(site, tmp_path, monkeypatch):
    def no_locks(self):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(sources.FileLock, "acquire", no_locks)
    get(site, tmp_path, "good")
    assert is_right(tmp_path)


# --- progress ---


def test_progress_is_a_line_every_tenth_where_there_is_no_terminal(site, tmp_path, capsys):
    get(site, tmp_path, "slow", progress=True)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == f"fetching {site.url('slow')}"
    assert 3 <= len(lines) <= 11
    assert lines[-1] == f"{BIN}: 100 % of {len(GOOD) / 1e6:.3g} MB"
    assert "\r" not in err


def test_progress_is_a_bar_on_a_terminal(site, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    get(site, tmp_path, "slow", progress=True)
    err = capsys.readouterr().err
    assert f"\r{BIN}:   0%|" in err
    assert " % of " not in err


def test_no_progress_is_silence(site, tmp_path, capsys):
    get(site, tmp_path, "missing", "good")
    assert capsys.readouterr() == ("", "")


def test_a_killed_download_keeps_what_came(site, tmp_path, monkeypatch):
    def interrupt(self, count):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch.Meter, "advance", interrupt)
        with contextlib.suppress(KeyboardInterrupt):
            get(site, tmp_path, "slow")
    came = (tmp_path / f"{BIN}.part").stat().st_size
    assert came > 0
    assert not is_complete(tmp_path, EDITION)
    get(site, tmp_path, "good")
    assert site.requests[-1] == ("good", f"bytes={came}-")
    assert is_right(tmp_path)


def test_a_log_gets_one_line_every_tenth(capsys):
    with fetch.Meter("a file", 1000, 450, slowest=0.0, window=1e9, show=True) as meter:
        for _ in range(22):
            meter.advance(25)
    shown = [f"a file: {percent} % of 0.001 MB" for percent in (50, 60, 70, 80, 90, 100)]
    assert capsys.readouterr().err.splitlines() == shown


def test_no_line_where_nothing_is_to_be_shown(capsys):
    with fetch.Meter("a file", 1000, 0, slowest=0.0, window=1e9, show=False) as meter:
        meter.advance(1000)
    assert capsys.readouterr().err == ""


def test_speed_is_that_of_the_window(monkeypatch):
    now = iter([100.0, 101.0, 102.0, 103.0, 104.0])  # when the meter began, and each arrival
    monkeypatch.setattr(fetch, "monotonic", lambda: next(now))
    with fetch.Meter("a file", 1000, 10, slowest=1.6, window=2.0, show=False) as meter:
        meter.advance(1)
        with pytest.raises(fetch.TooSlow, match=r"slow: 0\.0015 kB/s"):
            meter.advance(2)


def test_a_terminal_gets_a_bar_that_is_closed_and_no_lines(capsys, monkeypatch):
    class Bar:
        def __init__(self, **options):
            self.options, self.disable = options, options["disable"]
            self.seen, self.closed = [], False

        def update(self, count):
            self.seen.append(count)

        def close(self):
            self.closed = True

    monkeypatch.setattr(fetch, "tqdm", Bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with fetch.Meter("a file", 100, 40, slowest=0.0, window=1e9, show=True) as meter:
        bar = meter.bar
        meter.advance(10)
        meter.advance(50)
        assert not bar.closed
    assert bar.seen == [10, 50]
    assert bar.closed
    assert (bar.options["total"], bar.options["initial"], bar.disable) == (100, 40, False)
    assert capsys.readouterr().err == ""


def test_what_has_come_is_in_the_file_before_more_is_asked_for(site, tmp_path, monkeypatch):
    part, advance, sizes = tmp_path / "a.part", fetch.Meter.advance, []

    def look(meter, count):
        advance(meter, count)
        sizes.append((part.stat().st_size, meter.have))

    monkeypatch.setattr(fetch, "_CHUNK", 1000)
    monkeypatch.setattr(fetch.Meter, "advance", look)
    fetch.fetch(site.url("good"), part, len(GOOD))
    assert len(sizes) > 10
    assert all(there == come for there, come in sizes)


def packed(size):
    """The right files, and one beside them, so that all are `size` bytes long."""
    files = {f"{BINARY}/{name}.bin": content for name, content in FILES.items()}
    return pack(files | {"zeros": bytes(size - sum(map(len, files.values())))})


MOST = 2 * sum(map(len, FILES.values())) + 2**20  # bytes


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (packed(MOST + 1), "its archive holds far more than it should"),
        (pack({"zeros": bytes(MOST + 1)}), "its archive holds far more than it should"),
        (GOOD[: len(GOOD) // 2], r"its archive cannot be read \("),
        (b"no archive", r"its archive cannot be read \("),
        (pack({f"{BINARY}/readme.html": b""}), f"its archive has no right {BINARY}/data_batch_1"),
    ],
    ids=["bomb at the end", "bomb", "half", "text", "empty"],
)
def test_an_archive_of_the_right_digest_is_believed_no_further(site, tmp_path, content, reason):
    site.archives[BIN] = content
    with pytest.raises(DownloadError, match=f"/good/{BIN} {reason}"):
        get(site, tmp_path, "good", edition=toy_cifar10.edition({BIN: content}))


def test_an_archive_may_hold_as_much_beside_the_files(site, tmp_path):
    site.archives[BIN] = content = packed(MOST)
    get(site, tmp_path, "good", edition=toy_cifar10.edition({BIN: content}))
    assert is_right(tmp_path)
