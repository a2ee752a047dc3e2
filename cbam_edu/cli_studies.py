"""The commands `cbam-edu experiment` and `cbam-edu report`."""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from cbam_edu.storage import replace_file
from cbam_edu.studies import STUDIES, find

Device = Callable[[str], torch.device]
FIGURES = (".png", ".pdf", ".svg")


def default_file(study: str, size: str) -> Path:
    """Return where a study's records are: in the book, where there is one, or in results."""
    book = Path("book/results/studies")
    return (book if book.is_dir() else Path("results")) / f"{study}-{size}.jsonl"


def _list_studies() -> None:
    for name, study in STUDIES.items():
        print(f"{name}: {study.question}")
        for size, about in study.sizes.items():
            images = "all" if about.images is None else f"{about.images:,} of each class of"
            print(
                f"    {size:6}{len(study.arms):3} arms x {about.seeds:2} seeds, {about.model}, "
                f"{about.recipe.epochs} epochs, {images} the images of {study.data}"
            )


def _shard(text: str) -> tuple[int, int]:
    """Read i/n, such as 1/4."""
    mine, slash, shares = text.partition("/")
    if not (slash and mine.isdecimal() and shares.isdecimal()):
        raise ValueError(f"a shard is i/n, such as 1/4; got {text!r}")
    return int(mine), int(shares)


def experiment(args: argparse.Namespace, *, choose_device: Device) -> None:
    """Do the runs of a study that are not recorded yet; without a name, list the studies.

    It may be stopped at any moment and started again, or started several times at once: each run
    is done once. Machines that share no file take a share each (--shard 1/4 and so on), and the
    files are put one behind the other afterwards.
    """
    from cbam_edu.experiment import experiment as do

    if args.study is None:
        _list_studies()
        return
    find(args.study, args.size)
    out = args.out or default_file(args.study, args.size)
    done = do(
        args.study,
        args.size,
        out,
        arms=args.arms,
        seeds=args.seeds,
        shard=_shard(args.shard),
        device=choose_device(args.device),
        data_dir=args.data_dir,
        compiled=args.compile,
        tell=functools.partial(print, flush=True),
    )
    told = f"runs done: {done}" if done else "all is done, or being done by another process"
    print(f"{told}; cbam-edu report {args.study} --size {args.size} reads {out}")


def report(args: argparse.Namespace) -> None:
    """Print what a study's records say, as tables, and draw them.

    Differences are to the first arm of a table, with Welch's 95 % interval over seeds; "other
    images, too" is the interval over seeds and test images, by a two-level bootstrap; both are of
    one comparison, while p is after Holm's correction for all of the table; "would show" is the
    smallest difference that shows in four of five such studies.
    """
    from cbam_edu.records import read, recorded
    from cbam_edu.report import draw, summarise, write

    find(args.study, args.size)
    if args.figure and args.figure.suffix not in FIGURES:
        raise ValueError(f"a figure is a file {', '.join(FIGURES)}; got {args.figure}")
    default = default_file(args.study, args.size)
    if args.records or default.exists():
        records, broken = read(args.records or [default])
        for line in broken:
            print(f"cbam-edu: {line}", file=sys.stderr)
    else:  # nothing of the user's own: those that come with the book
        records = recorded(args.study, args.size)
    summary = summarise(args.study, args.size, records)
    print(write(summary))
    if args.figure:
        figure, kind = draw(summary), args.figure.suffix.removeprefix(".")
        replace_file(args.figure, lambda file: figure.savefig(file, format=kind))


def add_commands(
    add: Callable[..., argparse.ArgumentParser],
    add_device: Callable[[argparse.ArgumentParser], None],
    choose_device: Device,
) -> None:
    """Add the two commands to the parser."""
    run = functools.partial(experiment, choose_device=choose_device)
    functools.update_wrapper(run, experiment)
    command = add("experiment", run, "train every arm of a study with every seed")
    _add_study(command, nargs="?")
    command.add_argument("--arms", nargs="+", help="only these")
    command.add_argument("--seeds", nargs="+", type=int, help="only these (default: the study's)")
    command.add_argument(
        "--shard", default="1/1", metavar="I/N", help="only the I-th of N shares of the runs"
    )
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="records (default: results/STUDY-SIZE.jsonl)"
    )
    command.add_argument("--data-dir", type=Path, help="folder of CIFAR-10")
    command.add_argument("--compile", action="store_true", help="train by torch.compile")
    add_device(command)

    command = add("report", report, "what a study's records say")
    _add_study(command)
    command.add_argument(
        "--records",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="read these, from several machines, say (default: results/STUDY-SIZE.jsonl, else the "
        "book's own)",
    )
    command.add_argument("--figure", type=Path, metavar="FILE", help="draw the differences")


def _add_study(command: argparse.ArgumentParser, **options: str) -> None:
    command.add_argument("study", metavar="STUDY", help=", ".join(STUDIES), **options)  # type: ignore[arg-type]
    command.add_argument("--size", default="full", help="full or small (default: full)")
