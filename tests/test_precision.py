"""bfloat16: where it is chosen, what stays float32 under it, and runs that change between the two."""

import json

import pytest
import torch
from conftest import ALL, HEADS, SPECTRAL, also, condition, module, run, same, same_state, settings
from test_training import refused

CPUS = {
    "with AMX": ({"amx_bf16": True, "avx512_bf16": True}, True),
    "with AVX-512": ({"amx_bf16": False, "avx512_bf16": True}, True),
    "older": ({"amx_bf16": False, "avx512_bf16": False, "avx2": True}, False),
    "of another kind": ({"bf16": True, "neon": True}, False),  # not measured
}


@pytest.fixture
def cpu_with_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)


@pytest.mark.parametrize("cpu", CPUS)
def test_bfloat16_only_on_cpus_that_multiply_in_it(any_script, cpu, monkeypatch):
    """Catches bfloat16 on a CPU that has to emulate it, and --no-bf16 that does nothing."""
    found, native = CPUS[cpu]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    for flag in ("--bf16", "--no-bf16"):
        args = settings(any_script, flag)
        module(any_script).setup(args)
        assert args.autocast is (native and flag == "--bf16")


def test_a_torch_that_cannot_tell_stays_in_float32(any_script, monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    args = settings(any_script, "--bf16")
    module(any_script).setup(args)
    assert args.autocast is False


def networks(script: str):
    m, args = module(script), settings(script)
    torch.manual_seed(0)
    G, D, _ = m.build(args)
    return m, args, G, D


def out_of_D(script: str, D, args) -> torch.Tensor:
    """Scores, class logits and codes of eight images."""
    torch.manual_seed(1)
    x = torch.rand(8, 3, args.size, args.size) * 2 - 1
    if script == "cyclegan":
        return D["A"](x)
    out = D(x, *condition(script, 8, args)) if script == "cgan_text2img" else D(x)
    if script in HEADS:
        return torch.cat([out[0][:, None], out[1]], 1)
    return out[0] if script == "lightweight_gan" else out


def test_scores_are_not_rounded_to_bfloat16(any_script):
    """Catches a last layer in bfloat16: two scores that differ by a thousandth would be the same."""
    _, args, _, D = networks(any_script)
    with torch.autocast("cpu", torch.bfloat16):
        scores = out_of_D(any_script, D, args)
    assert scores.dtype == torch.float32 and scores.std() > 0
    exact = scores == scores.bfloat16().float()
    assert exact.float().mean() < 0.2  # some numbers are exact in bfloat16 by chance


@pytest.mark.parametrize("script", [*SPECTRAL, "lightweight_gan"])
def test_the_power_iteration_is_in_float32(script):
    """Catches sigma under autocast, which on CUDA multiplies matrix and vector in bfloat16."""
    _, args, _, D = networks(script)
    _, _, _, other = networks(script)
    inside = []
    layers = [layer for layer in D.modules() if "SNConv2d" in type(layer).__name__]
    for layer in layers:
        norm = layer.parametrizations.weight[0]
        norm.register_forward_pre_hook(lambda *_: inside.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        out_of_D(script, D, args)
        assert torch.is_autocast_enabled("cpu")  # only there
    out_of_D(script, other, args)
    assert len(inside) >= 3 and not any(inside)
    vectors = [{name: b for name, b in net.named_buffers() if name.endswith(("._u", "._v"))} for net in (D, other)]
    assert vectors[0] and same(*vectors)


def dtypes(value) -> set:
    """Of all tensors with fractions in a state_dict, however deep."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return set().union(*map(dtypes, value))
    return {value.dtype} if torch.is_tensor(value) and value.is_floating_point() else set()


def test_a_run_in_bfloat16(any_script, images, tmp_path, cpu_with_bfloat16, capsys):
    """Catches weights or averages in bfloat16, a resumed run that is another one, and a flag that does nothing."""
    flags = ["--bf16", "--save-every", "2"]
    whole = run(any_script, images, tmp_path / "a", *flags, "--steps", "4")
    assert "device: cpu, bfloat16\n" in capsys.readouterr().err
    assert json.loads((tmp_path / "a/args.json").read_text())["autocast"] is True
    run(any_script, images, tmp_path / "b", *flags, "--steps", "2")
    parts = run(any_script, images, tmp_path / "b", *flags, "--steps", "4", "--resume")
    assert "goes on in" not in capsys.readouterr().err
    assert same_state(whole, parts)
    assert all(dtypes(thing.state_dict()) <= {torch.float32} for name, thing in whole.items() if name != "data")

    exact = run(any_script, images, tmp_path / "c", "--steps", "4")
    assert "device: cpu, float32\n" in capsys.readouterr().err
    for name in ("G", "D"):
        a = torch.cat([p.detach().flatten() for p in whole[name].parameters()])
        b = torch.cat([p.detach().flatten() for p in exact[name].parameters()])
        assert not torch.equal(a, b) and (a - b).norm() < 0.1 * b.norm()


@pytest.mark.parametrize("before", ["--bf16", "--no-bf16"])
def test_a_run_may_change_between_the_two(any_script, images, tmp_path, cpu_with_bfloat16, capsys, before):
    """Catches a change of precision that nobody is told about; the flag of the checkpoint stays unless one is given."""
    run(any_script, images, tmp_path / "a", before, "--steps", "1")
    capsys.readouterr()
    after, trained = ("--no-bf16", "bfloat16") if before == "--bf16" else ("--bf16", "float32")
    m, resumed = module(any_script), ["--resume", "--out", str(tmp_path / "a"), "--device", "cpu"]
    m.main([*resumed, "--steps", "2", after])
    said = capsys.readouterr().err
    now = "bfloat16" if after == "--bf16" else "float32"
    assert f"last.pt was trained in {trained}, and goes on in {now}\n" in said
    saved = torch.load(tmp_path / "a/last.pt", weights_only=True)
    assert saved["step"] == 2 and saved["args"]["autocast"] is (after == "--bf16")
    m.main([*resumed, "--steps", "3"])
    assert "goes on in" not in capsys.readouterr().err
    assert torch.load(tmp_path / "a/last.pt", weights_only=True)["args"]["bf16"] is (after == "--bf16")


def test_averages_of_another_layout(any_script, images, tmp_path):
    """Catches fused Adam on averages in another order than the weights, as in checkpoints of a Mac's GPU: wrong without a word."""
    run(any_script, images, tmp_path, "--steps", "2")
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    for name in ("opt_G", "opt_D"):
        for averages in saved["state"][name]["state"].values():
            for key, value in averages.items():
                averages[key] = value.contiguous()
    torch.save(saved, tmp_path / "mps.pt")
    resumed = ["--resume", "--steps", "4"]
    again = run(any_script, images, tmp_path, *resumed, "--checkpoint", str(tmp_path / "mps.pt"))
    expected = run(any_script, images, tmp_path / "whole", "--steps", "4")
    for name in ("G", "D"):
        assert same(again[name].state_dict(), expected[name].state_dict())


def test_checkpoints_of_other_layers_are_refused(any_script, images, tmp_path, capsys):
    """Catches a traceback after the layers of a script were renamed."""
    run(any_script, images, tmp_path, "--steps", "1")
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    saved["state"]["D"] = {f"old.{name}": value for name, value in saved["state"]["D"].items()}
    torch.save(saved, tmp_path / "last.pt")
    with refused(capsys, 2, "last.pt has other layers in D", "start a new run"):
        run(any_script, images, tmp_path, "--steps", "2", "--resume")


@pytest.mark.parametrize("script", [script for script in ALL if script != "cyclegan"])
def test_losses_and_gradients_are_near_those_of_float32(script):
    """Catches a step that bfloat16 breaks: gradients after it point where those of float32 point."""
    found = []
    for autocast in (False, True):
        m, args, G, D = networks(script)
        args.autocast = autocast
        torch.manual_seed(2)
        x = torch.rand(args.batch, 3, args.size, args.size) * 2 - 1
        c = condition(script, args.batch, args)
        batch = (x, c[0][:, None]) if script == "cgan_text2img" else (x, c[0]) if script == "acgan" else x
        opt_G, opt_D = torch.optim.SGD(G.parameters(), 1e-5), torch.optim.SGD(D.parameters(), 1e-5)
        metrics = m.train_step(G, D, opt_G, opt_D, iter([batch] * 5), args, *also(script))
        gradients = [torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (G, D)]
        found.append((metrics, gradients))
    (metrics, exact), (near, rounded) = found
    for name, value in metrics.items():
        assert near[name].item() == pytest.approx(value.item(), rel=0.05, abs=0.02), name
    for a, b in zip(exact, rounded, strict=True):
        assert torch.cosine_similarity(a, b, 0) > 0.9 and 0.8 < b.norm() / a.norm() < 1.25
