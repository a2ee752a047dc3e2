"""Bad and hostile files: nothing is run, nothing hangs, nothing is written elsewhere.

The attacks themselves, with 100,000 inputs for each reader, are in tests/attacks/files.py.
"""

import ast
import functools
import io
import json
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import toy_cifar10
from cbam_edu import CBAM, data, records
from cbam_edu.checkpoint import CheckpointError, read_checkpoint
from cbam_edu.cli import main
from cbam_edu.convert import ConversionError, convert
from cbam_edu.data import mini
from cbam_edu.data.cifar10 import BINARY, CorruptFile, load_cifar10
from cbam_edu.data.folder import FolderBatches, load_folder, transform
from cbam_edu.data.images import open_picture, read_image
from cbam_edu.models import ModelFileError, create_model, load_model
from cbam_edu.recipe import Recipe
from cbam_edu.report import summarise
from cbam_edu.storage import StorageError, cache_dir
from cbam_edu.train import fit

ROOT = Path(__file__).resolve().parents[1]
READERS = {
    "a picture": read_image,
    "a network": load_model,
    "a checkpoint": read_checkpoint,
    "records": lambda path: records.read([path]),
}


# Files that are none


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_is_no_file(tmp_path, reader, kind):
    """A pipe would be waited for, and /dev/zero read, for ever."""
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(StorageError, match="it is a device or a pipe, not a file") as told:
        READERS[reader](path)
    assert str(path) in str(told.value)


def test_a_pipe_among_cifar10s_files_is_refused(tmp_path):
    (tmp_path / BINARY).mkdir()
    os.mkfifo(tmp_path / BINARY / "test_batch.bin")
    with pytest.raises(StorageError, match="not a file"):
        load_cifar10("test", tmp_path, edition=toy_cifar10.EDITION)


def test_no_more_of_a_file_is_read_than_can_be_right(tmp_path):
    (tmp_path / BINARY).mkdir()
    path = tmp_path / BINARY / "test_batch.bin"
    path.touch()
    os.truncate(path, 10**12)  # takes no room on the disk
    with pytest.raises(CorruptFile, match="has more than 122,920 bytes where 61,460 are right"):
        load_cifar10("test", tmp_path, edition=toy_cifar10.EDITION)


# Pictures


def write_picture(path, *shape, dtype=np.uint8, **options):
    Image.fromarray(np.zeros(shape, dtype)).save(path, **options)
    return path


def test_postscript_is_not_run(tmp_path, monkeypatch):
    """Pillow has Ghostscript, another program, draw what is called .png and begins with %!PS."""
    asked = []
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: asked.append(a))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: asked.append(a))
    write_picture(tmp_path / "a.eps", 8, 8, 3)
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(
        ValueError, match=r"a\.png is not a picture that can be read; it can be PNG"
    ):
        read_image(tmp_path / "a.png")
    assert not asked


def test_a_kind_that_the_user_added_is_read(tmp_path, monkeypatch):
    Image.init()
    factory, accept = Image.OPEN["PCX"]
    with pytest.raises(ValueError, match="is not a picture that can be read"):
        open_picture(write_picture(tmp_path / "a.pcx", 8, 8, 3))
    monkeypatch.setitem(Image.OPEN, "PCX", (lambda *a: factory(*a), accept))
    assert open_picture(tmp_path / "a.pcx").size == (8, 8)


