"""Cartoon faces painted with Pillow: the built-in data set, and a face reader that finds the attributes in the pixels.

    python faces.py data/faces --count 10000 --size 96              # PNGs with tags.csv and cartoon_attr.txt
    python faces.py data/b2b --domains black blonde --size 64       # trainA trainB testA testB, by color of hair

A face has four independent attributes: hair (12 colors), eyes (11), face (3 skin colors) and glasses (2). Position,
size, length of hair, mouth, clothes and background vary a little and have no label. A given `seed` and `index` always
give the same face.

The reader knows the painter's shapes, but not where in the image the face is. It lays the shapes over the image in many
poses, solves for the color of every part by least squares, keeps the pose with the smallest residual, and names the
nearest color of each palette. What fits badly, or is far from every color of its palette, is called unreadable. The
thresholds are calibrated in tests/test_faces.py.
"""

import argparse
import functools
import itertools
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw
from tqdm import tqdm

HAIR = {
    "aqua": "#4cd2d4",
    "black": "#1c1a22",
    "blonde": "#f2d478",
    "blue": "#2c50d8",
    "brown": "#6e4424",
    "gray": "#a6aab8",
    "green": "#38a83c",
    "orange": "#ec7420",
    "pink": "#f49ac6",
    "purple": "#7a34a4",
    "red": "#c41e28",
    "white": "#f8f8fa",
}
EYES = {
    "aqua": "#30d8d8",
    "black": "#101014",
    "blue": "#2048f0",
    "brown": "#703c10",
    "gray": "#a8acbc",
    "green": "#1e9c30",
    "orange": "#ff8810",
    "pink": "#ff80c0",
    "purple": "#7c28bc",
    "red": "#dc1420",
    "yellow": "#f4dc20",
}
FACE = {"light": "#ffe2c8", "tan": "#dca878", "brown": "#96603c"}
ATTRIBUTES = {"hair": tuple(HAIR), "eyes": tuple(EYES), "face": tuple(FACE), "glasses": ("without", "with")}
CLOTHES = ("#d86060", "#5c78c8", "#58a878", "#c8a040", "#8868b0")
FRAME = "#28243c"  # of the glasses

# Regions of one color each: what draw() needs colors for, and what fit() solves for.
PARTS = (
    "background",
    "long",  # long hair, behind the neck
    "hair",
    "neck",
    "clothes",
    "skin",
    "mouth",
    "white",  # of the eyes
    "left",  # the iris on the left side of the image
    "right",
    "pupil",  # and the lashes
    "frame",
)

# Height of the mouth's center, its two radii, and the angle at which the chord starts; it ends at 180 degrees.
MOUTHS = (
    (0.80, 0.08, 0.06, 0),  # smile
    (0.82, 0.045, 0.04, -180),  # surprise
    (0.82, 0.06, 0.018, -180),  # flat
)
EYE_CENTERS = {"left": 0.32, "right": 0.68}


# --- the painter ---------------------------------------------------------------------------------------------------


def draw(size, fill, x=0.0, y=0.0, scale=1.0, long=True, mouth=0, glasses=True, mode="RGB"):
    """Paint one face; `fill` gives the color of each of PARTS, or its number with mode "L", which the reader uses.

    Lengths are in image widths, angles in degrees; (x, y) moves the face, `scale` enlarges it. An RGB image has
    size x size pixels; with mode "L" it is not reduced to that size, because the mean of two numbers means nothing.
    """
    # painted several times larger, so that reducing it smooths the edges
    factor = max(2, round(256 / size))
    side = size * factor
    canvas = Image.new(mode, (side, side), fill["background"])
    pen = ImageDraw.Draw(canvas)

    def box(cx, cy, rx, ry):
        # left, top, right, bottom in pixels; cx and cy are those of a face that is neither moved nor scaled
        cx = 0.5 + x + (cx - 0.5) * scale
        cy = 0.5 + y + (cy - 0.5) * scale
        return [side * edge for edge in (cx - rx * scale, cy - ry * scale, cx + rx * scale, cy + ry * scale)]

    # from back to front
    if long:
        pen.rounded_rectangle(box(0.5, 0.74, 0.41, 0.36), side * 0.1, fill["long"])
    pen.ellipse(box(0.5, 0.48, 0.43, 0.42), fill["hair"])
    pen.rectangle(box(0.5, 0.92, 0.09, 0.08), fill["neck"])
    pen.ellipse(box(0.5, 1.10, 0.32, 0.16), fill["clothes"])
    pen.ellipse(box(0.5, 0.58, 0.375, 0.35), fill["skin"])

    cy, rx, ry, start = MOUTHS[mouth]
    pen.chord(box(0.5, cy, rx, ry), start, 180, fill["mouth"])
    draw_eyes(pen, box, fill, lash=round(side * scale * 0.026))
    draw_fringe(pen, box, fill)
    if glasses:
        draw_glasses(pen, box, fill, rim=round(side * scale * 0.032))
    return canvas.reduce(factor) if mode == "RGB" else canvas


