"""Speed: assets/speed.py, and the operations of train_step against those of the usual way to write it."""

import importlib.util

import pytest
import torch
from conftest import ALL, RMSPROP, ROOT, also, condition, settings, tiny
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class CountFlops(TorchDispatchMode):
    """Adds up the floating point operations of convolutions and matrix products, also of backward passes."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        return out


def speed():
    spec = importlib.util.spec_from_file_location("speed", ROOT / "assets/speed.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def one_step(script: str, usual: bool) -> torch.Tensor:
    """All weights after a step with SGD."""
    m, args = speed().load(script, usual), settings(script)
    torch.manual_seed(0)
    G, D, _ = m.build(args)
    opt_G, opt_D = torch.optim.SGD(G.parameters(), 0.01), torch.optim.SGD(D.parameters(), 0.01)
    torch.manual_seed(1)
    x = torch.rand(args.batch, 3, args.size, args.size) * 2 - 1
    c = condition(script, args.batch, args)
    batch = (x, c[0][:, None]) if script == "cgan_text2img" else (x, c[0]) if script == "acgan" else x
    m.train_step(G, D, opt_G, opt_D, iter([batch] * 5), args, *also(script))
    return torch.cat([p.detach().flatten() for net in (G, D) for p in net.parameters()])


def test_the_usual_way_trains_the_same(script):
    """Catches a comparison with another method: the usual way is slower, but its weights are the same."""
    torch.testing.assert_close(one_step(script, usual=True), one_step(script, usual=False))


def test_the_usual_way_computes_more(script):
    """Catches gradients that are computed and thrown away. Operations are counted, because times differ by machine."""
    with CountFlops() as ours:
        one_step(script, usual=False)
    with CountFlops() as usual:
        one_step(script, usual=True)
    assert usual.flops > 1.15 * ours.flops


def test_each_line_of_the_usual_way_is_in_a_script():
    """Catches a comparison that compares a script with itself, because a line of it was rewritten."""
    m = speed()
    texts = {script: (ROOT / f"{script}.py").read_text(encoding="utf-8") for script in ALL}
    for ours in m.USUAL:
        assert any(ours in text for text in texts.values()), ours
    for script, text in texts.items():
        assert "D.requires_grad_(False)" in text and "loss.backward()" in text
        assert script in RMSPROP or "fused=True" in text
        without_G = "with torch.no_grad():  # G is" in text or "(x_fake.detach()" in text
        assert script in ("r3gan", "cyclegan") or without_G, f"write D(x_fake.detach()) in {script}.py: CONTRIBUTING.md"
    assert set(m.SCRIPTS) == set(ALL)


def test_a_measurement(folder):
    flags = [*tiny("dcgan"), "--path", str(folder)]
    milliseconds, images, memory, ratio = speed().cells("dcgan", flags, seconds=0.02, turns=2)
    assert float(images.replace(",", "")) == pytest.approx(8000 / float(milliseconds), rel=0.02)
    assert 0.1 < float(memory.removesuffix(" GB")) < 20 and 0.2 < float(ratio) < 5
