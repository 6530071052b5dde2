"""Traffic for the judge's benchmark: many trials at once, one a lane, a second at a time.

Each shape obeys the same laws for both releases; what happens to one is independent of the other,
but for the outage, which both share. Rates are errors per answer.
"""

from collections.abc import Callable

import numpy as np

from policy.e_process import Array, Tick

Rates = Callable[[int], Array]  # second -> (2, lanes): of the new release and of the stable one


def ticks(
    shape: str,
    random: np.random.Generator,
    *,
    lanes: int,
    seconds: int,
    per_second: float,
    share: float,
    rates: tuple[float, float],
) -> Callable[[int], Tick | None]:
    """-> what policy.bets.simulated asks for. `rates`: of the new and of the stable release."""
    own = np.array(rates)[:, None] * np.ones((2, lanes))
    phase = random.uniform(0, 2 * np.pi, lanes)
    wander = random.normal(size=(2, lanes))
    until = np.zeros((2, lanes))
    outage_at = random.uniform(0, seconds, lanes)

    def tick(second: int) -> Tick | None:
        nonlocal wander, until
        if second >= seconds:
            return None
        volume, rate, clump = np.full(lanes, per_second), own, 1
        if shape == "day curve":
            tide = np.sin(2 * np.pi * second / 7200 + phase)
            volume, rate = volume * (1 + 0.8 * tide), own * (1 - 0.7 * tide)
        elif shape == "autocorrelated":
            # AR(1) of the logarithm, coefficient 0.9 a second, standard deviation 1.
            wander = 0.9 * wander + np.sqrt(1 - 0.81) * random.normal(size=(2, lanes))
            rate = own * np.exp(wander - 0.5)
        elif shape == "retry storms":
            clump = 4
        elif shape.startswith("bad node"):
            every = 3600 if "hour" in shape else 600
            begins = random.random((2, lanes)) < 1 / every
            until = np.where(begins, second + random.exponential(5, (2, lanes)), until)
            rate = np.where(until > second, np.maximum(own, 0.5), own)
        elif shape == "shared outage":
            out = (second >= outage_at) & (second < outage_at + 60)
            rate = np.where(out, np.maximum(own, 0.5), own)
        requests = random.poisson(volume * np.array([share, 1 - share])[:, None])
        bad = random.binomial(requests, np.clip(rate / clump, 0, 1))
        if clump > 1:  # each is tried again by its caller, and fails again
            again = random.negative_binomial(np.maximum(bad, 1), 1 / clump)
            bad = np.minimum(bad + np.where(bad > 0, again, 0), requests)
        both = [n.astype(float) for n in (bad[0], requests[0], bad[1], requests[1])]
        return Tick(*both)

    return tick


SHAPES = (
    "Poisson",
    "day curve",
    "autocorrelated",
    "retry storms",
    "bad node every 10 min",
    "bad node every hour",
    "shared outage",
)
