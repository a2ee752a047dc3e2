/**
 * The nine blocks: the maps of their gates, a switch for each, and one block in detail.
 */
"use strict";

var cbam = globalThis.cbam || {}; // var: every script of a page may begin with this line
globalThis.cbam = cbam;

{
  const KINDS = { spatial: "s", channel: "c" }; // M_s, M_c

  /** M with its index, as an element. */
  const symbol = (kind) =>
    cbam.element(
      "span",
      { class: "look-symbol" },
      cbam.element("i", { text: "M" }),
      cbam.element("sub", { text: KINDS[kind] }),
    );

  const rangeText = (map) => {
    const [low, high] = cbam.rangeOf(map).map((value) => cbam.number(value));
    return low === high ? low : `${low}–${high}`;
  };

  const largestChange = (map, before) =>
    map.reduce((most, value, i) => Math.max(most, Math.abs(value - before[i])), 0);

  /** The stage of a block and its shape, in words. */
  const shapeText = ([channels, height, width]) =>
    `${channels} channels, ${height} × ${width} places`;

  /** A block in small: its two maps with their switches. */
  function card(app, i, tip) {
    const name = `block ${i + 1}`;
    const maps = {};
    const ranges = {};
    const switches = {};
    for (const kind of Object.keys(KINDS)) {
      maps[kind] = cbam.element("canvas", { class: `look-pixels look-${kind}`, role: "img" });
      ranges[kind] = cbam.element("span", { class: "look-range" });
      switches[kind] = cbam.element("input", {
        type: "checkbox",
        role: "switch",
        "aria-label": `${kind} gate of ${name}`,
        on: { change: (event) => app.setGates((gates) => (gates[i][kind] = event.target.checked)) },
      });
      maps[kind].addEventListener("pointermove", (event) => {
        const box = maps[kind].getBoundingClientRect();
        const across = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 0.999);
        const down = Math.min(Math.max((event.clientY - box.top) / box.height, 0), 0.999);
        tip.show(event, told(kind, across, down));
      });
      maps[kind].addEventListener("pointerleave", tip.hide);
    }

    function told(kind, across, down) {
      const { map } = app.run.blocks[i][kind];
      const before = app.base.blocks[i][kind].map;
      const [, height, width] = app.network.blocks[i].shape;
      const [row, column] = [Math.floor(down * height), Math.floor(across * width)];
      const at = kind === "spatial" ? row * width + column : Math.floor(across * map.length);
      const place = `row ${row + 1}, column ${column + 1}`;
      const where = kind === "spatial" ? place : `channel ${at + 1}`;
      const was = map[at] === before[at] ? "" : ` (was ${cbam.number(before[at])})`;
      return `${where}: ${cbam.number(map[at])}${was}`;
    }

    const title = cbam.element("button", {
      type: "button",
      class: "look-card-name",
      "aria-label": `${name}, show it in detail`,
      text: `Block ${i + 1}`,
      on: { click: () => app.pick(i) },
    });
    const control = (kind) =>
      cbam.element("label", { class: "look-switch" }, switches[kind], symbol(kind), ranges[kind]);
    const element = cbam.element(
      "div",
      {
        class: "look-card",
        role: "group",
        "aria-label": name,
        on: { pointerdown: () => app.pick(i) },
      },
      title,
      maps.spatial,
      maps.channel,
      control("spatial"),
      control("channel"),
    );

    function draw(scale) {
      const steps = app.run.blocks[i];
      element.classList.toggle("look-picked", app.state.block === i);
      title.setAttribute("aria-pressed", app.state.block === i);
      for (const kind of Object.keys(KINDS)) {
        const { map } = steps[kind];
        const most = largestChange(map, app.base.blocks[i][kind].map);
        const on = app.state.gates[i][kind];
        switches[kind].checked = on;
        ranges[kind].textContent = rangeText(map);
        ranges[kind].classList.toggle("look-changed", most >= 0.005);
        const off = on ? "" : ", switched off";
        maps[kind].setAttribute(
          "aria-label",
          `${kind} map of ${name}${off}: ${rangeText(map)}; changed by up to ${most.toFixed(2)}`,
        );
      }
      const { spatial, channel } = steps;
      const under = app.state.under ? app.state.picture.pixels : null;
      cbam.drawMap(maps.spatial, spatial.map, app.limits(spatial.map), scale, under);
      cbam.drawStrip(maps.channel, channel.map, app.limits(channel.map), scale);
    }
    return { element, draw };
  }

  /** A number that follows the pointer. */
  function tooltip() {
    const element = cbam.element("div", { class: "look-tip", "aria-hidden": "true", hidden: true });
    return {
      element,
      show(event, text) {
        element.textContent = text;
        element.hidden = false;
        const wide = document.documentElement.clientWidth - element.offsetWidth - 8;
        element.style.left = `${Math.max(8, Math.min(event.clientX + 12, wide))}px`;
        element.style.top = `${event.clientY - element.offsetHeight - 12}px`;
      },
      hide() {
        element.hidden = true;
      },
    };
  }

  /** Radio buttons on a line. */
  function choices(name, legend, options, chosen, choose) {
    return cbam.element(
      "fieldset",
      { class: "look-choices" },
      cbam.element("legend", { text: legend }),
      ...Object.entries(options).map(([value, text]) =>
        cbam.element(
          "label",
          { class: "look-choice" },
          cbam.element("input", {
            type: "radio",
            name,
            value,
            checked: value === chosen,
            on: { change: () => choose(value) },
          }),
          text,
        ),
      ),
    );
  }

  /** Buttons and a choice for all gates. */
  function gateTools(app, census) {
    const button = (text, change) =>
      cbam.element("button", {
        type: "button",
        text,
        on: { click: () => app.setGates((gates) => gates.forEach(change)) },
      });
    return cbam.element(
      "div",
      { class: "look-toolbar" },
      cbam.element("h2", { class: "look-title", text: "Switch gates off" }),
      cbam.element(
        "div",
        { class: "look-row", role: "group", "aria-label": "All gates" },
        button("All gates on", (gate) => Object.assign(gate, { spatial: true, channel: true })),
        button("Spatial gates off", (gate) => (gate.spatial = false)),
        button("Channel gates off", (gate) => (gate.channel = false)),
      ),
      choices(
        "look-instead",
        "A gate that is off says",
        { open: "1 everywhere", mean: "its mean map" },
        app.state.instead,
        (instead) => app.change({ instead }),
      ),
      cbam.element("p", {
        class: "look-hint",
        text:
          "1 lets all pass, so that what follows gets louder numbers than it was trained for. " +
          `The mean map, over ${app.accuracy.of} test photographs, is as quiet as the gate was: ` +
          "it takes away only the answer to this one picture.",
      }),
      census,
    );
  }

  /** How the maps are drawn: `element`, and `draw()`. */
  function mapTools(app) {
    const under = cbam.element("input", {
      type: "checkbox",
      checked: app.state.under,
      on: { change: (event) => app.change({ under: event.target.checked }) },
    });
    const note = cbam.element("span", { class: "look-hint", text: NOTE });
    const mixed = cbam.element("span", { class: "look-hint", text: MIXED });
    const ends = [cbam.element("span"), cbam.element("span")];
    const element = cbam.element(
      "div",
      { class: "look-toolbar" },
      cbam.element(
        "h2",
        { class: "look-title" },
        "What the gates say: ",
        symbol("spatial"),
        " over the places, and ",
        symbol("channel"),
        " as a strip of channels",
      ),
      choices(
        "look-scale",
        "Colours run",
        { common: "from 0 to 1", own: "from each map’s lowest to its highest" },
        app.state.scale,
        (scale) => app.change({ scale }),
      ),
      cbam.element(
        "div",
        { class: "look-legend" },
        ends[0],
        cbam.element("span", { class: "look-ramp", "aria-hidden": "true" }),
        ends[1],
        note,
        cbam.element("label", { class: "look-choice" }, under, "the photograph underneath"),
        mixed,
      ),
    );
    function draw() {
      const own = app.state.scale === "own";
      note.hidden = !own;
      mixed.hidden = !app.state.under;
      ends[0].textContent = own ? "its lowest" : "0, shut";
      ends[1].textContent = own ? "its highest" : "1, open";
    }
    return { element, draw };
  }

  const NOTE = "A small difference now looks as large as a great one: read the numbers.";
  const MIXED = "Its light and dark now change the colours: its outlines are not the gate’s.";
  const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  /** A large map whose places can be asked, by pointer or keys. */
  function largeMap(app) {
    const { stage, picture, marks } = cbam.pictureStage({
      class: "look-canvas",
      role: "slider",
      "aria-label": "Place of the spatial map",
    });
    const side = () => app.network.blocks[app.state.block].shape[1];
    const move = (row, column) => {
      const top = side() - 1;
      const fit = (n) => Math.min(Math.max(n, 0), top);
      app.state.place = [fit(row) / side(), fit(column) / side()];
      app.drawDetail();
    };
    const at = () => app.state.place.map((part) => Math.floor(part * side() + 1e-9));
    const point = (event) => {
      const box = stage.getBoundingClientRect();
      const part = (position, start, length) => Math.floor(((position - start) / length) * side());
      move(part(event.clientY, box.top, box.height), part(event.clientX, box.left, box.width));
    };
    stage.addEventListener("pointermove", point);
    stage.addEventListener("pointerdown", point);
    stage.addEventListener("keydown", (event) => {
      if (!(event.key in ARROWS)) return;
      event.preventDefault();
      const [row, column] = at();
      const [down, right] = ARROWS[event.key];
      move(row + down, column + right);
    });
    function draw(scale) {
      const { map } = app.run.blocks[app.state.block].spatial;
      const under = app.state.under ? app.state.picture.pixels : null;
      cbam.drawMap(picture, map, app.limits(map), scale, under);
      const [row, column] = at();
      const size = (cbam.SIDE / side()) * cbam.CELL;
      const context = marks.getContext("2d");
      context.clearRect(0, 0, marks.width, marks.height);
      for (const [width, colour] of [[5, "#fff"], [2.5, "#1a2330"]]) {
        context.lineWidth = width;
        context.strokeStyle = colour;
        context.strokeRect(column * size, row * size, size, size);
      }
      const place = row * side() + column;
      stage.setAttribute("aria-valuemin", 1);
      stage.setAttribute("aria-valuemax", map.length);
      stage.setAttribute("aria-valuenow", place + 1);
      const text = `row ${row + 1}, column ${column + 1}: ${cbam.number(map[place])}`;
      stage.setAttribute("aria-valuetext", text);
      return { row, column, place };
    }
    return { element: stage, draw };
  }

  /** The channel map as bars, which can be asked, by pointer or keys. */
  function bars(app) {
    const box = cbam.element("div", {
      class: "look-bars",
      tabindex: 0,
      role: "slider",
      "aria-label": "Channel of the channel map",
      "aria-valuemin": 1,
    });
    const count = () => app.network.blocks[app.state.block].shape[0];
    const move = (channel) => {
      app.state.channel = Math.min(Math.max(channel, 0), count() - 1);
      app.drawDetail();
    };
    const point = (event) => {
      const { left, width } = box.getBoundingClientRect();
      move(Math.floor(((event.clientX - left) / width) * count()));
    };
    box.addEventListener("pointermove", point);
    box.addEventListener("pointerdown", point);
    box.addEventListener("keydown", (event) => {
      const ends = { Home: 0, End: count() - 1 };
      if (event.key in ends) move(ends[event.key]);
      else if (event.key in ARROWS) {
        const [down, right] = ARROWS[event.key];
        move(app.state.channel + right - down);
      } else return;
      event.preventDefault();
    });
    function draw() {
      const { map } = app.run.blocks[app.state.block].channel;
      const before = app.base.blocks[app.state.block].channel.map;
      const channel = Math.min(app.state.channel, map.length - 1);
      box.classList.toggle("look-touched", app.run !== app.base);
      while (box.children.length > map.length) box.lastChild.remove();
      while (box.children.length < map.length) box.append(cbam.element("i"));
      [...box.children].forEach((bar, i) => {
        bar.style.setProperty("--value", map[i]);
        bar.style.setProperty("--before", before[i]);
        bar.className = i === channel ? "look-asked" : "";
      });
      box.setAttribute("aria-valuemax", map.length);
      box.setAttribute("aria-valuenow", channel + 1);
      box.setAttribute("aria-valuetext", `channel ${channel + 1}: ${cbam.number(map[channel])}`);
      return channel;
    }
    return { element: box, draw };
  }

  /** Rows of a table of numbers: [[heading, cell, ...], ...], the first one of headings. */
  function fill(table, caption, [headings, ...rows]) {
    const line = (cells, tag) =>
      cbam.element(
        "tr",
        {},
        ...cells.map((cell, i) =>
          cbam.element(
            i && tag === "td" ? "td" : "th",
            { scope: tag === "th" ? "col" : i ? null : "row" },
            ...[cell].flat(),
          ),
        ),
      );
    table.replaceChildren(
      cbam.element("caption", { text: caption }),
      cbam.element("thead", {}, line(headings, "th")),
      cbam.element("tbody", {}, ...rows.map((row) => line(row, "td"))),
    );
  }

  const INSTEAD = { open: "switched off: 1", mean: "switched off: its mean" };

  /** What a gate says here, what it would say if it is off, and what it said before. */
  function lastRows(app, kind, at) {
    const i = app.state.block;
    const { map, logits } = app.run.blocks[i][kind];
    const before = app.base.blocks[i][kind].map[at];
    const on = app.state.gates[i][kind];
    const rows = [[on ? " = σ(logit)" : `, ${INSTEAD[app.state.instead]}`, map[at]]];
    if (!on) rows.push([" that it would say", cbam.sigmoid(logits[at])]);
    if (app.run !== app.base) rows.push([" in the untouched run", before]);
    return rows.map(([text, value]) => [[symbol(kind), text], "", cbam.number(value, 3)]);
  }

  /** One block in detail: `element`, and `draw(scale)`. */
  function detail(app) {
    const map = largeMap(app);
    const channels = bars(app);
    const title = cbam.element("h2", { class: "look-title" });
    const placeTable = cbam.element("table", { class: "look-steps" });
    const channelTable = cbam.element("table", { class: "look-steps" });
    const element = cbam.element(
      "section",
      { class: "look-detail", "aria-label": "One block in detail" },
      title,
      cbam.element("div", { class: "look-pair" }, map.element, placeTable),
      cbam.element(
        "div",
        { class: "look-pair look-pair-channel" },
        cbam.element(
          "div",
          { class: "look-chart" },
          cbam.element("span", { class: "look-axis", "aria-hidden": "true" }),
          channels.element,
          cbam.element("p", {
            class: "look-hint",
            text: "A bar for each channel, from 0 to 1. A line across it: the untouched run.",
          }),
        ),
        channelTable,
      ),
      cbam.element("p", {
        class: "look-hint",
        text: "Move over the map or the bars, tap, or use the arrow keys.",
      }),
    );

    function drawPlace(scale) {
      const { spatial } = app.run.blocks[app.state.block];
      const { row, column, place } = map.draw(scale);
      fill(placeTable, `Spatial gate, row ${row + 1}, column ${column + 1}`, [
        ["of the features F′ there", "", "number"],
        ["maximum over the channels", "", cbam.number(spatial.max[place], 3)],
        ["mean over the channels", "", cbam.number(spatial.avg[place], 3)],
        ["logit: 7 × 7, BatchNorm", "", cbam.number(spatial.logits[place], 3)],
        ...lastRows(app, "spatial", place),
      ]);
    }

    function drawChannel() {
      const { channel: steps } = app.run.blocks[app.state.block];
      const at = channels.draw();
      const three = (value) => cbam.number(value, 3);
      fill(channelTable, `Channel gate, channel ${at + 1} of ${steps.map.length}`, [
        ["of the channel’s places", "pooled", "vote"],
        ["mean", three(steps.avg[at]), three(steps.votesAvg[at])],
        ["maximum", three(steps.max[at]), three(steps.votesMax[at])],
        ["logit: both votes", "", three(steps.logits[at])],
        ...lastRows(app, "channel", at),
      ]);
    }

    function draw(scale) {
      const { shape } = app.network.blocks[app.state.block];
      title.textContent = `Block ${app.state.block + 1}: ${shapeText(shape)}`;
      drawPlace(scale);
      drawChannel();
    }
    return { element, draw };
  }

  /**
   * The nine blocks and one in detail: `elements`, `draw()` and `drawDetail()`. `census` is an
   * element for the gates' tools.
   */
  cbam.lookBlocks = function (app, census) {
    const tip = tooltip();
    const cards = app.network.blocks.map((_, i) => card(app, i, tip));
    const stages = [...new Set(app.network.blocks.map(({ shape }) => shape[0]))].map((width) => {
      const members = cards.filter((_, i) => app.network.blocks[i].shape[0] === width);
      const { shape } = app.network.blocks.find((block) => block.shape[0] === width);
      return cbam.element(
        "div",
        { class: "look-stage" },
        cbam.element("p", { class: "look-stage-name", text: shapeText(shape) }),
        cbam.element("div", { class: "look-cards" }, ...members.map(({ element }) => element)),
      );
    });
    const maps = mapTools(app);
    const large = detail(app);
    const element = cbam.element(
      "section",
      { class: "look-blocks", "aria-label": "The gates of the nine blocks" },
      gateTools(app, census),
      maps.element,
      ...stages,
      tip.element,
    );
    const scaleOf = () => cbam.colourScale(element);
    return {
      elements: [element, large.element],
      draw() {
        const scale = scaleOf();
        maps.draw();
        cards.forEach((one) => one.draw(scale));
        large.draw(scale);
      },
      drawDetail: () => large.draw(scaleOf()),
    };
  };
}
