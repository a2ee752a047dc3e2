/** The steps of the painting page, from F to F″, in the order of the gates: what each shows. */
"use strict";

var cbam = globalThis.cbam || {};
globalThis.cbam = cbam;

{
  const el = cbam.element;
  const STRONG = 4; // votes and logits from here on have the full colour
  const SVG = "http://www.w3.org/2000/svg";
  const v = (name, below = "") => `<var>${name}</var>${below && `<sub>${below}</sub>`}`;
  const f = (k) => `<var>f</var><sup>${k}×${k}</sup>`;
  const NAMES = {
    avgC: "mean",
    maxC: "maximum",
    hiddenAvg: "of the means",
    hiddenMax: "of the maxima",
    votesAvg: "the means’ vote",
    votesMax: "the maxima’s vote",
    logitsC: "logit",
    mapC: "channel map M c",
    refined: "F prime",
    maxS: "maximum over the channels",
    avgS: "mean over the channels",
    kernel: "kernel",
    products: "product",
    conv: "convolution",
    logitsS: "logit",
    mapS: "spatial map M s",
    map: "map of both gates",
    output: "refined feature",
    F: "feature",
  };

  /** The words for a number that stand in for the sight of it. */
  function sayer(name, scene) {
    return (index, value) => {
      const where = cbam.whereInWords(name, index, scene());
      const words = name.startsWith("hidden") ? [where, NAMES[name]] : [NAMES[name], where];
      return `${words.filter(Boolean).join(", ")}: ${cbam.number(value)}`;
    };
  }

  /** Panels of all steps; `scene` returns what is shown, `controls` are those of each gate. */
  cbam.Flow = class {
    constructor(scene, controls) {
      this.scene = scene;
      this.controls = controls;
      this.panels = [];
      this.element = el("div", { class: "paint-flow" });
    }

    /** Lay the steps out for the scene's order and sizes. */
    build() {
      const { order } = this.scene();
      this.panels = [];
      this.wires = [];
      const gates = { channel: () => this.channelGate(), spatial: () => this.spatialGate() };
      const [first, second] = order === "parallel" ? ["channel", "spatial"] : order.split("-");
      const steps = [gates[first]()];
      if (order === "parallel") steps.push(gates.spatial(), this.bothMaps());
      else if (second === "only") steps[0].append(this.product("output", first));
      else {
        steps[0].append(this.product("refined", first));
        steps.push(gates[second]());
        steps[1].append(this.product("output", second));
      }
      this.element.replaceChildren(...steps);
    }

    /** Write the numbers of the scene into all panels. */
    show(palette) {
      const scene = this.scene();
      const tensors = cbam.tensors(scene);
      for (const panel of this.panels) panel.show(tensors[panel.name], palette);
      for (const write of this.wires) write(tensors, scene);
    }

    panelsOf(name) {
      return this.panels.filter((panel) => panel.name === name);
    }

    sheet(name, options) {
      const [, rows, columns] = this.scene().shape;
      const say = sayer(name, this.scene);
      const sheet = new cbam.Sheet({ name, rows, columns, say, ...options });
      this.panels.push(sheet);
      return sheet.element;
    }

    numbers(name, columns, kind, title) {
      const limit = kind === "evidence" ? STRONG : 1;
      const say = sayer(name, this.scene);
      const row = new cbam.Numbers({ name, columns, kind, limit, title, say });
      this.panels.push(row);
      return row.element;
    }

    /** A sheet for every channel. */
    volume(name, kind, title, captions) {
      const { shape } = this.scene();
      return Array.from({ length: shape[0] }, (_, channel) => {
        const offset = channel * shape[1] * shape[2];
        const caption = captions(channel);
        return this.sheet(name, { offset, kind, title: `${title}, channel ${channel}`, caption });
      });
    }

    gate(name, title, question) {
      const { openChannel, openSpatial } = this.scene();
      const open = name === "channel" ? openChannel : openSpatial;
      const off = open ? ' <span class="paint-off">switched off</span>' : "";
      const heading = el("h3", { html: `${title}: <em>${question}</em>${off}` });
      const head = el("header", { class: "paint-head" }, heading, ...(this.controls[name] || []));
      return el("section", { class: "paint-gate", id: `paint-${name}-gate` }, head);
    }

    step(title, equation, shape, ...body) {
      const equations = [equation].flat().map((html) => el("span", { html }));
      return el(
        "section",
        { class: "paint-step" },
        el("h4", { text: title }),
        el("p", { class: "paint-shape", text: shape }),
        el("p", { class: "paint-equation" }, ...equations),
        ...body,
      );
    }

    before(gate) {
      return cbam.symbol(cbam.inputOf(gate, this.scene()), this.scene());
    }

    channelGate() {
      const { shape, layer, order } = this.scene();
      const [channels, height, width] = shape;
      const x = this.before("channel");
      const gate = this.gate("channel", "Channel gate", "what matters?");
      const mlp = (d) => `${v("W", "1")} ReLU(${v("W", "0")} ${v("F", d)})`;
      gate.append(
        this.step(
          "Two descriptors, one shared MLP",
          [
            `${v("F", "avg")} = mean of each channel of ${x}`,
            `${v("F", "max")} = maximum of each channel of ${x}`,
            `votes: ${mlp("avg")} and ${mlp("max")}`,
          ],
          `(${channels}, ${height}, ${width}) → 2 × (${channels}) → 2 × (${layer.hidden}) → ` +
            `2 × (${channels})`,
          this.network(),
        ),
      );
      const rows = [
        this.labelled("logits", this.numbers("logitsC", channels, "evidence", "Logits")),
      ];
      if (order !== "parallel") {
        const map = this.numbers("mapC", channels, "map", "Channel map");
        rows.push(this.labelled(v("M", "c"), map));
      }
      const sigmoid = `${v("M", "c")}(${x}) = σ(${mlp("avg")} + ${mlp("max")})`;
      const sum = `logits = ${mlp("avg")} + ${mlp("max")}`;
      gate.append(
        order === "parallel"
          ? this.step("The votes add up", sum, `(${channels})`, ...rows)
          : this.step("The votes add up; a sigmoid", sigmoid, `(${channels})`, ...rows),
      );
      return gate;
    }

    labelled(label, ...panels) {
      return el("div", { class: "paint-labelled" }, el("span", { html: label }), ...panels);
    }

    /** The shared MLP, once for the means and once for the maxima. */
    network() {
      const { layer } = this.scene();
      const { channels, hidden } = layer;
      const side = (end, title) =>
        el(
          "div",
          { class: "paint-side" },
          el("p", { class: "paint-side-title", html: title }),
          this.numbers(`${end[0]}C`, channels, "feature", `Descriptor ${end[0]}`),
          this.wiring(end[0], 0, channels, hidden, layer.w0),
          this.numbers(`hidden${end[1]}`, hidden, "evidence", `Hidden units, ${end[0]}`),
          this.wiring(end[0], 1, hidden, channels, layer.w1),
          this.numbers(`votes${end[1]}`, channels, "evidence", `Votes, ${end[0]}`),
        );
      const names = ["input", "hidden", "votes"];
      const labels = el("div", { class: "paint-side-labels", "aria-hidden": "true" });
      for (const name of names) labels.append(el("span", { html: name }));
      return el(
        "div",
        { class: "paint-network" },
        labels,
        side(["avg", "Avg"], `the means ${v("F", "avg")}`),
        side(["max", "Max"], `the maxima ${v("F", "max")}`),
      );
    }

    /** Lines from each unit of a row to each of the next, as strong as their weights. */
    wiring(side, layer, from, to, weights) {
      const svg = document.createElementNS(SVG, "svg");
      svg.setAttribute("class", "paint-wires");
      svg.setAttribute("aria-hidden", "true");
      const most = Math.max(...weights.map(Math.abs)) || 1;
      for (let i = 0; i < to; i++) {
        for (let j = 0; j < from; j++) {
          const weight = weights[i * from + j];
          const line = document.createElementNS(SVG, "line");
          const ends = { x1: (j + 0.5) / from, y1: 0, x2: (i + 0.5) / to, y2: 1 };
          for (const [name, share] of Object.entries(ends)) {
            line.setAttribute(name, `${100 * share}%`);
          }
          line.setAttribute("class", weight < 0 ? "paint-minus" : "paint-plus");
          line.setAttribute("data-edge", [side, layer, j, i].join(" "));
          line.style.strokeWidth = `${0.75 + (2.75 * Math.abs(weight)) / most}px`;
          svg.append(line);
        }
      }
      return svg;
    }

    spatialGate() {
      const { shape, layer, order } = this.scene();
      const [channels, height, width] = shape;
      const x = this.before("spatial");
      const k = layer.kernel;
      const gate = this.gate("spatial", "Spatial gate", "where is it?");
      const planes = [
        this.sheet("maxS", { kind: "feature", title: "Maxima", caption: v("F", "max") }),
        this.sheet("avgS", { kind: "feature", title: "Means", caption: v("F", "avg") }),
      ];
      const strongest = Math.max(...layer.conv.map(Math.abs));
      const kernel = (offset, title, caption) =>
        this.sheet("kernel", {
          ...{ offset, title, caption, rows: k, columns: k, kind: "evidence", limit: strongest },
        });
      const evidence = { kind: "evidence", limit: STRONG };
      gate.append(
        this.step(
          "Two descriptors again, now of each place",
          `maximum and mean over the channels of ${x}`,
          `(${channels}, ${height}, ${width}) → (2, ${height}, ${width})`,
          el("div", { class: "paint-sheets paint-two" }, ...planes),
        ),
        this.step(
          `A ${k} × ${k} convolution of both, BatchNorm`,
          `logits = BatchNorm(${f(k)}([${v("F", "max")}; ${v("F", "avg")}]))`,
          `(2, ${height}, ${width}) → (1, ${height}, ${width})`,
          el(
            "div",
            { class: "paint-sheets" },
            kernel(0, "Kernel for the maxima", `${f(k)} on ${v("F", "max")}`),
            kernel(k * k, "Kernel for the means", `${f(k)} on ${v("F", "avg")}`),
            this.sheet("conv", { ...evidence, title: "Convolution", caption: "convolution" }),
            this.sheet("logitsS", { ...evidence, title: "Logits", caption: "logits" }),
          ),
        ),
      );
      if (order === "parallel") gate.lastChild.append(this.lens(strongest));
      else {
        const look = { kind: "map", title: "Spatial map", caption: v("M", "s"), numbered: true };
        const sigmoid = `${v("M", "s")}(${x}) = σ(logits)`;
        const both = el("div", { class: "paint-one" }, this.sheet("mapS", look));
        both.append(this.lens(strongest));
        gate.append(this.step("A sigmoid", sigmoid, `(1, ${height}, ${width})`, both));
      }
      return gate;
    }

    /** What the kernel covers around one place, weight by weight. */
    lens(strongest) {
      const k = this.scene().layer.kernel;
      const size = { rows: k, columns: k, kind: "evidence", limit: strongest };
      const title = el("h5", {});
      const part = (offset, title, d) => {
        const caption = `${f(k)} · ${v("F", d)}: <span></span>`;
        return this.sheet("products", { ...size, offset, title, caption });
      };
      const sheets = [
        part(0, "Products with the maxima", "max"),
        part(k * k, "Products with the means", "avg"),
      ];
      this.wires.push((tensors, scene) => {
        const where = cbam.whereInWords("mapS", cbam.lensOf(scene), scene);
        title.textContent = `Lens: ${where}`;
        const sums = cbam.sumsOf(tensors.products);
        sheets.forEach((sheet, i) => {
          sheet.querySelector("figcaption > span").textContent = `sum ${cbam.number(sums[i])}`;
        });
      });
      return el("div", { class: "paint-lens" }, title, ...sheets);
    }

    /** Draw again what is under the lens, and nothing else. */
    showLens(palette) {
      const scene = this.scene();
      const tensors = cbam.tensors(scene);
      for (const panel of this.panelsOf("products")) panel.show(tensors.products, palette);
      for (const write of this.wires) write(tensors, scene);
    }

    /** The features times a gate's map. */
    product(name, gate) {
      const { shape } = this.scene();
      const symbol = cbam.symbol(name, this.scene());
      const before = this.before(gate);
      const map = gate === "channel" ? v("M", "c") : v("M", "s");
      const sheets = this.volume(name, "feature", cbam.plain(symbol), (c) => {
        const id = `channel ${c}`;
        return gate === "channel" ? `${id} <span class="paint-times" data-c="${c}"></span>` : id;
      });
      if (gate === "channel") this.wires.push((tensors) => times(sheets, tensors.mapC));
      return this.step(
        gate === "channel" ? "Every channel times its weight" : "Every place times its weight",
        `${symbol} = ${map}(${before}) ⊗ ${before}`,
        `(${shape.join(", ")})`,
        el("div", { class: "paint-sheets" }, ...sheets),
      );
    }

    /** In parallel: the logits of both gates add up to one map. */
    bothMaps() {
      const { shape } = this.scene();
      const gate = this.gate("both", "Both gates", "what, and where?");
      const dims = `(${shape.join(", ")})`;
      const captions = (c) => `channel ${c}`;
      const maps = this.volume("map", "map", "Map of both", captions);
      const outputs = this.volume("output", "feature", "F″", captions);
      const all = (sheets) => el("div", { class: "paint-sheets" }, ...sheets);
      const sum = `${v("M")}[c, i, j] = σ(logit<sub>c</sub>[c] + logit<sub>s</sub>[i, j])`;
      gate.append(
        this.step("The logits add up; one sigmoid", sum, dims, all(maps)),
        this.step("Every feature times its weight", "<var>F″</var> = <var>M</var> ⊗ <var>F</var>",
          dims, all(outputs)),
      );
      return gate;
    }
  };

  function times(sheets, map) {
    sheets.forEach((sheet, c) => {
      sheet.querySelector(".paint-times").textContent = `× ${cbam.number(map[c])}`;
    });
  }

  /** The letters of a symbol without its markup. */
  cbam.plain = (html) => el("span", { html }).textContent;
}
