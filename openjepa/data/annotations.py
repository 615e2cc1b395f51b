"""Images with boxes, classes and masks of their objects, from a COCO annotation file as many tools write them.

Source: T.-Y. Lin et al. 2014 (arXiv 1405.0312), format at cocodataset.org: categories with ids that may have holes, images by
file name, annotations with bbox [x, y, width, height], segmentation, area and iscrowd. What cannot be used is left out, counted
and named in one line: files that are not there, boxes without area, masks that do not fit. Boxes are cut to their image. Left
out: keypoints, captions, panoptic files.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from openjepa.data.decode import DecodeError, Picture, Pixels, read_header
from openjepa.data.reading import AS_STORED, Reading
from openjepa.data.segments import Segmentation, clean_segmentation, decode_mask
from openjepa.data.sources import FolderSource, ImageSource, open_source, printable
from openjepa.data.sources.few import PURPOSE, split_few
from openjepa.recipe.methods import Detection, MethodSection
from openjepa.runs.paths import absolute_path, user_path

Row = dict[str, Any]

MOST_NAMED = 5  # class names in an error
MOST_PX = 1e9  # of a coordinate; NaN is not below it


@dataclass(frozen=True)
class Objects:
    """What is annotated in one image of height and width `size`."""

    size: tuple[int, int]
    boxes: Float32[np.ndarray, "objects 4"] = field(repr=False)  # left, top, right, bottom in pixels, each with an area
    labels: Int64[np.ndarray, " objects"] = field(repr=False)  # indices into the source's categories
    crowd_mask: Bool[np.ndarray, " objects"] = field(repr=False)  # True where many objects share one annotation
    areas: Float32[np.ndarray, " objects"] = field(repr=False)  # pixels, as the file says
    segmentations: list[Segmentation | None] = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def masks(self) -> Bool[np.ndarray, "objects height width"]:
        """The objects' pixels, decoded now; of an object without a mask, none."""
        masks = np.zeros((len(self), *self.size), bool)
        for mask, segmentation in zip(masks, self.segmentations, strict=True):
            if segmentation is not None:
                mask[:] = decode_mask(segmentation, self.size)
        return masks

    def take(self, chosen: Iterable[int]) -> Objects:
        """Some of them, by number."""
        idx = np.array(list(chosen), np.int64)
        parts = (self.boxes[idx], self.labels[idx], self.crowd_mask[idx], self.areas[idx])
        return Objects(self.size, *parts, [self.segmentations[number] for number in idx])

    def without_crowds(self) -> Objects:
        """The single objects, which a detector can learn from."""
        return self.take(np.flatnonzero(~self.crowd_mask).tolist())


@dataclass(frozen=True, kw_only=True)
class AnnotatedSource(FolderSource):
    """Image files with annotated objects, some with none. An image has no single class: labels is None."""

    file: str  # of the annotations
    categories: list[str]  # names, by label
    category_ids: list[int] = field(repr=False)  # as the file has them, by label
    image_ids: list[int] = field(repr=False)
    objects: list[Objects] = field(repr=False)  # one entry an image
    unused: str | None = None  # one line about what could not be used
    folder: str = ""  # that files lie in, where the spec says more than this

    @property
    def root(self) -> str:
        """The folder of the files."""
        return self.folder or self.spec

    def load_checked(self, index: int) -> Pixels:
        """An image of the size that its annotations are for. DecodeError if it has another or cannot be read."""
        pixels = self.load(index)
        check_size(self.path(index), pixels.shape[:2], self.objects[index].size, "its annotations are")
        return pixels

    def open_checked(self, index: int) -> Picture:
        """As load_checked, before anything is decoded."""
        picture = self.open(index)
        check_size(self.path(index), picture.size, self.objects[index].size, "its annotations are")
        return picture

    def with_categories(self, other: AnnotatedSource) -> AnnotatedSource:
        """The same images with the labels that another source, the one to train on, gives to categories of the same names.

        ValueError names the classes that the other lacks.
        """
        return self.with_names(other.categories, other.file)

    def with_names(self, names: list[str], whose: str) -> AnnotatedSource:
        """The same images with labels that are indices into these classes, matched by name.

        whose: the classes, for the ValueError that names those that they lack.
        """
        unknown = [name for name in self.categories if name not in names]
        if unknown:
            raise ValueError(f"{self.file} has classes that {whose} lacks: {list_names(unknown)}; it has {list_names(names)}")
        number = np.array([names.index(name) for name in self.categories], np.int64)
        own_ids = dict(zip(self.categories, self.category_ids, strict=True))
        unused = itertools.count(max(self.category_ids) + 1)  # for classes that only the other has
        ids = [own_ids[name] if name in own_ids else next(unused) for name in names]
        objects = [replace(found, labels=number[found.labels]) for found in self.objects]
        return replace(self, categories=names, category_ids=ids, objects=objects)

    def take(self, chosen: Iterable[int], spec: str) -> AnnotatedSource:
        """Some of the images, by number, under a spec of their own."""
        idx = list(chosen)
        return replace(
            self, spec=spec, folder=self.root, files=[self.files[number] for number in idx],
            image_ids=[self.image_ids[number] for number in idx], objects=[self.objects[number] for number in idx],
        )  # fmt: skip

    def count_objects(self) -> int:
        """Objects that count one by one: no crowds."""
        return sum(int((~found.crowd_mask).sum()) for found in self.objects)


