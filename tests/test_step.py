"""train_step against the paper's algorithm, redone by hand on toy networks; who is updated when, and from which graph."""

import copy
import itertools

import pytest
import torch
from conftest import EXTRA, HEADS, RMSPROP, also, condition, d_steps, module, run, same, settings
from torch import nn
from torch.nn.functional import logsigmoid


class ToyG(nn.Module):
    def __init__(self, extra=0):
        super().__init__()
        self.linear, self.norm = nn.Linear(8 + extra, 12), nn.BatchNorm1d(12)

    def forward(self, z, *condition):
        z = torch.cat([z, *(c.float() for c in condition)], 1)
        return torch.tanh(self.norm(self.linear(z))).view(-1, 3, 2, 2)


class ToyD(nn.Module):
    def __init__(self, extra=0, heads=0, decoders=False):
        super().__init__()
        self.heads, self.net = heads, nn.Sequential(nn.Linear(12 + extra, 8), nn.Tanh(), nn.Linear(8, 1 + heads))
        if decoders:  # of the hidden layer as a map (N, 8, 1, 1), and as a map (N, 2, 2, 2)
            self.whole, self.quarter = nn.Conv2d(8, 3, 1), nn.Conv2d(2, 3, 1)

    def forward(self, x, *condition):
        out = self.net(torch.cat([x.flatten(1), *(c.float() for c in condition)], 1))
        if hasattr(self, "whole"):
            hidden = self.net[:2](x.flatten(1))
            return out[:, 0], hidden.view(-1, 2, 2, 2), hidden[:, :, None, None]
        return (out[:, 0], out[:, 1:]) if self.heads else out[:, 0]


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


def toys(script="dcgan"):
    torch.manual_seed(0)
    D = ToyD(EXTRA[script] if script == "cgan_text2img" else 0, HEADS.get(script, 0), script == "lightweight_gan")
    G, notes = ToyG(EXTRA.get(script, 0)), []
    networks = {"G": G, "D": D}
    batches = [torch.rand(8, 3, 2, 2) * 2 - 1 for _ in range(20)]
    if script in ("acgan", "cgan_text2img"):
        batches = [(x, *condition(script, 8, settings(script))) for x in batches]
    if script == "cgan_text2img":
        batches = [(x, t[:, None]) for x, t in batches]  # one caption of each image
    if script == "acgan":
        batches[0][1][0, 0] = batches[0][1][3, 1] = -1  # labels that leave a group open
    return G, D, Spy("G", G, networks, notes), Spy("D", D, networks, notes), batches, notes


def ascend(net, value) -> float:
    """One step of gradient ascent at 0.1; returns the value before it."""
    for p, g in zip(net.parameters(), torch.autograd.grad(value, list(net.parameters())), strict=True):
        p.data += 0.1 * g
    return value.item()


def one(D, weights, x):
    """D's score of a single image, as a function of D's weights."""
    return torch.func.functional_call(D, weights, x[None])[0]


# What follows redoes train_step from the paper, on the same networks, and returns what it must log.


def dcgan_by_hand(G, D, batches, args):
    """One D step, then the G steps, from the objective as the paper writes it, with targets between 0 and 1."""
    x_fake = G(torch.randn(8, 8))
    t, s = (low + (high - low) * torch.rand(8) for low, high in (args.real_label, args.fake_label))
    real, fake = D(batches[0]), D(x_fake.detach())
    value = (t * logsigmoid(real) + (1 - t) * logsigmoid(-real)).mean()
    value_D = ascend(D, value + (s * logsigmoid(fake) + (1 - s) * logsigmoid(-fake)).mean())
    for k in range(args.g_steps):  # against the new D; the first on D's noise
        value_G = ascend(G, logsigmoid(D(x_fake if k == 0 else G(torch.randn(8, 8)))).mean())
    return {"loss_D": -value_D, "loss_G": -value_G}


def lsgan_by_hand(G, D, batches, args):
    """One D step and one G step of the squared errors to a, b and c."""
    x_fake = G(torch.randn(8, 8))
    b, a = (low + (high - low) * torch.rand(8) for low, high in (args.real_label, args.fake_label))
    c = args.g_label
    value_D = ascend(D, -sum((D(batches[0]) - b) ** 2) / 16 - sum((D(x_fake.detach()) - a) ** 2) / 16)
    value_G = ascend(G, -sum((D(x_fake) - c) ** 2) / 16)
    return {"loss_D": -value_D, "loss_G": -value_G}