def test_whatever_pillow_raises_for_a_broken_picture_is_told(tmp_path, monkeypatch):
    path = write_picture(tmp_path / "a.png", 8, 8, 3)

    def fail(*_):
        raise RuntimeError("Failed to decode frame 0\nand more")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", fail)
    with pytest.raises(ValueError, match=r"a\.png is a damaged picture: Failed to decode frame 0$"):
        read_image(path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for side in (32, 64):  # of which Pillow only warns, and which it refuses
        path = write_picture(tmp_path / f"{side}.png", side, side * 1500 // 1024, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match="is not a picture that can be read: Image size"):
                open_picture(path)


def test_grey_of_sixteen_bits_is_grey(tmp_path):
    """Pillow cuts it off at 255, so that nearly all is white."""
    ramp = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    for name in ("a.png", "a.tif", "a.pgm"):
        Image.fromarray(ramp).save(tmp_path / name)
        got = np.asarray(open_picture(tmp_path / name))[..., 0]
        assert np.abs(got - ramp / 257).max() <= 1, name
    for kind in (np.int32, np.float32):
        Image.fromarray(ramp.astype(kind)).save(tmp_path / "b.tif")
        with pytest.raises(ValueError, match="of 32 bits, not shades from 0 to 255"):
            open_picture(tmp_path / "b.tif")


def test_a_damaged_miniature_that_claims_to_be_huge_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "sheet_path", lambda split: tmp_path / "a.png")
    write_picture(tmp_path / "a.png", 3000, 3000)
    with pytest.raises(CorruptFile, match="it has 3000 x 3000 pixels"):
        mini.load_mini("test")


# Folders of pictures


@pytest.fixture
def tree(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "tree" / split / name).mkdir(parents=True)
            write_picture(tmp_path / "tree" / split / name / "a.png", 8, 8, 3)
    return tmp_path / "tree"


def test_links_in_a_circle_are_gone_round_once(tree):
    for number in range(3):  # torchvision would list 3 ** 40 pictures
        (tree / "train" / "cat" / f"again{number}").symlink_to(tree / "train" / "cat")
    assert len(load_folder(tree, workers=0)) == 2


def test_a_folder_may_be_given_as_text(tree):
    assert load_folder(str(tree)).paths == load_folder(tree).paths


@pytest.mark.parametrize(
    "load",
    [
        load_folder,
        lambda folder, split: load_cifar10(split, folder),
        lambda folder, split: mini.load_mini(split),
    ],
)
def test_an_unknown_split_is_not_taken_for_another(tree, load):
    """Of a folder, "training" was the pictures to measure on."""
    with pytest.raises(ValueError, match="unknown split 'training'; did you mean train"):
        load(tree, "training")


def test_pictures_that_are_left_out_are_told(tree):
    (tree / "train" / "cat" / "b.HEIC").touch()
    (tree / "train" / "cat" / "notes.txt").touch()
    wanted = r"1 pictures in .* are left out, .* such as .*b\.HEIC; to have them, save them as JPEG"
    with pytest.warns(UserWarning, match=wanted):
        assert len(load_folder(tree)) == 2


def test_a_line_of_pixels_does_not_become_billions(tree):
    write_picture(tree / "val" / "cat" / "a.png", 1, 60_000, 3)
    (x, _), *_ = FolderBatches(load_folder(tree, "test", size=32, workers=0), 2)
    assert x.shape == (2, 3, 32, 32)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 200, 3), np.uint8)
    image = Image.fromarray(pixels)
    middle = image.crop((20, 0, 180, 10))
    assert torch.equal(transform(32)(image), transform(32)(middle))


# Networks

CLASSES = ["a", "b", "c"]
FOLDER = {"size": 8, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}


def small():
    torch.manual_seed(0)
    return create_model("cbamnet_tiny", 3, dims=(2, 2)).eval()


def written(path, weights=None, meta=None, **about):
    model = small()
    weights = weights or {k: v.contiguous() for k, v in model.state_dict().items()}
    meta = json.dumps({"config": model.config, **about}) if meta is None else meta
    path.write_bytes(safetensors.torch.save(weights, {"cbam_edu": meta}))
    return path


