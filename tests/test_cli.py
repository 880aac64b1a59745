"""The command line: nonsense ends in one sentence with exit code 2; help shows every default; a script runs from a shell."""

import argparse
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ALL, PLAIN, RMSPROP, ROOT, TINY, module, run, tiny
from test_training import refused

import common
import faces


@pytest.fixture
def few(tmp_path):
    (tmp_path / "few").mkdir()
    for i in range(3):
        faces.paint(0, i, 32)[0].save(tmp_path / f"few/{i}.png")
    return tmp_path


BAD = {
    "--path {0}/missing": ("does not exist", "missing"),
    "--path {0}/few/0.png": ("is not a folder", "0.png"),
    "--path {0}/empty": ("holds no image", "looked for jpg, png, webp", "sub-folders"),
    "--path {0}/few": ("3 images", "batch of 8", "--batch"),
    "--size 70": ("70", "64", "80"),
    "--size 8": ("8", "16"),
    "--size big": ("--size", "big"),
    "--batch 0": ("--batch", "0", "at least 2"),
    "--batch 2.5": ("--batch", "2.5"),
    "--steps 0": ("--steps", "at least 1"),
    "--lr-g -1": ("--lr-g", "-1"),
    "--lr-d nan": ("--lr-d", "nan"),
    "--beta1 1.5": ("--beta1", "from 0.0 to 0.9999"),
    "--ema 2": ("--ema", "2"),
    "--seed -1": ("--seed", "from 0 to"),
    "--width 0": ("--width",),
    "--channels 2": ("--channels", "2"),
    "--noise pink": ("--noise", "pink"),
    "--no-such-flag": ("unrecognized", "--no-such-flag"),
    "--resume": ("no checkpoint", "last.pt", "--out"),
    "--sample 4": ("no checkpoint", "last.pt"),
    "--checkpoint x.pt": ("--resume", "--sample"),
    "--sample 0": ("--sample", "at least 1"),
    "--device gpu": ("--device", "gpu"),
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_usage(script, flags, few, capsys, monkeypatch):
    """Catches tracebacks, and messages that do not name what is wrong."""
    (few / "empty").mkdir()
    (few / "empty/notes.txt").write_text("no image")
    monkeypatch.chdir(few)
    if script in RMSPROP and "beta" in flags:
        pytest.skip("RMSprop has none")
    with refused(capsys, 2, *BAD[flags]):
        module(script).main([*tiny(script), *flags.format(few).split()])
    assert not (few / "runs").exists()


ODD = os.fsdecode(b"folder-\xff")
NOT_UTF_8 = {  # script -> ways to name a folder
    "cyclegan": ["--path {odd}", "--out {odd}", "--cache {odd}", "--translate {odd} --checkpoint x.pt"],
    "acgan": ["--path {odd}", "--out {odd}", "--cache {odd}", "--labels {odd}"],
    "cgan_text2img": ["--path {odd}", "--labels {odd}", "--out {odd} --sample 1", "--out {odd} --resume"],
    "compare": ["{odd} run", "real {odd}", "real run --out {odd}", "real run --cache {odd}"],
}
NOT_UTF_8 |= {name: ["--path {odd}", "--out {odd}", "--cache {odd}"] for name in ALL if name not in NOT_UTF_8}


@pytest.mark.parametrize("script", NOT_UTF_8)
def test_names_that_are_not_utf_8_are_refused(script, tmp_path, monkeypatch, capsys):
    """Catches a traceback from a checkpoint, log or digest, hours after the start; what a folder holds may have such names."""
    monkeypatch.chdir(tmp_path)
    os.mkdir(ODD)
    for flags in NOT_UTF_8[script]:
        with refused(capsys, 2, "folder-\\udcff", "is not UTF-8", "rename the folder, or use a link"):
            module(script).main([flag.replace("{odd}", ODD) for flag in flags.split()])
        with refused(capsys, 2, "is not UTF-8"):  # a folder in it
            module(script).main([flag.replace("{odd}", f"{ODD}/sub") for flag in flags.split()])
    assert os.listdir(tmp_path) == [ODD] and not os.listdir(ODD)
    monkeypatch.chdir(ODD)  # then relative names are as odd
    if script != "compare":
        with refused(capsys, 2, "folder-\\udcff", "is not UTF-8"):
            module(script).main(["--path", "data"])
    monkeypatch.chdir(tmp_path)
    assert common.file_name("ünïcode 顔") == "ünïcode 顔"


REFUSED = {
    "wgan --real-label 0.9 0.9": ("unrecognized", "--real-label"),
    "wgan_gp --fake-label 0 0.3": ("unrecognized", "--fake-label"),
    "sngan --dropout 0.5": ("unrecognized", "--dropout"),
    "lsgan --g-steps 2": ("unrecognized", "--g-steps"),
    "dcgan --real-label 0.7 1.2": ("--real-label", "1.2", "from 0.0 to 1.0"),
    "dcgan --fake-label -0.1 0": ("--fake-label", "-0.1"),
    "dcgan --real-label 0.9": ("--real-label", "expected 2"),
    "lsgan --real-label nan 1": ("--real-label", "nan"),
    "dcgan --dropout 1": ("--dropout", "from 0.0 to 0.99"),
    "dcgan --g-steps 0": ("--g-steps", "at least 1"),
    "wgan --clip 0": ("--clip", "0"),
    "wgan --n-critic 0": ("--n-critic", "at least 1"),
}


@pytest.mark.parametrize("command", REFUSED)
def test_flags_are_refused_where_they_mean_nothing(command, few, capsys):
    """Catches label smoothing of Wasserstein and hinge losses, and targets that no probability can have."""
    script, *flags = command.split()
    with refused(capsys, 2, *REFUSED[command]):
        module(script).main([*TINY, "--path", str(few), *flags])


BOUNDS = {  # flag -> the least and the greatest value that is taken, and values that are not
    "lr-g": ("0", "100", "-0.1 nan x"),
    "lr-d": ("0", "100", "-0.1 nan x"),
    "beta1": ("0", "0.9999", "-0.1 1 nan"),
    "beta2": ("0", "0.9999", "-0.1 1 nan"),
    "z-dim": ("1", "1000", "0 -1 1.5"),
    "width": ("1", "1000", "0 -1 1.5"),
    "ema": ("0", "1", "-0.1 1.1 nan"),
    "noise": ("normal", "uniform", "gaussian"),
    "act": ("relu", "lrelu", "tanh"),
    "norm": ("batch", "instance", "layer"),
    "n-critic": ("1", "1000", "0 1.5"),
    "clip": ("1e-6", "1", "0 -1"),
    "gp": ("0", "1000", "-1 nan"),
    "g-steps": ("1", "1000", "0"),
    "dropout": ("0", "0.99", "1 -0.1"),
    "cls-weight": ("0", "100", "-1"),
    "cls-weight-g": ("0", "100", "-1"),
    "l1": ("0", "100", "-1"),
    "l2": ("0", "100", "-1"),
    "categories": ("2", "100", "1"),
    "codes": ("1", "100", "0"),
    "info-cat": ("0", "100", "-1"),
    "info-con": ("0", "100", "-1"),
    "adv": ("ns", "lsgan", "wgan"),
    "gan-mode": ("lsgan", "bce", "hinge"),
    "cycle": ("0", "100", "-1"),
    "identity": ("0", "100", "-1"),
    "pool": ("0", "1000", "-1"),
    "constant": ("0", "1000000", "-1"),
    "decay": ("1", "1000000", "0"),
    "load-size": ("0", "300", "-1"),
    "gamma": ("0", "1000", "-1 nan"),
    "stem": ("1", "4", "0 3 8 1.5"),
    "penalty-every": ("1", "100", "0"),
    "anneal": ("1", "1000000", "0"),
    "augment": ("translation", "cutout", "blur"),
    "steps": ("1", "1000000", "0 -1 1.5"),
    "seed": ("0", "4294967295", "-1 4294967296"),
    "channels": ("1", "3", "2 0 4"),
    "fit": ("crop", "stretch", "squash"),
    "log-every": ("1", "1000000", "0 -1"),
    "save-every": ("1", "1000000", "0 -1"),
    "keep": ("0", "1000", "-1"),
    "sample": ("1", "1000", "0 -1 x"),
    "seeds": ("0", "4294967295", "-1 4294967296 x"),
    "walk": ("2", "1000", "0 1 -1 x"),
    "sample-mode": ("eval", "batch", "train"),
}
PAIRS = {"real-label", "fake-label"}  # each takes two numbers
NUMBERLESS = {
    "help",
    "path",
    "labels",
    "cache",
    "out",
    "resume",
    "grid",
    "finetune",
    "checkpoint",
    "device",
    "bf16",
    "flip",
    "size",
    "batch",
}
NUMBERLESS |= {"real-label", "fake-label", "g-label", "wrong-image", "embeddings", "sample-labels", "prompt", "prompts"}
NUMBERLESS |= {"translate", "reverse", "weights", "blocks"}


def test_bounds_of_every_flag(any_script, tmp_path, capsys):
    """Catches a bound that is missing, too narrow, or off by one; and a flag that has none in this table."""
    m = module(any_script)
    with pytest.raises(SystemExit):
        m.parse_args(["--help"])
    flags = set(re.findall(r"^  (?:-h, )?--([a-z0-9-]+)", capsys.readouterr().out, re.M))
    assert flags <= BOUNDS.keys() | NUMBERLESS, flags - BOUNDS.keys() - NUMBERLESS
    usual = ["--path", "x", "--out", str(tmp_path / "new")]
    for flag in sorted(flags & BOUNDS.keys()):
        least, greatest, wrong = BOUNDS[flag]
        for value in (least, greatest):
            if flag in ("sample", "seeds", "walk", "sample-mode") or (any_script, flag, value) in IMPOSSIBLE:
                continue
            found = getattr(m.parse_args([*usual, f"--{flag}", value]), flag.replace("-", "_"))
            assert str(found if not isinstance(found, list) else found[0]) in (
                value,
                str(float(value)) if value[0].isdigit() else "",
            )
        for value in wrong.split():
            with refused(capsys, 2, f"--{flag}", value):
                m.parse_args([*usual, f"--{flag}", value])
    pairs = flags & PAIRS if any_script in ("dcgan", "lsgan") else set()
    for flag in sorted(pairs):
        assert getattr(m.parse_args([*usual, f"--{flag}", "0", "1"]), flag.replace("-", "_")) == [0, 1]
        with refused(capsys, 2, f"--{flag}"):
            m.parse_args([*usual, f"--{flag}", "0.5"])


IMPOSSIBLE = {
    ("cyclegan", "steps", "1000000"),
    ("cyclegan", "constant", "0"),
    ("cyclegan", "decay", "1"),
    ("cyclegan", "load-size", "300"),
}
IMPOSSIBLE |= {("cyclegan", "load-size", "0")}


@pytest.mark.parametrize(
    "size", ["16", "20", "24", "28", "32", "40", "48", "56", "64", "80", "96", "112", "128", "256", "1024", "1792"]
)
def test_sizes_that_are_taken(size):
    """Catches a size that the README promises and the parser refuses."""
    assert common.image_size(size) == int(size)


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ("36", "32 and 40"),
        ("100", "96 and 112"),
        ("15", "16 and 20"),
        ("72", "64 and 80"),
        ("0", "16 and 20"),
        ("-64", "16 and 20"),
    ],
)
def test_sizes_that_are_refused(size, nearest):
    """Catches a size that does not halve to a map of 4 to 7, and a sentence that does not name the nearest ones."""
    with pytest.raises(argparse.ArgumentTypeError, match=f"{size} .*{nearest}"):
        common.image_size(size)


