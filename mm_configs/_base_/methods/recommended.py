# preset='recommended', the hook's default.
_base_ = ['../fpq.py']
