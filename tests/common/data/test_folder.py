"""Loading: conversions, the cache, and every mistake that a data folder can hold."""

import logging
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import domains, folder
from common.data.folder import has_split, load_digits, load_faces, load_folder, load_readable
from common.errors import UserError


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
    """Return the line in which the last load tells how fast it was."""
    message = [message for message in caplog.messages if "images/s" in message][-1]
    caplog.clear()
    return message


def said(caplog) -> list[str]:
    """Return the warnings since the last call."""
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    caplog.clear()
    return lines


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
    with pytest.raises(UserError, match=r"^no hw2_data here: build it with .*, or type `--data builtin` for .*ins$"):
        folder.default_data()
    (tmp_path / "project" / "hw2_data").mkdir(parents=True)
    assert folder.default_data() == str(tmp_path / "project" / "hw2_data")
    monkeypatch.chdir(data.parent)
    assert folder.default_data() == "hw2_data"


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


def test_files_with_another_suffix_are_counted(data, caplog):
    images_dir = data / "digits" / "usps" / "data"
    for name in ("a.tif", "b.TIF", "c", ".DS_Store", "._d.png"):
        (images_dir / name).write_bytes(b"")
    (images_dir / "more.png").mkdir()
    assert len(load_readable(images_dir, 28)[0].names) == 5
    assert said(caplog)[0] == (f"{images_dir}: 4 of 9 files are left out (1 .tif, 1 .TIF, 1 without a suffix, "
                               "1 not files): images are named .png, .jpg, .jpeg, .bmp, .webp")


def test_a_named_pipe_is_no_image(data, caplog):
    images_dir = data / "digits" / "usps" / "data"
    os.mkfifo(images_dir / "z.png")
    assert len(load_folder(images_dir, 28).names) == len(load_readable(images_dir, 28)[0].names) == 5
    assert said(caplog)[0].startswith(f"{images_dir}: 1 of 6 files are left out (1 not files)")
    csv_of(data).write_text("image_name,label\nz.png,0\n")
    with pytest.raises(UserError, match=r"broken image .*z\.png \(not a file\)"):
        load_digits(data, "usps", "train")


@pytest.mark.parametrize("load", [load_folder, load_readable])
def test_a_name_that_is_not_utf8_is_refused_when_the_folder_is_listed(tmp_path, load):
    (tmp_path / os.fsdecode(b"a\xff.png")).write_bytes(b"")
    with pytest.raises(UserError, match=r"the file name 'a\\udcff\.png' is not UTF-8: rename it"):
        load(tmp_path, 28)


