"""`distill evaluate`: a student and questions in, graded answers out.

folder/
  answers.parquet     one row a question, sample and thinking budget: output, its parts, token counts, grade
  grades.json         by task: every metric, unfinished and think rate, token means; a curve over thinking budgets
  answers.html        the answers to look through
"""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

from distill import artifact, console
from distill.artifact import Artifact, canonical_json
from distill.evaluation.answer_file import KIND, write_answers
from distill.evaluation.answers import Answer
from distill.evaluation.budgets import server_arguments, why_not_vllm
from distill.evaluation.few_shot import asked_as_text, few_shot_prompts
from distill.evaluation.generate import JOURNAL, Generation, Journal, generate_transformers
from distill.evaluation.grading import grade, grading_recipe, summarise
from distill.evaluation.judging import JUDGEMENTS, Judges, judges_of
from distill.evaluation.loglikelihood import JOURNAL as OPTIONS
from distill.evaluation.loglikelihood import loglikelihood_grades, score_options, scored_prompts, with_options
from distill.evaluation.metric_intervals import metric_intervals
from distill.evaluation.page import Arm, write_page
from distill.evaluation.questions import (
    Asked,
    Prompts,
    ask,
    distinct_problems,
    note_rows_left_out,
    positions_needed,
    recipe_of,
)
from distill.evaluation.requests import answer_limit, requests
from distill.evaluation.responses import read_output
from distill.evaluation.samples_and_budgets import further_grades, headline
from distill.evaluation.server import Serving, engine_version
from distill.evaluation.settings import EvaluateSettings
from distill.evaluation.subject import Subject, load_subject
from distill.evaluation.thinking import think_prompts
from distill.flops import ModelShape
from distill.journal import Journal as JsonJournal


def evaluate(settings: EvaluateSettings, student: Path, out: Path, serving: Serving = Serving()) -> Artifact:
    """Answer and grade. A server that is there must, for thinking budgets, have been started with
    `budgets.server_arguments`. Raises InputError."""
    asked = ask(settings.questions, settings.judges)
    note_rows_left_out(asked)
    subject = load_subject(student)
    prompts = render(settings, subject, asked)
    longest = max(positions_needed(subject, _prompts_of(a, prompts), answer_limit(settings, a)) for a in asked)
    wanted = requests(settings, asked, prompts)
    scorable = with_options(subject, asked, prompts) if settings.score == "loglikelihood" else []
    options = scored_prompts(subject, scorable, prompts)
    longest = max(longest, *(len(prompt) + len(option) + 1 for prompt, option in options.values()), 0)
    recipe = evaluation_recipe(settings, subject, asked, prompts)
    with artifact.workspace(out, KIND, recipe) as work:
        if work.finished:
            console.note(f"{out}: already evaluated, nothing to do")
            return work.finished
        with Journal(work.path / JOURNAL) as journal, JsonJournal(work.path / OPTIONS) as scored:
            missing = [request for request in wanted if request.key not in journal.outputs]
            if missing and settings.engine == "transformers":
                generate_transformers(student, missing, settings, subject, journal)
            elif missing or any(key not in scored for key in options):
                by_vllm = settings.limits_thinking and why_not_vllm(subject.require_chat(), prompts) is None
                limits = server_arguments(subject.require_chat()) if by_vllm else ()
                with serving.reachable(subject, out, positions=longest, arguments=limits) as endpoint:
                    kept, keep = journal.outputs, journal.add
                    generation = Generation(endpoint, settings, subject, prompts, keep, vllm_limits=by_vllm, kept=kept)
                    asyncio.run(generation.run(missing))
                    if options:
                        asyncio.run(score_options(endpoint, options, scored))
            drawn = settings.temperature > 0 and settings.engine == "vllm"  # each answer with a seed of its own
            answers = [
                read_output(
                    subject,
                    prompts,
                    request,
                    journal.outputs[request.key],
                    think=settings.think,
                    seed=request.seed(settings.seed) if drawn else None,
                )
                for request in wanted
            ]
            likely = {a.task.name: loglikelihood_grades(a, scored.get) for a in scorable}
        judges = judges_of(settings.judges, work.path)
        answers = grade(asked, answers, judges)
        grades = all_grades(asked, answers, subject.shape, judges)
        for name, values in grades.items():
            values |= _how(settings, subject, prompts, name)
            if name in likely:
                values["loglikelihood"] = likely[name]
        write_answers(work.path / "answers.parquet", answers)
        artifact.write_json(work.path / "grades.json", grades)
        arm = Arm(student.resolve().name, answers, work.recipe, grades)
        write_page(work.path / "answers.html", [arm], kicker=f"distill evaluate · {work.key}")
        return work.commit(grades, remove=(JOURNAL, OPTIONS, JUDGEMENTS))


