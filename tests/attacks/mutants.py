"""Mutation testing: the library is broken in one place at a time; some test must notice.

    pip install cosmic-ray
    python tests/attacks/mutants.py plan --work FOLDER
    python tests/attacks/mutants.py run --work FOLDER [FILE ...] [--sample N] [--wide]
    python tests/attacks/mutants.py write --work FOLDER

`plan` copies the tree into FOLDER, runs the tests of `TESTS` once and notes which lines each of
them runs, and how long it takes. `run` goes through the mutants that are not yet decided, so it
can be stopped and started again: a process that has all tests at hand forks a child for each,
where the changed function gets its new code, and the tests that run the changed lines run, the
likeliest and fastest first, until one fails. With ``--anew`` go those mutants that are outside of
functions: the child comes from a process without the library, and imports the changed module in
the place of the real one, in processes of its own too. With ``--wide``, survivors are tried in
that second way, with all tests of their file's own. No file of the tree is changed. Where tests
were written since, `more` notes the new ones, and `run` with ``--again`` tries survivors once more.
`write` makes the record; what was judged of survivors is in ``mutants_judged.yml``.

The kernels are tried in Triton's interpreter: TRITON_INTERPRET=1 before `plan` and `run`.

The mutants are those of cosmic-ray's operators that take no arguments, and each statement of a
function taken out. Left out, and counted, is what cannot be noticed: a change of a type annotation
(in a class or function, nothing reads them), what is no Python, and what is the same program as the
original or as another mutant.
"""

import argparse
import ast
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
JUDGED = Path(__file__).with_name("mutants_judged.yml")
KERNELS = os.environ.get("TRITON_INTERPRET") == "1"
DATA = ["batches", "cifar10", "folder", "mini", "shapes", "sources"]
# The files, and the tests that are a file's own; the others help.
OWN = {
    "cbam_edu/attention.py": ["test_attention.py"],
    "cbam_edu/neighbours.py": ["test_neighbours.py"],
    "cbam_edu/train.py": ["test_train.py", "test_distributed.py"],
    "cbam_edu/data": [*(f"test_data_{name}.py" for name in DATA), "test_hostile.py"],
    "cbam_edu/fused": ["test_fused.py", "test_fused_gpu.py", "kernel_cases.py"],
}
HELP = [
    f"test_{name}.py"
    for name in ["cli", "complexity", "convert", "experiment", "explain", "models"]
]
QUIETLY = ["-q", "-pno:cacheprovider", "-pno:faulthandler", "-cpyproject.toml", "--tb=no"]
TESTS = ["kernel_cases.py"] if KERNELS else [
    *(name for names in OWN.values() for name in names if name != "kernel_cases.py"), *HELP,
]  # fmt: skip
NO_TESTS = ["test_the_kernels_are_right"]  # `kernel_cases.py` in a process of its own
BUDGET = 8.0  # seconds of tests a mutant gets; with --again, and with --wide
AGAIN = 20.0
WIDE = 90.0
MEMORY = 6 << 30  # bytes
WARM = [
    "numpy",
    "torch",
    "torch.nn.functional",
    "torch._dynamo",
    "torch._inductor",
    "torch.testing",
    "hypothesis",
    "hypothesis.strategies",
    "PIL.Image",
    "PIL.ImageOps",
    "torchvision",
    "torchvision.transforms.v2",
    "torchvision.ops",
    "timm.layers.cbam",
    "safetensors.torch",
    "scipy.stats",
    "tqdm",
    "filelock",
    "platformdirs",
    "ptflops",
    "http.server",
    "urllib.request",
    "torch.utils.flop_counter",
    "torch.distributed",
    "torch.nn.parallel",
    "multiprocessing",
    "torch.utils.data",
    "triton.language",
    "coverage",
    "yaml",
]

SITE = '''"""Put a changed module in the place of the real one, in a child process, too."""
import importlib.util, os, sys
if "CBAM_EDU_MUTANT" in os.environ:
    class Mutant:
        module, file, package = os.environ["CBAM_EDU_MUTANT"].split("|")
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            if name == cls.module:
                inside = [cls.package] if cls.package else None
                return importlib.util.spec_from_file_location(
                    name, cls.file, submodule_search_locations=inside
                )
    sys.meta_path.insert(0, Mutant)
'''


