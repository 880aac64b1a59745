"""cyclegan.py: its algorithm by hand, the pool, the schedule, the authors' weights, translation of any size, runs of two folders."""

import argparse
import copy
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, module, same, same_state
from conftest import TINY_PAIR as TINY
from PIL import Image
from test_training import refused
from torch import nn

import common
import faces

m = module("cyclegan")


def settings(*flags: str) -> argparse.Namespace:
    args = m.parse_args([*TINY, "--path", "unused", "--out", "nowhere", *flags])
    args.autocast = False
    return args


def run(path, out, *flags: str) -> dict:
    return m.main([*TINY, "--path", str(path), "--out", str(out), *flags])


class Scale(nn.Module):
    """A generator with one weight: x -> w x + b."""

    def __init__(self, w: float, b: float):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(w)), nn.Parameter(torch.tensor(b))

    def forward(self, x):
        return self.w * x + self.b


def toys(*flags, share=slice(None)):
    """Generators and critics small enough for a derivation by hand, SGD, three batches a side, pools."""
    torch.manual_seed(0)
    G = nn.ModuleDict({"AB": Scale(0.7, 0.1), "BA": Scale(1.2, -0.2)})
    D = nn.ModuleDict({side: nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 5)) for side in "AB"})
    data = [iter(torch.rand(3, 2, 3, 24, 24)[:, share] * 2 - 1) for _ in range(2)]
    args = settings("--load-size", "24", *flags)
    opts = [torch.optim.SGD(net.parameters(), 0.01) for net in (G, D)]
    return G, D, opts, data, {side: m.Pool(args) for side in "AB"}, args


@pytest.mark.parametrize("flags", ["--pool 2", "--gan-mode bce --cycle 3 --identity 0.2 --pool 0"])
def test_step_equals_the_algorithm_by_hand(flags):
    """Catches exchanged generators, domains or targets, a wrong weight, D fed with the new G's images or the wrong pool."""
    G, D, opts, data, pools, args = toys(*flags.split())
    for side, pool in pools.items():
        for k in range(1 if args.pool else 0):
            pool.query(torch.full((2, 3, 24, 24), 0.1 * (k + (side == "B"))))  # it is full: half of the fakes are older
    old = copy.deepcopy(pools)
    G2, D2 = copy.deepcopy(G), copy.deepcopy(D)
    a, b = (next(copy.deepcopy(batches)) for batches in data)
    metrics = m.train_step(G, D, *opts, data, pools, args)

    def verdict(scores, target):  # of one batch of squares
        if args.gan_mode == "lsgan":
            return torch.mean((scores - target) ** 2)
        return -torch.log(torch.sigmoid(scores) if target else 1 - torch.sigmoid(scores)).mean()

    def far(x, y):
        return torch.mean(torch.abs(x - y))

    to_b, to_a = G2["AB"](a), G2["BA"](b)
    back = far(G2["BA"](to_b), a) + far(G2["AB"](to_a), b)
    kept = far(G2["BA"](a), a) + far(G2["AB"](b), b)
    loss = verdict(D2["B"](to_b), 1) + verdict(D2["A"](to_a), 1) + args.cycle * back + args.cycle * args.identity * kept
    for p, g in zip(G2.parameters(), torch.autograd.grad(loss, list(G2.parameters())), strict=True):
        p.data -= 0.01 * g
    loss_D = 0
    seen = {side: old[side].query(fake) for side, fake in (("A", to_a), ("B", to_b))}
    assert args.pool == 0 or any(not torch.equal(seen[side], fake) for side, fake in (("A", to_a), ("B", to_b)))
    for side, real in (("A", a), ("B", b)):
        loss_D = loss_D + verdict(D2[side](real), 1) / 2 + verdict(D2[side](seen[side]), 0) / 2
    for p, g in zip(D2.parameters(), torch.autograd.grad(loss_D, list(D2.parameters())), strict=True):
        p.data -= 0.01 * g
    for x, y in zip([*G.parameters(), *D.parameters()], [*G2.parameters(), *D2.parameters()], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
    adversarial = loss - args.cycle * back - args.cycle * args.identity * kept
    expected = {"loss_D": loss_D, "loss_G": loss, "adversarial": adversarial, "cycle": back, "identity": kept}
    expected = {name: value.item() for name, value in expected.items()}
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, rel=1e-4)


def test_gradients_of_one_step_stay_out_of_the_other():
    """Catches D that learns in G's step, and G that gets gradients in D's."""
    G, D, (opt_G, opt_D), data, pools, args = toys()
    step, noted = opt_G.step, {}

    def spy():
        noted["D"] = [p.grad for p in D.parameters()]
        noted["frozen"] = not next(D.parameters()).requires_grad
        noted["G"] = [p.grad.clone() for p in G.parameters()]
        step()

    opt_G.step = spy
    m.train_step(G, D, opt_G, opt_D, data, pools, args)
    assert noted["D"] == [None] * 4 and noted["frozen"]
    assert all(torch.equal(x, p.grad) for x, p in zip(noted["G"], G.parameters(), strict=True))
    assert all(p.grad.abs().sum() > 0 for p in [*G.parameters(), *D.parameters()])


