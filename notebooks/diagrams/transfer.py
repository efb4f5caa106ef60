"""Notebook 01."""

from drawing import DATA, FROZEN, PLAIN, TRAINED, Drawing


def transfer() -> Drawing:
    d = Drawing(
        620, 300,
        "Transfer learning: an image passes a pretrained backbone, which stays frozen, "
        "and becomes a feature vector; only a new linear head is trained. With "
        "fine-tuning, the last blocks of the backbone are trained as well",
    )  # fmt: skip
    for row, (y, title) in enumerate(((30, "frozen backbone"), (170, "fine-tuning"))):
        d.words(10, y - 10, title, anchor="start", bold=True)
        d.box(10, y + 10, 70, 70, DATA, "image")
        d.arrow((80, y + 45), (104, y + 45))
        d.box(104, y + 10, 150, 70, FROZEN, "early blocks\nedges, textures", size=14)
        d.arrow((254, y + 45), (278, y + 45))
        last = TRAINED if row else FROZEN
        d.box(278, y + 10, 130, 70, last, "last blocks\nshapes, parts", size=14)
        d.arrow((408, y + 45), (432, y + 45))
        d.box(432, y, 16, 90, DATA, below="1280")
        d.arrow((448, y + 45), (472, y + 45))
        d.box(472, y + 10, 62, 70, TRAINED, "head")
        d.arrow((534, y + 45), (558, y + 45))
        d.words(588, y + 50, "species")
    d.legend(10, 268, (FROZEN, "frozen"))
    d.legend(110, 268, (TRAINED, "trained"))
    d.legend(210, 268, (DATA, "data"))
    return d


def inverted_residual() -> Drawing:
    d = Drawing(
        620, 250,
        "An inverted residual: a 1×1 convolution widens 32 channels to 192, a "
        "depthwise 3×3 convolution filters each channel alone, a 1×1 convolution "
        "narrows to 32, and the input is added",
    )  # fmt: skip
    d.box(20, 100, 20, 60, DATA, below="32")
    d.arrow((40, 130), (90, 130))
    d.box(90, 105, 84, 50, PLAIN, "1 × 1\nwiden", size=14)
    d.arrow((174, 130), (196, 130))
    d.box(196, 50, 20, 160, DATA, below="192")
    d.arrow((216, 130), (240, 130))
    d.box(
        240,
        95,
        120,
        70,
        PLAIN,
        "3 × 3 depthwise\none filter for\neach channel",
        size=13,
    )
    d.arrow((360, 130), (384, 130))
    d.box(384, 50, 20, 160, DATA, below="192")
    d.arrow((404, 130), (428, 130))
    d.box(428, 105, 84, 50, PLAIN, "1 × 1\nnarrow", size=14)
    d.arrow((512, 130), (538, 130))
    d.plus(550, 130)
    d.arrow((562, 130), (584, 130))
    d.box(584, 100, 20, 60, DATA, below="32")
    d.line((64, 130), (64, 24))
    d.arrow((64, 24), (550, 24), (550, 118))
    d.words(310, 18, "the input is added to the narrow end", size=13)
    d.words(400, 244, "numbers: channels of the feature map", size=13)
    return d
