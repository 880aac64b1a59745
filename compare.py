"""Which run is better? Scores and pictures of runs and of folders of images, each against the same real images.

    python compare.py faces runs/dcgan runs/wgan_gp                     # runs on the built-in faces
    python compare.py data/anime runs/dcgan runs/wgan_gp --count 5000   # runs on a folder
    python compare.py data/anime samples/of/another/project --size 64   # any folder of images

A run's images are the first --count of its generated/, which its own script draws (anew, if they are too few or older
than last.pt). Reals and samples go through the cache of training: 8 bits a channel, one size. --count of the reals are
the reference, as many others make the first row of the table: what a perfect generator would get. The scores:

    FD          Frechet distance of two Gaussians fitted to the features (as FID, but other features); 0 is best; grows
                when --count falls, most below the number of features
    KIDx1000    unbiased squared MMD, kernel (x y / d + 1)^3 (arXiv 1801.01401), times 1000; 0 is best (or just below)
    precision   share of samples that are nearer to some real than its third nearest real is (arXiv 1904.06991)
    recall      share of reals that are nearer to some sample than its third nearest sample is
    diversity   root mean square distance of the features of two samples, over that of two reals; 1 is best
    nearest     median distance to the nearest of all reals, over that of a real: 0 for copies; near 1 proves nothing
    readable    built-in faces: share that faces.py can read as a face; combos: of the 132 of hair and eyes, those that
                3 of 2,000 samples show (0.15 % of --count)
    hair, ...   share that shows the hair, eyes, face, glasses that its labels.csv asked for; unreadable is disobeyed
    NMI         of infogan.py's category and the attribute that it knows best, among the samples in which that can be
                read, times their share; 0 by chance, at most 0.58 for glasses, 0.73 for the skin, 0.91 for hair or eyes

Features are means and spreads of the maps of a small convolutional network with fixed random weights: nothing to
download, the same filters on every machine. They are not Inception's, so FD is not FID. With torch-fidelity installed
and its Inception weights at hand, FID, KID, precision and recall on Inception's features stand in the table as well.
"""

import argparse
import collections
import csv
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import conv2d, pad
from tqdm import tqdm

import common
import faces

BLOCK = 1000  # rows of a distance matrix that are in memory at a time
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", help="folder of the training images, or faces: the built-in ones (a folder is ./faces)")
    parser.add_argument("others", nargs="+", metavar="run_or_folder", help="folders of runs or of images")
    parser.add_argument("--count", type=common.between(4), default=2000, help="images of each (2000)")
    parser.add_argument("--size", type=common.image_size, help="width and height (those of the first run, else 64)")
    parser.add_argument("--inception-weights", metavar="FILE", help=INCEPTION)
    parser.add_argument("--out", default="runs/compare", help="where table.csv and the pictures go (runs/compare)")
    parser.add_argument("--cache", default=common.CACHE, help=f"folder for the decoded images ({common.CACHE})")
    args = parser.parse_args(argv)
    for name in args.others:
        if not Path(name).is_dir() or name == "real" or args.others.count(name) > 1:
            parser.error(f"{name} is no folder, or there twice, or the name of the first row (a folder is ./{name})")
    if run_settings(args.real):
        parser.error(f"{args.real} is a run: name the folder of the real images first, or faces for the built-in ones")
    if Path(args.out).exists() and not Path(args.out).is_dir():
        parser.error(f"--out {args.out} is a file: name a folder")
    args.runs = {name: run_settings(name) for name in args.others if run_settings(name)}
    first = next(iter(args.runs.values()), {})
    args.size, args.channels, args.batch = args.size or first.get("size", 64), first.get("channels", 3), 1
    return args


# --- images --------------------------------------------------------------------------------------------------------


