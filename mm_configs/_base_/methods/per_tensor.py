# FPQ with one step for each weight tensor instead of each channel.
_base_ = ['../fpq_w4a4.py']

fpq = dict(weight=dict(per_channel=False))
