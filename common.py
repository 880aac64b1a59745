"""Data in, files out: the only module that the scripts share.

Everything before a batch (finding, decoding, resizing, normalising, order) and everything after a step (log, grids,
GIF, checkpoint files) is here. What could change the weights that given batches lead to is in the scripts.
"""

import argparse
import csv
import functools
import hashlib
import io
import json
import math
import os
import re
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
from PIL import Image, ImageOps
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid, save_image
from tqdm import tqdm

import faces

FACES = 10_000  # built-in faces to train on: numbers 0 to 9,999 of seed 0
GRID = 64  # images in real.png and in samples/*.png
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
COLOURS = {"hair": f"({'|'.join(faces.HAIR)}) hair", "eyes": f"({'|'.join(faces.EYES)}) eyes"}  # not "long hair"
CACHE = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gan-scripts")
NOT_FROM_CHECKPOINT = {"out", "cache", "device", "resume", "checkpoint", "sample", "sample_mode"}
NOT_FROM_CHECKPOINT |= {"sample_labels", "prompt", "prompts", "translate", "reverse", "weights"}


def fail(message: str, code: int = 2):
    """End the process with one sentence on stderr: code 2 for bad usage or input, 1 for what went wrong later."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


# --- flags ---------------------------------------------------------------------------------------------------------


def between(low, high=math.inf):
    """An argparse type: a number of low's type in [low, high]."""
    allowed = f"at least {low}" if high == math.inf else f"from {low} to {high}"

    def number(text: str):
        value = type(low)(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not {allowed}")
        return value

    return number


def image_size(text: str) -> int:
    """An argparse type: 4, 5, 6 or 7 times a power of two, so that halving ends at a map of that width."""
    valid = [base << level for level in range(2, 9) for base in (4, 5, 6, 7)]
    if int(text) not in valid:
        a, b = sorted(sorted(valid, key=lambda size: abs(size - int(text)))[:2])
        raise argparse.ArgumentTypeError(f"{text} is not 4 to 7 times a power of two; the nearest are {a} and {b}")
    return int(text)


def add_data_flags(parser: argparse.ArgumentParser, labels: bool = False, path: str = "folder of images, any depth"):
    group = parser.add_argument_group("data")
    group.add_argument("--path", help=f"{path}; without it: built-in faces and the preset")
    group.add_argument("--size", type=image_size, default=64, help="width and height of the images in pixels")
    group.add_argument("--channels", type=int, choices=(1, 3), default=3, help="1 for grey, 3 for colour")
    group.add_argument("--flip", action=argparse.BooleanOptionalAction, default=False, help="mirror at random")
    if labels:
        group.add_argument("--labels", help="file of labels; by default the only one in or beside --path")
    group.add_argument("--cache", default=CACHE, help="folder for the decoded images")


def add_output_flags(parser: argparse.ArgumentParser, script: str, batchnorm: bool = True):
    group = parser.add_argument_group("output")
    group.add_argument("--out", default=f"runs/{Path(script).stem}", help="folder of the run")
    group.add_argument("--log-every", type=between(1), default=50, help="steps between rows of log.csv")
    group.add_argument("--save-every", type=between(1), default=500, help="steps between checkpoints, with a grid each")
    group.add_argument("--keep", type=between(0), default=3, help="numbered checkpoints to keep beside last.pt")
    group.add_argument("--resume", action="store_true", help="go on from --checkpoint; flags not given come from it")
    group.add_argument("--sample", type=between(1), metavar="N", help="write N images to OUT/generated and leave")
    if batchnorm:
        group.add_argument("--sample-mode", choices=("eval", "batch"), default="eval", help="statistics of BatchNorm")
    group.add_argument("--checkpoint", help="file for --resume and --sample (default: OUT/last.pt)")


def parse(parser, argv, script: str, preset: dict, architecture: tuple[str, ...]) -> argparse.Namespace:
    """Flags by hand, else the checkpoint's (--resume, --sample), else the preset's (no --path), else the defaults."""
    args, absent = parser.parse_args(argv), object()
    empty = {name: absent for name in vars(args) if name != "prompt"}  # a list that grows
    by_hand = vars(parser.parse_args(argv, argparse.Namespace(**empty)))
    given = {name for name, value in by_hand.items() if value is not absent}
    args.script, args.preset, out = Path(script).stem, False, Path(args.out)
    if args.resume or args.sample:
        args.checkpoint = args.checkpoint or str(out / "last.pt")
        checkpoint = read_checkpoint(args.checkpoint, args.script)
        saved = checkpoint["args"]
        for name in sorted(saved.keys() & vars(args).keys() - NOT_FROM_CHECKPOINT):
            if name not in given:
                setattr(args, name, saved[name])
            elif name in architecture and getattr(args, name) != saved[name]:
                flag, there = f"--{name.replace('_', '-')}", f"{args.checkpoint} has {saved[name]}"
                parser.error(f"{flag} {getattr(args, name)} is not possible, {there}: leave it out or start a new run")
        if args.resume and checkpoint["step"] >= args.steps:
            parser.error(f"{args.checkpoint} has done all of its {args.steps} steps: go on with a larger --steps")
    elif args.checkpoint:
        parser.error("--checkpoint needs --resume or --sample")
    elif args.path is None:
        args.preset = True
        vars(args).update({name: value for name, value in preset.items() if name not in given})
    goes_on = args.resume and out.resolve() in Path(args.checkpoint).resolve().parents
    goes_on |= bool(args.sample or int(os.environ.get("RANK", 0)))  # rank 0 may have begun to write
    if not goes_on and ((out / "last.pt").exists() or (out / "log.csv").exists()):
        parser.error(f"{out} already holds a run: go on with it by --resume, or name another folder by --out")
    return args


# --- images in -----------------------------------------------------------------------------------------------------


def find_images(folder: str, out: str) -> list[str]:
    """Image files below `folder`, but not below `out` or hidden, as sorted relative names; survives loops of links."""
    names, seen = [], {os.path.realpath(folder), os.path.realpath(out)}
    for root, folders, files in os.walk(folder, followlinks=True):
        real = {name: os.path.realpath(os.path.join(root, name)) for name in folders}
        folders[:] = [name for name in folders if name[0] != "." and real[name] not in seen]
        seen.update(real.values())
        found = [name for name in files if name[0] != "." and name.lower().endswith(SUFFIXES)]
        names += [os.path.relpath(os.path.join(root, name), folder) for name in found]
    return sorted(names)


def pixels(image: Image.Image, channels: int) -> np.ndarray:
    """A square image -> (C, S, S) uint8."""
    array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return array.reshape(*array.shape[:2], channels).transpose(2, 0, 1)


def paint(name: str, size: int, channels: int) -> np.ndarray:
    """The built-in face of that number -> (C, S, S) uint8."""
    return pixels(faces.paint(0, int(name), size)[0], channels)


def open_image(file: Path, draft: int | None = None) -> Image.Image:
    """An image file as RGB, upright, alpha on white; with `draft`, a large JPEG comes smaller, but not below that."""
    if not file.is_file():
        raise OSError("not a regular file")
    with Image.open(file) as image:
        if draft:
            image.draft(None, (draft, draft))
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip at 255
            image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def decode(name: str, size: int, channels: int, folder: str = "") -> np.ndarray:
    """An image file -> (C, S, S) uint8: cropped to the central square, then resized."""
    image = open_image(Path(folder, name), 2 * size)
    return pixels(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS), channels)


