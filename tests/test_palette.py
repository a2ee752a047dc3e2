"""The site's colours: text can be read on every ground that it stands on, in either mode."""

import re
from pathlib import Path

import pytest

PALETTE = Path(__file__).parents[1] / "book" / "_static" / "palette.css"
GROUNDS = ("ground", "surface")
TEXT = [(ink, ground) for ink in ("ink", "quiet", "feature-ink", "map-ink") for ground in GROUNDS]
TEXT += [("ink", f"{name}-soft") for name in ("feature", "map", "good", "bad")] + [("ink", "mark")]
TEXT += [("feature-ink", "feature-soft"), ("map-ink", "map-soft"), ("on-feature", "feature")]
TEXT += [("on-feature", "feature-ink"), ("ground", "map-ink"), ("quiet", "feature-soft")]
TEXT += [(name, ground) for name in ("good", "bad") for ground in (*GROUNDS, f"{name}-soft")]
TEXT += [("feature-ink", "mark"), ("quiet", "map-soft")]
SEEN = [(line, ground) for line in ("edge", "focus", "feature", "map") for ground in GROUNDS]


def colours(mode: str) -> dict[str, tuple[int, int, int]]:
    """Return the colours by name as red, green and blue, 0 to 255, of "light" or "dark"."""
    light, dark, *_ = re.findall(r"html\[data-theme[^{]*\{(.*?)\}", PALETTE.read_text(), re.S)
    text = light + (dark if mode == "dark" else "")
    found = {}
    for name, code in re.findall(r"--cbam-([\w-]+): #(\w{3}|\w{6});", text):
        six = "".join(2 * c for c in code) if len(code) == 3 else code
        found[name] = (int(six[:2], 16), int(six[2:4], 16), int(six[4:], 16))
    return found


def luminance(colour: tuple[int, int, int]) -> float:
    """Return the relative luminance of WCAG 2.1."""
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Return the contrast ratio of WCAG 2.1, from 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_contrast_is_that_of_wcag() -> None:
    """Black on white is 21 to 1; the grey #767676 is the lightest that reaches 4.5 on white."""
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((0x76,) * 3, (255,) * 3) > 4.5 > contrast((0x77,) * 3, (255,) * 3)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_what_is_read_or_must_be_seen_stands_out(mode: str) -> None:
    """Text has a contrast of 4.5, lines and marks have 3, as WCAG 2.1 AA asks."""
    found = colours(mode)
    pairs = [(4.5, *pair) for pair in TEXT] + [(3.0, *pair) for pair in SEEN]
    weak = [
        f"{one} on {other}: {contrast(found[one], found[other]):.2f}, wants {least}"
        for least, one, other in pairs
        if contrast(found[one], found[other]) < least
    ]
    assert not weak


def test_features_and_maps_have_the_colours_of_the_figures() -> None:
    """What is blue and orange in a figure is the same blue and orange on the page."""
    from cbam_edu.plot import PALETTE as FIGURES

    pair = {
        mode: {"#{:02X}{:02X}{:02X}".format(*colours(mode)[name]) for name in ("feature", "map")}
        for mode in ("light", "dark")
    }
    assert pair == {"light": {FIGURES[0], FIGURES[4]}, "dark": {FIGURES[5], FIGURES[1]}}
