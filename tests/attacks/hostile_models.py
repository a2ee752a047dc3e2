"""Attacks on what reads weights: network files, checkpoints, and weights to be converted."""

import contextlib
import functools
import io
import json
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from canaries import code_of_a_pickle
from hostile_data import CODE, clear, odd_thing
from mutations import STRANGE, as_json, bytes_changed, strange, tree_changed, zip_changed
from torch import Tensor

from cbam_edu.checkpoint import CheckpointError
from cbam_edu.convert import ConversionError, cbam_options, convert, detect
from cbam_edu.data import ImageSet
from cbam_edu.layouts import LAYOUTS
from cbam_edu.models import ModelFileError, create_model, load_model
from cbam_edu.storage import StorageError
from cbam_edu.train import Recipe, fit
from watch import Attack

CLASSES = ("a", "b", "c")
_KINDS = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
_KINDS += (torch.complex64, torch.float8_e4m3fn)
_HEADER_KINDS = ("F32", "F64", "F16", "BF16", "I64", "BOOL", "C64", "F4", "F8_E8M0", "X", "", "U16")


def network(**options: Any) -> torch.nn.Module:
    """Return a small network."""
    torch.manual_seed(0)
    return create_model("cbamnet_tiny", 3, dims=(2, 2), **options).eval()


MODEL = network()
WEIGHTS = {name: t.detach().clone().contiguous() for name, t in MODEL.state_dict().items()}
ABOUT = {"config": vars(MODEL)["config"], "classes": list(CLASSES), "data": "cifar10"}
FOLDER = {**ABOUT, "data": "x", "size": 8, "mean": [0.5] * 3, "std": [0.2] * 3}


def _other_weights(rng: random.Random) -> dict[str, Tensor]:
    """Return the weights, some of them of another name, shape, type or value."""
    weights = dict(WEIGHTS)
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        name = rng.choice(list(weights))
        kind = rng.randrange(5)
        if kind == 0:
            weights[name] = weights[name].to(rng.choice(_KINDS))
        elif kind == 1:
            weights[name] = weights[name].repeat(
                rng.choice((1, 2)), *[1] * (weights[name].ndim - 1)
            )
        elif kind == 2:
            weights[name + rng.choice(("", "x", ".", "\n", "a." * 2000))] = weights.pop(
                name
            ).clone()
        elif kind == 3:
            weights[name] = torch.full_like(weights[name], rng.choice((0, 1)))
        elif weights[name].is_floating_point():
            weights[name] = weights[name] * rng.choice((float("nan"), float("inf"), 1e38))
    return weights


def _header_changed(rng: random.Random, data: bytes) -> bytes:
    """Change a safetensors file's header: its length, what it says, its offsets."""
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    kind = rng.randrange(6)
    if kind == 0:
        return (
            rng.choice((0, 1, length + 1, 2**63, 2**64 - 1, 10**8)).to_bytes(8, "little") + data[8:]
        )
    names = [name for name in header if name != "__metadata__"]
    entry = header[rng.choice(names)]
    if kind == 1:
        entry["dtype"] = rng.choice(_HEADER_KINDS)
    elif kind == 2:
        entry["shape"] = rng.choice(
            ([], [0], [2**62, 4], [-1], [10**30], [1.5], ["1"], [1] * 5000, 3)
        )
    elif kind == 3:
        entry["data_offsets"] = rng.choice(
            ([0, 0], [0, 4], [4, 0], [-1, 4], [0, 2**63], [0], [0, 10**9])
        )
    elif kind == 4:
        tree_changed(rng, header)
    text = as_json(rng, header) if kind == 5 else _plain(header)
    return len(text).to_bytes(8, "little") + text + rest


def _network_file(rng: random.Random) -> bytes:
    if rng.random() < 0.03:
        return rng.choice((*CODE, code_of_a_pickle(os.system, "touch escaped")))
    about = json.loads(json.dumps(rng.choice((ABOUT, FOLDER))))
    kind = rng.random()
    if kind < 0.5:
        about = tree_changed(rng, about)
    if kind < 0.1:
        about = {**ABOUT, "config": {**ABOUT["config"], "dims": [2] * rng.choice((33, 10_000))}}  # type: ignore[dict-item]
    text = as_json(rng, about) if kind < 0.4 else _plain(about)
    said = {"cbam_edu": text.decode("utf-8", "replace")}
    data = safetensors.torch.save(_other_weights(rng) if rng.random() < 0.4 else WEIGHTS, said)
    if rng.random() < 0.3:
        data = _header_changed(rng, data)
    return bytes_changed(rng, data, CODE) if rng.random() < 0.2 else data


