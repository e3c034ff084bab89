// What the reader shows the network: one of the pictures on offer, or a drawing.

/** The name of a picture, and its class if that is known. */
const titled = ({name, truth}) => (truth ? `${name}: ${truth}` : name);

/** Make the button of a picture. */
function choiceOf(picture, choose) {
  const button = element("button"), canvas = document.createElement("canvas");
  Object.assign(button, {type: "button", title: titled(picture), ariaLabel: titled(picture)});
  paint(sized(canvas, 40, 40), scaled(picture.pixels).data, SIDE, [0, 0, 40, 40], null);
  button.append(canvas);
  button.addEventListener("click", choose);
  return button;
}

/** Let the reader draw a digit on a board, and show it after each stroke. @param {HTMLCanvasElement} board */
function prepareBoard(board, wipe, show) {
  const side = 256, pen = board.getContext("2d", {willReadFrequently: true});
  [board.width, board.height] = [side, side];
  Object.assign(pen, {lineWidth: 44, lineCap: "round", lineJoin: "round", strokeStyle: "white", fillStyle: "black"});
  const clear = () => pen.fillRect(0, 0, side, side);
  const showBoard = (about) => show(digitOf(pen.getImageData(0, 0, side, side)), about);
  const at = (event) => {
    const box = board.getBoundingClientRect();
    return [((event.clientX - box.left) * side) / box.width, ((event.clientY - box.top) * side) / box.height];
  };
  let last = /** @type {number[] | null} */ (null);
  const stroke = (event) => {
    if (!last) return;
    const next = at(event);
    pen.beginPath();
    pen.moveTo(...last);
    pen.lineTo(...next);
    pen.stroke();
    last = next;
    showBoard("your drawing");
  };
  clear();
  board.addEventListener("pointerdown", (event) => {
    board.setPointerCapture(event.pointerId);
    last = at(event);
    stroke(event);
  });
  board.addEventListener("pointermove", stroke);
  for (const end of ["pointerup", "pointercancel"]) board.addEventListener(end, () => (last = null));
  wipe.addEventListener("click", () => {
    clear();
    showBoard("an empty board");
  });
}
