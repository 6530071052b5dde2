import pytest

from policy.errors import BadInput
from policy.quantities import in_words, moment, percent, seconds, size_bytes, whole_percent


@pytest.mark.parametrize(
    ("text", "value"),
    [("500ms", 0.5), ("20s", 20), ("1h 30m", 5400), ("2d", 172800), (7, 7), (0.25, 0.25)],
)
def test_durations(text: object, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "10", "10x", "ten seconds", "1h2", None, True, [], -1])
def test_no_durations(text: object) -> None:
    with pytest.raises(ValueError, match=r"duration|negative"):
        seconds(text)


@pytest.mark.parametrize(("text", "value"), [("512M", 2**29), ("1.5GiB", 1610612736), (9, 9)])
def test_sizes(text: object, value: int) -> None:
    assert size_bytes(text) == value


@pytest.mark.parametrize("text", ["", "M", "1 X", 0, -3, True, None])
def test_no_sizes(text: object) -> None:
    with pytest.raises(ValueError, match="not a size"):
        size_bytes(text)


def test_shares() -> None:
    assert percent("5%") == 5
    assert percent(0.5) == 0.5
    assert whole_percent("100 %") == 100
    for wrong in ("101%", "-1%", "5", "x%", None, True):
        with pytest.raises(ValueError, match=r"share|outside"):
            percent(wrong)
    with pytest.raises(ValueError, match="whole"):
        whole_percent("2.5%")


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.25, "250ms"), (0, "0ms"), (90, "1m 30s"), (3600, "1h"), (61.5, "1m 1.5s")],
)
def test_in_words(value: float, words: str) -> None:
    assert in_words(value) == words


@pytest.mark.parametrize("words", ["yesterday", "2026-11-25T02:15:00", "02:15"])
def test_a_moment_without_a_zone_is_none(words: str) -> None:
    with pytest.raises(BadInput, match="time zone"):
        moment(words)


def test_a_moment() -> None:
    assert moment("2026-11-25T02:15:00Z") == moment("2026-11-25T03:15:00+01:00")
