"""Networks: shapes for every size, range, dtype, widths, initialisation, and the layers that the paper prescribes."""

import math

import pytest
import torch
from conftest import module, settings
from torch import nn

SIZES = (32, 48, 64, 80, 96, 112, 128, 192, 256)


def build(script, *flags):
    m, args = module(script), settings(script, *flags)
    torch.manual_seed(0)
    return m.Generator(args).apply(m.init_weights), m.Discriminator(args).apply(m.init_weights), args


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_shapes(script, size, channels):
    """Catches hard-wired sizes, scores of more than one position, a batch axis lost at a batch of one."""
    G, D, args = build(script, "--size", str(size), "--channels", str(channels), "--width", "2")
    for n in (1, 3):
        if n > 1 or size > 32:  # BatchNorm cannot train on one value a channel
            x = G(module(script).noise(n, args))
            assert x.shape == (n, channels, size, size) and x.abs().max() <= 1
            assert D(x).shape == (n,)
    maps = []
    for layer in D.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, inputs, output: maps.append(inputs[0].shape[2]))
    D(torch.zeros(2, channels, size, size))
    assert 4 <= min(maps) <= 7, maps


def test_widths(script):
    """Catches other widths in G than in D, and maps of more than 8 x width."""
    for size, expected in ((32, [6, 12, 24]), (96, [6, 12, 24, 48]), (256, [6, 12, 24, 48, 48, 48])):
        G, D, _ = build(script, "--size", str(size), "--width", "6")
        up = [layer.in_channels for layer in G.modules() if isinstance(layer, nn.ConvTranspose2d)][1:]
        down = [layer.out_channels for layer in D.modules() if isinstance(layer, nn.Conv2d)][:-1]
        assert up[::-1] == expected and down == expected


def test_scores_are_unbounded_float32(script):
    """Catches a sigmoid at D's end, which no logit loss forgives, and scores in bfloat16."""
    G, D, args = build(script)
    x = G(module(script).noise(8, args)).detach()
    before = D(x)
    with torch.no_grad():
        for p in list(D.parameters())[-2:]:
            p.mul_(1000)
    torch.testing.assert_close(D(x), 1000 * before, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert D(x).dtype == torch.float32


def test_output_range(script):
    """Catches a missing tanh: pre-activations of any size end in [-1, 1]."""
    G, _, args = build(script)
    with torch.no_grad():
        for p in list(G.parameters())[-2:]:
            p.mul_(1000)
    x = G(module(script).noise(8, args))
    assert x.abs().max() <= 1 and x.abs().mean() > 0.9 and x.min() < 0 < x.max()


def test_initialisation(script):
    """Catches BatchNorm gains from N(0, 0.02), which invert half of the channels, and torch's default weights."""
    gains = 0
    for net in build(script, "--width", "64", "--size", "32", "--z-dim", "100")[:2]:
        for layer in net.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                n = layer.weight.numel()
                assert layer.weight.std().item() == pytest.approx(0.02, rel=max(0.02, 4 / math.sqrt(n)))
                assert abs(layer.weight.mean()) < 4 * 0.02 / math.sqrt(n)
            if isinstance(layer, nn.BatchNorm2d):
                gains += 1
                assert layer.weight.mean().item() == pytest.approx(1, abs=0.01) and 0.01 < layer.weight.std() < 0.03
                assert layer.eps == 1e-5  # BatchNorm2d(n, 0.8) sets eps
            if getattr(layer, "bias", None) is not None:
                assert (layer.bias == 0).all()
    assert gains > 0


def test_noise(script):
    """Catches noise of the wrong kind: standard normal by default, U(-1, 1) by flag."""
    m = module(script)
    z = m.noise(4000, settings(script))
    assert z.shape == (4000, 8) and abs(z.mean()) < 0.03 and abs(z.std() - 1) < 0.03 and z.abs().max() > 3
    u = m.noise(4000, settings(script, "--noise", "uniform"))
    assert u.abs().max() <= 1 and abs(u.std() - 3**-0.5) < 0.02 and abs(u.mean()) < 0.03


def test_activation_flag(script):
    """Catches an --act that does nothing, or that reaches D, whose activation is always leaky."""
    for flag, kind in (("relu", nn.ReLU), ("lrelu", nn.LeakyReLU)):
        G, D, _ = build(script, "--act", flag)
        assert any(isinstance(layer, kind) for layer in G.modules())
        assert not any(isinstance(layer, nn.ReLU) for layer in D.modules())
    assert not any(isinstance(layer, nn.ReLU) for layer in build(script, "--act", "lrelu")[0].modules())


def test_dcgan_batchnorm_is_where_the_paper_has_it():
    """Catches BatchNorm at G's end or at D's start (section 3: it makes samples oscillate)."""
    G, D, _ = build("dcgan", "--size", "64")
    kinds = [[type(layer).__name__ for layer in net.net] for net in (G, D)]
    assert kinds[0] == ["ConvTranspose2d", "BatchNorm2d", "ReLU"] * 4 + ["ConvTranspose2d", "Tanh"]
    assert kinds[1] == ["Conv2d", "LeakyReLU"] + ["Conv2d", "BatchNorm2d", "LeakyReLU"] * 3 + ["Conv2d", "Flatten"]
    assert all(layer.negative_slope == 0.2 for layer in D.net if isinstance(layer, nn.LeakyReLU))


def test_dcgan_starts_undecided():
    """Catches a start with saturated scores: D's loss is 2 ln 2 and G's ln 2 before the first step."""
    m, (G, D, args) = module("dcgan"), build("dcgan", "--width", "16", "--size", "32", "--batch", "64")
    fake = D(G(m.noise(64, args)))
    real = D(torch.rand(64, 3, 32, 32) * 2 - 1)
    assert m.d_loss(real, fake).item() == pytest.approx(2 * math.log(2), abs=0.2)
    assert m.g_loss(fake).item() == pytest.approx(math.log(2), abs=0.2)
