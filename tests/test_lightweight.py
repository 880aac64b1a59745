"""lightweight_gan.py: skip-layer excitation, D's decoders, spectral norm, and the random changes of the images that D sees."""

import itertools

import pytest
import torch
from conftest import module, run, settings
from test_networks import build
from test_step import toys
from test_training import refused
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

m = module("lightweight_gan")
POLICY = ["translation", "color", "cutout"]


def test_excitation_weighs_channels():
    """Catches a gate outside (0, 1), one that differs from place to place, and one that looks at the map it weighs."""
    torch.manual_seed(0)
    skip = m.Excitation(6, 4, 5, 1)
    large, small = torch.randn(2, 4, 16, 16), 9 * torch.randn(2, 6, 5, 5)
    gate = skip(large, small) / large
    assert gate.shape == large.shape and gate.min() > 0 and gate.max() < 1
    torch.testing.assert_close(gate, gate[:, :, :1, :1].expand_as(gate))
    torch.testing.assert_close(skip(-3 * large, small) / (-3 * large), gate)
    assert abs(gate[0] - gate[1]).max() > 1e-3  # each image has its own
    with torch.no_grad():
        for p in skip.parameters():
            p.mul_(100)
    gate = skip(large, small) / large
    assert gate.min() >= 0 and gate.max() <= 1 and gate.max() - gate.min() > 0.5


DISTANCES = {
    32: [(4, 16), (8, 32)],
    64: [(4, 32), (8, 64)],
    48: [(6, 24), (12, 48)],
    128: [(4, 64), (8, 128)],
    256: [(4, 64), (8, 128), (16, 256)],
    448: [(7, 112), (14, 224), (28, 448)],
    512: [(4, 64), (8, 128), (16, 256), (32, 512)],
}


@pytest.mark.parametrize("size", DISTANCES)
def test_skips_and_decoders_fit_the_size(size):
    """Catches skips between other maps than the paper's (from 256 px), decoders of another size, a quarter that is not one."""
    G, D, args = build("lightweight_gan", "--size", str(size), "--width", "2")
    seen = []
    for skip in G.skip:
        skip.register_forward_hook(lambda net, inputs, out: seen.append((inputs[1].shape[2], inputs[0].shape[2])))
    x = G(m.noise(2, args))
    assert seen == DISTANCES[size] and x.shape == (2, 3, size, size)
    x.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in G.skip.parameters() if p.dim() > 1)  # no gate is dropped
    scores, large, small = D(x)
    base = size
    while base >= 8:
        base //= 2  # 4 to 7
    assert small.shape[2] == base and large.shape[2] == 2 * base and scores.shape == (2,)
    edge = min(size // 2, 32 * base)
    assert D.whole(small).shape == D.quarter(m.corner(large, 0, 1)).shape == (2, 3, edge, edge)
    assert type(D.whole[-1]) is type(D.quarter[-1]) is nn.Tanh


def test_spectral_norm_is_everywhere_in_D_and_nowhere_in_G():
    """Catches a layer that was forgotten, a decoder without, and an iteration that does not converge: oracle is the SVD."""
    G, D, _ = build("lightweight_gan")
    layers = [layer for layer in D.modules() if isinstance(layer, nn.Conv2d)]
    assert len(layers) == 1 + 3 + 3 + 1 + 2 * 3 and all(is_parametrized(layer) for layer in layers)
    assert not any(is_parametrized(layer) for layer in G.modules())
    with torch.no_grad():  # away from the start, where the iteration had a head start
        for layer in layers:
            layer.parametrizations.weight.original.mul_(torch.rand_like(layer.weight))
            for _ in range(2000):
                _ = layer.weight  # each reading in train mode is an iteration
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)


def test_blocks():
    """Catches a gate without sigmoid, or on the wrong half, and one of D's two ways left out."""
    torch.manual_seed(0)
    net, x = m.up(3, 4), torch.randn(2, 3, 5, 5)
    a, b = net[:3](x).chunk(2, 1)
    assert net(x).shape == (2, 4, 10, 10)
    torch.testing.assert_close(net(x), a * b.sigmoid())
    down, x = m.Down(3, 4).eval(), torch.randn(2, 3, 8, 8)  # in train mode each pass would iterate again
    torch.testing.assert_close(down(x), (down.main(x) + down.side(x)) / 2)
    assert abs(down.main(x)).sum() > 0 and abs(down.side(x)).sum() > 0


