/*
 * The page of an image: the photograph, and the maps that have it among their strongest, by layer, each with its box.
 *
 * The boxes of one layer are drawn; that of the map under the pointer or with the focus stands out, and beside the
 * photograph one sees the crop and the projection of just this image.
 */
"use strict";

(() => {
  const { el, svg, number, count, address } = atlas;
  const FIRST = 48; // maps of a layer before the button that shows all

  /** The entries of an image: its maps by layer, the largest values first. */
  async function entries(source, id) {
    const { place } = (await source.names())(id) ?? {};
    if (place === undefined) throw new atlas.Sorry(`The image ${id} is not among those that this atlas shows.`);
    const shard = source.index.winners ? await source.load(`winners/${Math.floor(place / 64)}`) : {};
    const byLayer = new Map();
    for (const [L, map, rank, row, column, value, ...box] of shard[id] ?? []) {
      if (!byLayer.has(L)) byLayer.set(L, []);
      byLayer.get(L).push({ L, map, rank, row, column, value, box });
    }
    for (const list of byLayer.values()) list.sort((a, b) => a.rank - b.rank || b.value - a.value || a.map - b.map);
    return byLayer;
  }

  /** The photograph with room for boxes on it. */
  function photograph(source, id, image, name) {
    const [height, width] = source.index.image_size;
    const side = Math.min(window.innerWidth - 32, 448);
    const boxes = svg("svg", {
      class: "boxes",
      viewBox: `0 0 ${width} ${height}`,
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    });
    const frame = atlas.whole(id, side, {
      source,
      label: `image ${name}`,
      size: image.size?.[0] ? image.size : undefined,
    });
    frame.append(boxes);
    return [frame, boxes];
  }

  atlas.pages.image = async (container, { parts: [text], query }) => {
    const { source, index } = atlas;
    const id = /^\d+$/.test(text ?? "") ? Number(text) : NaN;
    if (Number.isNaN(id)) throw new atlas.Sorry(`“${text}” is not the number of an image.`);
    const byLayer = await entries(source, id);
    const image = (await source.names())(id);
    const { id: ids } = await atlas.load("images");
    const name = image.file ?? `${id}`;
    const label = source.className(image.label);
    const numbers = [...byLayer.keys()].sort((a, b) => a - b);
    let chosen;
    const [frame, boxes] = photograph(source, id, image, name);
    const detail = el("div", { class: "detail", "aria-live": "polite" });
    const list = el("div", { class: "by-layer" });
    const [height, width] = index.image_size;

    /** The part of a box that lies in the image. */
    function rectangle({ box: [top, left, bottom, right], map }) {
      const [y, x] = [Math.max(top, 0.5), Math.max(left, 0.5)];
      const size = {
        width: Math.max(Math.min(right, width - 0.5) - x, 1),
        height: Math.max(Math.min(bottom, height - 0.5) - y, 1),
      };
      return svg("rect", { x, y, ...size, "data-map": map });
    }

    /** Let one map's box stand out, and show what this image is for it. */
    async function point(entry, pointing = true) {
      for (const box of boxes.children) box.classList.toggle("on", pointing && box.dataset.map === String(entry.map));
      boxes.classList.toggle("pointing", pointing);
      const on = [...boxes.children].find((box) => box.classList.contains("on"));
      if (on) boxes.append(on); // above the others
      const layer = index.layers[entry.L];
      const row = await source.row(entry.L, entry.map);
      if (row < 0) return;
      const kinds = index.pixels === "none" ? ["projection"] : ["crop", "projection"];
      const tiles = kinds.map((kind) =>
        atlas.tile(entry.L, row, kind, entry.rank, {
          target: 112,
          box: entry.box,
          label: `${kind} of this image for map ${entry.map}`,
        }),
      );
      detail.replaceChildren(
        el(
          "p",
          { class: "value" },
          el("b", {}, `${layer.name} map ${entry.map}`),
          ` ${number(entry.value)}, rank ${entry.rank + 1} among the map's strongest; its unit at row ${entry.row}, column ${entry.column}, from 0`,
        ),
        el("span", { class: "pair" }, tiles),
        el(
          "p",
          { class: "meaning" },
          "Point at a map below, or move the focus to it, to see its box, its crop and its projection. Grey is zero.",
        ),
      );
    }

    async function section(L) {
      const layer = index.layers[L];
      const all = byLayer.get(L);
      const tiles = index.pixels === "none" ? [1] : [0, 1];
      const item = async (entry) => {
        const row = await source.row(L, entry.map);
        const pair =
          row < 0 ? null : tiles.map((place) => atlas.tile(L, row, "overview", place, { target: 40, lazy: true }));
        const show = () => point(entry);
        return el(
          "li",
          {},
          el(
            "a",
            { href: address.map(layer.name, entry.map), onmouseenter: show, onfocus: show },
            el("span", { class: "pair" }, pair),
            el(
              "span",
              { class: "about" },
              el("b", {}, el("span", { class: "unseen" }, "map "), entry.map),
              el("span", {}, number(entry.value)),
            ),
          ),
        );
      };
      const items = el("ul", { class: "links" }, await Promise.all(all.slice(0, FIRST).map(item)));
      const more =
        all.length > FIRST
          ? el(
              "button",
              {
                type: "button",
                onclick: async () => {
                  items.append(...(await Promise.all(all.slice(FIRST).map(item))));
                  more.remove();
                },
              },
              `All ${count(all.length, "map")}`,
            )
          : null;
      return [items, more];
    }

    async function choose(L) {
      chosen = L;
      boxes.replaceChildren(...(byLayer.get(L) ?? []).map(rectangle));
      for (const button of tabs) button.setAttribute("aria-pressed", String(Number(button.dataset.layer) === L));
      const content = await section(L);
      if (chosen !== L) return;
      list.replaceChildren(...content.filter(Boolean));
      await point(byLayer.get(L)[0], false);
    }

    const wanted = ({ layer }) => {
      const L = layer === undefined ? numbers.at(-1) : source.layerOf(layer);
      return byLayer.has(L) ? L : numbers.at(-1);
    };
    const tabs = numbers.map((L) =>
      el(
        "button",
        {
          type: "button",
          "data-layer": L,
          onclick: () => atlas.navigate(address.image(id, { layer: index.layers[L].name })),
        },
        index.layers[L].name,
        el("small", {}, ` ${byLayer.get(L).length}`),
      ),
    );
    const total = numbers.reduce((sum, L) => sum + byLayer.get(L).length, 0);
    const step = (other, sign, words) =>
      other === undefined
        ? el("span", { class: "button off", "aria-hidden": "true" }, sign)
        : el("a", { class: "button", href: address.image(other), title: words, "aria-label": words }, sign);
    const [before, after] = [ids[image.place - 1], ids[image.place + 1]];
    atlas.add(
      container,
      el(
        "div",
        { class: "heading" },
        el("h1", { tabindex: -1, title: name }, el("span", { class: "thin" }, "image "), atlas.short(name, 40)),
        el("span", { class: "buttons" }, step(before, "←", "Previous image"), step(after, "→", "Next image")),
      ),
      el(
        "p",
        { class: "lede" },
        label === null ? null : [el("a", { href: address.search(label) }, label), ". "],
        total
          ? `Among the strongest of ${count(total, "map")} in ${count(numbers.length, "layer")}.`
          : "Not among the strongest of any map; it is an example of a weaker image.",
      ),
      el("div", { class: "columns image" }, el("div", { class: "photograph" }, frame), el("div", {}, detail)),
      total
        ? [
            el("h2", {}, "The maps that have it among their strongest"),
            el(
              "p",
              { class: "meaning" },
              `Each pair: the strongest ${index.pixels === "none" ? "projection" : "crop of the map and its projection"}; its number and its value in this image.`,
            ),
            el("div", { class: "switch many", role: "group", "aria-label": "The layer" }, tabs),
            list,
          ]
        : null,
    );
    if (total) await choose(wanted(query));
    return {
      title: `image ${name}`,
      where: [[`image ${atlas.short(name)}`, address.image(id)]],
      before: () => before !== undefined && address.image(before),
      after: () => after !== undefined && address.image(after),
      update({ query: next }) {
        const L = wanted(next);
        if (total && L !== chosen) choose(L);
      },
    };
  };
})();
