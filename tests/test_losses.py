"""Losses against closed forms and against theory: values, gradients, and the optimal discriminator of a tabular game."""

import math

import pytest
import torch
from conftest import HINGE, module

LN2 = math.log(2)
REAL, FAKE = torch.tensor([0.3, -1.2, 2.0, 0.0]), torch.tensor([-0.5, 1.5, 0.0, -2.5])


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


# script -> d_loss and g_loss of REAL and FAKE, written out score by score; both where all scores are 0; both where real
# scores are 1 and generated ones -1
EXPECTED = {
    "dcgan": (
        -sum(log_sigmoid(r) for r in REAL.tolist()) / 4 - sum(log_sigmoid(-f) for f in FAKE.tolist()) / 4,
        -sum(log_sigmoid(f) for f in FAKE.tolist()) / 4,
        (2 * LN2, LN2),
        (2 * 0.3132617, 1.3132617),
    ),
    "lsgan": (
        sum((r - 1) ** 2 / 2 for r in REAL.tolist()) / 4 + sum(f**2 / 2 for f in FAKE.tolist()) / 4,
        sum((f - 1) ** 2 / 2 for f in FAKE.tolist()) / 4,
        (0.5, 0.5),
        (0.5, 2),
    ),
    "wgan": (sum(FAKE.tolist()) / 4 - sum(REAL.tolist()) / 4, -sum(FAKE.tolist()) / 4, (0, 0), (-2, 1)),
    "wgan_gp": (sum(FAKE.tolist()) / 4 - sum(REAL.tolist()) / 4, -sum(FAKE.tolist()) / 4, (0, 0), (-2, 1)),
    "sngan": (
        sum(max(0, 1 - r) for r in REAL.tolist()) / 4 + sum(max(0, 1 + f) for f in FAKE.tolist()) / 4,
        -sum(FAKE.tolist()) / 4,
        (2, 0),
        (0, 1),
    ),
}
EXPECTED |= dict.fromkeys(("acgan", "infogan"), EXPECTED["dcgan"]) | {"lightweight_gan": EXPECTED["sngan"]}


@pytest.mark.parametrize("script", EXPECTED)
def test_values(script):
    """Catches a wrong sign, factor, reduction or swapped roles."""
    m = module(script)
    expected_d, expected_g, at_zero, apart = EXPECTED[script]
    one, zero = torch.ones(5), torch.zeros(5)
    for real, fake, expected in (
        (REAL, FAKE, (expected_d, expected_g)),
        (zero, zero, at_zero),
        (one, -one, apart),
    ):
        assert m.d_loss(real, fake).item() == pytest.approx(expected[0], abs=1e-6)
        assert m.g_loss(fake).item() == pytest.approx(expected[1], abs=1e-6)


@pytest.mark.parametrize("script", EXPECTED)
def test_gradients_push_the_right_way(script):
    """Catches a flipped sign: between the targets D raises real and lowers fake scores, and G raises fake ones."""
    m = module(script)
    real, fake = (torch.tensor(x, requires_grad=True) for x in ([0.3, 0.1, 0.8, 0.5], [0.2, 0.9, 0.4, 0.6]))
    d_real, d_fake = torch.autograd.grad(m.d_loss(real, fake), (real, fake))
    (g_fake,) = torch.autograd.grad(m.g_loss(fake), fake)
    assert (d_real < 0).all() and (d_fake > 0).all() and (g_fake < 0).all()


def test_infogan_least_squares():
    """Catches --adv lsgan that reaches one of the two losses only."""
    m, (d, g, *_) = module("infogan"), EXPECTED["lsgan"]
    assert m.d_loss(REAL, FAKE, "lsgan").item() == pytest.approx(d, abs=1e-6)
    assert m.g_loss(FAKE, "lsgan").item() == pytest.approx(g, abs=1e-6)


@pytest.mark.parametrize("script", HINGE)
def test_hinge_is_flat_beyond_the_margin(script):
    """Catches a margin of another width, and a hinge for G: only scores within it pull D, all of them pull G."""
    m = module(script)
    real, fake = (
        torch.tensor([0.99, 1.01, 5.0], requires_grad=True),
        torch.tensor([-0.99, -1.01, -5.0], requires_grad=True),
    )
    d_real, d_fake = torch.autograd.grad(m.d_loss(real, fake), (real, fake))
    (g_fake,) = torch.autograd.grad(m.g_loss(5 * fake * fake - 20), fake)  # from -15 to 105: G's gradient is constant
    torch.testing.assert_close(d_real, torch.tensor([-1 / 3, 0, 0]))
    torch.testing.assert_close(d_fake, torch.tensor([1 / 3, 0, 0]))
    torch.testing.assert_close(g_fake, -10 * fake.detach() / 3)


