"""Read labels: find their source, parse it, and match its rows with the images.

Only acgan.py, cgan_text2img.py and compare.py need this file. A source of labels has rows, and each row says of one
image values of groups (hair: aqua), captions, or both. The sources, recognized by their content:

    source   what it looks like                                 what it gives
    folders  cats/1.jpg, dogs/2.jpg                             the group "class"
    csv      a header such as image,hair,caption; also ; or tab groups and captions
    jsonl    {"file_name": "0.png", "text": "..."} a line       groups and captions
    table    a count, the names of the columns, then rows of    groups
             0/1 or -1/1, after the name of the image or not
    tags     0,aqua hair aqua eyes                              the groups hair and eyes
    tags     0,touhou:17705<tab>aqua hair:60<tab>               the same, from counted tags

In csv and jsonl, the image stands in the column file_name, image, ... (IMAGE_COLUMNS) or the first one. Columns named
text, caption, tags or prompt are captions, of which an image may have several. Every other column is a group: its
values are words, or 0/1 or -1/1, which mean no/yes. Columns of 0/1 whose names share a part, such as hair_red and
hair_blue, are one group if every row has exactly one of them set.
"""

import argparse
import collections
import contextlib
import csv
import dataclasses
import json
import os
import re
import textwrap
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import common
import faces

# What the groups of tags can say; "long hair" says none of it.
COLORS = {"hair": faces.HAIR, "eyes": faces.EYES}
# Words that may stand between a color and what has it.
BETWEEN = ("and", "long", "short", "medium", "curly", "straight", "wavy", "big", "large", "small")
NEGATIONS = ("no", "not", "without")
# "red hair ribbon" says nothing of the hair
ORNAMENTS = "(ribbon|bow|ornament|band|clip|tie|flower|pin|bobble|bead|stick|accessory)s?|accessories"
# The likeliest first, as simplified() writes them.
IMAGE_COLUMNS = (
    *("filename", "file", "image", "img"),
    *("imagename", "imagefile", "imagepath", "imgname", "imgfile", "imgpath"),
    *("filepath", "path", "imageid", "imgid", "name", "id"),
)
TAG_SEPARATOR = "[,;\t]"  # after the id
CAPTION_COLUMN = r"(text|captions?|tags|prompt)[ _]?\d*"
SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl")  # of files that are looked into
# Names of sub-folders that are parts of a data set rather than classes: train, val2017, test_1.
SPLIT = r"(train|training|val|valid|validation|dev|test|testing)[_-]?\d*"
BEGINNING = 64 * 1024  # bytes of such a file that tell what it is: a text beside the images may be huge

# What a column of yes and no may say, in upper or lower case. It has either 0 or -1 for no, never both.
NO = ("0", "-1", "no", "false", "n")
YES = ("1", "yes", "true", "y")

Pair = tuple[str, str]  # (group, value): ("hair", "aqua")


@dataclasses.dataclass
class Row:
    """What a source says of one image."""

    image: str  # its path, file name, or name without suffix; "" if the row names none
    values: list[Pair]  # in groups that it says nothing about, there is none
    captions: list[str]


@dataclasses.dataclass
class Source:
    """Where labels come from, what they say, and what was decided about them or left out, in sentences."""

    where: str
    rows: list[Row]
    notes: list[str] = dataclasses.field(default_factory=list)
    unknown: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # "violet hair": rows


# --- where they are ------------------------------------------------------------------------------------------------


def find_source(args: argparse.Namespace, names: list[str], images: "Images") -> Source:
    """The source of --labels; else the only label file inside or next to --path; else the sub-folders of --path.

    Sets args.labels, so that --resume takes the same source. Ends the process if there is none, or if several files
    could be meant: never a guess.
    """
    if args.labels is None:
        found = find_file(args, images)
        if not found:
            refuse_other_files(args.path, names, images)
            refuse_splits(args.path, names)
        # stored, so that --resume takes the same source even if other files have come
        args.labels = found or args.path
    if Path(args.labels).is_dir():
        return read_folders(args, names)
    return read_labels(args.labels, images)


def find_file(args: argparse.Namespace, images: "Images") -> str | None:
    """The only label file inside or next to --path that names an image of it; None if there is none."""
    # next to a link as well as next to the folder that it leads to
    folders = dict.fromkeys([Path(os.path.abspath(args.path)), Path(args.path).resolve()])
    files = {file.resolve(): file for folder in folders for file in possible_files(folder)}
    found = [str(file) for file in sorted(files.values()) if names_an_image(file, images)]
    if len(found) > 1:
        candidates = common.some_of(found, 9)
        common.fail(f"--path {args.path}: there are several label files; choose one with --labels: {candidates}")
    return found[0] if found else None


