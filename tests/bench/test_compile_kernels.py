"""The check of compiled kernels finds what it must find, and passes the project's own kernels."""

import os
import re
from pathlib import Path

import pytest

import distill.kernels
from distill.bench.compile_kernels import MODULES, compile_kernels, show_compiled
from distill.errors import InputError
from distill.kernels.targets import TARGETS

pytest.importorskip("triton", reason="triton is not installed")

REQUIRED = [name for name, target in TARGETS.items() if target.required]

KERNELS = """
import os

import triton
import triton.language as tl

from distill.kernels.targets import KernelCase


@triton.jit
def softmax(x_ptr, y_ptr, absent_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    e = tl.exp(x - tl.max(x, 0))
    tl.store(y_ptr + i, e / tl.sum(e, 0))


@triton.jit
def product(a_ptr, b_ptr, c_ptr, K, M: tl.constexpr, B: tl.constexpr):
    i = tl.arange(0, M)
    k = tl.arange(0, B)
    acc = tl.zeros((M, M), tl.float32)
    for j in range(0, K, B):
        a = tl.load(a_ptr + i[:, None] * K + j + k)
        b = tl.load(b_ptr + i[None] * K + j + k[:, None])
        acc = tl.dot(a, b, acc)
    tl.store(c_ptr + i[:, None] * M + i[None], acc)


@triton.jit
def wrong(x_ptr):
    tl.store(x_ptr, tl.no_such_function(0))


class Dies:
    # Stands for a compiler that takes its process down.

    @property
    def arg_names(self):
        os._exit(3)


def softmax_case(name, n, uses_tensor_cores=False):
    signature = {"x_ptr": "*fp32", "y_ptr": "*fp32", "absent_ptr": "constexpr", "N": "constexpr"}
    aligned = ("x_ptr", "y_ptr", "absent_ptr")
    return KernelCase(name, softmax, signature, {"absent_ptr": None, "N": n}, aligned, 1, 2, uses_tensor_cores)


def product_case(name, block, stages):
    signature = {"a_ptr": "*bf16", "b_ptr": "*bf16", "c_ptr": "*fp32", "K": "i32", "M": "constexpr", "B": "constexpr"}
    aligned = ("a_ptr", "b_ptr", "c_ptr", "K")
    return KernelCase(name, product, signature, {"M": 64, "B": block}, aligned, 4, stages, True)


def compile_cases(target):
    return [CASES]
"""

CASES = {
    "fine": "softmax_case('fine', 512)",
    "product": "product_case('product', 64, 2)",
    "spills": "softmax_case('spills', 8192)",
    "large": "product_case('large', 256, 5)",
    "no tensor cores": "softmax_case('no tensor cores', 512, True)",
    "dies": "KernelCase('dies', Dies(), {'x_ptr': '*fp32'}, {}, ('x_ptr',), 1, 1, False)",
    "wrong": "KernelCase('wrong', wrong, {'x_ptr': '*fp32'}, {}, (), 1, 1, False)",
}


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A function that writes cases into a module of this test's own, and gives its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)  # of the children

    def write(*names):
        name = f"kernels_of_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(KERNELS.replace("CASES", ", ".join(CASES[n] for n in names)))
        return name

    return write


def test_finds_spills_shared_memory_and_missing_tensor_cores(kernels, capsys):
    result = compile_kernels(["sm_90"], modules=(kernels(*CASES),))
    found = {kernel["name"]: kernel for kernel in result["targets"]["sm_90"]["kernels"]}
    assert list(found) == list(CASES)
    for name in ("fine", "product"):
        assert found[name]["problem"] is None and found[name]["spill_bytes"] == 0
        assert 0 < found[name]["registers"] <= 255
    assert found["fine"]["tensor_cores"] == {} and found["product"]["tensor_cores"].keys() == {"wgmma"}
    assert 2 * 2 * 64 * 64 * 2 <= found["product"]["shared_memory"] <= found["product"]["shared_memory_limit"] == 232448
    assert found["spills"]["spill_bytes"] > 0 and "spills" in found["spills"]["problem"]
    assert found["large"]["shared_memory"] > 232448 and "232448" in found["large"]["problem"]
    assert "tensor-core" in found["no tensor cores"]["problem"]
    assert "exit code 3" in found["dies"]["problem"] and found["dies"]["registers"] is None
    assert "no_such_function" in found["wrong"]["problem"] and found["wrong"]["registers"] is None
    assert len(result["problems"]) == len(CASES) - 2
    assert all(line.startswith("sm_90: ") for line in result["problems"])

    show_compiled(result)
    shown = capsys.readouterr().out
    assert "sm_90, required" in shown and all(line in shown for line in result["problems"])


def test_a_kernel_that_is_fine_passes_everywhere(kernels):
    result = compile_kernels(list(TARGETS), modules=(kernels("fine", "product"),))
    assert result["problems"] == [] and list(result["targets"]) == list(TARGETS)
    kinds = {"sm_80": "mma", "sm_89": "mma", "sm_90": "wgmma", "sm_100": "tcgen05", "sm_120": "mma", "gfx942": "mfma"}
    for name, target in result["targets"].items():
        assert [kernel["problem"] for kernel in target["kernels"]] == [None, None]
        assert target["kernels"][1]["tensor_cores"].keys() == {kinds[name]}


def test_a_target_that_is_not_required_is_reported_only(kernels):
    result = compile_kernels(["sm_80"], modules=(kernels("no tensor cores"),))
    assert result["targets"]["sm_80"]["kernels"][0]["problem"] and result["problems"] == []


def test_bad_targets_are_named():
    with pytest.raises(InputError, match="unknown target 'sm_91': did you mean 'sm_90'"):
        compile_kernels(["sm_80", "sm_91"])
    with pytest.raises(InputError, match="no target"):
        compile_kernels([])


def test_without_triton(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="triton is not installed"):
        compile_kernels(["sm_90"])


def test_no_file_with_kernels_is_forgotten():
    folder = Path(distill.kernels.__file__).parent
    files = [
        path.stem for path in folder.glob("*.py") if re.search("^def compile_cases", path.read_text(), re.MULTILINE)
    ]
    jitted = [path.stem for path in folder.glob("*.py") if re.search("^@triton.jit", path.read_text(), re.MULTILINE)]
    assert {name.rpartition(".")[2] for name in MODULES} == {*files, *jitted}


# A minute of two cores each where Triton's cache is empty.
@pytest.mark.parametrize("name", REQUIRED)
def test_our_kernels_compile_without_spills(name):
    result = compile_kernels([name])
    assert result["problems"] == []
    names = [kernel["name"] for kernel in result["targets"][name]["kernels"]]
    assert len(names) == len(set(names)) >= len(MODULES)
