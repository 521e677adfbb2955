"""Finds what parts the labels in a column of text."""

import re
from collections import Counter
from collections.abc import Collection, Iterable

from ..errors import InputError
from .label_cells import MISSING, NONE, is_missing, read_list
from .records import shown

__all__ = ['find_delimiter', 'texts_of']

# Never within a name
STRONG = ('|', ';', '\t', '；', '｜')
# Rarely within a name: without evidence it is an error
COMMAS = (',', '，', '、')
# Within names as well: the evidence decides, and it may be an error
OTHERS = ('/', '+', '#', '&', '~', '^', '\\', '*', '=', '@', '$', '%', '!', '?', '<', '>', '／', '・', '·', ' ')
# So often within names that they are delimiters only where a setting says so
JOINERS = ('-', '_', ':', '.')
SPOKEN = {' ': 'a space', '\t': 'a tab'}
ENTITY = re.compile(r'&#?\w+;')


def texts_of(values: Iterable[object]) -> Iterable[str]:
    """Gives the cells that a delimiter may part: text that is neither missing nor a list."""
    for value in values:
        if isinstance(value, str) and not is_missing(value) and not _looks_like_list(value):
            yield value


def _looks_like_list(text: str) -> bool:
    try:
        return read_list(text, '') is not None
    except InputError:
        return True


def find_delimiter(texts: Iterable[str], label_names: Collection[str] | None, where: str) -> tuple[str, str]:
    """Finds what parts the labels in text.

    Names that are known decide, else what the texts hold: a delimiter is one where the parts of a text are found in
    others too, by themselves or beside others.

    Args:
        texts: Those of all splits (`texts_of`).
        label_names: Label names, where they are known.
        where: File and column, for messages.

    Returns:
        The delimiter, `none` where each text is one label, and the end of a line on it, empty where there is nothing
        to show.

    Raises:
        InputError: The texts can be read in two ways.
    """
    texts = sorted({text.strip() for text in texts})
    if label_names is not None:
        names = set(label_names)
        for name in names & MISSING:
            raise InputError(f'{where}: {shown(name)} of data.label_names is read as missing: rename that label.')
        known = {
            delimiter: sum(part in names for text in texts for part in _split(text, delimiter))
            for delimiter in (NONE, *STRONG, *COMMAS, *OTHERS, *JOINERS)
        }
        complete = [d for d in known if known[d] == sum(len(_split(text, d)) for text in texts)]
        if complete or any(known.values()):
            return _found(complete[0] if complete else max(known, key=known.__getitem__), texts)
    for delimiter in STRONG:
        if any(delimiter in ENTITY.sub('', text) for text in texts):
            if delimiter != '|':
                _check_rest({part for text in texts for part in _split(text, delimiter)}, texts, delimiter, where)
            return _found(delimiter, texts)
    sure, are_names = [], True
    for delimiter in (*COMMAS, *OTHERS, *JOINERS):
        if delimiter == ' ' and sure:
            continue  # labels of several words
        support = _Support(texts, delimiter)
        if not support.multiple:
            continue
        if delimiter in JOINERS:
            if support.is_alone and not sure:
                raise _unclear(support.example, where)
            continue
        if support.is_sure(delimiter):
            sure.append(delimiter)
        elif delimiter in COMMAS or not support.are_names:
            if not sure:
                raise _unclear(support.example, where)
        else:
            are_names = False
    if len(sure) > 1:
        raise _unclear(_Support(texts, sure[1]).example, where)
    if sure:
        return _found(sure[0], texts)
    if are_names:
        return NONE, ''
    example = next(text for text in texts if any(len(set(_split(text, delimiter))) > 1 for delimiter in OTHERS))
    return NONE, f', each text one label, as {shown(example)} (data.label_delimiter)'


def _check_rest(parts: set[str], texts: list[str], delimiter: str, where: str) -> None:
    """Raises InputError where the parts of a text look like several labels themselves."""
    for other in COMMAS:
        support = _Support(sorted(parts), other)
        if support.multiple and support.is_sure(other):
            raise _unclear(next(text for text in texts if other in text), where)


def _split(text: str, delimiter: str) -> list[str]:
    parts = [text] if delimiter == NONE else text.split(delimiter)
    return [part for part in map(str.strip, parts) if part]


def _found(delimiter: str, texts: list[str]) -> tuple[str, str]:
    example = next((text for text in texts if len(_split(text, delimiter)) > 1), None)
    if delimiter == NONE or example is None:
        return delimiter, ''
    spoken = SPOKEN.get(delimiter, f"'{delimiter}'")
    return delimiter, f', delimited by {spoken}, as {shown(example)} (data.label_delimiter)'


def _unclear(text: str, where: str) -> InputError:
    return InputError(
        f'{where}: {shown(text)} may be one label or several: set data.label_delimiter to what is between two labels,'
        ' or to none if it is one label.'
    )


class _Support:
    """What speaks for a delimiter: whether the parts of texts that hold it are found in other texts as well.

    Attributes:
        multiple: Texts with two parts or more, as sets of them.
        example: The first of them.
        is_alone: True where each part of these is also a text by itself.
        whole: Number of texts that have all their parts in others, too.
        apart: Number of texts that have none.
        are_names: True where they are rather names that hold the delimiter.
    """

    def __init__(self, texts: list[str], delimiter: str):
        parted = [(text, frozenset(_split(text, delimiter))) for text in texts]
        self.example = next((text for text, parts in parted if len(parts) > 1), '')
        distinct = {parts for _, parts in parted if parts}
        self.multiple = [parts for parts in distinct if len(parts) > 1]
        counts = Counter(part for parts in distinct for part in parts)
        alone = {part for parts in distinct if len(parts) == 1 for part in parts}
        self.is_alone = all(parts <= alone for parts in self.multiple)
        self.whole = sum(all(counts[part] > 1 for part in parts) for parts in self.multiple)
        self.apart = sum(all(counts[part] == 1 for part in parts) for parts in self.multiple)
        self.are_names = not self.whole and 2 * self.apart > len(self.multiple)
        # Few parts in very many combinations of any number of them
        self._is_combined = len(distinct) >= 2 * len(counts) and len({len(parts) for parts in distinct}) >= 3

    def is_sure(self, delimiter: str) -> bool:
        if delimiter in COMMAS:
            return 10 * self.apart <= len(self.multiple) <= 2 * self.whole
        return not self.apart and (self.is_alone or self._is_combined)
