"""Questions that only a GPU can answer, each asked of the product's own functions: does what reading the code promised hold?

    python benchmarks/gpu_checks.py                      # 5 to 8 minutes on one GPU
    python benchmarks/gpu_checks.py step_time peak       # these alone
    DEVICE=cpu python benchmarks/gpu_checks.py           # proves that the questions can be asked; a CPU answers some trivially

Prints one JSON line a question: what is expected, what was found, whether that passed (null: not asked of this device), the card
and the versions. Exit status 1 if one failed. tests/unit/test_prefetch.py and tests/unit/test_fp8.py ask the rest.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from openjepa.commands.pretrain import pretrain
from openjepa.data.batch import MAIN
from openjepa.data.sources import ArraySource, open_source
from openjepa.data.workers import stream_items
from openjepa.engine.precision import choose_precision, measure_peak, measure_rate, pick_device
from openjepa.engine.prefetch import wait_for
from openjepa.evals.probe import Probe
from openjepa.nn.encoder import Encoder, normalise
from openjepa.recipe.edit import with_changes
from openjepa.recipe.files import load_recipe
from openjepa.recipe.sections import Recipe
from openjepa.runs.environment import describe_machine, describe_versions
from openjepa.training import trainer as train
from openjepa.training.build import make_batches, make_trainer, measure_step
from openjepa.training.memory import fit_memory, free_bytes
from openjepa.training.pace import Pace
from openjepa.training.trainer import StepRecord, Trainer

DEVICE = pick_device(os.environ.get("DEVICE", "auto"))
ON_GPU = DEVICE.type == "cuda"
MEAN, STD = [0.285], [0.353]  # of the embedded sample
PADDED = {"sampler": "multiblock", "context_scale": (0.85, 1.0), "target_scale": (0.15, 0.2)}  # contexts of many lengths
EVEN = {"sampler": "random"}  # contexts of one length, targets of another


class Found(NamedTuple):
    """An answer: the numbers, and whether they are as expected; None where this device cannot tell."""

    numbers: Any
    passed: bool | None


def make_recipe(changes: dict[str, Any] | None = None) -> Recipe:
    """The demo recipe, on a GPU with ViT-S, with these changes by dotted key."""
    values: dict[str, Any] = {
        "train.length": "200steps", "train.device": str(DEVICE), "train.precision": "bf16",
        "data.workers": 0, "data.batch_size": 128 if ON_GPU else 8,
    }  # fmt: skip
    if ON_GPU:
        values |= {
            "model.encoder": "small", "model.width": None, "model.depth": None, "model.heads": None, "optim.lr": 5e-4,
            "method.predictor.width": 192, "method.predictor.depth": 4, "method.predictor.heads": 6,
        }  # fmt: skip
    return with_changes(load_recipe("demo"), values | (changes or {}))


def train_some(recipe: Recipe, steps: int) -> tuple[Trainer, list[StepRecord]]:
    """A trainer after some steps from the start, and their records."""
    trainer = make_trainer(recipe, MEAN, STD, 200, choose_precision(DEVICE, recipe.train.precision))
    records = list(trainer.steps(make_batches(recipe, SOURCE, 0, steps)))
    wait_for(DEVICE)
    return trainer, records


def list_losses(records: list[StepRecord]) -> list[float]:
    """The loss of every step."""
    return [float(record.metrics["loss"]) for record in records]


def precision() -> Found:
    """Is bf16 chosen where the device multiplies it, and fp32 where it would be emulated? | bf16 from Ampere on, else fp32"""
    chosen = choose_precision(DEVICE, "bf16")
    if not ON_GPU:
        return Found({"chosen": chosen}, None)
    capability = torch.cuda.get_device_capability(DEVICE)
    return Found({"capability": capability, "chosen": chosen}, chosen == ("bf16" if capability >= (8, 0) else "fp32"))


def step_time() -> Found:
    """Does measure_step find what a step takes in a run? | within 5 %"""
    recipe, steps = make_recipe(), 60 if ON_GPU else 12
    trainer, _ = train_some(recipe, 5)
    started = time.perf_counter()
    list(trainer.steps(make_batches(recipe, SOURCE, 5, 5 + steps)))
    wait_for(DEVICE)
    true_s = (time.perf_counter() - started) / steps
    ratio = measure_step(recipe, SOURCE, MEAN, STD, 60.0).seconds / true_s
    return Found({"true_ms": 1000 * true_s, "measured_over_true": ratio}, abs(ratio - 1) < 0.05 if ON_GPU else None)


def no_waiting() -> Found:
    """Does a step wait for its device? | in no precision, overflows included"""
    if not ON_GPU:
        return Found("a CPU has done all at once", None)
    waits = {}
    for name in ("fp32", "bf16", "fp16"):
        recipe = make_recipe({"train.precision": name})
        trainer, _ = train_some(recipe, 2)  # libraries start
        (batch,) = make_batches(recipe, SOURCE, 2, 3)
        torch.cuda.set_sync_debug_mode("error")
        try:
            trainer.step([batch])
            waits[name] = "none"
        except RuntimeError as error:
            waits[name] = str(error).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Found(waits, set(waits.values()) == {"none"})


def free_memory() -> Found:
    """Does batch_size auto count as free what PyTorch keeps of old tensors? | free before and after emptying the cache: 5 %"""
    fit_memory(make_recipe({"data.image_size": 56}))
    before = free_bytes(DEVICE)
    torch.cuda.empty_cache()  # does nothing without a GPU
    after = free_bytes(DEVICE)
    return Found({"before_gb": before / 2**30, "after_gb": after / 2**30}, abs(before / after - 1) < 0.05 if ON_GPU else None)


def peak() -> Found:
    """Is the measured peak that of products which fill the card? | no size's rate is more than 5 % above it"""
    chosen = choose_precision(DEVICE, "bf16")
    sides = (2048, 4096, 8192) if ON_GPU else (256,)
    rates = {str(side): measure_rate(DEVICE, chosen, side) for side in sides}
    found = measure_peak(DEVICE, chosen)
    return Found({"peak": found, **rates}, max(rates.values()) < 1.05 * found if ON_GPU else None)


