"""Pictures, one file each; they take the JSON of what was measured."""

from .channel_ranges import draw_channel_ranges
from .course import draw_course
from .histograms import draw_histograms
from .layer_traces import draw_layer_traces
from .noise_gradient import draw_noise_gradient
from .output_variance import draw_output_variance
from .slices import draw_slice_1d, draw_slices_2d
from .spectrum import draw_spectrum
from .sqnr import draw_sqnr
from .trace import draw_trace

__all__ = [
    'draw_channel_ranges', 'draw_course', 'draw_histograms',
    'draw_layer_traces', 'draw_noise_gradient', 'draw_output_variance',
    'draw_slice_1d', 'draw_slices_2d', 'draw_spectrum', 'draw_sqnr',
    'draw_trace'
]
