"""Damaged bytes: whatever reads a file gives a result or one line of ValueError or OSError, soon, and within bounded memory.

For each reader, files of its kind are changed at random (bits, bytes, numbers, pieces cut, doubled, moved or spliced from another
file) for so many seconds, in a process with limits. Counted are inputs and those that were read all the same. Found are other
exceptions, messages of several lines, processes that died, and inputs that took longer than PATIENCE_S or more than MEMORY_BYTES.
The inputs of findings are kept in --keep. The last line is JSON; the exit status is 1 if anything was found.

    python benchmarks/fuzz.py --seconds 60 --inputs ../shared/inputs
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # forking is safe only before torch has threads

import numpy as np
import torch
from PIL import Image

from openjepa.commands.convert import _read
from openjepa.data.annotations import open_coco
from openjepa.data.decode import EXTENSIONS, open_image, read_header
from openjepa.data.pack import write_pack
from openjepa.data.scenes.make import make_scenes
from openjepa.data.skipped import SkippedFiles
from openjepa.data.sources import open_source
from openjepa.data.sources.idx import read_idx
from openjepa.engine.checkpoint import load_checkpoint, write_checkpoint
from openjepa.evals.features import read_features
from openjepa.recipe.files import list_recipes, load_recipe, to_yaml
from openjepa.runs.folder import RunFolder, read_json
from openjepa.weights.match import check_fit, check_values, infer_recipe
from tests.unit.test_dicom import draw, make, write

PATIENCE_S = 20
MEMORY_BYTES = 3 * 2**30  # beyond what the process has at the start; the largest image that is read takes 0.7 GB a copy
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


class Target(NamedTuple):
    """A reader, called on a path, and the files that it reads whole."""

    read: Callable[[Path], Any]
    seeds: list[Path]


def read_image(path: Path) -> None:
    """As doctor looks at a file, and as training reads it."""
    read_header(str(path))
    for channels in (1, 3):
        open_image(str(path), channels).decode()


def read_pack(path: Path) -> None:
    """A pack whose table is damaged: the pixels beside are whole."""
    folder = path.parent / "pack"
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder / "pack.parquet")
    if not (folder / "pixels.bin").exists():
        (folder / "pixels.bin").write_bytes(PACK_PIXELS[0])
    source = open_source(str(folder), 3)
    for index in range(min(len(source), 20)):
        source.load(index)


PACK_PIXELS = [b""]


def read_weights(path: Path) -> None:
    """As `openjepa import` reads a file before it writes one."""
    weights = _read(path, None)
    check_fit(weights, infer_recipe(weights, 2))
    check_values(weights, to_float32=True)


def read_run_files(path: Path) -> None:
    """The small JSON files of a run."""
    folder = RunFolder(path.parent / "run")
    folder.create()
    shutil.copy(path, folder.metrics)
    list(folder.read_metrics("train"))
    read_json(path)


def read_skipped(path: Path) -> None:
    """The list of unreadable files, as a resumed run takes it up."""
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    SkippedFiles(copy, 10**9).add([("a", "b")])


def read_annotations(path: Path) -> None:
    """A COCO file, and every mask in it; the images that it names are whole."""
    source = open_coco(str(path.parent.parent / "seeds" / "scenes" / "train"), 3, str(path), need_masks=True)
    for objects in source.objects:
        objects.masks()


def make_targets(folder: Path, inputs: Path | None) -> dict[str, Target]:
    """All readers, with seeds made here and, of images and checkpoints, those of a folder."""
    folder.mkdir()
    dice = np.random.default_rng(0)
    images = folder / "images"
    (images / "a").mkdir(parents=True)
    picture = Image.fromarray(dice.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    for name in ("1.jpg", "2.png", "3.webp", "4.bmp", "5.tif", "6.gif"):
        picture.save(images / "a" / name)
    picture.save(images / "a" / "7.tif", compression="tiff_lzw")
    picture.convert("L").save(images / "a" / "8.jpg", progressive=True)
    np.save(images / "a" / "9.npy", dice.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    given = sorted(inputs.iterdir()) if inputs else []
    pictures = [*(path for path in given if path.suffix.lower() in EXTENSIONS), *sorted((images / "a").iterdir())]
    pack = folder / "packed"
    write_pack(open_source(str(images), 3), pack, 16)
    PACK_PIXELS[0] = (pack / "pixels.bin").read_bytes()
    info = {"step": 1, "recipe": load_recipe("demo").model_dump(mode="json"), "mean": [0.5], "std": [0.2]}
    write_checkpoint(folder / "plain.safetensors", {"method.a": torch.arange(6.0), "method.b": torch.ones(2, 3)}, info)
    torch.save({"patch_embed.proj.weight": torch.ones(8, 3, 4, 4), "loss": 1.0}, folder / "timm.pth")
    recipes = []
    for name in list_recipes():
        recipes.append(folder / f"{name}.yaml")
        recipes[-1].write_text(to_yaml(load_recipe(name)))
    (folder / "short.yaml").write_text("extends: demo\noptim: {lr: 1e-3}\ndata: &a {image_size: 32}\nviews: {main: {count: 1}}\n")
    (folder / "row.json").write_text('{"kind": "train", "step": 3, "loss": "NaN", "deep": {"a": [1, 2.5, null, true, "~NaN"]}}\n')
    (folder / "skipped.txt").write_text("a/b.png\tnot an image\nc\\td.png\t[Errno 2] gone\n")
    (folder / "t10k-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 3, 4, 4) + bytes(48))
    dicom = folder / "dicom"
    dicom.mkdir()
    write(make(draw(), WindowCenter=2000, WindowWidth=900, RescaleSlope=1, RescaleIntercept=-1024), dicom / "1.dcm")
    write(make(draw(np.int16, shape=(3, 8, 9)), "MONOCHROME1", frames=3), dicom / "2.dcm")
    write(make(draw(np.uint8, 8, (8, 9, 3)), "RGB", bits=8), dicom / "3.dcm")
    make_scenes(folder / "scenes", train=12, test=12, size=32, seed=0, processes=1)
    weights = [path for path in given if path.name.endswith(".pth.tar")] + [folder / "timm.pth"]
    source = open_source("sample:test", 1)
    return {
        "images": Target(read_image, pictures),
        "DICOM": Target(read_image, sorted(dicom.iterdir())),
        "annotations (COCO)": Target(read_annotations, [folder / "scenes" / "annotations" / "train.json"]),
        "packs (pack.parquet)": Target(read_pack, [pack / "pack.parquet"]),
        "checkpoints (.safetensors)": Target(load_checkpoint, [folder / "plain.safetensors"]),
        "weights (.pth.tar)": Target(read_weights, weights),
        "weights (.safetensors)": Target(read_weights, [folder / "plain.safetensors"]),
        "kept features": Target(lambda path: read_features(path, source), [folder / "plain.safetensors"]),
        "recipes": Target(load_recipe, [*recipes, folder / "short.yaml"]),
        "run.json, metrics.jsonl": Target(read_run_files, [folder / "row.json"]),
        "skipped.txt": Target(read_skipped, [folder / "skipped.txt"]),
        "idx files": Target(lambda path: read_idx(path, 3), [folder / "t10k-images-idx3-ubyte"]),
    }


def mutate(data: bytes, other: bytes, dice: random.Random) -> bytes:
    """The bytes with one to eight changes."""
    changed = bytearray(data)
    for _ in range(dice.choice([1, 1, 1, 2, 3, 8])):
        size = len(changed)
        # Headers decide most: half of all changes fall into the first hundred bytes.
        place = dice.randrange(min(size, dice.choice([100, size]))) if size else 0
        length = dice.choice([1, 2, 4, 16, 200])
        match dice.randrange(7):
            case 0 if size:
                changed[place] ^= 1 << dice.randrange(8)
            case 1 if size:
                changed[place : place + length] = dice.randbytes(min(length, size - place))
            case 2:
                width = dice.choice([1, 2, 4, 8])
                number = dice.choice(INTERESTING) & (1 << 8 * width) - 1
                changed[place : place + width] = number.to_bytes(width, dice.choice(["little", "big"]))
            case 3:
                del changed[place:]
            case 4:
                del changed[place : place + length]
            case 5:
                changed[place:place] = changed[place : place + length] * dice.choice([1, 1, 50])
            case _:
                start = dice.randrange(len(other)) if other else 0
                changed[place : place + length] = other[start : start + length]
    return bytes(changed)


class Findings(NamedTuple):
    """Of one reader: inputs, those that were read, the longest seconds, the largest growth in bytes, and what went wrong."""

    tried: int
    read: int
    slowest_s: float
    memory_bytes: int
    problems: list[str]


def fuzz(name: str, target: Target, seconds: float, work: Path, keep: Path, seed: int) -> Findings:
    """Fuzz one reader in child processes, one after another where one dies."""
    total, until = Findings(0, 0, 0.0, 0, []), time.monotonic() + seconds
    while time.monotonic() < until:
        note = work / "note.json"
        note.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            _fuzz_here(target, until, work, keep, seed + total.tried, note)
        status, killed = _watch(pid, work)
        found = Findings(*json.loads(note.read_text())) if note.exists() else Findings(0, 0, 0.0, 0, [])
        problems = list(found.problems)
        if status:
            saved = _keep(keep, work, f"died-{total.tried + found.tried}")
            problems.append(f"{'hung' if killed else 'died'}, status {status}: {saved}")
        total = Findings(
            total.tried + found.tried + bool(status), total.read + found.read, max(total.slowest_s, found.slowest_s),
            max(total.memory_bytes, found.memory_bytes), total.problems + problems,
        )  # fmt: skip
        if len(total.problems) > 20:
            break
    return total


def _watch(pid: int, work: Path) -> tuple[int, bool]:
    """The exit status of a child, and whether it was killed because one input held it too long."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), False
        if time.time() - _find_start(work) > 2 * PATIENCE_S:
            os.kill(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), True
        time.sleep(0.2)


