"""The meter measures what zeus reports, and whatever zeus does is a figure or a reason.

zeus is optional, and this machine may have nothing to measure: a stand-in of its interface reads the clock as counters.
Its watts are exact over a time that is a little longer than the window the meter saw, and a little shorter than
the block as the test saw it.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager, suppress

import psutil
import pytest

from distill.process import child_environment
from distill.serve import energy
from distill.serve.energy import EnergyMeter, energy_here, rapl_reason

STAND_IN = {
    "zeus/__init__.py": "",
    "zeus/device.py": """
        import json, os
        SET = json.loads(os.environ["STAND_IN"])
        if SET.get("does") == "lacks":
            raise ImportError("a library is missing")

        class RaplFile:
            def __init__(self, name): self.name = name

        class CPU:
            def __init__(self, name): self.rapl_file = RaplFile(name)

        class CPUs:
            cpus = [CPU(name) for name in SET["zones"]]

        class GPUs:
            def __len__(self): return len(SET["gpus"])

        def get_gpus(ensure_homogeneous=False):
            if not SET["gpus"]: raise RuntimeError("NVML and AMDSMI unavailable.")
            return GPUs()

        def get_cpus():
            if not SET["zones"]: raise RuntimeError("RAPL unavailable.")
            return CPUs()
        """,
    "zeus/monitor.py": """
        import os, subprocess, sys, time
        from dataclasses import dataclass
        from zeus.device import SET

        @dataclass
        class Measurement:
            time: float
            gpu_energy: dict
            cpu_energy: dict | None = None
            dram_energy: dict | None = None
            soc_energy: object = None

        class ZeusMonitor:
            def __init__(self, gpu_indices=None, cpu_indices=None, approx_instant_energy=False, log_file=None,
                         sync_execution_with="torch"):
                if SET.get("does") == "fails at the start": raise RuntimeError("Driver\\nnot loaded")
                if SET.get("does") == "starts another":
                    self.other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
                self.gpus, self.cpus, self.begun = gpu_indices, cpu_indices, {}

            def _does(self, what):
                if SET.get("does") == what and "trial" not in self.begun:
                    if what == "fails": raise ValueError("GPU is lost")
                    if what == "ends": os._exit(3)
                    if what == "hangs": time.sleep(600)

            def begin_window(self, key, sync_execution=True, restart=False):
                assert not sync_execution
                if key in self.begun: raise ValueError(f"Measurement window '{key}' already exists")
                if SET.get("does") == "prints":
                    print("noise"); os.write(1, b"noise\\n"); os.write(2, b"noise\\n")
                self.begun[key] = time.monotonic()
                if key != "trial": self._does(SET.get("does"))

            def end_window(self, key, sync_execution=True, cancel=False):
                assert not sync_execution
                s = time.monotonic() - self.begun.pop(key)
                cpu = {i: SET["cpu watts"] * s for i in self.cpus}
                return Measurement(s, {i: SET["gpus"][i] * s for i in self.gpus}, cpu or None,
                                   {0: SET["dram watts"] * s} if cpu else None)
        """,
}
MACHINE = {"gpus": [300.0, 500.0], "zones": ["package-0", "psys", "package-1"], "cpu watts": 90.0, "dram watts": 7.0}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Calling it makes the machine what the stand-in of zeus says it is."""
    for name, text in STAND_IN.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(energy, "SHORTEST_S", 0.01)

    def machine(**changes):
        monkeypatch.setenv("STAND_IN", json.dumps(MACHINE | changes))

    machine()
    return machine


@contextmanager
def watched(meter, lasts_s=0.05):
    """The window, and how long its block took as seen from here, a list that has it afterwards."""
    took, start = [], time.monotonic()
    with meter.window() as window:
        yield window, took
        time.sleep(lasts_s)
    took.append(time.monotonic() - start)


def check(found, took_s, watts):
    """Every source drew its watts, for no longer than the block and no shorter than the window."""
    assert set(found["sources"]) == set(watts)
    for name, joules in found["sources"].items():
        assert watts[name] * found["seconds"] <= joules * (1 + 1e-9) and joules <= watts[name] * took_s * (1 + 1e-9)
    assert found["joules"] == pytest.approx(sum(found["sources"].values()))
    assert found["watts"] == pytest.approx(found["joules"] / found["seconds"])


ALL = {"gpu 0": 300.0, "gpu 1": 500.0, "cpu package 0": 90.0, "cpu package 2": 90.0, "dram 0": 7.0}


def test_nested_and_overlapping_windows(stand_in):
    with EnergyMeter() as meter:
        assert meter.reason is None and set(meter.sources) == set(ALL) and meter.left_out is None
        with watched(meter) as (outer, outer_took):
            with watched(meter) as (inner, inner_took):
                pass
            late = watched(meter)
            last, last_took = late.__enter__()
        late.__exit__(None, None, None)
    check(outer.energy, outer_took[0], ALL)
    check(inner.energy, inner_took[0], ALL)
    check(last.energy, last_took[0], ALL)
    assert inner.energy["joules"] < outer.energy["joules"]
    assert outer.energy["idle_watts"] is None and outer.energy["joules_above_idle"] is None


