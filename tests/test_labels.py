"""Label files: every format with its oddities, matched with images; what is left out is counted, what is broken is named."""

import argparse

import numpy as np
import pytest
import torch
from conftest import SHARED, module, settings
from test_training import refused

import common
import faces
import labels

needs_shared = pytest.mark.skipif(not (SHARED / "tags.csv").exists(), reason="the shared data are not here")


def read(tmp_path, content: str | bytes, name="labels.txt"):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return labels.read_labels(str(file))


def args(path, **given):
    defaults = {"labels": None, "embeddings": None, "batch": 2, "script": "acgan"}
    return argparse.Namespace(**{"path": path and str(path), **defaults, **given})


HAIR_EYES = [("hair", "aqua"), ("eyes", "red")]
CELEBA = [("Bald", "no"), ("Young", "yes")]
ATTRIBUTES = [("hair", "red"), ("glasses", "without")]
TABLE = "hair_red hair_blue with_glasses without_glasses"
FORMATS = {
    "words": ("0,aqua hair red eyes\n1,blue hair blue eyes\n", HAIR_EYES),
    "no newline at the end": ("0,aqua hair red eyes\n1,blue hair blue eyes", HAIR_EYES),
    "CR LF": ("0,aqua hair red eyes\r\n1,blue hair blue eyes\r\n", HAIR_EYES),
    "BOM": (b"\xef\xbb\xbf0,aqua hair red eyes\n1,blue hair blue eyes\n", HAIR_EYES),
    "empty lines": ("0,aqua hair red eyes\n\n1,blue hair blue eyes\n\n\n", HAIR_EYES),
    "eyes first": ("0,red eyes aqua hair\n1,blue hair\n", HAIR_EYES),
    "tags": ("0,touhou:17705\taqua hair:60\tred eyes:9\t\n1,original:25774\t\n", HAIR_EYES),
    "tags with spaces": ("0, hack legend:34\t aqua hair :60\tred eyes:9\t\n1,x:1\t\n", HAIR_EYES),
    "tags that are no colours": ("0,long hair:1\tdamage hair:2\t11 eyes:3\tbicolored eyes:4\tlight blue hair:5\n1,x:1\n", []),
    "words around a colour": ("0,aqua hairband:3\tred hair ornament:1\tred eyeshadow:2\tclosed red eyes:4\n1,x:1\n", []),
    "two colours": ("0,aqua hair:1\tblonde hair:2\n1,x:1\n", [("hair", "aqua"), ("hair", "blonde")]),
    "groups": (f"2\n{TABLE}\n0.png 1 0 0 1\n1.png 0 0 1 0\n", ATTRIBUTES),
    "a count that is wrong": (f"999\n{TABLE}\n0.png 1 0 0 1\n1.png 0 0 1 0\n", ATTRIBUTES),
    "-1 and 1, padded": ("2\nBald Young \n0.png -1  1\n1.png 1 -1\n", CELEBA),
    "-1 and 1, the first row all 1": ("2\nBald Young\n0.png 1 1\n1.png -1 1\n", [("Bald", "yes"), ("Young", "yes")]),
    "-1 and 1, as CSV": ("image_id,Bald,Young\n0.png,-1,1\n1.png,1,-1\n", CELEBA),
    "captions": ('image,caption\r\n0.png,"a ""light"" face, blue eyes"\r\n1.png,dark\r\n', 'a "light" face, blue eyes'),
    "a caption of two lines": ('image,caption\n0.png,"a face\nof blue"\n1.png,dark\n', "a face\nof blue"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path, name):
    """Catches a reader that wants a suffix, a header, a last newline, single spaces, or that splits captions at commas."""
    content, expected = FORMATS[name]
    rows = read(tmp_path, content)
    assert len(rows) == 2 and rows[0][0].removesuffix(".png") == "0" and rows[1][0].removesuffix(".png") == "1"
    assert rows[0][1] == expected


def test_groups_of_one_hot_columns(tmp_path):
    """Catches groups that do not exclude each other: with_glasses and with_hat, or all columns without a line between."""
    names = "with_glasses without_glasses with_hat without_hat"
    assert read(tmp_path, f"1\n{names}\n0.png 1 0 0 1\n") == [("0.png", [("glasses", "with"), ("hat", "without")])]
    rows = read(tmp_path, "image,Bald,Young\n0.png,1,1\n1.png,0,1\n")
    assert [dict(label) for _, label in rows] == [{"Bald": "yes", "Young": "yes"}, {"Bald": "no", "Young": "yes"}]


def test_lone_columns_of_0_and_1_are_yes_or_no(tmp_path):
    """Catches a group of one value, which every image would either have or lack."""
    rows = read(tmp_path, "2\nBald hair_red hair_blue\n0.png 0 1 0\n1.png 1 0 0\n")
    assert rows == [("0.png", [("Bald", "no"), ("hair", "red")]), ("1.png", [("Bald", "yes")])]


def test_columns_of_minus_1_and_1_are_each_a_group(tmp_path):
    """Catches CelebA's columns joined by their names: a person may wear a hat and lipstick, or have neither black nor blond hair."""
    names = "Wearing_Hat Wearing_Lipstick Black_Hair Blond_Hair with_hat without_hat"
    rows = read(tmp_path, f"1\n{names}\n0.png 1 1 -1 -1 1 -1\n")
    values = ["yes", "yes", "no", "no", "yes", "no"]
    assert rows == [("0.png", list(zip(names.split(), values, strict=True)))]


def test_test_lists(tmp_path):
    """Catches rows without file names taken for broken ones, and ids that must be numbers."""
    assert read(tmp_path, f"2\n{TABLE}\n1 0 0 1\n0 1 1 0\n")[0] == ("", ATTRIBUTES)
    assert read(tmp_path, "early,red hair green eyes")[0][0] == "early"


BROKEN = {
    "0,aqua hair red eyes\n1 blue hair blue eyes\n": "line 2",
    f"2\n{TABLE}\n0.png 1 0 0 1\n1.png 1 0 0\n2.png 1 0\n": "line 4",
    f"2\n{TABLE}\n0.png 1 0 0 2\n": "line 3",
    "2\nBald Young\n0.png -1 1\n1.png 0 1\n": "line 4",
    "image,caption\n0.png,a face, blue eyes\n": "line 2",
    "image,Bald,Young\n0.png,1\n": "line 2",
    'image,caption\n0.png,"a face\n1.png,b\n': "line 4",
}


@pytest.mark.parametrize("content", BROKEN)
def test_broken_lines_are_named(tmp_path, capsys, content):
    """Catches a line that is skipped in silence, or a traceback at it."""
    with refused(capsys, 2, "labels.txt", BROKEN[content]):
        read(tmp_path, content)


def test_what_is_no_label_file(tmp_path, capsys):
    for content in ("", "hello\nworld\n", "torch==2\nnumpy\n", f"2\n{TABLE}\n"):
        with refused(capsys, 2, "labels.txt", "image,caption"):
            read(tmp_path, content)
    with refused(capsys, 2, "labels.txt", "UTF-8"):
        read(tmp_path, b"0,\xff hair\n")
    with refused(capsys, 2, "nothing.csv", "FileNotFoundError"):
        labels.read_labels(str(tmp_path / "nothing.csv"))


def test_the_one_candidate_is_found(tmp_path, capsys):
    """Catches a guess among several files, and any CSV taken for labels."""
    images = tmp_path / "all/images"
    images.mkdir(parents=True)
    with refused(capsys, 2, "no label file", "--path"):
        labels.find_labels(args(images))
    (images.parent / "results.csv").write_text("experiment,score\n1,2\n")
    (images.parent / "requirements.txt").write_text("torch\nnumpy\n")
    (images.parent / "TAGS.csv").write_text("0,aqua hair red eyes\n")
    assert labels.find_labels(args(images)) == str((images.parent / "TAGS.csv").resolve())
    (images / "list.txt").write_text(f"1\n{TABLE}\n0.png 1 0 0 1\n")
    with refused(capsys, 2, "several", "TAGS.csv", "list.txt", "--labels"):
        labels.find_labels(args(images))
    assert labels.find_labels(args(images, labels="x.csv")) == "x.csv"
    (images / "list.txt").unlink()
    for content in (
        b"\xef\xbb\xbf0,aqua hair red eyes\n",
        b"\xef\xbb\xbfimage,caption\n0.png,a face\n",
    ):  # as Excel saves it
        (images.parent / "TAGS.csv").write_bytes(content)
        assert labels.find_labels(args(images)).endswith("TAGS.csv")
    (images / "folder.csv").mkdir()
    (images / "gone.txt").symlink_to("nowhere")
    assert labels.find_labels(args(images)).endswith("TAGS.csv")


def test_matching(tmp_path, capsys):
    """Catches labels taken in the order of rows, misses that nobody hears of, and names that differ by folder or suffix."""
    (tmp_path / "tags.csv").write_text("2,red hair\n7,blue hair\n0.png,aqua hair\nsub/1.jpg,pink hair\n")
    names = ["0.png", "2.webp", "3.png", "sub/1.jpg"]
    rows, found = labels.load_labels(args(tmp_path), names)
    assert rows.tolist() == [0, 1, 3]
    assert found == [[("hair", "aqua")], [("hair", "red")], [("hair", "pink")]]
    message = capsys.readouterr().err
    assert "1 images without a label" in message and "1 of its rows" in message
    rows, found = labels.load_labels(
        args(tmp_path), ["0.png", "2.webp", "sub/1.jpg"]
    )  # all have one: a row is left over
    message = capsys.readouterr().err
    assert len(rows) == 3 and "0 images without a label" in message and "1 of its rows" in message
    labels.load_labels(args(tmp_path), ["0.png", "2.webp", "sub/1.jpg", "7.gif"])
    assert capsys.readouterr().err == ""  # nothing is left out, and nothing said
    labels.load_labels(args(tmp_path), ["a/0.png", "b/0.png", "2.png", "7.png"])  # two images share a row
    assert "0 images without a label" in (message := capsys.readouterr().err) and "1 of its rows" in message
    with refused(capsys, 2, "labels 0 images", "tags.csv"):
        labels.load_labels(args(tmp_path), ["a.png", "b.png"])


def test_names_with_several_dots(tmp_path):
    """Catches a name that is cut at its first dot: a.1.png and a.2.png are two images."""
    (tmp_path / "tags.csv").write_text("a,red hair\na.1,blue hair\na.2.png,aqua hair\n")
    rows, found = labels.load_labels(args(tmp_path), ["a.1.png", "a.2.png", "a.3.png", "a.png"])
    assert rows.tolist() == [0, 1, 3]
    assert [label[0][1] for label in found] == ["blue", "aqua", "red"]


def test_label_files_next_to_a_folder_that_is_named_otherwise(tmp_path, monkeypatch):
    """Catches a parent folder that is taken from the name: "." and links have another one."""
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/tags.csv").write_text("0,aqua hair red eyes\n")
    (tmp_path / "link").symlink_to("data/images", target_is_directory=True)
    monkeypatch.chdir(tmp_path / "data/images")
    for path in (".", str(tmp_path / "link"), "../images"):
        assert labels.find_labels(args(path)) == str((tmp_path / "data/tags.csv").resolve())


def test_text_and_attributes(tmp_path, capsys):
    """Catches captions for a classifier, and images without any tag in text-to-image (attributes can do without)."""
    (tmp_path / "tags.csv").write_text("0,red eyes:4\tred hair:1\t\n1,long hair:1\t\n2,blue hair:1\t\n")
    names = ["0.png", "1.png", "2.png"]
    rows, found = labels.load_labels(args(tmp_path), names, text=True)
    assert found == ["red hair red eyes", "blue hair"] and rows.tolist() == [0, 2]
    assert "1 images without a label" in capsys.readouterr().err
    assert labels.load_labels(args(tmp_path), names)[1][1] == []
    (tmp_path / "tags.csv").write_text("image,caption\n0.png,a face\n1.png,two faces\n2.png,...\n")
    rows, found = labels.load_labels(args(tmp_path), names, text=True)
    assert found == ["a face", "two faces"]
    (tmp_path / "tags.csv").write_text("image,caption\n0.png,\n1.png,two faces\n2.png,three\n")  # an empty cell
    rows, found = labels.load_labels(args(tmp_path), names, text=True)
    assert found == ["two faces", "three"] and rows.tolist() == [1, 2]
    with refused(capsys, 2, "captions", "attributes", "cgan_text2img.py"):
        labels.load_labels(args(tmp_path), names)


def test_built_in_labels_are_those_of_the_faces(capsys):
    """Catches labels of other faces than those in the cache."""
    names = [str(i) for i in range(50)]
    rows, found = labels.load_labels(args(None), names)
    assert rows.tolist() == list(range(50))
    assert all(dict(label) == faces.paint(0, i, 32)[1] for i, label in enumerate(found))
    captions = labels.load_labels(args(None), names, text=True)[1]
    look = faces.paint(0, 7, 32)[1]
    assert captions[7] == f"{look['hair']} hair {look['eyes']} eyes"
    with refused(capsys, 2, "--labels", "--path"):
        labels.load_labels(args(None, labels="tags.csv"), names)


@needs_shared
def test_shared_files_agree():
    """The five files of one set of faces tell the same colours."""
    tags = dict(labels.read_labels(str(SHARED / "tags.csv")))
    clean = dict(labels.read_labels(str(SHARED / "tags_clean.csv")))
    captions = dict(labels.read_labels(str(SHARED / "captions.csv")))
    table = dict(labels.read_labels(str(SHARED / "cartoon_attr.txt")))
    celeba = dict(labels.read_labels(str(SHARED / "list_attr_celeba.txt")))
    assert len(tags) == len(clean) == len(captions) == len(table) == len(celeba) == 4000
    assert sum(not label for label in clean.values()) == 37
    for i in map(str, range(4000)):
        hair, eyes = tags[i][0][1], tags[i][1][1]
        assert set(clean[i]) <= set(tags[i]) and f"{hair} hair, {eyes} eyes" in captions[f"{i}.png"]
        assert dict(table[f"{i}.png"])["hair"] == hair and dict(table[f"{i}.png"])["eye"] == eyes
        yes = {name for name, value in celeba[f"{i}.png"] if value == "yes"}
        assert f"hair_{hair}" in yes and f"eye_{eyes}" in yes and len(celeba[f"{i}.png"]) == 28


def test_batches_keep_images_and_labels_together():
    """Catches labels shuffled on their own, and images without label in a batch."""
    images = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 4, 4), np.uint8)
    rows = np.array([1, 3, 4, 6, 7, 9])
    a = argparse.Namespace(seed=0, batch=4, flip=False, device="cpu")
    whole = common.Batches(images, a, 0, 1, rows, torch.from_numpy(rows) * 10)
    seen = []
    for _ in range(6):
        x, y = next(whole)
        numbers = ((x[:, 0, 0, 0] + 1) * 127.5).round()
        assert torch.equal(numbers * 10, y.float()) and set(numbers.tolist()) <= set(rows)
        seen += numbers.tolist()
    assert set(seen) == set(rows)
    shares = [next(common.Batches(images, a, rank, 2, rows, torch.from_numpy(rows) * 10)) for rank in (0, 1)]
    again = next(common.Batches(images, a, 0, 1, rows, torch.from_numpy(rows) * 10))
    assert torch.equal(torch.stack([shares[0][1], shares[1][1]], 1).flatten(), again[1])


