/**
 * The trained network, ResNet-20 with a CBAM in each of its nine blocks, with every step kept.
 *
 * A feature map (C, H, W) is a Float32Array, as in attention.js, whose gates this uses. Each
 * BatchNorm has been folded into the convolution before it: book/_ext/explorer_network.py.
 */
"use strict";

var cbam = globalThis.cbam || {}; // var: every script of a page may begin with this line
globalThis.cbam = cbam;

cbam.SIDE = 32; // of the photographs that the network was trained on
cbam.ANSWERS = ["learnt", "open", "mean"]; // what a gate may say: its map, 1, its mean map

/** The bytes that a line of base64 stands for. */
function bytesOf(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

/** The arrays of `data` by name: [[name, shape], ...] says how they follow one another. */
function arraysOf(data) {
  const numbers = new Float32Array(bytesOf(data.weights).buffer);
  const arrays = {};
  let start = 0;
  for (const [name, shape] of data.layout) {
    const size = shape.reduce((product, n) => product * n, 1);
    arrays[name] = numbers.subarray(start, start + size);
    start += size;
  }
  return arrays;
}

/**
 * The network in cbam.networkData, ready to run.
 *
 * @returns {object} `stem`, `blocks` and `head` with their weights, `classes`, `mean` and `std`;
 *   each block has `conv1`, `conv2`, `gates` (a layer as in attention.js), `mean` (`channel` (C)
 *   and `spatial` (H, W), its gates' mean maps), `shape` [C, H, W] and `stride`.
 */
cbam.readNetwork = function (data) {
  const arrays = arraysOf(data);
  const conv = (part) => ({ weight: arrays[`${part}.weight`], bias: arrays[`${part}.bias`] });
  const gatesOf = (part, channels) => {
    const names = ["w0", "b0", "w1", "b1", "conv"];
    const layer = Object.fromEntries(names.map((name) => [name, arrays[`${part}.${name}`]]));
    const kernel = Math.sqrt(layer.conv.length / 2);
    const [scale, shift] = [arrays[`${part}.scale`][0], arrays[`${part}.shift`][0]];
    return { channels, hidden: layer.b0.length, kernel, ...layer, scale, shift };
  };
  const blocks = [];
  let width = conv("stem").bias.length;
  let side = cbam.SIDE;
  for (let i = 0; `block${i}.conv1.weight` in arrays; i++) {
    const conv1 = conv(`block${i}.conv1`);
    const channels = conv1.bias.length;
    const stride = channels === width ? 1 : 2; // a stage doubles the channels, and halves the map
    width = channels;
    side /= stride;
    blocks.push({
      conv1,
      conv2: conv(`block${i}.conv2`),
      gates: gatesOf(`block${i}.gates`, channels),
      mean: {
        channel: arrays[`block${i}.mean.channel`],
        spatial: arrays[`block${i}.mean.spatial`],
      },
      shape: [channels, side, side],
      stride,
    });
  }
  const { classes, mean, std } = data;
  return { stem: conv("stem"), blocks, head: conv("head"), classes, mean, std };
};

/** The photographs in cbam.networkData: pixels (3, 32, 32), the true class and the one named. */
cbam.readPhotographs = function ({ photographs }) {
  const { indices, labels, answers } = photographs;
  const bytes = bytesOf(photographs.pixels);
  const size = bytes.length / indices.length;
  return indices.map((index, i) => {
    const pixels = bytes.subarray(i * size, (i + 1) * size);
    return { index, label: labels[i], answer: answers[i], pixels };
  });
};

/**
 * What the network sees of a picture.
 *
 * @param {Uint8Array} pixels (3, 32, 32)
 * @param {Uint8Array} [cover] (32, 32), 1 where the picture is covered: the training mean, a zero
 * @returns {Float32Array} (3, 32, 32)
 */
cbam.normalise = function (pixels, { mean, std }, cover = null) {
  const places = pixels.length / mean.length;
  return Float32Array.from(pixels, (value, i) => {
    const channel = Math.floor(i / places);
    return cover && cover[i % places] ? 0 : (value / 255 - mean[channel]) / std[channel];
  });
};

/** A map (C, H, W) with a border of zeros, in double precision: (C, H + 2, W + 2). */
function padded(x, [channels, height, width]) {
  const wide = width + 2;
  const out = new Float64Array(channels * (height + 2) * wide);
  for (let c = 0; c < channels; c++) {
    for (let row = 0; row < height; row++) {
      const from = (c * height + row) * width;
      out.set(x.subarray(from, from + width), (c * (height + 2) + row + 1) * wide + 1);
    }
  }
  return out;
}

/**
 * Add one channel's part to the rows of a 3 x 3 convolution: `sums` (rows, width). The nine
 * numbers under the kernel, t(op), m(iddle) and l(ow), move along the row, so that each step reads
 * three only.
 */
function addChannel(sums, x, start, weight, at, rows, width, stride) {
  const wide = width + 2;
  const a = weight[at]; // one by one: taking an array apart costs more than the sums below
  const b = weight[at + 1];
  const c = weight[at + 2];
  const d = weight[at + 3];
  const e = weight[at + 4];
  const f = weight[at + 5];
  const g = weight[at + 6];
  const h = weight[at + 7];
  const k = weight[at + 8];
  for (let row = 0; row < rows; row++) {
    let top = start + row * stride * wide;
    let t0 = x[top];
    let t1 = x[top + 1];
    let m0 = x[top + wide];
    let m1 = x[top + wide + 1];
    let l0 = x[top + 2 * wide];
    let l1 = x[top + 2 * wide + 1];
    top += 2;
    const end = (row + 1) * width;
    for (let i = row * width; i < end; i++, top++) {
      const t2 = x[top];
      const m2 = x[top + wide];
      const l2 = x[top + 2 * wide];
      sums[i] += a * t0 + b * t1 + c * t2 + d * m0 + e * m1 + f * m2 + g * l0 + h * l1 + k * l2;
      t0 = t1;
      t1 = t2;
      m0 = m1;
      m1 = m2;
      l0 = l1;
      l1 = l2;
    }
  }
}

/**
 * A 3 x 3 convolution with zeros around the map.
 *
 * @param {Float32Array} x (C_in, H, W)
 * @param {number[]} shape [C_in, H, W]
 * @param {object} layer `weight` (C_out, C_in, 3, 3) and `bias` (C_out)
 * @param {number} stride 1, or 2 for every second place
 * @returns {Float32Array} (C_out, H / stride, W / stride)
 */
cbam.convolve3 = function (x, shape, { weight, bias }, stride = 1) {
  const [channels, height, width] = shape;
  const input = padded(x, shape);
  const sheet = (height + 2) * (width + 2);
  const rows = height / stride;
  const columns = width / stride;
  const out = new Float32Array(bias.length * rows * columns);
  const sums = new Float64Array(rows * width);
  for (let o = 0; o < bias.length; o++) {
    sums.fill(bias[o]);
    for (let c = 0; c < channels; c++) {
      addChannel(sums, input, c * sheet, weight, (o * channels + c) * 9, rows, width, stride);
    }
    const start = o * rows * columns;
    if (stride === 1) out.set(sums, start);
    else for (let i = 0; i < rows * columns; i++) out[start + i] = sums[i * stride];
  }
  return out;
};

/** The numbers below zero made zero. */
function relu(x) {
  const out = new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) out[i] = x[i] > 0 ? x[i] : 0;
  return out;
}

