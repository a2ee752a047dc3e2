"""What the project says of itself: packages, versions, address, and the README's example."""

import re
import subprocess
import sys
import tomllib
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import address
import cbam_edu
from cbam_edu import CBAM, remove_attention
from notebook_cells import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
LOCK = (ROOT / "requirements.lock").read_text("utf-8")


def text(name):
    return (ROOT / name).read_text("utf-8")


def required():
    """Return name -> bounds of every package that pyproject.toml asks for."""
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    found = [Requirement(line) for lines in lists for line in lines]
    return {r.name: r.specifier for r in found if r.name != PROJECT["name"]}


def test_run_time_packages_have_lower_bounds_only():
    for line in PROJECT["dependencies"]:
        assert [bound.operator for bound in Requirement(line).specifier] == [">="], line


def test_environment_yml_asks_for_what_pyproject_asks_for():
    packages = yaml.safe_load(text("environment.yml"))["dependencies"]
    (by_pip,) = [entry["pip"] for entry in packages if isinstance(entry, dict)]
    assert by_pip[-1] == "--editable ."
    lines = [entry for entry in packages if isinstance(entry, str)] + by_pip[:-1]
    conda = {r.name: r.specifier for r in map(Requirement, lines)}
    python = conda.pop("python")
    assert str(conda.pop("pip")) == ""
    assert conda == {CONDA_NAMES.get(name, name): bounds for name, bounds in required().items()}
    assert python.contains("3.11")
    assert not python.contains("3.10")
    assert PROJECT["requires-python"] == ">=3.11"


def locked():
    """Return name -> versions in the lock; another Python may have another version."""
    versions = defaultdict(list)
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK, re.MULTILINE):
        versions[canonicalize_name(name)].append(version)
    return versions


def test_the_lock_has_every_package_within_its_bounds():
    versions = locked()
    for name, bounds in required().items():
        assert versions[canonicalize_name(name)], f"{name} is not locked: make lock"
        assert all(bounds.contains(v) for v in versions[canonicalize_name(name)]), name


def test_the_lock_is_for_any_machine():
    entries = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.MULTILINE)
    assert entries[0].splitlines()[1] == "#    make lock"
    assert all("--hash=sha256:" in entry for entry in entries[1:])
    assert not re.search(r"://|file:|--find-links|--index|^-e|/home/|/tmp/", LOCK)
    assert re.search(r"^triton==.*sys_platform == 'linux'", LOCK, re.MULTILINE)
    assert locked()["torch"] == ["2.11.0"]
    assert locked()["torchvision"] == ["0.26.0"]  # the build that belongs to that torch


def test_the_version_is_the_same_everywhere():
    version = cbam_edu.__version__
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["version"] == version
    assert f"version = {{{version}}}" in text("README.md")
    newest = re.search(r"^## (\S+) \((\S+)\)$", text("CHANGELOG.md"), re.MULTILINE)
    assert newest
    assert newest.groups() == (version, str(citation["date-released"]))


# The address


def tracked():
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def test_derived_places_follow_the_address():
    stale = {p.name for p, wanted in address.derived().items() if p.read_text("utf-8") != wanted}
    assert stale == set(), "make address"


def test_the_address_stands_in_no_other_place():
    owner, name = address.owner_and_name(address.config()["repository"]["url"])
    ours = {f"github.com/{owner}/{name}", f"{owner}.github.io/{name}"}
    like_ours = re.compile(
        rf"github\.com/{owner}/[\w-]+|github\.com/[\w-]+/{name}\b|[\w-]+\.github\.io/{name}\b"
    )
    known = {ROOT / "_config.yml", *(ROOT / path for path in address.DERIVED)}
    for path in tracked():
        try:
            found = set(like_ours.findall(path.read_text("utf-8")))
        except UnicodeDecodeError:
            continue  # an image or weights
        if path in known:
            assert found, f"{path} has no address to renew"
            assert found <= ours, path
        else:
            assert not found, f"{path} is not among the places that `make address` renews"


def test_a_new_address_reaches_every_form():
    before = "https://github.com/old/place/issues https://old.github.io/place/\ncd place\n"
    owner, name = address.owner_and_name(address.config()["repository"]["url"])
    after = (
        f"https://github.com/{owner}/{name}/issues https://{owner}.github.io/{name}/\ncd {name}\n"
    )
    assert address.derive(before, ("old", "place")) == after


