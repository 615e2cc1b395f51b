"""Images that are as they should be or have a defect, with a map of the defect where there is one.

A folder with a class folder `normal` or `good` and others, each a kind of defect. Maps are files of the same names but for the
extension, or ending in _mask, in a folder of their own: any value above 0 is the defect, 255 too, as MVTec AD writes it (Bergmann
et al. 2019, CVPR). Layouts that are found: DATA/images and DATA/annotations, as `openjepa make-scenes --defects` has them, and
MVTec AD's CATEGORY/test beside CATEGORY/ground_truth. A normal image needs no map. Left out: maps of several defects.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from openjepa.data.annotations import check_size
from openjepa.data.decode import EXTENSIONS, read_header
from openjepa.data.label_maps import find_map_folders, read_values
from openjepa.data.reading import AS_STORED, Reading
from openjepa.data.sources import FolderSource, describe_unlabelled, printable
from openjepa.data.sources.folder import open_folder
from openjepa.data.sources.walk import walk
from openjepa.runs.paths import user_path

NORMAL = ("normal", "good")  # names of the class folder of images without a defect
MVTEC_IMAGES, MVTEC_MAPS, MVTEC_SUFFIX = "test", "ground_truth", "_mask"


@dataclass(frozen=True, kw_only=True)
class DefectSource(FolderSource):
    """Image files, some with a defect; the labels say which kind. maps: the file of each image's map, if it has one."""

    is_defect: Bool[np.ndarray, " images"] = field(repr=False)
    maps: list[str | None] | None = field(repr=False)  # None where there are no maps at all
    unused: str | None = None  # one line about defects without a map

    def read_defect(self, index: int) -> Bool[np.ndarray, "height width"] | None:
        """Which pixels of an image are a defect; None where that is not known. DecodeError if the map cannot be read."""
        file = None if self.maps is None else self.maps[index]
        if file is not None:
            return read_values(file) > 0
        return None if self.maps is None or self.is_defect[index] else np.zeros(self.open(index).size, np.bool_)


def open_defects(spec: str, channels: int, annotations: str | None = None, reading: Reading = AS_STORED) -> DefectSource:
    """Images with and without a defect. annotations: the folder of maps, where it is not found beside the images.

    ValueError, one line, if there are no normal images or no others, or maps do not fit.
    """
    images, maps = find_defect_folders(spec)
    maps = annotations or maps
    source = open_folder(images, channels, replace(reading, pages="first"))
    if source.labels is None:
        raise ValueError(describe_unlabelled(source))
    is_defect = np.array([not is_normal(name) for name in source.classes])[source.labels]
    if is_defect.all() or not is_defect.any():
        asked = f"a class folder {' or '.join(NORMAL)}" if is_defect.all() else "a class folder of images with a defect"
        raise ValueError(f"{images} has no image in {asked}; it has {', '.join(source.classes[:5])}")
    found = None if maps is None else _find_maps(source.files, images, maps)
    missing = [] if found is None else [place for place in np.flatnonzero(is_defect).tolist() if found[place] is None]
    if found is not None and len(missing) == is_defect.sum():
        raise ValueError(f"no image with a defect in {images} has a map in {maps}: {source.path(missing[0])} would be the first")
    unused = f"{len(missing):,} images with a defect have no map in {maps}" if missing else None
    whole = {each.name: getattr(source, each.name) for each in fields(FolderSource)}
    return DefectSource(**whole, is_defect=is_defect, maps=found, unused=unused)


def is_normal(name: str) -> bool:
    """Whether a class is that of images without a defect."""
    return name.casefold() in NORMAL


def find_defect_folders(spec: str) -> tuple[str, str | None]:
    """The folder of images that a data spec means, and that of maps if one lies where the layouts have it."""
    if found := find_map_folders(spec):
        return found
    path = Path(os.path.abspath(user_path(spec)))
    maps = path.parent / MVTEC_MAPS
    return spec, str(maps) if path.name == MVTEC_IMAGES and maps.is_dir() else None


def _find_maps(files: list[str], images: str, maps: str) -> list[str | None]:
    """The map of each image. ValueError if the folder is none, or a map has another size than its image."""
    root, image_root = user_path(maps), user_path(images)
    if not root.is_dir():
        raise ValueError(f"there is no folder {maps} of maps")
    by_stem = {}
    for name in walk(root).files:
        stem, extension = os.path.splitext(name)
        if extension.lower() in EXTENSIONS:
            by_stem[stem] = str(root / name)
    found = []
    for file in files:
        stem = os.path.splitext(os.path.relpath(file, image_root))[0].replace(os.sep, "/")
        map_file = by_stem.get(stem, by_stem.get(stem + MVTEC_SUFFIX))
        if map_file is not None:
            of_image = f"and its image {printable(file)} is"
            check_size(printable(map_file), read_header(map_file).size, read_header(file).size, of_image)
        found.append(map_file)
    return found
