"""The sequential judge: its promise, its three answers, and what each is made of."""

from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.bets import Bets, Terms, simulated
from policy.canary import (
    NOTHING_LEARNED,
    SequentialJudge,
    judge_of,
    learned_from,
)
from policy.e_process import (
    BETTER,
    STAKES,
    WORSE,
    Array,
    Dispersion,
    Tick,
    absolute_factors,
    bounded_factors,
    ratio_factors,
)
from policy.judge import Judge
from policy.release import Verdict
from policy.routing import routing_doubt
from policy.samples import Counters, Judgement, Sample

INF = float("inf")
BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
rates = st.floats(1e-4, 0.6)
ratios = st.floats(1.0, 3.0)


def tick(*counts: float) -> Tick:
    return Tick(*(np.array([count], dtype=float) for count in counts))


def expected(factors: Array) -> float:
    return float(np.exp(factors).max())


# -- the promise, exactly: the expectation of every bet is at most 1 ----------------------------


@given(rates, ratios, st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_a_bet_on_the_ratio_expects_no_gain(
    stable_rate: float, limit: float, new: int, stable: int
) -> None:
    """Summed over every possible outcome of independent answers, at the limit and below it."""
    for new_rate in (limit * stable_rate, stable_rate):
        if new_rate > 1:
            continue
        total = np.zeros(len(WORSE))
        for c in range(new + 1):
            for b in range(stable + 1):
                chance = binomial(c, new, new_rate) * binomial(b, stable, stable_rate)
                factors = ratio_factors(tick(c, new, b, stable), np.array([limit]), WORSE)
                total += chance * np.exp(factors[0])
        assert total.max() <= 1 + 1e-9


@given(rates, st.integers(1, 20), st.sampled_from(["at", "below"]))
def test_a_bet_on_a_rate_expects_no_gain(limit: float, requests: int, where: str) -> None:
    rate = limit if where == "at" else limit / 2
    total = np.zeros(len(WORSE))
    for bad in range(requests + 1):
        factors = absolute_factors(
            np.array([float(bad)]), np.array([float(requests)]), np.array([limit]), WORSE
        )
        total += binomial(bad, requests, rate) * np.exp(factors[0])
    assert total.max() <= 1 + 1e-9


@given(rates, st.integers(1, 20))
def test_a_bet_that_a_rate_is_low_expects_no_gain_above_it(limit: float, requests: int) -> None:
    total = np.zeros(len(BETTER))
    for bad in range(requests + 1):
        factors = absolute_factors(
            np.array([float(bad)]), np.array([float(requests)]), np.array([limit]), BETTER
        )
        total += binomial(bad, requests, min(1.0, limit * 1.3)) * np.exp(factors[0])
    assert total.max() <= 1 + 1e-9


@given(st.lists(st.tuples(rates, st.floats(0.05, 1)), min_size=1, max_size=6), ratios)
def test_a_bounded_bet_expects_no_gain_whatever_the_bursts(
    outcomes: list[tuple[float, float]], limit: float
) -> None:
    """Any distribution of block rates, the same for both up to the limit, and independent."""
    weights = np.array([weight for _, weight in outcomes])
    weights /= weights.sum()
    total = np.zeros(len(STAKES))
    for (new, _), p in zip(outcomes, weights, strict=True):
        for (stable, _), q in zip(outcomes, weights, strict=True):
            factors = bounded_factors(
                np.array([min(1.0, new * limit)]), np.array([stable * limit]), np.array([0.3])
            )
            total += p * q * np.exp(factors[0])
    assert total.max() <= 1 + 1e-9


def binomial(k: int, n: int, p: float) -> float:
    from math import comb

    return comb(n, k) * p**k * (1 - p) ** (n - k)


# -- the promise, measured: looks every second, seeded ------------------------------------------


def trials(
    new_rate: float, *, seconds: int, number: int, limit: float, alpha: float = 0.05
) -> tuple[float, Bets]:
    """-> share of trials that ever failed, at 100 requests/s, 10 % canary, stable fails 0.5 %."""
    random = np.random.default_rng(7)

    def ticks(second: int) -> Tick | None:
        if second == seconds:
            return None
        new = random.poisson(10, number)
        stable = random.poisson(90, number)
        bad = random.binomial(new, new_rate), random.binomial(stable, 0.005)
        return Tick(*(np.asarray(n, dtype=float) for n in (bad[0], new, bad[1], stable)))

    failed_at, bets = simulated(np.full(number, limit), Terms(alpha, 0.05), ticks)
    return float(np.isfinite(failed_at).mean()), bets


def test_false_rollbacks_stay_under_the_stated_chance() -> None:
    """At the very limit, where they are most frequent: 900 looks at each of 400 trials."""
    failed, _ = trials(0.0075, seconds=900, number=400, limit=1.5)
    # Were the true rate over 5 %, fewer than this would be seen in under 1 % of such runs only.
    assert failed <= 0.05 + 2.33 * (0.05 * 0.95 / 400) ** 0.5
    assert failed > 0, "a judge that never fails is no judge"


def test_false_passes_stay_under_the_stated_chance() -> None:
    _, bets = trials(0.0075, seconds=900, number=400, limit=1.5)
    passed = float((bets.log_for() >= log(1 / 0.05)).mean())
    assert passed <= 0.05 + 2.33 * (0.05 * 0.95 / 400) ** 0.5


def test_a_release_twenty_times_worse_is_found_in_seconds() -> None:
    failed, _ = trials(0.1, seconds=25, number=200, limit=1.5)
    assert failed > 0.95


def test_a_shared_outage_convicts_nobody() -> None:
    random = np.random.default_rng(5)
    number = 300

    def ticks(second: int) -> Tick | None:
        if second == 300:
            return None
        rate = 0.6 if 100 <= second < 160 else 0.005
        new, stable = random.poisson(10, number), random.poisson(90, number)
        bad = random.binomial(new, rate), random.binomial(stable, rate)
        return Tick(*(np.asarray(n, dtype=float) for n in (bad[0], new, bad[1], stable)))

    failed_at, _ = simulated(np.full(number, 1.5), Terms(0.01, 0.05), ticks)
    assert np.isfinite(failed_at).mean() <= 0.01


def test_bursts_that_were_announced_convict_nobody() -> None:
    """One of two nodes fails for some seconds, about every five minutes, in either release."""
    random = np.random.default_rng(11)
    number = 200
    until = np.zeros((2, number))

    def ticks(second: int) -> Tick | None:
        nonlocal until
        if second == 900:
            return None
        begins = random.random((2, number)) < 1 / 300
        until = np.where(begins, second + random.exponential(5, (2, number)), until)
        rate = np.where(until > second, 0.5, 0.005)
        new, stable = random.poisson(10, number), random.poisson(90, number)
        bad = random.binomial(new, rate[0]), random.binomial(stable, rate[1])
        return Tick(*(np.asarray(n, dtype=float) for n in (bad[0], new, bad[1], stable)))

    failed_at, _ = simulated(np.full(number, 1.0), Terms(0.01, 0.05, burst_seconds=30), ticks)
    assert np.isfinite(failed_at).mean() <= 0.02


# -- the judge ----------------------------------------------------------------------------------


def policy(**changes: object) -> Judge:
    return Judge.model_validate({"errors": "at most 1.5x stable"} | changes)


def counters(requests: float, errors: float = 0, median: float = 0.03) -> Counters:
    """Latencies lognormal around the median."""
    from math import erf

    below = {b: requests * (1 + erf(log(b / median) / 0.8 / 2**0.5)) / 2 for b in BOUNDS}
    return Counters(requests, errors, below | {INF: requests})


def judged(
    new: Counters | None,
    stable: Counters | None,
    rules: Judge,
    seconds: int = 60,
    share: int = 10,
    first: bool = False,
) -> Judgement:
    judge = judge_of(rules, at=0.0, first=first)
    judge.shifted(0.0)
    for second in range(1, seconds + 1):
        judge.add(Sample(float(second), new, stable, share))
    return judge.judgement(float(seconds))


def test_worse_is_found_at_once_and_the_numbers_are_told() -> None:
    judgement = judged(counters(10, 2), counters(90, 0.5), policy(), seconds=4)
    assert judgement.verdict is Verdict.FAIL
    assert judgement.reason == (
        "errors 20.00% of 40, stable 0.56%: that is not at most 1.5x stable; "
        "by luck in at most 1% of good releases"
    )


def test_one_look_alone_never_convicts() -> None:
    judgement = judged(counters(100, 100), counters(900), policy(), seconds=1)
    assert judgement.verdict is Verdict.UNSURE


def test_a_stable_release_without_errors_is_no_excuse_for_one_error() -> None:
    judge = judge_of(policy(), at=0.0)
    for second in range(1, 61):
        judge.add(Sample(float(second), counters(10, second == 30), counters(90), 10))
    assert judge.judgement(60.0).verdict is Verdict.UNSURE


def test_good_enough_passes_early() -> None:
    judgement = judged(counters(10), counters(90, 0.5), policy())
    assert judgement.verdict is Verdict.PASS
    assert judgement.early
    assert "errors 0.00% of 600" in judgement.reason


def test_what_is_missing_is_told() -> None:
    judgement = judged(counters(10), counters(90, 0.5), policy(), seconds=10)
    assert judgement.verdict is Verdict.UNSURE
    assert "more requests to the new release are missing" in judgement.reason
    none = judged(counters(0), counters(10), policy())
    assert "no requests came to the new release" in none.reason


def test_the_estimate_of_what_is_missing_is_about_right() -> None:
    rules = policy(good_enough="1%")
    judge = judge_of(rules, at=0.0)
    said, passed = None, None
    for second in range(1, 200):
        judge.add(Sample(float(second), counters(10), counters(90, 0.5), 10))
        judgement = judge.judgement(float(second))
        if second == 20:
            words = judgement.reason.partition("about ")[2].partition(" more")[0]
            said = 200 + float(words.replace(",", ""))
        if judgement.verdict is Verdict.PASS:
            passed = second * 10
            break
    assert said
    assert passed
    assert 0.6 < said / passed < 1.6


def test_a_step_of_its_own_must_prove_itself_to_end_early() -> None:
    judge = judge_of(policy(), at=0.0)
    judge.shifted(0.0)
    for second in range(1, 61):
        judge.add(Sample(float(second), counters(10), counters(90, 0.5), 10))
    assert judge.judgement(60.0).early
    judge.shifted(60.0)
    judge.add(Sample(61.0, counters(5), counters(5), 50))
    later = judge.judgement(61.0)
    assert later.verdict is Verdict.UNSURE, "it has shown next to nothing yet"
    for second in range(62, 72):
        judge.add(Sample(float(second), counters(30), counters(30, 0.2), 50))
    later = judge.judgement(71.0)
    assert later.verdict is Verdict.PASS, "what was shown stays, and this step points there too"
    assert not later.early


def test_bad_at_the_last_step_is_found_without_a_stable_release_beside_it() -> None:
    judge = judge_of(policy(), at=0.0)
    for second in range(1, 61):
        judge.add(Sample(float(second), counters(10, 0.05), counters(90, 0.45), 10))
    judge.shifted(60.0)
    for second in range(61, 81):
        judge.add(Sample(float(second), counters(100, 20), None, 100))
    assert judge.judgement(80.0).verdict is Verdict.FAIL


def test_a_release_that_goes_bad_late_is_found_nearly_as_fast() -> None:
    judge = judge_of(policy(), at=0.0)
    judge.shifted(0.0)
    for second in range(1, 1801):
        judge.add(Sample(float(second), counters(10, 0.05), counters(90, 0.45), 10))
    assert judge.judgement(1800.0).verdict is not Verdict.FAIL
    for second in range(1801, 1821):
        judge.add(Sample(float(second), counters(10, 2), counters(90, 0.45), 10))
        if judge.judgement(float(second)).verdict is Verdict.FAIL:
            return
    pytest.fail("not found within 20 s")


def test_an_slo_is_judged_beside_the_comparison() -> None:
    both = policy(errors="at most 3x stable and at most 2%")
    assert judged(counters(10, 1), counters(90, 4.5), both).verdict is Verdict.FAIL
    one = policy(errors="at most 3x stable")
    assert judged(counters(10, 1), counters(90, 4.5), one).verdict is not Verdict.FAIL


def test_a_first_release_is_judged_by_its_slo_alone() -> None:
    bad, good = counters(10, 2), counters(10)
    rules = policy(errors="at most 1.5x stable and at most 2%")
    assert judged(bad, None, rules, share=100, first=True).verdict is Verdict.FAIL
    assert judged(good, None, rules, share=100, first=True).verdict is Verdict.PASS
    without = judged(bad, None, policy(), share=100, first=True)
    assert without.verdict is Verdict.UNSURE
    assert without.reason == "there is no stable release to compare with"


@pytest.mark.parametrize("metric", ["p50", "p95", "p99", "latency"])
def test_slower_is_found_and_as_fast_passes(metric: str) -> None:
    rules = Judge.model_validate({metric: "at most 1.3x stable"})
    slow = judged(counters(20, median=0.06), counters(180), rules, 120)
    assert slow.verdict is Verdict.FAIL
    assert "took longer than" in slow.reason
    assert judged(counters(20), counters(180), rules, 600).verdict is Verdict.PASS


def test_an_absolute_limit_of_latency() -> None:
    rules = Judge.model_validate({"p95": "at most 200ms"})
    assert judged(counters(20, median=0.2), counters(180), rules).verdict is Verdict.FAIL
    assert judged(counters(20), counters(180), rules).verdict is Verdict.PASS


def test_a_silent_source_proves_nothing() -> None:
    judge = judge_of(policy(), at=0.0)
    for second in range(1, 61):
        judge.add(Sample(float(second), counters(10), counters(90, 0.5), 10))
    judge.add(Sample(61.0, None, None, 10))
    judgement = judge.judgement(61.0)
    assert judgement.verdict is Verdict.UNSURE
    assert "did not answer" in judgement.reason


def test_custom_metrics_fail_after_the_misses_that_are_forgiven() -> None:
    rules = Judge.model_validate(
        {"metrics": [{"name": "queue", "command": "x", "at_most": 100, "misses": 1}]}
    )
    judge = judge_of(rules, at=0.0)
    assert judge.judgement(0.0).verdict is Verdict.UNSURE, "not asked yet"
    for value, verdict in (
        (50.0, Verdict.PASS),
        (150.0, Verdict.UNSURE),
        (50.0, Verdict.PASS),
        (None, Verdict.UNSURE),
        (150.0, Verdict.UNSURE),
        (151.0, Verdict.FAIL),
    ):
        judge.add(Sample(1.0, None, None, 10, {"queue": value}))
        assert judge.judgement(1.0).verdict is verdict, value
    assert judge.judgement(1.0).reason == "queue 151 is not at most 100, 2 times in a row"


def test_earlier_rollouts_teach_how_errors_scatter() -> None:
    """Bursts of ten seconds in either release: blocks of that length are bet on from then on."""
    random = np.random.default_rng(3)
    history = []
    for second in range(3000):
        burst = second % 150 < 8
        of_new = burst and (second // 150) % 2 == 0
        rates = (0.5 if of_new else 0.005), (0.5 if burst and not of_new else 0.005)
        new, stable = random.binomial(10, rates[0]), random.binomial(90, rates[1])
        history.append(Sample(float(second), Counters(10, new), Counters(90, stable), 10))
    learned = learned_from(history)
    assert learned.burst_seconds in (10, 60)
    judge = SequentialJudge(policy(), 0.0, False, learned)
    assert judge.burst_seconds == learned.burst_seconds
    assert learned_from([]) == NOTHING_LEARNED


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 100)),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from(["errors", "p50", "p99", "latency"]),
)
@settings(max_examples=50, deadline=None)
def test_without_errors_or_slowness_nothing_ever_fails(
    looks: list[tuple[int, int, int]], metric: str
) -> None:
    rules = Judge.model_validate({metric: "at most 1.5x stable"})
    judge = judge_of(rules, at=0.0)
    for second, (new, stable, share) in enumerate(looks, 1):
        judge.add(Sample(float(second), counters(new), counters(stable), share))
        assert judge.judgement(float(second)).verdict is not Verdict.FAIL


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 300)),
        min_size=5,
        max_size=60,
    )
)
def test_scatter_is_finite_and_at_least_one(counts: list[tuple[int, int, int]]) -> None:
    dispersion = Dispersion(1)
    for bad, stable_bad, more in counts:
        dispersion.add(tick(bad, bad + more / 10, stable_bad, stable_bad + more))
    assert 1 <= dispersion.index()[0] < INF


