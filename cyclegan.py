"""CycleGAN - Zhu, Park, Isola, Efros 2017, arXiv 1703.10593.

"Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks"

    min_G  E (D_B(G_AB(a)) - 1)^2 + E (D_A(G_BA(b)) - 1)^2 + 10 (E |G_BA(G_AB(a)) - a| + E |G_AB(G_BA(b)) - b|)
           + 5 (E |G_AB(b) - b| + E |G_BA(a) - a|)
    min_D  (E (D_B(b) - 1)^2 + E D_B(G_AB(a))^2) / 2, and the same for D_A

What is specific to this file: two folders of images without pairs, one generator for each direction, and a loss for
images that do not come back unchanged when they are translated there and back. D scores overlapping patches of 70 x 70
pixels, and is also shown older generated images.

The generator's layers have the names and the order of the authors' PyTorch code, so that their published weights load
(--weights). The identity loss is on, as in that code (paper: for paintings only). What differs from that code: the
schedule of the learning rates is given in steps, 100,000 and 100,000 (authors: 100 and 100 epochs, of 1,334 steps on
horse2zebra), and ends at 0; images are cropped to the central square (authors: squeezed), and those of B come in
shuffled order (authors: drawn with replacement); grids and --translate use an exponential moving average of the
generators' weights (arXiv 1710.10196).

    python cyclegan.py                                             # black-haired to blonde faces, minutes on a CPU
    python cyclegan.py --path data/horse2zebra                     # trainA trainB, and testA testB if there are any
    python cyclegan.py --translate photos --out zebras             # images of any size; model: runs/cyclegan/last.pt
    python cyclegan.py --translate photos --out zebras --weights latest_net_G.pth

Result of the first command: 4,400 steps in 3.4 minutes on two CPU cores, torch 2.14.1; of 500 other black-haired faces
100 % are read as blonde afterward, 96 % keep the color of their eyes, 93 % their glasses, 100 % their skin (one seed).
"""

import argparse
import copy
import datetime
import functools
import os
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import l1_loss, pad, softplus
from torchvision.transforms.functional import InterpolationMode, resize, to_pil_image
from tqdm import tqdm

import common

