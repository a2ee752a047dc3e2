"""The pages of prose: the three paths, the self-test, the glossary, the errors, the capstone."""

import functools
import importlib
import inspect
import json
import re
import sys

import docutils.utils
import pytest
import torch
import torchvision
from docutils import nodes
from torch import nn

import address
import cbam_edu
import chapters
import paper
import provenance
import records
import solutions
from cbam_edu import (
    CBAM,
    add_attention,
    attention_layer,
    cli,
    create_model,
    data,
    load_model,
    neighbours,
    studies,
)
from cbam_edu.convert import convert
from cbam_edu.data.sources import download
from cbam_edu.export import export
from cbam_edu.recipe import Recipe
from cbam_edu.records import recorded
from cbam_edu.report import summarise
from cbam_edu.train import fit
from notebook_cells import NOTEBOOKS, ROOT, exercises, read
from quizzes import questions

PAGES = {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "book").glob("*.md"))}
NUMBERS = {f"{n:02d}" for n in range(14)}  # of the course, whether written yet or not

each_page = pytest.mark.parametrize("name", PAGES)


# Chapters


@functools.cache  # the pages name each chapter many times
def words(path):
    """Return what a chapter says, without its code."""
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def sections(path):
    """Return the numbers of a chapter's sections."""
    return set(re.findall(r"^## (\d+)\. ", words(path), re.MULTILINE))


@each_page
def test_chapters_and_sections_that_a_page_names_are_there(name):
    there = {path.name[:2]: path for path in NOTEBOOKS.glob("*.ipynb")}
    for text in re.findall(r"\{chapter\}`(.*?)`", PAGES[name]):
        match = chapters.PLACE.fullmatch(text)
        assert match, text
        assert match[1] in NUMBERS, text
        if match[2] and match[1] in there:
            spans = re.findall(r"(\d+)(?: to (\d+))?", match[2])
            named = {str(n) for a, b in spans for n in range(int(a), int(b or a) + 1)}
            assert named <= sections(there[match[1]]), text


def test_a_link_leads_to_the_section_of_that_number():
    doctree = docutils.utils.new_document("x")
    for heading in ("1. A gate", "2. Another", "Summary", "Exercise 2.1: build 1. it"):
        name = nodes.make_id(heading)
        doctree += nodes.section("", nodes.title("", heading), ids=[name])
    assert chapters.anchors(doctree) == {"1": "a-gate", "2": "another"}


def test_a_chapter_says_how_long_it_takes(tmp_path):
    for page in chapters.pages().values():
        assert min(chapters.minutes(ROOT / f"{page}.ipynb")) > 0
    path = tmp_path / "x.ipynb"
    path.write_text('{"cells": [{"source": ["# Title"]}]}', "utf-8")
    with pytest.raises(ValueError, match=r"x\.ipynb needs a line"):
        chapters.minutes(path)


def test_the_three_paths_name_chapters_and_exercises_that_are_there():
    text = PAGES["how_to_read"]
    hour, day, week = re.findall(r"^### An? (?:hour|day|week).*?(?=^##)", text, re.M | re.S)
    assert sum(map(int, re.findall(r"\*(\d+) minutes\.\*", hour))) == 60
    assert set(re.findall(r"\{chapter\}`(\d\d)`", week)) == NUMBERS, "a week is the whole course"
    for path in (hour, day, week):
        assert "Afterwards you can" in path
        assert re.search(r"\{chapter\}`\d\d", path)
    for number in re.findall(r"\b(\d+\.\d+)\b", day):
        (path,) = NOTEBOOKS.glob(f"{int(number.split('.')[0]):02d}_*.ipynb")
        assert any(f"Exercise {number}:" in e.title for e in exercises(path)), number


def test_a_day_of_the_week_takes_about_five_hours():
    week = re.search(r"^### A week.*?(?=^##)", PAGES["how_to_read"], re.MULTILINE | re.DOTALL)[0]
    took = {p.name[:2]: sum(chapters.minutes(p)) for p in NOTEBOOKS.glob("*.ipynb")}
    days = re.findall(r"^\| (\d) \| (.*?) \|", week, re.MULTILINE)
    assert [day for day, _ in days] == [str(n) for n in range(1, 8)]
    for _, named in days:
        assert sum(took.get(number, 0) for number in re.findall(r"`(\d\d)`", named)) <= 345


