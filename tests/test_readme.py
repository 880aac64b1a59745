"""The README: every command parses, every file it names is there, every number about files is right."""

import importlib
import re
import shlex

import pytest
from conftest import ALL, ROOT
from test_siblings import BUDGET

README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """Lines of the fenced blocks, and of the scripts' doc-strings, that start one of our programs."""
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", README, re.S)
    blocks += [importlib.import_module(script).__doc__ for script in ALL]
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
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
    elif {"--resume", "--sample", "--prompt", "--prompts", "--translate"} & set(flags) and "--weights" not in flags:
        with pytest.raises(SystemExit):  # there is no run here; the flags themselves are right
            m.parse_args(flags)
        assert "no checkpoint" in capsys.readouterr().err
    else:
        m.parse_args(flags)


def test_links_and_pictures_exist():
    """Catches broken links, and pictures too heavy for a README."""
    for target in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", README):
        name = target[0] or target[1]
        if not name.startswith("http"):
            assert (ROOT / name).exists(), name
            assert (ROOT / name).suffix != ".png" or (ROOT / name).stat().st_size < 600_000, name


def test_requirements_are_few():
    """Catches a dependency that nobody asked for."""
    names = {re.split(r"[<>=~]", line)[0] for line in (ROOT / "requirements.txt").read_text().split()}
    assert names == {"torch", "torchvision", "numpy", "pillow", "tensorboard", "tqdm", "pytest"}


def test_every_script_is_in_the_table():
    for script in ALL:
        assert f"[`{script}.py`]({script}.py)" in README
    assert set(BUDGET) >= set(ALL)
