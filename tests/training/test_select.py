"""`train --select` and `--reasoning-learning-rate`: who gets reasoning, at which rate, and that it is said."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from distill.errors import InputError
from distill.packing.source import read_traces
from distill.settings import validate
from distill.traces.derive import deriving
from distill.traces.stats.stats import stats
from distill.training.describe import describe
from distill.training.dry_run import dry_run
from distill.training.prepare import make_ready
from distill.training.schedule import learning_rate
from distill.training.settings import RunOptions, TrainSettings
from distill.training.train import recipe, train

SMALL = dict(student="tiny", row_tokens=256, batch=32, precision="fp32")
ARMS = [
    {"arm": "mixed:{}"},
    {"arm": "sequential:{}"},
    {"phases": [{"reasoning": 0}, {"reasoning": "{}"}, {"reasoning": 1}]},
]


def in_phase(ready, number, mode):
    """Pairs shown in one mode in a phase, as places among the rendered."""
    steps = [step for step in ready.steps if step.phase == number]
    return {r // 2 for step in steps for row in step.rows for r in row if r % 2 == mode}


@pytest.fixture
def labelled(traces, rng):
    """Some answers without reasoning are labelled wrong, some are other ones than with reasoning."""
    trace_set = read_traces(traces)

    def changed(pair):
        answer = pair.ift.answer + "1" if rng.random() < 0.3 else pair.ift.answer
        label = [True, True, False, None][int(rng.integers(4))]
        return replace(pair, ift=replace(pair.ift, answer=answer, verified=label))

    return replace(trace_set, pairs=[changed(pair) for pair in trace_set.pairs])


def score(select, pair):
    """Smaller ones go first."""
    length = len(pair.reasoning.reasoning)
    if select == "hard":
        return (0 if pair.ift.verified is False else 1, -length)
    return length if select == "short" else int(pair.ift.answer == pair.reasoning.answer)


@pytest.mark.parametrize("select", ["hard", "disagree", "short"])
@pytest.mark.parametrize("arm", ARMS, ids=["mixed", "sequential", "phases"])
def test_of_the_pairs_trained_on_those_that_go_first_get_reasoning(labelled, rng, arm, select):
    seed, where = int(rng.integers(1000)), 0 if "mixed" in str(arm) else 1
    shares, found = sorted(np.round(rng.uniform(0.05, 0.95, 3), 3).tolist()), []
    for share in shares:
        given = yaml.safe_load(json.dumps(arm).replace('"{}"', str(share)).replace("{}", str(share)))
        settings = TrainSettings(**SMALL, **given, seed=seed, select=select, validation=0.2)
        ready = make_ready(settings, labelled, weights=False)
        assert ready.rendered.n_pairs == len(labelled.pairs)
        ift = in_phase(ready, 0 if "sequential" in str(arm) else where, 0)
        chosen = in_phase(ready, where, 1)
        every = sorted(score(select, labelled.pairs[p]) for p in ift | chosen)
        assert len(every) == len(labelled.pairs) - ready.validation.pairs
        assert sorted(score(select, labelled.pairs[p]) for p in chosen) == every[: round(share * len(every))]
        again = make_ready(settings, labelled, weights=False)
        assert [step.rows for step in ready.steps] == [step.rows for step in again.steps]
        found.append(chosen)
    assert found[0] <= found[1] <= found[2]


def test_labels_stay_with_their_pairs_where_some_are_dropped(labelled):
    """Several pairs of one question, of which a long one in between is left out."""
    pairs = list(labelled.pairs[:40])
    right = [replace(pair, ift=replace(pair.ift, verified=True)) for pair in pairs]
    long = replace(right[7], reasoning=replace(right[7].reasoning, reasoning="7" * 5000))
    wrong = replace(right[7], ift=replace(right[7].ift, answer="wrong", verified=False), sample=2)
    trace_set = replace(labelled, pairs=[*right[:7], long, right[7], wrong, *right[8:]])
    settings = TrainSettings(**SMALL, arm=f"mixed:{1 / 41}", select="hard", vocab_size=512)
    ready = make_ready(settings, trace_set, weights=False)
    assert ready.rendered.dropped == 1 and ready.rendered.n_pairs == 41
    (chosen,) = in_phase(ready, 0, 1)
    assert ready.rendered.pair_ids[chosen] == wrong.problem.id and chosen == 8 and ready.rendered.kept[chosen] == 9


def test_with_stratified_sampling_every_step_has_the_share(labelled, rng):
    pairs, seed = labelled.pairs[:128], int(rng.integers(1000))
    counts, keys = {}, set()
    for sampling in ("shuffled", "stratified"):
        settings = TrainSettings(**SMALL | {"batch": 16}, arm="mixed:0.25", sampling=sampling, seed=seed, epochs=2)
        ready = make_ready(settings, replace(labelled, pairs=pairs), weights=False)
        counts[sampling] = [sum(r % 2 for row in step.rows for r in row) for step in ready.steps]
        keys.add(json.dumps(recipe(settings, "key"), sort_keys=True))
    assert counts["stratified"] == [4] * 16 and sum(counts["shuffled"]) == 64 != 16 * max(counts["shuffled"])
    assert len(keys) == 2


def test_what_was_chosen_is_counted(labelled):
    for select, mark in (("hard", "wrong_without_reasoning"), ("disagree", "answers_differ"), ("short", None)):
        settings = TrainSettings(**SMALL, arm="mixed:0.25", select=select, epochs=2)
        ready = make_ready(settings, labelled, weights=False)
        found = describe(settings, ready)
        assert found["selection"]["select"] == select
        for mode, name in enumerate(("ift", "reasoning")):
            pairs = [labelled.pairs[p] for p in in_phase(ready, 0, mode)]
            counted = dict(found["selection"]["by_mode"][name])
            assert counted.pop("examples") == 2 * len(pairs) == found["by_mode"][name]["examples"]
            mean = np.mean([len(pair.reasoning.reasoning) for pair in pairs])
            assert counted.pop("mean_reasoning_characters") == pytest.approx(mean)
            is_marked = {
                "wrong_without_reasoning": lambda pair: pair.ift.verified is False,
                "answers_differ": lambda pair: pair.ift.answer != pair.reasoning.answer,
            }
            assert counted == ({mark: 2 * sum(map(is_marked[mark], pairs))} if mark else {})
        json.dumps(found)
    plain = TrainSettings(**SMALL, arm="mixed:0.25")
    assert "selection" not in describe(plain, make_ready(plain, labelled, weights=False))


def test_pairs_that_differ_are_those_that_the_statistics_count(traces, tmp_path, rng):
    def change(index, pair):
        said = [f"{pair.ift.answer}.0", f"\\boxed{{{pair.ift.answer}}}", "none", f"it is {pair.ift.answer}", "77"]
        return replace(pair, ift=replace(pair.ift, answer=str(rng.choice(said))))

    with deriving(traces, tmp_path / "t", {"step": "answers"}) as new:
        new.commit(change, {})
    trace_set = read_traces(tmp_path / "t")
    settings = TrainSettings(**SMALL, arm="mixed:0.5", select="disagree")
    differ = make_ready(settings, trace_set, weights=False).selection.marked["answers_differ"]
    assert len(differ) - differ.sum() == stats(tmp_path / "t")["agreement"]["count"] > 0 < differ.sum()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arm": "ift", "select": "hard"}, "select hard .* arm ift mixes nothing; leave it out"),
        ({"arm": "reasoning", "select": "short"}, "select short .* arm reasoning mixes nothing"),
        ({"arm": "mixed:1", "select": "disagree"}, "arm mixed:1 mixes nothing"),
        ({"arm": "sequential:0.5", "sampling": "stratified"}, "arm sequential:0.5 mixes nothing; leave it out"),
        ({"arm": "mixed:1", "sampling": "stratified"}, "sampling stratified .* arm mixed:1 mixes nothing"),
        (
            {"arm": "mixed:0.5", "sampling": "stratified", "batch_unit": "tokens", "batch": 4096},
            "stratified needs steps of examples: batch_unit examples, found tokens",
        ),
        ({"phases": [{"reasoning": 0}, {"reasoning": 1}], "select": "hard"}, "arm phases mixes nothing"),
        (
            {"arm": "mixed:0.5", "select": "long"},
            "field select: .*'random', 'hard', 'disagree' or 'short', found 'long'",
        ),
        (
            {"arm": "mixed:0.5", "reasoning_learning_rate": 1e-3},
            "of sequential:R.* arm mixed:0.5 has none; leave it out",
        ),
        ({"arm": "sequential:1", "reasoning_learning_rate": 1e-3}, "arm sequential:1 has none"),
        ({"phases": [{"reasoning": 0.5}], "reasoning_learning_rate": 1e-3}, "arm phases has none"),
        ({"arm": "sequential:0.5", "reasoning_learning_rate": 0}, "field reasoning_learning_rate"),
        (
            {"arm": "sequential:0.5", "reasoning_learning_rate": 1e-3, "one_schedule": True},
            "one_schedule: a phase has a learning rate of its own",
        ),
        (
            {
                "arm": "sequential:0.5",
                "reasoning_learning_rate": 1e-3,
                "learning_rate": [1e-3, 2e-3],
                "validation": 0.1,
            },
            "learning_rate: several to choose from, and a phase with its own",
        ),
    ],
)
def test_what_cannot_be(changes, said):
    with pytest.raises(InputError, match=said) as refused:
        validate(TrainSettings, SMALL | changes, source="a file")
    assert "\n" not in str(refused.value)


def test_without_labels_hard_is_refused_before_anything_is_written(traces, tmp_path):
    with deriving(traces, tmp_path / "t", {"step": "none"}) as new:
        new.commit(lambda _, pair: replace(pair, ift=replace(pair.ift, verified=None)), {})
    with pytest.raises(InputError, match="--select hard needs; run `distill traces verify` first"):
        train(TrainSettings(**SMALL, arm="mixed:0.5", select="hard"), tmp_path / "t", RunOptions(out=tmp_path / "s"))
    assert not (tmp_path / "s").exists()


def test_keys_say_it_only_where_it_is_not_as_before():
    mixed, sequential = SMALL | {"arm": "mixed:0.5"}, SMALL | {"arm": "sequential:0.5", "learning_rate": 1e-3}
    plain = recipe(TrainSettings(**mixed), "t")
    assert plain == recipe(TrainSettings(**mixed, select="random"), "t")
    assert not {"select", "reasoning_learning_rate"} & plain["settings"].keys() and "selection_version" not in plain
    hard = recipe(TrainSettings(**mixed, select="hard"), "t")
    assert hard["settings"] == plain["settings"] | {"select": "hard"} and hard["selection_version"] == 1
    one = recipe(TrainSettings(**sequential), "t")
    assert one == recipe(TrainSettings(**sequential, reasoning_learning_rate=1e-3), "t"), "the rate that it has anyway"
    other = recipe(TrainSettings(**sequential, reasoning_learning_rate=2e-3), "t")
    assert other["settings"] == one["settings"] | {"reasoning_learning_rate": 2e-3}


@pytest.mark.parametrize("share", [0.25, 0.001, 0.999])
def test_the_phase_with_reasoning_has_its_own_peak(traces, share):
    """Also where so few pairs leave only one of the phases."""
    settings = TrainSettings(
        **SMALL, arm=f"sequential:{share}", schedule="constant", learning_rate=1e-3, reasoning_learning_rate=5e-4
    )
    for step in make_ready(settings, read_traces(traces), weights=False).steps:
        (mode,) = {r % 2 for row in step.rows for r in row}
        assert learning_rate(settings, step.index, step.of, step.phase) == (5e-4 if mode else 1e-3)


def test_a_training_does_and_says_it(traces, tmp_path, capsys):
    from distill.training.student_text import show_estimate, show_student

    given = SMALL | {"arm": "sequential:0.25", "select": "short", "batch": 80, "schedule": "constant"}
    settings = TrainSettings(**given, learning_rate=2e-3, reasoning_learning_rate=5e-4)
    options = RunOptions(out=tmp_path / "s", threads=1, tensorboard=False)
    made = train(settings, traces, options)
    log = (made.path / "training_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["learning_rate"] for line in log] == [2e-3] * 3 + [5e-4]
    chosen = made.summary["selection"]
    assert chosen["by_mode"]["reasoning"]["examples"] == 80 and chosen["by_mode"]["ift"]["examples"] == 240
    lengths = sorted(len(pair.reasoning.reasoning) for pair in read_traces(traces).pairs)
    assert chosen["by_mode"]["reasoning"]["mean_reasoning_characters"] == pytest.approx(np.mean(lengths[:80]))
    card = (made.path / "README.md").read_text()
    assert "`select: short`" in card and "80 examples with reasoning" in card
    assert "| reasoning_learning_rate | 0.0005 |" in card and "reasoning_learning_rate: 0.0005" in card
    capsys.readouterr()
    show_student(made, traces)
    estimate = dry_run(settings, traces, options)
    assert estimate["selection"] == chosen
    show_estimate(estimate, traces)
    assert capsys.readouterr().out.count("select short: 80 examples with reasoning") == 2


@pytest.mark.parametrize("weight", ["token", "example", "answer"])
@pytest.mark.parametrize(
    "shown",
    [
        {"arm": "mixed:0.2", "select": "hard"},
        {"arm": "sequential:0.2", "select": "disagree", "reasoning_learning_rate": 1e-4},
        {"arm": "sequential:0.2", "one_schedule": True},
        {"phases": [{"reasoning": 0.1}, {"reasoning": 0.3, "epochs": 2, "learning_rate": 1e-4}], "select": "short"},
    ],
)
def test_how_modes_are_mixed_is_said_by_a_mapping(shown, weight):
    """As a preset's YAML has it, and read back from what was written down."""
    values = yaml.safe_load(yaml.safe_dump(SMALL | shown | {"loss_weight": weight}))
    settings = validate(TrainSettings, values, source="a preset")
    assert settings.loss_weight == weight and settings.shown.kind == values.get("arm", "phases").split(":")[0]
    assert validate(TrainSettings, settings.model_dump(mode="json"), source="a manifest") == settings
