"""Images in, files out: the one module that all scripts share.

Before a batch: the command-line flags, finding images, decoding, cropping, normalizing, and the order of the images.
After a step: the log, sample grids, the GIF and the checkpoint files. Anything that could change the weights that the
same batches lead to is not here but in the scripts.
"""

import argparse
import collections
import contextlib
import csv
import errno
import functools
import hashlib
import importlib.util
import io
import json
import math
import os
import shlex
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import zipfile
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from PIL import Image, ImageCms, ImageOps
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid, save_image
from tqdm import tqdm

import faces

FACES = 10_000  # built-in faces to train on: numbers 0 to 9,999 of seed 0
GRID = 64  # images in real.png and in each samples/*.png
UNREADABLE = "folders that cannot be read"
# What Windows and cyclegan.py put beside images; names with a dot in front are hidden, too.
HIDDEN = ("thumbs.db", "desktop.ini", "_sheet.png")
CACHE = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gan-scripts")

# What Pillow reads, except formats that are not pictures, or that other programs would have to draw.
Image.init()
USUAL = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]  # tried first, because trying them all takes time
FORMATS = USUAL + sorted(Image.OPEN.keys() - {*USUAL, "BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
IMAGES = "jpg, png, webp, gif, bmp, tif, avif and whatever else Pillow reads"
# What a file without a suffix may be: formats that cannot be mistaken for text.
PLAIN_FORMATS = [*USUAL, "AVIF", "JPEG2000"]

# Flags that are not taken from a checkpoint, by --resume, --sample and the like: they belong to one start of a script.
NOT_FROM_CHECKPOINT = {
    "out",
    "cache",
    "device",
    "resume",
    "finetune",
    "checkpoint",
    "sample",
    "grid",
    "seeds",
    "walk",
    "sample_mode",
    "sample_labels",  # acgan.py
    "prompt",  # cgan_text2img.py
    "prompts",
    "translate",  # cyclegan.py
    "reverse",
    "weights",
}

# Errors that are no fault of the file: no permission, a disk or a network that fails, too many open files, no memory.
NOT_THE_FILE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOMEM)


def fail(message: str, code: int = 2):
    """End the process with one sentence on stderr. Code 2: bad usage or input; code 1: something went wrong later."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


def is_main_process() -> bool:
    """True in the one process, of all machines, that writes files and prints messages."""
    return int(os.environ.get("RANK", 0)) == 0


@contextlib.contextmanager
def ends_with(sentence: str):
    """Ctrl-C inside the block ends the process with one sentence, not with a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        fail(f"stopped by Ctrl-C: {sentence}", code=130)


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


def file_name(text: str) -> str:
    """A type for argparse: the name of a file or folder, which checkpoints, logs and TensorBoard can keep."""
    path = os.path.abspath(text)
    try:
        path.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{path!r} is not UTF-8: rename the folder, or use a link") from None
    return text


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
    group.add_argument("--path", type=file_name, help=f"{path}; None: built-in faces and the preset of the script")
    group.add_argument(
        "--size",
        type=image_size,
        default=64,
        help="width and height in pixels of the images: 4, 5, 6 or 7 times a power of two; larger is slower",
    )
    group.add_argument(
        "--fit",
        choices=("crop", "pad", "stretch"),
        default="crop",
        help="how images become squares: cropped to their center, padded with white, or stretched",
    )
    group.add_argument("--channels", type=int, choices=(1, 3), default=3, help="1: grayscale images, 3: color images")
    group.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="mirror images left to right at random, which doubles the data where left and right do not matter",
    )
    if labels:
        group.add_argument(
            "--labels",
            type=file_name,
            help="label file, or the folder of --path, whose sub-folders are then the classes; "
            "None: the only label file inside or next to --path, or else the sub-folders",
        )
    group.add_argument(
        "--cache", type=file_name, default=CACHE, help="folder in which the decoded images are kept for later runs"
    )


