"""Pixels of decoded images, computed by numpy: every mode, orientation and crop, large images and small ones."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from test_common import count_decoding, data_args, load

import common

S = 40  # images of this size are not resized: every pixel can be compared
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (S, S, 3), np.uint8)
GRAY = RNG.integers(0, 256, (S, S), np.uint8)
ALPHA = RNG.integers(0, 256, (S, S), np.uint8)
FEW = RNG.integers(0, 4, (S, S), np.uint8)  # indices of a palette
PALETTE = np.array([[10, 20, 30], [200, 40, 90], [0, 255, 0], [77, 88, 99]], np.uint8)
WIDE = RNG.integers(0, 65536, (S, S)).astype(np.uint16)


def gray(array: np.ndarray) -> np.ndarray:
    return np.repeat(array[:, :, None], 3, 2)


def on_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[:, :, None] / 255
    return color * share + 255 * (1 - share)


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
CLEAR_RGB, CLEAR_GRAY = marked(RGB, (1, 2, 3)), marked(GRAY, 7)
INDEX_ALPHA = np.array([0, 255, 128, 60], np.uint8)
CMYK = RNG.integers(0, 256, (S, S, 4), np.uint8)

# file name, image, options of Image.save, the pixels that it must become
ZOO = {
    "rgb.png": (Image.fromarray(RGB), {}, RGB),
    "rgb.bmp": (Image.fromarray(RGB), {}, RGB),
    "rgb.tif": (Image.fromarray(RGB), {}, RGB),
    "rgb.webp": (Image.fromarray(RGB), {"lossless": True}, RGB),
    "gray.png": (Image.fromarray(GRAY), {}, gray(GRAY)),
    "bilevel.png": (Image.fromarray(GRAY > 127), {}, gray((GRAY > 127).astype(np.uint8) * 255)),
    "palette.png": (with_palette(), {}, PALETTE[FEW]),
    "palette.gif": (with_palette(), {}, PALETTE[FEW]),
    "rgba.png": (Image.fromarray(np.dstack([RGB, ALPHA])), {}, on_white(RGB, ALPHA)),
    "rgba.webp": (Image.fromarray(np.dstack([RGB, ALPHA])), {"lossless": True, "exact": True}, on_white(RGB, ALPHA)),
    "rgba.tif": (Image.fromarray(np.dstack([RGB, ALPHA])), {}, on_white(RGB, ALPHA)),
    "grayalpha.png": (Image.fromarray(np.dstack([GRAY, ALPHA]), "LA"), {}, on_white(gray(GRAY), ALPHA)),
    "one color is clear.png": (Image.fromarray(CLEAR_RGB), {"transparency": (1, 2, 3)}, CLEAR_RGB),
    "one gray is clear.png": (Image.fromarray(CLEAR_GRAY), {"transparency": 7}, gray(CLEAR_GRAY)),
    "one index is clear.png": (with_palette(), {"transparency": 2}, PALETTE[FEW]),
    "one index is clear.gif": (with_palette(), {"transparency": 2}, PALETTE[FEW]),
    "alpha of each index.png": (with_palette(), {"transparency": INDEX_ALPHA.tobytes()}, on_white(PALETTE[FEW], INDEX_ALPHA[FEW])),
    "16 bits.png": (Image.fromarray(WIDE), {}, gray(WIDE >> 8)),
    "16 bits.tif": (Image.fromarray(WIDE), {}, gray(WIDE >> 8)),
    "cmyk.tif": (Image.fromarray(CMYK, "CMYK"), {}, (255 - CMYK[..., :3].astype(float)) * (255 - CMYK[..., 3:]) / 255),
}  # fmt: skip
CLEAR = {  # where these files are transparent, white is expected
    "one color is clear.png": (CLEAR_RGB == (1, 2, 3)).all(2),
    "one gray is clear.png": CLEAR_GRAY == 7,
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
    found, *_ = common.decode(tmp_path / name, S, 3)
    assert found.shape == (3, S, S) and found.dtype == np.uint8
    assert abs(found.transpose(1, 2, 0) - expected).max() <= 1


def test_gray_is_luma(tmp_path):
    """Catches a mean of the channels, or the red one, in the place of what eyes see (ITU-R BT.601)."""
    Image.fromarray(RGB).save(tmp_path / "a.png")
    found, *_ = common.decode(tmp_path / "a.png", S, 1)
    assert found.shape == (1, S, S)
    assert abs(found[0] - RGB @ np.array([0.299, 0.587, 0.114])).max() <= 1


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (S, S), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (common.decode(tmp_path / "a.gif", S, 3)[0][:, 3, 3] == (255, 0, 0)).all()


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
    assert abs(common.decode(tmp_path / "a.png", S, 3)[0].transpose(1, 2, 0) - expected.astype(int)).max() <= 1


def lanczos(array: np.ndarray, height: int, width: int, side: int = 0) -> np.ndarray:
    """(h, w, 3) resized to (height, width, 3): windowed sinc of three lobes, widened when it shrinks.

    With `side`, only the central square of that side is resized; its margin takes part in the sums.
    """

    def matrix(n: int, size: int) -> np.ndarray:
        scale = (side or n) / size
        wide = max(scale, 1)
        start = (n - (side or n)) / 2
        distance = (np.arange(n) + 0.5 - start - (np.arange(size)[:, None] + 0.5) * scale) / wide
        weight = np.where(abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
        return weight / weight.sum(1, keepdims=True)

    rows = np.einsum("jw,hwc->hjc", matrix(array.shape[1], width), array.astype(float))
    rows = rows.round().clip(0, 255)  # in bytes between the passes, rows first, as in Pillow
    return np.einsum("ih,hjc->ijc", matrix(array.shape[0], height), rows).clip(0, 255)


def fitted(array: np.ndarray, size: int, fit: str) -> np.ndarray:
    """What --fit must make of (h, w, 3)."""
    height, width = array.shape[:2]
    if fit == "crop":
        return lanczos(array, size, size, min(height, width))
    if fit == "stretch":
        return lanczos(array, size, size)
    h, w = [max(1, round(side * size / max(height, width))) for side in (height, width)]
    canvas = np.full((size, size, 3), 255.0)
    top, left = (size - h) // 2, (size - w) // 2
    canvas[top : top + h, left : left + w] = lanczos(array, h, w)
    return canvas


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
    found = common.decode(tmp_path / "a.png", 32, 3)[0].transpose(1, 2, 0)
    assert abs(found - lanczos(array, 32, 32)).max() <= 2


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(70, 90), (128, 128), (300, 200), (800, 1000), (1600, 1200)])
def test_large_jpegs_are_as_sharp_as_if_they_were_decoded_whole(tmp_path, shape, fit):
    """Catches a decoder that is asked for fewer pixels than are needed: against the whole image, cropped and resized."""
    Image.fromarray(texture(*shape)).save(tmp_path / "a.jpg", quality=95)
    expected = fitted(np.asarray(Image.open(tmp_path / "a.jpg")), 64, fit)
    found, size, _ = common.decode("a.jpg", 64, 3, str(tmp_path), fit)
    assert size == (shape[1], shape[0])  # of the file, not of what the decoder made of it
    assert abs(found.transpose(1, 2, 0) - expected)[2:-2, 2:-2].mean() < 2  # 13 and more with half of the pixels


# --- --fit ---

SHAPES = {  # height and width -> where a padded image lies in 32 x 32: left, top, right, bottom
    "square": ((50, 50), (0, 0, 32, 32)),
    "wide": ((40, 64), (0, 6, 32, 26)),
    "tall": ((64, 24), (10, 0, 22, 32)),
    "a bit wide": ((46, 48), (0, 0, 32, 31)),
    "small": ((10, 20), (0, 8, 32, 24)),
    "an odd rest": ((33, 61), (0, 7, 32, 24)),
    "a line": ((10, 4000), (0, 15, 32, 16)),
    "a pole": ((4000, 10), (15, 0, 16, 32)),
    "one pixel": ((1, 1), (0, 0, 32, 32)),
}


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_pixel_of_every_fit(tmp_path, shape, fit):
    """Catches padding that is black, at one side or of another ratio, a stretch that crops, and a side of no pixels at all."""
    (height, width), box = SHAPES[shape]
    # far from black and white, so that nothing is clipped between the passes, whose order is Pillow's choice
    array = np.random.default_rng(3).integers(100, 150, (height, width, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    found, size, _ = common.decode("a.png", 32, 3, str(tmp_path), fit)
    assert size == (width, height) and found.shape == (3, 32, 32) and found.dtype == np.uint8
    found = found.transpose(1, 2, 0)
    assert abs(found - fitted(array, 32, fit)).max() <= 2
    if fit == "pad":
        left, top, right, bottom = box
        inside = np.zeros((32, 32), bool)
        inside[top:bottom, left:right] = True
        assert common.padded_box(Image.open(tmp_path / "a.png"), 32) == box
        assert (found[~inside] == 255).all() and (found[inside] < 255).all()
    gray = common.decode("a.png", 32, 1, str(tmp_path), fit)[0]
    assert abs(gray[0] - found @ np.array([0.299, 0.587, 0.114])).max() <= 1


def test_the_default_is_to_crop_and_each_fit_has_a_cache_of_its_own(tmp_path, monkeypatch):
    """Catches --fit pad that gets the cropped images of an earlier start, and a fit that drives out the cache of another."""
    (tmp_path / "images").mkdir()
    array = texture(40, 64)
    Image.fromarray(array).save(tmp_path / "images/a.png")
    default, *_ = common.decode("a.png", 32, 3, str(tmp_path / "images"))
    assert abs(default.transpose(1, 2, 0) - fitted(array, 32, "crop")).max() <= 2
    for start in range(2):
        if start:
            decoded = count_decoding(monkeypatch)
        for fit in ("crop", "pad", "stretch"):
            images, _ = load(tmp_path / "images", tmp_path / "cache", fit=fit)
            assert abs(images[0].transpose(1, 2, 0) - fitted(array, 32, fit)).max() <= 2
    assert not decoded and len(list((tmp_path / "cache").iterdir())) == 3


# --- 16 and 32 bits ---


def png(color_type: int, values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, by hand."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def netpbm(kind: bytes, values: np.ndarray, greatest: int = 65535) -> bytes:
    return b"%s %d %d %d\n" % (kind, values.shape[1], values.shape[0], greatest) + values.astype(">u2").tobytes()


WIDE_RGB = np.random.default_rng(5).integers(0, 65536, (S, S, 3)).astype(np.uint16)
TWELVE = WIDE >> 4  # 12 bits
SIXTEEN = {  # file -> its bytes, and the pixels that it must become
    "gray.png": (png(0, WIDE), gray(WIDE >> 8)),
    "rgb.png": (png(2, WIDE_RGB), WIDE_RGB >> 8),
    "rgba, not clear.png": (png(6, np.dstack([WIDE_RGB, np.full((S, S), 65535)])), WIDE_RGB >> 8),
    "gray.pgm": (netpbm(b"P5", WIDE), gray(WIDE >> 8)),
    "12 bits that say so.pgm": (netpbm(b"P5", TWELVE, 4095), gray(TWELVE * (255 / 4095))),
    "rgb.ppm": (netpbm(b"P6", WIDE_RGB), WIDE_RGB >> 8),
    "little endian.tif": (saved(Image.fromarray(WIDE), format="TIFF"), gray(WIDE >> 8)),
    "big endian.tif": (saved(Image.fromarray(WIDE.astype(">u2")), format="TIFF"), gray(WIDE >> 8)),
}


@pytest.mark.parametrize("name", SIXTEEN)
def test_16_bits(tmp_path, name):
    """Catches values that are clipped at 255 (white images), bytes in the wrong order, and the lower 8 bits in place of the upper."""
    content, expected = SIXTEEN[name]
    (tmp_path / name).write_bytes(content)
    found, *_ = common.decode(name, S, 3, str(tmp_path))
    assert abs(found.transpose(1, 2, 0) - expected.astype(float)).max() <= 1


def floats() -> np.ndarray:
    return np.linspace(0, 1, S * S, dtype=np.float32).reshape(S, S)


def fits() -> bytes:
    cards = ["SIMPLE  =                    T", "BITPIX  =                  -32", "NAXIS   =                    2"]
    cards += [f"NAXIS1  = {S:20d}", f"NAXIS2  = {S:20d}", "END"]
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + floats().astype(">f4").tobytes()


THIRTY_TWO = {
    "float.tif": saved(Image.fromarray(floats()), format="TIFF"),
    "integer.tif": saved(Image.fromarray((floats() * 70000).astype(np.int32)), format="TIFF"),
    "small integers.tif": saved(Image.fromarray((floats() * 255).astype(np.int32)), format="TIFF"),
    "float.pfm": b"Pf\n%d %d\n-1.0\n" % (S, S) + floats().tobytes(),
    "float.fits": fits(),
    "float": saved(Image.fromarray(floats()), format="TIFF"),  # without a suffix
}


def test_32_bits_are_left_out_with_the_reason(tmp_path, capsys):
    """Catches floats from 0 to 1 that become black images, and integers that become white ones; nobody knows their range."""
    (tmp_path / "images").mkdir()
    Image.fromarray(RGB).save(tmp_path / "images/rgb.png")
    for name, content in THIRTY_TWO.items():
        (tmp_path / "images" / name).write_bytes(content)
        with pytest.raises(OSError, match=r"bits a channel, .* range.*: save it with 8 or 16 bits") as error:
            common.decode(name, S, 3, str(tmp_path / "images"))
    args = data_args(tmp_path / "images", tmp_path / "cache")
    assert common.load_images(args)[1] == ["rgb.png"]
    assert args.found[args.path]["left_out"] == {"files that cannot be read": len(THIRTY_TWO)}
    message = capsys.readouterr().err
    assert all(f"{name!r} ({error.value})" in message for name in THIRTY_TWO)


DARK = {  # images -> how many are nearly black
    "12 bits in 16": (png(0, TWELVE), 1),
    "13 bits in 16": (png(0, WIDE >> 3), 0),
    "16 bits": (png(0, WIDE), 0),
    "black": (saved(Image.new("RGB", (S, S)), format="PNG"), 1),
    "values to 15": (saved(Image.fromarray(RGB >> 4), format="PNG"), 1),
    "one of 16": (saved(Image.fromarray(marked(RGB >> 4, 16)), format="PNG"), 0),
}


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("kind", DARK)
def test_12_bits_in_16_are_said_to_be_nearly_black(tmp_path, capsys, kind, fit):
    """Catches a training on black images without a word, and a warning where there is nothing to warn of; at the second start, too."""
    content, dark = DARK[kind]
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(content)
    Image.fromarray(RGB).save(tmp_path / "images/b.png")
    for _ in range(2):
        args = data_args(tmp_path / "images", tmp_path / "cache", size=S, fit=fit)
        common.load_images(args)
        assert args.found[args.path]["nearly_black"] == dark
        assert ("nearly black: 1 images use less than a sixteenth" in capsys.readouterr().err) == bool(dark)


def test_padding_does_not_hide_that_an_image_is_nearly_black(tmp_path):
    """Catches a maximum that is taken over the margin."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(png(0, TWELVE[: S // 2]))
    args = data_args(tmp_path / "images", tmp_path / "cache", fit="pad")
    common.load_images(args)
    assert args.found[args.path]["nearly_black"] == 1


