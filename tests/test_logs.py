"""What is written and printed about a run: every number against its definition in the README, every picture and frame in its place."""

import argparse
import csv
import itertools
import json
import weakref

import numpy as np
import pytest
import torch
from conftest import NOISE, module, run
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training import frames

import common


def rows_of(out) -> list[dict[str, str]]:
    with open(out / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def events_of(out) -> EventAccumulator:
    return EventAccumulator(str(out), size_guidance={"images": 0, "scalars": 0}).Reload()


def test_a_row_holds_the_metrics_of_its_step(any_script, images, tmp_path, monkeypatch):
    """Catches values of another step, of another name, a mean over steps, or digits lost on the way."""
    m, returned = module(any_script), []
    train_step = m.train_step

    def spy(*arguments):
        returned.append(train_step(*arguments))
        return returned[-1]

    monkeypatch.setattr(m, "train_step", spy)
    run(any_script, images, tmp_path / "a", "--steps", "7", "--log-every", "3", "--save-every", "50", "--lr-g", "0.01")
    rows = rows_of(tmp_path / "a")
    assert [row["step"] for row in rows] == ["3", "6"]
    events = events_of(tmp_path / "a")
    for row in rows:
        metrics = returned[int(row["step"]) - 1]
        assert set(row) == {"step", "diversity", *metrics} - ({"diversity"} if any_script == "cyclegan" else set())
        for name, value in metrics.items():
            assert float(row[name]) == pytest.approx(value.item(), rel=1e-7), name
    for name in set(rows[0]) - {"step"}:
        logged = {event.step: event.value for event in events.Scalars(name)}
        assert logged == {int(row["step"]): pytest.approx(float(row[name]), rel=1e-6) for row in rows}, name


def test_log_and_grid_see_the_same_average(any_script, images, tmp_path, monkeypatch):
    """Catches a row whose diversity is that of the average before the step; and a grid of the generator in place of the average."""
    drawn, start = [], common.Run.__init__
    # with the same statistics of BatchNorm, which otherwise are measured between row and grid
    monkeypatch.setattr(module(any_script), "measure_statistics", lambda *_: None, raising=False)

    def spy(self, args, data, begin, sample, *rest, **more):
        def recorded():
            drawn.append((self.step, sample().clone()))
            return drawn[-1][1]

        start(self, args, data, begin, recorded, *rest, **more)

    monkeypatch.setattr(common.Run, "__init__", spy)
    state = run(
        any_script, images, tmp_path / "a", "--steps", "2", "--log-every", "1", "--save-every", "1", "--lr-g", "0.02"
    )
    by_step = {step: [x for k, x in drawn if k == step] for step in (0, 1, 2)}
    for step in (1, 2):
        assert len(by_step[step]) == (1 if any_script == "cyclegan" else 2)  # it logs no diversity
        assert all(torch.equal(x, by_step[step][0]) for x in by_step[step])
    assert not torch.equal(by_step[1][0], by_step[2][0]) and not torch.equal(by_step[0][0], by_step[1][0])
    assert state["G_ema"] is not state["G"]


# --- one run, made by hand ---


class Nothing:
    def state_dict(self):
        return {}


def by_hand(out, images: np.ndarray, sample, **flags):
    """A Run on given images whose samples are `sample()`, without any network."""
    args = {"out": str(out), "steps": 100, "log_every": 1, "save_every": 1, "keep": 1, "batch": 4, "seed": 0}
    args |= {"device": "cpu", "autocast": False, "flip": False, "script": "dcgan"}
    args |= {"sample": None, "grid": False}
    args |= {"resume": True, "checkpoint": f"{out}/last.pt"}  # may go on in a folder that holds a run
    args = argparse.Namespace(**(args | flags))
    return common.Run(args, common.Batches(images, args, 0, 1), 0, sample, 0)


def distances(images: np.ndarray) -> float:
    """Mean Euclidean distance over all pairs of different images, by a double loop."""
    flat = images.reshape(len(images), -1).astype(float)
    return float(np.mean([np.sqrt(((a - b) ** 2).sum()) for i, a in enumerate(flat) for b in flat[:i]]))


def test_diversity_is_the_ratio_of_mean_distances(tmp_path):
    """Catches a distance that is not divided by that of the reals, one of squares, and reals that are counted with themselves."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 3, 4, 4), np.uint8)
    drawn = torch.from_numpy(rng.normal(0, 0.3, (64, 3, 4, 4))).float()
    drawn[0] += 3  # one far away: the mean of distances is not the root of the mean of squares
    with by_hand(tmp_path / "a", images, lambda: drawn) as the_run:
        for _ in the_run.steps():
            the_run.log({"loss_D": torch.tensor(1.0)})
            break
    (row,) = rows_of(tmp_path / "a")
    expected = distances(drawn.numpy()) / distances(images / 127.5 - 1)
    assert float(row["diversity"]) == pytest.approx(expected, rel=1e-4)
    squares = np.sqrt(drawn.numpy().reshape(64, -1).var(0).sum() / (images / 127.5).reshape(64, -1).var(0).sum())
    assert abs(expected - squares) > 0.01 * expected


@pytest.mark.parametrize("count", [8, 2])
def test_reals_that_are_all_alike_do_not_stop_the_run(tmp_path, count):
    """Catches a division by zero, and a diversity of 10^12 in the place of one that is not known."""
    images = np.full((8, 3, 4, 4), 9, np.uint8)[:count].repeat(8 // count, 0)
    with by_hand(tmp_path / "a", images, lambda: torch.rand(64, 3, 4, 4)) as the_run:
        for _ in the_run.steps():
            the_run.log({"loss_D": torch.tensor(1.0)})
            break
    (row,) = rows_of(tmp_path / "a")
    assert row["diversity"] == "nan" and row["loss_D"] == "1"


def test_speed_and_epoch(tmp_path, monkeypatch):
    """Catches images a second that leave out a critic's batches or count those before a resume, and epochs of batches or of steps."""
    monkeypatch.setenv("TQDM_DISABLE", "1")  # without a bar, tqdm has no clock
    shown = []
    clock = itertools.chain([100.0], itertools.repeat(102.0))  # two seconds after the beginning
    monkeypatch.setattr(common.time, "monotonic", lambda: next(clock))

    class Bar(common.tqdm):
        def set_postfix(self, values, **_):
            shown.append(values)

    monkeypatch.setattr(common, "tqdm", Bar)
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 4), np.uint8)
    the_run = by_hand(tmp_path / "a", images, lambda: torch.rand(64, 3, 4, 4), batch=5)
    the_run.data.position = the_run.first = 8  # of an earlier start
    with the_run:
        for step in the_run.steps():
            for _ in range(3):  # as many as a critic takes
                next(the_run.data)
            the_run.log({"loss_D": torch.tensor(0.25)})
            if step == 1:
                break
    speeds = [event.value for event in events_of(tmp_path / "a").Scalars("images_per_second")]
    assert speeds == [3 * 5 / 2, 6 * 5 / 2]
    assert [(row["img/s"], row["epoch"]) for row in shown] == [("8", "2.8"), ("15", "3.5")]  # 11 * 5 / 20, 14 * 5 / 20
    assert all(row["loss_D"] == 0.25 and "diversity" in row for row in shown)


