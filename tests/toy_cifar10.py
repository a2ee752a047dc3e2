"""A CIFAR-10 of sixty images, with digests of its own, in every form that CIFAR-10 comes in."""

import hashlib
import io
import tarfile

import numpy as np

from cbam_edu.data.cifar10 import BINARY, PYTHON, RECORD, Archive, Batch, Edition

COUNT = 20
SPLITS = {"data_batch_1": "train", "data_batch_2": "train", "test_batch": "test"}


def records(count: int = COUNT, seed: int = 0) -> bytes:
    """A file of the binary version: labels i mod 10, random pixels."""
    rows = np.random.default_rng(seed).integers(0, 256, (count, RECORD), np.uint8)
    rows[:, 0] = np.arange(count) % 10
    return rows.tobytes()


def python_version(binary: bytes, group: int = 1000) -> bytes:
    """The same images as the python version has them, opcode for opcode, at protocol 2."""
    rows = np.frombuffer(binary, np.uint8).reshape(-1, RECORD)
    labels = rows[:, 0].tolist()
    lists = b"".join(
        b"(" + b"".join(b"K" + bytes([label]) for label in labels[i : i + group]) + b"e"
        for i in range(0, len(labels), group)
    )
    pixels = rows[:, 1:].tobytes()
    return (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05"
        + lists
        + b"U\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00"
        b"\x85U\x01b\x87Rq\t(K\x01M\x10'M\x00\x0c\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b("
        b"K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(pixels).to_bytes(4, "little")
        + pixels
        + b"tbU\tfilenamesq\x0c]q\r(U\x05a.pngq\x0eU\x05b.pngq\x0feu."
    )


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pack(members: dict[str, bytes]) -> bytes:
    """A .tar.gz of files; a content that begins with "-> " is a symbolic link to what follows."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if content.startswith(b"-> "):
                member.type, member.linkname = tarfile.SYMTYPE, content[3:].decode()
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


FILES = {name: records(seed=seed) for seed, name in enumerate(SPLITS)}
ARCHIVES = {
    "cifar-10-binary.tar.gz": pack(
        {f"{BINARY}/{name}.bin": content for name, content in FILES.items()}
        | {f"{BINARY}/readme.html": b"<html>"}
    ),
    "cifar-10-python.tar.gz": pack(
        {f"{PYTHON}/{name}": python_version(content) for name, content in FILES.items()}
    ),
}


def edition(archives: dict[str, bytes] = ARCHIVES) -> Edition:
    """What the toy's files must be, in archives of these contents."""
    return Edition(
        {name: Batch(SPLITS[name], COUNT, sha256(content)) for name, content in FILES.items()},
        {
            name: Archive(PYTHON if "python" in name else BINARY, len(content), sha256(content))
            for name, content in archives.items()
        },
    )


EDITION = edition()
