"""A reader under watch: one hostile input after the other, in a process of its own.

What is watched, for each input: that nothing but a documented exception comes out, told in one
plain sentence; that the process lives, answers within seconds and takes less than 1 GB; that
nothing is written outside the folder that was given; and that no code of the input is run. Python
reports opened files, new processes, connections and compiled code itself (`sys.addaudithook`).
"""

import contextlib
import json
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 5.0  # of computing that an input may take
WAITING = 60.0  # seconds by the clock, as on a busy machine nothing goes on for long
WARMING = 30  # inputs before the first, so that what is imported late is imported
MEGABYTES = 1000.0  # that it may take above what the process has before the first
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # the tests' own toys
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("mkdir", "rename", "remove", "rmdir", "link", "symlink", "chmod", "chown", "truncate")
_CHANGES += ("utime", "mkfifo", "mknod", "setxattr", "removexattr")
_FOREIGN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork")
_FOREIGN += ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "pty.")
_FOREIGN += ("pickle.find_class", "os.kill", "ctypes.dlopen", "webbrowser.")
_KNOWN = tuple(os.path.realpath(p) for p in {sys.prefix, sys.base_prefix, str(ROOT), os.__file__})
_STATE = struct.Struct("qddqqd")  # number, begun at, by the CPU, accepted, refused, slowest
_SLOWEST = struct.Struct("q")


class Attack(NamedTuple):
    """What is done to a reader, and how it may answer.

    Attributes
    ----------
    name, unit : str
        Of the record.
    make : callable
        ``(rng, folder) -> read``: makes one input, in the folder or in memory, and returns what has
        it read, ``read()``, which raises AssertionError where an answer is wrong.
    refusals : tuple of type
        The documented exceptions.
    prepare : callable
        ``(folder)``: called once in the process that reads.
    names : str
        What every refusal must say, such as a part of the file's name.
    """

    name: str
    unit: str
    make: Callable[[random.Random, Path], Callable[[], object]]
    refusals: tuple[type[BaseException], ...]
    prepare: Callable[[Path], object] = lambda folder: None
    names: str = ""
    longest: int = 2000  # characters of a refusal; more where it repeats what was typed


class Finding(NamedTuple):
    """An input that was not answered as promised."""

    number: int
    kind: str  # the same for inputs that show one fault
    told: str


class Result(NamedTuple):
    """What came of an attack."""

    tried: int
    accepted: int
    refused: int
    findings: list[Finding]
    seconds: float
    slowest: float  # seconds
    slowest_number: int
    memory: float  # MB above the beginning


class Guard:
    """Python's own reports of what is done, judged while an input is read."""

    def __init__(self, target: Path):
        self.target, self.room = os.path.realpath(target), os.path.realpath(target.parent)
        self.on, self.seen = False, list[str]()
        self.kept = self._outside()
        sys.addaudithook(self._hear)

    def _outside(self) -> list[tuple[str, int, int]]:
        return sorted(
            (e.name, e.stat().st_size, e.stat().st_mtime_ns)
            for e in os.scandir(self.room)
            if e.path != self.target
        )

    def _is_inside(self, path: Any) -> bool:
        """Whether a path, or an open file's number, is in the folder that was given."""
        if not isinstance(path, str | bytes | os.PathLike):
            return True
        parent, name = os.path.split(os.path.abspath(os.fsdecode(path)))
        real = os.path.join(os.path.realpath(parent), name)  # of a link, the link itself
        return real == self.target or real.startswith(self.target + os.sep)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        bad = False
        if event == "open":
            bad = bool((args[2] or 0) & _WRITES) and not self._is_inside(args[0])
            bad = bad and isinstance(args[0], str | bytes | os.PathLike)
            bad = bad and os.fspath(args[0]) != os.devnull
        elif event.startswith("os.") and event.removeprefix("os.") in _CHANGES:
            paths = args[:2] if event in ("os.rename", "os.link") else args[:1]
            if event == "os.symlink":
                paths = args[1:2]
            bad = not all(map(self._is_inside, paths))
        elif event in ("exec", "compile"):
            name = getattr(args[0], "co_filename", None) or (args[1:] or [None])[0]
            name = os.fsdecode(name) if isinstance(name, str | bytes) else "?"
            bad = not name.startswith((*_KNOWN, "<frozen", "<attrs", "<__array_function__"))
        else:
            bad = event.startswith(_FOREIGN)
        if bad:
            self.on = False
            told = f"{event} {args!r}"[:300]
            self.seen.append(told)
            raise AssertionError(f"not allowed: {told}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Judge what is done inside."""
        self.seen.clear()
        self.on = True
        try:
            yield
        finally:
            self.on = False
        if self.seen:
            raise AssertionError(f"not allowed: {self.seen[0]}")
        if self._outside() != self.kept:
            raise AssertionError(f"something was changed outside: {self._outside()}")


def fault_of(error: BaseException, names: str, longest: int) -> str | None:
    """Say what is wrong with how a refusal is told, or None."""
    text = str(error)
    if not text.strip():
        return "the refusal is empty"
    if "\n" in text or "Traceback" in text:
        return "the refusal is more than a sentence"
    if len(text) > longest:
        return "the refusal is of thousands of characters"
    if names not in text:
        return f"the refusal does not name {names}"
    return None


def _try(attack: Attack, guard: Guard, number: int, seed: int, folder: Path) -> str | Finding:
    """Give one input to the reader: "accepted", "refused", or what went wrong."""
    rng = random.Random(f"{attack.name} {seed} {number}")
    try:
        read = attack.make(rng, folder)
        with guard.watching():
            read()
    except attack.refusals as error:
        if fault := fault_of(error, attack.names, attack.longest):
            return Finding(number, f"{fault}: {type(error).__name__}", str(error)[:300])
        return "refused"
    except (Exception, SystemExit) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "/cbam_edu/" in f.filename]
        where = f"{ours[-1].name}:{ours[-1].lineno}" if ours else f"{place.name}:{place.lineno}"
        kind = f"{type(error).__name__} in {where}"
        if isinstance(error, AssertionError):
            kind = f"wrong: {str(error)[:80]}"
        return Finding(number, kind, f"{error}"[:300])
    return "accepted"