def _find_start(work: Path) -> float:
    """When the present input was written; now, where there is none at the moment."""
    times = []
    for path in work.glob("input*"):
        with suppress(FileNotFoundError):  # it has just been read
            times.append(path.stat().st_mtime)
    return max(times, default=time.time())


class TooLong(BaseException):
    """An input took longer than PATIENCE_S."""


def _fuzz_here(target: Target, until: float, work: Path, keep: Path, seed: int, note: Path) -> None:
    """In a child: inputs one after another; what was found goes into `note`, again and again."""
    dice = random.Random(seed)
    contents = {path: path.read_bytes() for path in target.seeds}
    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (address_space + MEMORY_BYTES, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, _raise_too_long)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tried, read, slowest, problems = 0, 0, 0.0, list[str]()
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # libraries talk of damaged files
    while time.monotonic() < until and len(problems) < 5:
        seed_path = dice.choice(target.seeds)
        path = work / f"input{''.join(seed_path.suffixes[-2:])}"
        path.write_bytes(mutate(contents[seed_path], contents[dice.choice(target.seeds)], dice))
        began = time.monotonic()
        signal.alarm(PATIENCE_S)
        problem = ""
        try:
            target.read(path)
            read += 1
        except (ValueError, OSError) as error:
            problem = "" if len(str(error).splitlines()) <= 1 else f"several lines: {error!r}"
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}"
        signal.alarm(0)
        tried, slowest = tried + 1, max(slowest, time.monotonic() - began)
        if problem:
            problems.append(f"{problem[:200]}: {_keep(keep, work, f'{seed}-{tried}')}")
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
        if problem or tried % 50 == 0:
            note.write_text(json.dumps(Findings(tried, read, slowest, grown, problems)))
        path.unlink()
    note.write_text(json.dumps(Findings(tried, read, slowest, grown, problems)))
    os._exit(0)


