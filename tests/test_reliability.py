"""The page on reliability: every record is shown, and every fault's tests are there."""

import re

import pytest
import yaml

import reliability
from notebook_cells import ROOT

PAGE = (ROOT / "book/reliability.md").read_text("utf-8")
FAULTS = yaml.safe_load(reliability.FAULTS.read_text("utf-8"))


def test_every_subject_is_recorded_and_shown():
    files = {path.stem for path in reliability.RECORDS.iterdir()}
    assert files == set(reliability.SUBJECTS)
    for directive in ("attacks", "faults"):
        assert re.findall(rf"{{{directive}}} (\w+)", PAGE) == list(reliability.SUBJECTS)


@pytest.mark.parametrize("subject", reliability.SUBJECTS)
def test_records_are_of_scripts_that_are_there(subject):
    records = reliability.recorded(subject)
    assert len({record["attack"] for record in records}) == len(records) > 0
    for record in records:
        assert (ROOT / record["command"].split()[1]).is_file(), record["command"]
        assert 0 <= record["failed"] <= record["tried"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["found"][:50])
def test_a_fault_has_a_test_that_is_there(fault):
    assert set(fault) == {"subject", "found", "mended", "tests"}
    assert fault["subject"] in reliability.SUBJECTS
    assert fault["tests"] or not reliability.is_ours(fault)
    for test in fault["tests"]:
        path, name = test.split("[")[0].split("::")
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text("utf-8"), re.M), test


def test_the_table_counts_attempts_and_faults(monkeypatch, tmp_path):
    line = (
        '{"attack": "a", "tried": 1200, "unit": "kills", "failed": 1, "command": "python x.py"}\n'
    )
    (tmp_path / "kills.jsonl").write_text(line + line.replace("1200", "34"))
    (tmp_path / "faults.yml").write_text(
        "- {subject: kills, found: A, mended: B, tests: [x]}\n"
        "- {subject: kills, found: A, mended: 'Not ours: C', tests: []}\n"
        "- {subject: files, found: A, mended: B, tests: [x]}\n"
    )
    monkeypatch.setattr(reliability, "RECORDS", tmp_path)
    monkeypatch.setattr(reliability, "FAULTS", tmp_path / "faults.yml")
    rows = {row[0]: row[1:] for row in reliability.summary_rows()[1]}
    assert rows["Killed at any moment"] == ["1,234 kills", "2", "2", "1"]
    assert rows["Files that are bad or hostile"] == ["", "0", "1", "1"]
