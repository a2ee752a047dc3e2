"""Bind the pages of the built site into one page, to be printed as a book.

Every page becomes a chapter, in the order of the table of contents. A link to another page leads
to its place in the book; one to what a book cannot hold, such as a notebook, leads to the site.
Hints, and what each answer of a quiz says, are folded away on the site; here they stand in a
chapter of their own at the end, and a solution is the one in the chapter of solutions.
"""

import html
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import yaml
from bs4 import BeautifulSoup, Tag

from address import ROOT, contents, site
from numbering import chapter_of

STYLE = ROOT / "book/_ext/pdf.css"
COVER = "_static/cbam.svg"
SOLUTIONS = "book/solutions"
ANSWERS = "hints-and-answers"
ANSWERS_TITLE = "Hints and answers"
PLACES = ("id", "for", "aria-labelledby", "aria-describedby", "aria-controls")
EXERCISE = re.compile(r"Exercise (\d+)\.(\d+)")
OPTION = re.compile(r"[A-Z]\. ")
SCREEN_ONLY = ".headerlink, script, button, .copybtn, .chapter-run"
# Names, points and spaces in code have the colour of the text around them. As elements of their
# own they would be two in five of all that the PDF describes.
PLAIN = "pre span.n, pre span.p, pre span.w, code span.pre"


@dataclass
class Answers:
    """What was folded away, by chapter and by the heading that it stood under."""

    chapters: list[str] = field(default_factory=list)
    chapter: str = ""
    heading: str = ""
    count: int = 0

    def add(self, chapter: str, heading: Tag, place: str, inner: str) -> str:
        """Keep a piece of HTML, and return the place where it will stand."""
        if chapter != self.chapter:
            self.chapters.append(f"<h2>{chapter}</h2>")
            self.chapter = chapter
        if place != self.heading:
            self.count += 1
            link = f'<a href="#{place}">{heading.decode_contents()}</a>'
            self.chapters.append(f'<h3 id="{ANSWERS}--{self.count}">{link}</h3>')
            self.heading = place
        self.chapters.append(inner)
        return f"{ANSWERS}--{self.count}"


def slug(page: str) -> str:
    """Return the name of a page's place in the book."""
    return page.replace("/", "-")


def place(page: str, link: str, known: set[str]) -> str:
    """Return where a link on a page of the site leads from within the book."""
    url = urlsplit(link)
    if url.scheme or url.netloc:
        return link
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(url.path)))
    target = page if not url.path else path.removesuffix(".html")
    if target in known:
        return f"#{slug(target)}" + (f"--{url.fragment}" if url.fragment else "")
    return urljoin(site(), path) + (f"#{url.fragment}" if url.fragment else "")


def rename(article: Tag, page: str, known: set[str], built: Path) -> None:
    """Make the names, links and pictures of a page right for the book."""
    for element in article.find_all(True):
        for name in PLACES:
            if element.get(name):
                named = str(element[name]).split()
                element[name] = " ".join(f"{slug(page)}--{part}" for part in named)
        if element.get("href"):
            element["href"] = place(page, str(element["href"]), known)
        if element.get("src") and not str(element["src"]).startswith("data:"):
            element["src"] = address_in(built, page, str(element["src"]))


def heading_above(fold: Tag) -> tuple[Tag, str]:
    """Return the heading and the place of the section that something folded stands in."""
    section = fold.find_parent("section")
    heading = section.find(re.compile("h[1-6]")) if section else None
    if not (isinstance(section, Tag) and isinstance(heading, Tag)):
        raise ValueError(f"something is folded away outside of a section: {str(fold)[:100]}")
    return heading, str(section["id"])


def fragment(markup: str) -> Tag:
    """Return a piece of HTML as an element."""
    return BeautifulSoup(markup, "html.parser")


def link_to(place: str, words: str) -> str:
    """Return a short line that says where what was folded away here is."""
    return f'<p class="folded"><a href="#{place}">{words}</a></p>'


def solution(heading: Tag, solved: set[str]) -> str:
    """Return the place of the solution of the exercise below a heading.

    Raises
    ------
    ValueError
        If it is no exercise, or its solution is not in the chapter of solutions.
    """
    exercise = EXERCISE.match(heading.get_text())
    found = exercise and f"{slug(SOLUTIONS)}--solution-{int(exercise[1])}-{exercise[2]}"
    if found not in solved:
        raise ValueError(f"the chapter of solutions has none of {heading.get_text()!r}")
    return str(found)


def unfold(article: Tag, solved: set[str], answers: Answers) -> None:
    """Take what is folded away out of a chapter, and say where in the book it is."""
    title = article.find("h1")
    chapter = title.decode_contents() if isinstance(title, Tag) else ""
    for fold in article.find_all("details"):
        summary = fold.find("summary")
        if not isinstance(summary, Tag):
            raise ValueError(f"something folded has no summary: {str(fold)[:100]}")
        option, name = summary.extract().decode_contents(), summary.get_text().strip()
        heading, here = heading_above(fold)
        inner = fold.decode_contents()
        if name == "Solution":
            left = link_to(solution(heading, solved), name)
        elif name == "Hint":
            left = link_to(answers.add(chapter, heading, here, inner), name)
        elif not OPTION.match(name):
            left = f'<p class="opened">{option}</p>{inner}'
        else:
            told = f'<div class="answer"><p><strong>{option}</strong></p>{inner}</div>'
            there = answers.add(chapter, heading, here, told)
            last = fold.find_next_sibling("details") is None
            left = f'<p class="option">{option}</p>' + (link_to(there, "Answers") if last else "")
        fold.replace_with(fragment(left))


