"""w3 with Black-Scholes: the value of many calls, by all five arrays. See `w3`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .case import Options, Peers
from .w3 import ROOT_HALF, Workload

PEERS = Peers()
OPERATIONS = 27  # of an option


def operations(options: Options) -> int:
    """Return the number of elementary operations of one evaluation."""
    return (options.n or 1_000_000) * OPERATIONS


def arrays(options: Options) -> list[Any]:
    """Return spot, strike, time, rate and volatility of each option."""
    rng = np.random.default_rng(0)
    limits = ((80.0, 120.0), (80.0, 120.0), (0.2, 2.0), (0.01, 0.05), (0.1, 0.5))
    return [rng.uniform(low, high, options.n or 1_000_000) for low, high in limits]


def function(xp: Any, erf: Any) -> Callable[..., Any]:
    """Return the function in the terms of a system."""

    def black_scholes(spot: Any, strike: Any, time: Any, rate: Any, volatility: Any) -> Any:
        vs = volatility * xp.sqrt(time)
        half = 0.5 * volatility * volatility
        d1 = (xp.log(spot / strike) + (rate + half) * time) / vs
        d2 = d1 - vs
        held = spot * (0.5 * (1.0 + erf(d1 * ROOT_HALF)))
        owed = strike * xp.exp(-(rate * time)) * (0.5 * (1.0 + erf(d2 * ROOT_HALF)))
        return xp.sum(held - owed)

    return black_scholes


Workload(arrays, function, "black_scholes").enter(PEERS)
