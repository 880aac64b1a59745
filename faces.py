"""Cartoon faces painted with Pillow: the built-in data set, and a reader that tells their attributes from the pixels.

    python faces.py data/faces --count 10000 --size 96              # PNGs with tags.csv and cartoon_attr.txt
    python faces.py data/b2b --domains black blonde --size 64       # trainA trainB testA testB, by colour of hair

A face has four independent attributes: hair (12 colours), eyes (11), face (3 skins), glasses (2). Position, size,
length of hair, mouth, clothes and background vary a little without a label. Face `index` of `seed` never changes.

The reader knows the painter's shapes but not where a face is: it lays them over the image in many poses, solves for the
colour of every part by least squares, keeps the pose that leaves the smallest residual, and names the nearest colours.
What fits badly, or is no colour of the palette, is called unreadable. Calibrated in tests/test_faces.py.
"""

import argparse
import functools
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw
from tqdm import tqdm

HAIR = {
    "aqua": "#4cd2d4", "black": "#1c1a22", "blonde": "#f2d478", "blue": "#2c50d8", "brown": "#6e4424",
    "gray": "#a6aab8", "green": "#38a83c", "orange": "#ec7420", "pink": "#f49ac6", "purple": "#7a34a4",
    "red": "#c41e28", "white": "#f8f8fa",
}  # fmt: skip
EYES = {
    "aqua": "#30d8d8", "black": "#101014", "blue": "#2048f0", "brown": "#703c10", "gray": "#a8acbc", "green": "#1e9c30",
    "orange": "#ff8810", "pink": "#ff80c0", "purple": "#7c28bc", "red": "#dc1420", "yellow": "#f4dc20",
}  # fmt: skip
FACE = {"light": "#ffe2c8", "tan": "#dca878", "brown": "#96603c"}
ATTRIBUTES = {"hair": tuple(HAIR), "eyes": tuple(EYES), "face": tuple(FACE), "glasses": ("without", "with")}
CLOTHES = ("#d86060", "#5c78c8", "#58a878", "#c8a040", "#8868b0")
FRAME = "#28243c"
PARTS = ("background", "long", "hair", "neck", "clothes", "skin", "mouth", "white", "left", "right", "pupil", "frame")


def draw(size, fill, x=0.0, y=0.0, scale=1.0, long=True, mouth=0, glasses=True, mode="RGB"):
    """Paint one face: `fill` gives each of PARTS its colour (RGB) or its number (L: not reduced, for the reader).

    Lengths are in image widths and angles in degrees; (x, y) moves the face and `scale` its distance from the centre.
    """
    factor = max(2, round(256 / size))
    side = size * factor
    canvas = Image.new(mode, (side, side), fill["background"])
    pen = ImageDraw.Draw(canvas)

    def box(cx, cy, rx, ry):
        cx, cy = 0.5 + x + (cx - 0.5) * scale, 0.5 + y + (cy - 0.5) * scale
        return [side * v for v in (cx - rx * scale, cy - ry * scale, cx + rx * scale, cy + ry * scale)]

    if long:
        pen.rounded_rectangle(box(0.5, 0.74, 0.41, 0.36), side * 0.1, fill["long"])
    pen.ellipse(box(0.5, 0.48, 0.43, 0.42), fill["hair"])
    pen.rectangle(box(0.5, 0.92, 0.09, 0.08), fill["neck"])
    pen.ellipse(box(0.5, 1.10, 0.32, 0.16), fill["clothes"])
    pen.ellipse(box(0.5, 0.58, 0.375, 0.35), fill["skin"])
    smile, surprise, flat = (0.80, 0.08, 0.06, 0), (0.82, 0.045, 0.04, -180), (0.82, 0.06, 0.018, -180)
    cy, rx, ry, start = (smile, surprise, flat)[mouth]
    pen.chord(box(0.5, cy, rx, ry), start, 180, fill["mouth"])
    for eye, cx in (("left", 0.32), ("right", 0.68)):
        pen.ellipse(box(cx, 0.60, 0.125, 0.13), fill["white"])
        pen.ellipse(box(cx, 0.60, 0.098, 0.098), fill[eye])
        pen.ellipse(box(cx, 0.605, 0.034, 0.040), fill["pupil"])
        pen.ellipse(box(cx - 0.040, 0.562, 0.026, 0.026), fill["white"])
        pen.arc(box(cx, 0.60, 0.135, 0.138), 195, 345, fill["pupil"], round(side * scale * 0.026))
    pen.chord(box(0.5, 0.50, 0.41, 0.41), 194, 346, fill["hair"])
    for cx in (0.24, 0.41, 0.59, 0.76):
        pen.polygon(box(cx, 0.395, 0.08, 0)[:2] + box(cx, 0.395, 0.08, 0)[2:] + box(cx, 0.445, 0, 0)[:2], fill["hair"])
    if glasses:
        for cx in (0.32, 0.68):
            pen.ellipse(box(cx, 0.60, 0.165, 0.155), outline=fill["frame"], width=round(side * scale * 0.032))
        pen.rectangle(box(0.5, 0.585, 0.025, 0.016), fill["frame"])
    return canvas.reduce(factor) if mode == "RGB" else canvas


