"""Without a GPU: tensors without data stand in for those of another device, and one on the wrong device is an error."""

import contextlib

import pytest
import torch
from conftest import SCRIPTS, also, condition, module, settings, tiny
from test_training import refused

# It draws the shifts of images on the CPU on purpose, because they become slices.
DRAWS_ON_CPU = ("lightweight_gan",)


def build(script: str, device: str, monkeypatch):
    """A script's module, its args, and G, D and G_ema on the device."""
    m, args = module(script), settings(script)
    args.device = device
    if device == "meta":
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # torch has none for it
    return m, args, *m.build(args)


def batches(script: str, args) -> list:
    """A dozen batches on the device, with labels where the script has some."""
    found = []
    for _ in range(12):
        x = torch.rand(args.batch, 3, args.size, args.size, device=args.device) * 2 - 1
        y = [label.to(args.device) for label in condition(script, args.batch, args)]
        if script == "cgan_text2img":
            found.append((x, torch.stack([y[0], y[0]], 1)))  # two captions of each image
        else:
            found.append((x, y[0]) if script == "acgan" else x)
    return found


def step(script: str, device: str, monkeypatch, default: str):
    """One train_step on a device, where tensors that are made without naming one are on another."""
    m, args, G, D, _ = build(script, device, monkeypatch)
    opt_G, opt_D = torch.optim.Adam(G.parameters()), torch.optim.Adam(D.parameters())
    data = iter(batches(script, args))
    with torch.device(default):
        metrics = m.train_step(G, D, opt_G, opt_D, data, args, *also(script))
    assert {value.device.type for value in metrics.values()} == {device}
    assert {p.grad.device.type for net in (G, D) for p in net.parameters()} == {device}
    return m, args, G


def test_a_step_on_another_device(script, monkeypatch):
    """Catches a tensor that is made on the CPU while networks and data are elsewhere, in losses, penalties and noise."""
    step(script, "meta", monkeypatch, default="cpu")


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script not in DRAWS_ON_CPU])
def test_a_step_with_another_default(script, monkeypatch):
    """The same the other way round, with values: all is on the CPU, and what names no device is not."""
    step(script, "cpu", monkeypatch, default="meta")


@pytest.mark.parametrize("way", [{"sample": 3}, {"sample": 2, "seeds": [3, 4]}, {"sample": 5, "walk": 5}], ids=str)
@pytest.mark.parametrize("script", SCRIPTS)
def test_samples_on_another_device(script, way, monkeypatch):
    """Catches noise, labels, captions or codes of --sample, --seeds or --walk that stay on the CPU."""
    # infogan.py reads the codes that it has drawn, which takes data
    device, default = ("cpu", "meta") if script == "infogan" else ("meta", "cpu")
    m, args, _, _, G_ema = build(script, device, monkeypatch)
    args.sample_mode, args.checkpoint = "eval", "unused"
    vars(args).update(way)
    args.prompt = args.prompts = args.sample_labels = None
    monkeypatch.setattr(m.common, "read_checkpoint", lambda *_: {"state": {"G_ema": G_ema.state_dict()}})
    drawn, taken = [], []
    G_ema.register_forward_pre_hook(lambda net, inputs: taken.extend(inputs))
    monkeypatch.setattr(m.common, "write_samples", lambda args, generate, labels=None: drawn.append(generate()))
    with torch.device(default):
        m.sample(G_ema, args)
    (images,) = drawn
    assert (
        {x.device.type for x in (images, *taken)} == {device}
        and images.shape[1:] == (3, args.size, args.size)
        and len(images) >= (1 if args.seeds else args.sample)
    )


@pytest.mark.parametrize(("device", "default"), [("meta", "cpu"), ("cpu", "meta")])
def test_a_step_of_cyclegan(device, default, monkeypatch):
    m, args = (
        module("cyclegan"),
        module("cyclegan").parse_args([*tiny("cyclegan"), "--path", "unused", "--out", "nowhere"]),
    )
    args.device, args.autocast = device, False
    if device == "meta":
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    G, D, _ = m.build(args)
    pools = {side: m.Pool(args) for side in "AB"}
    opt_G, opt_D = torch.optim.Adam(G.parameters()), torch.optim.Adam(D.parameters())
    data = [iter([torch.rand(2, 3, 27, 27, device=device) for _ in range(3)]) for _ in "AB"]
    for _ in range(3):
        with torch.device(default) if device == "meta" else contextlib.nullcontext():
            metrics = m.train_step(G, D, opt_G, opt_D, data, pools, args)
    assert {value.device.type for value in metrics.values()} == {device}


def test_labels_follow_their_images():
    """Catches labels that stay on the CPU while images go to the device."""
    import numpy as np

    import common

    args = settings("acgan")
    args.device = "meta"
    data = common.Batches(
        np.zeros((16, 3, 4, 4), np.uint8), args, 0, 1, np.arange(16), torch.zeros(16, 2, dtype=torch.int64)
    )
    x, y = next(data)
    assert x.device.type == y.device.type == "meta"


@pytest.mark.parametrize("device", ["cuda:1", "cuda:0"])
def test_one_gpu_for_several_processes_is_refused(any_script, device, monkeypatch, capsys):
    """Catches all processes of a machine on one GPU, because the user named it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    args = module(any_script).parse_args(
        [*tiny(any_script), "--path", "unused", "--out", "nowhere", "--device", device]
    )
    with refused(capsys, 2, f"--device {device}", "2 processes", "use --device cuda"):
        module(any_script).setup(args)


def test_translations_do_not_search_for_kernels(tmp_path, monkeypatch, pair):
    """Catches cudnn.benchmark in --translate, which tries all kernels again for each shape of image."""
    m = module("cyclegan")
    m.main([*tiny("cyclegan"), "--path", str(pair), "--out", str(tmp_path), "--steps", "1"])
    seen, forward = [], m.Generator.forward
    monkeypatch.setattr(
        m.Generator, "forward", lambda self, x: seen.append(torch.backends.cudnn.benchmark) or forward(self, x)
    )
    m.main(["--translate", str(pair / "testA"), "--out", str(tmp_path), "--device", "cpu"])
    assert seen == [False, False]
    m.main([*tiny("cyclegan"), "--path", str(pair), "--out", str(tmp_path / "b"), "--steps", "1"])
    assert seen[-1]  # in training, all images have one shape