def as_type(dtype, part):
    weights = {k: v.contiguous() for k, v in small().state_dict().items()}
    return {k: v.to(dtype) if part in k else v for k, v in weights.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"meta": "[" * 100_000}, "holds no configuration of cbam_edu"),
        ({"meta": '{"config": ' + "[" * 100_000}, "holds no configuration of cbam_edu"),
        (
            {"weights": as_type(torch.int64, "running_mean")},
            r"running_mean is of type torch\.int64",
        ),
        ({"weights": as_type(torch.complex64, "weight")}, r"is of type torch\.complex64"),
        ({"weights": as_type(torch.bool, "num_batches")}, r"tracked is of type torch\.bool"),
        ({"config": {**small().config, "dims": [2] * 10_000}}, "dims must name at most 32 stages"),
        ({"config": {**small().config, "dims": 5}}, "dims must be a list"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused_at_once(tmp_path, options, message):
    path = written(tmp_path / "model.safetensors", **options)
    with pytest.raises(ModelFileError, match=message) as told:
        load_model(path)
    assert "\n" not in str(told.value)


def test_a_file_far_too_large_for_its_network_is_not_read(tmp_path):
    path = written(tmp_path / "model.safetensors")
    os.truncate(path, 10**12)
    with pytest.raises(ModelFileError, match="1,000,000,000,000 bytes are too many for it"):
        load_model(path)
    path.write_bytes((10**11).to_bytes(8, "little"))
    os.truncate(path, 10**12)
    with pytest.raises(ModelFileError, match="its header is none"):
        load_model(path)


@pytest.mark.parametrize(
    "about",
    [
        {"classes": 5},
        {"classes": [1, 2, 3]},
        {"classes": "abc"},
        *(
            {"classes": CLASSES, **FOLDER, **change}
            for change in (
                {"size": "x"},
                {"size": 0},
                {"size": 100_000},  # 120 GB
                {"mean": None},
                {"mean": []},
                {"std": "abc"},
                {"std": [0, 0, 0]},
                {"std": [0.2, 0.2, float("nan")]},
            )
        ),
        {"classes": CLASSES, "weights": as_type(torch.float32, "weight")},
    ],
)
def test_predict_tells_what_is_wrong_with_a_file(tmp_path, capsys, about):
    if "weights" in about:  # right in all but their values
        about["weights"] = {k: v * float("nan") for k, v in about["weights"].items() if v.ndim} | {
            k: v for k, v in about["weights"].items() if not v.ndim
        }
    path = written(tmp_path / "model.safetensors", **about)
    picture = write_picture(tmp_path / "a.png", 8, 8, 3)
    assert main(["predict", "--model", str(path), str(picture)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "save it anew" in err or "are not finite" in err


def test_names_cannot_steer_the_terminal(tmp_path, capsys):
    path = written(tmp_path / "model.safetensors", classes=["\x1b[2J", "b\nc", "\ud800é"])
    picture = write_picture(tmp_path / "a\udcff.png", 8, 8, 3)
    assert main(["predict", "--model", str(path), str(picture)]) == 0
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "")
    assert all(words in out for words in (r"\x1b[2J", r"b\nc", r"\ud800é", r"a\udcff.png: "))


# Checkpoints


def trained(folder):
    pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images = data.ImageSet("toy", pixels, torch.arange(4) % 3, tuple(CLASSES))
    options = {"out": folder, "resume": True, "progress": False}
    return fit(small(), images, Recipe(epochs=1, batch_size=2), **options)


def laughs():
    value = ["ha"]
    for _ in range(30):
        value = [value] * 10
    return value


def change(part, key, value):
    def do(state):
        state[part][key] = value

    return do


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("identity"),
        lambda state: state.update(identity=[]),
        change("identity", "lr", torch.zeros(2)),
        change("identity", "lr", laughs()),  # told in full, it fills the memory
        change("identity", 5, 5),
        lambda state: state.update(model=[]),
        lambda state: state.update(optimizer={}),
        lambda state: state["optimizer"]["param_groups"][0].update(momentum="x"),
        lambda state: state["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(1, 2)),
        lambda state: state.update(history=5),
        lambda state: state.update(history=[{}]),
        lambda state: state["history"][0].update(epoch=2),
        lambda state: state["history"][0].update(loss="x"),
        change("model", "head.weight", "x"),
    ],
)
def test_a_checkpoint_of_odd_parts_is_refused_in_a_sentence(tmp_path, spoil):
    trained(tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    spoil(state)
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError) as told:
        trained(tmp_path)
    assert str(tmp_path) in str(told.value)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 1000


def test_a_packed_checkpoint_is_not_unpacked(tmp_path):
    """Torch packs nothing; a megabyte of zeros, packed, could be a gigabyte."""
    trained(tmp_path)
    path, file = tmp_path / "checkpoint.pt", io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info) + bytes(10**6))
    path.write_bytes(file.getvalue())
    with pytest.raises(CheckpointError, match="is not a whole checkpoint") as told:
        read_checkpoint(path)
    assert str(told.value.__cause__) == "packed"


def test_a_flipped_bit_in_a_checkpoint_is_seen(tmp_path):
    """Torch reads it without a word, and training goes on from other weights."""
    trained(tmp_path)
    path = tmp_path / "checkpoint.pt"
    weight = torch.load(path, weights_only=True)["model"]["head.weight"]
    whole, part = path.read_bytes(), weight.numpy().tobytes()
    assert whole.count(part) == 1
    path.write_bytes(whole.replace(part, bytes([part[0] ^ 1]) + part[1:]))
    with pytest.raises(CheckpointError, match="is not a whole checkpoint") as told:
        read_checkpoint(path)
    assert "checksum" in str(told.value.__cause__)


# Weights to be converted


def test_keys_of_absurd_length_and_sparse_weights_are_refused():
    weights = {k: v for k, v in small().state_dict().items() if ".3." in k}
    name = next(iter(weights))
    with pytest.raises(ConversionError, match=r"no key of a network has 200,0\d\d characters"):
        convert({**weights, "a." * 100_000 + name: weights[name]})  # would take minutes
    with pytest.raises(ConversionError, match="is not dense"):
        convert({**weights, name: weights[name].to_sparse()})


