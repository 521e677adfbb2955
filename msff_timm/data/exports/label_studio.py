"""Reader of Label Studio's exports JSON, JSON_MIN and CSV: choices of images, and labels of boxes and outlines.

Labels on which annotators disagree are masked; if one of the annotations is marked as ground truth, it decides.
Predictions, drafts and skipped annotations are not annotations. Tasks without annotations are not used.
"""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from datasets import Dataset

from ...errors import InputError, unknown
from ..records import Records, cached, make_warning
from ..table_splits import SPLIT_COLUMNS, standard_split
from ..text import check_names, is_one_line, join_names, quote
from .files import ImageFinder, read_head, select_rows
from .label_studio_tasks import Export, Task
from .splits import choose_split
from .tree import Tree, read_tree

__all__ = ['load', 'recognise']

MOST_FILES = 50  # of a folder, whose beginning is read to find an export
UPLOAD = re.compile(r'[0-9a-f]{8}-(.+)')  # Label Studio puts eight digits before the name of an uploaded file


def recognise(root: Path) -> str | None:
    """Returns the names of the exports in a folder, or of the file itself."""
    found = _find_exports(read_tree(root))
    return join_names([path.name for path in found], 3) if found else None


def load(
    split: str,
    root: Path,
    *,
    image_root: str | None = None,
    image_column: str | None = None,
    label_columns: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    missing: str | None = None,
) -> Dataset:
    """Loads one split of an export of Label Studio.

    Splits are files (`train.json`), or a field of the tasks such as `split`, or folders of the images; else all images
    belong to `train`. Images are found below the folder by the end of their URL, with or without the digits that Label
    Studio puts before the names of uploads.

    Args:
        split: `train`, `validation` or `test`.
        root: Export, or the folder of one or of one per split.
        image_root: Folder of the images; None for `root`, or the folder of this file.
        image_column: Field of the tasks that names the image; None to find it.
        label_columns: Names of the controls whose values are labels; None for all that choose labels of an image, a
            box or an outline. Choices that describe a box are labels only if this names their control.
        label_names: Label names in the order of the logits, or None for those that occur.
        missing: Treatment of missing images, see `msff_timm.data.load`.

    Raises:
        InputError: The export is invalid, or can be read in two ways.
    """
    tree = Tree(root)
    paths = _find_exports(tree)
    if not paths:
        raise InputError(f'{root}: contains no export of Label Studio (JSON, JSON_MIN or CSV).')
    by_split = {standard_split(path.stem): path for path in paths}
    if len(paths) > 1 and (None in by_split or len(by_split) < len(paths)):
        names = join_names([path.name for path in paths], 5)
        raise InputError(
            f'{root}: contains several exports ({names}): set data.root to one of them, or name them train.json etc.'
        )
    part = choose_split(split, by_split, root)  # None for a file that may hold several splits
    image_tree = Tree(Path(image_root or tree.root))

    def read() -> Records:
        exports = {path: Export(path, label_columns, image_column) for path in paths}
        names = list(label_names) if label_names is not None else None
        reader = _Reader(exports[by_split[part]], image_tree, missing)
        reader.find_labels(list(exports.values()), label_columns, names)
        return reader.read(split, image_column, may_hold_several=part is None)

    return cached(
        read,
        paths,
        reader='label_studio',
        paths=[str(path) for path in paths],
        split=split,
        image_root=str(image_tree.root),
        settings=(image_column, label_columns, label_names, missing),
        files=image_tree.digest(),
    )


def _find_exports(tree: Tree) -> list[Path]:
    found = []
    for name in tree.find('.json', '.csv', '.tsv', most=MOST_FILES):
        head = read_head(tree.root / name)
        if name.lower().endswith('.json'):
            kinds = ({'annotations', 'file_upload'}, {'annotations', 'from_name'}, {'annotation_id', 'lead_time'})
            is_export = head.lstrip()[:1] == '[' and any(all(f'"{key}"' in head for key in keys) for keys in kinds)
        else:
            columns = re.split('[,\t;]', head.partition('\n')[0].replace('"', '').strip())
            is_export = {'annotation_id', 'lead_time'} <= set(columns)
        if is_export:
            found.append(tree.root / name)
    return found


