"""Benchmark files: rows in their sources' layouts give exactly the questions written out here, and nothing leaks."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from distill.errors import InputError
from distill.tasks import get_task
from distill.tasks.benchmark import BENCHMARKS, FOLDER, Benchmark, load_benchmark, placeholders
from distill.tasks.benchmark_rows import example_answer, model_answer, read_row
from distill.tasks.benchmark_task import open_benchmark
from distill.tasks.checkers import QUICK, check
from distill.tasks.rows import open_source

ROWS = Path(__file__).parent / "benchmark_rows"
DATA = Path(__file__).parents[3] / "shared" / "data"
HOWTO = Path(__file__).parents[2] / "docs" / "benchmarks-howto.md"

LETTER = "\n\nPut the letter of the correct option in \\boxed{}."
ANSWER = "\n\nPut the final answer in \\boxed{}."
UNIT = "\n\nPut the number in \\boxed{}, without the unit; a power of ten in the unit is part of the unit."

# Written out by hand: (first question's prompt, last question's prompt, every gold answer).
EXPECTED = {
    "winogrande": (
        "Which option belongs in the place of the blank (_)?\n\nThe ladder did not fit in the van because the _ was too "
        "long.\n\nA) ladder\nB) van" + LETTER,
        "Which option belongs in the place of the blank (_)?\n\nThe blue paint covered the red one, for the _ paint was "
        "put on last.\n\nA) red\nB) blue" + LETTER,
        list("ABBAABAABB"),
    ),
    "openbookqa": (
        "A puddle is gone after a hot morning because the water\n\nA) froze\nB) evaporated\nC) was eaten\nD) rusted"
        + LETTER,
        "A shadow at noon is shorter than in the evening as the sun is then\n\nA) colder\nB) higher\nC) farther\n"
        "D) smaller" + LETTER,
        list("BADCABCDAB"),
    ),
    "mmlu-misc": (
        "How many strings has a violin?\n\nA) 3\nB) 4\nC) 5\nD) 6" + LETTER,
        "Which instrument is blown?\n\nA) The harp\nB) The lute\nC) The drum\nD) The oboe" + LETTER,
        list("BCADACBD"),
    ),
    "mmlu-math": (
        "What is 7 * 8 - 6?\n\nA) 50\nB) 14\nC) 62\nD) 56" + LETTER,
        "The rank of the 3 by 3 identity matrix is\n\nA) 0\nB) 1\nC) 2\nD) 3" + LETTER,
        list("ABCDABCD"),
    ),
    "mmlu-pro-math": (
        "What is 9 + 10?\n\nA) 11\nB) 12\nC) 13\nD) 14\nE) 15\nF) 16\nG) 17\nH) 18\nI) 19\nJ) 20" + LETTER,
        "What is 100 in base 2, read in base 10?\n\nA) 2\nB) 3\nC) 4\nD) 8\nE) 100" + LETTER,
        list("IFEDCDDC"),
    ),
    "mmlu-pro-law": (
        "A promise without anything in return is, in most cases,\n\nA) binding\nB) a crime\nC) not enforceable\nD) a tort"
        + LETTER,
        "Hearsay is a statement that is\n\nA) made out of court and offered as proof of what it says\nB) whispered\n"
        "C) false\nD) sworn\nE) printed\nF) sung" + LETTER,
        list("CBDBBCAA"),
    ),
    "mmlu-pro-code": (
        "The worst case of a binary search among n sorted keys takes time of order\n\nA) 1\nB) log n\nC) n\nD) n log n\n"
        "E) n^2" + LETTER,
        "The two's complement of 1 in 8 bits is\n\nA) 00000001\nB) 10000001\nC) 11111110\nD) 11111111" + LETTER,
        list("BBDACBCD"),
    ),
    "mmlu-pro-physics": (
        "A stone falls for 2 s from rest with g = 10 m/s^2. How far?\n\nA) 5 m\nB) 10 m\nC) 20 m\nD) 40 m" + LETTER,
        "An object at rest on a table is pushed up by the\n\nA) weight\nB) air\nC) normal force\nD) friction\nE) spin"
        + LETTER,
        list("CBCADCAC"),
    ),
    "aqua-rat": (
        "A tap fills a tub in 12 minutes. What part is full after 3?\n\nA) 1/2\nB) 1/3\nC) 1/4\nD) 1/6\nE) 1/12"
        + LETTER,
        "A die is thrown twice. The chance of two sixes?\n\nA) 1/6\nB) 1/3\nC) 1/12\nD) 1/18\nE) 1/36" + LETTER,
        list("CBADEDACBE"),
    ),
    "squad": (
        "The old harbour of Veld was dug in 1732 by convicts. It silted up within forty years, and trade moved to Marn, "
        "nine miles south.\n\nWhen was the harbour of Veld dug?\n\nAnswer with words of the text, as few as you can, and "
        "put them in \\boxed{}.",
        "Mason bees nest in hollow reeds. A female closes each cell with mud, which she carries home in loads of about "
        "20 milligrams.\n\nWhere is the mud carried?\n\nAnswer with words of the text, as few as you can, and put them "
        "in \\boxed{}.",
        [
            '["1732", "in 1732"]',
            '["convicts", "by convicts"]',
            '["Marn", "to Marn", "Marn, nine miles south"]',
            '["forty years", "within forty years"]',
            '["nine miles", "nine miles south"]',
            '["hollow reeds", "in hollow reeds"]',
            '["mud", "with mud"]',
            '["20 milligrams", "about 20 milligrams"]',
            '["A female", "female"]',
            '["home"]',
        ],
    ),
    "coqa": (
        "Rita found a grey kitten under the bridge. She took it home in her hat and called it Fog.\n\nQ: What did Rita "
        "find?\n\nAnswer the last question in as few words as you can, and put them in \\boxed{}.",
        "A fox stole one sock each night. In May the farmer had none left.\n\nQ: Who stole the socks?\nA: a fox\nQ: When "
        "were they all gone?\n\nAnswer the last question in as few words as you can, and put them in \\boxed{}.",
        [
            f'["{answer}"]'
            for answer in (
                *("a grey kitten", "under the bridge", "Fog", "skates", "yes", "Monday", "three", "shoes", "no"),
                *("the miller", "the wind", "212", "two", "green", "her brother", "on Tuesdays", "by bicycle", "no"),
                *("a fox", "in May"),
            )
        ],
    ),
    "ifeval": (
        "Describe a lighthouse without any commas.",
        "Write a line with the letter q at least 4 times, within double quotes.",
        [
            '{"instruction_id_list":["punctuation:no_comma"],"kwargs":[{}]}',
            '{"instruction_id_list":["length_constraints:number_words","change_case:english_lowercase"],'
            '"kwargs":[{"num_words":40,"relation":"at least"},{}]}',
            '{"instruction_id_list":["detectable_format:number_bullet_lists"],"kwargs":[{"num_bullets":3}]}',
            '{"instruction_id_list":["keywords:existence"],"kwargs":[{"keywords":["ladle","steam"]}]}',
            '{"instruction_id_list":["keywords:forbidden_words"],"kwargs":[{"forbidden_words":["bread","oven"]}]}',
            '{"instruction_id_list":["startend:end_checker"],"kwargs":[{"end_phrase":"That is all."}]}',
            '{"instruction_id_list":["length_constraints:number_sentences"],'
            '"kwargs":[{"num_sentences":5,"relation":"less than"}]}',
            '{"instruction_id_list":["language:response_language"],"kwargs":[{"language":"fi"}]}',
            '{"instruction_id_list":["detectable_format:json_format"],"kwargs":[{}]}',
            '{"instruction_id_list":["keywords:letter_frequency","startend:quotation"],'
            '"kwargs":[{"let_frequency":4,"let_relation":"at least","letter":"q"},{}]}',
        ],
    ),
    "gsm8k": (
        "Tom has 4 boxes with 12 eggs each and drops 5. How many are left?" + ANSWER,
        "A bus makes 6 trips of 1.5 hours. How many minutes is that?" + ANSWER,
        ["43", "1,400", "105", "7", "32", "-5", "50", "0.75", "85", "540"],
    ),
    "math-500": (
        "Compute $\\frac{1}{4} + \\frac{1}{3}$." + ANSWER,
        "Find the vector from $\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}$ to $\\begin{pmatrix} 4 \\\\ 0 \\end{pmatrix}$."
        + ANSWER,
        [
            *("\\frac{7}{12}", "-7", "(0,3]", "\\left( \\sqrt{2}, \\frac{\\pi}{4} \\right)", "120", "x^2+4x+4", "1"),
            *("18", "\\frac{\\sqrt{3}}{2}", "\\begin{pmatrix} 3 \\\\ -2 \\end{pmatrix}"),
        ],
    ),
    "aime": (
        "Find the number of integers from 1 to 100 that are divisible by neither 2 nor 5.\n\nThe answer is a whole number "
        "from 0 to 999. Put it in \\boxed{}.",
        "How many subsets of a set of 9 elements have an even number of elements?\n\nThe answer is a whole number from 0 "
        "to 999. Put it in \\boxed{}.",
        ["40", "6", "65", "077", "981", "36", "83", "204", "1", "256"],
    ),
    "consumer-qa": (
        "1. You may end your plan at any time; what you have paid is not returned. 2. We may change prices with 30 days "
        "of notice. 3. Children under 13 may not register.\n\nWill I get money back if I end my plan early?\n\nPut your "
        "answer, Yes or No, in \\boxed{}.",
        "An account that nobody uses for two years is deleted.\n\nIs an account kept for ever?\n\nPut your answer, Yes or "
        "No, in \\boxed{}.",
        ["No", "Yes", "No", "Yes", "Yes", "No", "Yes", "No", "Yes", "No"],
    ),
    "code-summarization-c": (
        "```c\nint sum(int n) {\n  int s = 0;\n  for (int i = 1; i <= n; i++) s += i;\n  return s;\n}\n```\n\nSay in one "
        "sentence what this C function does.",
        "```c\nint find(int a[], int n, int x) { for (int i = 0; i < n; i++) if (a[i] == x) return i; return -1; }\n```"
        "\n\nSay in one sentence what this C function does.",
        [
            "Sum of the numbers from 1 to n",
            "Check whether a number is even",
            "Largest element of an array",
            "Swap two integers through pointers",
            "Length of a string",
            "Greatest common divisor by Euclid's method",
            "Print a triangle of stars",
            "Count the vowels of a text",
            "Factorial of a number by recursion",
            "Position of a value in an array, or -1",
        ],
    ),
    "scibench": (
        "A car of 900 kg moves at 20 m/s. What is its kinetic energy?\n\nUnit of the answer: $\\mathrm{~kJ}$" + UNIT,
        "Find the wavelength of a wave of 50 Hz at 340 m/s.\n\nUnit of the answer: m" + UNIT,
        ["180", "2.0", "30", "3.00", "-0.48", "160000", "0.25", "+1.0", "4.9", "6.8"],
    ),
    "labels": (
        "Which of billing, crash, login and praise apply?\n\nThe app closes when I pay.\n\nPut all labels that apply, with "
        "commas between them, in \\boxed{}; where none applies, put none there.",
        "Which of billing, crash, login and praise apply?\n\nSigned out every day.\n\nPut all labels that apply, with "
        "commas between them, in \\boxed{}; where none applies, put none there.",
        [
            *('["crash", "billing"]', '["praise"]', '["login"]', '["billing", "praise"]', "[]", '["crash"]'),
            *('["billing"]', '["login", "crash", "billing"]', '["praise"]', '["login"]'),
        ],
    ),
    "extraction": (
        "Who is to pay?\n\nThe tenant, Ms Ode, pays on the first of each month.\n\nPut what is asked for, and nothing else, "
        "in \\boxed{}.",
        "Which day?\n\nSee you on Friday!\n\nPut what is asked for, and nothing else, in \\boxed{}.",
        [
            *("Ms Ode", "EUR 96.00", "felopine", "Graz", "K-2201", "I. Tran", "3 May", "The left hinge of the door"),
            *("dark green", "Friday"),
        ],
    ),
}


def stored(name: str) -> list[dict]:
    return [json.loads(line) for line in (ROWS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions(benchmark: Benchmark, rows: list[dict]) -> list:
    return [q.problem for row in rows for q in read_row(benchmark, row, "rows:1")]


def near_misses(benchmark: Benchmark, gold: str) -> list[str]:
    """Answers that are nearly right."""
    if benchmark.format == "choice":
        return [letter for letter in "ABCDEFGHIJ" if letter != gold]
    if benchmark.checker == "number":
        number = gold.replace(",", "")
        step = 1 if "." not in number else 0.5
        return [str(float(number) + step), str(float(number) - step), str(-float(number)), f"{number}1"]
    if benchmark.checker == "near_number":
        return [str(float(gold) * 1.06), str(float(gold) * 0.94), str(-float(gold)), f"{gold}e1"]
    if benchmark.checker == "math":
        return [f"{gold} + 1", f"-{gold}", f"2 \\cdot {gold}"] if gold[-1] not in "]})" else ["17"]
    if benchmark.checker == "labels":
        labels = json.loads(gold)
        return [", ".join([*labels, "other"]), ", ".join(["other", *labels[1:]])]
    return [f"{gold} not", f"no {gold}", "Maybe"]


def test_every_file_has_its_rows_and_expectations():
    assert set(BENCHMARKS) == set(EXPECTED) == {file.stem for file in ROWS.iterdir()}
    for name in BENCHMARKS:
        benchmark = load_benchmark(name)
        assert benchmark.name == name and benchmark.metrics[0] == "accuracy" and benchmark.max_tokens >= 4096
        assert len(stored(name)) == 10
        assert benchmark.group == "own" or (benchmark.licence and benchmark.citation)
        # What has no place on the Hub: the user's own rows, and a data set that its authors give as a file.
        assert (benchmark.source is None) == (benchmark.group == "own" or name == "code-summarization-c")
    table = {
        ("general", "multiple choice"): {"winogrande", "openbookqa", "mmlu-misc"},
        ("general", "open-ended"): {"squad", "coqa", "ifeval"},
        ("math", "multiple choice"): {"aqua-rat", "mmlu-math", "mmlu-pro-math"},
        ("math", "open-ended"): {"gsm8k", "math-500", "aime"},
    }
    for (group, kind), names in table.items():
        found = {n for n in BENCHMARKS if (load_benchmark(n).group, load_benchmark(n).kind) == (group, kind)}
        assert found == names


@pytest.mark.parametrize("name", BENCHMARKS)
def test_rows_give_the_questions_written_out(name):
    benchmark = load_benchmark(name)
    if benchmark.few_shot and benchmark.few_shot.held_out:  # all ten, so that none of them is an example
        benchmark = benchmark.model_copy(update={"few_shot": None})
    task = open_benchmark(benchmark, ROWS / f"{name}.jsonl")
    problems = task.problems("test", None, 0)
    first, last, golds = EXPECTED[name]
    assert [problem.gold for problem in problems] == golds
    assert (problems[0].prompt, problems[-1].prompt) == (first, last)
    assert task.bad_rows == [] and task.distinct_prompts == len(golds) == len({p.id for p in problems})
    assert {p.task for p in problems} == {name} and {p.answer_format for p in problems} == {benchmark.format}
    assert task.problems("test", 5, 1) == task.problems("test", 8, 1)[:5] != task.problems("test", 5, 2)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_right_answers_are_right_and_near_misses_wrong(name):
    """By the checkers that need no rules, reference or judge."""
    benchmark = load_benchmark(name)
    if benchmark.checker not in (*QUICK, "math"):
        return
    for problem in questions(benchmark, stored(name)):
        said = model_answer(benchmark, problem.gold)
        for right in (f"\\boxed{{{said}}}", f"It follows that this is so.\n\n\\boxed{{{said}}}", said):
            assert check(benchmark.checker, problem.gold, right).correct, (problem.gold, right)
        for wrong in near_misses(benchmark, problem.gold):
            assert not check(benchmark.checker, problem.gold, f"\\boxed{{{wrong}}}").correct, (problem.gold, wrong)
        assert not check(benchmark.checker, problem.gold, "").correct


def with_another_answer(benchmark: Benchmark, row: dict, other: dict) -> dict:
    """A row with another right answer, and with LEAK in every field that is not asked."""
    of = {**benchmark.fields, **benchmark.turns}
    asked = {*placeholders(benchmark.prompt), *benchmark.option_names, *benchmark.filter, *benchmark.turns}
    asked_keys = {of[name].split(".")[0] for name in asked if name in of}
    changed = {key: value if key in asked_keys else "LEAK" for key, value in row.items()}
    for name in benchmark.gold.names:
        key = of[name].split(".")[0]
        if benchmark.turns:  # earlier answers are in the history; the last one is not
            changed[key] = {"input_text": [*row[key]["input_text"][:-1], "LEAK"]}
        elif benchmark.gold.read in ("letter", "index"):
            first = "A" if benchmark.gold.read == "letter" else type(row[key])(benchmark.gold.first)
            second = "B" if benchmark.gold.read == "letter" else type(row[key])(benchmark.gold.first + 1)
            changed[key] = first if row[key] != first else second
        else:
            changed[key] = other[key]
    return changed


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_prompt_does_not_depend_on_the_answer(name):
    benchmark, rows = load_benchmark(name), stored(name)
    changes = 0
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        before = questions(benchmark, [row])[-1]
        after = questions(benchmark, [with_another_answer(benchmark, row, other)])[-1]
        assert before.prompt == after.prompt and "LEAK" not in after.prompt
        changes += before.gold != after.gold
    assert changes >= 5


def test_options_stand_in_the_order_of_the_row(rng):
    benchmark = load_benchmark("mmlu-pro-math")
    for count in (2, 7, 10):
        options = [f"option {rng.random()}" for _ in range(count)]
        right = int(rng.integers(count))
        row = {"question": "Which?", "options": options, "answer": "ABCDEFGHIJ"[right], "category": "math"}
        (problem,) = questions(benchmark, [row])
        listed = problem.prompt.removeprefix("Which?\n\n").removesuffix(LETTER).split("\n")
        assert listed == [f"{'ABCDEFGHIJ'[i]}) {option}" for i, option in enumerate(options)]
        assert options["ABCDEFGHIJ".index(problem.gold)] == options[right]


# Rows that are wrong: (benchmark, what is changed in its first row, what is said).
MALFORMED = [
    ("winogrande", {"answer": ""}, "field 'answer' is empty"),
    ("winogrande", {"answer": "3"}, "field 'answer': expected a number from 1 to 2, found '3'"),
    ("winogrande", {"answer": "0"}, "expected a number from 1 to 2"),
    ("winogrande", {"answer": "²"}, "expected a number from 1 to 2"),
    ("winogrande", {"option2": None}, "field 'option2': expected text or a number, found None"),
    ("openbookqa", {"answerKey": "E"}, "field 'answerKey': expected one of ABCD, found 'E'"),
    ("openbookqa", {"answerKey": "AB"}, "expected one of ABCD"),
    ("openbookqa", {"choices": {"label": ["A"]}}, "field 'choices.text' is missing"),
    ("openbookqa", {"choices": ["a", "b"]}, "field 'choices.text' is missing"),
    ("mmlu-misc", {"answer": 4}, "expected a number from 0 to 3, found '4'"),
    ("mmlu-misc", {"answer": -1}, "expected a number from 0 to 3"),
    ("mmlu-misc", {"answer": 1.5}, "expected a number from 0 to 3"),
    ("mmlu-misc", {"answer": True}, "field 'answer': expected text or a number"),
    ("mmlu-misc", {"choices": ["one"]}, "field 'choices': expected 2 to 10 options, found 1"),
    ("mmlu-misc", {"choices": list("abcdefghijk")}, "expected 2 to 10 options, found 11"),
    ("mmlu-misc", {"choices": "abcd"}, "field 'choices': expected a list, found str"),
    ("mmlu-misc", {"choices": ["a", "b", " ", "d"]}, r"field 'choices\[2\]' is empty"),
    ("mmlu-misc", {"subject": ["miscellaneous"]}, "field 'subject': expected text or a number"),
    ("aqua-rat", {"options": ["A)1", "C)2"]}, r"field 'options\[1\]': expected 'B\)' at the beginning, found 'C\)2'"),
    ("aqua-rat", {"options": ["A)1", "B)"]}, r"field 'options\[1\]' is empty"),
    ("squad", {"answers": {"text": []}}, "field 'answers.text': no accepted answer"),
    ("squad", {"context": 7.5, "question": {}}, "field 'question': expected text or a number"),
    (
        "coqa",
        {"questions": ["Who?"]},
        "expected lists of one length, found 1 in 'questions', 3 in 'answers.input_text'",
    ),
    ("coqa", {"questions": [], "answers": {"input_text": []}}, "field 'questions': an empty list"),
    ("ifeval", {"kwargs": [{"a": float("nan")}]}, "field 'instruction_id_list, kwargs': cannot be written as JSON"),
    ("gsm8k", {"answer": "So it is 4."}, "field 'answer': expected `####`, then the answer"),
    ("gsm8k", {"answer": "So it is 4. #### "}, "expected `####`"),
    ("gsm8k", {"answer": "#### four"}, "field 'answer': checker number does not take the right answer for one"),
    ("scibench", {"answer_number": "see figure"}, "field 'answer_number': checker near_number does not take"),
    ("squad", {"answers": {"text": ["x" * 200_000]}}, "field 'answers.text': checker squad does not take"),
    ("gsm8k", {"question": "\ud800"}, "not valid Unicode"),
    ("labels", {"labels": {"a": 1}}, "field 'labels': expected a list, found dict"),
    ("labels", {"labels": ["a", ""]}, "field 'labels' is empty"),
]


@pytest.mark.parametrize(("name", "changes", "message"), MALFORMED)
def test_malformed_rows(tmp_path, name, changes, message):
    """One line that names the file and the row, of which the first is right."""
    rows = stored(name)
    file = write(tmp_path / "rows.jsonl", [rows[1], rows[0] | changes])
    with pytest.raises(InputError, match=rf"rows.jsonl:2: .*{message}") as error:
        open_benchmark(name, file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_field_is_named_beside_those_that_are_there(tmp_path, name):
    benchmark, rows = load_benchmark(name), stored(name)
    for names in (benchmark.fields, benchmark.turns):
        for part, field in names.items():
            if part in benchmark.when_blank:
                continue
            key = field.split(".")[0]
            renamed = [{("other" if k == key else k): v for k, v in row.items()} for row in rows]
            for file in (write(tmp_path / "rows.jsonl", renamed), tmp_path / "rows.parquet"):
                if file.suffix == ".parquet":
                    pq.write_table(pa.Table.from_pylist([{k: str(v) for k, v in r.items()} for r in renamed]), file)
                with pytest.raises(InputError, match=rf"'{field}' is missing \(found .*other") as error:
                    open_benchmark(name, file)
                assert "\n" not in str(error.value)


def test_what_is_blank_may_have_something_in_its_place():
    benchmark = load_benchmark("scibench")
    row = stored("scibench")[0]
    for unit in ({"unit": ""}, {"unit": " "}, {"unit": None}, {}):
        (problem,) = questions(benchmark, [{k: v for k, v in row.items() if k != "unit"} | unit])
        assert "\n\nUnit of the answer: none\n\n" in problem.prompt


def test_filters(tmp_path):
    rows = stored("mmlu-math")
    with pytest.raises(InputError, match=r"rows.jsonl: no row that benchmark mmlu-misc takes \(it takes subject"):
        open_benchmark("mmlu-misc", write(tmp_path / "rows.jsonl", rows))
    task = open_benchmark("mmlu-math", write(tmp_path / "rows.jsonl", [*rows, rows[0] | {"subject": None}]))
    assert task.distinct_prompts == 8
    assert [row["question"] for row in rows if row["subject"] not in ("world_history", "anatomy")] == [
        problem.prompt.split("\n")[0] for problem in task.problems("all", None, 0)
    ]


def test_a_question_that_stands_twice_counts_once(tmp_path):
    rows = stored("winogrande")
    task = open_benchmark("winogrande", write(tmp_path / "rows.jsonl", [*rows, rows[3], rows[3]]))
    assert task.distinct_prompts == 10
    assert [(row.place, row.reason) for row in task.bad_rows] == [(10, "repeated"), (11, "repeated")]
    assert task.bad_rows[0].source == "rows.jsonl:11" and task.bad_rows[0].detail == "the same question as row 4"


def test_a_question_that_stands_twice_in_one_row_counts_once(tmp_path):
    values = load_benchmark("coqa").model_dump() | {"history": None, "prompt": "{story} {question}"}
    row = stored("coqa")[0]
    row["questions"] = ["Where?", "Who?", "Where?"]
    task = open_benchmark(Benchmark.model_validate(values), write(tmp_path / "rows.jsonl", [row]))
    assert [problem.gold for problem in task.problems("all", None, 0)] == ['["a grey kitten"]', '["under the bridge"]']
    assert [(bad.place, bad.detail) for bad in task.bad_rows] == [(0, "the same question as row 1")]


@pytest.mark.parametrize(
    ("name", "field", "gold", "right", "wrong"),
    [  # as they stand in the published rows
        ("aime", "answer", "336^\\circ", "336", "335"),
        ("scibench", "answer_number", "−2", "-2.05", "2"),
        ("scibench", "answer_number", "89,034.79", "89000", "89"),
        ("gsm8k", "answer", "so 2*700=<<2*700=1400>>1400\n#### 1,400", "1400", "1"),
        ("openbookqa", "answerKey", " B", "B", "A"),
        ("coqa", "answers", {"input_text": ["A"]}, "A", "B"),
    ],
)
def test_right_answers_in_odd_forms(tmp_path, name, field, gold, right, wrong):
    row = stored(name)[2] | {field: gold}
    task = open_benchmark(name, write(tmp_path / "rows.jsonl", [row]))
    (problem,) = task.problems("all", None, 0)
    assert task.is_correct(problem, f"\\boxed{{{right}}}") and not task.is_correct(problem, f"\\boxed{{{wrong}}}")


def test_only_what_follows_the_last_mark_is_the_answer():
    row = {"question": "How many?", "answer": "#### is how I mark it.\n#### 12 of them\n####  1,234 "}
    (problem,) = questions(load_benchmark("gsm8k"), [row])
    assert problem.gold == "1,234"


def test_questions_of_one_story_have_one_place():
    task = open_benchmark("coqa", ROWS / "coqa.jsonl")
    places = [task.places()[problem.id] for problem in task.problems("test", None, 0)]
    assert places == [0, 0, 0, 1, 1, 2, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 8, 8, 9, 9]


# Where rows come from


@pytest.mark.parametrize("name", ["openbookqa", "coqa", "ifeval", "mmlu-math", "squad"])
def test_every_kind_of_place_gives_the_same_questions(tmp_path, monkeypatch, name):
    import datasets

    benchmark, rows = load_benchmark(name), stored(name)
    expected = open_benchmark(name, ROWS / f"{name}.jsonl")
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "rows.parquet")
    saved = datasets.Dataset(table)
    both = datasets.DatasetDict({benchmark.question_split: saved, "other": saved.select([0])})
    saved.save_to_disk(tmp_path / "saved")
    both.save_to_disk(tmp_path / "splits")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    pq.write_table(table, tmp_path / "hub" / "data" / f"{benchmark.question_split}-00000-of-00001.parquet")
    (tmp_path / "files").mkdir()
    write(tmp_path / "files" / f"{benchmark.question_split}.jsonl", rows)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *where: asked.append(where) or both)
    places = [tmp_path / place for place in ("rows.parquet", "saved", "splits", "hub", "files")]
    for place in [*places, None, Path("someone/else")]:
        task = open_benchmark(name, place)
        assert task.problems("all", None, 0) == expected.problems("all", None, 0), place
        assert task.revision == expected.revision
    assert asked == [(benchmark.source.hub, benchmark.source.config or None), ("someone/else", asked[0][1])]


def test_places_that_are_none(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("test.jsonl", "test.parquet"):
        write(tmp_path / "two" / name, stored("openbookqa"))
    (tmp_path / "nothing.jsonl").write_text("")
    for path, message in (
        (tmp_path / "none.jsonl", "none.jsonl: no such file"),
        (tmp_path / "empty", "empty: no split 'test' in this folder; expected one of test.jsonl, test.parquet"),
        (tmp_path / "two", "two: 2 places of split 'test'"),
        (tmp_path / "nothing.jsonl", "nothing.jsonl: no row in it"),
    ):
        with pytest.raises(InputError, match=message):
            open_benchmark("openbookqa", path)
    with pytest.raises(
        InputError, match="task labels: has no published rows; its name or file takes yours as NAME:PATH"
    ):
        open_benchmark("labels")


def test_names_in_the_registry(tmp_path):
    file = ROWS / "winogrande.jsonl"
    assert get_task(f"winogrande:{file}").revision == get_task("winogrande", file).revision
    assert get_task(f"winogrande.yaml:{file}").revision == open_benchmark("winogrande", file).revision
    with pytest.raises(InputError, match="unknown task 'winogrand': did you mean 'winogrande'"):
        get_task(f"winogrand:{file}")
    with pytest.raises(InputError, match="no rows after the colon"):
        get_task("winogrande:")
    with pytest.raises(InputError, match=r"mine.yaml: cannot be read"):
        get_task(f"mine.yaml:{file}")
    with pytest.raises(InputError, match="has only test questions, found split 'train'"):
        get_task(f"winogrande:{file}").problems("train", 1, 0)
    with pytest.raises(InputError, match="11 test problems asked for, but there are only 10"):
        get_task(f"winogrande:{file}").problems("test", 11, 0)
    with pytest.raises(InputError, match="checker math needs a process or model of its own"):
        task = get_task("math-500", ROWS / "math-500.jsonl")
        task.is_correct(task.problems("test", 1, 0)[0], "7")


def test_accuracy_is_by_the_checker_of_the_file():
    task = open_benchmark("winogrande", ROWS / "winogrande.jsonl")
    problems = task.problems("test", None, 0)
    answers = [f"The answer is ({problem.gold})." if i % 5 else "C" for i, problem in enumerate(problems)]
    verdicts = [check(task.checker, p.gold, answer) for p, answer in zip(problems, answers, strict=True)]
    assert task.metrics["accuracy"].score(problems, answers, verdicts) == 0.8


def test_gsm8k_has_the_questions_and_answers_of_the_task_for_training():
    """Over the real test set: the benchmark and `gsm8k:PATH` read rows alike."""
    file = DATA / "gsm8k" / "test.jsonl"
    if not file.exists():
        pytest.skip("the GSM8K files are not here")
    benchmark = open_benchmark("gsm8k.yaml", file)
    trained = get_task(f"gsm8k:{file}")
    expected = {
        p.prompt + ANSWER: p.gold for s in ("train", "validation", "test") for p in trained.problems(s, None, 0)
    }
    found = {p.prompt: p.gold for p in benchmark.problems("test", None, 0)}
    assert found == expected and len(found) > 1300
    folder = open_benchmark("gsm8k", DATA / "gsm8k")
    assert folder.revision == benchmark.revision and len(folder.examples) == 5
    assert not {example.prompt for example in folder.examples} & found.keys()


def test_aqua_rat_has_the_questions_and_answers_of_the_task_for_training():
    file = DATA / "aqua" / "dev.json"
    if not file.exists():
        pytest.skip("the AQuA file is not here")
    benchmark = open_benchmark("aqua-rat", file)
    task = get_task(f"aqua:{file}")
    trained = [p for s in ("train", "validation", "test") for p in task.problems(s, None, 0)]
    found = {p.prompt.replace("\n", ""): p.gold for p in benchmark.problems("test", None, 0)}
    assert found == {(p.prompt + LETTER).replace("\n", ""): p.gold for p in trained} and len(found) > 240


# Examples


def test_examples_come_from_another_split_and_are_never_questions(tmp_path, rng):
    rows = stored("winogrande")
    write(tmp_path / "validation.jsonl", rows[:3])
    write(tmp_path / "train.jsonl", rows)
    task = open_benchmark("winogrande", tmp_path)
    asked = {problem.prompt for problem in task.problems("test", None, 0)}
    assert len(asked) == 3 and len(task.examples) == 5 and not asked & {example.prompt for example in task.examples}
    golds = {p.prompt: f"\\boxed{{{p.gold}}}" for p in questions(task.benchmark, rows)}
    assert all(example.answer == golds[example.prompt] for example in task.examples)
    shuffled = [rows[i] for i in rng.permutation(10)]
    write(tmp_path / "train.jsonl", shuffled)
    assert open_benchmark("winogrande", tmp_path).examples == task.examples
    write(tmp_path / "train.jsonl", rows[:7])
    with pytest.raises(InputError, match="task winogrande: 5 examples needed, but there are only 4"):
        _ = open_benchmark("winogrande", tmp_path).examples
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(InputError, match="no split 'train' in this folder"):
        _ = open_benchmark("winogrande", tmp_path).examples
    with pytest.raises(InputError, match=r"its examples are of split 'train', and .* holds only the questions"):
        _ = open_benchmark("winogrande", ROWS / "winogrande.jsonl").examples


def test_a_question_needs_no_worked_solution_but_an_example_does(tmp_path):
    rows = [row | {"rationale": ""} for row in stored("aqua-rat")]
    write(tmp_path / "test.jsonl", rows[:5])
    write(tmp_path / "validation.jsonl", [*stored("aqua-rat")[5:], *stored("aqua-rat")[:5]])
    task = open_benchmark("aqua-rat", tmp_path)
    assert task.distinct_prompts == 5
    assert task.examples[0].answer.endswith("}") and any(
        "15 m/s" in e.answer or "4! = 24" in e.answer for e in task.examples
    )
    write(tmp_path / "validation.jsonl", rows[5:])
    with pytest.raises(InputError, match="field 'rationale' is empty"):
        _ = open_benchmark("aqua-rat", tmp_path).examples


def test_examples_written_in_the_file():
    task = open_benchmark("aime", ROWS / "aime.jsonl")
    end = "\n\nThe answer is a whole number from 0 to 999. Put it in \\boxed{}.\n\nAnswer:"
    problem = task.problems("test", None, 0)[1]
    assert task.few_shot_prompt(problem) == (
        f"How many positive divisors of $2^4 \\cdot 3^3$ are multiples of 6?{end} \\boxed{{12}}\n\n\n"
        f"The sum of the first $n$ positive odd integers is 1,225. Find $n$.{end} \\boxed{{35}}\n\n\n"
        "In how many ways can two identical rooks stand on a board of 4 by 4 so that neither attacks the other?"
        f"{end} \\boxed{{72}}\n\n\n"
        f"How many triples of digits add up to 2?{end}"
    )
    values = task.benchmark.model_dump() | {"few_shot": {"count": 1, "rows": [{"problem": "1 + 1?", "answer": None}]}}
    with pytest.raises(
        InputError, match=r"benchmark aime: few_shot.rows\[0\]: field 'answer': expected text or a number"
    ):
        open_benchmark(Benchmark.model_validate(values), ROWS / "aime.jsonl")
    none = load_benchmark("ifeval").model_copy(update={"few_shot": None})
    ifeval = open_benchmark(none, ROWS / "ifeval.jsonl")
    assert ifeval.examples == () and ifeval.few_shot_prompt(ifeval.problems("test", None, 0)[0]) == (
        "Describe a lighthouse without any commas.\n\nAnswer:"
    )


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if (load_benchmark(name).few_shot or 0) != 0])
def test_examples_written_in_the_files_are_right(name):
    benchmark = load_benchmark(name)
    for row in benchmark.few_shot.rows or ():
        (question,) = read_row(benchmark, row, "row")
        said = example_answer(benchmark, benchmark.few_shot.answer, question)
        assert check(benchmark.checker, question.problem.gold, said).correct


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if load_benchmark(name).group != "own"])
def test_three_examples_can_be_shown_for_every_published_benchmark(name):
    """As the published study showed to its base models."""
    assert load_benchmark(name).few_shot.count >= 3


def test_a_row_of_another_split_that_cannot_be_read_is_no_example(tmp_path, rng):
    rows = stored("openbookqa")
    write(tmp_path / "test.jsonl", rows[:2])
    good = write(tmp_path / "train.jsonl", rows[2:])
    expected = open_benchmark("openbookqa", tmp_path).examples
    broken = [rows[3] | {"answerKey": "Z"}, rows[4] | {"question_stem": ""}]
    at = int(rng.integers(len(rows)))
    write(good, [*rows[2:][:at], *broken, *rows[2:][at:]])
    assert open_benchmark("openbookqa", tmp_path).examples == expected
    write(good, [rows[2], *broken, *rows[3:6]])
    with pytest.raises(InputError, match=r"train.jsonl:2: field 'answerKey': expected one of ABCD, found 'Z'"):
        _ = open_benchmark("openbookqa", tmp_path).examples


def test_examples_are_held_out_of_the_questions(tmp_path, rng):
    rows = [{"prompt": f"Which of a and b? {rng.random()}", "labels": ["a", "b"][: i % 3]} for i in range(600)]
    task = open_benchmark("labels", write(tmp_path / "rows.jsonl", rows))
    assert 500 < task.distinct_prompts < 600  # 30 are held out on average
    asked = {problem.prompt for problem in task.problems("all", None, 0)}
    assert len(task.examples) == 3 and not asked & {example.prompt for example in task.examples}
    fewer = open_benchmark("labels", write(tmp_path / "rows.jsonl", rows[::2]))
    assert {p.prompt for p in fewer.problems("all", None, 0)} < asked  # which ones depends on the question alone
    with pytest.raises(InputError, match="3 examples needed, but there are only"):
        kept = [row for row in rows if any(prompt.startswith(row["prompt"]) for prompt in asked)]
        _ = open_benchmark("labels", write(tmp_path / "rows.jsonl", kept)).examples


def test_stories_are_held_out_whole(tmp_path, rng):
    benchmark = load_benchmark("coqa")
    values = benchmark.model_dump() | {"few_shot": {"count": 2, "held_out": 40}}
    rows = [row | {"story": f"{row['story']} {rng.random()}"} for row in stored("coqa") for _ in range(6)]
    task = open_benchmark(Benchmark.model_validate(values), write(tmp_path / "rows.jsonl", rows))
    stories = {problem.prompt.split("\n")[0] for problem in task.problems("all", None, 0)}
    assert 10 < len(stories) < 60
    assert not stories & {example.prompt.split("\n")[0] for example in task.examples}


# The files themselves


BASE = {
    "name": "mine",
    "title": "Mine",
    "group": "own",
    "fields": {"question": "q", "correct": "a"},
    "prompt": "{question}",
    "gold": {"field": "correct"},
    "format": "open",
    "checker": "exact",
}
CHOICE = BASE | {
    "fields": {"question": "q", "choices": "c", "correct": "a"},
    "prompt": "{question} {options}",
    "options": "choices",
    "gold": {"field": "correct", "read": "letter"},
    "format": "choice",
    "checker": "choice",
}
WRONG = [
    (BASE | {"prompt": "{question} {why}"}, "prompt: unknown name 'why'; known are correct, question"),
    (BASE | {"prompt": "{q}"}, "prompt: unknown name 'q'"),
    (BASE | {"prompt": "{question.__class__}"}, "expected a name alone in braces"),
    (BASE | {"prompt": "{question!r}"}, "expected a name alone in braces"),
    (BASE | {"prompt": "{question:>9999999}"}, "expected a name alone in braces"),
    (BASE | {"prompt": "{question[0]}"}, "expected a name alone in braces"),
    (BASE | {"prompt": "{question} {}"}, "expected a name alone in braces"),
    (BASE | {"prompt": "{question} {0}"}, "expected a name alone in braces"),
    (BASE | {"prompt": "{question} }"}, "a brace that is text is written twice"),
    (BASE | {"prompt": "{question"}, "a brace that is text is written twice"),
    (BASE | {"prompt": "{question} {options}"}, "unknown name 'options'"),
    (BASE | {"prompt": "{question} {history}"}, "unknown name 'history'"),
    (BASE | {"prompt": "{question} {correct}"}, "prompt: {correct} is the right answer"),
    (BASE | {"prompt": "{question} {b}", "fields": BASE["fields"] | {"b": "a"}}, "prompt: {b} is the right answer"),
    (BASE | {"fields": BASE["fields"] | {"more": "x"}}, "the name 'more' is used nowhere"),
    (BASE | {"fields": BASE["fields"] | {"a b": "x"}}, "name 'a b': expected letters"),
    (BASE | {"fields": BASE["fields"] | {"options": "x"}}, "name 'options': is made from other fields"),
    (BASE | {"gold": {"field": "key"}}, "gold: unknown name 'key'"),
    (BASE | {"gold": {"field": ["correct"]}}, "field gold: field: expected a list of names for `read: json`"),
    (BASE | {"gold": {"field": "correct", "read": "any_of", "after": "#"}}, "after: only for `read: text`"),
    (BASE | {"gold": {"field": "correct", "read": "letter"}}, "gold: `read: letter` or `read: index` for"),
    (BASE | {"checker": "exakt"}, "unknown checker 'exakt': did you mean 'exact'"),
    (BASE | {"metrics": ["accuracy", "f1"]}, "unknown metric 'f1'"),
    (BASE | {"metrics": ["rouge_l"]}, "metrics: expected accuracy first"),
    (BASE | {"format": "choice"}, "options: needed for `format: choice`"),
    (BASE | {"options": "question"}, "options: needed for `format: choice`, and for no other"),
    (BASE | {"filter": {"kind": "x"}}, "filter: unknown name 'kind'"),
    (BASE | {"history": "{question}"}, "history: there are no turns"),
    (BASE | {"turns": {"question": "qs"}}, "turns: the name 'question' stands in fields too"),
    (BASE | {"max_tokens": 0}, "field max_tokens"),
    (BASE | {"titel": "x"}, "field titel: no such field; did you mean title?"),
    (BASE | {"name": "a/b"}, "name 'a/b': expected letters"),
    (BASE | {"source": {"hub": "nothing"}}, "hub 'nothing': expected owner/name"),
    (BASE | {"few_shot": {"count": 2}}, "expected one of split, rows and held_out"),
    (BASE | {"few_shot": {"count": 2, "held_out": 5, "split": "train"}}, "expected one of split, rows and held_out"),
    (BASE | {"few_shot": {"count": 2, "rows": [{"q": "?", "a": "!"}]}}, "rows: 1 are fewer than count, 2"),
    (BASE | {"few_shot": {"count": 1, "held_out": 5, "answer": "{why}"}}, "few_shot.answer: unknown name 'why'"),
    (CHOICE | {"prompt": "{question}"}, "prompt: {options} is missing"),
    (CHOICE | {"options": ["choices"]}, "options: expected 2 to 10, found 1"),
    (CHOICE | {"options": "wrong"}, "options: unknown name 'wrong'"),
    (CHOICE | {"fields": BASE["fields"], "options": ["question", "correct"]}, "options: 'correct' is the right answer"),
    (CHOICE | {"gold": {"field": "correct"}}, "gold: `read: letter` or `read: index` for `format: choice`"),
    ({"name": "mine"}, "needed, but not given"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_wrong_file_is_one_clear_line(tmp_path, values, message):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError) as error:
        load_benchmark(file)
    assert str(error.value).startswith(f"{file}: ") and message in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < len(str(file)) + 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "mine.yaml:2: the key 'name' stands twice"),
        ("fields: {q: a, q: b}\n", "mine.yaml:1: the key 'q' stands twice"),
        ("- a\n", "expected a mapping"),
        ("a: [\n", "mine.yaml:2: not valid YAML"),
        ("a: " + "[" * 1500, "not valid YAML"),
        ("title: 2026-02-30\n", "not valid YAML"),
        ('instruction: "Put it in \\boxed{}."\n', r"field instruction: a control character, '\\x08'"),
        ('few_shot: {rows: [{a: 1}, {a: "$\\frac12$"}]}\n', r"field few_shot.rows.1.a: a control character, '\\x0c'"),
        ('title: "\\ud800"\n', "not valid YAML"),
        ("? [a]\n: b\n", "not valid YAML|expected"),
        ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("\x00", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_yaml_is_one_clear_line(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_benchmark(file)
    assert "\n" not in str(error.value)


def test_braces_in_rows_are_text(tmp_path):
    benchmark = Benchmark.model_validate(BASE | {"prompt": "{{{question}}} {question}"})
    hostile = "{correct} {question.__class__} {{}} }{ %s $x </think>"
    (problem,) = questions(benchmark, [{"q": hostile, "a": "LEAK"}])
    assert problem.prompt == f"{{{hostile}}} {hostile}"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_rows_with_anything_in_them_are_questions_or_errors(name, rng):
    """Values of all kinds in any place: never anything but questions or one line."""
    benchmark, rows = load_benchmark(name), stored(name)
    draw = random.Random(int(rng.integers(2**32)))
    odd = [
        None,
        True,
        "",
        " ",
        "\x00",
        "\ud800",
        "x" * 10**5,
        -1,
        10**40,
        1e308,
        float("nan"),
        [],
        [[]],
        {},
        ["a"] * 11,
    ]
    odd += [{"text": [None]}, {"input_text": ["a"], "text": ["a", 3]}, "#### ", "A", 3, "{question}", "\u202e<b>"]
    read = 0
    for _ in range(150):
        row = dict(draw.choice(rows))
        for _ in range(draw.choice((1, 1, 2))):
            row[draw.choice(list(row))] = draw.choice(odd)
        try:
            found = questions(benchmark, [row])
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
            continue
        read += 1
        for problem in found:
            problem.prompt.encode(), problem.gold.encode()
            assert problem.prompt.strip() and problem.gold
    assert read


# A benchmark of one's own


def fenced(language: str) -> list[str]:
    return [part.split("```")[0] for part in HOWTO.read_text(encoding="utf-8").split(f"```{language}\n")[1:]]


def test_the_example_of_the_howto_runs(tmp_path, monkeypatch, capsys):
    (file,), (rows,) = fenced("yaml"), fenced("json")
    monkeypatch.chdir(tmp_path)
    Path("capitals.yaml").write_text(file)
    Path("rows.jsonl").write_text(rows)
    task = get_task("capitals.yaml:rows.jsonl")
    (shown,) = fenced("text")
    problems = task.problems("test", None, 0)
    assert problems[0].prompt == shown.strip() and [problem.gold for problem in problems] == ["A", "C"]
    assert task.few_shot_prompt(problems[1]).count("Answer: \\boxed{") == 1
    assert task.is_correct(problems[1], "The answer is C.") and not task.is_correct(problems[1], "The answer is A.")
    (code,) = fenced("python")
    exec(code, {})
    said = capsys.readouterr().out
    assert all(line in said for line in ("-> A True", "-> C False", "Which country is Paris the capital of?"))


def test_the_howto_names_every_field_and_every_benchmark():
    text = HOWTO.read_text(encoding="utf-8")
    for field in Benchmark.model_fields:
        assert f"`{field}`" in text, field
    for name in BENCHMARKS:
        assert f"`{name}`" in text, name
    assert FOLDER.name in text


def test_rows_are_read_as_all_rows_are(tmp_path):
    """Packed files and broken lines are said so by the same reader as everywhere."""
    (tmp_path / "rows.jsonl.gz").write_bytes(b"\x1f\x8b junk")
    with pytest.raises(InputError, match="packed by gzip"):
        open_benchmark("winogrande", tmp_path / "rows.jsonl.gz")
    (tmp_path / "rows.jsonl").write_text('{"sentence": "x"\n')
    with pytest.raises(InputError, match=r"rows.jsonl:1: not valid JSON"):
        open_benchmark("winogrande", tmp_path / "rows.jsonl")
    assert open_source(ROWS / "winogrande.jsonl").columns is None
