"""Try every property of ``tests/test_properties.py`` on thousands of drawn examples.

::

    python tests/attacks/properties.py [--examples 5000] [--seed 0] [--missing] [PROPERTY ...]
    python tests/attacks/properties.py --broken

The first tries the properties, or those that are named, and records how many examples ran through
each; Triton's kernels run in its interpreter, in a process of its own. The same seed draws the same
examples, and with ``--missing`` a run that was stopped goes on. The second breaks a copy of the
code in many ways, one at a time, and asks of the properties, 50 examples each, that they notice.
Three quarters of an hour on one core, of which the second takes ten minutes.
"""

import argparse
import gc
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import recorded
import torch
from _pytest.outcomes import Failed  # what `pytest.raises` raises is no `Exception`

TESTS = recorded.ROOT / "tests"
KERNELS = "test_drawn_examples"  # of `kernel_cases`


# ---- Many examples


def attack(name: str, properties: Any, test: Callable[[], None], seed: int) -> bool:
    """Try one property, record what came of it, and return whether it held."""
    began, fault = time.monotonic(), ""
    try:
        hypothesis.seed(seed)(test)()
    except (Exception, Failed) as error:  # every kind is a fault found
        told = [error, *getattr(error, "exceptions", ())]
        fault = " / ".join(f"{e} {' '.join(getattr(e, '__notes__', ()))}" for e in told)
    ran, seconds = properties.TRIED[name], time.monotonic() - began
    print(f"{name}: {ran} examples, {seconds:.0f} s {fault}", flush=True)
    file = "kernel_cases" if name == KERNELS else "test_properties"
    details = {"fault": re.sub(r"\s+", " ", fault)[:500]} if fault else {}
    if name == "test_compiled":
        details["backend"] = "inductor"
    recorded.write(
        "properties",
        properties.WORDS[name],
        tried=ran + bool(fault),
        unit="examples",
        failed=int(bool(fault)),
        seconds=seconds,
        test=f"tests/{file}.py::{name}",
        **details,
    )
    return not fault


def attack_here(names: list[str], seed: int) -> bool:
    """Try the named properties in this process."""
    sys.path.insert(0, str(TESTS))
    import test_properties

    module = test_properties
    if names == [KERNELS]:
        module = __import__("kernel_cases")
    torch.set_num_threads(1)
    gc.freeze()  # what was imported stays: the collector need not look at it again and again
    with np.errstate(all="ignore"):
        held = [attack(n, test_properties, getattr(module, n), seed) for n in names]
    return all(held)


def all_names() -> list[str]:
    """Return the names of the properties, in the order in which they stand in their file."""
    text = (TESTS / "test_properties.py").read_text("utf-8")
    names = re.findall(r"^def (test_\w+)\(\w", text, re.MULTILINE)
    return [*names, KERNELS]


def recorded_names(examples: int) -> set[str]:
    """Return the properties of which a record says that they held for so many examples."""
    path = recorded.RESULTS / "properties.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    records = [record for line in lines if "test" in (record := json.loads(line))]
    held = [r["test"] for r in records if r["tried"] >= examples and not r["failed"]]
    return {test.partition("::")[2] for test in held}


def interpreted(command: list[str]) -> bool:
    """Run a command with Triton's interpreter, which must be chosen before Triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    return subprocess.run([sys.executable, *command], env=environment, check=False).returncode == 0


# ---- Broken on purpose


class Break(NamedTuple):
    """One way to break the code: the file, what is replaced there, and by what."""

    words: str
    file: str
    old: str
    new: str


ATTENTION, NEIGHBOURS = "attention.py", "neighbours.py"
POOL = {"avg": "x.mean((2, 3))", "max": "x.amax((2, 3))"}
SQUEEZED = "[x.amax(1, keepdim=True), x.mean(1, keepdim=True)]"
CHECKED = "        check_input(x, self.channels)\n        if self.order"
SECOND = """            x = x * self.channel(x)
        if self.order in ("channel-spatial", "spatial-only"):
            x = x * self.spatial(x)