def test_average_of_the_generators(pair, tmp_path):
    """Catches an average that is never updated: after the first step it is a tenth of the start."""
    state = run(pair, tmp_path / "a", "--steps", "1", "--lr-g", "0.01", "--lr-d", "0")
    torch.manual_seed(0)
    start = nn.ModuleDict({way: m.Generator(settings()) for way in ("AB", "BA")}).apply(m.init_weights)
    for first, p, average in zip(*(net.parameters() for net in (start, state["G"], state["G_ema"])), strict=True):
        torch.testing.assert_close(average, 0.1 * first + 0.9 * p.detach(), rtol=1e-4, atol=1e-6)
    assert not same(state["G"].state_dict(), state["G_ema"].state_dict())


def test_identity_networks_have_no_cycle_and_no_identity_loss():
    G, D, opts, data, pools, args = toys()
    for way in G.values():
        way.w.data.fill_(1), way.b.data.zero_()
    metrics = m.train_step(G, D, *opts, data, pools, args)
    assert metrics["cycle"] == 0 and metrics["identity"] == 0 and metrics["adversarial"] > 0


def test_identity_weight_is_a_factor_of_the_cycle_weight():
    """Catches a bare 0.5 in the place of 0.5 x 10: without adversarial terms, loss_G is cycle x (cycle + identity / 2)."""
    G, D, opts, data, pools, args = toys()
    metrics = m.train_step(G, D, *opts, data, pools, args)
    expected = metrics["adversarial"] + 10 * metrics["cycle"] + 5 * metrics["identity"]
    assert metrics["loss_G"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_losses_have_their_known_values_and_optima():
    real, fake = torch.tensor([[0.5, 2.0]]), torch.tensor([[-1.0, 0.0]])
    assert m.d_loss(real, fake).item() == pytest.approx(((0.25 + 1) / 2 + (1 + 0) / 2) / 2)
    assert m.g_loss(fake).item() == pytest.approx((4 + 1) / 2)
    zero = torch.zeros(1, 2)
    assert m.d_loss(zero, zero, "bce").item() == pytest.approx(np.log(2))
    assert m.g_loss(zero, "bce").item() == pytest.approx(np.log(2))
    for mode in ("lsgan", "bce"):
        real, fake = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
        m.d_loss(real, fake + 0.5, mode).backward()
        assert (real.grad < 0).all() and (fake.grad > 0).all()  # descent raises reals and lowers fakes
        fake = torch.zeros(1, 2, requires_grad=True)
        m.g_loss(fake, mode).backward()
        assert (fake.grad < 0).all()


def marked(first: int, n: int) -> torch.Tensor:
    """n images whose every pixel is their number, from `first` on."""
    return torch.arange(first, first + n).float()[:, None, None, None].expand(n, 1, 2, 2).clone()


def test_pool():
    """Catches a pool that never fills, never swaps, keeps what it showed, shows an image three times, or keeps a graph."""
    pool, shown = m.Pool(settings("--pool", "50")), []
    for k in range(0, 50, 2):
        x = marked(k, 2).requires_grad_()
        out = pool.query(x)
        assert torch.equal(out, x) and not out.requires_grad  # while it fills
        shown += out[:, 0, 0, 0].tolist()
    old = 0
    for k in range(50, 4050, 2):
        out = pool.query(marked(k, 2))[:, 0, 0, 0].tolist()
        old += sum(number not in (k, k + 1) for number in out)
        shown += out
        assert len(pool.images) == 50
    assert 0.47 < old / 4000 < 0.53
    assert max(shown.count(number) for number in set(shown)) == 2
    inside = pool.images[:, 0, 0, 0].tolist()
    assert len(set(inside)) == 50 and min(inside) > 3000  # 50 images leave after some hundred
    assert torch.equal(m.Pool(settings("--pool", "0")).query(marked(0, 2)), marked(0, 2))


def test_pool_goes_on_from_its_state():
    pool, other = m.Pool(settings("--pool", "4")), m.Pool(settings("--pool", "4"))
    for k in range(0, 20, 2):
        pool.query(marked(k, 2))
    other.load_state_dict(copy.deepcopy(pool.state_dict()))
    for k in range(20, 40, 2):
        assert torch.equal(pool.query(marked(k, 2)), other.query(marked(k, 2)))
    assert pool.query(torch.zeros(1, 1, 3, 3)).shape == (1, 1, 3, 3)  # another --size empties it


def test_learning_rate_at_its_corners():
    """Catches a rate that falls from the start, ends above 0, or turns negative."""
    args = settings("--constant", "100", "--decay", "100", "--steps", "200")
    assert [m.lr_factor(step, args) for step in (0, 99, 100, 150, 200, 500)] == [1, 1, 1, 0.5, 0, 0]
    assert m.lr_factor(199, args) == pytest.approx(0.01)


def test_rate_reaches_the_optimizers_and_a_resumed_run(pair, tmp_path):
    flags = ("--constant", "2", "--decay", "4", "--lr-g", "0.01", "--lr-d", "0.02")
    state = run(pair, tmp_path / "a", "--steps", "4", *flags)  # step 3, the last: 0.75
    assert [state[name].param_groups[0]["lr"] for name in ("opt_G", "opt_D")] == pytest.approx([0.0075, 0.015])
    state = m.main(["--resume", "--out", str(tmp_path / "a"), "--steps", "6", "--device", "cpu"])
    assert [state[name].param_groups[0]["lr"] for name in ("opt_G", "opt_D")] == pytest.approx([0.0025, 0.005])


def test_receptive_field_is_70():
    """Catches a stride or a layer too many: by the pixels that one score depends on."""
    torch.manual_seed(0)
    D = m.Discriminator(settings("--size", "256", "--load-size", "0"))
    for layer in D.modules():  # norms spread every pixel over the whole map
        if isinstance(layer, nn.InstanceNorm2d):
            layer.forward = lambda x: x
    x = torch.rand(1, 3, 256, 256, requires_grad=True)
    scores = D(x)
    assert scores.shape == (1, 30 * 30)
    scores[0, 15 * 30 + 15].backward()
    rows, columns = (x.grad[0].abs().sum((0, k)).nonzero().flatten() for k in (2, 1))
    assert rows.max() - rows.min() + 1 == 70 and columns.max() - columns.min() + 1 == 70


@pytest.mark.parametrize("shape", [(24, 24), (32, 48), (33, 50), (61, 27)])
def test_any_size_comes_back(shape):
    """Catches outputs that are rounded up to multiples of 4, and a range beyond [-1, 1]."""
    G = m.Generator(settings()).apply(m.init_weights)
    y = G(torch.rand(1, 3, *shape) * 2 - 1)
    assert y.shape == (1, 3, *shape) and y.abs().max() <= 1
    with torch.autocast("cpu", torch.bfloat16):
        assert m.Discriminator(settings())(y).dtype == torch.float32


def test_constant_images_give_no_nan():
    G, D = m.Generator(settings()), m.Discriminator(settings())
    x = torch.full((2, 3, 24, 24), -1.0, requires_grad=True)
    loss = m.g_loss(D(G(x)))
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()


def authors_generator(width: int, blocks: int) -> tuple[nn.Sequential, dict[str, torch.Tensor]]:
    """The published generator from plain layers, and its weights under the names of the authors' files."""

    def conv(c_in, c_out, k, stride=1, padding=0):
        return nn.Conv2d(c_in, c_out, k, stride, padding)

    class Norm(nn.Module):
        def forward(self, x):
            return (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()

    class Residual(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.a, self.b = conv(c, c, 3), conv(c, c, 3)

        def forward(self, x):
            y = torch.relu(Norm()(self.a(nn.functional.pad(x, (1, 1, 1, 1), mode="reflect"))))
            return x + Norm()(self.b(nn.functional.pad(y, (1, 1, 1, 1), mode="reflect")))

    w = width
    head = [nn.ReflectionPad2d(3), conv(3, w, 7), Norm(), nn.ReLU(), conv(w, 2 * w, 3, 2, 1), Norm(), nn.ReLU()]
    head += [conv(2 * w, 4 * w, 3, 2, 1), Norm(), nn.ReLU()]
    middle = [Residual(4 * w) for _ in range(blocks)]
    tail = [nn.ConvTranspose2d(4 * w, 2 * w, 3, 2, 1, 1), Norm(), nn.ReLU()]
    tail += [
        nn.ConvTranspose2d(2 * w, w, 3, 2, 1, 1),
        Norm(),
        nn.ReLU(),
        nn.ReflectionPad2d(3),
        conv(w, 3, 7),
        nn.Tanh(),
    ]
    names = {1: head[1], 4: head[4], 7: head[7]}
    names |= {10 + blocks: tail[0], 13 + blocks: tail[3], 17 + blocks: tail[7]}
    weights = {}
    for k, layer in names.items():
        weights |= {f"model.{k}.weight": layer.weight, f"model.{k}.bias": layer.bias}
    for k, block in enumerate(middle, 10):
        for place, layer in ((1, block.a), (5, block.b)):
            weights |= {f"model.{k}.conv_block.{place}.{what}": getattr(layer, what) for what in ("weight", "bias")}
    net = nn.Sequential(*head, *middle, *tail)
    return net, {name: weight.detach().clone() for name, weight in weights.items()}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("blocks", [6, 9])
def test_weights_of_the_authors_load_and_do_the_same(blocks, old, pair, tmp_path):
    """Catches another order of layers, a norm with weights, another padding: same keys, same output as by plain layers."""
    torch.manual_seed(0)
    net, weights = authors_generator(8, blocks)
    for weight in weights.values():
        weight.normal_(0, 0.1)
    convolutions = [layer for layer in net.modules() if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))]
    names = [f"model.{k}" for k in (1, 4, 7)]
    names += [f"model.{k}.conv_block.{place}" for k in range(10, 10 + blocks) for place in (1, 5)]
    names += [f"model.{k + blocks}" for k in (10, 13, 17)]
    for layer, name in zip(convolutions, names, strict=True):
        layer.weight.data, layer.bias.data = weights[f"{name}.weight"], weights[f"{name}.bias"]
    saved = dict(weights)
    if old:  # files of before 2018
        saved |= {"model.2.running_mean": torch.zeros(8), "model.2.running_var": torch.ones(8)}
        saved |= {"model.2.num_batches_tracked": torch.tensor(0)}
    torch.save(saved, tmp_path / "latest_net_G.pth")
    flags = ["--translate", str(pair / "testA"), "--weights", str(tmp_path / "latest_net_G.pth"), "--device", "cpu"]
    m.main([*flags, "--size", "32", "--out", str(tmp_path / "zebras")])
    for name in ("0.png", "1.png"):
        x = torch.from_numpy(np.asarray(Image.open(pair / "testA" / name)).transpose(2, 0, 1).copy())[None]
        with torch.no_grad():
            y = (net(x.float() / 127.5 - 1)[0] + 1) * 127.5
        z = np.asarray(Image.open(tmp_path / "zebras" / name)).transpose(2, 0, 1)
        assert abs(y.numpy() - z).max() <= 0.6 and y.std() > 5


def test_weights_of_something_else_are_refused(tmp_path, pair, capsys):
    torch.save({"model.1.weight": torch.zeros(4, 3, 7, 7)}, tmp_path / "half.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "no.pth").write_text("no")
    for name in ("half.pth", "list.pth", "no.pth", "none.pth"):
        with refused(capsys, 2, name, "no generator"):
            m.main(["--translate", str(pair), "--weights", str(tmp_path / name), "--out", str(tmp_path / "z")])
    with refused(capsys, 2, "--reverse"):
        m.main(["--translate", str(pair), "--weights", "w", "--reverse", "--out", str(tmp_path / "z")])
    with refused(capsys, 2, "--weights"):
        m.main(["--weights", "w", "--out", str(tmp_path / "z")])


def test_a_folder_of_damaged_images_is_not_translated(pair, tmp_path, capsys):
    """Catches a success that has written nothing."""
    run(pair, tmp_path / "run", "--steps", "1")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_text("no image")
    with refused(capsys, 1, f"--translate {tmp_path}/photos", "none of the 1 image files can be read"):
        m.main(["--translate", str(tmp_path / "photos"), "--out", str(tmp_path / "run"), "--device", "cpu"])


def test_results_do_not_go_beside_images_of_the_user(pair, tmp_path, capsys):
    """Catches a folder of photographs that becomes one of results, which a later training leaves out."""
    run(pair, tmp_path / "run", "--steps", "1")
    shutil.copytree(pair / "trainA", tmp_path / "photos")
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (24, 24), "red").save(tmp_path / "mine/mine.png")
    command = ["--translate", str(tmp_path / "photos"), "--checkpoint", str(tmp_path / "run/last.pt")]
    with refused(capsys, 2, "'mine.png'", "--out"):
        m.main([*command, "--out", str(tmp_path / "mine"), "--device", "cpu"])
    assert os.listdir(tmp_path / "mine") == ["mine.png"]


def test_translation(pair, tmp_path, capsys):
    """Catches lost names, folders, sizes or formats, the live G, the wrong way, and results that overwrite the originals."""
    out, photos = tmp_path / "run", tmp_path / "photos"
    state = run(pair, out, "--steps", "2", "--lr-g", "0.02")
    (photos / "deep").mkdir(parents=True)
    for name, size in (("wide.jpg", (90, 40)), ("deep/tall.png", (31, 77)), ("small.webp", (9, 9))):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)).save(photos / name)
    faces.paint(0, 0, 24)[0].save(photos / "same.png")
    (photos / "broken.png").write_text("no image")
    originals = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    m.main(["--translate", str(photos), "--out", str(out), "--device", "cpu"])
    assert "skipped 'broken.png'" in capsys.readouterr().err
    for name in ("wide.jpg", "deep/tall.png", "small.webp", "same.png"):
        with Image.open(photos / name) as a, Image.open(out / "AtoB" / name) as b:
            assert a.size == b.size and a.format == b.format
    x = torch.from_numpy(np.asarray(Image.open(photos / "same.png")).transpose(2, 0, 1).copy()).float() / 127.5 - 1
    for way, flags in (("AB", []), ("BA", ["--reverse"])):
        there = tmp_path / way
        m.main(["--translate", str(photos), "--checkpoint", str(out / "last.pt"), "--out", str(there), *flags])
        expected = (state["G_ema"][way](x[None])[0] + 1) * 127.5
        drawn = np.asarray(Image.open(there / "same.png")).transpose(2, 0, 1)
        assert abs(expected.numpy() - drawn).max() <= 0.51
    assert not same(state["G_ema"]["AB"].state_dict(), state["G"]["AB"].state_dict())
    sheet = Image.open(out / "AtoB/_sheet.png")
    assert sheet.size == (8 * 26 + 2, 26 + 2)  # four pairs
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == originals
    m.main(["--translate", str(out / "AtoB"), "--out", str(out), "--reverse", "--device", "cpu"])  # and back again
    assert len(list((out / "BtoA").rglob("*.*"))) == 6 and len(list((out / "AtoB").rglob("*.*"))) == 6  # with .written
    for folder in (photos, tmp_path / "empty"):
        folder.mkdir(exist_ok=True)
        with refused(capsys, 2, "--translate", str(folder)):
            m.main(["--translate", str(folder), "--checkpoint", str(out / "last.pt"), "--out", str(photos)])
    for flags in (["--grid"], ["--resume"], ["--sample", "3"], ["--finetune", str(out / "last.pt")]):
        with refused(capsys, 2, "--translate cannot be combined"):
            m.main(["--translate", str(photos), "--out", str(out), *flags])
    with refused(capsys, 2, "--reverse", "--translate"):
        m.main(["--reverse"])
    larger = ["--translate", str(photos), "--out", str(out), "--size", "48"]
    assert m.parse_args(larger).size == 48  # more than --load-size, which is of the training


