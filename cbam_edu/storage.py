"""Files put in place whole or not at all, and where downloaded data lives."""

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import platformdirs

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


def replace_file(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that at every moment it is either the old one or the whole new one.

    The bytes go to a temporary file in the same folder, to the disk, and only then under the name
    `path`. Whatever goes wrong before, the old file stays as it was and nothing is left behind.

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
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with explained("write", path):
        try:
            with open(temporary, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    _sync_folder(path.parent)


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
        return Path(chosen).expanduser()
    return platformdirs.user_cache_path("cbam_edu", appauthor=False, opinion=False)
