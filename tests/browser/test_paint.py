"""Painting a feature map: the numbers are PyTorch's, and hands of every kind reach them."""

import json
import runpy

import numpy as np
import pytest
import torch

import explorer_paint as data
from cbam_edu.attention import ORDERS
from views import settled, show, too_wide, unfold, violations

PAGE = "book/paint.html"
TOLERANCE = 1e-4
RANDOM = 20
RULER = np.random.default_rng(7)
MAPS = [features for _, features in data.EXAMPLES.values()]
MAPS += [RULER.normal(0, 0.5, data.SHAPE).clip(-1, 1).round(2) for _ in range(RANDOM)]
BATCH = torch.tensor(np.stack(MAPS), dtype=torch.float32)
COMPUTE = """([maps, weights, reduction, kernel, order]) => JSON.stringify(maps.map(flat => {
  const features = Float32Array.from(flat);
  const layer = cbam.paint.layers[weights][reduction][kernel];
  const result = cbam.refine(features, cbam.paint.shape, layer, { order });
  const found = Object.entries(cbam.tensors({ features, layer, result }));
  return Object.fromEntries(found.filter(([, t]) => t).map(([name, t]) => [name, [...t]]));
}))"""


@pytest.fixture
def paint(page, site):
    settled(page, site + PAGE)
    return page


def by_torch(module, x):
    """Return every step of a module on a batch, by the names of the page, each (N, numbers)."""
    seen = {}

    def keep(name):
        return lambda _, inputs, output: seen.setdefault(name, []).append((inputs[0], output))

    hooks = []
    if hasattr(module, "channel"):
        hooks.append(module.channel.mixer[1].register_forward_hook(keep("hidden")))
        hooks.append(module.channel.mixer.register_forward_hook(keep("votes")))
        hooks.append(module.channel.register_forward_hook(keep("channel")))
    if hasattr(module, "spatial"):
        hooks.append(module.spatial.conv.register_forward_hook(keep("conv")))
        hooks.append(module.spatial.norm.register_forward_hook(keep("norm")))
        hooks.append(module.spatial.register_forward_hook(keep("spatial")))
    with torch.no_grad():
        output = module(x)
    for hook in hooks:
        hook.remove()
    steps = {"F": x, "output": output}
    if "votes" in seen:
        for side, (descriptor, votes), (_, hidden) in zip(
            ("avg", "max"), seen["votes"], seen["hidden"], strict=True
        ):
            title = side.title()
            steps |= {f"{side}C": descriptor, f"votes{title}": votes, f"hidden{title}": hidden}
        steps["logitsC"] = steps["votesAvg"] + steps["votesMax"]
    if "conv" in seen:
        ((planes, conv),) = seen["conv"]
        steps |= {"maxS": planes[:, 0], "avgS": planes[:, 1], "conv": conv}
        steps["logitsS"] = seen["norm"][0][1]
    for gate, name in (("channel", "mapC"), ("spatial", "mapS")):
        if gate in seen:
            steps[name] = seen[gate][0][1]
    if module.order == "parallel":
        places = steps["logitsC"][:, :, None, None] + steps["logitsS"]
        steps["map"] = torch.sigmoid(places)
    else:
        first = module.order.split("-")[0]
        steps["refined"] = x * seen[first][0][1]
    return {name: step.flatten(1) for name, step in steps.items()}


def module_of(weights, reduction, kernel, order):
    """Return the module whose weights the page has, in an order."""
    whole = data.MODULES[weights](reduction, kernel)
    module = type(whole)(data.CHANNELS, reduction, kernel, order=order).eval()
    state = whole.state_dict()
    module.load_state_dict({name: state[name] for name in module.state_dict()})
    return module


