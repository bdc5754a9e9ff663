"""Packaging of the plugin, its adapters and its configs."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    scope: dict = {}
    exec((ROOT / 'fpq_plugin/version.py').read_text(), scope)
    return scope['__version__']


MMPRETRAIN = [
    'mmpretrain>=1.2.0',
    'openmim>=0.3.9',
    # openmim needs pkg_resources, gone from setuptools 81; openxlab 0.1 pins
    # a setuptools that Python 3.12 cannot import.
    'setuptools>=68,<81',
    'openxlab<0.0.12',
]
EXPORT = [
    'onnx>=1.17,<1.21',
    'onnx-ir>=1.0,<2',
    # 1.21 to 1.24 multiply integers wrongly on processors with AMX.
    'onnxruntime>=1.20,<1.33,!=1.21.*,!=1.22.*,!=1.23.*,!=1.24.*',
]
BREVITAS = [
    # Below 0.14: the adapters use what Brevitas does not promise to keep.
    'brevitas>=0.13.4,<0.14',
    # What Brevitas's own exports to ONNX need.
    'onnxoptimizer>=0.3.13,<0.5',
] + EXPORT
OPENVINO = ['openvino>=2025.0']
# Each version is for one of torch: 1.3 for 2.12.
EXECUTORCH = ['executorch>=1.3,<1.6', 'torchao>=0.17']
SAM = ['pytorch_optimizer>=4.1,<5']
ANALYSIS = [
    # Below 4: fpq_plugin.analysis overrides how its Hessian multiplies.
    'curvlinops-for-pytorch>=3.0.1,<4',
    'matplotlib',
]
DOCS = [
    'sphinx>=7.4,<10',
    'docutils>=0.21',  # its MathML
    'myst-parser>=4,<6',
    'furo>=2024.8.6',
]
DEV = [
    'mmcv-lite>=2.2.0', 'pytest>=9', 'pytest-xdist', 'hypothesis',
    'scikit-learn', 'ruff', 'build>=1.2,<2', 'mypy>=2.4,<3', 'tox>=4.20,<5',
]

setup(
    name='fpq-openmmlab',
    version=version(),
    description='Feature-Perturbed Quantization for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10,<3.14',
    packages=find_packages(
        include=['fpq_plugin*', 'brevitas_adapters*', 'mm_configs*']),
    package_data={
        'fpq_plugin': ['py.typed'],
        'brevitas_adapters': ['py.typed'],
        'mm_configs': ['**/*.py'],
    },
    entry_points=dict(console_scripts=['fpq = fpq_plugin.cli:main']),
    install_requires=['torch>=2.1', 'mmengine>=0.10.7', 'numpy', 'rich'],
    extras_require=dict(
        mmpretrain=MMPRETRAIN,
        brevitas=BREVITAS,
        export=EXPORT,
        openvino=EXPORT + OPENVINO,
        executorch=EXECUTORCH,
        sam=SAM,
        analysis=ANALYSIS,
        docs=MMPRETRAIN + BREVITAS + ANALYSIS + DOCS,
        dev=MMPRETRAIN + BREVITAS + SAM + ANALYSIS + DEV),
    classifiers=[
        'Programming Language :: Python :: 3',
        'Typing :: Typed',
    ],
)