@pytest.mark.parametrize(("script", "batches"), [("dcgan", 1), ("wgan", 5), ("wgan_gp", 5), ("sngan", 2)])
def test_the_position_counts_every_batch(script, batches, folder, tmp_path):
    """Catches an epoch that is counted in steps: with n_critic 5 a step takes five batches."""
    flags = ["--n-critic", str(batches)] if batches > 1 else []
    state = run(script, folder, tmp_path / "a", "--steps", "3", *flags)
    assert state["data"].position == 3 * batches


# --- pictures ---


def tiles(file, count: int, size: int) -> np.ndarray:
    """The first images of a grid: 8 a row, 2 pixels between them."""
    grid, step = np.asarray(Image.open(file)), size + 2
    places = [(2 + k // 8 * step, 2 + k % 8 * step) for k in range(count)]
    return np.stack([grid[i : i + size, j : j + size] for i, j in places])


def test_real_png_shows_what_is_trained_on(tmp_path, any_script, images):
    """Catches images in real.png that have no label and are not trained on, one that is there twice, and another side in cyclegan.py."""
    flags = ["--steps", "1", "--batch", "2"]
    if any_script == "cyclegan":
        flags += ["--load-size", "32", "--size", "32"]
        files = sorted((images / "trainA").glob("*.png"))
    else:
        flags += ["--size", "32"]
        files = sorted(images.glob("*.png"))
        if any_script in ("acgan", "cgan_text2img"):
            lines = (images / "tags.csv").read_text().splitlines()[::2]  # every other image has a label
            (tmp_path / "half.csv").write_text("\n".join(lines) + "\n")
            flags += ["--labels", str(tmp_path / "half.csv")]
            files = [images / f"{i}.png" for i in range(0, 24, 2)]
    run(any_script, images, tmp_path / "a", *flags)
    shown = tiles(tmp_path / "a/real.png", len(files), 32).astype(int)
    expected = [np.asarray(Image.open(file)).astype(int) for file in files]
    found = [[k for k, image in enumerate(expected) if abs(tile - image).max() <= 1] for tile in shown]
    assert all(len(ks) == 1 for ks in found) and sorted(k for ks in found for k in ks) == list(range(len(files)))


def test_real_png_of_a_large_folder(tmp_path):
    """Catches the first 64 of a folder, which may all be of one kind, in place of a random choice by --seed."""
    images = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None, None], (200, 3, 4, 4)).copy()
    shown = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        with by_hand(tmp_path / name, images, lambda: torch.rand(64, 3, 4, 4), seed=seed):
            pass
        shown[name] = tiles(tmp_path / name / "real.png", 64, 4)[:, 0, 0, 0].tolist()
        assert len(set(shown[name])) == 64 and max(shown[name]) > 150 and min(shown[name]) < 50
    assert shown["a"] == shown["b"] != shown["c"]


