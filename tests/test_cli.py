"""The command line, from the words typed to the exit code."""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

import cbam_edu
from cbam_edu import cli, create_model, data, load_model, load_pretrained, save_model
from cbam_edu.cli import choose_device, main
from cbam_edu.complexity import count
from cbam_edu.recipe import RECIPES
from cbam_edu.train import Recipe, evaluate

FAST = [
    "--model",
    "cbamnet_tiny",
    "--data",
    "cifar10-mini",
    "--device",
    "cpu",
    "--batch-size",
    "250",
]


def run(capsys, *words):
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    words = ["--epochs", "1", "--lr", "0.05", "--seed", "3", "--study", "test", "--out", str(out)]
    assert main(["train", *FAST, *words]) == 0
    return out


def test_train_leaves_weights_checkpoint_log_and_record(trained):
    names = sorted(p.name for p in trained.iterdir())
    assert names == ["checkpoint.pt", "log.jsonl", "model.safetensors", "record.jsonl"]
    (entry,) = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    (record,) = [json.loads(line) for line in (trained / "record.jsonl").read_text().splitlines()]
    model = load_model(trained / "model.safetensors")
    scores = evaluate(model, data.load("cifar10-mini", "test"))
    assert record["accuracy"] == entry["accuracy"] == scores.accuracy
    assert (record["study"], record["model"], record["arm"], record["seed"]) == (
        "test",
        "cbamnet_tiny",
        "cbam",
        3,
    )
    assert (record["data"], record["train_images"], record["test_images"]) == (
        "cifar10-mini",
        1000,
        500,
    )
    assert Recipe(**record["recipe"]) == Recipe(epochs=1, batch_size=250, lr=0.05, seed=3)
    assert model.about == {
        "config": {"name": "cbamnet_tiny", "num_classes": 10, "attention": "cbam"},
        "classes": list(data.CLASSES),
        "data": "cifar10-mini",
    }


def test_the_seed_draws_the_initial_weights_too(trained, tmp_path, capsys):
    words = [*FAST, "--epochs", 1, "--lr", 0.05, "--out", tmp_path / "run", "--study", "test"]
    assert run(capsys, "train", *words, "--seed", 3)[0] == 0
    again, first = (folder / "model.safetensors" for folder in (tmp_path / "run", trained))
    assert again.read_bytes() == first.read_bytes()


def test_a_second_run_does_not_overwrite_the_first(trained, capsys):
    before = (trained / "model.safetensors").read_bytes()
    words = [*FAST, "--epochs", 1, "--lr", 0.05, "--seed", 3, "--out", trained, "--study", "test"]
    code, _, err = run(capsys, "train", *words)
    assert code == 2
    assert "holds a run already; resume it (--resume), or choose another folder" in err
    code, _, err = run(capsys, "train", *words, "--resume", "--attention", "none")
    assert code == 2
    assert "attention: 'cbam' there, None asked for" in err
    code, out, _ = run(capsys, "train", *words, "--resume")
    assert code == 0
    assert "test images" in out
    assert (trained / "model.safetensors").read_bytes() == before


def test_a_record_has_the_command_that_gives_it_again(trained, tmp_path):
    record = json.loads((trained / "record.jsonl").read_text())
    words = shlex.split(record["command"])
    assert record["command"] == (
        "cbam-edu train --model cbamnet_tiny --data cifar10-mini --study test --epochs 1 "
        "--batch-size 250 --lr 0.05 --seed 3"
    )
    assert main([*words[1:], "--device", "cpu", "--out", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "record.jsonl").read_text())
    same = record.keys() - {"seconds", "commit"}
    assert {key: again[key] for key in same} == {key: record[key] for key in same}


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--recipe", "speed", "--cutout", "0", "--validate", "--attention", "none"],
        ["--channel-weight-decay", "0", "--no-flip", "--no-channels-last", "--ema", "0.99"],
        ["--data", "a folder's", "--size", "64", "--study", "two words", "--deterministic"],
    ],
)
def test_a_command_says_all_that_was_asked_for_but_the_machine(words):
    def asked(words):
        args = cli.build_parser().parse_args(["train", *words])
        return args, cli._recipe(args)

    machine = ["--device", "cpu", "--out", "x", "--data-dir", "y", "--workers", "2", "--resume"]
    args, recipe = asked(["--model", "resnet20", *words, *machine])
    command = cli._command(args, recipe)
    again, its = asked(shlex.split(command)[2:])
    assert its == recipe
    names = ("model", "attention", "data", "size", "study", "validate")
    assert [getattr(again, n) for n in names] == [getattr(args, n) for n in names]
    assert cli._command(again, its) == command
    assert not any(word in command for word in ("--out", "--data-dir", "--device", "--workers"))
    if not words:
        assert command == "cbam-edu train --model resnet20"


