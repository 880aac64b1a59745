"""Networks: shapes for every size, range, dtype, widths, initialization, and the layers that the paper prescribes."""

import math

import pytest
import torch
from conftest import PLAIN, SPECTRAL, condition, module, scores, settings
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

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
            c = condition(script, n, args)
            x = G(module(script).noise(n, args), *c)
            assert x.shape == (n, channels, size, size) and (script == "r3gan" or x.abs().max() <= 1)
            assert scores(script, D, x, c).shape == (n,)
    maps = []
    for layer in D.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, inputs, output: maps.append(inputs[0].shape[2]))
    scores(script, D, torch.zeros(2, channels, size, size), condition(script, 2, args))
    assert 4 <= min(maps) <= 7, maps


@pytest.mark.parametrize("script", PLAIN)
def test_widths(script):
    """Catches other widths in G than in D, and maps of more than 8 x width."""
    for size, expected in ((32, [6, 12, 24]), (96, [6, 12, 24, 48]), (256, [6, 12, 24, 48, 48, 48])):
        G, D, _ = build(script, "--size", str(size), "--width", "6")
        up = [layer.in_channels for layer in G.modules() if isinstance(layer, nn.ConvTranspose2d)][1:]
        down = [layer.out_channels for layer in D.net if isinstance(layer, nn.Conv2d)]
        assert up[::-1] == expected and down == expected


