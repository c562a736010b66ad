"""IFEval by lm-eval's rule book: every rule both ways, strict and loose, without the network.

Where langdetect and immutabledict are not installed, small modules stand in for them: langdetect by py3langid.
"""

import importlib.util
import json
import sys

import pytest

from distill.errors import InputError
from distill.tasks import ifeval as room
from distill.tasks.benchmark_task import open_benchmark
from distill.tasks.check_pool import check_all
from distill.tasks.ifeval import RULES, check_rules, ifeval
from distill.tasks.plain_rules import plain_rules
from distill.tasks.verdict import Verdict

pytest.importorskip("lm_eval")

STAND_INS = {
    "langdetect": """
import types, py3langid

class LangDetectException(Exception):
    pass

class DetectorFactory:
    seed = None

def detect(text):
    if not any(c.isalpha() for c in text):
        raise LangDetectException("no features")
    assert DetectorFactory.seed == 0
    return py3langid.classify(text)[0]
""",
    "immutabledict": "immutabledict = dict\n",
}

# Rule: (arguments, an answer that follows it, one that does not).
CASES = {
    "keywords:existence": ({"keywords": ["ladle", "steam"]}, "A ladle in the steam.", "A ladle in the fog."),
    "keywords:frequency": (
        {"keyword": "rain", "frequency": 2, "relation": "at least"},
        "Rain and more rain.",
        "Rain and more fog.",
    ),
    "keywords:forbidden_words": ({"forbidden_words": ["bread"]}, "Dear baker.", "The bread is good."),
    "keywords:letter_frequency": (
        {"letter": "q", "let_frequency": 3, "let_relation": "at least"},
        "Quick quiet quails.",
        "Quick quiet birds.",
    ),
    "language:response_language": (
        {"language": "fi"},
        "Hyvää huomenta kaikille ja tervetuloa meidän kauniiseen kaupunkiimme.",
        "Good morning to all of you and welcome to our beautiful city.",
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 3, "relation": "less than"},
        "The tide rises. It falls.",
        "The tide rises. It falls. It rises again. It falls again.",
    ),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "One.\n\n***\n\nTwo.", "One.\n\nTwo."),
    "length_constraints:number_words": ({"num_words": 5, "relation": "at least"}, "one two three four five", "one two"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First this.\n\nThen that.",
        "First this.\n\nAnd that.",
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "Dear [name] of [town].", "Dear [name]."),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Hello.\n\nP.S. Bye.", "Hello. Bye."),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* one\n* two", "* one\n* two\n* three"),
    "detectable_format:constrained_response": ({}, "My answer is yes.", "Indeed."),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*one* and *two*", "*one* and two"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\nThis.\nSECTION 2\nThat.",
        "SECTION 1\nThis.",
    ),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "a: 1"),
    "detectable_format:title": ({}, "<<Tides>>\nThey rise.", "Tides\nThey rise."),
    "combination:two_responses": ({}, "This.\n******\nThat.", "This.\nThat."),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say hi."}, "Say hi. Hi!", "Hi!"),
    "startend:end_checker": ({"end_phrase": "That is all."}, "A joke. That is all.", "A joke."),
    "startend:quotation": ({}, '"All of it."', 'Not "all" of it.'),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"},
        "The NASA and the ESA.",
        "The NASA and the rest.",
    ),
    "change_case:english_capital": ({}, "THIS IS WHAT ALL OF THE PEOPLE SAY.", "This is what all of the people say."),
    "change_case:english_lowercase": ({}, "this is what all of the people say.", "This is what all of the people say."),
    "punctuation:no_comma": ({}, "This and that.", "This, and that."),
}


