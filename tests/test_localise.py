"""Scores of maps: by hand, against what chance gives by formula, and on networks that are known."""

import dataclasses

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.testing import assert_close

from cbam_edu import CBAM, create_model, localise
from cbam_edu.data import normalise, shapes
from cbam_edu.explain import attention_maps, grad_cam, resize
from cbam_edu.localise import (
    SCORES,
    area_under,
    centred,
    deletion_scores,
    energy_inside,
    fading,
    localisation_scores,
    overlap,
    pointing_game,
    saliency,
)
from cbam_edu.neighbours import ATTENTIONS

HEIGHT, WIDTH = 6, 8


def some_masks(count: int) -> Tensor:
    """Return masks of 12 of 48 places each, nowhere the same."""
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(count, HEIGHT * WIDTH, generator=generator).argsort(1)
    return (order < 12).view(count, HEIGHT, WIDTH)


def score(name: str, maps: list, masks: list) -> list[float]:
    return SCORES[name](torch.tensor(maps), torch.tensor(masks, dtype=torch.bool)).tolist()


# ---- Against masks

CORNER = [[[1, 0], [0, 0]]]
TOP = [[[1, 1], [0, 0]]]


@pytest.mark.parametrize(
    ("name", "maps", "masks", "wanted"),
    [
        ("pointing", [[[0.9, 0.1], [0.2, 0.3]]], CORNER, 1),
        ("pointing", [[[0.1, 0.9], [0.2, 0.3]]], CORNER, 0),
        ("pointing", [[[0.9, 0.9], [0.9, 0.3]]], CORNER, 1 / 3),  # three are the highest
        ("pointing", [[[-1.0, -2.0], [-3.0, -1.0]]], CORNER, 1 / 2),
        ("energy", [[[3.0, 1.0], [2.0, 2.0]]], CORNER, 3 / 8),
        ("energy", [[[3.0, 1.0], [2.0, 2.0]]], TOP, 1 / 2),
        ("energy", [[[0.0, 0.0], [0.0, 0.0]]], CORNER, 1 / 4),  # empty
        ("energy", [[[0.0, 0.0], [0.0, 1e-30]]], CORNER, 0),
        ("iou", [[[4.0, 3.0], [2.0, 1.0]]], TOP, 1),
        ("iou", [[[4.0, 2.0], [3.0, 1.0]]], TOP, 1 / 3),  # one of two: 1 / (2 + 2 - 1)
        ("iou", [[[1.0, 2.0], [3.0, 4.0]]], TOP, 0),
        # The highest is in; one of the three next is taken, and one of these three is in.
        ("iou", [[[4.0, 1.0], [1.0, 1.0]]], TOP, (4 / 3) / (4 - 4 / 3)),
        ("iou", [[[1.0, 1.0], [1.0, 1.0]]], TOP, 1 / 3),
        ("iou", [[[1.0, 1.0], [1.0, 1.0]]], [[[1, 1], [1, 1]]], 1),
    ],
)
def test_scores_by_hand(name, maps, masks, wanted):
    assert score(name, maps, masks) == pytest.approx([wanted])


@pytest.mark.parametrize("name", SCORES)
def test_a_perfect_map_gets_one_and_its_inverse_none(name):
    masks = some_masks(5)
    measure = SCORES[name]
    assert_close(measure(masks.float(), masks), torch.ones(5))
    assert_close(measure((~masks).float(), masks), torch.zeros(5))
    graded = masks * (1 + torch.rand(masks.shape))
    assert_close(measure(graded, masks), torch.ones(5))


@pytest.mark.parametrize("level", [0.0, 0.5, 7.0])
def test_a_map_that_is_the_same_everywhere_gets_what_chance_gets(level):
    masks = some_masks(4)
    maps = torch.full(masks.shape, level)
    assert_close(pointing_game(maps, masks), torch.full((4,), 12 / 48))
    assert_close(energy_inside(maps, masks), torch.full((4,), 12 / 48))
    expected = 12 * 12 / 48  # of the 12 places taken, so many lie inside
    assert_close(overlap(maps, masks), torch.full((4,), expected / (24 - expected)))


