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