def test_what_a_run_refuses_at_its_start(any_script, images, tmp_path, capsys):
    """Catches a run that is overwritten, one that is resumed with nothing left to do, and a checkpoint without --resume."""
    m, out = module(any_script), tmp_path / "run"
    run(any_script, images, out, "--steps", "2")
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with refused(capsys, 2, str(out), "already holds a run", "--resume", "--out"):
        run(any_script, images, out, "--steps", "2")
    with refused(capsys, 2, "last.pt", "at step 2", "--steps"):
        m.main(["--out", str(out), "--resume"])
    with refused(capsys, 2, "last.pt", "at step 2", "--steps"):
        m.main(["--out", str(out), "--resume", "--steps", "1"])
    with refused(capsys, 2, "--checkpoint", "--resume", "--sample"):
        run(any_script, images, tmp_path / "other", "--checkpoint", str(out / "last.pt"))
    with refused(capsys, 2, "no checkpoint", "nowhere"):
        m.main(["--out", str(tmp_path / "nowhere"), "--resume"])
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    for file in ("last.pt", "log.csv"):  # each alone is a run, too
        alone = tmp_path / file.replace(".", "-")
        alone.mkdir()
        (alone / file).write_text("step,loss_D\n")
        with refused(capsys, 2, "already holds a run"):
            m.parse_args(["--path", "x", "--out", str(alone)])
    assert not (tmp_path / "other").exists() and not (tmp_path / "nowhere").exists()


