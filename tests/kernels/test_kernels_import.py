"""Importing distill.kernels is cheap, and its names are functions whatever was imported before."""

import subprocess
import sys

import pytest

import distill.kernels


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    ).stdout.strip()


def test_import_brings_neither_torch_nor_triton():
    assert run("import sys, distill.kernels as k; dir(k); print({'torch', 'triton'} & set(sys.modules))") == "set()"


def test_names_are_functions_after_every_file_was_imported():
    code = (
        "import importlib, pkgutil, distill.kernels as k\n"
        "for m in pkgutil.iter_modules(k.__path__): importlib.import_module(f'distill.kernels.{m.name}')\n"
        "print(all(callable(getattr(k, name)) for name in k.__all__))"
    )
    assert run(code) == "True"


def test_unknown_name():
    with pytest.raises(AttributeError, match="no_such_kernel"):
        _ = distill.kernels.no_such_kernel


def test_describe_names_an_implementation_for_the_cpu():
    found = distill.kernels.describe()
    assert found["varlen_attention"]["cpu float32"].startswith("sdpa")
    assert found["linear losses"]["cpu bfloat16"] == "torch"
