"""A garden of invented flowers: photographs for when Flowers-102 is not at hand.

One idea: a species is a handful of *genes* (petal outline, whorls, markings, centre)
and a picture is those genes drawn under random *circumstances* (pose, light, age,
background). Four neighbouring species are sisters: they form a genus, share all genes
of shape and differ only in petal colour, markings, petal count and the colour of the
centre, so that about half of a good classifier's mistakes are between sisters.

Petals are never drawn one by one. Around the centre the angle is cut into as many
sectors as there are petals; every pixel looks up which petal it is in, and where, and
one numpy expression shades them all. Two such passes per whorl, the lower and
the upper one of two neighbours, let petals overlap.
"""

import os
import sys
import types
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SISTERS = 4  # species per genus
SPLITS = ("train", "val", "test")  # a split's place here is part of its pictures' seed

# A pool may not start: no semaphores, no memory, or inside a daemon process.
POOL_TROUBLE = (OSError, BrokenProcessPool, AssertionError)

# A small shared palette: colour alone must not tell species apart.
PALETTE = {
    "white": (0.95, 0.94, 0.90),
    "yellow": (0.96, 0.82, 0.16),
    "orange": (0.95, 0.52, 0.12),
    "red": (0.82, 0.12, 0.14),
    "pink": (0.94, 0.58, 0.70),
    "magenta": (0.80, 0.16, 0.52),
    "violet": (0.50, 0.28, 0.74),
    "blue": (0.34, 0.44, 0.86),
}
# What sets sisters apart: (eye radius, tip blend, veins, spots, bands), each in 0..1.
# Mostly fine patterns: they vanish when a picture is made small.
MARKINGS = (
    (0.0, 0.0, 0.1, 0.0, 0.0),
    (0.42, 0.0, 0.1, 0.0, 0.0),
    (0.0, 0.7, 0.1, 0.0, 0.0),
    (0.0, 0.0, 0.95, 0.0, 0.0),
    (0.0, 0.0, 0.1, 0.85, 0.0),
    (0.0, 0.0, 0.1, 0.0, 0.5),
    (0.36, 0.0, 0.9, 0.0, 0.0),
    (0.0, 0.5, 0.1, 0.85, 0.0),
)
# Kind of centre: how often it grows, and its least and greatest radius.
CENTRES = {
    "disc": (0.3, 0.2, 0.36),
    "stamens": (0.35, 0.1, 0.16),
    "trumpet": (0.15, 0.28, 0.4),
    "button": (0.2, 0.1, 0.2),
}
CENTRE_COLOURS = (
    (0.93, 0.72, 0.10),
    (0.80, 0.48, 0.08),
    (0.34, 0.18, 0.08),
    (0.58, 0.66, 0.20),
)
GROUNDS = {
    "meadow": (0.36, 0.48, 0.20),
    "shade": (0.11, 0.17, 0.10),
    "soil": (0.38, 0.30, 0.22),
    "sky": (0.62, 0.74, 0.88),
    "hedge": (0.22, 0.34, 0.16),
}
STEMS = """Aur Bel Cor Dal Elv Fal Gal Hes Ist Jul Kor Lum Mir Nev Ond Pel Quin Ros Sil
    Tam Umb Val Xan Ylv Zor"""
ENDINGS = "elia issa andra onia aria intha avia ulina etta oria"
EPITHETS = """minor borealis gracilis montana silvatica pratensis vernalis elegans
    palustris nobilis autumnalis maritima alpina mirabilis tenella rustica robusta
    splendens officinalis pumila lucida repens procera modesta amoena major"""