def add_output_flags(parser: argparse.ArgumentParser, script: str, batchnorm: bool = True, latent: bool = True):
    """Add the flags that Run, write_samples and parse read.

    `batchnorm`: also --sample-mode. `latent`: also --seeds and --walk.
    """
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out",
        type=file_name,
        default=f"runs/{Path(script).stem}",
        help="folder for everything that this run writes",
    )
    group.add_argument(
        "--log-every", type=between(1), default=50, help="steps between two rows of log.csv and TensorBoard"
    )
    group.add_argument(
        "--save-every", type=between(1), default=500, help="steps between two checkpoints, each with a sample grid"
    )
    group.add_argument(
        "--keep", type=between(0), default=3, help="how many of the newest checkpoints to keep; last.pt always stays"
    )
    start = group.add_mutually_exclusive_group()
    start.add_argument(
        "--resume",
        action="store_true",
        help="continue from --checkpoint; flags that are not given are taken from it",
    )
    start.add_argument(
        "--finetune",
        metavar="CHECKPOINT",
        help="start a new run with the networks of this checkpoint; flags that are not given are taken from it",
    )
    start.add_argument(
        "--sample", type=between(1), metavar="N", help="write N generated images to OUT/generated instead of training"
    )
    start.add_argument(
        "--grid",
        action="store_true",
        help="write OUT/grid.png instead of training: the sample grid of --checkpoint once more",
    )
    if latent:
        start.add_argument(
            "--seeds",
            type=between(0, 2**32 - 1),
            nargs="+",
            metavar="SEED",
            help="write an image for each of these seeds to OUT/generated instead of training, always the same one",
        )
        start.add_argument(
            "--walk",
            type=between(2),
            metavar="N",
            help="write OUT/walk.gif instead of training: N frames along a closed path through the latent space",
        )
    if batchnorm:
        group.add_argument(
            "--sample-mode",
            choices=("eval", "batch"),
            default="eval",
            help="BatchNorm statistics for --sample: those of the checkpoint (eval) or of each batch (batch)",
        )
    group.add_argument("--checkpoint", help="checkpoint to resume or to draw from; None: OUT/last.pt")


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
    2. the checkpoint, with --resume, --finetune, --sample or --grid,
    3. the preset, without --path,
    4. the default.

    Flags in `architecture` change the networks: a value that contradicts the checkpoint is an error. So is an --out
    that already holds another run. Errors end the process with code 2.
    """
    args = parser.parse_args(argv)
    given = flags_given(parser, argv)
    args.script = Path(script).stem
    args.preset = False
    if vars(args).get("seeds"):
        args.seeds = list(dict.fromkeys(args.seeds))  # each once
        args.sample = len(args.seeds)
    if vars(args).get("walk"):
        args.sample = args.walk
    if "sample_mode" in given and args.sample_mode == "batch" and (args.seeds or args.walk or args.grid):
        parser.error(
            "--sample-mode batch makes an image depend on the others of its batch, and --seeds, --walk and --grid draw "
            "images that depend on nothing else: leave it out"
        )

    if args.finetune:
        if args.checkpoint:
            parser.error("--finetune names its checkpoint itself: leave out --checkpoint")
        if not Path(args.finetune).is_file():
            parser.error(f"there is no checkpoint {args.finetune}: name a file such as runs/first/last.pt")
        args.checkpoint = args.finetune
    if args.resume or args.finetune or args.sample or args.grid:
        take_from_checkpoint(parser, args, given, architecture)
    elif args.checkpoint:
        parser.error(
            "--checkpoint needs a flag that reads one, such as --resume, --sample, --seeds or --grid: add one of them, "
            "or leave out --checkpoint"
        )
    elif args.path is None:
        args.preset = True
        for name, value in preset.items():
            if name not in given:
                setattr(args, name, value)

    # absolute, because they are stored in the checkpoint: --resume may be called from another directory
    for name in ("path", "labels", "embeddings"):
        if vars(args).get(name):
            setattr(args, name, os.path.abspath(getattr(args, name)))

    refuse_to_overwrite(args)
    # now, not after all images have been decoded
    if not (args.sample or args.grid) and importlib.util.find_spec("tensorboard") is None:
        fail("tensorboard is not installed: pip install -r requirements.txt")

    args.found = {}  # what load_images and load_labels find, for args.json
    return args


def take_from_checkpoint(parser, args: argparse.Namespace, given: set[str], architecture: tuple[str, ...]):
    """Complete `args` by the flags that --checkpoint was trained with."""
    if not args.checkpoint:
        args.checkpoint = str(Path(args.out) / "last.pt")
    checkpoint = read_checkpoint(args.checkpoint, args.script)
    saved = checkpoint["args"]

    # the labels of one folder are not those of another
    moved = "path" in given and saved.get("path") != os.path.abspath(args.path)
    if moved and "labels" in saved and "labels" not in given:
        saved["labels"] = None
    if moved and saved.get("embeddings") and "embeddings" not in given:
        parser.error(
            f"--embeddings {saved['embeddings']} belong to the labels of {saved['path']}: with another --path, give "
            f"the --embeddings of its labels"
        )

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


def refuse_to_overwrite(args: argparse.Namespace):
    """End the process if --out holds a run, or files of the user's, that this start would overwrite."""
    out = Path(args.out)
    if args.sample or args.grid or not is_main_process():  # the main process may have begun to write already
        return
    if args.resume:
        of_this_run = [out.resolve(), (out / "checkpoints").resolve()]
        if Path(args.checkpoint).resolve().parent in of_this_run:
            return
        if os.path.exists(out / "last.pt"):
            fail(
                f"{out} holds a run that {args.checkpoint} is no part of: leave out --checkpoint, or choose another "
                "folder with --out"
            )
    if os.path.exists(out / "last.pt") or os.path.exists(out / "log.csv"):
        fail(f"{out} already holds a run: continue it with --resume, or choose another folder with --out")

    # what a run writes without asking; a run that was stopped before its first checkpoint may begin again
    names = ["args.json", "real.png", "progress.gif", "samples", "checkpoints"]
    found = [name for name in names if os.path.exists(out / name)]
    if found and not is_settings(out / "args.json"):
        fail(f"{out} holds {found[0]}, which no run has written: choose another folder with --out")