@pytest.mark.parametrize("order", ORDERS)
def test_every_step_is_that_of_pytorch(paint, order, record_property):
    largest = {}
    flat = [features.ravel().tolist() for features in MAPS]
    for weights in data.MODULES:
        for reduction in data.REDUCTIONS:
            for kernel in data.KERNELS:
                wanted = by_torch(module_of(weights, reduction, kernel, order), BATCH)
                found = json.loads(
                    paint.evaluate(COMPUTE, [flat, weights, reduction, kernel, order])
                )
                for name, step in wanted.items():
                    ours = torch.tensor([one[name] for one in found])
                    difference = (ours - step).abs().max().item()
                    largest[name] = max(largest.get(name, 0.0), difference)
    record_property("largest_difference", largest)
    print(order, {name: f"{difference:.1e}" for name, difference in largest.items()})
    assert {"output", "F"} < set(largest)
    assert max(largest.values()) < TOLERANCE


def test_a_gate_that_is_off_passes_everything(paint):
    for order, key, alone in (
        ("channel-spatial", "openChannel", "spatial-only"),
        ("parallel", "openChannel", "spatial-only"),
        ("spatial-channel", "openSpatial", "channel-only"),
        ("parallel", "openSpatial", "channel-only"),
    ):
        outputs = paint.evaluate(
            """([flat, order, key, alone]) => {
              const x = Float32Array.from(flat);
              const { shape, layers } = cbam.paint;
              const by = options => [...cbam.refine(x, shape, layers.fresh[2][5], options).output];
              return [by({ order, [key]: true }), by({ order: alone })];
            }""",
            [MAPS[-1].ravel().tolist(), order, key, alone],
        )
        np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-6)


def weights_shown(page):
    """Return the numbers that the page shows as M_c."""
    texts = page.locator(".paint-weight > span:last-child").all_text_contents()
    return [float(text) for text in texts]


def box_of(page, channel, row, column):
    """Return the middle of a place that can be painted."""
    cell = page.locator(".paint-canvas").nth(channel).locator(".paint-cell").nth(row * 8 + column)
    box = cell.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def features_of(page):
    return np.array(page.evaluate("[...cbam.painter.features]")).reshape(data.SHAPE)


def start_from(page, name):
    page.select_option("#paint-example", name)


def test_what_is_shown_is_what_is_computed(paint):
    start_from(paint, "noise")
    wanted = by_torch(data.made(1, 7), BATCH[list(data.EXAMPLES).index("noise")][None])
    for title, name in (
        ("Channel map", "mapC"),
        ("Descriptor avg", "avgC"),
        ("Descriptor max", "maxC"),
        ("Hidden units, max", "hiddenMax"),
        ("Votes, avg", "votesAvg"),
        ("Spatial map", "mapS"),
    ):
        cells = paint.locator(f'[aria-label="{title}"] .paint-cell').all_text_contents()
        shown = [float(text.replace("−", "-")) for text in cells]
        np.testing.assert_allclose(shown, wanted[name][0], atol=0.0051)
    np.testing.assert_allclose(weights_shown(paint), wanted["mapC"][0], atol=0.0051)


def test_a_sheet_is_as_strong_as_its_numbers(paint):
    start_from(paint, "spot")
    drawn = paint.evaluate(
        """() => cbam.painter.sheets.map(sheet => [0, 21].map(place => {
          const [x, y] = [16 * (place % 8) + 2, 16 * Math.floor(place / 8) + 2];
          return [...sheet.brush.getImageData(x, y, 1, 1).data].slice(0, 3);
        }))"""
    )
    zero, spot = drawn[0]
    assert zero == [255, 255, 255]
    assert spot == [0, 114, 178]  # the palette's blue
    assert drawn[1][1] == zero


def test_a_mouse_paints_and_undo_takes_it_back(paint):
    start_from(paint, "blank")
    assert weights_shown(paint) == [0.5] * 4
    paint.mouse.move(*box_of(paint, 2, 1, 1))
    paint.mouse.down()
    paint.mouse.move(*box_of(paint, 2, 1, 4), steps=8)
    paint.mouse.up()
    painted = features_of(paint)
    assert painted[2, 1, 1:5].tolist() == [1, 1, 1, 1]
    assert painted.sum() == 4
    paint.wait_for_function("cbam.painter.due === false")
    after = weights_shown(paint)
    assert after[2] > 0.9
    assert max(after[:2]) < 0.3
    assert paint.locator("#paint-example").input_value() == ""
    paint.get_by_role("button", name="Undo").click()
    assert features_of(paint).sum() == 0
    assert weights_shown(paint) == [0.5] * 4


