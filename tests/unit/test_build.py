"""The time of a step, on a simulated machine whose answer is known."""

import pytest

from tests.machine import Machine, measure_on


@pytest.mark.parametrize("log_every_steps", [1, 10, 50])
@pytest.mark.parametrize("queue_s", [0.002, 0.02, 0.09])
def test_a_step_takes_as_long_as_the_gpu_computes_it(monkeypatch, queue_s, log_every_steps):
    machine = Machine(lambda _: queue_s, compute_s=0.1)
    found = measure_on(machine, monkeypatch, 100.0, log_every_steps=log_every_steps)
    assert found.seconds == pytest.approx(0.1)
    assert found.data_wait_frac == 0


def test_a_step_takes_as_long_as_it_takes_to_queue_where_that_is_longer(monkeypatch):
    found = measure_on(Machine(lambda _: 0.3, compute_s=0.1), monkeypatch, 100.0)
    assert found.seconds == pytest.approx(0.3, rel=0.05)  # what the GPU still does after a wait is not hidden: a tenth of 0.1 s


@pytest.mark.parametrize("deliver_s", [0.11, 0.2, 1.0])
def test_waiting_is_what_the_gpu_is_idle_for(monkeypatch, deliver_s):
    """A loader slower than the GPU: a step takes as long as its batch, and the GPU is idle for the rest of it."""
    found = measure_on(Machine(lambda _: 0.01, compute_s=0.1, deliver_s=deliver_s), monkeypatch, 1000.0)
    assert found.seconds == pytest.approx(deliver_s, rel=0.02)
    assert found.data_wait_frac == pytest.approx((deliver_s - 0.1) / deliver_s, rel=0.05)


@pytest.mark.parametrize("max_s", [0.0, 0.5, 1.7])
def test_measuring_ends_when_its_time_is_over(monkeypatch, max_s):
    machine = Machine(lambda _: 0.01, compute_s=0.1)
    measure_on(machine, monkeypatch, max_s)
    assert max_s <= machine.now <= max(max_s + 0.3, 0.5)


@pytest.mark.parametrize("shapes", [(), (0,), (0, 4, 7, 18), (0, 1, 2, 3, 4, 5, 6, 25, 40), tuple(range(19))])
def test_steps_that_compile_are_left_out(monkeypatch, shapes):
    """New shapes at these steps, each compiled for a hundred steps' time."""
    machine = Machine(lambda step: 10.0 if step in shapes else 0.01, compute_s=0.1)
    found = measure_on(machine, monkeypatch, 60.0, compiled=True)
    assert found.seconds == pytest.approx(0.1)


def test_compiling_may_take_as_long_as_the_run_and_no_longer(monkeypatch):
    """Measuring may take a twentieth of a run's 60 s: a machine that compiles on and on is stopped when the run would be over."""
    machine = Machine(lambda _: 10.0, compute_s=0.1)
    measure_on(machine, monkeypatch, 3.0, compiled=True)
    assert 60 <= machine.now <= 60 + 10.1