# --- images in -----------------------------------------------------------------------------------------------------


def is_settings(file: Path) -> bool:
    """Whether a file is the args.json of one of these scripts."""
    try:
        script = json.loads(file.read_text(encoding="utf-8"))["script"]
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return Path(__file__).with_name(f"{script}.py").exists()


def is_run(folder: str) -> bool:
    """Whether a folder is the output folder of a run, whose samples must not become training images."""
    files = [os.path.join(folder, name) for name in ("args.json", "log.csv", "last.pt")]
    # a log.csv alone may be the user's
    return is_settings(Path(files[0])) or sum(os.path.exists(file) for file in files) >= 2


def is_output(folder: str) -> bool:
    """Whether scripts have written images to a folder: it is in a run, or holds samples, translations or scores."""
    real = Path(os.path.realpath(folder))
    if written(real):
        return True
    # a link can lead into a run; of real folders, find_images would have met the run above them before
    places = [real, *real.parents] if os.path.islink(folder) else [real]
    return any(is_run(str(place)) for place in places)


def find_images(folder: str, out: str) -> tuple[list[str], dict[str, list[str]]]:
    """Paths of the images below `folder`, relative to it and sorted; and {reason: paths} of all other files.

    An image is what has the suffix of an image, or none. Files below `out` and in the folders of other runs are left
    out, because scripts write images of their own there. Each folder is searched once, whatever links lead to it, and
    by its own name, not by that of a link. Under UNREADABLE stand folders, not files.
    """
    names = []
    left_out = {}
    aside = []  # folders whose files are only counted, with the reason
    seen = set()
    folders = [""]
    links = []  # searched last
    while folders or links:
        here = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(os.path.join(folder, here))
        if real in seen:
            continue
        seen.add(real)

        for name in list_folder(folder, here, left_out):
            path = os.path.join(folder, name)
            is_folder = os.path.isdir(path)
            reason = why_not(path, is_folder, out)
            if is_folder and reason:
                aside.append((name, reason))
            elif is_folder:
                # links after all real folders, so that a file keeps the name that it has there
                (links if os.path.islink(path) else folders).append(name)
            elif reason:
                left_out.setdefault(reason, []).append(name)
            else:
                names.append(name)

    # links last here, too
    aside.sort(key=lambda item: os.path.islink(os.path.join(folder, item[0])))
    for name, reason in aside:
        for root, inside, files in os.walk(os.path.join(folder, name), followlinks=True):
            if os.path.realpath(root) in seen:
                inside.clear()  # os.walk goes no deeper
                continue
            seen.add(os.path.realpath(root))
            for file in files:
                left_out.setdefault(reason, []).append(os.path.relpath(os.path.join(root, file), folder))
    return sorted(names), left_out


def list_folder(folder: str, here: str, left_out: dict[str, list[str]]) -> list[str]:
    """Paths of what is in folder/here, relative to `folder`; [] if it cannot be read, which `left_out` then says."""
    prefix = f"{here}/" if here else ""
    try:
        return [prefix + name for name in sorted(os.listdir(os.path.join(folder, here)))]
    except OSError as error:
        left_out.setdefault(UNREADABLE, []).append(f"{here or folder} ({error.strerror})")
        return []


def why_not(path: str, is_folder: bool, out: str) -> str | None:
    """The reason why a file, or a whole folder, is left out; None if it is not."""
    name = os.path.basename(path).lower()
    if name.startswith(".") or name in HIDDEN:
        return "hidden files"
    if is_folder:
        belongs_to_run = os.path.realpath(path) == os.path.realpath(out) or is_output(path)
        return "files in the folders of runs" if belongs_to_run else None
    suffix = os.path.splitext(name)[1]
    return None if suffix in SUFFIXES or not suffix else "files that are not images"


def some_of(names: list[str], count: int = 20) -> str:
    """The first `count` of some names, separated by commas, and "..." if there are more."""
    shown = names[:count]
    if len(names) > count:
        shown.append("...")
    return ", ".join(shown)


def pixels(image: Image.Image, channels: int) -> np.ndarray:
    """A Pillow image -> (C, H, W) uint8, grayscale for one channel, RGB for three."""
    array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    height, width = array.shape[:2]
    return array.reshape(height, width, channels).transpose(2, 0, 1)


