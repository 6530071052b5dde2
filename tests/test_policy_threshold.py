"""The threshold judge: three answers, and what each is made of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.judge import Judge
from policy.release import Verdict
from policy.samples import Counters, Sample
from policy.threshold import judge

INF = float("inf")


def policy(**changes: object) -> Judge:
    return Judge.model_validate(
        {"method": "threshold", "errors": "at most 2%", "interval": 5} | changes
    )


def counters(requests: float, errors: float = 0, slow: float = 0) -> Counters:
    """`slow` of the requests take between 0.5 and 1 second, the rest under 0.1."""
    fast = requests - slow
    return Counters(requests, errors, {0.1: fast, 0.5: fast, 1.0: requests, INF: requests})


def samples(new: Counters | None, stable: Counters | None = None, n: int = 10) -> list[Sample]:
    return [Sample(float(second), new, stable, 10) for second in range(1, n + 1)]


def verdict(trace: list[Sample], rules: Judge, now: float = 10.0, first: bool = False) -> Verdict:
    return judge(trace, rules, since=0.0, now=now, first=first).verdict


def test_good() -> None:
    assert verdict(samples(counters(10)), policy()) is Verdict.PASS


def test_bad() -> None:
    judgement = judge(samples(counters(10, errors=1)), policy(), since=0, now=10)
    assert judgement.verdict is Verdict.FAIL
    assert judgement.reason == "errors 10.00% is over 2.00% (at most 2%; 50 requests)"


def test_the_first_interval_must_be_over() -> None:
    judgement = judge(samples(counters(10, errors=9), n=4), policy(), since=0, now=4)
    assert judgement.verdict is Verdict.UNSURE
    assert judgement.reason == "first measurement in 1s"


@pytest.mark.parametrize("errors", [0, 3])
def test_too_few_requests_prove_nothing(errors: float) -> None:
    judgement = judge(samples(counters(3, errors)), policy(), since=0, now=10)
    assert judgement.verdict is Verdict.UNSURE
    assert "15 requests in 5s, 20 needed" in judgement.reason


def test_a_silent_source_proves_nothing() -> None:
    judgement = judge(samples(None), policy(), since=0, now=10)
    assert judgement.verdict is Verdict.UNSURE
    assert "did not answer" in judgement.reason


def test_no_samples_prove_nothing() -> None:
    assert verdict([], policy()) is Verdict.UNSURE


def test_failures_are_forgiven_up_to_the_limit() -> None:
    one_bad = [*samples(counters(10, 5), n=5), *samples(counters(10), n=10)[5:]]
    assert verdict(one_bad, policy()) is Verdict.FAIL
    assert verdict(one_bad, policy(failure_limit=1)) is Verdict.PASS


def test_relative_to_stable() -> None:
    rules = policy(errors="at most 1.5x stable")
    assert verdict(samples(counters(10, 1), counters(100, 10)), rules) is Verdict.PASS
    assert verdict(samples(counters(10, 2), counters(100, 10)), rules) is Verdict.FAIL
    assert verdict(samples(counters(10, 2), counters(1, 0)), rules) is Verdict.UNSURE


def test_relative_to_what_stable_did_before_it_lost_all_traffic() -> None:
    rules = policy(errors="at most 1.5x stable")
    before = [Sample(float(at), counters(1), counters(100, 10), 10) for at in range(1, 6)]
    for errors, expected in ((1, Verdict.PASS), (2, Verdict.FAIL)):
        after = [Sample(float(at), counters(10, errors), counters(0), 100) for at in range(6, 16)]
        assert judge([*before, *after], rules, since=5, now=15).verdict is expected


def test_latency() -> None:
    rules = policy(errors=None, p95="at most 500ms")
    assert verdict(samples(counters(10)), rules) is Verdict.PASS
    assert verdict(samples(counters(10, slow=1)), rules) is Verdict.FAIL
    compared = policy(errors=None, p95="at most 1.3x stable")
    slow = counters(100, slow=50)
    assert verdict(samples(slow, slow), compared) is Verdict.PASS
    assert verdict(samples(slow, counters(100)), compared) is Verdict.FAIL


def test_one_bad_metric_is_enough() -> None:
    rules = policy(p95="at most 500ms")
    assert verdict(samples(counters(10, slow=5)), rules) is Verdict.FAIL


def test_what_came_before_the_shift_does_not_count() -> None:
    trace = [*samples(counters(10, 10), n=5), *samples(counters(10), n=15)[5:]]
    assert judge(trace, policy(), since=5, now=15).verdict is Verdict.PASS


def test_a_first_release_has_nothing_to_be_compared_with() -> None:
    rules = policy(errors="at most 1.5x stable")
    assert verdict(samples(counters(10, 10)), rules, first=True) is Verdict.UNSURE
    assert verdict(samples(counters(10, 10)), policy(), first=True) is Verdict.FAIL


def test_a_source_that_was_restarted_begins_at_zero() -> None:
    assert counters(5, 1).since(counters(100, 50)) == counters(5, 1)
    assert counters(150, 60, 3).since(counters(100, 50, 1)) == counters(50, 10, 2)


def test_quantiles_interpolate() -> None:
    assert counters(100).quantile(0.5) == pytest.approx(0.05)
    assert counters(100, slow=100).quantile(0.5) == pytest.approx(0.75)
    assert Counters().quantile(0.5) is None
    assert Counters(10, 0, {0.1: 0, INF: 10}).quantile(0.99) == 0.1


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=30),
    st.integers(0, 3),
)
def test_without_errors_nothing_ever_fails(pairs: list[tuple[int, int]], limit: int) -> None:
    trace = [
        Sample(float(n), counters(new), counters(old), 10) for n, (new, old) in enumerate(pairs, 1)
    ]
    for rules in (policy(failure_limit=limit), policy(errors="at most 1x stable")):
        assert verdict(trace, rules, now=30) is not Verdict.FAIL


def test_a_source_that_began_again_between_two_looks_takes_no_answers_back() -> None:
    """It has more requests than before by now, but not in every bucket."""
    before = Counters(5, 0, {0.1: 5, INF: 5})
    assert Counters(6, 0, {0.1: 2, INF: 6}).since(before) == Counters(6, 0, {0.1: 2, INF: 6})
    assert Counters(9, 1, {0.1: 7, INF: 9}).since(before) == Counters(4, 1, {0.1: 2, INF: 4})
