"""Importing the room costs nothing."""

import subprocess
import sys

from distill.process import child_environment


def test_importing_bench_imports_neither_torch_nor_trl():
    code = "import sys, distill.bench; print([m for m in ('torch', 'trl', 'vllm', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_name_is_there():
    import distill.bench

    assert all(callable(getattr(distill.bench, name)) for name in distill.bench.__all__)