def paint(name: str, size: int, channels: int) -> tuple[np.ndarray, tuple[int, int], bool]:
    """The built-in face with that number, as decode() returns images."""
    image, _ = faces.paint(0, int(name), size)
    return pixels(image, channels), image.size, False


def face_attributes(name: str) -> dict[str, str]:
    """What the built-in face with that number shows: {"hair": "aqua", "eyes": "red", ...}."""
    return faces.describe(np.random.default_rng([0, int(name)]))


def open_image(file: Path, draft: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """Open an image file as RGB in the colors of sRGB, rotated as its EXIF data says, transparent parts on white.

    Returns the image, and the width and height in the file. With `draft`, a JPEG much larger than that many pixels is
    decoded at a half, a quarter or an eighth of its size, but never smaller than `draft`: much faster. Raises what
    Pillow raises, and OSError if it is not known which values are black and white.
    """
    if not file.is_file():
        raise OSError("not a regular file")
    with Image.open(file, formats=FORMATS if file.suffix else PLAIN_FORMATS) as image:
        kind = image.format
        shape = image.size
        if draft:
            image.draft(None, (draft, draft))
        mode = image.mode
        profile = image.info.get("icc_profile")
        white_is_zero = kind == "TIFF" and image.tag_v2.get(262) == 0  # the tag PhotometricInterpretation
        image = ImageOps.exif_transpose(image)

        if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
            # 16 bits a pixel: keep the upper 8, where Pillow's own conversion would clip at 255
            values = np.asarray(image).astype(np.int64) >> 8
            if white_is_zero:
                values = 255 - values
            image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise OSError("not 8 or 16 bits a channel, so that its range is not known: save it with 8 or 16 bits")

        # before the profile is applied, because profiles know no transparency
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
            image = image.convert("RGB")
        if profile:
            image = to_srgb(image, profile, mode)
        return image.convert("RGB"), shape


def to_srgb(image: Image.Image, profile: bytes, mode: str) -> Image.Image:
    """An image whose colors are those of an ICC profile -> RGB in the colors of sRGB; `mode` is that of the file.

    An image whose profile is damaged, or of another kind than its colors, is taken for sRGB, as without a profile.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        # most profiles are this one: nothing to convert, and no rounding
        name = ImageCms.getProfileDescription(source).lower()
        if "srgb" in name and "linear" not in name:
            return image

        kind = source.profile.xcolor_space.strip()
        if kind == "GRAY" and mode in ("1", "L", "LA", "I;16", "I;16B"):
            image = image.convert("L")
        elif kind == "RGB" and mode != "CMYK":
            image = image.convert("RGB")
        elif kind != "CMYK" or mode != "CMYK":
            return image
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (OSError, ImageCms.PyCMSError):
        return image


def square(image: Image.Image, size: int, fit: str) -> Image.Image:
    """A Pillow image -> size x size: its central square (crop), or the whole, on white (pad) or distorted (stretch)."""
    lanczos = Image.Resampling.LANCZOS
    if fit == "crop":
        return ImageOps.fit(image, (size, size), lanczos)
    if fit == "stretch":
        return image.resize((size, size), lanczos)

    left, top, right, bottom = padded_box(image, size)
    canvas = Image.new("RGB", (size, size), "white")
    canvas.paste(image.resize((right - left, bottom - top), lanczos), (left, top))
    return canvas


def padded_box(image: Image.Image, size: int) -> tuple[int, int, int, int]:
    """Where a padded image is in its square: left, top, right, bottom."""
    longer = max(image.size)
    width, height = [max(1, round(side * size / longer)) for side in image.size]
    left = (size - width) // 2
    top = (size - height) // 2
    return left, top, left + width, top + height


def decode(
    name: str, size: int, channels: int, folder: str = "", fit: str = "crop"
) -> tuple[np.ndarray, tuple[int, int], bool]:
    """An image file -> (C, S, S) uint8, the width and height in the file, and whether it is nearly black."""
    image, shape = open_image(Path(folder, name), draft=2 * size)
    result = square(image, size, fit)
    array = pixels(result, channels)
    # without the white around it
    shown = pixels(result.crop(padded_box(image, size)), channels) if fit == "pad" else array
    return array, shape, bool(shown.max() < 16)


@ends_with("the images were not all read, and the next start begins again")
def load_images(args: argparse.Namespace) -> tuple[np.ndarray, list[str]]:
    """Images of --path, or the built-in faces: uint8 (N, C, S, S), memory-mapped from the cache, and their names.

    The first start decodes all images into a cache folder; later starts map that into memory at once. What was found
    is printed at every start, files that are left out too, and put into args.found. Ends the process if there is no
    folder, no image that can be read, or fewer images than a batch.
    """
    # what the images are, a function that makes one, and all that the decoded images depend on
    if args.path is None:
        where = "the built-in data"
        source = "faces"
        names = [str(i) for i in range(FACES)]
        left_out = {}
        make = paint
        fit = "painted"
        painter = Path(faces.__file__).read_text(encoding="utf-8")
        content = f"{FACES} {painter}"
    else:
        where = f"--path {args.path}"
        source = os.path.realpath(args.path)
        names, left_out = image_names(args)
        make = functools.partial(decode, folder=args.path, fit=args.fit)
        fit = args.fit
        content = repr([(name, size_and_time(Path(args.path, name))) for name in names])

    # One folder for each source and shape of images. The key changes when any file does; the old cache then goes.
    # "v2" is the version of decode(): another version needs another number.
    slot = digest(source)
    key = digest(content)
    final = Path(args.cache) / f"{slot}-{args.size}-{args.channels}-{fit}-v2-{key}"
    make = functools.partial(make, size=args.size, channels=args.channels)
    image_bytes = args.channels * args.size**2
    index = ensure_cache(final, image_bytes, names, make)

    good = index["names"]
    args.found[args.path or where] = describe_images(index, left_out, args)
    if len(good) < args.batch:
        fail(f"{where} has {len(good)} images, fewer than a batch of {args.batch}: add images or lower --batch")

    # mode "c": writing to the array changes memory, never the file
    shape = (len(good), args.channels, args.size, args.size)
    return np.memmap(final / "images.u8", np.uint8, mode="c", shape=shape), good


def image_names(args: argparse.Namespace) -> tuple[list[str], dict[str, list[str]]]:
    """What find_images finds in --path; ends the process if it is not a folder with images."""
    need_folder(args.path)
    if is_run(args.path):
        fail(f"{args.path} is the folder of a run, whose samples must not become training images: choose another")
    if os.path.realpath(args.path) == os.path.realpath(args.out):
        fail(
            f"--out {args.out} is the folder of the images: choose another, so that no sample becomes a training image"
        )
    names, left_out = find_images(args.path, args.out)
    if not names:
        print_left_out(left_out)
        fail(f"{args.path} holds no image: looked for {IMAGES} in it and in all its sub-folders")
    return names, left_out


def need_folder(path: str):
    """End the process if `path` is not a folder; if it is an archive of one, the sentence says how to unpack it."""
    if os.path.isdir(path):
        return
    if not os.path.exists(path):
        fail(f"the folder {path} does not exist: name a folder of images, with --path if a run has stored this one")
    # a checkpoint is a zip, too
    module = None
    if path.lower().endswith(".zip") and zipfile.is_zipfile(path):
        module = "zipfile"
    elif os.path.isfile(path):
        with contextlib.suppress(OSError):  # it may be unreadable
            module = "tarfile" if tarfile.is_tarfile(path) else None
    if module:
        folder = shlex.quote(Path(path).name.split(".")[0])
        command = f"python -m {module} -e {shlex.quote(path)} {folder}"
        fail(f"{path} is an archive: unpack it with `{command}`, then use the folder {folder}")
    fail(f"{path} is not a folder: choose a folder of images")


def describe_images(index: dict, left_out: dict[str, list[str]], args: argparse.Namespace) -> dict:
    """Print what was found in --path, and return it as counts: {"files": 12, "images": 10, "left_out": {...}, ...}."""
    if args.path is None:
        print_line(f"images: {len(index['names']):,} built-in faces of {args.size}x{args.size} pixels")
        return {"files": len(index["names"]), "images": len(index["names"]), "left_out": {}}

    # a file without a suffix that Pillow cannot identify is not an image, rather than a damaged one
    left_out = dict(left_out)
    folders = left_out.pop(UNREADABLE, [])
    for name, reason in index["bad"].items():
        if not Path(name).suffix and reason == "UnidentifiedImageError":
            left_out.setdefault("files that are not images", []).append(name)
        else:
            left_out.setdefault("files that cannot be read", []).append(f"{name!r} ({reason})")

    sizes = sorted(index["sizes"], key=lambda item: item[0] * item[1])
    smallest = sizes[0][:2]
    largest = sizes[-1][:2]
    smaller = max if args.fit == "pad" else min
    found = {
        "files": len(index["names"]) + sum(len(files) for files in left_out.values()),
        "images": len(index["names"]),
        "left_out": {reason: len(files) for reason, files in left_out.items()},
        "smallest": smallest,
        "largest": largest,
        "enlarged": sum(count for *shape, count in sizes if smaller(shape) < args.size),
        "nearly_black": index["dark"],
    }
    first, last = [f"{width}x{height}" for width, height in (smallest, largest)]
    shapes = first if first == last else f"{first} to {last}"
    print_line(
        f"images: {found['images']:,} of {found['files']:,} files in {args.path}, {shapes} pixels, "
        f"now {args.size}x{args.size} ({args.fit})"
    )
    print_left_out(left_out | {UNREADABLE: folders})
    if found["enlarged"]:
        print_line(f"enlarged: {found['enlarged']:,} images are smaller than {args.size} pixels")
    if found["nearly_black"]:
        print_line(
            f"nearly black: {found['nearly_black']:,} images use less than a sixteenth of the range of values; "
            f"16-bit files that hold 12 bits do, for example"
        )
    return found


def print_left_out(left_out: dict[str, list[str]]):
    """Print how many files were left out, a line for each reason."""
    for reason, files in left_out.items():
        if reason == "files that are not images":
            counts = collections.Counter(Path(file).suffix.lower() or "without a suffix" for file in files)
            details = [f"{count:,} {suffix}" for suffix, count in counts.most_common()]
        elif reason == "files in the folders of runs":
            details = sorted({os.path.dirname(file) for file in files})
        else:
            details = sorted(files)
        # nobody asks for Thumbs.db
        text = "" if reason == "hidden files" else f" ({some_of(details)})"
        if files:
            print_line(f"left out: {reason}: {len(files):,}{text}")


def print_line(text: str):
    """Print a line once for all processes."""
    if is_main_process():
        print(text, file=sys.stderr)


def size_and_time(file: Path) -> tuple[int, int] | None:
    """Bytes, and time of the last change in nanoseconds, of a file; None if they cannot be read (a link to nothing)."""
    try:
        stat = os.stat(file)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def digest(text: str) -> str:
    """12 hexadecimal digits that practically never agree for two different texts."""
    raw = text.encode(errors="surrogateescape")  # a link can lead to a folder whose name is not UTF-8
    return hashlib.sha256(raw).hexdigest()[:12]


def ensure_cache(final: Path, image_bytes: int, names: list[str], make) -> dict:
    """The index of the cache, as read_index returns it; builds the cache if need be.

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
            f"cannot write to the cache {final.parent} ({why(error)}): "
            f"make room or change its permissions, or choose another folder with --cache",
            code=1,
        )
    return read_index(final, image_bytes)


