"""Put before every judge of the book's exercises all that the tests know, and much that is odd.

::

    python tests/attacks/judges.py            # all chapters, about two minutes
    python tests/attacks/judges.py 03 04      # these chapters only

For each judge it prints how many different wrong answers it met, how many right ones and how many
blank ones, then what was judged wrongly. Judged wrongly is: a wrong answer that was accepted, or
refused for another reason than its own; a right one that was refused; a blank one that was not
waited for; an answer of an odd kind at which the judge itself stopped; and any answer after which
the random numbers, the default type or the mode of autograd were not what they had been.
"""

import contextlib
import io
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "book/_ext")]

import recorded  # noqa: E402  (what comes after the line above is found by it)

from judged import Put, answers, different, judges  # noqa: E402
from notebook_cells import CHAPTERS  # noqa: E402

OPENINGS = {"wrong": "✗ Not yet. ", "right": "✓ Right.\n", "blank": "○ Not answered yet"}
STOPPED = "Your code stopped"


class Surprise(Exception):
    """What an odd answer raises."""


def raises(error: BaseException) -> Callable[..., Any]:
    """Return a function that raises `error`."""

    def stop(*args: Any) -> Any:
        raise error

    return stop


def endless(*args: Any) -> Any:
    """Call yourself."""
    return endless(*args)


def always(value: Any) -> Callable[..., Any]:
    """Return a function that returns `value`, whatever it is given."""
    return lambda *args, **kwargs: value


VALUES: tuple[Any, ...] = (
    *(True, 0, 1, -1, 10**30, 0.5, float("nan"), float("inf"), 1j, "", "yes", b"1"),
    *((), (1,), (1, 2), [], [0.5], [[1.0, 2.0], [3.0]], {}, {"a": 1}, {1, 2}, range(3)),
    *(object(), type, len, np.float32(0.5), np.zeros(3), np.zeros((2, 3), object), np.bool_(True)),
    *(torch.tensor(0.5), torch.tensor(1), torch.tensor(True), torch.tensor(float("nan"))),
    *(torch.zeros(0), torch.zeros(1), torch.zeros(2, 3), torch.zeros(2, 3, 4, 5)),
    *(
        torch.zeros(3, dtype=torch.complex64),
        torch.ones(2, 2).to_sparse(),
        torch.zeros(2, 3).half(),
    ),
    *(torch.zeros(2, device="meta"), nn.Identity(), nn.Linear(2, 2), nn.Module(), nn.ReLU),
    *((None, None), [..., 1], {"a": None}, (torch.zeros(2), torch.zeros(3))),
)
CODE: tuple[Callable[..., Any], ...] = (
    *(lambda: None, lambda a: a, lambda a, b: a, lambda a, b, c: b, lambda *a: a),
    *(raises(Surprise("no")), raises(AssertionError()), raises(KeyError("k")), endless),
    *(
        raises(StopIteration()),
        raises(MemoryError()),
        raises(UnicodeDecodeError("u", b"", 0, 1, "")),
    ),
)


def odd() -> Iterator[tuple[str, Any, bool]]:
    """Yield what to call an odd answer, the answer, and whether it may stop by its own doing."""
    for value in VALUES:
        yield f"{value!r}"[:60], value, callable(value)
        yield f"returns {value!r}"[:60], always(value), callable(value)
    for number, code in enumerate(CODE):
        yield f"code {number}", code, True
    yield "yields", lambda *args: (yield args[0]), False


@dataclass
class Tally:
    """What came of the answers put before the judges of one chapter."""

    tried: int = 0
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)


def watched(judge: Callable[[Any], Any], answer: Any) -> tuple[str, list[str], float]:
    """Return what the judge says, what it left changed or raised, and the seconds it took."""
    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)
    before, began, wrong = _state(), time.perf_counter(), []
    said = io.StringIO()
    with contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            judge(answer)
        except BaseException as error:
            wrong.append(f"raised {error!r}")
    seconds = time.perf_counter() - began
    after = _state()
    wrong += [f"{key} changed" for key, value in before.items() if after[key] != value]
    return said.getvalue(), wrong, seconds


def _state() -> dict[str, Any]:
    return {
        "torch's random numbers": bytes(torch.get_rng_state().numpy()),
        "Python's random numbers": random.getstate(),
        "NumPy's random numbers": str(np.random.get_state()),
        "the mode of autograd": torch.is_grad_enabled(),
        "the default type": torch.get_default_dtype(),
        "the number of threads": torch.get_num_threads(),
    }


def put_once_more(put: Iterable[Put]) -> Tally:
    """Judge the answers of the tests under watch."""
    tally = Tally()
    for one in put:
        said, wrong, seconds = watched(one.judge, one.answer)
        if not said.startswith(OPENINGS[one.kind]) or one.reason not in said:
            wrong.append(f"said {said.strip()!r}")
        tally.tried += 1
        tally.slowest = max(tally.slowest, seconds)
        tally.faults += [f"{one.name}, {one.kind}, {one.key[:80]}: {what}" for what in wrong]
    return tally


def put_oddities(names: list[str]) -> Tally:
    """Judge answers of odd kinds under watch: none is right, and no judge may stop at one."""
    tally = Tally()
    for name in names:
        chapter, judge = name.split(".")
        task = getattr(import_module(f"cbam_edu.check.{chapter}"), judge)
        for what, answer, may_stop in odd():
            said, wrong, seconds = watched(task, answer)
            if said.startswith(OPENINGS["right"]):
                wrong.append("accepted")
            elif STOPPED in said and not may_stop:
                wrong.append(f"stopped itself: {said.strip()}")
            elif not said.startswith(tuple(OPENINGS.values())):
                wrong.append(f"said {said!r}")
            tally.tried += 1
            tally.slowest = max(tally.slowest, seconds)
            tally.faults += [f"{name}, {what}: {fault}" for fault in wrong]
    return tally


def main(chosen: list[str]) -> int:
    """Attack the judges of the chosen chapters, or of all; return the number of faults."""
    faults = 0
    for chapter in CHAPTERS:
        if chosen and chapter[:2] not in chosen:
            continue
        began, put, names = time.perf_counter(), answers(chapter), judges(chapter)
        counts = {n: [different(put, n, k) for k in ("wrong", "right", "blank")] for n in names}
        for name, (refused, accepted, blank) in counts.items():
            print(f"{name:28} {refused:3} wrong {accepted:3} right {blank:3} blank")
        tally = put_once_more(put)
        recorded.write(
            "judges",
            f"wrong answers to the exercises of chapter {chapter[:2]}",
            tried=sum(refused for refused, _, _ in counts.values()),
            unit="wrong answers",
            failed=len(tally.faults),
            seconds=time.perf_counter() - began,
            judges=len(names),
            least=min(refused for refused, _, _ in counts.values()),
            right=sum(accepted for _, accepted, _ in counts.values()),
            least_right=min(accepted for _, accepted, _ in counts.values()),
            slowest=round(tally.slowest, 2),
        )
        began, strange = time.perf_counter(), put_oddities(names)
        recorded.write(
            "judges",
            f"answers of odd kinds to the exercises of chapter {chapter[:2]}",
            tried=strange.tried,
            unit="odd answers",
            failed=len(strange.faults),
            seconds=time.perf_counter() - began,
            judges=len(names),
            slowest=round(strange.slowest, 2),
        )
        print(*tally.faults, *strange.faults, sep="\n", flush=True)
        faults += len(tally.faults) + len(strange.faults)
    return faults


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
