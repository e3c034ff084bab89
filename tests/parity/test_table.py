import ml_dtypes  # noqa: F401 (gives NumPy its bfloat16)
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn import files
from parity import Entry, Table
from parity.table import folded
from parity.twins.tables import TABLES
from parity.twins.tutorial import CNN
from tests.parity.conftest import DTYPES, TutorialModel, small_weights

TABLE = TABLES["tutorial"]


def bits(arrays):
    return {name: (a.dtype.name, a.shape, a.tobytes()) for name, a in arrays.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back_is_bit_identical_and_contiguous(dtype):
    flax = files.flat_names(small_weights(dtype).params)
    there = TABLE.carry(flax, "torch")
    assert bits(TABLE.carry(there, "flax")) == bits(flax)
    assert bits(TABLE.carry(TABLE.carry(there, "flax"), "torch")) == bits(there)
    assert all(array.flags.c_contiguous for array in there.values())


def test_names_order_and_shapes_are_pytorchs():
    state = {name: tuple(tensor.shape) for name, tensor in CNN(2, 3).state_dict().items()}
    carried = TABLE.carry(files.flat_names(small_weights().params), "torch")
    assert [(name, array.shape) for name, array in carried.items()] == list(state.items())
    shapes = {name: a.shape for name, a in files.flat_names(small_weights().params).items()}
    assert TABLE.carry_shapes(shapes, "torch") == state


def test_the_twin_is_the_tutorials_class():
    """Same entries, and the same logits and gradients, bit for bit."""
    tutorial, twin = TutorialModel(), CNN()
    twin.load_state_dict(tutorial.state_dict(), strict=True)
    images = torch.rand(2, 3, 32, 32)
    results = []
    for model in (tutorial, twin):
        torch.manual_seed(0)
        logits = model(images)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_every_element_goes_to_its_place():
    """Each formula by itself, over all indices: conv [o,i,h,w] is [h,w,i,o], and fc3's inputs change their order."""
    flax = files.flat_names(small_weights().params)
    there = TABLE.carry(flax, "torch")
    for o, i, h, w in np.ndindex(2, 3, 3, 3):
        assert there["conv1.weight"][o, i, h, w] == flax["conv1/kernel"][h, w, i, o]
    for o, c, h, w in np.ndindex(3, 2, 16, 16):
        assert there["fc3.weight"][o, c * 256 + h * 16 + w] == flax["fc3/kernel"][h * 32 + w * 2 + c, o]
    np.testing.assert_array_equal(there["fc4.weight"], flax["fc4/kernel"].T)
    np.testing.assert_array_equal(there["conv2.bias"], flax["conv2/bias"])


@pytest.mark.parametrize("name", ["conv1/kernel", "fc3/bias"])
def test_what_is_not_the_tables_is_refused(name):
    flax = files.flat_names(small_weights().params)
    with pytest.raises(KeyError):
        TABLE.carry({other: array for other, array in flax.items() if other != name}, "torch")
    with pytest.raises(ValueError, match=name):
        TABLE.carry({**flax, name: flax[name][None]}, "torch")


def test_variables_and_a_state_dict_are_carried_whole():
    weights = small_weights()
    state = TABLE.to_torch(weights.variables)
    assert bits(files.flat_names(TABLE.to_flax(state))) == bits(files.flat_names(weights.variables))


def numbers(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def there(entries, **arrays):
    """The Flax variables of a `state_dict`, by name without their collection; of each, that it comes back as it was."""
    table, state = Table(tuple(entries)), {name.replace("__", "."): array for name, array in arrays.items()}
    variables = table.to_flax(state)
    assert bits(table.to_torch(variables)) == bits(state)
    flat = files.flat_names(variables)
    assert all(array.flags.c_contiguous for array in (*flat.values(), *table.to_torch(variables).values()))
    return {name.partition("/")[2]: array for name, array in flat.items()}


def test_braces_of_both_sides_go_together():
    entry = Entry("layer{1..2}.{0..1}.weight", "Block_{0,3}/{a,b}/kernel", "o i -> i o")
    state = {f"layer{i}.{j}.weight": numbers(2, 3) + 10 * i + j for i in (1, 2) for j in (0, 1)}
    flax = there([entry], **state)
    pairs = [("1.0", "Block_0/a"), ("1.1", "Block_0/b"), ("2.0", "Block_3/a"), ("2.1", "Block_3/b")]
    assert list(flax) == [f"{path}/kernel" for _, path in pairs]
    for theirs, ours in pairs:
        np.testing.assert_array_equal(flax[f"{ours}/kernel"], state[f"layer{theirs}.weight"].T)


def test_a_brace_with_a_letter_is_an_axis():
    fused, stacked = numbers(6, 4), {f"h.{i}.fc": numbers(2, 3) + i for i in range(3)}
    flax = there([Entry("qkv", "{s=query,key,value}/kernel", "(s o) i -> s i o")], qkv=fused)
    for part, name in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(flax[f"{name}/kernel"], fused[2 * part : 2 * part + 2].T)
    flax = there([Entry("h.{l=0..2}.fc", "blocks/fc", "l o i -> l i o")], **stacked)
    np.testing.assert_array_equal(flax["blocks/fc"], np.stack([array.T for array in stacked.values()]))


def test_axes_on_both_sides_and_pairs_in_one_entry():
    """What a loop stacks is, in each of its steps and for each of two towers, fused in PyTorch and apart in Flax."""
    entry = Entry("{left,right}.{l=0..1}.qk", "{a,b}/{s=q,k}/w", "l (s o) i -> s l i o")
    state = {f"{t}.{i}.qk": numbers(4, 3) + 10 * i + k for k, t in enumerate(("left", "right")) for i in (0, 1)}
    flax = there([entry], **state)
    assert {*flax} == {"a/q/w", "a/k/w", "b/q/w", "b/k/w"}
    for i in (0, 1):
        np.testing.assert_array_equal(flax["b/k/w"][i], state[f"right.{i}.qk"][2:].T)


def test_a_minus_turns_an_axis_round():
    kernel = numbers(2, 3, 4, 5)
    flax = there([Entry("up.weight", "up/kernel", "i o h w -> -h w i o")], up__weight=kernel)
    np.testing.assert_array_equal(flax["up/kernel"], kernel.transpose(2, 3, 0, 1)[::-1])


def test_of_two_biases_flax_has_the_sum_and_pytorch_gets_it_back_bit_for_bit():
    table = Table((Entry("b_ih", "bias", "o -> o"), Entry("b_hh", "bias", "o -> o", adds=True)))
    one, two = numbers(3), np.array([1.5, -0.25, 3.0], np.float32)
    sums = table.to_flax({"b_ih": one, "b_hh": two})["params"]["bias"]
    np.testing.assert_array_equal(sums, one + two)
    variables = {"params": {"bias": np.array([-0.0, 0.0, 1e-40, np.inf], np.float32)}}
    state = table.to_torch(variables)
    assert bits(state) == bits({"b_ih": variables["params"]["bias"], "b_hh": np.full(4, -0.0, np.float32)})
    assert bits(table.to_flax(state)["params"]) == bits(variables["params"])


def test_an_array_without_axes_keeps_none():
    flax = there([Entry("scale", "scale", " -> ")], scale=np.array(1.5, np.float32))
    assert flax["scale"].shape == ()


def test_tied_entries_have_to_be_equal():
    table = Table(
        (Entry("wte.weight", "Embed_0/embedding", "v d -> v d"), Entry("head", "Embed_0/embedding", "v d -> v d"))
    )
    embedding = numbers(3, 2)
    embedding[1, 1] = np.nan
    assert list(table.to_torch(table.to_flax({"wte.weight": embedding, "head": embedding}))) == ["wte.weight", "head"]
    with pytest.raises(ValueError, match=r"head and Embed_0/embedding: tied arrays that differ"):
        table.to_flax({"wte.weight": embedding, "head": embedding + 1})


def test_unequal_braces_are_refused():
    for flax in ("b{0..1}", "b", "{x,y}{0..2}"):
        with pytest.raises(ValueError, match="braces of unequal numbers"):
            Table((Entry("a{0..2}", flax, "o -> o"),)).to_flax({f"a{i}": numbers(2) for i in range(3)})


def test_entries_take_the_place_of_those_that_have_the_same_arrays_on_either_side():
    table = Table((Entry("a{0..2}.w", "A_{0..2}/k", "o i -> i o"), Entry("b", "B", "o -> o")))
    changed = table.with_entries(Entry("a1.w", "A_9/k", "o i -> o i"), Entry("c", "B", "o -> o"))
    assert {(e.torch, e.flax, e.axes) for e in changed.expanded} == {
        ("a0.w", "A_0/k", "o i -> i o"),
        ("a1.w", "A_9/k", "o i -> o i"),
        ("a2.w", "A_2/k", "o i -> i o"),
        ("c", "B", "o -> o"),
    }
    fused = Table((Entry("qkv", "{s=q,k,v}/w", "(s o) -> s o"),)).with_entries(Entry("other", "k/w", "o -> o"))
    assert [e.torch for e in fused.entries] == ["other"]


def test_running_numbers_are_written_as_one_line():
    entries = []
    for i in range(12):
        entries.append(Entry(f"layer.{i}.weight", f"Block_{i + 2}/kernel", "o i -> i o"))
        entries.append(Entry(f"layer.{i}.bias", f"Block_{i + 2}/bias", "o -> o"))
    text = str(Table((Entry("stem", "stem", "o -> o"), *entries), ("one",), ("two",)))
    assert text.splitlines() == [
        "Table((",
        '    Entry("stem", "stem", "o -> o"),',
        '    Entry("layer.{0..11}.weight", "Block_{2..13}/kernel", "o i -> i o"),',
        '    Entry("layer.{0..11}.bias", "Block_{2..13}/bias", "o -> o"),',
        "))",
        "# in doubt: one",
        "# left over: two",
    ]


def test_what_does_not_run_in_step_stays_apart():
    for theirs, ours in (("a0 a1", "b1 b0"), ("a0 a2", "b0 b1"), ("a08 a09", "b8 b9"), ("a0 a1", "b0 c1")):
        entries = tuple(Entry(t, f, "o -> o") for t, f in zip(theirs.split(), ours.split(), strict=True))
        assert "{" not in str(Table(entries))
    assert "{" not in str(Table((Entry("a0", "b0", "o -> o"), Entry("a1", "b1", "o -> o", collection="batch_stats"))))


def written(table):
    return eval(str(table), {"Table": Table, "Entry": Entry})


@pytest.mark.parametrize("name", TABLES)
def test_what_is_printed_is_the_table(name):
    sizes = {} if name != "tutorial" else {n: a.shape for n, a in files.flat_names(small_weights().params).items()}
    again = written(TABLES[name])
    assert {(e.torch, e.flax, *map(str, e[2:])) for e in again.expanded} == {
        (e.torch, e.flax, *map(str, e[2:])) for e in TABLES[name].expanded
    }
    assert not sizes or again.carry_shapes(sizes, "torch") == TABLES[name].carry_shapes(sizes, "torch")


def test_what_is_printed_keeps_what_is_added_after_what_it_is_added_to():
    """Of four biases only those that are added run in step."""
    entries = (
        Entry("ih0", "c0", "o -> o"),
        Entry("hh0", "c0", "o -> o", adds=True),
        Entry("ih1", "c1", "(o 1) -> o"),
        Entry("hh1", "c1", "o -> o", adds=True),
    )
    state = {name: numbers(3) + i for i, name in enumerate(("ih0", "hh0", "ih1", "hh1"))}
    table = Table(entries)
    assert bits(written(table).to_flax(state)["params"]) == bits(table.to_flax(state)["params"])


@st.composite
def entries(draw, number):
    """An entry of axes in any order, some turned, merged on either side, one of them names on either side, in runs."""
    rank = draw(st.integers(1, 4))
    names, run = "abcd"[:rank], draw(st.sampled_from(["", "{0..2}", "{1,x}"]))
    sizes = {name: draw(st.integers(1, 3)) for name in names}

    def side(order, signs):
        start = draw(st.integers(0, rank))
        stop = draw(st.integers(start, rank))
        merged = [order[start:stop]] if stop - start > 1 else [[n] for n in order[start:stop]]
        groups = [[n] for n in order[:start]] + merged + [[n] for n in order[stop:]]
        return groups, " ".join(f"({' '.join(g)})" if len(g) > 1 else signs.get(g[0], "") + g[0] for g in groups)

    theirs, before = side(list(names), {})
    ours, after = side(draw(st.permutations(list(names))), {n: draw(st.sampled_from(["", "-"])) for n in names})
    torch_name, flax_name = f"t{number}.{run}.w", f"f{number}/{run}/w"
    if draw(st.booleans()):  # the first axis of one side is names
        on_torch = draw(st.booleans())
        before, after = (f"l {before}", f"l {after}") if on_torch else (before, after)
        if on_torch:
            torch_name += ".{l=4..6}"
        elif rank > 1 and len(ours[0]) == 1 and not after.startswith("-"):
            flax_name += f"/{{{ours[0][0]}={','.join('xyz'[: sizes[ours[0][0]]])}}}"
    shape = tuple(int(np.prod([sizes[n] for n in group])) for group in theirs)
    return Entry(torch_name, flax_name, f"{before} -> {after}", sizes), shape


@settings(max_examples=100)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**32 - 1))
def test_any_table_is_its_own_inverse_bit_for_bit(data, dtype, seed):
    """Every pattern of bits: infinities, NaNs with something in them, zeros of both signs."""
    chosen = [data.draw(entries(number)) for number in range(data.draw(st.integers(1, 3)))]
    table, rng, state = Table(tuple(entry for entry, _ in chosen)), np.random.default_rng(seed), {}
    for entry, shape in chosen:
        for single in entry.expanded():
            for name in single.names("torch")[0]:
                size = int(np.prod(shape)) * np.dtype(dtype).itemsize
                state[name] = np.frombuffer(rng.bytes(size), dtype).reshape(shape)
                if state[name].size:
                    state[name] = np.where(rng.random(shape) < 0.2, np.array(-0.0, dtype), state[name])
    flax = table.to_flax(state)
    back = table.to_torch(flax)
    assert bits(back) == bits(state)
    assert bits(files.flat_names(table.to_flax(back))) == bits(files.flat_names(flax))
    assert bits(files.flat_names(written(table).to_flax(state))) == bits(files.flat_names(flax))
    assert all(array.flags.c_contiguous for array in (*back.values(), *files.flat_names(flax).values()))
    assert table.carry_shapes({n: a.shape for n, a in state.items()}, "flax") == {
        n.partition("/")[2]: a.shape for n, a in files.flat_names(flax).items()
    }


def test_two_entries_or_more_that_count_are_written_as_one():
    names = [("0.weight", "Dense_0/kernel"), ("1.weight", "Dense_1/kernel"), ("head.weight", "head/kernel")]
    entries = tuple(Entry(*both, "o i -> i o") for both in names)
    one = Entry("{0..1}.weight", "Dense_{0..1}/kernel", "o i -> i o")
    assert folded(entries) == [one, entries[2]]
    assert folded(entries[1:]) == [*entries[1:]]
    nested = [Entry(f"{i}.a{j}.b{k}.w", f"x_{i}/y_{j}/z_{k}/w", "a -> a")
              for i in range(2) for j in range(3) for k in range(2)]  # fmt: skip
    assert folded(tuple(nested)) == [Entry("{0..1}.a{0..2}.b{0..1}.w", "x_{0..1}/y_{0..2}/z_{0..1}/w", "a -> a")]
