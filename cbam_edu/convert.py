"""Weights of CBAM, and of ResNets with it, from and to other implementations.

All goes through our own names and shapes: what is read with the table of one implementation is
checked, fitted to what the other can hold, and written with the other's table.
"""

import difflib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cbam_edu.layouts import (
    BIASES,
    COUNT,
    EPS,
    LAYOUTS,
    NORM,
    SHAPES,
    WEIGHTS,
    join,
    leaves,
    whole_resnet,
)
from cbam_edu.neighbours import check_name

_CHECKPOINT = ("state_dict", "model_state_dict", "model")  # where a checkpoint keeps the weights
_WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before each key
_NAMES = {name for layout in LAYOUTS.values() for name in layout.names.values()}
_LONGEST_KEY = 200
_MOST_PARTS = max(name.count(".") + 1 for name in _NAMES)


class ConversionError(ValueError):
    """Weights that cannot be converted: which key, what is wrong with it, and what is wanted."""


def convert(
    state_dict: Mapping[str, Any],
    source: str | None = None,
    target: str = "cbam_edu",
    *,
    rename_network: bool = True,
) -> dict[str, Tensor]:
    """Turn weights of one implementation's CBAM into those of another's, with the same output.

    What is given may be one CBAM, any network with CBAMs in it, or a whole ResNet (18, 34, 50,
    101, ResNeXt): there the names of the network's own layers are changed too, and its stages
    counted anew. Checkpoints (``{"state_dict": ..., "epoch": ...}``) are unpacked, and the
    prefixes of `torch.nn.DataParallel` and `torch.compile` taken off.

    Parameters
    ----------
    state_dict : mapping of str to Tensor
        The weights, or a checkpoint that holds them as "state_dict", "model_state_dict" or
        "model". They are left as they are.
    source, target : {"cbam_edu", "authors", "timm", "luuuyi", "luuuyi-2018", "pytorchcv"}
        Whose they are (None: recognised), and whose they shall be. "authors" is
        Jongchan/attention-module, "luuuyi" luuuyi/CBAM.PyTorch since August 2019, "luuuyi-2018"
        the same before.
    rename_network : bool
        False leaves every key outside the CBAMs as it is, as is right for a torchvision ResNet
        that got its attention from elsewhere.

    Returns
    -------
    dict of str to Tensor
        Each tensor has memory of its own, no gradient, and the type and device it came with.

    Raises
    ------
    ConversionError
        For a key that is missing, left over or of a wrong shape; for weights that are of another
        implementation, of several or of none; and for what the target cannot hold.

    Notes
    -----
    All of these ResNets stride on the 3 x 3 convolution of a bottleneck, so here it takes
    ``create_model("resnet50", num_classes=1000, attention="cbam", stride_on="3x3")``; with timm's
    and luuuyi's weights ``attention_options={"bias": False}`` as well, with luuuyi's
    ``"norm": False`` too. `cbam_options` tells.

    The output is the same in evaluation. Where the target always has biases or a BatchNorm
    ("authors", "pytorchcv"; in "timm" the BatchNorm alone: its biases are there with
    ``mlp_bias=True``) they are added without effect: zeros, and a BatchNorm that is the identity.
    luuuyi's CBAM has neither: a BatchNorm that only scales goes into the convolution, biases that
    are zero are dropped, and all else is refused.

    Weights do not tell which order, poolings and gate a CBAM has: it must be the paper's CBAM, as
    all are unless asked otherwise. Nor do they tell BatchNorm's momentum, 0.01 in the authors' code
    and 0.1 elsewhere, which matters to further training.
    """
    check_name("target", target, list(LAYOUTS))
    weights = _unpacked(state_dict)
    source = _source(weights, source)
    cbams, rest = _read(weights, source)
    old, new = LAYOUTS[source], LAYOUTS[target]
    modules = [key.rpartition(".")[0] for key in rest]
    names = {path: path for path in (*cbams, *modules)}
    if rename_network and old.resnet != new.resnet and any(map(old.resnet.starts_block, modules)):
        ours = _resnet_names(list(cbams), list(rest), source)
        names = {path: new.resnet.write(name) for path, name in ours.items()}
    result = {}
    for path, cbam in cbams.items():
        for name, tensor in _fitted(cbam, path, target).items():
            result[join(names[path], new.names[name])] = tensor
    for key, tensor in rest.items():
        path, _, leaf = key.rpartition(".")
        result[join(names[path], leaf)] = tensor.detach().clone()
    return result


