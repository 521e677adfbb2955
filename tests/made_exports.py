"""Small exports in the layouts that annotation tools write, all of the same images and labels."""

import json
import shutil
from pathlib import Path

from PIL import Image

# Labels of each image of each split
SPLITS = {
    'train': {'a': ['cat', 'dog'], 'b': ['dog'], 'c': [], 'd': ['owl', 'cat']},
    'valid': {'e': ['cat'], 'f': ['dog', 'owl']},
    'test': {'g': ['owl'], 'h': []},
}
NAMES = ['cat', 'dog', 'owl']
WIDTH, HEIGHT = 40, 20
BOXES = {
    'cat': [(0, 0, 20, 10), (2, 2, 4, 4)],
    'dog': [(10, 5, 20, 10)],
    'owl': [(0, 0, 40, 20)],
}  # x, y, width, height
AREAS = {'cat': 0.25, 'dog': 0.25, 'owl': 1.0}  # of the largest box, as a share of the image
FULL = {'train': 'train', 'valid': 'validation', 'test': 'test'}


def save(path: Path, stem: str) -> Path:
    """Writes an image whose colour is its name, so that a test sees which one was read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (WIDTH, HEIGHT), (ord(stem[0]), 0, 0)).save(path)
    return path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')


def coco_json(images: dict[str, list[str]], file_name='{}.png', first=1, categories=None) -> dict:
    """The content of a COCO-style file; `first` is the id of the first category."""
    content = {'images': [], 'annotations': [], 'categories': categories or [
        {'id': first + number, 'name': name, 'supercategory': ''} for number, name in enumerate(NAMES)
    ]}  # fmt: skip
    for image_id, (stem, labels) in enumerate(images.items()):
        name = file_name.format(stem)
        content['images'].append({'id': image_id, 'file_name': name, 'width': WIDTH, 'height': HEIGHT})
        for label in labels:
            for box in BOXES[label]:
                entry = {'id': len(content['annotations']), 'image_id': image_id, 'iscrowd': 0, 'segmentation': []}
                entry |= {'category_id': first + NAMES.index(label), 'bbox': list(box), 'area': box[2] * box[3]}
                content['annotations'].append(entry)
    return content


def voc_xml(stem: str, labels: list[str], suffix='.png') -> str:
    objects = ''
    for label in labels:
        for x, y, width, height in BOXES[label]:
            box = f'<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + width}</xmax><ymax>{y + height}</ymax>'
            objects += f'<object><name>{label}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>'
    size = f'<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>'
    return f'<annotation><folder></folder><filename>{stem}{suffix}</filename>{size}{objects}</annotation>'


def yolo_txt(labels: list[str]) -> str:
    lines = ''
    for label in labels:
        for x, y, width, height in BOXES[label]:
            center = (x + width / 2) / WIDTH, (y + height / 2) / HEIGHT
            lines += f'{NAMES.index(label)} {center[0]} {center[1]} {width / WIDTH} {height / HEIGHT}\n'
    return lines


def coco_roboflow(root: Path) -> None:
    categories = [{'id': 0, 'name': 'animals', 'supercategory': 'none'}]
    categories += [{'id': i, 'name': name, 'supercategory': 'animals'} for i, name in enumerate(NAMES, 1)]
    for split, images in SPLITS.items():
        for stem in images:
            save(root / split / f'{stem}_png.rf.0a1b.png', stem)
        content = coco_json(images, '{}_png.rf.0a1b.png', 1, categories)
        write(root / split / '_annotations.coco.json', json.dumps({'info': {'year': '2024'}, **content}))
    write(root / 'README.roboflow.txt', 'animals - v1\n')


def coco_cvat(root: Path) -> None:
    for split, images in SPLITS.items():
        for stem in images:
            save(root / 'images' / FULL[split] / f'{stem}.png', stem)
        write(root / 'annotations' / f'instances_{FULL[split].title()}.json', json.dumps(coco_json(images)))


def coco_names_in_file(root: Path) -> None:
    """Images of the same names in each split, annotations beside the folders."""
    for split, images in SPLITS.items():
        names = dict(zip(images, '0123', strict=False))
        for stem, name in names.items():
            save(root / split / f'{name}.png', stem)
        content = coco_json({names[stem]: labels for stem, labels in images.items()})
        write(root / f'{split}_annotations.json', json.dumps(content))


def coco_one_file(root: Path) -> None:
    """One file above the folders of the splits."""
    every = {f'{split}/{stem}': labels for split, images in SPLITS.items() for stem, labels in images.items()}
    for name in every:
        save(root / 'images' / f'{name}.png', name[-1])
    write(root / 'result.json', json.dumps(coco_json(every, 'images/{}.png', 0)))


def voc_roboflow(root: Path) -> None:
    for split, images in SPLITS.items():
        for stem, labels in images.items():
            save(root / split / f'{stem}.png', stem)
            write(root / split / f'{stem}.xml', voc_xml(stem, labels))


def voc_folders(root: Path) -> None:
    for split, images in SPLITS.items():
        for stem, labels in images.items():
            save(root / split / 'JPEGImages' / f'{stem}.png', stem)
            write(root / split / 'Annotations' / f'{stem}.xml', voc_xml(stem, labels))


def voc_lists(root: Path) -> None:
    """CVAT's export with subsets, which also has class files that know nothing of boxes."""
    for split, images in SPLITS.items():
        for stem, labels in images.items():
            save(root / 'JPEGImages' / f'{stem}.png', stem)
            write(root / 'Annotations' / f'{stem}.xml', voc_xml(stem, labels))
        write(root / 'ImageSets' / 'Main' / f'{FULL[split]}.txt', '\n'.join(images))
        for name in NAMES:
            write(root / 'ImageSets' / 'Main' / f'{name}_{FULL[split]}.txt', '')
    write(root / 'labelmap.txt', '# label:color_rgb:parts:actions\ncat:::\n')