def point_to_site(article: Tag, page: str) -> None:
    """Say below what only a screen can show where it is."""
    url = urljoin(site(), f"{page}.html")
    for part in article.select(".explorer"):
        part.append(fragment(f'<p>It is on the site: <a href="{url}">{url}</a></p>'))


def articles(built: Path) -> dict[str, Tag]:
    """Return the text of every page of the built site, in order."""
    found = {}
    for page in contents():
        parsed = BeautifulSoup((built / f"{page}.html").read_text("utf-8"), "html.parser")
        article = parsed.select_one("article.bd-article")
        if article is None:
            raise ValueError(f"{page}.html has no article")
        for element in article.select(SCREEN_ONLY):
            element.decompose()
        for needless in (*article.find_all("noscript"), *article.select(PLAIN)):
            needless.unwrap()
        found[page] = article
    return found


def title_of(article: Tag) -> str:
    """Return the heading of a page, as text."""
    heading = article.find("h1")
    return heading.get_text().strip() if isinstance(heading, Tag) else ""


def parts() -> Iterator[tuple[str, list[str]]]:
    """Yield the parts of the book with their pages; the first, the landing page, has no name."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    yield "", [toc["root"]]
    for part in toc["parts"]:
        yield part["caption"], [chapter["file"] for chapter in part["chapters"]]


def table_of_contents(titles: dict[str, str], numbers: dict[str, int]) -> str:
    """Return the contents, with the page on which each chapter begins as far as it is known."""
    lines = []
    for caption, pages in [*parts(), ("", [ANSWERS])]:
        lines.append(f'<p class="part">{html.escape(caption)}</p>' if caption else "")
        for page in pages:
            words = html.escape(f"{chapter_of(page)} {titles[page]}".strip())
            number = numbers.get(slug(page), "")
            line = f'<a href="#{slug(page)}"><span>{words}</span><span>{number}</span></a>'
            lines.append(f'<p class="entry">{line}</p>')
    return "<h1>Contents</h1>" + "".join(lines)


def cover(title: str, authors: str, facts: list[str], built: Path) -> str:
    """Return the first page: what the book is, whose, and which."""
    lines = "".join(f"<p>{html.escape(fact)}</p>" for fact in facts)
    picture = (built / COVER).as_uri()
    return (
        f'<h1 class="title">{html.escape(title)}</h1><p class="authors">{html.escape(authors)}</p>'
        f'<img src="{picture}" alt=""><div class="facts">{lines}'
        f'<p><a href="{site()}">{site()}</a></p></div>'
    )


def address_in(built: Path, page: str, link: str) -> str:
    """Return the address, on this machine, of a file that a page of the site uses."""
    path = posixpath.join(posixpath.dirname(page), unquote(urlsplit(link).path))
    return (built / posixpath.normpath(path)).as_uri()


def head(built: Path, pages: Iterable[str]) -> str:
    """Return what the pages' heads load that a book needs: styles, and what sets mathematics."""
    kept: dict[str, None] = {}
    for page in pages:
        top = (built / f"{page}.html").read_text("utf-8").partition("</head>")[0]
        for element in BeautifulSoup(top, "html.parser").find_all(["link", "script"]):
            styles = element.name == "link" and "stylesheet" in (element.get("rel") or [])
            if styles or "mathjax" in str(element).lower():
                for name in {"href", "src"}.intersection(element.attrs):
                    element[name] = address_in(built, page, str(element[name]))
                kept[str(element).replace('media="print"', "")] = None
    return "\n".join(sorted(kept, key=lambda line: "print.css" in line))  # paper has the last word


def bound(built: Path, title: str, authors: str, facts: list[str], numbers: dict[str, int]) -> str:
    """Return the HTML of the whole book.

    Parameters
    ----------
    built : Path
        The built site.
    title, authors : str
        What the cover says.
    facts : list of str
        Further lines of the cover.
    numbers : dict of str to int
        The page of each chapter, by its place, for the contents.
    """
    chapters = articles(built)
    known, titles = set(chapters), {page: title_of(text) for page, text in chapters.items()}
    for page, article in chapters.items():
        rename(article, page, known, built)
        point_to_site(article, page)
    solved = {str(element["id"]) for element in chapters[SOLUTIONS].find_all(id=True)}
    answers = Answers()
    for article in chapters.values():
        unfold(article, solved, answers)
    titles[ANSWERS] = ANSWERS_TITLE
    body = [
        f'<section class="cover">{cover(title, authors, facts, built)}</section>',
        f'<section class="contents">{table_of_contents(titles, numbers)}</section>',
        *(f'<section class="page" id="{slug(p)}">{text}</section>' for p, text in chapters.items()),
        f'<section class="page" id="{ANSWERS}"><article class="bd-article"><h1>{ANSWERS_TITLE}</h1>'
        + "".join(answers.chapters)
        + "</article></section>",
    ]
    return (
        f'<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title>{head(built, chapters)}"
        f'<style>{STYLE.read_text("utf-8")}</style></head><body class="book"><main class="bd-main">'
        f'<div class="bd-content"><div class="bd-article-container">{"".join(body)}'
        "</div></div></main></body></html>"
    )