@pytest.mark.parametrize(
    ("size", "expected"), [(32, [6, 12, 24, 48]), (96, [6, 12, 24, 48, 96]), (256, [6, 12, 24, 48, 96, 96, 96])]
)
def test_widths(size, expected):
    """Catches other channels in D than in G, more than 16 times the width, a bias where BatchNorm takes it away, and BatchNorm on D's way to the score."""
    G, D, _ = build("lightweight_gan", "--size", str(size), "--width", "6")
    of_G = [layers[1].in_channels for layers in G.up] + [G.end[0].in_channels]
    of_D = [D.large[0].out_channels, *(layer.main[0].out_channels for layer in [*D.large[2:], D.small])]
    assert of_G[::-1] == expected and of_D == expected[1:]
    for net in (G, D):
        for layers in net.modules():
            if isinstance(layers, nn.Sequential):
                for layer, after in itertools.pairwise(layers):
                    assert not isinstance(after, nn.BatchNorm2d) or layer.bias is None
    to_score = [*D.large.modules(), *D.small.modules()]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in to_score)
    assert all(layer.bias is not None for layer in to_score if isinstance(layer, nn.Conv2d))


def test_corner():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert m.corner(x, 0, 1).flatten().tolist() == [2, 3, 6, 7]
    assert m.corner(x, 1, 0).flatten().tolist() == [8, 9, 12, 13]


def test_reconstruction_is_zero_for_perfect_decoders():
    """Catches another corner of the image than of the map, a resize that is not of the same picture, a loss of one of both."""

    class Perfect:
        whole = staticmethod(lambda small: small)
        quarter = staticmethod(lambda large: large)

    torch.manual_seed(0)
    x = torch.rand(2, 3, 8, 8)
    half = nn.functional.interpolate(x, (4, 4), mode="bilinear", antialias=True)
    for _ in range(20):  # every corner
        assert m.reconstruction_loss(Perfect, x, x, half) == 0
        assert m.reconstruction_loss(Perfect, x, x, half + 0.5).item() == pytest.approx(0.5)
        assert m.reconstruction_loss(Perfect, x, x - 0.25, half).item() == pytest.approx(0.25)


def test_reconstruction_reaches_D_and_comes_from_reals_only():
    """Catches detached maps, whose decoders learn and D does not, and decoders that are trained on generated images."""
    G, D, opt_G, opt_D, batches, notes = toys("lightweight_gan")
    decoded = []
    for net in (D.whole, D.quarter):
        net.register_forward_hook(lambda net, inputs, out: decoded.append(inputs[0].detach()))
    changed, augment = [], m.augment
    try:
        m.augment = lambda x, policy: changed.append(augment(x, policy)) or changed[-1]
        m.train_step(G, D, opt_G, opt_D, iter(batches), settings("lightweight_gan"))
    finally:
        m.augment = augment
    assert len(decoded) == 2 and len(changed) == 3
    first = nn.Sequential(nn.Linear(12, 8), nn.Tanh())
    first[0].weight.data, first[0].bias.data = notes[0]["D"][:2]
    torch.testing.assert_close(decoded[0].flatten(1), first(changed[0].flatten(1)))
    G, D, _ = build("lightweight_gan")
    x = torch.rand(4, 3, 32, 32)
    _, large, small = D(x)
    m.reconstruction_loss(D, x, large, small).backward()
    assert all(p.grad.abs().sum() > 0 for p in [*D.large.parameters(), *D.small.parameters()] if p.dim() > 1)
    assert all(p.grad.abs().sum() > 0 for p in [*D.whole.parameters(), *D.quarter.parameters()] if p.dim() > 1)
    assert all(p.grad is None for p in D.score.parameters())  # all but it describe the image


def test_D_sees_changed_images_only():
    """Catches changes of one side only, or in one of the two steps only (arXiv 2006.10738, section 3: both fail)."""
    G, D, opt_G, opt_D, batches, _ = toys("lightweight_gan")
    seen, augment = [], m.augment
    D.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0].detach()))
    try:
        m.augment = lambda x, policy: x + 100
        m.train_step(G, D, opt_G, opt_D, iter(batches), settings("lightweight_gan"))
    finally:
        m.augment = augment
    assert len(seen) == 3 and all(x.min() > 98 for x in seen)


@pytest.mark.parametrize("policy", [["translation"], ["color"], ["cutout"], POLICY])
def test_gradients_pass_the_changes(policy):
    """Catches a change that cuts the graph; the whole chain is affine in the image, so its gradient can be checked by steps."""
    x = torch.rand(3, 3, 20, 20, dtype=torch.float64).requires_grad_()
    weight = torch.randn(3, 3, 20, 20, dtype=torch.float64)

    def f(x):
        torch.manual_seed(0)
        return (m.augment(x, policy) * weight).sum()

    (gradient,) = torch.autograd.grad(f(x), x)
    direction = torch.randn_like(x)
    assert f(x + direction).item() - f(x).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-6)
    assert all((g != 0).any() for g in gradient)


