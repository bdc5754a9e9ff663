"""A file is written whole, or its name keeps what it was."""

import errno
import os
import time

import pytest

from fpq_plugin._compat.files import (
    FORSAKEN_S,
    remove_parts,
    write_whole,
)


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
