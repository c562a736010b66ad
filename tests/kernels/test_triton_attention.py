"""The Triton attention in the interpreter against per-document eager attention in float64, and its schedule."""

import heapq
import itertools
import random
import secrets
import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

pytest.importorskip("triton")

from distill.kernels import attention, attention_plan, document_bounds, reference, triton_attention, varlen_attention
from distill.kernels.attention import IMPLEMENTATIONS
from distill.kernels.attention_configurations import DTYPES, HEAD_SIZES, Blocks, Configuration, configuration
from distill.kernels.attention_kernels import compile_cases
from distill.kernels.attention_tiles import TILE_TOKENS, attention_tiles, most_tiles
from distill.kernels.targets import TARGETS
from distill.kernels.triton_attention import LARGEST_STRIDE

TILE = 32
# Rows of a block that lie behind the document are computed and dropped; the interpreter reports their 0 / 0.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def fresh_numbers():
    seed = secrets.randbits(32)
    print(f"torch.manual_seed({seed}); random.seed({seed})")
    torch.manual_seed(seed)
    random.seed(seed)


def blocks_of(queries, keys):
    return Configuration(*(Blocks(queries, keys, 4, 1) for _ in range(3)))


def bounds_of(lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def packed(lengths, heads, kv_heads, head_dim, dtype):
    """q, k, v as slices of one fused projection's output: not contiguous, not aligned to each other."""
    fused = torch.randn(sum(lengths), (heads + 2 * kv_heads), head_dim, dtype=torch.float64).to(dtype)
    return [x.detach().requires_grad_() for x in fused.split([heads, kv_heads, kv_heads], dim=1)]


def results(function, tensors, upstream):
    out = function(*tensors)
    return [out.detach(), *torch.autograd.grad(out, tensors, upstream.to(out.dtype))]


def ours(lengths, blocks, tile=TILE, **options):
    tiles = attention_tiles(bounds_of(lengths), sum(lengths), max(lengths), tile=tile)
    return lambda q, k, v: triton_attention.triton_attention(q, k, v, tiles, blocks=blocks, **options)


def eager(lengths, **options):
    return lambda q, k, v: reference.varlen_attention(q, k, v, bounds_of(lengths), **options)


def assert_exact(found, exact):
    """To fp32 rounding, of sums of up to some hundred terms."""
    for a, b in zip(found, exact, strict=True):
        assert (a.double() - b).abs().max() <= 1e-5 * max(1.0, b.abs().max().item())


def relative_error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


# Tiles are 32 tokens: one-token documents, one that fills its tile, one longer by one, several tiles, many documents.
LENGTHS = ([1], [TILE + 1, TILE, 1], [5, 2 * TILE + 7])
HEADS = [(1, 1), (4, 2), (7, 1)]  # 1, 2 and 7 queries a key
BLOCKS = [(16, 16), (32, 16), (16, 32)]
OPTIONS = [
    {},
    {"window": 1},
    {"window": 7},
    {"window": 45, "softcap": 2.0},
    {"window": 1000},
    {"softcap": 20.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
def test_matches_float64(blocks, options):
    for lengths, (heads, kv_heads) in zip(LENGTHS, random.sample(HEADS, 3), strict=True):
        scale = random.uniform(0.1, 0.6)
        q, k, v = packed(lengths, heads, kv_heads, 16, torch.float32)
        upstream = torch.randn(16, heads, sum(lengths)).permute(2, 1, 0)  # strided in every dimension
        found = results(ours(lengths, blocks_of(*blocks), scale=scale, **options), (q, k, v), upstream)
        doubles = [x.detach().double().requires_grad_() for x in (q, k, v)]
        exact = results(eager(lengths, scale=scale, **options), doubles, upstream)
        assert_exact(found, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_error_is_at_most_twice_eager_in_the_same_dtype(dtype, head_dim):
    lengths = [40, 3, 33]
    option = random.choice([x for x in OPTIONS if x != {"window": 1}])  # whose dq and dk are 0
    print(option)
    q, k, v = packed(lengths, 4, 2, head_dim, dtype)
    upstream = torch.randn(sum(lengths), 4, head_dim).to(dtype)
    found = results(ours(lengths, blocks_of(32, 32), scale=head_dim**-0.5, **option), (q, k, v), upstream)
    plain = results(eager(lengths, **option), (q, k, v), upstream)
    doubles = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact = results(eager(lengths, **option), doubles, upstream)
    for a, b, c in zip(found, plain, exact, strict=True):
        assert a.dtype == dtype
        assert relative_error(a, c) <= 2 * relative_error(b, c) + 1e-7


@pytest.mark.parametrize("softcap", [2.0, 30.0])
def test_softcap_is_as_accurate_as_eager_where_scores_are_small(softcap):
    """Where tanh is made of exponentials it cancels near 0, which in fp32 would be seen."""
    lengths = [50]
    q, k, v = packed(lengths, 1, 1, 16, torch.float32)
    options = {"scale": 0.02, "softcap": softcap}
    upstream = torch.randn(50, 1, 16)
    found = results(ours(lengths, blocks_of(16, 16), **options), (q, k, v), upstream)
    plain = results(eager(lengths, **options), (q, k, v), upstream)
    exact = results(eager(lengths, **options), [x.detach().double().requires_grad_() for x in (q, k, v)], upstream)
    for a, b, c in zip(found, plain, exact, strict=True):
        assert relative_error(a, c) <= 2 * relative_error(b, c) + 1e-7


@pytest.mark.parametrize("head_dim", [1, 8, 24])
def test_other_head_sizes_are_padded(head_dim):
    lengths = [TILE + 3, 2]
    q, k, v = packed(lengths, 2, 1, head_dim, torch.float32)
    upstream = torch.randn(sum(lengths), 2, head_dim)
    found = results(ours(lengths, blocks_of(16, 16), scale=0.3), (q, k, v), upstream)
    doubles = [x.detach().double().requires_grad_() for x in (q, k, v)]
    assert_exact(found, results(eager(lengths, scale=0.3), doubles, upstream))


@pytest.mark.parametrize("window", [2**31 - 1, 2**31 - 20, 2**40])
def test_a_window_too_large_for_int32_is_none(window):
    """Configurations write "all of it" like this; a place in a document plus the window must not wrap."""
    lengths = [TILE + 9, 4]
    q, k, v = packed(lengths, 2, 1, 16, torch.float32)
    upstream = torch.randn(sum(lengths), 2, 16)
    found = results(ours(lengths, blocks_of(16, 16), scale=0.3, window=window), (q, k, v), upstream)
    expected = results(ours(lengths, blocks_of(16, 16), scale=0.3), (q, k, v), upstream)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("wanted", ["q", "k", "v"])
def test_only_one_input_needs_a_gradient_and_keys_are_expanded(wanted):
    """Keys and values of one head seen as two: a stride of 0 between heads."""
    lengths = [20, 3]
    q, k, v = (x.detach() for x in packed(lengths, 2, 1, 16, torch.float32))
    inputs = {"q": q, "k": k, "v": v}
    leaf = inputs[wanted].requires_grad_()
    k, v = (x.expand(-1, 2, -1) for x in (k, v))
    out = ours(lengths, blocks_of(16, 16), scale=0.3)(q, k, v)
    upstream = torch.randn_like(out)
    (found,) = torch.autograd.grad(out, leaf, upstream)
    exact = eager(lengths, scale=0.3)(q.double(), k.double(), v.double())
    assert_exact([out.detach(), found], [exact.detach(), torch.autograd.grad(exact, leaf, upstream.double())[0]])


def test_three_hundred_documents():
    lengths = [random.randint(1, 2) for _ in range(300)]
    q, k, v = packed(lengths, 1, 1, 16, torch.bfloat16)
    upstream = torch.randn(sum(lengths), 1, 16)
    found = results(ours(lengths, blocks_of(16, 16), tile=16, scale=0.25), (q, k, v), upstream)
    plain = results(eager(lengths, scale=0.25), (q, k, v), upstream)
    exact = results(eager(lengths, scale=0.25), [x.detach().double().requires_grad_() for x in (q, k, v)], upstream)
    for a, b, c in zip(found, plain, exact, strict=True):
        assert relative_error(a, c) <= 2 * relative_error(b, c)


@pytest.mark.parametrize("window", [None, 9])
def test_nothing_of_a_document_reaches_another(window):
    """0 * NaN is NaN: rows of other documents may not even be multiplied by 0, forward or backward."""
    lengths = [17, 40, 15]
    q, k, v = packed(lengths, 2, 1, 16, torch.bfloat16)
    upstream = torch.randn(sum(lengths), 2, 16).bfloat16()
    function = ours(lengths, blocks_of(16, 16), scale=0.25, window=window)
    before = results(function, (q, k, v), upstream)
    spoilt = [x.detach().clone() for x in (q, k, v, upstream)]
    for x in spoilt:
        x[17:57] = float("nan")
    after = results(function, [x.requires_grad_() for x in spoilt[:3]], spoilt[3])
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[:17], b[:17]) and torch.equal(a[57:], b[57:])
        assert b[17:57].isnan().any()


def test_offsets_beyond_two_to_the_31():
    """Tokens and heads so far apart in memory that an offset in int32 would wrap; hardly any of it is touched."""
    lengths = [260, 12]
    tokens, stride = sum(lengths), LARGEST_STRIDE
    storage = torch.empty(tokens * stride, dtype=torch.float16)
    far = [storage[16 * i :].as_strided((tokens, 1, 16), (stride, 16, 1)) for i in range(4)]
    apart = [storage[4096 + 16 * i :].as_strided((20, 3, 16), (64, 2**30 + 64, 1)) for i in range(4)]
    for tensors, its_lengths in ((far, lengths), (apart, [20])):
        for x in tensors:
            x.copy_(torch.randn(x.shape))
        assert (tensors[0].shape[0] - 1) * tensors[0].stride(0) + (tensors[0].shape[1] - 1) * tensors[0].stride(
            1
        ) > 2**31
        function = ours(its_lengths, blocks_of(64, 64), tile=64, scale=0.25)
        found = results(function, [x.requires_grad_() for x in tensors[:3]], tensors[3])
        near = [x.detach().clone(memory_format=torch.contiguous_format) for x in tensors]
        expected = results(function, [x.requires_grad_() for x in near[:3]], near[3])
        assert all(map(torch.equal, found, expected))


def test_rows_further_apart_are_copied_first():
    storage = torch.randn(2 * (LARGEST_STRIDE + 1), dtype=torch.float16)
    q, k, v = (storage[i:].as_strided((2, 1, 8), (LARGEST_STRIDE + 1, 8, 1)) for i in range(3))
    function = ours([2], blocks_of(16, 16), scale=1.0)
    assert torch.equal(function(q, k, v), function(q.contiguous(), k.contiguous(), v.contiguous()))


def test_a_grid_has_one_axis_of_more_than_65535_programs(monkeypatch):
    grids = []

    class Recorder:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *arguments, **constants: None

    for name in ("forward_kernel", "delta_kernel", "d_keys_kernel", "d_queries_kernel"):
        monkeypatch.setattr(triton_attention, name, Recorder())
    lengths = [1] * 70_000
    q, k, v = packed(lengths, 2, 2, 1, torch.float32)
    results(ours(lengths, blocks_of(16, 16), scale=1.0), (q, k, v), torch.ones(70_000, 2, 1))
    assert [len(grid) for grid in grids] == [1, 1, 1, 1]
    assert grids[0][0] >= 2 * 70_000 and grids[2][0] >= 2 * 70_000 and grids[3][0] >= 2 * 70_000


def test_the_same_bits_every_time_and_backward_twice():
    lengths = [50, 1, 20]
    q, k, v = packed(lengths, 2, 1, 16, torch.bfloat16)
    function = ours(lengths, blocks_of(16, 16), scale=0.25, softcap=3.0)
    out = function(q, k, v)
    assert torch.equal(out, function(q, k, v))
    total = out.float().square().sum()
    first = torch.autograd.grad(total, (q, k, v), retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(total, (q, k, v))))


def test_a_second_derivative_is_refused():
    q, k, v = packed([20], 1, 1, 16, torch.float32)
    out = ours([20], blocks_of(16, 16), scale=0.25)(q, k, v)
    (d_q,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="backward"):
        d_q.sum().backward()


@pytest.mark.parametrize("options", [(0, 0.0), (5, 2.0)])
def test_opcheck(options):
    lengths = [20, 3]
    q, k, v = packed(lengths, 2, 1, 16, torch.float32)
    tiles = attention_tiles(bounds_of(lengths), 23, 20, tile=16)
    shared = (tiles.by_queries, tiles.by_keys, 16, 0.25, *options, [16, 16, 4, 1] * 3)
    torch.library.opcheck(torch.ops.distill.varlen_attention.default, (q, k, v, *shared))
    detached = [x.detach() for x in (q, k, v)]
    out, lse2 = torch.ops.distill.varlen_attention(*detached, *shared)
    arguments = (torch.randn_like(out), *detached, out, lse2, *shared)
    torch.library.opcheck(torch.ops.distill.varlen_attention_backward.default, arguments)


# --- as varlen_attention calls it -------------------------------------------------------------------------------------


@pytest.fixture
def triton_on_cpu(monkeypatch):
    """Let varlen_attention take the interpreted kernels on a CPU, with small blocks."""
    refused = attention.unsupported_attention
    monkeypatch.setattr(
        attention,
        "unsupported_attention",
        lambda name, *rest, **options: None if name == "triton" else refused(name, *rest, **options),
    )
    monkeypatch.setattr(triton_attention, "configuration", lambda *_: blocks_of(16, 16))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_to_one_graph(triton_on_cpu, dynamic):
    def loss(q, k, v, cu_seqlens, tiles):
        out = varlen_attention(q, k, v, cu_seqlens, 32, window=9, softcap=4.0, implementation="triton", plan=tiles)
        return out.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for lengths in ([20, 3], [7, 30, 1]):
        q, k, v = packed(lengths, 2, 1, 16, torch.float32)
        cu_seqlens = bounds_of(lengths)
        tiles = attention_tiles(cu_seqlens, sum(lengths), max(lengths))
        found = compiled(q, k, v, cu_seqlens, tiles)
        expected = loss(q, k, v, cu_seqlens, tiles)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found, (q, k, v)), torch.autograd.grad(expected, (q, k, v)), rtol=1e-5, atol=1e-6
        )