def draw_eyes(pen, box, fill, lash: int):
    for part, cx in EYE_CENTERS.items():
        pen.ellipse(box(cx, 0.60, 0.125, 0.13), fill["white"])
        pen.ellipse(box(cx, 0.60, 0.098, 0.098), fill[part])
        pen.ellipse(box(cx, 0.605, 0.034, 0.040), fill["pupil"])
        pen.ellipse(box(cx - 0.040, 0.562, 0.026, 0.026), fill["white"])  # a reflection
        pen.arc(box(cx, 0.60, 0.135, 0.138), 195, 345, fill["pupil"], lash)


def draw_fringe(pen, box, fill):
    pen.chord(box(0.5, 0.50, 0.41, 0.41), 194, 346, fill["hair"])
    # four triangles that point down
    for cx in (0.24, 0.41, 0.59, 0.76):
        left, top, right, _ = box(cx, 0.395, 0.08, 0)
        tip = box(cx, 0.445, 0, 0)[:2]
        pen.polygon([left, top, right, top, *tip], fill["hair"])


def draw_glasses(pen, box, fill, rim: int):
    for cx in EYE_CENTERS.values():
        pen.ellipse(box(cx, 0.60, 0.165, 0.155), outline=fill["frame"], width=rim)
    pen.rectangle(box(0.5, 0.585, 0.025, 0.016), fill["frame"])


def describe(rng: np.random.Generator) -> dict[str, str]:
    """Random attributes, {"hair": "aqua", "eyes": "red", ...}; all values of an attribute are equally likely.

    Those of face `index` of `seed` come from the generator default_rng([seed, index]).
    """
    return {name: str(rng.choice(values)) for name, values in ATTRIBUTES.items()}


