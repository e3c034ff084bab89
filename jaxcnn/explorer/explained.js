// How a number of a layer's output is made: its formula, the numbers in it, and the products that it is a sum of.

/**
 * What one map of a layer's input adds: x and weights side by side, `width` to a row; vector: it has no rows.
 * @typedef {{label: string, x: Float32Array, weights: Float32Array, width: number, vector: boolean, sum: number}} Term
 * @typedef {{formula: string, lines: string[], terms: Term[], window: {values: Float32Array, width: number, place: number} | null}} Explained
 */

const FORMULAS = {
  convolution: "y = Σ x · w + bias, over a window of every map",
  dense: "y = Σ x · w + bias, over all inputs",
  normalise: "y = (x − mean) · scale + bias",
  maxPool: "y = the largest of 2 × 2",
  globalMaxPool: "y = the largest of the whole map",
  relu: "y = max(0, x)",
  gelu: "y = x · Φ(x), Φ the normal distribution",
  same: "y = x: dropout is off when a picture is classified",
  flatten: "y = x, row by row, the maps of a pixel side by side",
};

/** Explain one number: that of a map at a row and a column. @param {Network} network @returns {Explained} */
function explained(network, outputs, name, at) {
  const layer = network.layers.find((one) => one.name === name);
  if (!layer) return {formula: "x = pixel / 255", lines: [], terms: [], window: null};
  const x = given(layer, outputs), y = valueAt(outputs[name], at), found = EXPLAIN[layer.kind](layer, x, at, network, outputs);
  const lines = [...summed(layer, outputs, at), ...found.lines, `y = ${number(y)}`, ...following(network, outputs, name, at)];
  return {formula: FORMULAS[layer.kind].replace(layer.arrays.bias ? "" : " + bias", ""), lines, terms: largestFirst(found.terms || []), window: found.window || null};
}

const largestFirst = (terms) => [...terms].sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum));

const valueAt = ({data, shape: [, width, channels]}, {map, row, column}) => data[(row * width + column) * channels + map];

/** Write a number that is added to what stands before it. */
const added = (value) => (value < 0 ? ` − ${number(-value)}` : ` + ${number(value)}`);

/** Say of what x is the sum, if it is. */
function summed(layer, outputs, at) {
  if (layer.inputs.length === 1) return [];
  return [`x = ${layer.inputs.map((name) => `${number(valueAt(outputs[name], at))} of ${name}`).join(" + ")}`];
}

/** What an elementwise layer makes of a number. */
const FOLLOWING = {
  relu: (x) => `max(0, ${x})`,
  gelu: (x) => `${x} · Φ(${x})`,
  normalise: (x) => `(${x} − mean) · scale + bias`,
  same: null, // which says nothing
};

/** Say what the layers that come next make of this number alone. */
function following(network, outputs, name, at) {
  const isLast = name === network.layers[network.layers.length - 1].name, logits = isLast ? [...outputs[name].data] : [];
  const share = () => number(100 * softmax(logits.map((value) => value * network.factor))[at.map]);
  const lines = isLast && network.factor !== 1 ? [`logit = y · ${number(network.factor)}`] : [];
  if (isLast) lines.push(`exp(logit) / Σ exp(logits) = ${share()} %${network.views.length > 1 ? ", of this view alone" : ""}`);
  for (let next; (next = network.layers.find((layer) => layer.inputs.length === 1 && layer.inputs[0] === name)); name = next.name) {
    const made = FOLLOWING[next.kind];
    if (made === undefined) break;
    const y = number(valueAt(outputs[next.name], at)), x = number(valueAt(outputs[name], at));
    if (made) lines.push(`${next.name}: ${made(x)} = ${y}`);
  }
  return lines;
}

/** The values of a map in a window; outside they are 0, as padding is. */
function windowOf({data, shape: [height, width, channels]}, map, top, left, size) {
  return Float32Array.from({length: size * size}, (_, k) => {
    const [i, j] = [top + Math.floor(k / size), left + (k % size)];
    return i < 0 || j < 0 || i >= height || j >= width ? 0 : data[(i * width + j) * channels + map];
  });
}

function term(label, x, weights, width, vector = false) {
  return {label, x, weights, width, vector, sum: x.reduce((sum, value, i) => sum + value * weights[i], 0)};
}

function total(terms, bias, map) {
  const sum = terms.reduce((all, one) => all + one.sum, 0);
  return [`Σ x · w = ${number(sum)}`, ...(bias ? [`bias = ${number(bias[map])}`] : [])];
}

/** By kind: (layer, x, at, network, outputs) -> {lines, terms, window}. */
const EXPLAIN = {
  convolution(layer, x, {map, row, column}) {
    const {kernel, bias} = layer.arrays, channels = x.shape[2], outputs = layer.shape[2], size = kernelSize(layer, channels);
    const terms = Array.from({length: channels}, (_, c) => {
      const weights = Float32Array.from({length: size * size}, (_, k) => kernel[(k * channels + c) * outputs + map]);
      const label = channels === 3 ? ["red", "green", "blue"][c] : `map ${c}`;
      return term(label, windowOf(x, c, row - layer.padding, column - layer.padding, size), weights, size);
    });
    return {lines: total(terms, bias, map), terms};
  },
  dense(layer, x, {map}, network, outputs) {
    const {kernel, bias} = layer.arrays, units = layer.shape[2];
    const flat = network.layers.find((one) => one.name === layer.inputs[0] && one.kind === "flatten");
    const [height, width, channels] = flat ? outputs[flat.inputs[0]].shape : [1, x.data.length, 1];
    const terms = Array.from({length: channels}, (_, c) => {
      const indices = Array.from({length: height * width}, (_, pixel) => pixel * channels + c);
      const values = Float32Array.from(indices, (k) => x.data[k]), weights = Float32Array.from(indices, (k) => kernel[k * units + map]);
      return flat ? term(`map ${c}`, values, weights, width) : term(layer.inputs[0], values, weights, Math.ceil(Math.sqrt(width)), true);
    });
    return {lines: total(terms, bias, map), terms};
  },
  normalise(layer, x, at) {
    const {mean, scale, bias} = layer.arrays, c = at.map;
    return {lines: [`(${number(valueAt(x, at))}${added(-mean[c])}) · ${number(scale[c])}${added(bias[c])}`]};
  },
  maxPool(layer, x, {map, row, column}, network, outputs) {
    const values = windowOf(x, map, 2 * row, 2 * column, 2), places = outputs[layer.name].places;
    const place = places[(row * layer.shape[1] + column) * layer.shape[2] + map];
    const corner = ["upper left", "upper right", "lower left", "lower right"][place];
    return {lines: [`max(${[...values].map(number).join(", ")}): the ${corner} won`], window: {values, width: 2, place}};
  },
  globalMaxPool(layer, x, {map}) {
    const values = channelOf(x, map), place = values.indexOf(Math.max(...values)), width = x.shape[1];
    const where = `row ${Math.floor(place / width)}, column ${place % width} won`;
    return {lines: [where], window: {values, width, place}};
  },
  relu: (layer, x, at) => ({lines: [`max(0, ${number(valueAt(x, at))})`]}),
  gelu: (layer, x, at) => ({lines: [`${number(valueAt(x, at))} · Φ(${number(valueAt(x, at))})`]}),
  same: () => ({lines: []}),
  flatten(layer, x, {map}) {
    const [, width, channels] = x.shape, pixel = Math.floor(map / channels);
    return {lines: [`unit ${map} is map ${map % channels} at row ${Math.floor(pixel / width)}, column ${pixel % width}`]};
  },
};
