"""--sample: every image is the one that its seed, its row of labels.csv and the flags call for, redone here without the scripts' own code."""

import argparse
import csv
import itertools

import numpy as np
import pytest
import torch
from conftest import NOISE, SCRIPTS, module, run, settings, tiny
from PIL import Image

import common
import faces

LABELLED = ["acgan", "cgan_text2img", "infogan"]


def words_and_pairs(caption: str) -> list[str]:
    words = caption.lower().replace(",", "").split()
    return words + [f"{a} {b}" for a, b in itertools.pairwise(words)]


def condition_of(script: str, row: dict[str, str], args) -> torch.Tensor:
    """What G takes beside z for an image that is to show what its row says; from the checkpoint's lists of values or words."""
    if script == "acgan":
        return torch.tensor([v.index(row[g]) if row[g] else -1 for g, v in args.groups.items()])
    if script == "infogan":
        category = [float(k == int(row["category"])) for k in range(args.categories)]
        return torch.tensor(category + [float(row[f"code{k + 1}"]) for k in range(args.codes)])
    places = [args.words.index(part) + 1 for part in words_and_pairs(row["caption"])]
    return torch.tensor(places + [0] * (20 - len(places)))


def draw(n: int, args) -> torch.Tensor:
    return torch.randn(n, args.z_dim) if args.noise == "normal" else torch.rand(n, args.z_dim) * 2 - 1


def drawn_by_hand(script: str, checkpoint, rows: list[dict], seed: int, train_mode: bool) -> torch.Tensor:
    """(n, C, S, S) in 0..255: G_ema of the checkpoint on noise of the seed, in batches of the training's size."""
    saved = torch.load(checkpoint, weights_only=True)
    args = argparse.Namespace(**saved["args"])
    G = module(script).Generator(args)
    G.load_state_dict(saved["state"]["G_ema"])
    G.train(train_mode)
    torch.manual_seed(seed)
    images = []
    with torch.no_grad():
        for batch in batches(rows, args.batch):
            z = draw(args.batch, args)
            if script == "infogan":  # draws its codes after the noise
                torch.randint(args.categories, (args.batch,))
                torch.rand(args.batch, args.codes)
            c = [torch.stack([condition_of(script, row, args) for row in batch])] if script in LABELLED else []
            images.append(G(z[: len(batch)], *c))
    return (torch.cat(images).clamp(-1, 1) + 1) * 127.5


def batches(rows: list, n: int) -> list[list]:
    return [rows[k : k + n] for k in range(0, len(rows), n)]