@pytest.mark.parametrize("size", [32, 40, 48, 20, 28])
def test_translation(size):
    """Catches moves of more than an eighth, one move for the whole batch, and edges that wrap around."""
    torch.manual_seed(0)
    x = torch.zeros(1000, 1, size, size)
    x[:, :, size // 2, size // 2] = 1
    y = m.augment(x, ["translation"])
    moves = y.flatten(1).argmax(1)
    rows, columns = moves // size - size // 2, moves % size - size // 2
    most = size // 8
    assert (y.sum((1, 2, 3)) == 1).all()
    assert rows.unique().tolist() == columns.unique().tolist() == list(range(-most, most + 1))
    ones = m.augment(torch.ones(2000, 1, size, size), ["translation"]).sum((1, 2, 3))
    assert set(ones.tolist()) == {float((size - i) * (size - j)) for i in range(most + 1) for j in range(most + 1)}


def test_cutout():
    """Catches a hole of another size or value, the same in all images, or one that never reaches a corner."""
    torch.manual_seed(0)
    y = m.augment(torch.ones(2000, 2, 32, 32), ["cutout"])
    assert (y[:, 0] == y[:, 1]).all() and set(y.unique().tolist()) == {0, 1}
    rows, columns = (y[:, 0].min(dim)[0] == 0 for dim in (2, 1))
    hole = (y[:, 0] == 0).sum((1, 2))
    assert (hole == rows.sum(1) * columns.sum(1)).all()  # a rectangle
    assert not torch.equal(rows, columns)  # with a center of its own for each axis
    assert abs(rows[:, 0].float().mean() - rows[:, -1].float().mean()) < 0.05
    assert rows.sum(1).max() == columns.sum(1).max() == 16 and hole.min() < 16 * 16
    assert rows[:, 0].any() and rows[:, -1].any() and columns[:, 0].any() and columns[:, -1].any()


def test_color():
    """Catches a shift, saturation or contrast in another range, shared by all images, or of one pixel alone."""
    torch.manual_seed(0)
    shift = m.augment(torch.full((2000, 3, 2, 2), 0.25), ["color"]) - 0.25  # neither gray nor contrast can change here
    torch.testing.assert_close(shift, shift[:, :1, :1, :1].expand_as(shift), atol=1e-6, rtol=0)
    shift = shift[:, 0, 0, 0]
    assert -0.5 <= shift.min() < -0.49 and 0.49 < shift.max() <= 0.5 and abs(shift.mean()) < 0.02
    x = torch.zeros(2000, 3, 2, 2)
    x[:, 0], x[:, 1] = 0.5, -0.5  # a color of gray value 0 everywhere
    x[:, :, 0, 0] += 0.3
    y = m.augment(x, ["color"])
    contrast = (y.mean(1)[:, 0, 0] - y.mean(1)[:, 1, 1]) / 0.3
    saturation = (y[:, 0, 1, 1] - y[:, 1, 1, 1]) / contrast
    assert 0.5 <= contrast.min() < 0.51 and 1.49 < contrast.max() <= 1.5 and abs(contrast.mean() - 1) < 0.02
    assert 0 <= saturation.min() < 0.01 and 1.99 < saturation.max() <= 2.001 and abs(saturation.mean() - 1) < 0.04


def test_no_policy_changes_nothing():
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(m.augment(x, []), x)
    assert settings("lightweight_gan", "--augment").augment == []


def test_too_small_an_image_is_refused(capsys):
    with refused(capsys, 2, "--size 28", "32"):
        m.parse_args(["--path", "x", "--size", "28"])


def test_an_unknown_change_in_a_checkpoint_is_said(folder, tmp_path, capsys):
    """Catches a resumed run that silently drops a change, because another version called it otherwise."""
    out = tmp_path / "run"
    run("lightweight_gan", folder, out, "--steps", "1")
    checkpoint = torch.load(out / "last.pt", weights_only=True)
    checkpoint["args"]["augment"] = ["translation", "colour"]
    torch.save(checkpoint, out / "last.pt")
    again = ["--out", str(out), "--resume", "--steps", "2"]
    with refused(capsys, 2, "last.pt has --augment colour", "give --augment again"):
        m.parse_args(again)
    assert m.parse_args([*again, "--augment", "translation", "color"]).augment == ["translation", "color"]


@pytest.mark.parametrize("size, parts", [(32, [64]), (128, [64]), (256, [16] * 4), (512, [8] * 8), (1024, [8] * 8)])
def test_large_images_are_drawn_in_parts(size, parts):
    """Catches grids of large images that are drawn at once, which needs more memory than training does, or out of order."""
    args, seen = settings("lightweight_gan"), []
    args.size = size
    z = torch.randn(64, 8)
    drawn = m.draw(lambda some: seen.append(len(some)) or some[:, :3], z, args)
    assert seen == parts and torch.equal(drawn, z[:, :3])


def test_all_grids_are_drawn_in_parts(folder, tmp_path, monkeypatch):
    """Catches a grid, or statistics, that are still drawn at once."""
    drawn = []
    draw = m.draw
    monkeypatch.setattr(m, "draw", lambda net, z, args: drawn.append(len(z)) or draw(net, z, args))
    run("lightweight_gan", folder, tmp_path, "--steps", "1")
    assert drawn == [64] * (1 + 16 + 1)  # the grid at the start; statistics and the grid at the end
