"""Is what users install what is in the repository? Builds compared, the lock's packages audited.

::

    python tests/attacks/supply.py [--builds 5]

Wheels and source archives are built from clones in other folders, at other times of the day, in
other time zones, under other masks of permissions and other seeds of hashes, and compared byte for
byte. Then pip-audit, which uv brings for this one run, looks up every package of the lock. One that
it cannot look up is counted as such, not as clean.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

from recorded import ROOT, write

PIP_AUDIT = "pip-audit==2.10.1"
ZONES = ("UTC", "Pacific/Auckland", "America/St_Johns")


def built(room: Path, number: int) -> dict[str, str]:
    """Clone and build once more; return the digest of each file by its name."""
    clone, out = room / f"clone {number}", room / f"out{number}"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    environment = os.environ | {"TZ": ZONES[number % len(ZONES)], "PYTHONHASHSEED": str(number)}
    for path in clone.rglob("*"):
        os.utime(path, (1e9 + 1e7 * number,) * 2)
    previous = os.umask((0o022, 0o077, 0o002)[number % 3])
    try:
        command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
        subprocess.run(command, cwd=clone, env=environment, check=True, capture_output=True)
    finally:
        os.umask(previous)
        shutil.rmtree(clone)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}


def builds(count: int) -> None:
    """Record whether all builds are the first one, byte for byte."""
    start = monotonic()
    with tempfile.TemporaryDirectory() as folder:
        first, *others = (built(Path(folder), number) for number in range(count))
    write(
        "supply",
        "wheel and source archive built again elsewhere",
        tried=count,
        unit="builds",
        failed=sum(other != first for other in others),
        seconds=monotonic() - start,
        digests=first,
    )


def audited() -> list[dict[str, Any]]:
    """Return what pip-audit says of each package of the lock."""
    command = [sys.executable, "-m", "uv", "tool", "run", "--quiet", PIP_AUDIT]
    command += ["--require-hashes", "--disable-pip", "--progress-spinner", "off"]
    command += ["--format", "json", "--requirement", str(ROOT / "requirements.lock")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if not done.stdout.startswith("{"):
        raise SystemExit(f"pip-audit has failed: {done.stderr.strip().splitlines()[-1]}")
    packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    return packages


def audit() -> None:
    """Record which packages have known vulnerabilities, and how many could not be looked up."""
    start = monotonic()
    packages = audited()
    known = [package for package in packages if package.get("vulns")]
    write(
        "supply",
        "locked packages looked up among known vulnerabilities",
        tried=sum("skip_reason" not in package for package in packages),
        unit="packages",
        failed=len(known),
        seconds=monotonic() - start,
        not_found=sum("skip_reason" in package for package in packages),
        vulnerable={p["name"]: [v["id"] for v in p["vulns"]] for p in known},
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--builds", type=int, default=5, help="how often to build (5)")
    builds(parser.parse_args().builds)
    audit()
