"""Losses against closed forms and against theory: values, gradients, and the optimal discriminator of a tabular game."""

import math

import pytest
import torch
from conftest import module

LN2 = math.log(2)
REAL, FAKE = torch.tensor([0.3, -1.2, 2.0, 0.0]), torch.tensor([-0.5, 1.5, 0.0, -2.5])


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


# script -> (d_loss, g_loss) of REAL and FAKE, written out score by score; their values where all scores are 0; and where they are 1, -1
EXPECTED = {
    "dcgan": (
        -sum(log_sigmoid(r) for r in REAL.tolist()) / 4 - sum(log_sigmoid(-f) for f in FAKE.tolist()) / 4,
        -sum(log_sigmoid(f) for f in FAKE.tolist()) / 4,
        (2 * LN2, LN2),
        (2 * 0.3132617, 1.3132617),
    ),
    "wgan_gp": (sum(FAKE.tolist()) / 4 - sum(REAL.tolist()) / 4, -sum(FAKE.tolist()) / 4, (0, 0), (-2, 1)),
}


@pytest.mark.parametrize("script", EXPECTED)
def test_values(script):
    """Catches a wrong sign, factor, reduction or swapped roles."""
    m, (d, g, zero, apart) = module(script), EXPECTED[script]
    assert m.d_loss(REAL, FAKE).item() == pytest.approx(d, abs=1e-6)
    assert m.g_loss(FAKE).item() == pytest.approx(g, abs=1e-6)
    for real, fake, (d, g) in ((0.0, 0.0, zero), (1.0, -1.0, apart)):
        real, fake = torch.full((5,), real), torch.full((5,), fake)
        assert m.d_loss(real, fake).item() == pytest.approx(d, abs=1e-6)
        assert m.g_loss(fake).item() == pytest.approx(g, abs=1e-6)


@pytest.mark.parametrize("script", EXPECTED)
def test_gradients_push_the_right_way(script):
    """Catches a flipped sign: D raises real and lowers fake scores, G raises fake ones."""
    m, real, fake = module(script), REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    d_real, d_fake = torch.autograd.grad(m.d_loss(real, fake), (real, fake))
    (g_fake,) = torch.autograd.grad(m.g_loss(fake), fake)
    assert (d_real < 0).all() and (d_fake > 0).all() and (g_fake < 0).all()


def test_dcgan_does_not_saturate():
    """Catches the minimax loss log(1 - D(G(z))), whose gradient vanishes on fakes that D is sure of: -1e-5 for -0.25."""
    m, fake = module("dcgan"), torch.full((4,), -10.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(m.g_loss(fake), fake)
    assert torch.allclose(gradient, torch.full((4,), -0.25), atol=1e-4)


def test_dcgan_is_finite_at_any_score():
    """Catches log(sigmoid(x) + eps), which has no gradient there, and exp overflow."""
    m = module("dcgan")
    for score in (1e4, -1e4):
        x = torch.full((2,), score, requires_grad=True)
        for loss in (m.d_loss(x, x), m.g_loss(x)):
            (gradient,) = torch.autograd.grad(loss, x)
            assert loss.isfinite() and gradient.isfinite().all() and loss < 1e4 + 1


def test_dcgan_optimal_discriminator():
    """Catches any wrong constant or pairing: the best scores are log p/q, and the loss there is log 4 - 2 JSD (Goodfellow 2014)."""
    p, q = torch.tensor([4, 3, 2, 1]), torch.tensor([1, 2, 3, 4])
    scores = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    real, fake = (torch.arange(4).repeat_interleave(counts) for counts in (p, q))

    def closure():
        optimiser.zero_grad()
        loss = module("dcgan").d_loss(scores[real], scores[fake])
        loss.backward()
        return loss

    optimiser.step(closure)
    loss = closure()
    p, q = p / 10, q / 10
    m = (p + q) / 2
    jsd = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
    assert torch.allclose(scores.detach(), (p / q).log().double(), atol=1e-4)
    assert loss.item() == pytest.approx(math.log(4) - 2 * jsd.item(), abs=1e-6)
