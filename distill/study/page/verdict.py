"""The first thing on the page: the verdict of each task, and the differences behind the verdicts."""

from collections import Counter

from distill.report.blocks import (
    Block,
    Bullets,
    Card,
    Cards,
    Cell,
    Figure,
    Fold,
    Group,
    Key,
    Notice,
    Panel,
    Table,
    Text,
)
from distill.report.forest import Interval, forest
from distill.report.numbers import DASH, count, fixed, signed, usd
from distill.study.page.reading import (
    FORMAT,
    MOST_PANELS,
    analysis,
    confidence,
    ends,
    entries,
    factor,
    in_line,
    judged_by,
    pick,
    typeset,
    with_interval,
)

_TONE = {"pays": "yes", "does not pay": "no"}
_MOST_ROWS = 12  # of one panel


def verdict(results: dict) -> list[Block]:
    found = results.get("verdicts") or []
    contrasts = {c["id"]: c for c in results.get("contrasts") or []}
    blocks: list[Block] = []
    if not found:
        blocks.append(Text("No verdict: no declared contrast could be computed."))
    elif len(found) <= MOST_PANELS:
        blocks.append(Cards([_card(results, one, contrasts.get(one.get("contrast"), {})) for one in found]))
    else:
        blocks += [Cards([_tally(found)]), _verdicts_table(found, contrasts)]
        blocks.append(Fold("Every verdict as a sentence", [_sentences(found)]))
    failures = results.get("failures") or []
    if failures:
        plural = "s" if len(failures) > 1 else ""
        blocks.append(
            Notice(
                f"{len(failures)} failure{plural}. What depends on a failed student is missing from this page.",
                [f"{f.get('cell')}, {f.get('stage')}: {f.get('reason')}" for f in failures],
            )
        )
    if said := _interactions(results):
        blocks.append(Bullets("Is the gain another in another student?", said))
    figure = verdict_figure(results)
    return [*blocks, figure] if figure else blocks


def _card(results: dict, one: dict, contrast: dict) -> Card:
    tasks = {task["name"]: task for task in results["tasks"]}
    answer_format = pick(tasks.get(one["task"]), "answer_format")
    facts = [
        ("Difference, points", in_line(with_interval(contrast.get("difference_points"), signed))),
        ("Tokens per answer", in_line(factor(contrast, "token"))),
        ("FLOPs per answer", in_line(factor(contrast, "flops"))),
        ("1,000 right answers", _price(results, contrast)),
        ("Matched on", contrast.get("matched_on") or DASH),
        ("Seeds", count(contrast.get("n_seeds"))),
        ("Questions", count(contrast.get("n_questions"))),
    ]
    return Card(
        label=" · ".join(part for part in (one["task"], FORMAT.get(answer_format, answer_format)) if part),
        headline=str(one["verdict"]).capitalize(),
        sentence=typeset(one.get("sentence") or ""),
        facts=facts if contrast else (),
        tone=_TONE.get(one["verdict"], "open"),
    )


def _interactions(results: dict) -> list[str]:
    """What was declared beside the contrasts, by the metric that stands for a task; of many the table alone."""
    metrics = {task["name"]: judged_by(task) for task in results["tasks"]}
    said = [
        typeset(str(entry["sentence"]))
        for entry in analysis(results, "interactions")
        if entry.get("sentence") and metrics.get(entry.get("task")) == entry.get("metric")
    ]
    return said if len(said) <= MOST_PANELS else []


def _price(results: dict, contrast: dict) -> str:
    """Of the treatment, and of the control; a dash for what has no price."""
    known = {entry["id"]: entry for entry in entries(results)}
    path = ("tasks", contrast.get("task"), "inference", "measured", "usd_per_1000_correct")
    prices = [pick(known.get(contrast.get(side)), *path) for side in ("treatment", "control")]
    return DASH if prices == [None, None] else " against ".join(map(usd, prices))


def _tally(found: list[dict]) -> Card:
    tally = Counter(str(one["verdict"]) for one in found)
    told = [f"{word} on {tally[word]}" for word in ("pays", "does not pay", "cannot tell") if tally[word]]
    named = [
        f"It {word} on {', '.join(one['task'] for one in found if one['verdict'] == word)}."
        for word in _TONE
        if tally[word]
    ]
    only = next(iter(tally)) if len(tally) == 1 else ""
    return Card(
        label=f"{len(found)} tasks",
        headline=", ".join(told).capitalize(),
        sentence=" ".join(named) or "Of no task can this study tell.",
        tone=_TONE.get(only, "open"),
    )