@dataclass(frozen=True)
class Species:
    """Genes of one species. Lengths are fractions of the flower's radius."""

    name: str
    petals: int  # per whorl
    whorls: int  # rings of petals, the outer one first
    breadth: float  # half-width of a petal
    belly: float  # exponent: small = broad at the base, large = spoon-shaped
    point: float  # exponent: small = blunt tip, large = pointed tip
    notch: float  # depth of the cleft in a petal's tip
    ruffle: float  # waviness of a petal's edge
    twist: float  # pinwheel curl, radians
    cup: float  # how far the petals rise, 0 = flat
    crease: float  # roundness across a petal; sign: gutter or ridge
    centre: str  # 'disc', 'stamens', 'trumpet' or 'button'
    centre_size: float
    centre_colour: tuple[float, float, float]
    heads: int  # most flowers in one picture
    leaf_breadth: float
    leaf_colour: tuple[float, float, float]
    colour: tuple[float, float, float]  # of the petals
    tip_colour: tuple[float, float, float]
    eye_colour: tuple[float, float, float]
    eye: float  # radius of the coloured eye
    tips: float  # strength of the tip colour; so are the next three of their pattern
    veins: float
    spots: float
    bands: float


def species_name(k: int, seed: int = 0) -> str:
    """Invented Latin name of species `k`, such as 'Belonia minor'.

    Names differ for all k < 1000; the first word is the genus, shared by four sisters.
    Raises ValueError if k is negative.
    """
    if k < 0:
        raise ValueError(f"species are numbered from 0: k must be >= 0, not {k}")
    genus, sister = divmod(k, SISTERS)
    # Every pair of stem and ending once, in an order of this garden's own.
    genera = [stem + ending for stem in STEMS.split() for ending in ENDINGS.split()]
    order = np.random.default_rng([seed, 1]).permutation(len(genera))
    epithets = np.random.default_rng([seed, 2, genus]).permutation(EPITHETS.split())
    return f"{genera[order[genus % len(genera)]]} {epithets[sister]}"


def species(k: int, seed: int = 0) -> Species:
    """Genes of species `k` (0, 1, ...) of the garden `seed`; always the same.

    Raises ValueError if k is negative.
    """
    if k < 0:
        raise ValueError(f"species are numbered from 0: k must be >= 0, not {k}")
    genus, sister = divmod(k, SISTERS)
    rng = np.random.default_rng([seed, 3, genus])  # shared by the sisters
    centre = str(rng.choice(list(CENTRES), p=[odds for odds, _, _ in CENTRES.values()]))
    many = centre == "disc"  # daisies have many narrow petals
    petals = int(rng.integers(11, 24) if many else rng.choice([3, 4, 5, 5, 6, 6, 8]))
    whorls = int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))
    crowding = 2.6 / petals  # half-width at which neighbours touch
    colours = list(PALETTE)
    pair = rng.permutation(colours)[:2]  # a genus flowers in two colours
    markings = rng.permutation(len(MARKINGS))
    own = np.random.default_rng([seed, 4, k])  # a sister's own
    eye, tips, veins, spots, bands = MARKINGS[markings[sister]]
    others = [colour for colour in colours if colour != pair[sister % 2]]
    tip_colour, eye_colour = own.permutation(others)[:2]
    return Species(
        name=species_name(k, seed),
        petals=petals + (int(own.integers(-3, 4)) if many else sister % 2),
        whorls=whorls,
        breadth=float(min(crowding * rng.uniform(0.75, 1.5), 0.62)),
        belly=float(rng.uniform(0.45, 1.5)),
        point=float(rng.uniform(0.35, 1.1)),
        notch=float(rng.choice([0, 0, 0.12, 0.25])) * (not many),
        ruffle=float(rng.choice([0, 0.02, 0.045])) * (not many),
        twist=float(rng.choice([0, 0, 0, 0.2, -0.2, 0.45])),
        cup=float(rng.uniform(0.05, 0.6)),
        crease=float(rng.choice([-0.45, -0.25, 0.3, 0.5])),
        centre=centre,
        centre_size=float(rng.uniform(*CENTRES[centre][1:])),
        centre_colour=CENTRE_COLOURS[int(own.integers(len(CENTRE_COLOURS)))],
        heads=int(rng.choice([1, 1, 2, 4])),
        leaf_breadth=float(rng.choice([0.08, 0.13, 0.24])),
        leaf_colour=(rng.uniform(0.15, 0.34), rng.uniform(0.36, 0.5), 0.17),
        colour=PALETTE[pair[sister % 2]],
        tip_colour=PALETTE[tip_colour],
        eye_colour=tuple(0.75 * part for part in PALETTE[eye_colour]),
        eye=eye,
        tips=tips,
        veins=veins,
        spots=spots,
        bands=bands,
    )


