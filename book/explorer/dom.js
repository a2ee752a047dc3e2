/**
 * What both pages of the explorer write their pages with: elements and numbers.
 */
"use strict";

var cbam = globalThis.cbam || {}; // var: every script of a page may begin with this line
globalThis.cbam = cbam;

/** A number with a few digits behind the point, and a minus sign that is one. */
cbam.number = function (value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? `−${text}` : text;
};

/**
 * An element with children. `attributes` are set as such, but for `text` and `html` (of ours,
 * never a reader's), which fill it, and `on`, listeners by event. Those that are null or false are
 * left out.
 */
cbam.element = function (tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  const { on = {}, text = null, html = null, ...rest } = attributes;
  for (const [name, value] of Object.entries(rest)) {
    if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  for (const [event, listener] of Object.entries(on)) made.addEventListener(event, listener);
  if (text !== null) made.textContent = text;
  if (html !== null) made.innerHTML = html;
  made.append(...children);
  return made;
};
