/**
 * The photograph that the network sees: to be covered with a brush or by rectangles, by mouse,
 * finger or keys, and to have a patch slid over it.
 */
"use strict";

var cbam = globalThis.cbam || {}; // var: every script of a page may begin with this line
globalThis.cbam = cbam;

{
  const PATCH = 8;
  const STEP = 4;
  const STARTS = (cbam.SIDE - PATCH) / STEP + 1; // of the patch along an edge
  const CELLS = cbam.SIDE / STEP;
  const LEAST = 0.1; // a smaller change never gets the strongest colour
  const FALL = "213 94 0"; // orange: covering it took probability away
  const RISE = "0 114 178"; // blue: covering it gave some
  const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  const within = (value) => Math.min(Math.max(value, 0), cbam.SIDE - 1);

  /** A cover with a rectangle of it set to 1, or to 0. */
  function withRectangle(cover, [top, left], [bottom, right], value) {
    const changed = cover.slice();
    for (let row = Math.max(0, top); row <= Math.min(bottom, cbam.SIDE - 1); row++) {
      for (let column = Math.max(0, left); column <= Math.min(right, cbam.SIDE - 1); column++) {
        changed[row * cbam.SIDE + column] = value;
      }
    }
    return changed;
  }

  /** The corners of the brush's square around a place. */
  function brushAt([row, column], size) {
    const [top, left] = [row - Math.floor(size / 2), column - Math.floor(size / 2)];
    return [
      [top, left],
      [top + size - 1, left + size - 1],
    ];
  }

  const corners = (a, b) => [
    [Math.min(a[0], b[0]), Math.min(a[1], b[1])],
    [Math.max(a[0], b[0]), Math.max(a[1], b[1])],
  ];

  /** The places from `a` to `b`, so that a fast stroke has no gaps. */
  function line(a, b) {
    const steps = Math.max(Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1]), 1);
    return Array.from({ length: steps + 1 }, (_, i) =>
      a.map((start, axis) => Math.round(start + ((b[axis] - start) * i) / steps)),
    );
  }

  /** Draw where the cover ends, dark on light, so that it is seen on any photograph. */
  function drawEdges(context, cover) {
    const edge = (x1, y1, x2, y2) => {
      context.moveTo(x1 * cbam.CELL, y1 * cbam.CELL);
      context.lineTo(x2 * cbam.CELL, y2 * cbam.CELL);
    };
    const covered = (row, column) =>
      row >= 0 && column >= 0 && row < cbam.SIDE && column < cbam.SIDE
        ? cover[row * cbam.SIDE + column]
        : 0;
    context.beginPath();
    for (let row = 0; row <= cbam.SIDE; row++) {
      for (let column = 0; column <= cbam.SIDE; column++) {
        const here = covered(row, column);
        if (here !== covered(row - 1, column)) edge(column, row, column + 1, row);
        if (here !== covered(row, column - 1)) edge(column, row, column, row + 1);
      }
    }
    stroke(context, []);
  }

  function stroke(context, dash) {
    context.setLineDash([]);
    context.lineWidth = 4;
    context.strokeStyle = "rgb(255 255 255 / 85%)";
    context.stroke();
    context.setLineDash(dash);
    context.lineWidth = 2;
    context.strokeStyle = "#1a2330";
    context.stroke();
  }

  function drawBox(context, [[top, left], [bottom, right]]) {
    context.beginPath();
    const [x, y] = [left * cbam.CELL, top * cbam.CELL];
    context.rect(x, y, (right - left + 1) * cbam.CELL, (bottom - top + 1) * cbam.CELL);
    stroke(context, [6, 4]);
  }

  /** The change of a probability that gets the strongest colour. */
  const strongest = (changes) => Math.max(...changes.map(Math.abs), LEAST);

  /** Draw by how much a covered patch changed the probability: (8, 8). */
  function drawPatches(context, { changes }) {
    const most = strongest(changes);
    const size = STEP * cbam.CELL;
    context.fillStyle = "rgb(255 255 255 / 45%)";
    context.fillRect(0, 0, cbam.SIDE * cbam.CELL, cbam.SIDE * cbam.CELL);
    changes.forEach((change, i) => {
      const strength = 0.9 * (Math.abs(change) / most);
      context.fillStyle = `rgb(${change < 0 ? FALL : RISE} / ${strength})`;
      context.fillRect((i % CELLS) * size, Math.floor(i / CELLS) * size, size, size);
    });
  }

  /**
   * Slide a patch over the picture, and note the probability of a class each time.
   *
   * @param {function(Uint8Array): number} ask the probability with that cover
   * @param {Uint8Array} cover what is covered already
   * @returns {object} `count` of patches, `each(i)`, which tries one, and `changes()`: for each of
   *   8 x 8 cells, the mean change over the patches that cover it
   */
  cbam.patches = function (ask, cover) {
    const before = ask(cover);
    const sums = new Float64Array(CELLS * CELLS);
    const counts = new Uint8Array(CELLS * CELLS);
    function each(i) {
      const [row, column] = [Math.floor(i / STARTS), i % STARTS];
      const start = [row * STEP, column * STEP];
      const change =
        ask(withRectangle(cover, start, start.map((n) => n + PATCH - 1), 1)) - before;
      for (let r = row; r < row + PATCH / STEP; r++) {
        for (let c = column; c < column + PATCH / STEP; c++) {
          sums[r * CELLS + c] += change;
          counts[r * CELLS + c]++;
        }
      }
    }
    const changes = () => Array.from(sums, (sum, i) => sum / counts[i]);
    return { count: STARTS * STARTS, each, changes };
  };

  /** The controls under the photograph. */
  function tools(app, tool, undo) {
    const radio = (value, text) =>
      cbam.element(
        "label",
        { class: "look-choice" },
        cbam.element("input", {
          type: "radio",
          name: "look-tool",
          value,
          checked: tool.kind === value,
          on: { change: () => Object.assign(tool, { kind: value, anchor: null }) },
        }),
        text,
      );
    const size = cbam.element("input", {
      type: "range",
      min: 1,
      max: 16,
      value: tool.size,
      "aria-label": "Side of the brush, in pixels",
      on: {
        input: (event) => {
          tool.size = Number(event.target.value);
          number.textContent = tool.size;
        },
      },
    });
    const number = cbam.element("output", { text: tool.size });
    const erase = cbam.element("input", {
      type: "checkbox",
      on: { change: (event) => (tool.erase = event.target.checked) },
    });
    return cbam.element(
      "fieldset",
      { class: "look-tools" },
      cbam.element("legend", { text: "Cover with" }),
      radio("brush", "a brush"),
      cbam.element("label", { class: "look-size" }, size, number),
      radio("rectangle", "rectangles"),
      cbam.element("label", { class: "look-choice" }, erase, "uncover instead"),
      cbam.element("button", { type: "button", text: "Uncover all", on: { click: undo } }),
    );
  }

  /**
   * The photograph with what lies on it: `element`, `tools`, `draw()`, and `halt()`, which stops
   * the patch.
   */
  cbam.lookPhoto = function (app) {
    const tool = { kind: "brush", size: 5, erase: false, anchor: null, box: null };
    let cursor = [16, 16];
    let last = null; // where the finger was, while it is down

    const { stage, picture, marks } = cbam.pictureStage({
      class: "look-canvas look-cover",
      role: "application",
      "aria-label": "The photograph, to be covered",
      "aria-describedby": "look-keys",
    });
    const where = cbam.element("p", { class: "look-where", role: "status" });
    const keys = cbam.element("p", {
      class: "look-hint",
      id: "look-keys",
      text:
        "Draw on the photograph. With keys: arrows move, space covers, shift and arrows draw; " +
        "for a rectangle, space at two corners; delete uncovers all.",
    });

    const set = (cover) => app.change({ cover });
    const clear = () => set(new Uint8Array(cbam.SIDE * cbam.SIDE));
    const value = () => (tool.erase ? 0 : 1);

    function dab(from, to) {
      let cover = app.state.cover;
      for (const place of line(from, to)) {
        cover = withRectangle(cover, ...brushAt(place, tool.size), value());
      }
      set(cover);
    }

    function placeOf(event) {
      const box = stage.getBoundingClientRect();
      const at = (position, start, length) =>
        within(Math.floor(((position - start) / length) * cbam.SIDE));
      return [at(event.clientY, box.top, box.height), at(event.clientX, box.left, box.width)];
    }

    function commit(to) {
      set(withRectangle(app.state.cover, ...corners(tool.anchor, to), value()));
      tool.anchor = null;
    }

    function tell(here = true) {
      const [row, column] = cursor;
      if (!here) {
        where.textContent = "";
        return;
      }
      const covered = app.state.cover[row * cbam.SIDE + column] ? ", covered" : "";
      const found = app.state.patches;
      const cell = Math.floor(row / STEP) * CELLS + Math.floor(column / STEP);
      const change = found ? `: ${cbam.signed(100 * found.changes[cell], 1)} points` : "";
      where.textContent = `Row ${row + 1}, column ${column + 1}${covered}${change}.`;
    }

    /** A finger cannot hover: it asks what the patch has shown, and covers nothing then. */
    function askAt(event) {
      cursor = placeOf(event);
      tell();
      drawMarks(true);
    }

    stage.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      if (app.state.patches && event.pointerType !== "mouse") return askAt(event);
      stage.setPointerCapture(event.pointerId);
      cursor = last = placeOf(event);
      if (tool.kind === "brush") dab(last, last);
      else tool.anchor = last;
      drawMarks();
    });
    stage.addEventListener("pointermove", (event) => {
      cursor = placeOf(event);
      if (last && tool.kind === "brush") dab(last, cursor);
      if (last) last = cursor;
      tell();
      drawMarks(true);
    });
    const release = (event) => {
      if (last && tool.anchor && event.type === "pointerup") commit(cursor);
      if (last) tool.anchor = null;
      last = null;
      drawMarks();
    };
    stage.addEventListener("pointerup", release);
    stage.addEventListener("pointercancel", release);
    const leave = () => {
      tell(stage.matches(":focus-visible") || app.state.patches !== null);
      drawMarks();
    };
    for (const event of ["pointerleave", "focus", "blur"]) stage.addEventListener(event, leave);

    function press() {
      if (tool.kind === "brush") dab(cursor, cursor);
      else if (tool.anchor) commit(cursor);
      else tool.anchor = cursor;
    }

    stage.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key in ARROWS) {
        const before = cursor;
        cursor = cursor.map((n, axis) => within(n + ARROWS[event.key][axis]));
        if (event.shiftKey && tool.kind === "brush") dab(before, cursor);
      } else if (event.key === " " || event.key === "Enter") press();
      else if (event.key === "Delete" || event.key === "Backspace") clear();
      else if (event.key === "Escape") tool.anchor = null;
      else return;
      event.preventDefault();
      tell();
      drawMarks();
    });

    function drawMarks(hover = false) {
      const context = marks.getContext("2d");
      context.clearRect(0, 0, marks.width, marks.height);
      if (app.state.patches) drawPatches(context, app.state.patches);
      drawEdges(context, app.state.cover);
      if (tool.anchor) drawBox(context, corners(tool.anchor, cursor));
      else if (hover || last || stage.matches(":focus-visible")) {
        drawBox(context, tool.kind === "brush" ? brushAt(cursor, tool.size) : [cursor, cursor]);
      }
    }

    // ---- The patch that slides

    const slide = cbam.stoppable("Patches tried", words, begin);
    const found = cbam.element("p", { class: "look-found", role: "status" });

    function words() {
      const started = `Slide a patch of ${PATCH} × ${PATCH} over it`;
      return app.state.patches ? "Take the result away" : started;
    }

    function begin() {
      if (app.state.patches) return app.change({ patches: null });
      const { classes } = app.network;
      const named = cbam.named(app.run);
      const ask = (cover) => app.ask({ cover }).probabilities[named];
      const trial = cbam.patches(ask, app.state.cover);
      slide.run(trial.count, trial.each, () =>
        app.change({ patches: { named: classes[named], changes: trial.changes() } }),
      );
    }

    function tellFound() {
      const { patches } = app.state;
      if (!patches && !found.hidden) tell(stage.matches(":focus-visible")); // no points any more
      found.hidden = !patches;
      if (!patches) return;
      const [low, high] = cbam.rangeOf(patches.changes).map((end) => cbam.signed(100 * end, 1));
      const most = (100 * strongest(patches.changes)).toFixed(1);
      found.textContent =
        `What a grey patch does to “${patches.named}”: from ${low} to ${high} points. Orange: it ` +
        `takes some away; blue: it adds; the strongest colour is ${most} points. Each cell shows ` +
        "the mean over the patches that cover it; point at the photograph, or tap, for its number.";
    }

    const element = cbam.element(
      "section",
      { class: "look-photo", "aria-label": "The photograph" },
      stage,
      where,
    );
    const below = cbam.element(
      "section",
      { class: "look-below", "aria-label": "Cover a part of it" },
      tools(app, tool, clear),
      keys,
      cbam.element("div", { class: "look-row" }, slide.button, slide.progress, found),
    );
    return {
      element,
      tools: below,
      halt: slide.halt,
      draw() {
        const { picture: shown, cover } = app.state;
        cbam.drawPicture(picture, shown.pixels, cover, app.grey);
        drawMarks();
        slide.label();
        tellFound();
      },
    };
  };
}