# -- the routing check --------------------------------------------------------------------------


def test_a_share_that_does_not_arrive_is_doubted() -> None:
    assert routing_doubt(100, 900, 10) is None
    assert "50.0% of 1000" in (routing_doubt(500, 500, 10) or "")
    assert routing_doubt(0, 0, 10) is None
    assert routing_doubt(1000, 0, 100) is None


@given(st.integers(0, 10**6), st.integers(1, 99))
def test_the_share_that_was_asked_for_is_never_doubted(total: int, share: int) -> None:
    new = round(total * share / 100)
    assert routing_doubt(new, total - new, share) is None


def test_looking_on_and_on_doubts_a_right_share_rarely() -> None:
    random = np.random.default_rng(2)
    doubted = 0
    for _ in range(200):
        new = stable = 0
        for count in random.binomial(50, 0.1, size=60):
            new, stable = new + count, stable + 50 - count
            if routing_doubt(new, stable, 10, tolerance=0.0, chance=0.05):
                doubted += 1
                break
    assert doubted <= 200 * 0.05 + 2.33 * (200 * 0.05 * 0.95) ** 0.5


def test_boundaries_that_do_not_fit_any_more_are_chosen_again() -> None:
    """The first answers after a start are slow; what is followed must not stay with them."""
    rules = Judge.model_validate({"p95": "at most 2x stable"})
    judge = judge_of(rules, at=0.0)
    judge.shifted(0.0)
    for second in range(1, 121):
        median = 0.3 if second < 6 else 0.02
        both = counters(10, median=median), counters(90, median=median)
        judge.add(Sample(float(second), *both, 10))
    assert judge.judgement(120.0).verdict is Verdict.PASS


