// The generator: latents, layers, and drawing the face of a latent. weights.js defines GENERATOR.
'use strict';

// Uniform random numbers in 0..1 from a seed (Mulberry32, T. Ettinger).
function randomNumbers(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let bits = Math.imul(seed ^ (seed >>> 15), seed | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
}

// A random latent from U(-1, 1) or N(0, 1), without a condition.
function sampleLatent(random) {
  const uniform = () => 2 * random() - 1;
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random()); // Box and Muller
  return Array.from({ length: GENERATOR.latentSize }, GENERATOR.latent === 'normal' ? normal : uniform);
}

// The condition of a face, 1 (with) or -1 (without) for each attribute: a combination from the data, selected by `u`,
// 0 to 1, and changed to the wanted values. wanted: '1', '0', or '' (any) for each attribute. If the result does not
// occur in the data, a combination with the wanted values is selected instead, if there is one.
function conditionOf(u, wanted) {
  const { combinations } = GENERATOR;
  const pick = (list) => list[Math.floor(u * list.length)];
  const change = (combination) => [...combination].map((value, i) => wanted[i] || value).join('');
  let combination = change(pick(combinations));
  if (!combinations.includes(combination)) {
    combination = pick(combinations.filter((other) => change(other) === other)) ?? combination;
  }
  return [...combination].map((value) => (value === '1' ? 1 : -1));
}

// The point at `t`, 0 to 1, between two latents: on a great circle if latents are normal, otherwise on a straight line.
// Conditions, at the end of the latents, are interpolated linearly.
function interpolate(start, end, t) {
  const size = GENERATOR.latentSize;
  let [a, b] = [1 - t, t];
  if (GENERATOR.latent === 'normal') {
    const dot = (x, y) => x.slice(0, size).reduce((sum, value, i) => sum + value * y[i], 0);
    const angle = Math.acos(Math.max(-1, Math.min(1, dot(start, end) / Math.sqrt(dot(start, start) * dot(end, end)))));
    if (Math.sin(angle) >= 1e-6) {
      [a, b] = [Math.sin((1 - t) * angle) / Math.sin(angle), Math.sin(t * angle) / Math.sin(angle)];
    }
  }
  return start.map((value, i) => (i < size ? a * value + b * end[i] : (1 - t) * value + t * end[i]));
}

// All half-precision numbers (IEEE 754), indexed by their bits.
const HALVES = Float32Array.from({ length: 2 ** 16 }, (_, bits) => {
  const sign = bits >> 15 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = (bits & 1023) / 1024;
  return sign * (exponent ? (1 + fraction) * 2 ** (exponent - 15) : fraction * 2 ** -14);
});

// Decode base64 of little-endian half-precision numbers.
function decode(base64) {
  const bytes = atob(base64);
  const values = new Float32Array(bytes.length / 2);
  for (let i = 0; i < values.length; i++) {
    values[i] = HALVES[bytes.charCodeAt(2 * i) | (bytes.charCodeAt(2 * i + 1) << 8)];
  }
  return values;
}

// Whether there is a GPU. Browsers without one compute WebGL in software, which is slower than the CPU backend.
function hasGpu() {
  const gl = document.createElement('canvas').getContext('webgl2');
  if (!gl) return false;
  const name = gl.getExtension('WEBGL_debug_renderer_info')?.UNMASKED_RENDERER_WEBGL ?? gl.RENDERER;
  return !/SwiftShader|llvmpipe|Basic Render/.test(gl.getParameter(name));
}

async function loadLayers() {
  await tf.setBackend(hasGpu() ? 'webgl' : 'cpu');
  return GENERATOR.layers.map((layer) => ({
    ...layer,
    kernel: tf.tensor(decode(layer.kernel), layer.kernelShape),
    bias: tf.tensor(decode(layer.bias), layer.biasShape),
  }));
}

const activations = {
  leaky_relu: (x) => tf.leakyRelu(x, GENERATOR.leakySlope),
  relu: (x) => tf.relu(x),
  tanh: (x) => tf.tanh(x),
};

// Apply a layer; returns (1, height, width, channels).
function applyLayer(x, { kind, kernel, bias, output, stride, padding, activation }) {
  if (kind === 'dense') {
    x = tf.matMul(x.reshape([1, -1]), kernel).reshape([1, ...output]);
  } else if (kind === 'conv2d') {
    x = tf.conv2d(x, kernel, stride, padding);
  } else {
    const enlarged = (side) => (padding === 'same' ? side * stride : (side - 1) * stride + kernel.shape[0]);
    x = tf.conv2dTranspose(x, kernel, [1, enlarged(x.shape[1]), enlarged(x.shape[2]), output], stride, padding);
  }
  return activations[activation](x.add(bias));
}

let loading;

// Draw the face of a latent with its condition, as ImageData. Faces are drawn one at a time, so that the first appears
// early and the page stays responsive.
async function drawFace(latent) {
  loading ??= loadLayers();
  const layers = await loading;
  const image = tf.tidy(() => layers.reduce(applyLayer, tf.tensor2d([latent])));
  const values = await image.data();
  image.dispose();
  const { width, height, channels } = GENERATOR;
  const face = new ImageData(width, height);
  for (let i = 0; i < face.data.length; i++) {
    const [pixel, channel] = [Math.floor(i / 4), Math.min(i % 4, channels - 1)]; // greyscale: one value for red, green and blue
    face.data[i] = i % 4 === 3 ? 255 : (values[pixel * channels + channel] + 1) * 127.5; // alpha is 255; ImageData rounds and clips
  }
  return face;
}
