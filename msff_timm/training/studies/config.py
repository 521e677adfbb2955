"""The settings of comparisons and ablation studies."""

from dataclasses import dataclass, field
from typing import Any

import timm

from ...errors import InputError, unknown
from ...files import check_folder
from ..checks import check_at_least, check_one_of, check_seed, is_among
from ..parsing import find_settings, flatten

__all__ = ['AblateConfig', 'CompareConfig', 'VariantsConfig']

# Training settings that differ between variants, or that several runs cannot share
OF_A_VARIANT = ('output', 'overwrite', 'resume', 'force', 'seed', 'push_to', 'push_private', 'model.name', 'model.args')
# Training settings that the rows of a comparison share: others would change the images or the initial weights
OF_ALL_ROWS = ('data', 'top_k', 'model.backbone_pretrained', 'model.backbone_from', 'model.init_from')
TABLES = ('4', '5', '6', '7', 'fig5')


@dataclass(kw_only=True)
class VariantsConfig:
    """Settings of a study: several models, or variants of one, that are trained alike.

    Args:
        output: Folder of the runs, tables and plots.
        train: File, or name of a recipe, with the training settings that all runs share.
        settings: Training settings that replace those of the file, e.g. `{optim: {epochs: 3}}`.
        backbone: Plain model that is trained first with each seed, by the settings of the file alone: all runs of that
            seed start from its weights. Null for none.
        seeds: Seeds of the runs of each variant.
        launch: Arguments of `accelerate launch`, to train in several processes; null to train in one, without it.
        batch_size: Batch size for the inference time.
        turns: Number of turns in which the inference time is measured; 0 to skip it.
    """

    output: str
    train: str
    settings: dict[str, Any] = field(default_factory=dict)
    backbone: str | None = None
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    launch: list[str] | None = None
    batch_size: int = 8
    turns: int = 20

    def validate(self) -> None:
        check_folder(self.output, 'output')
        find_settings(self.train, 'train')
        for key, _ in flatten(self.settings):
            if is_among(key, OF_A_VARIANT):
                raise InputError(f'settings has {key}: leave it out; each run has its own.')
        if self.backbone is not None and not timm.is_model(self.backbone):
            raise unknown('backbone', self.backbone, timm.list_models())
        if self.backbone and 'model.backbone_from' in dict(flatten(self.settings)):
            raise InputError('settings has model.backbone_from: leave it out, or set backbone to null.')
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f'seeds is {self.seeds}: must be one or more, each once.')
        for seed in self.seeds:
            check_seed('seeds', seed)
        check_at_least('batch_size', self.batch_size, 1)
        check_at_least('turns', self.turns, 0)


@dataclass(kw_only=True)
class CompareConfig(VariantsConfig):
    """Settings of a comparison of models.

    Args:
        models: Names of timm models, msff_* or any other; the others are compared with the first.
        rows: Further rows by name, each a model with arguments, with training settings that replace the shared ones, or
            with both: `{fast: {model: resnet101, args: {}, settings: {optim: {lr: 1e-3}}}}`.
    """

    models: list[str]
    rows: dict[str, Any] = field(default_factory=dict)

    def validate(self) -> None:
        super().validate()
        if not self.models or len(set(self.models)) < len(self.models):
            raise InputError(f'models is {self.models}: must be one or more, each once.')
        for name in self.models:
            if not timm.is_model(name):
                raise unknown('model', name, timm.list_models())
        for name, row in self.rows.items():
            self._check_row(f'rows.{name}', name, row)

    def _check_row(self, key: str, name: str, row: Any) -> None:
        if name in self.models:
            raise InputError(f'{key}: {name} is also in models; give the row another name.')
        is_row = isinstance(row, dict) and {'model'} <= row.keys() <= {'model', 'args', 'settings'}
        kinds = {'model': str, 'args': dict, 'settings': dict}
        if not is_row or not all(isinstance(value, kinds[part]) for part, value in row.items()):
            raise InputError(
                f'{key} is {row}: must be {{model: NAME}}, with args: {{...}} or settings: {{...}} or both.'
            )
        if not timm.is_model(row['model']):
            raise unknown(f'model in {key}', row['model'], timm.list_models())
        for setting, _ in flatten(row.get('settings', {})):
            if is_among(setting, OF_A_VARIANT):
                raise InputError(f'{key}.settings has {setting}: leave it out; each run has its own.')
            if is_among(setting, OF_ALL_ROWS):
                raise InputError(f'{key}.settings has {setting}: leave it out; all rows share it.')


@dataclass(kw_only=True)
class AblateConfig(VariantsConfig):
    """Settings of an ablation study of the paper.

    Args:
        table: Table or figure of the paper: 4, 5, 6, 7 or fig5.
        model: Name of an msff_* model.
    """

    table: str
    model: str = 'msff_resnet101'

    def validate(self) -> None:
        super().validate()
        check_one_of('table', self.table, TABLES)
        if not timm.is_model(self.model) or not self.model.startswith('msff_'):
            raise unknown('msff_* model', self.model, timm.list_models(module='msff'))
