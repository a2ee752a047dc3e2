"""Numbers one can follow: what words name, what gets an anchor, and what is refused."""

import pytest
from docutils import nodes, utils
from sphinx.addnodes import pending_xref

from numbering import Anchors, Mentions, Numbering, caption, mentions


def named(text, chapter="", before=""):
    return [(text[f.start : f.end], f.place) for f in sorted(mentions(text, chapter, before))]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("as figure 3.1 shows", [("figure 3.1", "figure 3.1")]),
        ("Figure 3.12.", [("Figure 3.12", "figure 3.12")]),
        (
            "(figure 3.1) (equation (3.2))",
            [
                ("figure 3.1", "figure 3.1"),
                ("equation (3.2)", "equation 3.2"),
            ],
        ),
        ("by equation (3.1)", [("equation (3.1)", "equation 3.1")]),
        (
            "equations (3.1) and (3.2)",
            [("(3.1)", "equation 3.1"), ("(3.2)", "equation 3.2")],
        ),
        (
            "exercises 3.1, 3.2 and 3.4",
            [("3.1", "exercise 3.1"), ("3.2", "exercise 3.2"), ("3.4", "exercise 3.4")],
        ),
        ("question\n0.2", [("question\n0.2", "question 0.2")]),
        ("chapter 05", [("chapter 05", "chapter 05")]),
        ("chapters 03 to 05", [("03", "chapter 03"), ("05", "chapter 05")]),
        ("chapter 05, section 7", [("chapter 05, section 7", "section 05.7")]),
        (
            "chapter 05 (section 4)",
            [("chapter 05", "chapter 05"), ("section 4", "section 05.4")],
        ),
        (
            "section 6.2 of chapter 03",
            [("section 6.2", "section 03.6.2"), ("chapter 03", "chapter 03")],
        ),
        ("the paper's figure 3 and equation 2", []),
        ("in this chapter 20 steps", []),
        ("figure 3.1.2, Python 3.11, chapter 5, sections", []),
        ("section 7", []),  # of what?
    ],
)
def test_words_name_places(text, found):
    assert named(text) == found


@pytest.mark.parametrize(
    ("text", "before", "found"),
    [
        ("Sections 2 and 9.", "", [("2", "section 03.2"), ("9", "section 03.9")]),
        ("of it (section 8)", "", [("section 8", "section 03.8")]),
        ("section 4 of the paper", "", []),
        ("sections 3 and 4 of their paper", "", []),
        ("He et al. (2016, section 3.3)", "", []),
        (", section 5.1)", "(Goyal et al. 2017, arXiv:1706.02677", []),
        ("The paper gives two reasons (sections 3 and 4.1)", "", []),
    ],
)  # fmt: skip
def test_a_section_is_the_chapters_own_unless_a_paper_is_named(text, before, found):
    assert named(text, "03", before) == found


# What a page becomes


class Environment:
    """As much of Sphinx's as the transforms use."""

    def __init__(self, page):
        self.docname = page
        self.domaindata = {}
        self.numbering = Numbering(self)

    def get_domain(self, name):
        assert name == "numbering"
        return self.numbering


def page(*content, name="notebooks/03_channel_attention"):
    """Return a document with these nodes, after both transforms, and its domain."""
    document = utils.new_document("x")
    document.settings.env = Environment(name)
    document += [nodes.section("", nodes.title("", "Title"), *content, ids=["title"])]
    for transform in (Anchors, Mentions):
        transform(document).apply()
    return document, document.settings.env.numbering


def cell(*outputs):
    return nodes.container("", *outputs, classes=["cell"])


def bundle(image):
    """Return a picture as a notebook's outputs hold it: beside a form of it in words."""
    words = nodes.container("", nodes.literal_block("", "<Figure>"), mime_type="text/plain")
    picture = nodes.container("", image, mime_type="image/png")
    return nodes.container("", picture, words, nb_element="mime_bundle")


def caption_of(number, words="It concludes. "):
    strong = nodes.strong("", "", nodes.Text(f"Figure {number}. {words}"))
    return nodes.paragraph("", "", nodes.Text(""), strong, nodes.Text("Details; see figure 3.2."))


def targets(document):
    return [link["reftarget"] for link in document.findall(pending_xref)]


