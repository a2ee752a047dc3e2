/** The foot of the painting page: both maps in small, and where a number is from. */
"use strict";

var cbam = globalThis.cbam || {};
globalThis.cbam = cbam;

{
  const el = cbam.element;
  const REST = {
    lost: "This link holds no whole painting, so here is an example.",
    hover: "Point at any number or square to see where it is from; click to keep the answer.",
    touch: "Tap any number or square to see where it is from.",
  };

  /** The line at the foot of the page: both maps in small, and where a number is from. */
  cbam.Dock = class {
    constructor([channels, rows, columns]) {
      const none = () => "";
      const maps = { say: none, kind: "map", title: "", caption: "", rows, columns };
      const each = { length: channels };
      this.weights = Array.from(each, () => el("span"));
      this.small = Array.from(each, (_, c) => {
        return new cbam.Sheet({ ...maps, name: "dock", offset: c * rows * columns });
      });
      for (const { canvas } of this.small) canvas.className = "paint-dock-map";
      const name = (html) => el("span", { html });
      this.names = [
        name("<var>M</var><sub>c</sub>"),
        name("<var>M</var><sub>s</sub>"),
        name("<var>M</var>"),
      ];
      this.chips = el("span", { class: "paint-dock-weights" }, ...this.weights);
      const canvases = this.small.map(({ canvas }) => canvas);
      const [what, ...where] = this.names;
      const line = [what, this.chips, ...where, ...canvases];
      this.answer = el("div", { class: "paint-answer", "aria-hidden": "true" }, ...line);
      this.text = el("p", { class: "paint-said" });
      this.element = el("div", { class: "paint-dock" }, this.answer, this.text);
      this.rest(matchMedia("(hover: none)").matches);
    }

    show({ result }, palette) {
      const [what, where, both] = [result.channel?.map, result.spatial?.map, result.map];
      [what, where, both].forEach((map, i) => {
        this.names[i].hidden = !map;
      });
      this.chips.hidden = !what;
      this.weights.forEach((chip, c) => {
        if (!what) return;
        const shade = palette.shade("map", what[c], 1);
        chip.textContent = cbam.number(what[c]);
        chip.style.backgroundColor = shade.fill;
        chip.style.color = shade.text;
      });
      this.small.forEach((sheet, c) => {
        sheet.canvas.hidden = !(both || (where && c === 0));
        if (!sheet.canvas.hidden) sheet.show(both || where, palette);
      });
    }

    say({ lead, formula, note, symbol }, where) {
      const place = where && !lead.toLowerCase().includes(where) ? ` (${where})` : "";
      const equals = symbol ? `${symbol} = ` : "";
      this.text.innerHTML =
        `<b>${lead}</b>${place}: <span class="paint-formula">${equals}${formula}</span>` +
        (note ? ` <span class="paint-note">(${note})</span>` : "");
    }

    words() {
      return this.text.textContent;
    }

    /** Say that the address had a painting that cannot be read. */
    lose() {
      this.text.textContent = REST.lost;
    }

    rest(touch) {
      this.text.textContent = touch ? REST.touch : REST.hover;
    }
  };
}
