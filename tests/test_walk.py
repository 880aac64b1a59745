"""--seeds, --walk and --grid: the images that a seed, a prompt, a code or a place on the path call for, redone here by hand."""

import argparse
import csv
import itertools

import numpy as np
import pytest
import torch
from conftest import SCRIPTS, module, run, settings
from PIL import Image
from test_sampling import condition_of, draw, strengthen
from test_training import refused

import common


@pytest.fixture(scope="module", params=SCRIPTS)
def trained(request, folder, tmp_path_factory):
    """A short run of each script: its name and its folder."""
    out = tmp_path_factory.mktemp("walk") / "run"
    run(request.param, folder, out, "--steps", "2", "--lr-g", "0.02")
    if request.param != "r3gan":  # whose images are not bounded, and would be clipped everywhere
        strengthen(request.param, out / "last.pt")
    return request.param, out


def generator(script: str, out):
    """G_ema of the last checkpoint, and the flags that it was trained with."""
    saved = torch.load(out / "last.pt", weights_only=True)
    args = argparse.Namespace(**saved["args"])
    G = module(script).Generator(args).eval().requires_grad_(False)
    G.load_state_dict(saved["state"]["G_ema"])
    return G, args


def table(out) -> list[dict[str, str]]:
    """labels.csv, or a row for each image."""
    file = out / "generated/labels.csv"
    if file.exists():
        return list(csv.DictReader(file.open(newline="")))
    return [{"image": file.name} for file in sorted((out / "generated").glob("*.png"))]


def pixels(x: torch.Tensor) -> torch.Tensor:
    return (x.clamp(-1, 1) + 1) * 127.5


def image(out, name: str) -> np.ndarray:
    return np.asarray(Image.open(out / "generated" / name)).transpose(2, 0, 1).astype(float)


def frames_of(script: str, out, monkeypatch, *flags) -> torch.Tensor:
    """All frames of --walk in 0..255, before the GIF reduces their colors."""
    frames = []

    def collect(args, generate):
        while sum(map(len, frames)) < args.walk:
            frames.append(generate().float())

    monkeypatch.setattr(common, "write_walk", collect)
    module(script).main(["--out", str(out), "--device", "cpu", *flags])
    return pixels(torch.cat(frames))


def test_each_seed_has_its_image(trained):
    """Catches an image that depends on the other seeds or on its place, noise of another seed, and files that are named by their place."""
    script, out = trained
    main = module(script).main
    main(["--out", str(out), "--device", "cpu", "--seeds", "41", "3", "7"])
    assert {file.name for file in (out / "generated").glob("*.png")} == {"seed_3.png", "seed_7.png", "seed_41.png"}
    rows = {row["image"]: row for row in table(out)}
    many = {seed: image(out, f"seed_{seed}.png") for seed in (3, 7, 41)}
    main(["--out", str(out), "--device", "cpu", "--seeds", "3"])
    assert [row["image"] for row in table(out)] == ["seed_3.png"]
    assert (image(out, "seed_3.png") == many[3]).all()

    G, args = generator(script, out)
    for seed, found in many.items():
        torch.manual_seed(seed)
        z = draw(1, args)
        row = rows[f"seed_{seed}.png"]
        c = [condition_of(script, row, args)[None]] if len(row) > 1 else []
        if script == "infogan":  # its code comes from the seed, too
            category = torch.randint(args.categories, (1,)).item()
            numbers = torch.rand(args.codes) * 2 - 1
            assert c[0][0, category] == 1 and torch.allclose(c[0][0, args.categories :], numbers, atol=1e-4)
        assert abs(found - pixels(G(z, *c))[0].numpy()).max() <= 1
    assert abs(many[3] - many[7]).max() > 3
    if script in ("acgan", "cgan_text2img"):
        assert len({tuple(row.values())[1:] for row in rows.values()}) == 1


def test_the_path_is_a_circle_of_likely_latents():
    """Catches a path with a jump at its end, one that runs through 0, where no noise lies, and frames at uneven steps."""
    args = settings("dcgan", "--z-dim", "20000", "--batch", "8")
    args.walk, args.seeds, args.device = 12, None, "cpu"
    torch.manual_seed(5)
    z = torch.cat(list(module("dcgan").latents(args)))
    assert z.shape == (12, 20000)
    torch.manual_seed(5)
    a, b = torch.randn(2, 20000)
    for place, expected in {0: a, 3: b, 6: -a, 9: -b, 1: a * 0.75**0.5 + b / 2}.items():
        assert torch.allclose(z[place], expected, atol=1e-5)
    assert torch.allclose(z.std(1), torch.ones(12), atol=0.03)
    steps = (z.roll(-1, 0) - z).norm(dim=1)
    assert torch.allclose(steps, steps.mean().expand(12), rtol=0.02)

    args.noise = "uniform"
    z = torch.cat(list(module("dcgan").latents(args)))
    assert z.abs().max() < 1
    for share in (0.1, 0.5, 0.9):  # as in U(-1, 1), in each frame
        assert ((z.abs() < share).float().mean(1) - share).abs().max() < 0.02


