"""The command `cbam-edu`: a thin face over the library."""

import argparse
import dataclasses
import functools
import io
import json
import shlex
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

import cbam_edu
from cbam_edu import cli_studies, data
from cbam_edu.attention import check_positive
from cbam_edu.complexity import count
from cbam_edu.data.folder import transform
from cbam_edu.distributed import LostProcessError, processes, rank, speaker, world_size
from cbam_edu.export import FORMATS, TOLERANCE, export
from cbam_edu.models import (
    create_model,
    list_models,
    list_pretrained,
    load_model,
    load_pretrained,
    save_model,
)
from cbam_edu.models.staged import Staged
from cbam_edu.neighbours import ATTENTIONS, check_name
from cbam_edu.recipe import PRECISIONS, RECIPES
from cbam_edu.records import record
from cbam_edu.storage import append_lines, explained, replace_file
from cbam_edu.train import DivergenceError, Recipe, evaluate, fit

# What to do after Ctrl-C, by command.
_GO_ON = {
    "train": "; --resume goes on from the last whole epoch",
    "experiment": "; the same command goes on from the last whole epoch",
}
_LARGEST = 4096  # side of pictures that a file may ask for
# What the program ends with: 0 done, 1 failed on the way, 2 asked for something that can't be,
# 130 stopped by Ctrl-C.
FAILED, WRONG, INTERRUPTED = 1, 2, 130

_HELP = {
    "epochs": "passes over the training images",
    "batch_size": "images in a training step",
    "optimizer": "sgd (with Nesterov momentum) or adamw",
    "lr": "highest learning rate",
    "momentum": "of SGD",
    "schedule": "one-cycle or cosine",
    "warmup": "part of training, 0 to 1, in which the learning rate rises",
    "weight_decay": "of convolutions and linear layers",
    "channel_weight_decay": "of channel gates, if it differs",
    "spatial_weight_decay": "of spatial gates, if it differs",
    "label_smoothing": "part of the target spread over all classes",
    "crop": "pixels by which an image may shift; a folder's pictures get random crops instead",
    "flip": "mirror half of the images",
    "cutout": "side of the square cut out of each image, but of a folder's",
    "mixup": "alpha of Mixup",
    "ema": "decay of the moving average of the weights",
    "precision": "float32, bfloat16 or float16",
    "channels_last": "memory format of the maps",
    "compile": "make the training step by torch.compile",
    "seed": "of the initial weights, the order of images and their augmentation",
    "deterministic": "the same bits each time, on the same machine",
}


def choose_device(name: str) -> torch.device:
    """Return the device of that name; "auto" takes the accelerator, or the CPU."""
    if name == "auto":
        best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        name = best.type if best else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # not so on meta, which holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {name!r} is not to be had here; take auto, cpu, cuda or mps"
        ) from error
    return device


def _network(args: argparse.Namespace) -> nn.Module:
    """Load the network that is asked for, in float32: CPUs lack much of half precision."""
    path = Path(args.model)
    ours = args.model in list_pretrained() or not (path.suffix or path.exists())
    return (load_pretrained(args.model) if ours else load_model(path)).float()


def _classes(model: nn.Module) -> Sequence[str]:
    """Return the names of a network's classes: those in its file, or CIFAR-10's."""
    names: Sequence[str] = vars(model)["about"].get("classes", data.CLASSES)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError("the network's file has no list of names as its classes; save it anew")
    if (outputs := vars(model)["config"]["num_classes"]) != len(names):
        raise ValueError(
            f"the network gives {outputs} numbers for {len(names)} names of classes "
            f"({', '.join(names[:3])}, ...); save it with as many: save_model(model, path, "
            "classes=[...])"
        )
    return names


def _seen(about: dict[str, typing.Any]) -> tuple[int, Sequence[float], Sequence[float]]:
    """Return size, mean and deviation of the pictures of a folder that a network was trained on."""
    size, mean, std = (about.get(key) for key in ("size", "mean", "std"))
    right = type(size) is int and 0 < size <= _LARGEST and _three(mean) and _three(std)
    if not right or min(std or ()) <= 0:
        raise ValueError(
            "the network's file should name the pictures it was trained on by size (from 1 to "
            f"{_LARGEST}), mean and std (three numbers each), and does not; save it anew"
        )
    return typing.cast(int, size), mean or (), std or ()


def _three(values: object) -> bool:
    """Say whether something is three numbers."""
    if not isinstance(values, list | tuple) or len(values) != 3:
        return False
    return all(type(v) in (int, float) and abs(v) < 1e9 for v in values)


