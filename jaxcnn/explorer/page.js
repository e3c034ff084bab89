// The page: what is looked at, and how it follows the reader. All else is functions of numbers.

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
  term: -1, // whose products are listed; -1: the largest
  eachItsOwn: false,
};
const views = new Map(); // of each layer: its elements, and its layout once it is drawn

/** Make the elements of a layer. */
function makeLayer(name) {
  const layer = data.layers.find((one) => one.name === name), section = element("section", "", "layer");
  const heading = element("h3", `${name} `), note = element("span"), holder = element("div", "", "maps");
  const canvas = document.createElement("canvas"), over = document.createElement("canvas");
  heading.append(note);
  section.append(heading);
  $("layers").append(section);
  views.set(name, {canvas, over, note, layout: null, shown: layer?.kind !== "same"});
  if (layer?.kind === "same") {
    note.textContent = `off when a picture is classified: ${layer.inputs[0]} goes through as it is`;
    return;
  }
  over.className = "over";
  [canvas.tabIndex, over.ariaHidden] = [0, "true"];
  canvas.setAttribute("role", "img");
  holder.append(canvas, over);
  section.append(holder);
  canvas.addEventListener("pointermove", (event) => look(placeAt(name, event)));
  canvas.addEventListener("pointerleave", () => look(null));
  canvas.addEventListener("click", (event) => select(placeAt(name, event)));
  canvas.addEventListener("keydown", (event) => chooseMap(name, event));
}

/** @returns {Place | null} */
function placeAt(name, event) {
  const {canvas, layout} = views.get(name), box = canvas.getBoundingClientRect();
  const at = pixelAt(layout, state.outputs[name].shape[2], event.clientX - box.left, event.clientY - box.top);
  return at && {layer: name, ...at};
}

/** Show another picture: all numbers follow. truth: its class, if that is known. chosen: which of those on offer it is. */
function show(pixels, about, truth = null, chosen = -1) {
  Object.assign(state, {pixels, about, truth, outputs: run(data, pixels)});
  [...$("choices").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === chosen)));
  clearTimeout(show.later);
  if (data.views.length === 1) classify();
  else show.later = setTimeout(classify, 30); // several passes, once the picture rests
  draw();
}

function showChoice(i) {
  const {pixels, name, truth} = data.pictures[i];
  show(pixels, truth ? `${name}: ${truth}` : name, truth, i);
}

/** List the likeliest classes. */
function classify() {
  const shares = probabilities(data, state.pixels, state.outputs);
  const ranked = shares.map((value, i) => [value, data.classes[i]]).sort((a, b) => b[0] - a[0]);
  const items = ranked.slice(0, 10).map(([value, name]) => {
    const item = element("li", "", name === state.truth ? "true" : ""), bar = element("div", "", "bar"), filled = element("div");
    filled.style.width = `${100 * value}%`;
    bar.append(filled);
    item.append(element("span", name), bar, element("span", `${(100 * value).toFixed(1)} %`));
    return item;
  });
  $("classes").replaceChildren(...items);
}

/** Draw everything, once a frame at most. */
function draw() {
  cancelAnimationFrame(draw.frame);
  draw.frame = requestAnimationFrame(() => {
    $("about").textContent = state.about;
    for (const name of names) if (views.get(name).shown) drawLayer(name);
    drawDetail();
    drawFields();
  });
}

function drawLayer(name) {
  const view = views.get(name), maps = state.outputs[name], [height, width, count] = maps.shape;
  view.layout = layoutOf(maps.shape, $("layers").clientWidth);
  view.scale = drawMaps(view.canvas, maps, view.layout, data.colours, state.eachItsOwn);
  const size = height * width > 1 ? `${count} maps of ${height} × ${width}` : `${count.toLocaleString("en")} values`;
  const range = `${view.scale.signed ? "±" : "0 to "}${number(view.scale.limit)}`;
  view.note.textContent = `${size}, ${range}`;
  view.canvas.ariaLabel = `${name}: ${size}, ${range}. Arrow keys choose one, Enter explains it.`;
}

