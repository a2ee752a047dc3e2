"""The directives ``study-table``, ``study-figure``, ``study-maps`` and ``coverage``: the evidence.

They show `cbam_edu.report`'s comparisons of the records in ``book/results/studies``, and beside
them what the paper reports on ImageNet, read from ``book/results/paper_tables.json``. Nothing in
them is typed by hand.
"""

import functools
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import tables
from cbam_edu.records import recorded
from cbam_edu.report import CONTROLS, HEADINGS, Arm, Score, Summary, draw, reading, summarise

RESULTS = Path(__file__).resolve().parents[1] / "results"
# For each comparison: the paper's table, which figure of a row is the top-1 error, and our arms'
# names there.
PAPER: dict[str, tuple[str, int, dict[str, str]]] = {
    "neighbours": ("table4_imagenet", 2, {"none": "none", "se": "se", "cbam": "cbam"}),
    "pooling": (
        "table1_channel_pooling_resnet50",
        0,
        {"none": "none", "avg": "avg_se", "max": "max", "avg & max": "avg_and_max"},
    ),
    "spatial": (
        "table2_spatial_resnet50",
        2,
        {
            "avg & max": "channel_only",
            "conv, k = 3": "conv1x1_k3",
            "conv, k = 7": "conv1x1_k7",
            "k = 3": "avgmax_k3",
            "cbam": "avgmax_k7",
        },
    ),
    "order": (
        "table3_arrangement_resnet50",
        0,
        {
            "avg": "channel_only_se",
            "cbam": "channel_then_spatial",
            "spatial first": "spatial_then_channel",
            "parallel": "parallel",
        },
    ),
}


@functools.cache
def summary(study: str, size: str) -> Summary:
    """Return what the recorded runs of a study say."""
    return summarise(study, size, recorded(study, size))


def paper(title: str) -> dict[str, float]:
    """Return the paper's top-1 errors of ResNet-50 on ImageNet, percent, by our arms' names."""
    if title not in PAPER:
        return {}
    key, column, names = PAPER[title]
    rows = json.loads((RESULTS / "paper_tables.json").read_text("utf-8"))[key]
    rows = rows.get("resnet50", rows)
    return {arm: rows[name][column] for arm, name in names.items()}


