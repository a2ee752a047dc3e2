"""Records of runs: what is in them, files of them, and what may be compared."""

import base64
import hashlib
import json
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cbam_edu
from cbam_edu import create_model, data, records
from cbam_edu.complexity import count
from cbam_edu.records import append, check_comparable, course, digest, pack, read, recorded, unpack
from cbam_edu.storage import StorageError
from cbam_edu.train import Recipe
from tiny_study import a_record


def line(record):
    return json.dumps(record).encode() + b"\n"


def test_a_record_holds_the_run():
    model = create_model("cbamnet_tiny", 4, dims=(4, 8))
    recipe = Recipe(epochs=2, seed=5)
    history = [
        {"accuracy": 0.4, "test_loss": 1.0, "train_accuracy": 0.3, "seconds": 1.0},
        {"accuracy": 0.5, "test_loss": 0.9, "train_accuracy": 0.6, "seconds": 2.25},
    ]
    line = records.record(
        "study",
        model,
        recipe,
        history,
        data="toy",
        images=(64, 16),
        size=20,
        device=torch.device("cpu"),
    )
    again = json.loads(json.dumps(line))
    assert (again["study"], again["model"], again["arm"], again["seed"]) == (
        "study",
        "cbamnet_tiny",
        "cbam",
        5,
    )
    assert (again["accuracy"], again["loss"], again["seconds"]) == (0.5, 0.9, 3.2)
    assert (again["epochs"], again["train_images"], again["test_images"]) == (2, 64, 16)
    assert (again["parameters"], again["multiply_accumulates"]) == count(model, (3, 20, 20))[:2]
    assert Recipe(**again["recipe"]) == recipe
    assert again["versions"]["cbam_edu"] == cbam_edu.__version__
    assert (again["commit"], again["code"]) == (records.commit(), records.code())
    assert again["device"].startswith("CPU (")


def test_the_commit_is_that_of_the_code(tmp_path, monkeypatch):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", "-C", tmp_path, *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "cbam_edu"
    package.mkdir()
    monkeypatch.setattr(records, "__file__", str(package / "records.py"))
    assert records.commit() is None  # no repository
    git("init", "-q")
    shutil.copy(Path(cbam_edu.__file__).parent / "attention.py", package)
    assert records.commit() is None  # a repository, but not of this code
    git("add", ".")
    git("commit", "-q", "-m", "all")
    assert records.commit() == git("rev-parse", "HEAD")
    (package / "attention.py").write_text("changed")
    assert records.commit() == git("rev-parse", "HEAD") + "-dirty"


