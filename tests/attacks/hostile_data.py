"""Attacks on what reads images: CIFAR-10's files and archives, the miniature, pictures, folders."""

import contextlib
import functools
import gzip
import hashlib
import io
import os
import random
import shutil
import socket
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from canaries import code_of_a_pickle
from mutations import bytes_changed, png_changed, tar_changed
from PIL import Image

import toy_cifar10
from cbam_edu.data import mini, open_picture, read_image
from cbam_edu.data.cifar10 import (
    BINARY,
    PYTHON,
    Archive,
    Batch,
    CorruptFile,
    Edition,
    is_complete,
    load_cifar10,
)
from cbam_edu.data.fetch import SourceError
from cbam_edu.data.folder import FolderBatches, FolderError, load_folder, transform
from cbam_edu.data.images import ImageSet
from cbam_edu.data.sources import DownloadError, download
from cbam_edu.storage import StorageError
from watch import Attack

# A CIFAR-10 of two images a file.
SPLITS = {"data_batch_1": "train", "data_batch_2": "train", "test_batch": "test"}
FILES = {name: toy_cifar10.records(2, seed) for seed, name in enumerate(SPLITS)}
PICKLED = {name: toy_cifar10.python_version(content) for name, content in FILES.items()}
CODE = tuple(
    code_of_a_pickle(function, *args)
    for function, args in (
        (os.system, ("touch escaped",)),
        (exec, ("open('escaped', 'w')",)),
        (open, ("escaped", "w")),
    )
)
BATCHES = {name: Batch(SPLITS[name], 2, toy_cifar10.sha256(c)) for name, c in FILES.items()}
EDITION = Edition(BATCHES, {})


def odd_thing(rng: random.Random, path: Path, content: bytes) -> None:
    """Put under a name what is no ordinary file: a pipe, a link in a circle, a device, a folder."""
    kind = rng.randrange(9)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to(path)
    elif kind == 2:
        path.symlink_to("/dev/zero")
    elif kind == 3:
        path.mkdir()
    elif kind == 4:
        with socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            server.bind(os.path.relpath(path))  # its name must be short
    elif kind == 5:
        path.symlink_to(path.with_name("nowhere"))
    elif kind == 6:
        path.touch()
        os.truncate(path, 8_000_000_000)  # takes no room on the disk
    elif kind == 7:
        path.symlink_to("/dev/tty")
    else:
        path.write_bytes(content)
        path.chmod(0)