def test_every_exercise_has_its_solution_on_the_page_of_solutions():
    found = solutions.chapters()
    assert set(found) == {
        ROOT / f"{page}.ipynb" for page in address.contents() if page.startswith("notebooks/")
    }
    for path, some in found.items():
        assert some == exercises(path)
        for exercise in some:
            assert exercise.task, exercise.title
            assert exercise.solution.strip() in exercise.told
    marks = [e.title.split(":")[0] for some in found.values() for e in some]
    assert len(marks) == len(set(marks)), "an anchor of the page stands for one exercise"
    assert "```{solutions}" in PAGES["solutions"]


# Folded questions: the quiz's format


def test_the_self_test_has_one_right_answer_a_question_and_explains_every_one():
    page = re.sub(r"^### Question (?=\d+$)", "### Question 0.", PAGES["prerequisites"], flags=re.M)
    asked = questions(page)
    assert 8 <= len(asked) <= 12
    assert [q.title for q in asked] == [f"Question 0.{n + 1}" for n in range(len(asked))]
    right = []
    for question in asked:
        answers = question.answers
        assert len(answers) in (3, 4), question.title
        assert [answer.letter for answer in answers] == list("ABCD")[: len(answers)]
        (letter,) = (answer.letter for answer in answers if answer.right)
        right.append(letter)
        assert all(len(answer.told) >= 25 for answer in answers), question.title
    assert len(set(right)) >= 3, "the place of the right answer varies"
    longest = [max(q.answers, key=lambda answer: len(answer.text)).right for q in asked]
    assert sum(longest) <= len(asked) / 2, "the longest answer is not the right one"


# Errors