def fp16_overflows() -> Found:
    """Are the scaler's overflows counted apart from broken steps? | no broken step, finite gradient norms"""
    trainer, records = train_some(make_recipe({"train.precision": "fp16"}), 150 if ON_GPU else 3)
    trainer.find_skipped()
    norms = [float(record.grad_norm) for record in records]
    numbers = {"broken": trainer.num_skipped, "overflows": trainer.num_overflows, "largest_grad_norm": max(norms)}
    return Found(numbers, trainer.num_skipped == 0 and max(norms) < float("inf"))


def equal_runs() -> Found:
    """Do two equal runs agree? | bit by bit on a CPU; on a GPU their losses to 1 %"""
    runs = [train_some(make_recipe(), 30 if ON_GPU else 2) for _ in range(2)]
    weights = zip(*(trainer.method.state_dict().values() for trainer, _ in runs), strict=True)
    differ = sum(not torch.equal(one, other) for one, other in weights)
    losses = zip(*(list_losses(records) for _, records in runs), strict=True)
    difference = max(abs(one / other - 1) for one, other in losses)
    numbers = {"weights_that_differ": differ, "largest_difference_of_a_loss": difference}
    return Found(numbers, difference < 0.01 if ON_GPU else differ == 0)


def placed_ahead() -> Found:
    """Are batches that are copied while the GPU computes the right ones? | losses as with every copy waited for, to 0.1 %"""
    recipe, steps = make_recipe({"train.precision": "fp32", "views.main.mask": PADDED}), 60 if ON_GPU else 3
    ahead = list_losses(train_some(recipe, steps)[1])
    place_ahead = train.place_ahead

    def place_and_wait(items: Any, place: Callable[[Any], Any], device: torch.device) -> Any:
        for item in items:
            wait_for(device)
            placed = place(item)
            wait_for(device)
            yield placed

    train.place_ahead = place_and_wait  # type: ignore[assignment]
    try:
        waited = list_losses(train_some(recipe, steps)[1])
    finally:
        train.place_ahead = place_ahead
    difference = max(abs(one / other - 1) for one, other in zip(ahead, waited, strict=True))
    return Found({"largest_difference_of_a_loss": difference}, difference < 1e-3)


def attention_kernels() -> Found:
    """Which fused attention kernels can compute? | flash where nothing is padded; another one where contexts are"""
    if not ON_GPU:
        return Found("a CPU computes short sequences explicitly", None)
    kernels = {
        "flash": [SDPBackend.FLASH_ATTENTION],
        "other": [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION],
    }
    works = {}
    for name, mask in (("padded", PADDED), ("even", EVEN)):
        for kernel, backends in kernels.items():
            try:
                with sdpa_kernel(backends):
                    train_some(make_recipe({"views.main.mask": mask, "data.batch_size": 32}), 2)
                works[f"{name}, {kernel}"] = True
            except RuntimeError:
                works[f"{name}, {kernel}"] = False
    return Found(works, works["even, flash"] and works["padded, other"])


def pca_targets() -> Found:
    """Are whitened targets white, whatever the precision of the model? | float32, standard deviations within 10 % of 1"""
    recipe = make_recipe({"method.name": "mae", "method.targets": "pca"})
    trainer = make_trainer(recipe, MEAN, STD, 200, choose_precision(DEVICE, "bf16"))
    group = trainer.place(next(iter(make_batches(recipe, SOURCE, 0, 1)))).views[MAIN]
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        targets = trainer.method.make_targets(normalise(group.flat, trainer.mean, trainer.std), group.masks)
    spread = group.masks.pick_targets(targets).float().std(0)
    numbers = {"dtype": str(targets.dtype), "smallest": float(spread.min()), "largest": float(spread.max())}
    return Found(numbers, targets.dtype == torch.float32 and bool(((spread - 1).abs() < 0.1).all()) if ON_GPU else None)


