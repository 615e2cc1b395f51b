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


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set that `openjepa make-scenes` draws: 24 training and 12 test images of 32 px, with COCO annotations."""
    from openjepa.data.scenes.make import make_scenes

    folder = tmp_path_factory.mktemp("drawn") / "scenes"
    make_scenes(folder, train=24, test=12, size=32, seed=0, processes=1)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: a worker that came to one last would leave the other with nothing to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
