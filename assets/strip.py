"""README's pictures of all scripts: from each one's grid, assets/*_anime.png or *_faces.png, the upper left corner."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
SCRIPTS = ["dcgan", "lsgan", "wgan", "wgan_gp", "sngan", "r3gan"]
SCRIPTS += ["acgan", "cgan_text2img", "infogan", "lightweight_gan", "cyclegan"]


def strip(kind: str, side: int) -> Image.Image:
    """Squares of `side` pixels, six in a row, with the names of the scripts."""
    picture = Image.new("RGB", (6 * (side + 8) - 8, 2 * (side + 24) - 4), "white")
    font = ImageFont.load_default(13)
    for i, script in enumerate(SCRIPTS):
        left, top = i % 6 * (side + 8), i // 6 * (side + 24)
        picture.paste(Image.open(HERE / f"{script}_{kind}.png").crop((0, 0, side, side)), (left, top))
        ImageDraw.Draw(picture).text((left, top + side + 2), f"{script}.py", "black", font)
    return picture


if __name__ == "__main__":
    strip("anime", 2 * 66 + 2).save(HERE / "strip.png", optimize=True)  # 2 x 2 faces of 64 pixels, borders of 2
    strip("faces", 4 * 34 + 2).save(HERE / "strip_faces.png", optimize=True)  # 4 x 4 faces of 32 pixels