def spoil(folder: Path, sizes: list[tuple[int, int]], flat: int) -> None:
    """Write noise of these (width, height), the first `flat` of them in one colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (width, height) in enumerate(sizes):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(np.full_like(pixels, 9) if i < flat else pixels).save(folder / f"{i}.png")


SQUASHED = "1 of 3 images are far from square and were squashed to 28x28: crop each to its digit"
ONE_COLOUR = "2 of 3 images are of one colour (transparent pixels are read as white)"


@pytest.mark.parametrize(("sizes", "flat", "lines", "exact"), [
    ([(28, 28)] * 3, 1, [], []),
    ([(28, 28)] * 3, 2, [ONE_COLOUR], []),
    ([(30, 40), (28, 42), (28, 43)], 0, [SQUASHED], ["3 of 3 images are not 28x28: they were resized"]),
    ([(43, 28), (28, 28), (28, 28)], 2, [ONE_COLOUR, SQUASHED], ["1 of 3 images are not 28x28: they were resized"]),
], ids=["fine", "one colour", "size and shape", "all"])
def test_what_spoils_readable_images_is_said(tmp_path, caplog, sizes, flat, lines, exact):
    spoil(tmp_path / "x", sizes, flat)
    load_readable(tmp_path / "x", 28)
    assert said(caplog) == [f"{tmp_path / 'x'}: {line}" for line in lines]
    load_folder(tmp_path / "x", 28)
    assert said(caplog) == [f"{tmp_path / 'x'}: {line}" for line in lines + exact]


def test_it_is_said_of_the_sets_of_a_data_folder_too_and_again_when_they_come_from_the_cache(data, caplog):
    spoil(data / "digits" / "usps" / "data", [(28, 43)] * 5, 5)
    spoil(data / "face" / "train", [(64, 97)], 1)
    (data / "face" / "train" / "0.png").rename(data / "face" / "train" / "a.png")
    for how_loaded in ("decoded", "cached"):
        load_digits(data, "usps", "train")
        lines = said(caplog)
        assert lines[0].startswith("digits-usps-train: 5 of 5 images are of one colour"), how_loaded
        assert lines[1:] == ["digits-usps-train: 5 of 5 images are far from square and were squashed to 28x28: crop "
                             "each to its digit"]
        load_faces(data, "train")
        assert said(caplog)[1:] == ["face-train: 1 of 3 images are far from square and were squashed to 64x64: crop "
                                    "each to its face"]


# --- a target without labels ----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["image_name\n3.png\n0.png\n", "image_name,label\n3.png,\n0.png,\n",
                                  "image_name,label\n3.png,three\n0.png\n", "image_name,label\n3.png,3\n0.png,7\n"])
def test_labels_that_are_not_asked_for_are_not_looked_at(data, text):
    csv_of(data).write_text(text)
    images, labels, names = load_digits(data, "usps", "train", labelled=False)
    assert labels is None and names == ["3.png", "0.png"] and images[:, 0, 0, 0].tolist() == [30, 0]
    assert load_digits("builtin", "usps", "train", labelled=False).labels is None


@pytest.mark.parametrize(("text", "message"), [
    ("image_name,label\n9.png,1\n", r"line 2: no image '9\.png'"), ("0.png\n", "line 1: no header"),
    ("image_name\n", "no rows"), ("image_name\n0.png\n0.png\n", r"line 3: 0\.png has a row already"),
])
def test_other_mistakes_of_a_csv_without_labels_are_found(data, text, message):
    csv_of(data).write_text(text)
    with pytest.raises(UserError, match=message):
        load_digits(data, "usps", "train", labelled=False)


def test_without_a_train_csv_all_images_that_are_not_held_out_are_the_training_set(data):
    csv_of(data).unlink()
    usps = data / "digits" / "usps"
    assert load_digits(data, "usps", "train", labelled=False).names == [f"{i}.png" for i in range(5)]
    (usps / "val.csv").write_text("image_name,label\n1.png,1\n")
    (usps / "test.csv").write_text("image_name\n3.png\nabsent.png\n")
    (usps / "predictions.csv").write_text("image_name,label\n0.png,1\n")  # of dann.inference: holds nothing out
    assert load_digits(data, "usps", "train", labelled=False).names == ["0.png", "2.png", "4.png"]
    with pytest.raises(UserError, match=r"no .*train\.csv: a domain needs"):
        load_digits(data, "usps", "train")
    (usps / "val.csv").write_text("image_name\n" + "".join(f"{i}.png\n" for i in range(5)))
    with pytest.raises(UserError, match=r"holds no images but those of val\.csv and test\.csv: add images"):
        load_digits(data, "usps", "train", labelled=False)


@pytest.mark.parametrize(("text", "found"), [
    (None, False),
    ("image_name,label\n8.png,8\n9.png,9\n", False),  # the coursework's test.csv: no image of it exists
    ("image_name,label\n0.png,\n1.png,\n", False), ("image_name\n0.png\n", False),
    ("image_name,label\n0.png,0\n1.png,1\n", True),
    ("image_name,label\n0.png,0\n9.png,9\n", r"line 3: no image '9\.png'"),
    ("image_name,label\n0.png,\n1.png,1\n", "line 2: bad label ''"),
    ("image_name,label\n0.png,ten\n", "line 2: bad label 'ten'"),
    ("image_name,label\n", "no rows"), ("", "no header"), ("\xff", "not a CSV text file"),
])
def test_only_a_missing_or_unlabelled_split_is_forgiven(data, text, found):
    if text is not None:
        (data / "digits" / "usps" / "test.csv").write_bytes(text.encode("latin-1"))
    if isinstance(found, bool):
        assert has_split(data, "usps", "test") is found
    else:
        with pytest.raises(UserError, match=found):
            assert has_split(data, "usps", "test")
            load_digits(data, "usps", "test")


def test_an_embedded_set_has_every_split_and_a_missing_domain_is_a_mistake(data):
    assert has_split("builtin", "usps", "val") and has_split("nowhere", "builtin-usps", "test")
    with pytest.raises(UserError, match="has no digits/svhn"):
        has_split(data, "svhn", "val")


def test_training_images_in_a_split_for_scores_are_counted(data, caplog):
    (data / "digits" / "usps" / "val.csv").write_text("image_name,label\n1.png,1\n2.png,2\n")
    csv_of(data).write_text("image_name,label\n0.png,0\n2.png,2\n")
    load_digits(data, "usps", "val")
    assert said(caplog)[0] == f"{data}/digits/usps/val.csv names 1 images of train.csv: scores on it mislead"
    csv_of(data).write_text("image_name,label\n0.png,0\n")
    load_digits(data, "usps", "val")
    assert not [line for line in said(caplog) if "mislead" in line]


# --- the cache ------------------------------------------------------------------------------------------


def test_the_second_load_decodes_nothing(data, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "common.data.folder")
    first = load_digits(data, "usps", "train")
    assert "digits-usps-train: 5 images" in caplog.text and "(decoded)" in how(caplog)
    monkeypatch.setattr(folder, "decode_strictly", None)
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
    name = {"listed": "_load_cached", "looked at": "decode_strictly"}[moment]
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


def test_a_data_folder_that_cannot_be_written_goes_without_a_cache(data, caplog):
    caplog.set_level(logging.INFO, "common.data.folder")
    (data / ".cache").write_text("a file where the folder should be")
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
        ("image_name,label\n0.png,1,2\n", "line 2: 3 fields"),
        ("image_name,label\n0.png, 1\n", "line 2: bad label ' 1'"),
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


def test_a_disk_that_fails_while_a_file_is_read_is_not_another_files_fault(data, monkeypatch):
    def fail(file):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"cannot read .*train\.csv \(Input/output"):
        patch.setattr(folder.csv, "reader", fail)
        load_digits(data, "usps", "train")
    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(UserError, match=r"cannot read .*face/train \(Input/output error\)"):
        load_faces(data, "train")


def test_a_domain_without_its_images_says_what_belongs_there(data):
    shutil.rmtree(data / "digits" / "usps" / "data")
    with pytest.raises(UserError, match=r"no .*usps/data: a domain needs the images in data/ and .*docs/data\.md"):
        load_digits(data, "usps", "train")


def test_a_folder_that_nobody_may_look_into_is_named(data, monkeypatch):
    looks = os.stat

    def refused(path, *args, **options):
        if "digits/usps" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return looks(path, *args, **options)

    monkeypatch.setattr(os, "stat", refused)
    for look in (load_digits, has_split):
        with pytest.raises(UserError, match=r"cannot read .*digits/usps \(Permission denied\): make it readable"):
            look(data, "usps", "train")


def test_an_error_names_the_missing_part_and_its_cure(data, tmp_path):
    with pytest.raises(UserError, match=r"no data folder .*common\.prepare.*--data builtin"):
        load_digits(tmp_path / "absent", "mnistm", "train")
    with pytest.raises(UserError, match=r"has no digits/svhn: .*builtin-svhn"):
        load_digits(data, "svhn", "train")
    with pytest.raises(UserError, match="has no face/val"):
        load_faces(data, "val")
    with pytest.raises(UserError, match=r"no .*val\.csv: a domain needs the images in data/ and train\.csv, val\.csv"):
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


@pytest.mark.parametrize("load", [
    lambda data: load_digits(data, "mnistm", "train").images,
    lambda data: load_readable(data / "digits" / "mnistm" / "data", 28)[0].images,
])
def test_loading_takes_a_tenth_more_memory_than_the_images(tmp_path, load):
    folder = tmp_path / "digits" / "mnistm"
    names = [f"{i:04d}.png" for i in range(2000)]
    (folder / "data").mkdir(parents=True)
    Image.new("RGB", (28, 28)).save(folder / "data" / names[0])
    for name in names[1:]:
        (folder / "data" / name).hardlink_to(folder / "data" / names[0])
    (folder / "train.csv").write_text("image_name,label\n" + "".join(f"{name},0\n" for name in names))
    for _ in range(2):  # decoded, and from the cache
        tracemalloc.start()
        images = load(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(images) == 2000 and peak < 1.1 * images.nbytes
