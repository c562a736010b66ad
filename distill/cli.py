"""Every command. Parses, calls one function, prints; no logic. Heavy imports happen inside the commands."""

import errno
import os
import secrets
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from distill import __version__, console
from distill.errors import InputError

INTERRUPTED = 128 + signal.SIGINT
UsageError = typer.BadParameter.__bases__[0]  # click's, or that of the copy which newer versions of typer carry

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write; made, or gone on with if it is there.")]

# The groups of what `distill train --help` lists.
_before, _student, _arm, _batch, _loss, _schedule, _validation, _lora, _machine, _progress = (
    partial(typer.Option, rich_help_panel=title)
    for title in (
        "Before training",
        "Student",
        "What it is shown, and how long",
        "Rows and steps",
        "Loss",
        "Learning rate",
        "Validation",
        "LoRA",
        "Machine",
        "Checkpoints and logs",
    )
)

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
traces_app = typer.Typer(no_args_is_help=True, help="Paired traces: each question answered with and without reasoning.")
serve_app = typer.Typer(no_args_is_help=True, help="A student behind vLLM, under load.")
study_app = typer.Typer(no_args_is_help=True, help="The whole study: arms x sizes x seeds, to a verdict.")
bench_app = typer.Typer(no_args_is_help=True, help="Measured: kernels and training against peers, and the cost gap.")
app.add_typer(traces_app, name="traces")
app.add_typer(serve_app, name="serve")
app.add_typer(study_app, name="study")
app.add_typer(bench_app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"distill {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Is it worth training my model on reasoning traces?"""


@traces_app.command("generate")
def traces_generate(
    tasks: Annotated[str, typer.Option(help="Tasks and how many problems of each: add=8000,max=4000,gsm8k:PATH=1000.")],
    out: Out,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    seed: Annotated[int, typer.Option(help="Of the choice of problems and of the teacher's sampling.")] = 0,
    teacher: Annotated[str, typer.Option(help="'solver', or the URL of an OpenAI-compatible server.")] = "solver",
    model: Annotated[str | None, typer.Option(help="The model's name at that server.")] = None,
    thinking: Annotated[str, typer.Option(help="How reasoning is switched: template or system.")] = "template",
    temperature: float = 0.6,
    top_p: float = 0.95,
    max_tokens: Annotated[int, typer.Option(help="Limit of reasoning and answer together.")] = 4096,
    revision: Annotated[str, typer.Option(help="Of the model's weights, where it is known.")] = "",
    usd_per_million_input: Annotated[float | None, typer.Option(help="Price of the prompts' tokens.")] = None,
    usd_per_million_output: Annotated[float | None, typer.Option(help="Price of the generated tokens.")] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Keep so many log-probabilities at every token, to distil from (vLLM).")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="The teacher's, for --top-k: a folder or Hub id; --model if not given.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests in flight.")] = 32,
    api_key_env: Annotated[str, typer.Option(help="Environment variable that holds the key.")] = "OPENAI_API_KEY",
    json: Json = False,
) -> None:
    """Ask a teacher every question twice, with and without reasoning.

    Example: distill traces generate --tasks add=8000,max=4000 --out out/traces
    """
    from distill.settings import validate
    from distill.traces.generate import generate
    from distill.traces.settings import GenerateSettings

    if teacher == "solver" and top_k is None:
        who: Any = "solver"
    else:
        sampling = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
        where = {"url": teacher, "model": model or "", "revision": revision, "api_key_env": api_key_env}
        prices = {"usd_per_million_input": usd_per_million_input, "usd_per_million_output": usd_per_million_output}
        capture = {"top_k": top_k, "tokenizer": tokenizer}
        who = {**where, **prices, **sampling, **capture, "thinking": thinking, "concurrency": concurrency}
    values = {"tasks": _counts(tasks), "split": split, "seed": seed, "teacher": who}
    _show(generate(validate(GenerateSettings, values, source="command line"), out), json)


@traces_app.command("import")
def traces_import(
    file: Annotated[Path, typer.Argument(help="JSONL or Parquet.")],
    out: Out,
    layout: Annotated[str, typer.Option(help="pairs, gsm8k or aqua.")] = "pairs",
    skip_bad: Annotated[bool, typer.Option(help="Put malformed rows aside, counted, instead of stopping.")] = False,
    splits: Annotated[
        str | None, typer.Option(help="train or all; train for gsm8k and aqua, so that test questions stay out.")
    ] = None,
    json: Json = False,
) -> None:
    """Read pairs from a file that has them.

    Example: distill traces import pairs.jsonl --layout pairs --out out/traces
    """
    from distill.traces.import_traces import import_file

    _show(import_file(file, layout, out, skip_bad=skip_bad, splits=splits), json)


@traces_app.command("stats")
def traces_stats(
    traces: Annotated[Path, typer.Argument(help="A folder made by `distill traces generate` or `import`.")],
    tokenizer: Annotated[Path | None, typer.Option(help="A folder with a tokenizer, to count its tokens.")] = None,
    json: Json = False,
) -> None:
    """What is in a trace set: pairs, lengths, agreement of the two modes, cost.

    Example: distill traces stats out/traces --json
    """
    from distill.traces.stats import stats

    _show_dict("traces", stats(traces, tokenizer), json)


@app.command()
def train(
    traces: Annotated[Path, typer.Option(help="A folder of traces.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; made, or gone on with if it is there.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML or JSON with any of the settings below; flags win.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of weights, order and what is shown with reasoning.", show_default="0")
    ] = None,
    json: Json = False,
    show_batch: Annotated[
        bool, _before("--show-batch", help="Print the first row, supervised tokens marked; train nothing.")
    ] = False,
    dry_run: Annotated[bool, _before("--dry-run", help="Print tokens, FLOPs, memory and time; train nothing.")] = False,
    ranks: Annotated[
        int | None, _before(help="Devices that --dry-run counts for; torchrun's, or 1, if not given.")
    ] = None,
    student: Annotated[str | None, _student(help="tiny, small, medium, a Hugging Face folder, or a Hub id.")] = None,
    vocab_size: Annotated[
        int | None, _student(help="Of a from-scratch student's tokenizer.", show_default="512")
    ] = None,
    think_tags: Annotated[
        str | None,
        _student(help="What marks reasoning where the tokenizer has no token <think>: '<think>,</think>'."),
    ] = None,
    arm: Annotated[str | None, _arm(help="ift, reasoning, mixed:R or sequential:R.", show_default="reasoning")] = None,
    answers: Annotated[
        str | None,
        _arm(
            help="teacher: its own in that mode; stripped: that with reasoning, without it; gold: the given one.",
            show_default="teacher",
        ),
    ] = None,
    mode_signal: Annotated[
        str | None,
        _arm(help="none, or prompt: the question ends with the mode that is wanted.", show_default="none"),
    ] = None,
    epochs: Annotated[int | None, _arm(help="How often every pair is shown.", show_default="1")] = None,
    tokens: Annotated[int | None, _arm(help="Train until this many input tokens instead.")] = None,
    match: Annotated[
        str | None,
        _arm(help="Train as long as arm reasoning by samples, steps, tokens or flops.", show_default="samples"),
    ] = None,
    packed: Annotated[
        bool | None, _batch("--packed/--padded", help="Packed rows (the default), or one document a row.")
    ] = None,
    row_tokens: Annotated[
        int | None, _batch(help="Tokens of a packed row, and of the longest document.", show_default="4096")
    ] = None,
    batch: Annotated[
        int | None, _batch(help="Size of an optimizer step, of all devices together.", show_default="32")
    ] = None,
    batch_unit: Annotated[str | None, _batch(help="examples or tokens.", show_default="examples")] = None,
    balance_ranks: Annotated[
        int | None, _batch(help="Devices a batch of tokens is balanced for; those there are if not given.")
    ] = None,
    loss_weight: Annotated[
        str | None, _loss(help="What weighs the same: token, example or answer.", show_default="token")
    ] = None,
    z_loss: Annotated[
        float | None, _loss(help="This times lse^2 is added to a token's loss.", show_default="0")
    ] = None,
    distillation_weight: Annotated[
        float | None,
        _loss(help="0 to 1: learn so much from the teacher's distributions, else from its text.", show_default="0"),
    ] = None,
    divergence: Annotated[
        str | None,
        _loss(help="From those distributions: forward_kl, reverse_kl or jsd.", show_default="forward_kl"),
    ] = None,
    learning_rate: Annotated[
        str | None, _schedule(help="Peak; 1e-5, with LoRA 1e-4, or a size's own. 1e-4,3e-4: the best on validation.")
    ] = None,
    schedule: Annotated[str | None, _schedule(help="cosine, wsd, linear or constant.", show_default="cosine")] = None,
    warmup_steps: Annotated[int | None, _schedule(help="Length of the linear warm-up.", show_default="0")] = None,
    decay_steps: Annotated[int | None, _schedule(help="Length of the decay of schedule wsd.")] = None,
    final_learning_rate_ratio: Annotated[
        float | None, _schedule(help="Floor of the schedule, as a share of the peak.", show_default="0.1")
    ] = None,
    one_schedule: Annotated[
        bool | None, _schedule("--one-schedule", help="One schedule over all phases of an arm, not one for each.")
    ] = None,
    weight_decay: Annotated[float | None, _schedule(help="Of matrices.", show_default="0")] = None,
    gradient_clip: Annotated[float | None, _schedule(help="Largest norm of a gradient.", show_default="1")] = None,
    validation: Annotated[
        float | None, _validation(help="Share of the pairs held out, by a hash.", show_default="0")
    ] = None,
    validation_epochs: Annotated[
        int | None, _validation(help="Validate every so many epochs.", show_default="1")
    ] = None,
    validation_steps: Annotated[int | None, _validation(help="Validate every so many steps instead.")] = None,
    keep: Annotated[
        str | None, _validation(help="last, or best: the weights of lowest validation loss.", show_default="last")
    ] = None,
    lora_rank: Annotated[int | None, _lora(help="Train adapters of this rank instead of the weights.")] = None,
    lora_alpha: Annotated[float | None, _lora(help="Adapters count alpha / rank; 32 if not given.")] = None,
    lora_targets: Annotated[
        str | None, _lora(help="Layers, as q_proj,v_proj; all-linear, which is all, if not given.")
    ] = None,
    merge: Annotated[bool | None, _lora("--merge", help="Save the whole model with its adapters added in.")] = None,
    precision: Annotated[
        str | None, _machine(help="auto (bf16 where it is faster), fp32 or bf16.", show_default="auto")
    ] = None,
    compile: Annotated[
        str | None, _machine(help="Layers by torch.compile: auto (on GPUs), on or off.", show_default="auto")
    ] = None,
    activation_checkpointing: Annotated[
        str | None,
        _machine(help="off, selective or full: less memory for more work, same weights.", show_default="off"),
    ] = None,
    cpu_offload: Annotated[
        bool | None, _machine("--cpu-offload", help="Keep a GPU's weights and moments in the CPU's memory.")
    ] = None,
    threads: Annotated[int | None, _machine(help="CPU threads.")] = None,
    documents: Annotated[
        Path | None, _progress(help="Folder where tokenized documents are kept, shared by trainings.")
    ] = None,
    checkpoint_seconds: Annotated[
        float | None, _progress(help="Least time between checkpoints.", show_default="60")
    ] = None,
    checkpoint_steps: Annotated[int | None, _progress(help="Checkpoint every so many steps instead.")] = None,
    tensorboard: Annotated[bool | None, _progress(help="Write TensorBoard logs (the default).")] = None,
) -> None:
    """Train one student; the same command again goes on from the last checkpoint.

    Example: distill train --packed --traces out/traces --arm reasoning --student tiny --out out/student
    """
    given = {name: value for name, value in locals().items() if value is not None}
    if out is None and not (show_batch or dry_run):
        raise typer.BadParameter("a folder to write is needed.", param_hint="'--out'")
    if show_batch and dry_run:
        raise typer.BadParameter("--show-batch and --dry-run are two looks; take one at a time.")
    if (show_batch or dry_run) and os.environ.get("RANK", "0") != "0":
        return  # under torchrun, where one look is enough
    if ranks is not None and not dry_run:
        raise typer.BadParameter("only --dry-run takes it; a training has those of torchrun.", param_hint="'--ranks'")
    from distill.settings import read_yaml, validate
    from distill.training.settings import RunOptions, TrainSettings

    written = read_yaml(config) if config else {}
    source = f"{config} and command line" if config else "command line"
    run = {"out": Path()} | {name: written.pop(name) for name in RunOptions.model_fields if name in written}
    run |= {name: given[name] for name in RunOptions.model_fields if name in given}
    options = validate(RunOptions, run, source=source)
    flags = {name: given[name] for name in TrainSettings.model_fields if name in given}
    settings = validate(TrainSettings, written | flags, source=source)
    if show_batch:
        from distill.training.show_batch import print_batch
        from distill.training.show_batch import show_batch as first_batch

        _show_result(first_batch(settings, traces), print_batch, json)
        return
    if dry_run:
        from distill.training.dry_run import dry_run as estimate

        found = estimate(settings, traces, options, ranks or int(os.environ.get("WORLD_SIZE", "1")))
        _show_dict(f"{settings.arm} for {settings.student}, not trained", found, json)
        return
    from distill.training.train import train as train_student

    _show(train_student(settings, traces, options), json)


@app.command()
def evaluate(
    student: Annotated[Path, typer.Argument(help="A folder made by `distill train`, or any Hugging Face folder.")],
    tasks: Annotated[str, typer.Option(help="Tasks, with how many questions if not 300: add,max=100,gsm8k:PATH=50.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; STUDENT.evaluation if not given.")] = None,
    mode: Annotated[
        str | None, typer.Option(help="reasoning or ift, for a student trained with --mode-signal prompt.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    engine: Annotated[str, typer.Option(help="vllm, or transformers (slow).")] = "vllm",
    max_tokens: Annotated[int, typer.Option(help="Generation limit: an answer that hits it is wrong.")] = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the server.")] = None,
    port: Annotated[int | None, typer.Option(help="Of the server, on loopback; a free one if not given.")] = None,
    json: Json = False,
) -> None:
    """Ask a student a task's questions and grade its answers.

    Example: distill evaluate out/student --tasks add,max
    """
    from distill.evaluation.settings import EvaluateSettings
    from distill.settings import validate

    questions = [{"task": t, "count": n, "split": split, "seed": seed} for t, n in _counts(tasks, 300).items()]
    values = {"questions": questions, "mode": mode, "engine": engine, "max_tokens": max_tokens}
    values |= {"temperature": temperature, "top_p": top_p, "seed": seed}
    settings = validate(EvaluateSettings, values, source="command line")
    from distill.evaluation.evaluate import evaluate as evaluate_student

    _show(evaluate_student(settings, student, out or _beside(student, "evaluation"), threads=threads, port=port), json)


@serve_app.command("profile")
def serve_profile(
    student: Annotated[Path, typer.Argument(help="A folder made by `distill train`, or any Hugging Face folder.")],
    tasks: Annotated[str, typer.Option(help="Whose questions are sent: add,max.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; STUDENT.profile if not given.")] = None,
    mode: Annotated[
        str | None, typer.Option(help="reasoning or ift, for a student trained with --mode-signal prompt.")
    ] = None,
    concurrency: Annotated[str, typer.Option(help="Clients at a time, one level each.")] = "1,8,32",
    requests: Annotated[int, typer.Option(help="Measured at each level, for each task.")] = 64,
    warmup_requests: Annotated[int, typer.Option(help="Sent before and left out.")] = 4,
    max_tokens: int = 512,
    seed: int = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the server.")] = None,
    port: Annotated[int | None, typer.Option(help="Of the server, on loopback; a free one if not given.")] = None,
    json: Json = False,
) -> None:
    """Put a student under load: TTFT, TPOT, end-to-end latency, throughput, tokens per answer.

    Example: distill serve profile out/student --tasks add,max --concurrency 1,32
    """
    from distill.evaluation.profile import StudentProfileSettings, profile_student
    from distill.settings import validate

    values = {"tasks": list(_counts(tasks)), "concurrencies": concurrency.split(","), "requests": requests}
    values |= {"mode": mode, "warmup_requests": warmup_requests, "max_tokens": max_tokens, "seed": seed}
    settings = validate(StudentProfileSettings, values, source="command line")
    _show(profile_student(settings, student, out or _beside(student, "profile"), threads=threads, port=port), json)


@study_app.command("run")
def study_run(
    preset: Annotated[Path, typer.Argument(help="A study as YAML; see presets/.")],
    out: Out,
    workers: Annotated[int | None, typer.Option(help="Jobs at a time; one a core on a CPU, one on a GPU.")] = None,
    json: Json = False,
) -> None:
    """Run a study, or what is missing of it, and write results.json and report.html.

    Example: distill study run presets/embedded.yaml --out out/demo
    """
    from distill.settings import load
    from distill.study.settings import StudySettings

    settings = load(StudySettings, preset)
    from distill.study.run import run

    command = f"distill study run {preset} --out {out}"
    _show_study(run(settings, out, command=command, workers=workers), json)


@study_app.command("report")
def study_report(
    study: Annotated[Path, typer.Argument(help="A folder made by `distill study run`.")], json: Json = False
) -> None:
    """Write report.html again from results.json.

    Example: distill study report out/demo
    """
    from distill.study.report import write_report

    write_report(study)
    _show_study(study, json)


@bench_app.command("training")
def bench_training(
    data: Annotated[str, typer.Option(help="synthetic, gsm8k:PATH, aqua:PATH or pairs:PATH.")] = "synthetic",
    steps: Annotated[int, typer.Option(help="Timed steps of each contender in each round.")] = 10,
    pairs: Annotated[int, typer.Option(help="Rounds in which every contender takes its turn.")] = 3,
    row_tokens: Annotated[int, typer.Option(help="Tokens of a packed row, and of an optimizer step.")] = 4096,
    threads: Annotated[int, typer.Option(help="CPU threads of each contender.")] = 2,
    memory: Annotated[
        bool, typer.Option("--memory", help="Measure instead what a step takes at 4k, 16k and 64k tokens.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the result to this JSON file.")] = None,
    json: Json = False,
) -> None:
    """Our trainer beside TRL's SFTTrainer: the same model, data and tokens a step, in one interleaved run.

    Example: distill bench training --data gsm8k:train.jsonl --pairs 4 --out out/training.json
    """
    if memory:
        from distill.bench.training_memory import (
            TrainingMemorySettings,
            bench_training_memory,
            show_training_memory,
        )

        sizes = TrainingMemorySettings(threads=threads)
        _show_bench(lambda: bench_training_memory(sizes), show_training_memory, out, json)
        return
    from distill.bench.training import TrainingBenchSettings, show_training
    from distill.bench.training import bench_training as run
    from distill.settings import validate

    values = {"data": data, "steps": steps, "pairs": pairs, "row_tokens": row_tokens, "threads": threads}
    settings = validate(TrainingBenchSettings, values, source="command line")
    _show_bench(lambda: run(settings), show_training, out, json)


@bench_app.command("packing")
def bench_packing(
    documents: Annotated[int, typer.Option(help="Log-normal documents in a plan.")] = 1_000_000,
    row_tokens: Annotated[str, typer.Option(help="Tokens of a packed row, several sizes.")] = "8192,32768,131072",
    data: Annotated[str, typer.Option(help="What is tokenized: synthetic, gsm8k:PATH or aqua:PATH.")] = "synthetic",
    rounds: Annotated[int, typer.Option(help="Turns of rendering and of the tokenizer alone.")] = 7,
    out: Annotated[Path | None, typer.Option(help="Write the result to this JSON file.")] = None,
    json: Json = False,
) -> None:
    """Plans of a million documents, their balance over ranks, and rendering beside the tokenizer alone.

    Example: distill bench packing --data gsm8k:train.jsonl --out out/packing.json
    """
    from distill.bench.packing import PackingBenchSettings, show_packing
    from distill.bench.packing import bench_packing as run
    from distill.settings import validate

    values = {"documents": documents, "row_tokens": row_tokens.split(","), "data": data, "rounds": rounds}
    settings = validate(PackingBenchSettings, values, source="command line")
    _show_bench(lambda: run(settings), show_packing, out, json)


@bench_app.command("kernels")
def bench_kernels(
    rows: Annotated[int, typer.Option(help="Tokens of the linear losses.")] = 2048,
    hidden: Annotated[int, typer.Option(help="Width of their head.")] = 256,
    vocabulary: Annotated[int, typer.Option(help="Entries of their head.")] = 32000,
    ignored: Annotated[float, typer.Option(help="Share of tokens that are not supervised.")] = 0.3,
    rounds: Annotated[int, typer.Option(help="Rounds in which every contender takes its turn.")] = 8,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    compile_only: Annotated[
        bool, typer.Option("--compile-only", help="Compile the GPU kernels ahead of time instead; exit 1 on a problem.")
    ] = False,
    targets: Annotated[
        str, typer.Option(help="What to compile for: also sm_89, sm_120 and gfx942.")
    ] = "sm_80,sm_90,sm_100",
    out: Annotated[Path | None, typer.Option(help="Write the result to this JSON file.")] = None,
    json: Json = False,
) -> None:
    """The kernels on this CPU beside torch's own, or compiled for GPUs: registers, spills, shared memory.

    Example: distill bench kernels --out out/kernels.json
    """
    if compile_only:
        from distill.bench.compile_kernels import compile_kernels, show_compiled

        names = [name for name in targets.split(",") if name]
        result = _show_bench(lambda: compile_kernels(names), show_compiled, out, json)
        raise typer.Exit(1 if result["problems"] else 0)
    from distill.bench.kernels import KernelBenchSettings, show_kernels
    from distill.bench.kernels import bench_kernels as run
    from distill.settings import validate

    values = {"rows": rows, "hidden": hidden, "vocabulary": vocabulary, "ignored": ignored}
    settings = validate(KernelBenchSettings, values | {"rounds": rounds, "threads": threads}, source="command line")
    _show_bench(lambda: run(settings), show_kernels, out, json)


@bench_app.command("gpu")
def bench_gpu(
    out: Annotated[Path, typer.Option(help="JSON file to write; gone on with if it is there.")],
    budget: Annotated[float, typer.Option(min=1, help="Seconds after which nothing new is measured.")] = 480.0,
    commit: Annotated[str | None, typer.Option(help="What the sources are, where no git can say it.")] = None,
    json: Json = False,
) -> None:
    """The GPU suite: every kernel against float64, then beside its peers and the limits. Exit 1 if one is wrong.

    Example: distill bench gpu --out out/gpu.json
    """
    from distill.bench.gpu import bench_gpu as run
    from distill.bench.gpu import show_gpu
    from distill.bench.gpu_pieces import GpuSuiteSettings

    result = run(GpuSuiteSettings(budget_seconds=budget, seed=secrets.randbits(31)), out, commit=commit)
    if json:
        console.emit_json(result)
    else:
        show_gpu(result)
    raise typer.Exit(1 if result["problems"] else 0)


@bench_app.command("report")
def bench_report(
    results: Annotated[Path, typer.Argument(help="Folder of JSON files made by the other bench commands.")] = Path(
        "bench/results"
    ),
    out: Annotated[Path, typer.Option(help="Markdown file to write; its plots go to images/ beside it.")] = Path(
        "docs/benchmarks.md"
    ),
) -> None:
    """Measured results as a page of tables and plots.

    Example: distill bench report bench/results --out docs/benchmarks.md
    """
    from distill.bench.report import write_report

    for path in write_report(results, out):
        console.out.print(str(path), markup=False, soft_wrap=True)


@bench_app.command("gap")
def bench_gap(
    traces: Annotated[Path, typer.Argument(help="A folder made by `distill traces generate` or `import`.")],
    ift: Annotated[Path | None, typer.Option(help="A student trained on IFT; without it both are trained.")] = None,
    reasoning: Annotated[Path | None, typer.Option(help="Its twin, trained on reasoning.")] = None,
    student: Annotated[str | None, typer.Option(help="What is trained: tiny, small, a folder or a Hub id.")] = None,
    tasks: Annotated[str, typer.Option(help="Whose questions are answered: add,gsm8k:PATH; as in the traces.")] = "",
    steps: Annotated[int | None, typer.Option(help="Of each training; one epoch if not given.")] = None,
    batch: Annotated[int, typer.Option(help="Examples of an optimizer step.")] = 32,
    row_tokens: Annotated[int, typer.Option(help="Tokens of a packed row.")] = 1024,
    concurrency: Annotated[str, typer.Option(help="Clients at a time, one level each.")] = "1,16",
    requests: Annotated[int, typer.Option(help="Questions of a level in a round.")] = 32,
    rounds: Annotated[int, typer.Option(help="Turns that each student takes at each level.")] = 3,
    max_tokens: Annotated[int, typer.Option(help="Generation limit.")] = 512,
    threads: Annotated[int, typer.Option(help="CPU threads of training.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Write the result to this JSON file.")] = None,
    json: Json = False,
) -> None:
    """What reasoning costs beside IFT, in training and in answering, measured beside modelled.

    Example: distill bench gap out/traces --student tiny --out out/gap.json
    """
    from distill.bench.gap import GapSettings, show_gap
    from distill.bench.gap import bench_gap as run
    from distill.settings import validate

    values = {"ift": ift, "reasoning": reasoning, "student": student, "tasks": list(_counts(tasks)), "steps": steps}
    values |= {"batch": batch, "row_tokens": row_tokens, "concurrencies": concurrency.split(","), "requests": requests}
    values |= {"rounds": rounds, "max_tokens": max_tokens, "threads": threads}
    settings = validate(GapSettings, values, source="command line")
    _show_bench(lambda: run(settings, traces), show_gap, out, json)


@app.command()
def doctor(json: Json = False) -> None:
    """What this machine can run, what is missing, and which implementations are chosen.

    Example: distill doctor --json
    """
    from distill.doctor import diagnose

    _show_dict("doctor", diagnose(), json)


def _counts(text: str, default: int | None = None) -> dict[str, Any]:
    """`a=1,b:PATH=2` as {"a": 1, "b:PATH": 2}."""
    counts: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, count = part.rpartition("=")
        counts[name if equals else part] = count if equals else default
    return counts


def _beside(student: Path, kind: str) -> Path:
    return student.resolve().with_name(f"{student.resolve().name}.{kind}")


def _show(artifact: Any, json: bool) -> None:
    if json:
        console.emit_json({"path": str(artifact.path), "key": artifact.key, **artifact.summary})
    else:
        _show_dict(str(artifact.path), artifact.summary, json)


def _show_dict(title: str, values: dict[str, Any], json: bool) -> None:
    if json:
        console.emit_json(values)
    else:
        console.facts(title, values)


def _show_result(result: Any, show: Any, json: bool) -> None:
    if json:
        console.emit_json(result)
    else:
        show(result)


def _show_bench(measure: Any, show: Any, out: Path | None, json: bool) -> Any:
    from distill.artifact import require_file_place, write_json

    if out is not None:
        require_file_place(out)
    try:
        result = measure()
    except KeyboardInterrupt:
        console.note("interrupted; a benchmark keeps nothing before its end, run the same command again")
        sys.exit(INTERRUPTED)
    if out is not None:  # before it is shown: a closed pipe must not cost what was measured
        write_json(out, result)
    _show_result(result, show, json)
    return result


def _show_study(folder: Path, json: bool) -> None:
    from distill.study.report import read_results

    results = read_results(folder)
    if json:
        console.emit_json(results)
        return
    for verdict in results["verdicts"]:
        console.out.print(verdict["sentence"], markup=False, soft_wrap=True)
    for failure in results["failures"]:
        console.note(f"{failure['stage']} {failure['cell']} failed: {failure['reason']}")
    console.out.print(f"report: {folder / 'report.html'}", markup=False, soft_wrap=True)


def main() -> None:
    """Entry point: bad input ends in one line and exit code 2, an interrupted run in 128 + the signal's number."""
    debug = "--debug" in sys.argv[1:]
    try:
        code = app(standalone_mode=False) or 0
        if code == INTERRUPTED:
            console.note("interrupted; what was finished is kept, run the same command again")
        sys.exit(code)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            sys.exit(2)
        _fail(" ".join(error.format_message().split()), 2, debug)
    except InputError as error:
        _fail(str(error), 2, debug)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{os.strerror(error.errno)}; what was finished is kept, run the same command again", 2, debug)
    except Exception as error:
        if type(error).__name__ != "Stopped":
            raise
        _fail(str(error), 128 + getattr(error, "signal", signal.SIGINT), debug)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        raise
    if os.environ.get("RANK", "0") != "0":
        time.sleep(10)  # of what torchrun started, the first one speaks, and its end ends the others
    else:
        console.note(f"error: {message}" if code == 2 else message)
    sys.exit(code)
