"""Columns that list several labels per cell: finds their format, i.e. the delimiter of text, or vectors of 0 and 1."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ..errors import InputError
from .label_cells import (
    MISSING,
    NO_DELIMITER,
    cells_note,
    has_comma_lists,
    is_missing,
    read_list,
    split_labels,
)
from .text import quote

__all__ = ['LabelLists', 'find_delimiter', 'find_lists', 'texts_of']

# Never part of a name
STRONG = ('|', ';', '\t', '；', '｜')
# Seldom part of a name; an error without further evidence
COMMAS = (',', '，', '、')
# Delimiters only on evidence, which may also be contradictory and therefore an error
OTHERS = ('/', '+', '#', '&', '~', '^', '\\', '*', '=', '@', '$', '%', '!', '?', '<', '>', '／', '・', '·', ' ')
# Part of names so often that only a setting makes them delimiters
JOINERS = ('-', '_', ':', '.')
SPOKEN = {' ': 'a space', '\t': 'a tab'}
MOST_EVIDENCE = 2**23  # characters of texts; of more, every n-th text is evidence
ENTITY = re.compile(r'&#?\w+;')


@dataclass(frozen=True)
class LabelLists:
    """Format of a column that lists several labels per cell.

    Attributes:
        delimiter: Text between two labels; `none` if each text is one label, None to find it for each cell alone.
        label_names: Label names, or None.
        has_commas: True if commas separate the items of lists without quotes.
    """

    delimiter: str | None
    label_names: Sequence[str] | None = None
    has_commas: bool = False

    def read(self, value: object, where: str) -> list[str]:
        """Returns the labels of a cell; `where` is file, row and column for messages."""
        delimiter = self.delimiter
        if delimiter is None:
            delimiter = find_delimiter(texts_of([value]), self.label_names, where)[0]
        return split_labels(value, delimiter, where, self.has_commas)


def find_lists(
    cells: Iterable[object], delimiter: str | None, label_names: Sequence[str] | None, where: str
) -> tuple[LabelLists, str]:
    """Finds how cells hold several labels.

    Args:
        cells: Cells of the label column in all splits, and of the column `ignore`.
        delimiter: Text between two labels; None to find it.
        label_names: Label names, or None.
        where: File and column, for messages.

    Returns:
        Format of the cells, and the end of a note on it.

    Raises:
        InputError: The cells can be read in two ways.
    """
    cells, note = list(cells), ''
    if delimiter is None:
        delimiter, note = find_delimiter(texts_of(cells), label_names, where)
    return LabelLists(delimiter, label_names, has_comma_lists(cells)), note + cells_note(cells)


def texts_of(values: Iterable[object]) -> Iterable[str]:
    """Yields the cells that a delimiter may separate: text that is neither missing nor a list."""
    for value in values:
        if isinstance(value, str) and not is_missing(value) and not _looks_like_list(value):
            yield value


def _looks_like_list(text: str) -> bool:
    try:
        return read_list(text, '') is not None
    except InputError:
        return True


def find_delimiter(texts: Iterable[str], label_names: Collection[str] | None, where: str) -> tuple[str, str]:
    """Finds the text that separates the labels in a column of text.

    Label names decide if they are given. Otherwise, a delimiter needs evidence: the parts of a text occur in other
    texts too, alone or beside other parts.

    Args:
        texts: Cells of all splits (`texts_of`).
        label_names: Label names, or None.
        where: File and column, for messages.

    Returns:
        The delimiter, `none` if each text is one label, and the end of a note, which may be empty.

    Raises:
        InputError: The texts can be read in two ways.
    """
    texts = sorted({text.strip() for text in texts})
    if label_names is not None:
        names = set(label_names)
        for name in names & MISSING:
            raise InputError(f'{where}: {quote(name)} of data.label_names is read as missing: rename that label.')
        some = _evident(texts)
        characters = set().union(*some)
        matches = {
            delimiter: sum(part in names for text in some for part in _split(text, delimiter))
            for delimiter in (NO_DELIMITER, *STRONG, *COMMAS, *OTHERS, *JOINERS)
            if delimiter == NO_DELIMITER or delimiter in characters
        }
        complete = [d for d in matches if matches[d] == sum(len(_split(text, d)) for text in some)]
        if complete or any(matches.values()):
            return _result(complete[0] if complete else max(matches, key=matches.__getitem__), texts)
    for delimiter in STRONG:
        if any(delimiter in text and delimiter in ENTITY.sub('', text) for text in texts):
            if delimiter != '|':
                _check_parts({part for text in texts for part in _split(text, delimiter)}, texts, where)
            return _result(delimiter, texts)
    texts = _evident(texts)
    certain, are_names = [], True
    characters = set().union(*texts)
    for delimiter in (*COMMAS, *OTHERS, *JOINERS):
        if delimiter not in characters:
            continue
        if delimiter == ' ' and certain:
            continue  # labels of several words
        evidence = _Evidence(texts, delimiter)
        if not evidence.multiple:
            continue
        if delimiter in JOINERS:
            if evidence.is_alone and not certain:
                raise _ambiguous(evidence.example, where)
            continue
        if evidence.is_certain(delimiter):
            certain.append(delimiter)
        elif delimiter in COMMAS or not evidence.are_names:
            if not certain:
                raise _ambiguous(evidence.example, where)
        else:
            are_names = False
    if len(certain) > 1:
        raise _ambiguous(_Evidence(texts, certain[1]).example, where)
    if certain:
        return _result(certain[0], texts)
    if are_names:
        return NO_DELIMITER, ''
    example = next(text for text in texts if any(len(set(_split(text, delimiter))) > 1 for delimiter in OTHERS))
    return NO_DELIMITER, f', each text is one label, e.g. {quote(example)} (data.label_delimiter)'


def _evident(texts: list[str]) -> list[str]:
    return texts[:: sum(map(len, texts)) // MOST_EVIDENCE + 1]


def _check_parts(parts: set[str], texts: list[str], where: str) -> None:
    """Raises `InputError` if the parts of a text look like several labels themselves."""
    for comma in COMMAS:
        evidence = _Evidence(sorted(parts), comma)
        if evidence.multiple and evidence.is_certain(comma):
            raise _ambiguous(next(text for text in texts if comma in text), where)


def _split(text: str, delimiter: str) -> list[str]:
    parts = [text] if delimiter == NO_DELIMITER else text.split(delimiter)
    return [part for part in map(str.strip, parts) if part]


def _result(delimiter: str, texts: list[str]) -> tuple[str, str]:
    example = next((text for text in texts if len(_split(text, delimiter)) > 1), None)
    if delimiter == NO_DELIMITER or example is None:
        return delimiter, ''
    spoken = SPOKEN.get(delimiter, f"'{delimiter}'")
    return delimiter, f', delimited by {spoken}, e.g. {quote(example)} (data.label_delimiter)'


def _ambiguous(text: str, where: str) -> InputError:
    return InputError(
        f'{where}: {quote(text)} may be one label or several: set data.label_delimiter to the text between two labels,'
        ' or to none if it is one label.'
    )


class _Evidence:
    """Evidence for a delimiter: whether the parts of texts that contain it occur in other texts as well.

    Attributes:
        multiple: Sets of the parts of each text that has two parts or more.
        example: First text of them.
        is_alone: True if each of their parts is also a text by itself.
        num_recurring: Number of texts whose parts all occur in other texts too.
        num_isolated: Number of texts whose parts all occur nowhere else.
        are_names: True if the texts are more likely names that contain the delimiter.
    """

    def __init__(self, texts: list[str], delimiter: str):
        split = [(text, frozenset(_split(text, delimiter))) for text in texts]
        self.example = next((text for text, parts in split if len(parts) > 1), '')
        distinct = {parts for _, parts in split if parts}
        self.multiple = [parts for parts in distinct if len(parts) > 1]
        counts = Counter(part for parts in distinct for part in parts)
        alone = {part for parts in distinct if len(parts) == 1 for part in parts}
        self.is_alone = all(parts <= alone for parts in self.multiple)
        self.num_recurring = sum(all(counts[part] > 1 for part in parts) for parts in self.multiple)
        self.num_isolated = sum(all(counts[part] == 1 for part in parts) for parts in self.multiple)
        self.are_names = not self.num_recurring and 2 * self.num_isolated > len(self.multiple)
        # Few parts in many combinations of different sizes
        self._is_combined = len(distinct) >= 2 * len(counts) and len({len(parts) for parts in distinct}) >= 3

    def is_certain(self, delimiter: str) -> bool:
        if delimiter in COMMAS:
            return 10 * self.num_isolated <= len(self.multiple) <= 2 * self.num_recurring
        return not self.num_isolated and (self.is_alone or self._is_combined)
