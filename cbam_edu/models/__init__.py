"""Networks by name: made, saved, loaded, and one of them trained."""

import inspect
import json
import os
import textwrap
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from cbam_edu.attention import shown
from cbam_edu.models.cbamnet import CBAMNet
from cbam_edu.models.imagenet import BasicBlock, Bottleneck, ResNet
from cbam_edu.models.mobilenet import MobileNet
from cbam_edu.models.resnet import CIFARResNet, ResidualBlock, ResNet9
from cbam_edu.neighbours import check_name
from cbam_edu.storage import StorageError, explained, open_file, replace_file

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "CBAMNet",
    "CIFARResNet",
    "MobileNet",
    "ModelFileError",
    "ResNet",
    "ResNet9",
    "ResidualBlock",
    "create_model",
    "list_models",
    "list_pretrained",
    "load_model",
    "load_pretrained",
    "save_model",
]

_BASIC, _DEEP = (64, 128, 256, 512), (256, 512, 1024, 2048)  # channels of the stages


def _resnet(
    blocks: tuple[int, ...], dims: tuple[int, ...], bottleneck: int = 0, groups: int = 1
) -> tuple[type[nn.Module], dict[str, Any]]:
    fixed = {"blocks": blocks, "dims": dims, "bottleneck": bottleneck, "groups": groups}
    return ResNet, fixed


# A network's name: its class, and the arguments that make it this one.
_MODELS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "cbamnet_tiny": (CBAMNet, {"dims": (64, 128)}),
    "cbamnet_small": (CBAMNet, {"dims": (64, 128, 256)}),
    "cbamnet_base": (CBAMNet, {"dims": (128, 256, 512)}),
    "resnet9": (ResNet9, {}),
    "resnet8": (CIFARResNet, {"blocks": 1}),
    "resnet20": (CIFARResNet, {"blocks": 3}),
    "resnet32": (CIFARResNet, {"blocks": 5}),
    "resnet44": (CIFARResNet, {"blocks": 7}),
    "resnet56": (CIFARResNet, {"blocks": 9}),
    "resnet110": (CIFARResNet, {"blocks": 18}),
    # By the names of the CBAM paper's Tables 4 and 5.
    "resnet18": _resnet((2, 2, 2, 2), _BASIC),
    "resnet34": _resnet((3, 4, 6, 3), _BASIC),
    "resnet50": _resnet((3, 4, 6, 3), _DEEP, bottleneck=4),
    "resnet101": _resnet((3, 4, 23, 3), _DEEP, bottleneck=4),
    "wideresnet18_1.5": _resnet((2, 2, 2, 2), (96, 192, 384, 768)),
    "wideresnet18_2.0": _resnet((2, 2, 2, 2), (128, 256, 512, 1024)),
    "resnext50_32x4d": _resnet((3, 4, 6, 3), _DEEP, bottleneck=2, groups=32),
    "resnext101_32x4d": _resnet((3, 4, 23, 3), _DEEP, bottleneck=2, groups=32),
    "mobilenet_0.7": (MobileNet, {"width": 0.7}),
    "mobilenet_1.0": (MobileNet, {"width": 1.0}),
}
_WEIGHTS = resources.files("cbam_edu.models") / "weights"


_LONGEST_HEADER = 1 << 22  # bytes: room for tens of thousands of weights and classes
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ModelFileError(ValueError):
    """A file that is no network of ours, or not a whole one: which, why, and what to do."""


def list_models() -> list[str]:
    """Return the names that `create_model` knows."""
    return list(_MODELS)


def create_model(name: str, num_classes: int | None = None, **options: Any) -> nn.Module:
    """Build a network by its name, with random weights drawn from torch's generator.

    Parameters
    ----------
    name : str
        One of `list_models`: for CIFAR-10 the CBAMNets, ResNet-9 and the ResNets 8 to 110; for
        ImageNet the ten networks of the CBAM paper's Tables 4 and 5.
    num_classes : int, optional
        Size of the output; 0 for the network without its head. Default: 10 for CIFAR-10's
        networks, 1000 for ImageNet's.
    **options
        ``attention``: None, "se", "eca", "bam", "channel", "spatial" or "cbam"; where it is not
        given, the CBAMNets have "cbam" and the others none. ``attention_options``: a dict that each
        attention layer gets, such as ``{"reduction": 8}``. ``dims``: channels of the stages.
        ``stride_on``: "1x1" or "3x3", see `cbam_edu.models.imagenet.ResNet`.

    Returns
    -------
    torch.nn.Module
        Maps ``(N, 3, H, W) float`` to ``(N, num_classes)``; its ``forward_features`` gives the
        maps of all stages, and its ``config`` holds the arguments given here.

    Raises
    ------
    ValueError
        For an unknown name, with the nearest known ones, or a bad option.
    """
    check_name("model", name, list_models())
    builder, fixed = _MODELS[name]
    parameters = inspect.signature(builder).parameters
    if num_classes is None:
        num_classes = parameters["num_classes"].default
    if type(num_classes) is not int or num_classes < 0:
        raise ValueError(
            f"num_classes must be an integer from 0 (no head) up, got {shown(num_classes)}"
        )
    known = [p for p in parameters if p not in {"num_classes", *fixed} - {"dims"}]
    for option in options:
        check_name(f"option of {name}", option, known)
    options.setdefault("attention", "cbam" if builder is CBAMNet else None)
    try:
        model = builder(num_classes=num_classes, **{**fixed, **options})
    except (TypeError, OverflowError, RecursionError) as error:
        reason = textwrap.shorten(str(error), 100, placeholder=" ...")
        told = textwrap.shorten(shown(options), 200, placeholder=" ...")
        raise ValueError(f"{name} cannot be made with the options {told} ({reason})") from error
    model.config = {"name": name, "num_classes": num_classes, **options}  # type: ignore[assignment]
    return model