def test_random_maps_get_what_chance_gets_by_formula():
    """Each to four standard errors of its mean over 4,000 maps."""
    count, area, places = 4000, 12, HEIGHT * WIDTH
    masks = some_masks(count)
    maps = torch.rand(masks.shape, generator=torch.Generator().manual_seed(1))
    inside = stats.hypergeom(places, area, area)  # of the places taken, those within the mask
    iou = inside.expect(lambda k: k / (2 * area - k))
    wanted = {"pointing": area / places, "energy": area / places, "iou": iou}
    for name, measure in SCORES.items():
        found = measure(maps, masks)
        error = found.std() / count**0.5
        assert abs(found.mean() - wanted[name]) < 4 * error
    assert pointing_game(maps, masks).unique().tolist() == [0, 1]


def test_scores_do_not_hang_on_the_maps_scale_nor_on_the_other_images():
    masks, maps = some_masks(6), torch.rand(6, HEIGHT, WIDTH, dtype=torch.float64)
    for measure in SCORES.values():
        whole = measure(maps, masks)
        assert whole.shape == (6,)
        assert_close(measure(maps * 1e-3, masks), whole)
        assert_close(
            torch.cat([measure(m[None], k[None]) for m, k in zip(maps, masks, strict=True)]), whole
        )
        assert_close(measure(maps.mT, masks.mT), whole)
    assert_close(pointing_game(maps - 5, masks), pointing_game(maps, masks))
    assert_close(overlap(maps.log(), masks), overlap(maps, masks))


@pytest.mark.parametrize("name", SCORES)
def test_bad_maps_are_told(name):
    measure, maps, masks = SCORES[name], torch.rand(2, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)
    message = r"maps are \(N, H, W\) float and masks \(N, H, W\) bool; got"
    for bad in ((maps[0], masks[0]), (maps, masks[:1]), (maps, masks.float()), (masks, masks)):
        with pytest.raises(ValueError, match=message):
            measure(*bad)
    for value in (torch.nan, torch.inf):
        spoiled = maps.clone()
        spoiled[1, 2, 3] = value
        with pytest.raises(ValueError, match="a map holds infinity or NaN"):
            measure(spoiled, masks)


def test_what_a_score_cannot_use_is_told():
    masks = some_masks(2)
    with pytest.raises(ValueError, match="energy is asked for may not be negative"):
        energy_inside(-masks.float(), masks)
    with pytest.raises(ValueError, match="every mask must hold at least one place"):
        overlap(masks.float(), torch.zeros_like(masks))


# ---- Deletion and insertion


class Region(nn.Module):
    """Says class 1 with a probability that is the mean of the first channel within a region."""

    def __init__(self, region: Tensor):
        super().__init__()
        self.register_buffer("region", region)

    def forward(self, x: Tensor) -> Tensor:
        p = x[:, 0, self.region].mean(1).double()
        return torch.stack([1 - p, p], 1).log()


CLASSES = torch.ones(3, dtype=torch.int64)
SQUARE = torch.zeros(4, 4, dtype=torch.bool)
SQUARE[1:3, 1:3] = True


def test_a_network_that_needs_four_of_sixteen_places():
    """In steps of one place each: 1, 3/4, 1/2, 1/4, then 0; by trapezia, 2/16 of the area."""
    x, model = torch.ones(3, 3, 4, 4), Region(SQUARE)
    maps = (SQUARE + torch.rand(3, 4, 4) / 2).float()
    deletion, insertion = fading(model, x, maps, CLASSES)
    away = torch.tensor([1, 0.75, 0.5, 0.25, *[0] * 13])
    assert_close(deletion, away.expand(3, 17))
    assert_close(insertion, (1 - away).expand(3, 17))
    assert_close(area_under(deletion), torch.full((3,), 2 / 16))
    assert_close(area_under(insertion), torch.full((3,), 14 / 16))
    # The wrong way round, and another class
    deletion, insertion = fading(model, x, -maps, CLASSES)
    assert_close(area_under(deletion), torch.full((3,), 14 / 16))
    assert_close(area_under(insertion), torch.full((3,), 2 / 16))
    deletion, insertion = fading(model, x, maps, 0 * CLASSES)
    assert_close(deletion, (1 - away).expand(3, 17))