def test_the_brush_has_a_strength_a_size_and_an_eraser(paint):
    start_from(paint, "blank")
    strength = paint.get_by_label("Strength")
    strength.focus()
    for _ in range(6):
        strength.press("ArrowLeft")
    paint.get_by_role("button", name="Large brush").click()
    paint.mouse.click(*box_of(paint, 1, 0, 7))
    painted = features_of(paint)
    np.testing.assert_allclose(painted[1, :2, 6:], 0.4, atol=1e-6)
    assert painted.sum() == pytest.approx(1.6)
    paint.get_by_role("button", name="Erase").click()
    paint.mouse.click(*box_of(paint, 1, 1, 7))
    assert features_of(paint).sum() == 0
    paint.get_by_role("button", name="Clear").click()
    assert features_of(paint).sum() == 0


def test_a_finger_paints_and_a_tap_traces(phone, site):
    settled(phone, site + PAGE)
    start_from(phone, "blank")
    place = phone.locator(".paint-canvas").nth(3).locator(".paint-cell").nth(36)
    place.scroll_into_view_if_needed()
    place.tap()
    phone.wait_for_function("cbam.painter.due === false")
    assert features_of(phone)[3, 4, 4] == 1
    assert weights_shown(phone)[3] > 0.9
    cell = phone.locator('[aria-label="Channel map"] .paint-cell').nth(3)
    cell.scroll_into_view_if_needed()
    cell.tap()
    assert "The weight of channel 3" in phone.locator(".paint-said").inner_text()
    assert too_wide(phone) == []


def test_a_second_finger_takes_back_what_the_first_painted(phone, site):
    settled(phone, site + PAGE)
    start_from(phone, "blank")
    phone.locator(".paint-canvas").first.scroll_into_view_if_needed()
    at = [dict(zip("xy", box_of(phone, 0, row, 2), strict=True)) for row in (1, 6)]
    fingers = [{**place, "id": number} for number, place in enumerate(at)]
    touch = phone.context.new_cdp_session(phone)
    for kind, points in (("Start", fingers[:1]), ("Start", fingers), ("End", [])):
        event = {"type": f"touch{kind}", "touchPoints": points}
        touch.send("Input.dispatchTouchEvent", event)
    phone.wait_for_function("cbam.painter.due === false")
    assert features_of(phone).sum() == 0
    assert phone.evaluate("cbam.painter.stroke") is None


def test_what_was_tapped_stays_in_sight_when_the_foot_grows(phone, site):
    settled(phone, site + PAGE)
    cell = phone.locator('[aria-label="Convolution"] .paint-cell').first
    foot = phone.locator(".paint-dock")
    phone.evaluate(
        """([cell, foot]) => {
          scrollBy(0, cell.getBoundingClientRect().bottom - foot.getBoundingClientRect().top + 4);
        }""",
        [cell.element_handle(), foot.element_handle()],
    )
    before = foot.bounding_box()
    place = cell.bounding_box()
    assert place["y"] + place["height"] <= before["y"]
    phone.touchscreen.tap(place["x"] + 5, place["y"] + 5)
    assert "The convolution" in said(phone)
    after, place = foot.bounding_box(), cell.bounding_box()
    assert after["height"] > before["height"]
    assert place["y"] + place["height"] <= after["y"]


def test_a_finger_finds_the_controls_large_enough(phone, site):
    settled(phone, site + PAGE)
    small = phone.evaluate(
        """() => [...document.querySelectorAll(".paint :is(button, select, .paint-choice label)")]
          .map(one => [one.textContent, one.getBoundingClientRect()])
          .filter(([, box]) => box.width < 40 || box.height < 40).map(([text]) => text)"""
    )
    assert small == []
    assert too_wide(phone) == []


