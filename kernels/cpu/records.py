"""Arrays at addresses, for kernels that are called with integers alone.

A record is a run of 64-bit words: for each array its address and its length, for each number the
number itself.  `tapegrad.kernels.packing.packed` writes one.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array


def _made(context: Any, builder: Any, kind: Any, words: Any, place: Any, columns: Any) -> Any:
    """Return an array of Numba: its address and length stand in a record."""
    integer = ir.IntType(64)
    record = builder.inttoptr(words, integer.as_pointer())
    address, length = (
        builder.load(builder.gep(record, [builder.add(place, integer(k))])) for k in (0, 1)
    )
    made = context.make_array(kind)(context, builder)
    size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
    shape, strides = [length], [integer(size)]
    if columns is not None:
        shape = [builder.sdiv(length, columns), columns]
        strides = [builder.mul(columns, integer(size)), integer(size)]
    populate_array(
        made,
        data=builder.inttoptr(address, context.get_data_type(kind.dtype).as_pointer()),
        shape=shape,
        strides=strides,
        itemsize=integer(size),
        meminfo=None,
    )
    return made._getvalue()


@intrinsic  # type: ignore[misc]
def array_at(typingctx: Any, words: Any, place: Any, number: Any) -> Any:
    """Return the array whose address and length stand at a place of a record."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _made(context, builder, sig.return_type, args[0], args[1], None)

    return types.Array(number.dtype, 1, "C")(types.int64, types.int64, number), emit


@intrinsic  # type: ignore[misc]
def table_at(typingctx: Any, words: Any, place: Any, columns: Any, number: Any) -> Any:
    """Return the array of so many columns whose address and length stand at a place of a record."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _made(context, builder, sig.return_type, *args[:3])

    kind = types.Array(number.dtype, 2, "C")
    return kind(types.int64, types.int64, types.int64, number), emit