def _work(
    attack: Attack, numbers: range, seed: int, folder: Path, state: mmap.mmap, report: Path
) -> None:
    """Read inputs until all are read; what the parent must know stands in `state`."""
    with warnings.catch_warnings(), open(report, "a", encoding="utf-8") as file:
        warnings.simplefilter("ignore")
        attack.prepare(folder)
        guard = Guard(folder)
        guard.kept = guard._outside()
        before = _STATE.unpack_from(state)[3:]
        _STATE.pack_into(
            state, 0, numbers.start - 1, time.monotonic(), time.process_time(), *before
        )
        for number in range(10**9, 10**9 + WARMING):  # what is imported late is imported now
            with contextlib.suppress(Exception, SystemExit):
                attack.make(random.Random(f"{attack.name} {number}"), folder)()
        guard.kept = guard._outside()
        accepted, refused, slowest = _STATE.unpack_from(state)[3:]
        for number in numbers:
            begun = time.process_time()
            _STATE.pack_into(state, 0, number, time.monotonic(), begun, accepted, refused, slowest)
            outcome = _try(attack, guard, number, seed, folder)
            if (taken := time.process_time() - begun) > slowest:
                slowest = taken
                _SLOWEST.pack_into(state, _STATE.size, number)
            accepted += outcome == "accepted"
            refused += outcome == "refused"
            if isinstance(outcome, Finding):
                file.write(json.dumps(outcome) + "\n")
                file.flush()
        _STATE.pack_into(state, 0, numbers.stop, 0.0, 0.0, accepted, refused, slowest)


def _resident(pid: int) -> float:
    """Return a process's memory in MB."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _computing(pid: int) -> float:
    """Return the seconds that a process has computed."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _highest(pid: int) -> float:
    """Return the most memory, in MB, that a process ever had."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    found = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(found[0]) * 1024 / 1e6 if found else 0.0


def _follow(pid: int, state: mmap.mmap) -> tuple[str | None, float]:
    """Wait for the worker; end it where an input takes too long or too much. Say why, and MB."""
    base, most = 0.0, 0.0
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return (None if code == 0 else f"the process ended with {code}"), most
        seen = _, begun, computing, *_ = _STATE.unpack_from(state)
        if begun:
            base = base or _resident(pid)
            most = max(most, _highest(pid) - base)
            why = None
            if _resident(pid) - base > MEGABYTES:
                why = f"more than {MEGABYTES:.0f} MB"
            elif _computing(pid) - computing > SECONDS:
                why = f"more than {SECONDS:.0f} s"
            elif time.monotonic() - begun > WAITING:
                why = f"no answer, and hardly any computing, in {WAITING:.0f} s"
            # Read once more: the worker may have been writing it.
            if why and _STATE.unpack_from(state) == seen:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return why, most
        time.sleep(0.01)


def run(attack: Attack, numbers: range, seed: int = 0) -> Result:
    """Try the inputs of these numbers; start a new process where one is lost."""
    began, findings, memory = time.monotonic(), list[Finding](), 0.0
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=shared, prefix="hostile-") as room:
        folder, report = Path(room, "room", "target"), Path(room, "report")
        folder.mkdir(parents=True)
        (folder.parent / "kept").write_text("what nobody may touch")
        state = mmap.mmap(-1, 4096)
        _STATE.pack_into(state, 0, -1, 0.0, 0.0, 0, 0, 0.0)
        left = numbers
        while len(left):
            pid = os.fork()
            if pid == 0:
                code = 70
                try:
                    os.chdir(folder.parent)
                    os.environ["HOME"] = str(folder.parent)
                    _work(attack, left, seed, folder, state, report)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            why, most = _follow(pid, state)
            number, _, _, accepted, refused, slowest = _STATE.unpack_from(state)
            memory = max(memory, most)
            if why is None:
                break
            if number < left.start:
                raise RuntimeError(f"{attack.name} could not begin: {why}")
            findings.append(Finding(number, why, why))
            _STATE.pack_into(state, 0, -1, 0.0, 0.0, accepted, refused, slowest)
            left = range(number + 1, left.stop)
        if report.exists():
            findings += [Finding(*json.loads(line)) for line in report.read_text().splitlines()]
        accepted, refused, slowest = _STATE.unpack_from(state)[3:]
        (where,) = _SLOWEST.unpack_from(state, _STATE.size)
    taken = time.monotonic() - began
    return Result(len(numbers), accepted, refused, findings, taken, slowest, where, memory)


def told(result: Result) -> str:
    """Return what was found, kind by kind, with the number of the first input of each."""
    kinds: dict[str, list[Finding]] = {}
    for finding in result.findings:
        kinds.setdefault(finding.kind, []).append(finding)
    return "\n".join(
        f"    {len(some):6} {kind}; first {some[0].number}: {some[0].told!r}"
        for kind, some in sorted(kinds.items(), key=lambda item: -len(item[1]))
    )
