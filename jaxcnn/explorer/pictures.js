// Pictures of any size as 32 x 32 pixels, by the same steps as jaxcnn/pictures.py, and drawings as digits.

const SIDE = 32;

/** Move and mirror a picture, its border reflected, as augment.viewed does. @param {Uint8Array} pixels @param {View} view */
function viewed(pixels, {down, right, mirrored}) {
  if (!down && !right && !mirrored) return pixels;
  const reflected = (at) => (at < 0 ? -at : at >= SIDE ? 2 * SIDE - 2 - at : at);
  const seen = new Uint8Array(pixels.length);
  for (let i = 0; i < SIDE; i++) {
    for (let j = 0; j < SIDE; j++) {
      const row = reflected(i - down), column = reflected((mirrored ? SIDE - 1 - j : j) - right);
      for (let c = 0; c < 3; c++) seen[(i * SIDE + j) * 3 + c] = pixels[(row * SIDE + column) * 3 + c];
    }
  }
  return seen;
}

/** Lanczos' window of three lobes. */
function lanczos(x) {
  if (x === 0) return 1;
  const angle = Math.PI * x;
  return Math.abs(x) < 3 ? (3 * Math.sin(angle) * Math.sin(angle / 3)) / (angle * angle) : 0;
}

/** Which inputs make each of the outputs along one axis, with what weights; as Pillow's resize of a box. */
function shares(inputs, start, extent, outputs) {
  const scale = extent / outputs, wide = Math.max(scale, 1);
  return Array.from({length: outputs}, (_, i) => {
    const centre = start + (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - 3 * wide + 0.5));
    const last = Math.min(inputs, Math.floor(centre + 3 * wide + 0.5));
    const weights = Array.from({length: last - first}, (_, k) => lanczos((first + k - centre + 0.5) / wide));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return {first, weights: weights.map((weight) => weight / total)};
  });
}

/**
 * Resize along one axis. Pillow rounds after each axis, so we do, and clips.
 * @param {{data: Uint8ClampedArray | Uint8Array, width: number, height: number, channels: number}} picture
 */
function resizedAlong({data, width, height, channels}, parts, across) {
  const [wide, high] = across ? [parts.length, height] : [width, parts.length];
  const made = new Uint8ClampedArray(wide * high * 3), step = channels * (across ? 1 : width);
  for (let i = 0; i < high; i++) {
    for (let j = 0; j < wide; j++) {
      const {first, weights} = parts[across ? j : i], from = channels * (across ? i * width + first : first * width + j);
      for (let c = 0; c < 3; c++) {
        let total = 0;
        for (let k = 0, at = from + c; k < weights.length; k++, at += step) total += weights[k] * data[at];
        made[(i * wide + j) * 3 + c] = total;
      }
    }
  }
  return {data: made, width: wide, height: high, channels: 3};
}

/**
 * Resize the square in the middle of a picture to 32 x 32. The shorter axis is first, as Pillow does: it is less work.
 * @param {{data: Uint8ClampedArray | Uint8Array, width: number, height: number}} picture red, green, blue, alpha
 * @returns {Uint8Array} red, green, blue
 */
function squared({data, width, height}) {
  const extent = Math.min(width, height);
  const columns = shares(width, (width - extent) / 2, extent, SIDE), rows = shares(height, (height - extent) / 2, extent, SIDE);
  const order = height > width ? [[rows, false], [columns, true]] : [[columns, true], [rows, false]];
  const made = order.reduce((picture, [parts, across]) => resizedAlong(picture, parts, across), {data, width, height, channels: 4});
  return new Uint8Array(made.data);
}

/** Read a picture file; what is transparent becomes white. @param {Blob} file @returns {Promise<Uint8Array>} */
async function pictureOf(file) {
  const bitmap = await createImageBitmap(file, {colorSpaceConversion: "none"}); // nor does pictures.py
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, bitmap.width, bitmap.height);
  pen.drawImage(bitmap, 0, 0);
  return squared(pen.getImageData(0, 0, bitmap.width, bitmap.height));
}

/**
 * Make a drawing a digit as scikit-learn's are: 8 x 8 means in 17 steps of grey, enlarged linearly.
 * @param {{data: Uint8ClampedArray, width: number}} drawing a square, white on black, its side a multiple of 8
 */
function digitOf({data, width}) {
  const block = width / 8, coarse = new Float64Array(64);
  for (let at = 0; at < width * width; at++) {
    coarse[Math.floor(at / width / block) * 8 + Math.floor((at % width) / block)] += data[at * 4] / (block * block);
  }
  const grey = coarse.map((mean) => Math.round((Math.round((mean / 255) * 16) * 255) / 16));
  const clamp = (at) => Math.min(7, Math.max(0, at));
  const pixels = new Uint8Array(SIDE * SIDE * 3);
  for (let i = 0; i < SIDE; i++) {
    for (let j = 0; j < SIDE; j++) {
      const [y, x] = [(i + 0.5) / 4 - 0.5, (j + 0.5) / 4 - 0.5], [top, left] = [Math.floor(y), Math.floor(x)];
      const row = (at) => {
        const [a, b] = [grey[clamp(at) * 8 + clamp(left)], grey[clamp(at) * 8 + clamp(left + 1)]];
        return a + (b - a) * (x - left);
      };
      pixels.fill(Math.round(row(top) + (row(top + 1) - row(top)) * (y - top)), (i * SIDE + j) * 3, (i * SIDE + j + 1) * 3);
    }
  }
  return pixels;
}