def read_index(final: Path, image_bytes: int) -> dict | None:
    """What index.json says of the images in the cache; None if the cache is not there, or not complete.

    {"names": ["0.png", ...], "sizes": [[640, 480, 12]], "dark": 0, "bad": {"9.png": "SyntaxError"}}: names of the
    images in their order; widths and heights, each with the number of images that had it; the number of images that are
    nearly black; and the files that cannot be read, with the reason.
    """
    # index.json may be torn, and images.u8 may be shorter than it says, as after a power cut
    try:
        index = json.loads((final / "index.json").read_text())
        count = len(index["names"])
        complete = (final / "images.u8").stat().st_size == count * image_bytes
        return index if complete and index.keys() == {"names", "sizes", "dark", "bad"} else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def build_cache(final: Path, image_bytes: int, names: list[str], make):
    """Decode all images in parallel into final/images.u8; remove older caches of the same source and size.

    `make(name)` returns what decode() does. Everything is written to a temporary
    folder that is renamed at the end, so that no other process ever sees half a cache. Uses constant memory. Raises
    OSError if the disk is full.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_dead_builds(final.parent)
    temporary = Path(tempfile.mkdtemp(prefix="building-", dir=final.parent))
    try:
        index = decode_all(temporary / "images.u8", names, make)
        if not index["names"]:
            first, reason = next(iter(index["bad"].items()))
            fail(f"none of the {len(names)} image files can be read ({first!r}: {reason}): choose other images")
        with open(temporary / "index.json", "w") as file:
            json.dump(index, file)
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
        files = list(folder.glob("*"))
        with contextlib.suppress(OSError):  # another process may remove them, too
            times = [file.stat().st_mtime for file in (folder, *files)]
            # --cache may be a folder of the user's, with a building-photos in it
            ours = {file.name for file in files} <= {"images.u8", "index.json"}
            if ours and max(times) < time.time() - 3600:
                shutil.rmtree(folder, ignore_errors=True)


def decode_all(path: Path, names: list[str], make) -> dict:
    """Write all images one after another to `path`; returns the index of the cache, as in read_index."""

    def attempt(name: str) -> tuple[np.ndarray, tuple[int, int], bool] | str | OSError:
        try:
            return make(name)
        except MemoryError:
            return OSError(errno.ENOMEM, "not enough memory")
        except Exception as error:  # damaged files raise anything; they are named with the reason
            if getattr(error, "errno", None) in NOT_THE_FILE:
                return error
            return str(error) if type(error) is OSError else type(error).__name__

    index = {"names": [], "sizes": [], "dark": 0, "bad": {}}
    sizes = collections.Counter()
    bar = tqdm(total=len(names), desc="decoding", unit="img")
    with open(path, "wb") as file, ThreadPool() as pool, bar:
        # in groups, because the pool would decode ahead of the disk without limit
        for start in range(0, len(names), 64):
            group = names[start : start + 64]
            for name, result in zip(group, pool.map(attempt, group), strict=True):
                bar.update()
                if isinstance(result, OSError):
                    # not left out, because the cache would keep that after the cause is gone
                    fail(
                        f"{name!r} cannot be read ({result.strerror}): fix the cause, or move the file away",
                        code=1,
                    )
                if isinstance(result, str):
                    index["bad"][name] = result
                    continue
                image, size, dark = result
                file.write(image.tobytes())
                index["names"].append(name)
                sizes[size] += 1
                index["dark"] += dark
        # on disk before index.json says that it is complete
        file.flush()
        os.fsync(file.fileno())
    index["sizes"] = [[*size, count] for size, count in sizes.items()]
    return index


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


def normalize(images: torch.Tensor) -> torch.Tensor:
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
        if self.images.is_cuda:
            x = self.images[self.move(rows)]
        else:
            x = self.move(self.images[rows])
        x = normalize(x)

        if self.flip:
            # coins of the whole batch, so that they do not depend on the number of ranks
            coins = np.random.default_rng([self.seed, epoch, k]).integers(0, 2, self.batch, dtype=np.uint8)
            mirrored = self.move(torch.from_numpy(coins[self.mine]).bool())
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)

        if self.labels is None:
            return x
        return x, self.move(self.labels[torch.from_numpy(chosen)])

    def move(self, x: torch.Tensor) -> torch.Tensor:
        """Move a tensor from the CPU to the device; from pinned memory, because otherwise the CPU waits for the GPU."""
        if "cuda" in self.device:
            return x.pin_memory().to(self.device, non_blocking=True)
        return x.to(self.device)


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
        fail(f"cannot write {path} ({why(error)}): make room or change --out; an older file is intact", code=1)
    finally:
        # gone already, unless something went wrong, or Ctrl-C came
        with contextlib.suppress(OSError):
            temporary.unlink()


def why(error: Exception) -> str:
    """The reason for which a file could not be written, in words."""
    cause = error if isinstance(error, OSError) else error.__context__
    if getattr(cause, "errno", None) == errno.ENOSPC:
        return "the disk is full"
    return getattr(cause, "strerror", None) or str(error)


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


@contextlib.contextmanager
def claim(folder: Path, names: list[str], replace: bool = False):
    """Write files with these names to a folder, in a with block; with `replace`, in place of what earlier calls wrote.

    A list in the folder, .written, tells our files from the user's. Ends the process if one of the names is a file of
    the user's, before anything is touched.
    """
    earlier = written(folder)
    foreign = sorted(name for name in set(names) - set(earlier) if os.path.exists(folder / name))
    if foreign:
        fail(
            f"{folder} holds {foreign[0]!r}, which this call would overwrite, and which is not in its .written, the "
            f"list of what earlier calls wrote ({len(foreign)} such files): move them, or choose another --out"
        )
    # all names for now, in case the process is killed
    write_list(folder, [*earlier, *names])
    if replace:
        for name in earlier:
            (folder / name).unlink(missing_ok=True)
        earlier = []

    try:
        yield
    finally:
        # the user had none of these files: those that exist now are ours
        there = [name for name in names if os.path.exists(folder / name)]
        write_list(folder, [*earlier, *there])


def written(folder: Path) -> list[str]:
    """Names of the files that earlier calls wrote to a folder, going by its .written."""
    try:
        text = os.fsdecode((folder / ".written").read_bytes())
    except OSError:
        return []
    return [name for name in text.split("\0") if name]


def write_list(folder: Path, names: list[str]):
    """Write .written; without names, remove it."""
    if not names:
        (folder / ".written").unlink(missing_ok=True)
        return
    text = "\0".join(sorted(set(names)))
    atomic(folder / ".written", lambda file: file.write(os.fsencode(text)))  # names need not be UTF-8


def write_samples(args: argparse.Namespace, generate, labels: list[dict[str, str]] | None = None):
    """Write the images of --sample or --seeds to OUT/generated, in place of those of an earlier call, or OUT/walk.gif.

    `generate()` returns the next images, (n, C, S, S) in [-1, 1]. Files are named 00000.png, 00001.png, ... or, with
    --seeds, seed_3.png, seed_7.png, ... `labels` says what each image was asked to show, {"hair": "aqua", ...}, and is
    written to labels.csv beside the images; an entry "image" in it sets the name of the file. `generate()` may add to
    `labels` as it goes.
    """
    if not is_main_process():
        return
    if vars(args).get("walk"):
        write_walk(args, generate)
        return
    folder = Path(args.out) / "generated"
    names = [f"{i:05d}.png" for i in range(args.sample)]
    if vars(args).get("seeds"):
        names = [f"seed_{args.seeds[i % len(args.seeds)]}.png" for i in range(args.sample)]
    for i, label in enumerate((labels or [])[: args.sample]):
        names[i] = label.get("image", names[i])
    tables = [] if labels is None else ["labels.csv"]

    rows = []
    # replace, because compare.py takes all files: none of an earlier call may stay
    with (
        ends_with(f"not all samples are in {folder}"),
        claim(folder, names + tables, replace=True),
        tqdm(total=args.sample, desc=str(folder), unit="img") as bar,
    ):
        while len(rows) < args.sample:
            missing = args.sample - len(rows)
            # on the CPU before atomic(), which would mistake an error of the GPU for one of the disk
            for image in generate()[:missing].float().cpu():
                row = {"image": names[len(rows)]}
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


def write_walk(args: argparse.Namespace, generate):
    """Write --walk frames to OUT/walk.gif, 20 a second, repeated for ever; `generate()` returns the next ones."""
    out = Path(args.out)
    frames = []
    with ends_with(f"{out}/walk.gif is not written"), claim(out, ["walk.gif"]):
        while len(frames) < args.walk:
            for image in generate().float().cpu():
                values = image.add(1).mul(127.5).round().clamp(0, 255).byte()
                frames.append(to_pil_image(values).convert("RGB"))
        options = {"save_all": True, "append_images": frames[1:], "duration": 50, "loop": 0}
        atomic(out / "walk.gif", lambda file: frames[0].save(file, "GIF", **options))
    print_line(f"{out}/walk.gif: {args.walk} frames")


def write_grid(args: argparse.Namespace, draw_grid):
    """Write OUT/grid.png, the images (GRID, C, S, S) in [-1, 1] that `draw_grid()` returns."""
    if not is_main_process():
        return
    out = Path(args.out)
    with ends_with(f"{out}/grid.png is not written"), claim(out, ["grid.png"]):
        grid = draw_grid().cpu()
        atomic(out / "grid.png", functools.partial(save_png, grid))
    print_line(f"{out}/grid.png: the grid of {args.checkpoint}")


def numbered(folder: Path, suffix: str) -> list[Path]:
    """Files of a folder that are named by a step, such as 000500.png, in the order of the steps."""
    # of six digits or more: 2024.png may be the user's
    files = [file for file in folder.glob(f"*{suffix}") if file.stem.isdigit() and len(file.stem) >= 6]
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
        if self.rank == 0:
            try:
                with ends_with("training has not begun"):
                    self.begin()
            except OSError as error:
                fail(f"cannot write to {self.out} ({why(error)}): make room, or choose another folder with --out", 1)

        # Ctrl-C, and what schedulers send before they end a job
        self.handlers = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            self.handlers[number] = signal.signal(number, self.on_signal)
        return self

    def begin(self):
        """Take the folder, and write what is there from the start. Raises OSError if it cannot be written to."""
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        # held until the process ends, however it ends
        self.out.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.out / ".lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            fail(f"another process is training in {self.out}: wait for it, or choose another folder with --out")
        # once more: another run may have begun and ended while this one decoded its images
        refuse_to_overwrite(self.args)
        self.drop_later()

        # every flag, for people and for compare.py
        settings = {**vars(self.args), "torch": torch.__version__, "images": len(self.data.images)}
        text = json.dumps(settings, indent=2)
        atomic(self.out / "args.json", lambda file: file.write(text.encode()))

        # a grid of real images, and their mean distance, by which the diversity of samples is divided
        order = np.random.default_rng(self.args.seed).permutation(len(self.data.rows))
        rows = torch.from_numpy(self.data.rows[order[:GRID]])
        real = normalize(self.data.images[rows.to(self.data.images.device)])
        save_png(real, self.out / "real.png")
        self.real_distance = mean_distance(real) or math.nan  # if all reals are alike, diversity is not known

        precision = "bfloat16" if self.args.autocast else "float32"
        print_line(f"device: {self.args.device}, {precision}")
        self.events = SummaryWriter(self.out, purge_step=self.start + 1)
        self.began = time.monotonic()
        self.bar = tqdm(desc=str(self.out), total=self.args.steps, initial=self.start, unit="step", mininterval=1)

    def __exit__(self, kind, error, trace):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.rank:
            return
        self.bar.close()
        self.events.close()
        self.lock.release()
        if kind is KeyboardInterrupt:
            fail(f"stopped by a second Ctrl-C: --resume continues from step {self.saved}", code=130)
        # what atomic() does not cover: the log and TensorBoard's events
        if isinstance(error, OSError):
            fail(
                f"cannot write to {self.out} ({why(error)}): make room, then --resume from step {self.saved}",
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

        # in one process, only here and in save() does the CPU wait for the GPU
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
        speed = since_start / (time.monotonic() - self.began)
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
            # on the CPU before atomic(), which would mistake an error of the GPU for one of the disk
            grid = make_grid(self.sample().float().cpu(), normalize=True, value_range=(-1, 1))
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
    if not images.is_cuda:
        images = images.cpu()  # not every device has pdist
    return torch.pdist(images.flatten(1)).mean().item()
