"""`distill study init`: from a file of questions to a preset that is valid and can be edited."""

import json
import string

import pytest
import yaml
from typer.testing import CliRunner

from distill.cli import app
from distill.errors import InputError
from distill.settings import load
from distill.study.init import LEAST_TRAINED, MOST_ASKED, fitting_checker, init_study
from distill.study.settings import StudySettings
from distill.tasks import get_task
from distill.tasks.problem import Problem
from distill.traces.asked import asked_questions, open_tasks

TEACHER = {"teacher": "http://127.0.0.1:9/v1", "model": "teacher"}
LABELS = ["billing", "crash", "praise", "other matter"]


def made_up(rng, count: int, answer) -> list[dict]:
    """Distinct questions, with `answer(number, text)`."""
    words = ["".join(rng.choice(list(string.ascii_lowercase), 6)) for _ in range(50)]
    texts = [f"{i}: " + " ".join(rng.choice(words, 12)) for i in range(count)]
    return [{"text": text, "about": {"gold": answer(i, text)}} for i, text in enumerate(texts)]


def write(path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ANSWERS = {
    "number": lambda rng: lambda i, text: f"${int(rng.integers(1, 10**6)):,}",
    "choice": lambda rng: lambda i, text: "ABCD"[rng.integers(4)],
    "labels": lambda rng: lambda i, text: ", ".join(rng.choice(LABELS, int(rng.integers(1, 3)), replace=False)),
    "extraction": lambda rng: lambda i, text: " ".join(text.split()[3:6]).title(),
    "math": lambda rng: lambda i, text: rf"\frac{{{rng.integers(1, 99)}}}{{{rng.integers(2, 99)}}}",
    "words": lambda rng: lambda i, text: f"answer {rng.integers(10**9)} of somebody",
}
EXPECTED = {
    "number": ("number", "open", None),
    "choice": ("choice", "choice", None),
    "labels": ("labels", "labels", ["macro_f1"]),
    "extraction": ("normalised", "extraction", ["rouge_l"]),
    "math": ("math", "open", None),
    "words": ("normalised", "open", ["rouge_l"]),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_the_file_that_is_written_loads_and_its_questions_are_those_of_the_data(kind, rng, tmp_path):
    rows = made_up(rng, 600, ANSWERS[kind](rng))
    data = write(tmp_path / "tickets.jsonl", rows)
    given = {"prompt": "text", "answer": "about.gold", "students": ["tiny", "Qwen/Qwen2.5-0.5B-Instruct"], **TEACHER}
    made = init_study(data, tmp_path / "new" / "study.yaml", margin=3.5, seeds=2, **given)
    settings = load(StudySettings, made.path)
    (task,) = settings.tasks
    read = get_task(task.task, task.data)
    found = yaml.safe_load(made.path.read_text())["tasks"][0]["data"]
    assert (found["checker"], found["answer_format"], found.get("metrics")) == EXPECTED[kind]
    assert [*read.metrics] == ["accuracy", *(EXPECTED[kind][2] or [])]
    asked = {p.prompt for p in read.problems("test", task.test, settings.data_seed)}
    trained = {p.prompt for p in read.problems("train", *settings.traces[0].tasks.values(), settings.data_seed)}
    assert not asked & trained and asked | trained <= {row["text"] for row in rows}
    assert len(asked) == made.summary["asked"] and len(trained) == made.summary["trained on"]
    of_teacher = settings.generate_settings(settings.traces[0])
    assert {p.prompt for p in asked_questions(of_teacher, open_tasks(of_teacher)).problems} == trained
    assert read.checker == "math" or all(read.is_correct(p, p.gold) for p in read.problems("all", None, 0))
    assert settings.margin_points == 3.5 and [size.seeds for size in settings.students] == [[0, 1]] * 2
    (verdict,) = [c for c in settings.contrasts if c.verdict_size]
    assert verdict.verdict_size == settings.students[-1].name == "qwen2.5_0.5b_instruct"
    assert settings.comparators.base.students == ["qwen2.5_0.5b_instruct"]
    assert settings.traces[0].gold == "answer" and {arm.answers for arm in settings.arms} == {"gold"}
    assert (settings.training.get("keep") == "verified") == (kind != "math")


def test_what_flags_say_goes_before_what_answers_look_like(rng, tmp_path):
    data = write(tmp_path / "own.jsonl", made_up(rng, 600, ANSWERS["number"](rng)))
    given = {"prompt": "text", "answer": "about.gold", "students": ["tiny"], "teacher": "vllm:some/model"}
    flags = {"checker": "exact", "answer_format": "extraction", "metrics": ["rouge_l", "squad_f1"]}
    made = init_study(data, tmp_path / "study.yaml", **given, **flags)
    (task,) = load(StudySettings, made.path).tasks
    assert (task.data.checker, task.data.answer_format, task.data.metrics) == (
        "exact",
        "extraction",
        ("rouge_l", "squad_f1"),
    )
    assert made.settings.traces[0].teacher.vllm == "some/model" and made.settings.hardware == "cpu-2core"


@pytest.mark.parametrize(
    ("students", "tokens"),
    [(["Qwen/Qwen2.5-0.5B"], 4096), (["Qwen/Qwen2.5-0.5B", "tiny"], 2048), (["small", "short"], 300), (["odd"], 4096)],
)
def test_answers_and_their_questions_have_room_in_every_student(students, tokens, rng, tmp_path):
    for name, config in (("short", {"max_position_embeddings": 600}), ("odd", {"max_position_embeddings": None})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    data = write(tmp_path / "own.jsonl", made_up(rng, 400, ANSWERS["number"](rng)))
    students = [str(tmp_path / one) if one in ("short", "odd") else one for one in students]
    made = init_study(data, tmp_path / "s.yaml", prompt="text", answer="about.gold", students=students, **TEACHER)
    assert made.settings.evaluation["max_tokens"] == tokens


def test_rows_that_cannot_be_read_are_left_out_on_request_and_counted(rng, tmp_path):
    rows = made_up(rng, 600, ANSWERS["number"](rng))
    broken, again = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    lines = [json.dumps(row) for row in [*rows, *rows[:again]]]
    for i in range(broken):
        lines.insert(
            int(rng.integers(len(lines))), ["{", '{"text": "x"}', '{"text": 3, "about": {"gold": 3}}', "[]"][i % 4]
        )
    data = tmp_path / "own.jsonl"
    data.write_text("\n".join(lines))
    assert "own.jsonl:" in refused(tmp_path, str(data))
    given = {"prompt": "text", "answer": "about.gold", "students": ["tiny"], **TEACHER}
    made = init_study(str(data), tmp_path / "s.yaml", skip_bad=True, **given)
    assert made.summary["questions"] == 600
    assert made.summary["rows that cannot be read"] == broken
    assert made.summary["rows that repeat a question"] == again
    settings = load(StudySettings, made.path)
    assert settings.tasks[0].data.skip_bad and settings.traces[0].data["own"].skip_bad


def test_no_more_are_asked_than_narrow_an_interval(rng, tmp_path):
    data = write(tmp_path / "add.jsonl", made_up(rng, 12 * MOST_ASKED, lambda i, text: i))
    made = init_study(
        data, tmp_path / "s.yaml", prompt="text", answer="about.gold", students=["tiny", "small"], **TEACHER
    )
    assert made.settings.tasks[0].test == MOST_ASKED
    assert made.settings.tasks[0].task == "own_add"  # the name is taken


@pytest.mark.parametrize(
    ("golds", "name"),
    [
        (["yes", "no"] * 20, "labels"),
        (["yes"] * 40, "normalised"),  # one label is none
        (["A"] * 40, "normalised"),
        (["(A)", "b."] * 20, "choice"),
        (["1,080", "-3", ".5", "12 %"] * 10, "number"),
        (["72 apples", "3 pears"] * 20, "labels"),
        ([f"{i} apples" for i in range(90)], "normalised"),
        (["x^2+1", "72"] * 20, "labels"),
    ],
)
def test_a_checker_fits_all_answers_or_is_not_taken(golds, name):
    problems = [Problem("t", f"question {i}", gold, "open") for i, gold in enumerate(golds)]
    assert fitting_checker(problems).name == name


def refused(tmp_path, data, **changed) -> str:
    given = {"prompt": "text", "answer": "about.gold", "students": ["tiny"], **TEACHER}
    with pytest.raises(InputError) as caught:
        init_study(data, tmp_path / "study.yaml", **given | changed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_studied_is_said_in_one_line_and_nothing_is_written(rng, tmp_path):
    rows = made_up(rng, 600, ANSWERS["number"](rng))
    data = write(tmp_path / "own.jsonl", rows)
    assert "'text', 'about'" in refused(tmp_path, data, prompt="question")  # the fields that there are
    assert "about.label" in refused(tmp_path, data, answer="about.label")
    assert "no such file" in refused(tmp_path, str(tmp_path / "none.jsonl"))
    assert "--students: found none" in refused(tmp_path, data, students=[])
    assert "did you mean 'tiny'" in refused(tmp_path, data, students=["tinny"])
    assert "is called tiny too" in refused(tmp_path, data, students=["tiny", "tiny"])
    assert "embedded tasks only" in refused(tmp_path, data, teacher="solver", model=None)
    assert "--model says which" in refused(tmp_path, data, model=None)
    assert "expected solver, the URL" in refused(tmp_path, data, teacher="localhost")
    assert "names its model" in refused(tmp_path, data, teacher="vllm:a/b")
    assert "did you mean 'number'" in refused(tmp_path, data, checker="numbers")
    assert "calls it no answer" in refused(tmp_path, data, checker="choice")
    assert "did you mean 'rouge_l'" in refused(tmp_path, data, metrics=["rouge"])
    assert "margin_points" in refused(tmp_path, data, margin=0)
    assert "--seeds" in refused(tmp_path, data, seeds=0)
    few = write(tmp_path / "few.jsonl", rows[: LEAST_TRAINED - 1])
    assert f"{LEAST_TRAINED - 1} questions, of which" in refused(tmp_path, few)
    assert not (tmp_path / "study.yaml").exists()


def test_a_file_that_is_there_is_kept_unless_force_is_said(rng, tmp_path):
    data = write(tmp_path / "own.jsonl", made_up(rng, 600, ANSWERS["number"](rng)))
    (tmp_path / "study.yaml").write_text("mine")
    assert "--force" in refused(tmp_path, data)
    assert (tmp_path / "study.yaml").read_text() == "mine"
    given = {"prompt": "text", "answer": "about.gold", "students": ["tiny"], **TEACHER}
    init_study(data, tmp_path / "study.yaml", force=True, **given)
    assert load(StudySettings, tmp_path / "study.yaml").tasks[0].task == "own"


def test_names_and_texts_that_yaml_would_read_otherwise_come_through(rng, tmp_path):
    """A file called like a number, fields with colons and quotes, a prompt field that YAML takes for a truth value."""
    rows = [{"on": row["text"], "a: 'b' #c": row["about"]["gold"]} for row in made_up(rng, 600, ANSWERS["words"](rng))]
    data = write(tmp_path / "1e3: # [x].jsonl", rows)
    made = init_study(data, tmp_path / "s.yaml", prompt="on", answer="a: 'b' #c", students=["tiny"], **TEACHER)
    (task,) = load(StudySettings, made.path).tasks
    assert (str(task.data.path), task.data.prompt, task.data.answer) == (data, "on", "a: 'b' #c")
    assert get_task(task.task, task.data).distinct_prompts == 600


def test_the_command_writes_the_file_says_why_and_plans_it(rng, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "own.jsonl", made_up(rng, 600, ANSWERS["labels"](rng)))
    arguments = [
        "study",
        "init",
        "own.jsonl",
        "--prompt",
        "text",
        "--answer",
        "about.gold",
        "--students",
        "tiny, small",
    ]
    arguments += ["--teacher", TEACHER["teacher"], "--model", "teacher", "--out", "own.yaml", "--json"]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    said = json.loads(ran.stdout)
    assert said["checker"].startswith("labels: all 600 answers are made of 4 labels")
    assert len(said["plan"]["cells"]) == 2 * 4 and said["plan"]["errors"]  # nobody listens at the teacher's port
    assert load(StudySettings, tmp_path / "own.yaml").students[1].name == "small"
