import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch

from jaxcnn import platform, recipe, train
from jaxcnn.config import SPEEDRUN
from jaxcnn.errors import UserError
from parity.twins.tutorial import CNN
from tests.conftest import ROOT
from tests.scripts.commands import module

benchmark = module("benchmark")
contenders, case_module = benchmark.contenders, sys.modules["case"]
Case, fixed_data = case_module.Case, case_module.fixed_data
import jax_contenders  # noqa: E402  # found beside the benchmark
import torch_contenders  # noqa: E402


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(case_module, "IMAGES", 8)
    monkeypatch.setattr(platform, "start", lambda *given: jax.devices()[:1])  # it runs already


def test_a_prediction_is_of_one_image_and_of_numpy_arrays_on_all_sides():
    case, (images, _) = Case("prediction", 1), fixed_data(1)
    assert jax_contenders.jax_runner(case)(3) == (3, 3 * images[0].nbytes)
    assert jax_contenders.flax_runner(case)(3) == (3, 12)
    assert torch_contenders.torch_runner(case, "torch-channels-last")(3) is None
    with torch.inference_mode():
        found = torch_contenders.predict_in_torch(CNN(4, 16).eval(), images[0], torch.channels_last)
    assert isinstance(found, np.ndarray)
    assert found.shape == (1, 10)
    assert np.isclose(found.sum(), 1)


@pytest.mark.parametrize("task", benchmark.TASKS)
def test_each_contender_does_its_steps_and_counts_its_dispatches(task):
    case = Case(task, 4)
    assert jax_contenders.jax_runner(case)(3) == (1, 4 if task == "training" else 0)
    assert jax_contenders.flax_runner(case)(3) == (3, 12)
    assert torch_contenders.torch_runner(case, "torch-channels-last")(3) is None


def test_speedrun_trains_and_infers_at_one_size_on_both_sides(monkeypatch):
    monkeypatch.setitem(case_module.DEFAULTS["speedrun"], "cifar10", replace(SPEEDRUN, widths=(2, 3, 4)))
    forward, predict, seen = recipe.resized_forward, train.predict_logits, set()

    def noted_forward(*given, size):
        seen.add(f"{size} pixels")
        return forward(*given, size)

    def noted_predict(network, *given, **named):
        seen.add(f"{len(network.views)} view")
        return predict(network, *given, **named)

    monkeypatch.setattr(recipe, "resized_forward", noted_forward)
    monkeypatch.setattr(train, "predict_logits", noted_predict)
    for task, size in ("training", 20), ("inference", 32):
        case = Case(task, 3, "speedrun", size=size)
        assert jax_contenders.jax_runner(case)(4) == (1, 4 if task == "training" else 0)
        for kind in ("torch", "torch-channels-last"):
            assert torch_contenders.torch_runner(case, kind)(4) is None
    assert seen == {"20 pixels", "1 view"}


@pytest.mark.parametrize("kind", contenders.KERNELS)
def test_kernels_run(kind, monkeypatch):
    monkeypatch.setattr(contenders, "SIDE", 8)
    assert contenders.kernel_runner(kind)(2) is None


def test_peak_memory_is_the_process_s_own():
    program = "import contenders; print(contenders.peak_mb())"
    least = float(
        subprocess.run([sys.executable, "-c", program], cwd=ROOT / "scripts", check=True, capture_output=True).stdout
    )
    assert 5 < least < contenders.peak_mb() / 2  # this process has begun it, and holds two frameworks


def test_a_contender_s_process_begins_with_no_framework_in_its_memory():
    program = "import sys, benchmark; assert not {'jax', 'torch', 'matplotlib'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT / "scripts", check=True)


def flops(case):
    return sum(flop for flop, _ in benchmark.stages(case))


def test_operations_are_those_of_the_networks_products():
    parameters = {"conv1": 27 * 32, "conv2": 288 * 32, "fc3": 8192 * 512, "fc4": 5120}
    uses = {"conv1": 1024, "conv2": 1024, "fc3": 1, "fc4": 1}
    products = {name: 2 * parameters[name] * uses[name] for name in uses}
    assert flops(Case("inference", 1)) == sum(products.values())
    assert flops(Case("training", 1)) == 3 * sum(products.values()) - products["conv1"]
    wide = flops(Case("training", 1, width=2)) / flops(Case("training", 1))
    assert 3.9 < wide < 4
    whiten = 2 * 18 * 18 * 2 * 2 * 3 * 24  # the kernel is constant, and its input needs no gradient: once in all
    forward, training = (flops(Case(task, 1, "speedrun", size=19)) for task in ("inference", "training"))
    assert training == 3 * forward - 2 * whiten


