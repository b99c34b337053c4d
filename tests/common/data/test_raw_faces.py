"""Faces as published; tests/common/test_prepare.py has the way from there to loaded images."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from common.data.raw_faces import MAX_IMAGE_BYTES, face_file, read_faces
from common.data.raw_files import Missing
from common.errors import UserError
from tests.common.data.raw_sets import face, write_lfwcrop


def test_a_split_of_the_source_is_kept_and_other_files_are_ignored(tmp_path):
    members = write_lfwcrop(tmp_path)
    splits, read = read_faces(tmp_path, 0, None)
    assert [len(names) for names in splits.values()] == [3, 4] and {*splits["train"], *splits["val"]} == set(members)
    assert read("face/train/00001.jpg") == (members["face/train/00001.jpg"], ".jpg")  # 64x64: the same bytes


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
        read_faces(tmp_path, 0, None)


def test_a_source_that_is_too_small_to_divide_is_refused(tmp_path):
    (tmp_path / "0.png").write_bytes(face((70, 90), 20, "png"))
    with pytest.raises(UserError, match="has no train faces: add more images, or a train/ and a val/ folder"):
        read_faces(tmp_path, 0, tmp_path)


def test_a_zip_bomb_is_refused(tmp_path):
    path = tmp_path / "faces.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for split in ("train", "val"):
            archive.writestr(f"face/{split}/0.png", bytes(MAX_IMAGE_BYTES + 1))
    assert path.stat().st_size < 2**20
    _, read = read_faces(tmp_path, 0, path)
    with pytest.raises(UserError, match="64 MiB unpacked"):
        read("face/train/0.png")