def detect(state_dict: Mapping[str, Any]) -> str:
    """Return whose CBAM the weights are of: one of the names that `convert` takes as `source`.

    Raises
    ------
    ConversionError
        Where there is no CBAM among the weights, or where they may be of several implementations.
    """
    return _source(_unpacked(state_dict), None)


def cbam_options(
    state_dict: Mapping[str, Any], source: str | None = None
) -> dict[str, dict[str, Any]]:
    """Return the arguments of `cbam_edu.attention.CBAM` that the weights of each CBAM need.

    Parameters
    ----------
    state_dict, source
        As for `convert`.

    Returns
    -------
    dict of str to dict
        The CBAM's name in the network ("" where the weights are one CBAM's own) -> "channels",
        "reduction", "kernel_size", "bias" and "norm". timm rounds channels / 16 to the nearest
        whole number of hidden units where others round down, so that 24 channels have 2, and the
        reduction here is 12.

    Raises
    ------
    ConversionError
        As `convert` does, and for hidden units that no reduction gives.
    """
    weights = _unpacked(state_dict)
    options = {}
    for path, cbam in _read(weights, _source(weights, source))[0].items():
        hidden, channels = cbam["channel.mixer.0.weight"].shape
        if channels // (channels // hidden or 1) != hidden:
            raise ConversionError(
                f"{_at(path)} has {hidden} hidden units for {channels} channels, and no whole "
                "number as reduction gives that"
            )
        options[path] = {
            "channels": channels,
            "reduction": channels // hidden,
            "kernel_size": cbam["spatial.conv.weight"].shape[-1],
            "bias": BIASES[0] in cbam,
            "norm": NORM[0] in cbam,
        }
    return options


def _unpacked(state_dict: object) -> dict[str, Tensor]:
    """Return the weights in a checkpoint, without the prefixes of wrappers."""
    if isinstance(state_dict, nn.Module):
        raise ConversionError("expected a state_dict, got a module; pass its state_dict()")
    if not isinstance(state_dict, Mapping):
        raise ConversionError(
            f"expected a state_dict, a dict of tensors, got {type(state_dict).__name__}"
        )
    weights = dict(state_dict)
    for name in _CHECKPOINT:
        if isinstance(weights.get(name), Mapping):
            weights = dict(weights[name])
    if not weights:
        raise ConversionError("the state_dict is empty")
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ConversionError(
                f"a state_dict names tensors, but {repr(key)[:100]} names a value of type "
                f"{type(value).__name__}; give the weights alone, as in "
                "checkpoint['state_dict_ema']"
            )
        if len(key) > _LONGEST_KEY or not key.isprintable():
            raise ConversionError(
                f"no key of a network has {len(key):,} characters, or such characters: "
                f"{key[:100]!r}"
            )
        if value.layout is not torch.strided:
            raise ConversionError(f"{key} is not dense ({value.layout}); give it as to_dense()")
    while prefix := next((w for w in _WRAPPERS if all(k.startswith(w) for k in weights)), None):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _split(key: str) -> tuple[str, str]:
    """Split a CBAM's key into the CBAM's path and its own name, which is "" for another key.

    The longest name counts: SpatialGate.spatial.conv.weight is the authors', not our
    spatial.conv.weight in a module called SpatialGate.
    """
    parts = key.split(".")
    for i in range(max(0, len(parts) - _MOST_PARTS), len(parts)):
        if (name := ".".join(parts[i:])) in _NAMES:
            return ".".join(parts[:i]), name
    return "", ""


