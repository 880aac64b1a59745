"""What scripts write never becomes training images, and never replaces or removes a file of the user's."""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_PAIR, module, run
from PIL import Image
from test_common import load
from test_training import refused

import common
import compare
import faces


def paint(folder: Path, count: int = 12) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        faces.paint(0, i, 32)[0].save(folder / f"{i}.png")
    return folder


def names_in(folder: Path, tmp_path: Path) -> list[str]:
    return load(folder, tmp_path / "cache")[1]


# --- outputs are no training images ---


def of_sample(data: Path, tmp_path: Path, folder: Path):
    run("dcgan", folder, tmp_path / "run", "--steps", "1")
    command = ["--sample", "3", "--out", str(data / "drawn"), "--checkpoint", str(tmp_path / "run/last.pt")]
    module("dcgan").main([*command, "--device", "cpu"])


def of_compare(data: Path, tmp_path: Path, folder: Path):
    run("dcgan", folder, tmp_path / "run", "--steps", "1")
    compare.main([str(folder), str(tmp_path / "run"), "--count", "4", "--out", str(data / "scores")])


def of_translate(data: Path, tmp_path: Path, folder: Path):
    for side in "AB":
        paint(tmp_path / f"pair/train{side}", 4)
    module("cyclegan").main(
        [*TINY_PAIR, "--path", str(tmp_path / "pair"), "--out", str(tmp_path / "run"), "--steps", "1"]
    )
    command = ["--translate", str(data), "--checkpoint", str(tmp_path / "run/last.pt"), "--device", "cpu"]
    module("cyclegan").main([*command, "--out", str(data / "zebras")])
    module("cyclegan").main([*command, "--out", str(tmp_path / "again")])
    assert not (tmp_path / "again/zebras").exists()  # nor are they translated once more


def of_a_run_that_was_killed_early(data: Path, tmp_path: Path, folder: Path):
    run("dcgan", folder, data / "run", "--steps", "1")
    for file in ("last.pt", "log.csv"):
        (data / "run" / file).unlink(missing_ok=True)


def of_a_link_into_a_run(data: Path, tmp_path: Path, folder: Path):
    run("dcgan", folder, tmp_path / "run", "--steps", "1")
    (data / "short").symlink_to(tmp_path / "run/samples", target_is_directory=True)


OUTPUTS = [of_sample, of_compare, of_translate, of_a_run_that_was_killed_early, of_a_link_into_a_run]


@pytest.mark.parametrize("make", OUTPUTS)
def test_outputs_are_no_training_images(make, tmp_path, folder, capsys):
    """Catches samples, sheets and translations that are found below --path and trained on."""
    data = paint(tmp_path / "data")
    make(data, tmp_path, folder)
    capsys.readouterr()
    assert names_in(data, tmp_path) == sorted(f"{i}.png" for i in range(12))
    assert "files in the folders of runs" in capsys.readouterr().err


# --- files of the user's ---


def sample(out: Path, *flags: str):
    module("dcgan").main(["--out", str(out), "--device", "cpu", "--sample", *flags])


def test_a_table_beside_samples_without_labels_stays(tmp_path, folder):
    """Catches labels.csv in the list of what was written, where no labels.csv was."""
    run("dcgan", folder, tmp_path, "--steps", "1")
    sample(tmp_path, "3")
    (tmp_path / "generated/labels.csv").write_text("mine")
    sample(tmp_path, "3")
    assert (tmp_path / "generated/labels.csv").read_text() == "mine"


def test_only_what_was_written_is_ours(tmp_path, folder, monkeypatch, capsys):
    """Catches names that are claimed and not given back when a call is stopped: a file of the user's would be deleted later."""
    run("dcgan", folder, tmp_path, "--steps", "1")
    save_png, drawn = common.save_png, []

    def stopped(*arguments):
        drawn.append(1)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        save_png(*arguments)

    monkeypatch.setattr(common, "save_png", stopped)
    with refused(capsys, 130, "Ctrl-C", "generated"):
        sample(tmp_path, "9")
    monkeypatch.undo()
    assert sorted(file.name for file in (tmp_path / "generated").iterdir()) == [".written", "00000.png", "00001.png"]
    (tmp_path / "generated/00007.png").write_text("mine")
    with refused(capsys, 2, "00007.png", ".written"):
        sample(tmp_path, "9")
    sample(tmp_path, "3")
    assert (tmp_path / "generated/00007.png").read_text() == "mine" and (tmp_path / "generated/00002.png").exists()


def test_two_images_that_would_become_one_file(tmp_path, capsys):
    for side in "AB":
        paint(tmp_path / f"pair/train{side}", 4)
    module("cyclegan").main(
        [*TINY_PAIR, "--path", str(tmp_path / "pair"), "--out", str(tmp_path / "run"), "--steps", "1"]
    )
    (tmp_path / "photos").mkdir()
    for name, kind in (("x.tga", "TGA"), ("x.tga.png", "PNG")):
        Image.new("RGB", (24, 24)).save(tmp_path / "photos" / name, kind)
    with refused(capsys, 2, "--translate", "one file"):
        module("cyclegan").main(
            ["--translate", str(tmp_path / "photos"), "--out", str(tmp_path / "run"), "--device", "cpu"]
        )


