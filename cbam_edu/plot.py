"""The book's figures: plain arrays in, a `Figure` of matplotlib out, nothing left in pyplot.

Colours are those of M. Okabe and K. Ito, "Color Universal Design" (2008), and the map viridis: both
stay apart for colour-blind readers. The opaque white background reads the same on a dark page.
"""

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442"]
DIVERGING = {"RdBu", "PuOr", "BrBG", "PRGn", "PiYG", "RdYlBu", "coolwarm", "bwr", "seismic"}
WIDTH = 7.0  # inches; at 100 dots an inch, the 700 pixels of a page's column
STYLE: dict[Any, Any] = {"font.size": 10, "axes.titlesize": 10, "figure.facecolor": "white"} | {
    f"axes.spines.{side}": False for side in ("top", "right")
}


class Figure(matplotlib.figure.Figure):
    """A figure that a notebook shows once, as a PNG, whether or not pyplot is in use."""

    def savefig(self, *args: Any, **options: Any) -> None:
        """Write the figure, its titles and labels included."""
        super().savefig(*args, **{"bbox_inches": "tight", **options})

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        drawn, png = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png")
        picture = Image.open(drawn).convert("RGB")
        picture.save(png, "PNG", optimize=True)
        if png.tell() > 60_000:  # a notebook keeps all its figures: rather 256 colours than more
            png = io.BytesIO()
            picture.quantize(256).save(png, "PNG", optimize=True)
        return {"image/png": base64.b64encode(png.getvalue()).decode()}