def possible_files(folder: Path) -> list[Path]:
    """Files inside a folder and next to it whose suffix is that of a label file."""
    # data sets keep their table in the folder or, if that is images/, next to it
    return [file for place in (folder, folder.parent) for file in files_in(place, SUFFIXES)]


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of a folder, but not of those inside it, with one of these suffixes."""
    # a folder next to --path need not be ours
    with contextlib.suppress(OSError):
        files = [folder / name for name in os.listdir(folder) if name.lower().endswith(suffixes)]
        return sorted(file for file in files if os.path.isfile(file))
    return []


def names_an_image(file: Path, images: "Images") -> bool:
    """Whether a file is a label file of these images; a file that belongs to others is none."""
    try:
        # its first images may be missing: then all of it
        for count in (BEGINNING, -1):
            found = images_named(read_text(file, count))
            if not found:
                return False
            if any(images.find(image) for image in found):
                return True
    except (OSError, UnicodeError, csv.Error) as error:
        common.print_line(f"left out: {file}, which may be a label file, but cannot be read ({error})")
    return False


def images_named(text: str) -> list[str]:
    """The images that a label file, or its beginning, names; [] if it is none."""
    lines = [line for line in split_lines(text) if line.strip()]
    kind = label_format(lines)
    if kind == "tags":
        return [re.split(TAG_SEPARATOR, line, maxsplit=1)[0].strip(' "') for line in lines]
    if kind == "table":
        columns = len(lines[1].split())
        return [line.rsplit(None, columns)[0].strip() for line in lines[2:]]
    if kind == "csv":
        header, *table = csv.reader(lines, delimiter=separator(lines[0]), skipinitialspace=True)
        rows = [dict(zip(header, cells, strict=False)) for cells in table]
    elif kind == "jsonl":
        rows = [json_object(line) or {} for line in lines]
    else:
        return []

    found = []
    for row in rows:
        columns = columns_of_images(list(row)) or list(row)[:1]
        found += [str(row[name]).strip() for name in columns]
    return found


def refuse_other_files(path: str, names: list[str], images: "Images"):
    """End the process at a label file in a sub-folder, and at a text for each image: neither is read."""
    insist = f"if the sub-folders are the classes, --labels {path}"
    for folder in dict.fromkeys(os.path.dirname(name) for name in names if "/" in name):
        for file in files_in(Path(path, folder), SUFFIXES):
            if names_an_image(file, images):
                common.fail(
                    f"--path {path}: {file} names images, but only label files inside or next to --path are found: "
                    f"use --path {file.parent}, or name a file with --labels ({insist})"
                )
    # if every image has such a file, so do the first ones
    for name in names[:100]:
        text = os.path.join(path, os.path.splitext(name)[0] + ".txt")
        if os.path.isfile(text):
            common.fail(
                f"--path {path}: there are texts beside the images, such as {text}, which are not read: write them "
                f"into one file, such as a CSV with the header image,caption ({insist})"
            )


def refuse_splits(path: str, names: list[str]):
    """End the process if the sub-folders are parts of a data set, such as train and test."""
    folders = dict.fromkeys(name.partition("/")[0] for name in names if "/" in name)
    splits = [folder for folder in folders if re.fullmatch(SPLIT, folder, re.IGNORECASE)]
    if len(splits) > 1:
        common.fail(
            f"--path {path}: its sub-folders {', '.join(splits)} look like parts of a data set: use --path "
            f"{path}/{splits[0]}, name a file with --labels, or, if they are the classes, use --labels {path}"
        )


def read_folders(args: argparse.Namespace, names: list[str]) -> Source:
    """The classes of the images in the sub-folders of --path; ends the process if there are fewer than two."""
    if Path(args.labels).resolve() != Path(args.path).resolve():
        common.fail(f"--labels {args.labels} is a folder, but not that of --path: name a file, or the folder of --path")
    rows = []
    below = {}  # for each folder, what is in it
    for name in names:
        # as in torchvision's ImageFolder: the first folder is the class, whatever is below it
        folder, slash, rest = name.partition("/")
        if slash:
            rows.append(Row(name, [("class", clean(folder))], [clean(folder)]))
            below.setdefault(folder, set()).add(rest.rpartition("/")[0].partition("/")[0])
    refuse_no_classes(args.path, below)
    source = Source(f"the sub-folders of {args.path}", rows)
    unread = [file.name for file in files_in(Path(args.path), (".json",))]
    if unread:
        source.notes.append(f"not looked into: {common.some_of(unread, 3)}; --labels reads JSON with an object a line")
    return source


def refuse_no_classes(path: str, below: dict[str, set[str]]):
    """End the process if sub-folders, {name: names of the folders in it}, are no classes."""
    if len(below) < 2:
        hint = "".join(f" (or should it be --path {path}/{folder}?)" for folder in below)
        common.fail(
            f"--path {path}: there is no label file inside or next to it that names its images, and it has no "
            f"sub-folders that could be classes{hint}; name a file with --labels"
        )
    # train and test, with the classes below
    first, *others = below.values()
    if "" not in first and len(first) > 1 and all(inside == first for inside in others):
        folder = next(iter(below))
        common.fail(
            f"--path {path}: its sub-folders {', '.join(below)} all hold {common.some_of(sorted(first), 5)}: "
            f"if these are the classes, use --path {path}/{folder}"
        )


# --- what a file says ----------------------------------------------------------------------------------------------


def read_text(file: Path | str, count: int = -1) -> str:
    """The text of a file, or the whole lines of its first `count` bytes: UTF-8, or UTF-16 with a byte order mark.

    Raises OSError and UnicodeError.
    """
    with open(file, "rb") as stream:
        raw = stream.read(count)
    # Excel's "Unicode text" is UTF-16; it writes a mark into UTF-8, too
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if len(raw) != count:
        return clean(raw.decode(encoding))
    # the last character and the last line may be cut
    whole = split_lines(raw.decode(encoding, "ignore"))[:-1]
    return clean("\n".join(whole))


def read_whole(file: str) -> str:
    """The text of a file; ends the process if it cannot be read."""
    try:
        return read_text(file)
    except OSError as error:
        common.fail(f"{file} cannot be read ({error.strerror}): choose another file")
    except UnicodeError:
        common.fail(f"{file} is not UTF-8 text: save it as UTF-8, or choose another file")


def clean(text: str) -> str:
    """Text in which a letter with an accent is one character (NFC): label files and file systems differ in that."""
    printable = text.encode("utf-8", "replace").decode()  # names of files can hold bytes that are none
    return unicodedata.normalize("NFC", printable)


def split_lines(text: str) -> list[str]:
    """The lines of a text, whichever of the three line breaks it has."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def separator(header: str) -> str:
    """What separates the columns of a table: comma, semicolon or tab."""
    return max(",;\t", key=header.count)


