"""Images in, files out: the one module that all scripts share.

Before a batch: the command-line flags, finding images, decoding, cropping, normalizing, and the order of the images.
After a step: the log, sample grids, the GIF and the checkpoint files. Anything that could change the weights that the
same batches lead to is not here but in the scripts.
"""

import argparse
import csv
import functools
import hashlib
import io
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from PIL import Image, ImageOps
from torchvision.utils import make_grid, save_image
from tqdm import tqdm

import faces

FACES = 10_000  # built-in faces to train on: numbers 0 to 9,999 of seed 0
GRID = 64  # images in real.png and in each samples/*.png
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CACHE = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gan-scripts")

# Flags that --resume and --sample do not take from the checkpoint, because they belong to one start of the script.
NOT_FROM_CHECKPOINT = {
    "out",
    "cache",
    "device",
    "resume",
    "checkpoint",
    "sample",
    "sample_mode",
    "sample_labels",  # acgan.py
    "prompt",  # cgan_text2img.py
    "prompts",
    "translate",  # cyclegan.py
    "reverse",
    "weights",
}


def fail(message: str, code: int = 2):
    """End the process with one sentence on stderr. Code 2: bad usage or input; code 1: something went wrong later."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


def is_main_process() -> bool:
    """True in the one process, of all machines, that writes files and prints messages."""
    return int(os.environ.get("RANK", 0)) == 0


# --- flags ---------------------------------------------------------------------------------------------------------


def between(low, high=math.inf):
    """A type for argparse: a number of the same type as `low`, from `low` to `high`.

    between(1) takes integers from 1 on; between(0.0, 1.0) takes real numbers from 0 to 1.
    """
    allowed = f"at least {low}" if high == math.inf else f"from {low} to {high}"

    def number(text: str):
        value = type(low)(text)
        if not low <= value <= high:  # also true for nan
            raise argparse.ArgumentTypeError(f"must be {allowed}, not {text}")
        return value

    return number


def image_size(text: str) -> int:
    """A type for argparse: 4, 5, 6 or 7 times a power of two, so that halving it ends at a map 4 to 7 pixels wide."""
    # from 16 (4 times 4) to 1792 (7 times 256)
    size = int(text)
    valid = [base * 2**level for level in range(2, 9) for base in (4, 5, 6, 7)]
    if size not in valid:
        by_distance = sorted(valid, key=lambda other: abs(other - size))
        a, b = sorted(by_distance[:2])
        raise argparse.ArgumentTypeError(
            f"{text} is not 4, 5, 6 or 7 times a power of two from 4 to 256: the nearest sizes are {a} and {b}"
        )
    return size


def add_data_flags(
    parser: argparse.ArgumentParser,
    labels: bool = False,
    path: str = "folder of images, searched at any depth",
):
    """Add the flags that load_images and Batches read; `labels` adds --labels."""
    group = parser.add_argument_group("data")
    group.add_argument("--path", help=f"{path}; None: built-in faces and the preset of the script")
    group.add_argument(
        "--size",
        type=image_size,
        default=64,
        help="width and height in pixels of the cropped images: 4, 5, 6 or 7 times a power of two; larger is slower",
    )
    group.add_argument("--channels", type=int, choices=(1, 3), default=3, help="1: grayscale images, 3: color images")
    group.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="mirror images left to right at random, which doubles the data where left and right do not matter",
    )
    if labels:
        group.add_argument("--labels", help="label file; None: the only one inside or next to --path")
    group.add_argument("--cache", default=CACHE, help="folder in which the decoded images are kept for later runs")


def add_output_flags(parser: argparse.ArgumentParser, script: str, batchnorm: bool = True):
    """Add the flags that Run, write_samples and parse read; `batchnorm` adds --sample-mode."""
    group = parser.add_argument_group("output")
    group.add_argument("--out", default=f"runs/{Path(script).stem}", help="folder for everything that this run writes")
    group.add_argument(
        "--log-every", type=between(1), default=50, help="steps between two rows of log.csv and TensorBoard"
    )
    group.add_argument(
        "--save-every", type=between(1), default=500, help="steps between two checkpoints, each with a sample grid"
    )
    group.add_argument(
        "--keep", type=between(0), default=3, help="how many of the newest checkpoints to keep; last.pt always stays"
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="continue from --checkpoint; flags that are not given are taken from it",
    )
    group.add_argument(
        "--sample", type=between(1), metavar="N", help="write N generated images to OUT/generated instead of training"
    )
    if batchnorm:
        group.add_argument(
            "--sample-mode",
            choices=("eval", "batch"),
            default="eval",
            help="BatchNorm statistics for --sample: running averages (eval) or those of each batch (batch)",
        )
    group.add_argument("--checkpoint", help="checkpoint for --resume and --sample; None: OUT/last.pt")


def flags_given(parser: argparse.ArgumentParser, argv) -> set[str]:
    """Names of the flags that stand on the command line, whatever their values.

    Parsing starts from a namespace that already holds a marker for every flag. argparse sets a default only where
    nothing is there yet, so what is no longer the marker was given by the user.
    """
    marker = object()
    names = vars(parser.parse_args(argv))
    names.pop("prompt", None)  # a list that argparse would append to the marker
    found = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, marker))))
    return {name for name, value in found.items() if value is not marker}


def parse(parser, argv, script: str, preset: dict, architecture: tuple[str, ...]) -> argparse.Namespace:
    """Parse the flags of a script. Each value comes from the first of these that has it:

    1. the command line,
    2. the checkpoint, with --resume or --sample,
    3. the preset, without --path,
    4. the default.

    Flags in `architecture` change the networks: a value that contradicts the checkpoint is an error. So is an --out
    that already holds another run. Errors end the process with code 2.
    """
    args = parser.parse_args(argv)
    given = flags_given(parser, argv)
    args.script = Path(script).stem
    args.preset = False

    if args.resume or args.sample:
        take_from_checkpoint(parser, args, given, architecture)
    elif args.checkpoint:
        parser.error("--checkpoint needs --resume or --sample: add one of them, or leave out --checkpoint")
    elif args.path is None:
        args.preset = True
        for name, value in preset.items():
            if name not in given:
                setattr(args, name, value)

    # absolute, because they are stored in the checkpoint: --resume may be called from another directory
    for name in ("path", "labels", "embeddings"):
        if vars(args).get(name):
            setattr(args, name, os.path.abspath(getattr(args, name)))

    refuse_to_overwrite(parser, args)
    return args


def take_from_checkpoint(parser, args: argparse.Namespace, given: set[str], architecture: tuple[str, ...]):
    """Complete `args` by the flags that --checkpoint was trained with."""
    if not args.checkpoint:
        args.checkpoint = str(Path(args.out) / "last.pt")
    checkpoint = read_checkpoint(args.checkpoint, args.script)
    saved = checkpoint["args"]

    # flags that both know: a checkpoint of an older version may have fewer
    names = saved.keys() & vars(args).keys() - NOT_FROM_CHECKPOINT
    for name in sorted(names):
        if name not in given:
            setattr(args, name, saved[name])
        elif name in architecture and getattr(args, name) != saved[name]:
            flag = f"--{name.replace('_', '-')}"
            parser.error(
                f"{flag} {getattr(args, name)} is not possible, because {args.checkpoint} has {saved[name]}: "
                f"leave it out or start a new run"
            )

    if args.resume and checkpoint["step"] >= args.steps:
        parser.error(
            f"{args.checkpoint} is at step {checkpoint['step']}, and --steps is {args.steps}: raise --steps to continue"
        )


def refuse_to_overwrite(parser, args: argparse.Namespace):
    """Stop if --out holds a run that this start would overwrite."""
    out = Path(args.out)
    if args.sample or not is_main_process():  # the main process may have begun to write already
        return
    if args.resume and out.resolve() in Path(args.checkpoint).resolve().parents:
        return
    if (out / "last.pt").exists() or (out / "log.csv").exists():
        parser.error(f"{out} already holds a run: continue it with --resume, or choose another folder with --out")


# --- images in -----------------------------------------------------------------------------------------------------


def is_run(folder: str) -> bool:
    """Whether a folder is the output folder of a run, whose samples must not become training images."""
    files = [Path(folder, name) for name in ("args.json", "log.csv", "last.pt")]
    return sum(file.exists() for file in files) >= 2  # one of these names alone may be the user's


def find_images(folder: str, out: str) -> list[str]:
    """Paths of the images below `folder`, relative to it and sorted.

    Hidden files and folders are left out, and so is everything below `out` and in the folders of other runs, where
    scripts write images of their own. Folders of runs, and folders that cannot be read, are named.
    """
    names = []
    runs = []
    unreadable = []
    seen = {os.path.realpath(folder), os.path.realpath(out)}  # real paths, so that loops of links end
    for root, folders, files in os.walk(folder, followlinks=True, onerror=unreadable.append):
        # nothing below the folder of a run is looked at
        if root != folder and is_run(root):
            runs.append(root)
            folders.clear()
            continue

        # os.walk continues with the folders that are left in this list
        real = {name: os.path.realpath(os.path.join(root, name)) for name in folders}
        folders[:] = [name for name in folders if not name.startswith(".") and real[name] not in seen]
        seen.update(real.values())

        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                names.append(os.path.relpath(os.path.join(root, name), folder))

    if is_main_process():
        if runs:
            print(f"left out: the images in the folders of runs, {some_of(sorted(runs))}", file=sys.stderr)
        if unreadable:
            reasons = [f"{error.filename} ({error.strerror})" for error in unreadable]
            print(f"left out: folders that cannot be read, {some_of(sorted(reasons))}", file=sys.stderr)
    return sorted(names)


def some_of(names: list[str]) -> str:
    """The first 20 of some names, separated by commas, and "..." if there are more."""
    shown = names[:20]
    if len(names) > 20:
        shown.append("...")
    return ", ".join(shown)


def pixels(image: Image.Image, channels: int) -> np.ndarray:
    """A Pillow image -> (C, H, W) uint8, grayscale for one channel, RGB for three."""
    array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    height, width = array.shape[:2]
    return array.reshape(height, width, channels).transpose(2, 0, 1)


def paint(name: str, size: int, channels: int) -> np.ndarray:
    """The built-in face with that number -> (C, S, S) uint8."""
    image, _ = faces.paint(0, int(name), size)
    return pixels(image, channels)


def face_attributes(name: str) -> dict[str, str]:
    """What the built-in face with that number shows: {"hair": "aqua", "eyes": "red", ...}."""
    return faces.describe(np.random.default_rng([0, int(name)]))


def open_image(file: Path, draft: int | None = None) -> Image.Image:
    """Open an image file as RGB, rotated as its EXIF data says, with transparent parts on a white background.

    With `draft`, a JPEG much larger than that many pixels is decoded at a half, a quarter or an eighth of its size,
    but never smaller than `draft`: much faster. Raises what Pillow raises, mostly OSError.
    """
    if not file.is_file():
        raise OSError("not a regular file")
    with Image.open(file) as image:
        if draft:
            image.draft(None, (draft, draft))
        image = ImageOps.exif_transpose(image)

        if image.mode.startswith("I"):
            # 16 bits a pixel: keep the upper 8, where Pillow's own conversion would clip at 255
            values = np.asarray(image).astype(np.int64) >> 8
            image = Image.fromarray(values.clip(0, 255).astype(np.uint8))

        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")


def decode(name: str, size: int, channels: int, folder: str = "") -> np.ndarray:
    """An image file -> (C, S, S) uint8: cropped to the central square, then resized."""
    image = open_image(Path(folder, name), draft=2 * size)
    square = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return pixels(square, channels)


def load_images(args: argparse.Namespace) -> tuple[np.ndarray, list[str]]:
    """Images of --path, or the built-in faces: uint8 (N, C, S, S), memory-mapped from the cache, and their names.

    The first start decodes all images into a cache folder; later starts map that into memory at once. Files that
    cannot be read are skipped, and named at every start. Ends the process if there is no folder, no image that can
    be read, or fewer images than a batch.
    """
    # what the images are, a function that makes one, and all that the decoded images depend on
    if args.path is None:
        where = "the built-in data"
        source = "faces"
        names = [str(i) for i in range(FACES)]
        make = paint
        painter = Path(faces.__file__).read_text(encoding="utf-8")
        content = f"{FACES} {painter}"
    else:
        where = f"--path {args.path}"
        source = os.path.realpath(args.path)
        names = image_names(args)
        make = functools.partial(decode, folder=args.path)
        content = repr([(name, size_and_time(Path(args.path, name))) for name in names])

    # One folder for each source and size of images. The key changes when any file does; the old cache then goes.
    # "v1" is the version of decode(): another version needs another number.
    slot = digest(source)
    key = digest(content)
    final = Path(args.cache) / f"{slot}-{args.size}-{args.channels}-v1-{key}"
    make = functools.partial(make, size=args.size, channels=args.channels)
    image_bytes = args.channels * args.size**2
    good, bad = ensure_cache(final, image_bytes, names, make)
    if bad and is_main_process():
        print_skipped(bad, len(names))
    if len(good) < args.batch:
        fail(f"{where} has {len(good)} images, fewer than a batch of {args.batch}: add images or lower --batch")

    # mode "c": writing to the array changes memory, never the file
    shape = (len(good), args.channels, args.size, args.size)
    return np.memmap(final / "images.u8", np.uint8, mode="c", shape=shape), good


def image_names(args: argparse.Namespace) -> list[str]:
    """Names of the images of --path; ends the process if it is not a folder with images."""
    folder = Path(args.path)
    if not folder.exists():
        fail(f"the folder {args.path} does not exist: choose a folder of images")
    if not folder.is_dir():
        fail(f"{args.path} is not a folder: choose a folder of images")
    if is_run(args.path):
        fail(f"{args.path} is the folder of a run, whose samples must not become training images: choose another")
    if folder.resolve() == Path(args.out).resolve():
        fail(
            f"--out {args.out} is the folder of the images: choose another, so that no sample becomes a training image"
        )
    names = find_images(args.path, args.out)
    if not names:
        fail(f"{args.path} holds no image: looked for {' '.join(SUFFIXES)} in it and in all its sub-folders")
    return names


def size_and_time(file: Path) -> tuple[int, int] | None:
    """Bytes, and time of the last change in nanoseconds, of a file; None if they cannot be read (a link to nothing)."""
    try:
        stat = os.stat(file)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def digest(text: str) -> str:
    """12 hexadecimal digits that practically never agree for two different texts."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def print_skipped(bad: dict[str, str], total: int):
    """Print how many files cannot be read, and the first 20 with the reason."""
    named = [f"{name!r} ({reason})" for name, reason in bad.items()]
    print(f"skipped {len(bad)} of {total} files because they cannot be read: {some_of(named)}", file=sys.stderr)


