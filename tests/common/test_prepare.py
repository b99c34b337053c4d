"""The command that builds the data folder, on tiny raw files in the published formats."""

import csv
import errno
import tarfile
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import prepare
from common.data.domains import DOMAINS
from common.data.folder import load_digits, load_faces
from common.errors import UserError
from tests.common.data.raw_sets import (
    IMAGES,
    LABELS,
    TEST,
    TRAIN,
    face,
    write_lfwcrop,
    write_mnist,
    write_photos,
    write_svhn,
    write_usps,
)


@pytest.fixture
def raw(tmp_path):
    write_mnist(tmp_path / "raw")
    write_photos(tmp_path / "raw")
    return tmp_path / "raw"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def run(raw: Path, out: Path, *flags: str) -> None:
    prepare.main(["--raw", str(raw), "--out", str(out), *flags])


def rows(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        header, *body = csv.reader(file)
    assert header == ["image_name", "label"]
    return body


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# --- layout and splits ----------------------------------------------------------------------------------


def test_everything_at_once(raw, out, capsys):
    write_usps(raw)
    write_svhn(raw)
    write_lfwcrop(raw)
    run(raw, out)
    assert {p.name for p in out.iterdir()} == {"digits", "face"}  # and nothing hidden
    assert {p.name for p in (out / "digits").iterdir()} == {"mnist", "mnistm", "usps", "svhn"}
    for domain, mode in (("mnist", "L"), ("mnistm", "RGB"), ("usps", "L"), ("svhn", "RGB")):
        folder = out / "digits" / domain
        assert {p.name for p in folder.iterdir()} == {"data", "train.csv", "val.csv", "test.csv"}
        names = [f"{i:05d}.png" for i in range(TRAIN + TEST)]
        assert sorted(p.name for p in (folder / "data").iterdir()) == names
        with Image.open(folder / "data" / names[0]) as image:
            assert image.mode == mode and image.size == (28, 28)
        train, val, test = (rows(folder / f"{split}.csv") for split in ("train", "val", "test"))
        assert (len(train), len(val), len(test)) == (42, 11, TEST)
        assert sorted(name for name, _ in train + val) == names[:TRAIN]
        assert [name for name, _ in test] == names[TRAIN:]
    made = capsys.readouterr().out.splitlines()
    assert (
        made[0] == "made digits/mnist: 42 train, 11 val, 11 test" and made[4] == "made face: 3 train, 4 val"
    )


def test_mnist_pixels_and_labels_arrive(raw, out):
    run(raw, out)
    for split, part, start in (("train", "train", 0), ("val", "train", 0), ("test", "t10k", TRAIN)):
        images, labels, names = load_digits(out, "mnist", split)
        index = [int(name[:5]) - start for name in names]
        assert (images.numpy() == IMAGES[part][index][:, None]).all()
        assert (labels.numpy() == LABELS[part][index]).all()


def test_usps_is_enlarged_and_its_label_1_is_the_digit_0(tmp_path, out):
    write_usps(tmp_path)
    run(tmp_path, out)
    images, labels, _ = load_digits(out, "usps", "test")
    assert labels.tolist() == [i % 10 for i in range(TEST)] and images.shape == (TEST, 3, 28, 28)
    for i, image in enumerate(images):
        assert image.unique().tolist() == [int(np.float32(round(i / 26 - 1, 4) + 1) / 2 * 255)]


# --- MNIST-M --------------------------------------------------------------------------------------------


def test_mnistm_is_the_difference_between_photo_and_digit(raw, out):
    run(raw, out)
    spots = set()
    for split, part, start in (("train", "train", 0), ("val", "train", 0), ("test", "t10k", TRAIN)):
        images, labels, names = load_digits(out, "mnistm", split)
        plain = load_digits(out, "mnist", split)
        assert names == plain.names and (labels == plain.labels).all()  # the same split as MNIST
        photos = {}
        for path in (raw / "BSDS500" / "data" / "images" / {"t10k": "val"}.get(part, part)).iterdir():
            photos[int(path.stem)] = np.asarray(Image.open(path)).astype(int)
        for image, name in zip(images.permute(0, 2, 3, 1).numpy().astype(int), names, strict=True):
            digit = IMAGES[part][int(name[:5]) - start].astype(int)
            red, green, blue = image[0, 0]  # the digit is 0 there, so this pixel is the photograph's
            photo = photos[min(photos, key=lambda shade: abs(shade - red))]
            corner = abs(photo[:13, :33] - (red, green, blue)).sum(-1)
            top, left = np.unravel_index(corner.argmin(), corner.shape)
            patch = photo[top : top + 28, left : left + 28]
            assert (image[digit == 0] == patch[digit == 0]).all()
            assert (image == abs(patch - digit[..., None])).all()
            spots.add((top, left))
    assert len(spots) > TRAIN / 2 and max(spots)[0] > 9 and max(left for _, left in spots) > 25


def test_one_folder_of_photographs_is_split_by_name(tmp_path, out, caplog):
    write_mnist(tmp_path)
    write_photos(tmp_path, folders=["val"])
    run(tmp_path, out)
    assert "the test digits get its last 1 by name" in caplog.text
    reds = {split: load_digits(out, "mnistm", split).images[:, 0, :9].numpy() for split in ("train", "test")}
    assert reds["train"].max() < 220 < reds["test"].min()  # 160 and 200 against 240


def test_photographs_are_read_from_the_archive_as_published(tmp_path, raw, out):
    run(raw, out)
    packed = tmp_path / "packed"
    write_mnist(packed)
    (raw / "BSDS500/data/images/val/._240.jpg").write_bytes(b"of macOS")
    with tarfile.open(packed / "BSR_bsds500.tgz", "w:gz") as tar:
        tar.add(raw / "BSDS500", "BSR/BSDS500")
    run(packed, tmp_path / "out2")
    assert contents(out / "digits" / "mnistm") == contents(tmp_path / "out2" / "digits" / "mnistm")


# --- faces ----------------------------------------------------------------------------------------------


def test_faces_of_the_right_size_are_copied_byte_for_byte(tmp_path, out):
    members = write_lfwcrop(tmp_path)
    run(tmp_path, out)
    for split, count in (("train", 3), ("val", 3)):
        for i in range(count):
            name = f"face/{split}/{i:05d}.jpg"
            assert (out / name).read_bytes() == members[name]
    with Image.open(out / "face" / "val" / "00003.png") as image:
        assert image.size == (64, 64)
    assert len(load_faces(out, "val").images) == 4


@pytest.mark.parametrize("kaggle", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_celeba_follows_its_official_partition(tmp_path, out, zipped, kaggle, caplog):
    folder = tmp_path / "celeba"
    folder.mkdir()
    blobs = {f"{i:06d}.jpg": face((178, 218), 20 * i) for i in range(1, 6)}
    text = "".join(f"{n} {i % 3}\n" for i, n in enumerate(blobs))
    if kaggle:
        (folder / "list_eval_partition.csv").write_text("image_id,partition\n" + text.replace(" ", ","))
    else:
        (folder / "list_eval_partition.txt").write_text(text)
    if zipped:
        with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
            for name, blob in blobs.items():
                archive.writestr(f"img_align_celeba/{name}", blob)
    else:
        (folder / "img_align_celeba").mkdir()
        for name, blob in blobs.items():
            (folder / "img_align_celeba" / name).write_bytes(blob)
    run(tmp_path, out)
    assert load_faces(out, "train").images[:, 0, 0, 0].tolist() == [20, 80]
    assert load_faces(out, "val").images[:, 0, 0, 0].tolist() == [40, 100]
    assert "1 of 5 images are left out: neither train nor val" in caplog.text


def test_another_zip_beside_celeba_needs_no_partition(tmp_path, out):
    write_lfwcrop(tmp_path)
    (tmp_path / "lfwcrop").rename(tmp_path / "celeba")
    run(tmp_path, out, "--faces", str(tmp_path / "celeba" / "face.zip"))
    assert [len(load_faces(out, split).images) for split in ("train", "val")] == [3, 4]


def test_any_folder_of_faces(raw, out, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.png").write_bytes(face((70, 90), 20 * i, "png"))
    run(raw, out, "--faces", str(folder))
    train, val = (load_faces(out, split).images[:, 0, 0, 0].tolist() for split in ("train", "val"))
    assert len(train) == 8 and sorted(train + val) == [20 * i for i in range(10)]
    with pytest.raises(UserError, match="no folder or zip"):
        run(raw, out, "--faces", str(tmp_path / "absent"))


def test_faces_of_ones_own_come_first_and_need_no_raw_folder(tmp_path, raw, capsys, monkeypatch):
    write_lfwcrop(tmp_path)
    faces = str(tmp_path / "lfwcrop" / "face.zip")
    prepare.main(["--faces", faces, "--out", str(tmp_path / "alone")])
    assert capsys.readouterr().out == "made face: 3 train, 4 val\n"
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["face"]
    run(raw, tmp_path / "all", "--faces", faces)
    assert capsys.readouterr().out.splitlines()[0] == "made face: 3 train, 4 val"
    for flags in ([], ["--download"], ["--faces", faces, "--download"]):
        with pytest.raises(UserError, match="--raw is missing"):
            prepare.main(flags)


def test_a_zip_writes_nowhere_but_into_the_set(tmp_path, out, raw):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        for i in range(5):
            archive.writestr(f"../../evil/{i}.jpg", face((64, 64), i))
    before = set(tmp_path.parent.rglob("*"))
    run(raw, out, "--faces", str(tmp_path / "evil.zip"))
    assert all(out in path.parents or path == out for path in set(tmp_path.parent.rglob("*")) - before)
    assert len(load_faces(out, "train").images) == 4


# --- running it again -----------------------------------------------------------------------------------


def test_two_builds_are_the_same_bytes(raw, tmp_path):
    run(raw, tmp_path / "a")
    run(raw, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_second_run_does_nothing(raw, out, capsys):
    run(raw, out)
    before = times(out)
    capsys.readouterr()
    run(raw, out)
    assert times(out) == before
    assert capsys.readouterr().out.splitlines()[:2] == [
        "keep digits/mnist: exists",
        "keep digits/mnistm: exists",
    ]


def test_the_next_run_finishes_a_killed_one(raw, out, tmp_path, monkeypatch):
    run(raw, tmp_path / "whole")
    hidden = out / "digits" / ".mnistm.partial" / "data"
    hidden.mkdir(parents=True)  # left by a killed run
    (hidden / "00000.png").write_bytes(b"half")
    (hidden / "stray.png").write_bytes(b"half")

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare, "split_rows", interrupted)  # after the images, before the CSVs
        run(raw, out)
    assert not (out / "digits" / "mnist").exists() and not (out / "digits" / ".mnist.partial").exists()
    run(raw, out)
    assert contents(out) == contents(tmp_path / "whole")


def test_two_at_once_do_not_build_in_one_folder(tmp_path, raw, out, monkeypatch):
    write_lfwcrop(tmp_path)
    read = prepare.read_faces

    def read_while_another_starts(*args):
        with pytest.raises(UserError, match=rf"another prepare works in {out}: wait for it"):
            run(raw, out)
        return read(*args)

    monkeypatch.setattr(prepare, "read_faces", read_while_another_starts)
    run(raw, out, "--faces", str(tmp_path / "lfwcrop" / "face.zip"))
    assert {path.name for path in out.iterdir()} == {"digits", "face"} and len(load_faces(out, "val").images) == 4


def test_an_empty_folder_is_not_a_set(raw, out, capsys):
    (out / "digits" / "mnist").mkdir(parents=True)
    run(raw, out)
    assert capsys.readouterr().out.startswith("made digits/mnist: 42 train")


@pytest.mark.parametrize("error", [NotImplementedError, PermissionError(errno.EACCES, "Permission denied")])
def test_a_file_system_without_locks_is_used_and_one_that_cannot_be_written_is_named(raw, out, monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr("common.files.FileLock.acquire", fail)
    if error is NotImplementedError:
        run(raw, out)
        assert len(load_digits(out, "mnist", "test").images) == TEST
    else:
        with pytest.raises(UserError, match=rf"{out}: cannot write \(Permission denied\)"):
            run(raw, out)


# --- missing or damaged files ---------------------------------------------------------------------------


def test_a_missing_source_is_skipped_in_one_line_that_says_where_to_put_it(raw, out, capsys):
    run(raw, out)
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == f"skip digits/svhn: put train_32x32.mat and test_32x32.mat into {raw}/SVHN (or --download)"
    assert lines[2].startswith(f"skip digits/usps: put usps.bz2 and usps.t.bz2 into {raw}/USPS")
    assert lines[4].startswith(f"skip face: put CelebA into {raw}/celeba")
    assert not (out / "digits" / "svhn").exists()


def test_mnistm_without_photographs_is_skipped(tmp_path, out, capsys):
    write_mnist(tmp_path)
    run(tmp_path, out)
    assert f"skip digits/mnistm: put the BSDS500 photographs into {tmp_path}/BSDS500" in capsys.readouterr().out


def test_no_raw_file_at_all_is_an_error(tmp_path, out):
    with pytest.raises(UserError, match="holds none of the raw sets"):
        run(tmp_path, out)
    with pytest.raises(UserError, match="no folder"):
        run(tmp_path / "absent", out)
    assert not out.exists()


@pytest.mark.parametrize(
    "name",
    [
        "MNIST/raw/train-images-idx3-ubyte.gz",
        "MNIST/raw/t10k-labels-idx1-ubyte.gz",
        "USPS/usps.bz2",
        "SVHN/test_32x32.mat",
        "lfwcrop/face.zip",
        "BSDS500/data/images/val/240.jpg",
    ],
)
def test_a_truncated_file_is_named_and_nothing_half_built_remains(raw, out, name):
    write_usps(raw)
    write_svhn(raw)
    write_lfwcrop(raw)
    blob = (raw / name).read_bytes()
    (raw / name).write_bytes(blob[: len(blob) * 2 // 3])
    with pytest.raises(UserError, match="download it again") as caught:
        run(raw, out)
    assert Path(name).name in str(caught.value) and "\n" not in str(caught.value)
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_the_sets_after_a_damaged_one_are_built(raw, out, capsys):
    for write in (write_usps, write_svhn, write_lfwcrop):
        write(raw)
    for name in ("MNIST/raw/t10k-labels-idx1-ubyte.gz", "USPS/usps.bz2"):
        (raw / name).write_bytes(b"text")
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte"):
        run(raw, out)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "fail digits/mnist", "fail digits/mnistm", "fail digits/usps", "made digits/svhn", "made face"]
    assert "usps.bz2" in lines[2] and len(load_faces(out, "train").images) == 3


@pytest.mark.parametrize(("name", "kind"), [("lfwcrop/face.zip", "zip"), ("SVHN/test_32x32.mat", "mat"),
                                            ("MNIST/raw/t10k-labels-idx1-ubyte.gz", "gz")])
def test_a_web_page_under_the_name_of_a_download_is_called_one(raw, out, name, kind):
    write_svhn(raw)
    write_lfwcrop(raw)
    (raw / name).write_bytes(b"\n<!DOCTYPE HTML><title>Log in</title>")
    with pytest.raises(UserError, match=rf"{name} \(a web page, not a {kind}\): .* download it again"):
        run(raw, out)


def test_an_unreadable_raw_file_is_not_called_unwritable(raw, out, monkeypatch):
    def refused(raw):
        raise PermissionError(errno.EACCES, "Permission denied", str(raw / "MNIST"))

    monkeypatch.setattr(prepare, "DOMAINS", {"mnist": DOMAINS["mnist"]._replace(read=refused)})
    with pytest.raises(UserError, match=r"cannot read .*MNIST \(Permission denied\)"):
        run(raw, out)


def test_a_raw_file_that_may_not_be_opened_is_not_called_damaged(raw, out, monkeypatch):
    write_usps(raw)

    def refused(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("bz2.open", refused)
    with pytest.raises(UserError, match=r"cannot read .*usps\.bz2 \(Permission denied\): make it readable"):
        run(raw, out)


def test_a_full_disk_is_not_blamed_on_the_raw_file(raw, out, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"mnist: cannot write \(No space left on device\)"):
        run(raw, out)


def test_a_broken_face_is_named(tmp_path, out):
    write_lfwcrop(tmp_path)
    with zipfile.ZipFile(tmp_path / "lfwcrop" / "face.zip", "a") as archive:
        archive.writestr("face/train/broken.jpg", face((64, 64), 9)[:300])
    with pytest.raises(UserError, match=r"face\.zip: face/train/broken\.jpg"):
        run(tmp_path, out)
    assert not out.joinpath("face").exists()


# --- downloads (no network: the downloading function is replaced) ----------------------------------------


def test_only_missing_sets_are_downloaded(raw, out, tmp_path, monkeypatch):
    write_svhn(tmp_path / "site")
    fetched = []

    def download(url, root, name, md5):
        fetched.append(url)
        if "housenumbers" not in url:
            raise urllib.error.URLError("away")
        assert len(md5) == 32
        Path(root).mkdir(exist_ok=True)
        source = tmp_path / "site" / "SVHN" / url.rpartition("/")[2]
        (Path(root) / name).write_bytes(source.read_bytes())

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    write_lfwcrop(raw)
    with pytest.raises(UserError, match=r"www\.csie\.ntu\.edu\.tw did not deliver .*usps\.bz2 .*away"):
        run(raw, out, "--download")
    assert len(fetched) == 3 and sorted(p.name for p in (raw / "SVHN").iterdir()) == [
        "test_32x32.mat",
        "train_32x32.mat",
    ]
    assert {p.name for p in (out / "digits").iterdir()} == {"mnist", "mnistm", "svhn"}  # the other sets were built


def test_existing_raw_files_are_not_downloaded(raw, out, monkeypatch):
    for write in (write_usps, write_svhn, write_lfwcrop):
        write(raw)
    monkeypatch.setattr(prepare, "fetch", lambda *_: pytest.fail("a download"))
    run(raw, out, "--download")
    assert (out / "digits" / "mnistm").exists() and (out / "face").exists()


def test_only_the_missing_files_of_a_set_are_downloaded(tmp_path, out, monkeypatch):
    write_mnist(tmp_path)
    before = times(tmp_path / "MNIST")
    fetched = []
    monkeypatch.setattr(prepare, "DOMAINS", {"mnistm": DOMAINS["mnistm"]})

    def away(url, *args):
        fetched.append(url)
        raise OSError("away")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", away)
    with pytest.raises(UserError, match=r"www\.eecs\.berkeley\.edu did not deliver .*BSR_bsds500\.tgz"):
        run(tmp_path, out, "--download")
    assert fetched == [DOMAINS["mnistm"].files[-1][0]] and times(tmp_path / "MNIST") == before
