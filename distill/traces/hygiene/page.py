"""The report of `distill traces check` for people: a page, and a summary for the terminal."""

from typing import Any

from distill import console
from distill.report.blocks import Block, Cell, Facts, Group, KeyValues, Notice, Section, Table, Text
from distill.report.numbers import count, fixed, percent
from distill.report.page import render_page
from distill.report.text import shorten, visible

_ROWS = 50  # of a table; the JSON has more
_EXAMPLES = 20  # groups of questions
_ID = 40


def render(result: dict[str, Any]) -> str:
    """The page as HTML, of what hygiene.check returns."""
    sections = [
        Section("In short", _short(result)),
        Section("Questions asked more than once", _repeated(result)),
        *(
            Section(
                f"Against {shorten(one['name'], _ID)}",
                _against(one),
                lead="Most runs of 13 shared words are a common phrase: judge them by what they cover, by how many "
                "questions here have them, and by the text, where the longest shared stretch stands between ⟦ and ⟧.",
            )
            for one in result["evaluation_sets"]
        ),
        Section("Unlike the rest", _outliers(result)),
        Section(
            "Labels", _labels(result), lead="Guesses from the text alone, to look at: nothing is removed for them."
        ),
    ]
    title = "What is in these traces that should not be"
    return render_page(title, sections, kicker=f"distill traces check · {result['traces'][:12]}")


def show(result: dict[str, Any]) -> None:
    """The same in a few lines on standard output."""
    facts = dict(_facts(result))
    console.facts(f"{_many(result['questions'], 'question')}, {_many(result['pairs'], 'pair')}", facts)
    for note in _notes(result):
        console.out.print(visible(note), markup=False, soft_wrap=True)
    if "removed" in result:
        removed = result["removed"]
        reasons = ", ".join(f"{name} {number:,}" for name, number in removed["rejected"].items()) or "nothing"
        console.out.print(
            f"{visible(removed['path'])}: {removed['pairs']:,} pairs; set aside: {reasons}",
            markup=False,
            soft_wrap=True,
        )


def _facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    near, labels = result["near_duplicates"], result["labels"]
    facts = [
        ("repeated word for word", _many(result["duplicates"]["questions"], "question")),
        (f"nearly the same (similarity {near['threshold']:g} or more)", _many(near["questions"], "question")),
    ]
    for one in result["evaluation_sets"]:
        facts.append(
            (
                f"against {shorten(one['name'], _ID)} ({_many(one['questions'], 'question')})",
                f"{count(one['exact'])} the same, {count(one['ngram'])} share 13 words; "
                f"contaminated: {_many(one['contaminated'], 'question')}; "
                f"inside what the teacher wrote: {_many(one['leaks']['pairs'], 'pair')}",
            )
        )
    return [
        *facts,
        ("unlike the rest in language", _many(result["language"]["outliers"]["pairs"], "pair")),
        ("unlike the rest in length", _many(result["length"]["outliers"]["pairs"], "pair")),
        ("answers that read like a refusal", _many(labels["refusals"]["pairs"], "pair")),
        ("reasoning in a loop", _many(labels["loops"]["pairs"], "pair")),
    ]


def _notes(result: dict[str, Any]) -> list[str]:
    """What a number does not say by itself."""
    near, notes = result["near_duplicates"], []
    if near["too_short"]:
        notes.append(
            f"Word for word only: {count(near['too_short'])} of {_many(result['questions'], 'question')}, with fewer than "
            f"{near['shortest_words']} words, where one other word makes "
            "another question (add 7523, add 7524)."
        )
    if near["groups_with_other_gold"]:
        notes.append(
            f"Nearly equal questions with other gold answers: {count(near['groups_with_other_gold'])} of "
            f"{_many(near['groups'], 'group')}. The same words with other numbers may be what the task is made of."
        )
    if near["crowded"]:
        notes.append(
            f"Of {_many(near['crowded'], 'question')} there are so many look-alikes that not all were compared: this task "
            "is made from few patterns, and near duplicates are its nature."
        )
    for one in result["evaluation_sets"]:
        if one["too_short"]:
            notes.append(
                f"{count(one['too_short'])} of {_many(one['questions'], 'question')} of {shorten(one['name'], _ID)} have "
                "fewer than 13 words: only whole questions are compared with them."
            )
    return notes


