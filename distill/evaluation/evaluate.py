"""`distill evaluate`: a student and questions in, graded answers out.

folder/
  answers.parquet     one row a question: output, its parts, token counts, grade
  grades.json         by task: every metric, unfinished and think rate, token means
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill import artifact, console
from distill.artifact import Artifact
from distill.evaluation.answer_file import write_answers
from distill.evaluation.generate import JOURNAL, Journal, generate_transformers, generate_vllm
from distill.evaluation.grading import GRADING_VERSION, grade, summarise
from distill.evaluation.questions import Asked, ask, positions_needed, prompt_ids
from distill.evaluation.server import engine_version, reachable_server, server_log
from distill.evaluation.settings import EvaluateSettings
from distill.evaluation.subject import Subject, load_subject
from distill.serve import Endpoint

KIND = "evaluation"


def evaluate(
    settings: EvaluateSettings,
    student: Path,
    out: Path,
    *,
    endpoint: Callable[[], Endpoint] | None = None,
    threads: int | None = None,
    port: int | None = None,
) -> Artifact:
    """Answer and grade. `endpoint` gives a running server, and is called only if something must be generated;
    without it one is started. Raises InputError."""
    asked = ask(settings.questions)
    subject = load_subject(student)
    prompts = prompt_ids(subject, asked, settings.mode)
    longest = positions_needed(subject, prompts, settings.max_tokens)
    recipe = evaluation_recipe(settings, subject, asked)
    with artifact.workspace(out, KIND, recipe) as work:
        if work.finished:
            console.note(f"{out}: already evaluated, nothing to do")
            return work.finished
        with Journal(work.path / JOURNAL) as journal:
            missing = {question: ids for question, ids in prompts.items() if question not in journal.outputs}
            if missing and settings.engine == "transformers":
                generate_transformers(student, missing, settings, subject.chat, journal)
            elif missing:
                with reachable_server(
                    endpoint, subject, server_log(out), positions=longest, threads=threads, port=port
                ) as reachable:
                    generate_vllm(reachable, missing, settings, subject.chat, journal)
        answers = grade(asked, subject, prompts, journal.outputs)
        grades = summarise(asked, answers, subject.shape)
        write_answers(work.path / "answers.parquet", answers)
        artifact.write_json(work.path / "grades.json", grades)
        return work.commit(grades, remove=(JOURNAL,))


def evaluation_recipe(settings: EvaluateSettings, subject: Subject, asked: list[Asked]) -> dict[str, Any]:
    """Everything the graded answers depend on."""
    return {
        "settings": settings.model_dump(mode="json", exclude_none=True),
        "student": subject.identity,
        "tasks": {a.task.name: a.task.revision for a in asked},
        "rendered": subject.chat.rendered,
        "engine": engine_version(settings.engine),
        "dtype": subject.dtype,
        "grading_version": GRADING_VERSION,
    }
