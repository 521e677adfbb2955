"""COCO 2014 in its official layout: `{train,val}2014/` and `annotations/instances_{train,val}2014.json`."""

import json
import os
from collections import defaultdict
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image, List, Value

from ..errors import InputError, unknown

__all__ = ['load']

FOLDERS = {'train': 'train2014', 'validation': 'val2014'}


def load(split: str, root: str | None, keep_unlabelled: bool | None = None) -> Dataset:
    """Reads one split of COCO 2014; `msff_timm.data.load` tells the columns.

    A label is present when at least one instance of it is annotated, crowds included, as published results have it;
    its area is its largest instance's, relative to the picture. Classes come from the file, in the order of their
    ids, which have gaps.

    Args:
        split: `train` or `validation`.
        root: The folder that holds the pictures' folders and `annotations/`.
        keep_unlabelled: Keep pictures without any label; None keeps them in training and leaves them out of
            evaluation, as published results do.

    Raises:
        InputError: The root is not COCO's, or the annotations name what is not there.
    """
    if split not in FOLDERS:
        raise unknown('split of coco2014', split, FOLDERS)
    if not root:
        raise InputError('coco2014 needs data.root: the folder that holds train2014/, val2014/ and annotations/.')
    image_folder = Path(root, FOLDERS[split]).absolute()
    annotation_file = Path(root, 'annotations', f'instances_{FOLDERS[split]}.json')
    for expected in (annotation_file, image_folder):
        if not expected.exists():
            found = ', '.join(sorted(os.listdir(root))[:5]) if os.path.isdir(root) else 'no such folder'
            raise InputError(
                f'{root} is not the root of COCO 2014: {expected.relative_to(expected.parents[1])} is missing'
                f' (found: {found or "nothing"}).'
            )

    images, categories, largest = _read(annotation_file)
    label_of = {category_id: label for label, category_id in enumerate(categories)}
    on_disk = set(os.listdir(image_folder))
    keep_unlabelled = split == 'train' if keep_unlabelled is None else keep_unlabelled
    rows = []
    for image_id, file_name in sorted(images.items()):
        if file_name not in on_disk:
            raise InputError(f'{annotation_file}: image {image_id} names {file_name}, which is not in {image_folder}.')
        areas = {label_of[category_id]: area for category_id, area in largest[image_id].items()}
        if areas or keep_unlabelled:
            rows.append(
                {
                    'image': str(image_folder / file_name),
                    'labels': sorted(areas),
                    'area': [areas[label] for label in sorted(areas)],
                    'image_id': image_id,
                }
            )
    if not rows:
        raise InputError(f'{annotation_file}: holds no {"image" if keep_unlabelled else "labelled image"}.')
    features = Features(
        image=Image(),
        labels=List(ClassLabel(names=list(categories.values()))),
        area=List(Value('float32')),
        image_id=Value('int64'),
    )
    return Dataset.from_list(rows, features=features)


def _read(annotation_file: Path) -> tuple[dict[int, str], dict[int, str], dict[int, dict[int, float]]]:
    """Reads file names by image id, category names by id, and largest relative areas by both."""
    try:
        content = json.loads(annotation_file.read_text(encoding='utf-8'))
    except ValueError as e:
        raise InputError(f'{annotation_file}: is not whole JSON ({e}).') from None
    where = 'the file'
    try:
        categories = {c['id']: c['name'] for c in sorted(content['categories'], key=lambda c: c['id'])}
        images, sizes = {}, {}
        for row, image in enumerate(content['images']):
            where = f'images[{row}]'
            images[image['id']], sizes[image['id']] = image['file_name'], image['width'] * image['height']
        largest = defaultdict(dict)
        for row, annotation in enumerate(content['annotations']):
            where = f'annotations[{row}]'
            image_id, category_id = annotation['image_id'], annotation['category_id']
            if category_id not in categories:
                raise InputError(f'{annotation_file}: {where} has category_id {category_id}, not among the categories.')
            if image_id not in images:
                raise InputError(f'{annotation_file}: {where} has image_id {image_id}, not among the images.')
            area = annotation['area'] / sizes[image_id]
            largest[image_id][category_id] = max(area, largest[image_id].get(category_id, 0.0))
    except (KeyError, TypeError, ZeroDivisionError) as e:
        problem = f'{e} is missing' if isinstance(e, KeyError) else str(e)
        raise InputError(f"{annotation_file}: {where} is not as COCO's format has it ({problem}).") from None
    return images, categories, largest
