"""Every command. Parses, calls one function, prints; no logic. Heavy imports happen inside the commands."""

import errno
import os
import secrets
import shlex
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

# The groups of what `distill traces generate --help` lists.
_questions, _teacher, _cost, _machines = (
    partial(typer.Option, rich_help_panel=title) for title in ("Questions", "Teacher", "Cost", "Many machines")
)

# The groups of what `distill evaluate --help` lists.
_who, _how, _grading = (
    partial(typer.Option, rich_help_panel=title) for title in ("Who answers", "How they are asked", "Grading")
)

# The groups of what `distill serve profile --help` lists.
_load, _server, _price = (partial(typer.Option, rich_help_panel=title) for title in ("Load", "Server", "Price"))

# What several commands take.
TraceSetFolder = Annotated[Path, typer.Argument(help="A folder made by `distill traces generate` or `import`.")]
AskedData = Annotated[
    list[str] | None,
    typer.Option(help="NAME=PATH: a task's rows, or questions of your own under a new name. May be repeated."),
]
AskedPrompt = Annotated[
    str | None, typer.Option(help="Field of the question in --data of your own.", show_default="prompt")
]
AskedAnswer = Annotated[str | None, typer.Option(help="Field of the gold answer in it.")]
AskedChecker = Annotated[
    str | None,
    typer.Option(help="Its grader: exact, normalised, number, near_number, choice, labels, squad or math."),
]
AskedFormat = Annotated[str | None, typer.Option(help="open, choice, labels or extraction.", show_default="open")]
AskedThink = Annotated[
    str,
    typer.Option(help="on: in a think block opened for the student; off: after an empty one; free: as trained."),
]
AskedMaxTokens = Annotated[int, typer.Option(help="Generation limit: an answer that hits it is wrong.")]
AskedTemperature = Annotated[float, typer.Option(help="Of sampling; 0 takes the likeliest token.")]
AskedSeed = Annotated[int, typer.Option(help="Of the choice of questions, of sampling and of arrivals.")]
WarmupRequests = Annotated[int, _load(help="Sent before and left out.")]
EndpointKey = Annotated[str, _server(help="Environment variable that holds the key for --endpoint.")]
HardwareRow = Annotated[str | None, _price(help="Row of hardware.yaml; without one nothing is priced.")]
AnswersPerMonth = Annotated[float | None, _price(help="Over which training and teacher are shared.")]
Months = Annotated[float | None, _price(help="Of use.", show_default="1")]
BenchOut = Annotated[Path | None, typer.Option(help="Write the result to this JSON file.")]
StudyStorage = Annotated[
    str | None,
    typer.Option(help="URL of a storage (s3://bucket/study) where machines that share no folder put what they make."),
]
PASSES_ON = {"allow_extra_args": True}  # of commands whose words after -- are for vLLM
ModelThreads = Annotated[int | None, typer.Option(help="Of the model on a CPU; all cores but one if not given.")]

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
    out: Out,
    config: Annotated[Path | None, typer.Option(help="YAML with any of the settings below; flags win.")] = None,
    tasks: Annotated[
        str | None, _questions(help="Tasks and how many problems of each: add=8000,max=4000,gsm8k:PATH=1000.")
    ] = None,
    data: Annotated[
        list[str] | None,
        _questions(
            help="PATH, or NAME=PATH, of questions of your own: JSONL, Parquet, a folder saved by datasets, or a Hub id."
        ),
    ] = None,
    prompt: Annotated[str | None, _questions(help="Field of the question in --data.", show_default="prompt")] = None,
    answer: Annotated[str | None, _questions(help="Field of the gold answer in --data, if there is one.")] = None,
    answer_format: Annotated[
        str | None, _questions(help="open, choice, labels or extraction.", show_default="open")
    ] = None,
    checker: Annotated[
        str | None,
        _questions(help="How --data is graded: exact, normalised, number, choice or labels; math by `traces verify`."),
    ] = None,
    system: Annotated[
        str | None,
        _questions(help="What becomes of system messages in --data: refuse, join or drop.", show_default="refuse"),
    ] = None,
    count: Annotated[
        int | None, _questions(help="So many questions of --data, drawn by the seed; all if not given.")
    ] = None,
    skip_bad: Annotated[
        bool | None, _questions("--skip-bad", help="Put malformed rows of --data aside, counted, instead of stopping.")
    ] = None,
    split: Annotated[
        str | None, _questions(help="train, validation, test or all.", show_default="train; all of --data")
    ] = None,
    seed: Annotated[
        int | None, _questions(help="Of the choice of problems and of the teacher's sampling.", show_default="0")
    ] = None,
    samples: Annotated[int | None, _questions(help="Pairs of each question.", show_default="1")] = None,
    gold: Annotated[
        str | None,
        _questions(
            help="grade: gold answers check. answer: they are the IFT answers. shown: and the teacher sees them.",
            show_default="grade",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        _teacher(help="solver, the URL of an OpenAI-compatible server, or vllm:MODEL.", show_default="solver"),
    ] = None,
    model: Annotated[str | None, _teacher(help="The model's name at that server.")] = None,
    revision: Annotated[str | None, _teacher(help="Of the model's weights, where it is known.")] = None,
    thinking: Annotated[
        str | None,
        _teacher(help="How reasoning is switched: template, template:KEY, system or models.", show_default="template"),
    ] = None,
    temperature: Annotated[float | None, _teacher(show_default="0.6")] = None,
    top_p: Annotated[float | None, _teacher(show_default="0.95")] = None,
    max_tokens: Annotated[
        int | None, _teacher(help="Limit of one answer, its reasoning included.", show_default="4096")
    ] = None,
    top_k: Annotated[
        int | None, _teacher(help="Keep so many log-probabilities at every token, to distil from (vLLM).")
    ] = None,
    tokenizer: Annotated[
        str | None, _teacher(help="The teacher's, for --top-k: a folder or Hub id; --model if not given.")
    ] = None,
    concurrency: Annotated[
        int | None, _teacher(help="Requests in flight.", show_default="32; 256 for vllm:MODEL")
    ] = None,
    api_key_env: Annotated[
        str | None, _teacher(help="Environment variable that holds the key.", show_default="OPENAI_API_KEY")
    ] = None,
    ift_model: Annotated[
        str | None, _teacher(help="With --thinking models: who answers directly; a folder or Hub id for vllm:MODEL.")
    ] = None,
    vllm_arguments: Annotated[
        str | None, _teacher(help="Passed on to vLLM: '--tensor-parallel-size 2 --data-parallel-size 4'.")
    ] = None,
    usd_per_million_input: Annotated[float | None, _cost(help="Price of the prompts' tokens.")] = None,
    usd_per_million_output: Annotated[float | None, _cost(help="Price of the generated tokens.")] = None,
    max_cost: Annotated[float | None, _cost(help="Ask no more once so many USD are spent.")] = None,
    max_total_tokens: Annotated[int | None, _cost(help="The same of tokens, prompts included.")] = None,
    partial: Annotated[
        bool | None,
        _cost("--partial", help="A run that ends early writes the traces there are; it can be gone on with."),
    ] = None,
    shard: Annotated[str | None, _machines(help="I/N: the questions of part I of N; see `traces merge`.")] = None,
    on: Annotated[str | None, _machines(help="ray: all shards as Ray tasks, then merged.")] = None,
    shards: Annotated[int | None, _machines(min=1, help="How many, on Ray.")] = None,
    json: Json = False,
) -> None:
    """Ask a teacher every question twice, with and without reasoning.

    Example: distill traces generate --tasks add=8000,max=4000 --out out/traces

    Example of your own questions to a server, its key in OPENAI_API_KEY:
    distill traces generate --data mine.jsonl --prompt question --answer label \\
    --teacher http://127.0.0.1:8000/v1 --model Qwen/Qwen3-32B --out out/traces
    """
    given = {name: value for name, value in locals().items() if value is not None}
    if given.get("on", "ray") != "ray" or (on is None) != (shards is None):
        raise typer.BadParameter("ray, and how many: --on ray --shards N.", param_hint="'--on'")
    from distill.settings import read_yaml, validate
    from distill.traces.flags import from_flags
    from distill.traces.generate import generate
    from distill.traces.settings import GenerateOptions, GenerateSettings

    if tasks is not None:
        given["tasks"] = _counts(tasks)
    values, limits = from_flags(read_yaml(config) if config else {}, given)
    source = f"{config} and command line" if config else "command line"
    options = validate(GenerateOptions, limits, source=source)
    settings = validate(GenerateSettings, values, source=source, beside=GenerateOptions)
    if on is not None:
        from distill.traces.ray_shards import generate_on_ray

        _show_set(generate_on_ray(settings, out, shards, options), json)
        return
    _show_set(generate(settings, out, options), json)


