"""Notebook 00."""

from drawing import DATA, FROZEN, PLAIN, TRAINED, Drawing


def course_map() -> Drawing:
    d = Drawing(
        620, 424,
        "Course map: notebook 00 leads to 01 transfer; from there to four groups: "
        "train less (02 and 06 distillation, 03 few parameters), fewer bits (04 and "
        "05), fewer weights (07 pruning, 08 low rank), other engines (09 export, 10 "
        "detector); 11 compares and combines them all",
    )  # fmt: skip
    d.box(20, 8, 580, 34, DATA, "00 start here: what does it cost?")
    d.arrow((310, 42), (310, 60))
    d.box(20, 60, 580, 34, PLAIN, "01 transfer learning: start from a pretrained model")
    groups = (
        ("teach or tune", TRAINED, ("02 distil Whisper", "03 train few\nparameters",
                                    "06 distillation")),
        ("fewer bits", PLAIN, ("04 an LLM in 8,\n4, 3 and 2 bits",
                               "05 quantization\nfrom scratch")),
        ("fewer weights", FROZEN, ("07 pruning", "08 low rank")),
        ("other engines", DATA, ("09 export and\nruntimes", "10 a detector\nin int8")),
    )  # fmt: skip
    for i, (title, colour, books) in enumerate(groups):
        x = 20 + 148 * i
        d.arrow((x + 68, 94), (x + 68, 118))
        d.words(x + 68, 136, title, bold=True)
        for j, book in enumerate(books):
            d.box(x, 148 + 60 * j, 136, 50, colour, book, size=13)
        d.arrow((x + 68, 148 + 60 * len(books) - 10), (x + 68, 376))
    d.box(20, 376, 580, 40, "white", "11 at a glance: compare and combine them all")
    return d