def _source(weights: dict[str, Tensor], source: str | None) -> str:
    """Recognise whose CBAMs are among the weights, or check what the caller says."""
    if source is not None:
        check_name("source", source, list(LAYOUTS))
    examples: dict[str, str] = {}  # of each implementation that some key may be of, the first one
    likely = set(LAYOUTS)
    for key in weights:
        tail = _split(key)[1]
        owners = [name for name, layout in LAYOUTS.items() if tail in layout.names.values()]
        likely &= set(owners or likely)
        for owner in owners:
            examples.setdefault(owner, key)
    if not examples:
        raise ConversionError(_nothing(weights))
    if not likely:
        found = [f"{key} ({name})" for name, key in examples.items()]
        raise ConversionError(
            f"these are CBAMs of several implementations: {', '.join(found)}; convert those of "
            "each on their own"
        )
    if source is None and len(likely) > 1:
        raise ConversionError(
            f"this may be of {' or '.join(sorted(likely))}: say which by source=; what was "
            f"recognised is {next(iter(examples.values()))}"
        )
    if source is not None and source not in likely:
        right = " or ".join(sorted(likely))
        raise ConversionError(
            f"source is {source!r}, but this looks like {right}: it has "
            f"{examples[min(likely)]}; leave source out or correct it"
        )
    return source or likely.pop()


def _nothing(weights: dict[str, Tensor]) -> str:
    """Say that no CBAM was found, and which key is nearly one's."""
    for key in weights:
        parts = key.split(".")
        for i in range(len(parts) - 1, max(-1, len(parts) - 1 - _MOST_PARTS), -1):
            if near := difflib.get_close_matches(".".join(parts[i:]), _NAMES, 1, cutoff=0.9):
                return f"no CBAM found; did you mean {join(*parts[:i], near[0])} by {key}?"
    known = ", ".join(f"{a.names['channel.mixer.0.weight']} ({n})" for n, a in LAYOUTS.items())
    return f"no CBAM found: none of the {len(weights)} keys ends like one of {known}"


def _at(path: str) -> str:
    return f"the CBAM at {path}" if path else "the CBAM"


