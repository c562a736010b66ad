"""The server's life: ready, refused, dead, hung, and gone with everything it started, whatever happened to us.

A stand-in that imports nothing takes vLLM's place (tests/serve/test_vllm.py has the real one). Like vLLM it starts a
process of its own that would outlive it; this one even leaves the process group, and in mode "hang" ignores SIGTERM.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from distill.errors import InputError
from distill.serve import Server, ServerSettings, keeper, server
from distill.settings import validate

STAND_IN = r"""
import http.server, json, os, signal, subprocess, sys
port, mode = int(sys.argv[1]), sys.argv[2]
stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN);" if mode == "hang" else ""
orphan = f"import signal, time; {stubborn} time.sleep(600)"
started = [subprocess.Popen([sys.executable, "-c", orphan, sys.argv[3]], start_new_session=True) for _ in range(2)]
print("key " + os.environ["VLLM_API_KEY"] if mode == "leak" else "starting", flush=True)
if mode in ("die", "leak"):
    print("\n".join(f"line {i}" for i in range(100)) + "\nValueError: the weights are odd\nRuntimeError: so it died")
    sys.exit(7)
if mode == "hang":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pause()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ok = self.path == "/health" or self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
        self.send_response(200 if ok else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "student"}]}).encode())
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def student(tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Puts the stand-in, in a mode, in vLLM's place."""

    def use(mode):
        command = lambda model, name, port, settings: [sys.executable, "-c", STAND_IN, str(port), mode, str(tmp_path)]  # noqa: E731
        monkeypatch.setattr(server, "vllm_command", command)
        monkeypatch.setattr(server, "require_vllm", lambda: None)

    return use


def processes_with(mark):
    """Living processes (zombies are dead) whose command line or environment holds `mark`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if state != "Z" and str(mark).encode() in text and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def test_ready_and_gone(student, stand_in, tmp_path):
    stand_in("serve")
    with Server(student, ServerSettings(), tmp_path / "logs" / "server.log") as running:
        assert (
            running.start_s > 0
            and running.endpoint.model == "student"
            and running.endpoint.base_url.startswith("http://127.0.0.1:")
        )
        assert len(processes_with(tmp_path)) >= 4  # keeper, server, two orphans
        assert not [pid for pid in processes_with(running.endpoint.api_key) if key_in_arguments(pid, running)]
    assert processes_with(tmp_path) == []
    assert "starting" in (tmp_path / "logs" / "server.log").read_text()
    running.stop()  # again: harmless


def key_in_arguments(pid, running):
    return running.endpoint.api_key.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_gone_after_an_exception(student, stand_in, tmp_path):
    stand_in("serve")
    with pytest.raises(ZeroDivisionError), Server(student, ServerSettings(), tmp_path / "server.log"):
        _ = 1 / 0
    assert processes_with(tmp_path) == []


def test_two_at_once(student, stand_in, tmp_path):
    stand_in("serve")
    with (
        Server(student, ServerSettings(), tmp_path / "a.log") as a,
        Server(student, ServerSettings(), tmp_path / "b.log") as b,
    ):
        assert a.endpoint.base_url != b.endpoint.base_url and a.endpoint.api_key != b.endpoint.api_key


@pytest.mark.parametrize("mode", ["die", "leak"])
def test_death_before_ready_shows_the_cause_and_the_end_of_the_log(student, stand_in, tmp_path, mode):
    stand_in(mode)
    with pytest.raises(InputError) as caught, Server(student, ServerSettings(), tmp_path / "server.log"):
        pass
    first, *rest = str(caught.value).splitlines()
    assert "exit code 7" in first and "ValueError: the weights are odd" in first and str(student) in first
    assert str(tmp_path / "server.log") in rest[0] and rest[-1].strip() == "RuntimeError: so it died"
    assert "line 99" in str(caught.value) and "line 1\n" not in str(caught.value)
    if mode == "leak":
        key = (tmp_path / "server.log").read_text().split()[1]
        assert key not in str(caught.value)
    assert processes_with(tmp_path) == []


def test_a_server_that_never_gets_ready_is_given_up(student, stand_in, tmp_path):
    stand_in("hang")
    settings = ServerSettings(startup_timeout_s=1.0)
    with pytest.raises(InputError, match="not ready after 1 s"), Server(student, settings, tmp_path / "server.log"):
        pass
    assert processes_with(tmp_path) == []


PARENT = """
import sys, time
from pathlib import Path
from distill.serve import Server, ServerSettings, server
mark, student, stand_in = sys.argv[1:]
server.vllm_command = lambda model, name, port, settings: [sys.executable, "-c", stand_in, str(port), "serve", mark]
server.require_vllm = lambda: None
with Server(student, ServerSettings(), Path(mark) / "server.log"):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_when_the_parent_is_killed(student, tmp_path, number):
    arguments = [sys.executable, "-P", "-c", PARENT, str(tmp_path), str(student), STAND_IN]
    parent = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout.readline() == "ready\n"
        assert len(processes_with(tmp_path)) >= 5
        parent.send_signal(number)
        parent.wait(timeout=10)
        wait_until(lambda: processes_with(tmp_path) == [], keeper.GRACE_S + 10)
    finally:
        parent.kill()
        parent.stdout.close()


def test_nothing_is_left_when_the_server_itself_is_killed(student, stand_in, tmp_path):
    stand_in("serve")
    with Server(student, ServerSettings(), tmp_path / "server.log") as running:
        port = running.endpoint.base_url.split(":")[2].removesuffix("/v1")
        (victim,) = [pid for pid in processes_with(tmp_path) if is_stand_in(pid, port)]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: processes_with(tmp_path) == [], keeper.GRACE_S + 10)


def is_stand_in(pid, port):
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return words[1] == b"-c" and port.encode() in words


