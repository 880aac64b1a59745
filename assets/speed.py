"""How fast the scripts train on this machine, and how much memory they take.

    python assets/speed.py                  # all scripts: some 20 minutes on two CPU cores
    python assets/speed.py dcgan sngan      # only these

Each script trains at 64 pixels with its defaults, and with its preset, on pictures of faces.py. *Ratio* is
the time of the usual way to write the same step, divided by ours: float32; torch's default Adam; D collects gradients
in G's step; D's step goes back through G. The two take turns, and the fastest time of each counts: let nothing else run
meanwhile. *Memory* is the peak of the whole process or, with a GPU, of its tensors there. For Linux and macOS.
"""

import argparse
import itertools
import multiprocessing
import resource
import sys
import tempfile
import time
import types
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import faces

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ["dcgan", "lsgan", "wgan", "wgan_gp", "sngan", "acgan", "cgan_text2img", "infogan"]
SCRIPTS += ["lightweight_gan", "r3gan", "cyclegan"]
WARM_UP = 3  # steps before the time is taken

# lines of ours, and what they are in the usual way
USUAL = {
    ", fused=True": "",
    "D.requires_grad_(False)": "pass",
    "with torch.no_grad():  # G is not updated here": "if True:",
    "(x_fake.detach()": "(x_fake",
    "loss.backward()": "loss.backward(retain_graph=True)",  # because both steps now go back through one graph of G
}


class Enough(Exception):
    """Ends a training whose time is known."""


def load(script: str, usual: bool) -> types.ModuleType:
    """The script as a module, as it is or written in the usual way."""
    file = ROOT / f"{script}.py"
    text = file.read_text(encoding="utf-8")
    if usual:
        for ours, theirs in USUAL.items():
            text = text.replace(ours, theirs)
    module = types.ModuleType(script)
    module.__file__ = str(file)
    exec(compile(text, str(file), "exec"), module.__dict__)
    return module


def seconds_per_step(script: str, usual: bool, flags: list[str], seconds: float) -> float:
    """Train for so many seconds, and at least one step, after the first three steps."""
    module = load(script, usual)
    step = module.train_step
    numbers = itertools.count(1)
    began = taken = 0.0

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(*args):
        nonlocal began, taken
        steps = next(numbers) - 1 - WARM_UP  # that have been timed so far
        if steps == 0:
            began = now()
        # the first look at the clock does not wait for the GPU
        if steps > 0 and time.perf_counter() - began > seconds:
            taken = (now() - began) / steps
            raise Enough
        return step(*args)

    module.train_step = timed
    with tempfile.TemporaryDirectory() as out:
        try:
            never = "1000000000"
            quiet = ["--log-every", never, "--save-every", never]
            module.main([*flags, *quiet, "--out", out, *["--no-bf16"] * usual])
        except Enough:
            return taken


def short(value: float) -> str:
    """1234.5 -> "1,234", 12.345 -> "12.3"."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cells(script: str, flags: list[str], seconds: float, turns: int) -> list[str]:
    """Of one setting, measured in a process of its own: milliseconds, images a second, memory, ratio."""
    ours, usual = [], []
    for turn in range(turns):
        ours.append(seconds_per_step(script, False, flags, seconds))
        if turn == 0:  # before the usual way takes more
            if torch.cuda.is_available():
                memory = torch.cuda.max_memory_allocated()
            else:
                unit = 1 if sys.platform == "darwin" else 1024  # bytes
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        usual.append(seconds_per_step(script, True, flags, seconds))

    args = load(script, False).parse_args([*flags, "--out", "unused"])
    images = args.batch * getattr(args, "n_critic", 1)
    found = [short(1000 * min(ours)), short(images / min(ours)), f"{memory / 1e9:.1f} GB"]
    return [*found, f"{min(usual) / min(ours):.2f}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", default=SCRIPTS, help="without .py; all if none is named")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement; never less than a step")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each way")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        faces.main([f"{folder}/faces", "--count", "512"])
        faces.main([f"{folder}/domains", "--count", "64", "--domains", "black", "blonde"])
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
        print(f"torch {torch.__version__}, {device}\n")
        columns = ["ms a step", "images/s", "memory", "ratio"]
        print("|", " | ".join(["", *(f"64 px: {c}" for c in columns), *(f"preset: {c}" for c in columns)]), "|")
        print("|---|" + "---:|" * 8, flush=True)
        for script in args.scripts:
            found = [f"`{script}.py`"]
            kind = "domains" if script == "cyclegan" else "faces"
            labels = ["--labels", f"{folder}/faces/tags.csv"] if script in ("acgan", "cgan_text2img") else []
            for flags in (["--path", f"{folder}/{kind}", "--size", "64", *labels], []):  # without --path: the preset
                # a process of its own, whose memory is that of this training
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                    found += process.submit(cells, script, flags, args.seconds, args.turns).result()
            print(f"| {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
