"""On a CUDA GPU, against the CPU: pytest -m gpu -s. Skipped where there is none.

GAN_GPU_TESTS=cpu rehearses the suite without a GPU: the CPU takes the GPU's place, and what only CUDA has is skipped.
"""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from conftest import ALL, ROOT, also, condition, module, run, settings, tiny
from torch.overrides import TorchFunctionMode

import common

REHEARSAL = os.environ.get("GAN_GPU_TESTS") == "cpu"
DEVICE = "cpu" if REHEARSAL else "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (REHEARSAL or torch.cuda.is_available()), reason="there is no CUDA GPU"),
]
cuda_only = pytest.mark.skipif(REHEARSAL, reason="only CUDA has it")
DRAWS = (torch.rand, torch.randn, torch.randint, torch.randperm)


class DrawOnCPU(TorchFunctionMode):
    """The same random numbers on every device: drawn by the CPU's generator, then moved."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in DRAWS:
            device = kwargs.pop("device", "cpu")
            return function(*args, **kwargs).to(device)
        if function is torch.rand_like:
            return torch.rand(args[0].shape).to(args[0])
        if function in (torch.Tensor.normal_, torch.Tensor.uniform_):
            drawn = function(torch.empty(args[0].shape), *args[1:], **kwargs)
            return args[0].copy_(drawn)
        return function(*args, **kwargs)


@pytest.fixture(autouse=True)
def exact():
    """Float32 in earnest: without TF32, and with kernels that give the same result each time."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
    torch.use_deterministic_algorithms(False)
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")


def steps(script: str, device: str, count: int, autocast: bool = False):
    """Train for some steps by SGD, whose updates are those of the gradients.

    Returns the last metrics, and the updates of G and of D.
    """
    m, args = module(script), settings(script)
    args.device, args.autocast = device, autocast
    if script == "wgan":
        args.clip = 10.0  # clips nothing: the first clip would move D more than all gradients
    torch.manual_seed(0)
    G, D, _ = m.build(args)
    with torch.no_grad():
        for p in D.parameters():  # scores, slopes and penalties of some size
            p.mul_(1.5)
    before = [weights(net) for net in (G, D)]
    opt_G, opt_D = torch.optim.SGD(G.parameters(), 0.001), torch.optim.SGD(D.parameters(), 0.001)
    with DrawOnCPU():
        torch.manual_seed(1)
        if script == "cyclegan":
            pools = {side: m.Pool(args) for side in "AB"}
            data = [iter([torch.rand(2, 3, 27, 27).to(device) for _ in range(count)]) for _ in "AB"]
            batches = (data, pools)
        else:
            batches = (iter([batch(script, args) for _ in range(6 * count)]),)
        for _ in range(count):
            metrics = m.train_step(G, D, opt_G, opt_D, *batches, args, *also(script))
    values = {name: value.item() for name, value in metrics.items()}
    return values, [weights(net) - start for net, start in zip((G, D), before, strict=True)]


def weights(net) -> torch.Tensor:
    return torch.cat([p.detach().flatten().cpu() for p in net.parameters()])


def batch(script: str, args):
    """Images on the device, with labels where the script has some."""
    x = torch.rand(args.batch, 3, args.size, args.size).to(args.device) * 2 - 1
    c = [label.to(args.device) for label in condition(script, args.batch, args)]
    if script == "cgan_text2img":
        return x, c[0][:, None]
    return (x, c[0]) if script == "acgan" else x


def test_five_steps_in_float32_equal_those_of_the_cpu(any_script):
    """Catches tensors on the wrong device, and kernels of the GPU that compute something else."""
    expected, of_cpu = steps(any_script, "cpu", 5)
    found, of_gpu = steps(any_script, DEVICE, 5)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    for a, b in zip(of_cpu, of_gpu, strict=True):
        assert (a - b).norm() < 1e-2 * a.norm() and a.norm() > 0


