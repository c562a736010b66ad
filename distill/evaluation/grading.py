"""Outputs to grades: the answer alone is graded, never the reasoning, and what is not finished is wrong."""

from typing import Any

import numpy as np

from distill.evaluation.answers import Answer, take_apart
from distill.evaluation.generate import Output
from distill.evaluation.questions import Asked
from distill.evaluation.subject import Subject
from distill.flops import ModelShape
from distill.tasks.problem import Problem
from distill.tasks.task import Metric

GRADING_VERSION = 1  # part of every key: raise it when the same output would get another grade


def grade(
    asked: list[Asked], subject: Subject, prompts: dict[str, list[int]], outputs: dict[str, Output]
) -> list[Answer]:
    """Take every output apart and grade its answer. Unfinished is wrong; reasoning is never graded."""
    answers = []
    for a in asked:
        for problem in a.problems:
            output = outputs[problem.id]
            parts = take_apart(subject.chat, output.token_ids)
            finished = output.finish_reason == "stop" and parts.closed
            answers.append(
                Answer(
                    problem_id=problem.id,
                    task=problem.task,
                    prompt=problem.prompt,
                    gold=problem.gold,
                    token_ids=output.token_ids,
                    thinking=parts.thinking,
                    answer=parts.answer,
                    prompt_tokens=len(prompts[problem.id]),
                    thinking_tokens=parts.thinking_tokens,
                    answer_tokens=parts.answer_tokens,
                    thought=parts.thought,
                    finished=finished,
                    finish_reason=output.finish_reason,
                    correct=finished and a.task.is_correct(problem, parts.answer),
                    seconds=output.seconds,
                )
            )
    return answers


def metric_columns(metric: Metric, problems: list[Problem], answers: list[Answer]) -> dict[str, np.ndarray]:
    """The rows of a metric as columns, one entry a question; an unfinished answer is graded as no answer."""
    rows = [metric.rows(p, a.answer if a.finished else "") for p, a in zip(problems, answers, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def summarise(asked: list[Asked], answers: list[Answer], shape: ModelShape) -> dict[str, Any]:
    """By task: metrics, rates, token means and modelled FLOPs. Everything timed is under `measured`."""
    result = {}
    for a in asked:
        mine = [answer for answer in answers if answer.task == a.task.name]
        finished = [answer for answer in mine if answer.finished]
        flops = sum(shape.generation_flops(x.prompt_tokens, x.thinking_tokens + x.answer_tokens) for x in mine)
        correct = sum(x.correct for x in mine)
        result[a.task.name] = {
            "n_questions": len(mine),
            "n_correct": correct,
            "metrics": {n: m.value(metric_columns(m, a.problems, mine)) for n, m in a.task.metrics.items()},
            "unfinished_rate": 1 - len(finished) / len(mine),
            "think_rate": float(np.mean([x.thought for x in mine])),
            "accuracy_finished": float(np.mean([x.correct for x in finished])) if finished else None,
            "tokens_per_answer": {
                "prompt": float(np.mean([x.prompt_tokens for x in mine])),
                "thinking": float(np.mean([x.thinking_tokens for x in mine])),
                "answer": float(np.mean([x.answer_tokens for x in mine])),
                "total": float(np.mean([x.thinking_tokens + x.answer_tokens for x in mine])),
            },
            "flops_per_answer": flops / len(mine),
            "flops_per_correct": flops / correct if correct else None,
            "measured": {"mean_latency_seconds": float(np.mean([x.seconds for x in mine]))},
        }
    return result
