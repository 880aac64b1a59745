"""Files of a run while things go wrong: order and completeness of what is written, signals, torn logs, processes that must agree."""

import argparse
import contextlib
import importlib.util
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import TINY, module, run, tiny
from PIL import Image
from test_common import count_decoding, load
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

    with refused(capsys, 1, "a.bin", "intact", "the disk is full" if isinstance(error, OSError) else "write failed"):
        common.atomic(tmp_path / "a.bin", write)
    assert (tmp_path / "a.bin").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


FULL = {  # what a write raises -> what is said
    "the file system": (OSError(28, "No space left on device"), "the disk is full"),
    "a quota": (OSError(122, "Disk quota exceeded"), "Disk quota exceeded"),
    "no permission": (PermissionError(13, "Permission denied"), "Permission denied"),
    "torch.save": (RuntimeError("unexpected pos 64 vs 0"), "unexpected pos 64 vs 0"),
}


@pytest.mark.parametrize("kind", FULL)
@pytest.mark.parametrize("inside", [False, True])
def test_a_full_disk_is_said_in_words(tmp_path, capsys, kind, inside):
    """Catches "unexpected pos 64 vs 0", which is what torch.save says of a full disk; the error below it knows better."""
    error, words = FULL[kind]

    def write(file):
        if not inside:
            raise error
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 (as torch does)

    with refused(
        capsys,
        1,
        f"cannot write {tmp_path / 'a.bin'} ({'the disk is full' if inside else words}",
        "make room",
        "intact",
    ):
        common.atomic(tmp_path / "a.bin", write)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), ValueError("a bug"), MemoryError()])
def test_whatever_ends_a_write_leaves_nothing_behind(tmp_path, error):
    """Catches a.bin.tmp after Ctrl-C, and an error of ours that is said to be a full disk."""
    (tmp_path / "a.bin").write_bytes(b"old")

    def write(file):
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        common.atomic(tmp_path / "a.bin", write)
    assert (tmp_path / "a.bin").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


# --- files of the user's ---


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(file.relative_to(folder)): file.read_bytes() if file.is_file() else None for file in folder.rglob("*")}


def generate(count: int, shade: float = 0.0, labels: list | None = None):
    """A `generate` for write_samples that draws `count` images at a time, and a label for each."""

    def draw():
        if labels is not None:
            labels.extend({"hair": "aqua"} for _ in range(count))
        return torch.full((count, 3, 4, 4), shade)

    return draw


def sample(out, count: int, shade: float = 0.0, labels: list | None = None):
    args = argparse.Namespace(out=str(out), sample=count)
    common.write_samples(args, generate(2, shade, labels), () if labels is None else labels)


def test_samples_take_the_place_of_earlier_ones(tmp_path):
    """Catches samples of an older checkpoint that stay among the new ones, and files of the user's that go with them."""
    folder = tmp_path / "generated"
    sample(tmp_path, 5, labels=[])
    assert sorted(contents(folder)) == [".written", *(f"{i:05d}.png" for i in range(5)), "labels.csv"]
    for name in ("mine.png", "00007.png", "notes.txt", "00003.png.bak"):
        (folder / name).write_bytes(b"mine")
    sample(tmp_path, 3, shade=1.0)
    assert sorted(name for name in contents(folder) if "labels" not in name) == sorted(
        [".written", "00000.png", "00001.png", "00002.png", "mine.png", "00007.png", "notes.txt", "00003.png.bak"]
    )
    assert not (folder / "labels.csv").exists()  # it told of images that are gone
    assert Image.open(folder / "00002.png").getpixel((1, 1)) == (255, 255, 255)
    assert (folder / "00007.png").read_bytes() == b"mine"


USERS = {  # files in OUT/generated that no call has written, and whether --sample 4 may go on
    "another name": ("portrait.png", True),
    "a number that is not drawn": ("00004.png", True),
    "a number that is drawn": ("00002.png", False),
    "a folder of that name": ("00002.png/a.txt", False),
    "a table": ("labels.csv", False),
}


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("case", USERS)
def test_a_file_of_the_user_s_is_never_overwritten(tmp_path, capsys, case, earlier):
    """Catches --sample that replaces or deletes what it has not written, or deletes its own before it stops."""
    name, allowed = USERS[case]
    if earlier:
        sample(tmp_path, 1)
    if case == "a table" and earlier:
        pytest.skip("see test_a_table_of_the_user_s_stays")
    file = tmp_path / "generated" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"mine")
    before = contents(tmp_path)
    if allowed:
        sample(tmp_path, 4, labels=[])
        assert file.read_bytes() == b"mine" and (tmp_path / "generated/00003.png").exists()
    else:
        with refused(capsys, 2, str(tmp_path / "generated"), repr(name.split("/")[0]), "--out", "(1 such files)"):
            sample(tmp_path, 4, labels=[])
        assert contents(tmp_path) == before


