"""Threats to a study's validity, filled in from what it measured: each is a concern or was checked and found absent."""

from distill.report.blocks import Check
from distill.report.numbers import compact, count, fixed, percent, times, usd
from distill.study.page.reading import (
    analysis,
    arm_family,
    around,
    decided_on,
    entries,
    in_line,
    pick,
    primary,
    rates,
    sides_of,
    with_interval,
)

# Below this share of unfinished answers, and above it of answers in the trained format, nothing is worth a warning.
_TRUNCATED, _IN_FORMAT = 0.005, 0.99

_DISAGREED = 0.01  # above this share of grades that a second checker disputes there is something to look at

# What a contrast is matched on, in words; where it is work, longer answers cost an arm no more than shorter ones.
_HELD_EQUAL = {
    "samples": "saw the same examples",
    "questions": "saw the same questions, each by another teacher and but for what was left out of one set",
    "steps": "took as many optimizer steps",
    "tokens": "read as many training tokens",
    "flops": "took as many training FLOPs",
    "output tokens": "spent as many output tokens on an answer or a vote",
    "inference flops": "spent as many FLOPs on an answer, between those of two sizes",
}
_BY_WORK = ("tokens", "flops")


def checks(results: dict) -> list[Check]:
    found = [
        _truncation(results),
        _seeds(results),
        _sign(results),
        _matching(results),
        _margin(results),
        _room(results),
        _votes(results),
        _thinking(results),
        _mixed(results),
        _graders(results),
        _looks(results),
        _contamination(results),
        _answers(results),
        _teacher(results),
        _learning_rates(results),
        _questions(results),
        _price(results),
    ]
    return sorted((check for check in found if check), key=lambda check: not check.concern)


def _measured(results: dict):
    """(cell, task name, result) of everything that was graded."""
    for cell in results["cells"]:
        for task, result in (cell.get("tasks") or {}).items():
            if isinstance(result, dict):
                yield cell, task, result


def _truncation(results: dict) -> Check | None:
    cut = [
        (r["unfinished_rate"], c["id"], t, r) for c, t, r in _measured(results) if r.get("unfinished_rate") is not None
    ]
    if not cut:
        return None
    rate, cell, task, result = max(cut, key=lambda item: item[0])
    if rate <= _TRUNCATED:
        return Check(
            "Unfinished answers",
            f"At most {percent(rate)}\u00a0% of any student's answers to a task hit the length limit.",
            concern=False,
        )
    sides = decided_on(results)
    rate, cell, task, result = max([x for x in cut if x[1] in sides and x[0] > _TRUNCATED] or cut, key=lambda x: x[0])
    finished = result.get("accuracy_finished")
    whose = "behind the verdicts" if cell in sides else "of all"
    right = (
        f"Of its finished answers {percent(finished)}\u00a0% are right" if finished is not None else "Few are finished"
    )
    over = sum(item[0] > _TRUNCATED for item in cut)
    return Check(
        "Unfinished answers",
        f"{over} of {len(cut)} student and task pairs have answers that hit the length limit; {whose} the most is "
        f"{percent(rate)}\u00a0% ({cell} on {task}). They are graded wrong and their tokens are paid for. {right}: a longer limit "
        "could change this result.",
        concern=True,
    )


def _seeds(results: dict) -> Check | None:
    contrasts = [c for c in results.get("contrasts") or [] if c.get("n_seeds") is not None]
    if not contrasts:
        return None
    few = [c for c in contrasts if c["n_seeds"] < 3]
    said = (
        f"{len(few)} of {len(contrasts)} contrasts rest on fewer than three training seeds "
        f"({_listed(c['id'] for c in few)}). They speak of these trained students, not of how they were trained: training again could "
        "move them by more than their interval."
        if few
        else "Every contrast rests on at least three training seeds, which its interval includes."
    )
    added = [
        f"{len(c['seeds_added'])} of {len(c['seeds'])} of {c['id']}" for c in results["cells"] if c.get("seeds_added")
    ]
    if added:
        said += (
            f" Some were added after the study had begun: {_listed(added)}. Who goes on until a verdict is as hoped gets "
            "there more often than the intervals say."
        )
    return Check("Training seeds", said, concern=bool(few or added))


