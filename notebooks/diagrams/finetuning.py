"""Notebook 03."""

from drawing import DATA, FROZEN, TRAINED, Drawing, sub


def lora() -> Drawing:
    d = Drawing(
        620, 300,
        "LoRA: the input x goes through a frozen matrix W and, beside it, through two "
        "thin trained matrices A and B; the two results are added to give h",
    )  # fmt: skip
    d_in, d_out = sub("d", "in"), sub("d", "out")
    d.box(20, 75, 18, 110, DATA, below="x")
    d.box(130, 20, 110, 110, FROZEN, "W", f"{d_out} × {d_in}", size=18)
    d.box(130, 210, 110, 22, TRAINED, "A", f"r × {d_in}, starts random")
    d.box(340, 166, 24, 110, TRAINED, "B")
    d.words(352, 293, f"{d_out} × r, starts at zero")
    d.arrow((38, 130), (85, 130), (85, 75), (130, 75))
    d.arrow((85, 130), (85, 221), (130, 221))
    d.arrow((240, 221), (340, 221))
    d.words(290, 213, "r numbers")
    d.arrow((364, 221), (470, 221), (470, 87))
    d.words(417, 213, "× α/r")
    d.arrow((240, 75), (458, 75))
    d.plus(470, 75)
    d.arrow((482, 75), (560, 75))
    d.box(560, 20, 18, 110, DATA, below="h")
    d.legend(530, 190)
    return d


def training_memory() -> Drawing:
    d = Drawing(
        620, 250,
        "Memory of a training step: full fine-tuning keeps a parameter, its gradient "
        "and two running averages, four bytes each; LoRA keeps the frozen parameters, "
        "and gradients and averages only of its few own parameters",
    )  # fmt: skip
    names = ("parameters", "gradients", "average of\ngradients", "average of\nsquares")
    for row, (title, y) in enumerate((("full\nfine-tuning", 20), ("LoRA", 120))):
        d.box(10, y, 100, 70, "white", title)
        for i, name in enumerate(names):
            x = 130 + 120 * i
            if row == 0:
                d.box(x, y, 105, 70, TRAINED, name, size=14)
            elif i == 0:
                d.box(x, y, 105, 70, FROZEN, name, size=14)
                d.box(x + 105, y, 5, 70, TRAINED)
            else:
                d.box(x, y, 5, 70, TRAINED)
    d.words(310, 222, "each block: 4 bytes for each parameter that is trained")
    d.words(310, 242, "(and for each frozen one, in its first block alone)")
    return d


def where_they_sit() -> Drawing:
    d = Drawing(
        620, 400,
        "One transformer block, from left to right: attention with query, key, value "
        "and output layers, then the feed-forward part. LoRA lies beside query and "
        "value, (IA)³ scales key, value and the feed-forward's inner numbers, BitFit "
        "trains the biases, bottleneck adapters follow the attention and the "
        "feed-forward part",
    )  # fmt: skip
    d.box(8, 165, 16, 70, DATA, below="x")
    d.line((24, 200), (48, 200))
    d.line((48, 70), (48, 330))
    for name, y in (("query", 70), ("key", 200), ("value", 330)):
        d.arrow((48, y), (66, y))
        d.box(66, y - 24, 76, 48, FROZEN, name)
        d.box(66, y + 24, 76, 9, TRAINED)
    for y in (70, 330):
        d.box(72, y - 44, 64, 13, TRAINED)
    for y in (200, 330):
        d.line((142, y), (158, y))
        d.plus(170, y, "×")
        d.line((182, y), (196, y))
    d.line((142, 70), (196, 70))
    d.line((196, 70), (196, 330))
    d.arrow((196, 200), (214, 200))
    d.box(214, 160, 66, 80, "white", "attend", size=14)
    d.arrow((280, 200), (294, 200))
    d.box(294, 172, 62, 56, FROZEN, "output", size=14)
    d.box(294, 228, 62, 9, TRAINED)
    d.arrow((356, 200), (370, 200))
    d.box(370, 180, 22, 40, TRAINED)
    d.arrow((392, 200), (408, 200))
    d.box(408, 160, 56, 80, FROZEN, "feed-\nforward\nin", size=13)
    d.box(408, 240, 56, 9, TRAINED)
    d.line((464, 200), (474, 200))
    d.plus(486, 200, "×")
    d.arrow((498, 200), (510, 200))
    d.box(510, 160, 56, 80, FROZEN, "feed-\nforward\nout", size=13)
    d.box(510, 240, 56, 9, TRAINED)
    d.arrow((566, 200), (580, 200))
    d.box(580, 180, 22, 40, TRAINED)
    d.words(104, 18, "LoRA: beside query and value", anchor="start")
    d.line((100, 14), (78, 24))
    d.words(215, 330, "(IA)³: × is a trained factor for each number", anchor="start")
    d.line((211, 326), (184, 332))
    d.words(215, 365, "BitFit: the strip under a box is its bias", anchor="start")
    d.line((211, 361), (142, 360))
    d.words(400, 120, "bottleneck adapter: two small layers", anchor="middle")
    d.line((381, 126), (381, 178))
    d.line((520, 126), (588, 178))
    d.legend(530, 340, (FROZEN, "frozen"), (TRAINED, "trained"))
    return d
