"""Paths as people write them, and data that is the same data however it is written."""

import os
import pwd
from pathlib import Path

import pytest

from openjepa.data.sources import absolute_spec, canonical_spec, name_held_out, open_source
from openjepa.runs.paths import expand_word, quoted, user_path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_home_is_expanded_and_nothing_else(home: Path):
    root = pwd.getpwuid(0).pw_dir
    assert user_path("~/runs/a") == home / "runs/a"
    assert user_path("~root/x") == Path(root) / "x"
    for literal in ("$HOME/x", "a~/x", "./~/x", " ~/x"):
        assert user_path(literal) == Path(literal)
    with pytest.raises(ValueError, match="~nosuchuser"):
        user_path("~nosuchuser/x")
    (home / "~draft").mkdir()
    assert user_path("~draft") == Path("~draft")  # a name after all


def test_words_of_a_command_line_are_expanded_where_a_shell_would_have_meant_it(home: Path):
    assert expand_word("--out=~/runs/a") == f"--out={home}/runs/a"
    assert expand_word("~") == str(home)
    for word in ("--out", "optim.lr=1e-3", "--out=x~", "a=~/x", "-x=~/y"):
        assert expand_word(word) == word


def test_the_test_part_is_found_however_the_training_part_is_written(home: Path):
    for part in ("train", "test"):
        (home / "X" / part).mkdir(parents=True)
    for spec in ("X/train", "X/train/", "X//train//", "./X/./train/.", "X/test/../train", "~/X/train", str(home / "X/train")):
        assert name_held_out(spec) == str(home / "X/test"), spec
    assert name_held_out("X/test") is None and name_held_out("sample:train") == "sample:test"
    assert name_held_out("fashion-mnist:X:train") == f"fashion-mnist:{home}/X:test"


def test_a_recorded_spec_means_the_same_from_another_folder(home: Path):
    (home / "real").mkdir()
    (home / "link").symlink_to("real")
    specs = ["link", "link/", "fashion-mnist:link:train", "sample:train"]
    absolute = [absolute_spec(spec) for spec in specs]
    assert absolute == [f"{home}/link", f"{home}/link", f"fashion-mnist:{home}/link:train", "sample:train"]
    os.chdir("/")
    assert canonical_spec(absolute[0]) == str(home / "real")


def test_spaces_at_the_ends_of_a_name_are_seen(home: Path):
    (home / "photos").mkdir()
    with pytest.raises(ValueError, match=r"there is no ' photos' \(did you mean photos\?\)"):
        open_source(" photos", 3)
    assert quoted("a b") == "a b" and quoted("a\nb") == "'a\\nb'"


def test_an_idx_header_that_lies_takes_no_memory(tmp_path: Path):
    import struct

    from openjepa.data.sources.idx import read_idx

    (tmp_path / "a").write_bytes(struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(48))
    with pytest.raises(ValueError, match="damaged"):
        read_idx(tmp_path / "a", dimensions=3)