def _shown(text: object) -> str:
    """Return text as any terminal can show it: what cannot be printed becomes an escape."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def _recipe(args: argparse.Namespace) -> Recipe:
    """Return the recipe of that name, with what was asked for by other options."""
    check_name("recipe", args.recipe, list(RECIPES))
    names = [field.name for field in dataclasses.fields(Recipe)]
    return dataclasses.replace(
        RECIPES[args.recipe], **{name: getattr(args, name) for name in names if hasattr(args, name)}
    )


def _command(args: argparse.Namespace, recipe: Recipe) -> str:
    """Return the words that repeat a run of `train` in one process, on any machine."""
    words = ["cbam-edu", "train", "--model", args.model]
    usual = {"attention": None, "data": "cifar10", "size": None, "study": "single"}
    chosen = {name: getattr(args, name) for name in usual}
    usual |= dataclasses.asdict(Recipe())
    chosen |= dataclasses.asdict(recipe)
    if args.validate:
        words.append("--validate")
    for name, value in chosen.items():
        flag = name.replace("_", "-")
        if value == usual[name]:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return shlex.join(words)


def train(args: argparse.Namespace) -> None:
    """Train a network and leave weights, checkpoint, log and record in a folder.

    In many processes: torchrun --nproc-per-node N -m cbam_edu train ...
    """
    recipe = _recipe(args)
    device = choose_device(args.device)
    check_name("model", args.model, list_models())  # before any data is fetched
    options = _attention(args)
    images = functools.partial(
        data.load, args.data, folder=args.data_dir, size=args.size, workers=args.workers
    )
    training: data.ImageSet | data.PictureFolder = images("train")
    if args.validate:
        counts = training.labels.bincount(minlength=len(training.classes))
        training, test = training.holdout([max(1, n // 10) for n in counts.tolist()])
    else:
        test = images("test")
    torch.manual_seed(recipe.seed)
    model = create_model(args.model, len(training.classes), **options)
    arm = vars(model)["config"]["attention"] or "none"
    source = "" if isinstance(training, data.ImageSet) else f"{training.name}_"
    out = args.out or Path("runs") / f"{source}{args.model}_{arm}_{recipe.seed}"
    with processes(device) as device:
        if first := rank() == 0:
            many = f", in {world_size()} processes" if world_size() > 1 else ""
            where = f"{len(training):,} images of {training.name}, on {device}{many}"
            print(f"training {args.model} on {where}", flush=True)
        history = fit(
            model, training, recipe, test=test, device=device, out=out, resume=args.resume
        )
    if not first:
        return
    save_model(model, out / "model.safetensors", classes=training.classes, **training.about())
    line = record(
        args.study,
        model,
        recipe,
        history,
        data=training.name,
        images=(len(training), len(test)),
        size=training.size,
        device=device,
    )
    line["command"] = _command(args, recipe)
    replace_file(out / "record.jsonl", lambda f: f.write((json.dumps(line) + "\n").encode()))
    kind = "validation" if args.validate else "test"
    print(f"{line['accuracy']:.2%} of {len(test):,} {kind} images; {out / 'model.safetensors'}")


def evaluate_command(args: argparse.Namespace) -> None:
    """Measure a trained network."""
    model = _network(args)
    about = vars(model)["about"]
    size = None if args.data in data.NAMES or "size" not in about else _seen(about)[0]
    test = data.load(args.data, "test", folder=args.data_dir, size=size, workers=args.workers)
    if isinstance(test, data.PictureFolder) != ("size" in about):
        wanted = "a folder of pictures" if "size" in about else " or ".join(data.NAMES)
        raise ValueError(f"{args.model} was trained on other images; measure it on {wanted}")
    data.check_classes(test.name, test.classes, _classes(model))
    scores = evaluate(model.to(choose_device(args.device)), test)
    print(
        f"{scores.accuracy:.2%} of {len(test):,} test images of {test.name}, loss {scores.loss:.4f}"
    )


def predict(args: argparse.Namespace) -> None:
    """Name what is in pictures."""
    check_positive("top", args.top)
    model = _network(args)
    about = vars(model)["about"]
    classes = _classes(model)
    if "size" in about:  # it was trained on a folder of pictures
        size, mean, std = _seen(about)
        prepare = transform(size)
        images = torch.stack([prepare(data.open_picture(path)) for path in args.images])
        x = data.normalise(images, mean, std)
    else:
        x = data.normalise(torch.stack([data.read_image(path) for path in args.images]))
    with torch.no_grad():
        chances = model(x).softmax(1)
    if not chances.isfinite().all():
        raise ValueError(f"{args.model} gives numbers that are not finite; its weights are damaged")
    for path, row in zip(args.images, chances, strict=True):
        best = row.topk(min(args.top, len(classes)))
        named = ", ".join(
            f"{classes[i]} {p:.1%}"
            for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        print(_shown(f"{path}: {named}"))


def export_command(args: argparse.Namespace) -> None:
    """Write a network to a file that other programs run, and compare it with the network."""
    check_name("format", args.format, list(FORMATS))
    kind, model = FORMATS[args.format], _network(args)
    out = args.out or Path(args.model).with_suffix(kind.suffix)
    if out.exists():
        raise ValueError(f"{out} is there already; move it away, or choose another file (--out)")
    difference = export(model, out, args.format)
    print(
        f"{out}: {kind.words}; its logits differ from the network's by {difference:.1e} of the "
        f"largest ({TOLERANCE:.0e} is allowed)"
    )


def download(args: argparse.Namespace) -> None:
    """Fetch CIFAR-10, or find that it is there."""
    print(f"CIFAR-10 is in {data.download(args.data_dir)}")


def _attention(args: argparse.Namespace) -> dict[str, str | None]:
    """Return the option of `create_model` that `--attention` asks for."""
    if args.attention is None:
        return {}
    check_name("attention", args.attention, ["none", *ATTENTIONS])
    return {"attention": None if args.attention == "none" else args.attention}


def _shapes(name: str, **options: typing.Any) -> Staged:
    """Make a network without numbers, for counting: it takes no memory and no time."""
    with torch.device("meta"):
        return typing.cast(Staged, create_model(name, **options))


def complexity(args: argparse.Namespace) -> None:
    """Count parameters and multiply-accumulates of convolutions and matrix products, by ptflops.

    BatchNorm, activations, pooling, biases and the gates' products are not counted; what runs
    twice, as CBAM's shared MLP does, counts twice.
    """
    check_name("model", args.model, list_models())
    model = _shapes(args.model, **_attention(args))
    side = model.image_size if args.size is None else args.size
    check_positive("size", side)
    cost = count(model, (3, side, side))
    width = max(len(layer.name) for layer in cost.layers)
    print(f"{'layer':{width}}  {'kind':12}{'output':>18}{'runs':>6}{'parameters':>13}{'MACs':>16}")
    for layer in cost.layers:
        shape = " x ".join(map(str, layer.output[1:]))
        print(
            f"{layer.name:{width}}  {layer.kind:12}{shape:>18}{layer.runs:6}"
            f"{layer.parameters:13,}{layer.multiply_accumulates:16,}"
        )
    arm = vars(model)["config"]["attention"] or "none"
    print(
        f"{args.model} with attention {arm}, one image of {side} x {side}: "
        f"{cost.parameters:,} parameters, {cost.multiply_accumulates:,} multiply-accumulates (MACs)"
    )


def _shape(text: str) -> tuple[int, int, int, int]:
    """Read a feature map's shape, such as 64x64x32x32."""
    numbers = [int(n) if n.isdecimal() else 0 for n in text.split("x")]
    if len(numbers) != 4 or 0 in numbers:
        raise ValueError(f"a shape is N x C x H x W, such as 64x64x32x32; got {text!r}")
    n, c, h, w = numbers
    if n * c * h * w > 2**40:
        raise ValueError(f"{text} is a map of more than {2**40:,} values; choose a smaller one")
    return n, c, h, w


