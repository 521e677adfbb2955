import math
from types import SimpleNamespace

import pytest
import timm
import torch

from msff_timm import hub
from msff_timm.errors import InputError
from msff_timm.training.config import DistillConfig
from msff_timm.training.distill import Teacher


@pytest.fixture(scope='module')
def teacher_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('teacher')
    torch.manual_seed(0)
    model = timm.create_model('msff_test_resnet', num_classes=3)
    config = timm.data.resolve_model_data_config(model, {'img_size': 64})
    hub.save(model, folder, ['a', 'b', 'c'], {**config, 'mean': (0.1, 0.2, 0.3), 'std': (0.5, 0.6, 0.7)})
    return folder


def test_teacher_uses_its_own_preprocessing_and_the_order_of_the_student(teacher_folder):
    teacher = Teacher(
        f'local-dir:{teacher_folder}', ['c', 'a', 'b'], DistillConfig(temperature=2.0, weight=0.3)
    ).train()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    with torch.no_grad():
        alone = hub.load(f'local-dir:{teacher_folder}')((pixels / 255 - mean) / std)
    torch.testing.assert_close(teacher(pixels), alone[:, [2, 0, 1]], atol=1e-4, rtol=1e-4)
    assert teacher(pixels[:, :, :32, :48]).shape == (2, 3)
    assert not any(module.training for module in teacher.model.modules())
    q, logits = torch.tensor([0.9, 0.4]), torch.tensor([1.0, -3.0])
    by_hand = [4 * -(a * math.log(s) + (1 - a) * math.log(1 - s)) for a, s in zip(
        (q.logit() / 2).sigmoid().tolist(), (logits / 2).sigmoid().tolist(), strict=True)]  # fmt: skip
    assert teacher.loss(logits, q.logit()).tolist() == pytest.approx(by_hand, rel=1e-5)
    with pytest.raises(InputError, match='its labels differ from the labels of the data'):
        Teacher(f'local-dir:{teacher_folder}', ['a', 'b'], DistillConfig())


def test_teacher_blend_weighs_both_losses():
    """The loss of the targets, and the mean loss of the teacher over both labels, for one of two micro-batches."""
    teacher = SimpleNamespace(weight=0.3, loss=lambda logits, theirs: (logits - theirs).abs())
    loss, logits, theirs = torch.tensor(2.0), torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.5]])
    found = Teacher.blend(teacher, loss, logits, theirs, 2).item()
    assert found == pytest.approx(0.7 * 2.0 + 0.3 * (2.0 + 0.5) / 2 / 2, rel=1e-6)
