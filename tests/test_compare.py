"""compare.py: scores against closed forms, a library and damaged images; runs, folders, table and pictures."""

import argparse
import csv
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED, TINY, module, run
from PIL import Image, ImageFilter
from test_training import refused

import common
import compare
import faces


def cloud(n: int, mean, root) -> torch.Tensor:
    """n points whose mean is exactly `mean` and whose covariance is exactly root root^T."""
    x = torch.randn(n, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    return (x @ torch.as_tensor(root, dtype=torch.float64).T + torch.tensor(mean)).float()


# --- scores ------------------------------------------------------------------------------------------------------------


def test_frechet_of_gaussians():
    """Catches a missing square root, factor or trace: shifted, scaled, and turned clouds have closed forms."""
    torch.manual_seed(0)
    a = cloud(500, [0.0, 0.0], np.diag([1.0, 2.0]))
    assert compare.frechet(a, a + torch.tensor([3.0, 4.0])) == pytest.approx(25, rel=1e-4)
    assert compare.frechet(a, cloud(700, [0.0, 0.0], np.diag([3.0, 5.0]))) == pytest.approx(4 + 9, rel=1e-4)
    c, s = math.cos(0.7), math.sin(0.7)
    turn = np.array([[c, -s], [s, c]])
    c1, c2 = np.diag([1.0, 4.0]), turn @ np.diag([9.0, 0.25]) @ turn.T
    cross = math.sqrt(np.trace(c1 @ c2) + 2 * math.sqrt(np.linalg.det(c1 @ c2)))  # tr M^(1/2) of a 2x2 matrix
    expected = np.trace(c1) + np.trace(c2) - 2 * cross
    assert compare.frechet(a, cloud(600, [0.0, 0.0], turn @ np.diag([3.0, 0.5]))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("n", [20, 500])
def test_frechet_of_a_set_with_itself(n):
    """Catches roots that are wrong for covariances without full rank (fewer images than features)."""
    torch.manual_seed(0)
    x = torch.randn(n, 60)
    assert abs(compare.frechet(x, x)) < 1e-6
    assert compare.frechet(x, torch.randn(n, 60)) > 0.1


def test_kid_is_the_mean_over_all_pairs():
    """Catches a diagonal that is counted, a wrong divisor or kernel."""
    torch.manual_seed(0)
    a, b = torch.randn(7, 4), torch.randn(9, 4) + 1

    def k(x, y):
        return (float(x @ y) / 4 + 1) ** 3

    def within(z):
        return np.mean([k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])

    expected = within(a) + within(b) - 2 * np.mean([k(x, y) for x in a for y in b])
    assert compare.kid(a, b) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("n", [20, 100, 1000])
def test_kid_of_two_halves_is_zero_at_any_n(n):
    """Catches a biased estimate, which would be about 6 / n here: the mean of many is 0 within three standard errors."""
    torch.manual_seed(0)
    values = np.array([compare.kid(torch.randn(n, 8), torch.randn(n, 8)) for _ in range(4000 // n)])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values)) + 1e-9
    assert values.mean() < 2 / n


def test_precision_and_recall_by_hand():
    """Catches roles that are exchanged, and a radius that counts the point itself as its neighbour."""
    real = torch.tensor([[0.0], [1.0], [10.0]])  # radii to the nearest other: 1, 1, 9
    fake = torch.tensor([[0.5], [18.0], [30.0], [31.0]])  # radii 17.5, 12, 1, 1
    assert compare.precision_recall(real, fake, k=1) == (0.5, 1.0)
    assert compare.precision_recall(fake, real, k=1) == (1.0, 0.5)
    assert compare.precision_recall(real, fake[2:], k=1) == (0.0, 0.0)


def test_collapse_costs_recall_and_noise_costs_precision():
    """Catches scores that do not move with what they are named after."""
    torch.manual_seed(0)
    real, same = torch.randn(500, 8), torch.randn(500, 8)
    collapsed, noisy = same[:5].repeat(100, 1) + 1e-3 * torch.randn(500, 8), 3 * same
    good, few, wild = (compare.precision_recall(real, fake) for fake in (same, collapsed, noisy))
    assert min(good) > 0.8 and few[1] < 0.05 < 0.6 < few[0] and wild[0] < 0.5 < wild[1]


def test_diversity_is_the_ratio_of_distances():
    torch.manual_seed(0)
    real, fake = torch.randn(300, 5), 0.5 * torch.randn(300, 5)
    rms = [torch.pdist(x).square().mean().sqrt().item() for x in (real, fake)]
    assert compare.diversity(real, fake) == pytest.approx(rms[1] / rms[0], rel=1e-5)


def test_nearest_leaves_the_image_itself_out():
    """Catches reals that find themselves, which would make the floor 0, and copies that are not found."""
    reals = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]])
    distance, index = compare.nearest(reals[[2, 0]], reals, np.array([2, 0]))
    assert index.tolist() == [1, 1] and distance.tolist() == pytest.approx([1, 5])
    distance, index = compare.nearest(reals[[2, 0]] + 1e-4, reals)
    assert index.tolist() == [2, 0] and distance.max() < 1e-2
    many = torch.randn(50, 400) + 10
    assert (compare.nearest(many[:30], many)[0] == 0).all()  # where a distance by matrix product is not exactly 0
    x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [0, 9], [9, 0]])
    row, _ = compare.scores(x + 1, x, torch.zeros(1, 2))
    assert row["nearest"] == 1  # the median, not the mean


def test_blocks_do_not_matter(monkeypatch):
    """Catches an image left out at the edge of a block."""
    torch.manual_seed(0)
    real, fake = torch.randn(50, 6), torch.randn(50, 6) + 0.5
    whole, index = compare.scores(real, fake, torch.cat([real, fake]), np.arange(50, 100))
    monkeypatch.setattr(compare, "BLOCK", 7)
    parts, other = compare.scores(real, fake, torch.cat([real, fake]), np.arange(50, 100))
    assert parts == pytest.approx(whole, rel=1e-5) and torch.equal(index, other)


# --- features and images -----------------------------------------------------------------------------------------------


