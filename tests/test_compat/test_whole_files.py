"""A file is written whole, or its name keeps what it was."""

import errno

import pytest

from fpq_plugin._compat.whole_files import whole_file


def test_the_name_comes_last(tmp_path):
    path = tmp_path / 'file'
    path.write_text('before')
    with whole_file(path) as part, open(part, 'w') as file:
        file.write('after')
        assert path.read_text() == 'before'
    assert path.read_text() == 'after'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError])
def test_what_fails_leaves_the_file_and_nothing_else(tmp_path, error):
    path = tmp_path / 'file'
    path.write_text('before')

    def write():
        with whole_file(path) as part, open(part, 'w') as file:
            file.write('af')
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == 'before'
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_error_names_the_file_and_the_way_out(tmp_path):
    with pytest.raises(OSError, match=r"file' was not written: No space left "
                       r'on device\. Make room\.$') as caught, \
            whole_file(tmp_path / 'file', 'Make room.'):
        raise OSError(errno.ENOSPC, 'what python says')
    assert caught.value.errno == errno.ENOSPC


def test_what_a_kill_left_is_overwritten(tmp_path):
    (tmp_path / 'file.part').write_text('half of it and more')
    with whole_file(tmp_path / 'file') as part, open(part, 'w') as file:
        file.write('all')
    assert (tmp_path / 'file').read_text() == 'all'
    assert [p.name for p in tmp_path.iterdir()] == ['file']
