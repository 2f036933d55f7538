"""Program files: what comes back, what cannot be written, and what is refused."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import random
import subprocess
import sys
import textwrap
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad.kernels.opcodes import NAMES
from tapegrad.programs import files

_SPEC = importlib.util.spec_from_file_location(
    "fuzz_files", Path(__file__).parents[1] / "fuzz_files.py"
)
fuzz_files = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fuzz_files)

ORIGINALS = fuzz_files.originals()
CONSTANT = np.array([0.5, -1.5, 2.0])


@pytest.fixture(scope="module")
def original():
    """The contents of a file that has everything, and arguments of its program."""
    return ORIGINALS[1]


def again(program, **options):
    return files.from_bytes(files.to_bytes(program), **options)


@pytest.mark.parametrize("executor", ["reference", "compiled"])
@pytest.mark.parametrize(
    ("f", "args", "others"),
    [
        (fuzz_files.scalars, (0.3, 4), (0.4, 4)),
        (fuzz_files.arrays, (np.arange(4.0), {"s": 1.5}), (np.arange(4.0) + 0.3, {"s": -0.5})),
    ],
)
def test_a_loaded_program_is_the_program(tmp_path, executor, f, args, others):
    program = tg.record(f, *args)
    program.save(tmp_path / "f.tape")
    loaded = tg.load(tmp_path / "f.tape")
    assert len(loaded) == len(program)
    with tg.executor(executor):
        for arguments in (others, args):
            expected, pull = program.vjp(*arguments)
            found, loaded_pull = loaded.vjp(*arguments)
            assert repr(found) == repr(expected)
            tg.trees.map(np.testing.assert_allclose, found, f(*arguments))
            assert repr(loaded_pull(expected)) == repr(pull(expected))


def test_derivatives_of_a_loaded_program():
    program = tg.record(lambda x: np.sum(CONSTANT * x**3) / x[0], np.ones(3))
    loaded = again(program)
    x = np.array([0.5, 1.5, -2.0])
    np.testing.assert_array_equal(loaded.value_and_grad(x)[1], program.value_and_grad(x)[1])
    np.testing.assert_array_equal(loaded.jacobian(x), program.jacobian(x))


def test_a_file_needs_no_source(tmp_path):
    """Another process, which knows nothing of the function, runs it."""
    tg.record(lambda x: np.sum(np.sin(x) * CONSTANT), np.ones(3)).save(tmp_path / "f.tape")
    code = """
        import sys, numpy as np, tapegrad as tg
        value, gradient = tg.load(sys.argv[1]).value_and_grad(np.array([1.0, 2.0, 3.0]))
        print(value, *gradient)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "f.tape")],
        capture_output=True,
        text=True,
        check=True,
    )
    value, *gradient = map(float, run.stdout.split())
    x = np.array([1.0, 2.0, 3.0])
    assert value == pytest.approx(np.sum(np.sin(x) * CONSTANT), rel=1e-15)
    np.testing.assert_allclose(gradient, np.cos(x) * CONSTANT, rtol=1e-15)


class Pair(NamedTuple):
    left: float
    right: np.ndarray


@dataclass
class Parameters:
    pair: Pair
    more: list


def parameters(p, other):
    result = p.pair.left * np.sum(p.pair.right) + p.more[0] * other["t"]
    return Pair(result, p.pair.right * 2.0), None, OrderedDict(n=result)


def test_structures_with_and_without_their_classes():
    p = Parameters(Pair(1.0, np.ones(2)), [2.0, None])
    other = OrderedDict(t=3.0)
    program = tg.record(parameters, p, other)
    with_classes = again(program, classes=(Pair, Parameters))
    assert repr(with_classes(p, other)) == repr(program(p, other))
    fields = {"pair": {"left": 1.0, "right": np.ones(2)}, "more": [2.0, None]}
    pair, nothing, ordered = again(program)(fields, other)
    assert pair["left"] == ordered["n"] == program(p, other)[0].left
    assert nothing is None
    assert type(ordered) is OrderedDict


def test_programs_are_pickled_and_copied_as_files_are():
    p = Parameters(Pair(1.0, np.ones(2)), [2.0, None])
    program = tg.record(parameters, p, OrderedDict(t=3.0))
    for other in (pickle.loads(pickle.dumps(program)), copy.deepcopy(program)):
        q = Parameters(Pair(2.0, np.array([3.0, 4.0])), [5.0, None])
        assert repr(other(q, OrderedDict(t=6.0))) == repr(program(q, OrderedDict(t=6.0)))
        assert other.tape is not program.tape


