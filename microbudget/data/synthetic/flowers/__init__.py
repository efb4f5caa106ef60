"""Synthetic flowers: drawn photographs for when Flowers-102 is not at hand.

A species is a handful of traits (``species``); an image is those traits drawn
(``flower``) under random circumstances (``scene``); the data set is many images in
files (``generate``).
"""

from .generate import generate_images
from .scene import render
from .species import SISTERS, Species, species, species_name

__all__ = ["SISTERS", "Species", "generate_images", "render", "species", "species_name"]
