"""The commands `experiment` and `report`, from the words typed to the exit code."""

import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

from cbam_edu import cli, cli_studies, studies
from cbam_edu.cli import main
from cbam_edu.records import append, read
from tiny_study import LONG, RUNS, SIZE, TINY, a_record, command, start

CPU = ("--size", "small", "--device", "cpu")


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    monkeypatch.setitem(studies.STUDIES, "tiny", TINY)
    monkeypatch.chdir(tmp_path)


def run(capsys, *words):
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    return code, out, err


def write(path, *records):
    for record in records:
        append(path, record, path.with_suffix(".lock"))
    path.with_suffix(".lock").unlink()
    return path


def some():
    """Return simulated records of all runs."""
    return [
        a_record(arm, seed, np.arange(100) < 40 + 3 * seed + 10 * (arm != "none"))
        for arm, seed in RUNS
    ]


def test_studies_are_listed(capsys):
    code, out, err = run(capsys, "experiment")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    for name, study in studies.STUDIES.items():
        at = lines.index(f"{name}: {study.question}")
        for row, (size, about) in enumerate(study.sizes.items(), at + 1):
            assert lines[row].split()[0] == size
            assert f" {len(study.arms)} arms x " in lines[row]
            assert (
                f" {about.seeds} seeds, {about.model}, {about.recipe.epochs} epochs, " in lines[row]
            )
    assert lines[-1].endswith("2 epochs, 5 of each class of the images of cifar10-mini")
    assert any(line.endswith("100 epochs, all the images of cifar10") for line in lines)


def test_a_study_from_its_runs_to_its_table_and_figure(capsys, tmp_path):
    code, out, err = run(capsys, "experiment", "tiny", *CPU)
    file = tmp_path / "results" / "tiny-small.jsonl"
    assert (code, err) == (0, "")
    assert out.endswith(
        "runs done: 4; cbam-edu report tiny --size small reads results/tiny-small.jsonl\n"
    )
    assert [(r["arm"], r["seed"]) for r in read([file])[0]] == RUNS
    code, out, err = run(capsys, "experiment", "tiny", *CPU)
    assert code == 0
    assert out.startswith("all is done, or being done by another process; cbam-edu report tiny ")
    code, out, err = run(capsys, "report", "tiny", "--size", "small", "--figure", "a.svg")
    assert (code, err) == (0, "")
    assert out.startswith("tiny, small: cbamnet_tiny on cifar10-mini, 50 training ")
    assert "Not all runs are there" not in out
    assert (tmp_path / "a.svg").read_text("utf-8").startswith("<?xml")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.svg", "results"]


def test_records_are_in_the_book_where_there_is_one(tmp_path):
    assert str(cli_studies.default_file("tiny", "full")) == "results/tiny-full.jsonl"
    (tmp_path / "book" / "results" / "studies").mkdir(parents=True)
    assert str(cli_studies.default_file("tiny", "full")) == "book/results/studies/tiny-full.jsonl"