# -- what must not pass ---------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 3])
def test_all_at_once_over_an_idle_stable_release_is_not_passed_unseen(before: float) -> None:
    """Blue-green: nothing is known of stable, and the new release fails two answers in five."""
    judge = judge_of(policy(), at=0.0)
    judge.add(Sample(1.0, None, counters(before), 0))
    judge.shifted(1.0)
    for second in range(2, 60):
        judge.add(Sample(float(second), counters(10, 4), None, 100))
        assert judge.judgement(float(second)).verdict is Verdict.UNSURE
    reason = judge.judgement(60.0).reason
    assert f"stable had {before} requests before, 200 are needed to compare" in reason


def test_a_slow_first_release_misses_its_slo() -> None:
    rules = Judge.model_validate({"p95": "at most 200ms"})
    slow = judged(counters(20, median=0.9), None, rules, share=100, first=True)
    assert slow.verdict is Verdict.FAIL


@pytest.mark.parametrize("metric", ["latency", "p95"])
def test_a_slow_tail_is_not_outvoted_by_fast_medians(metric: str) -> None:
    """Six in a hundred answers take ten times as long as the slowest of stable."""
    rules = Judge.model_validate({metric: "at most 1.3x stable"})
    judge = judge_of(rules, at=0.0)
    judge.shifted(0.0)
    for second in range(1, 121):
        new = counters(20)
        fast = {bound: 0.94 * n for bound, n in new.buckets.items()} | {INF: 20.0}
        judge.add(Sample(float(second), Counters(20, 0, fast), counters(180), 10))
        assert judge.judgement(float(second)).verdict is not Verdict.PASS


