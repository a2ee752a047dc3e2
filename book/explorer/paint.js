/** The painting page: a feature map under the reader's hand, and both gates, which answer it. */
"use strict";

var cbam = globalThis.cbam || {};
globalThis.cbam = cbam;

{
  const el = cbam.element;
  const ORDERS = {
    "channel-spatial": "channel, then spatial",
    "spatial-channel": "spatial, then channel",
    parallel: "in parallel",
    "channel-only": "channel gate alone",
    "spatial-only": "spatial gate alone",
  };
  const WEIGHTS = { made: "made for reading", fresh: "a fresh module" };
  const LENS = new Set(["conv", "logitsS", "mapS"]); // a look at one of these moves the lens
  const HINT =
    "With keys: arrows walk, space paints, delete erases, + and − change the strength.";
  const QUIET = 600; // milliseconds after the last stroke until the page is described in words
  const MOST_UNDO = 200;
  const STRIDE = 5; // pixels: less than a cell is wide

  /** What the colours mean. */
  function legend() {
    const bar = (kind, low, high, text) =>
      el(
        "li",
        {},
        el("span", { text: low }),
        el("span", { class: `paint-bar paint-bar-${kind}` }),
        el("span", { text: high }),
        el("span", { text }),
      );
    return el(
      "ul",
      { class: "paint-legend", "aria-label": "Colours" },
      bar("feature", "−1", "1", "features"),
      bar("evidence", "−4", "4", "votes and logits"),
      bar("map", "0", "1", "maps"),
    );
  }

  class Painter {
    constructor(root, data) {
      this.root = root;
      this.data = data;
      this.shape = data.shape;
      this.settings = {
        ...{ order: "channel-spatial", weights: "made", reduction: 1, kernel: 7 },
        ...{ openChannel: false, openSpatial: false },
      };
      this.brush = { strength: 1, large: false, erase: false };
      this.features = Float32Array.from(data.examples[0].features);
      this.past = [];
      this.palette = new cbam.Palette();
      this.readHash();
      this.compute();
      this.lay();
      this.listen();
      this.rebuild();
      if (!this.shared && location.hash.startsWith("#paint=")) this.dock.lose();
    }

    // ---- what is computed -------------------------------------------------------------------

    get layer() {
      const { weights, reduction, kernel } = this.settings;
      return this.data.layers[weights][reduction][kernel];
    }

    compute() {
      const result = cbam.refine(this.features, this.shape, this.layer, this.settings);
      const { shape, features, layer } = this;
      this.scene = { shape, features, layer, result, lens: this.lens, ...this.settings };
    }

    /** Compute and draw at once; returns how long both took, in milliseconds. */
    update() {
      const start = performance.now();
      this.due = false;
      this.compute();
      this.show();
      this.spent = performance.now() - start;
      return this.spent;
    }

    /** Compute and draw before the next frame, once for however many strokes. */
    later() {
      if (this.due) return;
      this.due = true;
      requestAnimationFrame(() => this.due && this.update());
    }

    show() {
      for (const sheet of this.sheets) sheet.show(this.features, this.palette);
      this.flow.show(this.palette);
      this.dock.show(this.scene, this.palette);
      this.showWeights();
      if (this.traced) this.trace(this.traced);
      this.tasks.check(this.scene);
      clearTimeout(this.quiet);
      this.quiet = setTimeout(() => this.describe(), QUIET);
    }

    /** Beside each painted channel, its weight. */
    showWeights() {
      const map = this.scene.result.channel?.map;
      this.weights.forEach((line, c) => {
        line.hidden = !map;
        if (!map) return;
        line.lastChild.textContent = cbam.number(map[c]);
        line.style.setProperty("--share", map[c]);
      });
    }

    /** Say in words what the gates answer, once the hand rests. */
    describe() {
      for (const panel of this.panels()) panel.labelAll();
      const words = cbam.inWords(this.scene);
      if (this.summary.textContent !== words) this.summary.textContent = words;
    }

    // ---- what is on the page ----------------------------------------------------------------

    lay() {
      this.dock = new cbam.Dock(this.shape);
      this.tasks = new cbam.Tasks();
      const summary = { class: "paint-unseen", role: "status", text: cbam.inWords(this.scene) };
      this.summary = el("p", summary);
      this.spoken = el("p", { class: "paint-unseen", "aria-live": "polite" });
      this.flow = new cbam.Flow(() => this.scene, this.gateTools());
      const bench = el("div", { class: "paint-bench" }, this.paintingTools(), this.shareTools());
      const parts = [this.tasks.element, this.moduleTools(), legend(), this.flow.element];
      const main = el("div", { class: "paint-main" }, ...parts);
      const desk = el("div", { class: "paint-desk" }, bench, main);
      this.desk = el("div", { class: "paint" }, desk, this.dock.element, this.summary, this.spoken);
      this.root.append(this.desk); // beside the text for paper, which the style sheet hides
      this.root.classList.add("explorer-live");
      this.palette.read(this.root);
    }

    panels() {
      return [...this.sheets, ...this.flow.panels];
    }

    panelsOf(name) {
      return this.panels().filter((panel) => panel.name === name);
    }

    rebuild() {
      const focused = document.activeElement;
      this.letGo();
      this.flow.build(); // which takes the controls out and puts them in again
      if (this.desk.contains(focused)) focused.focus({ preventScroll: true });
      this.update();
    }

    paintingTools() {
      const [, rows, columns] = this.shape;
      const say = (index, value) =>
        `${cbam.whereInWords("F", index, this.scene)}: ${cbam.number(value)}`;
      this.weights = [];
      this.sheets = Array.from({ length: this.shape[0] }, (_, channel) => {
        const at = { name: "F", offset: channel * rows * columns, rows, columns };
        const title = `Paint channel ${channel}`;
        const caption = `channel ${channel}`;
        return new cbam.Sheet({ ...at, kind: "feature", title, caption, say });
      });
      const sheets = this.sheets.map((sheet) => {
        sheet.element.classList.add("paint-canvas");
        const symbol = el("span", { html: "<var>M</var><sub>c</sub>" });
        const line = el("p", { class: "paint-weight" }, symbol, el("span"));
        this.weights.push(line);
        sheet.element.append(line);
        return sheet.element;
      });
      return el(
        "section",
        { class: "paint-tools", "aria-label": "Paint" },
        el("h3", { html: "<var>F</var>: paint here" }),
        this.examples(),
        el("div", { class: "paint-sheets paint-two" }, ...sheets),
        this.brushTools(),
      );
    }

    examples() {
      const select = el("select", { id: "paint-example" });
      select.append(el("option", { value: "", text: "your own", disabled: true }));
      for (const { name, title } of this.data.examples) {
        select.append(el("option", { value: name, text: title }));
      }
      select.value = this.shared ? "" : this.data.examples[0].name;
      select.addEventListener("change", () => this.start(select.value));
      this.chosen = select;
      return el("p", { class: "paint-field" },
        el("label", { for: "paint-example", text: "Start from" }), select);
    }

    brushTools() {
      const slider = el("input", {
        ...{ type: "range", id: "paint-strength", min: -1, max: 1, step: 0.1, value: 1 },
      });
      slider.addEventListener("input", () => this.setStrength(Number(slider.value)));
      this.slider = slider;
      this.strength = el("output", { for: "paint-strength", text: cbam.number(1, 1) });
      this.buttons = {
        large: this.button("Large brush", () => this.toggle("large"), "3 × 3 places"),
        erase: this.button("Erase", () => this.toggle("erase"), "paint zeros"),
        undo: this.button("Undo", () => this.undo(), "Ctrl+Z"),
        clear: this.button("Clear", () => this.start("blank"), "all zeros"),
      };
      for (const name of ["large", "erase"]) this.buttons[name].setAttribute("aria-pressed", false);
      return el(
        "div",
        { class: "paint-brush" },
        el("p", { class: "paint-field" },
          el("label", { for: "paint-strength", text: "Strength" }), slider, this.strength),
        el("div", { class: "paint-buttons" }, ...Object.values(this.buttons)),
        el("p", { class: "paint-hint", text: HINT }),
      );
    }

    button(text, act, title) {
      const button = el("button", { type: "button", text, title });
      button.addEventListener("click", act);
      return button;
    }

    moduleTools() {
      return el(
        "section",
        { class: "paint-tools paint-module", "aria-label": "The module" },
        this.select("order", "Order", ORDERS),
        this.select("weights", "Weights", WEIGHTS),
      );
    }

    select(key, label, values) {
      const id = `paint-${key}`;
      const select = el("select", { id });
      for (const [value, text] of Object.entries(values)) {
        select.append(el("option", { value, text }));
      }
      select.value = this.settings[key];
      select.addEventListener("change", () => this.set(key, select.value));
      return el("p", { class: "paint-field" }, el("label", { for: id, text: label }), select);
    }

    /** The controls that stand in the head of each gate: its size, and whether it is on. */
    gateTools() {
      const layers = this.data.layers.made;
      const names = (sizes) => Object.fromEntries(Object.keys(sizes).map((n) => [n, n]));
      const set = (key) => (value) => this.set(key, Number(value));
      const r = this.choice("<var>r</var>", "reduction", names(layers), set("reduction"));
      const k = this.choice("<var>k</var>", "kernel", names(layers[1]), set("kernel"));
      r.title = "reduction: the MLP has C / r hidden units";
      k.title = "kernel: the convolution sees k × k places";
      return {
        channel: [r, this.switch("channel", "openChannel")],
        spatial: [k, this.switch("spatial", "openSpatial")],
      };
    }

    choice(label, key, values, act) {
      const set = el("fieldset", { class: "paint-choice" }, el("legend", { html: label }));
      for (const [value, text] of Object.entries(values)) {
        const id = `paint-${key}-${value}`;
        const checked = String(this.settings[key]) === value;
        const input = el("input", { type: "radio", name: `paint-${key}`, id, value, checked });
        input.addEventListener("change", () => act(value));
        set.append(input, el("label", { for: id, text }));
      }
      return set;
    }

    switch(gate, key) {
      const id = `paint-gate-${gate}`;
      const input = el("input", { type: "checkbox", id, checked: !this.settings[key] });
      input.addEventListener("change", () => this.set(key, !input.checked));
      return el("label", { class: "paint-switch", for: id }, input, " gate on");
    }

    shareTools() {
      const told = el("span", { class: "paint-told", role: "status" });
      const copy = async (text, words) => {
        told.textContent = (await cbam.copy(text)) ? words : "This browser does not let me copy.";
      };
      const link = this.button("Copy link", () => {
        history.replaceState(null, "", `#${cbam.toHash(this.features, this.settings)}`);
        copy(location.href, "The link to this painting is copied.");
      });
      const program = this.button("Copy as PyTorch", () => {
        const { features, shape, layer, settings } = this;
        const text = cbam.toPyTorch(features, shape, layer, settings);
        copy(text, "A program with these very numbers is copied.");
      });
      return el("div", { class: "paint-buttons" }, link, program, told);
    }

    // ---- painting ---------------------------------------------------------------------------

    /** Remember the painting as it is, to come back to it. */
    remember() {
      this.past.push(this.features.slice());
      if (this.past.length > MOST_UNDO) this.past.shift();
    }

    undo() {
      if (!this.past.length) return;
      this.features = this.past.pop();
      this.chosen.value = "";
      this.update();
    }

    /** A second finger wants to zoom: what the first one painted on its way goes back. */
    takeBack() {
      if (this.stroke != null) this.undo();
      this.stroke = null;
    }

    /** Begin with one of the examples. */
    start(name) {
      const example = this.data.examples.find((one) => one.name === name);
      this.remember();
      this.lens = null; // back to where the map is largest
      this.features = Float32Array.from(example.features);
      this.chosen.value = name;
      this.update();
    }

    /** Paint a place, and those around it with the large brush. */
    paint(sheet, place) {
      const { strength, large, erase } = this.brush;
      const reach = large ? 1 : 0;
      const [row, column] = [Math.floor(place / sheet.columns), place % sheet.columns];
      for (let i = Math.max(0, row - reach); i <= Math.min(sheet.rows - 1, row + reach); i++) {
        for (let j = Math.max(0, column - reach); j <= column + reach; j++) {
          if (j >= sheet.columns) continue;
          this.features[sheet.offset + i * sheet.columns + j] = erase ? 0 : strength;
        }
      }
      this.chosen.value = "";
      this.later();
    }

    setStrength(strength) {
      this.brush.strength = Math.max(-1, Math.min(1, Math.round(strength * 10) / 10));
      this.slider.value = this.brush.strength;
      this.strength.textContent = cbam.number(this.brush.strength, 1);
      if (this.brush.erase) this.toggle("erase");
    }

    toggle(name) {
      this.brush[name] = !this.brush[name];
      this.buttons[name].setAttribute("aria-pressed", this.brush[name]);
    }

    set(key, value) {
      this.settings[key] = value;
      this.compute();
      this.rebuild();
    }

    readHash() {
      const read = cbam.fromHash(location.hash, this.features.length, this.data.layers);
      if (!read) return false;
      this.shared = true;
      this.features = read.features;
      Object.assign(this.settings, read.settings);
      return true;
    }

    // ---- the reader's hand ------------------------------------------------------------------

    listen() {
      const { desk } = this;
      const cellAt = (event) => event.target.closest?.(".paint-cell");
      const paints = (cell) => cell && this.sheets.includes(cell.panel);
      desk.addEventListener("pointerdown", (event) => {
        const cell = cellAt(event);
        this.byTouch = event.pointerType !== "mouse";
        if (!event.isPrimary) return this.takeBack();
        if (!paints(cell) || event.button !== 0) return;
        event.preventDefault();
        cell.releasePointerCapture?.(event.pointerId);
        this.letGo();
        this.remember();
        this.stroke = event.pointerId;
        this.last = [event.clientX, event.clientY];
        this.paint(cell.panel, cell.place);
        cell.focus({ preventScroll: true });
      });
      addEventListener("pointermove", (event) => {
        if (this.stroke !== event.pointerId) return;
        for (const [x, y] of this.way(event.clientX, event.clientY)) {
          const cell = document.elementFromPoint(x, y)?.closest(".paint-cell");
          if (paints(cell)) this.paint(cell.panel, cell.place);
        }
      });
      for (const end of ["pointerup", "pointercancel"]) {
        addEventListener(end, (event) => {
          if (this.stroke === event.pointerId) this.stroke = null;
        });
      }
      desk.addEventListener("pointerover", (event) => {
        if (event.pointerType !== "mouse" || this.kept || this.stroke != null) return;
        const cell = cellAt(event);
        if (cell) this.trace(cell);
        else if (this.traced && !this.dock.element.contains(event.target)) this.letGo();
      });
      desk.addEventListener("click", (event) => {
        const cell = cellAt(event);
        if (!cell) return void (event.target.closest(".paint-main") && this.letGo());
        if (paints(cell)) return;
        const again = this.kept && this.traced === cell;
        this.letGo();
        if (again) return;
        this.kept = true;
        this.trace(cell);
        if (!this.byTouch) return;
        cell.scrollIntoView({ block: "nearest" }); // the foot has grown
        this.speak();
      });
      desk.addEventListener("focusin", (event) => {
        const cell = cellAt(event);
        if (!cell || !cell.matches(":focus-visible") || this.stroke != null) return;
        this.kept = false;
        this.trace(cell);
        this.speak();
      });
      desk.addEventListener("focusout", (event) => {
        if (cellAt(event) === this.traced && !this.kept && !event.relatedTarget) this.letGo();
      });
      desk.addEventListener("keydown", (event) => this.onKey(event, cellAt(event), paints));
      const mode = new MutationObserver(() => this.recolour());
      mode.observe(document.documentElement, { attributeFilter: ["data-theme"] });
      addEventListener("hashchange", () => {
        if (this.readHash()) location.reload(); // every control starts afresh
      });
    }

    /** Points from where the stroke was to where it is, so that a quick hand leaves no gaps. */
    way(x, y) {
      const [startX, startY] = this.last;
      const steps = Math.max(1, Math.ceil(Math.hypot(x - startX, y - startY) / STRIDE));
      this.last = [x, y];
      return Array.from({ length: steps }, (_, i) => {
        const share = (i + 1) / steps;
        return [startX + share * (x - startX), startY + share * (y - startY)];
      });
    }

    onKey(event, cell, paints) {
      if (event.key === "Escape") return this.letGo();
      const chord = event.ctrlKey || event.metaKey;
      if (chord && event.key.toLowerCase() === "z") {
        event.preventDefault();
        return this.undo();
      }
      if (!paints(cell) || chord) return undefined;
      const step = { "+": 0.1, "=": 0.1, "-": -0.1, "−": -0.1 }[event.key];
      if (step) return this.setStrength(this.brush.strength + step);
      const erases = event.key === "Delete" || event.key === "Backspace";
      if (!erases && event.key !== " " && event.key !== "Enter") return undefined;
      event.preventDefault();
      this.remember();
      const { erase } = this.brush;
      this.brush.erase = erase || erases;
      this.paint(cell.panel, cell.place);
      this.brush.erase = erase;
      this.update();
      cell.panel.label(cell.place);
      return this.speak();
    }

    recolour() {
      this.palette.read(this.root);
      this.update();
    }

    // ---- tracing ----------------------------------------------------------------------------

    /** Show where a cell's number is from. */
    trace(cell) {
      this.clearRings();
      this.traced = cell;
      const { panel, place } = cell;
      const index = panel.offset + place;
      if (LENS.has(panel.name) && this.lens !== index) {
        this.lens = index;
        this.scene.lens = index;
        this.flow.showLens(this.palette);
      }
      const found = cbam.trace(panel.name, index, this.scene);
      cell.classList.add("paint-traced");
      for (const mark of found.marks) this.ring(mark);
      for (const [side, layer, from, to] of found.edges) {
        const edge = [side, layer, from, to].join(" ");
        this.flow.element.querySelector(`[data-edge="${edge}"]`)?.classList.add("paint-lit");
      }
      this.flow.element.classList.toggle("paint-tracing", found.edges.length > 0);
      this.dock.say(found, cbam.whereInWords(panel.name, index, this.scene));
    }

    ring({ name, index, height, width, kind }) {
      for (const panel of this.panelsOf(name)) {
        const place = index - panel.offset;
        if (place < 0 || place >= panel.size) continue;
        panel.ring(kind, Math.floor(place / panel.columns), place % panel.columns, height, width);
      }
    }

    clearRings() {
      this.traced?.classList.remove("paint-traced");
      for (const panel of this.panels()) panel.clearRings();
      for (const line of this.flow.element.querySelectorAll(".paint-lit")) {
        line.classList.remove("paint-lit");
      }
      this.flow.element.classList.remove("paint-tracing");
    }

    letGo() {
      if (!this.traced) return;
      this.clearRings();
      this.traced = null;
      this.kept = false;
      this.dock.rest(this.byTouch);
    }

    /** Let a screen reader read the trace. */
    speak() {
      this.spoken.textContent = this.dock.words();
    }
  }

  const root = document.getElementById("explorer-paint");
  if (root && cbam.paint) cbam.painter = new Painter(root, cbam.paint);
}
