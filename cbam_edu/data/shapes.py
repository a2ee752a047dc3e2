"""Synthetic images of which everything is known: what is in them, and where.

Each shows one of ten shapes, of any colour, at any place, size and angle, before a background of
coloured areas, strokes and dots. One stroke and one dot have the shape's own colour, and light and
noise lie over everything: so neither colour nor texture tells what the shape is.

A pixel belongs to the shape if its centre lies inside, and there are no soft edges: so the mask is
exact.
"""

from collections.abc import Callable

import numpy as np
import torch

from cbam_edu.attention import check_positive
from cbam_edu.data.images import ImageSet

Array = np.ndarray  # float32 unless said otherwise; B images, pixels H by W


def _polygon(sides: int, apothem: float, missed: int = 0) -> Callable[[Array, Array], Array]:
    """Inside all but `missed` of the half-planes around a regular polygon.

    With one missed, the points around it belong to the shape as well, which makes it a star.
    """
    angles = 2 * np.pi * np.arange(sides) / sides
    normals = list(zip(np.cos(angles), np.sin(angles), strict=True))

    def inside(u: Array, v: Array) -> Array:
        return sum((a * u + b * v > apothem).astype(np.int8) for a, b in normals) <= missed

    return inside


# Each takes coordinates in which the shape lies within the unit circle, and says what is inside.
SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda u, v: u * u + v * v <= 0.8,
    "ring": lambda u, v: abs(u * u + v * v - 0.6) <= 0.35,
    "half-disc": lambda u, v: (u * u + v * v <= 1) & (v >= 0),
    "crescent": lambda u, v: (u * u + v * v <= 1) & ((u - 0.5) ** 2 + v * v >= 0.6),
    "triangle": _polygon(3, 0.5),
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.7,
    "frame": lambda u, v: abs(np.maximum(abs(u), abs(v)) - 0.54) <= 0.16,
    "cross": lambda u, v: (
        (np.minimum(abs(u), abs(v)) <= 0.26) & (np.maximum(abs(u), abs(v)) <= 0.9)
    ),
    "star": _polygon(5, 0.309, missed=1),
    "bar": lambda u, v: (abs(u) <= 0.95) & (abs(v) <= 0.26),
}
_BLOCK = 250  # images made at once, so that the arrays stay small
_AREAS, _STROKES, _DOTS, _WAVES = 2, 4, 4, 3  # how many of each an image has
_COLOURS = 4  # of the shape, of the first stroke and the first dot; of the second ones; ...