def load_images(args: argparse.Namespace) -> tuple[np.ndarray, list[str]]:
    """The images of --path, or the built-in faces: uint8 (N, C, S, S), memory-mapped from the cache, and their names.

    The cache's key is the list of files with their sizes and times; a folder has one cache per size of image. It is
    written to a temporary folder and renamed, so that no other process sees half of it. Files that cannot be read are
    counted and named at every start.
    """
    if args.path is None:
        where, source, make, names = "the built-in data", "faces", paint, [str(i) for i in range(FACES)]
        content = f"{FACES} {Path(faces.__file__).read_text(encoding='utf-8')}"
    else:
        where, source, folder = f"--path {args.path}", os.path.realpath(args.path), Path(args.path)
        make = functools.partial(decode, folder=args.path)
        if not folder.is_dir():
            fail(f"{where} is not a folder" if folder.exists() else f"{where} does not exist")
        names = find_images(args.path, args.out)
        if not names:
            fail(f"{where} holds no image: looked for {' '.join(SUFFIXES)} in it and in all its sub-folders")
        stats = [os.stat(folder / name) if (folder / name).exists() else None for name in names]
        content = repr([(name, s and (s.st_size, s.st_mtime_ns)) for name, s in zip(names, stats, strict=True)])
    slot, key = (hashlib.sha256(text.encode()).hexdigest()[:12] for text in (source, content))
    final = Path(args.cache) / f"{slot}-{args.size}-{args.channels}-v1-{key}"  # v2 when decode() changes
    index = final / "index.json"
    while int(os.environ.get("LOCAL_RANK", 0)) and not index.exists():  # the first process of each machine decodes
        time.sleep(0.1)
    if not index.exists():
        try:
            build_cache(final, names, functools.partial(make, size=args.size, channels=args.channels))
        except OSError as error:
            fail(f"cannot write to the cache {args.cache} ({error.strerror}): make room or name another by --cache", 1)
    good, bad = json.loads(index.read_text())
    if bad and int(os.environ.get("RANK", 0)) == 0:
        some = ", ".join(f"{name!r} ({why})" for name, why in list(bad.items())[:20]) + ", ..." * (len(bad) > 20)
        print(f"skipped {len(bad)} of {len(names)} files that cannot be read: {some}", file=sys.stderr)
    if len(good) < args.batch:
        fail(f"{where} has {len(good)} images, fewer than a batch of {args.batch}: add images or lower --batch")
    return np.memmap(final / "images.u8", np.uint8, "c", shape=(len(good), args.channels, args.size, args.size)), good


