"""Random programs, as a user would write them: plain NumPy source, differentiated.

A program is a few lines of source over variables ``v0, v1, ...``, of which the first are its
arguments.  A line is drawn from the tables below and kept where NumPy runs it on ndarrays, away
from kinks and from the ends of domains.  The gradient is compared with a complex step where NumPy
computes every function on complex numbers, and with central differences where it does not.
"""

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad import tape

STEP = 1e-200  # of the complex step: its error is of the square
LARGEST = 50.0  # values that a program may reach: differences of huge numbers say nothing
NAMES = {"np": np, "special": scipy.special}

# A line, and the condition under which it is smooth and well inside its domain. {0} and {1} are
# variables; lines with "=" assign, the result of others becomes the next variable.
ANALYTIC = {
    **dict.fromkeys(
        ["np.sin({0})", "np.cos({0})", "np.arctan({0} / 4)", "np.sinh({0} / 8)", "np.cosh({0} / 8)",
         "np.tanh({0})", "np.arcsinh({0} / 64)", "np.exp({0} / 16)", "np.exp2({0} / 16)",
         "np.expm1({0} / 16)", "np.square({0})", "-{0}", "+{0}", "{0} ** 2", "{0} ** 3", "{0} ** 0",
         "1.5 ** {0}"],
        "True",
    ),
    **dict.fromkeys(
        ["np.log({0})", "np.log2({0})", "np.log10({0})", "np.sqrt({0})", "{0} ** 0.5",
         "{0} ** -1.5", "np.power({0}, 1.3)"],
        "{0} > 0.1",
    ),
    **dict.fromkeys(["np.arcsin({0})", "np.arccos({0})", "np.arctanh({0})"], "abs({0}) < 0.9"),
    **dict.fromkeys(["1 / {0}", "np.reciprocal({0})", "{0} ** -2"], "abs({0}) > 0.1"),
    "np.arccosh({0})": "{0} > 1.1",
    "np.log1p({0})": "{0} > -0.9",
    "np.tan({0})": "abs(np.cos({0})) > 0.2",
    # Two operands, broadcast.
    **dict.fromkeys(
        ["{0} + {1}", "{0} - {1}", "{0} * {1}", "np.add({0}, {1})", "np.multiply({0}, {1})",
         "np.subtract.outer({0}, {1})", "np.outer({0}, {1})", "{0} @ {1}", "np.dot({0}, {1})"],
        "True",
    ),
    "{0} / {1}": "abs({1}) > 0.1",
    "{0} ** {1}": "({0} > 0.1) & (abs({1}) < 4)",
    # Constants on either side.
    **dict.fromkeys(
        ["{0} + 1.5", "2 - {0}", "{0} * 0.0", "{0} * -0.0", "True + {0}", "{0} - np.float64(0.5)",
         "{0} / 3", "np.float32(0.5) * {0}", "np.array([0.5, -1.0, 2.0]) * {0}",
         "{0} - np.array([[1.0], [-2.0]])", "np.arange(3) + {0}"],
        "True",
    ),
    # Shapes.
    **dict.fromkeys(
        ["{0}[0]", "{0}[-1]", "{0}[::-1]", "{0}[1:]", "{0}[..., 0]", "{0}[None]", "{0}[..., ::2]",
         "{0}[[0, -1, 0]]", "{0}[np.array([True, False])]", "{0}.T", "{0}.reshape(-1)",
         "{0}.ravel()", "{0}.copy()", "{0}.squeeze()", "np.swapaxes({0}, 0, -1)",
         "np.expand_dims({0}, 1)", "np.moveaxis({0}, 0, -1)", "np.broadcast_to({0}, (2, 3))",
         "np.stack([{0}, {1}])", "np.concatenate([{0}, {1}])", "np.hstack([{0}, {1}])",
         "np.vstack([{0}, {1}])", "np.append({0}, {1})", "np.roll({0}, 1)", "np.flip({0})",
         "np.repeat({0}, 2)", "np.tile({0}, 2)", "np.take({0}, [0, 0])", "np.diag({0})",
         "np.tril({0})", "np.full_like({0}, 1.0) * {0}", "np.zeros_like({0}) + {0}"],
        "True",
    ),
    # Reductions and scans.
    **dict.fromkeys(
        ["np.sum({0})", "{0}.sum(axis=0)", "np.sum({0}, axis=-1, keepdims=True)", "{0}.mean()",
         "np.mean({0}, axis=0)", "{0}.prod()", "np.prod({0}, axis=-1)", "np.cumsum({0})",
         "np.cumsum({0}, axis=0)", "np.cumprod({0}, axis=-1)", "np.trace({0})", "np.diff({0})"],
        "True",
    ),
    # Assignments.
    **dict.fromkeys(
        ["{0}[0] = {1}", "{0}[1:] = {1}", "{0}[..., -1] = 0.5", "{0}[::-1] = {0}",
         "{0}[1:] += {0}[:-1]", "{0}[[0, -1]] = {1}", "{0}[0] *= {1}", "{0} += {1}", "{0} *= 0.5",
         "{0} -= {1}", "{0}[:] = {1}"],
        "True",
    ),
}  # fmt: skip

