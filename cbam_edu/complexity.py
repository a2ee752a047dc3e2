"""What a network costs: parameters and multiply-accumulates, per layer and in total.

The convention is the CBAM paper's. One multiply-accumulate is one multiplication and the addition
of its product; the paper calls 10^9 of them a GFLOP. Convolutions and matrix products are counted,
once for each time they run, so CBAM's shared MLP counts twice. Biases, BatchNorm, activations,
pooling and the gates' products are not: they are few, though by the clock they are not cheap.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cbam_edu.recording import check_size


class LayerCost(NamedTuple):
    """What one layer costs.

    Attributes
    ----------
    name : str
        In the network, such as ``"stages.0.0.conv1"``.
    kind : str
        The layer's class.
    output : tuple of int
        Shape of its output for one image, batch included; empty where it did not run.
    runs : int
        How often it runs in one forward pass.
    parameters : int
        Its own, biases included.
    multiply_accumulates : int
        Of all its runs.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    runs: int
    parameters: int
    multiply_accumulates: int


class Cost(NamedTuple):
    """What a network costs.

    Attributes
    ----------
    parameters : int
        All that are trained.
    multiply_accumulates : int
        Of one image's forward pass.
    layers : tuple of LayerCost
        The layers that have one or the other, in the order in which they run. Their sums are the
        two totals, save for matrix products that a network makes outside of its layers.
    """

    parameters: int
    multiply_accumulates: int
    layers: tuple[LayerCost, ...]


# The layers that convolve or multiply matrices.
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def _without_numbers(model: nn.Module) -> nn.Module:
    """Return a copy that has shapes in place of numbers, and no biases, which are not counted."""
    numbers: dict[int, Tensor] = {id(b): b.to("meta") for b in model.buffers()}
    for p in model.parameters():
        numbers[id(p)] = nn.Parameter(p.detach().to("meta"))
    bare = copy.deepcopy(model, numbers).eval()
    for module in bare.modules():
        if isinstance(module, _LAYERS):
            module.bias = None
    return bare


def _multiply_accumulates(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Count by ptflops, whose aten backend sees every convolution and matrix product."""
    import ptflops  # here, for it brings torchvision and timm along where they are: seconds

    counted, _ = ptflops.get_model_complexity_info(
        model, shape[1:], backend="aten", as_strings=False, print_per_layer_stat=False
    )
    return int(counted) * shape[0]


def count(model: nn.Module, input_size: tuple[int, int, int] = (3, 32, 32)) -> Cost:
    """Count a network's parameters and the multiply-accumulates for one image.

    The counting is done by ptflops on a copy without numbers: it takes no memory and little time,
    and the network stays as it was. The conventions are this module's, above.

    Parameters
    ----------
    model : torch.nn.Module
        Any network that takes ``(1, *input_size)``, in evaluation mode.
    input_size : tuple of int
        Channels, height and width of the image.

    Raises
    ------
    ValueError
        For what is no size of an image, or a network that fails on such a one, which may be since
        its code looks at numbers; the cause is chained.

    Examples
    --------
    >>> from cbam_edu import create_model
    >>> cost = count(create_model("resnet50", attention="cbam"), (3, 224, 224))
    >>> cost.parameters, cost.multiply_accumulates
    (28089624, 3864362102)
    """
    check_size(input_size)
    bare = _without_numbers(model)
    own = dict.fromkeys((name for name, _ in model.named_modules()), 0)
    for name, p in model.named_parameters():  # one that is shared is named once
        own[name.rpartition(".")[0]] += p.numel()
    runs: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}  # shapes in and out

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def keep(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            shapes = [tuple(getattr(t, "shape", ())) for t in (*args[:1], out)]
            runs.setdefault(name, []).append((shapes[0], shapes[-1]))

        return module.register_forward_hook(keep)

    watches = [watch(name, module) for name, module in bare.named_modules() if own[name]]
    dtype = next((p.dtype for p in bare.parameters()), None)
    try:
        image = torch.empty(1, *input_size, dtype=dtype, device="meta")
        with torch.no_grad():
            bare(image)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{type(model).__name__} cannot be counted for an image of "
            f"input_size={tuple(input_size)} ({type(error).__name__}: {reason}); give a size that "
            "it takes, such as input_size=(3, 224, 224)"
        ) from error
    for handle in watches:
        handle.remove()
    layers = []
    for name in [*runs, *(n for n in own if own[n] and n not in runs)]:
        module, shapes = bare.get_submodule(name), runs.get(name, [])
        counted = isinstance(module, _LAYERS)
        work = sum(_multiply_accumulates(module, s) for s, _ in shapes) if counted else 0
        output = shapes[-1][1] if shapes else ()
        kind = type(module).__name__
        layers.append(LayerCost(name, kind, output, len(shapes), own[name], work))
    total = _multiply_accumulates(bare, tuple(image.shape))
    return Cost(sum(own.values()), total, tuple(layers))
