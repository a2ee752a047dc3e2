"""The synthetic shapes: what they are, where, and that nothing else gives them away."""

import hashlib

import numpy as np
import pytest
import torch

from cbam_edu.data import shapes
from cbam_edu.data.shapes import SHAPES

N = 400


@pytest.fixture(scope="module")
def many():
    return shapes(N, seed=3)


def test_what_is_made(many):
    assert many.name == "shapes"
    assert many.images.shape == (N, 3, 32, 32)
    assert many.images.dtype == torch.uint8
    assert many.masks.shape == (N, 32, 32)
    assert many.masks.dtype == torch.bool
    assert many.labels.dtype == torch.int64
    assert torch.equal(many.labels, torch.arange(N) % 10)
    assert many.classes == tuple(SHAPES)
    assert len(set(many.classes)) == 10


@pytest.mark.parametrize("count", [1, 7, 250, 251])
def test_an_image_does_not_depend_on_how_many_there_are(many, count):
    few = shapes(count, seed=3)
    assert torch.equal(few.images, many.images[:count])
    assert torch.equal(few.masks, many.masks[:count])


def test_the_seed_makes_the_difference(many):
    other = shapes(20, seed=4)
    same = (other.images == many.images[:20]).flatten(1).float().mean(1)
    assert same.max() < 0.2
    assert not torch.equal(other.masks, many.masks[:20])
    assert len(np.unique(many.images.numpy().reshape(N, -1), axis=0)) == N


def test_they_are_the_same_as_ever():
    """What is recorded about them elsewhere holds only as long as this does."""
    made = shapes(50, seed=0)
    digest = hashlib.sha256(made.images.numpy().tobytes() + made.masks.numpy().tobytes())
    assert digest.hexdigest() == "2dd29cee26c8b364c3d51f5b008b9cf327670712a5361287b49db5f147abfbe9"


@pytest.mark.parametrize("size", [16, 33, 64])
def test_other_sizes_show_the_same_kind_of_scene(size):
    made = shapes(100, size=size)
    assert made.images.shape == (100, 3, size, size)
    area = made.masks.float().mean((1, 2))
    assert 0.04 < area.min() < area.max() < 0.4


def test_every_shape_lies_whole_in_its_image():
    """One that the image cut off would have a long straight edge along the border."""
    made = shapes(500, seed=5, size=64)
    border = torch.ones(64, 64, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    touching = (made.masks & border).flatten(1).sum(1)
    assert touching.max() <= 12  # of a disc of the largest radius, 10 pixels lie within a half


def test_shapes_have_one_piece_and_their_holes():
    """Each is one piece, and so is what is around it, apart from the hole of a ring or a frame."""
    made = shapes(40, seed=1, size=48)
    for mask, label in zip(made.masks.numpy(), made.labels.tolist(), strict=True):
        name = made.classes[label]
        assert pieces(mask) == 1, name
        assert pieces(np.pad(~mask, 1, constant_values=True)) == (
            2 if name in ("ring", "frame") else 1
        ), name


def pieces(mask):
    """Count 8-connected pieces."""
    left, count = mask.copy(), 0
    while left.any():
        count += 1
        grown = np.zeros_like(left)
        grown.flat[left.argmax()] = True
        size = 0
        while grown.sum() > size:
            size = grown.sum()
            padded = np.pad(grown, 1)
            for i in range(3):
                for j in range(3):
                    grown |= padded[i : i + mask.shape[0], j : j + mask.shape[1]]
            grown &= left
        left &= ~grown
    return count


def test_areas_are_those_of_the_figures():
    """Each shape's share of its circumscribed circle, from geometry, on a fine grid."""
    axis = (np.arange(1000) + 0.5) / 500 - 1
    u, v = axis[None, :], axis[:, None]
    inside_circle = u * u + v * v <= 1
    wanted = {
        "disc": 0.8 * np.pi,
        "ring": 0.7 * np.pi,
        "half-disc": np.pi / 2,
        "triangle": 3 * np.sqrt(3) / 4,
        "square": 1.4**2,
        "frame": 1.4**2 - 0.76**2,
        "cross": 2 * 1.8 * 0.52 - 0.52**2,
        "bar": 1.9 * 0.52,
        "star": 5 * np.sin(np.pi / 5) * 0.309 / np.cos(np.pi / 5),
    }
    for name, inside in SHAPES.items():
        found = inside(u, v)
        assert not (found & ~inside_circle).any(), name
        if name in wanted:
            assert found.sum() / 500**2 == pytest.approx(wanted[name], rel=0.01), name


def test_the_mask_is_where_the_shape_is_painted(many):
    """Within the mask there is one colour, up to light and noise; and it stands out around it."""
    images = many.images.float() / 255
    inner = torch.nn.functional.max_pool2d((~many.masks).float()[:, None], 3, 1, 1)[:, 0] == 0
    rim = torch.nn.functional.max_pool2d(many.masks.float()[:, None], 5, 1, 2)[:, 0] > 0
    rim &= ~many.masks
    spreads, contrasts = [], []
    for image, mask, ring in zip(images, many.masks, rim, strict=True):
        own = image[:, mask]
        spreads.append(own.std(1).max().item())
        contrasts.append((own.mean(1) - image[:, ring].mean(1)).norm().item())
    assert inner.any()
    assert max(spreads) < 0.2
    assert np.quantile(contrasts, 0.05) > 0.2


def test_colour_and_place_do_not_tell_the_class():
    """A linear rule on mean colours, or on where the mask is, does about as well as chance."""
    made = shapes(3000, seed=6)
    images = made.images.double() / 255
    inside = (images * made.masks[:, None]).sum((2, 3)) / made.masks.sum((1, 2))[:, None]
    axis = torch.arange(32.0, dtype=torch.double)
    rows = (made.masks.sum(2) * axis).sum(1) / made.masks.sum((1, 2))
    columns = (made.masks.sum(1) * axis).sum(1) / made.masks.sum((1, 2))
    features = torch.cat([inside, rows[:, None], columns[:, None], torch.ones(3000, 1)], 1)
    hot = torch.nn.functional.one_hot(made.labels).double()
    rule = torch.linalg.lstsq(features[:2000], hot[:2000]).solution
    right = ((features[2000:] @ rule).argmax(1) == made.labels[2000:]).double().mean()
    assert right < 0.16  # chance is 0.10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count must be"),
        ({"count": 2.5}, "count must be"),
        ({"count": 1, "size": 15}, "size must be at least 16, .*; got 15"),
        ({"count": 1, "size": 32.0}, "size must be"),
        ({"count": 1, "seed": -1}, "seed must be an integer from 0 up; got -1"),
        ({"count": 1, "seed": 0.5}, "seed must be an integer from 0 up; got 0.5"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        shapes(**arguments)
