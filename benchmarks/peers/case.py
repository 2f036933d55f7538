"""What a peer's entry is made of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Options:
    """What a workload is asked to do. A size of 0 means the workload's usual one."""

    n: int = 0
    threads: int = 1
    cpu: int = -1


@dataclass
class Case:
    """One system, ready to be timed on one workload.

    Attributes
    ----------
    functions
        What to time: "primal" computes values, "grad" records and reverses afresh on each call,
        "replay" runs what was traced or compiled once.
    gradient
        The gradient, to be compared across systems; None where a system computes none.
    info
        Figures to print beside the times: seconds spent on tracing and compiling.
    """

    functions: dict[str, Callable[[], object]]
    gradient: Callable[[], Any] | None = None
    info: dict[str, float] = field(default_factory=dict)


Setup = Callable[[Options], Case]


class Peers(dict[str, Setup]):
    """The systems of a workload by name. Each entry imports its own system, when it is set up."""

    def add(self, setup: Setup) -> Setup:
        """Enter `setup` under its own name; a decorator."""
        self[setup.__name__] = setup
        return setup
