"""What the gain costs: students of equal cost, what a right answer must be worth, lengths, and routing."""

from distill.report.bars import Bar, bars
from distill.report.blocks import Block, Bullets, Cell, Figure, Fold, Group, Key, Table
from distill.report.factors import Factor, FactorGroup, factors
from distill.report.numbers import DASH, compact, count, fixed, percent, signed, times, usd
from distill.study.page.reading import (
    ALL,
    MOST_PANELS,
    analysis,
    colour,
    confidence,
    decided_on,
    decides,
    entries,
    of_contrast,
    pick,
    primary,
    sizes,
    with_interval,
)
from distill.study.page.routing import routed, routing

_MOST_BARS = 12
_MOST_ROWS = 16  # of a table that stands open
_TOKENS = ("prompt", "thinking", "answer", "total")
_SPENT = {
    "tokens": "output tokens per answer",
    "flops": "inference FLOPs per answer",
    "training_flops": "training FLOPs",
}
_MEASURED = (
    ("seconds", "seconds_per_answer", False),
    ("price", "usd_per_1000_answers", False),
    ("price of a right one", "usd_per_1000_correct", True),
)
_OVER = (10_000, 1_000_000)  # answers that what is spent once is spread over, in the table


def costs(results: dict) -> list[Block]:
    blocks: list[Block] = [figure for figure in (factors_figure(results), tokens_figure(results)) if figure]
    if said := _break_even_sentences(results):
        bullets = Bullets("What a right answer must be worth", said)
        blocks.append(bullets if len(said) <= MOST_PANELS else Fold(f"{bullets.title}, task by task", [bullets]))
    first, *others = _equal_cost(results) or [None]
    if first is not None:
        blocks.append(_of_verdicts(results, first))
        others = others if blocks[-1] is first else [first, *others]
    if others:
        blocks.append(Fold("For the same cost, student by student and task by task", others))
    if said := routed(results):
        blocks.append(Bullets("Deciding question by question whether to think", said))
    details = (_break_even(results), _lengths(results), *routing(results))
    return blocks + [_open_or_folded(table) for table in details if table.groups]


def _of_verdicts(results: dict, table: Table) -> Table:
    """A long table with only the treatments of the contrasts that decide verdicts, in every size."""
    named = {f"{size}-{of_contrast(c)[0]}" for size in sizes(results["cells"]) for c in primary(results)}
    if sum(len(group.rows) for group in table.groups) <= _MOST_ROWS:
        return table
    groups = [Group(rows, g.title) for g in table.groups if (rows := [row for row in g.rows if row[0] in named])]
    return Table(table.caption, table.columns, groups, table.prose) if groups else table


def _open_or_folded(table: Table) -> Block:
    long = sum(len(group.rows) for group in table.groups) > _MOST_ROWS
    return Fold(table.caption, [table]) if long else table


def factors_figure(results: dict) -> Figure | None:
    """Of every contrast that decides a verdict, what the treatment takes as a multiple of the control."""
    known = {entry["id"]: entry for entry in entries(results)}
    panels, data = [], []
    for contrast in primary(results):
        sides = [known.get(contrast.get(side)) for side in ("treatment", "control")]
        task = contrast["task"]
        rows = [
            Factor("training tokens", contrast.get("training_tokens_factor")),
            Factor("training price", _factor(sides, "training", "measured", "usd")),
            *(_with_ends(label, contrast, name) for label, name in (("output tokens", "token"), ("FLOPs", "flops"))),
            *(
                Factor(name, _factor(sides, "tasks", task, "inference", "measured", field), emphasis=emphasis)
                for name, field, emphasis in _MEASURED
            ),
        ]
        rows = [row for row in rows if row.value is not None and row.value > 0]
        if not rows:
            continue
        against = " against ".join(of_contrast(contrast))
        data += [
            {
                "task": task,
                "contrast": contrast["id"],
                "factor": row.label,
                "value": row.value,
                "low": row.low,
                "high": row.high,
                "unit": _per(row.label),
            }
            for row in rows
        ]
        spoken = "; ".join(f"{row.label} {times(row.value)}" for row in rows)
        once, each = [[row for row in rows if row.label.startswith("training") == first] for first in (True, False)]
        groups = [FactorGroup("once", once), FactorGroup("each answer", each)]
        panels.append(
            factors(
                [group for group in groups if group.factors],
                title=f"{task}, {contrast.get('size')}",
                description=f"What {against} takes on {task}, as factors. {spoken}.",
                x_label="treatment over control",
            )
        )
    if not panels:
        return None
    more = " The other tasks are in the data." if len(panels) > MOST_PANELS else ""
    return Figure(
        title="Where the cost comes from",
        caption=(
            "What the treatment of the verdict's contrast takes as a multiple of its control, means over seeds; tokens and FLOPs "
            f"of an answer with their {confidence(results)} intervals, what a clock measured without. FLOPs rise by less than "
            f"tokens: both read the same prompt. A right answer bears the cost of the wrong ones.{more}"
        ),
        panels=panels[:MOST_PANELS],
        data=data,
        file_name="cost_factors.csv",
        legend=(Key("treatment over control", "orange", "disc"),),
    )