# Without --path, these values replace the defaults: for a few minutes on a CPU.
PRESET = {
    "size": 32,
    "width": 32,
    "blocks": 1,
    "batch": 2,
    "lr_g": 2e-3,
    "lr_d": 4e-4,
    "save_every": 500,
    "steps": 4400,
    "constant": 2200,
    "decay": 2200,
}
# Flags that change the networks: a checkpoint fits only the values that it was trained with.
ARCHITECTURE = ("channels", "width", "blocks")
# Formats that translations can be written in, by suffix; as Pillow names them.
FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}


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
        default=0.5,
        help="Adam beta1 (decay of the gradient average); 0.9, Adam's usual value, can make a GAN collapse",
    )
    group.add_argument(
        "--beta2", type=common.between(0.0, 0.9999), default=0.999, help="Adam beta2 (decay of the squared gradients)"
    )
    group.add_argument(
        "--width",
        type=common.between(1),
        default=64,
        help="channels of the largest feature map of G and D; more gives finer images and slower steps",
    )
    group.add_argument(
        "--blocks",
        type=common.between(0),
        default=0,
        help="residual blocks of G; 0 means 9 if --size is at least 256, and 6 below",
    )
    group.add_argument(
        "--gan-mode",
        choices=("lsgan", "bce"),
        default="lsgan",
        help="adversarial loss: least squares (lsgan) or binary cross-entropy (bce)",
    )
    group.add_argument("--cycle", type=common.between(0.0), default=10.0, help="weight of the cycle-consistency loss")
    group.add_argument(
        "--identity",
        type=common.between(0.0),
        default=0.5,
        help="weight of the identity loss, relative to --cycle",
    )
    group.add_argument(
        "--pool",
        type=common.between(0),
        default=50,
        help="generated images of each domain that are kept, to be shown to D later instead of new ones; 0 is off",
    )
    group.add_argument(
        "--constant", type=common.between(0), default=100_000, help="steps at the full learning rates, at the start"
    )
    group.add_argument(
        "--decay",
        type=common.between(1),
        default=100_000,
        help="steps after --constant in which the learning rates fall linearly to 0",
    )
    group.add_argument(
        "--load-size",
        type=common.between(0),
        default=0,
        help="resize images to this before random cropping to --size (default: %(default)s, meaning size * 286 / 256)",
    )
    group.add_argument(
        "--ema",
        type=common.between(0.0, 1.0),
        default=0.999,
        help="decay of the moving average of G that samples come from; closer to 1 averages over more steps, 0 is off",
    )
    group = parser.add_argument_group("run")
    group.add_argument(
        "--steps", type=common.between(1), default=200_000, help="training steps, including those before --resume"
    )
    group.add_argument(
        "--batch",
        type=common.between(1),
        default=1,
        help="images per update from each domain, summed over all processes",
    )
    group.add_argument(
        "--seed",
        type=common.between(0, 2**32 - 1),
        default=0,
        help="seed of the initial weights, the crops and the order of the images; with --sample, of crops and order",
    )
    group.add_argument("--device", default="auto", help="cpu, cuda, mps, ...; auto takes a GPU if there is one")
    group.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute in bfloat16 (autocast) on GPUs and CPUs that multiply in it: faster, and takes less memory",
    )
    common.add_data_flags(parser, path="folder that holds trainA and trainB, and optionally testA and testB")
    common.add_output_flags(parser, __file__, batchnorm=False, latent=False)
    group = parser.add_argument_group("translation")
    group.add_argument(
        "--translate",
        type=common.file_name,
        metavar="FOLDER",
        help="translate the images of this folder from A to B and write them to --out, instead of training",
    )
    group.add_argument("--reverse", action="store_true", help="with --translate, translate from B to A")
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="with --translate, the generator: a file of pytorch-CycleGAN-and-pix2pix, such as latest_net_G.pth",
    )
    parser.set_defaults(size=256, flip=True, save_every=5000)

    asked = parser.parse_args(argv)
    if asked.weights and asked.reverse:
        parser.error("--weights and --reverse cannot be combined: the file holds one direction; leave out --reverse")
    if asked.weights and not asked.translate:
        parser.error("--weights needs --translate: name a folder of images to translate")
    if asked.reverse and not asked.translate:
        parser.error("--reverse needs --translate: name a folder of images to translate from B to A")

    if asked.translate and (asked.resume or asked.finetune or asked.sample or asked.grid):
        parser.error("--translate cannot be combined with --resume, --finetune, --sample or --grid: leave them out")

    if asked.weights:
        args = asked  # no checkpoint, and no run that could be overwritten
    else:
        if asked.translate:
            # as with --sample, flags come from a checkpoint: that of the run in --out, or else in the default folder
            run = asked.out if os.path.exists(f"{asked.out}/last.pt") else parser.get_default("out")
            parser.set_defaults(sample=1, checkpoint=f"{run}/last.pt")
        args = common.parse(parser, argv, __file__, PRESET, ARCHITECTURE)
    if args.blocks == 0:
        args.blocks = 9 if args.size >= 256 else 6  # section 7.2

    # --translate takes images of any size
    if not args.translate and args.size < 24:
        parser.error(f"--size {args.size} is too small for D: choose at least 24")
    if not args.translate and 0 < args.load_size < args.size:
        parser.error(
            f"--size {args.size} is larger than --load-size {args.load_size}, from which images are cropped: "
            f"lower --size or raise --load-size"
        )
    if args.steps > args.constant + args.decay:
        parser.error(
            f"--steps {args.steps} is more than --constant {args.constant} and --decay {args.decay} together, after "
            f"which the learning rates are 0: raise one of them or lower --steps"
        )
    return args