def benchmark(args: argparse.Namespace) -> None:
    """Time CBAM layers, or a network with and without them, beside other implementations, in turns.

    Times are medians with quartiles. Of a layer, "copies" is the time in copies of the feature map,
    which read and write it once; "kept" is what is kept for the backward pass, and "peak" the most
    memory at a time, in feature maps.
    """
    from cbam_edu.benchmark import WAYS, compare, compare_networks  # torch's Timer takes a second

    if args.rounds < 2:
        raise ValueError(f"rounds must be 2 or more, to tell a spread; got {args.rounds}")
    check_positive("batch", args.batch)
    if args.out:
        with explained("write", args.out), open(args.out, "a", encoding="utf-8"):
            pass  # before anything is measured
    check_name("precision", args.precision, list(PRECISIONS))
    device = choose_device(args.device)
    options: dict[str, typing.Any] = {
        "ways": WAYS if args.compile else WAYS[:1],
        "device": device,
        "channels_last": args.channels_last,
        "rounds": args.rounds,
    }
    if args.names:
        options["names"] = args.names
    layout = "channels last" if args.channels_last else "contiguous"
    runs: dict[str, Callable[..., list[dict[str, typing.Any]]]] = {}
    if args.model:
        check_name("model", args.model, list_models())
        kind = {"precision": args.precision, "batch_size": args.batch}
        runs[f"{args.model}, {args.batch} images"] = functools.partial(
            compare_networks, args.model, **kind
        )
    else:
        for shape in map(_shape, args.shape):
            what = " x ".join(map(str, shape))
            runs[what] = functools.partial(compare, shape, dtype=PRECISIONS[args.precision])
    for what, measure in runs.items():
        lines = measure(**options)
        print(f"{what}, {args.precision}, {layout}, {lines[0]['device']}")
        _print_times(lines)
        if args.out:
            append_lines(args.out, "".join(json.dumps(line) + "\n" for line in lines).encode())