def _sign(results: dict) -> Check | None:
    contrasts = [
        one
        for c in results.get("contrasts") or []
        for one in [c, *(s | {"id": f"{c['id']}, {s.get('cell')}"} for s in around(c))]
        if len(one.get("per_seed") or ()) > 1
    ]
    if not contrasts:
        return None
    margin = results.get("margin_points") or 0.0
    flips = [
        c["id"]
        for c in contrasts
        if min(c["per_seed"]) < 0 < max(c["per_seed"]) and max(c["per_seed"]) - min(c["per_seed"]) > margin
    ]
    if not flips:
        return Check(
            "Seeds that disagree",
            "In no contrast do seeds differ in sign by more than the margin.",
            concern=False,
        )
    return Check(
        "Seeds that disagree",
        f"The sign of the difference depends on the seed in {len(flips)} of {len(contrasts)} contrasts: {_listed(flips)}. "
        "A study with one seed could have reported either.",
        concern=True,
    )


def _matching(results: dict) -> Check | None:
    title, contrasts = "What the arms were matched on", results.get("contrasts") or []
    deciding = primary(results)
    dear = [c for c in deciding if pick(c, "at_equal_cost", "spends") not in (None, "as much")]
    if dear:
        said = (f"{c['task']} (the control spent {c['at_equal_cost']['spends']})" for c in dear)
        return Check(
            title,
            f"No control costs as much as what it is compared with on {_listed(said)}. There the sizes do not enclose the cost: a "
            "verdict that this could have caused is left open.",
            concern=True,
        )
    if any(c.get("matched_on") == "nothing" for c in deciding):
        return Check(
            title,
            "The verdicts compare arms that were matched on neither examples nor steps, training tokens or FLOPs: a "
            "difference may be that of how much they saw.",
            concern=True,
        )
    held = [said for kind, said in _HELD_EQUAL.items() if any(c.get("matched_on") == kind for c in deciding)]
    if not held:
        return None
    compared = f"The verdicts compare arms that {_listed(held, ', or ')}"
    by_pairs = [c for c in deciding if c.get("matched_on") not in _BY_WORK]
    if not by_pairs:
        return Check(title, f"{compared}: the arm with shorter answers saw its examples more often.", concern=False)
    factors = [c["training_tokens_factor"] for c in by_pairs if c.get("training_tokens_factor") is not None]
    spent = f", and up to {times(max(factors))} the training tokens" if factors else ""
    others = [c for c in contrasts if c.get("matched_on") in _BY_WORK]
    where = {(c.get("task"), c.get("size"), c.get("metric")) for c in deciding}
    others = [c for c in others if (c.get("task"), c.get("size"), c.get("metric")) in where] or others
    beside = (
        "At matched training tokens or FLOPs: "
        + _listed((f"{c['id']} {c.get('verdict') or 'not decided'}" for c in others), "; ")
        + "."
        if others
        else "No contrast at matched training tokens or FLOPs was declared."
    )
    return Check(
        title,
        f"{compared}, with answers of different length{spent}. {beside}",
        concern=not others or any(factor > 1.5 for factor in factors),
    )


