"""Which run is better? Scores and pictures of runs and of folders of images, each against the same real images.

    python compare.py faces runs/dcgan runs/wgan_gp                     # runs on the built-in faces
    python compare.py data/anime runs/dcgan runs/wgan_gp --count 5000   # runs on a folder
    python compare.py data/anime samples/of/another/project --size 64   # any folder of images

The images of a run are the first --count of its generated/. If these are too few or older than last.pt, the run's own
script draws others, into compare/generated/ of the run. Real images and samples go through the same cache as in
training: 8 bits per channel, one size. The reference is --count of the real images; as many others are the first row of
the table, which is what a perfect generator would get. What each metric detects, and how it is defined:

    FD          Detects every kind of damage, but does not say which. Frechet distance of two Gaussians fitted to the
                features (like FID, but with other features). 0 is best. It grows when --count falls, most of all when
                it falls below the number of features.
    KIDx1000    Detects the same as FD, but does not grow when --count falls. Unbiased squared MMD with the kernel
                (x y / d + 1)^3 (arXiv 1801.01401), times 1000. 0 is best (or just below).
    precision   Detects noise, blur and whatever else does not look like a real image; blind to mode collapse. Share of
                samples that are nearer to some real image than the third nearest real image is to that one (arXiv
                1904.06991).
    recall      Detects modes that are missing; blind if half of the samples collapse and the others are diverse. Share
                of real images that are nearer to some sample than the third nearest sample is to that one.
    diversity   Detects that hardly any two samples differ. Root mean square distance of the features of two samples,
                divided by that of two reals. 1 is best.
    nearest     Detects copies of the real images. Median distance to the nearest of all reals, divided by that of the
                first row. 0 if half of the samples are copies; near 1 proves nothing.
    readable    Built-in faces only: share of samples that faces.py can read as a face.
    combos      Built-in faces only, detects missing combinations: how many of the 132 combinations of hair and eyes
                are shown by at least 3 of 2,000 samples (0.15 % of --count).
    hair, ...   Conditional runs on the built-in faces: share of samples that show the hair, eyes, face or glasses that
                labels.csv asked for, among those that were asked for one. Samples that cannot be read count as wrong.
    NMI         infogan.py on the built-in faces: normalized mutual information of its category and the attribute that
                it matches best, among the samples in which that attribute can be read, times the share of such samples.
                0 by chance; at most 0.58 for glasses, 0.73 for the skin, 0.91 for hair or eyes.

Features are the means and standard deviations of the maps of a small convolutional network with fixed random weights:
nothing to download, and the same filters on every machine. They are not Inception features, so FD is not FID. With
torch-fidelity installed, --fid downloads Inception's weights once, and the table also has FID, KID, precision and
recall on Inception's features.
"""

import argparse
import collections
import csv
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
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
import labels

BATCH = 50  # images in memory at a time
BLOCK = 1000  # rows of a distance matrix in memory at a time
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"


