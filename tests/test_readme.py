"""The README and the pages behind it: commands parse, files they name are there, numbers about files are right."""

import csv
import difflib
import importlib
import re
import shlex
import statistics

import pytest
from conftest import ALL, ROOT
from test_siblings import changed, code_lines, source

README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = sorted([*ROOT.glob("assets/*.md"), *ROOT.glob("docs/*.md")])
PAGES = ["README.md"] + [f"{file.parent.name}/{file.name}" for file in FILES]
# flags that begin with a checkpoint
STARTS = {"--resume", "--finetune", "--sample", "--seeds", "--walk", "--grid", "--prompt", "--prompts", "--translate"}
TEXT = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)


def commands() -> list[str]:
    """What starts one of our programs: in fenced blocks and `code` of all pages, and in the scripts' doc-strings."""
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", TEXT, re.S)
    blocks += [importlib.import_module(script).__doc__ for script in ALL]
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"`(python [^`]*)`", TEXT)]
    return sorted({line for line in lines if re.match(r"(python|torchrun)\b.*\.py", line)})


def test_there_are_commands():
    assert len(commands()) >= 8


@pytest.mark.parametrize("command", commands())
def test_command_parses(command, tmp_path, monkeypatch, capsys):
    """Catches stale documentation: a flag that was renamed or dropped."""
    words = shlex.split(command)
    k = next(k for k, word in enumerate(words) if word.endswith(".py"))
    program, flags = words[k].removesuffix(".py"), words[k + 1 :]
    assert (ROOT / f"{program}.py").exists()
    if "/" in program:
        return
    monkeypatch.chdir(tmp_path)
    m = importlib.import_module(program)
    if program not in ALL:
        with pytest.raises(SystemExit) as error:  # parsed to the end: only then is help printed without an error
            m.main([*flags, "--help"])
        assert error.value.code == 0
        known = capsys.readouterr().out
        assert all(flag in known for flag in flags if flag.startswith("--"))
    elif STARTS & set(flags) and "--weights" not in flags:
        with pytest.raises(SystemExit):  # there is no run here; the flags themselves are right
            m.parse_args(flags)
        assert "no checkpoint" in capsys.readouterr().err
    else:
        m.parse_args(flags)


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_exist(name):
    """Catches broken links, to files and to headings, and pictures too heavy for a page."""
    page = ROOT / name
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            file, _, heading = target.partition("#")
            path = (page.parent / file).resolve() if file else page
            assert path.exists(), target
            assert path.stat().st_size < {".png": 600_000, ".gif": 3_000_000}.get(path.suffix, 1e6), target
            if heading:
                lines = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.M)
                assert heading in [re.sub(r"[^\w\- ]", "", line).lower().replace(" ", "-") for line in lines], target


def test_the_excerpt_of_a_diff_is_true():
    """Catches an excerpt of files as they were once."""
    (excerpt,) = re.findall(r"```diff\n(.*?)```", README, re.S)
    a, b = (source(name).splitlines(keepends=True) for name in ("dcgan", "lsgan"))
    diff = "".join(difflib.unified_diff(a, b, n=3))
    assert excerpt in diff


def test_no_picture_is_left_over():
    """Catches a picture that no page shows any more."""
    shown = {name.split("/")[-1] for name in re.findall(r"\]\(([^)]+)\)", TEXT)}
    assert {file.name for file in (ROOT / "assets").glob("*.[pg][ni][gf]")} <= shown


def runs_on_anime() -> list[dict[str, str]]:
    with open(ROOT / "assets/anime.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", runs_on_anime(), ids=lambda row: row["run"])
def test_the_page_of_the_anime_faces_agrees_with_its_scores(row):
    """Catches a figure, or a command, that was true of another run."""
    page = (ROOT / "assets/anime.md").read_text(encoding="utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith(f"| `{row['command']}` |")]
    cells = line.strip("| ").split(" | ")[1:]
    assert cells[:2] == [f"{int(row['steps']):,}", f"{float(row['cpu_seconds']) / 60:.0f}"]
    assert cells[2:] == [f"{float(row[score]):.2f}" for score in ("FD", "precision", "recall", "diversity", "nearest")]


def test_code_lines_on_the_pages():
    """Catches a comparison with other projects that counts an older, shorter version of ours."""
    count = {script: len(code_lines(source(script))) for script in [*ALL, "common"]}
    for script in ("dcgan", "wgan_gp", "acgan"):
        (line,) = [line for line in README.splitlines() if line.startswith(f"| `{script}.py` |")]
        assert f"| {count[script]} + common.py" in line
    page = (ROOT / "assets/anime.md").read_text(encoding="utf-8")
    assert f"ours: {count['dcgan']}, and {count['common']} in `common.py`" in " ".join(page.split())
    least, *_, most = sorted(count[script] for script in ALL)
    assert f"| {least} to {most}, and `common.py` {count['common']} |" in page


def test_requirements_are_few():
    """Catches a dependency that nobody asked for."""
    names = {re.split(r"[<>=~]", line)[0] for line in (ROOT / "requirements.txt").read_text().split()}
    assert names == {"torch", "torchvision", "numpy", "pillow", "tensorboard", "tqdm", "pytest"}


def scores(script: str) -> list[str]:
    """Readable faces in per cent, and combinations: mean and standard deviation of the preset's seeds that were scored."""
    with open(ROOT / "assets/experiments.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if re.fullmatch(rf"{script}-\d", row["experiment"])]
    assert rows and all(row["readable"] for row in rows), f"assets/experiments.csv needs scores of {script}-0"
    assert all(row["command"].split(" --seed ")[0] == f"python {script}.py" for row in rows)
    columns = [[float(row["readable"]) * 100 for row in rows], [float(row["combos"]) for row in rows]]
    return [f"{statistics.mean(v):.0f}" + (f" ± {statistics.stdev(v):.0f}" if len(v) > 1 else "") for v in columns]


@pytest.mark.parametrize("script", ALL)
def test_table_agrees_with_the_files(script):
    """Catches a figure that was true of an earlier version: of the diff, of the scores, or of the minutes."""
    rows = [line for line in README.splitlines() if line.startswith(f"| [`{script}.py`]({script}.py) |")]
    assert len(rows) == 1, f"the README's table needs one row for {script}.py: see CONTRIBUTING.md, step 7"
    (row,) = rows
    _, paper, _, lines, command, result, minutes = row.strip("| ").split(" | ")
    doc = " ".join(importlib.import_module(script).__doc__.split())
    assert paper.split("/")[-1].rstrip(")") in doc  # its arXiv number
    assert lines == (str(changed(source("dcgan"), source(script))) if script != "dcgan" else "-")
    assert command == f"`python {script}.py`"
    assert f" {minutes} minutes on two CPU cores, torch 2.14.1" in doc
    if script == "cyclegan":  # another task, read by another program
        assert all(share in doc for share in re.findall(r"\d+ %", result))
        return
    readable, combos = scores(script)
    readable = readable.replace(" ±", " % ±") if "±" in readable else f"{readable} %"
    assert result.startswith(f"{readable} ({combos})")
    assert f"of 2,000 samples {readable} can be read as a face" in doc
    if "combinations" in doc.split("Result of")[1]:
        assert f"with {combos} of the 132 combinations" in doc