def _short(result: dict[str, Any]) -> list[Block]:
    size = [("questions", count(result["questions"])), ("pairs", count(result["pairs"]))]
    size += [
        ("evaluation set", shorten(f"{one['what']} ({count(one['questions'])})", 120))
        for one in result["evaluation_sets"]
    ]
    lists = [Facts("Looked at", size), Facts("Found", _facts(result))]
    if "removed" in result:
        removed = result["removed"]
        reasons = [(name, f"{number:,} pairs") for name, number in removed["rejected"].items()]
        lists.append(Facts("The set without it", [("pairs", count(removed["pairs"])), *reasons]))
    blocks: list[Block] = [KeyValues(lists)]
    notes = _notes(result)
    if not result["evaluation_sets"]:
        notes.append("No evaluation set was named, so nothing is said about contamination: --against.")
    return [*blocks, Notice("Mind what these numbers do not say.", notes)] if notes else blocks


def _repeated(result: dict[str, Any]) -> list[Block]:
    same, near = result["duplicates"], result["near_duplicates"]
    blocks: list[Block] = [
        Text(
            f"Word for word: {_many(same['questions'], 'question')} that came before. Case, spaces, "
            "punctuation and Unicode forms do not count; several samples of one question are one question."
        )
    ]
    if same["listed"]:
        rows = [
            [_name(g["questions"][0]), count(g["size"]), ", ".join(str(q["place"]) for q in g["questions"]), g["text"]]
            for g in same["listed"][:_ROWS]
        ]
        columns = ["first", "times", "places", "question"]
        blocks.append(Table(_listed("Word for word the same", same), columns, [Group(rows)], frozenset({2, 3})))
    blocks.append(
        Text(
            f"Nearly: {_many(near['questions'], 'question')} more. Of all runs of three "
            f"words that either has, both have a share of {near['threshold']:g} or more."
        )
    )
    groups = [
        Group(
            [[_name(q), fixed(q["similarity"], 2), q["gold"], q["text"]] for q in one["questions"]],
            title=f"{_many(one['size'], 'question')}",
        )
        for one in near["listed"][:_EXAMPLES]
    ]
    if groups:
        columns = ["question", Cell("similarity", "to the first"), "gold", "text"]
        blocks.append(Table(_listed("Nearly the same", near, _EXAMPLES), columns, groups, frozenset({2, 3})))
    return blocks


def _against(one: dict[str, Any]) -> list[Block]:
    leaks = one["leaks"]
    blocks: list[Block] = [
        Text(
            f"{one['what'][:1].upper()}{one['what'][1:]}: {_many(one['questions'], 'question')}. Of the questions here, "
            f"{count(one['exact'])} are the same as one of them and {count(one['ngram'])} share 13 words in a row with one. "
            f"{count(one['contaminated'])} are contaminated: the same, or {percent(one['contaminated_from'], 0)} % or "
            "more of either question stands in such runs."
        )
    ]
    groups = [
        Group(
            [[_name(hit), hit["text"]], [Cell(shorten(hit["evaluation"], _ID), "evaluation"), hit["evaluation_text"]]],
            title="the same question" if hit["kind"] == "exact" else _shared(hit),
        )
        for hit in one["hits"][:_ROWS]
    ]
    if groups:
        title = f"Shared with {shorten(one['name'], _ID)}"
        caption = f"{title}, {len(groups)} of {count(one['exact'] + one['ngram'])}, most covered first"
        blocks.append(Table(caption, ["question", "text"], groups, frozenset({1})))
    blocks.append(
        Text(
            f"What the teacher wrote holds {_many(leaks['evaluation_questions'], 'evaluation question')}, by the same share, "
            f"in {_many(leaks['pairs'], 'pair')}; in {count(leaks['pairs_of_other_questions'])} of them the question "
            "asked is not contaminated itself."
        )
    )
    groups = [
        Group(
            [
                [_name(leak), leak["text"]],
                [Cell(shorten(leak["evaluation"], _ID), "evaluation"), leak["evaluation_text"]],
            ],
            title=f"{percent(leak['share_of_evaluation'], 0)} % of the evaluation question, in the {leak['part']}",
        )
        for leak in leaks["listed"][:_ROWS]
    ]
    if groups:
        caption = f"In the teacher's words, {len(groups)} of {count(sum(leaks['parts'].values()))}"
        blocks.append(Table(caption, ["question", "text"], groups, frozenset({1})))
    return blocks