class _Reader:
    """Reads the images and labels of one export.

    Args:
        export: Export.
        tree: Files among which the images are.
        missing: Treatment of missing images, see `load`.
    """

    def __init__(self, export: Export, tree: Tree, missing: str | None):
        self.path, self.tasks, self.export, self.tree, self.missing = export.path, export.tasks, export, tree, missing

    def find_labels(
        self, exports: list[Export], label_columns: Sequence[str] | None, label_names: list[str] | None
    ) -> None:
        """Finds the controls that choose labels, and the label names, in the exports of all splits."""
        answers = [answer for export in exports for task in export.tasks for answer in task.answers]
        found = sorted({control for answer in answers for control in answer})
        for name in label_columns or ():
            if name not in found:
                raise InputError(f'{self.path}: {unknown("control in data.label_columns", name, found)}')
        self.controls = list(label_columns or found)
        control_of: dict[str, str] = {}
        for control in self.controls:
            for name in sorted(set().union(*(export.choices.get(control, ()) for export in exports))):
                if control_of.setdefault(name, control) != control:  # e.g. `yes`
                    raise InputError(
                        f'{self.path}: {quote(name)} is a choice of both {control_of[name]!r} and {control!r}: set'
                        ' data.label_columns to one of them.'
                    )
        labels = sorted({label for answer in answers for name in self.controls for label in answer.get(name, ())})
        self.label_names = labels if label_names is None else label_names
        if not labels:
            raise InputError(f'{self.path}: contains no labels in annotations (predictions are not annotations).')
        for label in labels:
            if label not in self.label_names:
                raise InputError(f'{self.path}: {unknown("label", label, self.label_names)}')
        check_names(f'{self.path}: labels', self.label_names)

    def read(self, split: str, image_column: str | None, may_hold_several: bool) -> Records:
        """Reads the images of one split."""
        annotated = [task for task in self.tasks if task.answers]
        paths, lost, notes = self._find_images(annotated, image_column)
        tasks_of: dict[str, list[Task]] = defaultdict(list)
        for task, path in zip(annotated, paths, strict=True):
            if path is not None:
                tasks_of[path].append(task)
        images, rule = self._select(split, tasks_of) if may_hold_several else (list(tasks_of), None)
        number_of = {name: number for number, name in enumerate(self.label_names)}
        states = [self._labels(tasks_of[image]) for image in images]
        labels, ignore = ([sorted(map(number_of.get, names)) for names in row] for row in zip(*states, strict=True))
        num_unused = len(self.tasks) - len(annotated)
        others = [f'{name} ({count})' for name, count in self.export.others.items()]
        return Records(
            label_names=self.label_names,
            images=[str(self.tree.root / image) for image in images],
            labels=labels,
            ignore=ignore,
            areas=[[] for _ in images],
            image_ids=images,
            warning=make_warning(self.path, lost, [], split, self.missing),
            notes=[
                f'labels: of {join_names(self.controls)}' + (f'; not labels: {join_names(others)}' if others else ''),
                *notes,
                *([rule] if rule else []),
                *([self._unused_note(num_unused)] if num_unused else []),
                *([_disputes_note(ignore)] if any(ignore) else []),
            ],
        )

    def _unused_note(self, count: int) -> str:
        skipped = f' ({self.export.num_skipped} annotations were skipped)' if self.export.num_skipped else ''
        return f'not used: {count} of {len(self.tasks)} tasks without annotations{skipped}'

    def _labels(self, tasks: list[Task]) -> tuple[set[str], set[str]]:
        """Returns the labels of an image on which its annotators agree, and those on which they do not."""
        answers = [answer for task in tasks for answer in zip(task.answers, task.truths, strict=True)]
        if any(truth for _, truth in answers):
            answers = [(answer, truth) for answer, truth in answers if truth]
        sets = [set().union(*(answer.get(control, ()) for control in self.controls)) for answer, _ in answers]
        agreed = set.intersection(*sets)
        return agreed, set.union(*sets) - agreed

    def _find_images(
        self, tasks: list[Task], image_column: str | None
    ) -> tuple[list[str | None], list[str], list[str]]:
        """Returns the path of each task's image or None, descriptions of missing ones, and notes."""
        finder = ImageFinder(self.tree)
        fields = [image_column] if image_column else list(dict.fromkeys(name for task in tasks for name in task.data))
        found = {name: [self._find(finder, task, name) for task in tasks] for name in fields}
        found = {name: paths for name, paths in found.items() if any(paths)}
        if len(set(map(tuple, found.values()))) > 1:
            raise InputError(
                f'{self.path}: several fields name images ({join_names(found)}): set data.image_column to one of them.'
            )
        if not found:
            texts = [(name, task.data.get(name)) for task in tasks for name in fields]
            example = next((f' (e.g. {name!r}: {quote(text)})' for name, text in texts if isinstance(text, str)), '')
            raise InputError(
                f'{self.path}: none of the images of {len(tasks)} tasks{example} is in {self.tree.root}: set'
                ' data.image_root to the folder of the images.'
            )
        name, paths = next(iter(found.items()))
        pairs = list(zip(tasks, paths, strict=True))
        reference_of: dict[str, object] = {}
        for task, path in pairs:
            if path is not None and reference_of.setdefault(path, task.data[name]) != task.data[name]:
                raise InputError(
                    f'{task.where}: {quote(task.data[name])} and {quote(reference_of[path])} may both be the file'
                    f' {path}: set data.image_root to the folder of the images.'
                )
        lost = [quote(task.data.get(name)) for task, path in pairs if path is None]
        problem = f'images that are not in {self.tree.root}: {len(lost)} of {len(tasks)}'
        path, reference = next(iter(reference_of.items()))
        note = f'images: {name!r}, found by name, e.g. {quote(reference)} is {path}'
        return paths, [f'{problem} (e.g. {lost[0]})'] if lost else [], [note]

    def _find(self, finder: ImageFinder, task: Task, name: str) -> str | None:
        reference = task.data.get(name)
        if not isinstance(reference, str) or not is_one_line(reference) or reference.startswith('data:'):
            return None
        for path in _paths(reference):
            found = finder.find(path)
            if len(found) > 1:
                raise InputError(
                    f'{task.where}: {quote(reference)} may be {" or ".join(found[:3])}: set data.image_root to the'
                    ' folder of the images.'
                )
            if found:
                return found[0]
        return None

    def _select(self, split: str, tasks_of: dict[str, list[Task]]) -> tuple[list[str], str]:
        """Returns the images of one split of a single export, and a note on what decided."""
        images = list(tasks_of)
        fields = [
            name for name in SPLIT_COLUMNS if any(name in task.data for tasks in tasks_of.values() for task in tasks)
        ]
        subsets = [tasks[0].data.get(fields[0]) if fields else None for tasks in tasks_of.values()]
        rows, rule = select_rows(self.path, split, subsets, images)
        return [images[row] for row in rows], rule


def _disputes_note(ignore: list[list[int]]) -> str:
    images = sum(map(bool, ignore))
    return f'masked: {sum(map(len, ignore))} labels of {images} images on which annotators disagree'


def _paths(reference: str) -> list[str]:
    """Returns the paths that a URL may mean: of local storage, of an upload with and without its digits, or any other.

    Examples:
        >>> _paths('/data/upload/1/ab12cd34-cat.jpg')
        ['/data/upload/1/ab12cd34-cat.jpg', 'cat.jpg']
        >>> _paths('/data/local-files/?d=photos%2Fcat.jpg')
        ['photos/cat.jpg']
    """
    try:
        parts = urlsplit(reference)
    except ValueError:
        return [reference]
    if 'local-files' in parts.path and 'd' in parse_qs(parts.query):
        return [parse_qs(parts.query)['d'][0]]
    paths = [unquote(parts.path)] if parts.scheme else [reference, unquote(parts.path)]
    if upload := UPLOAD.fullmatch(os.path.basename(parts.path)):
        paths += [upload[1], unquote(upload[1])]
    return list(dict.fromkeys(paths))
