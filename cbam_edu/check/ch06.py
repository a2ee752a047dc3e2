"""Judges of chapter 06, "CBAM line by line"."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_edu.attention import CBAM
from cbam_edu.check.mistakes import known
from cbam_edu.check.verdict import Wrong, close, judge, number, shape, written

Answer = Callable[..., Any]


def _random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


# ---- 6.1


def _convolutions(channels: int, hidden: int, bias: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1, bias=bias),
        nn.ReLU(),
        nn.Conv2d(hidden, channels, 1, bias=bias),
    )


def _tensor_fits(key: str, value: Any, wanted: Tensor) -> None:
    """Say what is wrong with the shape of one converted tensor."""
    if value is None or value is ...:
        raise NotImplementedError
    if not isinstance(value, Tensor):
        raise Wrong(f"{key!r} must name a tensor, but names a {type(value).__name__}.")
    why = ""
    if wanted.ndim == 4 and value.ndim == 2:
        why = "A convolution's weight is (out, in, height, width): two axes are missing."
    elif wanted.ndim == 4 and value.shape == wanted.transpose(0, 1).shape:
        why = "You swapped the first two axes. A Linear stores (out, in), as a convolution does."
    elif wanted.ndim == 1 and value.ndim > 1:
        why = "A bias is one number for each output, in a Linear as in a convolution."
    shape(value, tuple(wanted.shape), key, why)


@judge
def to_convolutions(answer: Callable[[dict[str, Tensor]], Any]) -> None:
    """Judge `answer(state)`: the weights of two Linear layers as those of 1 x 1 convolutions."""
    for seed, (channels, hidden, bias) in enumerate(((16, 4, True), (6, 6, True), (8, 1, False))):
        torch.manual_seed(seed)
        mlp = nn.Sequential(
            nn.Linear(channels, hidden, bias), nn.ReLU(), nn.Linear(hidden, channels, bias)
        )
        state = mlp.state_dict()
        kept = {key: value.clone() for key, value in state.items()}
        made = answer(state)
        if made is None or made is ...:
            raise NotImplementedError
        if not isinstance(made, Mapping):
            raise Wrong(f"Return a dict of tensors, not a {type(made).__name__}.")
        changed = [k for k, v in kept.items() if k not in state or not _equal(state[k], v)]
        changed += [k for k in state if k not in kept]
        if changed:
            raise Wrong(f"It changed {changed[0]!r} of the dict it was given. Make a new dict.")
        theirs = _convolutions(channels, hidden, bias)
        wanted = theirs.state_dict()
        if missing := [key for key in wanted if key not in made]:
            raise Wrong(f"{missing[0]!r} is missing. The names stay as they are.")
        if more := [key for key in made if key not in wanted]:
            raise Wrong(f"The convolutions have no {more[0]!r}: they were made with bias={bias}.")
        for key, value in wanted.items():
            _tensor_fits(key, made[key], value)
        theirs.load_state_dict(dict(made))
        x = _random(5, channels, seed=seed)
        with torch.no_grad():
            value, right = theirs(x[:, :, None, None])[:, :, 0, 0], mlp(x)
        close(value, right, "the output", "The shapes fit; are these the numbers of the Linear?")


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


# ---- 6.2


def _parts(module: Any, channels: int, reduction: int, hidden: int) -> tuple[nn.Parameter, ...]:
    """Return W0, W1 and the kernel of an answer's module, whatever their names."""
    if module is None or module is ...:
        raise NotImplementedError
    if not isinstance(module, nn.Module):
        raise Wrong(f"Return a module, not a {type(module).__name__}.")
    found = list(module.parameters())
    kernels = [p for p in found if p.shape == (1, 2, 7, 7)]
    layers = [p for p in found if p.ndim == 2 or (p.ndim == 4 and p.shape[2:] == (1, 1))]
    others = [p for p in found if not any(p is q for q in kernels + layers)]
    if others:
        raise Wrong(
            f"There is a parameter of shape {tuple(others[0].shape)}. Keep the dialect: two "
            "layers and one convolution, 2 -> 1 with a kernel of 7, all without biases."
        )
    if len(layers) > 2:
        raise Wrong(f"There are {len(layers)} matrices: the MLP is shared, so there are two.")
    if len(layers) < 2 or len(kernels) != 1:
        raise Wrong("There should be two layers and one convolution, 2 -> 1 with a kernel of 7.")
    sizes = [tuple(p.shape[:2]) for p in layers]
    wanted = [(hidden, channels), (channels, hidden)]
    if sorted(sizes) != sorted(wanted):
        raise Wrong(
            f"For {channels} channels and a reduction of {reduction} the matrices are "
            f"{sizes[0]} and {sizes[1]}; they should be {wanted[0]} and {wanted[1]}. Who uses the "
            "argument?"
        )
    first, second = layers if sizes[0] == wanted[0] else layers[::-1]
    return first, second, kernels[0]


