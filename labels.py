"""Labels in: which file holds them, what its rows say, and which image each row belongs to.

Only acgan.py, cgan_text2img.py and compare.py need this file. What a label file is, is recognized by its content:

    format  a line                                what it gives
    tags    0,aqua hair aqua eyes                 colors of hair and eyes
    tags    0,touhou:17705<tab>aqua hair:60<tab>  the same, from counted tags; other tags are ignored
    csv     image,caption                         a caption, which may be quoted
    csv     image,Bald,Young  and then 0/1, -1/1  attributes
    table   a count, the names of the columns, then rows of 0/1 or -1/1, after the name of the image or without it
"""

import argparse
import csv
import re
import sys
from pathlib import Path

import numpy as np
import torch

import common
import faces

# A caption, or (group, value) of each attribute: [("hair", "aqua"), ("eyes", "red")].
Label = str | list[tuple[str, str]]

# The tags that say a color; "long hair" is none.
COLORS = {
    "hair": f"({'|'.join(faces.HAIR)}) hair",
    "eyes": f"({'|'.join(faces.EYES)}) eyes",
}


# --- which file ----------------------------------------------------------------------------------------------------


def label_format(lines: list[str]) -> str:
    """Format of a label file by its first two lines: "table", "csv" or "tags"; "" if it is not a label file."""
    # by content, because the same name is used for different formats
    first, second = [*lines, "", ""][:2]
    if first.strip().isdigit() and len(second.split()) > 1:
        return "table"
    if re.match(r'"?(image|image_id|file|file_name|filename)"?\s*,', first, re.IGNORECASE):
        return "csv"
    if re.match(r"[^,]+,.*( hair\b| eyes\b|:\d+(\t|$))", first):
        return "tags"
    return ""


def find_labels(args: argparse.Namespace) -> str:
    """The file of --labels, or else the only label file inside or next to --path."""
    if args.labels:
        return args.labels
    folder = Path(args.path).resolve()
    found = []
    for file in sorted({*folder.iterdir(), *folder.parent.iterdir()}):
        if file.suffix in (".csv", ".txt") and file.is_file():
            lines = file.read_text("utf-8-sig", "replace").split("\n", 2)
            if label_format(lines):
                found.append(str(file))

    # never a guess
    if not found:
        common.fail(f"--path {args.path}: there is no label file inside or next to it; name one with --labels")
    if len(found) > 1:
        candidates = " or ".join(found[:9])
        common.fail(f"--path {args.path}: there are several label files; choose one with --labels: {candidates}")
    return found[0]


# --- what a file says ----------------------------------------------------------------------------------------------


