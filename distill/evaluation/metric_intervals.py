"""The interval of each of a task's metrics, over its questions."""

from distill.evaluation.answers import Answer
from distill.evaluation.grading import metric_columns
from distill.evaluation.questions import Asked
from distill.evaluation.samples_and_budgets import by_question
from distill.evaluation.statistics.intervals import score
from distill.evaluation.statistics.resampling import resample


def metric_intervals(asked: Asked, answers: list[Answer]) -> dict[str, dict[str, float]]:
    """By metric the `low` and `high` end of its 95 % interval, as shares. All answers to one question are one observation.

    `answers` are graded and as many to each of the task's questions.
    """
    problems = {problem.id: problem for problem in asked.problems}
    questions = by_question(answers)
    ordered = [answer for samples in questions for answer in samples]
    theirs = [problems[answer.problem_id] for answer in ordered]
    found = {}
    for name, metric in asked.task.metrics.items():
        columns = metric_columns(metric, theirs, ordered)
        interval = score([resample(metric, columns, samples=len(questions[0]))])
        found[name] = {"low": interval.low, "high": interval.high}
    return found