def simplified(column: str) -> str:
    """ "File name", "file_name" and "FileName" are one name of a column."""
    return re.sub(r"[\s_-]", "", column.lower())


def columns_of_images(columns: list[str]) -> list[str]:
    """The columns whose name says that they name images, the likeliest first."""
    found = []
    for name in IMAGE_COLUMNS:
        found += [column for column in columns if simplified(column) == name]
    return found


def is_caption(column: str) -> bool:
    """Whether a column holds captions, by its name."""
    return re.fullmatch(CAPTION_COLUMN, column, re.IGNORECASE) is not None


def label_format(lines: list[str]) -> str:
    """Format of a file by its first lines: "jsonl", "table", "csv" or "tags"; "" if it is none of these."""
    # by content, because the same name is used for different formats
    first, second, third = [*lines, "", "", ""][:3]
    if first.lstrip().startswith("{"):
        return "jsonl"
    # CelebA: the number of images, alone in the first line
    has_values = re.search(r"(^|\s)(-1|0|1)\s*$", third)
    if first.strip().isdigit() and second.strip() and (has_values or len(second.split()) > 1):
        return "table"
    header = [cell.strip(' "') for cell in first.split(separator(first))]
    if len(header) > 1 and (columns_of_images(header) or any(is_caption(column) for column in header)):
        return "csv"
    tag = re.compile(r"\w[\s_]+(hair|eyes)\b|:\d+(\t|$)", re.IGNORECASE)
    # the first image may have no such tag
    for line in lines[:100]:
        image, *rest = re.split(TAG_SEPARATOR, line, maxsplit=1)
        if image and rest and tag.search(rest[0]):
            return "tags"
    return ""


def read_labels(file: str, images: "Images | None" = None, groups: dict[str, list[str]] | None = None) -> Source:
    """Read the label file of `images`, or a list of attributes to draw, with the `groups` of the training.

    Ends the process if the format is unknown, or at a line that does not fit it, naming the line.
    """
    lines = split_lines(read_whole(file))
    if len(lines) > 1 and not lines[0].strip():
        common.fail(f"{file}: line 1 is empty; remove it")
    if groups is None:
        refuse_whole_json(file, lines)
    kind = label_format(lines)
    if kind == "tags":
        source = read_tags(file, lines)
        refuse_header(source, images)
    elif kind == "table":
        source = from_columns(file, read_table(file, lines, images), images, groups)
    elif kind == "jsonl":
        source = from_columns(file, read_jsonl(file, lines), images, groups)
    # a header of names that are not known, or of a single group of the training
    elif separator(lines[0]) in lines[0] or lines[0].strip() in (groups or {}):
        source = from_columns(file, read_csv(file, lines, images), images, groups)
    else:
        source = Source(file, [])

    if not source.rows:
        header = ",".join(groups or ["image", "caption"])
        common.fail(
            f"the labels {file} have no rows in a format of docs/data.md: choose another file, or "
            f"rewrite it in one of these formats, such as a CSV with the header {header}"
        )
    if groups is not None:
        check_drawing(source, groups)
    return source


def check_drawing(source: Source, groups: dict[str, list[str]]):
    """Say which groups rows to draw leave out; ends the process at two values of one group."""
    for group in groups:
        silent = [n for n, row in enumerate(source.rows, 1) if group not in dict(row.values)]
        if silent:
            common.print_line(f"{source.where}: {len(silent):,} rows say nothing of {group}, row {silent[0]} first")
    for row in source.rows:
        if len(dict(row.values)) < len(row.values):
            shown = ", ".join(f"{group} {value}" for group, value in row.values)
            common.fail(f"{source.where}: two values of one group in one row ({shown}); choose one of them")


def refuse_whole_json(file: str, lines: list[str]):
    """End the process at JSON that is not an object for each image: a list of them, or one of all names."""
    first = lines[0].lstrip()
    alone = not any(lines[1:]) and json_object(first)
    if first.startswith("[") or (alone and not columns_of_images(list(alone))):
        common.fail(
            f"{file} is JSON without a line for each image: write it as JSON lines, such as "
            '{"file_name": "0.png", "text": "a cat"}'
        )


