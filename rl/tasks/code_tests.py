"""Tests of programs: read from a row, run in the sandbox, compared outside it.

What a test expects never enters the sandbox: a program cannot pass by finding it, nor by printing that it passed, by
ending early, or by results that claim to be equal to everything. What it returns crosses as text and is compared here.
"""

import ast
import json
import math
import sys
from dataclasses import dataclass
from typing import Any

from farside.configs.errors import UserError
from farside.rl.tasks.rows import Row


@dataclass(frozen=True)
class Printed:
    """Standard input, and the standard output it must give."""

    given: str
    expected: str


@dataclass(frozen=True)
class Returned:
    """Arguments of the function, and the value it must return."""

    arguments: tuple[Any, ...]
    expected: Any


@dataclass(frozen=True)
class Tests:
    """function: dotted if in a class, which is made without arguments; empty where a program reads and prints."""

    function: str
    printed: tuple[Printed, ...] = ()
    returned: tuple[Returned, ...] = ()


DRIVER = """\
import ast, json, os, sys
results = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the functions print is no result
asked = ast.literal_eval(sys.stdin.read())
sys.path.insert(0, os.getcwd())
import answer as found
for part in asked["function"].split("."):
    found = getattr(found() if isinstance(found, type) else found, part)
for arguments in asked["arguments"]:
    os.write(results, (json.dumps(repr(found(*arguments))) + "\\n").encode())
"""
"""Runs beside the answer, in its power: all it can lie about is what the answer returned."""


def read_tests(where: str, row: Row) -> Tests:
    """The tests of a row, in any of the forms of docs/tasks.md. Raises UserError naming the row and the fix."""
    function = str(row.get("function") or row.get("entry_point") or row.get("fn_name") or "")
    tests = row.get("tests") or row.get("test_list")
    if tests is None and row.get("input_output") is not None:
        function, tests = _input_output(where, row["input_output"], function)
    if not isinstance(tests, list) or not tests:
        raise UserError(f"{where} has no list of tests; give it tests, test_list or input_output")
    if all(isinstance(test, str) for test in tests):
        found = [read_assert(where, test) for test in tests]
        if len({name for name, _ in found}) > 1:
            raise UserError(f"{where}: its assertions call several functions; let them call one")
        return Tests(found[0][0], returned=tuple(test for _, test in found))
    if any(not isinstance(test, dict) for test in tests):
        raise UserError(f"{where}: its tests are neither all assertions nor all objects; mend or remove the row")
    if function:
        return Tests(function, returned=tuple(_returned(where, test) for test in tests))
    return Tests("", printed=tuple(_printed(where, test) for test in tests))


def read_assert(where: str, text: str) -> tuple[str, Returned]:
    """(function, test) of "assert f(1, [2]) == 3", "assert f(1)" or "assert not f(1)". Raises UserError."""
    try:
        (statement,) = ast.parse(text.strip()).body
        assert isinstance(statement, ast.Assert)
        call, expected = statement.test, True
        if isinstance(call, ast.UnaryOp) and isinstance(call.op, ast.Not):
            call, expected = call.operand, False
        elif isinstance(call, ast.Compare):
            (operator,), (right,) = call.ops, call.comparators
            assert isinstance(operator, ast.Eq | ast.Is)
            call, expected = call.left, ast.literal_eval(right)
        assert isinstance(call, ast.Call)
        assert not call.keywords
        return ast.unparse(call.func), Returned(tuple(map(ast.literal_eval, call.args)), expected)
    except (AssertionError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise UserError(
            f'{where}: cannot read {text[:80]!r} as "assert f(VALUES) == VALUE"; write it so, or as input and output'
        ) from error


def same_output(got: str, expected: str) -> bool:
    """Whether two outputs agree line by line, spaces at ends of lines and empty lines at the end aside."""
    lines = ([line.rstrip() for line in text.rstrip().split("\n")] for text in (got, expected))
    return next(lines) == next(lines)


def same_value(got: Any, expected: Any) -> bool:
    """Whether two values agree: numbers to 1e-9 where one is a float; a list and a tuple are told apart; True is 1."""
    if isinstance(got, float) or isinstance(expected, float):
        numbers = isinstance(got, int | float) and isinstance(expected, int | float)
        if not numbers or max(abs(got), abs(expected)) > sys.float_info.max:  # infinite, or no float can hold it
            return bool(got == expected)
        return math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(expected, list | tuple):
        return type(got) is type(expected) and len(got) == len(expected) and all(map(same_value, got, expected))
    if isinstance(expected, dict):
        return isinstance(got, dict) and got.keys() == expected.keys() and all(
            same_value(got[key], expected[key]) for key in expected
        )  # fmt: skip
    return bool(got == expected)


def results(output: str) -> list[str]:
    """The texts of returned values that the driver wrote, up to the first that is none."""
    texts = []
    for line in output.split("\n")[:-1]:
        try:
            text = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(text, str):
            break
        texts.append(text)
    return texts


def _input_output(where: str, value: Any, function: str) -> tuple[str, list[Row]]:
    """{"inputs": [...], "outputs": [...], "fn_name": ...}, or the same as JSON."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
        inputs, outputs = value["inputs"], value["outputs"]
        function = str(value.get("fn_name") or function)
        if function:
            return function, [{"args": i, "expected": o} for i, o in zip(inputs, outputs, strict=True)]
        return "", [{"input": i, "output": o} for i, o in zip(inputs, outputs, strict=True)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: its input_output holds no inputs and as many outputs; mend it ({error})") from error


def _returned(where: str, test: Row) -> Returned:
    arguments = test.get("args", test.get("input"))
    key = next((key for key in ("expected", "output") if key in test), None)
    if not isinstance(arguments, list) or key is None:
        raise UserError(f'{where}: a test of a function needs "args", a list, and "expected"; mend it')
    return Returned(tuple(arguments), test[key])


def _printed(where: str, test: Row) -> Printed:
    given, expected = (
        "\n".join(value) if isinstance(value, list) and all(isinstance(line, str) for line in value) else value
        for value in (test.get("input", ""), test.get("output"))
    )
    if not isinstance(given, str) or not isinstance(expected, str):
        raise UserError(f'{where}: a test of a program needs "input" and "output", both text; mend it')
    return Printed(given, expected)
