# FPQ with the noise on the weights instead of the features (the paper's
# Fig. 2).
_base_ = ['../fpq_w4a4.py']

fpq = dict(
    perturbation=dict(type='StochasticWeightPerturbation', p=0.1))
