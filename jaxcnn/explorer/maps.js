// A layer's maps as one canvas: numbered in a grid, or a dense layer's values as a strip of squares.

const GAP = 6, LABEL = 13, NAMED = 76;

/** Make a canvas sharp on any screen. @returns {CanvasRenderingContext2D} */
function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [Math.ceil(width * ratio), Math.ceil(height * ratio)];
  [canvas.style.width, canvas.style.height] = [`${width}px`, `${height}px`];
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  return pen;
}

/** The value of a colour that page.css names. */
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/**
 * Where the maps of a layer are in a canvas so wide.
 * @typedef {{strip: boolean, zoom: number, columns: number, left: number, cell: [number, number], step: [number, number],
 *   width: number, height: number}} Layout
 * @param {[number, number, number]} shape @param {boolean} named whether values have names, not numbers @returns {Layout}
 */
function layoutOf([high, wide, count], room, named = false) {
  const strip = high === 1 && wide === 1;
  const side = strip ? (count > 2000 ? 6 : count > 40 ? 12 : 28) : count > 64 ? 44 : 64;
  const zoom = Math.max(1, Math.floor(side / wide)), left = strip && count > 40 ? 34 : 0;
  const cell = [wide * zoom, high * zoom];
  const step = strip ? [named && !left ? NAMED : cell[0], cell[1] + (count > 40 ? 0 : LABEL)] : [cell[0] + GAP, cell[1] + LABEL];
  const columns = Math.max(1, Math.min(count, Math.floor((room - left + (strip ? 0 : GAP)) / step[0])));
  return {strip, zoom, columns, left, cell, step, width: left + columns * step[0], height: Math.ceil(count / columns) * step[1] + (left ? 11 - Math.min(11, cell[1]) : 0) + 1};
}

/** The upper left corner of a map. @param {Layout} layout */
function cornerOf({columns, left, cell, step}, map) {
  return [left + (map % columns) * step[0], Math.floor(map / columns) * step[1] + step[1] - (step[1] > cell[1] ? cell[1] + 1 : cell[1])];
}

/** Which pixel of which map is there; null between maps. @param {Layout} layout */
function pixelAt(layout, count, x, y) {
  const column = Math.floor((x - layout.left) / layout.step[0]), map = Math.floor(y / layout.step[1]) * layout.columns + column;
  if (column < 0 || column >= layout.columns || map < 0 || map >= count) return null;
  const [left, top] = cornerOf(layout, map);
  const [j, i] = [Math.floor((x - left) / layout.zoom), Math.floor((y - top) / layout.zoom)];
  const inside = i >= 0 && j >= 0 && i < layout.cell[1] / layout.zoom && j < layout.cell[0] / layout.zoom;
  return inside ? {map, row: i, column: j} : null;
}

/** Draw the maps of a layer, each with its name or its number, dead ones crossed out. eachItsOwn: scale. */
function drawMaps(canvas, maps, layout, colours, eachItsOwn, labels) {
  const pen = sized(canvas, layout.width, layout.height), count = maps.shape[2], shared = scaleOf(maps.data, colours);
  pen.font = "10px system-ui, sans-serif";
  pen.textBaseline = "bottom";
  if (layout.left) return drawStrip(pen, maps, layout, shared);
  for (let map = 0; map < count; map++) {
    const values = channelOf(maps, map), [x, y] = cornerOf(layout, map), dead = !labels && isDead(values);
    const scale = eachItsOwn && !layout.strip ? scaleOf(values, colours, shared.signed) : shared;
    paint(pen, values, maps.shape[1], [x, y, ...layout.cell], scale);
    pen.fillStyle = dead ? ink("marked") : ink("quiet");
    pen.fillText(dead && layout.cell[0] > 40 ? `${map} dead` : fitted(pen, `${labels?.[map] ?? map}`, layout.step[0] - 2), x, y - 1);
    if (eachItsOwn && !layout.strip && !dead && layout.cell[0] > 40) {
      const limit = number(scale.limit);
      pen.fillText(limit, x + layout.cell[0] - pen.measureText(limit).width, y - 1);
    }
    if (dead) cross(pen, x, y, layout.cell);
  }
  return shared;
}