def test_originals_are_not_overwritten_under_another_name(pair, tmp_path, monkeypatch, capsys):
    """Catches --out that names the folder of --translate by another path: absolute, by way of "..", or through a link."""
    run(pair, tmp_path / "run", "--steps", "1")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (24, 24), "red").save(tmp_path / "photos/a.png")
    (tmp_path / "link").symlink_to("photos", target_is_directory=True)
    before = (tmp_path / "photos/a.png").read_bytes()
    monkeypatch.chdir(tmp_path)
    for folder, out in (
        ("photos", str(tmp_path / "photos")),
        ("photos", "run/../photos"),
        ("photos", "link"),
        ("link", "photos"),
    ):
        with refused(capsys, 2, "--translate", "--out"):
            m.main(["--translate", folder, "--out", out, "--checkpoint", "run/last.pt", "--device", "cpu"])
    assert (tmp_path / "photos/a.png").read_bytes() == before and len(list((tmp_path / "photos").iterdir())) == 1


def test_G_sees_the_whole_image_in_its_proportions(pair, tmp_path, monkeypatch):
    """Catches images that are squeezed into a square, cropped, or shrunk by their longer side before they are translated."""
    run(pair, tmp_path / "run", "--steps", "1")
    (tmp_path / "photos").mkdir()
    for name, size in (("wide", (90, 40)), ("tall", (30, 75)), ("small", (9, 12)), ("square", (24, 24))):
        Image.new("RGB", size, "red").save(tmp_path / f"photos/{name}.png")
    seen, forward = [], m.Generator.forward
    monkeypatch.setattr(m.Generator, "forward", lambda self, x: (seen.append(tuple(x.shape)), forward(self, x))[1])
    m.main(["--translate", str(tmp_path / "photos"), "--out", str(tmp_path / "run"), "--device", "cpu"])
    assert sorted(seen) == [(1, 3, 24, 24), (1, 3, 24, 54), (1, 3, 32, 24), (1, 3, 60, 24)]


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_translation_follows_the_fit_of_the_training(pair, tmp_path, monkeypatch, fit):
    """Catches a G that was trained on padded or stretched squares and is shown something else; padding that stays in the result."""
    run(pair, tmp_path / "run", "--steps", "1", "--fit", fit)
    (tmp_path / "photos").mkdir()
    image = Image.new("RGB", (48, 24), "red")
    image.paste("blue", (0, 0, 24, 24))
    image.save(tmp_path / "photos/a.png")
    seen = []
    monkeypatch.setattr(m.Generator, "forward", lambda self, x: seen.append(x) or x)  # translates nothing
    m.main(["--translate", str(tmp_path / "photos"), "--out", str(tmp_path / "run"), "--device", "cpu"])
    (x,) = seen
    assert x.shape == (1, 3, 24, 24)
    rows = slice(6, 18) if fit == "pad" else slice(0, 24)  # where the image is
    rows = slice(rows.start + 3, rows.stop - 3)  # away from edges, where Lanczos overshoots
    assert abs(x[0, :, rows, :8] - torch.tensor([-1.0, -1, 1])[:, None, None]).max() < 0.1
    assert abs(x[0, :, rows, 16:] - torch.tensor([1.0, -1, -1])[:, None, None]).max() < 0.1
    assert fit == "stretch" or ((x[0, :, :6] == 1).all() and (x[0, :, 18:] == 1).all())  # white
    back = np.asarray(Image.open(tmp_path / "run/AtoB/a.png"))
    assert (
        back.shape == (24, 48, 3)
        and abs(back.astype(int) - np.asarray(image))[4:20, [*range(12), *range(36, 48)]].max() <= 12
    )