def test_grids_of_events_are_those_of_the_files(tmp_path, folder):
    """Catches a grid in TensorBoard of another step or range."""
    run("dcgan", folder, tmp_path / "a", "--steps", "4", "--save-every", "2", "--lr-g", "0.02")
    images = events_of(tmp_path / "a").Images("samples")
    assert [event.step for event in images] == [0, 2, 4]
    for event in images:
        (tmp_path / "event.png").write_bytes(event.encoded_image_string)
        inside = np.asarray(Image.open(tmp_path / "event.png")).astype(int)
        assert abs(inside - np.asarray(Image.open(tmp_path / f"a/samples/{event.step:06d}.png"))).max() <= 1


COLORS = [(230, 20, 20), (20, 230, 20), (20, 20, 230), (230, 230, 20), (20, 230, 230), (230, 20, 230), (240, 240, 240)]


def test_progress_gif_shows_the_grids_in_their_order(tmp_path):
    """Catches frames that run backwards, in the order of names ("1000000" before "999999"), or with one left out."""
    drawn = iter(COLORS)
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 4, 4), np.uint8)

    def sample():
        return torch.tensor(next(drawn)).view(1, 3, 1, 1).expand(64, 3, 4, 4) / 127.5 - 1

    out, steps, seen = tmp_path / "a", (0, 5, 999_999, 1_000_000, 1_000_001, 1_000_002, 2_000_000), []
    the_run = by_hand(out, images, sample, steps=2_000_000, seed=1)
    with the_run:
        for step in steps:
            the_run.step = step
            the_run.leaving = step == 2_000_000
            the_run.save({"G": Nothing()})
            seen.append(frames(out / "progress.gif"))
    assert seen == [1, 2, 2, 4, 4, 4, 7]  # after 1, 2, 4, 8, ... grids and at the end
    gif = Image.open(out / "progress.gif")
    assert gif.info["loop"] == 0 and gif.info["duration"] == 200
    for k, color in enumerate(COLORS):
        gif.seek(k)
        frame = np.asarray(gif.convert("RGB")).astype(int)
        assert frame.shape == np.asarray(Image.open(out / "samples/000000.png")).shape
        assert abs(frame[3:5, 3:5] - color).max() <= 8, k


