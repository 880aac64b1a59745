"""r3gan.py: the relativistic losses, both penalties, networks without normalization, and the schedules."""

import math

import pytest
import torch
from conftest import module, run, settings
from test_networks import build
from test_step import ascend, toys
from torch import nn
from torch.nn.functional import logsigmoid

m = module("r3gan")


def test_losses():
    """Catches a swapped sign, and scores that are not compared pair by pair."""
    real, fake = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([-0.5, 1.5, 0.0])
    pairs = [0.8, -2.7, 2.0]  # real - fake
    assert m.d_loss(real, fake).item() == pytest.approx(sum(math.log(1 + math.exp(-d)) for d in pairs) / 3, rel=1e-5)
    assert m.g_loss(real, fake).item() == pytest.approx(sum(math.log(1 + math.exp(d)) for d in pairs) / 3, rel=1e-5)
    real, fake = real.requires_grad_(), fake.requires_grad_()
    d_real, d_fake = torch.autograd.grad(m.d_loss(real, fake), (real, fake))
    g_real, g_fake = torch.autograd.grad(m.g_loss(real, fake), (real, fake))
    assert (d_real < 0).all() and (d_fake > 0).all() and (g_real > 0).all() and (g_fake < 0).all()
    assert m.d_loss(real, fake) != m.d_loss(real.roll(1), fake)  # pairs, not means
    assert m.d_loss(real + 5, fake + 5).item() == pytest.approx(m.d_loss(real, fake).item())  # only differences count


def test_best_scores_on_a_finite_set():
    """Catches a wrong pairing or constant: over all pairs the best D is log p/q and a constant."""
    p, q = torch.tensor([4, 3, 2, 1]), torch.tensor([1, 2, 3, 4])
    real, fake = (torch.arange(4).repeat_interleave(counts) for counts in (p, q))
    pairs = torch.cartesian_prod(real, fake).T
    scores = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = m.d_loss(*scores[pairs])
        loss.backward()
        return loss

    optimizer.step(closure)
    best = (p / q).double().log()
    assert torch.allclose(scores.detach() - scores.detach().mean(), best - best.mean(), atol=1e-4)
    assert closure() < math.log(2) - 0.1
    same = torch.cartesian_prod(real, real).T  # p = q: nothing to tell apart
    assert m.d_loss(*torch.zeros(4)[same]).item() == pytest.approx(math.log(2))


def test_penalty_of_a_linear_D():
    """Catches a norm that is not squared, and a gradient of the mean score: |w|^2 for each image of any batch."""
    torch.manual_seed(0)
    D = nn.Sequential(nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0))
    for n in (1, 5):
        x = torch.randn(n, 3, 2, 2, requires_grad=True)
        penalty = m.zero_centered_penalty(x, D(x))
        torch.testing.assert_close(penalty, D[1].weight.square().sum().expand(n))
    (gradient,) = torch.autograd.grad(penalty.mean(), D[1].weight)  # it can be learned from
    torch.testing.assert_close(gradient, 2 * D[1].weight.detach())


def test_penalty_of_a_quadratic_D():
    """Catches a penalty at the wrong place: the slope of |x|^2 / 2 is x."""
    x = torch.randn(6, 3, 2, 2, requires_grad=True)
    penalty = m.zero_centered_penalty(x, x.square().sum((1, 2, 3)) / 2)
    torch.testing.assert_close(penalty, x.square().sum((1, 2, 3)))


def test_blocks_start_as_the_identity():
    """Catches a last convolution that is not zero, and one that the initialization of its layer overwrites."""
    G, D, _ = build("r3gan", "--size", "32")
    blocks = [block for net in (G, D) for block in net.modules() if isinstance(block, m.Block)]
    assert len(blocks) == 2 * 2 * 4
    for block in blocks:
        x = torch.randn(2, block.net[0].in_channels, 6, 6)
        assert torch.equal(block(x), x)
        inside = block.net[:4](x)
        assert inside.std() > 0.1  # only the last convolution is zero
        block.net[4].weight.data.normal_()
        assert not torch.equal(block(x), x)


