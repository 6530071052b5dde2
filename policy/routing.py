"""Does the share that arrives at the new release agree with the share that was asked for?"""

from math import exp, lgamma, log


def routing_doubt(
    new: float, stable: float, share: int, *, tolerance: float = 0.02, chance: float = 1e-4
) -> str | None:
    """Why the observed split contradicts the configured share; None when it does not.

    A Dirichlet-multinomial e-value (Lindon & Malek 2020) against every share within `tolerance`:
    it exceeds 1/`chance` with probability `chance` at most, however often it is looked at."""
    total = new + stable
    if not total or not 0 < share < 100:
        return None
    wanted, observed = share / 100, new / total
    nearest = min(max(observed, wanted - tolerance), wanted + tolerance)
    nearest = min(max(nearest, 1e-6), 1 - 1e-6)
    a, b = 10 * wanted, 10 * (1 - wanted)
    log_e = lgamma(a + new) + lgamma(b + stable) - lgamma(a + b + total)
    log_e -= lgamma(a) + lgamma(b) - lgamma(a + b)
    log_e -= new * log(nearest) + stable * log(1 - nearest)
    if log_e < -log(chance):
        return None
    return (
        f"the router holds {share}% for the new release, but {observed * 100:.1f}% of "
        f"{total:.0f} requests arrived there (by chance: 1 in {exp(min(log_e, 20)):,.0f})"
    )