def test_keyword_arguments_constants_and_dtypes():
    def f(x, k, flag, mask, *, scale, name):
        y = x * x * k if flag and name == "a" else x
        return y[mask], scale * y[1], np.zeros(2, np.int8), "text", True, float("inf"), x > 0.0

    x, mask = np.array([1.0, -2.0], np.float32), np.array([True, False])
    program = tg.record(f, x, 3, True, mask, scale=2.0, name="a")
    loaded = again(program)
    found = loaded(x, 3, True, mask, scale=4.0, name="a")
    assert repr(found) == repr(program(x, 3, True, mask, scale=4.0, name="a"))
    assert found[0].dtype == np.float32
    with pytest.raises(ValueError, match="part of the program"):
        loaded(x, 4, True, mask, scale=4.0, name="a")
    with pytest.raises(ValueError, match="argument scale has shape"):
        loaded(x, 3, True, mask, scale=np.ones(2), name="a")


def test_decisions_are_found_again():
    def f(x):
        if x > 1.0:
            return x * x
        return np.sin(x) * int(x)

    program = tg.record(f, 0.5)
    loaded = again(program)
    assert [d.line for d in loaded.decisions.all] == [d.line for d in program.decisions.all]
    with pytest.raises(tg.ControlFlowChanged, match=r"test_files\.py:\d+ was False .* is True"):
        loaded(2.0)
    with pytest.raises(tg.ControlFlowChanged, match=r"integer of a value .* was 0"):
        loaded(-1.0)
    assert again(loaded)(0.25) == program(0.25)


ANSWERED = {
    "all": (lambda x: x[0] if np.all(x > 0.0) else x[1], [1.0, 2.0], [2.0, 2.0], [-1.0, 2.0]),
    "any": (lambda x: x[0] if (x > 0.0).any() else x[1], [1.0, -2.0], [-2.0, 2.0], [-1.0, -2.0]),
    "argmax": (lambda x: x[np.argmax(x)], [1.0, 3.0], [2.0, 5.0], [3.0, 1.0]),
    "argmin": (lambda x: x[x.argmin()] ** 2, [1.0, 3.0], [2.0, 5.0], [3.0, 1.0]),
    "argsort": (lambda x: x[np.argsort(x, kind="stable")][0], [1.0, 3.0], [2.0, 5.0], [3.0, 1.0]),
    "argpartition": (lambda x: x[np.argpartition(x, 0)][0], [1.0, 3.0], [2.0, 5.0], [3.0, 1.0]),
    "argwhere": (lambda x: x[np.argwhere(x > 1.0)[0, 0]], [1.0, 3.0], [0.0, 5.0], [3.0, 1.0]),
    "nonzero": (lambda x: np.sum(x[np.nonzero(x)]), [0.0, 3.0], [0.0, 5.0], [3.0, 1.0]),
    "flatnonzero": (lambda x: x[np.flatnonzero(x)[0]], [0.0, 3.0], [0.0, 5.0], [3.0, 1.0]),
    "count_nonzero": (lambda x: x[0] * np.count_nonzero(x), [0.0, 3.0], [5.0, 0.0], [3.0, 1.0]),
    "searchsorted": (
        lambda x: x[0] * np.searchsorted(EDGES, x, side="right")[0], [0.5, 3.0], [0.6, 9.0],
        [1.5, 3.0],
    ),
    "digitize": (lambda x: x[0] * np.digitize(x[0], EDGES), [0.5, 3.0], [0.6, 9.0], [1.5, 3.0]),
    "isclose": (
        lambda x: x[0] if np.isclose(x, 1.0, atol=0.1)[0] else x[1], [1.0, 3.0], [1.05, 4.0],
        [1.2, 3.0],
    ),
    "allclose": (lambda x: x[0] if np.allclose(x, 1.0) else x[1], [1.0, 3.0], [2.0, 4.0],
                 [1.0, 1.0]),
    "array_equal": (lambda x: x[0] if np.array_equal(x[:1], x[1:]) else x[1] * 2.0, [1.0, 3.0],
                    [2.0, 4.0], [1.0, 1.0]),
    "array_equiv": (lambda x: x[0] if np.array_equiv(x, 1.0) else x[1], [1.0, 3.0], [2.0, 4.0],
                    [1.0, 1.0]),
    "isposinf": (lambda x: np.sum(x[~np.isposinf(x)]), [1.0, np.inf], [2.0, np.inf], [1.0, 3.0]),
    "isneginf": (lambda x: np.sum(x[~np.isneginf(x)]), [1.0, -np.inf], [2.0, -np.inf], [1.0, 3.0]),
}  # fmt: skip
EDGES = np.array([0.0, 1.0, 2.0])