def test_a_stale_place_is_named_and_renewed(tmp_path, monkeypatch, capsys):
    for path in (*address.DERIVED, "_config.yml", "_toc.yml"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text(path), "utf-8")
    monkeypatch.setattr(address, "ROOT", tmp_path)
    address.main(["write"])  # no notebooks here, so no chapters in the README
    assert address.main(["check"]) == 0
    config = text("_config.yml").replace("github.com/cbam-edu/", "github.com/somebody/")
    (tmp_path / "_config.yml").write_text(config, "utf-8")
    capsys.readouterr()
    assert address.main(["check"]) == 1
    assert capsys.readouterr().out.splitlines() == [f"{p}: out of step" for p in address.DERIVED]
    assert address.main(["write"]) == 0
    assert address.main(["check"]) == 0
    assert "https://somebody.github.io/" in (tmp_path / "pyproject.toml").read_text("utf-8")


@pytest.mark.parametrize(
    "url", ["https://gitlab.com/a/b", "github.com/a/b", "https://github.com/a"]
)
def test_an_address_elsewhere_is_refused(url):
    with pytest.raises(ValueError, match=re.escape(repr(url))):
        address.owner_and_name(url)


# The README


def readme_blocks():
    return re.findall(r"^```python\n(.*?)^```$", text("README.md"), re.DOTALL | re.MULTILINE)


def test_the_example_of_the_readme_runs_and_prints_what_it_says(capsys):
    block, _ = readme_blocks()
    assert len([line for line in block.splitlines() if line]) <= 12
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    shape, gates, *layers = capsys.readouterr().out.splitlines()
    assert shape == "torch.Size([2, 64, 32, 32])"
    assert gates == "torch.Size([2, 64, 1, 1]) torch.Size([2, 1, 32, 32])"
    assert "# (2, 64, 1, 1), (2, 1, 32, 32)" in block
    assert len(layers) == 9  # ResNet-20 has three stages of three blocks


def test_the_surgery_of_the_readme_leaves_the_output_as_it_was():
    """Its second example, without the download."""
    _, block = readme_blocks()
    scope = {"__name__": "readme"}
    exec(block.replace('weights="DEFAULT"', ""), scope)
    model, x = scope["model"].eval(), torch.randn(1, 3, 64, 64)
    assert sum(isinstance(m, CBAM) for m in model.modules()) == 16
    with torch.no_grad():
        attended = model(x)
        assert torch.equal(attended, remove_attention(model)(x))


def test_local_links_of_the_front_pages_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"):
        targets = re.findall(r"\]\(([^)#]+?)\)|src=\"(.+?)\"", text(name))
        for target in (a or b for a, b in targets):
            assert "://" in target or (ROOT / target).is_file(), f"{name}: {target}"


# The supply chain

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
DEPLOYS = {"pages: write", "id-token: write"}  # what GitHub asks of a job that publishes a site


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_the_repository_and_names_actions_by_commit(path):
    workflow = yaml.load(path.read_text("utf-8"), yaml.BaseLoader)
    for name, job in workflow["jobs"].items():
        permissions = job.get("permissions", workflow.get("permissions"))
        assert permissions is not None, f"{name} has all that the repository's settings allow"
        allowed = DEPLOYS if name == "deploy" else {"contents: read"}
        assert {f"{what}: {how}" for what, how in permissions.items()} <= allowed
        for step in (step for step in job["steps"] if "uses" in step):
            assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"])
            if step["uses"].startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] == "false"


def test_the_lock_is_audited_when_it_changes_and_every_week():
    workflow = yaml.load(text(".github/workflows/audit.yml"), yaml.BaseLoader)
    assert {"schedule", "push", "pull_request"} <= set(workflow["on"])
    command = workflow["jobs"]["audit"]["steps"][-1]["run"].split()
    assert command[-2:] == ["--requirement", "requirements.lock"]
    assert "--strict" in command  # without it, what cannot be looked up passes in silence


# The wheel


def test_the_wheel_holds_the_package_and_its_data_and_is_small(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.iterdir()
    assert wheel.stat().st_size < 6_000_000
    held = set(zipfile.ZipFile(wheel).namelist())
    endings = {".py", ".png", ".safetensors", ".typed"}
    ours = {
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.is_relative_to(ROOT / "cbam_edu") and path.suffix in endings
    }
    assert "cbam_edu/py.typed" in ours
    assert ours <= held
    assert "cbam_edu/results/logs/neighbours-resnet20-full_none.jsonl" in held  # chapter 8 draws it
    assert {name.split("/")[0] for name in held} == {
        "cbam_edu",
        f"cbam_edu-{cbam_edu.__version__}.dist-info",
    }
    assert any(Path(name).name == "LICENSE" for name in held)