def _mended(x: Tensor, weights: tuple[Tensor, Tensor, Tensor], **bug: bool) -> Tensor:
    """Compute CBAM without biases and BatchNorm, with bugs if asked for."""
    w0, w1, kernel = weights
    relu: Callable[[Tensor], Tensor] = (lambda z: z) if bug.get("linear") else F.relu
    a, b = x.mean((2, 3)), x.amax((2, 3))
    if bug.get("early"):
        logits = relu((a + b) @ w0.T) @ w1.T
    else:
        votes = [relu(d @ w0.T) @ w1.T for d in (a, a if bug.get("mean_twice") else b)]
        logits = votes[0] + votes[1]
    out = x * logits.sigmoid()[:, :, None, None]
    read = x if bug.get("reads_f") else out
    top, mean = read.amax(1, keepdim=True), read.mean(1, keepdim=True)
    if bug.get("means"):
        top = mean
    if bug.get("tops"):
        mean = top
    maps = [mean, top] if bug.get("mean_first") else [top, mean]
    out = out * F.conv2d(torch.cat(maps, 1), kernel, padding=3).sigmoid()
    return out + x if bug.get("plus_x") else out


_BUGS = {
    "mean_twice": "The maximum is not heard in the channel gate: the mean is counted twice.",
    "means": "The two maps of the spatial gate are the same: the mean, twice.",
    "tops": "The two maps of the spatial gate are the same: the maximum, twice.",
    "plus_x": "The factor F''/F is above 1: the input is still added at the end.",
    "mean_first": "Your maps are [mean; max]. That is another dialect: keep [max; mean].",
    "linear": "The ReLU between the two layers got lost.",
    "early": "You added the two descriptors before the MLP. Each has its own vote.",
    "reads_f": "The spatial gate reads F. It should read F', what the channel gate has left.",
}


