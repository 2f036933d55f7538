"""Taking containers apart and putting them together again."""

from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegrad import trees
from tapegrad.trees import (
    LEAF,
    TreeDef,
    flatten,
    flatten_like,
    is_numeric_list,
    paths,
    unflatten,
)

relaxed = settings(deadline=None)  # the machines that run tests are shared

Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Layer:
    weight: Any
    bias: Any = None
    kind: ClassVar[str] = "dense"


@dataclass(frozen=True)
class Positive:
    value: Any
    squared: Any = field(init=False)

    def __post_init__(self):
        if self.value <= 0:
            raise ValueError("must be positive")
        object.__setattr__(self, "squared", self.value**2)


leaves_of_trees = st.integers() | st.text(max_size=2) | st.floats(allow_nan=False)


def containers(children):
    keys = st.text("abc", max_size=2) | st.integers(0, 3)
    return st.one_of(
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.dictionaries(keys, children, max_size=3),
        st.dictionaries(keys, children, max_size=3).map(OrderedDict),
        st.builds(Pair, children, children),
        st.builds(Layer, children, children),
    )


some_trees = st.recursive(leaves_of_trees | st.none(), containers, max_leaves=12)


@relaxed
@given(some_trees)
def test_round_trip(tree):
    leaves, treedef = flatten(tree)
    again = unflatten(treedef, leaves)
    assert again == tree
    assert type(again) is type(tree)
    assert repr(again) == repr(tree)  # the order of dicts too
    assert treedef.n_leaves == len(leaves) == len(paths(treedef))


@relaxed
@given(some_trees)
def test_paths_lead_to_the_leaves_in_order(tree):
    leaves, treedef = flatten(tree)
    reached = [eval(f"tree{path}", {"tree": tree}) for path in paths(treedef)]
    assert all(a is b for a, b in zip(reached, leaves, strict=True))


@relaxed
@given(some_trees, some_trees)
def test_structures_compare_by_value(one, other):
    a, b = flatten(one)[1], flatten(other)[1]
    assert a == flatten(one)[1]
    assert hash(a) == hash(flatten(one)[1])
    if a == b:
        assert hash(a) == hash(b)
        assert paths(a) == paths(b)
        assert flatten_like(a, other) == flatten(other)[0]


@relaxed
@given(some_trees, some_trees)
def test_only_equal_structures_are_alike(one, other):
    a, b = flatten(one)[1], flatten(other)[1]
    try:
        leaves = flatten_like(a, other)
    except ValueError:
        assert a != b
    else:
        assert sorted(paths(a)) == sorted(paths(b))  # dicts may be in another order
        assert len(leaves) == a.n_leaves


def test_what_is_a_leaf():
    array = np.zeros(3)
    for leaf in (1.0, "text", array, {1, 2}, object(), range(3), Layer):
        leaves, treedef = flatten(leaf)
        assert len(leaves) == 1
        assert leaves[0] is leaf
        assert treedef == LEAF
        assert treedef.is_leaf
        assert paths(treedef) == [""]
    assert flatten(None)[0] == []
    assert not flatten(None)[1].is_leaf


def test_the_caller_may_say_what_is_a_leaf():
    leaves, treedef = flatten({"x": [1.0, 2.0], "y": [[1.0], "a"]}, is_leaf=is_numeric_list)
    assert leaves == [[1.0, 2.0], [1.0], "a"]
    assert paths(treedef) == ["['x']", "['y'][0]", "['y'][1]"]
    assert flatten_like(treedef, {"x": [3], "y": [4, 5]}, is_leaf=is_numeric_list) == [[3], 4, 5]
    with pytest.raises(ValueError, match=r"\['x'\]: expected a leaf, got a list of 1"):
        flatten_like(treedef, {"x": [3], "y": [4, 5]})


def test_dicts_keep_their_order_and_their_kind():
    tree = defaultdict(list, {"b": 1, "a": 2})
    leaves, treedef = flatten(tree)
    again = unflatten(treedef, leaves)
    assert leaves == [1, 2]
    assert list(again) == ["b", "a"]
    assert again["new"] == []
    assert type(unflatten(*flatten(OrderedDict(x=1))[::-1])) is OrderedDict