def test_packs_of_other_shapes_are_not_compiled_again(triton_on_cpu):
    """Numbers of tokens, documents and tiles become symbols in the second pack's compilation."""
    counter = CompileCounterWithBackend("aot_eager")

    def loss(q, k, v, cu_seqlens, max_seqlen, tiles):
        out = varlen_attention(q, k, v, cu_seqlens, max_seqlen, window=9, implementation="triton", plan=tiles)
        return out.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for lengths in ([20, 130], [7, 150, 1], [140]):
        q, k, v = packed(lengths, 2, 1, 16, torch.float32)
        cu_seqlens, longest = bounds_of(lengths), max(lengths)
        compiled(q, k, v, cu_seqlens, longest, attention_tiles(cu_seqlens, sum(lengths), longest)).backward()
    assert counter.frame_count <= 2


def test_the_choice_is_made_without_a_trace_of_it():
    """Looking for packages is left out of the graph, without a warning of torch.compile's."""

    def choose(x, softcap):
        name = attention.choose_attention("cuda", torch.bfloat16, 64, capability=(9, 0), softcap=softcap)
        return x + IMPLEMENTATIONS.index(name)

    compiled = torch.compile(choose, fullgraph=True, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for softcap in (None, 30.0):
            name = attention.choose_attention("cuda", torch.bfloat16, 64, capability=(9, 0), softcap=softcap)
            assert compiled(torch.zeros(()), softcap) == IMPLEMENTATIONS.index(name)


def test_without_a_plan_and_under_autocast(triton_on_cpu):
    lengths = [20, 3]
    q, k, v = packed(lengths, 2, 1, 16, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = varlen_attention(q, k, v, bounds_of(lengths), 20, implementation="triton")
    assert found.dtype == torch.bfloat16
    assert relative_error(found.detach(), reference.varlen_attention(q, k, v, bounds_of(lengths)).double()) < 0.02
    with pytest.raises(ValueError, match="cu_seqlens: got 22 last, takes T = 23"):
        varlen_attention(q, k, v, torch.tensor([0, 22]), 22, implementation="triton")
    with pytest.raises(ValueError, match="max_seqlen: got 19"):
        varlen_attention(q, k, v, bounds_of(lengths), 19, implementation="triton")
    tiles = attention_tiles(bounds_of([23]), 23, 23)
    with pytest.raises(ValueError, match=r"max_seqlen: got 20, takes .* 23"):
        varlen_attention(q, k, v, bounds_of([23]), 20, implementation="triton", plan=tiles)


@pytest.mark.parametrize("with_plan", [False, True])
def test_nothing_waits_for_a_gpu(monkeypatch, with_plan):
    """Reading a value from a tensor that has none raises: with plan or without, there is no such reading."""
    monkeypatch.setattr(attention, "_capability", lambda device=None: (9, 0))
    monkeypatch.delenv("DISTILL_DEBUG", raising=False)
    with FakeTensorMode():
        q = torch.empty(100, 4, 64, device="cuda", dtype=torch.float32)
        k, v = (torch.empty(100, 2, 64, device="cuda", dtype=torch.float32) for _ in range(2))
        cu_seqlens = torch.empty(8, device="cuda", dtype=torch.int32)
        plan = attention_plan(cu_seqlens, 100, 40) if with_plan else None
        assert attention.choose_attention("cuda", q.dtype, 64) == "triton"
        out = varlen_attention(q, k, v, cu_seqlens, 40, plan=plan)
        assert out.shape == q.shape and out.device.type == "cuda"
        with pytest.raises(ValueError, match="total_tokens: got None"):
            attention_plan(cu_seqlens)
        monkeypatch.setenv("DISTILL_DEBUG", "1")
        with pytest.raises(DataDependentOutputException):
            attention_plan(cu_seqlens, 100, 40)


@pytest.mark.parametrize(
    ("bounds", "total_tokens", "max_seqlen"),
    [
        ([1, 3, 6], 6, 6),
        ([0, 3, 2, 6], 6, 6),
        ([0, 3, 3, 6], 6, 6),
        ([0, 3, 5], 6, 6),
        ([0, 3, 7], 6, 6),
        ([0, 1, 6], 6, 4),
    ],
)
def test_the_device_refuses_bad_bounds(bounds, total_tokens, max_seqlen):
    with pytest.raises(RuntimeError, match="cu_seqlens"):
        document_bounds.assert_bounds(torch.tensor(bounds), total_tokens, max_seqlen)


def test_the_device_takes_good_bounds():
    document_bounds.assert_bounds(torch.tensor([0, 3, 4, 6], dtype=torch.int32), 6, 3)


# --- the schedule -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [1, 16, 128])
@pytest.mark.parametrize("documents", [1, 2, 17, 300])
def test_every_tile_is_there_once_and_heaviest_first(tile, documents):
    lengths = [random.choice([1, tile, tile + 1, random.randint(1, 900)]) for _ in range(documents)]
    tiles = attention_tiles(bounds_of(lengths), sum(lengths), max(lengths), tile=tile)
    bounds = bounds_of(lengths).tolist()
    expected = sorted(
        (start, end, first) for start, end in itertools.pairwise(bounds) for first in range(start, end, tile)
    )
    for table, work in (
        (tiles.by_queries, lambda start, end, first: min(first + tile, end) - start),
        (tiles.by_keys, lambda start, end, first: end - first),
    ):
        assert table.dtype == torch.int32 and table.shape == (3, most_tiles(sum(lengths), documents, tile))
        columns = [tuple(column) for column in table.T.tolist()]
        assert sorted(columns[: len(expected)]) == expected
        assert set(columns[len(expected) :]) <= {(0, 0, 0)}
        works = [work(*column) for column in columns]
        assert works == sorted(works, reverse=True)


@pytest.mark.parametrize("window", [None, 4096])
def test_one_long_document_does_not_starve_the_rest(window):
    """Programs handed to 132 workers in the grid's order end almost together: one document of 32k beside a thousand."""
    lengths = [32768, *(random.randint(1, 200) for _ in range(1000))]
    random.shuffle(lengths)
    tiles = attention_tiles(bounds_of(lengths), sum(lengths), max(lengths))
    reach = 32768 if window is None else window
    for table, heads, work in (
        (tiles.by_queries, 14, lambda start, end, first: min(first + TILE_TOKENS - start, reach + TILE_TOKENS)),
        (tiles.by_keys, 2, lambda start, end, first: 7 * min(end - first, reach + TILE_TOKENS)),
    ):
        programs = [-(-work(*column) // 64) for column in table.T.tolist() if column[1] for _ in range(heads)]
        workers = [0] * 132
        for seconds in programs:
            heapq.heapreplace(workers, workers[0] + seconds)
        assert max(workers) <= 1.03 * max(sum(programs) / 132, max(programs))


# --- what is compiled for whom ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_compile_cases_cover_what_is_launched(target):
    cases = compile_cases(target)
    assert len({case.name for case in cases}) == len(cases) == len(DTYPES) * len(HEAD_SIZES) * (1 + 3 * 4)
    for case in cases:
        assert list(case.signature) == case.kernel.arg_names
        assert {name for name, kind in case.signature.items() if kind == "constexpr"} == case.constants.keys()


@pytest.mark.parametrize("arch", [*(target.arch for target in TARGETS.values()), None])
def test_blocks_divide_a_tile(arch):
    for dtype, head_dim, has_softcap in itertools.product(DTYPES, (8, *HEAD_SIZES), (False, True)):
        blocks = configuration(arch, head_dim, dtype, has_softcap)
        assert TILE_TOKENS % blocks.forward.queries == TILE_TOKENS % blocks.d_queries.queries == 0
        assert TILE_TOKENS % blocks.d_keys.keys == 0