def read_tags(file: str, lines: list[str]) -> Source:
    """Lines of id,tags; all tags but colors of hair and eyes are ignored."""
    source = Source(file, [])
    for n, line in not_empty(lines):
        # tags may hold commas, ids do not
        image, *rest = re.split(TAG_SEPARATOR, line.replace('"', ""), maxsplit=1)
        if not rest:
            common.fail(f"{file}, line {n}: expected an id, a comma and tags; correct or remove the line")
        values, others = colors(rest[0])
        # what is written in words is a caption, too
        captions = [] if is_counted(rest[0]) else [rest[0].strip()]
        source.rows.append(Row(image.strip(), values, captions))
        source.unknown.update(set(others))
    if source.unknown:
        most = [f"{tag} {count:,}" for tag, count in source.unknown.most_common()]
        source.notes.append(
            f"ignored, because these colors are not known: {common.some_of(most, 9)}; to use them, write a CSV with "
            f"the header image,hair,eyes"
        )
    return source


def refuse_header(source: Source, images: "Images | None"):
    """End the process if the first line of tags is a header, none of whose names is known."""
    if not images or len(source.rows) < 2:
        return
    first, *others = source.rows[:20]
    is_word = re.fullmatch(r"[^\W\d_]+([\s_-][^\W\d_]+)*", first.image)
    # "frame,black hair,smile" is one if no other line names a color
    is_alone = not first.values or not any(row.values for row in others)
    if is_word and is_alone and not images.find(first.image) and all(images.find(row.image) for row in others):
        common.fail(
            f"{source.where}: the header names no column of images: rename {first.image!r} to file_name, or remove the "
            f"line"
        )


def tags(text: str) -> list[Pair]:
    """Colors of hair, then of eyes, that a text names.

    "long aqua hair, red eyes" -> [("hair", "aqua"), ("eyes", "red")]; so does "red eyes:9<tab>aqua hair:60<tab>".
    """
    return colors(text)[0]


def colors(text: str) -> tuple[list[Pair], list[str]]:
    """Colors of hair, then of eyes, that a text names; and what it says of them instead, such as "violet hair"."""
    text = text.lower().replace("_", " ")
    counted = is_counted(text)
    if counted:
        phrases = re.findall(r"([^\t]*)\b(hair|eyes)\s*:\d+", text)
    else:
        phrases = []
        end = 0
        for match in re.finditer(rf"\b(hair|eyes)\b(?!\s+({ORNAMENTS})\b)", text):
            # the words before it, up to a comma or the last of these
            before = re.split(r"[^\w\s-]", text[end : match.start()])[-1]
            phrases.append((before, match[1]))
            end = match.end()

    pairs = []
    others = []
    # hair comes first, in whatever order the text names them
    for group, known in COLORS.items():
        found = []
        instead = []
        for before, thing in phrases:
            words = before.split()
            if thing == group and words:
                found += colors_before(words, known, exact=counted)
                # of a text, only the last word belongs to it
                instead.append(f"{' '.join(words) if counted else words[-1]} {group}")
        pairs += [(group, color) for color in dict.fromkeys(found)]
        # "aqua hair:60<tab>long hair:9" has its color: what else it says is no loss
        if not found:
            others += instead
    return pairs, others


def is_counted(text: str) -> bool:
    """Whether tags are counted: "aqua hair:60"."""
    return re.search(r":\d+\s*(\t|$)", text) is not None


def colors_before(words: list[str], known, exact: bool) -> list[str]:
    """The colors that end a row of words: ["with", "long", "aqua"] -> ["aqua"]; if `exact`, one that stands alone."""
    if exact:
        return words if len(words) == 1 and words[0] in known else []
    found = []
    for word in reversed(words):
        if word in known:
            found.append(word)
        elif word in NEGATIONS:
            return []
        elif word not in BETWEEN:
            break
    return found[::-1]