def check_size(path: str, found: tuple[int, ...], wanted: tuple[int, ...], whose: str) -> None:
    """DecodeError unless an image has the height and width that goes with it."""
    if tuple(found) != tuple(wanted):
        raise DecodeError(path, f"is {found[0]} x {found[1]} px, {whose} {wanted[0]} x {wanted[1]}")


def list_names(names: list[str]) -> str:
    """Some class names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def find_annotations(spec: str) -> Path:
    """The annotation file that goes with a folder of images. ValueError lists where it was looked for."""
    folder = Path(absolute_path(spec))
    above, name = folder.parent, folder.name
    places = [
        above / "annotations" / f"{name}.json", above / "annotations" / f"instances_{name}.json", above / f"{name}.json",
        folder / "_annotations.coco.json", folder / "annotations.json",
    ]  # fmt: skip
    for place in places:
        if place.is_file():
            return place
    tried = ", ".join(os.path.relpath(place, above) for place in places)
    raise ValueError(f"{spec} has no annotations: none of {tried} is in {above}; name the COCO file")


def open_coco(
    spec: str, channels: int, file: str | None = None, *, need_masks: bool = False, reading: Reading = AS_STORED
) -> AnnotatedSource:
    """The images of a folder that an annotation file lists; the file beside it if none is named.

    need_masks: objects without a usable mask are left out, too. reading: of the images' samples. ValueError if nothing
    can be used.
    """
    path = find_annotations(spec) if file is None else user_path(file)
    if not user_path(spec).is_dir():
        raise ValueError(f"{spec} is not a folder of images; the annotations in {path} name files")
    return _Reader(spec, path, need_masks).read(channels, reading)


def open_annotated(spec: str, channels: int, *, need_masks: bool = False, reading: Reading = AS_STORED) -> AnnotatedSource:
    """Annotated images as training and evaluation take them: a folder with a COCO file, or few:IMAGES:DRAW:FOLDER.

    few: IMAGES of the folder's images, drawn without replacement by the number DRAW, as if only these had been annotated; all
    where it has no more. A larger draw holds every image of a smaller one. What cannot be used is in the source's notes.
    ValueError as open_coco raises it, or if no single object is among the images.
    """
    kind, _, rest = spec.partition(":")
    is_few = kind == "few" and bool(rest)
    count, draw, folder = split_few(spec, rest) if is_few else (0, 0, spec)
    source = open_coco(folder, channels, need_masks=need_masks, reading=reading)
    source = replace(source, notes=[source.unused] if source.unused else [])
    if is_few:
        order = np.random.default_rng([draw, PURPOSE]).permutation(len(source))
        source = source.take(sorted(order[:count].tolist()), spec)
    if not source.count_objects():
        raise ValueError(
            f"{spec} has no object to learn from or to find: its {len(source):,} images hold crowd regions or nothing"
        )
    return source


def open_for(method: MethodSection, spec: str, channels: int, reading: Reading = AS_STORED) -> ImageSource:
    """Training images as a method takes them: with their objects, or as open_source gives them."""
    if isinstance(method, Detection):
        return open_annotated(spec, channels, need_masks=method.detector == "mask_rcnn", reading=reading)
    return open_source(spec, channels, reading)


class _LeftOut:
    """What could not be used: how often, and the first of each kind."""

    def __init__(self) -> None:
        self.kinds: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, which: object) -> None:
        count, first = self.kinds.get(kind, (0, str(which).encode("utf-8", "backslashreplace").decode()))
        self.kinds[kind] = (count + 1, first)

    def describe(self, path: str) -> str | None:
        found = ", ".join(f"{count:,} {kind} (first: {first})" for kind, (count, first) in self.kinds.items())
        return " ".join(f"{path}: left out {found}".split()) if found else None


class _Reader:
    """Reads one annotation file."""

    def __init__(self, spec: str, path: Path, need_masks: bool) -> None:
        self.spec, self.path, self.need_masks = spec, path, need_masks
        self.name = printable(str(path))
        self.left_out = _LeftOut()

    def read(self, channels: int, reading: Reading) -> AnnotatedSource:
        images, annotations, categories = self._read_lists()
        ids, names = self._read_categories(categories)
        files, sizes = self._find_images(images)
        by_image: dict[int, list[Row]] = {image_id: [] for image_id in files}
        known = {row["id"] for row in images if _is_id(row.get("id"))}
        label_of = {category_id: label for label, category_id in enumerate(ids)}
        num_used = 0
        for row in annotations:
            image_id = row.get("image_id")
            if not _is_id(image_id) or image_id not in known:
                self.left_out.add("annotations of images that are not listed", row.get("id"))
            elif image_id in files and (usable := self._read_annotation(row, sizes[image_id], label_of)) is not None:
                by_image[image_id].append(usable)
                num_used += 1
        left_out = self.left_out.describe(self.name)
        if not files or not num_used:
            why = left_out or f"{self.name}: it lists {len(images):,} images and {len(annotations):,} annotations"
            raise ValueError(f"no {'annotation' if files else 'image'} can be used: {why}")
        objects = [_gather(by_image[image_id], sizes[image_id]) for image_id in files]
        return AnnotatedSource(
            self.spec, channels, list(files.values()), None, [], reading, file=self.name, categories=names, category_ids=ids,
            image_ids=list(files), objects=objects, unused=left_out,
        )  # fmt: skip

    def _read_lists(self) -> tuple[list[Row], list[Row], list[Row]]:
        try:
            content = json.loads(self.path.read_text("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.name} is not JSON: {error}") from None
        if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in LISTS):
            raise ValueError(f"{self.name} is not a COCO annotation file: it needs the lists {', '.join(LISTS)}")
        images, annotations, categories = ([row for row in content[key] if isinstance(row, dict)] for key in LISTS)
        return images, annotations, categories

    def _read_categories(self, rows: list[Row]) -> tuple[list[int], list[str]]:
        found = {row["id"]: str(row.get("name", row["id"])) for row in rows if _is_id(row.get("id"))}
        names = [found[category_id] for category_id in sorted(found)]
        twice = [name for name in names if names.count(name) > 1]
        if not found or twice:
            what = f"has two categories named {twice[0]!r}" if twice else "has no categories"
            raise ValueError(f"{self.name} {what}")
        return sorted(found), names

    def _find_images(self, rows: list[Row]) -> tuple[dict[int, str], dict[int, tuple[int, int]]]:
        """File and size by image id, of those images that are there."""
        files: dict[int, str] = {}
        sizes: dict[int, tuple[int, int]] = {}
        for row in rows:
            image_id, name = row.get("id"), row.get("file_name")
            if not _is_id(image_id) or not isinstance(name, str) or not name:
                self.left_out.add("images without a number or a file name", name or image_id)
            elif image_id in files:
                self.left_out.add("images whose id another has", name)
            elif (file := self._find_file(name)) is None:
                self.left_out.add("images that are missing", name)
            elif (size := _read_size(row, file)) is None:
                self.left_out.add("images that cannot be read", name)
            else:
                assert isinstance(image_id, int)
                files[image_id], sizes[image_id] = file, size
        return files, sizes

    def _find_file(self, name: str) -> str | None:
        """Where a listed file lies: below the folder of images, by its path or its name alone, or beside the annotations."""
        root, local = user_path(self.spec), name.replace("\\", "/")
        places = (root / local, root / local.rsplit("/", 1)[-1], self.path.parent / local)
        return next((str(place) for place in places if place.is_file()), None)

    def _read_annotation(self, row: Row, size: tuple[int, int], label_of: dict[int, int]) -> Row | None:
        """Box, label, crowd, area and mask of an annotation; None, and counted, if it cannot be used."""
        which = f"annotation {row.get('id')}"
        category, box = row.get("category_id"), row.get("bbox")
        if not _is_id(category) or category not in label_of:
            self.left_out.add("annotations of unknown categories", which)
            return None
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
            self.left_out.add("annotations without a box of four numbers", which)
            return None
        corners = _cut_box([float(value) for value in box], size)
        if corners is None:
            self.left_out.add("boxes without area in the image", which)
            return None
        mask = clean_segmentation(row.get("segmentation"), size)
        if mask is None and self.need_masks:
            self.left_out.add("annotations without a usable mask", which)
            return None
        area = row.get("area")
        full_area = (corners[2] - corners[0]) * (corners[3] - corners[1])
        return {
            "box": corners, "label": label_of[category], "crowd": bool(row.get("iscrowd")), "mask": mask,
            "area": float(area) if isinstance(area, int | float) and 0 < area < MOST_PX else full_area,
        }  # fmt: skip


LISTS = ("images", "annotations", "categories")


def _gather(rows: list[Row], size: tuple[int, int]) -> Objects:
    return Objects(
        size,
        np.array([row["box"] for row in rows], np.float32).reshape(-1, 4),
        np.array([row["label"] for row in rows], np.int64),
        np.array([row["crowd"] for row in rows], bool),
        np.array([row["area"] for row in rows], np.float32),
        [row["mask"] for row in rows],
    )


def _cut_box(box: list[float], size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom of [x, y, width, height] within the image; None where nothing is left in float32."""
    x, y, width, height = box
    corners = np.clip(np.array([x, y, x + width, y + height], np.float32), 0, np.array([size[1], size[0]] * 2, np.float32))
    left, top, right, bottom = corners.tolist()
    return (left, top, right, bottom) if left < right and top < bottom else None


def _read_size(row: Row, file: str) -> tuple[int, int] | None:
    """Height and width of an image as the annotations say, or else its file."""
    size = (row.get("height"), row.get("width"))
    if all(_is_id(value) and value > 0 for value in size):  # type: ignore[operator]
        return size  # type: ignore[return-value]
    try:
        return read_header(file).size
    except DecodeError:
        return None


def _is_id(value: object) -> bool:
    return type(value) is int


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -MOST_PX < value < MOST_PX
