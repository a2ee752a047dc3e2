"""The Triton kernels: their own tests in a process apart, and that a GPU's compiler takes them.

Without a GPU, Triton's interpreter says whether the numbers are right and its compiler, which needs
no GPU either, whether the kernels are code for one. With one, they run there too.
"""

import importlib.util
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from coverage import Coverage

from cbam_edu.fused import chip, gpu, trial

HERE = Path(__file__).parent
TRITON = importlib.util.find_spec("triton") is not None
GPU = torch.cuda.is_available()

needs_triton = pytest.mark.skipif(not TRITON, reason="Triton is not for this system")
modes = ["1", pytest.param("0", marks=pytest.mark.skipif(not GPU, reason="no GPU"))]


@needs_triton
@pytest.mark.parametrize("interpreted", modes)
def test_the_kernels_are_right(interpreted):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": interpreted}
    if Coverage.current():  # the process's lines count with ours
        environment["COVERAGE_PROCESS_START"] = str(HERE.parent / "pyproject.toml")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "kernel_cases.py"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=HERE.parent,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 30


@pytest.fixture
def other_machine(monkeypatch):
    """Make this machine one with the GPU of `capability`, with Triton or without."""

    def pretend(capability=(9, 0), triton=True):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(gpu, "available", lambda: triton)
        monkeypatch.setattr(trial, "check", lambda device: None)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    return pretend


reaches = gpu.reaches.__wrapped__  # asked anew each time
CUDA = torch.device("cuda", 0)


def test_where_triton_works(other_machine, monkeypatch):
    other_machine()
    assert reaches(CUDA)
    assert not reaches(torch.device("cpu"))
    assert not reaches(torch.device("meta"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert reaches(torch.device("cpu"))


def test_where_triton_does_not_work(other_machine, monkeypatch):
    other_machine(capability=(6, 1))
    assert not reaches(CUDA)
    other_machine(triton=False)
    assert not reaches(CUDA)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not reaches(torch.device("cpu"))


def test_a_gpu_where_triton_cannot_compile_is_named_once(other_machine, monkeypatch):
    def check(device):
        raise RuntimeError("Failed to find C compiler.")

    other_machine()
    monkeypatch.setattr(trial, "check", check)
    with pytest.warns(UserWarning, match=r"plain form on cuda:0, .*Failed to find C compiler\.$"):
        assert not reaches(CUDA)


def test_triton_is_found_where_it_is_installed():
    assert gpu.available() == TRITON


def test_without_triton_the_file_is_imported_all_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location("a_copy", gpu.__file__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    assert not copy.serves(torch.randn(2, 3, 4, 4))


# ---- For a GPU that is not here

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
}


def compiled(kernel, arguments, options, capability):
    """Return the PTX of a kernel for what a launch would pass, pointers being 16-byte aligned."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    launch = {"num_warps": options.pop("num_warps")}
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | options
    for i, (name, value) in enumerate(given.items()):
        if name in options or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        pointer = isinstance(value, torch.Tensor)
        signature[name] = TYPES[value.dtype] if pointer else "i32"
        if pointer or value % 16 == 0:
            attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch).asm


def all_compiled(monkeypatch, x, capability):
    """Call all functions with x; return by kernel what a GPU's compiler makes of the launches."""
    from cbam_edu.fused import chip_kernels, kernels

    found, known = {}, vars(kernels) | vars(chip_kernels)

    class Recorder:
        tl = kernels.tl

        def __getattr__(self, name):
            def launch(*arguments, **options):
                variant = name, options.get("JOIN")
                found[variant] = compiled(known[name], arguments, options, capability)

            return defaultdict(lambda: launch)  # whatever the grid

    monkeypatch.setattr(gpu, "kernels", Recorder)
    monkeypatch.setattr(chip, "kernels", Recorder)
    (n, channels, height, width), wide = x.shape, torch.promote_types(x.dtype, torch.float32)
    c, m = torch.empty(n, channels, 1, 1, dtype=wide), torch.empty(n, channels, dtype=wide)
    s = torch.empty(n, 1, height, width, dtype=wide)
    gpu.pool(x)
    gpu.squeeze(x, c)
    gpu.scale(x, c, s)
    gpu.scale(x, c, s, x)
    gpu.gate_grads(x, x, c, s)
    gpu.residual_grads(x, x, x, c, s)
    gpu.map_grads(x, c, s, s, s, m)
    gpu.input_grad(x, x, c, s, s, s, s, m, m, m)
    w1, b1, w2 = (torch.empty(size, dtype=wide) for size in [(4, channels), (4,), (channels, 4)])
    chip.gate_both(x, w1, b1, w2, m[0])
    chip.gate_back(x, x, c, s, s, s, s, c, m, m, w1, b1, w2)
    return found


@needs_triton
@pytest.mark.parametrize(
    ("shape", "dtype", "memory_format", "capability", "load"),
    [
        ((256, 64, 32, 32), torch.bfloat16, torch.contiguous_format, 90, "v4.b32"),
        ((256, 256, 14, 14), torch.bfloat16, torch.contiguous_format, 90, "v2.b32"),  # 196 = 4 x 49
        ((256, 256, 14, 14), torch.bfloat16, torch.channels_last, 75, "v4.b32"),
        ((16, 20, 56, 56), torch.float32, torch.channels_last, 80, "v4.b32"),
        ((2, 5, 3, 7), torch.float64, torch.contiguous_format, 90, "b64"),
    ],
)
def test_a_gpus_compiler_takes_them(
    shape, dtype, memory_format, capability, load, monkeypatch, tmp_path
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    x = torch.empty(shape, dtype=dtype).contiguous(memory_format=memory_format)
    found = all_compiled(monkeypatch, x, capability)
    assert len(found) == 10
    for (kernel, _), code in found.items():
        assert re.search(rf"ld\.global[\w.]*\.{re.escape(load)} ", code["ptx"]), kernel
        assert not re.search(r"ld\.global[\w.]*\.b16 ", code["ptx"]), kernel  # one value at a time
        assert "atom" not in code["ptx"]  # sums have an order
        if kernel.startswith("gate_b"):  # what another thread wrote is read after a barrier
            assert code["ttgir"].count("gpu.barrier") >= 2
            assert "ld.global.nc" not in code["ptx"]  # from a cache that would not know
        if kernel in ("pool_kernel", "squeeze_kernel") and capability >= 80 and load != "b64":
            assert "max.NaN.f32" in code["ptx"]  # the interpreter's maximum is NaN's in any case
        assert re.search(r"arith\.muli .* : i64", code["ttir"])  # an image's start is 64 bits wide
        assert len(code["cubin"]) > 1000  # the assembler took it, too
