"""Fonts of figures."""

import io
import warnings

import matplotlib
import pytest
from matplotlib.figure import Figure

from msff_timm.data import figures

NOWHERE = '\U0010fffd'  # a private character without any font


@pytest.fixture(autouse=True)
def nothing_reported(monkeypatch):
    monkeypatch.setattr(figures, '_reported', set())


def figure_with(*names):
    """Returns a figure with names as tick labels, title, text and legend."""
    figure = Figure(layout='constrained')
    axes = figure.subplots()
    axes.barh(range(len(names)), range(len(names)), label=names[0])
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_title(names[0], parse_math=False)
    axes.text(0, 0, '\n'.join(names), parse_math=False)
    axes.legend()
    return figure


def saved(figure):
    """Returns the warnings of `save_figure`, and those of matplotlib when it saves the figure again."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        figures.save_figure(figure, io.BytesIO(), format='png')
    with warnings.catch_warnings(record=True) as again:
        warnings.simplefilter('always')
        figure.savefig(io.BytesIO(), format='png')
    return [str(w.message) for w in caught], [str(w.message) for w in again]


def test_save_figure_uses_other_font_for_missing_characters():
    with matplotlib.rc_context({'font.family': 'cmr10', 'axes.formatter.use_mathtext': True}):
        assert saved(figure_with('кот', 'plain')) == ([], [])


def test_save_figure_warns_once_of_characters_without_font():
    (message,), again = saved(figure_with(f'cat {NOWHERE}', 'é'))
    assert f'boxes for {NOWHERE}: no installed font' in message and '\n' not in message and again
    assert saved(figure_with(f'{NOWHERE} dog'))[0] == []


def test_save_figure_draws_chinese_or_warns():
    reported, missing = saved(figure_with('猫', 'a 犬'))
    assert (len(reported), bool(missing)) in ((0, False), (1, True))
    if reported:
        assert 'boxes for 犬 猫: no' in reported[0]


def test_save_figure_keeps_fonts_that_suffice():
    figure = figure_with('naïve', 'a\tb\u200d', '…')
    families = {tuple(text.get_fontfamily()) for text in figure.findobj(matplotlib.text.Text)}
    assert saved(figure)[0] == []
    assert families == {tuple(text.get_fontfamily()) for text in figure.findobj(matplotlib.text.Text)}
