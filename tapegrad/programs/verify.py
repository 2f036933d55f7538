"""The verifier: what a tape from outside must satisfy before a kernel touches it.

Kernels index arenas without checks, so a tape that did not come from this process is checked here
first, in a handful of vectorised passes.  A tape that passes can be swept forward and backward by
every executor: each instruction is known, reads only cells defined before it, constants, indices
and descriptors that are there, and defines as many cells as its descriptor says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from ..decisions import BROADCASTING, Call
from ..errors import TapeFormatError
from ..host import HostCall, HostOperand, result_shape
from ..kernels.opcodes import (
    BINARY,
    BINARY_KX,
    BINARY_XK,
    CARRY,
    CONST,
    HOST,
    INPUT,
    INTEGER_OPERAND,
    KINDS,
    LANES,
    NAMES,
    ROWS,
    TERNARY,
    UNARY,
)
from ..recording import CELLS, CONSTANT, INDEXED, PASSIVE_CELLS
from ..window import Shape
from .layout import is_split

Array = np.ndarray[Any, Any]

MAX_NDIM = 64
"""Axes of a window at most, as in NumPy."""

_LAST_CELL = (1 << 32) - 1  # operands are uint32
_CHUNK = 1 << 14  # array instructions whose descriptors are looked at together
_KIND = np.array(KINDS, np.uint8)
_ARITY = np.array([{UNARY: 1, BINARY: 2, TERNARY: 3}.get(kind, 0) for kind in KINDS])
_SCANS = ("cumsum", "cumprod")
_REDUCTIONS = ("sum", "prod", "min", "max")


class Code:
    """The code of a tape, without the values of its cells.

    Attributes
    ----------
    op, a, b : ndarray
        Opcodes (uint8) and operands (uint32) of the instructions.
    k, d, x : ndarray
        The pools: constants (float64), descriptors (int64), indices of cells (uint32).
    hosts : list of HostCall
        Structural instructions, in order.
    """

    __slots__ = ("a", "b", "d", "hosts", "k", "op", "x")

    def __init__(
        self, op: Array, a: Array, b: Array, k: Array, d: Array, x: Array, hosts: list[HostCall]
    ) -> None:
        self.op, self.a, self.b = op, a, b
        self.k, self.d, self.x = k, d, x
        self.hosts = hosts

    def refuse(self, bad: Array, what: str, numbers: Array | None = None) -> None:
        """Raise `TapeFormatError` for the first instruction that is bad, if any is."""
        if bad.any():
            i = int(np.argmax(bad))
            i = i if numbers is None else int(numbers[i])
            raise TapeFormatError(f"instruction {i} ({NAMES[self.op[i]]}): {what}")


def verify(code: Code, max_cells: int) -> Array:
    """Check a tape, and return where its instructions' cells begin.

    Parameters
    ----------
    code : Code
        Columns of equal length.
    max_cells : int
        How many cells the tape may have, and how many elements an operand.

    Returns
    -------
    ndarray of int64
        The first cell of each instruction, and the number of all cells at the end.

    Raises
    ------
    TapeFormatError
        It names the first instruction that is wrong, and what is wrong with it.

    Examples
    --------
    >>> column = lambda *numbers: np.array(numbers, np.uint32)
    >>> op = np.array([NAMES.index(name) for name in ("INPUT", "ADD")], np.uint8)
    >>> none = np.zeros(0, np.int64)
    >>> verify(Code(op, column(0, 0), column(1, 0), none, none, none, []), 100)
    array([0, 1, 2])
    >>> verify(Code(op, column(0, 1), column(1, 0), none, none, none, []), 100)
    Traceback (most recent call last):
    tapegrad.errors.TapeFormatError: instruction 1 (ADD): its first operand is not defined before it
    """
    bad = code.op >= len(NAMES)
    if bad.any():
        i = int(np.argmax(bad))
        raise TapeFormatError(f"instruction {i}: there is no opcode {int(code.op[i])}")
    first = _first_cells(code, max_cells)
    _check_scalars(code, first[:-1])
    _check_lanes(code, first[:-1])
    _check_hosts(code, first[:-1], max_cells)
    return first


def check_cells(cells: Array, stop: int, what: str) -> None:
    """Raise `TapeFormatError` unless all cells are below `stop`."""
    if cells.size and (int(cells.max()) >= stop or int(cells.min()) < 0):
        raise TapeFormatError(f"{what}: a cell is not one of the {stop} that there are")


def _first_cells(code: Code, max_cells: int) -> Array:
    """Count cells: an input, array or structural instruction owns several, the others one."""
    op, a, b = code.op, code.a, code.b
    wide = (op == INPUT) | (op == LANES) | (op == HOST)
    first = np.zeros(op.size + 1, np.int64)
    np.cumsum(np.where(wide, b, 1), out=first[1:])
    total = int(first[-1])
    if total > min(max_cells, _LAST_CELL):
        raise TapeFormatError(
            f"the tape has {total:,} cells, and no more than {max_cells:,} are allowed; if you "
            "trust where the file comes from, pass a larger max_cells"
        )
    for kind, what in ((INPUT, "input"), (HOST, "structural operation")):
        (numbers,) = np.nonzero(op == kind)
        code.refuse(
            a[numbers] != np.arange(numbers.size), f"the {what} is out of its order", numbers
        )
    return first


def _check_scalars(code: Code, first: Array) -> None:
    """Check the operands of scalar instructions: cells, constants, and what precedes a ternary."""
    op, a, b = code.op, code.a, code.b
    kind = _KIND[op]
    ternary, carry = kind == TERNARY, op == CARRY
    code.refuse(((kind > 0) | carry) & (a >= first), "its first operand is not defined before it")
    code.refuse(
        ((kind == BINARY) | ternary) & (b >= first), "its last operand is not defined before it"
    )
    pooled = (kind == BINARY_XK) | (kind == BINARY_KX)
    outside = ((op == CONST) & (a >= code.k.size)) | (pooled & (b >= code.k.size))
    code.refuse(outside, f"its constant is not one of the {code.k.size} that there are")
    code.refuse(((kind == UNARY) | carry | (op == CONST)) & (b != 0), "it has an operand too many")
    before = np.concatenate(([False], carry[:-1]))
    after = np.concatenate((ternary[1:], [False]))[: op.size]
    code.refuse(ternary & ~before[: op.size], "no CARRY stands before it")
    code.refuse(carry & ~after, "no operation of three operands follows it")
    for row, position in INTEGER_OPERAND.items():
        variant = ROWS[row][1 if position else 2]
        (numbers,) = np.nonzero(op == variant)
        code.refuse(~_integral(code.k[b[numbers]]), "its constant is not an integer", numbers)


def _integral(values: Array) -> Array:
    good: Array = np.isfinite(values) & (values == np.floor(values))
    return good


# -- array instructions ----------------------------------------------------------------------------


def _check_lanes(code: Code, first: Array) -> None:
    """Check descriptors, those of equal length together."""
    (numbers,) = np.nonzero(code.op == LANES)
    at = code.a[numbers].astype(np.int64)
    code.refuse(at + 2 > code.d.size, "its descriptor lies outside of the pool", numbers)
    row, ndim = code.d[at], code.d[at + 1]
    known = (row >= 0) & (row < len(NAMES))
    arity = np.where(known, _ARITY[np.where(known, row, 0)], 0)
    code.refuse(arity == 0, "its descriptor names no row of the table", numbers)
    code.refuse((ndim < 0) | (ndim > MAX_NDIM), "its number of axes makes no sense", numbers)
    indexed: list[tuple[Array, Array, Array]] = []
    form = 4 * ndim + arity
    for one in np.unique(form):
        (group,) = np.nonzero(form == one)
        axes, operands = divmod(int(one), 4)
        for begin in range(0, group.size, _CHUNK):
            some = group[begin : begin + _CHUNK]
            indexed += _check_descriptors(code, first, numbers[some], at[some], axes, operands)
    for chunk, low, high in indexed:
        if chunk.size:
            bad = range_maxima(code.x, low, high) >= first[chunk]
            code.refuse(bad, "an index names a cell that is not defined before it", chunk)


def _check_descriptors(
    code: Code, first: Array, numbers: Array, at: Array, ndim: int, arity: int
) -> Iterator[tuple[Array, Array, Array]]:
    """Check instructions of `ndim` axes and `arity` operands; yield what they read of the indices.

    That is numbers of instructions, and the first and last place of `Code.x` that each reads.
    """
    length = 2 + ndim
    fits = at + length * (1 + arity) <= code.d.size
    code.refuse(~fits, "its descriptor goes beyond the end of the pool", numbers)
    words = np.lib.stride_tricks.sliding_window_view(code.d, length * (1 + arity))[at]
    extents = words[:, 2:length]
    lanes = np.ones(at.size, np.int64)
    count = code.b[numbers].astype(np.int64)
    for extent in extents.T:
        bad = (extent < 1) | (extent > count // lanes)  # no product can overflow
        code.refuse(bad, "its shape has other than its number of lanes", numbers)
        lanes *= extent
    code.refuse(lanes != count, "its shape has other than its number of lanes", numbers)
    base = first[numbers]
    for j in range(1, 1 + arity):
        operand = words[:, j * length : (j + 1) * length]
        kind, offset, strides = operand[:, 0], operand[:, 1], operand[:, 2:]
        code.refuse((kind < 0) | (kind > PASSIVE_CELLS), "an operand of unknown kind", numbers)
        low, high = corners(offset, extents, strides)
        stop = np.where(kind == CONSTANT, code.k.size, np.where(kind == INDEXED, code.x.size, base))
        outside = (low < 0) | (high >= stop) | _wild(strides).any(axis=1)
        code.refuse(outside & (kind == CONSTANT), "a constant that is not in the pool", numbers)
        code.refuse(outside & (kind == INDEXED), "a window outside of the indices", numbers)
        code.refuse(outside, "a window on cells that are not defined before it", numbers)
        owned = (kind == CELLS) | (kind == PASSIVE_CELLS)
        apart = is_split(first, low, high)
        code.refuse(owned & apart, "a window over several instructions", numbers)
        moving = (kind == CONSTANT) & strides.any(axis=1)
        code.refuse(moving, "a constant cannot have strides", numbers)
        _check_integer_lanes(code, numbers, words[:, 0], j - 1, kind, offset)
        (some,) = np.nonzero(kind == INDEXED)
        yield numbers[some], low[some].astype(np.int64), high[some].astype(np.int64)


def _wild(strides: Array) -> Array:
    return (strides > _LAST_CELL) | (strides < -_LAST_CELL)


def _check_integer_lanes(
    code: Code, numbers: Array, row: Array, position: int, kind: Array, offset: Array
) -> None:
    for name, needed in INTEGER_OPERAND.items():
        if needed == position and (row == ROWS[name][0]).any():
            (some,) = np.nonzero((row == ROWS[name][0]) & (kind == CONSTANT))
            bad = ~_integral(code.k[offset[some]])
            code.refuse(bad, "its constant is not an integer", numbers[some])


def corners(offset: Array, extents: Array, strides: Array) -> tuple[Array, Array]:
    """Return the lowest and the highest place that windows reach, as floats, which cannot overflow.

    Examples
    --------
    >>> offset, extents, strides = np.array([10]), np.array([[3, 4]]), np.array([[-4, 1]])
    >>> corners(offset, extents, strides)
    (array([2.]), array([13.]))
    """
    low = high = offset.astype(np.float64)
    for extent, stride in zip(extents.T, strides.T, strict=True):  # few axes, many windows
        reach = (extent - 1.0) * stride
        low, high = low + np.minimum(reach, 0.0), high + np.maximum(reach, 0.0)
    return low, high


def range_maxima(x: Array, low: Array, high: Array) -> Array:
    """Return the maximum of ``x[low : high + 1]`` for each pair: overlapping ranges cost no more.

    Examples
    --------
    >>> range_maxima(np.array([3, 1, 4, 1, 5]), np.array([0, 1, 3]), np.array([1, 3, 4]))
    array([3, 4, 5])
    """
    level = np.frexp((high - low + 1).astype(np.float64))[1] - 1  # the largest 2**level that fits
    result = np.zeros(low.size, x.dtype)
    table = x
    for step in range(int(level.max(initial=0)) + 1):
        (some,) = np.nonzero(level == step)
        end = high[some] + 1 - (1 << step)
        result[some] = np.maximum(table[low[some]], table[end])
        table = np.maximum(table[: -1 << step], table[1 << step :])
    return result


# -- structural instructions -----------------------------------------------------------------------


def _check_hosts(code: Code, first: Array, max_cells: int) -> None:
    numbers = np.flatnonzero(code.op == HOST).tolist()
    if len(numbers) != len(code.hosts):
        raise TapeFormatError(
            f"there are {len(code.hosts)} structural operations for {len(numbers)} instructions"
        )
    for i, call in zip(numbers, code.hosts, strict=True):
        try:
            _check_host(call, first[: i + 1], int(code.b[i]), max_cells)
        except TapeFormatError as error:
            raise TapeFormatError(f"instruction {i} ({call.row.name}): {error}") from None


def _check_host(call: HostCall, first: Array, size: int, max_cells: int) -> None:
    shapes = [_operand_shape(place, first, max_cells) for place in call.operands]
    check_params(call.row.name, call.params, shapes)
    try:
        shape = result_shape(call.row.name, shapes, call.params)
    except (ValueError, TypeError, IndexError) as error:
        raise TapeFormatError(str(error)) from None
    if shape != call.shape or prod(shape) != size:
        raise TapeFormatError(f"its result has shape {shape}, not {call.shape} ({size} cells)")


def _operand_shape(place: HostOperand, first: Array, max_cells: int) -> Shape:
    """Check that an operand lies below the last cell of `first`, and return its shape."""
    base = int(first[-1])
    if place.constant is not None or place.cells is not None:
        values = place.constant if place.cells is None else place.cells
        if place.cells is not None:
            check_cells(values, base, "an operand")
        shape: Shape = values.shape
        return shape
    window = place.window
    assert window is not None
    check_window(window.shape, window.strides, max_cells)
    if window.size:
        extents, strides = np.array([window.shape]), np.array([window.strides])
        low, high = corners(np.array([window.offset]), extents, strides)
        if low[0] < 0 or high[0] >= base:
            raise TapeFormatError("a window on cells that are not defined before it")
        if is_split(first, low[0], high[0]):
            raise TapeFormatError("a window over several instructions")
    return window.shape


def check_window(shape: Sequence[int], strides: Sequence[int], max_cells: int) -> None:
    """Raise `TapeFormatError` unless a window is one that NumPy can make."""
    if len(shape) > MAX_NDIM or len(shape) != len(strides):
        raise TapeFormatError(f"a window of {len(shape)} axes with {len(strides)} strides")
    # The product of the extents without zeros bounds every intermediate shape.
    if any(n < 0 for n in shape) or prod([n for n in shape if n]) > max_cells:
        raise TapeFormatError(f"a window of shape {tuple(shape)}: more than max_cells elements")
    if any(abs(stride) > _LAST_CELL for stride in strides):
        raise TapeFormatError(f"a window of strides {tuple(strides)}")


def check_params(name: str, params: dict[str, Any], shapes: Sequence[Shape]) -> None:
    """Raise `TapeFormatError` unless a structural row takes these parameters and operands."""
    expected = {"axis"} if name in _SCANS else {"axis", "keepdims"} if name in _REDUCTIONS else ()
    if set(params) != set(expected) or len(shapes) != (2 if name == "matmul" else 1):
        raise TapeFormatError(
            f"{len(shapes)} operands and the parameters {sorted(params)} are not what it takes"
        )
    ndim = len(shapes[0])
    axis: Any = params.get("axis")
    if name in _SCANS:
        good = type(axis) is int and 0 <= axis < ndim
    elif name in _REDUCTIONS:
        good = isinstance(axis, tuple) and all(type(i) is int and 0 <= i < ndim for i in axis)
        good = good and len(set(axis)) == len(axis) and type(params["keepdims"]) is bool
    else:
        good = name == "matmul"
    if not good:
        raise TapeFormatError(f"it does not take the parameters {params} for {ndim} axes")


# -- decisions -------------------------------------------------------------------------------------


def check_decision(call: Call, first: Array, max_cells: int) -> None:
    """Raise `TapeFormatError` unless a function that answers a decision can be called.

    It is called, once, where all cells are zero: NumPy's functions check what they are given.  What
    they may refuse for other values only, a replay notices as another answer.
    """
    name = call.function.__name__
    shapes = []
    for place in call.places:
        if isinstance(place, HostOperand):
            shapes.append(_operand_shape(place, first, max_cells))
        elif isinstance(place, np.ndarray):
            shapes.append(place.shape)
    node = call.tree
    kinds = [child.kind for child in node.children]
    if node.kind is not tuple or kinds != [list, dict] or node.n_leaves != len(call.places):
        raise TapeFormatError(f"the arguments of np.{name} are not those of a call")
    try:
        shape = np.broadcast_shapes(*shapes) if call.function in BROADCASTING else ()
        if prod(shape) > max_cells:
            raise ValueError(f"it would compute {prod(shape):,} elements")
        call.answer(np.zeros(int(first[-1])))
    except Exception as error:  # NumPy raises many kinds
        raise TapeFormatError(f"np.{name} does not take its arguments: {error}") from None
