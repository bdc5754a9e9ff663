"""See the landscape of a trained model: Hessian, stability, features.

Each function takes a model, quantized or not, and a list of batches, and
leaves the model as it was. ``fpq analyze`` runs them all. Curvature needs
curvlinops, pictures need matplotlib:
``pip install 'fpq-openmmlab[analysis]'``.
"""

from .batches import Batch, MMBatch, PlainBatch
from .curvature import (
    Eigenvalue,
    HessianTrace,
    SpectralDensity,
    hessian_trace,
    spectral_density,
    top_eigenvalues,
)
from .features import (
    ChannelRanges,
    Histograms,
    LayerSQNR,
    channel_ranges,
    feature_histograms,
    layer_sqnr,
)
from .landscape import filter_normalised, loss_slice, mean_loss
from .measuring import Estimate, left_unchanged
from .stability import (
    NoiseGradientNorm,
    OutputVariance,
    noise_gradient_norm,
    output_variance,
)
from .trained_models import naive_quantization

__all__ = [
    'Batch', 'ChannelRanges', 'Eigenvalue', 'Estimate', 'HessianTrace',
    'Histograms', 'LayerSQNR', 'MMBatch', 'NoiseGradientNorm',
    'OutputVariance', 'PlainBatch', 'SpectralDensity', 'channel_ranges',
    'feature_histograms', 'filter_normalised', 'hessian_trace', 'layer_sqnr',
    'left_unchanged', 'loss_slice', 'mean_loss', 'naive_quantization',
    'noise_gradient_norm', 'output_variance', 'quiet', 'spectral_density',
    'top_eigenvalues'
]

quiet = left_unchanged
"""Another name of :func:`left_unchanged`."""
