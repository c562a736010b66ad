"""`distill traces check`: planted faults are found, shown and, on request, removed from both modes."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from distill.artifact import workspace
from distill.errors import InputError
from distill.process import child_environment
from distill.settings import validate
from distill.tasks.problem import Problem
from distill.traces.generate import generate
from distill.traces.hygiene.check import CheckSettings, check
from distill.traces.hygiene.page import show
from distill.traces.layouts.import_traces import import_file
from distill.traces.settings import GenerateSettings
from distill.traces.store import KIND, read_pairs, read_rejected, write_pairs
from distill.traces.top_k import Distributions, read_top_k, top_k_file, write_top_k
from distill.traces.trace import MODES, Pair, Trace
from distill.traces.vocabulary import Vocabulary

DATA = Path(__file__).parents[3] / "shared" / "data"


def pair(
    prompt: str, place: int, sample: int = 0, reasoning: str = "so it is", answer: str = "1", gold: str = "1"
) -> Pair:
    return Pair(
        Problem("mine", prompt, gold, "open"),
        Trace("reasoning", reasoning, answer, "stop", "t"),
        Trace("ift", "", answer, "stop", "t"),
        place,
        sample,
    )


def store(folder: Path, pairs: list, top_k: bool = False) -> Path:
    """A finished trace set of these rows."""
    with workspace(folder, KIND, {"rows": len(pairs), "of": [str(p)[:100_000] for p in pairs]}) as space:
        summary = write_pairs(space.path, pairs)
        for mode in MODES if top_k else ():
            # Pair i has i % 3 + 1 tokens, all with id i.
            tokens = [np.full(i % 3 + 1, i) for i in range(len(pairs))]
            answers = [Distributions.of(t, t[:, None], np.full((len(t), 1), -0.1), 1.0) for t in tokens]
            file = top_k_file(space.path, mode)
            lengths, vocabulary = [len(t) for t in tokens], Vocabulary(10**6, "0" * 64)
            write_top_k(file, lengths, answers, k=1, temperature=1.0, vocabulary=vocabulary)
        space.commit(summary | ({"top_k": 1} if top_k else {}))
    return folder


@pytest.fixture
def sentence(rng):
    """sentence(n): n words that nothing else has."""
    return lambda n=40: " ".join(f"w{i}" for i in rng.integers(0, 10**9, n))


def questions_file(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"question": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def settings(**values) -> CheckSettings:
    return validate(CheckSettings, values, source="test")


def test_planted_faults_are_found_and_removed_from_both_modes(tmp_path, sentence):
    base = [sentence() for _ in range(30)]
    near = base[3].replace(base[3].split()[20], "other")
    asked = [sentence() for _ in range(5)]
    long = " ".join([*sentence(20).split(), *asked[1].split()[5:30], *sentence(3).split()])
    phrase = f"{' '.join(asked[2].split()[:13])} {sentence(60)}"
    rows = [pair(text, i) for i, text in enumerate(base)]
    rows += [
        pair(f"  {base[0].upper()} !", 30),  # the same
        pair(near, 31),
        pair(near, 31, sample=1),
        pair(asked[0].title(), 32),  # the same as an evaluation question
        pair(long, 33),  # most of one stands in it
        pair(phrase, 34),  # a phrase of one
        pair(sentence(), 35, reasoning=f"this is known: {asked[3]} so 1"),  # leaks
        pair(sentence(), 36, answer="1 " + "much longer " * 400),
        pair(base[5], 37, sample=0),
        pair(base[5], 37, sample=1),
    ]
    traces = store(tmp_path / "t", rows, top_k=True)
    against = questions_file(tmp_path / "test.jsonl", asked)
    result = check(traces, settings(against=[against]), html=tmp_path / "r.html")
    assert (result["pairs"], result["questions"]) == (40, 38)
    assert result["duplicates"]["questions"] == 2 and result["duplicates"]["groups"] == 2
    group = result["near_duplicates"]["listed"]
    assert [[q["place"] for q in one["questions"]] for one in group] == [[3, 31]]
    assert group[0]["questions"][1]["similarity"] == pytest.approx(35 / 41, abs=1e-4)
    (overlap,) = result["evaluation_sets"]
    assert (overlap["exact"], overlap["ngram"], overlap["contaminated"]) == (1, 2, 2)
    same, most, some = overlap["hits"]
    assert (same["place"], same["kind"], same["coverage"]) == (32, "exact", 1.0)
    assert (most["place"], most["ngrams"], most["questions_with_its_rarest"]) == (33, 13, 1)
    assert most["share_of_evaluation"] == pytest.approx(25 / 40) and most["share_of_question"] == pytest.approx(
        25 / 48, abs=1e-4
    )
    for text in (most["text"], most["evaluation_text"]):
        assert text.partition("⟦")[2].partition("⟧")[0].split() == asked[1].split()[5:30]
    assert (some["place"], some["ngrams"], some["share_of_evaluation"]) == (34, 1, 13 / 40)
    assert overlap["leaks"]["pairs"] == overlap["leaks"]["pairs_of_other_questions"] == 1
    assert (overlap["leaks"]["listed"][0]["place"], overlap["leaks"]["listed"][0]["part"]) == (35, "reasoning")
    assert [one["place"] for one in result["length"]["outliers"]["listed"]] == [35, 36, 36]

    everything = settings(against=[against], remove=["duplicates", "near", "contaminated", "outliers"])
    result = check(traces, everything, out=tmp_path / "clean")
    gone = read_rejected(tmp_path / "clean")
    assert [(r.place, r.sample, r.reason) for r in gone] == [
        (30, 0, "duplicate"),
        (31, 0, "near_duplicate"),
        (31, 1, "near_duplicate"),
        (32, 0, "contaminated"),
        (33, 0, "contaminated"),
        (35, 0, "contaminated"),
        (36, 0, "outlier"),
        (37, 0, "duplicate"),
        (37, 1, "duplicate"),
    ]
    assert all(r.reasoning and r.ift and r.problem for r in gone)
    details = {r.place: r.detail for r in gone}
    assert rows[0].problem.id in details[30] and "(place 0)" in details[30]
    assert rows[3].problem.id in details[31] and "0.85" in details[31]
    assert details[32].startswith("test.jsonl:question evaluation/") and details[32].endswith(": the same")
    assert "62% in shared runs of 13 words" in details[33] and "100% of it in the reasoning" in details[35]
    kept = read_pairs(tmp_path / "clean")
    left_places = {r.place for r in gone}
    assert kept == [row for row in rows if row.place not in left_places]
    files, numbers = read_top_k(tmp_path / "clean"), [i for i, row in enumerate(rows) if row.place not in left_places]
    for mode in MODES:
        assert len(files[mode]) == len(kept)
        for i, number in enumerate(numbers):
            assert files[mode].token_ids(i).tolist() == [number] * (number % 3 + 1)
    assert result["removed"]["pairs"] == len(kept) and result["removed"]["top_k"] == 1
    # The same again is not made again; other settings are refused in the same folder.
    stamp = (tmp_path / "clean" / "manifest.json").stat().st_mtime_ns
    assert check(traces, everything, out=tmp_path / "clean")["removed"] == result["removed"]
    assert (tmp_path / "clean" / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match=r"with other settings .*near.threshold 0.8 -> 0.9"):
        check(traces, everything.model_copy(update={"near": 0.9}), out=tmp_path / "clean")


def test_only_what_is_named_is_removed(tmp_path, sentence):
    one = sentence()
    near = one.replace(one.split()[20], "other")
    traces = store(tmp_path / "t", [pair(text, i) for i, text in enumerate([one, near, near, one])])
    for remove, left in (
        (["duplicates"], [0, 1]),
        (["near"], [0, 3]),  # a copy of what is kept is no near duplicate
        (["duplicates", "near"], [0]),
        (["outliers"], [0, 1, 2, 3]),
    ):
        out = tmp_path / "-".join(remove)
        check(traces, settings(remove=remove), out=out)
        assert [p.place for p in read_pairs(out)] == left


def test_of_nearly_equal_questions_one_with_nothing_else_wrong_stays(tmp_path, sentence):
    one = sentence()
    near = one.replace(one.split()[20], "other")
    traces = store(tmp_path / "t", [pair(one, 0), pair(near, 1), pair(sentence(), 2)])
    against = questions_file(tmp_path / "e.jsonl", [one])
    check(traces, settings(against=[against], contaminated=0.99, remove=["contaminated", "near"]), out=tmp_path / "c")
    assert [(r.place, r.reason) for r in read_rejected(tmp_path / "c")] == [(0, "contaminated")]
    assert [p.place for p in read_pairs(tmp_path / "c")] == [1, 2]


def test_embedded_questions_are_no_near_duplicates(tmp_path, rng):
    generate(GenerateSettings(tasks={"add": 150, "max": 50}, seed=int(rng.integers(10**6))), tmp_path / "t")
    result = check(tmp_path / "t", settings(against=["add=50"]), html=tmp_path / "r.html")
    assert result["duplicates"]["questions"] == result["near_duplicates"]["questions"] == 0
    assert result["near_duplicates"]["too_short"] >= 150
    assert result["evaluation_sets"][0]["exact"] == 0  # train and test never share a prompt
    assert result["length"]["outliers"]["pairs"] == 0
    assert "Word for word only: " in (tmp_path / "r.html").read_text()


class Reader(HTMLParser):
    """Tags that are opened and closed, and all text."""

    VOID = frozenset({"meta", "link", "br", "path", "circle", "rect"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], set(), []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


HOSTILE = [
    "<script>alert('question')</script> <img src=x onerror=alert(1)> <b>bold",
    "</td></table></body></html><style>*{display:none}</style>",
    "control \x00\x01\x1b[31m\x7f\x85 characters \u202e overridden \u2066 and \u200b hidden",
    "مرحبا كم عدد التفاحات التي اشتراها أحمد من السوق اليوم قبل الظهر وبعده؟",
    "😀😃😄 👩‍👩‍👧‍👦 🇩🇪",
    "???!!!...",
    "\u00a0\u2003",
    "\u200b",
    "%s {0} {{ 7*7 }} {% raw %} [bold red]markup[/] $(id) `id`",
    "9**9**9",
    "a" + "\u0301" * 5000,
    "\ufffe\U0010ffff\ue000",
    "x" * 10**6,
    "word " * 200_000,
    "🙂" * 50_000,
]


def test_hostile_texts_through_report_and_page(tmp_path, capsys):
    rows = []
    for text in HOSTILE:
        for _ in range(2):  # word for word the same, so that it is shown
            rows.append(
                pair(
                    text,
                    len(rows),
                    reasoning=text + " so",
                    answer=f"I'm sorry, I can't. {text}"[:100_000],
                    gold=text[:1000],
                )
            )
    looped = f"{HOSTILE[0]} and once more please " * 30
    rows.append(pair(looped, len(rows), reasoning=looped, answer="1"))
    traces = store(tmp_path / "t", rows)
    long = [looped, looped + " end", " ".join(HOSTILE[:5]) * 3]
    against = questions_file(tmp_path / "<i>e&.jsonl", [*HOSTILE[:6], *long])
    result = check(
        traces, settings(against=[against], remove=["duplicates"]), html=tmp_path / "r.html", out=tmp_path / "c"
    )
    assert result["duplicates"]["questions"] == len(HOSTILE)  # nothing is equal to another
    assert [p.place for p in read_pairs(tmp_path / "c")] == [*range(0, 2 * len(HOSTILE), 2), 2 * len(HOSTILE)]
    assert result["evaluation_sets"][0]["leaks"]["pairs"] >= 1 and result["labels"]["loops"]["pairs"] >= 1
    assert result["labels"]["refusals"]["pairs"] == 2 * len(HOSTILE)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == [] and not reader.tags & {"script", "img", "b", "i"}
    assert "alert('question')" in "".join(reader.text) and "<script" not in page
    assert page.count("</html>") == page.count("</body>") == 1 and page.count("<style") == 1
    for character in "\x00\x01\x1b\x7f\x85\u202e\u2066\u200b":
        assert character not in page
    assert len(page) < 2_000_000
    json.dumps(result, allow_nan=False)
    show(result)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\u202e" not in printed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"remove": ["dupes"]}, "unknown kind to remove 'dupes': did you mean 'duplicates'"),
        ({"remove": ["contaminated"]}, "'contaminated' needs the evaluation sets: --against"),
        ({"near": 0.2}, "near"),
        ({"contaminated": 0}, "contaminated"),
    ],
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(InputError, match=message):
        settings(**values)


def test_places_that_cannot_be_used(tmp_path, sentence):
    traces = store(tmp_path / "t", [pair(sentence(), i) for i in range(3)])
    for values, places, message in (
        ({"remove": ["near"]}, {}, "give both or neither"),
        ({}, {"out": tmp_path / "c"}, "give both or neither"),
        ({}, {"html": tmp_path}, "is a folder; expected a file"),
        ({"remove": ["near"]}, {"out": traces}, "is the set that is read"),
    ):
        with pytest.raises(InputError, match=message):
            check(traces, settings(**values), **places)
    with pytest.raises(InputError, match="no such folder"):
        check(tmp_path / "none", settings())
    against = questions_file(tmp_path / "e.jsonl", [p.problem.prompt for p in read_pairs(traces)])
    with pytest.raises(InputError, match="no pair would be left of 3"):
        check(traces, settings(against=[against], remove=["contaminated"]), out=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_the_same_in_every_process(tmp_path, rng, sentence):
    """Neither Python's hash seed nor the number of threads changes a report, a page or what is removed."""
    base = [sentence() for _ in range(20)]
    texts = [
        base[i] if e < 0 else base[i].replace(base[i].split()[10 + e], f"e{e}")
        for i, e in rng.integers(-1, 20, (80, 2))
    ]
    traces = store(tmp_path / "t", [pair(text, i) for i, text in enumerate(texts)])
    against = questions_file(tmp_path / "e.jsonl", [*base[:3], base[4] + " " + sentence()])
    results = []
    for seed in ("1", "2"):
        command = ["traces", "check", str(traces), "--against", against, "--html", f"{tmp_path}/{seed}.html", "--json"]
        command += ["--remove", "near,duplicates,contaminated", "--out", f"{tmp_path}/c{seed}"]
        environment = child_environment() | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": seed}
        run = subprocess.run(
            [sys.executable, "-m", "distill", *command], capture_output=True, text=True, env=environment
        )
        assert run.returncode == 0, run.stderr
        result = json.loads(run.stdout)
        assert result["removed"].pop("path") == f"{tmp_path}/c{seed}"
        results.append(result)
    assert results[0] == results[1]
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()
    assert results[0]["near_duplicates"]["questions"] > 0
    for name in os.listdir(tmp_path / "c1"):
        if name != ".lock":
            assert (tmp_path / "c1" / name).read_bytes() == (tmp_path / "c2" / name).read_bytes()