def test_resume_into_a_folder_above_another_run(folder, tmp_path, capsys):
    """Catches --out a --resume --checkpoint a/b/last.pt, which would replace the run in a by that in a/b."""
    for out in ("a", "a/b"):
        run("dcgan", folder, tmp_path / out, "--steps", "1")
    flags = ["--path", str(folder), "--out", str(tmp_path / "a"), "--resume", "--steps", "2"]
    with refused(capsys, 2, "a holds a run", "is no part of"):
        module("dcgan").parse_args([*flags, "--checkpoint", str(tmp_path / "a/b/last.pt")])
    for own in ("last.pt", "checkpoints/000001.pt"):
        module("dcgan").parse_args([*flags, "--checkpoint", str(tmp_path / "a" / own)])


@pytest.mark.parametrize("script", ["acgan", "cgan_text2img"])
def test_labels_that_changed_since_the_checkpoint(script, folder, tmp_path, capsys):
    """Catches a resumed run whose labels have other values: numbers of classes and words would mean something else."""
    out = tmp_path / "run"
    run(script, folder, out, "--steps", "1")
    lines = (folder / "tags.csv").read_text().replace("white", "pink")
    (tmp_path / "other.csv").write_text(lines)
    with refused(capsys, 2, "the checkpoint" if script == "acgan" else "last.pt", "--labels"):
        module(script).main(["--resume", "--out", str(out), "--steps", "2", "--labels", str(tmp_path / "other.csv")])
    with refused(capsys, 2, "the checkpoint" if script == "acgan" else "last.pt", "--labels"):
        flags = ["--finetune", str(out / "last.pt"), "--labels", str(tmp_path / "other.csv")]
        module(script).main([*flags, "--out", str(tmp_path / "tuned")])
    assert torch.load(out / "last.pt", weights_only=True)["step"] == 1


