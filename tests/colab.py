"""Run the chapters as Colab does: from an empty folder, of this package nothing but a wheel.

::

    python tests/colab.py [NOTEBOOK ...]

A room of its own is made: a Python that has everything this one has but ``cbam_edu``, a wheel, and
for each chapter a folder with nothing else in it. The chapters' setup cell installs the package;
then nbval runs them all. Without a name, every notebook is meant.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import notebooks as runner  # noqa: E402  (found by the line above)

WHERE = "import cbam_edu; print(cbam_edu.__file__)"


def make_python(room: Path) -> Path:
    """Make an environment in `room` with all that is installed here but cbam_edu; return Python."""
    venv.create(room, with_pip=False, symlinks=True)
    python = next(room.glob("[bS]*/python*"))
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    there = Path(subprocess.check_output([python, "-c", ask], text=True).strip())
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "cbam_edu" not in entry.name:
            (there / entry.name).symlink_to(entry)
    return python


def outside(room: Path) -> dict[str, str]:
    """Return the environment of programs that know the wheel in `room`, but no repository."""
    ours = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # Torch's word on that release of Python, which pyproject.toml lets pass as well.
    quiet = "ignore:Guards may run slower on Python 3.13.0:RuntimeWarning"
    return ours | {"PIP_FIND_LINKS": str(room), "PIP_NO_INDEX": "1", "PYTHONWARNINGS": quiet}


def main(names: list[str]) -> int:
    """Run the chapters; return nbval's exit status."""
    paths = [Path(name).resolve() for name in names] or sorted(NOTEBOOKS.glob("*.ipynb"))
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder).resolve()
        python = make_python(room / "env")
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(room)]
        subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
        (room / "chapters").mkdir()
        environment = outside(room)
        subprocess.run([python, "-c", runner.SETUP], cwd=room, env=environment, check=True)
        found = subprocess.check_output(
            [python, "-c", WHERE], cwd=room, env=environment, text=True
        ).strip()
        if not Path(found).is_relative_to(room):
            raise SystemExit(f"the setup cell has not installed the wheel: cbam_edu is {found}")
        for path in paths:
            (room / "chapters" / path.stem).mkdir()
            shutil.copy(path, room / "chapters" / path.stem)
        nbval = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "300"]
        command = [
            python,
            "-m",
            "pytest",
            "-n",
            "2",
            "--dist",
            "loadfile",
            "-p",
            "no:cacheprovider",
        ]
        done = subprocess.run([*command, *nbval, "chapters"], cwd=room, env=environment)
        left = sorted(
            str(file.relative_to(room / "chapters"))
            for file in (room / "chapters").rglob("*")
            if file.is_file() and file.suffix != ".ipynb"
        )
    if left:
        print(f"the chapters have left files in the reader's folder: {', '.join(left)}")
    return done.returncode or int(bool(left))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
