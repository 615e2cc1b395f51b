"""Which precision a device gets, what is said of it, and its peak: GPUs are simulated."""

import pytest
import torch

from openjepa.commands.auto import choose_recipe, look_at_machine
from openjepa.data.inspect import DataLook
from openjepa.engine import precision as module
from openjepa.engine.precision import (
    choose_precision,
    explain_precision,
    find_saturated_rate,
    measure_peak,
    measure_rate,
)

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


class Properties:
    total_memory, name = 16 * 2**30, "Tesla V100-SXM2-16GB"

    def __init__(self, major):
        self.major, self.minor = major, 0


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of a compute capability, as PyTorch sees it."""

    def plug_in(major):
        class Current:
            def __init__(self, device):
                pass

            def __enter__(self):
                pass

            def __exit__(self, *_):
                pass

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "device", Current)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties(major))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: Properties.name)
        monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)  # it can be emulated

    return plug_in


@pytest.mark.parametrize(("major", "asked", "chosen"), [
    (7, "bf16", "fp32"), (7, "fp16", "fp16"), (7, "fp32", "fp32"), (6, "bf16", "fp32"),
    (8, "bf16", "bf16"), (9, "bf16", "bf16"), (9, "fp16", "fp16"),
])  # fmt: skip
def test_a_gpu_without_bf16_computes_in_fp32(gpu, major, asked, chosen):
    gpu(major)
    assert choose_precision(GPU, asked) == chosen
    words = explain_precision(GPU, asked, chosen)
    if chosen == asked:
        assert words == ""
    else:
        assert all(word in words for word in ("V100", "bf16", "fp32", "--train.precision fp16")) and "CPU" not in words


def test_what_auto_says_of_the_precision_is_true(gpu):
    look = DataLook(num_images=5000, side_px=64, channels=3, num_looked_at=200)
    for major, value, word in ((7, "fp32", "emulates"), (8, "bf16", "release")):
        gpu(major)
        _, choices = choose_recipe(look, look_at_machine("cuda"))
        (choice,) = (choice for choice in choices if choice.key == "train.precision")
        assert choice.value == value and word in choice.reason


@pytest.fixture(autouse=True)
def _forget_measurements():
    module._cpu_emulates.cache_clear()
    yield
    module._cpu_emulates.cache_clear()


def test_a_busy_machine_does_not_make_emulation_look_fast(monkeypatch):
    """Products wait for one another where they have several threads: then all take as long, whatever the precision."""

    def product_s(dtype):
        own = 1.0 if dtype == torch.float32 else 50.0
        return own if torch.get_num_threads() == 1 else max(own, 60.0)

    monkeypatch.setattr(module, "_product_s", product_s)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert choose_precision(CPU, "bf16") == "fp32"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("slower", "chosen"), [(100.0, "fp32"), (2.1, "fp32"), (1.5, "bf16"), (0.5, "bf16")])
def test_a_cpu_that_emulates_computes_in_fp32(monkeypatch, slower, chosen):
    monkeypatch.setattr(module, "_product_s", lambda dtype: 1.0 if dtype == torch.float32 else slower)
    assert choose_precision(CPU, "bf16") == chosen
    words = explain_precision(CPU, "bf16", chosen)
    assert ("CPU emulates bf16" in words) == (chosen == "fp32")


def test_a_precision_kept_from_the_start_is_not_blamed_on_the_machine(gpu, monkeypatch):
    """A resumed run keeps what it was started in, whatever the recipe says now."""
    gpu(8)
    monkeypatch.setattr(module, "_product_s", lambda dtype: 1.0)
    for device in (GPU, CPU):
        for asked, kept in (("fp32", "bf16"), ("bf16", "fp32"), ("fp16", "fp32"), ("bf16", "fp16")):
            words = explain_precision(device, asked, kept)
            assert "emulates" not in words and "started" in words


@pytest.mark.parametrize("half_at", [100, 3000, 8000, 10**6])
def test_the_peak_is_of_a_product_that_fills_the_gpu(half_at):
    """Rates as of a machine that needs so large a side for half its peak: within 5 % of what the next doubling would give."""
    measured = []

    def rate(side):
        measured.append(side)
        return 1e15 * side**2 / (side**2 + half_at**2)

    found = find_saturated_rate(rate)
    assert measured == [2048 * 2**number for number in range(len(measured))]
    largest = measured[-1]
    assert found == pytest.approx(1e15 * largest**2 / (largest**2 + half_at**2))
    assert largest == 16384 or found <= 1.05 * 1e15 * (largest / 2) ** 2 / ((largest / 2) ** 2 + half_at**2)


def test_the_peak_is_what_fits_into_memory():
    def rate(side):
        if side > 4096:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return float(side)

    assert find_saturated_rate(rate) == 4096
    assert find_saturated_rate(lambda side: 1 / side) == 1 / 2048  # a rate that falls: the best is kept


def test_products_are_timed_from_wait_to_wait(monkeypatch):
    """A GPU of 1e12 FLOP/s whose first products take ten times as long; queueing one takes the CPU next to nothing."""
    flop_s, now, queued, started = 1e12, [0.0], [], []

    def multiply(left, right, out):
        slow = 10 if len(started) < module.PRODUCTS else 1
        started.append(left.shape)
        queued.append(slow * 2 * len(left) ** 3 / flop_s)
        now[0] += 1e-9

    def wait(_device):
        now[0] += sum(queued)
        queued.clear()

    monkeypatch.setattr(module.torch, "mm", multiply)
    monkeypatch.setattr(module, "wait_for", wait)
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    assert measure_rate(CPU, "fp32", 128) == pytest.approx(flop_s, rel=1e-3)


def test_a_gpus_peak_is_the_saturated_one_and_a_cpus_the_product_of_2048(monkeypatch):
    monkeypatch.setattr(module, "measure_rate", lambda device, precision, side: float(min(side, 8192)))
    monkeypatch.setattr(module, "_product_s", lambda dtype, side: 2.0)
    assert measure_peak(GPU, "bf16") == 8192
    assert measure_peak(CPU, "fp32") == 2048**3


def test_measuring_leaves_torchs_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert measure_rate(CPU, "fp32", 64) > 0
    assert torch.equal(torch.rand(1), expected)


def test_the_scale_is_read_where_it_lies():
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    assert float(module.read_scale(scaler, CPU)) == 512 == scaler.get_scale()
    assert float(module.read_scale(module.make_scaler(CPU, "fp32"), CPU)) == 1
