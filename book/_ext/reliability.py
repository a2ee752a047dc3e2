"""The directives ``reliability``, ``attacks`` and ``faults``: how the library was attacked.

What was tried, and how often it went wrong, is read from the records in
``book/results/reliability``; what was found on the way from ``book/faults.yml``, which names the
tests that hold each mend.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import tables

BOOK = Path(__file__).resolve().parents[1]
RECORDS = BOOK / "results/reliability"
FAULTS = BOOK / "faults.yml"
# The files of records, in the order in which the page shows them.
SUBJECTS = {
    "properties": "What must hold for every input",
    "mutants": "Tests that notice",
    "kills": "Killed at any moment",
    "storage": "Disks, folders, clocks",
    "servers": "Servers that misbehave",
    "files": "Files that are bad or hostile",
    "repeat": "The same again",
    "versions": "Other versions",
    "long_run": "Long runs",
    "supply": "What is installed",
    "judges": "Judges of the exercises",
    "interrupted": "Notebooks interrupted",
}
SHORT = 3  # as many faults are shown without being asked for
Record = dict[str, Any]


def recorded(subject: str) -> list[Record]:
    """Return the attacks of a subject, in the order of the file; none if there is no file."""
    path = RECORDS / f"{subject}.jsonl"
    return (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    )


def found(subject: str) -> list[Record]:
    """Return the faults that the attacks of a subject found."""
    faults: list[Record] = yaml.safe_load(FAULTS.read_text("utf-8")) or []
    return [fault for fault in faults if fault["subject"] == subject]


def is_ours(fault: Record) -> bool:
    """Whether the fault was the library's, the book's or the site's own."""
    return not fault["mended"].startswith("Not ours")


def counts(records: Iterable[Record]) -> str:
    """Return how often was tried, unit by unit."""
    total: dict[str, int] = {}
    for record in records:
        total[record["unit"]] = total.get(record["unit"], 0) + record["tried"]
    return ", ".join(f"{count:,} {unit}" for unit, count in total.items())


def commands(records: Iterable[Record]) -> list[str]:
    """Return the commands that made the records, each once."""
    return list(dict.fromkeys(record["command"] for record in records))


def summary_rows() -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of the table of all subjects."""
    headings = ["what", "tried", "wrong at last", "faults found", "mended"]
    body = []
    for subject, title in SUBJECTS.items():
        records, faults = recorded(subject), found(subject)
        wrong = sum(record["failed"] for record in records)
        mended = sum(map(is_ours, faults))
        body.append([title, counts(records), f"{wrong:,}", str(len(faults)), str(mended)])
    return headings, body


def attack_rows(subject: str) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of one subject's attacks."""
    body = [
        [r["attack"], f"{r['tried']:,} {r['unit']}", f"{r['failed']:,}", f"{r['seconds']:,.0f}"]
        for r in recorded(subject)
    ]
    return ["what was tried", "how often", "wrong", "seconds"], body


class _Read(SphinxDirective):
    """What reads the records, and is made again when they change."""

    def depend(self) -> None:
        for path in (FAULTS, RECORDS, *RECORDS.glob("*.jsonl")):
            self.env.note_dependency(str(path))

    def subject(self) -> str:
        self.depend()
        if self.arguments[0] not in SUBJECTS:
            raise self.error(f"one of {', '.join(SUBJECTS)}, not {self.arguments[0]!r}")
        return str(self.arguments[0])


class Reliability(_Read):
    """All subjects in one table."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        self.depend()
        headings, body = summary_rows()
        return [tables.table(headings, body, set(headings[2:]), worded=True)]


class Attacks(_Read):
    """One subject's attacks in a table, and the commands that repeat them."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table, the commands, and the file with everything that was recorded."""
        subject = self.subject()
        records, (headings, body) = recorded(subject), attack_rows(subject)
        if not records:
            raise self.error(f"nothing is recorded in {subject}.jsonl: run tests/attacks")
        again = nodes.literal_block("", "\n".join(commands(records)), language="bash")
        text = " holds a line for each: all of the above, what else was counted, versions, commit."
        link = tables.download(self.env, RECORDS / f"{subject}.jsonl")
        said = nodes.paragraph("", "", link, nodes.Text(text))
        return [tables.table(headings, body, set(headings[2:]), worded=True), again, said]


class Faults(_Read):
    """What one subject's attacks found, how it was mended, and the tests that hold it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a list, folded where it is long, or a sentence where nothing was found."""
        faults = found(self.subject())
        if not faults:
            return [nodes.paragraph("", "No fault was found.")]
        items = nodes.bullet_list("", *map(self._item, faults), bullet="-")
        if len(faults) <= SHORT:
            return [items]
        summary = f"<details><summary>The {len(faults)} faults that were found</summary>"
        ends = [nodes.raw("", text, format="html") for text in (summary, "</details>")]
        return [ends[0], items, ends[1]]

    def _item(self, fault: Record) -> nodes.list_item:
        said, _ = self.state.inline_text(f"{fault['found']} {fault['mended']}", self.lineno)
        text = nodes.paragraph("", "", *said, nodes.Text(" Tests: " if fault["tests"] else ""))
        for number, test in enumerate(fault["tests"]):
            text += [nodes.Text(", " if number else ""), nodes.literal("", test.split("::")[-1])]
        return nodes.list_item("", text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("reliability", Reliability)
    app.add_directive("attacks", Attacks)
    app.add_directive("faults", Faults)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
