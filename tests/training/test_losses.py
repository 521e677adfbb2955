import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.loss import AsymmetricLossMultiLabel
from torchvision.ops import sigmoid_focal_loss

from msff_timm.data.counts import LabelCounts
from msff_timm.errors import InputError
from msff_timm.training.config import OptimConfig, TrainConfig, parse
from msff_timm.training.losses import describe_pos_weight, known_sum, make_loss, pos_weights

LOSSES = {
    'asl': {},
    'asl gamma_pos': {'loss': 'asl', 'gamma_pos': 1.0, 'gamma_neg': 2.0},
    'asl clip': {'loss': 'asl', 'asl_clip': 0.05},
    'asl without gamma': {'loss': 'asl', 'gamma_neg': 0.0, 'asl_clip': 0.2},
    'asl balanced': {'loss': 'asl', 'pos_weight': 'balanced'},
    'bce': {'loss': 'bce'},
    'bce pos_weight': {'loss': 'bce', 'pos_weight': 3.0},
    'focal': {'loss': 'focal', 'gamma_neg': 2.0},
    'poly': {'loss': 'poly', 'poly_epsilon': 2.0},
    'poly -1': {'loss': 'poly', 'poly_epsilon': -1.0},
    'db': {'loss': 'db'},
    **{f'{loss} smooth': {'loss': loss, 'label_smoothing': 0.1} for loss in ('asl', 'bce', 'focal', 'poly', 'db')},
}
NAMES = ['cat', 'dog', 'owl']


def counts_of(targets) -> LabelCounts:
    return LabelCounts.of(np.array(targets), NAMES[: np.shape(targets)[1]], None)


# 10 images: 2 of 10 hold cat, 1 of 5 annotated dog, 10 of 10 owl.
COUNTS = counts_of([[1, 1, 1], [1, 0, 1], *[[0, 0, 1]] * 3, *[[0, -1, 1]] * 5])


def test_make_loss_agrees_with_hand_made_cases():
    p, y = torch.tensor([[0.8, 0.8, 0.3]]), torch.tensor([[1.0, 0.0, 1.0]])
    right = [0.8, 0.2, 0.3]
    bce = [-math.log(q) for q in right]

    def loss(**optim):
        return make_loss(OptimConfig(**optim))(p.logit(), y)[0].tolist()

    assert loss(loss='bce') == pytest.approx(bce, rel=1e-5)
    assert loss(loss='bce', pos_weight=3.0) == pytest.approx([3 * bce[0], bce[1], 3 * bce[2]], rel=1e-5)
    focal = [(1 - q) ** 2 * of_bce for q, of_bce in zip(right, bce, strict=True)]
    assert loss(loss='focal', gamma_neg=2.0) == pytest.approx(focal, rel=1e-4)
    # Eq. 12 with alpha+ = 1 and alpha- = 2: the wrong label's p^2, the present labels' (1 - p).
    asl = [0.2 * bce[0], 0.8**2 * bce[1], 0.7 * bce[2]]
    assert loss(gamma_pos=1.0, gamma_neg=2.0) == pytest.approx(asl, rel=1e-4)
    # Eq. 5 of the ASL paper: p_m = p - m in the place of an absent label's p.
    clipped = [asl[0], -(0.75**2) * math.log(1 - 0.75), asl[2]]
    assert loss(gamma_pos=1.0, gamma_neg=2.0, asl_clip=0.05) == pytest.approx(clipped, rel=1e-4)
    # Table 1 of PolyLoss: cross-entropy + epsilon (1 - P_t).
    poly = [of_bce + 0.5 * (1 - q) for q, of_bce in zip(right, bce, strict=True)]
    assert loss(loss='poly', poly_epsilon=0.5) == pytest.approx(poly, rel=1e-5)
    # Targets of 1 - e and e.
    smooth = [-(1 - e) * math.log(q) - e * math.log(1 - q) for q, e in zip(right, [0.1] * 3, strict=True)]
    assert loss(loss='bce', label_smoothing=0.1) == pytest.approx(smooth, rel=1e-5)


