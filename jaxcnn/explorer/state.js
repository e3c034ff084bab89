// What the page holds, what is looked at, and what a place of a number is called.

const $ = (id) => document.getElementById(id);

/** Read an array that page.py has written. */
function decoded(text, Kind) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Kind(bytes.buffer);
}

/** Read the network, the pictures and the colours off the page. */
function readData() {
  const data = JSON.parse($("data").textContent);
  for (const layer of data.layers) {
    for (const [name, text] of Object.entries(layer.arrays)) layer.arrays[name] = decoded(text, Float32Array);
  }
  for (const picture of data.pictures) picture.pixels = decoded(picture.pixels, Uint8Array);
  data.colours = {sequential: table(data.colours.sequential), diverging: table(data.colours.diverging)};
  return data;
}

const data = readData();
const names = ["input", ...data.layers.map((layer) => layer.name)];
/** @typedef {{layer: string, map: number, row: number, column: number}} Place of a number */
const state = {
  pixels: data.pictures[0].pixels,
  about: "",
  truth: /** @type {string | null} */ (null),
  outputs: /** @type {Record<string, Maps>} */ ({}),
  selected: /** @type {Place | null} */ (null), // explained beside the layers
  looked: /** @type {Place | null} */ (null), // under the pointer
  term: 0, // whose products are listed
  eachItsOwn: false,
  turn: 0, // of the pictures that were shown or asked for
};
const views = new Map(); // of each layer: its elements, and its layout once it is drawn

/** What the maps of a layer are called, if not by numbers. */
function labelsOf(name) {
  if (name === "input") return ["red", "green", "blue"];
  const isLast = name === names[names.length - 1] && state.outputs[name].shape[2] === data.classes.length;
  return isLast ? data.classes : null;
}

/** Name a place. @param {Place} at */
function titleOf({layer, map, row, column}) {
  const [height, width] = state.outputs[layer].shape, label = labelsOf(layer)?.[map];
  if (height * width === 1) return `${layer}, ${label === undefined ? `unit ${map}` : `class ${label}`}`;
  return `${layer}, ${label ?? `map ${map}`} at row ${row}, column ${column}`;
}

/** The place in the same map at a row and a column, or the nearest that it has. @param {Place} at @returns {Place} */
function moved(at, row, column) {
  const [height, width] = state.outputs[at.layer].shape, within = (value, size) => Math.min(size - 1, Math.max(0, value));
  return {...at, row: within(row, height), column: within(column, width)};
}

/** Which map of its input a number of a layer that keeps maps apart is of. */
function sameMap(layer, at) {
  return layer.kind === "flatten" ? at.map % state.outputs[layer.inputs[0]].shape[2] : at.map;
}
