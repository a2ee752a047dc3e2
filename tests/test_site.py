"""The site's sources: configuration, contents, picture, references and recorded runs."""

import dataclasses
import json
import re
from urllib.parse import urlparse

import pytest
import yaml
from docutils import nodes

import address
import cbam_edu.records
import command_line
import costs
import evidence
import offline
import records
import timings
from cbam_edu.report import Arm, Comparison, Score, reading
from cbam_edu.statistics import Difference
from cbam_edu.studies import STUDIES, find
from notebook_cells import CHAPTERS, ROOT

CONFIG = address.config()
PAGES = {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "book").glob("*.md"))}


def test_the_site_shows_what_is_committed_and_nothing_else():
    assert CONFIG["execute"]["execute_notebooks"] == "off"
    assert CONFIG["only_build_toc_files"] is True
    assert CONFIG["sphinx"]["recursive_update"] is True  # else the buttons vanish


def test_every_page_and_notebook_is_in_the_contents():
    pages = address.contents()
    assert len(pages) == len(set(pages))
    assert [page for page in pages if page.startswith("notebooks/")][: len(CHAPTERS)] == [
        f"notebooks/{name}" for name in CHAPTERS
    ]
    there = {
        str(path.relative_to(ROOT).with_suffix(""))
        for pattern in ("book/*.md", "notebooks/*.ipynb")
        for path in ROOT.glob(pattern)
    }
    assert there == set(pages)


def test_colab_opens_the_notebook_that_the_reader_was_on():
    assert CONFIG["repository"]["path_to_book"] == ""
    url = urlparse(address.colab("notebooks/02_pooling.ipynb"))
    assert url.netloc == "colab.research.google.com"
    repository = urlparse(CONFIG["repository"]["url"]).path
    branch = CONFIG["repository"]["branch"]
    assert url.path == f"/github{repository}/blob/{branch}/notebooks/02_pooling.ipynb"


def test_the_readme_has_every_chapter_with_its_button():
    readme = (ROOT / "README.md").read_text("utf-8")
    for name in CHAPTERS:
        path = ROOT / "notebooks" / f"{name}.ipynb"
        row = re.search(
            rf"^\| \[(.+)\]\(notebooks/{name}\.ipynb\) \| (.+) \|$", readme, re.MULTILINE
        )
        assert row, f"{name} is missing: make address"
        assert row[1] == address.title(path)
        assert address.colab(f"notebooks/{name}.ipynb") in row[2]


def test_the_landing_page_leads_to_every_chapter():
    for name in CHAPTERS:
        assert f"{{doc}}`../notebooks/{name}` {{minutes}}`{name[:2]}`" in PAGES["intro"]


def test_the_landing_page_has_the_parts_of_the_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    for part in toc["parts"]:
        files = [chapter["file"] for chapter in part["chapters"]]
        if all(file.startswith("notebooks/") for file in files):
            begin = PAGES["intro"].index(f"### {part['caption']}\n")
            below = PAGES["intro"][begin:].partition("\n### ")[0]
            assert re.findall(r"\.\./(notebooks/\w+)`", below) == files


def test_every_reference_is_cited_and_every_citation_has_its_reference():
    known = re.findall(r"^@\w+\{(\w+),", (ROOT / "book/references.bib").read_text("utf-8"), re.M)
    lists = re.findall(r"\{cite:\w\}`([\w,]+)`", "".join(PAGES.values()))
    cited = [key for keys in lists for key in keys.split(",")]
    assert len(known) == len(set(known))
    assert set(known) == set(cited)


def test_mathematics_needs_no_network():
    folder = offline.mathjax()
    assert (folder / offline.LOADER).stat().st_size > 500_000
    assert len(list((folder / offline.FONTS).glob("*.woff"))) > 10