def paint(seed: int, index: int, size: int = 64, **chosen: str) -> tuple[Image.Image, dict[str, str]]:
    """Face `index` of `seed`: (RGB image, size x size; its attributes). hair="black" and the like replace random ones.

    The order in which random numbers are drawn is part of the data set: another order would paint other faces.
    """
    rng = np.random.default_rng([seed, index])
    look = describe(rng) | chosen

    def near(color: str, spread: float) -> tuple[int, ...]:
        shifted = np.add(ImageColor.getrgb(color), rng.uniform(-spread, spread, 3))
        return tuple(int(v) for v in shifted.clip(0, 255))

    def darker(color: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(int(0.88 * v) for v in color)

    background = near("#e6ecf2", 10)
    clothes = near(str(rng.choice(CLOTHES)), 8)
    hair = near(HAIR[look["hair"]], 8)
    skin = near(FACE[look["face"]], 6)
    iris = near(EYES[look["eyes"]], 6)
    fill = {
        "background": background,
        "long": darker(hair),
        "hair": hair,
        "neck": darker(skin),
        "clothes": clothes,
        "skin": skin,
        "mouth": "#b84850",
        "white": "#ffffff",
        "left": iris,
        "right": iris,
        "pupil": "#201a20",
        "frame": FRAME,
    }

    x = rng.uniform(-0.035, 0.035)
    y = rng.uniform(-0.035, 0.035)
    scale = rng.uniform(0.95, 1.05)
    long = bool(rng.integers(2))
    mouth = int(rng.integers(len(MOUTHS)))
    return draw(size, fill, x, y, scale, long, mouth, look["glasses"] == "with"), look


# --- the reader ----------------------------------------------------------------------------------------------------


@functools.cache
def poses() -> tuple[np.ndarray, np.ndarray]:
    """P poses of a face with K parts, at 32 px: bases (P, 1024, K), and solvers for the colors (P, K, 1024).

    An image in a pose is cover @ colors: each of its 1024 pixels is a mixture of the K colors. The columns of the basis
    are orthonormal and span all such images; solver @ image gives the colors by least squares.
    """
    numbers = {part: k for k, part in enumerate(PARTS)}
    shifts = np.linspace(-1.5, 1.5, 7) / 32  # up to one and a half pixels

    bases = []
    solvers = []
    for scale, x, y in itertools.product((0.95, 1.0, 1.05), shifts, shifts):
        # which part each of 256 x 256 pixels shows, and from that, which share of each of 32 x 32 a part covers
        parts = np.asarray(draw(32, numbers, x, y, scale, mode="L"))
        is_part = parts[..., None] == np.arange(len(PARTS))
        cover = is_part.reshape(32, 8, 32, 8, -1).mean((1, 3)).reshape(1024, -1)

        bases.append(np.linalg.qr(cover)[0])
        solvers.append(np.linalg.pinv(cover))
    return np.array(bases, dtype=np.float32), np.array(solvers, dtype=np.float32)


def fit(images: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(N, H, W, 3) uint8 -> each part's color (N, 3) in the best pose; the share (N,) of the variance it explains."""
    bases, solvers = poses()
    side_by_side = bases.transpose(1, 0, 2).reshape(1024, -1)  # (1024, P K): all poses in one product

    colors = []
    shares = []
    for start in range(0, len(images), 256):
        some = images[start : start + 256]
        small = [Image.fromarray(image).resize((32, 32), Image.Resampling.BOX) for image in some]
        x = np.stack(small).reshape(-1, 1024, 3).transpose(0, 2, 1).astype(np.float32)  # (n, 3, 1024)

        # |x|^2 is the energy that a pose explains, |x projected onto its basis|^2, plus the squared residual: the pose
        # that explains most has the smallest residual
        projected = (x @ side_by_side).reshape(len(x), 3, len(bases), -1)
        energy = (projected**2).sum((1, 3))  # (n, P)
        best = energy.argmax(1)
        colors.append(np.einsum("nkp,ncp->nkc", solvers[best], x))

        residual = (x**2).sum((1, 2)) - energy.max(1)
        total = ((x - x.mean(2, keepdims=True)) ** 2).sum((1, 2))
        shares.append(1 - residual / np.maximum(total, 1e-6))

    by_part = np.concatenate(colors).transpose(1, 0, 2)  # (K, N, 3)
    return dict(zip(PARTS, by_part, strict=True)), np.concatenate(shares)


def nearest(colors: np.ndarray, palette: dict[str, str], limit: float) -> np.ndarray:
    """(N, 3) -> (N,) index of the nearest color, -1 where it is farther away than `limit` (Euclidean, 0..255)."""
    rgb = [ImageColor.getrgb(color) for color in palette.values()]
    distance = np.linalg.norm(colors[:, None] - rgb, axis=2)
    return np.where(distance.min(1) <= limit, distance.argmin(1), -1)


def read_attributes(images: np.ndarray) -> dict[str, np.ndarray]:
    """(N, H, W, 3) uint8 -> names (N,) for "hair", "eyes", "face", "glasses", and "readable" (N,) bool: is it a face?

    A face is readable when its layout fits, hair and skin have colors of their palettes, and there are two irises of
    similar color that differ from the white around them. A name is "unreadable" where the layout does not fit, the
    color is none of the palette, the two irises have different names, or the glasses are half there.
    """
    color, share = fit(images)
    layout = share > 0.75
    hair = nearest(color["hair"], HAIR, 60)
    skin = nearest(color["skin"], FACE, 60)

    # both irises must have the same name; their mean has less noise than either
    iris = (color["left"] + color["right"]) / 2
    left = nearest(color["left"], EYES, np.inf)
    right = nearest(color["right"], EYES, np.inf)
    eyes = np.where(left == right, nearest(iris, EYES, 60), -1)
    alike = np.linalg.norm(color["left"] - color["right"], axis=1) < 60
    distinct = np.linalg.norm(color["white"] - iris, axis=1) > 60

    # where the rims would be, how far is the color on its way from the skin's (0) to the frame's (1)?
    way = ImageColor.getrgb(FRAME) - color["skin"]
    rims = ((color["frame"] - color["skin"]) * way).sum(1) / (way**2).sum(1)
    glasses = np.select([rims < 0.31, rims > 0.48], [0, 1], -1)

    read = {}
    for name, index in {"hair": hair, "eyes": eyes, "face": skin, "glasses": glasses}.items():
        names = np.array([*ATTRIBUTES[name], "unreadable"])  # the index -1 is the last one
        read[name] = names[np.where(layout, index, -1)]
    read["readable"] = layout & (hair >= 0) & (skin >= 0) & alike & distinct
    return read


# --- the command ---------------------------------------------------------------------------------------------------


def write(folder: Path, indices: range, args, **chosen: str) -> list[dict[str, str]]:
    """Paint faces into `folder` as 0.png, 1.png, ...; returns their attributes."""
    folder.mkdir(parents=True, exist_ok=True)

    def paint_file(k: int) -> dict[str, str]:
        image, look = paint(args.seed, indices[k], args.size, **chosen)
        image.save(folder / f"{k}.png")
        return look

    n = len(indices)
    with ThreadPool() as pool:
        looks = pool.imap(paint_file, range(n), chunksize=64)
        return list(tqdm(looks, desc=str(folder), total=n, unit="face", disable=None))


def write_domains(args):
    """Paint trainA and testA with the first color of --domains, trainB and testB with the second."""
    tests = max(1, args.count // 10)
    first = 0
    for domain, hair in zip("AB", args.domains, strict=True):
        # no face is in two folders: each takes the next indices
        train = range(first, first + args.count)
        test = range(train.stop, train.stop + tests)
        first = test.stop
        write(args.folder / f"train{domain}", train, args, hair=hair)
        write(args.folder / f"test{domain}", test, args, hair=hair)


def write_labels(folder: Path, looks: list[dict[str, str]]):
    """Write the attributes of 0.png, 1.png, ... in two formats that labels.py reads.

    tags.csv: a line "0,aqua hair red eyes" for each image. cartoon_attr.txt: the number of images, the names of the 28
    columns "hair_aqua ... with_glasses", and a line "0.png 1 0 ..." for each image.
    """
    tags = [f"{i},{look['hair']} hair {look['eyes']} eyes\n" for i, look in enumerate(looks)]
    (folder / "tags.csv").write_text("".join(tags), encoding="utf-8")

    columns = {}
    for name, values in ATTRIBUTES.items():
        for value in values:
            columns[name, value] = f"{value}_glasses" if name == "glasses" else f"{name}_{value}"

    lines = [str(len(looks)), " ".join(columns.values())]
    for i, look in enumerate(looks):
        cells = [str(int(look[name] == value)) for name, value in columns]
        lines.append(" ".join([f"{i}.png", *cells]))
    (folder / "cartoon_attr.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write to; it must be new or empty")
    parser.add_argument(
        "--count",
        type=int,
        default=10000,
        help="number of faces; with --domains, of the training faces of each domain (default: %(default)s)",
    )
    parser.add_argument(
        "--size", type=int, default=64, help="width and height in pixels, at least 32 (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other faces (default: %(default)s)")
    parser.add_argument(
        "--domains",
        nargs=2,
        choices=HAIR,
        metavar="HAIR",
        help="two colors of hair: writes trainA, testA, trainB, testB for cyclegan.py instead, without labels",
    )
    args = parser.parse_args(argv)

    for name, lowest in (("count", 1), ("size", 32), ("seed", 0)):
        value = getattr(args, name)
        if value < lowest:
            parser.error(f"--{name} {value} is too small: it must be at least {lowest}")
    if args.folder.exists() and not args.folder.is_dir():
        parser.error(f"{args.folder} is already in use, as a file: choose a new or empty folder")
    if args.folder.exists() and any(args.folder.iterdir()):
        parser.error(f"{args.folder} is already in use and not empty: choose a new or empty folder")

    try:
        if args.domains:
            write_domains(args)
        else:
            looks = write(args.folder, range(args.count), args)
            write_labels(args.folder, looks)
    except OSError as error:
        parser.exit(
            1, f"error: cannot write to {args.folder} ({error.strerror or error}): make room or choose another folder\n"
        )


if __name__ == "__main__":
    main()
