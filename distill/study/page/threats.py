"""Threats to a study's validity, filled in from what it measured: each is a concern or was checked and found absent."""

from distill.report.blocks import Check
from distill.report.numbers import compact, count, fixed, percent, times, usd
from distill.study.page.reading import pick

# Below this share of unfinished answers, and above it of answers in the trained format, nothing is worth a warning.
_TRUNCATED, _IN_FORMAT = 0.005, 0.99

# What a contrast is matched on, in words; where it is work, longer answers cost an arm no more than shorter ones.
_HELD_EQUAL = {
    "samples": "saw the same examples",
    "steps": "took as many optimizer steps",
    "tokens": "read as many training tokens",
    "flops": "took as many training FLOPs",
}
_BY_WORK = ("tokens", "flops")


def checks(results: dict) -> list[Check]:
    found = [
        _truncation(results),
        _seeds(results),
        _sign(results),
        _matching(results),
        _margin(results),
        _votes(results),
        _thinking(results),
        _mixed(results),
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
    rates = [
        (r["unfinished_rate"], c["id"], t, r) for c, t, r in _measured(results) if r.get("unfinished_rate") is not None
    ]
    if not rates:
        return None
    rate, cell, task, result = max(rates, key=lambda item: item[0])
    if rate <= _TRUNCATED:
        return Check(
            "Unfinished answers",
            f"At most {percent(rate)}\u00a0% of any student's answers to a task hit the length limit.",
            concern=False,
        )
    over = sum(item[0] > _TRUNCATED for item in rates)
    return Check(
        "Unfinished answers",
        f"{over} of {len(rates)} student and task pairs have answers that hit the length limit; the most is "
        f"{percent(rate)}\u00a0% ({cell} on {task}). They are graded wrong and their tokens are paid for. "
        f"Among its finished answers {cell} is right on {percent(result.get('accuracy_finished'))}\u00a0%: a longer limit "
        "could change this result.",
        concern=True,
    )


def _seeds(results: dict) -> Check | None:
    contrasts = [c for c in results.get("contrasts") or [] if c.get("n_seeds") is not None]
    if not contrasts:
        return None
    few = [c for c in contrasts if c["n_seeds"] < 3]
    if not few:
        return Check(
            "Training seeds",
            "Every contrast rests on at least three training seeds, which its interval includes.",
            concern=False,
        )
    return Check(
        "Training seeds",
        f"{len(few)} of {len(contrasts)} contrasts rest on fewer than three training seeds "
        f"({_listed(c['id'] for c in few)}). They speak of these trained students, not of how they were trained: training again could "
        "move them by more than their interval.",
        concern=True,
    )


def _sign(results: dict) -> Check | None:
    contrasts = [c for c in results.get("contrasts") or [] if len(c.get("per_seed") or ()) > 1]
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
        f"The sign of the difference depends on the seed in {_listed(flips)}. "
        "A study with one seed could have reported either.",
        concern=True,
    )


def _matching(results: dict) -> Check | None:
    title, contrasts = "What the arms were matched on", results.get("contrasts") or []
    primary = [c for c in contrasts if c.get("primary")]
    if any(c.get("matched_on") == "nothing" for c in primary):
        return Check(
            title,
            "The verdicts compare arms that were matched on neither examples nor steps, training tokens or FLOPs: a "
            "difference may be that of how much they saw.",
            concern=True,
        )
    held = [said for kind, said in _HELD_EQUAL.items() if any(c.get("matched_on") == kind for c in primary)]
    if not held:
        return None
    compared = f"The verdicts compare arms that {_listed(held, ', or ')}"
    by_pairs = [c for c in primary if c.get("matched_on") not in _BY_WORK]
    if not by_pairs:
        return Check(title, f"{compared}: the arm with shorter answers saw its examples more often.", concern=False)
    factors = [c["training_tokens_factor"] for c in by_pairs if c.get("training_tokens_factor") is not None]
    spent = f", and up to {times(max(factors))} the training tokens" if factors else ""
    others = [c for c in contrasts if c.get("matched_on") in _BY_WORK]
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
    rates = [
        (c["id"], t, r["think_rate"], str(c.get("arm")))
        for c, t, r in _measured(results)
        if r.get("think_rate") is not None and (c.get("think") or usual) == "free"
    ]
    # Mixed students may do either; only pure arms have a format to keep.
    stray = [
        f"{cell} thinks in {percent(rate)}\u00a0% of its answers to {task}"
        for cell, task, rate, arm in rates
        if (arm == "reasoning" and rate < _IN_FORMAT) or (arm in ("ift", "base") and rate > 1 - _IN_FORMAT)
    ]
    if not rates:
        return None
    if not stray:
        return Check(
            "Students that leave their format",
            "Students trained on reasoning alone think before they answer, and those trained without it do not.",
            concern=False,
        )
    return Check("Students that leave their format", f"{_sentence(_listed(stray, '; '))}", concern=True)


