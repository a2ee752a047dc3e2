"""Networks for other programs: ONNX and `torch.export` files for images of every number and size.

A file is compared with its network before it is put in place. What reading such a file means: an
ONNX file is numbers and operations, and none of it is run by Python. `torch.export.load` goes back
to pickle where a file asks for it, and pickle runs what the file says: load a ``.pt2`` from
people you trust only. Those that are written here hold no pickle.
"""

import contextlib
import copy
import importlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config

from cbam_edu.data.images import MEAN, STD
from cbam_edu.neighbours import check_name
from cbam_edu.storage import replace_file

# The set of operators in the ONNX files: torch 2.11's own choice. onnxruntime has it from 1.17 on
# (https://onnxruntime.ai/docs/reference/compatibility.html).
OPSET = 20

# How far an export may be from its network: the largest difference, over the largest logit of the
# same images. One rounding of a float32 is 6e-8 of the number; sums of thousands of terms, taken in
# another order, come out some ten times that apart. (Not over each logit: that may be near zero.)
TOLERANCE = 1e-5

# Torch's before 2.10 fix a size that was to be free, or write what only pickle reads again.
_TORCH = "2.10"
_EXAMPLE = (2, 3, 64, 96)  # no two sizes alike, lest torch take them for one
_FREE = {0: "batch", 2: "height", 3: "width"}


class ExportError(ValueError):
    """A network that cannot be exported, or that comes out as another: which, why, what to do."""


@contextlib.contextmanager
def _explained(model: nn.Module) -> Iterator[None]:
    """Turn what the exporters raise into an `ExportError`; what they warn of is their own code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().partition("\n")[0]
        raise ExportError(
            f"{type(model).__name__} cannot be exported for images of every number and size "
            f"({type(cause).__name__}: {reason}); its code must be the same for all of them"
        ) from error


def trace(model: nn.Module) -> ExportedProgram:
    """Record what a network computes, in the mode and the type of numbers that it is in.

    Parameters
    ----------
    model : torch.nn.Module
        Takes ``(N, 3, H, W)``; it is left as it was.

    Returns
    -------
    torch.export.ExportedProgram
        Its ``module()`` takes every N, H and W that the network takes.

    Raises
    ------
    ExportError
        Where the network's code cannot be recorded; the cause is chained. With torch before 2.10.
    """
    if torch.__version__ < _TORCH:
        raise ExportError(
            f"exporting takes torch {_TORCH} or newer, and this is "
            f'{torch.__version__}: pip install --upgrade "cbam_edu[export]"'
        )
    weight = next(model.parameters(), torch.empty(0))
    example = torch.zeros(_EXAMPLE, dtype=weight.dtype, device=weight.device)
    sizes = dict.fromkeys(_FREE, Dim.DYNAMIC)
    # Oblivious: a size of 1 is as any other, as in torch's own way to ONNX.
    with _explained(model), _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.export.export(model, (example,), dynamic_shapes=(sizes,), strict=False)
    # On its way torch asks things that change no result, such as whether the side of a map that is
    # pooled is odd. It would refuse images that answer otherwise than the example, if it kept that.
    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # where the code lies on this machine
    return program


def _write_onnx(program: ExportedProgram, about: str) -> bytes:
    exported = torch.onnx.export(
        program,
        dynamo=True,
        dynamic_shapes=(_FREE,),
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
        verbose=False,
    )
    assert exported is not None  # as it is without dynamo
    exported.model.metadata_props["cbam_edu"] = about
    return exported.model_proto.SerializeToString()


def _read_onnx(data: bytes) -> Callable[[Tensor], Tensor]:
    session = importlib.import_module("onnxruntime").InferenceSession(
        data, providers=["CPUExecutionProvider"]
    )
    return lambda image: torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])


def _write_program(program: ExportedProgram, about: str) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"cbam_edu.json": about})
    return file.getvalue()


def _read_program(data: bytes) -> Callable[[Tensor], Tensor]:
    return torch.export.load(io.BytesIO(data)).module()


class Format(NamedTuple):
    """A kind of file: its name's end, what it is in words, how it is written and read."""

    suffix: str
    words: str
    needs: tuple[str, ...]
    write: Callable[[ExportedProgram, str], bytes]
    read: Callable[[bytes], Callable[[Tensor], Tensor]]


FORMATS = {
    "onnx": Format(
        ".onnx",
        f"ONNX, opset {OPSET}",
        ("onnx", "onnxruntime", "onnxscript"),
        _write_onnx,
        _read_onnx,
    ),
    "torch-export": Format(
        ".pt2", f"torch.export of torch {torch.__version__}", (), _write_program, _read_program
    ),
}