class Flat(nn.Module):
    """A network for images of one size, as many are."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4 * 32 * 32, 10)

    def forward(self, x):
        return self.head(self.conv(x).flatten(1))


def train(model, images=256, folder=None, **changes):
    some = data.load("cifar10-mini").subset(range(images))
    recipe = Recipe(**{"epochs": 1, "batch_size": 64, "compile": False} | changes)
    return fit(model, some, recipe, device="cpu", out=folder, progress=False)


def run_twice():
    for _ in range(2):
        train(create_model("cbamnet_tiny", dims=(8, 16)), 64, "runs")


def attend_twice():
    add_attention(add_attention(torchvision.models.resnet18(), input_size=(3, 32, 32)))


def load_after():
    model = torchvision.models.resnet18()
    weights = model.state_dict()
    add_attention(model, input_size=(3, 32, 32)).load_state_dict(weights)


def load_foreign():
    torch.save(nn.Linear(3, 4).state_dict(), "model.pth")
    load_model("model.pth")


def too_large(monkeypatch):
    def refuse(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(cli, "load_pretrained", refuse)
    cli.main(["evaluate", "--model", "resnet20_cbam", "--data", "cifar10-mini"])


def without_onnx(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    export(Flat(), "model.onnx")


DEAD = "http://127.0.0.1:9/cifar-10-binary.tar.gz"  # nobody listens there
WAYS = {  # what a message of the page begins with: how to come to it
    "device 'gpu'": lambda: cli.choose_device("gpu"),
    "expected an input of shape (N, 64, H, W), got (2,": lambda: CBAM(64)(torch.ones(2, 32, 8, 8)),
    "expected an input of shape (N, 64, H, W), got (64": lambda: CBAM(64)(torch.ones(64, 8, 8)),
    "expected a floating-point": lambda: CBAM(64)(torch.ones(2, 64, 8, 8, dtype=torch.uint8)),
    "The size of tensor a": lambda: torch.ones(2, 4, 5, 5) * torch.ones(2, 4),
    "unknown attention 'cbma'": lambda: create_model("resnet20", attention="cbma"),
    "unknown option of resnet20": lambda: create_model("resnet20", attention="se", reduction=8),
    "Expected more than 1": lambda: create_model("resnet18").train()(torch.ones(1, 3, 32, 32)),
    "Error(s) in loading state_dict for CIFARResNet": lambda: create_model(
        "resnet20", attention="cbam"
    ).load_state_dict(create_model("resnet20").state_dict()),
    "Error(s) in loading state_dict for ResNet": load_after,
    "the network already has": attend_twice,
    "model.pth is not": load_foreign,
    "no CBAM found": lambda: convert(nn.Linear(3, 4).state_dict()),
    "the loss became nan": lambda: train(create_model("cbamnet_tiny", dims=(8, 16)), lr=1e30),
    "memory is used up": too_large,
    "batch_size must be": lambda: train(create_model("resnet8"), images=50),
    "the network gives 5": lambda: train(create_model("resnet8", 5)),
    "runs holds a run": run_twice,
    "pictures has no folder": lambda: data.load("pictures"),
    "Sequential: found no place": lambda: add_attention(nn.Sequential(nn.Conv2d(3, 8, 3))),
    "the format onnx needs": without_onnx,
    "Flat cannot be exported": lambda: export(Flat(), "model.onnx"),
    "there is no test_batch": lambda: data.load("cifar10", "test", folder=".", download=False),
    "no source gives": lambda: download(".", sources=(DEAD,), progress=False),
}
MESSAGES = re.findall(r"^```text\n(\S+?): (.*?)\n```$", PAGES["faq"], re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("kind", "message"), MESSAGES, ids=[text[:40] for _, text in MESSAGES])
def test_the_errors_that_are_quoted_are_those_that_come(
    kind, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (way,) = (way for begin, way in WAYS.items() if message.startswith(begin))
    needs = {"monkeypatch": monkeypatch} if way in (too_large, without_onnx) else {}
    pieces = [re.escape(" ".join(piece.split())) for piece in message.split("…")]
    wanted = re.compile(r"\s*.*?\s*".join(pieces), re.DOTALL)
    torch.manual_seed(0)
    if kind == "cbam-edu":
        way(**needs)
        said = capsys.readouterr().err.removeprefix("cbam-edu: ")
    else:
        with pytest.raises(Exception, match=r".") as caught:
            way(**needs)
        assert type(caught.value).__name__ == kind
        said = str(caught.value)
    assert wanted.match(" ".join(said.split())), said


def test_every_way_to_an_error_is_on_the_page():
    for begin in WAYS:
        assert any(message.startswith(begin) for _, message in MESSAGES), begin


def test_the_option_that_the_page_says_is_right_is_right():
    assert attention_layer("cbam", 64, reduction=8)
    assert create_model("resnet20", attention="cbam", attention_options={"reduction": 8})


# The paper


def test_the_papers_tables_are_shown_as_they_are_kept():
    headings, rows = paper.rows(2)
    assert headings[1:3] == paper.COUNTS
    assert rows[1][1:] == ["28.10", "3.862", "22.96", "6.64", "-0.16"]
    assert rows[0][-1] == ""
    assert [row[-1] for row in paper.rows(1)[1]] == ["", "+1.42", "+1.36", "+1.76"]
    _, networks = paper.rows(4)
    assert len(networks) == 24
    cbam = ["resnet50", "CBAM", "28.09", "3.864", "22.66", "6.31", "+1.90", "+0.48"]
    assert cbam in networks
    for number in range(1, 6):
        assert f"{{paper-table}} {number}\n" in PAGES["paper"]
        assert all(len(row) == len(paper.rows(number)[0]) for row in paper.rows(number)[1])


def test_what_the_page_of_the_paper_says_in_words():
    gains = [(float(row[6]), float(row[7])) for n in (4, 5) for row in paper.rows(n)[1] if row[7]]
    assert all(over_none > 0 for over_none, _ in gains)  # "better ... everywhere"
    assert sum(over_se < 0 for _, over_se in gains) == 1  # "better than SE nearly everywhere"
    channel, *spatial = (row[-1] for row in paper.rows(2)[1])
    assert channel == ""
    assert [float(g) > 0 for g in spatial] == [False, False, True, True]
    (base,) = (float(row[4]) for row in paper.rows(4)[1] if row[:2] == ["resnet50", "none"])
    (cbam,) = (row[4] for row in paper.rows(4)[1] if row[:2] == ["resnet50", "CBAM"])
    assert f"the {cbam} % of Table 4 must be another run" in PAGES["paper"]
    kept = json.loads(paper.PAPER.read_text("utf-8"))["how_the_counts_come_out"]
    assert any("should read 3.863" in line and "3.869" in line for line in kept)
    assert round(base - (100 - 80.4)) == 5  # "five points below the baseline"


def test_every_reference_has_its_full_data():
    entries = re.split(r"^@", (ROOT / "book/references.bib").read_text("utf-8"), flags=re.MULTILINE)
    for entry in entries[1:]:
        fields = dict(re.findall(r"^ +(\w+) += \{(.*)\},$", entry, re.MULTILINE))
        assert {"author", "title", "year"} <= set(fields), entry
        assert {"url", "doi"} & set(fields), entry
        assert {"booktitle", "journal", "institution"} & set(fields) or entry.startswith("misc")
        assert "others" not in fields["author"], entry


# What the small studies say


@functools.cache
def said_by(study):
    """Return a small study's arms by table and name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cbam_edu.report.bootstrap", lambda *_, **__: (0.0, 0.0))  # seconds, unused
        tables = summarise(study, "small", recorded(study, "small")).tables
    return {name: {arm.name: arm for arm in arms} for name, (_, arms) in tables.items()}


