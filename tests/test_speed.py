"""Speed: assets/speed.py, and (slow) train_step against the usual way to write it, in turn; the ratios are printed."""

import importlib.util
import itertools
import statistics
import time

import pytest
import torch
from conftest import ALL, ROOT, also, condition, module, settings, tiny
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


def speed():
    spec = importlib.util.spec_from_file_location("speed", ROOT / "assets/speed.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_usual_way_trains_the_same(script):
    """Catches a comparison with another method: the usual way is slower, but its weights are the same."""
    trained = []
    for usual in (False, True):
        m, args = speed().load(script, usual), settings(script)
        torch.manual_seed(0)
        G, D, _ = m.build(args)
        opt_G, opt_D = torch.optim.SGD(G.parameters(), 0.01), torch.optim.SGD(D.parameters(), 0.01)
        torch.manual_seed(1)
        x = torch.rand(args.batch, 3, args.size, args.size) * 2 - 1
        c = condition(script, args.batch, args)
        batch = (x, c[0][:, None]) if script == "cgan_text2img" else (x, c[0]) if script == "acgan" else x
        m.train_step(G, D, opt_G, opt_D, iter([batch] * 5), args, *also(script))
        trained.append(torch.cat([p.detach().flatten() for net in (G, D) for p in net.parameters()]))
    torch.testing.assert_close(*trained)


def test_each_line_of_the_usual_way_is_in_a_script():
    """Catches a comparison that compares a script with itself, because a line of it was rewritten."""
    m = speed()
    texts = {script: (ROOT / f"{script}.py").read_text(encoding="utf-8") for script in ALL}
    for ours in m.USUAL:
        assert any(ours in text for text in texts.values()), ours
    for script, text in texts.items():
        assert "D.requires_grad_(False)" in text and "loss.backward()" in text
        assert script == "wgan" or "fused=True" in text
        assert script in ("r3gan", "cyclegan") or "with torch.no_grad():  # G is" in text or "(x_fake.detach()" in text
    assert set(m.SCRIPTS) == set(ALL)


def test_a_measurement(folder):
    flags = [*tiny("dcgan"), "--path", str(folder)]
    milliseconds, images, memory, ratio = speed().cells("dcgan", flags, seconds=0.02, turns=2)
    assert float(images.replace(",", "")) == pytest.approx(8000 / float(milliseconds), rel=0.02)
    assert 0.1 < float(memory.removesuffix(" GB")) < 20 and 0.2 < float(ratio) < 5