def _verdicts_table(found: list[dict], contrasts: dict[str, dict]) -> Table:
    rows = []
    for one in found:
        contrast = contrasts.get(one.get("contrast"), {})
        rows.append(
            [
                one["task"],
                str(one["verdict"]),
                with_interval(contrast.get("difference_points"), signed),
                factor(contrast, "token"),
                factor(contrast, "flops"),
                count(contrast.get("n_seeds")),
                count(contrast.get("n_questions")),
            ]
        )
    columns = ["Task", "Verdict", Cell("Difference", "points [interval]"), Cell("Tokens", "per answer")]
    columns += [Cell("FLOPs", "per answer"), "Seeds", "Questions"]
    return Table("Verdicts", columns, [Group(rows)], prose=frozenset({1}))


def _sentences(found: list[dict]) -> Table:
    rows = [[one["task"], str(one["verdict"]), typeset(one.get("sentence") or DASH)] for one in found]
    return Table("In words", ["Task", "Verdict", "Sentence"], [Group(rows)], prose=frozenset({1, 2}))


def verdict_figure(results: dict) -> Figure | None:
    margin = results.get("margin_points") or 0.0
    metrics = {task["name"]: judged_by(task) for task in results["tasks"]}
    drawn = [
        c
        for task in results["tasks"]
        for c in results.get("contrasts") or []
        if c["task"] == task["name"]
        and c.get("metric") in (None, metrics[task["name"]])
        and pick(c, "difference_points", "value") is not None
    ]
    if not drawn:
        return None
    panels = _panels(drawn, margin)
    left_out = sum(max(n - _MOST_ROWS, 0) for n in Counter(c["task"] for c in drawn).values())
    shown = drawn
    if len(panels) > MOST_PANELS:
        shown = [c for c in drawn if c.get("primary")] or drawn[: MOST_PANELS * _MOST_ROWS]
        rows = [(c, _interval(c, c["task"])) for c in shown]
        panels = [
            _panel(rows[i : i + _MOST_ROWS], margin, "Contrasts that decide a verdict")
            for i in range(0, len(rows), _MOST_ROWS)
        ]
        left_out = len(drawn) - len(shown)
    rest = f" The other {left_out} contrasts are in the data and in the table under Numbers." if left_out else ""
    all_decide = all(c.get("primary") for c in shown)
    return Figure(
        title="Differences behind the verdicts",
        caption=(
            f"Each line is a difference between students with its {confidence(results)} interval. Shaded: gains "
            f"below the margin of {fixed(margin)} points declared before the run. An interval wholly beyond the shade means "
            "“pays”, where Holm's correction leaves it significant, wholly in it “does not pay”, across its edge “cannot "
            f"tell”.{rest}"
        ),
        panels=panels,
        data=[_row(c, margin) for c in drawn],
        file_name="contrasts.csv",
        legend=(
            Key("decides the verdict", "ink", "disc"),
            *(() if all_decide else (Key("also declared", "grey", "ring"),)),
            Key("gain below the margin", "muted", "band"),
        ),
    )


def _panels(drawn: list[dict], margin: float) -> list[Panel]:
    """One a task, the contrast that decides first; of many contrasts the first are drawn."""
    panels = []
    for task in dict.fromkeys(c["task"] for c in drawn):
        of_task = sorted((c for c in drawn if c["task"] == task), key=lambda c: not c.get("primary"))[:_MOST_ROWS]
        rows = [(c, _interval(c, _name(c))) for c in of_task]
        panels.append(_panel(rows, margin, task))
    return panels


def _name(contrast: dict) -> str:
    return contrast["id"].removeprefix(f"{contrast['task']}/").replace(f"/{contrast.get('metric')}/", "/")


def _interval(contrast: dict, label: str) -> Interval:
    return Interval(label, *ends(contrast["difference_points"]), emphasis=bool(contrast.get("primary")))


def _panel(rows: list[tuple[dict, Interval]], margin: float, title: str) -> Panel:
    spoken = "; ".join(f"{i.label}: {signed(i.value)}, {signed(i.low)} to {signed(i.high)}" for _, i in rows)
    return forest(
        [interval for _, interval in rows],
        margin=margin,
        title=title,
        description=f"Differences on {title} in points with their intervals. {spoken}.",
        x_label="difference in points",
    )


def _row(contrast: dict, margin: float) -> dict:
    interval = _interval(contrast, "")
    return {
        "task": contrast["task"],
        "contrast": contrast["id"],
        "treatment": contrast.get("treatment"),
        "control": contrast.get("control"),
        "matched_on": contrast.get("matched_on"),
        "metric": contrast.get("metric"),
        "difference_points": interval.value,
        "low": interval.low,
        "high": interval.high,
        "margin_points": margin,
        "primary": interval.emphasis,
        "verdict": contrast.get("verdict"),
    }
