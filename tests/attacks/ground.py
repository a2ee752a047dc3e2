"""What the attacks by faults share: forked children, and a trap at the n-th thing done to files.

A child is forked from a process that has imported everything, so that it begins at once. The trap
counts what a child does inside one folder - opening, every piece of a file that is written,
syncing, renaming, removing, making folders - and at the n-th kills the child or has it fail.
"""

import builtins
import contextlib
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own toys

PIECE = 1 << 14  # bytes of a file that are written at once, under the trap
_REAL = io.open


class Ended(NamedTuple):
    """How a child ended: exit code, or minus the signal; what it said; None for one that hung."""

    code: int | None
    said: str


class Child:
    """A forked process that does some work, its outputs in a file."""

    def __init__(self, work: Callable[[], int | None], said: Path):
        self.said = said
        sys.stdout.flush()
        begun, begin = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(begun)
            self._run(work, begin)
        os.close(begin)
        os.read(begun, 1)
        os.close(begun)
        self.began = time.monotonic()

    def _run(self, work: Callable[[], int | None], begin: int) -> None:
        code = 70
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            handle = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            os.write(begin, b"!")
            code = work() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def kill(self, number: int = signal.SIGKILL) -> bool:
        """Send it a signal; say whether it was still at work."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.status = status
            return False
        os.kill(self.pid, number)
        return True

    def end(self, within: float = 60.0) -> Ended:
        """Wait for its end, or kill it where that takes too long."""
        status = getattr(self, "status", None)
        while status is None:
            pid, found = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                status = found
            elif time.monotonic() - self.began > within:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return Ended(None, self._text())
            else:
                time.sleep(0.002)
        return Ended(os.waitstatus_to_exitcode(status), self._text())

    def _text(self) -> str:
        return self.said.read_text("utf-8", "replace") if self.said.exists() else ""


class Trap:
    """Count what is done in a folder; at the `at`-th, `spring` is called with what it is."""

    def __init__(self, folder: Path, at: int = 0, spring: Callable[[str], None] | None = None):
        self.folder, self.at, self.spring = os.fspath(folder), at, spring
        self.count, self.seen, self.full = 0, [], False  # type: int, list[str], bool

    def step(self, what: str) -> None:
        """Note one thing that is about to be done."""
        self.count += 1
        self.seen.append(what)
        if self.count == self.at and self.spring:
            self.spring(what)

    def inside(self, path: Any) -> bool:
        """Say whether a path is one of the folder's."""
        if isinstance(path, int) or path is None:
            return False
        return os.path.abspath(os.fsdecode(path)).startswith(self.folder)

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        """Hear what Python is about to do."""
        if event == "open" and self.inside(args[0]):
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            self.step("create" if writes else "read")
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"):
            relative = not os.path.isabs(os.fsdecode(args[0]))
            if self.inside(args[0]) or (relative and args[-1] not in (-1, None)):
                self.step(event.removeprefix("os."))

    def set(self) -> None:
        """Watch this process from now on; it cannot be undone."""
        trap = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:  # type: ignore[override]
                try:
                    trap.step("write")
                except OSError:  # a disk takes what still fits
                    super().write(memoryview(data)[: len(data) // 2])
                    raise
                return super().write(memoryview(data)[:PIECE]) or 0

        def trapped(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            if not set(mode) & set("wax+") or not trap.inside(file):
                return _REAL(file, mode, buffering, encoding, errors, newline, closefd, opener)
            raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
            if buffering == 0:
                return raw
            held = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return held if "b" in mode else io.TextIOWrapper(held, encoding, errors, newline)

        sync = os.fsync

        def synced(handle: int) -> None:
            trap.step("sync")
            sync(handle)

        os.fsync = synced
        builtins.open = io.open = trapped  # type: ignore[assignment]
        sys.addaudithook(self.hook)


def die(_: str) -> None:
    """Spring a trap: the process is gone before it can do what it was about to do."""
    os.kill(os.getpid(), signal.SIGKILL)


def listing(folder: Path) -> list[str]:
    """Return the names of all that is in a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@contextlib.contextmanager
def site(paced: float = 0.0) -> Iterator[Callable[..., str]]:
    """Serve the toy CIFAR-10 in a process of its own, a pause before each twentieth of it.

    Gives a function of a manner of `test_data_sources.Answer`, and an archive's name, that returns
    the address.
    """
    import test_data_sources as served

    class Paced(served.Answer):
        def paced(self, content: bytes, start: int) -> None:
            self.head_of(content, start)
            step = len(content) // 20 + 1
            for i in range(start, len(content), step):
                time.sleep(paced)
                self.wfile.write(content[i : i + step])

    with served.Site() as server:
        server.RequestHandlerClass = Paced
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                server.serve_forever(0.05)
            os._exit(0)
        try:
            yield server.url
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