def wgan_by_hand(G, D, batches, args):
    """Algorithm 1 with gradient ascent at 0.1: the weights are in the box after each of the critic's steps."""
    for k in range(args.n_critic):
        value_D = ascend(D, D(batches[k]).mean() - D(G(torch.randn(8, 8)).detach()).mean())
        for p in D.parameters():
            p.data = torch.maximum(torch.minimum(p.data, torch.tensor(args.clip)), torch.tensor(-args.clip))
    value_G = ascend(G, D(G(torch.randn(8, 8))).mean())
    return {"loss_D": -value_D, "loss_G": -value_G, "wasserstein": value_D}


def sngan_by_hand(G, D, batches, args):
    """One or five D steps of the hinge loss, each on a new batch and new noise, then one of G."""
    zero = torch.zeros(8)
    for k in range(args.n_critic):
        fake = D(G(torch.randn(8, 8)).detach())
        value_D = ascend(D, torch.minimum(zero, D(batches[k]) - 1).mean() + torch.minimum(zero, -fake - 1).mean())
    value_G = ascend(G, D(G(torch.randn(8, 8))).mean())
    return {"loss_D": -value_D, "loss_G": -value_G}


def wgan_gp_by_hand(G, D, batches, args):
    """Algorithm 1 with gradient descent at 0.1: five critic steps on new batches and noise, then one step of G."""

    for k in range(5):
        x_fake = G(torch.randn(8, 8)).detach()
        e = torch.rand(8, 1, 1, 1)

        def loss(weights, k=k, x_fake=x_fake, e=e):
            slopes = [torch.func.grad(one, argnums=2)(D, weights, x) for x in e * batches[k] + (1 - e) * x_fake]
            penalty = sum((slope.square().sum().sqrt() - 1) ** 2 for slope in slopes) / 8
            scores = [sum(one(D, weights, x) for x in images) / 8 for images in (x_fake, batches[k])]
            return scores[0] - scores[1] + 10 * penalty

        weights = {name: p.detach() for name, p in D.named_parameters()}
        wasserstein, loss_D = (D(batches[k]).mean() - D(x_fake).mean()).item(), loss(weights).item()
        for name, g in torch.func.grad(loss)(weights).items():
            D.get_parameter(name).data -= 0.1 * g
    value_G = ascend(G, D(G(torch.randn(8, 8))).mean())
    return {"loss_D": loss_D, "loss_G": -value_G, "wasserstein": wasserstein}


def acgan_by_hand(G, D, batches, args):
    """One D step, then the G steps: log likelihoods of real or fake, and of the attributes that the label gives."""
    x, y = batches[0]

    def classes(p):  # E log P(y | x), group by group and image by image; -1: no term
        places = {"eyes": p[:, :2], "hair": p[:, 2:]}
        logs = [torch.log_softmax(places[name], 1) for name in ("eyes", "hair")]
        return sum(logs[k][i, y[i, k]] for i in range(8) for k in range(2) if y[i, k] >= 0) / 8

    x_fake = G(torch.randn(8, 8), y)
    (real, p), (fake, _) = D(x), D(x_fake.detach())
    class_real = -classes(p).item()
    value_D = ascend(D, logsigmoid(real).mean() + logsigmoid(-fake).mean() + args.cls_weight * classes(p))
    for k in range(args.g_steps):
        fake, p = D(x_fake if k == 0 else G(torch.randn(8, 8), y))
        class_fake = -classes(p).item()
        value_G = ascend(G, logsigmoid(fake).mean() + args.cls_weight_g * classes(p))
    return {"loss_D": -value_D, "loss_G": -value_G, "class_real": class_real, "class_fake": class_fake}


