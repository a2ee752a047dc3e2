/** A painting as a line of letters for an address, and as a program for PyTorch. */
"use strict";

var cbam = globalThis.cbam || {};
globalThis.cbam = cbam;

{
  const el = cbam.element;
  const KEYS = ["order", "weights", "reduction", "kernel", "openChannel", "openSpatial"];

  /** Bytes as letters that an address may hold (RFC 4648, section 5), and back. */
  function letters(bytes) {
    const text = btoa(String.fromCharCode(...bytes));
    return text.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
  }

  function bytes(letters) {
    const text = atob(letters.replaceAll("-", "+").replaceAll("_", "/"));
    return Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  }

  /** What stands behind the # of an address: the painting in hundredths, and the settings. */
  cbam.toHash = function (features, settings) {
    const hundredths = Array.from(features, (x) => Math.round(100 * x) + 100);
    const rest = KEYS.map((key) => Number(settings[key]) || settings[key] || 0).join(".");
    return `paint=${letters(hundredths)}.${rest}`;
  };

  /** What an object has of its own under a key that anybody may have written. */
  const own = (object, key) => (object && Object.hasOwn(object, key) ? object[key] : null);

  /** The painting and the settings of such a line, or null if it is none that can be shown. */
  cbam.fromHash = function (hash, count, layers) {
    const [, drawn, rest] = /^#?paint=([\w-]+)\.([\w.-]+)$/.exec(hash) || [];
    if (!drawn) return null;
    let features;
    try {
      features = Float32Array.from(bytes(drawn), (byte) => Math.min(1, (byte - 100) / 100));
    } catch {
      return null; // not what btoa writes
    }
    const [order, weights, reduction, kernel, openChannel, openSpatial] = rest.split(".");
    const layer = own(own(own(layers, weights), reduction), kernel);
    const known = cbam.ORDERS.includes(order) && layer;
    if (features.length !== count || !known) return null;
    return {
      features,
      settings: {
        ...{ order, weights, reduction: Number(reduction), kernel: Number(kernel) },
        ...{ openChannel: openChannel === "1", openSpatial: openSpatial === "1" },
      },
    };
  };

  const short = (x) => String(Number(x.toPrecision(9))); // all digits that a float32 has

  function tensor(name, values, shape) {
    const numbers = Array.from(Float32Array.from(values), short).join(", ");
    const lines = numbers.replace(/(.{1,88}),( |$)/g, "$1,\n    ");
    return `${name} = torch.tensor([\n    ${lines}\n]).reshape(${shape.join(", ")})\n`;
  }

  /**
   * A program that computes the same numbers with cbam_edu. A gate that is switched off is left
   * out there, for then its map is 1 everywhere.
   */
  cbam.toPyTorch = function (features, shape, layer, settings) {
    const { order, reduction, kernel, openChannel, openSpatial } = settings;
    const gates = order === "parallel" ? ["channel", "spatial"] : order.split("-");
    const off = { channel: openChannel, spatial: openSpatial, only: true };
    const on = gates.filter((gate) => !off[gate]);
    const start = "import torch\nfrom cbam_edu import CBAM\n\n";
    const x = tensor("x", features, [1, ...shape]);
    if (on.length === 0) return `${start}${x}print(x)  # both gates are off\n`;
    const left = on.length === 2 ? order : `${on[0]}-only`;
    const k = layer.kernel;
    const weights = {
      channel: [
        ["channel.mixer.0.weight", layer.w0, [layer.hidden, layer.channels]],
        ["channel.mixer.0.bias", layer.b0, [layer.hidden]],
        ["channel.mixer.2.weight", layer.w1, [layer.channels, layer.hidden]],
        ["channel.mixer.2.bias", layer.b1, [layer.channels]],
      ],
      spatial: [
        ["spatial.conv.weight", layer.conv, [1, 2, k, k]],
        ["spatial.norm.weight", [layer.scale * Math.sqrt(1 + 1e-5)], [1]], // PyTorch divides by it
        ["spatial.norm.bias", [layer.shift], [1]],
      ],
    };
    const state = on.flatMap((gate) => weights[gate]);
    const lines = state.map(([name, values, size]) => tensor(`state["${name}"]`, values, size));
    return (
      `${start}${x}\n` +
      `module = CBAM(${shape[0]}, reduction=${reduction}, kernel_size=${kernel}, ` +
      `order="${left}").eval()\n` +
      `state = module.state_dict()\n${lines.join("")}` +
      `module.load_state_dict(state)\n\n` +
      `with torch.no_grad():\n    print(module(x))\n`
    );
  };

  /** Copy a text; false where the browser forbids it. */
  cbam.copy = async function (text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = el("textarea", { text });
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy"); // where a page from a folder has no clipboard
      area.remove();
      return done;
    }
  };
}
