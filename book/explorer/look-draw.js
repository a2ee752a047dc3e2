/**
 * What the page on the trained network is drawn with: colours, small pictures, words.
 */
"use strict";

var cbam = globalThis.cbam || {}; // var: every script of a page may begin with this line
globalThis.cbam = cbam;

{
  const PHOTOGRAPH = 0.4; // how much of the photograph's light and dark a map's picture shows

  cbam.CELL = 12; // pixels of what is drawn above a picture, for each of its places

  /** A picture with marks above it, in an element that takes keys: `stage`, `picture`, `marks`. */
  cbam.pictureStage = function (attributes) {
    const side = cbam.SIDE * cbam.CELL;
    const hidden = { "aria-hidden": "true" };
    const picture = cbam.element("canvas", { class: "look-pixels", ...hidden });
    const size = { width: side, height: side };
    const marks = cbam.element("canvas", { class: "look-marks", ...size, ...hidden });
    const stage = cbam.element("div", { tabindex: 0, ...attributes }, picture, marks);
    return { stage, picture, marks };
  };

  /** A colour such as #d55e00, or rgb(213 94 0), as three numbers. */
  function parse(colour) {
    const hex = colour.match(/^#(\w\w)(\w\w)(\w\w)$/);
    if (hex) return hex.slice(1).map((part) => parseInt(part, 16));
    return colour.match(/\d+/g).slice(0, 3).map(Number);
  }

  /**
   * A scale of colours, from the style sheet: --look-ramp holds them, evenly spaced in value, with
   * commas between them.
   *
   * @returns {function(number): number[]} the colour of a value between 0 and 1
   */
  cbam.colourScale = function (element) {
    const style = getComputedStyle(element);
    const stops = style.getPropertyValue("--look-ramp").trim().split(/,\s*(?=#)/).map(parse);
    return (value) => {
      const at = Math.min(Math.max(value, 0), 1) * (stops.length - 1);
      const below = Math.min(Math.floor(at), stops.length - 2);
      return stops[below].map((c, i) => c + (stops[below + 1][i] - c) * (at - below));
    };
  };

  /** The lowest and the highest of some numbers. */
  cbam.rangeOf = function (values) {
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    return [low, high];
  };

  function putPixels(canvas, width, height, colourAt) {
    canvas.width = width;
    canvas.height = height;
    const image = new ImageData(width, height);
    for (let i = 0; i < width * height; i++) {
      const colour = colourAt(i);
      for (let part = 0; part < 3; part++) image.data[4 * i + part] = colour[part];
      image.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  /** Draw a picture (3, 32, 32), grey where `cover` says so, as large as it is. */
  cbam.drawPicture = function (canvas, pixels, cover = null, grey = [0, 0, 0]) {
    const places = cbam.SIDE * cbam.SIDE;
    putPixels(canvas, cbam.SIDE, cbam.SIDE, (i) =>
      cover && cover[i] ? grey : [pixels[i], pixels[places + i], pixels[2 * places + i]],
    );
  };

  /** How bright each place of a picture is, less the mean: (32, 32), so that it adds no colour. */
  function relief(pixels) {
    const places = cbam.SIDE * cbam.SIDE;
    const grey = new Float32Array(places);
    for (let i = 0; i < places; i++) {
      grey[i] = 0.3 * pixels[i] + 0.59 * pixels[places + i] + 0.11 * pixels[2 * places + i];
    }
    const mean = grey.reduce((sum, value) => sum + value, 0) / places;
    return grey.map((value) => value - mean);
  }

  /**
   * Draw a map (side, side) as large as the photograph, whose light and dark show if it is given.
   *
   * @param {number[]} range the values of the scale's two ends
   */
  cbam.drawMap = function (canvas, map, [low, high], scale, pixels = null) {
    const side = Math.sqrt(map.length);
    const each = cbam.SIDE / side;
    const light = pixels && relief(pixels);
    putPixels(canvas, cbam.SIDE, cbam.SIDE, (i) => {
      const row = Math.floor(i / cbam.SIDE / each);
      const column = Math.floor((i % cbam.SIDE) / each);
      const colour = scale((map[row * side + column] - low) / (high - low || 1));
      return light ? colour.map((c) => c + PHOTOGRAPH * light[i]) : colour;
    });
  };

  /** Draw a map of channels as a row of cells, a pixel each. */
  cbam.drawStrip = function (canvas, map, [low, high], scale) {
    putPixels(canvas, map.length, 1, (i) => scale((map[i] - low) / (high - low || 1)));
  };

  /** A probability in per cent, to a tenth. */
  cbam.percent = function (p) {
    if (p > 0 && p < 0.0005) return "<0.1\u00a0%";
    if (p < 1 && p >= 0.9995) return ">99.9\u00a0%";
    return `${(100 * p).toFixed(1)}\u00a0%`;
  };

  /** A number with its sign, and a minus that looks like one. */
  cbam.signed = function (value, digits) {
    const text = Math.abs(value).toFixed(digits);
    if (Number(text) === 0) return (0).toFixed(digits);
    return (value < 0 ? "−" : "+") + text;
  };

  /**
   * Do something for each of `count` numbers, a little at a time, so that strokes and keys are
   * answered in between.
   *
   * @param {function(number)} each what to do for number i
   * @param {function(number)} progress told how many are done
   * @param {function()} done called at the end, unless stopped
   * @returns {function()} stops it
   */
  cbam.inSlices = function (count, each, progress, done) {
    const SLICE = 30; // milliseconds
    let next = 0;
    let stopped = false;
    function slice() {
      if (stopped) return;
      const start = performance.now();
      while (next < count && performance.now() - start < SLICE) each(next++);
      progress(next);
      if (next < count) setTimeout(slice);
      else done();
    }
    setTimeout(slice);
    return () => {
      stopped = true;
    };
  };

  /**
   * A button that begins a long run in slices, and stops it again, and how far the run is.
   *
   * @param {string} what what is counted, for those who do not see the bar
   * @param {function(): string} words what the button says while nothing runs
   * @param {function()} begin what it does then
   * @returns {object} `button` and `progress`; `run(count, each, done)`, as inSlices; `halt()`, and
   *   `label()`, for when the words have changed
   */
  cbam.stoppable = function (what, words, begin) {
    let stop = null;
    const click = () => (stop ? halt() : begin());
    const button = cbam.element("button", { type: "button", on: { click } });
    const progress = cbam.element("progress", { "aria-label": what });

    function label() {
      button.textContent = stop ? "Stop" : words();
      progress.hidden = !stop;
    }

    function halt() {
      if (stop) stop();
      stop = null;
      label();
    }

    function run(count, each, done) {
      progress.max = count;
      const told = (n) => (progress.value = n);
      stop = cbam.inSlices(count, each, told, () => {
        stop = null;
        done();
        label();
      });
      label();
    }

    label();
    return { button, progress, run, halt, label };
  };
}