# Records


def a_line(**changes):
    path = ROOT / "book/results/studies/neighbours-resnet20-small.jsonl"
    record = json.loads(path.read_text("utf-8").splitlines()[0])
    return json.dumps(record | changes).encode() + b"\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"accuracy": 1.7e308},
        {"seconds": 10**4000},
        {"seconds": 1e300},
        {"parameters": 10**30},
        {"epochs": -1},
        {"seed": True},
        {"recipe": {}},
        {"recipe": {"batch_size": "x", "precision": 1}},
        {"versions": {}},
        {"versions": {"torch": 5}},
        {"changes": 5},
        {"scores": [1]},
        {"scores": {"a: b": "x"}},
        {"loss": "x" * 10**5},
    ],
)
def test_a_record_of_odd_values_is_a_broken_line(tmp_path, changes):
    path = tmp_path / "records.jsonl"
    with warnings.catch_warnings():
        path.write_bytes(a_line() + a_line(**changes))
    found, broken = records.read([path])
    assert (len(found), [b.line for b in broken]) == (1, [2])
    assert len(str(broken[0])) < 500
    assert summarise("neighbours-resnet20", "small", found).study == "neighbours-resnet20"


def test_names_of_results_lead_nowhere_else(tmp_path):
    (tmp_path / "mine-full.jsonl").write_bytes(a_line())
    away = os.path.relpath(tmp_path / "mine", records._inside("studies"))
    for name in (away, str(tmp_path / "mine"), "x\0y", ""):
        with pytest.raises(ValueError, match="the book has no records of"):
            records.recorded(name, "full")
        with pytest.raises(ValueError, match="the book has no course of"):
            records.course(name)


# Settings


def test_text_is_no_yes_or_no():
    """From JSON or a form; "false" counted as true."""
    for name in ("flip", "channels_last", "compile", "deterministic"):
        with pytest.raises(ValueError, match=f"{name} must be True or False, got 'false'"):
            Recipe(**{name: "false"})


@pytest.mark.parametrize(
    "options", [{"attention_options": True}, {"dims": (10**30,)}, {"num_classes": 10**30}]
)
def test_options_of_another_kind_are_told_with_the_network(options):
    with pytest.raises(ValueError, match="resnet8 cannot be made with the options"):
        create_model("resnet8", **options)


def test_a_data_set_of_a_name_too_long_for_a_folder_is_unknown():
    with pytest.raises(ValueError, match="nor is there a folder of that name"):
        data.load("x" * 5000)


def test_a_seed_for_which_torch_has_no_room_is_told(capsys):
    assert main(["train", "--model", "resnet20", "--seed", str(2**64)]) == 2
    assert "seed must be below 2**63" in capsys.readouterr().err


def test_the_home_of_nobody_is_a_folder_like_any(monkeypatch):
    monkeypatch.setenv("CBAM_EDU_DATA", "~nobody-of-that-name/data")
    assert cache_dir() == Path("~nobody-of-that-name/data")


