"""What a reader does with the site: search, copy, fold, switch the light, find the way."""

import re

import pytest

from built import CHAPTERS, CONTENTS
from views import settled

SEARCHED = {
    "sigmoid": "notebooks/03_channel_attention.html",
    "bottleneck": "notebooks/03_channel_attention.html",
    "BatchNorm": "notebooks/04_spatial_attention.html",
    "Grad-CAM": "notebooks/10_what_does_it_look_at.html",
    "ptflops": "notebooks/07_in_a_network.html",
    "squeeze": "notebooks/12_variants.html",
    "kernel": "notebooks/04_spatial_attention.html",
    "seed": "book/reproducibility.html",
    "softmax": "book/faq.html",
    "receptive": "book/glossary.html",
}
CHAPTER = "notebooks/02_pooling.html"
# What a fold holds beside its summary, and whether a reader sees it.
INSIDE_IS_SEEN = """fold => {
  const inside = [...fold.children].filter(one => one.tagName !== "SUMMARY");
  return inside.length > 0 && inside.every(one => one.checkVisibility() && one.innerText.trim());
}"""


@pytest.mark.parametrize(("term", "wanted"), SEARCHED.items())
def test_the_search_finds(page, site, term, wanted):
    page.goto(site)
    page.keyboard.press("Control+k")
    page.keyboard.type(term)
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=*")
    page.wait_for_function("document.querySelector('.search-summary')?.innerText.includes('page')")
    found = page.locator("ul.search li a").evaluate_all("all => all.map(one => one.pathname)")
    assert any(path.endswith(wanted) for path in found)


@pytest.mark.parametrize("name", [CHAPTER, "book/how_to_read.html", "book/api.html"])
def test_the_copy_buttons_copy_what_can_be_run(page, site, name):
    settled(page, site + name)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    codes = page.locator("div.highlight:has(> .copybtn)").all()
    assert codes
    for code in codes:
        code.locator(".copybtn").click()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == can_be_run(code.locator("pre").inner_text())


def can_be_run(shown):
    """Return code without prompts, and without outputs where there are prompts."""
    lines = shown.removesuffix("\n").split("\n")
    if any(line.startswith(">>> ") for line in lines):
        lines = [line[4:] for line in lines if line.startswith((">>> ", "... "))]
    return "\n".join(lines)


def folds(page, address):
    """Open a page and return all that is folded on it: hints, solutions, answers."""
    settled(page, address)
    found = page.locator(".bd-article details").all()
    assert found
    return found


def turn(fold, act):
    """Unfold and fold again by what ``act`` does to the summary, and see what is seen."""
    summary = fold.locator("summary").first
    for seen in (True, False):
        act(summary)
        assert fold.evaluate(INSIDE_IS_SEEN) is seen


def test_quizzes_hints_and_solutions_fold_by_mouse(page, site):
    for fold in folds(page, site + CHAPTER):
        turn(fold, lambda summary: summary.click())


def test_they_fold_by_touch(phone, site):
    for fold in folds(phone, site + CHAPTER):
        turn(fold, lambda summary: summary.tap())


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_they_fold_by_keyboard(page, site, key):
    for fold in folds(page, site + CHAPTER):
        turn(fold, lambda summary: summary.press(key))


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_answer_of_every_quiz_gives_its_reason(page, site, name):
    settled(page, site + name)
    answers = page.locator("details").filter(has_text=re.compile("^[A-D]\\. ")).all()
    assert len(answers) >= 10
    for answer in answers:
        answer.evaluate("one => one.querySelector('summary').click()")
        assert answer.evaluate(INSIDE_IS_SEEN)
        reason = " ".join(answer.inner_text().split("\n")[1:]).strip()
        assert re.match(r"(✓ Yes|✗ No)\b.{20}", reason)


def test_the_switch_changes_the_colours_and_the_next_page_knows(page, site):
    page.emulate_media(color_scheme="light")
    settled(page, site + "book/notation.html")
    grounds = set()
    for mode in ("light", "dark"):
        for _ in range(3):  # light, dark, and what the system says
            if page.evaluate("document.documentElement.dataset.mode") != mode:
                page.get_by_role("button", name="Color mode").click()
        settled(page, site + "book/faq.html")
        assert page.evaluate("document.documentElement.dataset.theme") == mode
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


CONTENTS_LINK = "nav.bd-links a[href]"


def test_the_contents_open_on_a_phone(phone, site):
    settled(phone, site + "book/notation.html")
    link = phone.locator(CONTENTS_LINK).filter(has_text="Start here")
    assert not link.is_visible()
    phone.locator(".primary-toggle").tap()
    link.tap()
    phone.wait_for_url("**/00_start_here.html")


def test_the_contents_open_and_close_by_keyboard(phone, site):
    settled(phone, site + "book/notation.html")
    link = phone.locator(CONTENTS_LINK).first
    phone.locator(".primary-toggle").press("Enter")
    link.wait_for(state="visible")
    assert phone.evaluate("document.activeElement.closest('dialog') !== null")
    phone.keyboard.press("Escape")
    link.wait_for(state="hidden")


def test_the_first_tab_skips_to_the_text(page, site):
    settled(page, site + CHAPTER)
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to main content")
    assert skip.evaluate("one => one === document.activeElement")
    assert skip.is_visible()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_one_walks_to_the_next_page_and_back(page, site):
    settled(page, site + CONTENTS[1])
    page.locator(".right-next").click()
    page.wait_for_url(f"**/{CONTENTS[2]}")
    page.locator(".left-prev").click()
    page.wait_for_url(f"**/{CONTENTS[1]}")