def test_a_port_in_use(student, stand_in, tmp_path):
    stand_in("serve")
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}: cannot be used"):
            Server(student, ServerSettings(port=port), tmp_path / "server.log").__enter__()
    with Server(student, ServerSettings(port=port), tmp_path / "server.log") as running:
        assert f":{port}/" in running.endpoint.base_url


def test_a_reserved_port_is_given_to_nobody_else():
    with closing(server.reserve_port("127.0.0.1", None)) as reservation:
        port = reservation.getsockname()[1]
        with closing(socket.socket()) as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with closing(socket.create_server(("127.0.0.1", port))):  # but vLLM, which sets SO_REUSEADDR, gets it
            pass


def test_without_vllm_the_install_line_is_shown(student, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"pip install 'distill-stack\[gpu\]'"):
        Server(student, ServerSettings(), tmp_path / "server.log").__enter__()
    assert not (tmp_path / "server.log").exists()


def test_checkpoints_that_are_refused(student, tmp_path):
    assert server.check_checkpoint(str(student)) is True
    assert server.check_checkpoint("Qwen/Qwen2.5-0.5B") is False
    (student / "pytorch_model.bin").write_bytes(b"")
    assert server.check_checkpoint(str(student)) is True  # vLLM is told to load safetensors only
    (student / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"pytorch_model\.bin.*convert"):
        server.check_checkpoint(str(student))
    (student / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        server.check_checkpoint(str(student))
    (student / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        server.check_checkpoint(str(student))
    named = {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    (student / "config.json").write_text(json.dumps({"model_type": "no_such_type", **named}))
    with pytest.raises(InputError, match=r"model_type 'no_such_type' needs the checkpoint's own code \(auto_map\)"):
        server.check_checkpoint(str(student))
    (student / "model.safetensors").write_bytes(b"")
    (student / "config.json").write_text(json.dumps({"model_type": "qwen2", **named}))  # transformers' code is run
    assert server.check_checkpoint(str(student))
    for missing in (str(tmp_path / "nothing"), "a/b/c", "../x", "", "--port"):
        with pytest.raises(InputError, match=r"found neither|no config"):
            server.check_checkpoint(missing)


@pytest.mark.parametrize(
    "argument",
    ["--trust-remote-code", "--trust_remote_code", "--trust", "--api-key=x", "--host=0.0.0.0", "--config", "--port"],
)
def test_arguments_that_are_ours_or_unsafe(argument):
    with pytest.raises(InputError, match="set by distill or not allowed"):
        validate(ServerSettings, {"arguments": ("--max-num-seqs", "8", argument)}, source="test")


@pytest.mark.parametrize("cpu", [True, False])
def test_command_and_environment(monkeypatch, student, cpu):
    monkeypatch.setattr(server, "is_cpu_build", lambda: cpu)
    settings = ServerSettings(
        dtype="bfloat16", max_model_len=128, kv_cache_gib=3, threads=2, arguments=("--max-num-seqs", "8")
    )
    command = server.vllm_command(str(student), "student", 1234, settings)
    env = server.server_environment(settings, "sk-secret", offline=True)
    assert command[-2:] == ["--max-num-seqs", "8"] and "--trust-remote-code" not in command
    assert "sk-secret" not in " ".join(command) and env["VLLM_API_KEY"] == "sk-secret"
    assert command[command.index("--load-format") + 1] == "safetensors"
    assert env["PYTHONSAFEPATH"] == "1" and env["HF_HUB_OFFLINE"] == "1" and env["OMP_NUM_THREADS"] == "2"
    assert ("--enforce-eager" in command) is cpu and ("VLLM_CPU_KVCACHE_SPACE" in env) is cpu
    assert ("--kv-cache-memory-bytes" in command) is not cpu
    assert ("--no-enable-chunked-prefill" in command) is cpu
    assert json.dumps(settings.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("host", "here"), [(None, True), ("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False)]
)
def test_only_this_machine_reaches_it_unless_it_is_told_otherwise(monkeypatch, student, host, here):
    """What its processes listen on between themselves too, unless the environment says where."""
    names = ("VLLM_HOST_IP", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    settings = ServerSettings() if host is None else ServerSettings(host=host)
    command = server.vllm_command(str(student), "student", 1234, settings)
    assert command[command.index("--host") + 1] == (host or "127.0.0.1") and command.count("--host") == 1
    env = server.server_environment(settings, "sk-secret", offline=True)
    assert [env.get(name) for name in names] == (["127.0.0.1", "lo", "lo"] if here else [None] * 3)
    monkeypatch.setenv("VLLM_HOST_IP", "10.1.2.3")
    assert server.server_environment(settings, "sk-secret", offline=True)["VLLM_HOST_IP"] == "10.1.2.3"


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("ValueError: odd", "ValueError: odd"),
        ("(EngineCore pid=9) ERROR 11-22 03:36:26 [core.py:1510] a.b.SafetensorError: cut", "a.b.SafetensorError: cut"),
        ("  Value error, max_model_len is too large", "Value error, max_model_len is too large"),
        ("api_server.py: error: unrecognized arguments: --x", "api_server.py: error: unrecognized arguments: --x"),
        ("pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig", None),
        ("(APIServer pid=9) WARNING 11-22 03:35:55 [u.py:2] may cause `OSError: [Errno 24] Too many files`", None),
        ("    raise ValueError(", None),
    ],
)
def test_lines_of_the_log_that_name_a_cause(line, cause):
    found = server.CAUSE.match(line)
    assert (found and found[1]) == cause


def test_a_log_that_cannot_be_written(student, stand_in, tmp_path):
    stand_in("serve")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Server(student, ServerSettings(), tmp_path / "file" / "server.log").__enter__()
    assert processes_with(tmp_path) == []
