"""The figures: what they show, that they read, and that they leave pyplot alone."""

import base64
import functools
import io
import itertools
import sys

import matplotlib
import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib.colors import to_rgb
from PIL import Image

from cbam_edu import plot

RNG = np.random.default_rng(0)
PHOTOS = RNG.integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
PANELS = {
    "neighbours: minus none": {
        "se": (0.1, -0.3, 0.5, -0.6, 0.8),
        "cbam": (0.4, 0.1, 0.7, 0.0, 0.9),
    },
    "order: minus a rather long name": {"parallel": (-0.2, -0.9, 0.5, -1.1, 0.7)},
}

FIGURES = {
    "grids": lambda: plot.grids([np.eye(3), torch.randn(2, 4)], ["a", "b"], xlabel="x", ylabel="y"),
    "grids, large": lambda: plot.grids(list(RNG.random((6, 32, 32))), numbers=False),
    "grids, many numbers": lambda: plot.grids(list(RNG.random((4, 8, 8)))),
    "images": lambda: plot.images(PHOTOS, ["ship", "cat", "a title of many words"]),
    "bars": lambda: plot.bars({"mean": [1, 2], "max": [3, -4]}, xlabel="channel", ylabel="value"),
    "overlay": lambda: plot.overlay(PHOTOS, RNG.random((3, 1, 8, 8)), label="attention"),
    "lines": lambda: plot.lines({"loss": ([1, 2, 3], [3, 2, 1])}, xlabel="epoch", ylabel="loss"),
    "roofline": lambda: plot.roofline({"ReLU": (0.1, 1e9)}, bandwidth=2e10, rate=1e11),
    "differences": lambda: plot.differences(PANELS, label="difference, percentage points"),
}


def png(figure) -> bytes:
    return base64.b64decode(figure._repr_mimebundle_()["image/png"])


@functools.cache
def shown(name: str) -> tuple[matplotlib.figure.Figure, bytes]:
    figure = FIGURES[name]()
    return figure, png(figure)


# ---- Every figure


@pytest.mark.parametrize("name", FIGURES)
def test_a_notebook_shows_a_small_white_picture_of_the_pages_width(name):
    data = shown(name)[1]
    assert len(data) < 60_000
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    assert picture.width <= 760
    for corner in ((0, 0), (picture.width - 1, picture.height - 1)):
        assert picture.getpixel(corner) == (255, 255, 255, 255)
    assert len(np.unique(np.asarray(picture.convert("L")))) > 10  # something is drawn


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_left_in_pyplot_or_in_the_settings(name, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    settings = dict(dict.items(matplotlib.rcParams))  # reading the setting "backend" starts pyplot
    figure = FIGURES[name]()
    png(figure)
    assert isinstance(figure, matplotlib.figure.Figure)
    assert "matplotlib.pyplot" not in sys.modules
    assert dict(dict.items(matplotlib.rcParams)) == settings


def test_a_notebook_shows_it_once():
    shows, _ = DisplayFormatter().format(shown("lines")[0])
    assert set(shows) == {"image/png", "text/plain"}


@pytest.mark.parametrize("name", FIGURES)
def test_text_is_readable(name):
    texts = [t for t in shown(name)[0].findobj(matplotlib.text.Text) if t.get_text()]
    assert texts
    assert min(t.get_fontsize() for t in texts) >= 7


def test_a_saved_figure_keeps_its_titles(tmp_path):
    heights = []
    for titles in (["a", "b", "c"], None):
        plot.images(PHOTOS, titles).savefig(tmp_path / "figure.png")
        with Image.open(tmp_path / "figure.png") as picture:
            heights.append(picture.height)
    assert heights[0] > heights[1] + 10


def test_a_picture_of_many_colours_is_made_small():
    photos = RNG.integers(0, 256, (8, 3, 96, 96), dtype=np.uint8)
    figure = plot.images(photos)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    assert len(png(figure)) < len(drawn.getvalue()) / 2


def test_the_palette_is_okabe_and_itos():
    assert len(set(plot.PALETTE)) == 8
    assert plot.PALETTE[0] == "#0072B2"  # blue
    assert plot.PALETTE[4] == "#D55E00"  # vermilion


# ---- grids


def cells(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_grids_writes_every_value_in_its_cell():
    axes = plot.grids([[[0.5, -1.25], [2, 0]]]).axes[0]
    assert cells(axes) == ["0.50", "-1.25", "2.00", "0.00"]
    assert [text.get_position() for text in axes.texts] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.5, -1.25], [2, 0]])
    assert cells(plot.grids([[[0.5]]], numbers=False).axes[0]) == []


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ([3, -12], ["3", "-12"]),
        ([True, False], ["1", "0"]),
        ([12.34, 0.5], ["12.3", "0.5"]),
        ([123.4, 0.5], ["123", "0"]),
        ([1e-3, 2e-3], ["1.0e-03", "2.0e-03"]),
        ([12345.6, 1], ["1.2e+04", "1.0e+00"]),
        ([0.5, float("nan")], ["0.50", "nan"]),
        (torch.tensor([0.5, 1.0], dtype=torch.bfloat16, requires_grad=True), ["0.50", "1.00"]),
    ],
)
def test_grids_writes_numbers_of_a_fitting_length(value, written):
    row = value[None] if isinstance(value, torch.Tensor) else [value]
    assert cells(plot.grids([row]).axes[0]) == written