def _difference(model: nn.Module, run: Callable[[Tensor], Tensor]) -> float:
    """Return the largest difference over the largest logit, of one image and of three."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch in (1, 3):
        height, width = (33 + torch.randperm(64, generator=generator)[:2]).tolist()
        image = torch.randn(batch, 3, height, width, generator=generator)
        with _explained(model), torch.no_grad():
            wanted, got = model(image), run(image)
        numbers = isinstance(wanted, Tensor) and wanted.is_floating_point()
        if not numbers or not wanted.isfinite().all():
            raise ExportError(
                f"{type(model).__name__} does not give one tensor of finite numbers for images "
                f"{tuple(image.shape)}; only such a network can be compared with its export"
            )
        scale = wanted.abs().max().clamp(min=torch.finfo(wanted.dtype).tiny)
        difference = ((got - wanted).abs().max() / scale).item()
        if got.shape != wanted.shape or not difference <= TOLERANCE:  # NaN is no small difference
            raise ExportError(
                f"the exported {type(model).__name__} gives {tuple(got.shape)} that is "
                f"{difference:.1e} of the largest logit from the network's {tuple(wanted.shape)} "
                f"for images {tuple(image.shape)}, where {TOLERANCE:.0e} is allowed; nothing was "
                "written"
            )
        worst = max(worst, difference)
    return worst


def _about(model: nn.Module, about: dict[str, Any]) -> str:
    """Return what the file says of itself: configuration, classes, how images are normalised."""
    known = dict(getattr(model, "about", {}))
    if "data" in known:  # it was trained here, on images that `data.normalise` made
        known = {"mean": MEAN, "std": STD, **known}
    if config := getattr(model, "config", None):
        known["config"] = config
    return json.dumps(known | about)


def _check_network(model: object) -> None:
    """Raise unless `model` is a network that holds numbers, and itself no wrapper of one."""
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a network, a torch.nn.Module; got a {name}")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ExportError(f"{name} only holds a network; export that: model.module")
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise ExportError("torch.compile's result only holds a network; export model._orig_mod")
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise ExportError(f"{name} is on the meta device and has no numbers; load its weights")


def export(
    model: nn.Module, path: str | os.PathLike[str], format: str = "onnx", **about: Any
) -> float:
    """Write a network to a file that other programs run, for images of every number and size.

    The network is exported in float32 and in evaluation mode, whatever it is in, and is left as it
    was. The file takes ``image``, ``(batch, 3, height, width) float32``, and gives ``logits``; it
    holds, as JSON under "cbam_edu" (ONNX: ``metadata_props``; torch.export: the extra file
    ``cbam_edu.json``), the network's configuration and what is known of it, such as the names of
    its classes and the mean and standard deviation of pixels from 0 to 1 that it wants.

    Parameters
    ----------
    model : torch.nn.Module
        Takes ``(N, 3, H, W) float``, and gives one tensor.
    path : path
        The file; it is put in place whole, and only if it gives what the network gives.
    format : {"onnx", "torch-export"}
        ONNX with operators of `OPSET`, or the ``.pt2`` of `torch.export.save`. ONNX needs
        ``pip install "cbam_edu[export]"``.
    **about
        What else the file is to say of itself, for `json`.

    Returns
    -------
    float
        The largest difference between the file's output and the network's, on the CPU, on random
        images of two shapes, over the largest output: at most `TOLERANCE`.

    Raises
    ------
    ExportError
        For a network that cannot be exported or comes out as another, or where a package is
        missing.
    ValueError
        For an unknown format, with the nearest known ones.
    TypeError
        For what is no network.
    cbam_edu.storage.StorageError
        Where the file cannot be written.
    """
    check_name("format", format, list(FORMATS))
    _check_network(model)
    kind, words = FORMATS[format], _about(model, about)
    for package in kind.needs:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ExportError(
                f'the format {format} needs {package}: pip install "cbam_edu[export]"'
            ) from error
    try:
        plain = copy.deepcopy(model).cpu().float().eval()
    except (RuntimeError, TypeError) as error:  # a lock, or a map that a hook has kept
        reason = str(error).strip().partition(". ")[0]
        raise ExportError(
            f"a copy of the network is exported, and {type(model).__name__} cannot be copied "
            f"({reason}); take out of it what is no part of a network, such as kept maps"
        ) from error
    difference = 0.0

    def write(file: BinaryIO) -> None:  # called with the file open: no work is for nothing
        nonlocal difference
        program = trace(plain)
        with _explained(plain):
            data = kind.write(program, words)
            run = kind.read(data)
        difference = _difference(plain, run)
        file.write(data)

    replace_file(path, write)
    return difference
