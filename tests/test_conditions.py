"""Attributes, captions and codes: they reach images and scores, their losses are as the papers write them."""

import math

import numpy as np
import pytest
import torch
from conftest import GROUPS, condition, module, run, same, scores, settings
from test_training import refused

import common

CONDITIONAL = ["acgan", "cgan_text2img", "infogan"]


def build(script, *flags):
    m, args = module(script), settings(script, *flags)
    torch.manual_seed(0)
    return m, m.Generator(args).apply(m.init_weights), m.Discriminator(args).apply(m.init_weights), args


def log_softmax(row, k):
    return row[k] - math.log(sum(map(math.exp, row)))


@pytest.mark.parametrize("script", CONDITIONAL)
def test_condition_and_noise_both_matter(script):
    """Catches a condition that G ignores or that is applied to the wrong image, and one that drowns the noise."""
    m, G, _, args = build(script, "--size", "32")
    z, (c,) = m.noise(6, args), condition(script, 6, args)
    x, other = G.eval()(z, c), G(z, c.roll(1, 0))
    moved = (c != c.roll(1, 0)).any(1)
    assert moved.any() and ((x != other).flatten(1).any(1) == moved).all()
    assert (G(z.roll(1, 0), c) != x).flatten(1).any(1).all()


@pytest.mark.parametrize("script", ["acgan", "infogan"])
def test_heads_are_logits(script):
    """Catches a softmax before the cross-entropy, after which ten classes cannot fall below 1.46."""
    D, x = build(script)[2], torch.rand(4, 3, 16, 16)
    heads = D.eval()(x)[1]
    assert heads.shape[1] == (5 if script == "acgan" else 10)
    (D.heads if script == "acgan" else D.q).register_forward_hook(lambda layer, inputs, out: 1000 * out)
    torch.testing.assert_close(D(x)[1], 1000 * heads, rtol=1e-4, atol=1e-4)


def test_class_loss():
    """Catches heads cut at wrong columns, a mean over known labels only, and -1 taken for the last class."""
    m = module("acgan")
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.5, 0.1], [1.0, 0.2, -0.7, 0.0, 3.0], [0.0, 0.4, 1.0, 1.5, -2.0]])
    y = torch.tensor([[1, 0], [-1, 2], [-1, -1]])
    rows = logits.tolist()
    expected = -(log_softmax(rows[0][:2], 1) + log_softmax(rows[0][2:], 0) + log_softmax(rows[1][2:], 2)) / 3
    assert m.class_loss(logits, y, GROUPS).item() == pytest.approx(expected, abs=1e-6)
    assert m.class_loss(logits, torch.full((3, 2), -1), GROUPS).item() == 0


def test_class_weight_0_is_the_plain_gan(folder, tmp_path, monkeypatch):
    """Catches class terms that leak into the weights although they are switched off."""
    m = module("acgan")
    flags = ["--steps", "4", "--cls-weight", "0", "--cls-weight-g", "0"]
    a = run("acgan", folder, tmp_path / "a", *flags)
    dcgan = module("dcgan")

    def plain(G, D, opt_G, opt_D, data, args):
        x_real, y = next(data)
        x_fake = G(m.noise(len(x_real), args), y)
        m.step(opt_D, dcgan.d_loss(D(x_real)[0], D(x_fake.detach())[0]))
        D.requires_grad_(False)
        m.step(opt_G, dcgan.g_loss(D(x_fake)[0]))
        D.requires_grad_(True)
        return {}

    monkeypatch.setattr(m, "train_step", plain)
    b = run("acgan", folder, tmp_path / "b", *flags)
    assert all(same(a[name].state_dict(), b[name].state_dict()) for name in ("G", "D", "G_ema"))
    monkeypatch.undo()
    c = run("acgan", folder, tmp_path / "c", *flags[:2])
    assert not same(a["G"].state_dict(), c["G"].state_dict())


@pytest.mark.parametrize("script", ["acgan", "infogan"])
def test_gradients_of_the_heads_reach_G(script):
    """Catches a detach between the classifier and G, which would then learn nothing about conditions."""
    m, G, D, args = build(script, "--size", "32")
    (c,) = condition(script, 8, args)
    q = D(G(m.noise(8, args), c))[1]
    loss = m.class_loss(q, c, args.groups) if script == "acgan" else m.info_loss(q, c, args)[0]
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in G.parameters()) and next(D.net.parameters()).grad.abs().sum() > 0


