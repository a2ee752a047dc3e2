"""The top of a chapter: where it stands, what it teaches, how long it takes, how to run it.

A chapter's first cell says in plain Markdown what the reader will be able to do, the time, and what
to know before. On the site these become a panel, with a line above it that says where in the book
the chapter stands, and with links that open the notebook in Colab or download it. The notebook is
the site's own copy of it, so that the link needs no network.
"""

import html
import re
from collections.abc import Iterator

import yaml
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform

from address import ROOT, colab
from chapters import pages
from numbering import chapter_of

OPENING = "After this chapter you can"
LABELS = ("Time", "Before this chapter", "You need")
REQUIREMENT = "cbam_edu[course]"  # what the chapters' first cell installs
HOME = "book/how_to_read"  # the page that says how to run a chapter at home


def part(page: str) -> str:
    """Return the name of the part of the book that a page belongs to.

    Raises
    ------
    ValueError
        If the page is in no part of the table of contents.
    """
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    for some in toc["parts"]:
        if page in [chapter["file"] for chapter in some["chapters"]]:
            return str(some["caption"])
    raise ValueError(f"{page} is in no part of _toc.yml")


def place(page: str) -> str:
    """Return where a chapter stands, such as "Chapter 3 of 13 · The module, piece by piece"."""
    number, last = int(chapter_of(page)), int(max(pages()))
    return f"Chapter {number} of {last} · {part(page)}"


class ChapterTop(SphinxTransform):
    """Makes a panel of what the first cell of a chapter says of itself."""

    default_priority = 690  # before words become links

    def apply(self, **_: object) -> None:
        """Change one page, if it is a chapter."""
        page = self.env.docname
        if not chapter_of(page):
            return
        for name in ("_toc.yml", "_config.yml"):
            self.env.note_dependency(str(ROOT / name))
        section = next(self.document.findall(nodes.section))
        opening = _opening(section)
        after = section[section.index(opening) + 1]
        facts = [fact for text in _facts(section) for fact in split(text)]
        for text in list(_facts(section)):
            section.remove(text)
        panel = nodes.container(classes=["chapter-top"])
        section.replace(opening, panel)
        section.remove(after)
        opening["classes"].append("chapter-can")
        known = definitions([*facts, ("Run it here", self._run(page))])
        for node in known[-1].children:
            node["classes"].append("chapter-run")  # paper does without it
        panel += [opening, after, known]
        section.insert(1, nodes.paragraph("", place(page), classes=["chapter-place"]))

    def _run(self, page: str) -> list[nodes.Node]:
        """Return the ways to run a chapter."""
        path = f"{page}.ipynb"
        copy = "../" * page.count("/") + f"_sources/{path}"
        home = pending_xref(
            "",
            nodes.inline("", "how"),
            refdomain="std",
            reftype="doc",
            reftarget=f"/{HOME}",
            refdoc=page,
            refexplicit=True,
            refwarn=True,
        )
        install = f'pip install "{REQUIREMENT}" jupyterlab'
        return [
            nodes.reference("", "Open in Colab", refuri=colab(path), classes=["chapter-button"]),
            nodes.raw("", _download(copy), format="html"),
            nodes.inline(
                "",
                "",
                nodes.Text("or on your own machine: "),
                nodes.literal("", install),
                nodes.Text(" ("),
                home,
                nodes.Text(")"),
                classes=["chapter-home"],
            ),
        ]


def _download(address: str) -> str:
    classes = "chapter-button chapter-download"
    return (
        f' <a class="{classes}" href="{html.escape(address)}" download>Download the notebook</a> '
    )


def _opening(section: nodes.section) -> nodes.paragraph:
    for node in section.children:
        if isinstance(node, nodes.paragraph) and node.astext().startswith(OPENING):
            return node
    raise ValueError(f"{section[0].astext()!r} lacks its line {OPENING!r}")


def _label(node: nodes.Node) -> str:
    """Return the label that a node is, or nothing."""
    words = node.astext().rstrip(":") if isinstance(node, nodes.strong) else ""
    return words if words in LABELS else ""


def _facts(section: nodes.section) -> Iterator[nodes.paragraph]:
    for node in section.children:
        if isinstance(node, nodes.container):
            return  # the first cell of code
        if isinstance(node, nodes.paragraph) and any(map(_label, node.children)):
            yield node


def split(paragraph: nodes.paragraph) -> list[tuple[str, list[nodes.Node]]]:
    """Return the labels of a paragraph, each with what follows it up to the next."""
    found: list[tuple[str, list[nodes.Node]]] = []
    for node in paragraph.children:
        if label := _label(node):
            found.append((label, []))
        elif found:
            found[-1][1].append(node)
    return [(label, _sentence(content)) for label, content in found]


def _sentence(content: list[nodes.Node]) -> list[nodes.Node]:
    """Begin with a capital letter rather than a colon, and end without white space."""
    if content and isinstance(content[0], nodes.Text):
        words = re.sub(r"^[:\s]+", "", content[0].astext())
        content[0] = nodes.Text(words[:1].upper() + words[1:])
    if content and isinstance(content[-1], nodes.Text):
        content[-1] = nodes.Text(content[-1].astext().rstrip())
    return content


def definitions(facts: list[tuple[str, list[nodes.Node]]]) -> nodes.definition_list:
    """Return a list of labels, each with what it says."""
    whole = nodes.definition_list(classes=["chapter-facts"])
    for label, content in facts:
        said = nodes.definition("", nodes.paragraph("", "", *content))
        whole += nodes.definition_list_item("", nodes.term("", label), said)
    return whole


def number_titles(app: Sphinx, env: BuildEnvironment) -> None:
    """Begin a chapter's title with its number wherever the site names it: "chapter 05" is found."""
    for number, page in pages().items():
        words = env.titles[page].astext()
        if not words.startswith(number):
            env.titles[page] = nodes.title("", f"{number} {words}")
            entry = next(env.tocs[page].findall(nodes.reference))  # what the side bar shows
            entry.children = [nodes.Text(f"{number} {words}")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_transform(ChapterTop)
    app.connect("env-updated", number_titles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