def test_bytes_are_those_of_parameters_and_their_momentum():
    weights = 4 * (27 * 32 + 288 * 32 + 8192 * 512 + 5120)
    moved = lambda *given, **named: sum(count for _, count in benchmark.stages(Case(*given, **named)))  # noqa: E731
    assert moved("inference", 8) == moved("prediction", 1) == weights
    assert moved("training", 32) == 6 * weights - 4 * 27 * 32  # twice read, then four; no gradient of the images
    assert moved("training", 8, "speedrun", size=32) < moved("training", 8, "speedrun", size=19)  # the constants rest


TIMES = {"jaxcnn": 0.010, "torch": 0.030, "torch-channels-last": 0.020}  # s a step
KERNELS = {"torch-product": 0.5, "jax-product": 0.25, "addition": 0.005}
SPEEDS = TIMES | KERNELS


class Fake:
    """A contender whose steps take a known time."""

    def __init__(self, name, case):
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
    results = [benchmark.measure(Case(task, 32), 3, lambda count: None) for task in benchmark.TASKS]
    assert [result["ratio"] for result in results] == [2.0, 2.0]
    assert results[0]["rows"]["jaxcnn"]["ms"] == {"median": 10.0, "min": 10.0, "max": 10.0}
    assert set(results[0]["absent"]) == {"flax", "torch-compile"}
    speeds = 2 * 2048**3 / 0.25, 3 * 4 * 2048**2 / 0.005  # the faster product's
    limit = sum(max(np.divide(stage, speeds)) for stage in benchmark.stages(Case("training", 32)))
    assert np.isclose(results[0]["rows"]["torch"]["share_of_limit"], limit / 0.030)
    text = benchmark.table(results)
    assert "best PyTorch / jaxcnn = 2.00" in text
    assert "100 steps in 1 dispatch, 4 bytes sent" in text
    assert "not measured: no compiler" in text
    json.dumps(results)
    assert len(benchmark.draw(results).axes) == 2
    grown = benchmark.scaling(1, lambda count: None)
    assert [len(axes.lines) for axes in benchmark.draw_scaling(grown).axes] == [2, 2]


def run_main(monkeypatch, tmp_path, *arguments):
    monkeypatch.setattr(contenders, "Contender", Fake)
    monkeypatch.setattr(benchmark, "command_to_first_step", lambda **settings: 1.0)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--json", str(tmp_path / "b.json"), "--rounds", "1", *arguments])
    benchmark.main()
    return json.loads((tmp_path / "b.json").read_text())


def test_a_whole_training_is_added_up_of_its_sizes(monkeypatch, tmp_path, capsys):
    report = run_main(monkeypatch, tmp_path, "--recipe", "speedrun")
    assert [(r["task"], r["batch_size"], r["size"]) for r in report["results"]] == [
        *(("training", 1000, size) for size in (19, 23, 27, 32)), ("inference", 1000, 32),
    ]  # fmt: skip
    assert not any("flax" in {**r["rows"], **r["absent"]} for r in report["results"])
    (whole,) = report["whole_trainings"]
    assert whole["seconds"] == {name: pytest.approx(14 * 50 * seconds) for name, seconds in TIMES.items()}
    assert whole["ratio"] == pytest.approx(2)
    said = capsys.readouterr().out
    assert "training, batch 1000, 19 pixels:" in said
    assert "inference, batch 1000, one view of an image:" in said
    assert (
        "14 epochs (2 at 19 pixels, 3 at 23 pixels, 3 at 27 pixels, 6 at 32 pixels)  best PyTorch / jaxcnn = 2.00"
        in said
    )


def test_each_size_counts_as_often_as_it_is_trained_at():
    row = lambda ms: {"jaxcnn": {"ms": {"median": ms}}, "torch": {"ms": {"median": 3 * ms}}}  # noqa: E731
    results = [{"batch_size": 500, "size": size, "rows": row(ms)} for size, ms in ((19, 10), (32, 100))]
    results[0]["rows"]["torch-compile"] = {"ms": {"median": 1}}  # not measured at each: no whole training
    whole = benchmark.whole_training(results, (19, 32, 32))
    assert whole["seconds"] == {"jaxcnn": pytest.approx(21), "torch": pytest.approx(63)}
    assert whole["epochs"] == {19: 1, 32: 2}
    assert whole["ratio"] == pytest.approx(3)


def test_the_tutorial_has_no_sizes_and_scaling_is_its_own(monkeypatch, tmp_path, capsys):
    report = run_main(monkeypatch, tmp_path, "--batch-sizes", "32")
    assert report["whole_trainings"] == []
    said = capsys.readouterr().out
    assert "\ntraining, batch 32: limit" in said
    assert "\ninference, batch 32: limit" in said
    assert "pixels" not in said
    with pytest.raises(UserError, match="--scaling"):
        run_main(monkeypatch, tmp_path, "--recipe", "speedrun", "--scaling")