def _listed(keys: list[str], most: int = 8) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def _read(
    weights: dict[str, Tensor], source: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Return the CBAMs by their paths, in our names and shapes, and all other tensors."""
    cbams: dict[str, dict[str, Tensor]] = {}
    rest = {}
    for key, tensor in weights.items():
        path, name = _split(key)
        if name:
            cbams.setdefault(path, {})[name] = tensor
        else:
            rest[key] = tensor
    gates = {name.split(".")[0] for name in LAYOUTS[source].names.values()}
    for path, cbam in cbams.items():
        inside = tuple(join(path, gate) + "." for gate in gates)
        _check_keys(path, cbam, [key for key in rest if key.startswith(inside)], source)
    return {path: _ours(path, cbam, source) for path, cbam in cbams.items()}, rest


def _check_keys(path: str, cbam: dict[str, Tensor], left_over: list[str], source: str) -> None:
    """Raise ConversionError unless a CBAM has all its tensors and nothing else."""
    layout = LAYOUTS[source]
    have = {name for name, theirs in layout.names.items() if theirs in cbam}
    needed = set(WEIGHTS)
    for group, always in ((BIASES, layout.bias), (NORM, layout.norm)):
        if always or have.intersection(group):
            needed.update(group)
    if COUNT in have:
        needed.update(NORM)
    missing = [theirs for name, theirs in layout.names.items() if name in needed - have]
    _refuse(_at(path), missing, left_over, f"in {source} it has no such tensor")


def _refuse(what: str, missing: list[str], left_over: list[str], why: str) -> None:
    """Raise ConversionError if something is missing or left over, with the names of all."""
    faults = [f"lacks {_listed(missing)}"] if missing else []
    faults += [f"has {_listed(left_over)} ({why})"] if left_over else []
    if faults:
        raise ConversionError(f"{what} {' and '.join(faults)}")


def _ours(path: str, cbam: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Check the shapes of a CBAM's tensors, and give them our names and shapes."""
    layout = LAYOUTS[source]
    sizes: dict[str, int] = {}  # what the tensors seen so far decided
    result = {}
    for name, theirs in layout.names.items():
        if theirs not in cbam:
            continue
        tensor, wanted = cbam[theirs], layout.shape(name)
        known = [str(sizes.get(str(size), size)) for size in wanted]
        fits = tensor.ndim == len(wanted) and all(
            n > 0 and n == (sizes.setdefault(size, n) if isinstance(size, str) else size)
            for n, size in zip(tensor.shape, wanted, strict=True)
        )
        if not fits or sizes.get("k", 1) % 2 == 0:
            raise ConversionError(
                f"{join(path, theirs)} has shape {tuple(tensor.shape)}, wanted "
                f"({', '.join(known)}{',' * (len(known) == 1)})"
                f"{' with an odd k' * ('k' in wanted)}"
            )
        if name == "spatial.conv.weight" and layout.mean_first:
            tensor = tensor.flip(1)
        result[name] = tensor.detach().reshape(tensor.shape[: len(SHAPES[name])])
    return result


def _fitted(cbam: dict[str, Tensor], path: str, target: str) -> dict[str, Tensor]:
    """Return a CBAM of our names in the shapes of `target`, which has all tensors it needs."""
    layout, conv = LAYOUTS[target], cbam["spatial.conv.weight"]
    cbam = dict(cbam)
    if layout.norm is False and NORM[0] in cbam:
        cbam["spatial.conv.weight"] = conv * _scale(cbam, path, target)
    elif layout.norm and NORM[0] not in cbam:  # the identity: sqrt(running_var + EPS) is 1
        cbam |= {
            name: conv.new_tensor([x]) for name, x in zip(NORM, (1, 0, 0, 1 - EPS), strict=True)
        }
        cbam[COUNT] = torch.zeros((), dtype=torch.int64, device=conv.device)
    for name in BIASES:
        if layout.bias is False and name in cbam and (size := cbam[name].abs().max().item()):
            raise ConversionError(
                f"{target} has no biases, and one in the MLP of {_at(path)} is {size:.3g} in size"
            )
        if layout.bias and name not in cbam:
            weight = cbam[name.replace("bias", "weight")]
            cbam[name] = weight.new_zeros(len(weight))
    if layout.mean_first:
        cbam["spatial.conv.weight"] = cbam["spatial.conv.weight"].flip(1)
    if layout.convolutions:
        cbam |= {name: cbam[name][..., None, None] for name in WEIGHTS[:2]}
    return {name: tensor.clone() for name, tensor in cbam.items() if name in layout.names}


def _scale(cbam: dict[str, Tensor], path: str, target: str) -> float:
    """Return what a BatchNorm multiplies by in evaluation; raise unless it adds nothing."""
    weight, bias, mean, var = (cbam[name].item() for name in NORM)
    if var + EPS <= 0:
        raise ConversionError(
            f"the BatchNorm of {_at(path)} has a running variance of {var:.3g}, and none is below "
            "zero; these weights are damaged"
        )
    scale = weight / math.sqrt(var + EPS)
    if (shift := bias - mean * scale) != 0:
        raise ConversionError(
            f"{target} has no BatchNorm: that of {_at(path)} multiplies by {scale:.3g}, which its "
            f"convolution can do, but it also adds {shift:.3g}, which nothing there can"
        )
    return scale


def _resnet_names(cbams: list[str], keys: list[str], source: str) -> dict[str, str]:
    """Return our names of all modules of a ResNet; raise unless it is whole and nothing else."""
    layout = LAYOUTS[source]
    names = {path: layout.resnet.read(path) or "" for path in cbams}
    left_over = [path for path, name in names.items() if not name.endswith(".attention")]
    for key in keys:
        path, _, leaf = key.rpartition(".")
        name = layout.resnet.read(path) or ""
        if leaf not in leaves(name):
            left_over.append(key)
        if name:
            names[path] = name
    have = set(keys) | {join(path, layout.names[name]) for path in cbams for name in WEIGHTS}
    wanted = [
        join(layout.resnet.write(name), layout.names.get(leaf, leaf))
        for name in whole_resnet(set(names.values()) - {""})
        for leaf in (WEIGHTS if name.endswith(".attention") else leaves(name))
        if leaf != "num_batches_tracked"
    ]
    missing = [key for key in wanted if key not in have]
    why = f"not in a ResNet of {source}; rename_network=False converts the CBAMs alone"
    _refuse("the ResNet", missing, left_over, why)
    return names
