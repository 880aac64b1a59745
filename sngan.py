"""SNGAN - Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks", arXiv 1802.05957.

    min_D  E relu(1 - D(x)) + E relu(1 + D(G(z)))                   min_G  - E D(G(z))

What is specific to this file: every layer of D divides its weight matrix by its largest singular value, estimated by
one power iteration per forward pass in training; D needs no BatchNorm. The hinge loss (arXiv 1705.02894) and Adam's
betas are those of the authors' ResNet code.

Differs from the authors' ResNet code: D is updated once per update of G (theirs: five times; assets/experiments.md has
both). G and D are DCGAN's (theirs: residual; the paper's plain D has more layers, some of 3x3, and slopes of 0.1). G's
batch is as large as D's (twice as large), z is 100 long (128), and the learning rate does not decay. Samples come from
an exponential moving average of G's weights (arXiv 1710.10196).

As in that code, real images, generated images and G's step have one power iteration each (Algorithm 1: one per update).
As in the paper, a convolution is normalized as the matrix (c_out, c_in k k) of its weights; the convolution itself may
still have a larger norm.

    python sngan.py                                               # built-in faces, a few minutes on a CPU
    python sngan.py --path data/anime --size 64 --out runs/anime  # any folder of images
    torchrun --nproc-per-node=8 sngan.py --path data/anime --out runs/anime8

Result of the first command: 10,000 steps in 2.4 minutes on two CPU cores, torch 2.14.1; of 2,000 samples 87 % ± 1 can
be read as a face, with 124 ± 1 of the 132 combinations of hair and eyes (3 seeds: mean ± standard deviation; read by
faces.py).
"""

import argparse
import copy
import datetime
import itertools
import math
import os
import zlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import conv2d, relu
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

import common

# Without --path, these values replace the defaults: for a few minutes on a CPU.
PRESET = {
    "size": 32,
    "width": 32,
    "batch": 16,
    "steps": 10_000,
    "lr_g": 5e-4,
    "lr_d": 5e-4,
}
# Flags that change the networks: a checkpoint fits only the values that it was trained with.
ARCHITECTURE = ("size", "channels", "z_dim", "width", "act")


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog=f"Without --path, these values replace the defaults: {PRESET}. Flags that are given take precedence.",
        usage="%(prog)s [--path FOLDER] [flags]; --help lists the flags",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    group = parser.add_argument_group("method")
    group.add_argument(
        "--lr-g", type=common.between(0.0), default=2e-4, help="learning rate of G; too high and training diverges"
    )
    group.add_argument(
        "--lr-d", type=common.between(0.0), default=2e-4, help="learning rate of D; higher makes D stronger against G"
    )
    group.add_argument(
        "--beta1",
        type=common.between(0.0, 0.9999),
        default=0.0,
        help="Adam beta1 (decay of the gradient average); 0 is no momentum, high values can make a GAN unstable",
    )
    group.add_argument(
        "--beta2", type=common.between(0.0, 0.9999), default=0.9, help="Adam beta2 (decay of the squared gradients)"
    )
    group.add_argument(
        "--z-dim", type=common.between(1), default=100, help="length of the latent z; tiny values limit variety"
    )
    group.add_argument(
        "--noise", choices=("normal", "uniform"), default="normal", help="distribution of z: N(0, 1) or U(-1, 1)"
    )
    group.add_argument(
        "--width",
        type=common.between(1),
        default=64,
        help="channels at the highest resolution, doubled at each lower one; more gives finer images and slower steps",
    )
    group.add_argument("--act", choices=("relu", "lrelu"), default="relu", help="activation in G: ReLU or leaky ReLU")
    group.add_argument(
        "--ema",
        type=common.between(0.0, 1.0),
        default=0.999,
        help="decay of the moving average of G that samples come from; closer to 1 averages over more steps, 0 is off",
    )
    group.add_argument(
        "--n-critic",
        type=common.between(1),
        default=1,  # the authors' ResNet code: 5
        help="updates of D per update of G; more makes D more accurate and steps slower",
    )
    group = parser.add_argument_group("run")
    group.add_argument(
        "--steps", type=common.between(1), default=50_000, help="training steps, including those before --resume"
    )
    group.add_argument(
        "--batch", type=common.between(2), default=64, help="images per update, summed over all processes"
    )
    group.add_argument(
        "--seed",
        type=common.between(0, 2**32 - 1),
        default=0,
        help="seed of initial weights, noise and order of images; with --sample or --grid, of the noise",
    )
    group.add_argument("--device", default="auto", help="cpu, cuda, mps, ...; auto takes a GPU if there is one")
    group.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute in bfloat16 (autocast) on GPUs and CPUs that multiply in it: faster, and takes less memory",
    )
    common.add_data_flags(parser)
    common.add_output_flags(parser, __file__)
    return common.parse(parser, argv, __file__, PRESET, ARCHITECTURE)