def test_a_random_map_gets_one_half():
    """Every place is as likely gone as not; four standard errors of 300 images."""
    maps = torch.rand(300, 4, 4, generator=torch.Generator().manual_seed(0))
    curves = fading(Region(SQUARE), torch.ones(300, 3, 4, 4), maps, torch.ones(300, dtype=int))
    for curve in curves:
        areas = area_under(curve)
        assert abs(areas.mean() - 0.5) < 4 * areas.std() / 300**0.5


@pytest.mark.parametrize("size", [(5, 7), (8, 8), (3, 3)])
def test_so_many_sixteenths_of_the_places_are_away(size):
    x, everywhere = torch.ones(3, 3, *size), torch.ones(size, dtype=torch.bool)
    maps = torch.rand(3, *size)
    deletion, insertion = fading(Region(everywhere), x, maps, CLASSES)
    places = size[0] * size[1]
    away = torch.tensor([places * step // 16 / places for step in range(17)])
    assert_close(deletion, (1 - away).expand(3, 17))
    assert_close(insertion, away.expand(3, 17))


def test_equal_places_go_in_no_order_of_memory():
    """The first row is not the first to go, nor the last; and it goes alike in all images."""
    x, first = torch.ones(3, 3, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
    first[0] = True
    deletion, _ = fading(Region(first), x, torch.zeros(3, 8, 8), CLASSES)
    assert_close(deletion, deletion[:1].expand(3, 17))
    assert deletion[0, 2] > 0.1  # 8 of 64 places are away
    assert deletion[0, 14] < 0.9
    # What is higher goes before, all of it.
    deletion, insertion = fading(Region(first), x, first.float().expand(3, 8, 8), CLASSES)
    assert_close(deletion[:, 2:], torch.zeros(3, 15))
    assert_close(insertion[:, 2:], torch.ones(3, 15))


def network(name: str = "resnet8", **options) -> nn.Module:
    torch.manual_seed(0)
    dims = (4, 4, 4, 4) if name == "resnet9" else (4, 8)
    return create_model(name, 10, **({"dims": dims} | options)).eval()


def test_fading_begins_with_the_whole_image_and_ends_with_none():
    model, x = network(), torch.randn(3, 3, 12, 10)
    classes, maps = torch.tensor([0, 4, 2]), torch.rand(3, 12, 10)
    deletion, insertion = fading(model, x, maps, classes)
    with torch.no_grad():
        whole, blank = (model(z).softmax(1)[torch.arange(3), classes] for z in (x, 0 * x))
    assert_close(deletion[:, 0], whole)
    assert_close(deletion[:, -1], blank)
    assert_close(insertion[:, 0], blank)
    assert_close(insertion[:, -1], whole)
    assert deletion.std(1).min() > 1e-4
    # What one takes away first, the other, of the inverse map, brings in last.
    places, steps = 120, torch.arange(17)
    assert places * 8 // 16 * 2 == places
    inverse = fading(model, x, -maps, classes)[1]
    assert_close(inverse[:, 8], deletion[:, 8])
    assert_close(inverse.flip(1)[:, 120 * steps % 16 == 0], deletion[:, 120 * steps % 16 == 0])
    last = x.to(memory_format=torch.channels_last)
    assert_close(fading(model, last, maps, classes)[0], deletion)
    assert not deletion.requires_grad


def test_maps_that_do_not_fit_the_images_are_told():
    x = torch.ones(3, 3, 4, 4)
    for shape in ((3, 4, 5), (2, 4, 4), (3, 1, 4, 4)):
        with pytest.raises(ValueError, match="one map for each image, as large, is wanted; got"):
            fading(Region(SQUARE), x, torch.zeros(shape), CLASSES)
    with pytest.raises(ValueError, match="a map holds infinity or NaN"):
        fading(Region(SQUARE), x, torch.full((3, 4, 4), torch.nan), CLASSES)


def test_areas_by_hand():
    assert area_under(torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0.5, 1]])).tolist() == [
        1,
        0.25,
        0.5,
    ]
    assert area_under(torch.linspace(0, 1, 17)[None] ** 2).item() == pytest.approx(1 / 3, abs=1e-3)


