"""The network's input: standardised images, and random changes that keep the digit."""

import pytest
import torch
from torch.nn import functional as F

from dann.inputs import (
    geometry,
    intensity,
    neighbours,
    network_input,
    photograph,
    picture,
    scale_range,
    standardise,
)

WIDE = (0.9, 1.5)


def test_standardise():
    images = torch.rand(4, 3, 28, 28) * torch.tensor([0.1, 1, 5, 0])[:, None, None, None] + 3
    out = standardise(images)
    torch.testing.assert_close(out.mean((1, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(out[:3].std((1, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    assert (out[3] == 0).all()


def test_geometry_keeps_shape_range_and_flat_images():
    images = torch.rand(16, 3, 28, 28) * 2 - 1
    moved = geometry(images, WIDE)
    assert moved.shape == images.shape and moved.dtype == torch.float32
    assert moved.min() >= -1 and moved.max() <= 1
    assert not torch.allclose(moved, images)
    flat = torch.full((4, 3, 28, 28), 0.25)
    torch.testing.assert_close(geometry(flat, WIDE), flat)


@pytest.mark.parametrize("scale, smallest, largest", [((0.9, 1.5), 0.8, 2.3), ((0.6, 1.1), 0.3, 1.3)])
def test_geometry_respects_the_scale_and_never_mirrors(scale, smallest, largest, monkeypatch):
    """A mark in the upper left corner stays nearer to that corner than to any other."""
    monkeypatch.setattr("dann.inputs.WIDTH", (1, 1))
    images = torch.zeros(400, 1, 28, 28)
    images[:, :, 7:10, 7:10] = 1
    mass = geometry(images, scale)[:, 0]
    assert (mass[:, :14, :14].sum((1, 2)) > 0.7 * mass.sum((1, 2))).all()
    area = mass.sum((1, 2)) / 9
    assert smallest < area.quantile(0.02) and area.quantile(0.98) < largest
    assert area.median().item() == pytest.approx((sum(scale) / 2) ** 2, rel=0.15)


def test_geometry_rotates(monkeypatch):
    """Without shear and shift, marks to the right of the centre and below it stay at a right angle."""
    torch.manual_seed(0)
    monkeypatch.setattr("dann.inputs.WIDTH", (1, 1))
    monkeypatch.setattr("dann.inputs.SHEAR", 0)
    monkeypatch.setattr("dann.inputs.SHIFT", 0)
    marks = torch.zeros(100, 2, 28, 28)  # one channel per mark
    marks[:, 0, 13:15, 22:24] = marks[:, 1, 22:24, 13:15] = 1
    line = torch.arange(28) - 13.5
    moved = geometry(marks, (1, 1))
    mass = moved / moved.sum((2, 3), keepdim=True)
    x, y = (mass.sum(2) * line).sum(2), (mass.sum(3) * line).sum(2)  # centres of mass, (100, 2)
    right, below = torch.atan2(y[:, 0], x[:, 0]), torch.atan2(y[:, 1], x[:, 1])
    torch.testing.assert_close(below - right, torch.full((100,), torch.pi / 2), atol=0.02, rtol=0)
    assert right.min() < -0.15 and right.max() > 0.15  # radians


def test_geometry_narrows(monkeypatch):
    """Two marks beside each other come nearer, and two marks above each other do not."""
    torch.manual_seed(0)
    for name in ("ROTATION", "SHEAR", "SHIFT"):
        monkeypatch.setattr(f"dann.inputs.{name}", 0)
    line = torch.arange(28) - 13.5
    two, one = (-(line.abs() - 5).square() / 2).exp(), (-line.square() / 2).exp()
    marks = torch.stack([one[:, None] * two, two[:, None] * one]).expand(500, 2, 28, 28)  # one channel per direction
    moved = geometry(marks, (1, 1))
    mass = moved / moved.sum((2, 3), keepdim=True)
    wide, high = (mass[:, 0].sum(1) * line.abs()).sum(1), (mass[:, 1].sum(2) * line.abs()).sum(1)
    assert 3.45 < wide.min() < 3.65 and 5.85 < wide.max() < 6.05
    torch.testing.assert_close(high, torch.full((500,), 5.0), atol=0.02, rtol=0)


def test_scales_cover_the_digit_sizes_of_both_domains():
    assert scale_range("mnistm", "mnist") == scale_range("usps", "svhn") == (0.9, 1.1)
    assert scale_range("mnistm", "usps") == pytest.approx((0.9, 1.54))
    assert scale_range("usps", "mnistm") == pytest.approx((0.9 / 1.4, 1.1))
    assert scale_range("builtin-mnistm", "builtin-svhn") == scale_range("mnistm", "svhn")


def test_intensity_inverts_half_and_keeps_the_pattern():
    torch.manual_seed(0)
    image = standardise(torch.rand(1, 3, 28, 28))
    out = intensity(image.expand(1000, -1, -1, -1))
    centred = out - out.mean((1, 2, 3), keepdim=True)
    gain = (centred * image).mean((1, 2, 3))
    torch.testing.assert_close(centred, gain[:, None, None, None] * image, atol=1e-3, rtol=1e-2)
    assert 0.4 < (gain < 0).float().mean() < 0.6
    assert 0.24 < gain.abs().min() < gain.abs().max() < 1.51
    assert 0.45 < out.mean((1, 2, 3)).abs().max() < 0.51


def test_network_input():
    images = torch.randint(0, 256, (4, 3, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(network_input(images), standardise(images / 127.5 - 1))
    assert torch.equal(network_input(images), network_input(images))
    for changes in ({"scale": WIDE}, {"recolour": True}, {"rephotograph": True}):
        assert not torch.allclose(network_input(images, **changes), network_input(images))
    assert network_input(images, scale=WIDE, recolour=True).is_contiguous(memory_format=torch.channels_last)


def test_picture_shows_one_or_two_batches():
    x = torch.randn(20, 3, 28, 28)
    rows = [picture(batches).height for batches in ([x], [x, x])]
    assert rows == [2 * (2 * 30 + 2), 2 * (4 * 30 + 2)]  # rows of eight, gaps of two pixels, at twice the size


def test_photograph_by_hand(monkeypatch):
    """With one random change at a time: channels, noise, a binomial blur or its opposite, and a slope of light."""
    torch.manual_seed(0)
    images = torch.randn(200, 3, 28, 28)

    def only(**constants):
        for name, off in {"TINT": 0, "NOISE": 0, "BLUR": (0, 0), "LIGHT": 0}.items():
            monkeypatch.setattr(f"dann.inputs.{name}", constants.get(name, off))
        return photograph(images)

    torch.testing.assert_close(only(), images)
    tinted = only(TINT=0.3)
    flat = tinted.flatten(2)
    gain = flat.std(2) / images.flatten(2).std(2)
    offset = flat.mean(2) - gain * images.flatten(2).mean(2)
    assert 0.69 < gain.min() < 0.75 and 1.25 < gain.max() < 1.31 and gain.std(1).min() > 0.001
    assert -0.31 < offset.min() < -0.25 and 0.25 < offset.max() < 0.31
    noise = (only(NOISE=0.2) - images).flatten(1).std(1)
    assert noise.min() < 0.02 and 0.18 < noise.max() < 0.21
    kernel = torch.tensor([1.0, 2, 1]) / 4
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    blurred = F.conv2d(padded, (kernel[:, None] * kernel).expand(3, 1, 3, 3), groups=3)
    torch.testing.assert_close(only(BLUR=(1.2, 1.5)), blurred)
    torch.testing.assert_close(only(BLUR=(-0.5, -0.5)), 1.5 * images - 0.5 * blurred)
    slopes = only(LIGHT=0.3) - images
    torch.testing.assert_close(slopes.diff(dim=2).diff(dim=2), torch.zeros(200, 3, 26, 28), atol=1e-5, rtol=0)
    assert 0.25 < slopes[:, 0, 0, 27].sub(slopes[:, 0, 0, 0]).div(2).std() < 0.35  # from left to right
    assert 0.25 < slopes[:, 0, 27, 0].sub(slopes[:, 0, 0, 0]).div(2).std() < 0.35


def test_neighbours_come_from_the_edges_of_others():
    torch.manual_seed(0)
    others = torch.arange(1, 9, dtype=torch.uint8)[:, None, None, None].expand(8, 3, 28, 28)
    out = neighbours(torch.zeros(2000, 3, 28, 28, dtype=torch.uint8), others)
    assert out.dtype == torch.uint8 and (out[:, :, :, 8:20] == 0).all() and (out == out[:, :1, :1]).all()
    rows = out[:, 0, 0]
    for side in (rows[:, :8], rows[:, 20:].flip(1)):
        width = (side > 0).sum(1)
        assert set(width.tolist()) == {0, 3, 4, 5, 6, 7, 8} and 0.45 < (width > 0).float().mean() < 0.55
        assert all(line[:n].unique().numel() <= 1 for line, n in zip(side, width, strict=True))
    assert set(rows[:, 0].tolist()) == set(range(9))  # any of the others
    both = (rows[:, 0] > 0) & (rows[:, 27] > 0)
    assert 0.2 < both.float().mean() < 0.3 and (rows[both, 0] == rows[both, 27]).all()
