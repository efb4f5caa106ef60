"""A photograph of a species: ground, foliage, flowers, light, camera."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .flower import Pose, draw_flower
from .species import CENTRE_COLOURS, PALETTE

GROUNDS = {
    "meadow": (0.36, 0.48, 0.20),
    "shade": (0.11, 0.17, 0.10),
    "soil": (0.38, 0.30, 0.22),
    "sky": (0.62, 0.74, 0.88),
    "hedge": (0.22, 0.34, 0.16),
}


def render(species, rng: np.random.Generator, size: int = 160) -> Image.Image:
    """One photograph of ``species``, RGB, size x size pixels (at least 32).

    ``rng`` decides what differs from photograph to photograph.
    """
    light = rng.uniform(0, 2 * np.pi)  # where the sun stands in the image plane
    canvas = background(rng, size)
    count = int(rng.integers(1, species.heads + 1))
    radii = np.sort(rng.uniform(0.12, 0.24, count))  # smaller ones are further back
    radii[-1] = rng.uniform(0.2, 0.48)
    angle, gap = rng.uniform(0, 2 * np.pi, count), (radii + radii[-1]) * 0.95
    gap[-1] = 0  # the main flower, near the middle; the others stand around it
    centres = np.stack([np.cos(angle) * gap, np.sin(angle) * gap], 1)
    centres += rng.normal(0.5, 0.12, 2)
    canvas = foliage(canvas, species, rng, centres)
    age, tilt, direction = rng.random(), rng.normal(0, 0.6), rng.uniform(0, 2 * np.pi)
    # Plain floats from here on: a numpy float64 would turn every array into float64.
    positions = zip((centres * size).tolist(), (radii * size).tolist(), strict=True)
    for (x, y), radius in positions:
        pose = Pose(
            centre=(x, y),
            radius=radius,
            tilt=min(abs(tilt + rng.normal(0, 0.15)), 1.0),
            direction=direction + rng.normal(0, 0.2),
            turn=rng.uniform(0, 2 * np.pi),
            light=light,
            age=age,
        )
        draw_flower(canvas, species, rng, pose)
    if rng.random() < 0.15:
        canvas = blade(canvas, rng)
    return develop(canvas, rng, light)


def smooth_noise(rng, size: int, cells: int) -> np.ndarray:
    """Cloudy noise, float32 (size, size), about -1.5..1.5, `cells` blobs across."""
    grid = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.BICUBIC))


def to_image(canvas: np.ndarray) -> Image.Image:
    """From floats in 0..1 (what is beyond is cut off) to an RGB image."""
    return Image.fromarray((np.clip(canvas, 0, 1) * 255).astype(np.uint8))


def to_ink(colour, gain: float = 1.0) -> tuple[int, ...]:
    """From floats in 0..1 to what ImageDraw wants: integers in 0..255."""
    return tuple(int(255 * min(max(part * gain, 0), 1)) for part in colour)


def draw_leaf(draw, base, shape, colour, gain: float) -> None:
    """A leaf in two halves, the one away from the light darker, with a midrib.

    ``shape``: its angle in radians, its length in pixels, its breadth as a fraction.
    """
    angle, length, breadth = shape
    along = np.linspace(0, 1, 12)
    width = breadth * length * 2.2 * along**0.8 * (1 - along) ** 0.9
    sag = 0.12 * length * along**2
    ahead = np.array([np.cos(angle), np.sin(angle)])
    aside = np.array([-ahead[1], ahead[0]])
    rib = base + along[:, None] * length * ahead + sag[:, None] * aside
    for side, tone in ((1, 1.0), (-1, 0.78)):
        edge = rib + side * width[:, None] * aside
        outline = np.concatenate([rib, edge[::-1]])
        draw.polygon(outline.ravel().tolist(), fill=to_ink(colour, gain * tone))
    line = max(1, round(length * 0.012))
    draw.line(rib.ravel().tolist(), fill=to_ink(colour, gain * 1.35), width=line)


def background(rng, size: int) -> np.ndarray:
    """What is out of focus: float32 (size, size, 3). Drawn small, for it is blurred."""
    small = 64
    scene = rng.choice(["meadow", "shade", "soil", "sky", "hedge"])
    ground = np.float32(GROUNDS[scene]) * rng.uniform(0.7, 1.25)
    clouds = 1 + 0.22 * smooth_noise(rng, small, 4) + 0.1 * smooth_noise(rng, small, 12)
    image = to_image(ground * clouds[..., None])
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 26))):
        green = (rng.uniform(0.12, 0.42), rng.uniform(0.25, 0.55), rng.uniform(0, 0.25))
        upright = scene == "meadow"
        angle = rng.normal(-1.57, 0.3) if upright else rng.uniform(0, 6.28)
        base, length = rng.uniform(-5, 69, 2), rng.uniform(12, 45)
        gain = rng.uniform(0.5, 1.2)
        draw_leaf(draw, base, (angle, length, rng.uniform(0.04, 0.2)), green, gain)
    hues = np.array(PALETTE)
    turn = np.linspace(0, 2 * np.pi, 40)
    for _ in range(int(rng.integers(2, 16))):  # other flowers, far away
        wave = np.cos(turn * rng.integers(3, 9) / 2 + rng.uniform(0, 6))
        reach = rng.uniform(1.5, 11) * (0.5 + 0.5 * np.abs(wave))
        middle, ink = rng.uniform(0, small, 2), hues[rng.integers(len(hues))]
        outline = middle + np.stack([np.cos(turn), np.sin(turn)], 1) * reach[:, None]
        ink = to_ink(ink, rng.uniform(0.5, 1.05))
        draw.polygon(outline.ravel().tolist(), fill=ink)
        x, y, half = *middle, 0.25 * reach.max()
        eye = to_ink(CENTRE_COLOURS[int(rng.integers(len(CENTRE_COLOURS)))])
        draw.ellipse((x - half, y - half, x + half, y + half), fill=eye)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(1, 3)))
    image = image.resize((size, size), Image.BICUBIC)
    return np.asarray(image, np.float32) / 255


def foliage(canvas, species, rng, centres) -> np.ndarray:
    """The flowers' own stems and leaves, a little behind the plane of focus."""
    size = len(canvas)
    image = to_image(canvas).resize((2 * size, 2 * size))  # 2 x: smooth edges
    draw = ImageDraw.Draw(image)
    root = np.array([rng.normal(0.5, 0.25), 1.1]) * 2 * size
    gain = rng.uniform(0.6, 1.15)
    for centre in centres * 2 * size:
        bend = rng.normal(0, 0.12) * size
        along = np.linspace(0, 1, 9)[:, None]
        stem = centre + along * (root - centre) + np.sin(along * np.pi) * [bend, 0]
        for tone, thick in ((0.75, 0.022), (1.1, 0.012)):
            ink = to_ink(species.leaf_colour, gain * tone)
            draw.line(stem.ravel().tolist(), ink, round(2 * size * thick), "curve")
        for _ in range(int(rng.integers(1, 5))):
            base = stem[int(rng.integers(2, 9))]
            angle, length = rng.normal(-1.57, 1.1), rng.uniform(0.25, 0.6) * 2 * size
            tone = gain * rng.uniform(0.7, 1.2)
            shape = angle, length, species.leaf_breadth
            draw_leaf(draw, base, shape, species.leaf_colour, tone)
    image = image.resize((size, size), Image.BOX)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.6) * size / 160))
    return np.asarray(image, np.float32) / 255


