"""One step on a large trace set, as a process whose memory and time can be told: `python scale_steps.py STEP FOLDER`.

The teacher answers in this process: a server could not be asked so often in a test. It counts what it is asked in a file,
and ends the process by SIGKILL where it is told to. What was done is printed as JSON.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

IN_FLIGHT = 64
WORDS = [f"{a}{b}{c}" for a in ("ba", "ko", "li", "mu", "se") for b in ("ra", "ti", "no") for c in ("", "n", "s", "xt")]


class CountingTeacher:
    """Every hundredth answer is cut off; all else is decided by the question too."""

    identity, prices, vocabulary = {"name": "counting"}, {"usd": 1.0}, None

    def __init__(self, count: Path, kill_after: int | None):
        self.count = os.open(count, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.kill_after = kill_after

    def render(self, question):
        return {"prompt": question.problem.prompt, "mode": question.mode, "seed": question.sample}

    def answer_to(self, question):
        from distill.traces.faults import fault_of
        from distill.traces.pairing import Answer
        from distill.traces.trace import Trace

        seed = int.from_bytes(hashlib.sha256(f"{question.mode} {question.problem.prompt}".encode()).digest()[:8])
        thinking = question.mode == "reasoning"
        words = random.Random(seed).choices(WORDS, k=200)
        reasoning = " ".join(words[:20]) if thinking else ""
        answer = f"{' '.join(words)} \\boxed{{{question.problem.gold if seed % 10 else 0}}}"
        ended = "stop" if seed % 100 else "length"
        trace = Trace(question.mode, reasoning, answer, ended, "counting", 30, 20 * thinking, 200)
        return Answer(trace, fault_of(trace), output_tokens=220)

    async def answer(self, questions, on_answer):
        waiting = []
        for question in questions:
            os.write(self.count, b".")
            waiting.append(question)
            if len(waiting) == IN_FLIGHT:
                self.reply(waiting, on_answer)
        self.reply(waiting, on_answer)

    def reply(self, waiting, on_answer):
        while waiting:
            if self.kill_after is not None:
                self.kill_after -= 1
                if self.kill_after < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            question = waiting.pop()
            on_answer(question, self.answer_to(question))

    def cost_usd(self, answer):
        return answer.output_tokens / 1e6


def generate_step(folder: Path, kill_after: int | None = None) -> Any:
    from distill.tasks.questions import QuestionFile
    from distill.traces import generate as module
    from distill.traces.settings import EndpointSettings, GenerateSettings

    module.open_teacher = lambda *_: CountingTeacher(folder / "asked", kill_after)
    file = QuestionFile(path=folder / "questions.jsonl", answer="gold", checker="number", skip_bad=True)
    settings = GenerateSettings(data={"mine": file}, teacher=EndpointSettings(url="http://h/v1", model="m"))
    return module.generate(settings, folder / "traces").summary


def verify_step(folder: Path) -> Any:
    from distill.traces.verify import VerifySettings, verify

    return verify(folder / "traces", folder / "verified", VerifySettings(checker="normalised")).summary


def check_step(folder: Path) -> Any:
    from distill.traces.hygiene.check import CheckSettings, check

    settings = CheckSettings(remove=("duplicates", "near", "outliers"))
    return check(folder / "verified", settings, out=folder / "clean")["removed"]


def stats_step(folder: Path) -> Any:
    from distill.traces.stats.stats import stats

    return stats(folder / "verified", projected_questions=1_000_000)


def peak_mib() -> float:
    """Of this process alone: what getrusage says begins with the size of the process that started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    steps = {"generate": generate_step, "verify": verify_step, "check": check_step, "stats": stats_step}
    name, place, *more = sys.argv[1:]
    start = time.monotonic()
    done = steps[name](Path(place), *map(int, more))
    print(json.dumps({"summary": done, "seconds": time.monotonic() - start, "peak_mib": peak_mib()}))
