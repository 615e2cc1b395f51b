"""Statistics of the released mask draws against those measured on the reference release itself.

Both sides are samples. Images of a batch share their shapes, so the batch is the unit of sampling: with s the standard
deviation between our batches, the means may differ by z x s x sqrt(1 / our batches + 1 / its batches).
"""

import json

import numpy as np
import pytest

from openjepa import config
from openjepa.masks import sample_masks

RELEASED = config.Mask(fidelity="released")
# About 130 comparisons: one in a thousand such test files would pass 4.5 standard errors by chance.
NUM_STANDARD_ERRORS = 4.5
NUM_DECIMALS = {"context_rate_by_row": 4, "target_rate_by_row": 4}


@pytest.fixture(scope="module")
def golden(shared) -> list[dict]:
    return json.loads((shared / "golden" / "official_step.json").read_text("utf-8"))["mask_statistics"]


def measure_batch(grid: int, batch: int, step: int) -> dict[str, np.ndarray]:
    """Statistics of one batch, under the golden file's names; the target rates count a patch once for each block."""
    masks = sample_masks(RELEASED, (grid, grid), batch, seed=0, step=step)
    context, blocks = masks.context_idx.numpy(), masks.target_idx.flatten(1).numpy()
    in_target = np.zeros((batch, grid * grid), dtype=bool)
    np.put_along_axis(in_target, blocks, True, axis=1)
    assert (masks.context_lengths == context.shape[1]).all() and (masks.target_lengths == masks.target_idx.shape[2]).all()
    return {
        "context_tokens": np.array(context.shape[1]),
        "tokens_per_block": np.array(masks.target_idx.shape[2]),
        "target_union_tokens": np.array(in_target.sum() / batch),
        "context_rate_by_row": np.bincount(context.ravel() // grid, minlength=grid) / (batch * grid),
        "target_rate_by_row": np.bincount(blocks.ravel() // grid, minlength=grid) / (batch * grid),
    }


@pytest.mark.parametrize(
    ("row", "grid", "batch", "num_batches"), [(0, 14, 1, 2000), (1, 14, 64, 300), (2, 14, 256, 150), (3, 16, 64, 300)]
)
def test_means_agree_within_sampling_error(golden, row, grid, batch, num_batches):
    expected = golden[row]
    assert (expected["grid"], expected["batch"]) == (grid, batch)
    measured = [measure_batch(grid, batch, step) for step in range(num_batches)]
    for name in measured[0]:
        values = np.stack([statistics[name] for statistics in measured])
        mean = expected[name]["mean"] if isinstance(expected[name], dict) else np.array(expected[name])
        standard_error = values.std(axis=0, ddof=1) * np.sqrt(1 / num_batches + 1 / expected["batches"])
        rounding = 0.5 * 10.0 ** -NUM_DECIMALS.get(name, 9)
        deviation = np.abs(values.mean(axis=0) - mean)
        assert (deviation <= NUM_STANDARD_ERRORS * standard_error + rounding).all(), (
            f"{name}: {values.mean(axis=0)} against {mean}"
        )
    context_tokens, block_tokens = (
        np.array([statistics[name] for statistics in measured]) for name in ("context_tokens", "tokens_per_block")
    )
    # A block can have only a handful of sizes, so its extremes are the same ones.
    assert (block_tokens.min(), block_tokens.max()) == (expected["tokens_per_block"]["min"], expected["tokens_per_block"]["max"])
    for beyond in (
        (context_tokens > expected["context_tokens"]["max"]).sum(),
        (context_tokens < expected["context_tokens"]["min"]).sum(),
    ):
        assert _outlying_probability(int(beyond), num_batches, expected["batches"]) > 1e-4


def _outlying_probability(count: int, num_ours: int, num_theirs: int) -> float:
    """Probability that the `count` most extreme of all values are all ours, if both sides draw from one distribution."""
    places = np.arange(count)
    return float(np.prod((num_ours - places) / (num_ours + num_theirs - places)))


def test_the_comparison_tells_our_own_draws_from_the_releases(golden):
    """The unbiased draws differ from the release's by far more than the tolerances."""
    masks = [sample_masks(config.Mask(), (14, 14), 64, seed=0, step=step) for step in range(50)]
    context_tokens = np.mean([masks_of_batch.context_lengths.double().mean() for masks_of_batch in masks])
    assert context_tokens > golden[1]["context_tokens"]["mean"] + 20
