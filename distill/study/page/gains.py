"""How the gain grows with the student, by format and by domain; whether it is another one in another student; and how
far training seeds of one arm fall apart."""

from distill.report.blocks import Block, Bullets, Cell, Figure, Fold, Group, Key, Panel, Table
from distill.report.lines import Line, lines
from distill.report.numbers import DASH, count, fixed, percent, signed, times
from distill.study.page.reading import (
    ALL,
    FORMAT,
    MOST_PANELS,
    analysis,
    confidence,
    decides,
    ends,
    p_value,
    parameters,
    pick,
    sizes,
    typeset,
    with_interval,
)

_MOST_LINES = 4
_MOST_ROWS = 12  # of a table that stands open
_KIND = {"pure": "all reasoning, or none", "mixed": "mixed", "sequential": "sequential", "phases": "a curriculum"}
_LOOK = (("orange", "disc"), ("blue", "square"), ("green", "diamond"), ("purple", "triangle"))
Names = tuple[str, str]  # treatment and control, as the preset names them


def gains(results: dict) -> list[Block]:
    blocks: list[Block] = []
    if _grow(results):
        blocks += [figure] if (figure := _scaling_figure(results)) else []
        blocks += _pays_from(results)
    tables = [_scaling_table(results), _kind_table(results, "format"), _kind_table(results, "domain")]
    many = len(results["tasks"]) > MOST_PANELS
    for i, table in enumerate(tables):
        if not table.groups:
            continue
        if i:
            blocks.append(table)
        elif many:
            blocks.append(Fold(f"{table.caption}, task by task", [table]))
        elif sum(len(group.rows) for group in table.groups) <= _MOST_ROWS:
            blocks.append(table)
        else:  # the contrast that decides verdicts, and folded all of them
            blocks.append(Table(table.caption, table.columns, table.groups[:1]))
            blocks.append(Fold(f"{table.caption}, every contrast", [table]))
    blocks += [table for table in (_interactions(results), _kinds(results)) if table.groups]
    if (table := _seed_sd(results)).groups:
        long = len(table.groups[0].rows) > _MOST_ROWS
        blocks.append(Fold(f"{table.caption}, student by student", [table]) if long else table)
    return blocks


def _grow(results: dict) -> bool:
    """Whether students are of several sizes; those of one size may still start from several bases."""
    return len({parameters for parameters in sizes(results["cells"]).values() if parameters}) > 1


def _scaling_figure(results: dict) -> Figure | None:
    """By task; of many tasks by answer format and domain. What is asked in one size only has no picture."""
    at = {size: parameters for size, parameters in sizes(results["cells"]).items() if parameters}
    found: dict[str, dict[Names, list[tuple[str, dict]]]] = {}
    if len(results["tasks"]) <= MOST_PANELS:
        for entry in analysis(results, "scaling"):
            of_sizes = [(s.get("size"), s.get("difference_points")) for s in entry.get("sizes") or []]
            found.setdefault(str(entry.get("task")), {})[_names(entry)] = of_sizes
    else:
        for kind in ("format", "domain"):
            for entry in analysis(results, f"by_{kind}"):
                title = f"{FORMAT.get(entry.get(kind), entry.get(kind))}, {len(entry.get('tasks') or [])} tasks"
                of_sizes = found.setdefault(title, {}).setdefault(_names(entry), [])
                of_sizes.append((entry.get("size"), entry.get("difference_points")))
    order = _order(results, [names for group in found.values() for names in group])
    look = dict(zip(order, _LOOK, strict=False))
    panels, data = [], []
    for title, group in found.items():
        drawn = {}
        for names, of_sizes in group.items():
            points = [(at[s], *ends(d)) for s, d in of_sizes if s in at and pick(d, "value") is not None]
            data += [
                {"of": title, "treatment": names[0], "control": names[1], "size": s, "parameters": at[s], **_named(d)}
                for s, d in of_sizes
                if s in at and pick(d, "value") is not None
            ]
            if names in look and len(points) > 1:
                drawn[names] = sorted(points)
        if drawn:
            panels.append(_panel(results, title, {n: drawn[n] for n in order if n in drawn}, look, at))
    if not panels:
        return None
    more = f" {len(panels) - MOST_PANELS} more in the data." if len(panels) > MOST_PANELS else ""
    return Figure(
        title="The gain by size of the student",
        caption=(
            f"The treatment's score less the control's, with {confidence(results)} intervals. Shaded: below the margin.{more}"
        ),
        panels=panels[:MOST_PANELS],
        data=data,
        file_name="scaling.csv",
        legend=[
            *(Key(f"{names[0]} against {names[1]}", *look[names]) for names in order),
            Key("gain below the margin", "muted", "band"),
        ],
    )