def test_what_the_questions_say_of_the_small_studies():
    variants, recipe = said_by("variants"), said_by("recipe")["recipe"]
    pooling, gate, norm = (variants[name] for name in ("pooling", "gate", "norm"))
    (plain, *channel) = sorted(pooling.values(), key=lambda arm: -arm.mean)
    assert (plain.name, channel[0].name) == ("none", "avg & max")
    assert channel[0].mean - channel[1].mean < channel[0].spread  # "by less than its spread"
    assert gate["softmax"].comparison.p < 0.05
    assert gate["softmax"].comparison.difference.high < -10
    assert norm["no norm"].comparison.difference.low > 0
    assert norm["norm from 0"].comparison.p > 0.05  # "not decidable"
    for study in ("neighbours-resnet20", "neighbours-resnet9"):
        (table,) = said_by(study).values()
        assert all(arm.comparison.p > 0.05 for arm in table.values() if arm.comparison)
    # Without an ingredient the plain network loses more than by any gate but the softmax.
    lost = [
        recipe["recipe"].mean - recipe[arm].mean
        for arm in ("no augmentation", "no momentum", "lr / 10")
    ]
    arms = {name: arm for table in variants.values() for name, arm in table.items()}
    moved = [
        abs(a.mean - arms["none"].mean) for n, a in arms.items() if n not in ("none", "softmax")
    ]
    for study in ("neighbours-resnet20", "neighbours-resnet9"):
        (table,) = said_by(study).values()
        moved += [abs(arm.mean - table["none"].mean) for arm in table.values()]
    assert min(lost) > max(moved)


def test_the_real_run_of_the_capstone_takes_about_ten_minutes():
    seconds = [record["seconds"] for record in recorded("variants", "small")]
    assert 5 < 20 * sum(seconds) / len(seconds) / 60 < 15


# Where the records are from


def test_every_file_of_records_is_on_the_reproducibility_card():
    _, studies = provenance.study_rows()
    _, others = provenance.other_rows()
    shown = {f"studies/{row[0]}" for row in studies} | {row[0] for row in others}
    there = {p.relative_to(records.RESULTS).as_posix() for p in records.RESULTS.rglob("*.jsonl")}
    assert shown == {name for name in there if not name.startswith("logs/")}
    for row in studies:
        assert len(row[8].split(", ")) == len(row[9].split(", ")) == 1, "one kind of runs a file"
    assert len(provenance.data_rows()[1]) == 10


def test_every_study_of_the_code_is_on_the_reproducibility_card():
    headings, rows = provenance.defined_rows()
    assert [row[0] for row in rows] == list(studies.STUDIES)
    assert ["recipe", studies.STUDIES["recipe"].question, "9", "5", "8"] in rows
    assert all(len(row) == len(headings) for row in rows)
    recorded_ones = {row[0].rpartition("-")[0] for row in provenance.study_rows()[1]}
    assert recorded_ones == set(studies.STUDIES), "each has been run, if only small"
    for what in ("defined", "studies", "others", "gpus", "data"):
        assert f"```{{provenance}} {what}\n" in PAGES["reproducibility"]


def test_a_gpu_that_has_measured_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "RESULTS", tmp_path)
    (tmp_path / "a.jsonl").write_text('{"device": "CPU (x86_64, 2 threads)"}\n{}\n', "utf-8")
    assert provenance.on_gpus() == "No figure in these 1 files is from a GPU."
    (tmp_path / "b.jsonl").write_text('{"device": "NVIDIA H100"}\n', "utf-8")
    assert "b.jsonl (NVIDIA H100)" in provenance.on_gpus()


# The capstone