def luminance(colour) -> float:
    """Return the relative luminance of WCAG 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("cmap", ["viridis", "cividis", "RdBu_r", "gray"])
def test_numbers_stand_out_from_their_cells(cmap):
    axes = plot.grids([np.linspace(-1, 1, 64).reshape(8, 8)], cmap=cmap).axes[0]
    picture = axes.images[0]
    for text, value in zip(axes.texts, picture.get_array().ravel(), strict=True):
        pair = luminance(to_rgb(text.get_color())), luminance(picture.to_rgba(value))
        contrast = (max(pair) + 0.05) / (min(pair) + 0.05)
        assert contrast >= 4.5, value  # WCAG 2.2, success criterion 1.4.3


def test_grids_share_one_scale():
    figure = plot.grids([[[0.0, 1.0]], [[5.0]]])
    assert [axes.images[0].get_clim() for axes in figure.axes[:2]] == [(0, 5), (0, 5)]
    assert len(figure.axes) == 3  # one colour bar
    given = plot.grids([[[0.0, 1.0]]], vmin=-1, vmax=3).axes[0].images[0]
    assert given.get_clim() == (-1, 3)
    constant = plot.grids([[[2.0]]]).axes[0].images[0]
    assert constant.get_clim() == (2, 3)


def test_a_map_with_two_ends_has_its_middle_at_zero():
    assert plot.grids([[[-1.0, 3.0]]], cmap="RdBu_r").axes[0].images[0].get_clim() == (-3, 3)


def test_grids_that_find_no_room_go_to_the_next_line():
    figure = plot.grids([np.zeros((2, 12)) + 0.5] * 2)
    one, other = (axes.get_position() for axes in figure.axes[:2])
    assert other.y1 < one.y0
    figure = plot.grids([np.zeros((2, 3)) + 0.5] * 2)
    one, other = (axes.get_position() for axes in figure.axes[:2])
    assert other.x0 > one.x1


def test_grids_cells_are_squares_of_one_size():
    figure = plot.grids([np.zeros((2, 3)), np.zeros((4, 1))])
    width, height = figure.get_size_inches()
    sides = set()
    for axes, (h, w) in zip(figure.axes, [(2, 3), (4, 1)], strict=False):
        box = axes.get_position()
        sides |= {round(box.width * width / w, 4), round(box.height * height / h, 4)}
    assert len(sides) == 1


# ---- images and overlay


def test_images_are_drawn_as_they_are():
    figure = plot.images(torch.from_numpy(PHOTOS), ["a", "b", "c"], columns=2)
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c"]
    for axes, photo in zip(figure.axes, PHOTOS, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), photo.transpose(1, 2, 0))
    first, second, third = (axes.get_position() for axes in figure.axes)
    assert second.x0 > first.x1
    assert third.y1 < first.y0
    assert third.x0 == first.x0


def test_overlay_draws_image_map_and_both():
    maps = [torch.rand(4, 4), torch.rand(1, 8, 8), np.full((2, 2), 0.25)]
    figure = plot.overlay(PHOTOS, maps, ["a", "b", "c"], label="spatial attention")
    pictures, drawn, both = figure.axes[:3], figure.axes[3:6], figure.axes[6:9]
    assert [axes.get_title() for axes in pictures] == ["a", "b", "c"]
    assert [row[0].get_ylabel() for row in (pictures, drawn, both)] == ["image", "map", "overlay"]
    np.testing.assert_array_equal(pictures[1].images[0].get_array(), PHOTOS[1].transpose(1, 2, 0))
    for axes in drawn + both:
        assert axes.images[-1].get_clim() == (0, 1)
        assert axes.images[-1].get_array().shape == (32, 32)
    np.testing.assert_allclose(drawn[2].images[-1].get_array(), 0.25)
    assert drawn[0].images[-1].get_alpha() == 1
    assert both[0].images[-1].get_alpha() < 1
    grey = both[0].images[0].get_array()
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    assert figure.axes[9].get_ylabel() == "spatial attention"


def test_overlay_puts_the_map_where_it_belongs():
    corner = np.zeros((4, 4))
    corner[0, 3] = 1  # top right
    large = plot.overlay(PHOTOS[:1], [corner], label="map").axes[1].images[-1].get_array()
    assert np.unravel_index(large.argmax(), large.shape)[0] < 8
    assert np.unravel_index(large.argmax(), large.shape)[1] >= 24


# ---- bars and lines


def test_bars_have_the_heights_of_the_values():
    series = {"mean": np.array([1, 2, 3]), "max": torch.tensor([4.0, -5.0, 6.0])}
    axes = plot.bars(series, xlabel="channel", ylabel="value", labels=["r", "g", "b"]).axes[0]
    for bars, values in zip(axes.containers, series.values(), strict=True):
        assert [bar.get_height() for bar in bars] == list(values)
    colours = [bars[0].get_facecolor()[:3] for bars in axes.containers]
    assert colours == [to_rgb(colour) for colour in plot.PALETTE[:2]]
    edges = sorted((b.get_x(), b.get_x() + b.get_width()) for bars in axes.containers for b in bars)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(edges))
    assert [text.get_text() for text in axes.get_xticklabels()] == ["r", "g", "b"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mean", "max"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("channel", "value")


def test_one_series_needs_no_legend():
    assert plot.bars({"mean": [1]}, xlabel="x", ylabel="y").axes[0].get_legend() is None
    assert plot.lines({"a": ([1], [2])}, xlabel="x", ylabel="y").axes[0].get_legend() is None


def test_long_labels_of_bars_are_turned():
    names = ["a rather long name"] * 8
    axes = plot.bars({"a": range(8)}, xlabel="x", ylabel="y", labels=names).axes[0]
    assert {text.get_rotation() for text in axes.get_xticklabels()} == {30}


def test_lines_go_through_the_points():
    x = torch.linspace(1, 100, 50)
    series = {"root": (x, x.sqrt()), "square": (x, x**2)}
    axes = plot.lines(series, xlabel="x", ylabel="y", logx=True, logy=True).axes[0]
    for line, (a, b) in zip(axes.lines, series.values(), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.stack([a, b], 1))
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle()
    axes = plot.lines(series, xlabel="x", ylabel="y").axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")


def test_eight_lines_are_told_apart():
    series = {str(i): ([0, 1], [i, i]) for i in range(8)}
    lines = plot.lines(series, xlabel="x", ylabel="y").axes[0].lines
    assert len({line.get_color() for line in lines}) == 8
    assert len({line.get_marker() for line in lines}) == 8


def test_roofline_rises_with_the_bandwidth_and_ends_at_the_rate():
    points = {"ReLU": (0.125, 1e9), "convolution": (30.0, 6e10)}
    axes = plot.roofline(points, bandwidth=2e10, rate=1e11).axes[0]
    roof, ridge, *drawn = axes.lines
    x, y = roof.get_xdata(), roof.get_ydata()
    assert x[1] == ridge.get_xdata()[0] == 1e11 / 2e10
    np.testing.assert_allclose(y, [x[0] * 20, 100, 100])
    assert x[0] < 0.125
    assert x[-1] > 30
    found = {line.get_label(): line.get_xydata()[0].tolist() for line in drawn}
    assert found == {"ReLU": [0.125, 1.0], "convolution": [30.0, 60.0]}
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["roof: 20 GB/s, 100 GFLOPs/s", "ReLU", "convolution"]


def test_roofline_shows_its_ridge_where_all_points_lie_to_one_side():
    axes = plot.roofline({"ReLU": (0.125, 1e9)}, bandwidth=1e10, rate=1e11).axes[0]
    assert max(axes.lines[0].get_xdata()) > 10


def test_differences_stand_below_one_another_with_both_intervals():
    figure = plot.differences(PANELS, label="points")
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(PANELS)
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "points"]
    for axes, panel in zip(figure.axes, PANELS.values(), strict=True):
        labels = [text.get_text() for text in axes.get_yticklabels()]
        assert labels == list(panel)
        places = axes.get_yticks()
        assert list(places) == sorted(places, reverse=True)  # the first is the highest
        thin, thick = axes.collections
        assert thin.get_linewidth()[0] < thick.get_linewidth()[0]
        zero, points = axes.lines
        assert list(zero.get_xdata()) == [0, 0]
        for i, (value, low, high, outer, upper) in enumerate(panel.values()):
            np.testing.assert_array_equal(
                thick.get_segments()[i], [[low, places[i]], [high, places[i]]]
            )
            np.testing.assert_array_equal(
                thin.get_segments()[i], [[outer, places[i]], [upper, places[i]]]
            )
            np.testing.assert_array_equal(points.get_xydata()[i], [value, places[i]])
    one, other = figure.axes
    assert one.get_xlim() == other.get_xlim()
    assert (
        plot.differences(dict([*PANELS.items()][:1]), label="x").get_size_inches()[1]
        < figure.get_size_inches()[1]
    )


# ---- Bad input


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot.differences({}, label=""), "at least one difference each, got none"),
        (lambda: plot.differences({"a": {}}, label=""), "at least one difference each, got none"),
        (
            lambda: plot.differences({"a": {"x": (1, 0, 2)}}, label=""),
            r"each of panel 'a' must be five numbers .* got 3",
        ),
        (lambda: plot.differences({"a": {"x": 1}}, label=""), r"panel 'a' must be .* 2-D array"),
        (lambda: plot.grids([]), "arrays must hold at least one"),
        (lambda: plot.grids([[1, 2]]), r"must be a non-empty 2-D array .* got shape \(2,\)"),
        (lambda: plot.grids([np.zeros((0, 3))]), r"non-empty 2-D array .* got shape \(0, 3\)"),
        (lambda: plot.grids([[["a"]]]), "array of real numbers"),
        (lambda: plot.grids([[[1], [1, 2]]]), "its rows differ in length"),
        (lambda: plot.grids([np.eye(2)], ["a", "b"]), "titles must be a list of 1 titles, got"),
        (lambda: plot.grids([np.eye(2)], "a"), "titles must be a list of 1 titles, got 'a'"),
        (lambda: plot.grids([np.eye(2)], cmap="rainbw"), "cmap must be a map .* got 'rainbw'"),
        (lambda: plot.grids([np.eye(2)], vmin=3), "vmin must be below vmax, got 3 and 1"),
        (lambda: plot.grids([np.eye(64)]), "64 columns leave no room .* pass numbers=False"),
        (lambda: plot.images(PHOTOS / 255), r"\(N, 3, H, W\) uint8, got .* of float64"),
        (lambda: plot.images(PHOTOS[0]), r"4-D array of real numbers, got shape \(3, 32, 32\)"),
        (lambda: plot.images(PHOTOS[:, :1]), r"uint8, got shape \(3, 1, 32, 32\)"),
        (lambda: plot.images(PHOTOS, ["a"]), "titles must be a list of 3 titles"),
        (lambda: plot.images(PHOTOS, columns=0), "columns must be an integer from 1 to 20, got 0"),
        (lambda: plot.images(PHOTOS, columns=2.0), "columns must be an integer .* got 2.0"),
        (lambda: plot.overlay(PHOTOS, [np.eye(2)], label=""), "got 3 images, 1 maps"),
        (lambda: plot.overlay(PHOTOS.repeat(3, 0), [[[1]]] * 9, label=""), "at most 8 images"),
        (lambda: plot.overlay(PHOTOS, [2 * np.eye(2)] * 3, label=""), "between 0 and 1"),
        (lambda: plot.overlay(PHOTOS, [[[np.nan]]] * 3, label=""), "between 0 and 1"),
        (lambda: plot.overlay(PHOTOS, np.ones((3, 2, 4, 4)), label=""), r"got shape \(2, 4, 4\)"),
        (lambda: plot.bars({}, xlabel="", ylabel=""), "series must be a dict"),
        (lambda: plot.bars([1, 2], xlabel="", ylabel=""), "series must be a dict"),
        (
            lambda: plot.bars({str(i): [1] for i in range(9)}, xlabel="", ylabel=""),
            "series must be a dict of 1 to 8 names",
        ),
        (lambda: plot.bars({"a": [1], "b": [1, 2]}, xlabel="", ylabel=""), "'a': 1, 'b': 2"),
        (lambda: plot.bars({"a": [1]}, xlabel="", ylabel="", labels=["x", "y"]), "'labels': 2"),
        (lambda: plot.lines({"a": [1, 2, 3]}, xlabel="", ylabel=""), "'a' must be a pair"),
        (lambda: plot.lines({"a": ([1], [1, 2])}, xlabel="", ylabel=""), "in length: 1 and 2"),
        (lambda: plot.lines({"a": ([0], [1])}, xlabel="", ylabel="", logx=True), "0 or less"),
        (lambda: plot.lines({"a": ([1], [-1])}, xlabel="", ylabel="", logy=True), "0 or less"),
        (lambda: plot.lines({"a": ([[1]], [1])}, xlabel="", ylabel=""), "x of 'a' must be .* 1-D"),
        (lambda: plot.roofline({}, bandwidth=1, rate=1), "series must be a dict"),
        (lambda: plot.roofline({"a": (1, 1)}, bandwidth=0, rate=1), "bandwidth must be .* got 0"),
        (lambda: plot.roofline({"a": (1, 1)}, bandwidth=1, rate=np.inf), "rate must be a finite"),
        (lambda: plot.roofline({"a": (1,)}, bandwidth=1, rate=1), "'a' must be a pair .* got 1"),
        (lambda: plot.roofline({"a": (1, -1)}, bandwidth=1, rate=1), "the rate of 'a' must be"),
    ],
)  # fmt: skip
def test_bad_input(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
