"""Augmentation: what each part changes, its gradients, and its random numbers."""

import pytest
import torch

from gan.augment import augment, colour, cutout, random_flip, translate


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(64, 3, 16, 16) * 2 - 1


@pytest.mark.parametrize("change", [random_flip, colour, translate, cutout, augment])
def test_same_shape_seeded_and_differentiable(change, x):
    x.requires_grad_()
    torch.manual_seed(1)
    changed = change(x)
    torch.manual_seed(1)
    again = change(x)
    torch.manual_seed(2)
    other = change(x)
    assert changed.shape == x.shape and changed.dtype == torch.float32
    assert torch.equal(changed, again) and not torch.equal(changed, other)
    (gradient,) = torch.autograd.grad(changed.square().sum(), x)
    assert gradient.isfinite().all() and (gradient.flatten(1).abs().sum(1) > 0).all()


def test_gradient_is_the_derivative():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)

    def fixed(x):
        torch.manual_seed(3)
        return augment(x)

    assert torch.autograd.gradcheck(fixed, x)


def test_flip_mirrors_about_half(x):
    flipped = random_flip(x)
    same = torch.tensor([torch.equal(a, b) for a, b in zip(flipped, x, strict=True)])
    mirrored = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(flipped, x, strict=True)])
    assert (same ^ mirrored).all() and 16 < mirrored.sum() < 48


def test_colour_leaves_a_constant_grey_constant():
    torch.manual_seed(0)
    changed = colour(torch.full((32, 3, 8, 8), 0.25))
    shift = changed - 0.25
    torch.testing.assert_close(shift, shift[:, :1, :1, :1].expand_as(shift))  # brightness alone
    assert shift.abs().max() <= 0.5 and shift.std() > 0.1


def test_colour_of_one_image_does_not_depend_on_the_others(x):
    torch.manual_seed(1)
    all_of_them = colour(x)
    torch.manual_seed(1)
    changed_neighbours = colour(torch.cat([x[:1], torch.zeros_like(x[1:])]))
    assert torch.equal(all_of_them[0], changed_neighbours[0])


def test_translate_moves_by_at_most_an_eighth_and_fills_with_zero():
    torch.manual_seed(0)
    x = torch.zeros(200, 3, 16, 16)
    x[:, :, 8, 5] = 1
    moved = translate(x)
    assert (moved.sum(dim=(1, 2, 3)) == 3).all()
    _, _, rows, columns = moved.nonzero(as_tuple=True)
    assert set(rows.tolist()) == {6, 7, 8, 9, 10} and set(columns.tolist()) == {3, 4, 5, 6, 7}
    edges = translate(torch.ones(200, 3, 16, 16))
    assert edges[:, :, 2:-2, 2:-2].min() == 1
    middle = slice(2, -2)
    sides = edges[:, :, 0, middle], edges[:, :, -1, middle], edges[:, :, middle, 0], edges[:, :, middle, -1]
    assert all(side.min() == 0 for side in sides)


def test_cutout_blanks_one_rectangle_of_a_quarter_at_most():
    torch.manual_seed(0)
    holes = cutout(torch.ones(200, 3, 16, 16)) == 0
    assert (holes == holes[:, :1]).all()  # in all channels
    area = holes[:, 0].sum(dim=(1, 2))
    assert area.max() == 8 * 8 and area.min() >= 4 * 4
    rows, columns = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert torch.equal(area, rows * columns)
