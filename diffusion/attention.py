"""Scaled dot-product attention: PyTorch's fused kernel, and a faster one for training on CPUs in bfloat16.

The fused kernel (FlashAttention: Dao et al. 2022, arXiv:2205.14135) computes the attention map again in the backward
pass. With 16 channels per head, the map's exponentials cost more than the matrix products. So on a CPU in bfloat16 the
map is stored instead, and the batch is processed in chunks whose map fits in the cache.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_ELEMENTS = 2**18  # of the attention maps in one chunk; one 28x28 image has more, and is a chunk of its own


class _StoredMapAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, chunk: int) -> Tensor:
        maps, outputs = [], []
        for q_i, k_i, v_i in zip(q.split(chunk), k.split(chunk), v.split(chunk), strict=True):
            maps.append(torch.softmax(q_i @ k_i.transpose(-1, -2), -1))
            outputs.append(maps[-1] @ v_i)
        output = torch.cat(outputs)
        ctx.save_for_backward(q, k, v, output, *maps)
        return output

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, output, *maps = ctx.saved_tensors
        grad = grad.contiguous()
        # The gradient of a softmax p is p (dp - sum p dp), and sum p dp = sum output grad (Dao et al. 2022, app. B.4).
        mean = (grad.float() * output.float()).sum(-1, keepdim=True).to(grad.dtype)
        chunks = (x.split(len(maps[0])) for x in (q, k, v, grad, mean))
        grads = []
        for q_i, k_i, v_i, grad_i, mean_i, map_i in zip(*chunks, maps, strict=True):
            scores_grad = (grad_i @ v_i.transpose(-1, -2)).sub_(mean_i).mul_(map_i)
            grads.append((scores_grad @ k_i, scores_grad.transpose(-1, -2) @ q_i, map_i.transpose(-1, -2) @ grad_i))
        return *(torch.cat(parts) for parts in zip(*grads, strict=True)), None


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v, like q. All are (B, heads, N, D) and of one floating-point dtype."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad:
        _, heads, n, dim = q.shape
        chunk = max(1, CHUNK_ELEMENTS // (heads * n * n))
        return _StoredMapAttention.apply((q * dim**-0.5).contiguous(), k.contiguous(), v.contiguous(), chunk)
    return F.scaled_dot_product_attention(q, k, v)