def widths(args) -> list[int]:
    """Channels of the feature maps, from S/2 x S/2 pixels to the smallest (4 x 4 to 7 x 7, depending on --size).

    They double where the resolution halves, up to 8 times --width: --size 64 --width 64 gives [64, 128, 256, 512].
    """
    levels = int(math.log2(args.size / 4))
    return [args.width * min(2**level, 8) for level in range(levels)]


class Generator(nn.Module):
    """Latent z (N, z_dim) -> images (N, C, S, S) in [-1, 1]."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)[::-1]  # from the lowest resolution to the highest
        base = args.size >> len(w)  # the lowest resolution, 4 to 7; --size 64: 4 -> 8 -> 16 -> 32 -> 64
        act = nn.ReLU() if args.act == "relu" else nn.LeakyReLU(0.2)

        # (N, z_dim, 1, 1) -> (N, w[0], base, base)
        layers = [nn.ConvTranspose2d(args.z_dim, w[0], base, bias=False), nn.BatchNorm2d(w[0]), act]
        # (N, c_in, s, s) -> (N, c_out, 2s, 2s), up to (N, w[-1], S/2, S/2); kernel 4, stride 2, padding 1
        for c_in, c_out in itertools.pairwise(w):
            layers += [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), act]
        # (N, w[-1], S/2, S/2) -> (N, C, S, S) in [-1, 1]
        layers += [nn.ConvTranspose2d(w[-1], args.channels, 4, 2, 1), nn.Tanh()]
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z[:, :, None, None])


class SNConv2d(nn.Conv2d):
    """A convolution whose spectrally normalized weight is computed in float32, even under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight  # each access divides by sigma, in training after one more power iteration
        return conv2d(x, weight, self.bias, self.stride, self.padding)


def conv(*shape) -> nn.Module:
    """A convolution with spectral normalization.

    Initialized before it is wrapped: afterward, `weight` is computed at each access, and initializing it has no effect.
    """
    return spectral_norm(SNConv2d(*shape).apply(init_weights))


