"""Whole runs: the files they leave, bit-exact resume, determinism, interruption, sampling, and what is refused."""

import csv
import itertools
import json
import math
import multiprocessing
import os
import pickle
import signal
import time

import numpy as np
import pytest
import torch
from conftest import LOOKS, NOISE, PLAIN, module, run, same, same_state, settings, tiny
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.utils import make_grid

import common

FAST = ("--lr-g", "0.02")  # after a few steps different noise gives images that differ by more than a gray level
OFTEN = (*FAST, "--log-every", "1", "--save-every", "4", "--flip")


def frames(gif) -> int:
    return Image.open(gif).n_frames


def refused(capsys, code, *parts):
    """A context that expects an exit with `code` and one sentence on stderr that holds all `parts`."""

    class Refused:
        def __enter__(self):
            capsys.readouterr()

        def __exit__(self, kind, error, trace):
            message = capsys.readouterr().err
            assert kind is SystemExit and error.code == code, (kind, error, message)
            sentences = [line for line in message.splitlines() if "error: " in line]
            assert len(sentences) == 1 and "Traceback" not in message, message
            assert all(part in sentences[0] for part in parts), (parts, sentences)
            return True

    return Refused()


def test_files_of_a_run(script, folder, tmp_path):
    """Catches a file that is missing, empty, of another step, or drawn with another range than the data's."""
    out = tmp_path / "run"
    state = run(script, folder, out, "--steps", "6", "--log-every", "2", "--save-every", "3", "--keep", "2", *FAST)
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and "tfevents" not in path.name}
    names -= {".lock"}
    samples = {f"samples/{i:06d}.png" for i in (0, 3, 6)}
    numbered = {f"checkpoints/{i:06d}.pt" for i in (3, 6)}  # the two newest
    assert names == {"args.json", "log.csv", "real.png", "progress.gif", "last.pt"} | samples | numbered

    args = json.loads((out / "args.json").read_text())
    assert args["script"] == script and args["steps"] == 6 and args["preset"] is False and args["images"] == 24
    rows = list(csv.DictReader((out / "log.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4", "6"] and {"loss_D", "loss_G", "diversity"} < rows[0].keys()
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())

    events = EventAccumulator(str(out), size_guidance={"images": 0}).Reload()
    assert {"loss_D", "loss_G", "diversity", "images_per_second"} <= set(events.Tags()["scalars"])
    assert [(e.step, f"{e.value:.5g}") for e in events.Scalars("loss_D")] == [
        (int(row["step"]), f"{np.float32(row['loss_D']):.5g}") for row in rows
    ]
    assert [e.step for e in events.Images("samples")] == [0, 3, 6]
    assert frames(out / "progress.gif") == 3

    saved = torch.load(out / "last.pt", weights_only=True)
    assert saved["step"] == 6 and same(saved["state"], {name: thing.state_dict() for name, thing in state.items()})
    torch.manual_seed(0)  # the last grid is that of the average, in eval mode, with the fixed range
    m = module(script)
    args = m.parse_args(["--resume", "--out", str(out), "--steps", "7"])
    args.device = "cpu"
    m.Generator(args).apply(m.init_weights), m.Discriminator(args).apply(m.init_weights)
    z, c = m.noise(common.GRID, args), ()
    looks = [
        LOOKS[sorted(range(24), key=str)[i // 8 * 3] % 6] for i in range(64)
    ]  # of eight training images, one a row
    if script == "acgan":
        c = (m.encode([[("hair", hair), ("eyes", eyes)] for hair, eyes in looks], args.groups),)
    if script == "cgan_text2img":
        c = (m.encode([f"{hair} hair {eyes} eyes" for hair, eyes in looks], args),)
    if script in ("acgan", "cgan_text2img"):
        z = z[:8].repeat(8, 1)
    if script == "infogan":  # a noise in each row
        z, c = z[::8].repeat_interleave(8, 0), (m.grid_codes(args),)
    grid = make_grid(state["G_ema"](z, *c))
    expected = ((grid + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    inside = make_grid(torch.ones(common.GRID, 3, args.size, args.size)).permute(1, 2, 0).numpy() == 1
    drawn = np.asarray(Image.open(out / "samples/000006.png"))
    assert abs(drawn.astype(int) - expected)[inside].max() <= 1


def test_real_grid_shows_the_data(folder, tmp_path):
    """Catches a grid with swapped channels or stretched range."""
    run("dcgan", folder, tmp_path / "run", "--steps", "1", "--size", "32")
    grid = np.asarray(Image.open(tmp_path / "run/real.png"))
    first = grid[2:34, 2:34]
    originals = [np.asarray(Image.open(folder / f"{i}.png")) for i in range(24)]
    assert min(abs(first.astype(int) - original).max() for original in originals) <= 1


def test_resume_is_bit_exact(script, folder, tmp_path):
    """Catches an optimizer, buffer, position or generator that is not restored, and rows or frames that are not dropped."""
    often = (
        [*OFTEN, "--lr-g", "2e-3"] if script == "r3gan" else OFTEN
    )  # no tanh holds its first steps: all frames alike
    whole = run(script, folder, tmp_path / "whole", "--steps", "12", *often)
    run(script, folder, tmp_path / "parts", "--steps", "5", *often)
    parts = module(script).main(["--resume", "--out", str(tmp_path / "parts"), "--steps", "12", "--device", "cpu"])
    assert same_state(whole, parts)
    for file in ("log.csv", "progress.gif", "real.png", "samples/000008.png", "samples/000012.png"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes(), file
    assert frames(tmp_path / "parts/progress.gif") == 4  # 0, 4, 8, 12: not the one at which the first part ended
    rows = [row.split(",")[0] for row in (tmp_path / "parts/log.csv").read_text().splitlines()]
    assert rows == ["step", *map(str, range(1, 13))]


def test_resume_from_an_older_checkpoint_drops_what_came_after(folder, tmp_path):
    """Catches rows twice, frames and checkpoints of a future that was given up."""
    whole = run("dcgan", folder, tmp_path / "run", "--steps", "8", *OFTEN, "--keep", "9")
    middle = str(tmp_path / "run/checkpoints/000004.pt")
    again = run("dcgan", folder, tmp_path / "run", "--steps", "6", "--resume", "--checkpoint", middle)
    rows = [row.split(",")[0] for row in (tmp_path / "run/log.csv").read_text().splitlines()]
    assert rows == ["step", *map(str, range(1, 7))]
    assert sorted(p.stem for p in (tmp_path / "run/checkpoints").iterdir()) == ["000000", "000004", "000006"]
    assert torch.load(tmp_path / "run/last.pt", weights_only=True)["step"] == 6
    forked = run(
        "dcgan", folder, tmp_path / "fork", "--steps", "8", "--resume", "--checkpoint", str(tmp_path / "run/last.pt")
    )
    assert same_state(whole, forked) and not same_state(whole, again)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.step for event in events.Scalars("loss_D")] == [1, 2, 3, 4, 5, 6]


def test_flags_by_hand_win_on_resume(folder, tmp_path):
    """Catches a learning rate that comes from the optimizer's state although another was asked for."""
    run("dcgan", folder, tmp_path / "run", "--steps", "2")
    state = run("dcgan", folder, tmp_path / "run", "--steps", "3", "--resume", "--lr-g", "1e-5")
    assert state["opt_G"].param_groups[0]["lr"] == 1e-5 and state["opt_D"].param_groups[0]["lr"] == 2e-4
    assert state["opt_G"].state_dict()["state"][0]["step"] == 3


def test_determinism(script, folder, tmp_path):
    """Catches hidden randomness; and a seed that only changes the start (torch's CPU generator uses 32 bits of it)."""
    a = run(script, folder, tmp_path / "a", "--steps", "3")
    b = run(script, folder, tmp_path / "b", "--steps", "3")
    c = run(script, folder, tmp_path / "c", "--steps", "3", "--seed", "1")
    assert same_state(a, b) and not same_state(a, c)
    noises = []
    for seed in ("0", "1"):
        m, seen = module(script), []
        m_noise = m.noise
        m.noise = lambda n, args, seen=seen, draw=m_noise: seen.append(draw(n, args)) or seen[-1]
        try:
            run(script, folder, tmp_path / f"seed{seed}", "--steps", "2", "--seed", seed)
        finally:
            m.noise = m_noise
        noises += [z for z in seen if len(z) != 64]  # without those of the grid and of the statistics
    assert all(not torch.equal(x, y) for i, x in enumerate(noises) for y in noises[:i] if x.shape == y.shape)


def test_observer_effect(script, folder, tmp_path):
    """Catches logs, grids or checkpoints that change training: samples of the live G, numbers drawn on the way."""
    often = run(script, folder, tmp_path / "a", "--steps", "5", "--log-every", "1", "--save-every", "1")
    never = run(script, folder, tmp_path / "b", "--steps", "5", "--log-every", "99", "--save-every", "99")
    assert same_state(often, never)


def test_sampling(script, folder, tmp_path):
    """Catches samples that depend on their number, need the data, come from the live G, or ignore --seed or the mode."""
    out = tmp_path / "run"
    state = run(script, folder, out, "--steps", "6", "--save-every", "3", "--lr-g", "0.02", "--size", "32")

    def sample(*flags) -> list[np.ndarray]:
        module(script).main(["--out", str(out), "--path", "gone", "--device", "cpu", *flags])
        files = sorted((out / "generated").glob("*.png"))
        assert (out / "generated/labels.csv").exists() == (script not in [*NOISE, "lightweight_gan", "r3gan"])
        assert [file.name for file in files] == [f"{i:05d}.png" for i in range(len(files))]
        return [np.asarray(Image.open(file)).astype(int) for file in files]

    eleven, five = sample("--sample", "11"), sample("--sample", "5")
    assert len(eleven) == 11 and len(five) == 5 and all((a == b).all() for a, b in zip(eleven, five, strict=False))
    m = module(script)
    args = m.parse_args(["--out", str(out), "--sample", "1", "--device", "cpu"])
    torch.manual_seed(0)
    z = m.noise(8, args)
    c = {"acgan": lambda: m.wanted(args)[:8]}
    c["cgan_text2img"] = lambda: torch.stack(list(itertools.islice(m.wanted(args)[0], 8)))
    c["infogan"] = lambda: m.draw_codes(8, args)
    c = [c[script]()] if script in c else []
    expected = (state["G_ema"](z, *c)[0].clamp(-1, 1) + 1) * 127.5
    assert abs(five[0] - expected.permute(1, 2, 0).numpy()).max() <= 1
    assert any((a != b).any() for a, b in zip(five, sample("--sample", "5", "--seed", "1"), strict=True))
    if script != "r3gan":  # it has no BatchNorm
        batch = sample("--sample", "5", "--sample-mode", "batch")
        assert any((a != b).any() for a, b in zip(five, batch, strict=True))
    earlier = sample("--sample", "5", "--checkpoint", str(out / "checkpoints/000003.pt"))
    assert any((a != b).any() for a, b in zip(five, earlier, strict=True))


def test_refused_checkpoints(script, folder, tmp_path, capsys):
    """Catches silent nonsense: other architecture, truncated files, pickles that run code, other scripts' files, none."""
    out = tmp_path / "run"
    run(script, folder, out, "--steps", "2")
    again = ["--out", str(out), "--resume", "--steps", "4", "--device", "cpu"]
    m = module(script)
    others = [("--width", "5"), ("--size", "48"), ("--z-dim", "9"), ("--channels", "1")]
    for flag, value in others + [("--act", "lrelu")] * (script in PLAIN):
        with refused(capsys, 2, flag, "last.pt"):
            m.main([*again, flag, value])
    with refused(capsys, 2, "no checkpoint", "nothing.pt"):
        m.main([*again, "--checkpoint", str(tmp_path / "nothing.pt")])
    whole = (out / "last.pt").read_bytes()
    (out / "last.pt").write_bytes(whole[: len(whole) // 2])
    with refused(capsys, 2, "last.pt", "damaged"):
        m.main(again)

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'evil'}",)

    (out / "last.pt").write_bytes(pickle.dumps({"script": script, "state": Evil()}))
    with refused(capsys, 2, "last.pt"):
        m.main(again)
    torch.save({"script": script, "step": 1, "args": {}, "state": Evil()}, out / "last.pt")
    with refused(capsys, 2, "last.pt"):
        m.main(again)
    assert not (tmp_path / "evil").exists()
    torch.save({"script": "othergan", "step": 1, "args": {}, "state": {}}, out / "last.pt")
    with refused(capsys, 2, "othergan.py"):
        m.main(again)
    (out / "last.pt").write_bytes(whole)
    with refused(capsys, 2, "already holds a run", "--resume", "--out"):
        m.main([*tiny(script), "--path", str(folder), "--out", str(out)])
    m.main(again)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_resumes(script, folder, tmp_path, monkeypatch, capsys, number):
    """Catches a stop in the middle of a step, which would leave D one update ahead of G."""
    whole = run(script, folder, tmp_path / "whole", "--steps", "9", *OFTEN)
    m, calls, before = module(script), [], signal.getsignal(number)
    train_step = m.train_step

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), number)
        return train_step(*arguments)

    monkeypatch.setattr(m, "train_step", interrupted)
    run(script, folder, tmp_path / "cut", "--steps", "9", *OFTEN)
    assert "stopped and saved at step 6" in capsys.readouterr().err
    assert torch.load(tmp_path / "cut/last.pt", weights_only=True)["step"] == 6 and len(calls) == 6
    assert same_state(whole, m.main(["--resume", "--out", str(tmp_path / "cut"), "--device", "cpu"]))
    assert (tmp_path / "whole/log.csv").read_bytes() == (tmp_path / "cut/log.csv").read_bytes()
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("what", ["loss", "weight"])
def test_not_finite_stops_before_anything_is_overwritten(script, folder, tmp_path, monkeypatch, capsys, what):
    """Catches a NaN that eats the last good checkpoint."""
    m, steps = module(script), []
    train_step = m.train_step

    def broken(G, D, *rest):
        metrics = train_step(G, D, *rest)
        steps.append(1)
        if len(steps) == 6:
            if what == "weight":
                next(D.parameters()).data[0] = math.nan
            else:
                metrics["loss_G"] = metrics["loss_G"].abs() + math.inf
        return metrics

    monkeypatch.setattr(m, "train_step", broken)
    each = "2" if what == "loss" else "50"
    first = next(name for name, _ in m.Discriminator(settings(script)).named_parameters())
    with refused(capsys, 1, "step 6", "last.pt (step 4)", "loss_G is inf" if what == "loss" else f"D.{first}"):
        run(script, folder, tmp_path / "run", "--steps", "9", "--log-every", each, "--save-every", "2")
    assert torch.load(tmp_path / "run/last.pt", weights_only=True)["step"] == 4
    assert sorted(p.stem for p in (tmp_path / "run/samples").iterdir()) == ["000000", "000002", "000004"]


def test_full_disk_keeps_the_last_checkpoint(folder, tmp_path, monkeypatch, capsys):
    """Catches a checkpoint that is overwritten in place."""
    run("dcgan", folder, tmp_path / "run", "--steps", "2", "--save-every", "1")
    before = (tmp_path / "run/last.pt").read_bytes()

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with refused(capsys, 1, "the disk is full", "intact"):
        run("dcgan", folder, tmp_path / "run", "--steps", "4", "--resume")
    assert (tmp_path / "run/last.pt").read_bytes() == before and not list((tmp_path / "run").rglob("*.tmp"))


def train_in_child(script, folder, out, steps):
    torch.set_num_threads(1)
    flags = ["--steps", str(steps), "--log-every", "1", "--save-every", "1"]
    if os.path.exists(f"{out}/last.pt"):
        flags.append("--resume")
    run(script, folder, out, *flags)


def kill_loop(script, folder, tmp_path, kills: int) -> int:
    """Kill -9 a run that saves at every step, again and again; it must resume each time and end as if nothing had been."""
    steps = 36 + 12 * kills  # more than a fast machine does between two kills
    whole = run(script, folder, tmp_path / "whole", "--steps", str(steps), "--log-every", "1", "--save-every", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([script, "torch.utils.tensorboard"])
    delays, done, halves, step = np.random.default_rng(0), 0, 0, 0
    out = tmp_path / "killed"
    while done < kills:
        child = context.Process(target=train_in_child, args=(script, folder, str(out), steps))
        child.start()
        deadline = time.time() + 60
        while child.is_alive() and time.time() < deadline:  # kill soon after it has come one step further
            now = torch.load(out / "last.pt", weights_only=True)["step"] if (out / "last.pt").exists() else -1
            if now > step:
                time.sleep(delays.uniform(0, 0.1))
                break
            time.sleep(0.002)
        assert child.is_alive(), "it ended, or did not resume"
        child.kill()
        child.join()
        step = torch.load(out / "last.pt", weights_only=True)["step"]
        halves += bool(list(out.rglob("*.tmp")))
        done += 1
    state = module(script).main(["--resume", "--out", str(out), "--device", "cpu"])
    assert same_state(whole, state)
    assert (out / "log.csv").read_bytes() == (tmp_path / "whole/log.csv").read_bytes()
    assert frames(out / "progress.gif") == steps + 1
    return halves


def test_kill_during_saves(folder, tmp_path):
    """Catches a checkpoint that is ever half there, and a log or GIF that a kill tears."""
    kill_loop("dcgan", folder, tmp_path, 2)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["dcgan", "wgan_gp"])
def test_kill_during_saves_twenty_times(script, folder, tmp_path):
    halves = kill_loop(script, folder, tmp_path, 20)
    print(f"\n{script}: 20 kills, {halves} of them while a file was being written")


# what a preset may change, and what it may change in one script
IN_PRESETS = {"size", "width", "batch", "steps", "lr_g", "lr_d", "ema", "n_critic", "save_every", "log_every"}
MORE_IN_PRESETS = {"lightweight_gan": {"augment"}, "r3gan": {"blocks", "stem", "penalty_every", "gamma", "anneal"}}
MORE_IN_PRESETS |= {"infogan": {"beta1", "beta2"}, "wgan": {"norm"}}


def test_preset_without_path(script, tmp_path, monkeypatch):
    """Catches flags by hand that lose against the preset, and a preset that --path does not switch off."""
    m = module(script)
    args = m.parse_args(["--out", str(tmp_path), "--steps", "7"])
    assert args.preset and args.steps == 7 and args.size == m.PRESET["size"] and args.path is None
    full = m.parse_args(["--out", str(tmp_path), "--path", "x"])
    assert not full.preset and full.size == 64
    more = m.PRESET.keys() - IN_PRESETS - MORE_IN_PRESETS.get(script, set())
    assert not more, f"in the preset, but not in MORE_IN_PRESETS: {more}"
    monkeypatch.setattr(common, "FACES", 24)
    m.main([*tiny(script), "--out", str(tmp_path / "run"), "--steps", "1", "--size", "32"])
    saved = json.loads((tmp_path / "run/args.json").read_text())
    assert saved["preset"] is True and saved["images"] == 24 and saved["width"] == 4
