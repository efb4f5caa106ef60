"""The course's detector, and the pictures it is calibrated on and judged by.

``mini``: PicoDet trained on scanned documents, and pages generated here. ``full``:
DETR-ResNet-50 from the Hub or torchvision's SSDLite on MobileNetV3, and COCO's
validation pictures from a folder of yours.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .. import assets
from ..core import settings
from ..core.errors import DataError
from ..data.synthetic.pages import generate
from ..export import inspect, packages
from . import boxes as bx
from . import coco, detr, picodet, ssd

_SEEDS = {"calibration": 1, "judge": 2}  # of generated pages


@dataclass(frozen=True)
class Detector:
    """A network with what goes in and what comes out.

    Attributes:
        network: .onnx file, float32, one input.
        input: its name.
        classes: what labels count.
        parts: name -> convolutions, a slice of them in the file's order.
        mean, std: of 0...1, what the input is standardised by.
        prepare: uint8 picture -> the network's input.
        check: raises DataError on an input that was prepared wrongly, perhaps from
            ``picture``.
        decode: what the network gives in an engine, (height, width) of the picture ->
            Found.
    """

    name: str
    card: str
    network: Path
    input: str
    classes: tuple[str, ...]
    parts: dict[str, slice]
    mean: np.ndarray
    std: np.ndarray
    prepare: Callable[[np.ndarray], np.ndarray]
    check: Callable[..., None]
    decode: Callable[..., coco.Found]

    def find(self, session, picture: np.ndarray) -> coco.Found:
        """Boxes in one picture, by the network in an engine (``runtimes.load``)."""
        given = self.prepare(picture)
        self.check(given, picture=picture)
        return self.decode(session(given), picture.shape[:2])


@dataclass(frozen=True)
class Pictures:
    """Annotated pictures: none of the ones that judge are calibrated on.

    Attributes:
        calibration, judge: pictures (``pages.Page``).
        notes: COCO's dictionary of either, by name.
        card: what they are. is_course_data: whether claims were checked on them.
    """

    calibration: Sequence[generate.Page]
    judge: Sequence[generate.Page]
    notes: dict[str, dict]
    card: str
    is_course_data: bool


def load(name: str = "") -> Detector:
    """The detector of this profile, fetched first if it isn't here.

    Args:
        name: of profile ``full``'s two ``"detr"`` (the default) or ``"ssdlite"``;
            ``mini`` has ``"picodet"`` only.

    Raises:
        AssetError: it can't be had. EngineError: onnx and its engines are missing.
        DataError: this profile has no such detector.
    """
    makers = {"picodet": _picodet}
    if settings.load().profile == "full":
        makers = {"detr": _detr, "ssdlite": _ssdlite}
    name = name or next(iter(makers))
    if name not in makers:
        raise DataError(
            f"Profile {settings.load().profile} has no detector {name!r}; it has "
            f"{', '.join(makers)}."
        )
    return makers[name]()


def _picodet() -> Detector:
    folder, asset = assets.fetch("page-layout"), assets.get("page-layout")
    engine = packages.load("onnxruntime").__version__
    digest = asset.spec["files"]["layout_cdla.onnx"]
    path = _cached("page-layout", digest, f"onnxruntime-{engine}")
    if not path.is_file():  # batch norms folded, constants computed: exact to rounding
        inspect.optimise(folder / "layout_cdla.onnx", path, "basic")
    return Detector(
        "PicoDet", asset.card(), path, "image", generate.CLASSES,
        picodet.PARTS, picodet.MEAN, picodet.STD,
        picodet.prepare, picodet.check_input, picodet.decode,
    )  # fmt: skip


def _detr() -> Detector:
    folder, asset = assets.fetch("detr-resnet-50"), assets.get("detr-resnet-50")
    digest = asset.spec["hub_files"]["model.safetensors"]
    path = _cached("detr", digest, f"torch-{torch.__version__}")
    if not path.is_file():
        detr.export(detr.load(folder), path)
    table = (folder / "config.json").read_text(encoding="utf-8")
    names = json.loads(table)["id2label"]
    names = {int(i): n for i, n in names.items() if n != "N/A"}
    ids = sorted(names)

    def decode(outputs, size, **options):
        return detr.decode(outputs, size, ids, **options)

    return Detector(
        "DETR-ResNet-50", asset.card(), path, "image",
        tuple(names[i] for i in ids), detr.PARTS, picodet.MEAN, picodet.STD,
        detr.prepare,
        partial(picodet.check_input, size=detr.SIZE), decode,
    )  # fmt: skip


def _ssdlite() -> Detector:
    folder, asset = assets.fetch("ssdlite-mobilenet"), assets.get("ssdlite-mobilenet")
    path = _cached("ssdlite", asset.spec["sha256"], f"torch-{torch.__version__}")
    if not path.is_file():
        ssd.export(ssd.load(folder), path)
    return Detector(
        "SSDLite-MobileNetV3", asset.card(), path, "image",
        tuple(ssd.classes().values()), ssd.PARTS, ssd.MEAN, ssd.STD,
        ssd.prepare, ssd.check_input, ssd.decode,
    )  # fmt: skip


def _cached(name: str, digest: str, maker: str) -> Path:
    """Where a network is kept: another asset's or another library's is another file."""
    folder = settings.load().home / "runs" / "detection"
    return folder / f"{name}-{digest[:8]}-{maker}.onnx"


def pictures(calibrate: int, judge: int) -> Pictures:
    """So many pictures of either kind.

    ``MICROBUDGET_DATA/coco`` (``instances_val2017.json``, and the pictures beside it or
    in ``val2017``) in profile ``full``; else pages generated here, whose boxes are
    known because they were drawn.

    Raises:
        DataError: profile ``full`` without that folder, or too few pictures in it.
    """
    if settings.load().profile == "full":
        return _from_coco(calibrate, judge)
    made = {
        kind: generate.generate(count, _SEEDS[kind])
        for kind, count in (("calibration", calibrate), ("judge", judge))
    }
    notes = {
        kind: coco.annotations(own, generate.CLASSES) for kind, own in made.items()
    }
    card = (
        "Generated pages\n  source   typeset on this machine: they are not scans of "
        "real ones\n  licence  MIT (the course's own sentences and "
        "drawings)"
    )
    return Pictures(**made, notes=notes, card=card, is_course_data=True)


def _from_coco(calibrate: int, judge: int) -> Pictures:
    folder = settings.load().data and settings.load().data / "coco"
    table = folder and folder / "instances_val2017.json"
    if not table or not table.is_file():
        raise DataError(
            "Profile full judges by COCO's validation pictures: put "
            "instances_val2017.json and the folder val2017 into "
            "MICROBUDGET_DATA/coco, or use MICROBUDGET_PROFILE=mini."
        )
    whole = json.loads(table.read_text(encoding="utf-8"))
    ids = sorted(category["id"] for category in whole["categories"])
    order = np.random.default_rng(0).permutation(len(whole["images"]))
    if len(order) < calibrate + judge:
        raise DataError(f"{table} lists {len(order)} pictures, too few.")
    found, notes = {}, {}
    for kind, chosen in (
        ("calibration", order[:calibrate]),
        ("judge", order[calibrate : calibrate + judge]),
    ):
        images = [whole["images"][i] for i in chosen]
        known = {image["id"] for image in images}
        own = [n for n in whole["annotations"] if n["image_id"] in known]
        notes[kind] = {
            "images": sorted(images, key=lambda image: image["id"]),
            "annotations": own,
            "categories": sorted(whole["categories"], key=lambda c: c["id"]),
        }
        found[kind] = [
            _page(folder, image, own, ids) for image in notes[kind]["images"]
        ]
    card = (
        "COCO 2017, validation pictures\n  licence  CC BY 4.0: the annotations; the "
        "pictures are under the terms of their owners on Flickr"
    )
    return Pictures(**found, notes=notes, card=card, is_course_data=False)


def _page(
    folder: Path, image: dict, notes: list[dict], ids: list[int]
) -> generate.Page:
    path = folder / "val2017" / image["file_name"]
    path = path if path.is_file() else folder / image["file_name"]
    try:
        with Image.open(path) as opened:
            picture = np.asarray(opened.convert("RGB"))
    except OSError as error:
        raise DataError(f"{path} can't be read as a picture ({error}).") from error
    own = [n for n in notes if n["image_id"] == image["id"] and not n["iscrowd"]]
    labels = np.array([ids.index(n["category_id"]) for n in own], np.int64)
    return generate.Page(picture, bx.from_coco([n["bbox"] for n in own]), labels)
