"""Draw the book's picture, a small CBAM at work, and the mark of the book.

::

    python book/_ext/diagram.py

writes ``cbam.svg``, ``logo.svg``, ``logo-dark.svg`` and ``favicon.svg`` to ``book/_static``. The
landing page has the same picture in its HTML, where ``hero.js`` moves it. Nothing in it is made
up: the weights are those of the page *Paint a feature map*, and the library computes the rest.
"""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from explorer_paint import CHANNELS, SIDE, corners, made

STATIC = Path(__file__).resolve().parents[1] / "_static"
PICTURE = STATIC / "cbam.svg"
# The colours of book/_static/palette.css, for a picture that stands alone.
INK, QUIET, EDGE, BLUE, ORANGE = "#1a2330", "#51606f", "#728190", "#0072b2", "#d55e00"
AMBER = "#e69f00"  # orange at night
REDUCTION, KERNEL = 1, 7
BASE = 0.6  # how loud the four blobs are beside the spot
SPOT = (1, 4.0, 3.0)  # channel, row and column where the bright spot is before anybody moves it
WIDTH = 1.1  # of the spot, in places
GAP = 1  # between two sheets, in places
HEIGHT = CHANNELS * (SIDE + GAP) - GAP
BAR = 3.4  # how wide the four numbers of the channel map are, in places

Grid = NDArray[np.float64]


@dataclass(frozen=True)
class Steps:
    """What CBAM computes of one feature map: F, M_c, F', M_s and F''."""

    features: Grid  # (C, H, W), as refined and output
    channel: Grid  # (C,)
    refined: Grid
    spatial: Grid  # (H, W)
    output: Grid


def scene(channel: int, row: float, column: float) -> Grid:
    """Return features with a blob in each channel's corner, and a bright spot in one channel."""
    features = BASE * corners()
    rows, columns = np.indices((SIDE, SIDE))
    features[channel] += np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * WIDTH**2))
    return np.minimum(features, 1)


def attend(features: Grid) -> Steps:
    """Return what the library's CBAM makes of `features` with the painting page's weights."""
    module = made(REDUCTION, KERNEL).double()
    with torch.no_grad():
        x = torch.from_numpy(features)[None]
        channel = module.channel(x)
        spatial = module.spatial(channel * x)
        kept = [x, channel, channel * x, spatial, spatial * (channel * x)]
    return Steps(*(step.squeeze().numpy() for step in kept))


@cache
def start() -> Steps:
    """Return the steps as they are before anybody moves the spot."""
    return attend(scene(*SPOT))


def opacity(value: float) -> str:
    """Return a value as the strength of a cell, between 0 and 1, in few letters."""
    return f"{min(max(value, 0.0), 1.0):.2f}".rstrip("0").rstrip(".")


def sheet(grid: Grid, kind: str, top: float) -> str:
    """Return one grid of cells; `kind` is "feature" or "map", and says the colour."""
    cells = "".join(
        f'<rect x="{j}" y="{top + i:g}" width="1" height="1" fill-opacity="{opacity(value)}"/>'
        for (i, j), value in np.ndenumerate(grid)
    )
    edge = f'<rect class="frame" y="{top:g}" width="{SIDE}" height="{SIDE}"/>'
    return f'<g class="{kind}">{cells}</g>{edge}'


def sheets(grids: Grid) -> str:
    """Return the sheets of a feature map, one below the other."""
    return "".join(sheet(g, "feature", c * (SIDE + GAP)) for c, g in enumerate(grids))


def bars(values: Grid) -> str:
    """Return the channel map: one cell a channel, as high as the sheet that it multiplies."""
    parts = []
    for channel, value in enumerate(values):
        top = channel * (SIDE + GAP)
        box = f'y="{top}" width="{BAR}" height="{SIDE}"'
        parts.append(
            f'<g class="map"><rect {box} fill-opacity="{opacity(value)}"/></g>'
            f'<rect class="frame" {box}/>'
            f'<text x="{BAR / 2}" y="{top + SIDE / 2 + 0.45}">{value:.2f}</text>'
        )
    return "".join(parts)


def parts(steps: Steps) -> list[tuple[str, float, str]]:
    """Return name, width and drawing of F, M_c, F', M_s and F''."""
    middle = (HEIGHT - SIDE) / 2
    return [
        ("F", SIDE, sheets(steps.features)),
        ("M_c", BAR, bars(steps.channel)),
        ("F′", SIDE, sheets(steps.refined)),
        ("M_s", SIDE, sheet(steps.spatial, "map", middle)),
        ("F″", SIDE, sheets(steps.output)),
    ]


