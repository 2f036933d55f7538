"""`Array`, what a user holds: it looks like an ndarray, and records what is done with it.

There are two kinds, which share this interface: a `tapegrad.arrays.scalar.Scalar` is one cell, an
`tapegrad.arrays.view.ArrayView` a NumPy-like window on a storage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from .. import backward as _backward
from .. import recording
from ..decisions import deciding
from ..errors import LostGradientError, ReleasedTapeError, ThreadError, at_caller
from ..host import structural
from ..matmul import matmul
from ..recording import BOOL, FLOAT32, FLOAT64, cells_of, elementwise
from ..storage import Storage, Tracked, TrackedArray, TrackedScalar
from ..tape import recorder
from ..window import Window
from .indexing import on_cells
from .ufuncs import array_ufunc, power

# Filled by the modules above: NumPy's functions by `functions`, and `tapegrad.array`.
FUNCTIONS: dict[Any, Callable[..., Any]] = {}
UNPICKLE: list[Callable[..., Any]] = []


def _operator(row: str) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
    """Return the general operator of a binary row, and its reflection."""

    def forward(self: Any, other: Any) -> Any:
        return elementwise(row, self, other)

    def reflected(self: Any, other: Any) -> Any:
        return elementwise(row, other, self)

    return forward, reflected


class Array(Tracked):
    """A tracked array of float64 or float32 values.

    Make one with `tapegrad.array`.  NumPy's functions and operators work on it and record what
    they do; nothing is computed until somebody looks (`value`, ``print``, ``if``) or asks for
    derivatives.
    """

    __slots__ = ()
    __hash__ = object.__hash__

    # Set by the two kinds.
    shape: Any
    dtype: np.dtype[Any]
    leaf: Any

    # -- what it is ------------------------------------------------------------------------------

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for n in self.shape:
            size *= n
        return size

    @property
    def T(self) -> Any:
        """The transposed view."""
        return self.transpose()

    @property
    def grad(self) -> Any:
        """Gradient accumulated by `backward`: an ndarray of this shape and dtype, or None.

        Only leaves have one.
        """
        return self.leaf.grad if self.leaf is not None else None

    @grad.setter
    def grad(self, value: Any) -> None:
        if self.leaf is None:
            raise AttributeError(f"only leaves have a .grad that can be set{at_caller()}")
        if value is not None:
            value = np.array(value, self.dtype)
            if value.shape != self.shape:
                raise ValueError(
                    f"a gradient has its leaf's shape {self.shape}, not {value.shape}{at_caller()}"
                )
        self.leaf.grad = value

    def zero_grad(self) -> None:
        """Forget the accumulated gradient."""
        self.grad = None

    @property
    def is_leaf(self) -> bool:
        """Whether this is what a user handed in, rather than the result of an operation."""
        return self.leaf is not None

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient flows from this value to a leaf that requires one."""
        return _backward.requires_grad(self)

    def backward(self, gradient: Any = None, *, strict: bool = False) -> None:
        """Add the derivatives of this value to the ``.grad`` of every leaf that it depends on.

        Parameters
        ----------
        gradient : array_like, optional
            Cotangent, of this array's shape; may be left out for a single element, where it is 1.
        strict : bool, optional
            Also visit instructions whose adjoint is exactly zero, so that ``0 * inf`` shows as nan.

        Raises
        ------
        ValueError
            If `gradient` has another shape, or is left out for more than one element.
        NoGradientError
            If no leaf that requires a gradient was used.

        Examples
        --------
        >>> import tapegrad as tg
        >>> x = tg.array([1.0, 2.0, 3.0])
        >>> (x * x).sum().backward()
        >>> x.grad
        array([2., 4., 6.])
        """
        _backward.backward(self, gradient, strict)

    @property
    def value(self) -> Any:
        """The values now: a read-only ndarray, or a NumPy scalar for no axes.

        While a program is recorded, this is a decision: a replay in which the value differs is
        refused.  Printing is none.
        """
        values = self._peek()
        self._note(values, "a value")
        return values

    def _peek(self) -> Any:
        raise NotImplementedError  # each kind has its own

    def _note(self, values: Any, what: str) -> None:
        """Note a decision, where a program is being recorded."""
        decisions = deciding(self)
        if decisions is not None:
            decisions.look(self, values, what)

    def detach(self) -> Any:
        """Return the same values as a constant: no gradient flows through the result."""
        return elementwise("stop_gradient", self)

    def item(self) -> float:
        """Return the only element as a Python number, without its gradient."""
        number: float = np.asarray(self.value).item()
        return number

    def tolist(self) -> Any:
        """Return the values as (nested lists of) Python numbers, without their gradient."""
        return np.asarray(self.value).tolist()

    # -- looking at values, and what would lose a gradient -----------------------------------------

    def __repr__(self) -> str:
        try:
            text = np.array2string(np.asarray(self._peek()), separator=", ", prefix="Array(")
        except (ReleasedTapeError, ThreadError) as error:  # for debuggers and logs
            text = f"<{type(error).__name__}>"
        kind = "" if self.dtype == FLOAT64 else f", dtype={self.dtype}"
        return f"Array({text}, shape={self.shape}{kind})"

    def __str__(self) -> str:
        return str(self._peek())

    def __format__(self, spec: str) -> str:
        value = self._peek()
        return format(value if spec == "" or self.ndim else value.item(), spec)

    def __bool__(self) -> bool:
        if self.dtype.kind == "f" and self.size == 1 and deciding(self) is not None:
            return bool(elementwise("not_equal", self, 0.0))  # its truth decides, not its value
        values = self._peek()
        self._note(values, "the truth of a value")
        return bool(values)

    def __int__(self) -> int:
        whole = self
        if self.dtype.kind == "f" and self.size == 1 and deciding(self) is not None:
            whole = elementwise("trunc", self)  # the integer decides, not what it is cut from
        values = whole._peek()
        whole._note(values, "the integer of a value")
        return int(values)

    def __index__(self) -> int:
        if self.dtype.kind == "f" or self.ndim:
            raise TypeError("only integer scalar arrays can be converted to a scalar index")
        return int(self.value)

    def __float__(self) -> NoReturn:
        raise LostGradientError(
            "float(x) and functions of math would lose the gradient of a tracked value; use "
            "NumPy's function (np.sin(x) for math.sin(x)), or x.item() where no gradient is "
            f"wanted{at_caller()}"
        )

    def __complex__(self) -> NoReturn:
        raise LostGradientError(
            "complex(x) would lose the gradient of a tracked value; use x.item() where no "
            f"gradient is wanted{at_caller()}"
        )

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        raise LostGradientError(
            "turning a tracked value into an ndarray would lose its gradient (np.asarray(x), "
            "np.array([x, y]), a[i] = x for an ndarray a); use x.value where no gradient is "
            "wanted, tg.array([x, y]) or np.stack to gather tracked values, and tg.zeros to make "
            f"arrays that tracked values are assigned to{at_caller()}"
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return array_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        ours = FUNCTIONS.get(func)
        if ours is None:
            name = f"{getattr(func, '__module__', 'numpy') or 'numpy'}.{func.__name__}"
            raise NotImplementedError(
                f"{name.replace('numpy', 'np', 1)} is not implemented for tracked values yet; "
                "write it with the functions listed in tapegrad.arrays.functions, or pass .value "
                f"where no gradient is wanted{at_caller()}"
            )
        return ours(*args, **kwargs)

    def __reduce__(self) -> Any:
        # A pickle holds the value, never the recording that it came from.
        requires_grad = self.leaf is not None and self.leaf.requires_grad
        return UNPICKLE[0], (np.array(self.value, self.dtype), requires_grad)

    def __copy__(self) -> Any:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> Any:
        # The copy of a leaf is another leaf: what it is used for later is none of the first one's.
        leaf = self.leaf
        return self.copy() if leaf is None else UNPICKLE[0](leaf.value, leaf.requires_grad)

    # -- operators ---------------------------------------------------------------------------------

    __add__, __radd__ = _operator("add")
    __sub__, __rsub__ = _operator("subtract")
    __mul__, __rmul__ = _operator("multiply")
    __truediv__, __rtruediv__ = _operator("divide")
    __floordiv__, __rfloordiv__ = _operator("floor_divide")
    __mod__, __rmod__ = _operator("remainder")
    __lt__, __gt__ = _operator("less")[0], _operator("greater")[0]
    __le__, __ge__ = _operator("less_equal")[0], _operator("greater_equal")[0]

    def __eq__(self, other: object) -> Any:
        return elementwise("equal", self, other)

    def __ne__(self, other: object) -> Any:
        return elementwise("not_equal", self, other)

    def __pow__(self, other: Any) -> Any:
        return power(self, other)

    def __rpow__(self, other: Any) -> Any:
        return elementwise("power", other, self)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __matmul__(self, other: Any) -> Any:
        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return matmul(other, self)

    def __neg__(self) -> Any:
        return elementwise("negative", self)

    def __pos__(self) -> Any:
        return elementwise("positive", self)

    def __abs__(self) -> Any:
        return elementwise("absolute", self)

    def __round__(self, ndigits: int | None = None) -> Any:
        return self.round(ndigits or 0)

    def __trunc__(self) -> Any:
        return elementwise("trunc", self)

    def __floor__(self) -> Any:
        return elementwise("floor", self)

    def __ceil__(self) -> Any:
        return elementwise("ceil", self)

    def __and__(self, other: Any) -> Any:
        return np.bitwise_and(self, other)

    def __or__(self, other: Any) -> Any:
        return np.bitwise_or(self, other)

    def __xor__(self, other: Any) -> Any:
        return np.bitwise_xor(self, other)

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def __invert__(self) -> Any:
        return np.invert(self)

    # -- reductions and products -------------------------------------------------------------------

    def sum(self, axis: Any = None, keepdims: bool = False) -> Any:
        """Sum over the given axes (all of them by default)."""
        return structural("sum", self, axis=axis, keepdims=keepdims)

    def prod(self, axis: Any = None, keepdims: bool = False) -> Any:
        """Product over the given axes; its gradient is exact where factors are zero."""
        return structural("prod", self, axis=axis, keepdims=keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Any:
        """Arithmetic mean over the given axes."""
        total = self.sum(axis=axis, keepdims=keepdims)
        count = self.size // max(total.size, 1) if total.size else 0
        return total / float(count)

    def min(self, axis: Any = None, keepdims: bool = False) -> Any:
        """Minimum over the given axes; equal minima share the gradient evenly."""
        return structural("min", self, axis=axis, keepdims=keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Any:
        """Maximum over the given axes; equal maxima share the gradient evenly."""
        return structural("max", self, axis=axis, keepdims=keepdims)

    def all(self, axis: Any = None, keepdims: bool = False) -> Any:
        """Whether all elements along the given axes are not zero: a decision, from the values."""
        return np.all(self, axis=axis, keepdims=keepdims)

    def any(self, axis: Any = None, keepdims: bool = False) -> Any:
        """Whether any element along the given axes is not zero: a decision, from the values."""
        return np.any(self, axis=axis, keepdims=keepdims)

    def argmax(self, axis: Any = None, keepdims: bool = False) -> Any:
        """Return where the maximum is, an ordinary integer or array: a decision."""
        return np.argmax(self, axis=axis, keepdims=keepdims)

    def argmin(self, axis: Any = None, keepdims: bool = False) -> Any:
        """Return where the minimum is, an ordinary integer or array: a decision."""
        return np.argmin(self, axis=axis, keepdims=keepdims)

    def argsort(self, axis: Any = -1, kind: Any = None) -> Any:
        """Return the order of the elements, an ordinary array: a decision."""
        return np.argsort(self, axis=axis, kind=kind)

    def nonzero(self) -> Any:
        """Return the indices of elements that are not zero, ordinary arrays: a decision."""
        return np.nonzero(self)

    def cumsum(self, axis: Any = None) -> Any:
        """Cumulative sum along an axis, or of the flattened array."""
        x = self.ravel() if axis is None or not self.ndim else self
        return structural("cumsum", x, axis=0 if axis is None else axis)

    def cumprod(self, axis: Any = None) -> Any:
        """Cumulative product along an axis, or of the flattened array."""
        x = self.ravel() if axis is None or not self.ndim else self
        return structural("cumprod", x, axis=0 if axis is None else axis)

    def dot(self, other: Any) -> Any:
        """Dot product as `numpy.dot` has it."""
        if self.ndim == 0 or np.ndim(other) == 0:
            plain = not isinstance(other, Tracked)
            return elementwise("multiply", self, np.asarray(other) if plain else other)
        if np.ndim(other) <= 2:
            return matmul(self, other)
        stack = np.moveaxis(other, -2, 0)
        columns = stack.reshape(len(stack), int(np.prod(stack.shape[1:])))
        return matmul(self, columns).reshape(self.shape[:-1] + stack.shape[1:])

    def round(self, decimals: int = 0) -> Any:
        """Round to `decimals` places; the gradient is 0."""
        if decimals == 0:
            return elementwise("rint", self)
        scale = 10.0**decimals
        return elementwise("rint", self * scale) / scale

    def clip(self, min: Any = None, max: Any = None) -> Any:  # NumPy's names
        """Limit the values; the gradient is 1 inside, 0 outside, 1/2 at a bound."""
        x = self if min is None else elementwise("maximum", self, min)
        return x if max is None else elementwise("minimum", x, max)

    # -- shapes ------------------------------------------------------------------------------------

    def _windowed(self) -> TrackedArray:
        raise NotImplementedError  # each kind has its own

    def _view(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Return the view whose window is this one's, after a method of `Window`."""
        x = self._windowed()
        try:
            window = getattr(x.window, method)(*args, **kwargs)
        except (TypeError, ValueError) as error:  # AxisError is a ValueError
            raise type(error)(f"{error}{at_caller()}") from None
        if window is None or (window.shape == () and isinstance(self, TrackedScalar)):
            return window and self  # a scalar stays one, as NumPy's do
        return recording.array(x.storage, window, x.dtype)

    def reshape(self, *shape: Any, order: str = "C") -> Any:
        """Return the elements in another shape: a view where NumPy gives one."""
        if order != "C":
            raise NotImplementedError(f"reshape knows order='C' only{at_caller()}")
        if len(shape) == 1 and not isinstance(shape[0], (int, np.integer)):
            shape = shape[0]
        view = self._view("reshape", shape)
        if view is not None:
            return view
        x, tape = self._windowed(), recorder.current()
        return on_cells(tape, cells_of(tape, x).reshape(shape), x.dtype)

    def ravel(self) -> Any:
        """Return the elements along one axis: a view where NumPy gives one."""
        return self.reshape(-1)

    def flatten(self) -> Any:
        """Return a copy of the elements along one axis."""
        return self.copy().reshape(-1)

    def transpose(self, *axes: Any) -> Any:
        """Return the view with axes permuted (reversed by default)."""
        if len(axes) == 1 and not isinstance(axes[0], (int, np.integer)):
            axes = () if axes[0] is None else tuple(axes[0])
        return self._view("transpose", axes or None)

    def swapaxes(self, axis1: int, axis2: int) -> Any:
        """Return the view with two axes interchanged."""
        return self._view("swapaxes", axis1, axis2)

    def squeeze(self, axis: Any = None) -> Any:
        """Return the view without axes of length 1."""
        return self._view("squeeze", axis)

    def copy(self) -> Any:
        """Return an array of the same elements that assignment to this one does not reach."""
        x = self._windowed()
        tape = recorder.current()
        storage = tape.import_storage(x.storage)
        window = x.window
        if storage.index is None and window.is_contiguous:
            fresh = Storage(tape, storage.base + window.offset, window.size)
            return recording.array(fresh, Window.contiguous(0, window.shape), x.dtype)
        return on_cells(tape, cells_of(tape, x), x.dtype)

    def astype(self, dtype: Any) -> Any:
        """Return the elements in another dtype; to an integer or bool the gradient is 0."""
        target = np.dtype(dtype)
        if target == self.dtype:
            return self.copy()
        if target == FLOAT64:
            out = self.copy()._windowed()
            return recording.array(out.storage, out.window, FLOAT64)[()]
        if target == FLOAT32:
            return elementwise("float32", self)
        if target == BOOL:
            return elementwise("not_equal", self, 0.0)
        if target.kind in "iu":
            out = elementwise("trunc", self)._windowed()
            return recording.array(out.storage, out.window, np.dtype(np.int64))
        raise TypeError(f"tracked values are float64 or float32, not {target}{at_caller()}")
