"""`distill bench gap`: what reasoning costs beside IFT, in training and in answering, measured beside modelled.

Same student, same problems, same settings. Both arms train packed, in turns of a few steps; both students stand behind
vLLM servers that get the same questions in turns. A cost factor is reasoning over IFT, taken apart as

    cost factor = token factor x per-token factor

per training example, per answer, and per correct answer (all tokens and seconds, unfinished answers included, over
correct ones). `modelled` counts FLOPs from shapes and lengths; `measured` takes seconds, with a 95 % interval over the
interleaved rounds (spread.py). Every round has questions of its own, so that interval holds their choice, too; it
speaks of these two students, not of reasoning as such.

The result:

    machine, settings        what it ran on, GapSettings as given
    training
      ift, reasoning         steps, examples, tokens_per_example, supervised_tokens_per_example, flops_per_example
        measured             seconds_per_step, seconds_per_example, tokens_per_second, supervised_tokens_per_second,
                             mfu, peak_rss_bytes
      factor                 {"modelled": {"tokens", "per_token", "cost"}, "measured": the same as ratios}
    inference
      questions              {task: how many}
      levels[]               one per concurrency
        concurrency
        ift, reasoning       answers, correct, unfinished; per answer: prompt_tokens, output_tokens, thinking_tokens, flops
          measured           seconds_per_answer (server busy), seconds_per_correct, ttft_s, decode_s (means per
                             answer, as a client sees them), output_tokens_per_second, server_prefill_s,
                             server_decode_s (vLLM's own means)
        per_answer, per_correct       {"modelled": ..., "measured": ...} as in training; tokens are output tokens;
                             None where an arm has no correct answer
"""

import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from distill import console
from distill.bench.spread import shown
from distill.settings import Settings


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
    requests: int = Field(32, ge=1, description="questions of a level in a round")
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
    from distill.serve.server import require_vllm

    require_vllm()
    disable_progress_bar()  # transformers would show one for every load
    torch.set_num_threads(settings.threads)
    about = machine()
    trace_set = read_traces(traces)
    asked = prepare_questions(settings, trace_set)
    with tempfile.TemporaryDirectory(prefix="distill-bench-") as name:
        training, students = measure_training(settings, traces, trace_set, Path(name))
        inference = measure_inference(settings, asked, students, Path(name))
    values = settings.model_dump(mode="json")
    return {"machine": about, "settings": values, "training": training, "inference": inference}


def show_gap(result: dict[str, Any]) -> None:
    """The result as tables on standard output."""
    training, levels = result["training"], result["inference"]["levels"]
    rows = []
    for arm in ("ift", "reasoning"):
        t, m = training[arm], training[arm]["measured"]
        rows.append(
            [
                arm,
                f"{t['tokens_per_example']:.1f}",
                f"{m['seconds_per_example'] * 1e3:.2f}",
                f"{m['seconds_per_step']:.3f}",
                f"{m['tokens_per_second']:,.0f}",
                f"{m['supervised_tokens_per_second']:,.0f}",
                f"{m['mfu']:.1%}",
                f"{m['peak_rss_bytes'] / (1 << 30):.2f}",
            ]
        )
    columns = ["training", "tok/example", "ms/example", "s/step", "tok/s", "supervised tok/s", "MFU", "peak GiB"]
    console.table("packed training", columns, rows)

    rows = []
    for level in levels:
        for arm in ("ift", "reasoning"):
            a, m = level[arm], level[arm]["measured"]
            per_correct = m["seconds_per_correct"]
            rows.append(
                [
                    f"{arm} at {level['concurrency']}",
                    f"{a['correct']}/{a['answers']}",
                    f"{a['unfinished']}",
                    f"{a['output_tokens']:.1f}",
                    f"{m['ttft_s'] * 1e3:.1f}",
                    *("-" if m[k] is None else f"{m[k] * 1e3:.1f}" for k in ("server_prefill_s", "server_decode_s")),
                    f"{m['seconds_per_answer'] * 1e3:.2f}",
                    "-" if per_correct is None else f"{per_correct * 1e3:.2f}",
                ]
            )
    columns = ["answering", "correct", "unfinished", "tok/answer", "TTFT ms", "prefill ms", "decode ms"]
    columns += ["ms/answer", "ms/correct"]
    console.table("answers through vLLM, at a concurrency", columns, rows)

    rows = [factor_row("training, per example", training["factor"])]
    for level in levels:
        for unit in ("answer", "correct"):
            rows.append(factor_row(f"per {unit} at {level['concurrency']}", level[f"per_{unit}"]))
    columns = ["reasoning over IFT", "tokens", "per token, modelled", "measured", "cost, modelled", "measured"]
    console.table("cost factor = token factor x per-token factor", columns, rows)


def factor_row(name: str, factor: dict[str, Any] | None) -> list[str]:
    """A factor of tokens, per token and of cost, modelled beside measured; dashes where there is none."""
    if factor is None:
        return [name, *["-"] * 5]
    modelled, measured = factor["modelled"], factor["measured"]
    return [
        name,
        f"{modelled['tokens']:.3g}x",
        f"{modelled['per_token']:.3g}x",
        shown(measured["per_token"]),
        f"{modelled['cost']:.3g}x",
        shown(measured["cost"]),
    ]
