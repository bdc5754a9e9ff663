# The first 1,000 training images, without augmentation: a set that networks
# learn by heart, as in the paper's 200 epochs of CIFAR. Tested on all 10,000.
_base_ = ['./fashion_mnist.py']

train_dataloader = dict(
    batch_size=50,
    dataset=dict(indices=1000, pipeline=[dict(type='PackInputs')]))
