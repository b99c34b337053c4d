"""Scores that need packages of their own: the share of images with exactly one face (dlib) and FID (pytorch-fid).

    pip install dlib pytorch-fid

Without the package, or the weights that pytorch-fid downloads, the score is left out and a line says what is missing.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.checkpoint import sha256

INCEPTION_BATCH = 50


def one_face_share(images: Tensor) -> float:
    """Return the share of (N, 3, H, W) uint8 images in which dlib's HOG detector finds exactly one face.

    It upsamples once.
    """
    import dlib

    detector = dlib.get_frontal_face_detector()
    return float(np.mean([len(detector(image, 1)) == 1 for image in images.permute(0, 2, 3, 1).contiguous().numpy()]))


def inception_weights() -> tuple[Path, str]:
    """Return where pytorch-fid keeps the weights of its network, and their URL."""
    from pytorch_fid.inception import FID_WEIGHTS_URL

    return Path(torch.hub.get_dir()) / "checkpoints" / FID_WEIGHTS_URL.rsplit("/", 1)[1], FID_WEIGHTS_URL


@torch.no_grad()
def inception_features(images: Tensor) -> np.ndarray:
    """Return the (N, 2048) features of (N, 3, H, W) uint8 images for FID (Heusel et al. 2017, arXiv:1706.08500)."""
    from pytorch_fid.inception import InceptionV3

    network = InceptionV3().eval()
    return torch.cat([network(batch.float() / 255)[0].flatten(1) for batch in images.split(INCEPTION_BATCH)]).numpy()


def optional_scores() -> tuple[set[str], list[str]]:
    """Return which of one_face and fid can be computed here, and notes: how FID is computed, or what is missing."""
    found, notes = set(), []
    if find_spec("dlib"):
        found.add("one_face")
    else:
        notes.append("one_face is left out: it needs `pip install dlib`")
    if not find_spec("pytorch_fid"):
        notes.append("fid is left out: it needs `pip install pytorch-fid`")
        return found, notes
    path, url = inception_weights()
    if path.exists():
        found.add("fid")
        notes.append(f"fid: pytorch-fid, resized bilinearly to 299 px, weights sha256 {sha256(path)[:16]}")
    else:
        notes.append(f"fid is left out: it needs {url} as {path}")
    return found, notes
