"""Draw the book's picture, ``book/_static/cbam.svg``: a feature map, and what two gates do to it.

::

    python book/_ext/diagram.py

The values are made up, but the products are products: what is drawn on the right is what is drawn
on the left times the map between them.
"""

import sys
from pathlib import Path

PICTURE = Path(__file__).resolve().parents[1] / "_static" / "cbam.svg"
CELL = 10
SIDE = 6  # places along an edge
STEP = SIDE * CELL + 10  # from one channel's sheet to the next
WIDE = STEP + SIDE * CELL  # four sheets, two by two
INK, BLUE, ORANGE = (34, 34, 34), (0, 114, 178), (213, 94, 0)  # Okabe and Ito's
CENTRES = (86, 280, 474)
CHANNEL_MAP = [0.95, 0.15, 0.85, 0.10]

Grid = list[list[float]]


def blob(row: float, column: float, width: float) -> Grid:
    """Return a sheet of places that lights up around one of them."""
    return [
        [2 ** (-((i - row) ** 2 + (j - column) ** 2) / width**2) for j in range(SIDE)]
        for i in range(SIDE)
    ]


FEATURES = [
    [
        [min(1.0, a + 0.75 * b) for a, b in zip(*rows, strict=True)]
        for rows in zip(x, y, strict=True)
    ]
    for x, y in (
        (blob(2, 2, 1.3), blob(5, 5, 0.8)),
        (blob(0, 5, 1.8), blob(4, 0, 1.5)),
        (blob(3, 3, 1.2), blob(0, 0, 0.9)),
        (blob(5, 2, 1.6), blob(1, 1, 1.4)),
    )
]
SPATIAL_MAP = [[min(0.95, 0.06 + v) for v in row] for row in blob(2.5, 2.5, 1.5)]


def times(sheets: list[Grid], gate: list[Grid]) -> list[Grid]:
    """Return `sheets` times `gate`, place by place."""
    return [
        [[a * b for a, b in zip(*rows, strict=True)] for rows in zip(x, y, strict=True)]
        for x, y in zip(sheets, gate, strict=True)
    ]


def mix(colour: tuple[int, int, int], value: float) -> str:
    """Return `colour` on white, as strong as `value`, between 0 and 1."""
    return "#" + "".join(f"{round(255 + (c - 255) * value):02x}" for c in colour)


def sheet(x: float, y: float, grid: Grid, colour: tuple[int, int, int], cell: int = CELL) -> str:
    """Return a grid of cells with its upper left corner at (x, y)."""
    height, width = len(grid) * cell, len(grid[0]) * cell
    cells = "".join(
        f'<path fill="{mix(colour, value)}" d="M{x + j * cell:g} {y + i * cell:g}'
        f'h{cell}v{cell}h-{cell}z"/>'
        for i, row in enumerate(grid)
        for j, value in enumerate(row)
    )
    frame = f'<rect x="{x:g}" y="{y:g}" width="{width}" height="{height}" class="frame"/>'
    return cells + frame


def channels(x: float, y: float, sheets: list[Grid]) -> str:
    """Return the four sheets of a feature map, two by two, centred at `x`."""
    left = x - WIDE / 2
    return "\n".join(
        sheet(left + i % 2 * STEP, y + i // 2 * STEP, s, BLUE) for i, s in enumerate(sheets)
    )


def numbers(x: float, y: float, gate: list[float]) -> str:
    """Return a map of four numbers, laid out as the sheets that they multiply."""
    left, size = x - WIDE / 2, SIDE * CELL
    parts = []
    for i, value in enumerate(gate):
        at = left + i % 2 * STEP, y + i // 2 * STEP
        parts.append(sheet(*at, [[value]], ORANGE, cell=size))
        parts.append(text(at[0] + size / 2, at[1] + size / 2 + 7, f"{value:.2f}", "number"))
    return "\n".join(parts)


def text(x: float, y: float, words: str, kind: str = "label") -> str:
    """Return words centred at `x`; an underscore starts a subscript of one letter."""
    name, _, rest = words.partition("_")
    if rest:
        small = f'<tspan dy="5" font-size="70%">{rest[0]}</tspan>'
        words = f'{name}{small}<tspan dy="-5">{rest[1:]}&#8203;</tspan>'
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{words}</text>'


def row(y: float, before: list[Grid], gate: str, after: list[Grid], labels: list[str]) -> str:
    """Return one line of the picture: feature map, gate, product, with names and shapes below."""
    below = y + WIDE + 28
    parts = [channels(CENTRES[0], y, before), gate, channels(CENTRES[2], y, after)]
    for i, sign in enumerate("×="):
        parts.append(text((CENTRES[i] + CENTRES[i + 1]) / 2, y + WIDE / 2 + 10, sign, "sign"))
    for i, label in enumerate(labels):
        parts.append(text(CENTRES[i % 3], below + 24 * (i // 3), label, ("name", "label")[i // 3]))
    return "\n".join(parts)


def picture() -> str:
    """Return the whole picture as SVG."""
    refined = times(FEATURES, [[[m] * SIDE for _ in range(SIDE)] for m in CHANNEL_MAP])
    final = times(refined, [SPATIAL_MAP] * len(refined))
    first, second = 20, 264  # where the two lines begin
    size = 16
    square = sheet(
        CENTRES[1] - SIDE * size / 2, second + (WIDE - SIDE * size) / 2, SPATIAL_MAP, ORANGE, size
    )
    shapes = ["C × H × W", "C × 1 × 1: what", "C × H × W"]
    what = row(
        first,
        FEATURES,
        numbers(CENTRES[1], first, CHANNEL_MAP),
        refined,
        ["F", "M_c", "F′", *shapes],
    )
    shapes[1] = "1 × H × W: where"
    where = row(second, refined, square, final, ["F′", "M_s", "F″", *shapes])
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 560 480" role="img">
<title>CBAM multiplies a feature map by a channel map, then by a spatial map</title>
<style>
text {{ font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; text-anchor: middle;
  fill: {mix(INK, 1)}; }}
.name {{ font-size: 20px; font-weight: 700; }}
.label {{ font-size: 17px; }}
.sign {{ font-size: 30px; }}
.number {{ font-size: 18px; }}
.frame {{ fill: none; stroke: {mix(INK, 1)}; stroke-width: 1; }}
</style>
<rect width="560" height="480" rx="8" fill="#fff"/>
{what}
{where}
</svg>
"""


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    sys.exit(0)