def test_four_times_as_large_the_map_is_still_in_sight(paint):
    paint.set_viewport_size({"width": 320, "height": 256})  # WCAG 2.1, success criterion 1.4.10
    sheet = paint.locator(".paint-canvas").first
    paint.evaluate("document.querySelector('.paint-canvas').scrollIntoView({block: 'center'})")
    box = sheet.locator(".paint-frame").bounding_box()
    on_top = paint.evaluate(
        "([x, y]) => document.elementFromPoint(x, y).className",
        [box["x"] + box["width"] / 2, box["y"] + 0.7 * box["height"]],
    )
    assert "paint-cell" in on_top


def test_the_keys_walk_paint_and_take_back(paint):
    start_from(paint, "blank")
    first = paint.locator(".paint-canvas").first.locator(".paint-cell").first
    first.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "-", "-", "Space"):
        paint.keyboard.press(key)
    assert features_of(paint)[0, 2, 1] == pytest.approx(0.8)
    label = paint.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label == "channel 0, row 2, column 1: 0.80"
    paint.keyboard.press("Delete")
    assert features_of(paint).sum() == 0
    paint.keyboard.press("Control+z")
    assert features_of(paint)[0, 2, 1] == pytest.approx(0.8)
    paint.keyboard.press("Tab")  # a sheet is one stop
    label = paint.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label.startswith("channel 1, row 0, column 0")


def said(page):
    return page.locator(".paint-said").inner_text()


def framed(page):
    """Return which cells are framed as inputs: the kind, the tensor and the block."""
    return page.evaluate(
        """() => cbam.painter.panels().flatMap(panel => panel.rings.map(ring =>
          [panel.name, [...ring.classList].pop()]))"""
    )


def test_a_number_says_where_it_is_from(paint):
    start_from(paint, "both")
    steps = {name: step[0] for name, step in by_torch(data.made(1, 7), BATCH[3][None]).items()}
    names = list(data.EXAMPLES)
    assert names[3] == "both"
    paint.locator('[aria-label="Channel map"] .paint-cell').nth(2).hover()
    votes = f"{steps['votesAvg'][2]:.2f} − {-steps['votesMax'][2]:.2f}"
    assert f"σ({votes})" in said(paint)
    assert said(paint).count(f"= {steps['mapC'][2]:.2f}") == 1
    assert ["logitsC", "paint-near"] in framed(paint)
    assert ["votesMax", "paint-far"] in framed(paint)
    paint.locator('[aria-label="Descriptor max"] .paint-cell').nth(0).hover()
    assert "F[0, 2, 5] = 1.00" in said(paint)
    assert framed(paint) == [["F", "paint-near"]]
    paint.locator('[aria-label="Votes, max"] .paint-cell').nth(1).hover()
    assert framed(paint) == [["hiddenMax", "paint-near"]] * 4
    assert paint.locator(".paint-lit").count() == 4
    paint.locator('[aria-label="Convolution"] .paint-cell').nth(0).hover()
    assert sorted(framed(paint)) == sorted(
        [[name, "paint-near"] for name in ("maxS", "avgS", "kernel", "kernel")]
    )
    assert "98 products, 32 of them on the map" in said(paint)
    value = f"{steps['conv'][0]:.2f}".replace("-", "−")
    assert f"= {value}" in said(paint)


def test_every_number_can_be_traced_in_every_order(paint):
    wrong = paint.evaluate(
        """() => {
          const wrong = [];
          for (const order of cbam.ORDERS) for (const weights of ["made", "fresh"]) {
            cbam.painter.set("weights", weights);
            cbam.painter.set("order", order);
            cbam.painter.start("noise");
            const { scene } = cbam.painter;
            for (const panel of cbam.painter.panels()) {
              for (const place of panel.cells.keys()) {
                const index = panel.offset + place;
                const { lead, formula, symbol, marks } = cbam.trace(panel.name, index, scene);
                const text = cbam.plain(`${lead} ${symbol} ${formula}`);
                const shown = cbam.number(panel.values[place]);
                if (!text.endsWith(shown) || /undefined|NaN/.test(text)) {
                  wrong.push([order, panel.name, index, text, shown]);
                }
                for (const { name } of marks) {
                  if (!cbam.painter.panelsOf(name).length) wrong.push([order, panel.name, name]);
                }
              }
            }
          }
          return wrong.slice(0, 5);
        }"""
    )
    assert wrong == []