@pytest.mark.parametrize("script", HINGE)
def test_hinge_optimal_discriminator(script):
    """Catches a wrong pairing or constant: free scores on a finite set reach 2 sum min(p, q), with D = sign(p - q)."""
    m, p, q = module(script), torch.tensor([4.0, 3, 2, 1]) / 10, torch.tensor([1.0, 2, 3, 4]) / 10
    grid = torch.linspace(-3, 3, 601)
    loss = torch.stack([
        p[i] * torch.stack([m.d_loss(s[None], torch.tensor([-9.0])) for s in grid])
        + q[i] * torch.stack([m.d_loss(torch.tensor([9.0]), s[None]) for s in grid])
        for i in range(4)
    ])  # fmt: skip
    assert loss.min(1).values.sum().item() == pytest.approx(2 * torch.minimum(p, q).sum().item(), abs=1e-5)
    assert torch.allclose(grid[loss.argmin(1)], torch.tensor([1.0, 1, -1, -1]), atol=0.02)


@pytest.mark.parametrize("a, b", [(0.0, 1.0), (-1.0, 1.0)])
def test_lsgan_optimal_discriminator(a, b):
    """Catches a missing factor or exchanged codes: D* = (b p + a q) / (p + q), the loss (b - a)^2 / 2 sum p q / (p + q)."""
    p, q = torch.tensor([4, 3, 2, 1]), torch.tensor([1, 2, 3, 4])
    scores = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    real, fake = (torch.arange(4).repeat_interleave(counts) for counts in (p, q))
    optimizer = torch.optim.SGD([scores], 1.0)
    for _ in range(200):
        optimizer.zero_grad()
        loss = module("lsgan").d_loss(scores[real], scores[fake], b, a)
        loss.backward()
        optimizer.step()
    p, q = p / 10, q / 10
    assert torch.allclose(scores.detach(), ((b * p + a * q) / (p + q)).double(), atol=1e-5)
    assert loss.item() == pytest.approx((b - a) ** 2 / 2 * (p * q / (p + q)).sum().item(), abs=1e-5)
    assert module("lsgan").g_loss(scores, 0.25).item() == pytest.approx(((scores - 0.25) ** 2).mean().item() / 2)


def test_soft_labels_move_the_optimum():
    """Catches targets that reach the wrong term: with 0.9 and 0.2 the best D says (0.9 p + 0.2 q) / (p + q)."""
    p, q = torch.tensor([4, 3, 2, 1]), torch.tensor([1, 2, 3, 4])
    scores = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    real, fake = (torch.arange(4).repeat_interleave(counts) for counts in (p, q))
    optimizer = torch.optim.SGD([scores], 5.0)
    for _ in range(500):
        optimizer.zero_grad()
        module("dcgan").d_loss(scores[real], scores[fake], 0.9, 0.2).backward()
        optimizer.step()
    assert torch.allclose(scores.detach().sigmoid(), ((0.9 * p + 0.2 * q) / (p + q)).double(), atol=1e-5)


@pytest.mark.parametrize("script", ["dcgan", "lsgan"])
def test_labels(script):
    """Catches one draw for the whole batch, a range that is left, and a constant that is not exact."""
    m, scores = module(script), torch.zeros(20_000)
    drawn = m.targets(scores, [0.7, 1.0])
    assert drawn.shape == scores.shape and 0.7 <= drawn.min() < 0.701 and 0.999 < drawn.max() <= 1
    assert abs(drawn.mean() - 0.85) < 0.003 and abs(drawn.std() - 0.3 / math.sqrt(12)) < 0.002
    assert (m.targets(scores, [0.9, 0.9]) == torch.tensor(0.9)).all() and (m.targets(scores, [1.0, 1.0]) == 1).all()


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
    optimizer = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    real, fake = (torch.arange(4).repeat_interleave(counts) for counts in (p, q))

    def closure():
        optimizer.zero_grad()
        loss = module("dcgan").d_loss(scores[real], scores[fake])
        loss.backward()
        return loss

    optimizer.step(closure)
    loss = closure()
    p, q = p / 10, q / 10
    m = (p + q) / 2
    jsd = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
    assert torch.allclose(scores.detach(), (p / q).log().double(), atol=1e-4)
    assert loss.item() == pytest.approx(math.log(4) - 2 * jsd.item(), abs=1e-6)
