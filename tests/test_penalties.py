"""The gradient penalty against closed forms: a linear critic is not enough, a quadratic one tells the wrong versions apart."""

import math

import pytest
import torch
from conftest import module, settings
from torch import nn


class Linear(nn.Module):
    def __init__(self, n=12):
        super().__init__()
        self.w = nn.Parameter(torch.randn(n))

    def forward(self, x):
        return x.flatten(1) @ self.w


class Quadratic(nn.Module):
    """D(x) = |x|^2 / 2, whose gradient is x."""

    def forward(self, x):
        return x.flatten(1).square().sum(1) / 2


def penalty(D, x_real, x_fake):
    return module("wgan_gp").gradient_penalty(D, x_real, x_fake)


@pytest.mark.parametrize("n", [1, 8])
def test_linear_critic(n):
    """Catches a missing -1, a norm over the whole batch or over channels alone, gradients of the mean score."""
    torch.manual_seed(0)
    D, x_real, x_fake = Linear(), torch.randn(n, 3, 2, 2), torch.randn(n, 3, 2, 2)
    assert penalty(D, x_real, x_fake).item() == pytest.approx((D.w.norm().item() - 1) ** 2, abs=1e-5)


def test_quadratic_critic():
    """Catches a penalty at the reals alone (1.0) or the fakes alone, and one mixing number per batch (its spread is 0.3).

    Reals are 0 and fakes have norm a, so that the gradient's norm is (1 - e) a, and the mean over e is a^2 / 3 - a + 1.
    """
    torch.manual_seed(0)
    for a in (0.5, 2.0):
        x_fake = torch.zeros(20_000, 1, 2, 2)
        x_fake[:, 0, 0, 0] = a
        value = penalty(Quadratic(), torch.zeros_like(x_fake), x_fake).item()
        assert value == pytest.approx(a**2 / 3 - a + 1, abs=0.01)


def test_mixing_numbers_are_pinned(monkeypatch):
    """Catches noise in place of mixing, numbers outside [0, 1], or one per pixel: with e given the value is exact."""
    e = torch.tensor([0.0, 0.25, 1.0]).view(3, 1, 1, 1)
    shapes = []
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: shapes.append(shape) or e)
    x_real, x_fake = torch.full((3, 1, 1, 4), 1.0), torch.full((3, 1, 1, 4), -2.0)
    expected = [(2 * abs(t - 2 * (1 - t)) - 1) ** 2 for t in (0.0, 0.25, 1.0)]
    assert penalty(Quadratic(), x_real, x_fake).item() == pytest.approx(sum(expected) / 3, abs=1e-6)
    assert shapes == [(3, 1, 1, 1)]


def test_penalty_reaches_the_critic_and_not_the_generator():
    """Catches a missing create_graph, a detached penalty, and fakes with G's graph in D's step."""
    torch.manual_seed(0)
    D = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(0)).double()
    x_real, x_fake = (torch.randn(6, 1, 2, 2).double() for _ in range(2))
    weight, step = D[1].weight, 1e-5

    def value() -> torch.Tensor:
        torch.manual_seed(1)
        return penalty_double(D, x_real, x_fake)

    def penalty_double(D, x_real, x_fake):  # the script works in float32; the finite difference needs float64
        mixing = torch.rand(len(x_real), 1, 1, 1).double()
        original = torch.rand
        torch.rand = lambda *shape, **_: mixing
        x_fake.float = lambda: x_fake
        try:
            return penalty(D, x_real, x_fake)
        finally:
            torch.rand = original

    (gradient,) = torch.autograd.grad(value(), weight)
    assert gradient.abs().sum() > 0
    for i, j in ((0, 0), (3, 2), (4, 1)):
        numeric = 0.0
        for sign in (1, -1):
            with torch.no_grad():
                weight[i, j] += sign * step
            numeric += sign * value().item() / (2 * step)
            with torch.no_grad():
                weight[i, j] -= sign * step
        assert gradient[i, j].item() == pytest.approx(numeric, rel=1e-4, abs=1e-8)


def test_penalty_is_in_float32():
    """Catches a penalty inside autocast, whose gradient is off by per cents: bfloat16 fakes give the float32 value."""
    torch.manual_seed(0)
    m, args = module("wgan_gp"), settings("wgan_gp")
    D = m.Discriminator(args).apply(m.init_weights)
    with torch.no_grad():
        for p in D.parameters():
            p.mul_(20)
    x_real, x_fake = torch.rand(8, 3, 16, 16) * 2 - 1, (torch.rand(8, 3, 16, 16) * 2 - 1).bfloat16()
    torch.manual_seed(1)
    value = penalty(D, x_real, x_fake)
    torch.manual_seed(1)
    exact = penalty(D, x_real, x_fake.float())
    assert value.dtype == torch.float32 and torch.equal(value, exact)


def test_train_step_keeps_the_penalty_out_of_autocast(monkeypatch):
    """Catches `with autocast` around the whole critic step: under it convolutions would run in bfloat16."""
    m, seen = module("wgan_gp"), []
    original = m.gradient_penalty

    def spy(D, x_real, x_fake):
        seen.append((torch.is_autocast_enabled("cpu"), x_fake.requires_grad))
        return original(D, x_real, x_fake)

    monkeypatch.setattr(m, "gradient_penalty", spy)
    args = settings("wgan_gp")
    args.autocast = True  # as on a CUDA card that has it
    G, D = m.Generator(args).apply(m.init_weights), m.Discriminator(args).apply(m.init_weights)
    opt_G, opt_D = torch.optim.Adam(G.parameters(), 1e-4), torch.optim.Adam(D.parameters(), 1e-4)
    batches = iter([torch.rand(8, 3, 16, 16) for _ in range(5)])
    metrics = m.train_step(G, D, opt_G, opt_D, batches, args)
    assert seen == [(False, False)] * 5
    assert all(value.isfinite() and value.dtype == torch.float32 for value in metrics.values())


def test_critic_scores_one_image_at_a_time():
    """Catches BatchNorm in the critic (section 4): the score of one image must not depend on the others."""
    torch.manual_seed(0)
    m, args = module("wgan_gp"), settings("wgan_gp")
    D = m.Discriminator(args).apply(m.init_weights)
    x = torch.randn(4, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(D(x)[0], x)
    assert gradient[0].abs().sum() > 0 and (gradient[1:] == 0).all()
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in D.modules())


def test_linear_game_has_the_known_solution():
    """Catches a wrong lambda or sign, or a penalty that is not part of the loss: two points at distance d give |w| = 1 + d / (2 lambda)."""
    torch.manual_seed(0)
    m, D, gp = module("wgan_gp"), Linear(4), 10.0
    x_real, x_fake = torch.zeros(16, 1, 2, 2), torch.zeros(16, 1, 2, 2)
    x_real[:, 0, 0, 0], x_fake[:, 0, 1, 1] = 0.6, 0.8  # at distance 1
    optimizer = torch.optim.SGD(D.parameters(), 0.02)
    for _ in range(500):
        loss = m.d_loss(D(x_real), D(x_fake)) + gp * m.gradient_penalty(D, x_real, x_fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert D.w.norm().item() == pytest.approx(1 + 1 / (2 * gp), abs=1e-4)
    direction = (x_real - x_fake)[0].flatten()
    assert torch.nn.functional.cosine_similarity(D.w, direction, dim=0).item() == pytest.approx(1, abs=1e-5)
    assert -m.d_loss(D(x_real), D(x_fake)).item() == pytest.approx(1 * (1 + 1 / (2 * gp)), abs=1e-3)
    assert math.isfinite(loss.item())
