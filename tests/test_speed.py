"""Slow: train_step against the usual way to write it, with the same networks and in turn; the ratios are printed."""

import itertools
import statistics
import time

import pytest
import torch
from conftest import module, settings
from torch.nn.functional import binary_cross_entropy


def usual_dcgan(m, G, D, opt_G, opt_D, data, args):
    """Sigmoid and BCE against vectors of labels; D collects gradients in G's step (pytorch/examples, dcgan/main.py)."""
    x_real, x_fake = next(data), G(m.noise(args.batch, args))
    ones, zeros = torch.ones(args.batch), torch.zeros(args.batch)
    opt_D.zero_grad()
    loss = binary_cross_entropy(D(x_real).sigmoid(), ones) + binary_cross_entropy(D(x_fake.detach()).sigmoid(), zeros)
    loss.backward()
    opt_D.step()
    opt_G.zero_grad()
    binary_cross_entropy(D(x_fake).sigmoid(), ones).backward()
    opt_G.step()


def usual_wgan_gp(m, G, D, opt_G, opt_D, data, args):
    """Fakes keep G's graph in the critic's steps; D collects gradients in G's (PyTorch-GAN, wgan_gp.py)."""
    for _ in range(args.n_critic):
        x_real, x_fake = next(data), G(m.noise(args.batch, args))
        opt_D.zero_grad()
        loss = D(x_fake).mean() - D(x_real).mean() + args.gp * m.gradient_penalty(D, x_real, x_fake.detach())
        loss.backward()
        opt_D.step()
    opt_G.zero_grad()
    (-D(G(m.noise(args.batch, args))).mean()).backward()
    opt_G.step()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "usual", "least", "runs"), [("dcgan", usual_dcgan, 1.05, 9), ("wgan_gp", usual_wgan_gp, 1.10, 5)]
)
def test_faster_than_the_usual_way(script, usual, least, runs):
    """Catches gradients that are computed and thrown away."""
    m, args = module(script), settings(script, "--size", "64", "--width", "32", "--batch", "64", "--z-dim", "100")
    torch.manual_seed(0)
    G = m.Generator(args).apply(m.init_weights).to(memory_format=torch.channels_last)
    D = m.Discriminator(args).apply(m.init_weights).to(memory_format=torch.channels_last)
    opt_G, opt_D = torch.optim.Adam(G.parameters(), 1e-4), torch.optim.Adam(D.parameters(), 1e-4)
    data = itertools.repeat(torch.rand(64, 3, 64, 64) * 2 - 1)
    ratios = []
    for run in range(runs + 1):
        began = time.process_time()
        m.train_step(G, D, opt_G, opt_D, data, args)
        ours = time.process_time() - began
        D.requires_grad_(True)
        began = time.process_time()
        usual(m, G, D, opt_G, opt_D, data, args)
        theirs = time.process_time() - began
        if run:  # the first warms up
            ratios.append(theirs / ours)
    print(
        f"\n{script}: the usual way takes {statistics.median(ratios):.2f} times as long ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    assert statistics.median(ratios) >= least