def test_a_table_of_the_user_s_stays(tmp_path):
    """Catches notes on the samples of a script without labels that the next --sample deletes."""
    sample(tmp_path, 2)
    (tmp_path / "generated/labels.csv").write_text("mine")
    with contextlib.suppress(SystemExit):
        sample(tmp_path, 2)
    assert (tmp_path / "generated/labels.csv").read_text() == "mine"


def test_the_list_keeps_names_of_any_bytes(tmp_path):
    """Catches a traceback, or a file that is forgotten, if a name is not UTF-8 or has a line break."""
    names = [os.fsdecode(b"a\xff.png"), "b\nc.png", "d e.png", "ü.png"]
    for some in (names, ["z.png"]):  # more of them by a second call
        with common.claim(tmp_path, some):
            for name in some:
                (tmp_path / name).touch()
    assert sorted(common.written(tmp_path)) == sorted([*names, "z.png"])
    with common.claim(tmp_path, ["0.png", "1.png"], replace=True):
        assert {"0.png", "1.png"} <= set(common.written(tmp_path))  # in case that the process is killed here
        (tmp_path / "0.png").touch()
    assert sorted(os.listdir(tmp_path)) == [".written", "0.png"] and common.written(tmp_path) == ["0.png"]


FOREIGN = [  # what lies in --out of a fresh start, its content, and whether it is refused
    ("samples/000500.png", "mine", True),
    ("samples/notes.txt", "mine", True),
    ("checkpoints/mine.pt", "mine", True),
    ("real.png", "mine", True),
    ("progress.gif", "mine", True),
    *(
        ("args.json", content, True)
        for content in ("mine", "", "[1, 2]", '{"lr": 1}', '{"script": "theirs"}', "null", "3")
    ),
    ("generated/00000.png", "mine", False),
    ("notes.txt", "mine", False),
    (".lock", "", False),
]


@pytest.mark.parametrize(("name", "content", "is_refused"), FOREIGN)
def test_a_fresh_start_does_not_overwrite_what_no_run_has_written(tmp_path, capsys, name, content, is_refused):
    """Catches --out ~/pictures, whose samples/ and real.png would be replaced; args.json of another program is no sign of a run."""
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    before = contents(tmp_path)
    flags = [*TINY, "--path", "unused", "--out", str(tmp_path / "out")]
    if is_refused:
        first = name.split("/")[0]
        with refused(capsys, 2, f"{tmp_path / 'out'} holds {first}, which no run has written", "--out"):
            module("dcgan").parse_args(flags)
        if first != "args.json":  # nor does the settings file of another program make them ours
            (tmp_path / "out/args.json").write_text('{"lr": 1}')
            with refused(capsys, 2, "which no run has written"):
                module("dcgan").parse_args(flags)
            (tmp_path / "out/args.json").unlink()
    else:
        module("dcgan").parse_args(flags)
    assert contents(tmp_path) == before


def test_a_run_refuses_before_it_decodes(any_script, images, tmp_path, capsys, monkeypatch):
    """Catches hours of decoding before "which no run has written", and a file that is touched until then."""
    (tmp_path / "out/samples").mkdir(parents=True)
    (tmp_path / "out/samples/000500.png").write_bytes(b"mine")
    before = contents(tmp_path)
    decoded = count_decoding(monkeypatch)
    with refused(capsys, 2, "samples", "which no run has written"):
        run(any_script, images, tmp_path / "out", "--steps", "1", "--cache", str(tmp_path / "cache"))
    assert contents(tmp_path) == before and not decoded


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(any_script, images, tmp_path, monkeypatch):
    """Catches an --out that can neither be resumed nor begun: args.json and real.png are there, last.pt is not."""

    class Killed(Exception):
        pass

    def kill(*_):
        raise Killed

    save = common.Run.save
    monkeypatch.setattr(common.Run, "save", kill)
    with pytest.raises(Killed):
        run(any_script, images, tmp_path / "out", "--steps", "1")
    assert (tmp_path / "out/real.png").exists() and not (tmp_path / "out/last.pt").exists()
    (tmp_path / "out/samples").mkdir()  # killed a little later
    (tmp_path / "out/samples/000000.png").touch()
    monkeypatch.setattr(common.Run, "save", save)
    run(any_script, images, tmp_path / "out", "--steps", "1")
    assert (tmp_path / "out/last.pt").exists()


def test_a_missing_tensorboard_is_said_before_decoding(any_script, images, tmp_path, capsys, monkeypatch):
    """Catches a traceback after minutes of decoding; --sample needs none."""
    run(any_script, images, tmp_path / "old", "--steps", "1")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else find_spec(name, *rest)
    )
    decoded = count_decoding(monkeypatch)
    new = ["--path", str(images), "--out", str(tmp_path / "new"), "--cache", str(tmp_path / "cache"), "--steps", "1"]
    for flags in (new, ["--resume", "--out", str(tmp_path / "old"), "--steps", "2"]):
        with refused(capsys, 2, "tensorboard is not installed", "pip install -r requirements.txt"):
            module(any_script).main([*tiny(any_script), *flags])
    assert not decoded and sorted(os.listdir(tmp_path)) == ["old"]
    module(any_script).parse_args(["--sample", "1", "--out", str(tmp_path / "old")])


