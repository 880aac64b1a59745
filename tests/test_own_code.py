"""The lines of docs/runs.md, "In your own code" and "ONNX", run as they stand."""

import re

import pytest
import torch
from conftest import ALL, ROOT, module, run

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs/runs.md").read_text(encoding="utf-8")
LOAD, *OTHERS, EXPORT = re.findall(r"```python\n(.*?)```", PAGE, re.S)
assert f"```python\n{LOAD}```" in README  # the same lines
LOAD, DRAW = LOAD[: LOAD.index("with torch")], LOAD[LOAD.index("with torch") :]


@pytest.fixture(scope="module", params=ALL)
def loaded(request, folder, pair, tmp_path_factory):
    """A short run of each script, and the names that the page's lines leave behind, with the script in place of sngan."""
    script, here = request.param, tmp_path_factory.mktemp("own")
    state = run(script, pair if script == "cyclegan" else folder, here / "runs/anime", "--steps", "2")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        names = {}
        lines = LOAD.replace("sngan", script)
        draw = DRAW
        for other in OTHERS:
            if other.startswith(f"# {script}.py"):
                draw = "with torch.no_grad():\n" + "".join(f"    {line}\n" for line in other.splitlines())
                draw = (
                    draw.replace('"red"', '"white"')
                    .replace('"blue"', '"green"')
                    .replace("red hair blue", "white hair green")
                )
                if script == "cyclegan":
                    lines = lines[: lines.index("G.load_state_dict")]  # of two generators, which are loaded below
        exec(lines + draw, names)
    return script, state, names


def test_the_lines_draw_what_the_script_draws(loaded):
    """Catches lines that were true once, another network than the average, and one in training mode."""
    script, state, names = loaded
    G, args, images = names["G"], names["args"], names["images"]
    assert len(OTHERS) == 4 and images.shape == (16, 3, args.size, args.size)
    average = state["G_ema"]["AB"] if script == "cyclegan" else state["G_ema"]
    assert not G.training and all(
        torch.equal(a, b) for a, b in zip(G.state_dict().values(), average.state_dict().values(), strict=True)
    )
    if script == "acgan":
        assert module(script).decode(names["y"][0].tolist(), args.groups) == {"hair": "white", "eyes": "green"}


def test_export(loaded, tmp_path, monkeypatch):
    """Catches layers that cannot be exported, one number of images only, and another output than torch's."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    script, _, names = loaded
    monkeypatch.chdir(tmp_path)
    G, args = names["G"], names["args"]
    inputs = [torch.randn(5, args.z_dim)] if script != "cyclegan" else [torch.rand(5, 3, args.size, args.size) * 2 - 1]
    inputs += [
        names[name].expand(5, -1) if len(names[name]) == 1 else names[name][:5] for name in "ytc" if name in names
    ]
    lines = EXPORT
    if len(inputs) == 2 or script == "cyclegan":  # other inputs than z alone
        names["two"] = tuple(x[:2] for x in inputs)
        lines = lines.replace("(torch.randn(2, args.z_dim),)", "two").replace("[{0: n}]", "[{0: n}] * len(two)")
    exec(lines, names)
    session = onnxruntime.InferenceSession("generator.onnx")
    for n in (1, 5):
        given = {found.name: x[:n].numpy() for found, x in zip(session.get_inputs(), inputs, strict=True)}
        (images,) = session.run(None, given)
        with torch.no_grad():
            expected = G(*(x[:n] for x in inputs))
        assert abs(images - expected.numpy()).max() < 1e-4
