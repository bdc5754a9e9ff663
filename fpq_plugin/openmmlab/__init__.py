"""FPQ in MMEngine's Runner, on OpenMMLab's configs and models."""
