"""Functions translated for libraries: what Python computes, and what Numba's compiler makes."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit, types

from tapegrad.kernels import native
from tapegrad.kernels.cpu.building import build
from tapegrad.kernels.cpu.jit import alone, likely, part, room
from tapegrad.kernels.cpu.records import Numbers
from tapegrad.kernels.cpu.records import numbers as numbers_at
from tapegrad.kernels.cpu.records import record as record_at
from tapegrad.kernels.cpu.simd import read_f64, read_i64, write_f64, write_i64
from tapegrad.kernels.native import Library, link

pytestmark = pytest.mark.skipif(not native._supported, reason="compiled by Numba's own means")

STEP, TABLE, LARGE = -2, (3, 5, -7), 1 << 40
PARTS = (0.5, 0.25, 1.0)
BYTES = numbers_at(types.uint8)
ROOM = room(64)
RECORD = record_at("Few", out=Numbers(types.float64), count=types.int64)


def compiled(function: Callable[..., Any]) -> Callable[..., int]:
    """Return a function of integers as it is translated."""
    assert isinstance(function, FunctionType)
    name, arity = function.__name__, function.__code__.co_argcount
    library = Library(name, (), {name: arity}, {})
    call: Callable[..., int] = link(library, build(library, {name: function}))[name]
    return call


@part
def halved(x: int) -> tuple[int, bool]:
    return x // 2, x % 2 != 0


@alone
def clipped(x: int, low: int, high: int) -> int:
    return min(max(x, low), high)


def arithmetic(x: int, y: int) -> int:
    z = y if y != 0 else 3
    return (
        (x + y) * 3 - x // z + x % z - (x >> 2) + ((x & 7) << 3) + (x | y) - (x ^ ~y) + -y + LARGE
    )


def branches(x: int, y: int) -> int:
    if x > y and not (x == 3 and y):
        result = 1
    elif x < y or (y == 2) or False:
        result = 2 if x > 0 else -2
    else:
        result = 3
        if y > 0:
            return result + 100
    return result + (10 if 0 < x <= y else 20) + (x and 1000) + (y or 5000)


def loops(n: int, m: int) -> int:
    total = 0
    for i in range(n % 20):
        if i % 3 == 1:
            continue
        for j in range(i, i + 5):
            if j == m % 7:
                break
            total += j
            last = j
        total -= i
    for i in range(10, n % 10, STEP):
        total += i * i
    for i in range(n % 4, 4):  # `i` after a loop is its last value
        total += i
    k = 0
    while True:
        k += 1
        if k > m % 9:
            break
    while k > 0:
        k -= 2
        total += k
    last = total
    for factor in TABLE:
        last = last * 3 + factor
        if last % 5 == 0:
            break
    return last


def tuples(x: int, y: int) -> int:
    half, odd = halved(x)
    half, y = y, half
    pair = halved(y)
    return (
        half * TABLE[2]
        + y
        + pair[0]
        + (1 if odd else 0)
        + (1 if pair[1] else 0)
        + clipped(x, -5, 5)
    )


def widened(x: int, y: int) -> int:
    """Variables and results that are integers first, and numbers then."""
    total = 0
    for _ in range(x % 5):
        total = total + 0.5
    return int(total * 8 + float(y % 1000) / 4)


def numbers(x: int, y: int) -> int:
    z = math.sqrt(abs(float(x % 1000))) + PARTS[1] * -PARTS[0] - math.copysign(2.0, y)
    z = abs(z) % 7.25 + math.pow(1.5, float(y % 5)) + 2.0**3
    return int(math.ldexp(z, 20)) + (1 if math.isnan(z) or math.isinf(z) else 0)


def of_memory(x: int, address: int) -> int:
    write_i64(address, read_i64(address) + x)
    write_f64(address + 8, read_f64(address + 8) * 0.5)
    if x > 0:
        return read_i64(address)
    return -1


def unsigned(x: int, y: int) -> int:
    """Where only Python's integers have no end: compared below with those of NumPy."""
    i = np.uint64(x & 1023)
    i += np.uint64(3)
    small = np.uint8(y & 255)
    small *= np.uint8(x > y or not y)
    return int(i) * 1000 + int(small) + int(float(np.float32(x & 1023)) * 0.5)


def ways(x: int, y: int) -> int:
    way = x % 12
    result = 0
    if way == 1:
        result = 5
    elif way == 2 or way == 7:
        if y > 0:
            return 1000
        result = y
    elif way == 4:
        pass
    elif way == 3 or way == 9 or way == 10:
        result = 17
        for i in range(3):
            if i == y % 5:
                break
            result += i
    elif way == 6:
        result = way
    else:
        result = -1
    if y == 1:
        result += 1
    elif y == 2:
        result += 2
    elif x == 3:
        result += 3
    elif y == 4:
        result += 4
    elif y == 5 and x > 0:
        result += 5
    return result * 10 + way


