/**
 * Which picture the network sees: one of the photographs here, or the reader's own.
 */
"use strict";

var cbam = globalThis.cbam || {}; // var: every script of a page may begin with this line
globalThis.cbam = cbam;

{
  /** The photographs as radio buttons, a row a class. */
  function photographs(app, choose) {
    const { classes } = app.network;
    const counts = classes.map(() => 0);
    const rows = classes.map((name, label) =>
      cbam.element(
        "div",
        { class: "look-class", role: "group", "aria-labelledby": `look-class-${label}` },
        cbam.element("span", { id: `look-class-${label}`, class: "look-class-name", text: name }),
      ),
    );
    app.photographs.forEach((photograph, i) => {
      const { label, answer } = photograph;
      const wrong = answer !== label;
      const named = wrong ? `, which the network takes for ${classes[answer]}` : "";
      const text = `${classes[label]} ${++counts[label]}${named}`;
      const thumbnail = cbam.element("canvas", { class: "look-pixels", "aria-hidden": "true" });
      cbam.drawPicture(thumbnail, photograph.pixels);
      rows[label].append(
        cbam.element(
          "label",
          { class: wrong ? "look-thumbnail look-wrong" : "look-thumbnail", title: text },
          cbam.element("input", {
            type: "radio",
            name: "look-photograph",
            value: i,
            "aria-label": text,
            on: { change: () => choose(i) },
          }),
          thumbnail,
        ),
      );
    });
    return cbam.element("div", { class: "look-classes" }, ...rows);
  }

  /** Sliders that move a square over the reader's picture: `element`, and `open(picture)`. */
  function cropper(use) {
    let picture = null;
    const preview = cbam.element("canvas", { class: "look-preview", "aria-hidden": "true" });
    const slider = (name, text, min, max, value) =>
      cbam.element(
        "label",
        {},
        text,
        cbam.element("input", { type: "range", name, min, max, value, step: 0.01 }),
      );
    const sliders = [
      slider("zoom", "closer", 1, 8, 1),
      slider("across", "left, right", -1, 1, 0),
      slider("down", "up, down", -1, 1, 0),
    ];
    const inputs = sliders.map((label) => label.querySelector("input"));
    const name = cbam.element("p", { class: "look-name" });
    const element = cbam.element(
      "fieldset",
      { class: "look-crop", hidden: true },
      cbam.element("legend", { text: "The square that is taken" }),
      preview,
      cbam.element("div", {}, name, ...sliders),
    );

    function draw({ left, top, side }) {
      const scale = 160 / Math.max(picture.width, picture.height);
      preview.width = Math.max(1, Math.round(picture.width * scale));
      preview.height = Math.max(1, Math.round(picture.height * scale));
      const context = preview.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(picture.canvas, 0, 0, preview.width, preview.height);
      context.fillStyle = "rgb(0 0 0 / 55%)";
      const square = [left, top, side, side].map((length) => length * scale);
      context.beginPath();
      context.rect(0, 0, preview.width, preview.height);
      context.rect(...square);
      context.fill("evenodd");
      context.strokeStyle = "#fff";
      context.lineWidth = 2;
      context.strokeRect(...square);
    }

    function take() {
      const [zoom, across, down] = inputs.map((input) => Number(input.value));
      const square = cbam.squareOf(picture, { zoom, across, down });
      draw(square);
      use(picture.name, cbam.resample(picture, square));
    }

    let waiting = false; // a slider moves faster than a large picture is made small
    element.addEventListener("input", () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        take();
      });
    });
    return {
      element,
      open(opened) {
        picture = opened;
        element.hidden = false;
        inputs.forEach((input) => (input.value = input.name === "zoom" ? 1 : 0));
        const { width, height, full } = picture;
        const smaller = full.width === width ? "" : `, made ${width} × ${height}`;
        name.textContent = `${picture.name}, ${full.width} × ${full.height}${smaller}`;
        take();
      },
      close() {
        picture = null; // let its memory go
        element.hidden = true;
      },
    };
  }

  /** The choice of a picture: `element`, `choose(i)`, a photograph; `drop`, what shows a drop. */
  cbam.lookPick = function (app) {
    const crop = cropper((name, pixels) => app.show({ pixels, label: null, name: `“${name}”` }));
    const message = cbam.element("p", { class: "look-message", role: "alert" });

    let turns = 0; // how often something was chosen

    function choose(i) {
      turns++;
      const photograph = app.photographs[i];
      const radio = element.querySelector(`input[value="${i}"]`);
      radio.checked = true;
      crop.close();
      message.textContent = "";
      app.show({ ...photograph, name: radio.getAttribute("aria-label") });
    }

    async function open(file) {
      const turn = ++turns;
      message.textContent = "";
      try {
        const picture = await cbam.openPicture(file);
        if (turn !== turns) return; // something else was chosen while it was opened
        const chosen = element.querySelector("input[name=look-photograph]:checked");
        if (chosen) chosen.checked = false;
        crop.open(picture);
      } catch (error) {
        if (turn === turns) message.textContent = error.message;
      }
    }

    const chooser = cbam.element("input", {
      type: "file",
      accept: "image/*",
      id: "look-file",
      on: {
        change: (event) => {
          const [file] = event.target.files;
          if (file) open(file);
          event.target.value = ""; // so that the same file may be chosen again
        },
      },
    });
    const { right, of } = app.accuracy;
    const element = cbam.element(
      "section",
      { class: "look-pick", "aria-label": "Choose a picture" },
      cbam.element(
        "fieldset",
        {},
        cbam.element("legend", { text: "Choose a photograph" }),
        photographs(app, choose),
      ),
      cbam.element("p", {
        class: "look-hint",
        text:
          `The network never saw these in training. It names ${right} of ${of} such photographs ` +
          "rightly. A dotted edge marks a mistake; of each class its first one is here.",
      }),
      cbam.element(
        "div",
        { class: "look-row" },
        cbam.element("label", { class: "look-file" }, "Your own picture …", chooser),
        cbam.element("span", {
          class: "look-hint",
          text:
            "or drop it here, or paste it. It does not leave this page. The network " +
            "knows ten classes and nothing else: it will call your face one of them.",
        }),
      ),
      message,
      crop.element,
    );

    /** Let files be dropped and pasted anywhere: beside it, the browser would leave the page. */
    function drop(target) {
      const files = ({ dataTransfer }) => dataTransfer && [...dataTransfer.types].includes("Files");
      document.addEventListener("dragover", (event) => {
        if (!files(event)) return;
        event.preventDefault();
        target.classList.add("look-drop");
      });
      document.addEventListener("dragleave", () => target.classList.remove("look-drop"));
      document.addEventListener("drop", (event) => {
        target.classList.remove("look-drop");
        if (!files(event)) return;
        event.preventDefault();
        if (event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
      });
      document.addEventListener("paste", (event) => {
        const [file] = event.clipboardData ? event.clipboardData.files : [];
        if (file) open(file);
      });
    }

    return { element, choose, drop };
  };
}
