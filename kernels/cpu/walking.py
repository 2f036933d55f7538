"""One walk over the syntax tree of a function, which writes its code: see `translating.py`."""

from __future__ import annotations

import ast
import builtins
import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types

from tapegrad.kernels.cpu.syntax import Case, cases_of, tree_of

if TYPE_CHECKING:
    from tapegrad.kernels.cpu.translating import Translation

_WORD = ir.IntType(64)
_NUMBERS = {
    **{int: types.int64, float: types.float64, types.int64: types.int64},
    **{np.int64: types.int64, np.uint64: types.uint64, np.uint8: types.uint8},
    **{np.float32: types.float32},
}
"""What makes a number of a type of another one, and its type."""

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul},
    **{ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod},
    **{ast.BitAnd: operator.and_, ast.BitOr: operator.or_, ast.BitXor: operator.xor},
    **{ast.LShift: operator.lshift, ast.RShift: operator.rshift, ast.Pow: operator.pow},
    **{ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge},
    **{ast.Eq: operator.eq, ast.NotEq: operator.ne},
    **{ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert},
}


@dataclass(frozen=True, slots=True)
class Value:
    """A value while a kernel runs: its type, and LLVM's name of it."""

    kind: Any
    code: Any


@dataclass(frozen=True, slots=True)
class Object:
    """A value that Python knows: a module, a function, a type."""

    found: Any


Operand = Value | Object | tuple[Any, ...]


class Translated(NamedTuple):
    """A function of LLVM, and the type of its result: `types.none` where there is none."""

    code: Any
    result: Any


def _is_number(operand: Operand) -> bool:
    """Whether it is a number that is known already."""
    if not isinstance(operand, Value) or operand.kind not in (types.int64, types.float64):
        return False
    return isinstance(operand.code, ir.Constant)


_FEW_CASES = 3
"""Comparisons in a chain that are made one after another, at most: longer ones are jumped to."""


class _Variable(NamedTuple):
    """A variable: its type, and its value, or where this is kept."""

    kind: Any
    code: Any
    scope: tuple[int, ...] | None  # that a value belongs to; None where it is in memory


class _Again(Exception):
    """Something was found out of a variable that should have been known before."""