def test_evaluate_measures_what_was_trained(trained, capsys):
    words = ["--model", trained / "model.safetensors", "--data", "cifar10-mini"]
    code, out, _ = run(capsys, "evaluate", *words, "--device", "cpu")
    (record,) = [json.loads(line) for line in (trained / "record.jsonl").read_text().splitlines()]
    assert code == 0
    assert out.startswith(f"{record['accuracy']:.2%} of 500 test images of cifar10-mini, loss ")


def test_validate_leaves_the_test_images_alone(tmp_path, capsys, monkeypatch):
    asked = []
    load = data.load
    monkeypatch.setattr(
        data, "load", lambda n, split, **k: asked.append(split) or load(n, split, **k)
    )
    code, out, _ = run(capsys, "train", *FAST, "--epochs", 1, "--validate", "--out", tmp_path)
    assert code == 0
    assert asked == ["train"]
    assert "of 100 validation images" in out
    assert json.loads((tmp_path / "record.jsonl").read_text())["train_images"] == 900


def picture(path, index=0):
    image = data.load("cifar10-mini", "test").images[index]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return path


def test_predict_names_pictures_with_the_bundled_network(tmp_path, capsys):
    paths = [picture(tmp_path / f"{i}.png", i) for i in range(3)]
    code, out, err = run(capsys, "predict", *paths, "--top", 2)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    model, images = load_pretrained("resnet20_cbam"), data.load("cifar10-mini", "test").images[:3]
    with torch.no_grad():
        chances = model(data.normalise(images)).softmax(1)
    for path, line, row in zip(paths, lines, chances, strict=True):
        best, second = row.topk(2).indices.tolist()
        named = [f"{data.CLASSES[i]} {row[i]:.1%}" for i in (best, second)]
        assert line == f"{path}: {', '.join(named)}"


def test_predict_takes_a_trained_file(trained, tmp_path, capsys):
    words = ["predict", "--model", trained / "model.safetensors", picture(tmp_path / "a.png")]
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert sum(name in out for name in data.CLASSES) == 3


def test_export_writes_what_gives_the_same_and_overwrites_nothing(trained, capsys):
    model = trained / "model.safetensors"
    words = ["export", "--model", model, "--format", "torch-export"]
    code, out, err = run(capsys, *words)
    file = model.with_suffix(".pt2")
    assert (code, err) == (0, "")
    assert out.startswith(f"{file}: torch.export of torch {torch.__version__}; its logits differ ")
    images = torch.randn(2, 3, 40, 33)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.export.load(file).module()(images), load_model(model)(images)
        )
    before = file.read_bytes()
    code, _, err = run(capsys, *words)
    assert (code, file.read_bytes()) == (2, before)
    assert err == (
        f"cbam-edu: {file} is there already; move it away, or choose another file (--out)\n"
    )


