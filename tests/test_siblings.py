"""The house rules, by reading the source: order, identical plumbing, small diffs, no dead flags, clean boundaries."""

import ast
import difflib
import io
import math
import re
import tokenize

import pytest
from conftest import ALL, PLAIN, ROOT, SCRIPTS, SPECTRAL

# code lines removed + added against dcgan.py, and those of them in main(): what was there once, and a tenth
DIFF = {"lsgan": 30, "wgan": 107, "wgan_gp": 113, "sngan": 92, "acgan": 200, "infogan": 180, "cgan_text2img": 285}
MAIN_DIFF = {"lsgan": 4, "wgan": 4, "wgan_gp": 4, "sngan": 4, "acgan": 17, "infogan": 8, "cgan_text2img": 17}
MAIN_DIFF |= {"lightweight_gan": 4, "r3gan": 10}  # whose networks are others
RULER = "# --- plumbing: the same text in every script (tests/test_siblings.py) ---"
END = "# --- sampling and training ---"
PLUMBING = ("noise", "autocast", "step", "update_ema", "measure_statistics", "setup", "resume", "build")
LABELLED = ("acgan", "cgan_text2img")  # they import labels.py


@pytest.fixture(params=ALL)
def script(request) -> str:
    return request.param


def source(name: str) -> str:
    return (ROOT / f"{name}.py").read_text(encoding="utf-8")


def code_lines(text: str) -> list[str]:
    """The lines that hold code, without comments at their end."""
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    docstrings = set()  # numbers of lines
    code = set()
    comments = {}  # where they begin in their line
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.start[1]
        if token.type not in skip:
            code |= set(range(token.start[0], token.end[0] + 1))
    lines = text.splitlines()
    return [lines[n - 1][: comments.get(n)].rstrip() for n in sorted(code - docstrings)]


def changed(a: str, b: str) -> int:
    diff = difflib.unified_diff(code_lines(a), code_lines(b), n=0, lineterm="")
    return sum(line[0] in "+-" and line[:3] not in ("+++", "---") for line in diff)


def function(name: str, which: str) -> str:
    """The text of a top-level function or class, with its comments."""
    text = source(name)
    (node,) = [node for node in ast.parse(text).body if getattr(node, "name", None) == which]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


def plumbing(script: str) -> tuple[str, ...]:
    missing = {"r3gan": {"measure_statistics"}}  # no BatchNorm
    missing["cyclegan"] = {"noise", "measure_statistics", "build"}  # no noise either, and four networks
    return tuple(which for which in PLUMBING if which not in missing.get(script, set()))


def imported(name: str) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(source(name))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def test_the_counter_of_code_lines():
    """Catches a counter that lets doc-strings, comments or blank lines in, or strings out."""
    text = '"""doc\nstring"""\n\nx = 1  # why\n# what\n\n\ndef f():\n    "doc"\n    return """a\n    b"""\n'
    assert code_lines(text) == ["x = 1", "def f():", '    return """a', '    b"""']
    assert changed("a = 1\nb = 2\n", "a = 1  # same\nb = 3\nc = 4\n") == 3


def test_every_script_has_a_limit():
    assert set(MAIN_DIFF) == set(SCRIPTS) - {"dcgan"} and set(DIFF) == set(PLAIN) - {"dcgan"}
    models = {path.stem for path in ROOT.glob("*.py") if "class Discriminator" in path.read_text(encoding="utf-8")}
    assert models == set(ALL)


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - {"dcgan"}))
def test_size_of_the_diff(name):
    """Catches drift: `diff dcgan.py X` shows the algorithm and nothing else."""
    assert name in MAIN_DIFF and (name in DIFF or name not in PLAIN), f"{name} has no limit in DIFF or MAIN_DIFF"
    lines = changed(source("dcgan"), source(name))
    assert lines <= DIFF.get(name, math.inf), f"diff dcgan.py {name}.py has {lines} code lines"
    lines = changed(function("dcgan", "main"), function(name, "main"))
    assert lines <= MAIN_DIFF[name], f"{lines} code lines of it are in main()"


