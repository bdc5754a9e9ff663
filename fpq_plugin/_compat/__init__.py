"""Versions of torch and mmengine, patches of them, and what lies under all."""