OVERWRITTEN = {  # --translate, --out, a file of the user's that a result would replace
    "the folder above": ("photos/sub", "photos", "photos/a.png"),
    "the other domain": ("ab/testA", "ab/testB", "ab/testB/a.png"),
    "a sheet": ("photos/sub", "other", "other/_sheet.png"),
    "AtoB of a run": ("photos/sub", "run", "run/AtoB/a.png"),
}


@pytest.mark.parametrize("case", OVERWRITTEN)
def test_files_of_the_user_are_not_overwritten(pair, tmp_path, capsys, case):
    """Catches results that replace files of the same name which this script has not written."""
    translate, out, file = (str(tmp_path / name) for name in OVERWRITTEN[case])
    run(pair, tmp_path / "run", "--steps", "1")
    for name in (f"{translate}/a.png", f"{translate}/b.png", file):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 24), "red").save(name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    command = ["--translate", translate, "--out", out, "--checkpoint", str(tmp_path / "run/last.pt"), "--device", "cpu"]
    with refused(capsys, 2, Path(file).name, "--out"):
        m.main(command)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    Path(file).unlink()
    m.main(command)
    m.main(command)  # results of an earlier call may be replaced
    assert Path(file).exists()


def test_formats_that_cannot_be_written(pair, tmp_path):
    """Catches a traceback, or a result that is lost, where an image is of a format that is only read, or has no suffix."""
    run(pair, tmp_path / "run", "--steps", "1")
    (tmp_path / "photos").mkdir()
    for name, kind in (("a.tga", "TGA"), ("b.ppm", "PPM"), ("c", "PNG"), ("d.jfif", "JPEG")):
        Image.new("RGB", (24, 24), "red").save(tmp_path / "photos" / name, kind)
    m.main(
        [
            "--translate",
            str(tmp_path / "photos"),
            "--out",
            str(tmp_path / "out"),
            "--checkpoint",
            str(tmp_path / "run/last.pt"),
        ]
    )
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"a.tga.png", "b.ppm.png", "c.png", "d.jfif.png", "_sheet.png", ".written"}


