/**
 * What the explorer draws tensors with: colours, sheets of places, and rows of numbers.
 *
 * Three kinds of value have a colour each, which the style sheet names: `feature`, what a network
 * computes; `evidence`, weights, votes and logits; `map`, what a gate answers. Below zero all are
 * of one other colour, and a sheet marks them with a dash besides.
 */
"use strict";

var cbam = globalThis.cbam || {};
globalThis.cbam = cbam;

{
  const STEPS = 64; // shades from 0 to the strongest
  const PIXELS = 128; // a side of a sheet of 8 x 8; one of fewer cells has larger ones
  const KINDS = { feature: "--paint-feature", evidence: "--paint-good", map: "--paint-map" };

  /** The red, green and blue of any colour that a style sheet may name. */
  function parts(colour) {
    const brush = document.createElement("canvas").getContext("2d");
    brush.fillStyle = colour.trim();
    return [1, 3, 5].map((start) => parseInt(brush.fillStyle.slice(start, start + 2), 16));
  }

  const mix = (from, to, share) =>
    from.map((start, i) => Math.round(start + (to[i] - start) * share));

  /** Black or white, whichever is read better on a colour (WCAG's relative luminance). */
  function textOn(colour) {
    const light = colour.map((part) => {
      const s = part / 255;
      return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2] > 0.179 ? "#000" : "#fff";
  }

  /** The colours of values, as the style sheet and the colour mode have them. */
  cbam.Palette = class {
    /** Read the colours that `element` has; again after a change of the mode. */
    read(element) {
      const style = getComputedStyle(element);
      const zero = parts(style.getPropertyValue("--paint-zero"));
      const below = parts(style.getPropertyValue("--paint-below"));
      this.zero = `rgb(${zero})`;
      this.shades = {};
      for (const [kind, name] of Object.entries(KINDS)) {
        const above = parts(style.getPropertyValue(name));
        this.shades[kind] = Array.from({ length: 2 * STEPS + 1 }, (_, i) => {
          const share = i / STEPS - 1;
          const colour = mix(zero, share < 0 ? below : above, Math.abs(share));
          return { fill: `rgb(${colour})`, text: textOn(colour) };
        });
      }
      return this;
    }

    /** The ground, and the text on it, of a value whose strongest is `limit`. */
    shade(kind, value, limit) {
      const share = Math.max(-1, Math.min(1, value / limit));
      return this.shades[kind][Math.round((share + 1) * STEPS)];
    }
  };

  /**
   * Cells that can be pointed at and reached by arrow keys: a part of one tensor of a name.
   *
   * `name` the tensor's; `offset` the number of the first cell in it; `rows` and `columns`;
   * `kind` and `limit` of its colours; `title` in words, for those who cannot see it; `say`, a
   * function of a number in the tensor and its value that says both in words; `numbered`, true for
   * a sheet with its numbers written in.
   */
  class Panel {
    constructor(options) {
      Object.assign(this, { offset: 0, rows: 1, limit: 1 }, options);
      this.size = this.rows * this.columns;
      this.values = new Float32Array(this.size);
      this.cells = [];
      this.cursor = 0;
      this.grid = this.makeGrid();
      this.rings = [];
    }

    makeGrid() {
      const label = { role: "grid", class: "paint-grid", "aria-label": this.title };
      const grid = cbam.element("div", label);
      grid.style.setProperty("--columns", this.columns);
      for (let row = 0; row < this.rows; row++) {
        const line = cbam.element("div", { role: "row", class: "paint-line" });
        for (let column = 0; column < this.columns; column++) line.append(this.makeCell());
        grid.append(line);
      }
      grid.addEventListener("keydown", (event) => this.move(event));
      return grid;
    }

    makeCell() {
      const first = this.cells.length === 0;
      const cell = cbam.element("div", { role: "gridcell", class: "paint-cell" });
      cell.tabIndex = first ? 0 : -1;
      cell.panel = this;
      cell.place = this.cells.length;
      cell.addEventListener("focus", () => this.rest(cell.place));
      this.cells.push(cell);
      return cell;
    }

    /** Make a cell the one that the tab key reaches. */
    rest(place) {
      this.cells[this.cursor].tabIndex = -1;
      this.cells[place].tabIndex = 0;
      this.cursor = place;
      this.label(place);
    }

    /** Follow the arrow keys, and Home and End within a row. */
    move(event) {
      const { columns, rows } = this;
      const [row, column] = [Math.floor(this.cursor / columns), this.cursor % columns];
      const goal = {
        ArrowLeft: [row, column - 1],
        ArrowRight: [row, column + 1],
        ArrowUp: [row - 1, column],
        ArrowDown: [row + 1, column],
        Home: [row, 0],
        End: [row, columns - 1],
      }[event.key];
      if (!goal || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      if (goal[0] < 0 || goal[0] >= rows || goal[1] < 0 || goal[1] >= columns) return;
      const place = goal[0] * columns + goal[1];
      this.label(place);
      this.cells[place].focus();
    }

    label(place) {
      const text = this.say(this.offset + place, this.values[place]);
      this.cells[place].setAttribute("aria-label", text);
    }

    /** Say every cell's value; slow, so once the hand rests. */
    labelAll() {
      for (let place = 0; place < this.size; place++) this.label(place);
    }

    /** Write a number into its cell; what stays as it is costs the browser nothing. */
    write(place, value, palette) {
      const cell = this.cells[place];
      const text = cbam.number(value);
      const shade = palette.shade(this.kind, value, this.limit);
      if (!cell.firstChild) cell.append(text); // a frame may come to stand beside it
      else if (cell.firstChild.data !== text) cell.firstChild.data = text;
      if (cell.shade === shade) return;
      cell.shade = shade;
      cell.style.color = shade.text;
      cell.style.backgroundColor = shade.fill;
    }

    /** Draw a frame around cells; `kind` is near, far or onward. */
    ring(kind, row, column, height = 1, width = 1) {
      const ring = this.makeRing(kind);
      ring.style.left = `${(100 * column) / this.columns}%`;
      ring.style.top = `${(100 * row) / this.rows}%`;
      ring.style.width = `${(100 * width) / this.columns}%`;
      ring.style.height = `${(100 * height) / this.rows}%`;
      this.frame.append(ring);
    }

    makeRing(kind) {
      const ring = cbam.element("div", { class: `paint-ring paint-${kind}` });
      this.rings.push(ring);
      return ring;
    }

    clearRings() {
      for (const ring of this.rings) ring.remove();
      this.rings = [];
    }
  }

  /** Places drawn as coloured squares on a canvas, with a caption above and room below. */
  cbam.Sheet = class extends Panel {
    constructor(options) {
      super(options);
      this.side = Math.round(PIXELS / Math.max(this.columns, this.rows)); // of a cell
      const size = { width: this.columns * this.side, height: this.rows * this.side };
      this.canvas = cbam.element("canvas", { ...size, "aria-hidden": "true" });
      this.brush = this.canvas.getContext("2d");
      this.frame = cbam.element("div", { class: "paint-frame" }, this.canvas, this.grid);
      const caption = cbam.element("figcaption", { html: this.caption });
      this.element = cbam.element("figure", { class: "paint-sheet" }, caption, this.frame);
    }

    /** Draw the panel's part of a tensor. */
    show(tensor, palette) {
      const { brush, columns, size, offset, side } = this;
      for (let place = 0; place < size; place++) {
        const value = tensor[offset + place];
        const x = (place % columns) * side;
        const y = Math.floor(place / columns) * side;
        this.values[place] = value;
        brush.fillStyle = palette.shade(this.kind, value, this.limit).fill;
        brush.fillRect(x, y, side, side);
        if (value < -0.005 * this.limit) this.markBelow(x, y, palette, value);
        if (this.numbered) this.write(place, value, palette);
      }
    }

    markBelow(x, y, palette, value) {
      if (this.numbered) return; // the number says so
      this.brush.globalAlpha = 0.5;
      this.brush.fillStyle = palette.shade(this.kind, value, this.limit).text;
      this.brush.fillRect(x + Math.floor(this.side / 2) - 2, y + Math.floor(this.side / 2), 5, 1);
      this.brush.globalAlpha = 1;
    }
  };

  /** A row of numbers on coloured grounds. */
  cbam.Numbers = class extends Panel {
    constructor(options) {
      super(options);
      this.element = cbam.element("div", { class: "paint-numbers" }, this.grid);
    }

    /** Draw a frame around one of them: they do not touch, so the cell itself wears it. */
    ring(kind, row, column) {
      this.cells[column].append(this.makeRing(kind));
    }

    /** Write the numbers of a tensor. */
    show(tensor, palette) {
      for (let place = 0; place < this.size; place++) {
        this.values[place] = tensor[this.offset + place];
        this.write(place, this.values[place], palette);
      }
    }
  };
}
