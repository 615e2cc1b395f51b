"""Kill -9 in the middle of saves, and damage of every kind: the newest good checkpoint is found, and its contents are right."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import tempfile
import time
from contextlib import suppress
from functools import cache
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openjepa.engine.checkpoint import find_latest, load_checkpoint, save_checkpoint

NUM_KILLS = 20


def state_at(step: int) -> dict[str, Tensor]:
    """2 MB that a reader can tell apart from those of any other step."""
    return {"weight": torch.arange(500_000, dtype=torch.float32) * (step + 1), "step": torch.tensor(step)}


def save_forever(folder: Path, finished: Synchronized[int]) -> None:
    """Go on from the newest checkpoint; `finished` is the last step whose save has returned."""
    torch.set_num_threads(1)
    latest, _ = find_latest(folder)
    step = load_checkpoint(latest)[1]["step"] if latest else 0
    while True:
        step += 1
        save_checkpoint(folder, step, state_at(step), {"step": step}, permanent=step % 50 == 0, keep=2)
        finished.value = step


def test_twenty_kills(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["openjepa.engine.checkpoint"])
    moments = random.Random(0)
    finished = processes.Value("q", 0)
    cut_short = 0
    for _ in range(NUM_KILLS):
        already = finished.value
        process = processes.Process(target=save_forever, args=(tmp_path, finished))
        process.start()
        deadline = time.monotonic() + 60
        while finished.value == already:
            assert process.is_alive(), "the saving process died by itself"
            assert time.monotonic() < deadline, "no checkpoint was saved within a minute"
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        cut_short += any(tmp_path.glob(".saving-*"))

        latest, passed_over = find_latest(tmp_path)
        assert latest is not None
        assert all("its save was cut off" in line for line in passed_over)
        tensors, info = load_checkpoint(latest)
        assert latest.name == f"step-{info['step']:08d}.safetensors"
        assert info["step"] >= finished.value, "a save that had returned is gone"
        assert tensors.keys() == state_at(info["step"]).keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in state_at(info["step"]).items())
    assert cut_short >= NUM_KILLS // 4, "hardly any kill came during a save, so this test showed nothing"
    save_checkpoint(tmp_path, 10**6, {}, {}, permanent=False, keep=1)
    assert all(path.name.startswith("step-") for path in tmp_path.iterdir()), "the next save clears what the kills left"


DAMAGE = {
    "none": lambda path: None,
    "emptied": lambda path: os.truncate(path, 0),
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a bit flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "replaced by text": lambda path: path.write_text("no space left on device\n"),
    "json emptied": lambda path: os.truncate(path.with_suffix(".json"), 0),
    "json gone": lambda path: path.with_suffix(".json").unlink(),
    "both damaged": lambda path: (os.truncate(path, 9), path.with_suffix(".json").unlink()),
}


@cache
def four_checkpoints() -> dict[str, bytes]:
    """Steps 0 to 3 as files: name and content."""
    with tempfile.TemporaryDirectory() as name:
        for step in range(4):
            save_checkpoint(Path(name), step, {"a": torch.tensor([step])}, {}, permanent=False, keep=9)
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(sorted(DAMAGE)), min_size=4, max_size=4))
def test_newest_undamaged_is_found_whatever_happened_to_the_others(damages: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file_name, content in four_checkpoints().items():
            (folder / file_name).write_bytes(content)
        paths = sorted(folder.glob("*.safetensors"))
        for path, damage in zip(paths, damages, strict=True):
            DAMAGE[damage](path)
        whole = [path for path, damage in zip(paths, damages, strict=True) if damage == "none"]
        cut_off = [path for path, damage in zip(paths, damages, strict=True) if damage == "json gone"]
        expected = (whole or cut_off or [None])[-1]
        if expected is None:
            with pytest.raises(ValueError, match="no undamaged checkpoint") as caught:
                find_latest(folder)
            assert all(path.stem in str(caught.value) for path in paths)
            return
        found, passed_over = find_latest(folder)
        assert found == expected
        assert int(load_checkpoint(found)[0]["a"]) == paths.index(expected)
        newer = paths[paths.index(expected) + 1 :]
        assert all(any(path.stem in line for line in passed_over) for path in newer)


def is_good(path: Path) -> bool:
    """Whether the JSON beside a checkpoint describes it."""
    with suppress(OSError, ValueError, KeyError):
        note, content = json.loads(path.with_suffix(".json").read_text()), path.read_bytes()
        return note["sha256"] == hashlib.sha256(content).hexdigest() and note["bytes"] == len(content)
    return False


def is_permanent(path: Path) -> bool | None:
    """What the JSON says; None where it cannot be read, and False where there is none."""
    note = path.with_suffix(".json")
    if not note.exists():
        return False
    try:
        return bool(json.loads(note.read_text())["permanent"])
    except ValueError:
        return None


def list_folder(folder: Path) -> dict[int, Path]:
    return {int(path.stem[5:]): path for path in folder.glob("step-*.safetensors")}


@settings(max_examples=300, deadline=None)
@given(
    before=st.lists(
        st.tuples(
            st.sampled_from([False, False, True]), st.sampled_from(["none", "a bit flipped", "file gone", *sorted(DAMAGE)])
        ),
        max_size=7,
    ),
    back=st.integers(-1, 2),
    permanent=st.booleans(),
    keep=st.integers(1, 3),
)
def test_no_save_drops_a_good_checkpoint_that_is_needed(
    before: list[tuple[bool, str]], back: int, permanent: bool, keep: int
) -> None:
    """Whatever the folder holds, permanent or not and damaged or not: after a save the newest checkpoint up to it is good, `keep`
    good ones stay if there were as many, and all permanent ones; nothing else stays once there are `keep` good ones."""
    step = max(len(before) - 1 - back, 0)  # after all others, or among them, as after a resume from an earlier one
    with tempfile.TemporaryDirectory() as name, mock.patch("os.fsync"):  # a power cut is not what this asks about
        folder = Path(name)
        for number, (is_kept, damage) in enumerate(before):
            path = folder / f"step-{number:08d}.safetensors"
            path.write_bytes(four_checkpoints()["step-00000003.safetensors"])
            note = json.loads(four_checkpoints()["step-00000003.json"]) | {"step": number, "permanent": is_kept}
            path.with_suffix(".json").write_text(json.dumps(note))
            DAMAGE.get(damage, Path.unlink)(path)
        (folder / ".saving-left").mkdir()
        files = list_folder(folder)
        num_good = sum(is_good(path) and is_permanent(path) is False for number, path in files.items() if number < step)
        stay = {path: path.read_bytes() for path in files.values() if is_permanent(path) is not False}
        stay |= {path: path.read_bytes() for number, path in files.items() if number > step}
        stay.pop(folder / f"step-{step:08d}.safetensors", None)
        must_stay = step < len(before) and before[step] == (True, "none")

        saved = save_checkpoint(folder, step, {"a": torch.tensor([-1])}, {}, permanent=permanent, keep=keep)

        assert is_good(saved) and (is_permanent(saved) or not (permanent or must_stay))
        assert all(path.read_bytes() == content for path, content in stay.items())
        passing = [path for number, path in list_folder(folder).items() if number <= step and is_permanent(path) is False]
        good = [path for path in passing if is_good(path)]
        assert len(good) >= min(keep, num_good + (not is_permanent(saved)))
        assert len(good) < keep or len(passing) == keep
        assert not list(folder.glob(".saving-*"))
        for number, path in list_folder(folder).items():
            if number > step:
                path.unlink()  # what an earlier session left
        assert find_latest(folder)[0] == saved