def test_every_function_of_the_closed_list_is_tried():
    assert set(ANSWERED) == set(tg.decisions.FUNCTIONS)


@pytest.mark.parametrize("name", ANSWERED)
def test_decisions_by_functions_are_in_files(name):
    f, recorded, same, other = ANSWERED[name]
    program = tg.record(f, np.array(recorded))
    loaded = again(again(program))
    assert [str(d.outcome) for d in loaded.decisions.all] == [
        str(d.outcome) for d in program.decisions.all
    ]
    for at in (recorded, same):
        assert loaded(np.array(at)) == program(np.array(at)) == f(np.array(at))
    with pytest.raises(tg.ControlFlowChanged, match=rf"np\.{name} at test_files\.py:\d+ was"):
        loaded(np.array(other))


def test_a_function_that_fails_decides_otherwise():
    program = tg.record(lambda x: x[0] * np.digitize(0.5, x), np.array([0.0, 1.0, 2.0]))
    with pytest.raises(tg.ControlFlowChanged, match=r"is an error \(bins must be monotonic"):
        again(program)(np.array([0.0, 3.0, 2.0]))


def test_files_of_the_first_version():
    """They had no decisions by functions, and no field for them."""
    data = files.to_bytes(tg.record(lambda x: x * x if x > 1.0 else x, 2.0))
    header = fuzz_files.header_of(data)
    del header["decisions"]["calls"]
    old = fuzz_files.with_header(data, header)[: -files._DIGEST]
    old = old[:8] + (1).to_bytes(4, "little") + old[12:]
    program = files.from_bytes(old + files._digest(old))
    assert program(3.0) == 9.0
    with pytest.raises(tg.ControlFlowChanged):
        program(0.5)


def test_a_loaded_program_knows_arguments_that_take_its_way():
    """Those that it was recorded for, whatever it was run for before it was saved."""
    program = tg.record(lambda x: x**3 if x < 1.0 else x, 0.5)
    with pytest.raises(tg.ControlFlowChanged):
        program(2.0)
    loaded = again(program)
    assert loaded.gradient()(0.25) == 3 * 0.25**2
    assert loaded.hessian(0.25) == 6 * 0.25
    assert tg.grad(lambda x: loaded(x) * x)(0.5) == 4 * 0.5**3
    assert again(program.gradient())(0.25) == 3 * 0.25**2


def test_captured_values_come_along():
    program = tg.record(lambda x: np.sum(CONSTANT * x), np.ones(3))
    loaded = again(program)
    assert [(c.name, c.file, c.line) for c in loaded.captured] == [
        (c.name, "test_files.py", c.line) for c in program.captured
    ]
    np.testing.assert_array_equal(loaded.captured[0].value, CONSTANT)
    assert loaded.check_captured() == []


def test_no_elements_and_no_instructions():
    program = again(tg.record(lambda x, y: (np.sum(x), x * 2.0, y, 3), np.ones((0, 3)), 1.0))
    found = program(np.ones((0, 3)), 5.0)
    assert found[0] == 0.0
    assert found[1].shape == (0, 3)
    assert found[2:] == (5.0, 3)
    assert again(tg.record(lambda: 7))() == 7


def test_opcodes_are_known_by_their_names(original):
    """The numbers in a file are its own, so that it survives a renumbering."""
    data, _ = original
    header = fuzz_files.header_of(data)
    numbers = [NAMES.index(name) for name in header["opcodes"]]
    assert numbers != list(range(len(numbers)))
    header["opcodes"][-1] = "A_ROW_OF_THE_FUTURE"
    with pytest.raises(tg.TapeFormatError, match="A_ROW_OF_THE_FUTURE"):
        files.from_bytes(fuzz_files.with_header(data, header))


# -- what cannot be written ------------------------------------------------------------------------


def test_python_rules_cannot_be_saved(tmp_path):
    @tg.custom_vjp
    def twice(x):
        return 2.0 * x

    twice.defvjp(lambda x: (2.0 * x, None), lambda _, g: (2.0 * g,))
    program = tg.record(lambda x: twice(x), 1.0)
    with pytest.raises(TypeError, match=r"cannot be saved: .*Python code.*test_files\.py"):
        program.save(tmp_path / "f.tape")
    assert list(tmp_path.iterdir()) == []


