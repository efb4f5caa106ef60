"""Drawing one flower from its genes.

Petals are never drawn one by one. Around the centre the angle is cut into as many
sectors as there are petals; every pixel looks up which petal it is in, and where, and
one numpy expression shades them all. Two such passes per whorl, the lower and
the upper one of two neighbours, let petals overlap.
"""

import numpy as np
from PIL import Image, ImageFilter

from .species import Species


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
