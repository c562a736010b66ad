"""From outputs to answers: each taken apart, none graded yet."""

from distill.evaluation.answers import Answer, Parts, Think, take_apart
from distill.evaluation.generate import Output
from distill.evaluation.questions import Prompts
from distill.evaluation.requests import Request
from distill.evaluation.subject import Subject


def read_output(
    subject: Subject,
    prompts: Prompts,
    request: Request,
    output: Output,
    *,
    think: Think = "free",
    seed: int | None = None,
) -> Answer:
    """One output as an answer that is not graded: `correct` is False. `seed` is that of its sampling, None where
    nothing was drawn by chance."""
    if prompts.as_text:
        parts = _text_parts(subject, prompts, output.token_ids)
    else:
        parts = take_apart(subject.require_chat(), output.token_ids, opened=prompts.opened)
    problem = request.problem
    return Answer(
        problem_id=problem.id,
        task=problem.task,
        prompt=problem.prompt,
        gold=problem.gold,
        token_ids=output.token_ids,
        thinking=parts.thinking,
        answer=parts.answer,
        prompt_tokens=len(request.prompt),
        thinking_tokens=parts.thinking_tokens,
        answer_tokens=parts.answer_tokens,
        thought=parts.thought,
        finished=output.finish_reason == "stop" and parts.closed,
        finish_reason=output.finish_reason,
        correct=False,
        seconds=output.seconds,
        sample=request.sample,
        think=think,
        budget=request.budget,
        seed=seed,
    )


def _text_parts(subject: Subject, prompts: Prompts, token_ids: list[int]) -> Parts:
    """All of a text up to the first stop is its answer."""
    ends = {subject.tokenizer.eos_token_id, subject.tokenizer.pad_token_id}
    text = subject.tokenizer.decode([i for i in token_ids if i not in ends], skip_special_tokens=False)
    for stop in prompts.stop:
        text = text.partition(stop)[0]
    return Parts("", text.strip(), 0, len(token_ids), thought=False, closed=True)