def _margin(results: dict) -> Check | None:
    margin = results.get("margin_points")
    intervals = [
        (c["difference_points"]["high"] - c["difference_points"]["low"], c)
        for c in results.get("contrasts") or []
        if c.get("primary")
        and pick(c, "difference_points", "low") is not None
        and pick(c, "difference_points", "high") is not None
    ]
    if margin is None or not intervals:
        return None
    width, widest = max(intervals, key=lambda item: item[0])
    open_ones = [c["id"] for _, c in intervals if c.get("verdict") == "cannot tell"]
    text = (
        f"The margin is {fixed(margin)} points; the widest interval behind a verdict is {fixed(width)} points wide "
        f"({widest['id']}, {count(widest.get('n_questions'))} questions, {count(widest.get('n_seeds'))} seeds)."
    )
    seen = [c["detectable_points"] for _, c in intervals if c.get("detectable_points") is not None]
    if seen:
        text += f" Differences under {fixed(max(seen))} points could not be relied on to be seen (80\u00a0% power)."
    if open_ones:
        text += (
            f" Too wide to decide {_listed(open_ones)}: more questions or seeds are needed, and no difference was shown "
            "to be absent."
        )
    return Check("Margin and power", text, concern=bool(open_ones))


def _room(results: dict) -> Check | None:
    """Tasks on which the verdict's control has no room for a gain of the margin, or on which nobody learned anything."""
    known = {entry["id"]: entry for entry in entries(results)}
    margin, none, nothing, seen = (results.get("margin_points") or 0.0) / 100, [], [], 0
    for contrast in primary(results):
        treatment, controls = sides_of(contrast)
        path = ("tasks", contrast["task"], "metrics", contrast.get("metric") or "accuracy", "value")
        values = [pick(known.get(name), *path) for name in (treatment, *controls)]
        if None in values:
            continue
        seen += 1
        if max(values[1:]) > 1 - margin:
            none.append(f"{contrast['task']} ({percent(max(values[1:]))}\u00a0%)")
        if max(values) < margin:
            nothing.append(contrast["task"])
    if not seen:
        return None
    said = []
    if none:
        said.append(
            f"The control is right so often that no gain of the margin is possible: {_listed(none)}. There the verdict says that "
            "the task is easy, and nothing of reasoning."
        )
    if nothing:
        said.append(
            f"Neither side is right on as much as the margin: {_listed(nothing)}. There the verdict says that nobody learned it."
        )
    said = said or [
        "Where verdicts are read, the control leaves room for the margin, and one side at least has learned the task."
    ]
    return Check("Too easy or too hard", " ".join(said), concern=bool(none or nothing))


def _votes(results: dict) -> Check | None:
    votes = [
        (entry["id"], task, result["votes"])
        for entry in results.get("comparators") or []
        for task, result in (entry.get("tasks") or {}).items()
        if pick(result, "votes", "k") is not None
    ]
    if not votes:
        return None
    capped = [
        f"{name} on {task} has {v['k']} answers, the most that were drawn, where the tokens pay for {v.get('affordable')}"
        for name, task, v in votes
        if v.get("capped")
    ]
    if capped:
        return Check(
            "Votes for the same tokens", f"{_sentence(_listed(capped, '; '))} More votes could do better.", concern=True
        )
    each = _listed((f"{v['k']} of {name} on {task}" for name, task, v in votes), "; ")
    return Check("Votes for the same tokens", f"As many answers as the tokens pay for: {each}.", concern=False)


def _thinking(results: dict) -> Check | None:
    usual = pick(results, "preset", "evaluation", "think") or "free"  # asked so, nobody leaves a format
    thinks = [
        (c["id"], t, r["think_rate"], str(c.get("arm")))
        for c, t, r in _measured(results)
        if r.get("think_rate") is not None and (c.get("think") or usual) == "free"
    ]
    # Mixed students may do either; only pure arms have a format to keep.
    stray = [
        f"{cell} thinks in {percent(rate)}\u00a0% of its answers to {task}"
        for cell, task, rate, arm in thinks
        if (arm == "reasoning" and rate < _IN_FORMAT) or (arm in ("ift", "base") and rate > 1 - _IN_FORMAT)
    ]
    if not thinks:
        return None
    if not stray:
        return Check(
            "Students that leave their format",
            "Students trained on reasoning alone think before they answer, and those trained without it do not.",
            concern=False,
        )
    return Check("Students that leave their format", f"{_sentence(_listed(stray, '; '))}", concern=True)