# ---- The maps of a network


def test_the_centre_is_highest_in_the_middle():
    maps = centred(2, (5, 7))
    assert maps.shape == (2, 5, 7)
    assert (maps == maps.amax()).nonzero().tolist() == [[0, 2, 3], [1, 2, 3]]
    assert_close(maps, maps.flip(1))
    assert_close(maps, maps.flip(2))
    assert (maps[0, 2].diff()[:3] > 0).all()
    assert (maps[0, :, 3].diff()[:2] > 0).all()
    assert maps.min() > 0
    assert centred(1, (1, 1)).shape == (1, 1, 1)


@pytest.mark.parametrize("attention", [None, *ATTENTIONS])
@pytest.mark.parametrize("name", ["cbamnet_tiny", "resnet8", "resnet9"])
def test_saliency_is_grad_cam_of_the_last_stage_and_every_spatial_map(name, attention):
    model, x = network(name, attention=attention), torch.randn(2, 3, 18, 12)
    classes = torch.tensor([1, 3])
    maps = saliency(model, x, classes)
    layers = {}
    if attention in ("cbam", "spatial"):
        layers = {m.name: m.spatial[:, 0] for m in attention_maps(model, x)}
        assert layers
    names = [n.removeprefix("stages.").removesuffix(".attention") for n in layers]
    assert list(maps) == ["grad-cam", *(f"M_s {n}" for n in names)]
    wanted = [grad_cam(model, x, classes, model.stages[-1]), *layers.values()]
    for found, small in zip(maps.values(), wanted, strict=True):
        assert found.shape == (2, 18, 12)
        assert_close(found, resize(small, (18, 12)))
        assert (found >= 0).all()


def test_the_names_of_the_maps():
    model = network("resnet20", attention="cbam")
    found = saliency(model, torch.randn(1, 3, 8, 8), torch.tensor([0]))
    names = [f"M_s {stage}.{block}" for stage in range(2) for block in range(3)]
    assert list(found) == ["grad-cam", *names]
    parallel = network(attention="cbam", attention_options={"order": "parallel"})
    assert list(saliency(parallel, torch.randn(1, 3, 8, 8), torch.tensor([0]))) == ["grad-cam"]
    studied = network(attention="variant", attention_options={"squeeze": "conv"})
    found = saliency(studied, torch.randn(1, 3, 8, 8), torch.tensor([0]))
    assert list(found) == ["grad-cam", "M_s 0.0", "M_s 1.0"]


# ---- The scores of the studies

TEST = shapes(23, seed=3, size=16)


@pytest.fixture
def in_batches(monkeypatch):
    """Let batches have nine images: two, and a rest of five."""
    monkeypatch.setattr(localise, "_BATCH", 9)


def test_known_maps_get_their_scores(in_batches, monkeypatch):
    shown = []

    def maps(model, x, classes):
        start = sum(len(where) for where in shown[::2]) if len(shown) % 2 == 0 else shown[-1][0]
        where = list(range(start, start + len(x)))
        assert torch.equal(normalise(TEST.images[where]), x)
        shown.append(where)
        part = TEST.masks[where]
        assert torch.equal(TEST.labels[where], classes)
        return {"perfect": part.float(), "inverse": (~part).float(), "flat": torch.ones(part.shape)}

    monkeypatch.setattr(localise, "saliency", maps)
    found = localisation_scores(network(attention="cbam"), TEST, seed=1)
    assert [i for where in shown[::2] for i in where] == list(range(23))
    area = TEST.masks.float().mean((1, 2))
    for of in ("", ", untrained"):
        for name in SCORES:
            assert found[f"perfect{of}: {name}"] == pytest.approx(1)
            assert found[f"inverse{of}: {name}"] == 0
        for name in ("pointing", "energy"):
            assert found[f"flat{of}: {name}"] == pytest.approx(area.mean().item())
        assert found[f"flat{of}: iou"] == pytest.approx((area / (2 - area)).mean().item())
    assert found["chance: energy"] == pytest.approx(area.mean().item(), abs=0.02)


