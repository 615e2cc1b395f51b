"""How far each method was checked against its paper: the one place that says it.

docs/fidelity.md's table and the league tables of `openjepa compare` are made from here (`python -m benchmarks.fidelity`), and
tests/parity/test_fidelity_page.py asks for a row for every method and for the tests that are named.
"""

from __future__ import annotations

from typing import NamedTuple


class Parity(NamedTuple):
    """What was compared, in words that begin with yes or no, or say what part of it was."""

    equations: str
    """The loss in float64 against the paper's equations, one image at a time, to 1e-9."""
    library: str
    """Loss and gradients in float32 against values recorded from another library, to 1e-5."""
    recipe: str
    """The values of the paper's recipe."""
    test: str
    """The file in tests/parity, or from the repository's root."""

    @property
    def status(self) -> str:
        """In a few words, for tables."""
        parts = [_shorten("equations", self.equations), _shorten("another library", self.library)]
        parts.append(_shorten("recipe", self.recipe))
        return ", ".join(part for part in parts if part) or "not checked"


def _shorten(what: str, found: str) -> str:
    """The word for what was checked, whole or in part; empty for what was not."""
    kind = found.replace(":", " ").replace(",", " ").replace(";", " ").split()[0]
    return "" if kind == "no" else what if kind == "yes" else f"{what} in part"


PARITY = {
    "ijepa": Parity("yes: a whole step, to 1e-5 in float32", "yes: the release's step", "yes", "test_golden_step.py"),
    "mae": Parity("no; whole model against transformers", "yes, gradients too", "yes", "test_mae.py"),
    "simclr": Parity("yes", "no", "views, projector, temperature; optimizer from MoCo v3", "test_simclr.py"),
    "supervised": Parity("yes, without mixing", "no", "DeiT's, without repeated augmentation and erasing", "test_supervised.py"),
    "detection": Parity(
        "no: torchvision's losses", "no: torchvision's own detectors", "partly ViTDet's, never run", "tests/unit/test_detector.py"
    ),
    "byol": Parity("yes", "yes: lightly, stable-pretraining", "views, heads, momentum; optimizer from MoCo v3", "test_byol.py"),
    "mocov3": Parity("yes", "yes: stable-pretraining, times 2T", "yes", "test_mocov3.py"),
    "dino": Parity(
        "yes, and the centre's move", "yes: lightly, and the centre's move", "partly from its authors' arguments", "test_dino.py"
    ),
    "ibot": Parity("yes", "of hidden patches, and a centre's move: lightly", "partly from memory", "test_ibot.py"),
    "data2vec": Parity("yes (2.0), without noise", "no", "from its authors' configuration", "test_data2vec.py"),
    "lejepa": Parity(
        "yes; the integral in closed form too", "yes: stable-pretraining, its terms one by one",
        "share, views and directions; the rest its authors' README, or ours", "test_lejepa.py",
    ),
}  # fmt: skip
