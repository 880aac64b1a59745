"""Files of a run while things go wrong: order and completeness of what is written, signals, torn logs, processes that must agree."""

import os
import signal

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import module, run
from test_logs import Nothing, by_hand
from test_training import refused

import common

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 3, 4, 4), np.uint8)


def grid():
    return torch.zeros(64, 3, 4, 4)


class Weights:
    """Something with a state_dict of one tensor."""

    def __init__(self, value: float):
        self.value = value

    def state_dict(self):
        return {"weight": torch.tensor([1.0, self.value])}


# --- one file ---


def test_a_file_is_on_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    """Catches a rename before the bytes are on disk (a power cut would leave an empty last.pt), and a file that is written in place."""
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(("replace", os.path.getsize(a))), replace(a, b))[1])
    (tmp_path / "a.bin").write_bytes(b"old")

    def write(file):
        file.write(b"new content")
        assert (tmp_path / "a.bin").read_bytes() == b"old"

    common.atomic(tmp_path / "a.bin", write)
    assert order == ["fsync", ("replace", 11)]
    assert (tmp_path / "a.bin").read_bytes() == b"new content" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("write failed")])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, capsys, error):
    """Catches half a file in the place of a whole one, and one that is left behind; torch.save raises a RuntimeError when the disk is full."""
    (tmp_path / "a.bin").write_bytes(b"old")

    def write(file):
        file.write(b"half")
        raise error

    with refused(capsys, 1, "a.bin", "intact", "No space left" if isinstance(error, OSError) else "write failed"):
        common.atomic(tmp_path / "a.bin", write)
    assert (tmp_path / "a.bin").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


# --- the folder of a run ---


def test_last_pt_is_written_last_but_for_the_gif(tmp_path, monkeypatch):
    """Catches last.pt before the numbered checkpoint or the grid of its step: a kill between them would leave a gap."""
    written, atomic = [], common.atomic
    with by_hand(tmp_path / "a", IMAGES, grid, save_every=2) as the_run:
        monkeypatch.setattr(common, "atomic", lambda path, write: (written.append(path.name), atomic(path, write))[1])
        the_run.step = 2
        the_run.leaving = True
        the_run.save({"G": Weights(0.5)})
    assert written == ["000002.png", "000002.pt", "last.pt", "progress.gif"]
    saved = torch.load(tmp_path / "a/last.pt", weights_only=True)
    assert saved["step"] == 2 and saved["state"]["G"]["weight"].tolist() == [1, 0.5] and saved["args"]["batch"] == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["G", "D", "G_ema"])
def test_a_weight_that_is_not_finite_is_never_saved(tmp_path, capsys, name, value):
    """Catches a check of one network only, and one that lets infinity pass."""
    state = {which: Weights(0.5) for which in ("G", "D", "G_ema")}
    with by_hand(tmp_path / "a", IMAGES, grid, save_every=2) as the_run:
        the_run.save(state)
        before = {
            file: file.read_bytes() for file in (tmp_path / "a").rglob("*") if file.suffix in (".png", ".pt", ".gif")
        }
        state[name].value = value
        the_run.step = 2
        with refused(capsys, 1, f"{name}.weight", "step 2", "last.pt (step 0)"):
            the_run.save(state)
    after = {file: file.read_bytes() for file in (tmp_path / "a").rglob("*") if file.suffix in (".png", ".pt", ".gif")}
    assert after == before


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys, value):
    """Catches a check of the first metric only; nothing of that step reaches the log."""
    with by_hand(tmp_path / "a", IMAGES, grid) as the_run:
        for step in the_run.steps():
            if step == 1:
                with refused(capsys, 1, f"other is {value}", "step 2"):
                    the_run.log({"loss_D": torch.tensor(0.5), "other": torch.tensor(float(value))})
                break
            the_run.log({"loss_D": torch.tensor(0.5), "other": torch.tensor(0.25)})
    assert [row.split(",")[0] for row in (tmp_path / "a/log.csv").read_text().splitlines()] == ["step", "1"]


def test_what_a_power_cut_tore_is_mended_at_the_next_start(tmp_path):
    """Catches a torn last row, rows and files after the checkpoint, and a frame between two grids, that a resumed run keeps."""
    out = tmp_path / "a"
    for folder, suffix, steps in (("samples", "png", (0, 2, 4, 5, 6)), ("checkpoints", "pt", (2, 4, 5, 6))):
        (out / folder).mkdir(parents=True)
        for step in steps:
            (out / folder / f"{step:06d}.{suffix}").touch()
        (out / folder / f"notes.{suffix}").touch()
    (out / "log.csv").write_text("step,loss_D\n1,0.5\n3,0.25\n5,0.125\n6,9\n7,1\n10,2\n5")
    the_run = by_hand(out, IMAGES, grid, save_every=2)
    the_run.start = 5
    with the_run:
        assert (out / "log.csv").read_text() == "step,loss_D\n1,0.5\n3,0.25\n5,0.125\n"
        assert sorted(file.name for file in (out / "samples").iterdir()) == [
            "000000.png",
            "000002.png",
            "000004.png",
            "notes.png",
        ]
        assert sorted(file.name for file in (out / "checkpoints").iterdir()) == [
            "000002.pt",
            "000004.pt",
            "000005.pt",
            "notes.pt",
        ]