def clear(path: Path) -> None:
    """Remove whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_right(images: ImageSet, split: str) -> bool:
    whole = b"".join(c for name, c in FILES.items() if SPLITS[name] == split)
    rows = np.frombuffer(whole, np.uint8).reshape(-1, toy_cifar10.RECORD)
    labels, pixels = images.labels.numpy(), images.images.numpy().reshape(len(rows), -1)
    return np.array_equal(labels, rows[:, 0]) and np.array_equal(pixels, rows[:, 1:])


def _load(split: str, folder: Path) -> None:
    assert _is_right(load_cifar10(split, folder, edition=EDITION), split), "wrong images"


def _batches(
    good: dict[str, bytes], ending: str, inner: str
) -> Callable[[random.Random, Path], Callable[[], object]]:
    def make(rng: random.Random, folder: Path) -> Callable[[], object]:
        name = rng.choice(list(good))
        path = folder / rng.choice((inner, "")) / f"{name}{ending}"
        for one in good:  # the others are good
            for place in (folder / inner, folder):
                clear(place / f"{one}{ending}")
            (folder / inner / f"{one}{ending}").write_bytes(good[one])
        clear(folder / inner / f"{name}{ending}")
        if rng.random() < 0.01:
            odd_thing(rng, path, good[name])
        elif rng.random() < 0.1 and good is PICKLED:
            path.write_bytes(rng.choice(CODE) + good[name])
        else:
            path.write_bytes(bytes_changed(rng, good[name], [*good.values(), *CODE]))
        return functools.partial(_load, rng.choice(("train", "test")), folder)

    return make


def _folders(folder: Path) -> None:
    for inner in (BINARY, PYTHON):
        (folder / inner).mkdir(exist_ok=True)


def _tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


TARS = {
    BINARY: _tar({f"{BINARY}/{n}.bin": c for n, c in FILES.items()} | {f"{BINARY}/a.txt": b"a"}),
    PYTHON: _tar({f"{PYTHON}/{n}": c for n, c in PICKLED.items()}),
}


@functools.cache
def _bomb(megabytes: int) -> bytes:
    """Return a tar of zeros, packed small, before the good one."""
    info = tarfile.TarInfo("zeros")
    info.size = megabytes << 20
    packed = gzip.compress(info.tobuf() + bytes(info.size), 9)
    return packed + gzip.compress(TARS[BINARY], 1)


def _hostile_archive(rng: random.Random, inner: str) -> bytes:
    kind = rng.random()
    if kind < 0.0005:
        return _bomb(rng.choice((50, 200)))
    tar = tar_changed(rng, TARS[inner]) if kind < 0.9 else TARS[inner]
    packed = gzip.compress(tar, 1)
    if kind > 0.85:
        return bytes_changed(rng, packed, [gzip.compress(b"x"), TARS[inner][:2000]])
    return packed


def _archives(rng: random.Random, folder: Path) -> Callable[[], object]:
    for thing in folder.iterdir():
        clear(thing)
    inner = rng.choice((BINARY, PYTHON))
    name = "cifar-10-binary.tar.gz" if inner == BINARY else "cifar-10-python.tar.gz"
    data = _hostile_archive(rng, inner)
    # Nothing but the pinned digest is believed; here a hostile one is pinned, mostly.
    sha256 = hashlib.sha256(data).hexdigest() if rng.random() < 0.9 else "0" * 64
    edition = Edition(BATCHES, {name: Archive(inner, len(data), sha256)})
    (folder / name).write_bytes(data)
    return functools.partial(_unpack, folder, name, edition)


def _unpack(folder: Path, name: str, edition: Edition) -> None:
    download(folder, sources=(), edition=edition, progress=False)
    assert is_complete(folder, edition), "not complete"
    names = {p.name for p in folder.rglob("*")} - {name, ".cifar10.lock", BINARY}
    assert names == {f"{n}.bin" for n in FILES}, f"there are {names}"


def _sheet() -> tuple[bytes, str]:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 320, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
    images = pixels.reshape(-1, 32, 10, 32, 3).transpose(0, 2, 4, 1, 3)
    return file.getvalue(), hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()


SHEET, SHEET_SHA256 = _sheet()


def _small_miniature(folder: Path) -> None:
    mini.PER_CLASS["test"], mini.PIXELS_SHA256["test"] = 1, SHEET_SHA256
    mini.sheet_path = lambda split: folder / "hostile.png"


def _sheets(rng: random.Random, folder: Path) -> Callable[[], object]:
    path = folder / "hostile.png"
    clear(path)
    if rng.random() < 0.005:
        odd_thing(rng, path, SHEET)
    elif rng.random() < 0.7:
        path.write_bytes(png_changed(rng, SHEET))
    else:
        path.write_bytes(bytes_changed(rng, SHEET, SAMPLES[:10]))
    return _load_sheet


def _load_sheet() -> None:
    images = mini.load_mini("test")
    assert hashlib.sha256(images.images.numpy().tobytes()).hexdigest() == SHEET_SHA256


def _samples() -> list[bytes]:
    """Return small good pictures of every kind that Pillow writes, and some that it only reads."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 40 * 30 * 3).reshape(40, 30, 3).astype(np.uint8)
    colour = Image.fromarray(ramp)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    noise = Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8))
    frames = [colour, noise.resize(colour.size)]
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        *(("PNG", m, {}) for m in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I")),
        ("PNG", "RGB", {"exif": exif}),
        ("PNG", "RGB", {"save_all": True, "append_images": frames}),
        *(("JPEG", m, {}) for m in ("L", "RGB", "CMYK")),
        *(("JPEG", "RGB", options) for options in ({"exif": exif}, {"progressive": True})),
        *(("TIFF", m, {}) for m in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F")),
        *(("TIFF", "RGB", {"compression": c}) for c in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")),
        *(("TIFF", "1", {"compression": c}) for c in ("group3", "group4", "packbits")),
        ("TIFF", "LAB", {}),
        ("TIFF", "RGB", {"exif": exif, "save_all": True, "append_images": frames}),
        *(("GIF", m, {}) for m in ("L", "P", "RGB")),
        ("GIF", "RGB", {"save_all": True, "append_images": frames}),
        *(("WEBP", m, o) for m in ("RGB", "RGBA") for o in ({}, {"lossless": True})),
        ("WEBP", "RGB", {"save_all": True, "append_images": frames, "exif": exif}),
        *(("BMP", m, {}) for m in ("1", "L", "P", "RGB", "RGBA")),
        *(("PPM", m, {}) for m in ("1", "L", "RGB", "I")),
        *(("ICO", "RGBA", {"bitmap_format": f}) for f in ("bmp", "png")),
        *((f, "RGB", {}) for f in ("JPEG2000", "AVIF", "TGA", "PCX", "SGI", "DDS", "QOI", "ICNS")),
        *((f, "L", {}) for f in ("IM", "SPIDER", "TGA", "PCX")),
        ("MPO", "RGB", {"save_all": True, "append_images": frames}),
        *((f, "1", {}) for f in ("MSP", "XBM")),
        ("EPS", "RGB", {}),
    ]
    found = []
    for form, mode, options in kinds:
        file = io.BytesIO()
        with contextlib.suppress(KeyError, OSError, ValueError):  # a kind that this Pillow lacks
            picture = colour
            if mode in ("I;16", "I"):
                picture = Image.fromarray(ramp[..., 0].astype(np.uint16) * 257)
            picture = picture if mode == "I;16" else picture.convert(mode)
            picture.save(file, format=form, **options)
            found.append(file.getvalue())
    found += [b"P3 2 2 255 " + b"1 2 3 " * 4, b"P1 2 2 0 1 1 0", b"Pf\n2 2\n-1.0\n" + bytes(16)]
    found += [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.4\n",
        b"text\n" * 20,
        b"",
        b"\0",
    ]
    found += [b"#!/bin/sh\ntouch escaped\n", CODE[0], b"/* XPM */\nstatic char *a[]={}", b"qoif"]
    return found


SAMPLES = _samples()
ENDINGS = ("png", "jpg", "jpeg", "gif", "tif", "webp", "bmp", "ico", "ppm", "txt", "")


@functools.cache
def _large(kind: int) -> bytes:
    """Return a small file of a large picture: as large as is taken, more, and out of all shape."""
    size = ((50_000, 50_000), (9_400, 9_400), (65_000, 1), (1, 65_000), (13_000, 13_000))[kind]
    file = io.BytesIO()
    if kind == 0:  # without so much memory here, either
        head = struct.pack(">IIBBBBB", *size, 1, 0, 0, 0, 0)
        return png_of(head, b"\0" * 100_000)
    Image.new("RGB", size).save(file, format="PNG", compress_level=9)
    return file.getvalue()


def png_of(head: bytes, raw: bytes) -> bytes:
    """Return a PNG of a header and of filtered rows."""
    import zlib

    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in ((b"IHDR", head), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b"")):
        crc = zlib.crc32(kind + content)
        parts.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc))
    return b"".join(parts)


