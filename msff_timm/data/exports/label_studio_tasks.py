"""Tasks of Label Studio's exports JSON, JSON_MIN and CSV, with the labels of each annotation."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import InputError
from ..columns import is_label
from ..json_files import read_json
from ..table_files import read_table
from ..text import is_one_line, join_names, quote

__all__ = ['Export', 'Task']

# Columns of JSON_MIN and CSV beside those of the task and of the annotation
ABOUT = ('agreement', 'annotation_id', 'annotator', 'created_at', 'history', 'id', 'lead_time', 'updated_at')
IMAGE = re.compile(r'.*\.[a-zA-Z]\w{2,3}(\?.*)?')  # path or URL of an image


@dataclass
class Task:
    """A task with the answers of its annotators.

    Attributes:
        where: File and number of the task, for messages.
        data: Fields of the task, one of which names the image.
        answers: Labels of each annotation by the name of their control.
        truths: True for each annotation that is marked as ground truth, else False.
    """

    where: str
    data: dict[str, object]
    answers: list[dict[str, set[str]]] = field(default_factory=list)
    truths: list[bool] = field(default_factory=list)


class Export:
    """The tasks of a file.

    Args:
        path: File.
        label_columns: Names of the controls whose values are labels; None for all that may be.
        image_column: Field of the tasks that names the image; None if it is not known.

    Attributes:
        tasks: Tasks in the order of the file.
        choices: Labels that are choices of whole images, by the name of their control.
        others: Number of results that are not labels by the name of their control.
        num_skipped: Number of annotations that were skipped.

    Raises:
        InputError: The file is invalid, or its columns can be read in two ways.
    """

    def __init__(self, path: Path, label_columns: Sequence[str] | None, image_column: str | None):
        self.path, self.label_columns, self.image_column = path, label_columns, image_column
        self.tasks: list[Task] = []
        self.choices: dict[str, set[str]] = defaultdict(set)
        self.others: Counter[str] = Counter()
        self.num_skipped = 0
        if path.suffix.lower() != '.json':
            table = read_table(path, {'annotation_id'})
            columns = [table.column(name) for name in table.columns]
            rows = [dict(zip(table.columns, values, strict=True)) for values in zip(*columns, strict=True)]
            self._read_rows(rows, table.where)
            return
        content = read_json(path, _without_outline)
        rows = _objects([content] if isinstance(content, dict) else content, f'{path}: its tasks')

        def where(number: int) -> str:
            return f'{path}: tasks[{number}]'

        if any({'annotations', 'completions'} & row.keys() for row in rows):
            self._read_tasks(rows, where)
        else:
            self._read_rows(rows, where)

    def _read_tasks(self, rows: list[dict], where: Callable[[int], str]) -> None:
        for number, row in enumerate(rows):
            data, place = row.get('data'), where(number)
            if not isinstance(data, dict):
                raise InputError(f"{place}: 'data' is {quote(data)}: must be an object.")
            task = Task(place, data)
            for annotation in _objects(row.get('annotations', row.get('completions')), f'{place}: annotations'):
                if annotation.get('was_cancelled') or annotation.get('skipped'):
                    self.num_skipped += 1
                    continue
                answer: dict[str, set[str]] = defaultdict(set)
                for result in _objects(annotation.get('result'), f'{place}: result'):
                    value, control = result.get('value'), result.get('from_name')
                    if isinstance(value, dict) and isinstance(control, str):
                        self._add(answer, control, value, place)
                task.answers.append(dict(answer))
                task.truths.append(bool(annotation.get('ground_truth')))
            self.tasks.append(task)

    def _read_rows(self, rows: list[dict], where: Callable[[int], str]) -> None:
        """Reads JSON_MIN or CSV: a row per annotation, which has the fields of its task as well."""
        columns = self._answer_columns(rows)
        tasks: dict[str, Task] = {}
        for number, row in enumerate(rows):
            data = {name: value for name, value in row.items() if name not in columns and name not in ABOUT}
            task = tasks.setdefault(str(row.get('id', where(number))), Task(where(number), data))
            if row.get('annotation_id', number) not in (None, ''):
                answer: dict[str, set[str]] = defaultdict(set)
                for name in columns:
                    value = _parse(row.get(name))
                    for item in value if isinstance(value, list) else [value]:
                        if isinstance(item, (str, dict)):
                            self._add(answer, name, {'choices': [item]} if isinstance(item, str) else item, task.where)
                task.answers.append(dict(answer))
                task.truths.append(False)
        self.tasks = list(tasks.values())

    def _answer_columns(self, rows: list[dict]) -> list[str]:
        """Returns the columns of controls in JSON_MIN or CSV.

        A column of text may be a choice, text that an annotator typed, or a field of the task; in JSON_MIN, fields come
        before `id` and `annotator` follows the controls.
        """
        names = list(dict.fromkeys(name for row in rows for name in row))
        if self.label_columns:
            return [name for name in names if name in self.label_columns]
        kinds = {name: {type(_parse(row.get(name))) for row in rows} - {type(None)} for name in names}
        images = {name for name in names if any(IMAGE.fullmatch(str(row.get(name))) for row in rows)}
        images.add(self.image_column)
        structured = [name for name in names if name not in ABOUT and kinds[name] & {dict, list}]
        between = {
            name
            for row in map(list, rows)
            if 'id' in row and 'annotator' in row
            for name in row[row.index('id') : row.index('annotator')]
        }
        if self.path.suffix.lower() != '.json' or between & images:
            between = set(names)
        others = {*ABOUT, *images, *structured}
        plain = [name for name in names if kinds[name] == {str} and name in between - others and is_label(name, None)]
        if len(plain) > 1 or plain and structured:
            raise InputError(
                f'{self.path}: the columns {join_names([*structured, *plain])} may hold labels or other text: set'
                ' data.label_columns to those of labels.'
            )
        return structured or plain

    def _add(self, answer: dict[str, set[str]], control: str, value: dict, where: str) -> None:
        """Adds the labels of one result to those of its control."""
        key = next((key for key in value if key == 'choices' or key.endswith('labels')), None)
        # Choices of a box or an outline, e.g. whether it is occluded, describe the object.
        is_detail = key == 'choices' and not {'x', 'points', 'format'}.isdisjoint(value)
        if key is None or is_detail and control not in (self.label_columns or ()):
            self.others[control] += 1
            return
        names = value[key]
        if not isinstance(names, list) or not all(isinstance(name, str) and is_one_line(name) for name in names):
            raise InputError(f'{where}: {key!r} of {control!r} is {quote(names)}: must be a list of labels.')
        names = {name.strip() for name in names if name.strip()}
        if key == 'choices' and not is_detail:
            self.choices[control] |= names
        answer[control] |= names


def _without_outline(node: dict) -> dict:
    node.pop('rle', None)  # most of a file with brush strokes
    return node


def _objects(value: object, where: str) -> list[dict]:
    if value is not None and not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        raise InputError(f'{where} are {quote(value)}: must be a list of objects.')
    return value or []


def _parse(value: object) -> object:
    """Returns the content of a cell: in CSV, lists and objects are JSON, and an empty cell means None."""
    if isinstance(value, str) and value[:1] in ('[', '{'):
        try:
            return json.loads(value, object_hook=_without_outline)
        except (ValueError, RecursionError):
            return value
    return None if value == '' else value
