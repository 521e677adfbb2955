"""Types and actions of the arguments of the `msff-timm` command."""

import argparse

__all__ = ['Names', 'Version', 'port', 'positive', 'probability']


class Names(argparse.Action):
    """Splits names at commas, or takes each name whole if the option is repeated."""

    def __call__(self, parser, namespace, values, option_string=None):
        given = [*getattr(namespace, f'{self.dest} as given', []), values]
        setattr(namespace, f'{self.dest} as given', given)
        names = given if len(given) > 1 else values.split(',')
        setattr(namespace, self.dest, [name.strip() for name in names if name.strip()])


class Version(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        from importlib.metadata import version

        print(version('msff-timm'))
        parser.exit()


def probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a probability from 0 to below 1')
    return value


def positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number above 0')
    return int(text)


def port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 2**16):
        raise argparse.ArgumentTypeError(f'{text!r} is not a port from 1 to {2**16 - 1}')
    return int(text)