def cgan_by_hand(G, D, batches, args):
    """Algorithm 1: a right pair, wrong ones and a generated one; the wrong ones weigh a half each."""
    (x, t), n = batches[0], 8
    t = t[:, 0]
    other, mask = module("cgan_text2img").derange(t)
    assert mask.all()
    x_fake = G(torch.randn(n, 8), t)
    target = args.real_label
    real, wrong, fake = D(x, t), D(x, t[other]), D(x_fake.detach(), t)
    value = target * logsigmoid(real) + (1 - target) * logsigmoid(-real)
    value = value + logsigmoid(-wrong) / 2 + logsigmoid(-fake) / 2
    if args.wrong_image:
        value = value + logsigmoid(-D(x[other], t)) / 2
    value_D = ascend(D, value.mean())
    fake = D(x_fake, t)
    apart = (torch.sigmoid(D(x, t)).detach() - torch.sigmoid(fake)) ** 2
    value_G = ascend(G, logsigmoid(fake).mean() - args.l2 * apart.mean() - args.l1 * abs(x_fake - x).mean())
    return {"loss_D": -value_D, "loss_G": -value_G}


def infogan_by_hand(G, D, batches, args):
    """One step of D and Q, one of G; -log of a softmax and of Gaussians of spread 1 at the codes that made the images."""
    k, m = args.categories, args.codes
    c = torch.cat([torch.eye(k)[torch.randint(k, (8,))], torch.empty(8, m).uniform_(-1, 1)], 1)
    z = torch.randn(8, 8)

    def information(q):
        category = (torch.log_softmax(q[:, :k], 1) * c[:, :k]).sum(1).mean()
        numbers = (-0.5 * (q[:, k:] - c[:, k:]) ** 2).sum(1).mean()
        return args.info_cat * category + args.info_con * numbers

    x_fake = G(z, c)
    (real, _), (fake, q) = D(batches[0]), D(x_fake.detach())
    if args.adv == "lsgan":
        value_D = ascend(D, information(q) - ((real - 1) ** 2).mean() / 2 - (fake**2).mean() / 2)
    else:
        value_D = ascend(D, logsigmoid(real).mean() + logsigmoid(-fake).mean() + information(q))
    fake, q = D(x_fake)
    category = -torch.log_softmax(q[:, :k], 1)[c[:, :k] == 1].mean().item()
    numbers = ((q[:, k:] - c[:, k:]) ** 2).mean().item()
    adversarial = -((fake - 1) ** 2).mean() / 2 if args.adv == "lsgan" else logsigmoid(fake).mean()
    value_G = ascend(G, adversarial + information(q))
    return {"loss_D": -value_D, "loss_G": -value_G, "category": category, "continuous": numbers}


def lightweight_by_hand(G, D, batches, args):
    """A D step on changed images, hinge and what the decoders miss of the reals; a G step on the same z, changed anew."""
    m, zero = module("lightweight_gan"), torch.zeros(())
    x = m.augment(batches[0], args.augment)
    x_fake = G(torch.randn(8, 8))
    i, j = torch.randint(2, (2,)).tolist()
    real, large, small = D(x)
    whole = abs(D.whole(small)[:, :, 0, 0] - x.mean((2, 3))).mean()
    quarter = abs(D.quarter(large)[:, :, i, j] - x[:, :, i, j]).mean()
    fake = D(m.augment(x_fake.detach(), args.augment))[0]
    value = torch.minimum(zero, real - 1).mean() + torch.minimum(zero, -fake - 1).mean()
    value_D = ascend(D, value - whole - quarter)
    value_G = ascend(G, D(m.augment(x_fake, args.augment))[0].mean())
    return {"loss_D": -value_D, "loss_G": -value_G, "reconstruction": (whole + quarter).item()}


def r3gan_by_hand(G, D, batches, args):
    """D: log likelihood of telling each pair, less gamma/2 mean squared slopes; G: of each pair taken the other way."""

    x_fake = G(torch.randn(8, 8))
    y = x_fake.detach()

    def parts(weights):
        likelihood = sum(logsigmoid(one(D, weights, batches[0][i]) - one(D, weights, y[i])) for i in range(8)) / 8
        slopes = [torch.func.grad(one, argnums=2)(D, weights, x).square().sum() for x in (*batches[0], *y)]
        return likelihood, sum(slopes[:8]) / 8, sum(slopes[8:]) / 8

    def value(weights):
        likelihood, r1, r2 = parts(weights)
        return likelihood - 2.0 / 2 * (r1 + r2)

    weights = {name: p.detach().clone() for name, p in D.named_parameters()}
    for name, g in torch.func.grad(value)(weights).items():
        D.get_parameter(name).data += 0.1 * g
    value_G = ascend(G, logsigmoid(D(x_fake) - D(batches[0])).mean())
    likelihood, r1, r2 = (part.item() for part in parts(weights))
    return {"loss_D": -likelihood, "loss_G": -value_G, "r1": r1, "r2": r2}