def _mixed(results: dict) -> Check | None:
    """Whether seeds of arms with some reasoning fall farther apart than of others, and what their students ended up doing."""
    mixed = [c for c in results["cells"] if arm_family(c) in ("mixed", "sequential", "phases")]
    if not mixed:
        return None
    said, concern = [], False
    kinds = {str(entry.get("kind")): entry for entry in analysis(results, "seed_sd_of_kinds")}
    for kind, entry in kinds.items():
        sd, over = entry.get("sd_points"), entry.get("over_pure")
        if kind == "pure" or pick(sd, "value") is None:
            continue
        said.append(
            f"Training seeds of {kind} arms differ with a standard deviation of {in_line(with_interval(sd, fixed))} points"
        )
        if pick(over, "value") is not None:
            concern = concern or (over.get("low") or 0.0) > 1
            said[-1] += f", {in_line(with_interval(over, times))} that of arms with all or no reasoning"
        said[-1] += "."
    if not any(len(cell.get("seeds") or ()) > 1 for cell in mixed):
        said.append(
            "No arm with some reasoning was trained with two seeds or more: how far they fall apart is not known."
        )
        concern = True
    thinks = [
        (rate, cell["id"], task)
        for cell in mixed
        if all(cell.get(asked) is None for asked in ("think", "mode", "thinking_budget"))
        for task, result in (cell.get("tasks") or {}).items()
        if (rate := pick(result, "think_rate")) is not None
    ]
    if thinks:
        (least, one, _), (most, other, _) = min(thinks), max(thinks)
        said.append(
            f"Their students think in {percent(least, 0)}\u00a0% ({one}) to {percent(most, 0)}\u00a0% ({other}) of their answers to a "
            "task, whatever their share of reasoning in training."
        )
    return Check("Stability of mixed arms", " ".join(said), concern) if said else None


def _graders(results: dict) -> Check | None:
    """How often a second checker disagrees with the grades, or judges with each other."""
    graded = [
        (entry["id"], task, result["grading"])
        for entry in entries(results)
        for task, result in (entry.get("tasks") or {}).items()
        if pick(result, "grading", "checker") is not None
    ]
    if not graded:
        return None
    said, concern = [], False
    second = [(name, task, g) for name, task, g in graded if g.get("n_answers")]
    if second:
        n, wrong = (sum(g.get(key) or 0 for *_, g in second) for key in ("n_answers", "n_disagree"))
        said.append(f"A second checker disagrees with {count(wrong)} of {count(n)} grades that it looked at")
        if wrong:
            shares = [((g.get("n_disagree") or 0) / g["n_answers"], name, task) for name, task, g in second]
            most, name, task = max(shares)
            right = sum(g.get("only_second_right") or 0 for *_, g in second)
            said[-1] += (
                f", of which it calls {count(right)} right that were graded wrong; the most is {percent(most)}\u00a0% "
                f"({name} on {task})"
            )
            concern = most > _DISAGREED
        said[-1] += "."
    judged = [(g["unanimous"], name, task) for name, task, g in graded if g.get("unanimous") is not None]
    if judged:
        least, name, task = min(judged)
        said.append(
            f"Judges were all of one mind on {percent(least)}\u00a0% of the answers or more (least: {name} on {task})."
        )
        concern = concern or least < 1 - 5 * _DISAGREED
    alone = sorted({task for _, task, _ in graded} - {task for _, task, _ in second} - {task for *_, task in judged})
    if alone:
        said.append(f"Of {_listed(alone)} one checker's word is all there is.")
    stuck = sum(g.get("no_end") or 0 for *_, g in graded)
    if stuck:
        said.append(f"On {count(stuck)} answers the checker came to no end; they are graded wrong.")
    return Check("Graders", " ".join(said), concern or bool(stuck))