def _with_ends(label: str, contrast: dict, name: str) -> Factor:
    between = contrast.get(f"{name}_factor_interval")
    return Factor(label, contrast.get(f"{name}_factor"), pick(between, "low"), pick(between, "high"))


def _factor(sides: list[dict | None], *keys: str) -> float | None:
    over, under = (pick(side, *keys) for side in sides)
    return over / under if over is not None and under else None


def _per(label: str) -> str:
    return "training" if label.startswith("training") else "right answer" if label.endswith("right one") else "answer"


def tokens_figure(results: dict) -> Figure | None:
    """By task; of many tasks their mean, by size."""
    data = [
        {"task": task["name"], "cell": entry["id"], **{name: tokens.get(name) for name in _TOKENS}}
        for task in results["tasks"]
        for entry in entries(results)
        if (tokens := pick(entry, "tasks", task["name"], "tokens_per_answer")) and tokens.get("answer") is not None
    ]
    names = [task["name"] for task in results["tasks"]]
    many = len(names) > MOST_PANELS
    groups: dict[str, list[Bar]] = {}
    for entry in entries(results):
        for title, of in (
            [(str(entry.get("size") or entry["id"]), names)] if many else [(name, [name]) for name in names]
        ):
            bar = _bar(entry, of)
            if bar is not None:
                groups.setdefault(title, []).append(bar)
    if not groups:
        return None
    sides = decided_on(results)
    panels, cut = [], len(groups) > MOST_PANELS
    for title in [name for name in names if name in groups] if not many else list(groups):
        # The sides of the verdict's contrast are never left out.
        kept = sorted(groups[title], key=lambda bar: bar.label not in sides)[:_MOST_BARS]
        drawn = [bar for bar in groups[title] if bar in kept]
        cut = cut or len(drawn) < len(groups[title])
        spoken = "; ".join(f"{r.label} {fixed(r.first)} thinking and {fixed(r.second)} answer" for r in drawn)
        panels.append(
            bars(
                drawn,
                title=f"{title}, mean over all tasks" if many else title,
                description=f"Tokens per answer, {title}. {spoken}.",
                x_label="generated tokens per answer",
            )
        )
    rest = " The others are in the data." if cut else ""
    return Figure(
        title="What an answer is made of",
        caption=f"Mean generated tokens per answer, counted from token ids; of a majority, those of all its answers.{rest}",
        panels=panels[:MOST_PANELS],
        data=data,
        file_name="tokens.csv",
        legend=(Key("thinking", "ink", "bar-light"), Key("answer", "ink", "bar")),
    )


def _bar(entry: dict, tasks: list[str]) -> Bar | None:
    """Means over tasks; None where one of them was not asked."""
    found = [pick(entry, "tasks", name, "tokens_per_answer") for name in tasks]
    if any(pick(tokens, "answer") is None for tokens in found):
        return None
    thinking, answer = (
        sum(tokens.get(part) or 0.0 for tokens in found) / len(found) for part in ("thinking", "answer")
    )
    return Bar(entry["id"], thinking, answer, colour(entry))


def _equal_cost(results: dict) -> list[Table]:
    """One table a task, all tasks first, grouped by what is equal."""
    by_task: dict[str, dict[str, list]] = {}
    for entry in analysis(results, "equal_cost"):
        between = " and ".join(map(str, entry.get("between") or [])) or str(entry.get("reason") or DASH)
        row = [
            str(entry.get("id")),
            compact(entry.get("at")),
            Cell(between, "the best there is, at less" if entry.get("beyond") else ""),
            percent(entry.get("control_accuracy")),
            with_interval(entry.get("difference_points"), signed),
        ]
        by_task.setdefault(str(entry.get("task")), {}).setdefault(str(entry.get("cost")), []).append(row)
    columns = ["With reasoning", Cell("Its cost", "per answer, or in training"), "Against, without reasoning"]
    columns += [Cell("Their accuracy", "% at that cost"), Cell("Difference", "points [interval]")]
    tables = []
    for task in sorted(by_task, key=lambda name: name != ALL):
        groups = [Group(rows, f"At equal {_SPENT.get(cost, cost)}") for cost, rows in by_task[task].items()]
        where = "over all tasks" if task == ALL else f"on {task}"
        tables.append(Table(f"For the same cost, {where}", columns, groups, prose=frozenset({2})))
    return tables


def _break_even_sentences(results: dict) -> list[str]:
    """Of every contrast that decides a verdict, at its size."""
    said = []
    for contrast in primary(results):
        for entry in analysis(results, "break_even"):
            names = (entry.get("treatment"), entry.get("control"))
            if (entry.get("task"), entry.get("size")) != (
                contrast.get("task"),
                contrast.get("size"),
            ) or names != of_contrast(contrast):
                continue
            said.append(f"On {entry.get('task')} at {entry.get('size')}, {_worth(results, entry)}")
    return said