def test_flags_that_need_another(tmp_path, capsys):
    """Catches a flag that is ignored because the one that it belongs to is missing."""
    new = ["--path", "x", "--out", str(tmp_path / "new")]
    with refused(capsys, 2, "--sample-labels", "--sample"):
        module("acgan").parse_args([*new, "--sample-labels", "list.txt"])
    for flags in (["--reverse"], ["--weights", "w.pth"]):
        with refused(capsys, 2, flags[0], "--translate"):
            module("cyclegan").parse_args([*new, *flags])
    with refused(capsys, 2, "--size 24", "32"):
        module("lightweight_gan").parse_args([*new, "--size", "24"])
    with refused(capsys, 2, "--size 64", "--load-size 40"):
        module("cyclegan").parse_args([*new, "--size", "64", "--load-size", "40"])
    with refused(capsys, 2, "--steps 21", "--constant", "--decay"):
        module("cyclegan").parse_args([*new, "--steps", "21", "--constant", "10", "--decay", "10"])
    for number in ("--count 0", "--size 31", "--seed -1"):
        with refused(capsys, 2, number.split()[0], "at least"):
            faces.main([str(tmp_path / "faces"), *number.split()])
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    for folder in ("used", "used/file"):
        with refused(capsys, 2, folder, "in use"):
            faces.main([str(tmp_path / folder)])
    assert not (tmp_path / "faces").exists()


def test_help_shows_every_flag_with_its_default(script, capsys):
    """Catches a flag without help, and a default that the help does not tell."""
    with pytest.raises(SystemExit) as error:
        module(script).main(["--help"])
    entries = [re.sub(r"\s+", " ", entry) for entry in re.split(r"\n  (?=-)", capsys.readouterr().out)]
    assert error.value.code == 0
    vocabulary = "path size channels flip cache out steps batch seed device bf16 resume checkpoint sample"
    vocabulary += " sample-mode" * (script != "r3gan")  # which has no BatchNorm
    vocabulary += " log-every save-every keep z-dim width lr-g lr-d beta1 beta2 ema noise" + " act" * (script in PLAIN)
    for name in vocabulary.split():
        if script in RMSPROP and "beta" in name:
            continue  # RMSprop has none
        (found,) = [entry for entry in entries if re.match(rf"--{name}[ ,]", entry)]
        assert "default:" in found, found


def test_from_a_shell(folder, tmp_path):
    """Catches work at import, and paths that only exist where the tests run."""
    command = [
        sys.executable,
        str(ROOT / "dcgan.py"),
        *TINY,
        "--path",
        str(folder),
        "--steps",
        "2",
        "--save-every",
        "1",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    out = tmp_path / "runs/dcgan"
    assert (out / "last.pt").exists() and (out / "samples/000002.png").exists()
    bad = subprocess.run(
        [sys.executable, str(ROOT / "dcgan.py"), "--size", "70"], cwd=tmp_path, capture_output=True, text=True
    )
    assert bad.returncode == 2 and "Traceback" not in bad.stderr and bad.stderr.count("\n") <= 2
