"""The directive ``recorded-runs``: tables of the runs in files of ``book/results``.

One line of such a file is one run, a JSON object. Nothing in the tables is typed by hand.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import tables

RESULTS = Path(__file__).resolve().parents[1] / "results"
COLUMNS = {  # heading: how a record's value is written
    "model": lambda r: r["model"],
    "arm": lambda r: r["arm"],
    "data": lambda r: r["data"],
    "seed": lambda r: str(r["seed"]),
    "accuracy, %": lambda r: f"{100 * r['accuracy']:.2f}",
    "loss": lambda r: f"{r['loss']:.3f}",
    "epochs": lambda r: str(r["epochs"]),
    "parameters": lambda r: f"{r['parameters']:,}",
    "multiply-accumulates": lambda r: f"{r['multiply_accumulates']:,}",
    "device": lambda r: r["device"],
    "seconds": lambda r: f"{r['seconds']:,.0f}",
}
NUMBERS = {"seed", "accuracy, %", "loss", "epochs", "parameters", "multiply-accumulates", "seconds"}
KEYS = {
    *("study", "model", "arm", "data", "seed", "accuracy", "loss", "epochs", "seconds"),
    *("parameters", "multiply_accumulates", "device", "versions", "commit", "recipe"),
}


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records in the file at `path`.

    Raises
    ------
    ValueError
        If a line is not a whole record; the message names the file, the line and what is missing.
    """
    records = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        place = f"{path.name}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"{place} is no JSON object")
        if missing := sorted(KEYS - record.keys()):
            raise ValueError(f"{place} lacks {', '.join(missing)}")
        if not 0 <= record["accuracy"] <= 1:
            raise ValueError(f"{place}: accuracy is a fraction, not {record['accuracy']}")
        records.append(record)
    return records


def table(records: Sequence[dict[str, Any]]) -> nodes.table:
    """Return `records` as a table, in the order of model, arm and seed."""
    ordered = sorted(records, key=lambda r: (r["model"], r["arm"], r["data"], r["seed"]))
    rows = [[show(r) for show in COLUMNS.values()] for r in ordered]
    return tables.table(list(COLUMNS), rows, NUMBERS)


class RecordedRuns(SphinxDirective):
    """One table a study, and under it the file with everything that was recorded.

    The argument is the file's name, without its ending, or a pattern of names.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the tables, or a sentence where nothing has been recorded yet."""
        self.env.note_dependency(str(RESULTS))  # a new file counts as a change of the page
        content: list[nodes.Node] = []
        for path in sorted(RESULTS.glob(f"{self.arguments[0]}.jsonl")):
            self.env.note_dependency(str(path))
            try:
                records = read(path)
            except ValueError as error:
                raise self.error(str(error)) from None
            for study in sorted({record["study"] for record in records}):
                title = nodes.paragraph("", "", nodes.strong("", f"Study: {study}"))
                content += [title, table([r for r in records if r["study"] == study])]
            text = nodes.Text(
                " holds one line a run: all of the above, the whole recipe, versions and commit."
            )
            content.append(nodes.paragraph("", "", tables.download(self.env, path), text))
        return content or [nodes.paragraph("", "No run has been recorded yet.")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("recorded-runs", RecordedRuns)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
