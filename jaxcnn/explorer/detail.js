// Draw how a number is made: its map enlarged, the formula with numbers, and what each map of the input adds.

const LARGE = 256;

/** Make an element with text. @returns {HTMLElement} */
function element(kind, text = "", className = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  made.className = className;
  return made;
}

/** How many screen pixels a pixel of the enlarged map is wide. */
const largeZoom = ([height, width]) => Math.max(1, Math.floor(LARGE / Math.max(height, width)));

/** Draw the enlarged map, the pixel that is looked at outlined. */
function drawLarge(canvas, maps, {map, row, column}, scale) {
  const [height, width] = maps.shape, zoom = largeZoom(maps.shape), values = channelOf(maps, map);
  const pen = sized(canvas, width * zoom, height * zoom);
  paint(pen, values, width, [0, 0, width * zoom, height * zoom], scale);
  pen.strokeStyle = ink("field");
  pen.lineWidth = 2;
  pen.strokeRect(column * zoom + 1, row * zoom + 1, zoom - 2, zoom - 2);
}

/** Say how many of the terms are shown, and what the others sum to. */
function whichTerms(terms, shown) {
  const rest = terms.slice(shown).reduce((sum, one) => sum + one.sum, 0);
  return terms.length > shown ? `the ${shown} largest of ${terms.length}; the others sum to ${number(rest)}` : "the largest first";
}

/**
 * Draw each term: x, its weights, and what they sum to. Returns where they are, to be chosen by a click.
 * @param {HTMLCanvasElement} canvas @param {Term[]} terms @returns {(x: number, y: number) => number} the term's index
 */
function drawTerms(canvas, terms, chosen, room, colours) {
  const height = Math.ceil(terms[0].x.length / terms[0].width), widest = Math.max(terms[0].width, height);
  const zoom = Math.max(1, Math.floor((widest > 9 ? 48 : 30) / widest));
  const [wide, high] = [terms[0].width * zoom, height * zoom], step = [2 * wide + 96, high + LABEL + 4];
  const columns = Math.max(1, Math.min(terms.length, Math.floor(room / step[0])));
  const pen = sized(canvas, columns * step[0], Math.ceil(terms.length / columns) * step[1]);
  const inputs = scaleOf(terms.flatMap((one) => Array.from(one.x)), colours);
  const weights = scaleOf(terms.flatMap((one) => Array.from(one.weights)), colours, true);
  pen.font = "11px system-ui, sans-serif";
  terms.forEach((one, index) => {
    const [x, y] = [(index % columns) * step[0] + 2, Math.floor(index / columns) * step[1] + LABEL];
    const padded = (values) => Float32Array.from({length: height * one.width}, (_, i) => values[i] ?? 0);
    paint(pen, padded(one.x), one.width, [x, y, wide, high], inputs);
    paint(pen, padded(one.weights), one.width, [x + wide + 10, y, wide, high], weights);
    pen.lineWidth = 1;
    pen.strokeStyle = ink("line");
    for (const left of [x, x + wide + 10]) pen.strokeRect(left - 0.5, y - 0.5, wide + 1, high + 1);
    pen.fillStyle = ink("quiet");
    pen.textBaseline = "bottom";
    pen.fillText(one.label, x, y);
    pen.fillStyle = ink("text");
    pen.textBaseline = "middle";
    pen.fillText("·", x + wide + 4, y + high / 2);
    pen.fillText(`= ${number(one.sum)}`, x + 2 * wide + 13, y + high / 2);
    if (index === chosen) {
      [pen.strokeStyle, pen.lineWidth] = [ink("field"), 2];
      pen.strokeRect(x - 1.5, y - 1.5, 2 * wide + 13, high + 3);
    }
  });
  return (x, y) => {
    const index = Math.floor(y / step[1]) * columns + Math.floor(x / step[0]);
    return x < columns * step[0] && index >= 0 && index < terms.length ? index : chosen;
  };
}

/** Write the products of a term as rows, the largest first if they are many. @param {Term} one */
function productTable(one) {
  const order = [...one.x.keys()];
  const products = one.x.map((value, i) => value * one.weights[i]);
  if (order.length > 9) order.sort((a, b) => Math.abs(products[b]) - Math.abs(products[a]));
  const table = element("table"), few = order.slice(0, 9);
  table.append(element("caption", `${one.label}: ${order.length > 9 ? "its nine largest" : "its"} products`));
  const where = (i) => (one.vector ? `${i}` : `${Math.floor(i / one.width)}, ${i % one.width}`);
  const head = table.createTHead().insertRow();
  for (const name of ["at", "x", "w", "x · w"]) head.append(element("th", name));
  const body = table.createTBody();
  for (const i of few) {
    const row = body.insertRow();
    row.append(element("td", where(i)));
    for (const value of [one.x[i], one.weights[i], products[i]]) row.append(element("td", number(value)));
  }
  return table;
}

/** Draw a window of which one pixel won. */
function drawWindow(canvas, {values, width, place}, scale) {
  const zoom = Math.max(4, Math.floor(96 / width)), height = values.length / width;
  const pen = sized(canvas, width * zoom, height * zoom);
  paint(pen, values, width, [0, 0, width * zoom, height * zoom], scale);
  pen.strokeStyle = ink("field");
  pen.lineWidth = 2;
  pen.strokeRect((place % width) * zoom + 1, Math.floor(place / width) * zoom + 1, zoom - 2, zoom - 2);
}