def _outliers(result: dict[str, Any]) -> list[Block]:
    language, length = result["language"], result["length"]
    questions = [
        (task, ", ".join(f"{code} {number:,}" for code, number in counts.items()))
        for task, counts in language["questions"].items()
    ]
    blocks: list[Block] = [
        KeyValues(
            [Facts("Language of the questions", [(shorten(task, _ID), shorten(text, 200)) for task, text in questions])]
        ),
        Text(
            "A question is unlike the rest when less than one in twenty of its task's is in its language; reasoning, "
            "when a part of it is in another language than its question. Only what the identifier is sure of counts."
        ),
        *_outlier_table("In another language", language["outliers"]),
    ]
    medians = [
        [shorten(task, _ID), *(count(parts[part]) for part in parts)]
        for task, parts in length["median_characters"].items()
    ]
    if medians:
        parts = next(iter(length["median_characters"].values()))
        blocks.append(Table("Median length in characters", ["task", *parts], [Group(medians)]))
    blocks.append(
        Text(
            "A length is unlike the rest of its task beyond five robust standard deviations of its logarithm, and never "
            "within 3.5 times the median."
        )
    )
    return [*blocks, *_outlier_table("Far longer or shorter", length["outliers"])]


def _outlier_table(title: str, outliers: dict[str, Any]) -> list[Block]:
    rows = [[_name(one), count(one["sample"]), one["detail"]] for one in outliers["listed"][:_ROWS]]
    if not rows:
        return []
    caption = f"{title}: {_many(outliers['pairs'], 'pair')}, {len(rows)} findings shown"
    return [Table(caption, ["question", "sample", "what"], [Group(rows)], frozenset({2}))]


def _labels(result: dict[str, Any]) -> list[Block]:
    refusals, loops = result["labels"]["refusals"], result["labels"]["loops"]
    blocks: list[Block] = [
        Text(
            f"An answer reads like a refusal in {_many(refusals['pairs'], 'pair')}. Reasoning goes round in "
            f"{_many(loops['pairs'], 'pair')}: ten words in a row come ten times or more."
        )
    ]
    rows = [[_name(one), one["part"], one["text"]] for one in refusals["listed"][:_ROWS]]
    if rows:
        blocks.append(Table("Reads like a refusal", ["question", "where", "text"], [Group(rows)], frozenset({1, 2})))
    rows = [[_name(one), count(one["times"]), one["text"]] for one in loops["listed"][:_ROWS]]
    if rows:
        blocks.append(Table("Goes round", ["question", "times", "the words"], [Group(rows)], frozenset({2})))
    return blocks


def _shared(hit: dict[str, Any]) -> str:
    return (
        f"{percent(hit['share_of_question'], 0)} % of the question, {percent(hit['share_of_evaluation'], 0)} % of the "
        f"evaluation question; {_many(hit['ngrams'], 'shared run')} of 13 words, the rarest in "
        f"{_many(hit['questions_with_its_rarest'], 'question')} here"
    )


def _many(number: int, what: str) -> str:
    return f"{count(number)} {what}{'' if number == 1 else 's'}"


def _name(entry: dict[str, Any]) -> Cell:
    return Cell(shorten(entry["id"], _ID), f"place {entry['place']}")


def _listed(title: str, found: dict[str, Any], limit: int = _ROWS) -> str:
    return f"{title}: {_many(found['groups'], 'group')}, {min(limit, len(found['listed']))} shown"
