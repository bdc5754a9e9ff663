"""The engines that files are timed in, each behind the same calls.

A new one is one more class with ``@register``.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

Run = Callable[[np.ndarray], np.ndarray]
"""From one image, (1, 3, H, W), to logits."""


@dataclass(frozen=True)
class Kernel:
    """A call of an engine's kernel.

    Attributes:
        name (str): Of the node that it computes.
        kind (str): Operation, and the type it works on in brackets.
        integer (bool): Whether it computes on integers.
        seconds (float): Median time.
        shape (str): Of its first input, or ''.
    """

    name: str
    kind: str
    integer: bool
    seconds: float
    shape: str = ''


@dataclass
class Subject:
    """A model in full precision, and what files are made from.

    Args:
        name (str): What it is called.
        model (nn.Module): In eval mode.
        images (Tensor): For calibration and comparison, (N, 3, H, W).
        folder (Path): For the files.
    """

    name: str
    model: nn.Module
    images: Tensor
    folder: Path
    _made: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def outputs(self) -> np.ndarray:
        """The model's logits."""
        with torch.no_grad():
            return self.model(self.images).numpy()

    def each_image(self) -> Iterator[np.ndarray]:
        """The images, one a batch."""
        for image in self.images.split(1):
            yield image.numpy()

    def file(self, name: str, make: Callable[[Path], None]) -> Path:
        """The file of that name, made when it is first asked for."""
        if name not in self._made:
            path = self.folder / f'{self.name}_{name}'
            make(path)
            self._made[name] = path
        return self._made[name]

    def onnx(self) -> Path:
        """The model in float32, traced as an export traces it.

        So it differs from the exported file in quantization alone.
        """
        from onnx_ir import save

        from fpq_plugin.export.rewriting import finish_graph, read_graph
        from fpq_plugin.export.tracing import trace_any_batch

        def make(path: Path) -> None:
            traced, _ = trace_any_batch(self.model, [], self.images, False)
            built = read_graph(traced)
            finish_graph(built)
            save(built, path)

        return self.file('float.onnx', make)


class Engine:
    """A runtime: files in full precision and of its own quantization.

    Args:
        threads (int): How many it may use.

    Attributes:
        title (str): Its name in tables.
        target (str, optional): What the export calls it.
        ending (str): Of our files.
        needs (tuple[str, ...]): Packages to import, without which there is
            no such engine here.
    """

    title = ''
    target: str | None = None
    ending = '.onnx'
    needs: tuple[str, ...] = ()

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @classmethod
    def missing(cls) -> list[str]:
        """The packages that are not installed."""
        return [name for name in cls.needs if find_spec(name) is None]

    def version(self) -> str:
        """Of the runtime."""
        return version(self.needs[0])

    def float_file(self, subject: Subject) -> Path:
        """The model in float32."""
        return subject.onnx()

    def own_file(self, subject: Subject) -> Path:
        """The model as the runtime's own quantization makes it.

        Raises:
            ImportError: If what quantizes for this runtime is not installed.
        """
        raise NotImplementedError

    def open(self, path: Path, shape: tuple[int, ...]) -> Run:
        """Open a file for inputs of one shape."""
        raise NotImplementedError

    def kernels(self, path: Path, x: np.ndarray, calls: int) -> list[Kernel]:
        """What the runtime calls in an inference, by its own profiler.

        Returns:
            list[Kernel]: In any order; empty where there is no profiler.
        """
        return []


ENGINES: dict[str, type[Engine]] = {}


def register(name: str) -> Callable[[type[Engine]], type[Engine]]:
    """Let the command line name an engine."""

    def add(engine: type[Engine]) -> type[Engine]:
        ENGINES[name] = engine
        return engine

    return add


@register('onnxruntime')
class OnnxRuntime(Engine):
    """Its own quantization is ``quantize_static``, as its manual has it."""

    title, target = 'onnxruntime', 'onnxruntime'
    needs = ('onnxruntime', )

    # Kernels that compute on integers, beside QLinear...
    INTEGER = ('QGemm', 'QAttention', 'MatMulInteger', 'ConvInteger',
               'MatMulIntegerToFloat', 'DynamicQuantizeMatMul')
    # What names an event of a node's kernel in the profile.
    KERNEL = '_kernel_time'

    def own_file(self, subject: Subject) -> Path:
        from onnxruntime.quantization import (
            CalibrationDataReader,
            QuantFormat,
            QuantType,
            quantize_static,
        )
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Images(CalibrationDataReader):

            def __init__(self) -> None:
                self.left = subject.each_image()

            def get_next(self) -> dict | None:
                image = next(self.left, None)
                return None if image is None else {'input': image}

        def make(path: Path) -> None:
            prepared = path.with_name(f'prepared_{path.name}').resolve()
            here, source = os.getcwd(), subject.onnx().resolve()
            os.chdir(subject.folder)  # where it fails it leaves its files
            try:
                quant_pre_process(source, prepared)
            except Exception:  # Swin: "Incomplete symbolic shape inference"
                quant_pre_process(source, prepared,
                                  skip_symbolic_shape=True)
            finally:
                os.chdir(here)
            quantize_static(
                prepared, path, Images(), quant_format=QuantFormat.QDQ,
                per_channel=True, weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8)

        return subject.file('onnxruntime_ptq.onnx', make)

    def open(self, path: Path, shape: tuple[int, ...]) -> Run:
        session = self._session(path, self._options())

        def run(x: np.ndarray) -> np.ndarray:
            return session.run(None, {'input': x})[0]

        return run

    def kernels(self, path: Path, x: np.ndarray, calls: int) -> list[Kernel]:
        with tempfile.TemporaryDirectory() as folder:
            options = self._options()
            options.enable_profiling = True
            options.profile_file_prefix = f'{folder}/profile'
            session = self._session(path, options)
            for _ in range(calls):
                session.run(None, {'input': x})
            events = json.loads(Path(session.end_profiling()).read_text())
        found = defaultdict(list)
        for event in events:
            if event['cat'] == 'Node' and event['name'].endswith(self.KERNEL):
                found[event['name']].append(event)
        return [self._kernel(name.removesuffix(self.KERNEL), of_node)
                for name, of_node in found.items()]

    def _kernel(self, name: str, events: list[dict]) -> Kernel:
        args = events[0]['args']
        inputs = [next(iter(each.items()))
                  for each in args.get('input_type_shape', [])]
        kind, shape = inputs[0] if inputs else ('', [])
        op = args['op_name']
        return Kernel(
            name, f'{op} ({kind})', op.startswith('QLinear')
            or op in self.INTEGER, 1e-6 * median(e['dur'] for e in events),
            'x'.join(map(str, shape)))

    def _options(self):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        return options

    @staticmethod
    def _session(path: Path, options):
        import onnxruntime

        return onnxruntime.InferenceSession(
            str(path), options, providers=['CPUExecutionProvider'])


