"""Numbers at addresses, for kernels that are called with integers alone.

A record is a run of 64-bit words: addresses of numbers that lie one behind another, and integers.
In kernels its fields have names: `record.field[i]` is a number, or the row of a table, which
`record.field[i, j]` is a number of.  Nothing of this has a length, so nothing is checked.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.imputils import lower_builtin, lower_getattr_generic
from numba.core.typing.templates import (
    AbstractTemplate,
    AttributeTemplate,
    infer_getattr,
    infer_global,
    signature,
)
from numba.extending import intrinsic, models, register_model

_WORD = ir.IntType(64)


class Numbers(types.Type):  # type: ignore[misc]
    """The type of an address where numbers of a type lie, as a table if it has `columns`."""

    def __init__(self, number: types.Type, columns: int = 0) -> None:
        self.number, self.columns = number, columns
        super().__init__(name=f"Numbers({number}, {columns})")

    def at(self, index: types.Type) -> types.Type | None:
        """Return what is found at an index: a number, or a row."""
        if isinstance(index, types.BaseTuple):
            pair = (
                self.columns
                and len(index) == 2
                and all(isinstance(i, types.Integer) for i in index)
            )
            return self.number if pair else None
        if not isinstance(index, types.Integer):
            return None
        return Numbers(self.number) if self.columns else self.number


class Record(types.Type):  # type: ignore[misc]
    """The type of the address of a record: its fields by name, in their order."""

    def __init__(self, name: str, fields: dict[str, types.Type]) -> None:
        self.fields = fields
        super().__init__(name=f"Record({name}, {fields})")


for _type in (Numbers, Record):
    register_model(_type)(
        type(
            "_Model",
            (models.PrimitiveModel,),
            {
                "__init__": lambda self, manager, kind: models.PrimitiveModel.__init__(
                    self, manager, kind, _WORD
                )
            },
        )
    )


def record(name: str, **fields: types.Type) -> Any:
    """Return the function for kernels that turns the address of a record into what has fields."""
    return _at(Record(name, fields))


def numbers(number: types.Type) -> Any:
    """Return the function for kernels that turns the address of numbers into what has items."""
    return _at(Numbers(number))


def _at(kind: types.Type) -> Any:
    @intrinsic  # type: ignore[misc]
    def at(typingctx: Any, address: Any) -> Any:
        return kind(types.int64), lambda context, builder, sig, args: args[0]

    return at


@infer_getattr
class _Fields(AttributeTemplate):  # type: ignore[misc]
    key = Record

    def generic_resolve(self, kind: Any, field: str) -> Any:
        return kind.fields.get(field)


@lower_getattr_generic(Record)  # type: ignore[misc]
def _field(context: Any, builder: Any, kind: Any, value: Any, field: str) -> Any:
    pointer = builder.inttoptr(value, _WORD.as_pointer())
    return builder.load(builder.gep(pointer, [_WORD(list(kind.fields).index(field))]))


@infer_global(operator.getitem)
class _Get(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        numbers, index = args
        result = numbers.at(index) if isinstance(numbers, Numbers) else None
        return result and signature(result, numbers, index)


@infer_global(operator.setitem)
class _Set(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        numbers, index, value = args
        if isinstance(numbers, Numbers) and numbers.at(index) == numbers.number:
            return signature(types.none, numbers, index, value)
        return None


def _place(context: Any, builder: Any, kinds: Any, args: Any) -> Any:
    """Return how many numbers lie before what is found at an index."""
    (numbers, index), at = kinds[:2], args[1]
    if isinstance(index, types.BaseTuple):
        parts = [builder.extract_value(at, k) for k in (0, 1)]
        row, column = (
            context.cast(builder, part, kind, types.int64)
            for part, kind in zip(parts, index, strict=True)
        )
        return builder.add(builder.mul(row, _WORD(numbers.columns)), column)
    place = context.cast(builder, at, index, types.int64)
    return builder.mul(place, _WORD(numbers.columns)) if numbers.columns else place


def _pointer(context: Any, builder: Any, kinds: Any, args: Any) -> Any:
    """Return a pointer to the number at an index."""
    start = builder.inttoptr(args[0], context.get_data_type(kinds[0].number).as_pointer())
    return builder.gep(start, [_place(context, builder, kinds, args)], inbounds=True)


@lower_builtin(operator.getitem, Numbers, types.Any)  # type: ignore[misc]
def _load(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    if isinstance(sig.return_type, Numbers):
        place = _place(context, builder, sig.args, args)
        size = sig.return_type.number.bitwidth // 8
        return builder.add(args[0], builder.mul(place, _WORD(size)))
    return builder.load(_pointer(context, builder, sig.args, args))


@lower_builtin(operator.setitem, Numbers, types.Any, types.Any)  # type: ignore[misc]
def _store(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    number = sig.args[0].number
    value = context.cast(builder, args[2], sig.args[2], number)
    builder.store(value, _pointer(context, builder, sig.args, args))
    return context.get_dummy_value()
