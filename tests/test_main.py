"""What main() does in every script: modes of the networks, resuming with other flags, checkpoints, and a second machine."""

import argparse
import json
import os
import shutil

import pytest
import torch
import torch.distributed as dist
from conftest import PLAIN, RMSPROP, SCRIPTS, d_steps, module, run, same, tiny
from test_training import refused
from torch import nn

import common

OFTEN = ("--log-every", "1", "--save-every", "1")


# --- modes ---


def test_modes_of_the_networks(any_script, images, tmp_path, monkeypatch):
    """Catches deepcopy(G.eval()), a grid that leaves G in eval mode, and an average in training mode: BatchNorm of G would never train, or the average drift."""
    m, seen = module(any_script), []
    train_step = m.train_step

    def spy(G, D, *rest):
        seen.append([net.training for net in (*G.modules(), *D.modules())])
        return train_step(G, D, *rest)

    monkeypatch.setattr(m, "train_step", spy)
    update_ema, modes = m.update_ema, []

    def spy_on_average(G_ema, *rest):
        modes.extend(net.training for net in G_ema.modules())
        update_ema(G_ema, *rest)

    monkeypatch.setattr(m, "update_ema", spy_on_average)
    state = run(any_script, images, tmp_path / "a", "--steps", "3", *OFTEN)
    resumed = run(any_script, images, tmp_path / "a", "--steps", "4", "--resume")
    assert len(seen) == 4 and all(all(net) for net in seen)
    assert modes and not any(modes)  # from the first step on
    for nets in (state, resumed):
        for name in ("G", "D"):
            assert all(net.training for net in nets[name].modules()), name
        assert not any(net.training for net in nets["G_ema"].modules())
        assert not any(p.requires_grad for p in nets["G_ema"].parameters())
        assert all(p.requires_grad for p in nets["G"].parameters())
        for name in ("G", "D"):  # the layout that convolutions are fastest in
            weights = [p for p in nets[name].parameters() if p.dim() == 4]
            assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


def test_batchnorm_counts_every_pass_in_training(any_script, images, tmp_path, monkeypatch):
    """Catches statistics that stand still, and those of grids or logs that are mixed in: one count for each forward pass."""
    m, passes = module(any_script), {"G": 0, "D": 0}
    train_step = m.train_step

    def spy(G, D, *rest):
        def count(name):
            return lambda *_: passes.update({name: passes[name] + 1})

        hooks = [net.register_forward_hook(count(name)) for name, net in (("G", G), ("D", D))]
        metrics = train_step(G, D, *rest)
        for hook in hooks:
            hook.remove()
        return metrics

    monkeypatch.setattr(m, "train_step", spy)
    state = run(any_script, images, tmp_path / "a", "--steps", "3", *OFTEN)
    for name in ("G", "D"):
        for layer in state[name].modules():
            if isinstance(layer, nn.BatchNorm2d) and layer not in decoders(state[name]):
                assert layer.num_batches_tracked == passes[name] > 0
                assert layer.running_mean.abs().sum() > 0
    for layer in state["G_ema"].modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.num_batches_tracked == 16  # of its own: see test_statistics.py


def decoders(D) -> list:
    """lightweight_gan.py's decoders see the reals only, outside D's own forward pass."""
    parts = [D.whole, D.quarter] if hasattr(D, "whole") else []
    return [layer for part in parts for layer in part.modules()]


# --- resuming with other flags ---


def steady(script: str) -> list[str]:
    """Flags that keep the rates where they were set."""
    return ["--anneal", "1000000000"] if script == "r3gan" else []


