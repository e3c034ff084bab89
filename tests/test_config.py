"""A configuration that nobody can train by is refused where it is made. tests/test_fit.py reads them from files."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn import files
from jaxcnn.config import DEFAULTS, WIDTHS, Config, read_config, to_json
from jaxcnn.errors import UserError
from jaxcnn.run_directory import RunDirectory


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"epochs": -3}, "epochs is -3, not a whole number from 1 to 4294967295: Config; correct it"),
        ({"batch_size": 0}, "batch_size is 0, not a whole number from 1"),
        ({"seed": 2**32}, "seed is 4294967296, not a whole number from 0 to 4294967295"),
        ({"learning_rate": float("nan")}, "learning_rate is nan, not a number from 0"),
        ({"momentum": -0.5}, "momentum is -0.5, not a number from 0"),
        ({"widths": (1,)}, "1 widths, this network has 2"),
        ({"widths": (0, 3)}, "widths is (0, 3), not whole numbers from 1"),
        ({"widths": ()}, "widths is (), not whole numbers from 1"),
        ({"recipe": "speedrun"}, "2 widths, this network has 3"),
    ],
)
def test_a_field_that_is_not_right_is_named(fields, words):
    for make in (lambda: Config(**fields), lambda: dataclasses.replace(Config(), **fields)):
        with pytest.raises(UserError) as problem:
            make()
        assert words in str(problem.value)
        assert "\n" not in str(problem.value)


@pytest.mark.parametrize("widths", [[], [0, 3], "ab", None, [3]])
def test_a_file_says_so_of_its_widths(tmp_path, widths):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**dataclasses.asdict(Config()), "widths": widths}))
    with pytest.raises(UserError, match=r"widths.*correct it, or train again"):
        read_config(path)


def test_every_default_is_right_and_comes_back(tmp_path):
    assert DEFAULTS.keys() == WIDTHS.keys()
    for config in (config for some in DEFAULTS.values() for config in some.values()):
        (tmp_path / "config.json").write_text(to_json(config))
        assert read_config(tmp_path / "config.json") == config


def test_zero_is_a_seed_and_a_rate():
    assert Config(seed=0, learning_rate=0.0, momentum=0.0).seed == 0


@given(text=st.text() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["dataset", "epochs", "seed", "x"]), inner),
).map(lambda value: json.dumps(value)))  # fmt: skip
def test_any_configuration_and_metrics_are_read_or_refused_in_one_line(tmp_path_factory, text):
    run = RunDirectory(tmp_path_factory.mktemp("fuzz"))
    run.config.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(UserError) as refused:
        read_config(run.config)
    assert "\n" not in str(refused.value)
    for line in files.read_json_lines(run.config):
        assert all(isinstance(value, int | float) for value in line.values())