def test_export_says_the_opset(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["export", "--model", trained / "model.safetensors", "--out", "a.onnx"]
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert out.startswith("a.onnx: ONNX, opset 20; its logits differ from the network's by ")
    assert out.endswith(" of the largest (1e-05 is allowed)\n")
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


def test_starting_brings_nothing_that_takes_seconds():
    """ptflops brings torchvision and timm along, these torch's compiler: 4 s for every command."""
    heavy = ["ptflops", "torchvision", "timm", "sympy", "torch._dynamo", "matplotlib", "onnx"]
    heavy.append("scipy")
    code = f"import cbam_edu.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_models_lists_all(capsys):
    code, out, _ = run(capsys, "models")
    assert code == 0
    for name in cbam_edu.list_models():
        assert f"\n{name} " in out
    assert "269,722" in out
    assert "resnet20_cbam" in out


def test_complexity_counts_layers_and_total(capsys):
    words = ["complexity", "resnet50", "--attention", "cbam", "--size", "224"]
    code, out, _ = run(capsys, *words)
    assert code == 0
    *rows, total = out.splitlines()[1:]
    assert rows[0].split() == [
        "conv",
        "Conv2d",
        "64",
        "x",
        "112",
        "x",
        "112",
        "1",
        "9,408",
        "118,013,952",
    ]
    shared = next(r for r in rows if r.startswith("stages.3.2.attention.channel.mixer.0 "))
    assert shared.split()[1:] == ["Linear", "128", "2", "262,272", "524,288"]
    parameters, work = (sum(int(r.split()[i].replace(",", "")) for r in rows) for i in (-2, -1))
    assert (parameters, work) == (28_089_624, 3_864_362_102)
    assert f"{parameters:,} parameters, {work:,} multiply-accumulates" in total
    assert total.startswith("resnet50 with attention cbam, one image of 224 x 224: ")


def test_complexity_takes_the_networks_own_size_and_attention(capsys):
    out = run(capsys, "complexity", "cbamnet_tiny")[1]
    own = f"{count(cbam_edu.create_model('cbamnet_tiny')).parameters:,}"
    assert f"cbamnet_tiny with attention cbam, one image of 32 x 32: {own} parameters" in out
    assert own != "77,130"
    out = run(capsys, "complexity", "cbamnet_tiny", "--attention", "none")[1]
    assert "cbamnet_tiny with attention none, one image of 32 x 32: 77,130 parameters" in out
    assert "one image of 224 x 224" in run(capsys, "complexity", "resnet18")[1]


def test_download_says_where(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(data, "download", lambda folder: tmp_path)
    code, out, _ = run(capsys, "download")
    assert (code, out) == (0, f"CIFAR-10 is in {tmp_path}\n")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["complexity", "resnet51"], 2, "unknown model 'resnet51'; did you mean resnet"),
        (["complexity", "resnet50", "--size", "0"], 2, "size must be a positive integer, got 0"),
        (["complexity", "resnet50", "--attention", "x"], 2, "unknown attention 'x'"),
        (["train", "--model", "resnet201"], 2, "unknown model 'resnet201'; did you mean resnet20"),
        (["train", *FAST, "--attention", "cbma"], 2, "unknown attention 'cbma'; did you mean cbam"),
        (["train", "--model", "resnet20", "--data", "cifar"], 2, "unknown data set 'cifar'"),
        (["train", *FAST, "--size", "64"], 2, "size and workers are for a folder of pictures"),
        (["train", "--model", "resnet20", "--data", "{none}"], 2, "(nor is there a folder of"),
        (["train", *FAST, "--device", "tpu9"], 2, "device 'tpu9' is not to be had here"),
        (["evaluate", "--data", "cifar10-mini", "--device", "meta"], 2, "device 'meta' is not to"),
        (["complexity", "resnet20", "--size", str(10**10)], 2, "CIFARResNet cannot be counted"),
        (["train", *FAST, "--lr", "-1"], 2, "lr must be from 0"),
        (["train", *FAST, "--batch-size", "4000"], 2, "batch_size must be at most 1000"),
        (["train", *FAST, "--out", "{file}/run"], 1, "cannot make the folder"),
        (["predict", "{file}"], 2, "not a picture that can be read"),
        (["predict", "{none}"], 1, "it does not exist; check the path"),
        (["predict", "--model", "resnet20_cbm", "{file}"], 2, "did you mean resnet20_cbam"),
        (["predict", "--model", "{file}", "{file}"], 2, "is not a whole safetensors file"),
        (["predict", "--model", "{none}.safetensors", "{file}"], 1, "it does not exist"),
        (["predict", "--top", "0", "{file}"], 2, "top must be a positive integer"),
        (["evaluate", "--data-dir", "{none}", "--data", "nope"], 2, "unknown data set"),
        (["export", "--format", "onxx"], 2, "unknown format 'onxx'; did you mean onnx"),
        (["export", "--model", "resnet20_cbm"], 2, "did you mean resnet20_cbam"),
        (["export", "--model", "{none}.safetensors"], 1, "it does not exist"),
        (["export", "--out", "{none}/a.onnx"], 1, "cannot write"),
        (["export", "--model", ""], 1, "it is a folder, not a file; give the path of a file"),
    ],
)
def test_wrong_words_are_told_in_one_line(tmp_path, capsys, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    file.write_text("text")
    words = [w.format(file=file, none=tmp_path / "none") for w in words]
    got, _, err = run(capsys, *words)
    assert got == code
    assert message in err
    assert err.startswith("cbam-edu: ")
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]  # nothing half-written


