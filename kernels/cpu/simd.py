"""Explicit vectors for Numba: a value of type `<16 x double>`, and what can be done with it.

A lane kernel that is written in these vectors is packed instructions by construction: no automatic
vectoriser has to see through it, and no aliasing has to be ruled out. A vector is 128 bytes, two
registers of AVX-512 or four of AVX2, so independent chains of arithmetic overlap.

======== ============================= =================================
type     LLVM                          what it holds
======== ============================= =================================
`F64`    `<16 x double>`               numbers
`I64`    `<16 x i64>`                  the bits of numbers, indices
`M64`    `<16 x i1>`                   answers of comparisons
`F32`    `<32 x float>`                numbers
`I32`    `<32 x i32>`                  the bits of numbers
`M32`    `<32 x i1>`                   answers of comparisons
======== ============================= =================================

Operators work lane by lane: `+ - * /` and negation on numbers; `+ - * & | ^ ~ << >>` on integers
(`>>` keeps the sign); `< <= > >= == !=` give masks, in which a nan compares as in IEEE 754;
`& | ^ ~` combine masks. A Python scalar beside a vector is spread over its lanes. Everything else
is a function below.

Functions of this module are expanded where they are called. Numba's cache does not notice an edit
here, so a generated module holds a mark of this file's text (`emit.library.simd_mark`).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typeconv import Conversion
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model

VECTOR_BYTES = 128
LANES = VECTOR_BYTES // 8  # Of a vector of float64.

_I1, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 16, 32, 64))
_F32, _F64 = ir.FloatType(), ir.DoubleType()


class Vector(types.Type):
    """The Numba type of a vector: `kind` is "f" (floats), "i" (integers) or "m" (a mask)."""

    def __init__(self, kind: str, bits: int) -> None:
        self.kind = kind
        self.bits = bits
        self.lanes = VECTOR_BYTES * 8 // bits
        super().__init__(name=f"{kind}{bits}x{self.lanes}")

    @property
    def element(self) -> ir.Type:
        """The LLVM type of a lane."""
        if self.kind == "m":
            return _I1
        if self.kind == "i":
            return ir.IntType(self.bits)
        return _F64 if self.bits == 64 else _F32

    @property
    def llvm(self) -> ir.VectorType:
        """The LLVM type."""
        return ir.VectorType(self.element, self.lanes)

    @property
    def scalar(self) -> types.Type:
        """The Numba type of a lane."""
        if self.kind == "m":
            return types.boolean
        name = f"{'float' if self.kind == 'f' else 'int'}{self.bits}"
        return getattr(types, name)

    def of(self, kind: str) -> Vector:
        """Return the vector type of the same lanes and another kind."""
        return _VECTORS[kind, self.bits]

    def can_convert_from(self, typingctx: Any, other: types.Type) -> Conversion | None:
        """Let Numba spread a scalar over the lanes."""
        scalars = {"f": (types.Float, types.Integer), "i": types.Integer, "m": types.Boolean}
        return Conversion.safe if isinstance(other, scalars[self.kind]) else None


F64, I64, M64 = Vector("f", 64), Vector("i", 64), Vector("m", 64)
F32, I32, M32 = Vector("f", 32), Vector("i", 32), Vector("m", 32)
_VECTORS = {(v.kind, v.bits): v for v in (F64, I64, M64, F32, I32, M32)}


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)


# Spreading scalars ------------------------------------------------------------------------------


def _spread(builder: Any, value: Any, vector: Vector) -> Any:
    undefined = ir.Constant(vector.llvm, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(first, undefined, zeros)


@lower_cast(types.Float, Vector)
@lower_cast(types.Integer, Vector)
@lower_cast(types.Boolean, Vector)
def _cast_scalar(context: Any, builder: Any, source: Any, vector: Vector, value: Any) -> Any:
    if vector.kind == "m":
        scalar = context.data_model_manager[source].as_data(builder, value)
        scalar = builder.icmp_unsigned("!=", scalar, ir.Constant(scalar.type, 0))
    else:
        scalar = context.cast(builder, value, source, vector.scalar)
    return _spread(builder, scalar, vector)


# Operators --------------------------------------------------------------------------------------


def _common(arguments: tuple[types.Type, ...], kinds: str) -> Vector | None:
    """Return the type of the vectors among the arguments, if they are alike and of these kinds."""
    vectors = {a for a in arguments if isinstance(a, Vector)}
    if len(vectors) != 1:
        return None
    vector = vectors.pop()
    scalars = all(a == vector or vector.can_convert_from(None, a) is not None for a in arguments)
    return vector if vector.kind in kinds and scalars else None


def _operator(
    symbol: Any, kinds: str, emit: Callable[..., Any], arity: int = 2, result: str | None = None
) -> None:
    """Give an operator of Python a meaning: `emit(builder, kind, *operands)`."""

    class Template(AbstractTemplate):
        def generic(self, args: tuple[types.Type, ...], kws: Any) -> Any:
            vector = _common(args, kinds) if len(args) == arity else None
            if vector is None:
                return None
            return signature(vector.of(result or vector.kind), *(vector,) * arity)

    infer_global(symbol)(Template)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, sig.args[0].kind, *args)

    lower_builtin(symbol, *(Vector,) * arity)(lower)


def _binary(**names: str) -> Callable[..., Any]:
    return lambda builder, kind, x, y: getattr(builder, names[kind])(x, y)


def _comparison(symbol: str) -> Callable[..., Any]:
    def emit(builder: Any, kind: str, x: Any, y: Any) -> Any:
        if kind == "i":
            return builder.icmp_signed(symbol, x, y)
        # Only != is true of a nan.
        compare = builder.fcmp_unordered if symbol == "!=" else builder.fcmp_ordered
        return compare(symbol, x, y)

    return emit


def _negative(builder: Any, kind: str, x: Any) -> Any:
    return builder.fneg(x) if kind == "f" else builder.neg(x)


_operator(operator.add, "fi", _binary(f="fadd", i="add"))
_operator(operator.sub, "fi", _binary(f="fsub", i="sub"))
_operator(operator.mul, "fi", _binary(f="fmul", i="mul"))
_operator(operator.truediv, "f", _binary(f="fdiv"))
_operator(operator.and_, "im", _binary(i="and_", m="and_"))
_operator(operator.or_, "im", _binary(i="or_", m="or_"))
_operator(operator.xor, "im", _binary(i="xor", m="xor"))
_operator(operator.lshift, "i", _binary(i="shl"))
_operator(operator.rshift, "i", _binary(i="ashr"))
_operator(operator.neg, "fi", _negative, arity=1)
_operator(operator.invert, "im", lambda builder, kind, x: builder.not_(x), arity=1)
for _symbol, _python in (
    *(("<", operator.lt), ("<=", operator.le), (">", operator.gt), (">=", operator.ge)),
    *(("==", operator.eq), ("!=", operator.ne)),
):
    _operator(_python, "fi", _comparison(_symbol), result="m")


# Functions of lanes -----------------------------------------------------------------------------


def _intrinsic(arity: int, typing: Callable[..., Any], emit: Callable[..., Any]) -> Any:
    """Make a function for kernels: `typing(*types)` is its signature, `emit` writes its code.

    Numba binds arguments by the parameters of the function it is given, hence one for each arity.
    """

    def define(*arguments: types.Type) -> Any:
        sig = typing(*arguments)
        return sig and (sig, lambda context, builder, s, args: emit(context, builder, s, *args))

    if arity == 1:
        return intrinsic(lambda typingctx, x: define(x))
    if arity == 2:
        return intrinsic(lambda typingctx, x, y: define(x, y))
    return intrinsic(lambda typingctx, x, y, z: define(x, y, z))


def _alike(arity: int, kinds: str = "f") -> Callable[..., Any]:
    """Return the typing of a function whose operands and result are vectors of one type."""

    def typing(*arguments: types.Type) -> Any:
        vector = _common(arguments, kinds)
        return vector and signature(vector, *(vector,) * arity)

    return typing


def _llvm(builder: Any, name: str, result: Any, *args: Any, suffix: str | None = None) -> Any:
    """Call an intrinsic function of LLVM, which is overloaded by the type of its result."""
    if suffix is None:
        bits = {_F64: "f64", _F32: "f32"}[result.element]
        suffix = f"v{result.count}{bits}"
    full = f"llvm.{name}.{suffix}"
    function = builder.module.globals.get(full)
    if function is None:
        kind = ir.FunctionType(result, [a.type for a in args])
        function = ir.Function(builder.module, kind, full)
    return builder.call(function, args)


def _named(name: str, arity: int) -> Any:
    def emit(context: Any, builder: Any, sig: Any, *args: Any) -> Any:
        return _llvm(builder, name, sig.return_type.llvm, *args)

    return _intrinsic(arity, _alike(arity), emit)


def _smaller(symbol: str) -> Any:
    def emit(context: Any, builder: Any, sig: Any, x: Any, y: Any) -> Any:
        return builder.select(builder.fcmp_ordered(symbol, x, y), x, y)

    return _intrinsic(2, _alike(2), emit)


# x * y + z, rounded once where the processor can and twice elsewhere.
fma = _named("fmuladd", 3)
fabs = _named("fabs", 1)
copysign = _named("copysign", 2)
sqrt = _named("sqrt", 1)
floor = _named("floor", 1)
ceil = _named("ceil", 1)
trunc = _named("trunc", 1)
rint = _named("rint", 1)
# x if x < y else y, and x if x > y else y: y where either is nan.
minimum = _smaller("<")
maximum = _smaller(">")


def _product_error(context: Any, builder: Any, sig: Any, x: Any, y: Any, p: Any) -> Any:
    if _has_fma(context):
        return _llvm(builder, "fma", x.type, x, y, builder.fneg(p))
    xh, xl = _halves(builder, sig.return_type, x)
    yh, yl = _halves(builder, sig.return_type, y)
    error = builder.fsub(builder.fmul(xh, yh), p)
    error = builder.fadd(error, builder.fmul(xh, yl))
    error = builder.fadd(error, builder.fmul(xl, yh))
    return builder.fadd(error, builder.fmul(xl, yl))


def _residual(context: Any, builder: Any, sig: Any, x: Any, y: Any, z: Any) -> Any:
    if _has_fma(context):
        return _llvm(builder, "fma", x.type, builder.fneg(y), z, x)
    p = builder.fmul(y, z)
    error = _product_error(context, builder, sig, y, z, p)
    return builder.fsub(builder.fsub(x, p), error)


def _halves(builder: Any, vector: Vector, x: Any) -> tuple[Any, Any]:
    """Split the significand in two halves, whose products are exact or nearly so."""
    whole = vector.of("i")
    mask = ir.Constant(whole.element, -(1 << (27 if vector.bits == 64 else 12)))
    short = builder.and_(builder.bitcast(x, whole.llvm), _spread(builder, mask, whole))
    high = builder.bitcast(short, vector.llvm)
    return high, builder.fsub(x, high)


def _has_fma(context: Any) -> bool:
    triple, _, features = context.codegen().magic_tuple()
    return triple.startswith(("aarch64", "arm64")) or "+fma" in features.split(",")


# What p = x * y lost to rounding (Dekker), where that is not subnormal.
product_error = _intrinsic(3, _alike(3), _product_error)
# x - y * z, rounded once, where y * z is near x.
residual = _intrinsic(3, _alike(3), _residual)


def _select_typing(mask: Any, x: types.Type, y: types.Type) -> Any:
    vector = _common((x, y), "fim")
    if vector is None and isinstance(mask, Vector):  # Two scalars: the mask says how many lanes.
        integers = isinstance(x, types.Integer) and isinstance(y, types.Integer)
        vector = mask.of("i" if integers else "f")
    return vector and mask == vector.of("m") and signature(vector, mask, vector, vector)


# x where the mask is true, y elsewhere.
select = _intrinsic(3, _select_typing, lambda c, builder, s, mask, x, y: builder.select(mask, x, y))


def _kind_change(kinds: str, kind: str) -> Callable[..., Any]:
    def typing(x: types.Type) -> Any:
        vector = _common((x,), kinds)
        return vector and signature(vector.of(kind), vector)

    return typing


def _converted(kinds: str, kind: str, operation: str) -> Any:
    def emit(context: Any, builder: Any, sig: Any, x: Any) -> Any:
        return getattr(builder, operation)(x, sig.return_type.llvm)

    return _intrinsic(1, _kind_change(kinds, kind), emit)


def _single(context: Any, builder: Any, sig: Any, x: Any) -> Any:
    if x.type.element == _F32:
        return x
    narrow = builder.fptrunc(x, ir.VectorType(_F32, x.type.count))
    return builder.fpext(narrow, x.type)


single = _intrinsic(1, _alike(1), _single)  # Numbers rounded to single precision.


def _splat(vector: Vector) -> Any:
    return _intrinsic(1, lambda x: vector(vector), lambda context, builder, sig, x: x)


splat = _splat(F64)  # A scalar in every lane; needed where a loop starts from a constant only.
splat_f32 = _splat(F32)

bits = _converted("f", "i", "bitcast")  # The bits of numbers, as integers.
from_bits = _converted("i", "f", "bitcast")
to_integers = _converted("f", "i", "fptosi")  # Towards zero; undefined beyond the integers.
to_numbers = _converted("i", "f", "sitofp")
as_numbers = _converted("m", "f", "uitofp")  # 1.0 where the mask is true, 0.0 elsewhere.


# i >> n with zeros coming in from the left; before AVX-512 the other shift costs several.
shift_down = _intrinsic(2, _alike(2, "i"), lambda c, builder, s, i, n: builder.lshr(i, n))


def _mask_test(symbol: str, every: bool) -> Any:
    def typing(mask: types.Type) -> Any:
        return isinstance(mask, Vector) and mask.kind == "m" and types.boolean(mask)

    def emit(context: Any, builder: Any, sig: Any, mask: Any) -> Any:
        word = ir.IntType(mask.type.count)
        return builder.icmp_unsigned(
            symbol, builder.bitcast(mask, word), ir.Constant(word, -1 if every else 0)
        )

    return _intrinsic(1, typing, emit)


any_lane = _mask_test("!=", every=False)  # Whether the mask is true somewhere: one boolean.
all_lanes = _mask_test("==", every=True)  # Whether the mask is true everywhere.


def _polynomial_typing(x: types.Type, coefficients: types.Type) -> Any:
    tuples = isinstance(coefficients, types.BaseTuple)
    vector = _common((x, *coefficients), "f") if tuples else None
    return vector and signature(vector, vector, coefficients)


def _polynomial(context: Any, builder: Any, sig: Any, x: Any, coefficients: Any) -> Any:
    vector = sig.return_type
    kinds = tuple(sig.args[1])
    total = None
    for i in reversed(range(len(kinds))):
        c = builder.extract_value(coefficients, i)
        c = context.cast(builder, c, kinds[i], vector)
        total = c if total is None else _llvm(builder, "fmuladd", vector.llvm, total, x, c)
    return total


# polynomial(x, (c0, c1, c2)) is c0 + c1 x + c2 x**2 by Horner's rule; coefficients may be vectors.
polynomial = _intrinsic(2, _polynomial_typing, _polynomial)


# Single lanes -----------------------------------------------------------------------------------


def _lane_typing(x: types.Type, index: types.Type) -> Any:
    return isinstance(x, Vector) and x.scalar(x, types.int64)


def _lane(context: Any, builder: Any, sig: Any, x: Any, index: Any) -> Any:
    return builder.extract_element(x, builder.trunc(index, _I32))


def _with_lane_typing(x: types.Type, index: types.Type, value: types.Type) -> Any:
    return isinstance(x, Vector) and x.kind in "fi" and x(x, types.int64, x.scalar)


def _with_lane(context: Any, builder: Any, sig: Any, x: Any, index: Any, value: Any) -> Any:
    return builder.insert_element(x, value, builder.trunc(index, _I32))


@functools.cache
def after(n: int) -> Any:
    """Return a function of two vectors: the last n lanes of one, then all but n of the other."""

    def emit(context: Any, builder: Any, sig: Any, previous: Any, x: Any) -> Any:
        count = x.type.count
        places = ir.Constant(ir.VectorType(_I32, count), list(range(count - n, 2 * count - n)))
        return builder.shuffle_vector(previous, x, places)

    return _intrinsic(2, _alike(2), emit)


lane = _intrinsic(2, _lane_typing, _lane)  # lane(x, i): the value of lane i, a scalar.
with_lane = _intrinsic(3, _with_lane_typing, _with_lane)  # x with another value in lane i.


@intrinsic
def repair(typingctx: Any, function: Any, mask: Any, operands: Any, result: Any) -> Any:
    """Return `result` with function(operands) where the mask is true: a scalar call a lane.

    `operands` is a vector, or a tuple of them.
    """
    several = isinstance(operands, types.BaseTuple)
    vector = _common((*(operands if several else (operands,)), result), "f")
    if vector is None or mask != vector.of("m"):
        return None
    count = len(operands) if several else 1
    called = function.get_call_type(typingctx, (vector.scalar,) * count, {})

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        write = getattr(function, "writer", None)
        call = write(called) if write else context.get_function(function, called)
        values = [builder.extract_value(args[2], i) for i in range(count)] if several else [args[2]]
        values.append(args[3])
        places = [cgutils.alloca_once_value(builder, value) for value in values]
        pointers = [builder.bitcast(p, vector.element.as_pointer()) for p in places]
        word = builder.zext(builder.bitcast(args[1], ir.IntType(vector.lanes)), _I64)
        left = cgutils.alloca_once_value(builder, word)  # One bit for each lane still to do.
        check, body, end = (builder.append_basic_block(f"repair.{n}") for n in ("if", "do", "end"))
        builder.branch(check)
        builder.position_at_end(check)
        word = builder.load(left)
        builder.cbranch(builder.icmp_unsigned("!=", word, ir.Constant(_I64, 0)), body, end)
        builder.position_at_end(body)
        index = builder.cttz(word, ir.Constant(_I1, 1))
        *sources, target = (builder.gep(p, [index]) for p in pointers)
        value = call(builder, [builder.load(source) for source in sources])
        builder.store(context.cast(builder, value, called.return_type, vector.scalar), target)
        builder.store(builder.and_(word, builder.sub(word, ir.Constant(_I64, 1))), left)
        builder.branch(check)
        builder.position_at_end(end)
        return builder.load(places[-1])

    return vector(function, mask, operands, vector), emit


def _sum_typing(x: types.Type) -> Any:
    vector = _common((x,), "f")
    return vector and vector.scalar(vector)


def _sum(context: Any, builder: Any, sig: Any, x: Any) -> Any:
    count = x.type.count
    while count > 1:  # Halves are added in the same order on every processor.
        count //= 2
        low, high = (
            ir.Constant(ir.VectorType(_I32, count), list(range(start, start + count)))
            for start in (0, count)
        )
        halves = [
            builder.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), h) for h in (low, high)
        ]
        x = builder.fadd(*halves)
    return builder.extract_element(x, ir.Constant(_I32, 0))


sum_lanes = _intrinsic(1, _sum_typing, _sum)


# Memory: an address is an integer, in bytes -----------------------------------------------------


def _loading(result: Any, element: Any, align: int, convert: str | None = None) -> Any:
    """Return a function that reads at an address; `convert` widens what has been read."""

    def emit(context: Any, builder: Any, sig: Any, address: Any) -> Any:
        value = builder.load(builder.inttoptr(address, element.as_pointer()))
        value.align = align
        wide = context.get_value_type(result)
        return getattr(builder, convert)(value, wide) if convert else value

    return _intrinsic(1, lambda address: result(types.int64), emit)


def _storing(
    kind: Any, element: Any, align: int, convert: str | None = None, streaming: bool = False
) -> Any:
    """Return a function that writes at an address; `convert` narrows what is to be written."""

    def emit(context: Any, builder: Any, sig: Any, address: Any, value: Any) -> Any:
        if convert:
            value = getattr(builder, convert)(value, element)
        done = builder.store(value, builder.inttoptr(address, element.as_pointer()))
        done.align = align
        if streaming:
            one = builder.module.add_metadata([ir.Constant(_I32, 1)])
            done.set_metadata("nontemporal", one)
        return context.get_dummy_value()

    return _intrinsic(2, lambda address, value: types.void(types.int64, kind), emit)


load = _loading(F64, F64.llvm, 8)
load_integers = _loading(I64, I64.llvm, 8)
load_f32 = _loading(F32, F32.llvm, 4)
store = _storing(F64, F64.llvm, 8)
store_streaming = _storing(F64, F64.llvm, 64, streaming=True)  # Past the cache; aligned to 64.
store_integers = _storing(I64, I64.llvm, 8)
store_f32 = _storing(F32, F32.llvm, 4)
store_f32_streaming = _storing(F32, F32.llvm, 64, streaming=True)

# Scalars, in the types that Numba computes with.
read_f64 = _loading(types.float64, _F64, 8)
read_f32 = _loading(types.float64, _F32, 4, "fpext")
read_i64 = _loading(types.int64, _I64, 8)
read_u32 = _loading(types.int64, _I32, 4, "zext")
read_u16 = _loading(types.int64, _I16, 2, "zext")
write_f64 = _storing(types.float64, _F64, 8)
write_f32 = _storing(types.float64, _F32, 4, "fptrunc")
write_i64 = _storing(types.int64, _I64, 8)


def _prefetch(context: Any, builder: Any, sig: Any, address: Any) -> Any:
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    read, second, data = (ir.Constant(_I32, n) for n in (0, 2, 1))
    builder.call(function, [pointer, read, second, data])
    return context.get_dummy_value()


# prefetch(address): let a line come into the second cache, from any address.
prefetch = _intrinsic(1, lambda address: types.void(types.int64), _prefetch)


def _gather(context: Any, builder: Any, sig: Any, address: Any, indices: Any) -> Any:
    shift = ir.Constant(I64.llvm, [3] * LANES)
    addresses = builder.add(_spread(builder, address, I64), builder.shl(indices, shift))
    pointers = builder.inttoptr(addresses, ir.VectorType(_F64.as_pointer(), LANES))
    return _llvm(
        builder,
        "masked.gather",
        F64.llvm,
        pointers,
        ir.Constant(_I32, 8),
        ir.Constant(M64.llvm, [1] * LANES),
        ir.Constant(F64.llvm, ir.Undefined),
        suffix=f"v{LANES}f64.v{LANES}p0",
    )


# gather(address, i): the float64 numbers at address + 8 i.
gather = _intrinsic(2, lambda address, indices: F64(types.int64, I64), _gather)
