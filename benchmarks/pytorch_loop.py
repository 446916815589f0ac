"""Train in plain PyTorch, for comparison with `train.train` (host.py). Prints milliseconds per step.

    python benchmarks/pytorch_loop.py --system oreilly --width 0.01 --batch-size 2 --steps 300

The networks are from systems.py. A step updates both and the moving average, and logs a row. Needs PyTorch and NumPy.
"""

import argparse
import csv
import itertools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from systems import SYSTEMS, Layer

WARM_UP = 20  # steps that are not counted
IMAGES = 4096


class Reshape(nn.Module):
    """Reshape values to images, channels first."""

    def __init__(self, *shape):
        super().__init__()
        self.shape = shape

    def forward(self, x):
        return x.reshape(-1, *self.shape)


def network(layers: tuple[Layer, ...], shape: tuple[int, ...], width: float, slope: float) -> nn.Sequential:
    """The layers of a system, for inputs of `shape`: (units,) or (channels, side, side)."""
    modules: list[nn.Module] = []
    for number, layer in enumerate(layers, 1):
        scale = 1 if number == len(layers) else width
        if isinstance(layer.output, tuple):
            *sides, channels = layer.output
            channels = max(1, round(channels * scale))
            modules += [nn.Flatten(), nn.Linear(int(np.prod(shape)), int(np.prod([channels, *sides])))]
            shape = (channels, *sides)
            modules += [Reshape(*shape)] if sides else []
        else:
            inputs, side, _ = shape
            channels, kernel, stride = max(1, round(layer.output * scale)), layer.kernel, layer.stride
            padding = 0 if layer.padding == 'VALID' else (kernel - 1) // 2
            if layer.kind == 'conv2d':
                modules.append(nn.Conv2d(inputs, channels, kernel, stride, padding))
                side = (side + 2 * padding - kernel) // stride + 1
            else:
                wanted = side * stride if padding else (side - 1) * stride + kernel
                extra = wanted - ((side - 1) * stride - 2 * padding + kernel)
                modules.append(nn.ConvTranspose2d(inputs, channels, kernel, stride, padding, extra))
                side = wanted
            shape = (channels, side, side)
        if layer.batch_norm:
            modules.append(nn.BatchNorm2d(channels))
        activations = {'leaky_relu': nn.LeakyReLU(slope), 'relu': nn.ReLU(), 'tanh': nn.Tanh(), None: nn.Identity()}
        modules.append(activations[layer.activation])
    return nn.Sequential(*modules)


def train(args) -> float:
    """Milliseconds per step."""
    system = SYSTEMS[args.system]
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    side, _, _ = system.image_shape
    generator = network(system.generator, (system.latent_size,), args.width, system.leaky_slope).to(device)
    discriminator = network(system.discriminator, (3, side, side), args.width, system.leaky_slope).to(device)
    averages = [parameter.detach().clone() for parameter in generator.parameters()]
    optimizers = [
        torch.optim.Adam(net.parameters(), system.learning_rate, (system.beta1, 0.999))
        for net in (discriminator, generator)
    ]
    cross_entropy = nn.BCEWithLogitsLoss()
    faces = torch.randint(0, 256, (IMAGES, 3, side, side), dtype=torch.uint8, device=device)
    labels = [torch.full((args.batch_size, 1), label, device=device) for label in (system.real_label, 0.0)]

    def step(indices, latents):
        real = faces[indices].float() / 127.5 - 1
        with torch.autocast(device, torch.bfloat16, enabled=args.precision == 'bf16'):
            fake = generator(latents)
            real_logits, fake_logits = discriminator(real), discriminator(fake.detach())
            d_loss = cross_entropy(real_logits, labels[0]) + cross_entropy(fake_logits, labels[1])
            optimizers[0].zero_grad()
        d_loss.backward()
        optimizers[0].step()
        with torch.autocast(device, torch.bfloat16, enabled=args.precision == 'bf16'):
            g_loss = cross_entropy(discriminator(fake), labels[0])
            optimizers[1].zero_grad()
        g_loss.backward()
        optimizers[1].step()
        with torch.no_grad():
            for average, parameter in zip(averages, generator.parameters(), strict=True):
                average.lerp_(parameter, 1 - system.ema)
        return d_loss, g_loss, torch.sigmoid(real_logits), torch.sigmoid(fake_logits)

    if args.compile:
        generator.compile()
        discriminator.compile()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryFile('w', newline='') as file:
        log = csv.writer(file)
        for number in itertools.count():
            if number == WARM_UP:
                began = time.perf_counter()
            if number == WARM_UP + args.steps:
                return 1000 * (time.perf_counter() - began) / args.steps
            indices = torch.from_numpy(rng.integers(0, IMAGES, args.batch_size)).to(device)
            latents = rng.uniform(-1, 1, (args.batch_size, system.latent_size)).astype(np.float32)
            losses = step(indices, torch.from_numpy(latents).to(device))
            log.writerow([number, *(f'{value.float().mean().item():.6g}' for value in losses)])
    raise AssertionError('it counts without end')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--system', choices=SYSTEMS, default='oreilly')
    parser.add_argument('--width', type=float, default=1.0)
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--precision', choices=('fp32', 'bf16'), default='fp32')
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--compile', action='store_true', help='with torch.compile')
    print(train(parser.parse_args()))


if __name__ == '__main__':
    main()