@pytest.mark.skipif(not DATA.is_dir(), reason="no real data here")
def test_real_traces_against_real_questions(tmp_path):
    """Of GSM8K's first 1,500 training questions one is a test question with other numbers, two share a phrase with one."""
    with (DATA / "gsm8k" / "train.jsonl").open(encoding="utf-8") as file:
        (tmp_path / "train.jsonl").write_text("".join(islice(file, 1500)), encoding="utf-8")
    import_file(tmp_path / "train.jsonl", "gsm8k", tmp_path / "t", splits="all")
    against = [f"gsm8k:{DATA}/gsm8k"]
    result = check(tmp_path / "t", settings(against=against, remove=["contaminated", "near"]), out=tmp_path / "c")
    (overlap,) = result["evaluation_sets"]
    assert (overlap["questions"], overlap["exact"], overlap["ngram"], overlap["contaminated"]) == (1319, 0, 3, 1)
    assert [hit["place"] for hit in overlap["hits"]] == [1314, 20, 406]
    assert all(one["coverage"] >= other["coverage"] for one, other in pairwise(overlap["hits"]))
    assert result["near_duplicates"]["questions"] == result["duplicates"]["questions"] == 0
    assert result["language"]["outliers"]["pairs"] == result["labels"]["refusals"]["pairs"] == 0
    assert result["removed"]["rejected"] == {"contaminated": 1} and len(read_pairs(tmp_path / "c")) == 1499