class Block(nn.Module):
    """(N, C, H, W) -> (N, C, H, W): x + two convolutions."""

    def __init__(self, c: int):
        super().__init__()
        layers = [nn.ReflectionPad2d(1), nn.Conv2d(c, c, 3), nn.InstanceNorm2d(c), nn.ReLU()]
        layers += [nn.ReflectionPad2d(1), nn.Conv2d(c, c, 3), nn.InstanceNorm2d(c)]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class Generator(nn.Module):
    """Images (N, C, H, W) in [-1, 1] -> (N, C, H, W) in [-1, 1]; layers have the names of the authors' code."""

    def __init__(self, args):
        super().__init__()
        w = args.width

        # (N, C, H, W) -> (N, w, H, W)
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(args.channels, w, 7), nn.InstanceNorm2d(w), nn.ReLU()]
        # (N, w, H, W) -> (N, 2w, H/2, W/2) -> (N, 4w, H/4, W/4)
        for c in (w, 2 * w):
            layers += [nn.Conv2d(c, 2 * c, 3, 2, 1), nn.InstanceNorm2d(2 * c), nn.ReLU()]
        layers += [Block(4 * w) for _ in range(args.blocks)]
        # back to (N, w, H, W)
        for c in (4 * w, 2 * w):
            layers += [nn.ConvTranspose2d(c, c // 2, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(c // 2), nn.ReLU()]
        # (N, w, H, W) -> (N, C, H, W) in [-1, 1]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(w, args.channels, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        # H and W are padded to multiples of 4, because they are halved and doubled twice
        h, w = x.shape[2:]
        padded = pad(x, (0, -w % 4, 0, -h % 4), mode="replicate")
        return self.model(padded)[:, :, :h, :w]


class Discriminator(nn.Module):
    """Images (N, C, H, W) in [-1, 1] -> scores (N, patches) of overlapping patches of 70 x 70 pixels, float32."""

    def __init__(self, args):
        super().__init__()
        w = args.width

        # (N, C, H, W) -> (N, w, H/2, W/2)
        layers = [nn.Conv2d(args.channels, w, 4, 2, 1), nn.LeakyReLU(0.2)]
        # -> (N, 2w, H/4, W/4) -> (N, 4w, H/8, W/8) -> (N, 8w, H/8 - 1, W/8 - 1)
        for c, stride in ((w, 2), (2 * w, 2), (4 * w, 1)):
            layers += [nn.Conv2d(c, 2 * c, 4, stride, 1), nn.InstanceNorm2d(2 * c), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers)
        # -> (N, 1, H/8 - 2, W/8 - 2)
        self.score = nn.Conv2d(8 * w, 1, 4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.net(x).float()
        # in float32, because bfloat16 would round away the difference between two large scores
        with torch.autocast(x.device.type, enabled=False):
            return self.score(x).flatten(1)


def init_weights(module: nn.Module):
    """Weights N(0, 0.02), biases 0 (section 7.1 and the authors' code)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        nn.init.zeros_(module.bias)


def d_loss(real: Tensor, fake: Tensor, mode: str = "lsgan") -> Tensor:
    """Halved (section 7.1), to slow D down: with Adam, which divides by the size of the gradients, without effect."""
    if mode == "lsgan":
        return (((real - 1) ** 2).mean() + (fake**2).mean()) / 2
    return (softplus(-real).mean() + softplus(fake).mean()) / 2  # -E log sigmoid(real) - E log(1 - sigmoid(fake))


def g_loss(fake: Tensor, mode: str = "lsgan") -> Tensor:
    if mode == "lsgan":
        return ((fake - 1) ** 2).mean()
    return softplus(-fake).mean()  # -E log sigmoid(fake)


class Pool:
    """Up to --pool earlier generated images, for D (Shrivastava et al. 2017).

    D is shown each new image or, half of the time, an older one. All processes have the same pool: the new images of
    all of them go into it, and each process gets its share of what is shown. The pools of A and B toss the same coins
    (authors: their own).
    """

    def __init__(self, args):
        self.size = args.pool
        self.seed = args.seed
        self.seen = 0  # images that have come so far
        self.images = torch.empty(0)  # at most `size` of them: (n, C, H, W)

    def state_dict(self) -> dict:
        return {"images": self.images, "seen": self.seen}

    def load_state_dict(self, state: dict):
        self.images = state["images"]
        self.seen = state["seen"]

    def query(self, x: Tensor) -> Tensor:
        """New images (N, C, H, W) -> the N images to show, without graph; an older one leaves when it is shown."""
        x = x.detach().float().contiguous()
        world = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if dist.is_initialized() else 0
        if world > 1:
            mine = x
            x = mine.new_empty(world * len(mine), *mine.shape[1:])
            dist.all_gather_into_tensor(x, mine)

        fits = self.images.shape[1:] == x.shape[1:]  # not at first, nor after a change of --size
        self.images = self.images.to(x.device) if fits else x[:0]
        # by a seed of their own, so that the coins do not depend on what else is drawn, and go on after --resume
        coins = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {self.seen}".encode()))
        self.seen += len(x)

        shown = []
        for image in x:
            k = int(torch.randint(max(1, self.size), (), generator=coins))
            if len(self.images) < self.size:
                # not full yet: the new image is kept and shown
                self.images = torch.cat([self.images, image[None]])
            elif self.size and torch.rand((), generator=coins) < 0.5:
                # the new image takes the place of an older one, which is shown
                older = self.images[k].clone()
                self.images[k] = image
                image = older
            shown.append(image)
        return torch.stack(shown).chunk(world)[rank]


def random_crop(x: Tensor, size: int) -> Tensor:
    """(N, C, L, L) -> (N, C, size, size): a random crop of each image."""
    corners = torch.randint(x.shape[2] - size + 1, (len(x), 2)).tolist()
    crops = []
    for image, (i, j) in zip(x, corners, strict=True):
        crops.append(image[:, i : i + size, j : j + size])
    return torch.stack(crops)


def lr_factor(step: int, args) -> float:
    """Factor of the learning rates: 1 for --constant steps, then linearly to 0 over --decay steps."""
    decayed = max(0, step - args.constant) / args.decay
    return 1 - min(1.0, decayed)


def train_step(G, D, opt_G, opt_D, data, pools, args) -> dict[str, Tensor]:
    """One update of both generators, then one of both discriminators on images of the pools; `data` is A's and B's."""
    # (1) G: minimize E (D_B(G_AB(a)) - 1)^2 + cycle * (E |G_BA(G_AB(a)) - a| + identity * E |G_AB(b) - b|),
    # and the same with A and B swapped
    a, b = (random_crop(next(batches), args.size) for batches in data)
    G_AB, G_BA, D_A, D_B = G["AB"], G["BA"], D["A"], D["B"]
    D.requires_grad_(False)  # no gradients for weights that are not updated
    with autocast(args):
        # one pass for two terms of the loss: InstanceNorm normalizes each image on its own
        fake_b, same_b = G_AB(torch.cat([a, b])).chunk(2)
        fake_a, same_a = G_BA(torch.cat([b, a])).chunk(2)
        adversarial = g_loss(D_A(fake_a), args.gan_mode) + g_loss(D_B(fake_b), args.gan_mode)
        cycle = l1_loss(G_BA(fake_b), a) + l1_loss(G_AB(fake_a), b)
        identity = l1_loss(same_a, a) + l1_loss(same_b, b)  # in the log even if its weight is 0
        loss_G = adversarial + args.cycle * (cycle + args.identity * identity)
    step(opt_G, loss_G)

    # (2) D: minimize (E (D_B(b) - 1)^2 + E D_B(G_AB(a))^2) / 2, and the same for D_A
    D.requires_grad_(True)
    pooled_a = pools["A"].query(fake_a)  # new or older images, without gradients for G
    pooled_b = pools["B"].query(fake_b)
    with autocast(args):
        scores_a = D_A(torch.cat([a, pooled_a]))
        scores_b = D_B(torch.cat([b, pooled_b]))
        loss_D = d_loss(*scores_a.chunk(2), args.gan_mode) + d_loss(*scores_b.chunk(2), args.gan_mode)
    step(opt_D, loss_D)
    metrics = {"loss_D": loss_D, "loss_G": loss_G, "adversarial": adversarial, "cycle": cycle, "identity": identity}
    return {name: value.detach() for name, value in metrics.items()}


# --- plumbing: the same text in every script (tests/test_siblings.py) ---


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


# --- sampling and training ---


def build(args) -> tuple[nn.ModuleDict, nn.ModuleDict, nn.ModuleDict]:
    """G (AB and BA), D (A and B), and G_ema, the moving average of G, on the device."""
    # channels_last is the fastest layout for convolutions, but gives wrong gradients on MPS: pytorch#175189
    layout = torch.contiguous_format if "mps" in args.device else torch.channels_last
    G = nn.ModuleDict({"AB": Generator(args), "BA": Generator(args)})
    G.apply(init_weights).to(args.device, memory_format=layout)
    D = nn.ModuleDict({"A": Discriminator(args), "B": Discriminator(args)})
    D.apply(init_weights).to(args.device, memory_format=layout)
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    return G, D, G_ema


def domain(args, side: str, rank: int, world: int) -> tuple[common.Batches, Tensor]:
    """Domain A or B: endless batches (n, C, L, L), L: --load-size, and 8 images (8, C, S, S) for the sample grids."""
    # The flags for this domain. The seeds differ, because with the same seed two folders of as many images would have
    # one order, and image i of A would always come with image i of B.
    mine = argparse.Namespace(**vars(args))
    mine.size = args.load_size or args.size * 286 // 256
    mine.seed = 2 * args.seed + (side == "B")
    if args.path is not None:
        common.need_folder(args.path)
        for name in ("trainA", "trainB"):  # both, before the images of A are decoded
            if not os.path.isdir(f"{args.path}/{name}"):
                there = common.some_of(sorted(os.listdir(args.path)), 5) or "nothing"
                common.fail(f"--path {args.path} must hold trainA and trainB: it has no {name}, only {there}")
        mine.path = f"{args.path}/train{side}"

    images, names = common.load_images(mine)
    rows = np.arange(len(images))
    if args.path is None:
        hair = {"A": "black", "B": "blonde"}[side]
        rows = np.array([i for i, name in enumerate(names) if common.face_attributes(name)["hair"] == hair])
    fixed = grid_images(args, side, images, rows)
    return common.Batches(images, mine, rank, world, rows), fixed


def grid_images(args, side: str, images: np.ndarray, rows: np.ndarray) -> Tensor:
    """8 images (8, C, S, S) of testA or testB, or else central crops of the training images; repeated if too few."""
    test = f"{args.path}/test{side}"
    names = []
    if args.path is not None and os.path.isdir(test):
        names, left_out = common.find_images(test, args.out)
        if not names:
            common.print_left_out(left_out)
    if names:
        chosen, _ = common.load_images(argparse.Namespace(**vars(args) | {"path": test, "batch": 1}))
    else:
        edge = (images.shape[2] - args.size) // 2
        chosen = images[rows[:8], :, edge : edge + args.size, edge : edge + args.size]
    eight = np.arange(8) % len(chosen)
    return common.normalize(torch.from_numpy(chosen[eight])).to(args.device)


def grid(G_ema: nn.ModuleDict, a: Tensor, b: Tensor) -> Tensor:
    """Rows of 8 images: a, its translation, and that translated back; then the same for b."""
    fake_b = G_ema["AB"](a)
    fake_a = G_ema["BA"](b)
    return torch.cat([a, fake_b, G_ema["BA"](fake_b), b, fake_a, G_ema["AB"](fake_a)])


def sample(G_ema: nn.ModuleDict, data_A: common.Batches, args):
    """Write --sample images of A, translated to B by the moving average of the checkpoint."""
    saved = common.read_checkpoint(args.checkpoint, args.script)
    G_ema.load_state_dict(saved["state"]["G_ema"])
    torch.manual_seed(args.seed)
    common.write_samples(args, lambda: G_ema["AB"](random_crop(next(data_A), args.size)))


@torch.no_grad()
def translate(args):
    """Write the images of --translate, translated, to --out; if that is a run's folder, to AtoB or BtoA in it."""
    G = authors_generator(args) if args.weights else trained_generator(args)
    G.to(args.device)
    torch.backends.cudnn.benchmark = False  # images have many shapes, and each would be searched for its kernels
    # results stay apart from the files of a run
    out = args.out
    if os.path.exists(f"{out}/last.pt") or out == "runs/cyclegan":
        out = f"{out}/{'BtoA' if args.reverse else 'AtoB'}"
    if common.is_main_process():
        with common.ends_with(f"what was translated so far is in {out}"):
            translate_folder(G, out, args)


def trained_generator(args) -> Generator:
    """G_AB, or with --reverse G_BA: the moving average of the checkpoint."""
    saved = common.read_checkpoint(args.checkpoint, args.script)
    G_ema = nn.ModuleDict({"AB": Generator(args), "BA": Generator(args)})
    G_ema.load_state_dict(saved["state"]["G_ema"])
    return G_ema["BA" if args.reverse else "AB"]


def authors_generator(args) -> Generator:
    """The generator of --weights, a file of the authors' project; its width, channels and blocks are read from it."""
    try:
        saved = torch.load(args.weights, map_location="cpu", weights_only=True)
        # files of before 2018 also hold running statistics, which are not used
        weights = {name: value for name, value in saved.items() if name.endswith(("weight", "bias"))}
        args.width, args.channels = weights["model.1.weight"].shape[:2]
        args.blocks = sum(name.endswith("conv_block.1.weight") for name in weights)
        G = Generator(args)
        G.load_state_dict(weights)
    except Exception as error:  # whatever the file holds instead, the user needs the same sentence
        common.fail(
            f"--weights {args.weights} holds no generator of pytorch-CycleGAN-and-pix2pix ({type(error).__name__}): "
            f"choose a file such as latest_net_G.pth"
        )
    return G


def translate_folder(G: Generator, out: str, args):
    """Write all images of --translate, translated, to `out`, under the same names and in the same formats.

    _sheet.png shows the first eight, each to the left of its translation. Files that cannot be read are skipped, and
    named.
    """
    common.need_folder(args.translate)
    names, left_out = common.find_images(args.translate, out)
    common.print_left_out(left_out)
    if not names:
        common.fail(f"--translate {args.translate} holds no image: looked for {common.IMAGES}")
    if Path(out).resolve() == Path(args.translate).resolve():
        common.fail(f"--translate {args.translate} is where the results would go: choose another folder with --out")
    # a later training leaves out the folders of results, with all that is in them
    here = [name for name in common.find_images(out, "")[0] if "/" not in name]
    foreign = sorted(set(here) - set(common.written(Path(out))))
    if foreign:
        common.fail(
            f"{out} holds other images, such as {foreign[0]!r}: choose another folder for the results with --out"
        )
    files = {name: output_name(name) for name in names}
    for name in names:
        if files[name] != name and files[name] in names:
            common.fail(f"--translate {args.translate}: {name} and {files[name]} would become one file; rename one")
    with common.claim(Path(out), [*files.values(), "_sheet.png"]):
        translate_files(G, files, out, args)


def translate_files(G: Generator, files: dict[str, str], out: str, args):
    """Translate the images {name: file to write}, and draw the sheet."""
    pairs = []
    for name in tqdm(files, desc=out, unit="img"):
        try:
            image, _ = common.open_image(Path(args.translate, name))
        except Exception as error:  # decoders raise anything if a file is damaged
            print(f"skipped {name!r}, which cannot be read ({str(error) or type(error).__name__})", file=sys.stderr)
            continue
        translated = translate_image(G, image, args)
        kind = FORMATS[Path(files[name]).suffix.lower()]
        common.atomic(Path(out, files[name]), functools.partial(translated.save, format=kind, quality=95))

        if len(pairs) < 16:
            for each in (image, translated):
                pairs.append(common.pixels(common.square(each, args.size, args.fit), args.channels))
    if not pairs:
        common.fail(f"--translate {args.translate}: none of the {len(files)} image files can be read", code=1)
    sheet = common.normalize(torch.from_numpy(np.stack(pairs)))
    common.atomic(Path(out, "_sheet.png"), functools.partial(common.save_png, sheet))


def output_name(name: str) -> str:
    """The file for a translation: the same name, with .png behind it if the format cannot be written."""
    return name if Path(name).suffix.lower() in FORMATS else f"{name}.png"


def translate_image(G: Generator, image, args):
    """A Pillow image -> its translation, a Pillow image of the same size.

    G gets it in the way in which it has seen images in training. With --fit crop, it is the whole image, with a shorter
    side of --size pixels: 90 x 40 becomes 54 x 24 if --size is 24. Otherwise, it is a square.
    """
    if args.fit == "crop":
        shorter = min(image.width, image.height)
        height = round(image.height * args.size / shorter)
        width = round(image.width * args.size / shorter)
        resized = resize(image, [height, width], InterpolationMode.LANCZOS)
    else:
        resized = common.square(image, args.size, args.fit)
    x = common.normalize(torch.tensor(common.pixels(resized, args.channels)))

    y = G(x[None].to(args.device))[0].float()
    values = y.add(1).mul(127.5).round().byte()  # from [-1, 1] to 0 ... 255
    translated = to_pil_image(values.cpu())
    if args.fit == "pad":
        translated = translated.crop(common.padded_box(image, args.size))
    return resize(translated, [image.height, image.width], InterpolationMode.LANCZOS)


def main(argv=None) -> dict:
    args = parse_args(argv)
    rank, world = setup(args)
    if args.translate:
        translate(args)
        return {}
    torch.manual_seed(args.seed)  # the same initial weights on all ranks
    G, D, G_ema = build(args)
    data_A, fixed_A = domain(args, "A", rank, world)
    data_B, fixed_B = domain(args, "B", rank, world)
    if args.sample:
        sample(G_ema, data_A, args)
        return {"G_ema": G_ema}

    opt_G = torch.optim.Adam(G.parameters(), args.lr_g, (args.beta1, args.beta2), fused=True)
    opt_D = torch.optim.Adam(D.parameters(), args.lr_d, (args.beta1, args.beta2), fused=True)
    pools = {"A": Pool(args), "B": Pool(args)}
    state = {"G": G, "D": D, "G_ema": G_ema, "opt_G": opt_G, "opt_D": opt_D, "data": data_A, "data_B": data_B}
    state |= {"pool_A": pools["A"], "pool_B": pools["B"]}
    start = resume(state, args) if args.checkpoint else 0

    def draw_grid() -> Tensor:
        return grid(G_ema, fixed_A, fixed_B)

    if args.grid:
        common.write_grid(args, draw_grid)
        return state

    with common.Run(args, data_A, start, draw_grid, rank, diversity=False) as run:
        run.save(state)  # the start: an --out that cannot be written to is noticed now
        for i in run.steps():
            # A seed for each step and rank, so that a resumed run draws the same crops. They are hashed, because
            # torch's CPU generator uses only 32 bits of a seed, and a sum would repeat the crops of other ranks.
            torch.manual_seed(zlib.crc32(f"{args.seed} {i} {rank}".encode()))
            factor = lr_factor(i, args)
            opt_G.param_groups[0]["lr"] = args.lr_g * factor
            opt_D.param_groups[0]["lr"] = args.lr_d * factor
            metrics = train_step(G, D, opt_G, opt_D, (data_A, data_B), pools, args)

            # warm-up: at first the average spans about a tenth of the steps so far, to forget the random start
            decay = min(args.ema, (1 + i) / (10 + i))
            update_ema(G_ema, G, decay)
            run.log(metrics)
            if run.due():  # every --save-every steps, at the end, and after Ctrl-C
                run.save(state)

    if world > 1:
        dist.destroy_process_group()
    return state


if __name__ == "__main__":
    main()