@judge
def mended(answer: Answer) -> None:
    """Judge `answer(channels, reduction)`: a CBAM without the four bugs."""
    if isinstance(answer, nn.Module):
        raise Wrong("Hand over the function, or the class, that makes the module: mended itself.")
    for n, channels, reduction in ((3, 32, 4), (2, 32, 16), (1, 16, 2), (3, 8, 16)):
        torch.manual_seed(channels)
        hidden = max(1, channels // reduction)
        try:
            module = answer(channels, reduction)
        except (RuntimeError, ValueError) as error:
            raise Wrong(f"mended({channels}, {reduction}) stopped: {error}") from error
        if isinstance(module, nn.Module) and any(p.numel() == 0 for p in module.parameters()):
            raise Wrong(
                f"With {channels} channels and a reduction of {reduction} there is no hidden "
                "unit, and the gate is deaf. There should be one at least."
            )
        parts = _parts(module, channels, reduction, hidden)
        with torch.no_grad():
            for seed, part in enumerate(parts):
                part.copy_(_random(*part.shape, seed=seed) * (4 if part.ndim > 2 else 1) / 4)
            w0, w1, kernel = (p.flatten(1) if p.shape[2:] == (1, 1) else p for p in parts)
            x = 2 * _random(n, channels, 8 + n, 8, seed=channels)
            kept = x.clone()
            value = module.eval()(x)
            if not torch.equal(x, kept):
                raise Wrong("It changed its input in place. Write x = x * ... instead of x *= ...")
            _name_bugs(value, x, (w0, w1, kernel))
            close(value, _mended(x, (w0, w1, kernel)), "F''")
            close(module.train()(x), value, "F'' in training mode", "Nothing here depends on it.")
        _trains(module, x)


def _trains(module: nn.Module, x: Tensor) -> None:
    """Check that the gradient reaches every parameter of an answer's module."""
    value = module(x)
    if not value.requires_grad or not all(p.requires_grad for p in module.parameters()):
        raise Wrong(
            "It cannot be trained: is there a no_grad, a detach or a requires_grad_(False)?"
        )
    value.sum().backward()
    for name, parameter in module.named_parameters():
        if parameter.grad is None:
            raise Wrong(f"No gradient reaches {name}. Is there a detach, or a .data?")


def _name_bugs(value: Any, x: Tensor, weights: tuple[Tensor, Tensor, Tensor]) -> None:
    """Raise `Wrong` with the bugs that are left, alone or up to three together."""
    names = list(_BUGS)
    left = ["mean_twice", "means", "plus_x"]
    sets = [[name] for name in names] + [
        [n for n, on in zip(left, bits, strict=True) if on]
        for bits in ((1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
    ]
    right = _mended(x, weights)
    mistakes = {
        " ".join(_BUGS[n] for n in bugs): _mended(x, weights, **dict.fromkeys(bugs, True))
        for bugs in sets
    }
    known(value, {w: m for w, m in mistakes.items() if not torch.allclose(m, right, atol=1e-5)})


# ---- 6.3

_SEEN = {
    "A": (
        "same",
        "Of equal numbers the mean is the maximum, so the two maps of F' are one and the same.",
    ),
    "B": ("same", "With a scale of zero the map is one number, whatever the convolution says."),
    "C": ("same", "Of one single number the mean is the maximum."),
    "D": ("other", "Added before, each bias of the MLP is counted once; in CBAM it counts twice."),
    "E": ("same", "A fresh BatchNorm subtracts 0 and divides by 1 in evaluation: the identity."),
    "F": ("other", "In training it takes the mean and the variance of the batch."),
    "G": ("same", "Where nothing is negative, the first ReLU has nothing to cut."),
}


@judge
def seen(answer: Mapping[str, Any]) -> None:
    """Judge which differences can be seen in which state."""
    if not isinstance(answer, Mapping) or set(answer) != set(_SEEN):
        raise Wrong(f"Give a dict with an answer for each of {', '.join(_SEEN)}.")
    if any(value is ... or value is None for value in answer.values()):
        raise NotImplementedError
    for letter, (right, why) in _SEEN.items():
        value = answer[letter]
        word = value.strip().lower() if isinstance(value, str) else value
        if word not in ("same", "other"):
            raise Wrong(f'{letter} is {value!r}; each answer is "same" or "other".')
        if word != right:
            raise Wrong(f"{letter} is not {word!r}. {why}")


# ---- 6.4


def _course(module: CBAM, x: Tensor, steps: int, kind: str = "right") -> list[float]:
    """Return the gradient norms of the kernel, or what a known mistake returns for them."""
    module = copy.deepcopy(module)
    kernel = module.spatial.conv.weight
    chosen = [kernel] if kind == "kernel only" else list(module.parameters())
    optimiser, found = torch.optim.SGD(chosen, lr=0.1), []
    for _ in range(steps):
        if kind != "added up":
            module.zero_grad()
        module(x).square().mean().backward()
        assert kernel.grad is not None
        of = kernel if kind == "weights" else kernel.grad
        found.append(of.square().sum().item() if kind == "squared" else of.norm().item())
        optimiser.step()
    return found


_COURSES = {
    "added up": "The gradients of the steps were added up: clear them in each step, zero_grad().",
    "kernel only": "Only the kernel was trained, or nothing. With gamma = 0 it then never gets a "
    "gradient: give the optimiser all parameters of the module, and let it step. Take the mean of "
    "the squares, and round nothing.",
    "weights": "These are the norms of the kernel itself. The gradient is in kernel.grad.",
    "squared": "These are squares of the norms: a root is missing.",
}


@judge
def kernel_gradients(answer: Answer) -> None:
    """Judge `answer(module, x, steps)`: norms of the kernel's gradient, step by step."""
    for seed, (gamma, steps) in enumerate(((0.0, 4), (1.0, 3), (0.5, 1))):
        torch.manual_seed(seed)
        module, x = CBAM(8, 2), 2 * torch.randn(4, 8, 9, 9)
        assert module.spatial.norm is not None
        nn.init.constant_(module.spatial.norm.weight, gamma)
        right = _course(module, x, steps)
        mistakes = {why: _course(module, x, steps, kind) for kind, why in _COURSES.items()}
        longer = _course(module, x, steps + 1)
        value = _numbers(answer(module, x.clone(), steps), steps)
        if _near(value, right):
            continue
        for why, wrong in mistakes.items():
            if _near(value, wrong) and not _near(wrong, right):
                raise Wrong(why)
        if _near(value, longer[1:]):
            raise Wrong("The first step is missing: measure before the update, not after it.")
        raise Wrong(
            f"From gamma = {gamma:g} it says {', '.join(f'{v:.3g}' for v in value)}; it should be "
            f"{', '.join(f'{v:.3g}' for v in right)}. SGD, lr=0.1, training mode, the loss is "
            "module(x).square().mean()."
        )


def _numbers(value: Any, count: int) -> list[float]:
    value = written(value)
    held = isinstance(value, Tensor) and not value.is_meta and value.layout == torch.strided
    if held or isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list | tuple) or len(value) != count:
        raise Wrong(f"Return a list of {count} numbers, one for each step.")
    return [number(item, "Each step's norm") for item in value]


def _near(a: list[float], b: list[float]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(math.isclose(u, v, rel_tol=1e-3, abs_tol=1e-9) for u, v in pairs)


# ---- 6.5


class Gate(nn.Module):
    """A spatial gate of one of the two dialects.

    Attributes
    ----------
    conv : torch.nn.Conv2d
        Its convolution, 2 -> 1.
    """

    def __init__(self, mean_first: bool, k: int = 7, norm: bool = True, bias: bool = False):
        super().__init__()
        self._mean_first = mean_first
        self.conv = nn.Conv2d(2, 1, k, padding=k // 2, bias=bias)
        self.norm = nn.BatchNorm2d(1) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the map: (N, C, H, W) float -> (N, 1, H, W)."""
        maps = [x.amax(1, keepdim=True), x.mean(1, keepdim=True)]
        joined = torch.cat(maps[::-1] if self._mean_first else maps, 1)
        return torch.sigmoid(self.norm(self.conv(joined)))


def _suspects(mean_first: bool) -> dict[str, Gate]:
    """Return gates of one dialect in the states that hide it."""
    torch.manual_seed(int(mean_first))
    gates = {
        "a fresh gate": Gate(mean_first),
        "a gate without BatchNorm": Gate(mean_first, norm=False),
        "a gate with a kernel of 3 and a bias": Gate(mean_first, 3, norm=False, bias=True),
        "a gate with moved running statistics": Gate(mean_first, 5),
        "a gate with gamma = 0": Gate(mean_first),
        "a gate with a kernel of zeros": Gate(mean_first, norm=False),
        "a gate with two equal sheets": Gate(mean_first),
    }
    moved = gates["a gate with moved running statistics"].norm
    assert isinstance(moved, nn.BatchNorm2d)
    assert moved.running_mean is not None
    moved.running_mean.fill_(1.5)
    nn.init.zeros_(gates["a gate with gamma = 0"].norm.weight)  # type: ignore[arg-type]
    nn.init.zeros_(gates["a gate with a kernel of zeros"].conv.weight)
    weight = gates["a gate with two equal sheets"].conv.weight
    with torch.no_grad():
        weight[:, 1] = weight[:, 0]
    return {name: gate.eval() for name, gate in gates.items()}


@judge
def mean_first(answer: Callable[[nn.Module], Any]) -> None:
    """Judge `answer(gate)`: whether a spatial gate joins the mean before the maximum."""
    said: dict[bool, list[bool]] = {True: [], False: []}
    failed: list[tuple[str, bool]] = []
    for truth in (True, False):
        for name, gate in _suspects(truth).items():
            before = {key: value.clone() for key, value in gate.state_dict().items()}
            value = written(answer(gate))
            if isinstance(value, Tensor) and value.numel() == 1:
                value = value.item()
            if not isinstance(value, bool | np.bool_):
                raise Wrong(f"Return True or False, not a {type(value).__name__}.")
            _check_untouched(gate, before, name)
            said[truth].append(bool(value))
            if value != truth:
                failed.append((name, truth))
    if len({*said[True], *said[False]}) == 1:
        raise Wrong(f"It says {said[True][0]} to every gate. Half of them join the mean first.")
    if not any(said[True]) and all(said[False]):
        raise Wrong("It is right about every gate, the other way round: True is for mean first.")
    if failed:
        name, truth = failed[0]
        silent = name.endswith(("gamma = 0", "zeros", "sheets"))
        why = (
            "There the map says nothing about the order. Look at what the convolution is given."
            if silent
            else "Does your input have the same mean and maximum at each place?"
        )
        raise Wrong(f"It is wrong about {name}, which has mean_first {truth}. {why}")


def _check_untouched(gate: Gate, before: dict[str, Tensor], name: str) -> None:
    after = gate.state_dict()
    if set(after) != set(before):
        raise Wrong(f"{name.capitalize()} has other parts afterwards. Put back what you change.")
    if any(not _equal(after[key], value) for key, value in before.items()):
        raise Wrong(f"{name.capitalize()} has other weights afterwards. Put back what you change.")
    if any(module.training for module in gate.modules()):
        raise Wrong("The gate is in training mode afterwards. Leave it in evaluation mode.")
    if not all(parameter.requires_grad for parameter in gate.parameters()):
        raise Wrong("The gate's weights take no gradient afterwards. Put back what you change.")
    if any("forward" in vars(module) for module in gate.modules()):
        raise Wrong("A forward is still replaced afterwards. Put back what you change.")
    kinds = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    if any(getattr(module, kind) for module in gate.modules() for kind in kinds):
        raise Wrong("Your hook still hangs there: keep what register_... returns, and remove() it.")
