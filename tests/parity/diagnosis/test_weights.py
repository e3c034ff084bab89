"""Weights that were converted by hand: what was done to each is named, and right ones are left alone."""

import re
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from einops import rearrange
from flax.traverse_util import unflatten_dict

from jaxcnn.files import flat_names
from parity import Entry, Table, chain
from parity.diagnosis.weights import table_findings, weight_findings
from parity.given import Given
from parity.matched import Matched
from parity.report import told
from tests.parity.diagnosis.test_conversions import AXES, DENSE, FLATTEN, MISSING, SHUFFLED, TURNED, T, stub
from tests.parity.small import IMAGES, TABLE, Network, TorchNetwork, usual_jax  # noqa: F401
from tests.parity.wrong.case import build
from tests.parity.wrong.weights import CASES


@cache
def small(**wrong):
    """The small pair, and its right variables by name."""
    return paired(None, **wrong)


def paired(told, **wrong):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = TorchNetwork()
    generator = torch.Generator().manual_seed(1)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape, generator=generator))
    matched = Matched(Given(module, Network(**wrong), (IMAGES,)), told, None, chain.SGD, 1)
    return matched, flat_names(TABLE.to_flax(matched.given.state))


def found(variables, matched=None):
    matched = matched or small()[0]
    return weight_findings(matched, unflatten_dict({k: jnp.asarray(v) for k, v in variables.items()}, sep="/"))


def test_right_weights_have_no_finding():
    assert found(small()[1]) == []
    assert table_findings(small()[0]) == []


def test_one_of_two_biases_is_not_their_sum():
    module = T.GRUCell(2, 3)
    state = {n: t.numpy() for n, t in module.state_dict().items()}
    entries = Entry("bias_ih", "i/bias", "o -> o"), Entry("bias_hh", "i/bias", "o -> o", adds=True)
    table = Table(entries)
    right = flat_names(table.to_flax(state))
    given = SimpleNamespace(
        torch_module=module, state=state, port=SimpleNamespace(collections=dict), shapes={"params/i/bias": None}
    )
    (finding,) = weight_findings(
        stub(given=given, proven=table), unflatten_dict({"params/i/bias": state["bias_ih"]}, sep="/")
    )
    assert (finding.code, finding.certain) == (MISSING, True)
    assert finding.text == "it is bias_ih alone, not bias_ih + bias_hh"
    assert weight_findings(stub(given=given, proven=table), unflatten_dict(right, sep="/")) == []


def test_a_missing_one_a_strange_one_and_two_that_are_swapped():
    right = small()[1]
    assert [(f.code, f.layer) for f in found({n: a for n, a in right.items() if n != "params/fc/bias"})] == [
        (MISSING, "fc.bias = fc/bias")
    ]
    (finding,) = found({**right, "params/fc/weight": right["params/fc/kernel"]})
    assert (finding.code, finding.layer) == ("unknown", "params/fc/weight")
    mean, var = (f"batch_stats/norm/{name}" for name in ("mean", "var"))
    (finding,) = found({**right, mean: right[var], var: right[mean]})
    assert (finding.code, finding.layer, finding.certain) == (SHUFFLED, "norm = norm", True)
    assert finding.text == "mean: it is norm/var's; so too var"


def test_what_two_causes_explain_is_certain_of_neither():
    """A scale of 1 that is 0 was not carried, or 1 was subtracted."""
    matched, right = small()
    state = {**matched.given.state, "norm.weight": np.ones(4, np.float32)}
    given = SimpleNamespace(**{n: getattr(matched.given, n) for n in ("torch_module", "port", "shapes")}, state=state)
    findings = found({**right, "params/norm/scale": np.zeros(4)}, stub(given=given, proven=matched.proven))
    assert {(f.code, f.certain) for f in findings} == {(MISSING, False), ("scale-offset", False)}