SIGNS = ("×", "=", "×", "=")
WORDS = ("features", "what", "", "where", "")


def named(name: str, tag: str, attributes: str = "") -> str:
    """Return a symbol in bold, what follows its underscore as a subscript in `tag`."""
    letter, _, below = name.partition("_")
    return letter + (f"<{tag}{attributes}>{below}</{tag}>" if below else "")


def page_picture() -> str:
    """Return the picture as HTML for the landing page, in the colours of its style sheet."""
    channel, row, column = SPOT
    columns = []
    for (name, width, drawing), word, sign in zip(parts(start()), WORDS, (*SIGNS, ""), strict=True):
        drawn = f'<svg viewBox="0 0 {width} {HEIGHT}" aria-hidden="true">{drawing}</svg>'
        label = f"<b>{named(name, 'sub')}</b><i>{word or '&nbsp;'}</i>"
        columns.append(f'<div class="gates-part" data-part="{name}">{label}{drawn}</div>')
        columns.append(f'<span class="gates-sign" aria-hidden="true">{sign}</span>' if sign else "")
    data = f'data-base="{BASE}" data-width="{WIDTH}" data-reduction="{REDUCTION}"'
    data += f' data-kernel="{KERNEL}" data-channel="{channel}" data-row="{row:g}"'
    return f'<div class="gates" {data} data-column="{column:g}">{"".join(columns)}</div>'


def picture() -> str:
    """Return the whole picture as an SVG that stands alone."""
    unit, space, top = 12, 2.2, 4.2
    x, drawn = 0.8, []
    for (name, width, drawing), word, sign in zip(parts(start()), WORDS, (*SIGNS, ""), strict=True):
        symbol = named(name, "tspan", ' dy=".4" font-size="70%"')
        drawn.append(
            f'<g transform="translate({x:.1f} {top})">\n'
            f'<text class="name" x="{width / 2}" y="-2.4">{symbol}</text>'
            f'<text class="word" x="{width / 2}" y="-.8">{word}</text>\n{drawing}\n'
            f'<text class="sign" x="{width + space / 2}" y="{HEIGHT / 2 + 0.6}">{sign}</text></g>'
        )
        x += width + space
    right, bottom = x - space + 0.8, top + HEIGHT + 0.8
    size = f'width="{right:.1f}" height="{bottom}"'
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right:.1f} {bottom}" \
width="{right * unit:.0f}" height="{bottom * unit:.0f}" role="img">
<title>CBAM multiplies a feature map by a channel map, then by a spatial map</title>
<style>
text {{ font: 1.35px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; text-anchor: middle;
  fill: {INK}; paint-order: stroke; stroke: #fff; stroke-width: .3px; }}
.name {{ font-size: 1.7px; font-weight: 700; }}
.word {{ fill: {QUIET}; }}
.sign {{ font-size: 2px; }}
.feature {{ fill: {BLUE}; }}
.map {{ fill: {ORANGE}; }}
.frame {{ fill: none; stroke: {EDGE}; stroke-width: .1px; }}
.feature, .map {{ shape-rendering: crispEdges; }}
</style>
<rect {size} rx=".7" fill="#fff"/>
{chr(10).join(drawn)}
</svg>
"""


# The book's mark: a column, one number a channel, and a grid, one a place; how strong each cell is.
MARK = {(0, 0): 0.45, (0, 1): 1, (0, 2): 0.45} | {
    (x, y): {0: 1.0, 1: 0.6}.get(abs(x - 2) + abs(y - 1), 0.3) for x in (1, 2, 3) for y in range(3)
}


def mark(blue: str, orange: str, cell: int = 14, view: str = "0 9 70 50") -> str:
    """Return the book's mark as an SVG."""
    cells = "".join(
        f'<rect x="{x * 17 + (4 if x else 0)}" y="{y * 17 + 10}" width="{cell}" height="{cell}" '
        f'rx="2" fill="{blue if x else orange}" fill-opacity="{strength}"/>\n'
        for (x, y), strength in MARK.items()
    )
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}">\n{cells}</svg>\n'


DRAWINGS = {
    "cbam.svg": picture,
    "logo.svg": lambda: mark(BLUE, ORANGE),
    "logo-dark.svg": lambda: mark("#56b4e9", AMBER),
    "favicon.svg": lambda: mark(
        "#1f8ccb", AMBER, 16, "0 0 71 71"
    ),  # the browser's bar is light or dark
}


if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (STATIC / name).write_text(draw(), encoding="utf-8", newline="\n")
    sys.exit(0)