def test_translation_needs_no_names_after_a_training_with_the_defaults(pair, tmp_path, monkeypatch, capsys):
    """Catches doc-string commands that look for the checkpoint among the results."""
    monkeypatch.chdir(tmp_path)
    run(pair, "runs/cyclegan", "--steps", "2")
    m.main(["--translate", str(pair / "testA"), "--out", "zebras", "--device", "cpu"])
    m.main(["--translate", str(pair / "testA"), "--device", "cpu"])
    m.main(["--translate", str(pair / "testA"), "--reverse", "--device", "cpu"])
    torch.save(authors_generator(4, 6)[1], "net.pth")
    m.main(["--translate", str(pair / "testB"), "--weights", "net.pth", "--size", "24", "--device", "cpu"])
    m.main(["--translate", str(pair / "testA"), "--out", "zebras", "--device", "cpu"])  # once more: the folder is there
    for folder in ("zebras", "runs/cyclegan/AtoB", "runs/cyclegan/BtoA"):
        assert {file.name for file in (tmp_path / folder).iterdir()} == {"0.png", "1.png", "_sheet.png", ".written"}
        images, _ = common.find_images(str(tmp_path / folder), "elsewhere")
        assert images == ["0.png", "1.png"]  # not the sheet
    with refused(capsys, 2, "no checkpoint", "elsewhere"):
        m.main(["--translate", str(pair / "testA"), "--checkpoint", "elsewhere/last.pt"])