def describe(rng: np.random.Generator) -> dict[str, str]:
    """The attributes of a face, each drawn alike often; of `index` of `seed` with the generator [seed, index]."""
    return {name: str(rng.choice(values)) for name, values in ATTRIBUTES.items()}


def paint(seed: int, index: int, size: int = 64, **chosen: str) -> tuple[Image.Image, dict[str, str]]:
    """Face `index` of `seed`: (RGB image, size x size; its attributes). hair="black" and the like replace the draw."""
    rng = np.random.default_rng([seed, index])
    look = describe(rng) | chosen

    def near(colour: str, spread: float) -> tuple[int, ...]:
        shifted = np.add(ImageColor.getrgb(colour), rng.uniform(-spread, spread, 3))
        return tuple(int(v) for v in shifted.clip(0, 255))

    fill = {"white": "#ffffff", "pupil": "#201a20", "mouth": "#b84850", "frame": FRAME}
    fill |= {"background": near("#e6ecf2", 10), "clothes": near(str(rng.choice(CLOTHES)), 8)}
    fill |= {"hair": near(HAIR[look["hair"]], 8), "skin": near(FACE[look["face"]], 6)}
    fill |= {shade: tuple(int(0.88 * v) for v in fill[part]) for shade, part in (("long", "hair"), ("neck", "skin"))}
    fill["left"] = fill["right"] = near(EYES[look["eyes"]], 6)
    x, y, scale = rng.uniform(-0.035, 0.035), rng.uniform(-0.035, 0.035), rng.uniform(0.95, 1.05)
    image = draw(size, fill, x, y, scale, bool(rng.integers(2)), int(rng.integers(3)), look["glasses"] == "with")
    return image, look


@functools.cache
def poses() -> tuple[np.ndarray, np.ndarray]:
    """Poses of a face at 32 px: bases of its K parts (P, 1024, K), and solvers of their colours (P, K, 1024)."""
    bases, solvers = [], []
    for scale in (0.95, 1.0, 1.05):
        for x in np.linspace(-1.5, 1.5, 7) / 32:
            for y in np.linspace(-1.5, 1.5, 7) / 32:
                parts = np.asarray(draw(32, {part: k for k, part in enumerate(PARTS)}, x, y, scale, mode="L"))
                onehot = parts[..., None] == np.arange(len(PARTS))
                cover = onehot.reshape(32, 8, 32, 8, -1).mean((1, 3)).reshape(1024, -1)
                bases.append(np.linalg.qr(cover)[0])
                solvers.append(np.linalg.pinv(cover))
    return np.array(bases, dtype=np.float32), np.array(solvers, dtype=np.float32)


