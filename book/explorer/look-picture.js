/**
 * The reader's own picture: opened, and made as small as the network's photographs. Nothing is
 * sent anywhere; there is no code here that could.
 */
"use strict";

var cbam = globalThis.cbam || {}; // var: every script of a page may begin with this line
globalThis.cbam = cbam;

{
  const MEGA = 1e6;
  const MOST_BYTES = 50 * MEGA;
  const MOST_PIXELS = 100 * MEGA; // more, and a phone runs out of memory
  const CANVAS_PIXELS = 16 * MEGA; // what every browser gives a canvas,
  const CANVAS_SIDE = 8192; // and how wide
  const LOBES = 3;
  const ONE = 2 ** 22; // weights are whole numbers of this, as in Pillow: halves are rounded alike

  function lanczos(x) {
    if (x === 0) return 1;
    if (Math.abs(x) >= LOBES) return 0;
    const angle = Math.PI * x;
    return (LOBES * Math.sin(angle) * Math.sin(angle / LOBES)) / (angle * angle);
  }

  /** For each of `size` pixels between `start` and `start + extent`: what it is made of. */
  function mixtures(length, start, extent, size) {
    const scale = extent / size;
    const wide = Math.max(scale, 1); // where a picture shrinks, the filter grows: no aliasing
    return Array.from({ length: size }, (_, i) => {
      const centre = start + (i + 0.5) * scale;
      const first = Math.max(0, Math.floor(centre - LOBES * wide + 0.5));
      const end = Math.min(length, Math.floor(centre + LOBES * wide + 0.5));
      const raw = Array.from({ length: end - first }, (_, j) =>
        lanczos((first + j - centre + 0.5) / wide),
      );
      const sum = raw.reduce((total, weight) => total + weight, 0);
      const whole = (weight) => Math.round((weight / sum) * ONE);
      return { first, weights: Float64Array.from(raw, whole) };
    });
  }

  const rounded = (sum) => Math.floor(sum / ONE + 0.5); // the array's own way is to even numbers

  /**
   * A square of a picture as a small one, by the filter that cbam_edu.data.read_image has:
   * Lanczos with three lobes, along the rows, then along the columns, rounded after each.
   *
   * @param {object} picture `data` (height, width, 4) bytes, `width` and `height`
   * @param {object} square `left`, `top` and `side`, in pixels, not always whole
   * @param {number} size side of the result
   * @returns {Uint8Array} (3, size, size)
   */
  cbam.resample = function ({ data, width, height }, { left, top, side }, size = cbam.SIDE) {
    const columns = mixtures(width, left, side, size);
    const rows = mixtures(height, top, side, size);
    const above = rows[0].first;
    const last = rows[size - 1];
    const below = last.first + last.weights.length;
    const narrow = new Uint8ClampedArray((below - above) * size * 3);
    for (let row = above; row < below; row++) {
      for (let i = 0; i < size; i++) {
        const { first, weights } = columns[i];
        let [red, green, blue] = [0, 0, 0];
        for (let j = 0, at = (row * width + first) * 4; j < weights.length; j++, at += 4) {
          red += weights[j] * data[at];
          green += weights[j] * data[at + 1];
          blue += weights[j] * data[at + 2];
        }
        narrow.set([red, green, blue].map(rounded), ((row - above) * size + i) * 3);
      }
    }
    const small = new Uint8ClampedArray(3 * size * size);
    rows.forEach(({ first, weights }, row) => {
      for (let i = 0; i < size; i++) {
        for (let colour = 0; colour < 3; colour++) {
          let sum = 0;
          for (let j = 0; j < weights.length; j++) {
            sum += weights[j] * narrow[((first - above + j) * size + i) * 3 + colour];
          }
          small[(colour * size + row) * size + i] = rounded(sum);
        }
      }
    });
    return new Uint8Array(small.buffer);
  };

  /** The largest square in a picture's middle; `zoom` from 1 up, and where, -1 to 1 each. */
  cbam.squareOf = function ({ width, height }, { zoom = 1, across = 0, down = 0 } = {}) {
    const side = Math.max(1, Math.min(width, height) / zoom);
    const left = ((width - side) * (1 + across)) / 2;
    const top = ((height - side) * (1 + down)) / 2;
    return { left, top, side };
  };

  const million = (n) => (n / MEGA).toFixed(n < 10 * MEGA ? 1 : 0);

  function loaded(url) {
    return new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => resolve(image);
      image.onerror = reject;
      image.src = url;
    });
  }

  function checkSize(name, { naturalWidth: width, naturalHeight: height }) {
    const pixels = width * height;
    if (!pixels) {
      throw new Error(`${name} has no pixels (is it a drawing without a size?). Choose a photo.`);
    }
    if (pixels > MOST_PIXELS) {
      throw new Error(
        `${name} has ${million(pixels)} million pixels, and this page takes ` +
          `${million(MOST_PIXELS)} million. Make it smaller first: of any picture 32 × 32 remain.`,
      );
    }
  }

  /** The pixels of an image, on white where it is transparent, and fewer where it is very large. */
  function pixelsOf(image) {
    const { naturalWidth: width, naturalHeight: height } = image;
    const few = Math.sqrt(CANVAS_PIXELS / (width * height));
    const shrink = Math.min(1, few, CANVAS_SIDE / Math.max(width, height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.floor(width * shrink));
    canvas.height = Math.max(1, Math.floor(height * shrink));
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    return { width: canvas.width, height: canvas.height, full: { width, height }, data, canvas };
  }

  /**
   * Open a picture file, turned as its camera says.
   *
   * @param {File} file
   * @returns {Promise<object>} `name`, `width`, `height`, `data` (height, width, 4), `canvas`, and
   *   `full`, its size before it was made smaller
   * @throws {Error} with a sentence for the reader, where it is no picture or far too large
   */
  cbam.openPicture = async function (file) {
    // Signs that nobody sees go: some of them turn a line round.
    const name = file.name.replace(/\p{C}/gu, "") || "What was given";
    if (!file.size) throw new Error(`${name} is empty. Choose a photo: JPEG, PNG or WebP.`);
    if (file.size > MOST_BYTES) {
      throw new Error(
        `${name} has ${million(file.size)} MB, and this page takes ${million(MOST_BYTES)} MB. ` +
          "Make it smaller first: of any picture 32 × 32 pixels remain.",
      );
    }
    const url = URL.createObjectURL(file);
    try {
      const image = await loaded(url).catch(() => {
        const kind = file.type ? ` (it says it is ${file.type})` : "";
        throw new Error(
          `${name} is no picture that this browser can read${kind}. ` +
            "Choose a photo: JPEG, PNG or WebP.",
        );
      });
      checkSize(name, image);
      try {
        return { name, ...pixelsOf(image) };
      } catch {
        throw new Error(
          `${name} opens, but the browser does not give its pixels to a page (a drawing with ` +
            "parts of a web page in it?). Choose a photo: JPEG, PNG or WebP.",
        );
      }
    } finally {
      URL.revokeObjectURL(url);
    }
  };
}
