"""The directives ``layer-times``, ``layer-memory``, ``network-times`` and ``growth``.

They show what `cbam-edu benchmark` recorded in ``book/results/speed``. Nothing is typed by hand.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import tables

SPEED = Path(__file__).resolve().parents[1] / "results" / "speed"
NAMES = {
    "fused": "fused",
    "timm": "timm",
    "plain": "plain",
    "authors": "authors' formula",
    "common": "common copies",
    "none": "no attention",
}
Record = dict[str, Any]


def read(name: str) -> list[Record]:
    """Return the records in ``book/results/speed/NAME.jsonl``."""
    lines = (SPEED / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def machine(records: Sequence[Record]) -> str:
    """Say where and how often it was measured; all of a table must be of one machine."""
    (device,) = {record["device"] for record in records}
    (version,) = {record["torch"] for record in records}
    rounds = " or ".join(map(str, sorted({record["rounds"] for record in records})))
    return f"{device}, torch {version}, float32; medians of n = {rounds} in turns, milliseconds."


def _shape(record: Record) -> str:
    layout = "channels last" if record["channels_last"] else "contiguous"
    return f"{' x '.join(map(str, record['shape']))}, {layout}"


def _groups(records: Sequence[Record]) -> Iterator[tuple[str, dict[str, Record]]]:
    """Yield each shape and memory format with its records by implementation."""
    for shape in dict.fromkeys(map(_shape, records)):
        yield shape, {r["implementation"]: r for r in records if _shape(r) == shape}


def _spread(record: Record) -> str:
    digits = 1 if record["milliseconds"] >= 10 else 2
    low, middle, high = (f"{record[k]:.{digits}f}" for k in ("low", "milliseconds", "high"))
    return f"{middle} ({low} to {high})"


def layer_rows(
    way: str, mode: str, name: str = "layers"
) -> tuple[list[str], list[list[str]], list[Record]]:
    """Return headings and rows of one layer's times, by shape; and the records they are of."""
    records = [r for r in read(name) if (r["way"], r["mode"]) == (way, mode)]
    arms = [name for name in NAMES if any(r["implementation"] == name for r in records)]
    rows = []
    for shape, by_arm in _groups(records):
        ratio = by_arm["timm"]["milliseconds"] / by_arm["fused"]["milliseconds"]
        rows.append([shape, f"{ratio:.2f}", *(_spread(by_arm[arm]) for arm in arms)])
    return ["map", "timm / fused", *(NAMES[arm] for arm in arms)], rows, records


def memory_rows() -> tuple[list[str], list[list[str]], list[Record]]:
    """Return what is kept for the backward pass and the most there is, in feature maps."""
    records = [r for r in read("layers") if r["mode"] == "training" and r["way"] == "eager"]
    arms = [name for name in NAMES if any(r["implementation"] == name for r in records)]
    rows = [
        [shape, *(f"{by[arm]['kept_maps']:.2f} / {by[arm]['peak_maps']:.2f}" for arm in arms)]
        for shape, by in _groups(records)
    ]
    return ["map", *(NAMES[arm] for arm in arms)], rows, records


def network_rows() -> tuple[list[str], list[list[str]], list[Record]]:
    """Return the times of training steps of whole networks."""
    records = read("networks")
    rows = [
        [
            *(r["model"], str(r["batch_size"]), NAMES[r["implementation"]], r["way"]),
            *(_spread(r), f"{r['times_none']:.2f}", f"{r['peak_megabytes']:,.0f}"),
        ]
        for r in records
    ]
    headings = ["network", "images", "CBAM", "way", "a step", "times without", "peak MB"]
    return headings, rows, records


def growth_rows() -> tuple[list[str], list[list[str]], list[Record]]:
    """Return how the fused form's training time grows when N, C or H W is doubled."""
    records = [
        r for r in read("growth") if (r["implementation"], r["mode"]) == ("fused", "training")
    ]
    sizes = {tuple(r["shape"]): r for r in records}
    rows = []
    for shape, after in sizes.items():
        n, c, h, w = shape
        halves = {"N": (n // 2, c, h, w), "C": (n, c // 2, h, w)}
        for what, half in [*halves.items(), ("H W", (n, c, h // 2, w)), ("H W", (n, c, h, w // 2))]:
            before = sizes.get(half)
            if before is None or math.prod(half) * 2 != math.prod(shape):
                continue
            ratio = after["milliseconds"] / before["milliseconds"]
            times = f"{before['milliseconds']:.1f}", f"{after['milliseconds']:.1f}"
            megabytes = f"{4 * math.prod(shape) / 1e6:,.0f}"
            copies = f"{before['copies']:.1f}", f"{after['copies']:.1f}"
            row = [what, " x ".join(map(str, shape)), megabytes, *times, f"{ratio:.2f}", *copies]
            rows.append(row)
    headings = ["doubled", "to", "MB", "before, ms", "after, ms", "ratio"]
    return [*headings, "before, copies", "after, copies"], rows, records


class _Times(SphinxDirective):
    """A table and, under it, where it was measured."""

    def rows(self) -> tuple[list[str], list[list[str]], list[Record]]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """Return the table, or a sentence where nothing has been recorded yet."""
        self.env.note_dependency(str(SPEED))
        for path in SPEED.glob("*.jsonl"):
            self.env.note_dependency(str(path))
        headings, rows, records = self.rows()
        numbers = {
            h for h in headings if h not in {"map", "network", "CBAM", "way", "doubled", "to"}
        }
        note = nodes.paragraph("", "", nodes.emphasis("", machine(records)))
        return [tables.table(headings, rows, numbers), note]


class LayerTimes(_Times):
    """Times of one layer: ``:way:`` eager or compiled, ``:mode:`` training or forward."""

    option_spec: ClassVar = {
        "way": directives.unchanged_required,
        "mode": directives.unchanged_required,
        "file": directives.unchanged_required,
    }

    def rows(self) -> tuple[list[str], list[list[str]], list[Record]]:
        """Return the rows of that way and mode."""
        options = self.options
        return layer_rows(options["way"], options["mode"], options.get("file", "layers"))


def _directive(made: Any) -> type[_Times]:
    return type("Times", (_Times,), {"rows": lambda self: made()})


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("layer-times", LayerTimes)
    app.add_directive("layer-memory", _directive(memory_rows))
    app.add_directive("network-times", _directive(network_rows))
    app.add_directive("growth", _directive(growth_rows))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
