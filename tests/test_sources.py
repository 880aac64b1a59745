"""Every source of labels from the folder to the samples: what is printed, stored, resumed, drawn and scored."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, module, settings
from test_training import refused

import common
import compare
import faces
import labels

HAIR = ("black", "red", "white")
COUNT = 24  # images, of each hair a third


def look(i: int) -> tuple[str, str]:
    return HAIR[i % 3], ("blue", "green")[i // 3 % 2]


def paint(folder: Path, name=lambda i: f"{i}.png") -> Path:
    """24 painted faces."""
    for i in range(COUNT):
        file = folder / "images" / name(i)
        file.parent.mkdir(parents=True, exist_ok=True)
        faces.paint(0, i, 32, hair=look(i)[0], eyes=look(i)[1])[0].save(file)
    return folder / "images"


def table(folder: Path, file: str, header: str, row) -> Path:
    path = paint(folder)
    (folder / file).write_text(header + "".join(f"{row(i, *look(i))}\n" for i in range(COUNT)), encoding="utf-8")
    return path


def class_folders(folder: Path) -> Path:
    """Classes as in CIFAR-10's folders, one with another folder inside, and an image beside them."""
    path = paint(folder, lambda i: f"{look(i)[0]}/{'more/' if i % 2 else ''}{i}.png")
    faces.paint(0, 99, 32)[0].save(path / "99.png")
    return path


def as_json(i: int, hair: str, eyes: str) -> str:
    return json.dumps(
        {"file_name": f"images/{i}.png", "text": [f"{hair} hair", f"a face, {eyes} eyes"], "glasses": i % 2}
    )


COLORS = ("eyes: blue 12, green 12", "hair: black 8, red 8, white 8")
BOTH = {"eyes": {"blue": 12, "green": 12}, "hair": {"black": 8, "red": 8, "white": 8}}
CLASS = {"class": {"black": 8, "red": 8, "white": 8}}
# how to write it; what is printed; the groups for acgan.py; how many captions there are for cgan_text2img.py
SOURCES = {
    "class folders": (class_folders, ("the sub-folders of", "class: black 8, red 8, white 8", "1 images without a label"), CLASS, 24),
    "words": (lambda f: table(f, "looks.csv", "image,hair,eyes\n", lambda i, h, e: f"{i}.png,{h},{e}"), ("looks.csv", *COLORS), BOTH, 24),
    "semicolons": (lambda f: table(f, "looks.csv", "hair;eyes;file\n", lambda i, h, e: f"{h}; {e}; {i}"), ("looks.csv", *COLORS), BOTH, 24),
    "classes of numbers": (lambda f: table(f, "looks.tsv", "id\tlabel\n", lambda i, h, e: f"{i}\t{HAIR.index(h)}"), ("looks.tsv", "label: 0 8, 1 8, 2 8"), {"label": {"0": 8, "1": 8, "2": 8}}, None),
    "yes and no": (lambda f: table(f, "a.csv", "image,Big_Lips,Big_Nose\n", lambda i, h, e: f"{i}.png,{i % 2},{i // 2 % 2}"), ("Big_Lips: no 12, yes 12", "Big_Nose: no 12, yes 12", "each is a group of its own"), {"Big_Lips": {"no": 12, "yes": 12}, "Big_Nose": {"no": 12, "yes": 12}}, None),
    "captions in columns": (lambda f: table(f, "metadata.csv", "file_name,text,caption\n", lambda i, h, e: f'{i}.png,{h} hair,"a face, {e} eyes"'), ("metadata.csv", "captions: 48, such as"), None, 48),
    "metadata.jsonl": (lambda f: table(f, "metadata.jsonl", "", as_json), ("metadata.jsonl", "glasses: no 12, yes 12"), {"glasses": {"no": 12, "yes": 12}}, 48),
    "tags": (lambda f: table(f, "tags.csv", "", lambda i, h, e: f"{i},long {h} hair, violet eyes" if i == 4 else f"{i},long {h} hair and {e} eyes"), ("tags.csv", "hair: black 8, red 8, white 8", "violet eyes 1"), {"eyes": {"blue": 12, "green": 11}, "hair": BOTH["hair"]}, 24),
}  # fmt: skip


def train(script: str, path: Path, out: Path, *flags: str):
    return module(script).main([*TINY, "--path", str(path), "--out", str(out), *flags])


def found(out: Path) -> dict:
    return json.loads((out / "args.json").read_text())["found"]["labels"]


