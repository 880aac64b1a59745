"""Data in: every kind of image file, hostile ones too; the cache; the order of batches."""

import argparse
import json
import multiprocessing
import os
import resource
import shlex
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED
from PIL import Image, ImageDraw
from test_training import refused

import common
import faces


def data_args(path, cache, **flags) -> argparse.Namespace:
    defaults = {"out": "nowhere", "size": 32, "channels": 3, "batch": 1, "seed": 0, "flip": False, "device": "cpu"}
    defaults |= {"fit": "crop", "found": {}}
    return argparse.Namespace(path=str(path), cache=str(cache), **(defaults | flags))


def load(path, cache, **flags):
    return common.load_images(data_args(path, cache, **flags))


def picture(size=(48, 48), color=(200, 40, 90)) -> Image.Image:
    return Image.new("RGB", size, color)


# --- hostile files ---


def png_of_declared_size(width, height) -> bytes:
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def write_zoo(folder: Path) -> tuple[dict[str, tuple[int, int, int]], set[str]]:
    """Files of every kind; returns {readable name: its color at the center} and the names of the unreadable."""
    red, good = (200, 40, 90), {}

    def save(image, name, color, **options):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name, **options)
        good[name] = color

    for suffix in ("png", "bmp", "gif", "tif", "webp", "jpg", "jpeg"):
        save(picture(), f"kind.{suffix}", red)
    save(picture(), "a/b/c/DEEP.PNG", red)
    save(picture(), "upper.JPG", red, format="JPEG")
    save(picture(), "new\nline.png", red)
    save(picture(), "ünïcode 顔.png", red)
    save(picture((1, 1)), "dot.png", red)
    save(picture((4000, 10)), "wide.png", red)
    save(Image.new("L", (48, 48), 130), "gray.png", (130, 130, 130))
    save(Image.fromarray(np.full((48, 48), 130 * 257, np.uint16)), "gray16.png", (130, 130, 130))
    save(Image.fromarray(np.full((48, 48), 130 * 257, np.uint16)), "gray16.tif", (130, 130, 130))
    save(Image.new("1", (48, 48), 1), "bilevel.png", (255, 255, 255))
    save(Image.new("CMYK", (48, 48), (0, 255, 255, 0)), "cmyk.jpg", (254, 0, 0))
    save(Image.new("RGBA", (48, 48), (0, 0, 0, 0)), "clear.png", (255, 255, 255))
    save(Image.new("RGBA", (48, 48), (200, 40, 90, 128)), "half.png", (227, 147, 172))
    save(Image.new("LA", (48, 48), (0, 128)), "grayalpha.png", (127, 127, 127))
    palette = Image.new("P", (48, 48), 1)
    palette.putpalette([0, 0, 0, 200, 40, 90])
    save(palette, "palette.png", red)
    save(palette, "palettealpha.png", (255, 255, 255), transparency=1)

    bad = {"truncated.jpg", "empty.png", "text.jpg", "huge.png", "broken.png", "folder.jpg/link.png"}
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(folder / "truncated.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "truncated.jpg").read_bytes()[:900])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no image")
    (folder / "huge.png").write_bytes(png_of_declared_size(60000, 60000))
    (folder / "broken.png").write_bytes(png_of_declared_size(64, 64))
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg/link.png").symlink_to("nowhere")

    picture().save(folder / ".hidden.png")
    (folder / ".git").mkdir()
    picture().save(folder / ".git/inside.png")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    (folder / "a/loop").symlink_to(folder, target_is_directory=True)
    (folder / "a/b/twice").symlink_to(folder / "a/b/c", target_is_directory=True)
    return good, bad


def test_every_kind_of_file(tmp_path, capsys):
    """Catches a kind of file that stops the run, is converted wrongly, or is left out without a word."""
    (tmp_path / "zoo").mkdir()
    good, bad = write_zoo(tmp_path / "zoo")
    images, names = load(tmp_path / "zoo", tmp_path / "cache")
    assert names == sorted(good)
    for name, image in zip(names, images, strict=True):
        error = abs(image[:, 16, 16].astype(int) - good[name]).max()
        assert error <= (12 if name.lower().endswith(("jpg", "jpeg", "webp")) else 1), (name, image[:, 16, 16])
    for _ in range(2):  # at every start
        message = capsys.readouterr().err
        assert f"images: {len(good)} of {len(good) + len(bad) + 4} files in {tmp_path / 'zoo'}, " in message
        assert f"left out: files that cannot be read: {len(bad)} (" in message
        assert (
            "'truncated.jpg' (image file is truncated" in message and "'empty.png' (UnidentifiedImageError)" in message
        )
        assert "'folder.jpg/link.png' (not a regular file)" in message
        assert (
            "left out: hidden files: 3\n" in message and "left out: files that are not images: 1 (1 .txt)\n" in message
        )
        load(tmp_path / "zoo", tmp_path / "cache")


def test_a_run_does_not_train_on_its_own_pictures(tmp_path):
    """Catches an --out inside --path, whose grids would become data."""
    (tmp_path / "data/run/samples").mkdir(parents=True)
    picture().save(tmp_path / "data/a.png")
    picture().save(tmp_path / "data/run/samples/000000.png")
    assert load(tmp_path / "data", tmp_path / "cache", out=str(tmp_path / "data/run"))[1] == ["a.png"]
    (tmp_path / "short").symlink_to(tmp_path / "data/run", target_is_directory=True)  # the same folder by another name
    assert load(tmp_path / "data", tmp_path / "cache", out=str(tmp_path / "short"))[1] == ["a.png"]
    (tmp_path / "other").symlink_to(tmp_path / "data", target_is_directory=True)
    assert load(tmp_path / "other", tmp_path / "cache", out=str(tmp_path / "data/run"))[1] == ["a.png"]


