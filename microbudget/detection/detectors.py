"""The course's detector, and the images it is calibrated and tested on.

``mini``: PicoDet trained on scanned documents, and pages generated here. ``full``:
DETR-ResNet-50 from the Hub, and COCO's validation images from a folder of yours.
"""

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .. import assets
from ..core import settings
from ..core.errors import DataError
from ..data.images import open_image
from ..data.synthetic.pages import CLASSES, AnnotatedImage, generate
from ..export.inspect import optimize_graph
from ..export.onnx import export_module
from . import coco, detr, picodet, preprocess
from .boxes import from_coco_boxes

_SEEDS = {"calibration": 1, "test": 2}  # of generated pages


@dataclass(frozen=True)
class Detector:
    """A network with what goes in and what comes out.

    Attributes:
        network: .onnx file, float32, one input.
        input: its name. size: its (height, width).
        classes: what labels count.
        parts: name -> convolutions, a slice of them in the file's order.
        decode: what the network gives in an engine, (height, width) of the image ->
            Detections.
    """

    name: str
    card: str
    network: Path
    size: tuple[int, int]
    classes: tuple[str, ...]
    parts: dict[str, slice]
    decode: Callable[..., coco.Detections]
    input: str = "image"

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """uint8 image -> the network's input, as ``preprocess.prepare_image``."""
        return preprocess.prepare_image(image, self.size)

    def check(self, array: np.ndarray, image: np.ndarray | None = None) -> None:
        """Raise DataError on an input that was prepared wrongly, perhaps from image."""
        preprocess.check_input(array, image)

    def find(self, session, image: np.ndarray) -> coco.Detections:
        """Boxes in one image, by the network in an engine (an ``export`` session)."""
        array = self.prepare(image)
        self.check(array, image)
        return self.decode(session(array), image.shape[:2])


@dataclass(frozen=True)
class DetectionData:
    """Annotated images; test images are never calibrated on.

    Attributes:
        calibration, test: the images.
        annotations: COCO's dictionary of either, by name.
        card: what they are. is_course_data: whether claims were checked on them.
    """

    calibration: Sequence[AnnotatedImage]
    test: Sequence[AnnotatedImage]
    annotations: dict[str, dict]
    card: str
    is_course_data: bool


def load_detector() -> Detector:
    """The detector of this profile, fetched first if it isn't here.

    Raises:
        AssetError: it can't be had. EngineError: onnx and its engines are missing.
    """
    return _detr() if settings.load().profile == "full" else _picodet()


def _picodet() -> Detector:
    folder, asset = assets.fetch("page-layout"), assets.get("page-layout")
    # Batch norms folded, constants computed: exact to rounding.
    path = optimize_graph(
        folder / "layout_cdla.onnx", _runs_folder() / "page-layout.onnx", "basic"
    )
    return Detector(
        "PicoDet", asset.card(), path, picodet.SIZE, CLASSES, picodet.PARTS,
        picodet.decode,
    )  # fmt: skip


def _detr() -> Detector:
    folder, asset = assets.fetch("detr-resnet-50"), assets.get("detr-resnet-50")
    digest = asset.spec["hub_files"]["model.safetensors"]
    path = _runs_folder() / f"detr-{digest[:8]}.onnx"
    if not path.is_file():  # exporting takes minutes
        example = {"image": torch.randn(1, 3, *detr.SIZE)}
        export_module(detr.load(folder), path, example, {}, output="found")
    table = (folder / "config.json").read_text(encoding="utf-8")
    names = json.loads(table)["id2label"]
    names = {int(i): name for i, name in names.items() if name != "N/A"}
    ids = sorted(names)
    return Detector(
        "DETR-ResNet-50", asset.card(), path, detr.SIZE,
        tuple(names[i] for i in ids), detr.PARTS, partial(detr.decode, ids=ids),
    )  # fmt: skip


def _runs_folder() -> Path:
    return settings.load().home / "runs" / "detection"


def load_data(calibration: int, test: int) -> DetectionData:
    """So many images of either kind.

    ``MICROBUDGET_DATA/coco`` (``instances_val2017.json`` and the folder ``val2017``) in
    profile ``full``; else pages generated here, whose boxes are known.

    Raises:
        DataError: profile ``full`` without that folder, or too few images in it.
    """
    counts = {"calibration": calibration, "test": test}
    if settings.load().profile == "full":
        return _from_coco(counts)
    pages = {kind: generate(count, _SEEDS[kind]) for kind, count in counts.items()}
    annotations = {kind: coco.to_coco(own, CLASSES) for kind, own in pages.items()}
    card = (
        "Generated pages\n  source   typeset on this machine: they are not scans of "
        "real ones\n  licence  MIT (the course's own sentences and drawings)"
    )
    return DetectionData(
        **pages, annotations=annotations, card=card, is_course_data=True
    )


def _from_coco(counts: dict[str, int]) -> DetectionData:
    from pycocotools.coco import COCO

    folder = settings.load().data and settings.load().data / "coco"
    table = folder and folder / "instances_val2017.json"
    if not table or not table.is_file():
        raise DataError(
            "Profile full is tested on COCO's validation images: put "
            "instances_val2017.json and the folder val2017 into "
            "MICROBUDGET_DATA/coco, or use MICROBUDGET_PROFILE=mini."
        )
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress
        everything = COCO(str(table))
    images, ids = everything.dataset["images"], sorted(everything.getCatIds())
    if len(images) < sum(counts.values()):
        raise DataError(f"{table} lists {len(images)} images, too few.")
    order = np.random.default_rng(0).permutation(len(images))
    data, annotations = {}, {}
    for kind, count in counts.items():
        chosen, order = sorted(images[i]["id"] for i in order[:count]), order[count:]
        annotations[kind] = {
            "images": everything.loadImgs(chosen),
            "annotations": everything.loadAnns(everything.getAnnIds(chosen)),
            "categories": everything.loadCats(ids),
        }
        data[kind] = [_annotated_image(folder, everything, i, ids) for i in chosen]
    card = (
        "COCO 2017, validation images\n  licence  CC BY 4.0: the annotations; the "
        "images are under the terms of their owners on Flickr"
    )
    return DetectionData(
        **data, annotations=annotations, card=card, is_course_data=False
    )


def _annotated_image(folder: Path, everything, image_id: int, ids: list[int]):
    """One of COCO's images, without crowds; labels are indices of ``ids``."""
    (row,) = everything.loadImgs([image_id])
    pixels = np.asarray(open_image(folder / "val2017" / row["file_name"]))
    own = everything.loadAnns(everything.getAnnIds([image_id], iscrowd=False))
    labels = np.array([ids.index(row["category_id"]) for row in own], np.int64)
    return AnnotatedImage(pixels, from_coco_boxes([row["bbox"] for row in own]), labels)