def save_model(model: nn.Module, path: str | os.PathLike[str], **about: Any) -> None:
    """Write a network of `create_model` to a safetensors file, whole or not at all.

    Parameters
    ----------
    model : torch.nn.Module
        The network; its configuration is kept in the file's metadata.
    path : path
        The file, such as ``model.safetensors``.
    **about
        What else to keep beside the configuration, for `json`: the classes' names, say.

    Raises
    ------
    ValueError
        For a network that `create_model` did not make.
    cbam_edu.storage.StorageError
        Where the file cannot be written.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise ValueError("only a network made by create_model can be saved: this one has no config")
    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    data = safetensors.torch.save(weights, {"cbam_edu": json.dumps({"config": config, **about})})
    replace_file(path, lambda file: file.write(data))


def load_model(path: str | os.PathLike[str]) -> nn.Module:
    """Read a network that `save_model` wrote, in evaluation mode, on the CPU.

    Nothing in the file is run: weights are numbers, and the configuration is JSON whose network
    must fit the weights to the last shape.

    Raises
    ------
    ModelFileError
        For a file that is damaged, not ours, or whose weights are of another network.
    cbam_edu.storage.StorageError
        Where the file cannot be read.
    """
    path = Path(path)
    damaged = f"{path} is not a whole safetensors file ({{}}); copy or train it anew"
    with explained("read", path), open_file(path) as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        header = file.read(length) if length <= _LONGEST_HEADER else b""
        size = os.fstat(file.fileno()).st_size
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(damaged.format("its header is none")) from error
    try:
        about = json.loads(entries["__metadata__"]["cbam_edu"])
        config = about["config"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{path} holds no configuration of cbam_edu; load_model reads what save_model or "
            "`cbam-edu train` wrote"
        ) from error
    try:
        with torch.device("meta"):  # no memory yet: the file alone decides how much is needed
            model = create_model(**config)
        wanted = model.state_dict()
        if size > len(start) + length + 8 * sum(t.numel() for t in wanted.values()):
            raise ValueError(f"{size:,} bytes are too many for it")
        with explained("read", path):
            weights = safetensors.torch.load(path.read_bytes())
        for name in weights.keys() & wanted.keys():
            if not _is_such(weights[name].dtype, wanted[name].dtype):
                raise ValueError(f"{name} is of type {weights[name].dtype}")
        model.load_state_dict(weights, assign=True)
    except StorageError:
        raise
    except SafetensorError as error:
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise ModelFileError(damaged.format(reason)) from error
    except (RuntimeError, LookupError, TypeError, ValueError, OverflowError) as error:
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise ModelFileError(
            f"{path} does not hold the network that its configuration names ({reason}); copy or "
            "train it anew"
        ) from error
    model.about = about
    return model.eval()


def _is_such(given: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether numbers of a file can be a network's: of floating point, any usual length will do."""
    return given in _FLOATS if wanted.is_floating_point else given == wanted


def list_pretrained() -> list[str]:
    """Return the names that `load_pretrained` knows."""
    return sorted(Path(f.name).stem for f in _WEIGHTS.iterdir() if f.name.endswith(".safetensors"))


def load_pretrained(name: str) -> nn.Module:
    """Load a network that was trained on CIFAR-10 and lies in the package.

    Parameters
    ----------
    name : str
        One of `list_pretrained`, such as ``"resnet20_cbam"``. How it was trained, and what it
        reaches on the 10,000 test images, is in the book's results.

    Returns
    -------
    torch.nn.Module
        In evaluation mode, on the CPU; maps ``(N, 3, 32, 32)`` of `cbam_edu.data.normalise` to
        logits ``(N, 10)``.

    Raises
    ------
    ValueError
        For an unknown name, with the nearest known ones.
    """
    check_name("pretrained network", name, list_pretrained())
    with resources.as_file(_WEIGHTS / f"{name}.safetensors") as path:
        return load_model(path)