def fit(images: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(N, H, W, 3) uint8 -> each part's colour (N, 3) in the best pose; the share (N,) of the variance it explains."""
    bases, solvers = poses()
    stacked = bases.transpose(1, 0, 2).reshape(1024, -1)
    colours, shares = [], []
    for start in range(0, len(images), 256):
        small = [Image.fromarray(image).resize((32, 32), Image.Resampling.BOX) for image in images[start : start + 256]]
        x = np.stack(small).reshape(-1, 1024, 3).transpose(0, 2, 1).astype(np.float32)  # (n, 3, 1024)
        energy = ((x @ stacked) ** 2).reshape(len(x), 3, len(bases), -1).sum((1, 3))  # (n, P): |x projected|^2
        colours.append(np.einsum("nkp,ncp->nkc", solvers[energy.argmax(1)], x))
        total = ((x - x.mean(2, keepdims=True)) ** 2).sum((1, 2))
        shares.append(1 - ((x**2).sum((1, 2)) - energy.max(1)) / np.maximum(total, 1e-6))
    return dict(zip(PARTS, np.concatenate(colours).transpose(1, 0, 2), strict=True)), np.concatenate(shares)


def nearest(colours: np.ndarray, palette: dict[str, str], limit: float) -> np.ndarray:
    """(N, 3) -> (N,) index of the nearest colour, -1 where that is further than `limit` (Euclidean, 0..255)."""
    distance = np.linalg.norm(colours[:, None] - [ImageColor.getrgb(colour) for colour in palette.values()], axis=2)
    return np.where(distance.min(1) <= limit, distance.argmin(1), -1)


def read_attributes(images: np.ndarray) -> dict[str, np.ndarray]:
    """(N, H, W, 3) uint8 -> names (N,) for "hair", "eyes", "face", "glasses", and "readable" (N,) bool: is it a face?

    A face is readable when its layout fits, hair and skin have colours of their palettes, and there are two irises
    alike that differ from the white around them. A name is "unreadable" where the layout does not fit, the colour is
    none of the palette, the two irises have different names, or the glasses are half there.
    """
    colour, share = fit(images)
    hair, skin = nearest(colour["hair"], HAIR, 60), nearest(colour["skin"], FACE, 60)
    iris = (colour["left"] + colour["right"]) / 2
    left, right = (nearest(colour[eye], EYES, np.inf) for eye in ("left", "right"))
    eyes = np.where(left == right, nearest(iris, EYES, 60), -1)
    alike = np.linalg.norm(colour["left"] - colour["right"], axis=1) < 60
    distinct = np.linalg.norm(colour["white"] - iris, axis=1) > 60
    axis = ImageColor.getrgb(FRAME) - colour["skin"]
    rims = ((colour["frame"] - colour["skin"]) * axis).sum(1) / (axis**2).sum(1)  # 0: skin in their place, 1: rims
    glasses = np.select([rims < 0.31, rims > 0.48], [0, 1], -1)
    layout = share > 0.75
    index = {"hair": hair, "eyes": eyes, "face": skin, "glasses": glasses}
    read = {name: np.array([*ATTRIBUTES[name], "unreadable"])[np.where(layout, i, -1)] for name, i in index.items()}
    return read | {"readable": layout & (hair >= 0) & (skin >= 0) & alike & distinct}


def write(folder: Path, indices: range, args, **chosen: str) -> list[dict[str, str]]:
    """Paint faces into `folder` as 0.png, 1.png, ...; returns their attributes."""
    folder.mkdir(parents=True, exist_ok=True)

    def one(k: int) -> dict[str, str]:
        image, look = paint(args.seed, indices[k], args.size, **chosen)
        image.save(folder / f"{k}.png")
        return look

    with ThreadPool() as pool:
        return list(tqdm(pool.imap(one, range(len(indices)), 64), str(folder), len(indices), unit="face", disable=None))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write; must be new or empty")
    parser.add_argument("--count", type=int, default=10000, help="faces, or faces to train of each domain (10000)")
    parser.add_argument("--size", type=int, default=64, help="width and height in pixels, from 32 (64)")
    parser.add_argument("--seed", type=int, default=0, help="another seed paints other faces (0)")
    parser.add_argument("--domains", nargs=2, choices=HAIR, metavar="HAIR", help="two colours of hair: trainA, ...")
    args = parser.parse_args(argv)
    if args.count < 1 or args.size < 32 or args.seed < 0:
        parser.error("--count must be at least 1, --size at least 32 and --seed at least 0")
    if args.folder.exists() and (not args.folder.is_dir() or any(args.folder.iterdir())):
        parser.error(f"{args.folder} is in use: name a new or empty folder")
    if args.domains:
        tests = max(1, args.count // 10)
        for k, (domain, hair) in enumerate(zip("AB", args.domains, strict=True)):  # no index stands in two folders
            first = k * (args.count + tests)
            write(args.folder / f"train{domain}", range(first, first + args.count), args, hair=hair)
            write(args.folder / f"test{domain}", range(first + args.count, first + args.count + tests), args, hair=hair)
        return
    looks = write(args.folder, range(args.count), args)
    tags = "".join(f"{i},{look['hair']} hair {look['eyes']} eyes\n" for i, look in enumerate(looks))
    (args.folder / "tags.csv").write_text(tags, encoding="utf-8")
    label = {"hair": "hair_{}", "eyes": "eyes_{}", "face": "face_{}", "glasses": "{}_glasses"}
    columns = [(name, value) for name, values in ATTRIBUTES.items() for value in values]
    rows = [str(len(looks)), " ".join(label[name].format(value) for name, value in columns)]
    rows += [" ".join([f"{i}.png", *(str(int(f[k] == v)) for k, v in columns)]) for i, f in enumerate(looks)]
    (args.folder / "cartoon_attr.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
