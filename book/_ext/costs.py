"""The directives ``paper-costs``, ``attention-costs`` and ``counters``: costs, counted now.

The networks are made and counted while the site is built; the published figures are read from
``book/results/paper_tables.json``. Nothing in the tables is typed by hand.
"""

import json
from pathlib import Path

import ptflops
import torch
import torchvision
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cbam_edu import create_model
from cbam_edu.complexity import Cost, count
from cbam_edu.neighbours import ATTENTIONS
from tables import table

PAPER = Path(__file__).resolve().parents[1] / "results" / "paper_tables.json"
SIZE = (3, 224, 224)
NAMES = {"none": "none", "se": "SE", "eca": "ECA", "bam": "BAM", "cbam": "CBAM"}
NAMES |= {"channel": "channel only", "spatial": "spatial only"}


def cost(name: str, arm: str) -> Cost:
    """Count a network with one attention at the paper's image size."""
    with torch.device("meta"):
        model = create_model(name, attention=None if arm == "none" else arm)
    return count(model, SIZE)


def paper_rows() -> list[list[str]]:
    """Return every row of Tables 4 and 5: counted, and as published."""
    paper = json.loads(PAPER.read_text("utf-8"))
    rows = []
    for name, arms in (paper["table4_imagenet"] | paper["table5_mobilenet"]).items():
        for arm, (parameters, gflops, *_) in arms.items():
            counted = cost(name, arm)
            millions = f"{counted.parameters / 1e6:.2f}"
            billions = f"{counted.multiply_accumulates / 1e9:.3f}"
            same = (millions, billions) == (f"{parameters:.2f}", f"{gflops:.3f}")
            rows.append(
                [
                    *(name, NAMES[arm], f"{counted.parameters:,}", f"{parameters:.2f}"),
                    *(f"{counted.multiply_accumulates:,}", f"{gflops:.3f}"),
                    "yes" if same else "no",
                ]
            )
    return rows


def attention_rows(name: str = "resnet50") -> list[list[str]]:
    """Return what each attention adds to one network."""
    plain = cost(name, "none")
    rows = []
    for arm in ATTENTIONS:
        more = cost(name, arm)
        parameters = more.parameters - plain.parameters
        work = more.multiply_accumulates - plain.multiply_accumulates
        rows.append(
            [
                *(NAMES[arm], f"{parameters:,}", f"{parameters / plain.parameters:.2%}"),
                *(f"{work:,}", f"{work / plain.multiply_accumulates:.3%}"),
            ]
        )
    return rows


def _by_ptflops(model: nn.Module, backend: str, functional: bool = True) -> int:
    config = {} if functional else {"count_functional": False}
    counted, _ = ptflops.get_model_complexity_info(
        model,
        SIZE,
        backend=backend,
        as_strings=False,
        print_per_layer_stat=False,
        backend_specific_config=config,
    )
    return int(counted)


def counter_rows() -> list[list[str]]:
    """Return the count of one network, ResNet-50 without attention, by every counter at hand."""

    def model(stride_on: str = "1x1") -> nn.Module:
        return create_model("resnet50", stride_on=stride_on).eval()

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model()(torch.zeros(1, *SIZE))
    counted = {
        "this book": count(model(), SIZE).multiply_accumulates,
        "torch's FlopCounterMode, halved": counter.get_total_flops() // 2,
        "ptflops, aten backend": _by_ptflops(model(), "aten"),
        "ptflops, pytorch backend, modules only": _by_ptflops(model(), "pytorch", functional=False),
        "ptflops, pytorch backend": _by_ptflops(model(), "pytorch"),
        'this book, stride_on="3x3"': count(model("3x3"), SIZE).multiply_accumulates,
        "this book, torchvision's resnet50": count(
            torchvision.models.resnet50(), SIZE
        ).multiply_accumulates,
    }
    return [[who, f"{n:,}", f"{n / 1e9:.3f}"] for who, n in counted.items()]


class PaperCosts(SphinxDirective):
    """Tables 4 and 5 of the paper, counted and published side by side."""

    def run(self) -> list[nodes.Node]:
        """Return the table, and a sentence that counts the rows that agree."""
        self.env.note_dependency(str(PAPER))
        rows = paper_rows()
        numbers = ["parameters", "paper, M", "MACs", "paper, G"]
        shown = table(["network", "attention", *numbers], [row[:-1] for row in rows], numbers)
        others = [f"{name} with {arm}" for name, arm, *_, equal in rows if equal == "no"]
        text = f"{len(rows) - len(others)} of {len(rows)} rows agree in every published digit"
        text += f"; not: {', '.join(others)}." if others else "."
        return [shown, nodes.paragraph("", text)]


class AttentionCosts(SphinxDirective):
    """What each attention adds to ResNet-50."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        numbers = ["parameters", "in %", "MACs", "in %"]
        rows = [[cell.replace("%", "") for cell in row] for row in attention_rows()]
        return [table(["attention", *numbers], rows, numbers)]


class Counters(SphinxDirective):
    """One network by every counter."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        return [table(["counted by", "MACs", "in G"], counter_rows(), ["MACs", "in G"])]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("paper-costs", PaperCosts)
    app.add_directive("attention-costs", AttentionCosts)
    app.add_directive("counters", Counters)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