def render(species: Species, rng: np.random.Generator, size: int = 160) -> Image.Image:
    """One photograph of `species`, RGB, size x size pixels; `rng` decides the rest.

    Raises ValueError if size < 32.
    """
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, not {size}")
    light = rng.uniform(0, 2 * np.pi)  # where the sun stands in the picture plane
    picture = background(rng, size)
    count = int(rng.integers(1, species.heads + 1))
    radii = np.sort(rng.uniform(0.12, 0.24, count))  # smaller ones are further back
    radii[-1] = rng.uniform(0.2, 0.48)
    way, gap = rng.uniform(0, 2 * np.pi, count), (radii + radii[-1]) * 0.95
    gap[-1] = 0  # the main flower, near the middle; the others stand around it
    centres = np.stack([np.cos(way) * gap, np.sin(way) * gap], 1)
    centres += rng.normal(0.5, 0.12, 2)
    picture = foliage(picture, species, rng, centres)
    age, tilt, way = rng.random(), rng.normal(0, 0.6), rng.uniform(0, 2 * np.pi)
    # Plain floats from here on: a numpy float64 would turn every array into float64.
    places = zip((centres * size).tolist(), (radii * size).tolist(), strict=True)
    for (x, y), radius in places:
        pose = (
            min(abs(tilt + rng.normal(0, 0.15)), 1.0),
            way + rng.normal(0, 0.2),
            rng.uniform(0, 2 * np.pi),
        )
        flower(picture, species, rng, (x, y), radius, pose, light, age)
    if rng.random() < 0.15:
        picture = blade(picture, rng)
    return develop(picture, rng, light)


def smooth_noise(rng, size: int, cells: int) -> np.ndarray:
    """Cloudy noise, float32 (size, size), about -1.5..1.5, `cells` blobs across."""
    grid = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.BICUBIC))


def to_image(picture: np.ndarray) -> Image.Image:
    """From floats in 0..1 (what is beyond is cut off) to an RGB image."""
    return Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))


def to_ink(colour, gain: float = 1.0) -> tuple[int, ...]:
    """From floats in 0..1 to what ImageDraw wants: integers in 0..255."""
    return tuple(int(255 * min(max(part * gain, 0), 1)) for part in colour)


def draw_leaf(draw, base, angle, length, breadth, colour, gain=1.0) -> None:
    """A leaf in two halves, the one away from the light darker, with a midrib."""
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
        draw_leaf(draw, base, angle, length, rng.uniform(0.04, 0.2), green, gain)
    hues = np.array(list(PALETTE.values()))
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


def foliage(picture, species: Species, rng, centres) -> np.ndarray:
    """Stems and leaves of the plant itself, a little behind the plane of focus."""
    size = len(picture)
    image = to_image(picture).resize((2 * size, 2 * size))  # 2 x: smooth edges
    draw = ImageDraw.Draw(image)
    root = np.array([rng.normal(0.5, 0.25), 1.1]) * 2 * size
    gain = rng.uniform(0.6, 1.15)
    for centre in centres * 2 * size:
        bend = rng.normal(0, 0.12) * size
        way = np.linspace(0, 1, 9)[:, None]
        stem = centre + way * (root - centre) + np.sin(way * np.pi) * [bend, 0]
        for tone, thick in ((0.75, 0.022), (1.1, 0.012)):
            ink = to_ink(species.leaf_colour, gain * tone)
            draw.line(stem.ravel().tolist(), ink, round(2 * size * thick), "curve")
        for _ in range(int(rng.integers(1, 5))):
            base = stem[int(rng.integers(2, 9))]
            angle, length = rng.normal(-1.57, 1.1), rng.uniform(0.25, 0.6) * 2 * size
            tone = gain * rng.uniform(0.7, 1.2)
            shape, ink = species.leaf_breadth, species.leaf_colour
            draw_leaf(draw, base, angle, length, shape, ink, tone)
    image = image.resize((size, size), Image.BOX)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.6) * size / 160))
    return np.asarray(image, np.float32) / 255