# --- ICC profiles ---

# XYZ, for the white of D50, of red, green and blue; as published with each color space
PRIMARIES = {
    "sRGB": [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)],
    "P3": [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)],
    "Adobe": [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)],
}


def srgb_curve(v: np.ndarray) -> np.ndarray:
    """Values from 0 to 1 -> light."""
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def gamma(power: float):
    return lambda v: v**power


def to_bytes(light: np.ndarray) -> np.ndarray:
    """Light (..., 3) -> bytes of sRGB."""
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def matrix_of(space: str) -> np.ndarray:
    return np.array(PRIMARIES[space]).T


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(
    description: str, colors: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ "
) -> bytes:
    """An ICC profile of version 2, by hand."""
    text = description.encode() + b"\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249),
        **tags,
    }
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"\0" * 4, 0x02400000, kind, colors, pcs)
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249) + bytes(48)
    return head + table + body


def tone(curve) -> bytes:
    values = (curve(np.linspace(0, 1, 4096)) * 65535).round().astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", len(values)) + values.tobytes()


def rgb_profile(description: str, space: str, curve) -> bytes:
    tags = {
        name + b"XYZ": b"XYZ \0\0\0\0" + fixed(*xyz)
        for name, xyz in zip((b"r", b"g", b"b"), PRIMARIES[space], strict=True)
    }
    return profile(description, b"RGB ", tags | {name + b"TRC": tone(curve) for name in (b"r", b"g", b"b")})


