"""Images with a label map each: the class of every pixel.

Two kinds. A folder of maps beside the folder of images, with the same names but for the extension, as ADE20K has them (Zhou et
al. 2017, CVPR; arXiv 1608.05442): ROOT/images/training and ROOT/annotations/training, or DATA/images and DATA/annotations. And
the masks of a COCO file, painted into maps: smaller objects over larger ones, crowd regions ignored, since their outline is
coarse, and everything else background. A map has one channel of 8 bits. 255 is always ignored. 0 is a class, background, unless
it is said to be ADE20K's "other", which is ignored. Left out: maps of colours, panoptic files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from openjepa.data.annotations import AnnotatedSource, Objects, check_size, find_annotations, open_coco
from openjepa.data.decode import EXTENSIONS, FORMATS, DecodeError, read_header
from openjepa.data.reading import AS_STORED, Reading
from openjepa.data.sources import FolderSource, printable
from openjepa.data.sources.folder import open_folder
from openjepa.data.sources.walk import walk
from openjepa.runs.paths import user_path

LabelMap = UInt8[np.ndarray, "height width"]

IGNORED = 255  # the value of pixels that have no class
BACKGROUND = "background"


@dataclass(frozen=True, kw_only=True)
class MappedSource(FolderSource):
    """Image files with a label map each. An image has no single class: labels is None.

    background: which of map_classes means no object; None where every pixel has a class of its own.
    """

    map_classes: list[str]
    background: int | None
    read: Callable[[int], LabelMap] = field(repr=False)
    unused: str | None = None  # one line about what could not be used

    def read_map(self, index: int) -> LabelMap:
        """Indices into map_classes, and IGNORED. DecodeError if the map cannot be read."""
        return self.read(index)


def open_mapped(
    spec: str, channels: int, annotations: str | None = None, *, ignore_zero: bool = False, reading: Reading = AS_STORED
) -> MappedSource:
    """Images with label maps: from a folder of maps or a COCO file, named or found beside the images.

    ignore_zero: 0 in a folder's maps is ignored. reading: of the images' samples. ValueError, one line, for layouts that are
    neither and maps that do not fit.
    """
    folders = find_map_folders(spec) if annotations is None else (spec, annotations) if Path(annotations).is_dir() else None
    if folders is not None:
        return open_map_folder(*folders, channels, ignore_zero=ignore_zero, reading=reading)
    if ignore_zero:
        raise ValueError(f"{spec} has COCO annotations, whose pixels without an object are a class: drop --ignore-zero")
    if annotations is None:
        try:
            find_annotations(spec)
        except ValueError as error:
            raise ValueError(f"{error}, or keep label maps as ROOT/images/... and ROOT/annotations/...") from None
    return paint_coco(open_coco(spec, channels, annotations, need_masks=True, reading=reading))


def find_map_folders(spec: str) -> tuple[str, str] | None:
    """The folder of images and the folder of maps of a data spec in one of the two layouts; None if it is in neither."""
    root = user_path(spec)
    if (root / "images").is_dir() and (root / "annotations").is_dir():
        return str(root / "images"), str(root / "annotations")
    parts = Path(os.path.abspath(root)).parts
    for place in reversed(range(len(parts))):
        if parts[place] == "images":
            maps = Path(*parts[:place], "annotations", *parts[place + 1 :])
            return (spec, str(maps)) if maps.is_dir() else None
    return None


def open_map_folder(
    images: str, maps: str, channels: int, *, ignore_zero: bool = False, reading: Reading = AS_STORED
) -> MappedSource:
    """Images and maps of the same names. Every map is read once: it has its image's size, and its values are the classes.

    ValueError if no image has a map, or a map is none.
    """
    source = open_folder(images, channels, replace(reading, pages="first"))
    map_root, image_root = user_path(maps), user_path(images)
    by_stem = {os.path.splitext(name)[0]: name for name in walk(map_root).files if _is_image(name)}
    stems = [os.path.splitext(os.path.relpath(file, image_root))[0].replace(os.sep, "/") for file in source.files]
    pairs = [(file, str(map_root / by_stem[stem])) for file, stem in zip(source.files, stems, strict=True) if stem in by_stem]
    missing = [file for file, stem in zip(source.files, stems, strict=True) if stem not in by_stem]
    if not pairs:
        example = f"{stems[0]}.png"
        raise ValueError(f"no image of {images} has a label map in {maps}: {printable(example)} would be the first")
    found = np.zeros(IGNORED + 1, bool)
    for file, map_file in pairs:
        values = read_values(map_file)
        check_size(printable(map_file), values.shape, read_header(file).size, f"and its image {printable(file)} is")
        found |= np.bincount(values.ravel(), minlength=IGNORED + 1) > 0
    numbers = [value for value in np.flatnonzero(found[:IGNORED]).tolist() if value or not ignore_zero]
    if not numbers:
        raise ValueError(f"{maps} has no class: every pixel is ignored")
    table = np.full(IGNORED + 1, IGNORED, np.uint8)
    table[numbers] = np.arange(len(numbers))
    names = [str(number) if number else BACKGROUND for number in numbers]
    unused = f"{len(missing):,} images of {images} have no label map (first: {printable(missing[0])})" if missing else None
    files, map_files = [file for file, _ in pairs], [map_file for _, map_file in pairs]
    background = 0 if numbers[0] == 0 else None
    return MappedSource(
        images, channels, files, None, [], reading, map_classes=names, background=background,
        read=partial(_read_numbers, map_files, table), unused=unused,
    )  # fmt: skip


def paint_coco(source: AnnotatedSource) -> MappedSource:
    """The masks of annotated images as label maps."""
    if len(source.categories) >= IGNORED:
        raise ValueError(f"{source.file} has {len(source.categories)} classes, more than the {IGNORED - 1} of a label map")
    background = BACKGROUND if BACKGROUND not in source.categories else "no object"
    return MappedSource(
        source.spec, source.channels, source.files, None, [], source.reading, map_classes=[background, *source.categories],
        background=0, read=partial(_paint_image, source.objects), unused=source.unused,
    )  # fmt: skip


def paint(objects: Objects) -> LabelMap:
    """An image's map: 0 is background, 1 the first category."""
    canvas = np.zeros(objects.size, np.uint8)
    masks = objects.masks()
    for number in sorted(range(len(objects)), key=lambda number: -int(masks[number].sum())):
        if not objects.crowd_mask[number]:
            canvas[masks[number]] = objects.labels[number] + 1
    crowd = masks[objects.crowd_mask].any(0)
    canvas[crowd & (canvas == 0)] = IGNORED
    return canvas


def read_values(path: str) -> Integer[np.ndarray, "height width"]:
    """The 8-bit values of a map's file. DecodeError for any other file."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            mode, values = image.mode, np.asarray(image)
    except Exception as error:  # as in decode.py: damaged files make Pillow raise almost anything
        raise DecodeError(printable(path), " ".join(str(error).split()) or type(error).__name__) from error
    if values.ndim != 2 or values.dtype.kind not in "uib":
        raise DecodeError(printable(path), f"is a picture of mode {mode}; a label map has one channel of class numbers")
    for value in (values.min(initial=0), values.max(initial=0)):
        if not 0 <= value <= IGNORED:
            raise DecodeError(printable(path), f"has the value {value}; a label map has 8 bits, 0 to {IGNORED}")
    return values.astype(np.uint8)


def _read_numbers(files: list[str], table: UInt8[np.ndarray, " 256"], index: int) -> LabelMap:
    numbers: LabelMap = table[read_values(files[index])]
    return numbers


def _paint_image(objects: list[Objects], index: int) -> LabelMap:
    return paint(objects[index])


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS
