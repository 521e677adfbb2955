"""The settings of evaluation: typed, with their defaults, and validated here."""

from dataclasses import dataclass, field

from ..errors import InputError
from ..metrics import DEFINITIONS
from .checks import check_at_least, check_new_file, check_one_of, check_threshold_target
from .data_config import EvalDataConfig

__all__ = ['EvaluateConfig']


@dataclass
class EvaluateConfig:
    """Settings of an evaluation.

    Args:
        model: `local-dir:FOLDER`, `hf-hub:ORG/NAME`, or a registered model with pretrained weights.
        output: JSON file to write the results to; null to print them only.
        scores: Parquet file to write the probabilities to: `image_id` and a column for each label; null for none.
        batch_size: Number of images in a batch of each process.
        image_size: Side of the model's input in pixels; null for the model's own.
        flip: True to average the probabilities over each image and its mirror image.
        ap: Definition of average precision: all-points, interpolated (Query2Label, SSGRL) or voc11.
        threshold: Probability above which a label is predicted; null for the model's own thresholds.
        top_k: Number of labels per image that the top-k metrics predict: 3 as for COCO, 5 as for Corel5k.
        bootstrap: Number of resamples of the images for a 95 % interval of mAP; 0 for none.
        fit_thresholds: Target to fit thresholds for, together with temperatures and biases, to these images, and store
            them in the model's folder: f1 (or true), precision:0.9 or recall:0.9, see the setting of training; false
            for none.
        submission: Tar file to write for the evaluation server of VOC2012, instead of metrics; null for metrics.

    Examples:
        >>> EvaluateConfig('runs/pets', ap='voc11', bootstrap=1000).threshold
        0.5
    """

    model: str
    output: str | None = None
    scores: str | None = None
    batch_size: int = 64
    image_size: int | None = None
    flip: bool = False
    ap: str = 'all-points'
    threshold: float | None = 0.5
    top_k: int = 3
    bootstrap: int = 0
    fit_thresholds: bool | str = False
    submission: str | None = None
    data: EvalDataConfig = field(default_factory=EvalDataConfig)

    def validate(self) -> None:
        self.data.validate()
        check_at_least('batch_size', self.batch_size, 1)
        check_at_least('image_size', self.image_size, 32)
        check_at_least('top_k', self.top_k, 1)
        check_at_least('bootstrap', self.bootstrap, 0)
        check_one_of('ap', self.ap, DEFINITIONS)
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise InputError(f'threshold is {self.threshold}: must be a probability, from 0 to below 1.')
        if self.fit_thresholds is True:
            self.fit_thresholds = 'f1'
        if self.fit_thresholds:
            check_threshold_target('fit_thresholds', self.fit_thresholds)
        if self.fit_thresholds and not self.model.startswith('local-dir:'):
            raise InputError(
                f'fit_thresholds is {self.fit_thresholds}: it stores thresholds in a folder, and {self.model} is not'
                ' local-dir:FOLDER.'
            )
        if self.fit_thresholds and (self.flip or self.image_size):
            raise InputError(
                f"fit_thresholds is {self.fit_thresholds}: thresholds are for the model's own input; leave out flip and"
                ' image_size.'
            )
        if self.submission:
            self._check_submission()
        check_new_file('output', self.output)
        check_new_file('scores', self.scores, '.parquet')
        check_new_file('submission', self.submission, '.tar', '.tar.gz', '.tgz')

    def _check_submission(self) -> None:
        if (self.data.name, self.data.split, self.data.size) != ('voc2012', 'test', None):
            raise InputError(
                'submission is for the whole test split of voc2012: set data.name to voc2012 and data.split to test.'
            )
        for name, unset in (('output', None), ('bootstrap', 0), ('fit_thresholds', False)):
            if getattr(self, name) != unset:
                raise InputError(f'{name} is {getattr(self, name)}: a submission has no metrics; leave it out.')