def hostile_picture(rng: random.Random) -> bytes:
    """Return a picture that is spoiled in some way."""
    if rng.random() < 0.0004:
        return _large(rng.choices((0, 1, 2, 3, 4), (8, 1, 8, 8, 1))[0])
    data = rng.choice(SAMPLES)
    if data.startswith(b"\x89PNG") and rng.random() < 0.7:
        return png_changed(rng, data)
    if rng.random() < 0.05:
        return data + rng.choice(SAMPLES)  # two at once
    return bytes_changed(rng, data, SAMPLES)


def _pictures(rng: random.Random, folder: Path) -> Callable[[], object]:
    for thing in folder.iterdir():
        clear(thing)
    path = folder / f"hostile.{rng.choice(ENDINGS)}"
    if rng.random() < 0.003:
        odd_thing(rng, path, rng.choice(SAMPLES))
    else:
        path.write_bytes(hostile_picture(rng))
    return functools.partial(_open if rng.random() < 0.5 else _read, path)


def _open(path: Path) -> None:
    picture = open_picture(path)
    assert picture.mode == "RGB", "not RGB"
    assert min(picture.size) > 0, "no pixels"
    assert len(picture.getpixel((0, 0))) == 3, "not RGB"  # type: ignore[arg-type]


def _read(path: Path) -> None:
    image = read_image(path)
    assert image.shape == (3, 32, 32), "wrong shape"
    assert image.dtype == torch.uint8, "wrong numbers"


