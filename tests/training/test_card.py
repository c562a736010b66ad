"""What a training leaves for a person: the student's card, and speeds in TensorBoard."""

import json
import re

import pytest
import yaml

from distill.settings import validate
from distill.training.card import escape, render_card
from distill.training.settings import RunOptions, TrainSettings
from distill.training.speed import Speed
from distill.training.train import train

RECIPE = {"traces": "0" * 32, "versions": {"torch": "2.11", "triton": None}}


def counts(n):
    return {"examples": n, "tokens": 10 * n, "supervised_tokens": 5 * n}


def summary(**changes):
    both = {"ift": counts(7), "reasoning": counts(0)}
    spent = {"pairs": 7, "steps": 3, "flops": 1e9, "parameters": 99, "trainable_parameters": 9, "dropped_pairs": 2}
    return counts(7) | spent | {"by_mode": both, "validation": None} | changes


def front(card):
    return yaml.safe_load(card.split("---\n")[1])


def block(card):
    """The YAML of the card's `Made again`."""
    return yaml.safe_load(re.search(r"(`{3,})yaml\n(.*?)\1", card, re.DOTALL)[2])


@pytest.mark.parametrize(
    "given",
    [
        dict(arm="mixed:0.25", seed=3, learning_rate=1e-3, packed=False),
        dict(student="org/base", arm="reasoning", think_tags=["```<a> #", "| b\n---"], adam_betas=[0.9, 0.99]),
        dict(phases=[{"reasoning": 0, "epochs": 2, "learning_rate": 1e-5}, {"reasoning": 0.5}], schedule="linear"),
        dict(arm="ift", learning_rate=[1e-3, 3e-4], validation=0.1, weights="best"),
    ],
)
def test_the_card_makes_the_same_settings_again(given):
    settings = validate(TrainSettings, {"student": "tiny"} | given, source="test")
    card = render_card(settings, summary(), RECIPE, 1.5)
    assert validate(TrainSettings, block(card), source="card") == settings


def test_what_a_student_is_based_on(tmp_path):
    place = tmp_path / "somewhere" / "Qwen2.5-0.5B"
    place.mkdir(parents=True)
    for student, base in (("tiny", None), ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"), (str(place), "Qwen2.5-0.5B")):
        card = render_card(TrainSettings(student=student), summary(), RECIPE, 1.5)
        assert front(card).get("base_model") == base and front(card)["library_name"] == "transformers"
        assert str(tmp_path) not in card and "somewhere" not in card
    adapters = TrainSettings(student=str(place), lora_rank=8)
    assert front(render_card(adapters, summary(), RECIPE, 1.5))["library_name"] == "peft"
    merged = TrainSettings(student=str(place), lora_rank=8, merge=True)
    assert front(render_card(merged, summary(), RECIPE, 1.5))["library_name"] == "transformers"


def test_names_are_shown_as_they_are(tmp_path):
    place = tmp_path / "a|b*c_<img src=x>[d](e)`f`"
    place.mkdir()
    card = render_card(TrainSettings(student=str(place)), summary(), RECIPE, 1.5)
    assert "base_model" not in front(card)
    shown = card[: card.index("## Made again")]
    assert "<img" not in shown.replace("\\<", "") and "[d](" not in shown
    assert all(line.count("|") - line.count("\\|") == 3 for line in shown.splitlines() if "student |" in line)
    assert escape("one\ntwo  #*") == "one two \\#\\*"


def test_validation_and_candidates():
    kept, lowest = {"step": 9, "loss": 0.5}, {"step": 6, "loss": 0.25}
    grid = {"candidates": [dict(learning_rate=0.001, loss=0.5, step=9, diverged=False)]}
    grid["candidates"].append(dict(learning_rate=10.0, loss=None, step=None, diverged=True))
    found = summary(validation={"pairs": 4, "kept": kept, "lowest": lowest}, grid=grid)
    card = render_card(TrainSettings(student="tiny", validation=0.1), found, RECIPE, 1.5)
    assert "| training, last step | 3 | 1.5000 |" in card
    assert "| validation, lowest (4 held-out pairs) | 6 | 0.2500 |" in card
    assert "| validation, of these weights (4 held-out pairs) | 9 | 0.5000 |" in card
    assert "| validation, learning rate 10 |  | diverged |" in card


def test_a_training_writes_its_card_and_its_speeds(traces, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = TrainSettings(student="tiny", arm="mixed:0.5", row_tokens=256, batch=64, precision="fp32")
    cards = []
    for name in ("a", "b"):
        made = train(settings, traces, RunOptions(out=tmp_path / name, threads=1, tensorboard=name == "a"))
        cards.append((made.path / "README.md").read_text())
    assert cards[0] == cards[1] and str(tmp_path) not in cards[0]
    assert "README.md" in made.files
    metrics = json.loads((made.path / "metrics.json").read_text())
    for mode, label in (("ift", "without reasoning"), ("reasoning", "with reasoning")):
        of = metrics["by_mode"][mode]
        assert f"| {label} | {of['examples']:,} | {of['tokens']:,} | {of['supervised_tokens']:,} |" in cards[0]
    found = EventAccumulator(str(tmp_path / "a" / "tensorboard")).Reload()
    assert {f"speed/{field}" for field in Speed.__dataclass_fields__} <= set(found.Tags()["scalars"])
    assert (
        found.Scalars("speed/tokens_per_second")[-1].value
        > found.Scalars("speed/supervised_tokens_per_second")[-1].value
    )
    assert not any(
        "second" in key or "memory" in key
        for line in (made.path / "training_log.jsonl").read_text().splitlines()
        for key in json.loads(line)
    )
