"""A cross-check of our grades: lm-eval's own tasks, prompts and graders, on a student behind the same server.

folder/
  lm_eval.json      by task: lm-eval's metrics and how many questions
  samples.jsonl     what was generated or scored, one row a question and filter

Only answers are handed to lm-eval's graders, as everywhere: what stands in think blocks is left out, and what is unfinished
is no answer.
"""

import importlib.metadata
import importlib.util
import io
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pydantic import Field

from distill import artifact, console
from distill.artifact import Artifact
from distill.errors import InputError
from distill.evaluation.server import Serving, engine_version
from distill.evaluation.settings import MAX_TOKENS
from distill.evaluation.subject import Subject, load_subject
from distill.serve import Endpoint
from distill.settings import Settings

KIND = "lm-eval"
_POSITIONS = 4096  # of a model that does not say how many it has
_BOOTSTRAP = 1000  # draws for the standard error of what is no mean; lm-eval's 100,000 take minutes a metric


class LmEvalSettings(Settings):
    """Which of lm-eval's tasks, and how much of each."""

    tasks: dict[str, int | None] = Field(min_length=1)  # name -> first questions of it; None: all
    folder: Path | None = None  # of task files, in place of lm-eval's own
    few_shot: int | None = Field(None, ge=0)  # None: as the task says
    max_tokens: int = Field(MAX_TOKENS, ge=1)  # where the task does not say
    seed: int = Field(0, ge=0, lt=2**31)


def evaluate_via_lm_eval(settings: LmEvalSettings, student: Path, out: Path, serving: Serving = Serving()) -> Artifact:
    """Run the tasks. Raises InputError."""
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("lm-eval is not installed: pip install 'distill-stack[lm-eval]'")
    if settings.folder is not None and not settings.folder.is_dir():
        raise InputError(f"{settings.folder}: expected a folder with task files of lm-eval")
    subject = load_subject(student)
    recipe = {
        "settings": settings.model_dump(mode="json", exclude={"folder"}),
        "folder": artifact.folder_identity(settings.folder) if settings.folder else None,
        "student": subject.identity,
        "rendered": subject.chat.rendered if subject.chat else None,
        "lm_eval": importlib.metadata.version("lm_eval"),
        "bootstrap": _BOOTSTRAP,
        "engine": engine_version("vllm"),
        "dtype": subject.dtype,
    }
    positions = getattr(subject.config, "max_position_embeddings", None) or _POSITIONS
    with artifact.workspace(out, KIND, recipe) as work:
        if work.finished:
            console.note(f"{out}: already evaluated, nothing to do")
            return work.finished
        with serving.reachable(subject, out, positions=positions) as endpoint:
            found = _run(settings, subject, endpoint, positions)
        with open(work.path / "samples.jsonl", "w", encoding="utf-8", errors="replace") as file:
            for name, result in found.items():
                for sample in result["samples"].get(name, []):
                    file.write(json.dumps({"task": name, **_sample(sample)}, default=str) + "\n")
        summary = {name: _summary(name, result) for name, result in found.items()}
        artifact.write_json(work.path / "lm_eval.json", summary)
        return work.commit(summary)


def _run(settings: LmEvalSettings, subject: Subject, endpoint: Endpoint, positions: int) -> dict[str, Any]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        from distill.evaluation.lm_eval_model import ServedStudent

        folder = str(settings.folder) if settings.folder else None
        manager = TaskManager(include_path=folder, include_defaults=folder is None)  # its own take seconds to read
        model = ServedStudent(
            subject, endpoint, max_tokens=settings.max_tokens, seed=settings.seed, positions=positions
        )
        with _quiet():
            return {
                name: simple_evaluate(
                    model,
                    tasks=[name],
                    task_manager=manager,
                    num_fewshot=settings.few_shot,
                    limit=count,
                    apply_chat_template=subject.chat is not None,
                    bootstrap_iters=_BOOTSTRAP,
                    random_seed=settings.seed,
                    numpy_random_seed=settings.seed,
                    torch_random_seed=settings.seed,
                    fewshot_random_seed=settings.seed,
                )
                for name, count in settings.tasks.items()
            }
    except Exception as error:  # another program: it may raise anything
        said = " ".join(endpoint.hide_key(str(error)).split())[:300]
        raise InputError(f"lm-eval: {type(error).__name__}: {said}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's progress bars, what it prints, and what it asks git and the machine about themselves."""
    from lm_eval import evaluator
    from tqdm import tqdm

    shown = tqdm.__init__

    def disabled(bar: tqdm, *args: Any, **kwargs: Any) -> None:
        shown(bar, *args, **{**kwargs, "disable": True})

    with (
        patch.dict(os.environ, DISABLE_MULTIPROC="1"),  # a fork of this process, which has threads, may hang
        patch.object(tqdm, "__init__", disabled),
        patch.object(evaluator, "get_git_commit_hash", lambda: None),
        patch.object(evaluator, "add_env_info", lambda results: None),
        redirect_stdout(io.StringIO()),
    ):
        yield


def _summary(name: str, result: dict[str, Any]) -> dict[str, Any]:
    numbers = {
        metric: value
        for metric, value in result["results"].get(name, {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {"metrics": numbers, "questions": result.get("n-samples", {}).get(name)}


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    return {key: sample.get(key) for key in ("doc_id", "filter", "target", "filtered_resps")}