def momentum_update() -> Found:
    """How many kernels does the momentum update start, and is it the formula? | at most 30, whatever the weights; to 1e-6"""
    trainer, _ = train_some(make_recipe(), 1)
    method = trainer.method
    old, new = (next(method.encoders()[name].blocks.parameters()).detach() for name in ("target", "context"))
    expected = 0.99 * old.double() + (1 - 0.99) * new.double()
    finite = torch.tensor(True, device=DEVICE)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_GPU else [])]
    with profile(activities=activities) as profiler:
        method.after_step({"momentum": 0.99}, finite)
        wait_for(DEVICE)
    launches = sum(event.count for event in profiler.key_averages() if event.key.startswith(("cudaLaunch", "cuLaunch")))
    error = float((old.double() - expected).abs().max())
    numbers = {"launches": launches, "weights": sum(1 for _ in method.context_encoder.parameters()), "error": error}
    return Found(numbers, error < 1e-6 and launches <= 30)


def probe_on_the_device() -> Found:
    """Does a probe leave the encoder that is trained on its device? | yes, and the next step works"""
    recipe = make_recipe()
    trainer, _ = train_some(recipe, 1)
    vit = trainer.method.context_encoder
    encoder = Encoder(vit, MEAN, STD).to(DEVICE)
    some = ArraySource("some", 1, SOURCE.images[:64], SOURCE.labels[:64], SOURCE.classes)
    Probe(some, some, recipe.data.size, 1, encoder).measure(encoder)
    list(trainer.steps(make_batches(recipe, SOURCE, 1, 2)))
    where = str(next(vit.parameters()).device.type)
    return Found({"encoder_is_on": where}, where == DEVICE.type)


class LargeBatches:
    """Batches of 2,048 images of 224 px, all of one level."""

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.full((2048, 3, 224, 224) if ON_GPU else (64, 3, 224, 224), number, dtype=torch.uint8)


def large_batches() -> Found:
    """Do large batches come from workers, however little shared memory there is? | all of them, in order"""
    found = os.statvfs("/dev/shm")
    levels = [int(batch[-1, -1, -1, -1]) for batch in stream_items(LargeBatches(), range(6), 2)]
    return Found({"levels": levels, "shared_memory_free_mb": found.f_bavail * found.f_frsize // 2**20}, levels == list(range(6)))


def compiled_run() -> Found:
    """Does a compiled run of 90 seconds fill them, with a warm-up of its share? | steps within 25 %, share within a half of it"""
    if not ON_GPU:
        return Found("compiling for a CPU takes minutes", None)
    share, minutes = 0.1, 1.5
    recipe = make_recipe(
        {
            "train.compile": True, "train.length": f"{minutes}minutes", "optim.warmup_frac": share,
            "views.main.mask": PADDED, "data.batch_size": 256,
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        pretrain("sample:train", recipe, Path(folder) / "run", console=Console(quiet=True))
        facts = json.loads((Path(folder) / "run" / "run.json").read_text())
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").open()]
    pace, steps = Pace(facts["plans"]), facts["total_steps"]
    over = next(step for step in range(steps) if pace.place(step) >= share * (pace.planned_steps - 1))
    trained_s = max(row["trained_s"] for row in rows if row["kind"] == "train")
    numbers = {"plans": facts["plans"], "warm_up_share": over / steps, "trained_s": trained_s, "planned_s": 60 * minutes}
    return Found(numbers, 0.5 * share < over / steps < 1.5 * share and abs(trained_s / (60 * minutes) - 1) < 0.25)


CHECKS = (
    precision, step_time, no_waiting, free_memory, peak, fp16_overflows, equal_runs, placed_ahead, attention_kernels, pca_targets,
    momentum_update, probe_on_the_device, large_batches, compiled_run,
)  # fmt: skip


def ask(check: Callable[[], Found]) -> dict[str, Any]:
    """The line of one question; an error is an answer, too."""
    question, _, expected = (check.__doc__ or "").partition(" | ")
    started = time.perf_counter()
    try:
        found = check()
    except Exception as error:
        found = Found(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}", False)
    return {
        "check": check.__name__, "question": question, "expected": expected, "found": found.numbers, "passed": found.passed,
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def main() -> None:
    """Ask all questions, or those named."""
    named = sys.argv[1:]
    if unknown := set(named) - {check.__name__ for check in CHECKS}:
        sys.exit(f"no such check: {', '.join(sorted(unknown))}; there are {', '.join(check.__name__ for check in CHECKS)}")
    machine = {"card": describe_machine(DEVICE)["device"], "versions": describe_versions() | {"cuda": torch.version.cuda}}
    failed = False
    for check in CHECKS:
        if not named or check.__name__ in named:
            line = ask(check)
            failed |= line["passed"] is False
            print(json.dumps(line | machine), flush=True)
    sys.exit(int(failed))


SOURCE = open_source("sample:train", 1)
assert isinstance(SOURCE, ArraySource)

if __name__ == "__main__":
    main()
