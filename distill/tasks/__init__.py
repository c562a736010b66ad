"""Questions: where they come from and how an answer is graded. Imports only leaves; nothing heavy at import."""

from distill.tasks.registry import TASKS, get_task

__all__ = ["TASKS", "get_task"]
