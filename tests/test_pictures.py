import struct
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from jaxcnn import pictures
from jaxcnn.errors import UserError

RAMP = np.repeat(np.linspace(0, 255, 96).round().astype(np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)


def read(path):
    image, words = pictures.read(path)
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    return image.astype(int), words


def test_a_picture_of_the_right_size_is_taken_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image, words = read(tmp_path / "a.png")
    np.testing.assert_array_equal(image, pixels)
    assert words == "32 x 32 RGB"


@pytest.mark.parametrize(
    ("mode", "file"),
    [("RGB", "a.png"), ("L", "a.png"), ("P", "a.png"), ("RGBA", "a.png"), ("LA", "a.png"), ("CMYK", "a.jpg"),
     ("CMYK", "a.tif"), ("P", "a.gif"), ("YCbCr", "a.jpg"), ("RGB", "a.webp"), ("I;16", "a.png"), ("I;16B", "a.tif")],
)  # fmt: skip
def test_every_mode_shows_the_same_picture(tmp_path, mode, file):
    """A grey ramp from black to white, 96 wide and 64 high: its middle 64 x 64 is what comes out."""
    picture = Image.fromarray(RAMP)
    if mode.startswith("I;16"):
        wide = RAMP[:, :, 0].astype(np.uint16) * 257
        picture = Image.fromarray(wide.astype(">u2") if mode.endswith("B") else wide)
        assert picture.mode == mode
    else:
        picture = picture.quantize(256) if mode == "P" else picture.convert(mode)
    picture.save(tmp_path / file)
    image, words = read(tmp_path / file)
    expected = np.linspace(0, 255, 96)[16:80].reshape(32, 2).mean(axis=1)
    assert np.abs(image - expected[None, :, None]).max() <= 6
    assert words.startswith("96 x 64 ")
    assert words.endswith("its middle 64 x 64, resized to 32 x 32")


def test_16_bits_with_a_transparent_grey_are_not_cut_off(tmp_path):
    grey = np.repeat(np.linspace(0, 65535, 32).round().astype(np.uint16)[None], 32, axis=0)
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=65535)
    image, _ = read(tmp_path / "a.png")
    assert np.abs(image - np.linspace(0, 255, 32)[None, :, None]).max() <= 1
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=int(grey[0, 3]))
    assert (read(tmp_path / "a.png")[0][:, 2:5] == [[[16] * 3, [255] * 3, [33] * 3]]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_on_white(tmp_path, mode):
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:, :16, 3] = 255
    picture = Image.fromarray(pixels)
    if mode == "P":
        indices = Image.fromarray((pixels[:, :, 3] == 0).astype(np.uint8)).convert("P")
        indices.putpalette([0, 0, 0, 9, 9, 9])
        indices.save(tmp_path / "a.png", transparency=1)
    else:
        picture.convert(mode).save(tmp_path / "a.png")
    image, words = read(tmp_path / "a.png")
    assert (image[:, :16] == 0).all()
    assert (image[:, 16:] == 255).all()
    assert "on white" in words


def test_a_camera_picture_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held with its right side down
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif)
    image, words = read(tmp_path / "a.png")
    assert "turned upright" in words
    assert "its middle 64 x 64" in words
    assert image[0].max() < image[-1].min()
    assert (image == image[:, :1]).all()


def test_lab(tmp_path):
    profile = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    ImageCms.applyTransform(Image.fromarray(RAMP), profile).save(tmp_path / "a.tif")
    read(tmp_path / "a.tif")


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "words"),
    [("absent", "no such"), ("folder", "no such"), ("empty", "not a picture"), ("text", "not a picture"),
     ("cut", "truncated"), ("flipped", "not a readable"), ("zero", "picture"), ("bomb", "200 million"),
     ("small bomb", "200 million"), ("float", "32 bits")],
)  # fmt: skip
def test_what_is_no_picture_is_an_error_of_one_line(tmp_path, kind, words):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    if kind == "float":
        path = tmp_path / "a.tif"
        Image.fromarray(np.ones((40, 40), np.float32)).save(path)
    elif kind in ("absent", "folder"):
        path = tmp_path / "absent.png" if kind == "absent" else tmp_path
    else:
        path.write_bytes({
            "empty": b"", "text": b"hello", "cut": whole[:2000], "zero": png(0, 8), "bomb": png(60000, 60000),
            "small bomb": png(15000, 15000), "flipped": whole[:99] + bytes([whole[99] ^ 255]) + whole[100:],
        }[kind])  # fmt: skip
    with pytest.raises(UserError, match=words) as problem:
        pictures.read(path)
    assert str(path) in str(problem.value)
    assert "\n" not in str(problem.value)