def shapes(count: int, seed: int = 0, size: int = 32) -> ImageSet:
    """Make images of shapes, with masks; image i has class i mod 10.

    Parameters
    ----------
    count : int
        N. Image i of a seed and a size is the same whatever the count.
    seed : int
        From 0 up. `cbam_edu.data.load` trains on seed 0 and tests on seed 1.
    size : int
        Height and width in pixels, at least 16.

    Returns
    -------
    ImageSet
        Named "shapes", with ``(N, 3, size, size) uint8`` images and ``(N, size, size) bool``
        masks.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    check_positive("count", count)
    check_positive("size", size)
    if size < 16:
        raise ValueError(f"size must be at least 16, for the shapes to be told apart; got {size}")
    if type(seed) is not int or seed < 0:
        raise ValueError(f"seed must be an integer from 0 up; got {seed!r}")
    rng = np.random.default_rng(seed)
    images = np.empty((count, 3, size, size), np.uint8)
    masks = np.empty((count, size, size), bool)
    labels = np.arange(count) % len(SHAPES)
    for start in range(0, count, _BLOCK):
        here = slice(start, min(start + _BLOCK, count))
        images[here], masks[here] = _draw(_Chances(rng, here.stop - start, size), labels[here])
    return ImageSet(
        "shapes",
        torch.from_numpy(images),
        torch.from_numpy(labels),
        tuple(SHAPES),
        torch.from_numpy(masks),
    )


class _Chances:
    """Random numbers, dealt out image by image, so that no image depends on how many there are."""

    _PARAMETERS = 100  # at least as many as `_draw` takes; the rest are for the noise

    def __init__(self, rng: np.random.Generator, count: int, size: int):
        self.count, self.size, self.taken = count, size, 0
        pixels = 3 * size * size
        numbers = rng.random((count, self._PARAMETERS + pixels), dtype=np.float32)
        self.parameters = numbers[:, : self._PARAMETERS]
        self.noise = numbers[:, self._PARAMETERS :].reshape(count, 3, size, size)

    def take(self, low: float, high: float, *shape: int) -> Array:
        """Return uniform numbers, ``(B, *shape)``."""
        n = int(np.prod(shape))
        self.taken += n
        numbers = self.parameters[:, self.taken - n : self.taken]
        return (low + (high - low) * numbers).astype(np.float32).reshape(self.count, *shape)


def _draw(chances: _Chances, labels: Array) -> tuple[Array, Array]:
    """Return images, ``(B, 3, H, W) uint8``, and masks, ``(B, H, W) bool``."""
    # Pixel centres, in units of the image's side, so that all sizes show the same kind of scene.
    axis = ((np.arange(chances.size) + 0.5) / chances.size).astype(np.float32)
    y, x = axis[None, :, None], axis[None, None, :]

    ground = chances.take(0.1, 0.9, 3)
    areas = ground[:, None] + chances.take(-0.25, 0.25, _AREAS, 3)
    colours = _contrasting(
        chances.take(0, 1, _COLOURS, 3), np.concatenate([ground[:, None], areas], 1)
    )
    canvas = np.empty((chances.count, 3, chances.size, chances.size), np.float32)
    canvas[:] = ground[:, :, None, None]
    for i in range(_AREAS):
        u, _ = _local(x, y, chances.take(0.2, 0.8, 2), _turn(chances))
        _paint(canvas, u > 0, areas[:, i])
    for i in range(_STROKES):
        u, v = _local(x, y, chances.take(0.05, 0.95, 2), _turn(chances))
        length = chances.take(0.1, 0.3, 1)[:, :, None]
        _paint(canvas, (abs(u) <= length) & (abs(v) <= 0.025), colours[:, i])
    for i in range(_DOTS):
        u, v = _local(x, y, chances.take(0.05, 0.95, 2), _turn(chances))
        radius = chances.take(0.02, 0.07, 1)[:, :, None]
        _paint(canvas, u * u + v * v <= radius * radius, colours[:, i])

    radius = chances.take(0.24, 0.36, 1)
    centre = radius + (1 - 2 * radius) * chances.take(0, 1, 2)
    u, v = _local(x, y, centre, _turn(chances))
    u, v = u / radius[:, :, None], v / radius[:, :, None]
    masks = np.empty(u.shape, bool)
    for label, inside in enumerate(SHAPES.values()):
        mine = labels == label
        masks[mine] = inside(u[mine], v[mine])
    _paint(canvas, masks, colours[:, 0])

    canvas += _light(chances, x, y)[:, None]
    canvas += 0.2 * (chances.noise - 0.5)
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8), masks


def _turn(chances: _Chances) -> tuple[Array, Array]:
    """Return the cosine and sine of a random angle, each ``(B, 1, 1)``."""
    angle = chances.take(0, 2 * np.pi, 1).astype(np.float64)[:, :, None]
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _local(x: Array, y: Array, centre: Array, turn: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the pixels' coordinates, each ``(B, H, W)``, about a centre and along turned axes."""
    cosine, sine = turn
    right, down = x - centre[:, :1, None], y - centre[:, 1:, None]
    return cosine * right + sine * down, cosine * down - sine * right


def _contrasting(candidates: Array, grounds: Array) -> Array:
    """Move to the front the first colour that stands out from all the grounds.

    `candidates` is ``(B, K, 3)``, `grounds` ``(B, G, 3)``. Where none stands out, the one that
    does most goes to the front.
    """
    difference = candidates[:, :, None] - grounds[:, None]
    distance = np.sqrt((difference * difference).sum(-1)).min(-1)
    stands_out = distance >= 0.4
    first = np.where(stands_out.any(1), stands_out.argmax(1), distance.argmax(1))
    rest = np.arange(candidates.shape[1])[None] != first[:, None]
    order = np.argsort(rest, axis=1, kind="stable")
    return np.take_along_axis(candidates, order[:, :, None], 1)


def _paint(canvas: Array, where: Array, colour: Array) -> None:
    """Set the pixels `where`, ``(B, H, W) bool``, to each image's colour, ``(B, 3)``."""
    np.copyto(canvas, colour[:, :, None, None], where=where[:, None])


def _light(chances: _Chances, x: Array, y: Array) -> Array:
    """Return brightness to add, ``(B, H, W)``: a sum of triangle waves.

    Triangles, since their arithmetic is the same on every processor; a sine's is not.
    """
    light = np.zeros((chances.count, chances.size, chances.size), np.float32)
    for _ in range(_WAVES):
        u, _ = _local(x, y, chances.take(0, 1, 2), _turn(chances))
        phase = u * chances.take(1, 6, 1)[:, :, None]
        wave = abs(phase - np.floor(phase) - 0.5) * 4 - 1
        light += chances.take(0, 0.08, 1)[:, :, None] * wave
    return light
