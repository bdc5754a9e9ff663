"""No checkpoint runs code, wherever it is met; a file is written whole."""

import errno
import http.server
import os
import pickle
import tarfile
import threading
import time
from functools import partial

import pytest
import torch
from mmengine.runner import CheckpointLoader, Runner
from runs import config, train

from fpq_plugin import load_model
from fpq_plugin._compat.files import (
    FORSAKEN_S,
    load_file,
    remove_parts,
    write_whole,
)
from fpq_plugin.cli import main_analysis as analyse
from fpq_plugin.openmmlab.export_run import export_checkpoint

REASON = r'read safely: it holds \w+\.mkdir, .* If you trust the file, save'


@pytest.fixture
def backend():
    """Loading is the same for both."""
    return 'torch_ao'


class MakesFolder:
    """Unpickled, it makes a folder: what a malicious file would do."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path, )


@pytest.fixture
def made(tmp_path):
    """The folder that must not appear."""
    path = tmp_path / 'made'
    yield path
    assert not path.exists()


@pytest.fixture
def evil(tmp_path, fp, made):
    """A good full-precision checkpoint with a payload in its ``meta``."""
    content = load_file(str(fp))
    content['meta']['note'] = MakesFolder(made)
    path = tmp_path / 'evil.pth'
    torch.save(content, path)
    return str(path)


def test_the_payload_works(tmp_path):
    """Or the tests below would show nothing."""
    torch.save(MakesFolder(tmp_path / 'proof'), tmp_path / 'c.pth')
    torch.load(tmp_path / 'c.pth', weights_only=False)
    assert (tmp_path / 'proof').exists()


def test_a_teacher(evil, fpq_config):
    with pytest.raises(ValueError, match='fpq.teacher: .*' + REASON):
        train(fpq_config(fpq__teacher=evil))


def test_load_from(evil, fpq_config):
    with pytest.raises(ValueError, match='load_from: .*' + REASON):
        train(fpq_config(load_from=evil))


@pytest.fixture(params=['full precision', 'FPQ'])
def any_config(request, fpq_config, tmp_path):
    """Makes a config with FPQ, and one that only imports the plugin."""
    if request.param == 'FPQ':
        return fpq_config
    return partial(config, 'fashion_mnist/resnet_fp.py', tmp_path / 'run')


def test_testing(evil, any_config):
    with pytest.raises(ValueError, match=REASON):
        Runner.from_cfg(any_config(load_from=evil)).test()


def test_resuming(evil, any_config):
    with pytest.raises(ValueError, match=REASON):
        train(any_config(load_from=evil, resume=True))


def test_the_models_own_pretrained_weights(evil, fpq_config):
    cfg = fpq_config(**{
        'load_from': None,
        'model.init_cfg': dict(type='Pretrained', checkpoint=evil)})
    with pytest.raises(ValueError, match=REASON):
        train(cfg)


def test_inference_export_and_analysis(evil, fpq_config, tmp_path):
    cfg = fpq_config()
    cfg.dump(tmp_path / 'c.py')
    with pytest.raises(ValueError, match=REASON):
        load_model(cfg, evil)
    with pytest.raises(ValueError, match=REASON):
        export_checkpoint(str(tmp_path / 'c.py'), evil,
                          str(tmp_path / 'model.onnx'))
    with pytest.raises(SystemExit, match=REASON):
        analyse([str(tmp_path / 'c.py'), evil, '--out',
                 str(tmp_path / 'analysis')])


@pytest.fixture
def served(tmp_path, monkeypatch):
    """URL of ``tmp_path``; torch.hub keeps what it downloads in it."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch_home'))
    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0),
        partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    thread.join()
    server.server_close()


def test_urls(evil, served, fp, tmp_path):
    (tmp_path / 'good.pth').write_bytes(fp.read_bytes())
    assert load_file(f'{served}/good.pth')['meta']['epoch'] == 3
    for load in (load_file, CheckpointLoader.load_checkpoint):
        with pytest.raises(ValueError, match=REASON):
            load(f'{served}/evil.pth')
    # In between, torch.load is torch's own.
    assert torch.load.__module__ == 'torch.serialization'


@pytest.mark.parametrize('how', ['plain', 'legacy', 'tar'])
def test_other_kinds_of_file(how, made, tmp_path):
    path = tmp_path / 'c.pth'
    if how == 'plain':
        path.write_bytes(pickle.dumps(MakesFolder(made)))
    elif how == 'legacy':
        torch.save(dict(state_dict=MakesFolder(made)), path,
                   _use_new_zipfile_serialization=False)
    else:
        (tmp_path / 'pickle').write_bytes(pickle.dumps(MakesFolder(made)))
        with tarfile.open(path, 'w') as archive:
            for name in ('storages', 'tensors', 'pickle'):
                archive.add(tmp_path / 'pickle', name)
    with pytest.raises(ValueError, match='read safely'):
        load_file(str(path))


def test_torch_script(tmp_path):
    path = str(tmp_path / 'c.pth')
    torch.jit.script(torch.nn.Linear(1, 1)).save(path)
    with pytest.raises(ValueError, match='it is a TorchScript archive'):
        load_file(path)


def test_attributes_of_functions_cannot_be_set(tmp_path):
    # Pickle's BUILD, with the function itself as the object.
    (tmp_path / 'c.pth').write_bytes(
        b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}U\x04markI1\nsb.')
    with pytest.raises(ValueError, match='read safely'):
        load_file(str(tmp_path / 'c.pth'))
    assert not hasattr(torch._utils._rebuild_tensor_v2, 'mark')


def test_a_damaged_file(tmp_path):
    (tmp_path / 'c.pth').write_bytes(b'PK half of an archive')
    with pytest.raises(ValueError, match='safely: it is damaged, or no file'):
        load_file(str(tmp_path / 'c.pth'))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_name_comes_last(tmp_path):
    path = tmp_path / 'new' / 'file'

    def write(file):
        file.write(b'after')
        assert not path.exists()

    write_whole(path, write)
    assert path.read_bytes() == b'after'
    assert names(path.parent) == ['file']


@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError])
def test_what_fails_leaves_the_file_and_nothing_else(tmp_path, error):
    path = tmp_path / 'file'
    path.write_text('before')

    def write(file):
        file.write(b'af')
        raise error

    with pytest.raises(error):
        write_whole(path, write)
    assert path.read_text() == 'before'
    assert names(tmp_path) == ['file']


def test_an_error_names_the_file(tmp_path):

    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"file' was not written: No space left "
                       'on device. What was saved before is whole') as caught:
        write_whole(tmp_path / 'file', full)
    assert caught.value.errno == errno.ENOSPC
    blocked = tmp_path / 'blocked'
    blocked.write_text('a file, no folder')
    with pytest.raises(OSError, match="blocked/file' was not written: "):
        write_whole(blocked / 'file', lambda file: None)


def test_what_a_kill_left_is_removed_once_it_is_old(tmp_path):
    old, new, other = (tmp_path / name for name in (
        '.epoch_1.pth.0123456789ab.part', '.epoch_2.pth.ba9876543210.part',
        '.video.part'))
    for path in (old, new, other):
        path.write_text('half')
        age = FORSAKEN_S + (-60 if path is new else 60)
        os.utime(path, (time.time() - age, ) * 2)
    remove_parts(tmp_path)
    assert names(tmp_path) == sorted([new.name, other.name])