def _array(name: str, value: Any, ndim: int) -> np.ndarray:
    """Return `value` as a non-empty array of `ndim` dimensions and real numbers."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value  # numpy has no bfloat16
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must be an array; its rows differ in length") from None
    if array.ndim != ndim or array.size == 0 or array.dtype.kind not in "biuf":
        raise ValueError(
            f"{name} must be a non-empty {ndim}-D array of real numbers, "
            f"got shape {array.shape} of {array.dtype}"
        )
    return array


def _images(images: Any) -> np.ndarray:
    """Return (N, 3, H, W) uint8 as (N, H, W, 3)."""
    array = _array("images", images, 4)
    if array.shape[1] != 3 or array.dtype != np.uint8:
        raise ValueError(
            f"images must be (N, 3, H, W) uint8, got shape {array.shape} of {array.dtype}"
        )
    return array.transpose(0, 2, 3, 1)


def _titles(titles: Sequence[str] | None, count: int, width: float) -> list[str]:
    """Return one title each, broken into lines of `width` inches."""
    found = [""] * count if titles is None else [str(title) for title in titles]
    if isinstance(titles, str) or len(found) != count:
        raise ValueError(f"titles must be a list of {count} titles, got {titles!r}")
    return ["\n".join(textwrap.wrap(t, max(6, int(width * 72 / 5.2)))) for t in found]


def _checked(series: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(series, Mapping) or not 1 <= len(series) <= len(PALETTE):
        raise ValueError(f"series must be a dict of 1 to 8 names and their values, got {series!r}")
    return series


def _legend(axes: Axes) -> None:
    """Name the series above the axes, where the legend covers nothing."""
    names = axes.get_legend_handles_labels()[1]
    if len(names) > 1:
        columns = max(1, min(len(names), 90 // (max(map(len, names)) + 8)))
        axes.legend(
            frameon=False, fontsize=9, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1)
        )


def _chart(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 3.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(axis="y", alpha=0.3)
    return figure, axes


def _tiles(
    shapes: Sequence[tuple[int, int]], cell: float, gaps: tuple[float, float], columns: int = 99
) -> tuple[Figure, list[Axes]]:
    """Place one axes per (h, w), `cell` inches a unit, in lines of at most `columns`."""
    corners: list[tuple[float, float]] = []
    x = y = line = used = 0.0
    for i, (h, w) in enumerate(shapes):
        if i % columns == 0 or x + w * cell > WIDTH - 1 + 1e-6:  # a new line
            x, y, line = 0.0, y + line + gaps[1] * (i > 0), 0.0
        corners.append((x, y))
        used, line = max(used, x + w * cell), max(line, h * cell)
        x += w * cell + gaps[0]
    height = y + line
    figure = Figure(figsize=(used, height), dpi=100)
    tiles = []
    for (x, y), (h, w) in zip(corners, shapes, strict=True):
        box = (x / used, 1 - (y + h * cell) / height, w * cell / used, h * cell / height)
        tiles.append(figure.add_axes(box))
    return figure, tiles


def _colour_bar(figure: Figure, norm: Normalize, cmap: str, label: str = "") -> None:
    """Put the scale of all axes to the right of them."""
    width, height = figure.get_size_inches()
    side = min(height, 2.5)  # inches
    axes = figure.add_axes((1 + 0.2 / width, 1 - side / height, 0.13 / width, side / height))
    ticks = MaxNLocator(max(1, int(side * 3)), steps=[1, 2, 5, 10])
    bar = figure.colorbar(ScalarMappable(norm, cmap), cax=axes, ticks=ticks)
    bar.outline.set_visible(False)
    bar.set_label(label)


def _limits(values: np.ndarray, cmap: str, vmin: float | None, vmax: float | None) -> Normalize:
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if cmap.removesuffix("_r") in DIVERGING:  # the middle colour means zero
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    low, high = low if vmin is None else vmin, high if vmax is None else vmax
    if not low <= high:
        raise ValueError(f"vmin must be below vmax, got {low} and {high}")
    return Normalize(low, high if low < high else low + 1)


def _number_format(values: np.ndarray) -> str:
    largest = float(np.abs(values).max(initial=0))
    if np.all(values == np.round(values)) and largest < 1e5:
        return ".0f"
    if not 0.01 <= largest < 1e4:
        return ".1e"
    return f".{max(0, 2 - int(math.log10(max(1, largest))))}f"


@matplotlib.rc_context(STYLE)
def grids(
    arrays: Sequence[Any],
    titles: Sequence[str] | None = None,
    *,
    numbers: bool = True,
    cmap: str = "viridis",
    vmin: float | None = None,
    vmax: float | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
) -> Figure:
    """Draw 2-D arrays side by side on one colour scale, with the value in every cell.

    Parameters
    ----------
    arrays : sequence of (h, w) arrays
        Of any sizes; those that find no room beside the others go to the next line.
    titles : sequence of str, optional
        One an array.
    numbers : bool
        Whether the values are written; not for arrays of more than some 20 columns.
    cmap : str
        A map of matplotlib; one with two ends, such as "RdBu_r", has its middle at zero.
    vmin, vmax : float, optional
        Ends of the colour scale, by default the smallest and the largest value of all arrays.
    xlabel, ylabel : str, optional
        What the columns and the rows are.

    Raises
    ------
    ValueError
        For what is no non-empty 2-D array, and for titles, limits or a map that do not fit.
    """
    data = [_array("each of arrays", array, 2).astype(float) for array in arrays]
    if not data:
        raise ValueError("arrays must hold at least one 2-D array, got none")
    if cmap not in matplotlib.colormaps:
        raise ValueError(f"cmap must be a map of matplotlib, such as viridis, got {cmap!r}")
    values = np.concatenate([array[np.isfinite(array)] for array in data])
    norm, spec = _limits(values, cmap, vmin, vmax), _number_format(values)
    longest = max(len(f"{v:{spec}}") for array in data for v in array.flat)
    columns, gap = max(array.shape[1] for array in data), 0.5
    size = 7 / 72 * 0.62 * (longest + 0.6) if numbers else 1.1 / max(*data[0].shape, columns)
    if size * columns > WIDTH - 1:
        raise ValueError(
            f"{columns} columns leave no room for numbers of {longest} signs; pass numbers=False"
        )
    room = (WIDTH - 1 - gap * (len(data) - 1)) / sum(array.shape[1] for array in data)
    largest = 0.55 if numbers else 2.2 / max(side for array in data for side in array.shape)
    cell = max(size, min(largest, room))  # inches
    figure, tiles = _tiles(
        [(a.shape[0], a.shape[1]) for a in data], cell, (gap, 0.8 + 0.2 * bool(xlabel))
    )
    font = min(10.0, cell * 72 / 0.62 / (longest + 0.6))
    names = _titles(titles, len(data), columns * cell + 0.8 * gap)
    for axes, array, title in zip(tiles, data, names, strict=True):
        picture = axes.imshow(array, cmap=cmap, norm=norm, aspect="auto", interpolation="nearest")
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        axes.tick_params(length=0, labelsize=8)
        axes.spines[:].set_visible(False)
        for axis, count in ((axes.xaxis, array.shape[1]), (axes.yaxis, array.shape[0])):
            step = max(1, math.ceil(0.22 / cell), math.ceil(count / 16))
            axis.set_ticks(range(0, count, step))
        for (row, column), value in np.ndenumerate(array) if numbers else ():
            red, green, blue, shown = picture.to_rgba(value)
            dark = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.18 * shown
            colour = "white" if dark else "black"
            text = f"{value:{spec}}"
            axes.text(column, row, text, size=font, color=colour, ha="center", va="center")
    _colour_bar(figure, norm, cmap)
    return figure


def _pictures(axes: Sequence[Axes], pictures: Any, titles: Sequence[str]) -> None:
    for box, picture, title in zip(axes, pictures, titles, strict=True):
        box.imshow(picture, aspect="auto", interpolation="nearest")
        box.set(title=title, xticks=[], yticks=[])
        box.spines[:].set_visible(False)


@matplotlib.rc_context(STYLE)
def images(
    images: Any, titles: Sequence[str] | None = None, *, columns: int | None = None
) -> Figure:
    """Draw images, (N, 3, H, W) uint8, `columns` to a line (by default as many as 8).

    Raises ValueError for other images, and for titles or columns that do not fit.
    """
    pixels = _images(images)
    n, h, w = pixels.shape[:3]
    columns = min(n, 8) if columns is None else columns
    if type(columns) is not int or not 1 <= columns <= 20:
        raise ValueError(f"columns must be an integer from 1 to 20, got {columns!r}")
    width = min(1.8, (WIDTH - 1) / columns - 0.1)  # inches
    names = _titles(titles, n, width)
    gap = 0.12 + 0.18 * max(1 + name.count("\n") if name else 0 for name in names)
    figure, tiles = _tiles([(h, w)] * n, width / w, (0.1, gap), columns)
    _pictures(tiles, pixels, names)
    return figure


@matplotlib.rc_context(STYLE)
def overlay(images: Any, maps: Any, titles: Sequence[str] | None = None, *, label: str) -> Figure:
    """Draw, below one another, each image, its map and the map over the grey image.

    Parameters
    ----------
    images : (N, 3, H, W) uint8
        At most 8.
    maps : N arrays, (h, w) or (1, h, w)
        Between 0 and 1, of any size; drawn at the size of the image, linearly interpolated.
    titles : sequence of str, optional
        One an image.
    label : str
        What a map shows; it stands beside the colour bar, whose scale is 0 to 1 for all maps.

    Raises
    ------
    ValueError
        For images, maps or titles of another kind or number.
    """
    pixels = _images(images)
    n, h, w = pixels.shape[:3]
    if n > 8 or len(maps) != n:
        raise ValueError(f"one map for each of at most 8 images: got {n} images, {len(maps)} maps")
    flat = [
        _array("each of maps", m[0] if np.shape(m)[:-2] == (1,) else m, 2).astype(float)
        for m in maps
    ]
    if not all(m.min() >= -1e-6 and m.max() <= 1 + 1e-6 for m in flat):
        raise ValueError("maps must lie between 0 and 1; divide each by its largest value")
    width = min(1.6, (WIDTH - 1) / n - 0.1)  # inches
    figure, tiles = _tiles([(h, w)] * (3 * n), width / w, (0.1, 0.1), n)
    _pictures(tiles[:n], pixels, _titles(titles, n, width))
    grey = (pixels @ np.array([0.299, 0.587, 0.114]) / 255)[..., None].repeat(3, -1)
    _pictures(tiles[n:], np.concatenate([grey, grey]), [""] * (2 * n))
    norm = Normalize(0, 1)
    for i, values in enumerate(flat):
        tensor = torch.from_numpy(values)[None, None]
        large = F.interpolate(tensor, (h, w), mode="bilinear", antialias=True)[0, 0].numpy()
        for axes, alpha in ((tiles[n + i], 1.0), (tiles[2 * n + i], 0.6)):
            axes.imshow(large, aspect="auto", norm=norm, cmap="viridis", alpha=alpha)
    for axes, name in zip(tiles[::n], ("image", "map", "overlay"), strict=True):
        axes.set_ylabel(name)
    _colour_bar(figure, norm, "viridis", label)
    return figure


@matplotlib.rc_context(STYLE)
def bars(
    series: Mapping[str, Any], *, xlabel: str, ylabel: str, labels: Sequence[str] | None = None
) -> Figure:
    """Draw grouped bars: the i-th values of all series, (n,) each, stand at the i-th of `labels`.

    Raises ValueError for series or labels that differ in length, and for more than 8 series.
    """
    data = {str(name): _array(f"series {name!r}", y, 1) for name, y in _checked(series).items()}
    count = len(next(iter(data.values())))
    names = [str(i) for i in range(count)] if labels is None else [str(label) for label in labels]
    if any(len(y) != count for y in data.values()) or len(names) != count:
        sizes = {name: len(y) for name, y in data.items()} | {"labels": len(names)}
        raise ValueError(f"series and labels must be of one length, got {sizes}")
    figure, axes = _chart(xlabel, ylabel)
    width = 0.8 / len(data)
    for i, (name, y) in enumerate(data.items()):
        place = np.arange(count) + (i - (len(data) - 1) / 2) * width
        axes.bar(place, y.astype(float), width * 0.95, label=name, color=PALETTE[i])
    if labels is not None or count <= 20:
        crowded = max(map(len, names)) * count > 80
        axes.set_xticks(
            range(count), names, rotation=30 * crowded, ha="right" * crowded or "center"
        )
    if any((y < 0).any() for y in data.values()):
        axes.axhline(0, color="0.3", linewidth=0.8)
    _legend(axes)
    return figure


@matplotlib.rc_context(STYLE)
def lines(
    series: Mapping[str, tuple[Any, Any]],
    *,
    xlabel: str,
    ylabel: str,
    logx: bool = False,
    logy: bool = False,
) -> Figure:
    """Draw a line through the points (x, y), (n,) each, of every series.

    Raises ValueError for x and y of different length, for values that a logarithmic axis cannot
    show, and for more than 8 series.
    """
    figure, axes = _chart(xlabel, ylabel)
    for i, (name, points) in enumerate(_checked(series).items()):
        if len(points) != 2:
            raise ValueError(f"series {name!r} must be a pair (x, y), got {len(points)} items")
        x, y = (_array(f"{part} of {name!r}", v, 1) for part, v in zip("xy", points, strict=True))
        if len(x) != len(y):
            raise ValueError(f"x and y of {name!r} differ in length: {len(x)} and {len(y)}")
        if (logx and x.min() <= 0) or (logy and y.min() <= 0):
            raise ValueError(f"{name!r} has a value of 0 or less, which no logarithmic axis shows")
        marker = "osD^vPX*"[i] if len(x) <= 20 else None  # told apart without colour as well
        style = ("-", "--", "-.", ":")[i % 4]
        axes.plot(x, y, style, marker=marker, markersize=4, label=str(name), color=PALETTE[i])
    axes.set(xscale="log" if logx else "linear", yscale="log" if logy else "linear")
    _legend(axes)
    return figure


@matplotlib.rc_context(STYLE)
def differences(
    panels: Mapping[str, Mapping[str, tuple[float, float, float, float, float]]], *, label: str
) -> Figure:
    """Draw differences with their intervals, a line each, panel below panel.

    Parameters
    ----------
    panels : mapping
        A panel's title: its differences by name, each ``(value, low, high, wider low, wider high)``
        in the units of `label`; a thick line goes from low to high, a thin one over the wider
        interval, and a grey line stands at zero.
    label : str
        The quantity and its unit.

    Raises
    ------
    ValueError
        For no panels, a panel with no differences, and for what is not five numbers.
    """
    if not panels or not all(panels.values()):
        raise ValueError("panels must hold at least one difference each, got none")
    numbers = {
        title: _array(f"panel {title!r}", list(panel.values()), 2)
        for title, panel in panels.items()
    }
    for title, rows in numbers.items():
        if rows.shape[1] != 5:
            raise ValueError(
                f"each of panel {title!r} must be five numbers (value, low, high, wider low, wider "
                f"high), got {rows.shape[1]}"
            )
    counts = [len(panel) for panel in panels.values()]
    height = 0.26 * sum(counts) + 0.55 * len(counts) + 0.6
    figure = Figure(figsize=(WIDTH, height), dpi=100, layout="constrained")
    axes_of = figure.subplots(
        len(panels), squeeze=False, sharex=True, gridspec_kw={"height_ratios": counts}
    )[:, 0]
    for axes, (title, panel) in zip(axes_of, panels.items(), strict=True):
        places = np.arange(len(panel))[::-1]
        value, low, high, outer, upper = numbers[title].T
        axes.axvline(0, color="0.6", linewidth=1)
        axes.hlines(places, outer, upper, color=PALETTE[0], linewidth=1)
        axes.hlines(places, low, high, color=PALETTE[0], linewidth=4)
        axes.plot(value, places, "o", color="black", markersize=5)
        axes.set_yticks(places, list(panel))
        axes.set_ylim(-0.6, len(panel) - 0.4)
        axes.set_title(title, loc="left")
        axes.grid(axis="x", alpha=0.3)
    axes_of[-1].set_xlabel(label)
    return figure


@matplotlib.rc_context(STYLE)
def roofline(points: Mapping[str, tuple[float, float]], *, bandwidth: float, rate: float) -> Figure:
    """Draw how fast pieces of work run, under the roof of the machine.

    A piece of work with an intensity of I FLOPs a byte can do at most ``min(I * bandwidth, rate)``
    FLOPs a second: below the ridge, at ``rate / bandwidth``, memory is the limit. The model is that
    of S. Williams, A. Waterman, D. Patterson, "Roofline" (Communications of the ACM, 2009).

    Parameters
    ----------
    points : dict of (float, float)
        For each piece of work: its intensity in FLOPs a byte, and the FLOPs a second it reached.
    bandwidth : float
        Bytes a second that the memory moves.
    rate : float
        FLOPs a second of which the processor is capable.

    Raises
    ------
    ValueError
        For numbers that are not finite and above 0, and for more than 8 points.
    """
    machine = {"bandwidth": bandwidth, "rate": rate}
    for name, value in machine.items():
        _positive(name, value)
    checked = {str(name): _point(str(name), pair) for name, pair in _checked(points).items()}
    ridge = rate / bandwidth
    intensities = [ridge, *(x for x, _ in checked.values())]
    ends = np.array([min(intensities) / 3, ridge, max(intensities) * 3])
    figure, axes = _chart("intensity (FLOPs a byte)", "GFLOPs a second")
    label = f"roof: {bandwidth / 1e9:.3g} GB/s, {rate / 1e9:.3g} GFLOPs/s"
    axes.plot(ends, np.minimum(ends * bandwidth, rate) / 1e9, color="0.2", label=label)
    axes.axvline(ridge, color="0.6", linestyle=":", linewidth=1)
    axes.set(xscale="log", yscale="log")
    for i, (name, (x, y)) in enumerate(checked.items()):
        axes.plot([x], [y / 1e9], "osD^vPX*"[i], markersize=7, label=name, color=PALETTE[i])
    _legend(axes)
    return figure


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def _point(name: str, pair: tuple[float, float]) -> tuple[float, float]:
    if len(pair) != 2:
        raise ValueError(f"point {name!r} must be a pair (intensity, rate), got {len(pair)} items")
    for part, value in zip(("intensity", "rate"), pair, strict=True):
        _positive(f"the {part} of {name!r}", value)
    return float(pair[0]), float(pair[1])