def _raise_too_long(*_: object) -> None:
    raise TooLong(f"longer than {PATIENCE_S} s")


def _keep(keep: Path, work: Path, name: str) -> str:
    """Put the present input aside."""
    keep.mkdir(parents=True, exist_ok=True)
    saved = [shutil.copy(path, keep / f"{name}-{path.name}") for path in work.glob("input*") if path.suffix != ".copy"]
    return ", ".join(map(str, saved)) or "its input is lost"


def main() -> int:
    """Fuzz every reader, print a table and JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each reader")
    parser.add_argument("--inputs", type=Path, help="a folder of odd images and checkpoints to start from as well")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="where inputs of findings are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[""], help="readers whose names start so")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        targets = make_targets(Path(name) / "seeds", asked.inputs)
        work, table, num_problems = Path(name) / "work", {}, 0
        work.mkdir()
        print(f"{'reader':<28} {'inputs':>8} {'read':>8} {'slowest s':>9} {'memory MB':>9} {'found':>5}")
        for target_name, target in targets.items():
            if not target_name.startswith(tuple(asked.only)):
                continue
            found = fuzz(target_name, target, asked.seconds, work, asked.keep, asked.seed)
            memory_mb = found.memory_bytes / 1e6
            print(
                f"{target_name:<28} {found.tried:8} {found.read:8} {found.slowest_s:9.2f} {memory_mb:9.0f} "
                f"{len(found.problems):5}", flush=True,
            )  # fmt: skip
            for problem in found.problems:
                print(f"    {problem}", flush=True)
            table[target_name], num_problems = found._asdict(), num_problems + len(found.problems)
    print(json.dumps({"seed": asked.seed, "seconds": asked.seconds, "readers": table}))
    return 1 if num_problems else 0


if __name__ == "__main__":
    sys.exit(main())
