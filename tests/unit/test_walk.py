"""Walking folders: each real folder once, nothing for ever, and what is passed over is listed with its reason."""

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openjepa.data.sources import walk as walking
from openjepa.data.sources.walk import HIDDEN, NO_FILE, SYSTEM, UPWARD, VISITED, walk


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def reasons(root: Path) -> dict[str, str]:
    return dict(walk(root).passed_over)


def test_folders_that_link_to_one_another_are_visited_once_each(tmp_path: Path):
    for one in range(8):
        put(tmp_path / f"d{one}/{one}.png")
        for other in range(8):
            if one != other:
                (tmp_path / f"d{one}/to{other}").symlink_to(f"../d{other}")
    found = walk(tmp_path)
    assert found.files == [f"d{one}/{one}.png" for one in range(8)]  # under their own names
    assert [reason for _, reason in found.passed_over] == [VISITED] * 56


def test_links_never_lead_up(tmp_path: Path):
    root = tmp_path / "data"
    put(root / "cat/1.png", tmp_path / "private.png", tmp_path / "shared/lib/2.png")
    (root / "up").symlink_to("..")
    (root / "cat/self").symlink_to(root)
    (root / "lib").symlink_to(tmp_path / "shared/lib")
    (tmp_path / "shared/lib/back").symlink_to(tmp_path)  # above the root, by way of another folder
    (root / "loop").symlink_to("pool")
    (root / "pool").symlink_to("loop")
    found = walk(root)
    assert found.files == ["cat/1.png", "lib/2.png", "loop", "pool"]  # a link to nowhere is reported by who reads it
    assert dict(found.passed_over) == {"up/": UPWARD, "cat/self/": UPWARD, "lib/back/": UPWARD}


def test_of_two_links_to_one_folder_the_first_by_name_counts(tmp_path: Path):
    put(tmp_path / "elsewhere/1.png")
    (tmp_path / "data").mkdir()
    for name in ("z", "a"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere")
    assert walk(tmp_path / "data").files == ["a/1.png"]


@pytest.mark.parametrize("name", ["@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN", "lost+found", "System Volume Information"])
def test_folders_of_systems_are_passed_over_unless_they_are_what_is_asked_for(tmp_path: Path, name: str):
    put(tmp_path / "cat/1.png", tmp_path / "cat" / name / "1.png")
    assert walk(tmp_path).files == ["cat/1.png"]
    assert reasons(tmp_path) == {f"cat/{name}/": SYSTEM}
    assert walk(tmp_path / "cat" / name).files == ["1.png"]


def test_what_would_be_waited_for_is_no_file(tmp_path: Path):
    put(tmp_path / "1.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "to_pipe.png").symlink_to("pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)  # a socket's path may have a hundred characters
        server.bind("socket.png")
    assert walk(tmp_path).files == ["1.png"]
    assert reasons(tmp_path) == dict.fromkeys(["pipe.png", "to_pipe.png", "endless.png", "socket.png"], NO_FILE)


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "gone"), OSError(5, "broken disk")]
)
def test_a_folder_that_cannot_be_listed_costs_only_itself(tmp_path: Path, error: OSError, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path / "cat/1.png", tmp_path / "dog/2.png")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("dog"):
            raise error
        return real(path)

    monkeypatch.setattr(walking.os, "scandir", scandir)
    assert walk(tmp_path).files == ["cat/1.png"]
    assert error.strerror in reasons(tmp_path)["dog/"] and "dog/" in walk(tmp_path).describe()
    with pytest.raises(type(error)):
        walk(tmp_path / "dog")


def test_hidden_things_are_listed_and_not_talked_of(tmp_path: Path):
    put(tmp_path / "1.png", tmp_path / "._1.png", tmp_path / ".AppleDouble/1.png", tmp_path / ".thumbnails/1.png")
    found = walk(tmp_path)
    assert found.files == ["1.png"] and found.describe() == ""
    assert {reason for _, reason in found.passed_over} == {HIDDEN}


@given(
    folders=st.lists(st.sampled_from(["a", "b", "a/c", "a/c/d", "b/e"]), unique=True),
    links=st.lists(
        st.tuples(st.sampled_from(["", "a", "b", "a/c", "a/c/d", "b/e"]), st.sampled_from(["", "a", "b", "a/c", "b/e"]))
    ),
)
def test_whatever_links_there_are_each_file_is_found_once(tmp_path_factory: pytest.TempPathFactory, folders, links):
    root = tmp_path_factory.mktemp("walk")
    for folder in ["", *folders]:
        put(root / folder / f"in_{folder.replace('/', '_')}.png")
    for number, (place, target) in enumerate(links):
        if (root / place).is_dir():
            (root / place / f"link{number}").symlink_to(root / target, target_is_directory=True)
    files = [name for name in walk(root).files if name.endswith(".png")]
    assert sorted(files) == sorted(
        str(path.relative_to(root)) for path in root.rglob("in_*.png") if path.parent.resolve() == path.parent
    )
