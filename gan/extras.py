"""Scores that need packages of their own: FID (pytorch-fid) and the share of images with one face (dlib).

    pip install pytorch-fid dlib

Neither is a requirement: without the package, or without the weights that pytorch-fid fetches, the score is
None and a line says what is missing.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.metrics import frechet_distance

PADDING = 16  # px; aligned crops end at the chin, and the detector wants more than that
INCEPTION_BATCH = 50


def one_face_share(images: Iterable[Tensor]) -> float:
    """Return the share of images in which dlib's HOG detector, one upsampling, finds exactly one face.

    Args:
        images: (3, H, W) uint8 each; their edges are repeated by PADDING on all sides.

    Raises:
        ImportError: dlib is not installed.
    """
    import dlib

    detector = dlib.get_frontal_face_detector()

    def faces(image: Tensor) -> int:
        padded = F.pad(image[None].float(), [PADDING] * 4, mode="replicate")[0].byte()
        return len(detector(padded.permute(1, 2, 0).contiguous().numpy(), 1))

    return float(np.mean([faces(image) == 1 for image in images]))


def inception_weights() -> tuple[Path, str]:
    """Return where pytorch-fid keeps its network's weights, and whence it gets them.

    Raises:
        ImportError: pytorch-fid is not installed.
    """
    from pytorch_fid.inception import FID_WEIGHTS_URL

    return Path(torch.hub.get_dir()) / "checkpoints" / FID_WEIGHTS_URL.rsplit("/", 1)[1], FID_WEIGHTS_URL


@torch.no_grad()
def fid(*sets: Tensor) -> list[float]:
    """Return the Frechet Inception distance of each set but the last to the last (Heusel et al. 2017).

    With fewer images than the 2,048 features it is biased upwards: compare equal counts only.

    Args:
        sets: (N, 3, H, W) uint8 each.

    Raises:
        ImportError: pytorch-fid is not installed.
    """
    from pytorch_fid.inception import InceptionV3

    network = InceptionV3().eval()

    def features(images: Tensor) -> np.ndarray:
        outputs = [network(batch.float() / 255)[0].flatten(1) for batch in images.split(INCEPTION_BATCH)]
        return torch.cat(outputs).numpy()

    *others, last = (features(images) for images in sets)
    return [frechet_distance(other, last) for other in others]


def extra_scores(fake: Tensor, first: Tensor, second: Tensor) -> tuple[dict[str, float], list[str]]:
    """Return the scores that can be had here, each beside that of real images, and a line for each that cannot.

    Args:
        fake: (N, 3, H, W) uint8.
        first, second: as many real ones each, disjoint.
    """
    scores, missing = {}, []
    try:
        scores |= {"one_face": one_face_share(fake), "one_face_real": one_face_share(second)}
    except ImportError:
        missing.append("share with one face: not computed, it needs `pip install dlib`")
    try:
        path, url = inception_weights()
        if path.exists():
            scores["fid"], scores["fid_real"] = fid(fake, first, second)
        else:
            missing.append(f"FID: not computed, it needs {url} as {path}")
    except ImportError:
        missing.append("FID: not computed, it needs `pip install pytorch-fid`")
    return scores, missing