def test_fakes_of_acgan_teach_no_class():
    """Catches a class loss of D on generated images (its default is on reals only)."""
    m, G, D, args = build("acgan")
    y = torch.zeros(8, 2, dtype=torch.int64)
    seen = []
    original = m.class_loss
    opt_G, opt_D = (torch.optim.SGD(net.parameters(), 0.0) for net in (G, D))
    try:
        m.class_loss = lambda logits, y, groups: seen.append(logits) or original(logits, y, groups)
        m.train_step(G, D, opt_G, opt_D, iter([(torch.rand(8, 3, 16, 16), y)]), args)
    finally:
        m.class_loss = original
    assert len(seen) == 2  # of the reals in D's step, of the fakes in G's
    assert not torch.equal(seen[0], seen[1])


# --- captions ---


def test_gan_cls_losses():
    """Catches halves that are missing or everywhere, a mask that is ignored, smoothing of a wrong term."""
    m = module("cgan_text2img")
    real, fake, wrong = torch.tensor([0.3, -1.2]), torch.tensor([-0.5, 1.5]), torch.tensor([[0.7, -2.0], [0.1, 0.9]])

    def log(x):
        return -math.log(1 + math.exp(-x))

    def right(target):
        return -sum(target * log(r) + (1 - target) * log(-r) for r in real.tolist()) / 2

    other = -sum(log(-f) for f in fake.tolist()) / 4
    first, second = ([-log(-w) / 4 for w in row] for row in wrong.tolist())
    ones, half = torch.ones(2), torch.tensor([0.0, 1.0])
    assert m.d_loss(real, fake, wrong[:1], ones).item() == pytest.approx(right(1) + other + sum(first), abs=1e-6)
    assert m.d_loss(real, fake, wrong[:1], ones, 0.9).item() == pytest.approx(right(0.9) + other + sum(first), abs=1e-6)
    both = right(1) + other + sum(first) + sum(second)
    assert m.d_loss(real, fake, wrong, ones).item() == pytest.approx(both, abs=1e-6)
    assert m.d_loss(real, fake, wrong[:1], half).item() == pytest.approx(right(1) + other + first[1], abs=1e-6)
    assert m.g_loss(fake).item() == pytest.approx(-sum(log(f) for f in fake.tolist()) / 2, abs=1e-6)


@pytest.mark.parametrize("n", range(2, 18))
def test_derangement(n):
    """Catches a roll that leaves equal captions together, and the middle item of an odd batch that meets itself."""
    m = module("cgan_text2img")
    for k in range(1, n + 1):
        for draw in range(5):
            torch.manual_seed(100 * k + draw)
            t = torch.randint(k, (n, 1)) * torch.tensor([1, 7, -2])  # few captions: many are alike
            other, mask = m.derange(t)
            assert sorted(other.tolist()) == list(range(n))
            assert torch.equal(mask.bool(), (t[other] != t).any(1))
            if torch.unique(t, dim=0, return_counts=True)[1].max() <= n // 2:
                assert mask.all()
    t = torch.eye(4)[torch.arange(n) % 4] + 0.5  # embeddings
    assert m.derange(t)[1].sum() == n or n < 4
    assert m.derange(torch.ones(n, 3) + 1e-6 * torch.rand(n, 3))[1].sum() == 0  # one caption, encoded many times


def test_derangement_is_not_the_next_in_the_alphabet():
    """Catches wrong captions that always differ in the last word only: each pair must come up."""
    m, t, met = module("cgan_text2img"), torch.arange(6)[:, None], set()
    for _ in range(200):
        met |= set(enumerate(m.derange(t)[0].tolist()))
    assert len(met) == 30


def test_exchanged_colors_are_another_caption():
    """Catches a bag of words: "black hair blue eyes" against "blue hair black eyes", in G's images and in D's scores."""
    m, _, _, args = build("cgan_text2img")
    captions = ["black hair blue eyes", "blue hair black eyes"]
    args.words = sorted({part for caption in captions for part in m.split(caption)})
    torch.manual_seed(0)
    G, D = m.Generator(args).apply(m.init_weights).eval(), m.Discriminator(args).apply(m.init_weights).eval()
    t, z, x = m.encode(captions, args), m.noise(1, args).expand(2, -1), torch.rand(1, 3, 16, 16).expand(2, -1, -1, -1)
    images, verdicts = G(z, t), D(x, t)
    assert (images[0] - images[1]).abs().max() > 1e-5 and (verdicts[0] - verdicts[1]).abs() > 1e-5