def _looks(results: dict) -> Check | None:
    """How many comparisons there are, and which are corrected for that."""
    contrasts, verdicts = results.get("contrasts") or [], primary(results)
    if not contrasts:
        return None
    level = pick(results, "confidence") or 0.95
    held = [
        c["id"]
        for c in contrasts
        if c.get("p_holm") is not None and c["p_holm"] > 1 - level and pick(c, "difference_points", "low") is not None
        if c["difference_points"]["low"] >= (results.get("margin_points") or 0.0)
    ]
    kept = f" It turned “pays” into “cannot tell” in {_listed(held)}." if held else ""
    return Check(
        "How many comparisons",
        f"{count(len(contrasts))} were declared, of which {count(len(verdicts))} decide verdicts. “Pays” needs a p-value that Holm's correction "
        f"leaves under {fixed(1 - level, 2)}: over all of them and the interactions, verdicts and interactions having half the weight.{kept} Intervals are not corrected, nor is what "
        "was not declared, from the frontier to the break-even: about "
        f"{fixed(100 * (1 - level), 0)} in a hundred such intervals miss.",
        concern=bool(held),
    )


def _contamination(results: dict) -> Check | None:
    """How many of the questions that were asked stand in the pairs that were trained on; what was not compared is said."""
    if not results["tasks"]:
        return None
    compared: dict[str, list[dict]] = {}
    for entry in results.get("contamination") or []:
        compared.setdefault(str(entry.get("traces")), []).append(entry)
    said = [_compared(name, of_set) for name, of_set in compared.items()]
    worst = [
        (_trained_on(entry) / entry["questions"], entry)
        for of_set in compared.values()
        for entry in of_set
        if _trained_on(entry) and entry.get("questions")
    ]
    if worst:
        share, entry = max(worst, key=lambda one: one[0])
        said.append(
            f"A question that was trained on is answered from memory; the most are {percent(share)}\u00a0% "
            f"({entry.get('task')} in {entry.get('traces')})."
        )
    rows = [row for row in pick(results, "preset", "traces") or [] if isinstance(row, dict)]
    brought = [str(row.get("name")) for row in rows if row.get("import") or row.get("folder")]
    missed = [name for name in brought if name not in compared]
    if missed:
        said.append(
            f"The pairs of {_listed(missed)} were not compared with the questions asked here: “distill traces check TRACES "
            "--against STUDY” does it, with the folders of both."
        )
    if not compared and not missed:
        said.append("Questions to train on and to ask are told apart by their text, so that none is both.")
    students = [row for row in pick(results, "preset", "students") or [] if isinstance(row, dict)]
    if any("/" in str(row.get("student")) for row in students):
        said.append("What pretrained students had read before is not known.")
    return Check("Contamination", " ".join(said), concern=bool(worst or missed))


def _trained_on(entry: dict) -> int:
    """Questions of which a pair holds all, nearly all, or half."""
    return sum(entry.get(kind) or 0 for kind in ("exact", "near", "half"))


def _compared(name: str, of_set: list[dict]) -> str:
    """What one set of pairs has of the questions of all tasks."""
    total = lambda key: sum(entry.get(key) or 0 for entry in of_set)  # noqa: E731
    short = total("too_short")
    alone = f"; {count(short)} of under eight words were compared as a whole only" if short else ""
    return (
        f"Of {count(total('questions'))} questions asked, {count(total('exact'))} stand word for word among the "
        f"{count(of_set[0].get('pairs'))} pairs of {name}, {count(total('near'))} nearly so, {count(total('half'))} with half of "
        f"either in shared runs of 13 words, and {count(total('ngram'))} share one such run{alone}."
    )


