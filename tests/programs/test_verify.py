"""The verifier: good tapes pass, and each thing that a kernel could stumble over is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad.host import HostCall
from tapegrad.kernels.opcodes import NAMES
from tapegrad.programs import writing
from tapegrad.programs.verify import Code, check_cells, corners, range_maxima, verify
from tapegrad.recording import CONSTANT, INDEXED
from tapegrad.window import Window

LIMIT = 10_000


def code_of(f, *args):
    """Return the code of a recorded function, in arrays of its own."""
    code, _, _ = writing.code_of(tg.record(f, *args).tape)
    for name in ("op", "a", "b", "k", "d", "x"):
        setattr(code, name, getattr(code, name).copy())
    return code


def at(code, name):
    """Return the number of the first instruction of an opcode."""
    return int(np.flatnonzero(code.op == NAMES.index(name))[0])


def scalars():
    """INPUT x, SIN, CARRY, WHERE and operations with constants."""
    return code_of(lambda x: np.where(x > 0.5, np.sin(x) * 3.0, x) + x**3, 1.0)


def arrays():
    """Two array instructions with each kind of operand, and a structural one."""

    def f(x):
        y = x.copy()
        y[2] = x[0]
        return np.sum(np.array([1.0, 2.0, 3.0, 4.0]) * y + 0.5)

    return code_of(f, np.ones(4))


def refused(code, message):
    with pytest.raises(tg.TapeFormatError, match=message):
        verify(code, LIMIT)


def test_first_cells():
    code = arrays()
    assert [NAMES[o] for o in code.op] == ["INPUT", "INPUT", "LANES", "LANES", "HOST"]
    np.testing.assert_array_equal(verify(code, LIMIT), [0, 4, 8, 12, 16, 17])


def test_nothing_is_a_tape():
    none = np.zeros(0, np.int64)
    assert verify(Code(none, none, none, none, none, none, []), 0).tolist() == [0]


@pytest.mark.parametrize(
    ("column", "opcode", "value", "message"),
    [
        ("op", "SIN", 255, "there is no opcode 255"),
        ("op", "SIN", NAMES.index("WHERE"), "no CARRY stands before it"),
        ("op", "WHERE", NAMES.index("ADD"), "no operation of three operands follows"),
        ("op", "CARRY", NAMES.index("SIN"), "no CARRY stands before it"),
        ("a", "SIN", 2**32 - 1, "first operand is not defined"),
        ("a", "CARRY", 100, "first operand is not defined"),
        ("a", "WHERE", 100, "first operand is not defined"),
        ("b", "WHERE", 100, "last operand is not defined"),
        ("b", "ADD", 100, "last operand is not defined"),
        ("b", "MULTIPLY_XK", 100, "constant is not one of the"),
        ("b", "SIN", 1, "an operand too many"),
        ("b", "INPUT", 2**32 - 1, "no more than 10,000 are allowed"),
        ("a", "INPUT", 1, "input is out of its order"),
    ],
)
def test_scalar_instructions(column, opcode, value, message):
    code = scalars()
    verify(code, LIMIT)
    getattr(code, column)[at(code, opcode)] = value
    refused(code, message)


def test_an_instruction_cannot_read_its_own_cell():
    code = scalars()
    first = verify(code, LIMIT)
    i = at(code, "SIN")
    code.a[i] = first[i]
    refused(code, rf"instruction {i} \(SIN\)")


def test_integer_constants():
    code = code_of(lambda x: x**3 * 2.5, 1.5)
    (i,) = [i for i, o in enumerate(code.op) if NAMES[o].startswith("INTEGER_POWER")]
    for value in (2.5, np.nan, np.inf):
        code.k[code.b[i]] = value
        refused(code, "not an integer")


def test_integer_constants_of_arrays():
    code = code_of(lambda x: np.ldexp(x, 3), np.ones(4))
    verify(code, LIMIT)
    code.k[:] = 0.5
    refused(code, "not an integer")


# A descriptor of one axis: row, 1, extent, then kind, offset and stride of each operand.
@pytest.mark.parametrize(
    ("word", "value", "message"),
    [
        (0, -1, "no row"),
        (0, 10**6, "no row"),
        (0, NAMES.index("LANES"), "no row"),
        (0, NAMES.index("ADD_XK"), "no row"),
        (0, NAMES.index("WHERE"), "unknown kind|beyond the end|outside|not defined|strides"),
        (1, -1, "number of axes"),
        (1, 65, "number of axes"),
        (1, 64, "beyond the end|number of lanes"),
        (2, 5, "number of lanes"),
        (2, 0, "number of lanes"),
        (2, -4, "number of lanes"),
        (2, 2**62, "number of lanes"),
        (3, 4, "unknown kind"),
        (3, -1, "unknown kind"),
        (4, 5, "cells that are not defined"),
        (4, -1, "cells that are not defined"),
        (4, 2**63 - 1, "cells that are not defined"),
        (5, 2, "cells that are not defined"),
        (5, -(2**63), "cells that are not defined"),
        (5, 2**63 - 1, "cells that are not defined"),
    ],
)
def test_descriptors(word, value, message):
    code = arrays()
    start = int(code.a[at(code, "LANES")])
    assert code.d[start : start + 3].tolist() == [NAMES.index("MULTIPLY"), 1, 4]
    code.d[start + word] = value
    refused(code, message)


def test_where_descriptors_begin():
    code = arrays()
    for value in (code.d.size, code.d.size - 1, 2**32 - 1):
        code.a[at(code, "LANES")] = value
        refused(code, "outside of the pool")


def test_indices():
    code = arrays()
    start = int(code.a[at(code, "LANES")])
    place = start + 6
    assert code.d[place] == INDEXED
    code.x[code.d[place + 1] + 3] = 8  # the instruction's own first cell
    refused(code, "an index names a cell that is not defined")
    code.x[code.d[place + 1] + 3] = 7
    verify(code, LIMIT)
    code.d[place + 1] = code.x.size - 3
    refused(code, "outside of the indices")


def test_constants_of_arrays():
    code = arrays()
    start = int(code.a[at(code, "LANES") + 1])
    place = start + 6
    assert code.d[place] == CONSTANT
    code.d[place + 2] = 1  # kernels read one constant, whatever the lane
    code.k = np.zeros(100)
    refused(code, "cannot have strides")
    code.d[place + 2] = 0
    code.d[place + 1] = 100
    refused(code, "not in the pool")


def test_lanes_beyond_their_own_start():
    """An instruction must not read what it is about to write."""
    code = arrays()
    start = int(code.a[at(code, "LANES") + 1])
    code.d[start + 4] += 1
    refused(code, "cells that are not defined")


def changed(call, **changes):
    parts = {name: getattr(call, name) for name in ("row", "operands", "params", "shape")}
    return HostCall(**{**parts, **changes})


def test_structural_instructions():
    code = arrays()
    (call,) = code.hosts
    (place,) = call.operands
    for change, message in (
        ({"shape": (2,)}, "its result has shape"),
        ({"params": {}}, "not what it takes"),
        ({"params": {"axis": (1,), "keepdims": False}}, "does not take the parameters"),
        ({"params": {"axis": (0, 0), "keepdims": False}}, "does not take the parameters"),
        ({"params": {"axis": (0,), "keepdims": 1}}, "does not take the parameters"),
        ({"params": {"axis": None, "keepdims": False}}, "does not take the parameters"),
        ({"params": {"axis": (0,), "keepdims": True}}, "its result has shape"),
        ({"operands": [place, place]}, "not what it takes"),
    ):
        code.hosts = [changed(call, **change)]
        refused(code, message)
    code.hosts = []
    refused(code, "0 structural operations for 1 instructions")


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (Window(13, (4,), (1,)), "not defined"),
        (Window(0, (4,), (-1,)), "not defined"),
        (Window(0, (4,), (2**40,)), "strides"),
        (Window(0, (2**40,), (0,)), "max_cells"),
        (Window(0, (0, 2**40), (0, 0)), "max_cells"),
        (Window(0, (4,), (1, 1)), "strides"),
        (Window(0, (1,) * 65, (0,) * 65), "65 axes"),
    ],
)
def test_windows_of_structural_instructions(window, message):
    code = arrays()
    code.hosts[0].operands[0].window = window
    refused(code, message)


def test_cells():
    check_cells(np.array([0, 9]), 10, "an output")
    for cells in ([10], [-1], [2**40]):
        with pytest.raises(tg.TapeFormatError, match="an output: a cell"):
            check_cells(np.array(cells), 10, "an output")


@given(st.data())
def test_corners_and_maxima(data):
    """Against NumPy, which walks the windows and ranges."""
    ndim = data.draw(st.integers(0, 3))
    small = st.integers(1, 4)
    shape = tuple(data.draw(st.lists(small, min_size=ndim, max_size=ndim)))
    steps = tuple(data.draw(st.lists(st.integers(-9, 9), min_size=ndim, max_size=ndim)))
    cells = Window(50, shape, steps).cells()
    low, high = corners(np.array([50]), np.array([shape]), np.array([steps]))
    assert (low[0], high[0]) == (cells.min(), cells.max())
    x = np.array(data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=20)))
    pairs = st.tuples(st.integers(0, x.size - 1), st.integers(0, x.size - 1))
    ranges = np.sort(np.array(data.draw(st.lists(pairs, min_size=1, max_size=9))), axis=1)
    expected = [x[first : last + 1].max() for first, last in ranges]
    assert range_maxima(x, ranges[:, 0], ranges[:, 1]).tolist() == expected
