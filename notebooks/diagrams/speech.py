"""Notebook 02."""

from drawing import DATA, FROZEN, PLAIN, TRAINED, Drawing


def whisper() -> Drawing:
    d = Drawing(
        620, 340,
        "Whisper and its student: the sound becomes a spectrogram, the encoder turns "
        "it into states once, the decoder writes one token after the other. The "
        "student keeps encoder and output table, frozen, and two of the four decoder "
        "layers, which are trained to give the teacher's probabilities",
    )  # fmt: skip
    d.box(10, 130, 90, 70, DATA, "spectro-\ngram", size=14)
    d.arrow((100, 165), (122, 165))
    d.box(122, 120, 96, 90, FROZEN, "encoder\n4 layers\nonce a clip", size=14)
    d.line((218, 165), (244, 165))
    d.line((244, 85), (244, 249))
    for y, name, colour in ((40, "teacher", FROZEN), (204, "student", TRAINED)):
        d.arrow((244, y + 45), (266, y + 45))
        layers = 4 if name == "teacher" else 2
        for i in range(layers):
            d.box(266 + 30 * i, y, 26, 90, colour)
        end = 266 + 30 * layers
        label = f"{name}: {layers} decoder layers"
        d.words(266, y - 10, label, anchor="start", bold=True)
        d.arrow((end, y + 45), (404, y + 45))
        d.box(404, y + 10, 84, 70, FROZEN, "output\ntable", size=14)
        d.arrow((488, y + 45), (510, y + 45))
        d.box(510, y + 10, 100, 70, DATA, "51,864\nprobabilities", size=13)
    d.arrow((560, 120), (560, 212))
    d.words(552, 170, "is to match", anchor="end", size=13)
    d.legend(10, 316, (FROZEN, "frozen, shared"))
    d.legend(170, 316, (TRAINED, "trained"))
    d.legend(280, 316, (DATA, "data"))
    return d


def speculative() -> Drawing:
    d = Drawing(
        620, 250,
        "Speculative decoding: the student drafts four tokens one by one; the teacher "
        "checks all of them in a single pass, keeps those that it would have chosen, "
        "and adds one of its own",
    )  # fmt: skip
    d.words(10, 40, "student drafts", anchor="start", bold=True)
    for i, token in enumerate(("the", "cat", "sad", "on")):
        d.box(150 + 100 * i, 18, 80, 34, TRAINED, token)
        if i:
            d.arrow((130 + 100 * i, 35), (150 + 100 * i, 35))
        d.arrow((190 + 100 * i, 52), (190 + 100 * i, 84))
    d.words(10, 108, "teacher checks,", anchor="start", bold=True)
    d.words(10, 126, "in one pass", anchor="start", bold=True)
    d.box(150, 84, 380, 48, FROZEN, "one pass over all four positions")
    for i, (token, colour) in enumerate(
        (("the  ✓", DATA), ("cat  ✓", DATA), ("sat", PLAIN))
    ):
        d.arrow((190 + 100 * i, 132), (190 + 100 * i, 160))
        d.box(150 + 100 * i, 160, 80, 34, colour, token)
    d.words(10, 182, "what stays", anchor="start", bold=True)
    d.words(526, 182, "the rest is thrown away", size=13)
    d.words(310, 226, "two accepted tokens and one of the teacher's own, for one pass")
    return d