def parse_args(argv=None) -> argparse.Namespace:
    """The flags, and what follows from the runs: runs, {folder: settings of the run}, their channels and their fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "real",
        type=common.file_name,
        help="folder of the real images, or 'faces' for the built-in ones (./faces is a folder of that name)",
    )
    parser.add_argument(
        "others", nargs="+", type=common.file_name, metavar="run_or_folder", help="folders of runs, or of images"
    )
    parser.add_argument(
        "--count",
        type=common.between(4),
        default=2000,
        help="images of each row; scores of different counts cannot be compared (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=common.image_size,
        help="width and height in pixels (default: those of the first run, or else 64)",
    )
    parser.add_argument(
        "--fid",
        action="store_true",
        help="also FID and other scores on Inception's features, by torch-fidelity; downloads its weights once (95 MB)",
    )
    parser.add_argument(
        "--inception-weights",
        metavar="FILE",
        help=f"{INCEPTION}, for FID without a download (default: the copy in torch's cache, if there is one)",
    )
    parser.add_argument(
        "--out",
        type=common.file_name,
        default="runs/compare",
        help="folder for table.csv and the two pictures (default: %(default)s)",
    )
    parser.add_argument(
        "--cache",
        type=common.file_name,
        default=common.CACHE,
        help="folder in which the decoded images are kept for later runs (default: %(default)s)",
    )
    args = parser.parse_args(argv)

    # each row of the table is found by its name
    for name in args.others:
        if name == "real":
            parser.error("real is the name of the first row of the table: write ./real for the folder of that name")
        common.need_folder(name)
        if args.others.count(name) > 1:
            parser.error(f"{name} is named twice: name each run or folder once")
    if run_settings(args.real):
        parser.error(f"{args.real} is a run: name the folder of the real images first, or faces for the built-in ones")
    if Path(args.out).exists() and not Path(args.out).is_dir():
        parser.error(f"--out {args.out} is a file: name a folder")

    # the first run decides, because scores of different sizes cannot be compared
    args.runs = {}
    for name in args.others:
        settings = run_settings(name)
        if settings:
            args.runs[name] = settings
    first = next(iter(args.runs.values()), {})
    args.size = args.size or first.get("size", 64)
    args.channels = of_all_runs(parser, args, "channels", 3)
    args.fit = of_all_runs(parser, args, "fit", "crop")
    args.batch = 1  # so that load_images asks for no more than one image
    args.samples = {}  # of each run, the folder of its samples
    args.found = {}  # what load_images finds
    return args


def of_all_runs(parser: argparse.ArgumentParser, args: argparse.Namespace, flag: str, default):
    """The value of a flag that all runs must share, because the real images of all scores are prepared by it."""
    values = {name: settings.get(flag, default) for name, settings in args.runs.items()}
    for name, value in values.items():
        first = next(iter(values))
        if value != values[first]:
            parser.error(
                f"{first} was trained with --{flag} {values[first]}, {name} with {value}: their scores cannot stand in "
                f"one table: run compare.py once for each value"
            )
    return next(iter(values.values()), default)


# --- images --------------------------------------------------------------------------------------------------------


def run_settings(folder: str) -> dict:
    """args.json of a run: the script that made it, and its flags. {} if the folder is not a run.

    Ends the process if the run cannot be sampled, because its script or its checkpoint is missing.
    """
    try:
        settings = json.loads(Path(folder, "args.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = {}
    # no args.json, or one of another project
    if "script" not in settings:
        if Path(folder, "last.pt").exists():
            common.fail(f"{folder} has a last.pt, but no args.json of a run: copy that, too, or name another folder")
        return {}

    script = f"{settings['script']}.py"
    if not Path(__file__).with_name(script).exists():
        common.fail(f"{folder} was made by {script}, which is not in the folder of compare.py: put it there")
    if not Path(folder, "last.pt").exists():
        common.fail(f"{folder} has no checkpoint last.pt yet: wait until its training has saved one")
    return settings


def samples(run: str, args) -> str:
    """The folder of a run's samples; its script draws --count of them if there are fewer, or if one is out of date."""
    checkpoint = Path(run, "last.pt")
    own = Path(run, "compare")  # what --sample or --prompt has drawn is the user's, and stays
    for folder in (Path(run, "generated"), own / "generated"):
        # samples of an older checkpoint would be scored as if they were of this one
        times = [(folder / name).stat().st_mtime for name in sample_names(folder)]
        if len(times) >= args.count and min(times) >= checkpoint.stat().st_mtime:
            return str(folder)

    script = importlib.import_module(args.runs[run]["script"])
    cache = ["--cache", args.cache]  # cyclegan.py reads images to translate
    script.main(["--out", str(own), "--checkpoint", str(checkpoint), "--sample", str(args.count), *cache])
    return str(own / "generated")


def sample_names(folder: Path) -> set[str]:
    """Names of the samples in a folder, without images that the user has put there."""
    files = {file.name for file in folder.glob("*.png")}
    listed = set(common.written(folder))
    return files & listed if listed else files  # without a list, samples were drawn elsewhere


def load(path: str | None, args) -> tuple[np.ndarray, list[str]]:
    """Images (N, C, S, S) uint8, memory-mapped, and their names, as for training; of None, the built-in faces."""
    settings = argparse.Namespace(**vars(args))
    settings.path = path
    return common.load_images(settings)