def test_a_click_keeps_the_trace_and_escape_lets_it_go(paint):
    cell = paint.locator('[aria-label="Channel map"] .paint-cell').nth(1)
    cell.click()
    kept = said(paint)
    paint.locator(".paint-shape").first.hover()
    assert said(paint) == kept
    paint.keyboard.press("Escape")
    assert "Point at any number" in said(paint)
    assert framed(paint) == []


def test_the_keys_reach_and_hear_a_trace(paint):
    grid = paint.locator('[aria-label="Spatial map"]')
    grid.locator(".paint-cell").first.focus()
    paint.keyboard.press("ArrowRight")
    label = paint.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label.startswith("spatial map M s, row 0, column 1: 0.")
    spoken = paint.locator('.paint-unseen[aria-live="polite"]')
    assert "The weight of this place (row 0, column 1)" in spoken.text_content()


def test_the_gates_are_summed_up_in_words_once_the_hand_rests(paint):
    summary = paint.locator(".paint-unseen[role=status]")
    assert "channel 1 0.62" in summary.text_content()
    start_from(paint, "spot")
    paint.wait_for_function(
        "/channel 0 0.95/.test(document.querySelector('.paint-unseen[role=status]').textContent)"
    )
    assert "most open at row" in summary.text_content()
    paint.select_option("#paint-order", "parallel")
    paint.wait_for_function(
        "/as one: channel 0/.test(document.querySelector('.paint-unseen[role=status]').textContent)"
    )


def test_the_lens_holds_what_the_convolution_adds_up(paint):
    start_from(paint, "noise")
    paint.locator('[aria-label="Spatial map"] .paint-cell').nth(9).hover()
    assert paint.locator(".paint-lens h5").inner_text() == "Lens: row 1, column 1"
    products, conv = paint.evaluate(
        """() => {
          const { products, conv } = cbam.tensors(cbam.painter.scene);
          return [[...products], conv[9]];
        }"""
    )
    assert sum(products) == pytest.approx(conv, abs=1e-5)
    assert products[:14] == [0] * 14  # two rows of the kernel lie beyond the border
    sums = paint.locator(".paint-lens figcaption span").all_inner_texts()
    numbers = [float(text.removeprefix("sum ").replace("−", "-")) for text in sums]
    np.testing.assert_allclose(numbers, [sum(products[:49]), sum(products[49:])], atol=0.0051)
    paint.locator('[aria-label="Products with the means"] .paint-cell').nth(24).hover()
    assert framed(paint) == [["avgS", "paint-near"], ["kernel", "paint-near"]]
    assert "the mean at row 1, column 1" in said(paint)


def test_another_example_brings_the_lens_back_to_the_largest_place(paint):
    paint.locator('[aria-label="Spatial map"] .paint-cell').nth(63).hover()
    assert paint.locator(".paint-lens h5").inner_text() == "Lens: row 7, column 7"
    paint.locator(".paint-shape").first.hover()
    start_from(paint, "spot")
    top = paint.evaluate(
        """() => {
          const { logits } = cbam.painter.scene.result.spatial;
          return logits.indexOf(Math.max(...logits));
        }"""
    )
    place = f"row {top // 8}, column {top % 8}"
    assert paint.locator(".paint-lens h5").inner_text() == f"Lens: {place}"


def test_the_foot_says_nothing_twice(paint):
    paint.locator('[aria-label="Hidden units, max"] .paint-cell').nth(2).hover()
    assert said(paint).count("idden unit 2") == 1


def test_the_systems_own_colours_show_what_is_chosen(paint):
    paint.emulate_media(forced_colors="active")
    chosen, other = (
        paint.locator(f'label[for="paint-kernel-{k}"]').evaluate(
            "label => getComputedStyle(label).backgroundColor"
        )
        for k in (7, 3)
    )
    assert chosen != other


