"""Checkpoints: bit-equal round trips, every kind of damage noticed, keep rules, full disks, cut-off saves."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from openjepa.engine.checkpoint import find_latest, load_checkpoint, save_checkpoint
from openjepa.runs.folder import to_json

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda name: name != "__metadata__")


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """A folder per hypothesis example; pytest's tmp_path is one for all of them."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@cache
def two_checkpoints() -> dict[str, bytes]:
    """Steps 1 and 2 as files: name and content."""
    with fresh_folder() as folder:
        for step in (1, 2):
            write(folder, step)
        return files(folder)


@contextmanager
def folder_of_two() -> Iterator[tuple[Path, Path]]:
    """A fresh folder of two checkpoints; gives their paths, the older first."""
    with fresh_folder() as folder:
        for name, content in two_checkpoints().items():
            (folder / name).write_bytes(content)
        yield folder / "step-00000001.safetensors", folder / "step-00000002.safetensors"


@st.composite
def random_tensors(draw: st.DrawFn) -> Tensor:
    """Any bits at all, NaN payloads and negative zeros included."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    num_bytes = torch.empty(shape, dtype=dtype).nbytes
    raw = draw(st.binary(min_size=num_bytes, max_size=num_bytes))
    raw = bytes(byte & 1 for byte in raw) if dtype == torch.bool else raw
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape) if raw else torch.empty(shape, dtype=dtype)


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    flat = tensor.contiguous().flatten()
    return tensor.dtype, tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def write(folder: Path, step: int, value: float | None = None, *, permanent: bool = False, keep: int = 2) -> Path:
    tensors = {"weight": torch.full((3, 5), float(step if value is None else value)), "count": torch.tensor(step)}
    return save_checkpoint(folder, step, tensors, {"step": step}, permanent=permanent, keep=keep)


def refuse_constant(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, random_tensors(), max_size=5), st.dictionaries(st.text(), JSON_VALUES, max_size=4))
def test_round_trip_is_bit_equal(tensors: dict[str, Tensor], info: dict[str, object]) -> None:
    with fresh_folder() as folder:
        path = save_checkpoint(folder, 7, tensors, info, permanent=False, keep=1)
        loaded, loaded_info = load_checkpoint(path)
        alone, alone_info = load_checkpoint(Path(shutil.copy(path, folder / "given-by-a-user.safetensors")))
        with safe_open(path, "pt") as file:
            json.loads(file.metadata()["info"], parse_constant=refuse_constant)  # any other program can read it
    assert {name: bits(tensor) for name, tensor in loaded.items()} == {name: bits(tensor) for name, tensor in tensors.items()}
    assert {name: bits(tensor) for name, tensor in alone.items()} == {name: bits(tensor) for name, tensor in tensors.items()}
    assert to_json(loaded_info) == to_json(alone_info) == to_json(info)  # which NaN is equal in


def test_shared_strided_and_partial_tensors_are_saved_with_their_own_values(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {"base": base, "tied": base, "transposed": base.T, "row": base[1], "every_other": base[:, ::2],
               "expanded": base[:1].expand(3, 6), "parameter": torch.nn.Parameter(base)}  # fmt: skip
    loaded, _ = load_checkpoint(save_checkpoint(tmp_path, 0, tensors, {}, permanent=False, keep=1))
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor), name
    loaded["base"].zero_()  # what is loaded shares no memory either
    assert torch.equal(loaded["tied"], base)


def test_loaded_tensors_do_not_follow_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    loaded, _ = load_checkpoint(path)
    with path.open("r+b") as file:
        file.truncate(10)
    assert torch.equal(loaded["weight"], torch.full((3, 5), 3.0))


def test_names_and_json_beside(tmp_path: Path) -> None:
    path = write(tmp_path, 1234, permanent=True)
    assert path == tmp_path / "step-00001234.safetensors"
    raw = path.read_bytes()
    assert json.loads((tmp_path / "step-00001234.json").read_text()) == {
        "step": 1234, "permanent": True, "sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}  # fmt: skip
    assert files(tmp_path).keys() == {"step-00001234.safetensors", "step-00001234.json"}
    assert path.stat().st_mode & 0o777 == 0o644


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_any_truncation_is_noticed_with_and_without_the_json(data: st.DataObject) -> None:
    with folder_of_two() as (good, latest):
        size = data.draw(st.integers(0, latest.stat().st_size - 1))
        os.truncate(latest, size)
        with pytest.raises(ValueError, match="step-00000002.*damaged"):
            load_checkpoint(latest)
        found, passed_over = find_latest(good.parent)
        assert found == good
        assert len(passed_over) == 1
        assert "step-00000002.safetensors: damaged" in passed_over[0]
        latest.with_suffix(".json").unlink()
        with pytest.raises(ValueError, match="damaged or not a safetensors file"):
            load_checkpoint(latest)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject) -> None:
    with folder_of_two() as (good, latest):
        raw = bytearray(latest.read_bytes())
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
        latest.write_bytes(raw)
        with pytest.raises(ValueError, match="sha256"):
            load_checkpoint(latest)
        found, passed_over = find_latest(good.parent)
    assert found == good
    assert len(passed_over) == 1


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_a_lone_file_with_changed_bytes_loads_or_says_so(data: st.DataObject) -> None:
    with folder_of_two() as (_, latest):
        path = latest.rename(latest.with_name("lone.safetensors"))
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(raw)
        try:
            load_checkpoint(path)
        except ValueError as error:
            assert "lone.safetensors" in str(error)  # noqa: PT017 (either outcome is right; no other exception is)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not a safetensors file"),
        (b"PK\x03\x04 a zip archive, as torch.save writes", "not a safetensors file"),
        (b"\x00" * 4096, "not a safetensors file"),
        (b"\xff" * 4096, "not a safetensors file"),
        (b"\x02" + b"\x00" * 7 + b"{}", "not a checkpoint of OpenJEPA"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "given.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=problem) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"info": "[1, 2]"}, {"info": "{cut"}, {"info": "[" * 100_000}])
def test_safetensors_of_others_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2)}, path, metadata=metadata)
    with pytest.raises(ValueError, match="not a checkpoint of OpenJEPA"):
        load_checkpoint(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(ValueError, match="no such checkpoint file"):
            load_checkpoint(path)
    assert find_latest(tmp_path) == find_latest(tmp_path / "none") == (None, [])


def test_damaged_json_counts_as_damage(tmp_path: Path) -> None:
    good, latest = write(tmp_path, 1), write(tmp_path, 2)
    for text in ("", "{", "[]", "{}", '{"step": 2, "permanent": "no", "sha256": "ab", "bytes": 1}'):
        latest.with_suffix(".json").write_text(text)
        found, passed_over = find_latest(tmp_path)
        assert found == good
        assert "step-00000002.json" in passed_over[0]


def test_all_damaged_stops_instead_of_starting_anew(tmp_path: Path) -> None:
    for path in [write(tmp_path, step) for step in (1, 2)]:
        os.truncate(path, 40)
    with pytest.raises(ValueError, match=r"no undamaged checkpoint.*step-00000002.*step-00000001") as caught:
        find_latest(tmp_path)
    assert "\n" not in str(caught.value)


def test_cut_off_save_is_passed_over_but_serves_if_alone(tmp_path: Path) -> None:
    old, new = write(tmp_path, 1), write(tmp_path, 2)
    new.with_suffix(".json").unlink()
    found, passed_over = find_latest(tmp_path)
    assert found == old
    assert passed_over == [f"{new}: its save was cut off, step-00000002.json is missing"]
    old.unlink()
    assert find_latest(tmp_path) == (new, [])
    os.truncate(new, 50)
    with pytest.raises(ValueError, match="no undamaged checkpoint"):
        find_latest(tmp_path)


def test_latest_is_by_number_not_by_spelling(tmp_path: Path) -> None:
    write(tmp_path, 99_999_999)
    newest = write(tmp_path, 100_000_000)
    (tmp_path / "step-last.safetensors").write_bytes(b"a stranger's file")
    assert find_latest(tmp_path) == (newest, [])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=10), st.integers(1, 4))
def test_keep_rules(permanent: list[bool], keep: int) -> None:
    with fresh_folder() as folder:
        for step, is_permanent in enumerate(permanent):
            write(folder, step, permanent=is_permanent, keep=keep)
        left = {int(path.stem[5:]) for path in folder.glob("*.safetensors")}
        assert {int(path.stem[5:]) for path in folder.glob("*.json")} == left
    passing = [step for step, is_permanent in enumerate(permanent) if not is_permanent]
    assert left == {step for step, is_permanent in enumerate(permanent) if is_permanent} | set(passing[-keep:])


def test_saving_again_after_falling_back_keeps_the_new_one(tmp_path: Path) -> None:
    write(tmp_path, 100, keep=1)
    os.truncate(write(tmp_path, 200, keep=2), 40)
    new = write(tmp_path, 150, keep=1)  # resumed from 100; 200 is damaged and newer by number
    found, passed_over = find_latest(tmp_path)
    assert found == new
    assert len(passed_over) == 1
    again = write(tmp_path, 200, keep=1)
    assert find_latest(tmp_path) == (again, [])
    assert not new.exists()


def test_pruning_clears_cut_off_and_truncated_saves_but_no_permanent_one(tmp_path: Path) -> None:
    precious = write(tmp_path, 1, permanent=True)
    unreadable = write(tmp_path, 2, permanent=True)
    unreadable.with_suffix(".json").write_text("{")
    cut_off = write(tmp_path, 3, keep=9)
    cut_off.with_suffix(".json").unlink()
    os.truncate(write(tmp_path, 4, keep=9), 40)
    last_but_one, last = write(tmp_path, 5), write(tmp_path, 6)
    assert set(tmp_path.glob("*.safetensors")) == {precious, unreadable, last_but_one, last}


def test_same_step_again_replaces(tmp_path: Path) -> None:
    write(tmp_path, 5, value=1.0)
    path = write(tmp_path, 5, value=2.0, permanent=True)
    assert torch.equal(load_checkpoint(path)[0]["weight"], torch.full((3, 5), 2.0))
    assert find_latest(tmp_path) == (path, [])


def test_left_overs_of_a_killed_process_go_with_the_next_save(tmp_path: Path) -> None:
    left_over = tmp_path / ".saving-abc123"
    left_over.mkdir()
    (left_over / ".tmpQq1").write_bytes(b"half a file")
    write(tmp_path, 1)
    assert files(tmp_path).keys() == {"step-00000001.safetensors", "step-00000001.json"}


def test_too_little_space_stops_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)
    before = files(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12 - 12_000_000, 12_000_000))
    with pytest.raises(OSError, match=r"step-00000002.safetensors needs 16 MB, 12 MB free on .*make room") as caught:
        save_checkpoint(tmp_path, 2, {"big": torch.zeros(4_000_000)}, {}, permanent=False, keep=1)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == before


def test_space_estimate_covers_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"encoder.blocks.{layer}.attn.qkv.weight": torch.ones(layer, 3) for layer in range(200)}
    size = save_checkpoint(tmp_path, 1, tensors, {"text": "x" * 5000}, permanent=False, keep=1).stat().st_size
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, size - 1))
    with pytest.raises(OSError, match="needs"):
        save_checkpoint(tmp_path, 2, tensors, {"text": "x" * 5000}, permanent=False, keep=1)


@pytest.mark.parametrize("limit", [0, 10, 2_000, 40_000])
def test_a_write_that_fails_half_way_leaves_all_as_it_was(tmp_path: Path, limit: int) -> None:
    write(tmp_path, 1)
    before = files(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # the kernel answers EFBIG, much as a full disk's ENOSPC
    try:
        with pytest.raises(OSError, match="step-00000002.safetensors could not be written: File too large") as caught:
            save_checkpoint(tmp_path, 2, {"big": torch.zeros(100_000)}, {}, permanent=False, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == before


def test_a_json_that_cannot_be_written_leaves_all_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)
    before = files(tmp_path)

    def no_space(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("openjepa.engine.checkpoint.write_json", no_space)
    with pytest.raises(OSError, match="could not be written: No space left on device"):
        write(tmp_path, 2)
    assert files(tmp_path) == before


@pytest.mark.parametrize("place", ["file/checkpoints", "file"])
def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        write(tmp_path / place, 1)


def test_old_ones_go_only_after_the_new_one_is_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1, keep=1)
    seen: list[tuple[Path | None, list[str]]] = []
    unlink = Path.unlink

    def watch(path: Path, missing_ok: bool = False) -> None:
        if path.suffix in {".json", ".safetensors"} and path.parent == tmp_path and path.exists():
            seen.append(find_latest(tmp_path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", watch)
    new = write(tmp_path, 2, keep=1)
    assert seen == [(new, []), (new, [])]
