"""The command line: nonsense ends in one sentence with exit code 2; help shows every default; a script runs from a shell."""

import os
import re
import subprocess
import sys

import pytest
from conftest import PLAIN, ROOT, TINY, module, tiny
from test_training import refused

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
    "--path {0}/empty": ("holds no image", ".webp", "sub-folders"),
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
    if script == "wgan" and "beta" in flags:
        pytest.skip("RMSprop has none")
    with refused(capsys, 2, *BAD[flags]):
        module(script).main([*tiny(script), *flags.format(few).split()])
    assert not (few / "runs").exists()


LABELS = {
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


@pytest.mark.parametrize("command", LABELS)
def test_flags_are_refused_where_they_mean_nothing(command, few, capsys):
    """Catches label smoothing of Wasserstein and hinge losses, and targets that no probability can have."""
    script, *flags = command.split()
    with refused(capsys, 2, *LABELS[command]):
        module(script).main([*TINY, "--path", str(few), *flags])


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
        if script == "wgan" and "beta" in name:
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