def build_cache(final: Path, names: list[str], make):
    """Decode all images in parallel into final/images.u8, in constant memory; remove older caches of the folder."""

    def attempt(name: str) -> np.ndarray | str:
        try:
            return make(name)
        except Exception as error:  # decoders raise anything at hostile files; they are named with the reason
            return str(error) if type(error) is OSError else type(error).__name__

    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix="building-", dir=final.parent))
    good, bad = [], {}
    try:
        with open(temporary / "images.u8", "wb") as file, ThreadPool() as pool:
            for start in tqdm(range(0, len(names), 512), desc="decoding", unit_scale=512, unit="img"):
                part = names[start : start + 512]
                for name, image in zip(part, pool.map(attempt, part), strict=True):
                    if isinstance(image, str):
                        bad[name] = image
                    else:
                        good.append(name)
                        file.write(image.tobytes())
            file.flush()
            os.fsync(file.fileno())
        if not good:
            fail(f"none of the {len(names)} image files can be read; the first is {names[0]!r} ({bad[names[0]]})")
        (temporary / "index.json").write_text(json.dumps([good, bad]))
        temporary.chmod(0o755)
        try:
            temporary.rename(final)
        except OSError:
            if not (final / "index.json").exists():  # half deleted; else a run that started with this one was first
                shutil.rmtree(final, ignore_errors=True)
                temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in set(final.parent.glob(f"{final.name.rsplit('-', 1)[0]}-*")) - {final}:
        shutil.rmtree(old, ignore_errors=True)


# --- labels in -----------------------------------------------------------------------------------------------------

Label = str | list[tuple[str, str]]  # a caption, or (group, value) of each tag or attribute: ("hair", "aqua"), ...


def label_format(lines: list[str]) -> str:
    """Of a label file, by its first two lines: "table", "csv" or "tags"; "" for any other file."""
    first, second = [*lines, "", ""][:2]
    if first.strip().isdigit() and len(second.split()) > 1:
        return "table"
    if re.match(r'"?(image|image_id|file|file_name|filename)"?\s*,', first, re.IGNORECASE):
        return "csv"
    return "tags" if re.match(r"[^,]+,.*( hair\b| eyes\b|:\d+(\t|$))", first) else ""