def test_frames_are_what_the_path_calls_for(trained, monkeypatch):
    """Catches a label, code or z that changes along the way when it should stay, or stays when it should change."""
    script, out = trained
    frames = frames_of(script, out, monkeypatch, "--walk", "12", "--seed", "4")
    G, args = generator(script, out)
    torch.manual_seed(4)
    if script == "infogan":
        z = draw(1, args).repeat(12, 1)
        c = torch.zeros(1, args.categories + args.codes)
        c[0, torch.randint(args.categories, (1,))] = 1
        c[0, args.categories :] = torch.rand(args.codes) * 2 - 1
        c = c.repeat(12, 1)
        c[:, args.categories] = (torch.arange(12) * torch.pi / 6).cos()
        expected = G(z, c)
    elif script == "cgan_text2img":
        z = draw(1, args).repeat(12, 1)
        texts = [condition_of(script, {"caption": caption}, args) for caption in args.captions[:4]]
        corners = G.text(torch.stack(texts))
        encoded = [(corners[i] * (3 - k) + corners[(i + 1) % 4] * k) / 3 for i in range(4) for k in range(3)]
        expected = G.net(torch.cat([z, torch.stack(encoded)], 1)[:, :, None, None])
    else:
        a, b = torch.randn(2, args.z_dim)
        angle = torch.arange(12)[:, None] * torch.pi / 6
        z = angle.cos() * a + angle.sin() * b
        y = []
        if script == "acgan":
            own = torch.Generator().manual_seed(4)
            sizes = torch.tensor([len(values) for values in args.groups.values()])
            y = [(torch.rand(12 + args.batch, len(sizes), generator=own) * sizes).long()[:1].expand(12, -1)]
        expected = G(z, *y)
    assert abs(frames - pixels(expected)).max() <= 0.01
    assert abs(frames - frames[0]).max() > 3


def test_from_prompt_to_prompt(trained, monkeypatch):
    """Catches prompts in another order, a path that does not come back, and one prompt that gives a GIF that stands still."""
    script, out = trained
    if script != "cgan_text2img":
        pytest.skip("takes no prompts")
    prompts = ["red hair blue eyes", "black hair", "green eyes"]
    flags = [word for prompt in prompts for word in ("--prompt", prompt)]
    frames = frames_of(script, out, monkeypatch, "--walk", "30", *flags)
    G, args = generator(script, out)
    torch.manual_seed(0)
    z = draw(1, args)
    for place, prompt in zip((0, 10, 20), prompts, strict=True):
        expected = pixels(G(z, condition_of(script, {"caption": prompt}, args)[None]))[0]
        assert abs(frames[place] - expected).max() <= 0.01
    assert abs(frames[29] - frames[0]).max() < abs(frames[15] - frames[0]).max()

    with pytest.raises(SystemExit) as error:
        frames_of(script, out, monkeypatch, "--walk", "2", *flags)
    assert error.value.code == 2

    frames = frames_of(script, out, monkeypatch, "--walk", "8", "--prompt", "black hair")
    torch.manual_seed(0)
    a, b = torch.randn(2, args.z_dim)
    t = condition_of(script, {"caption": "black hair"}, args)[None]
    assert abs(frames[[0, 2]] - pixels(G(torch.stack([a, b]), t.expand(2, -1)))).max() <= 0.01


def test_each_prompt_has_each_seed(trained):
    """Catches --seeds that ends with an error, or goes on to other seeds, after the first prompt."""
    script, out = trained
    if script != "cgan_text2img":
        pytest.skip("takes no prompts")
    prompts = ["red hair blue eyes", "black hair"]
    flags = [word for prompt in prompts for word in ("--prompt", prompt)]
    module(script).main(["--out", str(out), "--device", "cpu", "--seeds", "3", "41", *flags])
    G, args = generator(script, out)
    assert len(table(out)) == 4
    for i, prompt in enumerate(prompts, 1):
        for k, seed in enumerate((3, 41), 1):
            torch.manual_seed(seed)
            expected = pixels(G(draw(1, args), condition_of(script, {"caption": prompt}, args)[None]))[0]
            assert abs(image(out, f"sample_{i}_{k}.png") - expected.numpy()).max() <= 1