def test_one_cause_in_many_layers_is_told_once():
    class Many(T.Module):
        def __init__(self):
            super().__init__()
            self.layers = T.ModuleList(T.Linear(3, 3) for _ in range(8))

    entries = [Entry(f"layers.{i}.weight", f"l{i}/kernel", DENSE) for i in range(8)]
    module, table = Many(), Table(tuple(entries))
    state = {n: t.numpy() for n, t in module.state_dict().items()}
    made = table.to_flax(state)
    shapes = flat_names(made)
    port = SimpleNamespace(collections=dict, initial_of=lambda names: {})
    given = SimpleNamespace(torch_module=module, state=state, port=port, shapes=shapes)
    matched = stub(given=given, proven=table)
    findings = weight_findings(matched, jax.tree.map(np.transpose, made))
    assert [finding.code for finding in findings] == [TURNED] * 8
    first, *_ = told(findings)
    assert first == f"layers.0.weight = l0/kernel, layers.1.weight = l1/kernel and 6 more   [{TURNED}]"
    some = {n: a.T if n < "params/l4" else a for n, a in shapes.items()}
    assert len(weight_findings(matched, unflatten_dict(some, sep="/"))) == 4


def test_a_layer_in_doubt_is_left_alone_unless_plainly_wrong():
    """Where the port is wrong in a layer, the table may have its weights in another order than right ones."""
    matched, right = small(order=(0, 2, 1, 3))
    kernel, name = right["params/fc/kernel"], "params/fc/kernel"
    assert matched.doubted == {"fc"}
    channels_first = rearrange(kernel, "(h w c) o -> (c h w) o", h=4, w=4)
    for value in (kernel, channels_first):
        assert found({**right, name: value}, matched) == []
        variables = unflatten_dict({**right, name: value}, sep="/")
        assert all(check.passed for check in chain.converted(matched, variables))
    wrong = {**right, name: matched.given.state["fc.weight"]}
    assert [f.code for f in found(wrong, matched)] == [TURNED]
    assert [c.tensor for c in chain.converted(matched, unflatten_dict(wrong, sep="/")) if not c.passed] == [name]
    assert [f.code for f in found({**right, name: channels_first})] == [FLATTEN]  # no doubt there


@pytest.mark.parametrize(
    ("flax", "entries", "code"),
    [
        ("conv/kernel", [Entry("conv.weight", "conv/kernel", "o i h w -> w h i o")], AXES),
        ("fc/kernel", [Entry("fc.weight", "fc/kernel", DENSE)], FLATTEN),
        ("norm", [Entry("norm.running_mean", "norm/var", "o -> o", collection="batch_stats"),
                  Entry("norm.running_var", "norm/mean", "o -> o", collection="batch_stats")], SHUFFLED),
    ],
)  # fmt: skip
def test_a_told_table_is_held_against_the_proposed_one(flax, entries, code):
    told = TABLE.with_entries(*entries)
    matched, right = paired(told)
    (finding,) = table_findings(matched)
    assert (finding.code, finding.certain) == (code, True)
    assert flax in finding.layer
    pasted = eval(f"[{finding.repair.replace(';', '')}]", {"Entry": Entry})
    repaired = flat_names(told.with_entries(*pasted).to_flax(matched.given.state))
    assert all(np.array_equal(repaired[name], array) for name, array in right.items())
    assert found(right, matched) == []  # they are right, though the table is not


SELECTED = (
    "lenet5: height and width swapped", "lenet5: rows after flattening", "lenet5_nnx: dense kernel reshaped",
    "lenet5_nnx: head left as it was", "vgg_bn: statistics left as they were", "bert: heads in another order",
    "bert: a norm less 1", "gru_nnx: gates in another order", "wavenet: kernel flipped",
)  # fmt: skip


@pytest.mark.parametrize("name", SELECTED)
def test_wrong_weights_of_the_corpus(name):
    case = CASES[name]
    example = build(case)
    options = {n: o for n, o in example.options.items() if n in ("flax_inputs", "torch_kwargs", "flax_kwargs")}
    given = Given(example.torch_module, example.flax_module, example.inputs, **options)
    matched = Matched(given, None, None, chain.SGD, 1)
    findings = weight_findings(matched, example.options["variables"])
    assert [f.code for f in findings] == [code for code, _ in case.findings]
    assert all(
        re.search(rf"\b{re.escape(path)}\b", f.layer) for f, (_, path) in zip(findings, case.findings, strict=True)
    )
    assert weight_findings(matched, matched.table.to_flax(given.state)) == []
