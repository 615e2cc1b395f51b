"""Checkpoints as training programs save them: wrapped names, NumPy numbers, and nothing that could run."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openjepa.weights.match import WRAPPERS, read_torch_file, strip_wrappers, unwrap

OWN = ["pos_embed", "blocks.0.attn.qkv.weight", "blocks.11.mlp.fc1.bias"]


@given(
    front=st.lists(st.sampled_from(["module", *WRAPPERS]), max_size=4),
    between=st.lists(st.sampled_from(WRAPPERS), max_size=2),
)
def test_wrappers_go_in_any_order(front: list[str], between: list[str]):
    inner = ".".join([*between, "attn"])
    wrapped = {".".join([*front, name.replace("attn", inner)]): name for name in OWN}
    assert strip_wrappers(wrapped) == {name: name for name in OWN}


def test_a_models_own_part_called_module_stays_and_two_of_one_name_are_refused():
    assert list(strip_wrappers({"blocks.module.w": 1})) == ["blocks.module.w"]
    with pytest.raises(ValueError, match=r"holds w twice, once as _orig_mod\.w"):
        strip_wrappers({"w": 1, "_orig_mod.w": 2})


def test_a_state_dict_is_found_under_its_common_names():
    assert unwrap({"state_dict": {"a": 1}, "epoch": 3}) == {"a": 1} == unwrap({"model": {"a": 1}}) == unwrap({"a": 1})
    assert unwrap([1]) == [1]


@pytest.mark.parametrize(
    "number",
    [np.float64(0.25), np.float32(3), np.float16(-1), np.int64(-7), np.uint8(255), np.bool_(True), np.complex64(1 + 2j),
     np.str_("é"), np.datetime64("2024-02-29"), np.longdouble(2)],
    ids=lambda number: type(number).__name__,
)  # fmt: skip
def test_numpy_numbers_come_back_as_they_were(tmp_path: Path, number: np.generic):
    torch.save({"loss": number, "w": torch.ones(2)}, tmp_path / "a.pth")
    found = read_torch_file(tmp_path / "a.pth")["loss"]
    assert found == number and type(found) is type(number)


class Attack:
    def __reduce__(self):
        return os.system, ("touch was-run",)


@pytest.mark.parametrize(
    "value", [Attack(), np.array([1.0, 2.0]), np.dtype(object), Path("x")], ids=["code", "array", "dtype", "path"]
)
def test_anything_else_is_named_and_refused(tmp_path: Path, value: object, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"loss": value}, "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth: (refused, it holds |damaged)") as caught:
        read_torch_file(Path("a.pth"))
    assert not Path("was-run").exists() and len(str(caught.value).splitlines()) == 1