def flower(picture, genes: Species, rng, centre, radius, pose, light, age) -> None:
    """Paint one flower into `picture` (float32, changed in place).

    centre: x, y and radius: in pixels; pose: (tilt, direction of the tilt, turn) and
    light: in radians; age: 0 (fresh) to 1 (fading). Only the flower's box is touched.
    """
    size = len(picture)
    reach = 1.12 * radius
    left, top = (max(0, int(middle - reach)) for middle in centre)
    right, bottom = (min(size, int(middle + reach) + 1) for middle in centre)
    if left >= right or top >= bottom:
        return
    # Undo the tilt: where on the flat flower does each pixel of the box lie?
    tilt, way, turn = pose
    x = ((np.arange(left, right, dtype=np.float32) - centre[0]) / radius)[None]
    y = ((np.arange(top, bottom, dtype=np.float32) - centre[1]) / radius)[:, None]
    ahead = np.float32(np.cos(way)) * x + np.float32(np.sin(way)) * y
    aside = np.float32(np.cos(way)) * y - np.float32(np.sin(way)) * x
    squash, rise = np.float32(np.cos(tilt)), np.float32(np.sin(tilt) * genes.cup)
    height = np.minimum(aside * aside + (ahead / squash) ** 2, 1)
    ahead = (ahead + rise * (height - 0.35)) / squash
    distance = np.sqrt(ahead * ahead + aside * aside)
    angle = np.arctan2(aside, ahead) - np.float32(turn) + genes.twist * distance
    sun = light - way - turn  # the light, as the flower sees it

    colour = np.zeros((*distance.shape, 3), np.float32)
    cover = np.zeros(distance.shape, np.float32)
    for whorl in range(genes.whorls):
        scale = 1 - 0.24 * whorl
        petals = Petals(genes, rng, age, sun, whorl)
        for layer in (0, 1):
            inside, paint = petals.paint(distance / scale, angle, layer, radius * scale)
            mask = np.clip(inside + 0.5, 0, 1)
            halo = np.clip(1 + inside / (0.09 * radius), 0, 1)  # its shadow below it
            colour *= (1 - 0.32 * halo)[..., None]
            colour += mask[..., None] * (paint - colour)
            np.maximum(cover, mask, out=cover)
    paint_centre(colour, cover, genes, rng, distance, angle, radius, sun)

    # Cast a soft shadow on what is behind, away from the light.
    box = picture[top:bottom, left:right]
    shadow = Image.fromarray((cover * 255).astype(np.uint8))
    shadow = shadow.filter(ImageFilter.BoxBlur(0.09 * radius))
    shift = (0.12 * radius * np.cos(light), 0.12 * radius * np.sin(light))
    move = (1, 0, float(shift[0]), 0, 1, float(shift[1]))
    shadow = np.asarray(shadow.transform(shadow.size, Image.AFFINE, move), np.float32)
    box *= (1 - shadow * np.float32(0.4 / 255))[..., None]
    box += cover[..., None] * (colour - box)


