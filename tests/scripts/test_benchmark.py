import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxcnn import platform
from tests.conftest import ROOT
from tests.scripts.commands import module

benchmark = module("benchmark")
contenders = benchmark.contenders


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(contenders, "IMAGES", 8)
    monkeypatch.setattr(platform, "start", lambda name: None)  # it runs already


@pytest.mark.parametrize("task", benchmark.TASKS)
def test_each_contender_does_its_steps_and_counts_its_dispatches(task):
    assert contenders.jax_runner(task, 4, 1)(3) == (1, 4 if task == "training" else 0)
    assert contenders.flax_runner(task, 4, 1)(3) == (3, 12)
    assert contenders.torch_runner(task, 4, 1, "torch-channels-last")(3) is None


def test_a_contender_s_process_begins_with_no_framework_in_its_memory():
    program = "import sys, benchmark; assert not {'jax', 'torch', 'matplotlib'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT / "scripts", check=True)


def test_operations_are_those_of_the_networks_products():
    parameters = {"conv1": 27 * 32, "conv2": 288 * 32, "fc3": 8192 * 512, "fc4": 5120}
    uses = {"conv1": 1024, "conv2": 1024, "fc3": 1, "fc4": 1}
    assert benchmark.flops("inference", 1) == 2 * sum(parameters[name] * uses[name] for name in uses)
    wide = benchmark.flops("training", 2) / benchmark.flops("training", 1)
    assert 3.9 < wide < 4


SPEEDS = {"jaxcnn": 0.010, "torch": 0.030, "torch-channels-last": 0.020, "matmul": 0.5}


class Fake:
    """A contender whose steps take a known time."""

    def __init__(self, name, task, batch_size, width):
        if name not in SPEEDS:
            raise RuntimeError("no compiler")
        self.process = ThreadPoolExecutor(1)
        self.name, self.ms, self.facts, self.calls = name, [], {"first_step_s": 1.0}, 0

    def run(self, steps):
        self.calls += 1
        cost = (1, 4) if self.name == "jaxcnn" else None
        self.facts.update(peak_mb=100, steps=steps, dispatches_and_bytes_sent=cost)
        return 1000 * SPEEDS[self.name] * (100 if self.calls == 2 else 1)  # compiles: must not count


def test_ratio_table_and_figures(monkeypatch, tmp_path):
    monkeypatch.setattr(contenders, "Contender", Fake)
    results = [benchmark.measure(task, 32, 3, lambda count: None) for task in benchmark.TASKS]
    assert [result["ratio"] for result in results] == [2.0, 2.0]
    assert results[0]["rows"]["jaxcnn"]["ms"] == {"median": 10.0, "min": 10.0, "max": 10.0}
    assert set(results[0]["absent"]) == {"flax", "torch-compile"}
    gflops = 2 * 2048**3 / 0.5 / 1e9
    share = benchmark.flops("training", 1) * 32 / 0.010 / 1e9 / gflops
    assert np.isclose(results[0]["rows"]["jaxcnn"]["share_of_matmul"], share)
    text = benchmark.table(results)
    assert "best PyTorch / jaxcnn = 2.00" in text
    assert "100 steps in 1 dispatch, 4 bytes sent" in text
    assert "not measured: no compiler" in text
    json.dumps(results)
    assert len(benchmark.draw(results).axes) == 2
    grown = benchmark.scaling(1, lambda count: None)
    assert [len(axes.lines) for axes in benchmark.draw_scaling(grown).axes] == [2, 2]