def test_parts_of_a_study(capsys, tmp_path):
    words = ["experiment", "tiny", *CPU, "--out", tmp_path / "a", "--seeds", "1", "7"]
    assert run(capsys, *words, "--arms", "c & s", "--shard", "2/2")[0] == 0
    assert [(r["arm"], r["seed"]) for r in read([tmp_path / "a"])[0]] == [("c & s", 7)]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["experiment", "tny"], 2, "unknown study 'tny'; did you mean tiny"),
        (["experiment", "tiny", "--size", "big"], 2, "unknown size 'big'; known: small"),
        (["experiment", "tiny", *CPU, "--arms", "cs"], 2, "unknown arm of tiny 'cs'; "),
        (["experiment", "tiny", *CPU, "--seeds", "-1"], 2, "seeds are integers from 0 to"),
        (["experiment", "tiny", *CPU, "--shard", "0/3"], 2, "a shard is i/n with i from 1 to n"),
        (["experiment", "tiny", *CPU, "--shard", "4/3"], 2, "such as 1/4; got 4/3"),
        (
            ["experiment", "tiny", *CPU, "--shard", "a/b"],
            2,
            "a shard is i/n, such as 1/4; got 'a/b'",
        ),
        (["experiment", "tiny", *CPU, "--shard", "1"], 2, "a shard is i/n, such as 1/4; got '1'"),
        (["experiment", "tiny", *CPU, "--device", "tpu9"], 2, "device 'tpu9' is not to be had"),
        (["experiment", "tiny", *CPU, "--out", "."], 1, "it is a folder, not a file"),
        (["experiment", "tiny", *CPU, "--out", "file/x"], 1, "cannot make the folder file: a file"),
        (["report", "tny"], 2, "unknown study 'tny'; did you mean tiny"),
        (["report", "tiny", "--size", "big"], 2, "unknown size 'big'; known: small"),
        (["report", "tiny", "--size", "small"], 2, "cbam-edu experiment tiny --size small makes"),
        (
            ["report", "tiny", *CPU[:2], "--records", "none"],
            1,
            "cannot read none: it does not exist",
        ),
        (["report", "tiny", *CPU[:2], "--records", "."], 1, "it is a folder, not a file"),
        (
            ["report", "tiny", *CPU[:2], "--figure", "a.jpeg"],
            2,
            "a figure is a file .png, .pdf, .svg;",
        ),
        (
            ["report", "tiny", *CPU[:2], "--figure", "a"],
            2,
            "a figure is a file .png, .pdf, .svg; got a",
        ),
    ],
)
def test_wrong_words_are_told_in_one_line(tmp_path, capsys, words, code, message):
    (tmp_path / "file").touch()
    got, out, err = run(capsys, *words)
    assert (got, out) == (code, "")
    assert message in err
    assert err.startswith("cbam-edu: ")
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("words", [["report"], ["experiment", "tiny", "--seeds", "x"]])
def test_usage_errors_exit_with_two(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: cbam-edu" in capsys.readouterr().err


def test_a_file_of_other_runs_is_refused(capsys, tmp_path):
    file = write(tmp_path / "runs.jsonl", a_record())
    code, out, err = run(capsys, "experiment", "tiny", *CPU, "--out", file)
    assert (code, out) == (2, "")
    assert "runs.jsonl holds runs (commit 0123456789abcdef) that the new ones could not be" in err
    assert "code: 'c0de' there, '" in err
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"recipe": a_record()["recipe"] | {"lr": 0.1}}, "differ in recipe.lr: 0.05 ("),
        ({"code": "new", "commit": "ffff"}, 'differ in code: "c0de" ('),
        ({"digest": "other"}, 'differ in digest: "d1ge57" ('),
        ({"study": "where"}, 'differ in study: "tiny" ('),
        ({"size": "full"}, 'differ in size: "small" ('),
        ({"config": {}}, "differ in config of none: {"),
        ({"loss": 9.0, "seed": 0}, "hold runs more than once, and not alike: none with seed 0"),
    ],
)
def test_a_report_mixes_nothing(capsys, tmp_path, change, told):
    write(tmp_path / "a", a_record())
    write(tmp_path / "b", a_record(seed=1) | change)
    code, out, err = run(capsys, "report", "tiny", "--size", "small", "--records", "a", "b")
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1


def test_a_report_of_another_study_is_refused(capsys, tmp_path):
    write(tmp_path / "a", a_record())
    code, _, err = run(capsys, "report", "where", "--size", "small", "--records", "a")
    assert code == 2
    assert err == "cbam-edu: the records are of tiny, small, not of where, small\n"


def test_files_of_several_machines_are_read_as_one(capsys, tmp_path):
    records = some()
    write(tmp_path / "whole", *records)
    write(tmp_path / "a", *records[::2])
    write(tmp_path / "b", *records[1:])  # some of them twice
    words = ["report", "tiny", "--size", "small", "--records"]
    whole, parts = run(capsys, *words, "whole"), run(capsys, *words, "a", "b")
    assert whole[0] == 0
    assert "  c & s  2  51.50 ± 2.12  +10.00 (" in whole[1]
    assert parts == whole