def render(settings: EvaluateSettings, subject: Subject, asked: list[Asked]) -> Prompts:
    """The prompts of every question in the way the settings say. Raises InputError."""
    distinct_problems(asked)
    if not asked_as_text(settings, subject):
        return think_prompts(subject, asked, settings.mode, settings.think)
    if settings.few_shot is None:
        if settings.think != "free" or settings.limits_thinking or settings.mode is not None:
            subject.require_chat()
        console.note(f"{subject.folder}: has no chat template; questions are put as text, after examples")
    return few_shot_prompts(subject, asked, settings.few_shot)


def evaluation_recipe(
    settings: EvaluateSettings, subject: Subject, asked: list[Asked], prompts: Prompts | None = None
) -> dict[str, Any]:
    """Everything the graded answers depend on. `prompts` are needed where they are more than the rendered questions."""
    recipe = {
        "settings": recipe_of(settings, asked)
        | {"max_tokens": _one({a.task.name: answer_limit(settings, a) for a in asked})},
        "student": subject.identity,
        "tasks": {a.task.name: a.task.revision for a in asked},
        "rendered": subject.chat.rendered if subject.chat else None,
        "engine": engine_version(settings.engine),
        "dtype": subject.dtype,
        "grading": grading_recipe(asked, settings.judges),
    }
    if prompts is not None and (prompts.as_text or settings.think != "free"):
        recipe["prompts"] = hashlib.sha256(canonical_json([prompts.ids, prompts.stop]).encode()).hexdigest()
    return recipe


def all_grades(
    asked: list[Asked], answers: list[Answer], shape: ModelShape | None, judges: Judges | None = None
) -> dict[str, Any]:
    """By task: the grades of the headline answers, and what several samples and budgets show."""
    grades = summarise(asked, headline(answers), shape, judges)
    for a in asked:
        mine = [answer for answer in answers if answer.task == a.task.name]
        grades[a.task.name]["intervals"] = metric_intervals(a, headline(mine))
        grades[a.task.name] |= further_grades(mine, a.task.answer_format)
    return grades


def _how(settings: EvaluateSettings, subject: Subject, prompts: Prompts, task: str) -> dict[str, Any]:
    """How a task's questions were asked, where it was not in the usual way."""
    how: dict[str, Any] = {}
    if settings.mode is not None:
        how["mode"] = settings.mode
    if settings.think != "free":
        how["think"] = settings.think
    if prompts.as_text:
        how["few_shot"] = prompts.shots[task]
    if settings.limits_thinking:
        reason = why_not_vllm(subject.require_chat(), prompts)
        how["budget_kept_by"] = "vLLM" if reason is None else f"two requests: {reason}"
    return how


def _prompts_of(asked: Asked, prompts: Prompts) -> dict[str, list[int]]:
    return {problem.id: prompts.ids[problem.id] for problem in asked.problems}


def _one(limits: dict[str, int]) -> int | dict[str, int]:
    """The limit of all tasks where it is the same."""
    return next(iter(limits.values())) if len(set(limits.values())) == 1 else limits