FILTER, FEATURE = [0.2693482, -0.1018570, 0.0556127], [0.1561414, 0.2980527, 0.1528050]  # for ever


def painted(first: int, n: int, size: int = 32) -> np.ndarray:
    """Built-in faces, uint8 (n, S, S, 3)."""
    return np.stack([np.asarray(faces.paint(0, i, size)[0]) for i in range(first, first + n)])


def features(images: np.ndarray) -> torch.Tensor:
    return compare.extract(images.transpose(0, 3, 1, 2), np.arange(len(images)))


def test_features_are_fixed():
    """Catches filters that differ between machines or versions, which would make all published scores incomparable."""
    assert [tuple(w.shape) for w in compare.filters()] == [
        (16, 3, 3, 3),
        (32, 16, 3, 3),
        (64, 32, 3, 3),
        (128, 64, 3, 3),
    ]
    assert compare.filters()[0].flatten()[:3].tolist() == pytest.approx(FILTER, rel=1e-6)
    x = features(painted(0, 2))
    assert x.shape == (2, 480) and x[0, [0, 200, 479]].tolist() == pytest.approx(FEATURE, rel=1e-3)


def test_features_of_an_image_do_not_depend_on_the_others():
    """Catches statistics over the batch, and rows that are mixed up between blocks."""
    images = painted(0, 120)
    x = features(images)
    part = compare.extract(images.transpose(0, 3, 1, 2), np.array([29, 3, 17, 4, 5, 6, 7, 8, 9, 10]))
    torch.testing.assert_close(part, x[[29, 3, 17, 4, 5, 6, 7, 8, 9, 10]], rtol=1e-4, atol=1e-5)


def test_gray_images_count_as_color_images_without_color():
    gray = painted(0, 3).mean(3, keepdims=True).astype(np.uint8)
    torch.testing.assert_close(features(gray), features(np.repeat(gray, 3, 3)))


def damaged(images: np.ndarray, other: np.ndarray | None) -> dict[str, np.ndarray]:
    """Copies of uint8 (n, S, S, 3) with one thing wrong each."""
    rng, n = np.random.default_rng(0), len(images)

    def each(change):
        return np.stack([np.asarray(change(Image.fromarray(image))) for image in images])

    sets = {
        "the other half of the reals": images,
        "mirrored": images[:, :, ::-1],
        "blurred, 1 px": each(lambda image: image.filter(ImageFilter.GaussianBlur(1))),
        "noise, sd 20": (images + rng.normal(0, 20, images.shape)).clip(0, 255).astype(np.uint8),
        "8 colors each": each(lambda image: image.quantize(8, dither=Image.Dither.NONE).convert("RGB")),
        "ten modes": images[rng.integers(0, 10, n)],
        "one mode": images[np.zeros(n, int)],
        "half collapsed": images[np.where(np.arange(n) % 2, 0, np.arange(n))],
        "the mean face": np.repeat(images.mean(0, keepdims=True).astype(np.uint8), n, 0),
    }
    return sets if other is None else sets | {"the drawn heads": other}


SANITY_COLUMNS = ("FD", "KIDx1000", "precision", "recall", "diversity", "nearest", "readable", "combos")


def sanity(n: int, size: int = 32) -> dict[str, dict[str, float]]:
    """Scores of 2 n painted faces, n the reference and n damaged in every way, and of the drawn heads if they are here."""
    images = painted(0, 2 * n, size)
    other = None
    if (SHARED / "faces").exists() and n <= 4000:
        drawn = [common.decode(f"{i}.png", size, 3, str(SHARED / "faces"))[0] for i in range(n)]
        other = np.stack(drawn).transpose(0, 2, 3, 1)
    reals = features(images)
    table = {}
    for name, x in damaged(images[n:], other).items():
        own = np.arange(n, 2 * n) if not table else None
        row, _ = compare.scores(reals[:n], features(x), reals, own)
        table[name] = row | compare.read(x.transpose(0, 3, 1, 2), np.arange(n))
    floor = table["the other half of the reals"]["nearest"]
    for row in table.values():
        row["nearest"] /= floor
    return table


def check_order(table: dict[str, dict[str, float]]):
    """What each score claims to see, and what it is known not to see."""
    real, damages = (
        table["the other half of the reals"],
        {name: row for name, row in table.items() if "half of" not in name},
    )
    for name, row in damages.items():
        assert row["FD"] > 1.1 * real["FD"], name
        assert row["KIDx1000"] > real["KIDx1000"], name
    for score in ("FD", "KIDx1000"):
        value = {name: row[score] for name, row in table.items()}
        assert value["one mode"] > value["half collapsed"] > value["noise, sd 20"]
        assert value["one mode"] > value["ten modes"] > value["8 colors each"]
    precision, recall, diverse, near = (
        {n: r[s] for n, r in table.items()} for s in ("precision", "recall", "diversity", "nearest")
    )
    for name in ("noise, sd 20", "blurred, 1 px", "the mean face"):
        assert precision[name] < precision["the other half of the reals"] - 0.1, name
    for name in ("ten modes", "one mode", "the mean face"):
        assert recall[name] < 0.1, name
    assert precision["ten modes"] > 0.6 and recall["half collapsed"] > 0.8  # blind: the few are good, the rest diverse
    assert diverse["one mode"] < 0.01 and diverse["half collapsed"] < 1 and diverse["mirrored"] > 0.95
    assert near["ten modes"] < 0.1 and near["the other half of the reals"] == 1
    assert table["one mode"]["combos"] == 1 and table["ten modes"]["combos"] <= 10 < real["combos"]
    assert real["readable"] > 0.99 and table["the mean face"]["readable"] == 0


def test_each_score_orders_what_it_claims():
    """Catches features that do not see a damage, and a score that moves the wrong way."""
    check_order(sanity(300))


