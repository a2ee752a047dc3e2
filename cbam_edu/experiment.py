"""Studies, run: arms x seeds, one record each, whatever stops the program."""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import filelock
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.data import ImageSet
from cbam_edu.measure import evaluation_batches
from cbam_edu.models import create_model
from cbam_edu.neighbours import check_name
from cbam_edu.recipe import autocast
from cbam_edu.records import Record, append, code, digest, identity, pack, read, record
from cbam_edu.storage import explained, make_folder
from cbam_edu.studies import Size, Study, find
from cbam_edu.train import DivergenceError, fit


@torch.no_grad()
def answers(model: nn.Module, test: ImageSet, precision: str) -> tuple[Tensor, float]:
    """Return which test images a network names rightly, ``(N,) bool``, and its mean loss."""
    device = next(model.parameters()).device
    model.eval()
    right, losses = [], []
    for x, y in evaluation_batches(test, device):
        with autocast(device, precision):
            logits = model(x)
        losses.append(F.cross_entropy(logits.float(), y, reduction="sum"))
        right.append(logits.argmax(1) == y)
    return torch.cat(right).cpu(), torch.stack(losses).sum().item() / len(test)


def run(
    name: str,
    size: str,
    arm: str,
    seed: int,
    images: tuple[ImageSet, ImageSet],
    *,
    device: torch.device,
    folder: Path,
    compiled: bool = False,
) -> Record:
    """Train one arm with one seed and return its record; `folder` keeps the checkpoint."""
    study, chosen = find(name, size)
    training, test = images
    recipe = study.recipe(arm, chosen)
    recipe = replace(recipe, seed=seed, compile=recipe.compile or compiled)
    with torch.random.fork_rng(devices=[]):  # the weights are drawn on the CPU
        torch.default_generator.manual_seed(seed)
        model = create_model(chosen.model, len(training.classes), **study.options(arm, chosen))
    torch.compiler.reset()  # torch counts how many forms of a class it has compiled, up to 8
    history = fit(model, training, recipe, device=device, out=folder, resume=True, progress=False)
    right, loss = answers(model, test, recipe.precision)
    history[-1] |= {"accuracy": right.double().mean().item(), "test_loss": loss}
    line = record(
        name,
        model,
        recipe,
        history,
        data=training.name,
        images=(len(training), len(test)),
        size=training.size,
        device=device,
    )
    words = ["cbam-edu", "experiment", name, "--size", size, "--arms", arm, "--seeds", str(seed)]
    line |= {
        "size": size,
        "arm": arm,
        "digest": digest(training, test),
        "correct": pack(right),
        "command": shlex.join(words + ["--compile"] * compiled),
    }
    if arm in study.changes:
        line["changes"] = dict(study.changes[arm])
    if study.scores is not None:
        line["scores"] = study.scores(model, test, seed)
    return line


def planned(
    name: str,
    size: str,
    *,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    shard: tuple[int, int] = (1, 1),
) -> list[tuple[str, int]]:
    """Return the runs of a study, (arm, seed), seed after seed, or the i-th of n shares of them."""
    study, chosen = find(name, size)
    for arm in arms or ():
        check_name(f"arm of {name}", arm, list(study.arms))
    for seed in seeds or ():
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise ValueError(f"seeds are integers from 0 to {2**32 - 1}, got {seed!r}")
    mine, shares = shard
    if not 1 <= mine <= shares:
        raise ValueError(f"a shard is i/n with i from 1 to n, such as 1/4; got {mine}/{shares}")
    chances = range(chosen.seeds) if seeds is None else dict.fromkeys(seeds)
    names = study.arms if arms is None else dict.fromkeys(arms)
    return [(arm, seed) for seed in chances for arm in names][mine - 1 :: shares]