def test_a_disk_that_is_full_while_logging_is_said(tmp_path, capsys):
    """Catches a traceback from the log, and one that does not say where to go on."""
    with (
        refused(capsys, 1, "cannot write to", str(tmp_path), "--resume", "from step 0", "No space left"),
        by_hand(tmp_path / "a", IMAGES, grid) as the_run,
    ):
        the_run.save({"G": Nothing()})
        raise OSError(28, "No space left on device")


def test_two_runs_in_one_folder(any_script, images, tmp_path, monkeypatch, capsys):
    """Catches logs and checkpoints of two processes that are mixed up; the second stops before it writes."""
    m, out, seen = module(any_script), tmp_path / "run", []
    run(any_script, images, out, "--steps", "1")
    train_step = m.train_step

    def meanwhile(*arguments):
        if not seen:
            seen.append(1)
            with refused(capsys, 2, "another process is training in", str(out), "--out"):
                m.main(["--resume", "--out", str(out), "--steps", "9", "--device", "cpu"])
        return train_step(*arguments)

    monkeypatch.setattr(m, "train_step", meanwhile)
    m.main(["--resume", "--out", str(out), "--steps", "3", "--log-every", "1", "--device", "cpu"])
    rows = [row.split(",")[0] for row in (out / "log.csv").read_text().splitlines()]
    assert seen == [1] and rows[-2:] == ["2", "3"]
    m.main(["--resume", "--out", str(out), "--steps", "4", "--device", "cpu"])  # the lock is gone with the run


# --- signals ---


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    """Catches a step of minutes that cannot be left; a second SIGTERM waits, as schedulers send several."""
    with by_hand(tmp_path / "a", IMAGES, grid) as the_run:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            pytest.fail("the second SIGTERM did not wait")
        assert the_run.stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with by_hand(tmp_path / "b", IMAGES, grid) as the_run:
        the_run.step = 2
        assert not the_run.stop and not the_run.leaving
        os.kill(os.getpid(), signal.SIGINT)
        the_run.step = 3
        assert the_run.due() and the_run.leaving


def test_when_it_is_time_to_save(tmp_path):
    """Catches a save too many or too few: each --save-every steps, and at the end."""
    with by_hand(tmp_path / "a", IMAGES, grid, steps=10, save_every=4) as the_run:
        due = []
        for step in the_run.steps():
            due.append((step + 1, the_run.due(), the_run.leaving))
    assert [step for step, save, _ in due if save] == [4, 8, 10]
    assert [step for step, _, leaving in due if leaving] == [10]


@pytest.mark.parametrize("rank", [0, 1, 7])
def test_processes_agree_on_when_to_leave(tmp_path, monkeypatch, rank):
    """Catches one process that leaves while the others wait for its gradients: they look at each tenth step, and all at the same."""
    asked, others = [], [False]

    def all_reduce(flag, op=None):
        asked.append(op)
        flag.fill_(max(float(flag), float(others[0])))

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    the_run = by_hand(tmp_path / "a", IMAGES, grid, save_every=1000)
    the_run.rank = rank
    with the_run:
        the_run.stop = True
        for step in (1, 7, 9, 11, 19):
            the_run.step = step
            assert not the_run.due() and not the_run.leaving and asked == []
        the_run.step = 20
        assert the_run.due() and the_run.leaving and asked == [dist.ReduceOp.MAX]
        the_run.stop, the_run.leaving = False, False
        assert not the_run.due()
        others[0] = True  # Ctrl-C reached another process
        the_run.step = 30
        assert the_run.due() and the_run.leaving


def test_ranks_above_0_are_silent(tmp_path, monkeypatch):
    """Catches a second process that logs, saves or draws."""
    monkeypatch.setattr(common, "save_image", lambda *_, **__: pytest.fail("drawn"))
    the_run = by_hand(tmp_path / "a", IMAGES, lambda: pytest.fail("sampled"))
    the_run.rank = 1
    with the_run:
        for _ in the_run.steps():
            the_run.log({"loss_D": torch.tensor(float("nan"))})
            the_run.save({"G": Weights(float("nan"))})
            break
    assert not (tmp_path / "a").exists()


def test_images_stay_where_they_were_put(tmp_path, any_script, images):
    """Catches a run that writes outside of --out, or into the folder of images."""
    before = sorted(file for file in images.rglob("*"))
    run(any_script, images, tmp_path / "only/here", "--steps", "1", "--cache", str(tmp_path / "cache"))
    module(any_script).main(
        ["--out", str(tmp_path / "only/here"), "--sample", "1", "--device", "cpu", "--cache", str(tmp_path / "cache")]
    )
    assert sorted(file for file in images.rglob("*")) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cache", "only"]
    assert [file.name for file in (tmp_path / "only").iterdir()] == ["here"]
