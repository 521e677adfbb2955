"""How settings are read: from YAML files and command lines, each checked against the type that its dataclass gives."""

import json
import math
import os
import re
import sys
import types
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser

from ..errors import InputError, unknown
from ..files import read_small

__all__ = ['CONFIGS', 'find_settings', 'format_value', 'parse', 'read_yaml', 'write_yaml']

ConfigT = TypeVar('ConfigT')
INSTALLED = Path(__file__).parent / 'configs'
CONFIGS = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2] / 'train' / 'configs'  # the recipes
LARGEST = 2**20  # bytes of a settings file
PRINT = '--print_config'
MOST_VALUES = 100_000  # with what aliases repeat
DEEPEST = 20
MOST_SHOWN = 60  # characters of a value in a message
WORDS = {'': None, '~': None, 'null': None, 'Null': None, 'NULL': None}
WORDS |= {'true': True, 'True': True, 'TRUE': True, 'false': False, 'False': False, 'FALSE': False}
SWITCHES = {'yes': True, 'on': True, 'no': False, 'off': False, 'true': True, 'false': False}
INTEGER = re.compile(r'[-+]?(0|[1-9][0-9]*)')
FLOAT = re.compile(r'[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?')
FLOAT_ALONE = re.compile(f'(?:{FLOAT.pattern})$')
NOT_FINITE = re.compile(r'[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)')
KINDS = {
    str: 'text',
    int: 'a whole number',
    float: 'a finite number',
    bool: 'true or false',
    list[str]: 'a list of text ([a, b])',
    list[int]: 'a list of whole numbers ([0, 1])',
    list[float]: 'a list of finite numbers ([0.5, 1])',
    dict[str, Any]: 'a mapping ({a: 1}) without nan or infinity',
    Any: 'no nan or infinity',
}


def parse(config_class: type[ConfigT], argv: list[str], default_file: Path | None = None) -> ConfigT:
    """Reads settings from `--config FILE` (or the default file) with overrides `--key value`, or `--the-key value`.

    `--help` lists all settings, `--print_config` those that result as YAML; both end the process.

    Args:
        config_class: Dataclass of the settings, with a method `validate`; sections are dataclasses too.
        argv: Command line without its first word. Of a setting that is given twice the last one counts.
        default_file: File to read where the command line names none.

    Raises:
        InputError: A key is unknown, a value is not of its type or outside of its range, or a file cannot be read.
    """
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = ascii(argument)[1:-1]
            raise InputError(
                f'{shown}: is not UTF-8, and reports record all settings; rename the file or folder.'
            ) from None
    if not {'-h', '--help'}.isdisjoint(argv):
        parser = ArgumentParser(prog=Path(sys.argv[0]).name)
        parser.add_argument('--config', help=f'YAML file of settings (default: {default_file})')
        parser.add_argument(PRINT, action='store_true', help='print all settings as YAML and exit')
        parser.add_class_arguments(config_class)
        parser.parse_args(['--help'])
    kinds = dict(_kinds(config_class))
    given = list(_pairs([argument for argument in argv if argument != PRINT]))
    files = [value for key, value in given if key == 'config']
    if len(files) > 1:
        raise InputError(
            f'--config is given twice ({files[0]}, {files[1]}): give one file, and the rest as --key value.'
        )
    values = _read_file(find_settings(files[0]) if files else default_file, kinds) if files or default_file else {}
    values |= dict(_read_overrides([(key, value) for key, value in given if key != 'config'], kinds, values))
    config = _make(config_class, values)
    config.validate()
    if PRINT in argv:
        print(write_yaml(asdict(config)), end='')
        sys.exit()
    return config


