"""Questions: where they come from and how an answer is graded. Imports only leaves; nothing at all at import."""

from typing import Any

__all__ = ["TASKS", "get_task"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from distill.tasks import registry

    return getattr(registry, name)
