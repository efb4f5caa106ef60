"""A garden of invented flowers: photographs for when Flowers-102 is not at hand.

A species is a handful of *genes* (``genes``); a picture is those genes drawn
(``flower``) under random *circumstances* (``scene``); a garden is many pictures in
files (``planting``).
"""

from .genes import SISTERS, Species, species, species_name
from .planting import plant
from .scene import render

__all__ = ["SISTERS", "Species", "plant", "render", "species", "species_name"]
