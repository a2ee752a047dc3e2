"""Where attention belongs in a network that was not written here: read off one image's pass.

Nothing here knows a network's class: a residual block is what its operations do.
"""

from collections.abc import Callable
from itertools import pairwise

from torch import nn

from cbam_edu.recording import Call, Operation, is_map


class Graph:
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
                before = [c for c in by_operation.get(chain[1], []) if fits(c)]
                chain = chain[any(not c.passes_through for c in before) :]
            calls = [c for number in chain for c in by_operation.get(number, []) if fits(c)]
            calls.sort(key=lambda c: c.passes_through)  # stable: else the earliest, innermost first
            if calls:
                found.setdefault(calls[0].module, calls[0])
        return list(found.values())


_BLOCKS: dict[str, Callable[[Graph], list[int]]] = {
    "residual blocks: additions of two maps, one of which has passed more convolutions since they "
    "parted": Graph.branches,
    "dense blocks: maps joined along the channels with maps that convolutions made from them": (
        Graph.new_maps
    ),
    "poolings that halve a map": Graph.pooled,
}
_STAGES: dict[str, Callable[[Graph], list[int]]] = {
    "ends of stages: residual blocks after which the resolution drops": Graph.stage_ends,
    "poolings that halve a map": Graph.pooled,
}


def find_places(graph: Graph, at_stage_ends: bool = False) -> list[Call]:
    """Return the modules' calls behind which attention belongs, in the order of the pass.

    Parameters
    ----------
    graph : Graph
        Of one pass through the network.
    at_stage_ends : bool
        Look for the ends of stages, where BAM belongs, and not for blocks.

    Raises
    ------
    ValueError
        Where there are none: what was looked for, and how much of it was seen.
    """
    seen = []
    for what, rule in (_STAGES if at_stage_ends else _BLOCKS).items():
        numbers = rule(graph)
        if places := graph.modules_at(numbers):
            return places
        seen.append(
            f"{what} ({len(numbers) or 'none'} seen{', none behind a module' * bool(numbers)})"
        )
    listed = "; ".join(f"({n}) {line}" for n, line in enumerate(seen, 1))
    raise ValueError(f"found no place for attention. Looked for {listed}")