def test_devices_are_named(monkeypatch):
    assert records.device_name(torch.device("mps")).startswith("MPS (")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    assert records.device_name(torch.device("cuda")) == "a GPU"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the same files, whose digest is asked for."""
    files = ["attention.py", "checkpoint.py", "data/a.py", "data/b/c.py", "distributed.py"]
    files += ["fused/d.py", "measure.py", "models/e.py", "neighbours.py", "recipe.py", "train.py"]
    files += ["studies.py", "data/picture.png"]
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"# {name}\n".encode())
    monkeypatch.setattr(records, "__file__", str(tmp_path / "records.py"))
    monkeypatch.setattr(records, "code", records.code.__wrapped__)  # without its memory
    return tmp_path


def test_the_digest_of_the_code_is_that_of_the_files_that_train(package):
    named = ["attention.py", "checkpoint.py", "data/a.py", "data/b/c.py", "distributed.py"]
    named += ["fused/d.py", "measure.py", "models/e.py", "neighbours.py", "recipe.py", "train.py"]
    text = "".join(f"{name}\n# {name}\n" for name in named)
    assert records.code() == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_the_digest_of_the_code_changes_with_what_trains_alone(package):
    before = records.code()
    (package / "studies.py").write_text("changed")
    (package / "data" / "picture.png").write_text("changed")
    (package / "train.py").write_bytes(b"# train.py\r\n")  # as Windows checks it out
    assert records.code() == before
    seen = {before}
    (package / "data" / "b" / "c.py").write_text("changed")
    seen.add(records.code())
    (package / "models" / "new.py").touch()
    seen.add(records.code())
    (package / "train.py").write_text("changed")
    seen.add(records.code())
    assert len(seen) == 4


def test_this_packages_code_has_a_digest():
    assert len(bytes.fromhex(records.code())) == 8


def test_images_have_a_digest_that_a_bit_changes():
    images = data.load("cifar10-mini", "test")
    few, others = images.subset(torch.arange(20)), images.subset(torch.arange(20, 40))
    assert digest(few, others) == digest(images.subset(torch.arange(20)), others)
    pixels, labels = few.images.clone(), few.labels.clone()
    pixels[0, 0, 0, 0] ^= 1
    labels[0] += 1
    changed = [replace(few, images=pixels), replace(few, labels=labels)]
    pairs = [(few, others), (others, few), *((one, others) for one in changed)]
    assert len({digest(*pair) for pair in pairs}) == 4


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_answers_survive_packing(right):
    assert unpack(pack(torch.tensor(right)), len(right)).tolist() == right


def test_answers_are_packed_eight_a_byte_the_first_highest():
    assert pack(torch.tensor([True] + [False] * 8 + [True])) == base64.b64encode(b"\x80@").decode()


@pytest.mark.parametrize(
    ("text", "number"), [("gEA=", 8), ("gEA=", 17), ("", 0), ("", -3), ("g%EA=", 10), ("gE", 10)]
)
def test_other_numbers_of_answers_are_refused(text, number):
    with pytest.raises(ValueError, match=r"bits are no answers to|base64|padding"):
        unpack(text, number)


def test_records_are_read_as_they_were_added_and_each_once(tmp_path):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    runs = [a_record(seed=seed) for seed in range(3)]
    for run in runs:
        append(first, run, tmp_path / "lock")
    shuffled = dict(sorted(runs[0].items()))
    second.write_bytes(line(a_record(seed=3)).replace(b"\n", b"\r\n") + b"\n \n" + line(shuffled))
    assert read([first, second]) == ([*runs, a_record(seed=3)], [])
    assert first.read_bytes() == b"".join(map(line, runs))
    empty = tmp_path / "empty"
    empty.touch()
    assert read([empty]) == read([]) == ([], [])


def test_wherever_a_record_is_cut_it_is_named_and_skipped(tmp_path):
    whole = line(a_record())
    cut = [whole[:k] for k in range(1, len(whole) - 1)] + [whole[k:-1] for k in range(1, 400)]
    file = tmp_path / "runs.jsonl"
    before, after = a_record(seed=1), a_record(seed=2)
    file.write_bytes(line(before) + b"\n".join(cut) + b"\n" + line(after))
    found, broken = read([file])
    assert found == [before, after]
    assert [(b.path, b.line) for b in broken] == [(file, 2 + i) for i in range(len(cut))]
    assert str(broken[0]).startswith(f"{file}, line 2: no whole line of JSON (")
    assert str(broken[0]).endswith("; skipped")


@pytest.mark.parametrize("end", [1, 300, -2, -1, None])
def test_after_a_cut_the_next_record_stands_on_a_line_of_its_own(tmp_path, end):
    file = tmp_path / "runs.jsonl"
    file.write_bytes(line(a_record(seed=1)) + line(a_record())[:end])
    append(file, a_record(seed=2), tmp_path / "lock")
    append(file, a_record(seed=3), tmp_path / "lock")
    found, broken = read([file])
    cut = end not in (-1, None)  # without the end of its line, a record is whole
    assert [r["seed"] for r in found] == ([1, 2, 3] if cut else [1, 0, 2, 3])
    assert [b.line for b in broken] == ([2] if cut else [])
    assert file.read_bytes().endswith(line(a_record(seed=2)) + line(a_record(seed=3)))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"\0" * 40, "no whole line of JSON"),
        (b"\xff\xfe\xfa", "no whole line of JSON"),
        (b"[" * 100_000, "no whole line of JSON"),
        (b"[]", "no JSON object"),
        (b'{"study": "tiny"}', "the record lacks accuracy, arm, code, "),
        (line(a_record(loss=float("nan"))), "NaN is no finite number"),
        (line(a_record(loss=float("-inf"))), "-Infinity is no finite number"),
        (line(a_record()).replace(b'"loss": 1.5', b'"loss": 1e999'), "1e999 is no finite number"),
        (line(a_record(accuracy="0.5")), 'the record has what no run has: accuracy "0.5"'),
        (
            line(a_record() | {"seed": None, "recipe": []}),
            "what no run has: seed null, recipe []",
        ),
        (line(a_record(correct=7)), "has what no run has: correct 7"),
        (line(a_record(test_images=1000)), "16 bits are no answers to 1000 images"),
        (line(a_record(correct="")), "0 bits are no answers to 10 images"),
        (line(a_record(accuracy=0.6)), "accuracy 0.6 is not that of its 5 answers"),
    ],
)
def test_lines_that_are_no_whole_record_are_named(tmp_path, text, why):
    file = tmp_path / "runs.jsonl"
    file.write_bytes(line(a_record()) + text.rstrip(b"\n") + b"\n" + line(a_record(seed=1)))
    found, (broken,) = read([file])
    assert [r["seed"] for r in found] == [0, 1]
    assert broken.line == 2
    assert why in broken.why


def test_garbage_is_survived(tmp_path):
    file = tmp_path / "runs.jsonl"
    file.write_bytes(random.Random(0).randbytes(20_000))
    found, broken = read([file])
    assert found == []
    assert len(broken) == sum(bool(part.strip()) for part in file.read_bytes().split(b"\n"))


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(StorageError, match=r"cannot read .*none: it does not exist"):
        read([tmp_path / "none"])
    with pytest.raises(StorageError, match="it is a folder, not a file"):
        read([tmp_path])


def test_nothing_is_added_of_what_json_does_not_know(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        append(tmp_path / "runs", a_record(loss=float("nan")), tmp_path / "lock")
    assert not list(tmp_path.iterdir())


def test_runs_that_differ_in_seed_and_machine_are_comparable():
    other = a_record(arm="c & s", seconds=9.0, device="a GPU", commit="another", versions={})
    other["recipe"] |= {"compile": True, "channels_last": False, "deterministic": True}
    check_comparable([a_record(), a_record(seed=1), other])
    check_comparable([])


def test_a_config_is_the_same_in_any_order():
    turned = a_record(seed=1)
    turned["config"] = dict(reversed(turned["config"].items()))
    check_comparable([a_record(), turned])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"study": "other"}, 'study: "tiny" (none 0; commit 0123456789ab), "other" (c & s 1; '),
        ({"size": "full"}, 'size: "small" ('),
        ({"model": "resnet20"}, 'model: "cbamnet_tiny" ('),
        ({"data": "cifar10"}, 'data: "cifar10-mini" ('),
        ({"digest": "other"}, 'digest: "d1ge57" ('),
        ({"train_images": 40}, "train_images: 50 ("),
        (
            {"code": "other", "commit": "ffff"},
            'code: "c0de" (none 0; commit 0123456789ab), "other"',
        ),
        ({"recipe": a_record()["recipe"] | {"lr": 0.1}}, "recipe.lr: 0.05 ("),
        ({"recipe": a_record()["recipe"] | {"mixup": 1.0}}, "recipe.mixup: 0.0 ("),
    ],
)
def test_what_is_not_comparable_is_told(changes, told):
    with pytest.raises(ValueError, match="these records cannot be compared") as error:
        check_comparable([a_record(), a_record("c & s", 1, **changes)])
    assert told in str(error.value)
    assert str(error.value).count("), ") == 1  # nothing else


def test_all_that_differs_is_told_and_where():
    few = [a_record(seed=seed) for seed in range(4)]
    with pytest.raises(ValueError, match="cannot be compared") as error:
        check_comparable([*few, a_record(seed=4, digest="other", code="new", commit=None)])
    assert str(error.value) == (
        "these records cannot be compared, as they differ in "
        'digest: "d1ge57" (none 0, none 1 and 2 more; commit 0123456789ab), '
        '"other" (none 4; commit None); '
        'code: "c0de" (none 0, none 1 and 2 more; commit 0123456789ab), '
        '"new" (none 4; commit None). Keep each kind in a file of its own'
    )


def test_an_arm_is_one_network():
    other = a_record(seed=1, config=a_record("c & s")["config"])
    with pytest.raises(ValueError, match="config of none: "):
        check_comparable([a_record(), other])


def test_a_run_with_two_results_is_told():
    again = a_record(seed=1, right=np.arange(10) > 2)
    with pytest.raises(ValueError, match=r"more than once, and not alike: none with seed 1\. Keep"):
        check_comparable([a_record(), a_record(seed=1), again])


def test_records_of_the_book_and_of_an_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "cbam_edu"
    monkeypatch.setattr(records, "__file__", str(package / "records.py"))
    book = tmp_path / "book" / "results" / "studies"
    book.mkdir(parents=True)
    (book / "tiny-small.jsonl").write_bytes(line(a_record()))
    assert recorded("tiny", "small") == [a_record()]
    with pytest.raises(ValueError, match="the book has no records of tiny, full"):
        recorded("tiny", "full")
    (package / "results" / "studies").mkdir(parents=True)
    (package / "results" / "studies" / "tiny-small.jsonl").write_bytes(
        line(a_record(seed=1)) + b"{"
    )
    with pytest.raises(ValueError, match=r"tiny-small.jsonl, line 2: no whole line of JSON"):
        recorded("tiny", "small")


def test_courses_of_the_book_and_of_an_installed_package(tmp_path, monkeypatch):
    runs = recorded("neighbours-resnet20", "full")
    (recorded_run,) = (r for r in runs if (r["arm"], r["seed"]) == ("none", 0))
    epochs = course("neighbours-resnet20-full_none")
    assert [entry["epoch"] for entry in epochs] == list(range(1, recorded_run["epochs"] + 1))
    assert epochs[-1]["accuracy"] == recorded_run["accuracy"]
    with pytest.raises(ValueError, match=r"no course of 'x', but of neighbours-resnet20-full_none"):
        course("x")
    package = tmp_path / "cbam_edu"
    monkeypatch.setattr(records, "__file__", str(package / "records.py"))
    with pytest.raises(ValueError, match="no course of 'x', but of none"):
        course("x")
    (package / "results" / "logs").mkdir(parents=True)
    (package / "results" / "logs" / "x.jsonl").write_text('{"epoch": 1, "loss": 2.5}\n', "utf-8")
    assert course("x") == [{"epoch": 1, "loss": 2.5}]


def test_the_books_records_are_whole_and_comparable():
    folder = Path(__file__).parents[1] / "book" / "results" / "studies"
    files = sorted(folder.glob("*.jsonl"))
    assert files
    for file in files:
        study, _, size = file.stem.rpartition("-")
        found = recorded(study, size)
        assert {(r["study"], r["size"]) for r in found} == {(study, size)}
        check_comparable(found)