def test_domains(pair, tmp_path):
    """Catches batches of the wrong size, and test images that are cut or mirrored at random."""
    args = settings("--size", "28", "--load-size", "32", "--path", str(pair))
    default = argparse.Namespace(**vars(args) | {"size": 256, "load_size": 0})
    assert m.domain(default, "A", 0, 1)[0].images.shape == (7, 3, 286, 286)  # the authors' numbers
    (a, look_a), (b, look_b) = (m.domain(args, side, 0, 1) for side in "AB")
    assert a.images.shape == (7, 3, 32, 32) and b.images.shape == (5, 3, 32, 32) and next(a).shape == (2, 3, 32, 32)
    for look, side in ((look_a, "A"), (look_b, "B")):
        tests = [Image.open(pair / f"test{side}/{k}.png").resize((28, 28), Image.Resampling.LANCZOS) for k in (0, 1)]
        expected = np.stack([np.asarray(image).transpose(2, 0, 1) for image in tests]) / 127.5 - 1
        assert abs(look.numpy() - np.concatenate([expected] * 4)).max() < 0.02  # always eight: a row of the grid
    for side in "AB":  # without test images: the centers of the first training images
        shutil.copytree(pair / f"train{side}", tmp_path / f"train{side}")
    plain = settings("--size", "28", "--load-size", "32", "--path", str(tmp_path))
    for side, data in (("A", a), ("B", b)):
        look = m.domain(plain, side, 0, 1)[1]
        middle = common.normalize(data.images)[:, :, 2:30, 2:30]
        assert torch.equal(look, middle[[k % min(8, len(middle)) for k in range(8)]])
    torch.manual_seed(0)
    x = torch.arange(32.0 * 32).view(1, 1, 32, 32).repeat(200, 1, 1, 1)
    corners = m.random_crop(x, 28)[:, 0, 0, 0].long()
    assert set(corners.tolist()) == {32 * i + j for i in range(5) for j in range(5)}
    assert torch.equal(m.random_crop(x[:1], 32), x[:1])
    pieces = m.random_crop(x[:1], 28)[0, 0]
    assert torch.equal(pieces - pieces[0, 0], x[0, 0, :28, :28])