@pytest.mark.parametrize(
    ("order", "gates"),
    [
        ("channel-spatial", ["paint-channel-gate", "paint-spatial-gate"]),
        ("spatial-channel", ["paint-spatial-gate", "paint-channel-gate"]),
        ("parallel", ["paint-channel-gate", "paint-spatial-gate", "paint-both-gate"]),
        ("channel-only", ["paint-channel-gate"]),
        ("spatial-only", ["paint-spatial-gate"]),
    ],
)
def test_the_page_has_the_order_of_the_gates(paint, order, gates):
    paint.select_option("#paint-order", order)
    found = paint.evaluate("[...document.querySelectorAll('.paint-gate')].map(gate => gate.id)")
    assert found == gates
    assert too_wide(paint) == []


def test_the_controls_change_what_is_computed(paint):
    hidden = paint.locator('[aria-label="Hidden units, avg"] .paint-cell')
    kernel = paint.locator('[aria-label="Kernel for the maxima"] .paint-cell')
    assert (hidden.count(), kernel.count()) == (4, 49)
    paint.locator('label[for="paint-reduction-4"]').click()
    paint.locator('label[for="paint-kernel-3"]').click()
    assert (hidden.count(), kernel.count()) == (1, 9)
    paint.locator("#paint-reduction-4").press("ArrowLeft")
    assert hidden.count() == 2
    assert paint.evaluate("document.activeElement.id") == "paint-reduction-2"
    paint.select_option("#paint-weights", "fresh")
    module = data.fresh(2, 3)
    with torch.no_grad():
        wanted = module.channel(BATCH[:1]).flatten().tolist()
    np.testing.assert_allclose(weights_shown(paint), wanted, atol=0.0051)
    paint.get_by_label("gate on").first.click()
    assert weights_shown(paint) == [1.0] * 4


def test_the_tasks_notice_when_they_are_done(paint):
    paint.locator(".paint-tasks summary").click()
    done = paint.locator(".paint-yes")
    start_from(paint, "blank")
    assert done.count() == 0
    start_from(paint, "spot")
    assert done.count() == 1  # channel 2 is shut
    assert "chapter 03" in done.inner_text()
    start_from(paint, "both")
    assert "Make the poolings disagree" in " ".join(done.all_inner_texts())
    start_from(paint, "blank")
    for row, column in ((0, 7), (0, 6), (1, 7), (1, 6)):
        paint.mouse.click(*box_of(paint, 0, row, column))
    paint.wait_for_function("cbam.painter.due === false")
    assert "upper right corner" in " ".join(done.all_inner_texts())


def test_a_link_carries_the_painting(paint, site):
    start_from(paint, "noise")
    paint.select_option("#paint-order", "spatial-channel")
    paint.locator('label[for="paint-kernel-5"]').click()
    paint.get_by_role("button", name="Copy link").click()
    paint.get_by_text("is copied").wait_for()
    link = paint.evaluate("navigator.clipboard.readText()")
    shown = weights_shown(paint)
    paint.goto("about:blank")
    settled(paint, link)
    np.testing.assert_array_equal(features_of(paint), np.float32(MAPS[5]))
    assert paint.locator("#paint-order").input_value() == "spatial-channel"
    assert paint.locator("#paint-kernel-5").is_checked()
    assert weights_shown(paint) == shown


@pytest.mark.parametrize("ending", ["#paint=AAAA.x.y", "#paint=%%%", "#three-experiments"])
def test_a_link_that_says_nothing_starts_as_always(paint, site, ending):
    paint.goto("about:blank")
    settled(paint, site + PAGE + ending)
    np.testing.assert_allclose(features_of(paint), MAPS[0], atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        "channel-spatial.constructor.prototype.toString.0.0",
        "channel-spatial.made.constructor.name.0.0",
        "channel-spatial.made.NaN.7.0.0",
        "toString.made.1.7.0.0",
    ],
)
def test_a_link_cannot_name_what_the_page_has_not(paint, site, settings):
    drawn = paint.evaluate("cbam.toHash(cbam.painter.features, cbam.painter.settings)")
    paint.goto("about:blank")
    settled(paint, f"{site}{PAGE}#{drawn.split('.')[0]}.{settings}")
    np.testing.assert_allclose(features_of(paint), MAPS[0], atol=1e-6)
    assert paint.locator(".paint-gate").count() == 2