# ---- The mutants


@dataclass
class Mutant:
    """A changed file: where, how, and the whole of it."""

    file: str
    operator: str
    line: int
    end: int
    before: str
    after: str
    source: str
    key: str

    @property
    def asis(self) -> str:
        """Say so of what is no mutant: of the file as it is, no test may notice anything."""
        return "as it is" * (self.operator == "None")


def _by_cosmic_ray(source: str) -> Iterator[tuple[str, int, str]]:
    """Yield operator, line and source of each mutant."""
    try:
        from cosmic_ray.ast import ast_nodes, get_ast
        from cosmic_ray.operators.provider import OperatorProvider
    except ImportError as error:
        sys.exit(f"mutants are made by cosmic-ray: pip install cosmic-ray ({error})")
    tree, provider = get_ast(source), OperatorProvider()
    nodes = list(ast_nodes(tree))
    for name in provider:
        if provider[name].arguments():
            continue
        operator = provider[name]()
        for node in nodes:
            for index, (start, _) in enumerate([*operator.mutation_positions(node)]):
                # The tree is changed and mended: to parse it anew takes a hundred times longer.
                kept = [(n, dict(_state(n))) for n in (node.parent, *ast_nodes(node)) if n]
                place = node.parent.children.index(node) if node.parent else None
                try:
                    changed = operator.mutate(node, index)
                except AttributeError:  # cosmic-ray knows no "except module.Error"
                    changed = node
                if changed is not node:
                    node.parent.children[place : place + 1] = [changed] if changed else []
                code = tree.get_code()
                for part, state in kept:
                    for key, value in state.items():
                        setattr(part, key, value)
                yield name, start[0], code


