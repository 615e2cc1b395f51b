"""Checkpoints that survive kill -9, a full disk and bit rot: one safetensors file each, and a small JSON beside it.

step-00001234.safetensors   every tensor by name; `info` as JSON in its metadata, so that the lone file is enough
step-00001234.json          step, permanent, sha256 and bytes of the file; renamed into place last, so a checkpoint
                            without it is one whose save was cut off
Everything is written and synced in a temporary folder beside them, then renamed. An older checkpoint goes only after that, and
only while enough others have been read again and are undamaged. One process saves at a time. Nothing here is ever unpickled.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from openjepa.runs.folder import from_json, read_json, to_json, write_json
from openjepa.runs.machine import free_disk

TEMPORARY = ".saving-"
HEADER_BYTES_PER_TENSOR = 256  # generous: name, dtype, shape and offsets of a tensor take about 100 in the header


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], info: dict[str, Any], *, permanent: bool, keep: int
) -> Path:
    """Write a checkpoint whole or not at all, drop old ones that the keep rules let go, and give its path.

    Permanent checkpoints stay; of the others the newest `keep` (at least 1) undamaged ones up to this step stay, this one
    included. To know them, a save reads `keep` - 1 older files again. `info` must be JSON values. Raises OSError in one line if
    the disk is full or cannot be written; whatever was there before is then untouched.
    """
    assert step >= 0 and keep >= 1, (step, keep)
    path = folder / f"step-{step:08d}.safetensors"
    permanent = permanent or (_note(path).exists() and not _may_go(path))  # once for good is for good
    metadata = {"info": to_json(info)}  # one entry: the library writes several in no fixed order
    tensors = _own_memory(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob(f"{TEMPORARY}*"):  # of a process killed while saving
        shutil.rmtree(left_over, ignore_errors=True)
    _require_space(path, tensors, metadata)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=TEMPORARY) as temporary:
            _write(Path(temporary) / path.name, tensors, metadata, {"step": step, "permanent": permanent})
            _publish(Path(temporary), path)
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path} could not be written: {_reason(error)}; earlier checkpoints are intact") from None
    _prune(folder, path, keep)
    return path


def write_checkpoint(path: Path, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
    """Write a lone checkpoint file of any name, without a JSON beside it, and sync it. OSError if the disk is full."""
    metadata = {"info": to_json(info)}
    tensors = _own_memory(tensors)
    _require_space(path, tensors, metadata)
    try:
        save_file(tensors, path, metadata=metadata)
        path.chmod(0o644)  # the library leaves 0600
        _sync(path)
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path.name} could not be written: {_reason(error)}") from None


def load_checkpoint(path: Path, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint into CPU memory: its tensors by name, of those that start with the prefix, and its `info`.

    The sha256 is checked if the JSON lies beside the file, the structure alone if it does not. Raises ValueError in
    one line if the file is missing, damaged or not a checkpoint of OpenJEPA.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint file")
    if _note(path).exists():
        _check_digest(path)
    try:
        with safe_open(path, "pt") as file:
            # Copied, because the library maps the file and what happens to the file would happen to the tensors.
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a dict)
            tensors = {name: file.get_tensor(name).clone() for name in names}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({error})") from None
    try:
        info = from_json(metadata.get("info", "null"))
    except ValueError:
        info = None
    if not isinstance(info, dict):
        raise ValueError(f"{path}: a safetensors file, but not a checkpoint of OpenJEPA: its metadata has no info")
    return tensors, info


def find_latest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest undamaged checkpoint of a folder, and a line on each that was passed over for it.

    One whose JSON is missing is passed over too, but serves if no other is left: it was synced before it got its
    name. (None, []) means that there are none at all. Raises ValueError if there are some and all are damaged.
    """
    paths = _list_checkpoints(folder)
    cut_off = [path for path in paths if not _note(path).exists()]
    damaged: list[str] = []
    for path in sorted(paths, key=lambda path: (path not in cut_off, _step(path)), reverse=True):
        try:
            if path in cut_off:
                load_checkpoint(path)
            else:
                _check_digest(path)
        except ValueError as error:
            damaged.append(str(error))
            continue
        newer = [other for other in cut_off if _step(other) > _step(path)]
        return path, damaged + [f"{other}: its save was cut off, {_note(other).name} is missing" for other in newer]
    if paths:
        raise ValueError(f"{folder} holds no undamaged checkpoint ({'; '.join(damaged)}); move the folder away to start again")
    return None, []


