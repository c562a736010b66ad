"""Where a student comes from: what is refused, what its head computes, and what names it."""

import json
import shutil

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM, PhiConfig, PhiForCausalLM

from distill.errors import InputError
from distill.packing.tokenizer import train_tokenizer
from distill.training.student import load_origin, student_identity

SHAPE = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, vocab_size=320)


def save(folder, model):
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    model.save_pretrained(folder)
    train_tokenizer(["add 12 max A3 the quick brown fox"] * 20, 320).save_pretrained(folder)
    return str(folder)


def load(student, packed=True):
    return load_origin(student, [], packed=packed, vocab_size=320, seed=0)


@pytest.mark.parametrize("packed", [True, False])
def test_a_bias_of_the_head_is_part_of_the_loss(tmp_path, packed):
    """Loading compares our loss with the model's own logits, so without the bias this would be refused."""
    origin = load(save(tmp_path / "phi", PhiForCausalLM(PhiConfig(**SHAPE, resid_pdrop=0.1))), packed)
    assert origin.model.get_output_embeddings().bias.abs().max() > 0
    assert origin.model.config.resid_pdrop == 0.0


def test_a_head_that_does_more_than_we_know_of_is_refused(tmp_path):
    student = save(tmp_path / "granite", GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=7.0)))
    with pytest.raises(InputError, match="its head does more"):
        load(student)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "[]"),
        ("config.json", "{"),
        ("config.json", '{"model_type": "phi", "hidden_size": "wide"}'),
        ("model.safetensors", "not weights"),
        ("distill_chat.json", '{"opening": ""}'),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path, file, content):
    student = save(tmp_path / "phi", PhiForCausalLM(PhiConfig(**SHAPE)))
    (tmp_path / "phi" / file).write_text(content)
    with pytest.raises(InputError) as refused:
        load(student)
    assert "\n" not in str(refused.value) and "phi" in str(refused.value)


def test_a_students_identity_holds_its_files_and_how_it_renders_a_turn(tmp_path):
    student = save(tmp_path / "phi", PhiForCausalLM(PhiConfig(**SHAPE)))
    before = student_identity(student, None)
    shutil.copytree(student, tmp_path / "copy")
    assert student_identity(str(tmp_path / "copy"), None) == before
    template = tmp_path / "copy" / "chat_template.jinja"
    template.write_text(
        template.read_text()
        .replace("<|user|>", "<|user|>")
        .replace("{{ message['content'] }}", "{{ message['content'] | trim }}")
    )
    after = student_identity(str(tmp_path / "copy"), None)
    assert after["files"]["chat_template.jinja"] != before["files"]["chat_template.jinja"]
    config = json.loads((tmp_path / "phi" / "config.json").read_text())
    assert before["hidden"] == config["hidden_size"]