"""


def first(line: str) -> str:
    """Return what `CHECKED` becomes where the forward pass of CBAM begins with a line."""
    return CHECKED.replace("        if", f"        {line}\n        if")


BREAKS = [
    # The poolings
    Break("mean over the batch", ATTENTION, POOL["avg"], "x.mean((0, 2, 3)).expand(x.shape[:2])"),
    Break("mean of the first row", ATTENTION, POOL["avg"], "x[:, :, 0].mean(2)"),
    Break("maximum of the first row", ATTENTION, POOL["max"], "x[:, :, 0].amax(2)"),
    Break(
        "maximum over the batch", ATTENTION, POOL["max"], "x.amax((0, 2, 3)).expand(x.shape[:2])"
    ),
    Break("maximum that drops NaN", ATTENTION, POOL["max"], "x.nan_to_num().amax((2, 3))"),
    Break("maximum never below 0", ATTENTION, POOL["max"], "x.relu().amax((2, 3))"),
    Break(
        "norm without its root",
        ATTENTION,
        "torch.linalg.vector_norm(x, dim=(2, 3))",
        "x.square().sum((2, 3))",
    ),
    # The gates
    Break("no sigmoid", ATTENTION, '"sigmoid": torch.sigmoid', '"sigmoid": lambda z: z'),
    Break(
        "sigmoid never below a thousandth",
        ATTENTION,
        '"sigmoid": torch.sigmoid',
        '"sigmoid": lambda z: z.sigmoid().clamp(min=1e-3)',
    ),
    Break(
        "softmax over the first axis alone",
        ATTENTION,
        "z.flatten(1).softmax(1).reshape(z.shape)",
        "z.softmax(1)",
    ),
    # The channel gate
    Break(
        "mean of the logits, not their sum",
        ATTENTION,
        "torch.stack(logits).sum(0)",
        "torch.stack(logits).mean(0)",
    ),
    Break("first pooling alone", ATTENTION, "in self.pooling]", "in self.pooling[:1]]"),
    Break("MLP without its ReLU", ATTENTION, "nn.ReLU()", "nn.Identity()"),
    # The spatial gate
    Break(
        "padding by the other side",
        ATTENTION,
        "padding=kernel_size // 2, bias=False)",
        'padding=kernel_size // 2, bias=False, padding_mode="circular")',
    ),
    Break("no padding", ATTENTION, "padding=kernel_size // 2, bias=False)", "bias=False)"),
    Break(
        "kernel flipped",
        ATTENTION,
        "        if (n := self.norm) is None:",
        f"        logits = self.conv(torch.cat({SQUEEZED}, 1).flip(3)).flip(3)\n"
        "        if (n := self.norm) is None:",
    ),
    Break(
        "mean and maximum exchanged",
        ATTENTION,
        SQUEEZED,
        "[x.mean(1, keepdim=True), x.amax(1, keepdim=True)]",
    ),
    Break("first channel for the maximum", ATTENTION, "[x.amax(1, keepdim=True)", "[x[:, :1]"),
    Break(
        "the batch's statistics in evaluation",
        ATTENTION,
        "        return n(logits)",
        "        return n.train()(logits)",
    ),
    Break(
        "BatchNorm of one value",
        ATTENTION,
        "if self.training and logits.numel() == 1:",
        "if False:",
    ),
    # CBAM
    Break(
        "orders exchanged",
        ATTENTION,
        'if self.order == "spatial-channel":',
        'if self.order == "channel-spatial":',
    ),
    Break(
        "spatial gate sees the input",
        ATTENTION,
        SECOND,
        "            x, given = x * self.channel(x), x\n        else:\n            given = x\n"
        + SECOND.split("\n", 1)[1].replace("self.spatial(x)", "self.spatial(given)"),
    ),
    Break(
        "maps added, not logits",
        ATTENTION,
        "self.channel.logits(x) + self.spatial.logits(x)",
        "self.channel(x) + self.spatial(x)",
    ),
    Break(
        "gate without gradient",
        ATTENTION,
        "x = x * self.channel(x)",
        "x = x * self.channel(x).detach()",
    ),
    Break(
        "input overwritten",
        ATTENTION,
        "            x = x * self.spatial(x)\n        if",
        "            x.data.mul_(self.spatial(x))\n        if",
    ),
    Break("NaN made 0", ATTENTION, CHECKED, first("x = torch.where(x.isnan(), 0, x)")),
    Break("infinity cut off", ATTENTION, CHECKED, first("x = x.clamp(-1e35, 1e35)")),
    Break("always float32", ATTENTION, CHECKED, first("x = x.float()")),
    Break("images reversed", ATTENTION, CHECKED, first("x = x.flip(0)")),
    # What is refused
    Break("empty maps let through", ATTENTION, "any(n == 0 for n in x.shape[1:])", "False"),
    Break(
        "whole numbers let through", ATTENTION, "if not x.is_floating_point()", "if x.is_complex()"
    ),
    Break("even kernels let through", ATTENTION, "(odd and value % 2 == 0)", "False"),
    # The others
    Break(
        "BAM without its addition",
        NEIGHBOURS,
        "x + x * torch.sigmoid(logits)",
        "x * torch.sigmoid(logits)",
    ),
    Break(
        "BAM's BatchNorm of one value",
        NEIGHBOURS,
        "if self.training and x.numel() == x.shape[1]:",
        "if False:",
    ),
    Break("fused: a shared maximum's gradient", "fused/steps.py", "dmax / ties", "dmax"),
    Break("fused: the mean's gradient", "fused/steps.py", "dmean / x.shape[1], n)", "dmean, n)"),
    Break(
        "fused: a row's last places",
        "fused/convolution.py",
        "        return F.conv2d(z, weight.contiguous(), padding=k // 2)",
        "        return F.conv2d(F.pad(z, (0, -1)), weight.contiguous(), padding=k // 2)",
    ),
    Break("fused: empty batches", "fused/convolution.py", "many, h, columns)", "many, h, -1)"),
    Break(
        "fused: a map for each channel",
        "fused/blocks.py",
        "out=y), s_, out=out_)",
        "out=y), 1, out=out_)",
    ),
    Break(
        "converted: planes of the kernel",
        "convert.py",
        'if name == "spatial.conv.weight" and layout.mean_first:',
        "if False:",
    ),
    Break(
        "converted: rounded to float16",
        "convert.py",
        "tensor.clone() for name, tensor in cbam",
        "tensor.half().to(tensor.dtype) for name, tensor in cbam",
    ),
    Break(
        "saved: rounded to float16",
        "models/__init__.py",
        "v.detach().cpu().contiguous()",
        "v.detach().half().to(v.dtype)",
    ),
]


def broken_tree(folder: Path, broken: Break) -> Path:
    """Copy what the properties need, and break it."""
    for name in ("cbam_edu", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "attacks", "browser")
        shutil.copytree(recorded.ROOT / name, folder / name, ignore=ignored)
    path = folder / "cbam_edu" / broken.file
    text = path.read_text("utf-8")
    if broken.old not in text:
        raise ValueError(f"{broken.file} has no {broken.old!r}: renew the break {broken.words!r}")
    path.write_text(text.replace(broken.old, broken.new), "utf-8")
    return folder


def found_by(broken: Break) -> str:
    """Return the property that fails first where the code is broken, "" if none does.

    In a process of its own, of which all that is of the package and the tests is the broken one's.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree = broken_tree(Path(folder), broken)
        for name in [n for n in sys.modules if n.partition(".")[0] == "cbam_edu"]:
            del sys.modules[name]
        sys.path[:0] = [str(tree), str(tree / "tests")]
        import test_properties

        assert Path(test_properties.__file__).is_relative_to(tree)
        for name in test_properties.WORDS:
            if name in ("test_compiled", "test_exported"):  # both sides of these are broken
                continue
            try:
                getattr(test_properties, name)()
            except (Exception, Failed):
                return name
    return ""


