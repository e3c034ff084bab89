// The page: what is looked at, and how it follows the reader. All else is functions of numbers.

/** Make the elements of a layer. */
function makeLayer(name) {
  const layer = data.layers.find((one) => one.name === name), section = element("section", "", "layer");
  const heading = element("h3", `${name} `), note = element("span"), holder = element("div", "", "maps");
  const canvas = document.createElement("canvas"), over = document.createElement("canvas");
  heading.append(note);
  section.append(heading);
  $("layers").append(section);
  $("jump").append(element("option", name));
  views.set(name, {section, canvas, over, note, layout: null, shown: layer?.kind !== "same"});
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
  Object.assign(state, {pixels, about, truth, outputs: run(data, pixels), turn: state.turn + 1});
  $("status").textContent = "";
  [...$("choices").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === chosen)));
  clearTimeout(show.later);
  if (data.views.length === 1) classify();
  else show.later = setTimeout(classify, 30); // several passes, once the picture rests
  draw();
}

function showChoice(i) {
  const {pixels, truth} = data.pictures[i];
  show(pixels, titled(data.pictures[i]), truth, i);
}

/** List the likeliest classes. */
function classify() {
  const shares = probabilities(data, state.pixels, state.outputs);
  const ranked = shares.map((value, i) => [value, data.classes[i]]).sort((a, b) => b[0] - a[0]);
  const items = ranked.slice(0, 10).map(([value, name]) => {
    const item = element("li", "", name === state.truth ? "true" : ""), bar = element("div", "", "bar"), filled = element("div");
    filled.style.width = `${100 * value}%`;
    bar.append(filled);
    const label = element("span", name);
    label.title = name;
    item.append(label, bar, element("span", `${(100 * value).toFixed(1)} %`));
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
  const labels = labelsOf(name);
  view.layout = layoutOf(maps.shape, $("layers").clientWidth, Boolean(labels));
  view.scale = drawMaps(view.canvas, maps, view.layout, data.colours, state.eachItsOwn, labels);
  const size = height * width > 1 ? `${count} maps of ${height} × ${width}` : `${count.toLocaleString("en")} values`;
  const low = view.scale.signed ? -view.scale.limit : 0, high = view.scale.limit, bar = element("span", "", "scale");
  const shades = Array.from({length: 9}, (_, i) => `rgb(${view.scale.of(low + ((high - low) * i) / 8)})`);
  bar.style.background = `linear-gradient(90deg, ${shades})`;
  const range = `${number(low)} to ${number(high)}`;
  view.note.replaceChildren(`${size}, ${number(low)}`, bar, number(high));
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
  Object.assign(state, {selected: at, term: 0});
  [$("hint").hidden, $("explanation").hidden] = [true, false];
  draw();
}

function close() {
  const from = state.selected && views.get(state.selected.layer).canvas;
  Object.assign(state, {selected: null, looked: state.selected});
  [$("hint").hidden, $("explanation").hidden] = [false, true];
  from?.focus({preventScroll: true});
  draw();
}

const MOST_TERMS = 24;
const ARROWS = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};

/** Choose a map by arrow keys, and explain its middle by Enter. */
function chooseMap(name, event) {
  const {layout} = views.get(name), [height, width, count] = state.outputs[name].shape;
  const middle = {layer: name, map: 0, row: height >> 1, column: width >> 1};
  const known = [state.looked, state.selected].find((place) => place?.layer === name), at = known || middle;
  const step = ARROWS[event.key];
  if (event.key === "Enter" || event.key === " ") {
    state.looked = null;
    select(at);
    drawDetail(); // now, since what is hidden takes no focus
    if (!$("large").hidden) $("large").focus();
  } else if (step) {
    const map = at.map + step[0] * layout.columns + step[1];
    const to = {...at, map: Math.min(count - 1, Math.max(0, known ? map : at.map))};
    look(to);
    say(to, true);
    bringToView(name, to.map);
  } else return;
  event.preventDefault();
}

/** Scroll until a map is seen, below the header. */
function bringToView(name, map) {
  const {canvas, layout} = views.get(name), top = canvas.getBoundingClientRect().top + cornerOf(layout, map)[1];
  const over = Math.min(0, top - 80), under = Math.max(0, top + layout.cell[1] + 20 - innerHeight);
  scrollBy(0, over + under);
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
  $("which").textContent = "";
  if (!terms.length) return;
  const shown = terms.slice(0, MOST_TERMS), one = terms[state.term];
  drawDetail.count = shown.length;
  drawDetail.termAt = drawTerms($("terms"), shown, state.term, room, data.colours);
  $("which").textContent = `What each map of the input adds, ${whichTerms(terms, shown.length)}:`;
  $("terms").ariaLabel = `${one.label} adds ${number(one.sum)}. Arrow keys choose another.`;
  $("products").append(productTable(one));
}

/** Choose the term whose products are listed, of those that are shown. */
function chooseTerm(index) {
  state.term = Math.min(drawDetail.count - 1, Math.max(0, index));
  drawDetail();
}

/** Show a file, if it is a picture. @param {File | undefined} file */
async function open(file) {
  if (!file) return;
  const turn = (state.turn += 1); // another may be chosen while this one is read
  try {
    const pixels = await pictureOf(file);
    if (turn === state.turn) show(pixels, file.name);
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
    chooseTerm(drawDetail.termAt(event.clientX - box.left, event.clientY - box.top));
  });
  $("terms").addEventListener("keydown", (event) => {
    const step = ARROWS[event.key];
    if (!step) return;
    chooseTerm(state.term + step[0] + step[1]);
    event.preventDefault();
  });
  $("jump").addEventListener("change", () => views.get($("jump").value).section.scrollIntoView());
  $("close").addEventListener("click", close);
  document.addEventListener("keydown", (event) => event.key === "Escape" && state.selected && close());
  for (const radio of document.getElementsByName("scale")) {
    radio.addEventListener("change", () => {
      state.eachItsOwn = radio.value === "map";
      draw();
    });
  }
  $("open").addEventListener("change", () => {
    open($("open").files[0]);
    $("open").value = ""; // so that the same file can be opened again
  });
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