def read(out) -> tuple[list[dict], np.ndarray]:
    """The rows of labels.csv, or the names of the files, and the images that they name: (n, C, S, S) in 0..255."""
    if (out / "generated/labels.csv").exists():
        with open(out / "generated/labels.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = [{"image": file.name} for file in sorted((out / "generated").glob("*.png"))]
    assert {row["image"] for row in rows} == {file.name for file in (out / "generated").glob("*.png")}
    images = [np.asarray(Image.open(out / "generated" / row["image"])) for row in rows]
    return rows, np.stack(images).transpose(0, 3, 1, 2).astype(float)


def strengthen(script: str, checkpoint):
    """Make noise and condition easy to see in what a checkpoint draws, although it is hardly trained."""
    saved = torch.load(checkpoint, weights_only=True)
    args, average = argparse.Namespace(**saved["args"]), saved["state"]["G_ema"]
    last = [key for key, weight in average.items() if weight.dim() == 4][-1]
    average[last] *= 10
    if script == "cgan_text2img":
        average["text.0.weight"] *= 5
    elif script in LABELLED:
        average["net.0.weight"][args.z_dim :] *= 30
    torch.save(saved, checkpoint)


@pytest.fixture(
    scope="module", params=[(script, noise) for script in SCRIPTS for noise in ("normal", "uniform")], ids="-".join
)
def trained(request, folder, tmp_path_factory):
    """A short run of each script with each kind of noise: its name and its folder, with checkpoints of steps 3 and 6."""
    script, noise = request.param
    out = tmp_path_factory.mktemp("sampling") / "run"
    flags = ["--steps", "6", "--save-every", "3", "--lr-g", "0.02", "--size", "32", "--noise", noise]
    run(script, folder, out, *flags)
    strengthen(script, out / "last.pt")
    strengthen(script, out / "checkpoints/000003.pt")
    return script, out


WAYS = {  # flags beside --sample -> seed, checkpoint, statistics of the batch
    "": (0, "last.pt", False),
    "--seed 5": (5, "last.pt", False),
    "--checkpoint {}/checkpoints/000003.pt": (0, "checkpoints/000003.pt", False),
    "--sample-mode batch": (0, "last.pt", True),
    "--sample-mode batch --seed 7": (7, "last.pt", True),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_sample_is_what_its_row_and_the_flags_say(trained, way):
    """Catches labels of another image, noise of another kind or seed, another checkpoint or mode, and the live G in place of the average."""
    script, out = trained
    seed, checkpoint, train_mode = WAYS[way]
    if script == "r3gan" and train_mode:
        pytest.skip("has no BatchNorm")
    n = 16 if train_mode else 19  # two batches of eight, or a part of a third
    module(script).main(["--out", str(out), "--device", "cpu", "--sample", str(n), *way.format(out).split()])
    rows, images = read(out)
    assert len(rows) == n and [row["image"] for row in rows] == [f"{i:05d}.png" for i in range(n)]
    assert (len(rows[0]) > 1) == (script in LABELLED)
    expected = drawn_by_hand(script, out / checkpoint, rows, seed, train_mode).numpy()
    assert abs(images - expected).max() <= 1
    # and the other ways would have been seen
    others = [drawn_by_hand(script, out / checkpoint, rows, seed + 1, train_mode)]
    if script in LABELLED:
        others.append(drawn_by_hand(script, out / checkpoint, [*rows[1:], rows[0]], seed, train_mode))
    for other in others:
        assert abs(images - other.numpy()).max() > 3


def given(script: str, out, *flags) -> list[dict]:
    """Draw, check every image against its row, and return the rows."""
    module(script).main(["--out", str(out), "--device", "cpu", *flags])
    rows, images = read(out)
    assert abs(images - drawn_by_hand(script, out / "last.pt", rows, 0, False).numpy()).max() <= 1
    shifted = drawn_by_hand(script, out / "last.pt", [*rows[1:], rows[0]], 0, False).numpy()
    assert abs(images - shifted).max() > 3
    return rows


@pytest.fixture(scope="module")
def labelled(folder, tmp_path_factory):
    """A run of each script that takes labels."""
    runs = {}
    for script in ("acgan", "cgan_text2img"):
        runs[script] = tmp_path_factory.mktemp(script) / "run"
        run(script, folder, runs[script], "--steps", "2", "--lr-g", "0.02")
        strengthen(script, runs[script] / "last.pt")
    return runs


PROMPTS = {
    "10": "white hair, green eyes",
    "9": "red hair blue eyes",
    "b": "black hair",
    "a": "green eyes",
    "1": "blue eyes",
}


def test_each_prompt_s_files_show_it(labelled, tmp_path):
    """Catches captions encoded in another order than that of their files: ids neither in the order of numbers nor of letters."""
    out = labelled["cgan_text2img"]
    (tmp_path / "list.txt").write_text("".join(f"{name},{text}\n" for name, text in PROMPTS.items()))
    rows = given("cgan_text2img", out, "--prompts", str(tmp_path / "list.txt"), "--sample", "3")
    expected = {f"sample_{name}_{k}.png": text for name, text in PROMPTS.items() for k in (1, 2, 3)}
    assert {row["image"]: row["caption"] for row in rows} == expected
    flags = [word for text in PROMPTS.values() for word in ("--prompt", text)]
    rows = given("cgan_text2img", out, *flags)
    expected = {f"sample_{i}_{k}.png": text for i, text in enumerate(PROMPTS.values(), 1) for k in range(1, 6)}
    assert {row["image"]: row["caption"] for row in rows} == expected


def test_prompts_of_both_kinds(labelled, tmp_path):
    """Catches --prompt that is forgotten where --prompts is given, too."""
    (tmp_path / "list.txt").write_text("b,black hair\na,green eyes\n")
    flags = ["--prompts", str(tmp_path / "list.txt"), "--prompt", "white hair blue eyes", "--sample", "2"]
    rows = given("cgan_text2img", labelled["cgan_text2img"], *flags)
    texts = {"1": "white hair blue eyes", "b": "black hair", "a": "green eyes"}
    assert {row["image"]: row["caption"] for row in rows} == {
        f"sample_{name}_{k}.png": t for name, t in texts.items() for k in (1, 2)
    }


def test_sample_labels_in_turn(labelled, tmp_path):
    """Catches attributes in another order than the file's, in images or in labels.csv, and a turn that does not begin anew."""
    asked = [("white", "green"), ("black", ""), ("red", "blue"), ("", "green")]
    lines = [" ".join([f"{hair} hair"] * bool(hair) + [f"{eyes} eyes"] * bool(eyes)) for hair, eyes in asked]
    (tmp_path / "list.txt").write_text("".join(f"{9 - i},{line}\n" for i, line in enumerate(lines)))
    rows = given("acgan", labelled["acgan"], "--sample", "10", "--sample-labels", str(tmp_path / "list.txt"))
    assert [(row["hair"], row["eyes"]) for row in rows] == [asked[i % 4] for i in range(10)]


def test_captions_of_the_training_come_in_turn(labelled):
    """Catches a caption that is never drawn, or drawn twice before all others were."""
    rows = given("cgan_text2img", labelled["cgan_text2img"], "--sample", "18")
    captions = [row["caption"] for row in rows]
    assert len(set(captions)) == 6 and captions == captions[:6] * 3


@pytest.mark.parametrize("script", ["acgan", "cgan_text2img"])
def test_the_first_samples_are_of_all_kinds(script, tmp_path, monkeypatch):
    """Catches samples in alphabetical order, of which the first hundred would all have aqua hair; and other ones each time."""
    monkeypatch.setattr(common, "FACES", 400)
    out = tmp_path / "run"
    module(script).main([*tiny(script), "--out", str(out), "--steps", "1"])

    def asked(*flags):
        module(script).main(["--out", str(out), "--device", "cpu", "--sample", "24", *flags])
        rows = read(out)[0]
        if script == "acgan":
            return [(row["hair"], row["eyes"]) for row in rows]
        return [tuple(row["caption"].split()[::2]) for row in rows]

    looks = asked()
    hair, eyes = zip(*looks, strict=True)
    assert set(hair) <= set(faces.HAIR) and set(eyes) <= set(faces.EYES)
    for names in (hair, eyes):
        assert len(set(names)) >= 6 and max(names.count(name) for name in names) <= 8
        assert list(names) != sorted(names)
    assert asked() == looks


def test_random_attributes_are_all_alike_often():
    """Catches numbers that are rounded, so that the first and the last value of each group come up half as often; and groups that go together."""
    m, args = module("acgan"), settings("acgan", "--seed", "3")
    args.sample, args.sample_labels, args.groups = 6000, None, {"eyes": ["a", "b"], "hair": ["a", "b", "c", "d", "e"]}
    y = m.wanted(args)[:6000]
    assert ((y[:, 0] == 1).float().mean() - 0.5).abs() < 0.03
    pairs = torch.zeros(2, 5).index_put((y[:, 0], y[:, 1]), torch.ones(len(y)), accumulate=True) / len(y)
    assert (pairs - 0.1).abs().max() < 0.02
    args.seed = 4
    assert not torch.equal(m.wanted(args)[:6000], y)


@pytest.mark.parametrize("script", SCRIPTS)
def test_one_gray_image(script, folder, tmp_path):
    """Catches a single sample, or one channel, that is drawn otherwise: --channels 1 --sample 1 is the first of --sample 3."""
    out = tmp_path / "run"
    run(script, folder, out, "--steps", "2", "--channels", "1", "--lr-g", "0.02")
    pictures = []
    for n in (1, 3):
        module(script).main(["--out", str(out), "--device", "cpu", "--sample", str(n)])
        rows, images = read(out)
        assert len(rows) == n and (images[:, :1] == images).all()  # three equal channels
        assert abs(images - drawn_by_hand(script, out / "last.pt", rows, 0, False).numpy()).max() <= 1
        pictures.append(images[0])
    assert (pictures[0] == pictures[1]).all()


@pytest.mark.parametrize("mode", ["eval", "batch"])
@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "r3gan"])
def test_few_samples_are_the_first_of_many(script, mode, folder, tmp_path):
    """Catches noise, or statistics of a batch, that depend on how many images are asked for."""
    out = tmp_path / "run"
    run(script, folder, out, "--steps", "2", "--lr-g", "0.02")
    pictures = []
    for n in (3, 8, 11):
        module(script).main(["--out", str(out), "--device", "cpu", "--sample", str(n), "--sample-mode", mode])
        pictures.append(read(out)[1][:3])
    assert all(np.array_equal(some, pictures[0]) for some in pictures)


