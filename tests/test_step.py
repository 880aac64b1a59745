"""train_step against the paper's algorithm, redone by hand on toy networks; who is updated when, and from which graph."""

import copy
import itertools

import pytest
import torch
from conftest import module, run, same, settings
from torch import nn
from torch.nn.functional import logsigmoid


class ToyG(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 12), nn.BatchNorm1d(12)

    def forward(self, z):
        return torch.tanh(self.norm(self.linear(z))).view(-1, 3, 2, 2)


class ToyD(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))

    def forward(self, x):
        return self.net(x)


class Spy(torch.optim.SGD):
    """SGD that notes, at every step, the gradients and weights of both networks."""

    def __init__(self, name, net, networks, notes):
        super().__init__(net.parameters(), 0.1)
        self.name, self.networks, self.notes = name, networks, notes

    def step(self):
        note = {"opt": self.name, "frozen": not next(self.networks["D"].parameters()).requires_grad}
        for name, net in self.networks.items():
            note[name] = [p.detach().clone() for p in net.parameters()]
            note[f"{name}.grad"] = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
        self.notes.append(note)
        super().step()


def toys():
    torch.manual_seed(0)
    G, D, notes = ToyG(), ToyD(), []
    networks = {"G": G, "D": D}
    batches = [torch.rand(8, 3, 2, 2) * 2 - 1 for _ in range(20)]
    return G, D, Spy("G", G, networks, notes), Spy("D", D, networks, notes), batches, notes


def dcgan_by_hand(G, D, batches, args):
    """One D step and one G step of gradient descent at 0.1, from the objective as the paper writes it."""
    z = torch.randn(8, 8)
    x_fake = G(z)
    value = logsigmoid(D(batches[0])).mean() + logsigmoid(-D(x_fake.detach())).mean()  # D maximises
    for p, g in zip(D.parameters(), torch.autograd.grad(value, list(D.parameters())), strict=True):
        p.data += 0.1 * g
    value = logsigmoid(D(x_fake)).mean()  # G maximises, against the new D
    for p, g in zip(G.parameters(), torch.autograd.grad(value, list(G.parameters())), strict=True):
        p.data += 0.1 * g


def wgan_gp_by_hand(G, D, batches, args):
    """Algorithm 1 with gradient descent at 0.1: five critic steps on new batches and noise, then one step of G."""

    def one(weights, x):  # D's score of a single image
        return torch.func.functional_call(D, weights, x[None])[0]

    for k in range(5):
        x_fake = G(torch.randn(8, 8)).detach()
        e = torch.rand(8, 1, 1, 1)

        def loss(weights, k=k, x_fake=x_fake, e=e):
            slopes = [torch.func.grad(one, argnums=1)(weights, x) for x in e * batches[k] + (1 - e) * x_fake]
            penalty = sum((slope.square().sum().sqrt() - 1) ** 2 for slope in slopes) / 8
            scores = [sum(one(weights, x) for x in images) / 8 for images in (x_fake, batches[k])]
            return scores[0] - scores[1] + 10 * penalty

        weights = {name: p.detach() for name, p in D.named_parameters()}
        for name, g in torch.func.grad(loss)(weights).items():
            D.get_parameter(name).data -= 0.1 * g
    value = D(G(torch.randn(8, 8))).mean()  # G maximises
    for p, g in zip(G.parameters(), torch.autograd.grad(value, list(G.parameters())), strict=True):
        p.data += 0.1 * g


BY_HAND = {"dcgan": dcgan_by_hand, "wgan_gp": wgan_gp_by_hand}
D_STEPS = {"dcgan": 1, "wgan_gp": 5}  # per G step, at the defaults


