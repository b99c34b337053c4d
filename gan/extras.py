"""Scores that need packages of their own: FID (pytorch-fid) and the share of images with exactly one face (dlib).

    pip install pytorch-fid dlib

Both are optional. Without the package, or the weights that pytorch-fid downloads, the score is left out and a line says
what is missing.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.scores import frechet_distance

PADDING = 16  # px; aligned crops end at the chin, and the detector needs some margin
INCEPTION_BATCH = 50


def one_face_share(images: Iterable[Tensor]) -> float:
    """Return the share of images in which dlib's HOG detector, with one upsampling, finds exactly one face.

    Args:
        images: (3, H, W) uint8 each; their edges are repeated on all sides.

    Raises:
        ImportError: dlib is not installed.
    """
    import dlib

    detector = dlib.get_frontal_face_detector()

    def num_faces(image: Tensor) -> int:
        padded = F.pad(image[None].float(), [PADDING] * 4, mode="replicate")[0].byte()
        return len(detector(padded.permute(1, 2, 0).contiguous().numpy(), 1))

    return float(np.mean([num_faces(image) == 1 for image in images]))


def inception_weights() -> tuple[Path, str]:
    """Return where pytorch-fid keeps the weights of its network, and their URL; ImportError without pytorch-fid."""
    from pytorch_fid.inception import FID_WEIGHTS_URL

    return Path(torch.hub.get_dir()) / "checkpoints" / FID_WEIGHTS_URL.rsplit("/", 1)[1], FID_WEIGHTS_URL


@torch.no_grad()
def fid(*sets: Tensor) -> list[float]:
    """Return the Frechet Inception distance (Heusel et al. 2017, arXiv:1706.08500) of each set to the last one.

    With fewer images than its 2,048 features it is biased upwards: compare equal numbers of images only.

    Args:
        sets: (N, 3, H, W) uint8 each.

    Raises:
        ImportError: pytorch-fid is not installed.
    """
    from pytorch_fid.inception import InceptionV3

    network = InceptionV3().eval()
    features = [torch.cat([network(batch.float() / 255)[0].flatten(1) for batch in images.split(INCEPTION_BATCH)])
                for images in sets]
    return [frechet_distance(other.numpy(), features[-1].numpy()) for other in features[:-1]]


def extra_scores(fake: Tensor, first: Tensor, second: Tensor) -> tuple[dict[str, float], list[str]]:
    """Return the scores that can be computed here, with those of real images, and a line for each that cannot.

    All three are (N, 3, H, W) uint8: generated images, and two disjoint sets of real ones.
    """
    scores, missing = {}, []
    try:
        scores |= {"one_face": one_face_share(fake), "one_face_real": one_face_share(second)}
    except ImportError:
        missing.append("one_face is left out: it needs `pip install dlib`")
    try:
        path, url = inception_weights()
        if path.exists():
            scores["fid"], scores["fid_real"] = fid(fake, first, second)
        else:
            missing.append(f"fid is left out: it needs {url} as {path}")
    except ImportError:
        missing.append("fid is left out: it needs `pip install pytorch-fid`")
    return scores, missing
