"""Trains a multi-label model: `accelerate launch train/train.py [--config FILE] [--key value ...]`.

Without arguments it trains the demo of `train/configs/demo.yaml`.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import datasets
import timm
import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, set_seed
from datasets.distributed import split_dataset_by_node
from timm.loss import AsymmetricLossMultiLabel
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader
from tqdm import tqdm

import msff_timm.data
from config import DataConfig, ModelConfig, TrainConfig, parse
from engine import (
    Unreadable,
    fit_thresholds,
    make_loader,
    measure,
    one_cycle,
    run_command,
    score,
    share_cores,
    synchronise_buffers,
    train_one_epoch,
)
from msff_timm import hub
from msff_timm.data.samples import Samples, StreamedSamples
from msff_timm.data.transforms import describe_transforms, eval_transform, train_transform
from msff_timm.errors import InputError
from report import describe, plot_curves, results, summary, write_json

SHUFFLE_BUFFER = 1000  # pictures of a stream, undecoded, of which the next is drawn


def main() -> None:
    config = parse(TrainConfig, sys.argv[1:], default_file=Path(__file__).parent / 'configs' / 'demo.yaml')
    output = Path(config.output)
    if (output / 'config.json').exists() and not config.overwrite:
        raise InputError(f'{output} holds a run already: choose another --output, or --overwrite true.')

    trackers = ['tensorboard'] if is_tensorboard_available() else []
    accelerator = Accelerator(step_scheduler_with_optimizer=False, log_with=trackers, project_dir=output)
    accelerator.init_trackers('tensorboard')
    share_cores(accelerator, config.data.workers)
    train(config, accelerator)


def train(config: TrainConfig, accelerator: Accelerator) -> None:
    """Trains, measures after each epoch, and leaves the run in `config.output`."""
    start = time.time()
    output, data, optim = Path(config.output), config.data, config.optim

    # Data
    train_set, eval_set, label_names = load_data(data, accelerator)
    num_pictures = data.train_size if data.streaming else len(train_set)
    per_process = divide_batch(optim.batch_size, num_pictures, accelerator.num_processes)

    # Model
    set_seed(config.seed)
    model, kept_labels = make_model(config.model, label_names)
    if config.model.init_from:
        accelerator.print(f'Starting from {config.model.init_from}, which knows {len(kept_labels)} of the labels.')
    data_config = timm.data.resolve_model_data_config(
        model, {'img_size': data.image_size, 'crop_pct': 1.0, 'crop_mode': 'squash'}
    )
    make_samples = StreamedSamples if data.streaming else Samples
    transform = train_transform(data_config, data.rand_augment, data.cutout)
    train_samples = make_samples(train_set, transform, skip_unreadable=data.unreadable == 'skip')
    train_workers = min(data.workers, train_set.num_shards) if data.streaming else data.workers
    train_loader = make_loader(train_samples, per_process, train_workers, training=True)
    eval_samples = Samples(eval_set, eval_transform(data_config))
    eval_loader = make_loader(eval_samples, 2 * per_process, data.workers, training=False)

    # The average is what is measured and saved; only the model that learns is laid out for fast convolutions
    ema = ModelEmaV3(model, decay=optim.ema_decay).to(accelerator.device)
    model = model.to(memory_format=torch.channels_last)

    # Optimiser; the schedule is not prepared, since Accelerate would step it once for each process
    optimizer = create_optimizer_v2(model, opt='adamw', lr=optim.lr, weight_decay=optim.weight_decay)
    loss_fn = AsymmetricLossMultiLabel(optim.gamma_neg, optim.gamma_pos, clip=None, reduction='none')
    model, optimizer, eval_loader = accelerator.prepare(model, optimizer, eval_loader)
    if not data.streaming:  # a stream is this process's own already
        train_loader = accelerator.prepare(train_loader)
    steps = num_pictures // optim.batch_size if data.streaming else len(train_loader)
    scheduler = one_cycle(optimizer.optimizer, optim.lr, optim.epochs * steps, optim.warmup)
    set_seed(config.seed, device_specific=True)  # each process has its own augmentation and dropout

    # Loop
    accelerator.print(
        f'Training {config.model.name} on {num_pictures} pictures of {data.name} with'
        f' {accelerator.num_processes} process(es) on {accelerator.device.type}.'
    )
    history, unreadable, stream = [], Unreadable(num_pictures), iter(train_loader) if data.streaming else None
    with progress_bar(optim.epochs * steps * optim.batch_size, accelerator) as progress:
        for epoch in range(1, optim.epochs + 1):
            progress.set_description(f'epoch {epoch}/{optim.epochs}')
            trained = train_one_epoch(
                accelerator,
                model,
                ema,
                batches_of(epoch, train_loader, stream, steps),
                loss_fn,
                optimizer,
                scheduler,
                optim.clip_grad,
                unreadable,
                progress,
            )
            synchronise_buffers(ema.module)
            scored = score(accelerator, ema.module, eval_loader)
            measures = measure(scored, len(eval_set))
            history.append({'epoch': epoch, **trained, 'lr': scheduler.get_last_lr()[0], **summary(measures)})
            accelerator.log(history[-1], step=epoch)
            # The averaged weights are measured after each epoch and saved; the raw ones are measured once, at the end.
            last = epoch == optim.epochs
            raw = measure(score(accelerator, model, eval_loader), len(eval_set)) if last else None
            if accelerator.is_main_process:
                progress.write(f'epoch {epoch}: loss {trained["loss"]:.4f}  {describe(measures)}')
                fitted = fit_thresholds(scored, data.definition(data.eval_split)) if last else None
                training = describe_transforms(data_config, data.rand_augment, data.cutout)
                hub.save(ema.module, output, label_names, data_config, {'transforms': training}, fitted)
                run = results(
                    measures,
                    label_names,
                    model=config.model.name,
                    num_parameters=sum(p.numel() for p in ema.module.parameters()),
                    data={**data.definition(data.eval_split), 'trained_on': data.train_split},
                    unreadable=unreadable.messages,
                    init_from=config.model.init_from and {'model': config.model.init_from, 'kept_labels': kept_labels},
                    weights='exponential moving average',
                    thresholds=fitted,
                    raw_weights=raw and summary(raw),
                    history=history,
                    seconds=round(time.time() - start, 1),
                    num_processes=accelerator.num_processes,
                    mixed_precision=accelerator.mixed_precision,
                    config=config,
                )
                write_json(run, output / 'results.json')
                plot_curves(history, output / 'curves.png')

    accelerator.print(
        f'\n{output}: {describe(measures)}\n'
        f'Measured on {data.name} {data.eval_split}, averaged weights; {time.time() - start:.0f} s in all.'
        ' Load it and use it:\n\n'
        f"    import timm, msff_timm; model = timm.create_model('local-dir:{output}', pretrained=True).eval()\n"
        f'    msff-timm predict PHOTO... --model local-dir:{output}'
    )
    accelerator.end_training()


def load_data(
    data: DataConfig, accelerator: Accelerator
) -> tuple[datasets.Dataset | datasets.IterableDataset, datasets.Dataset, list[str]]:
    """Loads the training split (of a stream this process's share), the one to measure on, and their labels' names."""
    with accelerator.main_process_first():  # the others find what it has read
        train_size = None if data.streaming else data.train_size
        train_set = data.load(data.train_split, train_size, data.image_size, data.streaming)
        eval_set = data.load(data.eval_split, data.eval_size, data.image_size)
    label_names = msff_timm.data.label_names(train_set)
    if msff_timm.data.label_names(eval_set) != label_names:
        raise InputError(
            f'{data.name}: the labels of {data.train_split} are not those of {data.eval_split}; set data.label_names.'
        )
    if data.streaming:
        if train_set.num_shards % accelerator.num_processes:
            raise InputError(
                f'{data.root}: the {train_set.num_shards} shards of {data.train_split} do not divide over the'
                f' {accelerator.num_processes} processes; use another number of them, or data.streaming false.'
            )
        train_set = split_dataset_by_node(
            train_set.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER), accelerator.process_index, accelerator.num_processes
        )
    return train_set, eval_set, label_names


def batches_of(epoch: int, loader: DataLoader, stream: Iterator[dict] | None, steps: int) -> Iterable[dict]:
    """Gives the batches of one epoch: the loader in its order of that epoch, or the stream's next ones."""
    if stream is not None:
        return islice(stream, steps)
    loader.set_epoch(epoch)
    return loader


def make_model(config: ModelConfig, label_names: list[str]) -> tuple[nn.Module, dict[str, str]]:
    """Makes the model to train, and tells which labels it knows already, by the names that it learnt them under."""
    if config.init_from is None:
        model_args = {'backbone_pretrained': True} if config.backbone_pretrained else {}
        return hub.create(config.name, num_classes=len(label_names), drop_rate=config.drop_rate, **model_args), {}
    model, kept_labels = hub.load_for(config.init_from, label_names, config.keep_labels, drop_rate=config.drop_rate)
    architecture = model.pretrained_cfg['architecture']
    if architecture != config.name:
        raise InputError(f'model.name is {config.name}: {config.init_from} is {architecture}; set model.name to that.')
    return model, kept_labels


def divide_batch(batch_size: int, num_pictures: int, num_processes: int) -> int:
    """Divides the batch over the processes."""
    if batch_size % num_processes:
        raise InputError(f'optim.batch_size is {batch_size}: must be a multiple of the {num_processes} processes.')
    if num_pictures < batch_size:
        raise InputError(f'optim.batch_size is {batch_size}: there are only {num_pictures} training pictures.')
    return batch_size // num_processes


def progress_bar(num_pictures: int, accelerator: Accelerator) -> tqdm:
    """Makes the bar of the whole run, on the first process only; into a file it writes seldom."""
    return tqdm(
        total=num_pictures,
        unit='img',
        disable=not accelerator.is_main_process,
        mininterval=0.5 if sys.stderr.isatty() else 15,
        dynamic_ncols=True,
    )


if __name__ == '__main__':
    run_command(main)