APART = "abs({0} - {1}) > 0.05"
WHOLE = "abs({0} - np.round({0})) > 0.05"
SMOOTH = {
    **dict.fromkeys(
        ["np.maximum({0}, {1})", "np.minimum({0}, {1})", "np.fmax({0}, {1})", "np.fmin({0}, {1})",
         "np.where({0} > {1}, {0}, {1} * 2)", "({0} < {1}) * {0}"],
        APART,
    ),
    **dict.fromkeys(
        ["abs({0})", "np.fabs({0})", "np.cbrt({0})", "np.sign({0}) * {0}", "np.sinc({0})",
         "np.copysign({0}, -1.0)", "np.maximum({0}, 0)", "np.where({0} > 0, {0}, 0.1 * {0})",
         "np.heaviside({0}, 0.5) * {0}"],
        "abs({0}) > 0.1",
    ),
    **dict.fromkeys(
        ["np.floor({0}) + {0}", "np.ceil({0}) * {0}", "np.trunc({0}) - {0}", "{0} % 1.0",
         "np.rint({0} + 0.5) * {0}", "np.fmod({0}, 1.0)", "divmod({0}, 1.0)[1]", "np.modf({0})[0]"],
        WHOLE,
    ),
    **dict.fromkeys(["np.hypot({0}, {1})", "np.arctan2({0}, {1})"], "{0}**2 + {1}**2 > 0.1"),
    **dict.fromkeys(
        ["np.logaddexp({0}, {1})", "np.logaddexp2({0}, {1})", "special.erf({0})",
         "special.erfc({0})", "special.expit({0})", "special.log_expit({0})",
         "np.degrees({0}) / 99", "np.radians({0})"],
        "True",
    ),
    **dict.fromkeys(
        ["special.gamma({0})", "special.gammaln({0})", "special.psi({0})"],
        "({0} > 0.3) & ({0} < 4)",
    ),
    "special.logit({0})": "({0} > 0.1) & ({0} < 0.9)",
    "special.xlogy({0}, {1})": "{1} > 0.1",
    "special.xlog1py({0}, {1})": "{1} > -0.9",
    "np.clip({0}, -1, 1)": "abs(abs({0}) - 1) > 0.05",
    **dict.fromkeys(
        ["{0}.max()", "np.min({0})", "{0}.max(axis=0)", "np.amin({0}, axis=-1)"],
        "np.diff(np.sort({0}, axis=None)).min(initial=1.0) > 0.05",
    ),
}  # fmt: skip


def run(source, arguments):
    """Run a program and return the variables that it leaves."""
    variables = {f"v{i}": value for i, value in enumerate(arguments)}
    exec(source, NAMES, variables)
    return variables


def total(variables):
    """Return one number in which every element of every variable takes part."""
    result = 0.0
    for k, value in enumerate(variables.values()):
        weights = np.cos(np.arange(np.size(value)) + k).reshape(np.shape(value))
        result = result + np.sum(value * weights)
    return result


