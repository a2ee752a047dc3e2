"""The landing page: one screen, and a picture that answers to pointer, finger and keys."""

import numpy as np
import pytest

import diagram
from built import HOME

STILL = {"reduced_motion": "reduce"}
PAD = '[data-part="F"]'
CELLS = """name => [...document.querySelectorAll(`[data-part="${name}"] [fill-opacity]`)]
  .map(cell => Number(cell.getAttribute("fill-opacity")))"""


def shown(page, name):
    """Return what a part of the picture shows, F, M_c, F′, M_s or F″, as it is drawn."""
    return np.array(page.evaluate(CELLS, name))


def agree(page, spot):
    """Assert that the page shows what the library computes for a spot."""
    steps = diagram.attend(diagram.scene(*spot))
    wanted = {
        "F": steps.features,
        "M_c": steps.channel,
        "F′": steps.refined,
        "M_s": steps.spatial,
        "F″": steps.output,
    }
    for name, values in wanted.items():
        assert np.allclose(shown(page, name), values.ravel(), atol=0.0051), name


@pytest.fixture
def still(page, site):
    """Return the landing page of a reader who wants no motion."""
    page.emulate_media(**STILL)
    page.goto(site + HOME)
    page.wait_for_selector(".gates-live")
    return page


def test_keys_move_the_spot_and_both_gates_answer(still):
    agree(still, diagram.SPOT)
    channel, row, column = diagram.SPOT
    still.focus(PAD)
    for key in ("ArrowRight", "ArrowDown", "ArrowDown"):
        still.keyboard.press(key)
    agree(still, (channel, row + 2, column + 1))
    for _ in range(4):  # over the edge, into the next channel
        still.keyboard.press("ArrowDown")
    agree(still, (channel + 1, (row + 6) % 8, column + 1))
    still.wait_for_selector("text=Spot in channel 2, row 2, column 4.", state="attached")


def test_the_pointer_moves_it(still):
    box = still.locator(f"{PAD} svg").bounding_box()
    place = box["width"] / 8
    still.mouse.move(box["x"] + 2.5 * place, box["y"] + (3 * 9 + 3.5) * place)
    agree(still, (3, 3, 2))


def test_a_finger_moves_it(phone, site):
    phone.emulate_media(**STILL)
    phone.goto(site + HOME)
    phone.wait_for_selector(".gates-live")
    box = phone.locator(f"{PAD} svg").bounding_box()
    place = box["width"] / 8
    phone.touchscreen.tap(box["x"] + 5.5 * place, box["y"] + 2.5 * place)
    agree(phone, (0, 2, 5))


def test_it_moves_by_itself_and_can_be_stopped(page, site):
    page.emulate_media(reduced_motion="no-preference")
    page.goto(site + HOME)
    page.wait_for_selector(".gates-live")
    first = shown(page, "M_s")
    page.wait_for_timeout(4500)
    assert not np.allclose(shown(page, "M_s"), first)
    page.click("text=Pause")
    stopped = shown(page, "M_s")
    page.wait_for_timeout(500)
    assert np.allclose(shown(page, "M_s"), stopped)
    page.click("text=Play")
    page.wait_for_timeout(700)
    assert not np.allclose(shown(page, "M_s"), stopped)


def test_nothing_moves_for_those_who_want_no_motion(still):
    before = shown(still, "F")
    still.wait_for_timeout(4500)
    assert np.allclose(shown(still, "F"), before)
    assert still.inner_text(".gates-pause") == "Play"


def test_it_is_all_there_without_javascript_and_stands_where_it_stood(scriptless, site, still):
    scriptless.set_viewport_size(still.viewport_size)
    scriptless.goto(site + HOME)
    assert scriptless.locator(".gates").bounding_box() == still.locator(".gates").bounding_box()
    cells = 3 * 4 * 64 + 64 + 4  # of F, F′ and F″, of M_s, of M_c
    assert scriptless.locator(".gates [fill-opacity]").count() == cells
    assert not scriptless.locator(".gates-pause").is_visible()


def test_the_first_screen_says_it_all(still):
    height = still.viewport_size["height"]
    for part in (".gates", ".landing-what", ".ways"):
        box = still.locator(part).bounding_box()
        assert box["y"] + box["height"] < height, part


def test_a_phone_shows_the_picture_and_the_first_way_on(phone, site):
    phone.goto(site + HOME)
    for part in (".gates", ".ways li >> nth=0"):
        box = phone.locator(part).bounding_box()
        assert box["y"] + box["height"] <= 812, part


def test_no_mathematics_is_loaded_for_it(still):
    loaded = still.evaluate("performance.getEntriesByType('resource').map(one => one.name)")
    assert not [name for name in loaded if "mathjax" in name.lower()]


def test_paper_does_not_tear_the_picture_apart(still):
    still.emulate_media(media="print")
    picture = still.locator(".landing-picture")
    assert picture.evaluate("part => getComputedStyle(part).breakInside") == "avoid"
    assert picture.bounding_box()["height"] < still.viewport_size["height"] / 2