def _plain(tree: Any) -> bytes:
    try:
        return json.dumps(tree).encode()
    except (RecursionError, ValueError):  # too deep, or in a circle
        return b"[" * 100_000


def _networks(rng: random.Random, folder: Path) -> Callable[[], object]:
    path = folder / "hostile.safetensors"
    clear(path)
    if rng.random() < 0.002:
        odd_thing(rng, path, b"")
    else:
        path.write_bytes(_network_file(rng))
    return functools.partial(_use, path)


def _use(path: Path) -> None:
    model = load_model(path)
    assert not model.training, "not in evaluation mode"
    assert {n: t.shape for n, t in model.state_dict().items()}, "no weights"
    with torch.no_grad():
        y = model.float()(torch.zeros(1, 3, 8, 8))
    assert y.shape[0] == 1, "wrong shape"


def _thin_images() -> ImageSet:
    pixels = torch.arange(4 * 3 * 8 * 8).reshape(4, 3, 8, 8) % 256
    return ImageSet("toy", pixels.to(torch.uint8), torch.arange(4) % 3, CLASSES)


IMAGES, RECIPE = _thin_images(), Recipe(epochs=1, batch_size=2, crop=0)
_GOOD: dict[str, Any] = {}


def _train_once(folder: Path) -> None:
    model = network()
    fit(model, IMAGES, RECIPE, out=folder / "first", progress=False)
    _GOOD["bytes"] = (folder / "first/checkpoint.pt").read_bytes()
    _GOOD["weights"] = {k: v.clone() for k, v in model.state_dict().items()}
    fit(network(), IMAGES, RECIPE, out=folder / "first", resume=True, progress=False)


def _laughs(depth: int = 30) -> list[Any]:
    """Return a list that is written in a few bytes and told in a billion words."""
    value: list[Any] = ["ha"]
    for _ in range(depth):
        value = [value] * 10
    return value


def _state_changed(rng: random.Random) -> bytes:
    state = torch.load(io.BytesIO(_GOOD["bytes"]), weights_only=True)
    for _ in range(rng.choice((1, 1, 2))):
        part: Any = state
        while isinstance(part, dict | list) and part and rng.random() < 0.8:
            key = rng.choice(list(part)) if isinstance(part, dict) else rng.randrange(len(part))
            inner = part[key]
            if not isinstance(inner, dict | list) or not inner or rng.random() < 0.3:
                part[key] = _odd_value(rng, inner)
                break
            part = inner
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def _odd_value(rng: random.Random, old: Any) -> Any:
    if isinstance(old, Tensor) and rng.random() < 0.6:
        return rng.choice(
            (old.double(), old.long(), old.reshape(-1)[:1], old.to_sparse(), old[None])
        )
    if rng.random() < 0.05:
        return _laughs()
    if rng.random() < 0.1:
        return torch.zeros(rng.choice((0, 1, 3)))
    return rng.choice(STRANGE)


def _checkpoints(rng: random.Random, folder: Path) -> Callable[[], object]:
    out = folder / "hostile"
    out.mkdir(exist_ok=True)
    path = out / "checkpoint.pt"
    clear(path)
    kind = rng.random()
    same = False
    if kind < 0.002:
        odd_thing(rng, path, b"")
    elif kind < 0.05:
        path.write_bytes(rng.choice(CODE))
    elif kind < 0.1:
        path.write_bytes(_with_code(rng))
    elif kind < 0.5:
        path.write_bytes(_state_changed(rng))
    elif kind < 0.8:
        path.write_bytes(zip_changed(rng, _GOOD["bytes"]))
    else:
        same = True
        path.write_bytes(bytes_changed(rng, _GOOD["bytes"]))
    return functools.partial(_resume, out, same)


