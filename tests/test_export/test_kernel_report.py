"""A line tells which layers an engine computes on integers."""

from fpq_plugin.export.kernel_report import Kernels


def test_the_line_shortens_names():
    kernels = Kernels(tuple((str(n), 'because' if n else '')
                            for n in range(7)), ())
    assert kernels.line() == ('integer kernels: 1 of 7 layers; float because '
                              'because (6: 1, 2, 3, 4, ...)')


def test_what_is_outside_is_told():
    kernels = Kernels((('a', ''), ), (('add', 2), ), (('gelu', 3), ))
    assert kernels.line() == (
        "integer kernels: 1 of 1 layers, 2 add; not among the engine's "
        'kernels: 3 gelu')
    assert kernels.as_dict() == dict(
        layers={'a': 'integers'}, others={'add': 2}, outside={'gelu': 3})