def rows(title: str, arms: Sequence[Arm]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of one comparison."""
    published = paper(title)
    base = arms[0].name
    # What decides stands first: on a narrow screen, the rest has to be scrolled to.
    headings = ["arm", "n", "accuracy, %", f"minus {base}", *HEADINGS[::-1]]
    headings += ["paper's error", "paper's gain"] if published else []
    body = []
    for arm in arms:
        spread = f" ± {arm.spread:.2f}" if len(arm.accuracies) > 1 else ""
        row = [arm.name, str(len(arm.accuracies)), f"{arm.mean:.2f}{spread}"]
        if (c := arm.comparison) is None:
            row += ["", "baseline" if arm.name == base else "one run only", "", "", ""]
        else:
            d, (low, high) = c.difference, c.wide
            p = f"{c.p:.3f}" if c.p >= 0.001 else "below 0.001"
            row += [f"{d.value:+.2f} ({d.low:+.2f} to {d.high:+.2f})", reading(c)]
            row += [f"{c.smallest:.2f}", p, f"{low:+.2f} to {high:+.2f}"]
        if published:
            there = arm.name in published
            row.append(f"{published[arm.name]:.2f}" if there else "")
            gain = published[base] - published[arm.name] if there and arm.name != base else None
            row.append("" if gain is None else f"{gain:+.2f}")
        body.append(row)
    return headings, body


def map_rows(scores: Sequence[Score]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of the scores of trained networks' maps."""
    headings = ["arm", "map", "score", "n", "mean", *(f"minus {c}" for c in CONTROLS)]
    body = []
    for s in scores:
        if s.map in CONTROLS or s.map.endswith("untrained"):
            continue  # they stand in the columns
        row = [s.arm, s.map, s.score, str(len(s.values)), f"{np.mean(s.values):.3f}"]
        found = (s.against.get(c) for c in CONTROLS)
        row += [f"{d.value:+.3f} ({d.low:+.3f} to {d.high:+.3f})" if d else "" for d in found]
        body.append(row)
    return headings, body


def coverage_rows() -> tuple[list[str], list[list[str]]]:
    """Return how often intervals held a known truth, and alarms were false, world by world."""
    lines = (RESULTS / "checks" / "coverage.jsonl").read_text("utf-8").splitlines()
    headings = ["method", "world", "seeds", "studies", "truth in the interval", "false alarms"]
    headings += ["the same by Welch or uncorrected"]
    body = []
    for r in map(json.loads, lines):
        if r["method"] == "welch":
            world = (
                "equal spreads" if r["spreads"] == [1, 1] else "one spread three times the other"
            )
        elif r["method"] == "holm":
            world = "{} arms, {} of them better".format(*r["family"])
        else:
            world = {"seeds": "seeds matter", "images": "images matter"}.get(r["world"], "both do")
        rates = {
            key: f"{100 * r[key] / r['repetitions']:.1f} %"
            for key in ("covered", "alarms", "covered by Welch", "uncorrected alarms")
            if key in r
        }
        other = rates.get("covered by Welch", rates.get("uncorrected alarms", ""))
        row = [r["method"], world, str(r["seeds"]), f"{r['repetitions']:,}"]
        body.append([*row, rates.get("covered", ""), rates["alarms"], other])
    return headings, body


class Coverage(SphinxDirective):
    """How often the intervals held the truth where it was known."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        self.env.note_dependency(str(RESULTS / "checks" / "coverage.jsonl"))
        headings, body = coverage_rows()
        return [tables.table(headings, body, set(headings[2:]))]


class _Study(SphinxDirective):
    """What the options mean: a study and its size."""

    required_arguments = 1
    option_spec: ClassVar = {"size": directives.unchanged_required}

    def summary(self) -> Summary:
        """Return the study's summary; the page is made anew when the records change."""
        path = RESULTS / "studies" / f"{self.arguments[0]}-{self._size()}.jsonl"
        self.env.note_dependency(str(path))
        try:
            return summary(self.arguments[0], self._size())
        except ValueError as error:
            raise self.error(str(error)) from None

    def _size(self) -> str:
        return self.options.get("size", "small")

    def table(self, headings: Sequence[str], body: Sequence[Sequence[str]]) -> nodes.table:
        """Return a table whose figures stand to the right."""
        words = {"arm", "reading", "map", "score"}
        return tables.table(headings, body, {h for h in headings if h not in words})


class StudyTable(_Study):
    """The comparisons of a study, or the one that ``:table:`` names; what was run; the records."""

    option_spec: ClassVar = {**_Study.option_spec, "table": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Return a table for each comparison, and a note."""
        found = self.summary()
        content: list[nodes.Node] = []
        for title, (table, arms) in found.tables.items():
            if self.options.get("table", title) == title:
                content.append(nodes.paragraph("", "", nodes.strong("", table.question)))
                content.append(self.table(*rows(title, arms)))
        lacking = f" Not yet run: {', '.join(found.lacking)}." if found.lacking else ""
        content.append(nodes.paragraph("", "", nodes.emphasis("", found.about + lacking)))
        return [*content, self._files(found)]

    def _files(self, found: Summary) -> nodes.paragraph:
        name = f"{found.study}-{found.size}.jsonl"
        target = f"/{(RESULTS / 'studies' / name).relative_to(self.env.srcdir)}"
        link = addnodes.download_reference("", "", nodes.literal("", name), reftarget=target)
        link["refdoc"] = self.env.docname
        again = f"cbam-edu report {found.study} --size {found.size}"
        text = nodes.Text(" has a line a run, with the command that repeats it; ")
        return nodes.paragraph(
            "", "", link, text, nodes.literal("", again), nodes.Text(" makes the tables of it.")
        )


class StudyFigure(_Study):
    """The differences to the baseline with their intervals, drawn."""

    def run(self) -> list[nodes.Node]:
        """Return the picture, described in words for those who cannot see it."""
        found = self.summary()
        told = [
            f"{arm.name} {arm.comparison.difference.value:+.2f} "
            f"({arm.comparison.difference.low:+.2f} to {arm.comparison.difference.high:+.2f})"
            for _, arms in found.tables.values()
            for arm in arms
            if arm.comparison is not None
        ]
        picture = draw(found)._repr_mimebundle_()["image/png"]
        words = html.escape(f"Differences in percentage points: {', '.join(told)}.")
        image = f'<img src="data:image/png;base64,{picture}" alt="{words}">'
        caption = (
            "Differences in accuracy: a dot each, a thick line for its 95 % interval over seeds, a "
            "thin one where the test images, too, could have been others."
        )
        body = f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
        return [nodes.raw("", body, format="html")]


class StudyMaps(_Study):
    """The scores of the maps."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        return [self.table(*map_rows(self.summary().scores))]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("study-table", StudyTable)
    app.add_directive("study-figure", StudyFigure)
    app.add_directive("study-maps", StudyMaps)
    app.add_directive("coverage", Coverage)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