def test_what_the_first_step_has_shown_passes_no_later_one_that_is_bad() -> None:
    judge = judge_of(policy(), at=0.0)
    judge.shifted(0.0)
    for second in range(1, 121):
        judge.add(Sample(float(second), counters(10), counters(90, 0.3), 5))
    assert judge.judgement(120.0).verdict is Verdict.PASS
    judge.shifted(120.0)
    for second in range(121, 200):
        judge.add(Sample(float(second), counters(25, 0.3), counters(75, 0.2), 25))
        assert judge.judgement(float(second)).verdict is not Verdict.PASS


def test_numbers_of_ones_own_are_taken_anew_at_each_step_and_end_none_early() -> None:
    rules = Judge.model_validate({"metrics": [{"name": "queue", "command": "x", "at_most": 9}]})
    judge = judge_of(rules, at=0.0)
    judge.add(Sample(1.0, None, None, 5, {"queue": 1.0}))
    assert judge.judgement(1.0).verdict is Verdict.PASS
    assert not judge.judgement(1.0).early
    assert judge.judgement(1000.0).verdict is Verdict.UNSURE, "its last answer is long ago"
    judge.shifted(1.0)
    assert judge.judgement(2.0).verdict is Verdict.UNSURE


@pytest.mark.parametrize("jump", [-3000.0, 3600.0])
def test_a_clock_that_is_set_hides_nothing(jump: float) -> None:
    judge = judge_of(policy(), at=10_000.0)
    judge.shifted(10_000.0)
    for second in range(1, 61):
        judge.add(Sample(10_000.0 + second, counters(10), counters(90, 0.5), 10))
    for second in range(61, 120):
        judge.add(Sample(10_000.0 + second + jump, counters(10, 5), counters(90, 0.5), 10))
        if judge.judgement(10_000.0 + second + jump).verdict is Verdict.FAIL:
            return
    pytest.fail("not found within a minute")


