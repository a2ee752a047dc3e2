"""The book's picture, its mark, icons and card: what is stored is what the code draws."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

import card
import diagram
import explorer_paint

SIDE = explorer_paint.SIDE


@pytest.mark.parametrize("name", diagram.DRAWINGS)
def test_each_drawing_is_what_its_code_draws(name):
    stored = (diagram.STATIC / name).read_text("utf-8")
    assert stored == diagram.DRAWINGS[name](), "python book/_ext/diagram.py"
    assert "http" not in stored.replace("http://www.w3.org/2000/svg", "")
    assert len(stored) < 60_000  # the first page shows it


@pytest.mark.parametrize("name", card.DRAWINGS)
def test_each_image_is_what_its_code_draws(name):
    """Letters may differ by a shade from machine to machine; squares may not."""
    with Image.open(diagram.STATIC / name) as image:
        stored = np.asarray(image.convert("RGB"), float)
    drawn = np.asarray(card.DRAWINGS[name]().convert("RGB"), float)
    assert stored.shape == drawn.shape, "python book/_ext/card.py"
    differ = np.abs(stored - drawn).max(2) > 16
    assert differ.mean() < 0.002, "python book/_ext/card.py"


def test_the_card_has_the_size_that_is_asked_for():
    with Image.open(diagram.STATIC / "social-card.png") as stored:
        assert stored.size == (1200, 630)
    assert (diagram.STATIC / "social-card.png").stat().st_size < 300_000


def test_the_picture_shows_what_the_library_computes():
    steps = diagram.start()
    module = explorer_paint.made(diagram.REDUCTION, diagram.KERNEL).double()
    x = torch.from_numpy(diagram.scene(*diagram.SPOT))[None]
    with torch.no_grad():
        assert np.allclose(steps.output, module(x)[0], atol=1e-12)
    assert np.allclose(steps.refined, steps.features * steps.channel[:, None, None])
    assert np.allclose(steps.output, steps.refined * steps.spatial)


def test_both_gates_find_the_spot():
    """Else the picture would show nothing: the spot's channel is opened, and the spot's place."""
    channel, row, column = diagram.SPOT
    steps = diagram.start()
    others = np.delete(steps.channel, channel)
    assert steps.channel[channel] > 0.75
    assert others.max() < 0.4
    assert np.unravel_index(steps.spatial.argmax(), (SIDE, SIDE)) == (row, column)


def test_the_page_has_every_cell_once_and_the_script_knows_where_it_began():
    page = diagram.page_picture()
    cells = re.findall(r'fill-opacity="([\d.]+)"', page)
    features = explorer_paint.CHANNELS * SIDE**2
    assert len(cells) == 3 * features + explorer_paint.CHANNELS + SIDE**2
    assert np.allclose(
        np.array(cells[:features], float), diagram.start().features.ravel(), atol=0.0051
    )
    found = dict(re.findall(r'data-([a-z]+)="([\w.]+)"', page.partition(">")[0]))
    spot = tuple(float(found[name]) for name in ("channel", "row", "column"))
    assert spot == diagram.SPOT
    assert {"base", "width", "reduction", "kernel"} < set(found)


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (1, "1"), (1.2, "1"), (0.30, "0.3")])
def test_a_cell_is_as_strong_as_its_value(value, text):
    assert diagram.opacity(value) == text