class Discriminator(nn.Module):
    """Images (N, C, S, S) in [-1, 1] -> scores (N,), float32."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)
        base = args.size >> len(w)

        # (N, C, S, S) -> (N, w[0], S/2, S/2)
        layers = [conv(args.channels, w[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        # (N, c_in, s, s) -> (N, c_out, s/2, s/2), down to (N, w[-1], base, base)
        for c_in, c_out in itertools.pairwise(w):
            layers += [conv(c_in, c_out, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers)
        # (N, w[-1], base, base) -> (N, 1, 1, 1)
        self.score = conv(w[-1], 1, base)

    def forward(self, x: Tensor) -> Tensor:
        x = self.net(x).float()
        # in float32, because bfloat16 would round away the difference between two large scores
        with torch.autocast(x.device.type, enabled=False):
            return self.score(x).flatten()


def init_weights(module: nn.Module):
    """Weights N(0, 0.02) (DCGAN, section 4); BatchNorm: gains N(1, 0.02), biases 0 (dcgan.torch); other biases 0."""
    if is_parametrized(module):
        return  # see conv()
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


def d_loss(real: Tensor, fake: Tensor) -> Tensor:
    return relu(1 - real).mean() + relu(1 + fake).mean()  # E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)))


def g_loss(fake: Tensor) -> Tensor:
    return -fake.mean()  # -E D(G(z))


def train_step(G, D, opt_G, opt_D, data, args) -> dict[str, Tensor]:
    """n_critic updates of D, each on a new batch of images and of noise, then one of G on new noise."""
    # (1) D: minimize E relu(1 - D(x)) + E relu(1 + D(G(z)))
    D.requires_grad_(True)
    for _ in range(args.n_critic):
        x_real = next(data)  # this process's share of a batch: (N, C, S, S) in [-1, 1]
        with autocast(args):
            with torch.no_grad():  # G is not updated here
                x_fake = G(noise(len(x_real), args))
            # each pass has a power iteration of its own (as in the authors' code; Algorithm 1: one per update)
            real = D(x_real)
            fake = D(x_fake)
            loss_D = d_loss(real, fake)
        step(opt_D, loss_D)

    # (2) G: minimize -E D(G(z))
    D.requires_grad_(False)  # no gradients for weights that are not updated
    with autocast(args):
        loss_G = g_loss(D(G(noise(len(x_real), args))))
    step(opt_G, loss_G)
    return {"loss_D": loss_D.detach(), "loss_G": loss_G.detach()}


# --- plumbing: the same text in every script (tests/test_siblings.py) ---


def noise(n: int, args) -> Tensor:
    """n latents z (n, z_dim), from N(0, 1) or U(-1, 1)."""
    z = torch.empty(n, args.z_dim, device=args.device)
    return z.normal_() if args.noise == "normal" else z.uniform_(-1, 1)


def autocast(args):
    """Run the networks in bfloat16 where setup() allows it; weights and losses stay float32.

    bfloat16 has the range of float32, so losses need no scaling.
    """
    return torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.autocast)


def step(opt: torch.optim.Optimizer, loss: Tensor):
    """One update of the parameters of `opt`, with gradients averaged over all processes.

    Averaged by hand, because DistributedDataParallel does it in hooks of backward(), which do not suit two networks
    that take turns (docs/speed.md).
    """
    opt.zero_grad()
    loss.backward()

    params = [p for group in opt.param_groups for p in group["params"]]
    # A parameter that the loss does not use gets a gradient of 0, so that one process trains like several.
    for p in params:
        if p.grad is None:
            p.grad = torch.zeros_like(p)

    if dist.is_initialized():
        # all gradients as one vector, because one all_reduce is faster than many
        flat = torch.cat([p.grad.flatten() for p in params])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for p, grad in zip(params, flat.split([p.numel() for p in params]), strict=True):
            p.grad.copy_(grad.view_as(p))
    opt.step()


@torch.no_grad()
def update_ema(G_ema: nn.Module, G: nn.Module, decay: float):
    """G_ema <- decay G_ema + (1 - decay) G; buffers (BatchNorm's running statistics) are copied."""
    for average, p in zip(G_ema.parameters(), G.parameters(), strict=True):
        average.lerp_(p, 1 - decay)
    for average, b in zip(G_ema.buffers(), G.buffers(), strict=True):
        average.copy_(b)


@torch.no_grad()
def measure_statistics(G_ema: nn.Module, draw):
    """Give BatchNorm in G_ema the statistics of 16 calls of `draw()`, which draws images, always from the same noise.

    update_ema() copies the statistics of G, but with the averaged weights, feature maps have other means and variances.
    """
    for module in G_ema.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean of all batches
    torch.manual_seed(zlib.crc32(b"statistics"))  # not the noise of any likely --seed
    G_ema.train()
    for _ in range(16):
        draw()
    G_ema.eval()


def setup(args) -> tuple[int, int]:
    """Choose the device and the precision, and join the processes that torchrun started.

    Sets args.device and args.autocast; returns (rank, number of processes), of all machines together.
    """
    rank = int(os.environ.get("RANK", 0))
    world = int(os.environ.get("WORLD_SIZE", 1))
    if args.batch % world:
        common.fail(f"--batch {args.batch} cannot be divided evenly among {world} processes: use a multiple of {world}")
    if world > 1 and ":" in args.device:
        common.fail(
            f"--device {args.device} is one device for {world} processes: use --device cuda, to give each its own"
        )

    if args.device == "auto":
        if torch.cuda.is_available():
            args.device = "cuda"
        elif torch.backends.mps.is_available() and world == 1:  # processes cannot exchange MPS tensors
            args.device = "mps"
        else:
            args.device = "cpu"
    if args.device == "cuda":
        args.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # one GPU for each process of this machine

    try:
        if "cuda" in args.device:
            torch.cuda.set_device(args.device)
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        reason = str(error).splitlines()[0]
        common.fail(f"--device {args.device} is not available on this machine ({reason}): choose another, such as cpu")

    torch.backends.cudnn.benchmark = True  # all batches have one shape: the fastest kernels are found once
    # bfloat16 only on GPUs and CPUs that multiply in it: on others it is slower than float32
    native = False
    if "cuda" in args.device:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif "cpu" in args.device and hasattr(torch.cpu, "get_capabilities"):  # not in older versions of torch
        found = torch.cpu.get_capabilities()
        native = found.get("amx_bf16", False) or found.get("avx512_bf16", False)
    args.autocast = args.bf16 and native
    if world > 1:
        backend = "nccl" if "cuda" in args.device else "gloo"  # gloo: for CPUs
        # a machine that already has its images waits for others that are still decoding theirs
        dist.init_process_group(backend, timeout=datetime.timedelta(hours=6))
    return rank, world


def resume(state: dict, args) -> int:
    """Load --checkpoint into everything in `state`, with --finetune only into the networks; returns the steps done."""
    saved = common.read_checkpoint(args.checkpoint, args.script)
    if saved["args"]["autocast"] != args.autocast:  # another --bf16, or another device
        before, now = ("bfloat16", "float32") if saved["args"]["autocast"] else ("float32", "bfloat16")
        common.print_line(f"{args.checkpoint} was trained in {before}, and goes on in {now}")
    for name, values in saved["state"].items():
        if args.finetune and not isinstance(state[name], nn.Module):
            continue  # optimizers and data begin anew
        if "param_groups" in values:
            # an optimizer: its moments are kept, but learning rates, betas and "fused" are those of this start
            values["param_groups"] = state[name].state_dict()["param_groups"]
        try:
            state[name].load_state_dict(values)
        except RuntimeError:
            common.fail(f"{args.checkpoint} has other layers in {name}, those of an older version: start a new run")
        if "param_groups" in values:
            # fused Adam reads the moments in the layout of the weights, which differs on a Mac's GPU: see build()
            for p, moments in state[name].state.items():
                for key, value in moments.items():
                    if value.shape == p.shape:
                        moments[key] = torch.empty_like(p).copy_(value)
    return 0 if args.finetune else saved["step"]


def build(args) -> tuple[nn.Module, nn.Module, nn.Module]:
    """G, D, and G_ema, the moving average of G, on the device."""
    # channels_last is the fastest layout for convolutions, but gives wrong gradients on MPS: pytorch#175189
    layout = torch.contiguous_format if "mps" in args.device else torch.channels_last
    G = Generator(args).apply(init_weights).to(args.device, memory_format=layout)
    D = Discriminator(args).apply(init_weights).to(args.device, memory_format=layout)
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    return G, D, G_ema


# --- sampling and training ---


def latents(args) -> Iterator[Tensor]:
    """Batches of z (n, z_dim): those of --walk or, in turn and without end, those of --seeds or of --sample."""
    if args.walk:
        # a circle around 0 through two draws of N(0, I): each of its points is distributed like such a draw
        start, quarter = torch.randn(2, args.z_dim, device=args.device)
        angle = torch.arange(args.walk, device=args.device)[:, None] * (2 * math.pi / args.walk)
        z = angle.cos() * start + angle.sin() * quarter
        if args.noise == "uniform":
            z = torch.erf(z / math.sqrt(2))  # N(0, 1) becomes U(-1, 1)
        yield from z.split(args.batch)
        return

    while True:
        if args.seeds:
            for seed in args.seeds:
                torch.manual_seed(seed)
                yield noise(1, args)
        else:
            yield noise(args.batch, args)


def sample(G_ema: nn.Module, args):
    """Write the images of --sample, --seeds or --walk, drawn by the moving average of the checkpoint."""
    saved = common.read_checkpoint(args.checkpoint, args.script)
    G_ema.load_state_dict(saved["state"]["G_ema"])
    G_ema.train(args.sample_mode == "batch")  # in training mode BatchNorm uses the statistics of the batch
    torch.manual_seed(args.seed)
    z = latents(args)
    common.write_samples(args, lambda: G_ema(next(z)))


def main(argv=None) -> dict:
    args = parse_args(argv)
    rank, world = setup(args)
    torch.manual_seed(args.seed)  # the same initial weights on all ranks
    G, D, G_ema = build(args)
    if args.sample:
        sample(G_ema, args)
        return {"G_ema": G_ema}

    opt_G = torch.optim.Adam(G.parameters(), args.lr_g, (args.beta1, args.beta2), fused=True)
    opt_D = torch.optim.Adam(D.parameters(), args.lr_d, (args.beta1, args.beta2), fused=True)
    images, _ = common.load_images(args)
    data = common.Batches(images, args, rank, world)
    state = {"G": G, "D": D, "G_ema": G_ema, "opt_G": opt_G, "opt_D": opt_D, "data": data}
    start = resume(state, args) if args.checkpoint else 0

    fixed_z = noise(common.GRID, args)

    def draw_grid() -> Tensor:
        return G_ema(fixed_z)

    if args.grid:
        common.write_grid(args, draw_grid)
        return state

    with common.Run(args, data, start, draw_grid, rank) as run:
        run.save(state)  # the start: an --out that cannot be written to is noticed now
        for i in run.steps():
            # A seed for each step and rank, so that a resumed run draws the same noise. They are hashed, because
            # torch's CPU generator uses only 32 bits of a seed, and a sum would repeat the noise of other ranks.
            torch.manual_seed(zlib.crc32(f"{args.seed} {i} {rank}".encode()))
            metrics = train_step(G, D, opt_G, opt_D, data, args)

            # warm-up: at first the average spans about a tenth of the steps so far, to forget the random start
            decay = min(args.ema, (1 + i) / (10 + i))
            update_ema(G_ema, G, decay)
            run.log(metrics)
            if run.due():  # every --save-every steps, at the end, and after Ctrl-C
                measure_statistics(G_ema, lambda: G_ema(noise(common.GRID, args)))
                run.save(state)

    if world > 1:
        dist.destroy_process_group()
    return state


if __name__ == "__main__":
    main()