def not_empty(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield (number of the line, line) of all lines that hold something."""
    for n, line in enumerate(lines, 1):
        if line.strip():
            yield n, line


class Table:
    """A file with columns, by columns: CelebA has 8 million cells, of which few are different."""

    def __init__(self):
        self.lines = []  # number of the line of each row
        self.columns = {}  # for each column, a cell of each row: () is empty, and JSON can have several values in one
        self.different = {}

    def add(self, line: int, cells: dict[str, tuple[str, ...]]):
        """Add a row; in JSON, each may have other columns."""
        for name in cells:
            if name not in self.columns:
                # empty in all rows before
                self.columns[name] = [()] * len(self.lines)
        for name, column in self.columns.items():
            cell = cells.get(name, ())
            # equal cells are one object in memory
            if cell not in self.different:
                self.different[cell] = normal_cell(cell)
            column.append(self.different[cell])
        self.lines.append(line)


def read_table(file: str, lines: list[str], images: "Images | None") -> Table:
    """CelebA's and Cartoon Set's tables: a count, names of columns, then rows of 0/1 or -1/1."""
    # the count in the first line is often wrong: it is not used
    columns = lines[1].split()
    # some copies of CelebA have image_id above the names
    if simplified(columns[0]) in IMAGE_COLUMNS:
        columns = columns[1:]
    table = Table()
    for n, line in not_empty(lines[2:]):
        # from the right, because names can hold spaces
        cells = line.rsplit(None, len(columns))
        # a list of attributes to draw has no column for the image
        image = cells.pop(0).strip() if len(cells) > len(columns) else ""
        # "0.png 1" is a name only if there is such an image: otherwise, the line has a value too many
        is_too_long = re.search(r"\s(0|1|-1)$", image) and not (images and images.find(image))
        if len(cells) != len(columns) or not set(cells) <= {"0", "1", "-1"} or is_too_long:
            refuse_line(file, n + 2, len(columns))
        named = dict(zip(["file_name", *columns], [image, *cells], strict=True))
        table.add(n + 2, {name: (cell,) for name, cell in named.items()})
    return table


def read_csv(file: str, lines: list[str], images: "Images | None") -> Table:
    """Rows of a table with a header."""
    table = Table()
    # the line breaks are back, because a quoted caption may hold some
    text = (line + "\n" for line in lines)
    reader = csv.reader(text, delimiter=separator(lines[0]), skipinitialspace=True, strict=True)
    try:
        header = read_header(file, next(reader), images)
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if len(cells) != len(header):
                refuse_line(file, reader.line_num, len(header) - 1)
            named = dict(zip(header, cells, strict=True))
            # a separator at the end of each line makes a column without a name
            if named.pop("", "") and header[0]:
                common.fail(f"{file}, line {reader.line_num}: this column has no name in the header; give it one")
            table.add(reader.line_num, {name: (cell,) for name, cell in named.items()})
    except csv.Error as error:
        common.fail(f"{file}, line {reader.line_num}: {error}; close all quotes, and double those inside a caption")
    return table


def read_header(file: str, cells: list[str], images: "Images | None") -> list[str]:
    """Names of the columns; ends the process if they are none."""
    header = [cell.strip() for cell in cells]
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        common.fail(f"{file} has two columns {twice[0]!r}: rename or remove one of them")
    # pandas writes its index without a name: it may be that of the image
    if not header[0] and "id" not in header:
        header[0] = "id"
    # otherwise the label of the first image would give its name to a column
    if images and (is_file(header[0]) or images.find(header[0])) and not columns_of_images(header):
        common.fail(f"{file} has no header: write one as its first line, such as image,class or image,caption")
    return header


def read_jsonl(file: str, lines: list[str]) -> Table:
    """An object of JSON in each line."""
    table = Table()
    for n, line in not_empty(lines):
        found = json_object(line)
        if found is None:
            common.fail(f'{file}, line {n}: expected an object such as {{"file_name": "0.png", "text": "a cat"}}')
        table.add(n, {name: tuple(as_words(value)) for name, value in found.items()})
    return table


def json_object(line: str) -> dict | None:
    """A line of JSON; None if it is no object."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def as_words(value) -> list[str]:
    """A value of JSON -> the words of a cell: a list gives several, null and objects none."""
    values = value if isinstance(value, list) else [value]
    return [clean(str(each)).strip() for each in values if each is not None and not isinstance(each, (dict, list))]


def refuse_line(file: str, line: int, columns: int):
    common.fail(
        f"{file}, line {line}: expected {columns} values like those of the other lines, after the name of the image "
        f"if they have one; correct or remove the line"
    )


# --- what columns mean ---------------------------------------------------------------------------------------------


def take_images(file: str, table: Table, images: "Images | None", groups: dict[str, list[str]] | None) -> list[str]:
    """The image of each row, from the column that names it: by its own name, or else the first one; "" if none does.

    The column is removed from the table. Ends the process if another column holds the names of other images.
    """
    likely = [name for name in columns_of_images(list(table.columns)) if name not in (groups or {})]
    if not likely:
        likely = list(table.columns)[:1]
        # a list of attributes to draw need not name images
        if any(group in (groups or {}) for column in likely for group in (column, *groups_of(column))):
            likely = []

    chosen = likely[0] if likely else ""
    for name in likely:
        # of id and name, it may be either
        if images and any(images.find(cell[0]) for cell in table.columns[name] if cell):
            chosen = name
            break
    cells = table.columns.pop(chosen, [()] * len(table.lines))
    for line, cell in zip(table.lines, cells, strict=True):
        if len(cell) > 1:
            common.fail(f"{file}, line {line}: {chosen} has several values; write a line for each image")
    found = [cell[0] if cell else "" for cell in cells]

    if groups is not None:
        # what else may name images is nothing to draw
        for name in likely:
            table.columns.pop(name, None)
    # the numbers of the rows may be names of images, too; file_name leaves no doubt
    for name, column in table.columns.items():
        is_doubtful = images and simplified(chosen) != IMAGE_COLUMNS[0] and not is_caption(name)
        if is_doubtful and names_other_images(column, found, images):
            common.fail(
                f"{file}: the column {name!r} names other images than the column {chosen!r}: rename the right one "
                f"to file_name"
            )
    return found


def names_other_images(column: list[tuple[str, ...]], chosen: list[str], images: "Images") -> bool:
    """Whether a column holds files of the folder, and not those of the rows' images `chosen`, which are no files.

    Files whose suffix has changed are found, too: a list of 5.jpg is not one of the numbers beside it.
    """
    for cell, image in zip(column, chosen, strict=True):
        if len(cell) == 1 and is_file(cell[0]) and not is_file(image):
            name = os.path.basename(cell[0].replace("\\", "/"))
            found = images.find(cell[0]) or images.find(os.path.splitext(name)[0])
            if found and found != images.find(image):
                return True
    return False


def is_file(name: str) -> bool:
    """Whether a name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in common.SUFFIXES


def normal_cell(cell: tuple[str, ...]) -> tuple[str, ...]:
    """A cell without empty words and nan, and with 1 in the place of 1.0: pandas writes them so."""
    spelling = {"1.0": "1", "0.0": "0", "-1.0": "-1"}
    return tuple(spelling.get(word, word) for word in cell if word.lower() not in ("", "nan", "null"))


def without_point(word: str) -> str:
    """ "7.0" -> "7": pandas writes whole numbers so where a column has a gap."""
    return re.sub(r"^(-?\d+)\.0$", r"\1", word)


def from_columns(file: str, table: Table, images: "Images | None", groups: dict[str, list[str]] | None) -> Source:
    """Rows of a file with columns: captions, and groups of words, of yes and no, or of columns of 0/1.

    `groups`, if there are any, are those of the training, which settle what the columns mean.
    """
    # Hair in a list of attributes to draw is the group hair of the training
    spelling = {group.lower(): group for group in groups or {}}
    table.columns = {spelling.get(name.lower(), name): column for name, column in table.columns.items()}
    image_of = take_images(file, table, images, groups)
    captions = [name for name in table.columns if is_caption(name)]
    meanings = {}
    for name in table.columns:
        if name not in captions:
            meanings[name] = own_group(file, name, table, groups)

    source = Source(file, [])
    joined = one_hot_groups(list(meanings), table, groups, source.notes)
    meanings |= joined
    if groups is None:
        for name in list(meanings):
            reason = why_useless(name, table.columns[name])
            if reason and name not in joined:
                source.notes.append(f"column {name} left out: {reason}")
                del meanings[name]

    for i, image in enumerate(image_of):
        row = Row(image, [], [])
        for name, meaning in meanings.items():
            row.values += meaning[table.columns[name][i]]
        for name in captions:
            row.captions += table.columns[name][i]
        source.rows.append(row)
    return source


def own_group(
    file: str, name: str, table: Table, groups: dict[str, list[str]] | None
) -> dict[tuple[str, ...], list[Pair]]:
    """{cell: what it says} of a column that is a group of its own; 0 and 1, or -1 and 1, are no and yes."""
    cells = set(table.columns[name])
    words = {word.lower() for cell in cells for word in cell}
    # as in the training, where 0 and 1 may have been two of ten classes
    known = (groups or {}).get(name, ["no", "yes"])
    is_yes_no = words <= {*NO, *YES} and set(known) <= {"no", "yes"}
    if is_yes_no and {"0", "-1"} <= words:
        line = next(n for n, cell in zip(table.lines, table.columns[name], strict=True) if "0" in cell)
        common.fail(f"{file}, line {line}: {name} is 0 here, but -1 in other lines; expected -1/1 or 0/1")

    meaning = {}
    for cell in cells:
        meaning[cell] = []
        for word in cell:
            if is_yes_no:
                word = "no" if word.lower() in NO else "yes"
            elif word not in known:
                word = without_point(word)
            meaning[cell].append((name, word))
    return meaning


def groups_of(column: str) -> dict[str, str]:
    """The groups that a one-hot column may belong to, by its name: "hair_red" -> {"hair": "red", "red": "hair"}."""
    found = {}
    first, _, rest = column.partition("_")
    # with_glasses and with_hat are not a group
    if rest and first not in ("with", "without"):
        found[first] = rest
    rest, _, last = column.rpartition("_")
    if rest:
        found.setdefault(last, rest)
    return found


def one_hot_groups(
    columns: list[str], table: Table, groups: dict[str, list[str]] | None, notes: list[str]
) -> dict[str, dict[tuple[str, ...], list[Pair]]]:
    """{column: {("1",): [("hair", "red")], ("0",): []}} of the columns of 0/1 that are one group together.

    Their names propose it (hair_red, hair_blue; Black_Hair, Blond_Hair), and the data decide: exactly one of them is 1
    in every row. What the data refuse is put into `notes`.
    """
    members_of = {}
    for name in columns:
        # never -1/1, because CelebA's columns do not exclude each other
        if set(table.columns[name]) <= {("0",), ("1",)}:
            for group in groups_of(name):
                members_of.setdefault(group, []).append(name)

    meanings = {}
    refused = []
    for group, members in members_of.items():
        if groups is None:
            rows = zip(*(table.columns[name] for name in members), strict=True)
            # blue_hair may be in the group hair or in the group blue: the first that fits takes it
            is_free = not meanings.keys() & set(members)
            is_group = is_free and len(members) > 1 and all(row.count(("1",)) == 1 for row in rows)
        else:
            # as in the training
            members = [name for name in members if groups_of(name)[group] in groups.get(group, [])]
            is_group = bool(members)
        if is_group:
            for name in members:
                meanings[name] = {("0",): [], ("1",): [(group, groups_of(name)[group])]}
        elif len(members) > 1:
            refused.append(members)

    for members in refused:
        if not meanings.keys() & set(members):
            some = common.some_of(members, 5)
            notes.append(
                f"{some}: each is a group of its own (yes, no), because not every row sets exactly one of them"
            )
    return meanings


def why_useless(name: str, column: list[tuple[str, ...]]) -> str | None:
    """Why a column is no group: all images are alike in it, or nearly every image has a value of its own."""
    counts = collections.Counter(cell for cell in column if cell)
    if not counts:
        return "it is empty"
    if len(counts) == 1:
        return f"its only value is {', '.join(min(counts))}"
    alone = list(counts.values()).count(1)
    # with few rows, a value may well occur once, but not in a column such as id
    if (len(column) >= 20 or columns_of_images([name])) and alone > len(column) / 2:
        return f"it has {len(counts):,} values in {len(column):,} rows; if it is a caption, name it caption"
    return None


def read_embeddings(file: str, rows: int | None = None) -> torch.Tensor:
    """A .npy file of `rows` vectors (any number if None) -> float32 (rows, width)."""
    # no pickles: they could run code
    try:
        vectors = torch.from_numpy(np.load(file, allow_pickle=False)).float()
    except (OSError, EOFError, ValueError, TypeError) as error:
        common.fail(f"--embeddings {file} cannot be read as numbers ({type(error).__name__}): write it with numpy.save")
    # for each row of the labels, not for each image: an image may have several
    if vectors.dim() != 2 or len(vectors) != (rows or len(vectors)):
        common.fail(
            f"--embeddings {file} has the shape {tuple(vectors.shape)}: expected a row for each of {rows} labels; "
            f"encode all rows of the label file, in their order"
        )
    return vectors


def read_prompts(file: str) -> list[tuple[str, str]]:
    """(id, caption) of each line "id,caption"; if what stands before the commas are no ids, the lines are numbered.

    "smile, blue hair" is a caption, "smile,blue hair" has the id smile, and "7, blue hair" the id 7.
    """
    lines = [line.strip() for line in split_lines(read_whole(file)) if line.strip()]
    if not lines:
        common.fail(f"--prompts {file} holds no prompt: write one in each line")
    parts = [line.partition(",") for line in lines]
    # an id is one word, and no caption stands without one
    if all(caption.strip() and is_id(name, caption) for name, _, caption in parts):
        return [(name.strip(), caption) for name, _, caption in parts]
    return [(str(n), line) for n, line in enumerate(lines, 1)]


def is_id(name: str, caption: str) -> bool:
    """Whether what stands before the first comma of a prompt is an id, and not its first tag."""
    return len(name.split()) == 1 and (name.strip().isdigit() or not caption[0].isspace())


# --- which image -----------------------------------------------------------------------------------------------------


class Images:
    """Finds the images that names mean: by path, path without suffix, file name, or file name without suffix."""

    def __init__(self, names: list[str], folder: str):
        # the most exact first: a path is never taken for the name of an image in another folder
        self.tables = [collections.defaultdict(list) for _ in range(4)]
        for i, name in enumerate(names):
            path = clean(name).replace("\\", "/")
            without_suffix = os.path.splitext(path)[0]
            keys = (path, without_suffix, os.path.basename(path), os.path.basename(without_suffix))
            for table, key in zip(self.tables, keys, strict=True):
                table[key].append(i)

        # the end of --path may stand before a name: images/0.png in --path data/images
        self.prefixes = [""]
        for path in (Path(folder).absolute(), Path(folder).resolve()):
            parts = clean(path.as_posix()).split("/")  # C:/data/images on Windows
            for k in range(len(parts)):
                self.prefixes.append("/".join(parts[k:]) + "/")

    def find(self, name: str) -> list[int]:
        """Indices of the images that a name can mean; [] if there is none."""
        name = clean(name).replace("\\", "/").removeprefix("./")
        for spelling in dict.fromkeys([name, without_point(name)]):
            for prefix in self.prefixes:
                if not spelling.startswith(prefix):
                    continue
                path = spelling.removeprefix(prefix)
                # what is named with its folder is not looked for in others
                for table in self.tables[:2] if prefix else self.tables:
                    if path in table:
                        return table[path]
        return []


def match(names: list[str], source: Source, images: Images, folder: str | None) -> dict[int, list[int]]:
    """{index of an image: its rows} of all images that have one; ends the process if a row can mean several images."""
    rows_of = collections.defaultdict(list)
    for row, each in enumerate(source.rows):
        found = images.find(each.image)
        # a guess would give a wrong label in silence
        if len(found) > 1:
            common.fail(
                f"{source.where}: {each.image!r} can be {names[found[0]]!r} or {names[found[1]]!r}: "
                f"write the paths of the images, relative to {folder}"
            )
        for i in found:
            rows_of[i].append(row)
    return dict(sorted(rows_of.items()))


def load_labels(args: argparse.Namespace, names: list[str], text: bool = False) -> tuple[np.ndarray, list]:
    """Labels of the images `names`: the indices (n,) of the images that have one, and those n labels.

    A label is a list of (group, value); if `text`, a list of captions, at least one. With --embeddings it is a matrix,
    a row for each caption: row i of that file belongs to row i of the label file. What was found is printed and put
    into args.found. Ends the process if captions are given where values are needed or the other way round, or if fewer
    images than a batch have a label.
    """
    images = Images(names, args.path or "")
    if args.path is None:
        if args.labels:
            common.fail("--labels needs --path: the built-in faces have labels of their own")
        source = built_in_labels(names)
    else:
        source = find_source(args, names, images)

    # vectors take the place of the captions that they encode
    vectors = read_embeddings(args.embeddings, len(source.rows)) if text and args.embeddings else None
    if not text:
        require_values(source, args.script)
    elif vectors is None:
        require_captions(source)

    rows_of = match(names, source, images, args.path)
    found = {}
    for i, rows in rows_of.items():
        label = merged([source.rows[row] for row in rows], text)
        # without a caption, an image says nothing; without values, it may still help D
        if label or not text or vectors is not None:
            found[i] = label

    if not text:
        drop_single_values(source, found)
    # no row has two images: match() refuses it
    rows_used = sum(len(rows) for rows in rows_of.values())
    describe_labels(args, source, found, len(names), len(source.rows) - rows_used)
    if len(found) < args.batch:
        common.fail(
            f"{source.where} labels {len(found)} images, fewer than a batch of {args.batch} (its first row names "
            f"{source.rows[0].image!r}; the first image is {names[0]!r}): check that --labels belongs to --path, or "
            f"lower --batch"
        )
    if vectors is not None:
        found = {i: vectors[rows_of[i]] for i in found}
    return np.array(list(found), dtype=np.int64), list(found.values())


def merged(rows: list[Row], text: bool) -> list:
    """The captions, or the values, of all rows of an image, each once."""
    found = []
    for row in rows:
        found += row.captions if text else row.values
    return list(dict.fromkeys(found))


def drop_single_values(source: Source, found: dict[int, list[Pair]]):
    """Remove the groups that have one value in all labels `found`, and say so in source.notes."""
    single = {group: values[0] for group, values in classes(list(found.values())).items() if len(values) == 1}
    for group, value in single.items():
        source.notes.append(f"{group} left out: its only value in these images is {value}")
    if single:
        for i, label in found.items():
            found[i] = [pair for pair in label if pair[0] not in single]


def require_captions(source: Source):
    """Make captions of the values, if a source has none; ends the process if the values are only yes and no."""
    for row in source.rows:
        # a caption without a word says nothing
        row.captions = [caption for caption in row.captions if re.search(r"\w", caption)]
    if any(row.captions for row in source.rows):
        return

    values = {value for row in source.rows for _, value in row.values} - {"yes", "no"}
    # a word has a letter: numbers are none
    if not any(re.search(r"[^\W\d_]", value) for value in values):
        common.fail(
            f"{source.where} has no captions, and no words to make captions of (only numbers, yes or no): train "
            f"acgan.py on it instead, or name the column of captions caption"
        )
    for row in source.rows:
        row.captions = [as_caption(row.values)] if row.values else []


def require_values(source: Source, script: str):
    """End the process if a source has captions only."""
    if any(row.values for row in source.rows):
        return
    if any(row.captions for row in source.rows):
        common.fail(
            f"{source.where} holds captions, but {script}.py needs groups: train cgan_text2img.py on it instead"
        )
    notes = "".join(f"; {note}" for note in source.notes)
    common.fail(
        f"{source.where} has no groups with values, such as hair: red{notes}: choose another file with "
        f"--labels, or the folder of --path, to take its sub-folders as classes"
    )


def describe_labels(args: argparse.Namespace, source: Source, found: dict[int, list], images: int, rows: int):
    """Print what the labels `found` are, and put it into args.found; `rows` of the source name no image."""
    pairs = collections.Counter()
    having = collections.Counter()  # for each group, the images with a value of it
    captions = []
    unclear = 0
    for label in found.values():
        if label and isinstance(label[0], str):
            captions += label
        else:
            pairs.update(label)
            # of two values of a group, a dictionary keeps one
            having.update(dict(label).keys())
            unclear += len(dict(label)) < len(label)
    groups = {}
    for group, value in sorted(pairs):
        groups.setdefault(group, {})[value] = pairs[group, value]
    args.found["labels"] = {
        "source": source.where,
        "images": len(found),
        "images_without_label": images - len(found),
        "rows_without_image": rows,
        "captions": len(captions),
        "groups": groups,
        "notes": source.notes,
    }

    common.print_line(f"labels: {len(found):,} of {images:,} images, from {source.where}")
    for group, values in groups.items():
        shown = [f"{value} {count:,}" for value, count in values.items()]
        without = len(found) - having[group]
        rest = f"; without a value: {without:,}" if without else ""
        common.print_line(f"  {group}: {common.some_of(shown)}{rest}")
    if captions:
        common.print_line(f"  captions: {len(captions):,}, such as {textwrap.shorten(captions[0], 100)!r}")
    for note in source.notes:
        common.print_line(f"  {note}")
    if unclear:
        common.print_line(
            f"  {unclear:,} images have several values of one group: the class loss ignores that group for them"
        )
    if images > len(found) or rows:
        common.print_line(f"left out: {images - len(found):,} images without a label, {rows:,} labels without an image")


def built_in_labels(names: list[str]) -> Source:
    """Labels of the built-in faces; captions name hair and eyes only."""
    rows = []
    for name in names:
        # a caption of all of them would be longer than those of the public data sets
        attributes = common.face_attributes(name)
        caption = as_caption([(group, attributes[group]) for group in COLORS])
        rows.append(Row(name, list(attributes.items()), [caption]))
    return Source("the built-in data", rows)


def as_caption(values: list[Pair]) -> str:
    """[("hair", "aqua"), ("eyes", "red")] -> "aqua hair red eyes"; of a class, only its name."""
    return " ".join(value if group in ("class", "label") else f"{value} {group}" for group, value in values)


def classes(labels: list[list[Pair]]) -> dict[str, list[str]]:
    """All groups that occur in labels, each with its values, in alphabetical order: {"eyes": ["blue", "red"], ...}."""
    groups = {}
    for group, value in sorted({pair for label in labels for pair in label}):
        groups.setdefault(group, []).append(value)
    return groups
