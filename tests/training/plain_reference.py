"""A training written plainly: transformers' eager attention in float64, a document at a time, everything else by hand.

Nothing of the trainer is used: texts, masks, weights of tokens, divergences, adapters, AdamW, schedules, FLOPs. What a step
shows is a matter of random order and is taken from the plan; `check_plan` says what must hold of it.
"""

import copy
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

END, CLOSE = 3, 5  # of the tokenizer of tiny_student
SIGNALS = {"ift": " /no_think", "reasoning": " /think"}


@dataclass
class PlainDocument:
    prompt: list[int]
    target: list[int]  # with the end of turn
    reasoning: int  # tokens of the target up to the closing tag
    place: int  # of its pair in the trace set
    mode: str

    @property
    def length(self):
        return len(self.prompt) + len(self.target) - 1


def plain_documents(folder, pairs, settings):
    """[pair's documents (ift, reasoning)] of the pairs that fit."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    kept = []
    for place, pair in enumerate(pairs):
        both = []
        for mode in ("ift", "reasoning"):
            trace = pair.reasoning if mode == "reasoning" else pair.ift
            thought = trace.reasoning
            answer = {"teacher": trace.answer, "stripped": pair.reasoning.answer, "gold": pair.problem.gold}
            said = answer[settings.answers]
            if thought:
                said = f"<think>\n{thought}\n</think>\n\n{said}"
            signal = SIGNALS[mode] if settings.mode_signal == "prompt" else ""
            target = [*encode(said), END]
            reasoning = target.index(CLOSE) + 1 if thought else 0
            prompt = encode(f"<|user|>{pair.problem.prompt}{signal}<|assistant|>")
            both.append(PlainDocument(prompt, target, reasoning, place, mode))
        if max(d.length for d in both) <= settings.row_tokens:
            kept.append(both)
    return kept


class PlainAdapter(nn.Module):
    """y = W x + b + (alpha / rank) B A x."""

    def __init__(self, layer, a, b, scale):
        super().__init__()
        self.layer, self.scale = layer.requires_grad_(False), scale
        self.a, self.b = nn.Parameter(a.double().clone()), nn.Parameter(b.double().clone())

    def forward(self, x):
        return self.layer(x) + self.scale * (x @ self.a.T @ self.b.T)


def plain_model(folder, start, lora):
    """(model, {name in `start`: what is trained}); `start` is the state of the student before its first step."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    if lora is None:
        return model, dict(model.named_parameters())
    trained = {}
    model.requires_grad_(False)
    for name in [n.removesuffix(".lora_A.default.weight") for n in start if n.endswith(".lora_A.default.weight")]:
        parent, _, own = name.rpartition(".")
        a, b = (f"{name}.lora_{x}.default.weight" for x in "AB")
        adapter = PlainAdapter(getattr(model.get_submodule(parent), own), start[a], start[b], lora.alpha / lora.rank)
        setattr(model.get_submodule(parent), own, adapter)
        trained |= {a: adapter.a, b: adapter.b}
    return model, trained


def plain_divergence(logp_V, ids, logprobs, rest, divergence):
    """One token's, over the listed ids and one bucket for all else; the teacher's own mass of the rest is known."""
    listed = [(i, lp) for i, lp in zip(ids.tolist(), logprobs.tolist(), strict=True) if i >= 0 and math.isfinite(lp)]
    scale = (1 - math.exp(float(rest))) / sum(math.exp(lp) for _, lp in listed)
    listed = [(i, math.exp(lp) * scale) for i, lp in listed if i < len(logp_V)]
    q = torch.tensor([p for _, p in listed], dtype=torch.float64)
    p_V = logp_V.exp()
    inside = torch.zeros(len(p_V), dtype=torch.bool)
    inside[[i for i, _ in listed]] = True
    floor = torch.finfo(torch.float32).eps
    p = torch.cat([p_V[[i for i, _ in listed]], p_V[~inside].sum().clamp_min(2e-16)[None]])
    q = torch.cat([q, (1 - q.sum()).clamp_min(floor)[None]])
    kl = lambda a, b: (a * (a.log() - b.log())).sum()  # noqa: E731
    m = (p + q) / 2
    return {"forward_kl": kl(q, p), "reverse_kl": kl(p, q), "jsd": (kl(q, m) + kl(p, m)) / 2}[divergence]


