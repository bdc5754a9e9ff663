# The paper's preset at W2A2; see fpq_w4a4.py.
_base_ = ['./fpq_w4a4.py']

fpq = dict(weight=dict(bits=2), activation=dict(bits=2))
