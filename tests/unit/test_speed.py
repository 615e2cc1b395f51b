"""The words on a run's speed follow its numbers: what holds it back is named, and the advice can be followed."""

import pytest

from openjepa.training.speed import describe_speed

ROOM = {"workers": 2, "num_cores": 16, "device": "cuda"}


def rows(waiting: float, peak: float = 0.3, rate: float = 100.0) -> list[dict[str, float]]:
    return [{"images_per_s": rate, "fraction_of_peak": peak, "data_wait_frac": waiting}] * 3


@pytest.mark.parametrize(
    ("given", "machine", "words"),
    [
        (rows(0.71), ROOM, "5 more data.workers"),  # 2 workers feed 29 % of a step: 7 would feed all of it
        (rows(0.99), ROOM | {"num_cores": 6}, "4 more data.workers"),  # no more than there are cores
        (rows(1.0), ROOM, "14 more data.workers"),
        (rows(0.71), ROOM | {"workers": 16}, "every core is taken: `openjepa pack"),
        (rows(0.02, peak=0.75), ROOM, "matrix products hold it back"),
        (rows(0.02), ROOM, "raise data.batch_size"),
        (rows(0.02), ROOM | {"device": "cpu"}, "passes over memory"),
    ],
)
def test_the_bottleneck_is_named(given, machine, words):
    assert words in describe_speed(given, **machine)


def test_the_figures_are_medians():
    mixed = [*rows(0.0, rate=100.0), *rows(0.0, rate=1.0)[:2]]
    assert describe_speed(mixed, **ROOM).startswith("100 images/s, 30% of the peak of matrix products, 0% of each step waiting")
    assert describe_speed(rows(0.0, rate=3.254), **ROOM).startswith("3.3 images/s")
