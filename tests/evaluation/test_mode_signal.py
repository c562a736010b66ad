"""A student that is told which mode is wanted: asked in that mode, or refused before anything is generated."""

import shutil

import pytest

from distill.artifact import content_key
from distill.errors import InputError
from distill.evaluation.evaluate import evaluate, evaluation_recipe
from distill.evaluation.questions import ask, prompt_ids
from distill.evaluation.serving.profile import StudentProfileSettings, profile_student
from distill.evaluation.settings import EvaluateSettings
from distill.evaluation.subject import load_subject
from distill.packing.chat import COMPACT
from distill.settings import validate

QUESTIONS = [{"task": "max", "count": 6}]


@pytest.fixture
def signalled(tiny_student, tmp_path):
    """A copy of the tiny student whose folder says that it has a signal."""
    folder = shutil.copytree(tiny_student, tmp_path / "signalled")
    type(COMPACT)(**vars(COMPACT) | {"mode_signal": "prompt"}).save(folder)
    return folder


def settings(**more):
    return EvaluateSettings(questions=QUESTIONS, engine="transformers", max_tokens=4, **more)


def test_the_question_ends_with_the_mode(signalled):
    subject, asked = load_subject(signalled), ask(settings().questions)
    for mode, end in {"reasoning": " /think", "ift": " /no_think"}.items():
        rows = prompt_ids(subject, asked, mode)
        for problem in asked[0].problems:
            assert subject.chat.tokenizer.decode(rows[problem.id]) == f"<|user|>{problem.prompt}{end}<|assistant|>"


def test_a_mode_that_does_not_fit_the_student_is_refused(signalled, tiny_student, tmp_path):
    load = {"tasks": ["max"], "concurrencies": (1,), "requests": 1}
    for student, mode, said in ((signalled, None, "say --mode"), (tiny_student, "ift", "has no mode signal")):
        for call in (
            lambda: evaluate(settings(mode=mode), student, tmp_path / "out"),  # noqa: B023
            lambda: profile_student(StudentProfileSettings(**load, mode=mode), student, tmp_path / "out"),  # noqa: B023
        ):
            with pytest.raises(InputError, match=said) as refused:
                call()
            assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"field mode: .*'ift'.*found 'both'"):
        validate(EvaluateSettings, {"questions": QUESTIONS, "mode": "both"}, source="command line")


def test_answers_of_the_two_modes_are_two_evaluations(signalled, tmp_path):
    made = {mode: evaluate(settings(mode=mode), signalled, tmp_path / mode) for mode in ("reasoning", "ift")}
    assert made["reasoning"].key != made["ift"].key
    tokens = {mode: a.summary["max"]["tokens_per_answer"]["prompt"] for mode, a in made.items()}
    assert tokens["ift"] == tokens["reasoning"] + len("no_")  # a byte a token


def test_the_key_of_a_student_without_one_does_not_know_of_modes(tiny_student):
    subject = load_subject(tiny_student)
    recipe = evaluation_recipe(settings(), subject, ask(settings().questions))
    assert "mode" not in recipe["settings"] and content_key("evaluation", recipe)
