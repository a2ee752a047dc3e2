"""The notebooks as they are committed: fresh, clean, complete, and in step with the package."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
import torch

import cbam_edu
import cbam_edu.fused
import notebooks as runner
from notebook_cells import CHAPTERS, NOTEBOOKS, ROOT, Exercise, exercises, read, tagged

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
PACKAGE = sorted((ROOT / "cbam_edu").rglob("*.py"))
DEFINED = {  # the heart of the book: which chapter builds which class of the package
    "03_channel_attention": "ChannelAttention",
    "04_spatial_attention": "SpatialAttention",
    "05_cbam": "CBAM",
}
DIRECTIVE = re.compile(
    r"^\s*(```\s*\{|:::|\{[a-z-]+\}`|\([\w-]+\)=$)|[^`]\{[a-z-]+\}`", re.MULTILINE
)
IMAGE = re.compile(r"!\[(.*?)\]\(")
FIGURE = re.compile(r"\*\*Figure (\d+\.\d+)\. .+?\*\*", re.DOTALL)
TAG = re.compile(r"\$\$[^$]*?\\tag\{(.+?)\}\s*\$\$")

each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def test_every_chapter_is_there():
    assert set(CHAPTERS) <= {path.stem for path in PATHS}


@each_notebook
def test_stored_outputs_are_those_of_the_code(path):
    assert runner.check(path) == []


@each_notebook
def test_is_stored_in_its_normal_form(path):
    assert runner.normalise(read(path)) == read(path)


@each_notebook
def test_opens_with_title_objectives_and_the_one_setup_cell(path):
    first, second = read(path).cells[:2]
    assert re.match(r"# \S", first.source)
    assert "After this chapter you can" in first.source
    assert second.metadata.tags == ["setup"]
    assert second.source == runner.SETUP
    assert len(tagged(path, "setup")) == 1


@each_notebook
def test_reads_well_where_there_is_no_site(path):
    markdown = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    found = [match[0] for text in markdown for match in DIRECTIVE.finditer(text)]
    assert found == [], "Colab and GitHub show a directive as it is written"
    assert path.stat().st_size < 1_000_000
    assert "widget" not in json.dumps(read(path).metadata)
    assert "application/vnd.jupyter.widget" not in path.read_text("utf-8")


def test_directives_are_found():
    for text in ("```{note}", "::: tip", "see {doc}`intro`", "{cite}`woo2018cbam`", "(label)="):
        assert DIRECTIVE.search(text), text
    for text in ("```python", "$\\mathbf{M_c}$ and `x`", "`{'a': 1}` is a dict", "<details>"):
        assert not DIRECTIVE.search(text), text


@each_notebook
def test_goes_in_small_steps(path):
    cells = read(path).cells
    assert 40 <= len(cells) <= 80
    lengths = sorted(len(c.source.splitlines()) for c in cells if c.cell_type == "code")
    assert lengths[len(lengths) // 2] <= 15


@each_notebook
def test_figures_have_alternative_text_and_a_caption_that_concludes(path):
    cells = read(path).cells
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        if cell.cell_type == "markdown":
            assert all(IMAGE.findall(cell.source)), "an image lacks alternative text"
        elif any("image/png" in output.get("data", {}) for output in cell.outputs):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt) >= 20, f"{cell.id} needs alternative text that says what is to be seen"
            assert after is not None
            assert FIGURE.match(after.source), f"{cell.id} needs '**Figure N.M. Conclusion.** ...'"


@each_notebook
def test_figures_equations_exercises_and_questions_are_numbered_in_order(path):
    chapter = int(path.stem[:2])
    cells = read(path).cells
    markdown = [cell.source for cell in cells if cell.cell_type == "markdown"]
    drawn = sum(
        "image/png" in output.get("data", {})
        for cell in cells
        for output in cell.get("outputs", [])
    )
    found = {
        "figure": [match[1] for text in markdown if (match := FIGURE.match(text))],
        "equation": [number for text in markdown for number in TAG.findall(text)],
        "exercise": re.findall(r"^### Exercise (\d+\.\d+): ", "\n".join(markdown), re.MULTILINE),
        "question": re.findall(r"^### Question (\d+\.\d+)$", "\n".join(markdown), re.MULTILINE),
    }
    for kind, given in found.items():
        assert given == [f"{chapter}.{n + 1}" for n in range(len(given))], kind
    assert len(found["figure"]) == drawn
    tags = sum(text.count("\\tag{") for text in markdown)
    assert len(found["equation"]) == tags, "a tag stands last in its $$...$$"


@each_notebook
def test_deterministic_cells_are_compared(path):
    compared = [
        cell
        for cell in read(path).cells
        if cell.cell_type == "code" and cell.source.startswith("# NBVAL_CHECK_OUTPUT")
    ]
    assert len(compared) >= 5
    for cell in compared:
        assert cell.outputs, f"{cell.id} has nothing to compare"
        assert not any("image/png" in output.get("data", {}) for output in cell.outputs), cell.id


@pytest.mark.parametrize(
    ("stem", "before", "cell"),
    [
        ("04_spatial_attention", ("cell-002", "cell-026"), "cell-028"),
        ("07_in_a_network", ("cell-002", "cell-058"), "cell-060"),
    ],
)
def test_a_cell_says_the_same_when_it_is_run_again(stem, before, cell, capsys):
    cells = {c.id: c for c in read(NOTEBOOKS / f"{stem}.ipynb").cells}
    names, said = {}, []
    for name in (*before, cell, cell):
        exec(cells[name].source, names)
        said.append(capsys.readouterr().out)
    assert said[-2:] == [cells[cell].outputs[0].text] * 2


@pytest.mark.parametrize("cell", ["cell-016", "cell-054"])
def test_a_stopped_cell_of_chapter_11_changes_no_setting(cell):
    """Else the library works otherwise from then on, and the chapter does not run again."""
    cells = {c.id: c for c in read(NOTEBOOKS / "11_cost.ipynb").cells}

    def stop(*_):
        raise KeyboardInterrupt

    fused, threads = cbam_edu.fused, torch.get_num_threads()
    before = fused.SMALLEST
    names = {"in_turns": stop, "plain_step": None, "PlainCBAM": cbam_edu.CBAM, "ROUNDS": 3}
    names |= {"torch": torch, "cbam_edu": cbam_edu, "fused": fused, "usual": before, "QUICK": True}
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            exec(cells[cell].source, names)
        assert (fused.SMALLEST, torch.get_num_threads()) == (before, 2)
    finally:
        fused.SMALLEST = before
        torch.set_num_threads(threads)


@each_notebook
def test_leaves_no_temporary_folder_behind(path):
    """One of mkdtemp stays for ever; a TemporaryDirectory goes with the kernel."""
    code = "".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
    assert "mkdtemp" not in code


@each_notebook
def test_lets_the_reader_stop_each_cell(path):
    """Whoever presses the stop button raises KeyboardInterrupt, and no cell may swallow it."""
    code = "".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
    assert not re.search(r"except( BaseException| KeyboardInterrupt)?:", code)


# Exercises

FOUND = [(path.stem, exercise) for path in PATHS for exercise in exercises(path)]
each_exercise = pytest.mark.parametrize(
    "exercise",
    [exercise for _, exercise in FOUND],
    ids=[f"{stem}-{exercise.title.split(':')[0].split()[1]}" for stem, exercise in FOUND],
)


@each_notebook
def test_has_exercises_of_stated_difficulty_and_length(path):
    found = exercises(path)
    assert len(found) >= (4 if int(path.stem[:2]) >= 3 else 3)
    for exercise in found:
        assert re.search(r"\((●○○|●●○|●●●), about \d+ minutes?\)$", exercise.title)
        assert f"check.ch{path.stem[:2]}." in exercise.judge_call
    assert len({exercise.title for exercise in found}) == len(found)
    cells = [c for c in read(path).cells if c.cell_type == "code"]
    calls = sum("check.ch" in cell.source for cell in cells)
    assert calls == len(found), "every judged cell is an exercise with a hint and a solution"


@each_notebook
def test_exercises_are_stored_unanswered(path):
    for cell in tagged(path, "exercise"):
        printed = "".join(output.get("text", "") for output in cell.outputs)
        assert printed.startswith("○ Not answered yet"), cell.source


@each_exercise
def test_stub_is_not_answered_yet(exercise, capsys):
    assert not exercise.run(exercise.stub)
    assert capsys.readouterr().out.startswith("○ Not answered yet")


@each_exercise
def test_solution_is_right(exercise, capsys):
    assert exercise.run(exercise.solution)
    assert capsys.readouterr().out == "✓ Right.\n"


def test_exercises_are_read_by_their_conventions(tmp_path):
    path = tmp_path / "x.ipynb"
    v4 = nbformat.v4
    fold = "<details><summary>{}</summary>\n\n{}\n\n</details>"
    stub = v4.new_code_cell(
        "def f(x):\n    ...\n\ncheck.ch02.f(f)", metadata={"tags": ["exercise"]}
    )
    cells = [
        v4.new_markdown_cell("### Exercise 2.1: Largest (●○○, about 5 minutes)\n\nWrite it."),
        stub,
        v4.new_markdown_cell(fold.format("Hint", "Think.")),
        v4.new_markdown_cell(fold.format("Solution", "```python\nf = max\n```")),
    ]
    nbformat.write(v4.new_notebook(cells=cells), path)
    title = "Exercise 2.1: Largest (●○○, about 5 minutes)"
    assert exercises(path) == [
        Exercise(title, "def f(x):\n    ...\n", "f = max\n", "check.ch02.f(f)")
    ]
    for missing, words in ((0, "no heading"), (2, "folded hint"), (3, "folded hint")):
        kept = [cell for i, cell in enumerate(cells) if i != missing]
        nbformat.write(v4.new_notebook(cells=kept), path)
        with pytest.raises(ValueError, match=words):
            exercises(path)


# The package is the source of truth


class Bare(ast.NodeTransformer):
    """Takes docstrings and annotations off."""

    def _without_docstring(self, node):
        self.generic_visit(node)
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node

    def visit_FunctionDef(self, node):
        node.returns = None
        return self._without_docstring(node)

    visit_ClassDef = _without_docstring

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_AnnAssign(self, node):
        self.generic_visit(node)
        return ast.Assign([node.target], node.value) if node.value else None


def definitions(source):
    """Return name -> bare syntax tree of what `source` defines at its top level."""
    found = {}
    for node in Bare().visit(ast.parse(source)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = ast.dump(node)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = ast.dump(node)
    return found


def departures(source):
    """Return the names that `source` defines otherwise than the package does."""
    known = {}
    for path in PACKAGE:
        for name, tree in definitions(path.read_text("utf-8")).items():
            known.setdefault(name, set()).add(tree)
    return [name for name, tree in definitions(source).items() if tree not in known.get(name, ())]


@each_notebook
def test_package_cells_are_the_package(path):
    cells = tagged(path, "package")
    for cell in cells:
        assert definitions(cell.source), f"{cell.id} defines nothing of the package"
        assert departures(cell.source) == []
    defined = [name for cell in cells for name in definitions(cell.source)]
    assert path.stem not in DEFINED or DEFINED[path.stem] in defined


def test_a_changed_package_cell_is_found():
    source = (ROOT / "cbam_edu/attention.py").read_text("utf-8")
    assert {"ChannelAttention", "SpatialAttention", "CBAM", "GATES"} <= set(definitions(source))
    assert departures(source) == []
    undocumented = source.replace('"""The channel gate', '"""Some gate').replace("-> Tensor", "")
    assert undocumented != source
    assert departures(undocumented) == []
    for old, new, name in (
        ("x.amax(1, keepdim=True)", "x.amin(1, keepdim=True)", "SpatialAttention"),
        ("channels // reduction)", "channels // reduction + 1)", "ChannelAttention"),
        ("x = x * self.channel(x)", "x = x + self.channel(x)", "CBAM"),
        ("torch.sigmoid", "torch.tanh", "GATES"),
        ("class CBAM(", "class CBAM2(", "CBAM2"),
    ):
        assert old in source
        assert departures(source.replace(old, new)) == [name]


# The runner


def notebook(*sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells.insert(0, nbformat.v4.new_markdown_cell("# Title"))
    return nbformat.v4.new_notebook(cells=cells)


def written(path: Path, *sources):
    nbformat.write(notebook(*sources), path)
    return path


def test_run_stores_outputs_and_a_stamp_that_notices_a_change(tmp_path):
    path = written(tmp_path / "x.ipynb", "import cbam_edu\nprint(cbam_edu.__file__)", "6 * 7")
    assert runner.main(["run", str(path)]) == 0
    assert runner.main(["check", str(path)]) == 0
    stored = read(path)
    assert stored.cells[1].outputs[0].text.strip() == str(ROOT / "cbam_edu" / "__init__.py")
    assert stored.cells[2].outputs[0].data["text/plain"] == "42"
    stored.cells[0].source = "# Another title"
    assert runner.faults(stored) == []  # prose may change without a run
    stored.cells[2].source = "6 * 8"
    assert runner.faults(stored) == ["its code has changed since it was run"]


def test_run_twice_changes_nothing(tmp_path):
    path = written(tmp_path / "x.ipynb", "print('a')\nprint('b')\nobject()")
    assert runner.run(path) == []
    first = path.read_bytes()
    assert runner.run(path) == []
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("source", "words"),
    [("1 / 0", "ZeroDivisionError"), ("import sys; print('oh', file=sys.stderr)", "to stderr: oh")],
)
def test_run_keeps_the_stored_notebook_when_a_cell_goes_wrong(tmp_path, source, words, capsys):
    path = written(tmp_path / "x.ipynb", source)
    before = path.read_bytes()
    assert runner.main(["run", str(path)]) == 1
    assert words in capsys.readouterr().out
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_check_finds_errors_and_cells_out_of_order():
    stale = notebook("1", "2")
    stale.metadata[runner.STAMP] = runner.digest(stale)
    stale.cells[1].execution_count, stale.cells[2].execution_count = 2, 1
    stale.cells[2].outputs = [
        nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    ]
    order, error = runner.faults(stale)
    assert "not run once each" in order
    assert error.endswith("ends with ValueError: no")


def test_normalise_drops_noise_and_keeps_what_the_book_uses():
    noisy = notebook("1")
    noisy.metadata.update(widgets={"a": 1}, colab={"provenance": []})
    kept = {"tags": ["package"], "mystnb": {"image": {"alt": "A grid"}}}
    noisy.cells[1].metadata.update(kept, execution={"iopub.status.busy": "now"}, colab={})
    stream = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in "ab"]
    value = nbformat.v4.new_output("execute_result", {"text/plain": "<f at 0x7f0123456789>"})
    noisy.cells[1].outputs = [*stream, value]
    clean = runner.normalise(noisy)
    assert set(clean.metadata) == {"kernelspec", "language_info"}
    assert dict(clean.cells[1].metadata) == kept
    assert [cell.id for cell in clean.cells] == ["cell-000", "cell-001"]
    assert clean.cells[1].outputs[0].text == "ab"
    assert clean.cells[1].outputs[1].data["text/plain"] == "<f at 0x...>"


def test_one_setup_cell_goes_into_every_notebook():
    old = notebook("import this", "2")
    old.cells[1].metadata.tags = ["setup"]
    assert [cell.source for cell in runner.set_up(old).cells] == ["# Title", runner.SETUP, "2"]
