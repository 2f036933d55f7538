"""Exceptions, and the place in the user's code that they name.

Every exception derives from the class a NumPy user expects, so that existing ``except`` clauses
keep working.
"""

from __future__ import annotations

import os
import sys
from typing import Any

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_KERNELS = os.path.join(os.path.dirname(os.path.dirname(_PACKAGE)), "kernels") + os.sep
_NUMPY = os.sep + "numpy" + os.sep


class TapeGradError(Exception):
    """Base of the exceptions that only tapegrad raises."""


class LostGradientError(TapeGradError, TypeError):
    """A tracked value was about to become a plain number, which would lose its gradient."""


class NotDifferentiableError(TapeGradError, TypeError):
    """An operation has no derivative, or tapegrad does not know it yet."""


class ReleasedTapeError(TapeGradError, RuntimeError):
    """A value was used after the recording that it belongs to had been released."""


class EnclosedError(TapeGradError, NotImplementedError):
    """A program was recorded inside a derivative, and uses a value of that derivative."""


class ThreadError(TapeGradError, RuntimeError):
    """A value of a recording that another thread is still making was used."""


class ControlFlowChanged(TapeGradError, RuntimeError):
    """A replayed program would have taken another way through the recorded code.

    Attributes
    ----------
    decision : tapegrad.decisions.Decision
        The decision that differs: ``what``, ``file``, ``line`` and the recorded ``outcome``.
    outcome : object
        What the replay answers instead.
    sample : int or None
        In a batch, the first sample that does.
    """

    def __init__(self, message: str, decision: object, outcome: object) -> None:
        super().__init__(message)
        self.decision = decision
        self.outcome = outcome
        self.number = -1  # of the decision in its program
        self.sample: int | None = None


class TapeFormatError(TapeGradError, ValueError):
    """A file, or another tape from outside, is not a program that can be run safely."""


class NoGradientError(TapeGradError, RuntimeError):
    """``backward`` was called on a value that depends on nothing that requires a gradient."""


class DeviceUnavailable(TapeGradError, RuntimeError):
    """There is no CUDA device to run on: no GPU, no driver, or the package that drives it."""


class MixedDevicesError(TapeGradError, ValueError):
    """Arrays that one computation takes are not all on its device."""


class DeviceLostError(TapeGradError, RuntimeError):
    """A CUDA device stopped working, or is gone; what was in its memory is lost."""


class GradientMismatch(TapeGradError, AssertionError):
    """A derivative differs from the numerical one (see `tapegrad.check_gradients`).

    Attributes
    ----------
    faults : list of Fault
        The operations found at fault; may be empty.
    """

    def __init__(self, message: str, faults: list[Any] | None = None) -> None:
        super().__init__(message)
        self.faults = faults or []


def is_internal(path: str) -> bool:
    """Whether a source file is tapegrad's or NumPy's, or none at all."""
    return path.startswith((_PACKAGE, _KERNELS, "<frozen", "<__array_function__")) or _NUMPY in path


def caller() -> tuple[str, int]:
    """Return file name and line of the innermost frame outside tapegrad and NumPy."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not is_internal(name):
            return name, frame.f_lineno
        if frame.f_back is None:
            break
        frame = frame.f_back
    return "<unknown>", 0


def at_caller() -> str:
    """Return ``" (script.py:12)"``, the user's line, to end an error message with."""
    name, line = caller()
    return f" ({os.path.basename(name)}:{line})"