def blade(canvas, rng) -> np.ndarray:
    """A blade of grass before the lens, far out of focus."""
    size = len(canvas)
    mask = Image.new("L", (size, size))
    foot, top = rng.uniform(0, size, 2)
    wide = rng.uniform(0.02, 0.07) * size
    outline = (foot - wide, size, foot + wide, size, top, rng.uniform(-0.2, 0.5) * size)
    ImageDraw.Draw(mask).polygon(outline, fill=210)
    mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.012, 0.03) * size))
    cover = np.asarray(mask, np.float32)[..., None] / 255
    green = np.float32((rng.uniform(0.2, 0.45), rng.uniform(0.35, 0.55), 0.15))
    return canvas + cover * (green - canvas)


def develop(canvas, rng, light) -> Image.Image:
    """Light, white balance, contrast, focus and grain: the camera's part."""
    size = len(canvas)
    small = 48  # light changes slowly, so a small grid will do, enlarged
    line = np.linspace(-1, 1, small, dtype=np.float32)
    slope = rng.uniform(0, 0.3)
    lit = 1 + slope * (np.cos(light) * line + np.sin(light) * line[:, None])
    lit += 0.13 * smooth_noise(rng, small, 5)
    dapple = np.clip(smooth_noise(rng, small, 6) + rng.uniform(-0.3, 0.8), 0, 1)
    lit *= 1 - rng.uniform(0, 0.6) * dapple  # the shade of other plants
    lit = Image.fromarray(lit.astype(np.float32)).resize((size, size), Image.BICUBIC)
    warm, tint = rng.uniform(-0.22, 0.22), rng.normal(0, 0.04)  # evening, blue shade
    balance = np.array([1 + warm, 1 + tint, 1 - warm]) * rng.uniform(0.75, 1.5)
    canvas = canvas * np.asarray(lit)[..., None]
    canvas *= balance.astype(np.float32)
    contrast = rng.uniform(0.95, 1.3)
    canvas = np.maximum(contrast * (canvas - 0.42) + 0.42, 0)
    # Film: bright colours run softly into white instead of being cut off.
    canvas = 1.08 * (1 - np.exp(-1.65 * canvas))
    canvas += 0.011 * rng.standard_normal((size, size, 1), dtype=np.float32)
    image = to_image(canvas)
    if rng.random() < 0.3:
        blur = rng.uniform(0.4, 1.3) * size / 160
        image = image.filter(ImageFilter.GaussianBlur(blur))
    return image
