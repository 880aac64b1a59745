"""Pixels of decoded images, computed by numpy: every mode, orientation and crop, large images and small ones."""

import math

import numpy as np
import pytest
from PIL import Image

import common

S = 40  # images of this size are not resized: every pixel can be compared
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (S, S, 3), np.uint8)
GREY = RNG.integers(0, 256, (S, S), np.uint8)
ALPHA = RNG.integers(0, 256, (S, S), np.uint8)
FEW = RNG.integers(0, 4, (S, S), np.uint8)  # indices of a palette
PALETTE = np.array([[10, 20, 30], [200, 40, 90], [0, 255, 0], [77, 88, 99]], np.uint8)
WIDE = RNG.integers(0, 65536, (S, S)).astype(np.uint16)


def grey(array: np.ndarray) -> np.ndarray:
    return np.repeat(array[:, :, None], 3, 2)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[:, :, None] / 255
    return colour * share + 255 * (1 - share)


def with_palette() -> Image.Image:
    image = Image.fromarray(FEW, "P")
    image.putpalette(PALETTE.flatten().tolist())
    return image


def marked(array: np.ndarray, value) -> np.ndarray:
    """A copy of which a few pixels have the value that will be transparent."""
    array = array.copy()
    array[5:9, 3:7] = value
    return array


TRANSPARENT = (np.arange(S)[:, None] // 4 == 1) & (np.arange(S)[None] // 4 == 0)
CLEAR_RGB, CLEAR_GREY = marked(RGB, (1, 2, 3)), marked(GREY, 7)
INDEX_ALPHA = np.array([0, 255, 128, 60], np.uint8)
CMYK = RNG.integers(0, 256, (S, S, 4), np.uint8)

# file name, image, options of Image.save, the pixels that it must become
ZOO = {
    "rgb.png": (Image.fromarray(RGB), {}, RGB),
    "rgb.bmp": (Image.fromarray(RGB), {}, RGB),
    "rgb.tif": (Image.fromarray(RGB), {}, RGB),
    "rgb.webp": (Image.fromarray(RGB), {"lossless": True}, RGB),
    "grey.png": (Image.fromarray(GREY), {}, grey(GREY)),
    "bilevel.png": (Image.fromarray(GREY > 127), {}, grey((GREY > 127).astype(np.uint8) * 255)),
    "palette.png": (with_palette(), {}, PALETTE[FEW]),
    "palette.gif": (with_palette(), {}, PALETTE[FEW]),
    "rgba.png": (Image.fromarray(np.dstack([RGB, ALPHA])), {}, on_white(RGB, ALPHA)),
    "rgba.webp": (Image.fromarray(np.dstack([RGB, ALPHA])), {"lossless": True, "exact": True}, on_white(RGB, ALPHA)),
    "rgba.tif": (Image.fromarray(np.dstack([RGB, ALPHA])), {}, on_white(RGB, ALPHA)),
    "greyalpha.png": (Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), {}, on_white(grey(GREY), ALPHA)),
    "one colour is clear.png": (Image.fromarray(CLEAR_RGB), {"transparency": (1, 2, 3)}, CLEAR_RGB),
    "one grey is clear.png": (Image.fromarray(CLEAR_GREY), {"transparency": 7}, grey(CLEAR_GREY)),
    "one index is clear.png": (with_palette(), {"transparency": 2}, PALETTE[FEW]),
    "one index is clear.gif": (with_palette(), {"transparency": 2}, PALETTE[FEW]),
    "alpha of each index.png": (with_palette(), {"transparency": INDEX_ALPHA.tobytes()}, on_white(PALETTE[FEW], INDEX_ALPHA[FEW])),
    "16 bits.png": (Image.fromarray(WIDE), {}, grey(WIDE >> 8)),
    "16 bits.tif": (Image.fromarray(WIDE), {}, grey(WIDE >> 8)),
    "cmyk.tif": (Image.fromarray(CMYK, "CMYK"), {}, (255 - CMYK[..., :3].astype(float)) * (255 - CMYK[..., 3:]) / 255),
}  # fmt: skip
CLEAR = {  # where these files are transparent, white is expected
    "one colour is clear.png": (CLEAR_RGB == (1, 2, 3)).all(2),
    "one grey is clear.png": CLEAR_GREY == 7,
    "one index is clear.png": FEW == 2,
    "one index is clear.gif": FEW == 2,
}


