"""Loading: conversions, the cache, and every mistake that a data folder can hold."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import domains, folder
from common.data.folder import decode_image, load_digits, load_faces, load_folder, load_readable
from common.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def data(tmp_path):
    """Five flat grey digits, image i with value 10 * i and label i, and three faces."""
    usps = tmp_path / "hw2_data" / "digits" / "usps"
    (usps / "data").mkdir(parents=True)
    for i in range(5):
        Image.fromarray(np.full((28, 28), 10 * i, np.uint8)).save(usps / "data" / f"{i}.png")
    rows = "".join(f"{i}.png,{i}\n" for i in (3, 0, 4, 1, 2))
    (usps / "train.csv").write_text("image_name,label\n" + rows)
    faces = tmp_path / "hw2_data" / "face" / "train"
    faces.mkdir(parents=True)
    for name, size in (("b.jpg", 64), ("a.png", 64), ("c.png", 100)):
        Image.new("RGB", (size, size), (200, 100, 50)).save(faces / name)
    return tmp_path / "hw2_data"


def csv_of(data: Path) -> Path:
    return data / "digits" / "usps" / "train.csv"


def caches(place: Path) -> list[str]:
    return sorted(path.name for path in place.rglob("*") if path.is_file())


def how(caplog) -> str:
    """Return the line that the last load logged."""
    message = caplog.messages[-1]
    caplog.clear()
    return message


def test_digits_keep_the_order_of_the_csv(data):
    images, labels, names = load_digits(data, "usps", "train")
    assert images.dtype == torch.uint8 and images.shape == (5, 3, 28, 28)
    assert labels.dtype == torch.int64 and labels.tolist() == [3, 0, 4, 1, 2]
    assert names == ["3.png", "0.png", "4.png", "1.png", "2.png"]
    assert (images == 10 * labels[:, None, None, None]).all()


def test_faces_are_sorted_and_resized(data):
    images, labels, names = load_faces(str(data), "train")
    assert images.shape == (3, 3, 64, 64) and labels is None and names == ["a.png", "b.jpg", "c.png"]
    assert (images[2] == torch.tensor([200, 100, 50])[:, None, None]).all()


def test_the_embedded_sets_are_loaded_in_the_same_form(data):
    reference, labels = domains.embedded_digits("svhn", "val")
    for source, domain in (("builtin", "svhn"), (data, "builtin-svhn")):
        loaded = load_digits(source, domain, "val")
        assert loaded.images.dtype == torch.uint8 and loaded.labels.dtype == torch.int64
        assert (loaded.images.permute(0, 2, 3, 1).numpy() == reference).all()
        assert (loaded.labels.numpy() == labels).all() and len(set(loaded.names)) == len(labels)
    assert load_faces("builtin", "val").images.shape[1:] == (3, 64, 64)


def test_default_data_is_the_folder_if_there_is_one(data, monkeypatch, tmp_path):
    monkeypatch.chdir(data)
    monkeypatch.setattr(folder, "__file__", str(tmp_path / "project" / "common" / "data" / "folder.py"))
    assert folder.default_data() == "builtin"
    (tmp_path / "project" / "hw2_data").mkdir(parents=True)
    assert folder.default_data() == str(tmp_path / "project" / "hw2_data")
    monkeypatch.chdir(data.parent)
    assert folder.default_data() == "hw2_data"


# --- conversions ----------------------------------------------------------------------------------------

GRADIENT = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
RGB = np.stack([GRADIENT, GRADIENT.T, GRADIENT[::-1]], -1)
GREY = np.repeat(GRADIENT[..., None], 3, -1)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(GRADIENT), GREY),
        (Image.fromarray(GRADIENT.astype(np.uint16) * 257), GREY),
        (Image.fromarray(GRADIENT > 99), 255 * (GREY > 99)),
        (Image.fromarray(np.concatenate([RGB, GREY[..., :1]], -1)), RGB),
        (Image.fromarray(GRADIENT).convert("LA"), GREY),
        (Image.fromarray(GRADIENT).convert("P"), GREY),
    ],
    ids=["rgb", "grey", "grey16", "bilevel", "rgba", "la", "palette"],
)
def test_every_kind_of_png_becomes_rgb(tmp_path, image, expected):
    image.save(tmp_path / "x.png")
    pixels = decode_image(tmp_path / "x.png", 28)
    assert pixels.dtype == np.uint8 and (pixels == expected).all()
    assert (decode_image((tmp_path / "x.png").read_bytes(), 28) == expected).all()


def test_a_transparent_palette_is_read_without_a_warning(tmp_path, recwarn):
    Image.fromarray(GRADIENT).convert("P").save(tmp_path / "x.png", transparency=bytes(range(256)))
    assert (decode_image(tmp_path / "x.png", 28) == GREY).all() and not recwarn


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: the camera was rotated by 90 degrees
    Image.fromarray(RGB).save(tmp_path / "x.png", exif=exif)
    assert (decode_image(tmp_path / "x.png", 28) == np.rot90(RGB, -1)).all()


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:])
    assert (decode_image(tmp_path / "x.png", 28) == GREY).all()


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (28, 28), (255, 0, 0, 0)).save(tmp_path / "x.jpg", quality=100)
    red, green, blue = decode_image(tmp_path / "x.jpg", 28).mean((0, 1))
    assert red < 5 and green > 250 and blue > 250


def test_another_size_is_resized_with_antialiasing(tmp_path):
    stripes = np.zeros((280, 140, 3), np.uint8)
    stripes[::2] = 200  # thinner than a pixel of the result: without antialiasing every pixel is 0 or 200
    Image.fromarray(stripes).save(tmp_path / "x.png")
    pixels = decode_image(tmp_path / "x.png", 28)
    assert pixels.shape == (28, 28, 3) and (abs(pixels.astype(int) - 100) < 10).all()


# --- any folder -----------------------------------------------------------------------------------------


def test_a_broken_image_stops_load_folder_and_is_listed_by_load_readable(data):
    images_dir = data / "digits" / "usps" / "data"
    whole = (images_dir / "3.png").read_bytes()
    (images_dir / "3.png").write_bytes(whole[: len(whole) // 2])
    (images_dir / "1.png").write_text("hello")
    (images_dir / "notes.txt").write_text("not an image, ignored")
    (images_dir / "._0.png").write_text("a file that macOS leaves behind")
    with pytest.raises(UserError, match=r"1\.png \(not an image\)"):
        load_folder(images_dir, 28)
    (images, labels, names), broken = load_readable(images_dir, 28)
    assert names == ["0.png", "2.png", "4.png"] and images[:, 0, 0, 0].tolist() == [0, 20, 40]
    assert labels is None
    assert [name for name, _ in broken] == ["1.png", "3.png"] and all(reason for _, reason in broken)
    with pytest.raises(UserError, match=r"broken image .*3\.png"):  # the first row of the CSV
        load_digits(data, "usps", "train")


def test_load_folder_loads_images_sorted_by_name(data):
    images, _, names = load_folder(str(data / "digits" / "usps" / "data"), 28)
    assert names == [f"{i}.png" for i in range(5)] and images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]


def test_missing_and_empty_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        load_folder(tmp_path / "empty", 28)
    with pytest.raises(UserError, match="no folder"):
        load_readable(tmp_path / "absent", 28)


# --- the cache ------------------------------------------------------------------------------------------


def test_the_second_load_decodes_nothing(data, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "common.data.folder")
    first = load_digits(data, "usps", "train")
    assert "digits-usps-train: 5 images" in caplog.text and "(decoded)" in how(caplog)
    monkeypatch.setattr(folder, "decode_image", None)
    second = load_digits(data, "usps", "train")
    assert "(cached)" in how(caplog)
    assert torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)


def test_a_changed_image_rebuilds_the_cache_and_replaces_the_old_one(data, caplog):
    caplog.set_level(logging.INFO, "common.data.folder")
    load_digits(data, "usps", "train")
    load_faces(data, "train")
    before = caches(data / ".cache")
    changed = data / "digits" / "usps" / "data" / "1.png"
    size = changed.stat().st_size
    Image.fromarray(np.full((28, 28), 90, np.uint8)).save(changed)
    assert changed.stat().st_size == size  # only the time differs
    images = load_digits(data, "usps", "train").images
    assert images[3].unique().tolist() == [90] and "(decoded)" in how(caplog)
    after = caches(data / ".cache")
    assert len(before) == len(after) == 2 and len(set(before) & set(after)) == 1  # the cache of the faces is kept


def test_a_changed_image_of_the_same_size_and_time_is_noticed(data):
    """An archive that is unpacked over the old images leaves such a file, and so does a clock that was set back."""
    load_digits(data, "usps", "train")
    changed = data / "digits" / "usps" / "data" / "1.png"
    before = changed.stat()
    Image.fromarray(np.full((28, 28), 90, np.uint8)).save(changed)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = changed.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert load_digits(data, "usps", "train").images[3].unique().tolist() == [90]


@pytest.mark.parametrize("moment", ["listed", "looked at"])
def test_an_image_that_vanishes_while_the_folder_is_read_is_named(data, monkeypatch, moment):
    victim = data / "digits" / "usps" / "data" / "3.png"
    name = {"listed": "_load_cached", "looked at": "_decode"}[moment]
    read = getattr(folder, name)
    monkeypatch.setattr(folder, name, lambda *args: victim.unlink(missing_ok=True) or read(*args))
    with pytest.raises(UserError, match=r"3\.png.*No such file.*: replace it or remove it") as mistake:
        load_digits(data, "usps", "train")
    assert "\n" not in str(mistake.value)
    assert not (data / ".cache").exists()


def test_a_removed_or_moved_row_is_noticed(data):
    load_digits(data, "usps", "train")
    csv_of(data).write_text("image_name,label\n\n4.png,4\n3.png,9\n")
    images, labels, _ = load_digits(data, "usps", "train")
    assert images[:, 0, 0, 0].tolist() == [40, 30] and labels.tolist() == [4, 9]


def test_a_damaged_cache_is_built_again(data):
    expected = load_digits(data, "usps", "train").images
    (cache,) = (data / ".cache").iterdir()
    cache.write_bytes(cache.read_bytes()[:500])
    assert torch.equal(load_digits(data, "usps", "train").images, expected)


def test_a_data_folder_that_cannot_be_written_is_cached_for_the_user(data, caplog, tmp_path, monkeypatch):
    caplog.set_level(logging.INFO, "common.data.folder")
    (data / ".cache").write_text("a file where the folder should be")
    load_digits(data, "usps", "train")
    assert len(caches(tmp_path / "xdg" / "hw2")) == 1 and "(decoded)" in how(caplog)
    load_digits(data, "usps", "train")
    assert "(cached)" in how(caplog)
    monkeypatch.setenv("XDG_CACHE_HOME", str(csv_of(data)))  # this cannot be written either
    assert len(load_digits(data, "usps", "train").images) == 5 and "(not cached)" in how(caplog)


def test_a_cache_that_fails_half_way_leaves_nothing(data, monkeypatch):
    def full(file, array):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert len(load_digits(data, "usps", "train").images) == 5
    assert caches(data / ".cache") == []


# --- mistakes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"train\.csv line 1: no header"),
        ("0.png,0\n", r"train\.csv line 1: no header"),
        ("image_name,label\n", "no rows"),
        ("image_name,label\n0.png,0\n9.png,1\n", r"line 3: no image '9\.png' in .*usps/data: add it"),
        ("image_name,label\n0.png,10\n", r"line 2: bad label '10'"),
        ("image_name,label\n0.png,-1\n", "line 2: bad label '-1'"),
        ("image_name,label\n\n0.png,two\n", "line 3: bad label 'two'"),
        ("image_name,label\n0.png,0\n1.png,1\n0.png,0\n", r"line 4: 0\.png has a row already"),
        ("image_name,label\n../data/0.png,0\n", "line 2: no image '../data/0.png'"),
        ("image_name,label\nsub/0.png,0\n", "line 2: no image 'sub/0.png'"),
        ("image_name,label\n/etc/passwd,0\n", "line 2: no image '/etc/passwd'"),
        ("image_name,label\n..,0\n", "line 2: no image '..'"),
        ("image_name,label\n\"a\n.png\",0\n", r"line 3: no image 'a\\n\.png'"),
        ("image_name,label\n,0\n", "line 2: no image ''"),
        ("image_name,label\n0.png\n", "line 2: 1 fields"),
        ("image_name,label\n0.png,0\n\xff", "not a CSV text file"),
    ],
)
def test_csv_mistakes_end_in_one_line(data, text, message):
    csv_of(data).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message) as caught:
        load_digits(data, "usps", "train")
    assert "\n" not in str(caught.value) and str(csv_of(data)) in str(caught.value)


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(data):
    csv_of(data).write_bytes(b"\xef\xbb\xbfimage_name,label\r\n2.png,2\r\n")
    assert load_digits(data, "usps", "train").labels.tolist() == [2]


def test_an_error_names_the_missing_part_and_its_cure(data, tmp_path):
    with pytest.raises(UserError, match=r"no data folder .*common\.prepare.*--data builtin"):
        load_digits(tmp_path / "absent", "mnistm", "train")
    with pytest.raises(UserError, match=r"has no digits/svhn: .*builtin-svhn"):
        load_digits(data, "svhn", "train")
    with pytest.raises(UserError, match="has no face/val"):
        load_faces(data, "val")
    with pytest.raises(UserError, match=r"no .*val\.csv: restore it"):
        load_digits(data, "usps", "val")
    with pytest.raises(UserError, match="unknown domain 'emnist': choose from mnist"):
        load_digits(data, "emnist", "train")
    with pytest.raises(ValueError, match="split 'dev'"):
        load_digits(data, "usps", "dev")
    with pytest.raises(ValueError, match="split 'test'"):
        load_faces(data, "test")
    (data / "digits" / "usps" / "data" / "0.png").unlink()
    (data / "digits" / "usps" / "data" / "0.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"cannot read .*0\.png"):
        load_digits(data, "usps", "train")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["folder", "domains"])
def test_importing_is_light(module):
    slow = {"torchvision", "scipy", "sklearn", "matplotlib"}
    code = f"import common.data.{module}, sys; print({slow} & {{*sys.modules}})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
