"""The house as a package: the wheel is complete, rooms know only whom they may, and nothing heavy comes unasked."""

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from distill.process import child_environment

ROOT = Path(__file__).parent.parent
SIDE_FOLDERS = ("kernels", "serve", "bench")

# docs/architecture.md: whom a room imports. Rooms it reaches through those are known to it as well.
ARROWS = {
    "tasks": set(),
    "kernels": set(),
    "serve": set(),
    "traces": {"tasks", "serve"},
    "packing": {"traces"},
    "training": {"packing", "kernels"},
    "evaluation": {"serve", "tasks", "packing"},  # packing: what a prompt and a think tag are is said once
    "study": {"evaluation", "training", "packing", "traces"},
    "bench": {"kernels", "training", "evaluation", "serve"},
    "doctor": {"kernels", "serve"},
    "cli": {"study", "bench", "doctor"},
}
LEAVES = {"artifact", "settings", "flops", "report", "errors", "console", "process", "journal", "hub"}


def sources():
    """(dotted module name, file) of everything that goes into the package."""
    for folder, name in ((ROOT / "distill", "distill"), *((ROOT / f, f"distill.{f}") for f in SIDE_FOLDERS)):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            yield ".".join([name, *(part for part in parts if part != "__init__")]), file


def imported(module, file):
    """Names of the project's modules, and bare names, that a file imports anywhere in it."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])]
                )
            yield from (f"{base}.{alias.name}" for alias in node.names)


def room(module):
    parts = module.split(".")
    return parts[1] if parts[0] == "distill" and len(parts) > 1 else None


def known_to(name):
    reached, waiting = set(), [name]
    while waiting:
        new = ARROWS[waiting.pop()] - reached
        reached |= new
        waiting += new
    return reached


def test_the_arrows_have_no_circle():
    assert all(name not in known_to(name) for name in ARROWS)


@pytest.mark.parametrize("name", sorted(ARROWS))
def test_a_room_knows_only_whom_it_may(name):
    files = [(module, file) for module, file in sources() if room(module) == name]
    assert files
    allowed = known_to(name) | {name} | (set() if name == "kernels" else LEAVES)
    for module, file in files:
        for target in imported(module, file):
            found = room(target)
            if target.startswith("distill.") and found in ARROWS.keys() | LEAVES:
                assert found in allowed, f"{file.relative_to(ROOT)} imports {target}"


def test_leaves_know_only_leaves():
    for module, file in sources():
        if room(module) in LEAVES:
            for target in imported(module, file):
                assert room(target) not in ARROWS, f"{file.relative_to(ROOT)} imports {target}"


def test_every_module_is_in_a_room_or_a_leaf():
    rooms = {room(module) for module, _ in sources()} - {None}
    assert rooms == ARROWS.keys() | LEAVES | {"__main__"}


def test_side_folders_are_never_imported_by_their_bare_names():
    for file in [file for _, file in sources()] + sorted((ROOT / "tests").rglob("*.py")):
        for target in imported("tests.x", file):
            assert target.split(".")[0] not in SIDE_FOLDERS, f"{file.relative_to(ROOT)} imports {target}"


@pytest.mark.parametrize("name", ["distill", *(f"distill.{folder}" for folder in SIDE_FOLDERS)])
def test_importing_a_package_imports_nothing_heavy(name):
    heavy = ["torch", "triton", "transformers", "vllm", "numpy"]
    code = f"import sys, {name}; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=child_environment(1))
    assert found.stdout.strip() == "[]", found.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds what a wheel of the tree installs, and nothing else."""
    work = tmp_path_factory.mktemp("wheel")
    tree = work / "tree"
    tree.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    names = listed.stdout.split("\n") if listed.returncode == 0 else [str(p.relative_to(ROOT)) for p in ROOT.rglob("*")]
    for name in names:
        if name and (ROOT / name).is_file() and not name.startswith((".venv", "build/", "out/")):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(work), str(tree)]
    built = subprocess.run([sys.executable, *build], capture_output=True, text=True, env=child_environment(), cwd=work)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(work / "site")
    return work / "site"


def test_the_wheel_holds_every_file_it_needs(installed):
    for module, file in sources():
        place = installed.joinpath(*module.split("."))
        expected = place / "__init__.py" if file.name == "__init__.py" else place.with_suffix(".py")
        assert expected.read_bytes() == file.read_bytes(), module
    presets = sorted((ROOT / "presets").glob("*.yaml"))
    assert presets
    data = [(f, installed / "distill" / "presets" / f.name) for f in presets]
    data += [
        (f, installed / f.relative_to(ROOT))
        for pattern in ("*.yaml", "*.html", "*.css", "*.js")
        for f in (ROOT / "distill").rglob(pattern)
    ]
    assert {f.suffix for f, _ in data} == {".yaml", ".html", ".css", ".js"}
    for source, place in data:
        assert place.read_bytes() == source.read_bytes(), source
    tops = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"distill"}, "a wheel must not install folders under bare names"


def test_every_module_of_the_wheel_imports(installed, tmp_path):
    """With no source tree on the path; triton, flash-attn and liger-kernel are optional, nothing else is."""
    code = """
import importlib, importlib.util, json, sys
problems, optional = {}, {"triton", "flash_attn", "liger_kernel", "vllm", "trl"}
for name in json.loads(sys.argv[1]):
    try:
        module = importlib.import_module(name)
        if not module.__file__.startswith(sys.argv[2]):
            problems[name] = module.__file__
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in optional:
            problems[name] = repr(error)
    except Exception as error:
        problems[name] = repr(error)
print(json.dumps(problems))
"""
    names = sorted({module for module, _ in sources()})
    environment = child_environment(1, {"PYTHONPATH": str(installed)})
    run = [sys.executable, "-c", code, json.dumps(names), str(installed)]
    found = subprocess.run(run, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert found.returncode == 0, found.stderr[-2000:]
    assert json.loads(found.stdout.splitlines()[-1]) == {}


def test_the_command_of_the_wheel_runs(installed, tmp_path):
    environment = child_environment(1, {"PYTHONPATH": str(installed)})
    found = subprocess.run(
        [sys.executable, "-m", "distill", "--version"], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert found.returncode == 0 and found.stdout.startswith("distill "), found.stderr
