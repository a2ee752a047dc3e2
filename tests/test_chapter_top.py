"""The top of a chapter: a panel of what its first cell says, and the ways to run it."""

import re
from types import SimpleNamespace

import pytest
from docutils import nodes, utils
from sphinx.addnodes import pending_xref

import address
import chapter_top
import notebooks as runner
from chapter_top import ChapterTop, part, place, split
from notebook_cells import CHAPTERS, NOTEBOOKS, read

PAGE = "notebooks/03_channel_attention"


class Environment:
    """As much of Sphinx's as the transform uses."""

    def __init__(self, page):
        self.docname = page
        self.noted = []

    def note_dependency(self, path):
        self.noted.append(path)


def bold(words):
    return nodes.strong("", words)


def paragraph(*parts):
    pieces = [nodes.Text(part) if isinstance(part, str) else part for part in parts]
    return nodes.paragraph("", "", *pieces)


def top(*content, page=PAGE):
    """Return the first section of a page with this content, after the transform."""
    document = utils.new_document("x")
    document.settings.env = Environment(page)
    cell = nodes.container(classes=["cell"])
    document += nodes.section("", nodes.title("", "Title"), *content, cell, ids=["title"])
    ChapterTop(document).apply()
    return document[0]


def opening(*after):
    points = nodes.bullet_list("", nodes.list_item("", paragraph("do it")))
    return [paragraph("After this chapter you can"), points, *after]


def facts(section):
    """Return the labels of the panel, each with what it says."""
    items = list(section.findall(nodes.definition_list_item))
    return {item[0].astext(): item[1].astext() for item in items}


def test_objectives_time_and_needs_become_a_panel():
    section = top(
        *opening(
            paragraph("", bold("Time:"), " about 75 minutes, and 85 more for the exercises."),
            paragraph("", bold("Before this chapter:"), " chapter 02."),
        )
    )
    title, where, panel, cell = section.children
    assert isinstance(title, nodes.title)
    assert where.astext() == "Chapter 3 of 13 · The module, piece by piece"
    assert [node.astext() for node in panel[:2]] == ["After this chapter you can", "do it"]
    assert cell["classes"] == ["cell"]
    found = facts(section)
    assert list(found) == ["Time", "Before this chapter", "Run it here"]
    assert found["Time"] == "About 75 minutes, and 85 more for the exercises."
    assert found["Before this chapter"] == "Chapter 02."


def test_the_other_forms_of_a_first_cell_are_read():
    joint = paragraph(
        "", bold("Time:"), " about 1.\n", bold("Before this chapter:"), " chapter 05."
    )
    assert [label for label, _ in split(joint)] == ["Time", "Before this chapter"]
    section = top(
        paragraph("Words that come first."),
        *opening(
            paragraph("", bold("Time"), ": about 50 minutes."),
            paragraph("", bold("You need"), ": Python."),
            paragraph("Run the cells. Where it says ", bold("Predict"), ", guess."),
        ),
    )
    assert [type(node).__name__ for node in section.children] == [
        "title", "paragraph", "paragraph", "container", "paragraph", "container",
    ]  # fmt: skip
    assert section[2].astext() == "Words that come first."
    assert section[4].astext().startswith("Run the cells.")
    assert facts(section)["You need"] == "Python."


def test_a_chapter_is_run_in_colab_from_a_copy_or_at_home():
    section = top(*opening())
    (colab,) = section.findall(nodes.reference)
    assert colab["refuri"] == address.colab(f"{PAGE}.ipynb")
    (download,) = section.findall(nodes.raw)
    assert f'href="../_sources/{PAGE}.ipynb" download' in download.astext()
    (home,) = section.findall(pending_xref)
    assert home["reftarget"] == "/book/how_to_read"
    (install,) = section.findall(nodes.literal)
    assert chapter_top.REQUIREMENT in install.astext()
    *_, item = section.findall(nodes.definition_list_item)
    assert [node["classes"] for node in item] == [["chapter-run"]] * 2  # the bound book drops them
    assert chapter_top.REQUIREMENT in runner.SETUP


def test_other_pages_are_left_alone():
    section = top(*opening(), page="book/intro")
    assert not list(section.findall(nodes.definition_list))


def test_a_chapter_without_objectives_is_refused():
    with pytest.raises(ValueError, match="'Title' lacks its line 'After this chapter you can'"):
        top(paragraph("Words."))


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_chapter_has_what_the_panel_shows(name):
    first = read(NOTEBOOKS / f"{name}.ipynb").cells[0].source
    labels = re.findall(r"^\*\*(.+?):?\*\*", first, re.MULTILINE)
    assert labels[0] == chapter_top.OPENING or f"\n{chapter_top.OPENING}\n" in first
    assert "Time" in labels
    assert {"Before this chapter", "You need"} & set(labels)
    assert place(f"notebooks/{name}").startswith(f"Chapter {int(name[:2])} of 13 · ")


def test_a_page_in_no_part_is_refused():
    assert part("book/glossary") == "Look up"
    with pytest.raises(ValueError, match=r"book/x is in no part of _toc\.yml"):
        part("book/x")


def test_a_chapter_is_named_with_its_number_and_once():
    names = chapter_top.pages().values()
    read = SimpleNamespace(
        titles={page: nodes.title("", "A title") for page in names},
        tocs={page: paragraph(nodes.reference("", "A title")) for page in names},
    )
    for _ in range(2):  # a build that reads no page anew keeps the former titles
        chapter_top.number_titles(None, read)
    assert read.titles[PAGE].astext() == read.tocs[PAGE].astext() == "03 A title"