@pytest.mark.slow
def test_sanity_table():
    """The README's table: 2,000 painted faces against 2,000 more, damaged; printed as it stands there."""
    table = sanity(2000)
    print("\n| | " + " | ".join(SANITY_COLUMNS) + " |\n|---" + "|---:" * len(SANITY_COLUMNS) + "|")
    for name, row in table.items():
        cells = [f"{row['FD']:.3f}", f"{row['KIDx1000']:.2f}"] + [f"{row[s]:.2f}" for s in SANITY_COLUMNS[2:6]]
        print(f"| {name} | " + " | ".join([*cells, f"{row['readable']:.0%}", str(row["combos"])]) + " |")
    check_order(table)


# --- a well-kept library as the oracle ---------------------------------------------------------------------------------


def test_torch_fidelity_agrees():
    """Catches a difference to the reference implementation: all scores on a small extractor's features."""
    torch_fidelity = pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Stub(FeatureExtractorBase):
        """Each image as 4 x 4 pixels: 48 features."""

        def __init__(self, name, features_list, **_):
            super().__init__(name, features_list)

        get_provided_features_list = staticmethod(lambda: ("pixels",))
        get_default_feature_layer_for_metric = staticmethod(lambda metric: "pixels")
        can_be_compiled = staticmethod(lambda: False)

        def forward(self, x):
            return (torch.nn.functional.adaptive_avg_pool2d(x.float() / 255, 4).flatten(1),)

    if "stub" not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor("stub", Stub)
    images = painted(0, 240).transpose(0, 3, 1, 2)
    blurred = damaged(painted(120, 120), None)["blurred, 1 px"].transpose(0, 3, 1, 2)
    real = compare.Chosen(images, np.arange(120))
    for fake in (compare.Chosen(images, np.arange(120, 240)), compare.Chosen(blurred, np.arange(120))):
        theirs = compare.fidelity(real, fake, feature_extractor="stub")
        x, y = (Stub("stub", ["pixels"])(torch.stack([s[i] for i in range(120)]))[0] for s in (real, fake))
        precision, recall = compare.precision_recall(x, y)
        ours = {
            "FID": compare.frechet(x, y),
            "IncKIDx1000": 1000 * compare.kid(x, y),
            "Inc.prec": precision,
            "Inc.recall": recall,
        }
        assert theirs.pop("IncKIDx1000") == pytest.approx(ours.pop("IncKIDx1000"), abs=2e-3)  # theirs is in float32
        assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-5)


def test_torch_fidelity_is_asked_for_inception(folder, run_folder, tmp_path, monkeypatch, capsys):
    """Catches its default for precision and recall, a VGG; roles that are exchanged; scores that are not in the table."""
    torch_fidelity, calls = pytest.importorskip("torch_fidelity"), []
    names = ("frechet_inception_distance", "kernel_inception_distance_mean", "precision", "recall")

    def spy(**options):
        calls.append(options)
        return dict(zip(names, (12.5, 0.003, 0.75, 0.5), strict=True))

    monkeypatch.setattr(torch_fidelity, "calculate_metrics", spy)
    monkeypatch.setattr(compare, "inception_weights", lambda *given: "weights.pth")
    rows = command(tmp_path, folder, run_folder)
    assert [rows[1][name] for name in ("FID", "IncKIDx1000", "Inc.prec", "Inc.recall")] == [12.5, 3, 0.75, 0.5]
    for options in calls:
        assert options["feature_extractor"] == "inception-v3-compat" and options["kid_subset_size"] == 10
        assert options["feature_extractor_weights_path"] == "weights.pth" and options["input2"].images.shape[0] == 24
    assert calls[1]["input1"].images.shape[0] == 10 and calls[1]["input1"][3].dtype == torch.uint8
    assert "torch-fidelity 0." in capsys.readouterr().out