def token_losses(model, document, settings, teacher, training):
    """float64[n] of the supervised tokens; `teacher` is what the trace set holds, by mode, or None."""
    ids = torch.tensor([*document.prompt, *document.target])
    n = len(document.target)
    logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0, -n:]
    labels = ids[-n:]
    lse = logits.logsumexp(-1)
    losses = lse - logits.gather(1, labels[:, None])[:, 0]
    if not training:
        return losses
    losses = losses + settings.z_loss * lse**2
    if not settings.distillation_weight:
        return losses
    answer = teacher[document.mode][document.place]
    covered = len(answer.token_ids)
    if list(answer.token_ids) not in (document.target, document.target[:-1]):
        return losses
    logp = (logits / answer.temperature).log_softmax(-1)
    w, found = settings.distillation_weight, list(losses)
    for t in range(covered):
        of_text = -logp[t, labels[t]]
        row = (answer.ids[t], answer.logprobs[t].astype(np.float64), answer.rest[t])
        found[t] = w * plain_divergence(logp[t], *row, settings.divergence) + (1 - w) * of_text
    return torch.stack(found)


def token_weights(document, how):
    n, r = len(document.target), document.reasoning
    if how == "token":
        return torch.ones(n, dtype=torch.float64)
    if how == "example" or not r:
        return torch.full((n,), 1 / n, dtype=torch.float64)
    return torch.cat([torch.full((r,), 0.5 / r), torch.full((n - r,), 0.5 / (n - r))]).double()


def plain_rate(settings, index, of, phase):
    peak = settings.learning_rate
    if settings.phases and settings.phases[phase].learning_rate:
        peak = settings.phases[phase].learning_rate
    if settings.arm.startswith("sequential") and phase == 1 and settings.reasoning_learning_rate:
        peak = settings.reasoning_learning_rate
    low, warm, number = settings.final_learning_rate_ratio * peak, min(settings.warmup_steps, of), index + 1
    if number <= warm:
        return peak * number / warm
    if settings.schedule == "constant":
        return peak
    fall = of - warm
    if settings.schedule == "wsd":
        fall = min(fall, settings.decay_steps)
    gone = max(0, number - (of - fall)) / fall  # 1 at the last step
    if settings.schedule == "cosine":
        return low + (peak - low) * (1 + math.cos(math.pi * gone)) / 2
    return peak - (peak - low) * gone


