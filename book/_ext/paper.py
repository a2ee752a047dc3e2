"""The directive ``paper-table``: what the CBAM paper prints in its Tables 1 to 5.

The figures are read from ``book/results/paper_tables.json``; the gains beside them are computed.
"""

import json
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import tables
from costs import NAMES, PAPER

KEYS = {
    1: "table1_channel_pooling_resnet50",
    2: "table2_spatial_resnet50",
    3: "table3_arrangement_resnet50",
    4: "table4_imagenet",
    5: "table5_mobilenet",
}
ROWS = {
    "none": "no attention",
    "avg_se": "mean alone (SE)",
    "max": "maximum alone",
    "avg_and_max": "mean and maximum",
    "channel_only": "channel gate alone",
    "conv1x1_k3": "and a spatial gate on a 1 x 1 convolution, k = 3",
    "conv1x1_k7": "the same, k = 7",
    "avgmax_k3": "and a spatial gate on mean and maximum, k = 3",
    "avgmax_k7": "the same, k = 7 (CBAM)",
    "channel_only_se": "mean's channel gate alone (SE)",
    "channel_then_spatial": "channel, then spatial (CBAM)",
    "spatial_then_channel": "spatial, then channel",
    "parallel": "in parallel",
}
COUNTS = ["parameters, M", "GFLOPs"]
ERRORS = ["top-1 error, %", "top-5 error, %"]


def _cells(figures: list[float]) -> list[str]:
    """Return the figures as the paper prints them: counts, if there are some, and two errors."""
    *counts, top1, top5 = figures
    shown = [f"{parameters:.2f}" for parameters in counts[:1]]
    return [*shown, *(f"{work:.3f}" for work in counts[1:]), f"{top1:.2f}", f"{top5:.2f}"]


def _gain(figures: list[float], base: list[float]) -> str:
    return "" if figures is base else f"{base[-2] - figures[-2]:+.2f}"


def rows(number: int) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of one of the paper's tables, the gain in top-1 last."""
    paper: dict[str, Any] = json.loads(PAPER.read_text("utf-8"))
    table = paper[KEYS[number]]
    if number < 4:
        first = next(iter(table.values()))
        headings = ["", *(COUNTS if len(first) == 4 else []), *ERRORS, "gain over the first row"]
        body = [[ROWS[k], *_cells(v), _gain(v, first)] for k, v in table.items()]
        return headings, body
    headings = ["network", "attention", *COUNTS, *ERRORS, "gain over none", "over SE"]
    body = [
        [
            *(network, NAMES[arm], *_cells(v), _gain(v, arms["none"])),
            _gain(v, arms["se"]) if arm == "cbam" else "",
        ]
        for network, arms in table.items()
        for arm, v in arms.items()
    ]
    return headings, body


class PaperTable(SphinxDirective):
    """One of the paper's Tables 1 to 5."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        if self.arguments[0] not in map(str, KEYS):
            raise self.error(f"the paper's tables here are 1 to 5, not {self.arguments[0]!r}")
        self.env.note_dependency(str(PAPER))
        headings, body = rows(int(self.arguments[0]))
        return [tables.table(headings, body, {*COUNTS, *ERRORS, *headings[-2:]})]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("paper-table", PaperTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