@pytest.mark.parametrize("share", [0.75, 0.9])
def test_blocks_keep_the_promise_also_when_the_new_release_has_most_requests(share: float) -> None:
    random = np.random.default_rng(4)
    number = 150

    def ticks(second: int) -> Tick | None:
        if second == 1800:
            return None
        new, stable = random.poisson(2 * share, number), random.poisson(2 * (1 - share), number)
        bad = random.binomial(new, 0.01), random.binomial(stable, 0.01)
        return Tick(*(np.asarray(n, dtype=float) for n in (bad[0], new, bad[1], stable)))

    failed_at, _ = simulated(np.full(number, 1.5), Terms(0.01, 0.05, burst_seconds=30), ticks)
    assert np.isfinite(failed_at).mean() <= 0.02


def test_a_time_within_a_bucket_is_no_reason_to_fail() -> None:
    """All answers take 0.21 s; the histogram only knows that they are between 0.2 and 0.5 s."""
    rules = Judge.model_validate({"p95": "at most 250ms"})
    new = Counters(20, 0, {b: 0.0 if b < 0.5 else 20.0 for b in BOUNDS} | {INF: 20.0})
    assert judged(new, new, rules).verdict is Verdict.UNSURE


def test_a_burst_of_stable_does_not_blind_the_judge() -> None:
    judge = judge_of(policy(), at=0.0)
    judge.shifted(0.0)
    for second in range(1, 241):
        burst = 45 if 100 <= second < 110 else 0.5
        judge.add(Sample(float(second), counters(10, 0.05), counters(90, burst), 10))
    for second in range(241, 301):
        judge.add(Sample(float(second), counters(10, 3), counters(90, 0.5), 10))
        if judge.judgement(float(second)).verdict is Verdict.FAIL:
            return
    pytest.fail("not found within a minute")
