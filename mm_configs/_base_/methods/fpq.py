# preset='paper': LSQ with both of FPQ's parts, p = 0.1, lambda = 1.
_base_ = ['../fpq_w4a4.py']
