"""Set the formulas of a module's docstring as they were typed.

In a docstring a formula of several lines is an indented block, which reStructuredText would take
for a quotation and run together.
"""

from sphinx.application import Sphinx


def literal(lines: list[str]) -> list[str]:
    """Return lines of text in which every indented block is marked to be kept as it is."""
    kept: list[str] = []
    for line in lines:
        last = next((former for former in reversed(kept) if former), "")
        begins = line[:1] == " " and kept and not kept[-1]
        if begins and last[:1] != " " and not last.endswith("::"):
            kept += ["::", ""]
        kept.append(line)
    return kept


def _keep(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Mark the formulas of a module's docstring; elsewhere an indent may mean something else."""
    if what == "module":
        lines[:] = literal(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("autodoc-process-docstring", _keep)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