def test_rates_and_betas_of_this_start_win(any_script, images, tmp_path):
    """Catches --resume --lr-g X that is ignored because the optimizer's state brings the old rate back."""
    flags = ["--lr-g", "1e-5", "--lr-d", "3e-5"]
    flags += ["--beta1", "0.3", "--beta2", "0.6"] * (any_script not in RMSPROP)
    run(any_script, images, tmp_path / "a", "--steps", "2", *steady(any_script))
    state = run(any_script, images, tmp_path / "a", "--steps", "3", "--resume", *flags)
    for name, lr, steps in (("opt_G", 1e-5, 3), ("opt_D", 3e-5, 3 * d_steps(any_script))):
        (group,) = state[name].param_groups
        assert group["lr"] == pytest.approx(lr)
        assert group.get("betas", (0.3, 0.6)) == pytest.approx((0.3, 0.6), abs=1e-6)
        moments = state[name].state_dict()["state"]
        assert len(moments) > 2 and all(moment["step"] == steps for moment in moments.values())  # they go on
    args = json.loads((tmp_path / "a/args.json").read_text())
    assert args["lr_g"] == 1e-5 and args["lr_d"] == 3e-5  # and the next resume goes on with them
    again = module(any_script).main(["--resume", "--out", str(tmp_path / "a"), "--steps", "4", "--device", "cpu"])
    assert again["opt_G"].param_groups[0]["lr"] == pytest.approx(1e-5)


def test_kernels_are_those_of_this_device(any_script, images, tmp_path):
    """Catches a GPU's fused optimizer that a checkpoint brings to a CPU."""
    out = tmp_path / "a"
    fresh = run(any_script, images, out, "--steps", "1", *steady(any_script))
    saved = torch.load(out / "last.pt", weights_only=True)
    for name in ("opt_G", "opt_D"):
        (group,) = saved["state"][name]["param_groups"]
        group |= {"fused": True, "foreach": True, "capturable": True, "lr": 0.5, "weight_decay": 0.7}
    torch.save(saved, out / "last.pt")
    state = run(any_script, images, out, "--steps", "2", "--resume")
    for name in ("opt_G", "opt_D"):
        assert state[name].param_groups[0].keys() == fresh[name].param_groups[0].keys()
        for key, value in fresh[name].param_groups[0].items():
            if key not in ("params", "betas"):  # r3gan.py's second beta moves by a hair
                assert state[name].param_groups[0][key] == pytest.approx(value), key


def test_a_resumed_run_drops_what_came_after(any_script, images, tmp_path):
    """Catches rows twice, and frames and checkpoints of a future that was given up; in all scripts."""
    out = tmp_path / "a"
    whole = run(any_script, images, out, "--steps", "4", "--keep", "9", "--log-every", "1", "--save-every", "2")
    middle = str(out / "checkpoints/000002.pt")
    again = run(any_script, images, out, "--steps", "4", "--resume", "--checkpoint", middle)
    assert same({n: x.state_dict() for n, x in whole.items()}, {n: x.state_dict() for n, x in again.items()})
    run(any_script, images, out, "--steps", "3", "--resume", "--checkpoint", middle)
    rows = [row.split(",")[0] for row in (out / "log.csv").read_text().splitlines()]
    assert rows == ["step", "1", "2", "3"]
    for folder in ("checkpoints", "samples"):
        assert sorted(file.stem for file in (out / folder).iterdir()) == ["000000", "000002", "000003"]


def test_a_fork_leaves_the_first_run_alone(any_script, images, tmp_path):
    """Catches --resume --checkpoint A/last.pt --out B that writes to A, or that B's folder must hold a run already."""
    run(any_script, images, tmp_path / "a", "--steps", "2")
    before = {file: file.read_bytes() for file in (tmp_path / "a").rglob("*") if file.is_file()}
    flags = ["--resume", "--checkpoint", str(tmp_path / "a/last.pt"), "--out", str(tmp_path / "b"), "--steps", "3"]
    module(any_script).main([*flags, "--device", "cpu"])
    assert {file: file.read_bytes() for file in (tmp_path / "a").rglob("*") if file.is_file()} == before
    assert torch.load(tmp_path / "b/last.pt", weights_only=True)["step"] == 3
    with pytest.raises(SystemExit):  # the second fork into one folder would overwrite the first
        module(any_script).main(flags)