def test_files_of_the_user_s_in_the_folder_of_a_run(tmp_path, folder):
    """Catches 2024.png taken for the grid of step 2024, which a run that is resumed removes."""
    run("dcgan", folder, tmp_path, "--steps", "2")
    for name in ("samples/2024.png", "checkpoints/2024.pt", "samples/12345.png"):
        (tmp_path / name).write_text("mine")
    module("dcgan").main(["--out", str(tmp_path), "--resume", "--steps", "4", "--device", "cpu", "--keep", "1"])
    assert all(
        (tmp_path / name).read_text() == "mine"
        for name in ("samples/2024.png", "checkpoints/2024.pt", "samples/12345.png")
    )


def test_a_run_that_ended_while_another_decoded(tmp_path, folder, monkeypatch, capsys):
    """Catches a look at --out before decoding only: the second run would remove the log and the checkpoints of the first."""
    load_images = common.load_images

    def slow(args):
        monkeypatch.setattr(common, "load_images", load_images)
        found = load_images(args)
        run("dcgan", folder, tmp_path / "run", "--steps", "3")
        return found

    monkeypatch.setattr(common, "load_images", slow)
    with refused(capsys, 2, "already holds a run"):
        run("dcgan", folder, tmp_path / "run", "--steps", "1")
    assert torch.load(tmp_path / "run/last.pt", weights_only=True)["step"] == 3


BUILDS = {  # files in building-x, an hour old -> whether it is a dead build
    ("images.u8",): True,
    ("images.u8", "index.json"): True,
    ("images.u8", "a.png"): False,
    ("deep/a.png",): False,
}


@pytest.mark.parametrize("files", BUILDS)
def test_folders_of_the_user_s_in_the_cache(tmp_path, files):
    """Catches building-photos/ that is removed with all its images, because --cache is the folder that holds it."""
    for file in files:
        (tmp_path / "building-x" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "building-x" / file).write_text("x")
    old = time.time() - 7200
    for path in [*(tmp_path / "building-x").rglob("*"), tmp_path / "building-x"]:
        os.utime(path, (old, old))
    common.remove_dead_builds(tmp_path)
    assert (tmp_path / "building-x").exists() != BUILDS[files]


# --- folders that cannot be written to ---


@pytest.mark.parametrize("command", ["train", "sample", "translate", "compare"])
def test_an_out_that_is_a_file_or_below_one(command, tmp_path, folder, capsys):
    """Catches a traceback where --out cannot be a folder."""
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file/x"):
        with pytest.raises(SystemExit) as ended:
            if command == "train":
                run("dcgan", folder, out, "--steps", "1")
            elif command == "compare":
                compare.main([str(folder), str(folder), "--count", "4", "--size", "16", "--out", str(out)])
            else:
                state = tmp_path / "run/last.pt"
                if not state.exists():
                    run("dcgan", folder, tmp_path / "run", "--steps", "1")
                if command == "sample":
                    module("dcgan").main(
                        ["--sample", "2", "--checkpoint", str(state), "--out", str(out), "--device", "cpu"]
                    )
                else:
                    torch.save(authors_weights(), tmp_path / "net.pth")
                    flags = ["--weights", str(tmp_path / "net.pth"), "--size", "24", "--device", "cpu"]
                    module("cyclegan").main(["--translate", str(folder), "--out", str(out), *flags])
        assert ended.value.code in (1, 2) and "error: " in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def authors_weights() -> dict:
    args = module("cyclegan").parse_args([*TINY_PAIR, "--path", "unused", "--out", "nowhere"])
    return module("cyclegan").Generator(args).state_dict()


@pytest.mark.parametrize("missing", ["names", "sizes", "dark", "bad"])
def test_an_index_of_another_version_is_built_again(missing, tmp_path, folder):
    """Catches a KeyError at every start, where the cache is of another version of this project."""
    import json

    load(folder, tmp_path / "cache")
    (index,) = (tmp_path / "cache").glob("*/index.json")
    found = json.loads(index.read_text())
    del found[missing]
    index.write_text(json.dumps(found))
    assert len(load(folder, tmp_path / "cache")[1]) == 24


def test_a_table_of_labels_that_cannot_be_read(tmp_path, capsys):
    """Catches a KeyError or UnicodeDecodeError in compare.py where labels.csv is not what a script wrote."""
    args = argparse.Namespace(runs={str(tmp_path): {}}, samples={str(tmp_path): str(tmp_path)})
    for content, part in ((b"file,hair\n0.png,red\n", "no column image"), (b"image,hair\n0.png,\xff\n", "UTF-8")):
        (tmp_path / "labels.csv").write_bytes(content)
        with refused(capsys, 2, "labels.csv", part):
            compare.asked(str(tmp_path), ["0.png"], args)


def test_a_second_ctrl_c_is_a_sentence(tmp_path, folder, monkeypatch, capsys):
    """Catches a traceback at the second Ctrl-C, which ends a run at once."""
    m = module("dcgan")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(m, "train_step", interrupted)
    with refused(capsys, 130, "second Ctrl-C", "step 0"):
        m.main([*TINY, "--path", str(folder), "--out", str(tmp_path / "run"), "--steps", "2"])


def test_white_is_zero(tmp_path):
    """Catches 16-bit TIFFs that come out as negatives, because their 0 is white."""
    values = np.full((40, 40), 200 * 257, np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert (common.decode("a.tif", 40, 1, str(tmp_path))[0] == 55).all()
