"""Files put in place whole or not at all, and where downloaded data lives."""

import contextlib
import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

import platformdirs

if sys.platform != "win32":  # which itself lets nobody rename or remove a file that is open
    import fcntl

# What an error number means here, and what a person can do about it.
_CAUSES = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("your disk quota is used up", "free some space"),
    errno.EFBIG: ("the file is larger than this disk or account allows", "choose another folder"),
    errno.EROFS: ("it is on a read-only disk", "choose another folder"),
    errno.EACCES: ("permission is denied", "choose another folder or change its permissions"),
    errno.EPERM: ("permission is denied", "choose another folder or change its permissions"),
    errno.EISDIR: ("it is a folder, not a file", "give the path of a file"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another folder"),
    errno.EEXIST: ("a file of that name is in the way", "move it away or choose another folder"),
    errno.ENOENT: ("it does not exist", "check the path"),
    errno.ENODEV: ("it is a device or a pipe, not a file", "give the path of a file"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
}


class StorageError(OSError):
    """A file or folder that cannot be used: which one, why, and what to do, in one sentence."""


@contextlib.contextmanager
def explained(doing: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an `OSError` raised inside into a `StorageError` about `path`.

    Parameters
    ----------
    doing : str
        What is being done, such as ``"write"``: the sentence begins "cannot write PATH: ...".
    path : path
        The file or folder that it is done to.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        cause, remedy = _CAUSES.get(error.errno or 0, (reason, "choose another folder"))
        told = StorageError(f"cannot {doing} {os.fspath(path)}: {cause}; {remedy}")
        told.errno = error.errno
        raise told from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder, and those above it, unless it is there; return it.

    Raises
    ------
    StorageError
        Where the folder cannot be made.
    """
    with explained("make the folder", path):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading; a pipe or a device, which may never end, is an `OSError`."""
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):  # of a folder, opening it tells
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    return open(path, "rb")


def replace_file(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that at every moment it is either the old one or the whole new one.

    The bytes go to a temporary file in the same folder, to the disk, and only then under the name
    `path`. Whatever goes wrong before, the old file stays as it was and nothing is left behind; of
    a process that was killed, the next one that writes the file removes what is left. A link stays
    a link: the file that it leads to is written. The permissions of an old file are kept, and
    heeded.

    Parameters
    ----------
    path : path
        The file to write; its folder must exist.
    write : callable
        Called with the open binary file. What it raises passes through; an `OSError`, such as a
        full disk's, becomes a `StorageError`.

    Raises
    ------
    StorageError
        Where the file cannot be written.
    """
    with explained("write", path):
        target = Path(os.path.realpath(path))
        permissions = _permissions(target)
        beginning = f".{target.name[:60]}."  # of the temporary name, which must not be too long
        _sweep(target.parent, beginning)
        file, temporary = _begin(target.parent, beginning)
        try:
            with file:
                if permissions is not None:
                    os.chmod(temporary, permissions)
                write(file)
                file.flush()
                os.fsync(file.fileno())
                if sys.platform == "win32":
                    file.close()
                os.replace(temporary, target)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    _sync_folder(target.parent)


def _permissions(path: Path) -> int | None:
    """Return those of a file that may be written, or None where there is none."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    number = errno.EISDIR if stat.S_ISDIR(mode) else 0 if stat.S_ISREG(mode) else errno.ENODEV
    if not number and not os.access(path, os.W_OK):
        number = errno.EACCES
    if number:
        raise OSError(number, os.strerror(number))
    return stat.S_IMODE(mode)


def _begin(folder: Path, beginning: str) -> tuple[BinaryIO, Path]:
    """Open a temporary file that `_sweep` leaves alone for as long as this process has it open."""
    while True:
        path = folder / f"{beginning}{secrets.token_hex(4)}.tmp"
        file = open(path, "xb")  # noqa: SIM115  (the caller closes it)
        with contextlib.suppress(OSError):  # some network disks have no locks
            _hold(file)
        if path.exists():  # it was not swept away between the two lines
            return file, path
        file.close()


def _hold(file: IO[bytes], wait: bool = True) -> None:
    """Lock a file, for as long as it is open; OSError where it is locked, or cannot be."""
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _sweep(folder: Path, beginning: str) -> None:
    """Remove the temporary files of this beginning whose processes are no more."""
    with contextlib.suppress(OSError):  # a folder may be written to and not read
        for path in folder.iterdir():
            if re.fullmatch(re.escape(beginning) + r"[0-9a-f]{8}\.tmp", path.name):
                with contextlib.suppress(OSError), open(path, "r+b") as file:
                    _hold(file, wait=False)
                    if sys.platform == "win32":
                        file.close()
                    path.unlink()


def append_lines(path: str | os.PathLike[str], lines: bytes) -> None:
    """Add whole lines to a file, one process at a time; all of them, or on a full disk none.

    A last line that was cut in half, by a kill, stays a line of its own.

    Raises
    ------
    StorageError
        Where the file cannot be written.
    """
    with explained("write", path), open(path, "a+b", buffering=0) as file:
        with contextlib.suppress(OSError):  # some network disks have no locks
            _hold(file)
        size = file.seek(0, os.SEEK_END)
        if size and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            lines = b"\n" + lines
        try:
            written = 0
            while written < len(lines):
                written += file.write(lines[written:])
            os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for the same out of a folder, where the system can."""
    if sys.platform == "win32":
        yield
        return
    with explained("open", folder):
        handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network disks have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Make a renaming outlast a power cut, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders; some network disks sync none
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def cache_dir() -> Path:
    """Return the folder for downloaded data, which may not exist yet.

    It is ``$CBAM_EDU_DATA`` where that is set, else ``cbam_edu`` in the user's cache folder:
    ``$XDG_CACHE_HOME`` or ``~/.cache`` on Linux, ``~/Library/Caches`` on macOS, ``%LOCALAPPDATA%``
    on Windows.
    """
    if chosen := os.environ.get("CBAM_EDU_DATA"):
        return Path(os.path.expanduser(chosen))  # of an unknown user, ~name is a name like any
    return platformdirs.user_cache_path("cbam_edu", appauthor=False, opinion=False)
