"""Whether a task's answers can be graded here: said before anything is generated."""

from distill.errors import InputError
from distill.serve.judge import JudgeSettings
from distill.tasks.ifeval import missing_packages
from distill.tasks.task import Task


def check_gradable(task: Task, judges: tuple[JudgeSettings, ...] = ()) -> None:
    """Raises InputError when a task has no checker, or one that cannot run: no judges named, packages missing."""
    if task.checker is None:
        raise InputError(f"task {task.name}: answers can only be graded with a checker and the field of the answer")
    if task.checker == "judge" and not judges:
        raise InputError(f"task {task.name}: models judge its answers; name one to three with --judge URL#MODEL")
    if task.checker == "ifeval" and (missing := missing_packages()):
        raise InputError(f"task {task.name}: needs {', '.join(missing)}; install lm-eval[ifeval]")