class Petals:
    """The petals of one whorl: what differs from petal to petal, as small tables."""

    def __init__(self, genes: Species, rng, age: float, sun: float, whorl: int):
        count = genes.petals
        self.genes, self.count = genes, count
        self.phase = whorl * np.pi / count * 1.1
        self.length = (1 - 0.09 * np.abs(rng.standard_normal(count))).astype(np.float32)
        # Which of two neighbours lies below: at random, or all round in a pinwheel.
        level = rng.random(count)
        swap = (level > np.roll(level, -1)) & (not genes.twist)
        self.swap = swap.astype(np.int32)
        self.lost = rng.random(count) < 0.04 * age
        self.tone = (1 + 0.06 * rng.standard_normal(count)).astype(np.float32)
        middle = 2 * np.pi * np.arange(count) / count - sun + self.phase
        self.lit_along = np.cos(middle).astype(np.float32)
        self.lit_across = -np.sin(middle).astype(np.float32)
        # Fine streaks along a petal: noise that depends on the place across only.
        streaks = rng.standard_normal(256) + np.repeat(rng.standard_normal(64), 4)
        self.streaks = streaks.astype(np.float32) / 2
        place = np.linspace(0, 1, 256)
        outline = place**genes.belly * (1 - place) ** genes.point
        outline *= genes.breadth / outline.max()
        self.outline = outline.astype(np.float32)
        steep = np.clip(256 * np.gradient(outline), -6, 6)
        self.slope = np.sqrt(1 + steep**2).astype(np.float32)
        own = np.clip(genes.colour + rng.normal(0, 0.04, 3), 0, 1)
        fade = np.array([0.72, 0.6, 0.42])  # old petals turn brownish
        self.base = (own + 0.3 * max(0, age - 0.6) * (fade - own)).astype(np.float32)

    def paint(self, distance, angle, layer: int, radius: float):
        """Signed distance to the petals' edge in pixels (h, w) and colour (h, w, 3).

        Of the two petals next to a pixel, layer 0 is the lower and layer 1 the upper.
        """
        genes = self.genes
        sector = np.float32(2 * np.pi / self.count)
        turn = (angle - np.float32(self.phase)) / sector
        index = np.floor(turn)
        petal = index.astype(np.int32) % self.count
        beside = layer ^ self.swap[petal]  # 0: this petal, 1: its neighbour
        offset = (turn - index - beside) * sector  # radians from the petal's axis
        petal = (petal + beside) % self.count
        reach = distance / self.length[petal]
        along, across = reach * np.cos(offset), reach * np.sin(offset)
        edge = along  # a notched or ruffled edge is a shorter petal here and there
        if genes.notch:
            edge = edge + genes.notch * np.exp(-((across / 0.09) ** 2)) * (along > 0.5)
        if genes.ruffle:
            edge = edge + genes.ruffle * np.sin(across * 28 + petal * 2) * (along > 0.4)
        step = np.clip(edge * 255, 0, 255).astype(np.int32)
        width = self.outline[step]
        inside = (width - np.abs(across)) / self.slope[step]
        lateral = np.clip(across / (width + np.float32(1e-3)), -1, 1)  # -1..1
        streak = self.streaks[(lateral * 40 + petal * 53).astype(np.int32) & 255]
        inside = np.minimum(inside, 1 - edge) * radius
        inside[(along <= 0) | self.lost[petal]] = -radius

        shade = 0.80 + genes.crease * lateral * self.lit_across[petal]
        shade += 0.35 * genes.cup * (0.3 - along) * self.lit_along[petal]
        shade *= self.tone[petal] * (0.62 + 0.48 * np.minimum(along, 0.9))
        shade += 0.035 * streak
        paint = self.base
        if genes.tips:
            blend = np.clip(genes.tips * (along * 2.2 - 1.0 + 0.15 * streak), 0, 1)
            paint = paint + blend[..., None] * (np.float32(genes.tip_colour) - paint)
        if genes.eye:
            eye = np.clip((genes.eye + 0.05 * streak - along) * 14, 0, 0.92)
            paint = paint + eye[..., None] * (np.float32(genes.eye_colour) - paint)
        ribs = np.abs(np.sin(lateral * 7.5 * (1 - 0.3 * along)))
        shade *= 1 - genes.veins * np.clip(0.75 - 2.4 * ribs, 0, 1) * (1.15 - along)
        if genes.spots:
            grid = np.sin(along * 42 + petal) * np.sin(across * 48)
            zone = (along > 0.2) & (along < 0.72)
            shade *= 1 - genes.spots * np.clip((grid - 0.45) * 5, 0, 1) * zone
        if genes.bands:
            ring = np.sin(along * 24 + 0.9 * streak)
            shade *= 1 - genes.bands * np.clip(ring * 1.6 - 0.4, 0, 0.8)
        return inside, shade[..., None] * paint


