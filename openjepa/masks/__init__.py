"""Which patches are context and which are targets: pure samplers from (seed, step, rank) to padded indices."""

from openjepa.masks.coverage import Coverage, measure_coverage
from openjepa.masks.masks import Masks, every_patch
from openjepa.masks.samplers import SAMPLERS, Sampler, check_masks, sample_masks

__all__ = ["SAMPLERS", "Coverage", "Masks", "Sampler", "check_masks", "every_patch", "measure_coverage", "sample_masks"]