@pytest.mark.parametrize("script", NOISE)
def test_samples_without_labels_leave_no_table(script, folder, tmp_path):
    """Catches labels.csv of an earlier run of another kind, which compare.py would believe."""
    out = tmp_path / "run"
    run(script, folder, out, "--steps", "1")
    (out / "generated").mkdir()
    (out / "generated/labels.csv").write_text("image,hair\n00000.png,red\n")
    Image.new("RGB", (16, 16)).save(out / "generated/00009.png")
    (out / "generated/.written").write_text("00009.png\0labels.csv")
    module(script).main(["--out", str(out), "--device", "cpu", "--sample", "2"])
    assert sorted(file.name for file in (out / "generated").iterdir()) == [".written", "00000.png", "00001.png"]


def test_files_are_clipped_where_G_has_no_tanh(folder, tmp_path):
    """Catches a value beyond [-1, 1] that wraps around in a file: r3gan.py's G is not bounded."""
    out = tmp_path / "run"
    state = run("r3gan", folder, out, "--steps", "1")
    saved = torch.load(out / "last.pt", weights_only=True)
    last = f"net.{len(state['G'].net) - 2}.weight"
    saved["state"]["G_ema"][last] = torch.full_like(saved["state"]["G_ema"][last], 50)
    torch.save(saved, out / "last.pt")
    module("r3gan").main(["--out", str(out), "--device", "cpu", "--sample", "8"])
    images = read(out)[1]
    args = argparse.Namespace(**saved["args"])
    G = module("r3gan").Generator(args)
    G.load_state_dict(saved["state"]["G_ema"])
    torch.manual_seed(0)
    x = G(torch.randn(8, args.z_dim)).detach().numpy()
    assert x.max() > 2 and x.min() < -2  # the test's own condition
    assert (images[x > 1] == 255).all() and (images[x < -1] == 0).all()
