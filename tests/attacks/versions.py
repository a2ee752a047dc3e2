"""The whole test-suite and all chapters under other versions of Python and of the packages.

::

    python tests/attacks/versions.py [--room FOLDER] [CASE ...]

For each case a clone of this repository and an environment are made in FOLDER, which may be kept
for the next time. "locked-3.11", "-3.12" and "-3.13" install the lock on that Python; "oldest" has
every run-time package and torchvision in the oldest version that pyproject.toml admits, where all
but exporting works; "newest" has all packages in the newest versions that there are. Pythons are
found, or brought, by uv.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from time import monotonic

from packaging.requirements import Requirement
from recorded import ROOT, write

UV = [sys.executable, "-m", "uv"]
CASES = {
    "locked-3.11": ("3.11", "Python 3.11, the lock"),
    "locked-3.12": ("3.12", "Python 3.12, the lock"),
    "locked-3.13": ("3.13", "Python 3.13, the lock"),
    "oldest": ("3.11", "Python 3.11, the oldest run-time packages"),
    "newest": ("3.13", "Python 3.13, the newest packages of all"),
}
COUNTS = re.compile(r"(\d+) (passed|failed|errors?|skipped)\b")


def run(command: list[str], **options: object) -> None:
    """Run a command that has to succeed."""
    subprocess.run(command, check=True, **options)  # type: ignore[call-overload]


def oldest(project: dict[str, object]) -> list[str]:
    """Return a line NAME==VERSION for the lower bound of every run-time package."""
    lines = [*project["dependencies"], *project["optional-dependencies"]["folder"]]  # type: ignore
    bounds = [Requirement(line) for line in lines]
    return [f"{r.name}=={next(iter(r.specifier)).version}" for r in bounds]


def requirements(case: str, clone: Path) -> list[str]:
    """Return uv's options that install a case's packages."""
    if case.startswith("locked"):
        return ["--require-hashes", "--requirement", str(clone / "requirements.lock")]
    text = (clone / "pyproject.toml").read_text("utf-8")
    free = clone.parent / "pyproject.toml"  # without the constraints of [tool.uv]
    free.write_text(re.sub(r"^\[tool\.uv\]\n.*?\n\n", "", text, flags=re.M | re.S), "utf-8")
    bounds = clone.parent / "bounds.txt"
    lower = oldest(tomllib.loads(text)["project"]) if case == "oldest" else []
    if case == "oldest":  # without what the extra for exporting asks of torch
        free.write_text(re.sub(r', "torch>=[^"]*"', "", free.read_text("utf-8")), "utf-8")
    bounds.write_text("\n".join(lower), "utf-8")
    found = clone.parent / "requirements.txt"
    command = [*UV, "pip", "compile", "--quiet", "--all-extras", "--constraint", str(bounds)]
    command += ["--python-version", CASES[case][0], "--output-file", str(found), str(free)]
    (clone.parent / "cbam_edu").mkdir(exist_ok=True)  # where pyproject.toml looks for the version
    (clone.parent / "cbam_edu/__init__.py").write_bytes(
        (clone / "cbam_edu/__init__.py").read_bytes()
    )
    run(command)
    return ["--requirement", str(found)]


def prepared(case: str, room: Path) -> tuple[Path, Path]:
    """Clone and install; return the clone and its Python."""
    clone, environment = room / case / "clone", room / case / "venv"
    run(["rm", "-rf", str(clone)])
    run(["git", "clone", "--quiet", str(ROOT), str(clone)])
    if not environment.exists():
        run([*UV, "venv", "--quiet", "--seed", "--python", CASES[case][0], str(environment)])
    python = environment / "bin/python"
    install = [*UV, "pip", "install", "--quiet", "--python", str(python)]
    run([*install, *requirements(case, clone)])
    run([*install, "--no-deps", "--no-build-isolation", "--editable", str(clone)])
    return clone, python


def counted(output: str) -> dict[str, int]:
    """Return how many passed, failed, were skipped: what pytest says in its last line."""
    lines = [line for line in output.splitlines() if " passed" in line or " error" in line]
    if not lines:
        raise SystemExit(f"pytest has not come to its end:\n{output[-3000:]}")
    return {what.rstrip("s"): int(count) for count, what in COUNTS.findall(lines[-1])}


def attack(case: str, room: Path) -> None:
    """Run everything under one case; record the tests and the chapters, each as they end."""
    clone, python = prepared(case, room)
    home = room / case / "home"
    home.mkdir(exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CBAM_EDU")}
    environment |= {"HOME": str(home), "CBAM_EDU_QUICK": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PATH": f"{python.parent}:{environment['PATH']}"}
    ask = "import platform, torch; print(platform.python_version(), torch.__version__)"
    under = subprocess.check_output([str(python), "-c", ask], text=True).split()
    tests = ["-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "--tb", "short", "tests"]
    for part, unit, command in (
        ("tests", "tests", tests),
        ("chapters", "cells", ["tests/colab.py"]),
    ):
        start = monotonic()
        done = subprocess.run(
            [str(python), *command], cwd=clone, env=environment, capture_output=True, text=True
        )
        output = done.stdout + done.stderr
        (room / case / f"{part}.txt").write_text(output, "utf-8")
        found = counted(output)
        failed = found.get("failed", 0) + found.get("error", 0)
        write(
            "versions",
            f"{CASES[case][1]}: {part}",
            tried=found.get("passed", 0) + failed,
            unit=unit,
            failed=failed,
            seconds=monotonic() - start,
            skipped=found.get("skipped", 0),
            ran_under={"python": under[0], "torch": under[1]},
            wrong=sorted(set(re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.M))),
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], metavar="CASE")
    room = Path(tempfile.gettempdir()) / "cbam_edu-versions"
    parser.add_argument("--room", type=Path, default=room, help="where clones are made")
    given = parser.parse_args()
    for name in given.cases or CASES:
        attack(name, given.room.resolve())
