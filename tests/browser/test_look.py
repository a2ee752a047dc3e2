"""The page on the trained network: its numbers are PyTorch's, and it answers to every hand."""

import base64
import io
import itertools
import re
import statistics

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from playwright.sync_api import expect

import explorer_network
from cbam_edu import data
from cbam_edu.attention import ChannelAttention
from views import NARROW, NARROWEST, WIDE, show, too_wide, violations

PAGE = "book/look.html"
# Where all gates are off, numbers go up to thousands, and neighbours in float32 are 1e-4 apart:
# there a millionth of the step's largest number counts.
TOLERANCE, RELATIVE = 1e-4, 1e-6
BLOCKS = 9
MILLISECONDS = 150  # the promise, for a laptop; a busy machine gets twice as many
# Names of the page's steps, and how the hooks below call the same.
STEPS = ("conv1", "relu", "conv2", "refined", "gated", "output")
CHANNEL = ("avg", "max", "hiddenAvg", "hiddenMax", "votesAvg", "votesMax", "logits", "map")
SPATIAL = ("avg", "max", "logits", "map")

# In the page: run it, and give all steps as one line of base64.
RUN = """
([index, cover, gates]) => {
  window.look ??= {
    network: cbam.readNetwork(cbam.networkData),
    photographs: cbam.readPhotographs(cbam.networkData),
  };
  const { network, photographs } = window.look;
  const x = cbam.normalise(photographs[index].pixels, network, cover && Uint8Array.from(cover));
  const run = cbam.runNetwork(network, x, gates ?? undefined);
  const parts = [["input", x], ["stem", run.stem]];
  run.blocks.forEach((block, i) => {
    for (const [name, value] of Object.entries(block)) {
      if (value instanceof Float32Array) parts.push([`${i}.${name}`, value]);
      else if (name !== "shape") {
        for (const [step, numbers] of Object.entries(value)) {
          if (numbers instanceof Float32Array) parts.push([`${i}.${name}.${step}`, numbers]);
        }
      }
    }
  });
  for (const name of ["pooled", "logits", "probabilities"]) parts.push([name, run[name]]);
  const total = parts.reduce((sum, [, numbers]) => sum + numbers.length, 0);
  const all = new Float32Array(total);
  let at = 0;
  for (const [, numbers] of parts) {
    all.set(numbers, at);
    at += numbers.length;
  }
  const bytes = new Uint8Array(all.buffer);
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) {
    text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  }
  return [parts.map(([name, numbers]) => [name, numbers.length]), btoa(text)];
}
"""


def in_page(page, index, cover=None, gates=None):
    """Return every step of the page's run as arrays by name."""
    names = None
    if gates:
        names = [{"channel": c, "spatial": s} for c, s in gates]
    flat = None if cover is None else cover.flatten().int().tolist()
    layout, text = page.evaluate(RUN, [index, flat, names])
    numbers = np.frombuffer(base64.b64decode(text), "<f4")
    found, at = {}, 0
    for name, size in layout:
        found[name] = numbers[at : at + size]
        at += size
    return found


def gate_steps(steps, prefix, gate, x, answer, mean):
    """Note a channel or spatial gate's steps on x, and return its map as it is to be."""
    if isinstance(gate, ChannelAttention):
        first, relu, last = gate.mixer
        pooled = {"Avg": x.mean((2, 3)), "Max": x.amax((2, 3))}
        for name, value in pooled.items():
            hidden = relu(first(value))
            steps[f"{prefix}.{name.lower()}"] = value
            steps[f"{prefix}.hidden{name}"] = hidden
            steps[f"{prefix}.votes{name}"] = last(hidden)
    else:
        steps[f"{prefix}.avg"] = x.mean(1)
        steps[f"{prefix}.max"] = x.amax(1)
    logits = gate.logits(x)
    steps[f"{prefix}.logits"] = logits
    learnt = gate(x)
    torch.testing.assert_close(learnt, logits.sigmoid())
    found = {"learnt": learnt, "open": torch.ones_like(learnt), "mean": mean.float()}[answer]
    steps[f"{prefix}.map"] = found
    return found