@pytest.mark.parametrize("script", BY_HAND)
def test_step_equals_the_algorithm_by_hand(script):
    """Catches wrong signs, a detach too many or too few, G trained against the old D, mixed-up noise or batches."""
    G, D, opt_G, opt_D, batches, _ = toys()
    G2, D2 = copy.deepcopy(G), copy.deepcopy(D)
    torch.manual_seed(1)
    module(script).train_step(G, D, opt_G, opt_D, iter(batches), settings(script))
    torch.manual_seed(1)
    BY_HAND[script](G2, D2, batches, settings(script))
    for a, b in zip([*G.parameters(), *D.parameters()], [*G2.parameters(), *D2.parameters()], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # rounding of up to six updates


def test_isolation(script):
    """Catches D not frozen in G's step, gradients that leak from one step into the other, and a wrong number of steps."""
    G, D, opt_G, opt_D, batches, notes = toys()
    data = iter(batches)
    for _ in range(2):
        metrics = module(script).train_step(G, D, opt_G, opt_D, data, settings(script))
    n = D_STEPS[script]
    assert [note["opt"] for note in notes] == (["D"] * n + ["G"]) * 2
    assert [note["frozen"] for note in notes] == ([False] * n + [True]) * 2
    for before, after in itertools.pairwise(notes):
        other = {"G": "D", "D": "G"}[before["opt"]]
        assert same(before[other], after[other])  # the step of one leaves the other's weights alone
        assert not same(before[before["opt"]], after[before["opt"]])
        if after["opt"] == "G":
            assert same(before["D.grad"], after["D.grad"])  # nothing was added to D's gradients in G's step
        if before["opt"] == "G":
            assert same(before["G.grad"], after["G.grad"])  # nor to G's in D's
    assert notes[0]["G.grad"] == [None] * 4
    assert all(g.abs().sum() > 0 for g in notes[n]["G.grad"][:2])
    assert not any(value.requires_grad for value in metrics.values())
    assert len(list(data)) == 20 - 2 * n  # a fresh batch for each step of D


def test_noise_is_fresh_in_every_step(script):
    """Catches z that is drawn once, or seeded inside the step."""
    G, D, opt_G, opt_D, batches, _ = toys()
    seen = []
    G.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0].clone()))
    for _ in range(2):
        module(script).train_step(G, D, opt_G, opt_D, iter(batches), settings(script))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(seen, 2)) and len(seen) >= 2


def test_a_parameter_without_gradient_counts_as_zero(script):
    """Catches Adam's skipping of it, which would part one process from many."""
    m, used, unused = module(script), nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimiser = torch.optim.Adam([used, unused], 0.1)
    m.step(optimiser, (used + unused).sum())
    m.step(optimiser, used.sum())
    assert unused.grad is not None and unused.grad.item() == 0 and unused.item() < 0.9  # its momentum goes on


def test_ema_closed_form(script):
    """Catches an inverted decay, and buffers that are averaged or forgotten (dark samples, num_batches_tracked)."""
    G, G_ema = ToyG(), ToyG()
    with torch.no_grad():
        for p in G_ema.parameters():
            p.zero_()
        for p in G.parameters():
            p.fill_(1)
    G.norm.running_mean.fill_(7)
    G.norm.num_batches_tracked.fill_(9)
    for _ in range(5):
        module(script).update_ema(G_ema, G, 0.9)
    for p in G_ema.parameters():
        torch.testing.assert_close(p, torch.full_like(p, 1 - 0.9**5))
    assert (G_ema.norm.running_mean == 7).all() and G_ema.norm.num_batches_tracked == 9


def test_ema_warm_up(script, folder, tmp_path):
    """Catches an average that keeps the random start for 1/(1 - decay) steps: after step 0 it is a tenth of it."""
    flags = ("--seed", "3", "--lr-g", "0.05")
    state = run(script, folder, tmp_path / "a", "--steps", "1", *flags)
    torch.manual_seed(3)
    start = module(script).Generator(settings(script)).apply(module(script).init_weights)
    for first, p, average in zip(start.parameters(), state["G"].parameters(), state["G_ema"].parameters(), strict=True):
        torch.testing.assert_close(average, 0.1 * first + 0.9 * p, rtol=1e-4, atol=1e-6)
    assert not same(dict(start.state_dict()), dict(state["G"].state_dict()))
    for b, average in zip(state["G"].buffers(), state["G_ema"].buffers(), strict=True):
        assert torch.equal(b, average)