def test_picture_of_a_large_camera(tmp_path):
    Image.new("L", (10_000, 9_500), 77).save(tmp_path / "a.png", compress_level=1)
    before = Image.MAX_IMAGE_PIXELS
    assert (read(tmp_path / "a.png")[0] == 77).all()
    assert before == Image.MAX_IMAGE_PIXELS


@given(data=st.data(), suffix=st.sampled_from([".png", ".jpg", ".gif", ".tif", ".webp"]))
def test_a_damaged_picture_is_read_or_refused_in_one_line(tmp_path_factory, data, suffix):
    """A picture that is cut or partly overwritten gives 32 x 32 pixels or a UserError, whatever the decoder raises."""
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    Image.fromarray(RAMP).save(path)
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 60))
    damage = data.draw(st.binary(max_size=8))
    content[start : start + len(damage)] = damage
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        read(path)
    except UserError as refused:
        assert "\n" not in str(refused)  # noqa: PT017  # most are, some pictures can still be read


FORMS = {
    "uint8": lambda images: (images, 1),
    "not contiguous": lambda images: (np.asfortranarray(images), 1),
    "int64": lambda images: (images.astype(np.int64), 1),
    "float16": lambda images: ((images / 255).astype(np.float16), 1),
    "float32": lambda images: (images.astype(np.float32) / 255, 1),
    "float64": lambda images: (images / 255, 1),
    "to 255": lambda images: (images.astype(np.float32), 255),
    "jax": lambda images: (jnp.asarray(images), 1),
    "jax floats": lambda images: (jnp.asarray(images / 255, jnp.float32), 1),
    "torch": lambda images: (torch.tensor(images), 1),
    "torch floats": lambda images: (torch.tensor(images) / 255, 1),
    "list": lambda images: (list(images), 1),
    "PIL": lambda images: ([pillow(image) for image in images], 1),
    "mixed": lambda images: ((pillow(images[0]), images[1:] / 255), 1),
}


def pillow(image):
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