def paint_centre(colour, cover, genes: Species, rng, distance, angle, radius, sun):
    """The middle of the flower, over the petals; `colour` and `cover` change."""
    size = genes.centre_size
    dome = np.clip(distance / size, 0, 1)
    shade = 0.72 + 0.3 * (1 - dome**2) + 0.22 * dome * np.cos(angle - sun)
    tint = np.float32(genes.centre_colour)
    mask = np.clip((size - distance) * radius + 0.5, 0, 1)
    if genes.centre == "disc":  # two families of spirals, as in a sunflower
        turn = np.sqrt(dome) * 34
        florets = np.sin(13 * angle + turn) * np.sin(21 * angle - turn)
        shade *= 0.9 + 0.35 * florets * np.minimum(3 * dome, 1)
        tint = tint * (1 - 0.35 * np.clip(1.2 - 2.5 * dome, 0, 1))[..., None]
    elif genes.centre == "trumpet":
        frill = size * (1 + 0.06 * np.sin(angle * 17) + 0.04 * np.sin(angle * 7))
        mask = np.clip((frill - distance) * radius + 0.5, 0, 1)
        throat = np.clip(dome * 1.3, 0.3, 1)
        shade = throat * (0.9 + 0.1 * np.sin(angle * 34)) - 0.2 * np.cos(angle - sun)
        shade = shade * (1 + 0.35 * np.clip((dome - 0.85) * 8, 0, 1))
    near = np.clip(1 - (distance - size) / 0.1, 0, 1)
    colour *= (1 - 0.35 * near)[..., None]
    colour += mask[..., None] * (shade[..., None] * tint - colour)
    np.maximum(cover, mask, out=cover)
    if genes.centre == "stamens":
        count = 2 * genes.petals + 3
        turn = angle * np.float32(count / (2 * np.pi))
        index = np.floor(turn)
        lengths = size * (1.7 + 0.7 * rng.random(count, dtype=np.float32))
        reach = lengths[index.astype(np.int32) % count]
        aside = (turn - index - 0.5) * distance * np.float32(2 * np.pi / count)
        thread = np.clip((0.014 - np.abs(aside)) * radius + 0.5, 0, 1)
        thread *= (distance < reach) & (distance > 0.5 * size)
        anther = np.sqrt(aside**2 + (distance - reach) ** 2)
        anther = np.clip((0.034 - anther) * radius + 0.5, 0, 1)
        colour += 0.8 * thread[..., None] * (np.float32((0.9, 0.9, 0.7)) - colour)
        gold = np.float32((0.9, 0.66, 0.16)) * (0.5 if genes.eye else 1)
        colour += anther[..., None] * (gold - colour)


def blade(picture, rng) -> np.ndarray:
    """A blade of grass before the lens, far out of focus."""
    size = len(picture)
    mask = Image.new("L", (size, size))
    foot, top = rng.uniform(0, size, 2)
    wide = rng.uniform(0.02, 0.07) * size
    outline = (foot - wide, size, foot + wide, size, top, rng.uniform(-0.2, 0.5) * size)
    ImageDraw.Draw(mask).polygon(outline, fill=210)
    mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.012, 0.03) * size))
    cover = np.asarray(mask, np.float32)[..., None] / 255
    green = np.float32((rng.uniform(0.2, 0.45), rng.uniform(0.35, 0.55), 0.15))
    return picture + cover * (green - picture)