# The attacks, in small


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the watch needs /proc")
def test_hostile_inputs_are_refused_or_read_rightly():
    readers = ["batches", "pickles", "archives", "sheets", "pictures", "networks", "weights"]
    readers += ["records", "names", "options"]
    script = ROOT / "tests/attacks/files.py"
    command = [sys.executable, script, *readers, "--tries", "40", "--no-record"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count(" 40 tried, ") == len(readers)


# The tree


def sources():
    """Return all code in the repository: (name, text), of modules and of notebooks' cells."""
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.ipynb"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in listed:
        path = ROOT / name
        if not path.exists():
            continue
        text = path.read_text("utf-8")
        if path.suffix == ".ipynb":
            cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
            lines = "".join("".join(c["source"]) + "\n" for c in cells).splitlines()
            text = "\n".join(
                "pass" if line.lstrip().startswith(("%", "!")) else line for line in lines
            )
        yield name, text


def called(node):
    """Return what a call calls, as it is written: "torch.load"."""
    try:
        return ast.unparse(node.func)
    except RecursionError:
        return ""


def says(node, name, *values):
    """Whether a call has that argument with one of these values."""
    given = {k.arg: k.value for k in node.keywords}
    return name in given and ast.unparse(given[name]) in values


UNFILTERED = "an archive unpacked without a filter"
SAFE_LOADERS = ("yaml.SafeLoader", "yaml.CSafeLoader", "yaml.BaseLoader")  # the last: text alone


def danger(node):
    """Say what a call may do with a hostile file, or None."""
    name = called(node)
    last = name.rpartition(".")[2]
    if name in ("eval", "exec", "builtins.eval", "builtins.exec"):
        return name
    if last in ("load", "loads", "Unpickler") and any(
        name.startswith(p)
        for p in ("pickle.", "cPickle.", "dill.", "joblib.", "marshal.", "shelve.")
    ):
        return name
    if name == "torch.load" and not says(node, "weights_only", "True"):
        return "torch.load without weights_only=True"
    loaders = [ast.unparse(given) for given in node.args[1:]]
    safe = says(node, "Loader", *SAFE_LOADERS) or set(loaders) & set(SAFE_LOADERS)
    if name == "yaml.load" and not safe:
        return "yaml.load without a safe loader"
    if name in ("yaml.unsafe_load", "yaml.full_load", "tempfile.mktemp", "os.system", "os.popen"):
        return name
    if says(node, "shell", "True"):
        return "shell=True"
    if (
        last in ("extract", "extractall")
        and "tar" in name.lower()
        and not says(node, "filter", "'data'", "'tar'")
    ):
        return UNFILTERED
    if name in ("np.load", "numpy.load") and says(node, "allow_pickle", "True"):
        return "np.load with allow_pickle"
    return None


# What is allowed, and why.
OURS = "runs the book's own code, which is in this repository"
ALLOWED = {
    ("book/_ext/exercises.py", "exec"): OURS,
    ("tests/test_check_ch04.py", "exec"): OURS,
    ("tests/test_notebooks.py", "exec"): OURS,
    ("tests/test_pages.py", "exec"): OURS,
    ("tests/test_project.py", "exec"): OURS,
    ("tests/test_check_ch12.py", "eval"): "names two modules that the test itself made",
    ("tests/attacks/mutants.py", "exec"): "shows a mutant's hook at work; the text is its own",
    ("tests/attacks/canaries.py", "pickle.loads"): "shows that the watch sees what a pickle runs",
    ("tests/attacks/canaries.py", "os.system"): "shows that the watch sees a command",
    ("tests/attacks/canaries.py", UNFILTERED): "shows that the watch sees a file put elsewhere",
    ("tests/test_data_folder.py", "pickle.loads"): "sends our own reader to a process",
}


def test_nothing_in_the_tree_runs_what_a_file_says():
    found, there = {}, dict(sources())
    for name, text in there.items():
        for node in ast.walk(ast.parse(text, name)):
            if isinstance(node, ast.Call) and (why := danger(node)):
                found.setdefault((name, why), []).append(node.lineno)
    assert found.keys() - ALLOWED.keys() == set(), found
    needed = {exception for exception in ALLOWED if exception[0] in there}
    assert not needed - found.keys(), "an exception that is needed no more"


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(f)",
        "eval(text)",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(f)",
        "yaml.load(f, Loader=yaml.Loader)",
        "subprocess.run(words, shell=True)",
        "os.system(words)",
        "tar.extractall(folder)",
        "tarfile.open(f).extract(name)",
        "tar.extractall(folder, filter='fully_trusted')",
        "np.load(path, allow_pickle=True)",
        "tempfile.mktemp()",
    ],
)
def test_what_would_be_dangerous_is_seen(line):
    assert danger(ast.parse(line).body[0].value)


def test_workflows_and_makefile_run_no_text_from_elsewhere():
    for path in [ROOT / "Makefile", *(ROOT / ".github").rglob("*.yml")]:
        text = path.read_text("utf-8")
        assert "eval " not in text, path
        assert "| sh" not in text, path
        assert "| bash" not in text, path
        for said in ("github.event.pull_request.title", "github.event.issue", "github.head_ref"):
            assert said not in text, path


DEEP = functools.reduce(lambda inner, _: [inner], range(990), 1)


@pytest.mark.parametrize("value", [DEEP, "x" * 5000], ids=["deep", "long"])
@pytest.mark.parametrize(
    "use",
    [
        lambda value: create_model("resnet20", 10, attention=value),
        lambda value: create_model("resnet20", 10, dims=value),
        lambda value: create_model("resnet20", value),
        lambda value: create_model(value),
        lambda value: CBAM(value),
        lambda value: CBAM(16, order=value),
        lambda value: create_model("cbamnet_tiny", attention_options={"pooling": value}),
        lambda value: Recipe(lr=value),
        lambda value: Recipe(flip=value),
    ],
)
def test_a_value_that_is_deep_or_long_is_refused_in_a_few_words(use, value):
    with pytest.raises(ValueError, match=r".{20,700}\Z"):
        use(value)
