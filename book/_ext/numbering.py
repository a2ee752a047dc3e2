r"""Figures, equations, exercises, questions, sections: an anchor each, and links to them.

The chapters are read raw, too, on Colab and GitHub, so their numbers stand in the text: a caption
begins with ``**Figure 3.1. ...**``, an equation ends with ``\tag{3.1}``, headings say
``Exercise 3.2: ...``, ``Question 3.1`` and ``7. Why ...``. Here each of them gets an anchor, such
as ``figure-3-1``, a picture and its caption become one figure, and words such as "figure 3.1",
"equation (3.1)", "exercises 3.1 to 3.3", "chapter 05, section 7" and, within a chapter,
"section 7" become links. A number that does not exist is a warning, so the book is not built.

What a paragraph says of a paper's own sections is left alone.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.domains import Domain
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

import chapters

CAPTION = re.compile(r"Figure (\d+\.\d+)\. ")
TAG = re.compile(r"\\tag\{(\d+\.\d+)\}")
HEADING = re.compile(r"(Exercise|Question) (\d+\.\d+)(?=:|$)")
SECTION = re.compile(r"(\d+(?:\.\d+)?)\.? ")

JOINT = r"(?:,\s+and|,\s+or|,|\s+and|\s+or|\s+to)\s+"
PLACE, CHAPTER, PART = r"(?:\(\d+\.\d+\)|\d+\.\d+)", r"\d\d", r"\d+(?:\.\d+)?"
PLACES, CHAPTERS, PARTS = (  # lists such as "3.1, 3.2 and 3.4"
    rf"(?>{number}(?:{JOINT}{number})*)(?![\d.]*\d)" for number in (PLACE, CHAPTER, PART)
)
MENTION = re.compile(
    rf"""\b(?:
        (?P<kind>figure|equation|exercise|question)s?\s+(?P<places>{PLACES})
      | sections?\s+(?P<parts>{PARTS})\s+of\s+chapter\s+(?P<of>{CHAPTER})(?!\d)
      | (?<!this\s)chapters?\s+(?P<chapters>{CHAPTERS})
        (?:(?:,|\s+\()\s*sections?\s+(?P<after>{PARTS}))?
      | sections?\s+(?P<own>{PARTS})(?!\s+of\b)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
# What comes before a section that is not this chapter's: "He et al. (2016, section 3.3)".
FOREIGN = re.compile(r"(?:\bpapers?\b|arXiv|et al)[^;]{0,60}$", re.IGNORECASE)
# In these, words are an exact text, a heading, or a link already.
CLOSED = (
    chapters.Link,
    nodes.FixedTextElement,
    nodes.Invisible,
    nodes.literal,
    nodes.math,
    nodes.raw,
    nodes.reference,
    nodes.title,
    download_reference,
    pending_xref,
)


class Found(NamedTuple):
    """A stretch of a text that names a place.

    Attributes
    ----------
    start, end : int
        Where the words are.
    place : str
        What they name, such as "figure 3.1", "section 05.7" or "chapter 05".
    """

    start: int
    end: int
    place: str


def chapter_of(page: str) -> str:
    """Return the two digits of a page that is a chapter, or nothing."""
    path = PurePosixPath(page)
    return path.name[:2] if str(path.parent) == "notebooks" else ""


def mentions(text: str, chapter: str = "", before: str = "") -> Iterator[Found]:
    """Yield the places that a text names.

    Parameters
    ----------
    text : str
        The words.
    chapter : str
        The chapter they stand in, two digits; elsewhere "section 7" alone means nothing.
    before : str
        What stands before them in the paragraph.
    """
    for match in MENTION.finditer(text):
        if match["kind"]:
            yield from _each(match, "places", match["kind"].lower() + " {}", PLACE)
        elif match["of"]:
            yield from _each(match, "parts", f"section {match['of']}.{{}}", PART)
            yield from _each(match, "of", "chapter {}", CHAPTER)
        elif match["chapters"]:
            yield from _chapters_and_sections(match)
        elif chapter and not FOREIGN.search(before + text[: match.start()]):
            yield from _each(match, "own", f"section {chapter}.{{}}", PART)


def _chapter(number: str) -> str:
    return f"chapter {number}"


def _each(match: re.Match[str], group: str, place: str, number: str) -> list[Found]:
    """Return the numbers of one group; a single one takes the word before it along."""
    items = list(re.finditer(number, match[group]))
    offset = match.start(group)
    found = [
        Found(offset + item.start(), offset + item.end(), place.format(item[0].strip("()")))
        for item in items
    ]
    if len(found) == 1:
        word = re.search(r"\w+\s+$", match.string[:offset])
        return [found[0]._replace(start=word.start())] if word else found
    return found


def _chapters_and_sections(match: re.Match[str]) -> list[Found]:
    found = _each(match, "chapters", "chapter {}", CHAPTER)
    if not match["after"]:
        return found
    last = found[-1]
    number = last.place.partition(" ")[2]
    parts = _each(match, "after", f"section {number}.{{}}", PART)
    if match.string[last.end : parts[0].start].split() == [","]:  # "chapter 05, section 7"
        return [*found[:-1], parts[0]._replace(start=last.start)]
    return [*found, *parts]


def anchor(place: str) -> str:
    """Return the name of a place's anchor, such as "figure-3-1" for "figure 3.1"."""
    return re.sub(r"[ .]", "-", place)


class Numbering(Domain):
    """What has a number, and where it is."""

    name = "numbering"
    label = "Numbering"
    # place -> page, anchor
    initial_data: dict[str, Any] = {"places": {}}  # noqa: RUF012  # as Sphinx declares it
    dangling_warnings = {"place": "nothing in the book is %(target)s"}  # noqa: RUF012

    @property
    def places(self) -> dict[str, tuple[str, str]]:
        """Where each numbered thing is: its page and its anchor there."""
        places: dict[str, tuple[str, str]] = self.data["places"]
        return places

    def note(self, place: str, page: str, name: str) -> None:
        """Remember where a numbered thing is; it may be at one place only."""
        if place in self.places:
            logging.getLogger(__name__).warning(
                f"{place} is there twice, here and in {self.places[place][0]}", location=page
            )
        self.places[place] = page, name

    def clear_doc(self, docname: str) -> None:
        """Forget what a page had."""
        for place, (page, _) in list(self.places.items()):
            if page == docname:
                del self.places[place]

    def merge_domaindata(self, docnames: list[str], otherdata: dict[str, Any]) -> None:
        """Take over what another process has read."""
        self.places.update({k: v for k, v in otherdata["places"].items() if v[0] in docnames})

    def resolve_xref(
        self,
        env: BuildEnvironment,
        fromdocname: str,
        builder: Any,
        typ: str,
        target: str,
        node: pending_xref,
        contnode: nodes.Element,
    ) -> nodes.reference | None:
        """Return the link to a place, or nothing where there is no such place."""
        if target not in self.places:
            return None
        page, name = self.places[target]
        return make_refnode(builder, fromdocname, page, name, contnode)

    def resolve_any_xref(self, *_: Any) -> list[Any]:
        """Return nothing: these places are not found by the role ``any``."""
        return []


class Anchors(SphinxTransform):
    """Gives an anchor to whatever has a number in a chapter, and a picture its caption."""

    default_priority = 700

    def apply(self, **_: Any) -> None:
        """Look through one page."""
        page = self.env.docname
        chapter = chapter_of(page)
        if not chapter:
            return
        domain = self.env.get_domain("numbering")
        assert isinstance(domain, Numbering)
        domain.note(_chapter(chapter), page, "")
        for node, place in [*self._headings(chapter), *self._equations(), *self._figures()]:
            name = anchor(place)
            if name not in node["ids"]:  # as a heading may have it already
                node["ids"].append(name)
            self.document.ids[name] = node
            domain.note(place, page, name)

    def _headings(self, chapter: str) -> Iterator[tuple[nodes.Element, str]]:
        for section in self.document.findall(nodes.section):
            words = section[0].astext()
            if match := HEADING.match(words):
                yield section, f"{match[1].lower()} {match[2]}"
            elif match := SECTION.match(words):
                yield section, f"section {chapter}.{match[1]}"

    def _equations(self) -> Iterator[tuple[nodes.Element, str]]:
        for equation in self.document.findall(nodes.math_block):
            for number in TAG.findall(equation.astext()):
                yield equation, f"equation {number}"

    def _figures(self) -> Iterator[tuple[nodes.Element, str]]:
        for paragraph in list(self.document.findall(nodes.paragraph)):
            if match := caption(paragraph):
                yield figure(paragraph), f"figure {match[1]}"


def caption(node: nodes.Node) -> re.Match[str] | None:
    """Return the match of a figure's number, if a paragraph is a caption."""
    if not isinstance(node, nodes.paragraph | nodes.caption):
        return None
    first = next((child for child in node.children if child.astext()), None)
    return CAPTION.match(first.astext()) if isinstance(first, nodes.strong) else None


def figure(paragraph: nodes.paragraph) -> nodes.figure:
    """Make one figure of a caption and the picture that the cell before it shows; return it.

    Raises
    ------
    ValueError
        If there is no one picture in the cell before.
    """
    before = paragraph.previous_sibling()
    images = list(before.findall(nodes.image)) if before else []
    if len(images) != 1:
        raise ValueError(
            f"the caption {paragraph.astext()[:40]!r} needs a cell with one picture before it, "
            f"but there are {len(images)}"
        )
    (image,) = images
    _take_out(image)
    words = nodes.caption(paragraph.rawsource, "", *paragraph.children)
    words.source, words.line = paragraph.source, paragraph.line
    whole = nodes.figure("", image, words, classes=["numbered"])
    paragraph.replace_self(whole)
    return whole


def _take_out(image: nodes.image) -> None:
    """Take a picture out of its cell, with the other forms of it, and what is empty then."""
    node: nodes.Element = image
    while node.parent.get("mime_type") or node.parent.get("nb_element") == "mime_bundle":
        node = node.parent
    outputs = node.parent
    outputs.remove(node)
    if not outputs.children:
        outputs.parent.remove(outputs)


class Mentions(SphinxTransform):
    """Turns the words that name a numbered thing into links."""

    default_priority = 710

    def apply(self, **_: Any) -> None:
        """Look through one page."""
        for block in list(self.document.findall(nodes.TextElement)):
            if isinstance(block, nodes.Inline):
                continue
            before = ""
            for text in list(block.findall(nodes.Text)):
                if _is_open(text):
                    self._link(
                        text, before, skip=CAPTION if not before and caption(block) else None
                    )
                before += text.astext()

    def _link(self, text: nodes.Text, before: str, skip: re.Pattern[str] | None) -> None:
        words = text.astext()
        own = skip.match(words) if skip else None  # a caption's number is no link to itself
        here = chapter_of(self.env.docname)
        pieces: list[nodes.Node] = []
        done = 0
        for found in sorted(mentions(words, here or chapter_around(text), before)):
            if (own and found.start < own.end()) or found.place == _chapter(here):
                continue
            pieces += [nodes.Text(words[done : found.start]), self._pending(text, found)]
            done = found.end
        if pieces:
            text.parent.replace(text, [*pieces, nodes.Text(words[done:])])

    def _pending(self, text: nodes.Text, found: Found) -> pending_xref:
        words = text.astext()[found.start : found.end]
        link = pending_xref(
            "",
            nodes.inline("", words),
            refdomain="numbering",
            reftype="place",
            reftarget=found.place,
            refdoc=self.env.docname,
            refexplicit=True,
            refwarn=True,
        )
        parent = text.parent
        while parent is not None and link.line is None:
            link.source, link.line = parent.source, parent.line
            parent = parent.parent
        return link


def chapter_around(node: nodes.Node) -> str:
    """Return the two digits of the chapter that a section of another page is about, or nothing."""
    parent = node.parent
    while parent is not None:
        for name in parent["ids"] if isinstance(parent, nodes.section) else ():
            if match := re.fullmatch(r"chapter-(\d\d)", name):
                return match[1]
        parent = parent.parent
    return ""


def _is_open(text: nodes.Text) -> bool:
    """Say whether words are running text: in no code, heading, formula or link."""
    parent = text.parent
    while parent is not None:
        if isinstance(parent, CLOSED):
            return False
        parent = parent.parent
    return True


def _do_not_count(_: Sphinx, config: Config) -> None:
    config["numfig"] = False


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_domain(Numbering)
    app.add_transform(Anchors)
    app.add_transform(Mentions)
    # Jupyter Book would count the figures once more; this is late, so it has the last word.
    app.connect("config-inited", _do_not_count, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