def test_a_link_that_was_cut_says_so(paint, site):
    link = paint.evaluate("cbam.toHash(cbam.painter.features, cbam.painter.settings)")
    assert "no whole painting" not in said(paint)
    paint.goto("about:blank")
    settled(paint, f"{site}{PAGE}#{link[:-60]}")
    assert "no whole painting" in said(paint)


@pytest.mark.parametrize(
    ("order", "off"),
    [("channel-spatial", 0), ("parallel", 1), ("spatial-only", 0), ("spatial-channel", 2)],
)
def test_the_copied_program_gives_the_same_numbers(paint, tmp_path, order, off):
    start_from(paint, "noise")
    paint.select_option("#paint-weights", "fresh")
    paint.select_option("#paint-order", order)
    for switch in paint.get_by_label("gate on").all()[:off]:
        switch.click()
    paint.get_by_role("button", name="Copy as PyTorch").click()
    paint.get_by_text("is copied").wait_for()
    program = paint.evaluate("navigator.clipboard.readText()")
    path = tmp_path / "painting.py"
    path.write_text(program.replace("print(module(x))", "y = module(x)"), "utf-8")
    names = runpy.run_path(str(path))
    result = names.get("y", names["x"])
    shown = np.array(paint.evaluate("[...cbam.painter.scene.result.output]"))
    np.testing.assert_allclose(shown.reshape(data.SHAPE), result[0].numpy(), atol=TOLERANCE)


def test_an_update_takes_less_than_a_frame(paint, record_property):
    """Computed and drawn; and with what the browser lays out anew, which a busy machine slows."""
    spent = paint.evaluate(
        """() => Array.from({ length: 60 }, (_, i) => {
          const start = performance.now();
          cbam.painter.features[4 * i] = 0.5;
          const own = cbam.painter.update();
          document.body.getBoundingClientRect();
          return [own, performance.now() - start];
        })"""
    )
    own, whole = np.median(spent, axis=0)
    record_property("median_ms", [float(own), float(whole)])  # plain, to go between workers
    print(f"median of 60 updates: {own:.1f} ms, with layout {whole:.1f} ms")
    assert own < 16
    assert whole < 60


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375, 320])
def test_the_page_is_for_everyone(paint, scheme, width):
    unfold(paint)
    show(paint, scheme, width)
    for order in ("channel-spatial", "parallel"):
        paint.select_option("#paint-order", order)
        start_from(paint, "noise")
        paint.locator('[aria-label="Hidden units, max"] .paint-cell').first.focus()
        assert violations(paint) == []
        assert too_wide(paint) == []


def test_without_javascript_there_is_a_table(scriptless, site):
    scriptless.goto(site + PAGE)
    table = scriptless.locator("#explorer-paint table")
    assert table.is_visible()
    gate = data.made(1, 7).channel
    with torch.no_grad():
        weights = gate(BATCH[3:4]).flatten()
    cells = table.locator("tbody tr").last.locator("td").all_inner_texts()
    assert cells == ["weight, σ(logit)", *(f"{weight:.2f}" for weight in weights)]


def test_the_experiments_are_a_click_away_and_so_is_the_way_back(paint):
    paint.locator("article").get_by_role("link", name="three experiments").click()
    paint.wait_for_function("scrollY > 1500")
    paint.get_by_role("link", name="up there").click()
    paint.wait_for_function("scrollY < 500")
    assert paint.locator(".paint-canvas").first.is_visible()


def test_paper_has_the_table_too(paint):
    assert not paint.locator("#explorer-paint table").is_visible()
    paint.emulate_media(media="print")
    assert paint.locator("#explorer-paint table").is_visible()
    assert not paint.locator(".paint").is_visible()