def run_settings(folder: str) -> dict:
    """args.json of a run: the script that made it, and its flags; {} if the folder is none."""
    try:
        settings = json.loads(Path(folder, "args.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if "script" in settings and not Path(__file__).with_name(f"{settings['script']}.py").exists():
        common.fail(f"{folder} was made by {settings['script']}.py, which is not beside compare.py")
    if "script" in settings and not Path(folder, "last.pt").exists():
        common.fail(f"{folder} has no checkpoint last.pt yet: let its training save first")
    return settings if "script" in settings else {}


def samples(run: str, args) -> str:
    """The folder of --count images of a run, drawn by its script if they are not there or older than the checkpoint."""
    folder, checkpoint = Path(run, "generated"), Path(run, "last.pt")
    images = list(folder.glob("*.png"))
    if len(images) < args.count or min(f.stat().st_mtime for f in images) < checkpoint.stat().st_mtime:
        script = importlib.import_module(args.runs[run]["script"])
        script.main(["--out", run, "--sample", str(args.count)])
    return str(folder)


def load(path: str | None, args) -> tuple[np.ndarray, list[str]]:
    """uint8 (N, C, S, S), memory-mapped, and names: as for training. None: the built-in faces."""
    return common.load_images(argparse.Namespace(**{**vars(args), "path": path}))


def blocks(images: np.ndarray, rows: np.ndarray):
    """The chosen images, uint8 (n, 3, S, S), a few at a time."""
    for some in np.array_split(rows, math.ceil(len(rows) / 50)):
        yield np.repeat(images[some], 3 // images.shape[1], 1)  # grey: three equal channels


# --- features ------------------------------------------------------------------------------------------------------


@functools.cache
def filters() -> list[Tensor]:
    """Random 3x3 filters of four layers, He-scaled, from the generator that numpy has frozen for ever.

    Every other one of the first layer sums to zero: it sees edges and noise, not colour.
    """
    random, widths, layers = np.random.RandomState(0), (3, 16, 32, 64, 128), []
    for c_in, c_out in itertools.pairwise(widths):
        layers.append(random.normal(0, math.sqrt(2 / (9 * c_in)), (c_out, c_in, 3, 3)).astype(np.float32))
    layers[0][::2] -= layers[0][::2].mean((2, 3), keepdims=True)
    return [torch.from_numpy(layer) for layer in layers]


@torch.no_grad()
def extract(images: np.ndarray, rows: np.ndarray) -> Tensor:
    """Features (n, d) of the chosen images: mean and standard deviation of every map of every layer.

    Four layers of 3x3 convolutions with ReLU, strides 1, 2, 2, 2, on images in [-1, 1] continued at their edges.
    """
    features = []
    for block in tqdm(blocks(images, rows), "features", math.ceil(len(rows) / 50), leave=False, unit_scale=50):
        x, pooled = common.normalise(torch.from_numpy(block)), []
        for layer, weight in enumerate(filters()):
            x = conv2d(pad(x, (1, 1, 1, 1), mode="replicate"), weight, stride=1 + (layer > 0)).relu()
            pooled += [x.mean((2, 3)), x.std((2, 3))]
        features.append(torch.cat(pooled, 1))
    return torch.cat(features)


# --- scores, from features (n, d) of reals and of samples ----------------------------------------------------------


def frechet(real: Tensor, fake: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), with the means and covariances of both (arXiv 1706.08500)."""

    def root(c: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(c)
        return vectors * values.clamp(min=0).sqrt() @ vectors.T

    (m1, c1), (m2, c2) = ((x.double().mean(0), x.double().T.cov()) for x in (real, fake))
    cross = torch.linalg.matrix_norm(root(c1) @ root(c2), "nuc")  # sum of singular values = tr (C1 C2)^(1/2)
    return ((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * cross).item()


def kid(real: Tensor, fake: Tensor) -> float:
    """E k(x, x') + E k(y, y') - 2 E k(x, y) over all pairs of different images, k(x, y) = (x y / d + 1)^3."""

    def kernel(products: Tensor) -> Tensor:
        return (products / real.shape[1] + 1).double() ** 3

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return sum(kernel(block @ b.T).sum() for block in a.split(BLOCK)) / (len(a) * len(b))

    def mean_of_others(a: Tensor) -> Tensor:  # without k(x, x): unbiased
        return (len(a) * mean(a, a) - kernel(a.square().sum(1)).mean()) / (len(a) - 1)

    return (mean_of_others(real) + mean_of_others(fake) - 2 * mean(real, fake)).item()


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Shares of samples within a ball around a real, and of reals within one around a sample (arXiv 1904.06991).

    A ball's radius is the distance from its centre to the k-th nearest of its own kind.
    """

    def radii(x: Tensor) -> Tensor:
        return torch.cat([torch.cdist(block, x).kthvalue(k + 1).values for block in x.split(BLOCK)])  # + 1: itself

    def covered(x: Tensor, centres: Tensor) -> float:
        r = radii(centres)
        return torch.cat([(torch.cdist(block, centres) <= r).any(1) for block in x.split(BLOCK)]).float().mean().item()

    return covered(fake, real), covered(real, fake)


def diversity(real: Tensor, fake: Tensor) -> float:
    """Root mean square distance of two samples over that of two reals; its square is twice the sum of variances."""
    return (fake.double().var(0).sum() / real.double().var(0).sum()).sqrt().item()


def nearest(x: Tensor, reals: Tensor, own: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """Distance to and index of the nearest real, (n,) each; `own` are the places of x itself among the reals."""
    indices = []
    for start in range(0, len(x), BLOCK):
        d = torch.cdist(x[start : start + BLOCK], reals)
        if own is not None:
            d[torch.arange(len(d)), torch.from_numpy(own[start : start + BLOCK])] = math.inf
        indices.append(d.argmin(1))
    index = torch.cat(indices)
    return (x - reals[index]).norm(dim=1), index  # again, because cdist rounds: copies are at 0


def scores(reference: Tensor, x: Tensor, reals: Tensor, own: np.ndarray | None = None) -> tuple[dict, Tensor]:
    """Every score of the features x against those of the reference, and for each sample its nearest of all reals."""
    precision, recall = precision_recall(reference, x)
    distance, index = nearest(x, reals, own)
    row = {"FD": frechet(reference, x), "KIDx1000": 1000 * kid(reference, x), "precision": precision, "recall": recall}
    return row | {"diversity": diversity(reference, x), "nearest": distance.median().item()}, index


def asked(name: str, files: list[str], args) -> dict[str, np.ndarray]:
    """What images were to show, column by column: of a run its labels.csv, of real faces the painter's attributes.

    `files` are the names of the images in the row, for the built-in faces their numbers. An image without a row in
    labels.csv was asked for nothing: it counts as disobeyed, and that is said.
    """
    if name == "real":
        labels = [faces.describe(np.random.default_rng([0, int(file)])) for file in files]
        return {key: np.array([row[key] for row in labels]) for key in faces.ATTRIBUTES}
    table = Path(name, "generated/labels.csv")
    if name not in args.runs or not table.exists():
        return {}
    with open(table, newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        rows = {row["image"]: row | dict(common.tags(row.get("caption") or "")) for row in reader}
    without_row = [file for file in files if file not in rows]
    if without_row:
        print(f"{name}: {len(without_row)} of {len(files)} samples have no row in labels.csv, {without_row[0]} first")
    without_file = [image for image in rows if not Path(name, "generated", image).exists()]
    if without_file:
        print(f"{name}: {len(without_file)} rows of labels.csv name no file, {without_file[0]} first")
    columns = dict.fromkeys(key for row in rows.values() for key in row)
    return {key: np.array([rows.get(file, {}).get(key) for file in files]) for key in columns}


def shared_information(a: np.ndarray, b: np.ndarray) -> float:
    """Normalised mutual information I(a; b) / (H(a) H(b))^(1/2) of two columns of names."""

    def entropy(*columns: np.ndarray) -> float:
        p = np.array(list(collections.Counter(zip(*columns, strict=True)).values())) / len(a)
        return -(p * np.log(p)).sum()

    return (entropy(a) + entropy(b) - entropy(a, b)) / max(math.sqrt(entropy(a) * entropy(b)), 1e-12)


def read(images: np.ndarray, rows: np.ndarray, wanted: dict[str, np.ndarray] | tuple = ()) -> dict[str, float]:
    """What faces.py reads: share of readable faces, combinations of hair and eyes that 0.15 % show, obedience."""
    parts = [faces.read_attributes(block.transpose(0, 2, 3, 1)) for block in blocks(images, rows)]
    seen = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    named = seen["readable"] & (seen["hair"] != "unreadable") & (seen["eyes"] != "unreadable")
    counts = collections.Counter(zip(seen["hair"][named], seen["eyes"][named], strict=True))
    row = {"readable": seen["readable"].mean(), "combos": sum(n >= 3 * len(rows) / 2000 for n in counts.values())}
    row |= {name: (seen[name] == wanted[name]).mean() for name in faces.ATTRIBUTES if name in wanted}
    if "category" in wanted:
        clear = {name: seen[name] != "unreadable" for name in faces.ATTRIBUTES}
        shared = {k: shared_information(wanted["category"][ok], seen[k][ok]) for k, ok in clear.items() if ok.any()}
        row["NMI"] = max((clear[name].mean() * value for name, value in shared.items()), default=0.0)
    return row


class Chosen(torch.utils.data.Dataset):
    """The chosen images as torch-fidelity takes them: uint8 (3, S, S)."""

    def __init__(self, images: np.ndarray, rows: np.ndarray):
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(next(blocks(self.images, self.rows[i : i + 1]))[0])


def fidelity(real: Chosen, fake: Chosen, **extractor) -> dict[str, float]:
    """FID, KID (of at most 5,000 images), precision and recall by torch-fidelity, on Inception's features."""
    from torch_fidelity import calculate_metrics

    options = {"fid": True, "kid": True, "prc": True, "kid_subsets": 1, "kid_subset_size": min(len(fake), 5000)}
    options |= {"cuda": torch.cuda.is_available(), "cache": False, "save_cpu_ram": True, "verbose": False}
    options |= {"feature_extractor": "inception-v3-compat", "prc_batch_size": BLOCK}
    found = calculate_metrics(input1=fake, input2=real, **(options | extractor))
    row = {"FID": found["frechet_inception_distance"], "IncKIDx1000": 1000 * found["kernel_inception_distance_mean"]}
    return row | {"Inc.prec": found["precision"], "Inc.recall": found["recall"]}


def inception_weights(given: str | None) -> str | None:
    """The file of Inception's weights if torch-fidelity can be used, else one line that says how to get there."""
    path = Path(given or Path(torch.hub.get_dir(), "checkpoints", INCEPTION))
    if given and not path.is_file():
        common.fail(f"there is no file {given}: download {INCEPTION_URL}")
    if importlib.util.find_spec("torch_fidelity") is None:
        print('no FID: it needs `pip install "torch-fidelity>=0.4"`')
    elif not path.is_file():
        print(f"no FID: torch-fidelity needs {INCEPTION_URL}, named by --inception-weights")
    elif not hashlib.sha256(path.read_bytes()).hexdigest().startswith(INCEPTION[-12:-4]):
        common.fail(f"{path} is damaged or another file: download {INCEPTION_URL}")
    else:
        return str(path)


# --- table and pictures --------------------------------------------------------------------------------------------


def sheet(columns: dict[str, np.ndarray], file: Path, wide: int = 4):
    """Write one picture: a column for each name, with its images (n, 3, S, S) `wide` beside each other."""
    size = next(iter(columns.values())).shape[2]
    side = size * max(1, 64 // size) + 2
    tall = max(math.ceil(len(images) / wide) for images in columns.values())
    canvas = Image.new("RGB", (len(columns) * (wide * side + 16), tall * side + 24), "white")
    for k, (name, images) in enumerate(columns.items()):
        left = k * (wide * side + 16) + 8
        ImageDraw.Draw(canvas).text((left, 4), name[-wide * side // 8 :], fill="black")
        for i, image in enumerate(images):
            tile = Image.fromarray(image.transpose(1, 2, 0)).resize((side - 2, side - 2), Image.Resampling.NEAREST)
            canvas.paste(tile, (left + i % wide * side, 24 + i // wide * side))
    canvas.save(file)


def main(argv=None) -> list[dict]:
    args = parse_args(argv)
    weights = inception_weights(args.inception_weights)
    built_in = args.real == "faces"
    real, real_names = load(None if built_in else args.real, args)
    if len(real) < 2 * args.count:
        common.fail(f"{args.real} has {len(real)} images: --count can be at most {len(real) // 2}, half against half")
    order = np.random.default_rng(0).permutation(len(real))
    reference, held_out = order[: args.count], order[args.count : 2 * args.count]
    chosen = {"real": (real, real_names, held_out)}
    for name in args.others:
        images, names = load(samples(name, args) if name in args.runs else name, args)
        if len(images) < args.count:
            common.fail(f"{name} has {len(images)} images: --count can be at most {len(images)}")
        shuffled = np.random.default_rng(1).permutation(len(images))  # 1: not the reference again
        chosen[name] = images, names, (np.arange(len(images)) if name in args.runs else shuffled)[: args.count]

    conditional = any(Path(name, "generated/labels.csv").exists() for name in args.runs)
    reals = extract(real, np.arange(len(real)))
    rows, grids, pairs = [], {}, {}
    for name, (images, names, places) in chosen.items():
        row, index = scores(reals[reference], extract(images, places), reals, places if name == "real" else None)
        if built_in and args.channels == 3:
            row |= read(images, places, asked(name, [names[i] for i in places], args) if conditional else {})
        if weights:
            row |= fidelity(Chosen(real, reference), Chosen(images, places), feature_extractor_weights_path=weights)
        rows.append({"name": name, "n": args.count} | row)
        grids[name], beside = next(blocks(images, places[:32])), next(blocks(real, index[:16].numpy()))
        pairs[name] = np.stack([grids[name][:16], beside], 1).reshape(-1, *beside.shape[1:])
    floor = rows[0]["nearest"] or math.nan  # 0 when most reals are there twice
    empty = dict.fromkeys((key for row in rows for key in row), math.nan)  # what was not asked of a run is nan
    rows = [empty | row | {"nearest": row["nearest"] / floor} for row in rows]

    versions = f"torch {torch.__version__}, numpy {np.__version__}, pillow {PIL.__version__}"
    versions += f", torch-fidelity {importlib.metadata.version('torch-fidelity')} (Inception)" if weights else ""
    about = {"real": args.real, "reals": len(real), "size": args.size, "resize": "centre crop, Lanczos"}
    about |= {"channels": args.channels, "features": f"random convolutions, {reals.shape[1]}", "versions": versions}
    wide = max(len(name) for name in chosen) + 2
    print("\n" + "; ".join(f"{key}: {value}" for key, value in about.items()) + "\n")
    print(" " * wide + "".join(f"{column:>13}" for column in list(rows[0])[1:]))
    for row in rows:
        cells = [f"{value:13d}" if isinstance(value, int) else f"{value:13.4f}" for value in list(row.values())[1:]]
        print(f"{row['name']:{wide}}" + "".join(cells))
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0] | about)
        writer.writeheader()
        writer.writerows(row | about for row in rows)
    sheet(grids, out / "samples.png")
    sheet(pairs, out / "nearest.png")
    print(f"\nwritten to {out}: table.csv, samples.png, nearest.png (pairs: an image, the nearest real)")
    return rows


if __name__ == "__main__":
    main()
