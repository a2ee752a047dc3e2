/** Three things to bring about on the painting page, each with a check that is computed. */
"use strict";

var cbam = globalThis.cbam || {};
globalThis.cbam = cbam;

{
  const el = cbam.element;
  const chapter = (name, text) => `<a href="../notebooks/${name}.html">${text}</a>`;
  const TASKS = [
    {
      ask: "Shut channel 2’s gate: <var>M</var><sub>c</sub>[2] below 0.20.",
      why: "A gate compares: what shuts a channel is mostly what the <em>others</em> do " +
        `(${chapter("03_channel_attention", "chapter 03")}).`,
      holds: ({ channel }) => Boolean(channel?.map) && channel.map[2] < 0.2,
    },
    {
      ask: "Make the poolings disagree: the means vote for a channel, the maxima against it, by " +
        "0.30 or more each.",
      why: "A broad whisper wins the mean, one loud place the maximum; that is why there are two " +
        `(${chapter("02_pooling", "chapter 02")}).`,
      holds: ({ channel }) =>
        Boolean(channel) &&
        channel.votesAvg.some((vote, c) => vote >= 0.3 && channel.votesMax[c] <= -0.3),
    },
    {
      ask: "Open the spatial gate in the upper right corner, above 0.80, and keep it below 0.30 " +
        "in the lower left.",
      why: "The kernel looks for what stands out from its surroundings, and beyond the border " +
        `there are zeros (${chapter("04_spatial_attention", "chapter 04")}).`,
      holds: ({ spatial }, [, height, width]) =>
        Boolean(spatial?.map) &&
        spatial.map[width - 1] > 0.8 &&
        spatial.map[(height - 1) * width] < 0.3,
    },
  ];

  /** The list of them, which ticks off what holds. */
  cbam.Tasks = class {
    constructor() {
      const list = el("ol");
      this.items = TASKS.map(({ ask, why }) => {
        const done = el("span", { class: "paint-done", role: "status" });
        const item = el("li", {}, el("span", { html: ask }), done);
        list.append(item);
        return { item, done, why };
      });
      this.count = el("span", { class: "paint-note" });
      const title = el("summary", { text: "Predict, then paint: three small tasks " });
      title.append(this.count);
      this.element = el("details", { class: "paint-tasks" }, title, list);
    }

    check(scene) {
      TASKS.forEach(({ holds }, i) => {
        const { item, done, why } = this.items[i];
        const yes = holds(scene.result, scene.shape);
        if (yes === item.classList.contains("paint-yes")) return;
        item.classList.toggle("paint-yes", yes);
        done.innerHTML = yes ? ` <b>Done.</b> ${why}` : "";
      });
      const done = this.items.filter(({ item }) => item.classList.contains("paint-yes")).length;
      this.count.textContent = done ? `(${done} of ${TASKS.length} hold now)` : "";
    }
  };
}
