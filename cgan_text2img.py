"""GAN-CLS - Reed et al. 2016, "Generative Adversarial Text to Image Synthesis", arXiv 1605.05396.

    max_D  E log s(D(x, t)) + (E log(1 - s(D(x, t_wrong))) + E log(1 - s(D(G(z, t), t)))) / 2
    max_G  E log s(D(G(z, t), t))                                                              with s the sigmoid

What is specific to this file: images have captions t. G gets an encoding of t in addition to z, and D gets one beside
its smallest feature maps. D learns from three kinds of pairs (Algorithm 1): a real image with its caption is right; a
real image with another caption is wrong, and so is a generated image with the caption it was made for. So D learns to
read captions, and G to follow them.

Differs from the paper: the text encoder is not pretrained but learns together with the networks, one encoder in G and
one in D. It takes the mean of learned vectors, one for each word and each pair of neighboring words of the caption,
because a bag of words alone cannot tell "blue hair red eyes" from "red hair blue eyes". --embeddings takes vectors of
any other encoder instead. The networks are DCGAN's (authors: with residual blocks), and learning rates do not decay
(authors: halved every 100 epochs). Samples come from an exponential moving average of G's weights (arXiv 1710.10196);
without prompts, they show training captions in turn.

Off by default, from a student's report: a fourth kind of pair (--wrong-image: a caption with another real image; the
authors' code has it in place of Algorithm 1's wrong pair), label smoothing (--real-label 0.9), and two terms that pull
G to the real image, in D's score (--l2 100) and in pixels (--l1 50).

    python cgan_text2img.py                                              # built-in faces, minutes on a CPU
    python cgan_text2img.py --path data/faces --labels data/faces/tags.csv --out runs/tags     # painted by faces.py
    python cgan_text2img.py --prompt "blue hair red eyes"                # five images, from the checkpoint

Result of the first command: 10,000 steps in 3.1 minutes on two CPU cores, torch 2.14.1; of 2,000 samples 99 % can
be read as a face; hair is as requested in 100 %, eyes in 96 % (one seed).
"""

import argparse
import copy
import datetime
import itertools
import math
import os
import unicodedata
import zlib
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

import common
import labels

# Without --path, these values replace the defaults: for a few minutes on a CPU.
PRESET = {
    "size": 32,
    "width": 32,
    "batch": 16,
    "steps": 10_000,
    "lr_g": 5e-4,
    "lr_d": 5e-4,
}
# Flags that change the networks: a checkpoint fits only the values that it was trained with. The last two come from the
# captions.
ARCHITECTURE = ("size", "channels", "z_dim", "width", "act", "words", "text_dim")
ENCODED = 128  # length of an encoded caption, in G and in D (paper: 128)


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
        "--real-label",
        type=common.between(0.0, 1.0),
        default=1.0,
        help="target of D for real images with their captions; below 1 is label smoothing",
    )
    group.add_argument(
        "--wrong-image",
        action="store_true",
        help="show D a fourth kind of pair: each caption with another real image, as a wrong pair",
    )
    group.add_argument(
        "--l2",
        type=common.between(0.0),
        default=0.0,
        help="weight of (s(D(x, t)) - s(D(G(z, t), t)))^2 in G's loss, s: sigmoid; higher pulls both scores together",
    )
    group.add_argument(
        "--l1",
        type=common.between(0.0),
        default=0.0,
        help="weight of |G(z, t) - x| in G's loss; higher pulls generated images to the pixels of x",
    )
    group.add_argument(
        "--embeddings",
        metavar="FILE",
        help=".npy file of caption vectors, row i for row i of --labels; with it, the model cannot read prompts",
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
    common.add_data_flags(parser, labels=True)
    common.add_output_flags(parser, __file__)
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="draw this caption --sample times (5 if --sample is not given); may be repeated",
    )
    parser.add_argument(
        "--prompts", metavar="FILE", help="file with lines of id,caption; draw each caption as often as --prompt does"
    )
    parser.set_defaults(words=[], text_dim=0, captions=[])
    asked = parser.parse_args(argv)
    if asked.prompt or asked.prompts:
        if asked.resume or asked.finetune or asked.grid:
            parser.error("prompts are for --sample, --seeds and --walk: leave out --resume, --finetune or --grid")
        parser.set_defaults(sample=5)
    return common.parse(parser, argv, __file__, PRESET, ARCHITECTURE)