def in_torch(index, cover=None, gates=None):
    """Return the same from PyTorch, in float32 and evaluation mode, by names of the page."""
    model = explorer_network.network()
    photos, indices = explorer_network.photographs(), explorer_network.chosen()
    gates = gates or [("learnt", "learnt")] * BLOCKS
    steps = {}
    with torch.no_grad():
        x = data.normalise(photos.images[[indices[index]]])
        if cover is not None:
            x = torch.where(cover, 0.0, x)
        steps["input"] = x
        x = steps["stem"] = model.stem(x)
        blocks = [block for stage in model.stages for block in stage]
        means = explorer_network.mean_maps()
        for i, (block, mean, (channel, spatial)) in enumerate(
            zip(blocks, means, gates, strict=True)
        ):
            start = x
            steps[f"{i}.conv1"] = block.bn1(block.conv1(x))
            steps[f"{i}.relu"] = steps[f"{i}.conv1"].relu()
            features = steps[f"{i}.conv2"] = block.bn2(block.conv2(steps[f"{i}.relu"]))
            gate = block.attention
            m_c = gate_steps(steps, f"{i}.channel", gate.channel, features, channel, mean.channel)
            refined = steps[f"{i}.refined"] = features * m_c
            m_s = gate_steps(steps, f"{i}.spatial", gate.spatial, refined, spatial, mean.spatial)
            gated = steps[f"{i}.gated"] = refined * m_s
            x = steps[f"{i}.output"] = (gated + block.shortcut(start)).relu()
            if (channel, spatial) == ("learnt", "learnt"):  # the block's own forward agrees
                torch.testing.assert_close(block(start), x, atol=1e-5, rtol=1e-5)
        steps["pooled"] = model.pool(x)
        steps["logits"] = model.head(steps["pooled"])
        steps["probabilities"] = steps["logits"].softmax(1)
    return {name: value.flatten().numpy() for name, value in steps.items()}


def compare(page, worst, index, cover=None, gates=None):
    """Hold every step of a run against PyTorch's, and note the largest difference of each kind."""
    got, wanted = in_page(page, index, cover, gates), in_torch(index, cover, gates)
    lacking = set(wanted) - set(got)
    assert not lacking
    assert set(got) - set(wanted) == {f"{i}.spatial.conv" for i in range(BLOCKS)}  # no norm yet
    for name, value in wanted.items():
        difference = float(np.abs(got[name] - value).max())
        largest = float(np.abs(value).max())
        kind = name.split(".", 1)[1] if name[0].isdigit() else name
        worst[kind] = max(worst.get(kind, (0, 0)), (difference, largest))
        where = f"photograph {index}, {name}, gates {gates}: {difference} of {largest}"
        assert difference < max(TOLERANCE, RELATIVE * largest), where
    return got, wanted


@pytest.fixture
def looked(page, site):
    """Return the page, ready."""
    page.goto(site + PAGE)
    expect(page.locator("#explorer-look[data-ready]")).to_be_visible()
    return page


def answered(page, probabilities):
    """Wait until the line that stays in sight says what PyTorch says."""
    top = f"{data.CLASSES[probabilities.argmax()]} {probabilities.max():.1%}".replace("%", " %")
    expect(page.locator(".look-footer strong")).to_have_text(top)


def eventually(page, holds):
    """Ask again for some seconds whether something holds: a busy machine takes its time."""
    for _ in range(100):
        if holds():
            return
        page.wait_for_timeout(50)
    assert holds()


def report(worst):
    """Print the largest difference of each kind of step, and the largest number there."""
    for name, (difference, largest) in sorted(worst.items()):
        print(f"{name:20} {difference:.1e} of {largest:.3g}")


# ---- The numbers


def test_every_step_is_that_of_pytorch_on_24_photographs(looked):
    worst = {}
    for index in range(0, 60, 5):
        compare(looked, worst, index)
        compare(looked, worst, index + 3)
    kinds = {*STEPS, *(f"channel.{s}" for s in CHANNEL), *(f"spatial.{s}" for s in SPATIAL)}
    assert set(worst) == kinds | {"input", "stem", "pooled", "logits", "probabilities"}
    report(worst)


