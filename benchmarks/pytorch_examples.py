"""Train as dcgan/main.py of github.com/pytorch/examples does, for comparison with train.py (compare.py).

    python benchmarks/pytorch_examples.py --faces FACES.npy --batch-size 128 --count 100 --out DIR

Networks, weights, losses, optimisers and the order of the updates are the same as in that program with its default
settings; only the batch size can be chosen. Float32, one thread, no moving average, no augmentation. The faces are
resized and cropped in advance, and neither grids nor checkpoints are written.

Trains until SIGTERM, and then writes faces.npy, uint8 (count, 64, 64, 3). They are drawn as in that program: with the
batch norm statistics of their own batch. log.csv has a row for each step. Needs PyTorch and NumPy.
"""

import argparse
import csv
import itertools
import signal
from pathlib import Path

import numpy as np
import torch
from torch import nn

LATENTS, CHANNELS = 100, 3


def make_generator() -> nn.Sequential:
    """The network from latents (N, 100, 1, 1) to images (N, 3, 64, 64) in -1..1."""
    modules: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise((LATENTS, 512, 256, 128, 64, CHANNELS)):
        stride, padding = (1, 0) if inputs == LATENTS else (2, 1)
        modules.append(nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False))
        modules += [nn.Tanh()] if outputs == CHANNELS else [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*modules).apply(initialise)


def make_discriminator() -> nn.Sequential:
    """The network from images (N, 3, 64, 64) in -1..1 to probabilities (N,) that they are real."""
    modules: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise((CHANNELS, 64, 128, 256, 512)):
        modules.append(nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False))
        modules += [] if inputs == CHANNELS else [nn.BatchNorm2d(outputs)]
        modules.append(nn.LeakyReLU(0.2, inplace=True))
    last = nn.Conv2d(512, 1, 4, bias=False)
    return nn.Sequential(*modules, last, nn.Sigmoid(), nn.Flatten(0)).apply(initialise)


def initialise(module: nn.Module) -> None:
    """Draw the weights of a convolution from N(0, 0.02), and the scales of a batch normalisation from N(1, 0.02)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)):
        nn.init.normal_(module.weight, float(isinstance(module, nn.BatchNorm2d)), 0.02)


def batches(faces: torch.Tensor, batch_size: int):
    """Yield batches of `faces`, uint8 (N, 64, 64, 3), without end, in a new order in each epoch: (n, 3, 64, 64)."""
    while True:
        for indices in torch.randperm(len(faces)).split(batch_size):
            yield faces[indices].permute(0, 3, 1, 2).contiguous() / 127.5 - 1


def train(generator: nn.Module, discriminator: nn.Module, images):
    """Train with batches of images, and yield the losses of both networks after each step: (discriminator, generator).

    The networks are updated in turn, on the same generated images.
    """
    d_adam, g_adam = (torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (discriminator, generator))
    cross_entropy = nn.BCELoss()
    for real in images:
        ones, zeros = torch.ones(len(real)), torch.zeros(len(real))
        # The discriminator.
        d_adam.zero_grad()
        real_loss = cross_entropy(discriminator(real), ones)
        real_loss.backward()
        fake = generator(torch.randn(len(real), LATENTS, 1, 1))
        fake_loss = cross_entropy(discriminator(fake.detach()), zeros)
        fake_loss.backward()
        d_adam.step()

        # The generator.
        g_adam.zero_grad()
        g_loss = cross_entropy(discriminator(fake), ones)
        g_loss.backward()
        g_adam.step()
        yield (real_loss + fake_loss).item(), g_loss.item()


@torch.no_grad()
def draw(generator: nn.Module, batch_size: int, count: int) -> np.ndarray:
    """Faces, uint8 (count, 64, 64, 3), drawn in full batches, each normalised with its own statistics."""
    drawn = [generator(torch.randn(batch_size, LATENTS, 1, 1)) for _ in range(0, count, batch_size)]
    images = torch.cat(drawn)[:count].permute(0, 2, 3, 1)
    return ((images + 1) * 127.5).round().to(torch.uint8).numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--faces', type=Path, required=True, help='training faces: a .npy file, uint8 (N, 64, 64, 3)')
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--count', type=int, required=True, help='number of faces to draw')
    parser.add_argument('--out', type=Path, required=True, help='a new folder for the results')
    args = parser.parse_args()

    # Note the signal, which ends the training after a step.
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    generator, discriminator = make_generator(), make_discriminator()
    images = batches(torch.from_numpy(np.load(args.faces)), args.batch_size)

    # Train, and draw.
    args.out.mkdir()
    with open(args.out / 'log.csv', 'w', newline='', buffering=1) as file:
        log = csv.writer(file)
        log.writerow(['step', 'd_loss', 'g_loss'])
        for step, losses in enumerate(train(generator, discriminator, images), 1):
            log.writerow([step, *losses])
            if stopped:
                break
    np.save(args.out / 'faces.npy', draw(generator, args.batch_size, args.count))


if __name__ == '__main__':
    main()
