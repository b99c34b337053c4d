"""The one decoder: every kind of image file, and every command that reads one."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.decode import open_rgb
from common.data.folder import load_folder
from common.data.raw_digits import read_photos
from common.data.raw_faces import face_file

GRADIENT = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
RGB = np.stack([GRADIENT, GRADIENT.T, GRADIENT[::-1]], -1)
GREY = np.repeat(GRADIENT[..., None], 3, -1)
ALPHA = GRADIENT.T
ON_WHITE = np.rint(255 + (RGB.astype(float) - 255) * (ALPHA[..., None] / 255))
BLACK = np.zeros_like(GREY)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: the camera was rotated by 90 degrees
    return exif


def pixels(source: bytes) -> np.ndarray:
    return np.asarray(open_rgb(source))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(GRADIENT), GREY),
        (Image.fromarray(GRADIENT.astype(np.uint16) * 256 + (255 - GRADIENT)), GREY),
        (Image.fromarray(GRADIENT > 99), 255 * (GREY > 99)),
        (Image.fromarray(np.dstack([RGB, ALPHA])), ON_WHITE),
        (Image.fromarray(np.dstack([BLACK, 255 - GRADIENT])), GREY),
        (Image.merge("LA", [Image.fromarray(BLACK[..., 0]), Image.fromarray(255 - GRADIENT)]), GREY),
        (Image.fromarray(GRADIENT).convert("LA"), GREY),
        (Image.fromarray(GRADIENT).convert("P"), GREY),
    ],
    ids=["rgb", "grey", "grey16", "bilevel", "rgba", "black-on-transparent", "la", "opaque-la", "palette"],
)
def test_every_kind_of_png_becomes_rgb(tmp_path, image, expected):
    image.save(tmp_path / "x.png")
    found = np.asarray(open_rgb(tmp_path / "x.png"))
    assert found.dtype == np.uint8 and (abs(found - expected) <= 1).all()  # Pillow's rounding of alpha
    assert (pixels((tmp_path / "x.png").read_bytes()) == found).all()


@pytest.mark.parametrize("pixels", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 65536, np.int32),
                                    np.full((4, 4), -1, np.int32)], ids=["float", "large", "negative"])
def test_32_bit_grey_is_refused(pixels):
    with pytest.raises(ValueError, match="32-bit grey is not read"):
        open_rgb(encoded(Image.fromarray(pixels), "TIFF"))


def test_a_huge_image_is_refused_and_without_a_warning(recwarn):
    with pytest.raises(ValueError, match="more than 100 megapixels"):
        open_rgb(encoded(Image.new("1", (10_001, 10_000)), compress_level=1))
    assert not recwarn


def test_a_transparent_16_bit_grey_shows_white():
    found = pixels(encoded(Image.fromarray(GRADIENT.astype(np.uint16) * 257), transparency=257))
    assert (found == np.where(GREY == 1, 255, GREY)).all()


@pytest.mark.parametrize(("mode", "clear"), [("P", bytes([0, *[255] * 255])), ("P", 0), ("L", 0), ("RGB", (0, 0, 0))])
def test_a_transparent_colour_shows_white_and_without_a_warning(recwarn, mode, clear):
    found = pixels(encoded(Image.fromarray(GRADIENT).convert(mode), transparency=clear))
    assert (found == np.where(GREY == 0, 255, GREY)).all() and not recwarn


@pytest.mark.parametrize(("image", "kind"), [
    (RGB, "PNG"), (GRADIENT, "PNG"), (GRADIENT.astype(np.uint16) * 257, "PNG"), (np.dstack([RGB, ALPHA]), "PNG"),
    (RGB, "WEBP"), (RGB, "JPEG"),
], ids=["rgb", "grey", "grey16", "rgba", "webp", "jpeg"])
def test_exif_rotation_is_applied(image, kind):
    picture = Image.fromarray(image[:20])
    assert (pixels(encoded(picture, kind, exif=turned())) == np.rot90(pixels(encoded(picture, kind)), -1)).all()


def test_an_animation_gives_its_first_frame():
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    assert (pixels(encoded(frames[0], save_all=True, append_images=frames[1:])) == GREY).all()


def test_cmyk_becomes_rgb():
    red, green, blue = pixels(encoded(Image.new("CMYK", (28, 28), (255, 0, 0, 0)), "JPEG", quality=100)).mean((0, 1))
    assert red < 5 and green > 250 and blue > 250


def test_another_size_is_resized_with_antialiasing(tmp_path):
    stripes = np.zeros((280, 140, 3), np.uint8)
    stripes[::2] = 200  # thinner than a pixel of the result: without antialiasing every pixel is 0 or 200
    Image.fromarray(stripes).save(tmp_path / "x.png")
    (image,) = load_folder(tmp_path, 28).images.numpy()
    assert image.shape == (3, 28, 28) and (abs(image.astype(int) - 100) < 10).all()


def test_any_exception_of_a_decoder_becomes_one_line():
    tiff = bytearray(encoded(Image.new("RGB", (4, 4)), "TIFF", exif=turned()))
    tiff[72] = 2  # Pillow meets text where a number belongs, and raises a TypeError
    for content in (bytes(tiff), b"", b"text", encoded(Image.fromarray(RGB))[:99]):
        with pytest.raises(ValueError) as caught:
            open_rgb(content)
        assert str(caught.value) and "\n" not in str(caught.value)


# What a photograph may be: lying on its side, of 16 bits, on a transparent background.
ODD = {
    "exif": (encoded(Image.fromarray(RGB[:20]).resize((70, 50)), exif=turned()), (50, 70)),
    "grey16": (encoded(Image.fromarray(np.full((70, 70), 100 * 257, np.uint16))), (70, 70)),
    "transparent": (encoded(Image.new("RGBA", (70, 70))), (70, 70)),
}


@pytest.mark.parametrize(("blob", "size"), ODD.values(), ids=ODD)
def test_prepare_reads_faces_and_photographs_as_every_command_reads_images(tmp_path, blob, size):
    image = open_rgb(blob)
    assert image.size == size
    top, left = (size[1] - min(size)) // 2, (size[0] - min(size)) // 2
    square = image.crop((left, top, left + min(size), top + min(size))).resize((64, 64), Image.Resampling.BILINEAR)
    face, suffix = face_file(blob)
    assert suffix == ".png" and (pixels(face) == np.asarray(square)).all()
    for part in ("train", "val"):
        folder = tmp_path / "BSDS500" / "data" / "images" / part
        folder.mkdir(parents=True)
        Path(folder / "1.jpg").write_bytes(blob)
        Path(folder / "._1.jpg").write_bytes(b"of macOS")
    for (photo,) in read_photos(tmp_path):
        assert (photo == np.asarray(image)).all()


def test_a_face_of_the_right_size_keeps_its_bytes_and_is_turned_when_it_is_loaded(tmp_path):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:9] = 200
    blob = encoded(Image.fromarray(picture), exif=turned())
    assert face_file(blob) == (blob, ".png")
    (tmp_path / "0.png").write_bytes(blob)
    assert (load_folder(tmp_path, 64).images[0, 0].numpy() == np.rot90(picture[..., 0], -1)).all()
