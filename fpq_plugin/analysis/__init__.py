"""See the landscape of a trained model: Hessian, stability, features.

Each function takes a model, quantized or not, and a list of batches, and
leaves the model as it was. ``python -m fpq_plugin.analysis`` runs them all.
Curvature needs curvlinops, pictures need matplotlib:
``pip install 'fpq-openmmlab[analysis]'``.
"""

from .batch import Batch, MMBatch, PlainBatch
from .channel_ranges import ChannelRanges, channel_ranges
from .density import SpectralDensity, spectral_density
from .eigenvalues import Eigenvalue, top_eigenvalues
from .estimate import Estimate
from .gradient_norm import NoiseGradientNorm, noise_gradient_norm
from .histogram import Histograms, feature_histograms
from .landscape import filter_normalised, loss_slice, mean_loss
from .naive import naive_quantization
from .output_variance import OutputVariance, output_variance
from .quiet import quiet
from .sqnr import LayerSQNR, layer_sqnr
from .trace import HessianTrace, hessian_trace

__all__ = [
    'Batch', 'ChannelRanges', 'Eigenvalue', 'Estimate', 'HessianTrace',
    'Histograms', 'LayerSQNR', 'MMBatch', 'NoiseGradientNorm',
    'OutputVariance', 'PlainBatch', 'SpectralDensity', 'channel_ranges',
    'feature_histograms', 'filter_normalised', 'hessian_trace', 'layer_sqnr',
    'loss_slice', 'mean_loss', 'naive_quantization', 'noise_gradient_norm',
    'output_variance', 'quiet', 'spectral_density', 'top_eigenvalues'
]