def read_text(file: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; ends the process if it is anything else."""
    try:
        return Path(file).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        common.fail(f"{file} cannot be read or is not UTF-8 text ({type(error).__name__}): choose another file")


def tags(text: str) -> list[tuple[str, str]]:
    """Colors of hair, then of eyes, that a text names; all other tags are ignored.

    "aqua hair red eyes" -> [("hair", "aqua"), ("eyes", "red")]; so does "red eyes:9<tab>long hair:3<tab>aqua hair:60".
    """
    if ":" in text:
        # counted tags, separated by tabs
        some = [tag.split(":")[0].strip() for tag in text.split("\t")]
    else:
        # words in pairs: a color and what has it
        some = re.findall(r"\S+ \S+", text)

    found = []
    for group, pattern in COLORS.items():
        for tag in some:
            if re.fullmatch(pattern, tag):
                found.append((group, tag.split()[0]))
    return found


def read_labels(file: str) -> list[tuple[str, Label]]:
    """Rows (image, label) of a label file; the image is "" where a row names none.

    Ends the process if the format is unknown, or at a line that does not fit it, naming the line.
    """
    lines = read_text(file).replace("\r\n", "\n").split("\n")
    kind = label_format(lines)
    columns, rows = split_rows(file, lines, kind)
    if not rows:
        common.fail(
            f"the labels {file} have no rows in a format that the README describes under Data: choose another file, or "
            f"rewrite it in one of these formats, such as a CSV with the header image,caption"
        )

    says = meanings(columns, rows)
    found = []
    for n, row in rows:
        if kind == "table" and len(row) == len(columns):
            # a list of attributes to draw: no column for the image
            name, values = "", row
        else:
            name, values = row[0].strip(), row[1:]
        label = label_of(values, kind, says)
        if label is None:
            common.fail(
                f"{file}, line {n}: expected the name of the image and {len(columns)} values like those of the other "
                f"lines; correct or remove the line"
            )
        found.append((name, label))
    return found


def split_rows(file: str, lines: list[str], kind: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Names of the columns behind the image's, and (number of the line, cells) of each row that is not empty."""
    if kind == "tags":
        # tags may hold commas, ids do not
        return ["tags"], [(n, line.split(",", 1)) for n, line in enumerate(lines, 1) if line.strip()]
    if kind == "csv":
        return read_csv(file, lines)
    if kind == "table":
        # the count in the first line is often wrong: it is not used
        return lines[1].split(), [(n, line.split()) for n, line in enumerate(lines[2:], 3) if line.strip()]
    return [], []


def label_of(values: list[str], kind: str, says: list[dict]) -> Label | None:
    """What the cells of a row say, going by the meanings of the columns; None if they do not fit them."""
    if len(values) != len(says):
        return None
    if kind == "tags":
        return tags(values[0])
    # one column is a caption
    if len(says) == 1:
        return values[0]
    # several are attributes; one-hot columns say something only where they are 1
    if not all(value in cell for value, cell in zip(values, says, strict=True)):
        return None
    pairs = [cell[value] for value, cell in zip(values, says, strict=True)]
    return [pair for pair in pairs if pair]


def read_csv(file: str, lines: list[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Names of the columns behind the first, and (number of the line, cells) of each row."""
    # the line breaks are back, because a quoted caption may hold some
    reader = csv.reader((line + "\n" for line in lines), strict=True)
    try:
        columns = next(reader)[1:]
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        common.fail(f"{file}, line {reader.line_num}: {error}; close all quotes, and double those inside a caption")
    return columns, rows


def meanings(columns: list[str], rows: list[tuple[int, list[str]]]) -> list[dict[str, tuple[str, str] | None]]:
    """For each column, what its cells say: {"1": ("hair", "red"), "0": None}.

    With -1/1, and with 0/1 where no other column belongs to the same group, a column is a group of its own:
    {"1": ("Bald", "yes"), "0": ("Bald", "no")}.
    """
    has_minus = any("-1" in row for _, row in rows)
    off = "-1" if has_minus else "0"
    pairs = [group_and_value(column, columns) for column in columns]
    groups = [group for group, _ in pairs]

    # a group of one column would have one value, which every image either has or lacks
    says = []
    for column, pair in zip(columns, pairs, strict=True):
        if not has_minus and groups.count(pair[0]) > 1:
            says.append({"1": pair, off: None})
        else:
            says.append({"1": (column, "yes"), off: (column, "no")})
    return says


def group_and_value(column: str, columns: list[str]) -> tuple[str, str]:
    """Group and value that the name of a one-hot column stands for, going by all columns of the table.

    Columns that share their beginning are a group: hair_red -> ("hair", "red"), if there is another hair_... Others
    share their end: with_glasses -> ("glasses", "with"). A name without "_" stands for itself.
    """
    first, _, rest = column.partition("_")
    # with_glasses and with_hat are not a group
    starts = [name.split("_")[0] for name in columns if not name.startswith(("with_", "without_"))]
    if starts.count(first) > 1:
        return first, rest
    return rest or first, first


def read_embeddings(file: str, rows: int | None = None) -> torch.Tensor:
    """A .npy file of `rows` vectors (any number if None) -> float32 (rows, width)."""
    # no pickles: they could run code
    try:
        vectors = torch.from_numpy(np.load(file, allow_pickle=False)).float()
    except (OSError, EOFError, ValueError, TypeError) as error:
        common.fail(f"--embeddings {file} cannot be read as numbers ({type(error).__name__}): write it with numpy.save")
    if vectors.dim() != 2 or len(vectors) != (rows or len(vectors)):
        common.fail(
            f"--embeddings {file} has the shape {tuple(vectors.shape)}: expected a row for each of {rows} labels; "
            f"encode all rows of the label file, in their order"
        )
    return vectors


# --- which image -----------------------------------------------------------------------------------------------------


def load_labels(args: argparse.Namespace, names: list[str], text: bool = False) -> tuple[np.ndarray, list]:
    """Labels of the images `names`: the indices (n,) of the images that have one, and those n labels.

    A label is a list of (group, value), or a caption if `text`; the caption of tags is "aqua hair blue eyes". With
    --embeddings it is a vector: row i of that file belongs to row i of the label file. Images and rows that find no
    partner are left out, and counted. Ends the process if captions are given where attributes are needed, or if fewer
    images than a batch have a label.
    """
    if args.path is None:
        if args.labels:
            common.fail("--labels needs --path: the built-in faces have labels of their own")
        where = "the built-in data"
        table = built_in_labels(names, text)
    else:
        where = find_labels(args)
        table = read_labels(where)

    # captions for one script, attributes for the other
    if text:
        table = [(name, label if isinstance(label, str) else as_caption(label)) for name, label in table]
    elif any(isinstance(label, str) for _, label in table):
        common.fail(
            f"{where} holds captions, but {args.script}.py needs attributes: train cgan_text2img.py on it instead"
        )

    # the images that have a label, in their order, and the row of each
    row_of = match(names, table, text)
    indices = list(row_of)
    rows = list(row_of.values())

    print_left_out(len(names) - len(indices), len(table) - len(set(rows)), where)
    if len(indices) < args.batch:
        common.fail(
            f"{where} labels {len(indices)} images, fewer than a batch of {args.batch}: "
            f"check that --labels belongs to --path, or lower --batch"
        )

    # vectors take the place of the captions that they encode
    if text and args.embeddings:
        found = list(read_embeddings(args.embeddings, len(table))[rows])
    else:
        found = [table[row][1] for row in rows]
    return np.array(indices, dtype=np.int64), found


def print_left_out(images: int, rows: int, where: str):
    """Print how many images and rows found no partner, if there are any: nothing is left out without a word."""
    if (images or rows) and common.is_main_process():
        print(
            f"left out: {images} images without a label in {where}, {rows} of its rows without an image",
            file=sys.stderr,
        )


def match(names: list[str], table: list[tuple[str, Label]], text: bool) -> dict[int, int]:
    """{index of an image: row of its label} for all images that have one.

    A row belongs to the image with the same path, else with that file name, else with that name without suffix.
    """
    row_named = {}
    for row, (name, label) in enumerate(table):
        # a caption without a word says nothing
        if not text or re.search(r"\w", label):
            row_named[name] = row

    row_of = {}
    for i, name in enumerate(names):
        for key in (name, Path(name).name, Path(name).stem):
            if key in row_named:
                row_of[i] = row_named[key]
                break
    return row_of


def built_in_labels(names: list[str], text: bool) -> list[tuple[str, Label]]:
    """Rows (image, label) of the built-in faces; captions name hair and eyes only."""
    table = []
    for name in names:
        # a caption of all of them would be longer than those of the public data sets
        attributes = common.face_attributes(name)
        groups = COLORS if text else attributes
        table.append((name, [(group, attributes[group]) for group in groups]))
    return table


def as_caption(label: list[tuple[str, str]]) -> str:
    """[("hair", "aqua"), ("eyes", "red")] -> "aqua hair red eyes"."""
    return " ".join(f"{value} {group}" for group, value in label)


def classes(labels: list[list[tuple[str, str]]]) -> dict[str, list[str]]:
    """All groups that occur in labels, each with its values, in alphabetical order: {"eyes": ["blue", "red"], ...}."""
    groups = {}
    for group, value in sorted({pair for label in labels for pair in label}):
        groups.setdefault(group, []).append(value)
    return groups
