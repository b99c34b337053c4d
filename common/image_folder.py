"""A folder of generated images: a stopped command continues, and several processes share the work."""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from common.data.decode import SUFFIXES
from common.distributed import barrier, rank, world_size
from common.errors import UserError
from common.images import STAMP, save_image

PNG_END = b"IEND\xaeB`\x82"  # of every whole PNG file
WRITERS = 4  # threads


def generate_folder(folder: Path, names: Sequence[str], stamp: str, generate: Callable[[range], Tensor],
                    batch_size: int) -> int:
    """Generate the images that a folder lacks, and return their number.

    Networks may round differently in batches of another size. So an image is always generated in the same batch, even
    if other images of that batch exist already. Threads write a batch while the next one is generated.

    Args:
        folder: created if it does not exist.
        names: of all images, in the order of their indices.
        stamp: the settings; every PNG stores them.
        generate: maps indices to images, (N, 3, H, W) uint8 on the CPU.
        batch_size: images per call of `generate`; the last batch may have fewer.

    Raises:
        UserError: as `missing_images`, or if an image cannot be written.
        KeyboardInterrupt: of Ctrl-C; it says how many images are done.
    """
    missing = missing_images(folder, names, stamp)
    barrier()  # every process must look before the first one writes
    own = [i for i in missing if i // batch_size % world_size() == rank()]
    done = len(names) - len(missing)
    try:
        with (tqdm(total=done + len(own), initial=done, unit="image", disable=rank() > 0 or None) as bar,
              ThreadPoolExecutor(WRITERS) as pool):  # whose end waits for the images that are being written
            writes: list[Future] = []
            for batch, indices in groupby(own, lambda i: i // batch_size):
                start = batch * batch_size
                images = generate(range(start, min(start + batch_size, len(names))))
                _finish(writes, bar)
                writes = [pool.submit(save_image, images[i - start], folder / names[i], stamp) for i in indices]
            _finish(writes, bar)
    except KeyboardInterrupt:
        done = len(names) - len(missing_images(folder, names, stamp))
        raise KeyboardInterrupt(f"{done} of {len(names)} images are in {folder}; the same command continues") from None
    barrier()
    return len(missing)


def _finish(writes: Sequence[Future], bar: tqdm) -> None:
    for write in writes:
        write.result()  # raises what kept an image from being written
        bar.update()


def missing_images(folder: Path, names: Sequence[str], stamp: str) -> list[int]:
    """Return the indices of the names that are not yet in the folder, so that a stopped command can continue.

    An image that is cut short or damaged is missing. Files whose names begin with a dot, those of the system and of a
    stopped command, are left alone.

    Raises:
        UserError: the folder is a file, has the name of one picture, or holds a file that these settings did not make.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder to write into")
    if folder.name.lower().endswith((*SUFFIXES, ".gif")):
        raise UserError(f"{folder} is the name of one picture, which --grid draws: name a folder, or add --grid")
    missing = {name: i for i, name in enumerate(names)}
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if path.name.startswith("."):
            continue
        found, whole = _inspect(path)
        if path.name not in missing or found != stamp:
            raise UserError(f"{path} was not made by this command with these settings: name an empty folder")
        if whole:
            del missing[path.name]
    return list(missing.values())


def _inspect(path: Path) -> tuple[str | None, bool]:
    """Return the stamp of a PNG file, None if there is none, and whether the file is whole."""
    stamp = None
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            stamp = picture.info.get(STAMP)
            picture.verify()  # the checksums of all parts but the last one
        return stamp, content.endswith(PNG_END)
    except (OSError, SyntaxError, ValueError):  # of damaged and foreign files
        return stamp, False