def test_an_encoder_for_each_network(folder, tmp_path):
    """Catches one encoder in both optimizers, an encoder that nobody trains, and padding that counts as a word."""
    state = run("cgan_text2img", folder, tmp_path / "a", "--steps", "1")
    G, D = state["G"], state["D"]
    assert not {id(p) for p in G.parameters()} & {id(p) for p in D.parameters()}
    m, a = module("cgan_text2img"), settings("cgan_text2img")
    torch.manual_seed(0)
    for net, first in ((G, m.Generator(a).apply(m.init_weights)), (D, m.Discriminator(a).apply(m.init_weights))):
        moved = (net.text[0].weight != first.text[0].weight).any(1)
        assert moved[1:].all() and not moved[0] and net.text[0].padding_idx == 0
    short = m.encode(["red hair"], a)
    longer = torch.cat([short, torch.zeros(1, 4, dtype=torch.int64)], 1)
    assert torch.equal(G.text(short), G.text(longer))


def test_embeddings_in_the_place_of_words(folder, tmp_path, capsys):
    """Catches vectors that go to other images than those of their row, and prompts that nothing can encode."""
    m, file = module("cgan_text2img"), tmp_path / "vectors.npy"
    np.save(file, np.random.default_rng(0).normal(size=(24, 5)))
    state = run("cgan_text2img", folder, tmp_path / "run", "--steps", "2", "--embeddings", str(file))
    vectors = torch.from_numpy(np.load(file)).float()
    names, _ = common.find_images(str(folder), "")
    rows = [[int(name.removesuffix(".png"))] for name in names]
    assert torch.equal(state["data"].labels, vectors[torch.tensor(rows)])
    assert state["G"].text[0].in_features == 5
    m.main(["--out", str(tmp_path / "run"), "--sample", "3", "--device", "cpu"])
    assert len(list((tmp_path / "run/generated").glob("*.png"))) == 3
    with pytest.raises(SystemExit):
        m.main(["--out", str(tmp_path / "run"), "--prompt", "red hair", "--device", "cpu"])
    assert "--embeddings" in capsys.readouterr().err
    other = ["--path", str(tmp_path), "--out", str(tmp_path / "other")]  # whose labels these vectors do not describe
    with refused(capsys, 2, "vectors.npy belong to the labels of", "with another --path"):
        m.parse_args(["--finetune", str(tmp_path / "run/last.pt"), *other])
    assert m.parse_args(["--finetune", str(tmp_path / "run/last.pt"), *other, "--embeddings", "new.npy"])
    with pytest.raises(SystemExit):
        run("cgan_text2img", folder, tmp_path / "b", "--embeddings", str(tmp_path / "none.npy"))
    assert "none.npy" in capsys.readouterr().err
    for shape in ((23, 5), (25, 5), (24,)):
        np.save(file, np.zeros(shape))
        with pytest.raises(SystemExit):
            run("cgan_text2img", folder, tmp_path / "b", "--embeddings", str(file))
        assert "expected a row for each of 24" in capsys.readouterr().err


def test_prompts(folder, tmp_path, capsys):
    """Catches prompts in another order than their files, a caption that takes all, and other images for other numbers."""
    m, out = module("cgan_text2img"), tmp_path / "run"
    run("cgan_text2img", folder, out, "--steps", "2")
    (tmp_path / "list.txt").write_text("7,red hair blue eyes\nearly,black hair\n")

    def files(*flags):
        m.main(["--out", str(out), "--device", "cpu", *flags])
        rows = (out / "generated/labels.csv").read_text().splitlines()
        return [row.split(",") for row in rows[1:]]

    assert files("--prompts", str(tmp_path / "list.txt")) == [
        *([f"sample_7_{k}.png", "red hair blue eyes"] for k in range(1, 6)),
        *([f"sample_early_{k}.png", "black hair"] for k in range(1, 6)),
    ]
    assert len(list((out / "generated").glob("*.png"))) == 10
    assert files("--prompt", "red hair", "--prompt", "green eyes", "--sample", "2") == [
        ["sample_1_1.png", "red hair"],
        ["sample_1_2.png", "red hair"],
        ["sample_2_1.png", "green eyes"],
        ["sample_2_2.png", "green eyes"],
    ]
    for flag in ("--grid", "--resume"):  # which draw no prompts
        with refused(capsys, 2, "prompts", flag):
            files("--prompt", "red hair", flag)
    for content in ("7,red hair\n7,black hair\n", "../7,red hair\n", "7,bluish hair\n", "7\n"):
        (tmp_path / "list.txt").write_text(content)
        with pytest.raises(SystemExit):
            files("--prompts", str(tmp_path / "list.txt"))
        assert capsys.readouterr().err.count("error: ") == 1


# --- attributes and codes of --sample ---


