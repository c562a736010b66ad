"""What serving a student is charged at: a row of hardware.yaml, and what was paid before the first answer.

Training is priced as it was measured, on the same hardware; a teacher by the bill of its trace set, of which an arm pays
the answers that it is shown. Whatever else was paid (tuning runs, a teacher whose bill nobody has) is given.
"""

import os
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from distill import artifact
from distill.errors import InputError
from distill.evaluation.serving.cost import Price
from distill.evaluation.subject import Subject
from distill.flops import Hardware, hardware
from distill.packing.arms import Arm
from distill.serve.server import is_cpu_build
from distill.settings import Settings

WITHOUT_REASONING = {"teacher": {"ift"}, "stripped": {"reasoning"}, "gold": set()}  # what an IFT answer was made from


class PriceSettings(Settings):
    """What the machine costs, and over how many answers the rest is shared."""

    hardware: str  # a row of hardware.yaml
    devices: int = Field(1, ge=1)  # of the server, or of all replicas behind an endpoint
    answers_per_month: float | None = Field(None, gt=0)
    months: float = Field(1.0, gt=0)  # of use
    traces: Path | None = None  # whose teacher is paid for
    fixed_usd: float = Field(0.0, ge=0)  # paid besides training and that teacher

    @model_validator(mode="after")
    def _shared_over_answers(self) -> "PriceSettings":
        hardware(self.hardware)
        if self.answers_per_month is None and (self.fixed_usd or self.traces or self.months != 1.0):
            raise ValueError("what was paid once needs answers_per_month, over which it is shared")
        return self


def price_of(settings: PriceSettings, subject: Subject, threads: int | None) -> tuple[Price, dict[str, Any]]:
    """The price of a second, and all that is known of where it comes from. `threads` are the server's on a CPU; None
    pays for whole devices. Raises InputError for a trace set that is not the student's or does not say what it cost."""
    device = hardware(settings.hardware)
    training = _training_usd(subject.folder, device)
    teacher = None if settings.traces is None else _teacher_usd(subject.folder, settings.traces)
    price = Price.of(
        device,
        threads=threads,
        devices=settings.devices,
        fixed_usd=settings.fixed_usd + (training or 0.0) + (teacher or 0.0),
        answers_per_month=settings.answers_per_month,
        months=settings.months,
    )
    return price, {
        "hardware": device.name,
        "devices": settings.devices,
        "threads": threads,
        "usd_per_hour_of_a_device": device.price_usd_per_hour,
        "usd_per_second": price.usd_per_second,
        "source": device.source,
        "date": device.date,
        "illustrative": device.illustrative,
        "answers_per_month": settings.answers_per_month,
        "months": settings.months,
        "fixed_usd": {
            "training": training,  # None: no manifest says what it took
            "teacher": teacher,  # None: no trace set was named
            "given": settings.fixed_usd,
        },
    }


def server_threads(given: int | None) -> int | None:
    """The threads a server of ours runs on and is paid for; None on a GPU."""
    return (given or max(1, len(os.sched_getaffinity(0)) - 1)) if is_cpu_build() else None


def _manifest(folder: Path) -> artifact.Artifact | None:
    made = (folder / artifact.MANIFEST).is_file()
    return artifact.read(folder, "student", made_by="distill train") if made else None


def _training_usd(student: Path, device: Hardware) -> float | None:
    made = _manifest(student)
    if made is None:
        return None
    took = made.summary["measured"]
    return took.get("ranks", 1) * device.usd(took["seconds"], took["threads"])


def _teacher_usd(student: Path, traces: Path) -> float:
    trace_set = artifact.read(traces, "traces", made_by="distill traces generate")
    made = _manifest(student)
    if made is None or made.recipe.get("traces") != trace_set.key:
        raise InputError(f"{traces}: not the trace set that {student} was trained on")
    bill, usd = trace_set.summary.get("bill", {}), 0.0
    for mode in sorted(paid_modes(made.recipe["settings"])):
        paid = bill.get(mode, {})
        if "cost_usd" not in paid:
            raise InputError(
                f"{traces}: does not say what its {mode} answers cost; leave --traces out, give --fixed-usd"
            )
        usd += paid["cost_usd"]
    return usd


def paid_modes(trained: dict[str, Any]) -> set[str]:
    """Of which answers of its teacher a student needs the bill."""
    shown = {"ift", "reasoning"} if trained.get("phases") else set(Arm.parse(trained["arm"]).modes)
    return shown - {"ift"} | (WITHOUT_REASONING[trained["answers"]] if "ift" in shown else set())
