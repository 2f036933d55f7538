"""What the compiler of kernels asks of their syntax trees: see `translating.py`."""

from __future__ import annotations

import ast
import functools
import tokenize
from typing import Any


@functools.cache
def _trees(path: str) -> dict[tuple[str, int], ast.FunctionDef]:
    """Return the functions of a file by name and first line."""
    with tokenize.open(path) as file:
        return _found_in(file.read())


def _found_in(source: str) -> dict[tuple[str, int], ast.FunctionDef]:
    return {
        (node.name, min([node.lineno, *(d.lineno for d in node.decorator_list)])): node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    }


def tree_of(function: Any) -> ast.FunctionDef:
    """Return the syntax tree of a function, from its file or from its own `source`."""
    code = function.__code__
    source = getattr(function, "source", None)
    trees = _trees(code.co_filename) if source is None else _found_in(source)
    return trees[code.co_name, code.co_firstlineno]


Case = tuple[list[int], list[ast.stmt]]
"""Numbers, and what is done for any of them."""


def cases_of(node: ast.If) -> tuple[ast.expr, list[Case], list[ast.stmt]]:
    """Return which variable a chain of `if` and `elif` compares with numbers, and what follows.

    That is the cases, each with its numbers, and what is done for any other number.
    """
    cases: list[Case] = []
    first: Any = None
    while True:
        tests = node.test.values if isinstance(node.test, ast.BoolOp) else [node.test]
        if isinstance(node.test, ast.BoolOp) and isinstance(node.test.op, ast.And):
            break
        numbers = []
        for test in tests:
            match test:
                case ast.Compare(ast.Name(name) as left, [ast.Eq()], [ast.Constant(int(number))]):
                    if first is None:
                        first = left
                    if name == first.id:
                        numbers.append(number)
        if len(numbers) < len(tests):
            break
        cases.append((numbers, node.body))
        match node.orelse:
            case [ast.If() as node]:
                continue
            case rest:
                return first, cases, rest
    return first, cases, [node]
