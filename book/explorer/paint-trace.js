/**
 * Where a number of the painting page is from: its inputs, and the arithmetic in words and numbers.
 *
 * A scene is what the page computes with: `shape`, `features` F, `layer` (the weights), `order`,
 * `openChannel`, `openSpatial`, and the `result` of cbam.refine. A number is named by its tensor
 * and its place in it, counted through.
 */
"use strict";

var cbam = globalThis.cbam || {};
globalThis.cbam = cbam;

{
  const show = cbam.number;
  const sub = (name, below) => `<var>${name}</var><sub>${below}</sub>`;
  const SYMBOLS = {
    F: "<var>F</var>",
    avgC: sub("F", "avg"),
    maxC: sub("F", "max"),
    logitsC: sub("logit", "c"),
    mapC: sub("M", "c"),
    refined: "<var>F′</var>",
    avgS: sub("F", "avg"),
    maxS: sub("F", "max"),
    conv: "<var>conv</var>",
    logitsS: sub("logit", "s"),
    mapS: sub("M", "s"),
    map: "<var>M</var>",
    output: "<var>F″</var>",
  };
  const SPATIAL = new Set(["avgS", "maxS", "conv", "logitsS", "mapS"]);
  const VOLUMES = new Set(["F", "refined", "map", "output"]);
  // What is made of one number each of a few tensors: their own inputs are shown as well.
  const THIN = new Set(["mapC", "logitsC", "mapS", "logitsS", "map"]);

  /** Every tensor of a scene under the name that the page has for it. */
  cbam.tensors = function (scene) {
    const { features, layer, result } = scene;
    const { channel = {}, spatial = {} } = result;
    return {
      F: features,
      avgC: channel.avg,
      maxC: channel.max,
      hiddenAvg: channel.hiddenAvg,
      hiddenMax: channel.hiddenMax,
      votesAvg: channel.votesAvg,
      votesMax: channel.votesMax,
      logitsC: channel.logits,
      mapC: channel.map,
      refined: result.refined,
      maxS: spatial.max,
      avgS: spatial.avg,
      kernel: layer.conv,
      conv: spatial.conv,
      logitsS: spatial.logits,
      mapS: spatial.map,
      map: result.map,
      output: result.output,
      products: result.spatial && scene.shape && products(cbam.lensOf(scene), scene),
    };
  };

  /** The tensor that a gate of a scene looks at. */
  cbam.inputOf = function (gate, { order }) {
    const second = { "channel-spatial": "spatial", "spatial-channel": "channel" }[order];
    return gate === second ? "refined" : "F";
  };

  /** The symbol of a tensor, as the order has it: with one gate alone, F′ is the last. */
  cbam.symbol = function (name, { order }) {
    return name === "output" && order.endsWith("only") ? SYMBOLS.refined : SYMBOLS[name];
  };

  /** Where a number is: its channel, row and column, as far as its tensor has them. */
  function whereabouts(name, index, { shape }) {
    const [, height, width] = shape;
    const place = index % (height * width);
    const at = { place, row: Math.floor(place / width), column: place % width };
    if (VOLUMES.has(name)) return { channel: Math.floor(index / (height * width)), ...at };
    return SPATIAL.has(name) ? at : { channel: index };
  }

  function symbolAt(name, index, scene) {
    const { channel, row, column } = whereabouts(name, index, scene);
    const at = [channel, row, column].filter((number) => number !== undefined);
    return `${cbam.symbol(name, scene)}[${at.join(", ")}]`;
  }

  const terms = (weights, inputs) =>
    inputs.map((x, i) => `${show(weights[i])}·${show(x)}`).join(" + ").replaceAll("+ −", "− ");

  const plus = (a, b) => (b < 0 ? `${show(a)} − ${show(-b)}` : `${show(a)} + ${show(b)}`);

  const plusText = (text, b) => (b < 0 ? `${text} − ${show(-b)}` : `${text} + ${show(b)}`);

  const withBias = (text, bias) => (bias ? plusText(text, bias) : text);

  /** What one hidden unit, or one vote, is made of. */
  function neuron(inputs, weight, bias, unit) {
    const row = weight.slice(unit * inputs.length, (unit + 1) * inputs.length);
    const sum = inputs.reduce((total, x, i) => total + row[i] * x, bias[unit]);
    return { sum, formula: withBias(terms([...row], [...inputs]), bias[unit]) };
  }

  const whole = (name, panel, [, height, width]) => ({
    name,
    index: panel * height * width,
    height,
    width,
  });

  const every = (name, count) => Array.from({ length: count }, (_, index) => ({ name, index }));

  /** The part of a plane that the kernel covers around a place, and where that is in the kernel. */
  function covered(index, { shape, layer }) {
    const [, height, width] = shape;
    const half = (layer.kernel - 1) / 2;
    const [row, column] = [Math.floor(index / width), index % width];
    const [top, left] = [Math.max(0, row - half), Math.max(0, column - half)];
    const size = {
      height: Math.min(height, row + half + 1) - top,
      width: Math.min(width, column + half + 1) - left,
    };
    return { top, left, dy: top - row + half, dx: left - column + half, ...size };
  }

  /** What the kernel makes of the planes around a place: weight times value, (2, k, k). */
  function products(index, scene) {
    const { shape, layer, result } = scene;
    const { top, left, dy, dx, height, width } = covered(index, scene);
    const k = layer.kernel;
    const values = new Float32Array(2 * k * k);
    [result.spatial.max, result.spatial.avg].forEach((plane, p) => {
      for (let i = 0; i < height; i++) {
        for (let j = 0; j < width; j++) {
          const weight = (p * k + i + dy) * k + j + dx;
          values[weight] = layer.conv[weight] * plane[(top + i) * shape[2] + left + j];
        }
      }
    });
    return values;
  }

  /** The sums over both planes of what lies under the lens, [of the maxima, of the means]. */
  cbam.sumsOf = function (values) {
    const half = values.length / 2;
    const sum = (part) => part.reduce((total, value) => total + value, 0);
    return [sum(values.subarray(0, half)), sum(values.subarray(half))];
  };

  /** The place under the lens: the one that was asked for, or the one with the largest logit. */
  cbam.lensOf = function ({ lens, result }) {
    if (!result.spatial || lens != null) return lens;
    const { logits } = result.spatial;
    return logits.indexOf(Math.max(...logits));
  };

  const at = (row, column) => `row ${row}, column ${column}`;

  // For each tensor: `lead` in words, `formula` behind the symbol, `note`, `marks` (the inputs),
  // and `edges` (lines of the MLP, each [side, layer, from, to]).
  const EXPLAIN = {
    avgC(index, scene, tensors) {
      const [, height, width] = scene.shape;
      const input = cbam.inputOf("channel", scene);
      const mean = tensors.avgC[index];
      return {
        lead: `The mean of channel ${index}`,
        formula: `${show(mean * height * width)} / ${height * width} = ${show(mean)}`,
        note: `the sum of all ${height * width} places, shared out evenly`,
        marks: [whole(input, index, scene.shape)],
      };
    },

    maxC(index, scene, tensors) {
      const places = scene.shape[1] * scene.shape[2];
      const input = cbam.inputOf("channel", scene);
      const from = index * places + scene.result.channel.argmax[index];
      const plane = tensors[input].slice(index * places, (index + 1) * places);
      const equal = plane.filter((value) => value === tensors.maxC[index]).length;
      const note = equal > 1 ? `the first of ${equal} places that share it` : "one place decides";
      return {
        lead: `The maximum of channel ${index}`,
        formula: `${symbolAt(input, from, scene)} = ${show(tensors.maxC[index])}`,
        note,
        marks: [{ name: input, index: from }],
      };
    },

    hiddenAvg: (index, scene, tensors) => hidden("avg", index, scene, tensors),
    hiddenMax: (index, scene, tensors) => hidden("max", index, scene, tensors),
    votesAvg: (index, scene, tensors) => vote("avg", index, scene, tensors),
    votesMax: (index, scene, tensors) => vote("max", index, scene, tensors),

    logitsC(index, scene, { votesAvg, votesMax, logitsC }) {
      return {
        lead: `Both votes on channel ${index}`,
        formula: `${plus(votesAvg[index], votesMax[index])} = ${show(logitsC[index])}`,
        note: "the mean's vote plus the maximum's",
        marks: [{ name: "votesAvg", index }, { name: "votesMax", index }],
      };
    },

    mapC(index, scene, { votesAvg, votesMax, logitsC, mapC }) {
      const lead = `The weight of channel ${index}`;
      if (scene.openChannel) return { lead, formula: "1.00", note: "its gate is off", marks: [] };
      const sum = `σ(${plus(votesAvg[index], votesMax[index])}) = σ(${show(logitsC[index])})`;
      return {
        lead,
        formula: `${sum} = ${show(mapC[index])}`,
        note: `${Math.round(100 * mapC[index])} % of the channel passes`,
        marks: [{ name: "logitsC", index }],
      };
    },

    refined: (index, scene, tensors) => product("refined", index, scene, tensors),
    output: (index, scene, tensors) => product("output", index, scene, tensors),

    maxS(index, scene, tensors) {
      const input = cbam.inputOf("spatial", scene);
      const column = throughChannels(tensors[input], index, scene.shape);
      const channel = scene.result.spatial.argmax[index];
      const places = scene.shape[1] * scene.shape[2];
      return {
        lead: "The maximum over the channels",
        formula: `max(${column.map((x) => show(x)).join(", ")}) = ${show(tensors.maxS[index])}`,
        note: `channel ${channel} is ahead here`,
        marks: [{ name: input, index: channel * places + index }],
      };
    },

    avgS(index, scene, tensors) {
      const input = cbam.inputOf("spatial", scene);
      const column = throughChannels(tensors[input], index, scene.shape);
      const places = scene.shape[1] * scene.shape[2];
      const sum = column.map((x) => show(x)).join(" + ").replaceAll("+ −", "− ");
      return {
        lead: "The mean over the channels",
        formula: `(${sum}) / ${column.length} = ${show(tensors.avgS[index])}`,
        note: "every channel has the same say",
        marks: column.map((_, channel) => ({ name: input, index: channel * places + index })),
      };
    },

    kernel(index, { layer }, tensors) {
      const k = layer.kernel;
      const half = (k - 1) / 2;
      const [plane, row] = [Math.floor(index / (k * k)), (Math.floor(index / k) % k) - half];
      const column = (index % k) - half;
      const steps = (count, back, forth) =>
        count === 0 ? "" : `${Math.abs(count)} ${count < 0 ? back : forth}`;
      const way = [steps(row, "up", "down"), steps(column, "to the left", "to the right")];
      const place = way.filter(Boolean).join(" and ");
      return {
        lead: `A weight for the ${plane === 0 ? "maxima" : "means"}`,
        formula: show(tensors.kernel[index]),
        note: place ? `for the place ${place}` : "for the place itself",
        marks: [],
      };
    },

    conv(index, scene, tensors) {
      const sums = cbam.sumsOf(products(index, scene));
      const k = scene.layer.kernel;
      const { top, left, dy, dx, height, width } = covered(index, scene);
      const plane = { index: top * scene.shape[2] + left, height, width };
      const weights = [0, 1].map((p) => ({ index: (p * k + dy) * k + dx, height, width }));
      const [inside, all] = [2 * height * width, 2 * k * k];
      const edge = inside < all ? `, ${inside} of them on the map, zeros around it` : "";
      return {
        lead: "The convolution",
        formula: `${plus(sums[0], sums[1])} = ${show(tensors.conv[index])}`,
        note: `from the maxima and from the means: ${all} products${edge}`,
        marks: [
          { name: "maxS", ...plane },
          { name: "avgS", ...plane },
          { name: "kernel", ...weights[0] },
          { name: "kernel", ...weights[1] },
        ],
      };
    },

    products(index, scene, tensors) {
      const { shape, layer } = scene;
      const k = layer.kernel;
      const { top, left, dy, dx, height, width } = covered(cbam.lensOf(scene), scene);
      const [plane, i, j] = [Math.floor(index / (k * k)), Math.floor(index / k) % k, index % k];
      const [row, column] = [top + i - dy, left + j - dx];
      const inside = i >= dy && i < dy + height && j >= dx && j < dx + width;
      const name = plane === 0 ? "maxS" : "avgS";
      const place = row * shape[2] + column;
      const value = inside ? tensors[name][place] : 0;
      const weighed = `a weight times the ${plane === 0 ? "maximum" : "mean"}`;
      const marks = [{ name: "kernel", index }];
      if (inside) marks.push({ name, index: place });
      return {
        lead: "A product under the lens",
        formula: `${show(layer.conv[index])}·${show(value)} = ${show(tensors.products[index])}`,
        note: inside ? `${weighed} at ${at(row, column)}` : "beyond the border there are zeros",
        marks,
      };
    },

    logitsS(index, { layer }, { conv, logitsS }) {
      const scaled = `${show(layer.scale)} · ${show(conv[index])}`;
      return {
        lead: "Behind the BatchNorm",
        formula: `${plusText(scaled, layer.shift)} = ${show(logitsS[index])}`,
        note: "a scale and a shift, the same for all places",
        marks: [{ name: "conv", index }],
      };
    },

    mapS(index, scene, { logitsS, mapS }) {
      const lead = "The weight of this place";
      if (scene.openSpatial) return { lead, formula: "1.00", note: "its gate is off", marks: [] };
      return {
        lead,
        formula: `σ(${show(logitsS[index])}) = ${show(mapS[index])}`,
        note: `${Math.round(100 * mapS[index])} % of every channel passes here`,
        marks: [{ name: "logitsS", index }],
      };
    },

    map(index, scene, { logitsC, logitsS, map }) {
      const { channel, place } = whereabouts("map", index, scene);
      const { openChannel, openSpatial } = scene;
      const lead = "One weight for channel and place";
      if (openChannel && openSpatial) {
        return { lead, formula: "1.00", note: "both gates are off", marks: [] };
      }
      const [what, where] = [openChannel ? 0 : logitsC[channel], openSpatial ? 0 : logitsS[place]];
      const both = [{ name: "logitsC", index: channel }, { name: "logitsS", index: place }];
      return {
        lead,
        formula: `σ(${plus(what, where)}) = ${show(map[index])}`,
        note: "both logits, one sigmoid",
        marks: both.filter((_, i) => ![openChannel, openSpatial][i]),
      };
    },
  };

  const throughChannels = (x, place, [channels, height, width]) =>
    Array.from({ length: channels }, (_, c) => x[c * height * width + place]);

  const PLURAL = { avg: "means", max: "maxima" };
  const WHOSE = { avg: "means’", max: "maxima’s" };

  function hidden(side, unit, { layer }, tensors) {
    const inputs = side === "avg" ? tensors.avgC : tensors.maxC;
    const { sum, formula } = neuron(inputs, layer.w0, layer.b0, unit);
    const value = show(Math.max(0, sum));
    return {
      lead: `Hidden unit ${unit}, asked of the ${PLURAL[side]}`,
      formula: `ReLU(${formula}) = ReLU(${show(sum)}) = ${value}`,
      note: sum < 0 ? "the ReLU cuts it off" : "",
      marks: every(side === "avg" ? "avgC" : "maxC", layer.channels),
      edges: Array.from(inputs, (_, c) => [side, 0, c, unit]),
    };
  }

  function vote(side, channel, { layer }, tensors) {
    const name = side === "avg" ? "hiddenAvg" : "hiddenMax";
    const { sum, formula } = neuron(tensors[name], layer.w1, layer.b1, channel);
    const opinion = sum > 0.005 ? "for it" : sum < -0.005 ? "against it" : "no opinion";
    return {
      lead: `The ${WHOSE[side]} vote on channel ${channel}`,
      formula: `${formula} = ${show(sum)}`,
      note: opinion,
      marks: every(name, layer.hidden),
      edges: Array.from(tensors[name], (_, unit) => [side, 1, unit, channel]),
    };
  }

  /** The factors of one refined feature: [the features before, the map]. */
  function factors(name, { order }) {
    if (order === "parallel") return ["F", "map"];
    const [first, second] = order.split("-");
    const gate = name === "refined" || second === "only" ? first : second;
    const before = name === "refined" || second === "only" ? "F" : "refined";
    return [before, gate === "channel" ? "mapC" : "mapS"];
  }

  function product(name, index, scene, tensors) {
    const [before, map] = factors(name, scene);
    const { channel, place } = whereabouts(name, index, scene);
    const at = { mapC: channel, mapS: place, map: index }[map];
    const [weight, value] = [tensors[map][at], tensors[before][index]];
    return {
      lead: name === "refined" ? "A feature between the gates" : "A refined feature",
      formula:
        `${symbolAt(map, at, scene)} · ${symbolAt(before, index, scene)} = ` +
        `${show(weight)} · ${show(value)} = ${show(tensors[name][index])}`,
      note: "",
      marks: [{ name: map, index: at }, { name: before, index }],
    };
  }

  /** What is made of a painted number: the other way round. */
  function onward(index, scene, tensors) {
    const { channel, place } = whereabouts("F", index, scene);
    const places = scene.shape[1] * scene.shape[2];
    const marks = [];
    const says = [];
    if (scene.result.channel && cbam.inputOf("channel", scene) === "F") {
      marks.push({ name: "avgC", index: channel });
      says.push(`one of ${places} in its channel’s mean`);
      if (scene.result.channel.argmax[channel] === place) {
        marks.push({ name: "maxC", index: channel });
        says.push("its channel’s maximum");
      }
    }
    if (scene.result.spatial && cbam.inputOf("spatial", scene) === "F") {
      marks.push({ name: "avgS", index: place });
      says.push(`one of ${scene.shape[0]} in its place’s mean`);
      if (scene.result.spatial.argmax[place] === channel) {
        marks.push({ name: "maxS", index: place });
        says.push("its place’s maximum");
      }
    }
    const next = tensors.refined && !scene.order.endsWith("only") ? "refined" : "output";
    marks.push({ name: next, index });
    return {
      lead: "A painted feature",
      formula: show(scene.features[index]),
      note: `it is ${says.join(", and ")}`,
      marks: marks.map((mark) => ({ ...mark, kind: "onward" })),
    };
  }

  /** The inputs of a number, and through thin steps their inputs too, as `kind` near and far. */
  function follow(name, index, scene, tensors, kind = "near") {
    const { marks, edges = [] } = EXPLAIN[name](index, scene, tensors);
    const found = { marks: marks.map((mark) => ({ ...mark, kind })), edges: [...edges] };
    const further = (mark) => THIN.has(name) || mark.name === "refined";
    for (const mark of marks) {
      if (!further(mark) || !EXPLAIN[mark.name]) continue;
      const deeper = follow(mark.name, mark.index, scene, tensors, "far");
      found.marks.push(...deeper.marks);
      found.edges.push(...deeper.edges);
    }
    return found;
  }

  /**
   * Where a number is from.
   *
   * @returns {object} `lead` in words; `formula`, HTML, that ends in the number; `note`; `marks`,
   *   the inputs: each a tensor's `name`, the `index` of a first cell, perhaps `height` and `width`
   *   of a block of cells, and `kind`: near, far, or onward for what is made of it; `edges` of the
   *   MLP that it came through, each [side, layer, from, to].
   */
  cbam.trace = function (name, index, scene) {
    const tensors = cbam.tensors(scene);
    const symbol = SYMBOLS[name] ? symbolAt(name, index, scene) : "";
    if (name === "F") return { ...onward(index, scene, tensors), edges: [], symbol };
    const { lead, formula, note } = EXPLAIN[name](index, scene, tensors);
    return { lead, formula, note, symbol, ...follow(name, index, scene, tensors) };
  };

  /** Where a number is, in words: "channel 1, row 3, column 4", "hidden unit 0". */
  cbam.whereInWords = function (name, index, scene) {
    if (name.startsWith("hidden")) return `hidden unit ${index}`;
    if (name === "kernel" || name === "products") return "";
    const { channel, row, column } = whereabouts(name, index, scene);
    const words = channel === undefined ? [] : [`channel ${channel}`];
    if (row !== undefined) words.push(at(row, column));
    return words.join(", ");
  };

  const extremes = (values) => [Math.max(...values), Math.min(...values)];

  /** What the gates answer, in a sentence or two. */
  cbam.inWords = function (scene) {
    const { channel, spatial, map } = scene.result;
    const said = [];
    if (channel?.map) {
      const weights = Array.from(channel.map, (m, c) => `channel ${c} ${show(m)}`);
      said.push(`Channel gate: ${weights.join(", ")}.`);
    }
    if (spatial?.map) {
      const [high, low] = extremes(spatial.map);
      const where = (value) => cbam.whereInWords("mapS", spatial.map.indexOf(value), scene);
      const open = `most open at ${where(high)}, ${show(high)}`;
      said.push(`Spatial gate: ${open}; least at ${where(low)}, ${show(low)}.`);
    }
    if (map) {
      const [channels, height, width] = scene.shape;
      const ranges = Array.from({ length: channels }, (_, c) => {
        const [high, low] = extremes(map.subarray(c * height * width, (c + 1) * height * width));
        return `channel ${c} ${show(low)} to ${show(high)}`;
      });
      said.push(`Both gates as one: ${ranges.join(", ")}.`);
    }
    return said.join(" ");
  };
}
