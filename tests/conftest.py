"""What several rooms' tests share: Triton's interpreter, a tiny student with random weights, one vLLM server for all.

In the pytest process, and only there, `@triton.jit` functions run in Triton's interpreter: a kernel's mathematics is
tested without a GPU. `interpret_triton` says what is put right in it; tests/kernels/test_interpreter.py proves it.
"""

import ctypes
import importlib.util
import os
import secrets
import shutil
import signal
from contextlib import contextmanager

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test downloads anything
# A shell's background job ignores Ctrl-C, and so does every process that it starts; tests send it to theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)


def interpret_triton() -> None:
    """Make every @triton.jit function of this process interpreted, as a GPU would compute it.

    The switch must be on while triton is imported, since its own library is decorated then. It may not stay in the
    environment: child processes (servers, commands, ahead-of-time compilations) want compiled kernels.
    """
    os.environ["TRITON_INTERPRET"] = "1"
    import triton

    triton.knobs.runtime.interpret = True
    del os.environ["TRITON_INTERPRET"]
    repair_interpreter()


def repair_interpreter() -> None:
    """Put right where the interpreter silently differs from a GPU.

    It keeps bf16 as uint16 and does arithmetic on those bits: dots, sums, comparisons, atomic additions and casts from
    integers are garbage, and fp32 is cut off rather than rounded. Here bf16 is widened to fp32, which is exact, and a
    result that is bf16 is rounded to nearest even; tl.sum of bf16 rounds every partial sum. fp32 dots lose the bits that tf32 has not, unless the kernel asks for
    input_precision "ieee" or "tf32x3". tl.maximum and tl.minimum drop a NaN, as their hardware instructions do. A float
    argument is an fp32 value, which widens the bf16 it meets, not a number of Python's.
    """
    import numpy as np
    import triton.language as tl
    from triton._C.libtriton import ir
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, TensorHandle

    def is_bf16(handle):
        return handle.dtype.scalar == tl.bfloat16

    def widened(handle):
        if not is_bf16(handle):
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def rounded(values):
        values = np.asarray(values, np.float32)
        bits = values.view(np.uint32)
        nearest_even = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        return TensorHandle(np.where(np.isnan(values), 0x7FC0, nearest_even).astype(np.uint16), tl.bfloat16)

    def tf32(handle):
        return TensorHandle((handle.data.view(np.uint32) & 0xFFFFE000).view(np.float32), tl.float32)

    cast, binary, fma, dot, atomic = (
        getattr(InterpreterBuilder, name)
        for name in ("cast_impl", "binary_op", "create_fma", "create_dot", "create_atomic_rmw")
    )

    def cast_impl(self, src, dst_type):
        if dst_type.scalar == tl.bfloat16:
            return rounded(widened(src).data)
        return cast(self, widened(src), dst_type)

    def binary_op(self, lhs, rhs, op):
        if not is_bf16(lhs):
            return binary(self, lhs, rhs, op)
        values = op(widened(lhs).data, widened(rhs).data)
        return TensorHandle(values, tl.int1) if values.dtype == bool else rounded(values)

    def create_fma(self, x, y, z):
        wide = fma(self, widened(x), widened(y), widened(z))
        return rounded(wide.data) if is_bf16(z) else wide

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        if a.dtype.scalar == tl.float32 and input_precision == ir.INPUT_PRECISION.TF32:
            a, b = tf32(a), tf32(b)
        return dot(self, widened(a), widened(b), d, input_precision, max_num_imprecise_acc)

    def create_atomic_rmw(self, op, ptr, val, mask, sem, scope):
        if not is_bf16(val):
            return atomic(self, op, ptr, val, mask, sem, scope)
        before = np.zeros(ptr.data.shape, np.uint16)
        for i in np.argwhere(np.broadcast_to(mask.data, ptr.data.shape)):  # one by one: addresses may repeat
            i = tuple(i)
            cell = ctypes.c_uint16.from_address(int(ptr.data[i]))
            before[i] = cell.value
            old, change = (TensorHandle(np.array([x], np.uint16), tl.bfloat16) for x in (cell.value, val.data[i]))
            cell.value = int(binary_op(self, old, change, np.add).data[0])
        return TensorHandle(before, tl.bfloat16)

    sum_at_once = ReduceOps.sum

    def sum_as_combined(self, x):
        return self.generic_reduce((x,))[0] if is_bf16(x.handle) else sum_at_once(self, x)

    ReduceOps.sum = sum_as_combined
    convert = interpreter._implicit_cvt

    def convert_argument(value):
        if isinstance(value, float):
            return tl.tensor(TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)
        return convert(value)

    interpreter._implicit_cvt = convert_argument
    for function in (cast_impl, binary_op, create_fma, create_dot, create_atomic_rmw):
        setattr(InterpreterBuilder, function.__name__, function)
    InterpreterBuilder.get_bf16 = lambda self, value: rounded([value])
    InterpreterBuilder.create_maxnumf = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmax)
    InterpreterBuilder.create_minnumf = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmin)