def _panel(results: dict, title: str, drawn: dict[Names, list], look: dict, at: dict[str, float]) -> Panel:
    spoken = "; ".join(
        f"{names[0]} against {names[1]}: " + ", ".join(f"{signed(y)} at {parameters(x)}" for x, y, *_ in points)
        for names, points in drawn.items()
    )
    used = {x for points in drawn.values() for x, *_ in points}
    return lines(
        [Line(points, *look[names]) for names, points in drawn.items()],
        title=title,
        description=f"Gains on {title} in points by parameters. {spoken}.",
        x_label="student",
        y_label="gain, points",
        ticks=[(x, size) for size, x in at.items() if x in used],
        margin=results.get("margin_points"),
    )


def _order(results: dict, names: list[Names]) -> list[Names]:
    """Those to draw, the one behind the verdicts first."""
    each = list(dict.fromkeys(names))
    each.sort(key=lambda n: not decides(results, {"treatment": n[0], "control": n[1]}))
    return each[:_MOST_LINES]


def _pays_from(results: dict) -> list[Block]:
    """From which size on the verdict's contrast reaches the margin, or why no size can be named."""
    said = []
    for entry in [e for e in analysis(results, "scaling") if decides(results, e)]:
        who = f"On {entry.get('task')}, {entry.get('treatment')} against {entry.get('control')}"
        value, low, high = (pick(entry, "pays_from_parameters", end) for end in ("value", "low", "high"))
        if value is None:
            reason = str(entry.get("reason") or "it is not known")
            said.append(
                f"{who}: {reason if reason.startswith('the line') else f'no size can be named, since {reason}'}."
            )
            continue
        between = (
            f"{'below the smallest' if low is None else parameters(low)} to "
            f"{'above the largest' if high is None else parameters(high)}"
        )
        said.append(
            f"{who}: from about {parameters(value)} parameters ({confidence(results)} interval {between}), on a straight line "
            "through the sizes."
        )
    return [Bullets("From which size on the margin is reached", said)] if 0 < len(said) <= MOST_PANELS else []


def _scaling_table(results: dict) -> Table:
    groups: dict[str, list] = {}
    grow = _grow(results)
    found = sorted(analysis(results, "scaling"), key=lambda entry: not decides(results, entry))
    names = _asked_in(
        results, [{s.get("size"): s.get("difference_points") for s in e.get("sizes") or []} for e in found]
    )
    for entry in found:
        of = {s.get("size"): s.get("difference_points") for s in entry.get("sizes") or []}
        row = [str(entry.get("task")), *(with_interval(of.get(size), signed) for size in names)]
        if grow:
            from_ = pick(entry, "pays_from_parameters", "value")
            row.append(with_interval(entry.get("per_doubling_points"), signed))
            row.append(Cell(DASH, str(entry.get("reason") or "")) if from_ is None else parameters(from_))
        groups.setdefault(" against ".join(_names(entry)), []).append(row)
    columns = ["Task", *(Cell(size, "points [interval]") for size in names)]
    if grow:
        columns += [Cell("Per doubling", "of parameters, points"), Cell("Reaches the margin", "from, parameters")]
    title = "Gain by size" if grow else "Gain by student"
    why = frozenset({len(columns) - 1} if grow else ())  # words, where there is no number
    return Table(title, columns, [Group(rows, title) for title, rows in groups.items()], prose=why)


def _asked_in(results: dict, of: list[dict]) -> list[str]:
    """The sizes in which any of these gains was found, the smallest first."""
    return [size for size in sizes(results["cells"]) if any(gains.get(size) for gains in of)]


