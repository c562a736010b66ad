"""How the gain grows with the student, by format and by domain; and whether it is another one in another student."""

from distill.report.blocks import Block, Bullets, Cell, Figure, Fold, Group, Key, Panel, Table
from distill.report.lines import Line, lines
from distill.report.numbers import DASH, count, signed
from distill.study.page.reading import (
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
    with_interval,
)

_MOST_LINES = 4
_LOOK = (("orange", "disc"), ("blue", "square"), ("green", "diamond"), ("purple", "triangle"))
Names = tuple[str, str]  # treatment and control, as the preset names them


def gains(results: dict) -> list[Block]:
    blocks: list[Block] = [figure] if (figure := _scaling_figure(results)) else []
    blocks += _pays_from(results)
    tables = [_scaling_table(results), _kind_table(results, "format"), _kind_table(results, "domain")]
    many = len(results["tasks"]) > MOST_PANELS
    for i, table in enumerate(tables):
        if table.groups:
            blocks.append(Fold(f"{table.caption}, task by task", [table]) if many and not i else table)
    if (table := _interactions(results)).groups:
        blocks.append(table)
    return blocks


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
            f"The treatment's accuracy less the control's, with {confidence(results)} intervals. Shaded: below the margin.{more}"
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
    """From which size on the verdict's contrast reaches the margin, where that is between sizes of the study."""
    said = []
    for entry in analysis(results, "scaling"):
        value = pick(entry, "pays_from_parameters", "value")
        if value is not None and decides(results, entry):
            low, high = (entry["pays_from_parameters"].get(end) for end in ("low", "high"))
            between = " to ".join(
                [
                    "below the smallest" if low is None else parameters(low),
                    "above the largest" if high is None else parameters(high),
                ]
            )
            said.append(
                f"On {entry.get('task')}, {entry.get('treatment')} gains the margin over {entry.get('control')} from about "
                f"{parameters(value)} parameters ({confidence(results)} interval {between})."
            )
    return [Bullets("From which size on the margin is reached", said)] if 0 < len(said) <= MOST_PANELS else []


def _scaling_table(results: dict) -> Table:
    groups: dict[str, list] = {}
    names = list(sizes(results["cells"]))
    for entry in analysis(results, "scaling"):
        of = {s.get("size"): s.get("difference_points") for s in entry.get("sizes") or []}
        from_ = pick(entry, "pays_from_parameters", "value")
        row = [str(entry.get("task")), *(with_interval(of.get(size), signed) for size in names)]
        row += [with_interval(entry.get("per_doubling_points"), signed)]
        row += [Cell(DASH, str(entry.get("reason") or "")) if from_ is None else parameters(from_)]
        groups.setdefault(" against ".join(_names(entry)), []).append(row)
    columns = ["Task", *(Cell(size, "points") for size in names), Cell("Per doubling", "of parameters, points")]
    columns += [Cell("Reaches the margin", "from, parameters")]
    return Table("Gain by size", columns, [Group(rows, title) for title, rows in groups.items()])


def _kind_table(results: dict, kind: str) -> Table:
    found: dict[Names, dict[str, dict]] = {}
    names = list(sizes(results["cells"]))
    tasks: dict[str, int] = {}
    of_kind = analysis(results, f"by_{kind}")
    for entry in [e for e in of_kind if decides(results, e)] or of_kind:
        value = str(entry.get(kind))
        tasks[value] = max(tasks.get(value, 0), len(entry.get("tasks") or []))
        found.setdefault(_names(entry), {}).setdefault(value, {})[entry.get("size")] = entry.get("difference_points")
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
            str(entry.get("sentence") or DASH),
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


def _names(entry: dict) -> Names:
    return str(entry.get("treatment")), str(entry.get("control"))


def _named(difference: dict) -> dict:
    value, low, high = ends(difference)
    return {"difference_points": value, "low": low, "high": high}
