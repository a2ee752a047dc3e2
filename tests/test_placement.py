"""Where attention belongs, on networks of a few lines; real ones are in the tests of surgery."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.placement import Graph, find_places
from cbam_edu.recording import record


class Network(nn.Module):
    """Convolutions a, b, c, ... of 8 channels behind a stem, in the way that a function says."""

    def __init__(self, way, **parts: nn.Module):
        super().__init__()
        self.way = way
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        for name in "abcd":
            setattr(self, name, nn.Conv2d(8, 8, 3, padding=1))
        self.down, self.up = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Upsample(scale_factor=2)
        self.transposed = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.identity, self.relu = nn.Identity(), nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 1e-6))

    def forward(self, x):
        return self.way(self, self.stem(x))


def places(way, stage_ends: bool = False) -> list[str]:
    model = Network(way)
    graph = Graph(*record(model, (3, 16, 16)))
    names = {module: name for name, module in model.named_modules()}
    return [names[call.module] for call in find_places(graph, stage_ends)]


def add_in_place(n: Network, x: Tensor) -> Tensor:
    y = n.b(n.a(x))
    y += x
    return y


def relu_in_place(n: Network, x: Tensor) -> Tensor:
    return F.relu(n.b(n.a(x)), inplace=True) + x


def padded_shortcut(n: Network, x: Tensor) -> Tensor:
    """He et al., section 4.2, option A."""
    shortcut = F.pad(x[:, :4, ::2, ::2], (0, 0, 0, 0, 2, 2))
    return n.down(x) + shortcut


def rexnet(n: Network, x: Tensor) -> Tensor:
    y = n.b(n.a(x))
    return torch.cat([y[:, :4] + n.first(x[:, :4]), y[:, 4:]], 1)


def dual_path(n: Network, x: Tensor) -> Tensor:
    """DPN: some channels of the whole map that the branch comes from."""
    swapped = torch.cat([x[:, 4:], x[:, :4]], 1)
    return n.b(n.a(x) * swapped)[:, :4] + x[:, :4]


def gated_from_afar(n: Network, x: Tensor) -> Tensor:
    """GhostNetV2: the gate is found at half of the resolution."""
    return n.b(n.a(x) * torch.sigmoid(n.up(n.down(x)))) + x


def two_of_one(n: Network, x: Tensor) -> Tensor:
    y = n.a(x)
    return (y + x) * (y + n.identity(x))


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (lambda n, x: x + n.b(n.a(x)), ["b"]),
        (lambda n, x: n.b(n.a(x)) + x, ["b"]),
        (lambda n, x: n.c(x) + n.b(n.a(x)), ["b"]),
        (lambda n, x: n.b(n.a(x)) + n.c(x), ["b"]),
        (lambda n, x: torch.relu(n.b(n.a(x)).add(x)), ["b"]),
        (add_in_place, ["b"]),
        (lambda n, x: n.relu(n.b(n.a(x))) + x, ["relu"]),
        (lambda n, x: F.relu(n.b(n.a(x))) + x, ["b"]),
        (relu_in_place, ["b"]),
        (lambda n, x: n.relu(n.b(n.relu(n.a(x)))) + x, ["b"]),  # one ReLU for two
        (lambda n, x: n.identity(n.a(x)) + x, ["a"]),
        (lambda n, x: n.identity(F.conv2d(x, n.a.weight, padding=1)) + x, ["identity"]),
        (lambda n, x: n.scale * n.a(x) + x, ["a"]),  # before the layer scale
        (lambda n, x: n.identity(n.scale * n.a(x)) + x, ["a"]),
        (lambda n, x: 0.2 * n.a(x) + x, ["a"]),
        (lambda n, x: n.identity(0.2 * n.a(x)) + x, ["a"]),
        (lambda n, x: sum([n.a(x), x]), ["a"]),
        (padded_shortcut, ["down"]),
        (rexnet, ["b"]),
        (dual_path, ["b"]),
        (gated_from_afar, ["b"]),
        (two_of_one, ["a"]),
        (lambda n, x: n.d(x + n.b(n.a(x))) + n.c(x), ["b", "d"]),  # a block in a block
    ],
)
def test_a_residual_branch(way, expected):
    assert places(way) == expected


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((8, 1, 1), 1e-6))

    def forward(self, x):
        return x * self.scale


def test_a_module_that_scales_is_behind_the_attention():
    model = Network(lambda n, x: x + n.layer_scale(n.a(x)))
    model.layer_scale = LayerScale()
    (place,) = find_places(Graph(*record(model, (3, 16, 16))))
    assert place.module is model.a
    model.way = lambda n, x: x + n.layer_scale(F.conv2d(x, n.a.weight, padding=1))
    (place,) = find_places(Graph(*record(model, (3, 16, 16))))
    assert place.module is model.layer_scale


def streams(n: Network, x: Tensor) -> Tensor:
    """HRNet: two streams with blocks of their own meet; the longer one is no branch."""
    high, low = x + n.a(x), n.down(x)
    low = low + n.c(n.b(low))
    return high + n.up(low), n.pool(high) + n.d(low)


def pyramid(n: Network, x: Tensor) -> Tensor:
    """FPN: what comes back from a lower resolution is added to a lateral projection."""
    return n.a(x) + n.up(n.c(n.b(n.down(x))))


def res2net(n: Network, x: Tensor) -> Tensor:
    first, second = x.split(4, 1)
    return x + n.b(torch.cat([first, n.second(n.first(first) + second)], 1))


def res2net_by_slices(n: Network, x: Tensor) -> Tensor:
    y = n.a(x)
    first, second = y[:, :4], y[:, 4:]
    return x + n.b(torch.cat([first, n.second(n.first(first) + second)], 1))


@pytest.mark.parametrize(
    ("way", "expected"),
    [(streams, ["a", "c"]), (res2net, ["b"]), (res2net_by_slices, ["b"])],
)
def test_an_addition_that_ends_no_block(way, expected):
    assert places(way) == expected


@pytest.mark.parametrize(
    "way",
    [
        lambda n, x: n.b(n.a(x)),
        lambda n, x: n.a(x) + n.b(x),  # one convolution each
        lambda n, x: x + x,
        lambda n, x: n.identity(x) + F.avg_pool2d(x, 3, 1, 1),  # none
        lambda n, x: n.a(x).mean((2, 3)) + x.mean((2, 3)),  # no maps
        lambda n, x: x + n.a(x).mean((2, 3), keepdim=True),  # of two shapes
        pyramid,
        lambda n, x: torch.cat([n.a(x), n.b(x)], 1),  # side by side, as in Inception
        lambda n, x: torch.cat([x, n.a(x)], 2),
        lambda n, x: torch.cat([x, n.up(n.down(x))], 1),  # U-Net
        lambda n, x: torch.cat([x, n.transposed(n.down(x))], 1),
        lambda n, x: F.max_pool2d(n.a(x), 3, 1, 1),  # halves nothing
        lambda n, x: F.max_pool2d(n.a(F.adaptive_avg_pool2d(x, 1)), 3, 1, 1),
        lambda n, x: F.avg_pool2d(n.a(x), 16),  # the last, over all
        lambda n, x: F.adaptive_avg_pool2d(n.a(x), 8),
        lambda n, x: [y := F.conv2d(x, n.a.weight, padding=1), x + y][
            0
        ],  # the network's own output
        lambda n, x: x.permute(0, 2, 3, 1) + n.b(n.a(x)).permute(0, 2, 3, 1),  # channels last
    ],
)
def test_no_place(way):
    with pytest.raises(ValueError, match=r"found no place for attention\. Looked for"):
        places(way)


def dense(n: Network, x: Tensor) -> Tensor:
    maps = [x]
    for layer in (n.a, n.b, n.c):
        maps.append(layer(torch.cat(maps, 1).unflatten(1, (-1, 8)).sum(1)))
    return torch.cat(maps, 1)


def test_the_new_maps_of_a_dense_block():
    assert places(dense) == ["a", "b", "c"]


def reduction(n: Network, x: Tensor) -> Tensor:
    """Inception: a pooling beside a convolution."""
    y = n.a(x)
    return torch.cat([n.pool(y), n.down(y)], 1)


def two_widths(n: Network, x: Tensor) -> Tensor:
    """One ReLU before each pooling, for 8 channels and for 16."""
    y = n.pool(n.relu(n.a(x)))
    return n.pool(n.relu(torch.cat([y, y], 1)))


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (lambda n, x: n.pool(n.b(n.pool(n.a(x)))), ["a", "b"]),
        (lambda n, x: n.pool(F.relu(n.a(x))), ["a"]),
        (lambda n, x: n.pool(n.relu(n.b(n.relu(n.a(x))))), ["b"]),
        (lambda n, x: F.avg_pool2d(n.a(x), 2), ["a"]),
        (lambda n, x: F.max_pool2d(n.a(x), 3, 2), ["a"]),  # 16 to 7
        (lambda n, x: F.max_pool2d(n.a(x), 3, 2, 1), ["a"]),
        (lambda n, x: F.max_pool2d(n.a(x)[:, :, 1:, 1:], 3, 2, ceil_mode=True), ["a"]),  # 15 to 7
        (lambda n, x: F.max_pool2d(n.a(x)[:, :, 1:, 1:], 2, 2, ceil_mode=True), ["a"]),  # 15 to 8
        (reduction, ["a"]),
        (two_widths, ["a"]),
    ],
)
def test_before_a_pooling(way, expected):
    assert places(way) == expected


def test_blocks_come_before_dense_blocks_and_these_before_poolings():
    def all_three(n, x):
        return n.pool(torch.cat([x, n.c(x + n.a(x))], 1))

    def two(n, x):
        return n.pool(torch.cat([x, n.c(n.a(x))], 1))

    assert places(all_three) == ["a"]
    assert places(two) == ["c"]
    assert places(lambda n, x: n.pool(n.c(n.a(x)))) == ["c"]


def test_the_ends_of_stages():
    """Behind the last block before the resolution drops; there is none behind the last stage."""
    blocks = [Network(lambda n, x: x + n.a(x)) for _ in range(2)]
    back = [nn.Conv2d(8, 3, 1) for _ in range(3)]
    narrow = Network(lambda n, x: n.down(x) + n.b(n.a(n.down(x))))
    model = nn.Sequential(blocks[0], back[0], blocks[1], back[1], narrow, back[2])
    graph = Graph(*record(model, (3, 16, 16)))
    (place,) = find_places(graph, at_stage_ends=True)
    assert place.module is blocks[1]
    assert len(graph.joins()) == 3


def test_a_stages_end_is_behind_the_activation():
    def way(n, x):
        y = n.down(n.relu(x + n.a(x)))
        return y + n.d(n.c(y))

    assert places(way, stage_ends=True) == ["relu"]
    assert places(lambda n, x: n.pool(n.a(x)), stage_ends=True) == ["a"]


def test_a_stages_end_that_others_use_as_well_is_before_the_activation():
    def way(n, x):
        y = x + n.a(x)
        z = n.down(n.relu(y)) + n.pool(y)
        return z + n.d(n.c(z))

    with pytest.raises(ValueError, match=r"resolution drops \(1 seen, none behind a module\)"):
        places(way, stage_ends=True)


def test_sequences_are_no_maps():
    with pytest.raises(ValueError, match=r"since they parted \(none seen\)"):
        places(lambda n, x: n.a(x).flatten(2) + x.flatten(2))


def test_a_place_that_no_module_gives():
    def way(n, x):
        y = n.down(x + n.a(x))
        return y + F.conv2d(n.b(y), n.c.weight, padding=1)

    with pytest.raises(
        ValueError, match=r"resolution drops \(1 seen, none behind a module\); \(2\)"
    ):
        places(way, stage_ends=True)
    assert places(way) == ["a"]
