"""One update of the network, by the losses of both domains."""

import torch
from torch import Tensor

from common import distributed
from common.device import autocast
from dann.losses import called_source, class_loss, domain_accuracy, domain_loss, pseudo_label_loss
from dann.networks import DANN


def train_step(model: DANN, optimizer: torch.optim.Optimizer, labelled: tuple[Tensor, Tensor] | None,
               target_images: Tensor | None, pseudo: tuple[Tensor, Tensor] | None, coeff: Tensor | None,
               dtype: torch.dtype) -> dict[str, Tensor]:
    """Update the network once; return losses and other metrics, 0-d.

    Args:
        labelled: images (B, 3, 28, 28) float32 and their digits, (B,) int64; None to train on the target alone.
        target_images: images of the target; None in modes source and target.
        pseudo: the teacher's digits for `target_images`, (B,) int64, and whether each is confident, (B,) bool; or None.
        coeff: the paper's lambda, 0-d float32; None to train without the domain loss, which takes images of both
            domains.
    """
    with autocast(next(model.parameters()).device, dtype):
        if labelled is not None:
            class_logits, source_logits = model(labelled[0], coeff)
        if target_images is not None:
            target_class_logits, target_logits = model(target_images, coeff)
    losses, others = {}, {}
    if labelled is not None:
        losses["class_loss"] = class_loss(class_logits, labelled[1])
    if coeff is not None and labelled is not None:
        both = source_logits, target_logits
        losses["domain_loss"] = domain_loss(*both)
        others |= {"domain_accuracy": domain_accuracy(*both), "called_source": called_source(*both), "grl_coeff": coeff}
    if pseudo is not None:
        losses["pseudo_loss"] = pseudo_label_loss(target_class_logits, *pseudo)
        others["confident"] = pseudo[1].float().mean()
    optimizer.zero_grad(set_to_none=True)
    sum(losses.values()).backward()  # JMLR eq. 9: for the features, gradient reversal turns + domain loss into -lambda
    distributed.average_gradients(model)
    distributed.average_buffers(model)
    optimizer.step()
    return {name: value.detach() for name, value in (losses | others).items()}