def _kind_table(results: dict, kind: str) -> Table:
    found: dict[Names, dict[str, dict]] = {}
    tasks: dict[str, int] = {}
    of_kind = analysis(results, f"by_{kind}")
    if all(len(entry.get("tasks") or []) < 2 for entry in of_kind):  # the tasks themselves, which stand elsewhere
        of_kind = []
    for entry in [e for e in of_kind if decides(results, e)] or of_kind:
        value = str(entry.get(kind))
        tasks[value] = max(tasks.get(value, 0), len(entry.get("tasks") or []))
        found.setdefault(_names(entry), {}).setdefault(value, {})[entry.get("size")] = entry.get("difference_points")
    names = _asked_in(results, [of for by_value in found.values() for of in by_value.values()])
    groups = [
        Group(
            [
                [
                    Cell(FORMAT.get(value, value), f"{count(tasks[value])} task{'s' if tasks[value] != 1 else ''}"),
                    *(with_interval(of.get(size), signed) for size in names),
                ]
                for value, of in by_value.items()
            ],
            " against ".join(pair),
        )
        for pair, by_value in found.items()
    ]
    columns = [
        {"format": "Answer format", "domain": "Domain"}[kind],
        *(Cell(size, "points [interval]") for size in names),
    ]
    return Table(f"Gain by {'answer format' if kind == 'format' else kind}", columns, groups)


def _interactions(results: dict) -> Table:
    rows = [
        [
            Cell(str(entry.get("task")), str(entry.get("metric") or "")),
            with_interval(entry.get("difference_points"), signed),
            p_value(entry.get("p_holm")),
            typeset(str(entry.get("sentence") or DASH)),
        ]
        for entry in analysis(results, "interactions")
    ]
    columns = ["Task", Cell("Gain less gain", "points [interval]"), Cell("p", "after Holm"), "In words"]
    return Table(
        "Interactions: is the gain another in another student?",
        columns,
        [Group(rows)] if rows else [],
        prose=frozenset({3}),
    )


def _kinds(results: dict) -> Table:
    """Whether arms with some reasoning are less stable than those with all or none."""
    found = analysis(results, "seed_sd_of_kinds")
    rows = [
        [
            Cell(_KIND.get(str(entry.get("kind")), str(entry.get("kind"))), _students(len(entry.get("cells") or []))),
            with_interval(entry.get("sd_points"), fixed),
            fixed(entry.get("of_questions_points")),
            with_interval(entry.get("over_pure"), times),
        ]
        for entry in found
    ]
    columns = ["Arms", Cell("Seeds differ by", "standard deviation, points [interval]")]
    columns += [Cell("By single questions", "points, of it"), Cell("Over all or none", "ratio [interval]")]
    where = "the mean over tasks" if any(entry.get("task") == ALL for entry in found) else "the task"
    mixed = any(entry.get("kind") != "pure" for entry in found)
    return Table(f"How far training seeds fall apart, on {where}", columns, [Group(rows)] if rows and mixed else [])


def _students(cells: int) -> str:
    return f"{count(cells)} student{'s' if cells != 1 else ''}, each with all its seeds"


def _seed_sd(results: dict) -> Table:
    found: dict[str, dict[str, dict]] = {}
    for entry in analysis(results, "seed_sd"):
        found.setdefault(str(entry.get("cell")), {})[str(entry.get("task"))] = entry
    names = [task["name"] for task in results["tasks"]]
    shown = [*(names if len(names) <= MOST_PANELS else []), *([ALL] if len(names) > 1 else [])]
    rows = []
    for cell, of in found.items():
        thinks = pick(of.get(shown[-1]), "think_rate_per_seed") or []
        rows.append(
            [
                Cell(cell, f"{count(pick(of.get(shown[-1]), 'n_seeds'))} seeds"),
                *(with_interval(pick(of.get(task), "sd_points"), fixed) for task in shown),
                ", ".join(percent(rate, 0) for rate in thinks) or DASH,
            ]
        )
    columns = [
        "Student",
        *(Cell("all tasks, their mean" if task == ALL else task, "points [interval]") for task in shown),
    ]
    columns.append(Cell("Thinks", "% of answers, by seed"))
    return Table("Standard deviation of training seeds", columns, [Group(rows)] if rows and shown else [])


def _names(entry: dict) -> Names:
    return str(entry.get("treatment")), str(entry.get("control"))


def _named(difference: dict) -> dict:
    value, low, high = ends(difference)
    return {"difference_points": value, "low": low, "high": high}