@pytest.mark.parametrize("channels", ["1", "3"])
def test_the_gif(channels, folder, tmp_path):
    """Catches frames that are lost, in another order or washed out, and a GIF that plays once."""
    out = tmp_path / "run"
    run("dcgan", folder, out, "--steps", "2", "--channels", channels, "--lr-g", "0.02")
    strengthen("dcgan", out / "last.pt")
    module("dcgan").main(["--out", str(out), "--device", "cpu", "--walk", "12"])
    G, args = generator("dcgan", out)
    torch.manual_seed(0)
    a, b = torch.randn(2, args.z_dim)
    with Image.open(out / "walk.gif") as gif:
        assert gif.n_frames == 12 and gif.size == (args.size, args.size)
        assert gif.info["loop"] == 0 and gif.info["duration"] == 50
        for place, z in {0: a, 3: b, 6: -a, 9: -b}.items():
            gif.seek(place)
            found = np.asarray(gif.convert("RGB")).transpose(2, 0, 1).astype(float)
            expected = pixels(G(z[None]))[0].numpy()  # one channel is broadcast to three
            assert abs(found - expected).mean() < 4
    # the user's own file stays
    (out / ".written").unlink()
    before = (out / "walk.gif").read_bytes()
    with pytest.raises(SystemExit) as error:
        module("dcgan").main(["--out", str(out), "--device", "cpu", "--walk", "4"])
    assert error.value.code == 2 and (out / "walk.gif").read_bytes() == before


def test_statistics_of_the_batch_are_refused(trained, capsys):
    """Catches a path with jumps between batches, and an image that is normalized by itself alone."""
    script, out = trained
    if script == "r3gan":
        pytest.skip("has no BatchNorm")
    for flags in (["--walk", "4"], ["--seeds", "1"], ["--grid"]):
        with refused(capsys, 2, "--sample-mode batch", "leave it out"):
            module(script).main(["--out", str(out), "--device", "cpu", "--sample-mode", "batch", *flags])


def test_a_seed_twice(trained):
    """Catches a seed that is drawn twice into one file."""
    script, out = trained
    module(script).main(["--out", str(out), "--device", "cpu", "--seeds", "3", "7", "3"])
    assert sorted(row["image"] for row in table(out)) == ["seed_3.png", "seed_7.png"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_one_way_to_draw_at_a_time(script, capsys):
    """Catches --walk or --grid that silently wins over --sample or --seeds."""
    ways = (["--walk", "4"], ["--sample", "3"], ["--seeds", "1"], ["--grid"], ["--resume"])
    for one, other in itertools.combinations(ways, 2):
        flags = [*one, *other]
        with refused(capsys, 2, "not allowed with"):
            module(script).parse_args(flags)


def test_cyclegan_has_neither(capsys):
    """Catches flags of the latent space in the script that has none."""
    for flags in (["--walk", "4"], ["--seeds", "1"]):
        with refused(capsys, 2, "unrecognized arguments"):
            module("cyclegan").parse_args(flags)


def test_the_grid_of_each_checkpoint(any_script, images, tmp_path):
    """Catches a grid of other noise or labels, one that G draws itself, and one that no checkpoint was loaded for."""
    out = tmp_path / "run"
    run(any_script, images, out, "--steps", "4", "--save-every", "2", "--lr-g", "0.02")
    for step in ("000002", "000004"):
        module(any_script).main(["--out", str(out), "--grid", "--checkpoint", str(out / f"checkpoints/{step}.pt")])
        assert (out / "grid.png").read_bytes() == (out / f"samples/{step}.png").read_bytes(), step
    assert (out / "samples/000002.png").read_bytes() != (out / "samples/000004.png").read_bytes()

    elsewhere = ["--checkpoint", str(out / "last.pt"), "--out", str(tmp_path / "elsewhere")]
    module(any_script).main([*elsewhere, "--grid"])
    assert sorted(file.name for file in (tmp_path / "elsewhere").iterdir()) == [".written", "grid.png"]
    if any_script != "cyclegan":  # whose grid has no noise
        module(any_script).main([*elsewhere, "--grid", "--seed", "7"])
        assert (tmp_path / "elsewhere/grid.png").read_bytes() != (out / "grid.png").read_bytes()


def test_a_grid_spares_the_users_file(folder, tmp_path, capsys):
    """Catches a grid.png of the user's that is overwritten, and a run that is changed by drawing."""
    out = tmp_path / "run"
    run("dcgan", folder, out, "--steps", "1")
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    (out / "grid.png").write_text("mine")
    with refused(capsys, 2, "'grid.png'", "move them"):
        module("dcgan").main(["--out", str(out), "--grid"])
    assert (out / "grid.png").read_text() == "mine"
    assert all(file.read_bytes() == content for file, content in before.items())
