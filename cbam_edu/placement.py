"""Where attention belongs in a network that was not written here: found by watching one image pass.

Nothing here knows a network's class. One forward pass is recorded as a graph, each operation with
the operations whose results it takes, and the places are read off that graph.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary


class Operation(NamedTuple):
    """One operation of the pass; its number is its position in `Recording.operations`."""

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


def record(model: nn.Module, input_size: tuple[int, int, int]) -> "Recording":
    """Watch one image of zeros pass through the network, which is left exactly as it was.

    Parameters
    ----------
    model : torch.nn.Module
        Any network that takes ``(1, *input_size) float``; it runs in evaluation mode.
    input_size : tuple of int
        Channels, height and width of the image.

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
    return Recording(recorder.operations, recorder.calls)


class Recording:
    """The graph of one pass. A set of operations is an integer, whose bit n is operation n."""

    def __init__(self, operations: list[Operation], calls: list[Call]):
        self.operations, self.calls = operations, calls
        self.ancestors: list[int] = []  # of each operation, with itself
        self.unraised: list[int] = []  # the same by the ways on which the resolution isn't raised
        for number, operation in enumerate(operations):
            ancestors = unraised = 1 << number
            for parent in operation.parents:
                ancestors |= self.ancestors[parent]
                unraised |= 0 if operation.grows else self.unraised[parent]
            self.ancestors.append(ancestors)
            self.unraised.append(unraised)
        self.convolutions = self._those(lambda operation: operation.name == "convolution")
        self.additions = self._those(self._adds_maps)

    def _those(self, condition: Callable[[Operation], bool]) -> int:
        return sum(1 << n for n, operation in enumerate(self.operations) if condition(operation))

    def _adds_maps(self, operation: Operation) -> bool:
        shapes = {self.operations[parent].shape for parent in operation.parents}
        two_maps = len(operation.parents) == 2 and shapes == {operation.shape}
        return operation.name == "add" and two_maps and len(operation.shape) == 4

    def _is_derived(self, number: int, other: int) -> bool:
        """Whether convolutions lead to `number` from `other`, or from where the two parted.

        The ways on which the resolution is raised don't count: a feature pyramid isn't a block.
        """
        known = self.ancestors[other]
        way = self.unraised[number]
        return bool(way & known) and bool(way & ~known & self.convolutions)

    def _is_shortcut(self, number: int, branch: int) -> bool:
        """Whether `number` comes to `branch` by a shorter way: as it is, or by a projection.

        Not so if additions lie on that way (it has residual blocks of its own: HRNet's streams), or
        if it is a piece of a map, other pieces of which lead to the branch (Res2Net).
        """
        way = self.ancestors[number] & ~self.ancestors[branch]
        long_way = self.ancestors[branch] & ~self.ancestors[number]
        shorter = (way & self.convolutions).bit_count() < (long_way & self.convolutions).bit_count()
        return shorter and not way & self.additions and not self._is_piece(number, branch)

    def _is_piece(self, number: int, branch: int) -> bool:
        behind = self.ancestors[branch]
        for piece in (o for o in map(self.operations.__getitem__, self._up(number)) if o.piece):
            users = [n for n in self._users(piece.parents[0]) if behind >> n & 1]
            if users and all(self.operations[n].piece for n in users):
                return True
        return False

    def _users(self, number: int) -> list[int]:
        return [n for n, operation in enumerate(self.operations) if number in operation.parents]

    def joins(self) -> dict[int, int]:
        """Return, for each addition that ends a residual block, its residual branch."""
        found = {}
        for number, operation in enumerate(self.operations):
            if self.additions >> number & 1:
                for branch, other in (operation.parents, operation.parents[::-1]):
                    if self._is_derived(branch, other) and self._is_shortcut(other, branch):
                        found[number] = branch
        return found

    def branches(self) -> list[int]:
        """Return the residual branches."""
        return list(self.joins().values())

    def new_maps(self) -> list[int]:
        """Return the maps that are joined, along the channels, with maps that they come from."""
        found = {}
        for operation in self.operations:
            maps = operation.parents if operation.channel_cat else ()
            for new in maps:
                earlier = (m for m in maps if m != new and self.ancestors[new] >> m & 1)
                if any(self._is_derived(new, old) for old in earlier):
                    found[new] = True
        return list(found)

    def pooled(self) -> list[int]:
        """Return the maps that a pooling halves, whether it counts a rim or not."""
        found = {}
        for operation in self.operations:
            if operation.name in ("max_pool2d_with_indices", "max_pool2d", "avg_pool2d"):
                before, after = self.operations[operation.parents[0]].shape[-1], operation.shape[-1]
                if after < before and before - 2 <= 2 * after <= before + 1:
                    found[operation.parents[0]] = True
        return list(found)

    def stage_ends(self) -> list[int]:
        """Return each stage's last map: the next residual block has a lower resolution."""
        found = []
        for last, following in pairwise(self.joins()):
            if self.operations[following].shape[-1] < self.operations[last].shape[-1]:
                while len(users := self._users(last)) == 1 and self._up(users[0])[1:2] == [last]:
                    last = users[0]  # the activation behind the addition
                found.append(last)
        return found

    def _up(self, number: int) -> list[int]:
        """Return the operation and those before it, as long as they only rescale or cut one map."""
        chain = [number]
        while len((operation := self.operations[chain[-1]]).parents) == 1 and (
            operation.pointwise or operation.name == "slice"
        ):
            chain.append(operation.parents[0])
        return chain

    def modules_at(self, numbers: list[int]) -> list[Call]:
        """Return the module's call behind which attention sees each of these results, if any.

        That is the innermost module which gives the result; where none does, the nearest before
        it; where none is, one that passes the result through. A module that is called several times
        must be meant each time: one ReLU for a whole network isn't.
        """
        chains = [self._up(number) for number in numbers]
        meant = {number for chain in chains for number in chain}
        by_module: dict[nn.Module, list[Call]] = {}
        by_operation: dict[int, list[Call]] = {}
        for call in self.calls[:-1]:  # the last is the network's own
            by_module.setdefault(call.module, []).append(call)
            by_operation.setdefault(call.operation, []).append(call)

        def fits(call: Call) -> bool:
            calls = by_module[call.module]
            if not {c.operation for c in calls} <= meant:
                return False
            return is_map(call) and len({c.output.shape[1] for c in calls}) == 1

        found: dict[nn.Module, Call] = {}
        for chain in chains:
            if self.operations[chain[0]].scales:  # before a layer scale: behind it all is near zero
                scaled = any(not c.passes_through for c in by_operation.get(chain[1], []))
                chain = chain[1:] if scaled else chain
            calls = [c for number in chain for c in by_operation.get(number, []) if fits(c)]
            calls.sort(key=lambda c: c.passes_through)  # stable: else the earliest, innermost first
            if calls:
                found.setdefault(calls[0].module, calls[0])
        return list(found.values())