def test_the_help_of_every_command_is_on_the_site(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    texts = {parser.prog: command_line.help_of(parser) for parser in command_line.parsers()}
    assert {"cbam-edu", "cbam-edu train", "cbam-edu predict"} <= set(texts)
    assert "--resume" in texts["cbam-edu train"]
    assert max(len(line) for text in texts.values() for line in text.splitlines()) <= 100


# Recorded runs

RECORD = {
    "study": "first",
    "model": "resnet20",
    "arm": "cbam",
    "seed": 0,
    "accuracy": 0.91234,
    "loss": 0.31,
    "epochs": 3,
    "seconds": 1234.5,
    "parameters": 1234567,
    "multiply_accumulates": 40_600_000,
    "device": "a processor",
    "versions": {"torch": "2.11.0"},
    "commit": "0" * 40,
    "recipe": {"epochs": 3},
    "data": "cifar10",
}


def test_records_become_a_table_in_order():
    runs = [RECORD | {"seed": 1}, RECORD | {"seed": 0}, RECORD | {"arm": "none"}]
    table = records.table(runs)
    rows = [[entry.astext() for entry in row] for row in table.findall(nodes.row)]
    assert rows[0] == list(records.COLUMNS)
    assert [row[:4] for row in rows[1:]] == [
        ["resnet20", "cbam", "cifar10", "0"],
        ["resnet20", "cbam", "cifar10", "1"],
        ["resnet20", "none", "cifar10", "0"],
    ]
    assert rows[1][4:] == [
        *("91.23", "0.310", "3", "1,234,567", "40,600,000", "a processor", "1,234"),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "line 2 is no JSON object"),
        (json.dumps({k: v for k, v in RECORD.items() if k != "seed"}), "line 2 lacks seed"),
        (json.dumps(RECORD | {"accuracy": 91.2}), "accuracy is a fraction"),
    ],
)
def test_a_record_that_is_not_whole_is_refused(tmp_path, line, words):
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + line + "\n", "utf-8")
    with pytest.raises(ValueError, match=words):
        records.read(path)


def test_every_record_in_the_book_is_whole():
    for path in records.RESULTS.glob("*.jsonl"):
        assert records.read(path), f"{path.name} is empty"


# Studies


def arm(name, accuracies, comparison=None):
    return Arm(name, accuracies, 100, 200, 3.0, comparison)


def test_a_study_becomes_a_table_beside_the_papers():
    comparison = Comparison(Difference(1.234, -0.5, 3.0, 0.04), 0.08, (-0.61, 3.1), 2.5)
    arms = [arm("none", (50.0, 52.0)), arm("cbam", (52.0, 52.468), comparison), arm("eca", (1.0,))]
    headings, (none, cbam, eca) = evidence.rows("neighbours", arms)
    assert headings[3] == "minus none"
    assert none[:3] == ["none", "2", "51.00 ± 1.41"]
    assert none[4] == "baseline"
    assert cbam[:4] == ["cbam", "2", "52.23 ± 0.33", "+1.23 (-0.50 to +3.00)"]
    assert cbam[4:8] == ["not decidable with this n", "2.50", "0.080", "-0.61 to +3.10"]
    assert headings[4:8] == ["reading", "would show", "p (Holm)", "other images, too"]
    assert (none[8:], cbam[8:], eca[8:]) == (["24.56", ""], ["22.66", "+1.90"], ["", ""])
    assert (eca[2], eca[4]) == ("1.00", "one run only")


@pytest.mark.parametrize(
    ("title", "arm", "error"),
    [
        ("neighbours", "se", 23.14),
        ("pooling", "max", 23.20),
        ("pooling", "avg & max", 22.80),
        ("spatial", "avg & max", 22.80),
        ("spatial", "conv, k = 7", 22.90),
        ("spatial", "cbam", 22.66),
        ("order", "parallel", 22.95),
    ],
)
def test_the_papers_figures_stand_beside_the_right_arms(title, arm, error):
    assert evidence.paper(title)[arm] == error


def test_the_arms_that_the_paper_has_are_arms_of_the_comparison():
    tables = {title: t for study in STUDIES.values() for title, t in study.tables.items()}
    for title in evidence.PAPER:
        assert set(evidence.paper(title)) <= {tables[title].baseline, *tables[title].arms}
    assert evidence.paper("gate") == {}


def test_the_maps_of_controls_stand_in_columns():
    difference = Difference(0.25, 0.2, 0.3, 0.01)
    scores = [
        Score("cbam", "grad-cam", "iou", (0.5, 0.6), {"chance": difference}),
        Score("cbam", "grad-cam, untrained", "iou", (0.1, 0.2), {}),
        Score("cbam", "chance", "iou", (0.1, 0.1), {}),
    ]
    headings, rows = evidence.map_rows(scores)
    assert headings[5:] == ["minus untrained", "minus chance", "minus centre"]
    wanted = ["cbam", "grad-cam", "iou", "2", "0.550", "", "+0.250 (+0.200 to +0.300)", ""]
    assert rows == [wanted]


def test_the_table_of_coverage_has_every_world_that_was_simulated():
    headings, rows = evidence.coverage_rows()
    lines = (records.RESULTS / "checks/coverage.jsonl").read_text("utf-8").splitlines()
    assert len(rows) == len(lines)
    (row,) = [r for r in rows if r[:3] == ["bootstrap", "images matter", "20"]]
    (found,) = [
        r
        for r in map(json.loads, lines)
        if (r["method"], r.get("world"), r["seeds"]) == ("bootstrap", "images", 20)
    ]
    assert row[4] == f"{100 * found['covered'] / 1000:.1f} %"
    assert row[6] == f"{100 * found['covered by Welch'] / 1000:.1f} %"
    assert len(headings) == len(row)


