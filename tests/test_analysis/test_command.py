"""``fpq analyze`` in whole, what it says and what it refuses."""

import argparse
import re
import subprocess
import sys

import pytest
from runs import ROOT, write_config

from fpq_plugin.cli import add_command, command_line, main

FULL = 'fashion_mnist/resnet_fp.py'
PICTURES = {
    'fig1_output_variance', 'fig2_noise_gradient', 'fig3_channel_ranges',
    'fig4_histograms', 'fig5_trace', 'layer_traces', 'spectrum', 'slice_1d',
    'slices_2d', 'sqnr'
}


def refused(*argv):
    """The command's error message."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    return str(stop.value)


def test_it_writes_report_pictures_and_numbers(analysed):
    assert {p.stem for p in analysed.out.glob('*.png')} == PICTURES
    assert {p.name for p in analysed.out.iterdir()} == {
        'report.html', 'analysis.json', *(f'{p}.png' for p in PICTURES)}
    assert f'written: {analysed.out}/report.html' in analysed.stdout


def test_a_pipe_is_not_flooded(analysed):
    assert '[3/3] quantized epoch_2' in analysed.stdout
    lines = re.findall(r'^(?:Hessian trace|2-D slice|top eigenvalues).*',
                       analysed.stderr, re.M)
    # Two models are measured fully, and one in part.
    assert [line.partition(':')[0] for line in lines] == (
        ['Hessian trace'] * 2 + ['top eigenvalues'] * 2
        + ['2-D slice of the loss'] * 2 + ['Hessian trace'] * 4
        + ['top eigenvalues'] * 2 + ['2-D slice of the loss'] * 2)
    assert '\r' not in analysed.stdout + analysed.stderr
    assert '\x1b' not in analysed.stdout + analysed.stderr


def test_the_command_it_notes_runs_again(analysed, trained):
    assert analysed.study['command'] == ' '.join([
        'fpq analyze', *trained.pairs('full', 'epoch_1', 'epoch_2'),
        f'--out {analysed.out} --split train --images 12 --probes 4 --layer',
        f'{trained.layer} --seed 0 --device cpu'
    ])
    assert analysed.study['split'] == 'train'
    assert analysed.study['accuracy_split'] == 'val'


def parser():
    made = argparse.ArgumentParser(prog='fpq')
    add_command(made.add_subparsers(required=True))
    return made


def test_what_was_not_given_is_noted_as_its_default():
    args = parser().parse_args(['analyze', 'my model.py', 'a.pth'])
    assert command_line(args) == (
        "fpq analyze 'my model.py' a.pth --out analysis --split train "
        '--images 512 --probes 16 --seed 0 --device cpu')


def test_the_subcommand_raises_what_the_user_can_mend(tmp_path):
    args = parser().parse_args(
        ['analyze', 'no.py', 'no.pth', '--out', str(tmp_path / 'out')])
    with pytest.raises(ValueError, match=r"no config 'no\.py'"):
        args.run(args)
    assert not (tmp_path / 'out').exists()


def test_its_help_teaches(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(['analyze', '--help'])
    text = capsys.readouterr().out
    for word in ('fpq analyze resnet_fp.py', 'report.html', 'analysis.json',
                 '*.png', '--images', '--probes', '--layer', '(default: 512)'):
        assert word in text


@pytest.mark.parametrize('number', ['0', '-3', '1.5', 'many'])
def test_numbers_are_positive(number, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(['analyze', 'a.py', 'a.pth', '--images', number])
    assert f"must be an integer of 1 or more, got '{number}'" in (
        capsys.readouterr().err)


def test_importing_it_is_light():
    code = ('import sys, fpq_plugin.analysis.command; '
            "print({'matplotlib', 'curvlinops', 'scipy', "
            "'fpq_plugin.analysis.pictures'} & set(sys.modules))")
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True,
                          capture_output=True, text=True)
    assert done.stdout.strip() == 'set()'


@pytest.mark.parametrize(('config', 'checkpoint', 'message'), [
    ('quantized.py', 'full.pth', 'is of a full-precision model'),
    ('full.py', 'epoch_1.pth', 'was trained with FPQ'),
    ('quantized.py', 'epoch_9.pth', "no checkpoint '.*epoch_9.pth'"),
    ('other.py', 'full.pth', "no config '.*other.py'"),
    ('wide.py', 'full.pth', r"(?s)does not fit '.*wide.py'.*another shape.*"
     r'backbone.conv1.weight \(8, 1, 3, 3\) instead of \(12, 1, 3, 3\)'),
])
def test_a_checkpoint_that_does_not_fit(trained, config, checkpoint,
                                        message):
    folder = trained.folder
    write_config(folder / 'wide.py', FULL,
                 **{'model.backbone.stem_channels': 12})
    told = refused(folder / config, folder / checkpoint)
    assert re.search(message, told), told


def test_other_mistakes(trained, tmp_path, monkeypatch):
    args = trained.pairs('full')
    assert 'no partner' in refused(*args, 'x.py')
    told = refused(*args, '--layer', 'backbone.layer2.0.conv9')
    assert '--layer' in told
    assert 'Nearest names: backbone.layer2.0.conv' in told
    assert '9999 images asked for, the data set has 1400' in refused(
        *args, '--images', '9999')
    assert 'is given twice' in refused(*args, *args)
    assert '--device abacus' in refused(*args, '--device', 'abacus')
    monkeypatch.setenv('FPQ_DATA_ROOT', str(tmp_path))
    assert 'no data: train_dataloader' in refused(*args)


def test_a_missing_package_is_named(trained, monkeypatch):
    monkeypatch.setattr('fpq_plugin.analysis.measuring.find_spec',
                        lambda name: None)
    assert "pip install 'fpq-openmmlab[analysis]'" in refused(
        *trained.pairs('full'))