@pytest.mark.parametrize("attention", [None, "cbam"])
def test_localisation_is_measured_image_by_image(in_batches, monkeypatch, attention):
    model = network(attention=attention)
    found = localisation_scores(model, TEST, seed=2)
    own = ["grad-cam"] + ["M_s 0.0", "M_s 1.0"] * (attention == "cbam")
    names = [*own, *(f"{name}, untrained" for name in own), "chance", "centre"]
    assert list(found) == [f"{name}: {score}" for name in names for score in SCORES]
    x = normalise(TEST.images)
    torch.manual_seed(localise._OTHER + 2)
    fresh = create_model(**model.config).eval()
    for network_of, suffix in ((model, ""), (fresh, ", untrained")):
        for name, maps in saliency(network_of, x, TEST.labels).items():
            for score, measure in SCORES.items():
                wanted = measure(maps, TEST.masks).mean().item()
                assert found[f"{name}{suffix}: {score}"] == pytest.approx(wanted, rel=1e-4)
    for score, measure in SCORES.items():
        wanted = measure(centred(23, (16, 16)), TEST.masks).mean().item()
        assert found[f"centre: {score}"] == pytest.approx(wanted)
    # The controls hang on the seed, and on it alone.
    assert localisation_scores(model, TEST, seed=2) == found
    other = localisation_scores(model, TEST, seed=3)
    assert other["chance: energy"] != found["chance: energy"]
    assert other["grad-cam, untrained: energy"] != found["grad-cam, untrained: energy"]
    assert other["grad-cam: energy"] == found["grad-cam: energy"]


def test_deletion_is_measured_on_the_first_images(in_batches, monkeypatch):
    monkeypatch.setattr(localise, "IMAGES", 11)
    model = network(attention="cbam")
    found = deletion_scores(model, TEST, seed=2)
    own = ["grad-cam", "M_s 0.0", "M_s 1.0"]
    names = [*own, *(f"{name}, untrained" for name in own), "chance", "centre"]
    both = ("deletion", "insertion")
    assert list(found) == [f"{name}: {score}" for name in names for score in both]
    x = normalise(TEST.images[:11])
    with torch.no_grad():
        predicted = model(x).argmax(1)
    maps = saliency(model, x, predicted) | {"centre": centred(11, (16, 16))}
    for name, m in maps.items():
        for score, curve in zip(both, fading(model, x, m, predicted), strict=True):
            wanted = area_under(curve).mean().item()
            assert found[f"{name}: {score}"] == pytest.approx(wanted, rel=1e-4)
    assert deletion_scores(model, TEST.subset(torch.arange(11)), seed=2) == found


@pytest.mark.parametrize("measure", [localisation_scores, deletion_scores])
def test_measuring_leaves_no_trace(measure):
    model = network(attention="cbam").train()
    model.bn.eval()  # a part that is frozen
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    few = TEST.subset(torch.arange(4))
    torch.manual_seed(5)
    measure(model, few, seed=0)
    assert torch.initial_seed() == 5
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_images_without_masks_are_told():
    plain = dataclasses.replace(TEST, masks=None)
    with pytest.raises(ValueError, match="has no masks to measure against"):
        localisation_scores(network(), plain, seed=0)


def test_a_gate_that_answers_the_mask_is_found():
    """A network whose spatial gate sees the object gives M_s that point at it."""
    model = network(attention="cbam")
    gates = [m for m in model.modules() if isinstance(m, CBAM)]

    class Knowing(type(gates[0].spatial)):
        def forward(self, x):
            small = nn.functional.adaptive_max_pool2d(
                TEST.masks[: len(x), None].float(), x.shape[2:]
            )
            return 0.1 + 0.8 * small

    for gate in gates:
        gate.spatial.__class__ = Knowing
    found = localisation_scores(model, TEST, seed=0)
    assert found["M_s 0.0: iou"] == pytest.approx(1)
    assert found["M_s 0.0: pointing"] == pytest.approx(1)
    assert found["M_s 0.0, untrained: iou"] < 0.7
