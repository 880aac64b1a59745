"""What all tests share: one thread, a cache of their own, small folders of images, and scripts run in-process."""

import atexit
import importlib
import os
import shutil
import tempfile
from pathlib import Path

# one thread: on a busy machine, two are slower
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
if "GAN_TESTS_CACHE" not in os.environ:  # the processes that tests start share it
    os.environ["GAN_TESTS_CACHE"] = tempfile.mkdtemp(prefix="gan-tests-")
    atexit.register(shutil.rmtree, os.environ["GAN_TESTS_CACHE"], ignore_errors=True)
os.environ["XDG_CACHE_HOME"] = os.environ["GAN_TESTS_CACHE"]  # before common reads it

import pytest
import torch

import common
import faces

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
NOISE = ["dcgan", "lsgan", "wgan", "wgan_gp", "sngan"]  # scripts with noise only
PLAIN = [*NOISE, "acgan", "cgan_text2img", "infogan"]  # with the networks of dcgan.py, or nearly
SCRIPTS = [*PLAIN, "lightweight_gan", "r3gan"]
ALL = [*SCRIPTS, "cyclegan"]  # which has no noise, and tests of its own
RMSPROP = ["wgan"]  # scripts with another optimizer than Adam: no betas
SPECTRAL = ["sngan", "infogan"]  # scripts with spectral norm in a D like DCGAN's
HINGE = ["sngan", "lightweight_gan"]  # scripts with the hinge loss
LOOKS = [(hair, eyes) for eyes in ("blue", "green") for hair in ("black", "red", "white")]  # labels of the test images
GROUPS = {"eyes": ["blue", "green"], "hair": ["black", "red", "white"]}
EXTRA = {"acgan": 2, "cgan_text2img": 7, "infogan": 10}  # numbers of a condition: groups; words and pairs; codes
HEADS = {"acgan": 5, "infogan": 10}  # outputs of D beside the score
# small, and with the same numbers on every CPU
TINY = ["--size", "16", "--width", "4", "--z-dim", "8", "--batch", "8", "--device", "cpu", "--no-bf16"]
TINY_PAIR = ["--size", "24", "--width", "4", "--blocks", "1", "--batch", "2", "--device", "cpu", "--no-bf16"]


def tiny(script: str) -> list[str]:
    if script == "cyclegan":
        return TINY_PAIR
    return [*TINY, "--size", "32"] if script == "lightweight_gan" else TINY  # its decoders need maps of 16 pixels


def module(script: str):
    return importlib.import_module(script)


def settings(script: str, *flags: str):
    """The args of a script as its own parser makes them, settled for the CPU."""
    args = module(script).parse_args([*tiny(script), "--path", "unused", "--out", "nowhere", *flags])
    args.autocast = False
    if script == "acgan":
        args.groups = GROUPS
    if script == "cgan_text2img":
        args.captions = sorted(f"{hair} hair {eyes} eyes" for hair, eyes in LOOKS)
        args.words = sorted({part for caption in args.captions for part in module(script).split(caption)})
    return args


def d_steps(script: str) -> int:
    """Updates of D in a step, at the defaults."""
    return getattr(settings(script), "n_critic", 1)


def also(script: str) -> tuple:
    """What train_step takes beside what all take: gamma."""
    return (2.0,) if script == "r3gan" else ()


def condition(script: str, n: int, args) -> tuple:
    """What G takes beside z: random attributes or codes, or the captions in turn; () in the noise scripts."""
    if script == "acgan":
        return (torch.stack([torch.randint(len(values), (n,)) for values in args.groups.values()], 1),)
    if script == "cgan_text2img":
        return (module(script).encode([args.captions[i % len(args.captions)] for i in range(n)], args),)
    return (module(script).draw_codes(n, args),) if script == "infogan" else ()


def scores(script: str, D, x, c: tuple) -> torch.Tensor:
    """D's scores (N,) of images, with their captions where it reads them."""
    out = D(x, *c) if script == "cgan_text2img" else D(x)
    return out if torch.is_tensor(out) else out[0]


def run(script: str, path, out, *flags: str) -> dict:
    """Train in-process with tiny networks; returns main()'s state."""
    return module(script).main([*tiny(script), "--path", str(path), "--out", str(out), *flags])


FIND, LISTDIR = common.find_images, os.listdir


def files_below(folder) -> int:
    """Files in a folder and all its sub-folders, also those that links lead to; each folder once, whatever its names."""
    count, seen = 0, set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
        else:
            seen.add(real)
            count += len(files)
    return count


@pytest.fixture(autouse=True)
def every_file_is_accounted_for():
    """For each folder that any test loads: images and files that are left out add up to the files that are there."""
    load_images = common.load_images

    def checked(args):
        result = load_images(args)
        if args.path is not None and common.find_images is FIND and os.listdir is LISTDIR:
            found = args.found[args.path]
            assert found["images"] == len(result[1]), found
            assert found["images"] + sum(found["left_out"].values()) == found["files"] == files_below(args.path), found
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "load_images", checked)
        yield


@pytest.fixture(params=SCRIPTS)
def script(request) -> str:
    return request.param


@pytest.fixture(params=ALL)
def any_script(request) -> str:
    """Of all scripts, cyclegan.py too."""
    return request.param


@pytest.fixture
def images(request) -> Path:
    """What `any_script` trains on: a folder of images, for cyclegan.py two of them."""
    script = request.getfixturevalue("any_script")
    return request.getfixturevalue("pair" if script == "cyclegan" else "folder")


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """24 painted faces of 32 px, with tags of LOOKS in turn."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(24):
        faces.paint(0, i, 32)[0].save(folder / f"{i}.png")
    tags = [f"{i},{LOOKS[i % 6][0]} hair {LOOKS[i % 6][1]} eyes\n" for i in range(24)]
    (folder / "tags.csv").write_text("".join(tags))
    return folder


@pytest.fixture(scope="session")
def pair(tmp_path_factory) -> Path:
    """trainA with 7 black-haired faces, trainB with 5 blonde ones, 32 px; two of each to test."""
    root, i = tmp_path_factory.mktemp("pair"), 0
    for side, hair, count in (("A", "black", 7), ("B", "blonde", 5)):
        for name, n in ((f"train{side}", count), (f"test{side}", 2)):
            (root / name).mkdir()
            for k in range(n):
                faces.paint(1, i := i + 1, 32, hair=hair)[0].save(root / name / f"{k}.png")
    return root


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