def write_run(folder: Path, *files: str):
    """A folder with these files and a sample, as a run leaves them."""
    (folder / "samples").mkdir(parents=True)
    picture().save(folder / "real.png")
    picture().save(folder / "samples/000000.png")
    for file in files:
        (folder / file).write_text("{}")


LEFT_OUT = {  # folders below --path -> whether their images are used
    ("args.json", "log.csv", "last.pt"): False,
    ("args.json", "last.pt"): False,
    ("args.json", "log.csv"): False,  # it has not saved yet
    ("args.json",): True,  # of another program
    (): True,
}


@pytest.mark.parametrize("files", LEFT_OUT)
def test_samples_of_other_runs_are_no_training_images(tmp_path, capsys, files):
    """Catches --path . in a folder that holds runs/: 75 of 20 images would be samples; and folders of the user's that are left out."""
    data = tmp_path / "data"
    write_run(data / "runs/old", *files)
    picture().save(data / "a.png")
    names = load(data, tmp_path / "cache", out=str(tmp_path / "new"))[1]
    inside = ["runs/old/real.png", "runs/old/samples/000000.png"]
    assert names == ["a.png", *(inside if LEFT_OUT[files] else [])]
    message = capsys.readouterr().err
    count = 0 if LEFT_OUT[files] else 2 + len(files)
    assert (f"left out: files in the folders of runs: {count} (runs/old" in message) == bool(count)


def test_a_run_is_no_folder_of_images(tmp_path, capsys):
    """Catches --path D --out D, whose samples become training images at the next start, and a run as --path."""
    picture().save(tmp_path / "a.png")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    for out in (tmp_path, tmp_path / "link", tmp_path / "sub/.."):
        with refused(capsys, 2, "--out", str(out), "the folder of the images"):
            load(tmp_path, tmp_path / "cache", out=str(out))
    write_run(tmp_path / "run", "args.json", "log.csv", "last.pt")
    with refused(capsys, 2, str(tmp_path / "run"), "is the folder of a run"):
        load(tmp_path / "run", tmp_path / "cache", out=str(tmp_path / "new"))
    assert (
        len(load(tmp_path / "run/samples", tmp_path / "cache", out=str(tmp_path / "new"))[1]) == 1
    )  # compare.py asks for such


def test_folders_without_permission_are_named(tmp_path, capsys, monkeypatch):
    """Catches images that vanish in silence; the file system is made to refuse, because root may read everything."""
    for name in ("a.png", "locked/b.png", "open/c.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        picture().save(tmp_path / "data" / name)
    listdir = os.listdir

    def refusing(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refusing)
    args = data_args(tmp_path / "data", tmp_path / "cache")
    assert common.load_images(args)[1] == ["a.png", "open/c.png"]
    message = capsys.readouterr().err
    assert "left out: folders that cannot be read: 1 (locked (Permission denied))\n" in message
    assert (
        args.found[args.path]["files"] == 2 and args.found[args.path]["left_out"] == {}
    )  # nobody can count what is in it


def test_a_file_that_the_machine_cannot_read_is_not_left_out(tmp_path, capsys, monkeypatch):
    """Catches an image that the cache leaves out for ever, because the disk failed or a permission was missing once."""
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "data").mkdir(exist_ok=True)
        picture().save(tmp_path / "data" / name)
    args = data_args(tmp_path / "data", tmp_path / "cache")
    open_image = common.open_image

    def failing(path, draft=None):
        if path.name == "b.png":
            raise error
        return open_image(path, draft)

    monkeypatch.setattr(common, "open_image", failing)
    for error in (PermissionError(13, "Permission denied"), OSError(12, "Cannot allocate memory"), MemoryError()):
        with refused(capsys, 1, f"'b.png' cannot be read ({getattr(error, 'strerror', 'not enough memory')})"):
            common.load_images(args)
    monkeypatch.setattr(common, "open_image", open_image)
    assert common.load_images(args)[1] == ["a.png", "b.png", "c.png"]


# --- a folder of everything ---

IMAGE_FILES = [
    "a.png",
    "B.JPG",
    "c.Jpeg",
    "d.TIF",
    "e.webp",
    "no-suffix",
    "sub/f.png",
    "sub/no suffix",
    "sub/deep/g.bmp",
]
IMAGE_FILES += [
    "-k.png",
    "i j.png",
    "new\nline.png",
    "ünïcode 顔.png",
    os.fsdecode(b"not utf-8 \xff.png"),
    "x.y.png",
    "p.jfif",
]
HIDDEN_FILES = [
    ".DS_Store",
    "._a.png",
    ".png",
    "Thumbs.db",
    "sub/THUMBS.DB",
    "desktop.ini",
    "sub/Desktop.ini",
    ".git/config",
]
HIDDEN_FILES += [".git/objects/a.png", ".ipynb_checkpoints/a.png", ".git/run/args.json", ".git/run/last.pt"]
RUN_FILES = [
    f"runs/{run}/{name}"
    for run in ("x", "Y.png")
    for name in ("args.json", "log.csv", "real.png", "samples/000000.png")
]
RUN_FILES += ["out/real.png", "out/samples/000000.png", "out/generated/.written", "runs/x/notes.txt"]
OTHER_FILES = {  # file that is no image -> the word that it is counted by
    "notes.txt": ".txt", "NOTES.TXT": ".txt", "labels.csv": ".csv", "tags.jsonl": ".jsonl", "sub/a.txt": ".txt", "film.mp4": ".mp4",
    "pack.zip": ".zip", "pack.tar.gz": ".gz", "paper.pdf": ".pdf", "README": "without a suffix", "sub/LICENSE": "without a suffix",
    "empty": "without a suffix", "data.npy": ".npy", os.fsdecode(b"caf\xe9.txt"): ".txt", "runs/notes.txt": ".txt",
}  # fmt: skip
DAMAGED_FILES = ["empty.png", "text.jpg", "sub/cut.jpg", "cut-without-suffix"]


