"""The directive ``solutions``: every exercise of the book with its solution, chapter by chapter.

All of it is read from the notebooks while the site is built. Nothing is written twice.
"""

from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from address import ROOT, contents, title
from exercises import Exercise, exercises


def chapters() -> dict[Path, list[Exercise]]:
    """Return the exercises of every notebook in the table of contents that has some."""
    paths = [ROOT / f"{page}.ipynb" for page in contents() if page.startswith("notebooks/")]
    found = {path: exercises(path) for path in paths if path.exists()}
    return {path: some for path, some in found.items() if some}


class Solutions(SphinxDirective):
    """A section a chapter, and in it one for each exercise: the task, then its solution."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        content: list[nodes.Node] = []
        for path, found in chapters().items():
            self.env.note_dependency(str(path))
            number = path.stem[:2]
            chapter = self._section(f"chapter-{number}", f"{number} {title(path)}")
            chapter += self._markdown(f"From [the chapter](../notebooks/{path.name}).")
            for exercise in found:
                name = exercise.title.split(":")[0].split()[1]
                section = self._section(f"solution-{name.replace('.', '-')}", exercise.title)
                # The words become a link, as everywhere: see numbering.
                section += self._markdown(f"In the chapter, with a hint: exercise {name}.")
                section += self._markdown(exercise.task)
                section += nodes.rubric("", "Solution")
                section += self._markdown(exercise.told)
                chapter += section
            content.append(chapter)
        return content

    def _section(self, name: str, heading: str) -> nodes.section:
        text, _ = self.state.inline_text(heading, self.lineno)
        return nodes.section("", nodes.title(heading, "", *text), ids=[name])

    def _markdown(self, text: str) -> list[nodes.Node]:
        holder = nodes.container()
        self.state.nested_parse(StringList(text.splitlines()), self.content_offset, holder)
        return holder.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("solutions", Solutions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