def test_only_the_gpus_in_use_and_what_is_left_out(stand_in):
    stand_in(zones=[])
    with EnergyMeter(gpus=[1]) as meter, watched(meter) as (window, took):
        pass
    check(window.energy, took[0], {"gpu 1": 500.0})
    assert window.energy["left_out"].startswith("CPU and DRAM: RAPL is not readable (needs ")
    stand_in()
    with EnergyMeter(gpus=[]) as meter, watched(meter) as (window, _):
        pass
    assert set(window.energy["sources"]) == {name for name in ALL if "gpu" not in name}


def test_above_idle(stand_in):
    with EnergyMeter() as meter:
        idle = meter.measure_idle(0.05)
        assert idle >= sum(ALL.values())
        with watched(meter) as (window, _):
            pass
    found = window.energy
    assert found["idle_watts"] == idle
    assert found["joules_above_idle"] == pytest.approx(found["joules"] - idle * found["seconds"])


def test_a_block_that_raises_has_its_energy_and_its_error(stand_in):
    with EnergyMeter() as meter:
        with pytest.raises(KeyError, match="of the block"), watched(meter) as (window, _):
            time.sleep(0.02)
            raise KeyError("of the block")
        assert window.energy["joules"] > 0


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ("fails at the start", "zeus failed: RuntimeError: Driver not loaded"),
        ("fails", "zeus failed: ValueError: GPU is lost"),
        ("ends", "zeus has ended"),
        ("hangs", "zeus has not answered for 0.3 s"),
    ],
)
def test_what_goes_wrong_is_a_reason(stand_in, monkeypatch, does, reason):
    stand_in(does=does)
    if does == "hangs":
        monkeypatch.setattr(energy.EnergyMeter._ask, "__defaults__", (0.3,))
    with EnergyMeter() as meter:
        with meter.window() as first:
            done = True
        with meter.window() as second:
            pass
    assert done and first.energy == {"reason": reason} and second.energy == first.energy
    assert meter.measure_idle(600) is None  # at once: there is no meter


@pytest.mark.parametrize("watts", [0.0, -50.0, 1e6])
def test_a_counter_that_cannot_be_right_is_a_reason(stand_in, watts):
    stand_in(gpus=[watts], zones=[])
    with EnergyMeter() as meter, watched(meter) as (window, _):
        pass
    (reason,) = window.energy.values()
    assert reason.startswith("gpu 0: its counter says ") and reason.endswith("which cannot be")


def test_a_window_of_milliseconds_is_refused(stand_in, monkeypatch):
    monkeypatch.setattr(energy, "SHORTEST_S", 1.0)
    with EnergyMeter() as meter, meter.window() as window:
        pass
    assert window.energy["reason"].endswith("expected 1 s or more")


def test_what_zeus_prints_goes_nowhere(stand_in, capfd):
    stand_in(does="prints")
    with EnergyMeter() as meter, watched(meter) as (window, took):
        pass
    check(window.energy, took[0], ALL)
    assert capfd.readouterr() == ("", "")


def all_end(processes, within_s=20):
    """Gone, or only waiting for whoever inherited them to look."""
    deadline = time.monotonic() + within_s
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            while process.status() != psutil.STATUS_ZOMBIE:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.02)
    return True


def test_nothing_is_left_when_the_block_ends(stand_in):
    stand_in(does="starts another")
    with EnergyMeter() as meter:
        child = psutil.Process(meter._child.pid)
        family = [child, *child.children(recursive=True)]
        assert len(family) == 2
    assert all_end(family)


def test_nothing_is_left_when_we_are_killed(stand_in):
    stand_in(does="starts another")
    script = """
        import sys, time
        from distill.serve.energy import EnergyMeter
        with EnergyMeter() as meter:
            print(meter._child.pid, flush=True)
            time.sleep(600)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
    ) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        family = [child, *child.children(recursive=True)]
        os.kill(parent.pid, signal.SIGKILL)
    assert len(family) == 2
    assert all_end(family)


def test_without_zeus_the_extra_is_named_where_it_would_help(monkeypatch, tmp_path):
    for name in ("zeus", "zeus.device", "zeus.monitor"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(energy, "RAPL", tmp_path / "none")
    monkeypatch.setattr(energy, "NVIDIA", tmp_path / "none")
    with pytest.raises(energy._CannotError, match="no NVIDIA GPU, and RAPL is not readable"):
        energy._Zeus(None)
    monkeypatch.setattr(energy, "NVIDIA", tmp_path)
    with pytest.raises(energy._CannotError, match=r"pip install 'distill-stack\[energy\]'"):
        energy._Zeus(None)


def test_why_rapl_is_not_readable(tmp_path):
    assert "virtual machines" in rapl_reason(tmp_path / "none")
    assert "needs root" in rapl_reason(tmp_path)


def test_this_machine_says_what_it_can():
    with EnergyMeter() as meter, meter.window() as window:
        time.sleep(0.01 if meter.reason else 1.2)
    said = energy_here()
    if said.startswith("joules of "):
        assert "gpu" in said or "cpu" in said
        assert window.energy.get("joules", 0) > 0 or window.energy["reason"]
    else:
        assert said == window.energy["reason"] and said.startswith(("not measurable here: ", "zeus "))