def settings():
    """Return gates to switch off: each alone, all of a kind, all; with 1 and with mean maps."""
    learnt = [("learnt", "learnt")] * BLOCKS
    for i in range(BLOCKS):
        yield [("open", "learnt") if j == i else gate for j, gate in enumerate(learnt)]
        yield [("learnt", "open") if j == i else gate for j, gate in enumerate(learnt)]
    for answer in ("open", "mean"):
        yield [(answer, "learnt")] * BLOCKS
        yield [("learnt", answer)] * BLOCKS
        yield [(answer, answer)] * BLOCKS
    yield [("mean", "open"), ("open", "mean"), ("learnt", "mean")] * 3


def test_every_step_is_that_of_pytorch_with_gates_switched_off(looked):
    worst = {}
    photographs = itertools.cycle(range(0, 60, 7))
    for gates in settings():
        compare(looked, worst, next(photographs), gates=gates)
    report(worst)


def test_every_step_is_that_of_pytorch_with_places_covered(looked):
    worst = {}
    rng = np.random.default_rng(0)
    for index in range(0, 60, 3):
        cover = torch.zeros(32, 32, dtype=torch.bool)
        top, left, height, width = rng.integers((0, 0, 1, 1), (24, 24, 20, 20))
        cover[top : top + height, left : left + width] = True
        cover |= torch.from_numpy(rng.random((32, 32)) < 0.05)
        gates = [("mean", "open")] * BLOCKS if index % 2 else None
        compare(looked, worst, index, cover, gates)
    report(worst)


def test_it_names_every_photograph_as_pytorch_does(looked):
    indices = explorer_network.chosen()
    found = looked.evaluate(
        """() => {
          const network = cbam.readNetwork(cbam.networkData);
          const named = ({ pixels }) =>
            cbam.named(cbam.runNetwork(network, cbam.normalise(pixels, network)));
          return cbam.readPhotographs(cbam.networkData).map(named);
        }"""
    )
    assert found == explorer_network.answers()[indices].tolist()
    assert len(found) == 60


def test_an_image_takes_less_than_promised(looked):
    times = looked.evaluate(
        """() => {
          const network = cbam.readNetwork(cbam.networkData);
          const photographs = cbam.readPhotographs(cbam.networkData);
          return photographs.map(({ pixels }) => {
            const start = performance.now();
            cbam.runNetwork(network, cbam.normalise(pixels, network));
            return performance.now() - start;
          });
        }"""
    )
    median = statistics.median(times)
    print(f"an image: median {median:.1f} ms, {min(times):.1f} to {max(times):.1f}, n {len(times)}")
    assert len(times) == 60
    assert median < 2 * MILLISECONDS


# ---- The page


def test_the_page_shows_the_probabilities_and_marks_the_true_class(looked):
    wanted = in_torch(explorer_network.FIRST)["probabilities"]
    rows = looked.locator(".look-answer tbody tr")
    assert rows.count() == 10
    for i, p in enumerate(wanted):
        text = f"{p:.1%}".replace("%", " %") if p >= 0.0005 else "<0.1 %"
        expect(rows.nth(i).locator("td").nth(1)).to_have_text(text)
    true = looked.locator(".look-true:visible")
    assert true.count() == 1
    assert rows.nth(7).locator(".look-true").is_visible()
    expect(looked.locator(".look-named th")).to_contain_text("horse")


def test_switches_change_the_answer_and_undo_brings_it_back(looked):
    before = in_torch(explorer_network.FIRST)["probabilities"]
    answered(looked, before)
    looked.get_by_role("switch", name="spatial gate of block 8").uncheck()
    gates = [("learnt", "open") if i == 7 else ("learnt", "learnt") for i in range(BLOCKS)]
    after = in_torch(explorer_network.FIRST, gates=gates)["probabilities"]
    assert np.abs(after - before).max() > 0.01
    answered(looked, after)
    summary = looked.locator(".look-summary")
    expect(summary).to_contain_text("Off, with 1 in place: the spatial gate of block 8")
    expect(summary).to_contain_text("(untouched: ")
    looked.get_by_role("radio", name="its mean map").check()
    expect(summary).to_contain_text("Off, with the mean map in place")
    looked.get_by_role("button", name="Undo all").click()
    answered(looked, before)
    expect(looked.get_by_role("switch", name="spatial gate of block 8")).to_be_checked()