@register('openvino')
class OpenVINO(Engine):
    """Its own quantization is NNCF's. The batch size is fixed on opening."""

    title, target = 'OpenVINO', 'openvino'
    needs = ('openvino', )

    def own_file(self, subject: Subject) -> Path:
        import nncf
        import openvino

        nncf.set_log_level(logging.ERROR)
        images = list(subject.each_image())

        def make(path: Path) -> None:
            model = self._read(subject.onnx(), images[0].shape)
            attends = any('Attention' in type(part).__name__
                          or type(part).__name__.endswith('MSA')
                          for part in subject.model.modules())
            quantized = nncf.quantize(
                model, nncf.Dataset(images), subset_size=len(images),
                model_type=nncf.ModelType.TRANSFORMER if attends else None)
            openvino.save_model(quantized, path, compress_to_fp16=False)

        return subject.file('nncf.xml', make)

    def open(self, path: Path, shape: tuple[int, ...]) -> Run:
        request = self._compiled(path, shape).create_infer_request()

        def run(x: np.ndarray) -> np.ndarray:
            return request.infer([x], share_inputs=True)[0]

        return run

    def kernels(self, path: Path, x: np.ndarray, calls: int) -> list[Kernel]:
        compiled = self._compiled(path, x.shape, PERF_COUNT=True)
        request = compiled.create_infer_request()
        found = defaultdict(list)
        for _ in range(calls):
            request.infer([x])
            for each in request.get_profiling_info():
                if each.status == each.Status.EXECUTED:
                    found[each.node_name].append(each)
        return [self._kernel(name, of_node)
                for name, of_node in found.items()]

    @staticmethod
    def _kernel(name: str, infos: list) -> Kernel:
        # As in brgconv_avx512_1x1_I8: the last part is the type.
        op = infos[0].node_type
        kind = infos[0].exec_type.rsplit('_', 1)[-1].lower()
        return Kernel(
            name, f'{op} ({kind})', kind in ('i8', 'u8') and op != 'Reorder',
            median(each.real_time.total_seconds() for each in infos))

    def _compiled(self, path: Path, shape: tuple[int, ...], **options):
        import openvino

        return openvino.Core().compile_model(
            self._read(path, shape), 'CPU', dict(
                options, INFERENCE_NUM_THREADS=self.threads, NUM_STREAMS=1,
                PERFORMANCE_HINT='LATENCY',
                INFERENCE_PRECISION_HINT='f32'))

    @staticmethod
    def _read(path: Path, shape: tuple[int, ...]):
        import openvino

        model = openvino.Core().read_model(path)
        model.reshape(list(shape))
        return model


@register('executorch')
class ExecuTorch(Engine):
    """With XNNPACK; its own quantization is pt2e with XNNPACKQuantizer.

    ``flatc``, which its wheel has in ``bin``, must be on PATH.
    """

    title, target, ending = 'ExecuTorch', 'executorch', '.pte'
    needs = ('executorch', 'torchao')

    def float_file(self, subject: Subject) -> Path:
        example = subject.images[:1],

        def make(path: Path) -> None:
            self._lower(torch.export.export(subject.model, example), path)

        return subject.file('float.pte', make)

    def own_file(self, subject: Subject) -> Path:
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import (
            convert_pt2e,
            prepare_pt2e,
        )

        example = subject.images[:1],

        def make(path: Path) -> None:
            quantizer = XNNPACKQuantizer().set_global(
                get_symmetric_quantization_config(is_per_channel=True))
            model = prepare_pt2e(
                torch.export.export(subject.model, example).module(),
                quantizer)
            for image in subject.images.split(1):
                model(image)
            self._lower(
                torch.export.export(convert_pt2e(model), example), path)

        return subject.file('xnnpack.pte', make)

    @staticmethod
    def _lower(program: torch.export.ExportedProgram, path: Path) -> None:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
            XnnpackPartitioner,
        )
        from executorch.exir import to_edge_transform_and_lower

        lowered = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()]).to_executorch()
        path.write_bytes(lowered.buffer)

    def open(self, path: Path, shape: tuple[int, ...]) -> Run:
        from executorch.extension.pybindings.portable_lib import (
            _unsafe_reset_threadpool,
        )
        from executorch.runtime import Runtime

        _unsafe_reset_threadpool(self.threads)
        program = Runtime.get().load_program(path)
        method = program.load_method('forward')

        def run(x: np.ndarray) -> np.ndarray:
            return method.execute([torch.from_numpy(x)])[0].numpy()

        return run