/** Outline what the number under the pointer, or else the one that is explained, depends on. */
function drawFields() {
  const at = state.looked || state.selected, boxes = at ? fieldOf(data, state.outputs, at.layer, at) : {};
  const layer = data.layers.find((one) => one.name === at?.layer);
  for (const name of names) {
    const {over, layout, shown} = views.get(name);
    const only = at?.layer === name ? at.map : null;
    const ownMap = layer && !["convolution", "dense"].includes(layer.kind) && layer.inputs.includes(name) ? sameMap(layer, at) : null;
    const box = layout?.strip && only === null && ownMap === null ? null : boxes[name]; // of a strip all, or one
    if (shown) outline(over, layout, state.outputs[name].shape[2], box, only ?? ownMap);
  }
  drawSeen(boxes.input);
}

/** Which map of its input a number of a layer that keeps maps apart is of. */
function sameMap(layer, at) {
  return layer.kind === "flatten" ? at.map % state.outputs[layer.inputs[0]].shape[2] : at.map;
}

/** Draw the picture, and what of it is depended on. @param {Box | undefined} box */
function drawSeen(box) {
  const side = Math.min(200, $("picture").clientWidth), zoom = side / SIDE, pen = sized($("seen"), side, side);
  paint(pen, state.outputs.input.data, SIDE, [0, 0, side, side], null);
  if (!box) return;
  pen.strokeStyle = ink("field");
  pen.lineWidth = 2;
  pen.strokeRect(box.left * zoom, box.top * zoom, (box.right - box.left + 1) * zoom, (box.bottom - box.top + 1) * zoom);
}

/** Say in words what is at a place. @param {Place | null} at */
function say(at, aloud) {
  $("status").ariaLive = aloud ? "polite" : "off";
  $("status").textContent = at ? `${titleOf(at)}: ${number(valueAt(state.outputs[at.layer], at))}` : "";
}

function titleOf({layer, map, row, column}) {
  const [height, width, count] = state.outputs[layer].shape, isLast = layer === names[names.length - 1];
  if (height * width === 1) return `${layer}, ${isLast && count === data.classes.length ? data.classes[map] : `unit ${map}`}`;
  return `${layer}, map ${map} at row ${row}, column ${column}`;
}

/** Follow the pointer. Over the map that is explained, the explanation follows too. @param {Place | null} at */
function look(at) {
  const {selected} = state, same = at && selected && at.layer === selected.layer && at.map === selected.map;
  Object.assign(state, {looked: at, selected: same ? at : selected});
  say(at, false);
  drawFields();
  if (same) drawDetail();
}

/** Explain a number. @param {Place | null} at */
function select(at) {
  if (!at) return;
  Object.assign(state, {selected: at, term: -1});
  [$("hint").hidden, $("explanation").hidden] = [true, false];
  draw();
}

function close() {
  const from = state.selected && views.get(state.selected.layer).canvas;
  Object.assign(state, {selected: null, looked: null});
  [$("hint").hidden, $("explanation").hidden] = [false, true];
  from?.focus({preventScroll: true});
  draw();
}

const ARROWS = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};

/** Choose a map by arrow keys, and explain its middle by Enter. */
function chooseMap(name, event) {
  const {layout} = views.get(name), [height, width, count] = state.outputs[name].shape;
  const middle = {layer: name, map: 0, row: height >> 1, column: width >> 1};
  const at = state.looked?.layer === name ? state.looked : middle, step = ARROWS[event.key];
  if (event.key === "Enter" || event.key === " ") {
    select(at);
    state.looked = null;
    $("large").focus();
  } else if (step) {
    const map = at.map + step[0] * layout.columns + step[1];
    const to = {...at, map: Math.min(count - 1, Math.max(0, state.looked?.layer === name ? map : at.map))};
    look(to);
    say(to, true);
  } else return;
  event.preventDefault();
}