def plain_flops(config, documents, lora_weights=0, forward_only=False):
    """Of training on documents, or of a forward: matrix products, and query-key pairs that are not masked."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads, kv, h = config.num_attention_heads, config.num_key_value_heads, config.hidden_size
    layer = h * head_dim * (2 * heads + 2 * kv) + 3 * h * config.intermediate_size
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    total = 0
    for d in documents:
        for kind in kinds:
            window = config.sliding_window if kind == "sliding_attention" else d.length
            seen = sum(min(t + 1, window) for t in range(d.length))
            products = (2 if forward_only else 4 if lora_weights else 6) * layer * d.length
            total += products + (4 if forward_only else 12) * heads * head_dim * seen
        total += (2 if forward_only else 4 if lora_weights else 6) * h * config.vocab_size * len(d.target)
        total += (2 if forward_only else 6) * lora_weights * d.length
    return total


def plain_training(model, trained, kept, steps, settings, teacher, held=(), validate_after=()):
    """([loss], [gradient norm], {step: validation}, {step: weights validated}); `trained` is changed in place."""
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in trained.items()}
    first, second = settings.adam_betas
    losses, norms, validations, weights = [], [], {}, {}
    for number, step in enumerate(steps, start=1):
        documents = [kept[r // 2][r % 2] for row in step.rows for r in row]
        divisor = sum(float(token_weights(d, settings.loss_weight).sum()) for d in documents)
        loss = 0.0
        for d in documents:
            part = token_losses(model, d, settings, teacher, True) * token_weights(d, settings.loss_weight)
            (part.sum() / divisor).backward()
            loss += part.sum().item() / divisor
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in trained.values()))
        rate = plain_rate(settings, step.index, step.of, step.phase)
        with torch.no_grad():
            for name, p in trained.items():
                g = p.grad * min(1.0, settings.gradient_clip / (norm + 1e-6))
                m, v = moments[name]
                m.mul_(first).add_(g, alpha=1 - first)
                v.mul_(second).add_(g * g, alpha=1 - second)
                if p.ndim > 1:
                    p.mul_(1 - rate * settings.weight_decay)
                p.sub_(rate * (m / (1 - first**number)) / ((v / (1 - second**number)).sqrt() + 1e-8))
                p.grad = None
        losses.append(loss)
        norms.append(norm)
        if number in validate_after:
            validations[number] = plain_validation(model, kept, held, settings)
            weights[number] = {name: p.detach().clone() for name, p in trained.items()}
    return losses, norms, validations, weights


def plain_validation(model, kept, held, settings):
    share = settings.shown.ratio
    found, above, below = {}, 0.0, 0.0
    for number, mode in enumerate(("ift", "reasoning")):
        part = share if mode == "reasoning" else 1 - share
        if not part:
            continue
        with torch.no_grad():
            documents = [kept[i][number] for i in held]
            weights = [token_weights(d, settings.loss_weight) for d in documents]
            sums = [
                float((token_losses(model, d, settings, None, False) * w).sum())
                for d, w in zip(documents, weights, strict=True)
            ]
        total, weight = sum(sums), sum(float(w.sum()) for w in weights)
        found[f"loss_{mode}"] = total / weight
        above, below = above + part * total, below + part * weight
    return {"loss": above / below, **found}


def check_plan(settings, kept, training, steps, cost):
    """Who is shown how often, in steps of which size, and where a budget ends; `cost(document)` is its FLOPs."""
    arm, n = settings.shown, len(training)
    every = [d for i in training for d in kept[i]]
    curriculum = arm.curriculum or ((arm.ratio, settings.epochs),)
    spend = {"tokens": lambda d: d.length, "flops": cost}
    number_of_phases = max(s.phase for s in steps) + 1
    by_phase = [[s for s in steps if s.phase == p] for p in range(number_of_phases)]
    refs = lambda some: [r for s in some for row in s.rows for r in row]  # noqa: E731
    for s in steps:
        assert (s.index, s.of) == (by_phase[s.phase].index(s), len(by_phase[s.phase]))
        for row in s.rows:
            assert settings.packed or len(row) == 1
            assert sum(kept[r // 2][r % 2].length for r in row) <= settings.row_tokens
        tokens = sum(kept[r // 2][r % 2].length for r in refs([s]))
        assert (
            settings.batch_unit == "examples"
            or not settings.packed
            or len(s.rows) <= settings.batch // settings.row_tokens
        )
        assert settings.batch_unit == "tokens" or len(refs([s])) <= settings.batch
        assert tokens > 0
    kind = "tokens" if settings.tokens else settings.match
    if kind == "samples":
        shown = Counter(refs(steps))
        if arm.kind == "phases":
            assert number_of_phases == len(curriculum)
            for (ratio, epochs), phase in zip(curriculum, by_phase, strict=True):
                counts = Counter(refs(phase))
                assert set(counts.values()) == {epochs} and len(counts) == n == len({r // 2 for r in counts})
                assert sum(r % 2 for r in counts) == round(ratio * n)
        else:
            assert set(shown.values()) == {settings.epochs} and len(shown) == n == len({r // 2 for r in shown})
            assert sum(r % 2 for r in shown) == round(arm.ratio * n)
        if settings.batch_unit == "examples":
            for phase in by_phase:
                assert len(phase) == math.ceil(len(refs(phase)) / settings.batch)
        return None
    if kind == "steps":
        if settings.batch_unit == "examples":
            epochs = sum(e for _, e in curriculum)
            assert len(steps) == math.ceil(n * epochs / settings.batch)
        return None
    epochs = sum(e for _, e in curriculum)
    wanted = settings.tokens or epochs * sum(spend[kind](d) for d in every if d.mode == "reasoning")
    of = lambda some: sum(spend[kind](kept[r // 2][r % 2]) for r in refs(some))  # noqa: E731
    assert of(steps) >= wanted * (1 - 1e-8) and of(steps[:-1]) < wanted
    return wanted


def copy_state(model):
    return {name: copy.deepcopy(p.detach()) for name, p in model.named_parameters()}
