/**
 * The landing page's picture, moved: a bright spot on four sheets of features, and both gates'
 * answers. diagram.py drew the page's SVG and wrote its start into data attributes; every step
 * after that is computed here. The spot wanders by itself until somebody takes it.
 */
"use strict";

var cbam = globalThis.cbam || {};
globalThis.cbam = cbam;

(function () {
  const SECONDS = 6; // that the spot stays in one channel when nobody moves it
  const REST = 3; // seconds that it stays where it was put
  const FADE = 0.6; // seconds in which it goes, before it wanders again
  const FRAME = 40; // milliseconds; a picture of 64 small squares needs no more
  const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const [CHANNELS, SIDE] = cbam.paint.shape;

  /** Features (C, H, W): the example's blobs, and a spot of some strength in one channel. */
  function features(scene, { channel, row, column, strength = 1 }) {
    return Float32Array.from(scene.blobs, (blob, i) => {
      if (Math.floor(i / SIDE ** 2) !== channel) return blob;
      const down = (Math.floor(i / SIDE) % SIDE) - row;
      const right = (i % SIDE) - column;
      const spot = Math.exp(-(down ** 2 + right ** 2) / (2 * scene.width ** 2));
      return Math.min(1, blob + strength * spot);
    });
  }

  /** Where the spot is at a time in seconds, when nobody moves it. */
  function wander(seconds) {
    const lap = Math.floor(seconds / SECONDS);
    const part = (seconds % SECONDS) / SECONDS; // it fades in, moves, and fades out
    return {
      channel: (lap + 1) % CHANNELS,
      row: 3.5 + 2.6 * Math.sin(2 * Math.PI * part + lap),
      column: 3.5 + 2.6 * Math.cos(2 * Math.PI * part + 2 * lap),
      strength: Math.min(1, 5 * part, 5 * (1 - part)),
    };
  }

  /** The layer, the blobs and the spot's width that the picture was drawn with. */
  function sceneOf({ base, width, reduction, kernel }) {
    const example = cbam.paint.examples.find(({ name }) => name === "corners");
    return {
      layer: cbam.paint.layers.made[reduction][kernel],
      blobs: example.features.map((value) => base * value),
      width: Number(width),
    };
  }

  /** A function that shows steps in the SVG of diagram.py, whose cells it looks up once. */
  function painter(box) {
    const part = (name) => box.querySelector(`[data-part="${name}"]`);
    const cells = (name) => [...part(name).querySelectorAll("[fill-opacity]")];
    const [start, scales, refined, spatial, output] = ["F", "M_c", "F′", "M_s", "F″"].map(cells);
    const numbers = [...part("M_c").querySelectorAll("text")];
    const fill = (rects, values) =>
      rects.forEach((rect, i) => rect.setAttribute("fill-opacity", values[i].toFixed(2)));
    return (x, steps) => {
      fill(start, x);
      fill(scales, steps.channel.map);
      fill(refined, steps.refined);
      fill(spatial, steps.spatial.map);
      fill(output, steps.output);
      numbers.forEach((text, c) => (text.textContent = steps.channel.map[c].toFixed(2)));
    };
  }

  /** The place of a channel's map that is largest, and how large it is, in words. */
  function inWords(spot, { channel, spatial }) {
    const top = spatial.map.indexOf(Math.max(...spatial.map));
    const place = `row ${Math.floor(top / SIDE)}, column ${top % SIDE}`;
    const maps = Array.from(channel.map, (value) => value.toFixed(2)).join(", ");
    return (
      `Spot in channel ${spot.channel}, row ${Math.round(spot.row)}, column ` +
      `${Math.round(spot.column)}. The channel map is ${maps}. The spatial map is largest ` +
      `at ${place}: ${spatial.map[top].toFixed(2)}.`
    );
  }

  /** The spot under a pointer: the sheets stand one below the other, a place's width apart. */
  function spotAt(svg, event) {
    const { left, top, width } = svg.getBoundingClientRect();
    const place = width / SIDE;
    const within = (value) => Math.min(SIDE - 1, Math.max(0, value));
    const y = (event.clientY - top) / place;
    const channel = Math.min(CHANNELS - 1, Math.max(0, Math.floor(y / (SIDE + 1))));
    const column = within((event.clientX - left) / place - 0.5);
    return { channel, row: within(y - channel * (SIDE + 1) - 0.5), column };
  }

  /** The spot one step further; below a sheet the next one begins. */
  function moved(spot, [down, right]) {
    const last = CHANNELS * SIDE - 1;
    const line = spot.channel * SIDE + Math.round(spot.row) + down;
    const kept = Math.min(last, Math.max(0, line));
    const column = Math.min(SIDE - 1, Math.max(0, Math.round(spot.column) + right));
    return { channel: Math.floor(kept / SIDE), row: kept % SIDE, column };
  }

  /** A paragraph for the ear: what it holds is read out when it changes. */
  function speaker() {
    const said = document.createElement("p");
    said.className = "visually-hidden";
    said.setAttribute("aria-live", "polite");
    return said;
  }

  /** Let the picture in `box` be moved, and let it move. */
  function start(box) {
    const scene = sceneOf(box.dataset);
    const paint = painter(box);
    const pad = box.querySelector('[data-part="F"]');
    const svg = pad.querySelector("svg");
    const button = document.querySelector(".gates-pause");
    const said = speaker();
    const state = { playing: false, seen: true, running: false, before: 0 };
    Object.assign(state, { taken: performance.now(), strength: 1, clock: 0 });
    let spot = { channel: 0, row: 0, column: 0 };
    for (const name of Object.keys(spot)) spot[name] = Number(box.dataset[name]);
    let speech = 0;

    function show(next) {
      spot = next;
      const x = features(scene, spot);
      const steps = cbam.refine(x, cbam.paint.shape, scene.layer);
      paint(x, steps);
      return steps;
    }

    function take(next) {
      state.taken = performance.now();
      state.strength = 1;
      const steps = show(next);
      clearTimeout(speech);
      speech = setTimeout(() => (said.textContent = inWords(spot, steps)), 400);
    }

    /** The spot that was taken fades, then another one wanders. */
    function drift(seconds) {
      if (state.strength > 0) {
        state.strength = Math.max(0, state.strength - seconds / FADE);
        show({ ...spot, strength: state.strength });
      } else {
        show(wander((state.clock += seconds)));
      }
    }

    function frame(now) {
      const passed = now - state.before;
      const free = now - state.taken > 1000 * REST && document.activeElement !== pad;
      if (passed > FRAME) {
        state.before = now;
        if (free) drift(Math.min(passed, 100) / 1000);
      }
      state.running = false;
      run();
    }

    function run() {
      if (state.running || !state.playing || !state.seen) return;
      state.running = true;
      requestAnimationFrame(frame);
    }

    function play(playing) {
      state.playing = playing;
      button.textContent = playing ? "Pause" : "Play";
      run();
    }

    pad.addEventListener("pointermove", (event) => take(spotAt(svg, event)));
    pad.addEventListener("pointerdown", (event) => take(spotAt(svg, event)));
    pad.addEventListener("keydown", (event) => {
      const move = MOVES[event.key];
      if (!move) return;
      event.preventDefault();
      take(moved(spot, move));
    });
    button.addEventListener("click", () => {
      state.taken = -Infinity;
      play(!state.playing);
    });
    new IntersectionObserver(([entry]) => {
      state.seen = entry.isIntersecting;
      run();
    }).observe(box);

    pad.tabIndex = 0;
    pad.setAttribute("role", "application");
    pad.setAttribute("aria-label", "Features F: the arrow keys move the bright spot");
    box.after(said);
    box.classList.add("gates-live");
    button.hidden = false;
    play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  }

  const box = document.querySelector("#explorer-hero .gates");
  if (box) start(box);
})();
