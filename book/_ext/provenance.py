"""The directive ``provenance``: where every recorded file is from, read from the files."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import tables
from cbam_edu.data.cifar10 import CIFAR10
from cbam_edu.data.mini import PIXELS_SHA256
from cbam_edu.studies import STUDIES
from records import RESULTS

Line = dict[str, Any]
OTHERS = ("*.jsonl", "speed/*.jsonl", "checks/*.jsonl", "reliability/*.jsonl")


def lines(path: Path) -> list[Line]:
    """Return the lines of a file of records."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def every(some: Iterable[Line], value: Callable[[Line], Any]) -> str:
    """Return the different values in the lines, each once, in words."""
    found = dict.fromkeys(value(line) for line in some)
    return ", ".join(str(v) for v in found if v is not None)


def torch_of(line: Line) -> str | None:
    """Return the version of torch that made a line, where it is kept."""
    return line["versions"]["torch"] if "versions" in line else line.get("torch")


def defined_rows() -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of the studies that the code defines, recorded or not."""
    headings = ["study", "what it is to answer", "arms", "seeds: small", "full"]
    body = [
        [
            *(name, study.question, str(len(study.arms))),
            *(str(study.sizes[size].seeds) for size in ("small", "full")),
        ]
        for name, study in STUDIES.items()
    ]
    return headings, body


def study_rows() -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of the files of studies."""
    headings = ["file", "runs", "arms", "seeds", "epochs", "images", "device", "torch"]
    headings += ["digest of the data", "digest of the code", "commits"]
    body = []
    for path in sorted((RESULTS / "studies").glob("*.jsonl")):
        some = lines(path)
        seeds = {r["seed"] for r in some}
        body.append(
            [
                *(path.name, str(len(some)), str(len({r["arm"] for r in some}))),
                f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else str(min(seeds)),
                every(some, lambda r: r["epochs"]),
                every(some, lambda r: f"{r['train_images']:,} / {r['test_images']:,}"),
                *(every(some, lambda r: r["device"]), every(some, torch_of)),
                *(every(some, lambda r: r["digest"]), every(some, lambda r: r["code"])),
                every(some, lambda r: (r["commit"] or "unknown")[:7]),
            ]
        )
    return headings, body


def other_rows() -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of all other files of records."""
    body = []
    for path in (p for pattern in OTHERS for p in sorted(RESULTS.glob(pattern))):
        some = lines(path)
        name = path.relative_to(RESULTS).as_posix()
        device = every(some, lambda r: r.get("device"))
        body.append([name, str(len(some)), device or "not kept", every(some, torch_of)])
    return ["file", "lines", "device", "torch"], body


def data_rows() -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of the images' digests, as the library holds them."""
    body = [[f"{n}.bin", f"{b.count:,}", b.sha256] for n, b in CIFAR10.batches.items()]
    body += [[name, "all", archive.sha256] for name, archive in CIFAR10.archives.items()]
    body += [[f"cifar10-mini, {split}", "its pixels", v] for split, v in PIXELS_SHA256.items()]
    return ["file", "images", "SHA-256"], body


def on_gpus() -> str:
    """Return a sentence that names the files with figures from a GPU, or says there are none."""
    paths = [*sorted((RESULTS / "studies").glob("*.jsonl"))]
    paths += [p for pattern in OTHERS for p in sorted(RESULTS.glob(pattern))]
    found = [
        f"{path.name} ({names})"
        for path in paths
        if (names := every(lines(path), lambda r: _accelerator(r.get("device"))))
    ]
    if found:
        return f"From a GPU are figures in {'; '.join(found)}. None of the others are."
    return f"No figure in these {len(paths)} files is from a GPU."


def _accelerator(device: str | None) -> str | None:
    return None if device is None or device.startswith("CPU") else device


class Provenance(SphinxDirective):
    """A table: ``defined``, ``studies``, ``others`` or ``data``; or ``gpus``, a sentence."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table, with a link to each file, or the sentence."""
        self.env.note_dependency(str(RESULTS / "studies"))
        if self.arguments[0] == "gpus":
            return [nodes.paragraph("", on_gpus())]
        if self.arguments[0] == "defined":
            headings, body = defined_rows()
            return [tables.table(headings, body, {*headings[2:]})]
        if self.arguments[0] == "data":
            headings, body = data_rows()
            return [tables.table(headings, body, {"images"})]
        if self.arguments[0] not in ("studies", "others"):
            raise self.error(f"defined, studies, others, data or gpus, not {self.arguments[0]!r}")
        studies = self.arguments[0] == "studies"
        headings, body = study_rows() if studies else other_rows()
        shown = tables.table(headings, body, {"runs", "arms", "epochs", "lines"})
        folder = RESULTS / "studies" if studies else RESULTS
        for row, (name, *_) in zip(list(shown.findall(nodes.row))[1:], body, strict=True):
            self.env.note_dependency(str(folder / name))
            row[0][0] = nodes.paragraph("", "", tables.download(self.env, folder / name, name))
        return [shown]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("provenance", Provenance)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