def find_labels(args: argparse.Namespace) -> str:
    """--labels, or the only file in or beside --path that begins like a file of labels."""
    folder, found = Path(args.path).resolve(), [args.labels] if args.labels else []
    for file in sorted({*folder.iterdir(), *folder.parent.iterdir()} if not found else ()):
        if file.suffix in (".csv", ".txt") and file.is_file():
            found += [str(file)] * bool(label_format(file.read_text("utf-8-sig", "replace").split("\n", 2)))
    if len(found) != 1:
        what = f"several label files: choose one by --labels, {' or '.join(found[:9])}" if found else "no label file"
        fail(f"in or beside --path {args.path} there is {what}")
    return found[0]


def tags(text: str) -> list[tuple[str, str]]:
    """Colours of hair, then of eyes, in "aqua hair red eyes" or "touhou:17705<tab>red eyes:9<tab>aqua hair:60<tab>"."""
    some = [tag.split(":")[0].strip() for tag in text.split("\t")] if ":" in text else re.findall(r"\S+ \S+", text)
    return [(group, tag.split()[0]) for group in COLOURS for tag in some if re.fullmatch(COLOURS[group], tag)]


def read_text(file: str) -> str:
    try:
        return Path(file).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file} cannot be read as UTF-8 text ({type(error).__name__}): name another file")


def read_embeddings(file: str, rows: int | None = None) -> torch.Tensor:
    """A .npy file of `rows` vectors -> float32 (rows, width)."""
    try:
        vectors = torch.from_numpy(np.load(file, allow_pickle=False)).float()
    except (OSError, EOFError, ValueError, TypeError) as error:
        fail(f"--embeddings {file} cannot be read as numbers ({type(error).__name__}): save them by numpy.save")
    if vectors.dim() != 2 or len(vectors) != (rows or len(vectors)):
        fail(f"--embeddings {file} has the shape {tuple(vectors.shape)}: expected a row for each of {rows} labels")
    return vectors


