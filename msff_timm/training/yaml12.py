"""YAML 1.2, as users mean it, read and written with PyYAML, which reads YAML 1.1."""

import json
import re
from typing import Any

import yaml

__all__ = ['format_value', 'read_scalar', 'read_yaml', 'write_yaml']

MOST_VALUES = 100_000  # including those that aliases repeat
DEEPEST = 20
MOST_SHOWN = 60  # characters of a value in a message
WORDS: dict[str, bool | None] = {'': None, '~': None, 'null': None, 'Null': None, 'NULL': None}
WORDS |= {'true': True, 'True': True, 'TRUE': True, 'false': False, 'False': False, 'FALSE': False}
INTEGER = re.compile(r'[-+]?(0|[1-9][0-9]*)')
FLOAT = re.compile(r'[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?')
FLOAT_ALONE = re.compile(f'(?:{FLOAT.pattern})$')
NOT_FINITE = re.compile(r'[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)')


class _Loader(yaml.SafeLoader):
    """Resolves no types: those of YAML 1.1 are not what users mean."""

    yaml_implicit_resolvers: dict = {}


def read_yaml(text: str | bytes) -> Any:
    """Reads YAML 1.2: plain words are text, except null, true, false and decimal numbers.

    In YAML 1.1, `no` is false, `010` is 8, `1:30` is 90, `2026-11-28` is a date, and `1e-4` is text.

    Raises:
        ValueError: The text is not YAML, a key is not text or is repeated, or values are nested too deeply.
    """
    try:
        node = yaml.compose(text, _Loader)
        return None if node is None else _Values().read(node, 0)
    except RecursionError:
        raise ValueError(f'nested more than {DEEPEST} deep') from None
    except yaml.MarkedYAMLError as e:
        hint = '; use spaces instead of tabs' if "'\\t'" in f'{e.problem}' else ''
        assert e.problem_mark is not None
        line, said = e.problem_mark.line + 1, ' '.join(f'{e.context or ""} {e.problem}'.split())
        raise ValueError(f'line {line}: {said}{hint}') from None
    except yaml.reader.ReaderError as e:
        hint = '' if e.encoding == 'unicode' else '; save it as UTF-8'
        raise ValueError(f'{e.reason}: character {e.character:#04x} at {e.position}{hint}') from None


class _Dumper(yaml.SafeDumper):
    """Quotes text that is a number in YAML 1.2, e.g. `1e5`, in addition to text that is one in YAML 1.1."""


_Dumper.add_implicit_resolver('tag:yaml.org,2002:float', FLOAT_ALONE, list('-+.0123456789'))


def write_yaml(value: Any) -> str:
    """Writes YAML that `read_yaml`, and any reader of YAML 1.1, reads back unchanged."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


class _Values:
    """Converts YAML nodes to values; aliases may repeat nodes many times, or without an end."""

    def __init__(self):
        self.left = MOST_VALUES

    def read(self, node: yaml.Node, depth: int) -> Any:
        line = f'line {node.start_mark.line + 1}'
        self.left -= 1
        if self.left < 0:
            raise ValueError(f'{line}: more than {MOST_VALUES:,} values, including those that aliases repeat')
        if depth > DEEPEST:
            raise ValueError(f'{line}: nested more than {DEEPEST} deep, or an alias of a value that contains it')
        if not node.tag.startswith('tag:yaml.org,2002:') or node.tag.rpartition(':')[2] not in ('str', 'seq', 'map'):
            raise ValueError(f'{line}: has the tag {node.tag.replace("tag:yaml.org,2002:", "!!")}; leave it out')
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.ScalarNode):
            return read_scalar(node.value, line) if node.style is None else _text(node.value, line)
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self.read(key_node, depth + 1)
            if not isinstance(key, str):
                raise ValueError(f'line {line}: the key {format_value(key)} is not text; put it in quotes')
            if key in found:
                raise ValueError(f'{key} is given twice, in lines {lines[key]} and {line}')
            found[key], lines[key] = self.read(value_node, depth + 1), line
        return found


def read_scalar(text: str, line: str) -> Any:
    """Converts a plain word.

    Args:
        text: Word to convert.
        line: Place of the word, for the message.
    """
    if text in WORDS:
        return WORDS[text]
    if INTEGER.fullmatch(text):
        return int(text)
    if FLOAT.fullmatch(text):
        return float(text)
    if NOT_FINITE.fullmatch(text):
        return float(text.lower().replace('.', ''))
    return _text(text, line)


def _text(text: str, line: str) -> str:
    try:
        # JSON writes characters beyond \uFFFF as two halves.
        return text.encode('utf-16', 'surrogatepass').decode('utf-16')
    except UnicodeDecodeError:
        raise ValueError(f'{line}: {ascii(text)} holds half a character') from None


def format_value(value: Any) -> str:
    """Formats a value as in YAML, on one line, and shortened if it is long."""
    if isinstance(value, str):
        text = value if value.isprintable() else ascii(value)
    else:
        text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_SHOWN else f'{text[:MOST_SHOWN]} ...'
