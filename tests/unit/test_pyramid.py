"""The simple feature pyramid: sizes, scales and gradients."""

import pytest
import torch

from openjepa.nn.pyramid import FeaturePyramid, PyramidBackbone
from openjepa.nn.vit import VisionTransformer


def make_vit(patch_size=4, size=16):
    torch.manual_seed(0)
    return VisionTransformer((size, size), patch_size, 3, (32, 1, 2, 2.0))


@pytest.mark.parametrize("patch_size", [4, 7])
def test_maps_have_the_papers_strides_at_other_sizes(patch_size):
    backbone = PyramidBackbone(make_vit(patch_size, 4 * patch_size), 8)
    maps = backbone(torch.randn(2, 3, 6 * patch_size, 10 * patch_size))
    assert [tuple(found.shape) for found in maps.values()] == [(2, 8, 24, 40), (2, 8, 12, 20), (2, 8, 6, 10), (2, 8, 3, 5)]
    assert backbone.stride_px == [patch_size / 4, patch_size / 2, patch_size, patch_size * 2]


def test_a_cell_is_where_it_says():
    """A patch changes the cells that lie over it, and those that a 3 x 3 convolution reaches from there."""
    pyramid = FeaturePyramid(32, 8)
    patches = torch.randn(1, 32, 8, 8)
    changed = patches.clone()
    changed[:, :, 4, 2] += 1
    for before, after, scale in zip(pyramid(patches), pyramid(changed), (4, 2, 1, 0.5), strict=True):
        rows, columns = (before != after).any(1)[0].nonzero().T
        for cells, place in ((rows, 4), (columns, 2)):
            assert int(cells.min()) == max(int(place * scale) - 1, 0)
            assert int(cells.max()) == int((place + 1) * scale - 0.5) + 1


def test_a_frozen_vit_is_left_alone():
    vit = make_vit()
    backbone = PyramidBackbone(vit, 8, frozen=True).train()
    assert backbone.pyramid.training and not vit.training
    sum(found.square().mean() for found in backbone(torch.randn(1, 3, 16, 16)).values()).backward()
    assert all(weight.grad is None for weight in vit.parameters())
    assert all(weight.grad is not None for weight in backbone.pyramid.parameters())
    trained = PyramidBackbone(make_vit(), 8)
    sum((found * torch.randn_like(found)).sum() for found in trained(torch.randn(1, 3, 16, 16)).values()).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in trained.vit.blocks.parameters())