def ensure_cache(final: Path, image_bytes: int, names: list[str], make) -> tuple[list[str], dict[str, str]]:
    """Names of the images in the cache, and {name: reason} of the files that cannot be read; builds it if need be.

    The first process of each machine decodes, the others wait for it.
    """
    index = read_index(final, image_bytes)
    while index is None and int(os.environ.get("LOCAL_RANK", 0)):
        time.sleep(0.1)
        index = read_index(final, image_bytes)
    if index is not None:
        return index

    try:
        build_cache(final, image_bytes, names, make)
    except OSError as error:
        fail(
            f"cannot write to the cache {final.parent} ({error.strerror}): "
            f"make room or change its permissions, or choose another folder with --cache",
            code=1,
        )
    return read_index(final, image_bytes)


def read_index(final: Path, image_bytes: int) -> tuple[list[str], dict[str, str]] | None:
    """What index.json lists; None if the cache is not there, or not complete, as after a power cut."""
    # index.json may be torn, and images.u8 may be shorter than it says
    try:
        good, bad = json.loads((final / "index.json").read_text())
        size = (final / "images.u8").stat().st_size
    except (OSError, ValueError):
        return None
    return (good, bad) if size == len(good) * image_bytes else None


def build_cache(final: Path, image_bytes: int, names: list[str], make):
    """Decode all images in parallel into final/images.u8; remove older caches of the same source and size.

    `make(name)` returns an image, (C, S, S) uint8. index.json lists the names of the images in their order, and the
    files that could not be read with the reason. Everything is written to a temporary folder that is renamed at the
    end, so that no other process ever sees half a cache. Uses constant memory. Raises OSError if the disk is full.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_dead_builds(final.parent)
    temporary = Path(tempfile.mkdtemp(prefix="building-", dir=final.parent))
    try:
        good, bad = decode_all(temporary / "images.u8", names, make)
        if not good:
            first = names[0]
            fail(f"none of the {len(names)} image files can be read ({first!r}: {bad[first]}): choose other images")
        with open(temporary / "index.json", "w") as file:
            json.dump([good, bad], file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o755)  # mkdtemp lets nobody else read it
        move_into_place(temporary, final, image_bytes)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

    # what was decoded before the folder of images changed
    without_key = final.name.rsplit("-", 1)[0]
    for old in final.parent.glob(f"{without_key}-*"):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)


def remove_dead_builds(cache: Path):
    """Remove what killed processes left of their builds: folders to which nothing was written for an hour."""
    # a build that is still going on writes to its file all the time
    for folder in cache.glob("building-*"):
        times = [file.stat().st_mtime for file in (folder, *folder.glob("*"))]
        if max(times) < time.time() - 3600:
            shutil.rmtree(folder, ignore_errors=True)


def decode_all(path: Path, names: list[str], make) -> tuple[list[str], dict[str, str]]:
    """Write all images one after another to `path`: returns the names written, and {name: reason} of all others."""

    def attempt(name: str) -> np.ndarray | str:
        try:
            return make(name)
        except Exception as error:  # damaged files raise anything; they are named with the reason
            return str(error) if type(error) is OSError else type(error).__name__

    good = []
    bad = {}
    with open(path, "wb") as file, ThreadPool() as pool:
        # in groups, because the pool would decode ahead of the disk without limit
        for start in tqdm(range(0, len(names), 512), desc="decoding", unit_scale=512, unit="img"):
            group = names[start : start + 512]
            for name, image in zip(group, pool.map(attempt, group), strict=True):
                if isinstance(image, str):
                    bad[name] = image
                else:
                    good.append(name)
                    file.write(image.tobytes())
        # on disk before index.json says that it is complete
        file.flush()
        os.fsync(file.fileno())
    return good, bad


def move_into_place(temporary: Path, final: Path, image_bytes: int):
    """Rename a finished cache folder, unless a run that started at the same time was faster."""
    try:
        temporary.rename(final)
    except OSError:
        if read_index(final, image_bytes) is not None:
            return
        # what is left of a cache that was deleted half-way, or that a power cut tore
        print(f"the cache {final} was not complete: the images were decoded again", file=sys.stderr)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)


# --- batches -------------------------------------------------------------------------------------------------------


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 from 0 to 255 -> float32 from -1 to 1."""
    return images.float().div_(127.5).sub_(1)


