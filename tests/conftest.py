"""What all tests share: one thread, a cache of their own, small folders of images, and scripts run in-process."""

import atexit
import importlib
import os
import shutil
import tempfile
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = (
    "1"  # on a busy machine two threads are slower than one
)
if "GAN_TESTS_CACHE" not in os.environ:  # the processes that tests start share it
    os.environ["GAN_TESTS_CACHE"] = tempfile.mkdtemp(prefix="gan-tests-")
    atexit.register(shutil.rmtree, os.environ["GAN_TESTS_CACHE"], ignore_errors=True)
os.environ["XDG_CACHE_HOME"] = os.environ["GAN_TESTS_CACHE"]  # before common reads it

import pytest
import torch

import faces

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
SCRIPTS = ["dcgan", "lsgan", "wgan", "wgan_gp", "sngan"]
TINY = ["--size", "16", "--width", "4", "--z-dim", "8", "--batch", "8", "--device", "cpu"]


def module(script: str):
    return importlib.import_module(script)


def settings(script: str, *flags: str):
    """The args of a script as its own parser makes them, settled for the CPU."""
    args = module(script).parse_args([*TINY, "--path", "unused", "--out", "nowhere", *flags])
    args.autocast = False
    return args


def run(script: str, path, out, *flags: str) -> dict:
    """Train in-process with tiny networks; returns main()'s state."""
    return module(script).main([*TINY, "--path", str(path), "--out", str(out), *flags])


@pytest.fixture(params=SCRIPTS)
def script(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """24 painted faces of 32 px."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(24):
        faces.paint(0, i, 32)[0].save(folder / f"{i}.png")
    return folder


def same(a, b) -> bool:
    """Bit for bit the same state_dict, however deep."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def same_state(a: dict, b: dict) -> bool:
    return same(
        {name: thing.state_dict() for name, thing in a.items()}, {n: thing.state_dict() for n, thing in b.items()}
    )
