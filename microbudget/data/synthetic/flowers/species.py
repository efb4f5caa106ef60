"""The traits of a species: petal outline, whorls, markings, centre, leaves.

Four neighbouring species are sisters: they form a genus, share all traits of shape and
differ only in petal colour, markings, petal count and the colour of the centre, so that
about half of a good classifier's mistakes are between sisters.
"""

from types import SimpleNamespace

import numpy as np

SISTERS = 4  # species per genus

# A small shared palette: colour alone must not tell species apart.
PALETTE = (
    (0.95, 0.94, 0.90),  # white
    (0.96, 0.82, 0.16),  # yellow
    (0.95, 0.52, 0.12),  # orange
    (0.82, 0.12, 0.14),  # red
    (0.94, 0.58, 0.70),  # pink
    (0.80, 0.16, 0.52),  # magenta
    (0.50, 0.28, 0.74),  # violet
    (0.34, 0.44, 0.86),  # blue
)
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


def species(number: int, seed: int = 0) -> SimpleNamespace:
    """Traits of species number 0, 1, …; the same for the same seed.

    Lengths are fractions of the flower's radius.
    """
    genus, sister = divmod(number, SISTERS)
    rng = np.random.default_rng([seed, 3, genus])  # shared by the sisters
    centre = str(rng.choice(list(CENTRES), p=[odds for odds, _, _ in CENTRES.values()]))
    many = centre == "disc"  # daisies have many narrow petals
    petals = int(rng.integers(11, 24) if many else rng.choice([3, 4, 5, 5, 6, 6, 8]))
    whorls = int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))
    crowding = 2.6 / petals  # half-width at which neighbours touch
    colour = rng.permutation(PALETTE)[sister % 2]  # a genus flowers in two colours
    markings = rng.permutation(MARKINGS)[sister].tolist()
    own = np.random.default_rng([seed, 4, number])  # a sister's own
    others = [other for other in PALETTE if other != tuple(colour)]
    tip_colour, eye_colour = own.permutation(others)[:2]
    return SimpleNamespace(
        petals=petals + (int(own.integers(-3, 4)) if many else sister % 2),  # per whorl
        whorls=whorls,  # rings of petals, the outer one first
        breadth=float(min(crowding * rng.uniform(0.75, 1.5), 0.62)),  # half-width
        belly=float(rng.uniform(0.45, 1.5)),  # exponent: broad at the base or a spoon
        point=float(rng.uniform(0.35, 1.1)),  # exponent: blunt or pointed tip
        notch=float(rng.choice([0, 0, 0.12, 0.25])) * (not many),  # cleft in the tip
        ruffle=float(rng.choice([0, 0.02, 0.045])) * (not many),  # wavy edge
        twist=float(rng.choice([0, 0, 0, 0.2, -0.2, 0.45])),  # pinwheel curl, radians
        cup=float(rng.uniform(0.05, 0.6)),  # how far the petals rise, 0 = flat
        crease=float(rng.choice([-0.45, -0.25, 0.3, 0.5])),  # across: gutter or ridge
        centre=centre,
        centre_size=float(rng.uniform(*CENTRES[centre][1:])),
        centre_colour=CENTRE_COLOURS[int(own.integers(len(CENTRE_COLOURS)))],
        heads=int(rng.choice([1, 1, 2, 4])),  # most flowers in one image
        leaf_breadth=float(rng.choice([0.08, 0.13, 0.24])),
        leaf_colour=(rng.uniform(0.15, 0.34), rng.uniform(0.36, 0.5), 0.17),
        colour=tuple(colour),  # of the petals
        tip_colour=tuple(tip_colour),
        eye_colour=tuple(0.75 * eye_colour),
        **dict(zip(("eye", "tips", "veins", "spots", "bands"), markings, strict=True)),
    )
