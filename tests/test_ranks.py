"""Two gloo processes, in one launch for all scripts: exact gradients, equal weights, different noise, one writer, resume, errors."""

import os
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, SCRIPTS, same
from rank_toys import toy_step


def start(out, folder, first=ROOT):
    """Run tests/ranks.py in two processes, which look for the scripts in `first` first."""
    paths = os.pathsep.join(map(str, (first, ROOT, ROOT / "tests")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(ROOT / "tests/ranks.py"), str(out), str(folder)]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    began = time.time()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    return out, ended, time.time() - began


@pytest.fixture(scope="module")
def launch(tmp_path_factory, folder):
    """The folder with what the two processes saw, how the launch ended, and its seconds."""
    out, ended, seconds = start(tmp_path_factory.mktemp("ranks"), folder)
    missing = [script for script in SCRIPTS if not (out / f"{script}-1.pt").exists()]
    assert not missing, f"{missing[0]}.py failed in two processes:\n{ended.stderr[-3000:]}"
    return out, ended, seconds


def load(path):
    return torch.load(path, weights_only=True)


def test_gradients_are_those_of_one_process(launch, script):
    """Catches a sum in place of the mean, a parameter that is left out (a step that is only penalty), averaging after the step."""
    whole = toy_step(script, slice(None))
    for rank in (0, 1):
        share = load(launch[0] / f"{script}-toys-{rank}.pt")
        assert len(share["gradients"]) == len(whole["gradients"]) > 0
        for a, b in zip(share["gradients"] + share["weights"], whole["gradients"] + whole["weights"], strict=True):
            assert abs(a - b).max() <= 1e-6


def test_weights_are_equal_and_noise_differs(launch, script):
    """Catches ranks that start or go apart, and the same latents on each rank (a batch of copies)."""
    a, b = (load(launch[0] / f"{script}-{rank}.pt") for rank in (0, 1))
    for name in ("G", "D", "G_ema"):
        running = ("running_mean", "running_var")  # BatchNorm's statistics are those of each rank's share
        for key in a["whole"][name]:
            if not key.endswith(running):
                assert torch.equal(a["whole"][name][key], b["whole"][name][key]), (name, key)
    assert same(a["whole"]["opt_D"], b["whole"]["opt_D"]) and same(a["whole"]["opt_G"], b["whole"]["opt_G"])
    assert torch.equal(a["noises"][0], b["noises"][0])  # of the grid
    assert len(a["noises"]) == len(b["noises"]) > 5
    # without that of the statistics, which is always the same
    drawn = [z for seen in (a, b) for z in seen["noises"][1:] if len(z) != 64]
    assert all(len(z) == 4 for z in drawn)  # half of the batch each
    assert all(not torch.equal(x, y) for i, x in enumerate(drawn) for y in drawn[:i])


def test_one_writer(launch, script):
    """Catches files that two processes write at once."""
    assert load(launch[0] / f"{script}-1.pt")["written"] == [] and load(launch[0] / f"{script}-0.pt")["written"]
    assert len(list((launch[0] / script).glob("events*"))) == 1
    rows = (launch[0] / script / "log.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "1", "2", "3", "4", "5"]


def test_resume_on_two_ranks(launch, script):
    """Catches state that only rank 0 restores."""
    a, b = (load(launch[0] / f"{script}-{rank}.pt") for rank in (0, 1))
    assert same(a["whole"], a["parts"])
    for name in ("opt_G", "opt_D", "data"):
        assert same(b["whole"][name], b["parts"][name])
    assert (launch[0] / script / "log.csv").read_bytes() == (launch[0] / f"{script}-parts/log.csv").read_bytes()


def test_an_error_on_one_rank_ends_all(launch):
    """Catches a rank that waits for ever for the gradients of one that is gone."""
    out, ended, seconds = launch
    assert ended.returncode != 0 and "rank 1 fails on purpose" in ended.stderr and seconds < 150
    assert not list(out.glob("survived-*")) and (out / "failed/last.pt").exists()
    assert all((out / f"{script}-{rank}.pt").exists() for script in SCRIPTS for rank in (0, 1)), ended.stderr[-3000:]