def test_all_gates_of_a_kind_go_off_and_all_photographs_are_asked(looked):
    on = looked.locator(".look-switch input:checked")
    looked.get_by_role("button", name="Spatial gates off").click()
    expect(on).to_have_count(BLOCKS)
    looked.get_by_role("button", name="Channel gates off").click()
    expect(on).to_have_count(0)
    looked.get_by_role("button", name="Ask all 60").click()
    told = looked.locator(".look-blocks [role=status]")
    expect(told).to_contain_text("of 60 right", timeout=60_000)
    right = int(re.match(r"(\d+) of 60", told.inner_text())[1])
    assert right < 20
    looked.get_by_role("button", name="All gates on").click()
    expect(told).to_have_text("")
    expect(on).to_have_count(2 * BLOCKS)


def test_arrow_keys_walk_through_the_photographs(looked):
    radio = looked.locator(f"input[name=look-photograph][value='{explorer_network.FIRST}']")
    radio.focus()
    looked.keyboard.press("ArrowRight")
    expect(looked.locator(".look-summary")).to_contain_text("Horse 4")
    looked.keyboard.press("ArrowRight")
    looked.keyboard.press("ArrowRight")
    answered(looked, in_torch(explorer_network.FIRST + 3)["probabilities"])
    expect(looked.locator(".look-summary")).to_contain_text("wrongly")


def test_the_mouse_covers_and_the_numbers_are_those_of_the_covered_photograph(looked):
    looked.get_by_role("radio", name="rectangles").check()
    stage = looked.locator(".look-cover")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    each = box["width"] / 32
    looked.mouse.move(box["x"] + 8.5 * each, box["y"] + 4.5 * each)
    looked.mouse.down()
    looked.mouse.move(box["x"] + 20.5 * each, box["y"] + 15.5 * each, steps=4)
    looked.mouse.up()
    cover = torch.zeros(32, 32, dtype=torch.bool)
    cover[4:16, 8:21] = True
    answered(looked, in_torch(explorer_network.FIRST, cover)["probabilities"])
    expect(looked.locator(".look-summary")).to_contain_text(f"{int(cover.sum())} of 1024 places")
    looked.get_by_role("button", name="Uncover all").click()
    expect(looked.locator(".look-footer .look-hint")).to_have_text("untouched")


def test_keys_cover_too(looked):
    stage = looked.locator(".look-cover")
    stage.focus()
    looked.keyboard.press("Space")
    expect(looked.locator(".look-footer")).to_contain_text("25 places covered")
    looked.keyboard.press("Shift+ArrowRight")
    expect(looked.locator(".look-footer")).to_contain_text("30 places covered")
    looked.keyboard.press("ArrowLeft")
    expect(looked.locator(".look-where")).to_contain_text("Row 17, column 17, covered")
    looked.keyboard.press("Delete")
    expect(looked.locator(".look-footer .look-hint")).to_have_text("untouched")
    looked.get_by_role("radio", name="rectangles").check()
    stage.focus()
    looked.keyboard.press("Space")
    for _ in range(3):
        looked.keyboard.press("ArrowDown")
    looked.keyboard.press("Space")
    expect(looked.locator(".look-footer")).to_contain_text("4 places covered")


def test_a_patch_slides_over_the_photograph_and_can_be_stopped(looked):
    button = looked.get_by_role("button", name="Slide a patch")
    button.click()
    looked.get_by_role("button", name="Stop").click()
    expect(button).to_be_visible()
    button.click()
    found = looked.locator(".look-found")
    expect(found).to_contain_text("does to “horse”", timeout=60_000)
    probabilities = {}
    for row, column in itertools.product(range(0, 25, 4), repeat=2):
        cover = torch.zeros(32, 32, dtype=torch.bool)
        cover[row : row + 8, column : column + 8] = True
        probabilities[row, column] = in_torch(explorer_network.FIRST, cover)["probabilities"][7]
    before = in_torch(explorer_network.FIRST)["probabilities"][7]

    def change(row, column):
        over = [
            p - before
            for (r, c), p in probabilities.items()
            if r <= row < r + 8 and c <= column < c + 8
        ]
        return 100 * float(np.mean(over))

    cells = [change(r, c) for r, c in itertools.product(range(0, 32, 4), repeat=2)]
    text = found.inner_text().replace("−", "-")
    low, high = (float(n) for n in re.findall(r"[-+]?\d+\.\d", text)[:2])
    assert low == pytest.approx(min(cells), abs=0.06)
    assert high == pytest.approx(max(cells), abs=0.06)
    looked.get_by_role("button", name="Take the result away").click()
    expect(found).to_be_hidden()