class Batches:
    """An endless stream of batches (batch / world, C, S, S), float32 in [-1, 1], on the device.

    The stream is a pure function of (seed, position, rank, world), so that it can be continued at any position. An
    epoch is a random permutation of all images, cut into whole batches of --batch; of each batch, rank r takes
    images r, r + world, r + 2 world, ...

    With `rows`, only these images are drawn. With `labels` as well, a tensor with one entry for each of `rows`, a
    batch is (images, labels).
    """

    def __init__(self, images: np.ndarray, args: argparse.Namespace, rank: int, world: int, rows=None, labels=None):
        self.images = torch.from_numpy(images)
        self.rows = np.arange(len(images)) if rows is None else rows  # the images that are drawn
        self.labels = labels
        self.device = args.device
        self.seed = args.seed
        self.batch = args.batch  # over all ranks
        self.flip = args.flip
        self.mine = slice(rank, None, world)  # this rank's share of a batch

        self.position = 0  # batches drawn so far, in all epochs
        self.epoch = -1  # the epoch of `permutation`
        self.permutation = None

        if len(self.rows) < args.batch:
            fail(f"there are {len(self.rows)} training images, fewer than a batch of {args.batch}: lower --batch")
        # keep all images on the GPU if they leave most of its free memory to the networks
        if "cuda" in args.device and images.nbytes < 0.4 * torch.cuda.mem_get_info(args.device)[0]:
            self.images = self.images.to(args.device)

    def state_dict(self) -> dict:
        return {"position": self.position}

    def load_state_dict(self, state: dict):
        self.position = state["position"]

    def __next__(self) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        # batch k of the epoch, which has only whole batches
        epoch, k = divmod(self.position, len(self.rows) // self.batch)
        if self.epoch != epoch:
            self.epoch = epoch
            self.permutation = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        self.position += 1

        # this rank's share: chosen counts within `rows`, rows within all images
        chosen = self.permutation[k * self.batch : (k + 1) * self.batch][self.mine]
        rows = torch.from_numpy(self.rows[chosen])
        x = self.images[rows.to(self.images.device)]
        if x.device.type == "cpu" and "cuda" in self.device:
            x = x.pin_memory().to(self.device, non_blocking=True)  # copies while the GPU computes
        x = normalise(x.to(self.device))

        if self.flip:
            # coins of the whole batch, so that they do not depend on the number of ranks
            coins = np.random.default_rng([self.seed, epoch, k]).integers(0, 2, self.batch, dtype=np.uint8)
            mirrored = torch.from_numpy(coins[self.mine]).bool().to(self.device)
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)

        if self.labels is None:
            return x
        return x, self.labels[torch.from_numpy(chosen)].to(self.device)


