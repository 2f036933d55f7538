"""Windows on a run of cells: NumPy's indexing and reshaping as pure index arithmetic.

A window says which cells an array shows: element ``(i, j, ...)`` is the cell
``offset + i*strides[0] + j*strides[1] + ...``. Strides count cells; a stride of 0 broadcasts.
Slicing, transposing and reshaping only compute another window, so they cost a microsecond and no
instruction. Where NumPy would have to copy, the answer is ``None`` and the caller goes over to an
array of cells.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, SupportsIndex

import numpy as np
from numpy.exceptions import AxisError

Shape = tuple[int, ...]
Axes = SupportsIndex | Sequence[SupportsIndex]

_BOOLEAN = (bool, np.bool_)
_NEVER_INDEX = (np.generic, str, bytes)


class Window:
    """A NumPy-like window on consecutive cells: where it starts, its shape and its strides.

    Windows are values: no method changes one, and equal windows compare and hash equal.

    Parameters
    ----------
    offset : int
        The cell of the first element.
    shape : tuple of int
    strides : tuple of int
        Cells from one element to the next along each axis; 0 broadcasts, negative walks backwards.

    Examples
    --------
    >>> w = Window.contiguous(10, (2, 3))
    >>> w
    Window(10, (2, 3), (3, 1))
    >>> w.basic((slice(None), slice(None, None, -1)))
    Window(12, (2, 3), (3, -1))
    >>> w.transpose().cells()
    array([[10, 13],
           [11, 14],
           [12, 15]])
    """

    __slots__ = ("offset", "shape", "strides")

    offset: int
    shape: Shape
    strides: Shape

    def __init__(self, offset: int, shape: Shape, strides: Shape) -> None:
        self.offset = offset
        self.shape = shape
        self.strides = strides

    @classmethod
    def contiguous(cls, offset: int, shape: Shape) -> Window:
        """Return the window on the cells from `offset` on, in C order."""
        return cls(offset, shape, _c_strides(shape))

    def __repr__(self) -> str:
        return f"Window({self.offset}, {self.shape}, {self.strides})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Window):
            return NotImplemented
        return (
            self.offset == other.offset
            and self.shape == other.shape
            and self.strides == other.strides
        )

    def __hash__(self) -> int:
        return hash((self.offset, self.shape, self.strides))

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def is_injective(self) -> bool:
        """Whether it is plain that no cell is met twice."""
        return injective(self.shape, self.strides)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements are consecutive cells, in C order."""
        if self.strides == (1,):
            return True
        shape, axis, expected = self.shape, len(self.shape), 1
        for stride in self.strides[::-1]:
            axis -= 1
            n = shape[axis]
            if stride != expected and n != 1:  # the stride of an axis of size 1 is never taken
                return 0 in shape
            expected *= n
        return True

    # -- indexing --------------------------------------------------------------------------------

    def basic(self, key: Any) -> Window | None:
        """Return the window that basic indexing selects, or None where the key is fancy.

        Parameters
        ----------
        key : int, slice, Ellipsis, None, or a tuple of them
            Arrays, lists and booleans make a key fancy, as in NumPy.

        Raises
        ------
        IndexError, TypeError, ValueError
            As NumPy raises them, in its words.

        Examples
        --------
        >>> Window.contiguous(0, (4, 3)).basic((1, slice(None, 2)))
        Window(3, (2,), (1,))
        >>> Window.contiguous(0, (4,)).basic([2, 0]) is None
        True
        """
        shape = self.shape
        # The keys of inner loops, an integer or a slice of the first axis and an integer for every
        # axis, take a short way. Whatever is wrong with them is found and reported by `_basic`.
        kind = type(key)
        if kind is int and shape:
            n = shape[0]
            if -n <= key < n:
                i = key if key >= 0 else key + n
                return Window(self.offset + i * self.strides[0], shape[1:], self.strides[1:])
        elif kind is slice and shape:
            start, n, step = _span(key, shape[0])
            stride = self.strides[0]
            return Window(
                self.offset + start * stride, (n, *shape[1:]), (step * stride, *self.strides[1:])
            )
        elif kind is tuple and len(key) == len(shape):
            offset = self.offset
            for i, n, stride in zip(key, shape, self.strides, strict=True):
                if type(i) is not int or not -n <= i < n:
                    break
                offset += (i if i >= 0 else i + n) * stride
            else:
                return Window(offset, (), ())
        return self._basic(key if isinstance(key, tuple) else (key,))

    def _basic(self, key: tuple[Any, ...]) -> Window | None:
        items: list[Any] = []
        used = ellipses = 0
        for item in key:
            kind = type(item)
            if kind is int or kind is slice:
                used += 1
            elif item is Ellipsis:
                ellipses += 1
            elif item is not None:
                item = _integer(item)
                if item is None:
                    return None
                used += 1
            items.append(item)
        if ellipses > 1:
            raise IndexError("an index can only have a single ellipsis ('...')")
        if not ellipses:
            items.append(Ellipsis)
        if used > self.ndim:
            raise IndexError(
                f"too many indices for array: array is {self.ndim}-dimensional, "
                f"but {used} were indexed"
            )
        offset, axis = self.offset, 0
        shape: list[int] = []
        strides: list[int] = []
        for item in items:
            if item is None:
                shape.append(1)
                strides.append(0)
            elif item is Ellipsis:
                rest = axis + self.ndim - used
                shape += self.shape[axis:rest]
                strides += self.strides[axis:rest]
                axis = rest
            elif type(item) is slice:
                start, n, step = _span(item, self.shape[axis])
                offset += start * self.strides[axis]
                shape.append(n)
                strides.append(step * self.strides[axis])
                axis += 1
            else:
                offset += _position(item, self.shape[axis], axis) * self.strides[axis]
                axis += 1
        return Window(offset, tuple(shape), tuple(strides))

    # -- axes ------------------------------------------------------------------------------------

    def transpose(self, axes: Axes | None = None) -> Window:
        """Permute the axes; reverse them where `axes` is None."""
        if axes is None:
            return Window(self.offset, self.shape[::-1], self.strides[::-1])
        order = _as_tuple(axes)
        if len(order) != self.ndim:
            raise ValueError("axes don't match array")
        order = tuple(_axis(axis, self.ndim) for axis in order)
        if len(set(order)) != len(order):
            raise ValueError("repeated axis in transpose")
        return self._pick(order)

    def swapaxes(self, axis1: SupportsIndex, axis2: SupportsIndex) -> Window:
        """Exchange two axes."""
        i, j = _axis(axis1, self.ndim), _axis(axis2, self.ndim)
        order = list(range(self.ndim))
        order[i], order[j] = j, i
        return self._pick(order)

    def moveaxis(self, source: Axes, destination: Axes) -> Window:
        """Move axes to new positions; the others keep their order."""
        sources = _axes(source, self.ndim, "source")
        destinations = _axes(destination, self.ndim, "destination")
        if len(sources) != len(destinations):
            raise ValueError(
                "`source` and `destination` arguments must have the same number of elements"
            )
        order = [axis for axis in range(self.ndim) if axis not in sources]
        for to, axis in sorted(zip(destinations, sources, strict=True)):
            order.insert(to, axis)
        return self._pick(order)

    def squeeze(self, axis: Axes | None = None) -> Window:
        """Drop axes of size 1: all of them, or those named."""
        if axis is None:
            return self._pick([i for i, n in enumerate(self.shape) if n != 1])
        if self.shape == () and isinstance(axis, int) and axis in (0, -1):
            return self  # NumPy lets these slip through for a scalar
        dropped = _axes(axis, self.ndim)
        if any(self.shape[i] != 1 for i in dropped):
            raise ValueError("cannot select an axis to squeeze out which has size not equal to one")
        return self._pick([i for i in range(self.ndim) if i not in dropped])

    def expand_dims(self, axis: Axes) -> Window:
        """Insert axes of size 1 at the positions they have in the result."""
        ndim = self.ndim + len(_as_tuple(axis))
        added = _axes(axis, ndim)
        shape, strides = iter(self.shape), iter(self.strides)
        return Window(
            self.offset,
            tuple(1 if i in added else next(shape) for i in range(ndim)),
            tuple(0 if i in added else next(strides) for i in range(ndim)),
        )

    def flip(self, axis: Axes | None = None) -> Window:
        """Reverse the order of the elements along all axes, or along those named."""
        flipped = range(self.ndim) if axis is None else _axes(axis, self.ndim)
        offset, strides = self.offset, list(self.strides)
        for i in flipped:
            offset += max(self.shape[i] - 1, 0) * strides[i]
            strides[i] = -strides[i]
        return Window(offset, self.shape, tuple(strides))

    def diagonal(
        self, offset: SupportsIndex = 0, axis1: SupportsIndex = 0, axis2: SupportsIndex = 1
    ) -> Window:
        """Return the diagonals along two axes, as a last axis."""
        if self.ndim < 2:
            raise ValueError("diag requires an array of at least two dimensions")
        i, j = _axis(axis1, self.ndim), _axis(axis2, self.ndim)
        if i == j:
            raise ValueError("axis1 and axis2 cannot be the same")
        shift = operator.index(offset)
        down, right = max(-shift, 0), max(shift, 0)
        n = max(min(self.shape[i] - down, self.shape[j] - right), 0)
        kept = self._pick([axis for axis in range(self.ndim) if axis not in (i, j)])
        start = down * self.strides[i] + right * self.strides[j] if n else 0
        return Window(
            self.offset + start,
            (*kept.shape, n),
            (*kept.strides, self.strides[i] + self.strides[j]),
        )

    def _pick(self, axes: Iterable[int]) -> Window:
        """Return this window with just these axes, in this order."""
        axes = tuple(axes)
        return Window(
            self.offset,
            tuple([self.shape[i] for i in axes]),
            tuple([self.strides[i] for i in axes]),
        )

    # -- shapes ----------------------------------------------------------------------------------

    def broadcast_to(self, shape: Axes) -> Window:
        """Stretch axes of size 1, and add leading axes, so that the window has `shape`."""
        target = _as_tuple(shape)
        new = len(target) - self.ndim
        if new < 0 or any(
            n not in (1, m) for n, m in zip(self.shape, target[max(new, 0) :], strict=True)
        ):
            raise ValueError(
                f"an array of shape {self.shape} cannot be broadcast to shape {target}: each of "
                "its axes, counted from the last, must have the new size or size 1"
            )
        if min(target, default=0) < 0:
            raise ValueError("all elements of broadcast shape must be non-negative")
        strides = [
            stride if n == m else 0
            for n, m, stride in zip(self.shape, target[new:], self.strides, strict=True)
        ]
        return Window(self.offset, target, (0,) * new + tuple(strides))

    def reshape(self, shape: Axes) -> Window | None:
        """Return the window with another shape, or None where NumPy would have to copy.

        Parameters
        ----------
        shape : int or sequence of int
            One entry may be -1: it follows from the size.

        Examples
        --------
        >>> Window.contiguous(0, (2, 3)).reshape((3, -1))
        Window(0, (3, 2), (2, 1))
        >>> Window.contiguous(0, (2, 3)).transpose().reshape(-1) is None
        True
        """
        target = _fill_unknown(_as_tuple(shape), self.size)
        if self.is_contiguous:
            return Window.contiguous(self.offset, target)
        strides = [0] * len(target)
        axis = len(target)
        # Dimensions are merged as far as they go, then cut again from the innermost outwards: a new
        # axis that does not cut a merged one evenly would straddle two strides.
        merged, (merged_strides,) = coalesce(self.shape, [self.strides])
        for n, stride in zip(reversed(merged), reversed(merged_strides), strict=True):
            while n > 1:
                axis -= 1
                if n % target[axis]:
                    return None
                n //= target[axis]
                strides[axis] = stride
                stride *= target[axis]
        return Window(self.offset, target, tuple(strides))

    # -- cells -----------------------------------------------------------------------------------

    def cells(self, index: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
        """Return the cells of the window's elements, in its shape, as a new array.

        Parameters
        ----------
        index : ndarray, optional
            The cells of an indexed storage: the window then counts positions in it.
        """
        if index is not None:
            return self.view(index).copy()
        if self.is_contiguous:
            return np.arange(self.offset, self.offset + self.size, dtype=np.int64).reshape(
                self.shape
            )
        shape, (strides,) = coalesce(self.shape, [self.strides])
        cells = np.array(self.offset, np.int64)
        for n, stride in zip(shape, strides, strict=True):
            cells = np.add.outer(cells, np.arange(n, dtype=np.int64) * stride)
        return cells.reshape(self.shape)

    def view(self, buffer: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the window's elements of a flat, contiguous buffer, without copying.

        Elements that a broadcast shows several times are one element of the buffer: whoever writes
        through the view must know the window.
        """
        size = buffer.itemsize
        if 0 in self.shape:  # offset and strides may then lie outside of any buffer
            return np.empty(self.shape, buffer.dtype)
        return np.ndarray(
            self.shape,
            buffer.dtype,
            buffer,
            self.offset * size,
            tuple([stride * size for stride in self.strides]),
        )


def coalesce(shape: Shape, strides: Sequence[Shape]) -> tuple[Shape, list[Shape]]:
    """Merge neighbouring axes that several operands walk alike, keeping the order of elements.

    Parameters
    ----------
    shape : tuple of int
        The common shape of the operands.
    strides : sequence of tuple of int
        The strides of each operand.

    Returns
    -------
    (shape, strides)
        Without axes of size 1, and each axis merged into the next where all operands allow it.

    Examples
    --------
    >>> coalesce((2, 3, 4), [(12, 4, 1), (0, 0, 0)])
    ((24,), [(1,), (0,)])
    >>> coalesce((2, 3, 4), [(12, 4, 1), (4, 0, 1)])
    ((2, 3, 4), [(12, 4, 1), (4, 0, 1)])
    """
    if 0 in shape:
        return (0,), [(0,) for _ in strides]
    sizes: list[int] = []
    steps: list[tuple[int, ...]] = []  # for each axis kept, the stride of every operand
    for axis, n in enumerate(shape):
        if n == 1:
            continue
        step = tuple([stride[axis] for stride in strides])
        if steps and all(outer == inner * n for outer, inner in zip(steps[-1], step, strict=True)):
            sizes[-1] *= n
            steps[-1] = step
        else:
            sizes.append(n)
            steps.append(step)
    return tuple(sizes), [tuple(step[i] for step in steps) for i in range(len(strides))]


def injective(shape: Shape, strides: Shape) -> bool:
    """Whether it is plain from the strides that no element of a window is another one.

    Examples
    --------
    >>> injective((3, 2), (1, 3)), injective((3, 3), (1, 1)), injective((3, 2), (0, 1))
    (True, False, False)
    """
    reach = 0
    for step, n in sorted((abs(s), n) for s, n in zip(strides, shape, strict=True) if n > 1):
        if step <= reach:
            return False
        reach += step * (n - 1)
    return True


def broadcast_shapes(*shapes: Shape) -> Shape:
    """Return the shape that operands of these shapes have together.

    Examples
    --------
    >>> broadcast_shapes((3, 1), (2,))
    (3, 2)
    """
    if not shapes:
        return ()
    result = shapes[0]
    for shape in shapes[1:]:
        if shape == result or not shape:
            continue
        if not result:
            result = shape
            continue
        short, long = (result, shape) if len(result) < len(shape) else (shape, result)
        new = len(long) - len(short)
        if any(n != m and n != 1 and m != 1 for n, m in zip(short, long[new:], strict=True)):
            listed = " ".join(map(str, shapes))
            raise ValueError(f"operands could not be broadcast together with shapes {listed}")
        result = long[:new] + tuple(
            [m if n == 1 else n for n, m in zip(short, long[new:], strict=True)]
        )
    return result


# -- parts of a key -----------------------------------------------------------------------------


def _integer(item: Any) -> int | None:
    """Return an item of a key as the integer it stands for, or None where it is fancy."""
    if isinstance(item, np.integer):
        return int(item)
    if isinstance(item, _BOOLEAN):
        return None
    if not isinstance(item, _NEVER_INDEX):
        if hasattr(item, "shape") or hasattr(item, "__len__"):
            return None
        if hasattr(item, "__index__"):
            return operator.index(item)
    raise IndexError(
        "only integers, slices (`:`), ellipsis (`...`), numpy.newaxis (`None`) and integer or "
        f"boolean arrays are valid indices, not {type(item).__name__}"
    )


def _position(i: int, n: int, axis: int) -> int:
    if 0 <= i < n:
        return i
    if -n <= i < 0:
        return i + n
    raise IndexError(f"index {i} is out of bounds for axis {axis} with size {n}")


def _span(key: slice, n: int) -> tuple[int, int, int]:
    """Return the first position, the number of positions and the step of a slice."""
    start, stop, step = key.indices(n)
    count = stop - start if step == 1 else len(range(start, stop, step))
    # An empty slice may start beside the array: its window stays inside, so that it can be viewed.
    return (start, count, step) if count > 0 else (0, 0, step)


# -- axes and shapes ----------------------------------------------------------------------------


def _c_strides(shape: Shape) -> Shape:
    if len(shape) == 1:
        return (1,)
    strides = [1] * len(shape)
    for i in range(len(shape) - 1, 0, -1):
        strides[i - 1] = strides[i] * max(shape[i], 1)
    return tuple(strides)


def _as_tuple(axes: Axes) -> Shape:
    if isinstance(axes, (Sequence, np.ndarray)):
        return tuple([operator.index(axis) for axis in axes])
    return (operator.index(axes),)


def _axis(axis: SupportsIndex, ndim: int, argument: str | None = None) -> int:
    i = operator.index(axis)
    if -ndim <= i < ndim:
        return i % ndim
    raise AxisError(i, ndim, argument)


def _axes(axes: Axes, ndim: int, argument: str | None = None) -> Shape:
    result = tuple([_axis(axis, ndim, argument) for axis in _as_tuple(axes)])
    if len(set(result)) != len(result):
        raise ValueError(f"repeated axis in `{argument}` argument" if argument else "repeated axis")
    return result


def _fill_unknown(shape: Shape, size: int) -> Shape:
    """Return the shape with -1 replaced by what the size leaves for it."""
    unknown = [i for i, n in enumerate(shape) if n < 0]
    if len(unknown) > 1:
        raise ValueError("can only specify one unknown dimension")
    if unknown:
        (i,) = unknown
        known = prod(shape[:i] + shape[i + 1 :])
        if known and size % known == 0:
            return (*shape[:i], size // known, *shape[i + 1 :])
    elif prod(shape) == size:
        return shape
    listed = str(shape).replace(" ", "")
    raise ValueError(f"cannot reshape array of size {size} into shape {listed}")
