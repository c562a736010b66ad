"""The smallest difference that the declared questions and seeds can show, under assumptions that are printed.

Before a run nobody knows on how many questions two arms will differ, nor how far seeds scatter. DISCORDANCE is the share
of questions that only one of two arms has right, SEED_SPREAD the standard deviation of the difference over training seeds:
what small students showed here, to be taken as an order of magnitude. After a run `detectable_points` of each contrast in
results.json says it from what was found.
"""

from typing import Any

from distill.evaluation.statistics.intervals import SEEDS_FOR_A_CLAIM
from distill.evaluation.statistics.power import POWER, expected_spread, minimum_detectable_difference
from distill.study.settings import StudySettings

DISCORDANCE, SEED_SPREAD = 0.2, 0.02


def detectable(settings: StudySettings, questions: dict[str, int]) -> list[dict[str, Any]]:
    """Of each contrast in each size and task; `questions`: how many of each task."""
    found = []
    for row in settings.contrasts:
        for size in settings.students:
            seeds = min(settings.seeds_compared(row, size), key=len)
            if not seeds:
                continue
            for task, count in questions.items():
                if "majority" in (row.treatment, row.control) and not _votes(settings, task):
                    continue
                spread = expected_spread(count, DISCORDANCE, seeds=len(seeds), seed_spread=SEED_SPREAD)
                points = 100 * minimum_detectable_difference(spread, confidence=settings.confidence)
                found.append(
                    {
                        "treatment": row.treatment,
                        "control": row.control,
                        "size": size.name,
                        "task": task,
                        "questions": count,
                        "seeds": len(seeds),
                        "points": points,
                        "margin_points": settings.margin_points,
                        "about": "reasoning" if len(seeds) >= SEEDS_FOR_A_CLAIM else "these trained students",
                        "verdict": row.verdict_size == size.name,
                    }
                )
    return found


def _votes(settings: StudySettings, task: str) -> bool:
    """Whether the majority answers a task; `gsm8k:PATH` is the task gsm8k."""
    tasks = settings.comparators.majority.tasks
    return tasks is None or task in {name.partition(":")[0] for name in tasks}


ASSUMED = {"discordance": DISCORDANCE, "seed_spread": SEED_SPREAD, "power": POWER}
