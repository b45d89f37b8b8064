"""Evaluate the expressions of a grid, such as "4e-3 * sqrt(64 / d_model)" or "aspect >= 8 and params < 5e6".

They are Python's, cut down to numbers and texts, arithmetic, comparisons, `in`, and, or, not, `a if c else b`, and the
functions of `FUNCTIONS`. They can name only what they are given, call nothing else, and take no long time.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from lathe.errors import StudyError, nearest

MOST_CHARACTERS = 500
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sqrt": math.sqrt, "log": math.log, "log2": math.log2, "exp": math.exp, "min": min, "max": max, "abs": abs,
    "round": round, "floor": math.floor, "ceil": math.ceil,
}  # fmt: skip

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.Pow: lambda x, y: math.pow(x, y),  # in floats: whole numbers could grow without end
}  # fmt: skip
_UNARY: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_}
_COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne, ast.In: lambda x, y: x in y, ast.NotIn: lambda x, y: x not in y,
}  # fmt: skip


def evaluate(text: str, values: Mapping[str, Any]) -> Any:
    """Evaluate an expression over named values. Raises StudyError for what is none, or has no value."""
    tree = _parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in values and node.id not in FUNCTIONS:
            raise StudyError(f"{text!r} names {node.id!r}{nearest(node.id, [*values, *FUNCTIONS])}")
    try:
        return _evaluate(tree, values, text)
    except (ArithmeticError, TypeError, ValueError, RecursionError) as error:
        used = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in values})
        where = ", ".join(f"{name}={values[name]}" for name in used)
        raise StudyError(f"{text!r} has no value{f' for {where}' if where else ''}: {error}") from None


def list_names(text: str) -> set[str]:
    """List what an expression names, functions left out. Raises StudyError for what is none."""
    return {node.id for node in ast.walk(_parse(text)) if isinstance(node, ast.Name)} - FUNCTIONS.keys()


def _parse(text: str) -> ast.expr:
    if len(text) > MOST_CHARACTERS:
        raise StudyError(f"an expression of {len(text)} characters; at most {MOST_CHARACTERS} are read")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise StudyError(f'{text!r} is no expression: {reason}; wanted such as "4e-3 * sqrt(64 / d_model)"') from None


def _evaluate(node: ast.AST, values: Mapping[str, Any], text: str) -> Any:
    def value(inner: ast.AST) -> Any:
        return _evaluate(inner, values, text)

    match node:
        case ast.Constant(value=bool() | int() | float() | str()):
            return node.value
        case ast.Name():
            return values[node.id]
        case ast.BinOp() if type(node.op) in _BINARY:
            return _BINARY[type(node.op)](_number(value(node.left)), _number(value(node.right)))
        case ast.UnaryOp() if type(node.op) in _UNARY:
            return _UNARY[type(node.op)](value(node.operand))
        case ast.BoolOp():
            truths = (bool(value(one)) for one in node.values)
            return all(truths) if isinstance(node.op, ast.And) else any(truths)
        case ast.Compare() if all(type(op) in _COMPARE for op in node.ops):
            terms = [value(one) for one in (node.left, *node.comparators)]
            return all(_COMPARE[type(op)](x, y) for op, x, y in zip(node.ops, terms, terms[1:], strict=False))
        case ast.IfExp():
            return value(node.body) if value(node.test) else value(node.orelse)
        case ast.List() | ast.Tuple():
            return [value(one) for one in node.elts]
        case ast.Call(func=ast.Name(id=function), keywords=[]) if function in FUNCTIONS:
            return FUNCTIONS[function](*map(value, node.args))
    raise StudyError(
        f"{text!r} uses {ast.unparse(node)!r}; wanted numbers, texts, names, arithmetic, comparisons, in, and, or, "
        f"not, if … else, and {', '.join(FUNCTIONS)}"
    )


def _number(value: Any) -> Any:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value
