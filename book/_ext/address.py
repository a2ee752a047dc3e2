"""Carry the repository's address from ``_config.yml`` to every place that is derived from it.

::

    python book/_ext/address.py write    # renew the derived places
    python book/_ext/address.py check    # exit 1 and say which are out of step

The README's table of chapters, with its links to Colab, is such a place; it also follows the
table of contents and the notebooks' own titles.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DERIVED = (
    "README.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "pyproject.toml",
    "book/how_to_read.md",
)
FORMER = re.compile(
    r'^repository-code: "?https://github\.com/([\w.-]+)/([\w.-]+?)"?$', re.MULTILINE
)
TABLE = re.compile(r"(<!-- chapters: .*? -->\n).*?(<!-- end of chapters -->)", re.DOTALL)
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


def config() -> dict[str, Any]:
    """Return the book's configuration."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    return loaded


def owner_and_name(url: str) -> tuple[str, str]:
    """Return the two parts of the address of a repository on GitHub.

    Raises
    ------
    ValueError
        If `url` is no such address.
    """
    match = re.fullmatch(r"https://github\.com/([\w.-]+)/([\w.-]+)", url)
    if not match:
        raise ValueError(
            f"repository.url in _config.yml must be https://github.com/OWNER/NAME, not {url!r}"
        )
    return match[1], match[2]


def site() -> str:
    """Return the address at which GitHub Pages serves this book, with its closing slash."""
    owner, name = owner_and_name(config()["repository"]["url"])
    host = f"https://{owner}.github.io/"
    return host if name.lower() == f"{owner}.github.io".lower() else f"{host}{name}/"


def colab(path: str) -> str:
    """Return the address at which Colab opens the notebook at `path`, as the site's button does."""
    settings = config()
    owner, name = owner_and_name(settings["repository"]["url"])
    site, branch = settings["launch_buttons"]["colab_url"], settings["repository"]["branch"]
    return f"{site}/github/{owner}/{name}/blob/{branch}/{path}"


def contents() -> list[str]:
    """Return the pages of the table of contents, in order, without their endings."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"], *chapters]


def title(path: Path) -> str:
    """Return the heading that the notebook at `path` begins with."""
    first = json.loads(path.read_text("utf-8"))["cells"][0]
    match = re.match(r"# (.+)", "".join(first["source"]))
    if not match:
        raise ValueError(f"{path.name} does not begin with a heading '# ...'")
    return match[1].strip()


def chapters() -> str:
    """Return the README's table of chapters."""
    lines = ["| chapter | run it |", "|---|---|"]
    for page in contents():
        path = ROOT / f"{page}.ipynb"
        if page.startswith("notebooks/") and path.exists():
            badge = f"[![Open in Colab]({BADGE})]({colab(f'{page}.ipynb')})"
            lines.append(f"| [{title(path)}]({page}.ipynb) | {badge} |")
    return "\n".join(lines) + "\n"


def derive(text: str, former: tuple[str, str]) -> str:
    """Return `text` with the address of `_config.yml` in place of the `former` one."""
    owner, name = owner_and_name(config()["repository"]["url"])
    old_owner, old_name = former
    text = text.replace(f"github.com/{old_owner}/{old_name}", f"github.com/{owner}/{name}")
    text = text.replace(f"{old_owner}.github.io/{old_name}", f"{owner}.github.io/{name}")
    text = re.sub(rf"^cd {re.escape(old_name)}$", f"cd {name}", text, flags=re.MULTILINE)
    return TABLE.sub(lambda match: match[1] + chapters() + match[2], text)


def derived() -> dict[Path, str]:
    """Return what each derived file should hold."""
    match = FORMER.search((ROOT / "CITATION.cff").read_text("utf-8"))
    if not match:
        raise ValueError("CITATION.cff lacks its line 'repository-code: https://github.com/...'")
    former = match[1], match[2]
    paths = [ROOT / name for name in DERIVED]
    return {path: derive(path.read_text("utf-8"), former) for path in paths}


def main(arguments: list[str] | None = None) -> int:
    """Write or check the derived places, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=("write", "check"))
    action = parser.parse_args(arguments).action
    stale = {p: text for p, text in derived().items() if p.read_text("utf-8") != text}
    for path, text in stale.items():
        if action == "write":
            path.write_text(text, encoding="utf-8", newline="\n")
        print(f"{path.relative_to(ROOT)}: {'renewed' if action == 'write' else 'out of step'}")
    return int(bool(stale) and action == "check")


if __name__ == "__main__":
    sys.exit(main())