def recorded_studies():
    return sorted((records.RESULTS / "studies").glob("*.jsonl"))


@pytest.mark.parametrize("path", recorded_studies(), ids=lambda path: path.stem)
def test_the_recorded_studies_are_whole_and_of_their_definitions(path):
    name, _, size = path.stem.rpartition("-")
    found, broken = cbam_edu.records.read([path])
    assert broken == []
    assert found
    cbam_edu.records.check_comparable(found)
    study, chosen = find(name, size)
    for record in found:
        assert (record["study"], record["size"]) == (name, size)
        assert record["seed"] < chosen.seeds
        options = json.loads(json.dumps(study.options(record["arm"], chosen)))
        assert options.items() <= record["config"].items(), record["arm"]
        recipe = study.recipe(record["arm"], chosen)
        assert record["recipe"] == dataclasses.asdict(recipe) | {"seed": record["seed"]}
        assert not record["commit"].endswith("-dirty")
        assert find(name, size)[0].data == record["data"]


def readings(study):
    found = evidence.summary(study, "small").tables
    return {
        title: {arm.name: reading(arm.comparison) for arm in arms[1:]}
        for title, (_, arms) in found.items()
    }


def lies_off(study, arm, kind, score, control, sign):
    """Say whether a score's interval lies on that side of a control's."""
    (found,) = [
        s
        for s in evidence.summary(study, "small").scores
        if (s.arm, s.map, s.score) == (arm, kind, score)
    ]
    difference = found.against[control]
    return (difference.low if sign > 0 else -difference.high) > 0


def test_what_the_page_of_results_says_in_words():
    undecided = "not decidable with this n"
    for network in ("resnet20", "resnet9"):
        study = f"neighbours-{network}"
        (arms,) = (arms for _, arms in evidence.summary(study, "small").tables.values())
        assert all(a.comparison.p > 0.05 and a.comparison.smallest > 3 for a in arms[1:])
        said = readings(study)["neighbours"]
        assert all(w == undecided for name, w in said.items() if name != "half")
    said = readings("variants")
    assert set(said["pooling"].values()) == {"not supported: worse"}
    arms = evidence.summary("variants", "small").tables["pooling"][1]
    assert max(arms[1:], key=lambda arm: arm.mean).name == "avg & max"
    assert set(said["spatial"].values()) == {"not supported: worse"}
    assert said["order"]["parallel"] == "supported"
    assert not any(said["order"][name] == "supported" for name in ("cbam", "spatial first"))
    assert set(said["reduction"].values()) == {undecided}
    assert said["gate"] == {"softmax": "not supported: worse", "hard-sigmoid": undecided}
    assert said["norm"] == {"no norm": "supported", "norm from 0": undecided}
    said = readings("recipe")["recipe"]
    needed = {name for name, word in said.items() if word == "not supported: worse"}
    assert needed == {"no augmentation", "no momentum", "lr / 10"}
    arms = evidence.summary("recipe", "small").tables["recipe"][1]
    assert all(arm.comparison.difference.high < -5 for arm in arms if arm.name in needed)
    assert {name for name, word in said.items() if word == "supported"} == {"lr x 10"}
    assert all(said[name] == undecided for name in said.keys() - needed - {"lr x 10"})
    for score in ("pointing", "energy", "iou"):
        for arm in ("none", "se", "cbam"):
            assert lies_off("where", arm, "grad-cam", score, "centre", +1)
            assert lies_off("where", arm, "grad-cam", score, "untrained", +1)
        assert not lies_off("where", "cbam", "M_s 0.0", score, "centre", +1)
    assert lies_off("where", "cbam", "M_s 2.0", "iou", "centre", +1)
    assert lies_off("where", "cbam", "M_s 2.0", "iou", "untrained", +1)
    for arm in ("none", "se", "cbam"):
        assert lies_off("deletion", arm, "grad-cam", "deletion", "centre", -1)
    for gate in ("M_s 0.0", "M_s 1.0", "M_s 2.0"):
        assert not lies_off("deletion", "cbam", gate, "deletion", "centre", -1)


def test_the_full_recipe_brings_the_plain_network_to_where_the_literature_has_it():
    runs = cbam_edu.records.recorded("neighbours-resnet20", "full")
    accuracies = [record["accuracy"] for record in runs if record["arm"] == "none"]
    assert 0.917 <= sum(accuracies) / len(accuracies) <= 0.926


def test_the_page_of_results_shows_every_recorded_study():
    page = (ROOT / "book" / "results.md").read_text("utf-8")
    for path in recorded_studies():
        name, _, size = path.stem.rpartition("-")
        shown = f"{{study-table}} {name}\n" if size == "small" else f"studies/{path.stem}\n"
        assert shown in page