BY_HAND = {
    "dcgan": dcgan_by_hand,
    "dcgan --real-label 0.7 1.0 --fake-label 0.0 0.3 --g-steps 3": dcgan_by_hand,
    "lsgan": lsgan_by_hand,
    "lsgan --real-label 1 2 --fake-label -1 -0.5 --g-label 0.5": lsgan_by_hand,
    "wgan": wgan_by_hand,
    "wgan --clip 0.1 --n-critic 5": wgan_by_hand,
    "wgan_gp": wgan_gp_by_hand,
    "sngan": sngan_by_hand,
    "sngan --n-critic 5": sngan_by_hand,
    "acgan": acgan_by_hand,
    "acgan --cls-weight 2 --cls-weight-g 0.3 --g-steps 3": acgan_by_hand,
    "cgan_text2img": cgan_by_hand,
    "cgan_text2img --real-label 0.9 --wrong-image --l2 2 --l1 0.5": cgan_by_hand,
    "infogan": infogan_by_hand,
    "r3gan": r3gan_by_hand,
    "lightweight_gan": lightweight_by_hand,
    "lightweight_gan --augment cutout": lightweight_by_hand,
    "infogan --adv lsgan --info-cat 0.5 --info-con 2 --categories 7 --codes 3": infogan_by_hand,
}
# forward passes of D in each of its updates, each with statistics of its own, and in G's; other scripts: 2 and 1
D_PASSES = {"wgan_gp": (3, 1), "cgan_text2img": (3, 1), "r3gan": (2, 2)}  # of a batch each


@pytest.mark.parametrize("command", BY_HAND)
def test_step_equals_the_algorithm_by_hand(command):
    """Catches wrong signs, a detach too many or too few, G trained against the old D, mixed-up noise, batches or labels; and wrong logs."""
    script, *flags = command.split()
    G, D, opt_G, opt_D, batches, _ = toys(script)
    G2, D2 = copy.deepcopy(G), copy.deepcopy(D)
    torch.manual_seed(1)
    metrics = module(script).train_step(G, D, opt_G, opt_D, iter(batches), settings(script, *flags), *also(script))
    torch.manual_seed(1)
    expected = BY_HAND[command](G2, D2, batches, settings(script, *flags))
    for a, b in zip([*G.parameters(), *D.parameters()], [*G2.parameters(), *D2.parameters()], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # rounding of up to six updates
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_wgan_critic_is_in_its_box_whenever_G_moves():
    """Catches a clip before the critic's step, one of some layers only, and one that reaches G."""
    m, args = module("wgan"), settings("wgan", "--clip", "0.03")
    G, D, opt_G, opt_D, batches, notes = toys()
    for _ in range(2):
        m.train_step(G, D, opt_G, opt_D, iter(batches), args)
    for note in notes[1:]:  # before the first step of all the weights are as they were initialized
        assert all(p.abs().max() <= 0.03 for p in note["D"])
        assert max(p.abs().max() for p in note["G"]) > 0.1
    assert any((p.abs() == torch.tensor(0.03)).any() for p in notes[-1]["D"])


def test_wgan_linear_critic_ends_in_a_corner():
    """Catches a wrong sign or order: a linear critic in a box of half-width c has the weights c sign(E x - E G(z))."""

    class Fixed(nn.Module):
        def __init__(self, x):
            super().__init__()
            self.x, self.p = x, nn.Parameter(torch.zeros(1))

        def forward(self, z):
            return self.x + 0 * self.p

    torch.manual_seed(0)
    m, args, D = module("wgan"), settings("wgan"), nn.Sequential(nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0))
    x_real, x_fake = torch.randn(2, 8, 3, 2, 2)
    G = Fixed(x_fake)
    opt_G, opt_D = torch.optim.RMSprop(G.parameters(), 1e-3), torch.optim.RMSprop(D.parameters(), 1e-3)
    for _ in range(20):
        metrics = m.train_step(G, D, opt_G, opt_D, itertools.repeat(x_real), args)
    difference = (x_real.mean(0) - x_fake.mean(0)).flatten()
    torch.testing.assert_close(D[1].weight[0].detach(), 0.01 * difference.sign())
    assert metrics["wasserstein"].item() == pytest.approx(0.01 * difference.abs().sum().item(), rel=1e-4)