/** Shorten a text to fit. */
function fitted(pen, text, wide) {
  let shown = text;
  for (let end = text.length; end && pen.measureText(shown).width > wide; shown = `${text.slice(0, end)}…`) end--;
  return shown;
}

/** Draw many values as rows of squares, as one image: 8,192 would take a second. The first of a row is numbered. */
function drawStrip(pen, maps, {columns, left, cell}, scale) {
  const count = maps.shape[2], rows = Math.floor(count / columns), rest = count - rows * columns;
  if (rows) paint(pen, maps.data.subarray(0, rows * columns), columns, [left, 0, columns * cell[0], rows * cell[1]], scale);
  if (rest) paint(pen, maps.data.subarray(rows * columns), rest, [left, rows * cell[1], rest * cell[0], cell[1]], scale);
  pen.fillStyle = ink("quiet");
  for (let row = 0; row * columns < count; row += Math.ceil(11 / cell[1])) pen.fillText(`${row * columns}`, 0, row * cell[1] + 11);
  return scale;
}

function cross(pen, x, y, [wide, high]) {
  pen.strokeStyle = "#aaaaaa";
  pen.lineWidth = 1;
  pen.beginPath();
  pen.moveTo(x, y);
  pen.lineTo(x + wide, y + high);
  pen.moveTo(x, y + high);
  pen.lineTo(x + wide, y);
  pen.stroke();
}

/** Draw rectangles of pixels, over all maps or over one of them. box: null clears. */
function outline(canvas, layout, count, box, only = null) {
  const pen = sized(canvas, layout.width, layout.height);
  if (!box) return;
  pen.strokeStyle = ink("field");
  pen.lineWidth = 1.5;
  for (let map = only ?? 0; map < (only === null ? count : only + 1); map++) {
    const [x, y] = cornerOf(layout, map), {zoom} = layout;
    pen.strokeRect(x + box.left * zoom, y + box.top * zoom, (box.right - box.left + 1) * zoom, (box.bottom - box.top + 1) * zoom);
  }
}

/**
 * The pixels of every earlier layer that a pixel of a layer's output depends on.
 * @typedef {{top: number, bottom: number, left: number, right: number}} Box
 * @param {Network} network @param {Record<string, Maps>} outputs @returns {Record<string, Box>}
 */
function fieldOf(network, outputs, name, {map, row, column}) {
  /** @type {Record<string, Box>} */
  const boxes = {[name]: {top: row, bottom: row, left: column, right: column}};
  for (const layer of [...network.layers].reverse()) {
    const box = boxes[layer.name];
    if (!box) continue;
    const [height, width, channels] = outputs[layer.inputs[0]].shape;
    const seen = before(layer, box, layer.name === name ? map : null, width, channels);
    for (const input of layer.inputs) {
      const old = boxes[input] || seen;
      boxes[input] = {
        top: Math.max(0, Math.min(old.top, seen.top)),
        bottom: Math.min(height - 1, Math.max(old.bottom, seen.bottom)),
        left: Math.max(0, Math.min(old.left, seen.left)),
        right: Math.min(width - 1, Math.max(old.right, seen.right)),
      };
    }
  }
  return boxes;
}

/** Which pixels of what a layer is given a box of its output depends on. unit: the one of a flattened layer, if it is one. */
function before(layer, {top, bottom, left, right}, unit, width, channels) {
  const all = {top: 0, bottom: Infinity, left: 0, right: Infinity};
  switch (layer.kind) {
    case "convolution": {
      const reach = kernelSize(layer, channels) - 1 - layer.padding;
      return {top: top - layer.padding, bottom: bottom + reach, left: left - layer.padding, right: right + reach};
    }
    case "maxPool":
      return {top: 2 * top, bottom: 2 * bottom + 1, left: 2 * left, right: 2 * right + 1};
    case "flatten": {
      if (unit === null) return all;
      const pixel = Math.floor(unit / channels), [row, column] = [Math.floor(pixel / width), pixel % width];
      return {top: row, bottom: row, left: column, right: column};
    }
    case "dense":
    case "globalMaxPool":
      return all;
    default:
      return {top, bottom, left, right};
  }
}