def test_decisions_by_unknown_functions_cannot_be_saved(tmp_path):
    program = tg.record(lambda x: x * np.histogram_bin_edges(x, 2)[1], np.array([1.0, 3.0]))
    with pytest.raises(TypeError, match=r"np\.histogram_bin_edges at test_files\.py"):
        program.save(tmp_path / "f.tape")


def test_objects_cannot_be_saved(tmp_path):
    program = tg.record(lambda x, what: x * 2.0, 1.0, object())
    with pytest.raises(TypeError, match="an argument is a object"):
        program.save(tmp_path / "f.tape")


def test_a_file_is_replaced_at_once(tmp_path, monkeypatch):
    path = tmp_path / "f.tape"
    tg.record(lambda x: x * 2.0, 1.0).save(path)
    tg.record(lambda x: x * 3.0, 1.0).save(path)
    assert tg.load(path)(1.0) == 3.0

    def full(*_):
        raise OSError("no space")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        tg.record(lambda x: x * 4.0, 1.0).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["f.tape"]
    assert tg.load(path)(1.0) == 3.0


# -- what is refused -------------------------------------------------------------------------------


def test_foreign_truncated_altered_and_newer_files(tmp_path, original):
    data, _ = original
    path = tmp_path / "f.tape"
    altered = bytearray(data)
    altered[len(data) // 2] ^= 1
    newer = data[:8] + (files.FORMAT + 1).to_bytes(4, "little") + data[12:]
    for contents, message in (
        (b"", "not a tapegrad program"),
        (b"PK\x03\x04" + data, "not a tapegrad program"),
        (data.replace(b"\r\n", b"\n"), "not a tapegrad program"),
        (data[:10], "truncated"),
        (data[:-1], "truncated"),
        (data + b"x", "followed by something else"),
        (bytes(altered), "altered or damaged"),
        (newer, "install a newer one"),
    ):
        path.write_bytes(contents)
        with pytest.raises(tg.TapeFormatError, match=rf"f\.tape: .*{message}.*test_files\.py"):
            tg.load(path)


def call(header):
    return header["decisions"]["calls"][0]


def edited(data, edit):
    header = fuzz_files.header_of(data)
    edit(header)
    return fuzz_files.with_header(data, header)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda h: h["arrays"][0].__setitem__(1, [1 << 40]), "goes beyond the end of the file"),
        (lambda h: h["arrays"][0].__setitem__(1, [-1]), "not an integer from 0"),
        (lambda h: h["arrays"][0].__setitem__(0, "object"), "unknown kind"),
        (lambda h: h["arrays"].pop(), "belong to no array"),
        (lambda h: h.pop("code"), "'code' of the header is missing"),
        (lambda h: h["code"].__setitem__("op", h["code"]["a"]), "op: an array of another kind"),
        (lambda h: h["hosts"].pop(), "structural operations for"),
        (lambda h: h["hosts"][0].__setitem__("row", "system"), "system, which this tapegrad"),
        (lambda h: h["hosts"][0].__setitem__("shape", [1 << 40]), "its result has shape"),
        (lambda h: h["hosts"][-1]["params"].__setitem__("axis", 9), "parameters"),
        (lambda h: h["arguments"][0].__setitem__("shape", [5]), "no input of shape"),
        (lambda h: h["arguments"].pop(), "as many parts"),
        (lambda h: h["arguments"][1].__setitem__("input", 0), "no input of shape"),
        (lambda h: h["arguments"][0].__setitem__("dtype", "int64"), "no dtype that inputs"),
        (lambda h: h["outputs"][0].__setitem__("cell", 1 << 31), "an output's cell"),
        (lambda h: h["outputs"][0].__setitem__("shape", [1 << 20]), "beyond the last cell"),
        (lambda h: h["outputs"][0].__setitem__("dtype", "O"), "no dtype that results"),
        (lambda h: h.__setitem__("structure", ["*"]), "structure of the arguments"),
        (lambda h: h.__setitem__("result", "**"), "structure of the result"),
        (lambda h: h["decisions"].__setitem__("sites", [[1, 2]]), "a decision is not described"),
        (lambda h: h["decisions"].__setitem__("cells", h["code"]["b"]), "decisions"),
        (lambda h: h["decisions"].__setitem__("cells", h["code"]["op"]), "array of another kind"),
        (lambda h: h["decisions"].__setitem__("numbers", h["code"]["x"]), "different lengths"),
        (lambda h: h["decisions"].__setitem__("expected", h["code"]["k"]), "different lengths"),
        (lambda h: h["decisions"]["sites"][0].__setitem__(2, -1), "a decision's line"),
        (lambda h: call(h).__setitem__("function", "load"), "np.load is no function whose answers"),
        (lambda h: call(h).__setitem__("structure", ["*"]), "the arguments of np.argmax"),
        (lambda h: call(h)["parts"].pop(), "are not those of a call"),
        (lambda h: call(h)["parts"].__setitem__(1, {"value": 7}), "does not take its arguments"),
        (lambda h: call(h)["parts"].__setitem__(1, {"window": [0, [1], [1]]}), "does not take"),
        (lambda h: call(h)["parts"][0]["window"].__setitem__(0, 1 << 40), "not defined before it"),
        (lambda h: call(h)["parts"][0]["window"].__setitem__(1, [1 << 40]), "max_cells|strides"),
        (lambda h: call(h).__setitem__("outcome", []), "has 0 answers"),
        (lambda h: h["decisions"]["calls"].pop(), "fewer functions answered"),
        (lambda h: h["decisions"]["calls"].append(call(h)), "do not fit|fewer cells"),
    ],
)
def test_wild_headers(original, edit, message):
    data, _ = original
    with pytest.raises(tg.TapeFormatError, match=message):
        files.from_bytes(edited(data, edit))


