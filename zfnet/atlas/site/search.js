/*
 * Search: layers, maps, classes and files by a part of their name.
 *
 * "relu3 17" is a map, "17" the maps of that number, "dog" the maps that prefer the class, "0042.jpg" an image.
 */
"use strict";

(() => {
  const { el, count, address } = atlas;
  const TILES = 12; // maps of a layer shown for a class
  const MOST = 60; // files and classes listed

  const section = (title, ...content) => el("section", {}, el("h2", {}, title), content);

  /** Layers and numbers that a text may mean: [[layer, map], ...]. */
  async function maps(text) {
    const [, name, digits] = /^(?:(.*?)[\s:/]+)?(?:map\s+)?(\d+)$/is.exec(text) ?? [];
    if (digits === undefined) return [];
    const wanted = (name ?? "").replace(/\s+map$/i, "").toLowerCase();
    const layers = atlas.index.layers
      .map((layer, L) => [layer.name.toLowerCase(), L])
      .filter(([layer]) => layer.includes(wanted));
    const exact = layers.filter(([layer]) => layer === wanted);
    const found = [];
    for (const [, L] of exact.length ? exact : layers) {
      const row = await atlas.source.row(L, Number(digits));
      if (row >= 0) found.push([L, Number(digits), row]);
    }
    return found;
  }

  /** A pair of tiles that leads to a map. */
  function pair([L, map, row], text) {
    const { name } = atlas.index.layers[L];
    const tiles = (atlas.index.pixels === "none" ? [1] : [0, 1]).map((place) =>
      atlas.tile(L, row, "overview", place, { target: 48, lazy: true }),
    );
    return el(
      "li",
      {},
      el(
        "a",
        { href: address.map(name, map) },
        el("span", { class: "pair" }, tiles),
        el("span", { class: "about" }, el("b", {}, `map ${map}`), el("span", {}, text)),
      ),
    );
  }

  /** The maps that prefer a class, by layer, those with the most of their nine of it first. */
  async function preferring(label) {
    const parts = [];
    for (const [L, layer] of atlas.index.layers.entries()) {
      const columns = await atlas.load(`columns/${L}`);
      const rows = columns.class.map((other, row) => (other === label ? row : -1)).filter((row) => row >= 0);
      if (!rows.length) continue;
      rows.sort(
        (a, b) => columns.agree[b] - columns.agree[a] || columns.selectivity[b] - columns.selectivity[a] || a - b,
      );
      const name = atlas.source.className(label);
      const named = atlas.index.classes.indexOf(name) === label && !/^\d+$/.test(name) ? name : label;
      const all = el(
        "a",
        { href: address.layer(layer.name, { sort: "selectivity", class: named }) },
        `all ${count(rows.length, "map")}`,
      );
      const tiles = rows
        .slice(0, TILES)
        .map((row) => pair([L, columns.map[row], row], `${atlas.percent(columns.agree[row])} of its nine`));
      parts.push(el("h3", {}, layer.name, " ", el("small", {}, all)), el("ul", { class: "links" }, tiles));
    }
    return parts.length ? parts : [el("p", { class: "meaning" }, "No map prefers it.")];
  }

  async function results(text) {
    const { index, source } = atlas;
    const wanted = text.toLowerCase();
    const parts = [];
    let many = 0;
    const add = (found, part) => {
      many += found;
      parts.push(part);
    };
    const found = await maps(text);
    if (found.length)
      add(
        found.length,
        section(
          "Maps",
          el(
            "ul",
            { class: "links" },
            found.map((place) => pair(place, index.layers[place[0]].name)),
          ),
        ),
      );
    const layers = index.layers.filter((layer) => layer.name.toLowerCase().includes(wanted));
    if (layers.length)
      add(
        layers.length,
        section(
          "Layers",
          el(
            "ul",
            {},
            layers.map((layer) =>
              el("li", {}, el("a", { href: address.layer(layer.name) }, layer.name), ` ${count(layer.rows, "map")}`),
            ),
          ),
        ),
      );
    const labels = index.classes
      .map((name, label) => [name, label])
      .filter(([name]) => name.toLowerCase().includes(wanted));
    const exact = labels.filter(([name]) => name.toLowerCase() === wanted);
    const open = exact.length ? exact : labels.length <= 2 ? labels : [];
    for (const [name, label] of open)
      add(1, section(`The class ${name}: the maps that prefer it`, await preferring(label)));
    const others = labels.filter((entry) => !open.includes(entry));
    if (others.length) {
      add(
        others.length,
        section(
          "Classes",
          el(
            "ul",
            { class: "names" },
            others
              .slice(0, MOST)
              .map(([name]) =>
                el("li", {}, el("a", { href: address.search(name), title: name }, atlas.short(name, 40))),
              ),
          ),
          others.length > MOST ? el("p", { class: "meaning" }, `and ${others.length - MOST} more`) : null,
        ),
      );
    }
    const images = await source.load("images");
    const places = images.file.keys().toArray?.() ?? [...images.file.keys()];
    const files = places.filter(
      (place) => images.file[place]?.toLowerCase().includes(wanted) || String(images.id[place]) === text,
    );
    if (files.length) {
      const items = files.slice(0, MOST).map((place) => {
        const name = images.file[place] ?? `image ${images.id[place]}`;
        return el(
          "li",
          {},
          el(
            "a",
            { href: address.image(images.id[place]), title: name },
            atlas.whole(images.id[place], 88, { label: "" }),
            el("span", { class: "file" }, atlas.short(name)),
          ),
        );
      });
      add(
        files.length,
        section(
          count(files.length, "image"),
          el("ul", { class: "pictures" }, items),
          files.length > MOST
            ? el("p", { class: "meaning" }, `The first ${MOST} are shown: write more of the name.`)
            : null,
        ),
      );
    }
    return [many, parts];
  }

  atlas.pages.search = async (container, { query }) => {
    const field = document.getElementById("find");
    const said = el("p", { class: "said", role: "status", "aria-live": "polite" });
    const content = el("div", {});
    let turn = 0;
    async function draw(text) {
      const mine = ++turn;
      if (document.activeElement !== field) field.value = text;
      const [many, parts] = text.trim() ? await results(text.trim()) : [null, []];
      if (mine !== turn) return;
      said.textContent =
        many === null
          ? "Write a layer, a map (relu3 17), a class or a part of a file's name into the field above."
          : many
            ? `“${text}”: ${many === 1 ? "1 result" : `${many.toLocaleString("en")} results`}.`
            : `Nothing is called “${text}”. Try a part of the name, or a layer and a number, like ${atlas.index.layers[0].name} 3.`;
      content.replaceChildren(...parts);
    }
    atlas.add(container, el("h1", { tabindex: -1 }, "Search"), said, content);
    await draw(query.q ?? "");
    return {
      title: "Search",
      where: [["search", address.search(query.q ?? "")]],
      update: (place) => draw(place.query.q ?? ""),
      leave: () => (field.value = ""),
    };
  };

  window.addEventListener("DOMContentLoaded", () => {
    const field = document.getElementById("find");
    let later;
    const go = () => {
      clearTimeout(later);
      atlas.navigate(address.search(field.value), { replace: location.hash.startsWith("#/search") });
    };
    field.addEventListener("input", () => {
      clearTimeout(later);
      later = setTimeout(go, 150);
    });
    field.form.addEventListener("submit", (event) => {
      event.preventDefault();
      const links = document.querySelectorAll("main a[href]");
      if (location.hash === address.search(field.value) && links.length === 1) location.hash = links[0].hash;
      else go();
    });
  });
})();