def experiment(
    name: str,
    size: str,
    out: str | os.PathLike[str],
    *,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    shard: tuple[int, int] = (1, 1),
    device: torch.device | str = "cpu",
    data_dir: str | os.PathLike[str] | None = None,
    compiled: bool = False,
    tell: Callable[[str], object] = print,
) -> int:
    """Do the runs of a study that are not recorded yet; return how many it did.

    It can be stopped at any moment and started again: finished runs are in the file, an unfinished
    one goes on from its last whole epoch. Several processes, on one machine, may do one study with
    one file at the same time; each run is done by one of them.

    Parameters
    ----------
    name, size : str
        A study of `cbam_edu.studies.STUDIES`, and "full" or "small".
    out : path
        The file of records, one line a run; added to. Checkpoints are kept beside it while runs
        are under way.
    arms, seeds : sequence, optional
        Only these. Default: all arms, and as many seeds as the size has.
    shard : tuple of int
        (i, n) for the i-th, from 1, of n shares of the runs, for machines that share no file.
    device : torch.device or str
        Where to train.
    data_dir : path, optional
        Where CIFAR-10 is. Default: the cache.
    compiled : bool
        Whether to train by `torch.compile`, which changes how it is computed, not what.
    tell : callable
        Is told, in a line, what is going on.

    Raises
    ------
    ValueError
        For an unknown study, size, arm or shard; or where `out` holds records that those to be
        made could not be compared with.
    DivergenceError
        After all other runs, where the loss of some was not finite.
    """
    runs = planned(name, size, arms=arms, seeds=seeds, shard=shard)
    study, chosen = find(name, size)
    images = study.images(chosen, folder=data_dir)
    device, out = torch.device(device), Path(out)
    _check_addable(out, name, size, images, tell)
    about = f"{code()} {chosen} {digest(*images)}"
    work = out.with_name(f".{out.name}.runs")
    mark = hashlib.sha256(about.encode()).hexdigest()[:12]
    done, failed = 0, []
    for arm, seed in runs:
        folder = work / mark / f"{_slug(arm)}-{seed}"
        with _claim(work / f"{_slug(arm)}-{seed}.lock") as mine:
            if not mine:
                continue
            if (arm, seed) in _finished(out):
                shutil.rmtree(folder, ignore_errors=True)  # if it was killed since it was recorded
                continue
            tell(f"{name}, {size}: {arm}, seed {seed}")
            try:
                line = run(
                    name, size, arm, seed, images, device=device, folder=folder, compiled=compiled
                )
            except DivergenceError as error:
                failed.append(f"{arm}, seed {seed}: {error}")
                continue
            append(out, line, work / "append.lock")
            shutil.rmtree(folder, ignore_errors=True)
            done += 1
            tell(f"    {line['accuracy']:.2%}, {line['seconds']:.0f} s")
    _tidy(work, mark)
    if failed:
        raise DivergenceError("; ".join(failed))
    return done


def _slug(arm: str) -> str:
    """Return a name that every file system takes."""
    return "".join(c if c.isalnum() else "_" for c in arm)


def _finished(out: Path) -> set[tuple[str, int]]:
    return {(record["arm"], record["seed"]) for record in read([out])[0]}


def _tidy(work: Path, mark: str) -> None:
    """Remove what is beside the records, unless a run is under way or stopped half-way."""
    with contextlib.ExitStack() as claims:
        free = all(claims.enter_context(_claim(lock)) for lock in work.glob("*-*.lock"))
        if free and not list((work / mark).glob("*")):
            shutil.rmtree(work, ignore_errors=True)


def _check_addable(
    out: Path,
    name: str,
    size: str,
    images: tuple[ImageSet, ImageSet],
    tell: Callable[[str], object],
) -> None:
    """Raise ValueError unless what is in the file can be compared with what will be added."""
    make_folder(out.parent)
    with explained("write", out), open(out, "ab"):
        pass  # before anything is trained
    records, broken = read([out])
    for problem in broken:
        tell(str(problem))
    (study, chosen), (training, test) = find(name, size), images
    about = {
        "study": name,
        "size": size,
        "model": chosen.model,
        "code": code(),
        "data": training.name,
        "digest": digest(*images),
        "train_images": len(training),
        "test_images": len(test),
    }
    configs: dict[str, Any] = {}
    for line in records:
        if (arm := line["arm"]) not in configs:
            configs[arm] = _config(study, chosen, arm, len(training.classes))
        there, wanted = (
            identity(line),
            identity(
                about
                | {"arm": arm, "config": configs[arm], "changes": study.changes.get(arm, {})}
                | {"recipe": asdict(study.recipe(arm, chosen))}
            ),
        )
        if differences := [
            f"{key}: {there.get(key)!r} there, {wanted.get(key)!r} now"
            for key in sorted({**there, **wanted})
            if there.get(key) != wanted.get(key)
        ]:
            raise ValueError(
                f"{out} holds runs (commit {line['commit']}) that the new ones could not be "
                f"compared with ({'; '.join(differences)}); choose another file (--out)"
            )


def _config(study: Study, size: Size, arm: str, classes: int) -> Any:
    """Return an arm's configuration as a record has it, None for an arm that the study lacks."""
    if arm not in study.arms:
        return None
    with torch.device("meta"):
        model = create_model(size.model, classes, **study.options(arm, size))
    return json.loads(json.dumps(vars(model)["config"]))


@contextlib.contextmanager
def _claim(path: Path) -> Iterator[bool]:
    """Say whether a run is this process's alone; the system gives it up if the process dies."""
    lock = filelock.FileLock(path)
    try:
        yield _acquire(lock, path)
    finally:
        lock.release()


def _acquire(lock: filelock.BaseFileLock, path: Path) -> bool:
    """Take a lock, unless another process has it; again, where one has tidied up meanwhile."""
    with explained("lock", path):
        for _ in range(20):
            make_folder(path.parent)
            try:
                lock.acquire(timeout=0.2, poll_interval=0.02)  # it may be tidying up right now
            except filelock.Timeout:
                return False
            except FileNotFoundError:
                continue  # the folder went between the two lines
            if path.exists():
                return True
            lock.release()  # of a file that is there no more, so that it keeps nobody out
    return False