def rows(out: Path) -> list[dict]:
    with open(out / "generated/labels.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("case", SOURCES)
def test_attributes(case, tmp_path, capsys):
    """Catches a source that is not found, is understood in another way than it says, or is another after --resume."""
    write, printed, groups, _ = SOURCES[case]
    path, out = write(tmp_path), tmp_path / "run"
    if groups is None:
        with refused(capsys, 2, "captions", "cgan_text2img.py"):
            train("acgan", path, out, "--steps", "2")
        return
    state = train("acgan", path, out, "--steps", "2")
    message = capsys.readouterr().err
    assert all(part in message for part in printed), message
    assert "images: 2" in message and "32x32 pixels" in message
    assert found(out)["groups"] == groups and found(out)["images"] == COUNT
    assert state["G"].groups == {group: list(values) for group, values in groups.items()}

    (path.parent / "later.csv").write_text("image,other\n0.png,a\n1.png,b\n")  # no matter to this run
    module("acgan").main(["--out", str(out), "--resume", "--steps", "4", "--device", "cpu"])
    assert found(out)["groups"] == groups and "later.csv" not in capsys.readouterr().err
    module("acgan").main(["--out", str(out), "--sample", "3", "--device", "cpu"])
    assert set(rows(out)[0]) == {"image", *groups}


@pytest.mark.parametrize("case", SOURCES)
def test_captions(case, tmp_path, capsys):
    """Catches captions that are lost, a group that is read as one, and text-to-image that learns yes and no."""
    write, printed, _, captions = SOURCES[case]
    path, out = write(tmp_path), tmp_path / "run"
    if captions is None:
        with refused(capsys, 2, "words", "acgan.py"):
            train("cgan_text2img", path, out, "--steps", "2")
        return
    train("cgan_text2img", path, out, "--steps", "2")
    message = capsys.readouterr().err
    assert printed[0] in message and f"captions: {captions}, such as" in message
    assert found(out)["captions"] == captions and found(out)["images"] == COUNT
    module("cgan_text2img").main(["--out", str(out), "--resume", "--steps", "4", "--device", "cpu"])
    module("cgan_text2img").main(["--out", str(out), "--sample", "3", "--device", "cpu"])
    assert len(rows(out)) == 3 and all(row["caption"] for row in rows(out))


def test_labels_reach_their_images(tmp_path):
    """Catches classes in the order of the folders' images, not of their names: the color is read from the pixels."""
    data = train("acgan", class_folders(tmp_path), tmp_path / "run", "--steps", "1", "--size", "32")["data"]
    images = data.images[torch.from_numpy(data.rows)].permute(0, 2, 3, 1).numpy()
    seen = faces.read_attributes(np.ascontiguousarray(images))["hair"]
    assert seen.tolist() == [HAIR[k] for k in data.labels[:, 0]]


ASKED = {  # the list of --sample-labels, for acgan.py on "tags" -> the rows that are drawn, or parts of the refusal
    "tags": ("1,red hair blue eyes\n2,black hair\n", [("blue", "red"), ("", "black")]),
    "more words": ("1,long Red hair, big blue eyes\n2,a face with black hair\n", [("blue", "red"), ("", "black")]),
    "a table": ("hair,eyes\nred,blue\nblack,\n", [("blue", "red"), ("", "black")]),
    "a table with names": ("file,hair,eyes\n1,red,blue\n2,black,\n", [("blue", "red"), ("", "black")]),
    "other capitals": ("Hair,EYES,name\nred,blue,a\nblack,,b\n", [("blue", "red"), ("", "black")]),
    "two colors": ("1,red hair and black hair\n", ("two values",)),
    "JSON": ('{"hair": "red", "eyes": "blue"}\n{"hair": "black"}\n', [("blue", "red"), ("", "black")]),
    "an unknown color": ("1,violet hair red eyes\n", ("violet hair",)),
    "a color that is no color": ("1,long hair blue eyes\n", ("long hair",)),
    "a color that nobody has": ("1,aqua hair blue eyes\n", ("'aqua'", "hair")),
    "a group that nobody has": ("image,hat\n1,red\n", ("'hat'",)),
    "captions": ("image,caption\n1,a face\n", ("no attribute", "eyes, hair")),
}


@pytest.mark.parametrize("case", ASKED)
def test_sample_labels(case, tmp_path, capsys, tags_run):
    """Catches an attribute that cannot be drawn and is left out in silence, and lists in another format than the labels."""
    content, expected = ASKED[case]
    (tmp_path / "list.txt").write_text(content)
    command = [
        "--out",
        str(tags_run),
        "--sample",
        "2",
        "--sample-labels",
        str(tmp_path / "list.txt"),
        "--device",
        "cpu",
    ]
    if isinstance(expected, tuple):
        with refused(capsys, 2, *expected):
            module("acgan").main(command)
        return
    capsys.readouterr()
    module("acgan").main(command)
    assert [(row["eyes"], row["hair"]) for row in rows(tags_run)] == expected
    assert "1 rows say nothing of eyes, row 2 first" in capsys.readouterr().err  # as after a typo


@pytest.fixture(scope="module")
def tags_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tags")
    train("acgan", SOURCES["tags"][0](folder), folder / "run", "--steps", "1")
    return folder / "run"


def test_one_hot_lists_follow_the_training(tmp_path):
    """Catches groups of --sample-labels that are decided by the few rows of the list."""
    names = "hair_black hair_red hair_white hat"
    path = table(
        tmp_path,
        "attr.txt",
        f"{COUNT}\n{names}\n",
        lambda i, h, e: f"{i}.png " + " ".join(str(int(h == x)) for x in HAIR) + f" {i % 2}",
    )
    train("acgan", path, tmp_path / "run", "--steps", "1")
    (tmp_path / "list.txt").write_text(f"2\n{names}\n0 1 0 1\n0 0 0 0\n")
    module("acgan").main(
        [
            "--out",
            str(tmp_path / "run"),
            "--sample",
            "2",
            "--sample-labels",
            str(tmp_path / "list.txt"),
            "--device",
            "cpu",
        ]
    )
    assert [(row["hair"], row["hat"]) for row in rows(tmp_path / "run")] == [("red", "yes"), ("", "no")]


def test_compare_knows_the_groups(tmp_path, monkeypatch, capsys):
    """Catches hair and eyes of one's own table that are not scored, and a group that cannot be, left out in silence."""
    monkeypatch.setattr(common, "FACES", 40)
    for case in ("words", "class folders"):
        (tmp_path / case).mkdir()
        train("acgan", SOURCES[case][0](tmp_path / case), tmp_path / case / "run", "--steps", "1", "--size", "32")
    runs = [str(tmp_path / case / "run") for case in ("words", "class folders")]
    table = compare.main(["faces", *runs, "--count", "8", "--out", str(tmp_path / "out")])
    assert all(table[1][name] == table[1][name] for name in ("hair", "eyes"))  # not nan
    assert table[2]["hair"] != table[2]["hair"] and f"{runs[1]}: class cannot be read" in capsys.readouterr().out


# --- several captions of an image ---


def test_one_of_several_captions_is_drawn():
    """Catches the first or the last caption at each use, zeros that stand for none, one draw for all images, and another draw in a resumed run."""
    m = module("cgan_text2img")
    t = torch.tensor([[[1, 0], [2, 3], [4, 5]], [[6, 7], [0, 0], [0, 0]], [[8, 9], [1, 2], [0, 0]]])
    torch.manual_seed(0)
    drawn = torch.stack([m.choose(t) for _ in range(3000)])
    assert drawn.shape == (3000, 3, 2)
    for image, count in enumerate((3, 1, 2)):
        seen, counts = drawn[:, image].unique(dim=0, return_counts=True)
        assert seen.tolist() == sorted(t[image, :count].tolist())
        assert all(abs(n / 3000 - 1 / count) < 0.05 for n in counts.tolist())
    together = (drawn[:, 0] == torch.tensor([1, 0])).all(1) & (drawn[:, 2] == torch.tensor([8, 9])).all(1)
    assert abs(together.float().mean() - 1 / 6) < 0.04  # each image by itself
    torch.manual_seed(0)
    assert torch.equal(m.choose(t), drawn[0])
    state = torch.get_rng_state()
    assert torch.equal(m.choose(t[:, :1]), t[:, 0]) and torch.equal(
        torch.get_rng_state(), state
    )  # as before, with one each


def test_all_captions_of_an_image_are_encoded(tmp_path):
    """Catches captions that go to another image, and words that only a second caption has."""
    path = table(
        tmp_path,
        "captions.csv",
        "image,caption\n",
        lambda i, h, e: f"{i}.png,{h} hair" + (f"\n{i}.png,a face with {e} eyes" if i % 3 == 0 else ""),
    )
    state = train("cgan_text2img", path, tmp_path / "run", "--steps", "2")
    args = settings("cgan_text2img")
    args.words = torch.load(tmp_path / "run/last.pt", weights_only=True)["args"]["words"]
    names, _ = common.find_images(str(path), "")
    for name, t in zip(names, state["data"].labels, strict=True):
        hair, eyes = look(int(name.removesuffix(".png")))
        captions = [[args.words[k - 1] for k in row if k] for row in t.tolist()]
        expected = [f"{hair} hair", f"a face with {eyes} eyes" if hair == "black" else ""]
        assert captions == [module("cgan_text2img").split(caption) for caption in expected]


def test_embeddings_of_several_rows(tmp_path):
    """Catches vectors of images in the place of those of rows, where an image has several."""
    path = table(
        tmp_path,
        "captions.csv",
        "image,caption\n",
        lambda i, h, e: f"{23 - i}.png,a" + (f"\n{23 - i}.png,b" if i % 3 == 0 else ""),
    )
    vectors = np.random.default_rng(0).normal(size=(32, 5)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    state = train(
        "cgan_text2img", path, tmp_path / "run", "--steps", "2", "--embeddings", str(tmp_path / "vectors.npy")
    )
    images = [line.split(".")[0] for line in (tmp_path / "captions.csv").read_text().splitlines()[1:]]
    names, _ = common.find_images(str(path), "")
    for name, t in zip(names, state["data"].labels, strict=True):
        rows = [k for k, image in enumerate(images) if f"{image}.png" == name]
        expected = np.zeros((2, 5), np.float32)
        expected[: len(rows)] = vectors[rows]
        assert torch.equal(t, torch.from_numpy(expected))


WORDS = {
    "नीले बाल": ["नीले", "बाल"],
    "कि की": ["कि", "की"],  # they differ in their vowel signs
    "ผมสีน้ำเงิน": ["ผมสีน้ำเงิน"],
    "藍色頭髮\uff0c紅eyes": ["藍", "色", "頭", "髮", "紅", "eyes"],
    "Cafe\u0301 caf\u00e9": ["caf\u00e9", "caf\u00e9"],
    "black-haired, 2 eyes; a_b": ["black", "haired", "2", "eyes", "a_b"],
    "¡...!": [],
}


@pytest.mark.parametrize("caption", WORDS)
def test_words_of_all_languages(caption):
    """Catches vowel signs that are dropped, a Chinese sentence that is one word, and é in two ways."""
    assert module("cgan_text2img").words_of(caption) == WORDS[caption]


PROMPTS = {
    "ids": ("7,red hair\nearly,black hair, blue eyes\n", {"7": "red hair", "early": "black hair, blue eyes"}),
    "no ids": ("red hair\nblack hair blue eyes\n\n", {"1": "red hair", "2": "black hair blue eyes"}),
    "no ids, but commas": ("a face, blue eyes\nblack hair\n", {"1": "a face, blue eyes", "2": "black hair"}),
    "commas in all lines": (
        "a face, blue eyes\na head, red hair\n",
        {"1": "a face, blue eyes", "2": "a head, red hair"},
    ),
    "spaces and CR LF": ("7 , red hair\r\n8, black hair\r\n", {"7": "red hair", "8": "black hair"}),
    "UTF-16": ("7,red hair\n", {"7": "red hair"}),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_prompt_files(case, tmp_path):
    """Catches captions taken for ids, so that the prompt is empty."""
    content, expected = PROMPTS[case]
    (tmp_path / "list.txt").write_text(content, encoding="utf-16" if case == "UTF-16" else "utf-8", newline="")
    found = labels.read_prompts(str(tmp_path / "list.txt"))
    assert {name: caption.strip() for name, caption in found} == expected


def test_prompt_files_that_say_nothing(tmp_path, capsys):
    for content, parts in ((b"\n\n", ("no prompt",)), (b"1,\xff\n", ("UTF-8",))):
        (tmp_path / "list.txt").write_bytes(content)
        with refused(capsys, 2, "list.txt", *parts):
            labels.read_prompts(str(tmp_path / "list.txt"))


# --- labels and --resume ---


@pytest.mark.parametrize("case", ["words", "class folders", "tags"])
def test_a_data_set_that_was_moved(case, tmp_path, capsys):
    """Catches --path for a folder that was moved with its labels, which are still looked for in the old place."""
    (tmp_path / "old").mkdir()
    SOURCES[case][0](tmp_path / "old")
    train("acgan", tmp_path / "old/images", tmp_path / "run", "--steps", "2")
    (tmp_path / "old").rename(tmp_path / "new")
    command = ["--out", str(tmp_path / "run"), "--resume", "--steps", "4", "--device", "cpu"]
    with refused(capsys, 2, str(tmp_path / "old/images"), "does not exist"):
        module("acgan").main(command)
    module("acgan").main([*command, "--path", str(tmp_path / "new/images")])
    assert str(tmp_path / "new") in found(tmp_path / "run")["source"]


@pytest.mark.parametrize("case", ["words", "class folders", "tags"])
def test_fine_tuning_takes_the_labels_of_the_new_folder(case, tmp_path, capsys):
    """Catches labels of the old folder for images of the new one that have the same names."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        SOURCES[case][0](tmp_path / name)
    train("acgan", tmp_path / "old/images", tmp_path / "a", "--steps", "2")
    command = [
        "--resume",
        "--checkpoint",
        str(tmp_path / "a/last.pt"),
        "--out",
        str(tmp_path / "b"),
        "--steps",
        "4",
        "--device",
        "cpu",
    ]
    capsys.readouterr()
    module("acgan").main([*command, "--path", str(tmp_path / "new/images")])
    assert (
        str(tmp_path / "new") in found(tmp_path / "b")["source"]
        and str(tmp_path / "old") not in capsys.readouterr().err
    )