def works(line, condition, source, arguments):
    """Whether NumPy runs the line after the program, smoothly and without large values."""
    before = run(source, [a.copy() for a in arguments])
    try:
        with np.errstate(all="ignore"):
            if not np.all(eval(condition, NAMES, before)):
                return False
            after = run(source + line, [a.copy() for a in arguments])
    except (ValueError, IndexError, TypeError):  # shapes that do not fit, scalars assigned to
        return False
    return all(
        v.size <= 40 and v.dtype == float and np.all(abs(v) < LARGEST) for v in after.values()
    )


@st.composite
def programs(draw, table, most=8):
    """Draw arguments and the source of a program."""
    shapes = draw(st.lists(st.sampled_from([(), (3,), (2, 3), (2, 1)]), min_size=1, max_size=3))
    numbers = st.sampled_from([-2.3, -1.25, -0.7, -0.35, 0.0, 0.2, 0.45, 0.8, 1.3, 1.9, 2.6])
    arguments = []
    for shape in shapes:
        size = int(np.prod(shape))
        values = draw(st.lists(numbers, min_size=size, max_size=size))
        arguments.append(np.array(values).reshape(shape)[()])
    source, count = "", len(arguments)
    templates = sorted(table)
    for _ in range(most):
        names = [f"v{draw(st.integers(0, count - 1))}" for _ in range(2)]
        template = draw(st.sampled_from(templates))
        condition = table[template].format(*names)
        line = template.format(*names) + "\n"
        assigns = "= " in template
        if not assigns:
            line = f"v{count} = {line}"
        if works(line, condition, source, arguments):
            source, count = source + line, count + (not assigns)
    return arguments, source


def gradient(source, arguments):
    """Return the gradient by tapegrad, as one vector."""
    every = tuple(range(len(arguments)))
    with np.errstate(all="ignore"):
        found = tg.grad(lambda *args: total(run(source, args)), argnums=every)(*arguments)
    for part, argument in zip(found, arguments, strict=True):
        assert np.shape(part) == np.shape(argument)
    return np.concatenate([np.ravel(part) for part in found])


def differences(source, arguments, step):
    """Return the gradient by a complex step, or by central differences for a real one."""
    found = []
    for k, argument in enumerate(arguments):
        for i in np.ndindex(argument.shape):
            moved = np.zeros(argument.shape, type(step))
            moved[i] = step
            ends = []
            for sign in (1, -1):
                at = [np.array(a, type(step)) for a in arguments]
                at[k] += sign * moved
                ends.append(total(run(source, [a[()] for a in at])))
                if isinstance(step, complex):
                    break
            if isinstance(step, complex):
                found.append(ends[0].imag / step.imag)
            else:
                found.append((ends[0] - ends[1]) / (2 * step))
    return np.array(found)


@settings(max_examples=300)
@given(programs(ANALYTIC))
def test_gradients_agree_with_a_complex_step(program):
    arguments, source = program
    expected = differences(source, arguments, 1j * STEP)
    scale = 1 + abs(expected).max(initial=0.0)
    np.testing.assert_allclose(gradient(source, arguments), expected, rtol=0, atol=1e-12 * scale)


@settings(max_examples=200)
@given(programs(ANALYTIC | SMOOTH))
def test_gradients_agree_with_central_differences(program):
    arguments, source = program
    expected = differences(source, arguments, 1e-5)
    # The error is the third derivative times the square of the step: up to 1e4 of them here.
    scale = 1 + abs(expected).max(initial=0.0)
    np.testing.assert_allclose(gradient(source, arguments), expected, rtol=0, atol=1e-5 * scale)


@settings(max_examples=100)
@given(programs(ANALYTIC | SMOOTH))
def test_values_are_those_of_numpy(program):
    arguments, source = program
    expected = run(source, [a.copy() for a in arguments])
    found = run(source, [tg.array(a) * 1 for a in arguments])
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].value, value, rtol=1e-12, atol=1e-12)
        assert np.shape(found[name]) == np.shape(value)