def test_the_page_of_costs_counts_what_the_paper_prints():
    rows = costs.paper_rows()
    assert len(rows) == 30
    assert {row[-1] for row in rows} == {"yes"}
    assert ["resnet50", "CBAM", "28,089,624", "28.09", "3,864,362,102", "3.864", "yes"] in rows


def test_a_row_that_differs_is_said_to(monkeypatch, tmp_path):
    paper = json.loads(costs.PAPER.read_text("utf-8"))
    paper["table4_imagenet"]["resnet18"]["se"][1] = 1.815
    monkeypatch.setattr(costs, "PAPER", tmp_path / "paper.json")
    costs.PAPER.write_text(json.dumps(paper), "utf-8")
    assert [row[:2] for row in costs.paper_rows() if row[-1] != "yes"] == [["resnet18", "SE"]]


def test_what_the_page_of_costs_says_in_words():
    added = {row[0]: row[1:] for row in costs.attention_rows()}
    assert list(added) == ["SE", "ECA", "BAM", "channel only", "spatial only", "CBAM"]
    assert 0.095 < float(added["CBAM"][1].rstrip("%")) / 100 < 0.105  # "a tenth"
    assert float(added["CBAM"][3].rstrip("%")) / 100 < 0.002  # "less than two thousandths"
    counters = {row[0]: int(row[1].replace(",", "")) for row in costs.counter_rows()}
    ours = counters["this book"]
    assert counters["torch's FlopCounterMode, halved"] == ours
    assert counters["ptflops, aten backend"] == ours + 1_000  # the head's biases
    assert counters["ptflops, pytorch backend"] > counters["ptflops, pytorch backend, modules only"]
    strided = counters['this book, stride_on="3x3"']
    assert counters["this book, torchvision's resnet50"] == strided > ours


SHAPES = ["64 x 64 x 32 x 32", "64 x 256 x 14 x 14", "16 x 256 x 56 x 56"]


def test_the_page_of_times_has_what_was_recorded():
    for way in ("eager", "compiled"):
        for mode in ("training", "forward"):
            headings, rows, made_of = timings.layer_rows(way, mode)
            layouts = ("contiguous", "channels last")
            assert [row[0] for row in rows] == [f"{s}, {f}" for f in layouts for s in SHAPES]
            assert len(made_of) == len(rows) * (len(headings) - 2)
            first = {r["implementation"]: r["milliseconds"] for r in made_of[:5]}
            assert float(rows[0][1]) == pytest.approx(first["timm"] / first["fused"], abs=0.006)
    assert len(timings.network_rows()[1]) == 12
    assert {row[0] for row in timings.growth_rows()[1]} == {"N", "C", "H W"}


def recorded(name="layers", **wanted):
    """Return the medians of what was recorded, by map and implementation."""
    return {
        (*r["shape"], r["channels_last"], r["implementation"]): r["milliseconds"]
        for r in timings.read(name)
        if all(r[key] == value for key, value in wanted.items())
    }


def ratios(times, other):
    """Return how many times as long as the fused form another takes, by map."""
    maps = dict.fromkeys(key[:-1] for key in times)
    return {key: times[*key, other] / times[*key, "fused"] for key in maps}


def test_what_the_page_of_times_says_in_words():
    training = recorded(way="eager", mode="training")
    forward = recorded(way="eager", mode="forward")
    for other in ("plain", "timm", "authors", "common"):
        assert min(ratios(training, other).values()) > 1.2
    spread = {
        (*r["shape"], r["channels_last"], r["implementation"]): (r["low"], r["high"])
        for r in timings.read("layers")
        if (r["way"], r["mode"]) == ("eager", "forward")
    }
    for key, ratio in ratios(forward, "timm").items():  # no slower, to within the noise
        assert ratio > 1 or spread[*key, "fused"][0] < spread[*key, "timm"][1]
    kept = {r["kept_maps"] for r in timings.read("layers") if r["implementation"] == "fused"
            and r["mode"] == "training" and r["way"] == "eager"}  # fmt: skip
    assert max(kept) < 1.15
    largest = {key: v for key, v in ratios(training, "timm").items() if key[1:3] == (256, 56)}
    assert min(largest.values()) > max(
        v for key, v in ratios(training, "timm").items() if key[1:3] == (256, 14)
    )  # its advantage is largest where maps are large
    reused = ratios(recorded("reused", way="eager", mode="training"), "timm")
    assert all(reused[key] < largest[key] for key in largest)
    compiled = ratios(recorded(way="compiled", mode="training"), "timm")
    assert all(0.85 < ratio < 1.3 for ratio in compiled.values())  # "as fast as timm's"