def test_pointer_and_keys_ask_for_a_place_and_a_channel(looked):
    looked.get_by_role("button", name="Block 4, show it in detail").click()
    expect(looked.locator(".look-detail .look-title")).to_have_text(
        "Block 4: 32 channels, 16 × 16 places"
    )
    wanted = in_torch(explorer_network.FIRST)
    place = looked.get_by_role("slider", name="Place of the spatial map")
    place.focus()
    for _ in range(20):
        looked.keyboard.press("ArrowUp")
        looked.keyboard.press("ArrowLeft")
    looked.keyboard.press("ArrowRight")
    value = f"{wanted['3.spatial.map'][1]:.2f}"
    expect(place).to_have_attribute("aria-valuetext", f"row 1, column 2: {value}")
    channel = looked.get_by_role("slider", name="Channel of the channel map")
    channel.focus()
    looked.keyboard.press("End")
    value = f"{wanted['3.channel.map'][31]:.2f}"
    expect(channel).to_have_attribute("aria-valuetext", f"channel 32: {value}")
    looked.keyboard.press("ArrowLeft")
    expect(channel).to_have_attribute("aria-valuenow", "31")
    looked.keyboard.press("ArrowUp")
    expect(channel).to_have_attribute("aria-valuenow", "32")
    table = looked.locator(".look-steps").nth(1)
    for name in ("avg", "votesMax", "logits"):
        text = f"{wanted[f'3.channel.{name}'][31]:.3f}".replace("-", "−")
        expect(table).to_contain_text(text)
    channel.scroll_into_view_if_needed()
    box = channel.bounding_box()
    looked.mouse.move(box["x"] + box["width"] * 4.5 / 32, box["y"] + 20)
    expect(channel).to_have_attribute("aria-valuenow", "5")


def test_hovering_a_small_map_tells_its_number(looked):
    small = looked.locator(".look-card canvas.look-spatial").nth(8)
    small.scroll_into_view_if_needed()
    small.hover(position={"x": 5, "y": 5})
    value = f"{in_torch(explorer_network.FIRST)['8.spatial.map'][0]:.2f}"
    expect(looked.locator(".look-tip")).to_have_text(f"row 1, column 1: {value}")


def pixel(page):
    """Return the colour of the first small map's first place."""
    colour = page.locator(".look-card canvas.look-spatial").first.evaluate(
        "(map) => [...map.getContext('2d').getImageData(0, 0, 1, 1).data.slice(0, 3)]"
    )
    return np.array(colour, int)


def test_the_colours_can_be_stretched_and_the_page_says_what_that_does(looked):
    maps = in_torch(explorer_network.FIRST)["0.spatial.map"]
    looked.get_by_label("the photograph underneath").uncheck()
    wanted = explorer_network.colours(maps[:1])[0]
    eventually(looked, lambda: np.abs(pixel(looked) - wanted).max() <= 1)
    looked.get_by_label("from each map").check()
    expect(looked.locator(".look-legend")).to_contain_text("A small difference now looks as large")
    stretched = (maps[:1] - maps.min()) / (maps.max() - maps.min())
    wanted = explorer_network.colours(stretched)[0]
    eventually(looked, lambda: np.abs(pixel(looked) - wanted).max() <= 1)


# ---- A picture of the reader's own