@settings(max_examples=100)
@given(programs(ANALYTIC | SMOOTH))
def test_executors_agree(program):
    arguments, source = program
    with tg.executor("reference"):
        expected = gradient(source, arguments)
    with tg.executor("compiled"):
        found = gradient(source, arguments)
    # Both evaluate the same expressions; their libraries' functions differ in the last bits.
    scale = 1 + abs(expected).max(initial=0.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * scale)


@settings(max_examples=100)
@given(programs(ANALYTIC), st.integers(0, 12))
def test_a_program_spread_over_many_tapes_has_the_same_gradient(program, cells):
    """A recorder that starts a new tape every few cells, and values that travel between them."""
    arguments, source = program
    expected = gradient(source, arguments)
    scale = 1 + abs(expected).max(initial=0.0)
    usual, tape.SEGMENT_CELLS = tape.SEGMENT_CELLS, cells
    try:
        found = gradient(source, arguments)
        leaves = [tg.array(a) for a in arguments]
        copies = [leaf * 1 for leaf in leaves]
        with np.errstate(all="ignore"):
            variables = run(source, copies)
        total(variables).backward()
        at_once = np.concatenate([np.ravel(leaf.grad) for leaf in leaves])
        for leaf in leaves:
            leaf.zero_grad()
        for k, value in enumerate(variables.values()):  # the same total, a sweep a variable
            if value.requires_grad:
                value.backward(np.cos(np.arange(value.size) + k).reshape(value.shape))
        in_parts = np.concatenate([np.ravel(leaf.grad) for leaf in leaves])
    finally:
        tape.SEGMENT_CELLS = usual
    for result in (found, at_once, in_parts):
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("line", sorted(ANALYTIC | SMOOTH))
def test_every_line_is_reached(line):
    """Each line of the tables runs, and is differentiated, for some arguments."""
    table = ANALYTIC | SMOOTH
    rng = np.random.default_rng(1)
    text = (line if "= " in line else f"v2 = {line}").format("v0", "v1") + "\n"
    condition = table[line].format("v0", "v1")
    for shapes in [((3,), (3,)), ((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 2), (2,)), ((2,), ())] * 99:
        arguments = [np.asarray(rng.uniform(0.1, 2.0, shape)) for shape in shapes]
        if works(text, condition, "", arguments):
            found = gradient(text, arguments)
            expected = differences(text, arguments, 1e-6)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
            return
    raise AssertionError(f"no arguments suit {line}")


@settings(max_examples=80)
@given(programs(ANALYTIC | SMOOTH, most=6), st.integers(0, 2**32 - 1))
def test_derivatives_of_recorded_programs(program, seed):
    """Any code, recorded at one point and used at another, to second order and inside of others."""
    arguments, source = program
    every = tuple(range(len(arguments)))

    def f(*args):
        return total(run(source, args))

    with np.errstate(all="ignore"):
        recorded = tg.record(f, *arguments)
        gradient = recorded.gradient(every)
        moved = np.random.default_rng(seed).uniform(-0.01, 0.01, len(arguments))
        point = [a + d for a, d in zip(arguments, moved, strict=True)]
        try:
            value, found = recorded.value_and_grad(*point, argnums=every)
        except tg.ControlFlowChanged:
            point = arguments
            value, found = recorded.value_and_grad(*point, argnums=every)
        expected_value, expected = tg.value_and_grad(f, every)(*point)
        second = tg.hessian(f, every)(*point)
        checks = [
            (value, expected_value),
            (found, expected),
            (gradient(*point), expected),
            (tg.grad(lambda *args: recorded(*args) * 2.0, every)(*[a / 1.0 for a in point]),
             tg.trees.map(lambda g: 2.0 * g, expected)),
            (recorded.hessian(*point, argnums=every), second),
            (gradient.jacobian(*point, argnums=every, mode="forward"), second),
            (tg.hessian(recorded, every)(*point), second),
        ]  # fmt: skip
    for one, other in checks:
        scale = 1 + max(abs(np.asarray(x)).max(initial=0.0) for x in tg.trees.flatten(other)[0])
        if not np.isfinite(scale) or scale > 1e9:
            continue  # at a pole, where every way of adding has its own answer
        tg.trees.map(
            lambda a, b, s=scale: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * s),
            one,
            other,
        )