def _list_checkpoints(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*.safetensors") if _step(path) >= 0), key=_step)


def _step(path: Path) -> int:
    """The step in a checkpoint's file name, -1 if it is not one."""
    match = re.fullmatch(r"step-(\d+)\.safetensors", path.name)
    return int(match[1]) if match else -1


def _note(path: Path) -> Path:
    """The JSON beside a checkpoint."""
    return path.with_suffix(".json")


def _own_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values as contiguous CPU tensors of which no two share storage: safetensors takes no others."""
    seen: set[int] = set()
    owned: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().to("cpu").contiguous()
        storage = flat.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != flat.nbytes:
            flat = flat.clone()
        if flat.nbytes:
            seen.add(flat.untyped_storage().data_ptr())
        owned[name] = flat
    return owned


def _require_space(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    header = sum(map(len, metadata.values())) + HEADER_BYTES_PER_TENSOR * (len(tensors) + 1)
    needed = header + sum(tensor.nbytes for tensor in tensors.values())
    free = free_disk(path.parent)
    if free < needed:
        raise OSError(f"{path.name} needs {_megabytes(needed)}, {_megabytes(free)} free on {path.parent}; make room and resume")


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e6:.3f} MB"


def _reason(error: Exception) -> str:
    """What the disk said, without the library's wrapping."""
    return getattr(error, "strerror", None) or str(error).split("I/O error: ")[-1]


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], note: dict[str, Any]) -> None:
    """Write the file and the JSON beside it, both synced."""
    save_file(tensors, path, metadata=metadata)
    path.chmod(0o644)  # the library leaves 0600
    _sync(path)
    write_json(_note(path), note | {"sha256": digest(path), "bytes": path.stat().st_size})


def _publish(temporary: Path, path: Path) -> None:
    """Rename both files into place, the JSON last."""
    _note(path).unlink(missing_ok=True)  # an earlier save of the same step: its digest is not the new file's
    os.replace(temporary / path.name, path)
    _sync(path.parent)
    os.replace(temporary / _note(path).name, _note(path))
    _sync(path.parent)


def _prune(folder: Path, saved: Path, keep: int) -> None:
    """Once the newest `keep` undamaged checkpoints up to the one just saved are found, delete the others that are not permanent.

    Damaged ones, and saves that were cut off, do not count as kept: nothing goes as long as there are fewer than `keep` others.
    Later steps stay: they are left from before a resume, and the run writes over them. One whose JSON cannot be read stays as
    well, since it may be permanent.
    """
    passing = [path for path in _list_checkpoints(folder) if _step(path) <= _step(saved) and _may_go(path)]
    if len(passing) <= keep:
        return  # nothing to delete, so nothing to read
    kept: list[Path] = []
    for path in reversed(passing):
        if path == saved or _is_whole(path):  # the one just saved was read for its digest
            kept.append(path)
        if len(kept) == keep:
            break
    if len(kept) == keep:
        for path in passing:
            if path not in kept:
                _delete(path)


def _may_go(path: Path) -> bool:
    """Whether a checkpoint is known not to be permanent, as a save that was cut off is."""
    try:
        return not _note(path).exists() or not _read_note(path)["permanent"]
    except (ValueError, OSError):
        return False


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint's JSON is there and describes the file."""
    try:
        _check_digest(path)
    except ValueError:
        return False
    return True


def _delete(path: Path) -> None:
    _note(path).unlink(missing_ok=True)  # first, so that a kill in between leaves what the next save clears away
    path.unlink()


def _read_note(path: Path) -> dict[str, Any]:
    note = read_json(_note(path))
    kinds = {"step": int, "permanent": bool, "sha256": str, "bytes": int}
    wrong = [key for key, kind in kinds.items() if not isinstance(note.get(key), kind)]
    if wrong:
        raise ValueError(f"{_note(path)}: damaged, {wrong[0]} is missing or of another type")
    return note


def _check_digest(path: Path) -> None:
    """ValueError unless the file is the one that its JSON describes."""
    try:
        note, size = _read_note(path), path.stat().st_size
        if size != note["bytes"]:
            raise ValueError(f"{path}: damaged, {size} bytes where {note['bytes']} were written")
        if digest(path) != note["sha256"]:
            raise ValueError(f"{path}: damaged, its sha256 is not the one in {_note(path).name}")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def digest(path: Path) -> str:
    """The file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
