// What each layer computes, in float32 as JAX does. Nothing given is changed; every function returns new arrays.

/**
 * A picture or the output of a layer, row by row and the channels of a pixel side by side; of a dense layer height and
 * width are 1. places: which of the four pixels of a window was the largest, row by row, if they were pooled.
 * @typedef {{data: Float32Array, shape: [number, number, number], places?: Uint8Array}} Maps
 *
 * A layer as graph.py describes it.
 * @typedef {{name: string, kind: string, inputs: string[], shape: [number, number, number], padding: number,
 *   arrays: {kernel?: Float32Array, bias?: Float32Array, mean?: Float32Array, scale?: Float32Array}}} Layer
 *
 * @typedef {{layers: Layer[], factor: number, views: View[], classes: string[]}} Network
 * @typedef {{weight: number, down: number, right: number, mirrored: boolean}} View
 */

/** @returns {Maps} */
function zeros(height, width, channels) {
  return {data: new Float32Array(height * width * channels), shape: [height, width, channels]};
}

/** Apply a function of number and channel to every number. @param {Maps} x @returns {Maps} */
function each(x, of) {
  const channels = x.shape[2], y = zeros(...x.shape);
  for (let i = 0; i < x.data.length; i++) y.data[i] = of(x.data[i], i % channels);
  return y;
}

/** Add two maps. @param {Maps} x @param {Maps} other @returns {Maps} */
function sum(x, other) {
  return {data: x.data.map((value, i) => value + other.data[i]), shape: x.shape};
}

/** How many pixels a kernel is high and wide. @param {Layer} layer @param {number} channels that it is given */
function kernelSize(layer, channels) {
  return Math.round(Math.sqrt(layer.arrays.kernel.length / (channels * layer.shape[2])));
}

/** y[i, j, o] = bias[o] + sum over a, b, c of x[i + a - padding, j + b - padding, c] kernel[a, b, c, o]. */
function convolution(x, layer) {
  const {kernel, bias} = layer.arrays, pad = layer.padding;
  const [height, width, channels] = x.shape, size = kernelSize(layer, channels);
  const y = zeros(...layer.shape), outputs = layer.shape[2];
  for (let i = 0; i < y.shape[0]; i++) {
    for (let j = 0; j < y.shape[1]; j++) {
      const to = (i * y.shape[1] + j) * outputs, sums = y.data.subarray(to, to + outputs);
      if (bias) sums.set(bias);
      for (let a = Math.max(0, pad - i); a < Math.min(size, height + pad - i); a++) {
        for (let b = Math.max(0, pad - j); b < Math.min(size, width + pad - j); b++) {
          const from = ((i + a - pad) * width + (j + b - pad)) * channels;
          for (let c = 0; c < channels; c++) {
            const value = x.data[from + c];
            if (value === 0) continue; // after ReLU half of them are
            const row = ((a * size + b) * channels + c) * outputs;
            for (let o = 0; o < outputs; o++) sums[o] += value * kernel[row + o];
          }
        }
      }
    }
  }
  return y;
}

/** y[o] = bias[o] + sum over k of x[k] kernel[k, o]. */
function dense(x, layer) {
  const {kernel, bias} = layer.arrays, outputs = layer.shape[2], sums = new Float64Array(outputs);
  if (bias) sums.set(bias);
  for (let k = 0; k < x.data.length; k++) {
    const value = x.data[k];
    if (value === 0) continue;
    for (let o = 0, row = k * outputs; o < outputs; o++) sums[o] += value * kernel[row + o];
  }
  return {data: Float32Array.from(sums), shape: layer.shape};
}

/** y = (x - mean) scale + bias, channel by channel. */
function normalise(x, layer) {
  const {mean, scale, bias} = layer.arrays;
  return each(x, (value, c) => (value - mean[c]) * scale[c] + bias[c]);
}

/** The maximum of each window of 2 x 2, the first if several are equal; an odd last row or column is left out. */
function maxPool(x) {
  const [height, width, channels] = x.shape, y = zeros(height >> 1, width >> 1, channels);
  const places = new Uint8Array(y.data.length);
  for (let i = 0, at = 0; i < y.shape[0]; i++) {
    for (let j = 0; j < y.shape[1]; j++) {
      for (let c = 0; c < channels; c++, at++) {
        let best = -Infinity;
        for (let place = 0; place < 4; place++) {
          const value = x.data[((2 * i + (place >> 1)) * width + 2 * j + (place & 1)) * channels + c];
          if (value > best) {
            best = value;
            places[at] = place;
          }
        }
        y.data[at] = best;
      }
    }
  }
  return {...y, places};
}

/** The maximum of each channel. */
function globalMaxPool(x) {
  const channels = x.shape[2], y = zeros(1, 1, channels);
  y.data.set(x.data.subarray(0, channels));
  for (let i = 0; i < x.data.length; i++) y.data[i % channels] = Math.max(y.data[i % channels], x.data[i]);
  return y;
}

/** The error function, to 1.2e-7 (Press et al., Numerical Recipes, erfc by Chebyshev's polynomial). */
function erf(x) {
  const t = 1 / (1 + 0.5 * Math.abs(x));
  const terms = [
    -1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587, -0.82215223,
    0.17087277,
  ];
  const rest = t * Math.exp(-x * x + terms.reduceRight((sum, term) => sum * t + term, 0));
  return x >= 0 ? 1 - rest : rest - 1;
}

const reluOf = (value) => Math.max(value, 0);
const geluOf = (value) => value * (0.5 + 0.5 * erf(value / Math.SQRT2));

/** Every kind of layer that graph.py names: (maps, layer) -> maps. @type {Record<string, (x: Maps, layer: Layer) => Maps>} */
const KINDS = {
  convolution,
  dense,
  normalise,
  maxPool,
  globalMaxPool,
  relu: (x) => each(x, reluOf),
  gelu: (x) => each(x, geluOf),
  same: (x) => x, // dropout, which is off
  flatten: (x) => ({data: x.data, shape: [1, 1, x.data.length]}),
};

/** Scale pixels 0..255 to 0..1. @param {Uint8Array} pixels of a square, red, green and blue @returns {Maps} */
function scaled(pixels) {
  const side = Math.sqrt(pixels.length / 3);
  return {data: Float32Array.from(pixels, (value) => value / 255), shape: [side, side, 3]};
}

/** What a layer is given: the output of another, or the sum of two. @returns {Maps} */
function given(layer, outputs) {
  return layer.inputs.map((name) => outputs[name]).reduce(sum);
}

/** Compute the output of every layer by its name. @param {Network} network @param {Uint8Array} pixels */
function run(network, pixels) {
  /** @type {Record<string, Maps>} */
  const outputs = {input: scaled(pixels)};
  for (const layer of network.layers) outputs[layer.name] = KINDS[layer.kind](given(layer, outputs), layer);
  return outputs;
}

/** The probabilities of logits. @param {number[]} logits */
function softmax(logits) {
  const largest = Math.max(...logits), powers = logits.map((value) => Math.exp(value - largest));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

/** The probabilities of the classes: of the mean over the views of a picture that the network has. outputs: run's. */
function probabilities(network, pixels, outputs) {
  const last = network.layers[network.layers.length - 1].name, logits = new Array(network.classes.length).fill(0);
  for (const view of network.views) {
    const seen = viewed(pixels, view), output = seen === pixels ? outputs : run(network, seen);
    output[last].data.forEach((value, i) => (logits[i] += view.weight * network.factor * value));
  }
  return softmax(logits);
}