def _print_times(lines: list[dict[str, typing.Any]]) -> None:
    """Print a table of what was timed; a column that a line does not have stays empty."""
    columns = {"copies": "copies", "kept_maps": "kept", "peak_maps": "peak"}
    columns |= {"times_none": "times none", "peak_megabytes": "peak MB"}
    columns = {key: title for key, title in columns.items() if any(key in line for line in lines)}
    titles = "".join(f"{title:>12}" for title in columns.values())
    print(f"{'':10}{'way':10}{'mode':10}{'ms':>10}{'quartiles':>20}{titles}")
    for line in lines:
        quartiles = f"{line['low']:.2f} to {line['high']:.2f}"
        more = "".join(f"{line[k]:12.2f}" if k in line else " " * 12 for k in columns)
        print(
            f"{line['implementation']:10}{line['way']:10}{line['mode']:10}"
            f"{line['milliseconds']:10.2f}{quartiles:>20}{more}".rstrip()
        )


def models(args: argparse.Namespace) -> None:
    """List the networks that can be made, and what they cost."""
    print(f"{'model':18}{'image':>9}{'parameters':>13}{'multiply-accumulates':>22}   no attention")
    for name in list_models():
        model = _shapes(name, attention=None)
        cost = count(model, (3, model.image_size, model.image_size))
        size = f"{model.image_size} x {model.image_size}"
        print(f"{name:18}{size:>9}{cost.parameters:13,}{cost.multiply_accumulates:22,}")
    print(f"\nattention: none, {', '.join(ATTENTIONS)}")
    print(f"trained, in the package: {', '.join(list_pretrained())}")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    """Give every field of `Recipe` its option, which is there only where it was typed."""
    group = parser.add_argument_group("recipe")
    group.add_argument(
        "--recipe",
        default="default",
        metavar="NAME",
        help=f"what the options below are by default: {' or '.join(RECIPES)} (default: default)",
    )
    types = typing.get_type_hints(Recipe)
    for field in dataclasses.fields(Recipe):
        flag, kind = "--" + field.name.replace("_", "-"), types[field.name]
        values = {name: getattr(recipe, field.name) for name, recipe in RECIPES.items()}
        own = [f"{name}: {v}" for name, v in values.items() if v != field.default]
        text = f"{_HELP[field.name]} ({', '.join([f'default: {field.default}', *own])})"
        if kind is bool:
            action = argparse.BooleanOptionalAction
            group.add_argument(flag, action=action, default=argparse.SUPPRESS, help=text)
        else:
            kind = float if typing.get_args(kind) else kind
            group.add_argument(
                flag, type=kind, default=argparse.SUPPRESS, help=text, metavar=kind.__name__.upper()
            )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="cbam-edu", description="Train, measure and use networks with attention."
    )
    parser.add_argument("--version", action="version", version=f"cbam-edu {cbam_edu.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: typing.Callable[..., None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=run.__doc__)
        command.set_defaults(run=run)
        return command

    def add_data(command: argparse.ArgumentParser, default: str) -> None:
        command.add_argument(
            "--data",
            default=default,
            metavar="NAME|FOLDER",
            help=f"{', '.join(data.NAMES)}, or a folder of pictures, train/CLASS/*.jpg and "
            f"val/CLASS/*.jpg (default: {default})",
        )
        command.add_argument(
            "--data-dir", type=Path, help="folder of CIFAR-10 (default: the user's cache)"
        )
        command.add_argument(
            "--workers",
            type=int,
            help="processes that read a folder's pictures ahead (default: one a core, at most 4)",
        )

    def add_device(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--device", default="auto", help="cpu, cuda or mps (default: auto, the best there is)"
        )

    def add_attention(command: argparse.ArgumentParser) -> None:
        names = f"none, {', '.join(ATTENTIONS)}"
        command.add_argument("--attention", help=f"{names} (default: the network's own)")

    def add_network(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--model",
            default="resnet20_cbam",
            metavar="NAME|FILE",
            help="a network of the package, or a model.safetensors (default: resnet20_cbam)",
        )

    command = add("train", train, "train a network")
    command.add_argument("--model", required=True, help="one of `cbam-edu models`")
    add_attention(command)
    add_data(command, "cifar10")
    add_device(command)
    command.add_argument(
        "--size", type=int, help="side of the images made of a folder's pictures (default: 224)"
    )
    command.add_argument(
        "--out",
        type=Path,
        help="folder of the run (default: runs/MODEL_ARM_SEED, FOLDER_ before a folder's)",
    )
    command.add_argument(
        "--resume", action="store_true", help="go on from the folder's checkpoint, if there is one"
    )
    command.add_argument(
        "--validate",
        action="store_true",
        help="leave the test images alone: train on nine tenths, measure on the rest",
    )
    command.add_argument(
        "--study", default="single", help="name of the study, for the record (default: single)"
    )
    _add_recipe(command)

    command = add("evaluate", evaluate_command, "measure a trained network")
    add_network(command)
    add_data(command, "cifar10")
    add_device(command)

    command = add("predict", predict, "name what is in pictures")
    add_network(command)
    command.add_argument("--top", type=int, default=3, help="classes to name (default: 3)")
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE")

    command = add("export", export_command, "write a network for other programs")
    add_network(command)
    command.add_argument("--format", default="onnx", help=f"{' or '.join(FORMATS)} (default: onnx)")
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="default: the model's name, .onnx or .pt2"
    )

    command = add("download", download, "fetch CIFAR-10")
    command.add_argument("--data-dir", type=Path, help="where to (default: the user's cache)")

    add("models", models, "list the networks")

    command = add("benchmark", benchmark, "time CBAM beside other implementations")
    command.add_argument(
        "--shape",
        nargs="+",
        default=["64x64x32x32", "64x256x14x14", "16x256x56x56"],
        help="feature maps, N x C x H x W (default: three)",
    )
    command.add_argument("--names", nargs="+", help="only these: fused, plain, timm, ...")
    command.add_argument("--model", help="a network of `cbam-edu models`, instead of layers")
    command.add_argument("--batch", type=int, default=128, help="its images a step (default: 128)")
    command.add_argument(
        "--precision", default="float32", help=f"{', '.join(PRECISIONS)} (default: float32)"
    )
    command.add_argument("--channels-last", action="store_true", help="memory format")
    command.add_argument("--compile", action="store_true", help="by torch.compile as well")
    command.add_argument("--rounds", type=int, default=15, help="times each (default: 15)")
    command.add_argument("--out", type=Path, help="file to add the lines of JSON to")
    add_device(command)

    cli_studies.add_commands(add, add_device, choose_device)

    command = add("complexity", complexity, "count what a network costs, per layer")
    command.add_argument("model", metavar="MODEL", help="one of `cbam-edu models`")
    add_attention(command)
    command.add_argument(
        "--size",
        type=int,
        help="side of the image (default: 32, or 224 for ImageNet's)",
    )
    return parser


def _lacks_memory(error: Exception) -> bool:
    """Say whether memory is used up; on the CPU torch has no exception of its own for that."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _in_words(error: Exception) -> str:
    """Return what an error says; one of the system's that names a file, in our words."""
    if isinstance(error, OSError) and error.filename is not None:
        try:
            with explained("use", error.filename):
                raise error
        except OSError as told:
            return str(told)
    return str(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    args = build_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names that it has no letters for
    try:
        args.run(args)
    except KeyboardInterrupt:
        hint = _GO_ON.get(args.run.__name__, "")
        print(f"\ncbam-edu: {speaker()}stopped{hint}", file=sys.stderr)
        return INTERRUPTED
    except (DivergenceError, LostProcessError, OSError) as error:
        print(f"cbam-edu: {speaker()}{_shown(_in_words(error))}", file=sys.stderr, flush=True)
        return FAILED
    except ValueError as error:
        print(f"cbam-edu: {speaker()}{_shown(error)}", file=sys.stderr, flush=True)
        return WRONG
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        told = f"memory is used up ({reason}); smaller images, batches or networks need less"
        print(f"cbam-edu: {speaker()}{told}", file=sys.stderr, flush=True)
        return FAILED
    return 0
