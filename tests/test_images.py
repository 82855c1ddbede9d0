"""Decoding: equal to Pillow's, upright, and no way for hostile bytes to do worse than a ValueError."""

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.data import images


def picture_of(height: int = 131, width: int = 173, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise: what JPEG was made for, but not all of one block."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (height // 32 + 2, width // 32 + 2, 3), np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).astype(float)
    return Image.fromarray((smooth + draw.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def as_pillow_shows(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


PHOTO = picture_of()
FILES = {
    **{f"JPEG, subsampling {s}": encode(PHOTO, "JPEG", quality=90, subsampling=s) for s in (0, 1, 2)},
    "JPEG, progressive": encode(PHOTO, "JPEG", quality=60, progressive=True),
    "JPEG, restart markers": encode(PHOTO, "JPEG", restart_marker_rows=1),
    "JPEG, stored as RGB": encode(PHOTO, "JPEG", keep_rgb=True),
    "JPEG, grey": encode(PHOTO.convert("L"), "JPEG"),
    "JPEG, CMYK": encode(PHOTO.convert("CMYK"), "JPEG"),
    "JPEG with bytes behind its end": encode(PHOTO, "JPEG") + bytes(7),
    "JPEG with damaged EXIF": encode(PHOTO, "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"),
    "JPEG, CMYK, turned": encode(PHOTO.convert("CMYK"), "JPEG", exif=oriented(6)),
    "MPO": encode(PHOTO, "MPO", save_all=True, append_images=[picture_of(seed=1)]),
    **{f"JPEG of {w} x {h}": encode(picture_of(h, w), "JPEG") for w, h in ((1, 1), (8, 8), (7, 3), (33, 1), (1, 40))},
    **{f"PNG, mode {mode}": encode(PHOTO.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    "PNG, a transparent colour": encode(PHOTO.quantize(16), "PNG", transparency=3),
    "GIF of two frames": encode(PHOTO, "GIF", save_all=True, append_images=[picture_of(seed=1)]),
    **{form: encode(PHOTO, form) for form in ("WEBP", "BMP", "TIFF", "AVIF", "PPM")},
    **{f"{form}, orientation {o}": encode(PHOTO, form, exif=oriented(o))
       for form in ("JPEG", "PNG", "WEBP", "TIFF") for o in range(1, 9)},
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_pixels_and_size_are_pillows_to_the_bit(name: str):
    expected = as_pillow_shows(FILES[name])
    picture = images.open_picture(FILES[name], name)
    assert (picture.height, picture.width) == expected.shape[:2]
    pixels = picture.pixels()
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)
    assert images.check(FILES[name], name).pixels().shape == expected.shape


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("JPEG")])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_jpeg_can_be_decoded_at_a_fraction_of_its_size(name: str, reduction: int):
    picture = images.open_picture(FILES[name], name)
    pixels = picture.pixels(reduction)
    assert pixels.shape == (-(-picture.height // reduction), -(-picture.width // reduction), 3)
    if min(pixels.shape[:2]) > 2:
        means = cv2.resize(picture.pixels(), pixels.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.corrcoef(pixels.ravel(), means.ravel())[0, 1] > 0.9  # the same picture, the same way up


def test_other_formats_come_whole():
    assert images.open_picture(FILES["WEBP"], "x").pixels(4).shape == (131, 173, 3)
    array = np.asarray(PHOTO)
    picture = images.of_array(array)
    assert (picture.height, picture.width) == (131, 173)
    assert picture.pixels(8) is array


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_grey_are_scaled_not_cut_off(form: str):
    ramp = np.linspace(0, 65535, 128 * 64).reshape(64, 128).astype(np.uint16)
    pixels = images.open_picture(encode(Image.fromarray(ramp), form), "ramp").pixels()
    np.testing.assert_array_equal(pixels, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, -1))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_of_colour_are_scaled_too(suffix: str):
    values = np.random.default_rng(0).integers(0, 2**16, (20, 30, 3)).astype(np.uint16)
    pixels = images.open_picture(cv2.imencode(suffix, values)[1].tobytes(), "colours").pixels()
    np.testing.assert_array_equal(pixels, values[..., ::-1] >> 8)  # OpenCV writes BGR


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and holds none."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


JPEG = FILES["JPEG, subsampling 2"]
BROKEN = {
    "zero bytes": (b"", "it is empty"),
    "text": (b"not an image", "it is none of JPEG, PNG"),
    "only zeros": (bytes(5000), "it is none of JPEG, PNG"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "it is none of"),
    "HEIC": (b"\x00\x00\x00\x18ftypheic" + bytes(99), "convert it to JPEG"),
    "JPEG that ends in its header": (JPEG[:300], "Truncated"),
    "JPEG that ends in the middle": (JPEG[: len(JPEG) // 2], "truncated"),
    "JPEG whose last bytes are missing": (JPEG[:-40], "truncated"),
    "CMYK JPEG that ends in the middle": (FILES["JPEG, CMYK"][:9000], "truncated"),
    "JPEG with a hole and an end": (JPEG[:700] + b"\xff\xc4\x00\x04\x00\x00" + JPEG[706:], "broken"),
    "PNG that ends in the middle": (FILES["PNG, mode RGB"][:9000], "runcated"),
    "WebP that ends in the middle": (FILES["WEBP"][:900], ""),
    "GIF that ends in the middle": (FILES["GIF of two frames"][:1500], "truncated"),
    "TIFF that ends in the middle": (FILES["TIFF"][:9000], ""),
    "decompression bomb": (png_header(20_000, 20_000), "400000000 pixels"),
    "TIFF of floats": (encode(Image.new("F", (4, 4)), "TIFF"), "8 or 16 bits"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_a_value_error_that_names_the_file(name: str):
    data, reason = BROKEN[name]
    with pytest.raises(ValueError, match=r"photos/a\.jpg cannot be read as an image \(.*" + reason) as raised:
        images.check(data, "photos/a.jpg")
    assert "Remove or replace it" in str(raised.value)


@pytest.mark.parametrize("name", [name for name in BROKEN if "JPEG that ends" in name or "JPEG whose" in name])
def test_a_jpeg_that_breaks_off_is_never_shown_half(name: str):
    """Not even by `pixels`, which OpenCV decodes: older versions of that fill up what is missing."""
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read as an image \(.*runcated"):
        images.open_picture(BROKEN[name][0], "a.jpg").pixels()


def test_photos_of_a_hundred_megapixels_open():
    picture = images.open_picture(encode(Image.new("L", (12_000, 9_000)), "JPEG", quality=1), "phone.jpg")
    assert (picture.height, picture.width) == (9_000, 12_000)
    assert picture.pixels(8).shape == (1_125, 1_500, 3)
    with pytest.raises(ValueError, match="truncated"):  # and not: too many pixels
        images.check(png_header(12_000, 9_000), "phone.png")


def test_check_finds_the_damage_that_pillow_finds():
    """1 to 3 random bytes of a JPEG changed: what Pillow can decode passes and looks the same, all else is refused."""
    draw = np.random.default_rng(0)
    passed = 0
    for _ in range(400):
        data = bytearray(JPEG)
        for place in draw.integers(2, len(data) - 2, draw.integers(1, 4)):
            data[place] = draw.integers(0, 256)
        try:
            expected = as_pillow_shows(bytes(data))
        except Exception:
            with pytest.raises(ValueError, match="cannot be read as an image"):
                images.check(bytes(data), "damaged.jpg")
        else:
            np.testing.assert_array_equal(images.check(bytes(data), "damaged.jpg").pixels(), expected)
            passed += 1
    assert 0 < passed < 400  # both ways have been taken


def noisy() -> bytes:
    """A JPEG that libjpeg decodes, and complains of."""
    return JPEG[:-2] + b"\x12\x34\x56" + JPEG[-2:]


def test_what_libjpeg_says_of_damage_names_the_file_once(capfd):
    for _ in range(3):
        for name in ("photos/loud.jpg", "photos/other.jpg"):
            np.testing.assert_array_equal(images.open_picture(noisy(), name).pixels(), as_pillow_shows(noisy()))
        images.open_picture(JPEG, "photos/sound.jpg").pixels()
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["photos/loud.jpg", "photos/other.jpg"]
    assert all("Corrupt JPEG data" in line for line in lines)


def test_processes_that_were_forked_tell_it_once_among_them(capfd):
    for _ in range(3):
        if (child := os.fork()) == 0:
            images.open_picture(noisy(), "photos/forked.jpg").pixels()
            os._exit(0)
        os.waitpid(child, 0)
    images.open_picture(noisy(), "photos/forked.jpg").pixels()
    assert capfd.readouterr().err.count("photos/forked.jpg") == 1


def test_what_others_write_while_a_jpeg_is_decoded_is_not_lost(capfd):
    with images._libjpeg_named("photos/a.jpg"):
        os.write(2, b"a progress bar\n")
    assert capfd.readouterr().err == "a progress bar\n"
