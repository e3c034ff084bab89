// Colours of numbers, as in the figures of map_figures.py: from zero, or blue, white and red around it.

/** Colours as [red, green, blue] of 256 steps. @param {string[]} hex */
const table = (hex) => hex.map((text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16)));

/**
 * A scale of colours: of what values, and which colour each has.
 * @typedef {{limit: number, signed: boolean, of: (value: number) => number[]}} Scale
 */

/** Make the scale of values: their largest magnitude is its limit, and it is signed if any is negative. @returns {Scale} */
function scaleOf(values, colours, signed = false) {
  let limit = 0;
  for (const value of values) {
    limit = Math.max(limit, Math.abs(value));
    signed = signed || value < 0;
  }
  limit = limit || 1;
  const steps = signed ? colours.diverging : colours.sequential;
  const of = (value) => {
    const share = signed ? (value / limit + 1) / 2 : value / limit;
    return steps[Math.min(255, Math.max(0, Math.floor(share * 256)))];
  };
  return {limit, signed, of};
}

/** The values of one map, in rows. @param {Maps} maps @param {number} channel */
function channelOf({data, shape: [height, width, channels]}, channel) {
  return Float32Array.from({length: height * width}, (_, i) => data[i * channels + channel]);
}

/** A map that is zero throughout is dead. @param {Float32Array} values */
const isDead = (values) => values.length > 1 && values.every((value) => value === 0);

/** Paint values, `width` to a row, as squares into a canvas. A picture's are red, green and blue, 0 to 1. */
function paint(pen, values, width, [x, y, wide, high], scale) {
  const each = scale ? 1 : 3, height = values.length / each / width;
  const small = paint.canvas, image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const colour = scale ? scale.of(values[i]) : [0, 1, 2].map((c) => 255 * values[3 * i + c]);
    [image.data[4 * i], image.data[4 * i + 1], image.data[4 * i + 2], image.data[4 * i + 3]] = [...colour, 255];
  }
  [small.width, small.height] = [width, height];
  small.getContext("2d").putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, x, y, wide, high);
}
paint.canvas = typeof document === "undefined" ? null : document.createElement("canvas");

/** Write a number with three digits that count, and a real minus. */
function number(value) {
  const text = value === 0 ? "0" : Math.abs(value) >= 1e4 || Math.abs(value) < 1e-3 ? value.toExponential(2) : value.toPrecision(3);
  return text.replace(/-/g, "−");
}