/** What a gate says: its map, as learnt; or 1 everywhere; or its mean map. */
function answer(steps, kind, mean) {
  if (kind === "learnt") return { ...steps, map: cbam.sigmoidOf(steps.logits) };
  return { ...steps, map: kind === "mean" ? mean : new Float32Array(mean.length).fill(1) };
}

/** A block's input plus its branch: where the map is halved, every second place; ReLU behind. */
function addShortcut(branch, x, [channels, height, width], stride) {
  const out = relu(branch);
  const before = x.length / (height * width * stride * stride);
  for (let c = 0; c < Math.min(before, channels); c++) {
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        const i = (c * height + row) * width + column;
        const from = ((c * height + row) * stride * width + column) * stride;
        const sum = branch[i] + x[from];
        out[i] = sum > 0 ? sum : 0;
      }
    }
  }
  return out;
}

/**
 * One block, step by step.
 *
 * @returns {object} `conv1` and `conv2` (behind their BatchNorm; conv2 are the features F),
 *   `relu`, `channel` and `spatial` (the gates' steps, with `map`), `refined` (F'), `gated` (F'')
 *   and `output`.
 */
function runBlock(x, block, { channel, spatial }) {
  const [channels, height, width] = block.shape;
  const { stride, gates, mean, shape } = block;
  const before = x.length / (height * width * stride * stride);
  const conv1 = cbam.convolve3(x, [before, height * stride, width * stride], block.conv1, stride);
  const hidden = relu(conv1);
  const conv2 = cbam.convolve3(hidden, [channels, height, width], block.conv2);
  const first = answer(cbam.channelLogits(conv2, shape, gates), channel, mean.channel);
  const refined = cbam.multiply(conv2, shape, first.map, null);
  const second = answer(cbam.spatialLogits(refined, shape, gates), spatial, mean.spatial);
  const gated = cbam.multiply(refined, shape, null, second.map);
  const output = addShortcut(gated, x, shape, stride);
  const steps = { conv1, relu: hidden, conv2, channel: first, refined, spatial: second, gated };
  return { shape, ...steps, output };
}

/** Numbers that are positive and sum to 1, with the logits' order. */
cbam.softmax = function (logits) {
  const top = Math.max(...logits);
  const powers = Array.from(logits, (z) => Math.exp(z - top));
  const sum = powers.reduce((total, power) => total + power, 0);
  return Float32Array.from(powers, (power) => power / sum);
};

/** Every gate as it was trained. */
cbam.allLearnt = (network) => network.blocks.map(() => ({ channel: "learnt", spatial: "learnt" }));

/**
 * The network's answer to a picture, with every step.
 *
 * @param {object} network as cbam.readNetwork returns it
 * @param {Float32Array} x (3, 32, 32), as cbam.normalise returns it
 * @param {object[]} [gates] for each block `channel` and `spatial`, one of cbam.ANSWERS each
 * @returns {object} `stem`, `blocks` (see runBlock), `pooled` (64), `logits` and `probabilities`
 */
cbam.runNetwork = function (network, x, gates = cbam.allLearnt(network)) {
  const stem = relu(cbam.convolve3(x, [network.mean.length, cbam.SIDE, cbam.SIDE], network.stem));
  let features = stem;
  const blocks = network.blocks.map((block, i) => {
    const steps = runBlock(features, block, gates[i]);
    features = steps.output;
    return steps;
  });
  const pooled = cbam.poolPlaces(features, network.blocks[network.blocks.length - 1].shape).avg;
  const logits = cbam.linear(pooled, network.head.weight, network.head.bias);
  return { stem, blocks, pooled, logits, probabilities: cbam.softmax(logits) };
};