def widths(args) -> list[int]:
    """Channels of the feature maps, from S/2 x S/2 pixels to the smallest (4 x 4 to 7 x 7, depending on --size).

    They double where the resolution halves, up to 8 times --width: --size 64 --width 64 gives [64, 128, 256, 512].
    """
    levels = int(math.log2(args.size / 4))
    return [args.width * min(2**level, 8) for level in range(levels)]


def words_of(caption: str) -> list[str]:
    """Words in lower case: "Blue hair, red eyes" -> ["blue", "hair", "red", "eyes"].

    A word is made of letters, with their marks, and digits. Chinese characters are a word each.
    """
    text = ""
    for character in unicodedata.normalize("NFC", caption.lower()):
        if unicodedata.name(character, "").startswith("CJK UNIFIED"):
            text += f" {character} "
        elif unicodedata.category(character)[0] in "LMN" or character == "_":
            text += character
        else:
            text += " "
    return text.split()


def split(caption: str) -> list[str]:
    """Words and pairs of neighboring words: "blue hair" -> ["blue", "hair", "blue hair"]."""
    words = words_of(caption)
    pairs = [f"{first} {second}" for first, second in itertools.pairwise(words)]
    return words + pairs


def encode(captions: list[str], args) -> Tensor:
    """Captions -> t (N, L) int64: the numbers of their words and pairs, counted from 1 in args.words, then zeros.

    With the words ["blue", "hair", "red"], "red hair" is the row [3, 2]. Pairs that args.words does not have are left
    out. Ends the process at a word that it does not have, and at a caption without words.
    """
    number = {part: i for i, part in enumerate(args.words, 1)}
    rows = []
    for caption in captions:
        words = words_of(caption)
        if not words:
            common.fail(
                f"the caption {caption!r} has no word: every prompt needs at least one (lines of --prompts: id,caption)"
            )
        unknown = set(words) - number.keys()
        if unknown:
            common.fail(
                f"unknown word {min(unknown)!r} in {caption!r}: no training caption contains it; "
                f"args.json of the run lists the known words"
            )
        rows.append(torch.tensor([number[part] for part in split(caption) if part in number]))
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def text_encoder(args) -> nn.Module:
    """t, numbers of words (N, L) or embeddings (N, text_dim) -> encoded captions (N, ENCODED)."""
    # The mean of the vectors of all words and pairs; padding_idx leaves out the zeros behind them. It is made even if
    # --embeddings does not need it, so that the random numbers for the other weights stay the same. Both keep torch's
    # initial weights.
    bag = nn.EmbeddingBag(len(args.words) + 1, ENCODED, padding_idx=0)
    first = nn.Linear(args.text_dim, ENCODED) if args.text_dim else bag
    return nn.Sequential(first, nn.LeakyReLU(0.2))


class Generator(nn.Module):
    """Latent z (N, z_dim) and captions t -> images (N, C, S, S) in [-1, 1]."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)[::-1]  # from the lowest resolution to the highest
        base = args.size >> len(w)  # the lowest resolution, 4 to 7; --size 64: 4 -> 8 -> 16 -> 32 -> 64
        act = nn.ReLU() if args.act == "relu" else nn.LeakyReLU(0.2)
        self.text = text_encoder(args)

        # (N, z_dim + ENCODED, 1, 1) -> (N, w[0], base, base)
        layers = [nn.ConvTranspose2d(args.z_dim + ENCODED, w[0], base, bias=False), nn.BatchNorm2d(w[0]), act]
        # (N, c_in, s, s) -> (N, c_out, 2s, 2s), up to (N, w[-1], S/2, S/2); kernel 4, stride 2, padding 1
        for c_in, c_out in itertools.pairwise(w):
            layers += [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), act]
        # (N, w[-1], S/2, S/2) -> (N, C, S, S) in [-1, 1]
        layers += [nn.ConvTranspose2d(w[-1], args.channels, 4, 2, 1), nn.Tanh()]
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        z = torch.cat([z, self.text(t)], 1)
        return self.net(z[:, :, None, None])


class Discriminator(nn.Module):
    """Images (N, C, S, S) in [-1, 1] and captions t -> logits (N,) of "real, and as the caption says", float32."""

    def __init__(self, args):
        super().__init__()
        w = widths(args)
        base = args.size >> len(w)

        # (N, C, S, S) -> (N, w[0], S/2, S/2)
        layers = [nn.Conv2d(args.channels, w[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        # (N, c_in, s, s) -> (N, c_out, s/2, s/2), down to (N, w[-1], base, base)
        for c_in, c_out in itertools.pairwise(w):
            layers += [nn.Conv2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers)
        self.text = text_encoder(args)

        # (N, w[-1] + ENCODED, base, base) -> (N, w[-1], base, base)
        layers = [nn.Conv2d(w[-1] + ENCODED, w[-1], 1, bias=False), nn.BatchNorm2d(w[-1]), nn.LeakyReLU(0.2)]
        self.both = nn.Sequential(*layers)
        # (N, w[-1], base, base) -> (N, 1, 1, 1)
        self.score = nn.Conv2d(w[-1], 1, base)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.net(x)
        t = self.text(t)[:, :, None, None].expand(-1, -1, *x.shape[2:])  # the same at every place of the map
        x = self.both(torch.cat([x, t], 1)).float()
        # in float32, because bfloat16 would round away the difference between two large scores
        with torch.autocast(x.device.type, enabled=False):
            return self.score(x).flatten()


def init_weights(module: nn.Module):
    """Weights N(0, 0.02) (DCGAN, section 4); BatchNorm: gains N(1, 0.02), biases 0 (dcgan.torch); other biases 0."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