def test_the_gif_is_made_in_constant_memory(tmp_path, monkeypatch):
    """Catches all frames in memory at once: 60 grids at 512 pixels took 4.7 GB at the end of a run."""
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 4, 4), np.uint8)
    made, alive = [], []
    frame = common.gif_frame

    def counted(file):
        image = frame(file)
        made.append(weakref.ref(image))
        alive.append(sum(ref() is not None for ref in made))
        return image

    monkeypatch.setattr(common, "gif_frame", counted)
    the_run = by_hand(tmp_path / "a", images, lambda: torch.rand(64, 3, 4, 4) * 2 - 1)
    with the_run:
        for step in range(16):
            the_run.step = step
            the_run.save({"G": Nothing()})
    assert frames(tmp_path / "a/progress.gif") == 16 and max(alive) <= 4


def test_large_grids_are_shrunk_in_the_gif(tmp_path):
    """Catches a GIF of hundreds of megabytes, and one that is stretched."""
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 8, 8), np.uint8)
    the_run = by_hand(tmp_path / "a", images, lambda: torch.rand(16, 3, 128, 128) * 2 - 1)
    with the_run:
        the_run.save({"G": Nothing()})
    assert Image.open(tmp_path / "a/samples/000000.png").size == (8 * 130 + 2, 2 * 130 + 2)
    gif = Image.open(tmp_path / "a/progress.gif")
    assert gif.width == 600 and gif.height == pytest.approx(600 * 262 / 1042, abs=1)


def test_args_json_tells_how_the_run_was_made(any_script, images, tmp_path):
    """Catches a flag that is left out, or that is not the one that was used."""
    run(any_script, images, tmp_path / "a", "--steps", "1", "--lr-g", "0.015625", "--seed", "3")
    found = json.loads((tmp_path / "a/args.json").read_text())
    parsed = vars(module(any_script).parse_args(["--path", "x", "--out", "y"]))
    assert found.keys() >= parsed.keys() | {"torch", "images", "autocast"}
    assert (found["lr_g"], found["seed"], found["steps"]) == (0.015625, 3, 1) and found["path"] == str(images)
    assert found["torch"] == torch.__version__ and found["device"] == "cpu"
    assert found["images"] == (7 if any_script == "cyclegan" else 24)


@pytest.mark.parametrize("script", [NOISE[0]])
def test_what_is_said_at_the_end(script, folder, tmp_path, capsys, monkeypatch):
    """Catches "stopped" after a run that has come to its end, and silence after one that has not."""
    run(script, folder, tmp_path / "a", "--steps", "2")
    assert "stopped" not in capsys.readouterr().err
    m = module(script)
    train_step, the_run = m.train_step, []
    monkeypatch.setattr(
        common.Run, "__enter__", lambda self, enter=common.Run.__enter__: the_run.append(self) or enter(self)
    )
    monkeypatch.setattr(m, "train_step", lambda *a: (the_run[0].on_signal(2, None), train_step(*a))[1])
    run(script, folder, tmp_path / "b", "--steps", "9")
    assert "stopped and saved at step 1: continue with --resume" in capsys.readouterr().err
