"""Small exports of classification in the layouts that tools write, of the images and labels of `made_exports`."""

import io
import json
import tarfile
from pathlib import Path

from made_exports import FULL, NAMES, SPLITS, save, write


def folders(root: Path) -> None:
    for split, images in SPLITS.items():
        for stem, labels in images.items():
            for label in labels or ['no_label']:
                save(root / split / label / f'{stem}.png', stem)


def roboflow(root: Path) -> None:
    for split, images in SPLITS.items():
        lines = [', '.join(['filename', *NAMES])]
        for stem, labels in images.items():
            save(root / split / f'{stem}.png', stem)
            lines.append(', '.join([f'{stem}.png', *(str(int(name in labels)) for name in NAMES)]))
        write(root / split / '_classes.csv', '\n'.join(lines))


def label_studio(root: Path) -> None:
    tasks = []
    for split, images in SPLITS.items():
        for stem, labels in images.items():
            save(root / 'images' / split / f'{stem}.png', stem)
            choices = [{'from_name': 'animals', 'to_name': 'image', 'type': 'choices', 'value': {'choices': labels}}]
            annotation = {'completed_by': 1, 'result': choices if labels else [], 'was_cancelled': False}
            data = {'image': f'/data/local-files/?d=images/{split}/{stem}.png'}
            tasks.append({'id': len(tasks), 'annotations': [annotation], 'file_upload': None, 'data': data})
    write(root / 'project-1.json', json.dumps(tasks))


def cvat(root: Path) -> None:
    lines = ''.join(f'<label><name>{name}</name><type>tag</type></label>' for name in NAMES)
    lines = f'<annotations><version>1.1</version><meta><project><labels>{lines}</labels></project></meta>'
    for split, images in SPLITS.items():
        for stem, labels in images.items():
            save(root / 'images' / FULL[split] / f'{stem}.png', stem)
            tags = ''.join(f'<tag label="{label}" source="manual"></tag>' for label in labels)
            lines += f'\n<image id="0" name="{stem}.png" subset="{FULL[split]}">{tags}</image>'
    write(root / 'annotations.xml', f'<?xml version="1.0" encoding="utf-8"?>\n{lines}</annotations>')


def webdataset(root: Path) -> None:
    for split, images in SPLITS.items():
        for number in range(2):
            with tarfile.open(root / f'{split}-{number:06d}.tar', 'w') as tar:
                for stem in list(images)[number::2]:
                    image = save(root / f'{stem}.png', stem)
                    labels = json.dumps({'labels': images[stem]}).encode()
                    for name, content in ((f'{stem}.png', image.read_bytes()), (f'{stem}.json', labels)):
                        member = tarfile.TarInfo(name)
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
                    image.unlink()
    write(root / 'classes.txt', '\n'.join(NAMES))


CLASS_WRITERS = [folders, roboflow, label_studio, cvat, webdataset]
