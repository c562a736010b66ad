"""Whether every student and a served teacher fits on the devices of a row, and what would help where one does not."""

from collections.abc import Sequence

from distill.flops import Hardware
from distill.study.plan.cell import PlannedCell
from distill.study.plan.memory import GIB, Device, is_divisible, while_serving, while_training
from distill.study.plan.problems import Problems
from distill.study.plan.shapes import Shape
from distill.study.plan.teaching import Pairs
from distill.study.rows import StudentRow
from distill.traces.teachers.settings import VllmSettings
from distill.training.settings import TrainSettings

TENSOR_PARALLEL = "--tensor-parallel-size"


def keep_needs(found: PlannedCell, settings: TrainSettings, row: Hardware, problems: Problems) -> None:
    """What a cell needs of each device, and whether its answers fit its positions and its heads can be spread."""
    device = Device.of(row)
    size, shape = found.cell.size, found.shape
    how = (settings, shape, found.training, device, size.devices, size.activation_checkpointing)
    longest = max((b.prompt_tokens + b.longest for b in [*found.batches, *found.vote_batches]), default=0)
    if found.training.origin is None and shape.positions is not None and longest > shape.positions:
        problems.add(
            f"{size.name}: a question of mean length and `max_tokens` of an answer need {longest:,.0f} positions, and "
            f"{size.student} has {shape.positions:,}"
        )
    on_gpus = size.devices if device.kind == "cuda" else 1
    if not is_divisible(shape.model, on_gpus):
        problems.add(f"{size.name}: {size.student} {cannot_be_spread(shape, on_gpus)}")
    serving = while_serving(shape, device, on_gpus, longest)
    found.needs = {"training": while_training(*how), "serving": serving}


def require_room(
    found: Sequence[PlannedCell], students: Sequence[StudentRow], row: Hardware, problems: Problems
) -> None:
    """Say of every size that does not fit which of its cells needs most."""
    for size in students:
        for what in ("training", "serving"):
            large = [c for c in found if c.cell.size is size and c.needs and not c.needs[what].fits]
            if not large:
                continue
            worst = max(large, key=lambda cell: cell.needs[what].total)
            need, more = worst.needs[what], f" (and {len(large) - 1} more of {size.name})" if len(large) > 1 else ""
            less = (
                []
                if what == "serving" or size.activation_checkpointing == "full"
                else ["activation_checkpointing: full"]
            )
            cures = [*less, "more `devices`", *(["LoRA", "fewer row_tokens"] if what == "training" else [])]
            problems.add(
                f"{worst.id}{more}: {what} needs about {need.total / GIB:.1f} GiB on each of {size.devices} "
                f"{row.name} ({need.largest}), which has {need.has / GIB:.1f} for it; give its student "
                f"{', or '.join(cures)}"
            )


def require_teacher_fits(pairs: Pairs, teacher: VllmSettings, shape: Shape, row: Hardware, problems: Problems) -> None:
    """As for students, of a teacher that is served on devices of the row."""
    devices = tensor_parallel(teacher.server.arguments)
    need = while_serving(shape, Device.of(row), devices, pairs.mean.prompt + teacher.max_tokens)
    if not is_divisible(shape.model, devices):
        problems.add(f"traces {pairs.row.name}: {teacher.vllm} {cannot_be_spread(shape, devices)}")
    if not need.fits:
        problems.add(
            f"traces {pairs.row.name}: serving {teacher.vllm} needs about {need.total / GIB:.1f} GiB on each of {devices} "
            f"{row.name} ({need.largest}), which has {need.has / GIB:.1f} for it; give its server "
            f"`arguments: [{TENSOR_PARALLEL}, N]`"
        )


def cannot_be_spread(shape: Shape, devices: int) -> str:
    """Why vLLM cannot spread a model of that shape."""
    of = shape.model
    return (
        f"cannot be served by {devices} devices: vLLM wants a number that divides its {of.heads} attention heads and "
        f"{of.intermediate:,} units of a layer, and divides its {of.kv_heads} key-value heads or is a multiple of them"
    )


def tensor_parallel(arguments: Sequence[str]) -> int:
    """Over how many devices a server with these arguments of vLLM's spreads a model.

    >>> tensor_parallel(["--tensor-parallel-size", "4"]), tensor_parallel(["--tensor-parallel-size=2"]), tensor_parallel([])
    (4, 2, 1)
    """
    words = [word for argument in arguments for word in argument.split("=", 1)]
    after = words[words.index(TENSOR_PARALLEL) + 1 :] if TENSOR_PARALLEL in words else []
    return int(after[0]) if after and after[0].isdecimal() else 1