def d_loss(real: Tensor, fake: Tensor, wrong: Tensor, mask: Tensor, t_real: float = 1.0) -> Tensor:
    """real, fake (N,): scores of right and of generated pairs; wrong (K, N): scores of K kinds of wrong pairs.

    mask (N,) is 0 where such a pair is right by chance, else 1.
    """
    # with the target 1: -E log s(D(x, t))
    right = (t_real * softplus(-real) + (1 - t_real) * softplus(real)).mean()
    # -E log(1 - s(D(...))), a half of each kind
    generated = softplus(fake).mean()
    mismatched = (mask * softplus(wrong)).mean(1).sum()
    return right + (generated + mismatched) / 2


def g_loss(fake: Tensor) -> Tensor:
    return softplus(-fake).mean()  # -E log sigmoid(fake)


def choose(t: Tensor) -> Tensor:
    """One of the captions of each image, at random: t (N, K, ...) -> (N, ...).

    K is the largest number of captions that an image has; those with fewer have zeros after them.
    """
    if t.shape[1] == 1:
        return t[:, 0]
    counts = (t != 0).any(2).sum(1)
    k = (torch.rand(len(t), device=t.device) * counts).long()
    return t[torch.arange(len(t), device=t.device), k]


def derange(t: Tensor) -> tuple[Tensor, Tensor]:
    """Give each image of a batch the caption of another: t (N, ...) -> indices (N,), mask (N,).

    The indices are a permutation. The mask is 0 where both captions are the same, which happens only if more than half
    of the batch have one caption, else 1.
    """
    # equal captions get equal numbers; embeddings of one text can differ in the last digits
    t = t.flatten(1).float()
    same = torch.cdist(t, t, p=math.inf) < 1e-4
    caption = same.int().argmax(1)  # the first image of the batch that has it

    # Sort by caption, with the captions in random order. Equal captions are then side by side, so that images half a
    # batch apart have different ones.
    order = torch.randperm(len(t), device=t.device)[caption].argsort()
    other = torch.empty_like(order)
    other[order] = order.roll(len(t) // 2)
    mask = (caption[other] != caption).float()
    return other, mask


def train_step(G, D, opt_G, opt_D, data, args) -> dict[str, Tensor]:
    """Algorithm 1: one update of D on right, wrong and generated pairs, one of G on the noise that D has seen."""
    # (1) D: maximize E log s(D(x, t)) + (E log(1 - s(D(x, t_wrong))) + E log(1 - s(D(G(z, t), t)))) / 2
    D.requires_grad_(True)
    x_real, t = next(data)  # this process's share of a batch: (N, C, S, S) in [-1, 1], (N, K, L)
    t = choose(t)  # (N, L)
    other, mask = derange(t)
    with autocast(args):
        x_fake = G(noise(len(x_real), args), t)  # with gradients for G: (2) backpropagates through it
        # a pass for each kind of pair, so that BatchNorm normalizes them separately
        real = D(x_real, t)
        fake = D(x_fake.detach(), t)
        wrong = [D(x_real, t[other])]
        if args.wrong_image:
            wrong.append(D(x_real[other], t))
        loss_D = d_loss(real, fake, torch.stack(wrong), mask, args.real_label)
    step(opt_D, loss_D)

    # (2) G: maximize E log s(D(G(z, t), t)) - l2 E (s(D(x, t)) - s(D(G(z, t), t)))^2 - l1 E |G(z, t) - x|
    D.requires_grad_(False)  # no gradients for weights that are not updated
    with autocast(args):
        fake = D(x_fake, t)
        loss_G = g_loss(fake)
        if args.l2 or args.l1:
            verdicts = (D(x_real, t).sigmoid().detach() - fake.sigmoid()).square().mean()
            pixels = (x_fake - x_real).abs().mean()
            loss_G = loss_G + args.l2 * verdicts + args.l1 * pixels
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


def read_captions(args, names: list[str]) -> tuple[np.ndarray, Tensor]:
    """Indices (n,) of the images that have captions, and their t (n, K, ...): up to K of each, then zeros.

    Sets args.words, args.text_dim and args.captions, which checkpoints keep. Ends the process if a resumed run has
    other words or embeddings than its checkpoint.
    """
    rows, captions = labels.load_labels(args, names, text=True)
    words = []
    text_dim = 0
    if args.embeddings:
        text_dim = captions[0].shape[1]  # vectors stand in for the captions
    else:
        flat = [caption for several in captions for caption in several]
        words = sorted({part for caption in flat for part in split(caption)})

    if args.checkpoint and text_dim != args.text_dim:
        expected = f"vectors of {args.text_dim} numbers" if args.text_dim else "words"
        common.fail(
            f"--embeddings {args.embeddings} has vectors of {text_dim} numbers, but {args.checkpoint} was trained on "
            f"{expected}: leave out --embeddings, or restore that file, to continue"
        )
    # other words would give the rows of the encoders another meaning
    if args.checkpoint and words != args.words:
        common.fail(f"the captions have other words than those of {args.checkpoint}: continue with the same --labels")
    args.words = words
    args.text_dim = text_dim
    if args.embeddings:
        args.captions = []
        return rows, nn.utils.rnn.pad_sequence(captions, batch_first=True)

    # Captions for --sample, each once. Sorted by a checksum, they are mixed, but the same in every run.
    mixed = sorted(set(flat), key=lambda caption: zlib.crc32(caption.encode()))
    args.captions = mixed[:1000]
    t = encode(flat, args).split([len(several) for several in captions])
    return rows, nn.utils.rnn.pad_sequence(t, batch_first=True)


def read_prompts(args) -> list[tuple[str, str]]:
    """(id, caption) of each --prompt, with the ids "1", "2", ..., then of each line "id,caption" of --prompts.

    Ends the process if the model cannot read prompts, or if an id cannot be in the names of its files.
    """
    found = [(str(i), caption) for i, caption in enumerate(args.prompt or [], 1)]
    if args.prompts:
        found += labels.read_prompts(args.prompts)

    if found and args.text_dim:
        common.fail(
            f"{args.checkpoint} was trained with --embeddings and cannot read prompts: encode them with the same "
            f"encoder, and give the vectors with --embeddings FILE --sample N"
        )
    seen = set()
    for name, _ in found:
        if "/" in name:
            common.fail(f'the prompt id {name!r} contains "/", but it becomes part of a file name: rename it')
        if name in seen:
            common.fail(f"the prompt id {name!r} is used twice: rename one (--prompt takes the ids 1, 2, ...)")
        seen.add(name)
    return found


def rows_of(prompts: list[tuple[str, str]], each: int) -> list[dict[str, str]]:
    """Rows of labels.csv: images 1 to `each` of every prompt.

    [("7", "red hair")] -> [{"image": "sample_7_1.png", "caption": "red hair"}, {"image": "sample_7_2.png", ...}, ...]
    """
    rows = []
    for name, caption in prompts:
        for k in range(1, each + 1):
            rows.append({"image": f"sample_{name}_{k}.png", "caption": caption})
    return rows


def wanted(args) -> tuple[Iterator[Tensor], list[dict[str, str]]]:
    """t for --sample, one caption after another, and the row of labels.csv of each image.

    Prompts are drawn --sample times each, or once with each of --seeds, so that args.sample becomes the number of all
    images. Without prompts, the captions of the training come in turn, or, without rows, the vectors of --embeddings.
    """
    prompts = read_prompts(args)
    if prompts:
        rows = rows_of(prompts, args.sample)
        args.sample = len(rows)
    else:
        rows = [{"caption": caption} for caption in args.captions]

    if rows:
        t = encode([row["caption"] for row in rows], args)
    else:
        t = labels.read_embeddings(args.embeddings)
    if args.seeds and not prompts:
        t = t[:1]  # an image depends on its seed alone, not on its place

    # in turn, and a batch more than --sample asks for, because the last batch is drawn whole
    turns = [i % len(t) for i in range(args.sample + args.batch)]
    shown = [rows[i] for i in turns] if rows else []
    return iter(t[turns].to(args.device)), shown


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


def walk(G_ema: nn.Module, args) -> Iterator[Tensor]:
    """The frames of --walk, in batches: in a straight line from each caption, once encoded, to the next, and back.

    All frames have one z, or if there is only one caption, z moves.
    """
    if args.text_dim:
        t = labels.read_embeddings(args.embeddings)[:4]
    else:
        captions = [caption for _, caption in read_prompts(args)]
        t = encode(captions or args.captions[:4], args)
    if len(t) > args.walk:
        common.fail(f"--walk {args.walk} has fewer frames than there are captions ({len(t)}): ask for more frames")
    ends = G_ema.text(t.to(args.device))

    place = torch.arange(args.walk, device=args.device) * (len(ends) / args.walk)
    before = place.long()
    after = (before + 1) % len(ends)
    encoded = ends[before].lerp(ends[after], (place - before)[:, None])

    z = noise(1, args).repeat(args.walk, 1) if len(ends) > 1 else torch.cat(list(latents(args)))
    for batch in torch.cat([z, encoded], 1).split(args.batch):
        yield G_ema.net(batch[:, :, None, None])


def sample(G_ema: nn.Module, args):
    """Write what the moving average of the checkpoint draws: images and their captions (labels.csv), or a --walk."""
    saved = common.read_checkpoint(args.checkpoint, args.script)
    G_ema.load_state_dict(saved["state"]["G_ema"])
    G_ema.train(args.sample_mode == "batch")  # in training mode BatchNorm uses the statistics of the batch
    torch.manual_seed(args.seed)
    if args.walk:
        frames = walk(G_ema, args)
        common.write_samples(args, lambda: next(frames))
        return
    t, rows = wanted(args)
    batches = latents(args)

    def generate() -> Tensor:
        z = next(batches)
        return G_ema(z, torch.stack([next(t) for _ in z]))

    common.write_samples(args, generate, rows)


def main(argv=None) -> dict:
    args = parse_args(argv)
    rank, world = setup(args)
    if not args.sample:  # before the networks, whose shapes depend on the words
        images, names = common.load_images(args)
        rows, t = read_captions(args, names)
    torch.manual_seed(args.seed)  # the same initial weights on all ranks
    G, D, G_ema = build(args)
    if args.sample:
        sample(G_ema, args)
        return {"G_ema": G_ema}

    opt_G = torch.optim.Adam(G.parameters(), args.lr_g, (args.beta1, args.beta2), fused=True)
    opt_D = torch.optim.Adam(D.parameters(), args.lr_d, (args.beta1, args.beta2), fused=True)
    data = common.Batches(images, args, rank, world, rows, t)
    state = {"G": G, "D": D, "G_ema": G_ema, "opt_G": opt_G, "opt_D": opt_D, "data": data}
    start = resume(state, args) if args.checkpoint else 0

    # in the grid, the images of a column share their z, and those of a row the caption of one training image
    fixed_z = noise(common.GRID, args)[:8].repeat(8, 1)
    shown = [row * len(t) // 8 for row in range(8)]
    fixed_t = t[shown, 0].repeat_interleave(8, 0).to(args.device)

    def draw() -> Tensor:
        some = torch.randint(len(t), (common.GRID,))  # of several captions of an image, the first stands for all
        return G_ema(noise(common.GRID, args), t[some, 0].to(args.device))

    def draw_grid() -> Tensor:
        return G_ema(fixed_z, fixed_t)

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
                measure_statistics(G_ema, draw)
                run.save(state)

    if world > 1:
        dist.destroy_process_group()
    return state


if __name__ == "__main__":
    main()
