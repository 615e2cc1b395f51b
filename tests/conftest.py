"""What all tests share: checked annotations, few threads, and the material beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Before any test imports openjepa: the shapes and types in its annotations are checked at every call.
install_import_hook("openjepa", "beartype.beartype")

# Tests run side by side, one thread each; it also keeps sums in the same order from run to run.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

# Machines are shared: how long an example takes says nothing.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

SHARED = Path(os.environ.get("OPENJEPA_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden tensors and data beside the repository; OPENJEPA_SHARED names another place."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is missing; OPENJEPA_SHARED can name another place")
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: a worker that came to one last would leave the other with nothing to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
