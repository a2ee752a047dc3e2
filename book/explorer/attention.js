/**
 * Channel attention, spatial attention and CBAM, with every step kept: what attention.py computes,
 * for one feature map of shape (C, H, W) in a Float32Array, row after row, channel after channel.
 *
 * The weights of a layer, as book/_ext/explorer.py writes them: `channels` C and `hidden` h;
 * `w0` (h, C), `b0` (h), `w1` (C, h), `b1` (C) of the shared MLP; `kernel` k and `conv` (2, k, k),
 * the maximum's plane first, of the convolution; `scale` and `shift` of the BatchNorm behind it.
 */
"use strict";

var cbam = globalThis.cbam || {}; // var: every script of a page may begin with this line
globalThis.cbam = cbam;

{ // a block keeps its functions to itself: only `cbam` is global
  cbam.ORDERS = ["channel-spatial", "spatial-channel", "parallel", "channel-only", "spatial-only"];

  cbam.sigmoid = (z) => 1 / (1 + Math.exp(-z));

  cbam.sigmoidOf = (logits) => Float32Array.from(logits, cbam.sigmoid);

  /** The sum of several arrays of one length, place by place. */
  cbam.add = (...arrays) => arrays[0].map((_, i) => arrays.reduce((sum, a) => sum + a[i], 0));

  /** weight (rows, columns) times input (columns), plus bias (rows). */
  cbam.linear = function (input, weight, bias) {
    const columns = input.length;
    return Float32Array.from(bias, (start, row) => {
      let sum = start;
      for (let i = 0; i < columns; i++) sum += weight[row * columns + i] * input[i];
      return sum;
    });
  };

  /**
   * Mean, maximum, and where the (first) maximum is, of `count` groups of `size` numbers. Number i
   * of group g is at x[g * between + i * within].
   */
  function pool(x, count, size, between, within) {
    const avg = new Float32Array(count);
    const max = new Float32Array(count);
    const argmax = new Int32Array(count);
    for (let g = 0; g < count; g++) {
      let sum = 0;
      let top = -Infinity;
      for (let i = 0; i < size; i++) {
        const value = x[g * between + i * within];
        sum += value;
        if (value > top) {
          top = value;
          argmax[g] = i;
        }
      }
      avg[g] = sum / size;
      max[g] = top;
    }
    return { avg, max, argmax };
  }

  /** Each channel's mean and maximum over its places: (C, H, W) -> (C). */
  cbam.poolPlaces = (x, [channels, height, width]) =>
    pool(x, channels, height * width, height * width, 1);

  /** Each place's mean and maximum over the channels: (C, H, W) -> (H, W). */
  cbam.poolChannels = (x, [channels, height, width]) =>
    pool(x, height * width, channels, 1, height * width);

  /**
   * The channel gate's steps up to its logits, equation 2 of the paper without the sigmoid.
   * Returns avg, max, argmax, votesAvg, votesMax and logits, (C) each, and hiddenAvg and hiddenMax,
   * (h) each, behind the ReLU.
   */
  cbam.channelLogits = function (x, shape, layer) {
    const pooled = cbam.poolPlaces(x, shape);
    const hidden = (d) => cbam.linear(d, layer.w0, layer.b0).map((z) => Math.max(0, z));
    const votes = (h) => cbam.linear(h, layer.w1, layer.b1);
    const hiddenAvg = hidden(pooled.avg);
    const hiddenMax = hidden(pooled.max);
    const votesAvg = votes(hiddenAvg);
    const votesMax = votes(hiddenMax);
    const logits = cbam.add(votesAvg, votesMax);
    return { ...pooled, hiddenAvg, hiddenMax, votesAvg, votesMax, logits };
  };

  /** From which row of the kernel to before which one it lies on the map; columns likewise. */
  const inside = (at, half, size) => [
    Math.max(0, half - at),
    Math.min(2 * half + 1, size + half - at),
  ];

  /**
   * The k x k convolution of two planes, `planes` [(H, W), (H, W)] and `weight` (2, k, k), with
   * zeros around them: (H, W).
   */
  cbam.convolve = function (planes, weight, k, height, width) {
    const half = (k - 1) / 2;
    const out = new Float32Array(height * width);
    for (let row = 0; row < height; row++) {
      const [top, bottom] = inside(row, half, height);
      for (let column = 0; column < width; column++) {
        const [left, right] = inside(column, half, width);
        let sum = 0;
        for (let p = 0; p < planes.length; p++) {
          for (let i = top; i < bottom; i++) {
            for (let j = left; j < right; j++) {
              const place = (row + i - half) * width + column + j - half;
              sum += weight[(p * k + i) * k + j] * planes[p][place];
            }
          }
        }
        out[row * width + column] = sum;
      }
    }
    return out;
  };

  /**
   * The spatial gate's steps up to its logits, equation 3 without the sigmoid.
   * Returns avg, max, argmax (a channel), conv and logits (behind the BatchNorm), (H, W) each.
   */
  cbam.spatialLogits = function (x, shape, layer) {
    const pooled = cbam.poolChannels(x, shape);
    const [, height, width] = shape;
    const conv = cbam.convolve([pooled.max, pooled.avg], layer.conv, layer.kernel, height, width);
    const logits = conv.map((z) => z * layer.scale + layer.shift);
    return { ...pooled, conv, logits };
  };

  /** A feature map (C, H, W) times a channel map (C), a spatial map (H, W), or both. */
  cbam.multiply = function (x, [channels, height, width], channelMap, spatialMap) {
    const places = height * width;
    const out = new Float32Array(x.length);
    for (let c = 0; c < channels; c++) {
      for (let p = 0; p < places; p++) {
        const weight = (channelMap ? channelMap[c] : 1) * (spatialMap ? spatialMap[p] : 1);
        out[c * places + p] = x[c * places + p] * weight;
      }
    }
    return out;
  };

  function gate(steps, open) {
    const map = open ? new Float32Array(steps.logits.length).fill(1) : cbam.sigmoidOf(steps.logits);
    return { ...steps, map };
  }

  function inParallel(x, shape, layer, openChannel, openSpatial) {
    const channel = cbam.channelLogits(x, shape, layer);
    const spatial = cbam.spatialLogits(x, shape, layer);
    const places = shape[1] * shape[2];
    const map = Float32Array.from(x, (_, i) => {
      if (openChannel && openSpatial) return 1;
      const what = openChannel ? 0 : channel.logits[Math.floor(i / places)];
      return cbam.sigmoid(what + (openSpatial ? 0 : spatial.logits[i % places]));
    });
    return { channel, spatial, map, output: x.map((value, i) => value * map[i]) };
  }

  /**
   * CBAM of one feature map, step by step.
   *
   * @param {Float32Array} x the features F, (C, H, W)
   * @param {number[]} shape [C, H, W]
   * @param {object} layer the weights, as above
   * @param {object} options `order`, one of cbam.ORDERS; `openChannel` and `openSpatial`, true for
   *   a gate that is switched off: its map is 1 everywhere
   * @returns {object} `channel` and `spatial`, the steps of each gate with its `map` (M_c, M_s),
   *   without one that the order leaves out; `refined`, the features F' between the gates, and
   *   `output`, F''. In parallel the logits add up to one `map` (C, H, W), where a gate that is
   *   switched off adds nothing, and there is no `refined`.
   */
  cbam.refine = function (x, shape, layer, options = {}) {
    const { order = "channel-spatial", openChannel = false, openSpatial = false } = options;
    if (!cbam.ORDERS.includes(order)) {
      throw new RangeError(`order must be one of ${cbam.ORDERS.join(", ")}; got ${order}`);
    }
    if (x.length !== shape[0] * shape[1] * shape[2] || shape[0] !== layer.channels) {
      throw new RangeError(
        `expected ${layer.channels} channels of H x W places, got ${x.length} numbers for ` +
          `the shape (${shape.join(", ")})`,
      );
    }
    if (order === "parallel") return inParallel(x, shape, layer, openChannel, openSpatial);
    const result = {};
    const steps = {
      channel(features) {
        result.channel = gate(cbam.channelLogits(features, shape, layer), openChannel);
        return cbam.multiply(features, shape, result.channel.map, null);
      },
      spatial(features) {
        result.spatial = gate(cbam.spatialLogits(features, shape, layer), openSpatial);
        return cbam.multiply(features, shape, null, result.spatial.map);
      },
    };
    const [first, second] = order.split("-");
    result.refined = steps[first](x);
    result.output = second === "only" ? result.refined : steps[second](result.refined);
    return result;
  };
}
