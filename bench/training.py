"""`distill bench training`: our trainer beside TRL's SFTTrainer on the same model, data and machine, in one run.

Contenders, each a child process of its own: ours packed and padded; TRL packed (`packing=True`, strategy bfd) and
padded, both without recomputation; TRL packed with gradient checkpointing, its default, which needs less memory. In
every round each of them trains for `steps` steps while the others wait, and ratios are taken within a round.

Before that, in fp32, every contender takes one step on the same documents: loss and gradient norm show that the
same work is measured, and whether packed documents see each other.

The result:

    machine                  what it ran on
    settings                 TrainingBenchSettings as given
    workload                 documents, parameters, vocabulary, mean_tokens; supervised_tokens over all documents;
                             documents_per_padded_step
    agreement                {contender: {"loss", "gradient_norm", "supervised_tokens", "isolated"}} in fp32; isolated: the
                             loss is that of our padded trainer, so no document sees another (None for padded ones)
    contenders               {name: ...}
      supervised_tokens_total, attention      what TRL made of the same documents (None for ours: see workload)
      tokens_per_step, supervised_tokens_per_step      means over timed steps, padding left out
      measured
        seconds_per_step, tokens_per_second, supervised_tokens_per_second, mfu      over all timed steps
        rounds               supervised tokens/s of each round
        rss_bytes            {"start": after the first step, "step_10", "end"}, None if there were fewer steps
        peak_rss_bytes       of the process, up to the last timed step; the same number of steps for everyone
    measured
      ratios                 {contender: {"supervised_tokens_per_second": ours packed over that one, value with a 95 %
                             interval over rounds (spread.py), "peak_rss_bytes": the plain quotient}}
      peak_flops             of a matrix product, what MFU is a share of: median over rounds
"""

import importlib.util
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
from pydantic import Field

from distill import console
from distill.bench.spread import ratio, shown
from distill.errors import InputError
from distill.settings import Settings

Name = Literal["packed", "padded", "trl-packed", "trl-padded", "trl-packed-checkpointed"]
CONTENDERS: tuple[Name, ...] = ("packed", "padded", "trl-packed", "trl-padded", "trl-packed-checkpointed")
FLAT_AFTER = 10  # steps after which memory should have stopped growing
SPARE_STEPS = 2  # planned beyond the timed ones: training must not end inside a turn
LOSS_TOLERANCE = 1e-5  # relative, fp32: sums of a few thousand terms in another order


class TrainingBenchSettings(Settings):
    """One optimizer step is `row_tokens` tokens for everyone, up to what packing leaves empty."""

    data: str = Field("synthetic", description="synthetic, gsm8k:PATH, aqua:PATH or pairs:PATH")
    student: str = Field("medium", description="a from-scratch size")
    vocabulary: int = Field(8192, ge=262)
    row_tokens: int = Field(4096, ge=64)
    steps: int = Field(10, ge=1, description="timed steps of each contender in each round")
    pairs: int = Field(3, ge=1, description="rounds")
    warmup_steps: int = Field(3, ge=1)
    threads: int = Field(2, ge=1)
    precision: Literal["bf16", "fp32"] = "bf16"
    learning_rate: float = Field(1e-3, gt=0)
    documents: int = Field(2000, ge=1, description="of synthetic data")
    contenders: tuple[Name, ...] = CONTENDERS
    seed: int = 0

    @property
    def total_steps(self) -> int:
        return self.warmup_steps + self.pairs * self.steps


def bench_training(settings: TrainingBenchSettings) -> dict[str, Any]:
    """Run the benchmark; the result is described at the top of this file. Raises InputError."""
    if any(name.startswith("trl") for name in settings.contenders) and importlib.util.find_spec("trl") is None:
        raise InputError("TRL is not installed: pip install 'distill-stack[dev]'")
    import torch
    from transformers.utils.logging import disable_progress_bar

    from distill.bench.machine import machine

    disable_progress_bar()  # transformers would show one for every load
    torch.set_num_threads(settings.threads)
    about = machine()
    with tempfile.TemporaryDirectory(prefix="distill-bench-") as name:
        bench = _Bench(settings, Path(name))
        agreement = bench.agreement()
        runs, peaks = bench.run()
        return bench.result(agreement, runs, peaks) | {"machine": about}