if importlib.util.find_spec("triton") is not None:
    interpret_triton()

SPECIAL_TOKENS = ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>", "<think>", "</think>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def rng():
    """Fresh numbers in every run; the seed is in the output of a test that fails."""
    import numpy as np

    seed = secrets.randbits(32)
    print(f"np.random.default_rng({seed})")
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory):
    """A checkpoint folder: Qwen2, 2 layers, hidden 64, fp32, 256 positions, a byte-level tokenizer of 262 tokens.

    The ids of the special tokens are their places in SPECIAL_TOKENS; <|end|> (3) ends a turn. The weights are random
    and the same in every session.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "student"
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator([], trainers.BpeTrainer(special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.125,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vllm_server(tiny_student, tmp_path_factory):
    """A running distill.serve.Server with tiny_student in fp32; its `endpoint` is where to send requests."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    from distill.serve import Server, ServerSettings

    settings = ServerSettings(dtype="float32", max_model_len=256, kv_cache_gib=1, threads=1)
    with Server(tiny_student, settings, tmp_path_factory.mktemp("vllm") / "server.log") as server:
        yield server


@pytest.fixture(scope="session")
def trained_student(tmp_path_factory):
    """A folder made by the real trainer: `tiny` on the reasoning of 3,500 questions of `max`, in a few seconds."""
    from distill.traces.generate import generate
    from distill.traces.settings import GenerateSettings
    from distill.training.settings import RunOptions, TrainSettings
    from distill.training.train import train

    folder = tmp_path_factory.mktemp("trained")
    generate(GenerateSettings(tasks={"max": 3500}), folder / "traces")
    settings = TrainSettings(
        student="tiny",
        arm="reasoning",
        row_tokens=1024,
        batch=24,
        epochs=2,
        learning_rate=4e-3,
        warmup_steps=20,
        final_learning_rate_ratio=0.0,
        precision="fp32",
    )
    train(settings, folder / "traces", RunOptions(out=folder / "student", threads=1, tensorboard=False))
    return folder / "student"


@pytest.fixture(scope="session")
def trained_server(trained_student, tmp_path_factory):
    """A running distill.serve.Server with trained_student in fp32, which takes thinking budgets and estimates FLOPs."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    from distill.evaluation.budgets import server_arguments
    from distill.evaluation.subject import load_subject
    from distill.serve import Server, ServerSettings

    arguments = (*server_arguments(load_subject(trained_student).chat), "--enable-mfu-metrics")
    settings = ServerSettings(dtype="float32", max_model_len=256, kv_cache_gib=1, threads=1, arguments=arguments)
    with Server(trained_student, settings, tmp_path_factory.mktemp("trained-vllm") / "server.log") as server:
        yield server


@pytest.fixture(scope="session")
def chromium():
    """`with chromium(folder) as browser`: a Chromium of its own, driven by selenium, with its profile in the folder.

    It asks for nothing by itself and logs what pages say and request.
    """
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("needs chromium and chromedriver on the PATH (Debian: apt install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]

    @contextmanager
    def opened(folder):
        options = webdriver.ChromeOptions()
        options.binary_location = program
        for flag in (*flags, f"--user-data-dir={folder / 'profile'}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        browser = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield browser
        finally:
            browser.quit()

    return opened