def is_map(call: Call) -> bool:
    """Whether a module gave a floating-point (N, C, H, W)."""
    output = call.output
    a_map = isinstance(output, Tensor) and output.ndim == 4 and output.is_floating_point()
    return a_map and not call.channels_last


_BLOCKS: dict[str, Callable[[Recording], list[int]]] = {
    "residual blocks: additions of two maps, one of which has passed more convolutions since they "
    "parted": Recording.branches,
    "dense blocks: maps joined along the channels with maps that convolutions made from them": (
        Recording.new_maps
    ),
    "poolings that halve a map": Recording.pooled,
}
_STAGES: dict[str, Callable[[Recording], list[int]]] = {
    "ends of stages: residual blocks after which the resolution drops": Recording.stage_ends,
    "poolings that halve a map": Recording.pooled,
}


def find_places(recording: Recording, at_stage_ends: bool = False) -> list[Call]:
    """Return the modules' calls behind which attention belongs, in the order of the pass.

    Parameters
    ----------
    recording : Recording
        What `record` gave.
    at_stage_ends : bool
        Look for the ends of stages, where BAM belongs, and not for blocks.

    Raises
    ------
    ValueError
        Where there are none: what was looked for, and how much of it was seen.
    """
    seen = []
    for what, rule in (_STAGES if at_stage_ends else _BLOCKS).items():
        numbers = rule(recording)
        if places := recording.modules_at(numbers):
            return places
        seen.append(
            f"{what} ({len(numbers) or 'none'} seen{', none behind a module' * bool(numbers)})"
        )
    listed = "; ".join(f"({n}) {line}" for n, line in enumerate(seen, 1))
    raise ValueError(f"found no place for attention. Looked for {listed}")