def test_make_loss_clips_absent_labels_below_the_margin():
    logits = torch.tensor([[0.04, 0.06]]).logit().requires_grad_()
    loss = make_loss(OptimConfig(asl_clip=0.05))(logits, torch.zeros(1, 2))
    loss.sum().backward()
    assert loss[0, 0] == 0 == logits.grad[0, 0] and loss[0, 1] > 0 and logits.grad[0, 1] > 0


def test_make_loss_defaults_to_the_asymmetric_loss_of_timm():
    logits, target = torch.randn(4, 3), (torch.rand(4, 3) < 0.5).float()
    theirs = AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=0, clip=None, reduction='none')(logits, target)
    torch.testing.assert_close(make_loss(OptimConfig())(logits, target), theirs)


@pytest.mark.parametrize('gamma', [0.0, 1.0, 2.5])
def test_make_loss_focal_agrees_with_torchvision(gamma):
    torch.manual_seed(0)
    logits, target = 4 * torch.randn(5, 3), torch.rand(5, 3)  # mixed targets too
    theirs = sigmoid_focal_loss(logits, target, alpha=-1, gamma=gamma)
    torch.testing.assert_close(make_loss(OptimConfig(loss='focal', gamma_neg=gamma))(logits, target), theirs)


def test_make_loss_db_agrees_with_the_equations_of_its_paper():
    """Eqs. 3 to 9 of arXiv:2007.09654, with its values for VOC-MLT and the focal factor of its experiments."""
    num_images, positives = 10, [2.0, 2.0, 9.0]  # dog's 1 of 5 is 2 of 10; owl's 10 of 10 would have no prior
    logits, targets = [[0.3, -1.2, 2.0], [-0.4, 0.8, 0.1], [0.5, 0.2, -0.3]], [[1, 0, 1], [0, 1, -1], [0, 0, 0]]
    found = make_loss(OptimConfig(loss='db'), COUNTS)(torch.tensor(logits), torch.tensor(targets).clamp(min=0).float())
    for i, (row, target) in enumerate(zip(logits, targets, strict=True)):
        instance = sum(1 / n for n, y in zip(positives, target, strict=True) if y == 1)
        for k, (z, y, n) in enumerate(zip(row, target, positives, strict=True)):
            if y == -1:
                continue
            ratio = (1 / n) / instance if instance else math.inf
            weight = 0.1 + (1 if ratio == math.inf else 1 / (1 + math.exp(-10 * (ratio - 0.2))))
            bias = 0.05 * -math.log(num_images / n - 1)
            if y:
                q = z + bias / 2
                expected = math.log(1 + math.exp(-q)) * 2 * (1 / (1 + math.exp(q))) ** 2
            else:
                q = 2 * z + bias
                expected = math.log(1 + math.exp(q)) / 2 * 2 * (1 / (1 + math.exp(-q))) ** 2
            assert found[i, k].item() == pytest.approx(weight * expected, rel=1e-4), (i, k)


@pytest.mark.parametrize('name', LOSSES)
def test_make_loss_masks_and_stays_finite(name):
    """In float32, at logits of +-50, beside masked labels, and with targets between 0 and 1."""
    optim = OptimConfig(**LOSSES[name])
    optim.validate()
    loss_fn = make_loss(optim, COUNTS)
    extremes = torch.tensor([-80.0, -50, -18, -1, 0, 1, 18, 50, 80])
    for y in (1.0, 0.0, 0.3):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            logits = extremes[:, None].repeat(1, 3).to(dtype).requires_grad_()
            target = torch.full_like(logits, y, dtype=torch.float32)
            target[:, 1] = -1
            loss = known_sum(loss_fn, logits.float(), target)
            loss.backward()
            assert loss.dtype == torch.float32 and loss.isfinite() and logits.grad.isfinite().all()
            assert (logits.grad[:, 1] == 0).all() and (logits.grad[:, ::2] != 0).any()
    other = logits.detach().float().clone()
    other[:, 1] = 7.0
    assert known_sum(loss_fn, other, target) == known_sum(loss_fn, logits.detach().float(), target)


@pytest.mark.parametrize('name', [name for name in LOSSES if not name.endswith('smooth')])
@settings(max_examples=30, deadline=None)
@given(z=st.floats(-8, 8), present=st.booleans(), e=st.floats(0.01, 0.49))
def test_make_loss_gradient_has_the_right_sign(name, z, present, e):
    logits = torch.full((1, 3), z).requires_grad_()
    make_loss(OptimConfig(**LOSSES[name]), COUNTS)(logits, torch.full((1, 3), float(present))).sum().backward()
    assert logits.grad.sum() <= 1e-6 if present else logits.grad.sum() >= -1e-6
    smooth = make_loss(OptimConfig(loss='bce', label_smoothing=e))(logits, torch.full((1, 3), float(present)))
    target = torch.full((1, 3), 1 - e if present else e)
    torch.testing.assert_close(smooth, F.binary_cross_entropy_with_logits(logits, target, reduction='none'))


def test_pos_weights_count_annotated_entries():
    """cat 8 / 2, dog 4 / 1 (5 masked), owl has no absent entry."""
    optim = OptimConfig(pos_weight='balanced')
    assert pos_weights(optim, COUNTS).tolist() == [4, 4, 1]
    rare = counts_of([[1, 1]] + [[0, 1]] * 29 + [[0, 0]])
    optim = OptimConfig(pos_weight='balanced', pos_weight_max=20.0)
    assert pos_weights(optim, rare).tolist() == pytest.approx([20, 1 / 30])
    line = 'optim.pos_weight balanced: from 0.0333 (dog) to 20 (cat); 1 of 2 labels at optim.pos_weight_max.'
    assert describe_pos_weight(pos_weights(optim, rare), rare, 20.0) == line
    never = counts_of([[0, 1], [0, 0]])
    assert pos_weights(optim, never).tolist() == [1, 1]
    assert describe_pos_weight(pos_weights(optim, never), never, 20.0).endswith('from 1 (cat) to 1 (cat).')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--optim.loss=twoway'], "unknown optim.loss 'twoway'"),
        (['--optim.asl_clip=1'], 'optim.asl_clip is 1.0: must be from 0 to below 1.'),
        (['--optim.label_smoothing=0.5'], 'optim.label_smoothing is 0.5: must be from 0 to below 0.5.'),
        (['--optim.label_smoothing=-0.1'], 'must be from 0 to below 0.5.'),
        (['--optim.poly_epsilon=-1.5'], 'optim.poly_epsilon is -1.5: must be at least -1'),
        (['--optim.gamma_neg=0.5'], 'optim.gamma_neg is 0.5: must be 0 or at least 1'),
        (['--optim.pos_weight=0'], 'optim.pos_weight is 0.0: must be above 0.'),
        (['--optim.pos_weight=balance'], 'optim.pos_weight is balance: must be a number above 0, balanced or null.'),
        (['--optim.pos_weight=nan'], 'optim.pos_weight is nan: must be a number above 0, balanced or null.'),
        (['--optim.pos_weight_max=0'], 'optim.pos_weight_max is 0.0: must be above 0.'),
        (
            ['--optim.pos_weight=2', '--optim.loss=db'],
            'optim.pos_weight is 2.0 and optim.loss is db: only asl and bce support it; set it to null.',
        ),
        (
            ['--optim.loss=db', '--data.streaming=true', '--data.train_size=9'],
            'data.streaming is true and optim.loss is db, which needs the label counts',
        ),
        (
            ['--optim.pos_weight=balanced', '--data.streaming=true', '--data.train_size=9'],
            'data.streaming is true and optim.pos_weight is balanced, which needs the label counts',
        ),
    ],
)
def test_parse_names_wrong_settings_of_the_loss(arguments, message):
    with pytest.raises(InputError) as caught:
        parse(TrainConfig, ['--output=x', '--model.backbone_pretrained=false', *arguments])
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_parse_reads_pos_weight_as_a_number_or_a_word():
    assert parse(TrainConfig, ['--output=x', '--optim.pos_weight=3']).optim.pos_weight == 3.0
    assert parse(TrainConfig, ['--output=x', '--optim.pos_weight=balanced']).optim.pos_weight == 'balanced'
    assert parse(TrainConfig, ['--output=x', '--optim.pos_weight=null']).optim.pos_weight is None