@pytest.mark.parametrize("name", ZOO)
def test_every_pixel_of_every_mode(tmp_path, name):
    """Catches a mode that is converted wrongly, black in place of transparent pixels, swapped channels and transposed images."""
    image, options, expected = ZOO[name]
    image.save(tmp_path / name, **options)
    expected = np.array(expected, dtype=float)
    if name in CLEAR:
        assert CLEAR[name].any()
        expected[CLEAR[name]] = 255
    found = common.decode(tmp_path / name, S, 3)
    assert found.shape == (3, S, S) and found.dtype == np.uint8
    assert abs(found.transpose(1, 2, 0) - expected).max() <= 1


def test_grey_is_luma(tmp_path):
    """Catches a mean of the channels, or the red one, in the place of what eyes see (ITU-R BT.601)."""
    Image.fromarray(RGB).save(tmp_path / "a.png")
    found = common.decode(tmp_path / "a.png", S, 1)
    assert found.shape == (1, S, S)
    assert abs(found[0] - RGB @ np.array([0.299, 0.587, 0.114])).max() <= 1


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (S, S), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (common.decode(tmp_path / "a.gif", S, 3)[:, 3, 3] == (255, 0, 0)).all()


ORIENTATIONS = {  # EXIF value -> how to show the stored array upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("value", ORIENTATIONS)
@pytest.mark.parametrize("shape", [(S, S), (S, 60), (52, S)])
def test_orientations_and_crops(tmp_path, value, shape):
    """Catches an orientation that is ignored or turned the other way, a crop before it, and one that is not central."""
    stored = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    upright = ORIENTATIONS[value](stored)
    top, left = (upright.shape[0] - S) // 2, (upright.shape[1] - S) // 2
    expected = upright[top : top + S, left : left + S]
    assert abs(common.decode(tmp_path / "a.png", S, 3).transpose(1, 2, 0) - expected.astype(int)).max() <= 1


def lanczos(array: np.ndarray, size: int) -> np.ndarray:
    """A square (h, h, 3) resized to (size, size, 3): windowed sinc of three lobes, widened when it shrinks."""

    def matrix(n: int) -> np.ndarray:
        scale = n / size
        wide = max(scale, 1)
        distance = (np.arange(n) + 0.5 - (np.arange(size)[:, None] + 0.5) * scale) / wide
        weight = np.where(abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
        return weight / weight.sum(1, keepdims=True)

    m = matrix(array.shape[0])
    rows = (
        np.einsum("jw,hwc->hjc", m, array.astype(float)).round().clip(0, 255)
    )  # in bytes between the passes, rows first, as in Pillow
    return np.einsum("ih,hjc->ijc", m, rows).clip(0, 255)


def texture(height: int, width: int) -> np.ndarray:
    """Waves of every length and direction: blur, shifts and aliasing all show."""
    y, x = np.mgrid[:height, :width] / min(height, width)
    waves = [np.sin(2 * math.pi * (f * x + g * y) + c) for c, (f, g) in enumerate([(3, 1), (9, -4), (17, 11), (2, 25)])]
    return np.stack([128 + 100 * np.sin(sum(waves) + k) for k in range(3)], 2).astype(np.uint8)


@pytest.mark.parametrize("edge", [20, 33, 64, 150, 601])
def test_resized_pixels(tmp_path, edge):
    """Catches another filter, a shift by half a pixel, and images that are first shrunk too far."""
    array = texture(edge, edge)
    Image.fromarray(array).save(tmp_path / "a.png")
    found = common.decode(tmp_path / "a.png", 32, 3).transpose(1, 2, 0)
    assert abs(found - lanczos(array, 32)).max() <= 2


@pytest.mark.parametrize("shape", [(70, 90), (128, 128), (300, 200), (800, 1000), (1600, 1200)])
def test_large_jpegs_are_as_sharp_as_if_they_were_decoded_whole(tmp_path, shape):
    """Catches a decoder that is asked for fewer pixels than are needed: against the whole image, cropped and resized."""
    Image.fromarray(texture(*shape)).save(tmp_path / "a.jpg", quality=95)
    whole = np.asarray(Image.open(tmp_path / "a.jpg"))
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    expected = lanczos(whole[top : top + side, left : left + side], 64)
    difference = abs(common.decode(tmp_path / "a.jpg", 64, 3).transpose(1, 2, 0) - expected)[2:-2, 2:-2]
    assert difference.mean() < 2  # 13 and more with half of the pixels
