"""Build the site a second time, elsewhere and in other circumstances, and compare the two.

::

    python tests/reproducible.py SITE

`make test-site` runs it on the site that it has just built. One build of a commit must be like
another: in another folder, at another time of another time zone, with other hashes of strings.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {"PYTHONHASHSEED": "7", "TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8"}
LEFT = shutil.ignore_patterns(".git", ".venv", "_build", ".*_cache", ".hypothesis", "__pycache__")


def differences(one: Path, other: Path) -> list[str]:
    """Return the files that are in one folder only, or not byte for byte the same in both."""
    files = {
        path.relative_to(folder).as_posix(): None
        for folder in (one, other)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return [
        name
        for name in files
        if not (one / name).is_file()
        or not (other / name).is_file()
        or (one / name).read_bytes() != (other / name).read_bytes()
    ]


def build(folder: Path) -> Path:
    """Copy the sources to `folder`, build the site there, and return where it is."""
    shutil.copytree(ROOT, folder, ignore=LEFT)
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(program), "build", str(folder), "-W", "-n", "--keep-going", "-qq"]
    subprocess.run(command, env=os.environ | ELSEWHERE, check=True, stdout=subprocess.DEVNULL)
    return folder / "_build/html"


def main(arguments: list[str] | None = None) -> int:
    """Compare the built site with another build of it, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("site", type=Path, help="the built site, such as _build/html")
    site = parser.parse_args(arguments).site
    with tempfile.TemporaryDirectory() as folder:
        found = differences(site, build(Path(folder) / "some" / "place"))
    for name in found:
        print(f"not the same in another build: {name}", file=sys.stderr)
    if not found:
        count = sum(path.is_file() for path in site.rglob("*"))
        print(f"Another build of the site has the same {count} files, byte for byte.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
