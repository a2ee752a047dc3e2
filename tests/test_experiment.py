"""Studies, run: every run once, whatever is killed, cut, started twice or shared out."""

import random
import shlex
import shutil
import threading
import time
from dataclasses import replace

import filelock
import numpy as np
import pytest
import torch

from cbam_edu import cli, experiment, studies
from cbam_edu.data import normalise
from cbam_edu.experiment import answers, planned
from cbam_edu.models import create_model
from cbam_edu.records import check_comparable, code, commit, digest, pack, read, unpack
from cbam_edu.storage import StorageError
from cbam_edu.train import DivergenceError, evaluate
from tiny_study import DEATHS, LONG, RUNS, SIZE, TINY, a_record, do, start

SAME = ("accuracy", "loss", "correct", "train_accuracy", "config", "recipe", "digest")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(studies.STUDIES, "tiny", TINY)
    return monkeypatch


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The file of the whole tiny study, and what was told."""
    out, told = tmp_path_factory.mktemp("done") / "runs.jsonl", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(studies.STUDIES, "tiny", TINY)
        assert do_study(out, tell=told.append) == 4
    return out, told


def do_study(out, **options):
    return experiment.experiment("tiny", "small", out, **{"tell": lambda line: None, **options})


def of_runs(*files):
    """Return what must be the same whenever a run is done, by run."""
    found, broken = read(files)
    assert not broken
    results = {(r["arm"], r["seed"]): {key: r[key] for key in SAME} for r in found}
    assert len(results) == len(found)
    return results


def fails(*_, **__):
    raise AssertionError("something was trained")


def test_each_run_is_recorded_and_nothing_is_left_beside(done):
    out, told = done
    found, broken = read([out])
    assert ([(r["arm"], r["seed"]) for r in found], broken) == (RUNS, [])
    assert list(out.parent.iterdir()) == [out]
    assert told[::2] == [f"tiny, small: {arm}, seed {seed}" for arm, seed in RUNS]
    assert told[1].startswith(f"    {found[0]['accuracy']:.2%}, ")
    training, test = TINY.images(SIZE)
    for record in found:
        assert (record["study"], record["size"]) == ("tiny", "small")
        assert (record["train_images"], record["test_images"]) == (50, 500)
        assert (record["data"], record["digest"]) == ("cifar10-mini", digest(training, test))
        assert (record["code"], record["commit"]) == (code(), commit())
        assert record["recipe"]["seed"] == record["seed"]
        right = unpack(record["correct"], 500)
        assert right.mean() == record["accuracy"]
        assert "scores" not in record
    assert found[0]["correct"] != found[2]["correct"]  # the seed matters
    assert found[1]["parameters"] > found[0]["parameters"]


def test_a_study_leaves_the_callers_chances_alone(tmp_path):
    torch.manual_seed(7)
    wanted = torch.rand(4)
    torch.manual_seed(7)
    assert do_study(tmp_path / "runs.jsonl", arms=RUNS[0][:1], seeds=[0]) == 1
    assert torch.equal(torch.rand(4), wanted)


def test_answers_are_those_that_are_measured():
    torch.manual_seed(0)
    test = TINY.images(SIZE)[1]
    model = create_model("cbamnet_tiny", 10, dims=(4, 8)).train()
    right, loss = answers(model, test, "float32")
    with torch.no_grad():
        logits = model.eval()(normalise(test.images))
    assert (right == (logits.argmax(1) == test.labels)).float().mean() > 0.99  # but for rounding
    scores = evaluate(model, test)
    assert right.double().mean().item() == scores.accuracy
    assert loss == pytest.approx(scores.loss, rel=1e-6)


def test_a_recorded_command_gives_the_record_again(done, tmp_path, capsys):
    record = read([done[0]])[0][1]
    words = shlex.split(record["command"])
    assert words[0] == "cbam-edu"
    again = tmp_path / "again.jsonl"
    assert cli.main([*words[1:], "--device", "cpu", "--out", str(again)]) == 0
    assert of_runs(again) == {("c & s", 0): of_runs(done[0])["c & s", 0]}
    assert capsys.readouterr().out.endswith(
        f"runs done: 1; cbam-edu report tiny --size small reads {again}\n"
    )


def test_compiled_runs_say_so_and_are_comparable(tmp_path, monkeypatch):
    seen = []

    def trained(model, training, recipe, **_):
        seen.append(recipe.compile)
        return [{"epoch": 1, "loss": 1.0, "train_accuracy": 0.1, "seconds": 1.0}]

    monkeypatch.setattr(experiment, "fit", trained)
    out = tmp_path / "runs.jsonl"
    assert do_study(out, compiled=True, arms=["none"], seeds=[0]) == 1
    assert do_study(out, arms=["none"]) == 1
    first, second = read([out])[0]
    assert seen == [True, False]
    assert shlex.split(first["command"])[-1] == "--compile"
    assert "--compile" not in second["command"]


def test_scores_are_recorded(tmp_path, monkeypatch):
    def scores(model, test, seed):
        assert not model.training
        return {"map: score": seed + len(test) / 1000}

    monkeypatch.setitem(studies.STUDIES, "tiny", replace(TINY, scores=scores))
    out = tmp_path / "runs.jsonl"
    do_study(out, arms=["none"], seeds=[7])
    assert read([out])[0][0]["scores"] == {"map: score": 7.5}


def test_plans():
    assert planned("tiny", "small") == RUNS
    assert planned("tiny", "small", seeds=[5, 0, 5]) == [
        (arm, seed) for seed in (5, 0) for arm in ("none", "c & s")
    ]
    assert planned("tiny", "small", arms=["c & s"], seeds=[3]) == [("c & s", 3)]
    assert planned("tiny", "small", shard=(2, 3)) == [RUNS[1]]
    for shares in (1, 2, 3, 5):
        parts = [planned("tiny", "small", shard=(i, shares)) for i in range(1, shares + 1)]
        assert sorted(run for part in parts for run in part) == sorted(RUNS)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": "tny"}, "unknown study 'tny'; did you mean tiny"),
        ({"size": "fill"}, "unknown size 'fill'; "),
        ({"arms": ["non"]}, "unknown arm of tiny 'non'; did you mean none"),
        ({"seeds": [-1]}, "seeds are integers from 0 to 4294967295, got -1"),
        ({"seeds": [2**40]}, "got 1099511627776"),
        ({"seeds": [0.5]}, r"got 0\.5"),
        ({"shard": (0, 3)}, "a shard is i/n with i from 1 to n, such as 1/4; got 0/3"),
        ({"shard": (4, 3)}, "got 4/3"),
    ],
)
def test_what_cannot_be_planned_is_told(tmp_path, options, told):
    names = [options.pop("name", "tiny"), options.pop("size", "small")]
    with pytest.raises(ValueError, match=told):
        experiment.experiment(*names, tmp_path / "runs.jsonl", **options)
    assert not list(tmp_path.iterdir())


def test_shares_make_the_whole(done, tmp_path):
    parts = [tmp_path / f"{i}.jsonl" for i in (1, 2, 3)]
    assert [do_study(p, shard=(i, 3)) for i, p in enumerate(parts, 1)] == [2, 1, 1]
    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert of_runs(whole) == of_runs(*parts) == of_runs(done[0])
    assert do_study(whole) == 0


def test_finished_runs_are_not_done_again(done, tmp_path, monkeypatch):
    out = shutil.copy(done[0], tmp_path / "runs.jsonl")
    monkeypatch.setattr(experiment, "run", fails)
    before = out.read_bytes()
    assert do_study(out) == 0
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_cut_record_is_told_and_its_run_done_again(done, tmp_path):
    whole = done[0].read_bytes().splitlines(keepends=True)
    out, told = tmp_path / "runs.jsonl", []
    out.write_bytes(whole[0] + whole[1][:500] + b"\n" + whole[2] + whole[3][:-20])
    assert do_study(out, tell=told.append) == 2
    assert [line.partition(": ")[0] for line in told[:2]] == [f"{out}, line 2", f"{out}, line 4"]
    assert all(line.endswith("; skipped") for line in told[:2])
    found, broken = read([out])
    assert [(r["arm"], r["seed"]) for r in found] == [RUNS[0], RUNS[2], RUNS[1], RUNS[3]]
    assert [b.line for b in broken] == [2, 4]
    wanted = of_runs(done[0])
    for record in found:
        assert {key: record[key] for key in SAME} == wanted[record["arm"], record["seed"]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"study": "other"}, "study: 'other' there, 'tiny' now"),
        ({"size": "full"}, "size: 'full' there, 'small' now"),
        ({"code": "c0de"}, "(commit 0123456789abcdef) that the new ones could not be compared"),
        ({"code": "c0de"}, "with (code: 'c0de' there, '"),
        ({"digest": "other"}, "digest: 'other' there, '"),
        ({"test_images": 10}, "test_images: 10 there, 500 now"),
        ({"recipe": {"lr": 0.1}}, "recipe.lr: 0.1 there, 0.05 now"),
        ({"recipe": {"gone": 1}}, "recipe.gone: 1 there, None now"),
        ({"arm": "c & s"}, "config of c & s: {"),
        ({"arm": "gone"}, "config of gone: {"),
    ],
)
def test_a_file_of_other_runs_is_refused_before_anything_is_trained(
    tmp_path, monkeypatch, change, told
):
    digests = digest(*TINY.images(SIZE))
    record = a_record(right=np.arange(500) < 50, code=code(), digest=digests)
    if "test_images" in change:
        record |= a_record(code=code(), digest=digests)
    recipe = record["recipe"] | change.get("recipe", {})
    record |= {**change, "recipe": recipe}
    out = tmp_path / "runs.jsonl"
    experiment.append(out, record, tmp_path / "lock")
    (tmp_path / "lock").unlink()
    before = out.read_bytes()
    monkeypatch.setattr(experiment, "run", fails)
    with pytest.raises(ValueError, match="holds runs") as error:
        do_study(out)
    assert told in str(error.value)
    assert str(error.value).endswith("; choose another file (--out)")
    assert str(error.value).count(" there, ") == 1  # nothing else differs
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_bytes() == before


def test_an_arm_may_change_the_recipe_and_is_held_to_what_it_changes(tmp_path, monkeypatch):
    own = {"lr": 0.001}
    changed = replace(TINY, changes={"c & s": own})
    monkeypatch.setitem(studies.STUDIES, "tiny", changed)
    out = tmp_path / "runs.jsonl"
    assert do_study(out, seeds=[0]) == 2
    plain, lower = read([out])[0]
    assert (plain["recipe"]["lr"], "changes" in plain) == (0.05, False)
    assert (lower["recipe"]["lr"], lower["changes"]) == (0.001, own)
    check_comparable([plain, lower])
    again = lower | {"seed": 1, "recipe": lower["recipe"] | {"lr": 0.002}}
    with pytest.raises(ValueError, match=r"differ in recipe\.lr of c & s: 0\.001 .*, 0\.002 "):
        check_comparable([plain, lower, again])
    again = lower | {"seed": 1, "recipe": lower["recipe"] | {"epochs": 3}}
    with pytest.raises(ValueError, match=r"differ in recipe\.epochs: 2 .*, 3 "):
        check_comparable([plain, lower, again])
    monkeypatch.setitem(studies.STUDIES, "tiny", TINY)  # where the arm changes nothing
    with pytest.raises(ValueError, match=r"changes of c & s: \{'lr': 0\.001\} there, \{\} now"):
        do_study(out)


def test_runs_whose_loss_is_lost_leave_the_others_alone(tmp_path, monkeypatch):
    fit = experiment.fit

    def lost(model, training, recipe, **options):
        config = vars(model)["config"]
        if (config["attention"], recipe.seed) in ((None, 0), ("cbam", 1)):
            raise DivergenceError("the loss became nan in epoch 1")
        return fit(model, training, recipe, **options)

    monkeypatch.setattr(experiment, "fit", lost)
    out = tmp_path / "runs.jsonl"
    with pytest.raises(DivergenceError) as error:
        do_study(out)
    told = "the loss became nan in epoch 1"
    assert str(error.value) == f"none, seed 0: {told}; c & s, seed 1: {told}"
    assert set(of_runs(out)) == {("c & s", 0), ("none", 1)}


def test_a_loss_that_is_lost_in_truth_is_told(tmp_path, monkeypatch):
    wild = replace(SIZE, recipe=replace(SIZE.recipe, lr=1e30, warmup=0.0))
    monkeypatch.setitem(studies.STUDIES, "tiny", replace(TINY, sizes={"small": wild}))
    with pytest.raises(DivergenceError, match=r"^none, seed 0: the loss became (nan|inf)"):
        do_study(tmp_path / "runs.jsonl", arms=["none"], seeds=[0])
    assert (tmp_path / "runs.jsonl").read_bytes() == b""


def test_a_full_disk_loses_no_training(done, tmp_path, monkeypatch):
    def full(*_):
        raise StorageError("cannot write: the disk is full; free some space")

    out = tmp_path / "runs.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "append", full)
        with pytest.raises(StorageError, match="the disk is full"):
            do_study(out)
    monkeypatch.setattr("cbam_edu.train._Run.epoch", fails)
    assert do_study(out, arms=["none"], seeds=[0]) == 1
    assert of_runs(out) == {RUNS[0]: of_runs(done[0])[RUNS[0]]}
    assert list(tmp_path.iterdir()) == [out]


def test_places_that_cannot_be_written_are_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "run", fails)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StorageError, match="it is a folder, not a file"):
        do_study(tmp_path)
    with pytest.raises(StorageError, match="cannot make the folder"):
        do_study(file / "runs.jsonl")
    assert list(tmp_path.iterdir()) == [file]

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(filelock.FileLock, "acquire", denied)
    with pytest.raises(StorageError, match=r"cannot lock .*none-0\.lock: permission is denied"):
        do_study(tmp_path / "runs.jsonl")


def test_a_run_of_another_process_is_left_to_it_and_not_tidied_away(done, tmp_path):
    out = tmp_path / "runs.jsonl"
    work = tmp_path / ".runs.jsonl.runs"
    work.mkdir()
    with filelock.FileLock(work / "c___s-1.lock"):  # as its process holds it
        assert do_study(out) == 3
        assert ("c & s", 1) not in of_runs(out)
        assert (work / "c___s-1.lock").exists()
    assert do_study(out) == 1
    assert of_runs(out) == of_runs(done[0])
    assert list(tmp_path.iterdir()) == [out]


def test_more_seeds_than_the_study_has_go_on_while_another_process_ends(tmp_path, monkeypatch):
    out, fit, began, go = tmp_path / "runs.jsonl", experiment.fit, threading.Event(), []

    def slow(model, training, recipe, **options):
        if recipe.seed == 9:  # far beyond the plan, and still at it when the plan is done
            began.set()
            other.wait()
        return fit(model, training, recipe, **options)

    other = threading.Event()
    monkeypatch.setattr(experiment, "fit", slow)
    extra = threading.Thread(
        target=lambda: go.append(do_study(out, arms=["none"], seeds=[9])), daemon=True
    )
    extra.start()
    assert began.wait(60)
    work = tmp_path / ".runs.jsonl.runs"
    assert do_study(out) == 4
    assert (work / "none-9.lock").exists()
    other.set()
    extra.join(60)
    assert go == [1]
    assert set(of_runs(out)) == {*RUNS, ("none", 9)}
    assert list(tmp_path.iterdir()) == [out]


def test_a_study_that_was_stopped_goes_on_from_its_last_epoch(done, tmp_path, monkeypatch):
    out = tmp_path / "runs.jsonl"
    from cbam_edu.train import _Run

    epoch, count = _Run.epoch, []

    def stopped(self, progress):
        count.append(len(self.history))
        if len(count) == 4:  # the second epoch of the second run
            raise KeyboardInterrupt
        return epoch(self, progress)

    monkeypatch.setattr(_Run, "epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        do_study(out)
    assert set(of_runs(out)) == {RUNS[0]}
    assert do_study(out) == 3
    assert count == [0, 1, 0, 1, 1, 0, 1, 0, 1]
    assert of_runs(out) == of_runs(done[0])
    assert list(tmp_path.iterdir()) == [out]


def alone(out, study=LONG, death=None):
    """Do a study in a process; return its exit code and how long it took once it had begun."""
    process, pipe = start(do, out, study, death)
    assert pipe.poll(120)
    began = time.monotonic()
    process.join(120)
    return process.exitcode, time.monotonic() - began


@pytest.mark.parametrize("death", DEATHS)
def test_killed_at_the_worst_moments(done, tmp_path, death):
    """The runs that were recorded stay; what was not is done; nothing is left beside."""
    out = tmp_path / "runs.jsonl"
    assert alone(out, TINY, death)[0] == -9
    before = out.read_bytes()
    assert alone(out, TINY)[0] == 0
    assert out.read_bytes().startswith(before)
    found, broken = read([out])
    assert len(broken) == (death == "when half recorded")
    wanted = of_runs(done[0])
    assert sorted((r["arm"], r["seed"]) for r in found) == sorted(RUNS)
    for record in found:
        assert record["config"] == wanted[record["arm"], record["seed"]]["config"]
    assert list(tmp_path.iterdir()) == [out]


def test_killed_at_ten_random_moments_and_more(tmp_path):
    """Whichever processes are killed: in the end each run is there once, as if none had been."""
    reference = tmp_path / "reference.jsonl"
    code, seconds = alone(reference)
    assert code == 0
    wanted = of_runs(reference)
    assert sorted(wanted) == sorted(RUNS)
    chances, kills, studies_done = random.Random(0), 0, 0
    while kills < 10:  # in one study, or a second if it was done before
        out, seen, finished = tmp_path / f"{studies_done}" / "runs.jsonl", [], False
        while not finished:
            last = kills >= 10
            begun = [start(do, out) for _ in range(1 if last else chances.choice((1, 1, 2)))]
            assert all(pipe.poll(120) for _, pipe in begun)
            if not last:
                time.sleep(chances.uniform(0, seconds / 6))
                alive = [process for process, _ in begun if process.is_alive()]
                for process in alive:
                    process.kill()
                kills += bool(alive)
            for process, _ in begun:
                process.join(120)
            lines = out.read_bytes().splitlines(keepends=True)
            assert lines[: len(seen)] == seen
            seen = [line for line in lines if line.endswith(b"}\n")]
            finished = all(process.exitcode == 0 for process, _ in begun)
        assert of_runs(out) == wanted
        assert list(out.parent.iterdir()) == [out]
        studies_done += 1


@pytest.mark.parametrize("count", [2, 3])
def test_side_by_side_each_run_is_done_once(done, tmp_path, count):
    out = tmp_path / "runs.jsonl"
    begun = [start(do, out, TINY) for _ in range(count)]
    told = [[] for _ in begun]
    for (process, pipe), lines in zip(begun, told, strict=True):
        process.join(120)
        assert process.exitcode == 0
        while pipe.poll():
            try:
                lines.append(pipe.recv())
            except EOFError:
                break
    runs = [line for lines in told for line in lines if line.startswith("tiny, small: ")]
    assert sorted(runs) == sorted(f"tiny, small: {arm}, seed {seed}" for arm, seed in RUNS)
    assert sorted(of_runs(out)) == sorted(RUNS)
    assert list(tmp_path.iterdir()) == [out]


def test_packed_answers_are_those_of_the_network(done):
    right = unpack(read([done[0]])[0][0]["correct"], 500)
    assert pack(torch.from_numpy(right)) == read([done[0]])[0][0]["correct"]
