"""Measured: kernels, training and serving against peers, and the cost gap; imported as distill.bench.

    kernels.py      `distill bench kernels`: the kernels on a CPU beside torch's own; kernel_memory.py, what they take
    gpu.py          `distill bench gpu`: the GPU suite, and its file; gpu_child.py, gpu_worker.py: who measures
    gpu_*.py        its pieces: correctness, timing, training, tuning; its environment; its tables and targets
    cases.py        what kernels are measured on: inputs, gradients, exact results
    peers.py        who is measured beside them: *_peers.py, one small adapter each; documents.py, packed ones
    rounds.py       contenders that take turns in one process
    names.py        names that have a part to play
    report.py       `distill bench report`: docs/benchmarks.md from the results; report_*.py, its page and sections; plots.py,
                    bar charts
    packing.py      `distill bench packing`: planning, balance, rendering and tokenizing
    training.py     `distill bench training`: our trainer beside TRL's on the same work
    training_memory.py  `distill bench training --memory`: what a step takes as its row grows
    memory_child.py a process in which memory is measured, and its peak
    gap.py          `distill bench gap`: what reasoning costs beside IFT, in training and in answering; gap_*.py, the two
                    halves, its tables and its page
    traces.py       `distill bench traces`: generation through our teacher beside vLLM's own
    evaluation.py   `distill bench evaluation`: evaluation_generation.py, its loop beside vLLM's own; evaluation_grading.py,
                    how fast answers are graded
    serving.py      `distill bench serving`: our load beside vLLM's client, what measuring costs the server, the
                    clients' ceiling; serving_turns.py, who takes turns; serving_child.py, vLLM's client
    offline.py      vLLM's own offline generation; offline_child.py, its process
    workload.py     what the training benchmark trains on: documents and one initial student
    contender.py    the child process that trains with one trainer, a few steps at a time
    turns.py        how the parent lets such children take turns
    peer.py         TRL's SFTTrainer set up to do our work, and the record of what it did
    spread.py       ratios of paired measurements and their intervals
    machine.py      what a number was measured on

Importing this package imports neither torch nor trl.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "KernelBenchSettings": "kernels",
    "bench_kernels": "kernels",
    "GpuSuiteSettings": "gpu_pieces",
    "bench_gpu": "gpu",
    "PackingBenchSettings": "packing",
    "bench_packing": "packing",
    "TrainingBenchSettings": "training",
    "bench_training": "training",
    "TrainingMemorySettings": "training_memory",
    "bench_training_memory": "training_memory",
    "TracesBenchSettings": "traces",
    "bench_traces": "traces",
    "EvaluationBenchSettings": "evaluation",
    "bench_evaluation": "evaluation",
    "ServingBenchSettings": "serving",
    "bench_serving": "serving",
    "GapSettings": "gap",
    "bench_gap": "gap",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
