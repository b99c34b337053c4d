"""A folder of generated images: a stopped command continues, and several processes share the work."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from common.distributed import barrier, rank, world_size
from common.errors import UserError
from common.images import STAMP, save_image


def generate_folder(folder: Path, names: Sequence[str], stamp: str, generate: Callable[[range], Tensor],
                    batch_size: int) -> int:
    """Generate the images that a folder lacks, and return their number. Raises UserError like `missing_images`.

    Networks may round differently in batches of another size. So an image is always generated in the same batch, even
    if other images of that batch exist already.

    Args:
        folder: created if it does not exist.
        names: of all images, in the order of their indices.
        stamp: the settings; every PNG stores them.
        generate: maps indices to images, (N, 3, H, W) uint8 on the CPU.
        batch_size: images per call of `generate`; the last batch may have fewer.
    """
    missing = missing_images(folder, names, stamp)
    barrier()  # every process must look before the first one writes
    own = [i for i in missing if i // batch_size % world_size() == rank()]
    done = len(names) - len(missing)
    with tqdm(total=done + len(own), initial=done, unit="image", disable=rank() > 0 or None) as bar:
        for batch, indices in groupby(own, lambda i: i // batch_size):
            start = batch * batch_size
            images = generate(range(start, min(start + batch_size, len(names))))
            for i in indices:
                save_image(images[i - start], folder / names[i], stamp)
                bar.update()
    barrier()
    return len(missing)


def missing_images(folder: Path, names: Sequence[str], stamp: str) -> list[int]:
    """Return the indices of the names that are not yet in the folder, so that a stopped command can continue.

    Raises UserError if the folder holds a file that was not generated with these settings.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder to write into")
    missing = {name: i for i, name in enumerate(names)}
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if path.name.startswith(".") and path.name.endswith(".partial"):
            continue
        if path.name not in missing or _stamp_of(path) != stamp:
            raise UserError(f"{path} was not made by this command with these settings: name an empty folder")
        del missing[path.name]
    return list(missing.values())


def _stamp_of(path: Path) -> str | None:
    try:
        with Image.open(path) as picture:
            return picture.info.get(STAMP)
    except OSError:
        return None