def test_wrong_guards():
    program = tg.record(lambda x: x * x if x > 1.0 else x, 2.0)
    data = files.to_bytes(program)
    for place, value, message in (
        (4, [1 << 40], "more cells than there are"),
        (4, [0], "fewer cells than there are"),
        (3, "object", "a decision is not described"),
        (3, None, "fewer functions answered"),
    ):
        with pytest.raises(tg.TapeFormatError, match=f"decision.*: .*{message}|{message}"):
            files.from_bytes(with_site(data, place, value))
    program.decisions._cells.array()[0] = 1_000_000
    with pytest.raises(tg.TapeFormatError, match="decisions: a cell is not one of the"):
        files.from_bytes(files.to_bytes(program))


def with_site(data, place, value):
    return edited(data, lambda h: h["decisions"]["sites"][0].__setitem__(place, value))


def test_a_header_that_nests_too_deeply(original):
    data, _ = original
    deep = "*"
    for _ in range(200):
        deep = {"list": 1, "children": [deep]}
    with pytest.raises(tg.TapeFormatError, match="levels deep"):
        files.from_bytes(edited(data, lambda h: h.__setitem__("result", deep)))
    body = files._padded(b"[" * 100_000)
    with pytest.raises(tg.TapeFormatError, match="header is not JSON"):
        files.from_bytes(files.seal(100_000, body))
    with pytest.raises(tg.TapeFormatError, match="does not fit into the file"):
        files.from_bytes(files.seal((1 << 32) - 1, body))


def test_the_number_of_cells_is_limited():
    data = files.to_bytes(tg.record(lambda x: np.sum(x[:, None] * x), np.ones(100)))
    with pytest.raises(tg.TapeFormatError, match="max_cells"):
        files.from_bytes(data, max_cells=10_000)
    assert files.from_bytes(data, max_cells=20_000)(np.ones(100)) == 10_000.0


@settings(max_examples=400)
@given(st.integers(0, 2**63), st.sampled_from(["reference", "compiled"]))
def test_mutated_files_are_refused_or_run(seed, executor):
    rng = random.Random(seed)
    data, args = rng.choice(ORIGINALS)
    with tg.executor(executor):
        assert fuzz_files.outcome(fuzz_files.mutated(data, rng), args)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("**", "no structure"),
        ({"list": 1}, "no structure"),
        ({"children": []}, "unknown container"),
        ({"dict": ["a", "a"], "children": ["*", "*"]}, "wrong keys"),
        ({"dict": ["a"], "children": ["*", "*"]}, "wrong keys"),
        ({"dict": [["a"]], "children": ["*"]}, "wrong keys"),
        ({"fields": [1], "class": "Pair", "children": ["*"]}, "fields must have names"),
    ],
)
def test_what_is_no_structure(data, message):
    with pytest.raises(ValueError, match=message):
        tg.trees.from_data(data)


def test_keys_that_have_no_place_in_a_file():
    program = tg.record(lambda x: x[(0, 1)], {(0, 1): 1.0})
    with pytest.raises(TypeError, match=r"cannot be saved: a dict with the key \(0, 1\)"):
        files.to_bytes(program)
