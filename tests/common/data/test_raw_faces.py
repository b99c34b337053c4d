"""Faces as published; tests/common/test_prepare.py has the way from there to loaded images."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.raw_faces import MAX_IMAGE_BYTES, face_file, read_faces
from common.data.raw_files import Missing
from common.errors import UserError
from tests.common.data.raw_sets import face, write_lfwcrop


def test_a_split_of_the_source_is_kept_and_other_files_are_ignored(tmp_path):
    members = write_lfwcrop(tmp_path)
    splits, read = read_faces(tmp_path, None)
    assert [len(names) for names in splits.values()] == [3, 4] and {*splits["train"], *splits["val"]} == set(members)
    assert read("face/train/00001.jpg") == (members["face/train/00001.jpg"], ".jpg")  # 64x64: the same bytes


def spread(folder, names) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(face((64, 64), 20, "png"))


def numbered(*folders: str) -> list[str]:
    return [f"{folder}/{i}.png" for folder in folders for i in range(5)]


@pytest.mark.parametrize(("names", "counts", "said"), [
    (numbered("Train", "VAL"), [5, 5], []),
    (numbered("faces/train/a", "faces/val/train"), [5, 5], []),  # the first folder counts
    (numbered("train", "val", "test"), [5, 5], ["5 of 15 images are left out: neither train nor val"]),
    (numbered("train"), [4, 1], ["has train/ but no val/: 20 % of train/ become val"]),
    (numbered("train", "test"), [4, 1], ["has train/ but no val/: 20 % of train/ become val",
                                         "5 of 10 images are left out: neither train nor val"]),
    (numbered("a", "b"), [8, 2], []),
    (numbered("test"), [4, 1], []),  # the name of a split only beside train
    ([*numbered("a"), "b/1.TIF", "b/2.txt", "._x.png", ".DS_Store", ".thumbnails/1.png"], [4, 1],
     ["2 of 7 files are left out (1 .TIF, 1 .txt): images are named .png, .jpg, .jpeg, .bmp, .webp"]),
], ids=["any case", "nested", "test", "no val", "no val but test", "no splits", "test alone", "other files"])
@pytest.mark.parametrize("zipped", [False, "/", "\\"])
def test_folders_divide_a_source_and_what_is_left_out_is_counted(tmp_path, caplog, names, counts, said, zipped):
    source = tmp_path / "mine"
    spread(source, names)
    if zipped:
        with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
            archive.writestr("train/", b"")  # an entry of a folder
            for name in names:
                archive.write(source / name, name if name[0] == "." else name.replace("/", zipped))
        source = tmp_path / "mine.zip"
    splits, read = read_faces(None, source)
    assert [len(members) for members in splits.values()] == counts
    assert not set(splits["train"]) & set(splits["val"])
    assert all(read(name) for name in splits["train"] + splits["val"])
    assert [record.getMessage().removeprefix(str(source)).lstrip(": ") for record in caplog.records] == said


def test_linked_folders_are_read_circles_are_not_followed_and_pipes_are_left_out(tmp_path, caplog):
    spread(tmp_path / "else", numbered("faces"))
    spread(tmp_path / "mine", numbered("train"))
    (tmp_path / "mine" / "val").symlink_to(tmp_path / "else" / "faces")
    (tmp_path / "mine" / "train" / "circle").symlink_to(tmp_path / "mine")
    (tmp_path / "else" / "faces" / "circle").symlink_to(tmp_path / "else" / "faces")
    os.mkfifo(tmp_path / "mine" / "train" / "z.png")
    splits, _ = read_faces(None, tmp_path / "mine")
    assert splits == {"train": numbered("train"), "val": numbered("val")}
    assert "1 of 11 files are left out (1 not files)" in caplog.text


def test_a_source_with_val_alone_is_refused(tmp_path):
    spread(tmp_path, numbered("val"))
    with pytest.raises(UserError, match="has no train faces"):
        read_faces(None, tmp_path)


def test_celeba_is_known_by_its_name_even_as_the_working_directory(tmp_path, monkeypatch):
    spread(tmp_path / "img_align_celeba", numbered("x"))
    (tmp_path / "list_eval_partition.txt").write_text("".join(f"{i}.png {i % 2}\n" for i in range(5)))
    monkeypatch.chdir(tmp_path / "img_align_celeba")
    assert [len(names) for names in read_faces(None, Path())[0].values()] == [3, 2]


def test_a_folder_that_cannot_be_listed_is_an_error_that_prepare_names(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refused)
    with pytest.raises(PermissionError) as error:
        read_faces(None, tmp_path)
    assert error.value.filename == str(tmp_path)


def test_a_face_is_cropped_to_its_central_square():
    picture = np.zeros((218, 178, 3), np.uint8)
    picture[20:198] = 200  # the central 178x178 of an aligned CelebA image
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    blob, suffix = face_file(file.getvalue())
    with Image.open(io.BytesIO(blob)) as image:
        assert suffix == ".png" and image.size == (64, 64) and image.getextrema() == ((200, 200),) * 3


def test_without_any_faces_the_message_says_what_to_put_where(tmp_path):
    with pytest.raises(Missing, match=f"put CelebA into {tmp_path}/celeba, or LFWcrop's .*, or name others by --faces"):
        read_faces(tmp_path, None)


def test_a_source_that_is_too_small_to_divide_is_refused(tmp_path):
    (tmp_path / "0.png").write_bytes(face((70, 90), 20, "png"))
    with pytest.raises(UserError, match="has no train faces: add more images, or a train/ and a val/ folder"):
        read_faces(tmp_path, tmp_path)


def test_a_zip_bomb_is_refused(tmp_path):
    path = tmp_path / "faces.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for split in ("train", "val"):
            archive.writestr(f"face/{split}/0.png", bytes(MAX_IMAGE_BYTES + 1))
    assert path.stat().st_size < 2**20
    _, read = read_faces(tmp_path, path)
    with pytest.raises(UserError, match="64 MiB unpacked"):
        read("face/train/0.png")