def test_wgan_has_no_momentum(folder, tmp_path):
    """Catches Adam in the place of RMSprop (section 4: the training becomes unstable)."""
    state = run("wgan", folder, tmp_path / "a", "--steps", "1")
    assert all(type(state[name]) is torch.optim.RMSprop for name in ("opt_G", "opt_D"))
    assert all(group["momentum"] == 0 for name in ("opt_G", "opt_D") for group in state[name].param_groups)
    assert all(p.abs().max() <= torch.tensor(0.01) for p in state["D"].parameters())  # BatchNorm's gains too


def test_optimizers_have_the_flags_and_the_weights_of_their_network(script, folder, tmp_path):
    """Catches G's optimizer for D (which step() would hide), rates or betas that are exchanged or not passed on."""
    flags = ["--lr-g", "0.02", "--lr-d", "0.01"] + ["--beta1", "0.3", "--beta2", "0.7"] * (script not in RMSPROP)
    state = run(script, folder, tmp_path / "a", "--steps", "1", *flags)
    for name, lr in (("G", 0.02), ("D", 0.01)):
        (group,) = state[f"opt_{name}"].param_groups
        assert [id(p) for p in group["params"]] == [id(p) for p in state[name].parameters()]
        assert group["lr"] == pytest.approx(lr)
        assert type(state[f"opt_{name}"]) is (torch.optim.RMSprop if script in RMSPROP else torch.optim.Adam)
        assert group.get("betas", (0.3, 0.7)) == pytest.approx((0.3, 0.7)) and group.get("alpha", 0.99) == 0.99


DEFAULTS = {  # the paper's, or those of the code that everybody takes for them, unless the doc-string says otherwise
    "dcgan": {
        "lr_g": 2e-4,
        "lr_d": 2e-4,
        "beta1": 0.5,
        "beta2": 0.999,
        "real_label": [1, 1],
        "fake_label": [0, 0],
        "g_steps": 1,
    },
    "lsgan": {
        "lr_g": 2e-4,
        "lr_d": 2e-4,
        "beta1": 0.5,
        "beta2": 0.999,
        "real_label": [1, 1],
        "fake_label": [0, 0],
        "g_label": 1,
    },
    "wgan": {"lr_g": 5e-4, "lr_d": 3e-4, "n_critic": 2, "clip": 0.01},
    "wgan_gp": {"lr_g": 1e-4, "lr_d": 1e-4, "beta1": 0, "beta2": 0.9, "n_critic": 5, "gp": 10},
    "sngan": {"lr_g": 2e-4, "lr_d": 2e-4, "beta1": 0, "beta2": 0.9, "n_critic": 1},
}
ADAM = {"lr_g": 2e-4, "lr_d": 2e-4, "beta1": 0.5, "beta2": 0.999}
DEFAULTS["acgan"] = ADAM | {"cls_weight": 1, "cls_weight_g": 1, "g_steps": 1}
DEFAULTS["cgan_text2img"] = ADAM | {"real_label": 1, "wrong_image": False, "l1": 0, "l2": 0}
DEFAULTS["lightweight_gan"] = ADAM | {"z_dim": 256, "width": 32, "batch": 8, "act": None}
DEFAULTS["lightweight_gan"] |= {"augment": ["translation", "color", "cutout"]}
DEFAULTS["r3gan"] = ADAM | {"beta1": 0, "beta2": 0.9, "z_dim": 64, "act": None, "gamma": 2, "penalty_every": 1}
DEFAULTS["infogan"] = ADAM | {
    "beta1": 0,
    "beta2": 0.9,
    "z_dim": 62,
    "info_cat": 1,
    "info_con": 0.1,
    "adv": "ns",
    "categories": 8,
    "codes": 2,
}


