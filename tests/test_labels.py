"""Label files: every format with its oddities, matched with images; what is left out is counted, what is broken is named."""

import argparse
import copy
import time
import unicodedata

import numpy as np
import pytest
import torch
from conftest import SHARED, module, settings
from test_training import refused

import common
import faces
import labels

needs_shared = pytest.mark.skipif(not (SHARED / "tags.csv").exists(), reason="the shared data are not here")


def source(tmp_path, content: str | bytes, name="labels.txt", groups=None):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return labels.read_labels(str(file), IMAGES, groups)


def read(tmp_path, content: str | bytes, groups=None) -> list:
    """(image, what is said of it) of all rows: values, or captions if there are no values."""
    return [(row.image, row.values or row.captions) for row in source(tmp_path, content, groups=groups).rows]


def args(path, **given):
    defaults = {"labels": None, "embeddings": None, "batch": 2, "script": "acgan", "resume": False, "found": {}}
    return argparse.Namespace(**{"path": path and str(path), **copy.deepcopy(defaults), **given})


NAMES = ["0.png", "1.png"]  # of the images that files are looked for, and read for
IMAGES = labels.Images(NAMES, ".")


def write(folder, files: dict[str, str]):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


HAIR_EYES = [("hair", "aqua"), ("eyes", "red")]
CELEBA = [("Bald", "no"), ("Young", "yes")]
ATTRIBUTES = [("hair", "red"), ("glasses", "without")]
TABLE = "hair_red hair_blue with_glasses without_glasses"
FORMATS = {
    "words": ("0,aqua hair red eyes\n1,blue hair blue eyes\n", HAIR_EYES),
    "no newline at the end": ("0,aqua hair red eyes\n1,blue hair blue eyes", HAIR_EYES),
    "CR LF": ("0,aqua hair red eyes\r\n1,blue hair blue eyes\r\n", HAIR_EYES),
    "CR": ("0,aqua hair red eyes\r1,blue hair blue eyes\r", HAIR_EYES),
    "BOM": (b"\xef\xbb\xbf0,aqua hair red eyes\n1,blue hair blue eyes\n", HAIR_EYES),
    "UTF-16": ("\ufeff0,aqua hair red eyes\n1,blue hair blue eyes\n".encode("utf-16-le"), HAIR_EYES),
    "empty lines": ("0,aqua hair red eyes\n\n1,blue hair blue eyes\n\n\n", HAIR_EYES),
    "eyes first": ("0,red eyes aqua hair\n1,blue hair\n", HAIR_EYES),
    "more words": ("0,a girl with long aqua hair and red eyes smiling\n1,blue hair\n", HAIR_EYES),
    "lengths in between": ("0,aqua short hair big red eyes\n1,blue hair\n", HAIR_EYES),
    "semicolons after ids": ("0;aqua hair red eyes\n1;blue hair blue eyes\n", HAIR_EYES),
    "tabs after ids": ("0\taqua hair red eyes\n1\tblue hair blue eyes\n", HAIR_EYES),
    "quotes": ('"0","aqua hair, red eyes"\n"1","blue hair"\n', HAIR_EYES),
    "commas": ("0,aqua hair, red eyes\n1,blue hair, smile\n", HAIR_EYES),
    "capitals": ("0,Aqua Hair Red Eyes\n1,BLUE HAIR\n", HAIR_EYES),
    "a color of something else": ("0,brown skin short hair white dress\n1,blue hair\n", ["brown skin short hair white dress"]),
    "another color before a comma": ("0,red, aqua hair, red eyes\n1,blue hair\n", HAIR_EYES),
    "two colors of words": ("0,red and blue hair\n1,blue hair\n", [("hair", "red"), ("hair", "blue")]),
    "tags": ("0,touhou:17705\taqua hair:60\tred eyes:9\t\n1,original:25774\t\n", HAIR_EYES),
    "tags with spaces": ("0, hack legend:34\t aqua hair :60\tred eyes:9\t\n1,x:1\t\n", HAIR_EYES),
    "tags that are no colors": ("0,long hair:1\tdamage hair:2\t11 eyes:3\tbicolored eyes:4\tlight blue hair:5\n1,x:1\n", []),
    "words around a color": ("0,aqua hairband:3\tred hair ornament:1\tred eyeshadow:2\tclosed red eyes:4\n1,x:1\n", []),
    "two colors": ("0,aqua hair:1\tblonde hair:2\n1,x:1\n", [("hair", "aqua"), ("hair", "blonde")]),
    "a color twice": ("0,aqua hair:1\taqua hair:2\tred eyes:1\n1,x:1\n", HAIR_EYES),
    "groups": (f"2\n{TABLE}\n0.png 1 0 0 1\n1.png 0 1 1 0\n", ATTRIBUTES),
    "a count that is wrong": (f"999\n{TABLE}\n0.png 1 0 0 1\n1.png 0 1 1 0\n", ATTRIBUTES),
    "-1 and 1, padded": ("2\nBald Young \n0.png -1  1\n1.png 1 -1\n", CELEBA),
    "-1 and 1, the first row all 1": ("2\nBald Young\n0.png 1 1\n1.png -1 -1\n", [("Bald", "yes"), ("Young", "yes")]),
    "-1 and 1, as CSV": ("image_id,Bald,Young\n0.png,-1,1\n1.png,1,-1\n", CELEBA),
    "one attribute": ("image,Smiling\n0.png,1\n1.png,-1\n", [("Smiling", "yes")]),
    "captions": ('image,caption\r\n0.png,"a ""light"" face, blue eyes"\r\n1.png,dark\r\n', ['a "light" face, blue eyes']),
    "a caption of two lines": ('image,caption\n0.png,"a face\nof blue"\n1.png,dark\n', ["a face\nof blue"]),
    "captions in two columns": ("file_name,text,caption\n0.png,a face,a head\n1.png,dark,\n", ["a face", "a head"]),
    "numbered captions": ("image,caption_1,caption_2\n0.png,a face,a head\n1.png,dark,\n", ["a face", "a head"]),
    "words in columns": ("image,hair,eyes\n0.png,aqua,red\n1.png,blue,green\n", HAIR_EYES),
    "semicolons": ("image;hair;eyes\n0.png;aqua;red\n1.png;blue;green, blue\n", HAIR_EYES),
    "tabs": ("image\thair\teyes\n0.png\taqua\tred\n1.png\tblue\tgreen\n", HAIR_EYES),
    "spaces around cells": ("image, hair , eyes\n0.png , aqua, red\n1.png, blue, green\n", HAIR_EYES),
    "quoted cells": ('"image","hair","eyes"\n"0.png","aqua","red"\n"1.png", "blue", "green"\n', HAIR_EYES),
    "a separator at the end": ("image,hair,eyes,\n0.png,aqua,red,\n1.png,blue,green,\n", HAIR_EYES),
    "the image in another column": ("hair,eyes,img_path\naqua,red,0.png\nblue,green,1.png\n", HAIR_EYES),
    "the first column": ("frame,hair,eyes\n0.png,aqua,red\n1.png,blue,green\n", HAIR_EYES),
    "numbers as classes": ("image,label\n0.png,7\n1.png,2\n", [("label", "7")]),
    "pandas' numbers": ("image,Bald,Young\n0.png,0.0,1.0\n1.png,1.0,nan\n2.png,1.0,0.0\n", CELEBA),
    "true and false": ("image,Bald,Young\n0.png,False,TRUE\n1.png,True,false\n", CELEBA),
    "Yes and n": ("image,Bald,Young\n0.png,No,y\n1.png,Yes,n\n", CELEBA),
    "a table of one attribute": ("2\nSmiling\n0.png 1\n1.png 0\n", [("Smiling", "yes")]),
    "an index by pandas": (",hair,eyes\n0.png,aqua,red\n1.png,blue,green\n", HAIR_EYES),
    "an index by pandas beside a name": (",image,hair\n7,0.png,aqua\n9,1.png,blue\n", [("hair", "aqua")]),
    "ids with a point": ("image_id,hair\n0.0,aqua\n1.0,blue\n", [("hair", "aqua")]),
    "file_name leaves no doubt": ("file_name,nearest,hair\n0,1.png,aqua\n1,0.png,blue\n", [("nearest", "1.png"), ("hair", "aqua")]),
    "captions that are names": ("id,caption\n0,1.png\n1,0.png\n", ["1.png"]),
    "numbers with a point": ("image,class\n0.png,2.0\n1.png,10.0\n", [("class", "2")]),
    "an index beside a path": (",image_path,hair\n1,0.png,aqua\n0,1.png,blue\n", [("hair", "aqua")]),
    "an id beside a file": ("id,IMG,hair\n1,0.png,aqua\n0,1.png,blue\n", [("hair", "aqua")]),
    "another view": ("image,other,hair\n0.png,1.png,aqua\n1.png,0.png,blue\n", [("other", "1.png"), ("hair", "aqua")]),
    "a description of the first image only": ("0,a girl, alone\n1,aqua hair\n", ["a girl, alone"]),
    "JSON with empty words": ('{"image": "0.png", "hair": ""}\n{"image": "1.png", "hair": "red"}\n', []),
    "id and name": ("id,name,hair\n0,first,aqua\n1,second,blue\n", [("hair", "aqua")]),
    "commas without spaces": ("0,1girl,aqua hair,red eyes;smile\n1,blue hair\n", HAIR_EYES),
    "underscores": ("0,aqua_hair red_eyes\n1,blue_hair\n", HAIR_EYES),
    "hair of something": ("0,red hair ribbon, aqua hair tied back, red eyes\n1,no blue hair\n", HAIR_EYES),
    "no hair of a color": ("0,no aqua hair, without red eyes\n1,blue hair\n", ["no aqua hair, without red eyes"]),
    "a header of two words": ("File Name,Black Hair,Smile\n0.png,0,1\n1.png,1,0\n", [("Black Hair", "no"), ("Smile", "yes")]),
    "an id that is a class": ("Image,Id,Camera\n0.png,w1,a\n1.png,w1,b\n2.png,w2,a\n", [("Id", "w1"), ("Camera", "a")]),
    "ImageID beside an index": (",ImageID,label\n1,0,cat\n0,1,dog\n", [("label", "cat")]),
    "no color in the first row": ("0,smile\n1,aqua hair red eyes\n", ["smile"]),
    "an empty first row": ("0,\n1,aqua hair red eyes\n", [""]),
    "a column that says nothing": ("image,hair,eyes,source\n0.png,aqua,red,web\n1.png,blue,green,web\n", HAIR_EYES),
    "JSON lines": ('{"file_name": "0.png", "hair": "aqua", "eyes": "red"}\n{"file_name": "1.png", "hair": null, "eyes": "blue"}\n{"hair": "red"}\n', HAIR_EYES),
    "JSON captions": ('{"text": "a face", "file_name": "0.png"}\n{"file_name": "1.png"}\n', ["a face"]),
    "JSON that begins late": ('{"file_name": "0.png"}\n{"file_name": "1.png", "text": "a face"}\n', []),
    "JSON lists": ('{"image": "0.png", "captions": ["a face", "a head"]}\n{"image": 1, "captions": []}\n', ["a face", "a head"]),
    "JSON numbers and booleans": ('{"id": 0, "smile": true, "hat": 1}\n{"id": 1, "smile": false, "hat": 0}\n', [("smile", "yes"), ("hat", "yes")]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path, name):
    """Catches a reader that wants a suffix, a header, a last newline, single spaces, or that splits captions at commas."""
    content, expected = FORMATS[name]
    rows = read(tmp_path, content)
    assert len(rows) >= 2 and rows[0][0].removesuffix(".png") == "0" and rows[1][0].removesuffix(".png") == "1"
    assert rows[0][1] == expected


# columns and rows of 0/1 -> what the first row says
ONE_HOT = {
    "shared ends": ("with_glasses without_glasses with_hat without_hat", ["1 0 0 1"], [("glasses", "with"), ("hat", "without")]),
    "shared beginnings": ("hair_red hair_blue", ["1 0", "0 1"], [("hair", "red")]),
    "names of their own": ("Bald Young", ["1 1", "0 0"], [("Bald", "yes"), ("Young", "yes")]),
    "a lone column": ("Bald hair_red hair_blue", ["0 1 0", "1 0 1"], [("Bald", "no"), ("hair", "red")]),
    "a lone column that is always set": ("Is_Bald hair_red hair_blue", ["1 1 0", "1 0 1"], [("hair", "red")]),
    "both in some row": ("Big_Lips Big_Nose", ["1 0", "1 1", "0 1"], [("Big_Lips", "yes"), ("Big_Nose", "no")]),
    "none in some row": ("Big_Lips Big_Nose", ["1 0", "0 0", "0 1"], [("Big_Lips", "yes"), ("Big_Nose", "no")]),
    "shared ends of words": ("Black_Hair Blond_Hair Bald", ["0 1 1", "1 0 0"], [("Hair", "Blond"), ("Bald", "yes")]),
    "columns of two groups": ("red_hair blue_hair red_eyes blue_eyes", ["1 0 0 1", "0 1 1 0"], [("red", "hair"), ("blue", "eyes")]),
    "ends where beginnings do not fit": ("red_hair blue_hair red_eyes blue_eyes", ["1 0 1 0", "1 0 0 1", "0 1 1 0"], [("hair", "red"), ("eyes", "red")]),
    "none and both": ("Big_Lips Big_Nose", ["1 0", "0 0", "1 1"], [("Big_Lips", "yes"), ("Big_Nose", "no")]),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_HOT)
def test_columns_of_0_and_1_are_one_group_only_where_the_data_say_so(tmp_path, case):
    """Catches groups that do not exclude each other (Big_Lips and Big_Nose), groups of one value, and a decision in silence."""
    names, rows, expected = ONE_HOT[case]
    table = f"{len(rows)}\n{names}\n" + "".join(f"{i}.png {row}\n" for i, row in enumerate(rows))
    comma = f"image,{names.replace(' ', ',')}\n" + "".join(
        f"{i}.png,{row.replace(' ', ',')}\n" for i, row in enumerate(rows)
    )
    for content in (table, comma):
        found = source(tmp_path, content)
        assert found.rows[0].image == "0.png" and found.rows[0].values == expected
        assert any("Big_Lips" in note and "Big_Nose" in note for note in found.notes) == ("Big" in names)


def test_columns_of_minus_1_and_1_are_each_a_group(tmp_path):
    """Catches CelebA's columns joined by their names: a person may wear a hat and lipstick, or have neither black nor blond hair."""
    names = "Wearing_Hat Wearing_Lipstick Black_Hair Blond_Hair with_hat without_hat"
    rows = read(tmp_path, f"2\n{names}\n0.png 1 1 -1 -1 1 -1\n1.png -1 -1 1 1 -1 1\n")
    values = ["yes", "yes", "no", "no", "yes", "no"]
    assert rows[0] == ("0.png", list(zip(names.split(), values, strict=True)))


def test_a_first_row_of_a_missing_image(tmp_path):
    """Catches a row taken for a header, because its image is not in the folder and has no color."""
    rows = read(tmp_path, "girl,smile, long hair\n0,aqua hair red eyes\n7,hat\n1,blue hair\n")
    assert rows[0] == ("girl", ["smile, long hair"]) and len(rows) == 4


def test_test_lists(tmp_path):
    """Catches rows without file names taken for broken ones, ids that must be numbers, and groups decided by the list itself."""
    groups = {"hair": ["blue", "red"], "glasses": ["with", "without"]}
    assert read(tmp_path, f"2\n{TABLE}\n1 0 0 1\n0 1 1 0\n", groups)[0] == ("", ATTRIBUTES)
    assert read(tmp_path, f"1\n{TABLE}\n1 0 0 0\n", groups) == [("", [("hair", "red")])]
    assert read(tmp_path, "early,red hair green eyes")[0][0] == "early"
    for content in (
        "hair,glasses\nred,without\n",
        '{"hair": "red", "glasses": "without"}',
        TABLE.replace(" ", ",") + "\n1,0,0,1\n",
    ):
        assert read(tmp_path, content, groups) == [("", ATTRIBUTES)]
    assert read(tmp_path, "image,label\n0,1\n1,0\n", {"label": ["0", "1", "2"]})[0] == ("0", [("label", "1")])
    assert read(tmp_path, "image,smile\n0,1\n1,1\n", {"smile": ["no", "yes"]})[0] == ("0", [("smile", "yes")])


BROKEN = {
    "0,aqua hair red eyes\n1 blue hair blue eyes\n": "line 2",
    f"2\n{TABLE}\n0.png 1 0 0 1\n1.png 1 0 0\n2.png 1 0\n": "line 4",
    f"2\n{TABLE}\n0.png 1 0 0 2\n": "line 3",
    "2\nBald Young\n0.png -1 1\n1.png 0 1\n": "line 4",
    "image,Bald,Young\n0.png,-1,1\n1.png,1,1\n2.png,0,1\n": "line 4",
    "image,caption\n0.png,a face, blue eyes\n": "line 2",
    "image,Bald,Young\n0.png,1\n": "line 2",
    '{"image": "0.png", "a": [0, -1]}\n{"image": "1.png", "a": 1}\n': "line 1",
    "2\n\n0.png 1\n": "no rows",
    "\nimage,class\n0.png,cat\n": "line 1 is empty",
    'image,caption\n0.png,"a face\n1.png,b\n': "line 4",
    '{"file_name": "0.png", "text": "a"}\n{"file_name": "1.png"\n': "line 2",
    '{"file_name": "0.png", "text": "a"}\n["1.png"]\n': "line 2",
    "0.png,cat\n1.png,dog\n": "no header",
    "0,cat\n1,dog\n": "no header",
    "9.png,cat\n0.png,dog\n": "no header",
    "picture,looks,smile\n0.png,red hair,yes\n": "rename 'picture' to file_name",
    ",where,hair\n0,1.png,aqua\n1,0.png,blue\n": "the column 'where' names other images than the column 'id'",
    "id,where,hair\n7,1.png,aqua\n8,0.png,blue\n": "rename the right one to file_name",
    "image,hair,hair\n0.png,red,blue\n": "two columns",
    "id,filename,label\n0,1.jpg,cat\n1,0.jpg,dog\n": "the column 'filename' names other images than the column 'id'",
    '{"id": 0, "file_name": "1.jpg"}\n{"id": 1, "file_name": "0.jpg"}\n': "the column 'file_name' names other",
    ",image,label\n0,/old/1.png,cat\n1,/old/0.png,dog\n": "the column 'image' names other images than the column 'id'",
    "index,photo,label\n0,C:\\1.jpg,cat\n1,C:\\0.jpg,dog\n": "rename the right one to file_name",
    "frame,black hair,smile\n0.png,0,1\n1.png,1,1\n": "rename 'frame' to file_name",
    "2\nBald Young\n0.png 1 0\n1.png 0 1 0\n": "line 4",
    "image,class,\n0.png,cat,red\n": "line 2: this column has no name",
    '{"image": ["0.png", "1.png"], "hair": "red"}\n{"image": "2.png"}\n': "line 1: image has several values",
    '[{"file_name": "0.png", "text": "a"}]\n': "JSON lines",
    '{"0.png": "a cat", "1.png": "a dog"}\n': "JSON lines",
}


@pytest.mark.parametrize("content", BROKEN)
def test_broken_lines_are_named(tmp_path, capsys, content):
    """Catches a line that is skipped in silence, or a traceback at it."""
    with refused(capsys, 2, "labels.txt", BROKEN[content]):
        read(tmp_path, content)


def test_what_is_no_label_file(tmp_path, capsys):
    for content in ("", "hello\nworld\n", "torch==2\nnumpy\n", f"2\n{TABLE}\n", "image,caption\n"):
        with refused(capsys, 2, "labels.txt", "image,caption"):
            read(tmp_path, content)
    with refused(capsys, 2, "labels.txt", "UTF-8"):
        read(tmp_path, b"0,\xff hair\n")
    with refused(capsys, 2, "nothing.csv", "No such file"):
        labels.read_labels(str(tmp_path / "nothing.csv"))


def test_columns_without_use_are_named(tmp_path):
    """Catches a class for each image (file sizes, ids), and a group of one value, in silence."""
    rows = [f"{i}.png,{i * 37 % 101},web,{'1' if i < 9 else ''},{'cat' if i % 2 else 'dog'}\n" for i in range(30)]
    found = source(tmp_path, "image,bytes,source,flag,animal\n" + "".join(rows))
    assert found.rows[1].values == [("animal", "cat")]
    assert all(
        f"column {name} left out" in note for name, note in zip(("bytes", "source", "flag"), found.notes, strict=True)
    )


def test_unknown_colors_are_said(tmp_path, capsys):
    """Catches violet hair that vanishes among ignored tags, at its count; what stands beside a known color is no loss."""
    found = source(tmp_path, "0,violet hair red eyes\n1,violet hair\n2,long blue hair golden eyes\n")
    assert found.unknown == {"violet hair": 2, "golden eyes": 1}
    assert "violet hair 2, golden eyes 1" in found.notes[0] and "image,hair,eyes" in found.notes[0]
    assert not source(tmp_path, "0,red hair eyes closed\n1,blue hair\n").unknown  # no "hair eyes"
    counted = source(tmp_path, "0,violet hair:3\tred eyes:9\t\n1,long hair:4\taqua hair:3\t\n")
    assert counted.unknown == {"violet hair": 1}


CANDIDATES = {  # files inside (images/...) and next to the folder -> the one that is taken, or parts of the refusal
    "one": ({"TAGS.csv": "0,aqua hair red eyes\n"}, "TAGS.csv"),
    "as Excel saves it": ({"TAGS.csv": b"\xef\xbb\xbf0,aqua hair red eyes\n"}, "TAGS.csv"),
    "captions as Excel saves them": ({"TAGS.csv": b"\xef\xbb\xbfimage,caption\n0.png,a face\n"}, "TAGS.csv"),
    "UTF-16 with tabs": ({"a.txt": "\ufeffimage\tcaption\n0.png\ta face\n".encode("utf-16-le")}, "a.txt"),
    "beside other tables": ({"results.csv": "experiment,score\n1,2\n", "requirements.txt": "torch\nnumpy\n", "t.csv": "0,red hair\n"}, "t.csv"),
    "beside those of other images": ({"old.csv": "image,class\nother.png,cat\n", "images/new.csv": "image,class\n1.png,cat\n"}, "images/new.csv"),
    "metadata.jsonl": ({"images/metadata.jsonl": '{"file_name": "0.png", "text": "a"}\n'}, "images/metadata.jsonl"),
    "JSON whose first key is the image": ({"x.jsonl": '{"img": "0.png", "hair": "red"}\n'}, "x.jsonl"),
    "an image named image": ({"x.csv": "image,class\n0.png,cat\n"}, "x.csv"),
    "a table of names with spaces": ({"list.txt": "2\na b\nmy photo.png 0 1\n0.png 1 0\n"}, "list.txt"),
    "in capitals": ({"LIST.CSV": "image,class\n0.png,cat\n"}, "LIST.CSV"),
    "an unreadable one beside it": ({"x.txt": b"\xff\x00\x81", "t.csv": "0,red hair\n"}, "t.csv"),
    "two": ({"TAGS.csv": "0,aqua hair\n", "images/list.txt": f"1\n{TABLE}\n0.png 1 0 0 1\n"}, ("several", "TAGS.csv", "list.txt", "--labels")),
    "none": ({"results.csv": "experiment,score\n1,2\n"}, ("no label file", "--path", "--labels")),
    "none of these images": ({"old.csv": "image,class\nother.png,cat\n"}, ("no label file", "--path")),
}  # fmt: skip


@pytest.mark.parametrize("case", CANDIDATES)
def test_the_one_candidate_is_found(tmp_path, capsys, case):
    """Catches a guess among several files, any CSV taken for labels, and those of other images."""
    files, expected = CANDIDATES[case]
    (tmp_path / "images").mkdir()
    write(tmp_path, files)
    (tmp_path / "images/folder.csv").mkdir()
    (tmp_path / "images/gone.txt").symlink_to("nowhere")
    a = args(tmp_path / "images")
    if isinstance(expected, tuple):
        with refused(capsys, 2, *expected):
            labels.find_source(a, NAMES, IMAGES)
        return
    assert labels.find_source(a, NAMES, IMAGES).where == a.labels == str((tmp_path / expected).resolve())
    assert ("x.txt" in capsys.readouterr().err) == ("x.txt" in files)
    write(tmp_path, {"images/later.csv": "image,class\n0.png,cat\n"})  # no matter to a run that is resumed
    assert labels.find_source(a, NAMES, IMAGES).where == str((tmp_path / expected).resolve())


def test_only_the_beginning_of_a_file_is_read(tmp_path):
    """Catches 600 MB of text beside the images that are read at every start; the file has a hole, which takes no room."""
    (tmp_path / "images").mkdir()
    write(tmp_path, {"t.csv": "0,red hair\n", "log.txt": "x" * 100_000})
    with open(tmp_path / "huge.txt", "wb") as file:
        file.truncate(1 << 40)
    assert labels.find_file(args(tmp_path / "images"), IMAGES).endswith("t.csv")


def rows_of(tmp_path, content: str, names: list[str], name="tags.csv"):
    write(tmp_path, {name: content})
    a = args(tmp_path, labels=str(tmp_path / name))
    rows, found = labels.load_labels(a, names)
    return {names[i]: label[0][1] for i, label in zip(rows, found, strict=True)}, a.found["labels"]


MATCHES = {  # rows, names of images -> {image: class}
    "names, ids and paths": ("2,red\n7,blue\n0.png,aqua\nsub/1.jpg,pink", ["0.png", "2.webp", "3.png", "sub/1.jpg"], {"0.png": "aqua", "2.webp": "red", "sub/1.jpg": "pink"}),
    "a path before a name": ("0.png,red\nb/0.png,blue", ["0.png", "b/0.png"], {"0.png": "red", "b/0.png": "blue"}),
    "the name of the one image": ("0.png,red\n1,blue", ["a/0.png", "b/1.png"], {"a/0.png": "red", "b/1.png": "blue"}),
    "several dots": ("a,red\na.1,blue\na.2.png,aqua", ["a.1.png", "a.2.png", "a.3.png", "a.png"], {"a.1.png": "blue", "a.2.png": "aqua", "a.png": "red"}),
    "backslashes": ("a\\0.png,red\nb\\0.png,blue", ["a/0.png", "b/0.png"], {"a/0.png": "red", "b/0.png": "blue"}),
    "./ in front": ("./0.png,red\n./a/1.png,blue", ["0.png", "a/1.png"], {"0.png": "red", "a/1.png": "blue"}),
    "the folder in front": ("{last}/0.png,red\n{path}/1.png,blue", ["0.png", "1.png"], {"0.png": "red", "1.png": "blue"}),
    "a folder in front that has no such image": ("{last}/0.png,red\n{path}/1.png,blue\n{path}/a/2.png,aqua", ["a/0.png", "1.png", "a/2.png"], {"1.png": "blue", "a/2.png": "aqua"}),
    "through a link": ("{link}/0.png,red\n1.png,blue", ["0.png", "1.png"], {"0.png": "red", "1.png": "blue"}),
    "another folder in front": ("0.png,red\n1.png,blue\nother/2.png,aqua", ["0.png", "1.png", "2.png"], {"0.png": "red", "1.png": "blue"}),
    "accents in two ways": (unicodedata.normalize("NFC", "é.png,red\nñ.png,blue"), [unicodedata.normalize("NFD", name) for name in ("é.png", "ñ.png")], {unicodedata.normalize("NFD", "é.png"): "red", unicodedata.normalize("NFD", "ñ.png"): "blue"}),
}  # fmt: skip


@pytest.mark.parametrize("case", MATCHES)
def test_matching(tmp_path, capsys, case):
    """Catches labels taken in the order of rows, misses that nobody hears of, and names that differ by folder or suffix."""
    rows, names, expected = MATCHES[case]
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    rows = (
        rows.replace("{link}", str(tmp_path / "link")).replace("{last}", tmp_path.name).replace("{path}", str(tmp_path))
    )
    path = tmp_path / "link" if "link" in case else tmp_path
    found, said = rows_of(path, f"image,class\n{rows}\n", names)
    assert found == expected and list(found) == sorted(expected)
    lost = len(rows.splitlines()) - len(expected)
    assert (said["images"], said["images_without_label"], said["rows_without_image"]) == (
        len(expected),
        len(names) - len(expected),
        lost,
    )
    message = capsys.readouterr().err
    assert f"labels: {len(expected)} of {len(names)} images" in message and str(path / "tags.csv") in message
    assert (f"left out: {len(names) - len(expected)} images without a label, {lost} labels" in message) == (
        len(names) > len(expected) or lost > 0
    )


AMBIGUOUS = {
    "a name in two folders": ("0.png,cat", ["a/0.png", "b/0.png"], ("'0.png'", "'a/0.png'", "'b/0.png'")),
    "a stem in two folders": ("0,cat", ["a/0.png", "b/0.png"], ("'0'", "'a/0.png'", "'b/0.png'")),
    "two suffixes": ("0,cat", ["0.jpg", "0.png"], ("'0'", "'0.jpg'", "'0.png'")),
    "two suffixes in a folder": ("a/0,cat", ["a/0.jpg", "a/0.png"], ("'a/0'", "'a/0.jpg'", "'a/0.png'")),
}


def test_numbers_with_a_point_name_images():
    """Catches 12.0 that finds no 12.png, and one that finds it where there is a 12.0.png."""
    assert labels.Images(["12.png"], ".").find("12.0") == [0]
    assert labels.Images(["12.png", "12.0.png"], ".").find("12.0") == [1]


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_a_name_that_two_images_have_is_an_error(tmp_path, capsys, case):
    """Catches both images labelled alike, or the first of them, where the row may mean the other."""
    row, names, parts = AMBIGUOUS[case]
    with refused(capsys, 2, "tags.csv", *parts):
        rows_of(tmp_path, f"image,class\nelsewhere,dog\n{row}\n", names)


def test_too_few_labels(tmp_path, capsys):
    with refused(capsys, 2, "labels 0 images", "tags.csv", "names '0.png'", "image is 'a.png'"):
        rows_of(tmp_path, "image,class\n0.png,cat\n1.png,dog\n", ["a.png", "b.png"])


def test_label_files_next_to_a_folder_that_is_named_otherwise(tmp_path, monkeypatch):
    """Catches a parent folder that is taken from the name: "." and links have another one."""
    write(tmp_path, {"data/images/x": "", "data/tags.csv": "0,aqua hair red eyes\n"})
    (tmp_path / "link").symlink_to("data/images", target_is_directory=True)
    monkeypatch.chdir(tmp_path / "data/images")
    for path in (".", str(tmp_path / "link"), "../images"):
        assert labels.find_file(args(path), IMAGES) == str((tmp_path / "data/tags.csv").resolve())
    (tmp_path / "data/tags.csv").rename(tmp_path / "beside.csv")  # beside the link, not beside what it leads to
    assert labels.find_file(args(tmp_path / "link"), IMAGES) == str(tmp_path / "beside.csv")


def test_paths_in_a_folder_with_an_accent(tmp_path):
    """Catches full paths that match nothing, because the folder's name has two characters for a letter, as on a Mac."""
    folder = tmp_path / unicodedata.normalize("NFD", "Bücher")
    folder.mkdir()
    found = labels.Images(["0.png", "1.png"], str(folder))
    for form in ("NFC", "NFD"):
        assert found.find(unicodedata.normalize(form, f"{folder}/1.png")) == [1]
        assert found.find(unicodedata.normalize(form, "Bücher/1.png")) == [1]


def test_ids_of_prompts(tmp_path):
    """Catches the first tag of each line taken for its id, which is drawn by nobody."""
    file = tmp_path / "list.txt"
    numbered = ("smile, red hair\nhat, blue eyes", "long hair,smile\nhat,smile")
    for content, ids in (*((text, "12") for text in numbered), ("7, red hair\n9, hat", "79"), ("a,hat", "a")):
        file.write_text(content)
        assert [name for name, _ in labels.read_prompts(str(file))] == list(ids), content


def test_folders_are_classes(tmp_path, capsys):
    """Catches deeper folders taken for classes, images beside the folders that get one, and a single class."""
    names = ["cat/1.png", "cat/old/2.png", "dog/1.png", "top.png"]
    a = args(tmp_path)
    rows, found = labels.load_labels(a, names)
    assert rows.tolist() == [0, 1, 2] and found == [[("class", "cat")], [("class", "cat")], [("class", "dog")]]
    assert a.labels == str(tmp_path) and a.found["labels"]["groups"] == {"class": {"cat": 2, "dog": 1}}
    message = capsys.readouterr().err
    assert (
        "labels: 3 of 4 images" in message
        and "class: cat 2, dog 1" in message
        and "1 images without a label" in message
    )
    write(tmp_path, {"later.csv": "image,class\ntop.png,bird\ndog/1.png,fish\n"})
    assert len(labels.load_labels(a, names)[0]) == 3  # as at the start of a run that is resumed
    assert labels.load_labels(args(tmp_path, batch=1), names)[1] == [
        [("class", "fish")],
        [("class", "bird")],
    ]  # a file is first
    assert labels.load_labels(args(tmp_path, labels=str(tmp_path)), names)[1] == found  # unless folders are asked for
    assert labels.load_labels(args(tmp_path, labels=str(tmp_path)), names, text=True)[1] == [["cat"], ["cat"], ["dog"]]
    write(tmp_path, {"none/x": ""})
    with refused(capsys, 2, "no label file", "sub-folders"):
        labels.load_labels(args(tmp_path / "none"), ["cat/1.png", "cat/2.png"])
    (tmp_path / "x").mkdir()
    with refused(capsys, 2, "a, b all hold cat, dog", "x/a"):
        labels.load_labels(args(tmp_path / "x"), ["a/cat/1.png", "a/dog/1.png", "b/cat/2.png", "b/dog/3.png"])
    with refused(capsys, 2, "should it be --path", "x/train"):
        labels.load_labels(args(tmp_path / "x"), ["train/cat/1.png", "train/dog/1.png"])
    accents = [unicodedata.normalize("NFD", "é/1.png"), "e/b\\c.png", "\udcff.png", "e/\udcfe.png"]
    assert labels.load_labels(args(tmp_path / "x"), accents)[0].tolist() == [0, 1, 3]
    with refused(capsys, 2, str(tmp_path), "--labels", "not that of --path"):
        labels.load_labels(args(tmp_path / "none", labels=str(tmp_path)), names)


@pytest.mark.parametrize("names", [["train/cat/1.png", "val/dog/1.png"], ["train/0.png", "Test1/1.png", "cat/2.png"]])
def test_parts_of_a_data_set_are_no_classes(tmp_path, capsys, names):
    """Catches a classifier that learns train from test."""
    with refused(capsys, 2, "look like parts", f"--path {tmp_path}/train", f"--labels {tmp_path}"):
        labels.load_labels(args(tmp_path), names)
    found = labels.load_labels(args(tmp_path, labels=str(tmp_path)), names)[1]  # somebody insists
    assert [value for ((_, value),) in found] == [name.split("/")[0] for name in names]
    labels.load_labels(args(tmp_path), ["test/0.png", "testimony/1.png"])


def test_files_that_are_not_read_are_no_silence(tmp_path, capsys):
    """Catches folders taken for classes although labels lie deeper, beside each image, or in another kind of JSON."""
    names = ["cat/0.png", "dog/1.png"]
    write(tmp_path, {"a/cat/metadata.csv": "file_name,text\n0.png,a cat\n", "a/dog/notes.txt": "x\n"})
    with refused(capsys, 2, "a/cat/metadata.csv names images", f"--path {tmp_path}/a/cat", f"--labels {tmp_path}/a"):
        labels.load_labels(args(tmp_path / "a"), names, text=True)
    write(tmp_path, {"b/cat/0.txt": "1girl, red hair", "c/0.txt": "1girl, red hair"})
    for folder, images in (("b", names), ("c", NAMES)):
        with refused(capsys, 2, "texts beside the images", "0.txt", "image,caption"):
            labels.load_labels(args(tmp_path / folder), images, text=True)
    write(tmp_path, {"d/captions.json": '{"cat/0.png": "a cat"}'})
    for folder in "abd":
        found = labels.load_labels(
            args(tmp_path / folder, labels=None if folder == "d" else str(tmp_path / folder)), names
        )
        assert found[1] == [[("class", "cat")], [("class", "dog")]]
    assert "not looked into: captions.json" in capsys.readouterr().err


def test_a_file_whose_first_images_are_missing(tmp_path):
    """Catches CelebA's table beside its last images: its beginning names none of them."""
    rows = "".join(f"{i:06}.jpg -1 1\n" for i in range(10_000))
    write(tmp_path, {"images/x": "", "list.txt": f"10000\nBald Young\n{rows}0.png 1 -1\n"})
    assert labels.find_file(args(tmp_path / "images"), IMAGES) == str(tmp_path / "list.txt")
    write(tmp_path, {"list.txt": "image,class\r" + "old.png,cat\r" * 9000 + "0.png,dog\r"})  # line breaks of old Macs
    assert labels.find_file(args(tmp_path / "images"), IMAGES) == str(tmp_path / "list.txt")


def test_one_value_in_these_images_is_no_group(tmp_path, capsys):
    """Catches a class that has nothing to tell apart: the file has two, the folder one; tags are not looked at before."""
    write(tmp_path, {"x.csv": "image,class,hat\n0.png,cat,yes\n1.png,cat,no\nother.png,dog,no\n"})
    found = labels.load_labels(args(tmp_path), NAMES)[1]
    assert found == [[("hat", "yes")], [("hat", "no")]]
    assert "class left out: its only value in these images is cat" in capsys.readouterr().err
    write(tmp_path, {"x.csv": "image,class,hat\n0.png,cat,yes\n1.png,,no\nother.png,dog,no\n2.png,dog,no\n"})
    labels.load_labels(args(tmp_path), ["0.png", "1.png", "2.png"])
    assert "class: cat 1, dog 1; without a value: 1\n" in capsys.readouterr().err


def test_names_of_a_table_that_end_in_a_number(tmp_path):
    """Catches "a 1" taken for a and a value too many."""
    found, _ = rows_of(tmp_path, "2\nBald Young\na 1 0 1\nb 1 1 0\n", ["a 1.png", "b 1.png"])
    assert found == {"a 1.png": "no", "b 1.png": "yes"}


def test_long_lines_are_read_at_once():
    """Catches minutes of silence: a line of 20,000 numbers took 53 s, and 10,000 characters without a comma 2 s."""
    start = time.perf_counter()
    assert labels.label_format([",".join(str(i) for i in range(20_000))]) == ""
    assert labels.tags("smile and " * 5_000 + "red hair") == [("hair", "red")]
    assert time.perf_counter() - start < 1


def test_a_label_file_that_is_gone(tmp_path, capsys):
    """Catches another file that is taken in silence when that of the checkpoint, or of --labels, is not there."""
    write(tmp_path, {"new/tags.csv": "0,aqua hair\n1,red hair\n"})
    for resume in (False, True):
        with refused(capsys, 2, "old/tags.csv", "No such file"):
            labels.load_labels(args(tmp_path / "new", labels=str(tmp_path / "old/tags.csv"), resume=resume), NAMES)


def test_text_and_attributes(tmp_path, capsys):
    """Catches captions for a classifier, and images without any tag in text-to-image (attributes can do without)."""
    (tmp_path / "tags.csv").write_text("0,red eyes:4\tred hair:1\t\n1,long hair:1\t\n2,blue hair:1\t\n")
    names = ["0.png", "1.png", "2.png"]
    rows, found = labels.load_labels(args(tmp_path), names, text=True)
    assert found == [["red hair red eyes"], ["blue hair"]] and rows.tolist() == [0, 2]
    assert "1 images without a label" in capsys.readouterr().err
    assert labels.load_labels(args(tmp_path), names)[1][1] == []
    (tmp_path / "tags.csv").write_text("image,caption\n0.png,a face\n1.png,two faces\n2.png,...\n")
    rows, found = labels.load_labels(args(tmp_path), names, text=True)
    assert found == [["a face"], ["two faces"]]
    (tmp_path / "tags.csv").write_text("image,caption\n0.png,\n1.png,two faces\n2.png,three\n")  # an empty cell
    rows, found = labels.load_labels(args(tmp_path), names, text=True)
    assert found == [["two faces"], ["three"]] and rows.tolist() == [1, 2]
    with refused(capsys, 2, "captions", "groups", "cgan_text2img.py"):
        labels.load_labels(args(tmp_path), names)


# what labels say -> the captions of images 0 and 1; None: text-to-image refuses it
CAPTIONS = {
    "rows": ("image,caption\n0.png,a\n1.png,b\n0.png,c\n0.png,a\n", [["a", "c"], ["b"]]),
    "columns": ("image,caption,text\n0.png,a,c\n1.png,b,\n", [["a", "c"], ["b"]]),
    "beside groups": ("image,caption,hair\n0.png,a,red\n1.png,b,blue\n", [["a"], ["b"]]),
    "words in columns": (
        "image,hair,eyes\n0.png,red,blue\n1.png,aqua,\n2.png,aqua,red\n",
        [["red hair blue eyes"], ["aqua hair"]],
    ),
    "classes": ("image,class\n0.png,golden retriever\n1.png,cat\n", [["golden retriever"], ["cat"]]),
    "Hindi and Chinese": ("image,caption\n0.png,नीले बाल\n1.png,藍髮\n", [["नीले बाल"], ["藍髮"]]),
    "words beside tags": ("0,a girl with red hair smiling\n1,smile\n", [["a girl with red hair smiling"], ["smile"]]),
    "numbers": ("image,Smiling\n0.png,2\n1.png,7\n", None),
    "true and false": ("image,Smiling\n0.png,True\n1.png,False\n", None),
    "yes and no": ("image,Smiling\n0.png,1\n1.png,-1\n", None),
    "0 and 1": ("image,Smiling,Bald\n0.png,1,0\n1.png,0,1\n", None),
}


@pytest.mark.parametrize("case", CAPTIONS)
def test_captions(tmp_path, capsys, case):
    """Catches the last of several captions that wins, a caption twice, and text-to-image that trains on the word 1."""
    content, expected = CAPTIONS[case]
    write(tmp_path, {"x.csv": content})
    a = args(tmp_path, labels=str(tmp_path / "x.csv"), script="cgan_text2img")
    if expected is None:
        with refused(capsys, 2, "x.csv", "words", "acgan.py"):
            labels.load_labels(a, NAMES, text=True)
        assert len(labels.load_labels(a, NAMES)[0]) == 2
        return
    assert labels.load_labels(a, NAMES, text=True)[1] == expected
    assert a.found["labels"]["captions"] == sum(len(some) for some in expected)


def test_two_values_of_a_group_are_said(tmp_path, capsys):
    """Catches the last of two rows that wins where they contradict each other; two that agree are one."""
    write(tmp_path, {"x.csv": "image,hair\n0.png,red\n0.png,blue\n1.png,red\n1.png,red\n"})
    found = labels.load_labels(args(tmp_path, labels=str(tmp_path / "x.csv")), NAMES)[1]
    assert found == [[("hair", "red"), ("hair", "blue")], [("hair", "red")]]
    assert "1 images have several values" in capsys.readouterr().err


def test_built_in_labels_are_those_of_the_faces(capsys):
    """Catches labels of other faces than those in the cache."""
    names = [str(i) for i in range(50)]
    rows, found = labels.load_labels(args(None), names)
    assert rows.tolist() == list(range(50))
    assert all(dict(label) == faces.paint(0, i, 32)[1] for i, label in enumerate(found))
    captions = labels.load_labels(args(None), names, text=True)[1]
    look = faces.paint(0, 7, 32)[1]
    assert captions[7] == [f"{look['hair']} hair {look['eyes']} eyes"]
    with refused(capsys, 2, "--labels", "--path"):
        labels.load_labels(args(None, labels="tags.csv"), names)


@needs_shared
def test_shared_files_agree():
    """The five files of one set of faces tell the same colors."""

    def rows(file: str) -> dict:
        return {row.image: row for row in labels.read_labels(str(SHARED / file)).rows}

    tags, clean, captions = rows("tags.csv"), rows("tags_clean.csv"), rows("captions.csv")
    table, celeba = rows("cartoon_attr.txt"), rows("list_attr_celeba.txt")
    assert len(tags) == len(clean) == len(captions) == len(table) == len(celeba) == 4000
    assert sum(not row.values for row in clean.values()) == 37
    for i in map(str, range(4000)):
        hair, eyes = tags[i].values[0][1], tags[i].values[1][1]
        assert set(clean[i].values) <= set(tags[i].values)
        assert f"{hair} hair, {eyes} eyes" in captions[f"{i}.png"].captions[0]
        assert labels.tags(captions[f"{i}.png"].captions[0]) == tags[i].values
        values = dict(table[f"{i}.png"].values)
        assert values["hair"] == hair and values["eye"] == eyes and values.keys() == {"hair", "eye", "face", "glasses"}
        yes = {name for name, value in celeba[f"{i}.png"].values if value == "yes"}
        assert f"hair_{hair}" in yes and f"eye_{eyes}" in yes and len(celeba[f"{i}.png"].values) == 28


@needs_shared
def test_tagged_faces():
    """The real tag list of the real faces: two images have no row."""
    a = args(SHARED / "tagged/images")
    names = sorted(file.name for file in (SHARED / "tagged/images").iterdir())
    found = labels.load_labels(a, names)[1]
    said = a.found["labels"]
    assert said["source"].endswith("tagged/tags.csv") and said["images_without_label"] == 2 and not said["notes"]
    assert [len(said["groups"][group]) for group in ("eyes", "hair")] == [10, 12] and all(
        len(label) == 2 for label in found
    )


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
    """Catches a bag of words, for which two captions with exchanged colors are the same."""
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