def _worth(results: dict, entry: dict) -> str:
    treatment, control, found = entry.get("treatment"), entry.get("control"), entry.get("measured")
    if found is None:
        return f"there is no break-even price: {entry.get('reason') or 'not measured'}."
    value, pays = found.get("usd_per_correct"), found.get("pays")
    if pays in ("always", "never"):
        return f"{treatment} {pays} pays against {control}: it is {found.get('reason')}."
    if pick(value, "value") is not None and pays in ("above", "below"):
        unit, (at, low, high) = _prices(value["value"], value.get("low"), value.get("high"))
        return (
            f"{treatment} pays against {control} where right answers are worth "
            f"{'more' if pays == 'above' else 'less'} than {at} {unit} ({confidence(results)} interval "
            f"{low} to {high}), training and teacher left out."
        )
    least = found.get("at_least_usd")
    unit, (at,) = _prices(least)
    more = f"; if it pays, then where right answers are worth more than {at} {unit}" if least else ""
    return f"no price can be named at which {treatment} pays against {control}: {found.get('reason')}{more}."


def _prices(*values: float | None) -> tuple[str, list[str]]:
    """Dollars of the same unit, which follows from the first value: each, a thousand or a million."""
    size = abs(values[0] or 0.0)
    each = size >= 0.01 or not size
    factor, unit = (1.0, "each") if each else (1e3, "a thousand") if size >= 1e-5 else (1e6, "a million")
    return unit, [usd(None if value is None else factor * value) for value in values]


def _break_even(results: dict) -> Table:
    """What is spent once is spread over answers: training, and where the teacher was paid for, its answers too."""
    found = sorted(analysis(results, "break_even"), key=lambda entry: not decides(results, entry))
    paid = any(
        pick(entry, "measured", "one_off_usd", "teacher", side) for entry in found for side in ("treatment", "control")
    )
    spread = {"with_training": "training"} | ({"with_training_and_teacher": "training and teacher"} if paid else {})
    groups: dict[str, list] = {}
    for entry in found:
        measured = entry.get("measured")
        each, once = pick(measured, "usd_per_answer"), pick(measured, "one_off_usd")
        row = [Cell(f"{entry.get('task')}, {entry.get('size')}"), _threshold(measured, entry.get("reason"))]
        for name in spread:
            over = {e.get("answers"): e for e in pick(measured, name) or []}
            row += [_threshold(over.get(answers), None, said=pick(measured, "reason")) for answers in _OVER]
        unit, (answer, control) = _prices(pick(each, "treatment"), pick(each, "control"))
        row.append(Cell(f"{answer} {unit}", control))
        for name in ("training", *(["teacher"] if paid else [])):
            row.append(Cell(usd(pick(once, name, "treatment")), usd(pick(once, name, "control"))))
        groups.setdefault(f"{entry.get('treatment')} against {entry.get('control')}", []).append(row)
    columns = ["Task, size", Cell("Pays where it is worth", "answers alone [interval]")]
    columns += [Cell(f"Over {count(answers)} answers", f"with {once}") for once in spread.values() for answers in _OVER]
    columns += [Cell("An answer costs", "treatment; control"), Cell("Training", "treatment; control")]
    columns += [Cell("The teacher", "treatment; control")] if paid else []
    return Table(
        "What a right answer must be worth",
        columns,
        [Group(rows, title) for title, rows in groups.items()],
        prose=frozenset(range(1, 2 + len(spread) * len(_OVER))),
    )


def _threshold(found: dict | None, reason: str | None, *, said: str | None = None) -> Cell:
    """`said`: a reason that stands in the row already."""
    value, pays = pick(found, "usd_per_correct"), pick(found, "pays")
    if pick(value, "value") is not None and pays in ("above", "below"):
        unit, (at, low, high) = _prices(value["value"], value.get("low"), value.get("high"))
        return Cell(f"{'over' if pays == 'above' else 'under'} {at} {unit}", f"[{low}, {high}]")
    if pays in ("always", "never"):
        return Cell(f"{pays} pays", str(pick(found, "reason") or ""))
    why = pick(found, "reason") or reason
    return Cell(DASH, str(why) if why and why != said else "")


def _lengths(results: dict) -> Table:
    groups: dict[str, list] = {}
    for entry in analysis(results, "lengths"):
        row = [str(entry.get("cell"))]
        for side in ("right", "wrong"):
            of = entry.get(side)
            n = pick(of, "n")
            row.append(Cell(fixed(pick(of, "mean")), f"{count(n)} answers" if n else "none"))
            row.append(f"{count(pick(of, 'p50'))} / {count(pick(of, 'p90'))}")
        row += [with_interval(entry.get(name), times) for name in ("ratio", "ratio_finished")]
        groups.setdefault(str(entry.get("task")), []).append(row)
    columns = ["Student"]
    for side in ("Right", "Wrong"):
        columns += [Cell(side, "mean tokens"), Cell(side, "p50 / p90")]
    columns += [Cell("Wrong over right", "[interval]"), Cell("Of finished ones", "[interval]")]
    return Table("Lengths of right and of wrong answers", columns, [Group(rows, task) for task, rows in groups.items()])
