"""A detector over a source: an oracle scores 1, and its findings leave as COCO JSON and pictures."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openjepa.data.annotations import open_coco
from openjepa.evals.detection import score_detector
from openjepa.nn.detector import Found, build_detector, predict
from openjepa.nn.encoder import Encoder
from openjepa.nn.vit import VisionTransformer


def make_oracle(source, with_masks=True):
    """Knows every image of the source by its pixels."""
    known = {source.load(index).tobytes(): source.objects[index] for index in range(len(source))}

    def find(images):
        objects = [known[image.permute(1, 2, 0).numpy().tobytes()] for image in images]
        return [
            Found(
                torch.from_numpy(found.boxes), torch.from_numpy(found.labels), torch.ones(len(found)),
                torch.from_numpy(found.masks()) if with_masks else None,
            )
            for found in objects
        ]  # fmt: skip

    return find


def test_an_oracle_is_right_and_its_findings_are_written(scenes, tmp_path):
    source = open_coco(str(scenes / "test"), 3)
    scored = score_detector(make_oracle(source), source, predictions=tmp_path / "found.json", pictures=tmp_path / "drawn")
    assert scored.boxes["AP"] == scored.masks["AP"] == 1 and scored.skipped == []
    written = json.loads((tmp_path / "found.json").read_text())
    assert written == scored.predictions and len(written) == sum(len(found) for found in source.objects)
    assert len(list((tmp_path / "drawn").iterdir())) == len(source)
    drawn = np.asarray(Image.open(tmp_path / "drawn" / "000000.png"))
    unchanged = (drawn[4::8, 4::8] == source.load(0)).all(-1)
    assert not (unchanged & source.objects[0].masks().any(0)).all() and unchanged.any()
    assert score_detector(make_oracle(source, with_masks=False), source).masks is None


def test_unreadable_images_count_as_missed(scenes, tmp_path):
    copy = tmp_path / "test"
    source = open_coco(str(scenes / "test"), 3)
    for index in range(len(source)):
        path = copy / source.path(index).removeprefix(str(scenes / "test/"))[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if index == 2 else Path(source.path(index)).read_bytes())
    damaged = open_coco(str(copy), 3, str(scenes / "annotations" / "test.json"))
    scored = score_detector(make_oracle(source), damaged)
    assert [path for path, _ in scored.skipped] == [damaged.path(2)]
    assert 0 < scored.boxes["AP"] < 1


@pytest.mark.parametrize("kind", ["fcos", "mask_rcnn"])
def test_an_untrained_detector_is_scored(scenes, kind):
    torch.manual_seed(0)
    source = open_coco(str(scenes / "test"), 3)
    encoder = Encoder(VisionTransformer((32, 32), 8, 3, (32, 1, 2, 2.0)), [0.5] * 3, [0.25] * 3)
    detector = build_detector(encoder, kind, len(source.categories), channels=32)
    scored = score_detector(partial(predict, detector), source)
    assert scored.boxes["AP"] < 0.2
    assert all(value <= 1 for value in scored.boxes.values())