def develop(picture, rng, light) -> Image.Image:
    """Light, white balance, contrast, focus and grain: the camera's part."""
    size = len(picture)
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
    picture = picture * np.asarray(lit)[..., None]
    picture *= balance.astype(np.float32)
    contrast = rng.uniform(0.95, 1.3)
    picture = np.maximum(contrast * (picture - 0.42) + 0.42, 0)
    # Film: bright colours run softly into white instead of being cut off.
    picture = 1.08 * (1 - np.exp(-1.65 * picture))
    picture += 0.011 * rng.standard_normal((size, size, 1), dtype=np.float32)
    image = to_image(picture)
    if rng.random() < 0.3:
        blur = rng.uniform(0.4, 1.3) * size / 160
        image = image.filter(ImageFilter.GaussianBlur(blur))
    return image


def plant(
    folder: str | Path,
    species: int = 60,
    pictures: Mapping[str, int] | None = None,
    size: int = 160,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Write a garden as JPEG files: folder/split/004/007.jpg is species 4, picture 7.

    species: how many; pictures: how many of each species per split ('train', 'val',
    'test'), 10, 10 and 10 unless told; size: pixels a side; workers: processes (None:
    one per core; 1: none but this one); progress: called with (pictures done, all).

    A picture depends on its seed, species, split and number only, so asking for more
    of any changes none that was there. Existing files are replaced, whole at all times.
    Raises ValueError on arguments that make no garden, OSError if a file can't be
    written.
    """
    pictures = dict.fromkeys(SPLITS, 10) if pictures is None else dict(pictures)
    if species < 1:
        raise ValueError(f"ask for at least 1 species, not {species}")
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, not {size}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1 (or None), not {workers}")
    for split, count in pictures.items():
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}: use {', '.join(SPLITS)}")
        if count < 0:
            raise ValueError(f"pictures[{split!r}] must be 0 or more, not {count}")

    jobs = [
        (folder, split, k, count, size, seed)
        for split, count in pictures.items()
        for k in range(species)
        if count
    ]
    waiting = dict.fromkeys(jobs)  # a set that keeps its order
    total = species * sum(pictures.values())

    def finished(job) -> None:
        del waiting[job]
        if progress is not None:
            progress(total - sum(count for _, _, _, count, _, _ in waiting), total)

    workers = min(workers or os.cpu_count() or 1, len(jobs))
    if workers > 1:
        try:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                try:
                    with bare_main():
                        futures = {pool.submit(plant_bed, *job): job for job in jobs}
                    for future in as_completed(futures):
                        future.result()
                        finished(futures[future])
                except BaseException:  # an interrupt too: do not draw the rest first
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        except POOL_TROUBLE:
            pass  # What is left is drawn below, where real errors show themselves.
    for job in list(waiting):
        plant_bed(*job)
        finished(job)


def plant_bed(folder, split, k, count, size, seed) -> None:
    """Write the pictures of one species in one split (runs in a worker process)."""
    bed = Path(folder, split, f"{k:03d}")
    bed.mkdir(parents=True, exist_ok=True)
    genes = species(k, seed)
    for i in range(count):
        rng = np.random.default_rng([seed, k, SPLITS.index(split), i])
        draft = bed / f".{i:03d}.{os.getpid()}.tmp"
        try:
            render(genes, rng, size).save(draft, "JPEG", quality=92)
            os.replace(draft, bed / f"{i:03d}.jpg")
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def bare_main():
    """Hide the caller's script from processes started meanwhile.

    A spawned process imports the caller's main module first. It need not be a file
    (notebook, stdin), need not guard its top level, and may import torch: an empty
    main module spares the workers all that.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
