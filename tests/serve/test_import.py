"""Importing distill.serve is cheap, and every public name is where the table says."""

import subprocess
import sys

import pytest

import distill.serve


def test_imports_neither_torch_nor_vllm():
    code = (
        "import sys, distill.serve as s; s.Server, s.complete, s.profile_endpoint, s.split_thinking;"
        "print(sorted({'torch', 'vllm', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_name_resolves():
    for name in distill.serve.__all__:
        assert getattr(distill.serve, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = distill.serve.no_such_name