def _kinds(config_class: type, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Names every setting of a class, `data.root` and the like, with its type."""
    for f in fields(config_class):
        if is_dataclass(f.type):
            yield from _kinds(f.type, f'{prefix}{f.name}.')
        else:
            yield f'{prefix}{f.name}', f.type


def _make(config_class: type[ConfigT], values: dict[str, Any], prefix: str = '') -> ConfigT:
    arguments = {}
    for f in fields(config_class):
        key = f'{prefix}{f.name}'
        if is_dataclass(f.type):
            arguments[f.name] = _make(f.type, values, f'{key}.')
        elif key in values:
            arguments[f.name] = values[key]
        elif f.default is MISSING and f.default_factory is MISSING:
            raise InputError(f'{key} is missing: give --{key}, or {key} in the file of settings.')
    return config_class(**arguments)


# Files


def find_settings(name: str) -> Path:
    """Finds a settings file: a path, or the name of a recipe such as `coco2014_448` or `compare/demo`."""
    if os.path.isfile(name):
        return Path(name)
    recipe = CONFIGS / f'{name}.yaml'
    return recipe if os.path.isfile(recipe) else Path(name)


def _read_file(path: Path, kinds: dict[str, Any]) -> dict[str, Any]:
    """Reads the settings of a YAML file, `{'optim.lr': 1e-4, ...}`."""
    text = read_small(path, LARGEST, 'settings')
    try:
        content = read_yaml(text)
    except ValueError as e:
        raise InputError(f'{path}: cannot be read as settings ({e}).') from None
    try:
        if not isinstance(content, dict | None):
            raise InputError(f'settings must be "key: value" lines, not {format_value(content)}.')
        values = {}
        for key, value in _leaves(content or {}, kinds):
            if key in values:
                raise InputError(f'{key} is given twice, once in its section and once with a dot.')
            values[key] = _checked(key, value, kinds[key])
    except InputError as e:
        raise InputError(f'{path}: {e}') from None
    return values


def _leaves(content: dict[str, Any], kinds: dict[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        key = f'{prefix}{name}'
        if key in kinds:
            yield key, value
        elif isinstance(value, dict) and value:
            yield from _leaves(value, kinds, f'{key}.')
        elif not any(known.startswith(f'{key}.') for known in kinds):
            raise _unknown('setting', key, kinds)
        elif value != {}:
            raise InputError(
                f'{key} is {format_value(value)}: must hold settings, as in "{key}: {{...}}", or be left out.'
            )


def _unknown(what: str, key: str, kinds: Iterable[str], dashes: str = '') -> InputError:
    """Makes the error for an unknown key: it names the settings that end alike, or else the nearest."""
    ends: dict[str, list[str]] = {}
    for known in kinds:
        ends.setdefault(known.rpartition('.')[2], []).append(known)
    end = key.rpartition('.')[2]
    found = ends.get(end) or get_close_matches(key, kinds, n=1)
    found = found or [known for near in get_close_matches(end, ends, n=1) for known in ends[near]]
    if not found:
        return unknown(what, f'{dashes}{key}', [f'{dashes}{known}' for known in kinds])
    return InputError(f'unknown {what} {dashes + key!r}: did you mean {" or ".join(dashes + name for name in found)}?')


class _Loader(yaml.SafeLoader):
    """Finds no types: those of YAML 1.1 are not what users mean."""

    yaml_implicit_resolvers = {}


def read_yaml(text: str | bytes) -> Any:
    """Reads YAML as its version 1.2 has it: of plain words only null, true, false and decimal numbers are no text.

    To YAML 1.1, PyYAML's, `no` is false, `010` is 8, `1:30` is 90, `2026-11-28` is a date, and `1e-4` is text.

    Raises:
        ValueError: It cannot be read, a key is no text or there twice, or its values are nested without an end.
    """
    try:
        node = yaml.compose(text, _Loader)
        return None if node is None else _Values().read(node, 0)
    except RecursionError:
        raise ValueError(f'nested more than {DEEPEST} deep') from None
    except yaml.MarkedYAMLError as e:
        hint = '; use spaces instead of tabs' if "'\\t'" in f'{e.problem}' else ''
        line, said = e.problem_mark.line + 1, ' '.join(f'{e.context or ""} {e.problem}'.split())
        raise ValueError(f'line {line}: {said}{hint}') from None
    except yaml.reader.ReaderError as e:
        hint = '' if e.encoding == 'unicode' else '; save it as UTF-8'
        raise ValueError(f'{e.reason}: character {e.character:#04x} at {e.position}{hint}') from None


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that is a number to YAML 1.2, `1e5` say, besides what is one to YAML 1.1."""


_Dumper.add_implicit_resolver('tag:yaml.org,2002:float', FLOAT_ALONE, list('-+.0123456789'))


def write_yaml(value: Any) -> str:
    """Writes YAML that `read_yaml`, and any reader of YAML 1.1, reads as it was."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


class _Values:
    """Makes values of YAML's nodes; aliases may repeat these many times, or without an end."""

    def __init__(self):
        self.left = MOST_VALUES

    def read(self, node: yaml.Node, depth: int) -> Any:
        line = f'line {node.start_mark.line + 1}'
        self.left -= 1
        if self.left < 0:
            raise ValueError(f'{line}: more than {MOST_VALUES:,} values, with what aliases repeat')
        if depth > DEEPEST:
            raise ValueError(f'{line}: nested more than {DEEPEST} deep, or an alias of what holds it')
        if not node.tag.startswith('tag:yaml.org,2002:') or node.tag.rpartition(':')[2] not in ('str', 'seq', 'map'):
            raise ValueError(f'{line}: has the tag {node.tag.replace("tag:yaml.org,2002:", "!!")}; leave it out')
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node.value, line) if node.style is None else _text(node.value, line)
        found, lines = {}, {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self.read(key_node, depth + 1)
            if not isinstance(key, str):
                raise ValueError(f'line {line}: the key {format_value(key)} is no text; put it in quotes')
            if key in found:
                raise ValueError(f'{key} is given twice, in lines {lines[key]} and {line}')
            found[key], lines[key] = self.read(value_node, depth + 1), line
        return found


def _scalar(text: str, line: str) -> Any:
    """Reads a plain word."""
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
        # JSON writes what is beyond \uFFFF as two halves.
        return text.encode('utf-16', 'surrogatepass').decode('utf-16')
    except UnicodeDecodeError:
        raise ValueError(f'{line}: {ascii(text)} holds half a character') from None


# Command lines


def _pairs(argv: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Parts a command line into keys, as YAML has them, and what they are given."""
    rest = iter(argv)
    for argument in rest:
        if not argument.startswith('--'):
            raise InputError(f'{argument!r} is no setting: give --key value.')
        key, equals, value = argument[2:].partition('=')
        if not equals:
            value = next(rest, None)
            if value is None or value.startswith('--'):
                raise InputError(f'--{key} has no value: give --{key} VALUE.')
        yield key.replace('-', '_'), value


def _read_overrides(
    given: list[tuple[str, str]], kinds: dict[str, Any], of_file: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Reads what a command line sets.

    Single entries of a mapping, `--model.args.fusion_mode 1`, are joined with those of the file.
    """
    mappings = [key for key, kind in kinds.items() if get_origin(kind) is dict]
    merged: dict[str, dict] = {}
    for key, value in given:
        if key in kinds:
            yield key, _checked(key, _of_command_line(key, value, kinds[key]), kinds[key])
            continue
        name = next((name for name in mappings if key.startswith(f'{name}.')), None)
        if name is None:
            raise _unknown('setting', key, kinds, '--')
        if any(other == name for other, _ in given):
            raise InputError(f'--{key} and --{name}: give one of them, the second replaces all of the first.')
        into = merged.setdefault(name, _copied(of_file.get(name, {})))
        *path, last = key.removeprefix(f'{name}.').split('.')
        if not all((*path, last)):
            raise InputError(f'--{key}: a name between its dots is empty.')
        for part in path:
            if not isinstance(into.setdefault(part, {}), dict):
                into[part] = {}
            into = into[part]
        into[last] = _checked(key, _of_command_line(key, value, Any), Any)
    yield from merged.items()


def _copied(mapping: dict) -> dict:
    return {key: _copied(value) if isinstance(value, dict) else value for key, value in mapping.items()}


def _of_command_line(key: str, value: str, kind: Any) -> Any:
    """Reads a value; text is taken as it stands, but for null."""
    if str in _members(kind) or value == '':
        return None if value == 'null' else value
    try:
        return read_yaml(value)
    except ValueError as e:
        raise InputError(f'--{key} is {value}: cannot be read as YAML ({e}).') from None


# Types


def _members(kind: Any) -> tuple[Any, ...]:
    """Lists the types of a union, or the one."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _checked(key: str, value: Any, kind: Any) -> Any:
    """Returns a value as its type has it.

    Raises:
        InputError: It is of another type, empty, or no finite number.
    """
    for member in _members(kind):
        found, fits = _converted(value, member)
        if fits:
            return found
    must = ' or '.join(KINDS.get(member, 'null') for member in _members(kind))
    if value == '':
        raise InputError(f'{key} is empty: must be {must}.')
    numbers = any(isinstance(item, int | float) for item in (value if isinstance(value, list) else [value]))
    quotes = ' Put what is text in quotes.' if numbers and 'text' in must else ''
    raise InputError(f'{key} is {format_value(value)}: must be {must}.{quotes}')


def _converted(value: Any, kind: Any) -> tuple[Any, bool]:
    """Returns a value as a type has it, and whether it is of that type."""
    if kind is types.NoneType:
        return value, value is None
    if kind is Any:
        return value, _is_finite(value)
    if kind is str:
        return value, isinstance(value, str) and value != '' and '\0' not in value
    if get_origin(kind) is list:
        (of,) = get_args(kind)
        items = [_converted(item, of) for item in value] if isinstance(value, list) else []
        return [item for item, _ in items], isinstance(value, list) and all(fits for _, fits in items)
    if get_origin(kind) is dict:
        return value, isinstance(value, dict) and _is_finite(value)
    if isinstance(value, str):  # a number in quotes is a number to those who write files with templates
        value = SWITCHES.get(value.lower()) if kind is bool else _scalar(value, 'the value')
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    return value, type(value) is kind and _is_finite(value)


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def format_value(value: Any) -> str:
    """Shows a value as YAML has it, on one line and not much of it."""
    if isinstance(value, str):
        text = value if value.isprintable() else ascii(value)
    else:
        text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_SHOWN else f'{text[:MOST_SHOWN]} ...'