def test_plumbing_is_the_same_text(script):
    """Catches a fix that reached one copy only."""
    for which in plumbing(script):
        assert function(script, which) == function("dcgan", which), which
    block = source("dcgan").split(RULER)[1].split(END)[0]
    for which in set(PLUMBING) - set(plumbing(script)):
        block = block.replace(function("dcgan", which) + "\n\n\n", "")
    assert source(script).split(RULER)[1].split(END)[0] == block


@pytest.mark.parametrize("script", [*SPECTRAL, "lightweight_gan"])
def test_spectral_norm_is_the_same_text(script):
    """Catches a mend of sngan.py's layers that did not reach infogan.py's and lightweight_gan.py's."""
    assert function(script, "SNConv2d") == function("sngan", "SNConv2d")
    if script in SPECTRAL:
        assert function(script, "conv") == function("sngan", "conv")


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - {"dcgan"}))
def test_latents_is_the_same_text(name):
    """Catches a mend of --walk or --seeds that reached one copy only."""
    assert function(name, "latents") == function("dcgan", "latents")


def test_order_of_a_script(script):
    """Catches a script that starts from blank instead of from its nearest sibling."""
    text = source(script)
    marks = [
        f'"""{ast.get_docstring(ast.parse(text))[:20]}',
        "import argparse",
        "PRESET = ",
        "def parse_args(",
        "class Generator(",
    ]
    marks += ["class Discriminator(", "def init_weights(", "def d_loss(", "def g_loss(", "def train_step(", RULER]
    marks += [f"def {name}(" for name in plumbing(script)] + [
        END,
        "def main(",
        'if __name__ == "__main__":\n    main()\n',
    ]
    assert all(text.count(mark) == 1 for mark in marks), [mark for mark in marks if text.count(mark) != 1]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places) and text.endswith(marks[-1])


def test_train_step_fits_one_glance(script):
    assert len(function(script, "train_step").splitlines()) <= 30


def test_imports(script):
    """Catches dependencies between scripts, and anything beyond the standard library, torch, torchvision and common."""
    import sys

    roots = {module.split(".")[0] for module in imported(script)}
    ours = {"common", "labels"} if script in LABELLED else {"common"}
    if script == "cyclegan":
        roots -= {"tqdm"}  # the progress bar of --translate
    assert roots <= set(sys.stdlib_module_names) | {"numpy", "torch", "torchvision"} | ours
    assert ours <= roots


def test_common_cannot_change_weights():
    """Catches the method creeping into common.py: what a wrong line could change in the weights belongs in the script."""
    for name in ("common", "labels", "faces"):
        assert not any(re.match(r"torch\.(nn|optim|autograd)", module) for module in imported(name))
        assert not re.search(r"torch\.(nn|optim|autograd)\b|\.backward\(|requires_grad", source(name))


def test_no_dead_flags(script):
    """Catches --clip-value that nothing reads: each flag's attribute is used, in the script or in common.py."""
    text = source(script) + source("common") + source("labels")  # which reads --labels
    flags = re.findall(r'add_argument\(\s*"--([a-z0-9-]+)"', text)
    assert len(flags) == len(set(flags)) > 20
    for flag in set(flags) - ({"sample-mode"} if "batchnorm=False" in source(script) else set()):
        assert re.search(rf"\bargs\.{flag.replace('-', '_')}\b", text), flag


def test_help_texts_are_unique(script):
    """Catches help that was copied along: --sample-interval, "number of image channels"."""
    texts = re.findall(r'help="([^"]+)"', source(script) + source("common"))
    assert len(texts) == len(set(texts)) > 20


def test_device_agnostic(script):
    """Catches code that only runs on one kind of device, and checkpoints that could run code."""
    assert ".cuda()" not in source(script) + source("common")
    assert source("common").count("torch.load(") == source("common").count("weights_only=True") == 1
    loads = source(script).count("torch.load(")
    assert loads == source(script).count("weights_only=True") == (script == "cyclegan")


def test_one_definition_of_architecture(script):
    """Catches a preset or checkpoint flag that does not exist."""
    import importlib

    m = importlib.import_module(script)
    known = vars(m.parse_args(["--path", "x", "--out", "nowhere"])).keys()
    assert set(m.ARCHITECTURE) <= known and m.PRESET.keys() <= known