def test_a_dict_in_another_order_is_alike():
    treedef = flatten({"b": 0, "a": [0, 0]})[1]
    assert flatten_like(treedef, {"a": [2, 3], "b": 1}) == [1, 2, 3]


def test_dataclasses_are_rebuilt_without_their_checks():
    leaves, treedef = flatten(Positive(3.0))
    assert leaves == [3.0, 9.0]
    gradient = unflatten(treedef, [-1.0, 0.0])
    assert type(gradient) is Positive
    assert (gradient.value, gradient.squared) == (-1.0, 0.0)


def test_fields_are_reached_by_name():
    treedef = flatten({"w": [Layer(1.0, 2.0)], "p": Pair((3.0,), None)})[1]
    assert paths(treedef) == ["['w'][0].weight", "['w'][0].bias", "['p'].first[0]"]
    assert repr(treedef) == (
        "TreeDef({'w': [Layer(weight=*, bias=*)], 'p': Pair(first=(*,), second=None)})"
    )


def test_structures_differ_by_kind_keys_and_children():
    different = [1, None, [], (), {}, [1], (1,), {"a": 1}, {"b": 1}, OrderedDict(a=1), [[1]]]
    different += [Pair(1, 2), (1, 2), Layer(1, 2), Layer(1)]
    structures = {flatten(tree)[1] for tree in different}
    assert len(structures) == len(different)
    assert flatten(1)[1] != "*"
    assert isinstance(flatten(1)[1], TreeDef)


@pytest.mark.parametrize(
    ("expected", "got", "message"),
    [
        ({"a": 1}, {"b": 1}, r"the top: .* dict with the keys \['a'\], got .* keys \['b'\]"),
        ({"a": [1, 2]}, {"a": [1]}, r"\['a'\]: expected a list of 2, got a list of 1"),
        ([(1, 2)], [[1, 2]], r"\[0\]: expected a tuple of 2, got a list of 2"),
        ([1], [None], r"\[0\]: expected a leaf, got None"),
        ([None], [1], r"\[0\]: expected None, got a leaf"),
        (Layer([1]), Layer(2), r"\.weight: expected a list of 1, got a leaf"),
        (Pair(1, 2), (1, 2), r"the top: expected Pair with the fields \['first', 'second'\]"),
    ],
)
def test_a_mismatch_is_named_by_its_path(expected, got, message):
    with pytest.raises(ValueError, match=f"structures differ at {message}"):
        flatten_like(flatten(expected)[1], got)


def test_map_walks_trees_together():
    first = {"x": 1, "y": (2, [3])}
    second = {"y": (20, [30]), "x": 10}
    assert trees.map(lambda a, b: a + b, first, second) == {"x": 11, "y": (22, [33])}
    assert trees.map(str, [None, 1]) == [None, "1"]
    with pytest.raises(ValueError, match=r"structures differ at \['y'\]\[1\]"):
        trees.map(lambda a, b: a, first, {"x": 1, "y": (2, 3)})


@pytest.mark.parametrize("n", [0, 1, 3])
def test_the_number_of_leaves_is_checked(n):
    with pytest.raises(ValueError, match=f"takes 2 leaves, got {n}"):
        unflatten(flatten([0, 0])[1], range(n))


@pytest.mark.parametrize(
    ("obj", "numeric"),
    [
        ([1, 2.0, np.float32(3), True, 1j], True),
        ([[1, 2], [3, 4]], True),
        ([[[1]], [[2]]], True),
        ([[1, 2], [3]], False),
        ([[1, 2], 3], False),
        ([1, "a"], False),
        ([1, None], False),
        ([1, np.zeros(2)], False),
        ([], False),
        ([[], []], False),
        ((1, 2), False),
        ([(1, 2)], False),
        (1.0, False),
    ],
)
def test_is_numeric_list(obj, numeric):
    assert is_numeric_list(obj) is numeric
    if numeric:
        assert np.asarray(obj).dtype.kind in "ifc"