@pytest.fixture(scope="module", autouse=True)
def rule_book(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    with pytest.MonkeyPatch.context() as patch:
        for name, text in STAND_INS.items():
            if importlib.util.find_spec(name) is None:
                (folder / f"{name}.py").write_text(text)
        patch.syspath_prepend(folder)
        patch.setattr("socket.socket.connect", None)  # whoever wants the network fails
        room._rule_book.cache_clear()
        yield room._rule_book()
    room._rule_book.cache_clear()
    for name in [name for name in sys.modules if name in STAND_INS or name.startswith("lm_eval.tasks.ifeval")]:
        del sys.modules[name]


def gold(*rules):
    names, arguments = zip(*rules, strict=True)
    return json.dumps({"instruction_id_list": names, "kwargs": arguments})


def test_every_rule_of_the_book_has_a_case():
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    assert set(INSTRUCTION_DICT) == RULES == CASES.keys() and len(RULES) == 25


@pytest.mark.parametrize("rule", CASES)
def test_rules(rule):
    arguments, follows, does_not = CASES[rule]
    right, wrong = (ifeval(gold((rule, arguments)), answer) for answer in (follows, does_not))
    assert right.correct and right.scores == {"rules": 1, "followed": 1, "followed_loosely": 1}
    assert not wrong.correct and wrong.scores["followed"] == 0
    assert not ifeval(gold((rule, arguments)), "").correct


def test_all_rules_must_be_followed_and_each_is_counted():
    names = ["punctuation:no_comma", "startend:quotation", "keywords:forbidden_words"]
    rules = [(name, CASES[name][0]) for name in names]
    verdict = ifeval(gold(*rules), '"Rain and fog"')
    assert verdict.correct and verdict.scores["followed"] == 3
    verdict = ifeval(gold(*rules), "Rain and fog")
    assert not verdict.correct and verdict.scores == {"rules": 3, "followed": 2, "followed_loosely": 2}
    assert verdict.note == "2 of 3 rules followed, loosely 2"


def test_loose_forgives_a_first_line():
    verdict = ifeval(gold(("startend:quotation", {})), 'Here it is:\n"All of it."')
    assert not verdict.correct and verdict.scores == {"rules": 1, "followed": 0, "followed_loosely": 1}


def test_the_same_answer_has_the_same_verdict():
    """A rule without its argument draws one at random; short texts have no certain language."""
    rules = gold(("keywords:existence", {}), ("language:response_language", {"language": "de"}))
    assert len({str(ifeval(rules, "Auto haus or western signal")) for _ in range(20)}) == 1


def test_in_worker_processes_and_with_hostile_answers():
    golds = [gold((name, arguments)) for name, (arguments, _, _) in CASES.items()]
    hostile = ["[" * 50_000, "\ud800" * 500, "x" * 200_000, '{"a":' * 20_000]
    pairs = [(one, CASES[name][1]) for one, name in zip(golds, CASES, strict=True)]
    whole = gold(*((name, arguments) for name, (arguments, _, _) in CASES.items()))
    pairs += [(whole, text) for text in hostile]
    found = {}
    check_all("ifeval", pairs, found.__setitem__, processes=1, limit_s=3)
    assert sorted(found) == list(range(len(pairs)))
    assert all(found[i].correct for i in range(len(golds)))


def test_metrics_of_the_benchmark(tmp_path):
    asked = (["punctuation:no_comma", "startend:quotation"], ["startend:quotation"], ["detectable_format:title"])
    rows = [
        {"prompt": f"p{i}", "instruction_id_list": names, "kwargs": [{}] * len(names)} for i, names in enumerate(asked)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = open_benchmark("ifeval", path)
    problems = task.problems("test", None, 0)
    answers = ["No quotes", 'Here:\n"All"', "<<Title>>"]
    verdicts = [ifeval(p.gold, answer) for p, answer in zip(problems, answers, strict=True)]
    values = {name: metric.score(problems, answers, verdicts) for name, metric in task.metrics.items()}
    assert values == {
        "accuracy": pytest.approx(1 / 3),
        "instruction_accuracy": pytest.approx(2 / 4),
        "accuracy_loose": pytest.approx(2 / 3),
        "instruction_accuracy_loose": pytest.approx(3 / 4),
    }
    metric = task.metrics["instruction_accuracy"]
    drawn = [metric.rows(*one) for one in zip(problems, answers, verdicts, strict=True)]
    table = {name: [row[name] for row in drawn] for name in drawn[0]}
    assert metric.value(table, [0, 2, 1]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruction_id_list": ["punctuation:no_commas"]}, "no rule of IFEval is called 'punctuation:no_commas'"),
        ({"instruction_id_list": []}, "expected a list of rules"),
        ({"instruction_id_list": "a"}, "expected a list of rules"),
        ({"kwargs": []}, "expected a list of 1, one entry a rule"),
        ({"kwargs": [3]}, "expected an object for each rule"),
    ],
)
def test_rules_that_are_none(changes, message):
    row = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    with pytest.raises(InputError, match=message):
        check_rules(json.dumps(row | changes), "rows.jsonl:1")


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(room, "PACKAGES", ("nltk", "no_such_package"))
    assert room.missing_packages() == ["no_such_package"]


def test_a_second_reading_agrees():
    """It knows the rules that prompts set most often, and has no word on the others."""
    known = 0
    for rule, (arguments, follows, does_not) in CASES.items():
        verdicts = [plain_rules(gold((rule, arguments)), answer) for answer in (follows, does_not)]
        known += verdicts[0] is not None
        assert [v and v.correct for v in verdicts] in ([None, None], [True, False]), rule
        assert plain_rules(gold((rule, arguments), ("language:response_language", {"language": "fi"})), follows) is None
        if arguments:
            assert plain_rules(gold((rule, {})), follows) is None
            assert plain_rules(gold((rule, dict.fromkeys(arguments, True))), follows) in (
                None,
                Verdict(True),
                Verdict(False),
            )
    assert known == 19