def _answers(results: dict) -> Check | None:
    cells = {cell["id"]: cell for cell in results["cells"]}
    differ = []
    for contrast in results.get("contrasts") or []:
        treatment, controls = sides_of(contrast)
        sources = [pick(cells.get(name), "answers") for name in (treatment, *controls)]
        if None not in sources and len(set(sources)) > 1:
            differ.append(contrast["id"])
    if not differ:
        return None
    return Check(
        "Where the answers come from",
        f"The two arms learned from answers of different origin in {_listed(differ)}: "
        "a difference there is not the reasoning's alone.",
        concern=True,
    )


def _teacher(results: dict) -> Check | None:
    teacher = results.get("teacher")
    if not teacher:
        return None
    name, cost, note = teacher.get("name") or "unnamed", teacher.get("cost_usd"), teacher.get("note") or ""
    if cost is None:
        price = "What it cost is not known, so no price on this page includes it."
    elif cost == 0:
        price = "It cost nothing; a teacher that is paid for would add to the price of training."
    else:
        price = f"It cost ${cost:,.2f}, a line of its own that only the prices said to include it do."
    style = "Its traces are more regular than a language model's. " if name == "solver" else ""
    note = f" ({note})" if note else ""
    sets = [_bill(one) for one in teacher.get("sets") or [] if isinstance(one, dict) and one.get("pairs") is not None]
    written = f" What it wrote: {_listed(sets, '; ')}." if sets else ""
    who = (
        "Several teachers"
        if len({one.get("by") for one in teacher.get("sets") or [] if isinstance(one, dict)}) > 1
        else "One teacher"
    )
    return Check(
        "The teacher", f"{who}, {name}{note}. {style}{price}{written}", concern=cost is None or name == "solver"
    )


def _bill(one: dict) -> str:
    """A set of pairs with its tokens by mode and what they cost."""
    tokens = {mode: n for mode, n in (one.get("output_tokens") or {}).items() if n is not None}
    said = f"{one.get('name')}, {count(one['pairs'])} pairs by {one.get('by')}"
    if tokens:
        said += ", " + " and ".join(
            f"{compact(n)} tokens of {'answers that failed' if mode == 'failed' else mode}"
            for mode, n in tokens.items()
        )
    return said if one.get("cost_usd") is None else f"{said} for {usd(one['cost_usd'])}"


def _learning_rates(results: dict) -> Check | None:
    trained: dict[float, list[str]] = {}
    for cell in results["cells"]:
        for rate in rates(cell):
            trained.setdefault(rate, []).append(cell["id"])
    if len(trained) < 2:
        return None
    each = "; ".join(f"{compact(rate)}: {_listed(ids)}" for rate, ids in sorted(trained.items()))
    return Check(
        "Learning rates",
        f"Students were trained with different peak learning rates ({each}). "
        "Across them, a difference is not size or arm alone.",
        concern=True,
    )


def _questions(results: dict) -> Check | None:
    parts = [
        f"{task['name']}: {count(task['questions'])} held-out questions of {count(task.get('distinct_prompts'))} "
        "distinct prompts"
        for task in results["tasks"]
        if task.get("questions") is not None
    ]
    if not parts:
        return None
    return Check(
        "Questions",
        f"{_sentence(_listed(parts, '; '))} The verdicts hold for questions like these, and for no other task.",
        concern=False,
    )


def _price(results: dict) -> Check | None:
    hardware = results.get("hardware")
    if not hardware or hardware.get("price_usd_per_hour") is None:
        return None
    share = f", by the share of its {hardware['cores']} cores that was used" if hardware.get("cores") else ""
    note = " The price is illustrative: nobody was billed it." if hardware.get("illustrative") else ""
    return Check(
        "Prices and times",
        f"Prices are measured seconds at ${hardware['price_usd_per_hour']:,.2f} an hour "
        f"({hardware.get('name') or 'unnamed'}){share}.{note} Seconds depend on the machine and on what else it was doing; FLOPs and tokens do not.",
        concern=False,
    )


def _listed(names, separator: str = ", ", limit: int = 6) -> str:
    names = list(names)
    rest = f"{separator}and {len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + rest


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