def _with_code(rng: random.Random) -> bytes:
    """Return a checkpoint whose pickle runs code."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_GOOD["bytes"])) as old, zipfile.ZipFile(file, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith("data.pkl"):
                content = rng.choice(CODE)
            new.writestr(zipfile.ZipInfo(info.filename), content)
    return file.getvalue()


def _resume(out: Path, same: bool) -> None:
    model = network()
    history = fit(model, IMAGES, RECIPE, out=out, resume=True, progress=False)
    assert len(history) == RECIPE.epochs, "not all epochs"
    if same:  # bytes of the file were changed: what is read is right, or nothing is
        for name, value in model.state_dict().items():
            assert torch.equal(value, _GOOD["weights"][name]), "other weights than were written"


def _cbams() -> dict[str, dict[str, Tensor]]:
    """Return CBAMs, and a whole ResNet, in every layout."""
    options = {"dims": (8, 8, 8, 8), "attention": "cbam", "attention_options": {"reduction": 4}}
    resnet = create_model("resnet18", 3, **options).state_dict()
    one = {k: v for k, v in network().state_dict().items() if ".3." in k}
    found = {}
    for name in LAYOUTS:
        for label, weights in (("one", one), ("whole", resnet)):
            with contextlib.suppress(ConversionError):
                found[f"{name} {label}"] = convert(weights, "cbam_edu", name)
    return found


CBAMS = _cbams()


def _weights_to_convert(rng: random.Random, folder: Path) -> Callable[[], object]:
    weights: dict[Any, Any] = dict(CBAMS[rng.choice(list(CBAMS))])
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        name = rng.choice(list(weights) or [""])
        kind = rng.randrange(8)
        old = weights.get(name)
        if kind == 0:
            weights.pop(name, None)
        elif kind == 1:
            odd = (
                "x",
                "",
                ".",
                "module.",
                "a." * 50_000,
                "\ud800",
                "layer1.0.",
                "\n",
                "layer999.999.",
            )
            weights[rng.choice(odd) + str(name)] = weights.pop(name, None)
        elif kind == 2:
            weights[rng.choice((name, 5, None, ("a",), "x" * 10**5))] = strange(rng)
        elif kind == 3 and isinstance(old, Tensor):
            weights[name] = rng.choice((old.to(rng.choice(_KINDS)), old[None], old.reshape(-1)[:0]))
        elif kind == 4 and isinstance(old, Tensor):
            weights[name] = torch.full(old.shape, rng.choice((0.0, 1.0, float("nan"))))
        elif kind == 5 and isinstance(old, Tensor):
            weights[name] = torch.empty(2**20, 2**20, device="meta")
        elif kind == 6:
            weights = {rng.choice(("state_dict", "model", "x")): weights, "epoch": 3}
        elif kind == 7 and isinstance(old, Tensor):
            one = torch.full(old.shape, 1e38)
            weights[name] = rng.choice((one.to_sparse(), one))
    source = rng.choice((None, None, *LAYOUTS, "tim", "", 5))
    target = rng.choice((*LAYOUTS, "tim"))
    return functools.partial(_convert, weights, source, target, rng.random() < 0.5)


def _convert(weights: Any, source: Any, target: Any, rename: bool) -> None:
    source = source or detect(weights)
    cbam_options(weights, source)
    result = convert(weights, source, target, rename_network=rename)
    assert all(isinstance(k, str) and isinstance(v, Tensor) for k, v in result.items())
    given = {v.data_ptr() for v in weights.values() if isinstance(v, Tensor) and v.numel()}
    shared = [k for k, v in result.items() if v.numel() and not v.is_meta and v.data_ptr() in given]
    assert not shared, "memory is shared"


MODELS: dict[str, Attack] = {
    "networks": Attack(
        "networks, safetensors",
        "files",
        _networks,
        (ModelFileError, StorageError),
        names="hostile.safetensors",
    ),
    "checkpoints": Attack(
        "checkpoints of a training (zipped pickles, some of which run code)",
        "files",
        _checkpoints,
        (CheckpointError, StorageError),
        _train_once,
        "hostile",
    ),
    "weights": Attack(
        "weights to be converted", "state dicts", _weights_to_convert, (ConversionError, ValueError)
    ),
}