def read_labels(file: str) -> list[tuple[str, Label]]:
    """Rows (image, label) of a file whose format is recognised by content; the image is "" where a row names none.

    tags    0,aqua hair aqua eyes   or   0,touhou:17705<tab>aqua hair:60<tab>    colours of hair and eyes are kept
    csv     image,caption           or   image,Bald,Young and then 0/1 or -1/1
    table   a count (not trusted), names of columns, rows of 0/1 or -1/1 after the image's name or without it

    -1/1: each column is a group (Bald: no or yes). 0/1: a group is what names share (hair_red, with_hat without_hat).
    """
    lines = read_text(file).replace("\r\n", "\n").split("\n")
    kind, columns, rows = label_format(lines), ["tags"], [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if kind == "csv":
        reader = csv.reader(map("{}\n".format, lines), strict=True)
        try:
            columns, rows = next(reader)[1:], [(reader.line_num, row) for row in reader if row]
        except csv.Error as error:
            fail(f"{file}, line {reader.line_num}: {error}; close or double the quotes")
    elif kind == "table":
        columns, rows = lines[1].split(), [(n, line.split()) for n, line in rows[2:]]
    else:
        rows = [(n, line.split(",", 1)) for n, line in rows]
    if not (kind and rows):
        fail(f"the labels {file} have no rows in a format that the README names: make it a CSV with image,caption")
    off = "-1" if any("-1" in row for _, row in rows) else "0"
    starts = [c.split("_")[0] for c in columns if not c.startswith(("with_", "without_"))]
    pairs = [(a, b) if starts.count(a) > 1 else (b or a, a) for a, _, b in (c.partition("_") for c in columns)]
    shared = {group for group, _ in pairs if off == "0" and [g for g, _ in pairs].count(group) > 1}
    both = zip(columns, pairs, strict=True)  # what a cell says
    cells = [{"1": p, off: None} if p[0] in shared else {"1": (c, "yes"), off: (c, "no")} for c, p in both]
    found = []
    for n, row in rows:
        name, values = ("", row) if kind == "table" and len(row) == len(columns) else (row[0].strip(), row[1:])
        if len(values) != len(columns) or (len(columns) > 1 and not {*values} <= {"1", off}):
            fail(f"{file}, line {n}: expected the image and {len(columns)} values; mend or remove the line")
        if len(columns) > 1:
            found.append((name, [pair for pair in map(dict.get, cells, values) if pair]))
        else:
            found.append((name, tags(values[0]) if kind == "tags" else values[0]))
    return found


def load_labels(args: argparse.Namespace, names: list[str], text: bool = False) -> tuple[np.ndarray, list]:
    """Which images have a label (indices), and those labels: captions if `text`, else lists of (group, value).

    The caption of tags is "aqua hair blue eyes"; images that have neither are left out, as those that no row names.
    With --embeddings the labels are its vectors: row i belongs to row i of the file of labels.
    """
    if args.path is None:
        if args.labels:
            fail("--labels needs --path: the built-in faces have labels of their own")
        where, looks = "the built-in data", [faces.describe(np.random.default_rng([0, int(name)])) for name in names]
        table = [(k, [(g, v[g]) for g in (COLOURS if text else v)]) for k, v in zip(names, looks, strict=True)]
    else:
        table = read_labels(where := find_labels(args))
    if text:
        table = [(k, v if isinstance(v, str) else " ".join(f"{b} {a}" for a, b in v)) for k, v in table]
    elif any(isinstance(label, str) for _, label in table):
        fail(f"{where} holds captions, and {args.script}.py needs attributes: train cgan_text2img.py on it")
    place = {name: row for row, (name, label) in enumerate(table) if not text or re.search(r"\w", label)}
    keys = [next((k for k in (name, Path(name).name, Path(name).stem) if k in place), None) for name in names]
    rows = np.array([i for i, key in enumerate(keys) if key is not None], dtype=np.int64)
    places = [place[keys[i]] for i in rows]
    lost, spare = len(names) - len(rows), len(table) - len(set(places))
    if lost + spare and int(os.environ.get("RANK", 0)) == 0:
        print(f"left out: {lost} images without a label in {where}, {spare} of its rows", file=sys.stderr)
    if len(rows) < args.batch:
        fail(f"{where} labels {len(rows)} images, fewer than a batch of {args.batch}: are these its images?")
    if text and args.embeddings:
        return rows, list(read_embeddings(args.embeddings, len(table))[places])
    return rows, [table[row][1] for row in places]


# --- batches -------------------------------------------------------------------------------------------------------


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


class Batches:
    """Endless batches (batch / world, C, S, S) in [-1, 1]: a pure function of (seed, position, rank, world).

    An epoch is a permutation of all images, cut into whole batches of --batch; rank r takes images r, r + world, ...
    With `rows` and their `labels` only those images are drawn, and a batch is (images, labels).
    """

    def __init__(self, images: np.ndarray, args: argparse.Namespace, rank: int, world: int, rows=None, labels=None):
        self.images, self.device, self.position, self.permutation = torch.from_numpy(images), args.device, 0, (-1, None)
        self.rows, self.labels = np.arange(len(images)) if rows is None else rows, labels
        if len(self.rows) < args.batch:
            fail(f"{len(self.rows)} images to draw from are fewer than a batch of {args.batch}: lower --batch")
        self.seed, self.batch, self.flip, self.mine = args.seed, args.batch, args.flip, slice(rank, None, world)
        if "cuda" in args.device and images.nbytes < 0.4 * torch.cuda.mem_get_info(args.device)[0]:
            self.images = self.images.to(args.device)

    def state_dict(self) -> dict:
        return {"position": self.position}

    def load_state_dict(self, state: dict):
        self.position = state["position"]

    def __next__(self) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        epoch, k = divmod(self.position, len(self.rows) // self.batch)
        if self.permutation[0] != epoch:
            self.permutation = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        chosen = self.permutation[1][k * self.batch : (k + 1) * self.batch][self.mine]
        x = self.images[torch.from_numpy(self.rows[chosen]).to(self.images.device)]
        if x.device.type == "cpu" and "cuda" in self.device:
            x = x.pin_memory().to(self.device, non_blocking=True)
        x = normalise(x.to(self.device))
        if self.flip:
            coins = np.random.default_rng([self.seed, epoch, k]).integers(0, 2, self.batch, dtype=np.uint8)[self.mine]
            x = torch.where(torch.from_numpy(coins).bool().to(self.device)[:, None, None, None], x.flip(3), x)
        self.position += 1
        return x if self.labels is None else (x, self.labels[torch.from_numpy(chosen)].to(self.device))


# --- checkpoints ---------------------------------------------------------------------------------------------------


def atomic(path: Path, write):
    """`write(file)` to a temporary file, fsync, rename: at every moment `path` is whole, the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        if temporary.exists():
            temporary.unlink()
        fail(f"cannot write {path} ({getattr(error, 'strerror', None) or error}); what was there before is intact", 1)


def read_checkpoint(path: str, script: str) -> dict:
    """A checkpoint file, read without running any code that it might hold (weights_only)."""
    if not Path(path).is_file():
        fail(f"there is no checkpoint {path}: name one by --checkpoint, or a run's folder by --out")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["script"] != script:
            fail(f"{path} is a checkpoint of {saved['script']}.py, not of {script}.py")
        return {"step": int(saved["step"]), "args": dict(saved["args"]), "state": dict(saved["state"])}
    except Exception as error:  # whatever the file holds instead, the user needs the same sentence
        fail(f"{path} is damaged or no checkpoint of this project ({type(error).__name__}): name another file")


# --- files out -----------------------------------------------------------------------------------------------------


def write_samples(args: argparse.Namespace, generate, labels: list[dict[str, str]] = ()):
    """Write --sample images to OUT/generated, 00000.png on; `generate()` returns the next, (n, C, S, S) in [-1, 1].

    `labels`, what the images were asked to show, goes to labels.csv beside them; "image" in it names the files.
    """
    if int(os.environ.get("RANK", 0)):
        return
    folder = Path(args.out) / "generated"
    for old in [*folder.glob("*.png"), *folder.glob("labels.csv")]:
        old.unlink()
    rows = []
    with tqdm(total=args.sample, desc=str(folder), unit="img") as bar:
        while len(rows) < args.sample:
            for image in generate()[: args.sample - len(rows)].float():
                rows.append({"image": f"{len(rows):05d}.png"} | (labels[len(rows)] if labels else {}))
                write = functools.partial(save_image, image, format="png", normalize=True, value_range=(-1, 1))
                atomic(folder / rows[-1]["image"], write)
                bar.update()
    if labels:
        writer = csv.DictWriter(text := io.StringIO(newline=""), rows[0])
        writer.writeheader()
        writer.writerows(rows)
        atomic(folder / "labels.csv", lambda file: file.write(text.getvalue().encode()))


def translate_folder(args: argparse.Namespace, out: str, translate):
    """Every image of --translate through `translate`, (1, C, H, W) -> the same in [-1, 1], to `out` under its name.

    `translate` gets it with a shorter side of --size pixels; what comes back is resized to the image's own size. The
    first eight stand in _sheet.png, each beside its translation.
    """
    if int(os.environ.get("RANK", 0)):
        return
    names, pairs = [name for name in find_images(args.translate, out) if name != "_sheet.png"], []
    if not names:
        fail(f"--translate {args.translate} is no folder with images: looked for {' '.join(SUFFIXES)}")
    if Path(out).resolve() == Path(args.translate).resolve():
        fail(f"--translate {args.translate} is where the results would go: name another folder by --out")
    for name in tqdm(names, out, unit="img"):
        try:
            image = open_image(Path(args.translate, name))
        except Exception as error:  # decoders raise anything at hostile files
            print(f"skipped {name!r}, which cannot be read ({type(error).__name__})", file=sys.stderr)
            continue
        size = [max(args.size, round(side * args.size / min(image.size))) for side in image.size]
        x = torch.tensor(pixels(image.resize(size, Image.Resampling.LANCZOS), args.channels))
        y = translate(normalise(x)[None])[0].float().add(1).mul(127.5).round().byte()
        y = to_pil_image(y.cpu()).resize(image.size, Image.Resampling.LANCZOS)
        kind = Image.registered_extensions()[Path(name).suffix.lower()]
        atomic(Path(out, name), functools.partial(y.save, format=kind, quality=95))
        if len(pairs) < 16:
            pairs += [pixels(ImageOps.fit(each, (args.size, args.size)), args.channels) for each in (image, y)]
    if pairs:
        sheet = normalise(torch.from_numpy(np.stack(pairs)))
        atomic(
            Path(out, "_sheet.png"), lambda file: save_image(sheet, file, "png", normalize=True, value_range=(-1, 1))
        )


def numbered(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder whose names are steps, in their order."""
    return sorted((f for f in folder.glob(f"*{suffix}") if f.stem.isdigit()), key=lambda f: int(f.stem))


class Run:
    """The folder of a run and its progress bar. Rank 0 writes; on the other ranks everything here is silent.

    `sample()` returns images (GRID, C, S, S) in [-1, 1], always of the same noise. A resumed run drops what lies in OUT
    after its checkpoint (rows, frames, events, checkpoints), and a frame that was drawn because a run ended between two
    grids: log and GIF become those of a run without a break.
    """

    def __init__(self, args: argparse.Namespace, data: Batches, start: int, sample, rank: int, diversity: bool = True):
        self.args, self.data, self.start, self.sample, self.rank = args, data, start, sample, rank
        self.diversity = diversity
        self.out, self.step, self.saved, self.first = Path(args.out), start, start, data.position
        self.stop = self.leaving = False

    def __enter__(self):
        self.handlers = {number: signal.signal(number, self.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        if self.rank:
            return self
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        self.drop_later()
        settings = {**vars(self.args), "torch": torch.__version__, "images": len(self.data.images)}
        atomic(self.out / "args.json", lambda file: file.write(json.dumps(settings, indent=2).encode()))
        rows = self.data.rows[np.random.default_rng(self.args.seed).permutation(len(self.data.rows))[:GRID]]
        real = normalise(self.data.images[torch.from_numpy(rows).to(self.data.images.device)])
        save_image(real, self.out / "real.png", normalize=True, value_range=(-1, 1))
        self.real_distance = max(torch.pdist(real.flatten(1).cpu()).mean().item(), 1e-12)
        self.events = SummaryWriter(self.out, purge_step=self.start + 1)
        self.bar = tqdm(desc=str(self.out), total=self.args.steps, initial=self.start, unit="step", mininterval=1)
        return self

    def __exit__(self, kind, error, trace):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.rank == 0:
            self.bar.close()
            self.events.close()
            if isinstance(error, OSError):
                fail(f"cannot write to {self.out} ({error.strerror}): go on with --resume, from step {self.saved}", 1)
            if self.leaving and self.step < self.args.steps:
                print(f"stopped and saved at step {self.step}: go on with --resume", file=sys.stderr)

    def on_signal(self, number, frame):
        """The first Ctrl-C (or SIGTERM) ends the run after the step and saves; a second Ctrl-C ends it at once."""
        if self.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop = True

    def drop_later(self):
        log = self.out / "log.csv"
        if log.exists():
            rows = [row for row in log.read_text().splitlines(keepends=True) if row.endswith("\n")]  # a power cut tears
            done = [row for row in rows[1:] if row.split(",")[0].isdigit() and int(row.split(",")[0]) <= self.start]
            atomic(log, lambda file: file.write("".join(rows[:1] + done).encode()))
        grid = self.start - bool(self.start % self.args.save_every)  # without the one of a run's end between two grids
        for folder, suffix, last in (("samples", ".png", grid), ("checkpoints", ".pt", self.start)):
            for file in (file for file in numbered(self.out / folder, suffix) if int(file.stem) > last):
                file.unlink()

    def steps(self):
        """Yield the steps from `start` to --steps; end early after Ctrl-C."""
        for step in range(self.start, self.args.steps):
            self.step = step + 1  # steps done when the caller comes to log()
            yield step
            if self.leaving:
                break

    def log(self, metrics: dict[str, torch.Tensor]):
        """Count the step; every --log-every steps write the metrics (moved to the CPU only then) and the diversity."""
        if self.rank:
            return
        self.bar.update()
        if self.step % self.args.log_every:
            return
        row = {name: value.item() for name, value in metrics.items()}
        for name, value in row.items():
            if not math.isfinite(value):
                self.not_finite(f"{name} is {value}")
        # mean distance between samples over that between as many reals: 1 is as diverse as the data, 0 is collapsed
        if self.diversity:
            row["diversity"] = torch.pdist(self.sample().flatten(1).float().cpu()).mean().item() / self.real_distance
        with open(self.out / "log.csv", "a", encoding="utf-8", newline="") as file:
            if not file.tell():
                file.write(",".join(["step", *row]) + "\n")
            file.write(",".join([str(self.step), *(f"{value:.9g}" for value in row.values())]) + "\n")
        bar = self.bar.format_dict
        speed = (self.data.position - self.first) * self.args.batch / bar["elapsed"]
        for name, value in {**row, "images_per_second": speed}.items():
            self.events.add_scalar(name, value, self.step)
        epoch = self.data.position * self.args.batch / len(self.data.rows)
        self.bar.set_postfix({**row, "img/s": f"{speed:.0f}", "epoch": f"{epoch:.1f}"}, refresh=False)

    def due(self) -> bool:
        """Time to save: every --save-every steps, at the end, after Ctrl-C (processes agree on it every 10 steps)."""
        self.leaving = self.stop and not dist.is_initialized()
        if dist.is_initialized() and self.step % 10 == 0:
            flag = torch.tensor(float(self.stop), device=self.args.device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            self.leaving = bool(flag)
        self.leaving |= self.step == self.args.steps
        return self.leaving or self.step % self.args.save_every == 0

    def save(self, state: dict):
        """Write grid, checkpoint (the state_dict of everything in `state`) and GIF, unless a weight is not finite."""
        if self.rank:
            return
        values = {name: thing.state_dict() for name, thing in state.items()}
        for name, weights in values.items():
            for key, weight in weights.items():
                if torch.is_tensor(weight) and weight.is_floating_point() and not weight.isfinite().all():
                    self.not_finite(f"{name}.{key} is not finite")
        if self.step > self.start or self.start == 0:  # else the grid is there
            grid, file = make_grid(self.sample().float(), normalize=True, value_range=(-1, 1)), f"{self.step:06d}.png"
            atomic(self.out / "samples" / file, lambda file: save_image(grid, file, "png"))
            self.events.add_image("samples", grid, self.step)
            self.events.flush()
        content = {"script": self.args.script, "step": self.step, "args": vars(self.args), "state": values}
        for path in [self.out / f"checkpoints/{self.step:06d}.pt"] * bool(self.args.keep) + [self.out / "last.pt"]:
            atomic(path, lambda file: torch.save(content, file))
        for old in numbered(self.out / "checkpoints", ".pt")[: -self.args.keep or None]:
            old.unlink()
        self.saved = self.step
        self.write_gif()

    def write_gif(self):
        """progress.gif of all grids, at most 600 pixels wide: after 1, 2, 4, 8, ... grids and at the end."""
        files = numbered(self.out / "samples", ".png")
        if files and (self.leaving or len(files) & (len(files) - 1) == 0):
            frames = [Image.open(file).convert("RGB") for file in files]
            for frame in frames:
                frame.thumbnail((600, 600))
            options = {"save_all": True, "append_images": frames[1:], "duration": 200, "loop": 0}
            atomic(self.out / "progress.gif", lambda file: frames[0].save(file, "GIF", **options))

    def not_finite(self, what: str):
        fail(f"{what} at step {self.step}; the last good checkpoint is {self.out}/last.pt (step {self.saved})", 1)