class _Bench:
    """The workload, the plans of our own contenders, and what is asked of each child."""

    def __init__(self, settings: TrainingBenchSettings, folder: Path):
        from distill.bench.workload import build_workload, write_examples
        from distill.packing.source import read_traces
        from distill.training.prepare import make_ready
        from distill.training.settings import TrainSettings

        self.settings, self.folder = settings, folder
        self.workload = build_workload(
            settings.data, settings.student, settings.vocabulary, settings.documents, settings.seed, folder
        )
        trace_set = read_traces(self.workload.traces)
        steps = settings.total_steps + SPARE_STEPS
        self.base = TrainSettings(
            student=str(self.workload.student),
            arm="reasoning",
            seed=settings.seed,
            row_tokens=settings.row_tokens,
            batch=settings.row_tokens,
            batch_unit="tokens",
            tokens=steps * settings.row_tokens,
            learning_rate=settings.learning_rate,
            schedule="constant",
            precision=settings.precision,
        )
        ready = make_ready(self.base, trace_set, weights=False)
        self.shape = ready.origin.shape
        rendered = ready.rendered
        self.documents = rendered.documents[1::2]  # those with reasoning
        self.mean_tokens = float(np.mean([d.length for d in self.documents]))
        self.padded_batch = max(1, int(settings.row_tokens // self.mean_tokens))
        epochs = -(-steps * self.padded_batch // len(self.documents))
        changes = {"packed": False, "batch": self.padded_batch, "batch_unit": "examples"}
        padded = self.base.model_copy(update={**changes, "tokens": None, "epochs": epochs})
        self.train_settings = {"packed": self.base, "padded": padded}
        self.plans = {"packed": ready.steps, "padded": make_ready(padded, trace_set, weights=False).steps}

        by_id = {pair.problem.id: pair for pair in trace_set.pairs}
        order = [r // 2 for step in self.plans["padded"] for row in step.rows for r in row]
        total = np.cumsum([self.documents[i].length + 1 for i in order[: self.padded_batch]])
        self.first = [rendered.pair_ids[i] for i in order[: max(1, int((total <= settings.row_tokens).sum()))]]
        orders = {"first": self.first, "padded": [rendered.pair_ids[i] for i in order], "packed": rendered.pair_ids}
        for name, ids in orders.items():
            write_examples([by_id[i] for i in ids], ready.origin.chat.think, self._examples(name))

    def _examples(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def agreement(self) -> dict[str, dict[str, Any]]:
        from distill.bench.agreement import measure_agreement

        spec = {
            "student": str(self.workload.student),
            "traces": str(self.workload.traces),
            "pair_ids": self.first,
            "examples": str(self._examples("first")),
            "row_tokens": self.settings.row_tokens,
            "contenders": sorted({*self.settings.contenders, "padded"}),
            "learning_rate": self.settings.learning_rate,
            "adam_betas": self.base.adam_betas,
        }
        console.note("comparing first steps on the same documents")
        steps = measure_agreement(spec, self.folder, self.settings.threads)
        expected = steps["padded"]["loss"]
        for name, step in steps.items():
            same = abs(step["loss"] - expected) <= LOSS_TOLERANCE * expected
            step["isolated"] = None if name.endswith("padded") else same
        return steps

    def _spec(self, name: str) -> dict[str, Any]:
        out = str(self.folder / name)
        if not name.startswith("trl"):
            values = self.train_settings[name].model_dump(mode="json")
            return {"trainer": "distill", "settings": values, "traces": str(self.workload.traces), "out": out}
        packed = name != "trl-padded"
        values = {
            "student": str(self.workload.student),
            "packed": packed,
            "row_tokens": self.settings.row_tokens,
            "batch": 1 if packed else self.padded_batch,
            "max_steps": self.settings.total_steps + SPARE_STEPS,
            "learning_rate": self.base.learning_rate,
            "adam_betas": self.base.adam_betas,
            "gradient_clip": self.base.gradient_clip,
            "precision": self.settings.precision,
            "gradient_checkpointing": name == "trl-packed-checkpointed",
        }
        examples = self._examples("packed" if packed else "padded")
        return {"trainer": "trl", "settings": values, "examples": str(examples), "out": out}

    def run(self) -> tuple[dict[str, dict[str, Any]], list[float]]:
        """{contender: {"first": its first report, "steps": records of all steps}}, and peak FLOP/s of each round."""
        from distill.bench.turns import Contender

        settings, peaks = self.settings, []
        names = settings.contenders
        with ExitStack() as stack, console.progress("{task.fields[now]}") as bar:
            task = bar.add_task("training", total=len(names) * (1 + settings.pairs), now="")
            runs, children = {}, {}
            for name in names:
                bar.update(task, now=f"{name}: warming up")
                children[name] = stack.enter_context(Contender(name, self._spec(name), self.folder, settings.threads))
                first = children[name].first_step()
                runs[name] = {"first": first, "steps": first["steps"]}
                if settings.warmup_steps > 1:
                    runs[name]["steps"] += children[name].turn(settings.warmup_steps - 1)
                bar.advance(task)
            for number in range(settings.pairs):
                peaks.append(self._peak())
                for name in names if number % 2 == 0 else reversed(names):
                    bar.update(task, now=f"{name}: round {number + 1} of {settings.pairs}")
                    runs[name]["steps"] += children[name].turn(settings.steps)
                    bar.advance(task)
        for name in names:
            for index, record in enumerate(runs[name]["steps"] if name in self.plans else []):
                record.update(self._planned(name, index))
        return runs, peaks

    def _peak(self) -> float:
        import torch

        from distill.training.peak import peak_flops

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return peak_flops(device, torch.bfloat16 if self.settings.precision == "bf16" else torch.float32)[0]

    def _planned(self, name: str, index: int) -> dict[str, Any]:
        """What one of our steps trains on: the plan says so beforehand."""
        rows = [[self.documents[r // 2] for r in row] for row in self.plans[name][index].rows]
        documents = [d for row in rows for d in row]
        tokens = sum(d.length for d in documents)
        supervised = sum(d.supervised for d in documents)
        return {
            "examples": len(documents),
            "tokens": tokens,
            "supervised_tokens": supervised,
            "flops": self.shape.training_flops([d.length for d in documents], supervised),
        }

    def result(self, agreement: dict[str, Any], runs: dict[str, dict[str, Any]], peaks: list[float]) -> dict[str, Any]:
        settings = self.settings
        contenders = {name: self._contender(runs[name], median(peaks)) for name in settings.contenders}
        ratios = {}
        if "packed" in contenders:
            ours = contenders["packed"]["measured"]
            for name, other in ((n, c["measured"]) for n, c in contenders.items() if n != "packed"):
                ratios[name] = {
                    "supervised_tokens_per_second": ratio(ours["rounds"], other["rounds"]),
                    "peak_rss_bytes": ours["peak_rss_bytes"] / other["peak_rss_bytes"],
                }
        return {
            "settings": settings.model_dump(mode="json") | {"data": _file_name(settings.data)},
            "workload": {
                "documents": len(self.documents),
                "mean_tokens": self.mean_tokens,
                "supervised_tokens": sum(d.supervised for d in self.documents),
                "documents_per_padded_step": self.padded_batch,
                "parameters": self.workload.parameters,
                "vocabulary": self.workload.vocabulary,
            },
            "agreement": agreement,
            "contenders": contenders,
            "measured": {"ratios": ratios, "peak_flops": median(peaks)},
        }

    def _contender(self, run: dict[str, Any], peak: float) -> dict[str, Any]:
        settings, first = self.settings, run["first"]
        steps = run["steps"]
        timed = steps[settings.warmup_steps :]
        seconds = sum(s["seconds"] for s in timed)
        total = {key: sum(s[key] for s in timed) for key in ("tokens", "supervised_tokens", "flops")}
        rounds = [timed[i : i + settings.steps] for i in range(0, len(timed), settings.steps)]
        return {
            "supervised_tokens_total": first.get("supervised_tokens_total"),
            "attention": first.get("attention"),
            "tokens_per_step": total["tokens"] / len(timed),
            "supervised_tokens_per_step": total["supervised_tokens"] / len(timed),
            "measured": {
                "seconds_per_step": seconds / len(timed),
                "tokens_per_second": total["tokens"] / seconds,
                "supervised_tokens_per_second": total["supervised_tokens"] / seconds,
                "mfu": total["flops"] / seconds / peak,
                "rounds": [sum(s["supervised_tokens"] for s in r) / sum(s["seconds"] for s in r) for r in rounds],
                "rss_bytes": {
                    "start": steps[0]["rss_bytes"],
                    "step_10": steps[FLAT_AFTER - 1]["rss_bytes"] if len(steps) > FLAT_AFTER else None,
                    "end": steps[-1]["rss_bytes"],
                },
                "peak_rss_bytes": steps[-1]["peak_rss_bytes"],
            },
        }


def show_training(result: dict[str, Any]) -> None:
    """The result as tables on standard output."""
    gib = 1 << 30
    rows = []
    for name, contender in result["contenders"].items():
        m, ratios = contender["measured"], result["measured"]["ratios"].get(name)
        rss = [m["rss_bytes"][key] for key in ("start", "step_10", "end")]
        rows.append(
            [
                name,
                f"{m['supervised_tokens_per_second']:,.0f}",
                f"{m['tokens_per_second']:,.0f}",
                f"{m['seconds_per_step']:.3f}",
                f"{m['mfu']:.1%}",
                f"{m['peak_rss_bytes'] / gib:.2f}",
                " / ".join("-" if value is None else f"{value / gib:.2f}" for value in rss),
                shown(ratios["supervised_tokens_per_second"]) if ratios else "",
            ]
        )
    titles = ["contender", "supervised tok/s", "tok/s", "s/step", "MFU", "peak GiB", "GiB at 1 / 10 / end"]
    console.table("training", [*titles, "ours packed over it"], rows)
    agreement = [
        [name, f"{a['loss']:.7f}", f"{a['gradient_norm']:.6f}", a["supervised_tokens"], _isolation(a["isolated"])]
        for name, a in result["agreement"].items()
    ]
    columns = ["first step, fp32", "loss", "gradient norm", "supervised tokens", "documents"]
    console.table("the same documents to everyone", columns, agreement)


def _isolation(isolated: bool | None) -> str:
    return {None: "one a row", True: "isolated", False: "see each other"}[isolated]


def _file_name(data: str | None) -> str | None:
    """`gsm8k:FILE` without the folders: where it lies says something of the machine, not of the result."""
    if data is None:
        return None
    layout, _, path = data.partition(":")
    return f"{layout}:{Path(path).name}"