@traces_app.command("merge")
def traces_merge(
    shards: Annotated[list[Path], typer.Argument(help="All folders made by `distill traces generate --shard I/N`.")],
    out: Out,
    json: Json = False,
) -> None:
    """Put shards together: the trace set that one run of all questions would have written.

    Example: distill traces merge out/shard-* --out out/traces
    """
    from distill.traces.merge import merge

    _show_set(merge(shards, out), json)


@traces_app.command("import")
def traces_import(
    file: Annotated[Path, typer.Argument(help="JSONL, Parquet, a folder saved by datasets, or a Hub id.")],
    out: Out,
    layout: Annotated[str, typer.Option(help="pairs, gsm8k, aqua, prompt-completion, messages or sharegpt.")] = "pairs",
    ift_from: Annotated[
        str | None,
        typer.Option(help="For one answer a row: a file with the answers without reasoning, or 'stripped'."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Field of the question; extra.question is one in another.")] = None,
    reasoning: Annotated[str | None, typer.Option(help="Field of the reasoning answer.")] = None,
    answer: Annotated[str | None, typer.Option(help="Field of what follows the reasoning, if it has its own.")] = None,
    ift: Annotated[str | None, typer.Option(help="Field of the answer without reasoning.")] = None,
    gold: Annotated[str | None, typer.Option(help="Field of the gold answer.")] = None,
    system: Annotated[str, typer.Option(help="What becomes of system messages: refuse, join or drop.")] = "refuse",
    teacher: Annotated[str, typer.Option(help="Who wrote the answers, if known.")] = "imported",
    skip_bad: Annotated[bool, typer.Option(help="Put malformed rows aside, counted, instead of stopping.")] = False,
    splits: Annotated[
        str | None, typer.Option(help="train or all; train for gsm8k and aqua, so that test questions stay out.")
    ] = None,
    json: Json = False,
) -> None:
    """Read pairs from a file that has them.

    Example: distill traces import pairs.jsonl --layout pairs --out out/traces

    Example of fields with other names:
    distill traces import rows.parquet --prompt q --reasoning cot --ift short --out out/t
    """
    from distill.traces.layouts.import_traces import import_file

    roles = {"prompt": prompt, "reasoning": reasoning, "answer": answer, "ift": ift, "gold": gold}
    fields = {role: name for role, name in roles.items() if name is not None}
    how = {"fields": fields, "ift_from": ift_from, "system": system, "skip_bad": skip_bad, "splits": splits}
    _show_set(import_file(file, layout, out, teacher=teacher, **how), json)


@traces_app.command("stats")
def traces_stats(
    traces: TraceSetFolder,
    tokenizer: Annotated[
        str | None, typer.Option(help="A folder or Hub id: count its tokens, not those the teacher counted.")
    ] = None,
    project: Annotated[
        int | None, typer.Option(help="What so many further questions would come to: pairs, tokens, cost.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots and examples to this file.")] = None,
    json: Json = False,
) -> None:
    """What is in a trace set: pairs, lengths, agreement of the two modes, who is right, cost.

    Example: distill traces stats out/traces --html stats.html --project 100000
    """
    from distill.traces.stats.stats import stats
    from distill.traces.stats.text import show_stats

    found = stats(traces, tokenizer, project)
    if html is not None:
        from distill.traces.stats.page import write_page

        write_page(traces, html, found)
    _show_result(found, show_stats, json)
    _say_page(html)


@traces_app.command("export")
def traces_export(
    traces: TraceSetFolder,
    layout: Annotated[
        str, typer.Option(help="pairs, prompt-completion, messages, sharegpt, gsm8k, aqua, or hub: a folder to upload.")
    ],
    out: Annotated[Path, typer.Option(help="File to write, for hub a folder; never overwritten.")],
    mode: Annotated[str, typer.Option(help="reasoning, ift or both, where a row is one answer.")] = "both",
    keep: Annotated[str, typer.Option(help="all, or verified: pairs of which both answers are right.")] = "all",
    file_format: Annotated[
        str | None, typer.Option("--format", help="jsonl or parquet; parquet for hub.", show_default="jsonl")
    ] = None,
    reasoning: Annotated[
        str, typer.Option(help="Of messages: between think tags, or in a field, reasoning_content.")
    ] = "tags",
    json: Json = False,
) -> None:
    """Write the pairs in a layout that others read.

    Example: distill traces export out/traces --layout prompt-completion --mode reasoning --out train.jsonl
    """
    from distill.traces.layouts.export import export

    made = export(traces, layout, out, mode=mode, keep=keep, file_format=file_format, reasoning=reasoning)
    _show_dict("exported", made, json)


@traces_app.command("verify")
def traces_verify(
    traces: Annotated[Path, typer.Argument(help="A folder of traces.")],
    out: Out,
    checker: Annotated[
        str, typer.Option(help="auto, exact, normalised, number, choice, labels, math or judge.")
    ] = "auto",
    judge: Annotated[
        list[str] | None,
        typer.Option(help="URL#MODEL, or URL#MODEL#VARIABLE of its key; up to three, the majority counts."),
    ] = None,
    judge_max_tokens: Annotated[
        int | None,
        typer.Option(help="Limit of a judge's reply, its reasoning included.", show_default="2048"),
    ] = None,
    against: Annotated[str, typer.Option(help="gold, or other-mode: the two answers with each other.")] = "gold",
    limit: Annotated[float, typer.Option(help="Seconds that checking one answer may take.")] = 5.0,
    processes: Annotated[
        int | None, typer.Option(min=1, help="That check mathematics; one a core if not given.")
    ] = None,
    json: Json = False,
) -> None:
    """Label every answer as right or wrong; drop nothing. `distill train --keep verified` trains on the right ones.

    Example: distill traces verify out/traces --out out/verified

    Example of a model as judge:
    distill traces verify out/traces --judge http://127.0.0.1:8000/v1#MODEL --out out/judged
    """
    from distill.serve.judge import judges_of_flags
    from distill.settings import validate
    from distill.traces.verify import VerifySettings, verify

    values = {"checker": "judge" if judge and checker == "auto" else checker, "against": against}
    values |= {"judges": judges_of_flags(judge, judge_max_tokens), "limit_s": limit}
    settings = validate(VerifySettings, values, source="command line")
    _show_set(verify(traces, out, settings, processes=processes), json)


@traces_app.command("check")
def traces_check(
    traces: Annotated[Path, typer.Argument(help="A folder of traces.")],
    against: Annotated[
        list[str] | None,
        typer.Option(help="Evaluation questions: gsm8k:PATH, add=300, a study or PATH[:FIELD]. May be given again."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with all that was found to this file.")] = None,
    near: Annotated[float, typer.Option(help="Similarity from which questions are nearly the same.")] = 0.8,
    contaminated: Annotated[
        float, typer.Option(help="Share of a question in shared runs of 13 words from which it is contaminated.")
    ] = 0.5,
    remove: Annotated[str, typer.Option(help="duplicates,near,contaminated,outliers: what --out leaves out.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder to write: the traces without what --remove names.")] = None,
    json: Json = False,
) -> None:
    """Repeated questions, overlap with evaluation sets, outliers; removed on request, from both modes.

    Example: distill traces check out/traces --against gsm8k:data/gsm8k --html check.html

    Example of what stands in an exam, and what is repeated, removed:
    distill traces check out/traces --against exam.jsonl:question \\
    --remove duplicates,contaminated --out out/clean
    """
    from distill.settings import validate
    from distill.traces.hygiene.check import CheckSettings, check
    from distill.traces.hygiene.page import show

    values = {"against": against or [], "near": near, "contaminated": contaminated}
    values["remove"] = [name for name in remove.split(",") if name]
    settings = validate(CheckSettings, values, source="command line")
    _show_result(check(traces, settings, html=html, out=out), show, json)
    _say_page(html)


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
    keep: Annotated[
        str | None,
        _arm(help="all, or verified: pairs of which both answers are right, by `traces verify`.", show_default="all"),
    ] = None,
    select: Annotated[
        str | None,
        _arm(
            help="Of mixed:R and sequential:R, which pairs get reasoning: random, hard, disagree or short.",
            show_default="random",
        ),
    ] = None,
    sampling: Annotated[
        str | None,
        _arm(
            help="Of a mix: shuffled, or stratified: every step has its share of both modes.", show_default="shuffled"
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
    reasoning_learning_rate: Annotated[
        float | None, _schedule(help="Peak of the phase of sequential:R with reasoning, if it is another.")
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
    weights: Annotated[
        str | None, _validation(help="last, or best: those of the lowest validation loss.", show_default="last")
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

    Example of a pretrained student, by adapters:
    distill train --traces out/traces --arm mixed:0.5 --student Qwen/Qwen3-0.6B \\
    --lora-rank 16 --out out/student
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
    settings = validate(TrainSettings, written | flags, source=source, beside=RunOptions)
    if show_batch:
        from distill.training.show_batch import print_batch
        from distill.training.show_batch import show_batch as first_batch

        _show_result(first_batch(settings, traces), print_batch, json)
        return
    if dry_run:
        from distill.training.dry_run import dry_run as estimate
        from distill.training.student_text import show_estimate

        found = estimate(settings, traces, options, ranks or int(os.environ.get("WORLD_SIZE", "1")))
        _show_result(found, lambda found: show_estimate(found, traces), json)
        return
    from distill.training.student_text import show_student
    from distill.training.train import train as train_student

    made = train_student(settings, traces, options)
    _show(made, json) if json else show_student(made, traces)


@app.command()
def evaluate(
    student: Annotated[
        Path | None, typer.Argument(help="A folder made by `distill train`, or any Hugging Face folder.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; STUDENT.evaluation if not given, or STUDENT.lm-eval.")
    ] = None,
    tasks: Annotated[
        str, _questions(help="Tasks, with how many questions if not up to 300: add,max=100,gsm8k:PATH=50,aime=all.")
    ] = "",
    data: Annotated[
        list[str] | None,
        _questions(help="NAME=PATH: a task's rows, or questions of your own under a new name. May be repeated."),
    ] = None,
    prompt: Annotated[
        str | None, _questions(help="Field of the question in --data of your own.", show_default="prompt")
    ] = None,
    answer: Annotated[str | None, _questions(help="Field of the gold answer in it.")] = None,
    checker: Annotated[
        str | None,
        _questions(help="How it is graded: exact, normalised, number, near_number, choice, labels, squad or math."),
    ] = None,
    answer_format: Annotated[
        str | None, _questions(help="open, choice, labels or extraction.", show_default="open")
    ] = None,
    split: Annotated[
        str | None, _questions(help="train, validation, test or all.", show_default="test; all of your own")
    ] = None,
    endpoint: Annotated[
        str | None, _who(help="Instead of STUDENT: the URL of an OpenAI-compatible server, with its /v1.")
    ] = None,
    model: Annotated[str | None, _who(help="The model's name at --endpoint.")] = None,
    api_key_env: Annotated[
        str, _who(help="Environment variable that holds the key for --endpoint.")
    ] = "OPENAI_API_KEY",
    mode: Annotated[str | None, _how(help="reasoning or ift, for a student trained with --mode-signal prompt.")] = None,
    think: Annotated[
        str, _how(help="on: in a think block opened for the student; off: after an empty one; free: as trained.")
    ] = "free",
    thinking_budget: Annotated[
        str | None, _how(help="Tokens of thinking, each an evaluation of its own: 64,256,none.")
    ] = None,
    few_shot: Annotated[
        int | None, _how(help="Ask as plain text after so many examples; how a base model is asked.")
    ] = None,
    samples: Annotated[int, _how(help="Answers to each question; needs a temperature.")] = 1,
    temperature: Annotated[float, _how(help="Of sampling; 0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, _how(help="Sample only from the likeliest tokens of this total.")] = 1.0,
    max_tokens: Annotated[
        int | None,
        _how(help="Generation limit: an answer that hits it is wrong.", show_default="the benchmark's, or 512"),
    ] = None,
    seed: Annotated[int, _how(help="Of the choice of questions and of sampling.")] = 0,
    judge: Annotated[
        list[str] | None,
        _grading(help="URL#MODEL, or URL#MODEL#VARIABLE of its key, for what models judge; up to three."),
    ] = None,
    judge_max_tokens: Annotated[
        int | None, _grading(help="Limit of a judge's reply, its reasoning included.", show_default="2048")
    ] = None,
    score: Annotated[
        str, _grading(help="loglikelihood: score the options of multiple choice as well, apart from accuracy.")
    ] = "generated",
    via: Annotated[
        str | None, _grading(help="lm-eval: --tasks are that program's, with its own prompts and graders.")
    ] = None,
    via_folder: Annotated[
        Path | None, _grading(help="With --via lm-eval: a folder of task files, in place of its own.")
    ] = None,
    engine: Annotated[str, _machine(help="vllm, or transformers (slow).")] = "vllm",
    threads: Annotated[int | None, _machine(help="CPU threads of the server.")] = None,
    port: Annotated[int | None, _machine(help="Of the server, on loopback; a free one if not given.")] = None,
    json: Json = False,
) -> None:
    """Ask a student a task's questions and grade its answers.

    Example: distill evaluate out/student --tasks add,max
    """
    from distill.evaluation.flags import budgets_of, check_subject, questions_of
    from distill.evaluation.settings import EvaluateSettings
    from distill.serve.judge import judges_of_flags
    from distill.settings import validate

    check_subject(student, endpoint, model)
    judges = judges_of_flags(judge, judge_max_tokens)
    if via is not None or via_folder is not None:
        from distill.evaluation.flags import check_via, counts_of
        from distill.evaluation.server import Serving
        from distill.evaluation.table import show_lm_eval
        from distill.evaluation.via_lm_eval import LmEvalSettings, evaluate_via_lm_eval

        check_via(via, student=student, data=data, judge=judge, mode=mode, think=think, thinking_budget=thinking_budget)
        check_via(via, samples=samples, score=score, split=split, engine=engine, temperature=temperature, top_p=top_p)
        values = {"tasks": counts_of(_counts(tasks)), "folder": via_folder, "few_shot": few_shot, "seed": seed}
        values |= {"max_tokens": max_tokens} if max_tokens is not None else {}
        asked = validate(LmEvalSettings, values, source="command line")
        where = out or _beside(student, "lm-eval")
        made = evaluate_via_lm_eval(asked, student, where, Serving(threads=threads, port=port))
        _show(made, json) if json else show_lm_eval(made.path, made.summary)
        return
    fields = {"prompt": prompt, "answer": answer, "answer_format": answer_format, "checker": checker}
    own = {name: value for name, value in fields.items() if value is not None}
    questions = questions_of(_counts(tasks), data or [], own, split=split, seed=seed)
    values = {"questions": questions, "mode": mode, "engine": engine, "max_tokens": max_tokens, "think": think}
    values |= {"temperature": temperature, "top_p": top_p, "seed": seed, "samples": samples, "few_shot": few_shot}
    values |= {"thinking_budgets": budgets_of(thinking_budget), "score": score, "judges": judges}
    settings = validate(EvaluateSettings, values, source="command line")
    from distill.evaluation.table import show_grades

    if endpoint is not None:
        from distill.evaluation.endpoint import ModelSettings, evaluate_endpoint

        who = {"url": endpoint, "model": model, "api_key_env": api_key_env}
        teacher = validate(ModelSettings, who, source="command line")
        made = evaluate_endpoint(settings, teacher, out or _beside(Path(model or ""), "evaluation"))
        _show(made, json) if json else show_grades(made.path, made.summary)
        return
    from distill.evaluation.evaluate import evaluate as evaluate_student
    from distill.evaluation.server import Serving

    serving = Serving(threads=threads, port=port)
    made = evaluate_student(settings, student, out or _beside(student, "evaluation"), serving)
    _show(made, json) if json else show_grades(made.path, made.summary)


@app.command()
def compare(
    evaluations: Annotated[
        list[str], typer.Argument(help="Two or more folders made by `distill evaluate`; NAME=FOLDER to name one.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="HTML page to write, with the answers side by side; none if not given.")
    ] = None,
    json: Json = False,
) -> None:
    """Two or more evaluations of the same questions: their answers side by side, and how they differ from the first.

    Example: distill compare ift=out/ift.evaluation reasoning=out/reasoning.evaluation --out compare.html
    """
    from distill.evaluation.compare import compare as compare_evaluations
    from distill.evaluation.compare import show

    _show_result(compare_evaluations(evaluations, out), show, json)


@serve_app.command("start", context_settings=PASSES_ON)
def serve_start(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A student, any Hugging Face folder, LoRA adapters, or a Hub id.")],
    host: Annotated[
        str, typer.Option(help="Where it listens; loopback, so that nobody else reaches it.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="A free one if not given.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable with the key; drawn if not given.")
    ] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Tokens of prompt and answer together.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the model.")] = None,
    json: Json = False,
) -> None:
    """Serve a model with vLLM until Ctrl-C. What follows -- goes to vLLM as it is.

    Example: distill serve start out/student --port 8000 -- --tensor-parallel-size 2
    """
    from distill.serve.server import ServerSettings
    from distill.serve.start import start
    from distill.settings import validate

    values = {"host": host, "port": port, "max_model_len": max_model_len, "threads": threads}
    settings = validate(ServerSettings, values | {"arguments": _passed_on(context)}, source="command line")
    place = Path(model) if Path(model).is_dir() else Path(model.replace("/", "--"))
    log, key_file = _beside(place, "server.log"), _beside(place, "key")

    def on_ready(endpoint: Any) -> None:
        key = {"api_key_env": api_key_env} if api_key_env else {"api_key_file": str(key_file)}
        where = {"url": endpoint.base_url, "model": endpoint.model, **key, "log": str(log)}
        _show_dict(f"{model} is served; Ctrl-C ends it", where, json)

    start(model, settings, log, key_file, api_key_env=api_key_env, on_ready=on_ready)


@serve_app.command("profile", context_settings=PASSES_ON)
def serve_profile(
    context: typer.Context,
    student: Annotated[Path, typer.Argument(help="A folder made by `distill train`, or any Hugging Face folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; STUDENT.profile if not given.")] = None,
    tasks: Annotated[str, typer.Option(help="Whose questions are sent: add,max.")] = "",
    data: AskedData = None,
    prompt: AskedPrompt = None,
    answer: AskedAnswer = None,
    checker: AskedChecker = None,
    answer_format: AskedFormat = None,
    mode: Annotated[
        str | None, typer.Option(help="reasoning or ift, for a student trained with --mode-signal prompt.")
    ] = None,
    think: AskedThink = "free",
    thinking_budget: Annotated[int | None, typer.Option(help="Most tokens of thinking; vLLM ends it there.")] = None,
    max_tokens: AskedMaxTokens = 512,
    temperature: AskedTemperature = 0.0,
    seed: AskedSeed = 0,
    concurrency: Annotated[
        str | None, _load(help="Clients that wait for their answers, one load each: 1,8,32.", show_default="1,8,32")
    ] = None,
    rate: Annotated[str | None, _load(help="Requests a second that wait for nobody, one load each: 2,4.")] = None,
    burstiness: Annotated[float, _load(help="Of their gaps: 1 is a Poisson process, less is burstier.")] = 1.0,
    replay: Annotated[
        Path | None,
        _load(help="File of arrivals, seconds or ISO date-times: one a line, or `timestamp` in .jsonl and .csv."),
    ] = None,
    speed: Annotated[float, _load(help="Of --replay: 2 is twice as fast.")] = 1.0,
    saturate: Annotated[
        bool,
        _load("--saturate", help="Find the load that is most, and with --objective the highest rate that keeps it."),
    ] = False,
    objective: Annotated[
        str | None, _load(help="Limits of ttft, ttfat, tpot and e2e that an answer meets: ttft:500ms,tpot:50ms.")
    ] = None,
    requests: Annotated[int, _load(help="Measured under each load, for each task.")] = 64,
    warmup_requests: WarmupRequests = 4,
    processes: Annotated[
        int | None, _load(help="That send.", show_default="one for every four cores, at least one and at most 8")
    ] = None,
    timeout: Annotated[float, _load(help="Seconds of silence after which a request has failed.")] = 600.0,
    endpoint: Annotated[
        str | None, _server(help="URL, with its /v1, of a vLLM server of the student that is there already.")
    ] = None,
    model: Annotated[str | None, _server(help="The student's name at --endpoint.")] = None,
    api_key_env: EndpointKey = "OPENAI_API_KEY",
    threads: Annotated[int | None, _server(help="CPU threads of the server.")] = None,
    port: Annotated[int | None, _server(help="Of the server, on loopback; a free one if not given.")] = None,
    hardware: HardwareRow = None,
    devices: Annotated[int | None, _price(help="Devices that serve, replicas included.", show_default="1")] = None,
    answers_per_month: AnswersPerMonth = None,
    months: Months = None,
    traces: Annotated[Path | None, _price(help="The student's trace set, whose teacher is paid for.")] = None,
    fixed_usd: Annotated[
        float | None, _price(help="Paid besides training and that teacher: tuning runs, people.", show_default="0")
    ] = None,
    json: Json = False,
) -> None:
    """Put a student under load: latency, throughput, tokens, energy and price of an answer and of a correct one.
    What follows -- goes to vLLM as it is.

    Example: distill serve profile out/student --tasks add,max --concurrency 1,32 --hardware cpu-2core

    Example: distill serve profile out/student --tasks add --hardware h100-sxm --devices 2 -- --tensor-parallel-size 2

    Example: distill serve profile out/student --tasks add --rate 2,4 --saturate --objective ttft:500ms,tpot:50ms
    """
    from distill.evaluation.flags import questions_of
    from distill.evaluation.server import Serving
    from distill.evaluation.serving.flags import load_values, price_values, remote_of
    from distill.evaluation.serving.profile import StudentProfileSettings, profile_student
    from distill.evaluation.serving.table import show_profile
    from distill.settings import validate

    fields = {"prompt": prompt, "answer": answer, "answer_format": answer_format, "checker": checker}
    own = {name: value for name, value in fields.items() if value is not None}
    asked = questions_of(_counts(tasks), data or [], own, split=None, seed=seed)
    values = {"tasks": [q["task"] for q in asked], "data": {q["task"]: q["data"] for q in asked if q["data"]}}
    values |= load_values(concurrency, rate, burstiness, replay, speed, saturate=saturate, objective=objective)
    values |= {"mode": mode, "think": think, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    values |= {
        "thinking_budget": thinking_budget,
        "requests": requests,
        "warmup_requests": warmup_requests,
        "processes": processes,
        "timeout_s": timeout,
    }
    values |= price_values(
        hardware,
        devices=devices,
        answers_per_month=answers_per_month,
        months=months,
        traces=traces,
        fixed_usd=fixed_usd,
    )
    settings = validate(StudentProfileSettings, values, source="command line")
    serving = Serving(threads=threads, port=port, arguments=_passed_on(context))
    remote = remote_of(endpoint, model, api_key_env, serving)
    made = profile_student(settings, student, out or _beside(student, "profile"), serving, remote=remote)
    if json:
        from distill.artifact import read_json

        console.emit_json({"path": str(made.path), "key": made.key, **read_json(made.path / "profile.json")})
    else:
        show_profile(made.path)


@serve_app.command("compare", context_settings=PASSES_ON)
def serve_compare(
    context: typer.Context,
    a: Annotated[str, typer.Argument(help="A student's folder, or NAME=FOLDER.")],
    b: Annotated[str, typer.Argument(help="The one that it is held against.")],
    out: Out,
    tasks: Annotated[str, typer.Option(help="Whose questions both answer: add,max.")] = "",
    data: AskedData = None,
    prompt: AskedPrompt = None,
    answer: AskedAnswer = None,
    checker: AskedChecker = None,
    answer_format: AskedFormat = None,
    mode: Annotated[
        str | None, typer.Option(help="reasoning or ift, for students trained with --mode-signal prompt.")
    ] = None,
    think: AskedThink = "free",
    thinking_budget: Annotated[
        str | None, typer.Option(help="Most tokens of thinking of A, several each a point more: 64,256,none.")
    ] = None,
    max_tokens: AskedMaxTokens = 512,
    temperature: AskedTemperature = 0.0,
    seed: AskedSeed = 0,
    concurrency: Annotated[str, _load(help="Clients that wait for their answers, one load each.")] = "1,8,32",
    rounds: Annotated[int, _load(help="In which each student has its turn at each load; 3 for their interval.")] = 4,
    requests: Annotated[int, _load(help="Measured of each student under each load in each round, for each task.")] = 64,
    warmup_requests: WarmupRequests = 4,
    objective: Annotated[
        str | None,
        _load(help="Also at the highest rate that keeps it, limits of ttft, ttfat, tpot, e2e: ttft:500ms,tpot:50ms."),
    ] = None,
    burstiness: Annotated[float, _load(help="Of arrivals at it: 1 is a Poisson process, less is burstier.")] = 1.0,
    endpoint: Annotated[
        list[str] | None,
        _server(help="URL#MODEL of a vLLM server that is there already, URL with its /v1; twice, of A and of B."),
    ] = None,
    api_key_env: EndpointKey = "OPENAI_API_KEY",
    threads: Annotated[int | None, _server(help="CPU threads of each server.")] = None,
    hardware: HardwareRow = None,
    devices: Annotated[int | None, _price(help="Devices that serve each, replicas included.", show_default="1")] = None,
    answers_per_month: AnswersPerMonth = None,
    months: Months = None,
    traces: Annotated[Path | None, _price(help="The students' trace set, whose teacher is paid for.")] = None,
    fixed_usd: Annotated[
        str | None, _price(help="Paid besides for A and for B: tuning runs, people: 120,40.", show_default="0,0")
    ] = None,
    json: Json = False,
) -> None:
    """Two students on the same questions in turns: how much dearer an answer is, and why, and a correct one.
    What follows -- goes to the vLLM of each as it is.

    Example: distill serve compare out/reasoning out/ift --tasks add --hardware cpu-2core --out out/compared

    Example: distill serve compare out/reasoning out/ift --tasks add --thinking-budget 64,256,none --out out/compared
    """
    from distill.evaluation.flags import budgets_of, questions_of
    from distill.evaluation.server import Serving
    from distill.evaluation.serving.compare import CompareSettings, compare_students
    from distill.evaluation.serving.flags import entrants, price_values
    from distill.evaluation.serving.words import show_comparison
    from distill.serve.objective import read_objective
    from distill.settings import validate

    fields = {"prompt": prompt, "answer": answer, "answer_format": answer_format, "checker": checker}
    own = {name: value for name, value in fields.items() if value is not None}
    values = {"questions": questions_of(_counts(tasks), data or [], own, split=None, seed=seed)}
    values |= {"mode": mode, "think": think, "thinking_budgets": budgets_of(thinking_budget), "max_tokens": max_tokens}
    values |= {"temperature": temperature, "seed": seed, "concurrencies": concurrency.split(","), "rounds": rounds}
    values |= {"requests": requests, "warmup_requests": warmup_requests, "burstiness": burstiness}
    values |= {"objective": None if objective is None else read_objective(objective)}
    settings = validate(CompareSettings, values, source="command line")
    price = price_values(
        hardware,
        devices=devices,
        answers_per_month=answers_per_month,
        months=months,
        traces=traces,
        fixed_usd=fixed_usd,
    )
    ours = Serving(threads=threads, arguments=_passed_on(context))
    students = entrants((a, b), endpoint or [], api_key_env, ours=ours, **price)
    made = compare_students(settings, *students, out)
    if json:
        from distill.artifact import read_json

        console.emit_json({"path": str(made.path), "key": made.key, **read_json(made.path / "compare.json")})
    else:
        show_comparison(made.path)


@study_app.command("init")
def study_init(
    data: Annotated[
        str, typer.Argument(help="Your questions: JSONL, Parquet, a folder saved by datasets, or a Hub id.")
    ],
    answer: Annotated[str, typer.Option(help="Field of the gold answer.")],
    teacher: Annotated[str, typer.Option(help="The URL of an OpenAI-compatible server, or vllm:MODEL.")],
    students: Annotated[str, typer.Option(help="Folders, Hub ids or sizes, with commas; the verdict is of the last.")],
    prompt: Annotated[str, typer.Option(help="Field of the question.")] = "prompt",
    model: Annotated[str | None, typer.Option(help="The model's name at that server.")] = None,
    checker: AskedChecker = None,
    answer_format: Annotated[str | None, typer.Option(help="open, choice, labels or extraction.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Beside accuracy: macro_f1, rouge_l, squad_f1.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that cannot be read; the first is an error otherwise.")
    ] = False,
    margin: Annotated[float, typer.Option(help="The smallest gain, in points, that you would pay for.")] = 2.0,
    seeds: Annotated[
        int, typer.Option(help="Trainings of each student; from three on the verdict is about the arm.")
    ] = 3,
    out: Annotated[Path, typer.Option("--out", help="The YAML file to write.")] = Path("study.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    json: Json = False,
) -> None:
    """Write a study of your own questions as YAML, with a checker that fits their answers, and print its plan.

    Example: distill study init tickets.jsonl --prompt text --answer label --teacher http://127.0.0.1:8000/v1 \\
    --model Qwen/Qwen3-32B --students Qwen/Qwen2.5-0.5B-Instruct,Qwen/Qwen2.5-1.5B-Instruct --out tickets.yaml
    """
    from distill.study.init import init_study

    given = {"checker": checker, "answer_format": answer_format, "metrics": metrics and metrics.split(",")}
    given |= {"prompt": prompt, "answer": answer, "teacher": teacher, "model": model, "margin": margin, "seeds": seeds}
    given |= {"skip_bad": skip_bad}
    made = init_study(data, out, students=[s for s in map(str.strip, students.split(",")) if s], force=force, **given)
    from distill.study.plan.plan import plan
    from distill.study.plan.table import show_plan

    planned = plan(made.settings)
    if json:
        console.emit_json(made.summary | {"plan": planned})
    else:
        _show_dict(str(out), made.summary, json)
        show_plan(planned)
    for line in planned["errors"]:
        console.note(f"before it can run: {line}")


@study_app.command("plan")
def study_plan(
    preset: Annotated[Path, typer.Argument(help="A study as YAML; see presets/.")],
    out: Annotated[
        Path | None, typer.Option(help="The study's folder: what is finished there, and how it came out.")
    ] = None,
    hardware: Annotated[str | None, typer.Option(help="Row of hardware.yaml; the preset's if not given.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Train and serve each size for a moment, and keep the rates in --out.")
    ] = False,
    json: Json = False,
) -> None:
    """Price a study before it runs, and find what is wrong with it: tokens, FLOPs, hours, money, memory, power.

    Example: distill study plan presets/embedded.yaml --out out/demo --calibrate
    """
    from distill.settings import load
    from distill.study.settings import StudySettings

    settings = load(StudySettings, preset)
    from distill.study.plan.plan import plan
    from distill.study.plan.table import show_plan

    found = plan(settings, out, row=hardware, measure=calibrate)
    if json:
        console.emit_json(found)
    else:
        show_plan(found)
    for line in found["errors"][:-1]:
        console.note(f"error: {line}")
    if found["errors"]:
        raise InputError(found["errors"][-1])


@study_app.command("run")
def study_run(
    preset: Annotated[Path, typer.Argument(help="A study as YAML; see presets/.")],
    out: Out,
    workers: Annotated[
        int | None, typer.Option(help="Stages at a time, where there is no GPU; one a core if not given.")
    ] = None,
    json: Json = False,
) -> None:
    """Run a study, or what is missing of it, and write results.json, report.html and report.md. Exit 1 where a stage failed.

    Example: distill study run presets/embedded.yaml --out out/demo
    """
    from distill.settings import load
    from distill.study.settings import StudySettings

    settings = load(StudySettings, preset)
    from distill.study.run import run

    command = shlex.join(["distill", "study", "run", str(preset), "--out", str(out)])
    _end_study(run(settings, out, command=command, workers=workers), json)


@study_app.command("stage")
def study_stage(
    preset: Annotated[Path, typer.Argument(help="A study as YAML, or preset.json of a folder that has begun.")],
    stage: Annotated[
        str, typer.Argument(help="Its name: 'train small-ift-seed0', 'serve small-ift-seed0', 'traces all'.")
    ],
    out: Out,
    threads: Annotated[int | None, typer.Option(min=1, help="Of a CPU; all that it may use if not given.")] = None,
    storage: StudyStorage = None,
) -> None:
    """Do one stage of a study, as `run` and `launch` do it; what it needs must be finished.

    Example: distill study stage presets/embedded.yaml "traces all" --out out/demo
    """
    from distill.settings import load
    from distill.study.settings import StudySettings
    from distill.study.storage import joined

    place = joined(storage, out)
    settings = load(StudySettings, preset)
    from distill.study.run import run_stage

    run_stage(settings, out, stage, threads=threads, storage=place)


@study_app.command("launch")
def study_launch(
    preset: Annotated[Path, typer.Argument(help="A study as YAML; see presets/.")],
    out: Out,
    on: Annotated[str, typer.Option(help="ray: tasks of a cluster. slurm: arrays of jobs.")],
    storage: StudyStorage = None,
    cpus: Annotated[
        int | None,
        typer.Option(
            help="Cores of a stage, for each of its devices.",
            show_default="1; with GPUs 8 on Slurm, a fair share on Ray",
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster.", show_default="RAY_ADDRESS, else a Ray of this machine")
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(help="'--partition=gpu', or of one kind of stage 'train: --time=9:00:00'. May be repeated."),
    ] = None,
    no_gpus: Annotated[bool, typer.Option("--no-gpus", help="Ask Slurm for no GPUs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the scripts for Slurm and submit nothing.")] = False,
    json: Json = False,
) -> None:
    """Run a study, or what is missing of it, on a Ray cluster or by Slurm.

    Example: distill study launch presets/embedded.yaml --out /shared/demo --on slurm \\
    --sbatch --partition=gpu --sbatch 'train: --time=9:00:00'
    """
    from distill.settings import load, validate
    from distill.study.settings import StudySettings

    settings = load(StudySettings, preset)
    from distill.study.launch.launch import LaunchSettings, launch

    values = {"on": on, "storage": storage, "cpus": cpus, "address": address, "sbatch": sbatch or []}
    how = validate(LaunchSettings, values | {"gpus": not no_gpus, "dry_run": dry_run}, source="command line")
    finished = launch(settings, out, how, preset=preset)
    if finished is not None:
        _end_study(finished, json)


@study_app.command("report")
def study_report(
    study: Annotated[Path, typer.Argument(help="A folder made by `distill study run`.")],
    collect: Annotated[
        bool, typer.Option("--collect", help="First make results.json again of every stage that is finished by now.")
    ] = False,
    storage: StudyStorage = None,
    json: Json = False,
) -> None:
    """Write report.html and report.md again from results.json.

    Example: distill study report out/demo
    """
    if collect:
        from distill.settings import load
        from distill.study.settings import StudySettings
        from distill.study.storage import joined

        place = joined(storage, study)
        settings = load(StudySettings, study / "preset.json")
        from distill.study.run import collect as collect_results

        collect_results(settings, study, place)
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
    out: BenchOut = None,
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
    out: BenchOut = None,
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
    out: BenchOut = None,
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


@bench_app.command("traces")
def bench_traces(
    models: Annotated[str, typer.Option(help="tiny, large (random weights), a folder or a Hub id.")] = "tiny,large",
    questions: Annotated[int, typer.Option(help="Of a round; each is answered in both modes.")] = 128,
    tokens: Annotated[int, typer.Option(help="Of the longest answer.")] = 256,
    sequences: Annotated[int, typer.Option(help="That vLLM generates side by side.")] = 64,
    concurrency: Annotated[int, typer.Option(help="Requests of ours in flight.")] = 128,
    rounds: Annotated[int, typer.Option(help="Turns that each of the two takes.")] = 7,
    threads: ModelThreads = None,
    kv_cache_gib: Annotated[int, typer.Option(help="Of each of the two.")] = 2,
    out: BenchOut = None,
    json: Json = False,
) -> None:
    """Tokens/s of generating traces through our teacher, beside vLLM's own offline generation.

    Example: distill bench traces --out out/traces.json
    """
    from distill.bench.traces import TracesBenchSettings, show_traces
    from distill.bench.traces import bench_traces as run
    from distill.settings import validate

    values = {"models": models.split(","), "questions": questions, "tokens": tokens, "sequences": sequences}
    values |= {"concurrency": concurrency, "rounds": rounds, "threads": threads, "kv_cache_gib": kv_cache_gib}
    settings = validate(TracesBenchSettings, values, source="command line")
    _show_bench(lambda: run(settings), show_traces, out, json)


@bench_app.command("evaluation")
def bench_evaluation(
    models: Annotated[str, typer.Option(help="tiny, large (random weights) or a student's folder.")] = "tiny,large",
    questions: Annotated[int, typer.Option(help="Of a turn.")] = 384,
    tokens: Annotated[int, typer.Option(help="Of the longest answer.")] = 192,
    rounds: Annotated[int, typer.Option(help="Turns that each of them takes.")] = 5,
    threads: ModelThreads = None,
    checkers: Annotated[str, typer.Option(help="Whose answers are graded.")] = "choice,number,ifeval,math",
    answers: Annotated[int, typer.Option(help="Graded by each checker.")] = 10_000,
    grading_rounds: Annotated[int, typer.Option(help="How often they are graded.")] = 3,
    workers: Annotated[int | None, typer.Option(help="Of the slow checkers; one a core if not given.")] = None,
    out: BenchOut = None,
    json: Json = False,
) -> None:
    """Evaluation's generation beside vLLM's own, what an interruption costs, and how fast answers are graded.

    Example: distill bench evaluation --out out/evaluation.json
    """
    from distill.bench.evaluation import EvaluationBenchSettings, show_evaluation
    from distill.bench.evaluation import bench_evaluation as run
    from distill.settings import validate

    listed = {"models": models, "checkers": checkers}
    values = {name: [part for part in text.split(",") if part] for name, text in listed.items()}
    values |= {"questions": questions, "tokens": tokens, "rounds": rounds, "threads": threads, "answers": answers}
    values |= {"grading_rounds": grading_rounds, "workers": workers}
    settings = validate(EvaluationBenchSettings, values, source="command line")
    _show_bench(lambda: run(settings), show_evaluation, out, json)


@bench_app.command("serving")
def bench_serving(
    models: Annotated[str, typer.Option(help="tiny, large (random weights) or a student's folder.")] = "tiny,large",
    concurrency: Annotated[str, typer.Option(help="Clients at a time, one closed loop each.")] = "1,16",
    tokens: Annotated[int, typer.Option(help="Of every answer.")] = 64,
    seconds: Annotated[float, typer.Option(help="That a turn takes, about.")] = 2.1,
    rounds: Annotated[int, typer.Option(help="Turns that each of them takes.")] = 9,
    threads: ModelThreads = None,
    out: BenchOut = None,
    json: Json = False,
) -> None:
    """Our load beside vLLM's benchmark client on one server, and what measuring costs that server.

    Example: distill bench serving --out out/serving.json
    """
    from distill.bench.serving import ServingBenchSettings, show_serving
    from distill.bench.serving import bench_serving as run
    from distill.settings import validate

    values = {"models": models.split(","), "concurrencies": concurrency.split(","), "tokens": tokens}
    values |= {"seconds": seconds, "rounds": rounds, "threads": threads}
    settings = validate(ServingBenchSettings, values, source="command line")
    _show_bench(lambda: run(settings), show_serving, out, json)


@bench_app.command("gap")
def bench_gap(
    traces: TraceSetFolder,
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
    out: BenchOut = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with where the cost comes from to this file.")] = None,
    json: Json = False,
) -> None:
    """What reasoning costs beside IFT, in training and in answering: seconds, joules and FLOPs.

    Example: distill bench gap out/traces --student tiny --out out/gap.json --html gap.html
    """
    from distill.artifact import require_file_place, write_atomic
    from distill.bench.gap import GapSettings, show_gap
    from distill.bench.gap import bench_gap as run
    from distill.settings import validate

    values = {"ift": ift, "reasoning": reasoning, "student": student, "tasks": list(_counts(tasks)), "steps": steps}
    values |= {"batch": batch, "row_tokens": row_tokens, "concurrencies": concurrency.split(","), "requests": requests}
    values |= {"rounds": rounds, "max_tokens": max_tokens, "threads": threads}
    settings = validate(GapSettings, values, source="command line")
    if html is not None:
        require_file_place(html)
    result = _show_bench(lambda: run(settings, traces), show_gap, out, json)
    if html is not None:
        from distill.bench.gap_page import gap_page

        write_atomic(html, gap_page(result))
        _say_page(html)


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
    for part in filter(None, map(str.strip, text.split(","))):
        before, equals, after = part.rpartition("=")
        name, count = (before.strip(), after.strip()) if equals else (part, default)
        if name in counts:
            raise InputError(f"--tasks {text}: {name} is named twice")
        counts[name] = count
    return counts


def _passed_on(context: typer.Context) -> tuple[str, ...]:
    """What follows -- . Raises click's UsageError for a word too many before it."""
    if context.args and not context.args[0].startswith("-"):
        raise UsageError(f"Got unexpected extra argument ({context.args[0]})")
    return tuple(context.args)


def _beside(student: Path, kind: str) -> Path:
    return student.resolve().with_name(f"{student.resolve().name}.{kind}")


def _show(artifact: Any, json: bool) -> None:
    if json:
        console.emit_json({"path": str(artifact.path), "key": artifact.key, **artifact.summary})
    else:
        _show_dict(str(artifact.path), artifact.summary, json)


def _show_set(made: Any, json: bool) -> None:
    from distill.traces.set_text import show_set

    _show(made, json) if json else show_set(made)


def _say_page(html: Path | None) -> None:
    if html is not None:
        console.note(f"page: {html}")


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


def _end_study(folder: Path, json: bool) -> None:
    """Exit 1 where stages failed, of which the results are without."""
    if _show_study(folder, json)["failures"]:
        raise typer.Exit(1)


def _show_study(folder: Path, json: bool) -> dict[str, Any]:
    from distill.study.report import read_results

    results = read_results(folder)
    if json:
        console.emit_json(results)
        return results
    for verdict in results["verdicts"]:
        console.out.print(verdict["sentence"], markup=False, soft_wrap=True)
    for failure in results["failures"]:
        console.note(f"{failure['stage']} {failure['cell']} failed: {failure['reason']}")
    console.out.print(f"report: {folder / 'report.html'}", markup=False, soft_wrap=True)
    return results


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
        where = f"{error.filename}: " if error.filename else ""
        if error.errno == errno.ENAMETOOLONG:
            _fail(f"{where}{os.strerror(error.errno)}", 2, debug)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            raise
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