def test_scores_are_unbounded_float32(script):
    """Catches a sigmoid at D's end, which no logit loss forgives, and scores in bfloat16."""
    G, D, args = build(script)
    c = condition(script, 8, args)
    x, D = G(module(script).noise(8, args), *c).detach(), D.eval()
    before = scores(script, D, x, c)
    last = D.linear if script == "r3gan" else D.heads if script == "acgan" else D.score
    last.register_forward_hook(lambda layer, inputs, output: 1000 * output)
    torch.testing.assert_close(scores(script, D, x, c), 1000 * before, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert scores(script, D, x, c).dtype == torch.float32


def test_G_of_r3gan_is_not_bounded():
    """Catches a tanh or a clamp at its end, which the authors do not have: images grow with the last layer's weights."""
    G, _, args = build("r3gan")
    z = module("r3gan").noise(8, args)
    before = G(z)
    with torch.no_grad():
        G.net[-2].weight.mul_(100)
    torch.testing.assert_close(G(z), 100 * before, rtol=1e-4, atol=1e-5)
    assert G(z).abs().max() > 1.5


def test_ends_of_cyclegan_s_networks():
    """Catches a G without tanh, and a D whose scores are squashed."""
    m, args = module("cyclegan"), settings("cyclegan", "--size", "64", "--load-size", "64")
    torch.manual_seed(0)
    G, D = m.Generator(args).apply(m.init_weights), m.Discriminator(args).apply(m.init_weights)
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    before = D(x)
    with torch.no_grad():
        D.score.weight.mul_(1000)
        G.model[-2].weight.mul_(1000)
    torch.testing.assert_close(D(x), 1000 * before, rtol=1e-4, atol=1e-4)
    y = G(x)
    assert y.abs().max() <= 1 and y.abs().mean() > 0.9 and y.min() < 0 < y.max()


@pytest.mark.parametrize("script", [*PLAIN, "lightweight_gan"])
def test_output_range(script):
    """Catches a missing tanh: pre-activations of any size end in [-1, 1]."""
    G, _, args = build(script)
    with torch.no_grad():
        for p in list(G.parameters())[-2:]:
            p.mul_(1000)
    x = G(module(script).noise(8, args), *condition(script, 8, args))
    assert x.abs().max() <= 1 and x.abs().mean() > 0.9 and x.min() < 0 < x.max()


@pytest.mark.parametrize("script", [*PLAIN, "lightweight_gan"])
def test_initialization(script):
    """Catches BatchNorm gains from N(0, 0.02), which invert half of the channels, and torch's default weights."""
    gains = 0
    for net in build(script, "--width", "64", "--size", "32", "--z-dim", "100")[:2]:
        for layer in net.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                weight = layer.parametrizations.weight.original if is_parametrized(layer) else layer.weight
                n = weight.numel()
                assert weight.std().item() == pytest.approx(0.02, rel=max(0.02, 4 / math.sqrt(n)))
                assert abs(weight.mean()) < 4 * 0.02 / math.sqrt(n)
            if isinstance(layer, nn.BatchNorm2d):
                gains += 1
                assert layer.weight.mean().item() == pytest.approx(1, abs=0.01) and 0.01 < layer.weight.std() < 0.03
                assert layer.eps == 1e-5  # BatchNorm2d(n, 0.8) sets eps
            if getattr(layer, "bias", None) is not None:
                assert (layer.bias == 0).all()
    assert gains > 0


def test_noise(script):
    """Catches noise of another kind than the flag's."""
    m = module(script)
    z = m.noise(4000, settings(script, "--noise", "normal"))
    assert z.shape == (4000, 8) and abs(z.mean()) < 0.03 and abs(z.std() - 1) < 0.03 and z.abs().max() > 3
    u = m.noise(4000, settings(script, "--noise", "uniform"))
    assert u.abs().max() <= 1 and abs(u.std() - 3**-0.5) < 0.02 and abs(u.mean()) < 0.03


@pytest.mark.parametrize("script", PLAIN)
def test_activation_flag(script):
    """Catches an --act that does nothing, or that reaches D, whose activation is always leaky."""
    for flag, kind in (("relu", nn.ReLU), ("lrelu", nn.LeakyReLU)):
        G, D, _ = build(script, "--act", flag)
        assert any(isinstance(layer, kind) for layer in G.modules())
        assert not any(isinstance(layer, nn.ReLU) for layer in D.modules())
    assert not any(isinstance(layer, nn.ReLU) for layer in build(script, "--act", "lrelu")[0].modules())


KINDS = {"dcgan": ["BatchNorm2d"], "lsgan": ["BatchNorm2d"], "wgan": ["BatchNorm2d"], "wgan_gp": [], "sngan": []}


@pytest.mark.parametrize("script", KINDS)
def test_layers_are_the_paper_s(script):
    """Catches BatchNorm at G's end or at D's start (DCGAN, section 3: samples oscillate), or in a critic that has none."""
    G, D, _ = build(script, "--size", "64")
    kinds = [[type(layer).__name__ for layer in net.net] for net in (G, D)]
    kinds[1] = [kind.replace("ParametrizedSNConv2d", "Conv2d") for kind in kinds[1]]  # of sngan.py
    end = ["Dropout"] * (script in ("dcgan", "lsgan"))
    assert kinds[0] == ["ConvTranspose2d", "BatchNorm2d", "ReLU"] * 4 + ["ConvTranspose2d", "Tanh"]
    assert kinds[1] == ["Conv2d", "LeakyReLU"] + ["Conv2d", *KINDS[script], "LeakyReLU"] * 3 + end
    G = build(script, "--size", "64", "--act", "lrelu")[0]
    assert all(layer.negative_slope == 0.2 for net in (G, D) for layer in net.net if isinstance(layer, nn.LeakyReLU))
    convolutions = [
        layer for net in (G, D) for layer in net.modules() if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    assert len(convolutions) == 10 and all(layer.kernel_size == (4, 4) for layer in convolutions)


def test_wgan_instance_norm_scores_one_image_at_a_time():
    """Catches --norm instance that leaves BatchNorm in the critic, and one that a folder of images gets by default."""
    x = torch.randn(4, 3, 32, 32)
    flags = ("--size", "32", "--width", "8")
    for given, alone in [(("--norm", "instance"), True), (("--norm", "batch"), False), ((), False)]:
        D = build("wgan", *flags, *given)[1]
        assert torch.allclose(D(x)[:2], D(x[:2]), atol=1e-5) == alone, given


def test_wgan_instance_norm_normalizes_small_variances():
    """Catches an eps, such as torch's of 1e-5, beside which the variances of a critic with clipped weights vanish."""
    D = build("wgan", "--size", "32", "--width", "8", "--norm", "instance")[1]
    x = torch.randn(2, 3, 32, 32)
    expected = D(x)
    with torch.no_grad():
        D.net[0].weight *= 1e-3  # and with it all feature maps up to the first normalization
    torch.testing.assert_close(D(x), expected, rtol=0.01, atol=0.001 * expected.abs().max().item())


@pytest.mark.parametrize("script", ["dcgan", "lsgan"])
def test_dropout_is_before_the_last_convolution_of_D_only(script):
    """Catches dropout in G, which fails to learn, at the scores, or in every layer; and one that --dropout 0 leaves on."""
    G, D, _ = build(script, "--dropout", "0.5")
    assert not any(isinstance(layer, nn.Dropout) for layer in G.modules())
    assert [k for k, layer in enumerate(D.net) if isinstance(layer, nn.Dropout)] == [len(D.net) - 1]
    assert type(D.score) is nn.Conv2d and D.net[-1].p == 0.5
    x = torch.rand(4, 3, 16, 16)
    assert not torch.equal(D(x), D(x)) and torch.equal(D.eval()(x), D(x))
    D = build(script)[1]
    assert torch.equal(D(x), D(x))


@pytest.mark.parametrize("script", SPECTRAL)
def test_every_layer_of_D_is_normalized_and_none_of_G(script):
    """Catches a layer that was forgotten, also of Q, spectral norm in G, and an iteration that does not converge: oracle is the SVD."""
    G, D, _ = build(script, "--size", "32", "--width", "16")
    layers = [layer for layer in D.modules() if isinstance(layer, nn.Conv2d)]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in D.modules())
    assert len(layers) == (5 if script == "infogan" else 4) and not any(is_parametrized(layer) for layer in G.modules())
    assert all(layer.parametrizations.weight[0].n_power_iterations == 1 for layer in layers)
    with torch.no_grad():  # away from the start, where the iteration had a head start
        for layer in layers:
            layer.parametrizations.weight.original.mul_(torch.rand_like(layer.weight))
        for _ in range(200):
            D(torch.zeros(1, 3, 32, 32))
        for layer in layers:
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)
            assert torch.linalg.matrix_norm(layer.parametrizations.weight.original.flatten(1), 2).item() < 0.9
        vectors = [layer.parametrizations.weight[0]._u.clone() for layer in layers]
        for layer in layers:
            original = layer.parametrizations.weight.original
            original.mul_(torch.rand_like(original))
        D.eval()(torch.zeros(1, 3, 32, 32))
        assert all(
            torch.equal(u, layer.parametrizations.weight[0]._u) for u, layer in zip(vectors, layers, strict=True)
        )
        D.train()(torch.zeros(1, 3, 32, 32))
        assert not any(
            torch.equal(u, layer.parametrizations.weight[0]._u)
            for u, layer in zip(vectors, layers, strict=True)
            if u.numel() > 1
        )


def test_dcgan_starts_undecided():
    """Catches a start with saturated scores: D's loss is 2 ln 2 and G's ln 2 before the first step."""
    m, (G, D, args) = module("dcgan"), build("dcgan", "--width", "16", "--size", "32", "--batch", "64")
    fake = D(G(m.noise(64, args)))
    real = D(torch.rand(64, 3, 32, 32) * 2 - 1)
    assert m.d_loss(real, fake).item() == pytest.approx(2 * math.log(2), abs=0.2)
    assert m.g_loss(fake).item() == pytest.approx(math.log(2), abs=0.2)
