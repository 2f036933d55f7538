"""`Scalar`: one tracked number, and the hot path of recording.

An operator between scalars of this thread's current tape appends three integers to a list and makes
one object with two attributes set; everything else (constants met for the first time, leaves not
imported yet, other threads' values, arrays) goes the general way, through `tapegrad.recording`.

The order of statements matters.  The object is made first, because that can run the garbage
collector and with it foreign code; between taking a cell number and appending the instruction
nothing else can happen but Ctrl-C, and `Tape.repair` then drops the half-made instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import recording
from ..kernels.opcodes import NONDIFF, RESULT, ROWS, UFUNCS
from ..recording import BOOL, FLOAT64, array, elementwise
from ..storage import Storage, TrackedArray, TrackedScalar
from ..tape import read_cell, recorder
from ..window import Window
from .array import Array
from .indexing import get
from .ufuncs import array_ufunc, power

Method = Callable[..., Any]


def _unary(row: str) -> Method:
    op = ROWS[row][0]

    def method(self: Any) -> Any:
        try:
            tape = self.tape
            if tape.thread._is_owned():
                out = Scalar()
                out.tape = tape
                out.cell = next(tape.cells)
                code = tape.code
                code.append(op)
                code.append(self.cell)
                code.append(0)
                return out
        except StopIteration:
            recorder.block_full()
        except AttributeError:
            pass  # a leaf not imported yet
        except BaseException:
            recorder.tape.repair()
            raise
        return elementwise(row, self)

    return method


def _binary(row: str) -> Method:
    op, op_constant, _ = ROWS[row]

    def method(self: Any, other: Any) -> Any:
        try:
            tape = self.tape
            if tape.thread._is_owned():
                kind = other.__class__
                if kind is Scalar:
                    if other.tape is tape:
                        out = Scalar()
                        out.tape = tape
                        out.cell = next(tape.cells)
                        code = tape.code
                        code.append(op)
                        code.append(self.cell)
                        code.append(other.cell)
                        return out
                elif (kind is float or kind is int) and other:
                    constant = tape.constants[other]
                    out = Scalar()
                    out.tape = tape
                    out.cell = next(tape.cells)
                    code = tape.code
                    code.append(op_constant)
                    code.append(self.cell)
                    code.append(constant)
                    return out
        except StopIteration:
            recorder.block_full()
        except (KeyError, AttributeError):
            pass  # a constant met for the first time, or a leaf not imported yet
        except BaseException:
            recorder.tape.repair()
            raise
        return elementwise(row, self, other)

    return method


def _reflected(row: str) -> Method:
    op = ROWS[row][2]

    def method(self: Any, other: Any) -> Any:
        kind = other.__class__
        try:
            tape = self.tape
            if (kind is float or kind is int) and other and tape.thread._is_owned():
                constant = tape.constants[other]
                out = Scalar()
                out.tape = tape
                out.cell = next(tape.cells)
                code = tape.code
                code.append(op)
                code.append(self.cell)
                code.append(constant)
                return out
        except StopIteration:
            recorder.block_full()
        except (KeyError, AttributeError):
            pass  # a constant met for the first time, or a leaf not imported yet
        except BaseException:
            recorder.tape.repair()
            raise
        return elementwise(row, other, self)

    return method


_POINT = Window(0, (), ())


def _comparison(row: str) -> Method:
    op, op_constant, _ = ROWS[row]

    def method(self: Any, other: Any) -> Any:
        tape = self.tape
        if tape is not None and tape.awake and tape.thread._is_owned():
            kind = other.__class__
            if kind is Scalar and other.tape is tape:
                cell = tape.push(op, self.cell, other.cell)
            elif kind is float or kind is int:
                cell = tape.push(op_constant, self.cell, tape.constant(float(other)))
            else:
                return elementwise(row, self, other)
            return array(Storage(tape, cell, 1), _POINT, BOOL)
        return elementwise(row, self, other)

    return method


# NumPy ufuncs that are one row: the opcode of unary ones, the operator of binary ones.
_UNARY_UFUNCS: dict[Any, int] = {}
_BINARY_UFUNCS: dict[Any, Method] = {}


class Scalar(Array, TrackedScalar):
    """One tracked float64 number; immutable, as NumPy's scalars are."""

    __slots__ = ()

    shape = ()
    dtype = FLOAT64

    def _peek(self) -> Any:
        leaf = self.leaf
        if leaf is not None:
            return leaf.value[()]
        return np.float64(read_cell(self.tape, self.cell))

    def _windowed(self) -> TrackedArray:
        tape = recorder.current()
        view: TrackedArray = array(Storage(tape, recording.cell_of(tape, self), 1), _POINT, FLOAT64)
        return view

    def copy(self) -> Any:
        """Return the same number: scalars do not change."""
        if self.leaf is None:
            return self
        tape = recorder.current()
        return recording.scalar(tape, recording.cell_of(tape, self))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method == "__call__" and not kwargs:
            op = _UNARY_UFUNCS.get(ufunc)
            if op is not None:  # np.sin(x): written out, as in `_unary`
                try:
                    tape: Any = self.tape
                    if tape.thread._is_owned():
                        out = Scalar()
                        out.tape = tape
                        out.cell = next(tape.cells)
                        code = tape.code
                        code.append(op)
                        code.append(self.cell)
                        code.append(0)
                        return out
                except StopIteration:
                    recorder.block_full()
                except AttributeError:
                    pass  # a leaf not imported yet
                except BaseException:
                    recorder.tape.repair()
                    raise
            elif inputs[0].__class__ is Scalar:
                fast = _BINARY_UFUNCS.get(ufunc)
                if fast is not None:
                    return fast(inputs[0], inputs[1])
        return array_ufunc(ufunc, method, inputs, kwargs)

    def __getitem__(self, key: Any) -> Any:
        if key is Ellipsis or (isinstance(key, tuple) and key in ((), (Ellipsis,))):
            return self
        return get(self._windowed(), key)

    def __len__(self) -> int:
        raise TypeError("len() of unsized object")

    def __iter__(self) -> Any:
        raise TypeError("iteration over a 0-d array")

    __add__, __radd__ = _binary("add"), _reflected("add")
    __sub__, __rsub__ = _binary("subtract"), _reflected("subtract")
    __mul__, __rmul__ = _binary("multiply"), _reflected("multiply")
    __truediv__, __rtruediv__ = _binary("divide"), _reflected("divide")
    __neg__ = _unary("negative")
    __abs__ = _unary("absolute")
    __lt__, __gt__ = _comparison("less"), _comparison("greater")
    __le__, __ge__ = _comparison("less_equal"), _comparison("greater_equal")
    __eq__, __ne__ = _comparison("equal"), _comparison("not_equal")
    __hash__ = Array.__hash__

    def __pow__(self, other: Any) -> Any:
        if other.__class__ is int:
            return _square(self) if other == 2 else _integer_power(self, other)
        return power(self, other)


_square = _unary("square")
_integer_power = _binary("integer_power")


# What recorded sweeps do with adjoints: by a constant or of arrays, too.
adjoint_product, adjoint_quotient = _binary("adjoint_multiply"), _binary("adjoint_divide")


def _short_cuts() -> None:
    for name, row in UFUNCS.items():
        ufunc = getattr(np, name, None)
        op, op_constant, _ = ROWS[row]
        if not isinstance(ufunc, np.ufunc) or ufunc is np.power or op < 0 or row in RESULT:
            continue
        if ufunc.nin == 1 and row not in NONDIFF:
            _UNARY_UFUNCS[ufunc] = op
        elif ufunc.nin == 2 and op_constant >= 0 and row not in NONDIFF:
            _BINARY_UFUNCS[ufunc] = _binary(row)


_short_cuts()
recording.classes.scalar = Scalar
