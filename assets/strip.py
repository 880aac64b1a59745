"""README's two strips: a few samples of each script, with its name.

    python assets/strip.py

strip.png takes them from the last grids on painted faces (assets/*_faces.png), anime_strip.png from those on anime
faces (assets/anime_*.png).
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
SCRIPTS = ["dcgan", "lsgan", "wgan", "wgan_gp", "sngan", "r3gan"]
SCRIPTS += ["acgan", "cgan_text2img", "infogan", "lightweight_gan", "cyclegan"]


def draw_strip(grids: list[Path], tile: int) -> Image.Image:
    """The upper left `tile` pixels of each grid, six in a row, with the names of the scripts below."""
    strip = Image.new("RGB", (6 * (tile + 8) - 8, 2 * (tile + 24) - 4), "white")
    font = ImageFont.load_default(13)
    for i, (script, grid) in enumerate(zip(SCRIPTS, grids, strict=True)):
        left, top = i % 6 * (tile + 8), i // 6 * (tile + 24)
        strip.paste(Image.open(grid).crop((0, 0, tile, tile)), (left, top))
        ImageDraw.Draw(strip).text((left, top + tile + 2), f"{script}.py", "black", font)
    return strip


if __name__ == "__main__":
    # 4 x 4 images of 32 pixels, or 2 x 2 of 64 pixels, with borders of 2
    painted = draw_strip([HERE / f"{script}_faces.png" for script in SCRIPTS], 4 * 34 + 2)
    painted.save(HERE / "strip.png", optimize=True)
    anime = draw_strip([HERE / f"anime_{script}.png" for script in SCRIPTS], 2 * 66 + 2)
    anime.save(HERE / "anime_strip.png", optimize=True)
