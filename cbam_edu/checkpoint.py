"""Checkpoints: written whole or not at all, read without running code, of one run only."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch

from cbam_edu.attention import shown
from cbam_edu.storage import explained, open_file, replace_file

_PARTS: dict[str, Any] = {
    **dict.fromkeys(("identity", "model", "optimizer", "scaler"), dict),
    "average": dict | None,
    "history": list,
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: which, why, and what to do."""


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write ``checkpoint.pt``, and before it its history, readably, as ``log.jsonl``.

    In this order a run that is killed between the two and resumed writes both again; after a last
    checkpoint there would be nothing more to write.
    """
    buffer = io.BytesIO()  # torch's own writer hides what the disk says
    torch.save({"format": 1, **state}, buffer)
    lines = "".join(json.dumps(entry) + "\n" for entry in state["history"])
    replace_file(folder / "log.jsonl", lambda file: file.write(lines.encode()))
    replace_file(folder / "checkpoint.pt", lambda file: file.write(buffer.getbuffer()))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `fit` left, on the CPU; no code in the file is run."""
    with explained("read", path), open_file(path) as file:
        data = file.read()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            if sum(member.file_size for member in packed.infolist()) > len(data):
                raise ValueError("packed")  # torch packs nothing; a small file could be terabytes
            if (name := packed.testzip()) is not None:  # torch itself reads on
                raise ValueError(f"{name} has another checksum")
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if state["format"] != 1:
            raise KeyError("format")
        if wrong := [key for key, kind in _PARTS.items() if not isinstance(state[key], kind)]:
            raise TypeError(f"of another type: {', '.join(wrong)}")
    except Exception as error:  # whatever torch finds wrong with the bytes
        raise CheckpointError(
            f"{path} is not a whole checkpoint; move it away and train anew, or choose "
            "another folder"
        ) from error
    return state


def _same(saved: object, wanted: object) -> bool:
    """Whether two values are equal; tensors among them, which no run's identity has, are not."""
    try:
        return bool(saved == wanted)
    except (RuntimeError, TypeError, ValueError):
        return False


def check_same(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise unless a checkpoint is of the run that is wanted, naming every difference."""
    differences = [
        f"{key}: {shown(saved.get(key))} there, {shown(wanted.get(key))} asked for"
        for key in sorted(wanted | saved, key=str)
        if not _same(saved.get(key), wanted.get(key))
    ]
    if differences:
        raise CheckpointError(
            f"{path} is of another run ({'; '.join(differences)}); ask for the same, or choose "
            "another folder"
        )