def _state(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an operator may change in a node."""
    if hasattr(node, "children"):
        yield "children", list(node.children)
    else:
        yield "value", node.value


def _by_removal(source: str) -> Iterator[tuple[str, int, str]]:
    """Yield the same, of each statement of a function taken out."""
    lines = [line.encode() for line in source.splitlines(keepends=True)]
    kinds = ast.Assign, ast.AugAssign, ast.Expr, ast.Return, ast.Raise, ast.Assert, ast.Delete
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if not isinstance(node, kinds) or _is_docstring(node):
                continue
            first, last = node.lineno - 1, node.end_lineno - 1
            head, tail = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
            code = b"".join([*lines[:first], head, b"pass", tail, *lines[last + 1 :]])
            yield "RemoveStatement", node.lineno, code.decode()


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


class _Unannotated(ast.NodeTransformer):
    """Take the annotations from functions and variables."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant("")
        return self.generic_visit(node)


def program(source: str) -> str:
    """Return what a source does: its syntax tree without annotations."""
    return ast.dump(_Unannotated().visit(ast.parse(source)))


def mutants(file: str, source: str) -> tuple[list[Mutant], Counter[str]]:
    """Return a file's mutants, and how many were left out by which rule."""
    blocks = [
        (min(m.lineno for m in (n, *getattr(n, "decorator_list", []))), n.end_lineno or 0)
        for n in ast.parse(source).body
    ]
    lines = source.splitlines(keepends=True)
    seen = {(a, program("".join(lines[a - 1 : b]))) for a, b in blocks}
    left = Counter[str]()
    same: Counter[tuple[str, ...]] = Counter()
    found = []
    for name, line, changed in [*_by_cosmic_ray(source), *_by_removal(source)]:
        first, last = next((a, b) for a, b in reversed(blocks) if min(a, line) == a)
        altered = changed.splitlines(keepends=True)
        try:
            what = first, program("".join(altered[first - 1 : last + len(altered) - len(lines)]))
        except SyntaxError:
            left["no Python"] += 1
            continue
        if what in seen:
            left["the same program, or an annotation"] += 1
            continue
        seen.add(what)
        before, after = _difference(source, changed)
        same[name, before, after] += 1
        text = repr((file, name, before, after, same[name, before, after]))
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        end = line + before.count("\n")
        found.append(Mutant(file, name, line, end, before, after, changed, key))
    return found, left


def _difference(source: str, changed: str) -> tuple[str, str]:
    """Return the lines that differ, before and after."""
    old, new = source.splitlines(), changed.splitlines()
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    changes = [b for b in blocks if b[0] != "equal"]
    (_, i, _, k, _), (_, _, j, _, m) = changes[0], changes[-1]
    before, after = ("\n".join(line.strip() for line in part) for part in (old[i:j], new[k:m]))
    return before, after


# ---- What a child process does


class Chosen:
    """A plugin of pytest: which tests run, in what order, how long each may take, which failed."""

    def __init__(self, wanted: dict[str, float] | None, report: Path):
        self.wanted, self.report, self.seconds = wanted, report, defaultdict[str, float](float)
        self.failed: list[str] = []
        self.coverage: Any = None
        self.known: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [i for i in items if not any(name in i.nodeid for name in NO_TESTS)]
        items[:] = [i for i in items if i.nodeid not in self.known]
        if self.wanted is not None:
            place = {name: rank for rank, name in enumerate(self.wanted)}
            items[:] = sorted(
                (i for i in items if i.nodeid in place), key=lambda i: place[i.nodeid]
            )

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self.wanted is not None:
            limit(self.wanted[nodeid])
        if self.coverage:
            self.coverage.switch_context(nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self.coverage:
            self.coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)
            if self.wanted is not None:
                self.report.write_text(report.nodeid)


def limit(usual: float) -> None:
    """End this process if what comes takes much longer than usual, by its own clock or ours."""
    signal.setitimer(signal.ITIMER_PROF, 4 + 6 * usual)
    signal.setitimer(signal.ITIMER_REAL, 20 + 15 * usual)


def module_name(file: str) -> str:
    """Return the module that a file is: "cbam_edu/data/__init__.py" is cbam_edu.data."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def settle(work: Path) -> None:
    """Make a child process one that can do no harm, and that says nothing."""
    os.setpgid(0, 0)
    tree, home = work / "tree", work / "home"
    os.chdir(tree)
    sys.path[:0] = [str(tree)]
    os.environ.update(
        HOME=str(home), XDG_CACHE_HOME=str(home), CBAM_EDU_DATA=str(home / "data"),
        PYTHONPATH=os.pathsep.join([str(work / "site"), str(tree)]),
    )  # fmt: skip
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    socket.getaddrinfo = _only_here(socket.getaddrinfo)  # a mutant shall not reach the network
    from hypothesis import Phase, settings

    phases = [Phase.explicit, Phase.generate]  # a failure is enough: it need not be made small
    settings.register_profile("m", database=None, deadline=None, derandomize=True, phases=phases)
    settings.load_profile("m")


def _only_here(look_up: Any) -> Any:
    def checked(host: Any, *args: Any, **options: Any) -> Any:
        if host not in (None, "localhost", "127.0.0.1", "::1", ""):
            raise OSError(f"{host} is not this machine")
        return look_up(host, *args, **options)

    return checked


def test(files: list[str], plugin: Chosen) -> int:
    """Run pytest's files in this process; return its exit status."""
    first = ["-x"] * (plugin.wanted is not None)
    return int(
        pytest.main([*QUIETLY, *first, *(f"tests/{name}" for name in files)], plugins=[plugin])
    )


def forked(work: Path, action: Any) -> int:
    """Run `action` in a child process of ours and return its number."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            settle(work)
            status = action()
        finally:
            os._exit(status)
    return pid


def warm_up() -> None:
    """Import what tests and library import, but the library."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in WARM:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    assert "cbam_edu" not in sys.modules


# ---- Which tests run which lines


def copy_tree(work: Path) -> None:
    """Put a copy of the files that git knows, and of new tests, into the folder."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shutil.rmtree(work / "tree", ignore_errors=True)
    for name in names.split("\n"):
        if (
            name.startswith(("cbam_edu/", "tests/", "book/", "pyproject"))
            and (ROOT / name).exists()
        ):
            target = work / "tree" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    for folder in ("site", "home", "changed"):
        (work / folder).mkdir(exist_ok=True)
    (work / "site/sitecustomize.py").write_text(SITE)


def watch(name: str, work: Path, result: Path) -> int:
    """Run one file's tests with coverage; write what each took and which lines it ran."""
    from coverage import Coverage

    package = work / "tree/cbam_edu"
    plugin = Chosen(None, result)
    known = json.loads(result.read_text())["tests"] if result.exists() else {}
    plugin.known = set(known)
    plugin.coverage = coverage = Coverage(data_file=None, source=[str(package)], config_file=False)
    coverage.start()
    status = test([name], plugin)
    coverage.stop()
    data = coverage.get_data()
    lines: dict[str, Any] = defaultdict(dict)
    for file in data.measured_files():
        short = Path(file).relative_to(work / "tree").as_posix()
        for line, contexts in data.contexts_by_lineno(file).items():
            for context in filter(None, contexts):
                lines[context].setdefault(short, []).append(line)
    tests = {
        node: {"seconds": seconds, "lines": lines.get(node, {}), "new": bool(known)}
        for node, seconds in plugin.seconds.items()
        if node not in plugin.failed
    }
    result.write_text(json.dumps({"tests": known | tests, "failed": plugin.failed}))
    return status


def plan(work: Path, only: list[str], more: bool, processes: int) -> None:
    """Run every test once, `processes` files at a time; or only those that are new."""
    if more:
        for path in (ROOT / "tests").rglob("*.py"):
            shutil.copy(path, work / "tree" / path.relative_to(ROOT))
    else:
        copy_tree(work)
        for name in only or TESTS:
            (work / f"plan_{name}.json").unlink(missing_ok=True)
    warm_up()
    waiting, running = [*(only or TESTS)], dict[int, str]()
    while waiting or running:
        while waiting and len(running) < processes:
            name = waiting.pop(0)
            result = work / f"plan_{name}.json"
            running[forked(work, lambda n=name, r=result: watch(n, work, r))] = name
        pid, status = os.wait()
        name = running.pop(pid)
        found = json.loads((work / f"plan_{name}.json").read_text())
        seconds = sum(test["seconds"] for test in found["tests"].values())
        print(f"{name}: {len(found['tests'])} tests, {seconds:.0f} s, status {status}", flush=True)
        for failed in found["failed"]:
            print(f"  left out, for it fails there: {failed}")


class Plan:
    """Which tests to run for which mutant."""

    def __init__(self, work: Path):
        self.tests: dict[str, dict[str, Any]] = {}
        for name in TESTS:
            if (path := work / f"plan_{name}.json").exists():
                self.tests |= json.loads(path.read_text())["tests"]
        self.kills: Counter[tuple[str, int, str]] = Counter()
        self.trees: dict[str, ast.Module] = {}
        self.work, self.budget = work, BUDGET

    def around(self, mutant: Mutant) -> tuple[set[int], bool]:
        """Return the lines of the statement or function whose tests count, or of the file."""
        if mutant.file not in self.trees:
            text = (self.work / "tree" / mutant.file).read_text("utf-8")
            self.trees[mutant.file] = ast.parse(text)
        best: ast.stmt | None = None
        for node in ast.walk(self.trees[mutant.file]):
            if isinstance(node, ast.stmt) and node.lineno <= mutant.line <= (node.end_lineno or 0):
                inner = best is None or node.lineno >= best.lineno
                best = node if inner else best
        inside = any(
            isinstance(node, ast.FunctionDef) and node.body[0].lineno <= mutant.line
            <= (node.end_lineno or 0)
            for node in ast.walk(self.trees[mutant.file])
        )  # fmt: skip
        if best is None or not (inside or isinstance(best, ast.FunctionDef)):
            return set(), False
        if isinstance(best, ast.FunctionDef):
            return set(range(best.body[0].lineno, (best.end_lineno or 0) + 1)), True
        body = getattr(best, "body", None)
        end = body[0].lineno - 1 if body else (best.end_lineno or 0)
        return set(range(best.lineno, max(end, best.lineno) + 1)), True

    def choose(self, mutant: Mutant, wide: bool) -> tuple[dict[str, float], bool]:
        """Return the tests for a mutant, in their order, and whether a test runs its lines.

        With each test are the seconds that it usually takes.
        """
        lines, inside = self.around(mutant)
        own = next(names for file, names in OWN.items() if mutant.file.startswith(file))
        ranked = []
        if not any(
            lines.intersection(t["lines"].get(mutant.file, [])) for t in self.tests.values()
        ):
            inside = False  # what runs only as the module is imported
        for name, test in self.tests.items():
            mine = name.split("/")[1].split("::")[0] in own
            ran = test["lines"].get(mutant.file, [])
            if (lines.intersection(ran) if inside else ran) or (wide and mine):
                kills = self.kills[mutant.file, mutant.line, name]
                ranked.append((-kills, not test.get("new"), not mine, test["seconds"], name))
        chosen, total = {}, 0.0
        for *_, seconds, name in sorted(ranked):
            if chosen and total + seconds > (WIDE if wide else self.budget):
                continue
            chosen[name] = seconds
            total += seconds
        return chosen, inside


# ---- Running


def attempt(mutant: Mutant, wanted: dict[str, float], work: Path) -> int:
    """Put the mutant in the place of its module, in this process, and run its tests."""
    package = work / "tree" / Path(mutant.file).parent if "__init__" in mutant.file else ""
    changed = work / "changed" / f"{mutant.key}.py"
    changed.write_text(mutant.source)
    os.environ["CBAM_EDU_MUTANT"] = f"{module_name(mutant.file)}|{changed}|{package}"
    exec(compile(SITE, "sitecustomize.py", "exec"), {})
    sys.dont_write_bytecode = True
    limit(10.0)
    files = dict.fromkeys(name.split("/")[1].split("::")[0] for name in wanted)
    return test([*files], Chosen(wanted, changed.with_suffix(".killer")))


def function_of(mutant: Mutant, tree: ast.Module) -> str | None:
    """Return the qualified name of the outermost function whose body the mutant changes."""
    open_: list[tuple[str, ast.AST]] = [("", tree)]
    while open_:
        prefix, node = open_.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                open_.append((f"{prefix}{child.name}.", child))
            elif isinstance(child, ast.FunctionDef):
                jit = any("jit" in ast.dump(d) for d in child.decorator_list)
                if child.body[0].lineno <= mutant.line <= (child.end_lineno or 0) and not jit:
                    return prefix + child.name
    return None


def replace_code(mutant: Mutant, function: str) -> bool:
    """Give a function of the library, in this process, the mutant's code; say whether it could."""
    found: Any = sys.modules[module_name(mutant.file)]
    for name in function.split("."):
        found = vars(found).get(name)
    while not hasattr(found, "__code__"):
        inner = [getattr(found, n, None) for n in ("fget", "__func__", "__wrapped__")]
        found = next((f for f in inner if f is not None), None)
        if found is None:
            return False
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    old, codes = found.__code__, [compile(mutant.source, found.__code__.co_filename, "exec")]
    while codes:
        code = codes.pop()
        if code.co_qualname == function == old.co_qualname:
            if code.co_freevars != old.co_freevars:
                return False
            found.__code__ = code
            return True
        codes.extend(c for c in code.co_consts if isinstance(c, type(code)))
    return False


class Loop:
    """A plugin of pytest which, when all tests are at hand, runs mutants instead of tests."""

    def __init__(self, action: Any):
        self.action, self.session, self.chosen = action, None, None

    def pytest_runtestloop(self, session: Any) -> bool:
        self.session = session
        self.action(self)
        return True

    def attempt(self, mutant: Mutant, function: str, wanted: dict[str, float], work: Path) -> int:
        """Run a mutant's tests in this process, which is a child."""
        if not mutant.asis and not replace_code(mutant, function):
            return 77
        sys.dont_write_bytecode = True
        plugin = Chosen(wanted, work / "changed" / f"{mutant.key}.killer")
        items = {item.nodeid: item for item in self.session.items}
        chosen = [items[name] for name in wanted if name in items]
        self.session.config.pluginmanager.register(plugin)
        for item, following in zip(chosen, [*chosen[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if plugin.failed:
                return 1
        return 0


def outcome(status: int) -> str:
    """Say what became of a mutant from its child's status."""
    if os.WIFSIGNALED(status):
        late = os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM)
        return "timed out" if late else "killed"
    return {0: "survived", 5: "survived"}.get(os.WEXITSTATUS(status), "killed")


class Runner:
    """Go through mutants with some child processes at a time, and write down each."""

    def __init__(self, work: Path, processes: int, way: str, loop: Loop | None):
        self.work, self.processes, self.way, self.loop = work, processes, way, loop
        self.plan = Plan(work)
        self.running: dict[int, tuple[Mutant, float, dict[str, float]]] = {}
        self.counts: Counter[str] = Counter()

    def start(self, mutant: Mutant) -> None:
        wanted, inside = self.plan.choose(mutant, self.way == "wide")
        if self.loop and not inside and not mutant.asis:
            self.counts["left to --anew"] += 1
            return
        if not wanted:
            self.note(mutant, "survived", "", 0.0, wanted)
            return
        function = function_of(mutant, self.plan.trees[mutant.file]) or mutant.asis
        if self.loop and function:
            way = lambda: self.loop.attempt(mutant, function, wanted, self.work)  # noqa: E731
        elif self.loop:
            return
        else:
            way = lambda: attempt(mutant, wanted, self.work)  # noqa: E731
        pid = forked(self.work, way)
        self.running[pid] = mutant, time.monotonic(), wanted

    def end_one(self) -> None:
        pid, status = os.wait()
        mutant, began, wanted = self.running.pop(pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it may have left running
        changed = self.work / "changed" / f"{mutant.key}.py"
        report = changed.with_suffix(".killer")
        killer = report.read_text() if report.exists() else ""
        for path in (changed, report):
            path.unlink(missing_ok=True)
        if not (os.WIFEXITED(status) and os.WEXITSTATUS(status) == 77):
            self.note(mutant, outcome(status), killer, time.monotonic() - began, wanted)
            return
        self.counts["left to --anew"] += 1

    def note(
        self, mutant: Mutant, result: str, killer: str, seconds: float, wanted: dict[str, float]
    ) -> None:
        self.counts[result] += 1
        if killer:
            self.plan.kills[mutant.file, mutant.line, killer] += 1
        line = {k: v for k, v in asdict(mutant).items() if k != "source"}
        line |= {"outcome": result, "killer": killer, "seconds": round(seconds, 2)}
        line |= {"tests": len(wanted), "way": self.way, "kernels": KERNELS}
        with open(self.work / "results.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def run(self, chosen: list[Mutant]) -> None:
        for number, mutant in enumerate(chosen, 1):
            self.start(mutant)
            while len(self.running) >= self.processes:
                self.end_one()
            if number % 50 == 0:
                print(f"  {number} of {len(chosen)}: {dict(self.counts)}", flush=True)
        while self.running:
            self.end_one()


def decided(work: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what is written down of each mutant, by its key."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    path = work / "results.jsonl"
    for text in path.read_text("utf-8").splitlines() if path.exists() else ():
        line = json.loads(text)
        if not line["tests"]:
            continue
        found[line["key"]].append(line)
    return found


def files_of(names: list[str]) -> list[str]:
    """Return the files of the library that are meant."""
    known = [
        path.relative_to(ROOT).as_posix()
        for name in OWN
        for path in ([ROOT / name] if name.endswith(".py") else sorted((ROOT / name).glob("*.py")))
    ]
    return [file for file in known if not names or any(name in file for name in names)]


def sampled(found: list[Mutant], size: int | None) -> list[Mutant]:
    """Return a random part of a file's mutants, always the same."""
    if size is None:
        return found
    order = list(range(len(found)))
    random.Random(8).shuffle(order)  # of which a greater size takes more
    chosen = set(order[:size])
    return [mutant for number, mutant in enumerate(found) if number in chosen]


def run(
    work: Path, names: list[str], size: int | None, way: str, again: bool, processes: int
) -> None:
    """Run the mutants that are not decided yet."""
    warm_up()
    if way:
        go_through(work, names, size, way, again, processes, None)
        return
    os.chdir(work / "tree")
    sys.path[:0] = [str(work / "tree")]
    loop = Loop(lambda loop: go_through(work, names, size, way, again, processes, loop))
    files = [f"tests/{name}" for name in TESTS if (work / f"plan_{name}.json").exists()]
    pytest.main([*QUIETLY, "--capture=no", *files], plugins=[loop])


def go_through(
    work: Path,
    names: list[str],
    size: int | None,
    way: str,
    again: bool,
    processes: int,
    loop: Loop | None,
) -> None:
    """Run each file's mutants."""
    before = decided(work)
    for file in files_of(names):
        source = (work / "tree" / file).read_text("utf-8")
        found, left = mutants(file, source)
        tree, todo = ast.parse(source), []
        for mutant in sampled(found, size):
            lines = before[mutant.key]
            if any(line["outcome"] != "survived" for line in lines):
                continue
            tried = any((line["way"], line["kernels"]) == (way, KERNELS) for line in lines)
            due = tried if again else not tried and bool(lines) == (way == "wide")
            if due and (way or function_of(mutant, tree)):
                todo.append(mutant)
        todo.append(Mutant(file, "None", 1, 1, "", "", source, f"{module_name(file)}-as-it-is"))
        print(f"{file}: {len(found)} mutants, {len(todo)} to try; {dict(left)}", flush=True)
        runner = Runner(work, processes, way, loop)
        runner.plan.budget = AGAIN if again else BUDGET
        runner.run(todo)
        print(f"  {dict(runner.counts)}", flush=True)


# ---- What came of it


def judgements() -> dict[str, list[dict[str, Any]]]:
    """Return what was judged of survivors: of each file, line before, lines after, why."""
    import yaml

    return yaml.safe_load(JUDGED.read_text("utf-8")) if JUDGED.exists() else {}


def judged(line: dict[str, Any], known: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a survivor with what was judged of it."""
    found = {"equivalent": False, "why": ""}
    for entry in known:
        if entry["before"] == line["before"] and line["after"] in entry.get(
            "after", [line["after"]]
        ):
            found = entry
    kept = {key: line[key] for key in ("line", "before", "after")}
    return {**kept, "equivalent": found["equivalent"], "judgement": found["why"]}


def write(work: Path) -> None:
    """Make a record of each file."""
    from recorded import write as record

    sys.argv[1:] = ["write", "--work", "FOLDER"]  # wherever it lay
    known = judgements()
    by_file: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)
    for lines in decided(work).values():
        by_file[lines[0]["file"]].append(lines)
    for file, tried in by_file.items():
        plain = [lines for lines in tried if lines[0]["operator"] == "None"]
        for lines in plain:
            assert {line["outcome"] for line in lines} == {"survived"}, f"{file} fails as it is"
        found, left = mutants(file, (work / "tree" / file).read_text("utf-8"))
        present = {mutant.key for mutant in found}
        tried = [lines for lines in tried if lines[0]["key"] in present]
        counts, survivors = Counter[str](), []
        for lines in tried:
            ends = {line["outcome"] for line in lines}
            end = next(end for end in ("killed", "timed out", "survived") if end in ends)
            counts[end] += 1
            if end == "survived":
                survivors.append(judged(lines[-1], known.get(file, [])))
        survivors.sort(key=lambda line: line["line"])
        equivalent = sum(line["equivalent"] for line in survivors)
        record(
            "mutants",
            f"mutants of {file.removeprefix('cbam_edu/')}",
            tried=len(tried),
            unit="mutants",
            failed=len(survivors) - equivalent,
            seconds=sum(line["seconds"] for lines in tried for line in lines),
            there_are=len(found),
            killed=counts["killed"],
            timed_out=counts["timed out"],
            equivalent=equivalent,
            left_out=dict(left),
            survivors=survivors,
        )
        rest = [line for line in survivors if not line["equivalent"]]
        share = 1 - len(rest) / max(1, len(tried) - equivalent)
        print(f"{file}: {len(tried)} of {len(found)}, {dict(counts)}, {equivalent} equivalent,")
        print(f"  {share:.1%} of the others noticed")
        for line in survivors:
            if not line["judgement"]:
                print(f"  {line['line']}: {line['before']}\n    -> {line['after']}")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["plan", "more", "run", "write"])
    parser.add_argument("names", nargs="*", help="files of the library, or with plan, of tests")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sample", type=int)
    for way in ("anew", "wide"):
        parser.add_argument(f"--{way}", dest="way", action="store_const", const=way, default="")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ.update(
        OMP_NUM_THREADS="1", CBAM_EDU_QUICK="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
        HYPOTHESIS_STORAGE_DIRECTORY=str(work / "home"),
    )  # fmt: skip
    if args.what in ("plan", "more"):
        plan(work, args.names, args.what == "more", args.processes)
    elif args.what == "write":
        write(work)
    else:
        run(work, args.names, args.sample, args.way, args.again, args.processes)


if __name__ == "__main__":
    main()
