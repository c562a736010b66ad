"""`distill bench packing`, small: the result has what its description says, and its numbers can be told otherwise."""

import json

import numpy as np
import pytest
from scipy import stats

from distill.bench.packing import MEDIAN, SIGMA, PackingBenchSettings, bench_packing, document_lengths, show_packing
from distill.errors import InputError

ROWS = (16_384, 32_768)


@pytest.fixture(scope="module")
def result():
    settings = PackingBenchSettings(
        documents=4000,
        row_tokens=ROWS,
        ranks=(2, 8),
        examples=60,
        vocabulary=400,
        rounds=3,
        seed=int(np.random.default_rng().integers(1000)),
    )
    return bench_packing(settings)


def test_rows_hold_the_documents_and_groups_of_like_cost_beat_chance(result):
    assert [plan["row_tokens"] for plan in result["plans"]] == list(ROWS)
    for plan in result["plans"]:
        tokens = document_lengths(4000, plan["row_tokens"], result["settings"]["seed"]).sum()
        assert plan["fill"] == pytest.approx(tokens / (plan["rows"] * plan["row_tokens"])) and 0.95 < plan["fill"] <= 1
        for by_ranks in plan["balance"].values():
            assert by_ranks.keys() == {"2", "8"}
            for share in by_ranks.values():
                assert share["random"] < share["grouped"] <= 1
        assert all(len(m["rounds"]) == 3 and min(m["rounds"]) > 0 for m in plan["measured"].values())
    long = result["plans"][1]["balance"]["Qwen2.5-1.5B"]["8"]
    assert long["grouped"] > 0.97 and long["random"] < 0.9


def test_the_ratio_is_of_rates_on_the_same_tokens(result):
    assert json.loads(json.dumps(result)) == result
    tokenizing = result["tokenizing"]
    assert tokenizing["pairs"] > 0 and tokenizing["tokens"] > 100 * tokenizing["pairs"]
    measured = tokenizing["measured"]
    quotients = np.divide(measured["render"]["rounds"], measured["tokenizer"]["rounds"])
    assert measured["ratio"]["rounds"] == pytest.approx(quotients.tolist()) and len(quotients) == 3
    assert measured["ratio"]["low"] <= measured["ratio"]["value"] <= measured["ratio"]["high"]


def test_the_tables_show_it(result, capsys):
    show_packing(result)
    shown = capsys.readouterr().out
    for plan in result["plans"]:
        assert f"{plan['rows']:,}" in shown and f"{plan['fill']:.3%}" in shown


def test_lengths_are_log_normal_where_they_fit():
    seed, longest = int(np.random.default_rng().integers(1000)), 8192
    lengths = document_lengths(20_000, longest, seed)
    assert lengths.min() >= 16 and lengths.max() <= longest
    whole = stats.lognorm(SIGMA, scale=MEDIAN)
    quantiles = np.array([0.1, 0.5, 0.9])
    expected = whole.ppf(quantiles * whole.cdf(longest))
    # The standard error of these quantiles is about 1 % of them at 20,000 draws.
    np.testing.assert_allclose(np.quantile(lengths, quantiles), expected, rtol=0.06)
    assert (document_lengths(20_000, longest, seed) == lengths).all()


def test_bad_input_is_one_line():
    for wrong in ({"row_tokens": (16,)}, {"ranks": (0, 2)}, {"data": "foo"}):
        with pytest.raises(InputError) as error:
            bench_packing(PackingBenchSettings(documents=10, examples=2, vocabulary=300, **wrong))
        assert "\n" not in str(error.value)
