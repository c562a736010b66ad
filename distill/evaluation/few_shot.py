"""Questions as plain text after a few answered ones: how a model is asked that was never taught to chat.

example's prompt            the benchmark's own format: a blank line, `Answer:` and the answer;
Answer: 17                  two blank lines end it, and with them the model's answer
...
question's prompt
Answer:
"""

from typing import Any

from distill.errors import InputError
from distill.evaluation.questions import Asked, Prompts, up_to
from distill.evaluation.settings import EvaluateSettings
from distill.evaluation.subject import Subject
from distill.tasks.benchmark_task import BenchmarkTask, Example
from distill.tasks.problem import Problem
from distill.tasks.task import Task

EXAMPLES = 5  # of a task that does not say how many
STOP = "\n\n\n"


def asked_as_text(settings: EvaluateSettings, subject: Subject) -> bool:
    """Whether the questions are put as text: when few-shot is asked for, or the student has no chat template."""
    return settings.few_shot is not None or subject.chat is None


def examples(task: Task, asked: list[Problem], count: int | None) -> list[Example]:
    """`count` answered questions of a task, of its training split and none of those that are asked. Raises InputError
    when there are too few."""
    if isinstance(task, BenchmarkTask):
        found = list(task.examples)
        if count is not None and count > len(found):
            raise InputError(f"--few-shot {count}: benchmark {task.name} has {len(found)} examples")
        return found if count is None else found[:count]
    if count == 0:
        return []
    count = EXAMPLES if count is None else count
    prompts = {problem.prompt for problem in asked}
    left = [p for p in up_to(task, "train", count + len(asked), 0) if p.prompt not in prompts][:count]
    if len(left) < count:
        raise InputError(
            f"task {task.name}: {count} examples needed and {len(left)} training questions left that are not asked; ask "
            f"fewer questions (--tasks {task.name}=N, or --split test) or show fewer examples (--few-shot K)"
        )
    return [Example(p.prompt, p.gold) for p in left]


def few_shot_prompts(subject: Subject, asked: list[Asked], count: int | None) -> Prompts:
    """The prompts of every question as text, tokenized as text from the beginning. Raises InputError."""
    ids: dict[str, list[int]] = {}
    shots: dict[str, int] = {}
    for a in asked:
        shown = examples(a.task, a.problems, count)
        shots[a.task.name] = len(shown)
        before = "".join(f"{e.prompt}\n\nAnswer: {e.answer}{STOP}" for e in shown)
        for problem in a.problems:
            ids[problem.id] = _encode(subject.tokenizer, f"{before}{problem.prompt}\n\nAnswer:")
    return Prompts(ids, as_text=True, stop=(STOP,), shots=shots)


def _encode(tokenizer: Any, text: str) -> list[int]:
    """With the token that begins a text, where the tokenizer has one."""
    return tokenizer(text, add_special_tokens=True, truncation=False)["input_ids"]
