"""`distill bench gap`: what reasoning costs beside IFT, in training and in answering, measured beside modelled.

Same student, same problems, same settings. Both arms train packed, in turns of a few steps; both students stand behind
vLLM servers that get the same questions in turns. A cost factor is reasoning over IFT, taken apart as

    cost factor = token factor x per-token factor

per training example, per answer, and per correct answer (all tokens and seconds, unfinished answers included, over
correct ones). `modelled` counts FLOPs from shapes and lengths; `measured` takes seconds and joules, with a 95 % interval
over the interleaved rounds, and over the questions, of which every round has its own. It speaks of these two students,
not of reasoning as such.

The result:

    machine, settings        what it ran on, GapSettings as given
    training
      ift, reasoning         steps, examples, tokens_per_example, supervised_tokens_per_example, flops_per_example
        measured             seconds_per_step, seconds_per_example, tokens_per_second, supervised_tokens_per_second,
                             mfu, peak_memory_bytes (of tensors on a GPU, else of the process), joules_per_example
      factor                 as below
      no_energy              why joules are None; null where they are measured
    inference
      no_energy
      levels[]               one per task and concurrency
        task, concurrency
        ift, reasoning       answers, correct, unfinished, and per answer prompt_tokens, output_tokens, thinking_tokens
          modelled           prefill_flops, decode_flops: to read the question up to the first token, to write the others
          measured
            output_tokens_per_s        in the steady window (serve/load/steady.py)
            per_answer, per_correct    {"seconds", "joules"} of the machine (evaluation/serving/cost.py)
                                       these three {value, low, high}
            ttft_s                     mean, as a client sees it
            prefill_s, decode_s        vLLM's own means per request; null where it says nothing
            mfu                        modelled FLOPs over what the device could do in that time
            flops_by_server, mfu_by_server      the same by vLLM's own estimate, on a GPU; else null
        prefill, decode      {"modelled": FLOPs, "measured": prefill_s or decode_s}, reasoning over IFT
        per_answer, per_correct        factors as below; tokens are output tokens; null where an arm has no correct one

A factor is {"modelled", "measured", "joules"}, each {"tokens", "per_token", "cost"}, reasoning over IFT: plain numbers
when modelled, else {value, low, high}; "measured" is in seconds, and "joules" null without a meter.
"""

import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from distill import console
from distill.settings import Settings

ARMS = ("ift", "reasoning")


class GapSettings(Settings):
    """Defaults fit the embedded tasks on a CPU."""

    ift: Path | None = Field(
        None, description="a student trained on IFT, with `reasoning` its twin; else both are trained"
    )
    reasoning: Path | None = None
    student: str | None = Field(None, description="what is trained: tiny, small, a folder; default tiny, or `ift`")

    steps: int | None = Field(None, ge=4, description="of each training; default one epoch, 40 with students given")
    turn_steps: int = Field(10, ge=1, description="steps of one arm before the other's turn")
    batch: int = Field(32, ge=1, description="examples of a step")
    row_tokens: int = Field(1024, ge=64)
    seed: int = 0

    tasks: tuple[str, ...] = Field((), description="whose questions are answered; default those of the traces")
    concurrencies: tuple[int, ...] = Field((1, 16), min_length=1)
    requests: int = Field(32, ge=1, description="measured questions of a task at a concurrency in a round")
    rounds: int = Field(3, ge=1)
    max_tokens: int = Field(512, ge=1)
    threads: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _students_come_in_pairs(self) -> "GapSettings":
        if (self.ift is None) != (self.reasoning is None):
            raise ValueError("give both --ift and --reasoning, or neither")
        return self

    @property
    def origin(self) -> str:
        """What both arms start from."""
        return self.student or (str(self.ift) if self.ift else "tiny")


def bench_gap(settings: GapSettings, traces: Path) -> dict[str, Any]:
    """Run the benchmark; the result is described at the top of this file. Raises InputError."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from distill.bench.gap_inference import measure_inference, prepare_questions
    from distill.bench.gap_training import measure_training
    from distill.bench.machine import machine
    from distill.packing.source import read_traces
    from distill.serve import EnergyMeter
    from distill.serve.server import require_vllm

    require_vllm()
    disable_progress_bar()  # transformers would show one for every load
    torch.set_num_threads(settings.threads)
    about = machine()
    trace_set = read_traces(traces)
    asked = prepare_questions(settings, trace_set)
    gpus = [0] if torch.cuda.is_available() else None  # what others draw is none of ours
    with tempfile.TemporaryDirectory(prefix="distill-bench-") as name, EnergyMeter(gpus) as meter:
        training, students = measure_training(settings, traces, trace_set, Path(name), meter)
        inference = measure_inference(settings, asked, students, Path(name), meter)
    values = settings.model_dump(mode="json")
    return {"machine": about, "settings": values, "training": training, "inference": inference}


def show_gap(result: dict[str, Any]) -> None:
    """The result as tables on standard output."""
    from distill.bench.gap_tables import gap_tables

    for title, columns, rows in gap_tables(result):
        console.table(title, columns, rows)
    for half in ("training", "inference"):
        if result[half]["no_energy"]:
            console.note(f"energy of {half}: {result[half]['no_energy']}")