@given(
    shape=st.tuples(st.integers(1, 3), st.sampled_from([32, 1, 7, 40, 65]), st.sampled_from([32, 1, 9, 40])),
    channels=st.sampled_from(pictures.CHANNELS),
    form=st.sampled_from(sorted(FORMS)),
    seed=st.integers(0, 99),
)
def test_every_form_of_images_gives_what_their_files_give(tmp_path_factory, shape, channels, form, seed):
    images = np.random.default_rng(seed).integers(0, 256, (*shape, channels), dtype=np.uint8)
    paths = [tmp_path_factory.getbasetemp() / f"prepared{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        pillow(image).save(path)
    expected = np.stack([pictures.read(path)[0] for path in paths])
    np.testing.assert_array_equal(pictures.prepared([paths[0], *map(str, paths[1:])]), expected)
    given, largest = FORMS[form](images)
    np.testing.assert_array_equal(pictures.prepared(given, largest), expected)
    np.testing.assert_array_equal(pictures.prepared(given[0], largest), expected[:1])


def test_images_of_the_network_are_taken_as_they_are():
    images = np.zeros((2, 32, 32, 3), np.uint8)
    assert pictures.prepared(images) is images
    assert pictures.prepared([]).shape == pictures.prepared(images[:0, :9] / 255).shape == (0, 32, 32, 3)


def test_grey_images_need_no_axis_for_channels():
    grey = np.random.default_rng(0).integers(0, 256, (5, 32, 32), dtype=np.uint8)
    expected = grey[..., None].repeat(3, axis=3)
    np.testing.assert_array_equal(pictures.prepared(grey), expected)
    np.testing.assert_array_equal(pictures.prepared(grey[0]), expected[:1])
    np.testing.assert_array_equal(pictures.prepared(grey[:1]), expected[:1])


PIXELS = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (PIXELS.transpose(0, 3, 1, 2), r"uint8\[2, 3, 32, 32\], channels first; .*transpose\(0, 2, 3, 1\)"),
        (PIXELS[:, None, :, :, 0], "channels first"),
        (PIXELS[0].transpose(2, 0, 1), r"channels first, or 3 grey .*transpose\(1, 2, 0\)"),
        (np.zeros((4, 9, 9), np.uint8), "channels first, or 4 grey"),
        (PIXELS[0, ..., :2], r"uint8\[32, 32, 2\], an image of 2 channels, or 32 grey ones 2 pixels wide; give"),
        (list(PIXELS[0]), "a list of the rows of an image"),
        (PIXELS[..., :2], "last axis should be 1, 3 or 4"),
        (np.zeros(9, np.uint8), r"uint8\[9\]; give \[h, w\]"),
        (PIXELS[None], "give"),
        (PIXELS[:, :0], "a pixel or more"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (PIXELS / 127.5 - 1, "from -1 to 1, not from 0 to 1; undo their normalisation"),
        (PIXELS * 1.0, "from 0 to 255, not from 0 to 1; .*largest=255"),
        (np.where(PIXELS > 9, PIXELS / 255, np.nan), "NaN or infinity"),
        (np.where(PIXELS > 9, 0, np.inf), "NaN or infinity"),
        (PIXELS.astype(np.int64) + 1, "from 1 to 256, not from 0 to 255; scale them"),
        (PIXELS.astype(np.int16) - 1, "from -1 to 254"),
        (Image.new("F", (5, 5)), "mode F .*8 bits a channel"),
    ],
)  # fmt: skip
def test_values_and_axes_that_are_not_those_of_images(wrong, words):
    with pytest.raises(ValueError, match=words) as problem:
        pictures.prepared(wrong)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(PIXELS > 9, "bool"), (PIXELS * 1j, "complex128"), (PIXELS.astype(np.uint16), "uint16.*65535"),
     (PIXELS.astype(">u2"), "65535"), (PIXELS.astype(str), "<U3"), (PIXELS.astype(object), "object"), ({}, "a dict"),
     (PIXELS.tolist(), "nested lists"), (None, "NoneType"), (b"a.png", "bytes"),
     (torch.zeros(9, 9, requires_grad=True), "Tensor that NumPy .*detach")],
)  # fmt: skip
def test_what_is_no_image(wrong, words):
    for given_ in (wrong, [PIXELS, wrong]):
        with pytest.raises(TypeError, match=words) as problem:
            pictures.prepared(given_)
        assert "\n" not in str(problem.value)


def test_what_is_white_is_never_guessed():
    with pytest.raises(ValueError, match="from 0 to 1000, not from 0 to 255"):
        pictures.prepared(np.linspace(0, 1000, 64).reshape(8, 8), 255)
    with pytest.raises(ValueError, match="largest is 65535; say 1 or 255"):
        pictures.prepared(PIXELS, 65535)
    with pytest.raises(ValueError, match="largest is array"):
        pictures.prepared(PIXELS / 255, np.array([1, 255]))
    rounded = np.float32(PIXELS / 255) * np.float32(1.0000002)
    np.testing.assert_array_equal(pictures.prepared(rounded), PIXELS)
    with pytest.raises(ValueError, match=r"from 0 to 1\.00001, not from 0 to 1"):
        pictures.prepared(np.array([[0, 1.00001]]))
    with pytest.raises(UserError, match="no such picture file"):
        pictures.prepared([PIXELS, "absent.png"])
