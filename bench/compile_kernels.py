"""`distill bench kernels --compile-only`: what the Triton kernels become on each GPU architecture, seen without a GPU.

Every kernel in every configuration it may be launched with (`compile_cases` beside the kernels) is compiled ahead of
time. Registers and local memory are read from the binary that would run, shared memory from what the launcher would ask
for, tensor-core instructions from the assembly. Kernels compile in child processes, one a core.

The result:

    machine, versions        what it ran on
    targets                  {name: {"required", "kernels": [...]}}
      name                   of the kernel and its configuration
      registers              a thread; None where the kernel did not compile, as the next three
      spill_bytes            of local memory a thread: registers that did not fit
      shared_memory          bytes a block
      tensor_cores           {"wgmma": instructions in the code, ...}
      shared_memory_limit    bytes a block may have
      warning                what costs speed and is no error, or None
      problem                why this must not be launched there, or None
      measured.seconds       to compile; next to none where Triton's cache has it
    problems                 one line for each problem on a required target: with any, the check has failed
"""

import contextlib
import importlib.util
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from distill import console
from distill.errors import InputError, unknown_name
from distill.kernels.targets import TARGETS, KernelCase, Target
from distill.process import child_environment

# Files with Triton kernels; each has compile_cases(target).
MODULES = (
    "distill.kernels.vocabulary_gemm",
    "distill.kernels.vocabulary_gradient",
    "distill.kernels.column_sums",
    "distill.kernels.vocabulary_rows",
    "distill.kernels.indexed_logits",
    "distill.kernels.attention_kernels",
)

# In the assembly: NVIDIA's PTX and AMD's.
TENSOR_CORE_INSTRUCTIONS = {
    "mma": "mma.sync",
    "wgmma": "wgmma.mma_async",
    "tcgen05": "tcgen05.mma",
    "mfma": "v_mfma_",
}
_ASSEMBLY = {"cuda": "ptx", "hip": "amdgcn"}
_NOTHING_KNOWN = {"registers": None, "spill_bytes": None, "shared_memory": None, "tensor_cores": None, "warning": None}


def compile_kernels(targets: list[str], modules: tuple[str, ...] = MODULES) -> dict[str, Any]:
    """Compile the cases of `modules` for `targets` (names in TARGETS); the result is described at the top of this file.

    Raises InputError.
    """
    if not targets:
        raise InputError(f"no target given: takes one or more of {', '.join(TARGETS)}")
    for name in targets:
        if name not in TARGETS:
            raise unknown_name("target", name, TARGETS)
    if importlib.util.find_spec("triton") is None:
        raise InputError("triton is not installed: pip install 'triton>=3.6'")
    import triton

    from distill.bench.machine import machine

    about = machine()
    versions = about.pop("versions") | {"triton": triton.__version__}
    jobs = [
        (target, module, index, case.name)
        for target in dict.fromkeys(targets)
        for module in modules
        for index, case in enumerate(_cases(module, target))
    ]
    kernels = _compile_all(jobs)
    by_target: dict[str, Any] = {
        name: {"required": TARGETS[name].required, "kernels": []} for name in dict.fromkeys(targets)
    }
    problems = []
    for (target, _, _, name), kernel in zip(jobs, kernels, strict=True):
        by_target[target]["kernels"].append({"name": name, **kernel})
        if kernel["problem"] and TARGETS[target].required:
            problems.append(f"{target}: {name}: {kernel['problem']}")
    return {"machine": about, "versions": versions, "targets": by_target, "problems": problems}


def show_compiled(result: dict[str, Any]) -> None:
    """The result as one table a target on standard output, and the problems that make the check fail."""
    for name, target in result["targets"].items():
        rows = []
        for kernel in target["kernels"]:
            tensor_cores = ", ".join(f"{count} {kind}" for kind, count in (kernel["tensor_cores"] or {}).items())
            shared, limit = kernel["shared_memory"], kernel["shared_memory_limit"]
            rows.append(
                [
                    kernel["name"],
                    _or_dash(kernel["registers"]),
                    _or_dash(kernel["spill_bytes"]),
                    _or_dash(None if shared is None else f"{shared / 1024:.1f} of {limit / 1024:.0f}"),
                    tensor_cores or "-",
                    f"{kernel['measured']['seconds']:.1f}",
                    kernel["problem"] or kernel["warning"] or "",
                ]
            )
        title = f"{name}, {'required' if target['required'] else 'reported only'}"
        columns = ["kernel", "registers", "spill bytes", "shared KiB", "tensor cores", "s", "remark"]
        console.table(title, columns, rows)
    found = [kernel for target in result["targets"].values() for kernel in target["kernels"]]
    console.facts("kernels", {"compiled": len(found), "problems on required targets": len(result["problems"])})
    for problem in result["problems"]:
        console.out.print(problem, markup=False, soft_wrap=True)


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _cases(module: str, target: str) -> list[KernelCase]:
    return import_module(module).compile_cases(TARGETS[target])