def in_srgb(array: np.ndarray, space: str, curve) -> np.ndarray:
    """Bytes (..., 3) of a color space -> what they are in sRGB."""
    light = curve(np.asarray(array, float) / 255) @ (np.linalg.inv(matrix_of("sRGB")) @ matrix_of(space)).T
    return to_bytes(light)


# the 16 mixtures of full inks, as Lab: yellow, magenta, cyan and black need not be those of a printer
INKS = np.random.default_rng(6).uniform([15, -30, -30], [95, 30, 30], (16, 3)).round()
INKS[0], INKS[15] = (100, 0, 0), (0, 0, 0)


def cmyk_profile() -> bytes:
    ramp = bytes(range(256))
    lab = (INKS * (2.55, 1, 1) + (0, 128, 128)).round().astype(np.uint8)
    table = (
        b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + 4 * ramp + lab.tobytes() + 3 * ramp
    )
    return profile("inks of nobody", b"CMYK", {b"A2B0": table}, b"prtr", b"Lab ")


def lab_in_srgb(lab: np.ndarray) -> np.ndarray:
    lightness, a, b = np.moveaxis(lab, -1, 0)
    y = (lightness + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * (0.9642, 1, 0.8249)
    return to_bytes(xyz @ np.linalg.inv(matrix_of("sRGB")).T)


CORNERS = np.random.default_rng(7).integers(0, 16, (S, S))  # which of the mixtures
CORNER_INKS = ((CORNERS[:, :, None] >> np.array([3, 2, 1, 0]) & 1) * 255).astype(np.uint8)
P3 = ("P3", srgb_curve)
ADOBE = ("Adobe", gamma(563 / 256))
SRGB_BUILT_IN = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY_PROFILE = profile("gray", b"GRAY", {b"kTRC": tone(gamma(1.8))})
NO_PROFILE = [b"", b"damaged", rgb_profile("Display P3", *P3)[:200], bytes(500)]
# file -> image, profile, pixels
ICC = {
    "p3.png": (Image.fromarray(RGB), rgb_profile("Display P3", *P3), in_srgb(RGB, *P3)),
    "p3.tif": (Image.fromarray(RGB), rgb_profile("Display P3", *P3), in_srgb(RGB, *P3)),
    "p3.webp": (Image.fromarray(RGB), rgb_profile("Display P3", *P3), in_srgb(RGB, *P3)),
    "adobe.png": (Image.fromarray(RGB), rgb_profile("Adobe RGB (1998)", *ADOBE), in_srgb(RGB, *ADOBE)),
    "gamma 1.png": (Image.fromarray(RGB), rgb_profile("bright", "sRGB", gamma(1)), in_srgb(RGB, "sRGB", gamma(1))),
    "palette.png": (with_palette(), rgb_profile("Adobe RGB (1998)", *ADOBE), in_srgb(PALETTE[FEW], *ADOBE)),
    "alpha.png": (
        Image.fromarray(np.dstack([RGB, ALPHA])),
        rgb_profile("Adobe RGB (1998)", *ADOBE),
        in_srgb(on_white(RGB, ALPHA).round(), *ADOBE),
    ),
    "gray pixels.png": (Image.fromarray(GRAY), rgb_profile("Adobe RGB (1998)", *ADOBE), in_srgb(gray(GRAY), *ADOBE)),
    "gray.png": (Image.fromarray(GRAY), GRAY_PROFILE, to_bytes((gray(GRAY) / 255) ** 1.8)),
    "gray with alpha.png": (
        Image.fromarray(np.dstack([GRAY, ALPHA]), "LA"),
        GRAY_PROFILE,
        to_bytes((on_white(gray(GRAY), ALPHA).round() / 255) ** 1.8),
    ),
    "16 bits.png": (Image.fromarray(WIDE), GRAY_PROFILE, to_bytes((gray(WIDE >> 8) / 255) ** 1.8)),
    "cmyk.tif": (Image.fromarray(CORNER_INKS, "CMYK"), cmyk_profile(), lab_in_srgb(INKS[CORNERS])),
    # nothing changes
    "srgb.png": (Image.fromarray(RGB), SRGB_BUILT_IN, RGB),
    "srgb by hand.png": (Image.fromarray(RGB), rgb_profile("sRGB IEC61966-2.1", "sRGB", srgb_curve), RGB),
    "gray in srgb.png": (Image.fromarray(GRAY), SRGB_BUILT_IN, gray(GRAY)),
    **{f"damaged {i}.png": (Image.fromarray(RGB), content, RGB) for i, content in enumerate(NO_PROFILE)},
    "cmyk, damaged.tif": (ZOO["cmyk.tif"][0], b"damaged", ZOO["cmyk.tif"][2]),
    # of another kind than the image
    "cmyk with an rgb profile.tif": (ZOO["cmyk.tif"][0], rgb_profile("Adobe RGB (1998)", *ADOBE), ZOO["cmyk.tif"][2]),
    "linear srgb.png": (Image.fromarray(RGB), rgb_profile("GIMP built-in Linear sRGB", "sRGB", gamma(1)), in_srgb(RGB, "sRGB", gamma(1))),
    "rgb with a profile of inks.png": (Image.fromarray(RGB), cmyk_profile(), RGB),
    "rgb with a gray profile.png": (Image.fromarray(RGB), GRAY_PROFILE, RGB),
}  # fmt: skip


@pytest.mark.parametrize("name", ICC)
def test_profiles(tmp_path, name):
    """Catches colors that are pale or too strong because the profile was ignored, applied twice or after the resize, and one that stops the start."""
    image, content, expected = ICC[name]
    image.save(tmp_path / name, icc_profile=content, **({"lossless": True} if name.endswith("webp") else {}))
    found, *_ = common.decode(name, S, 3, str(tmp_path))
    error = abs(found.transpose(1, 2, 0) - np.asarray(expected, float))
    assert error.max() <= (0 if expected is RGB else 3) and error.mean() < 0.6


def test_profile_of_a_large_jpeg(tmp_path):
    """Catches a profile that is lost when a JPEG is decoded at a part of its size."""
    image = Image.new("RGB", (800, 800), (200, 60, 20))
    image.save(tmp_path / "a.jpg", icc_profile=rgb_profile("Adobe RGB (1998)", *ADOBE), quality=95)
    found, *_ = common.decode("a.jpg", 32, 3, str(tmp_path))
    expected = in_srgb(np.array([200, 60, 20]), *ADOBE)
    assert abs(found[:, 16, 16] - expected).max() <= 3 and abs(expected - (200, 60, 20)).max() > 20


# --- which files are read ---

SUFFIXES = {  # suffix -> the format that is written, the mode, and how far its color may be off
    "jpg": ("JPEG", "RGB", 12), "jpeg": ("JPEG", "RGB", 12), "jpe": ("JPEG", "RGB", 12), "jfif": ("JPEG", "RGB", 12),
    "JFIF": ("JPEG", "RGB", 12), "png": ("PNG", "RGB", 0), "apng": ("PNG", "RGB", 0), "webp": ("WEBP", "RGB", 12),
    "gif": ("GIF", "RGB", 2), "bmp": ("BMP", "RGB", 0), "dib": ("DIB", "RGB", 0), "tif": ("TIFF", "RGB", 0), "TIFF": ("TIFF", "RGB", 0),
    "ppm": ("PPM", "RGB", 0), "pnm": ("PPM", "RGB", 0), "pgm": ("PPM", "L", 0), "pbm": ("PPM", "1", 0), "avif": ("AVIF", "RGB", 12),
    "tga": ("TGA", "RGB", 0), "jp2": ("JPEG2000", "RGB", 2), "j2k": ("JPEG2000", "RGB", 2), "pcx": ("PCX", "RGB", 0),
    "sgi": ("SGI", "RGB", 0), "qoi": ("QOI", "RGB", 0), "dds": ("DDS", "RGB", 0), "ico": ("ICO", "RGB", 0), "icns": ("ICNS", "RGB", 0),
 "msp": ("MSP", "1", 0), "xbm": ("XBM", "1", 0), "Png": ("PNG", "RGB", 0), "jpg is a png.jpg": ("PNG", "RGB", 0), "png is a webp.png": ("WEBP", "RGB", 12),
}  # fmt: skip
WITHOUT_SUFFIX = {
    "AVIF": 12, "BMP": 0, "GIF": 2, "JPEG": 12, "JPEG2000": 2, "PNG": 0, "TIFF": 0, "WEBP": 12
}  # fmt: skip


def test_every_format_is_read(tmp_path, capsys):
    """Catches a suffix that is left out although Pillow reads it: .jfif of browsers, .ppm of papers, .avif of the web, and no suffix, as in many data sets."""
    (tmp_path / "images").mkdir()
    expected = {}
    files = {f"a.{suffix}" if "." not in suffix else suffix: what for suffix, what in SUFFIXES.items()}
    files |= {f"without-{kind}": (kind, "RGB", off) for kind, off in WITHOUT_SUFFIX.items()}
    for name, (kind, mode, off) in files.items():
        image = Image.new("RGB", (128, 128), "white" if mode == "1" else (200, 40, 90)).convert(mode)
        image.save(tmp_path / "images" / name, kind)
        expected[name] = (np.asarray(image.convert("RGB"))[3, 3].astype(int), off)
    images, names = load(tmp_path / "images", tmp_path / "cache")
    assert names == sorted(files), capsys.readouterr().err
    for name, image in zip(names, images, strict=True):
        color, off = expected[name]
        assert abs(image[:, 16, 16] - color).max() <= off, name


NO_IMAGES = {  # file -> content, and the word that it is counted by
    "notes.txt": (b"x", ".txt"),
    "NOTES.TXT": (b"x", ".txt"),
    "drawing.pdf": (saved(Image.fromarray(RGB), format="PDF"), ".pdf"),
    "drawing.eps": (saved(Image.fromarray(RGB), format="EPS"), ".eps"),
    "film.mpg": (b"\0\0\x01\xb3" + bytes(100), ".mpg"),
    "drawing.svg": (b"<svg/>", ".svg"),
    "an image.txt": (saved(Image.fromarray(RGB), format="PNG"), ".txt"),
    "README": (b"This is a text.", "without a suffix"),
    "empty": (b"", "without a suffix"),
    "random": (RNG.bytes(3000), "without a suffix"),
    "PDF": (saved(Image.fromarray(RGB), format="PDF"), "without a suffix"),
    "EPS": (saved(Image.fromarray(RGB), format="EPS"), "without a suffix"),
    "TGA": (saved(Image.fromarray(RGB), format="TGA"), "without a suffix"),  # it could be anything
    "P5 text": (b"P5 is how a text may begin", "without a suffix"),
}
DAMAGED = {
    "cut": saved(Image.fromarray(RGB), format="JPEG", quality=95)[:1500],
    "cut.jpg": saved(Image.fromarray(RGB), format="JPEG", quality=95)[:1500],
    "text.jpg": b"This is a text.",
    "drawing.png": saved(Image.fromarray(RGB), format="EPS"),
    "empty.png": b"",
}


def test_other_files_are_counted(tmp_path, capsys):
    """Catches a README that is said to be a damaged image, a damaged image that is said to be none, and Ghostscript that is started for an .eps."""
    (tmp_path / "images").mkdir()
    Image.fromarray(RGB).save(tmp_path / "images/a.png")
    for name, content in ({name: content for name, (content, _) in NO_IMAGES.items()} | DAMAGED).items():
        (tmp_path / "images" / name).write_bytes(content)
    args = data_args(tmp_path / "images", tmp_path / "cache")
    for _ in range(2):
        assert common.load_images(args)[1] == ["a.png"]
        assert args.found[args.path]["left_out"] == {
            "files that are not images": len(NO_IMAGES),
            "files that cannot be read": len(DAMAGED),
        }
        lines = capsys.readouterr().err.splitlines()
        (line,) = [line for line in lines if "files that are not images" in line]
        start, counts = line.removesuffix(")").split(" (")
        assert start == f"left out: files that are not images: {len(NO_IMAGES)}"
        assert sorted(counts.split(", ")) == ["1 .eps", "1 .mpg", "1 .pdf", "1 .svg", "3 .txt", "7 without a suffix"]
        (line,) = [line for line in lines if "files that cannot be read" in line]
        assert all(f"{name!r} (" in line for name in DAMAGED) and "'cut' (image file is truncated" in line


def test_mpo_is_read(tmp_path):
    """Catches two pictures of a 3D camera in one file that are left out although Pillow reads them."""
    assert ".mpo" in common.SUFFIXES
