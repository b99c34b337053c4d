"""A folder of generated images: which ones are missing, whole batches, and files of others."""

import threading
import time

import pytest
import torch
from PIL import Image

from common import image_folder
from common.errors import UserError
from common.image_folder import generate_folder, missing_images
from common.images import save_image

NAMES = ["0.png", "1.png", "2.png"]


@pytest.fixture
def folder(tmp_path):
    save_image(torch.zeros(3, 2, 2, dtype=torch.uint8), tmp_path / "1.png", "seed=0")
    return tmp_path


def test_all_is_missing_from_a_new_folder(tmp_path):
    assert missing_images(tmp_path / "new", NAMES, "seed=0") == [0, 1, 2]
    assert not (tmp_path / "new").exists()
    assert missing_images(tmp_path, NAMES, "seed=0") == [0, 1, 2]


def test_what_these_settings_made_is_not_made_again(folder):
    (folder / ".0.png.partial").write_bytes(b"cut short")
    (folder / ".DS_Store").write_bytes(b"of the system")
    assert missing_images(folder, NAMES, "seed=0") == [0, 2]
    assert missing_images(folder, ["1.png"], "seed=0") == []


def test_other_settings_other_names_and_other_peoples_files_are_refused(folder):
    def refused(names=NAMES, stamp="seed=0"):
        with pytest.raises(UserError, match="was not made by this command with these settings") as mistake:
            missing_images(folder, names, stamp)
        return str(mistake.value)

    assert "1.png" in refused(stamp="seed=1")
    assert "1.png" in refused(names=["0.png"])
    for name, data in (("notes.txt", b"hello"), ("0.png", b"not a picture"), ("2.png", b"")):
        (folder / name).write_bytes(data)
        assert name in refused()
        (folder / name).unlink()
    Image.new("RGB", (2, 2)).save(folder / "2.png")  # a picture without the stamp
    assert "2.png" in refused()
    (folder / "2.png").unlink()
    (folder / "0.png").mkdir()
    assert "0.png" in refused()


def test_a_file_is_no_folder(folder):
    with pytest.raises(UserError, match="is a file"):
        missing_images(folder / "1.png", NAMES, "seed=0")


@pytest.mark.parametrize("name", ["faces.png", "faces.JPG", "faces.gif"])
def test_the_name_of_a_picture_is_not_that_of_a_folder(name, tmp_path):
    with pytest.raises(UserError, match=f"{name} is the name of one picture.*--grid"):
        generate_folder(tmp_path / name, NAMES, "seed=0", None, 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:len(content) * 3 // 4],
                                    lambda content: content[:-20] + bytes(8) + content[-12:]])
def test_a_damaged_image_is_made_again(damage, folder):
    """With the stamp of these settings, which stands before the pixels."""
    path = folder / "1.png"
    path.write_bytes(damage(path.read_bytes()))
    assert missing_images(folder, NAMES, "seed=0") == [0, 1, 2]
    with pytest.raises(UserError, match="was not made by this command"):
        missing_images(folder, NAMES, "seed=1")


def test_ctrl_c_says_how_many_images_are_done(tmp_path):
    def generate(indices):
        if indices.start:
            raise KeyboardInterrupt
        return torch.zeros(len(indices), 3, 2, 2, dtype=torch.uint8)

    with pytest.raises(KeyboardInterrupt, match=r"^2 of 3 images are in .*out; the same command continues$"):
        generate_folder(tmp_path / "out", NAMES, "seed=0", generate, 2)
    assert missing_images(tmp_path / "out", NAMES, "seed=0") == [2]


def test_an_image_comes_from_the_same_whole_batch_whatever_is_missing(tmp_path):
    names, batches = [f"{i}.png" for i in range(8)], []

    def generate(indices):
        batches.append(list(indices))
        return torch.tensor(list(indices), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)

    assert generate_folder(tmp_path / "out", names, "seed=0", generate, 3) == 8
    assert batches == [[0, 1, 2], [3, 4, 5], [6, 7]]
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(before) == names
    for i, name in enumerate(names):
        with Image.open(tmp_path / "out" / name) as image:
            assert image.getpixel((1, 1)) == (i, i, i)
    for name in ("1.png", "7.png"):
        (tmp_path / "out" / name).unlink()
    assert generate_folder(tmp_path / "out", names, "seed=0", generate, 3) == 2
    assert batches[3:] == [[0, 1, 2], [6, 7]]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert generate_folder(tmp_path / "out", names, "seed=0", generate, 3) == 0 and len(batches) == 5


def black(indices):
    return torch.zeros(len(indices), 3, 2, 2, dtype=torch.uint8)


def test_images_are_written_while_the_next_batch_is_generated(tmp_path, monkeypatch):
    may_write = threading.Event()

    def generate(indices):
        if indices.start == 2:
            may_write.set()
        return black(indices)

    def save(image, path, stamp):
        assert may_write.wait(20)
        save_image(image, path, stamp)

    monkeypatch.setattr(image_folder, "save_image", save)
    assert generate_folder(tmp_path / "out", NAMES, "seed=0", generate, 2) == 3
    assert missing_images(tmp_path / "out", NAMES, "seed=0") == []


def test_what_is_generated_is_written_before_ctrl_c_ends_the_command(tmp_path, monkeypatch):
    def save(image, path, stamp):
        time.sleep(0.1)
        save_image(image, path, stamp)

    def generate(indices):
        if indices.start:
            raise KeyboardInterrupt
        return black(indices)

    monkeypatch.setattr(image_folder, "save_image", save)
    with pytest.raises(KeyboardInterrupt, match="^7 of 8 images are in"):
        generate_folder(tmp_path / "out", [f"{i}.png" for i in range(8)], "seed=0", generate, 7)
    assert len(list((tmp_path / "out").iterdir())) == 7


@pytest.mark.parametrize(("broken", "batches"), [(1, [0, 2]), (8, [0, 2, 4, 6, 8])])
def test_an_image_that_cannot_be_written_ends_the_command(broken, batches, tmp_path, monkeypatch):
    generated = []

    def generate(indices):
        generated.append(indices.start)
        return black(indices)

    def save(image, path, stamp):
        if path.name == f"{broken}.png":
            raise UserError(f"{path}: cannot write (No space left on device)")
        save_image(image, path, stamp)

    monkeypatch.setattr(image_folder, "save_image", save)
    with pytest.raises(UserError, match=rf"{broken}\.png: cannot write"):
        generate_folder(tmp_path / "out", [f"{i}.png" for i in range(9)], "seed=0", generate, 2)
    assert generated == batches
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == [f"{i}.png" for i in range(broken)]
