"""The `msff-timm` command: parses, calls the package, prints."""

import argparse
import json
import os
import sys

import torch

from . import __version__, hub
from .errors import InputError
from .predict import Prediction, find_photos, predict

__all__ = ['main']


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 1 when some photos failed, 2 for bad input, 130 for Ctrl-C."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except InputError as e:
        print(f'msff-timm: error: {e}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader, `head` say, has what it wanted; without this Python complains once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='msff-timm', description=__doc__.partition(':')[0] + '.')
    parser.add_argument('--version', action='version', version=__version__)
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    command = commands.add_parser('predict', help='print the labels of photos with their probabilities')
    command.add_argument('photos', nargs='+', metavar='PHOTO', help='file, folder or glob')
    command.add_argument('--model', required=True, help='local-dir:FOLDER, hf-hub:ORG/NAME or a pretrained timm name')
    command.add_argument('--threshold', type=_probability, default=0.5, help='of probability (default: 0.5)')
    command.add_argument('--json', action='store_true', help='print JSON instead of a table')
    command.set_defaults(run=_predict)
    return parser


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a probability from 0 to below 1')
    return value


def _predict(args: argparse.Namespace) -> int:
    photos = find_photos(args.photos)
    model = hub.load(args.model).to('cuda' if torch.cuda.is_available() else 'cpu')
    width = max(len('photo'), *map(len, photos))
    if not args.json:
        print(f'{"photo":{width}}  probability  label')
    predictions = []
    for prediction in predict(model, photos, args.threshold):
        predictions.append(prediction)
        if prediction.error:
            print(f'msff-timm: {prediction.error}', file=sys.stderr)
        elif not args.json:
            _print_rows(prediction, width, args.threshold)
    if args.json:
        print(json.dumps([vars(prediction) for prediction in predictions], indent=2))
    failed = sum(prediction.error is not None for prediction in predictions)
    if failed:
        print(f'msff-timm: {failed} of {len(photos)} photos could not be read.', file=sys.stderr)
    return 1 if failed else 0


def _print_rows(prediction: Prediction, width: int, threshold: float) -> None:
    rows = [f'{probability:11.3f}  {name}' for name, probability in prediction.labels.items()]
    for row in rows or [f'{"-":>11}  (none above {threshold:g})']:
        print(f'{prediction.photo:{width}}  {row}', flush=True)