# --- checkpoints ---------------------------------------------------------------------------------------------------


def atomic(path: Path, write):
    """Call `write(file)` on a temporary file, then rename that to `path`.

    At every moment `path` is complete, either the old file or the new one, even if the process is killed or the
    power fails. Ends the process with code 1 if the file cannot be written; the old one is then untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # on disk before the name points to it
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        fail(f"cannot write {path} ({reason}): make room or change --out; an older file is intact", code=1)


def read_checkpoint(path: str, script: str) -> dict:
    """Read a checkpoint of `script`: {"step": int, "args": dict of flags, "state": dict of state_dicts}.

    No code that the file might hold is run (weights_only). Ends the process if there is no such file, or if it is
    damaged or of another script.
    """
    if not Path(path).is_file():
        fail(f"there is no checkpoint {path}: choose one with --checkpoint, or the folder of a run with --out")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        owner = saved["script"]
        checkpoint = {"step": int(saved["step"]), "args": dict(saved["args"]), "state": dict(saved["state"])}
    except Exception as error:  # whatever the file holds instead, the user needs the same sentence
        fail(
            f"{path} is damaged or not a checkpoint of this project ({type(error).__name__}): "
            f"choose another file with --checkpoint"
        )
    if owner != script:
        fail(f"{path} is a checkpoint of {owner}.py, not of {script}.py: choose another or use {owner}.py")
    return checkpoint


# --- files out -----------------------------------------------------------------------------------------------------


def save_png(images: torch.Tensor, file):
    """Write one image (C, H, W), or a grid of images (N, C, H, W), in [-1, 1]; values outside are clipped."""
    save_image(images, file, format="png", normalize=True, value_range=(-1, 1))


def write_samples(args: argparse.Namespace, generate, labels: list[dict[str, str]] = ()):
    """Write --sample images to OUT/generated, in place of those of an earlier --sample.

    `generate()` returns the next images, (n, C, S, S) in [-1, 1]. Files are named 00000.png, 00001.png, ... `labels`
    says what each image was asked to show, {"hair": "aqua", ...}, and is written to labels.csv beside the images; an
    entry "image" in it sets the name of the file. `generate()` may add to `labels` as it goes.
    """
    if not is_main_process():
        return
    # none of an earlier call may stay: compare.py takes all images of this folder
    folder = Path(args.out) / "generated"
    for old in [*folder.glob("*.png"), *folder.glob("labels.csv")]:
        old.unlink()

    rows = []
    with tqdm(total=args.sample, desc=str(folder), unit="img") as bar:
        while len(rows) < args.sample:
            missing = args.sample - len(rows)
            for image in generate()[:missing].float():
                row = {"image": f"{len(rows):05d}.png"}
                if labels:
                    row |= labels[len(rows)]
                atomic(folder / row["image"], functools.partial(save_png, image))
                rows.append(row)
                bar.update()

    # one column for each key of the labels
    if labels:
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, fieldnames=rows[0])
        writer.writeheader()
        writer.writerows(rows)
        atomic(folder / "labels.csv", lambda file: file.write(table.getvalue().encode()))


def numbered(folder: Path, suffix: str) -> list[Path]:
    """Files of a folder that are named by a step, such as 000500.png, in the order of the steps."""
    files = [file for file in folder.glob(f"*{suffix}") if file.stem.isdigit()]
    return sorted(files, key=lambda file: int(file.stem))


class Run:
    """The output folder of a run and its progress bar. Only rank 0 writes; on other ranks all methods are silent.

    `sample()` returns the images of the grid, (GRID, C, S, S) in [-1, 1], always from the same noise.

    A resumed run first removes what lies in OUT after its checkpoint: rows of the log, grids, events, checkpoints,
    and a grid that was drawn because a run ended between two grids. So log and GIF become those of a run without a
    break.
    """

    def __init__(self, args: argparse.Namespace, data: Batches, start: int, sample, rank: int, diversity: bool = True):
        self.args = args
        self.data = data
        self.sample = sample
        self.rank = rank
        self.diversity = diversity  # whether to log it
        self.out = Path(args.out)

        self.start = start  # steps done before this start of the script
        self.step = start  # steps done so far
        self.saved = start  # step of the last checkpoint
        self.first = data.position  # of the data, at this start
        self.stop = False  # a signal has asked to stop
        self.leaving = False  # this step is the last one

    def __enter__(self):
        # Ctrl-C, and what schedulers send before they end a job
        self.handlers = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            self.handlers[number] = signal.signal(number, self.on_signal)
        if self.rank:
            return self
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        # held until the process ends, however it ends
        self.out.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.out / ".lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            fail(f"another process is training in {self.out}: wait for it, or choose another folder with --out")
        self.drop_later()

        # every flag, for people and for compare.py
        settings = {**vars(self.args), "torch": torch.__version__, "images": len(self.data.images)}
        text = json.dumps(settings, indent=2)
        atomic(self.out / "args.json", lambda file: file.write(text.encode()))

        # a grid of real images, and their mean distance, by which the diversity of samples is divided
        order = np.random.default_rng(self.args.seed).permutation(len(self.data.rows))
        rows = torch.from_numpy(self.data.rows[order[:GRID]])
        real = normalise(self.data.images[rows.to(self.data.images.device)])
        save_png(real, self.out / "real.png")
        self.real_distance = max(mean_distance(real), 1e-12)  # not 0 where all reals are alike

        self.events = SummaryWriter(self.out, purge_step=self.start + 1)
        self.bar = tqdm(desc=str(self.out), total=self.args.steps, initial=self.start, unit="step", mininterval=1)
        return self

    def __exit__(self, kind, error, trace):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.rank:
            return
        self.bar.close()
        self.events.close()
        self.lock.release()
        # what atomic() does not cover: the log and TensorBoard's events
        if isinstance(error, OSError):
            fail(
                f"cannot write to {self.out} ({error.strerror}): make room, then --resume from step {self.saved}",
                code=1,
            )
        if self.leaving and self.step < self.args.steps:
            print(f"stopped and saved at step {self.step}: continue with --resume", file=sys.stderr)

    def on_signal(self, number, frame):
        """The first Ctrl-C or SIGTERM ends the run after this step and saves it; a second Ctrl-C ends it at once."""
        if self.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop = True

    def drop_later(self):
        """Remove what an earlier run wrote to OUT after the step from which this one starts."""
        log = self.out / "log.csv"
        if log.exists():
            kept = []
            for row in log.read_text().splitlines(keepends=True):
                step = row.split(",")[0]
                complete = row.endswith("\n")  # a power cut can tear the last row
                if complete and (step == "step" or (step.isdigit() and int(step) <= self.start)):
                    kept.append(row)
            atomic(log, lambda file: file.write("".join(kept).encode()))

        # the grid of this very step is kept only if a run without a break would have drawn it
        last_grid = self.start
        if self.start % self.args.save_every:
            last_grid = self.start - 1
        for file in numbered(self.out / "samples", ".png"):
            if int(file.stem) > last_grid:
                file.unlink()
        for file in numbered(self.out / "checkpoints", ".pt"):
            if int(file.stem) > self.start:
                file.unlink()

    def steps(self):
        """Yield the numbers of the steps, from `start` to --steps - 1; end early after Ctrl-C."""
        for step in range(self.start, self.args.steps):
            self.step = step + 1  # steps done when the caller comes to log()
            yield step
            if self.leaving:
                break

    def log(self, metrics: dict[str, torch.Tensor]):
        """Count the step. Every --log-every steps, write the metrics and the diversity of the grid.

        Metrics are moved to the CPU only then, so that the GPU need not wait in other steps. One that is not finite
        ends the process.
        """
        if self.rank:
            return
        self.bar.update()
        if self.step % self.args.log_every:
            return

        # the only place where the CPU waits for the GPU
        row = {name: value.item() for name, value in metrics.items()}
        for name, value in row.items():
            if not math.isfinite(value):
                self.not_finite(f"{name} is {value}")
        if self.diversity:  # 1: as diverse as the data; 0: collapsed to one image
            row["diversity"] = mean_distance(self.sample().float()) / self.real_distance

        # appended, not rewritten: a kill can only tear the last row, which drop_later() removes
        with open(self.out / "log.csv", "a", encoding="utf-8", newline="") as file:
            if file.tell() == 0:
                file.write(",".join(["step", *row]) + "\n")
            values = [f"{value:.9g}" for value in row.values()]
            file.write(",".join([str(self.step), *values]) + "\n")

        # counted in images of the data, because a critic takes several batches a step
        since_start = (self.data.position - self.first) * self.args.batch
        speed = since_start / self.bar.format_dict["elapsed"]
        epoch = self.data.position * self.args.batch / len(self.data.rows)
        for name, value in {**row, "images_per_second": speed}.items():
            self.events.add_scalar(name, value, self.step)
        self.bar.set_postfix({**row, "img/s": f"{speed:.0f}", "epoch": f"{epoch:.1f}"}, refresh=False)

    def due(self) -> bool:
        """Whether to save now: every --save-every steps, at the end, and after Ctrl-C."""
        if dist.is_initialized():
            # A signal may have reached one process only, and none may leave alone: the others would wait for its
            # gradients for ever. So all look together, every 10 steps.
            if self.step % 10 == 0:
                flag = torch.tensor(float(self.stop), device=self.args.device)
                dist.all_reduce(flag, dist.ReduceOp.MAX)
                self.leaving = bool(flag)
        else:
            self.leaving = self.stop

        if self.step == self.args.steps:
            self.leaving = True
        return self.leaving or self.step % self.args.save_every == 0

    def save(self, state: dict):
        """Write a sample grid, a checkpoint with the state_dict of everything in `state`, and sometimes the GIF.

        If a weight is not finite, nothing is written and the process ends.
        """
        if self.rank:
            return
        # plain values, which weights_only can load
        values = {name: thing.state_dict() for name, thing in state.items()}
        self.check_finite(values)

        if self.step > self.start or self.start == 0:  # a resumed run has drawn its first grid before
            grid = make_grid(self.sample().float(), normalize=True, value_range=(-1, 1))
            atomic(self.out / "samples" / f"{self.step:06d}.png", lambda file: save_image(grid, file, "png"))
            self.events.add_image("samples", grid, self.step)
            self.events.flush()

        content = {"script": self.args.script, "step": self.step, "args": vars(self.args), "state": values}
        write = functools.partial(torch.save, content)
        if self.args.keep:
            atomic(self.out / "checkpoints" / f"{self.step:06d}.pt", write)
        atomic(self.out / "last.pt", write)  # last, so that it never names a step whose other files are missing
        self.saved = self.step

        # remove all but the newest --keep
        checkpoints = numbered(self.out / "checkpoints", ".pt")
        for old in checkpoints[: max(0, len(checkpoints) - self.args.keep)]:
            old.unlink()
        self.write_gif()

    def check_finite(self, values: dict[str, dict]):
        """End the process if a weight or buffer of a network is not finite."""
        for name, weights in values.items():
            for key, weight in weights.items():
                if torch.is_tensor(weight) and weight.is_floating_point() and not weight.isfinite().all():
                    self.not_finite(f"{name}.{key} is not finite")

    def not_finite(self, what: str):
        fail(
            f"{what} at step {self.step}: lower the learning rates and --resume from the last good checkpoint, "
            f"{self.out}/last.pt (step {self.saved})",
            code=1,
        )

    def write_gif(self):
        """Write progress.gif, all grids so far, at most 600 pixels wide: after 1, 2, 4, 8, ... grids and at the end.

        Not each time, because it takes longer with every grid.
        """
        files = numbered(self.out / "samples", ".png")
        is_power_of_two = len(files) & (len(files) - 1) == 0
        if not files or not (self.leaving or is_power_of_two):
            return
        first, *rest = files
        # a generator, so that one frame at a time is in memory
        options = {"save_all": True, "append_images": (gif_frame(file) for file in rest), "duration": 200, "loop": 0}
        atomic(self.out / "progress.gif", lambda file: gif_frame(first).save(file, "GIF", **options))


def gif_frame(file: Path) -> Image.Image:
    """A grid, at most 600 pixels wide and high."""
    # closed at once: there are as many files as grids
    with Image.open(file) as image:
        frame = image.convert("RGB")
    frame.thumbnail((600, 600))
    return frame


def mean_distance(images: torch.Tensor) -> float:
    """Mean Euclidean distance between the pixels of two different images of (N, C, S, S)."""
    return torch.pdist(images.flatten(1).cpu()).mean().item()
