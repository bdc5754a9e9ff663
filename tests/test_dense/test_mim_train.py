"""The worked configs of mmdet and mmseg, through mim, on generated shapes.

In the environment of ``tox -e dense`` only: these need mmdet and mmseg.
"""

import json

import pytest
from dense_runs import DETECTION, SEGMENTATION, SIZE, user_config
from runs import ROOT, mim, weights


def scalars(work_dir):
    file, = work_dir.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [row for row in rows if 'loss' in row]


@pytest.mark.parametrize('backend', ['torch_ao', 'brevitas'])
@pytest.mark.parametrize(('library', 'base', 'dataset', 'more', 'predicts'), [
    ('mmdet', 'mmdet/retinanet_r50_fpq_w4a4_coco.py', DETECTION, {},
     'bbox_head.retina_cls'),
    ('mmsegmentation', 'mmseg/segformer_mit_b0_fpq_w4a4_ade20k.py',
     SEGMENTATION,
     dict(model=dict(data_preprocessor=dict(size=(SIZE, SIZE)),
                     backbone=dict(init_cfg=None))),
     'decode_head.conv_seg'),
])
def test_a_users_config_trains(tmp_path, backend, library, base, dataset,
                               more, predicts):
    path = user_config(tmp_path, base, dataset, **more)
    work_dir = tmp_path / 'run'
    output = mim(
        'train', library, path, '--work-dir', work_dir, '--cfg-options',
        f'default_hooks.fpq.backend={backend}', cwd=tmp_path,
        PYTHONPATH=str(ROOT), FPQ_COMPILE='0', OMP_NUM_THREADS='1')
    rows = scalars(work_dir)
    assert len(rows) == 4
    assert all(0 < row['loss_csd'] < 1e4 for row in rows)
    state = weights(work_dir / 'epoch_1.pth')
    assert int(state[f'{predicts}.weight_quantizer.bits']) == 8
    assert all(int(v) == 1 for k, v in state.items()
               if k.endswith('.initialized'))
    fp = weights(tmp_path / 'fp.pth')
    assert set(fp) < set(state)
    assert 'leaves out' not in output