def test_broken_lines_are_told_and_the_rest_is_read(capsys, tmp_path):
    file = write(tmp_path / "a", *some())
    whole = run(capsys, "report", "tiny", "--size", "small", "--records", "a")
    with open(file, "ab") as more:
        more.write(b'{"study": "tiny", "si\n\xff\xfe\n')
    code, out, err = run(capsys, "report", "tiny", "--size", "small", "--records", "a")
    assert (code, out) == whole[:2]
    first, second = err.splitlines()
    assert first.startswith("cbam-edu: a, line 5: no whole line of JSON (")
    assert second.startswith("cbam-edu: a, line 6: no whole line of JSON (")


def test_no_figure_is_half_written(capsys, tmp_path):
    write(tmp_path / "a", *some())
    words = ["report", "tiny", "--size", "small", "--records", "a", "--figure"]
    code, out, err = run(capsys, *words, "none/a.png")
    assert code == 1
    assert err == "cbam-edu: cannot write none/a.png: it does not exist; check the path\n"
    assert "gates: Are gates better?" in out
    write(tmp_path / "b", some()[0])
    words[words.index("a")] = "b"
    code, _, err = run(capsys, *words, "a.png")
    assert code == 2
    assert err.startswith("cbam-edu: no arm has two seeds yet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
)
def test_figures_are_what_their_names_say(capsys, tmp_path, suffix, start):
    write(tmp_path / "a", *some())
    words = ["report", "tiny", "--size", "small", "--records", "a", "--figure", f"f.{suffix}"]
    assert run(capsys, *words)[0] == 0
    assert (tmp_path / f"f.{suffix}").read_bytes().startswith(start)


def test_a_lost_loss_fails_and_says_whose(capsys, monkeypatch):
    wild = replace(SIZE, recipe=replace(SIZE.recipe, lr=1e30, warmup=0.0))
    monkeypatch.setitem(studies.STUDIES, "tiny", replace(TINY, sizes={"small": wild}))
    code, _, err = run(capsys, "experiment", "tiny", *CPU, "--seeds", "1", "--out", "a")
    assert code == 1
    assert err.startswith("cbam-edu: none, seed 1: the loss became ")
    assert "; c & s, seed 1: the loss became " in err
    assert err.count("\n") == 1


def test_ctrl_c_says_how_to_go_on(capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("cbam_edu.experiment.run", stopped)
    code, _, err = run(capsys, "experiment", "tiny", *CPU)
    assert code == cli.INTERRUPTED
    assert err == "\ncbam-edu: stopped; the same command goes on from the last whole epoch\n"


def test_ctrl_c_in_truth_and_the_same_command_again(tmp_path, monkeypatch):
    errors, out = tmp_path / "errors", tmp_path / "runs.jsonl"
    words = ["experiment", "tiny", *CPU, "--out", str(out)]
    process, pipe = start(command, words, str(errors))
    assert pipe.poll(120)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".*.runs/*/*/checkpoint.pt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    process.join(120)
    assert process.exitcode == cli.INTERRUPTED
    told = "cbam-edu: stopped; the same command goes on from the last whole epoch"
    assert errors.read_text().strip() == told
    monkeypatch.setitem(studies.STUDIES, "tiny", LONG)
    assert main(words) == 0
    assert sorted((r["arm"], r["seed"]) for r in read([out])[0]) == sorted(RUNS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["errors", "runs.jsonl"]


def test_report_falls_back_on_the_books_records(tmp_path, capsys):
    code, out, err = run(capsys, "report", "deletion", "--size", "small")
    assert (code, err) == (0, "")
    assert out.startswith("deletion, small: resnet8 on cifar10, ")
    (tmp_path / "results").mkdir()
    write(tmp_path / "results" / "deletion-small.jsonl", a_record())
    code, out, err = run(capsys, "report", "deletion", "--size", "small")  # the user's come first
    assert (code, out) == (2, "")
    assert "the records are of tiny, small, not of deletion, small" in err
