"""--finetune: a new run that begins with the networks of another."""

import torch
from conftest import module, run, same, same_state
from test_training import refused

NETWORKS = ("G", "D", "G_ema")


def load(file) -> dict:
    return torch.load(file, weights_only=True)


def finetune(script: str, checkpoint, out, *flags) -> dict:
    return module(script).main(["--finetune", str(checkpoint), "--out", str(out), "--device", "cpu", *flags])


def test_networks_go_on_and_all_else_begins(any_script, images, tmp_path):
    """Catches a network that starts from random weights, averages of an optimizer, steps or positions that go on, and a run that is changed by the other."""
    run(any_script, images, tmp_path / "first", "--steps", "3", "--lr-g", "0.01", "--lr-d", "0.003", "--seed", "2")
    first = tmp_path / "first/last.pt"
    saved, before = load(first), first.read_bytes()
    finetune(any_script, first, tmp_path / "tuned", "--steps", "2", "--lr-g", "0.002", "--keep", "5")
    fresh = tmp_path / "fresh"
    run(any_script, images, fresh, "--steps", "1", "--seed", "2")

    start, new = load(tmp_path / "tuned/checkpoints/000000.pt"), load(fresh / "checkpoints/000000.pt")["state"]
    assert start["step"] == 0 and load(tmp_path / "tuned/last.pt")["step"] == 2
    for name, values in start["state"].items():
        if name in NETWORKS:
            assert same(values, saved["state"][name]) and not same(values, new[name]), name
        elif name.startswith("opt"):
            assert values["state"] == {}, name
        else:
            assert same(values, new[name]), name
    assert first.read_bytes() == before

    args = start["args"]
    assert (args["lr_g"], args["lr_d"], args["seed"]) == (0.002, 0.003, 2)
    assert args["path"] == str(images)


def test_another_folder(any_script, images, tmp_path):
    """Catches images of the first run in the second."""
    run(any_script, images, tmp_path / "first", "--steps", "1")
    moved = tmp_path / "moved"
    moved.symlink_to(images, target_is_directory=True)
    finetune(any_script, tmp_path / "first/last.pt", tmp_path / "tuned", "--path", str(moved))
    assert load(tmp_path / "tuned/last.pt")["args"]["path"] == str(moved)


def test_what_it_refuses(any_script, images, tmp_path, capsys):
    """Catches another network than the checkpoint's, a run that is overwritten, and two checkpoints of which one is ignored."""
    first = tmp_path / "first/last.pt"
    run(any_script, images, first.parent, "--steps", "1")
    before = {file: file.read_bytes() for file in first.parent.rglob("*") if file.is_file()}
    with refused(capsys, 2, "--width 5", "last.pt"):
        finetune(any_script, first, tmp_path / "tuned", "--width", "5")
    with refused(capsys, 2, "already holds a run"):
        finetune(any_script, first, first.parent)
    with refused(capsys, 2, "--finetune", "--checkpoint"):
        finetune(any_script, first, tmp_path / "tuned", "--checkpoint", str(first))
    with refused(capsys, 2, "not allowed with"):
        finetune(any_script, first, tmp_path / "tuned", "--resume")
    with refused(capsys, 2, "no checkpoint", "nowhere.pt"):
        finetune(any_script, tmp_path / "nowhere.pt", tmp_path / "tuned")
    assert {file: file.read_bytes() for file in first.parent.rglob("*") if file.is_file()} == before
    assert not (tmp_path / "tuned").exists()


def test_a_tuned_run_is_resumed(any_script, images, tmp_path):
    """Catches a resumed run that loads the first run's networks again, or forgets its optimizers."""
    run(any_script, images, tmp_path / "first", "--steps", "2", "--lr-g", "0.01")
    first = tmp_path / "first/last.pt"
    whole = finetune(any_script, first, tmp_path / "whole", "--steps", "4", "--log-every", "1")
    finetune(any_script, first, tmp_path / "parts", "--steps", "2", "--log-every", "1")
    parts = run(any_script, images, tmp_path / "parts", "--steps", "4", "--resume")
    assert same_state(whole, parts)
    assert (tmp_path / "whole/log.csv").read_bytes() == (tmp_path / "parts/log.csv").read_bytes()
