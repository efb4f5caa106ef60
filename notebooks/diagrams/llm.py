"""Notebook 04."""

from drawing import DATA, FROZEN, PLAIN, TRAINED, WARN, Drawing


def gguf_block() -> Drawing:
    d = Drawing(
        620, 400,
        "Three kinds of GGUF blocks. Q8_0: a 16-bit scale and 32 numbers of 8 bits. "
        "Q4_0: a 16-bit scale and 32 numbers of 4 bits. Q4_K: for 256 weights two "
        "16-bit numbers, eight 6-bit scales and eight 6-bit minima, one pair for each "
        "32 weights, and 256 numbers of 4 bits",
    )  # fmt: skip
    d.words(10, 24, "Q8_0: 34 bytes for 32 weights, 8.5 bits each", anchor="start",
            bold=True)  # fmt: skip
    d.box(10, 36, 60, 46, TRAINED, "scale\n2 bytes", size=12)
    for i in range(32):
        d.box(70 + 16.5 * i, 36, 16.5, 46, DATA)
    d.words(334, 100, "32 integers of one byte", size=13)
    d.words(10, 140, "Q4_0: 18 bytes for 32 weights, 4.5 bits each", anchor="start",
            bold=True)  # fmt: skip
    d.box(10, 152, 60, 46, TRAINED, "scale\n2 bytes", size=12)
    for i in range(32):
        d.box(70 + 8.25 * i, 152, 8.25, 46, DATA)
    d.words(202, 216, "32 integers of half a byte", size=13)
    d.words(10, 256, "Q4_K: 144 bytes for 256 weights, 4.5 bits each", anchor="start",
            bold=True)  # fmt: skip
    d.box(10, 268, 60, 46, TRAINED, "2 scales\n4 bytes", size=12)
    for i in range(8):
        d.box(70 + 17 * i, 268, 17, 23, TRAINED)
        d.box(70 + 17 * i, 291, 17, 23, PLAIN)
        d.box(216 + 49 * i, 268, 49, 46, DATA, "32", size=13)
    d.words(40, 332, "for scales", size=12)
    d.words(40, 347, "and minima", size=12)
    d.words(138, 332, "8 scales, 8 minima", size=12)
    d.words(138, 347, "of 6 bits: 12 bytes", size=12)
    d.words(412, 332, "256 integers of half a byte, in groups of 32", size=13)
    d.legend(10, 372, (DATA, "the weights' integers"))
    d.legend(210, 372, (TRAINED, "scales"))
    d.legend(310, 372, (PLAIN, "minima"))
    return d


def gptq() -> Drawing:
    d = Drawing(
        620, 270,
        "GPTQ goes through a weight matrix column by column: the columns on the left "
        "are rounded already, one column is being rounded, and the columns on the "
        "right, which are still free, are shifted to make up for its error",
    )  # fmt: skip
    x, width = 110, 25
    for i in range(16):
        colour = FROZEN if i < 5 else DATA if i == 5 else TRAINED
        d.box(x + width * i, 70, width, 120, colour)
    d.words(x + 2.5 * width, 214, "rounded", size=14)
    d.words(x + 2.5 * width, 231, "for good", size=14)
    d.words(x + 5.5 * width, 52, "now: round it, error e", size=14)
    d.arrow((x + 5.5 * width, 56), (x + 5.5 * width, 70))
    d.words(x + 11 * width, 214, "still free: each is shifted", size=14)
    d.words(x + 11 * width, 231, "to make up for e", size=14)
    for i in range(6, 16, 2):
        start, end = x + 6 * width, x + width * (i + 0.5)
        height = 130 + 4 * (i - 6)
        d.line((start, height), (end - 4, height), colour=WARN, width=1.4)
        d.arrow((end - 4, height), (end + 2, height))
    d.words(96, 126, "rows:", anchor="end", size=13)
    d.words(96, 143, "outputs", anchor="end", size=13)
    d.words(310, 258, "columns: inputs of the layer", size=13)
    return d
