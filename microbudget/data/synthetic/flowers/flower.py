"""Drawing one flower from the traits of its species.

Petals are never drawn one by one. Around the centre the angle is cut into as many
sectors as there are petals; every pixel looks up which petal it is in, and where, and
one numpy expression shades them all. Two such passes per whorl, the lower and
the upper one of two neighbours, let petals overlap.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter


@dataclass(frozen=True)
class Pose:
    """Where a flower is and how it is seen; angles in radians."""

    centre: tuple[float, float]  # x, y in pixels
    radius: float  # in pixels
    tilt: float  # 0: seen from above
    direction: float  # of the tilt
    turn: float  # about its own axis
    light: float  # where the light comes from
    age: float  # 0 (fresh) to 1 (fading)


def draw_flower(canvas, species, rng, pose: Pose) -> None:
    """Paint one flower into ``canvas`` (float32 (size, size, 3), changed in place).

    Only the flower's box is touched.
    """
    size, radius, light = len(canvas), pose.radius, pose.light
    reach = 1.12 * radius
    left, top = (max(0, int(middle - reach)) for middle in pose.centre)
    right, bottom = (min(size, int(middle + reach) + 1) for middle in pose.centre)
    if left >= right or top >= bottom:
        return
    # Undo the tilt: where on the flat flower does each pixel of the box lie?
    tilt, direction, turn = pose.tilt, pose.direction, pose.turn
    x = ((np.arange(left, right, dtype=np.float32) - pose.centre[0]) / radius)[None]
    y = ((np.arange(top, bottom, dtype=np.float32) - pose.centre[1]) / radius)[:, None]
    cosine, sine = np.float32(np.cos(direction)), np.float32(np.sin(direction))
    ahead, aside = cosine * x + sine * y, cosine * y - sine * x
    squash, rise = np.float32(np.cos(tilt)), np.float32(np.sin(tilt) * species.cup)
    height = np.minimum(aside * aside + (ahead / squash) ** 2, 1)
    ahead = (ahead + rise * (height - 0.35)) / squash
    distance = np.sqrt(ahead * ahead + aside * aside)
    angle = np.arctan2(aside, ahead) - np.float32(turn) + species.twist * distance
    sun = light - direction - turn

    colour = np.zeros((*distance.shape, 3), np.float32)
    cover = np.zeros(distance.shape, np.float32)
    for whorl in range(species.whorls):
        scale = 1 - 0.24 * whorl
        petals = Petals(species, rng, pose.age, sun, whorl)
        for layer in (0, 1):
            inside, paint = petals.paint(distance / scale, angle, layer, radius * scale)
            mask = np.clip(inside + 0.5, 0, 1)
            halo = np.clip(1 + inside / (0.09 * radius), 0, 1)  # its shadow below it
            colour *= (1 - 0.32 * halo)[..., None]
            colour += mask[..., None] * (paint - colour)
            np.maximum(cover, mask, out=cover)
    paint_centre(colour, cover, species, rng, (distance, angle, sun, radius))

    # Cast a soft shadow on what is behind, away from the light.
    box = canvas[top:bottom, left:right]
    shadow = Image.fromarray((cover * 255).astype(np.uint8))
    shadow = shadow.filter(ImageFilter.BoxBlur(0.09 * radius))
    shift = (0.12 * radius * np.cos(light), 0.12 * radius * np.sin(light))
    move = (1, 0, float(shift[0]), 0, 1, float(shift[1]))
    shadow = np.asarray(shadow.transform(shadow.size, Image.AFFINE, move), np.float32)
    box *= (1 - shadow * np.float32(0.4 / 255))[..., None]
    box += cover[..., None] * (colour - box)


class Petals:
    """The petals of one whorl: what differs from petal to petal, as small tables."""

    def __init__(self, species, rng, age: float, sun: float, whorl: int):
        count = species.petals
        self.species, self.count = species, count
        self.phase = whorl * np.pi / count * 1.1
        self.length = (1 - 0.09 * np.abs(rng.standard_normal(count))).astype(np.float32)
        # Which of two neighbours lies below: at random, or all round in a pinwheel.
        level = rng.random(count)
        swap = (level > np.roll(level, -1)) & (not species.twist)
        self.swap = swap.astype(np.int32)
        self.lost = rng.random(count) < 0.04 * age
        self.tone = (1 + 0.06 * rng.standard_normal(count)).astype(np.float32)
        middle = 2 * np.pi * np.arange(count) / count - sun + self.phase
        self.lit_along = np.cos(middle).astype(np.float32)
        self.lit_across = -np.sin(middle).astype(np.float32)
        # Fine streaks along a petal: noise that depends on the position across only.
        streaks = rng.standard_normal(256) + np.repeat(rng.standard_normal(64), 4)
        self.streaks = streaks.astype(np.float32) / 2
        along = np.linspace(0, 1, 256)
        outline = along**species.belly * (1 - along) ** species.point
        outline *= species.breadth / outline.max()
        self.outline = outline.astype(np.float32)
        steep = np.clip(256 * np.gradient(outline), -6, 6)
        self.slope = np.sqrt(1 + steep**2).astype(np.float32)
        own = np.clip(species.colour + rng.normal(0, 0.04, 3), 0, 1)
        fade = np.array([0.72, 0.6, 0.42])  # old petals turn brownish
        self.base = (own + 0.3 * max(0, age - 0.6) * (fade - own)).astype(np.float32)

    def paint(self, distance, angle, layer: int, radius: float):
        """Signed distance to the petals' edge in pixels (h, w) and colour (h, w, 3).

        Of the two petals next to a pixel, layer 0 is the lower and layer 1 the upper.
        """
        species = self.species
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
        if species.notch:
            edge = edge + species.notch * np.exp(-((across / 0.09) ** 2)) * (
                along > 0.5
            )
        if species.ruffle:
            edge = edge + species.ruffle * np.sin(across * 28 + petal * 2) * (
                along > 0.4
            )
        step = np.clip(edge * 255, 0, 255).astype(np.int32)
        width = self.outline[step]
        inside = (width - np.abs(across)) / self.slope[step]
        lateral = np.clip(across / (width + np.float32(1e-3)), -1, 1)  # -1..1
        streak = self.streaks[(lateral * 40 + petal * 53).astype(np.int32) & 255]
        inside = np.minimum(inside, 1 - edge) * radius
        inside[(along <= 0) | self.lost[petal]] = -radius

        shade = 0.80 + species.crease * lateral * self.lit_across[petal]
        shade += 0.35 * species.cup * (0.3 - along) * self.lit_along[petal]
        shade *= self.tone[petal] * (0.62 + 0.48 * np.minimum(along, 0.9))
        shade += 0.035 * streak
        paint = self.base
        if species.tips:
            blend = np.clip(species.tips * (along * 2.2 - 1.0 + 0.15 * streak), 0, 1)
            paint = paint + blend[..., None] * (np.float32(species.tip_colour) - paint)
        if species.eye:
            eye = np.clip((species.eye + 0.05 * streak - along) * 14, 0, 0.92)
            paint = paint + eye[..., None] * (np.float32(species.eye_colour) - paint)
        ribs = np.abs(np.sin(lateral * 7.5 * (1 - 0.3 * along)))
        shade *= 1 - species.veins * np.clip(0.75 - 2.4 * ribs, 0, 1) * (1.15 - along)
        if species.spots:
            grid = np.sin(along * 42 + petal) * np.sin(across * 48)
            zone = (along > 0.2) & (along < 0.72)
            shade *= 1 - species.spots * np.clip((grid - 0.45) * 5, 0, 1) * zone
        if species.bands:
            ring = np.sin(along * 24 + 0.9 * streak)
            shade *= 1 - species.bands * np.clip(ring * 1.6 - 0.4, 0, 0.8)
        return inside, shade[..., None] * paint


def paint_centre(colour, cover, species, rng, view: tuple) -> None:
    """The middle of the flower, over the petals; ``colour`` and ``cover`` change.

    Args:
        view: the pixels' distances from the centre (in radii) and their angles, both
            (height, width); the light's angle as the flower sees it; the radius.
    """
    distance, angle, sun, radius = view
    size = species.centre_size
    dome = np.clip(distance / size, 0, 1)
    shade = 0.72 + 0.3 * (1 - dome**2) + 0.22 * dome * np.cos(angle - sun)
    tint = np.float32(species.centre_colour)
    mask = np.clip((size - distance) * radius + 0.5, 0, 1)
    if species.centre == "disc":  # two families of spirals, as in a sunflower
        turn = np.sqrt(dome) * 34
        florets = np.sin(13 * angle + turn) * np.sin(21 * angle - turn)
        shade *= 0.9 + 0.35 * florets * np.minimum(3 * dome, 1)
        tint = tint * (1 - 0.35 * np.clip(1.2 - 2.5 * dome, 0, 1))[..., None]
    elif species.centre == "trumpet":
        frill = size * (1 + 0.06 * np.sin(angle * 17) + 0.04 * np.sin(angle * 7))
        mask = np.clip((frill - distance) * radius + 0.5, 0, 1)
        throat = np.clip(dome * 1.3, 0.3, 1)
        shade = throat * (0.9 + 0.1 * np.sin(angle * 34)) - 0.2 * np.cos(angle - sun)
        shade = shade * (1 + 0.35 * np.clip((dome - 0.85) * 8, 0, 1))
    near = np.clip(1 - (distance - size) / 0.1, 0, 1)
    colour *= (1 - 0.35 * near)[..., None]
    colour += mask[..., None] * (shade[..., None] * tint - colour)
    np.maximum(cover, mask, out=cover)
    if species.centre == "stamens":
        count = 2 * species.petals + 3
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
        gold = np.float32((0.9, 0.66, 0.16)) * (0.5 if species.eye else 1)
        colour += anther[..., None] * (gold - colour)