# --- Ctrl-C ---


@pytest.fixture
def ctrl_c():
    """A function that does what the terminal does at Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_decoding(tmp_path, folder, capsys, monkeypatch, ctrl_c):
    """Catches a traceback of thirty threads, half a cache that the next start takes for a whole one, and a building-... folder that stays."""
    decode, calls = common.decode, []

    def pressed(*arguments, **options):
        calls.append(1)
        if len(calls) == 5:
            ctrl_c()
        time.sleep(0.002)
        return decode(*arguments, **options)

    monkeypatch.setattr(common, "decode", pressed)
    with refused(capsys, 130, "stopped by Ctrl-C", "the next start begins again"):
        load(folder, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.setattr(common, "decode", decode)
    assert len(load(folder, tmp_path / "cache")[0]) == 24


def test_ctrl_c_while_another_process_decodes(tmp_path, folder, capsys, monkeypatch):
    """Catches a traceback of the processes that only wait."""

    def pressed(_):
        raise KeyboardInterrupt

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(common.time, "sleep", pressed)
    with refused(capsys, 130, "stopped by Ctrl-C"):
        load(folder, tmp_path / "cache")


@pytest.mark.parametrize("where", ["while drawing", "while writing"])
def test_ctrl_c_while_sampling(tmp_path, capsys, monkeypatch, where):
    """Catches a traceback, half an image, and a .tmp that stays; images that are finished stay, and the next call replaces them."""
    calls, save_png = [], common.save_png
    draw = generate(2)

    def pressed(number, then, *arguments):
        calls.append(1)
        if len(calls) == number:
            if arguments:
                arguments[-1].write(b"half")
            raise KeyboardInterrupt
        return then(*arguments)

    if where == "while writing":
        monkeypatch.setattr(common, "save_png", lambda image, file: pressed(5, save_png, image, file))
    with refused(capsys, 130, "stopped by Ctrl-C", f"not all samples are in {tmp_path / 'generated'}"):
        common.write_samples(
            argparse.Namespace(out=str(tmp_path), sample=9),
            draw if where == "while writing" else lambda: pressed(3, draw),
        )
    monkeypatch.setattr(common, "save_png", save_png)
    assert sorted(os.listdir(tmp_path / "generated")) == [".written", *(f"{i:05d}.png" for i in range(4))]
    sample(tmp_path, 2)
    assert sorted(os.listdir(tmp_path / "generated")) == [".written", "00000.png", "00001.png"]


def test_ctrl_c_before_the_first_sample(tmp_path):
    """Catches a list without names that the next call does not understand: IsADirectoryError for ever."""

    def pressed():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        common.write_samples(argparse.Namespace(out=str(tmp_path), sample=9), pressed)
    (tmp_path / "generated/.written").touch()  # as older versions left it
    sample(tmp_path, 2)
    assert sorted(os.listdir(tmp_path / "generated")) == [".written", "00000.png", "00001.png"]


def test_a_second_ctrl_c_while_saving_keeps_the_old_checkpoint(tmp_path, capsys):
    """Catches last.pt.tmp, or half a last.pt, when the second Ctrl-C hits a checkpoint; and a traceback."""
    with by_hand(tmp_path / "a", IMAGES, grid) as the_run:
        the_run.save({"G": Weights(0.5)})
        before = (tmp_path / "a/last.pt").read_bytes()
    with (
        pytest.MonkeyPatch.context() as patch,
        refused(capsys, 130, "stopped by a second Ctrl-C", "--resume", "from step 0"),
        by_hand(tmp_path / "a", IMAGES, grid) as the_run,
    ):

        def pressed(content, file):
            file.write(b"half")
            raise KeyboardInterrupt

        patch.setattr(torch, "save", pressed)
        the_run.step = 1
        the_run.save({"G": Weights(0.25)})
    assert (tmp_path / "a/last.pt").read_bytes() == before and not list((tmp_path / "a").rglob("*.tmp"))


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
        refused(capsys, 1, "cannot write to", str(tmp_path), "--resume", "from step 0", "the disk is full"),
        by_hand(tmp_path / "a", IMAGES, grid) as the_run,
    ):
        the_run.save({"G": Nothing()})
        raise OSError(28, "No space left on device")


def test_ctrl_c_is_as_before_if_a_run_cannot_begin(tmp_path, capsys):
    """Catches a handler that swallows every later Ctrl-C of a notebook or a test."""
    before = signal.getsignal(signal.SIGINT)
    (tmp_path / "file").write_text("no folder")
    with refused(capsys, 1, "cannot write to"), by_hand(tmp_path / "file/run", IMAGES, grid):
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_before_the_first_step_is_one_sentence(tmp_path, capsys, monkeypatch):
    """Catches a traceback while TensorBoard is imported, which takes seconds."""

    def interrupted(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(common.Run, "begin", interrupted)
    with refused(capsys, 130, "stopped by Ctrl-C", "training has not begun"), by_hand(tmp_path / "a", IMAGES, grid):
        pass


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
