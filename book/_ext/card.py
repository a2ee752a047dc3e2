"""Draw what the site shows of itself elsewhere: the card of a shared link, and two icons.

::

    python book/_ext/card.py

writes ``social-card.png``, ``favicon.png`` and ``touch-icon.png`` to ``book/_static``. The card
shows a photograph of the test set, and what one block of the trained network does to three of its
channels: all of it is computed. The letters are those that matplotlib brings along, and squares
are squares, so that every machine draws the same.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont

from cbam_edu import data
from diagram import BLUE, EDGE, INK, MARK, ORANGE, QUIET, STATIC, Grid, Steps
from explorer_network import network, photographs

BLOCK, PHOTO = "stages.2.1.attention", 32
CARD, PLACE, SPACE = (1200, 630), 12, 14  # pixels; a place's edge, and between two sheets
EDGE_OF_CARD, TOP, BAR_WIDTH = 64, 284, 40
BLUE_RGB, ORANGE_RGB = (ImageColor.getrgb(colour)[:3] for colour in (BLUE, ORANGE))
WHITE = (255, 255, 255)
NAMES, SIGNS = ("F", "M c", "F′", "M s", "F″"), ("→", "×", "=", "×", "=")
WORDS = "Attention for feature maps: first what, then where."
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def photograph() -> torch.Tensor:
    """Return the photograph, (1, 3, 32, 32) uint8."""
    return photographs().images[PHOTO : PHOTO + 1]


def looked_at() -> Steps:
    """Return the block's steps for the two channels that it opens widest and the most shut one."""
    attention = network().get_submodule(BLOCK)
    kept: list[torch.Tensor] = []
    hook = attention.register_forward_pre_hook(lambda _m, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        network()(data.normalise(photograph()))
        hook.remove()
        x = kept[0]
        channel = attention.get_submodule("channel")(x)
        spatial = attention.get_submodule("spatial")(channel * x)
    order = channel.flatten().argsort(descending=True)
    chosen = order[[0, -1, 1]]
    features = x[0, chosen] / x[0, chosen].abs().amax((1, 2), keepdim=True)  # each by its largest
    scale, places = channel[0, chosen], spatial[0, 0]
    steps = (features, scale.flatten(), scale * features, places, places * scale * features)
    return Steps(*(np.asarray(step.double().numpy()) for step in steps))


def shade(colour: tuple[int, int, int], value: float) -> tuple[int, ...]:
    """Return `colour` on white, as strong as `value`, between 0 and 1."""
    strength = min(max(value, 0.0), 1.0)
    return tuple(round(255 + (c - 255) * strength) for c in colour)


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return letters of some height in pixels."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(FONTS / name), size)


def draw_grid(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    grid: Grid,
    colour: tuple[int, int, int],
    wide: int = PLACE,
) -> None:
    """Draw one sheet with its upper left corner at a point."""
    left, top = corner
    for (i, j), value in np.ndenumerate(grid):
        x, y = left + j * wide, top + i * PLACE
        draw.rectangle((x, y, x + wide - 1, y + PLACE - 1), fill=shade(colour, value))
    height, width = grid.shape
    draw.rectangle((left - 1, top - 1, left + width * wide, top + height * PLACE), outline=EDGE)


def draw_mark(draw: ImageDraw.ImageDraw, corner: tuple[int, int], step: int, cell: int) -> None:
    """Draw the book's mark: a column and a grid."""
    for (x, y), strength in MARK.items():
        colour = shade(BLUE_RGB if x else ORANGE_RGB, strength)
        left, top = corner[0] + x * step + (step // 4 if x else 0), corner[1] + y * step
        draw.rounded_rectangle((left, top, left + cell, top + cell), cell // 7, fill=colour)


def draw_name(draw: ImageDraw.ImageDraw, foot: tuple[int, int], name: str) -> None:
    """Write a symbol centred above a point, what follows its space as a subscript."""
    letter, _, below = name.partition(" ")
    draw.text(foot, letter, INK, font(26, bold=True), anchor="ms")
    draw.text((foot[0] + 14, foot[1] + 5), below, INK, font(19, bold=True), anchor="ls")


def draw_steps(image: Image.Image, steps: Steps) -> None:
    """Draw the photograph, and beside it F, M_c, F', M_s and F'' with their names above them."""
    draw, side = ImageDraw.Draw(image), 8 * PLACE
    step = side + SPACE
    tall = len(steps.channel) * step - SPACE
    small = Image.fromarray(photograph()[0].permute(1, 2, 0).numpy()).resize(
        (tall, tall), Image.Resampling.NEAREST
    )
    image.paste(small, (EDGE_OF_CARD, TOP))
    widths = [side, BAR_WIDTH, side, side, side]
    gap = (CARD[0] - 2 * EDGE_OF_CARD - tall - sum(widths)) // len(widths)
    left = EDGE_OF_CARD + tall + gap
    for name, sign, width in zip(NAMES, SIGNS, widths, strict=True):
        draw_name(draw, (left + width // 2, TOP - 14), name)
        draw.text((left - gap / 2, TOP + tall / 2), sign, QUIET, font(34), anchor="mm")
        for row, top in enumerate(range(TOP, TOP + tall, step)):
            if name == "M c":
                bar = np.full((8, 1), steps.channel[row])
                draw_grid(draw, (left, top), bar, ORANGE_RGB, BAR_WIDTH)
            elif name != "M s":
                sheets = {"F": steps.features, "F′": steps.refined, "F″": steps.output}[name]
                draw_grid(draw, (left, top), sheets[row], BLUE_RGB)
        if name == "M s":
            draw_grid(draw, (left, TOP + step), steps.spatial, ORANGE_RGB)
        left += width + gap


def social_card() -> Image.Image:
    """Return the card of a shared link, 1200 x 630."""
    image = Image.new("RGB", CARD, WHITE)
    draw = ImageDraw.Draw(image)
    draw_mark(draw, (64, 52), 34, 28)
    draw.text((236, 36), "The CBAM Book", INK, font(84, bold=True))
    draw.text((EDGE_OF_CARD, 172), WORDS, INK, font(36))
    draw_steps(image, looked_at())
    return image


def icon(side: int) -> Image.Image:
    """Return the mark on white as a square of `side` pixels."""
    image = Image.new("RGB", (side, side), WHITE)
    step = side * 23 // 100
    margin = (side - 4 * step - step // 4 + step // 5) // 2
    corner = (margin, (side - 3 * step + step // 5) // 2)
    draw_mark(ImageDraw.Draw(image), corner, step, step - step // 5)
    return image


DRAWINGS: dict[str, Callable[[], Image.Image]] = {
    "social-card.png": social_card,
    "favicon.png": partial(icon, 96),
    "touch-icon.png": partial(icon, 180),
}


if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        draw().save(STATIC / name, optimize=True)
    sys.exit(0)