@pytest.mark.parametrize(
    "words", [[], ["trian"], ["train"], ["train", "--model", "resnet20", "--lr", "x"]]
)
def test_usage_errors_exit_with_two(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: cbam-edu" in capsys.readouterr().err


def test_help_names_every_option_of_the_recipe(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for name in Recipe.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in out
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"cbam-edu {cbam_edu.__version__}\n"


def test_diverging_fails_with_one_line(tmp_path, capsys):
    words = ["--epochs", 2, "--lr", 1e30, "--warmup", 0, "--out", tmp_path]
    code, _, err = run(capsys, "train", *FAST, *words)
    assert code == 1
    assert "the loss became " in err
    assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "log.jsonl"]


@pytest.mark.parametrize("outputs", [0, 3])
def test_names_of_classes_are_as_many_as_the_networks_numbers(tmp_path, capsys, outputs):
    file = tmp_path / "model.safetensors"
    save_model(create_model("resnet20", outputs), file)
    for words in (["predict", picture(tmp_path / "a.png")], ["evaluate", "--data", "cifar10-mini"]):
        code, out, err = run(capsys, *words, "--model", file)
        assert (code, out) == (2, "")
        assert f"gives {outputs} numbers for 10 names of classes (airplane, automobile," in err
        assert err.count("\n") == 1


def test_half_precision_is_used_in_whole(tmp_path, capsys):
    file = tmp_path / "model.safetensors"
    save_model(load_pretrained("resnet20_cbam").half(), file)
    words = ["evaluate", "--data", "cifar10-mini", "--device", "cpu"]
    code, out, _ = run(capsys, *words, "--model", file)
    whole = evaluate(load_pretrained("resnet20_cbam"), data.load("cifar10-mini", "test"))
    assert code == 0
    assert abs(float(out.partition("%")[0]) / 100 - whole.accuracy) < 0.01
    assert run(capsys, "predict", picture(tmp_path / "a.png"), "--model", file)[0] == 0


def test_a_folder_of_the_same_name_does_not_hide_a_network_of_the_package(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet20_cbam").mkdir()
    assert run(capsys, "predict", picture(tmp_path / "a.png"))[0] == 0


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "used up (CUDA out of memory.);"),
        (RuntimeError("can't allocate memory: you tried"), "used up (can't allocate memory"),
        (MemoryError(), "used up (MemoryError); smaller images, batches"),
    ],
)
def test_lack_of_memory_is_told_in_one_line(tmp_path, capsys, monkeypatch, error, told):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(cli, "fit", fail)
    code, _, err = run(capsys, "train", *FAST, "--out", tmp_path)
    assert code == 1
    assert told in err
    assert err.count("\n") == 1


def test_a_fault_of_ours_is_not_hidden(capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "count", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["complexity", "resnet20"])


def test_ctrl_c_leaves_a_run_to_resume(tmp_path):
    words = [sys.executable, "-m", "cbam_edu", "train", *FAST, "--epochs", "2", "--out", tmp_path]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test-suite that runs in the background may have been told to ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 240
    while not (tmp_path / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.strip() == "cbam-edu: stopped; --resume goes on from the last whole epoch"
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]
    assert main([*map(str, words[3:]), "--resume"]) == 0
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_devices():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' is not to be had here"):
            choose_device("cuda")


def test_no_argument_is_lost_when_it_runs_as_a_module(tmp_path):
    words = [sys.executable, "-m", "cbam_edu", "predict", str(picture(tmp_path / "a.png"))]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path / 'a.png'}: ")


def trained_by(monkeypatch, capsys, tmp_path, *words):
    """Return the recipe that reaches the trainer, which then stops."""
    asked = []

    def stop(model, training, recipe, **_):
        asked.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "fit", stop)
    assert run(capsys, "train", *FAST[:6], "--out", tmp_path, *words)[0] == cli.INTERRUPTED
    return asked[0]


def test_a_named_recipe_gives_what_is_not_asked_for(monkeypatch, capsys, tmp_path):
    def recipe(*words):
        return trained_by(monkeypatch, capsys, tmp_path, *words)

    assert recipe() == recipe("--recipe", "default") == Recipe()
    speed = RECIPES["speed"]
    assert recipe("--recipe", "speed") == speed != Recipe()
    words = ["--recipe", "speed", "--epochs", 3, "--no-compile", "--cutout", 0, "--seed", 7]
    wanted = dataclasses.replace(speed, epochs=3, compile=False, cutout=0, seed=7)
    assert recipe(*words) == wanted
    # An option wins over the recipe also where it says what the default is.
    again = recipe("--recipe", "speed", "--epochs", Recipe.epochs, "--batch-size", 128)
    assert (again.epochs, again.batch_size, again.lr) == (Recipe.epochs, 128, speed.lr)


def test_an_unknown_recipe_is_told_with_the_nearest(tmp_path, capsys):
    code, _, err = run(capsys, "train", *FAST, "--recipe", "sped", "--out", tmp_path / "run")
    assert code == 2
    assert err.startswith("cbam-edu: unknown recipe 'sped'; did you mean speed")
    assert not list(tmp_path.iterdir())


def test_help_tells_what_each_recipe_has(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    speed = RECIPES["speed"]
    assert "default or speed (default: default)" in out
    assert f"(default: {Recipe.epochs}, speed: {speed.epochs})" in out
    assert f"(default: False, speed: {speed.compile})" in out
    assert f"of SGD (default: {Recipe.momentum})" in out  # told once where both have the same


@pytest.mark.parametrize("words", [["evaluate", "--model"], ["export", "--out"]])
def test_an_error_of_the_systems_is_told_in_words(words, capsys):
    assert cli.main([*words, "x" * 300]) == 1
    told = capsys.readouterr().err
    assert told == f"cbam-edu: cannot use {'x' * 300}: the name is too long; choose a shorter one\n"