def test_encode_attributes(capsys):
    """Catches a group of two values that takes one of them, and an attribute that nobody has seen."""
    m, groups = module("acgan"), {"eyes": ["blue", "red"], "hair": ["aqua", "black", "red"]}
    found = [[("hair", "red"), ("eyes", "blue")], [("hair", "red"), ("hair", "aqua")], [("eyes", "red")], []]
    y = m.encode(found, groups)
    assert y.tolist() == [[0, 2], [-1, -1], [1, -1], [-1, -1]]
    assert m.vectors(y, groups).tolist() == [[1, 0, 0, 0, 1], [0] * 5, [0, 1, 0, 0, 0], [0] * 5]
    assert m.decode([1, -1], groups) == {"eyes": "red", "hair": ""}
    with refused(capsys, 2, "purple", "hair"):
        m.encode([[("hair", "purple")]], groups)


def test_encode_captions(capsys):
    """Catches a bag of words, for which two captions with exchanged colours are the same."""
    m, a = module("cgan_text2img"), settings("cgan_text2img")
    assert m.split("Blue hair, red EYES") == ["blue", "hair", "red", "eyes", "blue hair", "hair red", "red eyes"]
    t = m.encode(["black hair blue eyes", "red hair", "red hair"], a)
    words = [[a.words[k - 1] for k in row if k] for row in t.tolist()]
    assert words == [m.split("black hair blue eyes"), m.split("red hair"), m.split("red hair")]
    a.words = sorted({*a.words, "blue hair", "black eyes"})
    one, two = m.encode(["black hair blue eyes", "blue hair black eyes"], a).tolist()
    assert sorted(one) != sorted(two)
    with refused(capsys, 2, "'bluish'", "bluish hair"):
        m.encode(["red hair", "bluish hair"], a)