def break_all() -> None:
    """Break the code in every way, and record which properties noticed."""
    os.environ |= {"CBAM_EDU_EXAMPLES": "50", "CBAM_EDU_PHASES": "1"}
    began, noticed = time.monotonic(), {}
    torch.set_num_threads(1)
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for broken, name in zip(BREAKS, pool.imap(found_by, BREAKS, chunksize=1), strict=True):
            noticed[broken.words] = name
            print(f"{broken.words}: {name or 'NOT FOUND'}", flush=True)
    recorded.write(
        "properties",
        "code broken on purpose",
        tried=len(BREAKS),
        unit="breaks",
        failed=sum(not name for name in noticed.values()),
        seconds=time.monotonic() - began,
        found_by=noticed,
    )


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("properties", nargs="*", help="default: all")
    parser.add_argument("--examples", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--missing", action="store_true", help="what no record has held yet")
    parser.add_argument("--broken", action="store_true", help="break the code on purpose")
    args = parser.parse_args()
    if args.broken:
        break_all()
        return 0
    os.environ["CBAM_EDU_EXAMPLES"] = str(args.examples)
    names = args.properties or all_names()
    if args.missing:
        names = [name for name in names if name not in recorded_names(args.examples)]
    if names == [KERNELS] and os.environ.get("TRITON_INTERPRET") == "1":
        return not attack_here(names, args.seed)
    here = [name for name in names if name != KERNELS]
    held = attack_here(here, args.seed)
    if KERNELS in names:
        rest = ["--examples", str(args.examples), "--seed", str(args.seed)]
        held &= interpreted([sys.argv[0], KERNELS, *rest])
    return not held


if __name__ == "__main__":
    sys.exit(main())