def gradient(width, height):
    """Return a picture with a blob in it, as no camera takes one."""
    rows, columns = np.indices((height, width))
    pixels = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], -1)
    picture = Image.fromarray(pixels.astype(np.uint8))
    box = (width // 3, height // 4, width // 2, height // 2)
    ImageDraw.Draw(picture).ellipse(box, fill=(250, 240, 20))
    return picture


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def give(page, name, kind, content):
    page.locator("#look-file").set_input_files({"name": name, "mimeType": kind, "buffer": content})


def shown(page):
    """Return the photograph on the page as the network sees it: (32, 32, 3) uint8."""
    numbers = page.evaluate(
        """() => {
          const canvas = document.querySelector(".look-cover canvas");
          return [...canvas.getContext("2d").getImageData(0, 0, 32, 32).data];
        }"""
    )
    return np.array(numbers, int).reshape(32, 32, 4)[:, :, :3]


@pytest.mark.parametrize("size", [(96, 64), (333, 501), (20, 27), (32, 32)])
def test_a_picture_becomes_what_the_library_makes_of_it(looked, tmp_path, size):
    path = tmp_path / "mine.png"
    path.write_bytes(encoded(gradient(*size), "PNG"))
    looked.locator("#look-file").set_input_files(path)
    expect(looked.locator(".look-crop")).to_be_visible()
    expect(looked.locator(".look-summary")).to_contain_text("“mine.png”: the network says")
    wanted = data.read_image(path).permute(1, 2, 0).numpy().astype(int)
    assert (shown(looked) == wanted).all()
    assert looked.locator(".look-true:visible").count() == 0
    looked.locator("input[name=zoom]").fill("2")
    looked.locator("input[name=across]").fill("1")
    side = min(size) / 2
    box = (size[0] - side, (size[1] - side) / 2, size[0], (size[1] + side) / 2)
    wanted = gradient(*size).resize((32, 32), Image.Resampling.LANCZOS, box=box)
    eventually(looked, lambda: (shown(looked) == np.array(wanted)).all())
    looked.locator("input[name=look-photograph]").first.check(force=True)
    expect(looked.locator(".look-crop")).to_be_hidden()


def test_a_photo_is_turned_as_its_camera_says(looked, tmp_path):
    picture = gradient(120, 80)
    exif = picture.getexif()
    exif[0x0112] = 6  # turn it by a quarter to the right
    path = tmp_path / "turned.jpg"
    path.write_bytes(encoded(picture, "JPEG", exif=exif, quality=95))
    looked.locator("#look-file").set_input_files(path)
    expect(looked.locator(".look-name")).to_have_text("turned.jpg, 80 × 120")
    expect(looked.locator(".look-summary")).to_contain_text("turned.jpg")
    wanted = data.read_image(path).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(shown(looked) - wanted).max() <= 4  # two decoders of JPEG


def test_what_is_no_picture_is_refused_with_a_sentence(looked, tmp_path):
    message = looked.locator(".look-message")
    give(looked, "notes.txt", "text/plain", b"dear diary")
    expect(message).to_contain_text("notes.txt is no picture that this browser can read")
    expect(message).to_contain_text("text/plain")
    give(looked, "empty.png", "image/png", b"")
    expect(message).to_contain_text("empty.png is empty")
    huge = tmp_path / "huge.bmp"
    with huge.open("wb") as file:
        file.truncate(50_000_001)
    looked.locator("#look-file").set_input_files(huge)
    expect(message).to_contain_text("huge.bmp has 50 MB")
    blank = b'<svg xmlns="http://www.w3.org/2000/svg" width="0" height="0"/>'
    give(looked, "blank.svg", "image/svg+xml", blank)
    expect(message).to_contain_text("blank.svg")
    wide = encoded(Image.new("1", (20_000, 6_000)), "PNG")
    give(looked, "wide.png", "image/png", wide)
    expect(message).to_contain_text("wide.png has 120 million pixels")
    answered(looked, in_torch(explorer_network.FIRST)["probabilities"])
    looked.locator("input[name=look-photograph]").first.check(force=True)
    expect(message).to_be_hidden()


def test_a_picture_can_be_dropped_and_pasted(looked):
    content = base64.b64encode(encoded(gradient(64, 64), "PNG")).decode()
    send = """
    ([content, kind]) => {
      const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
      const files = new DataTransfer();
      files.items.add(new File([bytes], `${kind}.png`, { type: "image/png" }));
      const options = { bubbles: true, cancelable: true };
      const event = kind === "drop"
        ? new DragEvent("drop", { ...options, dataTransfer: files })
        : new ClipboardEvent("paste", { ...options, clipboardData: files });
      document.querySelector(".look-app").dispatchEvent(event);
    }
    """
    for kind in ("drop", "paste"):
        looked.evaluate(send, [content, kind])
        expect(looked.locator(".look-name")).to_have_text(f"{kind}.png, 64 × 64")


def test_a_map_is_drawn_without_the_photograph_until_one_asks_for_it(looked):
    under = looked.get_by_label("the photograph underneath")
    expect(under).not_to_be_checked()
    colours = """() => {
      const map = document.querySelectorAll("canvas.look-spatial")[8];
      const { data } = map.getContext("2d").getImageData(0, 0, 4, 4);
      return new Set(Array.from({ length: 16 }, (_, i) => `${data.slice(4 * i, 4 * i + 4)}`)).size;
    }"""
    assert looked.evaluate(colours) == 1  # a place of the map is 4 x 4 pixels of the photograph
    note = looked.get_by_text("Its light and dark now change the colours")
    expect(note).to_be_hidden()
    under.check()
    expect(note).to_be_visible()
    eventually(looked, lambda: looked.evaluate(colours) > 1)


def test_small_changes_are_drawn_faint_and_told_without_a_sign(looked):
    looked.locator("input[name=look-photograph][value='54']").check(force=True)  # a sure truck
    looked.get_by_role("button", name="Slide a patch").click()
    found = looked.locator(".look-found")
    expect(found).to_be_visible(timeout=60_000)
    expect(found).to_contain_text("from 0.0 to 0.0 points")
    expect(found).to_contain_text("the strongest colour is 10.0 points")
    strongest = looked.evaluate(
        """() => {
          const marks = document.querySelector(".look-cover .look-marks");
          const { data } = marks.getContext("2d").getImageData(0, 0, marks.width, marks.height);
          return data.filter((_, i) => i % 4 === 3).reduce((most, one) => Math.max(most, one));
        }"""
    )
    assert strongest < 0.5 * 255  # the veil alone has 45 %


def test_a_finger_asks_what_the_patch_has_shown(phone, site):
    phone.goto(site + PAGE)
    expect(phone.locator("#explorer-look[data-ready]")).to_be_visible()
    phone.get_by_role("button", name="Slide a patch").tap()
    expect(phone.locator(".look-found")).to_be_visible(timeout=60_000)
    where, stage = phone.locator(".look-where"), phone.locator(".look-cover")
    stage.tap()
    expect(where).to_contain_text("points.")
    expect(phone.locator(".look-footer")).not_to_contain_text("covered")
    phone.get_by_role("button", name="Take the result away").tap()
    expect(where).not_to_contain_text("points")
    stage.tap()
    expect(phone.locator(".look-footer")).to_contain_text("25 places covered")


def test_the_photograph_is_no_higher_than_a_low_window(looked):
    looked.set_viewport_size({"width": 640, "height": 450})
    assert looked.locator(".look-cover").bounding_box()["height"] <= 450 - 11 * 16


def test_a_picture_that_opens_late_does_not_replace_what_was_chosen_since(looked):
    looked.evaluate(
        """() => {
          const open = cbam.openPicture;
          const chosen = new Promise((resolve) => (window.letGo = resolve));
          cbam.openPicture = async (file) => {
            const picture = await open(file);
            await chosen;
            window.opened = true;
            return picture;
          };
        }"""
    )
    give(looked, "late.png", "image/png", encoded(gradient(40, 40), "PNG"))
    looked.locator("input[name=look-photograph]").first.check(force=True)
    looked.evaluate("letGo()")
    looked.wait_for_function("window.opened")
    looked.evaluate("new Promise((done) => setTimeout(done, 100))")
    expect(looked.locator(".look-crop")).to_be_hidden()
    expect(looked.locator(".look-summary")).to_contain_text("Airplane 1")


def test_a_picture_keeps_its_own_size_and_a_plain_name(looked):
    wide = encoded(Image.new("1", (10_000, 20)), "PNG")
    give(looked, "\u202ewide.png", "image/png", wide)
    expect(looked.locator(".look-name")).to_have_text("wide.png, 10000 × 20, made 8192 × 16")


def test_a_drawing_whose_pixels_are_kept_back_is_refused_with_a_sentence(looked):
    page = '<div xmlns="http://www.w3.org/1999/xhtml">a page</div>'
    box = 'width="9" height="9"'
    drawing = f'<svg xmlns="http://www.w3.org/2000/svg" {box}><foreignObject {box}>{page}'
    give(looked, "odd.svg", "image/svg+xml", f"{drawing}</foreignObject></svg>".encode())
    message = looked.locator(".look-message")
    expect(message).to_contain_text("odd.svg opens, but the browser does not give its pixels")


def test_a_picture_dropped_beside_the_tools_does_not_leave_the_page(looked):
    prevented = looked.evaluate(
        """() => {
          const files = new DataTransfer();
          files.items.add(new File(["dear diary"], "notes.txt", { type: "text/plain" }));
          const options = { bubbles: true, cancelable: true, dataTransfer: files };
          return ["dragover", "drop"].map(
            (name) => !document.querySelector("h1").dispatchEvent(new DragEvent(name, options)),
          );
        }"""
    )
    assert prevented == [True, True]
    expect(looked.locator(".look-message")).to_contain_text("notes.txt is no picture")


# ---- Every reader


def test_a_finger_covers_and_switches(phone, site):
    phone.goto(site + PAGE)
    expect(phone.locator("#explorer-look[data-ready]")).to_be_visible()
    stage = phone.locator(".look-cover")
    stage.scroll_into_view_if_needed()
    stage.tap()
    expect(phone.locator(".look-footer")).to_contain_text("25 places covered")
    switch = phone.get_by_role("switch", name="channel gate of block 9")
    switch.tap()
    expect(phone.locator(".look-footer")).to_contain_text("1 gate off")
    card = phone.locator(".look-card").nth(1)
    card.locator("canvas.look-spatial").tap()
    expect(phone.locator(".look-detail .look-title")).to_contain_text("Block 2")
    assert phone.evaluate("document.documentElement.scrollWidth") == 375


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it_while_it_is_used(looked, scheme):
    looked.get_by_role("button", name="Channel gates off").click()
    give(looked, "mine.png", "image/png", encoded(gradient(64, 48), "PNG"))
    expect(looked.locator(".look-crop")).to_be_visible()
    give(looked, "notes.txt", "text/plain", b"dear diary")
    expect(looked.locator(".look-message")).to_be_visible()
    looked.locator(".look-cover").click()
    looked.get_by_role("button", name="Slide a patch").click()
    expect(looked.locator(".look-found")).to_be_visible(timeout=60_000)
    looked.locator("canvas.look-spatial").first.hover()
    for width in (WIDE, NARROW):
        show(looked, scheme, width)
        assert not (found := too_wide(looked) + violations(looked)), "\n".join(found)
    looked.set_viewport_size({"width": NARROWEST, "height": 900})
    assert not (found := too_wide(looked)), "\n".join(found)


def test_it_works_from_a_copied_folder_without_a_network(offline, copied):
    offline.goto(copied + PAGE)
    expect(offline.locator("#explorer-look[data-ready]")).to_be_visible()
    give(offline, "mine.png", "image/png", encoded(gradient(50, 40), "PNG"))
    expect(offline.locator(".look-summary")).to_contain_text("“mine.png”")
    offline.get_by_role("switch", name="channel gate of block 1").uncheck()
    expect(offline.locator(".look-footer")).to_contain_text("1 gate off")


def test_without_javascript_there_is_a_picture_and_a_table(scriptless, site):
    scriptless.goto(site + PAGE)
    fallback = scriptless.locator("#explorer-look > .explorer-fallback")
    assert fallback.is_visible()
    assert fallback.locator("svg.look-still image").count() == BLOCKS + 1
    assert fallback.locator("tbody tr").count() == BLOCKS
    assert fallback.get_by_role("link").count() >= 4