def test_a_picture_and_its_caption_become_one_figure_with_an_anchor():
    image = nodes.image(uri="x.png", alt="A grid")
    shown = nodes.container("", bundle(image), nb_element="cell_code_output")
    after = nodes.paragraph("", "Then, as figure 3.1 says, more.")
    document, domain = page(cell(nodes.literal_block("", "1 + 1"), shown), caption_of("3.1"), after)
    _, code, found, _ = document[0].children
    assert len(code) == 1, "the picture is no longer an output, nor is its textual form"
    assert isinstance(found, nodes.figure)
    assert found["ids"] == ["figure-3-1"]
    assert found[0] is image
    assert isinstance(found[1], nodes.caption)
    assert found[1].astext() == "Figure 3.1. It concludes. Details; see figure 3.2."
    assert domain.places["figure 3.1"] == ("notebooks/03_channel_attention", "figure-3-1")
    assert targets(document) == ["figure 3.2", "figure 3.1"]  # no link from a number to itself


@pytest.mark.parametrize("images", [0, 2])
def test_a_caption_needs_one_picture(images):
    pictures = [bundle(nodes.image(uri="x.png")) for _ in range(images)]
    with pytest.raises(ValueError, match=rf"'Figure 3\.1\. It .*one picture.*are {images}"):
        page(cell(*pictures), caption_of("3.1"))


def test_only_a_bold_beginning_is_a_caption():
    assert caption(caption_of("3.1"))[1] == "3.1"
    assert caption(nodes.paragraph("", "Figure 3.1. So.")) is None
    assert caption(nodes.paragraph("", "", nodes.strong("", "Predict"))) is None


def test_equations_sections_exercises_and_questions_get_anchors():
    equation = nodes.math_block("", r"a = b \tag{3.2}")
    headings = ["7. Why", "7.1 Because", "Exercise 3.1: build (●○○)", "Question 3.4", "Summary"]
    sections = [
        nodes.section("", nodes.title("", h), ids=[f"s{i}"]) for i, h in enumerate(headings)
    ]
    _, domain = page(equation, *sections)
    assert equation["ids"] == ["equation-3-2"]
    assert [section["ids"][1:] for section in sections] == [
        ["section-03-7"], ["section-03-7-1"], ["exercise-3-1"], ["question-3-4"], [],
    ]  # fmt: skip
    assert sections[0]["ids"][0] == "s0"  # what linked there before still does
    here = "notebooks/03_channel_attention"
    assert domain.places == {
        "chapter 03": (here, ""),
        "section 03.7": (here, "section-03-7"),
        "section 03.7.1": (here, "section-03-7-1"),
        "exercise 3.1": (here, "exercise-3-1"),
        "question 3.4": (here, "question-3-4"),
        "equation 3.2": (here, "equation-3-2"),
    }


def test_another_page_has_links_but_no_anchors():
    text = nodes.paragraph("", "Chapter 03 and exercise 3.1; section 7.")
    heading = nodes.section("", nodes.title("", "Exercise 3.1: build"), ids=["solution-3-1"])
    document, domain = page(text, heading, name="book/solutions")
    assert targets(document) == ["chapter 03", "exercise 3.1"]
    assert domain.places == {}


def test_a_section_about_a_chapter_speaks_of_its_sections():
    about = nodes.section("", nodes.title("", "03"), ids=["chapter-03"])
    about += nodes.paragraph("", "Section 7 of it; chapter 03.")
    document, _ = page(about, name="book/solutions")
    assert targets(document) == ["chapter 03"]  # "section 7 of" something else
    about.children[1].replace_self(nodes.paragraph("", "See section 7 there."))
    Mentions(document).apply()
    assert targets(document) == ["section 03.7"]


def test_code_headings_links_and_the_chapter_itself_are_left_alone():
    words = "figure 3.1 in chapter 03"
    closed = [
        nodes.paragraph("", "", nodes.literal("", words)),
        nodes.paragraph("", "", nodes.reference("", words, refuri="x")),
        nodes.literal_block(words, words),
        nodes.section("", nodes.title("", words), ids=["s"]),
    ]
    document, _ = page(*closed)
    assert targets(document) == []
    document, _ = page(nodes.paragraph("", words))
    assert targets(document) == ["figure 3.1"]
    (link,) = document.findall(pending_xref)
    assert link["refwarn"] is True
    assert "nothing in the book is" in Numbering.dangling_warnings[link["reftype"]]


def test_what_a_page_had_is_forgotten_with_it():
    _, domain = page(nodes.math_block("", r"a \tag{3.1}"))
    domain.note("equation 4.1", "notebooks/04", "equation-4-1")
    domain.clear_doc("notebooks/03_channel_attention")
    assert list(domain.places) == ["equation 4.1"]
    other = {"places": {"figure 5.1": ("a", "x"), "figure 6.1": ("b", "y")}}
    domain.merge_domaindata(["a"], other)
    assert domain.places["figure 5.1"] == ("a", "x")
    assert "figure 6.1" not in domain.places
