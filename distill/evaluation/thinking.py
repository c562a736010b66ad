"""Whether a student is to think: `free` as it was trained, `on` in a think block that its prompt opens, `off` after an
empty one that its prompt closes. A chat template that has a switch of its own is asked first."""

from typing import Any

from distill.errors import InputError
from distill.evaluation.answers import Think
from distill.evaluation.questions import Asked, Prompts, distinct_problems, prompt_ids
from distill.evaluation.subject import Subject
from distill.packing.chat import ChatFormat
from distill.traces.trace import Mode

SWITCHES = ("enable_thinking", "thinking")  # what templates call it
_MARKER = "MARKER2c9bMARKER"


def think_prompts(subject: Subject, asked: list[Asked], mode: Mode | None, think: Think) -> Prompts:
    """The prompts of every question. Raises InputError where the student cannot be asked so, with the reason."""
    chat = subject.require_chat()
    if think == "free":
        return Prompts(prompt_ids(subject, asked, mode), opened=chat.prompt_opens_thinking)
    if chat.think.mode_signal != "none":
        raise InputError(
            f"{subject.folder}: is told in the question whether to think; say --mode reasoning or --mode ift, not "
            f"--think {think}"
        )
    if mode is not None:
        raise InputError(f"{subject.folder}: has no mode signal, so --mode {mode} cannot be asked for; leave it out")
    problems = distinct_problems(asked)
    switch = template_switch(chat)
    setting = {switch: think == "on"} if switch else {}
    end = _added(chat, _render(chat, [_MARKER], setting)[0].rpartition(_MARKER)[2], think, switch)
    (suffix,) = chat.encode([end])
    rows = chat.encode(_render(chat, [p.prompt for p in problems], setting))
    ids = {p.id: [*row, *suffix] for p, row in zip(problems, rows, strict=True)}
    return Prompts(ids, opened=think == "on")


def template_switch(chat: ChatFormat) -> str | None:
    """The template's own variable for thinking, if it has one: what renders differently when it is set."""
    for name in SWITCHES:
        if _render(chat, [_MARKER], {name: True}) != _render(chat, [_MARKER], {name: False}):
            return name
    return None


def _added(chat: ChatFormat, said: str, think: Think, switch: str | None) -> str:
    """What is still missing behind the template's generation prompt, which ends with `said`."""
    form = chat.think
    inside = said.rfind(form.opening) > said.rfind(form.closing)
    closed = form.closing in said and not inside
    if think == "on":
        if closed:
            raise InputError(
                f"{chat.source}: the chat template closes a think block before every answer, so none can be on"
            )
        return "" if inside else form.opening + form.after_opening
    if inside and switch:
        raise InputError(f"{chat.source}: the chat template opens a think block even with {switch} off")
    if closed or switch:
        return ""
    opening = "" if inside else form.opening
    after = "" if inside and said.endswith(form.after_opening) else form.after_opening
    return opening + after + form.before_closing + form.closing + form.after_closing


def _render(chat: ChatFormat, prompts: list[str], setting: dict[str, Any]) -> list[str]:
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    try:
        return chat.tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True, **setting)
    except Exception as error:  # a template is a program: it may raise anything
        raise InputError(f"{chat.source}: the chat template fails ({type(error).__name__}: {error})") from None