def test_sides_have_orders_of_their_own(pair, tmp_path):
    """Catches one order for both sides, which would pair image i of A with image i of B for ever."""
    for side in "AB":
        shutil.copytree(pair / "trainA", tmp_path / f"train{side}")
    args = settings("--path", str(tmp_path))
    a, b = (m.domain(args, side, 0, 1)[0] for side in "AB")
    assert any(not torch.equal(next(a), next(b)) for _ in range(3))


def test_built_in_sides(tmp_path, monkeypatch):
    """Catches sides exchanged, or one that holds other hair."""
    monkeypatch.setattr(common, "FACES", 120)
    args = m.parse_args(["--out", str(tmp_path), "--device", "cpu"])
    for side, hair in (("A", "black"), ("B", "blonde")):
        batches, look = m.domain(args, side, 0, 1)
        x = torch.cat(
            [next(batches) for _ in range(2)] + [common.normalize(torch.from_numpy(batches.images[:1].numpy()))]
        )
        images = ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        assert (faces.read_attributes(images)["hair"][:-1] == hair).mean() > 0.7
        assert look.shape[1:] == (3, 32, 32) and 1 < len(batches.rows) < 40
        shown = ((look + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()  # in the grid, too
        assert (faces.read_attributes(shown)["hair"] == hair).mean() > 0.7


def test_files_of_a_run(pair, tmp_path):
    out = tmp_path / "run"
    state = run(pair, out, "--steps", "4", "--log-every", "2", "--save-every", "2")
    assert json.loads((out / "args.json").read_text())["blocks"] == 1
    rows = list(csv.DictReader((out / "log.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4"] and {"loss_D", "loss_G", "cycle", "identity"} < rows[0].keys()
    saved = torch.load(out / "last.pt", weights_only=True)["state"]
    assert same(saved, {name: thing.state_dict() for name, thing in state.items()})
    assert len(saved["pool_A"]["images"]) == len(saved["pool_B"]["images"]) == 8
    grid = np.asarray(Image.open(out / "samples/000004.png"))
    args = m.parse_args([*TINY, "--path", str(pair), "--out", "x"])
    look_a, look_b = (m.domain(args, side, 0, 1)[1] for side in "AB")
    G = state["G_ema"]
    fake_b, fake_a = G["AB"](look_a), G["BA"](look_b)
    tiles = torch.cat([look_a, fake_b, G["BA"](fake_b), look_b, fake_a, G["AB"](fake_a)])
    for k, tile in enumerate(tiles):  # eight a row
        i, j = 2 + 26 * (k // 8), 2 + 26 * (k % 8)
        expected = ((tile + 1) * 127.5).permute(1, 2, 0).numpy()
        assert abs(grid[i : i + 24, j : j + 24] - expected).max() <= 1


def test_resume_is_bit_exact(pair, tmp_path):
    """Catches a pool, a side's position or a rate that starts anew."""
    flags = ("--save-every", "4", "--log-every", "1", "--pool", "6", "--constant", "6", "--decay", "6")
    whole = run(pair, tmp_path / "whole", "--steps", "12", *flags)
    run(pair, tmp_path / "parts", "--steps", "5", *flags)
    parts = m.main(["--resume", "--out", str(tmp_path / "parts"), "--steps", "12", "--device", "cpu"])
    assert same_state(whole, parts)
    for file in ("log.csv", "progress.gif", "samples/000012.png"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes(), file
    other = run(pair, tmp_path / "other", "--steps", "12", *flags, "--seed", "1")
    assert not same_state(whole, other)


def test_sampling_and_what_is_refused(pair, tmp_path, capsys):
    state = run(pair, tmp_path / "run", "--steps", "2", "--lr-g", "0.02")
    m.main(["--out", str(tmp_path / "run"), "--sample", "3", "--device", "cpu"])
    args = m.parse_args(["--out", str(tmp_path / "run"), "--sample", "3", "--device", "cpu"])
    torch.manual_seed(0)
    batches, _ = m.domain(args, "A", 0, 1)
    crops = torch.cat([m.random_crop(next(batches), 24) for _ in range(2)])
    for k in range(3):
        drawn = np.asarray(Image.open(tmp_path / f"run/generated/{k:05d}.png")).transpose(2, 0, 1)
        expected = (state["G_ema"]["AB"](crops[k : k + 1])[0] + 1) * 127.5
        assert abs(drawn - expected.numpy()).max() <= 1
    with refused(capsys, 2, "--width", "last.pt"):
        m.main(["--out", str(tmp_path / "run"), "--resume", "--steps", "9", "--width", "5"])
    shutil.copytree(pair / "trainA", tmp_path / "half/trainA")
    for path, reason in ((tmp_path / "nowhere", "does not exist"), (tmp_path / "half", "no trainB, only trainA")):
        with refused(capsys, 2, str(path), reason):
            run(path, tmp_path / "new", "--steps", "1")
    with refused(capsys, 2, "--steps 9", "--decay"):
        run(pair, tmp_path / "new", "--steps", "9", "--constant", "4", "--decay", "4")
    with refused(capsys, 2, "fewer than a batch"):
        run(pair, tmp_path / "new", "--steps", "1", "--batch", "6")
    with refused(capsys, 2, "--size 16"):
        m.main([*TINY, "--path", str(pair), "--size", "16", "--out", str(tmp_path / "new")])


def test_two_processes(tmp_path, pair):
    """Catches gradients of one share only, ranks that go apart, a pool for each rank, and a resume that only rank 0 does."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(ROOT / "tests/cyclegan_ranks.py"), str(tmp_path), str(pair)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr[-3000:]
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    G, D, opts, data, pools, args = toys()
    for _ in range(2):
        m.train_step(G, D, *opts, data, pools, args)
    for seen in (a, b):
        for x, y in zip(seen["toys"], [*G.parameters(), *D.parameters()], strict=True):
            assert abs(x - y).max() <= 1e-6
    assert same(a["whole"], b["whole"]) and same(a["whole"], a["parts"]) and same(b["whole"], b["parts"])
    assert len(a["whole"]["pool_A"]["images"]) == 4 and not torch.equal(a["cut"], b["cut"])
    assert len(list((tmp_path / "whole").glob("events*"))) == 1


def test_defaults_are_the_papers():
    args = vars(m.parse_args(["--path", "unused", "--out", "nowhere"]))
    paper = {"lr_g": 2e-4, "lr_d": 2e-4, "beta1": 0.5, "beta2": 0.999, "cycle": 10, "identity": 0.5, "pool": 50}
    paper |= {"batch": 1, "size": 256, "load_size": 0, "blocks": 9, "width": 64, "flip": True, "gan_mode": "lsgan"}
    assert {name: args[name] for name in paper} == paper
    assert args["constant"] == args["decay"] and args["steps"] == args["constant"] + args["decay"]
    small = m.parse_args(["--path", "unused", "--out", "nowhere", "--size", "128"])
    assert small.blocks == 6


def test_initialization():
    torch.manual_seed(0)
    for net in (m.Generator(settings("--width", "32")), m.Discriminator(settings("--width", "32"))):
        for layer in net.apply(m.init_weights).modules():
            assert not isinstance(layer, nn.InstanceNorm2d) or (layer.weight is None and not layer.track_running_stats)
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05) and (layer.bias == 0).all()


@pytest.mark.slow
def test_learns_the_color_of_hair(tmp_path, monkeypatch):
    """Catches a game that does not move: black hair must go most of the way to blonde, and blonde hair stay."""
    monkeypatch.setattr(common, "FACES", 2000)
    flags = ["--size", "32", "--width", "8", "--blocks", "1", "--batch", "4", "--lr-g", "2e-3", "--ema", "0.98"]
    flags += ["--steps", "400", "--device", "cpu", "--out", str(tmp_path / "run")]
    state, args = m.main(flags), m.parse_args([*flags[:-1], str(tmp_path / "other")])
    (_, a), (_, b) = (m.domain(args, side, 0, 1) for side in "AB")
    with torch.no_grad():
        shown = torch.cat([a, b, state["G_ema"]["AB"](a), state["G_ema"]["AB"](b)])
    hair = faces.fit(((shown + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())[0]["hair"].mean(1)
    black, blonde, translated, kept = (np.median(part) for part in hair.reshape(4, 8))
    print(f"\nbrightness of hair: black {black:.0f}, blonde {blonde:.0f}, translated {translated:.0f}, kept {kept:.0f}")
    assert translated > black + 0.6 * (blonde - black) and kept > black + 0.6 * (blonde - black)
