"""Measures speed and memory: `python train/benchmarks/benchmark.py COMMAND [--output FILE.json]` (README.md here)."""

import importlib
import sys
from pathlib import Path

COMMANDS = {  # each in the module bench_COMMAND
    'data': 'images per second of the training transform',
    'annotations': 'loading annotations of the size of COCO 2014',
    'tables': 'loading tables of 1,000 labels and 100,000 images',
    'metrics': 'msff_timm.metrics.evaluate',
    'train': 'training with the settings of a recipe: --config FILE --key value, as for train.py',
    'load': 'loading a model from the cache, and importing the package',
    'predict': 'labels of many photos: msff-timm predict -o, relative to the function `predict`',
    'decode': 'labels that change when large JPEG files are decoded at reduced size',
    'model': 'models side by side',
    'labels': 'inference of one image with many labels',
    'onnx': 'ONNX files side by side: precisions of one model',
    'wait': 'how long waiting threads spin, on idle and on busy cores',
    'scale': 'training on many devices, predicted from one',
}


def main() -> None:
    from bench_common import Parser, machine
    from msff_timm.errors import InputError
    from msff_timm.files import check_file
    from msff_timm.results import write_json

    parser = Parser(description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, allow_abbrev=False)
        benchmark = importlib.import_module(f'bench_{name}')
        benchmark.add_options(command)
        command.set_defaults(run=benchmark.run)
        command.add_argument('--output', type=Path, help='JSON file for the results')
    options, options.settings = parser.parse_known_args()
    if options.settings and options.command != 'train':
        raise InputError(f'unrecognized arguments: {" ".join(options.settings)}')
    if options.output:
        check_file(options.output, '--output')
    about = {'command': options.command, 'arguments': sys.argv[2:]}
    results = {**about, **options.run(options), 'machine': machine()}
    print(', '.join(f'{key} {value}' for key, value in results['machine'].items()))
    if options.output:
        write_json(results, options.output)


# Processes that measure something alone import this file again, and nothing else before their own work.
if __name__ == '__main__':
    import msff_timm_cli.startup  # noqa: F401  isort: skip
    from msff_timm.training.commands import run_command

    run_command(main)