def test_the_points_of_the_rubric_add_up():
    rows = re.findall(r"^\| .* \| (\**\d+\**) \|$", PAGES["capstone"], re.MULTILINE)
    *points, total = (int(p.strip("*")) for p in rows)
    assert len(points) == 8
    assert sum(points) == total == 100


def test_the_recipe_of_the_capstone_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cbam_edu.neighbours.STUDIED", {**neighbours.STUDIED})
    monkeypatch.setattr("cbam_edu.studies.STUDIES", {**studies.STUDIES})
    images = studies.Study.images
    few = range(0, 500, 7)  # of all classes, so that the test is quick

    def some(self, size, **options):
        return tuple(part.subset(few) for part in images(self, size, **options))

    monkeypatch.setattr(studies.Study, "images", some)
    names = {"__name__": "capstone"}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGES["capstone"], re.DOTALL | re.MULTILINE)
    for block in blocks:
        exec(compile(block, "capstone.md", "exec"), names)
    said = capsys.readouterr().out
    assert re.search(r"^  mine  2 ", said, re.MULTILINE)
    assert "mine: 272,095 parameters" in said
    assert "mine" not in neighbours.ATTENTIONS
    # Another gate under the old name, in the old file, is not run: the page warns of it.
    before = (tmp_path / "capstone.jsonl").read_bytes()
    names["STUDIED"]["mine"] = nn.Identity
    names["experiment"]("capstone", "rehearsal", "capstone.jsonl")
    assert (tmp_path / "capstone.jsonl").read_bytes() == before
    assert "begin a new file of records" in PAGES["capstone"]


@pytest.mark.parametrize(
    "fault",
    [lambda x: x * 1.5, lambda x: x * 0.5, lambda x: x * torch.rand(64, 1, 1), lambda x: x.mean(1)],
    ids=["amplifies", "is constant", "is drawn anew", "loses an axis"],
)
def test_the_tests_of_the_capstone_find_what_does_not_gate(fault):
    _, tests, *_ = re.findall(r"^```python\n(.*?)^```$", PAGES["capstone"], re.DOTALL | re.M)

    class Wrong(nn.Linear):
        def forward(self, x):
            return fault(x)

    with pytest.raises((AssertionError, RuntimeError)):
        exec(tests, {"torch": torch, "MyGate": lambda channels: Wrong(1, 1)})


# The library's public names


# Helpers that rooms share, and timm's names for the networks: not for users.
INTERNAL = re.compile(
    r"cbam_edu\.(attention\.(check_|shown)|neighbours\.check_name|fused\.|timm_models\.cbam_edu_|plot\.Figure)"
)


def public_names(module):
    """Return what a module offers: its list, or the classes and functions made in it."""
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]
    return getattr(module, "__all__", own)


def test_every_public_name_is_on_the_page_of_the_library():
    page = PAGES["api"]
    for name in cbam_edu.__all__:
        assert re.search(rf"auto(?:class|function):: (?:[\w.]+\.)?{name}\b", page), name
    documented = re.findall(r"automodule:: (\S+)(\n   :members:$)?", page, re.MULTILINE)
    assert len(documented) == len(set(documented)) > 20
    lacking = [
        f"{module}.{name}"
        for module, all_of_it in documented
        for name in public_names(importlib.import_module(module))
        if not (all_of_it or re.search(rf"\b{name}\b", page))
    ]
    assert [name for name in lacking if not INTERNAL.match(name)] == []


# The glossary

TERM = re.compile(r"^(?!```|:)(\S.*)\n  (\S.*)$", re.MULTILINE)


def test_every_term_of_the_glossary_is_used_and_says_where_it_is_explained():
    terms = TERM.findall(PAGES["glossary"])
    assert len(terms) > 90
    names = [term.lower() for term, _ in terms]
    assert names == sorted(set(names)), "each once, in the order of the alphabet"
    told = [words(path) for path in NOTEBOOKS.glob("*.ipynb")]
    text = "\n".join([*told, *(page for name, page in PAGES.items() if name != "glossary")]).lower()
    there = {path.name[:2] for path in NOTEBOOKS.glob("*.ipynb")}
    for term, meaning in terms:
        pointers = re.findall(r"\{(?:chapter|doc)\}`(\w+)", meaning)
        assert pointers, f"{term} is explained nowhere"
        if {p for p in pointers if p.isdigit()} <= there:  # its chapter is written
            assert term.lower() in text, f"{term} is not used"
