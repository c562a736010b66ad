"""`distill serve start`: says where it is once it answers, hides the key, and ends in order when it is told to."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

STAND_IN = r"""
import http.server, json, os, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
        self.send_response(200 if known or self.path == "/health" else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "student"}]}).encode())
        if self.path == "/die":
            print("ValueError: out of something", flush=True)
            os._exit(3)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""
RUN = """
import sys
from distill.serve import server
server.vllm_command = lambda model, name, port, settings: [
    sys.executable, "-c", {stand_in!r}, settings.host, str(port), *settings.arguments
]
server.require_vllm = lambda: None
sys.argv = ["distill", *sys.argv[1:]]
from distill.cli import main
main()
"""


@pytest.fixture
def student(tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def started(student):
    """Starts the command with arguments; gives the process and what it said where it is."""
    running = []

    def run(*arguments, env=None):
        code = RUN.format(stand_in=STAND_IN)
        process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", "start", str(student), "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        running.append(process)
        said = []
        while not said or said[-1] != "}\n":
            line = process.stdout.readline()
            assert line, process.stderr.read()
            said.append(line)
        return process, json.loads("".join(said))

    yield run
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_serves_until_told_to_end(started, how):
    process, where = started()
    key_file = Path(where["api_key_file"])
    key = key_file.read_text().strip()
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600 and len(key) >= 32
    assert where["url"].startswith("http://127.0.0.1:") and key not in json.dumps(where)
    asked = httpx.get(where["url"] + "/models", headers={"Authorization": f"Bearer {key}"}, trust_env=False)
    assert asked.status_code == 200
    assert httpx.get(where["url"] + "/models", trust_env=False).status_code == 401
    process.send_signal(how)
    assert process.wait(timeout=60) == 0
    assert not key_file.exists()
    assert key not in Path(where["log"]).read_text()
    with pytest.raises(httpx.ConnectError):
        httpx.get(where["url"], trust_env=False)


def test_a_key_of_ones_own_and_another_address(started):
    process, where = started("--host", "0.0.0.0", "--api-key-env", "MY_KEY", env={"MY_KEY": " a-key-of-mine "})
    assert where["api_key_env"] == "MY_KEY" and "api_key_file" not in where
    asked = httpx.get(where["url"] + "/models", headers={"Authorization": "Bearer a-key-of-mine"}, trust_env=False)
    assert asked.status_code == 200
    process.terminate()
    assert process.wait(timeout=60) == 0


def test_a_server_that_dies_is_said_with_its_reason(started):
    process, where = started()
    with pytest.raises(httpx.HTTPError):
        httpx.get(where["url"].removesuffix("/v1") + "/die", trust_env=False)
        time.sleep(5)
        httpx.get(where["url"], trust_env=False)
    assert process.wait(timeout=60) == 2
    error = process.stderr.read()
    assert "exit code 3" in error and "out of something" in error and "Traceback" not in error
    assert not Path(where["api_key_file"]).exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--api-key-env", "NOT_SET"), "NOT_SET: expected the API key"),
        (("--host", "192.0.2.1"), "host 192.0.2.1: cannot be used"),
        (("--", "--trust-remote-code"), "--trust-remote-code is set by distill or not allowed"),
        (("--", "--api-key", "secret"), "--api-key is set by distill or not allowed"),
    ],
)
def test_bad_input_is_one_line(student, arguments, said):
    command = [sys.executable, "-c", RUN.format(stand_in=STAND_IN), "serve", "start", str(student), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1