NAMES = ("cat", "dog", ".hidden", "a b", "é", "\udcff", "x" * 200, "cat.jpg", "nan", "-", "..a")


def _grow_tree(rng: random.Random, folder: Path, depth: int) -> None:
    folder.mkdir()
    for _ in range(rng.choice((0, 1, 2, 3))):
        path = folder / f"{rng.choice(NAMES)}{rng.choice(('', '.jpg', '.PNG', '.heic', '.txt'))}"
        if os.path.lexists(path):
            continue
        kind = rng.random()
        if kind < 0.1:
            path.symlink_to(rng.choice((".", "..", "../..", "/dev/zero", "nowhere")))
        elif kind < 0.15:
            odd_thing(rng, path, SAMPLES[0])
        elif kind < 0.4 and depth:
            _grow_tree(rng, path, depth - 1)
        else:
            path.write_bytes(SAMPLES[0] if kind < 0.7 else hostile_picture(rng))


def _trees(rng: random.Random, folder: Path) -> Callable[[], object]:
    for thing in folder.iterdir():
        clear(thing)
    tree = folder / "hostile"
    tree.mkdir()
    for split in ("train", "val"):
        if rng.random() < 0.97:
            (tree / split).mkdir()
            for name in ("cat", "dog", *rng.sample(NAMES, rng.choice((0, 0, 1)))):
                if not (tree / split / name).exists():
                    _grow_tree(rng, tree / split / name, 1)
                    if rng.random() < 0.9:
                        (tree / split / name / "good.png").write_bytes(SAMPLES[4])
    return functools.partial(_list, tree, rng.choice(("train", "test")))


def _list(tree: Path, split: str) -> None:
    listed = load_folder(tree, split, size=8, workers=0)
    assert len(listed) == len(listed.labels) == len(set(listed.paths)), "not one label a picture"
    pairs = zip(listed.paths, listed.labels.tolist(), strict=True)
    folders = {(os.path.realpath(os.path.dirname(p)), os.path.basename(p), n) for p, n in pairs}
    assert len(folders) == len(listed), "a picture is listed twice in its class"
    for x, _ in FolderBatches(listed, 2):
        assert x.shape[1:] == (3, 8, 8), "wrong shape"


DATA: dict[str, Attack] = {
    "batches": Attack(
        "CIFAR-10's files, binary version",
        "files",
        _batches(FILES, ".bin", BINARY),
        (CorruptFile, FileNotFoundError, StorageError),
        _folders,
        "/target",
    ),
    "pickles": Attack(
        "CIFAR-10's files, python version (pickles, some of which run code)",
        "files",
        _batches(PICKLED, "", PYTHON),
        (CorruptFile, FileNotFoundError, StorageError),
        _folders,
        "/target",
    ),
    "archives": Attack(
        "CIFAR-10's archives", "archives", _archives, (DownloadError, SourceError, StorageError)
    ),
    "sheets": Attack(
        "the miniature's pictures",
        "files",
        _sheets,
        (CorruptFile, StorageError),
        _small_miniature,
        "hostile.png",
    ),
    "pictures": Attack(
        "pictures to be named", "files", _pictures, (ValueError, StorageError), names="hostile"
    ),
    "trees": Attack(
        "folders of pictures",
        "folders",
        _trees,
        (FolderError, ValueError, StorageError),
        lambda folder: transform(8),  # which takes seconds to import
        "hostile",
    ),
}
