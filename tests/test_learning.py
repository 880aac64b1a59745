"""Slow: does a script learn at all? A short run on built-in faces, scored by the reader's layout fit; wrong signs fail it."""

import numpy as np
import pytest
import torch
from conftest import condition, module, same_state

import common
import faces

QUICK = ["--width", "16", "--lr-g", "1e-3", "--lr-d", "1e-3"]
LEARN = {
    "dcgan": [*QUICK, "--batch", "16", "--steps", "700", "--ema", "0.99"],
    "lsgan": [*QUICK, "--batch", "16", "--steps", "700", "--ema", "0.99"],
    "wgan": ["--width", "16", "--batch", "32", "--steps", "700", "--ema", "0.99", "--n-critic", "3"],
    "wgan_gp": [*QUICK, "--batch", "32", "--steps", "300", "--ema", "0.98", "--n-critic", "5"],
    "sngan": [*QUICK, "--batch", "16", "--steps", "700", "--ema", "0.99", "--n-critic", "1"],
}
LEARN["wgan"] += ["--lr-g", "2e-3", "--lr-d", "5e-4", "--norm", "batch"]  # as for a folder of images
LEARN |= dict.fromkeys(("acgan", "cgan_text2img", "infogan"), LEARN["dcgan"])
LEARN["r3gan"] = [*LEARN["dcgan"], "--blocks", "1", "--penalty-every", "4", "--anneal", "1200", "--steps", "1200"]
LEARN["r3gan"] += ["--stem", "1", "--lr-g", "3e-3", "--lr-d", "1.5e-3", "--gamma", "20"]
LEARN["lightweight_gan"] = [*LEARN["dcgan"], "--width", "8", "--steps", "1000", "--augment"]


def layout(script: str, state: dict, args) -> float:
    """Median share of the samples' variance that a face's parts explain."""
    torch.manual_seed(0)
    with torch.no_grad():
        x = state["G_ema"](module(script).noise(256, args), *condition(script, 256, args))
    images = ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return float(np.median(faces.fit(images)[1]))


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.slow
@pytest.mark.parametrize("script", LEARN)
def test_learns_faces(script, tmp_path, monkeypatch, two_threads):
    """Catches what no closed form sees: a network that cannot learn, a stream that repeats one batch, an average that lags."""
    monkeypatch.setattr(common, "FACES", 2000)
    m, flags = module(script), ["--size", "32", "--device", "cpu", "--seed", "0", *LEARN[script]]
    state = m.main([*flags, "--out", str(tmp_path / "run")])
    args = m.parse_args(["--sample", "1", "--out", str(tmp_path / "run"), "--device", "cpu"])  # with groups, words
    untrained = {"G_ema": m.Generator(args).apply(m.init_weights).eval()}
    before, after = layout(script, untrained, args), layout(script, state, args)
    print(f"\n{script}: layout fit {before:.3f} untrained, {after:.3f} after {args.steps} steps")
    assert before < 0.4 and after > 0.65 and not same_state({"G_ema": untrained["G_ema"]}, {"G_ema": state["G_ema"]})
