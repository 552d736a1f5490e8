/*
 * The keyboard: one key for each thing that one does often, and a window that says which. Nothing happens while somebody
 * writes into a field, or with Ctrl, Alt or Meta.
 */
"use strict";

(() => {
  const { el, address } = atlas;
  const KEYS = [
    [["←", "→"], "the map before, the map after; the same for layers and images on their pages"],
    [["↑", "↓"], "on a map's page: the layer above, the layer below"],
    [["1", "…", "5"], "what the tiles show: crop and projection, crop, projection, masked crop, whole image"],
    [["r"], "a random map"],
    [["/"], "search"],
    [["?"], "this help"],
    [["Esc"], "close, or leave the field"],
  ];

  const help = el(
    "dialog",
    { id: "help", "aria-labelledby": "help-title" },
    el("h2", { id: "help-title" }, "Keys"),
    el(
      "dl",
      { class: "keys" },
      KEYS.map(([keys, text]) =>
        el(
          "div",
          {},
          el(
            "dt",
            {},
            keys.map((key) => (key === "…" ? key : el("kbd", {}, key))),
          ),
          el("dd", {}, text),
        ),
      ),
    ),
    el("form", { method: "dialog" }, el("button", { class: "first" }, "Close")),
  );

  /** The map of the same number in the layer above (1) or below (-1); the last one where there are fewer. */
  async function layerBy(step) {
    const { current, index, source } = atlas;
    const L = current.layer + step;
    const layer = index.layers[L];
    if (!layer) return;
    const row = await source.row(L, current.map);
    const map = row >= 0 ? current.map : await atlas.numberOf(source, L, layer.rows - 1);
    atlas.navigate(address.map(layer.name, map, { view: current.view() }));
  }

  /** What a key does here; undefined: nothing. */
  function action(key) {
    const { current } = atlas;
    const go = (hash) => hash && (() => atlas.navigate(hash));
    const onMap = current?.map !== undefined;
    if (key === "ArrowLeft") return go(current?.before?.());
    if (key === "ArrowRight") return go(current?.after?.());
    if (key === "ArrowUp" && onMap) return () => layerBy(1);
    if (key === "ArrowDown" && onMap) return () => layerBy(-1);
    if (key === "r") return () => atlas.random();
    if (key === "/") return () => document.getElementById("find").focus();
    if (key === "?") return () => help.showModal();
    const button = /^[1-5]$/.test(key) && document.querySelectorAll("main .switch button")[Number(key) - 1];
    return button ? () => button.click() : undefined;
  }

  window.addEventListener("keydown", (event) => {
    const { target, key } = event;
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing || help.open) return;
    if (target.closest?.("input:not([type=checkbox]), select, textarea, [contenteditable]")) {
      if (key === "Escape") target.blur();
      return;
    }
    if (key === "Escape") return void document.getElementById("notices").replaceChildren();
    if (key.startsWith("Arrow") && target.closest?.("[role=group][tabindex]")) return; // a box that scrolls
    const act = action(key);
    if (!act) return;
    event.preventDefault();
    act();
  });

  window.addEventListener("DOMContentLoaded", () => {
    document.body.append(help);
    document.getElementById("random").addEventListener("click", () => atlas.random());
    document.getElementById("keys").addEventListener("click", () => help.showModal());
  });
})();