def decided(x: int, y: int) -> int:
    """Tests that are decided by what comes first; the rest would divide by zero in Python."""
    total = 0
    if not (y == 0 or x % y == 1) and (x > 3 or not x < -3):
        total += 1
    if (y != 0 and x // y > 2) or (x == 0 and not y):
        total += 2
    while not (total >= 4 and (total > 6 or y != 0)):
        total += 3
    return total


FUNCTIONS = (arithmetic, branches, loops, tuples, widened, numbers, unsigned, ways, decided)
TRANSLATED: dict[Any, Callable[..., int]] = {}
INTEGERS = st.integers(-(1 << 31), 1 << 31) | st.integers(-12, 12)


@pytest.mark.parametrize("function", FUNCTIONS)
@given(x=INTEGERS, y=INTEGERS)
def test_translated_functions_compute_what_python_does(
    function: Callable[..., int], x: int, y: int
) -> None:
    if function not in TRANSLATED:
        TRANSLATED[function] = compiled(function)
    assert TRANSLATED[function](x, y) == function(x, y)


def test_what_is_at_addresses_is_read_and_written() -> None:
    numbers = np.array([5, 0])
    numbers.view(np.float64)[1] = 3.0
    call = compiled(of_memory)
    assert call(3, numbers.ctypes.data) == 8
    assert call(-3, numbers.ctypes.data) == -1
    assert numbers[0] == 5
    assert numbers.view(np.float64)[1] == 0.75


def of_c(x: int, y: int) -> int:
    return int(math.ldexp(math.hypot(x, y / 7), 20))


@given(x=st.integers(-1000, 1000), y=st.integers(-1000, 1000))
def test_functions_of_c_are_called(x: int, y: int) -> None:
    if of_c not in TRANSLATED:
        TRANSLATED[of_c] = compiled(of_c)
    assert abs(TRANSLATED[of_c](x, y) - of_c(x, y)) <= 1  # Python rounds a hypotenuse its own way


def several(x: int, y: int) -> tuple[int, int, int]:
    return x + y, x - y, int(np.uint64(7))


def test_entries_return_tuples() -> None:
    call = compiled(several)
    for x, y in ((3, 5), (-(1 << 40), 1 << 50)):
        assert call(x, y) == several(x, y)
    before = sys.getrefcount(None)
    for _ in range(100):
        call(1, 2)
    assert sys.getrefcount(None) - before < 50


def of_records(numbers: int, record: int) -> int:
    """Tables of unsigned bytes and of floats, at unsigned places."""
    b = BYTES(numbers)
    r = RECORD(record)
    total = 0
    i = np.uint64(0)
    while i < np.uint64(r.count):
        r.out[i] += float(b[i]) * 0.5
        total += b[i]
        i += np.uint64(1)
    return total


def test_numbers_at_addresses_have_types() -> None:
    numbers, out = np.arange(250, 256, dtype=np.uint8), np.ones(6)
    record = np.array([out.ctypes.data, 5])
    call = compiled(of_records)
    assert call(numbers.ctypes.data, record.ctypes.data) == numbers[:5].sum()
    np.testing.assert_array_equal(out, [126.0, 126.5, 127.0, 127.5, 128.0, 1.0])


def turned(address: int, count: int) -> int:
    """Turn integers around, by way of room on the stack."""
    place = ROOM()
    for i in range(count):
        write_i64(place + 8 * i, read_i64(address + 8 * i))
    for i in range(count):
        write_i64(address + 8 * i, read_i64(place + 8 * (count - 1 - i)))
    return place % 64


def test_there_is_room_on_the_stack() -> None:
    numbers = np.arange(5)
    assert compiled(turned)(numbers.ctypes.data, 5) == 0
    assert njit(turned)(numbers.ctypes.data, 3) == 0
    assert numbers.tolist() == [2, 3, 4, 1, 0]


def hinted(x: int, y: int) -> int:
    return (x if likely(x != 0) else 5) + y


def test_what_is_likely_is_only_a_hint() -> None:
    assert [compiled(hinted)(x, 1) for x in (3, 0)] == [4, 6]
    assert [njit(hinted)(x, 1) for x in (3, 0)] == [4, 6]


def test_numba_compiles_the_same_functions() -> None:
    compare = njit(error_model="numpy")(arithmetic)
    for x, y in ((-9, 4), (17, -5), (1 << 50, 3)):
        assert compare(x, y) == compiled(arithmetic)(x, y) == arithmetic(x, y)


def test_zero_divides_without_an_error() -> None:
    """As everywhere in kernels, which raise nothing."""

    def divided(x: int, y: int) -> int:
        return x // y + (1 if math.isinf(1.0 / float(y)) else 0)

    assert compiled(divided)(5, 0) == 1


def listed(x: int) -> int:
    return [x][0]


def caught(x: int) -> int:
    try:
        return x
    finally:
        pass


def keyword(x: int) -> int:
    return int(x=x)


def unknown(x: int) -> int:
    return x + absent  # type: ignore[name-defined]  # noqa: F821


def over_items(x: int) -> int:
    total = 0
    for i in range(0, 10, x):
        total += i
    return total


def without_end(x: int) -> int:  # type: ignore[return]
    if x > 0:
        return 1


def of_two_kinds(x: int) -> int:
    value = x
    if x > 0:
        value = halved(x)  # type: ignore[assignment]
    return value


@pytest.mark.parametrize(
    "function", [listed, caught, keyword, unknown, over_items, without_end, of_two_kinds]
)
def test_anything_else_is_refused(function: Callable[..., int]) -> None:
    with pytest.raises(NotImplementedError):
        compiled(function)


def test_a_refusal_names_the_place() -> None:
    with pytest.raises(NotImplementedError, match=r"test_translating\.py:\d+: .*: \[x\]"):
        compiled(listed)


def test_functions_without_a_file_have_a_source() -> None:
    source = "def text(x):\n    return x * 7\n"
    names: dict[str, Any] = {}
    exec(compile(source, "<text>", "exec"), names)
    names["text"].source = source
    assert compiled(names["text"])(6) == 42


def test_code_is_called_at_its_address_too() -> None:
    library = Library("of_memory", (), {}, {"of_memory": 2})
    address = link(library, build(library, {"of_memory": of_memory}))["of_memory"]
    numbers = np.array([1, 0])
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)
    kind(address)(4, numbers.ctypes.data)
    assert numbers[0] == 5