@pytest.mark.parametrize("size", ["32", "128"])
@torch.no_grad()
def test_variance_is_kept_through_depth(size):
    """Catches weights that make maps fade or explode with depth, which here no normalization would mend."""
    G, D, args = build("r3gan", "--size", size, "--width", "16", "--z-dim", "64")
    maps = []
    for net in (G, D):
        for layer in net.modules():
            if isinstance(layer, (m.Block, m.Resample)):
                layer.register_forward_hook(lambda layer, inputs, out: maps.append((layer, inputs[0], out)))
    x = G(m.noise(2048 // args.size, args))
    D(x / x.std())
    for layer, before, after in maps:
        ratio = (after.std() / before.std()).item()
        assert 0.5 < ratio < 1.3 if isinstance(layer, m.Resample) else ratio == 1
        if isinstance(layer, m.Block):  # each half of the branch: its gain is L^(-1/4), L blocks
            h = torch.randn(64, before.shape[1], 8, 8)
            for half, inside in ((layer.net[:2], 1), (layer.net[2:4], 22 / 24)):
                out = half(h)  # inside: the share of a 3x3 window's side that is not padding
                gain = out.square().mean().sqrt() / h.square().mean().sqrt()
                assert gain.item() == pytest.approx(layer.scale * inside, rel=0.15)
                h = out
    assert layer.scale == pytest.approx((2 * len(m.stages(args))) ** -0.25)
    assert 0.1 < x.std() < 2 and 0.05 < D(x).std() < 3


def test_no_normalization_anywhere():
    for net in build("r3gan")[:2]:
        kinds = {type(layer).__name__ for layer in net.modules()}
        assert not any("Norm" in kind or "Parametrized" in kind for kind in kinds), kinds
        assert not list(net.buffers())


def test_resampling():
    """Catches another filter, a shift by half a pixel, borders that fade, and a change of brightness."""
    down, up = m.Resample(2, 2, up=False), m.Resample(2, 2, up=True)
    assert not list(down.parameters()) + list(up.parameters())  # a convolution only where the width changes
    x = torch.zeros(1, 2, 8, 8)
    x[0, 0, 4, 4] = 1
    row = torch.tensor([1.0, 3, 3, 1]) / 4
    torch.testing.assert_close(up(x)[0, 0, 7:11, 7:11], row.outer(row))
    assert up(x).sum().item() == pytest.approx(4) and down(x).sum().item() == pytest.approx(1 / 4)
    torch.testing.assert_close(down(x)[0, 0, 1:3, 1:3], torch.tensor([[1.0, 3], [3, 9]]) / 64)
    assert (down(x)[0, 1] == 0).all() and (up(x)[0, 1] == 0).all()
    ones, x = torch.ones(1, 2, 8, 8), torch.randn(1, 2, 8, 8)
    for layer in (down, up):
        torch.testing.assert_close(layer(ones), torch.ones_like(layer(ones)))
        for dim in (2, 3):
            torch.testing.assert_close(layer(x.flip(dim)), layer(x).flip(dim))
    assert m.Resample(2, 4, up=True)(x).shape == (1, 4, 16, 16)
    assert m.Resample(2, 4, up=False)(x).shape == (1, 4, 4, 4)


def test_D_mirrors_G():
    """Catches layers that one of the two has and the other has not, and biases at the ends."""
    G, D, _ = build("r3gan", "--size", "48", "--width", "6")
    kinds = [[type(layer).__name__ for layer in net.net] for net in (G, D)]
    assert kinds[0].pop() == "PixelShuffle" and kinds[1].pop(0) == "PixelUnshuffle"
    assert kinds[0] == kinds[1][::-1] and kinds[0].count("Block") == 2 * 4 and kinds[0].count("Resample") == 3
    assert G.basis.shape == D.basis.shape == (48, 6, 6)
    assert G.net[-2].bias is None and D.net[1].bias is None and D.linear.bias is None and G.linear.bias is None
    x = torch.randn(3, 3, 48, 48)
    torch.testing.assert_close(D(x), D.linear(torch.einsum("cij,ncij->nc", D.basis, D.net(x)))[:, 0])


def test_maps_are_channels_last():
    """Catches maps that are not in the layout of the weights: on CUDA, their upsampling is slow, although nothing else tells."""
    G, _, _ = m.build(settings("r3gan", "--size", "32"))
    layouts = []
    for layer in G.net[:-1]:
        layer.register_forward_pre_hook(lambda layer, maps: layouts.append(maps[0].stride(1)))
    G(torch.randn(2, 8))
    assert layouts == [1] * (len(G.net) - 1)


def test_stages():
    """Catches blocks at the wrong end of a network, channels without a bound, and a list of blocks that ends too soon."""
    flags = ["--size", "128", "--width", "2", "--blocks", "1", "2"]
    assert m.stages(settings("r3gan", *flags)) == [(2, 1), (4, 2), (8, 2), (16, 2), (16, 2), (16, 2)]
    G, D, _ = build("r3gan", *flags)
    for net in (G, D):
        blocks = [layer for layer in net.net if isinstance(layer, m.Block)]
        widths = [block.net[0].in_channels for block in blocks][:: 1 if net is D else -1]
        assert widths == [2, 4, 4, 8, 8, 16, 16, 16, 16, 16, 16]
        assert {block.scale for block in blocks} == {11**-0.25}


@pytest.mark.parametrize("stem", [1, 2, 4])
def test_stem(stem):
    """Catches maps of another size than S/stem, pixels that are lost or mixed up, and a stem that one network has alone."""
    flags = ["--size", "48", "--width", "2", "--stem", str(stem)]
    assert len(m.stages(settings("r3gan", *flags))) == {1: 4, 2: 3, 4: 2}[stem]
    G, D, _ = build("r3gan", *flags)
    assert G.basis.shape[1:] == D.basis.shape[1:] == (6, 6)
    sizes = []
    for layer in (*G.modules(), *D.modules()):
        if isinstance(layer, m.Block):
            layer.register_forward_hook(lambda layer, inputs, output: sizes.append(output.shape[2]))
    x = G(torch.randn(2, 8))
    assert x.shape == (2, 3, 48, 48) and D(x).shape == (2,) and max(sizes) == 48 // stem and min(sizes) == 6
    torch.testing.assert_close(G.net[-1](D.net[0](x)), x)
    # each pixel of a square has a channel of its own
    lit = torch.eye(stem**2).view(-1, 1, stem, stem)
    assert sorted(D.net[0](lit).flatten(1).argmax(1).tolist()) == list(range(stem**2))


def test_groups_divide_any_width():
    for width in (1, 3, 5, 8, 25, 64):
        block = m.Block(width, 4)
        assert block(torch.randn(1, width, 4, 4)).shape == (1, width, 4, 4)
    assert m.Block(64, 4).net[2].groups == 8


def test_the_two_penalties_by_name():
    """Catches r1 and r2 exchanged in the log, and penalties in a step that has none."""
    G, D, opt_G, opt_D, batches, _ = toys("r3gan")
    x = batches[0].clone().requires_grad_()
    before = m.zero_centered_penalty(x, D(x)).mean().item()
    metrics = m.train_step(G, D, opt_G, opt_D, iter(batches), settings("r3gan"), 2.0)
    assert metrics["r1"].item() == pytest.approx(before) and abs(metrics["r2"].item() - before) > 1e-6

    (G, D, opt_G, opt_D, batches, _), (G2, D2, *_) = toys("r3gan"), toys("r3gan")
    torch.manual_seed(1)
    metrics = m.train_step(G, D, opt_G, opt_D, iter(batches), settings("r3gan"), 0.0)
    torch.manual_seed(1)
    y = G2(torch.randn(8, 8)).detach()
    ascend(D2, logsigmoid(D2(batches[0]) - D2(y)).mean())
    assert metrics["r1"] == metrics["r2"] == 0
    for a, b in zip(D.parameters(), D2.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_schedules(folder, tmp_path, monkeypatch):
    """Catches a schedule that never ends, starts late, or restarts with a resumed run; and penalties in the wrong steps."""
    args = settings("r3gan", "--anneal", "10")
    assert [round(m.annealed(4, 1, i, args), 6) for i in (0, 5, 10, 99)] == [4, 2.5, 1, 1]
    seen, train_step = [], m.train_step

    def noted(G, D, opt_G, opt_D, data, args, gamma):
        both = [opt.param_groups[0] for opt in (opt_G, opt_D)]
        seen.append(([group["lr"] for group in both], [group["betas"] for group in both], gamma))
        return train_step(G, D, opt_G, opt_D, data, args, gamma)

    monkeypatch.setattr(m, "train_step", noted)
    flags = ["--anneal", "8", "--penalty-every", "2", "--gamma", "3", "--lr-g", "0.004", "--lr-d", "0.002"]
    flags += ["--beta1", "0.1", "--beta2", "0.8"]  # none of the defaults
    run("r3gan", folder, tmp_path / "run", "--steps", "5", *flags)
    run("r3gan", folder, tmp_path / "run", "--steps", "12", "--resume")
    rates, betas, gammas = zip(*seen, strict=True)
    for k, first in enumerate((0.004, 0.002)):
        of_net = [pair[k] for pair in rates]
        assert [*of_net[:5:4], *of_net[8:]] == pytest.approx([first, 0.625 * first, *[first / 4] * 4])
        assert betas[0][k] == pytest.approx((0.1, 0.8)) and betas[8][k] == pytest.approx((0.1, 0.98))
    assert [gamma > 0 for gamma in gammas] == [False, True] * 6
    assert gammas[11] == pytest.approx(2 * 0.3) and gammas[1] > gammas[3] > gammas[5] > gammas[7]


def test_rows_of_the_log_are_of_steps_with_penalties():
    """Catches a preset that logs between the penalties: every other row would say that r1 and r2 are 0."""
    assert m.PRESET["log_every"] % m.PRESET["penalty_every"] == 0


def test_penalties_are_in_float32(monkeypatch):
    """Catches a second derivative in bfloat16."""
    G, D, args = build("r3gan")
    args.autocast, kinds = True, []
    penalty = m.zero_centered_penalty
    monkeypatch.setattr(m, "zero_centered_penalty", lambda x, s: kinds.append((x.dtype, s.dtype)) or penalty(x, s))
    inside = []
    D.net[2].register_forward_hook(lambda layer, inputs, out: inside.append(out.dtype))
    opt_G, opt_D = torch.optim.SGD(G.parameters(), 0.01), torch.optim.SGD(D.parameters(), 0.01)
    m.train_step(G, D, opt_G, opt_D, iter([torch.rand(8, 3, 16, 16)]), args, 2.0)
    assert kinds == [(torch.float32, torch.float32)]
    assert inside[0] == torch.float32 and inside[1:] == [torch.bfloat16] * 2