def picture_file(file: Path, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG"}.get(file.suffix.lower(), "PNG")
    picture(**options).save(file, kind)


def write_attic(root: Path) -> tuple[list[str], dict[str, int], dict[str, int]]:
    """One folder of everything, root/data; returns the names of its images, what is left out, and its counts by suffix."""
    data = root / "data"
    for name in IMAGE_FILES:
        picture_file(data / name)
    for name in [*HIDDEN_FILES, *RUN_FILES, *OTHER_FILES]:
        if name.endswith(".png") and name != ".png":
            picture_file(data / name)
        else:
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            (data / name).write_bytes(b"" if name == "empty" else b"{}")
    whole = (data / "c.Jpeg").read_bytes()
    for name, content in zip(DAMAGED_FILES, (b"", b"no", whole[:-40], whole[:-40]), strict=True):
        (data / name).write_bytes(content)
    picture_file(root / "elsewhere/one.png")
    picture_file(root / "elsewhere/below/two.png")
    (root / "elsewhere/notes.txt").write_text("x")

    links = {  # what a link leads to
        "link-to-a-file.png": "a.png",
        "link-without-suffix": "sub/f.png",
        "folder-link": root / "elsewhere",  # searched
        "again": root / "elsewhere/below",  # a part of it, which is found first
        "aaa-link-to-sub": "sub",  # comes before sub, which it leads to
        "sub/loop": data,
        "sub/deep/up": "..",
        ".hidden-link": "sub",
        "broken.png": "nowhere.png",
        "broken": "nowhere",
        "broken.txt": "nowhere.txt",
        "itself": "itself",
    }
    for name, target in links.items():
        (data / name).symlink_to(target)
    os.mkfifo(data / "pipe.png")
    os.mkfifo(data / "pipe")
    (data / "empty folder").mkdir()

    names = [*IMAGE_FILES, "link-to-a-file.png", "link-without-suffix", "folder-link/one.png", "again/two.png"]
    words = [*OTHER_FILES.values(), ".txt", ".txt"]  # elsewhere/notes.txt and broken.txt
    left_out = {
        "hidden files": len(HIDDEN_FILES),
        "files in the folders of runs": len(RUN_FILES),
        "files that are not images": len(words),
    }
    left_out["files that cannot be read"] = len(DAMAGED_FILES) + len(
        ["broken.png", "broken", "itself", "pipe.png", "pipe"]
    )
    return sorted(names), left_out, {word: words.count(word) for word in words}


def test_every_file_of_a_folder_of_everything(tmp_path, capsys):
    """Catches a file that is neither used nor counted, is counted twice, or under another reason; a loop, and a pipe that waits for ever."""
    expected, left_out, words = write_attic(tmp_path)
    total = len(expected) + sum(left_out.values())
    assert total >= 60
    for _ in range(2):  # from the cache, too
        args = data_args(tmp_path / "data", tmp_path / "cache", out=str(tmp_path / "data/out"))
        capsys.readouterr()
        images, names = common.load_images(args)
        assert names == expected and len(images) == len(names)
        assert all(abs(image[:, 9, 9].astype(int) - (200, 40, 90)).max() <= 12 for image in images)
        found = args.found[args.path]
        assert found["left_out"] == left_out
        assert (found["files"], found["images"]) == (total, len(expected))
        assert (found["smallest"], found["largest"], found["enlarged"]) == ([48, 48], [48, 48], 0)

        lines = [line for line in capsys.readouterr().err.splitlines() if "img/s" not in line]
        first = f"images: {len(expected)} of {total} files in {args.path}, 48x48 pixels, now 32x32 (crop)"
        assert lines[-5] == first, lines
        counted = {}
        for line in lines[-4:]:
            reason, count = line.removeprefix("left out: ").split(": ", 1)
            counted[reason] = int(count.split(" ")[0])
            if reason == "files that are not images":
                parts = [part.split(" ", 1) for part in count.split(" (")[1].removesuffix(")").split(", ")]
                assert {word: int(n) for n, word in parts} == words
        assert counted == left_out
        assert (
            "'pipe' (not a regular file)" in lines[-1] and "'cut-without-suffix' (image file is truncated" in lines[-1]
        )


TWO_NAMES = {  # links in a folder with z/a.png -> the names of its images
    "a link before the folder": ({"a": "z"}, ["z/a.png"]),
    "a link behind it": ({"zz": "z"}, ["z/a.png"]),
    "a link in a folder before it": ({"b/link": "../z"}, ["z/a.png"]),
    "a chain of links": ({"a": "b", "b": "c", "c": "z"}, ["z/a.png"]),
    "a link to all": ({"a": "."}, ["z/a.png"]),
    "two links to another folder": ({"a": "../elsewhere", "b": "../elsewhere"}, ["a/one.png", "z/a.png"]),
    "a link to a folder below": ({"a": "z/deep"}, ["z/a.png"]),
    "a link to a file": ({"a.png": "z/a.png"}, ["a.png", "z/a.png"]),
}


@pytest.mark.parametrize("case", TWO_NAMES)
def test_a_folder_has_its_own_name_and_is_searched_once(tmp_path, case):
    """Catches images twice, and names that depend on a link: the rows of a label file, or the classes by folder, would not fit."""
    links, expected = TWO_NAMES[case]
    for name in ("data/z/a.png", "data/z/deep/c.png", "elsewhere/one.png"):
        picture_file(tmp_path / name)
    for name, target in links.items():
        (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(target)
    assert load(tmp_path / "data", tmp_path / "cache")[1] == sorted([*expected, "z/deep/c.png"])


ASIDE_TWICE = {  # a second name for files that are left out: files, links
    "a run": (
        ["runs/x/args.json", "runs/x/log.csv", "runs/x/real.png"],
        {"runs/latest": "x"},
        "files in the folders of runs",
    ),
    "a hidden folder": ([".git/config"], {".link": ".git"}, "hidden files"),
    "a link in a hidden folder": ([".git/config"], {".git/link": "../../elsewhere"}, "hidden files"),
    "a link in a run": (["x/args.json", "x/log.csv"], {"x/link": "../../elsewhere"}, "files in the folders of runs"),
}


@pytest.mark.parametrize("case", ASIDE_TWICE)
def test_what_is_left_out_is_counted_once(tmp_path, case):
    """Catches a sum that is not the number of files: runs/latest beside runs/x doubled its files."""
    files, links, reason = ASIDE_TWICE[case]
    picture_file(tmp_path / "data/a.png")
    for name in files:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.txt").touch()
    for name, target in links.items():
        (tmp_path / "data" / name).symlink_to(target)
    args = data_args(tmp_path / "data", tmp_path / "cache")
    common.load_images(args)
    assert args.found[args.path]["left_out"] == {reason: len(files) + ("elsewhere" in str(links))}


def test_nothing_is_said_of_an_empty_folder(tmp_path, capsys):
    """Catches "left out: 0 hidden" for an empty .cache, and "left out: 0 ..." for what a link has led to."""
    picture_file(tmp_path / "data/a.png")
    (tmp_path / "data/.cache").mkdir()
    load(tmp_path / "data", tmp_path / "cache")
    assert "left out" not in capsys.readouterr().err


@pytest.mark.parametrize("inside", ["samples", "generated", "compare/generated"])
def test_a_link_into_out_is_no_way_around(tmp_path, inside):
    """Catches `ln -s out/samples newest` in the folder of images, by which samples of the run become its data."""
    picture_file(tmp_path / "data/a.png")
    write_run(tmp_path / "data/out", "args.json", "log.csv")
    picture_file(tmp_path / "data/out" / inside / "000000.png")
    (tmp_path / "data/newest").symlink_to(f"out/{inside}")
    assert load(tmp_path / "data", tmp_path / "cache", out=str(tmp_path / "data/out"))[1] == ["a.png"]


ENLARGED = {  # --fit -> images that are enlarged to 32 pixels, of the six below
    "crop": 4,
    "stretch": 4,
    "pad": 2,
}


@pytest.mark.parametrize("fit", ENLARGED)
def test_enlarged_images_are_counted(tmp_path, capsys, fit):
    """Catches a training on blurred images without a word; a padded image is as large as its longer side."""
    for i, size in enumerate([(10, 40), (40, 10), (31, 31), (31, 10), (32, 32), (40, 32)]):
        picture_file(tmp_path / f"data/{i}.png", size=size)
    for _ in range(2):
        args = data_args(tmp_path / "data", tmp_path / "cache", fit=fit)
        common.load_images(args)
        assert args.found[args.path]["enlarged"] == ENLARGED[fit]
        assert (args.found[args.path]["smallest"], args.found[args.path]["largest"]) == ([31, 10], [40, 32])
        message = capsys.readouterr().err
        assert f"images: 6 of 6 files in {tmp_path / 'data'}, 31x10 to 40x32 pixels, now 32x32 ({fit})\n" in message
        assert f"enlarged: {ENLARGED[fit]} images are smaller than 32 pixels\n" in message
    capsys.readouterr()
    picture_file(tmp_path / "large/0.png", size=(32, 32))
    load(tmp_path / "large", tmp_path / "cache", fit=fit)
    assert "\nenlarged: " not in capsys.readouterr().err


def test_the_number_of_images_is_printed_at_every_start(tmp_path, folder, capsys, monkeypatch):
    """Catches a start from the cache that says nothing, and one that says it in each of many processes."""
    monkeypatch.setattr(common, "FACES", 1100)
    built_in = data_args("", tmp_path)
    built_in.path = None
    for _ in range(2):
        load(folder, tmp_path)
        assert (
            capsys.readouterr().err.count(f"images: 24 of 25 files in {folder}, 32x32 pixels, now 32x32 (crop)\n") == 1
        )
        common.load_images(built_in)
        assert capsys.readouterr().err.count("images: 1,100 built-in faces of 32x32 pixels\n") == 1
    assert built_in.found == {"the built-in data": {"files": 1100, "images": 1100, "left_out": {}}}
    monkeypatch.setenv("RANK", "1")
    load(folder, tmp_path)
    common.load_images(built_in)
    assert capsys.readouterr().err == ""


def test_what_is_there_is_said_before_a_start_is_refused(tmp_path, capsys):
    """Catches "holds no image" without a word on the files that are there, and "fewer than a batch" without what was left out."""
    for name in ("a.txt", "b.TXT", "c.mp4", "README", "runs/x/args.json", "runs/x/log.csv"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    (tmp_path / "data/README").unlink()
    args = data_args(tmp_path / "data", tmp_path / "cache")
    with pytest.raises(SystemExit):
        common.load_images(args)
    message = capsys.readouterr().err
    assert (
        "left out: files that are not images: 3 (2 .txt, 1 .mp4)\n" in message
        and "left out: files in the folders of runs: 2 (runs/x)" in message
    )
    assert "error: " in message and "holds no image" in message
    picture_file(tmp_path / "data/a.png")
    with pytest.raises(SystemExit):
        load(tmp_path / "data", tmp_path / "cache", batch=2)
    message = capsys.readouterr().err
    assert "images: 1 of 6 files" in message and "has 1 images, fewer than a batch of 2" in message


def test_the_bar_counts_files_one_by_one(tmp_path, capsys, monkeypatch):
    """Catches a bar that jumps by 512 files, so that a small folder seems to hang, and one that leaves out damaged files."""
    for i in range(7):
        picture_file(tmp_path / f"data/{i}.png")
    (tmp_path / "data/bad.png").touch()
    counts, bars = [], []

    class Bar(common.tqdm):
        def __init__(self, **options):
            bars.append(options)
            super().__init__(**options)

        def update(self, n=1):
            counts.append(n)
            return super().update(n)

    monkeypatch.setattr(common, "tqdm", Bar)
    load(tmp_path / "data", tmp_path / "cache")
    assert counts == [1] * 8 and [(bar["total"], bar["unit"]) for bar in bars] == [(8, "img")]
    assert "8/8" in capsys.readouterr().err


def pack(file: Path):
    """An archive of images/0.png."""
    picture_file(file.parent / "images/0.png")
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.write(file.parent / "images/0.png", "images/0.png")
    else:
        with tarfile.open(file, "w:gz" if file.suffix in (".gz", ".tgz") else "w") as archive:
            archive.add(file.parent / "images/0.png", "images/0.png")


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tgz", "photos", "my photos.zip"])
def test_an_archive_as_path_says_how_to_unpack_it(tmp_path, capsys, monkeypatch, name):
    """Catches "is not a folder" for a data set as it was downloaded, and a command that does not work: it is run here."""
    (tmp_path / "down").mkdir()
    pack(tmp_path / "down" / name)
    with refused(capsys, 2, f"{tmp_path / 'down' / name} is an archive", "python -m ", "then use "):
        load(tmp_path / "down" / name, tmp_path / "cache")
    with pytest.raises(SystemExit):
        load(tmp_path / "down" / name, tmp_path / "cache")
    message = capsys.readouterr().err.strip()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    command = shlex.split(message.split("`")[1])
    assert command[0] == "python" and subprocess.run([sys.executable, *command[1:]]).returncode == 0
    assert load(shlex.split(message)[-1], tmp_path / "cache")[1] == ["images/0.png"]


def test_other_files_as_path(tmp_path, capsys):
    """Catches a text that is taken for an archive."""
    for name, content in (("a.txt", b"x" * 600), ("empty.zip", b""), ("b.png", png_of_declared_size(4, 4))):
        (tmp_path / name).write_bytes(content)
        with refused(capsys, 2, f"{tmp_path / name} is not a folder"):
            load(tmp_path / name, tmp_path / "cache")


def test_a_folder_that_is_not_utf_8_by_a_link(tmp_path):
    """Catches a traceback after "is not UTF-8: rename the folder, or use a link" was followed."""
    real = Path(os.fsdecode(os.fsencode(tmp_path) + b"/not utf-8 \xff"))
    picture_file(real / "data/a.png")
    (tmp_path / "link").symlink_to(real / "data")
    assert load(tmp_path / "link", tmp_path / "cache")[1] == ["a.png"]


def test_only_unreadable_files(tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/text.jpg").write_text("no")
    with refused(capsys, 2, "none of the 1 image files can be read", "text.jpg"):
        load(tmp_path / "bad", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_exif_rotation_is_honoured(tmp_path):
    """Catches faces that lie on their side."""
    image = picture((64, 64), (0, 0, 0))
    ImageDraw.Draw(image).rectangle((0, 0, 63, 15), (255, 255, 255))  # a white bar at the top of the stored picture
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the bar belongs to the right
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    array = common.decode(tmp_path / "turned.jpg", 32, 3)[0][0]
    assert array[16, 30] > 200 and array[2, 10] < 50


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (178, 218)])
def test_a_circle_stays_a_circle(tmp_path, size):
    """Catches a resize to a square without the crop (squashed faces), and a crop that is not central."""
    image = picture(size, (0, 0, 0))
    cx, cy, r = size[0] / 2, size[1] / 2, min(size) * 0.4
    ImageDraw.Draw(image).ellipse((cx - r, cy - r, cx + r, cy + r), (255, 255, 255))
    image.save(tmp_path / "circle.png")
    bright = common.decode(tmp_path / "circle.png", 64, 3)[0][0] > 127
    rows, columns = np.where(bright.any(1))[0], np.where(bright.any(0))[0]
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 1 and abs(np.ptp(rows) - 0.8 * 64) <= 2
    assert abs(rows.mean() - 31.5) <= 1 and abs(columns.mean() - 31.5) <= 1


def test_downscaling_averages(tmp_path):
    """Catches a resize without antialiasing: a fine chequerboard must become gray."""
    board = np.indices((512, 512)).sum(0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "board.png")
    assert abs(common.decode(tmp_path / "board.png", 32, 1)[0].astype(int) - 127).max() <= 3


def test_gray_images(tmp_path, folder):
    images, _ = load(folder, tmp_path, channels=1)
    color, _ = load(folder, tmp_path)
    assert images.shape == (24, 1, 32, 32) and abs(images[:, 0].mean() - color.mean()) < 20


# --- the cache ---


def count_decoding(monkeypatch) -> list:
    """A list that grows with each image that is decoded from now on (an exception in a thread would be swallowed)."""
    decoded, decode = [], common.decode
    monkeypatch.setattr(common, "decode", lambda *a, **k: decoded.append(1) or decode(*a, **k))
    return decoded


def test_second_start_does_not_decode(tmp_path, folder, monkeypatch):
    """Catches decoding at every start, and a cache that mixes sizes or channels."""
    first, names = load(folder, tmp_path)
    first = np.array(first)
    load(folder, tmp_path, size=16)
    decoded = count_decoding(monkeypatch)
    again, names_again = load(folder, tmp_path)
    assert (
        not decoded
        and (again == first).all()
        and names == names_again
        and load(folder, tmp_path, size=16)[0].shape[-1] == 16
    )
    assert len(list(tmp_path.iterdir())) == 2


def test_a_changed_folder_is_decoded_again(tmp_path):
    """Catches a stale cache after a file was changed, added or removed; and old caches that pile up."""
    (tmp_path / "images").mkdir()
    for i in range(4):
        picture().save(tmp_path / f"images/{i}.png")
    load(tmp_path / "images", tmp_path / "cache")
    os.utime(tmp_path / "images/2.png", (1, 1))
    picture(color=(0, 0, 255)).save(tmp_path / "images/2.png")
    assert tuple(load(tmp_path / "images", tmp_path / "cache")[0][2, :, 5, 5]) == (0, 0, 255)
    picture().save(tmp_path / "images/4.png")
    assert len(load(tmp_path / "images", tmp_path / "cache")[0]) == 5
    (tmp_path / "images/0.png").unlink()
    assert len(load(tmp_path / "images", tmp_path / "cache")[0]) == 4
    assert len(list((tmp_path / "cache").iterdir())) == 1


def bitmap(file: Path, color) -> None:
    """A file whose size does not depend on its color."""
    picture((16, 16), color).save(file)


RED, BLUE = (255, 0, 0), (0, 0, 255)


def edited(file: Path):
    """Another picture of the same length, a millisecond later."""
    before = file.stat()
    bitmap(file, BLUE)
    assert file.stat().st_size == before.st_size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))


def longer(file: Path):
    """Another picture with the time of the old one."""
    before = file.stat()
    picture((17, 16), BLUE).save(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {  # what happens to 1.bmp of three red files -> the colors and names that the next start must have
    "nothing": (lambda file: None, {"0.bmp": RED, "1.bmp": RED, "2.bmp": RED}),
    "edited, same size": (edited, {"0.bmp": RED, "1.bmp": BLUE, "2.bmp": RED}),
    "edited, same time": (longer, {"0.bmp": RED, "1.bmp": BLUE, "2.bmp": RED}),
    "renamed": (lambda file: file.rename(file.with_name("9.bmp")), {"0.bmp": RED, "2.bmp": RED, "9.bmp": RED}),
    "removed": (lambda file: file.unlink(), {"0.bmp": RED, "2.bmp": RED}),
    "made unreadable": (lambda file: file.write_bytes(b"no"), {"0.bmp": RED, "2.bmp": RED}),
    "a new one": (lambda file: bitmap(file.with_name("7.bmp"), BLUE), {"0.bmp": RED, "1.bmp": RED, "2.bmp": RED, "7.bmp": BLUE}),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_the_cache_s_key_part_by_part(tmp_path, change, monkeypatch):
    """Catches a key without the time, the size or the name of a file: each changes alone here, and the old image would stay."""
    (tmp_path / "images").mkdir()
    for i in range(3):
        bitmap(tmp_path / f"images/{i}.bmp", RED)
        os.utime(tmp_path / f"images/{i}.bmp", (1000, 1000))
    load(tmp_path / "images", tmp_path / "cache")
    act, expected = CHANGES[change]
    act(tmp_path / "images/1.bmp")
    decoded = count_decoding(monkeypatch)
    images, names = load(tmp_path / "images", tmp_path / "cache")
    assert bool(decoded) == (change != "nothing")
    assert {name: tuple(image[:, 5, 5].tolist()) for name, image in zip(names, images, strict=True)} == expected
    assert names == sorted(expected)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_each_folder_size_and_number_of_channels_has_a_cache_of_its_own(tmp_path, monkeypatch):
    """Catches two folders of equal names, sizes and times that get each other's images, and a cache that drives out another."""
    for name, color in (("a", RED), ("b", BLUE)):
        (tmp_path / name).mkdir()
        bitmap(tmp_path / name / "0.bmp", color)
        os.utime(tmp_path / name / "0.bmp", (1000, 1000))
    wanted = [("a", 16, 3), ("b", 16, 3), ("a", 32, 3), ("a", 16, 1)]
    for _ in range(2):
        for name, size, channels in wanted:
            image = load(tmp_path / name, tmp_path / "cache", size=size, channels=channels)[0][0]
            assert image.shape == (channels, size, size)
            if channels == 3:
                assert tuple(image[:, 5, 5]) == (RED if name == "a" else BLUE)
        decoded = count_decoding(monkeypatch)
    assert len(list((tmp_path / "cache").iterdir())) == 4
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    load(tmp_path / "link", tmp_path / "cache")  # the same folder under another name: not decoded again
    monkeypatch.chdir(tmp_path)
    load("a", tmp_path / "cache")
    assert not decoded


def test_the_built_in_cache_follows_the_painter(tmp_path, monkeypatch):
    """Catches faces of an older painter, or of another number, after an update."""
    monkeypatch.setattr(common, "FACES", 5)
    args = data_args("", tmp_path / "cache")
    args.path = None
    common.load_images(args)
    painted = []
    paint = common.paint
    monkeypatch.setattr(common, "paint", lambda *a, **k: painted.append(1) or paint(*a, **k))
    common.load_images(args)
    assert painted == []
    monkeypatch.setattr(common, "FACES", 6)
    assert len(common.load_images(args)[0]) == len(painted) == 6
    (tmp_path / "faces.py").write_text(Path(faces.__file__).read_text() + "# painted otherwise\n")
    monkeypatch.setattr(faces, "__file__", str(tmp_path / "faces.py"))
    common.load_images(args)
    assert len(painted) == 12 and len(list((tmp_path / "cache").iterdir())) == 1


def test_order_of_the_images_is_that_of_their_names(tmp_path):
    """Catches an order that the file system chooses, or that puts images beside other images' names."""
    (tmp_path / "images/sub").mkdir(parents=True)
    shades = {"b.bmp": 10, "a.bmp": 50, "sub/c.bmp": 90, "10.bmp": 130, "9.bmp": 170}
    for name, shade in shades.items():
        bitmap(tmp_path / "images" / name, (shade,) * 3)
    images, names = load(tmp_path / "images", tmp_path / "cache")
    assert names == sorted(shades) and [int(image[0, 0, 0]) for image in images] == [shades[name] for name in names]


def test_unreadable_files_do_not_shift_the_others(tmp_path, capsys):
    """Catches images beside the names of their neighbours once a file between them was skipped; and names the first 20 of them."""
    (tmp_path / "images").mkdir()
    for i in range(60):
        if i % 2:
            (tmp_path / f"images/{i:02d}.bmp").write_bytes(b"no image")
        else:
            bitmap(tmp_path / f"images/{i:02d}.bmp", (4 * i,) * 3)
    for _ in range(2):
        images, names = load(tmp_path / "images", tmp_path / "cache")
        assert names == [f"{i:02d}.bmp" for i in range(0, 60, 2)]
        assert [int(image[0, 3, 3]) for image in images] == [4 * int(name[:2]) for name in names]
        message = capsys.readouterr().err
        line = next(
            line
            for line in message.splitlines()
            if line.startswith("left out: files that cannot be read: 30 ('01.bmp'")
        )
        assert "images: 30 of 60 files" in message and "'39.bmp'" in line
        assert "'41.bmp'" not in message and line.endswith("...)")


def test_training_cannot_change_the_cache(tmp_path, folder):
    images, _ = load(folder, tmp_path)
    before = np.array(images)
    images[:] = 0
    assert (load(folder, tmp_path)[0] == before).all()


def test_two_runs_that_start_together(tmp_path, folder, monkeypatch):
    """Catches processes that write to one file, or delete each other's."""
    gate, decode = threading.Barrier(3), common.decode
    monkeypatch.setattr(common, "decode", lambda *a, **k: (time.sleep(0.01), decode(*a, **k))[1])

    def start(_):
        gate.wait()
        return np.array(load(folder, tmp_path)[0])

    with ThreadPool(3) as pool:
        a, b, c = pool.map_async(start, range(3), 1).get(timeout=60)
    assert (a == b).all() and (a == c).all() and len(list(tmp_path.iterdir())) == 1


def test_a_half_deleted_cache_is_built_again(tmp_path, folder):
    """Catches a start that trusts a folder without its index."""
    load(folder, tmp_path)
    (next(tmp_path.iterdir()) / "index.json").unlink()
    assert len(load(folder, tmp_path)[0]) == 24 and len(list(tmp_path.iterdir())) == 1


def torn(file: Path):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_sizes(file: Path):
    index = json.loads(file.read_text())
    del index["sizes"]
    file.write_text(json.dumps(index))


DAMAGES = {  # what a kill, a power cut or a clean-up leaves of a cache
    "index.json torn": lambda cache: torn(cache / "index.json"),
    "index.json empty": lambda cache: (cache / "index.json").write_text(""),
    "index.json of something else": lambda cache: (cache / "index.json").write_text('[["a.png"], {}]'),
    "index.json of an older version": lambda cache: without_sizes(cache / "index.json"),
    "index.json of a list": lambda cache: (cache / "index.json").write_text("[1, 2, 3]"),
    "index.json missing": lambda cache: (cache / "index.json").unlink(),
    "images.u8 short": lambda cache: torn(cache / "images.u8"),
    "images.u8 empty": lambda cache: (cache / "images.u8").write_bytes(b""),
    "images.u8 missing": lambda cache: (cache / "images.u8").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_built_again(tmp_path, folder, capsys, damage):
    """Catches a traceback at every start, and images of zeros."""
    images, names = load(folder, tmp_path)
    before = np.array(images)
    (cache,) = tmp_path.iterdir()
    DAMAGES[damage](cache)
    again, names_again = load(folder, tmp_path)
    assert names_again == names and (again == before).all()
    assert str(cache) in (message := capsys.readouterr().err) and "not complete" in message
    load(folder, tmp_path)
    assert "not complete" not in capsys.readouterr().err and list(tmp_path.iterdir()) == [cache]


def test_what_dead_builds_leave_is_removed(tmp_path, folder):
    """Catches building-... folders that stay for ever after a kill, and one that is taken from a build that is still going on; and a folder of the user's in --cache."""
    for name, age in (("building-dead", 7200), ("building-alive", 60)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "images.u8").write_bytes(b"x")
        for path in (tmp_path / name / "images.u8", tmp_path / name):
            os.utime(path, (time.time() - age,) * 2)
    (tmp_path / "building-slow").mkdir()  # an old folder whose file is still written to
    (tmp_path / "building-slow/images.u8").write_bytes(b"x")
    os.utime(tmp_path / "building-slow", (time.time() - 7200,) * 2)
    (tmp_path / "building-photos").mkdir()  # of the user's
    (tmp_path / "building-photos/house.jpg").touch()
    for path in (tmp_path / "building-photos/house.jpg", tmp_path / "building-photos"):
        os.utime(path, (time.time() - 7200,) * 2)
    load(folder, tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("building"))
    assert left == ["building-alive", "building-photos", "building-slow"]


def test_read_only_image_folder(tmp_path, folder):
    os.chmod(folder, 0o555)
    try:
        assert len(load(folder, tmp_path)[0]) == 24
    finally:
        os.chmod(folder, 0o755)


def test_full_disk(tmp_path, folder, capsys):
    """Catches a traceback, half a cache, or a SIGBUS from writing through a memory map."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with refused(capsys, 1, "cannot write to the cache", str(tmp_path), "--cache"):
            load(folder, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def anonymous_memory_of_a_build(count, folder, cache, queue):
    """kB that RssAnon grows by at most while `count` images are decoded."""

    def now() -> int:
        return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])

    common.find_images = lambda *_: ([f"{i % 24}.png" for i in range(count)], {})
    for i in range(24):
        common.decode(Path(folder) / f"{i}.png", 64, 3)
    start, peak, done = now(), [0], threading.Event()

    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], now() - start)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    load(folder, cache, size=64)
    done.set()
    watcher.join()
    queue.put(peak[0])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_build_does_not_grow(tmp_path, folder):
    """Catches images, or futures, that are collected in memory: 6,000 more images of 12 kB would be 74 MB."""
    context, peaks = multiprocessing.get_context("forkserver"), []
    context.set_forkserver_preload(["common", "torch.utils.tensorboard", "dcgan"])
    for count in (2000, 8000):
        queue = context.Queue()
        child = context.Process(target=anonymous_memory_of_a_build, args=(count, str(folder), str(tmp_path), queue))
        child.start()
        peaks.append(queue.get(timeout=120))
        child.join()
    assert peaks[1] - peaks[0] < 8_000, peaks


# --- batches ---


def indices(n: int, **flags):
    """Batches over images whose pixels are their own number."""
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 1, 4, 4)).copy()
    rank, world = flags.pop("rank", 0), flags.pop("world", 1)
    return common.Batches(images, data_args("", "", **({"batch": 4} | flags)), rank, world)


def numbers(batch: torch.Tensor) -> list[int]:
    return ((batch[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_an_epoch_is_a_permutation_in_whole_batches():
    """Catches images drawn twice, a partial batch, the same order in every epoch, an end of the stream."""
    data = indices(22)
    epochs = [[numbers(next(data)) for _ in range(5)] for _ in range(3)]
    for epoch in epochs:
        seen = [i for batch in epoch for i in batch]
        assert len(set(seen)) == 20 and all(len(batch) == 4 for batch in epoch)
    assert epochs[0] != epochs[1] != epochs[2]
    assert numbers(next(indices(22, seed=1))) != epochs[0][0]
    orders = []  # no seed has, in any epoch, the order of another
    for seed in range(4):
        data = indices(20, seed=seed)
        orders += [tuple(n for _ in range(5) for n in numbers(next(data))) for _ in range(4)]
    assert len(set(orders)) == 16


def test_any_position_can_be_resumed():
    """Catches an order that depends on what was drawn before."""
    data = indices(10, flip=True)
    batches = [next(data) for _ in range(9)]
    for position in (0, 1, 4, 8):
        again = indices(10, flip=True)
        again.load_state_dict({"position": position})
        assert torch.equal(next(again), batches[position]) and again.state_dict() == {"position": position + 1}


def test_shards_make_up_the_global_batch():
    """Catches ranks that see the same images, and a batch that depends on the number of ranks."""
    whole, shards = indices(30, batch=6), [indices(30, batch=6, rank=r, world=3) for r in range(3)]
    for _ in range(7):
        parts = [numbers(next(shard)) for shard in shards]
        expected = numbers(next(whole))
        assert [parts[i % 3][i // 3] for i in range(6)] == expected


def test_flips_are_per_image_and_the_same_for_any_world():
    """Catches one coin per batch, no flip at all, an upside-down flip, and coins that depend on the ranks."""
    ramp = np.broadcast_to(np.arange(4, dtype=np.uint8) * 60, (16, 1, 4, 4)).copy()
    args = data_args("", "", batch=16, flip=True)
    one, two = common.Batches(ramp, args, 0, 1), common.Batches(ramp, args, 1, 2)
    x = next(one)
    flipped = x[:, 0, 0, 0] > x[:, 0, 0, 3]
    assert 2 <= flipped.sum() <= 14 and torch.equal(x[:, :, 0], x[:, :, 3])
    assert torch.equal(next(two), x[1::2])
    args = data_args("", "", batch=4, flip=True)  # four batches an epoch: each, and each epoch, has coins of its own
    data = common.Batches(ramp, args, 0, 1)
    drawn = [next(data) for _ in range(12)]
    patterns = [tuple((y[:, 0, 0, 0] > y[:, 0, 0, 3]).tolist()) for y in drawn]
    assert len(set(patterns)) >= 6 and patterns[:4] != patterns[4:8] != patterns[8:]


def test_range_is_exact():
    x = common.normalize(torch.tensor([0, 255, 51], dtype=torch.uint8))
    assert x.tolist()[:2] == [-1, 1] and x[2].item() == pytest.approx(-0.6) and x.dtype == torch.float32


def test_built_in_faces(tmp_path, monkeypatch):
    """Catches built-in data that are not what faces.py paints."""
    monkeypatch.setattr(common, "FACES", 30)
    args = data_args("", tmp_path)
    args.path = None
    images, _ = common.load_images(args)
    assert images.shape == (30, 3, 32, 32)
    assert (images[7].transpose(1, 2, 0) == np.asarray(faces.paint(0, 7, 32)[0])).all()


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="needs the sample data")
def test_batches_are_faster_than_decoding(tmp_path):
    """Catches decoding in every epoch: batches from the cache against ImageFolder and two workers, at 64 px."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    (tmp_path / "root").mkdir()
    (tmp_path / "root/faces").symlink_to(SHARED / "faces", target_is_directory=True)
    half = transforms.Normalize(0.5, 0.5)
    steps = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64), transforms.ToTensor(), half])
    loader = DataLoader(ImageFolder(tmp_path / "root", steps), 64, shuffle=True, num_workers=2, drop_last=True)
    args = data_args(SHARED / "faces", tmp_path / "cache", size=64, batch=64)
    common.load_images(args)
    began = time.perf_counter()
    images, _ = common.load_images(args)
    start = time.perf_counter() - began
    data, ours, theirs = common.Batches(images, args, 0, 1), [], []
    for _ in range(3):  # in turn
        began = time.perf_counter()
        for _ in range(200):
            next(data)
        ours.append(200 * 64 / (time.perf_counter() - began))
        began = time.perf_counter()
        count = sum(len(x) for x, _ in loader)
        theirs.append(count / (time.perf_counter() - began))
    ratio = np.median(ours) / np.median(theirs)
    print(
        f"\nbatches from the cache {np.median(ours):.0f} images/s, ImageFolder {np.median(theirs):.0f}, ratio {ratio:.1f}"
    )
    print(f"a second start: {start:.3f} s")
    assert ratio >= 8 and start < 1