def yolo_roboflow(root: Path) -> None:
    for split, images in SPLITS.items():
        for stem, labels in images.items():
            save(root / split / 'images' / f'{stem}.png', stem)
            write(root / split / 'labels' / f'{stem}.txt', yolo_txt(labels))
    paths = 'train: ../train/images\nval: ../valid/images\ntest: ../test/images\n'
    write(root / 'data.yaml', f"{paths}\nnc: 3\nnames: ['cat', 'dog', 'owl']\n\nroboflow:\n  version: 1\n")


def yolo_ultralytics(root: Path) -> None:
    for split, images in SPLITS.items():
        for stem, labels in images.items():
            save(root / 'images' / FULL[split] / f'{stem}.png', stem)
            if labels:
                write(root / 'labels' / FULL[split] / f'{stem}.txt', yolo_txt(labels))
    names = 'names:\n  0: cat\n  1: dog\n  2: owl\n'
    splits = 'train: [images/train]\nval: images/validation\ntest: images/test\n'
    write(root / 'dataset.yaml', f'path: .\n{splits}{names}')


def yolo_cvat(root: Path) -> None:
    """CVAT's Ultralytics export: text files that list the images."""
    for split, images in SPLITS.items():
        for stem, labels in images.items():
            save(root / 'images' / FULL[split] / f'{stem}.png', stem)
            write(root / 'labels' / FULL[split] / f'{stem}.txt', yolo_txt(labels))
        write(root / f'{FULL[split]}.txt', ''.join(f'images/{FULL[split]}/{stem}.png\n' for stem in images))
    splits = 'train: train.txt\nval: validation.txt\ntest: test.txt\n'
    write(root / 'data.yaml', f'names:\n  0: cat\n  1: dog\n  2: owl\npath: .\n{splits}')


def yolo_darknet(root: Path) -> None:
    """CVAT's YOLO 1.1, whose paths begin with `data/`."""
    for split, images in SPLITS.items():
        for stem, labels in images.items():
            save(root / f'obj_{split}_data' / f'{stem}.png', stem)
            write(root / f'obj_{split}_data' / f'{stem}.txt', yolo_txt(labels))
        write(root / f'{split}.txt', ''.join(f'data/obj_{split}_data/{stem}.png\n' for stem in images))
    write(root / 'obj.names', 'cat\ndog\nowl\n')
    lists = ''.join(f'{split} = data/{split}.txt\n' for split in SPLITS)
    write(root / 'obj.data', f'classes = 3\n{lists}names = data/obj.names\nbackup = backup/\n')


def yolo_roboflow_darknet(root: Path) -> None:
    for split, images in SPLITS.items():
        for stem, labels in images.items():
            save(root / split / f'{stem}.png', stem)
            write(root / split / f'{stem}.txt', yolo_txt(labels))
        write(root / split / '_darknet.labels', 'cat\ndog\nowl')


WRITERS = [
    coco_roboflow, coco_cvat, coco_names_in_file, coco_one_file, voc_roboflow, voc_folders, voc_lists, yolo_roboflow,
    yolo_ultralytics, yolo_cvat, yolo_darknet, yolo_roboflow_darknet,
]  # fmt: skip


def make(writer, root: Path) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    writer(root)
    return root