/** The place in the same map at a row and a column, or the nearest that it has. @param {Place} at @returns {Place} */
function moved(at, row, column) {
  const [height, width] = state.outputs[at.layer].shape, within = (value, size) => Math.min(size - 1, Math.max(0, value));
  return {...at, row: within(row, height), column: within(column, width)};
}

/** Move the pixel that is explained. */
function movePixel(event) {
  const step = ARROWS[event.key], {selected} = state;
  if (!step || !selected) return;
  state.selected = moved(selected, selected.row + step[0], selected.column + step[1]);
  say(state.selected, true);
  drawFields();
  drawDetail();
  event.preventDefault();
}

/** Write and draw how the selected number is made. */
function drawDetail() {
  const at = state.selected;
  if (!at) return;
  const maps = state.outputs[at.layer], {scale} = views.get(at.layer), room = $("detail").clientWidth - 30;
  const {formula, lines, terms, window: pooled} = explained(data, state.outputs, at.layer, at);
  $("what").textContent = titleOf(at);
  $("formula").textContent = formula;
  $("lines").replaceChildren(...lines.map((line) => element("p", line)));
  $("large").hidden = maps.shape[0] * maps.shape[1] === 1;
  $("large").ariaLabel = `${titleOf(at)}: ${lines.join("; ")}. Arrow keys move the pixel.`;
  if (!$("large").hidden) drawLarge($("large"), maps, at, scale);
  $("window").hidden = !pooled;
  if (pooled) drawWindow($("window"), pooled, scale);
  $("terms").hidden = !terms.length;
  $("products").replaceChildren();
  if (!terms.length) return;
  const sums = terms.map((one) => Math.abs(one.sum)), chosen = state.term < 0 ? sums.indexOf(Math.max(...sums)) : state.term;
  drawDetail.termAt = drawTerms($("terms"), terms, chosen, room, data.colours);
  $("products").append(productTable(terms[chosen]));
}

/** Show a file, if it is a picture. @param {File | undefined} file */
async function open(file) {
  if (!file) return;
  try {
    show(await pictureOf(file), file.name);
  } catch {
    $("status").textContent = `${file.name || "this"} is not a picture that the browser can read`;
  }
}

function listen() {
  $("large").addEventListener("keydown", movePixel);
  $("large").addEventListener("pointermove", (event) => {
    const {selected} = state, zoom = largeZoom(state.outputs[selected.layer].shape), box = $("large").getBoundingClientRect();
    look(moved(selected, Math.floor((event.clientY - box.top) / zoom), Math.floor((event.clientX - box.left) / zoom)));
  });
  $("large").addEventListener("pointerleave", () => look(null));
  $("terms").addEventListener("click", (event) => {
    const box = $("terms").getBoundingClientRect();
    state.term = drawDetail.termAt(event.clientX - box.left, event.clientY - box.top);
    drawDetail();
  });
  $("close").addEventListener("click", close);
  document.addEventListener("keydown", (event) => event.key === "Escape" && state.selected && close());
  for (const radio of document.getElementsByName("scale")) {
    radio.addEventListener("change", () => {
      state.eachItsOwn = radio.value === "map";
      draw();
    });
  }
  $("open").addEventListener("change", () => open($("open").files[0]));
  document.addEventListener("paste", (event) => open(event.clipboardData.files[0]));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    open(event.dataTransfer.files[0]);
  });
  window.addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

if (data.views.length > 1) $("seen-as").textContent = `the mean of ${data.views.length} views of it: moved, mirrored`;
names.forEach(makeLayer);
data.pictures.forEach((picture, i) => $("choices").append(choiceOf(picture, () => showChoice(i))));
if (data.drawing) {
  prepareBoard($("board"), $("wipe"), show);
  $("drawing").hidden = false;
}
listen();
showChoice(0);
