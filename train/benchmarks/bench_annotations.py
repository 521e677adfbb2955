"""Measures loading of made-up annotations of the size of COCO 2014, the first and the second time."""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from bench_common import check_at_least, in_own_process
from own_process import load_annotations

NUM_CLASSES = 80


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--num_images', type=int, default=82783, help='number of images, by default that of COCO 2014')
    parser.add_argument('--num_boxes', type=int, default=604907, help='number of boxes, by default that of COCO 2014')


def run(options: argparse.Namespace) -> dict:
    check_at_least(options, num_images=1, num_boxes=NUM_CLASSES)
    with tempfile.TemporaryDirectory() as folder:
        file = write_annotations(Path(folder), options.num_images, options.num_boxes)
        mib = file.stat().st_size / 2**20
        print(f'{options.num_images} images, {options.num_boxes} boxes, {mib:.0f} MiB of JSON:')
        environment = {'HF_DATASETS_CACHE': str(Path(folder, 'cache'))}
        times = {turn: in_own_process(load_annotations, folder, **environment) for turn in ('first', 'second')}
    for turn, found in times.items():
        print(
            f'{turn:8} {found["seconds"]:8.3f} s, peak {found["peak_mib"]:.0f} MiB,'
            f' before loading {found["peak_mib_before"]:.0f} MiB'
        )
    return {'num_images': options.num_images, 'num_boxes': options.num_boxes, 'file_mib': mib, **times}


def write_annotations(root: Path, num_images: int, num_boxes: int) -> Path:
    """Writes random annotations with all keys of COCO's, and empty image files."""
    generator = np.random.default_rng(0)
    (root / 'annotations').mkdir()
    (root / 'train2014').mkdir()
    names = [f'COCO_train2014_{image_id:012}.jpg' for image_id in range(1, num_images + 1)]
    for name in names:
        (root / 'train2014' / name).touch()
    images = (
        f'{{"license": 1, "file_name": "{name}", "coco_url": "http://images.cocodataset.org/train2014/{name}",'
        f' "height": 480, "width": 640, "date_captured": "2013-11-14 16:28:13", "flickr_url": "", "id": {i}}}'
        for i, name in enumerate(names, 1)
    )
    # With 24 corners, the file is about as large as COCO's.
    polygons = [json.dumps([p]) for p in (generator.random((1000, 48)) * 480).round(2).tolist()]
    category_ids = generator.permutation(np.arange(num_boxes) % NUM_CLASSES + 1).tolist()  # each occurs
    image_ids = generator.integers(1, num_images + 1, num_boxes).tolist()
    boxes = (generator.random((num_boxes, 4)) * 240).round(2).tolist()
    annotations = (
        f'{{"segmentation": {polygons[i % 1000]}, "area": {round(box[2] * box[3], 2)}, "iscrowd": 0,'
        f' "image_id": {image_id}, "bbox": {box}, "category_id": {category_id}, "id": {i}}}'
        for i, (image_id, category_id, box) in enumerate(zip(image_ids, category_ids, boxes, strict=True), 1)
    )
    categories = [{'supercategory': 'thing', 'id': i, 'name': f'thing {i}'} for i in range(1, NUM_CLASSES + 1)]
    licenses = [{'url': '', 'id': 1, 'name': 'made up'}]
    head = json.dumps({'info': {'year': 2014}, 'licenses': licenses, 'categories': categories})[:-1]
    file = root / 'annotations' / 'instances_train2014.json'
    file.write_text(f'{head}, "images": [{", ".join(images)}], "annotations": [{", ".join(annotations)}]}}')
    return file