def _mixed(results: dict) -> Check | None:
    """How far training seeds of one arm with some reasoning are apart, against pure arms; and what they ended up doing."""
    spread: dict[bool, list[tuple[float, str, str]]] = {True: [], False: []}
    rates: dict[str, list[float]] = {}
    for cell, task, result in _measured(results):
        mixed = str(cell.get("arm")).split(":")[0] in ("mixed", "sequential", "phases")
        per_seed = pick(result, "metrics", "accuracy", "per_seed") or []
        if len(per_seed) > 1:
            spread[mixed].append((100 * (max(per_seed) - min(per_seed)), cell["id"], task))
        if mixed and result.get("think_rate") is not None:
            rates.setdefault(cell["id"], []).append(result["think_rate"])
    if not rates and not spread[True]:
        return None
    said, concern = [], False
    if spread[True]:
        widest, cell, task = max(spread[True])
        said.append(f"Of one arm with some reasoning, seeds are up to {fixed(widest)} points apart ({cell} on {task})")
        if spread[False]:
            pure = max(spread[False])[0]
            concern = widest > max(2 * pure, results.get("margin_points") or 0.0)
            said[-1] += f", of one with all or none up to {fixed(pure)}"
        said[-1] += "."
    else:
        said.append(
            "No arm with some reasoning was trained with more than one seed, so nothing is known of how far seeds fall apart."
        )
        concern = True
    if rates:
        least, most = min(rates, key=lambda name: min(rates[name])), max(rates, key=lambda name: max(rates[name]))
        said.append(
            f"They think in {percent(min(rates[least]), 0)}\u00a0% ({least}) to {percent(max(rates[most]), 0)}\u00a0% ({most}) "
            "of their answers to a task, whatever their share of reasoning in training."
        )
    return Check("Stability of mixed arms", " ".join(said), concern)


def _contamination(results: dict) -> Check | None:
    """What a study does by itself is to tell its own training and test questions apart; the rest is another command's."""
    if not results["tasks"]:
        return None
    rows = [row for row in pick(results, "preset", "traces") or [] if isinstance(row, dict)]
    brought = [str(row.get("name")) for row in rows if row.get("import") or row.get("folder")]
    students = [row for row in pick(results, "preset", "students") or [] if isinstance(row, dict)]
    said = [
        f"The pairs of {_listed(brought)} were not compared with the questions asked here, and a question that was trained on "
        "is answered from memory."
        if brought
        else "Questions to train on and to ask are told apart by their text, so that none is both. Near copies were not looked for."
    ]
    if any("/" in str(row.get("student")) for row in students):
        said.append("What pretrained students had read before is not known.")
    said.append(
        "`distill traces check TRACES --against STUDY`, with the folders of both, finds questions that share long runs of "
        "words with a pair."
    )
    return Check("Contamination", " ".join(said), concern=bool(brought))


def _answers(results: dict) -> Check | None:
    cells = {cell["id"]: cell for cell in results["cells"]}
    differ = []
    for contrast in results.get("contrasts") or []:
        sources = [pick(cells.get(contrast.get(side)), "answers") for side in ("treatment", "control")]
        if None not in sources and sources[0] != sources[1]:
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
        said += ", " + " and ".join(f"{compact(n)} tokens of {mode}" for mode, n in tokens.items())
    return said if one.get("cost_usd") is None else f"{said} for {usd(one['cost_usd'])}"


def _learning_rates(results: dict) -> Check | None:
    rates: dict[float, list[str]] = {}
    for cell in results["cells"]:
        if cell.get("learning_rate"):
            rates.setdefault(cell["learning_rate"], []).append(cell["id"])
    if len(rates) < 2:
        return None
    each = "; ".join(f"{compact(rate)}: {_listed(ids)}" for rate, ids in sorted(rates.items()))
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
