"""The command ``fpq``: its help, what it says and what it refuses."""

import argparse
import re
import subprocess
import sys

import pytest
from runs import ROOT, write_config

from fpq_plugin import __version__, cli
from fpq_plugin.cli import add_analyze, command_line, main, main_analysis
from fpq_plugin.export import ParityError


def fpq(*args, module='fpq_plugin'):
    return subprocess.run([sys.executable, '-m', module, *map(str, args)],
                          capture_output=True, text=True)


def test_help_names_the_commands():
    done = fpq('--help')
    assert done.returncode == 0, done.stderr
    assert re.search(r'^ +export +a checkpoint to a file', done.stdout, re.M)
    assert re.search(r'^ +analy\w+ +\w+', done.stdout, re.M)


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit):
        main(['--version'])
    assert capsys.readouterr().out.strip() == __version__


def test_help_of_export_teaches():
    done = fpq('export', '--help')
    assert done.returncode == 0, done.stderr
    assert 'usage: fpq export ' in done.stdout
    for part in ('Nothing is written if', 'example:\n  fpq export ',
                 'W bits, A bits', 'ms, batch N', 'unpacked', '.onnx',
                 '--no-unsigned-weights', '(default: 1000)'):
        assert part in done.stdout
    # The older name has the same help.
    assert fpq('--help', module='fpq_plugin.export').stdout == done.stdout


@pytest.mark.parametrize(('args', 'why'), [
    (['-o', 'nowhere/model.onnx'], '--out: no folder nowhere'),
    (['-o', 'model.pth'],
     "must end in .encodings or .onnx or .pt2 or .pte, got 'model.pth'"),
    (['-o', 'model.onnx', '--json', 'nowhere/it.json'],
     '--json: no folder nowhere'),
    (['-o', 'model.onnx', '--images', '0'],
     '--images must be at least 1, got 0'),
])
def test_wrong_input_of_export_is_named(args, why):
    with pytest.raises(SystemExit, match=f'^fpq: error: .*{why}'):
        main(['export', 'no.py', 'no.pth', *args])


@pytest.mark.parametrize(('module', 'args'), [
    ('fpq_plugin', ['export']), ('fpq_plugin.export', [])])
def test_a_wrong_path_ends_with_one_line(module, args, tmp_path):
    done = fpq(*args, tmp_path / 'no.py', 'no.pth', '-o', 'model.onnx',
               module=module)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('fpq: error: ')
    assert str(tmp_path / 'no.py') in last


def test_a_model_that_answers_otherwise_ends_with_one_line(monkeypatch):

    def refused(*_, **options):
        assert options == dict(unsigned_weights=False)
        raise ParityError('not exported: outputs differ')

    monkeypatch.setattr(cli, 'export_checkpoint', refused)
    with pytest.raises(SystemExit, match='^fpq: error: not exported: outputs'):
        main(['export', 'c.py', 'c.pth', '-o', 'model.onnx',
              '--no-unsigned-weights'])


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert 'COMMAND' in capsys.readouterr().err.splitlines()[-1]


def test_help_loads_no_runtime():
    code = (
        'import sys, fpq_plugin.cli\n'
        "print([name for name in ('onnx', 'onnx_ir', 'onnxruntime') "
        'if name in sys.modules])\n')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True,
                          text=True)
    assert done.stdout.strip() == '[]', done.stderr


# -- fpq analyze ----------------------------------------------------------

FULL = 'fashion_mnist/resnet_fp.py'
PICTURES = {
    'fig1_output_variance', 'fig2_noise_gradient', 'fig3_channel_ranges',
    'fig4_histograms', 'fig5_trace', 'layer_traces', 'spectrum', 'slice_1d',
    'slices_2d', 'sqnr'
}


def refused(*argv):
    """The command's error message."""
    with pytest.raises(SystemExit) as stop:
        main_analysis([str(a) for a in argv])
    return str(stop.value)


def test_analyze_writes_report_pictures_and_numbers(analysed):
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


def test_the_command_that_analyze_notes_runs_again(analysed, trained):
    assert analysed.study['command'] == ' '.join([
        'fpq analyze', *trained.pairs('full', 'epoch_1', 'epoch_2'),
        f'--out {analysed.out} --split train --images 12 --probes 4 --layer',
        f'{trained.layer} --seed 0 --device cpu'
    ])
    assert analysed.study['split'] == 'train'
    assert analysed.study['accuracy_split'] == 'val'


def parser():
    made = argparse.ArgumentParser(prog='fpq')
    add_analyze(made.add_subparsers(required=True))
    return made


def test_what_was_not_given_is_noted_as_its_default():
    args = parser().parse_args(['analyze', 'my model.py', 'a.pth'])
    assert command_line(args) == (
        "fpq analyze 'my model.py' a.pth --out analysis --split train "
        '--images 512 --probes 16 --seed 0 --device cpu')


def test_analyze_raises_what_the_user_can_mend(tmp_path):
    args = parser().parse_args(
        ['analyze', 'no.py', 'no.pth', '--out', str(tmp_path / 'out')])
    with pytest.raises(ValueError, match=r"no config 'no\.py'"):
        args.run(args)
    assert not (tmp_path / 'out').exists()


def test_help_of_analyze_teaches(capsys):
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


def test_importing_them_is_light():
    code = ('import sys, fpq_plugin.cli; '
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


def test_other_mistakes_of_analyze(trained, tmp_path, monkeypatch):
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
