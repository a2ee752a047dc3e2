"""Run the book's notebooks and keep their stored outputs in step with their code.

::

    python book/_ext/notebooks.py run [NOTEBOOK ...]     # run afresh, store the outputs, stamp
    python book/_ext/notebooks.py check [NOTEBOOK ...]   # exit 1 and say what is stale

Without a name, every notebook of the book is meant.
"""

import argparse
import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
STAMP = "code_sha256"  # the key, in the notebook's metadata, of the digest of the code that was run
CELL_METADATA = ("tags", "mystnb")  # the rest, such as times or an editor's state, is noise
SECONDS_A_CELL = 600
SETUP = """\
# Run this cell first. It installs cbam_edu where it is missing, as on Colab.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("cbam_edu") is None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "cbam_edu[course]"]
    subprocess.run(install, check=True)"""
ADDRESS = re.compile(r"(?<= at )0x[0-9a-f]{6,}")  # differs from run to run and says nothing


def digest(notebook: Any) -> str:
    """Return the SHA-256 of the notebook's code cells, in order."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def set_up(notebook: Any) -> Any:
    """Give `notebook`, in place, the book's one setup cell wherever one is tagged; return it."""
    for cell in notebook.cells:
        if "setup" in cell.metadata.get("tags", []):
            cell.source = SETUP
    return notebook


def execute(notebook: Any) -> Any:
    """Run `notebook` top to bottom in a fresh kernel, in place, and return it.

    The kernel imports this tree's ``cbam_edu``, and draws pictures that do not vary from run to
    run: no dates are stored in them.
    """
    with tempfile.TemporaryDirectory() as room:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        kernel = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "IPYTHONDIR": room}
        client = NotebookClient(
            notebook,
            timeout=SECONDS_A_CELL,
            kernel_name=KERNEL["name"],
            record_timing=False,
            store_widget_state=False,
            resources={"metadata": {"path": str(NOTEBOOKS)}},
        )
        client.execute(env=kernel)
    return notebook


def normalise(notebook: Any) -> Any:
    """Give `notebook`, in place, the form in which it is committed, and return it.

    Its cells are numbered, its metadata is the kernel, the language and the stamp, and pieces of
    one stream are joined, since where a stream is cut depends on the moment.
    """
    stamp = notebook.metadata.get(STAMP)
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    if stamp is not None:
        notebook.metadata[STAMP] = stamp
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:03d}"
        cell.metadata = nbformat.from_dict(
            {key: cell.metadata[key] for key in CELL_METADATA if cell.metadata.get(key)}
        )
        if cell.cell_type == "code":
            cell.outputs = _join_streams(cell.outputs)
            for output in cell.outputs:
                output.get("metadata", {}).clear()
                _hide_addresses(output)
    return notebook


def _join_streams(outputs: list[Any]) -> list[Any]:
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last is not None and output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _hide_addresses(output: Any) -> None:
    if "text" in output:
        output.text = ADDRESS.sub("0x...", output.text)
    if "text/plain" in output.get("data", {}):
        output.data["text/plain"] = ADDRESS.sub("0x...", output.data["text/plain"])


def faults(notebook: Any) -> list[str]:
    """Say, a sentence each, why the stored outputs are not those of the code."""
    found = []
    if notebook.metadata.get(STAMP) != digest(notebook):
        found.append("its code has changed since it was run")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("its cells were not run once each, from first to last")
    for cell in code:
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"{cell.id} ends with {output.ename}: {output.evalue}")
            elif output.output_type == "stream" and output.name == "stderr":
                found.append(f"{cell.id} writes to stderr: {output.text.strip()[:200]}")
    return found


def write(notebook: Any, path: Path) -> None:
    """Put `notebook` at `path` at once and whole, or not at all."""
    nbformat.validate(notebook)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8", newline="\n") as file:
            nbformat.write(notebook, file)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def run(path: Path) -> list[str]:
    """Run the notebook at `path`, store and stamp it; return its faults, if any, unstored."""
    notebook = set_up(nbformat.read(path, as_version=4))
    try:
        notebook = normalise(execute(notebook))
    except CellExecutionError as error:
        return [f"a cell stopped:\n{error}"]
    notebook.metadata[STAMP] = digest(notebook)
    found = faults(notebook)
    if not found:
        write(notebook, path)
    return found


def check(path: Path) -> list[str]:
    """Return the faults of the notebook at `path` as it is stored."""
    return faults(nbformat.read(path, as_version=4))


def main(arguments: list[str] | None = None) -> int:
    """Run or check the notebooks named, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=("run", "check"))
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    options = parser.parse_args(arguments)
    paths = options.notebooks or sorted(NOTEBOOKS.glob("*.ipynb"))
    action = run if options.action == "run" else check
    status = 0
    for path in paths:
        found = action(path)
        print(f"{path.name}: {'; '.join(found) if found else 'as it should be'}", flush=True)
        status |= bool(found)
    return status


if __name__ == "__main__":
    sys.exit(main())