class Walk:
    """One walk over a function, which writes its code as it goes.

    A variable that is assigned to once needs no memory, unless it is read outside of the branch or
    loop where that is.  Its type is that of what is assigned to it first, until something else is
    assigned that this is not wide enough for: then the walk begins again.
    """

    builder: Any
    entry: Any
    written: Any
    reached: set[Any]

    def __init__(self, translation: Translation, function: Any, kinds: tuple[Any, ...]) -> None:
        self.translation, self.function, self.kinds = translation, function, kinds
        self.context = translation.context
        self.tree = tree_of(function)
        self.kinds_of: dict[str, Any] = {}
        self.returned: Any = None
        names = [a.arg for a in self.tree.args.args]
        nodes = [n for n in ast.walk(self.tree) if isinstance(n, ast.Name)]
        stored = [n.id for n in nodes if isinstance(n.ctx, ast.Store)]
        self.in_memory = {n for n in (*names, *stored) if (names + stored).count(n) > 1}

    def attempt(self) -> Translated | None:
        """Write the function; return None where it is to be tried again."""
        module = self.translation.module
        name = module.get_unique_name(f"part.{self.function.__name__}")  # no name of C
        result = types.none if self.returned is None else self.returned
        kind = ir.FunctionType(self._llvm(result), [self._llvm(k) for k in self.kinds])
        self.written = ir.Function(module, kind, name)
        self.entry, start = self._new("entry", "start")
        self.reached = {start}
        self.builder = ir.IRBuilder(start)
        self.variables: dict[str, _Variable] = {}
        self.scope: tuple[int, ...] = ()
        self.scopes = 0
        self.loops: list[tuple[Any, Any]] = []
        try:
            for given, argument, arg_kind in zip(
                self.tree.args.args, self.written.args, self.kinds, strict=True
            ):
                self._store(given.arg, Value(arg_kind, argument))
            self._statements(self.tree.body)
        except _Again:
            del module.globals[name]
            return None
        if not self.builder.block.is_terminated:
            if self.returned is not None:
                raise self._refusal(self.tree, "an end without a result")
            self.builder.ret_void()
        ir.IRBuilder(self.entry).branch(start)
        self.written.linkage = "internal"
        if getattr(self.function, "alone", False):
            self.written.attributes.add("noinline")
        return Translated(self.written, types.none if self.returned is None else self.returned)

    def _llvm(self, kind: Any) -> Any:
        return ir.VoidType() if kind == types.none else self.context.get_value_type(kind)

    # -- statements --------------------------------------------------------------------------------

    def _statements(self, nodes: Sequence[ast.stmt]) -> None:
        for node in nodes:
            if self.builder.block.is_terminated:
                return
            method = getattr(self, f"_{type(node).__name__.lower()}", None)
            if method is None:
                raise self._refusal(node, "what cannot be translated")
            method(node)

    def _refusal(self, node: Any, what: str) -> NotImplementedError:
        code = self.function.__code__
        return NotImplementedError(
            f"{code.co_filename}:{node.lineno}: {what}: {ast.unparse(node)[:80]}"
        )

    def _pass(self, node: ast.Pass) -> None:
        pass

    def _expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.value(node.value)

    def _return(self, node: ast.Return) -> None:
        if node.value is None:
            self.builder.ret_void()
            return
        value = self._one(self.value(node.value))
        if self.returned is None:
            self._return_type(value.kind)
        elif value.kind != self.returned:
            kind = self.translation.unified((self.returned, value.kind))
            if kind != self.returned:
                self.returned = kind
                raise _Again
        self.builder.ret(self._cast(value, self.returned))

    def _return_type(self, kind: Any) -> None:
        """Let the function, which has returned nothing so far, return values of a type."""
        self.returned = kind
        other = ir.FunctionType(self._llvm(kind), self.written.ftype.args)
        plain = ir.Function(ir.Module(), other, self.written.name)
        for name in ("type", "ftype", "return_value"):
            setattr(self.written, name, getattr(plain, name))

    def _assign(self, node: ast.Assign) -> None:
        value = self.value(node.value)
        for target in node.targets:
            self._assign_to(target, value)

    def _augassign(self, node: ast.AugAssign) -> None:
        function = _OPERATORS[type(node.op)]
        if isinstance(node.target, ast.Name):
            before = self._load(node.target)
            self._store(node.target.id, self.apply(function, before, self.value(node.value)))
        elif isinstance(node.target, ast.Subscript):
            place = self.value(node.target.value), self.value(node.target.slice)
            before = self.apply(operator.getitem, *place)
            self.apply(
                operator.setitem, *place, self.apply(function, before, self.value(node.value))
            )
        else:
            raise self._refusal(node, "an assignment to this")

    def _assign_to(self, target: ast.expr, value: Operand) -> None:
        if isinstance(target, ast.Name):
            self._store(target.id, self._one(value))
        elif isinstance(target, ast.Tuple):
            parts = self._parts(value)
            for part, found in zip(target.elts, parts, strict=True):
                self._assign_to(part, found)
        elif isinstance(target, ast.Subscript):
            self.apply(operator.setitem, self.value(target.value), self.value(target.slice), value)
        else:
            raise self._refusal(target, "an assignment to this")

    # -- branches and loops ------------------------------------------------------------------------

    def _new(self, *names: str) -> tuple[Any, ...]:
        return tuple([self.written.append_basic_block(name) for name in names])

    def _go(self, block: Any) -> None:
        """Go to a block from where this one ends, unless it went elsewhere."""
        if not self.builder.block.is_terminated:
            self.builder.branch(block)
            self.reached.add(block)

    def _choose(self, test: ast.expr, then: Any, other: Any) -> None:
        """Go to one of two blocks."""
        match test:
            case ast.UnaryOp(ast.Not(), operand):
                return self._choose(operand, other, then)
            case ast.BoolOp(op, [*operands, last]):
                for operand in operands:
                    (more,) = self._new("more")
                    ways = (more, other) if isinstance(op, ast.And) else (then, more)
                    self._choose(operand, *ways)
                    self.builder.position_at_end(more)
                return self._choose(last, then, other)
        self.builder.cbranch(self._truth(self.value(test)), then, other)
        self.reached |= {then, other}

    def _at(self, block: Any) -> None:
        """Write to a block from now on."""
        self.builder.position_at_end(block)
        if block not in self.reached:
            self.builder.unreachable()

    @contextmanager
    def _inside(self, block: Any) -> Iterator[None]:
        """Write to a block that is a scope of its own."""
        self._at(block)
        self.scopes += 1
        outer, self.scope = self.scope, (*self.scope, self.scopes)
        yield
        self.scope = outer

    def _if(self, node: ast.If) -> None:
        name, cases, rest = cases_of(node)
        if len(cases) > _FEW_CASES:
            self._switch(self.value(name), cases, rest)
            return
        (end,) = self._new("end")
        while True:
            then, other = self._new("then", "else")
            self._choose(node.test, then, other)
            with self._inside(then):
                self._statements(node.body)
                self._go(end)
            match node.orelse:
                case [ast.If() as node]:
                    self._at(other)
                case rest:
                    break
        with self._inside(other):
            self._statements(rest)
            self._go(end)
        self._at(end)

    def _switch(self, value: Operand, cases: list[Case], rest: list[ast.stmt]) -> None:
        """Go one of many ways, as a number says."""
        found = self._one(value)
        end, other = self._new("end", "else")
        branch = self.builder.switch(found.code, other)
        ways = [(other, rest)]
        for numbers, body in cases:
            (way,) = self._new("case")
            ways.append((way, body))
            for number in numbers:
                branch.add_case(self._llvm(found.kind)(number), way)
        for way, body in ways:
            self.reached.add(way)
            with self._inside(way):
                self._statements(body)
                self._go(end)
        self._at(end)

    def _while(self, node: ast.While) -> None:
        check, body, end = self._new("while", "do", "end")
        self._go(check)
        self._at(check)
        if isinstance(node.test, ast.Constant) and node.test.value:
            self._go(body)
        else:
            self._choose(node.test, body, end)
        self._repeat(node, body, check, end)
        self._at(end)

    def _for(self, node: ast.For) -> None:
        match node.iter:
            case ast.Call(ast.Name("range"), arguments, []):
                values = [self._integer(self.value(argument)) for argument in arguments]
            case iterated:
                return self._unroll(node, self._parts(self.value(iterated)))
        zero, one = (ir.Constant(_WORD, n) for n in (0, 1))
        first, stop, step = [
            (zero, *values, one),
            (*values, one),
            values,
        ][len(values) - 1]
        if not isinstance(step, ir.Constant) or step.constant == 0:
            raise self._refusal(node, "a step that is not constant")
        check, body, after, end = self._new("for", "do", "next", "end")
        counter = self._room(_WORD)
        self.builder.store(first, counter)
        self._go(check)
        self._at(check)
        at = self.builder.load(counter)
        goes_on = self.builder.icmp_signed("<" if step.constant > 0 else ">", at, stop)
        self.builder.cbranch(goes_on, body, end)
        self.reached |= {body, end}
        self._repeat(node, body, after, end, Value(types.int64, at))
        self._at(after)
        if after in self.reached:
            self.builder.store(self.builder.add(at, step), counter)
            self.builder.branch(check)
        self._at(end)

    def _unroll(self, node: ast.For, values: Sequence[Operand]) -> None:
        (end,) = self._new("end")
        for value in values:
            body, after = self._new("do", "next")
            self._go(body)
            self._repeat(node, body, after, end, value)
            self._at(after)
        self._go(end)
        self._at(end)

    def _repeat(
        self, node: ast.While | ast.For, body: Any, again: Any, end: Any, at: Operand | None = None
    ) -> None:
        if node.orelse:
            raise self._refusal(node, "a loop with an else")
        self.loops.append((again, end))
        with self._inside(body):
            if at is not None and isinstance(node, ast.For):
                self._assign_to(node.target, at)
            self._statements(node.body)
            self._go(again)
        self.loops.pop()

    def _continue(self, node: ast.Continue) -> None:
        self._go(self.loops[-1][0])

    def _break(self, node: ast.Break) -> None:
        self._go(self.loops[-1][1])

    # -- variables ---------------------------------------------------------------------------------

    def _room(self, kind: Any) -> Any:
        """Return an address on the stack, which is there from the beginning."""
        with self.builder.goto_block(self.entry):
            return self.builder.alloca(kind)

    def _store(self, name: str, value: Value) -> None:
        known = self.variables.get(name)
        if name not in self.in_memory:
            self.variables[name] = _Variable(value.kind, value.code, self.scope)
            return
        if known is None:
            kind = self.kinds_of.setdefault(name, value.kind)
            known = _Variable(kind, self._room(self._llvm(kind)), None)
            self.variables[name] = known
        if value.kind != known.kind:
            kind = self.translation.unified((known.kind, value.kind))
            if kind != known.kind:
                self.kinds_of[name] = kind
                raise _Again
        self.builder.store(self._cast(value, known.kind), known.code)

    def _load(self, node: ast.Name) -> Operand:
        if (known := self.variables.get(node.id)) is None:
            return self._global(node)
        if known.scope is None:
            return Value(known.kind, self.builder.load(known.code))
        if self.scope[: len(known.scope)] != known.scope:
            self.in_memory.add(node.id)
            raise _Again
        return Value(known.kind, known.code)

    def _global(self, node: ast.Name) -> Operand:
        spaces = self.function.__globals__, vars(builtins)
        for space in spaces:
            if node.id in space:
                return self._known(space[node.id])
        raise self._refusal(node, "a variable without a value")

    def _known(self, found: Any) -> Operand:
        """Return what Python knows, as a constant if it is one."""
        kind: Any
        match found:
            case bool():
                kind = types.boolean
            case int():
                kind = types.int64
            case float():
                kind = types.float64
            case tuple():
                return tuple([self._known(part) for part in found])
            case _:
                return Object(getattr(found, "py_func", found))
        return Value(kind, self.context.get_constant(kind, found))

    # -- expressions -------------------------------------------------------------------------------

    def value(self, node: ast.expr) -> Operand:
        """Write the code of an expression."""
        match node:
            case ast.Constant(found):
                return self._known(found)
            case ast.Name():
                return self._load(node)
            case ast.Tuple(parts):
                return tuple([self.value(part) for part in parts])
            case ast.BinOp(left, op, right):
                return self._operate(op, self.value(left), self.value(right))
            case ast.Compare(first, ops, others):
                return self._compare(ops, [self.value(operand) for operand in (first, *others)])
            case ast.UnaryOp(ast.Not(), operand):
                return Value(types.boolean, self.builder.not_(self._truth(self.value(operand))))
            case ast.UnaryOp(op, operand):
                return self._operate(op, self.value(operand))
            case ast.BoolOp(op, operands):
                return self._either(isinstance(op, ast.And), operands)
            case ast.IfExp(test, body, other):
                return self._conditional(test, body, other)
            case ast.Attribute(owner, name):
                return self._attribute(self.value(owner), name)
            case ast.Subscript(owner, index):
                return self._item(node, self.value(owner), index)
            case ast.Call(called, arguments, []):
                return self._call(self.value(called), [self.value(a) for a in arguments])
            case _:
                raise self._refusal(node, "what cannot be translated")

    def apply(self, function: Any, *operands: Operand) -> Operand:
        """Write an operation that Numba knows."""
        values = [self._one(operand) for operand in operands]
        if (kind := _NUMBERS.get(function)) is not None:
            return Value(kind, self._cast(values[0], kind))
        sig, write = self.translation.operation(function, tuple([v.kind for v in values]))
        arguments = [self._cast(v, kind) for v, kind in zip(values, sig.args, strict=True)]
        return Value(types.unliteral(sig.return_type), write(self.builder, arguments))

    def _call(self, called: Operand, arguments: list[Operand]) -> Operand:
        if not isinstance(called, Object):
            raise TypeError(f"{called} is not a function")
        if called.found in (min, max):
            return functools.reduce(functools.partial(self._extreme, called.found), arguments)
        if not isinstance(called.found, FunctionType):
            return self.apply(called.found, *arguments)
        values = [self._one(argument) for argument in arguments]
        function = self.translation.function(called.found, tuple([v.kind for v in values]))
        return Value(function.result, self.builder.call(function.code, [v.code for v in values]))

    def _operate(self, op: ast.AST, *operands: Operand) -> Operand:
        function = _OPERATORS[type(op)]
        if all([_is_number(operand) for operand in operands]):
            return self._known(function(*[operand.code.constant for operand in operands]))
        return self.apply(function, *operands)

    def _compare(self, ops: list[ast.cmpop], operands: list[Operand]) -> Operand:
        found = [
            self.apply(_OPERATORS[type(op)], *pair)
            for op, pair in zip(ops, itertools.pairwise(operands), strict=True)
        ]
        if len(found) == 1:
            return found[0]
        return Value(types.boolean, functools.reduce(self.builder.and_, map(self._truth, found)))

    def _attribute(self, owner: Operand, name: str) -> Operand:
        if isinstance(owner, Object):
            return self._known(getattr(owner.found, name))
        value = self._one(owner)
        kind = self.translation.typing.resolve_getattr(value.kind, name)
        write = self.context.get_getattr(value.kind, name)
        return Value(kind, write(self.context, self.builder, value.kind, value.code, name))

    def _item(self, node: ast.Subscript, owner: Operand, index: ast.expr) -> Operand:
        if isinstance(owner, tuple) or (
            isinstance(owner, Value) and isinstance(owner.kind, types.BaseTuple)
        ):
            if not isinstance(index, ast.Constant):
                raise self._refusal(node, "an index of a tuple that is not constant")
            return self._parts(owner)[index.value]
        return self.apply(operator.getitem, owner, self.value(index))

    def _either(self, every: bool, operands: list[ast.expr]) -> Operand:
        """Write `and` or `or`: the first value that decides, or the last."""
        (end,) = self._new("decided")
        arms = []
        for node in operands[:-1]:
            value = self._one(self.value(node))
            decided, more = self._new("stop", "more")
            truth = self._truth(value)
            self.builder.cbranch(truth, *((more, decided) if every else (decided, more)))
            arms.append((decided, value))
            self.builder.position_at_end(more)
        last = self._one(self.value(operands[-1]))
        return self._joined([*arms, (self.builder.block, last)], end)

    def _conditional(self, test: ast.expr, body: ast.expr, other: ast.expr) -> Operand:
        then, otherwise, end = self._new("then", "else", "chosen")
        self._choose(test, then, otherwise)
        arms = []
        for block, node in ((then, body), (otherwise, other)):
            self.builder.position_at_end(block)
            value = self._one(self.value(node))
            arms.append((self.builder.block, value))
        return self._joined(arms, end)

    def _extreme(self, which: Any, best: Operand, other: Operand) -> Operand:
        kind = self.translation.unified([self._one(v).kind for v in (best, other)])
        old, new = [Value(kind, self._cast(self._one(v), kind)) for v in (best, other)]
        better = self.apply(operator.lt if which is min else operator.gt, new, old)
        return Value(kind, self.builder.select(self._truth(better), new.code, old.code))

    def _joined(self, arms: list[tuple[Any, Value]], end: Any) -> Value:
        """Return the value that is that of the block from which `end` is reached."""
        kind = self.translation.unified([value.kind for _, value in arms])
        incoming = []
        for block, value in arms:
            self.builder.position_at_end(block)
            code = self._cast(value, kind)
            incoming.append((code, self.builder.block))
            self.builder.branch(end)
        self.builder.position_at_end(end)
        found = self.builder.phi(self._llvm(kind))
        for code, block in incoming:
            found.add_incoming(code, block)
        return Value(kind, found)

    # -- values ------------------------------------------------------------------------------------

    def _one(self, operand: Operand) -> Value:
        """Return an operand as one value of LLVM."""
        if isinstance(operand, Value):
            return operand
        if isinstance(operand, Object):
            plain = isinstance(operand.found, FunctionType)
            kind = self.translation.type_of(operand.found, plain)
            return Value(kind, self.context.get_dummy_value())
        parts = [self._one(part) for part in operand]
        kind = types.BaseTuple.from_types([part.kind for part in parts])
        codes = [part.code for part in parts]
        return Value(kind, self.context.make_tuple(self.builder, kind, codes))

    def _parts(self, operand: Operand) -> Sequence[Operand]:
        """Return what a tuple consists of."""
        if isinstance(operand, Value):
            kinds = tuple(operand.kind)
            codes = [self.builder.extract_value(operand.code, i) for i in range(len(kinds))]
            return [Value(*pair) for pair in zip(kinds, codes, strict=True)]
        return tuple(operand)

    def _cast(self, value: Value, kind: Any) -> Any:
        if value.kind == kind:
            return value.code
        return self.context.cast(self.builder, value.code, value.kind, kind)

    def _integer(self, operand: Operand) -> Any:
        return self._cast(self._one(operand), types.int64)

    def _truth(self, operand: Operand) -> Any:
        value = self._one(operand)
        if value.kind == types.boolean:
            return value.code
        return self.context.is_true(self.builder, value.kind, value.code)