def test_sample_labels(folder, tmp_path, capsys):
    """Catches conditions in another order than their rows, and a value of no group that passes in silence."""
    m, out = module("acgan"), tmp_path / "run"
    run("acgan", folder, out, "--steps", "2")
    (tmp_path / "list.txt").write_text("1,red hair blue eyes\n2,black hair green eyes\n3,white hair\n")

    def rows(*flags):
        m.main(["--out", str(out), "--device", "cpu", *flags])
        return (out / "generated/labels.csv").read_text().splitlines()

    given = rows("--sample", "5", "--sample-labels", str(tmp_path / "list.txt"))
    expected = ["image,eyes,hair", "00000.png,blue,red", "00001.png,green,black", "00002.png,,white"]
    assert given[:5] == [*expected, "00003.png,blue,red"]
    drawn = [row.split(",")[1:] for row in rows("--sample", "200")[1:]]
    counts = [sum(value in row for row in drawn) for value in ("blue", "green", "black", "red", "white")]
    assert sum(counts[:2]) == sum(counts[2:]) == 200 and min(counts) > 40
    (tmp_path / "list.txt").write_text("1,purple hair\n")
    with pytest.raises(SystemExit):
        rows("--sample", "1", "--sample-labels", str(tmp_path / "list.txt"))
    message = capsys.readouterr().err
    assert "purple" in message and "hair" in message


def test_codes():
    """Catches codes out of range, a category that is not one-hot or not alike often, and the wrong targets."""
    m, args = module("infogan"), settings("infogan", "--categories", "5", "--codes", "3")
    torch.manual_seed(0)
    c = m.draw_codes(4000, args)
    assert c.shape == (4000, 8) and set(c[:, :5].unique().tolist()) == {0, 1} and (c[:, :5].sum(1) == 1).all()
    assert (c[:, :5].mean(0) - 0.2).abs().max() < 0.03
    assert c[:, 5:].abs().max() <= 1 and (c[:, 5:].std(0) - 3**-0.5).abs().max() < 0.02
    assert c[:, 5:].mean(0).abs().max() < 0.04 and np.corrcoef(c[:, 5:].T).min() > -0.06
    row = m.describe(c[0].tolist(), args)
    assert int(row["category"]) == c[0, :5].argmax() and float(row["code3"]) == pytest.approx(c[0, 7].item(), abs=1e-4)
    _, category, continuous = m.info_loss(10 * c, c, args)
    assert category < 0.01 and continuous.item() == pytest.approx(81 / 3, rel=0.05)
    exact = torch.cat([c[:, :5] * 100, c[:, 5:]], 1)
    assert m.info_loss(exact, c, args)[0].item() == pytest.approx(0, abs=1e-6)
    grid = m.grid_codes(args).view(8, 8, 8)
    assert grid[0, :, :5].argmax(1).tolist() == [0, 1, 2, 3, 4, 0, 1, 2] and (grid[:4, :, 5:] == 0).all()
    for r in range(4, 8):  # one number is swept, the rest stands still
        swept = [k for k in range(8) if grid[r, :, k].unique().numel() > 1]
        assert (grid[r, :, :5] == torch.eye(5)[r % 5]).all()  # and each row has a category of its own
        assert swept == [5 + (r - 4) % 3] and torch.allclose(grid[r, :, swept[0]], torch.linspace(-1, 1, 8))


def test_infogan_finds_a_code_that_is_plain_to_see():
    """Catches targets of other images and a sign: G and Q, without a D that minds, must learn to send the category."""
    m, args = module("infogan"), settings("infogan", "--categories", "4", "--codes", "1", "--z-dim", "1")
    torch.manual_seed(0)
    G, D = m.Generator(args).apply(m.init_weights), m.Discriminator(args).apply(m.init_weights)
    opt_G, opt_D = torch.optim.Adam(G.parameters(), 2e-3), torch.optim.Adam(D.parameters(), 2e-3)
    images = iter(lambda: torch.rand(16, 1, 1, 1).expand(-1, 3, 16, 16) * 2 - 1, None)
    first = m.train_step(G, D, opt_G, opt_D, images, args)["category"].item()
    for _ in range(150):
        metrics = m.train_step(G, D, opt_G, opt_D, images, args)
    assert first > 1 and metrics["category"].item() < 0.3


def test_conditions_of_the_other_network_are_not_touched():
    """Catches D's step that trains G's text encoder, or the other way."""
    m, G, D, args = build("cgan_text2img")
    t = condition("cgan_text2img", 8, args)[0]
    before = [net.text[0].weight.clone() for net in (G, D)]
    opt_G, opt_D = torch.optim.SGD(G.parameters(), 0.0), torch.optim.SGD(D.parameters(), 1.0)
    m.train_step(G, D, opt_G, opt_D, iter([(torch.rand(8, 3, 16, 16), t[:, None])]), args)
    assert torch.equal(G.text[0].weight, before[0]) and not torch.equal(D.text[0].weight, before[1])
    assert scores("cgan_text2img", D, torch.rand(2, 3, 16, 16), (t[:2],)).shape == (2,)