def test_five_steps_in_bfloat16_are_near(any_script):
    """Catches a loss, a penalty or a norm that bfloat16 breaks: the first update points where that of float32 points."""
    if not (REHEARSAL or torch.cuda.is_bf16_supported(including_emulation=False)):
        pytest.skip("the GPU does not multiply in bfloat16, so that no script uses it there")
    for count, tolerance in ((1, 0.05), (5, 0.3)):
        expected, of_cpu = steps(any_script, "cpu", count)
        found, of_gpu = steps(any_script, DEVICE, count, autocast=True)
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=tolerance, abs=0.02), name
        if count == 1:
            for a, b in zip(of_cpu, of_gpu, strict=True):
                assert torch.cosine_similarity(a, b, 0) > 0.9


def test_all_is_channels_last(any_script, images, tmp_path):
    """Catches a layout that is lost: convolutions would convert at each call, and fused Adam needs the same everywhere."""
    state = run(any_script, images, tmp_path, "--steps", "2", "--device", DEVICE, "--bf16")
    for name, opt in (("G", "opt_G"), ("D", "opt_D"), ("G_ema", None)):
        for p in state[name].parameters():
            if p.dim() == 4 and min(p.shape[1:]) > 1:
                averages = state[opt].state[p].values() if opt else []
                for x in (p, *[x for x in (p.grad, *averages) if x is not None and x.dim() == 4]):
                    assert x.is_contiguous(memory_format=torch.channels_last)


def test_resume(any_script, images, tmp_path):
    """Catches a run that is resumed on a GPU with other noise, images or averages than without the break."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # reflection padding has such a kernel
    flags = ["--device", DEVICE, "--save-every", "2", "--lr-g", "1e-3"]
    whole = run(any_script, images, tmp_path / "a", *flags, "--steps", "4")
    run(any_script, images, tmp_path / "b", *flags, "--steps", "2")
    parts = run(any_script, images, tmp_path / "b", *flags, "--steps", "4", "--resume")
    assert parts["data"].position == whole["data"].position
    for name in ("G", "D", "G_ema"):
        assert {p.device.type for p in parts[name].parameters()} == {DEVICE}
        # some kernels add in another order each time, and Adam makes the most of small differences
        a, b = weights(whole[name]), weights(parts[name])
        assert (a - b).norm() < 1e-3 * a.norm()


def test_a_checkpoint_goes_to_the_gpu_and_back(any_script, images, tmp_path):
    """Catches optimizer states, pools or embeddings that stay where they were."""
    for step, device in enumerate(("cpu", DEVICE, "cpu"), 1):
        state = run(any_script, images, tmp_path, "--steps", str(step), "--device", device, *["--resume"] * (step > 1))
        assert next(state["G"].parameters()).device.type == device
        moments = [m for s in state["opt_G"].state.values() for m in s.values() if m.dim()]
        assert {m.device.type for m in moments} == {device}
        assert all(torch.isfinite(p).all() for p in state["G_ema"].parameters())


@cuda_only
def test_images_in_the_memory_of_the_gpu_and_outside(monkeypatch):
    """Catches batches that depend on where the images are."""
    import numpy as np

    args = settings("dcgan", "--flip")
    images = np.random.default_rng(0).integers(0, 256, (64, 3, 16, 16), dtype=np.uint8)
    found = {}
    for place, free in (("cuda", 1 << 40), ("cpu", 0)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_, free=free: (free, free))
        args.device = "cuda:0"
        data = common.Batches(images, args, 0, 1, np.arange(64), torch.arange(64))
        assert data.images.device.type == place
        found[place] = [next(data) for _ in range(12)]
    args.device = "cpu"
    data = common.Batches(images, args, 0, 1, np.arange(64), torch.arange(64))
    for near, far in zip(found["cuda"], found["cpu"], strict=True):
        expected = next(data)
        for a, b, c in zip(near, far, expected, strict=True):
            assert a.device.type == b.device.type == "cuda" and torch.equal(a, b)
            torch.testing.assert_close(a.cpu(), c)  # a GPU divides by 127.5 as it multiplies by 1 / 127.5


def test_samples(script, folder, tmp_path):
    """Catches noise, labels or captions of --sample that stay on the CPU."""
    run(script, folder, tmp_path, "--steps", "1", "--device", DEVICE)
    module(script).main(["--sample", "5", "--out", str(tmp_path), "--device", DEVICE])
    assert len(list((tmp_path / "generated").glob("*.png"))) == 5


@pytest.mark.parametrize("script", ["wgan_gp", "r3gan"])
def test_second_derivatives(script):
    """Catches a penalty whose gradient is another one on the GPU; r3gan.py's goes through an antialiased resize."""
    m, args = module(script), settings(script, "--size", "32")
    found = []
    for device in ("cpu", DEVICE):
        args.device = device
        torch.manual_seed(0)
        _, D, _ = m.build(args)
        if script == "r3gan":  # blocks start as the identity
            for p in D.parameters():
                p.data += 0.05 * torch.randn(p.shape).to(device)
        with DrawOnCPU():
            torch.manual_seed(1)
            x = torch.rand(8, 3, 32, 32).to(device)
            y = torch.rand(8, 3, 32, 32).to(device)
            if script == "r3gan":
                x.requires_grad_(True)
                penalty = m.zero_centered_penalty(x, D(x)).mean()
            else:
                penalty = m.gradient_penalty(D, x, y)
        penalty.backward()
        gradients = [p.grad.flatten().cpu() for p in D.parameters() if p.grad is not None]
        found.append((penalty.detach().cpu(), torch.cat(gradients)))
    (a, of_cpu), (b, of_gpu) = found
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert (of_cpu - of_gpu).norm() < 1e-3 * of_cpu.norm() and of_cpu.norm() > 0


