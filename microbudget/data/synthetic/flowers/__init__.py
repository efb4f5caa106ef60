"""A garden of invented flowers: photographs for when Flowers-102 is not at hand.

A species is a handful of *genes* (``genes``); a picture is those genes drawn
(``flower``) under random *circumstances* (``scene``); a garden is many pictures in
files (``planting``).
"""

from .generate import generate_images
from .scene import render
from .species import SISTERS, Species, species, species_name

__all__ = ["SISTERS", "Species", "generate_images", "render", "species", "species_name"]
