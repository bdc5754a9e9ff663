# The paper's preset at W8A8; see fpq_w4a4.py.
_base_ = ['./fpq_w4a4.py']

fpq = dict(weight=dict(bits=8), activation=dict(bits=8))