def _compile_all(jobs: list[tuple[str, str, int, str]]) -> list[dict[str, Any]]:
    """What each (target, module, index of the case, name) becomes, in the same order."""
    workers = max(1, min(len(os.sched_getaffinity(0)), len(jobs)))
    with contextlib.ExitStack() as stack:
        idle: queue.SimpleQueue[_Compiler] = queue.SimpleQueue()
        for _ in range(workers):
            idle.put(stack.enter_context(_Compiler()))

        def run(job: tuple[str, str, int, str]) -> dict[str, Any]:
            compiler = idle.get()
            try:
                return compiler.compile(*job[:3])
            finally:
                idle.put(compiler)

        threads = ThreadPoolExecutor(workers)
        stack.callback(threads.shutdown, cancel_futures=True)
        bar = stack.enter_context(console.progress())
        task = bar.add_task("compiling", total=len(jobs))
        futures = [threads.submit(run, job) for job in jobs]
        for _ in as_completed(futures):
            bar.advance(task)
        return [future.result() for future in futures]


class _Compiler:
    """A child process that compiles one case after another; one that died is started again.

    It ends by itself when its standard input is closed, however this process ends.
    """

    def __enter__(self) -> "_Compiler":
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from distill.bench.compile_kernels import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(1, {"TRITON_INTERPRET": "0"}),
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def compile(self, target: str, module: str, index: int) -> dict[str, Any]:
        started = time.perf_counter()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([target, module, index]) + "\n")
            self._process.stdin.flush()
        if answer := self._process.stdout.readline():
            return json.loads(answer)
        problem = f"the compiler ended with exit code {self._process.wait()}"
        self.__exit__()
        self.__enter__()
        return _answer(TARGETS[target], _NOTHING_KNOWN, time.perf_counter() - started, problem)


def serve() -> None:
    """The child: a request a line on standard input, its answer a line on what was standard output.

    Compilers print to standard output when they fail, so it is moved out of their way.
    """
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    cases = cache(_cases)
    for line in sys.stdin:
        target, module, index = json.loads(line)
        answer = compile_case(cases(module, target)[index], TARGETS[target])
        print(json.dumps(answer), file=channel, flush=True)


def compile_case(case: KernelCase, target: Target) -> dict[str, Any]:
    """One kernel of the result, without its name."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    # An argument that this case leaves out is a constant None, aligned to nothing.
    aligned = [case.kernel.arg_names.index(name) for name in case.aligned if case.signature[name] != "constexpr"]
    source = ASTSource(
        fn=case.kernel,
        signature=case.signature,
        constexprs=case.constants,
        attrs={(place,): [["tt.divisibility", 16]] for place in aligned},
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    started = time.perf_counter()
    try:
        compiled = triton.compile(source, GPUTarget(target.backend, target.arch, target.warp_size), options)
    except Exception as error:  # a compiler raises anything; all of it is the finding
        lines = str(error).strip().splitlines()
        problem = f"does not compile: {type(error).__name__}: {lines[-1] if lines else ''}"
        return _answer(target, _NOTHING_KNOWN, time.perf_counter() - started, problem)
    seconds = time.perf_counter() - started
    assembly = compiled.asm[_ASSEMBLY[target.backend]]
    counts = {kind: assembly.count(name) for kind, name in TENSOR_CORE_INSTRUCTIONS.items()}
    registers, spill_bytes = _resources(compiled.asm, target)
    found = {
        "registers": registers,
        "spill_bytes": spill_bytes,
        "shared_memory": compiled.metadata.shared,
        "tensor_cores": {kind: count for kind, count in counts.items() if count},
        "warning": _serialized(assembly, target) if counts["wgmma"] else None,
    }
    problems = []
    if found["spill_bytes"]:
        problems.append(f"spills {found['spill_bytes']} bytes a thread")
    if found["shared_memory"] > target.shared_memory:
        problems.append(f"takes {found['shared_memory']} bytes of shared memory, the limit is {target.shared_memory}")
    if case.uses_tensor_cores and not found["tensor_cores"]:
        problems.append("has no tensor-core instruction")
    return _answer(target, found, seconds, "; ".join(problems) or None)


def _answer(target: Target, found: dict[str, Any], seconds: float, problem: str | None) -> dict[str, Any]:
    limit = {"shared_memory_limit": target.shared_memory}
    return {**found, **limit, "problem": problem, "measured": {"seconds": seconds}}


def _resources(asm: dict[str, Any], target: Target) -> tuple[int, int]:
    """Registers and bytes of spilled registers of a thread."""
    if target.backend == "hip":
        counts = dict(re.findall(r"^\s*\.(vgpr_count|vgpr_spill_count):\s*(\d+)", asm["amdgcn"], re.MULTILINE))
        return int(counts["vgpr_count"]), 4 * int(counts["vgpr_spill_count"])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = _run_nvidia_tool("cuobjdump", "-res-usage", file.name)
    # A kernel of Triton's keeps nothing on the stack but what does not fit into registers.
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return int(registers), int(stack)


def _serialized(ptx: str, target: Target) -> str | None:
    """Whether ptxas gave up keeping matrix products in flight, which it says and the binary does not."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        log = _run_nvidia_tool("ptxas", "-v", f"--gpu-name={target.name}a", file.name, "-o", os.devnull)
    return "wgmma is serialized" if "serialized" in log else None


def _run_nvidia_tool(name: str, *arguments: str) -> str:
    """Both output streams of one of the tools that come with Triton."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    done = subprocess.run([tool, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout
