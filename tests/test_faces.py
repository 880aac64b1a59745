"""The painter is deterministic and quick; the reader is right where it should be and says so where it is not."""

import time

import numpy as np
import pytest
from conftest import settings
from PIL import Image, ImageColor, ImageFilter

import dcgan
import faces


@pytest.fixture(scope="module")
def painted():
    pairs = [faces.paint(1, i, 32) for i in range(2000)]
    looks = {name: np.array([look[name] for _, look in pairs]) for name in faces.ATTRIBUTES}
    return [image for image, _ in pairs], looks


def accuracy(images, looks) -> dict[str, float]:
    read = faces.read_attributes(np.stack([np.asarray(image) for image in images]))
    return {name: (read[name] == looks[name]).mean() for name in looks} | {"readable": read["readable"].mean()}


def test_reader_is_right_on_fresh_faces(painted):
    """Catches shapes or palettes that painter and reader do not share."""
    right = accuracy(*painted)
    assert right["hair"] >= 0.99 and right["eyes"] >= 0.97 and right["glasses"] >= 0.99 and right["face"] >= 0.99, right
    assert right["readable"] >= 0.99


@pytest.mark.parametrize("harm", ["blur", "noise"])
def test_reader_survives_blur_and_noise(painted, harm):
    """Catches a look-up of fixed pixels."""
    images, looks = painted
    if harm == "blur":
        images = [image.filter(ImageFilter.GaussianBlur(0.5)) for image in images]
    else:
        noise = np.random.default_rng(0).normal(0, 10, (len(images), 32, 32, 3))
        images = list((np.stack([np.asarray(i) for i in images]) + noise).clip(0, 255).astype(np.uint8))
    assert min(accuracy(images, looks).values()) >= 0.9


def test_reader_finds_a_moved_face(painted):
    """Catches a reader that knows where the face is: one pixel in any direction."""
    images, looks = painted
    moved = [np.roll(np.asarray(image), (1, -1), (0, 1)) for image in images[:500]]
    right = accuracy(moved, {name: values[:500] for name, values in looks.items()})
    assert right["hair"] >= 0.97 and right["eyes"] >= 0.9, right


@pytest.mark.parametrize("size", [48, 96])
def test_reader_reads_any_size(size):
    pairs = [faces.paint(2, i, size) for i in range(300)]
    looks = {name: np.array([look[name] for _, look in pairs]) for name in faces.ATTRIBUTES}
    assert min(accuracy([image for image, _ in pairs], looks).values()) >= 0.98


def test_what_is_no_face_is_unreadable(painted):
    """Catches a reader that always finds the nearest color: noise, the mean face, flat gray, an untrained generator."""
    images = np.stack([np.asarray(image) for image in painted[0]])
    noise = np.random.default_rng(0).integers(0, 256, (500, 32, 32, 3), dtype=np.uint8)
    mean = images.mean(0, keepdims=True).round().astype(np.uint8)
    args = settings("dcgan", "--size", "32", "--width", "32", "--z-dim", "100")
    untrained = dcgan.Generator(args).apply(dcgan.init_weights)(dcgan.noise(500, args)).detach()
    untrained = ((untrained + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    mixed = (images[:500].astype(int) + images[500:1000]) // 2
    for name, pictures in {
        "noise": noise,
        "mean": mean,
        "untrained": untrained,
        "gray": np.full_like(mean, 128),
    }.items():
        assert faces.read_attributes(pictures)["readable"].mean() <= 0.05, name
    assert faces.read_attributes(mixed.astype(np.uint8))["readable"].mean() < 0.6  # half of one face, half of another
    assert (faces.read_attributes(mixed.astype(np.uint8))["eyes"] == "unreadable").mean() > 0.5


def test_half_a_pair_of_glasses_is_unreadable():
    """Catches a reader that only knows yes and no: rims that are 40 % there."""
    pairs = [
        [np.asarray(faces.paint(5, i, 32, glasses=g)[0]).astype(float) for g in ("with", "without")] for i in range(99)
    ]
    read = faces.read_attributes(np.stack([0.4 * a + 0.6 * b for a, b in pairs]).astype(np.uint8))
    assert (read["glasses"] == "unreadable").mean() > 0.7 and read["readable"].mean() > 0.9


def test_eyes_of_two_colors_are_unreadable():
    """Catches a reader that looks at one eye, or at the mean of both."""
    fill = dict(
        zip(faces.PARTS, ["#e6ecf2", "#202020", "#1c1a22", "#ffe2c8", "#d86060", "#ffe2c8", "#b84850"], strict=False)
    )
    fill |= {"white": "#ffffff", "left": faces.EYES["blue"], "right": faces.EYES["green"], "pupil": "#201a20"}
    odd = np.asarray(faces.draw(32, fill, glasses=False))[None]
    read = faces.read_attributes(odd)
    assert read["eyes"][0] == "unreadable" and read["hair"][0] == "black" and not read["readable"][0]


@pytest.mark.parametrize(("left", "right", "between"), [("red", "yellow", "orange"), ("blue", "red", "purple")])
def test_two_colors_do_not_count_as_the_one_between(left, right, between):
    """Catches a reader of the mean of both eyes: red and yellow would be read as orange."""
    mean = (np.array(ImageColor.getrgb(faces.EYES[left])) + ImageColor.getrgb(faces.EYES[right])) / 2
    assert np.linalg.norm(mean - ImageColor.getrgb(faces.EYES[between])) < 60  # the test's own condition
    fill = dict(
        zip(faces.PARTS, ["#e6ecf2", "#202020", "#1c1a22", "#ffe2c8", "#d86060", "#ffe2c8", "#b84850"], strict=False)
    )
    fill |= {"white": "#ffffff", "left": faces.EYES[left], "right": faces.EYES[right], "pupil": "#201a20"}
    odd = np.asarray(faces.draw(32, fill, glasses=False))[None]
    assert faces.read_attributes(odd)["eyes"][0] == "unreadable"


def test_nothing_is_named_where_the_layout_does_not_fit(painted):
    """Catches colors that are read from what is no face: faces upside down have every color, in the wrong place."""
    images = np.stack([np.asarray(image) for image in painted[0][:300]])[:, ::-1]
    share, read = faces.fit(images)[1], faces.read_attributes(images)
    assert (share < 0.75).mean() > 0.9
    for name in faces.ATTRIBUTES:
        assert (read[name][share < 0.75] == "unreadable").all(), name


def test_painting_is_a_function_of_seed_and_index():
    """Catches hidden state: order of calls and size must not matter, seed and index must."""
    first = faces.paint(3, 5, 32)
    faces.paint(3, 6, 64)
    assert np.array_equal(first[0], faces.paint(3, 5, 32)[0]) and first[1] == faces.paint(3, 5, 96)[1]
    assert not np.array_equal(first[0], faces.paint(4, 5, 32)[0]) and not np.array_equal(
        first[0], faces.paint(3, 6, 32)[0]
    )


def test_attributes_are_uniform_and_independent():
    """Catches a palette entry that is never drawn, and colors that come in pairs."""
    looks = [faces.paint(0, i, 32)[1] for i in range(3000)]
    for name, values in faces.ATTRIBUTES.items():
        counts = np.array([sum(look[name] == value for look in looks) for value in values])
        assert (abs(counts - 3000 / len(values)) < 5 * (3000 / len(values)) ** 0.5).all(), (name, counts)
    assert len({(look["hair"], look["eyes"]) for look in looks}) == len(faces.HAIR) * len(faces.EYES)


def test_a_face_takes_a_few_milliseconds():
    began = time.process_time()
    for i in range(100):
        faces.paint(0, i, 96)
    assert (time.process_time() - began) / 100 < 0.01


def test_command_writes_images_and_labels(tmp_path):
    """Catches labels that do not belong to their image."""
    faces.main([str(tmp_path / "faces"), "--count", "12", "--size", "48"])
    tags = (tmp_path / "faces/tags.csv").read_text().splitlines()
    count, names, *rows = (tmp_path / "faces/cartoon_attr.txt").read_text().splitlines()
    assert len(tags) == len(rows) == int(count) == 12 and len(names.split()) == 28
    for i, (tag, row) in enumerate(zip(tags, rows, strict=True)):
        read = faces.read_attributes(np.asarray(Image.open(tmp_path / f"faces/{i}.png"))[None])
        hair, eyes, skin, glasses = (read[name][0] for name in faces.ATTRIBUTES)
        assert tag == f"{i},{hair} hair {eyes} eyes"
        name, *values = row.split()
        chosen = {n for n, value in zip(names.split(), values, strict=True) if value == "1"}
        assert name == f"{i}.png" and chosen == {f"hair_{hair}", f"eyes_{eyes}", f"face_{skin}", f"{glasses}_glasses"}


def test_command_writes_two_domains(tmp_path, capsys):
    """Catches a face that stands in two folders, its hair dyed: background and clothes, which the hair leaves alone, would agree."""
    faces.main([str(tmp_path / "d"), "--count", "20", "--size", "32", "--domains", "black", "blonde"])
    seen = []
    for name, hair, count in (
        ("trainA", "black", 20),
        ("trainB", "blonde", 20),
        ("testA", "black", 2),
        ("testB", "blonde", 2),
    ):
        images = np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / "d" / name).iterdir())])
        assert len(images) == count and (faces.read_attributes(images)["hair"] == hair).all()
        seen += [(*image[0, 0], *image[-1, 16]) for image in images]
    assert len(set(seen)) == 44
    faces.main([str(tmp_path / "few"), "--count", "3", "--size", "32", "--domains", "red", "white"])
    counts = {folder.name: len(list(folder.iterdir())) for folder in (tmp_path / "few").iterdir()}
    assert counts == {"trainA": 3, "trainB": 3, "testA": 1, "testB": 1}  # a tenth, but never none
    with pytest.raises(SystemExit) as error:  # nothing is overwritten
        faces.main([str(tmp_path / "d")])
    assert error.value.code == 2 and "in use" in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as error:
        faces.main([str(tmp_path / "file/below"), "--count", "2"])
    assert error.value.code == 1 and "cannot write to" in capsys.readouterr().err