def test_what_is_missing_is_said(tmp_path, monkeypatch, capsys):
    """Catches silence about FID, and weights that are looked for after hours of work."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(compare.importlib.util, "find_spec", lambda name: None)
    assert compare.inception_weights(None, False) is None and "torch-fidelity>=0.4" in capsys.readouterr().out
    with refused(capsys, 2, "--fid", "torch-fidelity>=0.4"):
        compare.inception_weights(None, True)
    monkeypatch.setattr(compare.importlib.util, "find_spec", lambda name: True)
    assert compare.inception_weights(None, False) is None and "--fid" in capsys.readouterr().out
    monkeypatch.setattr(compare, "INCEPTION", "weights-e3b0c442.pth")  # SHA-256 of an empty file
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/weights-e3b0c442.pth").touch()
    for fid in (False, True):
        assert compare.inception_weights(None, fid) == str(tmp_path / "checkpoints/weights-e3b0c442.pth")
    (tmp_path / "other.pth").write_bytes(b"another file")
    with refused(capsys, 2, "other.pth", "damaged or not the expected file"):
        compare.inception_weights(str(tmp_path / "other.pth"), False)
    with refused(capsys, 2, "nowhere.pth", compare.INCEPTION_URL):
        compare.inception_weights("nowhere.pth", True)


def test_weights_are_downloaded_once(tmp_path, monkeypatch, capsys):
    """Catches --fid without a download, with one each time, with a file that is not checked, and a traceback without a network."""
    pytest.importorskip("torch_fidelity")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(compare, "INCEPTION", "weights-e3b0c442.pth")  # SHA-256 of an empty file
    source = tmp_path / "weights"
    monkeypatch.setattr(compare, "INCEPTION_URL", source.as_uri())
    with refused(capsys, 1, "--fid", source.as_uri(), "No such file", "--inception-weights"):
        compare.inception_weights(None, True)
    source.touch()
    expected = str(tmp_path / "hub/checkpoints/weights-e3b0c442.pth")
    assert compare.inception_weights(None, True) == expected
    source.write_text("another file")
    assert compare.inception_weights(None, True) == expected  # that of the first time
    Path(expected).unlink()
    with refused(capsys, 1, "--fid", source.as_uri(), "invalid hash"):
        compare.inception_weights(None, True)
    assert not Path(expected).exists()


# --- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(folder, tmp_path):
    run("dcgan", folder, tmp_path / "run", "--steps", "1", "--sample-mode", "batch")
    return tmp_path / "run"


def command(tmp_path, *words) -> list[dict]:
    return compare.main(["--out", str(tmp_path / "out"), "--count", "10", *map(str, words)])


def test_runs_and_folders_in_one_table(folder, run_folder, tmp_path, capsys):
    """Catches rows out of order, another size than the run's, files that are missing or that differ from the table."""
    rows = command(tmp_path, folder, run_folder, folder)
    printed = capsys.readouterr().out
    assert [row["name"] for row in rows] == ["real", str(run_folder), str(folder)] and "size: 16;" in printed
    assert len(list((run_folder / "compare/generated").glob("*.png"))) == 10
    assert not (run_folder / "generated").exists()  # that is for --sample
    assert rows[0]["nearest"] == 1 and rows[1]["FD"] > rows[2]["FD"] and rows[2]["nearest"] == 0
    assert rows[2]["FD"] > 0.3 * rows[0]["FD"] > 0  # the data itself: other images than those of the reference
    pairs = np.asarray(Image.open(tmp_path / "out/nearest.png"))[24:, 2 * 280 + 8 :].reshape(-1, 66, 272, 3)
    assert all((row[:, :66] == row[:, 66:132]).all() for row in pairs[:2])  # a copy beside its original
    with open(tmp_path / "out/table.csv", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    for row, line in zip(rows, written, strict=True):
        assert {name: str(value) for name, value in row.items()}.items() <= line.items()
        assert (line["n"], line["size"], line["reals"]) == ("10", "16", "24") and torch.__version__ in line["versions"]
        assert row["name"] in printed
    for name in ("samples.png", "nearest.png"):
        assert Image.open(tmp_path / "out" / name).width == 3 * (4 * 66 + 16)
    assert "readable" not in rows[0]  # not the built-in faces


def test_size_and_channels_are_those_of_the_runs(folder, tmp_path, capsys):
    """Catches 64 pixels and color for runs of another kind, because a folder stands before them, and color runs scored in gray."""
    run("dcgan", folder, tmp_path / "gray", "--steps", "1", "--channels", "1", "--size", "20")
    run("dcgan", folder, tmp_path / "color", "--steps", "1")
    run("dcgan", folder, tmp_path / "padded", "--steps", "1", "--fit", "pad")
    command(tmp_path, folder, folder, tmp_path / "gray")
    assert "size: 20;" in (printed := capsys.readouterr().out) and "channels: 1;" in printed
    for first, second, flags in (
        ("gray", "color", "--channels 1"),
        ("color", "gray", "--channels 3"),
        ("color", "padded", "--fit crop"),
    ):
        with refused(capsys, 2, str(tmp_path / first), str(tmp_path / second), flags):
            command(tmp_path, folder, tmp_path / first, tmp_path / second)
    command(tmp_path, folder, tmp_path / "padded")
    assert "resize: pad, Lanczos;" in capsys.readouterr().out
    command(tmp_path, folder, folder, tmp_path / "color")
    assert "size: 16;" in (printed := capsys.readouterr().out) and "channels: 3;" in printed
    command(tmp_path, folder, folder)
    assert "size: 64;" in capsys.readouterr().out


def test_scores_do_not_depend_on_what_was_drawn_before(folder, run_folder, tmp_path):
    """Catches another choice of images when more than --count are there."""
    fresh = command(tmp_path, folder, run_folder)
    module("dcgan").main(["--out", str(run_folder), "--sample", "40"])
    assert command(tmp_path, folder, run_folder) == fresh


def test_gray_runs(folder, tmp_path):
    """Catches color reals beside gray samples, which would score their color and nothing else."""
    run("dcgan", folder, tmp_path / "run", "--steps", "1", "--channels", "1")
    command(tmp_path, folder, tmp_path / "run")
    picture = np.asarray(Image.open(tmp_path / "out/samples.png")).astype(int)[24:]
    assert (picture == picture[:, :, :1]).all()


def test_combinations_are_counted_from_a_share(monkeypatch):
    """Catches a fixed threshold: 3 of 2,000 samples, so 6 of 4,000, and 1 of 10."""
    names = np.repeat(["red", "blue", "green"], [3990, 6, 4])
    read = {"hair": names, "eyes": names, "readable": np.ones(4000, bool)}
    monkeypatch.setattr(compare, "blocks", lambda images, rows: [np.zeros((1, 3, 1, 1), np.uint8)])
    monkeypatch.setattr(faces, "read_attributes", lambda images: read)
    assert compare.read(None, np.arange(4000))["combos"] == 2
    for count, enough in ((1000, 2), (2000, 3), (4000, 6), (5000, 8), (10, 1)):  # 0.15 %, never rounded down
        for shown in (enough - 1, enough):
            some = np.array(["red"] * (count - shown) + ["blue"] * shown)
            monkeypatch.setattr(
                faces, "read_attributes", lambda images, s=some: {"hair": s, "eyes": s, "readable": s != ""}
            )
            assert compare.read(None, np.arange(count))["combos"] == 1 + (shown == enough), (count, shown)
    monkeypatch.setattr(faces, "read_attributes", lambda images: read)
    read["eyes"] = np.where(names == "blue", "unreadable", names)
    assert compare.read(None, np.arange(4000))["combos"] == 1
    read["readable"] = names == "green"
    assert compare.read(None, np.arange(4000)) == {"readable": 0.001, "combos": 0}


def test_obedience(monkeypatch):
    """Catches unreadable images left out of the share, and attributes compared with another image's."""
    read = {name: np.array(["a", "b", "unreadable", "b"]) for name in faces.ATTRIBUTES} | {"readable": np.ones(4, bool)}
    monkeypatch.setattr(compare, "blocks", lambda images, rows: [np.zeros((1, 3, 1, 1), np.uint8)])
    monkeypatch.setattr(faces, "read_attributes", lambda images: read)
    row = compare.read(None, np.arange(4), {"hair": np.array(["a", "b", "c", "a"]), "eyes": np.array(["b"] * 4)})
    assert row["hair"] == 0.5 and row["eyes"] == 0.5 and not {"face", "glasses", "NMI"} & row.keys()


def test_shared_information():
    """Catches a wrong normalization: 1 for the same columns under other names, 0 for independent ones, between by hand."""
    a, b = np.array(list("xxyyzz")), np.array(list("112233"))
    assert compare.shared_information(a, b) == pytest.approx(1) and compare.shared_information(a, a[:1].repeat(6)) == 0
    assert compare.shared_information(np.array(list("xxyy")), np.array(list("1212"))) == pytest.approx(0, abs=1e-12)
    half = compare.shared_information(np.array(list("wxyz")), np.array(list("1122")))  # I = ln 2, H = ln 4 and ln 2
    assert half == pytest.approx(math.log(2) / math.sqrt(math.log(4) * math.log(2)))


def test_reals_that_are_all_alike(tmp_path):
    """Catches a diversity of 2e12, the samples' divided by a trace of rounding."""
    (tmp_path / "alike").mkdir()
    for i in range(24):
        Image.new("RGB", (16, 16), (90, 40, 200)).save(tmp_path / f"alike/{i}.png")
    rows = command(tmp_path, tmp_path / "alike", numbered(tmp_path / "other", 12))
    assert math.isnan(rows[0]["diversity"]) and math.isnan(rows[1]["diversity"])


def test_files_of_the_user_stay(folder, run_folder, tmp_path, capsys):
    """Catches a file of the user's in generated/ that is deleted, overwritten or scored, prompts' drawings that vanish, and a picture that is overwritten."""
    module("dcgan").main(["--out", str(run_folder), "--sample", "4"])
    drawn = {file.name: file.read_bytes() for file in (run_folder / "generated").iterdir()}
    Image.new("RGB", (99, 99)).save(run_folder / "generated/!mine.png")
    fresh = command(tmp_path, folder, run_folder)
    assert {name: (run_folder / "generated" / name).read_bytes() for name in drawn} == drawn
    (run_folder / "generated/mine").mkdir()
    Image.new("RGB", (99, 99)).save(run_folder / "generated/mine/00000.png")  # nor this one
    module("dcgan").main(["--out", str(run_folder), "--sample", "12"])
    assert command(tmp_path, folder, run_folder) == fresh and (run_folder / "generated/!mine.png").exists()
    command(tmp_path, folder, run_folder, "--out", tmp_path / "out")  # our own files may be replaced
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/samples.png").write_bytes(b"mine")
    with refused(capsys, 2, "samples.png", "--out"):
        command(tmp_path, folder, run_folder, "--out", tmp_path / "pictures")
    assert (tmp_path / "pictures/samples.png").read_bytes() == b"mine" and len(
        list((tmp_path / "pictures").iterdir())
    ) == 1


def test_what_runs_were_asked_for(tmp_path, monkeypatch):
    """Catches labels of other images than those in the row, captions that nobody reads, and faces of another seed."""
    monkeypatch.setattr(common, "FACES", 40)
    for name, script, flags in (
        ("a", "acgan", ("--steps", "1")),
        ("t", "cgan_text2img", ("--steps", "1")),
        ("i", "infogan", ("--steps", "1", "--size", "16")),
        ("d", "dcgan", ("--steps", "1")),
    ):
        module(script).main([*TINY, "--out", str(tmp_path / name), *flags])
    rows = command(tmp_path, "faces", *(tmp_path / name for name in "atid"), "--size", "32")
    assert rows[0]["hair"] == rows[0]["eyes"] == rows[0]["face"] == rows[0]["glasses"] == 1
    known = [{name for name, value in row.items() if value == value} for row in rows]
    assert {"hair", "eyes", "face", "glasses"} < known[1] and {"hair", "eyes"} < known[2] and "face" not in known[2]
    assert "NMI" in known[3] and "hair" not in known[3] and not {"NMI", "hair"} & known[4]
    files = [f"{i:05d}.png" for i in range(10)]
    labels = compare.asked(str(tmp_path / "t"), files, asked_of(tmp_path / "t", "compare/generated"))
    words = [caption.split() for caption in labels["caption"]]
    assert labels["hair"].tolist() == [w[0] for w in words] and labels["eyes"].tolist() == [w[2] for w in words]


def asked_of(run: Path, samples: str, groups=None) -> argparse.Namespace:
    """What compare.asked needs to know of a run."""
    return argparse.Namespace(runs={str(run): {"groups": groups}}, samples={str(run): str(run / samples)})


def test_groups_that_faces_py_cannot_read_are_said(tmp_path, capsys):
    """Catches a group of one's own labels that is missing in the table without a word."""
    (tmp_path / "generated").mkdir()
    (tmp_path / "generated/labels.csv").write_text("image,class,hair\n0.png,cat,red\n")
    (tmp_path / "generated/0.png").touch()
    found = compare.asked(
        str(tmp_path), ["0.png"], asked_of(tmp_path, "generated", {"class": ["cat"], "hair": ["red"]})
    )
    assert found["hair"].tolist() == ["red"] and "class cannot be read" in capsys.readouterr().out


# --- which images stand in which row ---


def numbered(folder: Path, count: int, first: int = 0) -> Path:
    """Gray images whose pixels are their number; names without leading zeros, so that their order is not that of the numbers."""
    folder.mkdir(parents=True)
    for i in range(first, first + count):
        Image.new("RGB", (16, 16), (i, i, i)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def scored(monkeypatch):
    """What main() hands to scores(), as numbers of images: (reference, row, all reals, own places), one entry a row."""
    calls = []
    monkeypatch.setattr(
        compare, "extract", lambda images, rows: torch.from_numpy(images[rows][:, 0, 0, 0].astype(np.float32))[:, None]
    )

    def scores(reference, x, reals, own=None):
        lists = [tensor[:, 0].int().tolist() for tensor in (reference, x, reals)]
        calls.append((*lists, own))
        row = dict.fromkeys(("FD", "KIDx1000", "precision", "recall", "diversity"), 0.5)
        return row | {"nearest": 2.0}, torch.zeros(len(x), dtype=torch.int64)

    monkeypatch.setattr(compare, "scores", scores)
    return calls


def test_reference_held_out_and_samples_are_what_they_are_said_to_be(tmp_path, scored, monkeypatch):
    """Catches a held-out row that overlaps the reference, a reference that differs from row to row, and images twice."""
    real, other = numbered(tmp_path / "real", 30), numbered(tmp_path / "other", 25, 100)
    out = tmp_path / "run"
    numbered(out / "generated", 14, 95)
    (out / "args.json").write_text('{"script": "dcgan", "size": 16}')
    (out / "last.pt").write_bytes(b"older than the samples")
    os.utime(out / "last.pt", (1000, 1000))
    for _ in range(2):  # the same choice each time
        command(tmp_path, real, other, real, out)
    assert [call[:3] for call in scored[:4]] == [call[:3] for call in scored[4:]]
    (reference, held_out, reals, own), *rows = scored[:4]
    assert len(set(reference)) == len(set(held_out)) == 10
    assert not set(reference) & set(held_out) and set(reference) | set(held_out) <= set(range(30))
    assert sorted(reals) == list(range(30)) and [reals[i] for i in own] == held_out
    assert reference != sorted(reference) and held_out != sorted(held_out)  # drawn, not the first of the folder
    for seen, x, all_reals, places in rows:
        assert seen == reference and all_reals == reals and places is None
        assert len(set(x)) == 10
    (_, of_folder, *_), (_, of_reals, *_), (_, of_run, *_) = rows
    assert set(of_folder) <= set(range(100, 125)) and of_folder != sorted(of_folder)
    assert set(of_reals) <= set(range(30)) and of_reals not in (reference, held_out)
    assert of_run == sorted(range(95, 109), key=str)[:10]  # the first ones by name


def test_a_perfect_generator_scores_like_the_first_row(tmp_path):
    """Catches a first row that is too good or too bad: other images of the same kind must score alike."""
    folders = {}
    for name, first in (("real", 0), ("perfect", 400)):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        for i in range(first, first + 400):
            faces.paint(0, i, 32)[0].save(folders[name] / f"{i}.png")
    real, perfect = compare.main(
        [
            str(folders["real"]),
            str(folders["perfect"]),
            "--count",
            "200",
            "--size",
            "32",
            "--out",
            str(tmp_path / "out"),
        ]
    )
    assert real["FD"] == pytest.approx(perfect["FD"], rel=0.25) and real["nearest"] == 1 == pytest.approx(
        perfect["nearest"], rel=0.1
    )
    assert real["precision"] == pytest.approx(perfect["precision"], abs=0.1)
    assert real["recall"] == pytest.approx(perfect["recall"], abs=0.1)


def painted_run(out: Path, name: str) -> dict[str, dict]:
    """A run of cgan_text2img.py whose samples are 24 painted faces; returns what each file shows."""
    looks = {}
    (out / "generated").mkdir(parents=True)
    for i in range(24):
        image, looks[name.format(i + 1)] = faces.paint(3, i, 32)
        image.save(out / "generated" / name.format(i + 1))
    (out / "args.json").write_text('{"script": "cgan_text2img", "size": 32}')
    (out / "last.pt").write_bytes(b"older than the samples")
    os.utime(out / "last.pt", (1000, 1000))
    return looks


def test_labels_belong_to_the_image_that_their_row_names(tmp_path, monkeypatch, capsys):
    """Catches labels joined by position: sample_10_1.png sorts before sample_1_1.png, and a perfect generator would score 0."""
    monkeypatch.setattr(common, "FACES", 60)
    out = tmp_path / "run"
    looks = painted_run(out, "sample_{}_1.png")
    lines = ["image,caption"]
    lines += [f"{name},{look['hair']} hair {look['eyes']} eyes" for name, look in looks.items()]
    (out / "generated/labels.csv").write_text("\n".join(lines) + "\n")

    def obeyed() -> tuple[float, float]:
        row = compare.main(["faces", str(out), "--count", "24", "--out", str(tmp_path / "out")])[1]
        return row["hair"], row["eyes"]

    assert obeyed() == (1, 1) and "row" not in capsys.readouterr().out.split("written to")[0].split("real: ")[0]
    (out / "generated/labels.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")  # from the end
    assert obeyed() == (1, 1)
    (out / "generated/labels.csv").write_text("\n".join(lines[:-6]) + "\nsample_99_1.png,red hair blue eyes\n")
    capsys.readouterr()
    assert obeyed() == (0.75, 0.75)
    printed = capsys.readouterr().out
    assert (
        "6 of 24 samples have no row in labels.csv" in printed
        and "1 rows of labels.csv name a missing file, sample_99_1.png" in printed
    )


def test_captions_of_several_lines_do_not_shift_the_others(tmp_path):
    """Catches a table that is cut at line breaks inside of quotes."""
    (tmp_path / "run/generated").mkdir(parents=True)
    (tmp_path / "run/generated/labels.csv").write_text(
        'image,caption\na.png,"red hair\nblue eyes"\nb.png,aqua hair green eyes\n'
    )
    for name in "ab":
        (tmp_path / f"run/generated/{name}.png").touch()
    labels = compare.asked(str(tmp_path / "run"), ["b.png", "a.png"], asked_of(tmp_path / "run", "generated"))
    assert labels["hair"].tolist() == ["aqua", "red"] and labels["eyes"].tolist() == ["green", "blue"]


def test_nearest_is_divided_by_that_of_the_reals(tmp_path, scored, monkeypatch, capsys):
    """Catches a column that is printed before the division, or divided by another row."""
    fake = iter([4.0, 2.0, 6.0])
    inner = compare.scores

    def scores(*arguments):
        row, index = inner(*arguments)
        return row | {"nearest": next(fake)}, index

    monkeypatch.setattr(compare, "scores", scores)
    real, other, more = (
        numbered(tmp_path / "real", 30),
        numbered(tmp_path / "other", 25, 100),
        numbered(tmp_path / "more", 25, 130),
    )
    rows = command(tmp_path, real, other, more)
    assert [row["nearest"] for row in rows] == [1, 0.5, 1.5]
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    (head,) = [words for words in printed if "FD" in words]
    for row in rows:
        (line,) = [words for words in printed if words[:1] == [row["name"]]]
        assert dict(zip(head, line[1:], strict=True)) == {
            k: str(v) if k == "n" else f"{v:.4f}" for k, v in row.items() if k != "name"
        }


def test_radii_are_those_of_the_third_nearest(tmp_path):
    """Catches another k than the 3 that the doc-string names: by hand, on points whose neighbours are far apart."""
    real = torch.tensor([[0.0], [1.0], [3.0], [7.0], [15.0], [31.0]])  # third nearest: 7, 6, 4 (of 7), 7, 14, 28
    third = {0.0: 7, 1.0: 6, 3.0: 4, 7.0: 7, 15.0: 14, 31.0: 28}
    for x in real.flatten().tolist():
        others = sorted(abs(x - y) for y in real.flatten().tolist() if y != x)
        assert others[2] == third[x]
    fake = torch.tensor([[-6.9], [-7.1], [58.9], [59.1], [100.0], [2000.0]])
    inside = [any(abs(f - c) <= r for c, r in third.items()) for f in fake.flatten().tolist()]
    assert inside == [True, False, True, False, False, False]
    assert compare.precision_recall(real, fake)[0] == pytest.approx(2 / 6)
    assert compare.precision_recall(fake, real)[1] == pytest.approx(2 / 6)


def test_nearest_png_shows_each_sample_beside_its_nearest_real(tmp_path):
    """Catches pairs of another row, the real before the sample, and the nearest of the reference only."""
    real, other = numbered(tmp_path / "real", 30), tmp_path / "other"
    other.mkdir()
    for i in range(20):
        Image.new("RGB", (16, 16), (i, i, min(255, i + 3))).save(other / f"{i}.png")
    command(tmp_path, real, other)
    picture = np.asarray(Image.open(tmp_path / "out/nearest.png")).astype(int)[24:]
    column = picture[:, 4 * 66 + 16 + 8 :]
    for row in range(column.shape[0] // 66):
        for k in (0, 2):
            sample, nearest = (column[row * 66 + 5, place * 66 + 5] for place in (k, k + 1))
            assert sample[2] == sample[0] + 3 and nearest[0] == nearest[2]
            assert abs(nearest[0] - sample[0]) <= 3


def test_obedience_and_counts_by_a_reader_that_is_known(tmp_path, monkeypatch):
    """Catches shares of the readable ones only, and a nan where nothing can be read."""
    seen = {name: np.array(["unreadable"] * 8) for name in faces.ATTRIBUTES} | {"readable": np.zeros(8, bool)}
    monkeypatch.setattr(compare, "blocks", lambda images, rows: [np.zeros((8, 3, 1, 1), np.uint8)])
    monkeypatch.setattr(faces, "read_attributes", lambda images: seen)
    wanted = {"hair": np.array(["red"] * 8), "category": np.array(list("01010101"))}
    assert compare.read(None, np.arange(8), wanted) == {"readable": 0, "combos": 0, "hair": 0, "NMI": 0}
    seen["hair"] = np.array(["red"] * 6 + ["unreadable", "blue"])
    assert compare.read(None, np.arange(8), wanted)["hair"] == 0.75  # of all eight


def test_what_was_not_asked_for_is_not_scored(tmp_path, monkeypatch):
    """Catches captions that name only hair or only eyes, whose other half would count as disobeyed."""
    monkeypatch.setattr(common, "FACES", 60)
    out = tmp_path / "run"
    looks = painted_run(out, "{}.png")
    halves = [f"{name},{look['hair']} hair" for name, look in list(looks.items())[:12]]
    halves += [f"{name},{look['eyes']} eyes" for name, look in list(looks.items())[12:]]
    nothing = [f"{name}," for name in looks]
    for head, lines, expected in (("caption", halves, {"hair": 1, "eyes": 1}), ("hair", nothing, {})):
        (out / "generated/labels.csv").write_text("\n".join([f"image,{head}", *lines]) + "\n")
        row = compare.main(["faces", str(out), "--count", "24", "--out", str(tmp_path / "out")])[1]
        assert {name: row[name] for name in faces.ATTRIBUTES if not math.isnan(row[name])} == expected


def test_a_refused_comparison_leaves_no_list(folder, tmp_path):
    """Catches an empty .written, which would mark a folder of images as an output and keep it out of every training."""
    images = tmp_path / "images"
    shutil.copytree(folder, images / "a")
    with pytest.raises(SystemExit):
        compare.main([str(images), str(folder), "--count", "10", "--out", str(images / "a")])
    assert not list(images.rglob(".written"))
    (images / "a/.written").touch()  # from an older version
    assert len(common.find_images(str(images), "elsewhere")[0]) == len(list(folder.glob("*.png")))


def test_a_checkpoint_without_settings_is_not_a_folder_of_images(folder, run_folder, tmp_path, capsys):
    """Catches sample grids scored as samples, where only last.pt and samples/ of a run were copied."""
    (run_folder / "args.json").unlink()
    with refused(capsys, 2, "no args.json of a run", str(run_folder)):
        command(tmp_path, folder, run_folder)


def test_scripts_draw_with_the_cache_that_was_named(folder, run_folder, tmp_path, monkeypatch):
    """Catches images of cyclegan.py that are decoded into the default cache, perhaps on another disk."""
    given = []
    main = module("dcgan").main
    monkeypatch.setattr(module("dcgan"), "main", lambda argv: given.extend(argv) or main(argv))
    command(tmp_path, folder, run_folder, "--cache", tmp_path / "cache")
    assert given[given.index("--cache") + 1] == str(tmp_path / "cache")


def test_scores_are_kept_if_they_cannot_be_printed(folder, tmp_path, monkeypatch):
    """Catches a table that is written only after it was printed, which fails for names that a terminal cannot show."""

    def broken(rows, about):
        raise UnicodeEncodeError("charmap", "кошки", 0, 5, "character maps to <undefined>")

    monkeypatch.setattr(compare, "print_table", broken)
    with pytest.raises(UnicodeEncodeError):
        command(tmp_path, folder, folder)
    assert (tmp_path / "out/table.csv").exists() and (tmp_path / "out/nearest.png").exists()


def test_samples_are_reused_only_if_they_are_newer(folder, run_folder, tmp_path):
    """Catches scores of an older checkpoint, and samples drawn again for nothing."""
    file = run_folder / "compare/generated/00000.png"
    times = []
    for change in (lambda: None, lambda: None, lambda: os.utime(run_folder / "last.pt"), file.unlink):
        change()
        command(tmp_path, folder, run_folder)
        times.append(file.stat().st_mtime_ns)
    assert times[0] == times[1] < times[2] < times[3]
    os.utime(file.with_name("00007.png"), (1000, 1000))  # one of them is of an older checkpoint
    command(tmp_path, folder, run_folder)
    assert file.stat().st_mtime_ns > times[3] and file.with_name("00007.png").stat().st_mtime > 1000
    module("dcgan").main(["--out", str(run_folder), "--sample", "12"])  # the user's own are enough, and newer
    before = file.stat().st_mtime_ns
    os.utime(file, (1000, 1000))
    command(tmp_path, folder, run_folder)
    assert file.stat().st_mtime_ns == 1000 * 10**9 < before


def test_built_in_faces_are_read(tmp_path, monkeypatch):
    """Catches a reader that is not asked, or that gets images in another order of axes."""
    monkeypatch.setattr(common, "FACES", 40)
    (tmp_path / "painted").mkdir()
    for i in range(12):
        faces.paint(1, i, 32)[0].save(tmp_path / f"painted/{i}.png")
    rows = command(tmp_path, "faces", tmp_path / "painted", "--size", "32")
    assert [row["readable"] for row in rows] == [1, 1] and 5 <= rows[1]["combos"] <= 10


def test_the_picture_shows_the_same_number_of_each(folder, tmp_path):
    """Catches tiles in the wrong column, scaled unevenly or out of order."""
    columns = {
        name: np.full((8, 3, 16, 16), value, np.uint8) for name, value in (("real", 10), ("a/long/name" * 9, 200))
    }
    columns["real"][5] = 77
    compare.sheet(columns, tmp_path / "sheet.png")
    picture = np.asarray(Image.open(tmp_path / "sheet.png"))[24:]
    assert picture.shape == (2 * 66, 2 * (4 * 66 + 16), 3)
    assert (picture[66:130, 8 + 66 : 8 + 130] == 77).all() and (picture == 77).sum() == 64 * 64 * 3
    assert (picture == 10).sum() == 7 * 64 * 64 * 3 and (picture[:, 4 * 66 + 24 :] == 200).sum() == 8 * 64 * 64 * 3


def test_errors_are_sentences(folder, run_folder, tmp_path, capsys):
    """Catches a count that is cut silently, and tracebacks for what a user can mistake."""
    with refused(capsys, 2, "24 images", "at most 12"):
        command(tmp_path, folder, run_folder, "--count", "13")
    (tmp_path / "few").mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16)).save(tmp_path / f"few/{i}.png")
    with refused(capsys, 2, "few has 4 images", "at most 4"):
        command(tmp_path, folder, tmp_path / "few")
    (tmp_path / "few/3.png").unlink()
    with refused(capsys, 2, "few has 3 images: too few"):
        command(tmp_path, folder, tmp_path / "few")
    for words, cause in (
        ((folder, "nowhere"), "does not exist"),
        ((folder, run_folder / "last.pt"), "is not a folder"),
        ((folder, run_folder, run_folder), "is named twice"),
        ((folder, "real"), "the first row"),
    ):
        with refused(capsys, 2, str(words[-1]), cause):
            command(tmp_path, *words)
    with refused(capsys, 2, "missing", "does not exist"):
        command(tmp_path, "missing", run_folder)
    with refused(capsys, 2, str(run_folder), "is a run"):
        command(tmp_path, run_folder, folder)
    with refused(capsys, 2, "last.pt is a file"):
        command(tmp_path, folder, run_folder, "--out", run_folder / "last.pt")
    (folder / "args.json").write_text('{"lr": 1}')  # of another project
    command(tmp_path, folder, run_folder)
    (folder / "args.json").unlink()
    with refused(capsys, 2, "--count"):
        command(tmp_path, folder, run_folder, "--count", "0")
    (run_folder / "last.pt").rename(run_folder / "other.pt")
    with refused(capsys, 2, "no checkpoint"):
        command(tmp_path, folder, run_folder)
    (run_folder / "args.json").write_text('{"script": "os"}')
    with refused(capsys, 2, "os.py"):
        command(tmp_path, folder, run_folder)


class Counted:
    """Stands for images on disk: notes how many are read at a time, and refuses to become one array."""

    shape, asked = (10_000, 3, 16, 16), ()

    def __getitem__(self, rows):
        self.asked = (*self.asked, len(rows))
        return np.zeros((len(rows), 3, 16, 16), np.uint8)

    def __array__(self, *_, **__):
        raise AssertionError("all images at once")


@pytest.mark.parametrize("reads", [compare.extract, compare.read])
def test_images_are_streamed(reads):
    """Catches a copy of all images in memory: more images than memory is fine."""
    images = Counted()
    reads(images, np.arange(1000))
    assert sum(images.asked) == 1000 and max(images.asked) <= 100


def test_information_counts_what_can_be_read(monkeypatch):
    """Catches "unreadable" as a value of its own, and an attribute that is known where few samples show it."""
    wanted = {"category": np.array(["0", "1"] * 50)}
    seen = {name: np.array(["a"] * 100) for name in faces.ATTRIBUTES} | {"readable": np.ones(100, bool)}
    seen["hair"] = np.where(np.arange(100) % 2, "unreadable", "black")  # follows the category, but names nothing
    seen["eyes"] = np.where(np.arange(100) < 20, np.array(["red", "blue"] * 50), "unreadable")  # known in a fifth
    monkeypatch.setattr(faces, "read_attributes", lambda images: seen)
    monkeypatch.setattr(compare, "blocks", lambda images, rows: [images])
    row = compare.read(np.zeros((100, 3, 32, 32), np.uint8), np.arange(100), wanted)
    assert row["NMI"] == pytest.approx(0.2)
