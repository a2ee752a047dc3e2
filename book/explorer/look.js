/**
 * The page on the trained network: what is chosen, what it answers, and what has changed.
 */
"use strict";

var cbam = globalThis.cbam || {}; // var: every script of a page may begin with this line
globalThis.cbam = cbam;

/** Which class a run names. */
cbam.named = (run) => run.probabilities.indexOf(Math.max(...run.probabilities));

{
  const PLACES = cbam.SIDE * cbam.SIDE;
  const NOTHING = () => new Uint8Array(PLACES);
  const allOn = (network) => network.blocks.map(() => ({ channel: true, spatial: true }));

  const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

  /** The gates that are off, in words; "" where there are none. */
  function offInWords(gates) {
    const parts = [];
    for (const kind of ["spatial", "channel"]) {
      const off = gates.flatMap((gate, i) => (gate[kind] ? [] : [i + 1]));
      if (off.length === gates.length) parts.push(`all ${kind} gates`);
      else if (off.length) {
        const blocks = `${off.length > 1 ? "blocks" : "block"} ${off.join(", ")}`;
        parts.push(`the ${kind} ${off.length > 1 ? "gates" : "gate"} of ${blocks}`);
      }
    }
    return parts.join(" and ");
  }

  /** The ten classes with bars: `element`, and `draw()`. */
  function answerTable(app) {
    const rows = app.network.classes.map((name) => {
      const parts = {
        mark: cbam.element("span", { class: "look-true", text: "true" }),
        before: cbam.element("span", { class: "look-before" }),
        bar: cbam.element("span", { class: "look-now" }),
        number: cbam.element("td"),
        change: cbam.element("td", { class: "look-change" }),
      };
      const head = cbam.element("th", { scope: "row" }, name, " ", parts.mark);
      const track = cbam.element("span", { class: "look-track" }, parts.bar, parts.before);
      const bar = cbam.element("td", { class: "look-bar" }, track);
      return { row: cbam.element("tr", {}, head, bar, parts.number, parts.change), ...parts };
    });
    const heading = (text) => cbam.element("th", { scope: "col", text });
    const probability = cbam.element("th", { scope: "col", colspan: 2 });
    const element = cbam.element(
      "table",
      { class: "look-answer" },
      cbam.element("caption", { text: "What the network answers" }),
      cbam.element("colgroup", {}, ...rows.slice(0, 4).map(() => cbam.element("col"))),
      cbam.element(
        "thead",
        {},
        cbam.element(
          "tr",
          {},
          heading("class"),
          probability,
          heading("change"),
        ),
      ),
      cbam.element("tbody", {}, ...rows.map(({ row }) => row)),
    );
    function draw() {
      const now = app.run.probabilities;
      const before = app.base.probabilities;
      const named = cbam.named(app.run);
      const same = app.run === app.base;
      probability.textContent = same ? "probability" : "probability (line: untouched)";
      rows.forEach((parts, i) => {
        parts.row.classList.toggle("look-named", i === named);
        parts.mark.hidden = app.state.picture.label !== i;
        parts.bar.style.width = `${100 * now[i]}%`;
        parts.before.style.left = `${100 * before[i]}%`;
        parts.before.hidden = Math.abs(now[i] - before[i]) < 0.0005;
        parts.number.textContent = cbam.percent(now[i]);
        parts.change.textContent = same ? "" : cbam.signed(100 * (now[i] - before[i]), 1);
      });
    }
    return { element, draw };
  }

  /** What is seen, in words: for those who do not see it, and at the end of the page. */
  function summary(app) {
    const { classes } = app.network;
    const { picture, gates, instead, cover, block } = app.state;
    const [now, before] = [cbam.named(app.run), cbam.named(app.base)];
    const share = cbam.percent(app.run.probabilities[now]);
    const sentences = [`${picture.name}: the network says ${classes[now]}, ${share}`];
    if (picture.label !== null) sentences[0] += now === picture.label ? ", rightly" : ", wrongly";
    if (app.run !== app.base) {
      const was = cbam.percent(app.base.probabilities[before]);
      sentences[0] += ` (untouched: ${now === before ? "" : `${classes[before]}, `}${was})`;
      const off = offInWords(gates);
      const what = instead === "open" ? "1" : "the mean map";
      if (off) sentences.push(`Off, with ${what} in place: ${off}`);
      const covered = cover.reduce((sum, one) => sum + one, 0);
      if (covered) sentences.push(`${covered} of ${PLACES} places are covered`);
    }
    const range = (kind) => {
      const ends = cbam.rangeOf(app.run.blocks[block][kind].map).map((value) => cbam.number(value));
      return ends[0] === ends[1] ? `is ${ends[0]}` : `runs from ${ends.join(" to ")}`;
    };
    const [spatial, channel] = [range("spatial"), range("channel")];
    sentences.push(`In block ${block + 1}, the spatial map ${spatial}, the channel map ${channel}`);
    return `${sentences.join(". ")}.`.replace(/^./, (letter) => letter.toUpperCase());
  }

  /** A line that stays in sight: the answer, what was changed, and the way back. */
  function footer(app) {
    const answer = cbam.element("strong");
    const rest = cbam.element("span", { class: "look-hint" });
    const reset = cbam.element("button", {
      type: "button",
      text: "Undo all",
      on: {
        click: () => app.change({ cover: NOTHING(), gates: allOn(app.network) }),
      },
    });
    const element = cbam.element("div", { class: "look-footer" }, answer, rest, reset);
    function draw() {
      const { classes } = app.network;
      const named = cbam.named(app.run);
      const was = cbam.named(app.base);
      const off = app.state.gates.reduce((n, gate) => n + !gate.channel + !gate.spatial, 0);
      const covered = app.state.cover.reduce((sum, one) => sum + one, 0);
      answer.textContent = `${classes[named]} ${cbam.percent(app.run.probabilities[named])}`;
      const parts = [];
      if (off) parts.push(`${plural(off, "gate")} off`);
      if (covered) parts.push(`${plural(covered, "place")} covered`);
      const before = `${classes[was]} ${cbam.percent(app.base.probabilities[was])}`;
      rest.textContent = parts.length ? `untouched: ${before}; ${parts.join(", ")}` : "untouched";
      reset.disabled = !parts.length;
    }
    return { element, draw };
  }

  /** Ask all photographs with the gates as they are: `element` and `draw()`. */
  function census(app) {
    const count = app.photographs.length;
    let gates = null; // those that the answer is about
    const words = () => `Ask all ${count} photographs, with these gates`;
    const asking = cbam.stoppable("Photographs asked", words, start);
    const told = cbam.element("span", { role: "status" });
    const parts = [asking.button, asking.progress, told];
    const element = cbam.element("div", { class: "look-row" }, ...parts);

    function start() {
      told.textContent = "";
      gates = JSON.stringify([app.state.gates, app.state.instead]);
      let right = 0;
      const untouched = app.photographs.filter(({ label, answer }) => label === answer).length;
      const each = (i) => {
        const { pixels, label } = app.photographs[i];
        right += cbam.named(app.ask({ pixels, cover: null })) === label;
      };
      asking.run(count, each, () => {
        told.textContent = `${right} of ${count} right (with all gates as trained: ${untouched}).`;
      });
    }

    function draw() {
      if (gates === null || gates === JSON.stringify([app.state.gates, app.state.instead])) return;
      asking.halt();
      told.textContent = "";
      gates = null;
    }
    return { element, draw };
  }

  /** What has been chosen, and what follows from it. */
  function makeApp(data) {
    const network = cbam.readNetwork(data);
    const app = {
      network,
      photographs: cbam.readPhotographs(data),
      accuracy: data.accuracy,
      grey: data.mean.map((value) => Math.round(255 * value)),
      base: null, // the run of the picture, uncovered, with every gate as trained
      run: null, // the run of what is on the screen
      state: {
        picture: null, // pixels, label (null: nobody knows), name
        cover: NOTHING(),
        gates: allOn(network), // for each block, whether its gates are on
        instead: "open", // what a gate that is off says
        patches: null, // what sliding a patch has shown
        block: 6,
        place: [0.5, 0.5], // in the map, from 0 to 1
        channel: 0,
        scale: "common",
        under: false, // the photograph in a map looks like something that the gate found
      },
    };
    /** The range of values that a map's colours run through. */
    app.limits = (map) => (app.state.scale === "common" ? [0, 1] : cbam.rangeOf(map));
    /** The network's answer with the gates as they are, to this picture or another. */
    app.ask = ({ pixels = app.state.picture.pixels, cover }) => {
      const { gates, instead } = app.state;
      const kind = (on) => (on ? "learnt" : instead);
      const answers = gates.map((gate) => ({
        channel: kind(gate.channel),
        spatial: kind(gate.spatial),
      }));
      return cbam.runNetwork(network, cbam.normalise(pixels, network, cover), answers);
    };
    return app;
  }

  /** Put the page together, and keep it up to date. */
  function start(root) {
    const app = makeApp(cbam.networkData);
    let stale = false; // the run is not that of the state
    let waiting = false;

    const pick = cbam.lookPick(app);
    const photo = cbam.lookPhoto(app);
    const answer = answerTable(app);
    const all = census(app);
    const blocks = cbam.lookBlocks(app, all.element);
    const foot = footer(app);
    const words = cbam.element("p", { class: "look-summary", "aria-live": "polite" });

    function update() {
      waiting = false;
      const { picture, cover, gates } = app.state;
      app.base ??= cbam.runNetwork(app.network, cbam.normalise(picture.pixels, app.network));
      const touched = cover.includes(1) || gates.some((gate) => !gate.channel || !gate.spatial);
      if (!touched) app.run = app.base;
      else if (stale) app.run = app.ask({ cover });
      stale = false;
      for (const part of [photo, answer, blocks, all, foot]) part.draw();
      root.dataset.ready = ++updates;
    }
    let updates = 0;

    let speaking = 0;
    function speak() {
      clearTimeout(speaking); // a stroke is told when it ends, not at every place
      speaking = setTimeout(() => (words.textContent = summary(app)), 400);
    }

    function soon() {
      speak();
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(update);
    }

    const COMPUTED = ["picture", "cover", "gates", "instead"];
    app.change = (changes) => {
      if (COMPUTED.some((key) => key in changes)) {
        stale = true;
        photo.halt();
        app.state.patches = null;
      }
      Object.assign(app.state, changes);
      soon();
    };
    app.show = (picture) => {
      app.base = null;
      app.change({ picture, cover: NOTHING() });
    };
    app.setGates = (edit) => {
      const gates = app.state.gates.map((gate) => ({ ...gate }));
      edit(gates);
      app.change({ gates });
    };
    app.pick = (block) => app.change({ block });
    app.drawDetail = () => blocks.drawDetail();

    const screen = cbam.element(
      "div",
      { class: "look-app" },
      pick.element,
      cbam.element(
        "div",
        { class: "look-main" },
        photo.element,
        photo.tools,
        cbam.element("div", { class: "look-says" }, answer.element, words),
      ),
      ...blocks.elements,
      foot.element,
    );
    root.append(screen);
    root.classList.add("explorer-ready");
    pick.drop(screen);
    pick.choose(cbam.networkData.photographs.first);
    new MutationObserver(soon).observe(document.documentElement, {
      attributeFilter: ["data-theme"],
    });
  }

  document.addEventListener("DOMContentLoaded", () => {
    const root = document.getElementById("explorer-look");
    if (root) start(root);
  });
}