@cuda_only
def test_nccl_in_one_process(tmp_path):
    """Catches an exchange of gradients that changes them: with one process, their average is what they were."""
    if not dist.is_nccl_available():
        pytest.skip("this torch has no NCCL")
    alone = steps("dcgan", "cuda", 3)[1]
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/join", rank=0, world_size=1)
    try:
        together = steps("dcgan", "cuda", 3)[1]
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(alone, together)


@cuda_only
@pytest.mark.parametrize("processes", [1, 2])
def test_torchrun(processes, folder, tmp_path):
    if torch.cuda.device_count() < processes:
        pytest.skip(f"there are fewer than {processes} GPUs")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    flags = [flag for flag in tiny("dcgan") if flag not in ("--device", "cpu")]
    command += [str(ROOT / "dcgan.py"), *flags, "--path", str(folder), "--out", str(tmp_path), "--steps", "12"]
    subprocess.run(command, check=True, timeout=300)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 12


@cuda_only
@pytest.mark.parametrize("free", [1 << 40, 0], ids=["images on the GPU", "images outside"])
@pytest.mark.parametrize("script", ALL)
def test_a_step_does_not_wait_for_the_gpu(script, free, folder, pair, tmp_path, monkeypatch):
    """Catches .item(), boolean masks and copies from memory that is not pinned, in a step that does not log.

    Only waits that torch itself detects.
    """
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free, free))
    m = module(script)
    step, ema = m.train_step, m.update_ema
    calls = []

    def watched(*args):
        calls.append(args)
        # errors at every wait from the third step on, when kernels are chosen and the memory is there
        torch.cuda.set_sync_debug_mode("error" if len(calls) > 2 else "default")
        return step(*args)

    def averaged(*args):
        ema(*args)
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(m, "train_step", watched)
    monkeypatch.setattr(m, "update_ema", averaged)
    images = pair if script == "cyclegan" else folder
    for flags in ([], ["--bf16"]):
        calls.clear()
        run(script, images, tmp_path / str(len(flags)), "--steps", "6", "--device", "cuda", "--flip", *flags)
        assert len(calls) == 6
