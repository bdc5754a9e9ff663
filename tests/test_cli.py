"""The command ``fpq``: its help, and what wrong input ends with."""

import re
import subprocess
import sys

import pytest

from fpq_plugin import __version__
from fpq_plugin.cli import main
from fpq_plugin.export import ParityError, command


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
    (['-o', 'model.pth'], "must end in .onnx, got 'model.pth'"),
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

    monkeypatch.setattr(command, 'export_checkpoint', refused)
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
