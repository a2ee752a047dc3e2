"""Hostile inputs made of good ones: bytes, JSON, and the parts of a PNG, a zip or a tar changed."""

import contextlib
import io
import json
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_INTERESTING += (2**63 - 1, 2**63, 2**64 - 1, 1000, 50_000)

# What stands where something else should.
STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 7, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400),
    *(0.5, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), -float("inf")),
    *(
        "",
        " ",
        "x",
        "\0",
        "\ud800",
        "\x1b[31m",
        "a\nb",
        "é" * 3,
        "../../../etc/passwd",
        "/dev/zero",
    ),
    *(
        "None",
        "1",
        "nan",
        "{}",
        "%s%n",
        "x" * 5000,
        [],
        {},
        [[]],
        [0],
        [None],
        {"": None},
        {"a": {}},
    ),
    *([1] * 300, ["x"] * 30, {str(i): i for i in range(50)}),
)


def strange(rng: random.Random) -> Any:
    """Return a value that nobody expects; now and then one that is deeply nested."""
    if rng.random() < 0.02:
        value: Any = rng.choice(STRANGE)
        for _ in range(rng.choice((5, 100, 900, 5000))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    return rng.choice(STRANGE)


def bytes_changed(rng: random.Random, data: bytes, more: Sequence[bytes] = ()) -> bytes:
    """Change bytes: flipped, set, cut, doubled, moved, put in from another sample, appended."""
    new = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        size = len(new)
        at = rng.randrange(size + 1)
        kind = rng.randrange(10)
        if kind == 0 and size:
            new[min(at, size - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1 and size:
            new[min(at, size - 1)] = rng.randrange(256)
        elif kind in (2, 3):
            width = rng.choice((1, 2, 4, 8))
            value = rng.choice(_INTERESTING) % 256**width
            order = rng.choice(("little", "big"))
            new[at : at + width] = value.to_bytes(width, order)  # type: ignore[arg-type]
        elif kind == 4:
            del new[at:]
        elif kind == 5:
            del new[at : at + rng.choice((1, 4, 64))]
        elif kind == 6:
            part = new[at : at + rng.choice((1, 4, 64, 1024))]
            new[at:at] = part * rng.choice((1, 2, 20))
        elif kind == 7:
            new[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
        elif kind == 8 and more:
            other = rng.choice(more)
            start = rng.randrange(len(other) + 1)
            new[at:] = other[start:]
        else:
            new += rng.choice((b"\0", b"\n", data, rng.randbytes(40)))
    return bytes(new)


def _places(value: Any, found: list[tuple[Any, Any]], depth: int = 50) -> None:
    items: Any = ()
    if not depth:
        return
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        found.append((value, key))
        _places(inner, found, depth - 1)


def tree_changed(rng: random.Random, tree: Any) -> Any:
    """Change some values of a tree of dicts and lists, which is not copied: pass a fresh one."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = []
        _places(tree, places)
        if not places:
            return strange(rng)
        holder, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice(("x", "", "\ud800", "name", str(key) + " "))] = holder.pop(key)
        elif kind == 2:
            other, name = rng.choice(places)
            if isinstance(holder[key], str | int | float | bool | None):
                holder[key] = other.get(name) if isinstance(other, dict) else other
                with contextlib.suppress(RecursionError, ValueError):
                    holder[key] = json.loads(json.dumps(holder[key]))
        elif kind == 3 and isinstance(holder[key], int | float):
            number = holder[key]
            holder[key] = rng.choice(
                (number + 1, -number, number * 1000, str(number), float(number))
            )
        elif kind == 4 and isinstance(holder[key], list) and holder[key]:
            holder[key] *= rng.choice((2, 10))
        else:
            holder[key] = strange(rng)
    return tree


def as_json(rng: random.Random, tree: Any) -> bytes:
    """Write JSON as a hostile hand does: with NaN, names twice, surrogates, and bytes changed."""
    try:
        text = json.dumps(tree, ensure_ascii=rng.random() < 0.8)
    except (RecursionError, ValueError):  # too deep, or in a circle
        text = "[" * 100_000
    if rng.random() < 0.03:
        text = text.replace("1", "1" * rng.choice((400, 5000)), 1)
    if rng.random() < 0.05 and text.startswith("{"):
        text = '{"seed": 7, "config": [], ' + text[1:]
    if rng.random() < 0.01:
        text = "[" * rng.choice((500, 100_000)) + text
    data = text.encode("utf-8", "surrogatepass")
    return bytes_changed(rng, data) if rng.random() < 0.15 else data


def _chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at + 8 <= len(png):
        (size,) = struct.unpack_from(">I", png, at)
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def _written(chunks: Sequence[tuple[bytes, bytes]], rng: random.Random) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks:
        size, crc = len(content), zlib.crc32(kind + content)
        if rng.random() < 0.02:
            size = rng.choice(_INTERESTING) % 2**32
        if rng.random() < 0.02:
            crc ^= 1
        parts.append(struct.pack(">I", size) + kind + content + struct.pack(">I", crc))
    return b"".join(parts)


_KINDS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"zTXt", b"iTXt", b"tEXt", b"eXIf", b"iCCP")
_KINDS += (b"acTL", b"fcTL", b"fdAT", b"gAMA", b"pHYs", b"cHRM", b"sRGB", b"IDAx", b"\0\0\0\0")


def png_changed(rng: random.Random, png: bytes) -> bytes:
    """Change a PNG's chunks and write it with right checksums, mostly."""
    chunks = _chunks(png)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(chunks)) if chunks else 0
        kind = rng.randrange(8)
        if not chunks or kind == 0:
            bomb = zlib.compress(b"\0" * rng.choice((10, 10**5, 10**7)), 1)
            content = rng.choice((b"", b"a\0\0" + bomb, bomb, b"x\0" * 50, rng.randbytes(26)))
            chunks.insert(at, (rng.choice(_KINDS), content))
        elif kind == 1:
            del chunks[at]
        elif kind == 2:
            chunks.insert(at, chunks[rng.randrange(len(chunks))])
        elif kind == 3:
            chunks[at] = (rng.choice(_KINDS), chunks[at][1])
        elif kind == 4 and chunks[0][0] == b"IHDR" and len(chunks[0][1]) == 13:
            head = list(struct.unpack(">IIBBBBB", chunks[0][1]))
            part = rng.randrange(7)
            sides = (0, 1, 31, 33, 1000, 65_535, 50_000, 2**31 - 1, 2**31, 2**32 - 1)
            head[part] = (
                rng.choice(sides) if part < 2 else rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
            )
            chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", *head))
        elif kind == 5 and chunks[at][0] == b"IDAT":
            try:
                raw = zlib.decompress(chunks[at][1])
            except zlib.error:
                raw = b""
            chunks[at] = (b"IDAT", zlib.compress(bytes_changed(rng, raw), 1))
        else:
            chunks[at] = (chunks[at][0], bytes_changed(rng, chunks[at][1]))
    return _written(chunks, rng)


def zip_changed(rng: random.Random, data: bytes) -> bytes:
    """Change what a zip holds, and write it whole, with right checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
    packed = rng.random() < 0.1  # torch's own files are stored, never packed
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(members))
        name, content = members[at]
        kind = rng.randrange(8)
        if kind == 0:
            del members[at]
        elif kind == 1:
            members.insert(at, members[rng.randrange(len(members))])
        elif kind == 2:
            members[at] = (
                rng.choice(("../../out", "/tmp/out", "", "a" * 300, name + "x")),
                content,
            )
        elif kind == 3 and packed:
            members[at] = (
                name,
                b"\0" * rng.choice((10**4, 10**7, 10**9 if rng.random() < 0.01 else 1)),
            )
        else:
            members[at] = (name, bytes_changed(rng, content))
        if not members:
            break
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as new:
        for name, content in members:
            new.writestr(zipfile.ZipInfo(name or "_"), content)
    return bytes_changed(rng, file.getvalue()) if rng.random() < 0.2 else file.getvalue()


_TYPES = (tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)
_TYPES += (tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE)
_TYPES += (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, b"Z", b"\0")
ESCAPES = (
    "../kept",
    "/dev/shm/escaped",
    "../../escaped",
    "target/../../kept",
    "",
    ".",
    "..",
    "a/" * 90,
)


def _field(rng: random.Random, width: int) -> bytes:
    """Return a number as a tar header has it, or as it should never be."""
    return rng.choice(
        (
            b"%0*o\0" % (width - 1, rng.choice(_INTERESTING) % 8 ** (width - 1)),
            b"\x80"
            + (rng.choice(_INTERESTING) % 256 ** (width - 1)).to_bytes(
                width - 1, "big"
            ),  # base 256
            b"\xff" * width,  # base 256, negative
            b"-1".ljust(width, b"\0"),
            b"9" * width,
            b"".ljust(width, b" "),
            rng.randbytes(width),
        )
    )


def _header(rng: random.Random, block: bytes) -> bytes:
    """Change a field of a tar header; its checksum is right again, mostly."""
    new = bytearray(block)
    fields = ((0, 100), (100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (148, 8), (156, 1))
    fields += ((157, 100), (257, 8), (345, 155), (386, 24), (482, 1), (483, 12))
    start, width = rng.choice(fields)
    if width in (8, 12):
        new[start : start + width] = _field(rng, width)[:width].ljust(width, b"\0")
    elif start == 156:
        new[156:157] = rng.choice(_TYPES)
    elif rng.random() < 0.7:
        name = rng.choice(ESCAPES).encode()[:width]
        new[start : start + width] = name.ljust(width, b"\0")
    else:
        new[start : start + width] = rng.randbytes(width)
    if rng.random() < 0.95:
        new[148:156] = b" " * 8
        new[148:156] = b"%06o\0 " % sum(new[:512])
    return bytes(new)


def _pax(rng: random.Random) -> bytes:
    """Return an extended header that says too much, of what follows or of all that follows."""
    keys = (
        "size",
        "path",
        "linkpath",
        "GNU.sparse.map",
        "GNU.sparse.size",
        "GNU.sparse.major",
        "uid",
    )
    key = rng.choice(keys)
    value = rng.choice(
        ("0", "-1", "9" * 30, "../kept", "/dev/zero", "1,2,3", "x" * 10**5, "1", "\ud800")
    )
    body = f" {key}={value}\n".encode("utf-8", "surrogatepass")
    count = len(body) + len(str(len(body))) + 1
    said = rng.choice((count, count, 0, 1, -5, 10**12))
    content = str(said).encode() + body
    info = tarfile.TarInfo("pax")
    info.type, info.size = rng.choice((tarfile.XHDTYPE, tarfile.XGLTYPE)), len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + b"\0" * (-len(content) % 512)


def tar_changed(rng: random.Random, tar: bytes) -> bytes:
    """Change a tar's headers, members and order; add links, devices, PAX headers and junk."""
    parts: list[bytes] = []
    at = 0
    while at + 512 <= len(tar) and tar[at : at + 100].strip(b"\0"):
        size = int(tar[at + 124 : at + 135], 8)
        end = at + 512 + -(-size // 512) * 512
        parts.append(tar[at:end])
        at = end
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(parts)) if parts else 0
        kind = rng.randrange(9)
        if kind <= 2 and parts:
            parts[at] = _header(rng, parts[at][:512]) + parts[at][512:]
        elif kind == 3:
            info = tarfile.TarInfo(rng.choice((*ESCAPES, "cifar-10-batches-bin/test_batch.bin")))
            info.type, info.linkname = rng.choice(_TYPES[:9]), rng.choice(ESCAPES)
            parts.insert(at, info.tobuf(tarfile.GNU_FORMAT))
        elif kind == 4:
            parts.insert(at, _pax(rng))
        elif kind == 5 and parts:
            parts[at] = parts[at][:512] + bytes_changed(rng, parts[at][512:])
        elif kind == 6 and parts:
            del parts[at]
        elif kind == 7 and parts:
            parts.insert(at, parts[rng.randrange(len(parts))])
        else:
            rng.shuffle(parts)
    end = b"\0" * rng.choice((1024, 1024, 512, 0, 100))
    return b"".join(parts) + end
