"""The traits of a species: petal outline, whorls, markings, centre, leaves.

Four neighbouring species are sisters: they form a genus, share all traits of shape and
differ only in petal colour, markings, petal count and the colour of the centre, so that
about half of a good classifier's mistakes are between sisters.
"""

from dataclasses import dataclass

import numpy as np

SISTERS = 4  # species per genus

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
# Mostly fine patterns: they vanish when an image is made small.
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
STEMS = """Aur Bel Cor Dal Elv Fal Gal Hes Ist Jul Kor Lum Mir Nev Ond Pel Quin Ros Sil
    Tam Umb Val Xan Ylv Zor"""
ENDINGS = "elia issa andra onia aria intha avia ulina etta oria"
EPITHETS = """minor borealis gracilis montana silvatica pratensis vernalis elegans
    palustris nobilis autumnalis maritima alpina mirabilis tenella rustica robusta
    splendens officinalis pumila lucida repens procera modesta amoena major"""


@dataclass(frozen=True)
class Species:
    """Traits of one species. Lengths are fractions of the flower's radius."""

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
    heads: int  # most flowers in one image
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


def species_name(number: int, seed: int = 0) -> str:
    """Invented Latin name of a species, such as 'Belonia minor'.

    The first 1,000 names differ; the first word is the genus, shared by four sisters.
    """
    genus, sister = divmod(number, SISTERS)
    # Every pair of stem and ending once, in an order that depends on the seed.
    genera = [stem + ending for stem in STEMS.split() for ending in ENDINGS.split()]
    order = np.random.default_rng([seed, 1]).permutation(len(genera))
    epithets = np.random.default_rng([seed, 2, genus]).permutation(EPITHETS.split())
    return f"{genera[order[genus % len(genera)]]} {epithets[sister]}"


def species(number: int, seed: int = 0) -> Species:
    """Traits of species number 0, 1, …; the same for the same seed."""
    genus, sister = divmod(number, SISTERS)
    rng = np.random.default_rng([seed, 3, genus])  # shared by the sisters
    centre = str(rng.choice(list(CENTRES), p=[odds for odds, _, _ in CENTRES.values()]))
    many = centre == "disc"  # daisies have many narrow petals
    petals = int(rng.integers(11, 24) if many else rng.choice([3, 4, 5, 5, 6, 6, 8]))
    whorls = int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))
    crowding = 2.6 / petals  # half-width at which neighbours touch
    colours = list(PALETTE)
    pair = rng.permutation(colours)[:2]  # a genus flowers in two colours
    markings = rng.permutation(len(MARKINGS))
    own = np.random.default_rng([seed, 4, number])  # a sister's own
    eye, tips, veins, spots, bands = MARKINGS[markings[sister]]
    others = [colour for colour in colours if colour != pair[sister % 2]]
    tip_colour, eye_colour = own.permutation(others)[:2]
    return Species(
        name=species_name(number, seed),
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