def test_defaults(script):
    """Catches a default that was changed for an experiment, and a preset that leaks into --path."""
    args = vars(module(script).parse_args(["--path", "unused", "--out", "nowhere"]))
    house = {"z_dim": 100, "noise": "normal", "width": 64, "act": "relu", "ema": 0.999, "batch": 64, "size": 64}
    for name, value in (house | DEFAULTS[script]).items():
        assert args.get(name) == value, name
    assert args.get("dropout", 0) == 0


@pytest.mark.parametrize("script", ["wgan", "wgan_gp"])
def test_wasserstein_estimate(script):
    """Catches a log that mixes the penalty into the estimate, or has its sign wrong."""
    G, D, opt_G, opt_D, batches, _ = toys()
    before = []
    D.register_forward_hook(lambda net, inputs, output: before.append(output.detach().clone()))
    metrics = module(script).train_step(G, D, opt_G, opt_D, iter(batches), settings(script, "--n-critic", "1"))
    assert metrics["wasserstein"].item() == pytest.approx((before[0].mean() - before[1].mean()).item(), abs=1e-6)


def test_isolation(script):
    """Catches D not frozen in G's step, gradients that leak from one step into the other, and a wrong number of steps."""
    G, D, opt_G, opt_D, batches, notes = toys(script)
    data, calls = iter(batches), []
    for net in (G, D):
        net.register_forward_pre_hook(lambda net, inputs: calls.append((type(net), net.training, len(inputs[0]))))
    for _ in range(2):
        metrics = module(script).train_step(G, D, opt_G, opt_D, data, settings(script), *also(script))
    n = d_steps(script)
    # real, generated, and mixed images or wrong pairs apart, each with its own statistics
    of_D, of_G = D_PASSES.get(script, (2, 1))
    if script == "r3gan":  # no BatchNorm: real and generated images in one pass
        calls = [c for kind, mode, size in calls for c in [(kind, mode, 8 if kind is ToyD else size)] * (size // 8)]
    assert calls.count((ToyD, True, 8)) == 2 * (of_D * n + of_G), "another number of passes of D: see D_PASSES"
    assert calls.count((ToyG, True, 8)) == len(calls) - 2 * (of_D * n + of_G)
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
    G, D, opt_G, opt_D, batches, _ = toys(script)
    seen = []
    G.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0].clone()))
    for _ in range(2):
        module(script).train_step(G, D, opt_G, opt_D, iter(batches), settings(script), *also(script))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(seen, 2)) and len(seen) >= 2


def test_a_parameter_without_gradient_counts_as_zero(script):
    """Catches Adam's skipping of it, which would part one process from many."""
    m, used, unused = module(script), nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([used, unused], 0.1)
    m.step(optimizer, (used + unused).sum())
    m.step(optimizer, used.sum())
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


def test_ema_reaches_its_flag(script, folder, tmp_path, monkeypatch):
    """Catches a warm-up that never ends: (1 + i) / (10 + i) passes --ema in step 1."""
    decays = []
    monkeypatch.setattr(module(script), "update_ema", lambda G_ema, G, decay: decays.append(decay))
    run(script, folder, tmp_path / "a", "--steps", "3", "--ema", "0.15")
    assert decays == pytest.approx([0.1, 0.15, 0.15])


def test_ema_warm_up(script, folder, tmp_path):
    """Catches an average that keeps the random start for 1/(1 - decay) steps: after step 0 it is a tenth of it."""
    flags = ("--seed", "3", "--lr-g", "0.05", "--lr-d", "0")
    state = run(script, folder, tmp_path / "a", "--steps", "1", *flags)
    torch.manual_seed(3)
    m, args = module(script), settings(script)
    start, D = m.Generator(args).apply(m.init_weights), m.Discriminator(args).apply(m.init_weights)
    box = 0.01 if script == "wgan" else torch.inf
    for first, p in zip(
        D.parameters(), state["D"].parameters(), strict=True
    ):  # D did not move: it began as initialized
        torch.testing.assert_close(p.detach(), first.detach().clamp(-box, box))
    for first, p, average in zip(start.parameters(), state["G"].parameters(), state["G_ema"].parameters(), strict=True):
        torch.testing.assert_close(average, 0.1 * first + 0.9 * p, rtol=1e-4, atol=1e-6)
    assert not same(dict(start.state_dict()), dict(state["G"].state_dict()))