def choose_images(real: np.ndarray, real_names: list[str], args) -> tuple[np.ndarray, dict[str, tuple]]:
    """Choose the --count images of the reference and of each row of the table.

    Returns the reference, indices (count,) of real images, and for each row its images, their names, and the indices
    (count,) of those that are scored: {"real": (real, real_names, indices), "runs/dcgan": ...}.
    """
    if len(real) < 2 * args.count:
        why = "because half of them are the reference and half are the first row"
        refuse_count(f"{args.real} has {len(real)} images", len(real) // 2, f", {why}")

    # two halves without a common image: a perfect generator would score like one of them against the other
    order = np.random.default_rng(0).permutation(len(real))
    reference = order[: args.count]
    held_out = order[args.count : 2 * args.count]

    chosen = {"real": (real, real_names, held_out)}
    for name in args.others:
        folder = name
        if name in args.runs:
            folder = args.samples[name] = samples(name, args)
        images, names = load(folder, args)
        if name in args.runs:
            # the first ones, so that it does not matter whether more have been drawn
            drawn = sample_names(Path(folder))
            indices = np.array([i for i, file in enumerate(names) if file in drawn], dtype=int)
        else:
            # at random; with the seed from above, the folder of the reals would be scored against itself
            indices = np.random.default_rng(1).permutation(len(images))
        if len(indices) < args.count:
            refuse_count(f"{name} has {len(indices)} images", len(indices))
        chosen[name] = (images, names, indices[: args.count])
    return reference, chosen


def refuse_count(found: str, most: int, why: str = ""):
    """End the process at a --count of more than `most`."""
    if most < 4:
        common.fail(f"{found}: too few to be scored{why}")
    common.fail(f"{found}: --count can be at most {most}{why}")


def blocks(images: np.ndarray, indices: np.ndarray):
    """Yield the images at these indices, uint8 (n, 3, S, S), a few at a time: there may be more than memory holds."""
    for some in np.array_split(indices, math.ceil(len(indices) / BATCH)):
        yield np.repeat(images[some], 3 // images.shape[1], axis=1)  # grayscale: three equal channels


# --- features ------------------------------------------------------------------------------------------------------


@functools.cache
def filters() -> list[Tensor]:
    """Random 3x3 filters of four layers, with He's scale.

    Every second filter of the first layer sums to zero: it detects edges and noise, not colors.
    """
    random = np.random.RandomState(0)  # numpy promises that its numbers never change
    layers = []
    for c_in, c_out in itertools.pairwise((3, 16, 32, 64, 128)):
        weight = random.normal(0, math.sqrt(2 / (9 * c_in)), (c_out, c_in, 3, 3))
        layers.append(weight.astype(np.float32))

    # if no filter summed to zero, noise would have 1.5 times the FD of the reals, not 3.8 times (docs/comparing.md)
    layers[0][::2] -= layers[0][::2].mean((2, 3), keepdims=True)
    return [torch.from_numpy(layer) for layer in layers]


@torch.no_grad()
def extract(images: np.ndarray, indices: np.ndarray) -> Tensor:
    """Features (n, d) of the images at these indices: mean and standard deviation of every map of every layer.

    Four layers of 3x3 convolutions with ReLU, strides 1, 2, 2, 2, on images in [-1, 1] continued at their edges.
    """
    total = math.ceil(len(indices) / BATCH)
    features = []
    for block in tqdm(blocks(images, indices), desc="features", total=total, leave=False, unit_scale=BATCH):
        x = common.normalize(torch.from_numpy(block))  # (n, 3, S, S)
        statistics = []
        for layer, weight in enumerate(filters()):
            x = pad(x, (1, 1, 1, 1), mode="replicate")
            x = conv2d(x, weight, stride=1 if layer == 0 else 2).relu()
            statistics += [x.mean((2, 3)), x.std((2, 3))]  # (n, channels) each
        features.append(torch.cat(statistics, dim=1))
    return torch.cat(features)


# --- metrics, from features (n, d) of reals and of samples ---------------------------------------------------------


def frechet(real: Tensor, fake: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), with the means and covariances of both (arXiv 1706.08500)."""

    def root(c: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(c)
        values = values.clamp(min=0)  # rounding can make them negative
        return vectors * values.sqrt() @ vectors.T

    m1 = real.double().mean(0)
    m2 = fake.double().mean(0)
    c1 = real.double().T.cov()
    c2 = fake.double().T.cov()

    # tr (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2): no root of a matrix that is not symmetric
    cross = torch.linalg.matrix_norm(root(c1) @ root(c2), "nuc")
    return ((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * cross).item()


def kid(real: Tensor, fake: Tensor) -> float:
    """E k(x, x') + E k(y, y') - 2 E k(x, y) over all pairs of different images, k(x, y) = (x y / d + 1)^3."""

    def kernel(products: Tensor) -> Tensor:
        # in float64, because the result is a small difference of large sums
        return (products / real.shape[1] + 1).double() ** 3

    def mean(a: Tensor, b: Tensor) -> Tensor:
        total = sum(kernel(block @ b.T).sum() for block in a.split(BLOCK))
        return total / (len(a) * len(b))

    def mean_of_others(a: Tensor) -> Tensor:
        # without the pairs of an image and itself: they would make the estimate biased
        diagonal = kernel(a.square().sum(1)).mean()
        return (len(a) * mean(a, a) - diagonal) / (len(a) - 1)

    return (mean_of_others(real) + mean_of_others(fake) - 2 * mean(real, fake)).item()


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Shares of samples within a ball around a real, and of reals within a ball around a sample (arXiv 1904.06991).

    The radius of a ball is the distance from its center to the k-th nearest of its own kind.
    """

    def radii(x: Tensor) -> Tensor:
        # k + 1, because the nearest of all is the point itself
        found = [torch.cdist(block, x).kthvalue(k + 1).values for block in x.split(BLOCK)]
        return torch.cat(found)

    def covered(x: Tensor, centers: Tensor) -> float:
        # the share of x that is in the ball of at least one center
        r = radii(centers)
        inside = [(torch.cdist(block, centers) <= r).any(1) for block in x.split(BLOCK)]
        return torch.cat(inside).float().mean().item()

    return covered(fake, real), covered(real, fake)


def diversity(real: Tensor, fake: Tensor) -> float:
    """Root mean square distance of two samples, divided by that of two reals; nan if all reals are alike."""
    # the mean square distance of two points is twice the sum of the variances
    spread_real = real.double().var(0).sum()
    spread_fake = fake.double().var(0).sum()
    # of equal images, rounding leaves a trace
    if spread_real < 1e-9 * real.double().square().mean(0).sum():
        return math.nan
    return (spread_fake / spread_real).sqrt().item()


def nearest(x: Tensor, reals: Tensor, own: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """Distance to the nearest real and its index, (n,) each.

    If x are reals themselves, `own` are their indices: the nearest is then another one.
    """
    found = []
    for start in range(0, len(x), BLOCK):
        distance = torch.cdist(x[start : start + BLOCK], reals)
        if own is not None:
            # the distance of an image to itself does not count
            itself = torch.from_numpy(own[start : start + BLOCK])
            distance[torch.arange(len(distance)), itself] = math.inf
        found.append(distance.argmin(1))
    index = torch.cat(found)

    # the distance once more, because cdist rounds: that of a copy must be 0
    return (x - reals[index]).norm(dim=1), index


def scores(reference: Tensor, x: Tensor, reals: Tensor, own: np.ndarray | None = None) -> tuple[dict, Tensor]:
    """All metrics of the features x against the reference, and the index (n,) of each sample's nearest of all reals."""
    precision, recall = precision_recall(reference, x)
    distance, index = nearest(x, reals, own)
    row = {
        "FD": frechet(reference, x),
        "KIDx1000": 1000 * kid(reference, x),
        "precision": precision,
        "recall": recall,
        "diversity": diversity(reference, x),
        "nearest": distance.median().item(),
    }
    return row, index


# --- metrics of the built-in faces, from what faces.py reads in them -----------------------------------------------


def asked(name: str, files: list[str], args) -> dict[str, np.ndarray]:
    """What the images of a row were asked to show: {"hair": array(["aqua", ...]), ...}, one entry for each of `files`.

    Of a run, the columns of its labels.csv, and hair and eyes of its captions. Of the real faces, whose files are
    numbers, what the painter chose. {} if nothing was asked. "" stands for what an image was not asked for. An image
    without a row in labels.csv gets None: that is printed, and it counts as disobeyed.
    """
    columns = {}
    if name == "real":
        looks = [common.face_attributes(file) for file in files]
        for key in faces.ATTRIBUTES:
            columns[key] = np.array([look[key] for look in looks])
        return columns

    if name not in args.runs or not Path(args.samples[name], "labels.csv").exists():
        return {}
    unread = set(args.runs[name].get("groups") or {}) - set(faces.ATTRIBUTES)
    if unread:
        print(f"{name}: {', '.join(sorted(unread))} cannot be read by faces.py, and is not scored")

    rows = {}
    table = Path(args.samples[name], "labels.csv")
    for row in csv.DictReader(io.StringIO(labels.read_whole(str(table)), newline="")):
        if "image" not in row:
            common.fail(f"{table} has no column image: draw the samples once more, or remove this file")
        # a caption also says the colors that it names: "aqua hair red eyes"
        rows[row["image"]] = row | dict(labels.tags(row.get("caption") or ""))

    without_row = [file for file in files if file not in rows]
    if without_row:
        print(f"{name}: {len(without_row)} of {len(files)} samples have no row in labels.csv, {without_row[0]} first")
    without_file = [image for image in rows if not Path(args.samples[name], image).exists()]
    if without_file:
        print(f"{name}: {len(without_file)} rows of labels.csv name a missing file, {without_file[0]} first")

    # by name of the image: labels.csv need not be in the order of the images
    for key in dict.fromkeys(key for row in rows.values() for key in row):
        columns[key] = np.array([(rows[file].get(key) or "") if file in rows else None for file in files])
    return columns


def shared_information(a: np.ndarray, b: np.ndarray) -> float:
    """Normalized mutual information I(a; b) / (H(a) H(b))^(1/2) of two columns of names."""

    def entropy(*columns: np.ndarray) -> float:
        counts = collections.Counter(zip(*columns, strict=True))
        p = np.array(list(counts.values())) / len(a)
        return -(p * np.log(p)).sum()

    # I(a; b) = H(a) + H(b) - H(a, b); it is 0 where a column has only one value, and so is the divisor
    information = entropy(a) + entropy(b) - entropy(a, b)
    return information / max(math.sqrt(entropy(a) * entropy(b)), 1e-12)


def read(images: np.ndarray, indices: np.ndarray, wanted: dict[str, np.ndarray] | None = None) -> dict[str, float]:
    """The metrics readable and combos, and, for what was `wanted`, the shares of hair, eyes, ... and NMI."""
    wanted = wanted or {}
    # a few images at a time, (n, 3, S, S) -> (n, S, S, 3)
    parts = [faces.read_attributes(block.transpose(0, 2, 3, 1)) for block in blocks(images, indices)]
    seen = {}
    for name in parts[0]:
        seen[name] = np.concatenate([part[name] for part in parts])

    # a combination counts only if it is more than an accident
    named = seen["readable"] & (seen["hair"] != "unreadable") & (seen["eyes"] != "unreadable")
    counts = collections.Counter(zip(seen["hair"][named], seen["eyes"][named], strict=True))
    enough = 3 * len(indices) / 2000
    row = {
        "readable": seen["readable"].mean(),
        "combos": sum(n >= enough for n in counts.values()),
    }

    # shares of the images that were asked for it: one that cannot be read shows nothing
    for name in faces.ATTRIBUTES:
        if name in wanted and (wanted[name] != "").any():
            was_asked = wanted[name] != ""
            row[name] = (seen[name] == wanted[name])[was_asked].mean()
    if "category" in wanted:
        row["NMI"] = category_information(wanted["category"], seen)
    return row


def category_information(category: np.ndarray, seen: dict[str, np.ndarray]) -> float:
    """The metric NMI, of infogan.py's category and all attributes that were read."""
    found = []
    for name in faces.ATTRIBUTES:
        clear = seen[name] != "unreadable"
        if clear.any():
            # times the share, so that an attribute that few samples show counts little
            found.append(clear.mean() * shared_information(category[clear], seen[name][clear]))
    return max(found, default=0.0)


# --- metrics of torch-fidelity, on Inception's features ------------------------------------------------------------


class Chosen(torch.utils.data.Dataset):
    """The images at these indices as torch-fidelity takes them: uint8 (3, S, S)."""

    def __init__(self, images: np.ndarray, indices: np.ndarray):
        self.images = images
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Tensor:
        block = next(blocks(self.images, self.indices[i : i + 1]))
        return torch.from_numpy(block[0])


def fidelity(real: Chosen, fake: Chosen, **extractor) -> dict[str, float]:
    """FID, KID (of at most 5,000 images), precision and recall by torch-fidelity, on Inception's features."""
    from torch_fidelity import calculate_metrics  # here, because it need not be installed

    options = {
        "feature_extractor": "inception-v3-compat",  # also for prc, whose default is a VGG
        "fid": True,
        "kid": True,
        "kid_subsets": 1,  # one large subset instead of many small ones
        "kid_subset_size": min(len(fake), 5000),
        "prc": True,
        "prc_batch_size": BLOCK,
        "cuda": torch.cuda.is_available(),
        "cache": False,
        "save_cpu_ram": True,  # a block of distances at a time, and no worker processes
        "verbose": False,
    }
    # the samples come first: precision is the share of input1
    found = calculate_metrics(input1=fake, input2=real, **(options | extractor))
    return {
        "FID": found["frechet_inception_distance"],
        "IncKIDx1000": 1000 * found["kernel_inception_distance_mean"],
        "Inc.prec": found["precision"],
        "Inc.recall": found["recall"],
    }


def inception_weights(given: str | None, fid: bool) -> str | None:
    """The file of Inception's weights, --inception-weights or that in torch's cache, if torch-fidelity can be used.

    With `fid`, it is downloaded if it is not there, and the process ends if FID is not possible. Otherwise prints what
    is missing and returns None. Ends the process if the file is not what it should be.
    """
    path = Path(given or Path(torch.hub.get_dir(), "checkpoints", INCEPTION))
    if given and not path.is_file():
        common.fail(f"--inception-weights {given} is not a file: download {INCEPTION_URL}")
    if importlib.util.find_spec("torch_fidelity") is None:
        if fid:
            common.fail('--fid needs torch-fidelity: pip install "torch-fidelity>=0.4"')
        print('no FID: it needs `pip install "torch-fidelity>=0.4"`, and then --fid')
        return None
    if not path.is_file():
        if not fid:
            print("no FID: add --fid to download Inception's weights (95 MB)")
            return None
        download(path)

    # the name ends with the first digits of the file's SHA-256
    expected = INCEPTION[-12:-4]
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(expected):
        common.fail(f"{path} is damaged or not the expected file: download {INCEPTION_URL}")
    return str(path)


def download(path: Path):
    """Download Inception's weights to `path`. Ends the process with code 1 where there is no network."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix=INCEPTION[-12:-4])
    except (OSError, RuntimeError) as error:  # urllib's errors are of the first kind, a wrong hash is of the second
        reason = getattr(error, "reason", None) or error
        common.fail(
            f"--fid cannot download {INCEPTION_URL} ({reason}): download it elsewhere and pass the file with "
            f"--inception-weights",
            code=1,
        )


# --- table and pictures --------------------------------------------------------------------------------------------


def score_rows(reference: np.ndarray, chosen: dict[str, tuple], weights: str | None, args) -> tuple[list[dict], dict]:
    """The rows of the table, and for each row the indices (count,) of the reals that are nearest to its images."""
    # of all reals, not only of the reference: a copy of any of them must be found
    real, _, _ = chosen["real"]
    features = extract(real, np.arange(len(real)))

    # if no run was asked for anything, the table needs no columns of hair, eyes, ...
    conditional = any(Path(folder, "labels.csv").exists() for folder in args.samples.values())

    rows = []
    neighbors = {}
    for name, (images, names, indices) in chosen.items():
        own = indices if name == "real" else None  # a real must not find itself
        row, neighbors[name] = scores(features[reference], extract(images, indices), features, own)
        if args.real == "faces" and args.channels == 3:  # the reader needs colors
            wanted = asked(name, [names[i] for i in indices], args) if conditional else {}
            row |= read(images, indices, wanted)
        if weights:
            row |= fidelity(Chosen(real, reference), Chosen(images, indices), feature_extractor_weights_path=weights)
        rows.append({"name": name, "n": args.count} | row)

    floor = rows[0]["nearest"] or math.nan  # 0 when most reals are there twice
    empty = dict.fromkeys((key for row in rows for key in row), math.nan)  # what was not asked of a run is nan
    rows = [empty | row | {"nearest": row["nearest"] / floor} for row in rows]
    return rows, neighbors


def describe_setup(real: np.ndarray, weights: str | None, args) -> dict:
    """What the scores depend on: they can be compared only where all of this is the same."""
    versions = f"torch {torch.__version__}, numpy {np.__version__}, pillow {PIL.__version__}"
    if weights:
        versions += f", torch-fidelity {importlib.metadata.version('torch-fidelity')} (Inception)"
    features = 2 * sum(len(layer) for layer in filters())  # a mean and a standard deviation for each map
    return {
        "real": args.real,
        "reals": len(real),
        "size": args.size,
        "resize": {"crop": "center crop, Lanczos"}.get(args.fit, f"{args.fit}, Lanczos"),
        "channels": args.channels,
        "features": f"random convolutions, {features}",
        "versions": versions,
    }


def print_table(rows: list[dict], about: dict):
    """Print what the scores depend on, then a line for each row."""
    wide = max(len(row["name"]) for row in rows) + 2
    columns = list(rows[0])[1:]  # without the name
    print("\n" + "; ".join(f"{key}: {value}" for key, value in about.items()) + "\n")
    print(" " * wide + "".join(f"{column:>13}" for column in columns))
    for row in rows:
        values = [row[column] for column in columns]
        cells = [f"{value:13d}" if isinstance(value, int) else f"{value:13.4f}" for value in values]
        print(f"{row['name']:{wide}}" + "".join(cells))


def write_table(file: Path, rows: list[dict], about: dict):
    """Write the rows as CSV, with `about` in each of them."""
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, rows[0] | about)
    writer.writeheader()
    writer.writerows(row | about for row in rows)
    common.atomic(file, lambda stream: stream.write(lines.getvalue().encode()))


def sheet(columns: dict[str, np.ndarray], file: Path, wide: int = 4):
    """Write one picture: a column for each name, with its images (n, 3, S, S) `wide` beside each other."""
    # small images are enlarged by a whole number, so that their pixels stay sharp squares
    size = next(iter(columns.values())).shape[2]
    enlarged = size * max(1, 64 // size)
    side = enlarged + 2  # of an image and the space to the next one
    column = wide * side + 16  # with a margin of 8 on both sides; above it, 24 for the name
    tall = max(math.ceil(len(images) / wide) for images in columns.values())
    canvas = Image.new("RGB", (len(columns) * column, 24 + tall * side), "white")
    pen = ImageDraw.Draw(canvas)

    for k, (name, images) in enumerate(columns.items()):
        left = k * column + 8
        end = name[-wide * side // 8 :]  # the part of a long name that tells it from others, 8 pixels a letter
        pen.text((left, 4), end, fill="black")
        for i, image in enumerate(images):
            row, place = divmod(i, wide)
            tile = Image.fromarray(image.transpose(1, 2, 0))
            tile = tile.resize((enlarged, enlarged), Image.Resampling.NEAREST)
            canvas.paste(tile, (left + place * side, 24 + row * side))
    common.atomic(file, functools.partial(canvas.save, format="PNG"))


def draw_pictures(out: Path, chosen: dict[str, tuple], neighbors: dict[str, Tensor]):
    """Write samples.png, 32 images of each row, and nearest.png, 16 of them, each with its nearest real beside it."""
    real, _, _ = chosen["real"]
    grids = {}
    pairs = {}
    for name, (images, _, indices) in chosen.items():
        grids[name] = next(blocks(images, indices[:32]))
        beside = next(blocks(real, neighbors[name][:16].numpy()))
        # (16, 2, 3, S, S) -> (32, 3, S, S): image, its neighbor, image, its neighbor, ...
        pairs[name] = np.stack([grids[name][:16], beside], 1).reshape(-1, *beside.shape[1:])
    sheet(grids, out / "samples.png")
    sheet(pairs, out / "nearest.png")


def main(argv=None) -> list[dict]:
    args = parse_args(argv)
    # first, so that it does not fail after hours of work
    weights = inception_weights(args.inception_weights, args.fid)
    files = ["table.csv", "samples.png", "nearest.png"]
    with (
        common.ends_with("nothing was compared; samples that were drawn stay"),
        common.claim(Path(args.out), files),
    ):
        return compare(args, weights)


def compare(args: argparse.Namespace, weights: str | None) -> list[dict]:
    """Score all rows, write the table and the pictures to --out, and print the table."""
    real, names = load(None if args.real == "faces" else args.real, args)
    reference, chosen = choose_images(real, names, args)
    rows, neighbors = score_rows(reference, chosen, weights, args)

    about = describe_setup(real, weights, args)
    out = Path(args.out)
    write_table(out / "table.csv", rows, about)
    draw_pictures(out, chosen, neighbors)
    print_table(rows, about)  # last: a terminal may fail to show the name of a folder
    print(f"\nwritten to {out}: table.csv, samples.png, nearest.png (pairs: an image, the nearest real)")
    return rows


if __name__ == "__main__":
    main()
