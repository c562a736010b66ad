"""`distill bench kernels`, small: contenders compute the same, memory is counted, and the compile check ends right."""

import json
import random
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from distill import cli
from distill.bench import cases
from distill.bench.divergence_peers import eager_divergence
from distill.bench.documents import causal_pairs, document_lengths
from distill.bench.kernel_memory import measure_extra_bytes
from distill.bench.kernels import SECTIONS, KernelBenchSettings, bench_kernels, kernel_tables, kernel_targets
from distill.bench.loss_peers import LOSSES
from distill.bench.names import OURS, PRODUCTS, in_order
from distill.bench.peers import Peer
from distill.errors import InputError

SMALL = KernelBenchSettings(
    rows=96,
    hidden=48,
    vocabulary=600,
    tokens=160,
    mean_length=40.0,
    heads=4,
    kv_heads=2,
    head_dim=16,
    teacher_entries=6,
    rounds=3,
    threads=1,
    seed=random.randrange(1 << 20),
)


@pytest.fixture(scope="module")
def result():
    """Memory has a test of its own: a child process for every contender takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.bench.kernel_memory.measure_extra_bytes", lambda *_: 1 << 20)
        return bench_kernels(SMALL)


def test_the_numbers_hang_together(result):
    assert json.loads(json.dumps(result)) == result and set(result["sections"]) == set(SECTIONS)
    for name, section in result["sections"].items():
        assert OURS in section["contenders"]
        for contender, values in section["contenders"].items():
            if "missing" in values:
                assert contender.startswith("torch chunked"), values  # torch before 2.13
                continue
            m = values["measured"]
            assert 0 < m["low"] <= m["seconds"] <= m["high"], (name, contender)
            if contender != OURS:
                assert len(section["measured"]["ratios"][contender]["rounds"]) == SMALL.rounds


def test_every_contender_computes_the_same(result):
    """bfloat16 has 8 bits: gradients of bf16 logits lose about 1e-2, losses less."""
    for name, section in result["sections"].items():
        checked = 0
        for contender, values in section["contenders"].items():
            for tensor, error in (values.get("errors") or {}).items():
                assert error < 5e-2, (name, contender, tensor, SMALL.seed)
                checked += 1
        assert checked >= 8, name


def test_tables_list_ours_before_others(result):
    for _, columns, rows in kernel_tables(result):
        names = [row[0] for row in rows]
        assert names == in_order(names) and OURS in names[:2] and {len(row) for row in rows} == {len(columns)}
    assert kernel_targets(result) == []  # they are for the default shape


def test_targets_are_judged_by_ratio_and_memory():
    measured = lambda extra: {"measured": {"extra_bytes": extra}}  # noqa: E731
    ratio = lambda value: {"value": value, "low": None, "high": None, "rounds": []}  # noqa: E731
    section = {
        "contenders": {OURS: measured(40), "eager": measured(100), "torch chunked": measured(10)},
        "measured": {"ratios": {"eager": ratio(1.4), "torch chunked": ratio(6.0)}},
    }
    settings = KernelBenchSettings().model_dump(mode="json")
    rows = kernel_targets({"settings": settings, "sections": {"linear_cross_entropy": section}})
    assert [row[-1] for row in rows] == ["missed", "met", "met"]


def test_memory_is_counted_above_the_inputs():
    """Eager holds bf16 and float32 logits of all rows and their gradients; the bare products hold bf16 ones once."""
    settings = SMALL.model_copy(update={"rows": 512, "vocabulary": 16384, "ignored": 0.0})
    logits = 512 * 16384
    eager = measure_extra_bytes("linear_cross_entropy", "eager", settings)
    products = measure_extra_bytes("linear_cross_entropy", PRODUCTS, settings)
    assert eager >= (4 + 4) * logits and 2 * logits * 0.9 <= products <= 3 * logits + (24 << 20)


def test_a_child_that_fails_is_one_line():
    with pytest.raises(InputError, match="no such contender") as error:
        measure_extra_bytes("linear_cross_entropy", "no such contender", SMALL)
    assert "\n" not in str(error.value)


def test_documents_make_the_tokens_asked_for():
    generator = torch.Generator().manual_seed(SMALL.seed)
    for total in (1, 100, 5000):
        lengths = document_lengths(total, 234.0, 0.5, generator)
        assert sum(lengths) == total and min(lengths) >= 1
    many = document_lengths(2_000_000, 234.0, 0.5, generator)
    assert sum(many) / len(many) == pytest.approx(234.0, rel=0.05)  # some 8500 draws with 53 % spread: 0.6 %
    assert causal_pairs([3, 1]) == 3 + 2 + 1 + 1


def test_the_divergence_of_plain_torch_is_the_specification():
    from distill.kernels import reference

    case = cases.teacher_case(20, 64, 640, 4, torch.float64, torch.device("cpu"), SMALL.seed)
    found, exact = eager_divergence(*case), reference.linear_topk_divergence(*case)
    assert found.item() == pytest.approx(exact.item(), rel=1e-6)  # in float64, as it is used there
    assert all(row.unique().numel() == 4 for row in case.ids)


def test_blocks_of_the_exact_reference_are_the_whole(monkeypatch):
    from distill.kernels import reference

    monkeypatch.setattr(cases, "_EXACT_LOGITS", 7 * 100)
    case = cases.loss_case(33, 8, 100, 0.3, torch.float64, torch.device("cpu"), SMALL.seed)
    loss, d_hidden, d_weight = cases.exact_row_loss(reference.linear_cross_entropy, case, case.kept)
    expected = F.cross_entropy(case.hidden @ case.weight.T, case.labels)
    grads = torch.autograd.grad(expected, (case.hidden, case.weight))
    assert torch.allclose(loss, expected)
    assert torch.allclose(d_hidden, grads[0]) and torch.allclose(d_weight, grads[1])


def test_missing_packages_and_devices_are_reasons():
    assert Peer(lambda: None, "no_such_package").missing("cpu") == "no-such-package is not installed"
    assert "cuda" in LOSSES["QuACK"].missing("cpu")
    assert LOSSES["eager"].missing("cpu") is None


def _run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["distill", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    return exit.value.code or 0


@pytest.mark.parametrize("problems", [[], ["sm_90: row_stats bf16 spills 24 bytes"]])
def test_compile_only_ends_by_its_problems(problems, monkeypatch, tmp_path, capsys):
    asked = []
    fake = SimpleNamespace(
        compile_kernels=lambda names: asked.append(names) or {"problems": problems}, show_compiled=lambda result: None
    )
    monkeypatch.setitem(sys.modules, "distill.bench.compile_kernels", fake)
    out = tmp_path / "new" / "compiled.json"
    code = _run(monkeypatch, "bench", "kernels", "--compile-only", "--targets", "sm_90,gfx942", "--out", out)
    assert code == (1 if problems else 0) and asked == [["sm_90", "gfx942"]]
    assert json.loads(out.read_text()) == {"problems": problems}


def test_bad_settings_are_one_line(monkeypatch, capsys):
    assert _run(monkeypatch, "bench", "kernels", "--rows", "0") == 2
    assert capsys.readouterr().err.strip().count("\n") == 0


def _fake_kernels(monkeypatch, measure):
    fake = SimpleNamespace(
        KernelBenchSettings=KernelBenchSettings,
        bench_kernels=measure,
        show_kernels=lambda result: (_ for _ in ()).throw(BrokenPipeError()),
    )
    monkeypatch.setitem(sys.modules, "distill.bench.kernels", fake)


def test_what_was_measured_is_on_disk_before_it_is_shown(monkeypatch, tmp_path):
    _fake_kernels(monkeypatch, lambda settings: {"rows": settings.rows})
    monkeypatch.setattr("sys.argv", ["distill", "bench", "kernels", "--out", str(tmp_path / "new" / "k.json")])
    with pytest.raises((BrokenPipeError, SystemExit)):
        cli.main()
    assert json.loads((tmp_path / "new" / "k.json").read_text()) == {"rows": 2048}


def test_a_place_that_cannot_be_written_is_said_before_anything_is_measured(monkeypatch, tmp_path, capsys):
    _fake_kernels(monkeypatch, lambda settings: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    for out in ("/proc/none/k.json", tmp_path / "file" / "k.json", tmp_path):
        assert _run(monkeypatch, "bench", "kernels", "--out", out) == 2
        assert capsys.readouterr().err.strip().count("\n") == 0


def test_an_interrupted_benchmark_does_not_say_that_something_is_kept(monkeypatch, tmp_path, capsys):
    def interrupted(settings):
        raise KeyboardInterrupt

    _fake_kernels(monkeypatch, interrupted)
    assert _run(monkeypatch, "bench", "kernels", "--out", tmp_path / "k.json") == 130
    assert "keeps nothing" in capsys.readouterr().err and not list(tmp_path.iterdir())
