"""BatchNorm in the average: its statistics are those of what the average draws, in every checkpoint and grid."""

import functools

import pytest
import torch
from conftest import SCRIPTS, module, run, same
from torch import nn

NORMED = [script for script in SCRIPTS if script != "r3gan"]  # scripts with BatchNorm in G


@pytest.fixture(params=NORMED)
def script(request) -> str:
    return request.param


def norms(net) -> list[nn.BatchNorm2d]:
    return [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]


def test_statistics_in_closed_form(script):
    """Catches a weighted mean of the batches, statistics that are added to old ones, and eval mode while they are measured."""
    net = nn.Sequential(nn.BatchNorm2d(2)).eval()
    net[0].running_mean.fill_(9)
    net[0].running_var.fill_(9)
    drawn = []

    def draw(offset):
        drawn.append(torch.randn(4, 2, 3, 3) * len(drawn) + offset)
        net(drawn[-1])

    for offset in (5, -1):  # nothing is left of what was there
        drawn.clear()
        module(script).measure_statistics(net, functools.partial(draw, offset))
        assert len(drawn) == 16 and not net.training and not net[0].training
        means = torch.stack([x.mean((0, 2, 3)) for x in drawn])
        variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in drawn])
        torch.testing.assert_close(net[0].running_mean, means.mean(0))
        torch.testing.assert_close(net[0].running_var, variances.mean(0))


def test_statistics_always_come_from_the_same_noise(script):
    """Catches noise that goes on from wherever the generator is: a resumed run would have other statistics."""
    net, seen = nn.Sequential(nn.BatchNorm2d(2)), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        module(script).measure_statistics(net, lambda: seen.append(torch.rand(1)) or net(torch.randn(4, 2, 3, 3)))
    assert same(seen[:16], seen[16:]) and len({x.item() for x in seen}) == 16


def test_the_average_has_statistics_of_its_own(script, folder, tmp_path, monkeypatch):
    """Catches statistics of G in the checkpoint, in the grid, or measured before the last step, and draws of few images."""
    m, draws, sizes, conditions = module(script), [], [], []
    measure = m.measure_statistics

    def spy(G_ema, draw):
        draws.append(draw)
        G_ema.register_forward_pre_hook(lambda net, inputs: conditions.extend(x for x in inputs[1:] if net.training))
        measure(G_ema, lambda: sizes.append(len(draw())))

    monkeypatch.setattr(m, "measure_statistics", spy)
    state = run(script, folder, tmp_path / "a", "--steps", "4", "--lr-g", "0.1", "--save-every", "2")
    assert set(sizes) == {64} and len(sizes) == 16 * 2  # at steps 2 and 4
    for c in conditions:  # in each batch, all of six labels or eight categories
        assert len(c[:, :8].round().unique(dim=0)) == (8 if script == "infogan" else 6)
    saved = torch.load(tmp_path / "a/last.pt", weights_only=True)["state"]["G_ema"]
    assert same(dict(saved), dict(state["G_ema"].state_dict()))

    # as of 1,024 other images of the same kind
    G_ema = state["G_ema"]
    found = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in norms(G_ema)]
    torch.manual_seed(1)
    monkeypatch.setattr(torch, "manual_seed", lambda seed: None)
    measure(G_ema, draws[-1])
    for (mean, var), layer, of_G in zip(found, norms(G_ema), norms(state["G"]), strict=True):
        assert not torch.equal(mean, layer.running_mean)
        assert ((mean - layer.running_mean).abs() < 0.15 * layer.running_var.sqrt()).all()
        assert ((var / layer.running_var - 1).abs() < 0.3).all()
        assert ((of_G.running_var / var - 1).abs() > 0.05).any()  # not those of G
