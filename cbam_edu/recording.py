"""One image's pass through any network: its operations, and the calls of its modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from cbam_edu.attention import check_positive


class Operation(NamedTuple):
    """One operation of the pass; its number is its position in the list of all."""

    name: str  # without the underscore of the in-place version
    parents: tuple[int, ...]  # numbers of the operations whose results it takes
    shape: tuple[int, ...]  # of its (first) result
    pointwise: bool
    piece: bool  # gives some channels of a map, or all of them in several pieces
    scales: bool  # multiplies by a tensor that does not depend on the image, as a layer scale does
    grows: bool  # raises the resolution
    channel_cat: bool  # joins maps along the channels
    channels_last: bool  # gives (N, H, W, C), as a linear layer does


class Call(NamedTuple):
    """One call of a module, and what it gave."""

    module: nn.Module
    operation: int  # whose result it gave; -1 where that is no tensor, or not made from the image
    passes_through: bool  # gives what it got: an identity, or dropout and its like in evaluation
    output: Any  # a tensor on no device, or what the module gave instead
    device: torch.device
    channels_last: bool


def is_map(call: Call) -> bool:
    """Whether a module gave a floating-point (N, C, H, W)."""
    output = call.output
    a_map = isinstance(output, Tensor) and output.ndim == 4 and output.is_floating_point()
    return a_map and not call.channels_last


class _Recorder(TorchDispatchMode):
    """Write down the operations that depend on the image, and the calls of modules."""

    def __init__(self, image: Tensor):
        super().__init__()
        self.number = WeakTensorKeyDictionary()  # of the operation that made a tensor's value
        self.number[image] = 0
        self.operations = [Operation("image", (), tuple(image.shape), *[False] * 6)]
        self.calls: list[Call] = []
        self.entered: list[set[int]] = []  # the numbers of what each running module got

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made_from = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        parents = tuple(dict.fromkeys(self.number[t] for t in made_from if t in self.number))
        constants = [t for t in made_from if t not in self.number]
        results = func(*args, **kwargs)
        if not parents:
            return results
        made = [t for t in tree_leaves(results) if isinstance(t, Tensor)]
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        shape = tuple(made[0].shape) if made else ()
        first = self.operations[parents[0]].shape
        fewer = name == "slice" and len(shape) == 4 and shape[1] < first[1]
        channels_last = self._channels_last(name, args, parents, shape)
        self.operations.append(
            Operation(
                name,
                parents,
                shape,
                pointwise=torch.Tag.pointwise in func.tags,
                piece=isinstance(results, list) or fewer,
                scales=name == "mul" and any(t.numel() > 1 for t in constants),
                grows=name.startswith("upsample") or (name == "convolution" and args[6]),
                channel_cat=name == "cat" and len(shape) == 4 and (*args, 0)[1] % 4 == 1,
                channels_last=channels_last,
            )
        )
        for tensor in made:  # an in-place operation gives a tensor that it got: a new value
            self.number[tensor] = len(self.operations) - 1
        return results

    def _channels_last(
        self, name: str, args: Any, parents: tuple[int, ...], shape: tuple[int, ...]
    ) -> bool:
        if name == "permute":
            return list(args[1]) == [0, 2, 3, 1]
        if name == "convolution" or len(shape) != 4:
            return False
        if name in ("view", "_unsafe_view"):
            matrix = self.operations[parents[0]].shape  # the product of a linear layer, or not
            return len(matrix) == 2 and matrix[1] == shape[3]
        alike = (o for o in map(self.operations.__getitem__, parents) if o.shape == shape)
        return any(o.channels_last for o in alike)

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        self.entered.append({self.number[t] for t in tensors if t in self.number})

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        entered, number = self.entered.pop(), -1
        given, device = output, torch.device("cpu")
        if isinstance(output, Tensor):
            number, device = self.number.get(output, -1), output.device
            given = torch.empty(output.shape, dtype=output.dtype, device="meta")
        last = number >= 0 and self.operations[number].channels_last
        self.calls.append(Call(module, number, number in entered, given, device, last))


def check_size(input_size: object) -> None:
    """Raise ValueError unless `input_size` is (channels, height, width), each from 1 up."""
    if not isinstance(input_size, list | tuple) or len(input_size) != 3:
        raise ValueError(f"input_size must be (channels, height, width), got {input_size!r}")
    for number in input_size:
        check_positive("each number of input_size", number)


@contextmanager
def _left_as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Run in evaluation mode, without gradients; restore each module's mode and the generators."""
    training = [(module, module.training) for module in model.modules()]
    generators = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(generators):
        try:
            for module, _ in training:
                module.training = False
            yield
        finally:
            for module, mode in training:
                module.training = mode


def record(
    model: nn.Module, input_size: tuple[int, int, int]
) -> tuple[list[Operation], list[Call]]:
    """Watch one image of zeros pass through the network, which is left exactly as it was.

    Parameters
    ----------
    model : torch.nn.Module
        Any network that takes ``(1, *input_size) float``; it runs in evaluation mode.
    input_size : tuple of int
        Channels, height and width of the image.

    Returns
    -------
    list of Operation, list of Call
        The operations whose results depend on the image, in the order of the pass, the image first;
        the calls of modules in the order in which they ended, the network's own last.

    Raises
    ------
    ValueError
        Where the network does not take such an image; the cause is chained.
    """
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    like = tensors[0] if tensors else torch.empty(0)
    image = torch.zeros(1, *input_size, device=like.device, dtype=like.dtype)
    recorder = _Recorder(image)
    hooks = []
    try:
        for module in model.modules():
            hooks.append(module.register_forward_pre_hook(recorder.enter, with_kwargs=True))
            hooks.append(module.register_forward_hook(recorder.leave))
        with _left_as_it_was(model, image.device), recorder:
            model(image)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{type(model).__name__} fails on an image of input_size={input_size} "
            f"({type(error).__name__}: {reason}); give the size that it takes, such as "
            "input_size=(3, 299, 299)"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return recorder.operations, recorder.calls
