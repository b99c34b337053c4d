"""The digit domains, one row of a table per domain, and their embedded stand-ins.

A new domain is a new row at the end of DOMAINS: the position of a row seeds its embedded images.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.data import raw_digits as raw
from common.data import synthetic_digits as synthetic
from common.data.ingredients import rng_for, to_bytes
from common.data.raw_digits import Digits
from common.data.raw_files import RawFile
from common.errors import UserError

DIGIT_COUNTS = {"train": 4000, "val": 1000, "test": 1000}  # images per split of an embedded domain


class Domain(NamedTuple):
    """All that the project knows of one digit domain. Only a height is needed for a domain of your own folder."""

    digit_height: int  # pixels of the 28 that a digit fills; MNIST fits digits into a box of 20 (LeCun et al. 1998)
    # For common.prepare: raw folder -> official train and test digits.
    read: Callable[[Path], tuple[Digits, Digits]] | None = None
    files: tuple[RawFile, ...] = ()  # what `read` reads and --download downloads
    # The embedded stand-in: (rng, labels, split) -> (N, 1 or 3, 28, 28) float, clipped to [0, 1] afterwards.
    paint: Callable[[np.random.Generator, np.ndarray, str], np.ndarray] | None = None
    class_shares: np.ndarray | None = None  # (10,) float, of the embedded stand-in; None: equal shares


DOMAINS = {
    "mnist": Domain(20, raw.read_mnist, raw.MNIST_FILES, synthetic.paint_mnist),
    "mnistm": Domain(20, raw.read_mnistm, raw.MNISTM_FILES, synthetic.paint_mnistm),
    "usps": Domain(28, raw.read_usps, raw.USPS_FILES, synthetic.paint_usps, synthetic.USPS_SHARES),
    "svhn": Domain(28, raw.read_svhn, raw.SVHN_FILES, synthetic.paint_svhn),
}
DOMAIN_CHOICES = (*DOMAINS, *(f"builtin-{name}" for name, domain in DOMAINS.items() if domain.paint))


def split_name(name: str) -> tuple[str, bool]:
    """Return the key of DOMAINS and whether the embedded stand-in is meant: "builtin-svhn" gives ("svhn", True)."""
    key = name.removeprefix("builtin-")
    if key not in DOMAINS:
        raise UserError(f"unknown domain '{name}': choose from {', '.join(DOMAINS)} (or builtin-NAME)")
    return key, key != name


def digit_height(name: str) -> int:
    """Return how many of the 28 pixels a digit fills, for "svhn" as for "builtin-svhn"."""
    return DOMAINS[split_name(name)[0]].digit_height


def embedded_digits(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Generate one split ("train", "val" or "test") of a domain's stand-in, every time the same.

    Returns:
        images: (N, 28, 28, 3) uint8; labels: (N,) int64 in 0..9. N is `DIGIT_COUNTS[split]`.
    Raises:
        UserError: the domain has no stand-in.
    """
    domain = DOMAINS[name]
    if domain.paint is None:
        raise UserError(f"domain '{name}' has no embedded stand-in: name its data folder with --data")
    rng = rng_for(list(DOMAINS).index(name), split)
    labels = rng.choice(10, DIGIT_COUNTS[split], p=domain.class_shares)
    return to_bytes(domain.paint(rng, labels, split)), labels
