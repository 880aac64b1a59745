"""README's first picture: of each script's last grid (assets/*_faces.png) the first 4 x 4 images, with its name."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
SCRIPTS = ["dcgan", "lsgan", "wgan", "wgan_gp", "sngan", "r3gan"]
SCRIPTS += ["acgan", "cgan_text2img", "infogan", "lightweight_gan", "cyclegan"]
TILE = 4 * 34 + 2  # images of 32 pixels with borders of 2

if __name__ == "__main__":
    strip = Image.new("RGB", (6 * (TILE + 8) - 8, 2 * (TILE + 24) - 4), "white")
    font = ImageFont.load_default(13)
    for i, script in enumerate(SCRIPTS):
        left, top = i % 6 * (TILE + 8), i // 6 * (TILE + 24)
        strip.paste(Image.open(HERE / f"{script}_faces.png").crop((0, 0, TILE, TILE)), (left, top))
        ImageDraw.Draw(strip).text((left, top + TILE + 2), f"{script}.py", "black", font)
    strip.save(HERE / "strip.png", optimize=True)