def test_a_run_that_is_interrupted_twice(any_script, images, tmp_path):
    """Catches what only a second resume shows: a position, seed or schedule that counts from the last start."""
    flags = ["--log-every", "1", "--save-every", "2", *steady(any_script), "--flip"]
    whole = run(any_script, images, tmp_path / "whole", "--steps", "7", *flags)
    run(any_script, images, tmp_path / "parts", "--steps", "3", *flags)
    for steps in ("4", "7"):
        parts = module(any_script).main(
            ["--resume", "--out", str(tmp_path / "parts"), "--steps", steps, "--device", "cpu"]
        )
    assert same({n: x.state_dict() for n, x in whole.items()}, {n: x.state_dict() for n, x in parts.items()})
    for file in ("log.csv", "progress.gif", "samples/000004.png", "samples/000007.png"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes(), file
    assert [file.name for file in sorted((tmp_path / "parts/samples").iterdir())] == [
        f"{k:06d}.png" for k in (0, 2, 4, 6, 7)
    ]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_grid_has_noise_of_the_flag_s_kind(script, folder, tmp_path, monkeypatch):
    """Catches a grid of normal noise for a generator that was trained on uniform noise."""
    m, drawn = module(script), []
    noise = m.noise
    monkeypatch.setattr(m, "noise", lambda n, args: drawn.append(noise(n, args)) or drawn[-1])
    for kind in ("uniform", "normal"):
        drawn.clear()
        seen = []
        monkeypatch.setattr(m, "measure_statistics", lambda *_: None, raising=False)  # draws 64 images, too
        monkeypatch.setattr(m.Generator, "forward", spy_on(m.Generator.forward, seen))
        run(script, folder, tmp_path / kind, "--steps", "1", "--noise", kind)
        monkeypatch.undo()
        monkeypatch.setattr(m, "noise", lambda n, args: drawn.append(noise(n, args)) or drawn[-1])
        assert len(drawn[0]) == 64  # the first noise of all is the grid's
        grids = [z for z in seen if len(z) == 64]
        assert grids and all(torch.equal(z.unique(dim=0), grids[0].unique(dim=0)) for z in grids)
        rows = {tuple(row.tolist()) for row in drawn[0]}
        assert all(tuple(row.tolist()) in rows for row in grids[0])
        assert (grids[0].abs().max() <= 1) == (kind == "uniform")


def spy_on(forward, seen: list):
    def spied(self, z, *rest):
        seen.append(z.detach().clone())
        return forward(self, z, *rest)

    return spied


# --- what comes from a checkpoint ---

OWN = {
    "out",
    "cache",
    "device",
    "resume",
    "checkpoint",
    "sample",
    "sample_mode",
}  # of each start, given again or by default
OWN |= {"finetune", "grid", "seeds", "walk", "sample_labels", "prompt", "prompts", "translate", "reverse", "weights"}
DERIVED = {"script", "preset", "autocast", "found"}  # of no flag


def other(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [other(item) for item in value] or ["x"]
    if isinstance(value, dict):
        return {**value, "other": ["a", "b"]}
    if value is None:
        return "other"
    return value + (2 if isinstance(value, int) else 0.25 if isinstance(value, float) else "other")


def test_each_flag_comes_from_where_it_should(any_script, tmp_path, monkeypatch):
    """Catches a flag of the training that a resumed run forgets, and one of the start that the checkpoint brings back: a card's --device, an old --out."""
    m, out = module(any_script), tmp_path / "run"
    out.mkdir()
    plain = vars(m.parse_args(["--path", "data", "--out", str(out)]))
    stored = {name: other(value) for name, value in plain.items() if name not in DERIVED}
    stored |= {"steps": 100, "size": 4 * plain["size"], "load_size": 0, "constant": 1000, "decay": 1000}
    stored |= {"path": "/data/images", "labels": "/data/labels.csv", "embeddings": "/data/vectors.npy"}
    stored |= {"augment": ["color"]}  # of lightweight_gan.py, which refuses names that it does not know
    stored = {name: value for name, value in stored.items() if name in plain}
    torch.save({"script": any_script, "step": 5, "args": stored | {"script": any_script}, "state": {}}, out / "last.pt")
    flags = {"--resume": "resume", "--sample 3": "sample", "--grid": "grid"}
    for flag in flags:
        found = vars(m.parse_args(["--out", str(out), *flag.split()]))
        for name, value in plain.items():
            if name in OWN - {"resume", "checkpoint", "sample", "grid"}:
                assert found[name] == (str(out) if name == "out" else value), name
            elif name in ("resume", "sample", "grid"):
                assert bool(found[name]) == (name in flag), name
            elif name not in DERIVED | OWN:
                assert found[name] == stored[name], name
    monkeypatch.chdir(tmp_path)  # the folder that is looked in by default, although the run was made in another
    (tmp_path / "runs").mkdir()
    out.rename(tmp_path / "runs" / any_script)
    found = m.parse_args(["--resume"])
    assert (found.out, found.checkpoint) == (f"runs/{any_script}", f"runs/{any_script}/last.pt")
    (tmp_path / "runs" / any_script).rename(out)
    # by hand, every flag wins that does not change the networks
    moved = ["--path", "moved", *(["--embeddings", "moved.npy"] if "embeddings" in stored else [])]
    found = m.parse_args(["--out", str(out), "--resume", "--steps", "77", "--lr-g", "0.125", "--keep", "5", *moved])
    assert (found.steps, found.lr_g, found.path, found.keep) == (77, 0.125, os.path.abspath("moved"), 5)
    found = m.parse_args(["--out", str(out), "--resume", "--cache", "there", "--device", "cpu"])
    assert (found.cache, found.device) == ("there", "cpu")
    assert set(m.ARCHITECTURE) <= stored.keys() - OWN


def test_a_run_is_resumed_from_another_directory(any_script, images, tmp_path, monkeypatch):
    """Catches a relative --path in the checkpoint: "does not exist", or another folder of that name; a moved folder is given again."""
    (tmp_path / "here").symlink_to(images.parent, target_is_directory=True)
    flags = ["--path", f"here/{images.name}", "--out", str(tmp_path / "run")]
    if any_script in ("acgan", "cgan_text2img"):
        flags += ["--labels", f"here/{images.name}/tags.csv"]
    monkeypatch.chdir(tmp_path)
    m = module(any_script)
    m.main([*tiny(any_script), *flags, "--steps", "1"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    m.main(["--resume", "--out", str(tmp_path / "run"), "--steps", "2", "--device", "cpu"])
    saved = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert saved["step"] == 2 and saved["args"]["path"] == str(tmp_path / "here" / images.name)
    again = m.parse_args(["--resume", "--out", str(tmp_path / "run"), "--steps", "3", "--path", "moved"])
    assert again.path == str(tmp_path / "elsewhere/moved")


def test_a_checkpoint_holds_the_flags_as_they_were_given(any_script, images, tmp_path):
    """Catches a value that is worked out during the run and stored in the place of the flag: --load-size 0 would no longer follow --size."""
    flags = [*tiny(any_script), "--path", str(images), "--out", str(tmp_path / "a"), "--steps", "1", "--seed", "3"]
    expected = vars(module(any_script).parse_args(flags))
    module(any_script).main(flags)
    settled = {
        "autocast",
        "groups",
        "words",
        "text_dim",
        "captions",
        "found",
    }  # of the machine, the labels and the images
    saved = torch.load(tmp_path / "a/last.pt", weights_only=True)["args"]
    if any_script in ("acgan", "cgan_text2img"):  # the labels that were found, so that --resume takes no others
        expected["labels"] = str(images / "tags.csv")
    assert {k: v for k, v in saved.items() if k not in settled} == {
        k: v for k, v in expected.items() if k not in settled
    }
    if any_script == "cyclegan":
        state = module(any_script).main(["--resume", "--out", str(tmp_path / "a"), "--steps", "2", "--size", "32"])
        assert state["data"].images.shape[-1] == 32 * 286 // 256


def test_what_was_found_is_kept_with_the_run(any_script, images, tmp_path):
    """Catches an args.json that does not say on how many images, of how many files, a run was trained; and one that --resume does not bring up to date."""
    data = tmp_path / "data"
    shutil.copytree(images, data)
    folders = [data / "trainA", data / "trainB"] if any_script == "cyclegan" else [data]
    run(any_script, data, tmp_path / "a", "--steps", "1")
    for start in range(2):
        found = json.loads((tmp_path / "a/args.json").read_text())["found"]
        assert torch.load(tmp_path / "a/last.pt", weights_only=True)["args"]["found"] == found
        for folder in folders:
            count = len(list(folder.rglob("*.png")))
            about = found[str(folder)]
            assert about["images"] == count and about["files"] == len(list(folder.iterdir())), about
            assert about["left_out"].get("files that cannot be read", 0) == (start and folder == folders[0])
        if not start:
            (folders[0] / "damaged.tif").write_bytes(b"no image")
            run(any_script, data, tmp_path / "a", "--steps", "2", "--resume")


def test_a_checkpoint_of_a_card_is_resumed_on_a_cpu(any_script, images, tmp_path):
    """Catches --device cuda:0 that comes back from a checkpoint."""
    out = tmp_path / "a"
    run(any_script, images, out, "--steps", "1")
    saved = torch.load(out / "last.pt", weights_only=True)
    saved["args"] |= {"device": "cuda:0", "autocast": True}
    torch.save(saved, out / "last.pt")
    state = module(any_script).main(["--resume", "--out", str(out), "--steps", "2"])
    assert next(state["G"].parameters()).device.type in ("cpu", "cuda", "mps")
    assert torch.load(out / "last.pt", weights_only=True)["args"]["device"] != "cuda:0" or torch.cuda.is_available()


def test_given_flags_beat_the_preset_and_path_switches_it_off(any_script, tmp_path):
    """Catches a preset that --resume adds to a run on a folder, or that a given flag does not beat."""
    m = module(any_script)
    for name, value in m.PRESET.items():
        if isinstance(value, (int, float)) and name not in ("size", "constant", "decay", "save_every", "log_every"):
            flag = f"--{name.replace('_', '-')}"
            other = value * 2 if isinstance(value, int) else value / 2  # betas stay below 1
            given = m.parse_args(["--out", str(tmp_path / "x"), flag, str(other)]) if name != "steps" else None
            assert given is None or (getattr(given, name) == other and given.preset)
    plain = m.parse_args(["--path", "data", "--out", str(tmp_path / "x")])
    assert not plain.preset and any(getattr(plain, name) != value for name, value in m.PRESET.items())


NETWORKS = {
    "size": "48",
    "channels": "1",
    "z-dim": "9",
    "width": "5",
}  # flags that change the networks, and other values
OF_NETWORKS = dict.fromkeys(SCRIPTS, NETWORKS) | {name: NETWORKS | {"act": "lrelu"} for name in PLAIN}
OF_NETWORKS["wgan"] = OF_NETWORKS["wgan"] | {"norm": "instance"}
OF_NETWORKS["infogan"] = OF_NETWORKS["infogan"] | {"categories": "9", "codes": "3"}
OF_NETWORKS["r3gan"] = NETWORKS | {"blocks": "3", "stem": "2"}
OF_NETWORKS["cyclegan"] = {"channels": "1", "width": "5", "blocks": "2"}


def test_flags_that_change_the_networks_are_refused(any_script, images, tmp_path, capsys):
    """Catches a traceback from load_state_dict, or weights that fit by chance: --act, and in cyclegan.py --blocks of another kind."""
    known = set(module(any_script).ARCHITECTURE) - {"groups", "words", "text_dim"}  # which come from labels
    assert {flag.replace("-", "_") for flag in OF_NETWORKS[any_script]} == known
    out = tmp_path / "run"
    run(any_script, images, out, "--steps", "1")
    for flag, value in OF_NETWORKS[any_script].items():
        for start in (["--resume", "--steps", "2"], ["--sample", "1"]):
            with refused(capsys, 2, f"--{flag} ", "last.pt has", "leave it out"):
                module(any_script).main(["--out", str(out), "--device", "cpu", *start, f"--{flag}", value])
    same_again = ["--width", "4", "--channels", "3"]  # given again as it was: no contradiction
    module(any_script).main(["--out", str(out), "--device", "cpu", "--resume", "--steps", "2", *same_again])


# --- checkpoints ---


def test_keep(any_script, images, tmp_path):
    """Catches the oldest that are kept in place of the newest, one too many or too few, and --keep 0 that keeps all."""
    for keep, expected in ((0, []), (1, [4]), (2, [3, 4]), (9, [0, 1, 2, 3, 4])):
        out = tmp_path / str(keep)
        run(any_script, images, out, "--steps", "4", "--save-every", "1", "--keep", str(keep))
        assert sorted(int(file.stem) for file in out.glob("checkpoints/*.pt")) == expected
        assert torch.load(out / "last.pt", weights_only=True)["step"] == 4
        if keep == 9:  # a resumed run with another number takes away what is too much
            run(any_script, images, out, "--steps", "5", "--save-every", "1", "--keep", "0", "--resume")
            assert not list(out.glob("checkpoints/*.pt"))
        elif expected:
            assert (out / f"checkpoints/{4:06d}.pt").read_bytes() == (out / "last.pt").read_bytes()


def test_each_numbered_checkpoint_is_of_its_step(any_script, images, tmp_path):
    """Catches a checkpoint of another step than its name, and one that later steps go on changing."""
    m, weights = module(any_script), {}
    update_ema = m.update_ema
    steps = iter(range(1, 99))

    def spy(G_ema, G, decay):
        update_ema(G_ema, G, decay)
        weights[next(steps)] = (
            {k: v.clone() for k, v in G.state_dict().items()},
            {k: v.clone() for k, v in G_ema.named_parameters()},
        )

    m.update_ema = spy
    try:
        run(any_script, images, tmp_path / "a", "--steps", "4", "--save-every", "2", "--keep", "9", "--lr-g", "0.01")
    finally:
        m.update_ema = update_ema
    for step in (2, 4):
        saved = torch.load(tmp_path / f"a/checkpoints/{step:06d}.pt", weights_only=True)
        assert saved["step"] == step and saved["script"] == any_script
        average = {k: v for k, v in saved["state"]["G_ema"].items() if k in weights[step][1]}
        assert same(dict(saved["state"]["G"]), weights[step][0]) and same(average, weights[step][1])
    assert not same(weights[2][0], weights[4][0])


# --- more than one machine, seen from one process ---


@pytest.fixture
def machine(monkeypatch):
    """Set what torchrun tells a process: the third of four on the second of two machines, say."""

    def place(rank: int, local_rank: int, world: int, local_world: int):
        values = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": local_world}
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return place


def test_gradients_are_divided_by_all_processes(any_script, machine, monkeypatch):
    """Catches LOCAL_WORLD_SIZE in the place of the number of all processes, which a test on one machine cannot see."""
    machine(rank=2, local_rank=0, world=6, local_world=2)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 6)
    monkeypatch.setattr(dist, "get_rank", lambda: 2)
    sums = []
    monkeypatch.setattr(
        dist, "all_reduce", lambda flat, *_, **__: (sums.append(flat.clone()), flat.mul_(6).add_(12))[1]
    )
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([w], 1.0)
    module(any_script).step(optimizer, (w * torch.tensor([3.0, 5.0])).sum())
    assert sums[0].tolist() == [3, 5]
    assert w.grad.tolist() == [3 + 2, 5 + 2] and w.tolist() == [1 - 5, 2 - 7]  # (6 g + 12) / 6


SETUPS = {  # RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE -> the device on a machine with CUDA
    (0, 0, 1, 1): "cuda:0",
    (1, 1, 4, 2): "cuda:1",
    (2, 0, 4, 2): "cuda:0",
    (3, 1, 4, 2): "cuda:1",
}


@pytest.mark.parametrize("place", SETUPS)
def test_setup_on_many_machines_with_cuda(any_script, machine, monkeypatch, place):
    """Catches RANK in the place of LOCAL_RANK (a card that is not there), gloo for NCCL, and ranks that are those of one machine."""
    machine(*place)
    calls = {"device": [], "join": []}
    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls["device"].append(str(device)))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch, "empty", lambda *size, device=None, **_: empty(*size))
    monkeypatch.setattr(dist, "init_process_group", lambda *backend, **_: calls["join"].append(backend))
    for flag in ("auto", "cuda"):
        args = settings_of(any_script, "--bf16", "--device", flag, "--batch", "8")
        assert module(any_script).setup(args) == (place[0], place[2])
        assert args.device == SETUPS[place] and args.autocast is True
    assert calls["device"] == [SETUPS[place]] * 2
    assert calls["join"] == [("nccl",)] * 2 * (place[2] > 1)
    if place[2] == 1:  # for several processes, one card is refused: test_devices.py
        args = settings_of(any_script, "--device", "cuda:1", "--no-bf16", "--batch", "8")
        module(any_script).setup(args)
        assert args.device == "cuda:1" and args.autocast is False  # by hand it stays
    args = settings_of(any_script, "--device", "cuda", "--no-bf16", "--batch", "8")
    module(any_script).setup(args)
    assert args.device == SETUPS[place] and args.autocast is False
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    args = settings_of(any_script, "--bf16", "--device", "cuda", "--batch", "8")
    module(any_script).setup(args)
    assert args.autocast is False


def settings_of(script: str, *flags) -> argparse.Namespace:
    return module(script).parse_args([*tiny(script), "--path", "unused", "--out", "nowhere", *flags])


def test_setup_on_cpus(any_script, machine, monkeypatch, capsys):
    """Catches NCCL without a card, and a batch that does not divide although it is larger than the number of processes."""
    joined = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", lambda *backend, **_: joined.append(backend))
    machine(2, 0, 4, 2)
    args = settings_of(any_script, "--device", "auto", "--batch", "8")
    assert module(any_script).setup(args) == (2, 4)
    assert args.device == "cpu" and args.autocast is False and joined == [("gloo",)]
    for batch, world in ((8, 3), (8, 16), (6, 4)):
        machine(0, 0, world, 1)
        with refused(capsys, 2, f"--batch {batch}", f"{world} processes"):
            module(any_script).setup(settings_of(any_script, "--batch", str(batch)))
    machine(0, 0, 1, 1)
    for device in ("cuda", "cuda:7", "gpu"):
        with refused(capsys, 2, "--device", device.split(":")[0]):
            module(any_script).setup(settings_of(any_script, "--device", device, "--batch", "8"))
    assert len(joined) == 1  # what is refused does not join


def test_mps_is_for_one_process(any_script, machine, monkeypatch):
    """Catches gloo asked for tensors on a Mac's GPU, which it does not reach."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device=None, **_: empty(*size))
    for world, device in ((1, "mps"), (2, "cpu")):
        machine(0, 0, world, world)
        args = settings_of(any_script, "--bf16", "--device", "auto", "--batch", "8")
        module(any_script).setup(args)
        assert args.device == device
        assert device != "mps" or args.autocast is False


def data_args(path, cache, **flags) -> argparse.Namespace:
    defaults = {"out": "nowhere", "size": 16, "channels": 3, "batch": 1, "seed": 0, "flip": False, "device": "cpu"}
    defaults |= {"fit": "crop", "found": {}}
    return argparse.Namespace(path=str(path), cache=str(cache), **(defaults | flags))


def test_each_machine_decodes_for_itself(folder, tmp_path, machine, monkeypatch):
    """Catches a second machine that waits for ever for the cache of the first: RANK in the place of LOCAL_RANK."""
    monkeypatch.setattr(common.time, "sleep", lambda _: pytest.fail("waits for another machine"))
    machine(rank=2, local_rank=0, world=4, local_world=2)
    assert len(common.load_images(data_args(folder, tmp_path))[0]) == 24


def test_other_processes_of_a_machine_wait_for_its_first(folder, tmp_path, machine, monkeypatch):
    """Catches every process of a machine decoding the same images, in one file at once."""
    waits = []

    def sleep(_):
        waits.append(1)
        if len(waits) == 3:
            machine(rank=2, local_rank=0, world=4, local_world=2)
            common.load_images(data_args(folder, tmp_path))
            machine(rank=3, local_rank=1, world=4, local_world=2)

    monkeypatch.setattr(common.time, "sleep", sleep)
    machine(rank=3, local_rank=1, world=4, local_world=2)
    assert len(common.load_images(data_args(folder, tmp_path))[0]) == 24 and len(waits) == 3


def test_only_the_first_process_of_all_speaks_and_writes(any_script, images, tmp_path, machine, monkeypatch, capsys):
    """Catches a second machine whose first process writes samples, or repeats what was left out."""
    m, out = module(any_script), tmp_path / "a"
    run(any_script, images, out, "--steps", "1")
    capsys.readouterr()
    before = sorted(out.rglob("*"))
    monkeypatch.setattr(m, "setup", lambda args: vars(args).update(device="cpu", autocast=False) or (2, 4))
    machine(rank=2, local_rank=0, world=4, local_world=2)
    m.main(["--out", str(out), "--sample", "2", "--device", "cpu"])
    assert sorted(out.rglob("*")) == before and capsys.readouterr().err == ""


def test_noise_and_data_are_those_of_the_rank(any_script, images, tmp_path, machine, monkeypatch):
    """Catches seeds or shards by LOCAL_RANK: two machines would train on the same images and noise."""
    m, seen = module(any_script), {}

    class Enough(Exception):
        pass

    train_step = m.train_step
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    for rank in (0, 2):
        machine(rank=rank, local_rank=0, world=4, local_world=2)

        def spy(G, D, opt_G, opt_D, data, *rest, rank=rank):
            seen[rank] = (torch.initial_seed(), batch_of(data))
            raise Enough

        monkeypatch.setattr(m, "train_step", spy)
        monkeypatch.setattr(
            m, "setup", lambda args, rank=rank: vars(args).update(device="cpu", autocast=False) or (rank, 4)
        )
        with pytest.raises(Enough):
            m.main(
                [
                    *tiny(any_script),
                    "--batch",
                    "4",
                    "--path",
                    str(images),
                    "--out",
                    str(tmp_path / str(rank)),
                    "--steps",
                    "1",
                ]
            )
    monkeypatch.setattr(m, "train_step", train_step)
    assert seen[0][0] != seen[2][0] and not torch.equal(seen[0][1], seen[2][1])
    assert (tmp_path / "0/last.pt").exists() and not (tmp_path / "2").exists()


def batch_of(data) -> torch.Tensor:
    """The images of the next batch, of both sides in cyclegan.py."""
    if isinstance(data, tuple):
        return torch.cat([next(side) for side in data])
    batch = next(data)
    return batch[0] if isinstance(batch, (tuple, list)) else batch
