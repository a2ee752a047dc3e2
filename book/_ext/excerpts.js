"use strict";

// A page that was opened from a folder may not read another page, and the search reads each page
// that it has found, to show the words around what was sought. There, and only there, it gets
// the words from a script instead.
(() => {
  if (location.protocol !== "file:") {
    return;
  }
  const here = document.currentScript.src;
  const script = document.createElement("script");
  script.src = new URL("words.js", here).href;
  const words = new Promise((resolve) => {
    script.addEventListener("load", () => resolve(window.cbam.words));
    script.addEventListener("error", () => resolve({}));
  });
  document.head.append(script);
  const root = new URL("../", here).href;
  window.fetch = async (address) => {
    const page = new URL(address, document.baseURI).href.replace(root, "");
    return new Response((await words)[page] || "");
  };
})();
