"""Gradient reversal (Ganin & Lempitsky 2015, arXiv:1409.7495, eqs. 11-14): no parameters, no state."""

import math

import torch
from torch import Tensor


class _GradientReversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, coeff: Tensor | float) -> Tensor:
        ctx.coeff = coeff
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.coeff * grad, None


def grad_reverse(x: Tensor, coeff: Tensor | float) -> Tensor:
    """Return x, of any shape, unchanged; the backward pass multiplies its gradient by -coeff, a float or 0-d tensor."""
    return _GradientReversal.apply(x, coeff)


def grl_coeff(progress: float) -> float:
    """Return the paper's lambda (eq. 14, gamma = 10 as in sec. 4): 0 at progress 0, nearly 1 at progress 1."""
    return 2 / (1 + math.exp(-10 * progress)) - 1
