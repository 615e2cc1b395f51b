"""Detectors: what they need, what they give, and that they learn."""

import pytest
import torch
from torchvision.models.detection import MaskRCNN

from openjepa.data.annotations import open_coco
from openjepa.nn.detector import Target, build_detector, detector_loss, predict
from openjepa.nn.encoder import Encoder, normalise
from openjepa.nn.vit import VisionTransformer


def make_encoder(patch_size=4, size=32, channels=3, seed=0):
    torch.manual_seed(seed)
    vit = VisionTransformer((size, size), patch_size, channels, (32, 1, 2, 2.0))
    return Encoder(vit, [0.2, 0.4, 0.6, 0.5][:channels], [0.2, 0.3, 0.25, 0.5][:channels])


def build(kind, **options):
    return build_detector(options.pop("encoder", None) or make_encoder(), kind, 12, channels=32, boxes_per_image=32, **options)


def read_scenes(scenes, count):
    source = open_coco(str(scenes / "train"), 3)
    images = [torch.from_numpy(source.load(index)).permute(2, 0, 1) for index in range(count)]
    targets = [
        Target(torch.from_numpy(found.boxes), torch.from_numpy(found.labels), torch.from_numpy(found.masks()))
        for found in source.objects[:count]
    ]
    return images, targets


@pytest.mark.parametrize("kind", ["fcos", "mask_rcnn"])
def test_the_loss_falls_on_a_few_scenes(scenes, kind):
    images, targets = read_scenes(scenes, 2)
    detector = build(kind).train()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss, parts = detector_loss(detector, images, targets)
        assert float(loss.detach()) == pytest.approx(sum(float(part) for part in parts.values()), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3]), losses
    assert all(weight.grad is not None for group in detector.weight_groups() for weight in group.weights)


@pytest.mark.parametrize("kind", ["fcos", "mask_rcnn"])
def test_what_it_finds_lies_in_the_image(kind):
    """An untrained detector is sure of nothing, so everything counts; images of two sizes, one without an integer scale."""
    detector = build(kind)
    heads = detector.model if kind == "fcos" else detector.model.roi_heads
    heads.score_thresh = 0.0
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((32, 32), (45, 30), (45, 30))]
    for image, found in zip(images, predict(detector, images), strict=True):
        height, width = image.shape[1:]
        assert len(found.boxes) > 0
        assert (found.boxes[:, :2] < found.boxes[:, 2:]).all() and (found.boxes >= 0).all()
        assert float(found.boxes[:, 0::2].max()) <= width and float(found.boxes[:, 1::2].max()) <= height
        assert int(found.labels.min()) >= 0 and int(found.labels.max()) < 12
        assert (found.scores.diff() <= 0).all()
        assert (found.masks is None) == (kind == "fcos")
        if found.masks is not None:
            assert found.masks.shape == (len(found.boxes), height, width) and found.masks.dtype == torch.bool
    alone = predict(detector, images[1:2])[0]
    assert torch.allclose(alone.boxes, predict(detector, images)[1].boxes, atol=1e-3)


def test_the_encoder_sees_what_it_always_sees():
    """Images at the detector's size reach the ViT as the encoder's own normalisation makes them."""
    encoder = make_encoder()
    seen = []
    detector = build("fcos", encoder=encoder)
    encoder.vit.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    predict(detector, list(images))
    assert torch.allclose(seen[0], normalise(images, encoder.mean, encoder.std), atol=1e-6)


def test_images_without_objects_and_other_channels():
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 32, 32, dtype=torch.bool))
    for kind in ("fcos", "mask_rcnn"):
        detector = build(kind, encoder=make_encoder(channels=1)).train()
        loss, _ = detector_loss(detector, [torch.zeros(1, 32, 32, dtype=torch.uint8)], [empty])
        assert bool(loss.isfinite())
        with pytest.raises(ValueError, match="an image has 3 channels, the detector takes 1"):
            predict(detector, [torch.zeros(3, 32, 32)])


def test_frozen_leaves_the_encoder_out():
    encoder = make_encoder()
    detector = build("fcos", encoder=encoder, frozen=True)
    groups = detector.weight_groups()
    assert [group.layers_above for group in groups] == [None]
    assert not any(weight.requires_grad for weight in encoder.vit.parameters())
    thawed = build("fcos").weight_groups()
    assert [group.layers_above for group in thawed] == [1, 0, 0, None]


def test_at_256_channels_the_heads_are_torchvisions():
    ours = build_detector(make_encoder(), "mask_rcnn", 5)
    theirs = MaskRCNN(ours.backbone, 6).roi_heads
    shapes = [[(name, weight.shape) for name, weight in heads.named_parameters()] for heads in (ours.model.roi_heads, theirs)]
    assert shapes[0] == shapes[1]


def test_strides_that_cannot_be_made_are_refused():
    with pytest.raises(
        ValueError, match="mask_rcnn needs a patch size that 4 divides, the encoder's is 14 px; fcos takes even ones"
    ):
        build("mask_rcnn", encoder=make_encoder(14, 28))
    with pytest.raises(ValueError, match="fcos needs a patch size that 2 divides, the encoder's is 7 px"):
        build("fcos", encoder=make_encoder(7, 28))
    detector = build("mask_rcnn", encoder=make_encoder(12, 48))
    assert detector.model.roi_heads.box_roi_pool.scales == [1 / 3, 1 / 6, 1 / 12, 1 / 24]


def test_a_box_is_pooled_where_torchvision_would_pool_it():
    """At patches of 16 px the strides are those that torchvision guesses, and so are the levels."""
    pooler = build("mask_rcnn", encoder=make_encoder(16, 64)).model.roi_heads.box_roi_pool
    own = type(pooler)(["0", "1", "2", "3"], 7, 2)
    maps = {str(level): torch.randn(1, 4, 256 // stride, 256 // stride) for level, stride in enumerate((4, 8, 16, 32))}
    boxes = [torch.tensor([[0.0, 0, 255, 255], [3, 5, 40, 60], [8, 8, 130, 120], [1, 1, 9, 9]])]
    assert torch.equal(pooler(maps, boxes, [(256, 256)]), own(maps, boxes, [(256, 256)]))
